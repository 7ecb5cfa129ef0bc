//! `crossdock logs NODE/APP`.

use futures_util::{StreamExt as _, pin_mut};

use super::{
    Context,
    exit::{CliError, Exit},
    output,
};

/// `crossdock logs`.
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// NODE/APP; of a replica but the first NODE/APP--r1, NODE/APP--r2 and so on
    workload: String,
    /// Go on with new lines.
    #[arg(short, long)]
    follow: bool,
    /// Lines from the end.
    #[arg(long)]
    tail: Option<u32>,
}

/// Prints the output of a workload.
///
/// # Errors
/// When the node is not connected or has no such app.
pub async fn run(args: LogsArgs, context: &Context) -> anyhow::Result<()> {
    let Some((node, app)) = args.workload.split_once('/') else {
        return Err(CliError::new(Exit::Usage, format!("{:?}: write NODE/APP", args.workload)).into());
    };
    let stream = context.client()?.logs(node, app, args.tail, args.follow).await?;
    pin_mut!(stream);
    while let Some(bytes) = stream.next().await {
        output::print_bytes(&bytes?);
    }
    Ok(())
}
