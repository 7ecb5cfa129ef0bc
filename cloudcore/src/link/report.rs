//! What a report makes of a node's status: pure changes of the object, carried out in one transaction
//! by `link::session` and the liveness loop. Nothing is touched when nothing changed, so that heartbeats
//! and repeated reports do not become writes.

use jiff::Timestamp;
use proto::{
    link::message::Report,
    object::{AssignedApp, Attested, Condition, ConditionStatus, Node, NodeInfo, NodePhase},
};

/// Type of the condition that the hub derives when an agent does not report it.
pub(crate) const READY: &str = "Ready";

/// Longest reason kept, in characters: it is one word.
const MAX_REASON_CHARS: usize = 64;
/// Longest message kept, in characters.
const MAX_MESSAGE_CHARS: usize = 1024;
/// Carriers kept of a node.
const MAX_CARRIERS: usize = 4;
/// Highest generation that is believed. The hub counts one up a change, and never gets there.
const MAX_GENERATION: u64 = 1 << 48;

/// Cuts what a node says to what is kept of it. Called once, when a report arrives.
pub(crate) fn bound(report: &mut Report) {
    for condition in &mut report.conditions {
        cut(&mut condition.reason, MAX_REASON_CHARS);
        cut(&mut condition.message, MAX_MESSAGE_CHARS);
    }
    report.carriers.truncate(MAX_CARRIERS);
    for carrier in &mut report.carriers {
        cut(&mut carrier.name, MAX_REASON_CHARS);
        cut(&mut carrier.at, MAX_MESSAGE_CHARS);
        for text in [&mut carrier.last_error, &mut carrier.warning].into_iter().flatten() {
            cut(text, MAX_MESSAGE_CHARS);
        }
    }
    for workload in report.workloads.values_mut() {
        cut(&mut workload.reason, MAX_REASON_CHARS);
        cut(&mut workload.message, MAX_MESSAGE_CHARS);
        if let Some(replicas) = &mut workload.replicas {
            cut(&mut replicas.message, MAX_MESSAGE_CHARS);
        }
        if let Some(metrics) = &mut workload.metrics {
            metrics.bound();
        }
    }
    if let Some(reboot) = &mut report.reboot {
        cut(&mut reboot.order, MAX_MESSAGE_CHARS);
        cut(&mut reboot.message, MAX_MESSAGE_CHARS);
    }
}

/// The same of the facts that have a length.
pub(crate) fn bound_info(info: &mut NodeInfo) {
    if let Some(gpus) = &mut info.nvidia {
        gpus.bound();
    }
}

fn cut(text: &mut String, chars: usize) {
    if let Some((at, _)) = text.char_indices().nth(chars) {
        text.truncate(at);
    }
}

/// Writes a report (and facts, with a Hello) into a node. Returns what it keeps although the hub knew nothing of it,
/// for people.
pub(crate) fn apply(
    node: &mut Node,
    report: &Report,
    info: Option<&NodeInfo>,
    remote: &str,
    now: Timestamp,
) -> Option<String> {
    let before = node.status.clone();
    let status = &mut node.status;
    // An absurd one would take the hub's counter to its end, and nothing could be assigned any more.
    let absurd = report.observed_generation > MAX_GENERATION;
    if absurd {
        tracing::warn!(node = %node.metadata.name, generation = report.observed_generation, "an absurd generation is reported and ignored; remove the agent's state and let the box join again");
    } else {
        status.observed_generation = report.observed_generation;
    }
    status.workloads.clone_from(&report.workloads);
    status.carriers.clone_from(&report.carriers);
    status.reboot.clone_from(&report.reboot);
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
    if !absurd && report.observed_generation > node.metadata.generation {
        node.metadata.generation = report.observed_generation.saturating_add(1);
        return adopt(node, report);
    }
    // One that nobody told anything yet, here or there, such as at a new hub in place of one that was stolen.
    let is_untold = report.observed_generation == 0 && node.metadata.generation <= 1 && node.spec.apps.is_empty();
    if is_untold { adopt(node, report) } else { None }
}

