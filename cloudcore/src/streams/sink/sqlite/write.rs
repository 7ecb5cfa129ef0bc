//! Writing: one transaction a commit, and the removal of what is too old.

use std::{collections::BTreeMap, path::Path};

use bytes::Bytes;
use jiff::Timestamp;
use proto::env::Blocking;
use proto::name::Name;
use rusqlite::{Connection, Transaction, params};

use super::{
    super::{Commit, GapRow, NewBatch, SinkError, StreamState, class_word, minute_of, signed, unsigned},
    failed, schema,
};

/// Batches that one step of pruning removes.
const PRUNE_STEP: i64 = 256;
/// Pages that one step gives back to the file system.
const VACUUM_STEP: i64 = 512;

/// The writing connection.
#[derive(Debug)]
pub(super) struct Writer {
    connection: Connection,
    /// Numbers of names that are committed. Names are few: nodes, sites, streams.
    names: BTreeMap<Name, i64>,
}

/// A commit as rows: what of it takes computing is done before the file is touched.
pub(super) struct Prepared {
    batches: Vec<BatchRow>,
    gaps: Vec<GapRow>,
    states: Vec<StreamState>,
}

struct BatchRow {
    node: Name,
    site: Name,
    stream: Name,
    epoch: u64,
    first: u64,
    count: u64,
    min_ms: i64,
    max_ms: i64,
    received: Timestamp,
    sealed: Bytes,
    minutes: BTreeMap<i64, (i64, i64)>,
}

impl Prepared {
    pub(super) fn new(commit: &Commit) -> Prepared {
        Prepared {
            batches: commit.batches.iter().map(BatchRow::new).collect(),
            gaps: commit.gaps.clone(),
            states: commit.states.clone(),
        }
    }
}

impl BatchRow {
    fn new(new: &NewBatch) -> BatchRow {
        let mut minutes = BTreeMap::<i64, (i64, i64)>::new();
        for record in &new.batch.records {
            let minute = minutes.entry(minute_of(record.time_ms)).or_default();
            minute.0 += 1;
            minute.1 += record.bytes.len() as i64;
        }
        let times = || new.batch.records.iter().map(|r| r.time_ms);
        BatchRow {
            node: new.node.clone(),
            site: new.site.clone(),
            stream: new.stream.clone(),
            epoch: new.batch.epoch.0,
            first: new.batch.first,
            count: new.batch.records.len() as u64,
            min_ms: times().min().unwrap_or(0),
            max_ms: times().max().unwrap_or(0),
            received: new.received,
            sealed: new.sealed.clone(),
            minutes,
        }
    }
}

impl Writer {
    pub(super) fn open(path: &Path, blocking: Blocking) -> Result<Writer, SinkError> {
        Ok(Writer { connection: schema::open(path, blocking)?, names: BTreeMap::new() })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn commit(&mut self, path: &Path, prepared: &Prepared) -> Result<(), SinkError> {
        let write = |e: rusqlite::Error| failed(path, "write to", &e);
        let transaction = self.connection.transaction().map_err(write)?;
        let mut rows = Rows { transaction: &transaction, names: &mut self.names };
        prepared.batches.iter().try_for_each(|batch| rows.batch(batch)).map_err(write)?;
        prepared.gaps.iter().try_for_each(|gap| rows.gap(gap)).map_err(write)?;
        prepared.states.iter().try_for_each(|state| rows.state(state)).map_err(write)?;
        // A commit that failed may still be found whole when the file is opened anew.
        transaction.commit().map_err(|e| match failed(path, "commit to", &e) {
            SinkError::Unavailable(why) => SinkError::Unknown(why),
            other => other,
        })
    }

    /// Removes a few of the oldest batches, and gives their space back. Returns how many records, and
    /// whether there may be more.
    pub(super) fn prune(&mut self, path: &Path, before: Timestamp) -> Result<(u64, bool), SinkError> {
        let write = |e: rusqlite::Error| failed(path, "prune", &e);
        let (batches, records) = self.remove_oldest(before).map_err(write)?;
        let free_before = self.free_pages().map_err(write)?;
        let vacuum = format!("PRAGMA incremental_vacuum({VACUUM_STEP})");
        let mut statement = self.connection.prepare(&vacuum).map_err(write)?;
        let mut rows = statement.query([]).map_err(write)?;
        while rows.next().map_err(write)?.is_some() {} // each step gives one page back
        drop(rows);
        drop(statement);
        let free = self.free_pages().map_err(write)?;
        let more = batches > 0 || free > 0 && free < free_before;
        if !more {
            // The log of the last steps goes too. When a reader is in the way, the next time will do.
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(write)?;
        }
        Ok((records, more))
    }

    fn free_pages(&self) -> rusqlite::Result<i64> {
        self.connection.pragma_query_value(None, "freelist_count", |row| row.get(0))
    }

    fn remove_oldest(&mut self, before: Timestamp) -> rusqlite::Result<(usize, u64)> {
        let transaction = self.connection.transaction()?;
        // Ids rise with the time of arrival: the first that is young enough ends it.
        let (mut last, mut records, mut batches) = (None, 0, 0);
        {
            let mut oldest =
                transaction.prepare_cached("SELECT id, received_us, count FROM batches ORDER BY id LIMIT ?")?;
            let mut rows = oldest.query([PRUNE_STEP])?;
            while let Some(row) = rows.next()? {
                if row.get::<_, i64>(1)? >= before.as_microsecond() {
                    break;
                }
                last = Some(row.get::<_, i64>(0)?);
                records += unsigned(row.get(2)?);
                batches += 1;
            }
        }
        if let Some(last) = last {
            transaction.prepare_cached("DELETE FROM batches WHERE id <= ?")?.execute([last])?;
        }
        transaction.commit()?;
        Ok((batches, records))
    }
}

/// Writes the rows of one transaction.
struct Rows<'a> {
    transaction: &'a Transaction<'a>,
    names: &'a mut BTreeMap<Name, i64>,
}

