//! Which GPUs each app has: decided by [`super::allot`], kept in one record on disk, so that an app has the same ones
//! after the agent or the box restarted. The one writer of [`GpuWatch::grants`].

use std::collections::BTreeSet;

use proto::{
    digest::Digest,
    durable::{DurableError, Loaded, Record},
    env::Env,
    name::Name,
    release::Gpus,
    watch,
};
use tokio::sync::Mutex;

use super::{
    GpuWatch, News,
    allot::{self, Grants, Offer, Refusal, Request, Supply},
    known::{Gpu, Known, Problem},
    look::Driver,
};
use crate::driver::Side;

/// Who has which GPU.
#[derive(Debug)]
pub struct Ledger {
    env: Env,
    record: Record,
    gpus: GpuWatch,
    known: watch::Receiver<Known>,
    grants: watch::Sender<Grants>,
    news: News,
    /// Held while the record is written: what is granted is on disk before anybody learns of it.
    writing: Mutex<()>,
}

/// An app does not get its GPUs now.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// They do not fit.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// That it gets them could not be written.
    #[error("could not write which GPUs it gets: {0}")]
    Durable(#[from] DurableError),
}

impl Ledger {
    /// As `record` has it. A damaged one is begun anew: apps that run go on, and are given GPUs again when they start.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn open(record: Record, env: Env, gpus: &GpuWatch) -> Result<Ledger, DurableError> {
        let read = match record.load_and_mend()? {
            Loaded::Absent => Some(Grants::new()),
            Loaded::Good(content) | Loaded::Fallback(content) => serde_json::from_slice(&content).ok(),
            Loaded::Lost => None,
        };
        let grants = read.unwrap_or_else(|| {
            tracing::warn!(record = %record.path().display(), "who has which GPU is lost: it is given anew");
            Grants::new()
        });
        gpus.grants.send_if_modified(|now| std::mem::replace(now, grants.clone()) != grants);
        let (known, grants, news) = (gpus.known(), gpus.grants.clone(), gpus.news());
        Ok(Ledger { env, record, gpus: gpus.clone(), known, grants, news, writing: Mutex::new(()) })
    }

    /// Waits for news that may change an answer: of the GPUs, or of who has them. Cancel safe.
    pub fn news(&self) -> News {
        self.news.clone()
    }

    /// Waits until the GPUs were looked at once. Cancel safe.
    pub async fn looked(&self) {
        // The sender is here: it is never closed.
        self.known.clone().wait_for(|known| known.looks > 0).await.ok();
    }

    /// Whether a release would get its GPUs now, were the release that its app runs stopped, unless it is to run beside.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, request: &Request) -> Result<(), Refusal> {
        self.decide(request).map(drop)
    }

    fn decide(&self, request: &Request) -> Result<allot::Grant, Refusal> {
        let supply = supply(&self.known.borrow())?;
        allot::allot(&supply, &self.grants.borrow(), request)
    }

    /// Gives a release its GPUs, on record when this returns: those it has already, while they do.
    ///
    /// # Errors
    /// When they do not fit, or it cannot be written.
    pub async fn take(&self, request: &Request) -> Result<Vec<String>, TakeError> {
        let _writing = self.writing.lock().await;
        let grant = self.decide(request)?;
        let mut next = self.grants.borrow().clone();
        allot::insert(&mut next, request, grant.clone());
        self.store(next).await?;
        Ok(grant.uuids)
    }

    /// The GPUs that a release was given on a side.
    #[must_use]
    pub fn held(&self, app: &Name, release: Digest, side: Side) -> Option<Vec<String>> {
        let grants = self.grants.borrow();
        let found = grants.get(app)?.iter().find(|grant| (grant.release, grant.side) == (release, side))?;
        Some(found.uuids.clone())
    }

    /// Whether a GPU that a release has is not well, and it would get others.
    #[must_use]
    pub fn would_move(&self, request: &Request) -> bool {
        let is_bad = self.unwell(&request.app, request.release, request.side).is_some();
        is_bad && self.check(request).is_ok()
    }

    /// What is wrong with the GPUs that a release has, for people: `GPU-1 is lost`.
    #[must_use]
    pub fn unwell(&self, app: &Name, release: Digest, side: Side) -> Option<String> {
        let held = self.held(app, release, side)?;
        let known = self.known.borrow();
        let supply = match supply(&known) {
            Ok(supply) if supply.driver.is_some() => supply,
            Ok(supply) if held.is_empty() || supply.trouble.is_empty() => return None,
            Ok(supply) => return Some(format!("NVIDIA's driver does not work: {}", supply.trouble)),
            Err(_) => return None, // nobody looked yet
        };
        held.iter().find_map(|uuid| match supply.gpus.get(uuid) {
            None => Some(format!("{uuid} is gone")),
            Some(offer) => (!offer.problem.is_empty()).then(|| format!("{uuid} {}", offer.problem)),
        })
    }

    /// The same, as it is now and not when the GPUs were looked at last.
    pub async fn unwell_now(&self, app: &Name, release: Digest, side: Side) -> Option<String> {
        self.held(app, release, side)?;
        self.gpus.look().await;
        self.unwell(app, release, side)
    }

    /// Gives back what releases of an app have that are none of these, or run on another side than they are `alone` on.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn keep_only(
        &self,
        app: &Name,
        releases: &BTreeSet<Digest>,
        alone: Option<Side>,
    ) -> Result<(), DurableError> {
        let is_kept =
            |grant: &allot::Grant| releases.contains(&grant.release) && alone.is_none_or(|side| side == grant.side);
        if self.grants.borrow().get(app).is_none_or(|own| own.iter().all(is_kept)) {
            return Ok(());
        }
        let _writing = self.writing.lock().await;
        let mut next = self.grants.borrow().clone();
        if let Some(own) = next.get_mut(app) {
            own.retain(is_kept);
        }
        next.retain(|_, own| !own.is_empty());
        self.store(next).await
    }

    async fn store(&self, next: Grants) -> Result<(), DurableError> {
        if *self.grants.borrow() == next {
            return Ok(());
        }
        let (record, written) = (self.record.clone(), serde_json::to_vec(&next).unwrap_or_default());
        self.env.blocking.run(move || record.store(&written)).await?;
        self.grants.send_replace(next);
        Ok(())
    }
}

