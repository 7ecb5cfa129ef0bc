//! `release.yaml` and its files become a manifest and blobs. Called by `crossdock release build`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use proto::{
    API_VERSION,
    digest::Digest,
    name::ReleaseName,
    object::Resources,
    release::{
        ArtifactYaml, Attachment, Container, ExecProbe, FileEntry, Hook, Hooks, HttpProbe, Limits,
        MAX_ATTACHMENT_BYTES, MAX_MANIFEST_BYTES, MAX_RELEASE_YAML_BYTES, Manifest, ManifestError, Port, Probe, Probes,
        ReleaseYaml, Secret, TcpProbe, Workload,
        container::{self, Publish, Uses, Volume},
    },
    secret::SealedTo,
};
use tempfile::TempDir;

use super::{ReleaseError, image, io_error, provenance, read_text, secrets, tree};
use crate::unknown::{self, fields_of};

/// A release as built: nothing is signed or copied yet.
#[derive(Debug, Clone)]
pub struct Built {
    /// What will be signed for.
    pub manifest: Manifest,
    /// The manifest to the byte.
    pub bytes: Vec<u8>,
    /// Its digest.
    pub digest: Digest,
    /// Content of its files: where each is on this disk.
    pub blobs: BTreeMap<Digest, PathBuf>,
    /// What of `release.yaml` counts for nothing: fields that this version does not know.
    pub warnings: Vec<String>,
    /// Holds content that was unpacked for this.
    _spool: Option<Arc<TempDir>>,
}

impl Built {
    /// From a manifest, and where its content is.
    ///
    /// # Errors
    /// When the manifest breaks a rule.
    pub fn new(manifest: Manifest, blobs: BTreeMap<Digest, PathBuf>) -> Result<Built, ReleaseError> {
        manifest.check()?;
        check_commands(&manifest)?;
        let release = manifest.name();
        let refuse =
            |problem: String| ReleaseError::Command { what: "release".into(), command: release.to_string(), problem };
        let mut bytes = serde_json::to_vec(&manifest).map_err(|e| refuse(e.to_string()))?;
        bytes.push(b'\n');
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(refuse(format!(
                "its manifest has {} bytes, the limit is {MAX_MANIFEST_BYTES}; pack files into an archive",
                bytes.len()
            )));
        }
        let digest = Digest::of(&bytes);
        Ok(Built { manifest, bytes, digest, blobs, warnings: vec![], _spool: None })
    }

    /// `app@version`.
    #[must_use]
    pub fn name(&self) -> ReleaseName {
        self.manifest.name()
    }
}

