//! The release engineer's side: build, sign, publish. Knows no hub's inside.
//!
//! ```text
//! release.yaml + files --build--> manifest + blobs --Repository::add--> staged/targets.json
//!    staged/*.json --Repository::sign, by each signer on their machine--> enough signatures
//!    --Repository::finish, by the pipeline--> metadata/ --publish::upload--> hub
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`build`] | `release.yaml` and a folder become a manifest and blobs |
//! | [`image`] | a container image becomes files of the release |
//! | [`tree`] | walks the files, refusing what a release must not hold |
//! | [`rotate`] | the next root, decided: keys added, taken away, revoked; thresholds |
//! | [`chain`] | roots in a folder, staged and finished; with releases beside them or without |
//! | [`ceremony`] | who still must sign |
//! | [`bundle`] | a staged change as one file, and signatures that come back |
//! | [`drill`] | what to do when a key is lost or stolen, step by step |
//! | [`repository`] | the folder with metadata, staged changes and blobs |
//! | [`describe`] | what a staged change adds and removes, in words |
//! | [`keys`], [`sealed`] | key files, and their encryption |
//! | [`secrets`] | secrets sealed to nodes: whose key is believed, what a release holds for whom |
//! | [`signer`] | keys by reference, wherever their secret half is |
//! | [`provenance`] | who built a release and from what, and what is in it: read, and compared with its files |
//! | [`publish`] | to a hub, through its API |
//! | [`promote`] | from one hub to another: what that takes, decided without either |
//! | [`staging`] | staged changes, which collect signatures |
//! | [`verify`] | the repository checked without a hub |
//!
//! Plain functions over a folder, time and keys as arguments: the command line, the simulator and tests
//! use them alike.

pub mod build;
pub mod bundle;
pub mod ceremony;
pub mod chain;
pub mod describe;
pub mod drill;
pub mod image;
pub mod keys;
pub mod promote;
pub mod provenance;
pub mod publish;
pub mod repository;
pub mod rotate;
pub mod sealed;
pub mod secrets;
pub mod signer;
pub mod staging;
pub mod tree;
pub mod verify;

#[cfg(test)]
mod tests;

use std::{io, path::PathBuf};

use proto::{
    durable::DurableError,
    name::ReleaseName,
    release::ManifestError,
    tuf::{SignerError, TufError, key::KeyError},
};
use rotate::RotateError;
use sealed::SealError;

pub use self::{
    build::{Built, build},
    repository::{Publication, Repository, Setup},
};

/// Why a release could not be built, signed or published.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The file system refused.
    #[error("could not {attempt} {}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file could not be replaced.
    #[error("could not keep the repository")]
    Durable(#[from] DurableError),
    /// `release.yaml` is wrong.
    #[error("{} is refused: {problem}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// What is wrong and how to mend it.
        problem: String,
    },
    /// A file must not be in a release.
    #[error("{} cannot be released: {problem}", path.display())]
    Tree {
        /// The file.
        path: PathBuf,
        /// What is wrong and how to mend it.
        problem: String,
    },
    /// The release breaks a rule.
    #[error("the release is refused")]
    Manifest(#[from] ManifestError),
    /// A command could not run.
    #[error("the {what} {command:?} would not run: {problem}")]
    Command {
        /// Which command.
        what: String,
        /// The command.
        command: String,
        /// What is wrong and how to mend it.
        problem: String,
    },
    /// A published version is never changed.
    #[error(
        "{release} is published already with another content (manifest {published}, now {built}); releases are immutable: raise the version in release.yaml"
    )]
    Immutable {
        /// The release.
        release: ReleaseName,
        /// Digest of the published manifest, shortened.
        published: String,
        /// Digest of the new manifest, shortened.
        built: String,
    },
    /// The repository is not in a state for this.
    #[error("repository {}: {problem}", dir.display())]
    Repository {
        /// Its folder.
        dir: PathBuf,
        /// What is wrong and how to mend it.
        problem: String,
    },
    /// The hub serves what another copy of the repository published.
    #[error(
        "repository {}: the hub serves targets version {version} and {problem}; publish from the copy that was published last, or bring its metadata/ and targets/ here, then build and sign anew",
        dir.display()
    )]
    Forked {
        /// Its folder.
        dir: PathBuf,
        /// What the hub serves.
        version: u64,
        /// How that differs from here.
        problem: &'static str,
    },
    /// The keys cannot change in this way.
    #[error("the root cannot change in this way")]
    Rotate(#[from] RotateError),
    /// Metadata is not sound.
    #[error("could not {attempt}")]
    Trust {
        /// What was attempted.
        attempt: &'static str,
        /// Why not.
        source: TufError,
    },
    /// A key file is not usable.
    #[error("key file {} is refused: {problem}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong and how to mend it.
        problem: String,
    },
    /// A key file is encrypted, and its passphrase was not given, or was another one.
    #[error("could not open the key file {}: {problem}", path.display())]
    Passphrase {
        /// The file.
        path: PathBuf,
        /// What is wrong and how to mend it.
        problem: String,
    },
    /// A key could not be written.
    #[error(transparent)]
    KeyForm(#[from] KeyError),
    /// A key could not be encrypted.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The ssh-agent is of no use.
    #[error("ssh-agent: could not {attempt}: {problem}")]
    Agent {
        /// What was attempted.
        attempt: &'static str,
        /// What is wrong and how to mend it.
        problem: String,
    },
    /// A token is of no use.
    #[error("could not use the key {}: {problem}", key.escape_debug())]
    Token {
        /// Its URI.
        key: String,
        /// What is wrong and how to mend it.
        problem: String,
    },
    /// What holds a key did not sign.
    #[error(transparent)]
    Signer(#[from] SignerError),
}

fn io_error(attempt: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> ReleaseError {
    let path = path.to_owned();
    move |source| ReleaseError::Io { attempt, path, source }
}

fn trust_error(attempt: &'static str) -> impl FnOnce(TufError) -> ReleaseError {
    move |source| ReleaseError::Trust { attempt, source }
}

/// Reads a text file of at most `limit` bytes.
fn read_text(path: &std::path::Path, limit: u64) -> Result<String, ReleaseError> {
    crate::bounded::read_file(path, limit).map_err(io_error("read", path))
}
