//! The four kinds of metadata, as TUF 1.0 writes them, and the custom part that is ours.
//!
//! Fields that we do not know are tolerated: they are kept when a document is edited, and they are
//! part of what is signed. Delegations are not used, so targets that only a delegation lists do not exist.

use std::{collections::BTreeMap, collections::BTreeSet, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256, Sha512};

use super::{
    error::TufError,
    json::Json,
    key::{PublicKey, short},
};
use crate::{
    digest::Digest,
    name::{Name, Version},
};

/// Version of the specification that we write.
pub const SPEC_VERSION: &str = "1.0.31";

/// A top-level role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RoleName {
    /// Says which keys speak for which role.
    Root,
    /// Says that this is the newest publication.
    Timestamp,
    /// Says which documents make a publication.
    Snapshot,
    /// Says which releases exist.
    Targets,
}

impl RoleName {
    /// All of them, in the order in which a client looks at them.
    pub const ALL: [RoleName; 4] = [RoleName::Root, RoleName::Timestamp, RoleName::Snapshot, RoleName::Targets];

    /// The word that metadata uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            RoleName::Root => "root",
            RoleName::Timestamp => "timestamp",
            RoleName::Snapshot => "snapshot",
            RoleName::Targets => "targets",
        }
    }

    /// Largest document of the role, in bytes.
    #[must_use]
    pub const fn limit_bytes(self) -> usize {
        match self {
            RoleName::Root => 512 << 10,
            RoleName::Timestamp => 16 << 10,
            RoleName::Snapshot => 512 << 10,
            RoleName::Targets => 8 << 20,
        }
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What every kind of metadata has.
pub trait Role: Clone + fmt::Debug + Serialize + DeserializeOwned {
    /// Which kind it is.
    const NAME: RoleName;
    /// `_type`, `spec_version`.
    fn header(&self) -> (&str, &str);
    /// Its version, from 1.
    fn version(&self) -> u64;
    /// When it ends.
    fn expires(&self) -> Timestamp;
    /// Checks what the types do not.
    ///
    /// # Errors
    /// What is wrong, for people.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

macro_rules! role {
    ($($(#[$doc:meta])* pub struct $name:ident as $role:ident { $($body:tt)* } check($self:ident) $check:block)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $name {
            /// The role's word.
            #[serde(rename = "_type")]
            pub kind: String,
            /// Version of the specification.
            pub spec_version: String,
            /// Rises with every change.
            pub version: u64,
            /// When it ends.
            pub expires: Timestamp,
            $($body)*
            /// What newer writers added.
            #[serde(flatten)]
            pub other: BTreeMap<String, Json>,
        }
        impl Role for $name {
            const NAME: RoleName = RoleName::$role;
            fn header(&self) -> (&str, &str) {
                (&self.kind, &self.spec_version)
            }
            fn version(&self) -> u64 {
                self.version
            }
            fn expires(&self) -> Timestamp {
                self.expires
            }
            fn check(&$self) -> Result<(), String> $check
        }
    )*};
}

role! {
    /// Which keys speak for which role.
    pub struct RootMeta as Root {
        /// Whether files are named by version and digest; always, when we write.
        #[serde(default)]
        pub consistent_snapshot: bool,
        /// Keys by ID.
        pub keys: BTreeMap<String, PublicKey>,
        /// Keys and thresholds of the roles.
        pub roles: BTreeMap<String, RoleKeys>,
    }
    check(self) {
        // An ID that is not of its key would let a key be swapped where people compare IDs.
        let wrong = |(id, key): &(&String, &PublicKey)| key.is_ours() && **id != key.id();
        if let Some((id, key)) = self.keys.iter().find(wrong) {
            return Err(format!("the key ID {} is not of the key beside it, whose ID is {}", short(id), short(&key.id())));
        }
        for name in RoleName::ALL {
            let role = self.roles.get(name.as_str()).ok_or_else(|| format!("it lists no keys for the role {name}"))?;
            if role.threshold == 0 {
                return Err(format!("the threshold of the role {name} is 0"));
            }
            let mut seen = BTreeSet::new();
            if let Some(twice) = role.keyids.iter().find(|id| !seen.insert(id.as_str())) {
                return Err(format!("the role {name} lists the key {} twice", short(twice)));
            }
        }
        Ok(())
    }

    /// The newest publication.
    pub struct TimestampMeta as Timestamp {
        /// The snapshot, under `snapshot.json`.
        pub meta: BTreeMap<String, MetaFile>,
    }
    check(self) {
        self.meta.get("snapshot.json").map(|_| ()).ok_or_else(|| "it names no snapshot.json".into())
    }

    /// The documents of a publication.
    pub struct SnapshotMeta as Snapshot {
        /// Targets metadata, under `targets.json`.
        pub meta: BTreeMap<String, MetaFile>,
    }
    check(self) {
        self.meta.get("targets.json").map(|_| ()).ok_or_else(|| "it names no targets.json".into())
    }

    /// The releases.
    pub struct TargetsMeta as Targets {
        /// Targets by path.
        pub targets: BTreeMap<String, TargetFile>,
    }
    check(self) {
        Ok(())
    }
}

/// Keys and threshold of a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleKeys {
    /// IDs of the keys that may sign.
    pub keyids: Vec<String>,
    /// How many of them must.
    pub threshold: u32,
    /// What newer writers added.
    #[serde(flatten)]
    pub other: BTreeMap<String, Json>,
}

impl RoleKeys {
    /// So many of these keys.
    #[must_use]
    pub fn new(keyids: Vec<String>, threshold: u32) -> RoleKeys {
        RoleKeys { keyids, threshold, other: BTreeMap::new() }
    }
}

/// What one document says of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaFile {
    /// Its version.
    pub version: u64,
    /// Its length in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// Its digests in hex, by algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes: Option<BTreeMap<String, String>>,
}

