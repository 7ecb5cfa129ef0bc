//! The way to the files of an app's release for other apps: the link `current` in the app's folder.
//!
//! ```text
//! apps/<app>/current -> releases/<digest>/tree
//! ```
//!
//! It leads to the release on trial, or else to the active one, and is replaced by one rename: whoever opens a path
//! through it sees one release or the other. A program that reads several files resolves it once; the release before
//! stays on disk until the next but one. What it should be follows from the slot, so a cut in between is made good by
//! the planner. Workloads get the folder of all apps as `CROSSDOCK_APPS`.

use std::{fs, io, os::unix::fs::symlink, path::Path};

use proto::{digest::Digest, durable};

use crate::fetch::tree;

/// Name of the link.
pub const NAME: &str = "current";

/// Where it leads now; `None` when it is absent or nothing that [`link`] makes.
#[must_use]
pub fn linked(folder: &Path) -> Option<Digest> {
    let target = fs::read_link(folder.join(NAME)).ok()?;
    let digest = Digest::from_hex(target.iter().nth(1)?.to_str()?).ok()?;
    (target == way(digest)).then_some(digest)
}

/// Has it lead to a release, or nowhere. Blocks.
///
/// # Errors
/// When the folder cannot be changed; then it leads where it did.
pub fn link(folder: &Path, digest: Option<Digest>) -> io::Result<()> {
    let (path, fresh) = (folder.join(NAME), folder.join("current.tmp"));
    let Some(digest) = digest else {
        return durable::remove(&path).map_err(io::Error::other);
    };
    durable::remove(&fresh).map_err(io::Error::other)?; // left by a cut
    symlink(way(digest), &fresh)?;
    fs::rename(&fresh, &path)?;
    durable::sync_parent(&path).map_err(io::Error::other)
}

fn way(digest: Digest) -> std::path::PathBuf {
    tree::tree_folder(&tree::release_folder(Path::new("releases"), digest))
}
