# SPDX-License-Identifier: GPL-2.0
#
# What the scripts in this folder share. Sourced by each of them; needs bash.
#
# Everything that is downloaded or prepared once lives in the cache, outside the checkout, and serves every clone:
#
#   $DRBD_CACHE/                 default ~/.cache/drbd-rs
#     roots/SUITE/               a Debian root with the compilers of that suite's kernels, and QEMU (suite: trixie, sid)
#     roots/machine/             the root of the test machines
#     kernel/chosen-NAME         the release that KERNEL=NAME stands for, decided at set-up time
#     kernel/RELEASE/tree        the prepared kernel tree: external modules build against it (KDIR)
#     kernel/RELEASE/root        the kernel's packages unpacked: image, modules, headers
#     images/RELEASE/            disk image and initramfs of the test machines
#     bin/                       qemu-system-x86_64 and qemu-img, run from the build root
#     log/                       the output of every long step
#
# A finished step leaves a stamp file beside its result; a result without a stamp is made again from nothing. Each step
# holds a lock, so two builds at once wait for each other instead of doing the work twice.

set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=${DRBD_CACHE:-${HOME:-/root}/.cache/drbd-rs}
case $cache in /*) ;; *) cache=$PWD/$cache ;; esac
jobs=$(nproc)
export DEBIAN_FRONTEND=noninteractive

say() { printf '%s\n' "$*" >&2; }

# die MESSAGE REMEDY: one clear line with the command that mends it.
die() {
    say "error: $1${2:+  --  to mend it: $2}"
    exit 1
}

# step WHAT EXPECTED_LINES COMMAND...: runs a long command, its output in a log file. On a terminal a bar (measured by
# the lines of output against the number usual for this step), elapsed time and time left; in a pipe one line at the
# start and one at the end.
step() {
    local what=$1 expected=$2
    shift 2
    mkdir -p "$cache/log"
    local log
    log=$cache/log/$(printf '%s' "$what" | tr -c 'a-zA-Z0-9.+\n-' '_').log
    local began=$SECONDS status=0
    if [ -t 2 ] && [ -z "${CI:-}" ]; then
        # A process group of its own, so that an interrupt ends all of it.
        set -m
        "$@" >"$log" 2>&1 </dev/null &
        local child=$!
        set +m
        trap 'kill -TERM -- -$child 2>/dev/null; printf "\n" >&2; exit 130' INT TERM
        while kill -0 $child 2>/dev/null; do
            progress "$what" "$(wc -l <"$log")" "$expected" $((SECONDS - began))
            sleep 0.5
        done
        trap - INT TERM
        wait $child || status=$?
        printf '\r\033[K' >&2
    else
        say "    $what ..."
        "$@" >"$log" 2>&1 </dev/null || status=$?
    fi
    if [ $status -ne 0 ]; then
        tail -n 15 "$log" | sed 's/^/        /' >&2
        grep -q 'No space left on device' "$log" &&
            die "the disk is full ($(df -h --output=avail "$cache" | tail -1 | tr -d ' ') left)" "free 10 GB, or DRBD_CACHE=/a/larger/disk make"
        grep -Eq ' 404 +Not Found' "$log" &&
            die "the mirror has newer packages than the cache knows of" "make setup REFRESH=1"
        grep -Eq 'Could not resolve|Failed to fetch|Unable to connect|Temporary failure' "$log" &&
            die "Debian's mirror ${mirror:-} cannot be reached" "make DEBIAN_MIRROR=http://another/debian"
        die "$what failed, all of its output is in $log" "make setup (goes on where it stopped)"
    fi
    say "    $what: done in $((SECONDS - began)) s"
}

# progress WHAT DONE TOTAL SECONDS: one line, drawn over the last one.
progress() {
    local done=$2 total=$3 seconds=$4 width=24
    [ "$done" -lt "$total" ] || done=$((total - 1))
    local filled=$((done * width / total)) left='--' rate=0
    [ "$seconds" -gt 0 ] && rate=$((done / seconds))
    [ "$seconds" -gt 2 ] && [ "$done" -gt 0 ] && left=$(((total - done) * seconds / done))
    printf '\r\033[K    %-34s [%s%s] %3d%%  %d/s  %d s, %s s left' "$1" \
        "$(printf '%*s' "$filled" '' | tr ' ' '#')" "$(printf '%*s' $((width - filled)) '' | tr ' ' '.')" \
        $((done * 100 / total)) "$rate" "$seconds" "$left" >&2
}

# once RESULT COMMAND...: makes RESULT (a file or folder) unless its stamp says that it is finished.
once() {
    local result=$1
    shift
    [ -e "$result.done" ] && return
    mkdir -p "$(dirname "$result")"
    local lock
    exec {lock}>"$result.lock"
    if ! flock -n $lock; then
        say "    waiting for another build that makes $result"
        flock $lock
    fi
    if [ ! -e "$result.done" ]; then
        # One file system: a build that died cannot have left a mount behind (they are private to its processes).
        rm -rf --one-file-system "$result"
        "$@"
        touch "$result.done"
    fi
    exec {lock}>&-
}

need_root() {
    [ "$(id -u)" = 0 ] || die "this works in a Debian root of its own and needs to be root" "sudo make${1:+ $1}"
    unshare --mount true 2>/dev/null ||
        die "this container is not allowed to mount" "run it on a machine, or in a container with CAP_SYS_ADMIN"
}

# find_mirror: sets `mirror` and `security`: the caller's, else those that this machine's apt uses for Debian, else
# Debian's own.
find_mirror() {
    if [ -n "${DEBIAN_MIRROR:-}" ]; then
        mirror=$DEBIAN_MIRROR
    else
        mirror=$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
            awk '$1 == "Debian" && $2 == "Debian" && $3 ~ /^http/ { print $3; exit }')
        mirror=${mirror:-http://deb.debian.org/debian}
    fi
    mirror=${mirror%/}
    case $mirror in
    http://deb.debian.org/*) security=http://deb.debian.org/debian-security ;;
    *) security=${DEBIAN_SECURITY_MIRROR:-} ;;
    esac
}

# apt_options: sets the array `apt_options`, this machine's own apt settings that matter for reaching the mirror (a
# proxy, a mirror whose lists are kept longer than they are valid) and ours, as options of mmdebstrap.
apt_options() {
    apt_options=(--aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"'
        --aptopt='APT::Sandbox::User "root"')
    local setting value
    for setting in Acquire::Check-Valid-Until Acquire::Check-Date Acquire::http::Proxy Acquire::https::Proxy; do
        value=
        eval "$(apt-config shell value "$setting")"
        [ -z "$value" ] || apt_options+=(--aptopt="$setting \"$value\"")
    done
}

# host_packages PACKAGE...: installs what this machine lacks, through apt-get.
host_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "apt-get is not here, this needs Debian (bookworm or trixie)" "run it on a Debian machine"
    host_apt() {
        apt-get -q update || true # a broken third-party source must not stop us; the install below decides
        apt-get -q install -y --no-install-recommends "${missing[@]}"
    }
    step "install ${missing[*]}" 40 host_apt
}

# enter ROOT FOLDER... -- COMMAND...: runs a command inside a Debian root of ours, in the same working folder, with the
# cache, the checkout, /tmp and the FOLDERs at their usual paths. All mounts are private to the command.
enter() {
    DRBD_ROOT=$1 "$checkout/build/enter" "${@:2}"
}

# kernel_names: sets `release` (what `uname -r` will say), `suite` (the build root), `kernel` (the folder of the
# kernel's files) and `tree` from KERNEL and DEBUG_KERNEL. Needs a finished set-up.
kernel_names() {
    local name=${KERNEL:-trixie-backports}
    case $name in
    [0-9]*) release=$name ;;
    *)
        [ -e "$cache/kernel/chosen-$name" ] || die "no kernel is set up for KERNEL=$name yet" "make setup${KERNEL:+ KERNEL=$KERNEL}"
        release=$(cut -d' ' -f1 "$cache/kernel/chosen-$name")
        ;;
    esac
    suite=$(suite_of "$release")
    kernel=$cache/kernel/$release
    [ -z "${DEBUG_KERNEL:-}" ] || kernel=$cache/kernel/$release-debug
    tree=$kernel/tree
    [ -e "$tree.done" ] || die "the kernel $release is not set up" "make setup${KERNEL:+ KERNEL=$KERNEL}${DEBUG_KERNEL:+ && make debug-kernel}"
    release=$(cat "$kernel/release")
}

# suite_of RELEASE: Debian marks its kernels with the version of the system that they are built in.
suite_of() {
    case $1 in
    *+deb13*) echo trixie ;;
    *) echo sid ;;
    esac
}

# compiler_arguments: sets the array `kbuild`, what make needs to use exactly the kernel's own compiler.
compiler_arguments() {
    kbuild=("-j$jobs" -C "$tree" "KERNELRELEASE=$release")
    if [ -e "$kernel/compiler" ]; then
        kbuild+=("CC=$(cat "$kernel/compiler")" "HOSTCC=$(cat "$kernel/host-compiler")")
    fi
}
