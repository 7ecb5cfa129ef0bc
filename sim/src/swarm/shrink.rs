//! From a plan that fails to a smaller one that fails in the same way.
//!
//! Greedy: fewer faults, producers, rollouts and boxes, shorter, simpler; each step is kept when the run still
//! breaks the same. A shrunk plan is always valid.

use std::{collections::BTreeSet, time::Duration};

use super::draw::about;
use crate::{
    fault::{Fault, Target},
    net::Manners,
    plan::{Action, Entry, How, Moment, Plan, selects},
};

/// Shortest run that is tried, and shortest fault.
const SHORTEST: Duration = Duration::from_secs(60);
const SHORTEST_FAULT: Duration = Duration::from_secs(2);

/// Shrinks with at most `tries` runs. `fails` says whether a plan breaks in the same way.
pub fn shrink(plan: &Plan, tries: u32, mut fails: impl FnMut(&Plan) -> bool) -> Plan {
    let mut smallest = plan.clone();
    let mut left = tries;
    loop {
        let mut smaller = false;
        for change in CHANGES {
            let mut at = 0;
            // What is left after a change that was kept is tried anew from the same place.
            while let Some(mut candidate) = change(&smallest, at) {
                if left == 0 {
                    return smallest;
                }
                about(&mut candidate);
                left -= 1;
                if fails(&candidate) {
                    smallest = candidate;
                    smaller = true;
                } else {
                    at += 1;
                }
            }
        }
        if !smaller {
            return smallest;
        }
    }
}

/// The `at`th of the simpler plans of one kind; nothing when there are no more.
type Change = fn(&Plan, usize) -> Option<Plan>;

const CHANGES: [Change; 9] =
    [half_of_faults, one_fault, one_producer, one_rollout, at_once, one_box, shorter, shorter_fault, plainer];

/// Entries that are no rollouts.
fn faults(plan: &Plan) -> Vec<usize> {
    let is_fault = |entry: &Entry| !matches!(entry.action, Action::Rollout { .. });
    plan.timeline.iter().enumerate().filter(|(_, entry)| is_fault(entry)).map(|(at, _)| at).collect()
}

/// Without some entries. What waited for one that is gone waits for whatever is before it now, and needs something.
fn without(plan: &Plan, gone: &[usize]) -> Option<Plan> {
    let mut smaller = plan.clone();
    let mut at = 0;
    smaller.timeline.retain(|_| {
        at += 1;
        !gone.contains(&(at - 1))
    });
    tidy(smaller)
}

/// Releases that nobody rolls out go; a plan that makes no sense any more is none.
fn tidy(mut plan: Plan) -> Option<Plan> {
    let timeline = std::mem::take(&mut plan.timeline);
    plan.releases.retain(|release| {
        timeline.iter().any(|entry| match &entry.action {
            Action::Rollout { app, version, how, .. } => {
                *app == release.app
                    && (*version == release.version || how.rollback_to.as_ref() == Some(&release.version))
            }
            _ => false,
        })
    });
    let rolled: BTreeSet<_> = timeline
        .iter()
        .filter(|entry| matches!(entry.action, Action::Rollout { .. }))
        .filter_map(|entry| entry.action.release())
        .map(|(app, version)| (app.clone(), version.clone()))
        .collect();
    // What is done to a rollout, or seen of it, goes with it.
    let mut timeline = timeline;
    timeline.retain(|entry| {
        entry.action.release().is_none_or(|(app, version)| rolled.contains(&(app.clone(), version.clone())))
    });
    plan.expect.rollouts.retain(|key, _| plan.releases.iter().any(|r| *key == format!("{}@{}", r.app, r.version)));
    let apps_are_there = timeline.iter().all(|entry| match &entry.moment {
        Moment::Phase { app, .. } => plan.releases.iter().any(|release| &release.app == app),
        _ => true,
    });
    plan.timeline = timeline;
    apps_are_there.then_some(plan)
}

fn half_of_faults(plan: &Plan, at: usize) -> Option<Plan> {
    let faults = faults(plan);
    if faults.len() < 4 || at > 1 {
        return None;
    }
    let (first, second) = faults.split_at(faults.len() / 2);
    without(plan, if at == 0 { second } else { first })
}

fn one_fault(plan: &Plan, at: usize) -> Option<Plan> {
    let faults = faults(plan);
    without(plan, &[*faults.get(at)?])
}

fn one_producer(plan: &Plan, at: usize) -> Option<Plan> {
    let mut smaller = plan.clone();
    (at < smaller.producers.len()).then(|| smaller.producers.remove(at))?;
    Some(smaller)
}

fn one_rollout(plan: &Plan, at: usize) -> Option<Plan> {
    let rollouts = plan.timeline.iter().enumerate().filter(|(_, e)| matches!(e.action, Action::Rollout { .. }));
    let (index, _) = rollouts.rev().nth(at)?;
    without(plan, &[index])
}

/// A rollout that goes to all at once instead of in waves.
fn at_once(plan: &Plan, at: usize) -> Option<Plan> {
    let mut smaller = plan.clone();
    let ways = smaller.timeline.iter_mut().filter_map(|entry| match &mut entry.action {
        Action::Rollout { how, .. } if **how != How::default() => Some(how),
        _ => None,
    });
    **ways.into_iter().nth(at)? = How::default();
    tidy(smaller)
}

