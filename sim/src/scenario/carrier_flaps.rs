//! A firewall takes UDP away from a box and gives it back, over and over, and the broker is killed, in the middle of
//! an upgrade and while records are handed in (row 22: the carrier flaps during work).
//!
//! Nothing is done twice and nothing lost: every record is at the hub once, the release runs, and its bytes
//! did not come again with each change.

use std::time::Duration;

use anyhow::ensure;
use proto::object::{NodePhase, RolloutPhase};
use rand::RngExt as _;
use tokio::time::{Instant, sleep};

use crate::world::World;

const APP: &str = "scan-counter";
const NODES: [&str; 2] = ["box-1", "box-2"];
const VICTIM: &str = "box-1";
const FILES: usize = 8;
const FILE_BYTES: usize = 700_000;
const CHANGES: usize = 6;
const RECORDS: usize = 20;

pub(super) async fn play(world: &mut World) -> anyhow::Result<Vec<String>> {
    let mut choice = world.seed("carrier_flaps").stream("choices");
    let broker = world.add_broker("broker");
    world.start_hub().await?;
    for node in NODES {
        world.join(node, "hz-01").await?;
    }
    world.block_udp(VICTIM, true);
    for node in NODES {
        world.start_agent(node).await?;
    }
    let ready = |node: &proto::object::Node| node.status.phase == NodePhase::Ready;
    world.until_nodes(Duration::from_secs(60), "all nodes are Ready", |nodes| nodes.values().all(ready)).await?;
    until_over(world, VICTIM, "mqtt").await?;
    until_over(world, "box-2", "udp").await?;

    world.publish(APP, "1.0.0", FILES, FILE_BYTES, &[]).await?;
    world.narrow(VICTIM, 300_000);
    world.roll_out(APP, "1.0.0").await?;
    let mut handed_in = 0;
    for turn in 0..CHANGES {
        let blocked = turn % 2 == 1;
        world.block_udp(VICTIM, blocked);
        handed_in += world.produce(VICTIM, "scans", RECORDS, 5).await?;
        if turn == 3 {
            world.set_broker_down(broker, true);
            sleep(Duration::from_secs(choice.random_range(2..8))).await; // how long it is away
            world.set_broker_down(broker, false);
        }
        if blocked {
            until_over(world, VICTIM, "mqtt").await?;
        }
        sleep(Duration::from_millis(choice.random_range(500..9_000))).await; // until the next change
    }
    world.block_udp(VICTIM, false);
    world.until_done("the release runs", APP, &NODES, Duration::from_secs(300)).await?;
    world.until_rollout(APP, "1.0.0", RolloutPhase::Succeeded, Duration::from_secs(30)).await?;
    until_over(world, VICTIM, "udp").await?;
    let deadline = Instant::now() + Duration::from_secs(120);
    for number in 0..handed_in as u64 {
        while !world.is_durable(VICTIM, "scans", number)? {
            ensure!(Instant::now() < deadline, "record {number} of {handed_in} is not at the hub");
            sleep(Duration::from_millis(50)).await; // one look to the next
        }
    }
    world.check()?;
    Ok(vec![
        format!("UDP was taken and given {CHANGES} times, and the broker killed once"),
        format!("{handed_in} records arrived, 2 of 2 boxes run the release, the link is back on UDP"),
    ])
}

async fn until_over(world: &mut World, node: &str, carrier: &str) -> anyhow::Result<()> {
    let over = |node: &proto::object::Node| node.status.carriers.iter().any(|c| c.name == carrier && c.in_use);
    let what = format!("{node} goes over {carrier}");
    world.until_nodes(Duration::from_secs(400), &what, |nodes| nodes.get(node).is_some_and(over)).await
}
