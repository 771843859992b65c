# SPDX-License-Identifier: GPL-2.0
#
# `make` builds everything, `make demo` shows it at work, `make help` lists the rest. This file only names the steps;
# the scripts in build/ and qemu/image/ do them, and Kbuild beside this file is how the kernel builds the module.
#
# Variables:
#   KERNEL=NAME        another kernel: trixie-backports (the default), sid, or a release such as 7.2.12+deb13-amd64
#   KDIR=FOLDER        build the module only, against this prepared kernel tree, as any out-of-tree module is built
#   DEBUG_KERNEL=1     build for and run on the debug kernel of `make debug-kernel`
#   DRBD_CACHE=FOLDER  where downloads and prepared trees are kept (default ~/.cache/drbd-rs)
#   DEBIAN_MIRROR=URL  where Debian's packages come from (default: where this machine's apt gets them)
#   REFRESH=1          with setup: look again for the newest kernel

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
CARGO_RUN := build/cargo

.PHONY: all help setup module tools images shell demo test check unit-test module-check machine-agent machine-test machine-test-all bench simulate coverage \
	torture debug-kernel clean

all: module tools images ## everything: set-up, module, tools, machine images (the default)

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | \
		while IFS=$$'\t' read -r target text; do printf '  make %-14s %s\n' "$$target" "$$text"; done
	@sed -n '/^# Variables/,/^$$/s/^# //p' $(MAKEFILE_LIST)

setup: ## build root, kernel packages and prepared kernel tree, into the cache (once)
	@build/setup

ifdef KDIR
module:
	$(MAKE) -C $(KDIR) M=$(CURDIR) modules
else
module: setup ## drbd.ko, into target/module/RELEASE
	@build/module
endif

tools: setup ## drbdadm (also drbdsetup and drbdmeta), the lab and its programs, into target/release
	@$(CARGO_RUN) build --release -p drbdadm -p lab -p machine-tests

images: setup ## disk image and initramfs of the test machines
	@qemu/image/make

shell: all ## boots the two machines and puts you in front of both consoles
	@build/lab shell

demo: all ## the tutorial in the two machines, from set-up to fail-over and back
	@$(CARGO_RUN) run --quiet --release -p machine-tests --bin demo

test: check unit-test module-check machine-test ## every test: format, lints, units, module, machines

check: setup
	@$(CARGO_RUN) fmt --all --check
	@build/rustfmt-module --check
	@$(CARGO_RUN) clippy --locked --workspace --all-targets --features lab/machines,machine-tests/machines -- -D warnings

unit-test: setup ## tests that need no machines
	@$(CARGO_RUN) test --locked --workspace

module-check: module
	@build/module clippy

# What `make test` has no time for; `make machine-test-all` runs it as well: ours with ours of what runs with the C module in both
# roles, one of two where the roles differ by little, and what another scenario does on the way. With LAB_SHORT=1 the rows of
# `replication` and `resync`, the cases of `generations` and the rounds of others are shared out over the pairings.
LONG_TESTS := powercut:: leaks::up_and_down tools::our_tools_drive_the_c_module \
	$(addsuffix ::ours_with_ours,attach events generations hanging_disk injected interop replication resize resync sectors \
		failures::failing_disks failures::silent_peers failures::fencing) \
	$(addsuffix _ours_with_ours,volumes::cuts features::congestion features::initial_sync_skipped) \
	commands::ours $(addprefix lower_disks::,discards_ours_with discards_c_primary encrypted_ours) \
	$(addsuffix c_primary,attach:: resize:: sectors:: volumes::cuts_) features::initial_sync_skipped_by_the_c
# What `make test DEBUG_KERNEL=1` runs, where everything takes many times as long: ours with ours, all rows of it, and the C
# module only as the peer of ours where the most happens between the two. It has faults of its own there, and what our tools do
# with it is the same on every kernel.
DEBUG_OURS := ours_with_ours bad_input:: failing_allocations:: leaks:: torture:: metadata::drbdmeta_made resize::with_external \
	tools::utils_drive_our_module tutorial::as_typed_with_our_module
DEBUG_MIXED := $(addsuffix ::ours_primary,interop replication resync failures::failing_disks failures::silent_peers failures::fencing)
MACHINE_TEST := $(CARGO_RUN) test --locked -p machine-tests --features machine-tests/machines --test machines -- --test-threads=1

# The machines run the agent that lies beside the test program: it must not be an old one.
machine-agent: setup
	@$(CARGO_RUN) build --quiet --locked -p lab

machine-test: all machine-agent ## tests in the two machines; TESTS="interop:: powercut::" for a part of the scenarios
ifdef TESTS
	@$(MACHINE_TEST) $(TESTS)
else ifdef DEBUG_KERNEL
	@$(MACHINE_TEST) $(DEBUG_OURS)
	@LAB_SHORT=1 $(MACHINE_TEST) $(DEBUG_MIXED)
else
	@$(CARGO_RUN) test --locked -p lab --features lab/machines -- --test-threads=1
	@LAB_SHORT=1 $(MACHINE_TEST) $(addprefix --skip ,$(LONG_TESTS))
endif

machine-test-all: all machine-agent ## every scenario and row in every pairing, one to three hours
	@$(MACHINE_TEST)

bench: all ## the benchmark against the C module, into docs/PERFORMANCE.md; ARGS="--rows 'depth 1'" for some rows
	@$(CARGO_RUN) run --quiet --release -p machine-tests --bin bench -- $(ARGS)

simulate: setup ## random runs of two simulated nodes; SEEDS=100000 for more, ARGS="--help" tells the rest
	@$(CARGO_RUN) run --quiet --release -p simulator --bin simulate -- $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

coverage: setup ## the same with a table of what the runs reach in src/engine: lines, regions, branches
	@build/coverage $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

torture: all ## 100 power cuts and link cuts in the two machines; CUTS=500, SEED=1, PAIRING=ours, ours-c, c-ours or c
	@$(CARGO_RUN) run --quiet --release -p machine-tests --bin torture -- $(if $(CUTS),--cuts $(CUTS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(PAIRING),--pairing $(PAIRING))

debug-kernel: setup ## a kernel with KASAN, lockdep and kmemleak (10 to 20 minutes, once); use it with DEBUG_KERNEL=1
	@build/debug-kernel

clean: ## removes what was built here; the cache stays
	rm -rf target
	find . -path ./.git -prune -o \( -name '*.o' -o -name '*.ko' -o -name '*.mod' -o -name '*.mod.c' -o -name '.*.cmd' \
		-o -name '*.rmeta' -o -name 'bindings_generated.rs' \) -type f -exec rm -f {} +
	rm -f Module.symvers modules.order .module-common.o .Module.symvers.cmd
