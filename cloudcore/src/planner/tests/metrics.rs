//! Gates that ask what workloads tell of themselves.

use proto::object::rollout::{OnFailure, WavePhase, reason};

use super::{super::check, *};

/// Version 1 runs on four nodes; version 2 goes out in a wave of one, and the rest.
fn world(rules: Vec<MetricRule>, soak: u64) -> World {
    let mut world = World::new(4, 2);
    world.start("r1", spec(1, "all"));
    world.run(6);
    let mut two = spec(2, "all");
    (two.waves, two.gate.metrics) = (vec![count(1, soak), percent(100, soak)], rules);
    two.gate.inconclusive_after = Span::from_secs(60);
    world.start("r2", two);
    world.settle();
    world
}

fn canary(world: &World) -> String {
    world.status("r2").nodes.iter().find(|(_, entry)| entry.wave == Some(0)).unwrap().0.to_string()
}

#[test]
fn a_wave_passes_once_its_figures_are_in() {
    let mut world = world(fps(Some(20.0), Some(90)), 3);
    let canary = canary(&world);
    let asked = world.now.nodes[&name(&canary)].spec.apps[&name("app")].order.metrics.clone().unwrap();
    assert_eq!((asked.samples["fps"], asked.for_s), (5, 63));
    world.run(6);
    let entry = world.node("r2", &canary);
    assert_eq!((entry.phase, entry.reason.as_str()), (UpdatePhase::Succeeded, reason::METRICS));
    assert_eq!(entry.message, "3 of 5 samples of fps");
    assert_eq!(world.status("r2").waves[0].phase, WavePhase::Progressing);
    assert_eq!(world.status("r2").counts().healthy, 0, "{:?}", world.status("r2"));
    world.run(3);
    assert_eq!(world.status("r2").waves[0].phase, WavePhase::Soaking);
    let text = "fps at least 20, at least 90 % of before: 25 on 1, 100 % of before on 1";
    assert!(world.status("r2").waves[0].message.ends_with(text), "{}", world.status("r2").waves[0].message);
    world.run(30);
    assert_eq!((world.status("r2").phase, world.on(2)), (RolloutPhase::Succeeded, 4));
    assert!(world.status("r2").nodes.values().all(|entry| entry.reason.is_empty()));
}

#[test]
fn a_slow_release_stops_at_the_first_node_in_words() {
    for rules in [fps(Some(20.0), None), fps(None, Some(90))] {
        let mut world = world(rules, 0);
        world.slow = (0..4).map(|n| (name(&format!("n{n}")), 2)).collect();
        world.run(40);
        let canary = canary(&world);
        let entry = world.node("r2", &canary);
        assert_eq!((entry.phase, entry.reason.as_str()), (UpdatePhase::Failed, reason::METRICS));
        let (floor, before) = ("below 20", "32 % of 25 before (mean of 600), below 90 %");
        assert!(entry.message.starts_with("fps 8 (mean of 5), "), "{}", entry.message);
        assert!(entry.message.ends_with(floor) || entry.message.ends_with(before), "{}", entry.message);
        assert_eq!(world.status("r2").waves[0].phase, WavePhase::Failed);
        assert_eq!((world.status("r2").phase, world.saw(2)), (RolloutPhase::Paused, 1));
        // It stays so, whatever it tells later, and while it is away.
        world.slow.clear();
        world.run(3);
        world.phase(&canary, NodePhase::Unknown);
        world.run(3);
        assert_eq!((world.node("r2", &canary).phase, world.saw(2)), (UpdatePhase::Failed, 1));
    }
}

#[test]
fn a_violation_within_the_soak_fails_the_wave() {
    let mut world = world(fps(Some(20.0), None), 30);
    world.run(12);
    assert_eq!(world.status("r2").waves[0].phase, WavePhase::Soaking);
    world.slow.push((name(&canary(&world)), 2));
    world.run(2);
    assert_eq!(world.status("r2").waves[0].phase, WavePhase::Failed);
    world.run(60);
    assert_eq!(world.saw(2), 1);
}

#[test]
fn who_tells_too_little_is_waited_for_and_never_promoted() {
    let mut world = world(fps(Some(20.0), None), 0);
    world.mute = world.now.nodes.keys().cloned().collect();
    world.run(20);
    let canary = canary(&world);
    assert_eq!(world.node("r2", &canary).message, "0 of 5 samples of fps");
    assert_eq!((world.status("r2").phase, world.saw(2)), (RolloutPhase::Progressing, 1));
    world.run(70);
    let status = world.status("r2");
    assert_eq!((status.phase, status.reason.as_str()), (RolloutPhase::Paused, "Inconclusive"));
    assert!(status.message.contains("1 telling too little of themselves yet"), "{}", status.message);
    assert!(status.message.ends_with("nobody has told enough"), "{}", status.message);
    assert_eq!(world.saw(2), 1);
    // It speaks at last, and goes on by itself.
    world.mute.clear();
    world.run(60);
    assert_eq!((world.status("r2").phase, world.on(2)), (RolloutPhase::Succeeded, 4));
}

