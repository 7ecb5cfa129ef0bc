//! The GPUs of an app's releases: asked for before anything is stopped, taken when one starts, given back at rest.

use std::collections::{BTreeMap, BTreeSet};

use proto::{digest::Digest, release::Workload};
use tokio::time::Instant;

use super::{App, Context, StepError};
use crate::{
    apps::{plan::Over, room::RoomNews, slot::Failure},
    driver::Side,
    gpu::{
        News,
        allot::{Refusal, Request},
        ledger::{TakeError, request},
    },
};

/// What keeps releases of an app from running.
#[derive(Debug)]
pub(super) struct Needs {
    /// Of a release that was to start and did not get its GPUs.
    starting: Option<Request>,
    /// Why each release cannot have its GPUs, or its memory and processors, now, which is not running.
    pub(super) refused: BTreeMap<Digest, Refusal>,
    /// What runs is not healthy, a GPU of its is not well, and there are others for it.
    pub(super) moves: bool,
    news: News,
    room_news: RoomNews,
}

impl Needs {
    pub(super) fn new(shared: &Context) -> Needs {
        let (news, room_news) = (shared.gpus.news(), shared.rooms.news());
        Needs { starting: None, refused: BTreeMap::new(), moves: false, news, room_news }
    }

    /// What was to start beside the live instance, and got no GPUs, is not to start any more.
    pub(super) fn forget_start(&mut self, live: Side) {
        self.starting.take_if(|request| request.side != live);
    }

    /// Something may be different for it now. Cancel safe.
    pub(super) async fn changed(&mut self, is_held: bool) {
        let waits = !self.refused.is_empty();
        // Both arms are cancel safe: watches.
        tokio::select! { biased;
            () = self.news.changed(), if is_held || waits => {}
            () = self.room_news.changed(), if waits => {}
            () = std::future::pending(), if !is_held && !waits => {}
        }
    }
}

impl App {
    /// Asks whether what is to start would get its GPUs.
    pub(super) fn look_at_gpus(&mut self) {
        let kept: BTreeSet<Digest> = self.with_gpus().collect();
        self.gpus.starting.take_if(|request| !kept.contains(&request.release));
        let staged = self.staged.as_ref().and_then(|staged| {
            let needs = staged.workload.as_ref()?.gpus.as_ref();
            request(&self.name, staged.installed.release.digest, needs, self.slot.side, false)
        });
        let runs = |digest| self.run.iter().chain(&self.beside).any(|run| run.release.digest == digest);
        // The same release may be to start beside itself, with other files.
        let runs_there = |asked: &Request| {
            let mut all = self.run.iter().chain(&self.beside);
            all.any(|run| (run.release.digest, run.spec.side) == (asked.release, asked.side))
        };
        let starting = self.gpus.starting.iter().filter(|asked| !runs_there(asked));
        let asked = staged.iter().filter(|asked| !runs(asked.release)).chain(starting);
        let ledger = &self.shared.gpus;
        let refused = asked.filter_map(|request| Some((request.release, ledger.check(request).err()?)));
        self.gpus.refused = refused.collect();
        for run in self.run.iter_mut().chain(&mut self.beside).filter(|run| run.gpu_trouble.is_none()) {
            run.gpu_trouble = ledger.unwell(&self.name, run.release.digest, run.spec.side);
        }
        self.gpus.moves = self.run.as_ref().is_some_and(|run| {
            let needs = run.spec.workload.gpus.as_ref();
            let asked = request(&self.name, run.release.digest, needs, run.spec.side, false);
            let asked = asked.filter(|_| run.view().is_red(Instant::now()));
            asked.is_some_and(|asked| ledger.would_move(&asked))
        });
    }

    /// Gives a release that starts its GPUs; whether it may start. What runs already (`leftover`) keeps what it has.
    pub(super) async fn take_gpus(&mut self, asked: Option<Request>, leftover: bool) -> Result<bool, StepError> {
        let Some(asked) = asked else { return Ok(true) };
        if leftover {
            if self.shared.gpus.held(&self.name, asked.release, asked.side).is_some() {
                return Ok(true);
            }
            self.shared.gpus.looked().await; // it runs, and nobody knows any more where: it is given what there is
        }
        match self.shared.gpus.take(&asked).await {
            Ok(_) => Ok(true),
            Err(TakeError::Refused(_)) if leftover => Ok(true), // it runs, and sees none when it starts again
            Err(TakeError::Refused(refusal)) => {
                tracing::warn!(app = %self.name, reason = refusal.reason, "not started: {refusal}");
                self.gpus.starting = Some(asked);
                Ok(false)
            }
            Err(TakeError::Durable(error)) => Err(error.into()),
        }
    }

    /// A trial failed; its release did not, when one of its GPUs failed meanwhile.
    pub(super) async fn fail(&mut self, failure: Failure) {
        let run = if self.slot.trial.as_ref().is_some_and(|trial| trial.standby) { &self.beside } else { &self.run };
        let unwell = match run.as_ref().filter(|run| run.release.digest == failure.digest) {
            Some(run) if run.gpu_trouble.is_some() => run.gpu_trouble.clone(),
            Some(run) => self.shared.gpus.unwell_now(&self.name, failure.digest, run.spec.side).await,
            None => None,
        };
        self.verdict = Some(match unwell {
            Some(why) => {
                let message = format!("{why}: {}", failure.message);
                tracing::warn!(app = %self.name, "its trial was cut short: {message}");
                Over::Interrupted(Failure { reason: "GpuUnwell".into(), message, ..failure })
            }
            None => {
                self.answer(Err(failure.message.clone()));
                Over::Failed(failure)
            }
        });
    }

    /// Gives back what no release needs that may still run.
    pub(super) async fn give_gpus_back(&self) -> Result<(), StepError> {
        let alone = (self.slot.trial.is_none() && !self.has_beside()).then_some(self.slot.side);
        Ok(self.shared.gpus.keep_only(&self.name, &self.with_gpus().collect(), alone).await?)
    }

    /// Releases that run or may come back.
    pub(super) fn with_gpus(&self) -> impl Iterator<Item = Digest> + '_ {
        let installed = [self.slot.active.as_ref(), self.slot.trial.as_ref().map(|trial| &trial.installed)];
        let runs = self.run.iter().chain(&self.beside).map(|run| run.release.digest);
        installed.into_iter().flatten().map(|installed| installed.release.digest).chain(runs)
    }

    /// Whether what runs was given GPUs.
    pub(super) fn holds_gpus(&self) -> bool {
        self.run.iter().chain(&self.beside).any(|run| run.spec.workload.gpus.is_some())
    }
}

/// Tells a workload which GPUs are its own, in the variables that CUDA and NVIDIA's container toolkit read.
pub(super) fn name_gpus(workload: &mut Workload, uuids: &[String]) {
    let all = uuids.join(",");
    let none = if all.is_empty() { "void".to_owned() } else { all.clone() };
    workload.env.extend([("CUDA_VISIBLE_DEVICES".into(), all), ("NVIDIA_VISIBLE_DEVICES".into(), none)]);
}
