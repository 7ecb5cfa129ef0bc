//! The newest assignment: verified, and on disk before anybody acts on it.
//!
//! A box that knows a director takes none but what that signed for this node and session ([`proto::director`]). One
//! that joined a hub of before it takes unsigned ones, until the hub shows the root of its director: that is pinned
//! then, as a token would have done.
//!
//! The generation never falls. A damaged newest copy is never guessed at: the copy before it may lack
//! apps, or name releases that were superseded. Of that copy only the generation and the trusted root count, what is
//! active or on trial goes on, and the hub states the whole assignment again in the next session. Without any copy the
//! root of the director is lost, and nothing is taken until the box joins again.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use data_encoding::HEXLOWER;
use proto::{
    director::{self, DirectorError, NONCE_BYTES},
    durable::{self, DurableError, Loaded, Record},
    env::Env,
    link::message::{Assignment, DirectorRequest, MetadataReply, Report},
    name::Name,
    tuf::{Documents, TrustedSet, TufError},
    watch,
};
use serde::{Deserialize, Serialize};

use crate::trust::{Directed, Refusal, clock::TrustedClock};

/// Where assignments are kept, and for whom they must be signed.
#[derive(Debug, Clone)]
pub struct Place {
    /// The newest assignment.
    pub record: Record,
    /// The director's first root, as the box learned it when it joined.
    pub first_root: PathBuf,
    /// This node.
    pub node: Name,
}

/// An assignment is not taken. The one before stays.
#[derive(Debug, thiserror::Error)]
pub enum AssignmentError {
    /// It is not what the director signs for this node and session.
    #[error(transparent)]
    Refused(#[from] DirectorError),
    /// It could not be written.
    #[error("what the hub wants cannot be kept, so it is not begun: {0}; make room or mend the disk")]
    NotKept(#[from] DurableError),
}

/// Why the newest that the hub offered is not acted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignmentProblem {
    /// One word for programs.
    pub reason: &'static str,
    /// For people, with what to do.
    pub message: String,
}

/// Keeps the newest assignment and tells [`crate::apps`].
#[derive(Debug)]
pub struct Assignments {
    env: Env,
    place: Place,
    clock: TrustedClock,
    known: Mutex<Known>,
    current: watch::Sender<Option<Assignment>>,
    directed: watch::Sender<Option<Arc<Directed>>>,
    problem: watch::Sender<Option<AssignmentProblem>>,
    /// Generation of a copy that is not acted on.
    seen: u64,
    sessions: AtomicU64,
}

/// What assignments are verified with.
#[derive(Debug, Clone)]
enum Known {
    /// The hub has no director, as far as this box knows.
    Nobody,
    /// It has.
    Director(TrustedSet),
    /// It has, and its root is lost here.
    Lost(String),
}

/// What the record holds when the hub has a director. Otherwise it holds an [`Assignment`].
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    director: Documents,
}

/// Begins with the root of a director that the token pins.
///
/// # Errors
/// When it is no root, or cannot be written.
pub fn begin(place: &Place, root: &str) -> Result<(), Refusal> {
    let set = TrustedSet::new(root)?;
    store(&place.record, &set)?;
    Ok(durable::write(&place.first_root, root.as_bytes(), 0o600)?)
}

/// Whether the record holds a director's metadata that verifies; which root it descends from, its caller knows.
///
/// # Errors
/// When the record cannot be read at all.
pub fn is_whole(record: &Record) -> Result<bool, DurableError> {
    let content = match record.load()? {
        Loaded::Good(content) | Loaded::Fallback(content) => content,
        Loaded::Absent | Loaded::Lost => return Ok(false),
    };
    Ok(matches!(parse(&content), Ok((Known::Director(_), _))))
}

fn store(record: &Record, set: &TrustedSet) -> Result<(), DurableError> {
    record.store(&serde_json::to_vec(&Kept { director: set.documents() }).unwrap_or_default()) // strings: cannot fail
}

/// What a record says: whom to believe, and what that one ordered.
fn parse(content: &[u8]) -> Result<(Known, Option<Assignment>), String> {
    if let Ok(kept) = serde_json::from_slice::<Kept>(content) {
        let set = TrustedSet::load(&kept.director).map_err(|e| e.to_string())?;
        let directive = director::read(&set).map_err(|e| e.to_string())?;
        return Ok((Known::Director(set), directive.map(|d| d.assignment)));
    }
    let assignment = serde_json::from_slice::<Assignment>(content).map_err(|e| e.to_string())?;
    Ok((Known::Nobody, Some(assignment)))
}

