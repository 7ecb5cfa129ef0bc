//! Verdicts, ownership and refusals, one by one.

use proto::object::{
    Condition, ConditionStatus, SiteSpec, condition,
    rollout::{Budget, Day, OnFailure, Share, Window, reason},
};

use super::{super::forecast::forecast, *};

fn fleet(phases: &[NodePhase]) -> World {
    let mut world = World::new(phases.len(), 100);
    for (i, phase) in phases.iter().enumerate() {
        world.phase(&format!("n{i}"), *phase);
    }
    world.start("r", spec(1, "all"));
    world
}

#[test]
fn success_is_what_every_node_says_itself() {
    let mut world = fleet(&[NodePhase::Ready; 2]);
    world.settle();
    assert_eq!(world.status("r").phase, RolloutPhase::Progressing);
    world.report("n0", 1, UpdatePhase::Succeeded);
    world.settle();
    assert_eq!(world.status("r").phase, RolloutPhase::Progressing);
    // The right word about the wrong digest counts for nothing.
    world.report("n1", 2, UpdatePhase::Succeeded);
    world.settle();
    assert_eq!(world.status("r").phase, RolloutPhase::Progressing);
    world.report("n1", 1, UpdatePhase::Verifying);
    world.settle();
    assert_eq!(world.status("r").phase, RolloutPhase::Progressing);
    world.report("n1", 1, UpdatePhase::Succeeded);
    world.second = 114;
    world.settle();
    assert_eq!(world.status("r").phase, RolloutPhase::Succeeded);
    assert_eq!(world.status("r").finished_at, Some(at(114)));
}

#[test]
fn a_failure_fails_the_rollout_once_nobody_is_at_work() {
    let mut world = fleet(&[NodePhase::Ready, NodePhase::Ready, NodePhase::Unknown]);
    world.settle();
    world.report("n0", 1, UpdatePhase::RolledBack);
    world.settle();
    assert_eq!(world.status("r").phase, RolloutPhase::Progressing);
    world.report("n1", 1, UpdatePhase::Succeeded);
    world.settle();
    assert_eq!(world.status("r").phase, RolloutPhase::Failed);
    assert!(
        world.status("r").message.starts_with("wave 1: 1 of 3 healthy, 1 failed, 1 deferred"),
        "{:?}",
        world.status("r")
    );
    assert_eq!(world.node("r", "n2").phase, UpdatePhase::Deferred);
    // It comes back later, and is spared.
    world.phase("n2", NodePhase::Ready);
    world.settle();
    assert_eq!(world.told("n2"), None);
}

#[test]
fn an_offline_node_holds_up_nobody_and_gets_its_turn_when_it_is_back() {
    let mut world = fleet(&[NodePhase::Ready, NodePhase::Unknown, NodePhase::Pending]);
    world.report("n1", 1, UpdatePhase::Succeeded); // an old word, said before the rollout
    world.run(10);
    assert_eq!(world.status("r").phase, RolloutPhase::Succeeded);
    assert_eq!(world.status("r").message, "1 of 3 healthy, 2 deferred");
    assert_eq!(world.told("n1"), None, "it is told when it is there");
    assert_eq!(world.node("r", "n1").reason, reason::OFFLINE);
    assert_eq!(world.node("r", "n2").reason, reason::NEVER_CONNECTED);
    // Going away afterwards takes back nothing; a week later the others are back.
    world.phase("n0", NodePhase::Unknown);
    world.second += 7 * 86_400;
    world.agents.clear();
    for node in ["n1", "n2"] {
        world.phase(node, NodePhase::Ready);
    }
    world.run(10);
    assert_eq!(world.status("r").message, "3 of 3 healthy");
}

#[test]
fn a_node_that_joins_later_gets_what_is_current() {
    let mut world = World::new(3, 100);
    let late = world.now.nodes.remove(&name("n2")).unwrap();
    world.start("first", spec(1, "all"));
    world.run(10);
    world.start("second", spec(2, "kind=odd"));
    world.run(10);
    world.now.nodes.insert(name("n2"), late);
    world.run(10);
    assert_eq!(world.told("n2"), Some(("1".into(), false)));
    assert_eq!(world.status("first").message, "2 of 3 healthy, 1 superseded");
    assert_eq!((world.on(1), world.on(2)), (2, 1));
}

