//! The database file: schema, rows, statements. Called where blocking is allowed.
//!
//! One row a batch, and one a tombstone, which stands where records were that will never come. A row's id
//! is its stream's number and its first sequence, so one tree holds every stream in order and needs no
//! index beside it. Each row carries a checksum over all of it: a flipped bit costs that row and no other.

use std::{path::Path, time::Duration};

use proto::stream::{Class, Epoch, GapReason, StreamKey, batch::Batch, ranges::Range};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, config::DbConfig, params};
use sha2::{Digest as _, Sha256};

use super::{
    epoch::{Life, MAX_EPOCH},
    error::OutboxError,
};

/// Each brings the schema from its index to the next; never change one that was shipped.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, incarnation INTEGER NOT NULL) STRICT;
    INSERT INTO meta VALUES (1, 0, 0);
    CREATE TABLE streams (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, epoch INTEGER NOT NULL, class TEXT NOT NULL,
        next INTEGER NOT NULL, records INTEGER NOT NULL, bytes INTEGER NOT NULL,
        shed INTEGER NOT NULL, damaged INTEGER NOT NULL, moves_to INTEGER, moves_from INTEGER,
        UNIQUE (name, epoch)
    ) STRICT;
    CREATE TABLE batches (
        id INTEGER PRIMARY KEY, count INTEGER NOT NULL, bytes INTEGER NOT NULL, time_ms INTEGER NOT NULL,
        reason TEXT, checksum INTEGER NOT NULL, sealed BLOB
    ) STRICT;
"];
/// Sequences of one stream and epoch: at the highest rate that is aimed at, eleven years.
const SEQUENCE_BITS: u32 = 44;
/// A sequence that no record reaches; a stream that passes half of it begins a new epoch at the next start.
pub(super) const MAX_SEQUENCE: u64 = 1 << SEQUENCE_BITS;
/// How long a connection waits for another process (such as a backup) that holds the database.
const BUSY_PATIENCE: Duration = Duration::from_secs(5);

/// The id of the row that begins with `sequence`.
pub(super) fn row_id(stream: i64, sequence: u64) -> i64 {
    stream << SEQUENCE_BITS | sequence.min(MAX_SEQUENCE - 1).cast_signed()
}

/// Stream and first sequence of a row.
pub(super) fn of_row(id: i64) -> (i64, u64) {
    (id >> SEQUENCE_BITS, id.cast_unsigned() & (MAX_SEQUENCE - 1))
}

/// Opens for writing and makes the schema.
pub(super) fn open(path: &Path, wal_bytes: u64) -> Result<Connection, OutboxError> {
    let failed = OutboxError::during("open");
    let mut connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(BUSY_PATIENCE).map_err(failed)?;
    version(&connection, path)?; // a newer file is left as it is
    // Only before the first table does this make pages that can be given back.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(failed)?;
    // SQLite reports the mode it settled on as a row.
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).map_err(failed)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    let pages = i64::try_from(wal_bytes / super::space::PAGE_BYTES).unwrap_or(1000);
    connection.pragma_update_and_check(None, "wal_autocheckpoint", pages, |_| Ok(())).map_err(failed)?;
    frugal(&connection, 1024)?;
    migrate(&mut connection, path)?;
    Ok(connection)
}

/// Opens for reading.
pub(super) fn open_reader(path: &Path) -> Result<Connection, OutboxError> {
    let failed = OutboxError::during("open");
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
    connection.busy_timeout(BUSY_PATIENCE).map_err(failed)?;
    frugal(&connection, 256)?;
    Ok(connection)
}

/// Little memory, and a damaged page is noticed rather than followed.
fn frugal(connection: &Connection, cache_kib: i64) -> Result<(), OutboxError> {
    let failed = OutboxError::during("open");
    // A plan stays whatever numbers are asked for: otherwise SQLite compiles ranges anew for each.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(failed)?;
    connection.pragma_update(None, "cache_size", -cache_kib).map_err(failed)?;
    connection.pragma_update(None, "cell_size_check", true).map_err(failed)?;
    connection.pragma_update(None, "trusted_schema", false).map_err(failed)?;
    connection.pragma_update(None, "temp_store", "MEMORY").map_err(failed)
}

