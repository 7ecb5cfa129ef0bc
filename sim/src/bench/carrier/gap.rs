//! A hub and an agent as processes, UDP between them through a relay: the relay goes silent in the middle of a
//! download, and the transfer goes on through the broker.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use cloudcore::stage::{self, PATIENCE, relay::Relay};
use proto::object::Node;
use tokio::time::{Instant, sleep};

use super::super::{
    fixture::{APP, Fixture},
    process,
};

const NODE: &str = "box-1";
const RELEASE_BYTES: usize = 48 << 20;
/// What the hub gives the node, so that the download lasts; one look at it, and what it must bring to count.
const RATE: u64 = 6_000_000;
const LOOK: Duration = Duration::from_millis(10);
const FLOWS_BYTES: u64 = 10_000;
/// Of the download: there before UDP goes silent, and watched after it.
const BEFORE_BYTES: u64 = 8 << 20;
const AFTER_BYTES: u64 = 16 << 20;

/// The longest time in which nothing came, from the moment at which UDP went silent.
pub(super) async fn gap(broker: SocketAddr) -> anyhow::Result<Duration> {
    let mut fixture = Fixture::open(stage::programs().await?).await?;
    let gap = measure(&mut fixture, broker).await.with_context(|| fixture.last_lines(NODE))?;
    fixture.stage.close().await?;
    Ok(gap)
}

async fn measure(fixture: &mut Fixture, broker: SocketAddr) -> anyhow::Result<Duration> {
    fixture.stage.kill_hub().await?;
    let yaml = fixture.stage.path("hub/hub.yaml");
    let more = format!("brokers: [{{url: 'mqtt://{broker}'}}]\nbulkBytesPerSNode: {RATE}\n");
    fs::write(&yaml, fs::read_to_string(&yaml)? + &more)?;
    fixture.stage.start_hub().await?;
    let link = fixture.stage.link_address()?.parse().context("the hub's link address")?;
    let relay = Relay::start((Ipv4Addr::LOCALHOST, 0).into(), link).await?;
    let (token, hub, url) = (fixture.token(1).await?, relay.address.to_string(), format!("mqtt://{broker}"));
    let join = ["join", &hub, "--token", &token, "--name", NODE, "--data", NODE, "--broker", &url];
    fixture.stage.run("edgecore", &join).await?;
    fixture.stage.start_agent(NODE)?;
    fixture.publish("1.0.0", RELEASE_BYTES).await?;
    fixture.start_rollout("1.0.0").await?;
    let is_fetched = |nodes: &BTreeMap<String, Node>| {
        let node = nodes.get(NODE).ok_or("the node is gone")?;
        let app = node.status.workloads.iter().find(|(name, _)| name.as_str() == APP);
        let done = app.and_then(|(_, status)| status.progress).map_or(0, |progress| progress.done_bytes);
        if done >= BEFORE_BYTES { Ok(()) } else { Err(format!("{done} bytes are fetched")) }
    };
    fixture.api.follow(PATIENCE, is_fetched).await?;
    ensure!(relay.counts.get().0 > BEFORE_BYTES, "the agent found the hub without the relay");
    drop(relay);
    longest_silence().await
}

async fn longest_silence() -> anyhow::Result<Duration> {
    let began = Instant::now();
    let first = process::loopback_bytes()?;
    let (mut seen, mut at, mut longest) = (first, began, Duration::ZERO);
    // Through the broker each byte passes the loopback twice.
    while seen - first < 2 * AFTER_BYTES {
        ensure!(began.elapsed() < PATIENCE, "only {} bytes came after UDP went silent", seen - first);
        sleep(LOOK).await; // one look to the next
        let now = process::loopback_bytes()?;
        if now > seen + FLOWS_BYTES {
            longest = longest.max(at.elapsed());
            at = Instant::now();
        }
        seen = now;
    }
    Ok(longest)
}
