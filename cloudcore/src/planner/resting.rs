//! The planner between two plans: which apps need no pass, since nothing that theirs depends on has changed.
//!
//! It makes planning cheap and decides nothing: forgetting all of it costs one long plan. What a rollout does depends
//! on its own app alone, but for two things: whether another app makes a node unavailable, of which a budget asks, and what
//! other apps ask of a node, which matters to who waits for room on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use jiff::Timestamp;
use proto::{
    name::{Name, ReleaseName},
    object::{Node, NodePhase, Release, Rollout, Site, WorkloadStatus},
};

use super::{Due, Plan, Snapshot, budget, node, pass::Asks, plan_due, room};

/// A snapshot as it changes, and what is known to be at rest in it.
#[derive(Debug, Default)]
pub struct Planner {
    snapshot: Snapshot,
    /// Nodes that are unavailable.
    unavailable: BTreeSet<Name>,
    resting: BTreeMap<Name, Rest>,
}

/// An app whose last pass found nothing to do.
#[derive(Debug, Clone, Default)]
pub(super) struct Rest {
    /// When time alone makes something follow.
    pub wake: Option<Timestamp>,
    /// What else it depends on.
    pub asks: Asks,
}

impl Planner {
    /// Knows nothing yet of what is at rest.
    #[must_use]
    pub fn new(snapshot: Snapshot) -> Planner {
        let unavailable = budget::unavailable(&snapshot);
        Planner { snapshot, unavailable, resting: BTreeMap::new() }
    }

    /// What is.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// What to do next, as [`super::plan`] says it for all that may have changed.
    pub fn plan(&mut self, now: Timestamp) -> Plan {
        self.resting.retain(|_, rest| rest.wake.is_none_or(|wake| wake > now));
        let (resting, unavailable) = (&self.resting, &self.unavailable);
        let Due { mut plan, rests, disturbs, gives } =
            plan_due(&self.snapshot, now, unavailable, |app| !resting.contains_key(app));
        // Who waits for a budget looks at whom the others have begun with, who waits for room at what they begin.
        let looks = |rest: &Rest| disturbs && rest.asks.budget || gives && rest.asks.room;
        if resting.values().any(looks) {
            self.resting.retain(|_, rest| !looks(rest));
            return self.plan(now);
        }
        // Places that this plan keeps for somebody are free in the next, without a change that would tell.
        self.resting.extend(rests.into_iter().filter(|(_, rest)| !looks(rest)));
        for wake in self.resting.values().filter_map(|rest| rest.wake) {
            plan.wake_at(wake);
        }
        plan
    }

    /// A node is another now, or gone.
    pub fn set_node(&mut self, name: Name, node: Option<Node>) {
        let is_unavailable = node.as_ref().is_some_and(budget::is_unavailable);
        let was_unavailable = match is_unavailable {
            true => !self.unavailable.insert(name.clone()),
            false => self.unavailable.remove(&name),
        };
        if is_unavailable != was_unavailable {
            self.resting.retain(|_, rest| !rest.asks.budget);
        }
        let before = match &node {
            Some(node) => self.snapshot.nodes.insert(name, node.clone()),
            None => self.snapshot.nodes.remove(&name),
        };
        match (before, node) {
            (Some(before), Some(node)) if is_the_same_node(&before, &node) => {
                for app in changed_apps(&before, &node) {
                    self.resting.remove(app);
                }
                if !room::is_same(&before, &node) {
                    self.resting.retain(|_, rest| !rest.asks.room);
                }
            }
            (None, None) => {}
            _ => self.resting.clear(),
        }
    }

