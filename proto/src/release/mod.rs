//! What a release contains: the manifest that TUF signs for, and the workload that it describes.
//!
//! A release is a tree of files, each named by its digest, and a workload. Its [`Manifest`] is the TUF
//! target `<app>/<version>.json`; everything else follows from the manifest's digest. [`ReleaseYaml`]
//! is what an engineer writes; `crossdock release build` turns it into a manifest and blobs.
//!
//! Unknown fields are skipped everywhere, so older agents read newer manifests; what they must not
//! skip is guarded by [`Manifest::min_agent`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    name::{Name, ReleaseName, Version},
    units::{Bytes, Span},
};

/// Most files of one release.
pub const MAX_FILES: usize = 100_000;
/// Longest path of a file in a release, in bytes.
pub const MAX_PATH_BYTES: usize = 512;
/// Largest manifest, in bytes.
pub const MAX_MANIFEST_BYTES: u64 = 32 << 20;
/// Largest `release.yaml`, in bytes.
pub const MAX_RELEASE_YAML_BYTES: u64 = 1 << 20;

/// The signed description of a release, stored as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// `crossdock.io/v1`.
    pub api_version: String,
    /// The app.
    pub app: Name,
    /// Its version.
    pub version: Version,
    /// Oldest agent that understands this manifest, as a semantic version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_agent: Option<String>,
    /// Hardware classes it may run on, such as `x86_64` or `x86_64+nvidia`; empty means any.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub hardware: BTreeSet<String>,
    /// The tree, ordered by path, without duplicates.
    pub files: Vec<FileEntry>,
    /// What to run.
    pub workload: Workload,
}

/// One file of the tree. Folders follow from paths; links and devices do not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative path with `/` between parts.
    pub path: TreePath,
    /// SHA-256 of the content.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Whether it may be executed. Other permission bits are the agent's to choose.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
}

/// A path that stays inside its tree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TreePath(String);

/// A manifest contradicts the rules of a release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A path that could leave the tree or means different files on different systems.
    #[error("path {path:?} is refused: {problem}")]
    Path {
        /// The path, shortened.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Two entries name one file.
    #[error("{0:?} appears twice")]
    Duplicate(String),
    /// Two entries differ only in case; on some file systems they are one file.
    #[error("{0:?} and {1:?} differ only in upper and lower case; rename one")]
    CaseCollision(String, String),
    /// An entry is a file where another needs a folder.
    #[error("{0:?} is a file, and {1:?} needs a folder of that name")]
    FileAsFolder(String, String),
    /// More files than allowed.
    #[error("{0} files are more than the {MAX_FILES} of one release; pack them into an archive")]
    TooManyFiles(usize),
    /// Workload fields contradict each other.
    #[error("workload: {0}")]
    Workload(String),
    /// Not JSON of a manifest.
    #[error("manifest is not readable: {0}")]
    Malformed(String),
    /// The manifest is of another release than its target path says.
    #[error("manifest is for {found}, expected {expected}")]
    Mismatch {
        /// What was asked for.
        expected: ReleaseName,
        /// What the manifest says.
        found: ReleaseName,
    },
    /// Written for agents newer than this one.
    #[error("release needs agent {needs} or newer, this is {}; upgrade the agent first", crate::VERSION)]
    AgentTooOld {
        /// The version it asks for.
        needs: String,
    },
}

