//! The files of the audit log: appended to, one line and one sync at a time, repaired, turned over and bounded.
//!
//! Opened by the first line, so a hub that is only looked at writes nothing. A log whose last line is damaged, other
//! than torn, is not written on: what was done to it would be covered up.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use proto::{digest::Digest, env::Env};
use tokio::time::Instant;

use super::{
    check::{Broken, Check, Report, TRIM},
    line::{Entry, Head, Line, MAX_LINE_BYTES},
};
use crate::api::limits::Buckets;

/// Bytes of a file before the next one is begun.
const MAX_FILE_BYTES: u64 = 8 << 20;
/// Files that are kept, however old they are.
const LEAST_FILES: usize = 32;
/// How long files beyond these are kept.
const KEEP: SignedDuration = SignedDuration::from_hours(14 * 24);
/// Files that are kept, however new they are: 4 GiB. What one user may change for long
/// ([`crate::api::limits::LimitsConfig`]) does not fill them within [`KEEP`].
const MOST_FILES: usize = 512;
/// Lines of one kind by one user or address that are written, where nothing hangs on each: for long, and at once.
const OFTEN_PER_S: f64 = 0.1;
const OFTEN_BURST: f64 = 50.0;

/// The log cannot be written, or not read.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The disk.
    #[error("could not {attempt} {}: {source}; see to the disk of the hub's data folder", path.display())]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Its end was damaged by something else than a power cut.
    #[error(
        "the audit log is damaged at its end, {}: {problem}; see `cloudcore audit verify DIR`, keep the folder for whoever looks into it, and move it away: a new log begins then",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A line has no form.
    #[error("a line of the audit log could not be made: {0}")]
    Form(String),
}

fn during(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AuditError {
    let path = path.to_owned();
    move |source| AuditError::Io { attempt, path, source }
}

/// Bounds of a log.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    file_bytes: u64,
    least_files: usize,
    keep: SignedDuration,
    most_files: usize,
}

const BOUNDS: Bounds =
    Bounds { file_bytes: MAX_FILE_BYTES, least_files: LEAST_FILES, keep: KEEP, most_files: MOST_FILES };

impl Bounds {
    /// Whether the oldest of `files` goes, whose last line is of `end`.
    fn drops(&self, files: usize, end: Option<Timestamp>, now: Timestamp) -> bool {
        let is_old = end.is_none_or(|end| now.duration_since(end) > self.keep);
        files > self.most_files || (files > self.least_files && is_old)
    }
}

/// The audit log of a hub. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Audit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    env: Env,
    bounds: Bounds,
    /// `None`: not opened yet, or to be opened again after an error.
    writer: Mutex<Option<Writer>>,
    /// Lines of which not each is written, by who and what.
    often: Buckets<String>,
}

#[derive(Debug)]
struct Writer {
    file: File,
    path: PathBuf,
    bytes: u64,
    head: Head,
}

impl Audit {
    /// The log in `folder`, which is made when the first line is written.
    #[must_use]
    pub fn at(folder: impl Into<PathBuf>, env: &Env) -> Audit {
        Audit::with(folder.into(), env, BOUNDS)
    }

    fn with(folder: PathBuf, env: &Env, bounds: Bounds) -> Audit {
        let (writer, often) = (Mutex::default(), Buckets::new(OFTEN_PER_S, OFTEN_BURST));
        Audit(Arc::new(Inner { folder, env: env.clone(), bounds, writer, often }))
    }

    /// Writes a line; it is on disk when this returns.
    ///
    /// # Errors
    /// When it is not: what it tells of must not be done then, or not be answered.
    pub async fn append(&self, entry: Entry) -> Result<Head, AuditError> {
        let inner = Arc::clone(&self.0);
        self.0.env.blocking.run(move || inner.append(entry)).await
    }

    /// Writes a line about something that is so already; where that fails, the hub's log has it.
    pub async fn note(&self, entry: Entry) {
        let text = format!("{} {} {} {}", entry.verb, entry.kind, entry.name, entry.outcome);
        if let Err(error) = self.append(entry).await {
            tracing::error!(%error, what = text, "it could not be written into the audit log");
        }
    }

