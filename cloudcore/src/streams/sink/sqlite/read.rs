//! Reading: states, records by order of arrival, counts, gaps.

use bytes::Bytes;
use jiff::Timestamp;
use proto::{
    name::Name,
    stream::{Epoch, StreamKey, batch::Batch},
};
use rusqlite::{Connection, OptionalExtension as _, Row as SqlRow, ToSql, params};

use super::super::{
    Count, CountQuery, Cursor, GapRow, MAX_PAGE_BYTES, MAX_PAGE_ROWS, Page, Query, Row, StreamState, class_of,
    in_window, minute_of, minute_start, reason_of, unsigned,
};

/// Batches that one page looks into.
const MAX_PAGE_BATCHES: usize = 10_000;

/// Reading failed.
#[derive(Debug)]
pub(super) enum ReadError {
    Sqlite(rusqlite::Error),
    Damaged(String),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> ReadError {
        ReadError::Sqlite(error)
    }
}

fn damaged(what: impl std::fmt::Display) -> ReadError {
    ReadError::Damaged(what.to_string())
}

fn name(text: &str) -> Result<Name, ReadError> {
    text.parse().map_err(|e| damaged(format!("name {text:?} is not readable ({e})")))
}

fn time(us: i64) -> Result<Timestamp, ReadError> {
    Timestamp::from_microsecond(us).map_err(|e| damaged(format!("a time is not readable ({e})")))
}

/// The number of a name; `None` when nothing was ever stored under it.
fn id(connection: &Connection, name: &Name) -> rusqlite::Result<Option<i64>> {
    let mut statement = connection.prepare_cached("SELECT id FROM names WHERE name = ?")?;
    statement.query_row([name.as_str()], |row| row.get(0)).optional()
}

/// A filter on a name that may be absent: `Err` when nothing can match.
fn filter(connection: &Connection, name: Option<&Name>) -> Result<Result<Option<i64>, ()>, ReadError> {
    Ok(match name {
        None => Ok(None),
        Some(name) => id(connection, name)?.map(Some).ok_or(()),
    })
}

pub(super) fn states(connection: &Connection) -> Result<Vec<StreamState>, ReadError> {
    let mut statement = connection.prepare_cached(
        "SELECT n.name, s.name, t.name, epoch, class, durable, reported_next, lag_records, lag_oldest_us, heard_us, ended
         FROM states JOIN names n ON n.id = node JOIN names s ON s.id = site JOIN names t ON t.id = stream
         ORDER BY n.name, t.name, epoch",
    )?;
    let mut rows = statement.query([])?;
    let mut states = vec![];
    while let Some(row) = rows.next()? {
        let durable: String = row.get(5)?;
        let class: String = row.get(4)?;
        states.push(StreamState {
            node: name(row.get_ref(0)?.as_str().map_err(damaged)?)?,
            site: name(row.get_ref(1)?.as_str().map_err(damaged)?)?,
            key: StreamKey {
                stream: name(row.get_ref(2)?.as_str().map_err(damaged)?)?,
                epoch: Epoch(unsigned(row.get(3)?)),
            },
            class: class_of(&class).ok_or_else(|| damaged(format!("class {class:?} is not known here")))?,
            durable: serde_json::from_str(&durable).map_err(|e| damaged(format!("a mark is not readable ({e})")))?,
            reported_next: unsigned(row.get(6)?),
            lag_records: unsigned(row.get(7)?),
            lag_oldest: row.get::<_, Option<i64>>(8)?.map(time).transpose()?,
            heard: time(row.get(9)?)?,
            ended: row.get(10)?,
        });
    }
    Ok(states)
}

