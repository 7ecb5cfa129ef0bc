//! The C library's calls that change files, as everything in this process makes them: Rust's standard
//! library and SQLite's C code alike. Each asks [`super::journal`] first and then calls the kernel itself.
//!
//! The only module of Crossdock with unsafe code. It has to be: a power cut needs the calls of SQLite, which
//! is C, and a VFS of SQLite would be unsafe code too and leave out the files that are written from Rust.
//! The workspace denies unsafe code, every other crate forbids it, and this module alone allows it.
//!
//! A program that defines these symbols uses them in place of the shared C library's. Calls inside the C
//! library itself, and system calls that are made without it (rustix), do not come by: nothing of Crossdock
//! changes files so. A file below no simulated disk costs one look at a table.
//!
//! Safety, for all of them: pointers are handed on to the kernel, which checks them, or are strings that the
//! caller promised to end with a zero, as the C library wants it too. Nothing here may panic or allocate
//! where the fast way suffices.
#![allow(unsafe_code)]

use std::{
    borrow::Cow,
    ffi::{CStr, c_char, c_int, c_long, c_void},
    os::fd::BorrowedFd,
    ptr::null_mut,
    sync::atomic::{AtomicPtr, Ordering},
};

use super::{journal, state::Refused};

/// In which a disk's size is told.
const BLOCK_BYTES: u64 = 4096;

/// What a call returns that the disk refuses.
fn refuse(Refused(errno): Refused) -> c_int {
    // SAFETY: the C library gives each thread its own place for the error.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// Does something after a call without a change of the error that it left: a lock that is waited for leaves
/// one of its own.
fn quietly(work: impl FnOnce()) {
    // SAFETY: the C library gives each thread its own place for the error.
    unsafe {
        let errno = *libc::__errno_location();
        work();
        *libc::__errno_location() = errno;
    }
}

/// The C library's function that one of here stands in for; looked up once.
fn next(known: &AtomicPtr<c_void>, name: &CStr) -> Option<*mut c_void> {
    let mut real = known.load(Ordering::Relaxed);
    if real.is_null() {
        // SAFETY: the name ends with zero.
        real = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
        known.store(real, Ordering::Relaxed);
    }
    (!real.is_null()).then_some(real)
}

fn int(result: c_long) -> c_int {
    c_int::try_from(result).unwrap_or(-1)
}

fn size(result: c_long) -> isize {
    isize::try_from(result).unwrap_or(-1)
}

/// A descriptor, if it is that of a file of a disk.
///
/// # Safety
/// The descriptor is open as long as the answer lives, or is no descriptor at all.
unsafe fn watched_fd<'a>(fd: c_int) -> Option<BorrowedFd<'a>> {
    // SAFETY: the caller's promise; what is watched is not -1.
    journal::is_watched(fd).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// The path of a call, where it is one that could matter: there is a simulated disk at all, and the path is
/// absolute or begins at an open folder of a disk.
///
/// # Safety
/// `path` is null or a string that ends with zero.
unsafe fn watched_at<'a>(folder: c_int, path: *const c_char) -> Option<Cow<'a, [u8]>> {
    if path.is_null() || !journal::any() {
        return None;
    }
    // SAFETY: the caller's promise.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    if path.starts_with(b"/") {
        return Some(Cow::Borrowed(path));
    }
    journal::path_below(folder, path).map(Cow::Owned)
}

/// # Safety
/// As open(2).
unsafe fn open_at(folder: c_int, path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    // SAFETY: handed on, or the caller's promise.
    let (call, path) = unsafe {
        let call = || libc::syscall(libc::SYS_openat, folder, path, flags | libc::O_LARGEFILE, mode);
        (call, watched_at(folder, path))
    };
    let Some(path) = path else {
        let fd = int(call());
        quietly(|| journal::opened_elsewhere(fd));
        return fd;
    };
    let before = match journal::before_open(&path, flags) {
        Ok(before) => before,
        Err(refused) => return refuse(refused),
    };
    let fd = int(call());
    // SAFETY: the kernel just opened it.
    let opened = (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) });
    quietly(|| journal::after_open(opened, &path, flags, before));
    fd
}

/// # Safety
/// As open(2). The mode is there or is not looked at.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { open_at(libc::AT_FDCWD, path, flags, mode) }
}

/// # Safety
/// As open(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { open_at(libc::AT_FDCWD, path, flags, mode) }
}

/// # Safety
/// As openat(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat(folder: c_int, path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { open_at(folder, path, flags, mode) }
}

/// # Safety
/// As openat(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat64(folder: c_int, path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { open_at(folder, path, flags, mode) }
}

/// # Safety
/// As close(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    journal::closed(fd);
    // SAFETY: handed on.
    int(unsafe { libc::syscall(libc::SYS_close, fd) })
}

