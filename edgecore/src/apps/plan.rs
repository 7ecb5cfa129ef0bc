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
//!
//! What is ordered besides the release ([`AppOrder`](proto::object::AppOrder)):
//!
//! - **hold**: a staged release does not begin its trial. One that began goes on.
//! - **drained**: everything stops and no trial begins. One under way is withdrawn, with nothing held against it.
//! - **restart**, **retry**: each new text is acted on once. They wait until there is nothing else to do, a
//!   restart also until no release is on trial, so that neither keeps a bad release running when the slot cannot
//!   be written. A release that goes on trial is a start anew: a restart asked for before counts as that one.
//!
//! ```text
//! restart:  due (record) --Stop--> started (record) --Start--> done when healthy for the soak time, or failed
//! ```
//!
//! Hooks of the release ([`Hooks`](proto::release::Hooks)):
//!
//! - **preApply** runs once a staged release may begin its trial, while the active one runs. When it puts the
//!   update off it is asked again after [`ASK_AGAIN`], each time twice as long up to [`ASK_AGAIN_MOST`], until it
//!   was put off for `max_deferral_s` in all: then the update goes ahead unasked, and with 0 it does so at once.
//!   The time that was spent is on record ([`Deferral`](super::slot::Deferral)) and counts while the agent runs.
//! - **postApply** runs in the trial once the release is healthy, beside its soak time.
//!
//! An answer is on no record but a failure and the time put off: after a cut the hook runs again.
//!
//! A release that needs GPUs ([`Gpus`](proto::release::Gpus)) is not begun while the box has none for it: what runs goes
//! on. An active one that is not healthy, and whose GPU is not well, starts again where others are left for it. A trial
//! that fails while its GPU does is not blamed: it was cut short, as by a power cut, and is begun again, at most
//! [`MAX_ATTEMPTS`](super::slot::MAX_ATTEMPTS) times in all.
//!
//! Health is judged against what was before: a probe that was red already (a camera that is dark, a server that is
//! away) does not blame the update.
//!
//! - The active release *was unhealthy* when it had not been healthy for as long as its own probes take to say so
//!   ([`RunningView::red_after`]), or had ended for good, at the moment when it was stopped for the update. Until that
//!   is known, at most for so long after the agent's start, no trial begins. It is on record in the trial.
//! - A trial after one that was unhealthy, which at its deadline is still not healthy but has been up all the time
//!   (no exit, no kill by a probe), is confirmed: `UnhealthyBefore`. One that ended even once is blamed as ever.
//!
//! The way to the app's files for other apps ([`current`](super::current)) follows the slot: it leads to the release on
//! trial before that is confirmed, and back. Nothing that starts or stops waits for it. A release without a workload is
//! started and stopped like any other, with nothing to run, and is healthy from then on.
//!
//! A release that is updated warm ([`Strategy::Warm`](proto::release::Strategy)) is tried beside the active one where the
//! box has room for both; see `warm`.
//!
//! A release that runs several replicas ([`Replicas`](proto::release::Replicas)) has them besides the instance that is
//! planned here, and only while it is settled: they are stopped before anything else stops, goes on trial or goes live. How
//! many run while nothing is to be done is [`replicas`](super::replicas)'s to say.
//!
//! The active release is put on trial again when the files of another app that it uses are to be proved; and the release
//! of an app whose files others use is confirmed when they all proved it ([`uses`](super::uses)). Neither counts against
//! the release that uses them.
//!
//! `view` holds what is looked at; `trial` plans while a release is on trial, `warm` while there are two instances of
//! which one takes over from the other, `settled` while no release is on trial, `files` what is different when the files
//! of others are.

mod files;
mod settled;
mod trial;
mod view;
mod warm;

use std::{collections::BTreeMap, time::Duration};

use proto::{digest::Digest, name::Name, object::ReleaseRef};
use tokio::time::Instant;

pub use self::view::{Ask, Beside, Files, HookView, PutOff, Room, RunningView, View, Wanted};
use super::slot::{Deferral, Failure, Installed, Restart, RestartState, Trial};
use crate::driver::Side;

/// After a power cut during a trial the active release runs this long before the next attempt.
pub const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Until a hook that put the update off is asked again, at first.
pub const ASK_AGAIN: Duration = Duration::from_secs(30);
/// The same at most.
pub const ASK_AGAIN_MOST: Duration = Duration::from_secs(300);

/// Why a trial is confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It was healthy for its soak time.
    Healthy,
    /// It was not, and neither was what ran before it.
    UnhealthyBefore,
}

/// How a trial ended without proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Over {
    /// It failed.
    Failed(Failure),
    /// Something of the box failed that it needs, as is said here: it counts as an attempt, like one that a power cut
    /// ended.
    Interrupted(Failure),
    /// Something else is wanted now.
    Withdrawn,
}

