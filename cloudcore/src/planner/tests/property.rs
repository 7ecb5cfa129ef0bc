//! Properties over generated fleets and histories: nodes come, go and fail, people steer, rollouts follow each other.
//!
//! `PROPTEST_CASES` sets how many.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proto::object::rollout::{Budget, OnFailure, Share, WavePhase, reason};

use super::{super::age, *};

/// Something that happens between two plans.
#[derive(Debug, Clone)]
enum Happening {
    /// So many seconds pass, in which agents work.
    Work(u8),
    /// A long time passes, in which nothing happens.
    Wait,
    /// A node is heard from, or not.
    Phase(usize, NodePhase),
    /// A node proves a version, and then does not run it any more.
    Sicken(usize),
    Start(Shape),
    /// Nodes are cordoned, pinned, deleted, and come.
    Cordon(usize, bool),
    Pin(usize, bool),
    Delete(usize),
    Join(usize),
    Pause(bool),
    Resume,
    Retry,
    Abort,
    /// The version is bad on a node, or good again.
    Bad(usize, u8, bool),
    /// The version is slow on a node, or not any more.
    Slow(usize, u8, bool),
    /// A node's workload tells nothing of itself, or does.
    Mute(usize, bool),
    /// The hub restarts: it knows what is in the store and nothing else.
    Restart,
}

/// A rollout to draw.
#[derive(Debug, Clone)]
struct Shape {
    /// A restart of the app with 6, of the nodes with 7.
    version: u8,
    selector: usize,
    waves: usize,
    budget: usize,
    on_failure: usize,
    jitter: bool,
    lax: bool,
    /// The gate asks what workloads tell of themselves: a floor with 1, a comparison with 2, both with 3.
    metrics: usize,
}

const NODES: usize = 8;

fn any_node_phase() -> impl Strategy<Value = NodePhase> {
    prop_oneof![
        4 => Just(NodePhase::Ready),
        1 => Just(NodePhase::NotReady),
        2 => Just(NodePhase::Unknown),
        1 => Just(NodePhase::Pending)
    ]
}

fn any_shape() -> impl Strategy<Value = Shape> {
    (1..8_u8, 0..4_usize, 0..4_usize, 0..4_usize, 0..3_usize, any::<bool>(), any::<bool>(), 0..4_usize).prop_map(
        |(version, selector, waves, budget, on_failure, jitter, lax, metrics)| Shape {
            version,
            selector,
            waves,
            budget,
            on_failure,
            jitter,
            lax,
            metrics,
        },
    )
}

fn any_happening() -> impl Strategy<Value = Happening> {
    let node = 0..NODES;
    prop_oneof![
        10 => (1..5_u8).prop_map(Happening::Work),
        1 => Just(Happening::Wait),
        4 => (node.clone(), any_node_phase()).prop_map(|(n, p)| Happening::Phase(n, p)),
        1 => node.clone().prop_map(Happening::Sicken),
        3 => any_shape().prop_map(Happening::Start),
        1 => (node.clone(), any::<bool>()).prop_map(|(n, on)| Happening::Cordon(n, on)),
        1 => (node.clone(), any::<bool>()).prop_map(|(n, on)| Happening::Pin(n, on)),
        1 => node.clone().prop_map(Happening::Delete),
        1 => node.clone().prop_map(Happening::Join),
        1 => any::<bool>().prop_map(Happening::Pause),
        1 => Just(Happening::Resume),
        1 => Just(Happening::Retry),
        1 => Just(Happening::Abort),
        2 => (node.clone(), 0..6_u8, any::<bool>()).prop_map(|(n, v, bad)| Happening::Bad(n, v, bad)),
        2 => (node.clone(), 1..6_u8, any::<bool>()).prop_map(|(n, v, slow)| Happening::Slow(n, v, slow)),
        2 => (node, any::<bool>()).prop_map(|(n, mute)| Happening::Mute(n, mute)),
        1 => Just(Happening::Restart),
    ]
}

