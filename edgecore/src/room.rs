//! How large a file system is and what it has left. Asked through the C library, as all else is written: where
//! that is stood in for, such as in the simulator, the answer fits what a write would meet.

use std::{io, path::Path};

/// A file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// All of it.
    pub total: u64,
    /// What may still be written by anybody.
    pub free: u64,
}

/// The file system that `path` is on.
///
/// # Errors
/// When there is nothing at `path`, or it cannot be asked.
pub fn at(path: &Path) -> io::Result<Room> {
    let disk = nix::sys::statvfs::statvfs(path)?;
    let unit = disk.fragment_size();
    Ok(Room { total: disk.blocks().saturating_mul(unit), free: disk.blocks_available().saturating_mul(unit) })
}
