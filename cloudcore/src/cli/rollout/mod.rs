//! `crossdock rollout`: take a release to nodes, see how far it is and what it waits for, and steer it.
//!
//! | module | what it does |
//! |---|---|
//! | `args` | what a rollout is made of, from the command line |
//! | `show` | a rollout and a plan as text |
//! | `follow` | `watch` and `--wait`: a bar for people, lines for pipelines, exit codes |
//! | here | the commands |

mod args;
mod follow;
mod show;

use std::collections::BTreeMap;

use proto::{
    name::{Name, ObjectName, ReleaseName, Version},
    object::{Release, Rollout, RolloutPhase, RolloutSpec, rollout::Control},
    selector::Selector,
};
use rand::Rng as _;

pub use self::{args::How, follow::FollowArgs};
use super::{
    Context,
    client::Client,
    exit::{CliError, Exit},
    output::{self, Format},
};
use crate::planner::forecast::Forecast;

/// `crossdock rollout`.
#[derive(Debug, clap::Subcommand)]
pub enum RolloutCommand {
    /// Take a release to the nodes that a selector names
    Start(StartArgs),
    /// Show what `start` would do: which node in which wave, what would block whom, how many bytes
    Plan(PlanArgs),
    /// Show how far a rollout is: waves with their gates, and what each node waits for
    Status(StatusArgs),
    /// Follow a rollout to its end
    Watch(WatchArgs),
    /// Begin nothing more; what has begun finishes
    Pause(NamedArgs),
    /// Go on: after a pause, after a failed wave (its failures are forgiven), or after one that proved nothing
    Resume(NamedArgs),
    /// Let a wave begin that asks for approval
    Approve(ApproveArgs),
    /// End it: nodes that have not begun stay with what they have
    Abort(NamedArgs),
    /// Take it back: nodes that it touched go to another version
    Undo(UndoArgs),
    /// Try once more on the nodes where it failed
    Retry(NamedArgs),
    /// List the rollouts of an app, newest first
    History(HistoryArgs),
}

