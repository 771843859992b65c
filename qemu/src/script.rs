//! The language of `lab try`: blocks of bash for the machines, and lines that start with `@` for what happens to them.
//!
//! ```text
//! @both                     # until the next such line: bash -e on both machines at the same time
//! drbdadm create-md r0
//! @drbd1                    # on the first machine
//! drbdadm primary r0
//! @limit 120                # seconds for each of the following blocks (60 at first)
//! @wait 30 drbd2 grep -q UpToDate/UpToDate /proc/drbd
//! @link cut                 # also: restore, delay MILLISECONDS, lose PERMILLE
//! @kill drbd2               # power cut; also: start, reboot, pause, resume
//! @sleep 1.5
//! @check                    # fail if a kernel has complained
//! ```
//!
//! A script without such a line runs on all machines at the same time. The first block that fails ends the script.

use crate::{Cluster, Machine, NAMES};
use anyhow::{anyhow, bail, Context, Result};
use std::thread;
use std::time::{Duration, Instant};

/// One step of a script.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A block of bash on these machines (indices) at the same time.
    Block(Vec<usize>, String),
    /// Seconds for each of the following blocks.
    Limit(Duration),
    /// Wait until a command on a machine exits with 0.
    Wait(Duration, usize, String),
    /// Something happens to the link.
    Link(LinkChange),
    /// Something happens to a machine.
    Power(Power, usize),
    /// Nothing happens.
    Sleep(Duration),
    /// Fail if a kernel has complained.
    Check,
}

/// What happens to the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkChange {
    /// Nothing arrives.
    Cut,
    /// All is well again.
    Restore,
    /// Everything arrives later.
    Delay(Duration),
    /// So many of a thousand frames are lost.
    Lose(u16),
}

/// What happens to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Power cut.
    Kill,
    /// Power on again.
    Start,
    /// Orderly restart.
    Reboot,
    /// Freeze.
    Pause,
    /// Go on.
    Resume,
}

/// Reads a script for so many machines. Errors name the line.
pub fn parse(text: &str, machines: usize) -> Result<Vec<Step>> {
    let all: Vec<usize> = (0..machines).collect();
    let mut steps = Vec::new();
    let mut block = (all.clone(), String::new());
    for (number, line) in text.lines().enumerate() {
        let Some(directive) = line.strip_prefix('@') else {
            block.1.push_str(line);
            block.1.push('\n');
            continue;
        };
        push_block(&mut steps, &mut block);
        let words: Vec<&str> = directive.split(" #").next().unwrap_or_default().split_whitespace().collect();
        match target(&words, machines) {
            Some(machines) => block.0 = machines,
            None => steps.push(parse_step(&words, machines).with_context(|| format!("line {}: {line}", number + 1))?),
        }
    }
    push_block(&mut steps, &mut block);
    Ok(steps)
}

/// Runs a script and shows what happens.
pub fn run(cluster: &Cluster, steps: &[Step]) -> Result<()> {
    let mut limit = Duration::from_secs(60);
    for step in steps {
        let machine = |index: usize| &cluster.machines()[index];
        match step {
            Step::Block(machines, text) => run_block(machines.iter().map(|&index| machine(index)), limit, text)?,
            Step::Limit(new) => limit = *new,
            Step::Wait(limit, index, command) => {
                let began = Instant::now();
                machine(*index).wait_success(*limit, "success", command)?;
                println!("----- {} after {:.1} s: {command}", machine(*index).name(), began.elapsed().as_secs_f32());
            }
            Step::Link(change) => {
                println!("----- link: {change:?}");
                change_link(cluster, *change);
            }
            Step::Power(power, index) => {
                println!("----- {}: {power:?}", machine(*index).name());
                change_power(machine(*index), *power)?;
            }
            Step::Sleep(duration) => thread::sleep(*duration),
            Step::Check => cluster.check_consoles()?,
        }
    }
    Ok(())
}

fn push_block(steps: &mut Vec<Step>, block: &mut (Vec<usize>, String)) {
    let text = std::mem::take(&mut block.1);
    if text.lines().any(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        steps.push(Step::Block(block.0.clone(), text));
    }
}

/// The machines a line of only one word chooses.
fn target(words: &[&str], machines: usize) -> Option<Vec<usize>> {
    match words {
        ["both" | "all"] => Some((0..machines).collect()),
        [name] => machine_index(name, machines).ok().map(|index| vec![index]),
        _ => None,
    }
}

fn machine_index(name: &str, machines: usize) -> Result<usize> {
    let index = NAMES.iter().take(machines).position(|known| *known == name);
    index.ok_or_else(|| anyhow!("{name:?} is none of the {machines} machines"))
}

fn seconds(word: &str) -> Result<Duration> {
    let number: f64 = word.parse().with_context(|| format!("{word:?} is no number of seconds"))?;
    Duration::try_from_secs_f64(number).with_context(|| format!("{word:?} is no number of seconds"))
}