/// The version of the schema, if it is known here.
fn version(connection: &Connection, path: &Path) -> Result<usize, OutboxError> {
    let read = connection.pragma_query_value(None, "user_version", |row| row.get(0));
    let found: i64 = read.map_err(OutboxError::during("open"))?;
    let known = MIGRATIONS.len() as i64;
    if found > known {
        return Err(OutboxError::Newer { path: path.to_owned(), found, known });
    }
    usize::try_from(found).map_err(|_| OutboxError::Damaged(format!("schema version {found}")))
}

pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), OutboxError> {
    let failed = OutboxError::during("migrate");
    let done = version(connection, path)?;
    for (step, sql) in MIGRATIONS.iter().enumerate().skip(done) {
        let transaction = connection.transaction().map_err(failed)?;
        transaction.execute_batch(sql).map_err(failed)?;
        transaction.pragma_update(None, "user_version", step as i64 + 1).map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    Ok(())
}

/// Which life wrote it last.
pub(super) fn life(connection: &Connection) -> Result<Life, OutboxError> {
    let failed = OutboxError::during("read");
    let mut statement = connection.prepare_cached("SELECT epoch, incarnation FROM meta").map_err(failed)?;
    statement
        .query_row([], |row| Ok(Life { epoch: Epoch(unsigned(row, 0)?), incarnation: unsigned(row, 1)? }))
        .map_err(failed)
}

pub(super) fn set_life(connection: &Connection, life: Life) -> Result<(), OutboxError> {
    let set = params![life.epoch.0.cast_signed(), life.incarnation.cast_signed()];
    connection.execute("UPDATE meta SET epoch = ?, incarnation = ?", set).map_err(OutboxError::during("write"))?;
    Ok(())
}

fn unsigned(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    let number: i64 = row.get(index)?;
    u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(index, number))
}

/// A stream in one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StreamRow {
    pub id: i64,
    pub key: StreamKey,
    pub class: Class,
    /// Sequence of the next record.
    pub next: u64,
    /// Records that are held.
    pub records: u64,
    /// Bytes of their sealed batches.
    pub bytes: u64,
    /// Records that were shed, ever.
    pub shed: u64,
    /// Records whose batch was found damaged, ever.
    pub damaged: u64,
    /// The records from a sequence on are moving to another stream.
    pub moves: Option<(i64, u64)>,
    /// `next` at this start. Not stored.
    pub began: u64,
    /// First sequence that is held, or `next`. Not stored.
    pub first: u64,
    /// When the oldest that is held was taken. Not stored.
    pub oldest_ms: Option<i64>,
}

pub(super) fn class_str(class: Class) -> &'static str {
    match class {
        Class::Scans => "scans",
        Class::Events => "events",
        Class::Metrics => "metrics",
        Class::Logs => "logs",
    }
}

fn class_of(text: &str) -> Option<Class> {
    [Class::Scans, Class::Events, Class::Metrics, Class::Logs].into_iter().find(|class| class_str(*class) == text)
}

fn reason_of(text: &str) -> GapReason {
    [GapReason::Shed, GapReason::Damaged, GapReason::HubLost, GapReason::OutboxLost]
        .into_iter()
        .find(|reason| reason.as_str() == text)
        .unwrap_or(GapReason::Other)
}

fn stream_row(row: &Row<'_>) -> rusqlite::Result<StreamRow> {
    let text = |index, what: &str| rusqlite::Error::InvalidColumnType(index, what.into(), rusqlite::types::Type::Text);
    let name: String = row.get(1)?;
    let epoch = Epoch(unsigned(row, 2)?);
    let class: String = row.get(3)?;
    let next = unsigned(row, 4)?;
    let moves = match (row.get::<_, Option<i64>>(9)?, row.get::<_, Option<i64>>(10)?) {
        (Some(to), Some(from)) => Some((to, from.cast_unsigned())),
        _ => None,
    };
    if next >= MAX_SEQUENCE || epoch.0 > MAX_EPOCH {
        return Err(rusqlite::Error::IntegralValueOutOfRange(4, next.cast_signed()));
    }
    Ok(StreamRow {
        id: row.get(0)?,
        key: StreamKey { stream: name.parse().map_err(|_| text(1, "name"))?, epoch },
        class: class_of(&class).ok_or_else(|| text(3, "class"))?,
        next,
        records: unsigned(row, 5)?,
        bytes: unsigned(row, 6)?,
        shed: unsigned(row, 7)?,
        damaged: unsigned(row, 8)?,
        moves,
        began: next,
        first: next,
        oldest_ms: None,
    })
}

