//! The trusted set: what a client believes, and how it comes to believe more.
//!
//! An immutable value. [`TrustedSet::update`] follows the client workflow of the TUF specification
//! (section 5), its numbered steps named beside the code, and yields a new set or an error; there is
//! nothing in between. Used by the hub before it serves, by the agent before anything is written
//! where it could run, and by the release engineer's tool before it publishes.

#[cfg(feature = "conformance")]
mod steps;

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use super::{
    Documents, MAX_ROOTS,
    error::TufError,
    schema::{
        MetaFile, Offered, Role, RoleName, RootMeta, SnapshotMeta, Target, TargetFile, TargetsMeta, TimestampMeta,
    },
};
use crate::{
    digest::Digest,
    link::message::{MetadataReply, MetadataRequest},
    name::ReleaseName,
};

/// A verified document.
#[derive(Debug)]
struct Held<T> {
    text: String,
    /// Of what is signed.
    content: Digest,
    signed: T,
}

/// The releases of a verified targets document.
#[derive(Debug)]
struct Releases {
    /// Those that are ours.
    targets: BTreeMap<String, Target>,
    /// Why the others are not: somebody else's, or of a newer version.
    others: BTreeMap<String, String>,
}

/// Verified metadata. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TrustedSet {
    root: Arc<Held<RootMeta>>,
    timestamp: Option<Arc<Held<TimestampMeta>>>,
    snapshot: Option<Arc<Held<SnapshotMeta>>>,
    targets: Option<Arc<Held<TargetsMeta>>>,
    releases: Arc<Releases>,
}

impl TrustedSet {
    /// Starts from a root that the caller has pinned, by its digest in a join token for one.
    ///
    /// # Errors
    /// When it is no root, or not signed by the keys that it lists.
    pub fn new(root: &str) -> Result<TrustedSet, TufError> {
        let root = Offered::<RootMeta>::parse(root)?;
        root.verify(&root.signed)?;
        Ok(TrustedSet { root: hold(root), timestamp: None, snapshot: None, targets: None, releases: releases(None) })
    }

    /// Takes up what was persisted. All is verified again but expiry, which gates only what is new.
    ///
    /// # Errors
    /// When a document was damaged or documents do not fit each other.
    pub fn load(documents: &Documents) -> Result<TrustedSet, TufError> {
        let mut set = TrustedSet::new(&documents.root)?;
        let Some(timestamp) = documents.timestamp.as_deref() else { return Ok(set) };
        set.take_timestamp(Some(timestamp))?;
        set.take_snapshot(documents.snapshot.as_deref())?;
        set.take_targets(documents.targets.as_deref())?;
        Ok(set)
    }

    /// Believes what a peer offers, if all of it is sound and nothing is older than before.
    ///
    /// `now` is the one time of the whole update (5.2). Roots that the set has passed already are skipped.
    ///
    /// # Errors
    /// The first step that fails names the attack. `self` is as before.
    pub fn update(&self, reply: &MetadataReply, now: Timestamp) -> Result<TrustedSet, TufError> {
        let mut next = self.clone();
        next.take_roots(&reply.roots)?; // 5.3
        fresh(&*next.root, now)?; // 5.3.10
        next.forget_rotated(); // 5.3.11
        let timestamp = next.take_timestamp(reply.timestamp.as_deref())?; // 5.4
        fresh(&*timestamp, now)?; // 5.4.4
        let snapshot = next.take_snapshot(reply.snapshot.as_deref())?; // 5.5
        fresh(&*snapshot, now)?; // 5.5.6
        let targets = next.take_targets(reply.targets.as_deref())?; // 5.6
        fresh(&*targets, now)?; // 5.6.5
        Ok(next)
    }

    /// Walks the roots alone (5.3), for a repository of which no more is known yet.
    ///
    /// # Errors
    /// As [`TrustedSet::update`]. `self` is as before.
    pub fn update_root(&self, roots: &[String], now: Timestamp) -> Result<TrustedSet, TufError> {
        let mut next = self.clone();
        next.take_roots(roots)?;
        fresh(&*next.root, now)?;
        next.forget_rotated();
        Ok(next)
    }

    /// Goes on to where the roots of an answer lead that is a part ([`MetadataReply::is_part`]); `None`: it is whole,
    /// or leads nowhere, and is for [`TrustedSet::update`]. Whether the last root is fresh, and what it no longer
    /// vouches for, is judged there: what is kept is kept once all of it came.
    ///
    /// # Errors
    /// As [`TrustedSet::update`]. `self` is as before.
    pub fn walk(&self, reply: &MetadataReply) -> Result<Option<TrustedSet>, TufError> {
        let mut next = self.clone();
        if reply.is_part() {
            next.take_roots(&reply.roots)?;
        }
        Ok(Some(next).filter(|next| next.root.signed.version > self.root.signed.version))
    }

