//! Restarts of an app and of nodes: in waves and budgets like releases, and each once.

use proto::object::rollout::{Budget, Share, Window, reason};

use super::*;

/// A fleet of four that runs version 1.
fn running() -> World {
    let mut world = World::new(4, 2);
    world.start("first", spec(1, "all"));
    world.run(10);
    assert_eq!(world.on(1), 4);
    world.second += 1;
    world
}

fn one_by_one(spec: RolloutSpec) -> RolloutSpec {
    let budget = Some(Budget { max_unavailable: Share::Count(1), per: Budget::FLEET.into() });
    RolloutSpec { budget, ..spec }
}

/// The most that were down at once while a rollout came to its end.
fn most_down(world: &mut World, rollout: &str) -> usize {
    let mut most = 0;
    for _ in 0..40 {
        world.run(1);
        most = most.max(world.now.nodes.values().filter(|node| super::super::budget::is_unavailable(node)).count());
    }
    assert_eq!(world.status(rollout).phase, RolloutPhase::Succeeded, "{:?}", world.status(rollout));
    most
}

#[test]
fn nodes_restart_one_by_one_when_only_one_may_be_down() {
    let mut world = running();
    world.start("r", one_by_one(reboot("all")));
    assert_eq!(most_down(&mut world, "r"), 1);
    let done = world.reboots.values().filter(|said| said.phase == UpdatePhase::Succeeded);
    assert_eq!(done.count(), 4);
    let mut world = running();
    world.start("r", reboot("all"));
    assert_eq!(most_down(&mut world, "r"), 4, "without a budget they go together");
}

#[test]
fn a_node_that_went_down_and_stays_away_holds_the_others_up() {
    let mut world = running();
    world.start("r", RolloutSpec { waves: vec![count(1, 0), percent(100, 0)], ..reboot("all") });
    world.run(1);
    let told = |world: &World| -> Vec<String> {
        let nodes = world.now.nodes.values().filter(|node| node.spec.reboot.is_some());
        nodes.map(|node| node.name().to_owned()).collect()
    };
    let first = told(&world);
    assert_eq!(first.len(), 1);
    world.run(1);
    world.phase(&first[0], NodePhase::Unknown);
    world.second += 600;
    world.settle();
    let at_work = |world: &World| world.status("r").wave_counts(0).at_work();
    assert_eq!((at_work(&world), told(&world)), (1, first.clone()), "it is no node that happens to be away");
    world.phase(&first[0], NodePhase::Ready);
    world.run(10);
    assert_eq!((world.status("r").phase, told(&world).len()), (RolloutPhase::Succeeded, 4));
}

#[test]
fn a_restart_that_fails_stops_the_rollout() {
    let mut world = running();
    world.bad = (0..4).map(|i| (name(&format!("n{i}")), 0)).collect();
    world.start("r", RolloutSpec { waves: vec![count(1, 0), percent(100, 0)], ..reboot("all") });
    world.run(10);
    assert_eq!((world.status("r").phase, world.reboots.len()), (RolloutPhase::Paused, 1));
}

#[test]
fn an_aborted_restart_is_taken_back_from_whoever_did_not_hear_of_it() {
    let mut world = running();
    world.start("r", reboot("all"));
    world.settle();
    world.phase("n1", NodePhase::Unknown); // told, and gone before it heard
    world.work();
    world.settle();
    world.spec("r").control.aborted = true;
    world.run(5);
    world.phase("n1", NodePhase::Ready);
    world.run(5);
    assert_eq!((world.reboots.len(), world.now.nodes[&name("n1")].spec.reboot.as_ref()), (3, None));
    assert_eq!(world.node("r", "n1").reason, reason::ABORTED);
}