const STREAM_COLUMNS: &str = "id, name, epoch, class, next, records, bytes, shed, damaged, moves_to, moves_from";

/// Every stream in every epoch, by number.
pub(super) fn streams(connection: &Connection) -> Result<Vec<StreamRow>, OutboxError> {
    let failed = OutboxError::during("read");
    let sql = format!("SELECT {STREAM_COLUMNS} FROM streams ORDER BY id");
    let mut statement = connection.prepare(&sql).map_err(failed)?;
    let rows = statement.query_map([], stream_row).map_err(failed)?;
    rows.collect::<Result<_, _>>().map_err(failed)
}

/// Adds a stream; returns its number.
pub(super) fn add_stream(connection: &Connection, key: &StreamKey, class: Class) -> Result<i64, OutboxError> {
    let failed = OutboxError::during("write");
    let sql =
        "INSERT INTO streams (name, epoch, class, next, records, bytes, shed, damaged) VALUES (?, ?, ?, 0, 0, 0, 0, 0)";
    connection
        .execute(sql, params![key.stream.as_str(), key.epoch.0.cast_signed(), class_str(class)])
        .map_err(failed)?;
    let id = connection.last_insert_rowid();
    // Numbers share an integer with sequences.
    if id >= 1 << (63 - SEQUENCE_BITS) {
        return Err(OutboxError::Config("the outbox has begun too many epochs; remove its folder".into()));
    }
    Ok(id)
}

/// Adds a stream under the number that it had; false when its place is taken or is none.
pub(super) fn put_back(connection: &Connection, stream: &StreamRow) -> Result<bool, OutboxError> {
    if stream.id < 1 || stream.id >= 1 << (63 - SEQUENCE_BITS) {
        return Ok(false);
    }
    let sql = "INSERT OR IGNORE INTO streams (id, name, epoch, class, next, records, bytes, shed, damaged)
               VALUES (?, ?, ?, ?, 0, 0, 0, 0, 0)";
    let (name, epoch) = (stream.key.stream.as_str(), stream.key.epoch.0.cast_signed());
    let added = connection.execute(sql, params![stream.id, name, epoch, class_str(stream.class)]);
    Ok(added.map_err(OutboxError::during("save"))? == 1)
}

/// Writes what changes of a stream.
pub(super) fn put_stream(connection: &Connection, stream: &StreamRow) -> Result<(), OutboxError> {
    let failed = OutboxError::during("write");
    let sql = "UPDATE streams SET class = ?, next = ?, records = ?, bytes = ?, shed = ?, damaged = ?, moves_to = ?,
               moves_from = ? WHERE id = ?";
    let mut statement = connection.prepare_cached(sql).map_err(failed)?;
    let numbers = [stream.next, stream.records, stream.bytes, stream.shed, stream.damaged].map(u64::cast_signed);
    let [next, records, bytes, shed, damaged] = numbers;
    let (to, from) = stream.moves.unzip();
    let from = from.map(u64::cast_signed);
    statement
        .execute(params![class_str(stream.class), next, records, bytes, shed, damaged, to, from, stream.id])
        .map_err(failed)?;
    Ok(())
}

pub(super) fn remove_stream(connection: &Connection, id: i64) -> Result<(), OutboxError> {
    connection.execute("DELETE FROM streams WHERE id = ?", [id]).map_err(OutboxError::during("write"))?;
    Ok(())
}

