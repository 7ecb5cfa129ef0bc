//! What agents tell by themselves: events become objects at the hub once, whatever fails meanwhile, and
//! metrics arrive.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use cloudcore::streams::sink::{Query, Row};
use proto::{
    object::{EventSpec, UpdatePhase},
    stream::event::{EventRecord, STREAM},
};
use rand::RngExt as _;
use tokio::time::{Instant, sleep};

use crate::world::World;

const APP: &str = "scan-counter";
const BOX: &str = "box-1";
/// Time in which everything that waits must arrive once nothing is broken any more.
const HEALED: Duration = Duration::from_secs(120);

/// A good release, then a bad one, while hub, line and agent fail.
pub(super) async fn once(world: &mut World) -> anyhow::Result<Vec<String>> {
    let mut choice = world.seed("events_once").stream("choices");
    world.start_hub().await?;
    world.join(BOX, "hz-01").await?;
    world.settings(BOX, "metrics-interval = \"30s\"\n")?;
    world.start_agent(BOX).await?;
    world.publish(APP, "1.0.0", 2, 100_000, &[]).await?;
    world.roll_out(APP, "1.0.0").await?;
    world.until_done("the good release runs", APP, &[BOX], Duration::from_secs(60)).await?;

    world.publish(APP, "2.0.0", 2, 100_000, &["crash-after=2s"]).await?;
    world.roll_out(APP, "2.0.0").await?;
    sleep(Duration::from_millis(choice.random_range(0..4_000))).await; // the moment of the fault
    world.cut(BOX, true);
    world.crash_agent(BOX).await?;
    world.start_agent(BOX).await?;
    sleep(Duration::from_millis(choice.random_range(10_000..90_000))).await; // it goes on by itself
    world.crash_hub().await;
    world.cut(BOX, false);
    world.start_hub().await?;
    sleep(Duration::from_millis(choice.random_range(0..4_000))).await; // in the middle of what comes back
    world.crash_hub().await;
    world.start_hub().await?;
    let deadline = Instant::now() + HEALED;
    while world.phase(BOX, APP).await? != Some(UpdatePhase::RolledBack) {
        ensure!(Instant::now() < deadline, "the bad release was not taken back within {HEALED:?}");
        sleep(Duration::from_millis(500)).await;
    }
    let reasons = loop {
        let (records, objects) = (records(world).await?, objects(world).await?);
        if records == objects && objects.contains_key("RolledBack") {
            break objects;
        }
        ensure!(Instant::now() < deadline + HEALED, "records {records:?} and objects {objects:?} differ");
        sleep(Duration::from_millis(500)).await;
    };
    for (reason, count) in [("AgentStarted", 2), ("Confirmed", 1), ("Installing", 2), ("RolledBack", 1)] {
        ensure!(reasons.get(reason) == Some(&count), "{reason} is to be there {count} times: {reasons:?}");
    }
    let metrics = rows(world, "metrics").await?;
    ensure!(metrics.iter().any(|row| contains(row, "\"workload\"")), "no workload was measured");
    Ok(vec![format!("{reasons:?}, {} metrics", metrics.len())])
}

fn contains(row: &Row, text: &str) -> bool {
    String::from_utf8_lossy(&row.bytes).contains(text)
}

async fn rows(world: &World, stream: &str) -> anyhow::Result<Vec<Row>> {
    let stream = stream.parse()?;
    let query = Query { stream, node: None, site: None, from: None, to: None, after: None, limit: 10_000 };
    Ok(world.hub()?.streams().sink().query(&query).await?.rows)
}

/// How often each reason stands in the stream.
async fn records(world: &World) -> anyhow::Result<BTreeMap<String, u32>> {
    let mut reasons = BTreeMap::new();
    for row in rows(world, STREAM).await? {
        let event = EventRecord::read(&row.bytes).context("a record that is no event")?;
        *reasons.entry(event.reason).or_default() += 1;
    }
    Ok(reasons)
}

/// How often each reason is counted in the objects of the box.
async fn objects(world: &World) -> anyhow::Result<BTreeMap<String, u32>> {
    let mut reasons = BTreeMap::new();
    for event in world.hub()?.store().list::<EventSpec>(None).await?.items {
        if event.spec.source == BOX {
            *reasons.entry(event.spec.reason).or_default() += event.spec.count;
        }
    }
    Ok(reasons)
}
