//! The sample application as a release: built, signed, rolled out in waves to three boxes whose containers read real
//! pictures with a real model; what they read arrives at the hub.

use std::fs;

use anyhow::{Context as _, ensure};
use cloudcore::stage::{PATIENCE, Programs, Stage};
use proto::object::{Node, UpdatePhase};
use serde_json::Value;
use sim::containers::engine::{Engine, Kind, in_own_network, is_in_own_network};
use tokio::time::{Duration, Instant, sleep};

use super::{ONE, house::House};

const BOXES: [&str; 3] = ["box-1", "box-2", "box-3"];
/// What the models read on the first line that passes the first camera.
const FIRST_LINE: &str = "Region-based segmentation";

async fn open(engine: &Engine, programs: Programs) -> anyhow::Result<Stage> {
    let mut stage = Stage::open(None, programs, false)?;
    stage.init_hub().await?;
    stage.init_repository().await?;
    for node in BOXES {
        stage.join(node, "hz-01").await?;
        let settings = stage.path(node).join("agent.toml");
        let engine = format!("[containers]\nsocket = \"{}\"\n", engine.socket().display());
        fs::write(&settings, engine + &fs::read_to_string(&settings)?)?;
        stage.start_agent(node)?;
    }
    Ok(stage)
}

/// Publishes the release of `images/belt-watch` under a version, with these variables in place of its own.
async fn publish(stage: &Stage, house: &House, version: &str, env: &str) -> anyhow::Result<()> {
    let folder = stage.path(version);
    fs::create_dir_all(&folder)?;
    let text = fs::read_to_string(house.file("release.yaml"))?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (begin, line) in [
        ("version: ", format!("version: {version}")),
        ("  env: ", format!("  env: {env}")),
        ("  soak: ", "  soak: 1s".into()),
    ] {
        *lines.iter_mut().find(|l| l.starts_with(begin)).with_context(|| format!("find {begin:?}"))? = line;
    }
    fs::write(folder.join("release.yaml"), lines.join("\n"))?;
    fs::hard_link(house.archive("belt-watch"), folder.join("belt-watch.tar"))
        .or_else(|_| fs::copy(house.archive("belt-watch"), folder.join("belt-watch.tar")).map(drop))?;
    stage.publish(version).await?;
    Ok(())
}

fn runs(node: &Node, version: &str) -> bool {
    node.status.workloads.get("belt-watch").is_some_and(|w| {
        w.phase == UpdatePhase::Succeeded
            && w.running.as_ref().is_some_and(|r| r.release.version.as_str() == version && r.ready)
    })
}

/// Waits until every box has handed in what the first camera reads.
async fn labels_arrive(stage: &mut Stage) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        stage.check_alive()?;
        let text = stage.quiet("crossdock", &["streams", "query", "scans", "--limit", "0", "-o", "text"]).await?;
        let from = |node: &str| text.lines().any(|line| line.contains(node) && line.contains(FIRST_LINE));
        if BOXES.iter().all(|node| from(node)) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not every box has handed in {FIRST_LINE:?}: {text}");
        sleep(Duration::from_millis(200)).await; // one look to the next
    }
}

/// What the containers of the app say of themselves.
async fn rates(engine: &Engine) -> anyhow::Result<Vec<Value>> {
    let all = engine.docker(&["ps", "-q", "--filter", "label=io.crossdock.app=belt-watch"]).await?;
    let mut answers = vec![];
    for id in all.lines() {
        let text = engine.docker(&["exec", id, "python3", "-m", "belt_watch.probe"]).await?;
        answers.push(serde_json::from_str(&text).with_context(|| text.clone())?);
    }
    Ok(answers)
}

/// The releases of the app that a box holds.
fn held(stage: &Stage, node: &str) -> anyhow::Result<usize> {
    Ok(fs::read_dir(stage.path(node).join("apps/belt-watch/releases"))?.count())
}

