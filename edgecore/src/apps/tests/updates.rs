//! From one release to the next and back, without a hub too: what runs, what is said, what is remembered.

use std::{fs, time::Duration};

use proto::{durable::Record, link::message::Report, object::UpdatePhase};

use super::{APP, world::World};
use crate::{apps::plan::Wanted, fetch::tests::Fault};

#[tokio::test(start_paused = true)]
async fn install_upgrade_and_remove() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.check_settled(0);
    assert_eq!(world.phase(), Some(UpdatePhase::Succeeded));
    world.want("2");
    world.settle().await;
    world.check_settled(0);
    let slot = world.slot();
    assert_eq!((slot.floor, slot.previous.unwrap().release.digest), (2, world.digest("1")));
    fs::write(world.folder.path().join("data/counted"), "7").unwrap();
    world.wanted.send_replace(Wanted::Remove);
    world.settle().await;
    world.check_settled(0);
    assert_eq!(world.phase(), None);
    assert_eq!(world.driver.running(), None);
    assert!(world.folder.path().join("data/counted").exists(), "data stays");
    assert_eq!(fs::read_dir(world.folder.path().join("releases")).unwrap().count(), 0);
    assert_eq!(world.slot().floor, 2, "the floor outlives the app");
    world.want("1");
    world.settle().await;
    assert_eq!(world.phase(), Some(UpdatePhase::Blocked), "an older release is refused");
    assert_eq!(world.board.borrow().workloads[APP].reason, "Rollback");
}

#[tokio::test(start_paused = true)]
async fn a_bad_release_goes_back_and_is_never_tried_again() {
    for bad in ["3", "4"] {
        let mut world = World::new();
        world.want("1");
        world.settle().await;
        world.want(bad);
        world.settle().await;
        world.check_settled(0);
        assert_eq!(world.phase(), Some(UpdatePhase::RolledBack), "{bad}");
        let tries = |w: &World| w.driver.started.lock().unwrap().iter().filter(|d| **d == w.digest(bad)).count();
        let tried = tries(&world);
        assert!(tried > 0);
        world.crash();
        world.settle().await;
        world.want("2");
        world.settle().await;
        world.want(bad);
        world.settle().await;
        world.check_settled(0);
        assert_eq!(tries(&world), tried, "{bad} ran again");
        assert!(!world.tree_of(world.digest(bad)).exists(), "its files are cleared away");
    }
}

#[tokio::test(start_paused = true)]
async fn a_remembered_failure_keeps_its_time_and_says_what_to_do() {
    let mut world = World::new();
    world.want("4");
    world.settle().await;
    let first = world.board.borrow().workloads[APP].clone();
    assert_eq!(first.phase, UpdatePhase::Failed);
    assert!(first.message.ends_with("crossdock rollout retry"), "{}", first.message);
    let failure = world.slot().failed[0].clone();
    assert_eq!((failure.counter, failure.at), (4, Some(first.since)));
    // A new agent says the same; so does a record of an agent before, that knew no time.
    world.board.send_replace(Report::default());
    world.crash();
    world.settle().await;
    assert_eq!(world.board.borrow().workloads[APP], first);
    let old = format!(r#"{{"failed": [{{"digest": "{}", "reason": "Unhealthy", "message": "m"}}]}}"#, failure.digest);
    Record::at(world.folder.path().join("slot")).store(old.as_bytes()).unwrap();
    world.crash();
    world.settle().await;
    let said = world.board.borrow().workloads[APP].message.clone();
    assert!(said.starts_with("m; it is not tried again"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_bad_first_release_leaves_nothing_running() {
    let mut world = World::new();
    world.want("3");
    world.settle().await;
    assert_eq!(world.phase(), Some(UpdatePhase::Failed));
    assert!(world.board.borrow().workloads[APP].message.contains("not healthy within 20 s"));
    assert_eq!(world.driver.running(), None);
    world.want("1");
    world.settle().await;
    world.check_settled(0);
}

#[tokio::test(start_paused = true)]
async fn the_old_release_serves_until_the_new_one_is_staged() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.source.set(Fault::Offline);
    world.online.send_replace(false);
    world.want("2");
    world.settle().await;
    assert_eq!(world.driver.running(), Some(world.digest("1")));
    assert_eq!(world.phase(), Some(UpdatePhase::Downloading));
    assert_eq!(world.board.borrow().workloads[APP].reason, "HubUnreachable");
    // Back online it does not wait for its back-off.
    world.source.set(Fault::None);
    world.online.send_replace(true);
    world.turns(100_000, Duration::from_secs(30)).await;
    world.check_settled(0);
}

#[tokio::test(start_paused = true)]
async fn without_an_assignment_what_is_active_comes_up_without_a_hub() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.reboot();
    world.source.set(Fault::Offline);
    world.wanted.send_replace(Wanted::Keep);
    world.turns(100, Duration::from_secs(5)).await;
    assert_eq!(world.driver.running(), Some(world.digest("1")));
    assert_eq!(world.phase(), Some(UpdatePhase::Succeeded));
}