#[test]
fn of_two_restarts_the_newer_is_carried_out_once() {
    for spec in [restart("all"), reboot("all")] {
        let mut world = running();
        let spec = RolloutSpec { waves: vec![count(1, 5), percent(100, 0)], ..spec };
        world.start("older", spec.clone());
        world.run(3);
        world.second += 1;
        world.start("newer", spec);
        let mut orders = BTreeMap::<Name, Vec<String>>::new();
        for _ in 0..40 {
            world.run(1);
            for (name, node) in &world.now.nodes {
                let app = node.spec.apps.values().find_map(|assigned| assigned.order.restart.clone());
                let seen = orders.entry(name.clone()).or_default();
                for order in app.into_iter().chain(node.spec.reboot.clone()) {
                    if seen.last() != Some(&order) {
                        seen.push(order);
                    }
                }
            }
        }
        assert_eq!(world.status("newer").phase, RolloutPhase::Succeeded, "{:?}", world.status("newer"));
        assert_eq!(world.status("older").phase, RolloutPhase::Superseded);
        for (node, seen) in orders {
            assert_eq!(seen.iter().filter(|order| *order == "newer").count(), 1, "{node}: {seen:?}");
            assert_eq!(seen.last().map(String::as_str), Some("newer"));
        }
    }
}

#[test]
fn a_newer_restart_leaves_an_update_alone_that_waits_for_the_word() {
    let mut world = running();
    world.phase("n0", NodePhase::NotReady); // it uses the budget up
    world.start("update", one_by_one(spec(2, "name=n1")));
    world.spec("update").budget.as_mut().unwrap().max_unavailable = Share::Count(1);
    world.start("older", RolloutSpec { waves: vec![count(1, 50), percent(100, 0)], ..restart("name=n1") });
    world.run(5);
    world.second += 1;
    world.start("newer", restart("name=n1"));
    world.run(5);
    assert_eq!(world.told("n1").unwrap().0, "2");
    assert_eq!(world.status("newer").phase, RolloutPhase::Succeeded);
}

#[test]
fn an_agent_that_knows_no_restart_of_nodes_is_named() {
    let mut world = running();
    world.now.nodes.get_mut(&name("n0")).unwrap().status.info.as_mut().unwrap().features.remove(feature::REBOOT);
    world.start("r", reboot("all"));
    world.run(10);
    let entry = world.node("r", "n0");
    assert_eq!((entry.phase, entry.reason.as_str()), (UpdatePhase::Blocked, reason::TOO_OLD));
    assert_eq!(world.now.nodes[&name("n0")].spec.reboot, None);
    let bad = RolloutSpec { version: Some("1".parse().unwrap()), ..reboot("all") };
    world.start("bad", bad);
    world.settle();
    assert!(world.status("bad").message.contains("no version"), "{}", world.status("bad").message);
}

#[test]
fn what_was_restarted_is_not_restarted_again_after_another_installation() {
    let mut world = running();
    world.start("r", RolloutSpec { waves: vec![count(2, 60), percent(100, 0)], ..reboot("all") });
    world.run(6);
    let first = world.reboots.keys().next().unwrap().clone();
    world.now.nodes.get_mut(&first).unwrap().spec.reboot = None; // as the hub does when a box joins again
    world.reboots.remove(&first);
    world.hear();
    world.run(10);
    assert_eq!(world.now.nodes[&first].spec.reboot, None);
    assert_eq!(world.node("r", first.as_str()).phase, UpdatePhase::Succeeded);
}

#[test]
fn an_app_that_went_meanwhile_leaves_the_planner_at_rest() {
    let mut world = World::new(3, 3);
    world.start("first", spec(1, "all"));
    world.run(2);
    world.second += 1;
    world.start("restart", restart("all"));
    world.settle();
    world.spec("first").control.aborted = true;
    world.run(5);
    assert_eq!(world.node("restart", "n0").reason, reason::NOT_RUNNING);
    let since = world.node("restart", "n0").since;
    world.run(5);
    assert_eq!(world.node("restart", "n0").since, since);
}

#[test]
fn who_lets_go_of_a_node_does_not_undo_what_the_newer_rollout_tells_it() {
    let mut world = World::new(3, 3);
    world.phase("n1", NodePhase::NotReady); // it uses the budget of the older one up
    let one_a_site = Some(Budget { max_unavailable: Share::Count(1), per: Budget::SITE.into() });
    world.start("older", RolloutSpec { budget: one_a_site, ..spec(1, "all") });
    world.run(4);
    assert_eq!(world.told("n0"), Some(("1".into(), true)));
    world.second += 1;
    world.start("newer", spec(1, "all"));
    let steps = plan(&world.now, at(world.second)).steps;
    world.carry_out(steps);
    assert_eq!(world.told("n0"), Some(("1".into(), false)));
}

