//! The database file: schema, migrations, rows. Called by the store and its queue, always where blocking is allowed.

use std::{path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use proto::{
    digest::Digest,
    env::Seed,
    object::{Kind, Metadata, Object},
    selector::Selector,
};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params};
use serde::Deserialize;
use serde_json::Value;

use super::{
    List, StoreError,
    ring::{Change, ChangeType},
};

/// Each brings the schema from its index to the next; never change one that was shipped.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE objects (
        kind TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL, json TEXT NOT NULL,
        PRIMARY KEY (kind, name)
    ) STRICT;
    CREATE UNIQUE INDEX objects_by_revision ON objects (kind, revision);
    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
    INSERT INTO counters VALUES ('revision', 0);
",
    "
    -- Up to where a webhook has taken up events, and how it fares. Times are milliseconds since 1970.
    CREATE TABLE webhooks (
        name TEXT PRIMARY KEY, place INTEGER NOT NULL, delivered INTEGER NOT NULL DEFAULT 0,
        dropped INTEGER NOT NULL DEFAULT 0, succeeded_at INTEGER, failed_at INTEGER, failure TEXT NOT NULL DEFAULT ''
    ) STRICT;
    -- What it has taken up: waiting, or given up (dead). The revision is that of the event's write.
    CREATE TABLE deliveries (
        webhook TEXT NOT NULL, revision INTEGER NOT NULL, event TEXT NOT NULL, json TEXT NOT NULL,
        since INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, dead INTEGER NOT NULL DEFAULT 0,
        reason TEXT NOT NULL DEFAULT '', PRIMARY KEY (webhook, revision)
    ) STRICT;
    CREATE INDEX deliveries_in_order ON deliveries (webhook, dead, revision);
    CREATE INDEX deliveries_by_event ON deliveries (webhook, event, dead);
",
];

/// How long a connection waits for another process (such as a backup) that holds the database.
const BUSY_PATIENCE: Duration = Duration::from_secs(5);

/// Opens for writing; returns the newest revision too.
pub(super) fn open(path: &Path) -> Result<(Connection, i64), StoreError> {
    let failed = StoreError::during("open");
    let mut connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(BUSY_PATIENCE).map_err(failed)?;
    // SQLite reports the mode it settled on as a row.
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).map_err(failed)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    migrate(&mut connection, path)?;
    let revision = connection
        .query_row("SELECT value FROM counters WHERE name = 'revision'", [], |row| row.get(0))
        .map_err(StoreError::during("read"))?;
    Ok((connection, revision))
}

