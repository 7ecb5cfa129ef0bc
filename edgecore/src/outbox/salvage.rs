//! A damaged database: it is set aside, and what can be read of it is copied into a new one.
//!
//! ```text
//! outbox.db  --rename-->  outbox.damaged.db  --rows that are whole-->  outbox.new.db  --rename-->  outbox.db
//! ```
//!
//! A crash anywhere in between is mended by the next start, which begins again with what was set aside.
//! What was saved keeps its stream, epoch and sequences; everything else of those streams becomes a gap,
//! of which the hub takes only what it does not have.

use std::{fmt, fs, io, path::Path, sync::Arc};

use proto::{
    durable,
    stream::{GapReason, StreamKey},
};
use rusqlite::{Connection, config::DbConfig};

use super::{
    db::{self, BatchRow, Content, MAX_SEQUENCE, StreamRow},
    edit,
    epoch::KnownStream,
    error::OutboxError,
    store::{Files, with_suffix},
};

/// Rows of one transaction.
const ROWS: usize = 256;
/// Rows that are looked for backwards from behind a damaged place.
const FOUND: usize = 65_536;
/// Attempts to find something readable behind a damaged place.
const PROBES: u32 = 44;

/// What was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Saved {
    pub records: u64,
}

impl fmt::Display for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records of it were saved; the damaged file stays until the next start", self.records)
    }
}

fn remove(path: &Path) -> Result<(), OutboxError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(OutboxError::file("remove", path)(e)),
        _ => Ok(()),
    }
}

fn remove_all(db: &Path) -> Result<(), OutboxError> {
    ["", "-wal", "-shm", "-journal"].into_iter().try_for_each(|suffix| remove(&with_suffix(db, suffix)))
}

fn rename(from: &Path, to: &Path) -> Result<(), OutboxError> {
    fs::rename(from, to).map_err(OutboxError::file("rename", from))?;
    durable::sync_parent(to).map_err(|e| OutboxError::Epoch(Arc::new(e)))
}

/// Removes the file that an earlier salvage left for a look.
pub(super) fn forget_aside(files: &Files) {
    if let Err(error) = remove_all(&files.aside) {
        tracing::warn!(error = &error as &dyn std::error::Error, "a damaged outbox that is not needed stays");
    }
}

/// The log goes first, so that the file never stands without it under its own name.
fn set_aside(files: &Files) -> Result<(), OutboxError> {
    remove_all(&files.aside)?;
    remove(&with_suffix(&files.db, "-shm"))?;
    let log = with_suffix(&files.db, "-wal");
    if log.exists() {
        rename(&log, &with_suffix(&files.aside, "-wal"))?;
    }
    rename(&files.db, &files.aside)
}

/// Ends a setting aside that a crash interrupted.
pub(super) fn finish_set_aside(files: &Files) -> Result<(), OutboxError> {
    if with_suffix(&files.aside, "-wal").exists() && !files.aside.exists() && files.db.exists() {
        remove(&with_suffix(&files.db, "-shm"))?;
        rename(&files.db, &files.aside)?;
    }
    Ok(())
}

/// Sets the database aside, unless it is already, and makes a new one of what is readable.
pub(super) fn salvage(files: &Files, known: &[KnownStream]) -> Result<Saved, OutboxError> {
    if files.db.exists() {
        set_aside(files)?;
    }
    remove_all(&files.db)?; // a log without its database
    remove_all(&files.fresh)?;
    let mut saved = Saved::default();
    {
        let mut fresh = db::open(&files.fresh, 1 << 20)?;
        // It has no name yet: a crash costs nothing but another attempt.
        fresh.pragma_update(None, "synchronous", "OFF").map_err(OutboxError::during("save"))?;
        if let Ok(damaged) = open_damaged(&files.aside) {
            for stream in streams(&damaged, known) {
                saved.records += copy(&damaged, &mut fresh, &stream)?;
            }
        }
        let failed = OutboxError::during("save");
        fresh.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(failed)?;
        fresh.close().map_err(|(_, e)| failed(e))?;
    }
    let sync = fs::File::open(&files.fresh).and_then(|file| file.sync_all());
    sync.map_err(OutboxError::file("flush", &files.fresh))?;
    rename(&files.fresh, &files.db)?;
    tracing::warn!(records = saved.records, "the outbox was damaged and made anew");
    Ok(saved)
}

fn open_damaged(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // The one way to open a file that is shorter than it says.
    connection.pragma_update(None, "writable_schema", true)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "cache_size", -1024)?;
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(connection)
}

/// Streams as the damaged file knows them, and besides as the epoch's file does.
fn streams(damaged: &Connection, known: &[KnownStream]) -> Vec<StreamRow> {
    let mut streams = db::streams(damaged).unwrap_or_default();
    for known in known {
        let key = StreamKey { stream: known.name.clone(), epoch: known.epoch };
        if streams.iter().all(|s| s.id != known.id && s.key != key) {
            streams.push(StreamRow {
                id: known.id,
                key,
                class: known.class,
                next: 0,
                records: 0,
                bytes: 0,
                shed: 0,
                damaged: 0,
                moves: None,
                began: 0,
                first: 0,
                oldest_ms: None,
            });
        }
    }
    streams.sort_by_key(|s| s.id);
    streams
}

