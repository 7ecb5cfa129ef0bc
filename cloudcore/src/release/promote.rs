//! Promotion: the very same signed release at another hub, such as production after the sandbox.
//!
//! To TUF all releases of an owner are one repository: a root, and a timestamp that names a snapshot that names
//! the targets, each to the byte. One release cannot be cut out of it without signing anew, and nothing here can
//! sign. So two hubs of one owner serve the same repository, the sandbox ahead of production, and promotion brings
//! the target hub to the metadata of the source hub:
//!
//! ```text
//! source: root 1..n, timestamp 9, snapshot 7, targets 7 (app@1, app@2, web@3)
//! target: root 1..n, timestamp 4, snapshot 3, targets 3 (app@1)         -> 9, 7, 7
//! ```
//!
//! What else becomes visible: a hub takes metadata only when it holds all that the metadata lists, so every release
//! that the source lists and the target does not comes along (`web@3` above). It can be listed and rolled out there
//! from then on; nothing runs anywhere before somebody starts a rollout. Content that the target lists already is
//! not looked at again, but for that of the release that is promoted.
//!
//! [`plan`] decides, with the core that agents verify with ([`TrustedSet`]) and from the target's own trust root,
//! so a source hub in the wrong hands can offer nothing that the target's agents would not take anyway. It is a
//! pure function; `crate::cli::promote` asks the hubs, copies and publishes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use proto::{
    digest::Digest,
    link::message::{MetadataReply, MetadataRequest},
    name::ReleaseName,
    tuf::{
        RoleName, Target, TrustedSet, TufError,
        schema::{Offered, Role, RootMeta, SnapshotMeta, TargetsMeta, TimestampMeta},
    },
};

/// What a promotion does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The source's metadata, each document to the byte: what the target hub gets.
    pub reply: MetadataReply,
    /// The manifest of the release that is promoted.
    pub target: Target,
    /// What the target hub serves now; all 0 when it serves nothing.
    pub before: MetadataRequest,
    /// What it serves afterwards.
    pub after: MetadataRequest,
    /// Releases whose content the target hub must hold: the one that is promoted, and those that are new to it.
    pub needed: BTreeMap<ReleaseName, Target>,
    /// Those of them that come along because the metadata lists them.
    pub along: Vec<ReleaseName>,
    /// Releases that the target lists and the source no longer does.
    pub withdrawn: Vec<ReleaseName>,
    /// When the first of the documents expires.
    pub expires: Option<Timestamp>,
}

/// Why a release is not promoted. Nothing was changed at either hub.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    /// Nothing was published to the source.
    #[error("the source hub has no release metadata; publish to it first: crossdock release publish")]
    Empty,
    /// The source does not list the release.
    #[error("the source hub does not offer {0}: {1}")]
    NotListed(ReleaseName, TufError),
    /// The target trusts nobody yet.
    #[error(
        "the target hub has no trust root yet, and whom it trusts is not for another hub to say; name the repository's first root with --root REPO/metadata/1.root.json, or publish there once from the repository"
    )]
    NoRoot,
    /// The two trust other people.
    #[error(
        "{what} is {theirs}, the source hub's is {ours}: they serve repositories of different origin, and releases do not pass from one to the other; publish to the target from the repository that it trusts"
    )]
    OtherRoot {
        /// Whose root differs.
        what: &'static str,
        /// Its digest, shortened.
        theirs: String,
        /// That of the source, shortened.
        ours: String,
    },
    /// The target has what the source lacks.
    #[error(
        "the target hub is ahead: it serves {role} version {target}, the source hub {source_version}; publish to the source hub first (crossdock --context SOURCE release publish), then promote"
    )]
    Ahead {
        /// Which document.
        role: RoleName,
        /// Version at the source.
        source_version: u64,
        /// Version at the target.
        target: u64,
    },
    /// Both went on from a common past, each in its own way.
    #[error(
        "the hubs have forked: both serve {role} version {version}, with different content, so two copies of the repository were published; publish the copy that is right to both, with a higher version"
    )]
    Forked {
        /// Which document.
        role: RoleName,
        /// The version of both.
        version: u64,
    },
    /// One name stands for two contents.
    #[error(
        "the hubs have forked: {release} is {theirs} at the target hub and {ours} at the source hub; a version is never reused: release it under another one"
    )]
    Changed {
        /// Which release.
        release: ReleaseName,
        /// Its manifest at the target, shortened.
        theirs: String,
        /// Its manifest at the source, shortened.
        ours: String,
    },
    /// Releases would vanish from the target.
    #[error(
        "the target hub lists {0}, which the source hub does not: if they were withdrawn on purpose, say --withdraw; else two copies of the repository were published, and this would undo what one of them did"
    )]
    Withdrawn(String),
    /// The source's metadata does not verify.
    #[error("the source hub's metadata is refused: {0}")]
    Source(TufError),
    /// The target's metadata does not verify.
    #[error("what the target hub serves does not verify: {0}")]
    Target(TufError),
    /// Agents of the target would refuse it.
    #[error("the target hub and its agents would refuse the source hub's metadata: {0}")]
    Update(TufError),
}

/// What the caller allows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowed<'a> {
    /// First root that a target without one may begin with, to the byte.
    pub first_root: Option<&'a str>,
    /// Whether releases may vanish from the target.
    pub withdraw: bool,
}

