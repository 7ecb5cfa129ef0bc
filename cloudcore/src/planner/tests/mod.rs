//! The planner over small fleets with agents that do what they are told.

mod metrics;
mod placement;
mod property;
mod restarts;
mod rollouts;
mod room;
mod trim;
mod waves;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proto::{
    digest::Digest,
    name::{MetricName, Name, ObjectName, ReleaseName},
    object::{
        AssignedApp, MetricSummary, MetricsBefore, NodeInfo, NodePhase, NodeSpec, NodeStatus, Object, RebootStatus,
        Release, ReleaseRef, ReleaseSpec, Rollout, RolloutNode, RolloutPhase, RolloutSpec, RolloutStatus, RunState,
        Running, UpdatePhase, WorkloadMetrics, WorkloadStatus, feature,
        rollout::{MetricRule, Wave},
    },
    units::Span,
};

use super::{Planner, Snapshot, Step, plan};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn digest(version: u8) -> Digest {
    Digest::of(&[version])
}

fn release_ref(version: u8) -> ReleaseRef {
    ReleaseRef { version: version.to_string().parse().unwrap(), digest: digest(version) }
}

fn release(version: u8) -> (ReleaseName, Release) {
    let spec = ReleaseSpec {
        app: name("app"),
        version: version.to_string().parse().unwrap(),
        digest: digest(version),
        release_counter: u64::from(version),
        hardware: vec![],
        issued_at: None,
        requests: None,
        gpus: None,
        anti_affinity: Default::default(),
        files: 1,
        total_bytes: 1,
    };
    let name = ReleaseName { app: spec.app.clone(), version: spec.version.clone() };
    (name.clone(), Object::new(name.object_name(), spec))
}

fn spec(version: u8, selector: &str) -> RolloutSpec {
    RolloutSpec::new(format!("app@{version}").parse().unwrap(), selector.parse().unwrap())
}

fn count(count: u32, soak: u64) -> Wave {
    Wave { count: Some(count), soak: Span::from_secs(soak), ..Wave::default() }
}

fn percent(percent: u32, soak: u64) -> Wave {
    Wave { percent: Some(percent), soak: Span::from_secs(soak), ..Wave::default() }
}

pub(super) fn info() -> NodeInfo {
    NodeInfo {
        agent_version: "1".into(),
        boot_id: String::new(),
        architecture: String::new(),
        os_image: String::new(),
        kernel: String::new(),
        cpus: 1,
        memory_bytes: 1,
        hostname: String::new(),
        addresses: vec![],
        hardware: vec![],
        nvidia: None,
        features: feature::ALL.map(str::to_owned).into(),
        sealing_key: None,
    }
}

/// At least so many frames a second, and so many of a hundred of before.
fn fps(min: Option<f64>, min_percent_of_before: Option<u32>) -> Vec<MetricRule> {
    vec![MetricRule { min, min_percent_of_before, min_samples: 5, ..MetricRule::new("fps".parse().unwrap()) }]
}

/// A rollout of restarts of the app.
fn restart(selector: &str) -> RolloutSpec {
    RolloutSpec::restart(name("app"), selector.parse().unwrap())
}

/// A rollout of restarts of nodes.
fn reboot(selector: &str) -> RolloutSpec {
    RolloutSpec::reboot(selector.parse().unwrap())
}

/// A fleet, its agents and the time. Agents do nothing by themselves unless [`World::work`] is called.
#[derive(Debug, Clone)]
struct World {
    now: Snapshot,
    second: i64,
    /// What the agent of a node works on, which goes on while nobody hears it.
    agents: BTreeMap<Name, WorkloadStatus>,
    /// How far the restart of a node is, which goes on while nobody hears it.
    reboots: BTreeMap<Name, RebootStatus>,
    /// Nodes on which a version fails its trial; version 0: the restart of the node itself fails.
    bad: Vec<(Name, u8)>,
    /// Nodes on which a version is slow: 8 frames a second in place of 25.
    slow: Vec<(Name, u8)>,
    /// Nodes whose workloads tell nothing.
    mute: BTreeSet<Name>,
}

impl World {
    /// Nodes `n0` and on, in sites `s0` and on of `per_site` nodes, all Ready; releases 1 to 9.
    fn new(nodes: usize, per_site: usize) -> World {
        let node = |i: usize| {
            let mut node = Object::new(name(&format!("n{i}")), NodeSpec::new(name(&format!("s{}", i / per_site))));
            node.metadata.labels =
                [("kind".to_owned(), if i.is_multiple_of(2) { "even" } else { "odd" }.to_owned())].into();
            node.status = NodeStatus { phase: NodePhase::Ready, info: Some(info()), ..NodeStatus::default() };
            (name(&format!("n{i}")), node)
        };
        let now = Snapshot {
            nodes: (0..nodes).map(node).collect(),
            releases: (1..10).map(release).collect(),
            ..Snapshot::default()
        };
        World {
            now,
            second: 100,
            agents: BTreeMap::new(),
            reboots: BTreeMap::new(),
            bad: vec![],
            slow: vec![],
            mute: BTreeSet::new(),
        }
    }