impl Over {
    /// What went wrong, when anything did.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Over::Failed(failure) | Over::Interrupted(failure) => Some(failure),
            Over::Withdrawn => None,
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Stop what is live.
    Stop,
    /// Run a release as the live one, or adopt it where it runs.
    Start(Installed),
    /// Stop what runs beside the live one.
    StopBeside,
    /// Stop all replicas but the first.
    StopReplicas,
    /// Run a release beside the live one, or adopt it where it runs.
    StartBeside(Installed),
    /// Record that the standby is live, and what was live runs beside it.
    GoLive,
    /// Record that what runs beside the trial, the active release, is live, and the trial over.
    GoBack(Over),
    /// Tell workload and clients which instance is live.
    Live(Side),
    /// Run the preApply hook of a staged release.
    PreApply(Installed),
    /// Record for how long the update to a release was put off.
    Defer(Deferral),
    /// Run the postApply hook of the trial.
    PostApply,
    /// Have those prove the trial that use its files.
    Offer,
    /// Ask them no more for now.
    Recall,
    /// Say that the files of others were proved which the trial is of.
    Answer,
    /// Record what a release uses of others, which no agent before kept.
    Pin(Digest, BTreeMap<Name, ReleaseRef>),
    /// Record that a staged release is on trial.
    Switch(Trial),
    /// Record that the trial goes on after the agent came back.
    Resume,
    /// Record that the trial proved itself, or that it is not to blame.
    Confirm(Proof),
    /// Remember why the trial failed: it is stopped next, and then abandoned.
    Fail(Failure),
    /// Record that the trial is over; what it goes back to is the active release.
    Abandon(Option<Failure>),
    /// Record that the trial did not take place: its tree was damaged on disk.
    Undo,
    /// Record that the trial is over because something else is wanted now.
    Withdraw,
    /// Have the way to the app's files lead to this release.
    Link(Option<Digest>),
    /// Record how far a restart is.
    Restart(Restart),
    /// Record that this text to try the wanted release once more was read; its failure, if any, is forgotten.
    Retry(String),
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
            _ if view.replicas => Step::StopReplicas,
            _ if view.beside.is_alive() => Step::StopBeside,
            _ if view.is_alive() => Step::Stop,
            false => Step::Remove,
            // What others have of it goes when they do not need it any more.
            true if !view.files.held_by.is_empty() => Step::Wait(None),
            true => Step::Done,
        };
        return Plan { step, fetch: None };
    }
    let fetch = fetch(view);
    let step = match &view.slot.trial {
        _ if view.files.unpinned.is_some() => files::pin(view),
        _ if view.serves && view.live != Some(view.slot.side) => Step::Live(view.slot.side),
        Some(trial) if trial.standby => warm::standby(view, trial),
        Some(trial) => trial::step(view, trial),
        None => settled::step(view),
    };
    let step = match step {
        Step::Wait(until) => link(view).or_else(|| asked(view)).unwrap_or(Step::Wait(until)),
        // Whatever proves the release good finds it in place.
        step @ (Step::PostApply | Step::Confirm(_)) => link(view).unwrap_or(step),
        step => step,
    };
    let step = if view.replicas && ends_replicas(view, &step) { Step::StopReplicas } else { step };
    Plan { step, fetch }
}

/// Whether replicas are no longer to run, or are to end before this.
fn ends_replicas(view: &View<'_>, step: &Step) -> bool {
    let is_settled = view.slot.active.is_some() && view.slot.trial.as_ref().is_none_or(|trial| trial.standby);
    let begins = match step {
        Step::Stop | Step::GoLive => true,
        Step::Switch(trial) => !trial.standby,
        _ => false,
    };
    !is_settled || begins || view.wanted.is_drained()
}

/// The wanted release, unless it is running well or known to fail.
fn target<'a>(view: &View<'a>) -> Option<&'a ReleaseRef> {
    let release = view.wanted.release()?;
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

/// The way to the release's files leads elsewhere. Nothing that starts or stops waits for it.
fn link(view: &View<'_>) -> Option<Step> {
    let trial = view.slot.trial.as_ref().filter(|t| !t.standby).map(|t| &t.installed);
    let digest = trial.or(view.slot.active.as_ref()).map(|i| i.release.digest);
    (view.linked != digest).then_some(Step::Link(digest))
}

/// What is asked for once, when there is nothing else to do.
fn asked(view: &View<'_>) -> Option<Step> {
    let retry = view.wanted.ask().and_then(|ask| ask.order.retry.as_ref());
    if let Some(text) = retry.filter(|text| view.slot.retried.as_ref() != Some(text)) {
        return Some(Step::Retry(text.clone()));
    }
    let quiet = view.slot.trial.is_none() && view.slot.active.is_some();
    let text = view.new_restart().filter(|_| quiet)?;
    Some(Step::Restart(Restart::new(text, RestartState::Due)))
}

fn interrupted(installed: &Installed, attempts: u32) -> Failure {
    let message = format!("{attempts} trials were cut short: the agent or the box restarted, or a GPU failed");
    Failure::of(installed, "Interrupted", message)
}