/// Between which batches the records of a span of time lie; `None`: there are none.
fn bounds(connection: &Connection, query: &Query, stream: i64) -> Result<Option<(i64, i64)>, ReadError> {
    if query.from.is_none() && query.to.is_none() {
        return Ok(Some((0, i64::MAX)));
    }
    let site = match filter(connection, query.site.as_ref())? {
        Ok(site) => site,
        Err(()) => return Ok(None),
    };
    let from = query.from.map_or(i64::MIN, |t| minute_of(t.as_millisecond()));
    let to = query.to.map_or(i64::MAX, |t| minute_of(t.as_millisecond()));
    let mut statement = connection.prepare_cached(
        "SELECT min(first_batch), max(last_batch) FROM minutes
         WHERE stream = ?1 AND minute >= ?2 AND minute <= ?3 AND (?4 IS NULL OR site = ?4)",
    )?;
    let bounds: (Option<i64>, Option<i64>) =
        statement.query_row(params![stream, from, to, site], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(bounds.0.zip(bounds.1))
}

/// Where the records end now.
fn end(connection: &Connection) -> rusqlite::Result<Option<Cursor>> {
    let newest = "SELECT id, count FROM batches ORDER BY id DESC LIMIT 1";
    let cursor = |row: &SqlRow<'_>| Ok(Cursor { stored: row.get(0)?, offset: unsigned(row.get(1)?) });
    if let Some(cursor) = connection.prepare_cached(newest)?.query_row([], cursor).optional()? {
        return Ok(Some(cursor));
    }
    let given = "SELECT seq, 0 FROM sqlite_sequence WHERE name = 'batches'";
    connection.prepare_cached(given)?.query_row([], cursor).optional()
}

pub(super) fn query(connection: &Connection, query: &Query) -> Result<Page, ReadError> {
    let mut page = Page { rows: vec![], next: None, end: end(connection)? };
    let Some(stream) = id(connection, &query.stream)? else { return Ok(page) };
    let (Ok(node), Ok(site)) = (filter(connection, query.node.as_ref())?, filter(connection, query.site.as_ref())?)
    else {
        return Ok(page);
    };
    let Some((low, high)) = bounds(connection, query, stream)? else { return Ok(page) };
    let after = query.after.unwrap_or(Cursor { stored: 0, offset: 0 });
    let (low, from, to) = (
        low.max(after.stored),
        query.from.map_or(i64::MIN, Timestamp::as_millisecond),
        query.to.map_or(i64::MAX, |t| t.as_millisecond()),
    );
    let index = if node.is_some() { "batches_by_node" } else { "batches_by_stream" };
    let mut sql = format!(
        "SELECT b.id, n.name, s.name, b.sealed FROM batches b INDEXED BY {index}
         JOIN names n ON n.id = b.node JOIN names s ON s.id = b.site
         WHERE b.stream = ? AND b.id >= ? AND b.id <= ? AND b.max_ms >= ? AND b.min_ms <= ?"
    );
    let mut values: Vec<&dyn ToSql> = vec![&stream, &low, &high, &from, &to];
    if let Some(node) = &node {
        sql += " AND b.node = ?";
        values.push(node);
    }
    if let Some(site) = &site {
        sql += " AND b.site = ?";
        values.push(site);
    }
    sql += " ORDER BY b.id";
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(&values[..])?;
    let (limit, mut bytes, mut looked) = (query.limit.clamp(1, MAX_PAGE_ROWS), 0, 0);
    let mut at = None;
    while let Some(row) = rows.next()? {
        let stored: i64 = row.get(0)?;
        if looked >= MAX_PAGE_BATCHES {
            page.next = at;
            return Ok(page);
        }
        looked += 1;
        let sealed = row.get_ref(3)?.as_blob().map_err(damaged)?;
        let batch = Batch::open(sealed).map_err(|e| damaged(format!("batch {stored} is not readable ({e})")))?;
        let count = batch.records.len() as u64;
        let (node, site) = (row.get_ref(1)?.as_str().map_err(damaged)?, row.get_ref(2)?.as_str().map_err(damaged)?);
        let (node, site) = (name(node)?, name(site)?);
        for (index, record) in (0_u64..).zip(batch.records) {
            if stored == after.stored && index < after.offset || !in_window(record.time_ms, query) {
                continue;
            }
            if page.rows.len() >= limit || bytes >= MAX_PAGE_BYTES {
                page.next = at; // there is one more: this is not all
                return Ok(page);
            }
            bytes += record.bytes.len();
            at = Some(Cursor { stored, offset: index + 1 });
            page.rows.push(Row {
                node: node.clone(),
                site: site.clone(),
                stream: query.stream.clone(),
                epoch: batch.epoch,
                sequence: batch.first + index,
                time_ms: record.time_ms,
                // A copy: one record must not keep its whole batch in memory.
                bytes: Bytes::copy_from_slice(&record.bytes),
            });
        }
        at = Some(Cursor { stored, offset: count });
    }
    Ok(page)
}

pub(super) fn counts(connection: &Connection, query: &CountQuery) -> Result<Vec<Count>, ReadError> {
    let Some(stream) = id(connection, &query.stream)? else { return Ok(vec![]) };
    let Ok(site) = filter(connection, query.site.as_ref())? else { return Ok(vec![]) };
    let from = query.from.map_or(i64::MIN, |t| minute_of(t.as_millisecond()));
    // A minute that begins before the end.
    let to = query.to.map_or(i64::MAX, |t| minute_of(t.as_millisecond().saturating_sub(1)));
    let mut statement = connection.prepare_cached(
        "SELECT s.name, minute, records, bytes FROM minutes JOIN names s ON s.id = site
         WHERE stream = ?1 AND minute >= ?2 AND minute <= ?3 AND (?4 IS NULL OR site = ?4)
         ORDER BY minute, s.name LIMIT ?5",
    )?;
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![stream, from, to, site, limit])?;
    let mut counts = vec![];
    while let Some(row) = rows.next()? {
        counts.push(Count {
            site: name(row.get_ref(0)?.as_str().map_err(damaged)?)?,
            stream: query.stream.clone(),
            minute: minute_start(row.get(1)?),
            records: unsigned(row.get(2)?),
            bytes: unsigned(row.get(3)?),
        });
    }
    Ok(counts)
}

pub(super) fn gaps(
    connection: &Connection,
    node: Option<&Name>,
    stream: Option<&Name>,
    limit: usize,
) -> Result<Vec<GapRow>, ReadError> {
    let (Ok(node), Ok(stream)) = (filter(connection, node)?, filter(connection, stream)?) else { return Ok(vec![]) };
    let mut statement = connection.prepare_cached(
        "SELECT n.name, s.name, t.name, epoch, first, count, at_least, reason, noted_us
         FROM gaps g JOIN names n ON n.id = node JOIN names s ON s.id = site JOIN names t ON t.id = stream
         WHERE (?1 IS NULL OR node = ?1) AND (?2 IS NULL OR stream = ?2) ORDER BY g.id DESC LIMIT ?3",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![node, stream, limit])?;
    let mut gaps = vec![];
    while let Some(row) = rows.next()? {
        gaps.push(GapRow {
            node: name(row.get_ref(0)?.as_str().map_err(damaged)?)?,
            site: name(row.get_ref(1)?.as_str().map_err(damaged)?)?,
            stream: name(row.get_ref(2)?.as_str().map_err(damaged)?)?,
            epoch: Epoch(unsigned(row.get(3)?)),
            first: unsigned(row.get(4)?),
            count: unsigned(row.get(5)?),
            at_least: row.get(6)?,
            reason: reason_of(row.get_ref(7)?.as_str().map_err(damaged)?),
            noted: time(row.get(8)?)?,
        });
    }
    Ok(gaps)
}
