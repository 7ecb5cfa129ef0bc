//! The trusted metadata on disk, and what may be run by it.
//!
//! One durable record holds all documents. It is made when the box joins, so when it is missing or
//! damaged later something went wrong: then nothing new is accepted until the box joins again, while
//! what runs goes on. An older second copy is used and reported.
//!
//! Time is the latest of the clock, [`BUILT`], and the newest issue time that the persisted releases were
//! signed with. Only what is signed offline raises it: a clock that was ahead, or a hub that lies, locks
//! nobody out. So a clock that fell back makes metadata fresh again that expired after that time, and none
//! that expired before it. [`crate::apps`] asks, before anything is fetched.

use jiff::Timestamp;
use proto::{
    durable::{DurableError, Loaded, Record},
    env::Env,
    link::message::MetadataRequest,
    name::{Name, ReleaseName},
    object::ReleaseRef,
    tuf::{Documents, Target, TrustedSet, TufError},
    watch,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::fetch::{Source, SourceError};

/// 2026-01-01: this program is no older. Raised with each version; a build script that asked the clock would
/// make two builds of one source differ.
pub const BUILT: Timestamp = Timestamp::constant(1_767_225_600, 0);

/// Why a release is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is nothing to verify with.
    #[error(
        "the trusted metadata of this box is lost ({0}), so no new release can be verified: \
         run `edgecore join HUB --token TOKEN` again; what runs goes on"
    )]
    Lost(String),
    /// Metadata does not verify, or does not list the release.
    #[error(transparent)]
    Metadata(#[from] TufError),
    /// The signed digest is another than the assigned one.
    #[error("{release} is assigned with digest {assigned}, but {signed} is what was signed; start the rollout again")]
    OtherDigest {
        /// Which release.
        release: ReleaseName,
        /// What the hub assigned.
        assigned: String,
        /// What was signed.
        signed: String,
    },
    /// Older than what was trusted here.
    #[error(
        "rollback attack refused: {release} has release counter {counter}, {floor} is trusted here already; \
         publish the older version again under a higher counter if it is wanted"
    )]
    Rollback {
        /// Which release.
        release: ReleaseName,
        /// Its counter.
        counter: u64,
        /// The lowest that is accepted.
        floor: u64,
    },
    /// The box is of none of the hardware classes.
    #[error("{release} is for {wants}, this box is {has}; assign it to other nodes")]
    WrongHardware {
        /// Which release.
        release: ReleaseName,
        /// Classes of the release.
        wants: String,
        /// Classes of the box.
        has: String,
    },
    /// The hub could not be asked.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// What was verified could not be written.
    #[error(transparent)]
    Durable(#[from] DurableError),
}

impl Refusal {
    /// One word for programs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::Lost(_) => "TrustLost",
            Refusal::Rollback { .. } | Refusal::Metadata(TufError::Rollback { .. }) => "Rollback",
            Refusal::Metadata(TufError::Expired { .. }) => "MetadataExpired",
            Refusal::Metadata(_) | Refusal::OtherDigest { .. } => "VerificationFailed",
            Refusal::WrongHardware { .. } => "WrongHardware",
            Refusal::Source(_) => "HubUnreachable",
            Refusal::Durable(e) if e.is_disk_full() => "DiskFull",
            Refusal::Durable(_) => "StateNotWritable",
        }
    }
}

/// A release that the signatures vouch for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Its release counter.
    pub counter: u64,
    /// Bytes of its manifest.
    pub manifest_bytes: u64,
}

/// How the trust in releases stands, for the status.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustState {
    /// Versions of the documents; all zero when the metadata is lost.
    pub versions: MetadataRequest,
    /// What is wrong; empty when nothing is.
    #[serde(default)]
    pub problem: String,
}

/// The trusted metadata of this box.
#[derive(Debug)]
pub struct Trust {
    env: Env,
    record: Record,
    set: Mutex<Result<TrustedSet, String>>,
    state: watch::Sender<TrustState>,
}

/// Starts trust anew from a root that was verified by the token that pins it.
///
/// # Errors
/// When the root is no root, or cannot be written.
pub fn begin(record: &Record, root: &str) -> Result<(), Refusal> {
    store(record, &TrustedSet::new(root)?)
}

fn store(record: &Record, set: &TrustedSet) -> Result<(), Refusal> {
    let json = serde_json::to_vec(&set.documents()).unwrap_or_default(); // strings only: cannot fail
    Ok(record.store(&json)?)
}

