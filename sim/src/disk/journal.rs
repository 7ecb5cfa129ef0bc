//! What was written below simulated disks and not synced: what each write replaced, and which names changed.
//!
//! Asked by [`super::hook`] before and after each call; so nothing here may go through the C library's
//! file calls: what it needs of the kernel it asks for with rustix, which makes system calls itself. One
//! lock guards all disks of the process; each world is one thread's, so it is rarely waited for. Descriptors that
//! are opened here are closed after the lock is given back: closing goes through the hook, which may want it.

use std::{
    collections::BTreeMap,
    ops::Bound::{Included, Unbounded},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use rustix::fs::{CWD, Mode, OFlags};

use super::state::{Change, Named, Refused, State, is_folder, length, remove, stat, with_slash};

/// Descriptors that can be watched; one beyond is an ordinary file.
const MAX_FDS: usize = 1 << 17;

struct Open {
    disk: u32,
    inode: u64,
    append: bool,
    path: Vec<u8>,
}

#[derive(Default)]
struct Registry {
    /// Disks by the path of their folder, with a slash at its end.
    roots: BTreeMap<Vec<u8>, u32>,
    disks: BTreeMap<u32, State>,
    open: BTreeMap<i32, Open>,
    next: u32,
}

static DISKS: AtomicUsize = AtomicUsize::new(0);
static WATCHED: [AtomicU32; MAX_FDS] = [const { AtomicU32::new(0) }; MAX_FDS];
static REGISTRY: Mutex<Option<Registry>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<Registry>> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether there is any disk.
pub(super) fn any() -> bool {
    DISKS.load(Ordering::Relaxed) > 0
}

fn slot(fd: i32) -> Option<&'static AtomicU32> {
    WATCHED.get(usize::try_from(fd).ok()?)
}

/// Whether a descriptor is that of a file of a disk.
pub(super) fn is_watched(fd: i32) -> bool {
    slot(fd).is_some_and(|slot| slot.load(Ordering::Relaxed) != 0)
}

pub(super) fn register(folder: &Path, keep: &Path) -> u32 {
    let mut lock = lock();
    let registry = lock.get_or_insert_default();
    registry.next += 1;
    let state = State { keep: with_slash(keep.as_os_str().as_encoded_bytes()), ..State::default() };
    registry.roots.insert(with_slash(folder.as_os_str().as_encoded_bytes()), registry.next);
    registry.disks.insert(registry.next, state);
    DISKS.fetch_add(1, Ordering::Relaxed);
    registry.next
}

pub(super) fn unregister(disk: u32) {
    let mut lock = lock();
    let Some(registry) = lock.as_mut() else { return };
    registry.roots.retain(|_, number| *number != disk);
    let gone = registry.disks.remove(&disk);
    registry.open.retain(|fd, open| {
        if open.disk == disk
            && let Some(slot) = slot(*fd)
        {
            slot.store(0, Ordering::Relaxed);
        }
        open.disk != disk
    });
    if gone.is_some() {
        DISKS.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) fn with<T>(disk: u32, work: impl FnOnce(&mut State) -> T) -> Option<T> {
    lock().as_mut()?.disks.get_mut(&disk).map(work)
}

/// What is not synced; from now on it counts as such.
pub(super) fn take(disk: u32) -> (BTreeMap<u64, Vec<Change>>, Vec<Named>) {
    with(disk, |state| (std::mem::take(&mut state.changes), std::mem::take(&mut state.names))).unwrap_or_default()
}

pub(super) fn forget(disk: u32) {
    let (_, names) = take(disk);
    names.iter().filter_map(Named::kept).for_each(remove);
}

/// SQLite's shared memory is not journaled: it is mapped, and nobody has it after a power cut.
fn is_shared_memory(path: &[u8]) -> bool {
    path.ends_with(b"-shm")
}

/// What stands in a file from `offset` to `end`. What had to be opened for that is to be closed without the lock.
fn read(fd: BorrowedFd<'_>, offset: u64, end: u64, late: &mut Vec<OwnedFd>) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(end.saturating_sub(offset)).unwrap_or(0)];
    if !bytes.is_empty() && rustix::io::pread(fd, &mut bytes[..], offset).is_err() {
        // It was opened for writing alone.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        if let Ok(again) = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            let _ = rustix::io::pread(&again, &mut bytes[..], offset); // nothing to come back, then
            late.push(again);
        }
    }
    bytes
}

