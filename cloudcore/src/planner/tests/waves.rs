//! Waves, gates and budgets over time.

use proto::object::{
    AssignedApp,
    rollout::{Budget, Share, WavePhase, reason},
};

use super::*;

fn canary(version: u8) -> RolloutSpec {
    RolloutSpec { waves: vec![count(1, 60), percent(10, 30), percent(100, 0)], ..spec(version, "all") }
}

#[test]
fn each_wave_begins_when_the_one_before_was_healthy_long_enough() {
    let mut world = World::new(100, 5);
    world.start("r", canary(1));
    world.run(10);
    assert_eq!((world.saw(1), world.status("r").waves[0].phase), (1, WavePhase::Soaking));
    assert_eq!(world.node("r", "n7").reason, reason::WAVE);
    world.run(50);
    assert_eq!(world.saw(1), 1, "it soaks for a minute from when it was healthy");
    world.run(10);
    assert_eq!(world.saw(1), 10);
    world.run(25);
    assert_eq!(world.saw(1), 10);
    world.run(20);
    assert_eq!((world.on(1), world.status("r").phase), (100, RolloutPhase::Succeeded));
}

#[test]
fn a_bad_canary_is_all_that_ever_sees_the_release() {
    let mut world = World::new(100, 5);
    world.bad = (0..100).map(|i| (name(&format!("n{i}")), 1)).collect();
    world.start("r", canary(1));
    world.run(300);
    let status = world.status("r");
    assert_eq!((status.phase, status.reason.as_str()), (RolloutPhase::Paused, "GateFailed"));
    assert!(status.message.contains("wave 1: 0 of 1 healthy, 1 failed"), "{}", status.message);
    assert_eq!(world.saw(1), 1);
    // Resumed, that failure is forgiven, and one more is not.
    world.bad = vec![(name("n5"), 1)];
    world.spec("r").control.resumed = 1;
    world.run(300);
    // It is another wave, whose failure is its own.
    assert_eq!((world.status("r").phase, world.on(1), world.saw(1)), (RolloutPhase::Paused, 8, 10));
}

#[test]
fn a_wave_that_a_newer_rollout_took_draws_others() {
    let mut world = World::new(10, 5);
    world.start("r", RolloutSpec { waves: vec![count(1, 600), percent(100, 0)], ..spec(1, "all") });
    world.run(10);
    let canary = world.status("r").nodes.iter().find(|(_, node)| node.wave == Some(0)).unwrap().0.clone();
    world.start("other", spec(2, &format!("name={canary}")));
    world.run(30);
    let (status, first) = (world.status("r"), world.status("r").waves[0].clone());
    assert_eq!((status.phase, first.phase), (RolloutPhase::Progressing, WavePhase::Soaking), "{first:?}");
    assert_eq!(world.on(1), 1, "another one proves it, and nobody else has it yet");
    world.run(650);
    assert_eq!((world.on(1), world.on(2), world.status("r").phase), (9, 1, RolloutPhase::Superseded));
}

#[test]
fn a_release_that_fails_after_a_while_is_caught_while_it_soaks() {
    let mut world = World::new(20, 5);
    world.start("r", RolloutSpec { waves: vec![count(2, 3600), percent(100, 0)], ..spec(1, "all") });
    world.run(1200);
    assert_eq!((world.on(1), world.status("r").waves[0].phase), (2, WavePhase::Soaking));
    let sick = world.status("r").nodes.iter().find(|(_, entry)| entry.wave == Some(0)).unwrap().0.clone();
    let running = world.agents.get_mut(&sick).unwrap().running.as_mut().unwrap();
    (running.state, running.ready) = (RunState::BackOff, false);
    world.hear();
    world.settle();
    assert_eq!(world.status("r").phase, RolloutPhase::Paused);
    assert_eq!(world.node("r", sick.as_str()).reason, reason::DEGRADED);
    // That it runs again for a moment changes nothing.
    let running = world.agents.get_mut(&sick).unwrap().running.as_mut().unwrap();
    (running.state, running.ready) = (RunState::Running, true);
    world.run(4000);
    assert_eq!((world.status("r").phase, world.saw(1)), (RolloutPhase::Paused, 2));
}

#[test]
fn eleven_of_a_hundred_centers_are_offline_all_the_time() {
    let mut world = World::new(100, 1);
    for i in 0..11 {
        world.phase(&format!("n{}", i * 7), NodePhase::Unknown);
    }
    let budget = Some(Budget { max_unavailable: Share::Count(1), per: Budget::SITE.into() });
    world.start("r", RolloutSpec { budget, ..canary(1) });
    world.run(200);
    assert_eq!((world.status("r").phase, world.on(1)), (RolloutPhase::Succeeded, 89));
    world.second += 7 * 86_400;
    for i in 0..11 {
        world.phase(&format!("n{}", i * 7), NodePhase::Ready);
    }
    world.run(10);
    assert_eq!((world.on(1), world.status("r").message.as_str()), (100, "100 of 100 healthy"));
}

