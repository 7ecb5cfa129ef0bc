//! A new release beside the old one: it warms up, takes over in one step, and nobody is ever without.

use std::time::Duration;

use proto::{durable::Record, object::UpdatePhase};
use tokio::time::timeout;

use super::{APP, LONG, disk::fill_disk, fakes::WITH_HOOKS, gpus::show, world::World};
use crate::{
    apps::{
        live,
        plan::Wanted,
        slot::{MAX_ATTEMPTS, RestartState},
        task::Turn,
    },
    driver::{Driver as _, HookOutcome, Side},
};

/// A box that serves, and is never to be without again.
async fn serving() -> World {
    let mut world = World::warm();
    world.want("1");
    world.settle().await;
    world.check_settled(0);
    world.must_serve = true;
    world
}

/// The postApply hook of the version with hooks is to fail.
fn fail_post_apply(world: &World) {
    let mut answers = world.driver.answers.lock().unwrap();
    answers.extend([HookOutcome::Success, HookOutcome::Failure("no scans".into())]);
}

#[tokio::test(start_paused = true)]
async fn an_update_warms_up_beside_the_old_one_and_takes_over_without_a_gap() {
    let mut world = serving().await;
    for (version, side) in [("2", Side::B), ("5", Side::A)] {
        world.want(version);
        world.turn_until(|world| world.driver.specs().len() == 2).await;
        let status = world.status();
        assert_eq!((status.phase, status.reason.as_str()), (UpdatePhase::Applying, "Warming"));
        assert_ne!(world.slot().side, side, "the old one is live while it warms up");
        world.settle().await;
        world.check_settled(0);
        assert_eq!((world.starts(version), world.slot().side), (1, side));
        assert_eq!(world.phase(), Some(UpdatePhase::Succeeded));
    }
    assert_eq!(world.starts("1"), 1);
    let spec = world.driver.spec().unwrap();
    assert_eq!(spec.workload.env[live::OWN], world.folder.path().join("run/a").display().to_string());
    assert_eq!(spec.workload.env[live::LIVE], world.folder.path().join("run/live").display().to_string());
    world.must_serve = false;
    world.wanted.send_replace(Wanted::Remove);
    world.settle().await;
    assert_eq!((world.driver.running(), live::linked(world.folder.path())), (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_standby_that_fails_leaves_the_old_one_alone() {
    for bad in ["3", "4"] {
        let mut world = serving().await;
        world.want(bad);
        world.settle().await;
        world.check_settled(0);
        assert_eq!(world.phase(), Some(UpdatePhase::RolledBack));
        assert!(world.status().message.contains("it did not go live: "), "{}", world.status().message);
        assert_eq!((world.starts("1"), world.slot().side), (1, Side::A));
    }
}

#[tokio::test(start_paused = true)]
async fn what_fails_once_it_is_live_goes_back_the_same_way() {
    let mut world = serving().await;
    fail_post_apply(&world);
    world.want(WITH_HOOKS);
    world.settle().await;
    world.check_settled(0);
    let slot = world.slot();
    assert_eq!(slot.failure(world.digest(WITH_HOOKS)).unwrap().reason, "PostApplyFailed");
    assert_eq!((world.starts("1"), slot.side), (2, Side::A), "it was started again, beside");
    // Where there is no room any more it goes back by stop and start.
    let mut world = serving().await;
    fail_post_apply(&world);
    world.want(WITH_HOOKS);
    world.turn_until(|world| world.slot().side == Side::B).await;
    world.set_room(false);
    world.must_serve = false;
    world.turn_until(|world| world.driver.specs().len() == 1).await;
    while world.slot().trial.is_some() {
        world.turns(1, LONG).await;
        assert!(world.driver.specs().len() < 2);
    }
    world.settle().await;
    world.check_settled(0);
    assert_eq!(world.slot().active.unwrap().release.digest, world.digest("1"));
}

#[tokio::test(start_paused = true)]
async fn without_the_memory_for_both_it_is_stop_and_start_and_says_why() {
    let mut world = serving().await;
    world.must_serve = false;
    world.set_room(false);
    world.want("2");
    let mut said = vec![];
    while !world.turns(1, LONG).await {
        assert!(world.driver.specs().len() < 2, "there is no room for two");
        said.push(world.status().message);
    }
    world.check_settled(0);
    let why = "the one before was stopped first: beside the running one it needs 512 MiB of memory (what the running \
               one uses) and 128 MiB of reserve, and 512 MiB are available";
    assert!(said.iter().any(|text| text.contains(why)), "{said:?}");
    assert_eq!(world.slot().side, Side::A);
    // Whoever comes from a release that knows nothing of it is not beside another either.
    let mut world = World::warm();
    world.publish("1", r#"{"command": "bin/run", "soak": "3s"}"#);
    world.want("1");
    world.settle().await;
    world.want("2");
    while !world.turns(1, LONG).await {
        assert!(world.driver.specs().len() < 2);
    }
    world.check_settled(0);
}

/// A workload that is updated warm and needs GPUs.
fn needs(gpus: &str) -> String {
    format!(
        r#"{{"command": "bin/run", "soak": "3s", "deadline": "20s", "update": {{"strategy": "warm"}}, "gpus": {gpus},
            "probes": {{"readiness": {{"exec": {{"command": ["bin/run"]}}, "period": "500ms"}}}}}}"#
    )
}

#[tokio::test(start_paused = true)]
async fn what_takes_the_place_of_another_release_gets_gpus_or_waits() {
    // The agent ends again and again, or comes back to another wish, while the next release is live beside nothing.
    for wish in [None, Some("1")] {
        let mut world = World::warm();
        for version in ["1", "2"] {
            world.publish(version, &needs(r#"{"memory": "10Gi", "exclusive": false}"#));
        }
        show(&world, &[("GPU-a", "")]);
        world.want("1");
        world.settle().await;
        world.want("2");
        world.turn_until(|world| world.slot().side == Side::B && world.driver.specs().len() == 1).await;
        match wish {
            Some(wish) => world.want(wish),
            None => {
                for _ in 1..MAX_ATTEMPTS {
                    world.crash();
                    world.turn_until(|world| world.slot().attempts(world.digest("2")) > 1).await;
                    world.turns(2, LONG).await;
                }
            }
        }
        world.crash();
        show(&world, &[("GPU-a", "lost")]);
        let starts = world.starts("1");
        world.settle().await;
        assert_eq!((world.starts("1"), world.driver.running()), (starts, None), "nothing starts without its GPU");
        assert_eq!(world.slot().active.unwrap().release.digest, world.digest("1"));
        show(&world, &[("GPU-a", "")]);
        world.settle().await;
        assert_eq!(world.driver.spec().unwrap().gpus, ["GPU-a"]);
        assert_eq!(world.driver.running(), Some(world.digest("1")));
    }
}

#[tokio::test(start_paused = true)]
async fn two_instances_both_need_their_gpus() {
    let shared = r#"{"memory": "10Gi", "exclusive": false}"#;
    for (gpus, has, warm, given) in [
        ("{}", &[("GPU-a", "")][..], false, "GPU-a"),
        ("{}", &[("GPU-a", ""), ("GPU-b", "")], true, "GPU-b"),
        (shared, &[("GPU-a", "")], true, "GPU-a"),
        (r#"{"memory": "16Gi", "exclusive": false}"#, &[("GPU-a", "")], false, "GPU-a"),
    ] {
        let mut world = World::warm();
        for version in ["1", "2"] {
            world.publish(version, &needs(gpus));
        }
        show(&world, has);
        world.want("1");
        world.settle().await;
        world.must_serve = warm;
        world.want("2");
        let mut said = vec![];
        while !world.turns(1, LONG).await {
            said.push(world.status().message);
        }
        world.check_settled(0);
        assert_eq!(world.slot().side == Side::B, warm, "{gpus} on {has:?}");
        assert_eq!(said.iter().any(|text| text.contains("stopped first: it wants 1 GPU")), !warm, "{said:?}");
        assert_eq!(world.driver.spec().unwrap().gpus.join(","), given);
        let inventory = world.gpus.inventory().unwrap();
        assert_eq!(inventory.devices.iter().map(|gpu| gpu.apps.len()).sum::<usize>(), 1, "the rest is given back");
    }
}

#[tokio::test(start_paused = true)]
async fn another_wish_in_between_costs_nobody_anything() {
    for live in [false, true] {
        for wish in ["1", "5"] {
            let mut world = serving().await;
            world.want("2");
            let so = |world: &World| world.slot().trial.as_ref().is_some_and(|trial| trial.standby != live);
            world.turn_until(|world| so(world) && !world.driver.specs().is_empty()).await;
            world.want(wish);
            world.settle().await;
            world.check_settled(0);
            assert!(world.slot().failed.is_empty(), "nothing is held against it");
        }
    }
    // Everything stops when the node is drained, or the app removed.
    for both in [true, false] {
        for remove in [true, false] {
            let mut world = serving().await;
            world.want("2");
            world.turn_until(|world| world.driver.specs().len() == 2).await;
            if !both {
                world.turn_until(|world| world.slot().side == Side::B).await;
            }
            world.must_serve = false;
            match remove {
                true => drop(world.wanted.send_replace(Wanted::Remove)),
                false => world.ask(|ask| ask.drained = true),
            }
            world.settle().await;
            assert_eq!(world.driver.running(), None);
            world.check_runs();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_was_asked_for_is_one_with_going_live() {
    for (version, starts) in [("2", 1), ("4", 2)] {
        let mut world = serving().await;
        world.want(version);
        world.turn_until(|world| world.slot().trial.is_some()).await;
        world.ask(|ask| ask.order.restart = Some("now".into()));
        world.must_serve = version == "2"; // what never goes live leaves the restart to be done
        world.settle().await;
        world.check_settled(0);
        let runs = world.slot().active.unwrap().release.version.to_string();
        assert_eq!(world.starts(&runs), starts, "{version}");
        assert_eq!(world.slot().restart.unwrap().state, RestartState::Done);
    }
}

#[tokio::test(start_paused = true)]
async fn cut_between_any_two_steps_of_a_warm_update_one_is_live() {
    let how = [(true, false), (true, true), (false, false), (false, true)];
    for (target, (enough, reboot)) in ["2", "3", "4", "6 fails"].into_iter().flat_map(|t| how.map(|how| (t, how))) {
        let mut cuts = 0;
        loop {
            let mut world = serving().await;
            world.set_room(enough);
            world.must_serve = enough && !reboot;
            if target == "6 fails" {
                fail_post_apply(&world);
            }
            world.want(target.trim_end_matches(" fails"));
            let rested = world.turns(cuts, LONG).await;
            if reboot {
                world.reboot()
            } else {
                world.crash()
            }
            world.settle().await;
            if target == "6 fails" {
                world.check_runs(); // the hook is asked again, and answers otherwise
            } else {
                world.check_settled(1);
            }
            if rested {
                break;
            }
            cuts += 1;
        }
        assert!(cuts > 5, "{target}: {cuts}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_standby_that_takes_the_agent_down_counts_as_failed() {
    let mut world = serving().await;
    world.want("2");
    for cut in 0..MAX_ATTEMPTS {
        world.turn_until(|world| world.slot().attempts(world.digest("2")) > cut).await;
        world.crash();
    }
    world.settle().await;
    assert_eq!(world.slot().failure(world.digest("2")).unwrap().reason, "Interrupted");
    assert_eq!((world.driver.running(), world.starts("1")), (Some(world.digest("1")), 1));
    // The same once it was live.
    let mut world = serving().await;
    world.want("2");
    world.turn_until(|world| world.slot().side == Side::B).await;
    for _ in 0..MAX_ATTEMPTS {
        world.crash();
        world.turns(3, LONG).await;
    }
    world.settle().await;
    world.check_runs();
}

#[tokio::test(start_paused = true)]
async fn an_agent_of_before_leaves_a_state_that_is_planned_from() {
    for turns in 1..25 {
        let mut world = serving().await;
        world.want("2");
        world.turns(turns, LONG).await;
        world.crash();
        world.must_serve = false;
        // It takes the second instance for that of an app that is not assigned, and writes what it knows.
        let second = Side::B.key(&APP.parse().unwrap()).unwrap();
        world.driver.stop(&second, Duration::ZERO).await.unwrap();
        let mut slot = world.slot();
        slot.side = Side::A;
        if let Some(trial) = &mut slot.trial {
            (trial.standby, trial.cold) = (false, None);
        }
        let record = Record::at(world.folder.path().join("slot"));
        crate::apps::slot::store(&record, &slot).unwrap();
        world.settle().await;
        world.check_settled(1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_failed_stops_although_the_disk_is_full() {
    let mut world = serving().await;
    fail_post_apply(&world);
    world.want(WITH_HOOKS);
    world.turn_until(|world| world.slot().side == Side::B && world.driver.specs().len() == 1).await;
    fill_disk(&world, true);
    let mut app = world.app.take().unwrap();
    let until_stuck = async {
        while let Ok(turn) = app.turn().await {
            if let Turn::Wait(until) = turn {
                app.changed(until).await;
            }
        }
    };
    timeout(LONG, until_stuck).await.expect("that it goes back cannot be recorded");
    assert_eq!(world.driver.running(), Some(world.digest("1")), "the bad one is stopped, the old one is there");
    fill_disk(&world, false);
    world.app = Some(app);
    world.must_serve = false;
    world.settle().await;
    world.check_settled(0);
    assert!(world.slot().failure(world.digest(WITH_HOOKS)).is_some());
}
