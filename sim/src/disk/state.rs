//! What is known of one disk: what was not synced, what room is taken, whether it takes writes at all.

use std::collections::BTreeMap;

use rustix::fs::{AtFlags, CWD, Stat};

use super::Taker;

/// The disk refuses a call, for this reason (errno).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused(pub i32);

/// A write, or a change of length, that was not synced.
#[derive(Debug)]
pub(super) enum Change {
    /// Bytes from `offset` to `end` were written where `old` stood; nothing stood beyond it.
    Write { offset: u64, end: u64, old: Vec<u8>, length_before: u64 },
    /// The length was changed; `tail` was cut off.
    Length { before: u64, after: u64, tail: Vec<u8> },
}

/// A name that was made, changed or removed, in a folder that was not synced since.
#[derive(Debug)]
pub(super) enum Named {
    /// It is new.
    Made { path: Vec<u8>, folder: bool },
    /// It was another; the file that it replaced is kept under that path.
    Moved { from: Vec<u8>, to: Vec<u8>, over: Option<Vec<u8>> },
    /// It is gone; the file is kept under that path.
    Gone { path: Vec<u8>, kept: Vec<u8> },
    /// The folder is gone.
    FolderGone { path: Vec<u8> },
}

impl Named {
    pub fn path(&self) -> &[u8] {
        match self {
            Named::Made { path, .. } | Named::Gone { path, .. } | Named::FolderGone { path } => path,
            Named::Moved { to, .. } => to,
        }
    }

    pub fn kept(&self) -> Option<&[u8]> {
        match self {
            Named::Moved { over, .. } => over.as_deref(),
            Named::Gone { kept, .. } => Some(kept),
            Named::Made { .. } | Named::FolderGone { .. } => None,
        }
    }
}

/// What is known of a disk.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Where removed files are kept, with a slash at its end.
    pub keep: Vec<u8>,
    pub kept: u64,
    pub frozen: bool,
    /// Changes and syncs that still are taken before it freezes by itself.
    pub calls_left: Option<u64>,
    pub room: BTreeMap<Taker, u64>,
    pub refuses: Option<Vec<u8>>,
    pub refused_full: u64,
    pub refused_broken: u64,
    /// By inode.
    pub changes: BTreeMap<u64, Vec<Change>>,
    pub names: Vec<Named>,
    /// The call under way is the last of `names`; it is taken back when it fails.
    pub under_way: bool,
}

impl State {
    /// Asked once by each call that changes or syncs.
    pub fn alive(&mut self) -> Result<(), Refused> {
        if let Some(left) = &mut self.calls_left {
            self.frozen |= *left == 0;
            *left = left.saturating_sub(1);
        }
        if self.frozen { Err(Refused(libc::EIO)) } else { Ok(()) }
    }

    /// What may still be written; without anybody who takes room, what a box usually has.
    pub fn left(&self) -> u64 {
        self.room.values().copied().min().unwrap_or(super::FREE_BYTES)
    }

    /// Takes room for so many bytes.
    pub fn grow(&mut self, bytes: u64) -> Result<(), Refused> {
        if bytes > 0 && self.room.values().any(|left| *left < bytes) {
            self.refused_full += 1;
            return Err(Refused(libc::ENOSPC));
        }
        self.room.values_mut().for_each(|left| *left -= bytes);
        Ok(())
    }

    pub fn shrink(&mut self, bytes: u64) {
        self.room.values_mut().for_each(|left| *left += bytes);
    }

    /// Keeps a file that loses its name, and returns where.
    pub fn keep(&mut self, path: &[u8], stat: &Stat) -> Option<Vec<u8>> {
        if stat.st_nlink == 1 {
            self.shrink(length(stat));
        }
        self.kept += 1;
        let kept = [self.keep.as_slice(), self.kept.to_string().as_bytes()].concat();
        rustix::fs::linkat(CWD, path, CWD, kept.as_slice(), AtFlags::empty()).ok()?;
        Some(kept)
    }

    pub fn name(&mut self, named: Named) {
        self.names.push(named);
        self.under_way = true;
    }

    /// The names of a folder are synced, and with one that is gone all that was in it.
    pub fn sync_folder(&mut self, folder: &[u8]) {
        let mut gone: Vec<Vec<u8>> = vec![];
        let mut left = vec![];
        // From the last on: what was made in a new folder of the same name is no part of the old one.
        for named in std::mem::take(&mut self.names).into_iter().rev() {
            let synced = parent(named.path()) == folder || gone.iter().any(|gone| named.path().starts_with(gone));
            if !synced {
                left.push(named);
                continue;
            }
            if let Some(kept) = named.kept() {
                remove(kept);
            }
            if let Named::FolderGone { path } = &named {
                gone.push(with_slash(path));
            }
        }
        left.reverse();
        self.names = left;
    }

    pub fn change(&mut self, inode: u64, change: Change) {
        let changes = self.changes.entry(inode).or_default();
        // What is added piece by piece is one write.
        if let (Some(Change::Write { end, old, .. }), Change::Write { offset, end: next, old: none, .. }) =
            (changes.last_mut(), &change)
            && old.is_empty()
            && none.is_empty()
            && end == offset
        {
            *end = *next;
            return;
        }
        changes.push(change);
    }
}

pub(super) fn with_slash(path: &[u8]) -> Vec<u8> {
    [path, b"/"].concat()
}

pub(super) fn remove(path: &[u8]) {
    let _ = rustix::fs::unlinkat(CWD, path, AtFlags::empty()); // one that stays disturbs nobody
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').and_then(|at| path.get(..at)).unwrap_or_default()
}

pub(super) fn stat(path: &[u8]) -> Option<Stat> {
    rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).ok()
}

pub(super) fn is_folder(stat: &Stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

pub(super) fn length(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}
