//! Which rollout a node belongs to, for each app: the newest that names it.

use std::collections::{BTreeMap, BTreeSet};

use proto::{
    name::Name,
    object::{RolloutNode, RolloutPhase},
    selector::Selector,
};

use super::{Snapshot, draft::Draft};

/// Rollouts of each app, newest first, with what a claim needs.
#[derive(Debug)]
pub(super) struct Claims<'a> {
    apps: BTreeMap<&'a Name, Vec<Claim<'a>>>,
    snapshot: &'a Snapshot,
}

#[derive(Debug)]
struct Claim<'a> {
    rollout: &'a str,
    /// It keeps only what it touched.
    over: bool,
    members: Members<'a>,
}

/// Those that were there before this plan, and those that came in with it.
#[derive(Debug)]
struct Members<'a> {
    known: &'a BTreeMap<Name, RolloutNode>,
    fresh: BTreeSet<&'a Name>,
}

impl<'a> Claims<'a> {
    pub fn new(oldest_first: &[Draft<'a>], snapshot: &'a Snapshot) -> Claims<'a> {
        let mut apps: BTreeMap<&Name, Vec<Claim<'_>>> = BTreeMap::new();
        for draft in oldest_first.iter().rev().filter(|draft| draft.rollout.spec.version.is_some()) {
            use RolloutPhase::{Aborted, Failed, RolledBack, Superseded};
            let over = matches!(draft.status().phase, Aborted | Failed | RolledBack | Superseded);
            let members = Members { known: &draft.rollout.status.nodes, fresh: draft.fresh.clone() };
            let claim = Claim { rollout: draft.rollout.name(), over, members };
            apps.entry(&draft.rollout.spec.app).or_default().push(claim);
        }
        Claims { apps, snapshot }
    }

    /// The newer rollout that took a node from `rollout`.
    pub fn taken_by(&self, app: &Name, node: &Name, rollout: &str) -> Option<&'a str> {
        let newest_first = self.apps.get(app)?;
        let newer = newest_first.iter().take_while(|claim| claim.rollout != rollout);
        newer.into_iter().find(|claim| self.holds(claim, app, node)).map(|claim| claim.rollout)
    }

    fn holds(&self, claim: &Claim<'_>, app: &Name, node: &Name) -> bool {
        if !claim.members.known.contains_key(node) && !claim.members.fresh.contains(node) {
            return false;
        }
        let touched = || {
            let assigned = self.snapshot.nodes.get(node).and_then(|node| node.spec.apps.get(app));
            assigned.is_some_and(|assigned| assigned.rollout.as_deref() == Some(claim.rollout))
        };
        !claim.over || touched()
    }
}

/// Whether a newer rollout of the same app takes everybody that `draft` could still take in.
pub(super) fn is_shadowed(draft: &Draft<'_>, snapshot: &Snapshot) -> bool {
    let mine = draft.rollout;
    snapshot.rollouts.values().any(|other| {
        let all = other.spec.selector == Selector::all() || other.spec.selector == mine.spec.selector;
        let goes_on = matches!(
            other.status.phase,
            RolloutPhase::Succeeded | RolloutPhase::Progressing | RolloutPhase::Paused | RolloutPhase::Pending
        );
        other.spec.app == mine.spec.app
            && other.spec.version.is_some()
            && super::age(other) > super::age(mine)
            && all
            && goes_on
            && other.spec.undoes.is_none()
    })
}
