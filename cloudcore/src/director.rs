//! The director: the hub's online key, which signs for each node what that one should run.
//!
//! ```text
//! <data>/director/roots      every root of the director, from the first on
//! <data>/director/online.pem the key that signs for nodes
//! <data>/director/root.pem   the key that may change the keys: to be moved to a safe place, the hub needs it rarely
//! <data>/director/next.pem   the online key to be, until a root lists it
//! ```
//!
//! A new hub makes all of it. Who wants the root's keys offline and several of them changes the root
//! (`crossdock root rotate`, signed by `root.pem` once) and removes that file. As long as it is there the hub renews the
//! root by itself.
//!
//! What is signed here lets nothing run by itself: agents ask the release repository, too ([`proto::director`]). The
//! sessions of `crate::link` ask [`Director::sign`], the API [`Director::publish`] and [`Director::rekey`].

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use jiff::{SignedDuration, Timestamp};
use proto::{
    digest::Digest,
    director::{self, Directive, Issue, LIFETIME_DAYS, ROOT_DAYS},
    durable::{self, DurableError, Loaded, Record},
    env::Env,
    link::message::{Assignment, DirectorRequest, MetadataReply, MetadataRequest},
    name::Name,
    tuf::{
        MAX_ROOTS, PublicKey, RoleName, SecretKey, TrustedSet, TufError,
        key::KeyError,
        schema::{Offered, RootMeta, TargetFile},
        sign::{Document, whole_seconds},
    },
    watch,
};
use serde::{Deserialize, Serialize};

/// Largest key file, in bytes.
const MAX_KEY_BYTES: u64 = 16 << 10;
/// File of the key that signs.
const ONLINE: &str = "online.pem";
/// File of the one to be.
const NEXT: &str = "next.pem";

/// The director cannot sign, or does not take a root.
#[derive(Debug, thiserror::Error)]
pub enum DirectorError {
    /// Metadata does not verify.
    #[error("the director's {0}")]
    Metadata(#[from] TufError),
    /// What the hub kept is unreadable.
    #[error(
        "the roots of the director in {} are damaged in both copies; restore the folder from a backup: nodes believe no other",
        .0.display()
    )]
    Lost(PathBuf),
    /// No key of the hub is listed.
    #[error(
        "no key in {} is listed by the director's root version {version} for targets, snapshot and timestamp; \
         restore online.pem from a backup, or publish a root that lists a key that is there", dir.display()
    )]
    NoKey {
        /// The folder.
        dir: PathBuf,
        /// Of the newest root.
        version: u64,
    },
    /// A key file is of no use.
    #[error("key file {} is refused: {problem}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A root that is not newer.
    #[error("the director's root has version {trusted} already, and no later one was sent")]
    NotNewer {
        /// Of the newest root here.
        trusted: u64,
    },
    /// A file could not be read.
    #[error("could not read {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// A key has no text.
    #[error(transparent)]
    KeyForm(#[from] KeyError),
    /// The roots have no JSON form.
    #[error("the director's roots have no readable form")]
    Form(#[from] serde_json::Error),
}

/// What is kept on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    roots: Vec<String>,
}

struct State {
    roots: Vec<String>,
    /// The root alone.
    set: TrustedSet,
    online: SecretKey,
}

impl State {
    /// The version to sign for a node that has these. What another key signed it forgets with the new root, however far
    /// ahead that was.
    fn version_after(&self, have: &MetadataRequest) -> u64 {
        let theirs = usize::try_from(have.root).ok().and_then(|version| self.roots.get(version.checked_sub(1)?));
        let root = theirs.and_then(|root| Offered::<RootMeta>::parse(root).ok()).map(|root| root.signed);
        match root {
            Some(root) if !signs(&root, &self.online) => 1,
            _ => have.targets.max(have.snapshot).max(have.timestamp).saturating_add(1),
        }
    }
}

