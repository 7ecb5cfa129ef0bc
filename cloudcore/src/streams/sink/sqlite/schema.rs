//! The file's tables, and how it is opened.

use std::{path::Path, time::Duration};

use proto::env::Blocking;
use rusqlite::{Connection, OpenFlags, config::DbConfig};

use super::{SinkError, failed};

/// Each brings the schema from its index to the next; never change one that was shipped.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
    CREATE TABLE batches (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        node INTEGER NOT NULL, site INTEGER NOT NULL, stream INTEGER NOT NULL,
        epoch INTEGER NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL,
        min_ms INTEGER NOT NULL, max_ms INTEGER NOT NULL, received_us INTEGER NOT NULL,
        sealed BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX batches_once ON batches (node, stream, epoch, first);
    CREATE INDEX batches_by_stream ON batches (stream, id, min_ms, max_ms, node, site);
    CREATE INDEX batches_by_node ON batches (stream, node, id, min_ms, max_ms, site);
    CREATE TABLE minutes (
        stream INTEGER NOT NULL, minute INTEGER NOT NULL, site INTEGER NOT NULL,
        records INTEGER NOT NULL, bytes INTEGER NOT NULL,
        first_batch INTEGER NOT NULL, last_batch INTEGER NOT NULL,
        PRIMARY KEY (stream, minute, site)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE states (
        node INTEGER NOT NULL, stream INTEGER NOT NULL, epoch INTEGER NOT NULL,
        site INTEGER NOT NULL, class TEXT NOT NULL, durable TEXT NOT NULL, reported_next INTEGER NOT NULL,
        lag_records INTEGER NOT NULL, lag_oldest_us INTEGER, heard_us INTEGER NOT NULL, ended INTEGER NOT NULL,
        PRIMARY KEY (node, stream, epoch)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE gaps (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        node INTEGER NOT NULL, site INTEGER NOT NULL, stream INTEGER NOT NULL,
        epoch INTEGER NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL,
        at_least INTEGER NOT NULL, reason TEXT NOT NULL, noted_us INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX gaps_by_node ON gaps (node, id);
"];

/// How long a connection waits for another process (such as a backup) that holds the file.
const BUSY_PATIENCE: Duration = Duration::from_secs(5);
/// Pages that a connection remembers, in KiB (negative: that is how SQLite takes it).
const CACHE_KIB: i64 = -8 * 1024;

/// The simulated world would stand still while one of its hosts waits.
fn patience(blocking: Blocking) -> Duration {
    if blocking == Blocking::Inline { Duration::ZERO } else { BUSY_PATIENCE }
}

/// A plan stays whatever numbers are asked for: otherwise SQLite compiles queries of ranges anew for each.
fn plan_once(connection: &Connection) -> rusqlite::Result<bool> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)
}

/// Opens for writing; makes the tables.
pub(super) fn open(path: &Path, blocking: Blocking) -> Result<Connection, SinkError> {
    let failed = |e| failed(path, "open", &e);
    let mut connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(patience(blocking)).map_err(failed)?;
    plan_once(&connection).map_err(failed)?;
    // Before anything is written: a newer file is left as it is.
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known || found < 0 {
        return Err(SinkError::Damaged(format!(
            "{} has schema version {found}, this cloudcore knows {known}; start the version that wrote it, or a newer one",
            path.display()
        )));
    }
    // Only before the first table does it have an effect.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(failed)?;
    // SQLite reports the mode it settled on as a row.
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).map_err(failed)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    connection.pragma_update(None, "cache_size", CACHE_KIB).map_err(failed)?;
    for (step, sql) in (0_i64..).zip(MIGRATIONS).skip(usize::try_from(found).unwrap_or(0)) {
        let transaction = connection.transaction().map_err(failed)?;
        transaction.execute_batch(sql).map_err(failed)?;
        transaction.pragma_update(None, "user_version", step + 1).map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    Ok(connection)
}

/// Opens for reading.
pub(super) fn open_reader(path: &Path, blocking: Blocking) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(patience(blocking))?;
    plan_once(&connection)?;
    connection.pragma_update(None, "cache_size", CACHE_KIB)?;
    Ok(connection)
}
