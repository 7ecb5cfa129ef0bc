//! The next step while a release is on trial.

use tokio::time::Instant;

use super::{HookView, PutOff, RunningView, Step, View, interrupted};
use crate::apps::slot::{Failure, Installed, MAX_ATTEMPTS, Trial};

pub(super) fn step(view: &View<'_>, trial: &Trial) -> Step {
    let Trial { installed, boot_id, .. } = trial;
    let digest = installed.release.digest;
    if let Some(failure) = view.verdict.filter(|f| f.digest == digest) {
        return if view.is_alive() { Step::Stop } else { Step::Abandon(Some(failure.clone())) };
    }
    if view.wanted.is_drained() {
        return if view.is_alive() { Step::Stop } else { Step::Withdraw };
    }
    let superseded = view.wanted.release().is_some_and(|release| release.digest != digest);
    if let Some(running) = &view.running
        && (running.digest != digest || superseded || !view.begun)
    {
        return Step::Stop;
    }
    if superseded {
        return Step::Withdraw;
    }
    // A tree that does not match its manifest is never run: it is fetched again and tried again.
    if view.damaged == Some(digest) {
        return Step::Undo;
    }
    if !view.begun {
        let attempts = view.slot.attempts(digest);
        if attempts >= MAX_ATTEMPTS {
            return Step::Abandon(Some(interrupted(installed, attempts)));
        }
        return if boot_id == view.boot_id { Step::Resume } else { Step::Abandon(None) };
    }
    let Some(running) = &view.running else { return Step::Start(installed.clone()) };
    judge(installed, running, view.post_apply, view.now)
}

/// Whether a running trial has proved itself, has failed, or needs more time.
fn judge(trial: &Installed, running: &RunningView, hook: HookView<'_>, now: Instant) -> Step {
    let failed = |reason: &str, message: String| Step::Fail(Failure::of(trial, reason, message));
    if let Some(since) = running.healthy_since {
        let proven = since + running.soak;
        return match hook {
            HookView::Due => Step::PostApply,
            HookView::Running => Step::Wait(None),
            HookView::Failed(why) => failed("PostApplyFailed", format!("its postApply hook failed: {why}")),
            HookView::PutOff(PutOff { message, .. }) => failed(
                "PostApplyFailed",
                format!("its postApply hook wants to put the update off, too late: {message}"),
            ),
            HookView::Passed if now >= proven => Step::Confirm,
            HookView::Passed => Step::Wait(Some(proven)),
        };
    }
    if running.ended {
        return failed("Exited", format!("it ended before it proved healthy: {}", running.detail()));
    }
    let deadline = running.since + running.deadline;
    if now >= deadline {
        return failed("Unhealthy", running.not_healthy_in_time());
    }
    Step::Wait(Some(deadline))
}