/// The director of the hub. Cheap to clone.
#[derive(Clone)]
pub struct Director(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    record: Record,
    env: Env,
    state: RwLock<Arc<State>>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
    changes: watch::Sender<u64>,
}

/// What became of a new online key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rekeyed {
    /// It signs from now on.
    Done {
        /// Version of the root that lists it.
        root: u64,
    },
    /// A root that lists it must be made and published first.
    Waits {
        /// The key.
        key: PublicKey,
    },
}

impl Director {
    /// Reads what is in `data`, and makes it when there is none.
    ///
    /// # Errors
    /// When it is damaged, does not verify, or no key that signs is there.
    pub fn open(data: &Path, env: &Env) -> Result<Director, DirectorError> {
        let dir = data.join("director");
        let record = Record::at(dir.join("roots"));
        let roots = match record.load_and_mend()? {
            Loaded::Absent => create(&dir, &record, env)?,
            Loaded::Good(content) => serde_json::from_slice::<Kept>(&content)?.roots,
            Loaded::Fallback(content) => {
                tracing::warn!(path = %record.path().display(), "the director's roots are damaged; the copy before is used");
                serde_json::from_slice::<Kept>(&content)?.roots
            }
            Loaded::Lost => return Err(DirectorError::Lost(record.path().to_owned())),
        };
        let state = state(&dir, roots)?;
        settle(&dir, &state)?;
        let state = RwLock::new(Arc::new(state));
        let changes = watch::channel(0).0;
        let env = env.clone();
        Ok(Director(Arc::new(Inner { dir, record, env, state, changing: tokio::sync::Mutex::default(), changes })))
    }

    fn state(&self) -> Arc<State> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts the changes of its keys: what was signed before is to be signed anew.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// The first root, to the byte, and its digest: what join tokens pin.
    #[must_use]
    pub fn first_root(&self) -> (String, Digest) {
        let first = self.state().roots.first().cloned().unwrap_or_default(); // there always is one
        let digest = Digest::of(first.as_bytes());
        (first, digest)
    }

    /// All roots.
    #[must_use]
    pub fn roots(&self) -> Vec<String> {
        self.state().roots.clone()
    }

    /// When the newest root ends, and whether the hub can renew it by itself.
    #[must_use]
    pub fn root_ends(&self) -> (Timestamp, bool) {
        (self.state().set.root().expires, self.0.dir.join("root.pem").exists())
    }

    /// Roots for a peer that has `have` and is further behind than one answer takes it: parts
    /// ([`MetadataReply::is_part`]), to be sent in order before what is signed for it.
    #[must_use]
    pub fn parts(&self, have: &MetadataRequest) -> Vec<MetadataReply> {
        let state = self.state();
        let behind = state.roots.get(usize::try_from(have.root).unwrap_or(usize::MAX)..).unwrap_or_default();
        let parts = behind.chunks(MAX_ROOTS).map(|roots| MetadataReply { roots: roots.to_vec(), ..Default::default() });
        parts.take(behind.len().saturating_sub(1) / MAX_ROOTS).collect()
    }

    /// Signs what `node` should run, for the session in which it asked; `before` orders of that session were signed.
    ///
    /// # Errors
    /// When it has no form as metadata; none is known.
    pub fn sign(
        &self,
        node: &Name,
        request: &DirectorRequest,
        before: u64,
        assignment: Assignment,
        targets: BTreeMap<String, TargetFile>,
    ) -> Result<MetadataReply, TufError> {
        let (state, now) = (self.state(), whole_seconds(self.0.env.wall.now()));
        let have = &request.have;
        let version = state.version_after(have).saturating_add(before);
        let directive = Directive { node: node.clone(), nonce: request.nonce.clone(), issued_at: now, assignment };
        let issue = Issue { directive, targets, version, expires: later(now, LIFETIME_DAYS) };
        let skip = usize::try_from(have.root).unwrap_or(usize::MAX);
        let behind = state.roots.get(skip..).unwrap_or_default();
        let last = behind.chunks(MAX_ROOTS).next_back().unwrap_or_default(); // see `Director::parts`
        Ok(MetadataReply { roots: last.to_vec(), ..issue.sign(&state.online)? })
    }

