//! Disk is reserved before anything is fetched, so that a release that cannot fit is not begun.

use std::{
    fmt, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::FetchError;
use crate::disk_space;

/// Disk that a release never takes: the box needs some to live.
pub const MARGIN_BYTES: u64 = 64 << 20;

type Free = dyn Fn(&Path) -> io::Result<u64> + Send + Sync;

/// What is left of the disk, and what is promised to fetches under way. Clones share the promises.
#[derive(Clone)]
pub struct Space {
    free: Arc<Free>,
    reserved: Arc<AtomicU64>,
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space").field("reserved", &self.reserved).finish_non_exhaustive()
    }
}

impl Space {
    /// The file systems of this machine.
    #[must_use]
    pub fn of_disk() -> Space {
        Space::new(|path| Ok(disk_space::at(path)?.free_bytes))
    }

    /// As `free` says, such as in a test.
    #[must_use]
    pub fn new(free: impl Fn(&Path) -> io::Result<u64> + Send + Sync + 'static) -> Space {
        Space { free: Arc::new(free), reserved: Arc::default() }
    }

    /// Promises `needed` bytes below `path` until the answer is dropped.
    ///
    /// What a fetch has written counts twice until it ends, once as used and once as promised: that
    /// errs towards refusing a second fetch on a disk that is nearly full.
    pub(super) fn reserve(&self, path: &Path, needed: u64) -> Result<Reservation, FetchError> {
        let on_disk = (self.free)(path).map_err(|source| FetchError::Io { path: path.to_owned(), source })?;
        let usable = on_disk.saturating_sub(MARGIN_BYTES);
        let promised = self.reserved.fetch_add(needed, Ordering::SeqCst);
        let reservation = Reservation { space: self.clone(), bytes: needed };
        let free = usable.saturating_sub(promised);
        if needed > free {
            return Err(FetchError::DiskFull { needed, free, path: path.to_owned() });
        }
        Ok(reservation)
    }
}

/// A promise of disk.
#[derive(Debug)]
pub(super) struct Reservation {
    space: Space,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.space.reserved.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Bytes for people: `12.3 MiB`.
pub(crate) fn people(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, size)| bytes >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", bytes as f64 / *size as f64),
        None => format!("{bytes} bytes"),
    }
}
