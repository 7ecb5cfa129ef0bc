//! The hub comes back from a backup that is older than a node's last renewal: it knows the key of before alone.

use std::{fs, time::Duration};

use anyhow::{Context as _, ensure};
use proto::{
    digest::Digest,
    object::{Node, NodePhase},
};
use tokio::time::Instant;

use super::streams::copy_folder;
use crate::world::World;

const NODE: &str = "box-1";
const PATIENCE: Duration = Duration::from_secs(1800);
/// Past half of a certificate's life, and not past its end.
const DAYS: i64 = 100;

fn key(node: &Node) -> Option<Digest> {
    node.status.identity.as_ref().map(|identity| identity.spki)
}

pub(super) async fn play(world: &mut World) -> anyhow::Result<Vec<String>> {
    world.start_hub().await?;
    world.join(NODE, "hz-01").await?;
    world.start_agent(NODE).await?;
    let ready = |node: &Node| node.status.phase == NodePhase::Ready;
    world.until_nodes(PATIENCE, "the node is Ready", |nodes| nodes.get(NODE).is_some_and(ready)).await?;
    let joined = world.nodes().await?.get(NODE).and_then(key).context("the node has no key")?;

    world.crash_hub().await;
    let backup = world.hub_disk().with_extension("backup");
    copy_folder(&world.hub_disk(), &backup)?;
    world.pass_days(DAYS);
    world.start_hub().await?;
    let has_other = |node: &Node| {
        let pending = node.status.identity.as_ref().is_some_and(|identity| identity.next.is_some());
        ready(node) && !pending && key(node).is_some_and(|key| key != joined)
    };
    world.until_nodes(PATIENCE, "the node has renewed", |nodes| nodes.get(NODE).is_some_and(has_other)).await?;

    world.crash_hub().await;
    fs::remove_dir_all(world.hub_disk())?;
    copy_folder(&backup, &world.hub_disk())?;
    world.start_hub().await?;
    let known = world.nodes().await?.get(NODE).and_then(key);
    ensure!(known == Some(joined), "the backup was to know the first key, and knows {known:?}");
    // Asked by the same certificate, the agent may bring the same key; the hub knows but the first.
    world
        .until_nodes(PATIENCE, "the node got in by the key of before, and renewed again", |nodes| {
            nodes.get(NODE).is_some_and(has_other)
        })
        .await?;
    // It stays so when the agent starts anew, from what is on its disk.
    world.crash_agent(NODE).await?;
    world.start_agent(NODE).await?;
    let begin = Instant::now();
    while !world.is_connected(NODE)? {
        ensure!(begin.elapsed() < PATIENCE, "the node has no session by its newest key");
        tokio::time::sleep(Duration::from_secs(1)).await; // one look to the next
    }
    Ok(vec!["a hub from before a renewal let the key of then in, and had it renewed again".into()])
}