impl Shape {
    fn spec(&self) -> RolloutSpec {
        let selector = ["all", "all", "kind=odd", "site=s0"];
        let selector = selector.get(self.selector).unwrap();
        let mut spec = match self.version {
            6 => restart(selector),
            7 => reboot(selector),
            version => spec(version, selector),
        };
        spec.waves = match self.waves {
            0 => vec![],
            1 => vec![count(1, 3), percent(100, 0)],
            2 => vec![count(1, 0), percent(50, 2), percent(100, 2)],
            _ => vec![Wave { sites: Some(1), ..Wave::default() }, Wave::default()],
        };
        let budget = |max_unavailable, per: &str| Some(Budget { max_unavailable, per: per.into() });
        spec.budget = match self.budget {
            0 => None,
            1 => budget(Share::Count(1), Budget::SITE),
            2 => budget(Share::Percent(30), Budget::FLEET),
            _ => budget(Share::Count(2), "kind"),
        };
        if self.on_failure == 1 {
            spec.on_failure = OnFailure::Stop;
        }
        if self.on_failure == 2 && self.version < 5 {
            spec.on_failure = OnFailure::RollBack;
            spec.rollback_to = Some("9".parse().unwrap());
        }
        if self.jitter {
            spec.jitter = Span::from_secs(3);
        }
        if self.version < 6 && self.metrics > 0 {
            spec.gate.metrics = fps((self.metrics != 2).then_some(20.0), (self.metrics > 1).then_some(90));
        }
        if self.lax {
            (spec.gate.max_failures, spec.gate.min_sample) = (1, 2);
        }
        spec
    }
}

fn happen(world: &mut World, planner: &mut Planner, happening: &Happening) {
    let node_name = |n: usize| name(&format!("n{n}"));
    let newest = || world.now.rollouts.values().max_by_key(|r| age(r)).map(|r| r.name().to_owned());
    match happening {
        Happening::Work(seconds) => {
            for _ in 0..*seconds {
                world.work();
                world.second += 1;
                rest(world, planner);
            }
        }
        Happening::Wait => world.second += 4000,
        Happening::Phase(n, phase) => {
            if let Some(node) = world.now.nodes.get_mut(&node_name(*n)) {
                node.status.phase = *phase;
                world.hear();
            }
        }
        Happening::Sicken(n) => {
            if let Some(running) = world.agents.get_mut(&node_name(*n)).and_then(|a| a.running.as_mut()) {
                (running.state, running.ready) = (RunState::BackOff, false);
            }
            world.hear();
        }
        Happening::Start(shape) => {
            let number = world.now.rollouts.len();
            world.second += 1;
            world.start(&format!("r{number}"), shape.spec());
        }
        Happening::Cordon(n, on) => {
            world.now.nodes.get_mut(&node_name(*n)).into_iter().for_each(|node| node.spec.cordoned = *on);
        }
        Happening::Pin(n, on) => {
            let pinned = if *on { [name("app")].into() } else { BTreeSet::new() };
            world.now.nodes.get_mut(&node_name(*n)).into_iter().for_each(|node| node.spec.pinned = pinned.clone());
        }
        Happening::Delete(n) => {
            world.now.nodes.remove(&node_name(*n));
            world.reboots.remove(&node_name(*n));
            world.agents.remove(&node_name(*n));
        }
        Happening::Join(n) => {
            let fresh = || World::new(NODES, 3).now.nodes.remove(&node_name(*n)).unwrap();
            world.now.nodes.entry(node_name(*n)).or_insert_with(fresh);
        }
        Happening::Pause(on) => drop(newest().map(|r| world.spec(&r).control.paused = *on)),
        Happening::Resume => drop(newest().map(|r| world.spec(&r).control.resumed += 1)),
        Happening::Retry => drop(newest().map(|r| world.spec(&r).control.retries += 1)),
        Happening::Abort => drop(newest().map(|r| world.spec(&r).control.aborted = true)),
        Happening::Bad(n, version, bad) => {
            world.bad.retain(|entry| *entry != (node_name(*n), *version));
            if *bad {
                world.bad.push((node_name(*n), *version));
            }
        }
        Happening::Slow(n, version, slow) => {
            world.slow.retain(|entry| *entry != (node_name(*n), *version));
            if *slow {
                world.slow.push((node_name(*n), *version));
            }
        }
        Happening::Mute(n, mute) => {
            world.mute.remove(&node_name(*n));
            world.mute.extend(mute.then(|| node_name(*n)));
        }
        Happening::Restart => {
            let json = serde_json::to_string(&world.now.rollouts.values().collect::<Vec<_>>()).unwrap();
            let read: Vec<Rollout> = serde_json::from_str(&json).unwrap();
            world.now.rollouts = read.into_iter().map(|r| (r.name().to_owned(), r)).collect();
        }
    }
}

