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
//! | [`tree`] | walks the files, refusing what a release must not hold |
//! | [`repository`] | the folder with metadata, staged changes and blobs |
//! | [`describe`] | what a staged change adds and removes, in words |
//! | [`keys`] | key files |
//! | [`publish`] | to a hub, through its API |
//! | [`promote`] | from one hub to another: what that takes, decided without either |
//! | [`staging`] | staged changes, which collect signatures |
//! | [`verify`] | the repository checked without a hub |
//!
//! Plain functions over a folder, time and keys as arguments: the command line, the simulator and tests
//! use them alike.

pub mod build;
pub mod describe;
pub mod keys;
pub mod promote;
pub mod publish;
pub mod repository;
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
    tuf::{TufError, key::KeyError},
};

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
    /// A key could not be written.
    #[error(transparent)]
    KeyForm(#[from] KeyError),
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
