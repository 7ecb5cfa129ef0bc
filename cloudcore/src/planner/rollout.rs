//! One rollout: how it starts, what it asks of its nodes, and what its nodes' reports make of it. Pure;
//! called by [`super::plan`].

use jiff::Timestamp;
use proto::{
    digest::Digest,
    name::Name,
    object::{
        AssignedApp, Node, NodePhase, Rollout, RolloutCounts, RolloutNode, RolloutPhase, RolloutStatus, UpdatePhase,
        rollout::reason,
    },
};

use super::{Owners, Snapshot, Step, validate};

/// The status with which a rollout enters this round: one that was not looked at yet gets its digest and
/// its nodes, or its refusal.
pub(super) fn start(rollout: &Rollout, snapshot: &Snapshot, now: Timestamp) -> RolloutStatus {
    if rollout.status.phase != RolloutPhase::Pending {
        return rollout.status.clone();
    }
    let begun = RolloutStatus { started_at: Some(now), ..RolloutStatus::default() };
    if let Err(message) = validate(&rollout.spec, snapshot) {
        return RolloutStatus { phase: RolloutPhase::Failed, message, finished_at: Some(now), ..begun };
    }
    let digest = rollout.release().and_then(|release| snapshot.releases.get(&release)).map(|r| r.spec.digest);
    let selected = snapshot.nodes.iter().filter(|(_, node)| node.matches(&rollout.spec.selector));
    let nodes = selected.map(|(name, _)| (name.clone(), waiting(UpdatePhase::Pending, "", ""))).collect();
    RolloutStatus { phase: RolloutPhase::Progressing, digest, nodes, ..begun }
}

fn waiting(phase: UpdatePhase, reason: &str, message: impl Into<String>) -> RolloutNode {
    RolloutNode::waiting(phase, reason, message)
}

/// Gives each node that belongs to the rollout its release.
pub(super) fn assign(
    rollout: &Rollout,
    status: &RolloutStatus,
    snapshot: &Snapshot,
    owners: &Owners,
    steps: &mut Vec<Step>,
) {
    let (Some(digest), Some(version)) = (status.digest, rollout.spec.version.clone()) else { return };
    let app = &rollout.spec.app;
    let assigned = AssignedApp::new(version, digest, Some(rollout.name().to_owned()));
    for name in status.nodes.keys().filter(|name| owner(owners, app, name) == Some(rollout.name())) {
        let Some(node) = snapshot.nodes.get(name) else { continue };
        if node.spec.apps.get(app) != Some(&assigned) {
            steps.push(Step::SetApp { node: name.clone(), app: app.clone(), assigned: assigned.clone() });
        }
    }
}

fn owner<'a>(owners: &'a Owners, app: &Name, node: &Name) -> Option<&'a str> {
    owners.get(&(app.clone(), node.clone())).map(String::as_str)
}

/// Where the rollout stands after what its nodes report.
pub(super) fn judge(
    rollout: &Rollout,
    status: &RolloutStatus,
    snapshot: &Snapshot,
    owners: &Owners,
    now: Timestamp,
) -> RolloutStatus {
    let app = &rollout.spec.app;
    let mut next = status.clone();
    // A node that was deleted is no node of the rollout any more.
    next.nodes.retain(|name, _| snapshot.nodes.contains_key(name));
    for (name, entry) in &mut next.nodes {
        let (Some(node), Some(digest)) = (snapshot.nodes.get(name), status.digest) else { continue };
        match owner(owners, app, name) {
            Some(newer) if newer != rollout.name() => {
                if entry.reason != reason::SUPERSEDED {
                    *entry = waiting(entry.phase, reason::SUPERSEDED, format!("rollout {newer} took the node"));
                }
            }
            _ => *entry = node_state(node, app, digest, rollout.name(), entry),
        }
    }
    let (phase, message) = verdict(&next);
    next.phase = phase;
    next.message = message;
    if phase.is_final() && next.finished_at.is_none() {
        next.finished_at = Some(now);
    }
    next
}

/// The one exact state of a node.
fn node_state(node: &Node, app: &Name, digest: Digest, rollout: &str, before: &RolloutNode) -> RolloutNode {
    let assigned = node.spec.apps.get(app);
    if assigned.is_none_or(|a| a.digest != digest || a.rollout.as_deref() != Some(rollout)) {
        return waiting(UpdatePhase::Pending, "", ""); // the assignment is written in this round
    }
    let reported = node.status.workloads.get(app).filter(|w| w.target.as_ref().is_some_and(|t| t.digest == digest));
    let runs_it = reported.and_then(|w| w.running.as_ref()).is_some_and(|r| r.release.digest == digest);
    let state = match reported {
        Some(w) if w.phase != UpdatePhase::Succeeded || runs_it => waiting(w.phase, &w.reason, w.message.clone()),
        Some(_) => waiting(UpdatePhase::Verifying, "", "the node reports success and does not run the release"),
        None => waiting(UpdatePhase::Pending, "", ""),
    };
    match node.status.phase {
        NodePhase::Ready | NodePhase::NotReady => state,
        // What it proved while it was there stays proven.
        _ if is_done(state.phase) && state.phase == before.phase => state,
        NodePhase::Pending => {
            waiting(UpdatePhase::Deferred, "NeverConnected", "the node never connected; it goes on when it does")
        }
        NodePhase::Unknown => {
            let since = node.status.last_seen.map(|at| format!(" since {at}")).unwrap_or_default();
            waiting(UpdatePhase::Deferred, "Offline", format!("not heard from{since}; it goes on when it is back"))
        }
    }
}

fn has_failed(phase: UpdatePhase) -> bool {
    matches!(phase, UpdatePhase::Failed | UpdatePhase::RolledBack)
}

fn is_done(phase: UpdatePhase) -> bool {
    phase == UpdatePhase::Succeeded || has_failed(phase)
}

/// Where a rollout with these nodes stands, and why.
fn verdict(status: &RolloutStatus) -> (RolloutPhase, String) {
    let RolloutCounts { all, taken, healthy, failed, deferred, blocked } = status.counts();
    let mine = all - taken;
    let mut message = format!("{healthy} of {all} healthy");
    for (number, word) in [(failed, "failed"), (deferred, "offline"), (blocked, "blocked"), (taken, "superseded")] {
        if number > 0 {
            message.push_str(&format!(", {number} {word}"));
        }
    }
    let phase = if all == 0 {
        message = "every node of it was deleted".into();
        RolloutPhase::Failed
    } else if mine == 0 {
        RolloutPhase::Superseded
    } else if failed > 0 && healthy + failed + deferred == mine {
        RolloutPhase::Failed
    } else if healthy == all {
        RolloutPhase::Succeeded
    } else if healthy == mine {
        RolloutPhase::Superseded
    } else {
        RolloutPhase::Progressing
    };
    (phase, message)
}