#[test]
fn nodes_belong_to_the_newer_rollout() {
    let mut world = fleet(&[NodePhase::Ready; 2]);
    world.settle();
    world.second = 120;
    world.start("newer", spec(2, "name=n0"));
    world.settle();
    assert_eq!((world.told("n0").unwrap().0, world.told("n1").unwrap().0), ("2".into(), "1".into()));
    world.report("n1", 1, UpdatePhase::Succeeded);
    world.settle();
    assert_eq!(world.status("r").phase, RolloutPhase::Superseded, "one of its nodes never proved its release");
    assert_eq!(world.status("newer").phase, RolloutPhase::Progressing);
    world.second = 130;
    world.start("newest", spec(1, "all"));
    world.settle();
    assert_eq!(world.status("newer").phase, RolloutPhase::Superseded);
}

#[test]
fn an_abort_leaves_a_node_with_what_it_had() {
    let mut world = World::new(3, 100);
    world.start("first", spec(1, "all"));
    world.run(10);
    let budget = Some(Budget { max_unavailable: Share::Count(1), per: Budget::FLEET.into() });
    world.start("second", RolloutSpec { budget, ..spec(2, "all") });
    world.run(3);
    // All were told to fetch, one to apply.
    assert_eq!(world.saw(2), 3);
    let held = |world: &World| (0..3).filter(|i| world.told(&format!("n{i}")).unwrap().1).count();
    assert_eq!(held(&world), 2);
    world.spec("second").control.aborted = true;
    world.run(20);
    assert_eq!(world.status("second").phase, RolloutPhase::Aborted);
    assert_eq!((world.on(1), world.on(2)), (2, 1), "what has begun finishes");
    assert_eq!(held(&world), 0);
    // Those nodes belong to the older one again; who joins gets that.
    let mut late = world.now.nodes[&name("n0")].clone();
    late.metadata.name = name("n9").into();
    late.spec.apps.clear();
    late.status.workloads.clear();
    world.now.nodes.insert(name("n9"), late);
    world.run(5);
    assert_eq!(world.told("n9").unwrap().0, "1");
}

#[test]
fn a_silent_node_is_held_by_an_abort_until_it_says_how_far_it_is() {
    let mut world = World::new(2, 100);
    world.start("first", spec(1, "all"));
    world.run(10);
    world.start("second", spec(2, "all"));
    world.settle();
    world.phase("n0", NodePhase::Unknown);
    world.spec("second").control.aborted = true;
    world.settle();
    assert_eq!(world.told("n1").unwrap().0, "1");
    assert_eq!(world.told("n0"), Some(("2".into(), true)));
    world.phase("n0", NodePhase::Ready);
    world.run(5);
    assert_eq!(world.told("n0"), Some(("1".into(), false)));
    assert_eq!(world.on(1), 2);
}

#[test]
fn a_silent_node_that_was_through_is_not_held_any_more() {
    let mut world = World::new(2, 100);
    world.start("second", spec(2, "all"));
    world.settle();
    world.phase("n0", NodePhase::Unknown);
    world.spec("second").control.aborted = true;
    world.settle();
    assert_eq!(world.told("n0"), Some(("2".into(), true)));
    world.phase("n0", NodePhase::Ready);
    world.report("n0", 2, UpdatePhase::Succeeded);
    world.settle();
    // Were it reinstalled now, it would begin with what it had.
    assert_eq!(world.told("n0"), Some(("2".into(), false)));
    assert_eq!(world.node("second", "n0").phase, UpdatePhase::Succeeded);
}

#[test]
fn a_failed_canary_takes_the_fleet_back_when_that_was_asked_for() {
    let mut world = World::new(10, 2);
    world.start("first", spec(1, "all"));
    world.run(10);
    world.bad = (0..10).map(|i| (name(&format!("n{i}")), 2)).skip(3).collect();
    let rollback = RolloutSpec {
        waves: vec![count(5, 0), percent(100, 0)],
        on_failure: OnFailure::RollBack,
        rollback_to: Some("3".parse().unwrap()),
        ..spec(2, "all")
    };
    world.start("second", rollback);
    world.run(20);
    assert_eq!(world.status("second").phase, RolloutPhase::RolledBack, "{:?}", world.status("second"));
    assert_eq!(world.status("second.undo").phase, RolloutPhase::Succeeded);
    assert_eq!((world.on(1), world.on(2), world.on(3)), (5, 0, 5), "those it touched, and no other");
}

