//! keys placeholder
use super::Context;
/// placeholder
#[derive(Debug, clap::Args)]
pub struct KeysArgs {}
/// placeholder
pub async fn run(_args: KeysArgs, _context: &Context) -> anyhow::Result<()> {
    anyhow::bail!("not built in")
}