impl TreePath {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TreePath {
    type Error = ManifestError;
    fn try_from(path: String) -> Result<TreePath, ManifestError> {
        let refuse = |problem| Err(ManifestError::Path { path: path.chars().take(120).collect(), problem });
        if path.is_empty() || path.len() > MAX_PATH_BYTES {
            return refuse("it must have 1 to 512 bytes");
        }
        if path.starts_with('/') {
            return refuse("it is absolute");
        }
        if path.chars().any(|c| c.is_control() || c == '\\') {
            return refuse("it holds a control character or a backslash");
        }
        for part in path.split('/') {
            match part {
                "" => return refuse("a part of it is empty"),
                "." | ".." => return refuse("it could leave the tree"),
                part if part.len() > 255 => return refuse("a part of it is longer than 255 bytes"),
                _ => {}
            }
        }
        Ok(TreePath(path))
    }
}

impl From<TreePath> for String {
    fn from(path: TreePath) -> String {
        path.0
    }
}

impl Manifest {
    /// Reads and checks a manifest, whoever signed for it.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn parse(bytes: &[u8], expected: &ReleaseName) -> Result<Manifest, ManifestError> {
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| ManifestError::Malformed(e.to_string()))?;
        manifest.check()?;
        let found = manifest.name();
        if found != *expected {
            return Err(ManifestError::Mismatch { expected: expected.clone(), found });
        }
        Ok(manifest)
    }

    /// Checks every rule that the types do not already enforce.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.files.len() > MAX_FILES {
            return Err(ManifestError::TooManyFiles(self.files.len()));
        }
        let mut folded: BTreeMap<String, &str> = BTreeMap::new();
        for file in &self.files {
            let path = file.path.as_str();
            if let Some(other) = folded.insert(path.to_lowercase(), path) {
                return Err(if other == path {
                    ManifestError::Duplicate(path.to_owned())
                } else {
                    ManifestError::CaseCollision(other.to_owned(), path.to_owned())
                });
            }
        }
        let mut folders: BTreeMap<String, &str> = BTreeMap::new();
        for file in &self.files {
            let path = file.path.as_str();
            for (i, _) in path.match_indices('/') {
                let folder = path.get(..i).unwrap_or_default();
                if let Some(other) = folded.get(&folder.to_lowercase()) {
                    return Err(ManifestError::FileAsFolder((*other).to_owned(), path.to_owned()));
                }
                match folders.insert(folder.to_lowercase(), folder) {
                    Some(other) if other != folder => {
                        return Err(ManifestError::CaseCollision(other.to_owned(), folder.to_owned()));
                    }
                    _ => {}
                }
            }
        }
        if let Some(needs) = &self.min_agent {
            let parse =
                |v: &str| semver::Version::parse(v).map_err(|e| ManifestError::Malformed(format!("minAgent: {e}")));
            if parse(needs)? > parse(crate::VERSION)? {
                return Err(ManifestError::AgentTooOld { needs: needs.clone() });
            }
        }
        self.workload.check()
    }

    /// `app@version`.
    #[must_use]
    pub fn name(&self) -> ReleaseName {
        ReleaseName { app: self.app.clone(), version: self.version.clone() }
    }

    /// Bytes of the whole tree.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size).fold(0, u64::saturating_add)
    }
}

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
    /// Files and folders to pack, relative to `release.yaml`.
    pub artifacts: Vec<ArtifactYaml>,
    /// What to run.
    pub workload: Workload,
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

/// A process to run and to watch over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Program: a path in the tree (`bin/server`), or absolute for one of the box.
    pub command: String,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its environment, besides `PATH` and `CROSSDOCK_APP`, `CROSSDOCK_VERSION`, `CROSSDOCK_DIGEST`,
    /// `CROSSDOCK_TREE` (its files) and `CROSSDOCK_DATA` (a folder that stays from release to release).
    /// Nothing else is inherited.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// User to run as, a name or a number of the box. Default: as the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working folder, relative to the tree. Default: the tree's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Ports it listens on, for people and probes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Limits of its control group.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// Probes, as in Kubernetes.
    #[serde(default)]
    pub probes: Probes,
    /// Time between SIGTERM and SIGKILL.
    #[serde(default = "default_stop_grace")]
    pub stop_grace: Span,
    /// When to start it again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How long it must stay healthy before the release counts as good.
    #[serde(default = "default_soak")]
    pub soak: Span,
    /// By when it must have become healthy, counted from its start; then the release is reverted.
    #[serde(default = "default_deadline")]
    pub deadline: Span,
}

