//! Nothing that was synced is ever lost; what was not, is in some power cut.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::FileExt as _,
};

use super::*;

/// A disk in a folder that goes away.
fn disk() -> (tempfile::TempDir, PathBuf, Disk) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("box");
    fs::create_dir(&path).unwrap();
    let disk = Disk::new(&path).unwrap();
    (folder, path, disk)
}

fn sync_folder(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

/// In how many of 64 power cuts `intact` does not hold after `work`. What that returns dies with the power.
fn losses<T>(work: impl Fn(&Path) -> T, intact: impl Fn(&Path) -> bool) -> u32 {
    (0..64)
        .map(|seed| {
            let (_folder, path, disk) = disk();
            let alive = work(&path);
            disk.freeze(true);
            drop(alive); // it closes nothing in order
            disk.freeze(false);
            disk.power_cut(&Seed::from_u64(seed)).unwrap();
            u32::from(!intact(&path))
        })
        .sum()
}

#[test]
fn what_was_synced_stays_and_what_was_not_may_go() {
    let write = |sync: bool| {
        move |path: &Path| {
            let mut file = File::create(path.join("file")).unwrap();
            file.write_all(&[7; 10_000]).unwrap();
            if sync {
                file.sync_all().unwrap();
                sync_folder(path);
            }
        }
    };
    let intact = |path: &Path| fs::read(path.join("file")).is_ok_and(|bytes| bytes == [7; 10_000]);
    assert_eq!(losses(write(true), intact), 0);
    let lost = losses(write(false), intact);
    assert!((20..64).contains(&lost), "{lost} of 64");
}

#[test]
fn a_replacement_by_the_book_is_the_old_or_the_new() {
    let replace = |path: &Path| {
        proto::durable::write(&path.join("state"), b"old", 0o600).unwrap();
        proto::durable::write(&path.join("state"), b"new", 0o600).unwrap();
    };
    assert_eq!(losses(replace, |path| fs::read(path.join("state")).unwrap() == b"new"), 0);
    let sloppy = |path: &Path| {
        proto::durable::write(&path.join("state"), b"old", 0o600).unwrap();
        fs::write(path.join("state.tmp"), b"new").unwrap();
        fs::rename(path.join("state.tmp"), path.join("state")).unwrap();
    };
    let whole = |path: &Path| matches!(fs::read(path.join("state")).unwrap().as_slice(), b"old" | b"new");
    let (torn, old) = (losses(sloppy, whole), losses(sloppy, |p| fs::read(p.join("state")).unwrap() == b"new"));
    assert!(torn > 0 && old > torn, "{torn} torn, {old} not new");
}

#[test]
fn sectors_are_torn_and_lengths_come_back() {
    let overwrite = |path: &Path| {
        let file = File::create(path.join("file")).unwrap();
        file.write_all_at(&[1; 4096], 0).unwrap();
        file.sync_all().unwrap();
        sync_folder(path);
        let file = OpenOptions::new().write(true).open(path.join("file")).unwrap();
        file.write_all_at(&[2; 4096], 0).unwrap();
        file.set_len(1000).unwrap();
        file.write_all_at(&[3; 100], 5000).unwrap();
    };
    let sane = |path: &Path| {
        let bytes = fs::read(path.join("file")).unwrap();
        matches!(bytes.len(), 1000 | 4096 | 5100) && bytes.iter().all(|b| *b <= 3)
    };
    assert_eq!(losses(overwrite, sane), 0);
    let mixed = |path: &Path| {
        let bytes = fs::read(path.join("file")).unwrap();
        !(bytes.contains(&1) && bytes.contains(&2))
    };
    assert!(losses(overwrite, mixed) > 0, "no write was torn");
}

#[test]
fn sqlite_keeps_what_it_committed_with_full_sync() {
    let commit = |sync: &'static str| {
        move |path: &Path| {
            let connection = rusqlite::Connection::open(path.join("a.db")).unwrap();
            let pragmas = format!("PRAGMA journal_mode = WAL; PRAGMA synchronous = {sync}; CREATE TABLE t (x)");
            connection.execute_batch(&pragmas).unwrap();
            for number in 0..50 {
                connection.execute("INSERT INTO t VALUES (?1)", [number]).unwrap();
            }
            connection
        }
    };
    let all = |path: &Path| {
        let connection = rusqlite::Connection::open(path.join("a.db")).unwrap();
        let count = connection.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
        let check = connection.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
        count == Ok(50) && check.as_deref() == Ok("ok")
    };
    assert_eq!(losses(commit("FULL"), all), 0);
    assert!(losses(commit("OFF"), all) > 10);
}

