//! The loop around the planner: follow the store, plan, carry the steps out. Run by `crate::hub`.
//!
//! Steps are idempotent writes, so it does not matter how often a plan is carried out or where a crash
//! interrupts it: the next round plans from what is.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use proto::{
    name::{Name, ReleaseName},
    object::{
        EventType, Kind, Node, NodeSpec, Object, Release, ReleaseSpec, Rollout, RolloutPhase, RolloutSpec,
        RolloutStatus, SiteSpec, rollout::WavePhase,
    },
    watch,
};
use tokio::time::{Instant, sleep};

use super::{Plan, Planner, Snapshot, Step, trim};
use crate::{
    events,
    hub::Hub,
    link::list_and_watch,
    store::{StoreError, Watch, WatchEvent},
};

/// How long the planner sleeps at most: the clock may be set meanwhile.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Changes that arrive within this time are planned for together.
const GATHER: Duration = Duration::from_millis(20);

/// Plans and acts until `stop`.
pub(crate) async fn run(hub: Hub, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        if let Err(error) = follow(&hub, &mut stop).await {
            tracing::error!(%error, "rollouts could not be driven; trying again");
            sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Follows the objects of a kind into the planner.
struct Mirror<S: Kind + PartialEq, K> {
    watch: Watch<S>,
    key: fn(&Object<S>) -> Option<K>,
    set: fn(&mut Planner, K, Option<Object<S>>),
}

impl<S: Kind + PartialEq, K: Ord> Mirror<S, K> {
    async fn new(
        hub: &Hub,
        items: &mut BTreeMap<K, Object<S>>,
        key: fn(&Object<S>) -> Option<K>,
        set: fn(&mut Planner, K, Option<Object<S>>),
    ) -> Result<Mirror<S, K>, StoreError> {
        let (list, watch) = list_and_watch::<S>(hub).await?;
        items.extend(list.items.into_iter().filter_map(|object| Some((key(&object)?, object))));
        Ok(Mirror { watch, key, set })
    }

    /// The next change; `None` when it fell behind. Cancel safe.
    async fn next(&mut self) -> Option<WatchEvent<S>> {
        self.watch.next().await
    }

    /// Returns whether there was a change to take.
    fn take(&self, planner: &mut Planner, event: Option<WatchEvent<S>>) -> bool {
        let Some(event) = event else { return false };
        if let Some(key) = (self.key)(event.object()) {
            let now = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => Some(object),
                WatchEvent::Deleted(_) => None,
            };
            (self.set)(planner, key, now);
        }
        true
    }
}

fn node_key(node: &Node) -> Option<Name> {
    node.name().parse().ok()
}

fn name_key<S: Kind + PartialEq>(object: &Object<S>) -> Option<String> {
    Some(object.name().to_owned())
}

fn release_key(release: &Release) -> Option<ReleaseName> {
    Some(ReleaseName { app: release.spec.app.clone(), version: release.spec.version.clone() })
}

/// Returns when a mirror fell behind: then everything is read anew.
async fn follow(hub: &Hub, stop: &mut watch::Receiver<bool>) -> Result<(), StoreError> {
    let mut now = Snapshot::default();
    // Rollouts first: what one of them names was there before it, so the later lists have it. The other
    // way round a rollout could fail for ever because of a node that joined in between.
    let mut rollouts = Mirror::new(hub, &mut now.rollouts, name_key::<RolloutSpec>, Planner::set_rollout).await?;
    let mut releases = Mirror::new(hub, &mut now.releases, release_key, Planner::set_release).await?;
    let mut sites = Mirror::new(hub, &mut now.sites, name_key::<SiteSpec>, Planner::set_site).await?;
    let mut nodes = Mirror::new(hub, &mut now.nodes, node_key, Planner::set_node).await?;
    let mut planner = Planner::new(now);
    let mut kept = 0;
    loop {
        let Plan { steps, wake } = planner.plan(hub.env().wall.now());
        if !steps.is_empty() {
            carry_out(hub, steps, &planner.snapshot().rollouts).await?;
        } else if planner.snapshot().rollouts.len() > kept {
            kept = trim(hub, planner.snapshot()).await?;
        }
        let gather = sleep(GATHER);
        let later = sleep(wake.map_or(LONGEST_WAIT, |wake| until(wake, hub.env().wall.now())));
        tokio::pin!(gather, later);
        let mut woken = false;
        // Wait for a change or the time, then for what comes right behind it. Every arm is cancel safe.
        loop {
            let whole = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
                event = rollouts.next() => rollouts.take(&mut planner, event),
                event = nodes.next() => nodes.take(&mut planner, event),
                event = sites.next() => sites.take(&mut planner, event),
                event = releases.next() => releases.take(&mut planner, event),
                () = &mut gather, if woken => break,
                () = &mut later, if !woken => break,
            };
            if !whole {
                return Ok(());
            }
            if !woken {
                gather.as_mut().reset(Instant::now() + GATHER);
                woken = true;
            }
        }
    }
}

/// The time until then, by a clock that may be set meanwhile: it is looked at again before long.
fn until(wake: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(wake.duration_since(now)).unwrap_or_default().min(LONGEST_WAIT)
}

