//! `crossdock keys`: keys of those who sign releases.

/// `crossdock keys`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
///
/// # Errors
/// Always: this build has no keys command.
pub async fn run(_: Args) -> anyhow::Result<()> {
    anyhow::bail!("`crossdock keys` is not built into this program; use a newer one")
}