    fn start(&mut self, rollout: &str, spec: RolloutSpec) {
        let mut rollout: Rollout = Object::new(rollout.parse::<ObjectName>().unwrap(), spec);
        rollout.metadata.creation_timestamp = Some(at(self.second));
        rollout.metadata.uid = format!("uid of {}", rollout.name());
        self.now.rollouts.insert(rollout.name().to_owned(), rollout);
    }

    fn spec(&mut self, rollout: &str) -> &mut RolloutSpec {
        &mut self.now.rollouts.get_mut(rollout).unwrap().spec
    }

    fn status(&self, rollout: &str) -> &RolloutStatus {
        &self.now.rollouts[rollout].status
    }

    fn node(&self, rollout: &str, node: &str) -> &RolloutNode {
        &self.status(rollout).nodes[&name(node)]
    }

    fn phase(&mut self, node: &str, phase: NodePhase) {
        self.now.nodes.get_mut(&name(node)).unwrap().status.phase = phase;
        self.hear();
    }

    fn report(&mut self, node: &str, version: u8, phase: UpdatePhase) {
        let status = workload(version, phase);
        self.agents.insert(name(node), status);
        self.hear();
    }

    /// Version and hold of what a node was told.
    fn told(&self, node: &str) -> Option<(String, bool)> {
        let assigned = self.now.nodes[&name(node)].spec.apps.get(&name("app"))?;
        Some((assigned.version.to_string(), assigned.order.hold))
    }

