//! `crossdock rollout`: takes a release to nodes, and waits until they run it.

use std::{collections::BTreeMap, io::IsTerminal as _, time::Duration};

use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use proto::{
    env::Env,
    name::{ObjectName, ReleaseName},
    object::{Object, Rollout, RolloutPhase, RolloutSpec, UpdatePhase},
    selector::Selector,
    units::Span,
};

use super::{
    Context,
    client::{Client, ClientError},
    describe,
    exit::{Exit, Failure},
    get, kinds, output,
};

/// How long a wait pauses before it asks again after an interruption.
const RETRY: Duration = Duration::from_millis(500);

/// `crossdock rollout`.
#[derive(Debug, clap::Args)]
pub struct RolloutArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Take a release to all nodes that a selector names
    Start(StartArgs),
    /// Show where a rollout stands
    Status(StatusArgs),
}

#[derive(Debug, clap::Args)]
struct StartArgs {
    /// APP@VERSION
    release: ReleaseName,
    /// Which nodes: all, site=hz-01, name in (a,b), gpu, or labels; joined by commas
    #[arg(long, value_name = "SELECTOR")]
    to: Selector,
    /// Name of the rollout; made from the release by default
    #[arg(long)]
    name: Option<ObjectName>,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, clap::Args)]
struct StatusArgs {
    /// Name of the rollout
    name: ObjectName,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, clap::Args)]
struct WaitArgs {
    /// Wait until it ended; exit code 5 when it ended without success
    #[arg(long)]
    wait: bool,
    /// How long to wait at most; exit code 6 after that
    #[arg(long, default_value = "10m")]
    timeout: Span,
}

/// Runs the command.
///
/// # Errors
/// When the hub refuses, or the rollout that is waited for does not succeed.
pub async fn run(args: RolloutArgs, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    match args.action {
        Action::Start(args) => start(args, &client).await,
        Action::Status(args) => {
            let rollout = client.get::<RolloutSpec>(args.name.as_str()).await?;
            let rollout = if args.wait.wait { wait(&client, rollout, args.wait.timeout).await? } else { rollout };
            output::print(&output::plain(&describe::rollout(&rollout)?))?;
            verdict(&rollout)
        }
    }
}

async fn start(args: StartArgs, client: &Client) -> anyhow::Result<()> {
    let name = args.name.map_or_else(|| name_for(&args.release), Ok)?;
    let ReleaseName { app, version } = args.release;
    let rollout = Object::new(name, RolloutSpec { app, version, selector: args.to });
    let rollout = client.create(&rollout).await?;
    output::print(&format!("rollout/{} started\n", rollout.name()))?;
    if !args.wait.wait {
        eprintln!("see: crossdock rollout status {}", rollout.name());
        return Ok(());
    }
    let rollout = wait(client, rollout, args.wait.timeout).await?;
    let failed = rollout.status.phase != RolloutPhase::Succeeded;
    if failed {
        eprint!("{}", output::plain(&describe::rollout(&rollout)?));
    }
    verdict(&rollout)
}

fn verdict(rollout: &Rollout) -> anyhow::Result<()> {
    let phase = rollout.status.phase;
    if !phase.is_final() || phase == RolloutPhase::Succeeded {
        return Ok(());
    }
    let text = format!("rollout {} ended as {phase}: {}", rollout.name(), rollout.status.message);
    Err(Failure::new(Exit::RolloutFailed, text))
}

/// `app-version-` and a few letters of chance, so that a release can be rolled out again.
fn name_for(release: &ReleaseName) -> anyhow::Result<ObjectName> {
    let [a, b, c] = Env::real()?.seed.bytes::<3>("rollout name");
    let cut = |text: &str| text.chars().take(50).collect::<String>().trim_end_matches(['-', '.']).to_owned();
    Ok(format!("{}-{}-{a:02x}{b:02x}{c:02x}", cut(release.app.as_str()), cut(release.version.as_str())).parse()?)
}

