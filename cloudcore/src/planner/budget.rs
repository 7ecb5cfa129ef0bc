//! Whether one more node may be unavailable. Nodes that are down already count, whatever the reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proto::{
    name::Name,
    object::{
        AssignedApp, Node, NodePhase, Resources, RolloutNode, WorkloadStatus,
        rollout::{Budget, reason},
    },
};

use super::{Snapshot, node};

/// Names told of those who use a budget up.
const NAMES_TOLD: usize = 3;

/// Nodes that are unavailable, or may be at any moment: silent, not ready, or told to apply something.
#[derive(Debug)]
pub(super) struct Busy<'a> {
    before: &'a BTreeSet<Name>,
    /// By this plan.
    told: BTreeSet<&'a Name>,
    /// They may be available, and count as if they were not: a rollout that takes another one back begins with them at
    /// once, or this plan tells them to wait with what they were at.
    reserved: BTreeSet<&'a Name>,
    /// Node and app of which this plan says something already: whoever else has to, does so in the next.
    spoken: BTreeMap<(&'a Name, &'a Name), Spoken>,
    /// What apps ask of nodes that this plan gives them to.
    given: BTreeMap<&'a Name, BTreeMap<&'a Name, Resources>>,
}

/// What a plan says of an app to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoken {
    /// The older rollout lets go of it; the newer one may go on.
    LetGo,
    /// What it is to run.
    Release,
    /// That it is to start again.
    Restart,
}

impl<'a> Busy<'a> {
    pub fn new(before: &'a BTreeSet<Name>) -> Busy<'a> {
        Busy {
            before,
            told: BTreeSet::new(),
            reserved: BTreeSet::new(),
            spoken: BTreeMap::new(),
            given: BTreeMap::new(),
        }
    }

    /// A node was told to apply something.
    pub fn add(&mut self, node: &'a Name) {
        self.told.insert(node);
    }

    /// A node counts as unavailable, and nobody else begins on it for that.
    pub fn reserve(&mut self, node: &'a Name) {
        self.reserved.insert(node);
    }

    /// A node is told something of an app.
    pub fn speak(&mut self, node: &'a Name, app: &'a Name, what: Spoken) {
        self.spoken.insert((node, app), what);
    }

    /// What this plan has told a node of an app.
    pub fn spoken(&self, node: &'a Name, app: &'a Name) -> Option<Spoken> {
        self.spoken.get(&(node, app)).copied()
    }

    /// A node is given an app, which asks for that much of it.
    pub fn give(&mut self, node: &'a Name, app: &'a Name, asks: Resources) {
        let held = self.given.entry(node).or_default().entry(app).or_default();
        *held = held.max(asks);
    }

    /// What apps ask of a node that this plan gives it.
    pub fn given(&self, node: &Name) -> BTreeMap<&'a Name, Resources> {
        self.given.get(node).cloned().unwrap_or_default()
    }

    /// Whether this plan makes anybody count otherwise than before.
    pub fn disturbs(&self) -> bool {
        !self.told.is_empty() || !self.reserved.is_empty()
    }

    fn contains(&self, node: &Name) -> bool {
        self.before.contains(node) || self.told.contains(node)
    }

    fn reserves(&self, node: &Name) -> bool {
        self.reserved.contains(node) && !self.told.contains(node)
    }
}

/// The nodes that are unavailable.
pub(super) fn unavailable(snapshot: &Snapshot) -> BTreeSet<Name> {
    snapshot.nodes.iter().filter(|(_, node)| is_unavailable(node)).map(|(name, _)| name.clone()).collect()
}

pub(super) fn is_unavailable(node: &Node) -> bool {
    match node.status.phase {
        NodePhase::Unknown | NodePhase::NotReady => true,
        NodePhase::Pending => false, // it never was there to be missed
        NodePhase::Ready => node.spec.drained || is_applying(node) || node::is_rebooting(node),
    }
}

/// Whether a node may stop one of its apps at any moment because it was told to.
fn is_applying(node: &Node) -> bool {
    let mut workloads = node.status.workloads.iter().peekable();
    node.spec.apps.iter().any(|(app, assigned)| {
        while workloads.next_if(|(name, _)| *name < app).is_some() {}
        let said = workloads.next_if(|(name, _)| *name == app).map(|(_, said)| said);
        may_disturb(assigned, said)
    })
}