fn default_stop_grace() -> Span {
    Span::from_secs(10)
}
fn default_soak() -> Span {
    Span::from_secs(3)
}
fn default_deadline() -> Span {
    Span::from_secs(60)
}

/// A port that a workload listens on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// TCP port.
    pub port: u16,
}

/// Limits of a control group; what is absent is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Memory; beyond it the kernel kills the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Thousandths of a processor core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// All log files of the workload together. Default: 40 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<Bytes>,
}

impl Limits {
    fn is_none(&self) -> bool {
        *self == Limits::default()
    }
}

/// When a workload that ended is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RestartPolicy {
    /// Always (the default).
    #[default]
    Always,
    /// Only after a failure.
    OnFailure,
    /// Never: exit code 0 counts as healthy.
    Never,
}

/// The three probes of Kubernetes; none is needed: then running for the soak time is healthy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probes {
    /// Until it succeeds the others do not run; when it gives up the workload is restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<Probe>,
    /// When it fails the workload is restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Probe>,
    /// Whether the workload is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Probe>,
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// GET over HTTP/1.1 on loopback: a status of 200 to 399 is success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpProbe>,
    /// A TCP connection on loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpProbe>,
    /// A command in the tree as the workload's user: exit code 0 is success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecProbe>,
    /// Wait before the first attempt.
    #[serde(default)]
    pub initial_delay: Span,
    /// Between attempts. At least 100 ms.
    #[serde(default = "default_period")]
    pub period: Span,
    /// Longest attempt.
    #[serde(default = "default_timeout")]
    pub timeout: Span,
    /// Failures in a row that count as failed.
    #[serde(default = "default_failure_threshold")]
    pub failure_threshold: u32,
    /// Successes in a row that count as succeeded.
    #[serde(default = "default_success_threshold")]
    pub success_threshold: u32,
}

fn default_period() -> Span {
    Span::from_secs(10)
}
fn default_timeout() -> Span {
    Span::from_secs(1)
}
fn default_failure_threshold() -> u32 {
    3
}
fn default_success_threshold() -> u32 {
    1
}

/// Target of an HTTP probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpProbe {
    /// Path with query, `/` by default.
    #[serde(default = "default_http_path")]
    pub path: String,
    /// TCP port on 127.0.0.1.
    pub port: u16,
}

fn default_http_path() -> String {
    "/".into()
}

/// Target of a TCP probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpProbe {
    /// TCP port on 127.0.0.1.
    pub port: u16,
}

/// Command of an exec probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecProbe {
    /// Program and arguments; the program as in [`Workload::command`].
    pub command: Vec<String>,
}