impl MetaFile {
    /// Describes a document.
    #[must_use]
    pub fn of(version: u64, text: &str) -> MetaFile {
        let hashes = [("sha256".to_owned(), Digest::of(text.as_bytes()).hex())].into();
        MetaFile { version, length: Some(text.len() as u64), hashes: Some(hashes) }
    }

    /// Whether a document is the one described, version aside.
    ///
    /// # Errors
    /// What differs, for people.
    pub fn check(&self, text: &str) -> Result<(), String> {
        if let Some(length) = self.length.filter(|length| *length != text.len() as u64) {
            return Err(format!("has {} bytes where {length} are announced", text.len()));
        }
        for (algorithm, expected) in self.hashes.iter().flatten() {
            let found = match algorithm.as_str() {
                "sha256" => data_encoding::HEXLOWER.encode(&Sha256::digest(text.as_bytes())),
                "sha512" => data_encoding::HEXLOWER.encode(&Sha512::digest(text.as_bytes())),
                other => {
                    return Err(format!("is announced with the digest algorithm {other:?}, which is unknown here"));
                }
            };
            if !expected.eq_ignore_ascii_case(&found) {
                return Err(format!("has another {algorithm} than announced"));
            }
        }
        Ok(())
    }
}

/// A target as the document has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetFile {
    /// Length in bytes.
    pub length: u64,
    /// Digests in hex, by algorithm.
    pub hashes: BTreeMap<String, String>,
    /// What its writer adds: [`TargetCustom`] for ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<Json>,
    /// What newer writers added.
    #[serde(flatten)]
    pub other: BTreeMap<String, Json>,
}

/// The signed facts of a release, besides length and digest of its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetCustom {
    /// The app.
    pub app: Name,
    /// Its version.
    pub version: Version,
    /// Counts releases of the app: a node refuses a lower one than it trusts.
    pub release_counter: u64,
    /// Hardware classes it may run on; empty means any.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub hardware: BTreeSet<String>,
    /// When it was signed, by the signers' clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<Timestamp>,
}

/// A release's manifest, as trusted metadata names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Length of the manifest in bytes.
    pub length: u64,
    /// SHA-256 of the manifest.
    pub digest: Digest,
    /// App, version, counter, hardware.
    pub custom: TargetCustom,
}

impl Target {
    /// As the document writes it.
    ///
    /// # Errors
    /// None that is known; serialising is fallible by its type.
    pub fn to_file(&self) -> Result<TargetFile, String> {
        Ok(TargetFile {
            length: self.length,
            hashes: [("sha256".to_owned(), self.digest.hex())].into(),
            custom: Some(Json::of(&self.custom)?),
            other: BTreeMap::new(),
        })
    }
}

impl TryFrom<&TargetFile> for Target {
    type Error = String;
    fn try_from(file: &TargetFile) -> Result<Target, String> {
        let hex = file.hashes.get("sha256").ok_or("it has no sha256")?;
        let digest = Digest::from_hex(&hex.to_ascii_lowercase()).map_err(|e| e.to_string())?;
        let custom = file.custom.as_ref().ok_or("its custom part, which names app and version, is missing")?;
        Ok(Target { length: file.length, digest, custom: custom.to()? })
    }
}