    /// A rollout is another now, or gone.
    pub fn set_rollout(&mut self, name: String, rollout: Option<Rollout>) {
        if rollout.as_ref().is_some_and(|rollout| rollout.spec.placement.is_some()) {
            self.resting.retain(|_, rest| !rest.asks.room); // what it chose counts
        }
        let app = |rollout: &Rollout| rollout.spec.app.clone();
        let now = rollout.as_ref().map(app);
        let before = match rollout {
            Some(rollout) => self.snapshot.rollouts.insert(name, rollout),
            None => self.snapshot.rollouts.remove(&name),
        };
        for app in before.as_ref().map(app).into_iter().chain(now) {
            self.resting.remove(&app);
        }
    }

    /// A site is another now, or gone.
    pub fn set_site(&mut self, name: String, site: Option<Site>) {
        match site {
            Some(site) => drop(self.snapshot.sites.insert(name, site)),
            None => drop(self.snapshot.sites.remove(&name)),
        }
        self.resting.clear();
    }

    /// A release is another now, or gone.
    pub fn set_release(&mut self, name: ReleaseName, release: Option<Release>) {
        self.resting.remove(&name.app);
        self.resting.retain(|_, rest| !rest.asks.room);
        match release {
            Some(release) => drop(self.snapshot.releases.insert(name, release)),
            None => drop(self.snapshot.releases.remove(&name)),
        }
    }
}

/// Whether a node differs in its apps at most, as far as rollouts look at it.
fn is_the_same_node(before: &Node, now: &Node) -> bool {
    let facts = |node: &Node| {
        let info = node.status.info.as_ref()?;
        Some((info.features.clone(), info.hardware.clone(), info.cpus, info.memory_bytes))
    };
    // The time of the last word is told of the silent alone.
    let silent_since = |node: &Node| (node.status.phase == NodePhase::Unknown).then_some(node.status.last_seen);
    before.metadata.labels == now.metadata.labels
        && before.spec.site == now.spec.site
        && (before.spec.cordoned, before.spec.drained) == (now.spec.cordoned, now.spec.drained)
        && before.spec.pinned == now.spec.pinned
        && (&before.spec.reboot, &before.status.reboot) == (&now.spec.reboot, &now.status.reboot)
        && before.status.phase == now.status.phase
        && silent_since(before) == silent_since(now)
        && facts(before) == facts(now)
        && before.spec.allocation == now.spec.allocation
        && before.spec.reserved_for == now.spec.reserved_for
        && node::cannot_keep(before) == node::cannot_keep(now)
}

/// Apps of which a node was told, or says, something else.
fn changed_apps<'a>(before: &'a Node, now: &'a Node) -> BTreeSet<&'a Name> {
    let mut changed = differing(&before.spec.apps, &now.spec.apps, PartialEq::eq);
    changed.append(&mut differing(&before.status.workloads, &now.status.workloads, says_the_same));
    changed
}

fn differing<'a, V>(
    before: &'a BTreeMap<Name, V>,
    now: &'a BTreeMap<Name, V>,
    same: fn(&V, &V) -> bool,
) -> BTreeSet<&'a Name> {
    let gone = before.keys().filter(|app| !now.contains_key(*app));
    let other = now.iter().filter(|(app, now)| !before.get(*app).is_some_and(|before| same(before, now)));
    other.map(|(app, _)| app).chain(gone).collect()
}

/// Whether a workload says the same to a rollout. How far a download is comes often, and is not asked for.
fn says_the_same(before: &WorkloadStatus, now: &WorkloadStatus) -> bool {
    let mut before = before.clone();
    (before.progress, before.since) = (now.progress, now.since);
    before == *now
}

/// Takes what rests of an app together; `None`: it does not rest.
pub(super) fn settle(rests: &mut BTreeMap<Name, Option<Rest>>, app: &Name, found: Option<Rest>) {
    match rests.get_mut(app) {
        None => drop(rests.insert(app.clone(), found)),
        Some(known) => {
            *known = mem::take(known).zip(found).map(|(a, b)| Rest {
                wake: [a.wake, b.wake].into_iter().flatten().min(),
                asks: Asks { budget: a.asks.budget || b.asks.budget, room: a.asks.room || b.asks.room },
            });
        }
    }
}