impl Registry {
    fn disk_of(&mut self, path: &[u8]) -> Option<(u32, &mut State)> {
        let whole = with_slash(path);
        let (root, disk) = self.roots.range::<[u8], _>((Unbounded, Included(whole.as_slice()))).next_back()?;
        whole.starts_with(root).then_some(())?;
        let disk = *disk;
        Some((disk, self.disks.get_mut(&disk)?))
    }
}

/// The size of the disk of a path and what it has left, where it is on one.
pub(super) fn room(path: &[u8]) -> Option<(u64, u64)> {
    lock().as_mut()?.disk_of(path).map(|(_, disk)| (super::TOTAL_BYTES, disk.left()))
}

/// A file that is about to be opened.
pub(super) struct Before {
    there: bool,
}

pub(super) fn before_open(path: &[u8], flags: i32) -> Result<Option<Before>, Refused> {
    let mut late = vec![];
    let mut lock = lock();
    let Some((_, state)) = lock.as_mut().and_then(|registry| registry.disk_of(path)) else { return Ok(None) };
    if is_shared_memory(path) {
        return Ok(None);
    }
    let found = stat(path);
    if flags & (libc::O_CREAT | libc::O_TRUNC) != 0 {
        state.alive()?;
    }
    if let Some(found) = &found
        && flags & libc::O_TRUNC != 0
        && !is_folder(found)
        && length(found) > 0
        && let Ok(file) = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    {
        let before = length(found);
        let tail = read(file.as_fd(), 0, before, &mut late);
        late.push(file);
        state.shrink(before);
        state.change(found.st_ino, Change::Length { before, after: 0, tail });
    }
    Ok(Some(Before { there: found.is_some() }))
}

/// A file was opened, or was not, as `fd` says.
pub(super) fn after_open(fd: Option<BorrowedFd<'_>>, path: &[u8], flags: i32, before: Option<Before>) {
    let Some(fd) = fd else { return };
    let number = fd.as_raw_fd();
    opened_elsewhere(number);
    let (Some(before), Some(slot), Ok(stat)) = (before, slot(number), rustix::fs::fstat(fd)) else { return };
    let mut lock = lock();
    let Some(registry) = lock.as_mut() else { return };
    let Some((disk, state)) = registry.disk_of(path) else { return };
    if !before.there && flags & libc::O_CREAT != 0 {
        state.changes.remove(&stat.st_ino); // of an older file with this number
        state.names.push(Named::Made { path: path.to_owned(), folder: false });
    }
    slot.store(disk, Ordering::Relaxed);
    let append = flags & libc::O_APPEND != 0;
    registry.open.insert(number, Open { disk, inode: stat.st_ino, append, path: path.to_owned() });
}

/// A descriptor was opened for what is on no disk.
pub(super) fn opened_elsewhere(fd: i32) {
    closed(fd);
}

pub(super) fn closed(fd: i32) {
    if !is_watched(fd) {
        return;
    }
    if let Some(slot) = slot(fd) {
        slot.store(0, Ordering::Relaxed);
    }
    if let Some(registry) = lock().as_mut() {
        registry.open.remove(&fd);
    }
}

/// The path of a name in an open folder of a disk.
pub(super) fn path_below(folder: i32, name: &[u8]) -> Option<Vec<u8>> {
    if !is_watched(folder) {
        return None;
    }
    let mut lock = lock();
    let open = lock.as_mut()?.open.get(&folder)?;
    let path = open.path.strip_suffix(b"/").unwrap_or(&open.path);
    Some([path, b"/", name].concat())
}

/// Does something with the disk of an open file.
fn of<T>(fd: BorrowedFd<'_>, work: impl FnOnce(&mut State, &Open) -> T) -> Option<T> {
    let mut lock = lock();
    let registry = lock.as_mut()?;
    let open = registry.open.get(&fd.as_raw_fd())?;
    Some(work(registry.disks.get_mut(&open.disk)?, open))
}

