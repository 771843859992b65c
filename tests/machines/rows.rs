//! A scenario made of steps that share one configured pair.

use anyhow::{bail, Context};
use lab::Setup;
use machine_tests::config::Config;
use machine_tests::pair::{Pair, Pairing};
use machine_tests::{is_short, Result};
use std::time::Instant;

/// A step: its name and what it does. It finds both disks UpToDate and connected, the first machine primary, and leaves them so.
pub(crate) type Step = (&'static str, fn(&Pair) -> Result<()>);

/// Runs the steps in order on a mirrored pair; `LAB_ROWS=diskless-primary,verify` runs only those, `LAB_SHORT=1` only the ones
/// in `short`, if that is not empty. After a step that failed the pair is made anew, so that one run tells of all that fail.
pub(crate) fn run(pairing: Pairing, config: &Config, steps: &[Step], short: &[&str]) -> Result<()> {
    let wanted = std::env::var("LAB_ROWS").unwrap_or_default();
    let short = if is_short() { short } else { &[] };
    let is_wanted = |name: &str| match wanted.as_str() {
        "" => short.is_empty() || short.contains(&name),
        names => names.split(',').any(|word| word == name),
    };
    let pair = Pair::mirrored(pairing, config)?;
    let mut failed = Vec::new();
    for (name, step) in steps.iter().filter(|(name, _)| is_wanted(name)) {
        let began = Instant::now();
        let outcome = step(&pair).and_then(|()| pair.cluster().check_consoles());
        println!("row {name}: {:.1} s{}", began.elapsed().as_secs_f32(), if outcome.is_ok() { "" } else { ", failed" });
        if let Err(error) = outcome {
            println!("{error:#}");
            failed.push(*name);
            make_anew(&pair, pairing, config).with_context(|| format!("making the pair anew after {failed:?}"))?;
        }
    }
    if !failed.is_empty() {
        bail!("these rows failed: {}", failed.join(", "));
    }
    pair.compare_disks()?;
    pair.one_by_one("drbdadm down all")?;
    pair.finish()
}

fn make_anew(pair: &Pair, pairing: Pairing, config: &Config) -> Result<()> {
    let Pairing { modules, tools } = pairing.replaced();
    // What the kernels have complained about has been reported.
    let _reported = pair.cluster().check_consoles();
    pair.cluster().clean()?;
    pair.cluster().install(&[0, 1].map(|index| Setup::new(modules[index], tools[index])))?;
    pair.configure(config)?;
    pair.mirror()
}
