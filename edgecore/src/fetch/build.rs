//! The blocking half of a fetch: what is there, copying, placing, and the one rename.
//!
//! Everything here may be cut anywhere and done again: a file counts only when [`finish`] has compared
//! all of the tree with the manifest, flushed it and renamed it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use proto::{
    digest::{Digest, Hasher},
    durable,
    release::{FileEntry, Manifest, container::is_of_image},
};

use super::{FetchError, Job, tree};

/// A blob to fetch, and where its content goes.
#[derive(Debug, Clone)]
pub(super) struct Download {
    pub digest: Digest,
    pub size: u64,
    entries: Vec<FileEntry>,
}

impl Download {
    /// Whether releases share it on the disk. An image's layers are large, and nothing that runs can write to them.
    fn is_linked(&self) -> bool {
        matches!(&self.entries[..], [entry] if is_of_image(entry.path.as_str()))
    }
}

/// A blob that a release on disk holds, and where its content goes.
#[derive(Debug, Clone)]
pub(super) struct Copy {
    from: PathBuf,
    to: Download,
}

impl Copy {
    pub fn size(&self) -> u64 {
        self.to.size
    }
    /// It could not be copied: fetch it.
    pub fn into_download(self) -> Download {
        self.to
    }
}

/// What is left to do.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub copies: Vec<Copy>,
    pub downloads: Vec<Download>,
    /// Disk that it still takes.
    pub needed_bytes: u64,
    /// Bytes of files that are in place.
    pub done_bytes: u64,
}

/// The file that collects a blob while it arrives.
pub(super) fn part(folder: &Path, digest: Digest) -> PathBuf {
    folder.join("parts").join(digest.hex())
}

fn io_in(path: &Path) -> impl Fn(io::Error) -> FetchError {
    move |source| FetchError::Io { path: path.to_owned(), source }
}

/// Makes the folders; tells whether the manifest is there already.
pub(super) fn prepare(job: &Job) -> Result<bool, FetchError> {
    let folder = tree::staging_folder(&job.releases, job.digest);
    durable::create_dir_all(&job.releases)?;
    for part in ["parts", "tree"] {
        fs::create_dir_all(folder.join(part)).map_err(io_in(&folder))?;
    }
    // The manifest may hold secrets, in its workload's environment: nobody else reads it while it arrives either.
    let parts = folder.join("parts");
    fs::set_permissions(&parts, fs::Permissions::from_mode(0o700)).map_err(io_in(&parts))?;
    let path = folder.join("manifest.json");
    let there = File::open(&path).and_then(Digest::of_reader).is_ok_and(|(digest, _)| digest == job.digest);
    Ok(there)
}

/// Puts a fetched manifest in place and reads it.
pub(super) fn place_manifest(job: &Job) -> Result<Manifest, FetchError> {
    let folder = tree::staging_folder(&job.releases, job.digest);
    let part = part(&folder, job.digest);
    if part.exists() {
        let path = folder.join("manifest.json");
        fs::set_permissions(&part, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&part, &path))
            .map_err(io_in(&path))?;
    }
    Ok(tree::manifest(&folder, job.digest, &job.release)?)
}

/// What is there, what can be copied, what must be fetched.
pub(super) fn survey(job: &Job, manifest: &Manifest) -> Result<Survey, FetchError> {
    let folder = tree::staging_folder(&job.releases, job.digest);
    let reusable = reusable(job);
    let mut missing: BTreeMap<Digest, Download> = BTreeMap::new();
    let mut survey = Survey::default();
    for entry in &manifest.files {
        let path = tree::tree_folder(&folder).join(entry.path.as_str());
        if fs::symlink_metadata(&path).is_ok_and(|m| m.is_file() && m.len() == entry.size) {
            survey.done_bytes = survey.done_bytes.saturating_add(entry.size);
            continue;
        }
        let new = || Download { digest: entry.digest, size: entry.size, entries: vec![] };
        survey.needed_bytes = survey.needed_bytes.saturating_add(entry.size);
        missing.entry(entry.digest).or_insert_with(new).entries.push(entry.clone());
    }
    for (digest, to) in missing {
        match reusable.get(&digest) {
            Some(from) if to.is_linked() => {
                survey.needed_bytes = survey.needed_bytes.saturating_sub(to.size);
                survey.copies.push(Copy { from: from.clone(), to });
            }
            Some(from) => survey.copies.push(Copy { from: from.clone(), to }),
            None => {
                let held = fs::metadata(part(&folder, digest)).map_or(0, |m| m.len());
                survey.needed_bytes = survey.needed_bytes.saturating_sub(held);
                survey.downloads.push(to);
            }
        }
    }
    Ok(survey)
}

