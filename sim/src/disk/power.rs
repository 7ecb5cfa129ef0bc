//! A power cut: which of the changes that were not synced stay.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fmt, fs, io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::Path,
};

use proto::env::Seed;
use rand::RngExt as _;
use rand_chacha::ChaCha12Rng;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use super::{
    files_below,
    state::{Change, Named},
};

/// What a disk writes whole or not at all.
const SECTOR_BYTES: u64 = 512;

/// What a power cut took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Writes and changes of length that are gone, whole or in parts.
    pub writes: u64,
    /// Names that are again as they were.
    pub names: u64,
    /// Writes and names that were not synced.
    pub of: u64,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lost { writes, names, of } = self;
        write!(f, "{writes} writes and {names} names of {of} changes that were not synced are gone")
    }
}

/// What becomes of the writes to one file.
#[derive(Clone, Copy)]
enum Fate {
    /// All stay.
    Kept,
    /// All go.
    Gone,
    /// Each stays or goes, or is torn.
    Mixed,
}

pub(super) fn cut(
    folder: &Path,
    (mut changes, mut names): (BTreeMap<u64, Vec<Change>>, Vec<Named>),
    seed: &Seed,
) -> io::Result<Lost> {
    let writes: usize = changes.values().map(Vec::len).sum();
    let mut lost = Lost { of: (writes + names.len()) as u64, ..Lost::default() };
    let kept = match fate(&mut seed.stream("names")) {
        Fate::Kept => names.len(),
        Fate::Gone => 0,
        Fate::Mixed => seed.stream("names that stay").random_range(0..=names.len()),
    };
    let undone = names.split_off(kept);
    lost.names = undone.len() as u64;
    undone.into_iter().rev().for_each(undo);
    let mut files = vec![];
    for path in files_below(folder)? {
        let inode = fs::metadata(&path)?.ino();
        files.push((path, inode));
    }
    // By path: the numbers of inodes differ from run to run.
    files.sort();
    for (path, inode) in files {
        if path.as_os_str().as_bytes().ends_with(b"-shm") {
            fs::remove_file(&path)?;
        } else if let Some(changes) = changes.remove(&inode) {
            let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
            lost.writes += restore(&path, changes, &mut seed.child("writes").stream(&name))?;
        }
    }
    names.into_iter().for_each(forget);
    Ok(lost)
}

fn fate(choice: &mut ChaCha12Rng) -> Fate {
    match choice.random_range(0..4) {
        0 => Fate::Kept,
        1 => Fate::Gone,
        _ => Fate::Mixed,
    }
}

/// Puts a name back. What is not as it was any more, such as a folder that is not empty, stays.
fn undo(named: Named) {
    match named {
        Named::Made { path, folder } => {
            let flags = if folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            let _ = rustix::fs::unlinkat(CWD, path, flags);
        }
        Named::Moved { from, to, over } => {
            let _ = rustix::fs::renameat(CWD, to.as_slice(), CWD, from);
            if let Some(kept) = over {
                let _ = rustix::fs::renameat(CWD, kept, CWD, to);
            }
        }
        Named::Gone { path, kept } => {
            let _ = rustix::fs::renameat(CWD, kept, CWD, path);
        }
        Named::FolderGone { path } => {
            let _ = rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o755));
        }
    }
}

/// A name that stays changed needs nothing any more of what it replaced.
fn forget(named: Named) {
    if let Named::Moved { over: Some(kept), .. } | Named::Gone { kept, .. } = named {
        let _ = fs::remove_file(OsStr::from_bytes(&kept)); // one that stays disturbs nobody
    }
}

/// Takes back some of the changes of a file, the last first: a sector holds what the last write that stays
/// left there, so what an older one did to it does not matter any more. Returns how many are gone or torn.
fn restore(path: &Path, changes: Vec<Change>, choice: &mut ChaCha12Rng) -> io::Result<u64> {
    let fate = fate(choice);
    // Lengths are names of the file system: a first part of their changes stays.
    let lengths_kept = match fate {
        Fate::Kept => changes.len(),
        Fate::Gone => 0,
        Fate::Mixed => choice.random_range(0..=changes.len()),
    };
    let length = changes.get(lengths_kept).map(|change| match change {
        Change::Write { length_before, .. } => *length_before,
        Change::Length { before, .. } => *before,
    });
    // It may be read-only by now.
    let mode = fs::metadata(path)?.permissions();
    let mut writable = mode.clone();
    std::os::unix::fs::PermissionsExt::set_mode(&mut writable, 0o600);
    fs::set_permissions(path, writable)?;
    let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let put = |offset: u64, bytes: &[u8]| rustix::io::pwrite(&file, bytes, offset).map(drop);
    let (mut decided, mut gone) = (BTreeSet::new(), 0);
    for (index, change) in changes.into_iter().enumerate().rev() {
        match change {
            Change::Length { before, after, .. } if index < lengths_kept => {
                decided.extend(after.div_ceil(SECTOR_BYTES)..before.div_ceil(SECTOR_BYTES));
            }
            Change::Length { after, tail, .. } => {
                gone += 1;
                let end = after + tail.len() as u64;
                for (sector, from, to) in sectors(after, end) {
                    if !decided.contains(&sector) {
                        put(from, part(&tail, after, from, to))?;
                    }
                }
            }
            Change::Write { offset, end, old, .. } => {
                let mut all_stay = true;
                let whole = match fate {
                    Fate::Kept => Some(true),
                    Fate::Gone => Some(false),
                    Fate::Mixed => match choice.random_range(0..3) {
                        0 => Some(true),
                        1 => Some(false),
                        _ => None,
                    },
                };
                for (sector, from, to) in sectors(offset, end) {
                    let stays = whole.unwrap_or_else(|| choice.random_range(0..2) == 0);
                    if stays {
                        decided.insert(sector);
                    } else if !decided.contains(&sector) {
                        all_stay = false;
                        let old = part(&old, offset, from, to);
                        put(from, old)?;
                        // Nothing stood there before.
                        let blank = (from + old.len() as u64)..to;
                        put(blank.start, &vec![0; usize::try_from(blank.end - blank.start).unwrap_or(0)])?;
                    }
                }
                gone += u64::from(!all_stay);
            }
        }
    }
    if let Some(length) = length {
        rustix::fs::ftruncate(&file, length)?;
    }
    drop(file);
    fs::set_permissions(path, mode)?;
    Ok(gone)
}

/// The sectors of a range, and what of it is in each.
fn sectors(from: u64, to: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    (from / SECTOR_BYTES..to.div_ceil(SECTOR_BYTES)).map(move |sector| {
        let begin = sector * SECTOR_BYTES;
        (sector, begin.max(from), (begin + SECTOR_BYTES).min(to))
    })
}

/// What of `bytes`, which begin at `base`, stands from `from` to `to`.
fn part(bytes: &[u8], base: u64, from: u64, to: u64) -> &[u8] {
    let index = |at: u64| usize::try_from(at - base).unwrap_or(usize::MAX).min(bytes.len());
    bytes.get(index(from)..index(to)).unwrap_or_default()
}