    /// Takes newer roots, each signed by the one before.
    ///
    /// # Errors
    /// Says which step of the chain is wrong, or that no key of this hub would sign; all is as before then.
    pub async fn publish(&self, roots: Vec<String>) -> Result<u64, DirectorError> {
        let _one = self.0.changing.lock().await;
        let before = self.state();
        let set = before.set.update_root(&roots, self.0.env.wall.now())?;
        let (trusted, version) = (before.set.versions().root, set.versions().root);
        if version == trusted {
            return Err(DirectorError::NotNewer { trusted });
        }
        let newer = roots.into_iter().filter(|root| version_of(root).is_some_and(|v| v > trusted));
        let all: Vec<String> = before.roots.iter().cloned().chain(newer).collect();
        self.keep(all).await
    }

    /// Makes a new online key, in place of one that was stolen or is old.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub async fn rekey(&self) -> Result<Rekeyed, DirectorError> {
        let _one = self.0.changing.lock().await;
        let key = SecretKey::from_seed(&self.0.env.seed.bytes(&format!("online key at {}", self.0.env.wall.now())));
        durable::write(&self.0.dir.join(NEXT), key.to_pem()?.as_bytes(), 0o600)?;
        match self.next_root(Some(&key.public()))? {
            Some(root) => {
                let all = self.state().roots.iter().cloned().chain([root]).collect();
                Ok(Rekeyed::Done { root: self.keep(all).await? })
            }
            None => Ok(Rekeyed::Waits { key: key.public() }),
        }
    }

    /// Renews the root past half of its life, if the hub holds the key for it.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub async fn renew(&self) -> Result<(), DirectorError> {
        let _one = self.0.changing.lock().await;
        if self.state().set.root().expires > later(self.0.env.wall.now(), ROOT_DAYS / 2) {
            return Ok(());
        }
        if let Some(root) = self.next_root(None)? {
            let all = self.state().roots.iter().cloned().chain([root]).collect();
            let version = self.keep(all).await?;
            tracing::info!(version, "the director's root was renewed");
        }
        Ok(())
    }

    /// The next root, with `online` in place of the online keys; `None` when the hub cannot sign it alone.
    fn next_root(&self, online: Option<&PublicKey>) -> Result<Option<String>, DirectorError> {
        let Some(owner) = read_key(&self.0.dir.join("root.pem"))? else { return Ok(None) };
        let mut root = self.state().set.root().clone();
        let is_owner = |root: &RootMeta| {
            let keys = root.roles.get(RoleName::Root.as_str());
            keys.is_some_and(|keys| keys.threshold == 1 && keys.keyids.contains(&owner.id()))
        };
        if !is_owner(&root) {
            return Ok(None);
        }
        root.version += 1;
        root.expires = later(self.0.env.wall.now(), ROOT_DAYS);
        if let Some(online) = online {
            for role in [RoleName::Targets, RoleName::Snapshot, RoleName::Timestamp] {
                if let Some(keys) = root.roles.get_mut(role.as_str()) {
                    (keys.keyids, keys.threshold) = (vec![online.id()], 1);
                }
            }
            root.keys.insert(online.id(), online.clone());
            let used: Vec<String> = root.roles.values().flat_map(|keys| keys.keyids.clone()).collect();
            root.keys.retain(|id, _| used.contains(id));
        }
        let mut document = Document::new(&root)?;
        document.sign(&owner);
        Ok(Some(document.text()))
    }

    /// Keeps roots that verify, if a key is here that they list.
    async fn keep(&self, roots: Vec<String>) -> Result<u64, DirectorError> {
        let dir = self.0.dir.clone();
        let next = Arc::new(state(&dir, roots)?);
        let (record, content) = (self.0.record.clone(), serde_json::to_vec(&Kept { roots: next.roots.clone() })?);
        self.0.env.blocking.run(move || record.store(&content)).await?;
        settle(&dir, &next)?;
        let version = next.set.versions().root;
        *self.0.state.write().unwrap_or_else(PoisonError::into_inner) = next;
        self.0.changes.send_modify(|count| *count += 1);
        Ok(version)
    }
}