    /// 5.3: roots one after the other, each signed by the one before and by itself.
    fn take_roots(&mut self, roots: &[String]) -> Result<(), TufError> {
        if roots.len() > MAX_ROOTS {
            return Err(TufError::TooManyRoots(roots.len())); // 5.3.3
        }
        let mut passed = true;
        for text in roots {
            let offered = Offered::<RootMeta>::parse(text)?;
            let (version, trusted) = (offered.signed.version, self.root.signed.version);
            passed &= version <= trusted;
            if passed {
                continue; // one of those that led to the root we trust
            }
            offered.verify(&self.root.signed)?; // 5.3.4, by the trusted root
            offered.verify(&offered.signed)?; // 5.3.4, by itself
            // 5.3.5
            if version <= trusted {
                return Err(TufError::Rollback { what: "root".into(), offered: version, trusted });
            }
            if version != trusted + 1 {
                return Err(TufError::RootGap { trusted, offered: version });
            }
            self.root = hold(offered); // 5.3.8
        }
        Ok(())
    }

    /// 5.3.11: what the keys of a new root no longer vouch for is forgotten, so that a stolen key that
    /// signed an absurdly high version can be recovered from by rotating it.
    fn forget_rotated(&mut self) {
        let root = &self.root.signed;
        if !vouched(self.timestamp.as_deref(), root) || !vouched(self.snapshot.as_deref(), root) {
            self.timestamp = None;
            self.snapshot = None;
        }
        if !vouched(self.targets.as_deref(), root) {
            self.targets = None;
            self.releases = releases(None);
        }
    }

    /// 5.4: the timestamp, new or as before.
    fn take_timestamp(&mut self, text: Option<&str>) -> Result<Arc<Held<TimestampMeta>>, TufError> {
        let missing = TufError::Missing { role: RoleName::Timestamp };
        let Some(text) = text else { return self.timestamp.clone().ok_or(missing) };
        let offered = Offered::<TimestampMeta>::parse(text)?;
        offered.verify(&self.root.signed)?; // 5.4.2
        if let Some(trusted) = &self.timestamp {
            // 5.4.3.1; an equal version is what we have
            not_lower("timestamp", offered.signed.version, trusted.signed.version)?;
            if offered.signed.version == trusted.signed.version {
                return Ok(trusted.clone());
            }
            // 5.4.3.2
            let (new, old) = (snapshot_of(&offered.signed)?.version, snapshot_of(&trusted.signed)?.version);
            not_lower("the timestamp's snapshot", new, old)?;
        }
        let held = hold(offered); // 5.4.5
        self.timestamp = Some(held.clone());
        Ok(held)
    }

    /// 5.5: the snapshot that the timestamp names, new or as before.
    fn take_snapshot(&mut self, text: Option<&str>) -> Result<Arc<Held<SnapshotMeta>>, TufError> {
        let timestamp = self.timestamp.clone().ok_or(TufError::Missing { role: RoleName::Timestamp })?;
        let expected = snapshot_of(&timestamp.signed)?;
        let Some(text) = text else { return kept(self.snapshot.as_ref(), expected) };
        let offered = Offered::<SnapshotMeta>::parse(text)?;
        offered.verify(&self.root.signed)?; // 5.5.3; first, so that a changed byte is named as what it is
        fits::<SnapshotMeta>(expected, text, offered.signed.version)?; // 5.5.2, 5.5.4
        // 5.5.5
        for (name, old) in self.snapshot.iter().flat_map(|trusted| &trusted.signed.meta) {
            let new = offered.signed.meta.get(name).map_or(0, |file| file.version);
            not_lower(&format!("the snapshot's {name}"), new, old.version)?;
        }
        not_forked(self.snapshot.as_deref(), &offered)?;
        let held = hold(offered); // 5.5.7
        self.snapshot = Some(held.clone());
        Ok(held)
    }

