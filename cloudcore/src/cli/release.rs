//! `crossdock release`: build, sign, publish.

use super::Context;

/// `crossdock release`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
///
/// # Errors
/// Always: this build has no release command.
pub async fn run(_: Args, _: &Context) -> anyhow::Result<()> {
    anyhow::bail!("`crossdock release` is not built into this program; use a newer one")
}
