//! What a plan says of who may run what.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proto::{
    name::{Name, Version},
    object::{Rollout, RolloutNode, RolloutPhase, UpdatePhase, rollout::reason},
};

use crate::{
    fault::Fault,
    plan::{Action, How, Plan, Release, selects},
};

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
    /// Its release may run on so many boxes.
    pub(super) touches: Option<u32>,
    pub(super) how: How,
    /// Whether people interfere with it.
    pub(super) steered: bool,
    /// See [`Fleet::loses_gpus`]: a box on which it is not ready any more while it soaks ends it.
    pub(super) loses_gpus: bool,
    pub(super) key: String,
}

impl Planned {
    /// Whether a rollout of which nobody said what it comes to may stand so in the end.
    pub(super) fn may_end_as(&self, phase: RolloutPhase, object: Option<&Rollout>) -> bool {
        use RolloutPhase::{Aborted, Failed, Paused, Progressing, RolledBack, Succeeded, Superseded};
        if self.steered || self.how.in_waves() {
            // A box that is turned off while its wave soaks may end it: somebody has to look.
            let by_gate = object.is_some_and(|object| object.status.reason == "GateFailed");
            // What there is to go back to was published later. A box without a disk or a state begins with that, and
            // refuses the release from then on; other waves wait for its own.
            let refuses = |node: &RolloutNode| node.phase == UpdatePhase::Blocked && node.reason == "Rollback";
            let is_held_by_refusal = |object: &Rollout| {
                let mut nodes = object.status.nodes.values();
                nodes.clone().any(refuses)
                    && nodes.all(|node| node.is_decided() || refuses(node) || node.reason == reason::WAVE)
            };
            return match phase {
                Progressing | Paused if self.how.rollback_to.is_some() && object.is_some_and(is_held_by_refusal) => {
                    true
                }
                Succeeded => !self.bad,
                Failed | RolledBack | Superseded => true,
                Aborted => self.steered,
                Paused => self.steered || by_gate,
                _ => false,
            };
        }
        // Paused, when a box came back after the others had failed, and so has not begun.
        let has_failed = matches!(phase, Failed | Paused) || phase == RolledBack && self.how.rollback_to.is_some();
        if self.bad {
            has_failed
        } else {
            let degraded = |node: &RolloutNode| node.phase != UpdatePhase::Failed || node.reason == reason::DEGRADED;
            let by_gpus = self.loses_gpus && object.is_some_and(|object| object.status.nodes.values().all(degraded));
            phase == Succeeded || has_failed && by_gpus
        }
    }

    /// Whether it does not ask of its nodes any more that they run its release.
    pub(super) fn has_given_up(&self, phase: RolloutPhase) -> bool {
        use RolloutPhase::{Aborted, Failed, Paused, RolledBack, RollingBack, Superseded};
        let ended = matches!(phase, Aborted | Failed | Paused | RolledBack | RollingBack | Superseded);
        let may_end = self.steered || self.how.in_waves() || self.loses_gpus;
        ended && (may_end || self.expected == Some(phase))
    }
}

/// The plan, as the oracle asks it.
#[derive(Debug)]
pub(super) struct Fleet {
    releases: BTreeMap<(Name, Version), Release>,
    /// In the order of the timeline.
    pub(super) rollouts: Vec<Planned>,
    labels: BTreeMap<Name, BTreeMap<String, String>>,
    pub(super) up_within: Duration,
    gpus_fail: bool,
}

/// Time after an agent's start in which workloads must run, where the plan says nothing.
const UP_WITHIN: Duration = Duration::from_secs(30);

impl Fleet {
    pub(super) fn new(plan: &Plan) -> Fleet {
        let boxes = || plan.sites.iter().flat_map(|site| site.nodes.iter().map(move |node| (site, node)));
        let releases: BTreeMap<_, _> =
            plan.releases.iter().map(|r| ((r.app.clone(), r.version.clone()), r.clone())).collect();
        let up_within = plan.expect.up_without_hub_within.unwrap_or(UP_WITHIN);
        let labels = boxes().map(|(site, node)| (node.clone(), site.labels.clone())).collect();
        let gpus_fail = plan.timeline.iter().any(|entry| {
            matches!(&entry.action, Action::Break { fault: Fault::GpuLost { .. } | Fault::GpuSick { .. }, .. })
        });
        let mut fleet = Fleet { releases, rollouts: vec![], labels, up_within, gpus_fail };
        for entry in &plan.timeline {
            if let Action::Rollout { app, version, to, how } = &entry.action {
                let key = format!("{app}@{version}");
                fleet.rollouts.push(Planned {
                    nodes: boxes()
                        .filter(|(site, node)| selects(to, site, node))
                        .map(|(_, node)| node.clone())
                        .collect(),
                    bad: fleet.release(app, version).is_some_and(|r| r.bad),
                    expected: plan.expect.rollouts.get(&key).copied(),
                    touches: plan.expect.touched.get(&key).copied(),
                    how: (**how).clone(),
                    steered: plan.timeline.iter().any(|entry| {
                        matches!(entry.action, Action::Steer { .. }) && entry.action.release() == Some((app, version))
                    }),
                    loses_gpus: fleet.loses_gpus(app, version),
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

    /// Whether a release needs GPUs, and some fail.
    pub(super) fn loses_gpus(&self, app: &Name, version: &Version) -> bool {
        self.gpus_fail && self.release(app, version).is_some_and(|release| release.gpus.is_some())
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
        let brings =
            |rollout: &&Planned| &rollout.version == version || rollout.how.rollback_to.as_ref() == Some(version);
        self.begun(node, app).iter().any(brings)
    }

    /// Versions that came to a node after this one, and may still be on their way.
    pub(super) fn after<'a>(
        &'a self,
        node: &Name,
        app: &Name,
        version: &'a Version,
    ) -> impl Iterator<Item = &'a Version> {
        let begun = self.begun(node, app);
        let back = begun.iter().find_map(|rollout| rollout.how.rollback_to.as_ref()).filter(|back| *back != version);
        begun.into_iter().map(|rollout| &rollout.version).take_while(move |later| *later != version).chain(back)
    }

    /// A label of a box.
    pub(super) fn label(&self, node: &Name, key: &str) -> Option<&str> {
        self.labels.get(node)?.get(key).map(String::as_str)
    }

    /// Whether versions of an app only rose in the order of their rollouts to a node: otherwise the operator asks
    /// for an older one on purpose.
    pub(super) fn only_rises(&self, node: &Name, app: &Name) -> bool {
        let begun = self.begun(node, app);
        let back = begun.iter().any(|rollout| rollout.how.rollback_to.is_some());
        !back && begun.is_sorted_by(|later, earlier| later.version >= earlier.version)
    }

    pub(super) fn apps(&self) -> Vec<&Name> {
        let mut apps: Vec<&Name> = self.rollouts.iter().map(|rollout| &rollout.app).collect();
        apps.sort();
        apps.dedup();
        apps
    }
}
