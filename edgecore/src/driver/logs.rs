//! Reads the log files of a workload while [`super::output`] writes and rotates them.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use proto::env::Env;
use tokio::sync::mpsc;

use super::output;

const CHUNK_BYTES: usize = 64 << 10;
const POLL: Duration = Duration::from_millis(250);

/// A log file, told by its inode, for names change. An inode belongs to a new file soon after its
/// file was deleted, so that it means something only as long as this is held open.
#[derive(Debug)]
struct LogFile {
    file: File,
    inode: u64,
}

/// Where a reader stands.
#[derive(Debug)]
struct Cursor {
    log: LogFile,
    offset: u64,
}

/// Streams the last `tail` lines of the logs in `folder` and, with `follow`, what comes after.
pub async fn stream(folder: PathBuf, tail: Option<u32>, follow: bool, env: Env) -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(4);
    let at = folder.clone();
    let mut cursor = match tail {
        None => None,
        Some(lines) => env.blocking.run(move || tail_start(&at, lines)).await,
    };
    tokio::spawn(async move {
        loop {
            let at = folder.clone();
            let (chunk, next) = env.blocking.run(move || read_more(&at, cursor)).await;
            cursor = next;
            if !chunk.is_empty() {
                if sender.send(chunk.into()).await.is_err() {
                    return;
                }
            } else if follow {
                tokio::select! {
                    biased;
                    () = sender.closed() => return,
                    () = tokio::time::sleep(POLL) => {}
                }
            } else {
                return;
            }
        }
    });
    receiver
}

/// The files, oldest first. They are opened newest first, so that a rotation meanwhile hides none.
fn open_all(folder: &Path) -> Vec<LogFile> {
    let mut logs: Vec<LogFile> = vec![];
    for age in 0..=output::OLD_FILES {
        let Ok(file) = File::open(output::file_path(folder, age)) else { continue };
        let Ok(inode) = file.metadata().map(|m| m.ino()) else { continue };
        if logs.iter().all(|other| other.inode != inode) {
            logs.push(LogFile { file, inode });
        }
    }
    logs.reverse();
    logs
}

/// The next whole lines after the cursor; nothing when there are none yet.
fn read_more(folder: &Path, cursor: Option<Cursor>) -> (Vec<u8>, Option<Cursor>) {
    let newer = open_all(folder);
    // A file that was rotated away is read to its end, then comes the oldest that is left.
    let known = cursor.as_ref().and_then(|c| newer.iter().position(|log| log.inode == c.log.inode));
    let newer = newer.into_iter().skip(known.map_or(0, |at| at + 1)).map(|log| Cursor { log, offset: 0 });
    let mut last = None;
    for mut cursor in cursor.into_iter().chain(newer) {
        let chunk = read_lines(&cursor.log.file, cursor.offset).unwrap_or_default();
        cursor.offset += chunk.len() as u64;
        let found = !chunk.is_empty();
        last = Some(cursor);
        if found {
            return (chunk, last);
        }
    }
    (vec![], last)
}

fn read_lines(mut file: &File, offset: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(offset))?;
    let mut chunk = Vec::new();
    file.take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
    let end = match chunk.iter().rposition(|b| *b == b'\n') {
        Some(end) => end + 1,
        None if chunk.len() == CHUNK_BYTES => chunk.len(),
        None => 0, // half a line: the rest comes
    };
    chunk.truncate(end);
    Ok(chunk)
}

/// Where the last `lines` lines begin.
fn tail_start(folder: &Path, lines: u32) -> Option<Cursor> {
    let mut wanted = u64::from(lines);
    let mut begin = None;
    for (newest, log) in open_all(folder).into_iter().rev().enumerate() {
        let size = log.file.metadata().map_or(0, |m| m.len());
        if newest == 0 && wanted == 0 {
            return Some(Cursor { log, offset: size });
        }
        match lines_back(&log.file, size, &mut wanted) {
            Some(offset) => return Some(Cursor { log, offset }),
            None => begin = Some(Cursor { log, offset: 0 }),
        }
    }
    begin
}