/// Without a box, where others are left and nothing is about it alone.
fn one_box(plan: &Plan, at: usize) -> Option<Plan> {
    let boxes: Vec<_> = plan.sites.iter().flat_map(|site| &site.nodes).rev().cloned().collect();
    // A box that something is about is passed over, not the end.
    boxes.iter().filter_map(|node| without_box(plan, node)).nth(at)
}

fn without_box(plan: &Plan, node: &proto::name::Name) -> Option<Plan> {
    let mut smaller = plan.clone();
    for site in &mut smaller.sites {
        site.nodes.retain(|other| other != node);
    }
    smaller.sites.retain(|site| !site.nodes.is_empty());
    // An entry about it alone goes with it.
    let gone = Target::Node(node.clone());
    let is_left = |target: &Target| match target {
        Target::Site(site) => smaller.sites.iter().any(|left| &left.name == site),
        target => *target != gone,
    };
    smaller.producers.retain(|producer| is_left(&producer.on));
    smaller.timeline.retain(|entry| match &entry.action {
        Action::Break { fault, .. } => is_left(fault.target()),
        Action::Steer { .. } | Action::See { .. } => true,
        Action::Rollout { to, .. } => smaller.sites.iter().any(|s| s.nodes.iter().any(|node| selects(to, s, node))),
    });
    let moments = smaller.timeline.iter().all(|entry| match &entry.moment {
        Moment::At(_) => true,
        Moment::Downloaded { node: of, .. } | Moment::Phase { node: of, .. } => of != node,
    });
    if smaller.sites.is_empty() || !moments {
        return None;
    }
    tidy(smaller)
}

/// Half as long, or ended where the last thing ends.
fn shorter(plan: &Plan, at: usize) -> Option<Plan> {
    let last = plan.timeline.iter().filter_map(ends).max().unwrap_or_default() + Duration::from_secs(1);
    let last = Duration::from_secs(last.as_secs() + 1).max(SHORTEST);
    let duration = match at {
        0 if last < plan.duration => last,
        1 => plan.duration / 2,
        _ => return if at == 0 { shorter(plan, 1) } else { None },
    };
    let duration = Duration::from_secs(duration.as_secs());
    if duration < SHORTEST || duration >= plan.duration {
        return None;
    }
    let mut smaller = plan.clone();
    smaller.duration = duration;
    smaller.timeline.retain(|entry| ends(entry).is_none_or(|end| end < duration));
    for producer in &mut smaller.producers {
        producer.peaks.retain(|peak| peak.at < duration);
    }
    tidy(smaller)
}

fn ends(entry: &Entry) -> Option<Duration> {
    let Moment::At(at) = entry.moment else { return None };
    let (every, times) = entry.repeat.unwrap_or((Duration::ZERO, 1));
    let lasts = entry.action.lasts().unwrap_or_default();
    Some(at + every * times.saturating_sub(1) + entry.jitter + lasts)
}

fn shorter_fault(plan: &Plan, at: usize) -> Option<Plan> {
    let mut smaller = plan.clone();
    let long = smaller.timeline.iter_mut().filter_map(|entry| match &mut entry.action {
        Action::Break { lasts: Some(lasts), .. } if *lasts >= SHORTEST_FAULT * 2 => Some(lasts),
        _ => None,
    });
    let lasts = long.into_iter().nth(at)?;
    *lasts = Duration::from_secs((*lasts / 2).as_secs());
    Some(smaller)
}

/// No repetition, no jitter, a plain line, no settings, no broker, one box instead of all.
fn plainer(plan: &Plan, at: usize) -> Option<Plan> {
    let mut ways: Vec<Plan> = vec![];
    let mut way = |change: &dyn Fn(&mut Plan)| {
        let mut smaller = plan.clone();
        change(&mut smaller);
        if smaller != *plan {
            ways.push(smaller);
        }
    };
    way(&|plan| plan.timeline.iter_mut().for_each(|entry| (entry.repeat, entry.jitter) = (None, Duration::ZERO)));
    way(&|plan| plan.sites.iter_mut().for_each(|site| site.settings.clear()));
    way(&|plan| {
        for site in &mut plan.sites {
            if let Some(fiber) = crate::plan::line("fiber") {
                site.line = fiber;
            }
        }
    });
    for broker in &plan.brokers {
        way(&|plan| {
            let name = &broker.name;
            let is_its = |entry: &Entry| matches!(&entry.action, Action::Break { fault: Fault::BrokerDown { broker }, .. } if broker == name);
            plan.brokers.retain(|broker| broker.name != *name);
            plan.timeline.retain(|entry| !is_its(entry));
        });
    }
    way(&|plan| plan.brokers.iter_mut().for_each(|broker| broker.manners = Manners::default()));
    way(&|plan| plan.producers.iter_mut().for_each(|producer| producer.peaks.clear()));
    way(&|plan| plan.releases.iter_mut().for_each(|release| (release.files, release.bytes) = (1, 4096)));
    for index in 0..plan.timeline.len() {
        way(&|plan| {
            let node = plan.sites.first().and_then(|site| site.nodes.first()).cloned();
            if let (Some(node), Some(Entry { action: Action::Break { fault, .. }, .. })) =
                (node, plan.timeline.get_mut(index))
            {
                narrow(fault, node);
            }
        });
    }
    ways.into_iter().nth(at)
}

/// The first box instead of a site or all.
fn narrow(fault: &mut Fault, node: proto::name::Name) {
    if let Some(target) = fault.target_mut()
        && matches!(target, Target::All | Target::Site(_))
    {
        *target = Target::Node(node);
    }
}
