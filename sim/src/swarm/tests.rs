//! Whatever is drawn or shrunk is valid and is read as it was written; shrinking keeps what breaks.

use super::*;
use crate::{
    fault::Fault,
    plan::{Action, parse, write},
};

/// As a scenario file, and back. Only the lines of the file are not what they were.
fn written_and_read(plan: &Plan) -> Plan {
    let text = write(plan);
    let mut read = parse(&plan.name, "drawn.toml", &text, None).unwrap_or_else(|error| panic!("{error}\n{text}"));
    read.timeline.iter_mut().for_each(|entry| entry.line = 0);
    read
}

#[test]
fn drawn_plans_are_valid_and_are_read_as_they_were_written() {
    for seed in 0..2_000 {
        let plan = plan_of(seed, None).unwrap();
        assert_eq!(written_and_read(&plan), plan, "seed {seed}");
    }
}

#[test]
fn a_seed_always_gives_the_same_plan() {
    assert_eq!(plan_of(7, None).unwrap(), plan_of(7, None).unwrap());
    assert_ne!(plan_of(7, None).unwrap(), plan_of(8, None).unwrap());
    assert_eq!(plan_of(7, Some(30)).unwrap().duration, Duration::from_secs(1_800));
}

#[test]
fn every_kind_of_fault_is_drawn() {
    let mut kinds: BTreeMap<&'static str, u32> = BTreeMap::new();
    for seed in 0..500 {
        for entry in plan_of(seed, None).unwrap().timeline {
            if let Action::Break { fault, .. } = entry.action {
                *kinds.entry(fault.kind()).or_default() += 1;
            }
        }
    }
    assert_eq!(kinds.len(), 19, "{kinds:?}");
    assert!(kinds.values().all(|times| *times > 20), "{kinds:?}");
}

#[test]
fn shrinking_keeps_only_what_breaks() {
    let breaks = |plan: &Plan| {
        plan.timeline.iter().any(|e| matches!(&e.action, Action::Break { fault: Fault::CrashHub, .. }))
            && plan.timeline.iter().any(|e| matches!(&e.action, Action::Rollout { .. }))
    };
    let mut shrunk = 0;
    for seed in 0..300 {
        let plan = plan_of(seed, None).unwrap();
        if !breaks(&plan) {
            continue;
        }
        shrunk += 1;
        let mut runs = 0;
        let smallest = shrink::shrink(&plan, 500, |candidate| {
            runs += 1;
            assert_eq!(written_and_read(candidate), *candidate, "seed {seed}");
            breaks(candidate)
        });
        assert!(breaks(&smallest) && runs < 500, "seed {seed}, {runs} runs");
        let boxes: usize = smallest.sites.iter().map(|site| site.nodes.len()).sum();
        let size = (smallest.timeline.len(), boxes, smallest.releases.len(), smallest.producers.len());
        assert_eq!(size, (2, 1, 1, 0), "seed {seed}: {smallest:?}");
        assert!(smallest.duration <= plan.duration);
    }
    assert!(shrunk > 50, "{shrunk}");
}

#[test]
fn shrinking_ends_when_its_runs_are_used_up() {
    let (plan, mut runs) = (plan_of(3, None).unwrap(), 0);
    shrink::shrink(&plan, 5, |_| {
        runs += 1;
        true
    });
    assert_eq!(runs, 5);
}

#[test]
fn the_same_failure_of_other_boxes_is_the_same() {
    let plan = plan_of(1, None).unwrap();
    let one = skeleton(&plan, "s1-1 (1 of 3 boxes): nothing of sorter runs, expected 1.0.0");
    assert_eq!(one, skeleton(&plan, "s1-1, s1-2 (2 of 8 boxes): nothing of sorter runs, expected 1.2.0"));
    assert_ne!(one, skeleton(&plan, "s1-1 (1 of 3 boxes): not Ready at the hub"));
}