#[test]
fn a_wave_of_nobody_who_is_there_proves_nothing() {
    let mut world = World::new(10, 5);
    let drawn = Wave { selector: Some("kind=odd".parse().unwrap()), ..Wave::default() };
    for i in [1, 3, 5, 7, 9] {
        world.phase(&format!("n{i}"), NodePhase::Unknown);
    }
    world.start("r", RolloutSpec { waves: vec![drawn, percent(100, 0)], ..spec(1, "all") });
    world.run(3500);
    assert_eq!(world.status("r").phase, RolloutPhase::Progressing);
    world.run(200);
    assert_eq!((world.status("r").phase, world.status("r").reason.as_str()), (RolloutPhase::Paused, "Inconclusive"));
    assert_eq!(world.saw(1), 0);
    // One comes back and proves it: no hand is needed.
    world.phase("n3", NodePhase::Ready);
    world.run(20);
    assert_eq!((world.status("r").phase, world.on(1)), (RolloutPhase::Succeeded, 6));
}

#[test]
fn a_wave_that_shrinks_to_nothing_does_not_pass() {
    let mut world = World::new(4, 5);
    world.start("r", RolloutSpec { waves: vec![count(1, 0), percent(100, 0)], ..spec(1, "all") });
    world.settle();
    let gone = world.status("r").nodes.iter().find(|(_, entry)| entry.wave == Some(0)).unwrap().0.clone();
    world.now.nodes.remove(&gone);
    world.run(4000);
    assert_eq!((world.status("r").phase, world.saw(1)), (RolloutPhase::Paused, 0));
    world.spec("r").control.resumed = 1;
    world.run(10);
    assert_eq!((world.status("r").phase, world.on(1)), (RolloutPhase::Succeeded, 3), "passed by hand");
}

#[test]
fn an_approval_is_waited_for_and_named() {
    let mut world = World::new(4, 5);
    let asks = Wave { approval: true, ..percent(100, 0) };
    world.start("r", RolloutSpec { waves: vec![count(1, 0), asks], ..spec(1, "all") });
    world.run(10);
    assert_eq!(
        (world.status("r").phase, world.status("r").reason.as_str()),
        (RolloutPhase::Paused, "AwaitingApproval")
    );
    let waiting = world.status("r").nodes.values().filter(|entry| entry.reason == reason::APPROVAL).count();
    assert_eq!(waiting, 3);
    world.spec("r").control.approved.insert("2".into());
    world.run(10);
    assert_eq!(world.status("r").phase, RolloutPhase::Succeeded);
}

#[test]
fn a_budget_is_never_overdrawn_and_says_who_has_it() {
    let mut world = World::new(12, 4);
    let budget = Some(Budget { max_unavailable: Share::Count(2), per: Budget::SITE.into() });
    world.start("r", RolloutSpec { budget, ..spec(1, "all") });
    world.phase("n0", NodePhase::Unknown);
    let mut named = false;
    for _ in 0..60 {
        world.run(1);
        for site in 0..3 {
            let unavailable = (0..4).filter(|i| {
                let node = &world.now.nodes[&name(&format!("n{}", site * 4 + i))];
                let told = node.spec.apps.get(&name("app")).is_some_and(|a| !a.order.hold);
                let done = node.status.workloads.get(&name("app")).is_some_and(|w| w.phase == UpdatePhase::Succeeded);
                node.status.phase != NodePhase::Ready || told && !done
            });
            assert!(unavailable.count() <= 2, "site s{site}");
        }
        named |= world.status("r").nodes.values().any(|n| {
            n.reason == reason::BUDGET && n.phase == UpdatePhase::Staged && n.message.contains("of site s0 at most 2")
        });
    }
    assert!(named);
    assert_eq!((world.status("r").phase, world.on(1)), (RolloutPhase::Succeeded, 11));
}

#[test]
fn half_a_site_dies_and_the_rollout_holds_there_alone() {
    let mut world = World::new(8, 4);
    let budget = Some(Budget { max_unavailable: Share::Count(2), per: Budget::SITE.into() });
    for dead in ["n0", "n1"] {
        world.phase(dead, NodePhase::Unknown);
    }
    world.start("r", RolloutSpec { budget, ..spec(1, "all") });
    world.run(30);
    assert_eq!(world.on(1), 4, "the other site");
    let waiting = world.node("r", "n2");
    assert_eq!((waiting.phase, waiting.reason.as_str()), (UpdatePhase::Staged, reason::BUDGET));
    assert!(waiting.message.contains("n0, n1"), "{}", waiting.message);
    assert_eq!(world.status("r").phase, RolloutPhase::Progressing);
    world.phase("n0", NodePhase::Ready);
    world.run(30);
    assert_eq!((world.on(1), world.status("r").phase), (7, RolloutPhase::Succeeded));
}

#[test]
fn nodes_begin_spread_over_the_jitter() {
    let mut world = World::new(50, 5);
    world.start("r", RolloutSpec { jitter: Span::from_secs(100), ..spec(1, "all") });
    world.run(50);
    assert!((10..40).contains(&world.saw(1)), "{}", world.saw(1));
    assert!(world.status("r").nodes.values().any(|entry| entry.reason == reason::JITTER));
    world.run(60);
    assert_eq!(world.on(1), 50);
}

