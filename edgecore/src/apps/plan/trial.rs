//! The next step while a release is on trial.

use tokio::time::Instant;

use super::{HookView, Over, Proof, PutOff, RunningView, Step, View, interrupted, warm};
use crate::apps::slot::{Failure, MAX_ATTEMPTS, Trial};

pub(super) fn step(view: &View<'_>, trial: &Trial) -> Step {
    let Trial { installed, boot_id, .. } = trial;
    let digest = installed.release.digest;
    if let Some(failure) = view.verdict.filter(|f| f.digest == digest) {
        return warm::back(view, Over::Failed(failure.clone()));
    }
    if view.wanted.is_drained() {
        return match () {
            () if view.beside.is_alive() => Step::StopBeside,
            () if view.is_alive() => Step::Stop,
            () => Step::Withdraw,
        };
    }
    if view.wanted.release().is_some_and(|release| release.digest != digest) {
        // What nobody supervises yet is stopped by what starts next.
        let is_found = view.running.is_none() && !view.beside.is_alive();
        return if is_found { Step::Withdraw } else { warm::back(view, Over::Withdrawn) };
    }
    if let Some(running) = &view.running
        && (running.digest != digest || !view.begun)
    {
        return Step::Stop;
    }
    // A tree that does not match its manifest is never run: it is fetched again and tried again.
    if view.damaged == Some(digest) {
        return Step::Undo;
    }
    // Nor one whose GPUs went away between the last look and its start: what it goes back to has its own.
    if view.running.is_none() && !view.leftover && view.refused.contains_key(&digest) {
        return Step::Undo;
    }
    if !view.begun {
        let attempts = view.slot.attempts(digest);
        if attempts >= MAX_ATTEMPTS {
            let failure = interrupted(installed, attempts);
            let has_both = view.beside.is_alive();
            return if has_both { warm::back(view, Over::Failed(failure)) } else { Step::Abandon(Some(failure)) };
        }
        return if boot_id == view.boot_id { Step::Resume } else { Step::Abandon(None) };
    }
    let Some(running) = &view.running else { return Step::Start(installed.clone()) };
    if warm::is_relieved(view) {
        return Step::StopBeside;
    }
    judge(trial, running, view.post_apply, view.now)
}

/// Whether a running trial has proved itself, has failed, or needs more time.
fn judge(trial: &Trial, running: &RunningView, hook: HookView<'_>, now: Instant) -> Step {
    let failed = |reason: &str, message: String| Step::Fail(Failure::of(&trial.installed, reason, message));
    let deadline = running.since + running.deadline;
    let (proof, proven_at) = match running.healthy_since {
        Some(since) => (Proof::Healthy, since + running.soak),
        None if running.ended => {
            return failed("Exited", format!("it ended before it proved healthy: {}", running.detail()));
        }
        None if now < deadline => return Step::Wait(Some(deadline)),
        None if trial.unhealthy_before && running.steady => (Proof::UnhealthyBefore, deadline),
        None => return failed("Unhealthy", running.not_healthy_in_time()),
    };
    match hook {
        HookView::Due => Step::PostApply,
        HookView::Running => Step::Wait(None),
        HookView::Failed(why) => failed("PostApplyFailed", format!("its postApply hook failed: {why}")),
        HookView::PutOff(PutOff { message, .. }) => {
            failed("PostApplyFailed", format!("its postApply hook wants to put the update off, too late: {message}"))
        }
        HookView::Passed if now >= proven_at => Step::Confirm(proof),
        HookView::Passed => Step::Wait(Some(proven_at)),
    }
}