    /// As [`Audit::note`], for what may come very often, such as what was refused, or logins, of `by`. Of a flood the
    /// first ones are written, and then a few: they must not push out what was done.
    pub async fn noted_often(&self, by: &str, entry: Entry) {
        if self.0.often.take(&by.to_owned(), Instant::now()).is_ok() {
            self.note(entry).await;
        }
    }

    /// Its end; `None` of a log that was not written yet.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged at its end.
    pub async fn head(&self) -> Result<Option<Head>, AuditError> {
        let inner = Arc::clone(&self.0);
        self.0.env.blocking.run(move || inner.head()).await
    }

    /// Checks all of it, against heads that were kept elsewhere.
    ///
    /// # Errors
    /// When it cannot be read. Where it is broken is the answer.
    pub async fn verify(&self, kept: Vec<Head>) -> Result<Result<Report, Broken>, AuditError> {
        let folder = self.0.folder.clone();
        self.0.env.blocking.run(move || verify(&folder, kept)).await
    }

    /// The last lines before sequence `before` that `wanted` takes, at most `limit`, the newest first.
    ///
    /// # Errors
    /// When a file cannot be read. Lines that are none are left out: [`Audit::verify`] names them.
    pub async fn read(
        &self,
        before: u64,
        limit: usize,
        wanted: impl Fn(&Line) -> bool + Send + 'static,
    ) -> Result<Vec<Line>, AuditError> {
        let folder = self.0.folder.clone();
        self.0.env.blocking.run(move || read_back(&folder, before, limit, &wanted)).await
    }
}

impl Inner {
    fn append(&self, entry: Entry) -> Result<Head, AuditError> {
        let mut slot = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut writer = match slot.take() {
            Some(writer) => writer,
            None => self.open()?,
        };
        // After an error the slot stays empty: the next line opens the file again and drops what is torn.
        self.write(&mut writer, entry)?;
        if writer.bytes >= self.bounds.file_bytes {
            self.turn_over(&mut writer)?;
        }
        let head = writer.head;
        *slot = Some(writer);
        Ok(head)
    }

    fn head(&self) -> Result<Option<Head>, AuditError> {
        let slot = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = slot.as_ref() {
            return Ok(Some(writer.head));
        }
        match files(&self.folder)?.as_slice() {
            [] => Ok(None),
            files => end_of(files).map(|end| Some(end.head)),
        }
    }

    fn write(&self, writer: &mut Writer, entry: Entry) -> Result<(), AuditError> {
        let (line, bytes) = Line::after(&writer.head, self.env.wall.now(), entry).map_err(AuditError::Form)?;
        if bytes.len() > MAX_LINE_BYTES {
            return Err(AuditError::Form(format!("it has {} bytes", bytes.len())));
        }
        let written = writer.file.write_all(&bytes).and_then(|()| writer.file.sync_data());
        if let Err(source) = written {
            // Half a line must not be taken for one that was cut by a power loss, where that can be helped.
            let _ = writer.file.set_len(writer.bytes);
            return Err(during("write", &writer.path)(source));
        }
        writer.bytes += bytes.len() as u64;
        writer.head = line.head();
        Ok(())
    }

    /// Opens the newest file, or makes the first.
    fn open(&self) -> Result<Writer, AuditError> {
        let folder = &self.folder;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(during("make", folder))?;
        let files = files(folder)?;
        let Some(path) = files.last() else { return self.begin(Head::none()) };
        let end = end_of(&files)?;
        let file = OpenOptions::new().append(true).open(path).map_err(during("open", path))?;
        let mut writer = Writer { file, path: path.clone(), bytes: end.whole_bytes, head: end.head };
        if let Some((bytes, digest)) = end.torn {
            writer
                .file
                .set_len(end.whole_bytes)
                .and_then(|()| writer.file.sync_all())
                .map_err(during("repair", path))?;
            let detail = format!("{bytes} bytes of a line that was not complete were dropped, {digest}");
            tracing::warn!(path = %path.display(), detail, "the audit log was torn at its end, and is repaired");
            self.write(&mut writer, own("repair", detail))?;
        }
        Ok(writer)
    }

