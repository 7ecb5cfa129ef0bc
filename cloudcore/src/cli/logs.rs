//! `crossdock logs`: what an app on a node writes.

use std::io::Write as _;

use futures_util::StreamExt as _;
use proto::name::Name;

use super::Context;

/// `crossdock logs`.
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// NODE/APP
    #[arg(value_parser = workload)]
    workload: (Name, Name),
    /// Go on with new lines
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines from the end
    #[arg(long, value_name = "LINES")]
    tail: Option<u32>,
}

fn workload(text: &str) -> Result<(Name, Name), String> {
    let (node, app) = text.split_once('/').ok_or("write NODE/APP, such as box-1/scan-uploader")?;
    let name = |text: &str| text.parse::<Name>().map_err(|e| e.to_string());
    Ok((name(node)?, name(app)?))
}

/// Copies the output of an app to standard output.
///
/// # Errors
/// When the node is away, has no such app, or the hub cannot be reached.
pub async fn run(args: LogsArgs, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    let (node, app) = args.workload;
    let mut output = client.logs(node.as_str(), app.as_str(), args.tail, args.follow).await?;
    while let Some(bytes) = output.next().await {
        let mut out = std::io::stdout().lock();
        out.write_all(&bytes?)?;
        out.flush()?;
    }
    Ok(())
}
