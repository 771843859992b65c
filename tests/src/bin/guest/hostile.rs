//! A peer that does not keep to the protocol.
use anyhow::{bail, Result};
pub(crate) fn run(_to: &str, case: &str) -> Result<()> {
    bail!("no case {case:?}")
}