impl Assignments {
    /// Reads and verifies what was kept. What is lost is a state, not an error.
    ///
    /// # Errors
    /// When the record cannot be read at all.
    pub fn open(place: Place, env: Env, clock: TrustedClock) -> Result<Assignments, DurableError> {
        let record = place.record.path().display().to_string();
        let goes_on = "what is active goes on until the hub states it again";
        let (known, kept, seen) = match place.record.load()? {
            Loaded::Good(content) => match parse(&content) {
                Ok((known, kept)) => (known, kept, 0),
                Err(error) => {
                    tracing::warn!(record, error, "the kept assignment is unreadable; {goes_on}");
                    (Known::Lost(error), None, 0)
                }
            },
            Loaded::Fallback(content) => {
                tracing::warn!(record, "the newest assignment is damaged; {goes_on}");
                match parse(&content) {
                    Ok((known, before)) => (known, None, before.map_or(0, |before| before.generation)),
                    Err(error) => (Known::Lost(error), None, 0),
                }
            }
            Loaded::Absent => (Known::Lost("the file is gone".into()), None, 0),
            Loaded::Lost => {
                tracing::warn!(record, "the kept assignment is damaged; {goes_on}");
                (Known::Lost("both copies are damaged".into()), None, 0)
            }
        };
        // Whether there is a director was settled when the box joined, and not by what a disk lost since.
        let (known, kept) = match (known, place.first_root.exists()) {
            (Known::Lost(_), false) => (Known::Nobody, kept),
            (Known::Nobody, true) => (Known::Lost("an unsigned assignment is in its place".into()), None),
            (known, _) => (known, kept),
        };
        let directed = match &known {
            Known::Director(set) => {
                Some(Arc::new(Directed { set: set.clone(), directive: director::read(set).ok().flatten() }))
            }
            _ => None,
        };
        let problem = match &known {
            Known::Lost(why) => {
                let error = DirectorError::Lost(why.clone());
                tracing::error!("{error}");
                Some(AssignmentProblem { reason: error.code(), message: error.to_string() })
            }
            _ => None,
        };
        Ok(Assignments {
            env,
            place,
            clock,
            known: Mutex::new(known),
            current: watch::channel(kept).0,
            directed: watch::channel(directed).0,
            problem: watch::channel(problem).0,
            seen,
            sessions: AtomicU64::new(0),
        })
    }

