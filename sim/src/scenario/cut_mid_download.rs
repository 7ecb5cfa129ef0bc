//! The line of one of three nodes is cut in the middle of a download, and mended.
//!
//! It must be in the middle, counted in bytes that arrived. The other two do not wait. After the line is
//! mended the node goes on where it was: what it had verified is not sent again.

use std::time::Duration;

use anyhow::ensure;
use proto::object::{NodePhase, RolloutPhase, UpdatePhase};
use rand::RngExt as _;
use tokio::time::{Instant, sleep};

use crate::world::World;

const APP: &str = "scan-counter";
const NODES: [&str; 3] = ["box-1", "box-2", "box-3"];
const VICTIM: &str = "box-2";
const FILES: usize = 8;
const FILE_BYTES: usize = 700_000;
const RELEASE_BYTES: u64 = (FILES * FILE_BYTES) as u64;
/// Chunks that may have been half-way: one for each transfer that an agent runs at a time.
const UNFINISHED_BYTES: u64 = 4 * proto::link::CHUNK_BYTES as u64;

pub(super) async fn play(world: &mut World) -> anyhow::Result<Vec<String>> {
    let mut choice = world.seed("cut_mid_download").stream("choices");
    let cut_at = RELEASE_BYTES * choice.random_range(20..=70) / 100;
    let outage = Duration::from_millis(choice.random_range(500..=120_000));

    world.start_hub().await?;
    for node in NODES {
        world.join(node, "hz-01").await?;
        world.start_agent(node).await?;
    }
    let ready = |node: &proto::object::Node| node.status.phase == NodePhase::Ready;
    world.until_nodes(Duration::from_secs(30), "all nodes are Ready", |nodes| nodes.values().all(ready)).await?;

    world.publish(APP, "1.0.0", FILES, FILE_BYTES, &[]).await?;
    let before = world.arrived_at(VICTIM);
    world.roll_out(APP, "1.0.0").await?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while world.arrived_at(VICTIM) - before < cut_at {
        ensure!(Instant::now() < deadline, "the download did not come to its middle within 60 s");
        sleep(Duration::from_millis(5)).await;
    }
    world.cut(VICTIM, true);
    sleep(Duration::from_millis(500)).await; // what was on the way arrives
    let middle = world.arrived_at(VICTIM) - before;
    let percent = middle * 100 / RELEASE_BYTES;
    ensure!((15..=85).contains(&percent), "the cut came at {percent} % of the download: not in its middle");
    let phase = world.phase(VICTIM, APP).await?;
    ensure!(phase != Some(UpdatePhase::Succeeded), "the node says that it is done with {percent} %");

    sleep(outage).await;
    ensure!(world.arrived_at(VICTIM) - before == middle, "something passed a line that is cut");
    world.until_done("the others are done", APP, &["box-1", "box-3"], Duration::from_secs(60)).await?;

    let mended = Instant::now();
    world.cut(VICTIM, false);
    world.until_done("all are done", APP, &NODES, Duration::from_secs(120)).await?;
    let recovery = mended.elapsed();
    world.until_rollout(APP, "1.0.0", RolloutPhase::Succeeded, Duration::from_secs(10)).await?;

    // Headers, metadata, reports: a tenth of the content and some is plenty.
    let after = world.arrived_at(VICTIM) - before - middle;
    let expected = RELEASE_BYTES.saturating_sub(middle);
    let most = expected + UNFINISHED_BYTES + RELEASE_BYTES / 10 + 100_000;
    ensure!(after <= most, "{after} bytes came after the cut where {expected} were missing: verified bytes came again");
    world.check()?;
    Ok(vec![
        format!("the line was cut at {percent} % of {RELEASE_BYTES} bytes, for {:.1} s", outage.as_secs_f64()),
        format!("then {after} bytes came where {expected} were missing; a fresh start would be {RELEASE_BYTES}"),
        format!("3 of 3 nodes healthy {:.1} s after the line was mended", recovery.as_secs_f64()),
    ])
}