/// What a record holds, verified again.
fn read(loaded: Loaded) -> Result<(TrustedSet, bool), String> {
    let parse = |content: Vec<u8>, fallback| {
        let documents: Documents = serde_json::from_slice(&content).map_err(|e| e.to_string())?;
        TrustedSet::load(&documents).map(|set| (set, fallback)).map_err(|e| e.to_string())
    };
    match loaded {
        Loaded::Good(content) => parse(content, false),
        Loaded::Fallback(content) => parse(content, true),
        Loaded::Absent => Err("the file is gone".into()),
        Loaded::Lost => Err("both copies are damaged".into()),
    }
}

/// Whether a record holds metadata that verifies; which root it descends from, its caller knows.
///
/// # Errors
/// When the record cannot be read at all.
pub fn is_whole(record: &Record) -> Result<bool, DurableError> {
    Ok(read(record.load()?).is_ok())
}

impl Trust {
    /// Reads and verifies what was persisted. Lost metadata is a state, not an error.
    ///
    /// # Errors
    /// When the record cannot be read at all.
    pub fn open(record: Record, env: Env) -> Result<Trust, DurableError> {
        let found = read(record.load_and_mend()?);
        let mut problem = String::new();
        match &found {
            Ok((_, false)) => {}
            Ok((_, true)) => {
                problem = "the newest copy of the trusted metadata is damaged, the one before is used".into();
                tracing::warn!("{problem}");
            }
            Err(lost) => {
                problem = Refusal::Lost(lost.clone()).to_string();
                tracing::error!("{problem}");
            }
        }
        let set = found.map(|(set, _)| set);
        let versions = set.as_ref().map(TrustedSet::versions).unwrap_or_default();
        Ok(Trust { env, record, set: Mutex::new(set), state: watch::channel(TrustState { versions, problem }).0 })
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<TrustState> {
        self.state.subscribe()
    }

    /// Whether the signatures vouch for `release` of `app` on a box of `hardware`, with a counter of at
    /// least `floor`. Asks `source` for newer metadata when ours refuses it or is not fresh.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn accept(
        &self,
        source: &dyn Source,
        app: &Name,
        release: &ReleaseRef,
        floor: u64,
        hardware: &[String],
    ) -> Result<Accepted, Refusal> {
        let name = ReleaseName { app: app.clone(), version: release.version.clone() };
        let mut held = self.set.lock().await;
        let set = held.as_mut().map_err(|lost| Refusal::Lost(lost.clone()))?;
        // A release that was published again under a higher counter keeps its digest, so any refusal by
        // what is held here may be out of date.
        let vouched = || judge(set.manifest_target(&name)?, name.clone(), release, floor, hardware);
        if vouched().is_err() || set.check_fresh(now(set, self.env.wall.now())).is_err() {
            let reply = source.metadata(set.versions()).await?;
            let newer = set.update(&reply, now(set, self.env.wall.now()))?;
            if newer.versions() != set.versions() {
                let (record, shared) = (self.record.clone(), newer.clone());
                self.env.blocking.run(move || store(&record, &shared)).await?;
                self.state.send_replace(TrustState { versions: newer.versions(), problem: String::new() });
            }
            *set = newer;
        }
        set.check_fresh(now(set, self.env.wall.now()))?;
        judge(set.manifest_target(&name)?, name, release, floor, hardware)
    }
}

/// The latest of the clock, the build and every signed issue time.
fn now(set: &TrustedSet, clock: Timestamp) -> Timestamp {
    set.targets().values().filter_map(|t| t.custom.issued_at).fold(clock.max(BUILT), Timestamp::max)
}

fn judge(
    target: &Target,
    name: ReleaseName,
    release: &ReleaseRef,
    floor: u64,
    hardware: &[String],
) -> Result<Accepted, Refusal> {
    if target.digest != release.digest {
        let (assigned, signed) = (release.digest.short(), target.digest.short());
        return Err(Refusal::OtherDigest { release: name, assigned, signed });
    }
    let counter = target.custom.release_counter;
    if counter < floor {
        return Err(Refusal::Rollback { release: name, counter, floor });
    }
    let classes = &target.custom.hardware;
    if !classes.is_empty() && !hardware.iter().any(|h| classes.contains(h)) {
        let wants = classes.iter().cloned().collect::<Vec<_>>().join(" or ");
        return Err(Refusal::WrongHardware { release: name, wants, has: hardware.join(", ") });
    }
    Ok(Accepted { counter, manifest_bytes: target.length })
}

#[cfg(test)]
pub(crate) mod tests;
