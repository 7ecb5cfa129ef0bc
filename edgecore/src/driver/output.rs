//! Writes a workload's output to rotated files of bounded size, in the format of Kubernetes' CRI:
//! `2026-01-31T08:00:00.000000000Z stdout F the line`; `P` instead of `F` says that the line goes on.
//!
//! `current.log` is written; `1.log` to `3.log` are older, highest oldest. Used by the shim alone;
//! [`super::logs`] reads them. A full disk loses lines and never stops the workload.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

/// Log files of one app, besides the one being written.
pub const OLD_FILES: u64 = 3;
/// All log files of an app together, unless its limits say otherwise.
pub const DEFAULT_TOTAL_BYTES: u64 = 40 << 20;
const MIN_FILE_BYTES: u64 = 4 << 10;
const MAX_LINE_BYTES: usize = 16 << 10;
const FLUSH_BYTES: usize = 32 << 10;
const PREFIX_BYTES: usize = 48;
const SHOWN_CHARS: usize = 300;

/// Path of a log file: 0 is the one being written.
#[must_use]
pub fn file_path(folder: &Path, age: u64) -> PathBuf {
    match age {
        0 => folder.join("current.log"),
        age => folder.join(format!("{age}.log")),
    }
}

/// The files.
#[derive(Debug)]
pub struct LogFiles {
    folder: PathBuf,
    file: Option<File>,
    size: u64,
    max_file_bytes: u64,
}

impl LogFiles {
    /// Goes on with the files in `folder`, all together at most `total_bytes`.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(folder: &Path, total_bytes: u64) -> io::Result<LogFiles> {
        fs::create_dir_all(folder)?;
        let max_file_bytes = (total_bytes / (OLD_FILES + 1)).max(MIN_FILE_BYTES);
        Ok(LogFiles { folder: folder.to_owned(), file: None, size: 0, max_file_bytes })
    }

    fn max_line_bytes(&self) -> usize {
        usize::try_from(self.max_file_bytes / 2).unwrap_or(usize::MAX).min(MAX_LINE_BYTES)
    }

    /// Appends whole lines. What cannot be written is lost, and the next write tries again.
    fn append(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        if self.try_append(lines).is_err() {
            self.file = None;
        }
    }

    fn try_append(&mut self, lines: &[u8]) -> io::Result<()> {
        let current = file_path(&self.folder, 0);
        if self.file.is_none() {
            let file = OpenOptions::new().create(true).append(true).open(&current)?;
            self.size = file.metadata()?.len();
            self.file = Some(file);
        }
        let length = lines.len() as u64;
        if self.size > 0 && self.size + length > self.max_file_bytes {
            for age in (0..OLD_FILES).rev() {
                match fs::rename(file_path(&self.folder, age), file_path(&self.folder, age + 1)) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
            self.file = Some(OpenOptions::new().create(true).append(true).open(&current)?);
            self.size = 0;
        }
        self.size += length;
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(lines))
    }
}

/// Cuts one stream of a workload into lines.
#[derive(Debug)]
pub struct Stream {
    name: &'static str,
    pending: Vec<u8>,
    last_line: Vec<u8>,
}

impl Stream {
    /// `name` is `stdout` or `stderr`.
    #[must_use]
    pub fn new(name: &'static str) -> Stream {
        Stream { name, pending: vec![], last_line: vec![] }
    }

