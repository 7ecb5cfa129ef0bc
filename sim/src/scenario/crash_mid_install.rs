//! Hub, agent, both, or the whole box end at random moments of an upgrade.
//!
//! At every moment one of the two versions is to be had: a box that starts without a hub runs one of
//! them within 30 s. In the end the upgrade is done.

use std::time::Duration;

use anyhow::ensure;
use proto::object::RolloutPhase;
use rand::RngExt as _;
use tokio::time::{Instant, sleep};

use crate::world::World;

const APP: &str = "scan-counter";
const NODE: &str = "box-1";
/// An agent gives a release up after three trials that a crash interrupted.
const CRASHES: u32 = 2;
/// Download, switch and trial of the upgrade, undisturbed, take about this long.
const INSTALL_MS: u64 = 7_000;

pub(super) async fn play(world: &mut World) -> anyhow::Result<Vec<String>> {
    let mut choice = world.seed("crash_mid_install").stream("choices");
    world.start_hub().await?;
    world.join(NODE, "hz-01").await?;
    world.start_agent(NODE).await?;
    world.publish(APP, "1.0.0", 3, 400_000, &[]).await?;
    world.roll_out(APP, "1.0.0").await?;
    world.until_done("the first release runs", APP, &[NODE], Duration::from_secs(60)).await?;

    world.publish(APP, "2.0.0", 3, 400_000, &[]).await?;
    world.roll_out(APP, "2.0.0").await?;
    let (mut saw, begin) = (vec![], Instant::now());
    for _ in 0..CRASHES {
        let after = choice.random_range(0..INSTALL_MS);
        sleep(Duration::from_millis(after)).await; // the moment of the crash
        let what = match choice.random_range(0..4) {
            0 => agent_crashes(world).await?,
            1 => hub_crashes(world).await?,
            2 => both_crash(world).await?,
            _ => box_reboots_without_hub(world).await?,
        };
        saw.push(format!("{what} after {} ms", begin.elapsed().as_millis()));
        world.check()?;
    }
    world.until_done("the upgrade is done", APP, &[NODE], Duration::from_secs(180)).await?;
    world.until_rollout(APP, "2.0.0", RolloutPhase::Succeeded, Duration::from_secs(10)).await?;
    let version = world.running(NODE, APP)?;
    ensure!(version.as_ref().is_some_and(|v| v.as_str() == "2.0.0"), "the hub says 2.0.0, but {version:?} runs");
    saw.push("2.0.0 runs in the end".into());
    Ok(saw)
}

async fn agent_crashes(world: &mut World) -> anyhow::Result<&'static str> {
    world.crash_agent(NODE).await?;
    world.start_agent(NODE).await?;
    Ok("the agent crashed")
}

async fn hub_crashes(world: &mut World) -> anyhow::Result<&'static str> {
    world.crash_hub().await;
    world.start_hub().await?;
    Ok("the hub crashed")
}

async fn both_crash(world: &mut World) -> anyhow::Result<&'static str> {
    world.crash_hub().await;
    world.crash_agent(NODE).await?;
    world.start_agent(NODE).await?;
    world.start_hub().await?;
    Ok("hub and agent crashed")
}

async fn box_reboots_without_hub(world: &mut World) -> anyhow::Result<&'static str> {
    world.crash_hub().await;
    world.reboot(NODE).await?;
    world.until_running(NODE, APP, Duration::from_secs(30)).await?;
    world.start_hub().await?;
    Ok("the hub crashed and the box was turned off and on")
}