/// The folder's descriptor was opened with [`openat`] and is closed inside the C library.
///
/// # Safety
/// As closedir(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn closedir(folder: *mut libc::DIR) -> c_int {
    static REAL: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
    let Some(real) = next(&REAL, c"closedir").filter(|_| !folder.is_null()) else {
        return refuse(Refused(libc::EINVAL));
    };
    // SAFETY: the caller has it open.
    let fd = unsafe { libc::dirfd(folder) };
    quietly(|| journal::closed(fd));
    // SAFETY: the C library's function of this name has this type; the folder is handed on.
    unsafe {
        let real = std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut libc::DIR) -> c_int>(real);
        real(folder)
    }
}

/// # Safety
/// As statvfs(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statvfs(path: *const c_char, answer: *mut libc::statvfs) -> c_int {
    static REAL: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
    // SAFETY: the caller's promise.
    let room = unsafe { watched_at(libc::AT_FDCWD, path) }.and_then(|path| journal::room(&path));
    if let (Some((total, free)), false) = (room, answer.is_null()) {
        // SAFETY: numbers only, for which zeros stand; the caller has room for the answer.
        unsafe {
            let mut disk: libc::statvfs = std::mem::zeroed();
            (disk.f_bsize, disk.f_frsize) = (BLOCK_BYTES, BLOCK_BYTES);
            disk.f_blocks = total / BLOCK_BYTES;
            (disk.f_bfree, disk.f_bavail) = (free / BLOCK_BYTES, free / BLOCK_BYTES);
            disk.f_namemax = 255;
            answer.write(disk);
        }
        return 0;
    }
    let Some(real) = next(&REAL, c"statvfs") else { return refuse(Refused(libc::ENOSYS)) };
    // SAFETY: the C library's function of this name has this type; what was given is handed on.
    unsafe {
        let real =
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_char, *mut libc::statvfs) -> c_int>(real);
        real(path, answer)
    }
}

/// # Safety
/// As write(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, count: usize) -> isize {
    // SAFETY: the caller has it open.
    if let Some(file) = unsafe { watched_fd(fd) }
        && let Err(refused) = journal::before_write(file, None, count)
    {
        return refuse(refused) as isize;
    }
    // SAFETY: handed on.
    size(unsafe { libc::syscall(libc::SYS_write, fd, bytes, count) })
}

/// # Safety
/// As writev(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(fd: c_int, parts: *const libc::iovec, count: c_int) -> isize {
    // Nothing is written of no parts, and the kernel refuses what is none.
    let parts_there = usize::try_from(count).ok().filter(|count| *count > 0 && !parts.is_null());
    // SAFETY: the caller has it open.
    if let (Some(count), Some(file)) = (parts_there, unsafe { watched_fd(fd) }) {
        // SAFETY: the caller's promise: so many parts stand there.
        let all = unsafe { std::slice::from_raw_parts(parts, count) };
        let bytes = all.iter().fold(0_usize, |bytes, part| bytes.saturating_add(part.iov_len));
        if let Err(refused) = journal::before_write(file, None, bytes) {
            return refuse(refused) as isize;
        }
    }
    // SAFETY: handed on.
    size(unsafe { libc::syscall(libc::SYS_writev, fd, parts, count) })
}

/// # Safety
/// As pwrite(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(fd: c_int, bytes: *const c_void, count: usize, offset: i64) -> isize {
    // SAFETY: the caller has it open.
    if let Some(file) = unsafe { watched_fd(fd) }
        && let Err(refused) = journal::before_write(file, Some(offset), count)
    {
        return refuse(refused) as isize;
    }
    // SAFETY: handed on.
    size(unsafe { libc::syscall(libc::SYS_pwrite64, fd, bytes, count, offset) })
}

/// # Safety
/// As pwrite(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(fd: c_int, bytes: *const c_void, count: usize, offset: i64) -> isize {
    // SAFETY: the caller's promise.
    unsafe { pwrite64(fd, bytes, count, offset) }
}

/// Callers copy byte by byte where the kernel cannot do it: so what is copied comes by.
///
/// # Safety
/// As copy_file_range(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn copy_file_range(
    from: c_int,
    from_offset: *mut i64,
    to: c_int,
    to_offset: *mut i64,
    count: usize,
    flags: u32,
) -> isize {
    if journal::is_watched(to) {
        return refuse(Refused(libc::EXDEV)) as isize;
    }
    // SAFETY: handed on.
    size(unsafe { libc::syscall(libc::SYS_copy_file_range, from, from_offset, to, to_offset, count, flags) })
}

/// As [`copy_file_range`].
///
/// # Safety
/// As sendfile(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile64(to: c_int, from: c_int, offset: *mut i64, count: usize) -> isize {
    if journal::is_watched(to) {
        return refuse(Refused(libc::EINVAL)) as isize;
    }
    // SAFETY: handed on.
    size(unsafe { libc::syscall(libc::SYS_sendfile, to, from, offset, count) })
}

