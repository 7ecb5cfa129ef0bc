//! The next root: which keys speak for what from then on. Pure: a root and changes give the root after them.
//!
//! A root is replaced by one that the holders of the old keys *and* of the new keys have signed, so nobody has to
//! trust anybody new by word of mouth. Nothing here knows of releases: the same code rotates the root of any TUF
//! repository, such as that of the hub's own assignments. [`super::chain`] stages what is decided here.

use std::{collections::BTreeSet, fmt, str::FromStr};

use proto::tuf::{
    PublicKey, RoleName,
    key::short,
    schema::{RoleKeys, RootMeta},
};

/// Digits of a key ID that name a key.
const MIN_ID_DIGITS: usize = 8;

/// What a key is for. Snapshot and timestamp are one duty: both are the pipeline's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Duty {
    /// Changes the keys.
    Root,
    /// Adds releases.
    Targets,
    /// Signs snapshot and timestamp.
    Pipeline,
}

impl Duty {
    /// All of them.
    pub const ALL: [Duty; 3] = [Duty::Root, Duty::Targets, Duty::Pipeline];

    /// The roles of the metadata that it covers.
    #[must_use]
    pub const fn roles(self) -> &'static [RoleName] {
        match self {
            Duty::Root => &[RoleName::Root],
            Duty::Targets => &[RoleName::Targets],
            Duty::Pipeline => &[RoleName::Snapshot, RoleName::Timestamp],
        }
    }

    /// The duties of a key in a root.
    #[must_use]
    pub fn of(root: &RootMeta, id: &str) -> Vec<Duty> {
        Duty::ALL.into_iter().filter(|duty| duty.roles().iter().any(|role| lists(root, *role, id))).collect()
    }
}

impl fmt::Display for Duty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Duty::Root => "root",
            Duty::Targets => "targets",
            Duty::Pipeline => "pipeline",
        })
    }
}

impl FromStr for Duty {
    type Err = String;
    fn from_str(text: &str) -> Result<Duty, String> {
        match text {
            "root" => Ok(Duty::Root),
            "targets" => Ok(Duty::Targets),
            "pipeline" | "snapshot" | "timestamp" => Ok(Duty::Pipeline),
            other => Err(format!("{other:?} is no role; write root, targets or pipeline (snapshot and timestamp)")),
        }
    }
}

/// One change of a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A key gets a duty.
    Add(Duty, PublicKey),
    /// A key, by its full ID, loses one.
    Remove(Duty, String),
    /// So many of a duty's keys must sign.
    Threshold(Duty, u32),
}

/// Why a root cannot change in this way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RotateError {
    /// No key is called so.
    #[error("no key of root version {version} is {text:?}; `crossdock keys list` shows them")]
    Unknown {
        /// What was asked for.
        text: String,
        /// The root's version.
        version: u64,
    },
    /// Several keys are.
    #[error("several keys are {0:?}; name one by its full ID (`crossdock keys list`)")]
    Ambiguous(String),
    /// The key has not this duty.
    #[error("key {0} is not listed for {1}; `crossdock keys list` shows what it is listed for")]
    NotListed(String, Duty),
    /// The key has it already.
    #[error("key {0} is listed for {1} already")]
    Listed(String, Duty),
    /// A kind of key that cannot verify here.
    #[error("key {0} is not an ed25519 key, and only those count; make one with `crossdock keys new`")]
    Kind(String),
    /// Too few keys would be left.
    #[error(
        "{role} would have {keys} keys for a threshold of {threshold}, and nothing could be signed any more; add a key in its place, or ask for fewer signatures with --threshold"
    )]
    TooFew {
        /// Which role.
        role: RoleName,
        /// Distinct keys left.
        keys: usize,
        /// How many must sign.
        threshold: u32,
    },
    /// It is as before.
    #[error("nothing would change; say what to add, remove or replace")]
    Nothing,
}

