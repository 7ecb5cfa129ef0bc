//! What a node durably knows about one app: which release is good, which is on trial, which failed.
//!
//! One [`Record`] an app. Every change is one write of the whole, so a cut leaves the state before or
//! after it; [`super::plan`] says what follows from either. The record outlives the app's removal,
//! because of the floor.

use std::collections::BTreeMap;

use jiff::Timestamp;
use proto::{
    digest::Digest,
    durable::{DurableError, Loaded, Record},
    name::{MetricName, Name},
    object::{MetricSummary, ReleaseRef},
};
use serde::{Deserialize, Serialize};

use super::plan::{Over, Proof};
use crate::driver::Side;

/// Attempts of one release that may be cut short (agent killed, power lost) before it counts as failed.
pub const MAX_ATTEMPTS: u32 = 3;
/// Failures remembered of one app; the oldest go first.
pub const MAX_FAILURES: usize = 16;

/// A release that is whole on disk and was accepted by its signatures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Installed {
    /// Version and digest.
    pub release: ReleaseRef,
    /// Its signed release counter.
    pub counter: u64,
    /// The releases of other apps whose files its instances have, by app; see [`super::uses`]. An agent that does not
    /// know this gives them those that are current.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub uses: BTreeMap<Name, ReleaseRef>,
}

impl Installed {
    /// A release of this counter, of which nobody said yet what it uses.
    #[must_use]
    pub fn new(release: ReleaseRef, counter: u64) -> Installed {
        Installed { release, counter, uses: BTreeMap::new() }
    }
}

/// A release that has to prove itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trial {
    /// Which.
    pub installed: Installed,
    /// The boot in which it began.
    pub boot_id: String,
    /// What ran before was not healthy when it was stopped for this.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unhealthy_before: bool,
    /// It warms up on the other side, while the active release is live. An agent that does not know this stops that
    /// instance, which it takes for another app's, and tries the release in its place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub standby: bool,
    /// Why it was not started beside the active release, although both ask for it; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold: Option<String>,
    /// It is the active release, which has to prove itself with other files of this app: the fault is theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files_of: Option<Name>,
}

impl Trial {
    /// The release whose files have to prove themselves.
    #[must_use]
    pub fn files(&self) -> Option<(&Name, &ReleaseRef)> {
        let of = self.files_of.as_ref()?;
        Some((of, self.installed.uses.get(of)?))
    }
}

/// How often a release was put on trial and cut short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    /// Which release.
    pub digest: Digest,
    /// How often.
    pub count: u32,
}

/// A release that did not prove itself here. Agents before this one wrote neither counter nor time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which release.
    pub digest: Digest,
    /// Its signed release counter.
    #[serde(default)]
    pub counter: u64,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// One word for programs.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Failure {
    /// Of a release; the time is known when it is recorded.
    #[must_use]
    pub fn of(installed: &Installed, reason: &str, message: String) -> Failure {
        let Installed { release, counter, .. } = installed;
        Failure { digest: release.digest, counter: *counter, at: None, reason: reason.into(), message }
    }
}

/// An update was put off by the release's preApply hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deferral {
    /// Which release.
    pub digest: Digest,
    /// For how many seconds in all, while an agent was there to ask.
    pub spent_s: u64,
}

/// The workload is, or was, to be stopped and started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// The text that asked for it.
    pub text: String,
    /// How far it is.
    #[serde(flatten)]
    pub state: RestartState,
}

/// How far a restart is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "message", rename_all = "camelCase")]
pub enum RestartState {
    /// The workload is to be stopped.
    Due,
    /// It was stopped: what runs from now on has to prove healthy.
    Started,
    /// It proved healthy, or it was started for the first time when this was asked for.
    Done,
    /// It did not, and why; for people.
    Failed(String),
}

impl Restart {
    /// That a restart is so far.
    #[must_use]
    pub fn new(text: &str, state: RestartState) -> Restart {
        Restart { text: text.to_owned(), state }
    }
}

/// What the active release told of itself, up to when it was stopped for another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Before {
    /// The release that told it.
    pub release: ReleaseRef,
    /// The one for which it was stopped.
    pub replaced_by: Digest,
    /// Its newest samples, at most [`MAX_METRICS`](proto::object::metrics::MAX_METRICS) metrics.
    #[serde(default)]
    pub metrics: BTreeMap<MetricName, MetricSummary>,
}