fn parse_step(words: &[&str], machines: usize) -> Result<Step> {
    let power = |power, name: &str| machine_index(name, machines).map(|index| Step::Power(power, index));
    Ok(match words {
        ["limit", number] => Step::Limit(seconds(number)?),
        ["wait", number, name, command @ ..] if !command.is_empty() => {
            Step::Wait(seconds(number)?, machine_index(name, machines)?, command.join(" "))
        }
        ["link", ..] if machines < 2 => bail!("one machine has no link"),
        ["link", "cut"] => Step::Link(LinkChange::Cut),
        ["link", "restore"] => Step::Link(LinkChange::Restore),
        ["link", "delay", number] => Step::Link(LinkChange::Delay(Duration::from_millis(number.parse()?))),
        ["link", "lose", number] => Step::Link(LinkChange::Lose(number.parse()?)),
        ["kill", name] => power(Power::Kill, name)?,
        ["start", name] => power(Power::Start, name)?,
        ["reboot", name] => power(Power::Reboot, name)?,
        ["pause", name] => power(Power::Pause, name)?,
        ["resume", name] => power(Power::Resume, name)?,
        ["sleep", number] => Step::Sleep(seconds(number)?),
        ["check"] => Step::Check,
        _ => bail!("not a step; there are: both, drbd1, drbd2, limit, wait, link, kill, start, reboot, pause, resume, sleep, check"),
    })
}

fn change_link(cluster: &Cluster, change: LinkChange) {
    match change {
        LinkChange::Cut => cluster.wire().cut(),
        LinkChange::Restore => cluster.wire().restore(),
        LinkChange::Delay(delay) => cluster.wire().delay(delay),
        LinkChange::Lose(loss_permille) => cluster.wire().lose(loss_permille),
    }
}

fn change_power(machine: &Machine, power: Power) -> Result<()> {
    match power {
        Power::Kill => machine.power_cut(),
        Power::Start => machine.power_on(),
        Power::Reboot => machine.reboot(),
        Power::Pause => machine.pause(),
        Power::Resume => machine.resume(),
    }
}

fn run_block<'a>(machines: impl Iterator<Item = &'a Machine>, limit: Duration, text: &str) -> Result<()> {
    thread::scope(|scope| {
        let run =
            |machine: &'a Machine| scope.spawn(move || machine.run_for(limit, &format!("exec 2>&1; set -e\n{text}")));
        let running: Vec<_> = machines.map(|machine| (machine, run(machine))).collect();
        let mut outcome = Ok(());
        for (machine, thread) in running {
            let output = thread.join().map_err(|_| anyhow!("a thread panicked"))?;
            let shown = output.as_ref().map(|output| output.text()).unwrap_or_default();
            println!("----- {}", machine.name());
            for line in shown.lines() {
                println!("{}| {line}", machine.name());
            }
            match output {
                Ok(output) if output.success() => (),
                Ok(output) => {
                    outcome = Err(anyhow!("{}: the block ended with exit code {}", machine.name(), output.code()))
                }
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_without_directives_runs_everywhere() {
        assert_eq!(parse("#!/bin/sh\ntrue\n", 2).unwrap(), [Step::Block(vec![0, 1], "#!/bin/sh\ntrue\n".into())]);
        assert_eq!(parse("true\n", 1).unwrap(), [Step::Block(vec![0], "true\n".into())]);
        assert_eq!(parse("# nothing\n\n", 1).unwrap(), []);
    }

    #[test]
    fn every_step_is_understood() {
        let text = "@drbd2   # note\necho\n@limit 2.5\n@wait 30 drbd1 grep -q 'a  b' /x\n@link delay 20\n@link cut\n@link restore\n\
                    @link lose 5\n@kill drbd1\n@start drbd1\n@reboot drbd2\n@pause drbd2\n@resume drbd2\n@sleep 0.5\n@check\n@both\nls\n";
        let second = Duration::from_secs(1);
        let expected = [
            Step::Block(vec![1], "echo\n".into()),
            Step::Limit(second * 5 / 2),
            Step::Wait(30 * second, 0, "grep -q 'a b' /x".into()),
            Step::Link(LinkChange::Delay(second / 50)),
            Step::Link(LinkChange::Cut),
            Step::Link(LinkChange::Restore),
            Step::Link(LinkChange::Lose(5)),
            Step::Power(Power::Kill, 0),
            Step::Power(Power::Start, 0),
            Step::Power(Power::Reboot, 1),
            Step::Power(Power::Pause, 1),
            Step::Power(Power::Resume, 1),
            Step::Sleep(second / 2),
            Step::Check,
            Step::Block(vec![0, 1], "ls\n".into()),
        ];
        assert_eq!(parse(text, 2).unwrap(), expected);
    }

    #[test]
    fn errors_name_the_line() {
        for (text, machines) in [
            ("true\n@drbd3\n", 2),
            ("true\n@drbd2\n", 1),
            ("true\n@link cut\n", 1),
            ("true\n@kill drbd7\n", 2),
            ("true\n@sleep -1\n", 2),
            ("true\n@wait x drbd1 true\n", 2),
        ] {
            let error = format!("{:#}", parse(text, machines).expect_err(text));
            assert!(error.starts_with("line 2: @"), "{error}");
        }
    }
}
