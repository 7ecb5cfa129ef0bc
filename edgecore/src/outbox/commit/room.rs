//! Room on the disk: the ballast that is let go when it is full, what is shed then, and pages given back at rest.

use std::{
    fs,
    io::{self, Write as _},
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
};
use proto::stream::Class;

use super::Core;
use crate::{
    disk_space,
    outbox::{
        error::OutboxError,
        lock, space,
        store::{self, Store},
    },
};

/// What is shed at least when the disk is full.
const SHED_BYTES: u64 = 1 << 20;
/// Of the ballast so much is written at once, where it is written.
const BALLAST_PIECE_BYTES: u64 = 64 << 10;
/// The ballast is taken up when the disk has so many times its size left.
const PLENTY: u64 = 4;

impl Core {
    /// A log that is flushed begins anew without growing.
    pub(super) fn flush(&mut self) {
        let reader = lock(&self.shared.reader);
        if let Some(Err(error)) = self.store.as_ref().map(Store::checkpoint) {
            tracing::debug!(error = &error as &dyn std::error::Error, "the log is not flushed on a full disk");
        }
        drop(reader);
    }

    /// Does something with the ballast let go, in pages that the file has: what the log takes of the disk
    /// meanwhile it gives back when it is flushed, and the ballast is whole again.
    pub(super) fn on_ballast<T>(&mut self, work: impl FnOnce(&mut Core) -> T) -> T {
        let _ = fs::remove_file(&self.files.ballast); // if there is none, nothing is gained
        self.flush();
        self.store.iter().for_each(|store| store.may_grow(false));
        let done = work(self);
        self.store.iter().for_each(|store| store.may_grow(true));
        self.flush();
        self.hold_ballast(false);
        done
    }

    /// On a full disk too, logs give way, then metrics.
    pub(super) fn shed_for(&mut self, keenest: Option<Class>, bytes: u64) {
        let Some(store) = &mut self.store else { return };
        let Some(keenest) = keenest else { return };
        let wanted = bytes.max(SHED_BYTES);
        let logs = store.shed(Class::Logs, wanted).unwrap_or(0);
        if keenest < Class::Logs && logs < wanted {
            let _ = store.shed(Class::Metrics, wanted - logs); // what it freed shows in the next attempt
        }
        self.flush(); // the log begins anew with all of the room
    }

    /// Gives pages back, a little a turn; flushes the log when nothing else is to be done. Returns whether others may
    /// see anything of it.
    pub(super) fn rest(&mut self, idle: bool) -> Result<bool, OutboxError> {
        let Some(store) = &mut self.store else {
            self.shrinking = false;
            return Ok(true);
        };
        let used = store.space(self.full)?;
        let mut changed = idle;
        changed |= std::mem::replace(&mut self.full, space::still_full(self.limits, used)) != self.full;
        let pages = space::vacuum_pages(used, self.shrinking);
        self.shrinking = false;
        if pages > 0 {
            store.vacuum(pages)?;
            changed = true;
            self.shrinking = true;
            self.unsettled = true;
        }
        let log = fs::metadata(store::with_suffix(&self.files.db, "-wal")).map_or(0, |m| m.len());
        if idle || log > self.limits.wal_bytes.saturating_mul(2) {
            let reader = lock(&self.shared.reader); // nobody reads, so all of the log can go
            store.checkpoint()?;
            changed = true;
            drop(reader);
        }
        if idle {
            self.unsettled = false;
            self.limits = self.files.limits(&self.config);
            self.hold_ballast(true);
        }
        Ok(changed)
    }

    /// Takes the ballast up: when the disk has plenty, or of what is left.
    fn hold_ballast(&self, only_of_plenty: bool) {
        let free = disk_space::at(&self.files.folder).map_or(0, |disk| disk.free_bytes);
        let wanted = self.limits.ballast_bytes();
        let held = fs::metadata(&self.files.ballast).is_ok_and(|m| m.len() == wanted);
        if held || only_of_plenty && free < wanted * PLENTY {
            return;
        }
        let bytes = wanted.min(free) / 4096 * 4096;
        let reserved = fs::File::create(&self.files.ballast).and_then(|file| {
            match fallocate(&file, FallocateFlags::empty(), 0, bytes.try_into().unwrap_or(i64::MAX)) {
                Err(Errno::EOPNOTSUPP) => write_ballast(&file, bytes)?,
                done => done?,
            }
            file.sync_all()
        });
        if let Err(error) = reserved {
            tracing::debug!(error = &error as &dyn std::error::Error, "no ballast could be taken up");
        }
    }
}

/// Takes up room where the file system cannot reserve it.
fn write_ballast(mut file: &fs::File, bytes: u64) -> io::Result<()> {
    // Not zeros: some file systems keep none of those.
    let page = |i: u64| ((i % 4096 * 31) >> 3) as u8;
    let piece: Vec<u8> = (0..BALLAST_PIECE_BYTES).map(page).collect();
    let mut left = bytes;
    while left > 0 {
        let bytes = left.min(BALLAST_PIECE_BYTES);
        file.write_all(piece.get(..bytes as usize).unwrap_or_default())?;
        left -= bytes;
    }
    Ok(())
}