#[test]
fn two_rollouts_do_not_overwrite_each_other_in_one_plan() {
    let mut world = running();
    world.start("update", one_by_one(spec(2, "all")));
    world.second += 1;
    world.start("restart", one_by_one(restart("all")));
    let steps = plan(&world.now, at(world.second)).steps;
    let mut nodes: Vec<&Name> = vec![];
    for step in &steps {
        if let Step::SetApp { node, .. } = step {
            assert!(!nodes.contains(&node), "{node} is told twice: {steps:?}");
            nodes.push(node);
        }
    }
    world.run(40);
    assert_eq!((world.status("update").phase, world.on(2)), (RolloutPhase::Succeeded, 4));
    assert_eq!(world.status("restart").phase, RolloutPhase::Succeeded);
}

#[test]
fn a_node_that_does_not_come_back_has_failed() {
    let mut world = running();
    world.start("r", RolloutSpec { waves: vec![count(1, 0), percent(100, 0)], ..reboot("all") });
    world.run(2);
    let victim = world.reboots.keys().next().unwrap().clone();
    world.now.nodes.get_mut(&victim).unwrap().status.last_seen = Some(at(world.second));
    world.phase(victim.as_str(), NodePhase::Unknown);
    world.settle();
    let wake = plan(&world.now, at(world.second)).wake.unwrap();
    assert_eq!(wake, at(world.second + 1800));
    world.second += 1800;
    world.settle();
    assert_eq!(world.node("r", victim.as_str()).reason, reason::NOT_BACK);
    assert_eq!((world.status("r").phase, world.reboots.len()), (RolloutPhase::Paused, 1));
}

#[test]
fn an_agent_that_was_put_back_to_an_older_one_uses_no_budget_up() {
    let mut world = running();
    world.start("r", reboot("all"));
    world.run(10);
    let node = world.now.nodes.get_mut(&name("n0")).unwrap();
    node.status.info.as_mut().unwrap().features.remove(feature::REBOOT);
    world.reboots.remove(&name("n0"));
    world.hear();
    world.second += 1;
    world.start("update", one_by_one(spec(2, "all")));
    world.run(40);
    assert_eq!((world.status("update").phase, world.on(2)), (RolloutPhase::Succeeded, 4));
}

#[test]
fn what_is_given_back_does_not_order_an_older_restart_again() {
    let mut world = running();
    world.start("one", restart("all"));
    world.run(5);
    world.second += 1;
    let mut update = spec(2, "name=n1");
    update.windows.apply =
        vec![Window { days: [].into(), from: "13:00".parse().unwrap(), to: "14:00".parse().unwrap() }];
    world.start("update", update);
    world.run(5);
    assert_eq!(world.told("n1"), Some(("2".into(), true)));
    world.second += 1;
    world.start("two", restart("name=n1"));
    world.run(5);
    world.spec("update").control.aborted = true;
    world.run(5);
    let told = &world.now.nodes[&name("n1")].spec.apps[&name("app")];
    assert_eq!((told.version.as_str(), told.order.restart.as_deref()), ("1", Some("two")));
}

#[test]
fn the_name_of_a_restart_that_nodes_know_is_refused() {
    let check = |world: &World, name: &str, spec| {
        let new: Rollout = Object::new(name.parse::<ObjectName>().unwrap(), spec);
        super::super::check::is_new_to_nodes(&new, &world.now)
    };
    let mut world = running();
    world.start("r", reboot("all"));
    world.run(10);
    world.start("a", restart("all"));
    world.run(10);
    world.now.rollouts.clear();
    let refused = check(&world, "r", reboot("all")).unwrap_err();
    assert_eq!(refused, "name r: an earlier restart had it and node n0 knows that one as done; take another name");
    check(&world, "a", restart("all")).unwrap_err();
    assert_eq!(check(&world, "b", reboot("all")), Ok(()));
    assert_eq!(check(&world, "a", spec(2, "all")), Ok(()), "a release is known by its digest");
}
