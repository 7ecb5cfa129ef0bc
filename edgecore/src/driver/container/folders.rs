//! Folders of the box that an app's containers write to: its data, and its volumes by name.
//!
//! Whoever runs in a container may put anything into them, such as a link in the place of a folder, and the engine
//! follows links when it mounts. So a volume lies beside the data and not in it: where it is, no container writes.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, lchown},
    path::{Path, PathBuf},
};

use proto::{durable, name::Name};

use crate::secrets::Owner;

/// Name of the folder of all volumes, beside the data.
const VOLUMES: &str = "volumes";

/// Where a volume of an app is whose data is at `data`.
pub fn volume(data: &Path, name: &Name) -> PathBuf {
    data.with_file_name(VOLUMES).join(name.as_str())
}

/// Makes those that are not there, and gives all to the user of the container.
///
/// # Errors
/// When the file system refuses.
pub fn make<'a>(data: &Path, volumes: impl Iterator<Item = &'a Name>, owner: Owner) -> io::Result<()> {
    durable::create_dir_all(data).map_err(io::Error::other)?;
    give(data, owner)?;
    for name in volumes {
        let folder = volume(data, name);
        if !folder.exists() {
            move_out(&data.join(name.as_str()), &folder)?;
        }
        durable::create_dir_all(&folder).map_err(io::Error::other)?;
        give(&folder, owner)?;
    }
    Ok(())
}

/// Where volumes were before: in the data.
fn move_out(before: &Path, now: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(before).is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    now.parent().map_or(Ok(()), |all| durable::create_dir_all(all).map_err(io::Error::other))?;
    fs::rename(before, now)?;
    for changed in [before, now] {
        durable::sync_parent(changed).map_err(io::Error::other)?;
    }
    Ok(())
}

/// What is in it stays whose it is.
fn give(folder: &Path, owner: Owner) -> io::Result<()> {
    let Some((user, group)) = owner else { return Ok(()) };
    let found = fs::symlink_metadata(folder)?;
    if (found.uid(), found.gid()) == (user, group) {
        return Ok(());
    }
    lchown(folder, Some(user), Some(group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_puts_in_the_place_of_a_volume_is_never_mounted() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let (cache, index): (Name, Name) = ("cache".parse().unwrap(), "index".parse().unwrap());
        let names = [&cache, &index];
        // As an agent of before had them, and as somebody left them who wants the box.
        fs::create_dir_all(data.join("cache")).unwrap();
        fs::write(data.join("cache/kept"), "x").unwrap();
        std::os::unix::fs::symlink("/", data.join("index")).unwrap();
        let me = fs::metadata(&data).unwrap();
        make(&data, names.into_iter(), Some((me.uid(), me.gid()))).unwrap();
        assert_eq!(fs::read_to_string(volume(&data, &cache).join("kept")).unwrap(), "x");
        assert!(!data.join("cache").exists());
        let found = fs::symlink_metadata(volume(&data, &index)).unwrap();
        assert!(found.is_dir() && fs::read_dir(volume(&data, &index)).unwrap().next().is_none());
        // Another time nothing changes.
        fs::create_dir(data.join("cache")).unwrap();
        make(&data, names.into_iter(), None).unwrap();
        assert!(volume(&data, &cache).join("kept").exists());
    }

    #[test]
    fn a_folder_is_its_users() {
        if !rustix::process::geteuid().is_root() {
            return; // nobody else can give files away
        }
        let folder = tempfile::tempdir().unwrap();
        let (data, cache) = (folder.path().join("data"), "cache".parse().unwrap());
        make(&data, [&cache].into_iter(), Some((4711, 4712))).unwrap();
        for made in [data.clone(), volume(&data, &cache)] {
            let found = fs::metadata(made).unwrap();
            assert_eq!((found.uid(), found.gid()), (4711, 4712));
        }
    }
}