impl Rows<'_> {
    /// The number of a name. When the transaction fails, the connection goes and this memory with it.
    fn id(&mut self, name: &Name) -> rusqlite::Result<i64> {
        if let Some(id) = self.names.get(name) {
            return Ok(*id);
        }
        let sql = "INSERT INTO names (name) VALUES (?) ON CONFLICT (name) DO UPDATE SET name = name RETURNING id";
        let id = self.transaction.prepare_cached(sql)?.query_row([name.as_str()], |row| row.get(0))?;
        self.names.insert(name.clone(), id);
        Ok(id)
    }

    fn batch(&mut self, batch: &BatchRow) -> rusqlite::Result<()> {
        let (node, site, stream) = (self.id(&batch.node)?, self.id(&batch.site)?, self.id(&batch.stream)?);
        self.transaction
            .prepare_cached(
                "INSERT INTO batches (node, site, stream, epoch, first, count, min_ms, max_ms, received_us, sealed)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                node,
                site,
                stream,
                signed(batch.epoch),
                signed(batch.first),
                signed(batch.count),
                batch.min_ms,
                batch.max_ms,
                batch.received.as_microsecond(),
                &batch.sealed[..]
            ])?;
        let id = self.transaction.last_insert_rowid();
        let mut add = self.transaction.prepare_cached(
            "INSERT INTO minutes (stream, minute, site, records, bytes, first_batch, last_batch)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)
             ON CONFLICT (stream, minute, site) DO UPDATE SET
                 records = records + excluded.records, bytes = bytes + excluded.bytes,
                 last_batch = excluded.last_batch",
        )?;
        for (minute, (records, bytes)) in &batch.minutes {
            add.execute(params![stream, minute, site, records, bytes, id])?;
        }
        Ok(())
    }

    fn gap(&mut self, gap: &GapRow) -> rusqlite::Result<()> {
        let (node, site, stream) = (self.id(&gap.node)?, self.id(&gap.site)?, self.id(&gap.stream)?);
        self.transaction
            .prepare_cached(
                "INSERT INTO gaps (node, site, stream, epoch, first, count, at_least, reason, noted_us)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                node,
                site,
                stream,
                signed(gap.epoch.0),
                signed(gap.first),
                signed(gap.count),
                gap.at_least,
                gap.reason.as_str(),
                gap.noted.as_microsecond()
            ])?;
        Ok(())
    }

    fn state(&mut self, state: &StreamState) -> rusqlite::Result<()> {
        let (node, site) = (self.id(&state.node)?, self.id(&state.site)?);
        let stream = self.id(&state.key.stream)?;
        let durable = serde_json::to_string(&state.durable).unwrap_or_default(); // numbers always have a text
        self.transaction
            .prepare_cached(
                "INSERT INTO states (node, stream, epoch, site, class, durable, reported_next, lag_records,
                                     lag_oldest_us, heard_us, ended)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                 ON CONFLICT (node, stream, epoch) DO UPDATE SET
                     site = excluded.site, class = excluded.class, durable = excluded.durable,
                     reported_next = excluded.reported_next, lag_records = excluded.lag_records,
                     lag_oldest_us = excluded.lag_oldest_us, heard_us = excluded.heard_us, ended = excluded.ended",
            )?
            .execute(params![
                node,
                stream,
                signed(state.key.epoch.0),
                site,
                class_word(state.class),
                durable,
                signed(state.reported_next),
                signed(state.lag_records),
                state.lag_oldest.map(Timestamp::as_microsecond),
                state.heard.as_microsecond(),
                state.ended
            ])?;
        Ok(())
    }
}
