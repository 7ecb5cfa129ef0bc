//! The loop around the planner: follow the store, plan, carry the steps out. Run by `crate::hub`.
//!
//! Steps are idempotent writes, so it does not matter how often a plan is carried out or where a crash
//! interrupts it: the next round plans from what is.

use std::{collections::BTreeMap, time::Duration};

use proto::{
    name::{Name, ReleaseName},
    object::{EventType, Kind, Node, NodeSpec, Object, ReleaseSpec, Rollout, RolloutPhase, RolloutSpec, RolloutStatus},
    watch,
};

use super::{Snapshot, Step, plan};
use crate::{
    events,
    hub::Hub,
    link::list_and_watch,
    store::{StoreError, Watch, WatchEvent},
};

/// Changes that arrive within this time are planned for together.
const GATHER: Duration = Duration::from_millis(20);

/// Plans and acts until `stop`.
pub(crate) async fn run(hub: Hub, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        if let Err(error) = follow(&hub, &mut stop).await {
            tracing::error!(%error, "rollouts could not be driven; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// All objects of a kind, kept up to date, by a key that each makes of its name.
struct Mirror<S: Kind + PartialEq, K> {
    items: BTreeMap<K, Object<S>>,
    key: fn(&str) -> Option<K>,
    watch: Watch<S>,
}

impl<S: Kind + PartialEq, K: Ord> Mirror<S, K> {
    async fn new(hub: &Hub, key: fn(&str) -> Option<K>) -> Result<Mirror<S, K>, StoreError> {
        let (list, watch) = list_and_watch::<S>(hub).await?;
        let items = list.items.into_iter().filter_map(|object| Some((key(object.name())?, object))).collect();
        Ok(Mirror { items, key, watch })
    }

    /// Takes the next change; `false` when it fell behind. Cancel safe.
    async fn next(&mut self) -> bool {
        match self.watch.next().await {
            Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                if let Some(key) = (self.key)(object.name()) {
                    self.items.insert(key, object);
                }
                true
            }
            Some(WatchEvent::Deleted(object)) => {
                if let Some(key) = (self.key)(object.name()) {
                    self.items.remove(&key);
                }
                true
            }
            None => false,
        }
    }
}

/// Returns when a mirror fell behind: then everything is read anew.
async fn follow(hub: &Hub, stop: &mut watch::Receiver<bool>) -> Result<(), StoreError> {
    // Rollouts first: what one of them names was there before it, so the later lists have it. The other
    // way round a rollout could fail for ever because of a node that joined in between.
    let text = |name: &str| Some(name.to_owned());
    let mut rollouts = Mirror::<RolloutSpec, String>::new(hub, text).await?;
    let mut releases = Mirror::<ReleaseSpec, String>::new(hub, text).await?;
    let mut nodes = Mirror::<NodeSpec, Name>::new(hub, |name| name.parse().ok()).await?;
    loop {
        if rollouts.items.values().any(|r| !r.status.phase.is_final()) {
            // Nodes are many: they are lent, not copied.
            let snapshot = snapshot(std::mem::take(&mut nodes.items), &rollouts.items, &releases.items);
            let steps = plan(&snapshot, hub.env().wall.now());
            nodes.items = snapshot.nodes;
            if !steps.is_empty() {
                carry_out(hub, steps, &rollouts.items).await?;
            }
        }
        let gather = tokio::time::sleep(GATHER);
        tokio::pin!(gather);
        let mut woken = false;
        // Wait for a change, then for what comes right behind it. Every arm is cancel safe.
        loop {
            let whole = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
                whole = rollouts.next() => whole,
                whole = nodes.next() => whole,
                whole = releases.next() => whole,
                () = &mut gather, if woken => break,
            };
            if !whole {
                return Ok(());
            }
            woken = true;
        }
    }
}

fn snapshot(
    nodes: BTreeMap<Name, Node>,
    rollouts: &BTreeMap<String, Rollout>,
    releases: &BTreeMap<String, Object<ReleaseSpec>>,
) -> Snapshot {
    let release =
        |r: &Object<ReleaseSpec>| (ReleaseName { app: r.spec.app.clone(), version: r.spec.version.clone() }, r.clone());
    Snapshot {
        nodes,
        rollouts: rollouts.values().cloned().collect(),
        releases: releases.values().map(release).collect(),
    }
}

/// What the hub knows at this moment, for [`super::validate`] before a rollout is created.
///
/// # Errors
/// When the store fails.
pub async fn current(hub: &Hub) -> Result<Snapshot, StoreError> {
    let nodes = hub.store().list::<NodeSpec>(None).await?.items;
    let nodes = nodes.into_iter().filter_map(|node| Some((node.name().parse().ok()?, node))).collect();
    let releases = hub.store().list::<ReleaseSpec>(None).await?.items;
    let releases = releases.into_iter().map(|o| (o.name().to_owned(), o)).collect();
    Ok(snapshot(nodes, &BTreeMap::new(), &releases))
}

/// Assignments first, in one transaction for each app and release; then the rollouts.
async fn carry_out(hub: &Hub, steps: Vec<Step>, known: &BTreeMap<String, Rollout>) -> Result<(), StoreError> {
    let mut apps = BTreeMap::new();
    let mut statuses = vec![];
    for step in steps {
        match step {
            Step::SetApp { node, app, assigned } => {
                apps.entry(node.to_string()).or_insert_with(Vec::new).push((app, assigned));
            }
            Step::SetRolloutStatus { rollout, uid, status } => statuses.push((rollout, uid, status)),
        }
    }
    if !apps.is_empty() {
        let names = apps.keys().cloned().collect();
        let set = move |node: &mut Node| {
            let wanted = apps.get(node.name()).cloned().unwrap_or_default();
            node.spec.apps.extend(wanted);
        };
        hub.store().modify_many(names, set).await?;
    }
    for (rollout, uid, status) in statuses {
        let before = known.get(&rollout).map(|r| r.status.phase);
        write_status(hub, &rollout, uid, status.clone()).await?;
        tell(hub, &rollout, before, &status).await;
    }
    Ok(())
}

async fn write_status(hub: &Hub, rollout: &str, uid: String, status: RolloutStatus) -> Result<(), StoreError> {
    let set = move |rollout: &mut Rollout| {
        // Deleted and created again meanwhile: the next round plans for the new one.
        if rollout.metadata.uid == uid && !rollout.status.phase.is_final() {
            rollout.status = status.clone();
        }
    };
    hub.store().modify(rollout, set).await.map(drop)
}

async fn tell(hub: &Hub, rollout: &str, before: Option<RolloutPhase>, status: &RolloutStatus) {
    if before == Some(status.phase) {
        return;
    }
    let weight = match status.phase {
        RolloutPhase::Failed | RolloutPhase::Paused => EventType::Warning,
        _ => EventType::Normal,
    };
    let (reason, message) = (status.phase.as_str(), status.message.as_str());
    events::record(hub.store(), hub.env(), "Rollout", rollout, weight, reason, message, "hub").await;
}