/// What the hub knows at this moment, for [`super::check::validate`] before a rollout is created.
///
/// # Errors
/// When the store fails.
pub async fn current(hub: &Hub) -> Result<Snapshot, StoreError> {
    let store = hub.store();
    let (rollouts, releases) = (store.list::<RolloutSpec>(None).await?, store.list::<ReleaseSpec>(None).await?);
    let (sites, nodes) = (store.list::<SiteSpec>(None).await?, store.list::<NodeSpec>(None).await?);
    Ok(Snapshot {
        rollouts: rollouts.items.into_iter().filter_map(|o| Some((name_key(&o)?, o))).collect(),
        releases: releases.items.into_iter().filter_map(|o| Some((release_key(&o)?, o))).collect(),
        sites: sites.items.into_iter().filter_map(|o| Some((name_key(&o)?, o))).collect(),
        nodes: nodes.items.into_iter().filter_map(|o| Some((node_key(&o)?, o))).collect(),
    })
}

/// Forgets rollouts that are history; returns how many are left.
async fn trim(hub: &Hub, now: &Snapshot) -> Result<usize, StoreError> {
    let old = trim::superfluous(now, hub.config().rollouts.history_limit, hub.env().wall.now());
    for rollout in &old {
        tracing::info!(%rollout, "is history that nobody follows, and forgotten");
        hub.store().delete::<RolloutSpec>(rollout).await?;
    }
    Ok(now.rollouts.len() - old.len())
}

/// What is started comes first, for a rollout that says it is taken back is not looked at again. The rest is one
/// transaction: an assignment of which its rollout knows nothing could not be taken back.
async fn carry_out(hub: &Hub, steps: Vec<Step>, known: &BTreeMap<String, Rollout>) -> Result<(), StoreError> {
    let (mut apps, mut reboots) = (BTreeMap::new(), BTreeMap::new());
    let mut statuses: BTreeMap<String, (String, RolloutStatus)> = BTreeMap::new();
    for step in steps {
        match step {
            Step::SetApp { node, app, assigned } => {
                apps.entry(node.to_string()).or_insert_with(Vec::new).push((app, assigned));
            }
            Step::SetReboot { node, order } => drop(reboots.insert(node.to_string(), order)),
            Step::SetRolloutStatus { rollout, uid, status } => drop(statuses.insert(rollout, (uid, *status))),
            Step::Start(rollout) => match hub.store().create(*rollout).await {
                Ok(_) | Err(StoreError::AlreadyExists { .. }) => {}
                Err(error) => return Err(error),
            },
        }
    }
    let told = statuses.clone();
    let nodes: BTreeSet<String> = apps.keys().chain(reboots.keys()).cloned().collect();
    let (nodes, rollouts) = (nodes.into_iter().collect(), statuses.keys().cloned().collect());
    let assign = move |node: &mut Node| {
        for (app, assigned) in apps.get(node.name()).into_iter().flatten() {
            match assigned {
                Some(assigned) => drop(node.spec.apps.insert(app.clone(), assigned.clone())),
                None => drop(node.spec.apps.remove(app)),
            }
        }
        if let Some(order) = reboots.get(node.name()) {
            node.spec.reboot.clone_from(order);
        }
    };
    let write_down = move |rollout: &mut Rollout| {
        // Deleted and created again meanwhile: the next round plans for the new one.
        if let Some((uid, status)) = statuses.get(rollout.name())
            && rollout.metadata.uid == *uid
        {
            rollout.status = status.clone();
        }
    };
    hub.store().modify_both((nodes, assign), (rollouts, write_down)).await?;
    for (rollout, (_, status)) in &told {
        if let Some(known) = known.get(rollout) {
            tell(hub, known, status).await;
        }
    }
    Ok(())
}

/// Tells of every transition of a rollout and of its waves.
async fn tell(hub: &Hub, rollout: &Rollout, status: &RolloutStatus) {
    let what = rollout.spec.what();
    let digest = status.digest.map(|digest| format!(" ({digest})")).unwrap_or_default();
    let say = async |r#type, reason: &str, message: String| {
        events::record(hub.store(), hub.env(), "Rollout", rollout.name(), r#type, reason, &message, "hub").await;
    };
    for (index, wave) in status.waves.iter().enumerate() {
        let before = rollout.status.waves.get(index).map_or(WavePhase::Pending, |wave| wave.phase);
        if wave.phase == before {
            continue;
        }
        let r#type = match wave.phase {
            WavePhase::Failed | WavePhase::Inconclusive => EventType::Warning,
            _ => EventType::Normal,
        };
        say(r#type, &format!("Wave{}", wave.phase), format!("wave {} of {what}{digest}: {}", wave.name, wave.message))
            .await;
    }
    if rollout.status.phase != status.phase {
        let r#type = match status.phase {
            RolloutPhase::Failed | RolloutPhase::Paused | RolloutPhase::RollingBack => EventType::Warning,
            _ => EventType::Normal,
        };
        say(r#type, status.phase.as_str(), format!("{what}{digest}: {}", status.message)).await;
    }
}
