//! What was unhealthy before an update, for a reason outside, does not blame it; what the update broke does.

use std::time::Duration;

use proto::object::UpdatePhase;

use super::{LONG, fakes::WITH_HOOKS, world::World};
use crate::{apps::slot::Slot, driver::HookOutcome};

/// Longer than the probes of the tests take to tell.
const RED: Duration = Duration::from_secs(5);

/// A box that runs version 1, which has been unhealthy for so long.
async fn unhealthy(for_: Duration) -> World {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.driver.set_sick(true);
    world.turns(1_000, for_).await;
    world
}

fn said(world: &World) -> (UpdatePhase, String) {
    (world.status().phase, world.status().reason)
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_was_red_before_does_not_blame_the_update() {
    let mut world = unhealthy(RED).await;
    for version in ["2", "4"] {
        world.want(version);
        world.settle().await;
        world.check_settled(0);
        assert_eq!(said(&world), (UpdatePhase::Succeeded, "UnhealthyBefore".into()), "{version}");
        assert_eq!(world.driver.running(), Some(world.digest(version)));
        // A new agent says so too.
        world.crash();
        world.settle().await;
        assert_eq!(said(&world).1, "UnhealthyBefore");
    }
    world.ask(|ask| ask.drained = true);
    world.settle().await;
    assert_eq!(said(&world), (UpdatePhase::Succeeded, "Drained".into()));
    world.driver.set_sick(false);
    world.want("5");
    world.settle().await;
    assert_eq!(said(&world), (UpdatePhase::Succeeded, String::new()));
}

#[tokio::test(start_paused = true)]
async fn one_that_crashes_is_blamed_whatever_was_before() {
    let mut world = unhealthy(RED).await;
    world.want("3");
    world.settle().await;
    world.check_settled(0);
    assert_eq!(said(&world), (UpdatePhase::RolledBack, "Unhealthy".into()));
    assert_eq!(world.driver.running(), Some(world.digest("1")));
}

#[tokio::test(start_paused = true)]
async fn one_that_breaks_what_was_healthy_is_blamed() {
    let mut world = unhealthy(RED).await;
    world.driver.set_sick(false);
    world.turns(1_000, RED).await;
    world.want("4");
    world.settle().await;
    world.check_settled(0);
    assert_eq!(said(&world), (UpdatePhase::RolledBack, "Unhealthy".into()));
}

/// After a cut the agent has to find out anew what it goes back to.
#[tokio::test(start_paused = true)]
async fn a_cut_anywhere_does_not_blame_it_either() {
    for reboot in [false, true] {
        let mut cuts = 0;
        loop {
            let mut world = unhealthy(RED).await;
            world.want("2");
            let rested = world.turns(cuts, LONG).await;
            if reboot {
                world.reboot()
            } else {
                world.crash()
            }
            world.settle().await;
            world.check_settled(1);
            let Slot { failed, unhealthy_before, .. } = world.slot();
            assert_eq!((failed, unhealthy_before), (vec![], true), "cut after {cuts} steps");
            if rested {
                break;
            }
            cuts += 1;
        }
        assert!(cuts > 5, "{cuts}");
    }
}

#[tokio::test(start_paused = true)]
async fn its_post_apply_hook_has_the_last_word() {
    let mut world = unhealthy(RED).await;
    world.want(WITH_HOOKS);
    let answers = [HookOutcome::Success, HookOutcome::Failure("no".into())];
    world.driver.answers.lock().unwrap().extend(answers);
    world.settle().await;
    assert_eq!(said(&world), (UpdatePhase::RolledBack, "PostApplyFailed".into()));
}
