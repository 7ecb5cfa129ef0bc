//! What is ordered besides a release: hold, restart, retry, drain; also across crashes.

use proto::{
    digest::Digest,
    durable::Record,
    object::{ReleaseRef, UpdatePhase},
};
use serde_json::json;

use super::{LONG, world::World};
use crate::apps::{
    plan::Wanted,
    slot::{self, Installed, RestartState, Slot},
};

/// A box that runs version 1.
async fn running() -> World {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world
}

#[tokio::test(start_paused = true)]
async fn a_held_release_is_staged_and_waits_for_the_word() {
    let mut world = running().await;
    world.want("2");
    world.ask(|ask| ask.order.hold = true);
    world.settle().await;
    world.check_settled(0);
    let status = world.status();
    assert_eq!((status.phase, status.reason.as_str()), (UpdatePhase::Staged, "Held"));
    assert!(status.message.contains("waits for the word"), "{}", status.message);
    assert_eq!(world.driver.running(), Some(world.digest("1")));
    assert!(world.tree_of(world.digest("2")).exists());
    // A new agent holds it too.
    world.crash();
    world.settle().await;
    assert_eq!((world.status().reason.as_str(), world.starts("1")), ("Held", 1));
    world.ask(|ask| ask.order.hold = false);
    world.settle().await;
    assert_eq!(world.driver.running(), Some(world.digest("2")));
    assert_eq!((world.status().phase, world.status().reason.as_str()), (UpdatePhase::Succeeded, ""));
}

