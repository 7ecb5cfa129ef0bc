//! The director repository: what one node should run now, signed by the hub's online key for that node alone.
//!
//! Uptane's second repository (Uptane Standard 2.1, section 5.4). An agent runs only what both say: the release
//! repository, whose keys are offline, says what is genuine, the director what is wanted here. Stealing one of
//! them is not enough to have another byte run.
//!
//! ```text
//! release repository: root (offline) -> targets, snapshot, timestamp       the same for the fleet
//! director:           root (offline) -> targets, snapshot, timestamp       made for each node and session
//!                       targets.json: targets = the assigned releases, as the release repository lists them
//!                                     custom  = [`Directive`]: node, nonce, assignment
//! ```
//!
//! In the wire form of TUF, so that [`crate::tuf::TrustedSet`] and any other client verify it. The nonce that the
//! agent drew for the session comes back in it, so that nothing old passes for new while it lasts. Versions rise from those that
//! the agent says it holds, so a hub that was restored from a backup needs no memory of them.
//!
//! Written by the hub ([`Issue::sign`]), read by the agent ([`read`], [`agree`]). Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    link::message::{Assignment, MetadataReply},
    name::Name,
    tuf::{
        PublicKey, RoleName, SecretKey, TrustedSet, TufError,
        json::Json,
        schema::{
            MetaFile, Role, RoleKeys, RootMeta, SPEC_VERSION, SnapshotMeta, TargetFile, TargetsMeta, TimestampMeta,
        },
        sign::Document,
    },
};

/// How long what the director signs is good for, in days. It is signed anew at half of it.
pub const LIFETIME_DAYS: i64 = 7;
/// How long the director's root is good for, in days.
pub const ROOT_DAYS: i64 = 730;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 16;
/// Highest version and generation that are believed: a thief who signed the highest number there is would leave none.
pub const MAX_NUMBER: u64 = 1 << 48;
/// The member of the signed part that holds a [`Directive`].
const CUSTOM: &str = "custom";

/// What the hub orders of one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Directive {
    /// The node that it is for.
    pub node: Name,
    /// As the agent drew it for the session in which this was signed.
    pub nonce: String,
    /// When it was signed, by the hub's clock. Never believed as the time: the key is online.
    pub issued_at: Timestamp,
    /// All that the node should run.
    pub assignment: Assignment,
}

/// Why a directive is refused. Nothing of what was trusted before has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectorError {
    /// Its metadata does not verify.
    #[error("the director's {0}")]
    Metadata(#[from] TufError),
    /// It is not a directive.
    #[error("the director's targets are no directive of this version: {0}; upgrade the hub, or this agent")]
    Form(String),
    /// It was signed for another node.
    #[error("replay attack refused: the directive was signed for node {signed}, this is {here}")]
    WrongNode {
        /// For whom.
        signed: String,
        /// Who reads it.
        here: String,
    },
    /// It was signed in another session.
    #[error("replay attack refused: the directive was signed for another session; connect again")]
    WrongNonce,
    /// It is older than one that was acted on.
    #[error(
        "rollback attack refused: assignment generation {offered} is offered, {seen} was seen; let the hub state its assignment again"
    )]
    Generation {
        /// Offered.
        offered: u64,
        /// Seen.
        seen: u64,
    },
    /// Its numbers leave no room for any after them.
    #[error(
        "fast-forward attack refused: {what} {offered} is beyond any that a hub comes to; replace the online key: crossdock director rekey"
    )]
    FastForward {
        /// Version or generation.
        what: &'static str,
        /// Which.
        offered: u64,
    },
    /// There is no trusted root to verify it with.
    #[error(
        "the trusted root of the director is lost on this box ({0}), so no assignment can be verified: \
         run `edgecore join HUB --token TOKEN` again; what runs goes on"
    )]
    Lost(String),
    /// An assignment came without signatures.
    #[error(
        "the hub sent an unsigned assignment, and this box knows a director that signs; restore the hub's director folder"
    )]
    Unsigned,
}

impl DirectorError {
    /// One word for programs: the attack, where there is one.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            DirectorError::Metadata(error) => error.code(),
            DirectorError::Form(_) => "Malformed",
            DirectorError::WrongNode { .. } => "WrongNode",
            DirectorError::WrongNonce => "Replay",
            DirectorError::Generation { .. } => "Rollback",
            DirectorError::FastForward { .. } => "FastForward",
            DirectorError::Lost(_) => "DirectorLost",
            DirectorError::Unsigned => "Unsigned",
        }
    }

    /// Whether the same may be accepted once the clock of this box is right.
    #[must_use]
    pub fn may_be_the_clock(&self) -> bool {
        matches!(self, DirectorError::Metadata(TufError::Expired { .. }))
    }
}

/// What both repositories must say alike of a release, and do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disagreement {
    /// `length`, `digests`, `custom` (counter, hardware, name).
    pub field: &'static str,
}

/// The first root of a director: `root` keys may change the keys, `online` signs for the nodes.
#[must_use]
pub fn root(keys: &[PublicKey], threshold: u32, online: &PublicKey, expires: Timestamp) -> RootMeta {
    let ids = |keys: &[PublicKey]| keys.iter().map(PublicKey::id).collect::<Vec<_>>();
    let online_role = || RoleKeys { keyids: vec![online.id()], threshold: 1, other: BTreeMap::new() };
    let roles = RoleName::ALL.map(|role| {
        let keys = if role == RoleName::Root {
            RoleKeys { keyids: ids(keys), threshold, other: BTreeMap::new() }
        } else {
            online_role()
        };
        (role.as_str().to_owned(), keys)
    });
    RootMeta {
        kind: RoleName::Root.as_str().into(),
        spec_version: SPEC_VERSION.into(),
        version: 1,
        expires,
        consistent_snapshot: true,
        keys: keys.iter().chain([online]).map(|key| (key.id(), key.clone())).collect(),
        roles: roles.into(),
        other: BTreeMap::new(),
    }
}

