//! As many instances as a reported number asks for: beside a settled release, and never in the way of an update.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use proptest::prelude::*;
use proto::{
    digest::Digest,
    link::message::Assignment,
    name::Name,
    object::{Allocation, ReplicaStatus, Resources, UpdatePhase},
    release::replicas,
    units::Bytes,
    watch,
};
use tokio::time::{Instant, timeout};

use super::{
    APP, LONG,
    fakes::{MEMORY_BYTES, WITH_HOOKS},
    world::World,
};
use crate::{
    apps::{Apps, live, plan::Wanted},
    driver::{Driver as _, Side},
    metrics::{Metrics, Told},
};

const MIB: u64 = 1 << 20;

/// A box whose app has 1 to 4 replicas, one for each 100 of its backlog; fewer once that was enough for a minute.
fn scaled(warm: bool) -> World {
    scaled_as(warm, "")
}

fn scaled_as(warm: bool, more: &str) -> World {
    let mut world = if warm { World::warm() } else { World::new() };
    let update = if warm { r#""update": {"strategy": "warm"},"# } else { "" };
    for version in ["1", "2", "3", "4"] {
        let workload = format!(
            r#"{{"command": "bin/run", "soak": "3s", "deadline": "20s", {update} {more}
                "replicas": {{"max": 4, "metric": "backlog", "target": 100, "stabilizationWindow": "1m"}},
                "probes": {{"readiness": {{"exec": {{"command": ["bin/run"]}}, "period": "500ms"}}}}}}"#
        );
        world.publish(version, &workload);
    }
    *world.driver.memory.lock().unwrap() = Some(16 << 30);
    world
}

/// As long, with this backlog reported all the time.
async fn play(world: &mut World, seconds: u64, backlog: f64) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        tell(world, backlog);
        world.turns(100_000, Duration::from_secs(5)).await;
    }
}

fn tell(world: &World, backlog: f64) {
    let Some(spec) = first(world) else { return };
    let values = [("backlog".parse().unwrap(), backlog)].into();
    let told = Told { app: APP.parse().unwrap(), digest: spec.release.digest, replica: None, values };
    world.metrics.take(told).ok(); // it may not be heard yet
}

/// A minute: longer than anything here takes but back-offs.
async fn rest(world: &mut World) {
    world.turns(100_000, Duration::from_secs(60)).await;
}

/// Version 1 is there, with three replicas.
async fn three(mut world: World) -> World {
    world.want("1");
    world.turn_until(|world| world.slot().active.is_some()).await;
    play(&mut world, 10, 250.0).await;
    assert_eq!(keys(&world), ["web", "web--r1", "web--r2"]);
    world
}

/// What runs, by name.
fn keys(world: &World) -> Vec<String> {
    world.driver.specs().iter().map(|spec| spec.key().to_string()).collect()
}

fn key(replica: u8) -> Name {
    replicas::key(&APP.parse().unwrap(), replica).unwrap()
}

/// The ordinary instance that is live.
fn first(world: &World) -> Option<crate::driver::InstanceSpec> {
    let side = world.slot().side;
    world.driver.specs().into_iter().find(|spec| spec.replica == 0 && spec.side == side)
}

fn status(world: &World) -> ReplicaStatus {
    world.status().replicas.unwrap()
}

/// Between any two steps: no replica beside a release on trial that is live, none without a number of its own.
fn check(world: &World) {
    let slot = world.slot();
    let specs = world.driver.specs();
    let others: Vec<_> = specs.iter().filter(|spec| spec.replica > 0).collect();
    if slot.trial.as_ref().is_some_and(|trial| !trial.standby) {
        assert!(others.is_empty() || world.app.is_none(), "replicas beside a trial: {others:?}");
    }
    assert!(specs.len() <= 5, "{specs:?}");
    for spec in others {
        assert_eq!(spec.workload.env[replicas::VARIABLE], spec.replica.to_string());
    }
}

/// At rest all that runs is the active release, without gaps in its numbers.
fn check_settled(world: &World) {
    let slot = world.slot();
    assert_eq!(slot.trial, None);
    let active = slot.active.unwrap().release.digest;
    let specs = world.driver.specs();
    let numbers: Vec<u8> = specs.iter().map(|spec| spec.replica).collect();
    assert!(numbers.iter().enumerate().all(|(at, number)| at == usize::from(*number)), "{numbers:?}");
    assert!(specs.iter().all(|spec| spec.release.digest == active), "{specs:?}");
    assert_eq!(status(world).current_replicas as usize, specs.len());
}

