//! The trusted metadata of the release repository on disk, and what may be run by it.
//!
//! One durable record holds all documents. It is made when the box joins, so when it is missing or
//! damaged later something went wrong: then nothing new is accepted until the box joins again, while
//! what runs goes on. An older second copy is used and reported.
//!
//! What is accepted both repositories agree on: [`crate::link::assignment`] holds what the director signed for this
//! node, and this module what the release repository says of the same release. [`crate::apps`] asks, before anything
//! is fetched. [`clock`] says by which time expiry is judged, [`refresh`] keeps the metadata fresh and tells when it
//! cannot.

pub mod clock;
pub mod refresh;

use std::sync::Arc;

use jiff::Timestamp;
use proto::{
    director::{self, Directive},
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

use self::{clock::TrustedClock, refresh::Staleness};
use crate::fetch::{Source, SourceError};

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
    /// The director's metadata is past its time.
    #[error("the director's {0}")]
    Director(TufError),
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
    /// The director does not order it.
    #[error("{release} is not what the director signed for this node; let the hub state its assignment again")]
    NotDirected {
        /// Which release.
        release: ReleaseName,
    },
    /// The repositories contradict each other.
    #[error(
        "{release} is refused: director and release repository disagree on its {field}; \
         publish it again if it was changed on purpose, else somebody signs in the hub's name"
    )]
    Disagreement {
        /// Which release.
        release: ReleaseName,
        /// On what.
        field: &'static str,
    },
    /// One key speaks for both repositories.
    #[error(
        "the release repository and the director share the key {0}, so stealing it would be enough; \
         rotate it out of one of them: crossdock root rotate"
    )]
    SharedKey(String),
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
    /// One word for programs: the attack, where there is one.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::Lost(_) => "TrustLost",
            Refusal::Metadata(error) | Refusal::Director(error) => error.code(),
            Refusal::Rollback { .. } => "Rollback",
            Refusal::OtherDigest { .. } | Refusal::Disagreement { .. } => "MixAndMatch",
            Refusal::NotDirected { .. } => "NotDirected",
            Refusal::SharedKey(_) => "SharedKey",
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
    /// Roles of both repositories that are past their time, since newer metadata does not arrive.
    #[serde(default, skip_serializing_if = "Staleness::is_fresh")]
    pub stale: Staleness,
}

/// What the director signed for this node, verified.
#[derive(Debug, Clone)]
pub struct Directed {
    /// Its metadata.
    pub set: TrustedSet,
    /// Its order; none before the first.
    pub directive: Option<Directive>,
}

/// What the record holds besides the documents.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    documents: Documents,
    /// See [`TrustedClock::floor`]: a release that is withdrawn leaves it where it is.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "timeFloor")]
    time_floor: Option<Timestamp>,
}

/// The trusted metadata of this box.
#[derive(Debug)]
pub struct Trust {
    env: Env,
    record: Record,
    clock: TrustedClock,
    set: Mutex<Result<TrustedSet, String>>,
    /// What the director says; nothing with a hub of before it.
    directed: watch::Receiver<Option<Arc<Directed>>>,
    state: watch::Sender<TrustState>,
}

/// Starts trust anew from a root that was verified by the token that pins it.
///
/// # Errors
/// When the root is no root, or cannot be written.
pub fn begin(record: &Record, root: &str) -> Result<(), Refusal> {
    store(record, &TrustedSet::new(root)?, None)
}

fn store(record: &Record, set: &TrustedSet, time_floor: Option<Timestamp>) -> Result<(), Refusal> {
    let kept = Kept { documents: set.documents(), time_floor };
    Ok(record.store(&serde_json::to_vec(&kept).unwrap_or_default())?) // strings only: cannot fail
}

