//! How large a file system is and what it has left. Asked through the C library, as all else is written: where
//! that is stood in for, such as in the simulator, the answer fits what a write would meet.

use std::{io, path::Path};

/// The space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// All of it.
    pub total_bytes: u64,
    /// What may still be written by anybody.
    pub free_bytes: u64,
}

/// The space of the file system that `path` is on.
///
/// # Errors
/// When there is nothing at `path`, or it cannot be asked.
pub fn at(path: &Path) -> io::Result<DiskSpace> {
    let disk = nix::sys::statvfs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.fragment_size());
    Ok(DiskSpace { total_bytes: bytes(disk.blocks()), free_bytes: bytes(disk.blocks_available()) })
}