/// Tells the planner what has changed, as the store does.
pub(super) fn tell(planner: &mut Planner, now: &Snapshot) {
    let known = planner.snapshot().clone();
    for (name, node) in now.nodes.iter().filter(|(name, node)| known.nodes.get(*name) != Some(node)) {
        planner.set_node(name.clone(), Some(node.clone()));
    }
    for name in known.nodes.keys().filter(|name| !now.nodes.contains_key(*name)) {
        planner.set_node(name.clone(), None);
    }
    for (name, rollout) in now.rollouts.iter().filter(|(name, rollout)| known.rollouts.get(*name) != Some(rollout)) {
        planner.set_rollout(name.clone(), Some(rollout.clone()));
    }
}

/// Plans until nothing is left to do, and checks every plan.
fn rest(world: &mut World, planner: &mut Planner) {
    for _ in 0..12 {
        let now = at(world.second);
        let planned = plan(&world.now, now);
        assert_eq!(planned, plan(&world.now.clone(), now), "the same snapshot gives the same plan");
        tell(planner, &world.now);
        assert_eq!(planner.plan(now), planned, "what rests is what has nothing to do");
        assert!(planned.wake.is_none_or(|wake| wake > now), "{:?} is not ahead", planned.wake);
        check_steps(world, &planned.steps);
        check_figures(world, &planned.steps);
        if planned.steps.is_empty() {
            return check_rest(world);
        }
        world.carry_out(planned.steps);
    }
    panic!("the planner does not come to rest");
}

/// Whether a node may stop its app at any moment, or is gone already: counted apart from the planner's own.
fn is_unavailable(node: &proto::object::Node) -> bool {
    let app = name("app");
    let told = node.spec.apps.get(&app);
    let said = node.status.workloads.get(&app);
    let settled = |told: &proto::object::AssignedApp| {
        said.is_some_and(|w| {
            let done = matches!(w.phase, UpdatePhase::Succeeded | UpdatePhase::Failed | UpdatePhase::RolledBack);
            let target = w.target.as_ref().is_some_and(|t| t.digest == told.digest);
            let stays = w.running.as_ref().is_some_and(|r| r.release.digest == told.digest);
            let tried = told.order.retry.is_none() || w.retried == told.order.retry;
            done && target && tried || stays && !target
        })
    };
    let restarts = |told: &proto::object::AssignedApp| {
        said.is_some_and(|w| told.order.restart.is_some() && w.restarted != told.order.restart)
    };
    let reboot = node.status.reboot.as_ref().filter(|said| Some(&said.order) == node.spec.reboot.as_ref());
    let is_up = reboot.is_some_and(|said| matches!(said.phase, UpdatePhase::Succeeded | UpdatePhase::Failed));
    match node.status.phase {
        NodePhase::Ready if node.spec.reboot.is_some() && !is_up => true,
        NodePhase::Ready => told.is_some_and(|told| !told.order.hold && !settled(told) || restarts(told)),
        NodePhase::Pending => false,
        _ => true,
    }
}