impl Workload {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// The first field that cannot work.
    pub fn check(&self) -> Result<(), ManifestError> {
        let wrong = |text: String| Err(ManifestError::Workload(text));
        let clean = |text: &str| !text.contains('\0');
        if !self.command.starts_with('/') {
            TreePath::try_from(self.command.clone())?;
        }
        if let Some(folder) = self.working_dir.as_deref().filter(|f| *f != ".") {
            TreePath::try_from(folder.to_owned())?;
        }
        if !clean(&self.command) || !self.args.iter().all(|a| clean(a)) {
            return wrong("command and args must not hold a NUL character".into());
        }
        for (key, value) in &self.env {
            if key.is_empty() || key.contains('=') || !clean(key) || !clean(value) {
                return wrong(format!("environment variable {key:?} is not usable: no '=' or NUL in its name"));
            }
        }
        let probes = [
            ("startup", &self.probes.startup),
            ("liveness", &self.probes.liveness),
            ("readiness", &self.probes.readiness),
        ];
        for (name, probe) in probes {
            let Some(probe) = probe else { continue };
            let kinds = usize::from(probe.http.is_some())
                + usize::from(probe.tcp.is_some())
                + usize::from(probe.exec.is_some());
            if kinds != 1 {
                return wrong(format!("the {name} probe needs exactly one of http, tcp and exec"));
            }
            if probe.exec.as_ref().is_some_and(|e| e.command.is_empty()) {
                return wrong(format!("the {name} probe's command is empty"));
            }
            if probe.http.as_ref().is_some_and(|h| !h.path.starts_with('/') || h.path.contains(['\r', '\n', ' '])) {
                return wrong(format!("the {name} probe's path must start with / and hold no blanks"));
            }
            if probe.period < Span::from_millis(100) || probe.timeout == Span::default() {
                return wrong(format!("the {name} probe needs a period of at least 100ms and a timeout above 0"));
            }
            if probe.failure_threshold == 0 || probe.success_threshold == 0 {
                return wrong(format!("the {name} probe's thresholds must be at least 1"));
            }
        }
        if self.deadline < self.soak {
            return wrong(format!("deadline {} is shorter than soak {}", self.deadline, self.soak));
        }
        if self.limits.memory.is_some_and(|m| m < Bytes::new(1 << 20))
            || self.limits.cpu_millis == Some(0)
            || self.limits.pids == Some(0)
        {
            return wrong("limits below memory 1Mi, cpuMillis 1 or pids 1 would run nothing".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(paths: &[&str]) -> Result<Manifest, ManifestError> {
        let files = paths
            .iter()
            .map(|p| {
                let path = TreePath::try_from((*p).to_owned())?;
                Ok(FileEntry { path, digest: Digest::of(b""), size: 0, executable: false })
            })
            .collect::<Result<_, ManifestError>>()?;
        let workload = serde_json::from_str(r#"{"command": "bin/run"}"#).unwrap();
        let m = Manifest {
            api_version: crate::API_VERSION.into(),
            app: "a".parse().unwrap(),
            version: "1".parse().unwrap(),
            min_agent: None,
            hardware: BTreeSet::new(),
            files,
            workload,
        };
        m.check().map(|()| m)
    }

    #[test]
    fn a_tree_cannot_leave_its_folder_nor_mean_two_things() {
        assert!(manifest(&["bin/run", "bin/run2", "share/a.txt", "ünï/ö"]).is_ok());
        for bad in [
            &["/etc/passwd"][..],
            &["../x"],
            &["a/../../x"],
            &["a//b"],
            &["./a"],
            &["a/"],
            &["a\\b"],
            &["a\nb"],
            &["a\0"],
            &[""],
            &["a", "a"],
            &["A", "a"],
            &["d/x", "D/y"],
            &["a", "a/b"],
            &["A", "a/b"],
        ] {
            assert!(manifest(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let text = serde_json::to_string(&manifest(&["x"]).unwrap()).unwrap();
        let text = text.replacen('{', r#"{"future": {"x": 1},"#, 1);
        Manifest::parse(text.as_bytes(), &"a@1".parse().unwrap()).unwrap();
        let error = Manifest::parse(text.as_bytes(), &"a@2".parse().unwrap()).unwrap_err();
        assert!(matches!(error, ManifestError::Mismatch { .. }));
    }

    #[test]
    fn contradictory_workloads_are_refused() {
        for bad in [
            r#"{"command": "../run"}"#,
            r#"{"command": "run", "workingDir": "/etc"}"#,
            r#"{"command": "run", "env": {"A=B": "1"}}"#,
            r#"{"command": "run", "probes": {"liveness": {}}}"#,
            r#"{"command": "run", "probes": {"liveness": {"tcp": {"port": 1}, "http": {"port": 1}}}}"#,
            r#"{"command": "run", "probes": {"readiness": {"tcp": {"port": 1}, "period": "1ms"}}}"#,
            r#"{"command": "run", "probes": {"startup": {"exec": {"command": []}}}}"#,
            r#"{"command": "run", "soak": "2m", "deadline": "1m"}"#,
            r#"{"command": "run", "limits": {"pids": 0}}"#,
        ] {
            let workload: Workload = serde_json::from_str(bad).unwrap();
            assert!(workload.check().is_err(), "{bad}");
        }
    }
}
