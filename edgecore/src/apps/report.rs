//! What the agent says about one app: from the planner's view to [`WorkloadStatus`]. Pure.

use jiff::Timestamp;
use proto::object::{Progress, ReleaseRef, ReplicaStatus, Running, UpdatePhase, WorkloadMetrics, WorkloadStatus};

use super::{
    plan::{HookView, Over, PutOff, View, Wanted},
    slot::{Restart, RestartState, Slot},
    stage::Hindrance,
    uses::Users,
};
use crate::supervisor::Health;

/// Longest message: the reports of all apps must fit one frame.
const MAX_MESSAGE_CHARS: usize = 1_000;
/// What to do about a remembered failure, said with each of them, in whatever rollout it is wanted.
const NOT_TRIED_AGAIN: &str = "; it is not tried again on this node: mend the cause and publish it \
     under a new version, or, if the box was the cause, crossdock rollout retry";

const DRAINED: &str = "the node is drained: its workloads are stopped until it is not";
const HELD: &str = "Held";
const PRE_APPLY: &str = "PreApply";
const NEW_FILES: &str = "NewFiles";

/// How a fetch stands.
#[derive(Debug, Clone, PartialEq)]
pub enum FetchView<'a> {
    /// None is needed.
    Idle,
    /// Under way.
    Active(Progress),
    /// It will be tried again.
    Hindered(&'a Hindrance),
}

/// What is said besides the view.
#[derive(Debug)]
pub struct Extra<'a> {
    /// How the fetch stands.
    pub fetch: FetchView<'a>,
    /// What runs, and how it is.
    pub running: Option<(&'a ReleaseRef, Health)>,
    /// What it told of itself, where an order asks for it.
    pub metrics: Option<WorkloadMetrics>,
    /// How many replicas it has, where it has any number.
    pub replicas: Option<ReplicaStatus>,
    /// What is wrong with what runs beside that, if anything does.
    pub standby: Option<String>,
    /// Why the last step could not be carried out.
    pub trouble: Option<&'a str>,
}

struct Verdict {
    phase: UpdatePhase,
    reason: String,
    message: String,
    /// Known better than by when this process first said it.
    since: Option<Timestamp>,
}

fn verdict(phase: UpdatePhase, reason: &str, message: impl Into<String>) -> Verdict {
    Verdict { phase, reason: reason.into(), message: message.into(), since: None }
}

impl Verdict {
    /// The node is drained: unless there is something worse to say, that is why nothing runs.
    fn drained(self) -> Verdict {
        let phase = match self.phase {
            UpdatePhase::Applying => UpdatePhase::Staged,
            phase => phase,
        };
        match (phase, self.reason.as_str()) {
            (UpdatePhase::Blocked | UpdatePhase::Failed | UpdatePhase::RolledBack, _) => self,
            (UpdatePhase::Succeeded, _) | (_, "" | HELD | PRE_APPLY) => {
                Verdict { since: self.since, ..verdict(phase, "Drained", DRAINED) }
            }
            _ => Verdict { phase, ..self },
        }
    }
}

/// The report; `before` is the last one, whose time stays while its phase does. `None`: nothing to say.
#[must_use]
pub fn report(
    view: &View<'_>,
    extra: &Extra<'_>,
    before: Option<&WorkloadStatus>,
    now: Timestamp,
) -> Option<WorkloadStatus> {
    let target = target(view);
    let said = match (&target, extra.trouble) {
        (_, Some(trouble)) => verdict(UpdatePhase::Blocked, "StepFailed", trouble),
        (None, None) if *view.wanted == Wanted::Keep => return None,
        (None, None) => verdict(UpdatePhase::Applying, "Removing", removing(view)),
        (Some(target), None) if view.wanted.is_drained() => judge(view, extra, target).drained(),
        (Some(target), None) => judge(view, extra, target),
    };
    let before = before.filter(|b| b.phase == said.phase && b.target == target);
    let since = said.since.unwrap_or_else(|| before.map_or(now, |b| b.since));
    let progress = match extra.fetch {
        FetchView::Active(progress) if said.phase == UpdatePhase::Downloading => Some(progress),
        _ => None,
    };
    let Verdict { phase, reason, message, .. } = said;
    let message = message.chars().take(MAX_MESSAGE_CHARS).collect();
    let running = extra.running.as_ref().map(|(release, health)| running(release, health));
    let (restarted, restart_failed) = restarted(view.slot);
    let retried = view.slot.retried.clone();
    Some(WorkloadStatus {
        target,
        phase,
        reason,
        message,
        since,
        progress,
        restarted,
        restart_failed,
        retried,
        running,
        replicas: extra.replicas.clone().map(|replicas| ReplicaStatus {
            message: replicas.message.chars().take(MAX_MESSAGE_CHARS).collect(),
            ..replicas
        }),
        metrics: extra.metrics.clone(),
    })
}