/// Takes changes to a root. Version and expiry stay for the caller to set; keys without a duty are dropped.
///
/// # Errors
/// The first change that cannot be, or a role that could not sign afterwards.
pub fn apply(root: &RootMeta, changes: &[Change]) -> Result<RootMeta, RotateError> {
    let mut next = root.clone();
    for change in changes {
        match change {
            Change::Add(duty, key) => {
                let id = key.id();
                if key.bytes().is_none() {
                    return Err(RotateError::Kind(short(&id)));
                }
                if duty.roles().iter().all(|role| lists(&next, *role, &id)) {
                    return Err(RotateError::Listed(label(&next, &id), *duty));
                }
                for role in duty.roles() {
                    let keys = next.roles.entry(role.as_str().into()).or_insert_with(|| RoleKeys::new(vec![], 1));
                    keys.keyids.retain(|old| *old != id);
                    keys.keyids.push(id.clone());
                }
                next.keys.insert(id, key.clone());
            }
            Change::Remove(duty, id) => {
                if !duty.roles().iter().any(|role| lists(&next, *role, id)) {
                    return Err(RotateError::NotListed(label(&next, id), *duty));
                }
                of_duty(&mut next, *duty, |keys| keys.keyids.retain(|old| old != id));
            }
            Change::Threshold(duty, threshold) => of_duty(&mut next, *duty, |keys| keys.threshold = *threshold),
        }
    }
    check(&next)?;
    let used: BTreeSet<String> = next.roles.values().flat_map(|keys| keys.keyids.iter().cloned()).collect();
    next.keys.retain(|id, _| used.contains(id));
    if next == *root { Err(RotateError::Nothing) } else { Ok(next) }
}

/// The changes that take a key out of every role in which it stands, with another in its place if one is given.
///
/// # Errors
/// When no role lists it.
pub fn revocation(root: &RootMeta, id: &str, replacement: Option<&PublicKey>) -> Result<Vec<Change>, RotateError> {
    let duties = Duty::of(root, id);
    if duties.is_empty() {
        return Err(RotateError::Unknown { text: id.to_owned(), version: root.version });
    }
    let mut changes = vec![];
    for duty in duties {
        changes.push(Change::Remove(duty, id.to_owned()));
        // Who stands there already needs no second place.
        let new = replacement.filter(|key| !duty.roles().iter().all(|role| lists(root, *role, &key.id())));
        changes.extend(new.map(|key| Change::Add(duty, key.clone())));
    }
    Ok(changes)
}

/// The full ID of the one key that `text` names: its ID, 8 or more digits of it, or its name.
///
/// # Errors
/// When it names none of the root's keys, or several.
pub fn find(root: &RootMeta, text: &str) -> Result<String, RotateError> {
    let digits = text.to_ascii_lowercase();
    let is = |id: &str, key: &PublicKey| {
        key.name() == Some(text) || (digits.len() >= MIN_ID_DIGITS && id.starts_with(&digits))
    };
    let found: Vec<&String> = root.keys.iter().filter(|(id, key)| is(id, key)).map(|(id, _)| id).collect();
    match found.as_slice() {
        [] => Err(RotateError::Unknown { text: text.to_owned(), version: root.version }),
        [one] => Ok((*one).clone()),
        _ => Err(RotateError::Ambiguous(text.to_owned())),
    }
}

/// A key for people: its name, if it has one, and the first digits of its ID.
#[must_use]
pub fn label(root: &RootMeta, id: &str) -> String {
    match root.keys.get(id).and_then(PublicKey::name) {
        Some(name) => format!("{} ({})", name.escape_debug(), short(id)),
        None => short(id),
    }
}

fn lists(root: &RootMeta, role: RoleName, id: &str) -> bool {
    root.roles.get(role.as_str()).is_some_and(|keys| keys.keyids.iter().any(|listed| listed == id))
}

fn of_duty(root: &mut RootMeta, duty: Duty, mut change: impl FnMut(&mut RoleKeys)) {
    for role in duty.roles() {
        if let Some(keys) = root.roles.get_mut(role.as_str()) {
            change(keys);
        }
    }
}

/// Whether every role can still sign, by distinct keys.
fn check(root: &RootMeta) -> Result<(), RotateError> {
    for role in RoleName::ALL {
        let Some(keys) = root.roles.get(role.as_str()) else { continue };
        let distinct: BTreeSet<[u8; 32]> = keys.keyids.iter().filter_map(|id| root.keys.get(id)?.bytes()).collect();
        let enough = usize::try_from(keys.threshold).is_ok_and(|threshold| threshold <= distinct.len());
        if !enough || keys.threshold == 0 {
            return Err(RotateError::TooFew { role, keys: distinct.len(), threshold: keys.threshold });
        }
    }
    Ok(())
}
