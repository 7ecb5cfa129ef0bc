//! Which rollouts are history that nobody asks for any more.
//!
//! Kept are: all that are not over; the newest of each app, up to a limit; whatever a node still follows; and both
//! halves of an undoing, as long as one of them is kept.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proto::{
    name::Name,
    object::{Node, Rollout},
};

use super::{Snapshot, age, draft::Draft, place::Picks};

/// The rollouts to forget, by name, when of each app's the newest `limit` that are over are kept.
#[must_use]
pub fn superfluous(snapshot: &Snapshot, limit: usize, now: Timestamp) -> Vec<String> {
    let mut over: BTreeMap<&Name, Vec<&Rollout>> = BTreeMap::new();
    for rollout in snapshot.rollouts.values().filter(|rollout| rollout.status.phase.is_final()) {
        over.entry(&rollout.spec.app).or_default().push(rollout);
    }
    if over.values().all(|rollouts| rollouts.len() <= limit) {
        return vec![];
    }
    let follows = |node: &Node| {
        let apps = node.spec.apps.values().flat_map(|told| [&told.rollout, &told.order.restart]);
        apps.chain([&node.spec.reboot]).flatten().cloned().collect::<Vec<String>>()
    };
    let followed: BTreeSet<String> = snapshot.nodes.values().flat_map(follows).collect();
    let mut old: BTreeSet<&str> = BTreeSet::new();
    for rollouts in over.values_mut() {
        rollouts.sort_by(|a, b| age(b).cmp(&age(a)));
        let older = rollouts.iter().skip(limit).filter(|rollout| !followed.contains(rollout.name()));
        old.extend(
            older
                .filter(|r| !Draft::new(r, snapshot, now, &mut Picks::default()).is_live())
                .map(|rollout| rollout.name()),
        );
    }
    let undoings: Vec<(&str, &str)> =
        snapshot.rollouts.values().filter_map(|r| Some((r.name(), r.spec.undoes.as_deref()?))).collect();
    while let Some((undo, undone)) = undoings
        .iter()
        .find(|(undo, undone)| snapshot.rollouts.contains_key(*undone) && old.contains(undo) != old.contains(undone))
    {
        old.remove(undo);
        old.remove(undone);
    }
    old.into_iter().map(str::to_owned).collect()
}