#[test]
fn a_pause_begins_nothing_and_lets_finish() {
    let mut world = World::new(4, 5);
    let budget = Some(Budget { max_unavailable: Share::Count(1), per: Budget::FLEET.into() });
    world.start("r", RolloutSpec { budget, ..spec(1, "all") });
    world.run(3);
    world.spec("r").control.paused = true;
    world.run(50);
    assert_eq!((world.on(1), world.status("r").phase), (1, RolloutPhase::Paused));
    assert!(world.status("r").nodes.values().filter(|entry| entry.reason == reason::PAUSED).count() == 3);
    world.spec("r").control.paused = false;
    world.run(50);
    assert_eq!(world.status("r").phase, RolloutPhase::Succeeded);
}

#[test]
fn a_pause_holds_those_too_who_come_back() {
    let mut world = World::new(3, 5);
    world.phase("n2", NodePhase::Unknown);
    world.start("r", spec(1, "all"));
    world.run(2);
    world.spec("r").control.paused = true;
    world.run(10);
    assert_eq!((world.status("r").phase, world.on(1)), (RolloutPhase::Paused, 2), "what has begun finishes");
    world.phase("n2", NodePhase::Ready);
    world.run(10);
    assert_eq!((world.told("n2"), world.node("r", "n2").reason.as_str()), (None, reason::PAUSED));
    world.spec("r").control.paused = false;
    world.run(10);
    assert_eq!((world.status("r").phase, world.on(1)), (RolloutPhase::Succeeded, 3));
    // Paused after its success, it stays one, and holds who comes then.
    world.spec("r").control.paused = true;
    let mut late = world.now.nodes[&name("n0")].clone();
    (late.metadata.name, late.spec.apps, late.status.workloads) = (name("n9").into(), [].into(), [].into());
    world.now.nodes.insert(name("n9"), late);
    world.run(10);
    assert_eq!((world.status("r").phase, world.told("n9")), (RolloutPhase::Succeeded, None));
}

#[test]
fn a_budget_is_asked_again_when_another_app_frees_a_node() {
    let mut world = World::new(2, 2);
    let budget = Some(Budget { max_unavailable: Share::Count(1), per: Budget::FLEET.into() });
    world.start("r", RolloutSpec { budget, ..spec(1, "all") });
    world.phase("n1", NodePhase::NotReady);
    world.run(10);
    let mut planner = Planner::new(world.now.clone());
    assert_eq!((planner.plan(at(world.second)).steps, world.told("n0")), (vec![], Some(("1".into(), true))));

    // Told of another app alone, n0 is to be had no longer; then it is, and n1 as well.
    let set = |planner: &mut Planner, now: &Snapshot, node: &str| {
        planner.set_node(name(node), Some(now.nodes[&name(node)].clone()))
    };
    let other = AssignedApp::new("1".parse().unwrap(), digest(1), None);
    world.now.nodes.get_mut(&name("n0")).unwrap().spec.apps.insert(name("other"), other);
    set(&mut planner, &world.now, "n0");
    assert_eq!(planner.plan(at(world.second)), plan(&world.now, at(world.second)));
    world.now.nodes.get_mut(&name("n0")).unwrap().spec.apps.remove(&name("other"));
    set(&mut planner, &world.now, "n0");
    world.phase("n1", NodePhase::Ready);
    set(&mut planner, &world.now, "n1");
    let planned = planner.plan(at(world.second));
    assert!(!planned.steps.is_empty());
    assert_eq!(planned, plan(&world.now, at(world.second)));
}

#[test]
fn what_a_rollout_without_a_budget_begins_counts_in_the_budget_of_an_older_one() {
    let mut world = World::new(3, 3);
    let budget = Some(Budget { max_unavailable: Share::Count(1), per: "kind".into() });
    world.start("old", RolloutSpec { budget, ..spec(1, "kind=even") });
    world.run(1); // n0 and n2 fetch
    assert_eq!((world.told("n0"), world.told("n2")), (Some(("1".into(), true)), Some(("1".into(), true))));
    world.work();
    // A newer one begins at once on a node of the same group, as a roll-back does.
    world.start("new", spec(2, "name=n0"));
    world.settle();
    assert_eq!((world.told("n0"), world.told("n2")), (Some(("2".into(), false)), Some(("1".into(), true))));
}

#[test]
fn time_alone_changes_nothing_about_a_node_that_is_held_and_gone() {
    for phase in [NodePhase::Pending, NodePhase::Unknown, NodePhase::NotReady] {
        let mut world = World::new(4, 4);
        let budget = Some(Budget { max_unavailable: Share::Count(1), per: Budget::FLEET.into() });
        world.start("r", RolloutSpec { budget, ..spec(1, "all") });
        world.run(2);
        world.phase("n2", phase);
        world.settle();
        assert_eq!(plan(&world.now, at(world.second + 4000)).steps, vec![], "{phase}");
    }
}