/// Waits until a rollout ended, through interruptions of the line and restarts of the hub.
async fn wait(client: &Client, rollout: Rollout, timeout: Span) -> anyhow::Result<Rollout> {
    let name = rollout.name().to_owned();
    let mut progress = Progress::new(&rollout);
    let waited = tokio::time::timeout(timeout.get(), follow(client, rollout, &mut progress)).await;
    progress.end();
    let late = |_| {
        let text = format!("rollout {name} did not end within {timeout}; see: crossdock rollout status {name}");
        Failure::new(Exit::TimedOut, text)
    };
    waited.map_err(late)?
}

async fn follow(client: &Client, mut rollout: Rollout, progress: &mut Progress) -> anyhow::Result<Rollout> {
    let kind = kinds::find("rollouts").map_err(anyhow::Error::msg)?;
    let selector = format!("name={}", rollout.name());
    loop {
        match follow_once(client, kind, &selector, &mut rollout, progress).await {
            Ok(()) if rollout.status.phase.is_final() => return Ok(rollout),
            Ok(()) | Err(ClientError::Unreachable { .. } | ClientError::Refused { code: 410 | 500..=599, .. }) => {
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn follow_once(
    client: &Client,
    kind: kinds::KindInfo,
    selector: &str,
    rollout: &mut Rollout,
    progress: &mut Progress,
) -> Result<(), ClientError> {
    let gone = || ClientError::Refused {
        code: 404,
        reason: "NotFound".into(),
        message: format!("rollout {selector} was deleted while it was waited for"),
    };
    let list = get::list(client, kind, Some(selector)).await?;
    let listed = list.items.into_iter().next().and_then(|v| serde_json::from_value(v).ok());
    *rollout = listed.ok_or_else(gone)?;
    progress.show(rollout);
    let mut changes = client.watch(kind.plural, Some(selector), &list.resource_version).await?;
    while !rollout.status.phase.is_final() {
        let Some(change) = changes.next().await else { return Ok(()) };
        let mut change = change?;
        if change.get("type").is_some_and(|t| t == "DELETED") {
            return Err(gone());
        }
        let object = change.get_mut("object").map(serde_json::Value::take).unwrap_or_default();
        if let Ok(next) = serde_json::from_value(object) {
            *rollout = next;
            progress.show(rollout);
        }
    }
    Ok(())
}

/// A bar where a person looks, a line a change otherwise.
struct Progress {
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    fn new(rollout: &Rollout) -> Progress {
        let style =
            ProgressStyle::with_template("{spinner} {prefix} [{bar:30}] {pos}/{len} healthy, {msg} ({elapsed})");
        let bar = style.ok().filter(|_| std::io::stderr().is_terminal()).map(|style| {
            let bar = ProgressBar::new(0).with_style(style).with_prefix(rollout.release().to_string());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Progress { bar, last: String::new() }
    }

    fn show(&mut self, rollout: &Rollout) {
        let status = &rollout.status;
        let mut counts: BTreeMap<UpdatePhase, u64> = BTreeMap::new();
        status.nodes.values().for_each(|n| *counts.entry(n.phase).or_default() += 1);
        let healthy = counts.get(&UpdatePhase::Succeeded).copied().unwrap_or(0);
        let rest = counts.iter().filter(|(phase, _)| **phase != UpdatePhase::Succeeded);
        let rest: Vec<_> = rest.map(|(phase, n)| format!("{n} {phase}")).collect();
        let rest = if rest.is_empty() { status.phase.to_string() } else { rest.join(", ") };
        if let Some(bar) = &self.bar {
            bar.set_length(status.nodes.len() as u64);
            bar.set_position(healthy);
            bar.set_message(rest);
            return;
        }
        let line = format!("{}: {healthy}/{} healthy, {rest}", rollout.release(), status.nodes.len());
        if line != self.last {
            eprintln!("{line}");
            self.last = line;
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