const GOOD: &str = "{ BELT_CAMERAS: '2', BELT_RATE: '2' }";
/// Each frame takes two seconds more.
const SLOW: &str = "{ BELT_CAMERAS: '2', BELT_RATE: '2', BELT_DELAY_MS: '2000' }";
/// A quarter of what the cameras show; the slow one has less than half of that.
const GATE: &str = "frames_per_second,min=1,min-samples=5";

#[tokio::test]
async fn the_sample_application_is_released_and_too_slow_a_model_stops_at_the_canary() -> anyhow::Result<()> {
    let _one = ONE.lock().await;
    let (house, programs) = House::open().await?;
    if !is_in_own_network() {
        house.build(&["belt-watch"])?;
    }
    if !in_own_network("sample::the_sample_application_is_released_and_too_slow_a_model_stops_at_the_canary")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let engine = Engine::start(Kind::Docker, folder.path().join("docker")).await?;
    let mut stage = open(&engine, programs).await?;
    let result = play(&mut stage, &engine, &house).await;
    if result.is_err() {
        stage.print_logs();
    }
    result?;
    engine.close().await?;
    stage.close().await
}

async fn roll_out(stage: &Stage, version: &str, more: &[&str]) -> anyhow::Result<(i32, String)> {
    let release = format!("belt-watch@{version}");
    let start = ["rollout", "start", &release, "--to", "all", "--waves", "1,all", "--soak", "1s", "--metric", GATE];
    stage.try_run("crossdock", &[&start, more, &["--wait"]].concat()).await
}

async fn play(stage: &mut Stage, engine: &Engine, house: &House) -> anyhow::Result<()> {
    publish(stage, house, "1.0.0", GOOD).await?;
    let (code, text) = roll_out(stage, "1.0.0", &[]).await?;
    ensure!(code == 0, "{text}");
    stage.wait_for_nodes("1.0.0 runs", |node| runs(node, "1.0.0")).await?;
    labels_arrive(stage).await?;
    hardened(engine).await?;

    // The model is too slow, and every probe is green. The canary shows it and goes to what works.
    publish(stage, house, "2.0.0", SLOW).await?;
    publish(stage, house, "2.0.1", GOOD).await?;
    let (code, text) = roll_out(stage, "2.0.0", &["--on-failure", "roll-back", "--rollback-to", "2.0.1"]).await?;
    ensure!(code == 10 && text.contains("frames_per_second"), "{code}: {text}");
    stage
        .wait_for_nodes("the canary has 2.0.1, the others what they had", |node| {
            runs(node, "2.0.1") || runs(node, "1.0.0")
        })
        .await?;
    let nodes = stage.nodes().await?;
    let canaries: Vec<_> = nodes.iter().filter(|node| runs(node, "2.0.1")).map(|n| n.metadata.name.as_str()).collect();
    ensure!(canaries.len() == 1, "one box is the canary, not {canaries:?}");
    for node in BOXES.iter().filter(|node| !canaries.contains(node)) {
        ensure!(held(stage, node)? == 1, "{node} has seen another release than 1.0.0");
    }
    Ok(())
}

/// Nobody of the box, no capability, nothing to write to but `/tmp` and its data; and frames are read.
async fn hardened(engine: &Engine) -> anyhow::Result<()> {
    let id = engine.docker(&["ps", "-q", "--filter", "label=io.crossdock.app=belt-watch", "-n", "1"]).await?;
    let id = id.lines().next().context("no container runs")?;
    let user = engine.docker(&["exec", id, "python3", "-c", "import os; print(os.getuid())"]).await?;
    let rights =
        engine.docker(&["inspect", "-f", "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}", id]).await?;
    ensure!((user.as_str(), rights.as_str()) == ("65532", "true [ALL]"), "{user} {rights}");
    let said = rates(engine).await?;
    ensure!(said.len() == BOXES.len(), "{said:?}");
    for one in &said {
        let rate = one["frames_per_second"].as_f64().unwrap_or_default();
        ensure!(rate > 1.0 && one["provider"] == "CPUExecutionProvider", "{one}");
    }
    Ok(())
}
