//! The Update Framework (TUF 1.0): which releases are genuine and new, whoever holds the network or the hub.
//!
//! Sans-I/O: documents come in as text, time as an argument. ed25519 signatures, SHA-256 digests, the
//! four top-level roles; no delegations. Every document is in the wire form of TUF, so python-tuf and
//! other clients verify what we write and the other way round.
//!
//! | module | what it holds |
//! |---|---|
//! | [`json`] | strict reading, canonical form |
//! | [`key`] | keys and their IDs |
//! | [`schema`] | the four kinds of metadata, thresholds |
//! | [`trusted`] | the trusted set: the specification's client workflow, step by step |
//! | [`sign`] | writing and signing documents |
//! | [`error`] | refusals, each named after the attack |
//!
//! Absent on purpose: delegations, RSA and ECDSA keys (listed ones are tolerated and never count), mirrors.

pub mod error;
#[cfg(feature = "conformance")]
mod foreign;
pub mod json;
pub mod key;
pub mod schema;
pub mod sign;
pub mod trusted;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use self::{
    error::TufError,
    key::{PublicKey, SecretKey},
    schema::{RoleName, Target, TargetCustom},
    sign::{Signer, SignerError},
    trusted::TrustedSet,
};

/// Most roots in one answer.
pub const MAX_ROOTS: usize = 256;

/// Trusted documents to the byte, as hub and agent persist them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Documents {
    /// `root.json`, the newest.
    pub root: String,
    /// `timestamp.json`.
    #[serde(default)]
    pub timestamp: Option<String>,
    /// `snapshot.json`.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// `targets.json`.
    #[serde(default)]
    pub targets: Option<String>,
}
