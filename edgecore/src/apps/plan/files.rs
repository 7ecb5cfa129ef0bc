//! What is different while files of another app are to be proved by those that use them. Pure.
//!
//! A user's trial is of its active release, with other files ([`Trial::files_of`]). It begins when they are offered and
//! nothing of its own comes first, ends well only when they are the other app's active release, and otherwise is
//! withdrawn: nothing is held against the user's release.

use super::{Proof, RunningView, Step, View};
use crate::apps::{
    slot::{Failure, Installed, Trial},
    uses::{Standing, Users},
};

/// What a release uses is on record before it runs again.
pub(super) fn pin(view: &View<'_>) -> Step {
    let unpinned = view.files.unpinned.clone();
    unpinned.map_or(Step::Wait(None), |(release, uses)| Step::Pin(release, uses))
}

/// The trial of the active release with files that are offered to it.
pub(super) fn trial(view: &View<'_>) -> Option<Trial> {
    let (offer, active) = (view.files.offer.as_ref()?, view.slot.active.as_ref()?);
    let digest = active.release.digest;
    // What cannot run now cannot prove anything: it is mended first.
    if view.damaged == Some(digest) || view.refused.contains_key(&digest) {
        return None;
    }
    let mut uses = active.uses.clone();
    uses.insert(offer.of.clone(), offer.release.clone());
    Some(Trial {
        installed: Installed { uses, ..active.clone() },
        boot_id: view.boot_id.to_owned(),
        unhealthy_before: view.stopped_red,
        standby: false,
        cold: view.cold.map(str::to_owned),
        files_of: Some(offer.of.clone()),
    })
}

/// What the active release, which runs, does about files that are offered to it.
pub(super) fn begin(view: &View<'_>, running: &RunningView) -> Option<Step> {
    let trial = trial(view)?;
    // One that just started has its time, so that bad files are not borne because of it.
    let known_at = running.red_at().map(|at| if running.ended { at } else { at.max(running.since + running.deadline) });
    Some(match known_at {
        Some(at) if view.now < at => Step::Wait(Some(at)), // nobody knows yet how healthy it is
        None if view.files.room == super::Room::Enough => {
            Step::Switch(Trial { standby: true, unhealthy_before: false, cold: None, ..trial })
        }
        _ => Step::Stop,
    })
}

/// Whether the trial is of files that are neither proved nor to be proved any more.
pub(super) fn are_gone(view: &View<'_>, trial: &Trial) -> bool {
    trial.files_of.is_some() && view.files.standing.is_none_or(|standing| standing == Standing::Gone)
}

/// The files that a live trial is of are proved, by all that use them.
pub(super) fn settle(view: &View<'_>, trial: &Trial) -> Option<Step> {
    let is_settled = trial.files_of.is_some() && view.files.standing == Some(Standing::Active);
    let is_well = view.running.as_ref().is_some_and(|running| running.healthy_since.is_some());
    let proof = if trial.unhealthy_before && !is_well { Proof::UnhealthyBefore } else { Proof::Healthy };
    is_settled.then_some(Step::Confirm(proof))
}

/// A trial has proved itself, as far as can be seen here.
pub(super) fn proved(view: &View<'_>, trial: &Trial, proof: Proof) -> Step {
    if trial.files_of.is_some() {
        return match view.files.standing {
            Some(Standing::Offered(_)) if !view.files.answered => Step::Answer,
            _ => Step::Wait(None),
        };
    }
    match &view.files.users {
        Users::None => Step::Confirm(proof),
        Users::ToAsk => Step::Offer,
        Users::Later(_) | Users::Stuck(_) if view.files.offered => Step::Recall,
        Users::Later(_) | Users::Stuck(_) | Users::Asked(_) => Step::Wait(None),
        Users::Failed(user, why) => {
            let why = format!("{user} did not prove it: {why}");
            Step::Fail(Failure::of(&trial.installed, "UserFailed", why))
        }
    }
}
