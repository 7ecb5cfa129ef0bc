//! What a release contains: the manifest that TUF signs for, and the workload that it describes.
//!
//! A release is a tree of files, each named by its digest, and a workload that runs (or none). Its
//! [`Manifest`] is the TUF target `<app>/<version>.json`; everything else follows from the manifest's digest.
//! [`ReleaseYaml`] is what an engineer writes; `crossdock release build` turns it into a manifest and blobs.
//!
//! Unknown fields are skipped everywhere, so older agents read newer manifests; what they must not
//! skip is guarded by [`Manifest::min_agent`].
//!
//! `manifest` holds the manifest, its paths and its rules, `workload` the process with its limits and probes,
//! [`container`] what is different for a container, `gpus` the GPUs it needs, `exec` who may run commands in it, `hooks`
//! the commands around an update, [`replicas`] how many instances run, [`update`] how one release follows another,
//! [`uses`] what it uses of other apps' files; all of it is re-exported here.

pub mod container;
mod exec;
mod gpus;
mod hooks;
mod manifest;
pub mod replicas;
pub mod update;
pub mod uses;
mod workload;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::name::{Name, Version};

pub use self::{
    container::{Container, Image},
    exec::Exec,
    gpus::{DriverVersions, Gpus},
    hooks::{Hook, Hooks, MAX_HOOK_TIMEOUT, PUT_OFF},
    manifest::{Attachment, FileEntry, Manifest, ManifestError, TreePath},
    replicas::{Quantity, Replicas},
    update::{Strategy, Update},
    workload::{ExecProbe, HttpProbe, Limits, Port, Probe, Probes, RestartPolicy, Secret, TcpProbe, Workload},
};

/// Most files of one release.
pub const MAX_FILES: usize = 100_000;
/// Longest path of a file in a release, in bytes.
pub const MAX_PATH_BYTES: usize = 512;
/// Largest manifest, in bytes.
pub const MAX_MANIFEST_BYTES: u64 = 32 << 20;
/// Largest provenance statement, and largest bill of materials, in bytes.
pub const MAX_ATTACHMENT_BYTES: u64 = 16 << 20;
/// Largest `release.yaml`, in bytes.
pub const MAX_RELEASE_YAML_BYTES: u64 = 1 << 20;

/// What an engineer writes beside the artifacts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseYaml {
    /// `crossdock.io/v1`.
    pub api_version: String,
    /// `ReleaseManifest`; may be left out.
    #[serde(default)]
    pub kind: Option<String>,
    /// The app.
    pub app: Name,
    /// Its version.
    pub version: Version,
    /// See [`Manifest::min_agent`].
    #[serde(default)]
    pub min_agent: Option<String>,
    /// See [`Manifest::hardware`].
    #[serde(default)]
    pub hardware: BTreeSet<String>,
    /// Files and folders to pack, relative to `release.yaml`. Default: none, as where all is in the image of a container.
    #[serde(default)]
    pub artifacts: Vec<ArtifactYaml>,
    /// What to run; without it the release is files for other apps, see [`Manifest::workload`].
    #[serde(default)]
    pub workload: Option<Workload>,
    /// Commands around the update.
    #[serde(default)]
    pub hooks: Hooks,
    /// File that says who built it and from what: an in-toto Statement with SLSA provenance, or its DSSE envelope.
    #[serde(default)]
    pub provenance: Option<String>,
    /// File that says what is in it: SPDX or CycloneDX, as JSON.
    #[serde(default)]
    pub sbom: Option<String>,
}

/// A file or folder to pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactYaml {
    /// Where it is now, relative to `release.yaml` or absolute.
    pub source: String,
    /// Where it goes in the tree; a folder's content goes below it. Default: a file's own name, and the
    /// tree's root for a folder.
    #[serde(default)]
    pub target: Option<String>,
    /// Whether a single file may be executed. Default: as its permission bits say.
    #[serde(default)]
    pub executable: Option<bool>,
}
