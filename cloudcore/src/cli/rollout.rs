//! `crossdock rollout`: take a release to nodes, and see how far it is.

use std::{io::IsTerminal as _, time::Duration};

use futures_util::{StreamExt as _, pin_mut};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::{
    name::ReleaseName,
    object::{Rollout, RolloutCounts, RolloutPhase, RolloutSpec},
    selector::Selector,
    units::Span,
};
use rand::Rng as _;

use super::{
    Context,
    client::Client,
    exit::{CliError, Exit, is_final},
    output::{self, Format},
};

/// `crossdock rollout`.
#[derive(Debug, clap::Subcommand)]
pub enum RolloutCommand {
    /// Take a release to the nodes that a selector names
    Start(StartArgs),
    /// Show how far a rollout is, node by node
    Status(StatusArgs),
}

/// `crossdock rollout start`.
#[derive(Debug, clap::Args)]
pub struct StartArgs {
    /// APP@VERSION
    release: ReleaseName,
    /// Selector of nodes: all, name=box-1, site=hz-01, LABEL=VALUE, or LABEL for all that have it
    #[arg(long)]
    to: Selector,
    /// Wait for the end: exit code 0 when all are healthy, 5 when it failed, 6 when it took too long.
    #[arg(long)]
    wait: bool,
    /// Longest wait.
    #[arg(long, default_value = "30m")]
    timeout: Span,
    /// Output format of the object that was created.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// `crossdock rollout status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Name of the rollout.
    name: String,
    /// json or yaml instead of text.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// Runs the command.
///
/// # Errors
/// When the hub refuses, or with `--wait` when the rollout does not succeed.
pub async fn run(command: RolloutCommand, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        RolloutCommand::Start(args) => start(args, &client).await,
        RolloutCommand::Status(args) => status(args, &client).await,
    }
}

async fn start(args: StartArgs, client: &Client) -> anyhow::Result<()> {
    let suffix: [u8; 3] = {
        let mut bytes = [0; 3];
        proto::env::Seed::from_os()?.stream("rollout name").fill_bytes(&mut bytes);
        bytes
    };
    let name = format!("{}.{}", args.release.object_name(), data_encoding::HEXLOWER.encode(&suffix));
    let spec = RolloutSpec::new(args.release, args.to);
    let rollout = Rollout::new(name.parse::<proto::name::ObjectName>()?, spec);
    let created: Rollout = client.post("rollouts", &rollout).await?;
    match args.output {
        Some(format @ (Format::Json | Format::Yaml)) => output::structured(format, &serde_json::to_value(&created)?)?,
        _ => println!("rollouts/{} created", created.name()),
    }
    if args.wait {
        let waiting = wait(client, created.name());
        return match tokio::time::timeout(args.timeout.get(), waiting).await {
            Ok(result) => result,
            Err(_) => {
                let message = format!(
                    "rollout {name} did not end within {}; it goes on: crossdock rollout status {name}",
                    args.timeout
                );
                Err(CliError::new(Exit::TimedOut, message).into())
            }
        };
    }
    Ok(())
}

/// Follows a rollout to its end: a bar where a person looks, a line a change in a pipeline.
async fn wait(client: &Client, name: &str) -> anyhow::Result<()> {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} healthy  {msg}  {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let person = std::io::stderr().is_terminal();
    let mut last = String::new();
    loop {
        // List, then watch from there: no change is missed, and a hub that restarts is listed again.
        let seen = async {
            let listed = client.list("rollouts", None).await?;
            let of_name = |o: &serde_json::Value| o.pointer("/metadata/name").and_then(|n| n.as_str()) == Some(name);
            let now = listed.items.into_iter().find(of_name);
            let now = now.ok_or_else(|| CliError::new(Exit::NotFound, format!("rollout {name} was deleted")))?;
            if let Some(end) = show(&serde_json::from_value(now)?, &bar, person, &mut last) {
                return Ok(Some(end));
            }
            let changes = client.watch("rollouts", &listed.resource_version, None).await?;
            pin_mut!(changes);
            while let Some(Ok(change)) = changes.next().await {
                let Some(object) = change.get("object").filter(|o| of_name(o)) else { continue };
                if change.get("type").and_then(|t| t.as_str()) == Some("DELETED") {
                    return Err(CliError::new(Exit::NotFound, format!("rollout {name} was deleted")).into());
                }
                if let Some(end) = show(&serde_json::from_value(object.clone())?, &bar, person, &mut last) {
                    return Ok(Some(end));
                }
            }
            Ok::<_, anyhow::Error>(None)
        };
        match seen.await {
            Ok(Some(end)) => {
                bar.finish_and_clear();
                return end;
            }
            Err(e) if is_final(&e) => return Err(e),
            // The hub is away for a moment: the rollout goes on without us.
            _ => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// Shows a rollout; `Some` when it has ended.
fn show(rollout: &Rollout, bar: &ProgressBar, person: bool, last: &mut String) -> Option<anyhow::Result<()>> {
    let RolloutCounts { healthy, failed, all, .. } = rollout.status.counts();
    let status = &rollout.status;
    if person {
        bar.set_length(all as u64);
        bar.set_position(healthy as u64);
        bar.set_message(format!("{failed} failed  {}", status.phase));
    } else {
        let line = format!("{} {healthy}/{all} healthy, {failed} failed", status.phase);
        if line != *last {
            println!("{line}");
            *last = line;
        }
    }
    match status.phase {
        RolloutPhase::Succeeded => Some(Ok(())),
        RolloutPhase::Failed | RolloutPhase::Superseded => {
            let message =
                format!("rollout {} {}: {}\n{}", rollout.name(), status.phase, status.message, trouble(rollout));
            Some(Err(CliError::new(Exit::RolloutFailed, message.trim_end()).into()))
        }
        _ => None,
    }
}

/// The nodes that are not healthy, with their reasons.
fn trouble(rollout: &Rollout) -> String {
    let rows: Vec<Vec<String>> = rollout
        .status
        .nodes
        .iter()
        .filter(|(_, n)| n.phase != proto::object::UpdatePhase::Succeeded)
        .map(|(name, n)| vec![format!("  {name}"), n.phase.to_string(), n.reason.clone(), n.message.clone()])
        .collect();
    output::align(&rows)
}

async fn status(args: StatusArgs, client: &Client) -> anyhow::Result<()> {
    let rollout: Rollout = client.get(&args.name).await?;
    if let Some(format @ (Format::Json | Format::Yaml)) = args.output {
        return output::structured(format, &serde_json::to_value(&rollout)?);
    }
    println!("{} of {} to {}: {}", rollout.name(), rollout.spec.what(), rollout.spec.selector, rollout.status.phase);
    if !rollout.status.message.is_empty() {
        println!("{}", rollout.status.message);
    }
    output::print(&trouble(&rollout));
    Ok(())
}