#[test]
fn a_full_disk_refuses_and_room_that_is_freed_may_be_used() {
    let (_folder, path, disk) = disk();
    fs::write(path.join("old"), [0; 1000]).unwrap();
    disk.set_room(Taker::Fault, Some(0));
    let error = fs::write(path.join("new"), [0; 500]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(disk.refused(), (1, 0));
    fs::remove_file(path.join("old")).unwrap();
    fs::write(path.join("new"), [0; 500]).unwrap();
    assert!(fs::write(path.join("more"), [0; 600]).is_err());
    disk.set_room(Taker::Fault, None);
    fs::write(path.join("more"), [0; 600]).unwrap();
    fs::copy(path.join("more"), path.join("copy")).unwrap();
    assert_eq!(fs::read(path.join("copy")).unwrap().len(), 600);
}

#[test]
fn an_error_is_the_kernels_whoever_waits_for_whom() {
    let (_folder, path, _disk) = disk();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let path = path.join(format!("nothing-{number}"));
            scope.spawn(move || {
                for _ in 0..2_000 {
                    assert_eq!(fs::remove_file(&path).unwrap_err().kind(), std::io::ErrorKind::NotFound);
                    assert_eq!(File::open(&path).unwrap_err().kind(), std::io::ErrorKind::NotFound);
                }
            });
        }
    });
}

#[test]
fn a_process_that_was_killed_writes_nothing_any_more() {
    let (_folder, path, disk) = disk();
    let mut file = File::create(path.join("file")).unwrap();
    file.write_all(b"before").unwrap();
    disk.freeze(true);
    assert!(file.write_all(b" after").is_err());
    assert!(fs::remove_file(path.join("file")).is_err());
    assert!(fs::rename(path.join("file"), path.join("other")).is_err());
    disk.freeze(false);
    assert_eq!(fs::read(path.join("file")).unwrap(), b"before");
}

/// A tree of folders with files, all of it synced.
fn tree(path: &Path) -> PathBuf {
    let tree = path.join("tree");
    for folder in ["tree", "tree/a", "tree/a/b"] {
        fs::create_dir(path.join(folder)).unwrap();
        for file in ["one", "two"] {
            proto::durable::write(&path.join(folder).join(file), &[7; 1_000], 0o600).unwrap();
        }
    }
    for folder in ["tree/a/b", "tree/a", "tree", ""] {
        sync_folder(&path.join(folder));
    }
    tree
}

/// Files of a tree; each is whole.
fn files(tree: &Path) -> usize {
    let Ok(entries) = fs::read_dir(tree) else { return 0 };
    let count = |entry: fs::DirEntry| {
        if entry.file_type().unwrap().is_dir() {
            return files(&entry.path());
        }
        assert_eq!(fs::read(entry.path()).unwrap(), [7; 1_000]);
        1
    };
    entries.map(|entry| count(entry.unwrap())).sum()
}

#[test]
fn a_removed_tree_comes_back_unless_its_parent_was_synced() {
    let remove = |sync: bool| {
        move |path: &Path| {
            fs::remove_dir_all(tree(path)).unwrap();
            if sync {
                sync_folder(path);
            }
        }
    };
    assert_eq!(losses(remove(true), |path| !path.join("tree").exists()), 0);
    let (back, whole) = (
        losses(remove(false), |path| files(&path.join("tree")) == 0),
        losses(remove(false), |path| files(&path.join("tree")) != 6),
    );
    assert!((20..64).contains(&back), "it came back in {back} of 64");
    assert!((10..back).contains(&whole), "all of it in {whole}, something in {back}");
}

