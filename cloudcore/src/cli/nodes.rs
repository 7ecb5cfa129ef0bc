//! `crossdock cordon | uncordon | drain | undrain | pin | unpin | allocate | restart | reboot`: what is done to
//! nodes by hand.

use std::{collections::BTreeSet, str::FromStr};

use proto::{
    name::{Name, NameError},
    object::{Allocation, Node, NodeSpec, Ratio, Rollout, RolloutSpec},
    selector::Selector,
    units::Bytes,
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

/// `crossdock allocate`: what is left out stays as it is.
#[derive(Debug, Clone, clap::Args)]
pub struct AllocateArgs {
    #[command(flatten)]
    nodes: Nodes,
    #[command(flatten)]
    how: Allocate,
}

/// How much of a node apps may ask for, and which.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Allocate {
    /// How many times its memory apps may ask for together, such as 1.5
    #[arg(long, value_name = "RATIO")]
    overcommit_memory: Option<Ratio>,
    /// How many times its processor time apps may ask for together, such as 2
    #[arg(long, value_name = "RATIO")]
    overcommit_cpu: Option<Ratio>,
    /// Memory that is kept for the system, such as 1Gi
    #[arg(long, value_name = "BYTES")]
    system_memory: Option<Bytes>,
    /// Thousandths of a processor core that are kept for the system, such as 500
    #[arg(long, value_name = "MILLIS")]
    system_cpu_millis: Option<u32>,
    /// Begin nothing there but these apps, such as camera-a,scan; "" for any
    #[arg(long, value_name = "APP,...")]
    reserve_for: Option<AppList>,
}

/// Names of apps, joined by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppList(BTreeSet<Name>);

impl FromStr for AppList {
    type Err = NameError;
    fn from_str(text: &str) -> Result<AppList, NameError> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.map(str::parse).collect::<Result<_, _>>().map(AppList)
    }
}

impl Allocate {
    fn apply(&self, spec: &mut NodeSpec) {
        let Allocation { overcommit, system_reserved } = &mut spec.allocation;
        overcommit.memory = self.overcommit_memory.unwrap_or(overcommit.memory);
        overcommit.cpu = self.overcommit_cpu.unwrap_or(overcommit.cpu);
        system_reserved.memory = self.system_memory.or(system_reserved.memory).filter(|memory| memory.get() > 0);
        system_reserved.cpu_millis = self.system_cpu_millis.or(system_reserved.cpu_millis).filter(|cpu| *cpu > 0);
        if let Some(AppList(apps)) = &self.reserve_for {
            spec.reserved_for.clone_from(apps);
        }
    }
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
    /// How much of it apps may ask for, and which.
    Allocate(Allocate),
}

impl Change {
    fn apply(&self, spec: &mut NodeSpec) {
        match self {
            Change::Cordon(on) => spec.cordoned = *on,
            Change::Drain(on) => spec.drained = *on,
            Change::Pin(app, true) => drop(spec.pinned.insert(app.clone())),
            Change::Pin(app, false) => drop(spec.pinned.remove(app)),
            Change::Allocate(how) => how.apply(spec),
        }
    }

    fn done(&self) -> String {
        match self {
            Change::Cordon(on) => if *on { "cordoned" } else { "uncordoned" }.into(),
            Change::Drain(on) => if *on { "drained" } else { "undrained" }.into(),
            Change::Pin(app, on) => format!("{app} {}", if *on { "pinned" } else { "unpinned" }),
            Change::Allocate(_) => "allocated".into(),
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

/// Says how much of nodes apps may ask for.
///
/// # Errors
/// As [`change`].
pub async fn allocate(args: AllocateArgs, context: &Context) -> anyhow::Result<()> {
    change(args.nodes, &Change::Allocate(args.how), context).await
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
