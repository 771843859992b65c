//! Random runs of many seeds.

use simulator::run;

/// Seeds of the ordinary test run; `SEEDS` asks for another number, `FIRST_SEED` for others.
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn random_runs_keep_every_promise() {
    let first = number("FIRST_SEED", 1);
    for seed in first..first + number("SEEDS", 2000) {
        let report = run(seed);
        if let Some(failure) = report.failure {
            let lines = number("TRACE_LINES", 600) as usize;
            for line in report.trace.iter().skip(report.trace.len().saturating_sub(lines)) {
                eprintln!("{line}");
            }
            panic!(
                "seed {seed}: {failure}\nreplay: FIRST_SEED={seed} SEEDS=1 build/cargo test -p simulator --test seeds"
            );
        }
    }
}
