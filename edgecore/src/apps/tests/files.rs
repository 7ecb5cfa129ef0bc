//! Releases of which nothing runs, and the way to the files of an app.

use std::{fs, os::unix::fs::symlink};

use proto::object::UpdatePhase;

use super::{LONG, fakes::FILES, world::World};
use crate::{
    apps::{current, plan::Wanted},
    driver::HookOutcome,
};

fn read(world: &World) -> String {
    fs::read_to_string(world.folder.path().join("current/bin/run")).unwrap()
}

#[tokio::test(start_paused = true)]
async fn files_alone_are_in_place_at_once() {
    let mut world = World::new();
    world.want(FILES);
    world.settle().await;
    world.check_settled(0);
    let status = world.status();
    assert_eq!((status.phase, status.reason.as_str()), (UpdatePhase::Succeeded, "NoWorkload"));
    assert!(status.running.is_none() && world.driver.running().is_none());
    assert_eq!(read(&world), FILES);
    assert_eq!(world.driver.hooks.lock().unwrap().len(), 2);
    world.reboot();
    world.ask(|ask| ask.order.restart = Some("a".into()));
    world.settle().await;
    world.check_settled(0);
    assert_eq!(world.status().restarted.as_deref(), Some("a"));
    // It stops what ran before, and may become a workload again.
    for version in ["1", FILES] {
        let mut world = World::new();
        world.want("1");
        world.settle().await;
        world.want(FILES);
        world.settle().await;
        world.check_settled(0);
        world.wanted.send_replace(Wanted::Remove);
        world.settle().await;
        assert!(!world.folder.path().join("current").exists(), "{version}");
    }
}

#[tokio::test(start_paused = true)]
async fn files_that_its_hook_does_not_like_go_back() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    let answers = [HookOutcome::Success, HookOutcome::Failure("the model has no classes".into())];
    world.driver.answers.lock().unwrap().extend(answers);
    world.want(FILES);
    while world.driver.hooks.lock().unwrap().len() < 2 {
        world.turns(1, LONG).await;
    }
    assert_eq!(read(&world), FILES, "it looks at them where they will be");
    world.settle().await;
    world.check_settled(0);
    assert_eq!((world.status().phase, world.status().reason.as_str()), (UpdatePhase::RolledBack, "PostApplyFailed"));
    assert_eq!((world.driver.running(), read(&world).as_str()), (Some(world.digest("1")), "1"));
}

#[tokio::test(start_paused = true)]
async fn damaged_files_are_fetched_again() {
    let mut world = World::new();
    world.want(FILES);
    world.settle().await;
    world.crash();
    world.damage(FILES);
    world.settle().await;
    world.check_settled(0);
    assert_eq!((read(&world).as_str(), world.status().reason.as_str()), (FILES, "NoWorkload"));
}

#[tokio::test(start_paused = true)]
async fn the_way_leads_to_what_is_on_trial_and_back() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    assert_eq!(read(&world), "1");
    world.want("4");
    while read(&world) != "4" {
        assert!(!world.turns(1, LONG).await);
    }
    assert!(world.slot().trial.is_some());
    world.settle().await;
    world.check_settled(0);
    assert_eq!(read(&world), "1");
}

#[test]
fn what_is_no_such_link_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let digest = proto::digest::Digest::of(b"x");
    for odd in ["/etc", "releases/x/tree", ""] {
        let path = folder.path().join(current::NAME);
        let _ = fs::remove_file(&path);
        if !odd.is_empty() {
            symlink(odd, &path).unwrap();
        }
        assert_eq!(current::linked(folder.path()), None, "{odd}");
        symlink("left by a cut", folder.path().join("current.tmp")).unwrap();
        current::link(folder.path(), Some(digest)).unwrap();
        assert_eq!(current::linked(folder.path()), Some(digest));
    }
    current::link(folder.path(), None).unwrap();
    current::link(folder.path(), None).unwrap();
    assert_eq!(current::linked(folder.path()), None);
}
