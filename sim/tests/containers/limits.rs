//! A container that behaves as badly as it can is held by its limits.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::ensure;
use cloudcore::stage;
use proto::object::{Node, UpdatePhase};
use sim::containers::{
    engine::{Engine, Kind, in_own_network},
    yard::{self, Program},
};
use tokio::time::{Instant, sleep};

use super::ONE_ENGINE;

/// It ignores SIGTERM, as does all that it starts; forks until it may no more; and takes memory until it is killed.
const ROGUE: &str = "trap '' TERM
echo rogue > /tmp/index.html
(x=0123456789abcdef; while true; do x=$x$x; done) &
(while true; do sleep 8313731 & done) &
exec httpd -f -p 8080 -h /tmp\n";
const PROBES: &str = "  probes: { readiness: { http: { path: /index.html, port: 8080 }, period: 200ms } }";

/// It writes where it may, once, and puts a link to the box's root where its volume could be looked for.
const TIDY: &str = "[ -e /cache/kept ] || echo kept > /cache/kept
echo mine > /crossdock/data/mine
[ -e /crossdock/data/cache ] || ln -s / /crossdock/data/cache
exec httpd -f -p 8080 -h /tmp\n";
const HANGS: &str = "8313737";
const TIDY_SAYS: &str = "  user: '1000:1000'
  probes:
    readiness: { exec: { command: [/bin/cat, /cache/kept, /crossdock/data/mine] }, period: 200ms }
    liveness:  { exec: { command: [/bin/sleep, '8313737'] }, period: 1s, timeout: 1s, failureThreshold: 1000 }";

/// Processes of the box with this argument.
fn pids(argument: &str) -> anyhow::Result<BTreeSet<String>> {
    let found = fs::read_dir("/proc")?.flatten().filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let has = line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes());
        has.then(|| entry.file_name().to_string_lossy().into_owned())
    });
    Ok(found.collect())
}

/// How many there are.
pub fn processes(argument: &str) -> anyhow::Result<usize> {
    Ok(pids(argument)?.len())
}

#[tokio::test]
async fn a_rogue_is_held_by_its_limits_and_stopped_whole() -> anyhow::Result<()> {
    let _one = ONE_ENGINE.lock().await;
    if !in_own_network("limits::a_rogue_is_held_by_its_limits_and_stopped_whole")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let engine = Engine::start(Kind::Docker, folder.path().join("docker")).await?;
    let mut stage = yard::open(&engine).await?;
    yard::release(&stage, &Program::serves("1.0.0")).await?;
    let neighbour = yard::running(&engine).await?;

    let rogue = Program { app: "rogue", script: ROGUE, workload: PROBES, ..Program::serves("1.0.0") };
    yard::release(&stage, &rogue).await?;
    // A shell that can fork no more ends: what it started stays.
    stage.wait_until("it forked until its limit", || processes("8313731").is_ok_and(|count| count > 50)).await?;
    ensure!(processes("8313731")? < 64, "beyond its limit of 64");
    let label = "label=io.crossdock.app=rogue";
    let id = engine.docker(&["ps", "-q", "--no-trunc", "--filter", label]).await?;
    let uses = engine.docker(&["stats", "--no-stream", "--format", "{{.PIDs}} {{.MemUsage}}", &id]).await?;
    ensure!(uses.ends_with("/ 64MiB"), "{uses}");

    // Its neighbour notices nothing.
    let before = Instant::now();
    stage.wait_for_nodes("the neighbour is ready", |node| yard::runs(node, "1.0.0", UpdatePhase::Succeeded)).await?;
    let restarts =
        |node: &Node| yard::app(node, yard::APP).and_then(|w| w.running.as_ref()).map(|running| running.restarts);
    ensure!(stage.nodes().await?.iter().all(|node| restarts(node) == Some(0)), "the neighbour was restarted");
    ensure!(before.elapsed() < Duration::from_secs(30), "the box is slow: {:?}", before.elapsed());

    // The next version takes its place: SIGTERM is for nothing, and after the grace nothing of it is left.
    let good = Program { app: "rogue", workload: PROBES, ..Program::serves("2.0.0") };
    yard::release(&stage, &good).await?;
    ensure!(processes("8313731")? == 0, "something of it is left");
    ensure!(yard::running(&engine).await? == neighbour, "the neighbour was disturbed");

    // One that is not root writes to its data and its volume, also in its next version, whatever it left there.
    let container = "    volumes: [{ name: cache, mountPath: /cache }]";
    for version in ["1.0.0", "2.0.0"] {
        let tidy = Program { app: "tidy", script: TIDY, container, workload: TIDY_SAYS, ..Program::serves(version) };
        yard::release(&stage, &tidy).await?;
    }
    let folder = stage.path("box-1/apps/tidy");
    ensure!(fs::read_to_string(folder.join("volumes/cache/kept"))? == "kept\n");
    ensure!(fs::symlink_metadata(folder.join("data/cache"))?.is_symlink(), "it left no link");
    let id = engine.docker(&["ps", "-q", "--no-trunc", "--filter", "label=io.crossdock.app=tidy"]).await?;
    let mounted = engine.docker(&["inspect", "-f", "{{range .Mounts}}{{.Source}}\n{{end}}", &id]).await?;
    ensure!(!mounted.lines().any(|from| from == "/"), "it has the box: {mounted}");
    // Its probe hangs each time; none of them is left behind.
    let mut seen = BTreeSet::new();
    let deadline = Instant::now() + stage::PATIENCE;
    while seen.len() < 6 {
        let now = pids(HANGS)?;
        ensure!(now.len() <= 3, "probes pile up: {now:?}");
        seen.extend(now);
        ensure!(Instant::now() < deadline, "it was asked {} times", seen.len());
        sleep(Duration::from_millis(50)).await; // one look to the next
    }
    engine.close().await?;
    stage.close().await
}
