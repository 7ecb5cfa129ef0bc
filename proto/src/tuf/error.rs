//! Why trust metadata is refused. Each refusal names the attack or mistake, and how it is mended.

use jiff::Timestamp;

use super::schema::RoleName;

/// Why metadata or a target is refused. Nothing of what was trusted before has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TufError {
    /// Larger than its role may be.
    #[error(
        "{role} metadata is oversized: {bytes} bytes, the limit is {limit}; it is damaged or not a release repository's"
    )]
    Oversized {
        /// Which document.
        role: RoleName,
        /// Its size.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// Not metadata of its role.
    #[error("{role} metadata is malformed: {problem}; publish the repository again from an undamaged copy")]
    Malformed {
        /// Which document.
        role: RoleName,
        /// What is wrong.
        problem: String,
    },
    /// One key signed twice in one document.
    #[error(
        "{role} metadata carries a duplicate signature of key {key}; remove one, a key counts once however often it signs"
    )]
    DuplicateSignature {
        /// Which document.
        role: RoleName,
        /// The key, shortened.
        key: String,
    },
    /// Too few signatures.
    #[error(
        "{role} metadata is under its threshold: {valid} of {needed} signatures needed; let more holders of its keys run `crossdock release sign`"
    )]
    Threshold {
        /// Which document.
        role: RoleName,
        /// Distinct trusted keys with a good signature.
        valid: usize,
        /// How many the root asks for.
        needed: usize,
    },
    /// Too few signatures, and one is of a key that the root does not list for the role.
    #[error(
        "{role} metadata is signed by the unknown key {key}, and only {valid} of {needed} signatures needed are of keys that the root lists for it; sign with a listed key, or publish the root that lists this one"
    )]
    UnknownKey {
        /// Which document.
        role: RoleName,
        /// The key, shortened.
        key: String,
        /// Distinct trusted keys with a good signature.
        valid: usize,
        /// How many the root asks for.
        needed: usize,
    },
    /// Too few signatures, and one is wrong.
    #[error(
        "{role} metadata was changed after it was signed, or the signature of key {key} is wrong; {valid} of {needed} signatures needed are good. Publish an undamaged copy, or sign again"
    )]
    BadSignature {
        /// Which document.
        role: RoleName,
        /// The key, shortened.
        key: String,
        /// Distinct trusted keys with a good signature.
        valid: usize,
        /// How many the root asks for.
        needed: usize,
    },
    /// Older than what is trusted.
    #[error(
        "rollback attack refused: {what} version {offered} is offered, {trusted} is trusted already; publish the newest repository state, or a higher version"
    )]
    Rollback {
        /// Document, or the document that one names.
        what: String,
        /// Version offered.
        offered: u64,
        /// Version trusted.
        trusted: u64,
    },
    /// Two contents under one version: two copies of a repository published, or somebody forks the truth.
    #[error(
        "{role} metadata has the same version {version} as what is trusted, and other content; publish from the one repository that has the trusted state, with a higher version"
    )]
    Equivocation {
        /// Which document.
        role: RoleName,
        /// The version of both.
        version: u64,
    },
    /// A root is left out of the chain.
    #[error("root version {offered} is offered after version {trusted}; every root in between is needed, in order")]
    RootGap {
        /// Version trusted before it.
        trusted: u64,
        /// Version offered.
        offered: u64,
    },
    /// Past its time: somebody may be holding newer metadata back.
    #[error(
        "freeze attack refused: {role} metadata expired at {expired}, it is {now} here; let the pipeline run `crossdock release publish` (targets and root: sign them anew), and check this machine's clock"
    )]
    Expired {
        /// Which document.
        role: RoleName,
        /// When it expired.
        expired: Timestamp,
        /// The time it was compared with.
        now: Timestamp,
    },
    /// Documents of different publications.
    #[error("mix-and-match attack refused: {role} metadata {problem}; fetch all metadata of one publication")]
    MixAndMatch {
        /// Which document.
        role: RoleName,
        /// What does not fit.
        problem: String,
    },
    /// A document is needed and not there.
    #[error("{role} metadata is missing; nothing is published here yet, or the peer holds it back")]
    Missing {
        /// Which document.
        role: RoleName,
    },
    /// More roots than one answer may hold.
    #[error("{0} roots in one answer are more than the {max} allowed", max = super::MAX_ROOTS)]
    TooManyRoots(usize),
    /// A target is not listed or not what its path says.
    #[error("target {path} is refused: {problem}")]
    Target {
        /// Its path.
        path: String,
        /// What is wrong, and how to mend it.
        problem: String,
    },
}

impl TufError {
    /// One word for programs: the attack, where there is one (TUF 1.0, section 1.5.2).
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            TufError::Oversized { .. } => "EndlessData",
            TufError::Malformed { .. } => "Malformed",
            TufError::DuplicateSignature { .. } => "DuplicateSignature",
            TufError::Threshold { .. } => "Threshold",
            TufError::UnknownKey { .. } => "UnknownKey",
            TufError::BadSignature { .. } => "BadSignature",
            TufError::Rollback { .. } => "Rollback",
            TufError::Equivocation { .. } => "Equivocation",
            TufError::RootGap { .. } => "RootGap",
            TufError::Expired { .. } => "Freeze",
            TufError::MixAndMatch { .. } => "MixAndMatch",
            TufError::Missing { .. } => "Missing",
            TufError::TooManyRoots(_) => "EndlessData",
            TufError::Target { .. } => "NotSigned",
        }
    }
}