/// # Safety
/// As fallocate(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fallocate(fd: c_int, mode: c_int, offset: i64, length: i64) -> c_int {
    // SAFETY: the caller has it open.
    if let (Ok(count), Some(file)) = (usize::try_from(length), unsafe { watched_fd(fd) })
        && let Err(refused) = journal::before_write(file, Some(offset), count)
    {
        return refuse(refused);
    }
    // SAFETY: handed on.
    int(unsafe { libc::syscall(libc::SYS_fallocate, fd, mode, offset, length) })
}

/// # Safety
/// As fallocate(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fallocate64(fd: c_int, mode: c_int, offset: i64, length: i64) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { fallocate(fd, mode, offset, length) }
}

/// # Safety
/// As ftruncate(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate64(fd: c_int, length: i64) -> c_int {
    // SAFETY: the caller has it open.
    if let Some(file) = unsafe { watched_fd(fd) }
        && let Err(refused) = journal::before_truncate(file, length)
    {
        return refuse(refused);
    }
    // SAFETY: handed on.
    int(unsafe { libc::syscall(libc::SYS_ftruncate, fd, length) })
}

/// # Safety
/// As ftruncate(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate(fd: c_int, length: i64) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { ftruncate64(fd, length) }
}

/// # Safety
/// As fsync(2).
unsafe fn sync(fd: c_int, call: c_long) -> c_int {
    // SAFETY: the caller has it open.
    match unsafe { watched_fd(fd) }.map(journal::sync) {
        Some(Ok(())) => 0,
        Some(Err(refused)) => refuse(refused),
        // SAFETY: handed on.
        None => int(unsafe { libc::syscall(call, fd) }),
    }
}

/// # Safety
/// As fsync(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    // SAFETY: the caller has it open; or handed on.
    unsafe { sync(fd, libc::SYS_fsync) }
}

/// # Safety
/// As fdatasync(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    // SAFETY: the caller has it open; or handed on.
    unsafe { sync(fd, libc::SYS_fdatasync) }
}

/// # Safety
/// As rename(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    let (source, target) = unsafe { (watched_at(libc::AT_FDCWD, from), watched_at(libc::AT_FDCWD, to)) };
    if let (Some(source), Some(target)) = (&source, &target)
        && let Err(refused) = journal::before_rename(source, target)
    {
        return refuse(refused);
    }
    // SAFETY: handed on.
    let done = unsafe { libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0) };
    if let Some(target) = target {
        quietly(|| journal::after(&target, done == 0));
    }
    int(done)
}

/// # Safety
/// As unlink(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { unlinkat(libc::AT_FDCWD, path, 0) }
}

/// # Safety
/// As rmdir(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rmdir(path: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { unlinkat(libc::AT_FDCWD, path, libc::AT_REMOVEDIR) }
}

/// How whole trees are removed, too.
///
/// # Safety
/// As unlinkat(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlinkat(folder: c_int, path: *const c_char, flags: c_int) -> c_int {
    let before = if flags & libc::AT_REMOVEDIR == 0 { journal::before_unlink } else { journal::before_rmdir };
    // SAFETY: the caller's promise; the path is handed on.
    unsafe { named(folder, path, before, || libc::syscall(libc::SYS_unlinkat, folder, path, flags)) }
}

/// # Safety
/// As link(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn link(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { linkat(libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0) }
}

/// # Safety
/// As linkat(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn linkat(
    from_folder: c_int,
    from: *const c_char,
    to_folder: c_int,
    to: *const c_char,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller's promise; the paths are handed on.
    unsafe {
        let call = || libc::syscall(libc::SYS_linkat, from_folder, from, to_folder, to, flags);
        named(to_folder, to, journal::before_make, call)
    }
}

/// # Safety
/// As mkdir(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: libc::mode_t) -> c_int {
    // SAFETY: the caller's promise; the path is handed on.
    unsafe {
        let call = || libc::syscall(libc::SYS_mkdirat, libc::AT_FDCWD, path, mode);
        named(libc::AT_FDCWD, path, journal::before_mkdir, call)
    }
}

/// # Safety
/// As symlink(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn symlink(target: *const c_char, path: *const c_char) -> c_int {
    // SAFETY: the caller's promise; the paths are handed on.
    unsafe {
        let call = || libc::syscall(libc::SYS_symlinkat, target, libc::AT_FDCWD, path);
        named(libc::AT_FDCWD, path, journal::before_make, call)
    }
}

/// # Safety
/// `path` is null or a string that ends with zero.
unsafe fn named(
    folder: c_int,
    path: *const c_char,
    before: fn(&[u8]) -> Result<(), Refused>,
    call: impl FnOnce() -> c_long,
) -> c_int {
    // SAFETY: the caller's promise.
    let watched = unsafe { watched_at(folder, path) };
    if let Some(path) = &watched
        && let Err(refused) = before(path)
    {
        return refuse(refused);
    }
    let done = call();
    if let Some(path) = watched {
        quietly(|| journal::after(&path, done == 0));
    }
    int(done)
}