#[test]
fn a_retry_tries_failed_nodes_once_more() {
    let mut world = World::new(3, 100);
    world.bad = vec![(name("n1"), 1)];
    world.start("r", RolloutSpec { waves: vec![count(2, 0), percent(100, 0)], ..spec(1, "name in (n0,n1)") });
    world.run(10);
    assert_eq!(world.status("r").phase, RolloutPhase::Failed);
    let mut world = World::new(3, 100);
    world.bad = vec![(name("n0"), 1), (name("n1"), 1), (name("n2"), 1)];
    world.start("r", RolloutSpec { waves: vec![count(1, 0), percent(100, 0)], ..spec(1, "all") });
    world.run(10);
    assert_eq!((world.status("r").phase, world.saw(1)), (RolloutPhase::Paused, 1));
    world.bad.clear();
    world.run(10);
    assert_eq!(world.status("r").phase, RolloutPhase::Paused, "nothing is tried again unless somebody asks");
    world.spec("r").control.retries = 1;
    world.run(20);
    assert_eq!((world.status("r").phase, world.on(1)), (RolloutPhase::Succeeded, 3));
}

#[test]
fn what_is_cordoned_or_pinned_is_left_alone_by_name() {
    let mut world = World::new(3, 100);
    world.now.nodes.get_mut(&name("n0")).unwrap().spec.cordoned = true;
    world.now.nodes.get_mut(&name("n1")).unwrap().spec.pinned.insert(name("app"));
    world.start("r", spec(1, "all"));
    world.run(10);
    assert_eq!(world.node("r", "n0").reason, reason::CORDONED);
    assert_eq!(world.node("r", "n1").reason, reason::PINNED);
    assert_eq!((world.status("r").phase, world.on(1)), (RolloutPhase::Succeeded, 1));
    world.now.nodes.get_mut(&name("n0")).unwrap().spec.cordoned = false;
    world.run(10);
    assert_eq!(world.on(1), 2);
}

#[test]
fn windows_hold_downloads_and_updates_apart() {
    let mut world = World::new(2, 100);
    world.second = at_noon();
    let window = |from: &str, to: &str| Window {
        days: [Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri, Day::Sat, Day::Sun].into(),
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
    };
    let mut nightly = spec(1, "all");
    nightly.windows.download = vec![window("13:00", "14:00")];
    nightly.windows.apply = vec![window("22:00", "04:00")];
    nightly.windows.time_zone = Some("UTC".into());
    world.start("r", nightly);
    world.run(5);
    assert_eq!(world.node("r", "n0").reason, reason::DOWNLOAD_WINDOW);
    assert_eq!(plan(&world.now, at(world.second)).wake, Some(at(at_noon() + 3600)));
    world.second = at_noon() + 3600;
    world.run(10);
    assert_eq!(
        (world.node("r", "n0").phase, world.node("r", "n0").reason.as_str()),
        (UpdatePhase::Staged, reason::APPLY_WINDOW)
    );
    assert!(world.node("r", "n0").message.contains("22:00"), "{}", world.node("r", "n0").message);
    world.second = at_noon() + 10 * 3600;
    world.run(10);
    assert_eq!(world.status("r").phase, RolloutPhase::Succeeded);
}

fn at_noon() -> i64 {
    "2026-11-21T12:00:00Z".parse::<Timestamp>().unwrap().as_second()
}

