//! What a plan says of who may run what.

use std::{collections::BTreeMap, time::Duration};

use proto::{
    name::{Name, Version},
    object::RolloutPhase,
    selector::Selector,
};

use crate::{
    fault::{Fault, Target},
    plan::{Action, Moment, Plan, Release},
};

/// A box of the plan.
#[derive(Debug)]
struct Member {
    site: Name,
    labels: BTreeMap<String, String>,
}

/// A rollout of the plan.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) app: Name,
    pub(super) version: Version,
    pub(super) bad: bool,
    pub(super) nodes: Vec<Name>,
    /// It cannot have begun before.
    pub(super) earliest: Duration,
    /// What it must come to; otherwise what its release and its followers imply.
    pub(super) expected: Option<RolloutPhase>,
    pub(super) key: String,
}

/// The plan, as the oracle asks it.
#[derive(Debug)]
pub(super) struct Fleet {
    members: BTreeMap<Name, Member>,
    releases: BTreeMap<(Name, Version), Release>,
    /// In the order of the timeline.
    pub(super) rollouts: Vec<Planned>,
    pub(super) up_within: Duration,
}

/// Time after an agent's start in which workloads must run, where the plan says nothing.
const UP_WITHIN: Duration = Duration::from_secs(30);

impl Fleet {
    pub(super) fn new(plan: &Plan) -> Fleet {
        let mut members = BTreeMap::new();
        for site in &plan.sites {
            for node in &site.nodes {
                members.insert(node.clone(), Member { site: site.name.clone(), labels: site.labels.clone() });
            }
        }
        let releases: BTreeMap<_, _> =
            plan.releases.iter().map(|r| ((r.app.clone(), r.version.clone()), r.clone())).collect();
        let up_within = plan.expect.up_without_hub_within.unwrap_or(UP_WITHIN);
        let mut fleet = Fleet { members, releases, rollouts: vec![], up_within };
        for entry in &plan.timeline {
            if let Action::Rollout { app, version, to } = &entry.action {
                let key = format!("{app}@{version}");
                let earliest = if let Moment::At(at) = entry.moment { at } else { Duration::ZERO };
                fleet.rollouts.push(Planned {
                    nodes: fleet.members.keys().filter(|node| fleet.selects(to, node)).cloned().collect(),
                    bad: fleet.release(app, version).is_some_and(|r| r.bad),
                    expected: plan.expect.rollouts.get(&key).copied(),
                    app: app.clone(),
                    version: version.clone(),
                    earliest,
                    key,
                });
            }
        }
        fleet
    }

    fn selects(&self, selector: &Selector, node: &Name) -> bool {
        self.members.get(node).is_some_and(|member| {
            selector.matches_with(|key| match key {
                "name" => Some(node.as_str()),
                "site" => Some(member.site.as_str()),
                _ => member.labels.get(key).map(String::as_str),
            })
        })
    }

    pub(super) fn release(&self, app: &Name, version: &Version) -> Option<&Release> {
        self.releases.get(&(app.clone(), version.clone()))
    }

    pub(super) fn is_bad(&self, app: &Name, version: &Version) -> bool {
        self.release(app, version).is_some_and(|release| release.bad)
    }

    /// Whether some good release of an app ends by itself now and then.
    pub(super) fn ends_by_itself(&self, app: &Name) -> bool {
        let ends = |release: &Release| !release.bad && release.args.iter().any(|arg| arg.starts_with("crash-after"));
        self.releases.values().any(|release| &release.app == app && ends(release))
    }

    /// The rollouts of an app that name a node, in their order.
    pub(super) fn naming<'a>(&'a self, node: &'a Name, app: &'a Name) -> impl DoubleEndedIterator<Item = &'a Planned> {
        self.rollouts.iter().filter(move |r| &r.app == app && r.nodes.contains(node))
    }

    /// Whether any rollout brings this version to a node.
    pub(super) fn may_run(&self, node: &Name, app: &Name, version: &Version) -> bool {
        self.naming(node, app).any(|rollout| &rollout.version == version)
    }

    /// Whether another version may be on its way to a node by now.
    pub(super) fn may_change(&self, node: &Name, app: &Name, version: &Version, now: Duration) -> bool {
        self.naming(node, app).any(|rollout| &rollout.version != version && rollout.earliest <= now)
    }

    /// Whether versions of an app only rise in the order of their rollouts to a node: otherwise the operator
    /// asks for an older one on purpose.
    pub(super) fn only_rises(&self, node: &Name, app: &Name) -> bool {
        let versions: Vec<_> = self.naming(node, app).map(|rollout| (rollout.earliest, &rollout.version)).collect();
        let mut by_time = versions.clone();
        by_time.sort();
        by_time.iter().zip(by_time.iter().skip(1)).all(|(a, b)| a.1 <= b.1)
    }

    pub(super) fn apps(&self) -> Vec<&Name> {
        let mut apps: Vec<&Name> = self.rollouts.iter().map(|rollout| &rollout.app).collect();
        apps.sort();
        apps.dedup();
        apps
    }

    /// The boxes that a fault strikes.
    pub(super) fn struck(&self, fault: &Fault) -> Vec<Name> {
        let of_site =
            |site: &Name| self.members.iter().filter(|(_, m)| &m.site == site).map(|(n, _)| n.clone()).collect();
        match fault.target() {
            Target::All => self.members.keys().cloned().collect(),
            Target::Hub => vec![],
            Target::Site(site) => of_site(site),
            Target::Node(node) => vec![node.clone()],
        }
    }
}
