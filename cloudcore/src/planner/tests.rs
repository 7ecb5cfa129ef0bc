//! Properties of the planner over generated fleets, and its verdicts one by one.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proto::{
    digest::Digest,
    object::{
        NodePhase, NodeSpec, NodeStatus, Object, ReleaseRef, ReleaseSpec, RunState, Running, UpdatePhase,
        WorkloadStatus,
    },
};

use super::*;

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
        files: 1,
        total_bytes: 1,
    };
    let name = ReleaseName { app: spec.app.clone(), version: spec.version.clone() };
    (name.clone(), Object::new(name.object_name(), spec))
}

fn rollout(text: &str, version: u8, selector: &str, second: i64) -> Rollout {
    let spec = RolloutSpec::new(format!("app@{version}").parse().unwrap(), selector.parse().unwrap());
    let mut rollout: Rollout = Object::new(name(text), spec);
    rollout.metadata.creation_timestamp = Some(at(second));
    rollout
}

fn node(text: &str, phase: NodePhase) -> (Name, Node) {
    let mut node: Node = Object::new(name(text), NodeSpec::new(name("s")));
    node.status = NodeStatus { phase, ..NodeStatus::default() };
    (name(text), node)
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
    WorkloadStatus {
        restarted: None,
        restart_failed: None,
        target: Some(release_ref(version)),
        phase,
        reason: String::new(),
        message: String::new(),
        since: at(0),
        progress: None,
        running: Some(running),
    }
}

/// Does what the steps say, as the loop does.
fn carry_out(snapshot: &mut Snapshot, steps: Vec<Step>) {
    for step in steps {
        match step {
            Step::SetApp { node, app, assigned } => {
                snapshot.nodes.get_mut(&node).unwrap().spec.apps.insert(app, assigned);
            }
            Step::SetRolloutStatus { rollout, status, .. } => {
                snapshot.rollouts.iter_mut().find(|r| r.name() == rollout).unwrap().status = status;
            }
        }
    }
}

/// Plans and carries out until nothing is left to do.
fn settle(snapshot: &mut Snapshot, second: i64) {
    for _ in 0..10 {
        let steps = plan(snapshot, at(second));
        if steps.is_empty() {
            return;
        }
        carry_out(snapshot, steps);
    }
    panic!("the planner does not come to rest");
}

fn report(snapshot: &mut Snapshot, node: &str, version: u8, phase: UpdatePhase) {
    let node = snapshot.nodes.get_mut(&name(node)).unwrap();
    node.status.workloads.insert(name("app"), workload(version, phase));
}

fn status<'a>(snapshot: &'a Snapshot, rollout: &str) -> &'a RolloutStatus {
    &snapshot.rollouts.iter().find(|r| r.name() == rollout).unwrap().status
}

fn fleet(phases: &[NodePhase]) -> Snapshot {
    let nodes = phases.iter().enumerate().map(|(i, phase)| node(&format!("n{i}"), *phase)).collect();
    Snapshot { nodes, rollouts: vec![rollout("r", 1, "all", 1)], releases: [release(1), release(2)].into() }
}

#[test]
fn success_is_what_every_node_says_itself() {
    let mut fleet = fleet(&[NodePhase::Ready; 2]);
    settle(&mut fleet, 10);
    assert_eq!(status(&fleet, "r").phase, RolloutPhase::Progressing);
    report(&mut fleet, "n0", 1, UpdatePhase::Succeeded);
    settle(&mut fleet, 11);
    assert_eq!(status(&fleet, "r").phase, RolloutPhase::Progressing);
    // The right word about the wrong digest counts for nothing.
    report(&mut fleet, "n1", 2, UpdatePhase::Succeeded);
    settle(&mut fleet, 12);
    assert_eq!(status(&fleet, "r").phase, RolloutPhase::Progressing);
    report(&mut fleet, "n1", 1, UpdatePhase::Verifying);
    settle(&mut fleet, 13);
    assert_eq!(status(&fleet, "r").phase, RolloutPhase::Progressing);
    report(&mut fleet, "n1", 1, UpdatePhase::Succeeded);
    settle(&mut fleet, 14);
    assert_eq!(status(&fleet, "r").phase, RolloutPhase::Succeeded);
    assert_eq!(status(&fleet, "r").finished_at, Some(at(14)));
}

