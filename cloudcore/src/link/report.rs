//! What a report makes of a node's status: pure changes of the object, carried out in one transaction
//! by `link::session` and the liveness loop. Nothing is touched when nothing changed, so that heartbeats
//! and repeated reports do not become writes.

use jiff::Timestamp;
use proto::{
    link::message::Report,
    object::{Condition, ConditionStatus, Node, NodeInfo, NodePhase},
};

/// Type of the condition that the hub derives when an agent does not report it.
pub(crate) const READY: &str = "Ready";

/// Writes a report (and facts, with a Hello) into a node.
pub(crate) fn apply(node: &mut Node, report: &Report, info: Option<&NodeInfo>, remote: &str, now: Timestamp) {
    let before = node.status.clone();
    let status = &mut node.status;
    status.observed_generation = report.observed_generation;
    status.workloads.clone_from(&report.workloads);
    status.conditions = with_ready(&before.conditions, &report.conditions, now);
    status.phase = phase(&status.conditions);
    if let Some(info) = info {
        status.info = Some(info.clone());
        status.remote = Some(remote.to_owned());
    }
    if *status != before {
        status.last_seen = Some(now);
    }
    // A hub restored from an older copy would be ignored for ever if it stayed below.
    if report.observed_generation > node.metadata.generation {
        node.metadata.generation = report.observed_generation.saturating_add(1);
    }
}

/// Marks a node that was not heard from.
pub(crate) fn silence(node: &mut Node, seen: Option<Timestamp>, now: Timestamp) {
    let since = seen.or(node.status.last_seen);
    node.status.last_seen = since;
    node.status.phase = NodePhase::Unknown;
    let message = match since {
        Some(since) => format!("not heard from since {since}"),
        None => "never heard from since the hub started".into(),
    };
    let ready = Condition {
        r#type: READY.into(),
        status: ConditionStatus::Unknown,
        reason: "Silent".into(),
        message,
        last_transition_time: now,
    };
    node.status.conditions.retain(|c| c.r#type != READY);
    node.status.conditions.insert(0, ready);
}

/// A node that was marked silent and is heard again, with nothing new to report.
pub(crate) fn revive(node: &mut Node, now: Timestamp) {
    if node.status.phase == NodePhase::Unknown {
        let others: Vec<Condition> = node.status.conditions.iter().filter(|c| c.r#type != READY).cloned().collect();
        node.status.conditions = with_ready(&[], &others, now);
        node.status.phase = phase(&node.status.conditions);
        node.status.last_seen = Some(now);
    }
}

fn phase(conditions: &[Condition]) -> NodePhase {
    match conditions.iter().find(|c| c.r#type == READY).map(|c| c.status) {
        Some(ConditionStatus::True) => NodePhase::Ready,
        _ => NodePhase::NotReady,
    }
}

/// The reported conditions; `Ready` is the hub's finding when the agent does not say.
fn with_ready(before: &[Condition], reported: &[Condition], now: Timestamp) -> Vec<Condition> {
    let mut conditions = reported.to_vec();
    if !conditions.iter().any(|c| c.r#type == READY) {
        let old = before.iter().find(|c| c.r#type == READY && c.status == ConditionStatus::True);
        let ready = Condition {
            r#type: READY.into(),
            status: ConditionStatus::True,
            reason: "Connected".into(),
            message: "the agent reports".into(),
            last_transition_time: old.map_or(now, |c| c.last_transition_time),
        };
        conditions.insert(0, ready);
    }
    conditions
}

#[cfg(test)]
mod tests {
    use proto::object::{NodeSpec, Object};

    use super::*;

    #[test]
    fn a_repeated_report_changes_nothing_and_a_higher_generation_raises_ours() {
        let name: proto::name::Name = "n1".parse().unwrap();
        let spec = NodeSpec { site: "s1".parse().unwrap(), apps: Default::default() };
        let mut node: Node = Object::new(name, spec);
        let report = Report { observed_generation: 7, ..Report::default() };
        let at = |s| Timestamp::from_second(s).unwrap();
        apply(&mut node, &report, None, "", at(1));
        assert_eq!((node.metadata.generation, node.status.phase), (8, NodePhase::Ready));
        let once = node.clone();
        apply(&mut node, &report, None, "", at(2));
        assert_eq!(node, once);

        silence(&mut node, Some(at(2)), at(60));
        assert_eq!(node.status.phase, NodePhase::Unknown);
        assert!(node.status.conditions[0].message.contains("1970-01-01T00:00:02Z"));
        apply(&mut node, &report, None, "", at(61));
        assert_eq!(node.status.phase, NodePhase::Ready);
        assert_eq!(node.status.conditions[0].last_transition_time, at(61));
    }
}
