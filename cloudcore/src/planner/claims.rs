//! Which rollout a node belongs to, for each app: the newest that names it. Restarts are apart: the newest of them
//! is carried out.

use std::collections::{BTreeMap, BTreeSet};

use proto::{
    name::Name,
    object::{Rollout, RolloutNode, RolloutPhase, RolloutSpec},
    selector::Selector,
};

use super::{Snapshot, draft::Draft};

/// Rollouts of each subject, newest first, with what a claim needs.
#[derive(Debug)]
pub(super) struct Claims<'a> {
    subjects: BTreeMap<Subject<'a>, Vec<Claim<'a>>>,
    snapshot: &'a Snapshot,
}

/// What rollouts take from each other: which release of an app, when it starts again, when the node does.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject<'a> {
    Release(&'a Name),
    Restart(&'a Name),
    Reboot,
}

impl<'a> Subject<'a> {
    fn of(spec: &'a RolloutSpec) -> Subject<'a> {
        match &spec.version {
            Some(_) => Subject::Release(&spec.app),
            None if spec.reboot => Subject::Reboot,
            None => Subject::Restart(&spec.app),
        }
    }
}

#[derive(Debug)]
struct Claim<'a> {
    rollout: &'a Rollout,
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
        let mut subjects: BTreeMap<Subject<'_>, Vec<Claim<'_>>> = BTreeMap::new();
        for draft in oldest_first.iter().rev() {
            use RolloutPhase::{Aborted, Failed, RolledBack, Superseded};
            let over = matches!(draft.status().phase, Aborted | Failed | RolledBack | Superseded);
            let members = Members { known: &draft.rollout.status.nodes, fresh: draft.fresh.clone() };
            let claim = Claim { rollout: draft.rollout, over, members };
            subjects.entry(Subject::of(&draft.rollout.spec)).or_default().push(claim);
        }
        Claims { subjects, snapshot }
    }

    /// The newer rollout that took a node from `rollout`.
    pub fn taken_by(&self, node: &Name, rollout: &Rollout) -> Option<&'a str> {
        let newest_first = self.subjects.get(&Subject::of(&rollout.spec))?;
        let mut newer = newest_first.iter().take_while(|claim| claim.rollout.name() != rollout.name());
        newer.find(|claim| self.holds(claim, node)).map(|claim| claim.rollout.name())
    }

    fn holds(&self, claim: &Claim<'_>, node: &Name) -> bool {
        // Of who chooses nodes those are, too, that it did not choose.
        let chooses = !claim.over && claim.rollout.spec.placement.is_some();
        let selects = || self.snapshot.nodes.get(node).is_some_and(|it| it.matches(&claim.rollout.spec.selector));
        if chooses && selects() {
            return true;
        }
        if !claim.members.known.contains_key(node) && !claim.members.fresh.contains(node) {
            return false;
        }
        let touched = || {
            let node = self.snapshot.nodes.get(node)?;
            let (spec, assigned) = (&claim.rollout.spec, node.spec.apps.get(&claim.rollout.spec.app));
            match Subject::of(spec) {
                Subject::Release(_) => assigned?.rollout.as_deref(),
                Subject::Restart(_) => assigned?.order.restart.as_deref(),
                Subject::Reboot => node.spec.reboot.as_deref(),
            }
        };
        !claim.over || touched() == Some(claim.rollout.name())
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
