//! `crossdock cordon | uncordon | drain | undrain | pin | unpin | restart | reboot`: what is done to nodes by hand.

use proto::{
    name::Name,
    object::{Node, NodeSpec, Rollout, RolloutSpec},
    selector::Selector,
};

use super::{
    Context,
    client::Client,
    exit::{CliError, Exit},
    output::Format,
    rollout::{self, FollowArgs, How},
};

/// Which nodes.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true)]
pub struct Nodes {
    /// Name of a node.
    node: Option<Name>,
    /// Selector of nodes, such as site=hz-01
    #[arg(short = 'l', long, conflicts_with = "node")]
    selector: Option<Selector>,
}

/// `crossdock pin` and `unpin`.
#[derive(Debug, Clone, clap::Args)]
pub struct PinArgs {
    /// Name of the node.
    node: Name,
    /// The app that stays as it is there.
    app: Name,
}

/// `crossdock restart`.
#[derive(Debug, clap::Args)]
pub struct RestartArgs {
    /// The app.
    app: Name,
    #[command(flatten)]
    where_and_how: RebootArgs,
}

/// `crossdock reboot`.
#[derive(Debug, clap::Args)]
pub struct RebootArgs {
    /// Selector of nodes, as for `rollout start`
    #[arg(long)]
    to: Selector,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    follow: FollowArgs,
    /// Output format of the rollout that was created.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// What is done to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Rollouts begin nothing on it, or may again.
    Cordon(bool),
    /// Its workloads are stopped, or may run again.
    Drain(bool),
    /// An app stays as it is there, or no longer.
    Pin(Name, bool),
}

impl Change {
    fn apply(&self, spec: &mut NodeSpec) {
        match self {
            Change::Cordon(on) => spec.cordoned = *on,
            Change::Drain(on) => spec.drained = *on,
            Change::Pin(app, true) => drop(spec.pinned.insert(app.clone())),
            Change::Pin(app, false) => drop(spec.pinned.remove(app)),
        }
    }

    fn done(&self) -> String {
        match self {
            Change::Cordon(on) => if *on { "cordoned" } else { "uncordoned" }.into(),
            Change::Drain(on) => if *on { "drained" } else { "undrained" }.into(),
            Change::Pin(app, on) => format!("{app} {}", if *on { "pinned" } else { "unpinned" }),
        }
    }
}

/// Changes nodes, one after the other.
///
/// # Errors
/// When there is none, or the hub refuses.
pub async fn change(nodes: Nodes, change: &Change, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    let found: Vec<Node> = match (&nodes.node, &nodes.selector) {
        (Some(name), _) => vec![client.get(name.as_str()).await?],
        (None, selector) => client.list_of(selector.as_ref()).await?,
    };
    if found.is_empty() {
        let selector = nodes.selector.map(|selector| selector.to_string()).unwrap_or_default();
        let text = format!("selector {selector} names no node; `crossdock get nodes` lists them with their labels");
        return Err(CliError::new(Exit::NotFound, text).into());
    }
    for node in found {
        set(&client, node, change).await?;
    }
    Ok(())
}

/// Pins or unpins.
///
/// # Errors
/// As [`change`].
pub async fn pin(args: PinArgs, on: bool, context: &Context) -> anyhow::Result<()> {
    change(Nodes { node: Some(args.node), selector: None }, &Change::Pin(args.app, on), context).await
}

/// Writes a node; anew when somebody was faster.
async fn set(client: &Client, mut node: Node, change: &Change) -> anyhow::Result<()> {
    const ATTEMPTS: u32 = 10;
    let name = node.name().to_owned();
    for attempt in 1.. {
        change.apply(&mut node.spec);
        match client.put("nodes", &name, &serde_json::to_value(&node)?).await {
            Ok(_) => break,
            Err(error) if attempt < ATTEMPTS && rollout::is_stale(&error) => node = client.get(&name).await?,
            Err(error) => return Err(error),
        }
    }
    println!("nodes/{name} {}", change.done());
    Ok(())
}

/// Starts an app again on nodes, as a rollout does it.
///
/// # Errors
/// As a rollout.
pub async fn restart(args: RestartArgs, context: &Context) -> anyhow::Result<()> {
    let RestartArgs { app, where_and_how } = args;
    let name = format!("restart-{app}");
    start(&name, |to| RolloutSpec::restart(app, to), where_and_how, context).await
}

/// Restarts nodes, as a rollout does it.
///
/// # Errors
/// As a rollout.
pub async fn reboot(args: RebootArgs, context: &Context) -> anyhow::Result<()> {
    start("reboot", RolloutSpec::reboot, args, context).await
}

async fn start(
    name: &str,
    spec: impl FnOnce(Selector) -> RolloutSpec,
    args: RebootArgs,
    context: &Context,
) -> anyhow::Result<()> {
    let client = context.client()?;
    let spec = args.how.apply(spec(args.to))?;
    let rollout = Rollout::new(rollout::made_up_name(name)?, spec);
    rollout::create(&client, &rollout, args.output, &args.follow).await
}