#[test]
fn what_is_made_where_a_folder_was_is_no_part_of_that() {
    let remake = |path: &Path| {
        fs::remove_dir_all(tree(path)).unwrap();
        fs::create_dir(path.join("tree")).unwrap();
        fs::write(path.join("tree/new"), [7; 1_000]).unwrap();
        sync_folder(path);
    };
    assert_eq!(losses(remake, |path| path.join("tree").exists() && !path.join("tree/one").exists()), 0);
    assert!(losses(remake, |path| path.join("tree/new").exists()) > 10, "its name was not synced");
}

#[test]
fn a_hard_link_is_a_name_like_any_other() {
    let link = |path: &Path| {
        proto::durable::write(&path.join("file"), b"all", 0o600).unwrap();
        fs::hard_link(path.join("file"), path.join("link")).unwrap();
    };
    assert!(losses(link, |path| path.join("link").exists()) > 10);
    assert_eq!(losses(link, |path| fs::read(path.join("file")).is_ok_and(|bytes| bytes == b"all")), 0);
}

#[test]
fn a_removed_tree_gives_its_room_back_and_not_while_the_disk_is_frozen() {
    let (_folder, path, disk) = disk();
    let tree = tree(&path);
    disk.set_room(Taker::Fault, Some(0));
    disk.freeze(true);
    assert!(fs::remove_dir_all(&tree).is_err());
    assert_eq!(files(&tree), 6);
    disk.freeze(false);
    fs::remove_dir_all(&tree).unwrap();
    fs::write(path.join("new"), [0; 6_000]).unwrap();
    assert_eq!(fs::write(path.join("more"), [0; 1]).unwrap_err().kind(), std::io::ErrorKind::StorageFull);
}

#[test]
fn a_folder_that_was_closed_is_not_taken_for_what_has_its_number_now() {
    use std::os::fd::AsRawFd as _;
    let (_folder, path, _disk) = disk();
    tree(&path);
    fs::remove_dir_all(path.join("tree")).unwrap();
    // Opened past the hook, they take the lowest numbers that are free.
    let open: Vec<_> =
        (0..8).map(|_| rustix::fs::open("/", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap()).collect();
    assert!(open.iter().all(|fd| !journal::is_watched(fd.as_raw_fd())));
}

#[test]
fn writes_of_many_parts_and_of_none_are_the_kernels() {
    use std::io::IoSlice;
    let (_folder, path, disk) = disk();
    let mut file = File::create(path.join("file")).unwrap();
    let all = file.write_vectored(&[IoSlice::new(b"one"), IoSlice::new(b" two")]).unwrap();
    assert_eq!((all, file.write_vectored(&[]).unwrap()), (7, 0));
    disk.set_room(Taker::Fault, Some(0));
    assert_eq!(file.write_vectored(&[]).unwrap(), 0);
    assert!(file.write_vectored(&[IoSlice::new(b"more")]).is_err());
    assert_eq!(fs::read(path.join("file")).unwrap(), b"one two");
}

#[test]
fn what_is_left_of_a_disk_is_what_a_write_meets() {
    let (_folder, path, disk) = disk();
    let left = |path: &Path| edgecore::disk_space::at(path).unwrap();
    assert_eq!((left(&path).total_bytes, left(&path).free_bytes), (TOTAL_BYTES, FREE_BYTES));
    disk.set_room(Taker::Fault, Some(100 << 10));
    fs::write(path.join("file"), [7; 40 << 10]).unwrap();
    assert_eq!(left(&path.join("file")).free_bytes, 60 << 10);
    assert!(fs::write(path.join("another"), vec![7; 61 << 10]).is_err());
    // Elsewhere the machine answers.
    assert_ne!(left(Path::new("/")).total_bytes, TOTAL_BYTES);
}