impl Before {
    /// The same, after what was kept before of the same two: a trial that was cut short begins again after the release
    /// before ran for a few seconds, which say less than what it told all day.
    #[must_use]
    pub fn after(mut self, known: Option<&Before>) -> Before {
        let same = |known: &&Before| (&known.release, known.replaced_by) == (&self.release, self.replaced_by);
        for (name, known) in known.filter(same).iter().flat_map(|known| &known.metrics) {
            let mine = self.metrics.entry(name.clone()).or_insert(*known);
            if mine.samples < known.samples {
                *mine = *known;
            }
        }
        self
    }
}

/// The durable state of one app. Unknown fields are skipped, and what an agent before did not know is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Slot {
    /// The release that proved itself; what a failed trial goes back to.
    pub active: Option<Installed>,
    /// The one before it, kept on disk: its files are reused.
    pub previous: Option<Installed>,
    /// The release on trial.
    pub trial: Option<Trial>,
    /// Attempts of the release that is, or was last, on trial.
    pub attempts: Option<Attempts>,
    /// Releases that failed, newest last. Never tried again.
    pub failed: Vec<Failure>,
    /// Lowest release counter that is still accepted. Only ever rises.
    pub floor: u64,
    /// The restart that was asked for last.
    pub restart: Option<Restart>,
    /// The text that asked last to try a failed release once more.
    pub retried: Option<String>,
    /// The update that was put off last.
    pub deferral: Option<Deferral>,
    /// The active release was not healthy in its trial, and neither was what ran before it.
    pub unhealthy_before: bool,
    /// What ran before the release on trial, or before the active one, told of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
    /// Where the instance is that is live: the trial's, or else the active release's.
    #[serde(skip_serializing_if = "Side::is_a")]
    pub side: Side,
}

impl Slot {
    /// How often a release was put on trial and cut short.
    #[must_use]
    pub fn attempts(&self, digest: Digest) -> u32 {
        self.attempts.as_ref().filter(|a| a.digest == digest).map_or(0, |a| a.count)
    }

    /// Why a release is not tried again.
    #[must_use]
    pub fn failure(&self, digest: Digest) -> Option<&Failure> {
        self.failed.iter().find(|f| f.digest == digest)
    }

    /// Nothing but the floor is left.
    #[must_use]
    pub fn is_cleared(&self) -> bool {
        *self == Slot { floor: self.floor, ..Slot::default() }
    }

    fn count_attempt(&mut self, digest: Digest) {
        self.attempts = Some(Attempts { digest, count: self.attempts(digest) + 1 });
    }

    /// A release goes on trial; the active one stays what it goes back to. Unless it runs on, nothing runs at this
    /// moment, so a restart asked for by `restart` or before is one with what starts next; the first start of all is no
    /// restart.
    pub fn begin(&mut self, trial: Trial, restart: Option<&str>) {
        let standby = trial.standby;
        if trial.files_of.is_none() {
            self.count_attempt(trial.installed.release.digest);
            self.deferral = None;
        }
        self.trial = Some(trial);
        if !standby {
            self.started_anew(restart);
        }
    }

    /// The standby becomes the live one, in place of the active release: that is a restart, too.
    pub fn go_live(&mut self, restart: Option<&str>) {
        let Some(trial) = self.trial.as_mut().filter(|trial| trial.standby) else { return };
        trial.standby = false;
        self.side = self.side.other();
        self.started_anew(restart);
    }

    /// The active release, which runs on the other side, becomes the live one again, and the trial is over.
    pub fn go_back(&mut self, over: Over) {
        self.side = self.side.other();
        match over {
            Over::Failed(failure) => self.abandon(Some(failure)),
            Over::Interrupted(_) => self.abandon(None),
            Over::Withdrawn => self.withdraw(),
        }
    }

    fn started_anew(&mut self, restart: Option<&str>) {
        let first = self.active.is_none();
        match (restart, &mut self.restart) {
            (Some(text), _) if first => self.restart = Some(Restart::new(text, RestartState::Done)),
            (Some(text), _) => self.restart = Some(Restart::new(text, RestartState::Started)),
            (None, Some(Restart { state: state @ RestartState::Due, .. })) => *state = RestartState::Started,
            (None, _) => {}
        }
    }

    /// The release may be tried once more, because of `text`.
    pub fn retry(&mut self, digest: Digest, text: String) {
        let failed = self.failed.len();
        self.failed.retain(|f| f.digest != digest);
        if self.failed.len() < failed {
            self.attempts.take_if(|a| a.digest == digest);
        }
        self.retried = Some(text);
    }

    /// The agent came back during a trial, which goes on afresh. One of files is an attempt of theirs.
    pub fn resume(&mut self) {
        let own = self.trial.as_ref().filter(|trial| trial.files_of.is_none());
        if let Some(digest) = own.map(|t| t.installed.release.digest) {
            self.count_attempt(digest);
        }
    }