#[tokio::test(start_paused = true)]
async fn it_follows_the_number_up_at_once_and_down_after_the_window() {
    let mut world = scaled(false);
    world.want("1");
    rest(&mut world).await;
    assert_eq!(keys(&world), ["web"]);
    assert!(status(&world).message.starts_with("1 of 1..4: backlog was not reported lately"), "{:?}", status(&world));
    play(&mut world, 20, 250.0).await;
    assert_eq!(keys(&world), ["web", "web--r1", "web--r2"]);
    let told = ReplicaStatus {
        current_replicas: 3,
        ready_replicas: 3,
        desired_replicas: 3,
        min_replicas: 1,
        max_replicas: 4,
        message: "3 of 1..4: backlog 250 / 100 per replica".into(),
    };
    assert_eq!(status(&world), told);
    let numbers = world.driver.specs().into_iter().map(|spec| spec.workload.env[replicas::VARIABLE].clone());
    assert_eq!(numbers.collect::<Vec<_>>(), ["0", "1", "2"]);
    play(&mut world, 50, 30.0).await;
    assert_eq!(keys(&world).len(), 3, "for a while it might come back");
    play(&mut world, 30, 30.0).await;
    assert_eq!(keys(&world), ["web"]);
    assert_eq!(world.starts("1"), 3, "each was started once, and the first was never touched");
    play(&mut world, 10, 5000.0).await;
    assert_eq!((keys(&world).len(), status(&world).desired_replicas), (4, 4));
    // The number is gone: they stay.
    world.turns(100_000, LONG).await;
    assert_eq!(keys(&world).len(), 4);
    let says = "4 of 1..4: backlog was not reported lately (PUT /v1/metrics), so nothing changes";
    assert_eq!(status(&world).message, says);
}

