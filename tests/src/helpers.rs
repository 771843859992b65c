//! The program that a module runs for events, here one that writes down how it was called and exits as it was told to.

use anyhow::{Context, Result};
use lab::Machine;

/// Where it is in a machine.
pub const PATH: &str = "/usr/local/bin/helper";

const CALLS: &str = "/run/helper.calls";

/// A call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The first argument.
    pub event: String,
    /// The other arguments: `minor-0`, or the resource's name.
    pub object: String,
    /// Its environment, in its order.
    pub environment: Vec<String>,
}

/// Puts it into a machine; no event has a result yet.
pub fn install(machine: &Machine) -> Result<()> {
    // `/run/helper.EVENT` says for how many seconds it runs and with what it exits, `/run/helper.EVENT.sh` what it does before that.
    let program = format!(
        "#!/bin/sh\n\
         read -r seconds code 2>/dev/null </run/helper.$1 || {{ seconds=0; code=0; }}\n\
         environment=$(tr '\\0' '|' </proc/$$/environ)\n\
         event=$1; shift\n\
         echo \"$event;$*;$environment\" >>{CALLS}\n\
         [ ! -e \"/run/helper.$event.sh\" ] || . \"/run/helper.$event.sh\"\n\
         [ \"$seconds\" = 0 ] || sleep \"$seconds\"\n\
         exit \"$code\"\n"
    );
    machine.put(PATH, program.as_bytes())?;
    machine.run_ok(&format!("chmod 755 {PATH}; rm -f /run/helper.*; touch {CALLS}")).map(|_| ())
}

/// From now on, it runs so long for this event and exits with this code.
pub fn answer(machine: &Machine, event: &str, seconds: u32, code: u8) -> Result<()> {
    machine.put(&format!("/run/helper.{event}"), format!("{seconds} {code}\n").as_bytes())
}

/// From now on, it runs these commands for this event, before it ends.
pub fn commands(machine: &Machine, event: &str, commands: &str) -> Result<()> {
    machine.put(&format!("/run/helper.{event}.sh"), format!("{commands}\n").as_bytes())
}

/// It does nothing for any event any more, and answers 0.
pub fn nothing(machine: &Machine) -> Result<()> {
    machine.run_ok("rm -f /run/helper.*-* /run/helper.*.sh").map(|_| ())
}

/// All calls since [`install`] or [`forget`].
pub fn calls(machine: &Machine) -> Result<Vec<Call>> {
    let text = machine.run_ok(&format!("cat {CALLS}"))?;
    text.lines()
        .map(|line| {
            let mut parts = line.splitn(3, ';');
            let mut next = || parts.next().map(str::to_owned).with_context(|| format!("the helper wrote {line:?}"));
            let (event, object, environment) = (next()?, next()?, next()?);
            let environment = environment.split('|').filter(|word| !word.is_empty()).map(str::to_owned).collect();
            Ok(Call { event, object, environment })
        })
        .collect()
}

/// Forgets the calls so far.
pub fn forget(machine: &Machine) -> Result<()> {
    machine.run_ok(&format!(": >{CALLS}")).map(|_| ())
}
