//! The release repository: a folder that holds signed metadata, staged changes and blobs.
//!
//! ```text
//! metadata/1.root.json .. N.root.json, V.targets.json, V.snapshot.json, timestamp.json   published
//! targets/<app>/<digest>.<version>.json   manifests, named as TUF's consistent snapshots name them
//! blobs/<digest>                          content of the files
//! staged/root.json, staged/targets.json   the next publication, collecting signatures
//! keys/                                   secret keys of a small team; elsewhere nothing
//! ```
//!
//! `metadata/` and `targets/` served by any web server are a repository that other TUF clients read.
//! It can be copied between machines: signers append to `staged/`, the pipeline finishes.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp};
use proto::{
    digest::Digest,
    durable,
    link::message::MetadataReply,
    name::ReleaseName,
    release::{MAX_MANIFEST_BYTES, Manifest},
    tuf::{
        Documents, PublicKey, RoleName, SecretKey, Signer, Target, TrustedSet,
        schema::{MetaFile, Offered, Role, RoleKeys, RootMeta, SPEC_VERSION, SnapshotMeta, TargetsMeta, TimestampMeta},
        sign::{Document, whole_seconds},
    },
};

use super::{ReleaseError, io_error, read_text, trust_error};

/// How long a root is good for, in days.
pub const ROOT_DAYS: i64 = 365;
/// How long targets metadata is good for, in days.
pub const TARGETS_DAYS: i64 = 180;
/// How long a snapshot is good for, in days.
pub const SNAPSHOT_DAYS: i64 = 90;
/// How long a timestamp is good for, in days.
pub const TIMESTAMP_DAYS: i64 = 30;

/// Folders of a repository with releases.
pub(super) const FOLDERS: [&str; 4] = ["metadata", "targets", "blobs", "staged"];

/// A repository's folder, locked for this process.
#[derive(Debug)]
pub struct Repository {
    dir: PathBuf,
    _lock: File,
}

/// Whose keys a new repository trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// Keys that may change the keys.
    pub root: Vec<PublicKey>,
    /// How many of them must sign.
    pub root_threshold: u32,
    /// Keys that may add releases.
    pub targets: Vec<PublicKey>,
    /// How many of them must sign.
    pub targets_threshold: u32,
    /// Key of the pipeline: signs snapshot and timestamp.
    pub pipeline: PublicKey,
}

/// What a hub needs to serve the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// All roots and the newest of everything else.
    pub reply: MetadataReply,
    /// Manifests and files by digest, and where they are.
    pub blobs: BTreeMap<Digest, PathBuf>,
}

pub(super) fn later(now: Timestamp, days: i64) -> Timestamp {
    let then = now.checked_add(SignedDuration::from_hours(24 * days)).unwrap_or(Timestamp::MAX);
    whole_seconds(then)
}

impl Repository {
    /// Makes a repository in a folder: root and empty targets are staged, to be signed.
    ///
    /// # Errors
    /// When one is there already, a threshold cannot be met, or the folder cannot be written.
    pub fn create(dir: &Path, setup: &Setup, now: Timestamp) -> Result<Repository, ReleaseError> {
        let root = setup.root_meta(dir, now)?;
        let repository = Repository::make(dir, &FOLDERS)?;
        repository.stage(&root)?;
        repository.stage(&TargetsMeta {
            kind: "targets".into(),
            spec_version: SPEC_VERSION.into(),
            version: 1,
            expires: later(now, TARGETS_DAYS),
            targets: BTreeMap::new(),
            other: BTreeMap::new(),
        })?;
        Ok(repository)
    }

    /// Makes its folders.
    pub(super) fn make(dir: &Path, folders: &[&str]) -> Result<Repository, ReleaseError> {
        durable::create_dir_all(dir)?;
        let repository = Repository::lock(dir)?;
        if repository.path("metadata").exists() || repository.path("staged").exists() {
            return repository
                .refuse("there is a repository already; remove the folder to start over, or name another");
        }
        for folder in folders {
            durable::create_dir_all(&repository.path(folder))?;
        }
        Ok(repository)
    }

