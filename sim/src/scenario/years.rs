//! Most of a year goes by: certificates and metadata end, keys change, a box is away through all of it, one is lost.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use proto::{
    name::Name,
    object::{Admission, ConditionStatus, Event, EventSpec, EventType, Node, NodePhase, condition},
};
use tokio::time::Instant;

use crate::world::World;

const APP: &str = "scan-counter";
const NODES: [&str; 3] = ["box-1", "box-2", "box-3"];
const AWAY: &str = "box-3";
const LOST: &str = "box-2";
const PATIENCE: Duration = Duration::from_secs(1800);
/// A revoked node is out within this.
const OUT_WITHIN: Duration = Duration::from_secs(1);

/// Withheld metadata is an event of the node, which webhooks and the bus carry as every other.
async fn tell_of_it(world: &World, nodes: &[&str]) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        let events = world.hub()?.store().list::<EventSpec>(None).await?.items;
        let is_told = |node: &str| {
            let of = |e: &Event| e.spec.involved_name == node && e.spec.r#type == EventType::Warning;
            events
                .iter()
                .any(|e| of(e) && e.spec.reason == "Freeze" && e.spec.message.contains(condition::METADATA_STALE))
        };
        if nodes.iter().all(|node| is_told(node)) {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "no event says that metadata is withheld");
        tokio::time::sleep(Duration::from_secs(1)).await; // one look to the next
    }
}

pub(super) async fn play(world: &mut World) -> anyhow::Result<Vec<String>> {
    world.start_hub().await?;
    for node in NODES {
        world.join(node, "hz-01").await?;
        world.start_agent(node).await?;
    }
    let ready = |node: &Node| node.status.phase == NodePhase::Ready;
    world.until_nodes(Duration::from_secs(60), "all nodes are Ready", |nodes| nodes.values().all(ready)).await?;
    world.publish(APP, "1.0.0", 2, 10_000, &[]).await?;
    world.roll_out(APP, "1.0.0").await?;
    world.until_done("the release runs", APP, &NODES, PATIENCE).await?;
    let joined = world.nodes().await?;
    world.crash_agent(AWAY).await?;

    // Nobody publishes for three months: past the end of the pipeline's signatures, and half of a certificate's life.
    world.pass_days(95);
    let there = ["box-1", "box-2"];
    let stale = |node: &Node| {
        let found = node.status.conditions.iter().find(|c| c.r#type == condition::METADATA_STALE);
        found.is_some_and(|c| c.status == ConditionStatus::True && c.message.contains("release timestamp"))
    };
    world
        .until_nodes(PATIENCE, "the boxes say that metadata is withheld", |nodes| {
            there.iter().all(|name| nodes.get(*name).is_some_and(stale))
        })
        .await?;
    tell_of_it(world, &there).await?;
    for node in there {
        let runs = world.running(node, APP)?;
        ensure!(runs.is_some_and(|version| version.to_string() == "1.0.0"), "{node} runs no more");
    }
    world.crash_hub().await;
    world.start_hub().await?;
    let renewed = |node: &Node| {
        let before = joined.get(node.name()).and_then(|node| node.status.identity.clone());
        let now = node.status.identity.clone();
        before.zip(now).is_some_and(|(before, now)| now.not_after > before.not_after && now.spki != before.spki)
    };
    world
        .until_nodes(PATIENCE, "certificates are renewed at half of their life", |nodes| {
            there.iter().all(|name| nodes.get(*name).is_some_and(renewed))
        })
        .await?;

    // Two rotations while one box is away: another root key, then another targets key.
    let [new_root, new_targets] = ["root 2", "targets 2"].map(|role| world.key(role));
    let (old_root, old_targets) = (world.key("root"), world.key("targets"));
    world.rotate(&old_root, &new_root, &[old_root.clone(), new_root.clone()]).await?;
    world.rotate(&old_targets, &new_targets, &[new_root.clone(), new_targets.clone()]).await?;
    world.publish_signed(APP, "1.1.0", &new_targets).await?;
    world.roll_out(APP, "1.1.0").await?;
    world.until_done("the release under the new keys runs", APP, &there, PATIENCE).await?;
    world
        .until_nodes(PATIENCE, "the metadata is fresh again", |nodes| {
            there.iter().all(|name| nodes.get(*name).is_some_and(|node| !stale(node)))
        })
        .await?;

    // A lost box is out at once; what it runs it keeps.
    let lost: Name = LOST.parse()?;
    let begin = Instant::now();
    world.hub()?.set_admission(&lost, Admission::Revoked).await?.context("there is no such node")?;
    while world.is_connected(LOST)? {
        ensure!(begin.elapsed() < OUT_WITHIN, "{LOST} is revoked and has a session");
        tokio::time::sleep(Duration::from_millis(10)).await; // one look to the next
    }
    ensure!(world.running(LOST, APP)?.is_some(), "what a revoked box runs was stopped");

    // The box that was away comes back past the end of its certificate, with the roots of long ago.
    world.pass_days(250);
    world.publish_signed(APP, "1.2.0", &new_targets).await?;
    world.roll_out(APP, "1.2.0").await?;
    world.start_agent(AWAY).await?;
    world.until_nodes(PATIENCE, "the box is back by its old key", |nodes| nodes.get(AWAY).is_some_and(renewed)).await?;
    world.until_done("it runs what is current", APP, &["box-1", AWAY], PATIENCE).await?;
    ensure!(!world.is_connected(LOST)?, "a revoked box came back");
    world.check()?;
    Ok(vec![
        "two certificates were renewed at half of their life, one by its old key after its end".into(),
        "withheld metadata was told, as an event too, and stopped nothing".into(),
        "a box that was away walked two rotations of the root".into(),
        "a revoked box was out within a second".into(),
    ])
}
