//! Plaintext files: written whole, for one user, and cleared away.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, fchown},
    path::Path,
};

use super::{SecretsError, io_error};
use crate::driver::exec::Account;

/// Whom the files are given to: user and group; nobody else than the agent's user without.
pub(crate) type Owner = Option<(u32, u32)>;

/// The owner for a workload's user. An agent that is not root can give files to nobody, and runs nothing for others.
pub(super) fn owner(user: Option<&str>) -> Result<Owner, String> {
    let Some(user) = user.filter(|_| rustix::process::geteuid().is_root()) else { return Ok(None) };
    let account = Account::find(user).map_err(|e| e.to_string())?;
    Ok(Some((account.uid.as_raw(), account.gid.as_raw())))
}

/// The owner for a container's user: names are its image's, so only numbers, `1000` or `1000:1000`, mean anything here.
pub(crate) fn owner_in_container(user: Option<&str>) -> Result<Owner, String> {
    let Some(text) = user.filter(|_| rustix::process::geteuid().is_root()) else { return Ok(None) };
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    match (user.parse(), group.parse()) {
        (Ok(user), Ok(group)) => Ok(Some((user, group))),
        _ => Err(format!("user {text:?} of a container with secrets must be a number, such as 1000 or 1000:1000")),
    }
}

/// Writes one file, by name.
pub(super) type Write<'a> = &'a dyn Fn(&str, &[u8]) -> Result<(), SecretsError>;

/// Replaces a folder by one that `fill` writes, which its owner may read: as it was, or whole.
pub(super) fn replace(
    folder: &Path,
    owner: Owner,
    fill: impl FnOnce(Write<'_>) -> Result<(), SecretsError>,
) -> Result<(), SecretsError> {
    let next = folder.with_extension("new");
    clear(&next)?;
    if let Some(parent) = folder.parent() {
        DirBuilder::new().recursive(true).mode(0o711).create(parent).map_err(io_error("make", parent))?;
    }
    DirBuilder::new().mode(0o700).create(&next).map_err(io_error("make", &next))?;
    let filled = fill(&|name, content| {
        let path = next.join(name);
        write(&path, owner, content).map_err(io_error("write", &path))
    });
    let placed = filled.and_then(|()| {
        if let Some((user, group)) = owner {
            chown(&next, Some(user), Some(group)).map_err(io_error("give away", &next))?;
        }
        fs::set_permissions(&next, fs::Permissions::from_mode(0o500)).map_err(io_error("close", &next))?;
        clear(folder)?;
        fs::rename(&next, folder).map_err(io_error("put in place", folder))
    });
    if placed.is_err() {
        clear(&next)?;
    }
    placed
}

fn write(path: &Path, owner: Owner, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?;
    file.write_all(content)?;
    match owner {
        Some((user, group)) => fchown(&file, Some(user), Some(group)),
        None => Ok(()),
    }
}

/// Removes a folder; that it is gone already is success.
pub(super) fn clear(folder: &Path) -> Result<(), SecretsError> {
    if fs::symlink_metadata(folder).is_err() {
        return Ok(());
    }
    clear_in(folder, |_| true)?;
    fs::remove_dir(folder).map_err(io_error("remove", folder))
}

/// Removes what is in a folder and has such a name. Closed folders are opened for it.
pub(super) fn clear_in(folder: &Path, gone: impl Fn(&str) -> bool) -> Result<(), SecretsError> {
    for entry in fs::read_dir(folder).map_err(io_error("read", folder))? {
        let path = entry.map_err(io_error("read", folder))?.path();
        if !path.file_name().is_some_and(|name| gone(&name.to_string_lossy())) {
            continue;
        }
        let removed = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).and_then(|()| fs::remove_dir_all(&path))
            }
            _ => fs::remove_file(&path),
        };
        removed.map_err(io_error("remove", &path))?;
    }
    Ok(())
}