/// Keys that sign releases in one root and for the director in the other: with one of them stolen, both are.
#[must_use]
pub fn shared_keys(release: &RootMeta, director: &RootMeta) -> BTreeSet<String> {
    let of = |root: &RootMeta, role: RoleName| -> BTreeSet<[u8; 32]> {
        let ids = root.roles.get(role.as_str()).map(|keys| keys.keyids.clone()).unwrap_or_default();
        ids.iter().filter_map(|id| root.keys.get(id)?.bytes()).collect()
    };
    let online = of(director, RoleName::Targets);
    let both: BTreeSet<[u8; 32]> = [RoleName::Root, RoleName::Targets]
        .into_iter()
        .flat_map(|role| of(release, role))
        .filter(|key| online.contains(key))
        .collect();
    let named = director.keys.values().filter(|key| key.bytes().is_some_and(|bytes| both.contains(&bytes)));
    named.map(PublicKey::id).collect()
}

/// What is to be signed for one node.
#[derive(Debug, Clone, PartialEq)]
pub struct Issue {
    /// The order.
    pub directive: Directive,
    /// The releases that it names, as the release repository lists them, by path.
    pub targets: BTreeMap<String, TargetFile>,
    /// Version of all three documents.
    pub version: u64,
    /// When they end.
    pub expires: Timestamp,
}

impl Issue {
    /// Signs targets, snapshot and timestamp. Roots are for the caller to add.
    ///
    /// # Errors
    /// When the directive has no form without fractions; none is known.
    pub fn sign(&self, key: &SecretKey) -> Result<MetadataReply, TufError> {
        let malformed = |problem| TufError::Malformed { role: RoleName::Targets, problem };
        let custom = Json::of(&self.directive).map_err(malformed)?;
        let (version, expires) = (self.version, self.expires);
        let targets = signed(
            key,
            &TargetsMeta {
                kind: RoleName::Targets.as_str().into(),
                spec_version: SPEC_VERSION.into(),
                version,
                expires,
                targets: self.targets.clone(),
                other: [(CUSTOM.to_owned(), custom)].into(),
            },
        )?;
        let snapshot = signed(
            key,
            &SnapshotMeta {
                kind: RoleName::Snapshot.as_str().into(),
                spec_version: SPEC_VERSION.into(),
                version,
                expires,
                meta: [("targets.json".to_owned(), MetaFile::of(version, &targets))].into(),
                other: BTreeMap::new(),
            },
        )?;
        let timestamp = signed(
            key,
            &TimestampMeta {
                kind: RoleName::Timestamp.as_str().into(),
                spec_version: SPEC_VERSION.into(),
                version,
                expires,
                meta: [("snapshot.json".to_owned(), MetaFile::of(version, &snapshot))].into(),
                other: BTreeMap::new(),
            },
        )?;
        Ok(MetadataReply {
            roots: vec![],
            timestamp: Some(timestamp),
            snapshot: Some(snapshot),
            targets: Some(targets),
        })
    }
}

fn signed<T: Role>(key: &SecretKey, content: &T) -> Result<String, TufError> {
    let mut document = Document::new(content)?;
    document.sign(key);
    Ok(document.text())
}

/// The directive of a verified set; `None` before the first.
///
/// # Errors
/// [`DirectorError::Form`].
pub fn read(set: &TrustedSet) -> Result<Option<Directive>, DirectorError> {
    let Some(targets) = set.targets_meta() else { return Ok(None) };
    let custom = targets.other.get(CUSTOM).ok_or_else(|| DirectorError::Form("the part custom is missing".into()))?;
    custom.to().map(Some).map_err(DirectorError::Form)
}

/// The directive of a set that was just updated, if it is for `node` in the session of `nonce` and its generation
/// is not below `seen`.
///
/// # Errors
/// The attack that it would be.
pub fn admit(set: &TrustedSet, node: &Name, nonce: &str, seen: u64) -> Result<Directive, DirectorError> {
    let directive = read(set)?.ok_or(TufError::Missing { role: RoleName::Targets })?;
    if directive.node != *node {
        return Err(DirectorError::WrongNode { signed: directive.node.to_string(), here: node.to_string() });
    }
    if directive.nonce != nonce {
        return Err(DirectorError::WrongNonce);
    }
    let versions = set.versions();
    let offered = directive.assignment.generation;
    for (what, offered) in
        [("version", versions.timestamp.max(versions.snapshot).max(versions.targets)), ("generation", offered)]
    {
        if offered > MAX_NUMBER {
            return Err(DirectorError::FastForward { what, offered });
        }
    }
    if offered < seen {
        return Err(DirectorError::Generation { offered, seen });
    }
    Ok(directive)
}

/// Whether both repositories say the same of a release: length, every digest, and the custom part, which has the
/// release counter, the hardware classes and the name.
///
/// # Errors
/// The first that differs.
pub fn agree(director: &TargetFile, release: &TargetFile) -> Result<(), Disagreement> {
    if director.length != release.length {
        return Err(Disagreement { field: "length" });
    }
    if director.hashes != release.hashes {
        return Err(Disagreement { field: "digests" });
    }
    if director.custom != release.custom {
        return Err(Disagreement { field: "custom" });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
