//! History is bounded, and what anybody still follows is none.

use proto::object::rollout::OnFailure;

use super::{super::trim::superfluous, *};

fn forgotten(world: &World, limit: usize) -> Vec<String> {
    superfluous(&world.now, limit, at(world.second))
}

#[test]
fn the_oldest_that_nobody_follows_are_forgotten() {
    let mut world = World::new(3, 3);
    for number in 0..6 {
        world.start(&format!("r{number}"), spec(1 + number, "all"));
        world.run(10);
        world.second += 1;
    }
    assert_eq!(world.status("r5").phase, RolloutPhase::Succeeded);
    assert_eq!(forgotten(&world, 6), Vec::<String>::new());
    assert_eq!(forgotten(&world, 2), ["r0", "r1", "r2", "r3"]);
    assert_eq!(forgotten(&world, 0), ["r0", "r1", "r2", "r3", "r4"], "who joins still gets the newest");
}

#[test]
fn what_a_node_still_follows_is_kept() {
    let mut world = World::new(3, 3);
    world.start("old", spec(1, "all"));
    world.run(10);
    world.now.nodes.get_mut(&name("n0")).unwrap().spec.pinned.insert(name("app"));
    for number in 0..3 {
        world.second += 1;
        world.start(&format!("r{number}"), spec(2 + number, "all"));
        world.run(10);
    }
    world.second += 1;
    world.start("restart", restart("name=n1"));
    world.run(10);
    assert_eq!(world.told("n0").unwrap().0, "1");
    assert_eq!(forgotten(&world, 0), ["r0", "r1"]);
}

#[test]
fn what_goes_on_is_kept_and_so_are_both_halves_of_an_undoing() {
    let mut world = World::new(3, 3);
    world.bad = vec![(name("n0"), 2), (name("n1"), 2), (name("n2"), 2)];
    world.start(
        "undone",
        RolloutSpec { on_failure: OnFailure::RollBack, rollback_to: Some("9".parse().unwrap()), ..spec(2, "all") },
    );
    world.run(20);
    assert_eq!(world.status("undone").phase, RolloutPhase::RolledBack);
    assert_eq!(forgotten(&world, 0), Vec::<String>::new(), "its nodes follow the undoing");
    world.second += 1;
    world.start("next", spec(3, "name=n0"));
    world.spec("next").control.paused = true;
    world.run(5);
    assert_eq!(forgotten(&world, 0), Vec::<String>::new());
}

#[test]
fn forgetting_changes_nothing_that_is_planned() {
    let mut world = World::new(4, 2);
    for number in 0..5 {
        world.start(&format!("r{number}"), spec(1 + number, "all"));
        world.run(10);
        world.second += 1;
    }
    world.start("last", RolloutSpec { waves: vec![count(1, 0), percent(100, 0)], ..spec(8, "all") });
    world.run(2);
    let before = world.clone();
    for rollout in forgotten(&world, 0) {
        world.now.rollouts.remove(&rollout);
    }
    assert!(world.now.rollouts.len() < before.now.rollouts.len());
    assert_eq!(plan(&world.now, at(world.second)), plan(&before.now, at(before.second)));
    world.run(20);
    assert_eq!((world.status("last").phase, world.on(8)), (RolloutPhase::Succeeded, 4));
}

#[test]
fn what_was_superseded_in_the_middle_of_its_work_is_forgotten_too() {
    let mut world = World::new(3, 3);
    for number in 0..4 {
        world.start(&format!("r{number}"), spec(1 + number, "all"));
        world.run(3); // at work
        world.second += 1;
    }
    world.run(10);
    assert_eq!(world.status("r0").phase, RolloutPhase::Superseded);
    assert_eq!(forgotten(&world, 1), ["r0", "r1", "r2"]);
}