/// Start of the `wanted`th line from the end, or `None` after counting down when there are fewer.
fn lines_back(file: &File, size: u64, wanted: &mut u64) -> Option<u64> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut end = size;
    while end > 0 {
        let start = end.saturating_sub(CHUNK_BYTES as u64);
        let chunk = buffer.get_mut(..usize::try_from(end - start).ok()?)?;
        file.read_exact_at(chunk, start).ok()?;
        for (i, _) in chunk.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            let next_line = start + i as u64 + 1;
            if next_line == size {
                continue; // ends the last line
            }
            *wanted = wanted.saturating_sub(1);
            if *wanted == 0 {
                return Some(next_line);
            }
        }
        end = start;
    }
    if size > 0 {
        *wanted = wanted.saturating_sub(1); // the first line has no newline before it
        if *wanted == 0 {
            return Some(0);
        }
    }
    None
}

/// Whether there are logs.
#[must_use]
pub fn exist(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|m| m.is_dir())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{
        super::output::{LogFiles, Stream},
        *,
    };

    fn write(files: &mut LogFiles, from: u32, to: u32) {
        let mut stream = Stream::new("stdout");
        for i in from..to {
            stream.take(format!("line {i}\n").as_bytes(), Timestamp::UNIX_EPOCH, files);
        }
    }

    fn numbers(bytes: &[u8]) -> Vec<u32> {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        text.lines().map(|l| l.rsplit(' ').next().unwrap().parse().unwrap()).collect()
    }

    async fn collect(folder: &Path, tail: Option<u32>) -> Vec<u32> {
        let mut receiver = stream(folder.to_owned(), tail, false, Env::real().unwrap()).await;
        let mut all = vec![];
        while let Some(chunk) = receiver.recv().await {
            all.extend(numbers(&chunk));
        }
        all
    }

    #[tokio::test]
    async fn a_tail_reaches_across_files() {
        let folder = tempfile::tempdir().unwrap();
        assert!(collect(folder.path(), Some(3)).await.is_empty());
        let mut files = LogFiles::open(folder.path(), 16 << 10).unwrap();
        write(&mut files, 0, 300);
        let all = collect(folder.path(), None).await;
        assert_eq!(all.last(), Some(&299));
        for n in [0, 1, 2, 50, 100, 150, 200, 250] {
            assert_eq!(collect(folder.path(), Some(n)).await, all[all.len() - n as usize..], "{n}");
        }
        assert_eq!(collect(folder.path(), Some(100_000)).await, all);
    }

    #[tokio::test]
    async fn following_misses_nothing_across_rotations() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = LogFiles::open(folder.path(), 64 << 10).unwrap();
        write(&mut files, 0, 10);
        let mut receiver = stream(folder.path().to_owned(), Some(5), true, Env::real().unwrap()).await;
        let mut seen = vec![];
        for round in 1..20 {
            write(&mut files, round * 100, round * 100 + 100);
            while seen.last() != Some(&(round * 100 + 99)) {
                seen.extend(numbers(&receiver.recv().await.unwrap()));
            }
        }
        let expected: Vec<u32> = (5..10).chain(100..2000).collect();
        assert_eq!(seen, expected);
    }

    #[tokio::test]
    async fn a_follower_left_behind_goes_on_with_what_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = LogFiles::open(folder.path(), 16 << 10).unwrap();
        write(&mut files, 0, 10);
        let mut cursor = tail_start(folder.path(), 1);
        for round in 1..100 {
            // More than all files hold, and each time another share of the newest.
            write(&mut files, round * 1000, round * 1000 + 400 + round);
            let mut seen = vec![];
            loop {
                let (chunk, next) = read_more(folder.path(), cursor);
                cursor = next;
                if chunk.is_empty() {
                    break;
                }
                seen.extend(numbers(&chunk));
            }
            let mut left = vec![];
            for log in open_all(folder.path()) {
                left.extend(numbers(&read_lines(&log.file, 0).unwrap()));
            }
            assert!(seen.ends_with(&left), "round {round}: {seen:?}, of {left:?}");
        }
    }
}