/// `crossdock rollout start`.
#[derive(Debug, clap::Args)]
pub struct StartArgs {
    /// APP@VERSION
    release: ReleaseName,
    /// Selector of nodes: all, name=box-1, site=hz-01, LABEL=VALUE, or LABEL for all that have it
    #[arg(long)]
    to: Selector,
    #[command(flatten)]
    how: How,
    /// Name of the rollout. Default: made up from the release.
    #[arg(long)]
    name: Option<ObjectName>,
    #[command(flatten)]
    follow: FollowArgs,
    /// Output format of the object that was created.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// `crossdock rollout plan`.
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    /// APP@VERSION
    release: ReleaseName,
    /// Selector of nodes, as for `start`
    #[arg(long)]
    to: Selector,
    #[command(flatten)]
    how: How,
    /// json or yaml instead of text.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// `crossdock rollout status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Name of the rollout.
    name: String,
    /// Every node, and not just those that are not healthy yet.
    #[arg(long)]
    all: bool,
    /// json or yaml instead of text.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// `crossdock rollout watch`.
#[derive(Debug, clap::Args)]
pub struct WatchArgs {
    /// Name of the rollout.
    name: String,
    /// Longest wait.
    #[arg(long, default_value = "12h")]
    timeout: proto::units::Span,
}

/// A rollout by name.
#[derive(Debug, clap::Args)]
pub struct NamedArgs {
    /// Name of the rollout.
    name: String,
}

/// `crossdock rollout approve`.
#[derive(Debug, clap::Args)]
pub struct ApproveArgs {
    /// Name of the rollout.
    name: String,
    /// Name of the wave. Default: the one that waits.
    #[arg(long)]
    wave: Option<String>,
}

/// `crossdock rollout undo`.
#[derive(Debug, clap::Args)]
pub struct UndoArgs {
    /// Name of the rollout.
    name: String,
    /// Version to go to. Default: the one that most of its nodes had before.
    #[arg(long)]
    to: Option<Version>,
    #[command(flatten)]
    follow: FollowArgs,
}

/// `crossdock rollout history`.
#[derive(Debug, clap::Args)]
pub struct HistoryArgs {
    /// The app. Default: all.
    app: Option<Name>,
    /// json, yaml, wide or name instead of a table.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Runs the command.
///
/// # Errors
/// When the hub refuses, or with `--wait` when the rollout does not succeed.
pub async fn run(command: RolloutCommand, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        RolloutCommand::Start(args) => start(args, &client).await,
        RolloutCommand::Plan(args) => plan(args, &client).await,
        RolloutCommand::Status(args) => status(args, &client).await,
        RolloutCommand::Watch(args) => {
            client.get::<RolloutSpec>(&args.name).await?;
            follow::to_its_end(&client, &args.name, args.timeout, false).await
        }
        RolloutCommand::Pause(args) => {
            steer(&client, &args.name, "paused", |_, control| {
                control.paused = true;
                Ok(())
            })
            .await
        }
        RolloutCommand::Resume(args) => steer(&client, &args.name, "resumed", resume).await,
        RolloutCommand::Abort(args) => {
            steer(&client, &args.name, "aborted", |_, control| {
                control.aborted = true;
                Ok(())
            })
            .await
        }
        RolloutCommand::Retry(args) => {
            steer(&client, &args.name, "told to try failed nodes once more", |rollout, control| {
                if rollout.spec.version.is_none() {
                    return Err(refused(format!(
                        "rollout {} is a {}, which nodes carry out once: start another one",
                        rollout.name(),
                        rollout.spec.what()
                    )));
                }
                if rollout.status.counts().failed == 0 {
                    return Err(refused(format!("no node of rollout {} has failed", rollout.name())));
                }
                control.retries += 1;
                Ok(())
            })
            .await
        }
        RolloutCommand::Approve(args) => {
            let wave = args.wave;
            steer(&client, &args.name, "approved", |rollout, control| approve(rollout, control, wave.clone())).await
        }
        RolloutCommand::Undo(args) => undo(args, &client).await,
        RolloutCommand::History(args) => history(&args, &client).await,
    }
}

fn refused(text: impl Into<String>) -> anyhow::Error {
    CliError::new(Exit::Refused, text).into()
}

/// A name for a rollout: what it does, and something that no other has.
pub(super) fn made_up_name(what: &str) -> anyhow::Result<ObjectName> {
    let mut suffix = [0; 3];
    proto::env::Seed::from_os()?.stream("rollout name").fill_bytes(&mut suffix);
    Ok(format!("{what}.{}", data_encoding::HEXLOWER.encode(&suffix)).parse()?)
}

/// Creates a rollout, and follows it if that is wanted.
pub(super) async fn create(
    client: &Client,
    rollout: &Rollout,
    output: Option<Format>,
    follow: &FollowArgs,
) -> anyhow::Result<()> {
    let created: Rollout = client.post("rollouts", rollout).await?;
    let aside = matches!(output, Some(Format::Json | Format::Yaml));
    match output {
        Some(format) if aside => output::structured(format, &serde_json::to_value(&created)?)?,
        _ => println!("rollouts/{} created", created.name()),
    }
    if !follow.wait {
        return Ok(());
    }
    follow::to_its_end(client, created.name(), follow.timeout, aside).await
}

async fn start(args: StartArgs, client: &Client) -> anyhow::Result<()> {
    let name = match args.name {
        Some(name) => name,
        None => made_up_name(args.release.object_name().as_str())?,
    };
    let spec = args.how.apply(RolloutSpec::new(args.release, args.to))?;
    create(client, &Rollout::new(name, spec), args.output, &args.follow).await
}

async fn plan(args: PlanArgs, client: &Client) -> anyhow::Result<()> {
    let spec = args.how.apply(RolloutSpec::new(args.release, args.to))?;
    let forecast: Forecast = client.post("rolloutplans", &Rollout::new("plan".parse::<ObjectName>()?, spec)).await?;
    match args.output {
        Some(format @ (Format::Json | Format::Yaml)) => output::structured(format, &serde_json::to_value(&forecast)?),
        _ => {
            output::print(&show::forecast(&forecast));
            Ok(())
        }
    }
}

async fn status(args: StatusArgs, client: &Client) -> anyhow::Result<()> {
    let rollout: Rollout = client.get(&args.name).await?;
    if let Some(format @ (Format::Json | Format::Yaml)) = args.output {
        return output::structured(format, &serde_json::to_value(&rollout)?);
    }
    output::print(&show::rollout(&rollout, args.all));
    Ok(())
}

/// Reads a rollout, changes what people wish of it, and writes it back; anew when somebody was faster.
async fn steer(
    client: &Client,
    name: &str,
    done: &str,
    change: impl Fn(&Rollout, &mut Control) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    const ATTEMPTS: u32 = 10;
    for attempt in 1.. {
        let rollout: Rollout = client.get(name).await?;
        let mut wanted = rollout.clone();
        change(&rollout, &mut wanted.spec.control)?;
        match client.put("rollouts", name, &serde_json::to_value(&wanted)?).await {
            Ok(_) => break,
            // Its status changes all the time, and every change is a new version.
            Err(error) if attempt < ATTEMPTS && is_stale(&error) => {}
            Err(error) => return Err(error),
        }
    }
    println!("rollouts/{name} {done}");
    Ok(())
}

pub(super) fn is_stale(error: &anyhow::Error) -> bool {
    error.downcast_ref::<CliError>().is_some_and(|error| error.is_stale)
}

fn resume(rollout: &Rollout, control: &mut Control) -> anyhow::Result<()> {
    if control.paused {
        control.paused = false;
        return Ok(());
    }
    match rollout.status.reason.as_str() {
        "GateFailed" | "Inconclusive" => {
            control.resumed = rollout.status.resumed + 1;
            Ok(())
        }
        "AwaitingApproval" => {
            let name = rollout.name();
            Err(refused(format!("rollout {name} awaits approval: crossdock rollout approve {name}")))
        }
        _ => Err(refused(format!("rollout {} is not paused, it is {}", rollout.name(), rollout.status.phase))),
    }
}

fn approve(rollout: &Rollout, control: &mut Control, wave: Option<String>) -> anyhow::Result<()> {
    use proto::object::rollout::WavePhase;
    let waiting = rollout.status.waves.iter().find(|wave| wave.phase == WavePhase::AwaitingApproval);
    let Some(wave) = wave.or_else(|| waiting.map(|wave| wave.name.clone())) else {
        let text = format!("no wave of rollout {} awaits approval; --wave NAME approves one ahead", rollout.name());
        return Err(refused(text));
    };
    control.approved.insert(wave);
    Ok(())
}

async fn undo(args: UndoArgs, client: &Client) -> anyhow::Result<()> {
    let rollout: Rollout = client.get(&args.name).await?;
    let Some(release) = rollout.release() else { return Err(refused("a restart cannot be taken back")) };
    let to = match args.to {
        Some(version) => version,
        None => version_before(&rollout)?,
    };
    let back = ReleaseName { app: release.app.clone(), version: to };
    let counter = async |name: &ReleaseName| -> anyhow::Result<u64> {
        let found: anyhow::Result<Release> = client.get(name.object_name().as_str()).await;
        found.map(|release| release.spec.release_counter)
    };
    let (high, low) = (counter(&back).await?, counter(&release).await?);
    if high <= low {
        return Err(refused(format!(
            "nodes that proved {release} (release counter {low}) refuse {back} (counter {high}), as they refuse every \
             lower one. Publish it again under a higher counter, and undo then:\n  crossdock release reissue {back}\n  \
             crossdock release sign && crossdock release publish\n  crossdock rollout undo {} --to {}",
            rollout.name(),
            back.version
        )));
    }
    let mut spec = RolloutSpec::new(back, rollout.spec.selector.clone());
    spec.undoes = Some(rollout.name().to_owned());
    spec.budget = rollout.spec.budget.clone();
    spec.gate.max_failures = u32::MAX;
    let name = made_up_name(&format!("{}.undo", rollout.name()))?;
    create(client, &Rollout::new(name, spec), None, &args.follow).await
}

/// The version that most nodes of a rollout had before it.
fn version_before(rollout: &Rollout) -> anyhow::Result<Version> {
    let mut count = BTreeMap::new();
    let new = rollout.spec.version.as_ref();
    for before in rollout.status.nodes.values().filter_map(|node| node.before.as_ref()) {
        if Some(&before.version) != new {
            *count.entry(&before.version).or_insert(0_u32) += 1;
        }
    }
    let most = count.into_iter().max_by_key(|(_, count)| *count).map(|(version, _)| version.clone());
    most.ok_or_else(|| {
        refused(format!("the nodes of rollout {} had no other version before; name one: --to VERSION", rollout.name()))
    })
}

async fn history(args: &HistoryArgs, client: &Client) -> anyhow::Result<()> {
    let listed = client.list("rollouts", None).await?;
    let mut rollouts = vec![];
    for value in listed.items {
        let rollout: Rollout = serde_json::from_value(value.clone())?;
        if args.app.as_ref().is_none_or(|app| *app == rollout.spec.app) {
            rollouts.push((rollout.metadata.creation_timestamp, value));
        }
    }
    rollouts.sort_by_key(|(created, _)| std::cmp::Reverse(*created));
    let values: Vec<_> = rollouts.into_iter().map(|(_, value)| value).collect();
    output::list(args.output, super::kinds::KindInfo::find("rollouts")?, &values, super::get::now())
}

/// How a rollout ended, as an exit code; `None`: it goes on.
fn exit_of(phase: RolloutPhase) -> Option<Result<(), Exit>> {
    match phase {
        RolloutPhase::Pending | RolloutPhase::Progressing | RolloutPhase::RollingBack => None,
        RolloutPhase::Succeeded => Some(Ok(())),
        RolloutPhase::Failed | RolloutPhase::Aborted | RolloutPhase::Superseded => Some(Err(Exit::RolloutFailed)),
        RolloutPhase::RolledBack => Some(Err(Exit::RolledBack)),
        RolloutPhase::Paused => Some(Err(Exit::Paused)),
    }
}