/// Whether what a node was told of an app may stop it at any moment.
pub(super) fn may_disturb(assigned: &AssignedApp, said: Option<&WorkloadStatus>) -> bool {
    is_restarting(assigned, said) || !assigned.order.hold && is_unsettled(assigned, said)
}

/// Whether an app is still to start again, which does not wait for the word.
fn is_restarting(assigned: &AssignedApp, said: Option<&WorkloadStatus>) -> bool {
    assigned.order.restart.is_some() && said.is_some_and(|said| said.restarted != assigned.order.restart)
}

/// Whether an app is still to do what it was told.
fn is_unsettled(assigned: &AssignedApp, said: Option<&WorkloadStatus>) -> bool {
    let Some(said) = said else { return true };
    let settled = said.phase.is_decided();
    // It was to go elsewhere, and is told to stay with what runs.
    let stays = said.running.as_ref().is_some_and(|running| running.release.digest == assigned.digest);
    if stays && said.target.as_ref().is_some_and(|target| target.digest != assigned.digest) {
        return false;
    }
    let same = said.target.as_ref().is_some_and(|target| target.digest == assigned.digest);
    !(same && settled) || assigned.order.retry.is_some() && said.retried != assigned.order.retry
}

/// The groups of a rollout's nodes.
#[derive(Debug)]
pub(super) struct Groups<'a> {
    budget: &'a Budget,
    groups: BTreeMap<&'a str, Group<'a>>,
}

#[derive(Debug, Default)]
struct Group<'a> {
    size: usize,
    unavailable: BTreeSet<&'a Name>,
    /// Those of them that are available still.
    reserved: BTreeSet<&'a Name>,
    /// Why nobody gets a place any more: nobody gives one back within a pass.
    refusal: Option<Arc<str>>,
}

impl<'a> Groups<'a> {
    pub fn new(
        budget: &'a Budget,
        members: &BTreeMap<Name, RolloutNode>,
        snapshot: &'a Snapshot,
        busy: &Busy<'a>,
    ) -> Groups<'a> {
        let mut groups: BTreeMap<&str, Group<'_>> = BTreeMap::new();
        let mut nodes = snapshot.nodes.iter().peekable();
        for name in members.keys() {
            while nodes.next_if(|(node, _)| *node < name).is_some() {}
            let Some((name, node)) = nodes.next_if(|(node, _)| *node == name) else { continue };
            if node.status.phase == NodePhase::Pending {
                continue;
            }
            let group = groups.entry(group_of(budget, node)).or_default();
            group.size += 1;
            if busy.contains(name) {
                group.unavailable.insert(name);
            }
            if busy.reserves(name) {
                group.unavailable.insert(name);
                group.reserved.insert(name);
            }
        }
        Groups { budget, groups }
    }

    /// Takes a place for a node; otherwise says who has them.
    pub fn take(&mut self, name: &'a Name, node: &'a Node) -> Result<(), Arc<str>> {
        let key = group_of(self.budget, node);
        let group = self.groups.entry(key).or_default();
        let most = self.budget.max_unavailable.of(group.size.max(1));
        let is_down = group.unavailable.contains(name) && !group.reserved.contains(name);
        if is_down || group.unavailable.len() < most {
            group.unavailable.insert(name);
            return Ok(());
        }
        if let Some(refusal) = &group.refusal {
            return Err(refusal.clone());
        }
        let mut names: Vec<&str> = group.unavailable.iter().take(NAMES_TOLD).map(|n| n.as_str()).collect();
        if group.unavailable.len() > NAMES_TOLD {
            names.push("...");
        }
        let whose = match self.budget.per.as_str() {
            Budget::SITE => format!("site {key}"),
            Budget::FLEET => "the fleet".into(),
            label => format!("{label}={key}"),
        };
        let refusal = format!(
            "of the {} nodes of {whose} at most {most} may be unavailable, and {} are: {}",
            group.size,
            group.unavailable.len(),
            names.join(", ")
        );
        Err(group.refusal.insert(refusal.into()).clone())
    }

    /// The word for it.
    pub const REASON: &'static str = reason::BUDGET;
}

/// The group of a node. Those without the label are one, too.
fn group_of<'a>(budget: &Budget, node: &'a Node) -> &'a str {
    match budget.per.as_str() {
        Budget::SITE => node.spec.site.as_str(),
        Budget::FLEET => "",
        label => node.metadata.labels.get(label).map_or("", String::as_str),
    }
}