/// `count` bytes are about to be written at `offset`, or where the file stands.
pub(super) fn before_write(fd: BorrowedFd<'_>, offset: Option<i64>, count: usize) -> Result<(), Refused> {
    let mut late = vec![];
    of(fd, |state, open| {
        state.alive()?;
        if state.refuses.as_ref().is_some_and(|prefix| file_name(&open.path).starts_with(prefix)) {
            state.refused_broken += 1;
            return Err(Refused(libc::EIO));
        }
        let Ok(stat) = rustix::fs::fstat(fd) else { return Ok(()) };
        let length_before = length(&stat);
        let offset = match offset {
            Some(offset) => u64::try_from(offset).unwrap_or(0),
            None if open.append => length_before,
            None => rustix::fs::tell(fd).unwrap_or(0),
        };
        let end = offset.saturating_add(count as u64);
        state.grow(end.saturating_sub(length_before))?;
        let old = read(fd, offset, end.min(length_before), &mut late);
        state.change(open.inode, Change::Write { offset, end, old, length_before });
        Ok(())
    })
    .unwrap_or(Ok(()))
}

fn file_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// The length of a file is about to be changed.
pub(super) fn before_truncate(fd: BorrowedFd<'_>, after: i64) -> Result<(), Refused> {
    let mut late = vec![];
    of(fd, |state, open| {
        state.alive()?;
        let Ok(stat) = rustix::fs::fstat(fd) else { return Ok(()) };
        let (before, after) = (length(&stat), u64::try_from(after).unwrap_or(0));
        state.grow(after.saturating_sub(before))?;
        state.shrink(before.saturating_sub(after));
        let tail = read(fd, after, before, &mut late);
        state.change(open.inode, Change::Length { before, after, tail });
        Ok(())
    })
    .unwrap_or(Ok(()))
}

/// A file or folder is about to be synced; nothing is left to do for the kernel.
pub(super) fn sync(fd: BorrowedFd<'_>) -> Result<(), Refused> {
    of(fd, |state, open| {
        state.alive()?;
        state.changes.remove(&open.inode);
        state.sync_folder(&open.path);
        Ok(())
    })
    .unwrap_or(Ok(()))
}

/// What a call on a path may do first, if that is on a disk.
fn at(path: &[u8], work: impl FnOnce(&mut State) -> Result<(), Refused>) -> Result<(), Refused> {
    let mut lock = lock();
    let Some((_, state)) = lock.as_mut().and_then(|registry| registry.disk_of(path)) else { return Ok(()) };
    state.under_way = false;
    if is_shared_memory(path) {
        return Ok(());
    }
    state.alive()?;
    work(state)
}

pub(super) fn before_rename(from: &[u8], to: &[u8]) -> Result<(), Refused> {
    at(to, |state| {
        let over = match stat(to) {
            Some(found) if !is_folder(&found) => state.keep(to, &found),
            _ => None,
        };
        state.name(Named::Moved { from: from.to_owned(), to: to.to_owned(), over });
        Ok(())
    })
}

pub(super) fn before_unlink(path: &[u8]) -> Result<(), Refused> {
    at(path, |state| {
        if let Some(found) = stat(path)
            && let Some(kept) = state.keep(path, &found)
        {
            state.name(Named::Gone { path: path.to_owned(), kept });
        }
        Ok(())
    })
}

pub(super) fn before_rmdir(path: &[u8]) -> Result<(), Refused> {
    at(path, |state| {
        state.name(Named::FolderGone { path: path.to_owned() });
        Ok(())
    })
}

pub(super) fn before_mkdir(path: &[u8]) -> Result<(), Refused> {
    at(path, |state| {
        state.name(Named::Made { path: path.to_owned(), folder: true });
        Ok(())
    })
}

pub(super) fn before_make(path: &[u8]) -> Result<(), Refused> {
    at(path, |state| {
        state.name(Named::Made { path: path.to_owned(), folder: false });
        Ok(())
    })
}

/// The call on a path is done, or failed: then no name has changed.
pub(super) fn after(path: &[u8], done: bool) {
    let mut lock = lock();
    let Some((_, state)) = lock.as_mut().and_then(|registry| registry.disk_of(path)) else { return };
    if std::mem::replace(&mut state.under_way, false)
        && !done
        && let Some(failed) = state.names.pop()
        && let Some(kept) = failed.kept()
    {
        remove(kept);
    }
}