    /// 5.6: the targets that the snapshot names, new or as before.
    fn take_targets(&mut self, text: Option<&str>) -> Result<Arc<Held<TargetsMeta>>, TufError> {
        let snapshot = self.snapshot.clone().ok_or(TufError::Missing { role: RoleName::Snapshot })?;
        let expected = targets_of(&snapshot.signed)?;
        let Some(text) = text else { return kept(self.targets.as_ref(), expected) };
        let offered = Offered::<TargetsMeta>::parse(text)?;
        offered.verify(&self.root.signed)?; // 5.6.3; first, so that a changed byte is named as what it is
        fits::<TargetsMeta>(expected, text, offered.signed.version)?; // 5.6.2, 5.6.4
        not_forked(self.targets.as_deref(), &offered)?;
        let held = hold(offered); // 5.6.6
        self.releases = releases(Some(&held.signed));
        self.targets = Some(held.clone());
        Ok(held)
    }

    /// Whether every document is still within its time.
    ///
    /// # Errors
    /// [`TufError::Expired`] or, before the first update, [`TufError::Missing`].
    pub fn check_fresh(&self, now: Timestamp) -> Result<(), TufError> {
        fresh(&*self.root, now)?;
        fresh_if_there(self.timestamp.as_deref(), now)?;
        fresh_if_there(self.snapshot.as_deref(), now)?;
        fresh_if_there(self.targets.as_deref(), now)
    }

    /// What to persist, and to [`TrustedSet::load`] later.
    #[must_use]
    pub fn documents(&self) -> Documents {
        Documents {
            root: self.root.text.clone(),
            timestamp: self.timestamp.as_ref().map(|held| held.text.clone()),
            snapshot: self.snapshot.as_ref().map(|held| held.text.clone()),
            targets: self.targets.as_ref().map(|held| held.text.clone()),
        }
    }

    /// What to ask a peer with.
    #[must_use]
    pub fn versions(&self) -> MetadataRequest {
        MetadataRequest {
            root: self.root.signed.version,
            timestamp: self.timestamp.as_ref().map_or(0, |held| held.signed.version),
            snapshot: self.snapshot.as_ref().map_or(0, |held| held.signed.version),
            targets: self.targets.as_ref().map_or(0, |held| held.signed.version),
        }
    }

    /// What a peer lacks. `roots` are all roots from version 1 on.
    ///
    /// A peer behind a new root gets everything, for it may forget what old keys signed. A peer behind more than
    /// [`MAX_ROOTS`] gets so many alone, and asks again from there. A peer that is ahead gets ours too, and will say
    /// that we are behind.
    #[must_use]
    pub fn newer_than(&self, have: &MetadataRequest, roots: &[String]) -> MetadataReply {
        let (ours, documents) = (self.versions(), self.documents());
        let all = have.root != ours.root;
        let skip = usize::try_from(have.root).unwrap_or(usize::MAX);
        let count = usize::try_from(ours.root).unwrap_or(usize::MAX).saturating_sub(skip);
        let roots = roots.iter().skip(skip).take(count.min(MAX_ROOTS)).cloned().collect();
        if count > MAX_ROOTS {
            return MetadataReply { roots, ..MetadataReply::default() };
        }
        MetadataReply {
            roots,
            timestamp: documents.timestamp.filter(|_| all || have.timestamp != ours.timestamp),
            snapshot: documents.snapshot.filter(|_| all || have.snapshot != ours.snapshot),
            targets: documents.targets.filter(|_| all || have.targets != ours.targets),
        }
    }

    /// The trusted root.
    #[must_use]
    pub fn root(&self) -> &RootMeta {
        &self.root.signed
    }

    /// The trusted targets document in full, for who edits it.
    #[must_use]
    pub fn targets_meta(&self) -> Option<&TargetsMeta> {
        self.targets.as_ref().map(|held| &held.signed)
    }

    /// When each document that is there ends.
    #[must_use]
    pub fn expiries(&self) -> BTreeMap<RoleName, Timestamp> {
        let mut map = BTreeMap::from([(RoleName::Root, self.root.signed.expires)]);
        map.extend(self.timestamp.as_ref().map(|held| (RoleName::Timestamp, held.signed.expires)));
        map.extend(self.snapshot.as_ref().map(|held| (RoleName::Snapshot, held.signed.expires)));
        map.extend(self.targets.as_ref().map(|held| (RoleName::Targets, held.signed.expires)));
        map
    }

    /// A target as the trusted document has it.
    #[must_use]
    pub fn target_file(&self, path: &str) -> Option<&TargetFile> {
        self.targets.as_ref()?.signed.targets.get(path)
    }

    /// A target by its path.
    #[must_use]
    pub fn target(&self, path: &str) -> Option<&Target> {
        self.releases.targets.get(path)
    }

    /// Every target that is a release of ours.
    #[must_use]
    pub fn targets(&self) -> &BTreeMap<String, Target> {
        &self.releases.targets
    }

