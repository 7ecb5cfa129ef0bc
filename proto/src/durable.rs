//! Replacing a file so that a crash or power cut at any moment leaves the old or the new content.
//!
//! The one helper for every write-sync-rename of hub and agent. [`write`] replaces a file, [`remove`] sees
//! to it that there is none; [`Record`]
//! adds a checksum and a second copy, so that a torn or bit-flipped file is noticed and the last good
//! state is used and the damage reported.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use crate::digest::Digest;

/// What could not be done to which file.
#[derive(Debug, thiserror::Error)]
#[error("could not {attempt} {}", path.display())]
pub struct DurableError {
    attempt: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl DurableError {
    /// Whether the disk is full (`ENOSPC` or `EDQUOT`).
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

fn during(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DurableError {
    let path = path.to_owned();
    move |source| DurableError { attempt, path, source }
}

/// Replaces `path` by `bytes`: temporary file beside it, fsync, rename, fsync of the folder.
///
/// `mode` is the permission bits of the new file, such as `0o600` for secrets.
///
/// # Errors
/// Names the step that failed. The old content is still there then.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), DurableError> {
    let mut temp = path.as_os_str().to_owned();
    temp.push(".tmp");
    let temp = PathBuf::from(temp);
    remove(&temp)?;
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temp)?;
        file.write_all(bytes)?;
        file.sync_all()
    })();
    if let Err(e) = written {
        let _ = fs::remove_file(&temp); // best effort: the next write clears it away too
        return Err(during("write", &temp)(e));
    }
    fs::rename(&temp, path).map_err(during("put in place", path))?;
    sync_parent(path)
}

/// Removes a file. That it is gone already is success; [`sync_parent`] makes it last.
///
/// # Errors
/// When it is there and stays.
pub fn remove(path: &Path) -> Result<(), DurableError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(during("clear away", path)(e)),
        _ => Ok(()),
    }
}

/// Flushes the folder entry of `path`, so that a creation, rename or removal survives a power cut.
///
/// # Errors
/// When the folder cannot be opened or flushed.
pub fn sync_parent(path: &Path) -> Result<(), DurableError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(during("flush the folder", parent))
}

/// Creates a folder with its parents and flushes the new entries.
///
/// # Errors
/// When a folder cannot be made.
pub fn create_dir_all(path: &Path) -> Result<(), DurableError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_dir_all(parent)?;
    }
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.map_err(during("create the folder", path))?,
    }
    sync_parent(path)
}

/// A small state file that notices damage: first line `crossdock-record-1 <digest>`, then the content;
/// a second copy (`<path>.bak`) holds the content before, of a record that was written once the same.
#[derive(Debug, Clone)]
pub struct Record {
    path: PathBuf,
}

/// What [`Record::load`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loaded {
    /// Nothing was ever written.
    Absent,
    /// The newest content.
    Good(Vec<u8>),
    /// The newest is damaged or gone; this is the content before. Report it.
    Fallback(Vec<u8>),
    /// Something was written and no copy is readable. Never treat it as absent.
    Lost,
}

const RECORD_MAGIC: &str = "crossdock-record-1";

impl Record {
    /// The record kept at `path`.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Record {
        Record { path: path.into() }
    }

    /// Where it is kept.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn backup(&self) -> PathBuf {
        let mut path = self.path.as_os_str().to_owned();
        path.push(".bak");
        path.into()
    }

    /// Replaces the content; the content before becomes the second copy if it is whole.
    ///
    /// # Errors
    /// Names the step that failed; the content before is still readable then.
    pub fn store(&self, content: &[u8]) -> Result<(), DurableError> {
        let bytes = sealed(content);
        // The second copy is a whole file before the first is touched.
        if let Some(old) = read_checked(&self.path).map_err(during("read", &self.path))?.and_then(Result::ok) {
            write(&self.backup(), &sealed(&old), 0o600)?;
        }
        write(&self.path, &bytes, 0o600)?;
        let backup = self.backup();
        if read_checked(&backup).map_err(during("read", &backup))?.is_none() {
            // Written once and damaged once: it is to be read all the same.
            write(&backup, &bytes, 0o600)?;
        }
        Ok(())
    }

    /// Forgets the record, both copies. A cut in between leaves the newest.
    ///
    /// # Errors
    /// Names the copy that stays.
    pub fn remove(&self) -> Result<(), DurableError> {
        remove(&self.backup())?;
        remove(&self.path)?;
        sync_parent(&self.path)
    }

    /// Reads as [`Record::load`] does, and writes a copy that is damaged or gone again from the other: for the
    /// owner of a record that may stay as it is for years, so that damage of one copy now and of the other
    /// later loses nothing. Where that cannot be written now, the next time will do.
    ///
    /// # Errors
    /// As [`Record::load`].
    pub fn load_and_mend(&self) -> Result<Loaded, DurableError> {
        let loaded = self.load()?;
        let backup = self.backup();
        let mended = match &loaded {
            Loaded::Good(content) => match read_checked(&backup) {
                Ok(Some(Ok(_))) => Ok(()),
                _ => write(&backup, &sealed(content), 0o600),
            },
            Loaded::Fallback(content) => write(&self.path, &sealed(content), 0o600),
            Loaded::Absent | Loaded::Lost => Ok(()),
        };
        if let Err(error) = mended {
            tracing::warn!(record = %self.path.display(), %error, "one of its two copies is damaged and stays so");
        }
        Ok(loaded)
    }

    /// Reads the newest whole content.
    ///
    /// # Errors
    /// When a file is there and cannot be read at all (permissions, I/O).
    pub fn load(&self) -> Result<Loaded, DurableError> {
        let first = read_checked(&self.path).map_err(during("read", &self.path))?;
        if let Some(Ok(content)) = first {
            return Ok(Loaded::Good(content));
        }
        let backup = self.backup();
        let second = read_checked(&backup).map_err(during("read", &backup))?;
        Ok(match (first, second) {
            (_, Some(Ok(content))) => Loaded::Fallback(content),
            (None, None) => Loaded::Absent,
            _ => Loaded::Lost,
        })
    }
}