#[test]
fn what_cannot_start_says_why() {
    let mut world = World::new(2, 100);
    let refused = |world: &mut World, spec: RolloutSpec, why: &str| {
        world.start("r", spec.clone());
        world.settle();
        assert_eq!(world.status("r").phase, RolloutPhase::Failed, "{why}");
        assert!(world.status("r").message.contains(why), "{} / {why}", world.status("r").message);
        world.now.rollouts.clear();
    };
    let world = &mut world;
    refused(world, spec(1, "site=elsewhere"), "names no node");
    refused(world, spec(1, "n0"), "write name=n0");
    refused(world, spec(99, "all"), "no release app@99");
    let waves = |waves: Vec<Wave>| RolloutSpec { waves, ..spec(1, "all") };
    refused(world, waves(vec![percent(101, 0)]), "more than all");
    refused(world, waves(vec![percent(50, 0), percent(10, 0), percent(100, 0)]), "percentages rise");
    refused(world, waves(vec![count(1, 0)]), "does not reach all nodes");
    refused(world, waves(vec![count(0, 0), percent(100, 0)]), "prove nothing");
    let both = Wave { count: Some(1), percent: Some(10), ..Wave::default() };
    refused(world, waves(vec![both, percent(100, 0)]), "more than one of");
    let nobody = Wave { selector: Some("gpu".parse().unwrap()), ..Wave::default() };
    refused(world, waves(vec![nobody, percent(100, 0)]), "names none");
    let budget = |max_unavailable, per: &str| RolloutSpec {
        budget: Some(Budget { max_unavailable, per: per.into() }),
        ..spec(1, "all")
    };
    refused(world, budget(Share::Count(0), "site"), "never met");
    refused(world, budget(Share::Count(1), "rack"), "neither site nor fleet");
    let mut never = spec(1, "all");
    never.windows.apply = serde_json::from_str(r#"[{"from": "10:00", "to": "10:00"}]"#).unwrap();
    refused(world, never.clone(), "never opens");
    never.windows.apply.clear();
    never.windows.time_zone = Some("Asia/Nowhere".into());
    refused(world, never, "no time zone");
    let back = |to: Option<&str>| RolloutSpec {
        on_failure: OnFailure::RollBack,
        rollback_to: to.map(|to| to.parse().unwrap()),
        ..spec(2, "all")
    };
    refused(world, back(None), "needs rollbackTo");
    refused(world, back(Some("1")), "release reissue");
    let mut contradictory = spec(1, "all");
    contradictory.gate.max_failure_percent = Some(20);
    contradictory.gate.min_success_percent = Some(90);
    refused(world, contradictory, "more than all");
    // Nodes that are deleted leave the rollout.
    let mut world = fleet(&[NodePhase::Ready]);
    world.settle();
    world.now.nodes.clear();
    world.settle();
    assert_eq!(world.status("r").phase, RolloutPhase::Failed);
}

#[test]
fn a_node_that_cannot_keep_what_it_was_told_is_named_as_what_holds_it_up() {
    let mut world = World::new(1, 1);
    world.start("r", spec(1, "all"));
    world.settle();
    let waits = |world: &World| world.node("r", "n0").reason.clone();
    assert_eq!(waits(&world), "");
    let condition = Condition {
        r#type: condition::ASSIGNMENT_PRESSURE.into(),
        status: ConditionStatus::True,
        reason: "NotKept".into(),
        message: "the disk is full".into(),
        last_transition_time: at(1),
    };
    world.now.nodes.get_mut(&name("n0")).unwrap().status.conditions = vec![condition];
    world.settle();
    let node = world.node("r", "n0");
    assert_eq!((node.phase, &*node.reason, &*node.message), (UpdatePhase::Pending, "NotKept", "the disk is full"));
    world.now.nodes.get_mut(&name("n0")).unwrap().status.conditions.clear();
    world.settle();
    assert_eq!(waits(&world), "");
    world.run(10);
    assert_eq!(world.status("r").phase, RolloutPhase::Succeeded);
}

#[test]
fn a_forecast_says_how_long_a_sites_line_takes() {
    let mut world = World::new(5, 2);
    let bounded = SiteSpec { bulk_bytes_per_s: Some(1), ..SiteSpec::default() };
    for site in ["s0", "s1"] {
        world.now.sites.insert(site.into(), Object::new(name(site), bounded.clone()));
    }
    world.start("r", spec(1, "name=n0"));
    world.run(10);
    let forecast = forecast(spec(1, "all"), world.now.clone(), at(world.second)).unwrap();
    let sites: Vec<(&str, u32, u64)> =
        forecast.sites.iter().map(|site| (site.site.as_str(), site.nodes, site.seconds)).collect();
    assert_eq!(sites, [("s1", 2, 2), ("s0", 1, 1)]);
}