/// Builds the release that a `release.yaml` describes.
///
/// # Errors
/// What is wrong with it or with a file, and how to mend it.
pub fn build(path: &Path) -> Result<Built, ReleaseError> {
    let (mut yaml, warnings) = read_yaml(path)?;
    let base = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = vec![];
    for artifact in &yaml.artifacts {
        let first = found.len();
        tree::find(&base.join(&artifact.source), artifact.target.as_deref(), &mut found)?;
        if let (Some(executable), [one]) = (artifact.executable, found.get_mut(first..).unwrap_or_default()) {
            one.executable = executable;
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    let (mut files, mut blobs) = (Vec::with_capacity(found.len()), BTreeMap::new());
    for file in found {
        let opened = File::open(&file.source).map_err(io_error("open", &file.source))?;
        let (digest, size) = Digest::of_reader(opened).map_err(io_error("read", &file.source))?;
        files.push(FileEntry { path: file.path, digest, size, executable: file.executable });
        blobs.insert(digest, file.source);
    }
    let packed =
        yaml.workload.as_mut().map_or(Ok(None), |workload| pack_image(base, workload, &mut files, &mut blobs))?;
    if let Some((class, _)) = packed.as_ref().filter(|_| yaml.hardware.is_empty()) {
        yaml.hardware.insert(class.clone());
    }
    if let Some(workload) = &mut yaml.workload {
        secrets::complete(&yaml.app, workload, &files, &blobs)?;
    }
    let (provenance, sbom) = (attach(base, yaml.provenance.as_deref())?, attach(base, yaml.sbom.as_deref())?);
    if let Some((path, text, attachment)) = &provenance {
        let subjects = provenance::Statement::parse(text).and_then(|statement| statement.check(&files));
        subjects.map_err(|problem| ReleaseError::Tree { path: path.clone(), problem })?;
        blobs.insert(attachment.digest, path.clone());
    }
    if let Some((path, text, attachment)) = &sbom {
        provenance::Bill::parse(text).map_err(|problem| ReleaseError::Tree { path: path.clone(), problem })?;
        blobs.insert(attachment.digest, path.clone());
    }
    let manifest = Manifest {
        api_version: API_VERSION.into(),
        app: yaml.app,
        version: yaml.version,
        min_agent: yaml.min_agent,
        hardware: yaml.hardware,
        files,
        workload: yaml.workload,
        hooks: yaml.hooks,
        provenance: provenance.map(|(_, _, attachment)| attachment),
        sbom: sbom.map(|(_, _, attachment)| attachment),
    };
    Ok(Built { warnings, _spool: packed.map(|(_, spool)| spool), ..Built::new(manifest, blobs)? })
}

/// Puts the image of a container into the tree. Returns its hardware class, and what holds its content.
fn pack_image(
    base: &Path,
    workload: &mut Workload,
    files: &mut Vec<FileEntry>,
    blobs: &mut BTreeMap<Digest, PathBuf>,
) -> Result<Option<(String, Arc<TempDir>)>, ReleaseError> {
    let Some(container) = &mut workload.container else { return Ok(None) };
    if let Some(file) = files.iter().find(|file| container::is_of_image(file.path.as_str())) {
        let problem = "image/ in the tree is for the container's image; give the artifact another target".into();
        return Err(ReleaseError::Tree { path: file.path.as_str().into(), problem });
    }
    let Some(archive) = container.archive.take() else { return Ok(None) };
    let unpacked = image::unpack(&base.join(archive))?;
    container.image = Some(unpacked.image);
    if !workload.secrets.is_empty() && workload.user.is_none() {
        workload.user = unpacked.user; // whoever opens them gives them to that one
    }
    for (entry, from) in unpacked.files {
        blobs.insert(entry.digest, from);
        files.push(entry);
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Some((unpacked.hardware, unpacked.spool)))
}

/// A document beside the tree, as the manifest names it.
fn attach(base: &Path, file: Option<&str>) -> Result<Option<(PathBuf, String, Attachment)>, ReleaseError> {
    let Some(path) = file.map(|file| base.join(file)) else { return Ok(None) };
    let text = read_text(&path, MAX_ATTACHMENT_BYTES)?;
    let attachment = Attachment { digest: Digest::of(text.as_bytes()), size: text.len() as u64 };
    Ok(Some((path, text, attachment)))
}

/// Names of all fields that may stand in a `release.yaml`.
fn known_fields() -> [&'static [&'static str]; 19] {
    [
        fields_of::<ReleaseYaml>(),
        fields_of::<ArtifactYaml>(),
        fields_of::<Workload>(),
        fields_of::<Secret>(),
        fields_of::<SealedTo>(),
        fields_of::<Port>(),
        fields_of::<Limits>(),
        fields_of::<Resources>(),
        fields_of::<Probes>(),
        fields_of::<Probe>(),
        fields_of::<HttpProbe>(),
        fields_of::<TcpProbe>(),
        fields_of::<ExecProbe>(),
        fields_of::<Hooks>(),
        fields_of::<Hook>(),
        fields_of::<Container>(),
        fields_of::<Publish>(),
        fields_of::<Volume>(),
        fields_of::<Uses>(),
    ]
}

/// A `release.yaml`, and the warnings about it.
fn read_yaml(path: &Path) -> Result<(ReleaseYaml, Vec<String>), ReleaseError> {
    parse_yaml(path, &read_text(path, MAX_RELEASE_YAML_BYTES)?)
}

/// The same from its text; `path` is for people.
pub(crate) fn parse_yaml(path: &Path, text: &str) -> Result<(ReleaseYaml, Vec<String>), ReleaseError> {
    let refuse = |problem: String| Err(ReleaseError::Yaml { path: path.to_owned(), problem });
    let (yaml, skipped) = match unknown::read_yaml::<ReleaseYaml>(text) {
        Ok(read) => read,
        Err(e) => return refuse(format!("{e}\nA commented example: crossdock release init --sample")),
    };
    if yaml.api_version != API_VERSION {
        return refuse(format!("its apiVersion is {:?}, this version reads {API_VERSION:?}", yaml.api_version));
    }
    if let Some(kind) = yaml.kind.as_deref().filter(|kind| *kind != "ReleaseManifest") {
        return refuse(format!("its kind is {kind:?}, write ReleaseManifest or leave it out"));
    }
    let known = known_fields();
    Ok((yaml, skipped.iter().map(|field| unknown::warning(field, &known)).collect()))
}

/// Whether every command of the tree is in the tree and may be executed.
fn check_commands(manifest: &Manifest) -> Result<(), ReleaseError> {
    for (name, hook) in manifest.hooks.iter() {
        if let Some(command) = hook.command.first() {
            check_command(manifest, &format!("hook {name}'s command"), command)?;
        }
    }
    let Some(workload) = &manifest.workload else { return Ok(()) };
    let in_image = workload.container.is_some(); // its commands are not in the tree
    if !in_image {
        check_command(manifest, "workload.command", &workload.command)?;
    }
    let probes = [
        ("startup", &workload.probes.startup),
        ("liveness", &workload.probes.liveness),
        ("readiness", &workload.probes.readiness),
    ];
    for (name, probe) in probes {
        let port = probe.as_ref().and_then(|p| p.tcp.as_ref().map(|t| t.port).or(p.http.as_ref().map(|h| h.port)));
        if port == Some(0) {
            let problem = format!("the {name} probe's port is 0, where nobody listens; write one from 1 to 65535");
            return Err(ManifestError::Workload(problem).into()); // not for agents: what they have may hold it
        }
        let exec = probe.as_ref().and_then(|probe| probe.exec.as_ref());
        if let Some(command) = exec.and_then(|exec| exec.command.first()).filter(|_| !in_image) {
            check_command(manifest, &format!("{name} probe's command"), command)?;
        }
    }
    let Some(folder) = workload.working_dir.as_deref().filter(|f| *f != "." && !in_image) else { return Ok(()) };
    let inside = format!("{folder}/");
    if manifest.files.iter().any(|file| file.path.as_str().starts_with(&inside)) {
        return Ok(());
    }
    Err(ReleaseError::Command {
        what: "workload in workingDir".into(),
        command: folder.into(),
        problem: "no file of the tree is in that folder; name a folder that the artifacts fill".into(),
    })
}

fn check_command(manifest: &Manifest, what: &str, command: &str) -> Result<(), ReleaseError> {
    let refuse =
        |problem: String| Err(ReleaseError::Command { what: what.to_owned(), command: command.to_owned(), problem });
    if command.starts_with('/') {
        return Ok(()); // of the box: only the box can tell
    }
    match manifest.files.iter().find(|file| file.path.as_str() == command) {
        Some(file) if file.executable => Ok(()),
        Some(_) => refuse("the file is not executable; run chmod +x on it, or set executable: true".into()),
        None => {
            let known: BTreeSet<&str> =
                manifest.files.iter().filter(|f| f.executable).map(|f| f.path.as_str()).take(5).collect();
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "nothing".into() } else { known };
            refuse(format!(
                "it is not in the tree (executable there: {known}); add it to artifacts, or write an absolute path for a program of the box"
            ))
        }
    }
}