#[tokio::test(start_paused = true)]
async fn reports_are_rare_while_the_number_moves() {
    let mut world = three(scaled(false)).await;
    let mut board = world.board.subscribe();
    drop(board.borrow_and_update());
    let mut changes = vec![];
    for i in 0..120 {
        play(&mut world, 5, 201.0 + f64::from(i % 90)).await;
        if board.has_changed() {
            changes.push(board.borrow_and_update().workloads[APP].replicas.clone().unwrap().message);
        }
    }
    assert_eq!(keys(&world).len(), 3);
    assert!(changes.len() <= 11, "in ten minutes: {changes:#?}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_comes_back_finds_them_undisturbed() {
    let mut world = three(scaled(false)).await;
    world.crash();
    world.metrics = Metrics::default(); // it was in the agent's memory
    rest(&mut world).await;
    assert_eq!((keys(&world).len(), world.starts("1")), (3, 3));
    assert_eq!(
        (status(&world).current_replicas, status(&world).desired_replicas),
        (3, 3),
        "without a number they stay"
    );
    // One that ended meanwhile is started again.
    world.crash();
    world.driver.end(&key(1));
    rest(&mut world).await;
    assert_eq!((keys(&world).len(), world.starts("1")), (3, 4));
    check_settled(&world);
    // After a reboot there is one, until the number says otherwise.
    world.reboot();
    rest(&mut world).await;
    assert_eq!(keys(&world), ["web"]);
    play(&mut world, 10, 250.0).await;
    assert_eq!(keys(&world).len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_cannot_tell_what_runs_is_asked_again() {
    let mut world = three(scaled(false)).await;
    world.crash();
    world.driver.hidden.lock().unwrap().extend((1..16).map(key));
    rest(&mut world).await;
    assert_eq!((keys(&world).len(), world.starts("1")), (3, 3), "nothing is started, and nothing stopped");
    world.driver.hidden.lock().unwrap().clear();
    play(&mut world, 120, 250.0).await;
    assert_eq!((keys(&world).len(), world.starts("1")), (3, 3));
    check_settled(&world);
}

#[tokio::test(start_paused = true)]
async fn the_least_are_asked_of_the_box_together() {
    let mut world = scaled(false);
    let workload = r#"{"command": "bin/run", "soak": "3s", "requests": {"memory": "3Gi"},
        "replicas": {"min": 3, "max": 3, "metric": "backlog", "target": 1}}"#;
    world.publish("1", workload);
    world.rooms.allot(Some(Allocation::default()));
    world.want("1");
    rest(&mut world).await;
    let says = "3 replicas of it are to run, and count together: it needs 9 GiB; this box has 8 GiB";
    assert!(world.status().message.starts_with(says), "{}", world.status().message);
    world.publish("2", &workload.replace("3Gi", "2Gi"));
    world.want("2");
    rest(&mut world).await;
    assert_eq!(keys(&world).len(), 3, "the number is not needed for the least");
    check_settled(&world);
}

#[tokio::test(start_paused = true)]
async fn one_that_ends_starts_again_by_itself_and_is_told_of() {
    let mut world = three(scaled(false)).await;
    world.driver.end(&key(2));
    world.turn_until(|world| world.status().replicas.is_some_and(|r| r.current_replicas == 2)).await;
    assert_eq!(status(&world).message, "3 of 1..4: backlog 250 / 100 per replica; replica 2 does not run: it crashed");
    play(&mut world, 10, 250.0).await;
    assert_eq!((status(&world).ready_replicas, world.starts("1")), (3, 4));
    let running = world.status().running.unwrap();
    assert_eq!((running.restarts, running.ready), (0, true), "the first one goes on");
}

#[tokio::test(start_paused = true)]
async fn an_update_is_tried_alone_and_the_replicas_are_back_after_it() {
    for (version, runs) in [("2", "2"), ("3", "1"), ("4", "1")] {
        let mut world = three(scaled(false)).await;
        world.want(version);
        let mut alone = false;
        for _ in 0..400 {
            tell(&world, 250.0);
            world.turns(1, Duration::from_secs(1)).await;
            check(&world);
            alone |= world.slot().trial.is_some() && status_says(&world, "one runs while a release is on trial");
        }
        assert!(alone || version == "3", "{version}: {:?}", world.status());
        check_settled(&world);
        assert_eq!(keys(&world), ["web", "web--r1", "web--r2"], "{version}");
        assert_eq!(world.slot().active.unwrap().release.version.as_str(), runs);
    }
}

fn status_says(world: &World, text: &str) -> bool {
    world.status().replicas.is_some_and(|replicas| replicas.message.contains(text))
}

#[tokio::test(start_paused = true)]
async fn in_a_warm_update_they_go_on_until_the_new_one_is_ready() {
    let mut world = three(scaled(true)).await;
    world.must_serve = true;
    let folder = world.folder.path().join("run");
    let spec = world.driver.specs().pop().unwrap();
    assert_eq!(spec.workload.env[live::OWN], folder.join("r2").display().to_string());
    assert_eq!(spec.workload.env[live::LIVE], folder.join("live").display().to_string());
    assert!(folder.join("r2").is_dir());
    world.want("2");
    world.turn_until(|world| world.driver.specs().len() == 4).await;
    for _ in 0..400 {
        tell(&world, 250.0);
        world.turns(1, Duration::from_secs(1)).await;
        check(&world);
        if world.slot().trial.is_some_and(|trial| trial.standby) && !world.driver.serves(Side::B) {
            assert_eq!(world.driver.specs().len(), 4, "while it warms up they go on");
        }
    }
    check_settled(&world);
    assert_eq!(keys(&world), ["web--b", "web--r1", "web--r2"]);
    assert_eq!(world.slot().active.unwrap().release.version.as_str(), "2");
}

#[tokio::test(start_paused = true)]
async fn where_they_take_the_room_of_a_warm_update_they_make_way_for_it() {
    let mut world = three(scaled(true)).await;
    world.must_serve = true;
    *world.driver.memory.lock().unwrap() = Some(300 * MIB);
    world.want("2");
    world.turn_until(|world| keys(world).len() == 1).await;
    *world.driver.memory.lock().unwrap() = Some(300 * MIB + 2 * MEMORY_BYTES);
    play(&mut world, 120, 50.0).await;
    assert_eq!(keys(&world), ["web--b"]);
    assert_eq!(world.slot().active.unwrap().release.version.as_str(), "2", "and nobody was without");
}

#[tokio::test(start_paused = true)]
async fn cut_between_any_two_steps_of_an_update_what_runs_is_of_one_release() {
    let how = [(false, false), (false, true), (true, false), (true, true)];
    for (target, (warm, reboot)) in ["2", "3"].into_iter().flat_map(|target| how.map(|how| (target, how))) {
        let mut cuts = 0;
        loop {
            let mut world = three(scaled(warm)).await;
            world.want(target);
            for _ in 0..cuts {
                world.turns(1, LONG).await;
                check(&world);
            }
            let slot = world.slot();
            let done = slot.active.as_ref().is_some_and(|active| active.release.digest == world.digest(target));
            let over = slot.trial.is_none() && (done || slot.failure(world.digest(target)).is_some());
            if reboot {
                world.reboot()
            } else {
                world.crash()
            }
            for _ in 0..20 {
                world.turns(1, LONG).await;
                check(&world);
            }
            play(&mut world, 60, 250.0).await;
            check_settled(&world);
            assert_eq!(keys(&world).len(), 3, "{target} after {cuts} turns");
            if over {
                break;
            }
            cuts += 1;
        }
        assert!((6..100).contains(&cuts), "{target}: {cuts}");
    }
}

#[tokio::test(start_paused = true)]
async fn drained_removed_and_restarted_all_of_them_end() {
    let mut world = three(scaled(false)).await;
    world.ask(|ask| ask.drained = true);
    rest(&mut world).await;
    assert!(keys(&world).is_empty());
    world.ask(|ask| ask.drained = false);
    rest(&mut world).await;
    play(&mut world, 10, 250.0).await;
    assert_eq!((keys(&world).len(), world.starts("1")), (3, 6));
    world.ask(|ask| ask.order.restart = Some("now".into()));
    play(&mut world, 30, 250.0).await;
    assert_eq!((keys(&world).len(), world.starts("1")), (3, 9));
    assert_eq!(world.status().restarted.as_deref(), Some("now"));
    world.wanted.send_replace(Wanted::Remove);
    rest(&mut world).await;
    assert!(keys(&world).is_empty() && world.app.is_none());
    // A hook runs beside them, and what has none of them ends them.
    let mut world = three(scaled(false)).await;
    world.want(WITH_HOOKS);
    rest(&mut world).await;
    assert_eq!(keys(&world), ["web"]);
    world.check_settled(0);
    assert_eq!(world.status().replicas, None);
}

#[tokio::test(start_paused = true)]
async fn short_of_memory_fewer_run_and_the_first_is_never_harmed() {
    let mut world = scaled_as(false, r#""limits": {"memory": "600Mi"},"#);
    world.want("1");
    rest(&mut world).await;
    // Each may grow to its limit: what those that run do not use yet is not to be had twice.
    *world.driver.memory.lock().unwrap() = Some(1400 * MIB);
    world.driver.is_taken.store(true, Ordering::Relaxed);
    play(&mut world, 10, 400.0).await;
    assert_eq!(keys(&world).len(), 3);
    let says = "4 of 1..4: backlog 400 / 100 per replica; replica 3 does not run: beside the running one it needs 600 \
                MiB of memory (its limit) and 128 MiB of reserve, and 200 MiB are available";
    assert_eq!(status(&world).message, says);
    assert_eq!((status(&world).current_replicas, status(&world).desired_replicas), (3, 4));
    // Others take it: the last goes first, one after the other, and the first stays.
    world.driver.is_taken.store(false, Ordering::Relaxed);
    *world.driver.memory.lock().unwrap() = Some(100 * MIB);
    play(&mut world, 5, 400.0).await;
    assert_eq!(keys(&world), ["web", "web--r1"]);
    assert!(status_says(&world, "replica 2 was stopped: 100 MiB of memory were left, and 128 MiB are kept"));
    play(&mut world, 60, 400.0).await;
    assert_eq!((keys(&world), world.starts("1")), (vec!["web".to_owned()], 3));
    // It is back, and after a while so are they.
    *world.driver.memory.lock().unwrap() = Some(16 << 30);
    play(&mut world, 100, 400.0).await;
    assert_eq!(keys(&world).len(), 1);
    play(&mut world, 300, 400.0).await;
    assert_eq!(keys(&world).len(), 4);
    assert_eq!(status(&world).message, "4 of 1..4: backlog 400 / 100 per replica");
}

#[tokio::test(start_paused = true)]
async fn above_the_least_they_run_in_what_other_apps_leave() {
    let mut world = scaled_as(false, r#""requests": {"memory": "2Gi"},"#);
    world.rooms.allot(Some(Allocation::default()));
    world.want("1");
    rest(&mut world).await;
    let (other, camera): (Name, Digest) = ("camera".parse().unwrap(), Digest::of(b"camera"));
    let asks = |gib: u64| Resources { memory: Some(Bytes::new(gib << 30)), cpu_millis: None };
    world.rooms.claim(&other, camera, asks(1)).unwrap();
    play(&mut world, 10, 400.0).await;
    assert_eq!(keys(&world).len(), 3);
    let says = "replica 3 has no room: it needs 2 GiB; this box has 8 GiB, of which web 6 GiB and camera 1 GiB are \
                asked: 1 GiB left";
    assert!(status_says(&world, says), "{:?}", status(&world));
    // The other needs more: it is given it, and they make way.
    world.rooms.claim(&other, camera, asks(5)).unwrap();
    world.turns(1000, Duration::from_secs(1)).await;
    assert_eq!(keys(&world), ["web"]);
    world.rooms.keep_only(&other, &[].into());
    play(&mut world, 10, 400.0).await;
    assert_eq!(keys(&world).len(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_for_replicas_that_never_ran_is_given_back() {
    let other: Name = "camera".parse().unwrap();
    let each = Resources { memory: Some(Bytes::new(2 << 30)), cpu_millis: None };
    for (removed, before) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut world = scaled_as(false, r#""requests": {"memory": "2Gi"},"#);
        world.publish("2", r#"{"command": "bin/run", "requests": {"memory": "2Gi"}}"#);
        world.rooms.allot(Some(Allocation::default()));
        world.want("1");
        rest(&mut world).await;
        if before {
            play(&mut world, 10, 400.0).await;
            assert_eq!(keys(&world).len(), 4);
        }
        // There is room by what apps ask, and no memory: none starts, and those that ran end one after the other.
        *world.driver.memory.lock().unwrap() = Some(100 * MIB);
        play(&mut world, 60, 400.0).await;
        assert_eq!(keys(&world), ["web"]);
        assert_eq!(world.rooms.spare(&other, each, 1).0, 0, "they are still wanted");
        if removed {
            world.wanted.send_replace(Wanted::Remove);
        } else {
            world.want("2");
        }
        rest(&mut world).await;
        assert_eq!(world.app.is_none(), removed);
        let free = if removed { 4 } else { 3 };
        assert_eq!(world.rooms.spare(&other, each, free), (free, None), "removed: {removed}, they ran: {before}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_tree_is_fetched_again_and_what_runs_goes_on() {
    let mut world = three(scaled(false)).await;
    world.damage("1");
    world.driver.end(&key(1));
    play(&mut world, 30, 250.0).await;
    assert_eq!(*world.driver.violations.lock().unwrap(), Vec::<String>::new());
    assert_eq!((keys(&world).len(), world.starts("1")), (3, 4));
    assert_eq!(world.phase(), Some(UpdatePhase::Succeeded));
    let running = world.status().running.unwrap();
    assert_eq!((running.restarts, running.ready), (0, true));
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_an_app_that_nobody_wants_is_stopped() {
    let mut world = three(scaled(false)).await;
    world.crash();
    // The first one is gone, and nothing is wanted of the app: the replicas tell that there was one.
    world.driver.stop(&APP.parse().unwrap(), Duration::ZERO).await.unwrap();
    let assignment =
        Assignment { generation: 1, apps: BTreeMap::new(), drained: false, reboot: None, allocation: None };
    let (_assignment, told) = watch::channel(Some(assignment));
    let elsewhere = world.folder.path().join("apps");
    let apps = Apps::new(world.context(), elsewhere, told);
    let gone = async {
        while !world.driver.specs().is_empty() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        () = apps.run() => {}
        gone = timeout(LONG, gone) => gone.unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    /// Numbers, ends, crashes, reboots and other wishes in any order: at rest it is one release, and the first runs.
    #[test]
    fn whatever_happens_it_settles(
        warm: bool, events in prop::collection::vec((0..9_u8, 0..6_usize, 0.0..600.0_f64), 1..14),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut world = three(scaled(warm)).await;
            for (event, turns, backlog) in events {
                match event {
                    0 => world.want("2"),
                    1 => world.want("1"),
                    2 => world.crash(),
                    3 => world.reboot(),
                    4 => {
                        let runs = world.driver.specs();
                        if let Some(spec) = runs.get(turns % runs.len().max(1)) {
                            world.driver.end(&spec.key());
                        }
                    }
                    5 => world.want("3"),
                    _ => play(&mut world, 7, backlog).await,
                }
                for _ in 0..turns {
                    world.turns(1, Duration::from_secs(20)).await;
                    check(&world);
                }
            }
            world.want("2");
            play(&mut world, 400, 350.0).await;
            check_settled(&world);
            assert_eq!(keys(&world).len(), 4);
        });
    }
}
