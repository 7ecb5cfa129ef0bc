//! What a plan says of who may run what.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proto::{
    name::{Name, Version},
    object::RolloutPhase,
};

use crate::plan::{Action, Plan, Release, selects};

/// A rollout of the plan.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) app: Name,
    pub(super) version: Version,
    pub(super) bad: bool,
    pub(super) nodes: BTreeSet<Name>,
    /// Its place among those that have begun.
    pub(super) began: Option<usize>,
    /// What it must come to; otherwise what its release and its followers imply.
    pub(super) expected: Option<RolloutPhase>,
    pub(super) key: String,
}

/// The plan, as the oracle asks it.
#[derive(Debug)]
pub(super) struct Fleet {
    releases: BTreeMap<(Name, Version), Release>,
    /// In the order of the timeline.
    pub(super) rollouts: Vec<Planned>,
    pub(super) up_within: Duration,
}

/// Time after an agent's start in which workloads must run, where the plan says nothing.
const UP_WITHIN: Duration = Duration::from_secs(30);

impl Fleet {
    pub(super) fn new(plan: &Plan) -> Fleet {
        let boxes = || plan.sites.iter().flat_map(|site| site.nodes.iter().map(move |node| (site, node)));
        let releases: BTreeMap<_, _> =
            plan.releases.iter().map(|r| ((r.app.clone(), r.version.clone()), r.clone())).collect();
        let up_within = plan.expect.up_without_hub_within.unwrap_or(UP_WITHIN);
        let mut fleet = Fleet { releases, rollouts: vec![], up_within };
        for entry in &plan.timeline {
            if let Action::Rollout { app, version, to } = &entry.action {
                let key = format!("{app}@{version}");
                fleet.rollouts.push(Planned {
                    nodes: boxes()
                        .filter(|(site, node)| selects(to, site, node))
                        .map(|(_, node)| node.clone())
                        .collect(),
                    bad: fleet.release(app, version).is_some_and(|r| r.bad),
                    expected: plan.expect.rollouts.get(&key).copied(),
                    app: app.clone(),
                    version: version.clone(),
                    began: None,
                    key,
                });
            }
        }
        fleet
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

    /// A rollout begins now.
    pub(super) fn rollout_began(&mut self, app: &Name, version: &Version) {
        let place = self.rollouts.iter().filter(|r| r.began.is_some()).count();
        let next = self.rollouts.iter_mut().find(|r| (&r.app, &r.version, r.began) == (app, version, None));
        if let Some(rollout) = next {
            rollout.began = Some(place);
        }
    }

    /// The rollouts of an app that name a node and have begun, the last one first.
    pub(super) fn begun<'a>(&'a self, node: &Name, app: &Name) -> Vec<&'a Planned> {
        let begun = |r: &&Planned| r.began.is_some() && &r.app == app && r.nodes.contains(node);
        let mut begun: Vec<&Planned> = self.rollouts.iter().filter(begun).collect();
        begun.sort_by_key(|r| Reverse(r.began));
        begun
    }

    /// Whether any rollout has brought this version to a node.
    pub(super) fn may_run(&self, node: &Name, app: &Name, version: &Version) -> bool {
        self.begun(node, app).iter().any(|rollout| &rollout.version == version)
    }

    /// Versions that came to a node after this one, and may still be on their way.
    pub(super) fn after<'a>(
        &'a self,
        node: &Name,
        app: &Name,
        version: &'a Version,
    ) -> impl Iterator<Item = &'a Version> {
        self.begun(node, app).into_iter().map(|rollout| &rollout.version).take_while(move |later| *later != version)
    }

    /// Whether versions of an app only rose in the order of their rollouts to a node: otherwise the operator asks
    /// for an older one on purpose.
    pub(super) fn only_rises(&self, node: &Name, app: &Name) -> bool {
        self.begun(node, app).is_sorted_by(|later, earlier| later.version >= earlier.version)
    }

    pub(super) fn apps(&self) -> Vec<&Name> {
        let mut apps: Vec<&Name> = self.rollouts.iter().map(|rollout| &rollout.app).collect();
        apps.sort();
        apps.dedup();
        apps
    }
}
