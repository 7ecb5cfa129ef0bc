//! release placeholder
use super::Context;
/// placeholder
#[derive(Debug, clap::Args)]
pub struct ReleaseArgs {}
/// placeholder
pub async fn run(_args: ReleaseArgs, _context: &Context) -> anyhow::Result<()> {
    anyhow::bail!("not built in")
}