fn removing(view: &View<'_>) -> String {
    let mut said = "no longer assigned: it is stopped and removed".to_owned();
    let users: Vec<&str> = view.files.held_by.iter().map(AsRef::as_ref).collect();
    if !users.is_empty() {
        said += &format!("; its files go when {} does not use them any more", users.join(", "));
    }
    said
}

/// The restart that was carried out last, and why the workload was not healthy after it.
fn restarted(slot: &Slot) -> (Option<String>, Option<String>) {
    let Some(Restart { text, state }) = slot.restart.as_ref().filter(|_| slot.active.is_some()) else {
        return (None, None);
    };
    match state {
        RestartState::Due | RestartState::Started => (None, None),
        RestartState::Done => (Some(text.clone()), None),
        RestartState::Failed(why) => (Some(text.clone()), Some(why.chars().take(MAX_MESSAGE_CHARS).collect())),
    }
}

fn target(view: &View<'_>) -> Option<ReleaseRef> {
    match view.wanted {
        Wanted::Run(ask) => Some(ask.release.clone()),
        Wanted::Remove => None,
        Wanted::Keep => {
            let trial = view.slot.trial.as_ref().map(|t| &t.installed);
            trial.or(view.slot.active.as_ref()).map(|i| i.release.clone())
        }
    }
}

fn judge(view: &View<'_>, extra: &Extra<'_>, target: &ReleaseRef) -> Verdict {
    let digest = target.digest;
    let health = || extra.running.as_ref().map(|(_, h)| h.message.clone()).unwrap_or_default();
    let own = view.slot.trial.as_ref().filter(|trial| trial.files_of.is_none());
    if let Some(trial) = own.filter(|t| t.installed.release.digest == digest) {
        if trial.standby {
            return standby(view, extra);
        }
        if let Some(failure) = view.verdict.and_then(Over::failure) {
            return verdict(UpdatePhase::Applying, &failure.reason, format!("it goes back: {}", failure.message));
        }
        return match &view.running {
            Some(running) if running.digest == digest && view.post_apply == HookView::Running => {
                verdict(UpdatePhase::Verifying, "Trial", "its postApply hook runs")
            }
            Some(running) if running.digest == digest => {
                let cold = trial.cold.as_ref().map(|why| format!("the one before was stopped first: {why}"));
                let said = [cold.unwrap_or_default(), health(), users(view)];
                let said: Vec<String> = said.into_iter().filter(|text| !text.is_empty()).collect();
                verdict(UpdatePhase::Verifying, "Trial", said.join("; "))
            }
            _ => verdict(UpdatePhase::Applying, "", ""),
        };
    }
    if let Some(failure) = view.slot.failure(digest) {
        let phase = if view.slot.active.is_some() { UpdatePhase::RolledBack } else { UpdatePhase::Failed };
        let room = MAX_MESSAGE_CHARS - NOT_TRIED_AGAIN.len();
        let message = failure.message.chars().take(room).chain(NOT_TRIED_AGAIN.chars()).collect::<String>();
        return Verdict { since: failure.at, ..verdict(phase, &failure.reason, message) };
    }
    if let Some(refusal) = view.refused.get(&digest).filter(|_| view.slot.trial.is_none()) {
        return verdict(UpdatePhase::Blocked, refusal.reason, refusal.message.clone());
    }
    if view.slot.active.as_ref().is_some_and(|a| a.release.digest == digest) {
        return match (&extra.fetch, view.damaged == Some(digest)) {
            (FetchView::Hindered(h), true) => {
                let message = format!("its files are damaged on disk and could not be fetched again: {}", h.message);
                verdict(UpdatePhase::Blocked, "TreeDamaged", message)
            }
            (_, true) => {
                verdict(UpdatePhase::Blocked, "TreeDamaged", "its files are damaged on disk, fetching them again")
            }
            (_, false) => succeeded(view, extra),
        };
    }
    if view.staged.is_some_and(|s| s.release.digest == digest) {
        if view.wanted.ask().is_some_and(|ask| ask.order.hold) {
            return verdict(
                UpdatePhase::Staged,
                HELD,
                "it is fetched and verified, and waits for the word to apply it",
            );
        }
        return staged(view, extra);
    }
    match &extra.fetch {
        FetchView::Idle => verdict(UpdatePhase::Pending, "", ""),
        FetchView::Active(_) => verdict(UpdatePhase::Downloading, "", ""),
        FetchView::Hindered(h) if h.offline => verdict(UpdatePhase::Downloading, h.reason, h.message.clone()),
        FetchView::Hindered(h) => verdict(UpdatePhase::Blocked, h.reason, h.message.clone()),
    }
}