/// A signature of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// ID of the key.
    pub keyid: String,
    /// The signature in hex.
    pub sig: String,
}

/// A document that was read and checked, but whose signatures were not.
#[derive(Debug, Clone)]
pub struct Offered<T> {
    /// The document to the byte.
    pub text: String,
    /// What is signed.
    pub canonical: Vec<u8>,
    /// The signatures, each of another key ID.
    pub signatures: Vec<Signature>,
    /// The content.
    pub signed: T,
}

impl<T: Role> Offered<T> {
    /// Reads a document of the role `T`: size, JSON, type, specification, fields.
    ///
    /// # Errors
    /// [`TufError::Oversized`], [`TufError::Malformed`] or [`TufError::DuplicateSignature`].
    pub fn parse(text: &str) -> Result<Offered<T>, TufError> {
        let role = T::NAME;
        let malformed = |problem: String| TufError::Malformed { role, problem };
        if text.len() > role.limit_bytes() {
            return Err(TufError::Oversized { role, bytes: text.len(), limit: role.limit_bytes() });
        }
        let json = Json::parse(text).map_err(malformed)?;
        let signed = json.get("signed").ok_or_else(|| malformed("the field \"signed\" is missing".into()))?;
        let signatures =
            json.get("signatures").ok_or_else(|| malformed("the field \"signatures\" is missing".into()))?;
        let signatures: Vec<Signature> = signatures.to().map_err(malformed)?;
        let mut seen = BTreeSet::new();
        if let Some(twice) = signatures.iter().find(|s| !seen.insert(s.keyid.as_str())) {
            return Err(TufError::DuplicateSignature { role, key: short(&twice.keyid) });
        }
        let typed: T = signed.to().map_err(malformed)?;
        let (kind, spec) = typed.header();
        if kind != role.as_str() {
            return Err(malformed(format!("it is of type {:?}", short(kind))));
        }
        if spec.split('.').next() != Some("1") {
            return Err(malformed(format!("it follows TUF {:?}, only version 1 is understood", short(spec))));
        }
        if typed.version() == 0 {
            return Err(malformed("its version is 0, versions start at 1".into()));
        }
        typed.check().map_err(malformed)?;
        Ok(Offered { text: text.to_owned(), canonical: signed.canonical(), signatures, signed: typed })
    }

    /// Counts the signatures of keys that `root` lists for the role.
    ///
    /// Counts distinct keys, not key IDs: one key under two IDs counts once.
    #[must_use]
    pub fn tally(&self, root: &RootMeta) -> Tally {
        let keys = root.roles.get(T::NAME.as_str());
        let (mut good, mut tally) = (BTreeSet::new(), Tally::default());
        for signature in &self.signatures {
            let listed = keys.is_some_and(|keys| keys.keyids.contains(&signature.keyid));
            match root.keys.get(&signature.keyid).filter(|_| listed) {
                None => tally.unknown.push(signature.keyid.clone()),
                Some(key) if key.verifies(&self.canonical, &signature.sig) => good.extend(key.identity()),
                Some(_) => tally.bad.push(signature.keyid.clone()),
            }
        }
        tally.valid = good.len();
        tally.needed = keys.map_or(usize::MAX, |keys| usize::try_from(keys.threshold).unwrap_or(usize::MAX).max(1));
        tally
    }

    /// Checks the signatures against the keys and the threshold that `root` lists for the role.
    ///
    /// # Errors
    /// [`TufError::Threshold`], or more exactly [`TufError::UnknownKey`] or [`TufError::BadSignature`].
    pub fn verify(&self, root: &RootMeta) -> Result<(), TufError> {
        let (role, tally) = (T::NAME, self.tally(root));
        let Tally { valid, needed, .. } = tally;
        if tally.is_enough() {
            return Ok(());
        }
        Err(match (tally.bad.first(), tally.unknown.first()) {
            (Some(key), _) => TufError::BadSignature { role, key: short(key), valid, needed },
            (None, Some(key)) => TufError::UnknownKey { role, key: short(key), valid, needed },
            (None, None) => TufError::Threshold { role, valid, needed },
        })
    }
}

/// Signatures of a document, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Distinct listed keys with a good signature.
    pub valid: usize,
    /// How many the root asks for.
    pub needed: usize,
    /// Key IDs that the root does not list for the role.
    pub unknown: Vec<String>,
    /// Listed key IDs whose signature is wrong.
    pub bad: Vec<String>,
}

impl Tally {
    /// Whether the threshold is met.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        self.valid >= self.needed
    }
}
