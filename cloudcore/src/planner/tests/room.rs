//! Room on a box: whoever does not fit is not begun, reads why, and begins when there is room.

use proto::object::{AssignedApp, Resources, rollout::reason};

use super::*;

const GIB: u64 = 1 << 30;

fn memory(gib: u64) -> Resources {
    Resources { memory: Some(proto::units::Bytes::new(gib * GIB)), cpu_millis: None }
}

/// Two boxes of 16 GiB, and releases of which each asks for as many GiB as its version says.
fn world() -> World {
    let mut world = World::new(2, 2);
    for node in world.now.nodes.values_mut() {
        node.status.info.as_mut().unwrap().memory_bytes = 16 * GIB;
        node.spec.allocation.system_reserved = memory(1);
    }
    for release in world.now.releases.values_mut() {
        release.spec.requests = Some(memory(release.spec.release_counter));
    }
    world
}

/// A node has another app, which asks for that much.
fn other(world: &mut World, node: &str, app: &str, gib: u64) {
    let version: proto::name::Version = gib.to_string().parse().unwrap();
    let mut release = release(1).1;
    (release.spec.app, release.spec.version, release.spec.requests) = (name(app), version.clone(), Some(memory(gib)));
    world.now.releases.insert(ReleaseName { app: name(app), version: version.clone() }, release);
    let told = AssignedApp::new(version, Digest::of(app.as_bytes()), None);
    world.now.nodes.get_mut(&name(node)).unwrap().spec.apps.insert(name(app), told);
}

#[test]
fn who_does_not_fit_reads_the_arithmetic_and_begins_when_there_is_room() {
    let mut world = world();
    other(&mut world, "n0", "camera-a", 8);
    other(&mut world, "n0", "scan", 2);
    world.start("r", spec(6, "all"));
    world.run(10);
    let waits = world.node("r", "n0").clone();
    assert_eq!((waits.phase, waits.reason.as_str()), (UpdatePhase::Blocked, "InsufficientMemory"));
    let says = "it needs 6 GiB; n0 has 16 GiB x 1.0 - 1 GiB reserved = 15 GiB, of which camera-a 8 GiB and scan 2 GiB \
                are asked: 5 GiB left; ";
    assert!(waits.message.starts_with(says), "{}", waits.message);
    assert_eq!((world.told("n0"), world.node("r", "n1").phase), (None, UpdatePhase::Succeeded));

    // What the planner keeps at rest wakes when the other app goes, and not before the node says that it is gone.
    let mut planner = Planner::new(world.now.clone());
    assert!(planner.plan(at(world.second)).steps.is_empty());
    let going = world.now.nodes.get_mut(&name("n0")).unwrap();
    going.spec.apps.remove(&name("scan"));
    let mut said = workload(1, UpdatePhase::Succeeded);
    said.running.as_mut().unwrap().release.version = "2".parse().unwrap();
    going.status.workloads.insert(name("scan"), said);
    planner.set_node(name("n0"), Some(going.clone()));
    assert!(planner.plan(at(world.second)).steps.is_empty(), "it runs still");
    let gone = world.now.nodes.get_mut(&name("n0")).unwrap();
    gone.status.workloads.remove(&name("scan"));
    planner.set_node(name("n0"), Some(gone.clone()));
    assert!(!planner.plan(at(world.second)).steps.is_empty());
    world.run(10);
    assert_eq!(world.status("r").phase, RolloutPhase::Succeeded);
}

#[test]
fn an_update_takes_the_place_of_what_ran_and_over_commit_makes_room() {
    let mut world = world();
    other(&mut world, "n0", "camera-a", 8);
    world.start("first", spec(7, "name=n0"));
    world.run(10);
    world.start("second", spec(8, "name=n0"));
    world.run(10);
    assert_eq!(world.node("second", "n0").reason, "InsufficientMemory");
    assert_eq!((world.on(7), world.told("n0")), (1, Some(("7".into(), false))), "what ran goes on");
    world.now.nodes.get_mut(&name("n0")).unwrap().spec.allocation.overcommit.memory = "1.5".parse().unwrap();
    world.run(10);
    assert_eq!(world.on(8), 1);
    // Whoever asks for no more than before goes on, however full the box has become.
    world.now.nodes.get_mut(&name("n0")).unwrap().spec.allocation.system_reserved = memory(20);
    world.start("third", spec(8, "name=n0"));
    world.run(10);
    assert_eq!(world.status("third").phase, RolloutPhase::Succeeded);
}

#[test]
fn what_two_rollouts_begin_in_one_plan_is_reckoned_together() {
    let mut world = world();
    other(&mut world, "n1", "big", 9);
    world.now.nodes.get_mut(&name("n1")).unwrap().spec.apps.clear();
    world.start("r", spec(7, "name=n0"));
    world.start("s", RolloutSpec::new("big@9".parse().unwrap(), "name=n0".parse().unwrap()));
    world.settle();
    let told = &world.now.nodes[&name("n0")].spec.apps;
    assert_eq!(told.len(), 1, "7 and 9 GiB are more than 15: {told:?}");
    assert_eq!(world.node("s", "n0").phase, UpdatePhase::Blocked);
}

#[test]
fn a_box_that_is_kept_for_others_takes_nothing_new() {
    let mut world = world();
    world.start("first", spec(1, "all"));
    world.run(10);
    world.now.nodes.get_mut(&name("n0")).unwrap().spec.reserved_for = [name("camera-a"), name("scan")].into();
    world.start("second", spec(2, "all"));
    world.run(10);
    let waits = world.node("second", "n0");
    assert_eq!((waits.phase, waits.reason.as_str()), (UpdatePhase::Blocked, reason::RESERVED));
    assert!(waits.message.starts_with("n0 is kept for camera-a, scan; what n0 has of app stays as it is"), "{waits:?}");
    assert_eq!((world.on(1), world.on(2)), (1, 1));
    world.now.nodes.get_mut(&name("n0")).unwrap().spec.reserved_for.insert(name("app"));
    world.run(10);
    assert_eq!(world.on(2), 2);
}

#[test]
fn what_no_box_could_ever_hold_is_refused_when_it_is_created() {
    let mut world = world();
    world.now.releases.get_mut(&spec(9, "all").release().unwrap()).unwrap().spec.requests = Some(memory(16));
    let refused = super::super::check::validate(&spec(9, "all"), &world.now).unwrap_err();
    assert!(
        refused.contains("it needs 16 GiB; n0 has 16 GiB x 1.0 - 1 GiB reserved = 15 GiB, of which nothing"),
        "{refused}"
    );
    world.now.nodes.get_mut(&name("n1")).unwrap().status.info = None; // it may have more
    super::super::check::validate(&spec(9, "all"), &world.now).unwrap();
}