/// Whom the trial waits for, of those that use its files.
fn users(view: &View<'_>) -> String {
    match &view.files.users {
        Users::None | Users::ToAsk | Users::Failed(..) => String::new(),
        Users::Later(other) => format!("waits until it is known whether the files of {other} are good"),
        Users::Stuck(user) => format!("waits for {user} to prove it, which cannot run now"),
        Users::Asked(users) => {
            let names: Vec<&str> = users.iter().map(AsRef::as_ref).collect();
            format!("waits for {} to prove it", names.join(", "))
        }
    }
}

/// The active release is to prove new files of another app.
fn new_files(view: &View<'_>, extra: &Extra<'_>) -> Option<String> {
    let trial = view.slot.trial.as_ref()?;
    let (of, release) = trial.files()?;
    if let Some(failure) = view.verdict.and_then(Over::failure) {
        return Some(format!("it goes back from {of} {}: {}", release.version, failure.message));
    }
    let (what, health) = match trial.standby {
        true => ("it warms up beside the running one", extra.standby.clone().unwrap_or_default()),
        false if view.files.answered => ("it has proved it, and waits for others", String::new()),
        false => ("it is to prove healthy", view.running.as_ref().map(|r| r.message.clone()).unwrap_or_default()),
    };
    let cold = trial.cold.as_ref().map(|why| format!("the one before was stopped first: {why}")).unwrap_or_default();
    let said = [format!("with {of} {}: {what}", release.version), cold, health];
    let said: Vec<String> = said.into_iter().filter(|text| !text.is_empty()).collect();
    Some(said.join("; "))
}

/// The target warms up beside what is live.
fn standby(view: &View<'_>, extra: &Extra<'_>) -> Verdict {
    if let Some(failure) = view.verdict.and_then(Over::failure) {
        return verdict(UpdatePhase::Applying, &failure.reason, format!("it does not go live: {}", failure.message));
    }
    let before = view.slot.active.as_ref().map(|active| active.release.version.to_string()).unwrap_or_default();
    let said = extra.standby.as_deref().filter(|text| !text.is_empty()).map(|text| format!(": {text}"));
    verdict(UpdatePhase::Applying, "Warming", format!("it warms up beside {before}{}", said.unwrap_or_default()))
}

/// The target is on disk and may be applied.
fn staged(view: &View<'_>, extra: &Extra<'_>) -> Verdict {
    if let Some(said) = new_files(view, extra) {
        return verdict(UpdatePhase::Staged, NEW_FILES, format!("the running one comes first, {said}"));
    }
    let put_off = |put_off: &PutOff<'_>| {
        let left = put_off.left(&view.wanted.ask()?.order);
        let until = put_off.at_wall.checked_add(left).ok().filter(|_| !left.is_zero())?;
        Some(format!("its preApply hook put the update off until {until:.0} at the latest: {}", put_off.message))
    };
    match &view.pre_apply {
        HookView::Running => return verdict(UpdatePhase::Staged, PRE_APPLY, "its preApply hook is asked"),
        HookView::PutOff(it) => {
            if let Some(message) = put_off(it) {
                return verdict(UpdatePhase::Staged, "Deferred", message);
            }
        }
        HookView::Due | HookView::Passed | HookView::Failed(_) => {}
    }
    let phase = if view.running.is_some() { UpdatePhase::Staged } else { UpdatePhase::Applying };
    verdict(phase, "", "")
}

/// The target is the active release.
fn succeeded(view: &View<'_>, extra: &Extra<'_>) -> Verdict {
    if view.running.is_some() && extra.running.is_none() {
        return verdict(UpdatePhase::Succeeded, "NoWorkload", "its files are in place; it has nothing to run");
    }
    if let Some(said) = new_files(view, extra) {
        return verdict(UpdatePhase::Succeeded, NEW_FILES, said);
    }
    match &view.slot.restart {
        Some(Restart { state: RestartState::Due | RestartState::Started, .. }) => {
            verdict(UpdatePhase::Succeeded, "Restarting", "it is started again, as was asked, and has to prove healthy")
        }
        _ if view.slot.unhealthy_before => verdict(
            UpdatePhase::Succeeded,
            "UnhealthyBefore",
            "it was not healthy in its trial, nor was what ran before it",
        ),
        _ => verdict(UpdatePhase::Succeeded, "", ""),
    }
}

fn running(release: &ReleaseRef, health: &Health) -> Running {
    Running {
        release: release.clone(),
        state: health.state,
        ready: health.ready,
        restarts: health.restarts,
        started_at: health.started_at,
        last_exit: health.last_exit.clone(),
    }
}
