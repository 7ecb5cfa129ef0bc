//! One node and one rollout: whether it was told, what it says, and why nothing is begun on it.

use std::borrow::Cow;

use jiff::Timestamp;
use proto::{
    digest::Digest,
    name::{Name, Version},
    object::{
        AppOrder, AssignedApp, Condition, ConditionStatus, Node, NodePhase, RolloutNode, RolloutSpec, RunState,
        UpdatePhase, condition, feature, rollout::reason,
    },
    units::Span,
};

use super::pass::later;

/// What a rollout brings about on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// It runs this release.
    Release(Version, Digest),
    /// It started the app again.
    Restart,
    /// It restarted itself.
    Reboot,
}

impl Target {
    /// What it is, of a rollout whose release is known.
    pub fn of(spec: &RolloutSpec, digest: Option<Digest>) -> Option<Target> {
        match &spec.version {
            Some(version) => Some(Target::Release(version.clone(), digest?)),
            None if spec.reboot => Some(Target::Reboot),
            None => Some(Target::Restart),
        }
    }

    pub fn is_release(&self) -> bool {
        matches!(self, Target::Release(..))
    }
}

/// What a rollout told a node.
#[derive(Debug, Clone, Copy)]
pub(super) enum Told<'a> {
    App(&'a AssignedApp),
    Reboot(&'a str),
}

impl Told<'_> {
    /// Whether it is to wait for the word.
    pub fn is_held(&self) -> bool {
        matches!(self, Told::App(assigned) if assigned.order.hold)
    }
}

/// What a node is to be told.
#[derive(Debug, Clone)]
pub(super) enum Telling {
    App(Option<AssignedApp>),
    Reboot(Option<String>),
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
pub(super) fn told<'a>(node: &'a Node, app: &Name, target: &Target, rollout: &str) -> Option<Told<'a>> {
    let assigned = || node.spec.apps.get(app);
    match target {
        Target::Release(_, digest) => assigned()
            .filter(|assigned| assigned.digest == *digest && assigned.rollout.as_deref() == Some(rollout))
            .map(Told::App),
        Target::Restart => {
            assigned().filter(|assigned| assigned.order.restart.as_deref() == Some(rollout)).map(Told::App)
        }
        Target::Reboot => node.spec.reboot.as_deref().filter(|order| *order == rollout).map(Told::Reboot),
    }
}

/// What to tell a node. What it was told besides and is not about this stays.
pub(super) fn telling(
    before: Option<&AssignedApp>,
    target: &Target,
    rollout: &str,
    order: AppOrder,
) -> Option<Telling> {
    let restart = before.and_then(|before| before.order.restart.clone());
    match target {
        Target::Release(version, digest) => {
            let told = AssignedApp::new(version.clone(), *digest, Some(rollout.to_owned()));
            Some(Telling::App(Some(AssignedApp { order: AppOrder { restart, ..order }, ..told })))
        }
        Target::Restart => {
            let mut told = before?.clone();
            told.order.restart = Some(rollout.to_owned());
            Some(Telling::App(Some(told)))
        }
        Target::Reboot => Some(Telling::Reboot(Some(rollout.to_owned()))),
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
    let pinned = node.spec.pinned.contains(app) && target.is_release();
    if pinned {
        let text = format!("{app} is pinned on it; crossdock unpin {} {app} lets it go on", node.name());
        return deferred(reason::PINNED, text);
    }
    None
}

/// What a node that was told says of the target itself.
pub(super) fn says<'a>(node: &'a Node, app: &Name, target: &Target, told: Told<'_>) -> State<'a> {
    let told = match told {
        Told::App(told) => told,
        Told::Reboot(order) => return says_of_reboot(node, order),
    };
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
        Target::Restart | Target::Reboot => {
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

/// How far its restart is, as it says itself.
fn says_of_reboot<'a>(node: &'a Node, order: &str) -> State<'a> {
    match node.status.reboot.as_ref().filter(|said| said.order == order) {
        Some(said) => State::new(said.phase, "", said.message.as_str()),
        None => says_nothing(node),
    }
}

/// A node that went down to restart and is not heard from for so long does not come back by itself.
const BACK_WITHIN: Span = Span::from_secs(1800);

/// When a node that went down to restart counts as failed, if it is not heard from.
pub(super) fn is_lost_at(node: &Node) -> Timestamp {
    node.status.last_seen.map_or(Timestamp::MAX, |seen| later(seen, BACK_WITHIN))
}

/// What then is so.
pub(super) fn is_lost(node: &Node) -> State<'static> {
    let since = node.status.last_seen.map(|at| format!(" since {at}")).unwrap_or_default();
    let text = format!("it went down to restart and is not heard from{since}; look at the box");
    State::new(UpdatePhase::Failed, reason::NOT_BACK, text)
}

/// Whether the agent of a node has a feature.
pub(super) fn knows(node: &Node, feature: &str) -> bool {
    node.status.info.as_ref().is_some_and(|info| info.features.contains(feature))
}

/// Whether a node was told to restart and is not up again, as far as it has said.
pub(super) fn is_rebooting(node: &Node) -> bool {
    let decided = |order: &str| says_of_reboot(node, order).phase.is_decided();
    // An older agent, put back since, will never say.
    knows(node, feature::REBOOT) && node.spec.reboot.as_deref().is_some_and(|order| !decided(order))
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