    /// Makes the file for what follows `head`.
    fn begin(&self, head: Head) -> Result<Writer, AuditError> {
        let path = self.folder.join(format!("audit-{:020}.jsonl", head.seq + 1));
        let file =
            OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(during("make", &path))?;
        let synced = file.sync_all().and_then(|()| File::open(&self.folder)?.sync_all());
        synced.map_err(during("make", &path))?;
        Ok(Writer { file, path, bytes: 0, head })
    }

    /// Goes on in a new file, and removes what is beyond the bounds once the log says so.
    fn turn_over(&self, writer: &mut Writer) -> Result<(), AuditError> {
        *writer = self.begin(writer.head)?;
        let (files, now) = (files(&self.folder)?, self.env.wall.now());
        let mut dropped = None;
        for (at, left) in (1..=files.len()).rev().enumerate() {
            let Some(oldest) = files.get(..=at) else { break };
            let end = end_of(oldest)?;
            if !self.bounds.drops(left, end.time, now) {
                break;
            }
            dropped = Some((oldest, end));
        }
        let Some((oldest, end)) = dropped else { return Ok(()) };
        let is_early = !self.bounds.drops(self.bounds.least_files + 1, end.time, now);
        if is_early {
            tracing::warn!(end = %end.head, "the audit log is full of new lines, so that lines of these two weeks are dropped");
        }
        let outcome = if is_early { "early" } else { "" };
        self.write(writer, Entry { outcome: outcome.into(), ..own(TRIM, end.head.to_string()) })?;
        for path in oldest {
            fs::remove_file(path).map_err(during("remove", path))?;
        }
        Ok(())
    }
}

/// What the log says of itself.
fn own(verb: &str, detail: String) -> Entry {
    let text = str::to_owned;
    Entry { user: text("hub"), via: text("hub"), verb: text(verb), kind: text("audit"), detail, ..Entry::default() }
}

/// The files, oldest first: their names have their first sequence in so many digits.
fn files(folder: &Path) -> Result<Vec<PathBuf>, AuditError> {
    let listed = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        other => other.map_err(during("list", folder))?,
    };
    let mut files = vec![];
    for entry in listed {
        let name = entry.map_err(during("list", folder))?.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("audit-") && name.ends_with(".jsonl")) {
            files.push(folder.join(name));
        }
    }
    files.sort_unstable();
    Ok(files)
}

struct End {
    head: Head,
    /// When its last line was written; `None`: there is none.
    time: Option<Timestamp>,
    /// Bytes up to the last line end.
    whole_bytes: u64,
    /// What stands after it: how many bytes, and their digest.
    torn: Option<(usize, Digest)>,
}

/// The end of a log of these files, of which there is at least one.
fn end_of(files: &[PathBuf]) -> Result<End, AuditError> {
    let Some((path, before)) = files.split_last() else {
        return Ok(End { head: Head::none(), time: None, whole_bytes: 0, torn: None });
    };
    let content = fs::read(path).map_err(during("read", path))?;
    let whole = content.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let (lines, torn) = content.split_at_checked(whole).unwrap_or((&content, &[]));
    let torn = Some(torn).filter(|torn| !torn.is_empty()).map(|torn| (torn.len(), Digest::of(torn)));
    let (head, time) = match lines.strip_suffix(b"\n").and_then(|lines| lines.rsplit(|b| *b == b'\n').next()) {
        Some(last) => {
            let damaged = |e: super::line::BadLine| AuditError::Damaged { path: path.clone(), problem: e.to_string() };
            let line = Line::parse(last).map_err(damaged)?;
            (line.head(), Some(line.time))
        }
        None => end_of(before).map(|end| (end.head, end.time))?, // it was just begun
    };
    Ok(End { head, time, whole_bytes: whole as u64, torn })
}

