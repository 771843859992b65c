// SPDX-License-Identifier: GPL-2.0
//! resync-after: a volume syncs only when no volume that it follows is syncing.
//!
//! A volume names the minor that it follows, that one may follow another, in any resource of this node. The engines do
//! not know each other; here all volumes are looked at, one after the other, so that no resource's lock is held
//! while another's is taken. That is enough: whatever changes meanwhile orders another [`review`].
// spec: state-machine 17.5

use super::resource::Locked;
use super::{Driver, Minor};
use crate::linux::clock;
use engine::netlink::{RetCode, MINOR_MAX};
use engine::state::{Conn, Disk, Role, State};

/// A volume of a chain.
struct Link {
    number: u32,
    /// Its state, while it has a disk.
    state: Option<State>,
}

/// May the volume with number `minor` follow the one with number `after`? The caller holds `Driver::dependencies` until
/// the option is in force, so that two requests cannot make a loop together.
///
/// # Errors
/// 132 when there is no such minor number, 133 when the volume would follow itself.
pub(crate) fn check(driver: &Driver, minor: u32, after: i32) -> Result<(), RetCode> {
    if after != -1 && !u32::try_from(after).is_ok_and(|number| number <= MINOR_MAX) {
        return Err(RetCode::ResyncAfter);
    }
    if chain(driver, after).any(|link| link.number == minor) {
        return Err(RetCode::ResyncAfterCycle);
    }
    Ok(())
}

/// Tells all volumes whether they have to wait for another.
pub(crate) fn review(driver: &Driver) {
    // A volume that pauses or goes on changes those that follow it: every round settles one more link of a chain.
    let rounds = driver.minors().count();
    for _ in 0..rounds {
        if !review_once(driver) {
            return;
        }
    }
}

/// True when something changed.
fn review_once(driver: &Driver) -> bool {
    let mut changed = false;
    for minor in driver.minors() {
        let Some((state, after)) = look(&minor) else { continue };
        let paused = chain(driver, after).any(|link| link.state.is_some_and(|state| is_busy(&state)));
        if paused != state.aftr_isp && is_configured(&state) {
            let now_ms = clock::monotonic_ms();
            let follow = |locked: &mut Locked| locked.engine.set_paused_by_dependency(minor.id, paused, now_ms);
            minor.resource.engine_without_disk(follow);
            changed = true;
        }
    }
    changed
}

/// The volumes that come before one that follows `after`. Ends at a volume that follows none, has no disk, or is not
/// there.
fn chain(driver: &Driver, after: i32) -> impl Iterator<Item = Link> + '_ {
    let most = driver.minors().count().saturating_add(1);
    let mut next = u32::try_from(after).ok();
    let links = core::iter::from_fn(move || {
        let number = next.take()?;
        let found = driver.minor(number).and_then(|minor| look(&minor)).filter(|(state, _)| has_disk(state));
        next = found.and_then(|(_, after)| u32::try_from(after).ok());
        Some(Link { number, state: found.map(|(state, _)| state) })
    });
    links.take(most)
}

/// State and resync-after of a volume; -1 without a disk.
fn look(minor: &Minor) -> Option<(State, i32)> {
    minor.resource.look(|locked| {
        let state = locked.engine.volume_state(minor.id)?;
        let after = locked.engine.disk_conf(minor.id).map_or(-1, |conf| conf.resync_after);
        Some((state, after))
    })
}

fn has_disk(state: &State) -> bool {
    state.disk > Disk::Diskless
}

fn is_configured(state: &State) -> bool {
    state.conn > Conn::StandAlone || has_disk(state) || state.role == Role::Primary
}

/// Volumes that follow this one have to wait.
fn is_busy(state: &State) -> bool {
    (Conn::SyncSource..=Conn::PausedSyncT).contains(&state.conn) || state.paused()
}
