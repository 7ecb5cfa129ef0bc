//! The next step while two instances of an app are to run, of which one takes over from the other. Pure.
//!
//! ```text
//! active is live --Switch--> standby on record --StartBeside--> it warms up --(healthy)--> GoLive --> trial is live
//!     ^                          | failed, or something else is wanted: StopBeside             |
//!     |<-------------------------/ Abandon, Withdraw, Undo                                     | Live, StopBeside
//!     |                                                                                        v
//!     |<--StopBeside-- Live <-- GoBack <--(healthy)-- active warms up <--StartBeside--(failed) trial
//! ```
//!
//! [`Step::GoLive`] and [`Step::GoBack`] are one write of the slot each, which says what is live; [`Step::Live`] tells
//! it to the workload, and only then the other one is stopped. So at every moment there is one live instance: a cut
//! leaves both running, to be adopted and planned from. A standby that fails leaves what is live alone. A trial that
//! fails when it is live goes back by stop and start where there is no room beside it; a trial that was cut off on
//! its way back is resumed.

use super::{Over, Room, Step, View, interrupted, trial::is_superseded};
use crate::apps::slot::{Failure, Installed, MAX_ATTEMPTS, Trial};

/// While the release on trial warms up beside the active one, which is live.
pub(super) fn standby(view: &View<'_>, trial: &Trial) -> Step {
    let Trial { installed, boot_id, .. } = trial;
    let digest = installed.release.digest;
    let over = |step| if view.beside.is_alive() { Step::StopBeside } else { step };
    if let Some((verdict, failure)) = view.verdict_of(digest) {
        let failure = matches!(verdict, Over::Failed(_)).then(|| failure.clone());
        let is_own = trial.files_of.is_none(); // or else it is their fault
        return over(if is_own { Step::Abandon(failure) } else { Step::Withdraw });
    }
    if is_superseded(view, trial) || view.wanted.is_drained() {
        return over(Step::Withdraw);
    }
    if !view.begun {
        let attempts = view.slot.attempts(digest);
        return match () {
            () if attempts >= MAX_ATTEMPTS && trial.files_of.is_none() => {
                over(Step::Abandon(Some(interrupted(installed, attempts))))
            }
            () if *boot_id == view.boot_id => Step::Resume,
            () => over(Step::Abandon(None)),
        };
    }
    let refused = |digest| view.refused.contains_key(&digest);
    if view.running.is_none() {
        // What is live is looked after first; without it there is nothing to stand by for.
        return match &view.slot.active {
            Some(active) if view.leftover => Step::Start(active.clone()),
            Some(active) if view.damaged != Some(active.release.digest) && !refused(active.release.digest) => {
                Step::Start(active.clone())
            }
            _ => over(Step::Undo),
        };
    }
    let Some(running) = &view.beside.running else {
        let may_start = view.beside.leftover || !refused(digest);
        return if view.damaged == Some(digest) || !may_start {
            over(Step::Undo)
        } else {
            Step::StartBeside(installed.clone())
        };
    };
    let deadline = running.since + running.deadline;
    let failed = |reason: &str, message| Step::Fail(Failure::of(installed, reason, message));
    match running.healthy_since {
        _ if running.digest != digest => Step::StopBeside,
        Some(_) => Step::GoLive,
        None if running.ended => failed("Exited", format!("it ended before it went live: {}", running.detail())),
        None if view.now < deadline => Step::Wait(Some(deadline)),
        None => failed("Unhealthy", format!("it did not go live: {}", running.not_healthy_in_time())),
    }
}

/// A trial that is live ends: the active release takes over, from beside it where there is room.
pub(super) fn back(view: &View<'_>, over: Over) -> Step {
    let way = view.slot.active.as_ref().and_then(|active| from_beside(view, active, &over));
    way.unwrap_or_else(|| match over {
        _ if view.beside.is_alive() => Step::StopBeside,
        _ if view.is_alive() => Step::Stop,
        Over::Failed(failure) => Step::Abandon(Some(failure)),
        Over::Interrupted(_) => Step::Abandon(None),
        Over::Withdrawn => Step::Withdraw,
    })
}

/// How the active release takes over from beside the trial; `None` when it cannot.
fn from_beside(view: &View<'_>, active: &Installed, over: &Over) -> Option<Step> {
    let digest = active.release.digest;
    match &view.beside.running {
        Some(running) if running.digest == digest => {
            // However it does: the trial does not go on.
            let deadline = running.since + running.deadline;
            let waits = running.healthy_since.is_none() && !running.ended && view.now < deadline;
            Some(if waits { Step::Wait(Some(deadline)) } else { Step::GoBack(over.clone()) })
        }
        Some(_) => None,
        None if view.beside.leftover => Some(Step::StartBeside(active.clone())),
        None => {
            let may_start = view.damaged != Some(digest) && !view.refused.contains_key(&digest);
            (view.running.is_some() && may_start && *view.room == Room::Enough)
                .then(|| Step::StartBeside(active.clone()))
        }
    }
}

/// What ran before a trial went live goes, once that is healthy under this agent, too.
pub(super) fn is_relieved(view: &View<'_>) -> bool {
    view.beside.is_alive() && view.running.as_ref().is_some_and(|running| running.healthy_since.is_some())
}