#[test]
fn a_failure_fails_the_rollout_once_nobody_is_at_work() {
    let mut fleet = fleet(&[NodePhase::Ready, NodePhase::Ready, NodePhase::Unknown]);
    settle(&mut fleet, 10);
    report(&mut fleet, "n0", 1, UpdatePhase::RolledBack);
    settle(&mut fleet, 11);
    assert_eq!(status(&fleet, "r").phase, RolloutPhase::Progressing);
    report(&mut fleet, "n1", 1, UpdatePhase::Succeeded);
    settle(&mut fleet, 12);
    assert_eq!(status(&fleet, "r").phase, RolloutPhase::Failed);
    assert_eq!(status(&fleet, "r").message, "1 of 3 healthy, 1 failed, 1 offline");
    assert_eq!(status(&fleet, "r").nodes[&name("n2")].phase, UpdatePhase::Deferred);
}

#[test]
fn an_offline_node_is_no_success_and_goes_on_when_it_is_back() {
    let mut fleet = fleet(&[NodePhase::Ready, NodePhase::Unknown, NodePhase::Pending]);
    report(&mut fleet, "n1", 1, UpdatePhase::Succeeded); // an old word, said before the rollout
    settle(&mut fleet, 10);
    report(&mut fleet, "n0", 1, UpdatePhase::Succeeded);
    settle(&mut fleet, 11);
    assert_eq!(status(&fleet, "r").phase, RolloutPhase::Progressing);
    for waiting in ["n1", "n2"] {
        assert_eq!(status(&fleet, "r").nodes[&name(waiting)].phase, UpdatePhase::Deferred);
    }
    // Going away afterwards takes back nothing.
    fleet.nodes.get_mut(&name("n0")).unwrap().status.phase = NodePhase::Unknown;
    for node in ["n1", "n2"] {
        fleet.nodes.get_mut(&name(node)).unwrap().status.phase = NodePhase::Ready;
        report(&mut fleet, node, 1, UpdatePhase::Succeeded);
    }
    settle(&mut fleet, 12);
    assert_eq!(status(&fleet, "r").phase, RolloutPhase::Succeeded);
}

#[test]
fn nodes_belong_to_the_newer_rollout() {
    let mut fleet = fleet(&[NodePhase::Ready; 2]);
    settle(&mut fleet, 10);
    fleet.rollouts.push(rollout("newer", 2, "name=n0", 20));
    settle(&mut fleet, 21);
    assert_eq!(fleet.nodes[&name("n0")].spec.apps[&name("app")].digest, digest(2));
    assert_eq!(fleet.nodes[&name("n1")].spec.apps[&name("app")].digest, digest(1));
    report(&mut fleet, "n1", 1, UpdatePhase::Succeeded);
    settle(&mut fleet, 22);
    assert_eq!(status(&fleet, "r").phase, RolloutPhase::Superseded, "one of its nodes never proved its release");
    assert_eq!(status(&fleet, "newer").phase, RolloutPhase::Progressing);
    fleet.rollouts.push(rollout("newest", 1, "all", 30));
    settle(&mut fleet, 31);
    assert_eq!(status(&fleet, "newer").phase, RolloutPhase::Superseded);
}

#[test]
fn what_cannot_start_says_why() {
    let mut fleet = fleet(&[NodePhase::Ready]);
    fleet.rollouts =
        vec![rollout("none", 1, "site=elsewhere", 1), rollout("unknown", 9, "all", 2), rollout("bare", 1, "n0", 3)];
    settle(&mut fleet, 10);
    assert!(status(&fleet, "none").message.contains("names no node"));
    assert!(status(&fleet, "bare").message.contains("write name=n0"));
    assert!(status(&fleet, "unknown").message.contains("no release app@9"));
    assert!(fleet.nodes[&name("n0")].spec.apps.is_empty());
    // Nodes that are deleted leave the rollout.
    let mut fleet = self::fleet(&[NodePhase::Ready]);
    settle(&mut fleet, 10);
    fleet.nodes.clear();
    settle(&mut fleet, 11);
    assert_eq!(status(&fleet, "r").phase, RolloutPhase::Failed);
}

fn any_node_phase() -> impl Strategy<Value = NodePhase> {
    prop_oneof![
        4 => Just(NodePhase::Ready),
        1 => Just(NodePhase::NotReady),
        1 => Just(NodePhase::Unknown),
        1 => Just(NodePhase::Pending)
    ]
}

fn any_phase() -> impl Strategy<Value = UpdatePhase> {
    prop_oneof![
        3 => Just(UpdatePhase::Succeeded),
        1 => Just(UpdatePhase::Downloading),
        1 => Just(UpdatePhase::Failed),
        1 => Just(UpdatePhase::RolledBack),
        1 => Just(UpdatePhase::Blocked)
    ]
}

/// Something that happens between two plans.
#[derive(Debug, Clone)]
enum Happening {
    Report(usize, u8, UpdatePhase),
    Phase(usize, NodePhase),
    Start(u8, usize),
    Delete(usize),
}

