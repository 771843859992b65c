//! `torture`: as many power cuts and link cuts as wanted, see [`machine_tests::torture`].
//!
//! `torture [--cuts N] [--seed N] [--pairing ours|ours-c|c-ours|c]`

use anyhow::{bail, Result};
use indicatif::{ProgressBar, ProgressStyle};
use lab::{Module, Tools};
use machine_tests::pair::Pairing;
use machine_tests::torture::{run, Plan};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() -> ExitCode {
    match plan().and_then(torture) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("torture: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn plan() -> Result<Plan> {
    use lexopt::prelude::*;
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() % 1_000_000;
    let mut plan = Plan { pairing: Pairing::OURS, cuts: 100, seed };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("cuts") => plan.cuts = parser.value()?.parse()?,
            Long("seed") => plan.seed = parser.value()?.parse()?,
            Long("pairing") => plan.pairing = pairing(&parser.value()?.string()?)?,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(plan)
}

/// The module of the machine that is primary first, then the other's.
fn pairing(name: &str) -> Result<Pairing> {
    Ok(match name {
        "ours" => Pairing::OURS,
        "ours-c" => Pairing::OURS_PRIMARY,
        "c-ours" => Pairing::C_PRIMARY,
        "c" => Pairing::new([Module::Stock; 2], [Tools::Utils; 2]),
        other => bail!("no pairing {other:?}: ours, ours-c, c-ours or c"),
    })
}

fn torture(plan: Plan) -> Result<()> {
    println!("{} cuts, seed {}, {:?}", plan.cuts, plan.seed, plan.pairing.modules);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} cuts, {elapsed} gone, {eta} left; {msg}")?;
    let bar = ProgressBar::new(plan.cuts.into()).with_style(style);
    let terminal = std::io::stderr().is_terminal();
    bar.enable_steady_tick(std::time::Duration::from_secs(1));
    let outcome = run(plan, &mut |report, what| {
        bar.set_position(report.cuts.into());
        bar.set_message(format!("{what}; {report}"));
        if !terminal {
            println!("{what}; {report}");
        }
    });
    bar.finish_and_clear();
    println!("{}", outcome?);
    Ok(())
}