/// What a record holds, verified again, and whether it is the second copy.
fn read(loaded: Loaded) -> Result<(TrustedSet, Option<Timestamp>, bool), String> {
    let parse = |content: Vec<u8>, fallback| {
        let kept: Kept = serde_json::from_slice(&content).map_err(|e| e.to_string())?;
        TrustedSet::load(&kept.documents).map(|set| (set, kept.time_floor, fallback)).map_err(|e| e.to_string())
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
    pub fn open(
        record: Record,
        env: Env,
        clock: TrustedClock,
        directed: watch::Receiver<Option<Arc<Directed>>>,
    ) -> Result<Trust, DurableError> {
        let mut problem = String::new();
        let set = match read(record.load_and_mend()?) {
            Ok((set, floor, fallback)) => {
                if fallback {
                    problem = "the newest copy of the trusted metadata is damaged, the one before is used".into();
                    tracing::warn!("{problem}");
                }
                floor.into_iter().for_each(|floor| clock.raise(floor));
                raise(&clock, &set);
                Ok(set)
            }
            Err(lost) => {
                problem = Refusal::Lost(lost.clone()).to_string();
                tracing::error!("{problem}");
                Err(lost)
            }
        };
        let versions = set.as_ref().map(TrustedSet::versions).unwrap_or_default();
        let state = TrustState { versions, problem, stale: Staleness::default() };
        Ok(Trust { env, record, clock, set: Mutex::new(set), directed, state: watch::channel(state).0 })
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<TrustState> {
        self.state.subscribe()
    }

    /// Whether both repositories vouch for `release` of `app` on a box of `hardware`, with a counter of at
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
        let directed = self.directed.borrow().clone();
        let vouched = |set: &TrustedSet| -> Result<Accepted, Refusal> {
            let accepted = judge(set.manifest_target(&name)?, &name, release, floor, hardware)?;
            directed.as_ref().map_or(Ok(()), |directed| agreed(set, directed, &name, self.clock.now()))?;
            Ok(accepted)
        };
        // A release that was published again under a higher counter keeps its digest, so any refusal by
        // what is held here may be out of date.
        if vouched(set).is_err() || set.check_fresh(self.clock.now()).is_err() {
            self.update(source, set).await?;
        }
        set.check_fresh(self.clock.now())?;
        vouched(set)
    }

    /// Asks `source` for newer metadata.
    ///
    /// # Errors
    /// Why it is not accepted, or did not come.
    pub async fn refresh(&self, source: &dyn Source) -> Result<(), Refusal> {
        let mut held = self.set.lock().await;
        let set = held.as_mut().map_err(|lost| Refusal::Lost(lost.clone()))?;
        self.update(source, set).await
    }

    /// Looks which roles are past their time, and puts it into the state.
    pub async fn look(&self) -> Staleness {
        let directed = self.directed.borrow().clone();
        let stale = match &*self.set.lock().await {
            Err(_) => Staleness::default(), // the state says that it is lost
            Ok(set) if set.targets_meta().is_none() => Staleness::default(), // nothing was needed yet
            Ok(set) => {
                let ordered = directed.iter().filter(|d| d.directive.is_some()).map(|d| ("director", &d.set));
                let sets: Vec<(&str, &TrustedSet)> = [("release", set)].into_iter().chain(ordered).collect();
                Staleness::of(&sets, self.clock.now())
            }
        };
        self.state.send_if_modified(|state| {
            let changed = state.stale != stale;
            state.stale.clone_from(&stale);
            changed
        });
        stale
    }

    /// Asks for newer metadata and keeps what verifies, once all of it came.
    async fn update(&self, source: &dyn Source, set: &mut TrustedSet) -> Result<(), Refusal> {
        let mut reached = set.clone();
        let reply = loop {
            let reply = source.metadata(reached.versions()).await?;
            match reached.walk(&reply)? {
                Some(further) => reached = further, // far behind: the next roots from there
                None => break reply,
            }
        };
        let newer = reached.update(&reply, self.clock.now())?;
        if newer.versions() != set.versions() {
            let floor = newest_issue(&newer).into_iter().fold(self.clock.floor(), Timestamp::max);
            let (record, shared) = (self.record.clone(), newer.clone());
            self.env.blocking.run(move || store(&record, &shared, Some(floor))).await?;
            raise(&self.clock, &newer);
            self.state.send_modify(|state| {
                state.versions = newer.versions();
                state.problem.clear();
            });
        }
        *set = newer;
        Ok(())
    }
}

/// The newest issue time that can be true: nothing is issued after the end of what lists it. A signer's clock that was
/// years ahead would otherwise have everything end at once here, for good.
fn newest_issue(set: &TrustedSet) -> Option<Timestamp> {
    let end = set.expiries().into_values().min()?;
    set.targets().values().filter_map(|target| target.custom.issued_at).filter(|issued| *issued < end).max()
}

/// What was signed offline raises the floor of the time.
fn raise(clock: &TrustedClock, set: &TrustedSet) {
    newest_issue(set).into_iter().for_each(|issued| clock.raise(issued));
}

/// Whether the director orders the release, freshly, and says the same of it.
fn agreed(set: &TrustedSet, directed: &Directed, name: &ReleaseName, now: Timestamp) -> Result<(), Refusal> {
    if let Some(key) = director::shared_keys(set.root(), directed.set.root()).into_iter().next() {
        return Err(Refusal::SharedKey(proto::tuf::key::short(&key)));
    }
    directed.set.check_fresh(now).map_err(Refusal::Director)?;
    let (path, release) = (name.target_path(), name.clone());
    let ordered = directed.set.target_file(&path).ok_or_else(|| Refusal::NotDirected { release: release.clone() })?;
    let signed = set.target_file(&path).ok_or(TufError::Missing { role: proto::tuf::RoleName::Targets })?;
    director::agree(ordered, signed).map_err(|found| Refusal::Disagreement { release, field: found.field })
}

fn judge(
    target: &Target,
    name: &ReleaseName,
    release: &ReleaseRef,
    floor: u64,
    hardware: &[String],
) -> Result<Accepted, Refusal> {
    if target.digest != release.digest {
        let (assigned, signed) = (release.digest.short(), target.digest.short());
        return Err(Refusal::OtherDigest { release: name.clone(), assigned, signed });
    }
    let counter = target.custom.release_counter;
    if counter < floor {
        return Err(Refusal::Rollback { release: name.clone(), counter, floor });
    }
    let classes = &target.custom.hardware;
    if !classes.is_empty() && !hardware.iter().any(|h| classes.contains(h)) {
        let wants = classes.iter().cloned().collect::<Vec<_>>().join(" or ");
        return Err(Refusal::WrongHardware { release: name.clone(), wants, has: hardware.join(", ") });
    }
    Ok(Accepted { counter, manifest_bytes: target.length })
}

#[cfg(test)]
pub(crate) mod tests;