    /// Opens one.
    ///
    /// # Errors
    /// When the folder holds none, or another process works on it.
    pub fn open(dir: &Path) -> Result<Repository, ReleaseError> {
        if !dir.join("metadata").is_dir() {
            let problem = "there is no release repository; make one with `crossdock release init`".into();
            return Err(ReleaseError::Repository { dir: dir.to_owned(), problem });
        }
        Repository::lock(dir)
    }

    fn lock(dir: &Path) -> Result<Repository, ReleaseError> {
        let path = dir.join(".lock");
        let file = File::options().create(true).append(true).open(&path).map_err(io_error("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Repository { dir: dir.to_owned(), _lock: file }),
            Err(TryLockError::Error(e)) => Err(io_error("lock", &path)(e)),
            Err(TryLockError::WouldBlock) => {
                let problem = "another process works on it; wait until it is done".into();
                Err(ReleaseError::Repository { dir: dir.to_owned(), problem })
            }
        }
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a small team's keys are.
    #[must_use]
    pub fn keys_dir(&self) -> PathBuf {
        self.path("keys")
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn refuse<T>(&self, problem: impl Into<String>) -> Result<T, ReleaseError> {
        Err(ReleaseError::Repository { dir: self.dir.clone(), problem: problem.into() })
    }

    /// Where content is kept.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path("blobs").join(digest.hex())
    }

    /// Where a manifest is kept.
    #[must_use]
    pub fn manifest_path(&self, release: &ReleaseName, digest: &Digest) -> PathBuf {
        let file = format!("{}.{}.json", digest.hex(), release.version);
        self.path("targets").join(release.app.as_str()).join(file)
    }

    pub(super) fn manifest_file(&self, target: &Target) -> PathBuf {
        let release = ReleaseName { app: target.custom.app.clone(), version: target.custom.version.clone() };
        self.manifest_path(&release, &target.digest)
    }

    /// A manifest that is kept here, checked against its target.
    ///
    /// # Errors
    /// When it is gone or was changed.
    pub fn manifest(&self, target: &Target) -> Result<Manifest, ReleaseError> {
        let release = ReleaseName { app: target.custom.app.clone(), version: target.custom.version.clone() };
        let path = self.manifest_file(target);
        let text = read_text(&path, MAX_MANIFEST_BYTES)?;
        if Digest::of(text.as_bytes()) != target.digest || text.len() as u64 != target.length {
            let problem = "its content is not what was signed; restore it from another copy of the repository".into();
            return Err(ReleaseError::Tree { path, problem });
        }
        Ok(Manifest::parse(text.as_bytes(), &release)?)
    }

    /// Published roots, from version 1 on.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn roots(&self) -> Result<Vec<String>, ReleaseError> {
        let mut roots = vec![];
        loop {
            match self.document::<RootMeta>(&format!("{}.root.json", roots.len() + 1))? {
                Some(text) => roots.push(text),
                None => return Ok(roots),
            }
        }
    }

    /// What is published, verified but for expiry. `None` before the first publication.
    ///
    /// # Errors
    /// When it was damaged.
    pub fn published(&self) -> Result<Option<TrustedSet>, ReleaseError> {
        let Some(reply) = self.published_reply()? else { return Ok(None) };
        // No document expires before the beginning of time.
        self.verified(&reply, Timestamp::MIN).map(Some)
    }

    pub(super) fn verified(&self, reply: &MetadataReply, now: Timestamp) -> Result<TrustedSet, ReleaseError> {
        let Some(first) = reply.roots.first() else { return self.refuse("metadata/1.root.json is missing") };
        let attempt = trust_error("verify the published metadata");
        TrustedSet::new(first).and_then(|set| set.update(reply, now)).map_err(attempt)
    }

    /// What is published, as it is on disk.
    pub(super) fn published_reply(&self) -> Result<Option<MetadataReply>, ReleaseError> {
        let broken = || trust_error("read the published metadata");
        let Some(timestamp) = self.document::<TimestampMeta>("timestamp.json")? else { return Ok(None) };
        let of = Offered::<TimestampMeta>::parse(&timestamp).map_err(broken())?;
        let version = of.signed.meta.get("snapshot.json").map_or(0, |meta| meta.version);
        let snapshot = self.document::<SnapshotMeta>(&format!("{version}.snapshot.json"))?;
        let mut targets = None;
        if let Some(snapshot) = &snapshot {
            let of = Offered::<SnapshotMeta>::parse(snapshot).map_err(broken())?;
            let version = of.signed.meta.get("targets.json").map_or(0, |meta| meta.version);
            targets = self.document::<TargetsMeta>(&format!("{version}.targets.json"))?;
        }
        Ok(Some(MetadataReply { roots: self.roots()?, timestamp: Some(timestamp), snapshot, targets }))
    }

    fn document<T: Role>(&self, name: &str) -> Result<Option<String>, ReleaseError> {
        read_document::<T>(&self.path("metadata").join(name))
    }

    /// Every targets document that was published here, in no order.
    pub(super) fn every_targets(
        &self,
    ) -> Result<impl Iterator<Item = Result<String, ReleaseError>> + use<>, ReleaseError> {
        let folder = self.path("metadata");
        let entries = fs::read_dir(&folder).map_err(io_error("list", &folder))?;
        let mut files = vec![];
        for entry in entries {
            let path = entry.map_err(io_error("list", &folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.strip_suffix(".targets.json").is_some_and(|version| version.parse::<u64>().is_ok()) {
                files.push(path);
            }
        }
        Ok(files.into_iter().map(|path| read_text(&path, RoleName::Targets.limit_bytes() as u64)))
    }

    /// Whether what a hub serves was published from here, so that a publication undoes nobody else's.
    ///
    /// # Errors
    /// [`ReleaseError::Forked`] when it comes from another copy of the repository.
    pub fn follows(&self, hub: &MetadataReply) -> Result<(), ReleaseError> {
        let Some(theirs) = &hub.targets else { return Ok(()) }; // nothing was published to it yet
        let read = |text: &str| Offered::<TargetsMeta>::parse(text).map_err(trust_error("compare with the hub"));
        let theirs = read(theirs)?;
        let version = theirs.signed.version;
        let problem = match self.document::<TargetsMeta>(&format!("{version}.targets.json"))? {
            Some(ours) if read(&ours)?.canonical == theirs.canonical => return Ok(()),
            Some(_) => "this copy has that version with other content",
            None => "this copy does not have it",
        };
        if self.supersedes(hub)? {
            return Ok(());
        }
        Err(ReleaseError::Forked { dir: self.dir.clone(), version, problem })
    }

    /// Whether a root of here, newer than the hub's, takes the keys away that signed what the hub serves: then that is
    /// no fork but maybe a thief's, and what is published from here stands in its place.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn supersedes(&self, hub: &MetadataReply) -> Result<bool, ReleaseError> {
        let Some(theirs) = &hub.targets else { return Ok(false) };
        let theirs = Offered::<TargetsMeta>::parse(theirs).map_err(trust_error("compare with the hub"))?;
        let root = self.next_root()?;
        Ok(root.version > hub.roots.len() as u64 && theirs.verify(&root).is_err())
    }

    /// Finishes a publication: the pipeline signs snapshot and timestamp, and what was staged is published.
    ///
    /// With nothing staged the timestamp (and a snapshot past half of its time) is renewed. Nothing is
    /// written unless all of it verifies.
    ///
    /// # Errors
    /// When signatures are missing or wrong, something is expired, or the pipeline's key does not sign.
    pub fn finish(&self, pipeline: &(impl Signer + ?Sized), now: Timestamp) -> Result<Publication, ReleaseError> {
        let before = self.published()?;
        let documents = before.as_ref().map(TrustedSet::documents);
        let staged = self.staged()?;
        let mut roots = self.roots()?;
        if let Some(root) = staged.root.filter(|root| roots.last() != Some(&root.text)) {
            roots.push(root.text);
        }
        let Some(first) = roots.first() else { return self.refuse("there is no root; run `crossdock release init`") };
        let old_targets = documents.as_ref().and_then(|documents| documents.targets.clone());
        let Some(targets) = staged.targets.map(|targets| targets.text).or(old_targets) else {
            return self.refuse("there is nothing to publish; run `crossdock release build` first");
        };
        let root_changed = documents.as_ref().map(|documents| &documents.root) != roots.last();
        let snapshot = next_snapshot(documents.as_ref(), &targets, root_changed, pipeline, now)?;
        let timestamp = next_timestamp(documents.as_ref(), &snapshot, pipeline, now)?;
        let start = before.map_or_else(|| TrustedSet::new(first), Ok);
        let reply =
            MetadataReply { roots, timestamp: Some(timestamp), snapshot: Some(snapshot), targets: Some(targets) };
        let set = start
            .and_then(|set| set.update(&reply, now))
            .map_err(trust_error("publish: clients would refuse the repository as it stands"))?;
        let publication = self.with_blobs(reply, &set)?;
        self.write_published(&set, &publication.reply)?;
        Ok(publication)
    }

    /// Writes what was verified, and ends what was staged for it.
    fn write_published(&self, set: &TrustedSet, reply: &MetadataReply) -> Result<(), ReleaseError> {
        self.write_metadata(set, reply)?;
        [RoleName::Root, RoleName::Targets].into_iter().try_for_each(|role| self.unstage(role))
    }

    /// Removes a staged document, if there is one.
    pub(super) fn unstage(&self, role: RoleName) -> Result<(), ReleaseError> {
        let path = self.staged_path(role);
        if path.exists() {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
            durable::sync_parent(&path)?;
        }
        Ok(())
    }

    /// Writes verified metadata. The timestamp comes last: before it nothing of the rest counts.
    pub(super) fn write_metadata(&self, set: &TrustedSet, reply: &MetadataReply) -> Result<(), ReleaseError> {
        let (metadata, versions) = (self.path("metadata"), set.versions());
        for (i, root) in reply.roots.iter().enumerate() {
            durable::write(&metadata.join(format!("{}.root.json", i + 1)), root.as_bytes(), 0o644)?;
        }
        let files = [
            (format!("{}.targets.json", versions.targets), &reply.targets),
            (format!("{}.snapshot.json", versions.snapshot), &reply.snapshot),
            ("timestamp.json".to_owned(), &reply.timestamp),
        ];
        for (name, text) in files {
            durable::write(&metadata.join(name), text.as_deref().unwrap_or_default().as_bytes(), 0o644)?;
        }
        Ok(())
    }

    /// What is published, with what a hub needs besides.
    ///
    /// # Errors
    /// When nothing is published, or something is missing or damaged.
    pub fn publication(&self) -> Result<Publication, ReleaseError> {
        let Some(reply) = self.published_reply()? else {
            return self.refuse("nothing is published here; run `crossdock release publish`");
        };
        let set = self.verified(&reply, Timestamp::MIN)?;
        self.with_blobs(reply, &set)
    }

    fn with_blobs(&self, reply: MetadataReply, set: &TrustedSet) -> Result<Publication, ReleaseError> {
        let mut blobs = BTreeMap::new();
        for target in set.targets().values() {
            let manifest = self.manifest(target)?;
            blobs.insert(target.digest, self.manifest_path(&manifest.name(), &target.digest));
            blobs.extend(manifest.content().map(|(digest, _)| (digest, self.blob_path(&digest))));
        }
        Ok(Publication { reply, blobs })
    }
}

/// Reads a document, if it is there, within its role's bound.
pub(super) fn read_document<T: Role>(path: &Path) -> Result<Option<String>, ReleaseError> {
    if !path.exists() {
        return Ok(None);
    }
    read_text(path, T::NAME.limit_bytes() as u64).map(Some)
}

/// The snapshot that goes with `targets`: the one before if it still fits and lasts.
fn next_snapshot(
    before: Option<&Documents>,
    targets: &str,
    root_changed: bool,
    pipeline: &(impl Signer + ?Sized),
    now: Timestamp,
) -> Result<String, ReleaseError> {
    let failed = || trust_error("make the snapshot");
    let version = Offered::<TargetsMeta>::parse(targets).map_err(failed())?.signed.version;
    let file = MetaFile::of(version, targets);
    let old_text = before.and_then(|documents| documents.snapshot.as_deref());
    let old = old_text.map(Offered::<SnapshotMeta>::parse).transpose().map_err(failed())?;
    if let Some(old) = &old {
        let lasts = old.signed.expires > later(now, SNAPSHOT_DAYS / 2);
        if !root_changed && lasts && old.signed.meta.get("targets.json") == Some(&file) {
            return Ok(old.text.clone());
        }
    }
    let mut document = Document::new(&SnapshotMeta {
        kind: "snapshot".into(),
        spec_version: SPEC_VERSION.into(),
        version: old.map_or(1, |old| old.signed.version + 1),
        expires: later(now, SNAPSHOT_DAYS),
        meta: [("targets.json".to_owned(), file)].into(),
        other: BTreeMap::new(),
    })
    .map_err(failed())?;
    document.sign_with(pipeline)?;
    Ok(document.text())
}

fn next_timestamp(
    before: Option<&Documents>,
    snapshot: &str,
    pipeline: &(impl Signer + ?Sized),
    now: Timestamp,
) -> Result<String, ReleaseError> {
    let failed = || trust_error("make the timestamp");
    let version = Offered::<SnapshotMeta>::parse(snapshot).map_err(failed())?.signed.version;
    let old_text = before.and_then(|documents| documents.timestamp.as_deref());
    let old = old_text.map(Offered::<TimestampMeta>::parse).transpose().map_err(failed())?;
    let mut document = Document::new(&TimestampMeta {
        kind: "timestamp".into(),
        spec_version: SPEC_VERSION.into(),
        version: old.map_or(1, |old| old.signed.version + 1),
        expires: later(now, TIMESTAMP_DAYS),
        meta: [("snapshot.json".to_owned(), MetaFile::of(version, snapshot))].into(),
        other: BTreeMap::new(),
    })
    .map_err(failed())?;
    document.sign_with(pipeline)?;
    Ok(document.text())
}

impl Setup {
    /// One key a role: enough for a small team.
    #[must_use]
    pub fn small_team(root: &SecretKey, targets: &SecretKey, pipeline: &SecretKey) -> Setup {
        Setup {
            root: vec![root.public()],
            root_threshold: 1,
            targets: vec![targets.public()],
            targets_threshold: 1,
            pipeline: pipeline.public(),
        }
    }

    pub(super) fn root_meta(&self, dir: &Path, now: Timestamp) -> Result<RootMeta, ReleaseError> {
        let mut root = RootMeta {
            kind: "root".into(),
            spec_version: SPEC_VERSION.into(),
            version: 1,
            expires: later(now, ROOT_DAYS),
            consistent_snapshot: true,
            keys: BTreeMap::new(),
            roles: BTreeMap::new(),
            other: BTreeMap::new(),
        };
        let pipeline = std::slice::from_ref(&self.pipeline);
        let roles = [
            (RoleName::Root, self.root.as_slice(), self.root_threshold),
            (RoleName::Targets, self.targets.as_slice(), self.targets_threshold),
            (RoleName::Snapshot, pipeline, 1),
            (RoleName::Timestamp, pipeline, 1),
        ];
        for (role, keys, threshold) in roles {
            let by_id: BTreeMap<String, PublicKey> = keys.iter().map(|key| (key.id(), key.clone())).collect();
            if threshold == 0 || usize::try_from(threshold).unwrap_or(usize::MAX) > by_id.len() {
                let problem = format!(
                    "a threshold of {threshold} for {role} cannot be met by {} distinct keys; give more keys or another threshold",
                    by_id.len()
                );
                return Err(ReleaseError::Repository { dir: dir.to_owned(), problem });
            }
            let keyids = by_id.keys().cloned().collect();
            root.roles.insert(role.as_str().into(), RoleKeys::new(keyids, threshold));
            root.keys.extend(by_id);
        }
        Ok(root)
    }
}
