//! Cut short between any two steps, by a crash, a reboot or a bug; and everything that can happen, in any order.

use std::{sync::atomic::Ordering, time::Duration};

use proptest::prelude::*;
use proto::{link::message::Assignment, object::UpdatePhase, watch};
use tokio::time::timeout;

use super::{APP, LONG, fakes::VERSIONS, world::World};
use crate::{
    apps::{Apps, plan::Wanted, slot::MAX_ATTEMPTS},
    driver::HookOutcome,
    fetch::tests::Fault,
};

#[tokio::test(start_paused = true)]
async fn cut_between_any_two_steps_it_converges() {
    let targets = ["2", "3", "4", "6", "7"];
    for (target, reboot) in targets.into_iter().flat_map(|target| [(target, false), (target, true)]) {
        let mut cuts = 0;
        loop {
            let mut world = World::new();
            world.want("1");
            world.settle().await;
            world.want(target);
            let rested = world.turns(cuts, LONG).await;
            if reboot {
                world.reboot()
            } else {
                world.crash()
            }
            world.settle().await;
            world.check_settled(1);
            if rested {
                break;
            }
            cuts += 1;
        }
        assert!(cuts > 5, "{target}: {cuts}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_trial_cut_by_a_reboot_goes_back_first_and_is_tried_again() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.want("2");
    while world.slot().trial.is_none() || world.driver.running() != Some(world.digest("2")) {
        world.turns(1, LONG).await;
    }
    world.reboot();
    world.driver.started.lock().unwrap().clear();
    world.settle().await;
    let started = world.driver.started.lock().unwrap().clone();
    assert_eq!(started, [world.digest("1"), world.digest("2")], "the old one first");
    world.check_settled(1);
}

#[tokio::test(start_paused = true)]
async fn three_cut_trials_count_as_a_failure() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.want("2");
    for cut in 0..MAX_ATTEMPTS {
        while world.slot().attempts(world.digest("2")) <= cut {
            world.turns(1, LONG).await;
        }
        world.crash();
    }
    world.settle().await;
    assert_eq!(world.slot().failure(world.digest("2")).unwrap().reason, "Interrupted");
    assert_eq!(world.driver.running(), Some(world.digest("1")));
    assert_eq!(world.phase(), Some(UpdatePhase::RolledBack));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_task_of_an_app_is_not_swallowed() {
    let world = World::new();
    world.driver.broken.store(true, Ordering::Relaxed);
    let assignment = Assignment {
        generation: 1,
        apps: [(APP.parse().unwrap(), world.releases["1"].clone().into())].into(),
        ..Assignment::default()
    };
    let (_sender, assignment) = watch::channel(Some(assignment));
    let apps = Apps::new(world.context(), world.folder.path().to_owned(), assignment);
    let ended = timeout(LONG, tokio::spawn(apps.run())).await.expect("it ends");
    assert!(ended.unwrap_err().is_panic());
}

#[derive(Debug, Clone)]
pub(super) enum Op {
    Want(usize),
    Remove,
    Keep,
    Hold(bool),
    Drain(bool),
    Restart(u8),
    Retry(u8),
    MaxDeferral(u64),
    Answer(u8),
    Sick(bool),
    Room(bool),
    Turns(usize),
    Sleep(u64),
    Crash,
    Reboot,
    Damage(usize),
    Line(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let version = 0..VERSIONS.len();
    prop_oneof![
        4 => version.clone().prop_map(Op::Want),
        1 => Just(Op::Remove),
        1 => Just(Op::Keep),
        2 => any::<bool>().prop_map(Op::Hold),
        2 => any::<bool>().prop_map(Op::Drain),
        1 => (0..3u8).prop_map(Op::Restart),
        1 => (0..3u8).prop_map(Op::Retry),
        1 => (0..200u64).prop_map(Op::MaxDeferral),
        2 => (0..3u8).prop_map(Op::Answer),
        1 => any::<bool>().prop_map(Op::Sick),
        1 => any::<bool>().prop_map(Op::Room),
        8 => (1..12usize).prop_map(Op::Turns),
        4 => (1..40u64).prop_map(Op::Sleep),
        2 => Just(Op::Crash),
        2 => Just(Op::Reboot),
        1 => version.prop_map(Op::Damage),
        2 => any::<bool>().prop_map(Op::Line),
    ]
}

pub(super) async fn play(ops: Vec<Op>) {
    play_in(World::new(), ops).await;
}

async fn play_in(mut world: World, ops: Vec<Op>) {
    let (mut interruptions, mut sickness) = (0, false);
    for op in ops {
        match op {
            Op::Want(version) => world.want(VERSIONS[version].0),
            Op::Remove => drop(world.wanted.send_replace(Wanted::Remove)),
            Op::Keep => drop(world.wanted.send_replace(Wanted::Keep)),
            Op::Hold(hold) => world.ask(|ask| ask.order.hold = hold),
            Op::Drain(drained) => world.ask(|ask| ask.drained = drained),
            Op::Restart(text) => world.ask(|ask| ask.order.restart = Some(text.to_string())),
            Op::Retry(text) => world.ask(|ask| ask.order.retry = Some(text.to_string())),
            Op::MaxDeferral(secs) => world.ask(|ask| ask.order.max_deferral_s = secs),
            Op::Answer(how) => world.driver.answers.lock().unwrap().push_back(match how {
                0 => HookOutcome::Success,
                1 => HookOutcome::PutOff("busy".into()),
                _ => HookOutcome::Failure("no".into()),
            }),
            Op::Sick(sick) => {
                world.driver.set_sick(sick);
                sickness |= sick;
            }
            Op::Room(enough) => world.set_room(enough),
            Op::Turns(turns) => drop(world.turns(turns, LONG).await),
            Op::Sleep(secs) => drop(world.turns(10_000, Duration::from_secs(secs)).await),
            Op::Crash => {
                world.crash();
                interruptions += 1;
            }
            Op::Reboot => {
                world.reboot();
                interruptions += 1;
            }
            // A running program is not damaged by its file; the box has to start it again.
            Op::Damage(version) => world.damage(VERSIONS[version].0),
            Op::Line(up) => {
                world.source.set(if up { Fault::None } else { Fault::Offline });
                world.online.send_replace(up);
            }
        }
    }
    // Heal, and demand progress.
    world.source.set(Fault::None);
    world.online.send_replace(true);
    world.driver.set_sick(false);
    world.settle().await;
    if sickness {
        world.check_runs(); // what failed then was, for all that the box could tell, bad
    } else {
        world.check_settled(interruptions);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_it_is_safe_and_ends_well(ops in prop::collection::vec(op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(ops));
    }

    #[test]
    fn whatever_happens_to_one_that_is_updated_warm_it_ends_well(ops in prop::collection::vec(op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play_in(World::warm(), ops));
    }
}
