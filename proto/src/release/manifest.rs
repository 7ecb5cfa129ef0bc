//! The signed description of a release: its files and their rules.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Hooks, MAX_ATTACHMENT_BYTES, MAX_FILES, MAX_PATH_BYTES, Secret, Workload, replicas};
use crate::{
    digest::Digest,
    name::{Name, ReleaseName, Version},
    secret::MAX_SEALED_BYTES,
};

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
    /// What to run. Without it the release is files for others, such as a model or configuration: it counts as
    /// good once it is in place (and its postApply hook says so), and other apps of the node find it below
    /// `$CROSSDOCK_APPS/<app>/current`. Agents that know only releases with a workload refuse it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Workload>,
    /// Commands around the update.
    #[serde(default, skip_serializing_if = "Hooks::is_empty")]
    pub hooks: Hooks,
    /// Who built it and from what: an in-toto Statement v1 with SLSA provenance v1. Kept by the hub for people and
    /// their tools; no agent fetches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Attachment>,
    /// What is in it: a bill of materials in SPDX or CycloneDX, kept likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sbom: Option<Attachment>,
}

/// A document beside the tree, signed for through the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// SHA-256 of the document.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
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
    /// Neither a workload nor a file.
    #[error("it has neither a workload nor files; add one of them")]
    Nothing,
    /// Provenance or bill of materials is too large.
    #[error(
        "its provenance or sbom has {0} bytes, more than the {MAX_ATTACHMENT_BYTES} allowed; leave out what is not about this release"
    )]
    Attachment(u64),
    /// A hook cannot work.
    #[error("hooks: {0}")]
    Hooks(String),
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
        if let Some(large) = self.attachments().find(|attachment| attachment.size > MAX_ATTACHMENT_BYTES) {
            return Err(ManifestError::Attachment(large.size));
        }
        self.hooks.check()?;
        match &self.workload {
            Some(workload) => {
                workload.check(&self.files)?;
                workload.update.check(&self.app, workload)?;
                replicas::check_name(&self.app)?;
                if let Some(replicas) = &workload.replicas {
                    replicas.check(&self.app, workload)?;
                }
                workload.check_uses(&self.app)?;
                self.check_secrets(workload)
            }
            None if self.files.is_empty() => Err(ManifestError::Nothing),
            None => Ok(()),
        }
    }

    /// Every secret is a file of the tree, of a size that an agent opens.
    fn check_secrets(&self, workload: &Workload) -> Result<(), ManifestError> {
        for Secret { name, file, .. } in &workload.secrets {
            let problem = match self.files.iter().find(|entry| entry.path.as_str() == file) {
                Some(entry) if entry.size <= MAX_SEALED_BYTES => continue,
                Some(_) => format!("is larger than the {MAX_SEALED_BYTES} bytes of a sealed secret"),
                None => "is not in the tree; add it to artifacts".to_owned(),
            };
            return Err(ManifestError::Workload(format!("secret {name:?}: file {file:?} {problem}")));
        }
        Ok(())
    }

    /// What stands beside the tree: at the hub, never on a node.
    pub fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.provenance.iter().chain(&self.sbom)
    }

    /// Everything that a hub keeps for the release: digests with their sizes, the same one more than once.
    pub fn content(&self) -> impl Iterator<Item = (Digest, u64)> {
        let files = self.files.iter().map(|file| (file.digest, file.size));
        files.chain(self.attachments().map(|attachment| (attachment.digest, attachment.size)))
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
            workload: Some(workload),
            hooks: Hooks::default(),
            provenance: None,
            sbom: None,
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
    fn files_alone_are_a_release_and_nothing_is_none() {
        let files = Manifest { workload: None, ..manifest(&["model.onnx"]).unwrap() };
        files.check().unwrap();
        let text = serde_json::to_string(&files).unwrap();
        assert!(!text.contains("workload"), "{text}");
        assert_eq!(Manifest::parse(text.as_bytes(), &"a@1".parse().unwrap()).unwrap(), files);
        let nothing = Manifest { files: vec![], ..files };
        assert_eq!(nothing.check().unwrap_err(), ManifestError::Nothing);
    }

    #[test]
    fn a_secret_is_a_file_of_the_tree() {
        let secret = |file: &str| {
            let mut manifest = manifest(&["db.age", "bin/run"]).unwrap();
            let secret = Secret { name: "db".into(), file: file.into(), sealed_to: vec![] };
            manifest.workload.as_mut().unwrap().secrets = vec![secret];
            manifest
        };
        secret("db.age").check().unwrap();
        assert!(secret("other.age").check().unwrap_err().to_string().contains("not in the tree"));
        let mut large = secret("db.age");
        large.files[0].size = MAX_SEALED_BYTES + 1;
        assert!(large.check().unwrap_err().to_string().contains("larger"));
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let text = serde_json::to_string(&manifest(&["x"]).unwrap()).unwrap();
        let text = text.replacen('{', r#"{"future": {"x": 1},"#, 1);
        Manifest::parse(text.as_bytes(), &"a@1".parse().unwrap()).unwrap();
        let error = Manifest::parse(text.as_bytes(), &"a@2".parse().unwrap()).unwrap_err();
        assert!(matches!(error, ManifestError::Mismatch { .. }));
    }
}
