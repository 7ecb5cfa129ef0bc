//! The next step while a release is on trial.

use super::{HookView, Over, Proof, PutOff, RunningView, Step, View, files, interrupted, warm};
use crate::apps::slot::{Failure, MAX_ATTEMPTS, Trial};

pub(super) fn step(view: &View<'_>, trial: &Trial) -> Step {
    let Trial { installed, boot_id, .. } = trial;
    let digest = installed.release.digest;
    if let Some((verdict, _)) = view.verdict_of(digest) {
        return warm::back(view, over(trial, verdict));
    }
    if view.wanted.is_drained() {
        return match () {
            () if view.beside.is_alive() => Step::StopBeside,
            () if view.is_alive() => Step::Stop,
            () => Step::Withdraw,
        };
    }
    let is_of_files = trial.files_of.is_some();
    if let Some(step) = files::settle(view, trial) {
        return step;
    }
    if is_superseded(view, trial) {
        // What nobody supervises yet is stopped by what starts next, unless that is the same release with other files.
        let is_found = view.running.is_none() && !view.beside.is_alive() && !is_of_files;
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
        if attempts >= MAX_ATTEMPTS && !is_of_files {
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
    if is_of_files && view.files.answered {
        return Step::Wait(None); // the others go on
    }
    judge(view, trial, running)
}

/// How a trial that failed is over: with files of others, it is their fault.
fn over(trial: &Trial, verdict: &Over) -> Over {
    if trial.files_of.is_some() { Over::Withdrawn } else { verdict.clone() }
}

/// Something else is wanted. Files that began to be proved end that before an update of the app's own begins.
pub(super) fn is_superseded(view: &View<'_>, trial: &Trial) -> bool {
    match trial.files_of {
        Some(_) => files::are_gone(view, trial),
        None => view.wanted.release().is_some_and(|release| release.digest != trial.installed.release.digest),
    }
}

/// Whether a running trial has proved itself, has failed, or needs more time.
fn judge(view: &View<'_>, trial: &Trial, running: &RunningView) -> Step {
    let now = view.now;
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
    match view.post_apply {
        HookView::Due => Step::PostApply,
        HookView::Running => Step::Wait(None),
        HookView::Failed(why) => failed("PostApplyFailed", format!("its postApply hook failed: {why}")),
        HookView::PutOff(PutOff { message, .. }) => {
            failed("PostApplyFailed", format!("its postApply hook wants to put the update off, too late: {message}"))
        }
        HookView::Passed if now >= proven_at => files::proved(view, trial, proof),
        HookView::Passed => Step::Wait(Some(proven_at)),
    }
}