/// What a row holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// A sealed batch.
    Sealed(Vec<u8>),
    /// A tombstone.
    Gone(GapReason),
}

/// A row of `batches`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BatchRow {
    pub stream: i64,
    pub first: u64,
    pub count: u64,
    /// Of its records, unsealed.
    pub bytes: u64,
    /// When its first record was taken.
    pub time_ms: i64,
    pub content: Content,
}

impl BatchRow {
    /// Of a batch.
    pub(super) fn seal(stream: i64, batch: &Batch) -> Result<BatchRow, OutboxError> {
        Ok(BatchRow {
            stream,
            first: batch.first,
            count: batch.records.len() as u64,
            bytes: batch.bytes() as u64,
            time_ms: batch.records.first().map_or(0, |record| record.time_ms),
            content: Content::Sealed(batch.seal()?),
        })
    }

    /// Of records that are lost.
    pub(super) fn gone(stream: i64, range: &Range, time_ms: i64, reason: GapReason) -> BatchRow {
        let count = range.end.saturating_sub(range.start);
        BatchRow { stream, first: range.start, count, bytes: 0, time_ms, content: Content::Gone(reason) }
    }

    pub(super) fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }

    pub(super) fn sealed_bytes(&self) -> u64 {
        match &self.content {
            Content::Sealed(sealed) => sealed.len() as u64,
            Content::Gone(_) => 0,
        }
    }

    fn checksum(&self) -> i64 {
        let mut hash = Sha256::new();
        for number in [self.stream.cast_unsigned(), self.first, self.count, self.bytes, self.time_ms.cast_unsigned()] {
            hash.update(number.to_be_bytes());
        }
        match &self.content {
            Content::Sealed(sealed) => hash.update(sealed),
            Content::Gone(reason) => hash.update(reason.as_str()),
        }
        let digest: [u8; 32] = hash.finalize().into();
        digest.first_chunk().map_or(0, |first| i64::from_be_bytes(*first))
    }

    /// Adds it.
    pub(super) fn insert(&self, connection: &Connection) -> Result<(), OutboxError> {
        let failed = OutboxError::during("write");
        let sql =
            "INSERT INTO batches (id, count, bytes, time_ms, reason, checksum, sealed) VALUES (?, ?, ?, ?, ?, ?, ?)";
        let mut statement = connection.prepare_cached(sql).map_err(failed)?;
        let (reason, sealed) = match &self.content {
            Content::Sealed(sealed) => (None, Some(sealed)),
            Content::Gone(reason) => (Some(reason.as_str()), None),
        };
        let (count, bytes) = (self.count.cast_signed(), self.bytes.cast_signed());
        let id = row_id(self.stream, self.first);
        statement.execute(params![id, count, bytes, self.time_ms, reason, self.checksum(), sealed]).map_err(failed)?;
        Ok(())
    }
}

/// A row as it was read, and whether it is as it was written.
#[derive(Debug)]
pub(super) struct Stored {
    pub row: BatchRow,
    pub whole: bool,
}

/// The columns of [`stored`].
pub(super) const COLUMNS: &str = "id, count, bytes, time_ms, reason, checksum, sealed";

/// Reads a row and checks it. Whatever a damaged column holds, it is no error but a row that is not whole.
pub(super) fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let number = |index| row.get::<_, i64>(index).unwrap_or(0);
    let (stream, first) = of_row(row.get(0)?);
    let reason: Option<String> = row.get(4).unwrap_or(None);
    let sealed: Option<Vec<u8>> = row.get(6)?; // its pages may be unreadable: that is an error
    let content = match (reason, sealed) {
        (Some(reason), _) => Content::Gone(reason_of(&reason)),
        (None, sealed) => Content::Sealed(sealed.unwrap_or_default()),
    };
    let unsigned = |index| u64::try_from(number(index)).unwrap_or(0);
    let row = BatchRow { stream, first, count: unsigned(1), bytes: unsigned(2), time_ms: number(3), content };
    let whole = row.checksum() == number(5) && row.count > 0 && row.end() <= MAX_SEQUENCE;
    Ok(Stored { row, whole })
}

