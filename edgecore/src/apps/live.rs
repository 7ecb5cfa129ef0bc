//! Which of an app's two instances is live, for them and their clients: the link `live` in the app's `run` folder.
//!
//! ```text
//! apps/<app>/run/a, run/b      the instances' own folders, for their sockets; emptied before each start
//! apps/<app>/run/live -> a     the one that is live
//! ```
//!
//! It follows the slot, as [`current`](super::current) does, and is replaced by one rename. Workloads that are updated
//! warm ([`Strategy::Warm`](proto::release::Strategy)) get both as [`OWN`] and [`LIVE`]; others have none of it. The
//! agent is not in the way of what clients send: it goes on with no agent too.

use std::{
    fs, io,
    os::unix::fs::{chown, symlink},
    path::{Path, PathBuf},
};

use proto::durable;

use crate::driver::Side;

/// Names an instance's own folder to it.
pub const OWN: &str = "CROSSDOCK_RUN";
/// Names the link to it.
pub const LIVE: &str = "CROSSDOCK_LIVE";
/// Name of the link.
pub const NAME: &str = "live";

/// The folder of an instance, in the app's.
#[must_use]
pub fn own(folder: &Path, side: Side) -> PathBuf {
    run(folder).join(side.letter())
}

fn run(folder: &Path) -> PathBuf {
    folder.join("run")
}

/// Which one is live; `None` when the link is absent or nothing that [`link`] makes.
#[must_use]
pub fn linked(folder: &Path) -> Option<Side> {
    let target = fs::read_link(run(folder).join(NAME)).ok()?;
    Side::ALL.into_iter().find(|side| target == Path::new(side.letter()))
}

/// Makes one live. Blocks.
///
/// # Errors
/// When the folder cannot be changed; then the other stays live.
pub fn link(folder: &Path, side: Side) -> io::Result<()> {
    let run = run(folder);
    durable::create_dir_all(&run).map_err(io::Error::other)?;
    let (path, fresh) = (run.join(NAME), run.join("live.tmp"));
    durable::remove(&fresh).map_err(io::Error::other)?; // left by a cut
    symlink(side.letter(), &fresh)?;
    fs::rename(&fresh, &path)?;
    durable::sync_parent(&path).map_err(io::Error::other)
}

/// Empties an instance's folder, in which the one before may have left its sockets. Blocks.
///
/// # Errors
/// When it cannot be made, or given to `owner`.
pub fn empty(own: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    match fs::remove_dir_all(own) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => durable::create_dir_all(own).map_err(io::Error::other)?,
    }
    owner.map_or(Ok(()), |(uid, gid)| chown(own, Some(uid), Some(gid)))
}

/// Removes all of it, when the app is removed. Blocks.
///
/// # Errors
/// When something stays.
pub fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(run(folder)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_two_is_live() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(linked(folder.path()), None);
        for side in [Side::A, Side::B, Side::B, Side::A] {
            empty(&own(folder.path(), side), None).unwrap();
            fs::write(own(folder.path(), side).join("socket"), side.letter()).unwrap();
            link(folder.path(), side).unwrap();
            assert_eq!(linked(folder.path()), Some(side));
            let reached = fs::read_to_string(folder.path().join("run/live/socket")).unwrap();
            assert_eq!(reached, side.letter(), "clients reach the live one");
        }
        empty(&own(folder.path(), Side::A), None).unwrap();
        assert!(fs::read_dir(own(folder.path(), Side::A)).unwrap().next().is_none());
        remove(folder.path()).unwrap();
        remove(folder.path()).unwrap();
        assert_eq!(linked(folder.path()), None);
    }
}
