//! One node and one rollout: whether it was told, what it says, and why nothing is begun on it.

use std::borrow::Cow;

use proto::{
    digest::Digest,
    name::{Name, Version},
    object::{
        AppOrder, AssignedApp, Condition, ConditionStatus, Node, NodePhase, RolloutNode, RunState, UpdatePhase,
        condition, rollout::reason,
    },
};

/// What a rollout brings about on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// It runs this release.
    Release(Version, Digest),
    /// It started the app again.
    Restart,
}

/// A state of a node, with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State<'a> {
    pub phase: UpdatePhase,
    pub reason: Cow<'a, str>,
    pub message: Cow<'a, str>,
}

impl<'a> State<'a> {
    pub fn new(phase: UpdatePhase, reason: &'a str, message: impl Into<Cow<'a, str>>) -> State<'a> {
        State { phase, reason: reason.into(), message: message.into() }
    }

    /// Waits, for that reason.
    pub fn waits(reason: &'a str, message: impl Into<Cow<'a, str>>) -> State<'a> {
        State::new(UpdatePhase::Pending, reason, message)
    }

    pub fn is_of(&self, entry: &RolloutNode) -> bool {
        entry.phase == self.phase && entry.reason == self.reason && entry.message == self.message
    }
}

/// What the rollout told the node, if it did.
pub(super) fn told<'a>(node: &'a Node, app: &Name, target: &Target, rollout: &str) -> Option<&'a AssignedApp> {
    let assigned = node.spec.apps.get(app)?;
    let mine = match target {
        Target::Release(_, digest) => assigned.digest == *digest && assigned.rollout.as_deref() == Some(rollout),
        Target::Restart => assigned.order.restart.as_deref() == Some(rollout),
    };
    mine.then_some(assigned)
}

/// What to tell a node. What it was told besides and is not about this stays.
pub(super) fn telling(
    before: Option<&AssignedApp>,
    target: &Target,
    rollout: &str,
    order: AppOrder,
) -> Option<AssignedApp> {
    let restart = before.and_then(|before| before.order.restart.clone());
    match target {
        Target::Release(version, digest) => {
            let told = AssignedApp::new(version.clone(), *digest, Some(rollout.to_owned()));
            Some(AssignedApp { order: AppOrder { restart, ..order }, ..told })
        }
        Target::Restart => {
            let mut told = before?.clone();
            told.order.restart = Some(rollout.to_owned());
            Some(told)
        }
    }
}

/// Why nothing is begun on a node, apart from the rollout.
pub(super) fn deferral<'a>(node: &Node, app: &Name, target: &Target) -> Option<State<'a>> {
    let deferred = |reason, message: String| Some(State::new(UpdatePhase::Deferred, reason, message));
    match node.status.phase {
        NodePhase::Ready | NodePhase::NotReady => {}
        NodePhase::Pending => {
            let text = "the node never connected; it goes on when it does";
            return deferred(reason::NEVER_CONNECTED, text.into());
        }
        NodePhase::Unknown => {
            let since = node.status.last_seen.map(|at| format!(" since {at}")).unwrap_or_default();
            return deferred(reason::OFFLINE, format!("not heard from{since}; it goes on when it is back"));
        }
    }
    if node.spec.drained || node.spec.cordoned {
        let (word, undo) = if node.spec.drained { ("drained", "undrain") } else { ("cordoned", "uncordon") };
        return deferred(
            reason::CORDONED,
            format!("the node is {word}; crossdock {undo} {} lets it go on", node.name()),
        );
    }
    let pinned = node.spec.pinned.contains(app) && matches!(target, Target::Release(..));
    if pinned {
        let text = format!("{app} is pinned on it; crossdock unpin {} {app} lets it go on", node.name());
        return deferred(reason::PINNED, text);
    }
    None
}

/// What a node that was told says of the target itself.
pub(super) fn says<'a>(node: &'a Node, app: &Name, target: &Target, told: &AssignedApp) -> State<'a> {
    let Some(said) = node.status.workloads.get(app) else { return says_nothing(node) };
    match target {
        Target::Release(_, digest) => {
            if said.target.as_ref().is_none_or(|target| target.digest != *digest)
                || told.order.retry.is_some() && said.retried != told.order.retry
            {
                return says_nothing(node);
            }
            let other = said.running.as_ref().is_some_and(|running| running.release.digest != *digest);
            if said.phase == UpdatePhase::Succeeded && other {
                let text = "the node reports success and does not run the release";
                return State::new(UpdatePhase::Verifying, "", text);
            }
            State::new(said.phase, &said.reason, said.message.as_str())
        }
        Target::Restart => {
            if said.restarted != told.order.restart {
                return State { phase: UpdatePhase::Applying, ..says_nothing(node) };
            }
            match &said.restart_failed {
                Some(message) => State::new(UpdatePhase::Failed, "Unhealthy", message.as_str()),
                None => State::new(UpdatePhase::Succeeded, "", ""),
            }
        }
    }
}

/// A node that was told and does not say what it makes of it: on its way, or it cannot even keep it.
fn says_nothing(node: &Node) -> State<'_> {
    cannot_keep(node).map_or(State::waits("", ""), |(reason, message)| State::waits(reason, message))
}

/// Why a node cannot keep what it is told, if so: a word, and a sentence.
pub(super) fn cannot_keep(node: &Node) -> Option<(&str, &str)> {
    let is_so = |c: &&Condition| c.r#type == condition::ASSIGNMENT_PRESSURE && c.status == ConditionStatus::True;
    let condition = node.status.conditions.iter().find(is_so)?;
    Some((&condition.reason, &condition.message))
}

/// The agent's word for a release that it took although it is not healthy: the one before was not either.
const UNHEALTHY_BEFORE: &str = "UnhealthyBefore";

/// What is wrong with the app on a node that had proved it; `None`: nothing.
pub(super) fn degraded(node: &Node, app: &Name) -> Option<String> {
    let said = node.status.workloads.get(app)?;
    let running = said.running.as_ref()?;
    if said.reason == UNHEALTHY_BEFORE {
        return None; // it was no better before, so it is not the release's fault
    }
    let how = match running.state {
        RunState::BackOff => "ended and waits to be started again",
        RunState::Running | RunState::Starting if !running.ready => "runs and is not ready",
        _ => return None,
    };
    let exit = running.last_exit.as_ref().map(|exit| format!(": {}", exit.message)).unwrap_or_default();
    Some(format!("it proved healthy, and now {how} ({} restarts){exit}", running.restarts))
}