    /// Takes what was read at `now`.
    pub fn take(&mut self, mut bytes: &[u8], now: Timestamp, files: &mut LogFiles) {
        let max = files.max_line_bytes();
        let flush = FLUSH_BYTES.min(usize::try_from(files.max_file_bytes / 2).unwrap_or(FLUSH_BYTES));
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let room = max - self.pending.len();
            let end = bytes.iter().take(room).position(|b| *b == b'\n');
            let (piece, rest) = bytes.split_at(end.unwrap_or(bytes.len().min(room)));
            self.pending.extend_from_slice(piece);
            bytes = rest;
            match end {
                Some(_) => {
                    bytes = bytes.get(1..).unwrap_or_default();
                    self.emit(b'F', now, &mut out);
                }
                None if self.pending.len() == max => self.emit(b'P', now, &mut out),
                None => {}
            }
            if out.len() + PREFIX_BYTES + max.min(self.pending.len() + bytes.len()) > flush {
                files.append(&out);
                out.clear();
            }
        }
        files.append(&out);
        if self.pending.is_empty() {
            self.pending.shrink_to(1024);
        }
    }

    /// The stream has ended: what is left is a line.
    pub fn finish(&mut self, now: Timestamp, files: &mut LogFiles) {
        let mut out = Vec::new();
        if !self.pending.is_empty() {
            self.emit(b'F', now, &mut out);
        }
        files.append(&out);
    }

    fn emit(&mut self, tag: u8, now: Timestamp, out: &mut Vec<u8>) {
        let _ = write!(out, "{now:.9} {} {} ", self.name, char::from(tag)); // writing to memory
        out.extend_from_slice(&self.pending);
        out.push(b'\n');
        if !self.pending.trim_ascii().is_empty() {
            let shown = self.pending.get(..SHOWN_CHARS * 4).unwrap_or(&self.pending);
            self.last_line.clear();
            self.last_line.extend_from_slice(shown);
        }
        self.pending.clear();
    }

    /// The last line that was not blank, shortened, for people.
    #[must_use]
    pub fn last_line(&self) -> String {
        let text = String::from_utf8_lossy(self.last_line.trim_ascii());
        text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything(folder: &Path) -> Vec<String> {
        let files = (0..=OLD_FILES).rev().filter_map(|age| fs::read_to_string(file_path(folder, age)).ok());
        files.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn lines_are_cut_and_tagged_however_they_arrive() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = LogFiles::open(folder.path(), 1 << 20).unwrap();
        let mut stream = Stream::new("stdout");
        for piece in [&b"one\ntw"[..], b"o\n\n", b"\xff\xfe three"] {
            stream.take(piece, Timestamp::UNIX_EPOCH, &mut files);
        }
        stream.finish(Timestamp::UNIX_EPOCH, &mut files);
        let bytes = fs::read(file_path(folder.path(), 0)).unwrap();
        let lines: Vec<_> = bytes.split(|b| *b == b'\n').collect();
        assert_eq!(lines[0], b"1970-01-01T00:00:00.000000000Z stdout F one");
        assert_eq!(lines[1], b"1970-01-01T00:00:00.000000000Z stdout F two");
        assert_eq!(lines[2], b"1970-01-01T00:00:00.000000000Z stdout F ");
        assert!(lines[3].ends_with(b" F \xff\xfe three"));
        assert!(stream.last_line().ends_with("three"));
    }

    #[test]
    fn a_line_without_end_is_cut_in_parts_that_join() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = LogFiles::open(folder.path(), 1 << 20).unwrap();
        let mut stream = Stream::new("stderr");
        stream.take(&[b'x'; 40 << 10], Timestamp::UNIX_EPOCH, &mut files);
        stream.take(b"y\n", Timestamp::UNIX_EPOCH, &mut files);
        let lines = everything(folder.path());
        let tags: Vec<_> = lines.iter().map(|l| l.split(' ').nth(2).unwrap()).collect();
        assert_eq!(tags, ["P", "P", "F"]);
        let joined: String = lines.iter().map(|l| l.split(' ').nth(3).unwrap()).collect();
        assert_eq!(joined.len(), (40 << 10) + 1);
    }

    #[test]
    fn files_rotate_and_stay_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let total = 64 << 10;
        for round in 0..3 {
            let mut files = LogFiles::open(folder.path(), total).unwrap(); // as after a restart
            let mut stream = Stream::new("stdout");
            for i in 0..2000 {
                let line = format!("round {round} line {i}\n").repeat(5);
                stream.take(line.as_bytes(), Timestamp::UNIX_EPOCH, &mut files);
            }
            let size: u64 =
                (0..=OLD_FILES).map(|a| fs::metadata(file_path(folder.path(), a)).map_or(0, |m| m.len())).sum();
            assert!(size <= total && size > total / 2, "{size}");
        }
        assert!(everything(folder.path()).last().unwrap().ends_with("round 2 line 1999"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    }
}
