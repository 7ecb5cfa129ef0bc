//! What the app uses of others' files, and others of its own: told to the board, looked up for the planner.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use proto::{digest::Digest, name::Name, release::Workload};

use super::App;
use crate::{
    apps::{
        plan::{Files, Room},
        slot::{Installed, Slot},
        uses::{Answer, Standing, Word},
    },
    gpu::allot::Refusal,
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
        let word = Word::of(&self.slot, self.offer, self.answer.clone());
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
        self.answer.take_if(|answer| !uses.is_offered(answer.number));
        self.tell_files(None);
        let answered = |number| self.answer.as_ref().is_some_and(|answer| answer.number == number);
        let (trial, active) = (self.slot.trial.as_ref(), self.slot.active.as_ref());
        let mut files = Files {
            users: trial.map(|trial| uses.users(&self.name, trial.installed.release.digest)).unwrap_or_default(),
            held_by: uses.held(&self.name).into_values().collect(),
            offer: active.filter(|_| trial.is_none()).and_then(|active| uses.offered(&active.uses)),
            room: Room::NotAsked,
            standing: trial.and_then(|trial| trial.files()).map(|(of, release)| uses.standing(of, release)),
            ..Files::default()
        };
        files.offer.take_if(|offer| answered(offer.number));
        files.answered = matches!(files.standing, Some(Standing::Offered(number)) if answered(number));
        let mut missing = vec![];
        if let Some(staged) = &self.staged {
            match uses.resolve(&staged.workload.as_ref().map(Workload::used).unwrap_or_default()) {
                Ok(resolved) => files.staged = resolved,
                Err(why) => missing.push((staged.installed.release.digest, why)),
            }
        }
        if let Some(Unpinned { installed, used }) = &self.unpinned {
            match uses.resolve(&used.iter().filter(|app| !installed.uses.contains_key(*app)).cloned().collect()) {
                Ok(mut resolved) => {
                    resolved.extend(installed.uses.clone());
                    files.unpinned = Some((installed.release.digest, resolved));
                }
                Err(why) => missing.push((installed.release.digest, why)),
            }
        }
        for (release, why) in missing {
            let refusal = Refusal { reason: "FilesMissing", message: why.to_string() };
            self.gpus.refused.entry(release).or_insert(refusal);
        }
        self.files = files;
    }

    /// Others may have found files of the app damaged: they are fetched again.
    pub(super) fn look_at_damage(&mut self) {
        let installed = self.slot.active.iter().chain(self.slot.trial.as_ref().map(|trial| &trial.installed));
        let digests: BTreeSet<Digest> = installed.map(|installed| installed.release.digest).collect();
        for digest in digests.into_iter().filter(|digest| self.shared.uses.take_damaged(&self.name, *digest)) {
            match self.run.as_ref().filter(|run| run.release.digest == digest) {
                Some(run) => run.damaged.store(true, Ordering::Relaxed),
                None => self.damaged = Some(digest),
            }
        }
    }

    /// What is on record of a release that is about to run (`leftover`: that runs) is all that it uses; otherwise that
    /// comes first.
    pub(super) fn is_pinned(&mut self, installed: &Installed, used: BTreeSet<Name>, leftover: bool) -> bool {
        let uses = &self.shared.uses;
        let new: BTreeSet<Name> = used.iter().filter(|app| !installed.uses.contains_key(*app)).cloned().collect();
        // Of what runs already nobody knows what it has; it goes on.
        if new.is_empty() || (leftover && uses.resolve(&new).is_err()) {
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