/// Copies what is readable of a stream; everything else up to its `next` becomes tombstones.
fn copy(damaged: &Connection, fresh: &mut Connection, stream: &StreamRow) -> Result<u64, OutboxError> {
    let failed = OutboxError::during("save");
    if !db::put_back(fresh, stream)? {
        return Ok(0); // damage made it a stream of another's name
    }
    let id = stream.id;
    let mut new = StreamRow { next: 0, records: 0, bytes: 0, ..stream.clone() };
    let mut rows = Readable { damaged, stream: id, at: 0, found: vec![] };
    let mut more = true;
    while more {
        let transaction = fresh.transaction().map_err(failed)?;
        for _ in 0..ROWS {
            let Some(row) = rows.next(&stream.key) else {
                more = false;
                break;
            };
            if row.first < new.next {
                continue; // damage made it overlap with what is copied
            }
            gap(&transaction, id, new.next..row.first, row.time_ms)?;
            row.insert(&transaction)?;
            new.next = row.end();
            match &row.content {
                Content::Sealed(sealed) => {
                    new.records += row.count;
                    new.bytes += sealed.len() as u64;
                }
                Content::Gone(GapReason::Damaged) => new.damaged += row.count,
                Content::Gone(_) => {}
            }
        }
        transaction.commit().map_err(failed)?;
    }
    if stream.next > new.next {
        gap(fresh, id, new.next..stream.next, 0)?;
        new.next = stream.next;
    }
    if stream.moves.is_some() {
        new.next = stream.next; // what lies beyond is on its way to another stream
    }
    db::put_stream(fresh, &new)?;
    Ok(new.records)
}

fn gap(connection: &Connection, id: i64, range: std::ops::Range<u64>, time_ms: i64) -> Result<(), OutboxError> {
    if range.is_empty() {
        return Ok(());
    }
    BatchRow::gone(id, &range, time_ms, GapReason::Damaged).insert(connection)
}

/// The readable rows of a stream, in order.
struct Readable<'a> {
    damaged: &'a Connection,
    stream: i64,
    at: u64,
    /// Where rows behind a damaged place begin, last first.
    found: Vec<u64>,
}

impl Readable<'_> {
    fn next(&mut self, key: &StreamKey) -> Option<BatchRow> {
        loop {
            if let Some(first) = self.found.pop() {
                match self.row(first, key) {
                    Ok(Some(row)) if row.first == first => return Some(row),
                    _ => continue,
                }
            }
            if self.at >= MAX_SEQUENCE - 1 {
                return None;
            }
            match self.row(self.at, key) {
                Ok(Some(row)) => {
                    self.at = row.end().max(self.at + 1);
                    return Some(row);
                }
                Ok(None) => return None,
                Err(()) => self.jump(key)?,
            }
        }
    }

    /// The first row at or behind `at`, as far as it is true.
    fn row(&self, at: u64, key: &StreamKey) -> Result<Option<BatchRow>, ()> {
        let Some(stored) = db::at_or_after(self.damaged, self.stream, at).map_err(|_| ())? else { return Ok(None) };
        let first = stored.row.first;
        let bound = if stored.whole {
            stored.row.end()
        } else {
            let next = db::extents(self.damaged, self.stream, first + 1..MAX_SEQUENCE, 1).unwrap_or_default();
            next.first().map_or_else(|| stored.row.end().max(first + 1), |next| next.range.start)
        };
        // A row of which nothing is true is as good as none: what follows it is asked for.
        Ok(edit::truth(stored, key, bound).or_else(|| {
            let range = first..first + 1;
            Some(BatchRow::gone(self.stream, &range, 0, GapReason::Damaged))
        }))
    }

    /// Finds the next readable row behind a damaged place, and then back from it those that lie before it.
    fn jump(&mut self, key: &StreamKey) -> Option<()> {
        let from = self.at;
        for step in 0..PROBES {
            let Ok(found) = self.row(from.saturating_add(1 << step).min(MAX_SEQUENCE - 1), key) else { continue };
            let mut before = found.as_ref().map_or(MAX_SEQUENCE - 1, |row| row.first);
            self.at = found.as_ref().map_or(MAX_SEQUENCE, BatchRow::end).max(from + 1);
            self.found.extend(found.map(|row| row.first));
            while before > from
                && self.found.len() < FOUND
                && let Ok(Some(stored)) = db::at_or_before(self.damaged, self.stream, before - 1)
                && stored.row.first >= from
                && stored.whole
            {
                before = stored.row.first;
                self.found.push(before);
            }
            return Some(());
        }
        None
    }
}
