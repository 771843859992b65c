//! One cut of each kind between two of ours. `make torture` does more of them, and with the C module.

use machine_tests::pair::Pairing;
use machine_tests::torture::{self, Plan};
use machine_tests::Result;

#[test]
fn every_kind_of_cut() -> Result<()> {
    let plan = Plan { pairing: Pairing::OURS, cuts: 6, seed: 1 };
    let report = torture::run(plan, &mut |report, what| eprintln!("{what}; {report}"))?;
    eprintln!("{report}");
    assert!(report.checks > 0 && report.writes > 100, "nothing was tested: {report}");
    Ok(())
}
