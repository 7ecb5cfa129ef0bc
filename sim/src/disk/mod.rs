//! Disks of simulated machines: a power cut loses what was not synced, a full disk takes no more.
//!
//! ```text
//! std::fs, SQLite --write, rename, fsync...--> hook --> journal: what to undo --> the real folder
//!                                                          | fsync: forget it
//!                                              power cut --+--> lose some of it, drawn from the seed
//! ```
//!
//! The files of a disk are real ones below its folder, so that hub and agent run unmodified. What was
//! written and not synced stands in a journal with what was there before. At a power cut each such write
//! stays, goes, or stays in some of its 512-byte sectors. Names (files made, renamed, removed and folders) come
//! back from a journal of the file system, as they do in practice: a first part of those that were not synced
//! stays, the rest goes. A file system that makes a name durable with the file's own fsync would be kinder; that
//! is not promised anywhere, and not done here.

mod hook;
mod journal;
mod power;
mod state;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use proto::env::Seed;

pub use self::power::Lost;

/// Size of every disk, and what is left of it while nobody takes room: the same on every machine.
const TOTAL_BYTES: u64 = 64 << 30;
const FREE_BYTES: u64 = 32 << 30;

/// A simulated disk. Dropping it lets its folder be an ordinary one.
#[derive(Debug)]
pub struct Disk {
    number: u32,
    folder: PathBuf,
}

/// Who takes room on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Taker {
    /// A fault.
    Fault,
    /// A workload.
    Workload,
}

impl Disk {
    /// Makes `folder` a disk; it must be absolute. Beside it a folder keeps what may have to come back.
    ///
    /// # Errors
    /// When the folder beside it cannot be made.
    pub fn new(folder: &Path) -> std::io::Result<Disk> {
        let keep = folder.with_extension("journal");
        std::fs::create_dir_all(&keep)?;
        let number = journal::register(folder, &keep);
        Ok(Disk { number, folder: folder.to_owned() })
    }

    /// Whether writes are taken at all. A process that was killed does not write any more, although its
    /// destructors run here.
    pub fn freeze(&self, frozen: bool) {
        journal::with(self.number, |state| state.frozen = frozen);
    }

    /// Freezes by itself after so many more changes and syncs: a machine that goes out in the middle of something.
    pub fn freeze_after(&self, calls: u64) {
        journal::with(self.number, |state| state.calls_left = Some(calls));
    }

    /// Whether it froze by itself; it takes writes again.
    pub fn thaw(&self) -> bool {
        journal::with(self.number, |state| {
            state.calls_left = None;
            std::mem::take(&mut state.frozen)
        })
        .unwrap_or_default()
    }

    /// Takes all room but `left` bytes, or gives it back. Whoever frees some may use it. Who has taken room
    /// already has what it took.
    pub fn set_room(&self, taker: Taker, left: Option<u64>) {
        journal::with(self.number, |state| match left {
            Some(left) => {
                state.room.entry(taker).or_insert(left);
            }
            None => {
                state.room.remove(&taker);
            }
        });
    }

    /// Lets writes to files whose names begin so fail, or none.
    pub fn refuse_writes(&self, prefix: Option<&str>) {
        journal::with(self.number, |state| state.refuses = prefix.map(|p| p.as_bytes().to_owned()));
    }

    /// Writes that were refused so far: for want of room, and because they were to fail.
    #[must_use]
    pub fn refused(&self) -> (u64, u64) {
        journal::with(self.number, |state| (state.refused_full, state.refused_broken)).unwrap_or_default()
    }

    /// All that was written counts as synced, such as after somebody else changed the folder.
    pub fn forget(&self) {
        journal::forget(self.number);
    }

    /// The power goes: loses some of what was not synced. Nobody may have a file of the disk open for writing.
    ///
    /// # Errors
    /// When the real folder cannot be read or written.
    pub fn power_cut(&self, seed: &Seed) -> std::io::Result<Lost> {
        power::cut(&self.folder, journal::take(self.number), seed)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        journal::unregister(self.number);
    }
}

/// All files below a folder, whole paths in no order; none where there is no folder.
pub(crate) fn files_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = vec![];
    if !folder.exists() {
        return Ok(files);
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() => files.extend(files_below(&entry.path())?),
            kind if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
