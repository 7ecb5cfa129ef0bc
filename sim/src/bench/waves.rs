//! `sim bench waves`: many real agents, a release in waves of one, a tenth and all, and one that crashes at once.
//!
//! What counts of the second is who ever saw it: the canary, which is back with the release before, and nobody else.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, ensure};
use cloudcore::stage::{self, Programs};
use proto::object::{Node, UpdatePhase};
use tokio::time::Instant;

use super::{
    Figures,
    fixture::{APP, Fixture, SOAK_S},
    fleet, profile, seconds, warn_if_debug,
};

/// How long each wave but the last must stay healthy.
const WAVE_SOAK_S: u64 = 2;
/// Waves that soak.
const SOAKING_WAVES: u64 = 2;
/// `crossdock`'s exit code for a rollout that waits for somebody.
const PAUSED: i32 = 9;
const RELEASE_BYTES: usize = 64 << 10;

/// `sim bench waves`.
#[derive(Debug, clap::Args)]
pub struct WavesArgs {
    /// Agents.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(3..=1000))]
    pub nodes: u32,
    /// One JSON object on the last line.
    #[arg(long)]
    pub json: bool,
}

/// Runs the bench with the programs that ship.
///
/// # Errors
/// When a process does not do what it should.
pub async fn run(args: WavesArgs) -> anyhow::Result<()> {
    warn_if_debug();
    let figures = play(&args, stage::shipped_programs().await?).await?;
    figures.print(args.json);
    Ok(())
}

/// Plays it.
///
/// # Errors
/// When a process does not do what it should.
pub async fn play(args: &WavesArgs, programs: Programs) -> anyhow::Result<Figures> {
    let mut fixture = Fixture::open(programs).await?;
    let figures = measure(&mut fixture, args.nodes as usize).await;
    let figures = figures.with_context(|| fixture.last_lines(&fleet::name(0)))?;
    fixture.stage.close().await?;
    Ok(figures)
}

async fn measure(fixture: &mut Fixture, nodes: usize) -> anyhow::Result<Figures> {
    fixture.publish("1.0.0", RELEASE_BYTES).await?;
    fixture.publish_program("2.0.0", RELEASE_BYTES, "echo the belt is jammed >&2\nexit 1", 5).await?;
    fleet::join_all(fixture, nodes).await?;
    fleet::connect(fixture, nodes).await?;

    let (good, code, text) = in_waves(fixture, "1.0.0").await?;
    ensure!(code == 0, "a good release ends with exit code 0, this one with {code}: {text}");
    let healthy = fixture.stage.nodes().await?.iter().filter(|node| proved(node, "1.0.0")).count();
    ensure!(healthy == nodes, "{healthy} of {nodes} nodes run 1.0.0");

    let (bad, code, text) = in_waves(fixture, "2.0.0").await?;
    ensure!(code == PAUSED, "a bad canary pauses the rollout (exit code {PAUSED}), this one ended with {code}: {text}");
    let back = Instant::now();
    fixture.stage.wait_for_nodes("all run 1.0.0", |node| runs(node, "1.0.0")).await?;
    let back = back.elapsed();
    let all = fixture.stage.nodes().await?;
    let saw: BTreeSet<&str> = all.iter().filter(|node| was_told(node, "2.0.0")).map(Node::name).collect();
    ensure!(saw.len() == 1, "the canary alone was to see 2.0.0: {saw:?}");
    let canary = all.iter().find(|node| was_told(node, "2.0.0")).context("there is no canary")?;
    let said = canary.status.workloads.get(APP).context("the canary says nothing of the app")?;
    ensure!(said.phase == UpdatePhase::RolledBack, "the canary is {}", said.phase);
    ensure!(!said.message.is_empty(), "the canary does not say why");
    eprintln!("{} says: {}", canary.name(), said.message);

    let soak = SOAKING_WAVES * WAVE_SOAK_S + (SOAKING_WAVES + 1) * SOAK_S;
    let mut figures = Figures::default();
    figures.add("nodes", nodes, "agents");
    figures.add("waves_s", seconds(good), "`rollout start --waves 1,10%,all --wait` to all healthy");
    figures.add("waves_soak_s", soak, "of that: soak of the waves, and of the workload in each of them");
    figures.add("bad_canary_stopped_s", seconds(bad), "`rollout start` of one that crashes to the rollout's pause");
    figures.add("bad_canary_back_s", seconds(back), "after that, until all run the release before");
    figures.add("saw_it", saw.len(), "nodes that were ever told of it");
    figures.add("never_saw_it", nodes - saw.len(), "nodes that were not");
    figures.add("profile", profile(), "how it was built");
    Ok(figures)
}

/// Rolls a version out in waves, and waits; returns how long it took, the exit code and what was printed.
async fn in_waves(fixture: &Fixture, version: &str) -> anyhow::Result<(Duration, i32, String)> {
    let (release, soak) = (format!("{APP}@{version}"), format!("{WAVE_SOAK_S}s"));
    let args = ["rollout", "start", &release, "--to", "all", "--waves", "1,10%,all", "--soak", &soak, "--wait"];
    let begin = Instant::now();
    let (code, text) = fixture.stage.try_run("crossdock", &args).await?;
    Ok((begin.elapsed(), code, text))
}

fn was_told(node: &Node, version: &str) -> bool {
    let assigned = node.spec.apps.get(APP).is_some_and(|app| app.version.as_str() == version);
    let said = node.status.workloads.get(APP).and_then(|said| said.target.as_ref());
    assigned || said.is_some_and(|target| target.version.as_str() == version)
}

fn runs(node: &Node, version: &str) -> bool {
    let running = node.status.workloads.get(APP).and_then(|said| said.running.as_ref());
    running.is_some_and(|running| running.ready && running.release.version.as_str() == version)
}

fn proved(node: &Node, version: &str) -> bool {
    runs(node, version) && node.status.workloads.get(APP).is_some_and(|said| said.phase == UpdatePhase::Succeeded)
}