    /// Plans and carries out until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..10 {
            let plan = plan(&self.now, at(self.second));
            if plan.steps.is_empty() {
                return;
            }
            self.carry_out(plan.steps);
        }
        panic!("the planner does not come to rest");
    }

    fn carry_out(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::SetApp { node, app, assigned } => {
                    let node = self.now.nodes.get_mut(&node).unwrap();
                    node.metadata.generation += 1;
                    let apps = &mut node.spec.apps;
                    match assigned {
                        Some(assigned) => drop(apps.insert(app, assigned)),
                        None => drop(apps.remove(&app)),
                    }
                }
                Step::SetReboot { node, order } => self.now.nodes.get_mut(&node).unwrap().spec.reboot = order,
                Step::SetRolloutStatus { rollout, status, .. } => {
                    self.now.rollouts.get_mut(&rollout).unwrap().status = *status;
                }
                Step::Start(rollout) => {
                    if !self.now.rollouts.contains_key(rollout.name()) {
                        self.start(rollout.name(), rollout.spec.clone());
                    }
                }
            }
        }
    }

    /// The hub hears the agents that it can hear.
    fn hear(&mut self) {
        for (name, node) in &mut self.now.nodes {
            if !matches!(node.status.phase, NodePhase::Ready | NodePhase::NotReady) {
                continue;
            }
            node.status.reboot = self.reboots.get(name).cloned();
            match self.agents.get(name) {
                Some(said) => drop(node.status.workloads.insert(self::name("app"), said.clone())),
                None => drop(node.status.workloads.remove(&self::name("app"))),
            }
        }
    }

    /// Every agent that hears the hub takes one step towards what it was told; the others finish what they began.
    fn work(&mut self) {
        for (name, node) in &self.now.nodes {
            let hears = matches!(node.status.phase, NodePhase::Ready | NodePhase::NotReady);
            let bad = self.bad.contains(&(name.clone(), 0));
            match self.reboots.get_mut(name) {
                Some(said) if !hears || node.spec.reboot.as_ref() == Some(&said.order) => match said.phase {
                    UpdatePhase::Applying => said.phase = UpdatePhase::Verifying,
                    UpdatePhase::Verifying if bad => said.phase = UpdatePhase::Failed,
                    UpdatePhase::Verifying => said.phase = UpdatePhase::Succeeded,
                    _ => {}
                },
                _ => {
                    if let Some(order) = node.spec.reboot.clone().filter(|_| hears) {
                        let said = RebootStatus { order, phase: UpdatePhase::Applying, message: String::new() };
                        self.reboots.insert(name.clone(), said);
                    }
                }
            }
            let told = node.spec.apps.get(&self::name("app"));
            let before = self.agents.get(name).cloned();
            let Some(told) = told.filter(|_| hears) else {
                if hears {
                    self.agents.remove(name);
                } else if let Some(mut going) = before.filter(|a| a.phase == UpdatePhase::Verifying) {
                    let version = going.target.as_ref().unwrap().version.to_string().parse().unwrap();
                    going.phase = self.outcome(name, version);
                    self.agents.insert(name.clone(), going);
                }
                continue;
            };
            let version: u8 = told.version.to_string().parse().unwrap();
            let same = before.clone().filter(|a| a.target.as_ref().is_some_and(|t| t.digest == told.digest));
            let fresh_try = told.order.retry.is_some() && same.as_ref().is_some_and(|a| a.retried != told.order.retry);
            let runs = before.as_ref().filter(|a| a.phase != UpdatePhase::Verifying).and_then(|a| a.running.as_ref());
            let proved = runs.is_some_and(|running| running.release.digest == told.digest);
            let phase = match same.as_ref().filter(|_| !fresh_try).map(|a| a.phase) {
                None if proved => UpdatePhase::Succeeded,
                None | Some(UpdatePhase::Pending) => UpdatePhase::Downloading,
                Some(UpdatePhase::Downloading) => UpdatePhase::Staged,
                Some(UpdatePhase::Staged) if told.order.hold => UpdatePhase::Staged,
                Some(UpdatePhase::Staged) => UpdatePhase::Verifying,
                Some(UpdatePhase::Verifying) => self.outcome(name, version),
                Some(done) => done,
            };
            let mut next = workload(version, phase);
            let quiet = !matches!(phase, UpdatePhase::Downloading | UpdatePhase::Verifying);
            next.restarted = match &told.order.restart {
                Some(order) if quiet => Some(order.clone()),
                _ => before.as_ref().and_then(|a| a.restarted.clone()),
            };
            next.metrics = self.tell(name, &next, told, before.as_ref());
            let runs_before = before.and_then(|a| a.running);
            if !matches!(phase, UpdatePhase::Verifying | UpdatePhase::Succeeded) {
                next.running = runs_before;
            }
            next.retried = told.order.retry.clone();
            self.agents.insert(name.clone(), next);
        }
        self.hear();
    }

    /// What a workload told since it proved healthy: one sample a second, up to 20, where it is asked.
    fn tell(
        &self,
        node: &Name,
        says: &WorkloadStatus,
        told: &AssignedApp,
        before: Option<&WorkloadStatus>,
    ) -> Option<WorkloadMetrics> {
        told.order
            .metrics
            .as_ref()
            .filter(|_| matches!(says.phase, UpdatePhase::Verifying | UpdatePhase::Succeeded))?;
        let fps = |samples, release: &ReleaseRef| -> BTreeMap<MetricName, MetricSummary> {
            let slow = self.slow.iter().any(|(who, version)| who == node && *release == release_ref(*version));
            let mean = if slow { 8.0 } else { 25.0 };
            [("fps".parse().unwrap(), MetricSummary { samples, mean })].into()
        };
        let known = before.and_then(|before| before.metrics.as_ref()).filter(|known| known.digest == told.digest);
        let ran = before.and_then(|before| before.running.as_ref()).map(|running| running.release.clone());
        let ran = ran.filter(|ran| ran.digest != told.digest && !self.mute.contains(node));
        let of_before = ran.map(|ran| MetricsBefore { metrics: fps(600, &ran), release: ran });
        let mut metrics = known.cloned().unwrap_or_else(|| WorkloadMetrics {
            digest: told.digest,
            now: BTreeMap::new(),
            before: of_before,
        });
        if says.phase == UpdatePhase::Succeeded && !self.mute.contains(node) {
            let samples = metrics.now.get("fps").map_or(0, |now| now.samples);
            metrics.now = fps((samples + 1).min(20), &says.running.as_ref()?.release);
        }
        Some(metrics)
    }

    fn outcome(&self, node: &Name, version: u8) -> UpdatePhase {
        match self.bad.contains(&(node.clone(), version)) {
            true => UpdatePhase::RolledBack,
            false => UpdatePhase::Succeeded,
        }
    }

    /// Settles, and lets agents work, for so many seconds.
    fn run(&mut self, seconds: i64) {
        for _ in 0..seconds {
            self.settle();
            self.work();
            self.second += 1;
        }
        self.settle();
    }

    /// How many nodes run a version.
    fn on(&self, version: u8) -> usize {
        let runs = |a: &&WorkloadStatus| {
            a.phase == UpdatePhase::Succeeded && a.target.as_ref().is_some_and(|t| t.digest == digest(version))
        };
        self.agents.values().filter(runs).count()
    }

    /// How many nodes ever were told of a version.
    fn saw(&self, version: u8) -> usize {
        let told = |node: &&proto::object::Node| {
            node.spec.apps.get(&name("app")).is_some_and(|assigned| assigned.digest == digest(version))
        };
        self.now.nodes.values().filter(told).count()
    }
}

fn workload(version: u8, phase: UpdatePhase) -> WorkloadStatus {
    let running = Running {
        release: release_ref(version),
        state: RunState::Running,
        ready: true,
        restarts: 0,
        started_at: None,
        last_exit: None,
    };
    WorkloadStatus { running: Some(running), ..WorkloadStatus::new(Some(release_ref(version)), phase, at(0)) }
}
