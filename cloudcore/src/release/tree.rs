//! Walks the files of a release and refuses what it must not hold. Called by [`super::build`].
//!
//! A release is plain files. A link is followed when it stays inside the folder that is packed (the
//! content is released in its place, and stored once); a link that leaves it, a device, a pipe, a
//! socket and a name that is not UTF-8 are refused. Empty folders do not exist in a release.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use proto::release::{MAX_FILES, ManifestError, TreePath};

use super::{ReleaseError, io_error};

/// Deepest nesting of folders.
const MAX_DEPTH: usize = 64;

/// A file to release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it goes.
    pub path: TreePath,
    /// Where it is.
    pub source: PathBuf,
    /// Whether its permission bits let anybody execute it.
    pub executable: bool,
}

/// Finds all files of one artifact: `source` itself when it is a file, all below it when it is a
/// folder. `target` is where the file goes, or below which path the folder's content goes.
///
/// # Errors
/// The first file that is refused, by name.
pub fn find(source: &Path, target: Option<&str>, found: &mut Vec<Found>) -> Result<(), ReleaseError> {
    // What the engineer names may be a link (`current -> 1.4.0`); what lies inside must stay inside.
    let root = fs::canonicalize(source).map_err(io_error("find the artifact", source))?;
    let target = target.map(|t| t.trim_end_matches('/')).filter(|t| !t.is_empty() && *t != ".");
    let kind = fs::metadata(&root).map_err(io_error("look at", &root))?;
    if kind.is_dir() {
        let prefix = target.map(|t| TreePath::try_from(t.to_owned())).transpose()?;
        let mut walk = Walk { root: &root, found, above: vec![root.clone()] };
        return walk.folder(&root, prefix.as_ref().map(TreePath::as_str));
    }
    refuse_special(source, &kind)?;
    let name = match target {
        Some(target) => target.to_owned(),
        None => text_name(source, source.file_name())?,
    };
    push(found, name, source.to_owned(), &kind)
}

struct Walk<'a> {
    root: &'a Path,
    found: &'a mut Vec<Found>,
    /// Folders that we are inside of, to notice links that lead round in a circle.
    above: Vec<PathBuf>,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path, prefix: Option<&str>) -> Result<(), ReleaseError> {
        if self.above.len() > MAX_DEPTH {
            return refuse(folder, format!("it is nested deeper than {MAX_DEPTH} folders"));
        }
        let entries = fs::read_dir(folder).map_err(io_error("list", folder))?;
        let mut paths = vec![];
        for entry in entries {
            paths.push(entry.map_err(io_error("list", folder))?.path());
        }
        paths.sort();
        for path in paths {
            let name = text_name(&path, path.file_name())?;
            let target = prefix.map_or(name.clone(), |prefix| format!("{prefix}/{name}"));
            self.entry(&path, target)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, target: String) -> Result<(), ReleaseError> {
        let link = fs::symlink_metadata(path).map_err(io_error("look at", path))?;
        let source = if link.is_symlink() { self.follow(path)? } else { path.to_owned() };
        let kind = fs::metadata(&source).map_err(io_error("look at", &source))?;
        if !kind.is_dir() {
            refuse_special(path, &kind)?;
            return push(self.found, target, source, &kind);
        }
        let real = fs::canonicalize(&source).map_err(io_error("look at", &source))?;
        if self.above.contains(&real) {
            return refuse(path, "it is a link that leads round in a circle; remove it".into());
        }
        TreePath::try_from(target.clone())?;
        self.above.push(real);
        self.folder(&source, Some(&target))?;
        self.above.pop();
        Ok(())
    }

    /// Where a link leads, if that is inside.
    fn follow(&self, path: &Path) -> Result<PathBuf, ReleaseError> {
        let written = fs::read_link(path).map_err(io_error("read the link", path))?;
        let real = fs::canonicalize(path)
            .map_err(|_| tree_error(path, format!("it is a link to {}, which is not there", written.display())))?;
        if !real.starts_with(self.root) {
            let problem = format!(
                "it is a link to {}, outside of {}; copy what it leads to, or remove it",
                written.display(),
                self.root.display()
            );
            return refuse(path, problem);
        }
        Ok(real)
    }
}

fn push(found: &mut Vec<Found>, target: String, source: PathBuf, kind: &fs::Metadata) -> Result<(), ReleaseError> {
    if found.len() >= MAX_FILES {
        return Err(ManifestError::TooManyFiles(found.len() + 1).into());
    }
    found.push(Found { path: TreePath::try_from(target)?, source, executable: kind.mode() & 0o111 != 0 });
    Ok(())
}

fn refuse_special(path: &Path, kind: &fs::Metadata) -> Result<(), ReleaseError> {
    let file_type = kind.file_type();
    let what = if file_type.is_file() {
        return Ok(());
    } else if file_type.is_block_device() || file_type.is_char_device() {
        "a device file"
    } else if file_type.is_fifo() {
        "a named pipe"
    } else if file_type.is_socket() {
        "a socket"
    } else {
        "neither a file nor a folder"
    };
    refuse(path, format!("it is {what}; a release holds plain files, remove it from the folder"))
}

fn text_name(path: &Path, name: Option<&std::ffi::OsStr>) -> Result<String, ReleaseError> {
    let name = name.and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| tree_error(path, "its name is not UTF-8; rename it".into()))
}

fn tree_error(path: &Path, problem: String) -> ReleaseError {
    ReleaseError::Tree { path: path.to_owned(), problem }
}

fn refuse<T>(path: &Path, problem: String) -> Result<T, ReleaseError> {
    Err(tree_error(path, problem))
}
