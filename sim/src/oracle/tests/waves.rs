//! Each rule of rollouts in waves, once kept and once broken.

use proto::object::{
    Rollout, RolloutNode, RolloutPhase, RolloutSpec,
    rollout::{Budget, Share, Wave, WavePhase, WaveStatus},
};

use super::*;
use crate::world::Told;

const NAME: &str = "app-2.0.0";
/// Those that the plan takes version 2.0.0 to.
const BOXES: [&str; 2] = ["box-1", "box-2"];

/// A rollout of version 2.0.0 in two waves, of which the first box is the first; nobody was told yet.
fn fresh() -> Rollout {
    let mut spec = RolloutSpec::new("app@2.0.0".parse().unwrap(), "all".parse().unwrap());
    spec.waves = vec![Wave { count: Some(1), ..Wave::default() }, Wave::default()];
    let mut rollout = Rollout::new(NAME.parse::<proto::name::ObjectName>().unwrap(), spec);
    rollout.status.phase = RolloutPhase::Progressing;
    let wave = |name: &str| WaveStatus { name: name.into(), ..WaveStatus::default() };
    rollout.status.waves = vec![wave("1"), wave("2")];
    begins(&mut rollout, 0);
    for (number, node) in BOXES.into_iter().enumerate() {
        let mut entry = RolloutNode::waiting(UpdatePhase::Pending, "Wave", "");
        entry.wave = Some(number.min(1) as u32);
        rollout.status.nodes.insert(name(node), entry);
    }
    rollout
}

fn begins(rollout: &mut Rollout, wave: usize) {
    let wave = &mut rollout.status.waves[wave];
    (wave.phase, wave.started_at) = (WavePhase::Progressing, Some(jiff::Timestamp::UNIX_EPOCH));
}

fn passes(rollout: &mut Rollout, wave: usize) {
    rollout.status.waves[wave].phase = WavePhase::Passed;
}

fn lets_go(rollout: &mut Rollout, node: &str) {
    let entry = rollout.status.nodes.get_mut(&name(node)).unwrap();
    (entry.told, entry.released_at) = (true, Some(jiff::Timestamp::UNIX_EPOCH));
    (entry.phase, entry.reason) = (UpdatePhase::Applying, String::new());
}

/// A moment at which the hub has it like that; who was let go is at work.
fn look(at: u64, rollout: &Rollout) -> Observation {
    let mut seen = well(at);
    for (node, entry) in &rollout.status.nodes {
        if entry.released_at.is_some() {
            let apps = Arc::make_mut(&mut seen.nodes.get_mut(node).unwrap().apps);
            let told = Told { rollout: Some(NAME.into()), version: version("2.0.0"), held: false, settled: false };
            apps.get_mut(&name("app")).unwrap().told = Some(told);
        }
    }
    let status = &rollout.status;
    let object = Some(Arc::new(rollout.clone()));
    let known = RolloutSeen { phase: status.phase, done: 0, failed: 0, total: 2, object };
    seen.rollouts.insert("app@2.0.0".into(), known);
    seen
}

fn broken(looks: &[Observation], what: &str) {
    let (invariant, message) = found(&mut with_rollouts(2), looks);
    assert_eq!(invariant, Invariant::Blast);
    assert!(message.contains(what), "{message}");
}

#[test]
fn waves_that_go_as_they_should_are_no_violation() {
    let mut oracle = with_rollouts(2);
    let mut rollout = fresh();
    oracle.watch(&look(60, &rollout)).unwrap();
    lets_go(&mut rollout, "box-1");
    oracle.watch(&look(61, &rollout)).unwrap();
    passes(&mut rollout, 0);
    begins(&mut rollout, 1);
    rollout.status.nodes.get_mut(&name("box-1")).unwrap().phase = UpdatePhase::Succeeded;
    lets_go(&mut rollout, "box-2");
    oracle.watch(&look(62, &rollout)).unwrap();
}

#[test]
fn a_wave_does_not_begin_before_the_one_before_it_passed() {
    let mut rollout = fresh();
    begins(&mut rollout, 1);
    broken(&[look(60, &rollout)], "the one before is Progressing");
}

#[test]
fn nobody_is_told_before_its_wave() {
    let mut rollout = fresh();
    lets_go(&mut rollout, "box-2");
    broken(&[look(60, &rollout)], "box-2 was told, and its wave has not begun");
}

#[test]
fn a_release_runs_only_where_a_rollout_let_it() {
    let rollout = fresh();
    let mut seen = look(60, &rollout);
    let apps = Arc::make_mut(&mut seen.nodes.get_mut(&name("box-1")).unwrap().apps);
    runs(apps.get_mut(&name("app")).unwrap(), "2.0.0", UpdatePhase::Verifying);
    broken(&[seen], "no rollout of it let the node go");
}

#[test]
fn nobody_is_let_go_while_it_is_paused() {
    let mut rollout = fresh();
    rollout.spec.control.paused = true;
    let before = look(60, &rollout);
    lets_go(&mut rollout, "box-1");
    with_rollouts(2).watch(&look(61, &rollout)).unwrap(); // just decided
    broken(&[before, look(65, &rollout)], "although it is paused");
}

#[test]
fn a_budget_counts_who_is_down_anyway() {
    let mut rollout = fresh();
    rollout.spec.budget = Some(Budget { max_unavailable: Share::Count(1), per: Budget::SITE.into() });
    let down = |mut seen: Observation| {
        seen.nodes.get_mut(&name("box-2")).unwrap().phase = NodePhase::NotReady;
        seen
    };
    let before = down(look(60, &rollout));
    lets_go(&mut rollout, "box-1");
    broken(&[before.clone(), down(look(61, &rollout))], "2 of 2 nodes of \"hz-01\"");
    let mut oracle = with_rollouts(2);
    oracle.watch(&look(60, &fresh())).unwrap();
    oracle.watch(&look(61, &rollout)).unwrap(); // the other one is up
}

#[test]
fn whoever_waits_long_has_a_reason() {
    let mut rollout = fresh();
    rollout.status.nodes.get_mut(&name("box-2")).unwrap().reason = String::new();
    broken(&[look(60, &rollout), look(400, &rollout)], "nobody says why");
}

#[test]
fn whom_an_abort_leaves_half_way_is_named() {
    let mut rollout = fresh();
    lets_go(&mut rollout, "box-1");
    rollout.status.phase = RolloutPhase::Aborted;
    let fleet = Fleet::new(&plan());
    let text = super::super::waves::half_way(&fleet, &look(60, &rollout)).unwrap();
    assert!(text.contains("Aborted, and box-1 is half-way"), "{text}");
    rollout.status.phase = RolloutPhase::Progressing;
    assert_eq!(super::super::waves::half_way(&fleet, &look(60, &rollout)), None);
}