fn one(connection: &Connection, condition: &str, ids: [i64; 2]) -> Result<Option<Stored>, OutboxError> {
    let failed = OutboxError::during("read");
    let sql = format!("SELECT {COLUMNS} FROM batches WHERE {condition} LIMIT 1");
    let mut statement = connection.prepare_cached(&sql).map_err(failed)?;
    statement.query_row(ids, stored).optional().map_err(failed)
}

/// The row that holds `sequence`, or would: the last that begins at or before it.
pub(super) fn at_or_before(connection: &Connection, stream: i64, sequence: u64) -> Result<Option<Stored>, OutboxError> {
    one(connection, "id >= ? AND id <= ? ORDER BY id DESC", [row_id(stream, 0), row_id(stream, sequence)])
}

/// The first row that begins at or after `sequence`.
pub(super) fn at_or_after(connection: &Connection, stream: i64, sequence: u64) -> Result<Option<Stored>, OutboxError> {
    one(connection, "id >= ? AND id <= ? ORDER BY id", [row_id(stream, sequence), row_id(stream, MAX_SEQUENCE)])
}

/// First sequence and time of the first row, without its content.
pub(super) fn front(connection: &Connection, stream: i64) -> Result<Option<(u64, i64)>, OutboxError> {
    let failed = OutboxError::during("read");
    let sql = "SELECT id, time_ms FROM batches WHERE id >= ? AND id <= ? ORDER BY id LIMIT 1";
    let mut statement = connection.prepare_cached(sql).map_err(failed)?;
    let ids = [row_id(stream, 0), row_id(stream, MAX_SEQUENCE)];
    statement.query_row(ids, |row| Ok((of_row(row.get(0)?).1, row.get(1)?))).optional().map_err(failed)
}

pub(super) fn remove(connection: &Connection, stream: i64, firsts: Range) -> Result<(), OutboxError> {
    let failed = OutboxError::during("write");
    let mut statement = connection.prepare_cached("DELETE FROM batches WHERE id >= ? AND id < ?").map_err(failed)?;
    let end = row_id(stream, firsts.end.min(MAX_SEQUENCE - 1));
    statement.execute([row_id(stream, firsts.start), end]).map_err(failed)?;
    Ok(())
}

/// Extent of a row, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    pub range: Range,
    pub time_ms: i64,
    pub sealed_bytes: u64,
    pub reason: Option<GapReason>,
}

/// Extents of the rows that begin in `firsts`, in order, at most `limit`.
pub(super) fn extents(
    connection: &Connection,
    stream: i64,
    firsts: Range,
    limit: usize,
) -> Result<Vec<Extent>, OutboxError> {
    let failed = OutboxError::during("read");
    let sql = "SELECT id, count, time_ms, ifnull(length(sealed), 0), reason FROM batches
               WHERE id >= ? AND id < ? ORDER BY id LIMIT ?";
    let mut statement = connection.prepare_cached(sql).map_err(failed)?;
    let ids = params![row_id(stream, firsts.start), row_id(stream, firsts.end), limit as i64];
    let rows = statement.query_map(ids, |row| {
        let first = of_row(row.get(0)?).1;
        let count = u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0);
        let reason: Option<String> = row.get(4)?;
        Ok(Extent {
            range: first..first.saturating_add(count),
            time_ms: row.get(2)?,
            sealed_bytes: unsigned(row, 3)?,
            reason: reason.as_deref().map(reason_of),
        })
    });
    rows.map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
}

/// Bytes of pages with content, and of pages without.
pub(super) fn pages(connection: &Connection) -> Result<(u64, u64), OutboxError> {
    let failed = OutboxError::during("read");
    let pragma = |sql| {
        let mut statement = connection.prepare_cached(sql)?;
        statement.query_row([], |row| unsigned(row, 0))
    };
    let all = pragma("PRAGMA page_count").map_err(failed)?;
    let free = pragma("PRAGMA freelist_count").map_err(failed)?;
    Ok((all.saturating_sub(free) * super::space::PAGE_BYTES, free * super::space::PAGE_BYTES))
}