/// Checks the log in a folder, without a hub.
///
/// # Errors
/// When it cannot be read. Where it is broken is the answer.
pub fn verify(folder: &Path, kept: Vec<Head>) -> Result<Result<Report, Broken>, AuditError> {
    let mut check = Check::new(kept);
    for path in files(folder)? {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut reader = io::BufReader::new(File::open(&path).map_err(during("open", &path))?);
        let (mut line, mut number) = (vec![], 0);
        loop {
            line.clear();
            let limit = MAX_LINE_BYTES as u64 + 1;
            let mut bounded = io::Read::take(&mut reader, limit);
            let read = bounded.read_until(b'\n', &mut line).map_err(during("read", &path))?;
            number += 1;
            match line.strip_suffix(b"\n") {
                _ if read == 0 => break,
                Some(line) => {
                    if let Err(broken) = check.line(&name, number, line) {
                        return Ok(Err(broken));
                    }
                }
                None if read > MAX_LINE_BYTES => {
                    let problem = format!("it is longer than {MAX_LINE_BYTES} bytes: the hub did not write it");
                    return Ok(Err(Broken { at: Some((name, number)), problem }));
                }
                None => check.torn(read),
            }
        }
    }
    Ok(check.finish())
}

fn read_back(
    folder: &Path,
    before: u64,
    limit: usize,
    wanted: &dyn Fn(&Line) -> bool,
) -> Result<Vec<Line>, AuditError> {
    let mut found = vec![];
    for path in files(folder)?.iter().rev() {
        let content = match fs::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => break, // removed meanwhile, and all before it
            other => other.map_err(during("read", path))?,
        };
        for line in content.rsplit(|b| *b == b'\n') {
            if found.len() >= limit {
                return Ok(found);
            }
            let Ok(line) = Line::parse(line) else { continue };
            if line.seq < before && wanted(&line) {
                found.push(line);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Entry {
        Entry { verb: "create".into(), name: name.into(), ..Entry::default() }
    }

    fn log(folder: &Path, file_bytes: u64, files: usize) -> Audit {
        Audit::with(
            folder.join("audit"),
            &Env::real().unwrap(),
            Bounds { file_bytes, least_files: files, keep: SignedDuration::ZERO, most_files: files },
        )
    }

    #[tokio::test]
    async fn a_chain_goes_on_over_files_and_starts_and_stays_in_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        assert_eq!(log(folder.path(), 3000, 3).head().await.unwrap(), None);
        let mut heads = vec![];
        for n in 0..40 {
            // A hub that was started again goes on where it was.
            let log = log(folder.path(), 3000, 3);
            heads.push(log.append(entry(&n.to_string())).await.unwrap());
            assert_eq!(log.head().await.unwrap(), heads.last().copied());
        }
        assert_eq!(files(&path).unwrap().len(), 3);
        let last = *heads.last().unwrap();
        let report = verify(&path, vec![last]).unwrap().unwrap();
        assert!(report.head == last && report.first > 1 && report.torn_bytes == 0, "{report:?}");
        let log = log(folder.path(), 3000, 3);
        let lines = log.read(u64::MAX, 5, |line| line.entry.verb == "create").await.unwrap();
        assert_eq!(lines.iter().map(|l| l.entry.name.as_str()).collect::<Vec<_>>(), ["39", "38", "37", "36", "35"]);
        let older = log.read(lines[4].seq, 1, |line| line.entry.verb == "create").await.unwrap();
        assert_eq!(older[0].entry.name, "34");

        let old = verify(&path, vec![heads[0]]).unwrap().unwrap_err();
        assert!(old.problem.contains("older than what is kept"), "{old}");
        // A file that somebody else removed is missed.
        fs::remove_file(&files(&path).unwrap()[0]).unwrap();
        assert!(verify(&path, vec![]).unwrap().unwrap_err().problem.contains("begins with line"));
    }

    #[tokio::test]
    async fn lines_of_these_weeks_stay_as_long_as_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        let keep = SignedDuration::from_hours(24);
        let bounds = Bounds { file_bytes: 3000, least_files: 3, keep, most_files: 6 };
        let audit = Audit::with(path.clone(), &Env::real().unwrap(), bounds);
        let fill = async |until: usize| {
            for n in 0..1_000 {
                audit.append(entry(&n.to_string())).await.unwrap();
                if files(&path).unwrap().len() == until {
                    return;
                }
            }
            panic!("never {until} files");
        };
        fill(5).await; // beyond the least, and new: nothing goes
        let trims = async || audit.read(u64::MAX, 9, |line| line.entry.verb == TRIM).await.unwrap();
        assert_eq!((trims().await.len(), verify(&path, vec![]).unwrap().unwrap().first), (0, 1));
        for _ in 0..40 {
            audit.append(entry("flood")).await.unwrap();
        }
        assert_eq!(files(&path).unwrap().len(), 6);
        let told = trims().await;
        assert!(!told.is_empty() && told.iter().all(|line| line.entry.outcome == "early"), "{told:?}");
        assert!(verify(&path, vec![]).unwrap().unwrap().first > 1, "and the log is whole");
        // A day later the same lines are old: what is beyond the least goes, and that is as it should be.
        assert!(bounds.drops(4, Some(told[0].time), told[0].time.checked_add(keep * 2).unwrap()));
        assert!(!bounds.drops(3, None, told[0].time));
    }

    /// See the constants.
    #[test]
    fn one_user_does_not_push_out_what_is_to_be_kept() {
        let limits = crate::api::limits::LimitsConfig::default();
        let changes = KEEP.as_secs_f64() * limits.changes_per_s + f64::from(limits.change_burst);
        let long = |chars: usize| "\u{1f4e6}".repeat(chars);
        let asked = Entry { user: "u".repeat(128), name: "n".repeat(200), from: "f".repeat(64), ..entry("") };
        let done = Entry { detail: long(2_000), ..asked.clone() };
        let bytes = |entry| Line::after(&Head::none(), Timestamp::MAX, entry).unwrap().1.len() as f64;
        assert!(changes * (bytes(asked) + bytes(done)) < (MOST_FILES as u64 * MAX_FILE_BYTES) as f64);
    }

    #[tokio::test]
    async fn a_torn_line_is_repaired_and_told_wherever_it_was_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        log(folder.path(), 1 << 20, 3).append(entry("a")).await.unwrap();
        let whole = fs::read(&files(&path).unwrap()[0]).unwrap();
        log(folder.path(), 1 << 20, 3).append(entry("b")).await.unwrap();
        let both = fs::read(&files(&path).unwrap()[0]).unwrap();
        for cut in (whole.len() + 1)..both.len() {
            fs::write(&files(&path).unwrap()[0], &both[..cut]).unwrap();
            let report = verify(&path, vec![]).unwrap().unwrap();
            assert_eq!((report.head.seq, report.torn_bytes), (1, cut - whole.len()));
            let log = log(folder.path(), 1 << 20, 3);
            let head = log.append(entry("c")).await.unwrap();
            assert_eq!(head.seq, 3, "cut at {cut}");
            assert_eq!(verify(&path, vec![head]).unwrap().unwrap().torn_bytes, 0);
            let lines = log.read(u64::MAX, 9, |_| true).await.unwrap();
            assert_eq!(lines.iter().map(|l| l.entry.verb.as_str()).collect::<Vec<_>>(), ["create", "repair", "create"]);
        }
    }

    #[tokio::test]
    async fn a_log_that_somebody_changed_is_not_written_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        log(folder.path(), 1 << 20, 3).append(entry("a")).await.unwrap();
        let file = files(&path).unwrap().remove(0);
        let changed = fs::read_to_string(&file).unwrap().replace("create", "delete");
        fs::write(&file, &changed).unwrap();
        let error = log(folder.path(), 1 << 20, 3).append(entry("b")).await.unwrap_err();
        assert!(error.to_string().contains("move it away"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), changed);
        let broken = verify(&path, vec![]).unwrap().unwrap_err();
        assert_eq!(broken.at.unwrap().1, 1);
    }
}