fn any_happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => (0..4_usize, 1..3_u8, any_phase()).prop_map(|(n, v, p)| Happening::Report(n, v, p)),
        2 => (0..4_usize, any_node_phase()).prop_map(|(n, p)| Happening::Phase(n, p)),
        2 => (1..4_u8, 0..5_usize).prop_map(|(v, n)| Happening::Start(v, n)),
        1 => (0..4_usize).prop_map(Happening::Delete),
    ]
}

fn happen(fleet: &mut Snapshot, happening: &Happening, second: i64) {
    match happening {
        Happening::Report(n, version, phase) => {
            if fleet.nodes.contains_key(&name(&format!("n{n}"))) {
                report(fleet, &format!("n{n}"), *version, *phase);
            }
        }
        Happening::Phase(n, phase) => {
            if let Some(node) = fleet.nodes.get_mut(&name(&format!("n{n}"))) {
                node.status.phase = *phase;
            }
        }
        Happening::Start(version, n) => {
            let selector = if *n == 4 { "all".into() } else { format!("name=n{n}") };
            fleet.rollouts.push(rollout(&format!("r{second}"), *version, &selector, second));
        }
        Happening::Delete(n) => drop(fleet.nodes.remove(&name(&format!("n{n}")))),
    }
}

/// What must hold of a plan, whatever led to it.
fn check(before: &Snapshot, steps: &[Step]) {
    for step in steps {
        match step {
            Step::SetApp { node, app, assigned } => {
                let asked = before.rollouts.iter().filter(|r| {
                    let can = before.releases.contains_key(&r.release().unwrap()) && !r.status.phase.is_final();
                    can && before.nodes[node].matches(&r.spec.selector) && r.spec.app == *app
                });
                let newest = asked.max_by_key(|r| age(r)).unwrap();
                assert_eq!(assigned.rollout.as_deref(), Some(newest.name()));
                assert_eq!(before.releases[&newest.release().unwrap()].spec.digest, assigned.digest);
            }
            Step::SetRolloutStatus { rollout, status, .. } => {
                let old = before.rollouts.iter().find(|r| r.name() == rollout).unwrap();
                assert!(!old.status.phase.is_final(), "a verdict does not change");
                if status.phase == RolloutPhase::Succeeded {
                    let said: BTreeSet<&Name> = status.nodes.keys().filter(|n| proved(before, n, status)).collect();
                    assert_eq!(said.len(), status.nodes.len());
                }
                assert_eq!(status.phase.is_final(), status.finished_at.is_some());
            }
        }
    }
}

fn proved(before: &Snapshot, node: &Name, status: &RolloutStatus) -> bool {
    let word = before.nodes[node].status.workloads.get(&name("app"));
    word.is_some_and(|w| w.phase == UpdatePhase::Succeeded && w.target.as_ref().map(|t| t.digest) == status.digest)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plans_repeat_come_to_rest_and_claim_nothing_unproved(
        phases in prop::collection::vec(any_node_phase(), 1..4),
        happenings in prop::collection::vec(any_happening(), 0..30),
    ) {
        let mut fleet = fleet(&phases);
        for (second, happening) in happenings.iter().enumerate() {
            let second = second as i64 + 100;
            happen(&mut fleet, happening, second);
            for round in 0.. {
                prop_assert!(round < 10, "the planner does not come to rest");
                let steps = plan(&fleet, at(second));
                prop_assert_eq!(&steps, &plan(&fleet.clone(), at(second)));
                let mut shuffled = fleet.clone();
                shuffled.rollouts.reverse();
                prop_assert_eq!(&steps, &plan(&shuffled, at(second)));
                check(&fleet, &steps);
                if steps.is_empty() {
                    break;
                }
                carry_out(&mut fleet, steps);
            }
            // One owner: each node runs what the newest started rollout that names it says.
            for (node, object) in &fleet.nodes {
                let named = |r: &&Rollout| {
                    r.status.nodes.get(node).is_some_and(|n| n.reason != proto::object::rollout::reason::SUPERSEDED)
                };
                let owners = fleet.rollouts.iter().filter(|r| !r.status.phase.is_final()).filter(named).count();
                prop_assert!(owners <= 1, "{node} has {owners} rollouts at work");
                let newest = fleet.rollouts.iter().filter(|r| r.status.nodes.contains_key(node)).max_by_key(|r| age(r));
                let runs = object.spec.apps.get(&name("app")).map(|app| (app.rollout.as_deref(), Some(app.digest)));
                prop_assert_eq!(runs, newest.map(|r| (Some(r.name()), r.status.digest)));
            }
        }
    }
}