    /// The manifest of a release. Its path and what was signed beside it must say the same.
    ///
    /// # Errors
    /// [`TufError::Target`] when it is not listed, not ours or contradicts itself.
    pub fn manifest_target(&self, release: &ReleaseName) -> Result<&Target, TufError> {
        let path = release.target_path();
        let refuse = |problem: String| Err(TufError::Target { path: path.clone(), problem });
        let Some(target) = self.target(&path) else {
            return refuse(match self.releases.others.get(&path) {
                Some(problem) => format!("it is not a release of this version of Crossdock: {problem}"),
                None => "no signed metadata lists it; publish it with `crossdock release publish`".into(),
            });
        };
        let found = ReleaseName { app: target.custom.app.clone(), version: target.custom.version.clone() };
        if found != *release {
            return refuse(format!("it is signed as {found}; build and sign it anew"));
        }
        Ok(target)
    }
}

fn hold<T>(offered: Offered<T>) -> Arc<Held<T>> {
    let content = Digest::of(&offered.canonical);
    Arc::new(Held { text: offered.text, content, signed: offered.signed })
}

fn releases(targets: Option<&TargetsMeta>) -> Arc<Releases> {
    let mut all = Releases { targets: BTreeMap::new(), others: BTreeMap::new() };
    for (path, file) in targets.iter().flat_map(|meta| &meta.targets) {
        match Target::try_from(file) {
            Ok(target) => drop(all.targets.insert(path.clone(), target)),
            Err(problem) => drop(all.others.insert(path.clone(), problem)),
        }
    }
    Arc::new(all)
}

/// Whether a document (if any) is still signed by enough keys of `root`.
fn vouched<T: Role>(held: Option<&Held<T>>, root: &RootMeta) -> bool {
    held.is_none_or(|held| Offered::<T>::parse(&held.text).is_ok_and(|offered| offered.verify(root).is_ok()))
}

fn fresh<T: Role>(held: &Held<T>, now: Timestamp) -> Result<(), TufError> {
    let expired = held.signed.expires();
    if now < expired { Ok(()) } else { Err(TufError::Expired { role: T::NAME, expired, now }) }
}

fn fresh_if_there<T: Role>(held: Option<&Held<T>>, now: Timestamp) -> Result<(), TufError> {
    held.map_or(Err(TufError::Missing { role: T::NAME }), |held| fresh(held, now))
}

fn not_lower(what: &str, offered: u64, trusted: u64) -> Result<(), TufError> {
    if offered >= trusted { Ok(()) } else { Err(TufError::Rollback { what: what.into(), offered, trusted }) }
}

/// One version has one content, so that no publication silently undoes another. More signatures under
/// the same content are welcome.
fn not_forked<T: Role>(trusted: Option<&Held<T>>, offered: &Offered<T>) -> Result<(), TufError> {
    let version = offered.signed.version();
    let same = |trusted: &Held<T>| trusted.content == Digest::of(&offered.canonical);
    match trusted.filter(|trusted| trusted.signed.version() == version && !same(trusted)) {
        Some(_) => Err(TufError::Equivocation { role: T::NAME, version }),
        None => Ok(()),
    }
}

fn snapshot_of(timestamp: &TimestampMeta) -> Result<&MetaFile, TufError> {
    let problem = || "it names no snapshot.json".to_owned();
    let role = RoleName::Timestamp;
    timestamp.meta.get("snapshot.json").ok_or_else(|| TufError::Malformed { role, problem: problem() })
}

fn targets_of(snapshot: &SnapshotMeta) -> Result<&MetaFile, TufError> {
    let problem = || "it names no targets.json".to_owned();
    let role = RoleName::Snapshot;
    snapshot.meta.get("targets.json").ok_or_else(|| TufError::Malformed { role, problem: problem() })
}

/// Whether a document is the one that another names.
fn fits<T: Role>(expected: &MetaFile, text: &str, version: u64) -> Result<(), TufError> {
    let refuse = |problem| Err(TufError::MixAndMatch { role: T::NAME, problem });
    if version != expected.version {
        return refuse(format!("has version {version} where version {} is announced", expected.version));
    }
    expected.check(text).or_else(refuse)
}

/// The document that is trusted already, if it is the one that is wanted now.
fn kept<T: Role>(held: Option<&Arc<Held<T>>>, expected: &MetaFile) -> Result<Arc<Held<T>>, TufError> {
    let held = held.ok_or(TufError::Missing { role: T::NAME })?;
    fits::<T>(expected, &held.text, held.signed.version())?;
    Ok(held.clone())
}