fn check_steps(world: &World, steps: &[Step]) {
    let (mut after, mut last) = (world.clone(), world.clone());
    last.carry_out(steps.to_vec());
    for step in steps {
        let before = after.now.nodes.clone();
        after.carry_out(vec![step.clone()]); // another rollout, which has no budget, may begin more after that
        let (node, rollout, assigned) = match step {
            Step::SetReboot { node, order: Some(order) } => (node, Some(order), None),
            Step::SetApp { node, assigned: Some(assigned), .. } => {
                let before = world.now.nodes[node].spec.apps.get(&name("app"));
                let restarts = before.is_some_and(|before| before.order.restart != assigned.order.restart);
                let rollout = if restarts { &assigned.order.restart } else { &assigned.rollout };
                (node, rollout.as_ref(), Some(assigned))
            }
            _ => continue,
        };
        // Who is made unavailable by another step of this plan costs nothing more.
        let (old, new) = (&before[node], &after.now.nodes[node]);
        let Some(rollout) = rollout.map(|name| &world.now.rollouts[name]) else { continue };
        // Another rollout gives back what the node had when that one told it: nobody begins anything.
        let gives_back = |other: &&Rollout| {
            let entry = other.status.nodes.get(node);
            let had = |before: &proto::object::AssignedApp| {
                assigned.is_some_and(|now| (before.digest, &before.rollout) == (now.digest, &now.rollout))
            };
            entry.is_some_and(|entry| entry.told && entry.before.as_ref().is_some_and(had))
        };
        if assigned.is_some() && world.now.rollouts.values().any(|other| gives_back(&other)) {
            continue;
        }
        // Released by a rollout with a budget: never beyond it, whoever else is unavailable.
        let held = assigned.is_some_and(|assigned| assigned.order.hold);
        let released = !held && !is_unavailable(old) && is_unavailable(new);
        let over = rollout.status.phase.is_final() && rollout.status.phase != RolloutPhase::Succeeded;
        let Some(budget) = rollout.spec.budget.as_ref().filter(|_| released && !over) else { continue };
        let group = |node: &proto::object::Node| match budget.per.as_str() {
            Budget::SITE => node.spec.site.to_string(),
            Budget::FLEET => String::new(),
            label => node.metadata.labels[label].clone(),
        };
        let members: Vec<&proto::object::Node> =
            last.status(rollout.name()).nodes.keys().filter_map(|n| after.now.nodes.get(n)).collect();
        let mine = members.iter().filter(|n| group(n) == group(new) && n.status.phase != NodePhase::Pending);
        let unavailable = mine.clone().filter(|n| is_unavailable(n)).count();
        let most = budget.max_unavailable.of(mine.count());
        assert!(unavailable <= most, "{} releases {node}: {unavailable} of {most}", rollout.name());
    }
}

/// No wave passes before each of its healthy nodes has told enough, and keeps the rules: counted apart from the
/// planner's own.
fn check_figures(world: &World, steps: &[Step]) {
    for step in steps {
        let Step::SetRolloutStatus { rollout, status, .. } = step else { continue };
        let rollout = &world.now.rollouts[rollout];
        let by_hand = rollout.spec.control.resumed > 0;
        for (index, wave) in status.waves.iter().enumerate() {
            let before = rollout.status.waves.get(index).map(|wave| wave.phase);
            let has_passed = wave.phase == WavePhase::Passed && before != Some(WavePhase::Passed);
            if !has_passed || by_hand || wave.message == "no nodes were left for it" {
                continue;
            }
            let (mut healthy, mut compared) = (0, 0);
            for (name, entry) in &status.nodes {
                let mine = entry.wave == u32::try_from(index).ok() && entry.reason != reason::SUPERSEDED;
                if !mine || entry.phase != UpdatePhase::Succeeded {
                    continue;
                }
                healthy += 1;
                for rule in &rollout.spec.gate.metrics {
                    let said = world.now.nodes[name].status.workloads[&self::name("app")].metrics.as_ref();
                    let said = said.unwrap_or_else(|| panic!("{name} told nothing, and wave {} passed", wave.name));
                    assert_eq!(Some(said.digest), status.digest);
                    let now = said.now[&rule.name];
                    assert!(now.samples >= 5 && rule.min.is_none_or(|min| now.mean >= min), "{name}: {said:?}");
                    if let Some(before) = &said.before {
                        compared += 1;
                        let least = f64::from(rule.min_percent_of_before.unwrap_or(0)) / 100.0;
                        assert!(now.mean >= before.metrics[&rule.name].mean * least, "{name}: {said:?}");
                    }
                }
            }
            let compares = rollout.spec.gate.metrics.iter().any(MetricRule::compares);
            assert!(!compares || healthy == 0 || compared > 0, "wave {} passed, and nobody was compared", wave.name);
        }
    }
}