    /// The trial succeeded: it is the active release now, and nothing older is accepted any more.
    pub fn confirm(&mut self, proof: Proof) {
        let Some(trial) = self.trial.take() else { return };
        if trial.files_of.is_none() {
            self.attempts = None;
        }
        self.unhealthy_before = proof == Proof::UnhealthyBefore;
        self.floor = self.floor.max(trial.installed.counter);
        let same = self.active.as_ref().is_some_and(|a| a.release == trial.installed.release);
        let before = self.active.replace(trial.installed);
        if !same {
            self.previous = before;
        }
    }

    /// The trial is over without success. With a failure the release is never tried again.
    pub fn abandon(&mut self, failure: Option<Failure>) {
        self.trial = None;
        if let Some(failure) = failure {
            self.attempts = None;
            self.before.take_if(|b| b.replaced_by == failure.digest);
            self.deferral.take_if(|d| d.digest == failure.digest);
            self.failed.retain(|f| f.digest != failure.digest);
            self.failed.push(failure);
            let surplus = self.failed.len().saturating_sub(MAX_FAILURES);
            self.failed.drain(..surplus);
        }
    }

    /// The trial did not take place, so it does not count as an attempt.
    pub fn undo(&mut self) {
        if self.trial.take().is_some_and(|trial| trial.files_of.is_some()) {
            return;
        }
        if let Some(attempts) = &mut self.attempts {
            attempts.count = attempts.count.saturating_sub(1);
        }
        self.attempts.take_if(|a| a.count == 0);
    }

    /// The trial is over because something else is wanted: nothing is held against the release.
    pub fn withdraw(&mut self) {
        if self.trial.take().is_none_or(|trial| trial.files_of.is_none()) {
            self.attempts = None;
        }
    }

    /// A release was started with what was current, by an agent that did not keep it: from here on it has these.
    pub fn pin(&mut self, digest: Digest, uses: &BTreeMap<Name, ReleaseRef>) {
        let trial = self.trial.as_mut().map(|trial| &mut trial.installed);
        for installed in self.active.iter_mut().chain(trial).filter(|i| i.release.digest == digest) {
            installed.uses.clone_from(uses);
        }
    }

    /// Releases of other apps whose files its instances have, or go back to.
    pub fn pins(&self) -> impl Iterator<Item = (&Name, &ReleaseRef)> {
        self.active.iter().chain(self.trial.as_ref().map(|trial| &trial.installed)).flat_map(|i| &i.uses)
    }

    /// The app is removed; the floor stays.
    pub fn clear(&mut self) {
        *self = Slot { floor: self.floor, ..Slot::default() };
    }

    /// Digests whose trees must stay on disk.
    pub fn kept(&self) -> impl Iterator<Item = Digest> + '_ {
        let trial = self.trial.as_ref().map(|t| &t.installed);
        [self.active.as_ref(), self.previous.as_ref(), trial].into_iter().flatten().map(|i| i.release.digest)
    }
}

/// The slot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// Both copies are damaged. The floor is unknown, so nothing may be installed.
    #[error("{0} is damaged, both copies: run `edgecore join HUB --token TOKEN` again to start this app afresh")]
    Lost(String),
    /// It could not be read or written.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// It could not be written as JSON.
    #[error("could not write the slot as JSON: {0}")]
    Encode(#[from] serde_json::Error),
}

/// Reads a slot; absent means the app was never here.
///
/// # Errors
/// When it was here and cannot be read.
pub fn load(record: &Record) -> Result<Slot, SlotError> {
    parse(record, record.load()?)
}

/// Reads a slot as its owner: a damaged copy is written again from the other.
///
/// # Errors
/// As [`load`].
pub fn load_and_mend(record: &Record) -> Result<Slot, SlotError> {
    parse(record, record.load_and_mend()?)
}

fn parse(record: &Record, loaded: Loaded) -> Result<Slot, SlotError> {
    let lost = || SlotError::Lost(record.path().display().to_string());
    match loaded {
        Loaded::Absent => Ok(Slot::default()),
        Loaded::Good(content) => serde_json::from_slice(&content).map_err(|_| lost()),
        Loaded::Fallback(content) => {
            tracing::warn!(record = %record.path().display(), "the newest copy is damaged, using the one before");
            serde_json::from_slice(&content).map_err(|_| lost())
        }
        Loaded::Lost => Err(lost()),
    }
}

/// Writes a slot durably.
///
/// # Errors
/// When it could not be written; the state before is kept then.
pub fn store(record: &Record, slot: &Slot) -> Result<(), SlotError> {
    Ok(record.store(&serde_json::to_vec(slot)?)?)
}
