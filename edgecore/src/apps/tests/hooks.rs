//! The hooks of a release: asked before the old one stops and in the trial, put off for so long, failed.

use std::time::Duration;

use proto::object::UpdatePhase;
use tokio::time::Instant;

use super::{LONG, fakes::WITH_HOOKS, world::World};
use crate::{apps::slot::Deferral, driver::HookOutcome};

/// A box that runs version 1 and is to run the one with hooks, which answer this first.
async fn updating(answers: &[HookOutcome], max_deferral_s: u64) -> World {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.driver.answers.lock().unwrap().extend(answers.iter().cloned());
    world.want(WITH_HOOKS);
    world.ask(|ask| ask.order.max_deferral_s = max_deferral_s);
    world
}

fn put_off() -> HookOutcome {
    HookOutcome::PutOff("a truck is at the dock".into())
}

fn asked(world: &World) -> Vec<String> {
    world.driver.hooks.lock().unwrap().iter().map(|(hook, _)| hook.clone()).collect()
}

async fn until_reason(world: &mut World, reason: &str) {
    while world.status().reason != reason {
        assert!(!world.turns(1, LONG).await, "it rests and never says {reason}");
    }
}

#[tokio::test(start_paused = true)]
async fn both_run_at_their_moment() {
    let mut world = updating(&[], 0).await;
    world.settle().await;
    world.check_settled(0);
    let (old, new) = (world.digest("1"), world.digest(WITH_HOOKS));
    let seen = world.driver.hooks.lock().unwrap().clone();
    assert_eq!(seen, [("bin/pre".to_owned(), Some(old)), ("bin/post".to_owned(), Some(new))]);
    assert_eq!(world.status().phase, UpdatePhase::Succeeded);
    // What is active starts without them.
    world.reboot();
    world.settle().await;
    assert_eq!(asked(&world).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_first_release_is_asked_too() {
    let mut world = World::new();
    world.want(WITH_HOOKS);
    world.settle().await;
    world.check_settled(0);
    assert_eq!(asked(&world), ["bin/pre", "bin/post"]);
}

#[tokio::test(start_paused = true)]
async fn when_pre_apply_fails_what_runs_goes_on_untouched() {
    let mut world = updating(&[HookOutcome::Failure("it ended with exit status: 1: no paper".into())], 600).await;
    world.settle().await;
    world.check_settled(0);
    let status = world.status();
    assert_eq!((status.phase, status.reason.as_str()), (UpdatePhase::RolledBack, "PreApplyFailed"));
    assert!(status.message.starts_with("its preApply hook failed: it ended with exit status: 1: no paper"));
    assert_eq!((world.starts("1"), world.starts(WITH_HOOKS)), (1, 0));
    world.crash();
    world.settle().await;
    assert_eq!(asked(&world), ["bin/pre"], "it is remembered");
    world.ask(|ask| ask.order.retry = Some("a".into()));
    world.settle().await;
    world.check_settled(0);
    assert_eq!(world.driver.running(), Some(world.digest(WITH_HOOKS)));
}

#[tokio::test(start_paused = true)]
async fn when_post_apply_fails_it_goes_back() {
    for answer in [HookOutcome::Failure("no scans".into()), put_off()] {
        let mut world = updating(&[HookOutcome::Success, answer], 600).await;
        world.settle().await;
        world.check_settled(0);
        let status = world.status();
        assert_eq!((status.phase, status.reason.as_str()), (UpdatePhase::RolledBack, "PostApplyFailed"));
        assert!(status.message.starts_with("its postApply hook"), "{}", status.message);
        assert_eq!((world.starts("1"), world.starts(WITH_HOOKS)), (2, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_is_put_off_for_so_long_and_then_goes_ahead_unasked() {
    let answers = vec![put_off(); 20];
    let mut world = updating(&answers, 100).await;
    until_reason(&mut world, "Deferred").await;
    let begun = Instant::now();
    let status = world.status();
    assert_eq!(status.phase, UpdatePhase::Staged);
    assert!(status.message.contains("until 2") && status.message.ends_with("at the dock"), "{}", status.message);
    world.driver.answers.lock().unwrap().truncate(2); // after 30 s, after 60 s more, and postApply is not put off
    while world.starts(WITH_HOOKS) == 0 {
        world.turns(1, LONG).await;
    }
    assert_eq!(begun.elapsed().as_secs(), 100);
    world.settle().await;
    world.check_settled(0);
    assert_eq!(asked(&world), ["bin/pre", "bin/pre", "bin/pre", "bin/post"]);
    assert_eq!(world.slot().deferral, None);
}

#[tokio::test(start_paused = true)]
async fn an_update_that_may_not_be_put_off_goes_ahead_at_once() {
    let mut world = updating(&[put_off()], 0).await;
    world.settle().await;
    world.check_settled(0);
    assert_eq!(asked(&world), ["bin/pre", "bin/post"]);
    assert_eq!(world.driver.running(), Some(world.digest(WITH_HOOKS)));
}

#[tokio::test(start_paused = true)]
async fn the_time_put_off_outlives_the_agent_and_one_that_comes_and_goes() {
    let answers = vec![put_off(); 20];
    let mut world = updating(&answers, 100).await;
    for spent_s in [0, 30, 60, 90] {
        until_reason(&mut world, "Deferred").await;
        let digest = world.digest(WITH_HOOKS);
        while world.slot().deferral != Some(Deferral { digest, spent_s }) {
            assert!(!world.turns(1, LONG).await);
        }
        world.crash();
        world.board.send_modify(|board| board.workloads.clear());
        world.turns(1, Duration::ZERO).await;
    }
    world.driver.answers.lock().unwrap().truncate(1);
    world.settle().await;
    world.check_settled(0);
    assert_eq!(asked(&world).len(), 6, "five times, and postApply");
}

#[tokio::test(start_paused = true)]
async fn a_hold_ends_the_asking_and_a_restart_goes_on_meanwhile() {
    let mut world = updating(&[put_off()], 10_000).await;
    until_reason(&mut world, "Deferred").await;
    world.ask(|ask| ask.order.restart = Some("a".into()));
    while world.status().restarted.is_none() {
        assert!(!world.turns(1, LONG).await);
    }
    assert_eq!((world.starts("1"), world.starts(WITH_HOOKS)), (2, 0));
    world.ask(|ask| ask.order.hold = true);
    world.settle().await;
    assert_eq!(world.status().reason, "Held");
    let before = asked(&world).len();
    world.ask(|ask| ask.order.hold = false);
    world.settle().await;
    world.check_settled(0);
    assert_eq!(asked(&world).len(), before + 2, "asked anew, and postApply");
}