fn check_rest(world: &World) {
    let now = &world.now;
    for rollout in now.rollouts.values() {
        let status = &rollout.status;
        assert_eq!(status.phase.is_final(), status.finished_at.is_some(), "{rollout:?}");
        if status.phase == RolloutPhase::Pending {
            panic!("{} was not looked at", rollout.name());
        }
        let mut before_passed = true;
        for (index, wave) in status.waves.iter().enumerate() {
            // A wave begins only after all before it passed.
            assert!(wave.started_at.is_none() || before_passed, "{} wave {}", rollout.name(), wave.name);
            before_passed &= wave.phase == WavePhase::Passed;
            // No wave passes without evidence: somebody proved it, or a person said so, or nobody was in it.
            let counts = status.wave_counts(u32::try_from(index).unwrap());
            let by_hand = rollout.spec.control.resumed > 0;
            if wave.phase == WavePhase::Passed && wave.message != "no nodes were left for it" && !by_hand {
                assert!(wave.message.starts_with(|c: char| ('1'..='9').contains(&c)), "{}: {counts:?}", wave.message);
            }
        }
        for (node, entry) in &status.nodes {
            if !now.nodes.contains_key(node) || status.phase.is_final() && status.phase != RolloutPhase::Succeeded {
                continue;
            }
            // Nobody waits without a reason that has a name.
            let waits = entry.phase == UpdatePhase::Pending && !entry.told
                || matches!(entry.phase, UpdatePhase::Deferred)
                || entry.phase == UpdatePhase::Staged
                    && now.nodes[node]
                        .spec
                        .apps
                        .get(&name("app"))
                        .is_some_and(|told| told.order.hold && told.rollout.as_deref() == Some(rollout.name()));
            let going = matches!(status.phase, RolloutPhase::RollingBack);
            assert!(
                !waits || going || !entry.reason.is_empty(),
                "{} {node}: {entry:?} in {:?}",
                rollout.name(),
                status
            );
            // Nobody has its turn before its wave.
            let begun = entry.wave.is_some_and(|wave| status.waves[wave as usize].started_at.is_some());
            assert!(!entry.told || begun, "{} {node}: {entry:?}", rollout.name());
        }
    }
    for (node, object) in &now.nodes {
        // One rollout at work for each node: the newest that names it and goes on.
        let named = |r: &&Rollout| {
            let entry = r.status.nodes.get(node);
            entry.is_some_and(|entry| entry.reason != reason::SUPERSEDED) && !r.status.phase.is_final()
        };
        let at_work = now.rollouts.values().filter(named).filter(|r| r.status.phase != RolloutPhase::RollingBack);
        let mut subjects: Vec<String> =
            at_work.map(|r| r.release().map_or_else(|| r.spec.what(), |release| release.app.to_string())).collect();
        subjects.sort_unstable();
        assert!(!subjects.windows(2).any(|two| two[0] == two[1]), "{node} has more than one rollout at work");
        // An abort leaves nobody half-way: whoever is heard and is not applying is told nothing of it.
        if let Some(told) = object.spec.apps.get(&name("app"))
            && let Some(rollout) = told.rollout.as_ref().and_then(|r| now.rollouts.get(r))
            && rollout.status.phase == RolloutPhase::Aborted
            && rollout.status.nodes.get(node).is_some_and(|entry| entry.phase != UpdatePhase::Succeeded)
            && object.status.phase == NodePhase::Ready
        {
            let said = object.status.workloads.get(&name("app"));
            let begun = said.is_some_and(|w| {
                let runs = w.running.as_ref().is_some_and(|r| r.release.digest == told.digest);
                runs || w.target.as_ref().is_some_and(|t| t.digest == told.digest)
                    && !matches!(w.phase, UpdatePhase::Pending | UpdatePhase::Downloading | UpdatePhase::Staged)
            });
            assert!(begun, "{node} was left half-way: {told:?} {said:?} {:?}", rollout.status.nodes.get(node));
        }
    }
}

