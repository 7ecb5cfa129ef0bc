//! The planner of one app: from what is on disk, wanted and running to the next step. Pure.
//!
//! ```text
//!            fetch (beside everything else)
//! active runs ------------------> staged --Stop--> nothing runs --Switch--> trial recorded
//!     ^                                                                        | Start
//!     |  Fail, Stop, Abandon (record)                                          v
//!     +---------- unhealthy at the deadline, ended for good <------------- trial runs
//!     |                                                                        |
//!     +---- becomes the active one <------------- Confirm (record) <-- healthy for the soak time
//! ```
//!
//! Each [`Step`] makes at most one durable change, so a cut between any two steps leaves a state that
//! is planned from again. A failed trial stops before it is recorded, so that a full disk keeps no bad
//! release running; a cut in between forgets the verdict, and the trial is resumed or abandoned as after
//! any other cut. [`super::task`] carries the steps out.

use std::time::Duration;

use proto::{digest::Digest, object::ReleaseRef};
use tokio::time::Instant;

use super::slot::{Failure, Installed, MAX_ATTEMPTS, Slot};

/// After a power cut during a trial the active release runs this long before the next attempt.
pub const RETRY_AFTER: Duration = Duration::from_secs(10);

/// What the assignment says about an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Run this release.
    Run(ReleaseRef),
    /// Go on with whatever is active: there is no assignment to read.
    Keep,
    /// Stop it and remove it.
    Remove,
}

/// What runs under supervision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningView {
    /// Which release.
    pub digest: Digest,
    /// Since when this process supervises it.
    pub since: Instant,
    /// Since when it is healthy without a break.
    pub healthy_since: Option<Instant>,
    /// It ended and will not be started again.
    pub ended: bool,
    /// What is wrong with it, for people.
    pub message: String,
    /// How long it must stay healthy.
    pub soak: Duration,
    /// By when it must have become healthy, counted from its start.
    pub deadline: Duration,
}

/// All that the planner looks at.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// The durable state.
    pub slot: &'a Slot,
    /// What is wanted.
    pub wanted: &'a Wanted,
    /// The release that is accepted, whole and on disk.
    pub staged: Option<&'a Installed>,
    /// What runs under supervision.
    pub running: Option<RunningView>,
    /// Whether the driver holds an instance that nobody supervises, left by an agent before.
    pub leftover: bool,
    /// Whether this process has counted the recorded trial as an attempt.
    pub begun: bool,
    /// Why the trial failed, which is not on record yet.
    pub verdict: Option<&'a Failure>,
    /// Digest of a release whose tree was found damaged and must be fetched again before it runs.
    pub damaged: Option<Digest>,
    /// This boot.
    pub boot_id: &'a str,
    /// Now.
    pub now: Instant,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Stop what runs.
    Stop,
    /// Run a release, or adopt it where it runs.
    Start(Installed),
    /// Record that a staged release is on trial.
    Switch(Installed),
    /// Record that the trial goes on after the agent came back.
    Resume,
    /// Record that the trial proved itself.
    Confirm,
    /// Remember why the trial failed: it is stopped next, and then abandoned.
    Fail(Failure),
    /// Record that the trial is over; what it goes back to is the active release.
    Abandon(Option<Failure>),
    /// Record that the trial did not take place: its tree was damaged on disk.
    Undo,
    /// Record that the trial is over because something else is wanted now.
    Withdraw,
    /// Record that nothing is installed any more.
    Remove,
    /// Clear away all of the app but its data and its floor, and end.
    Done,
    /// Nothing to do before then.
    Wait(Option<Instant>),
}

/// A release to get onto the disk beside everything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetch {
    /// A new one: by its signatures.
    New(ReleaseRef),
    /// One that was accepted before and is damaged: by its digest.
    Repair(Installed),
}

/// The next step, and what to fetch meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The step.
    pub step: Step,
    /// The fetch that should be under way.
    pub fetch: Option<Fetch>,
}

/// Plans.
#[must_use]
pub fn plan(view: &View<'_>) -> Plan {
    if *view.wanted == Wanted::Remove {
        let step = match view.slot.is_cleared() {
            _ if view.running.is_some() || view.leftover => Step::Stop,
            false => Step::Remove,
            true => Step::Done,
        };
        return Plan { step, fetch: None };
    }
    let fetch = fetch(view);
    let step = match &view.slot.trial {
        Some(trial) => trial_step(view, &trial.installed, &trial.boot_id),
        None => settled_step(view),
    };
    Plan { step, fetch }
}

