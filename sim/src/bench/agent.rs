//! `sim bench agent`: what one idle agent with one workload costs its box and its line.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, bail, ensure};
use cloudcore::stage::{self, PATIENCE, relay::Relay};
use proto::object::{Node, NodePhase, UpdatePhase};
use tokio::time::{Instant, sleep};

use super::{
    Figures,
    fixture::{APP, Fixture},
    process, seconds, warn_if_debug,
};

const NODE: &str = "box-1";

/// `sim bench agent`.
#[derive(Debug, clap::Args)]
pub struct AgentArgs {
    /// Seconds to measure the idle link for; at least 30.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seconds to let the agent settle before that.
    #[arg(long, default_value_t = 15)]
    settle: u64,
    /// One JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Runs the bench.
///
/// # Errors
/// When a process does not do what it should.
pub async fn run(args: AgentArgs) -> anyhow::Result<()> {
    ensure!(args.seconds >= 30, "--seconds must be at least 30, three heartbeats");
    warn_if_debug();
    let mut fixture = Fixture::open(stage::shipped_programs().await?).await?;
    let figures = measure(&mut fixture, &args).await.with_context(|| fixture.last_lines(NODE))?;
    fixture.stage.close().await?;
    figures.print(args.json);
    Ok(())
}

async fn measure(fixture: &mut Fixture, args: &AgentArgs) -> anyhow::Result<Figures> {
    let link = fixture.stage.link_address()?.parse().context("the hub's link address")?;
    let relay = Relay::start((std::net::Ipv4Addr::LOCALHOST, 0).into(), link).await?;
    fixture.publish("1.0.0", 1 << 20).await?;
    let token = fixture.token(1).await?;
    fixture.join(NODE, &token, &relay.address.to_string()).await?;
    fixture.stage.start_agent(NODE)?;
    fixture.start_rollout("1.0.0").await?;
    let healthy = |nodes: &BTreeMap<String, Node>| {
        let node = nodes.get(NODE).ok_or("the node is gone")?;
        let app = node.status.workloads.iter().find(|(name, _)| name.as_str() == APP).map(|(_, status)| status);
        let done =
            app.is_some_and(|a| a.phase == UpdatePhase::Succeeded && a.running.as_ref().is_some_and(|r| r.ready));
        if done && node.status.phase == NodePhase::Ready {
            Ok(())
        } else {
            Err(format!("the node is {:?}", node.status))
        }
    };
    fixture.api.follow(PATIENCE, healthy).await?;
    eprintln!("healthy; settling for {} s, then measuring for {} s", args.settle, args.seconds);
    sleep(Duration::from_secs(args.settle)).await; // idle is what is measured

    let agent = fixture.stage.agent_pid(NODE).context("the agent has ended")?;
    let (cpu_before, (bytes_before, datagrams_before)) = (process::cpu(agent)?, relay.counts.get());
    ensure!(bytes_before > 0, "nothing passed the relay: the agent found the hub without it");
    let begin = Instant::now();
    sleep(Duration::from_secs(args.seconds)).await; // the time over which traffic is counted
    let (bytes, datagrams) = relay.counts.get();
    let took = begin.elapsed();
    let (bytes, datagrams) = (bytes - bytes_before, datagrams - datagrams_before);
    ensure!(datagrams > 0, "not one datagram in {took:?}: the agent is not connected");
    let cpu = process::cpu(agent)?.saturating_sub(cpu_before);
    figures(fixture, agent, bytes, datagrams, took, cpu)
}

fn figures(
    fixture: &Fixture,
    agent: u32,
    bytes: u64,
    datagrams: u64,
    took: Duration,
    cpu: Duration,
) -> anyhow::Result<Figures> {
    let memory = process::memory(agent)?;
    let shims = fixture.shim_pids();
    let &[shim] = shims.as_slice() else { bail!("{} shims run, expected one", shims.len()) };
    let shim = process::memory(shim)?;
    let binary = fixture.program("edgecore");
    let per_s = |n: u64| (n as f64 / took.as_secs_f64() * 10.0).round() / 10.0;
    let mut figures = Figures::default();
    figures.add("agent_rss_bytes", memory.rss_bytes, "VmRSS, idle, one workload (at most 10 MiB, goal 8)");
    figures.add("agent_private_bytes", memory.private_bytes, "private pages of smaps_rollup");
    figures.add("agent_binary_bytes", fs::metadata(&binary).context("look at edgecore")?.len(), "size of edgecore");
    figures.add(
        "idle_link_bytes_per_s",
        per_s(bytes),
        "UDP payload both ways, counted by a relay (at most 200); IP and UDP headers not included",
    );
    figures.add("idle_link_wire_bytes_per_s", per_s(bytes + 28 * datagrams), "the same with IPv4 and UDP headers");
    figures.add("idle_link_datagrams_per_s", per_s(datagrams), "both ways");
    figures.add("agent_cpu_permille", per_s(u64::try_from(cpu.as_millis())?), "of one core, idle");
    figures.add("shim_rss_bytes", shim.rss_bytes, "VmRSS of the shim that keeps the workload");
    figures.add("shim_private_bytes", shim.private_bytes, "its private pages");
    figures.add("agent_shared_libraries", process::shared_libraries(&binary), "what edgecore is linked to");
    figures.add("measured_s", seconds(took), "length of the measurement");
    let built = binary.parent().and_then(|folder| folder.file_name()).unwrap_or_default();
    figures.add("agent_profile", built.to_string_lossy().into_owned(), "how the agent was built: edge is what ships");
    Ok(figures)
}
