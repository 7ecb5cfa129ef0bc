//! What the app uses of others' files, and others of its own: told to the board, looked up for the planner.

use std::collections::BTreeSet;

use proto::{digest::Digest, name::Name, release::Workload};

use super::App;
use crate::{
    apps::{
        plan::{Files, Room},
        slot::{Installed, Slot},
        uses::{Answer, Standing, Word},
    },
    gpu::{allot::Refusal, ledger::request},
};

/// A release to start that is not on record with all that it uses.
#[derive(Debug)]
pub(super) struct Unpinned {
    installed: Installed,
    used: BTreeSet<Name>,
}

impl App {
    /// Tells the others how it stands; `next` is about to become its slot.
    pub(super) fn tell_files(&self, next: Option<&Slot>) {
        let word = Word::of(&self.slot, self.offer, self.answer.clone()).with_stuck(self.stuck);
        let run = self.run.iter().chain(&self.beside).flat_map(|run| &run.spec.uses);
        let word = word.with_pins(next.into_iter().flat_map(Slot::pins)).with_pins(run);
        self.shared.uses.tell(&self.name, word);
    }

    /// Looks how the others stand.
    pub(super) fn look_at_files(&mut self) {
        let uses = self.shared.uses.clone();
        let live = self.slot.trial.as_ref().filter(|trial| !trial.standby && self.verdict.is_none());
        if live.is_none() {
            self.offer = None;
        }
        let trial = self.slot.trial.as_ref();
        let standing = trial.and_then(|trial| trial.files()).map(|(of, release)| uses.standing(of, release));
        self.answer.take_if(|answer| {
            // Who does not go on with them does not say any more that they are good.
            let holds = answer.result.is_err() || standing == Some(Standing::Offered(answer.number));
            !holds || !uses.is_offered(answer.number)
        });
        self.stuck = self.is_stuck();
        self.tell_files(None);
        let answered = |number| self.answer.as_ref().is_some_and(|answer| answer.number == number);
        let active = self.slot.active.as_ref();
        let mut files = Files {
            users: trial.map(|trial| uses.users(&self.name, trial.installed.release.digest)).unwrap_or_default(),
            offered: self.offer.is_some(),
            held_by: uses.held(&self.name).into_values().collect(),
            offer: active.filter(|_| trial.is_none() && !self.stuck).and_then(|active| uses.offered(&active.uses)),
            room: Room::NotAsked,
            standing,
            ..Files::default()
        };
        files.offer.take_if(|offer| answered(offer.number));
        files.answered = matches!(files.standing, Some(Standing::Offered(number)) if answered(number));
        let mut missing = vec![];
        if let Some(staged) = &self.staged {
            match uses.resolve(&self.name, &staged.workload.as_ref().map(Workload::used).unwrap_or_default()) {
                Ok(resolved) => files.staged = resolved,
                Err(why) => missing.push((staged.installed.release.digest, why)),
            }
        }
        if let Some(Unpinned { installed, used }) = &self.unpinned {
            match uses
                .resolve(&self.name, &used.iter().filter(|app| !installed.uses.contains_key(*app)).cloned().collect())
            {
                Ok(mut resolved) => {
                    resolved.extend(installed.uses.clone());
                    files.unpinned = Some((installed.release.digest, resolved));
                }
                Err(why) => missing.push((installed.release.digest, why)),
            }
        }
        for (release, why) in missing {
            let refusal = Refusal { reason: why.reason(), message: why.to_string() };
            self.gpus.refused.entry(release).or_insert(refusal);
        }
        self.files = files;
    }

    /// Whether the active release cannot run now, or could not be started again.
    fn is_stuck(&self) -> bool {
        let Some(active) = self.slot.active.as_ref().filter(|_| self.slot.trial.is_none()) else { return false };
        let digest = active.release.digest;
        let run = self.run.as_ref().filter(|run| run.release.digest == digest);
        let needs = run.and_then(|run| run.spec.workload.gpus.as_ref());
        let asked = request(&self.name, digest, needs, self.slot.side, false);
        let has_gpus = asked.is_none_or(|asked| self.shared.gpus.check(&asked).is_ok());
        self.damaged == Some(digest) || self.gpus.refused.contains_key(&digest) || !has_gpus
    }

    /// Others may have found files of the app damaged: they are fetched again.
    pub(super) fn look_at_damage(&mut self) {
        let installed = self.slot.active.iter().chain(self.slot.trial.as_ref().map(|trial| &trial.installed));
        let digests: BTreeSet<Digest> = installed.map(|installed| installed.release.digest).collect();
        for digest in digests.into_iter().filter(|digest| self.shared.uses.take_damaged(&self.name, *digest)) {
            self.damaged = Some(digest); // what runs goes on
        }
    }

    /// What is on record of a release that is about to run (`leftover`: that runs) is all that it uses; otherwise that
    /// comes first.
    pub(super) fn is_pinned(&mut self, installed: &Installed, used: BTreeSet<Name>, leftover: bool) -> bool {
        let uses = &self.shared.uses;
        let new: BTreeSet<Name> = used.iter().filter(|app| !installed.uses.contains_key(*app)).cloned().collect();
        // Of what runs already nobody knows what it has; it goes on.
        if new.is_empty() || (leftover && uses.resolve(&self.name, &new).is_err()) {
            self.unpinned = None;
            return true;
        }
        self.unpinned = Some(Unpinned { installed: installed.clone(), used });
        false
    }

    /// Answers the offer that its trial is of, if it is of one.
    pub(super) fn answer(&mut self, result: Result<(), String>) {
        if let Some(Standing::Offered(number)) = self.files.standing {
            self.answer = Some(Answer { number, result });
        }
    }

    /// Whether a trial may be confirmed: for others that use its files, there is no way back from then on.
    pub(super) fn closes(&self) -> bool {
        let trial = self.slot.trial.as_ref().filter(|trial| trial.files_of.is_none());
        trial.is_none_or(|trial| self.shared.uses.close(&self.name, trial.installed.release.digest))
    }

    /// Releases of the app whose files others have.
    pub(super) fn held_by_others(&self) -> impl Iterator<Item = Digest> {
        self.shared.uses.held(&self.name).into_keys()
    }
}