/// First line and content, as they stand in the file.
fn sealed(content: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{RECORD_MAGIC} {}\n", Digest::of(content)).into_bytes();
    bytes.extend_from_slice(content);
    bytes
}

/// `None`: no file. `Some(Err)`: damaged.
fn read_checked(path: &Path) -> io::Result<Option<Result<Vec<u8>, ()>>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let content = (|| {
        let end = bytes.iter().position(|b| *b == b'\n')?;
        let header = std::str::from_utf8(bytes.get(..end)?).ok()?;
        let digest: Digest = header.strip_prefix(RECORD_MAGIC)?.trim_start().parse().ok()?;
        let content = bytes.get(end + 1..)?;
        (Digest::of(content) == digest).then(|| content.to_vec())
    })();
    Ok(Some(content.ok_or(())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_record_falls_back_and_is_never_absent() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record::at(folder.path().join("slot"));
        assert_eq!(record.load().unwrap(), Loaded::Absent);
        record.store(b"one").unwrap();
        record.store(b"two").unwrap();
        assert_eq!(record.load().unwrap(), Loaded::Good(b"two".to_vec()));

        let whole = fs::read(record.path()).unwrap();
        for cut in 0..whole.len() {
            fs::write(record.path(), &whole[..cut]).unwrap();
            assert_eq!(record.load().unwrap(), Loaded::Fallback(b"one".to_vec()), "torn at {cut}");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(record.path(), &flipped).unwrap();
            let loaded = record.load().unwrap();
            assert_eq!(loaded, Loaded::Fallback(b"one".to_vec()), "bit {bit}");
        }
        // Storing over a damaged file keeps the good second copy.
        record.store(b"three").unwrap();
        assert_eq!(record.load().unwrap(), Loaded::Good(b"three".to_vec()));
        fs::write(record.path(), b"x").unwrap();
        assert_eq!(record.load().unwrap(), Loaded::Fallback(b"one".to_vec()));
        fs::write(record.backup(), b"x").unwrap();
        assert_eq!(record.load().unwrap(), Loaded::Lost);
        for _ in 0..2 {
            record.remove().unwrap();
            assert_eq!(record.load().unwrap(), Loaded::Absent);
        }
    }

    #[test]
    fn a_record_that_was_written_once_survives_damage() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record::at(folder.path().join("agent.json"));
        record.store(b"one").unwrap();
        fs::write(record.path(), b"x").unwrap();
        assert_eq!(record.load().unwrap(), Loaded::Fallback(b"one".to_vec()));
        record.store(b"two").unwrap();
        record.store(b"three").unwrap();
        fs::write(record.path(), b"x").unwrap();
        assert_eq!(record.load().unwrap(), Loaded::Fallback(b"two".to_vec()));
    }

    #[test]
    fn damage_of_either_copy_is_mended_before_the_other_is_hit() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record::at(folder.path().join("agent.json"));
        assert_eq!(record.load_and_mend().unwrap(), Loaded::Absent);
        record.store(b"one").unwrap();
        for _ in 0..2 {
            fs::write(record.path(), b"x").unwrap();
            assert_eq!(record.load_and_mend().unwrap(), Loaded::Fallback(b"one".to_vec()));
            fs::write(record.backup(), b"x").unwrap();
            assert_eq!(record.load_and_mend().unwrap(), Loaded::Good(b"one".to_vec()));
            fs::remove_file(record.path()).unwrap();
            assert_eq!(record.load_and_mend().unwrap(), Loaded::Fallback(b"one".to_vec()));
        }
        // What cannot be mended is read all the same.
        fs::write(record.path(), b"x").unwrap();
        fs::create_dir(folder.path().join("agent.json.tmp")).unwrap();
        assert_eq!(record.load_and_mend().unwrap(), Loaded::Fallback(b"one".to_vec()));
    }

    #[test]
    fn a_failed_write_leaves_the_old_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        write(&path, b"old", 0o644).unwrap();
        fs::create_dir(folder.path().join("f.tmp")).unwrap(); // in the way
        assert!(write(&path, b"new", 0o644).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
}