#[tokio::test(start_paused = true)]
async fn a_first_release_is_held_too() {
    let mut world = World::new();
    world.want("1");
    world.ask(|ask| ask.order.hold = true);
    world.settle().await;
    assert_eq!((world.status().phase, world.status().reason.as_str()), (UpdatePhase::Staged, "Held"));
    assert_eq!(world.driver.running(), None);
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_began_goes_on_although_it_is_held() {
    let mut world = running().await;
    world.want("2");
    while world.slot().trial.is_none() {
        world.turns(1, LONG).await;
    }
    world.ask(|ask| ask.order.hold = true);
    world.settle().await;
    assert_eq!(world.driver.running(), Some(world.digest("2")));
    assert_eq!(world.phase(), Some(UpdatePhase::Succeeded));
}

#[tokio::test(start_paused = true)]
async fn a_restart_is_carried_out_once_for_each_text() {
    let mut world = running().await;
    for (text, starts) in [("a", 2), ("b", 3), ("b", 3), ("a", 4)] {
        world.ask(|ask| ask.order.restart = Some(text.into()));
        world.settle().await;
        world.check_settled(0);
        assert_eq!(world.starts("1"), starts, "{text}");
        let status = world.status();
        assert_eq!((status.restarted.as_deref(), status.restart_failed), (Some(text), None));
        assert_eq!((status.phase, status.reason.as_str()), (UpdatePhase::Succeeded, ""));
        world.crash();
        world.settle().await;
        assert_eq!(world.starts("1"), starts, "not again, {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_is_told_when_it_proved_healthy_and_not_before() {
    let mut world = running().await;
    world.ask(|ask| ask.order.restart = Some("a".into()));
    while world.starts("1") < 2 {
        world.turns(1, LONG).await;
        assert_eq!(world.status().restarted, None);
    }
    world.turns(1, LONG).await;
    assert_eq!((world.status().restarted, world.status().reason.as_str()), (None, "Restarting"));
    world.settle().await;
    assert_eq!(world.status().restarted.as_deref(), Some("a"));
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_does_not_come_up_says_so() {
    let mut world = running().await;
    world.driver.set_sick(true);
    world.ask(|ask| ask.order.restart = Some("a".into()));
    world.settle().await;
    let status = world.status();
    assert_eq!((status.phase, status.restarted.as_deref()), (UpdatePhase::Succeeded, Some("a")));
    let why = status.restart_failed.unwrap();
    assert!(why.starts_with("it was not healthy within 20 s: readiness probe failed"), "{why}");
    assert_eq!(world.starts("1"), 2);
}

#[tokio::test(start_paused = true)]
async fn cut_between_any_two_steps_a_restart_happens_once() {
    for reboot in [false, true] {
        let mut cuts = 0;
        loop {
            let mut world = running().await;
            world.ask(|ask| ask.order.restart = Some("a".into()));
            let rested = world.turns(cuts, LONG).await;
            let starts = world.starts("1");
            if reboot {
                world.reboot()
            } else {
                world.crash()
            }
            world.settle().await;
            world.check_settled(1);
            assert_eq!(world.status().restarted.as_deref(), Some("a"));
            if reboot {
                assert!(world.starts("1") <= starts + 2, "{cuts} {starts}");
            } else {
                assert_eq!(world.starts("1"), 2, "cut after {cuts} steps");
            }
            if rested {
                break;
            }
            cuts += 1;
        }
        assert!(cuts > 4, "{cuts}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_app_that_is_new_does_not_restart() {
    let mut world = World::new();
    world.want("1");
    world.ask(|ask| ask.order.restart = Some("a".into()));
    world.settle().await;
    world.check_settled(0);
    assert_eq!((world.starts("1"), world.status().restarted.as_deref()), (1, Some("a")));
}

#[tokio::test(start_paused = true)]
async fn an_update_is_a_restart_and_one_asked_for_during_a_trial_waits_for_its_end() {
    let mut world = running().await;
    world.want("2");
    world.ask(|ask| ask.order.hold = true);
    world.settle().await;
    world.ask(|ask| (ask.order.hold, ask.order.restart) = (false, Some("a".into())));
    while world.starts("2") == 0 {
        world.turns(1, LONG).await;
    }
    world.ask(|ask| ask.order.restart = Some("b".into()));
    while world.slot().trial.is_some() {
        assert_eq!(world.starts("2"), 1);
        world.turns(1, LONG).await;
    }
    world.settle().await;
    world.check_settled(0);
    assert_eq!((world.starts("1"), world.starts("2")), (1, 2), "a with the update, b after it");
    assert_eq!(world.status().restarted.as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn a_failed_release_is_tried_once_more_for_each_text() {
    let mut world = running().await;
    world.want("4");
    world.ask(|ask| ask.order.retry = Some("before it failed".into()));
    world.settle().await;
    world.check_settled(0);
    assert_eq!(
        (world.starts("4"), world.status().phase),
        (1, UpdatePhase::RolledBack),
        "a text counts once, read early"
    );
    for (text, tries) in [("a", 2), ("a", 2), ("b", 3)] {
        world.ask(|ask| ask.order.retry = Some(text.into()));
        world.settle().await;
        world.check_settled(0);
        assert_eq!((world.starts("4"), world.status().phase), (tries, UpdatePhase::RolledBack), "{text}");
        world.crash();
        world.settle().await;
        assert_eq!(world.starts("4"), tries);
    }
    // This time its trouble is over.
    world.driver.set_healed(true);
    world.ask(|ask| ask.order.retry = Some("c".into()));
    world.settle().await;
    assert_eq!((world.driver.running(), world.status().phase), (Some(world.digest("4")), UpdatePhase::Succeeded));
}

#[tokio::test(start_paused = true)]
async fn a_drained_node_runs_nothing_and_keeps_everything() {
    let mut world = running().await;
    world.ask(|ask| ask.drained = true);
    world.settle().await;
    world.check_settled(0);
    assert_eq!(world.driver.running(), None);
    let status = world.status();
    assert_eq!((status.phase, status.reason.as_str()), (UpdatePhase::Succeeded, "Drained"));
    assert!(status.running.is_none() && status.message.contains("the node is drained"), "{status:?}");
    // What comes meanwhile is fetched and does not begin; after a reboot too.
    world.want("2");
    world.ask(|ask| (ask.drained, ask.order.restart) = (true, Some("a".into())));
    world.settle().await;
    world.reboot();
    world.settle().await;
    assert_eq!((world.driver.running(), world.starts("2")), (None, 0));
    assert_eq!((world.status().phase, world.status().reason.as_str()), (UpdatePhase::Staged, "Drained"));
    world.ask(|ask| ask.drained = false);
    world.settle().await;
    world.check_settled(0);
    assert_eq!(world.driver.running(), Some(world.digest("2")));
    assert_eq!(world.status().restarted.as_deref(), Some("a"));
}

#[tokio::test(start_paused = true)]
async fn a_trial_on_a_drained_node_is_withdrawn_without_blame() {
    for version in ["2", "4"] {
        let mut world = running().await;
        world.want(version);
        while world.starts(version) == 0 {
            world.turns(1, LONG).await;
        }
        world.ask(|ask| ask.drained = true);
        world.settle().await;
        world.check_settled(0);
        let slot = world.slot();
        assert_eq!((slot.attempts, slot.failed, world.driver.running()), (None, vec![], None));
        world.ask(|ask| ask.drained = false);
        world.settle().await;
        world.check_settled(0);
    }
}

#[test]
fn a_slot_of_an_agent_before_reads_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let record = Record::at(folder.path().join("slot"));
    record.store(include_bytes!("golden/slot-before-orders.json")).unwrap();
    let release = |n: &str| {
        let release = ReleaseRef { version: n.parse().unwrap(), digest: Digest::of(n.as_bytes()) };
        Installed::new(release, n.parse().unwrap())
    };
    let slot = slot::load(&record).unwrap();
    assert_eq!((slot.active.clone(), slot.previous.clone()), (Some(release("2")), Some(release("1"))));
    let trial = slot.trial.clone().unwrap();
    assert_eq!((trial.installed, trial.boot_id.as_str()), (release("3"), "boot"));
    assert_eq!((slot.attempts(Digest::of(b"3")), slot.floor, slot.failed.len()), (1, 2, 1));
    assert_eq!((slot.restart.clone(), slot.retried.clone()), (None, None));
    // And an agent before reads what this one writes: all that it knows is there, in the same form.
    let mut newer = slot;
    newer.restart = Some(slot::Restart::new("a", RestartState::Failed("why".into())));
    slot::store(&record, &newer).unwrap();
    assert_eq!(slot::load(&record).unwrap(), newer);
    let (written, old) = (json!(newer), include_str!("golden/slot-before-orders.json"));
    let old: serde_json::Value = serde_json::from_str(old).unwrap();
    for (field, value) in old.as_object().unwrap() {
        assert_eq!(&written[field], value, "{field}");
    }
    assert_eq!(written["restart"], json!({"text": "a", "state": "failed", "message": "why"}));
    assert_eq!(serde_json::from_str::<Slot>("{}").unwrap(), Slot::default());
}

/// An assignment that is lost asks for nothing, and undoes nothing.
#[tokio::test(start_paused = true)]
async fn without_an_assignment_nothing_is_asked() {
    let mut world = running().await;
    world.ask(|ask| ask.order.restart = Some("a".into()));
    world.settle().await;
    world.wanted.send_replace(Wanted::Keep);
    world.crash();
    world.settle().await;
    assert_eq!((world.starts("1"), world.status().restarted.as_deref()), (2, Some("a")));
}