/// Files of the releases on disk, by digest.
fn reusable(job: &Job) -> BTreeMap<Digest, PathBuf> {
    let mut files = BTreeMap::new();
    for digest in &job.reuse {
        let folder = tree::release_folder(&job.releases, *digest);
        // Only a source of bytes, each checked when copied: a damaged manifest costs a fetch, no more.
        let manifest = fs::read(folder.join("manifest.json")).ok().and_then(|b| serde_json::from_slice(&b).ok());
        let Some(manifest): Option<Manifest> = manifest else { continue };
        for entry in manifest.files {
            files.entry(entry.digest).or_insert_with(|| tree::tree_folder(&folder).join(entry.path.as_str()));
        }
    }
    files
}

/// Copies a blob from another release; `false` when that no longer holds it.
pub(super) fn copy(job: &Job, copy: &Copy) -> Result<bool, FetchError> {
    let folder = tree::staging_folder(&job.releases, job.digest);
    let to = part(&folder, copy.to.digest);
    let copied = match copy.to.is_linked() {
        true => link(&copy.from, &to, copy.to.size), // all of the tree is hashed in the end
        false => copy_checked(&copy.from, &to, copy.to.digest, copy.to.size),
    };
    let copied = copied.map_err(io_in(&to))?;
    if copied {
        place(job, &copy.to)?;
    }
    Ok(copied)
}

/// Makes `to` the same file; `false` when that cannot be.
fn link(from: &Path, to: &Path, size: u64) -> io::Result<bool> {
    if !fs::symlink_metadata(from).is_ok_and(|found| found.is_file() && found.len() == size) {
        return Ok(false);
    }
    match fs::remove_file(to) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    Ok(fs::hard_link(from, to).is_ok())
}

fn copy_checked(from: &Path, to: &Path, digest: Digest, size: u64) -> io::Result<bool> {
    let Ok(source) = File::open(from) else { return Ok(false) };
    let mut target = File::create(to)?;
    let mut source = source.take(size + 1); // a file that grew is noticed, and does not fill the disk
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = source.read(&mut buffer)?;
        let bytes = buffer.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        hasher.update(bytes);
        target.write_all(bytes)?;
    }
    let same = hasher.finish() == (digest, size);
    if !same {
        fs::remove_file(to)?;
    }
    Ok(same)
}

/// Moves a blob that is whole to every place in the tree that it belongs to.
pub(super) fn place(job: &Job, blob: &Download) -> Result<(), FetchError> {
    let folder = tree::staging_folder(&job.releases, job.digest);
    let part = part(&folder, blob.digest);
    let tree = tree::tree_folder(&folder);
    for (i, entry) in blob.entries.iter().enumerate() {
        let path = tree.join(entry.path.as_str());
        let last = i + 1 == blob.entries.len();
        let placed = (|| {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let mode = if entry.executable { 0o755 } else { 0o644 };
            if last {
                fs::rename(&part, &path)?
            } else {
                fs::copy(&part, &path).map(drop)?
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
        })();
        placed.map_err(io_in(&path))?;
    }
    Ok(())
}

/// Compares everything with the manifest, flushes it, and makes it a release by one rename.
pub(super) fn finish(job: &Job, manifest: &Manifest) -> Result<(), FetchError> {
    let folder = tree::staging_folder(&job.releases, job.digest);
    let root = tree::tree_folder(&folder);
    let flush = |path: &Path| File::open(path).and_then(|f| f.sync_all()).map_err(io_in(path));
    let mut folders = BTreeSet::from([folder.clone(), root.clone()]);
    for entry in &manifest.files {
        let path = root.join(entry.path.as_str());
        let checked = tree::check(&root, entry);
        if checked.is_err() {
            let _ = fs::remove_file(&path); // the next attempt fetches it again
        }
        checked?.sync_all().map_err(io_in(&path))?;
        folders.extend(path.ancestors().skip(1).take_while(|p| p.starts_with(&root)).map(Path::to_owned));
    }
    let parts = folder.join("parts");
    fs::remove_dir_all(&parts).map_err(io_in(&parts))?;
    flush(&folder.join("manifest.json"))?;
    for path in &folders {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(io_in(path))?;
        flush(path)?;
    }
    let place = tree::release_folder(&job.releases, job.digest);
    fs::rename(&folder, &place).map_err(io_in(&place))?;
    Ok(durable::sync_parent(&place)?)
}
