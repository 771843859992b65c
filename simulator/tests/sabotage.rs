//! Every way to break the engine is noticed, and soon.

use engine::resource::Sabotage;
use simulator::run::run_sabotaged;

/// Seeds within which a broken engine has to be found out.
const MOST_SEEDS: u64 = 600;

#[test]
fn every_sabotage_is_noticed() {
    // The broken runs end in panics that are part of the report.
    std::panic::set_hook(Box::new(|_| {}));
    let mut unnoticed = Vec::new();
    for how in Sabotage::ALL {
        let found = (1..=MOST_SEEDS).find_map(|seed| run_sabotaged(seed, how).failure.map(|failure| (seed, failure)));
        match found {
            Some((seeds, failure)) => {
                let failure: String = failure.lines().next().unwrap_or_default().chars().take(110).collect();
                println!("{how:?}: after {seeds} seeds: {failure}");
            }
            None => unnoticed.push(how),
        }
    }
    let _default = std::panic::take_hook();
    assert_eq!(unnoticed, [], "not noticed in {MOST_SEEDS} seeds");
}