/// Plays a history to its end.
fn play(happenings: &[Happening]) {
    let mut world = World::new(NODES, 3);
    let mut planner = Planner::new(world.now.clone());
    for happening in happenings {
        happen(&mut world, &mut planner, happening);
        rest(&mut world, &mut planner);
    }
    // In the end all is well again, and whoever may finish does.
    world.bad.clear();
    world.slow.clear();
    world.mute.clear();
    for n in 0..NODES {
        happen(&mut world, &mut planner, &Happening::Cordon(n, false));
        happen(&mut world, &mut planner, &Happening::Pin(n, false));
        happen(&mut world, &mut planner, &Happening::Phase(n, NodePhase::Ready));
    }
    for _ in 0..60 {
        happen(&mut world, &mut planner, &Happening::Work(1));
    }
    for node in world.now.nodes.values() {
        let said = node.status.workloads.get(&name("app"));
        let settled = |told: &proto::object::AssignedApp| {
            told.order.hold
                || said.is_some_and(|w| {
                    !matches!(w.phase, UpdatePhase::Pending | UpdatePhase::Downloading | UpdatePhase::Verifying)
                })
        };
        let said_of_reboot = node.status.reboot.as_ref().filter(|said| Some(&said.order) == node.spec.reboot.as_ref());
        let up = said_of_reboot.is_some_and(|said| matches!(said.phase, UpdatePhase::Succeeded | UpdatePhase::Failed));
        assert!(node.spec.reboot.is_none() || up, "{} is not up again: {:?}", node.name(), node.status.reboot);
        assert!(node.spec.apps.values().all(settled), "{} is left half-way: {:?} {said:?}", node.name(), node.spec);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plans_repeat_rest_keep_budgets_and_claim_nothing_unproved(
        happenings in prop::collection::vec(any_happening(), 0..40),
    ) {
        play(&happenings);
    }
}

#[test]
fn a_place_that_one_plan_keeps_for_somebody_is_given_in_the_next() {
    let shape =
        Shape { version: 1, selector: 0, waves: 0, budget: 1, on_failure: 0, jitter: false, lax: false, metrics: 0 };
    play(&[
        Happening::Pin(2, true),
        Happening::Start(shape.clone()),
        Happening::Phase(2, NodePhase::NotReady),
        Happening::Start(Shape { version: 7, selector: 3, waves: 1, ..shape }),
    ]);
}

#[test]
fn who_has_told_too_little_and_is_cordoned_proves_nothing() {
    let shape =
        Shape { version: 2, selector: 2, waves: 3, budget: 0, on_failure: 0, jitter: true, lax: false, metrics: 1 };
    play(&[
        Happening::Start(shape),
        Happening::Work(3),
        Happening::Work(4),
        Happening::Cordon(5, true),
        Happening::Work(2),
    ]);
}

#[test]
fn who_comes_back_while_a_restart_ends_has_its_turn_all_the_same() {
    let shape = |version, selector, waves, budget| Shape {
        version,
        selector,
        waves,
        budget,
        on_failure: 0,
        jitter: false,
        lax: false,
        metrics: 0,
    };
    play(&[
        Happening::Start(shape(1, 0, 0, 0)),
        Happening::Work(3),
        Happening::Start(shape(2, 2, 0, 0)),
        Happening::Phase(5, NodePhase::Unknown),
        Happening::Delete(0),
        Happening::Work(2),
        Happening::Work(1),
        Happening::Abort,
        Happening::Start(shape(6, 0, 3, 2)),
        Happening::Work(1),
        Happening::Work(4),
    ]);
}