#[test]
fn an_agent_that_is_too_old_is_asked_nothing_and_proves_nothing() {
    let mut world = World::new(2, 2);
    for node in world.now.nodes.values_mut() {
        node.status.info.as_mut().unwrap().features.remove(feature::METRICS);
    }
    let mut one = spec(1, "all");
    one.gate.metrics = fps(Some(20.0), None);
    world.start("r1", one);
    world.run(10);
    assert!(world.now.nodes.values().all(|node| node.spec.apps[&name("app")].order.metrics.is_none()));
    assert!(world.node("r1", "n0").message.contains("too old"), "{:?}", world.node("r1", "n0"));
    assert_eq!(world.status("r1").phase, RolloutPhase::Progressing);
    // A person may know better.
    world.second += 4000;
    world.run(1);
    assert_eq!(world.status("r1").phase, RolloutPhase::Paused);
    world.spec("r1").control.resumed = 1;
    world.run(2);
    assert_eq!(world.status("r1").phase, RolloutPhase::Succeeded);
}

#[test]
fn a_wave_in_which_nobody_can_be_compared_is_inconclusive() {
    let mut world = World::new(2, 2);
    let mut one = spec(1, "all");
    one.gate.metrics = fps(None, Some(90));
    world.start("r1", one);
    world.run(20);
    assert_eq!(world.status("r1").phase, RolloutPhase::Progressing);
    let message = &world.status("r1").waves[0].message;
    assert!(message.ends_with("25 on 2, nobody can be compared with before"), "{message}");
    world.second += 4000;
    world.run(1);
    assert_eq!(world.status("r1").reason, "Inconclusive");
}

#[test]
fn who_goes_away_before_it_told_enough_holds_up_nobody() {
    let mut world = world(fps(Some(20.0), None), 0);
    world.mute.insert(name(&canary(&world)));
    world.run(10);
    let canary = canary(&world);
    world.phase(&canary, NodePhase::Unknown);
    world.run(1);
    let entry = world.node("r2", &canary);
    assert_eq!((entry.phase, entry.reason.as_str()), (UpdatePhase::Deferred, reason::OFFLINE));
    assert_eq!(world.saw(2), 1, "nor does it prove anything");
    world.mute.clear();
    world.phase(&canary, NodePhase::Ready);
    world.run(60);
    assert_eq!((world.status("r2").phase, world.on(2)), (RolloutPhase::Succeeded, 4));
}

#[test]
fn failures_are_answered_as_any_other() {
    let slow = |world: &mut World| world.slow = (0..4).map(|n| (name(&format!("n{n}")), 2)).collect();
    let mut stopped = world(fps(Some(20.0), None), 0);
    slow(&mut stopped);
    stopped.spec("r2").on_failure = OnFailure::Stop;
    stopped.run(40);
    assert_eq!((stopped.status("r2").phase, stopped.on(2)), (RolloutPhase::Failed, 1));
    let mut back = world(fps(Some(20.0), None), 0);
    slow(&mut back);
    (back.spec("r2").on_failure, back.spec("r2").rollback_to) = (OnFailure::RollBack, Some("9".parse().unwrap()));
    back.run(60);
    assert_eq!((back.status("r2").phase, back.on(2), back.on(9)), (RolloutPhase::RolledBack, 0, 1));
}

#[test]
fn rules_that_can_never_say_anything_are_refused_with_the_mend() {
    let world = World::new(2, 2);
    let refused = |change: fn(&mut MetricRule)| {
        let mut one = spec(1, "all");
        one.gate.metrics = fps(None, None);
        one.gate.metrics.iter_mut().for_each(change);
        check::validate(&one, &world.now).err()
    };
    for (change, says) in [
        ((|_| {}) as fn(&mut MetricRule), "it has no bound; write min,"),
        (|rule| rule.min = Some(f64::NAN), "no bound that anything"),
        (|rule| rule.max = Some(f64::INFINITY), "no bound that anything"),
        (|rule| (rule.min, rule.max) = (Some(2.0), Some(1.0)), "min is above max"),
        (|rule| rule.min_percent_of_before = Some(0), "0 % of before is out of range; it is 1 to 10000"),
        (
            |rule| (rule.min_percent_of_before, rule.max_percent_of_before) = (Some(90), Some(80)),
            "minPercentOfBefore is above",
        ),
        (|rule| (rule.min, rule.min_samples) = (Some(1.0), 0), "minSamples 0 is out of range; it is 1 to 600"),
        (|rule| (rule.min, rule.min_samples) = (Some(1.0), 601), "minSamples 601"),
    ] {
        let text = refused(change).unwrap();
        assert!(text.starts_with("gate: metric fps: ") && text.contains(says), "{text}");
    }
    assert_eq!(refused(|rule| rule.min = Some(1.0)), None);
    let mut again = restart("all");
    again.gate.metrics = fps(Some(1.0), None);
    let mut world = world;
    world.start("r1", spec(1, "all"));
    world.run(6);
    assert!(check::validate(&again, &world.now).unwrap_err().contains("a restart has none"));
}
