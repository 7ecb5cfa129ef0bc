//! Gates that ask what workloads tell of themselves, and cameras that are lost.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use proto::{
    object::{
        Condition, ConditionStatus, EventSpec, Node, NodePhase, RolloutNode, RolloutPhase, RolloutSpec, UpdatePhase,
        condition,
        rollout::{MetricRule, OnFailure, Wave, WavePhase, reason},
    },
    selector::Selector,
    units::Span,
};
use tokio::time::{Instant, sleep};

use crate::{
    fault::{Fault, Target},
    world::World,
};

const APP: &str = "line-watch";
const SITES: [(&str, [&str; 2]); 2] = [("hz-01", ["box-1", "box-2"]), ("hz-02", ["box-3", "box-4"])];
const STEP: Duration = Duration::from_millis(250);
const METRIC: &str = "frames_per_second";

/// Four boxes on which 1.0.0 runs and tells of 25 frames a second, for a while.
async fn fleet(world: &mut World) -> anyhow::Result<()> {
    world.start_hub().await?;
    for (site, nodes) in SITES {
        for node in nodes {
            world.join(node, site).await?;
            world.start_agent(node).await?;
        }
    }
    let ready = |node: &Node| node.status.phase == NodePhase::Ready;
    world.until_nodes(Duration::from_secs(60), "all nodes are Ready", |nodes| nodes.values().all(ready)).await?;
    world.publish(APP, "1.0.0", 2, 10_000, &["tell=frames_per_second:25", "tell=cameras:4"]).await?;
    world.roll_out(APP, "1.0.0").await?;
    let all: Vec<&str> = boxes().collect();
    world.until_done("the release runs", APP, &all, Duration::from_secs(300)).await?;
    sleep(Duration::from_secs(90)).await; // it has told enough to compare with
    Ok(())
}

fn boxes() -> impl Iterator<Item = &'static str> {
    SITES.iter().flat_map(|(_, nodes)| nodes.iter().copied())
}

/// One box first, then the others; each by what its workload tells.
fn gated(version: &str, change: impl FnOnce(&mut MetricRule)) -> anyhow::Result<RolloutSpec> {
    let mut spec = RolloutSpec::new(format!("{APP}@{version}").parse().map_err(anyhow::Error::msg)?, Selector::all());
    let wave = |count| Wave { count, soak: Span::from_secs(20), ..Wave::default() };
    spec.waves = vec![wave(Some(1)), wave(None)];
    let mut rule = MetricRule { min_samples: 30, ..MetricRule::new(METRIC.parse()?) };
    change(&mut rule);
    spec.gate.metrics = vec![rule];
    spec.gate.inconclusive_after = Span::from_secs(120);
    Ok(spec)
}

/// The box of the first wave, and how it stands.
async fn canary(world: &World, version: &str) -> anyhow::Result<(String, RolloutNode)> {
    let status = world.rollout(APP, version).await?.status;
    let found = status.nodes.into_iter().find(|(_, entry)| entry.wave == Some(0));
    found.map(|(name, entry)| (name.to_string(), entry)).context("nobody is in the first wave")
}

/// How many boxes run a version.
fn running(world: &World, version: &str) -> anyhow::Result<usize> {
    let mut count = 0;
    for node in boxes() {
        count += usize::from(world.running(node, APP)?.is_some_and(|runs| runs.as_str() == version));
    }
    Ok(count)
}

/// Waits until a rollout stands there; meanwhile no more than one box may run it.
async fn until(world: &World, version: &str, phase: RolloutPhase, patience: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(patience);
    loop {
        let status = world.rollout(APP, version).await?.status;
        if status.phase == phase {
            return Ok(());
        }
        ensure!(running(world, version)? <= 1, "{version} went beyond the first wave: {status:?}");
        ensure!(Instant::now() < deadline, "the rollout of {version} is not {phase}: {status:?}");
        sleep(STEP).await; // one look to the next
    }
}

/// A release at less than two thirds of the speed of before runs on one box, and goes back from there.
pub(super) async fn slow_release(world: &mut World) -> anyhow::Result<Vec<String>> {
    fleet(world).await?;
    world.publish(APP, "2.0.0", 2, 10_000, &["tell=frames_per_second:15", "tell=cameras:4"]).await?;
    world.publish(APP, "2.0.1", 2, 10_000, &["tell=frames_per_second:25", "tell=cameras:4"]).await?;
    let mut spec = gated("2.0.0", |rule| (rule.min, rule.min_percent_of_before) = (Some(10.0), Some(90)))?;
    (spec.on_failure, spec.rollback_to) = (OnFailure::RollBack, Some("2.0.1".parse()?));
    world.roll_out_so(spec).await?;
    until(world, "2.0.0", RolloutPhase::RolledBack, 300).await?;
    let (canary, entry) = canary(world, "2.0.0").await?;
    let says = entry.message.starts_with("frames_per_second 15 (mean of ")
        && entry.message.contains("), 60 % of 25 before (mean of ");
    ensure!(entry.phase == UpdatePhase::Failed && says, "{canary}: {entry:?}");
    let wave = world.rollout(APP, "2.0.0").await?.status.waves.into_iter().next().context("it has no waves")?;
    ensure!(wave.phase == WavePhase::Failed, "{wave:?}");
    world.until_done("the canary has gone back", APP, &[&canary], Duration::from_secs(60)).await?;
    let (slow, back, before) = (running(world, "2.0.0")?, running(world, "2.0.1")?, running(world, "1.0.0")?);
    ensure!((slow, back, before) == (0, 1, 3), "{slow} run it still, {back} went back, {before} never saw it");
    world.check()?;
    Ok(vec![format!("{canary}: {}", entry.message)])
}