/// Opens for reading.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let failed = StoreError::during("open");
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
    connection.busy_timeout(BUSY_PATIENCE).map_err(failed)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let failed = StoreError::during("migrate");
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    let known = MIGRATIONS.len() as i64;
    if found > known || found < 0 {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    for (step, sql) in MIGRATIONS.iter().enumerate().skip(found as usize) {
        let transaction = connection.transaction().map_err(failed)?;
        transaction.execute_batch(sql).map_err(failed)?;
        transaction.pragma_update(None, "user_version", step as i64 + 1).map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    Ok(())
}

pub(super) fn decode<S: Kind + PartialEq>(name: &str, json: &str) -> Result<Object<S>, StoreError> {
    serde_json::from_str(json).map_err(|e| damaged::<S>(name, e))
}

fn damaged<S: Kind>(name: &str, source: serde_json::Error) -> StoreError {
    StoreError::Damaged { kind: S::KIND, name: name.into(), source: Arc::new(source) }
}

/// Reads one object.
pub(super) fn get<S: Kind + PartialEq>(
    connection: &Connection,
    kind: &str,
    name: &str,
) -> Result<Option<Object<S>>, StoreError> {
    let failed = StoreError::during("read");
    let mut statement =
        connection.prepare_cached("SELECT json FROM objects WHERE kind = ? AND name = ?").map_err(failed)?;
    let json: Option<String> = statement.query_row(params![kind, name], |row| row.get(0)).optional().map_err(failed)?;
    json.map(|json| decode(name, &json)).transpose()
}

/// Reads all objects of a kind that a selector names, and the revision that this is true of.
/// When the newest object of a kind was made.
pub(super) fn newest(connection: &Connection, kind: &str) -> Result<Option<Timestamp>, StoreError> {
    #[derive(Deserialize)]
    struct Header {
        metadata: Metadata,
    }
    let failed = StoreError::during("read");
    let mut statement = connection.prepare_cached("SELECT json FROM objects WHERE kind = ?").map_err(failed)?;
    let rows = statement.query_map([kind], |row| row.get::<_, String>(0)).map_err(failed)?;
    let mut newest = None;
    for json in rows {
        // What cannot be read has another to tell of it.
        let header = serde_json::from_str::<Header>(&json.map_err(failed)?).ok();
        newest = newest.max(header.and_then(|header| header.metadata.creation_timestamp));
    }
    Ok(newest)
}

pub(super) fn list<S: Kind + PartialEq>(
    connection: &Connection,
    kind: &str,
    selector: Option<&Selector>,
) -> Result<List<S>, StoreError> {
    let failed = StoreError::during("read");
    let transaction = connection.unchecked_transaction().map_err(failed)?; // one moment for both reads
    let revision: i64 = transaction
        .query_row("SELECT value FROM counters WHERE name = 'revision'", [], |row| row.get(0))
        .map_err(failed)?;
    let mut statement =
        transaction.prepare_cached("SELECT name, json FROM objects WHERE kind = ? ORDER BY name").map_err(failed)?;
    let rows = statement.query_map([kind], name_and_json).map_err(failed)?;
    let mut items = Vec::new();
    for row in rows {
        let (name, json) = row.map_err(failed)?;
        let Some(selector) = selector else {
            items.push(decode(&name, &json)?);
            continue;
        };
        let value: Value = serde_json::from_str(&json).map_err(|e| damaged::<S>(&name, e))?;
        if selects(selector, &value) {
            items.push(serde_json::from_value(value).map_err(|e| damaged::<S>(&name, e))?);
        }
    }
    Ok(List { items, resource_version: revision.to_string() })
}

/// Whether a selector names an object: its labels, and the keys `name` and (where it has one) `site`.
pub(crate) fn selects(selector: &Selector, object: &Value) -> bool {
    selector.matches_with(|key| match key {
        "name" => object.pointer("/metadata/name").and_then(Value::as_str),
        "site" if object.pointer("/spec/site").is_some() => object.pointer("/spec/site").and_then(Value::as_str),
        key => object.pointer("/metadata/labels").and_then(|labels| labels.get(key)).and_then(Value::as_str),
    })
}

/// The objects of a kind that were written longest ago, all but `keep`.
pub(super) fn oldest_beyond<S: Kind + PartialEq>(
    connection: &Connection,
    kind: &str,
    keep: u64,
) -> Result<Vec<Object<S>>, StoreError> {
    let failed = StoreError::during("read");
    let mut count = connection.prepare_cached("SELECT count(*) FROM objects WHERE kind = ?").map_err(failed)?;
    let count: i64 = count.query_row([kind], |row| row.get(0)).map_err(failed)?;
    let excess = count.saturating_sub(i64::try_from(keep).unwrap_or(i64::MAX)).max(0);
    let mut statement = connection
        .prepare_cached("SELECT name, json FROM objects WHERE kind = ? ORDER BY revision LIMIT ?")
        .map_err(failed)?;
    let rows = statement.query_map(params![kind, excess], name_and_json).map_err(failed)?;
    rows.map(|row| row.map_err(failed).and_then(|(name, json)| decode(&name, &json))).collect()
}

fn name_and_json(row: &Row<'_>) -> rusqlite::Result<(String, String)> {
    Ok((row.get(0)?, row.get(1)?))
}

/// How far a log was read.
pub(super) fn place(connection: &Connection, name: &str) -> Result<Option<i64>, StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT value FROM counters WHERE name = 'place of ' || ?")
        .map_err(StoreError::during("read"))?;
    statement.query_row([name], |row| row.get(0)).optional().map_err(StoreError::during("read"))
}

