//! A release on disk, and whether it still is what was signed for.
//!
//! [`verify`] is called before every start of a workload: nothing runs from a tree that differs from
//! its manifest. Files that the manifest does not name are left alone, a workload may write some into
//! its working folder; links are followed nowhere.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use proto::{
    digest::Digest,
    name::ReleaseName,
    release::{FileEntry, MAX_MANIFEST_BYTES, Manifest, ManifestError},
};

/// A release on disk is not what was signed for.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A file is missing, of another content, or no file.
    #[error("{} {problem}: the release is damaged on disk and will be fetched again", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The manifest is whole and breaks a rule.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

fn damaged(path: &Path, problem: impl ToString) -> TreeError {
    TreeError::Damaged { path: path.to_owned(), problem: problem.to_string() }
}

/// Where a release lies once it is whole.
#[must_use]
pub fn release_folder(releases: &Path, digest: Digest) -> PathBuf {
    releases.join(digest.hex())
}

/// Where it is put together.
#[must_use]
pub fn staging_folder(releases: &Path, digest: Digest) -> PathBuf {
    releases.join(format!("{}.tmp", digest.hex()))
}

/// The tree of a release that lies in `folder`.
#[must_use]
pub fn tree_folder(folder: &Path) -> PathBuf {
    folder.join("tree")
}

/// The manifest of a release that lies in `folder`, if it has the digest and is of that release.
///
/// # Errors
/// What is wrong with it.
pub fn manifest(folder: &Path, digest: Digest, release: &ReleaseName) -> Result<Manifest, TreeError> {
    let path = folder.join("manifest.json");
    let size = fs::symlink_metadata(&path).map_err(|e| damaged(&path, e))?.len();
    if size > MAX_MANIFEST_BYTES {
        return Err(damaged(&path, format!("has {size} bytes")));
    }
    let bytes = fs::read(&path).map_err(|e| damaged(&path, e))?;
    if Digest::of(&bytes) != digest {
        return Err(damaged(&path, "has another content than its digest says"));
    }
    Ok(Manifest::parse(&bytes, release)?)
}

/// Compares all of a release with its manifest and yields that.
///
/// # Errors
/// The first difference.
pub fn verify(folder: &Path, digest: Digest, release: &ReleaseName) -> Result<Manifest, TreeError> {
    verify_but(|_| false, folder, digest, release)
}

/// As [`verify`]. Of files that `skipped` names, only that they are there with their size: who uses them verifies them.
///
/// # Errors
/// The first difference.
pub fn verify_but(
    skipped: fn(&str) -> bool,
    folder: &Path,
    digest: Digest,
    release: &ReleaseName,
) -> Result<Manifest, TreeError> {
    let manifest = manifest(folder, digest, release)?;
    let tree = tree_folder(folder);
    let mut folders = BTreeSet::new();
    for entry in &manifest.files {
        check_folders(&tree, entry.path.as_str(), &mut folders)?;
        match skipped(entry.path.as_str()) {
            true => open(&tree, entry).map(drop)?,
            false => check(&tree, entry).map(drop)?,
        }
    }
    Ok(manifest)
}

/// Every folder on the way to `path` is a folder and no link.
fn check_folders(tree: &Path, path: &str, seen: &mut BTreeSet<PathBuf>) -> Result<(), TreeError> {
    let parents = path.match_indices('/').filter_map(|(i, _)| path.get(..i));
    for folder in std::iter::once("").chain(parents).map(|relative| tree.join(relative)) {
        if seen.insert(folder.clone()) && !fs::symlink_metadata(&folder).is_ok_and(|m| m.is_dir()) {
            return Err(damaged(&folder, "is not a folder"));
        }
    }
    Ok(())
}

/// Opens one file, which is as its entry says but for its content.
fn open(tree: &Path, entry: &FileEntry) -> Result<File, TreeError> {
    let path = tree.join(entry.path.as_str());
    let no_link = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
    // A pipe in its place must not keep us waiting for a writer.
    let no_wait = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let opened = OpenOptions::new().read(true).custom_flags(no_link | no_wait).open(&path);
    let file = opened.map_err(|e| damaged(&path, format!("cannot be read ({e})")))?;
    let metadata = file.metadata().map_err(|e| damaged(&path, e))?;
    if !metadata.is_file() || metadata.len() != entry.size {
        return Err(damaged(&path, format!("is not a file of {} bytes", entry.size)));
    }
    if (metadata.permissions().mode() & 0o111 != 0) != entry.executable {
        return Err(damaged(&path, "has other permissions than signed"));
    }
    Ok(file)
}

/// Compares one file with its entry.
pub(super) fn check(tree: &Path, entry: &FileEntry) -> Result<File, TreeError> {
    let path = tree.join(entry.path.as_str());
    let file = open(tree, entry)?;
    let (digest, _) = Digest::of_reader(&file).map_err(|e| damaged(&path, e))?;
    if digest != entry.digest {
        return Err(damaged(&path, "has another content than signed"));
    }
    Ok(file)
}

/// Removes every release but those in `keep`, half-made ones too.
///
/// # Errors
/// When the folder cannot be read or something cannot be removed.
pub fn collect(releases: &Path, keep: &BTreeSet<Digest>) -> io::Result<()> {
    let entries = match fs::read_dir(releases) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let digest = Digest::from_hex(name.strip_suffix(".tmp").unwrap_or(&name));
        if digest.is_ok_and(|d| keep.contains(&d)) {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}