/// What there is to give.
fn supply(known: &Known) -> Result<Supply, Refusal> {
    let (driver, trouble) = match &known.driver {
        None if known.looks == 0 => {
            let message = "the GPUs of this box were not looked at yet".into();
            return Err(Refusal { reason: "GpuUnavailable", message });
        }
        None => (None, String::new()),
        Some(Driver::Absent { why }) => (None, why.clone()),
        Some(Driver::Trouble { message, .. }) => (None, message.clone()),
        Some(Driver::Working { version, .. }) => (Some(version.clone()), String::new()),
    };
    let gpus = known.gpus.iter().map(|(uuid, gpu)| (uuid.clone(), offer(gpu))).collect();
    Ok(Supply { driver, trouble, gpus })
}

fn offer(gpu: &Gpu) -> Offer {
    let mut used_bytes = std::collections::BTreeMap::new();
    let mut is_whole = true;
    for process in &gpu.usage.processes {
        let Some(app) = &process.app else { continue };
        match process.memory_bytes {
            Some(bytes) => *used_bytes.entry(app.clone()).or_insert(0) += bytes,
            None => is_whole = false, // a driver that does not tell: only what apps asked for counts
        }
    }
    let of_apps: u64 = used_bytes.values().sum();
    let used = gpu.usage.memory_used_bytes.filter(|_| is_whole).unwrap_or(0);
    let problem = match gpu.problem.as_ref().filter(|problem| problem.refuses()) {
        Some(Problem { reason, .. }) if reason == super::look::reason::LOST => "is lost".to_owned(),
        Some(Problem { reason, .. }) => format!("is not well ({reason})"),
        None => String::new(),
    };
    Offer { memory_bytes: gpu.memory_bytes, foreign_bytes: used.saturating_sub(of_apps), used_bytes, problem }
}

/// What a release asks for, if it needs any, to run on a side, beside the other's or alone.
#[must_use]
pub fn request(app: &Name, release: Digest, needs: Option<&Gpus>, side: Side, beside: bool) -> Option<Request> {
    Some(Request { app: app.clone(), release, needs: needs?.clone(), side, beside })
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