    /// The newest, as it changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Assignment>> {
        self.current.subscribe()
    }

    /// What the director signed, as it changes.
    #[must_use]
    pub fn directed(&self) -> watch::Receiver<Option<Arc<Directed>>> {
        self.directed.subscribe()
    }

    /// Why the newest that the hub offered is not acted on, as it changes.
    #[must_use]
    pub fn problem(&self) -> watch::Receiver<Option<AssignmentProblem>> {
        self.problem.subscribe()
    }

    /// Generation of the newest; 0 without one.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.current.borrow().as_ref().map_or(self.seen, |a| a.generation)
    }

    /// What directives of a new session must fit.
    #[must_use]
    pub fn request(&self) -> DirectorRequest {
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        let nonce = self.env.seed.bytes::<NONCE_BYTES>(&format!("nonce {number} at {}", self.env.wall.now()));
        let have = match &*self.known() {
            Known::Director(set) => set.versions(),
            Known::Nobody | Known::Lost(_) => Default::default(),
        };
        DirectorRequest { nonce: HEXLOWER.encode(&nonce), have }
    }

    /// Takes an unsigned assignment, from a hub that has no director.
    ///
    /// # Errors
    /// [`DirectorError::Unsigned`] when this box knows a director, or when it could not be written.
    pub async fn accept(&self, offered: Assignment, board: &watch::Sender<Report>) -> Result<(), AssignmentError> {
        match &*self.known() {
            Known::Nobody => {}
            Known::Director(_) => return Err(self.refused(DirectorError::Unsigned)),
            Known::Lost(why) => return Err(self.refused(DirectorError::Lost(why.clone()))),
        }
        let seen = self.generation();
        if offered.generation < seen {
            tracing::warn!(offered = offered.generation, seen, "ignored an assignment older than one seen");
            return Ok(());
        }
        if self.current.borrow().as_ref() == Some(&offered) {
            self.note(None);
            return Ok(());
        }
        let content = serde_json::to_vec(&offered).unwrap_or_default(); // text keys only: cannot fail
        let record = self.place.record.clone();
        self.kept(self.env.blocking.run(move || record.store(&content)).await)?;
        self.act_on(offered, board);
        Ok(())
    }

    /// Takes what the director signed for this node in the session of `nonce`.
    ///
    /// # Errors
    /// Why it is refused, or when it could not be written. Then nobody acts on it.
    pub async fn direct(
        &self,
        reply: &MetadataReply,
        nonce: &str,
        board: &watch::Sender<Report>,
    ) -> Result<(), AssignmentError> {
        let known = self.known().clone();
        if let Known::Director(set) = &known {
            // A part of the way to what is signed for us: kept once all of it came.
            if let Some(further) = set.walk(reply).map_err(|e| self.refused(e.into()))? {
                *self.known() = Known::Director(further);
                return Ok(());
            }
        }
        let first = match &known {
            Known::Lost(why) => return Err(self.refused(DirectorError::Lost(why.clone()))),
            Known::Director(_) => None,
            Known::Nobody => reply.roots.first().cloned(),
        };
        let base = match (known, &first) {
            (Known::Director(set), _) => Ok(set),
            (_, Some(root)) => TrustedSet::new(root),
            (_, None) => Err(TufError::Missing { role: proto::tuf::RoleName::Root }),
        };
        let base = base.map_err(|e| self.refused(e.into()))?;
        // What the keys of a new root no longer vouch for is no floor: a thief may have signed a generation far ahead.
        let vouched = base.update_root(&reply.roots, self.clock.now()).is_ok_and(|next| next.targets_meta().is_some());
        let known = base.targets_meta().is_some();
        let seen = if known && !vouched { 0 } else { self.generation() };
        let taken = base
            .update(reply, self.clock.now())
            .map_err(DirectorError::from)
            .and_then(|set| Ok((director::admit(&set, &self.place.node, nonce, seen)?, set)));
        let (directive, set) = taken.map_err(|e| self.refused(e))?;
        let targets = |set: &TrustedSet| set.targets_meta().map(|meta| meta.targets.clone());
        let kept_root = self.directed.borrow().as_ref().map(|kept| kept.set.versions().root);
        let as_before = self.current.borrow().as_ref() == Some(&directive.assignment)
            && kept_root == Some(set.versions().root)
            && targets(&base) == targets(&set);
        if !as_before {
            let (record, shared) = (self.place.record.clone(), set.clone());
            self.kept(self.env.blocking.run(move || store(&record, &shared)).await)?;
        }
        let first = first.or_else(|| (set.versions().root == 1).then(|| set.documents().root));
        if let Some(root) = first.filter(|_| !self.place.first_root.exists()) {
            // After the record: with it alone the box would have lost something.
            let path = self.place.first_root.clone();
            self.kept(self.env.blocking.run(move || durable::write(&path, root.as_bytes(), 0o600)).await)?;
        }
        *self.known() = Known::Director(set.clone());
        let assignment = directive.assignment.clone();
        self.directed.send_replace(Some(Arc::new(Directed { set, directive: Some(directive) })));
        self.act_on(assignment, board);
        Ok(())
    }

    /// Everybody learns of an assignment that is on disk.
    fn act_on(&self, offered: Assignment, board: &watch::Sender<Report>) {
        self.note(None);
        let generation = offered.generation;
        let apps = offered.apps.len();
        let changed = self.current.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&offered);
            *current = Some(offered);
            changed
        });
        if changed {
            tracing::info!(generation, apps, "assignment");
        }
        board.send_if_modified(|r| std::mem::replace(&mut r.observed_generation, generation) != generation);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self, error: DirectorError) -> AssignmentError {
        self.note(Some(AssignmentProblem { reason: error.code(), message: error.to_string() }));
        error.into()
    }

    fn kept(&self, written: Result<(), DurableError>) -> Result<(), AssignmentError> {
        written.map_err(|error| {
            let error = AssignmentError::NotKept(error);
            self.note(Some(AssignmentProblem { reason: "NotKept", message: error.to_string() }));
            error
        })
    }

    fn note(&self, problem: Option<AssignmentProblem>) {
        self.problem.send_if_modified(|now| std::mem::replace(now, problem.clone()) != problem);
    }
}

/// The director's first root, as it was pinned.
#[must_use]
pub fn first_root(place: &Place) -> Option<String> {
    fs::read_to_string(&place.first_root).ok()
}

#[cfg(test)]
mod tests;
