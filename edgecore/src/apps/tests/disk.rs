//! A disk that damages trees, loses the slot, is full or keeps litter.

use std::{fs, time::Duration};

use proto::object::UpdatePhase;
use tokio::time::timeout;

use super::{
    APP, LONG,
    cuts::{Op, play},
    world::World,
};
use crate::{
    apps::{plan::Wanted, task::Turn, work},
    fetch::{tests::Fault, tree},
};

#[tokio::test(start_paused = true)]
async fn a_damaged_release_is_not_run_and_mends_when_the_hub_is_there() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.reboot();
    world.damage("1");
    world.source.set(Fault::Offline);
    world.online.send_replace(false);
    world.settle().await;
    assert_eq!(world.driver.running(), None);
    assert_eq!(world.phase(), Some(UpdatePhase::Blocked));
    assert_eq!(world.board.borrow().workloads[APP].reason, "TreeDamaged");
    world.source.set(Fault::None);
    world.online.send_replace(true);
    world.settle().await;
    world.check_settled(0);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_tree_stops_nothing_that_runs() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.damage("1");
    world.crash();
    world.settle().await;
    let starts = world.driver.started.lock().unwrap().len();
    assert_eq!((world.driver.running(), starts), (Some(world.digest("1")), 1), "adopted as it is");
    world.check_settled(0);
    // Once it ends it is fetched again before it starts.
    world.reboot();
    world.settle().await;
    world.check_settled(0);
    assert!(tree::verify(&world.tree_of(world.digest("1")), world.digest("1"), &"web@1".parse().unwrap()).is_ok());
}

/// A trial that was undone for a damaged tree is none that was cut short.
#[tokio::test(start_paused = true)]
async fn a_tree_damaged_before_its_trial_counts_as_no_attempt() {
    play(vec![Op::Want(1), Op::Turns(2), Op::Damage(1), Op::Turns(5), Op::Crash, Op::Turns(1), Op::Crash]).await;
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.want("2");
    while world.slot().trial.is_none() {
        world.turns(1, LONG).await;
    }
    world.damage("2");
    while world.slot().trial.is_some() {
        world.turns(1, LONG).await;
    }
    assert_eq!(world.slot().attempts, None);
    world.settle().await;
    world.check_settled(0);
}

/// Found by the property of [`cuts`](super::cuts): damage between the check of the tree and the start of the program.
#[tokio::test(start_paused = true)]
async fn a_tree_damaged_just_before_its_start_does_not_run() {
    play(vec![Op::Want(1), Op::Turns(6), Op::Reboot, Op::Turns(1), Op::Damage(1), Op::Want(0)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_slot_leaves_what_runs_and_says_so() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.want("2");
    world.settle().await;
    world.crash();
    for name in ["slot", "slot.bak"] {
        fs::write(world.folder.path().join(name), "x").unwrap();
    }
    let (first, _) = tokio::sync::oneshot::channel();
    let folder = world.folder.path().to_owned();
    let app = work(world.context(), APP.parse().unwrap(), folder, world.wanted.subscribe(), first);
    timeout(Duration::from_secs(60), app).await.unwrap_err();
    assert_eq!(world.driver.running(), Some(world.digest("2")));
    assert_eq!(world.board.borrow().workloads[APP].reason, "StateLost");
}

/// Takes from the disk, or gives back, the room for a new slot.
pub(super) fn fill_disk(world: &World, full: bool) {
    for name in ["slot.tmp", "slot.bak.tmp"] {
        let path = world.folder.path().join(name);
        if full { fs::create_dir(path).unwrap() } else { fs::remove_dir(path).unwrap() }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_trial_stops_although_the_disk_is_full() {
    for bad in ["3", "4"] {
        let mut world = World::new();
        world.want("1");
        world.settle().await;
        world.want(bad);
        while world.slot().trial.is_none() {
            world.turns(1, LONG).await;
        }
        fill_disk(&world, true);
        let mut app = world.app.take().unwrap();
        let until_stuck = async {
            while let Ok(turn) = app.turn().await {
                if let Turn::Wait(until) = turn {
                    app.changed(until).await;
                }
            }
        };
        timeout(LONG, until_stuck).await.expect("its failure cannot be recorded");
        assert_eq!(world.driver.running(), None, "{bad} is stopped all the same");
        fill_disk(&world, false);
        // Cut between the stop and the record it is tried again, and fails again.
        drop(app);
        world.settle().await;
        world.check_settled(1);
        assert!(world.slot().failure(world.digest(bad)).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn litter_that_cannot_be_cleared_away_is_tried_again() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    let litter = world.folder.path().join("releases/litter");
    fs::create_dir(&litter).unwrap();
    world.want("2");
    let releases = world.folder.path().join("releases");
    world.settle().await;
    assert!(!litter.exists());
    // A release folder that is none cannot be read.
    let app = world.app.as_mut().unwrap();
    let aside = world.folder.path().join("aside");
    fs::rename(&releases, &aside).unwrap();
    fs::write(&releases, "").unwrap();
    world.wanted.send_replace(Wanted::Keep);
    app.changed(None).await;
    app.turn().await.unwrap_err();
    fs::remove_file(&releases).unwrap();
    fs::rename(&aside, &releases).unwrap();
    fs::create_dir(&litter).unwrap();
    app.turn().await.unwrap();
    assert!(!litter.exists());
}