/// The wanted release, unless it is running well or known to fail.
fn target<'a>(view: &View<'a>) -> Option<&'a ReleaseRef> {
    let Wanted::Run(release) = view.wanted else { return None };
    let active = view.slot.active.as_ref().is_some_and(|a| a.release.digest == release.digest);
    (!active && view.slot.failure(release.digest).is_none()).then_some(release)
}

fn fetch(view: &View<'_>) -> Option<Fetch> {
    let damaged = |i: &&Installed| view.damaged == Some(i.release.digest);
    if let Some(active) = view.slot.active.as_ref().filter(damaged) {
        return Some(Fetch::Repair(active.clone()));
    }
    let release = target(view)?;
    let on_trial = view.slot.trial.as_ref().is_some_and(|t| t.installed.release.digest == release.digest);
    let staged = view.staged.is_some_and(|s| s.release.digest == release.digest);
    (!on_trial && !staged).then(|| Fetch::New(release.clone()))
}

fn trial_step(view: &View<'_>, trial: &Installed, boot_id: &str) -> Step {
    let digest = trial.release.digest;
    if let Some(failure) = view.verdict.filter(|f| f.digest == digest) {
        let alive = view.running.is_some() || view.leftover;
        return if alive { Step::Stop } else { Step::Abandon(Some(failure.clone())) };
    }
    let superseded = matches!(view.wanted, Wanted::Run(release) if release.digest != digest);
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
            return Step::Abandon(Some(interrupted(trial, attempts)));
        }
        return if boot_id == view.boot_id { Step::Resume } else { Step::Abandon(None) };
    }
    let Some(running) = &view.running else { return Step::Start(trial.clone()) };
    judge(trial, running, view.now)
}

fn interrupted(installed: &Installed, attempts: u32) -> Failure {
    let message = format!("{attempts} trials were cut short by a restart of the agent or the box");
    Failure::of(installed, "Interrupted", message)
}

/// Whether a running trial has proved itself, has failed, or needs more time.
fn judge(trial: &Installed, running: &RunningView, now: Instant) -> Step {
    if let Some(since) = running.healthy_since {
        let proven = since + running.soak;
        return if now >= proven { Step::Confirm } else { Step::Wait(Some(proven)) };
    }
    let detail = if running.message.is_empty() { "no probe has succeeded" } else { &running.message };
    let failed = |reason: &str, message: String| Step::Fail(Failure::of(trial, reason, message));
    if running.ended {
        return failed("Exited", format!("it ended before it proved healthy: {detail}"));
    }
    let deadline = running.since + running.deadline;
    if now >= deadline {
        let secs = running.deadline.as_secs_f64();
        return failed("Unhealthy", format!("it was not healthy within {secs} s: {detail}"));
    }
    Step::Wait(Some(deadline))
}

fn settled_step(view: &View<'_>) -> Step {
    let ready = view.staged.filter(|s| target(view).is_some_and(|t| t.digest == s.release.digest));
    let active = view.slot.active.as_ref();
    if let Some(running) = &view.running {
        if active.is_none_or(|a| a.release.digest != running.digest) {
            return Step::Stop;
        }
        let Some(ready) = ready else { return Step::Wait(None) };
        let retry_at = running.since + RETRY_AFTER;
        let again = view.slot.attempts(ready.release.digest) > 0;
        return if again && view.now < retry_at { Step::Wait(Some(retry_at)) } else { Step::Stop };
    }
    // Nothing runs. A staged release goes on trial; otherwise the active one comes up.
    match (ready, active) {
        (Some(ready), _) if view.slot.attempts(ready.release.digest) >= MAX_ATTEMPTS => {
            Step::Abandon(Some(interrupted(ready, MAX_ATTEMPTS)))
        }
        (Some(ready), _) => Step::Switch(ready.clone()),
        (None, Some(active)) if view.damaged != Some(active.release.digest) => Step::Start(active.clone()),
        _ if view.leftover => Step::Stop,
        _ => Step::Wait(None),
    }
}