/// A release that tells too little is waited for, pauses, and goes on once it has told enough.
pub(super) async fn silent_release(world: &mut World) -> anyhow::Result<Vec<String>> {
    fleet(world).await?;
    let args = ["tell=frames_per_second:25", "tell=cameras:4", "tell-every=20"];
    world.publish(APP, "2.0.0", 2, 10_000, &args).await?;
    world.roll_out_so(gated("2.0.0", |rule| rule.min = Some(20.0))?).await?;
    until(world, "2.0.0", RolloutPhase::Paused, 300).await?;
    let status = world.rollout(APP, "2.0.0").await?.status;
    ensure!(status.reason == "Inconclusive", "{status:?}");
    let (_, entry) = canary(world, "2.0.0").await?;
    let waits = entry.message.ends_with(" of 30 samples of frames_per_second") && entry.reason == reason::METRICS;
    ensure!(waits && entry.phase == UpdatePhase::Succeeded, "{entry:?}");
    ensure!(running(world, "2.0.0")? == 1 && running(world, "1.0.0")? == 3, "it went on without evidence");
    // Ten minutes of it are enough.
    let deadline = Instant::now() + Duration::from_secs(1800);
    while running(world, "2.0.0")? < 4 {
        ensure!(Instant::now() < deadline, "it does not go on: {:?}", world.rollout(APP, "2.0.0").await?.status);
        sleep(STEP).await; // one look to the next
    }
    world.until_rollout(APP, "2.0.0", RolloutPhase::Succeeded, Duration::from_secs(1800)).await?;
    world.check()?;
    Ok(vec![format!("it waited with {}, and went on when they were in", entry.message)])
}

/// What ran before is compared with, although the box loses its power in the trial and the agent is killed after it.
pub(super) async fn before_survives(world: &mut World) -> anyhow::Result<Vec<String>> {
    fleet(world).await?;
    world.publish(APP, "2.0.0", 2, 10_000, &["tell=frames_per_second:15", "tell=cameras:4"]).await?;
    world.roll_out_so(gated("2.0.0", |rule| rule.min_percent_of_before = Some(90))?).await?;
    let deadline = Instant::now() + Duration::from_secs(300);
    let (mut cut, mut killed) = (false, false);
    loop {
        sleep(STEP).await; // one look to the next
        let status = world.rollout(APP, "2.0.0").await?.status;
        if status.phase == RolloutPhase::Paused {
            break;
        }
        ensure!(Instant::now() < deadline, "nothing was compared: {status:?}");
        let Ok((canary, entry)) = canary(world, "2.0.0").await else { continue };
        if !cut && entry.phase == UpdatePhase::Verifying {
            cut = true;
            let fault = Fault::PowerCut { target: Target::Node(canary.parse()?) };
            world.begin(&fault).await?;
            sleep(Duration::from_secs(5)).await; // without power
            world.heal(&fault).await?;
        } else if cut && !killed && entry.phase == UpdatePhase::Succeeded {
            killed = true;
            world.crash_agent(&canary).await?;
            world.start_agent(&canary).await?;
        }
    }
    ensure!(cut && killed, "nothing was broken: {cut} {killed}");
    let status = world.rollout(APP, "2.0.0").await?.status;
    let (canary, entry) = canary(world, "2.0.0").await?;
    ensure!(status.reason == "GateFailed" && entry.phase == UpdatePhase::Failed, "{status:?}");
    ensure!(entry.message.contains(" 60 % of 25 before (mean of "), "{canary}: {entry:?}");
    ensure!(running(world, "2.0.0")? == 1, "it went beyond the first wave");
    world.check()?;
    Ok(vec![format!("{canary}, through a power cut and a crash: {}", entry.message)])
}

/// A camera whose plug is pulled is a condition of its node and an event; it clears.
pub(super) async fn camera_lost(world: &mut World) -> anyhow::Result<Vec<String>> {
    fleet(world).await?;
    let lost = |node: &Node| -> Option<Condition> {
        node.status.conditions.iter().find(|c| c.r#type == condition::CAMERAS_LOST).cloned()
    };
    let so = |node: &Node, status| lost(node).is_some_and(|condition| condition.status == status);
    let (patience, sound) = (Duration::from_secs(60), ConditionStatus::False);
    world.until_nodes(patience, "all cameras are there", |all| all.values().all(|node| so(node, sound))).await?;
    // A loose plug is nobody's business.
    world.lose_cameras("box-2", 1)?;
    sleep(Duration::from_secs(8)).await; // less than it takes to count
    world.lose_cameras("box-2", 0)?;
    world.lose_cameras("box-1", 1)?;
    let alone = |all: &std::collections::BTreeMap<String, Node>| {
        all.iter().all(|(name, node)| so(node, ConditionStatus::True) == (name == "box-1"))
    };
    world.until_nodes(patience, "box-1 has lost a camera", alone).await?;
    let condition = world.nodes().await?.get("box-1").and_then(lost).context("it is gone")?;
    ensure!(condition.message.starts_with("line-watch has lost 1 of its cameras"), "{condition:?}");
    world.lose_cameras("box-1", 0)?;
    world.until_nodes(patience, "it is there again", |all| all.values().all(|node| so(node, sound))).await?;
    let deadline = Instant::now() + patience;
    loop {
        let events = world.hub()?.store().list::<EventSpec>(None).await?.items;
        let of = |reason: &str| events.iter().filter(|e| e.spec.reason == reason).map(|e| e.spec.count).sum::<u32>();
        let told = (of("CamerasLost"), of("CamerasThere"));
        if told == (1, 1) {
            break;
        }
        ensure!(told <= (1, 1) && Instant::now() < deadline, "events: lost, and there again: {told:?}");
        sleep(STEP).await; // one look to the next
    }
    world.check()?;
    Ok(vec![condition.message])
}