fn later(now: Timestamp, days: i64) -> Timestamp {
    whole_seconds(now.checked_add(SignedDuration::from_hours(24 * days)).unwrap_or(Timestamp::MAX))
}

/// Keys and first root of a new hub. An interrupted start leaves keys, which are taken up.
fn create(dir: &Path, record: &Record, env: &Env) -> Result<Vec<String>, DirectorError> {
    durable::create_dir_all(dir)?;
    let key = |name: &str| -> Result<SecretKey, DirectorError> {
        let path = dir.join(format!("{name}.pem"));
        if let Some(key) = read_key(&path)? {
            return Ok(key);
        }
        let key = SecretKey::from_seed(&env.seed.bytes(&format!("director's {name} key")));
        durable::write(&path, key.to_pem()?.as_bytes(), 0o600)?;
        Ok(key)
    };
    let (owner, online) = (key("root")?, key("online")?);
    let root = director::root(&[owner.public()], 1, &online.public(), later(env.wall.now(), ROOT_DAYS));
    let mut document = Document::new(&root)?;
    document.sign(&owner);
    let roots = vec![document.text()];
    record.store(&serde_json::to_vec(&Kept { roots: roots.clone() })?)?;
    Ok(roots)
}

/// Whether a key alone signs for nodes under a root.
fn signs(root: &RootMeta, key: &SecretKey) -> bool {
    let online = [RoleName::Targets, RoleName::Snapshot, RoleName::Timestamp];
    let role = |role: RoleName| root.roles.get(role.as_str());
    online.into_iter().all(|name| role(name).is_some_and(|r| r.threshold == 1 && r.keyids.contains(&key.id())))
}

/// Verifies roots, and finds the key that signs under the newest, in whichever file it is.
fn state(dir: &Path, roots: Vec<String>) -> Result<State, DirectorError> {
    let first = roots.first().ok_or(TufError::Missing { role: RoleName::Root })?;
    let mut set = TrustedSet::new(first)?;
    for some in roots.chunks(MAX_ROOTS) {
        // Past its time it is still the newest: nodes will say so.
        set = set.update_root(some, Timestamp::MIN)?;
    }
    for name in [NEXT, ONLINE] {
        if let Some(online) = read_key(&dir.join(name))?.filter(|key| signs(set.root(), key)) {
            return Ok(State { roots, set, online });
        }
    }
    Err(DirectorError::NoKey { dir: dir.to_owned(), version: set.versions().root })
}

/// Puts the next online key into the place of the one before, once a root that lists it is on disk: until then the
/// one before may be the only one that nodes believe.
fn settle(dir: &Path, state: &State) -> Result<(), DirectorError> {
    let (from, to) = (dir.join(NEXT), dir.join(ONLINE));
    if read_key(&from)?.is_none_or(|next| next.id() != state.online.id()) {
        return Ok(());
    }
    fs::rename(&from, &to).map_err(|source| DirectorError::Io { path: from.clone(), source })?;
    Ok(durable::sync_parent(&to)?)
}

fn read_key(path: &Path) -> Result<Option<SecretKey>, DirectorError> {
    if !path.exists() {
        return Ok(None);
    }
    let text = crate::bounded::read_file(path, MAX_KEY_BYTES)
        .map_err(|source| DirectorError::Io { path: path.to_owned(), source })?;
    let key =
        SecretKey::from_pem(&text).map_err(|e| DirectorError::Key { path: path.to_owned(), problem: e.to_string() })?;
    Ok(Some(key))
}

fn version_of(root: &str) -> Option<u64> {
    Offered::<RootMeta>::parse(root).ok().map(|root| root.signed.version)
}

#[cfg(test)]
mod tests;