/// Decides what brings `release` from a hub that serves `source` to one that serves `target`.
///
/// # Errors
/// The first reason against it, with its mend.
pub fn plan(
    release: &ReleaseName,
    source: &MetadataReply,
    target: &MetadataReply,
    allowed: Allowed<'_>,
    now: Timestamp,
) -> Result<Plan, PromoteError> {
    let first = source.roots.first().ok_or(PromoteError::Empty)?;
    let theirs = trusted_by(target, allowed.first_root, first)?;
    let ours = TrustedSet::new(first).and_then(|set| set.update(source, now)).map_err(PromoteError::Source)?;
    not_ahead(&ours, source, &theirs, target)?;
    let next = theirs.update(source, now).map_err(PromoteError::Update)?;

    let manifest = next.manifest_target(release).map_err(|e| PromoteError::NotListed(release.clone(), e))?.clone();
    let mut needed = BTreeMap::from([(release.clone(), manifest.clone())]);
    for (path, new) in next.targets() {
        match theirs.target(path) {
            Some(old) if old.digest != new.digest => {
                let [theirs, ours] = [old, new].map(|target| target.digest.short());
                return Err(PromoteError::Changed { release: name_of(new), theirs, ours });
            }
            Some(_) => {}
            None => drop(needed.insert(name_of(new), new.clone())),
        }
    }
    let gone = theirs.targets().iter().filter(|(path, _)| next.target(path).is_none());
    let withdrawn: Vec<ReleaseName> = gone.map(|(_, target)| name_of(target)).collect();
    if !withdrawn.is_empty() && !allowed.withdraw {
        return Err(PromoteError::Withdrawn(names(&withdrawn)));
    }
    Ok(Plan {
        reply: source.clone(),
        target: manifest,
        before: if target.roots.is_empty() { MetadataRequest::default() } else { theirs.versions() },
        after: next.versions(),
        along: needed.keys().filter(|name| *name != release).cloned().collect(),
        needed,
        withdrawn,
        expires: next.expiries().into_values().min(),
    })
}

/// Names, for people; the first ten of many.
#[must_use]
pub fn names(releases: &[ReleaseName]) -> String {
    const NAMED: usize = 10;
    let named: Vec<String> = releases.iter().take(NAMED).map(ToString::to_string).collect();
    match releases.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn name_of(target: &Target) -> ReleaseName {
    ReleaseName { app: target.custom.app.clone(), version: target.custom.version.clone() }
}

/// What the target hub and its agents trust before the promotion; `ours` is the first root of the source.
fn trusted_by(target: &MetadataReply, pinned: Option<&str>, ours: &str) -> Result<TrustedSet, PromoteError> {
    let other = |what, theirs: &str| {
        let [theirs, ours] = [theirs, ours].map(|root| Digest::of(root.as_bytes()).short());
        PromoteError::OtherRoot { what, theirs, ours }
    };
    let Some(theirs) = target.roots.first() else {
        return match pinned {
            None => Err(PromoteError::NoRoot),
            Some(root) if same::<RootMeta>(root, ours) => TrustedSet::new(root).map_err(PromoteError::Target),
            Some(root) => Err(other("the root given with --root", root)),
        };
    };
    if !same::<RootMeta>(theirs, ours) {
        return Err(other("the target hub's trust root", theirs));
    }
    // What it serves may have expired meanwhile: that is mended by this very promotion.
    TrustedSet::new(theirs).and_then(|set| set.update(target, Timestamp::MIN)).map_err(PromoteError::Target)
}

/// Finds what [`TrustedSet::update`] would refuse as an attack, to say it in the words of who has two hubs.
fn not_ahead(
    ours: &TrustedSet,
    source: &MetadataReply,
    theirs: &TrustedSet,
    target: &MetadataReply,
) -> Result<(), PromoteError> {
    for (version, (one, other)) in (1..).zip(source.roots.iter().zip(&target.roots)) {
        if !same::<RootMeta>(one, other) {
            return Err(PromoteError::Forked { role: RoleName::Root, version });
        }
    }
    let (one, other) = (ours.versions(), theirs.versions());
    let compared = |role, version, target, fork: bool| {
        if target > version {
            return Err(PromoteError::Ahead { role, source_version: version, target });
        }
        if target == version && fork { Err(PromoteError::Forked { role, version }) } else { Ok(()) }
    };
    compared(RoleName::Root, one.root, other.root, false)?;
    if one.root != other.root {
        return Ok(()); // a new root may take back what the keys before it signed: the update knows
    }
    let (a, b) = (ours.documents(), theirs.documents());
    let targets = differ::<TargetsMeta>(a.targets.as_deref(), b.targets.as_deref());
    compared(RoleName::Targets, one.targets, other.targets, targets)?;
    let snapshot = differ::<SnapshotMeta>(a.snapshot.as_deref(), b.snapshot.as_deref());
    compared(RoleName::Snapshot, one.snapshot, other.snapshot, snapshot)?;
    let timestamp = differ::<TimestampMeta>(a.timestamp.as_deref(), b.timestamp.as_deref());
    compared(RoleName::Timestamp, one.timestamp, other.timestamp, timestamp)
}

fn differ<T: Role>(one: Option<&str>, other: Option<&str>) -> bool {
    one.zip(other).is_some_and(|(one, other)| !same::<T>(one, other))
}

/// Whether two documents sign the same. Signatures may be added later.
fn same<T: Role>(one: &str, other: &str) -> bool {
    let content = |text: &str| Offered::<T>::parse(text).ok().map(|offered| offered.canonical);
    one == other || content(one).is_some_and(|one| content(other) == Some(one))
}