/// Keeps what the node signed, when that says anything new.
pub(crate) fn attest(node: &mut Node, signed: Option<&Attested>) {
    let Some(signed) = signed else { return };
    let says = |attested: &Attested| (attested.spki, attested.observed_generation, attested.running.clone());
    if node.status.attested.as_ref().map(says) != Some(says(signed)) {
        node.status.attested = Some(signed.clone());
    }
}

/// The node was told more than this hub knows: apps that only the node knows of stay, until a rollout says otherwise.
/// To a hub that was restored from an older copy, or set up anew, they would seem unwanted, and every workload begun since would end.
/// Restarts that were carried out since are not ordered once more by what the copy says.
fn adopt(node: &mut Node, report: &Report) -> Option<String> {
    let mut kept = vec![];
    node.spec.reboot = report.reboot.as_ref().map(|reboot| reboot.order.clone());
    for (app, said) in &report.workloads {
        if let Some(told) = node.spec.apps.get_mut(app) {
            told.order.restart.clone_from(&said.restarted);
        }
        let Some(target) = &said.target else { continue }; // it is being removed
        let runs = said.running.as_ref().map_or(target, |running| &running.release);
        node.spec.apps.entry(app.clone()).or_insert_with(|| {
            kept.push(format!("{app}@{}", runs.version));
            AssignedApp::new(runs.version.clone(), runs.digest, None)
        });
    }
    (!kept.is_empty()).then(|| {
        format!(
            "the node has more than this hub told it, as after a restore: it keeps {}; roll out what it shall run",
            kept.join(", ")
        )
    })
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

/// A node that was marked silent and is heard again, with nothing new to report. `ready` is what its agent
/// last said of itself, if anything.
pub(crate) fn revive(node: &mut Node, ready: Option<&Condition>, now: Timestamp) {
    if node.status.phase == NodePhase::Unknown {
        let others = node.status.conditions.iter().filter(|c| c.r#type != READY);
        let reported: Vec<Condition> = ready.into_iter().chain(others).cloned().collect();
        node.status.conditions = with_ready(&[], &reported, now);
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
    use proto::{
        digest::Digest,
        object::{NodeSpec, Object, RebootStatus, ReleaseRef, RunState, Running, UpdatePhase, WorkloadStatus},
    };

    use super::*;

    #[test]
    fn a_repeated_report_changes_nothing_and_a_higher_generation_raises_ours() {
        let name: proto::name::Name = "n1".parse().unwrap();
        let spec = NodeSpec::new("s1".parse().unwrap());
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

    #[test]
    fn who_is_heard_again_is_as_ready_as_it_said() {
        let spec = NodeSpec::new("s1".parse().unwrap());
        let mut node: Node = Object::new("n1".parse::<proto::name::Name>().unwrap(), spec);
        let at = |s| Timestamp::from_second(s).unwrap();
        let not_ready = Condition {
            r#type: READY.into(),
            status: ConditionStatus::False,
            reason: "DiskFull".into(),
            message: "no space".into(),
            last_transition_time: at(1),
        };
        let report = Report { conditions: vec![not_ready.clone()], ..Report::default() };
        apply(&mut node, &report, None, "", at(2));
        silence(&mut node, Some(at(2)), at(60));
        revive(&mut node, Some(&not_ready), at(61));
        assert_eq!((node.status.phase, &node.status.conditions[..]), (NodePhase::NotReady, &[not_ready][..]));
        silence(&mut node, Some(at(61)), at(120));
        revive(&mut node, None, at(121));
        assert_eq!(node.status.phase, NodePhase::Ready);
    }

    #[test]
    fn what_a_node_says_is_bounded() {
        let condition = Condition {
            r#type: READY.into(),
            status: ConditionStatus::True,
            reason: "ä".repeat(100),
            message: "ö".repeat(5000),
            last_transition_time: Timestamp::UNIX_EPOCH,
        };
        let mut report = Report { conditions: vec![condition], ..Report::default() };
        bound(&mut report);
        let kept = &report.conditions[0];
        assert_eq!((kept.reason.as_str(), kept.message.as_str()), (&*"ä".repeat(64), &*"ö".repeat(1024)));

        let spec = NodeSpec::new("s1".parse().unwrap());
        let mut node: Node = Object::new("n1".parse::<proto::name::Name>().unwrap(), spec);
        node.metadata.generation = 5;
        let absurd = Report { observed_generation: u64::MAX, ..report };
        apply(&mut node, &absurd, None, "", Timestamp::UNIX_EPOCH);
        assert_eq!((node.metadata.generation, node.status.observed_generation), (5, 0));
        assert_eq!(node.status.phase, NodePhase::Ready);
    }

    #[test]
    fn a_hub_that_knows_less_than_its_node_lets_it_keep_what_it_runs() {
        let release = |text: &str| ReleaseRef { version: text.parse().unwrap(), digest: Digest::of(text.as_bytes()) };
        let said = |target: Option<&str>, running: Option<&str>| {
            let running = running.map(|text| Running {
                release: release(text),
                state: RunState::Running,
                ready: true,
                restarts: 0,
                started_at: None,
                last_exit: None,
            });
            WorkloadStatus {
                running,
                ..WorkloadStatus::new(target.map(release), UpdatePhase::Succeeded, Timestamp::UNIX_EPOCH)
            }
        };
        let name = |text: &str| text.parse::<proto::name::Name>().unwrap();
        let workloads = [
            (name("new"), said(Some("2"), Some("1"))),
            (name("begun"), said(Some("2"), None)),
            (name("going"), said(None, Some("1"))),
            (name("known"), WorkloadStatus { restarted: Some("newer".into()), ..said(Some("2"), Some("2")) }),
        ];
        let reboot = RebootStatus { order: "newer".into(), phase: UpdatePhase::Succeeded, message: String::new() };
        let report =
            Report { observed_generation: 7, workloads: workloads.into(), reboot: Some(reboot), ..Report::default() };
        let mut node: Node = Object::new(name("n1"), NodeSpec::new(name("s1")));
        let mut known = AssignedApp::new("1".parse().unwrap(), Digest::of(b"1"), Some("r".into()));
        known.order.restart = Some("older".into());
        node.spec.apps.insert(name("known"), known.clone());
        node.spec.reboot = Some("older".into());

        node.metadata.generation = 7;
        let adopted = apply(&mut node, &report, None, "", Timestamp::UNIX_EPOCH);
        assert_eq!((node.spec.apps.len(), adopted), (1, None), "what it has to go without it goes without");
        node.metadata.generation = 6;
        let adopted = apply(&mut node, &report, None, "", Timestamp::UNIX_EPOCH);
        let now = |app: &str| node.spec.apps.get(app).map(|told| told.version.to_string());
        assert_eq!((now("new"), now("begun"), now("going")), (Some("1".into()), Some("2".into()), None));
        known.order.restart = Some("newer".into());
        assert_eq!(node.spec.apps.get("known"), Some(&known), "what was restarted since is not once more");
        assert_eq!(node.spec.reboot.as_deref(), Some("newer"));
        assert!(adopted.unwrap().contains("keeps begun@2, new@1;"));

        // A node that joined a new hub, and was told nothing by it.
        let joined = Report { observed_generation: 0, ..report };
        let mut node: Node = Object::new(name("n1"), NodeSpec::new(name("s1")));
        node.metadata.generation = 1;
        let adopted = apply(&mut node, &joined, None, "", Timestamp::UNIX_EPOCH);
        assert!(adopted.unwrap().contains("known@2") && node.spec.apps.len() == 3);
        // One that was told to run nothing keeps nothing.
        let mut node: Node = Object::new(name("n1"), NodeSpec::new(name("s1")));
        node.metadata.generation = 2;
        assert!(apply(&mut node, &joined, None, "", Timestamp::UNIX_EPOCH).is_none() && node.spec.apps.is_empty());
    }
}
