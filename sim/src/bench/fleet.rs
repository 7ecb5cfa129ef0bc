//! `sim bench fleet`: many real agents on real sockets; how fast they connect, how fast a release
//! reaches them all, what it costs the hub, and what plain TLS would take for the same bytes.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use cloudcore::stage::{self, PATIENCE};
use futures_util::StreamExt as _;
use proto::object::{Node, NodePhase, UpdatePhase};
use tokio::time::Instant;

use super::{
    Figures,
    fixture::{APP, Fixture, SOAK_S},
    process, profile, seconds, warn_if_debug, yardstick,
};

/// Joins that run at the same time.
const JOINS_AT_ONCE: usize = 8;

/// `sim bench fleet`.
#[derive(Debug, clap::Args)]
pub struct FleetArgs {
    /// Agents.
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    /// Size of the release in KiB.
    #[arg(long, default_value_t = 1024)]
    release_kib: usize,
    /// One JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Runs the bench.
///
/// # Errors
/// When a process does not do what it should.
pub async fn run(args: FleetArgs) -> anyhow::Result<()> {
    ensure!((1..=10_000).contains(&args.nodes), "--nodes must be 1 to 10000");
    warn_if_debug();
    let mut fixture = Fixture::open(stage::shipped_programs().await?).await?;
    let figures = measure(&mut fixture, &args).await.with_context(|| fixture.last_lines(&name(0)))?;
    fixture.stage.close().await?;
    figures.print(args.json);
    Ok(())
}

pub(super) fn name(number: usize) -> String {
    format!("box-{number:04}")
}

/// What connecting took.
pub(super) struct Connected {
    took: Duration,
    spawned: Duration,
    hub_cpu: Duration,
    hub_rss_grown: u64,
}

/// What the rollout took.
struct RolledOut {
    took: Duration,
    commanded: Duration,
    on_trial: Duration,
    hub_cpu: Duration,
    agents_cpu: Duration,
    bytes_sent: u64,
    healthy: usize,
}

async fn measure(fixture: &mut Fixture, args: &FleetArgs) -> anyhow::Result<Figures> {
    fixture.publish("1.0.0", args.release_kib << 10).await?;
    join_all(fixture, args.nodes).await?;
    let connected = connect(fixture, args.nodes).await?;
    let rolled_out = roll_out(fixture, args.nodes).await?;
    let hub = process::memory(fixture.hub_pid()?)?;
    let mut agents_rss = 0;
    for pid in agent_pids(fixture) {
        agents_rss += process::memory(pid)?.rss_bytes;
    }
    let nodes = u64::try_from(args.nodes)?;
    let yardstick = yardstick::run(args.nodes, rolled_out.bytes_sent / nodes).await?;

    let mut figures = Figures::default();
    figures.add("connect_s", seconds(connected.took), "first agent started to all Ready at the hub (goal 1)");
    figures.add("rollout_s", seconds(rolled_out.took), "`rollout start` to all healthy (goal: soak + 1)");
    figures.add("healthy_nodes", rolled_out.healthy, "nodes that report the digest healthy");
    figures.add("hub_cpu_s", seconds(rolled_out.hub_cpu), "processor time of the hub, rollout alone");
    figures.add("hub_rss_bytes", hub.rss_bytes, "VmRSS of the hub after the rollout");
    figures.add("bytes_sent", rolled_out.bytes_sent, "all of loopback during the rollout, headers included");
    figures.add("yardstick_s", seconds(yardstick), "the same bytes over plain TLS to as many clients, no disk");
    figures.add("nodes", nodes, "agents");
    figures.add("release_bytes", nodes * (u64::try_from(args.release_kib)? << 10), "content, all nodes together");
    figures.add("workload_needs_s", SOAK_S, "soak time of the release, part of rollout_s");
    figures.add("connect_spawn_s", seconds(connected.spawned), "of connect_s: starting the processes");
    figures.add("connect_hub_cpu_s", seconds(connected.hub_cpu), "processor time of the hub, connecting");
    figures.add("hub_bytes_per_node", connected.hub_rss_grown / nodes, "growth of VmRSS by connecting (goal 50 KB)");
    figures.add("rollout_command_s", seconds(rolled_out.commanded), "of rollout_s: until the command returned");
    figures.add("rollout_on_trial_s", seconds(rolled_out.on_trial), "of rollout_s: until the last workload ran");
    figures.add("agents_cpu_s", seconds(rolled_out.agents_cpu), "processor time of all agents, rollout alone");
    figures.add("agents_rss_bytes_mean", agents_rss / nodes, "VmRSS of an agent after the rollout");
    figures.add("cores", std::thread::available_parallelism()?.get(), "processor cores of this machine");
    figures.add("profile", profile(), "how it was built");
    Ok(figures)
}

pub(super) async fn join_all(fixture: &Fixture, nodes: usize) -> anyhow::Result<()> {
    let (token, link) = (fixture.token(nodes).await?, fixture.stage.link_address()?);
    let begin = Instant::now();
    let mut joins = futures_util::stream::iter(0..nodes)
        .map(|number| {
            let (token, link) = (&token, &link);
            async move { fixture.join(&name(number), token, link).await }
        })
        .buffer_unordered(JOINS_AT_ONCE);
    while let Some(result) = joins.next().await {
        result.context("join")?;
    }
    eprintln!("{nodes} boxes joined in {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}

pub(super) async fn connect(fixture: &mut Fixture, nodes: usize) -> anyhow::Result<Connected> {
    let hub = fixture.hub_pid()?;
    let (cpu, rss) = (process::cpu(hub)?, process::memory(hub)?.rss_bytes);
    let begin = Instant::now();
    for number in 0..nodes {
        fixture.stage.start_agent(&name(number))?;
    }
    let spawned = begin.elapsed();
    let all_ready = |all: &BTreeMap<String, Node>| {
        let ready = all.values().filter(|node| node.status.phase == NodePhase::Ready).count();
        if ready == nodes { Ok(()) } else { Err(format!("{ready} of {nodes} nodes are Ready")) }
    };
    fixture.api.follow(PATIENCE, all_ready).await?;
    let took = begin.elapsed();
    eprintln!("{nodes} agents connected in {:.2} s", took.as_secs_f64());
    Ok(Connected {
        took,
        spawned,
        hub_cpu: process::cpu(hub)?.saturating_sub(cpu),
        hub_rss_grown: process::memory(hub)?.rss_bytes.saturating_sub(rss),
    })
}

/// How far a node is with the release.
fn phase(node: &Node) -> Option<UpdatePhase> {
    let status = node.status.workloads.iter().find(|(app, _)| app.as_str() == APP).map(|(_, status)| status)?;
    let ready = status.running.as_ref().is_some_and(|r| r.ready && Some(&r.release) == status.target.as_ref());
    Some(match status.phase {
        UpdatePhase::Succeeded if !ready => UpdatePhase::Verifying,
        phase => phase,
    })
}

async fn roll_out(fixture: &Fixture, nodes: usize) -> anyhow::Result<RolledOut> {
    let hub = fixture.hub_pid()?;
    let (hub_cpu, agents_cpu, sent) = (process::cpu(hub)?, agents_cpu(fixture)?, process::loopback_bytes()?);
    let begin = Instant::now();
    fixture.start_rollout("1.0.0").await?;
    let commanded = begin.elapsed();
    let (mut on_trial, mut healthy) = (None, 0);
    let all_healthy = |all: &BTreeMap<String, Node>| {
        let phases: Vec<_> = all.values().filter_map(phase).collect();
        let trial = |p: &&UpdatePhase| matches!(p, UpdatePhase::Verifying | UpdatePhase::Succeeded);
        if on_trial.is_none() && phases.iter().filter(trial).count() == nodes {
            on_trial = Some(begin.elapsed());
        }
        healthy = phases.iter().filter(|p| **p == UpdatePhase::Succeeded).count();
        if healthy == nodes { Ok(()) } else { Err(format!("{healthy} of {nodes} nodes are healthy: {phases:?}")) }
    };
    fixture.api.follow(PATIENCE, all_healthy).await?;
    let took = begin.elapsed();
    Ok(RolledOut {
        took,
        commanded,
        on_trial: on_trial.unwrap_or(took),
        bytes_sent: process::loopback_bytes()?.saturating_sub(sent),
        hub_cpu: process::cpu(hub)?.saturating_sub(hub_cpu),
        agents_cpu: self::agents_cpu(fixture)?.saturating_sub(agents_cpu),
        healthy,
    })
}

fn agent_pids(fixture: &Fixture) -> Vec<u32> {
    (0..).map_while(|number| fixture.stage.agent_pid(&name(number))).collect()
}

fn agents_cpu(fixture: &Fixture) -> anyhow::Result<Duration> {
    agent_pids(fixture).into_iter().map(process::cpu).sum()
}