/// A name for all time, in the form of a UUID (version 8 of RFC 9562: bits of our own making). The
/// revision makes it unique in this store, the seed among stores.
pub(super) fn uid(seed: &Seed, revision: i64) -> String {
    let mut input = seed.bytes::<32>("object uid").to_vec();
    input.extend_from_slice(&revision.to_be_bytes());
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(Digest::of(&input).as_bytes()).for_each(|(to, from)| *to = *from);
    let number = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0b11 << 62) | (8 << 76) | (0b10 << 62);
    let hex = format!("{number:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}

/// What one transaction writes, seen by the changes that share it.
pub(super) struct Writer<'a> {
    connection: &'a Connection,
    revision: i64,
    changes: Vec<Change>,
    /// Whether there is something to commit besides the changes.
    placed: bool,
}

impl<'a> Writer<'a> {
    /// Begins after `revision`; the caller holds the transaction open.
    pub(super) fn new(connection: &'a Connection, revision: i64) -> Writer<'a> {
        Writer { connection, revision, changes: Vec::new(), placed: false }
    }

    /// For reads within the transaction.
    pub(super) fn connection(&self) -> &'a Connection {
        self.connection
    }

    /// The revision that the next write gets.
    pub(super) fn peek_revision(&self) -> i64 {
        self.revision + 1
    }

    /// Takes the next revision.
    pub(super) fn take_revision(&mut self) -> i64 {
        self.revision += 1;
        self.revision
    }

    /// Whether anything was written, the newest revision, and what is to be told to watches once this is on disk.
    pub(super) fn finish(self) -> (bool, i64, Vec<Change>) {
        (self.placed || !self.changes.is_empty(), self.revision, self.changes)
    }

    /// Notes how far a log was read.
    pub(super) fn put_place(&mut self, name: &str, value: i64) -> Result<(), StoreError> {
        self.placed = true;
        self.connection
            .prepare_cached(
                "INSERT INTO counters (name, value) VALUES ('place of ' || ?, ?)
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            )
            .and_then(|mut statement| statement.execute(params![name, value]))
            .map_err(StoreError::during("write"))?;
        Ok(())
    }

    /// Says that something besides objects was written, so that it is committed.
    pub(super) fn wrote(&mut self) {
        self.placed = true;
    }

    /// Remembers a change for the watches.
    pub(super) fn note(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// Where to go back to when a change fails.
    pub(super) fn mark(&self) -> usize {
        self.changes.len()
    }

    /// Forgets the changes after `mark`. Revisions that they took stay unused.
    pub(super) fn forget_after(&mut self, mark: usize) {
        self.changes.truncate(mark);
    }

    /// Writes a row.
    pub(super) fn put(&self, kind: &str, name: &str, revision: i64, json: &str) -> Result<(), StoreError> {
        let failed = StoreError::during("write");
        self.connection
            .prepare_cached(
                "INSERT INTO objects (kind, name, revision, json) VALUES (?, ?, ?, ?)
                 ON CONFLICT (kind, name) DO UPDATE SET revision = excluded.revision, json = excluded.json",
            )
            .and_then(|mut statement| statement.execute(params![kind, name, revision, json]))
            .map_err(failed)?;
        Ok(())
    }

    /// Removes an object's row; what is returned carries the revision of its end.
    pub(super) fn remove<S: Kind + PartialEq>(&mut self, object: &Object<S>) -> Result<Object<S>, StoreError> {
        let failed = StoreError::during("write");
        self.connection
            .prepare_cached("DELETE FROM objects WHERE kind = ? AND name = ?")
            .and_then(|mut statement| statement.execute(params![S::KIND, object.name()]))
            .map_err(failed)?;
        let mut object = object.clone();
        let revision = self.take_revision();
        object.metadata.resource_version = revision.to_string();
        let json =
            serde_json::to_string(&object).map_err(|e| StoreError::Encode { kind: S::KIND, source: Arc::new(e) })?;
        self.note(Change { revision, kind: S::KIND, change: ChangeType::Deleted, json: json.into() });
        Ok(object)
    }
}
