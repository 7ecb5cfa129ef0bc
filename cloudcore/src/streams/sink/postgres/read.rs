//! Reading: states, records by order of arrival, counts, gaps.

use std::pin::pin;

use bytes::Bytes;
use futures_util::StreamExt as _;
use proto::{
    name::Name,
    stream::{Epoch, StreamKey},
};
use tokio_postgres::{
    Error, Row as SqlRow,
    types::{ToSql, Type},
};

use super::{
    super::{
        Count, CountQuery, Cursor, GapRow, MAX_PAGE_BYTES, MAX_PAGE_ROWS, Page, Query, Row, StreamState, class_of,
        minute_of, reason_of, unsigned,
    },
    connect::Link,
    copy::Micros,
};

/// Reading failed.
#[derive(Debug)]
pub(super) enum ReadError {
    Postgres(Error),
    Damaged(String),
}

impl From<Error> for ReadError {
    fn from(error: Error) -> ReadError {
        ReadError::Postgres(error)
    }
}

fn name(row: &SqlRow, column: usize) -> Result<Name, ReadError> {
    let text: &str = row.try_get(column)?;
    text.parse().map_err(|e| ReadError::Damaged(format!("name {text:?} is not readable ({e})")))
}

fn number(row: &SqlRow, column: usize) -> Result<u64, ReadError> {
    Ok(unsigned(row.try_get(column)?))
}

fn time(row: &SqlRow, column: usize) -> Result<Micros, ReadError> {
    Ok(row.try_get(column)?)
}

pub(super) fn states(rows: &[SqlRow]) -> Result<Vec<StreamState>, String> {
    let states = rows.iter().map(state).collect::<Result<_, ReadError>>();
    states.map_err(|e| match e {
        ReadError::Postgres(error) => super::words(&error),
        ReadError::Damaged(what) => what,
    })
}

fn state(row: &SqlRow) -> Result<StreamState, ReadError> {
    let class: &str = row.try_get(4)?;
    let durable: &str = row.try_get(5)?;
    Ok(StreamState {
        node: name(row, 0)?,
        site: name(row, 1)?,
        key: StreamKey { stream: name(row, 2)?, epoch: Epoch(number(row, 3)?) },
        class: class_of(class).ok_or_else(|| ReadError::Damaged(format!("class {class:?} is not known here")))?,
        durable: serde_json::from_str(durable)
            .map_err(|e| ReadError::Damaged(format!("a mark is not readable ({e})")))?,
        reported_next: number(row, 6)?,
        lag_records: number(row, 7)?,
        lag_oldest: row.try_get::<_, Option<Micros>>(8)?.map(Micros::timestamp),
        heard: time(row, 9)?.timestamp(),
        ended: row.try_get(10)?,
    })
}

pub(super) async fn query(link: &Link, query: &Query) -> Result<Page, ReadError> {
    let mut page = Page::default();
    // The end first: what comes after it belongs to the next page.
    let end = "SELECT value FROM crossdock_meta WHERE name = 'position'";
    let Some(end) = link.client.query_opt(end, &[]).await? else { return Ok(page) };
    let end: i64 = end.try_get(0)?;
    page.end = (end > 0).then_some(Cursor { stored: end, offset: 1 });

    let limit = query.limit.clamp(1, MAX_PAGE_ROWS);
    // A position holds one record: it was read, or it was not.
    let low = query.after.map_or(0, |after| after.stored.saturating_add(i64::from(after.offset > 0)));
    let more = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
    let (node, site) = (query.node.as_ref().map(Name::as_str), query.site.as_ref().map(Name::as_str));
    let (from, to) = (query.from.map(Micros::of), query.to.map(Micros::of));
    let stream = query.stream.as_str();
    let mut values: Vec<(&(dyn ToSql + Sync), Type)> =
        vec![(&stream, Type::TEXT), (&low, Type::INT8), (&end, Type::INT8), (&more, Type::INT8)];
    let mut sql = "SELECT node, site, epoch, sequence, time, record, position FROM crossdock_records
                   WHERE stream = $1 AND position >= $2 AND position <= $3"
        .to_owned();
    let filters: [(Option<&(dyn ToSql + Sync)>, Type, &str); 4] = [
        (node.as_ref().map(|v| v as _), Type::TEXT, "node ="),
        (site.as_ref().map(|v| v as _), Type::TEXT, "site ="),
        (from.as_ref().map(|v| v as _), Type::TIMESTAMPTZ, "time >="),
        (to.as_ref().map(|v| v as _), Type::TIMESTAMPTZ, "time <"),
    ];
    for (value, r#type, condition) in filters {
        if let Some(value) = value {
            values.push((value, r#type));
            sql += &format!(" AND {condition} ${}", values.len());
        }
    }
    sql += " ORDER BY position LIMIT $4";
    let mut rows = pin!(link.client.query_typed_raw(&sql, values).await?);
    let mut bytes = 0;
    while let Some(row) = rows.next().await {
        let row = row?;
        if page.rows.len() >= limit || bytes >= MAX_PAGE_BYTES {
            page.next = page.rows.last().and(page.next);
            return Ok(page);
        }
        let record: &[u8] = row.try_get(5)?;
        bytes += record.len();
        page.next = Some(Cursor { stored: row.try_get(6)?, offset: 1 });
        page.rows.push(Row {
            node: name(&row, 0)?,
            site: name(&row, 1)?,
            stream: query.stream.clone(),
            epoch: Epoch(number(&row, 2)?),
            sequence: number(&row, 3)?,
            time_ms: time(&row, 4)?.0.div_euclid(1000),
            bytes: Bytes::copy_from_slice(record),
        });
    }
    page.next = None; // this was all
    Ok(page)
}

pub(super) async fn counts(link: &Link, query: &CountQuery) -> Result<Vec<Count>, ReadError> {
    let minute = |t: jiff::Timestamp| Micros(minute_of(t.as_millisecond()).saturating_mul(60_000_000));
    let (from, to) = (query.from.map(minute), query.to.map(Micros::of));
    let (stream, site) = (query.stream.as_str(), query.site.as_ref().map(Name::as_str));
    let sql = "SELECT site, minute, records, bytes FROM crossdock_minutes
               WHERE stream = $1 AND ($2::text IS NULL OR site = $2)
                 AND ($3::timestamptz IS NULL OR minute >= $3) AND ($4::timestamptz IS NULL OR minute < $4)
               ORDER BY minute, site COLLATE \"C\" LIMIT $5";
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    let rows = link.client.query(sql, &[&stream, &site, &from, &to, &limit]).await?;
    let count = |row: &SqlRow| {
        Ok(Count {
            site: name(row, 0)?,
            stream: query.stream.clone(),
            minute: time(row, 1)?.timestamp(),
            records: number(row, 2)?,
            bytes: number(row, 3)?,
        })
    };
    rows.iter().map(count).collect()
}

pub(super) async fn gaps(
    link: &Link,
    node: Option<&Name>,
    stream: Option<&Name>,
    limit: usize,
) -> Result<Vec<GapRow>, ReadError> {
    let (node, stream) = (node.map(Name::as_str), stream.map(Name::as_str));
    let sql = "SELECT node, site, stream, epoch, first, count, at_least, reason, noted FROM crossdock_gaps
               WHERE ($1::text IS NULL OR node = $1) AND ($2::text IS NULL OR stream = $2)
               ORDER BY id DESC LIMIT $3";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = link.client.query(sql, &[&node, &stream, &limit]).await?;
    let gap = |row: &SqlRow| {
        Ok(GapRow {
            node: name(row, 0)?,
            site: name(row, 1)?,
            stream: name(row, 2)?,
            epoch: Epoch(number(row, 3)?),
            first: number(row, 4)?,
            count: number(row, 5)?,
            at_least: row.try_get(6)?,
            reason: reason_of(row.try_get(7)?),
            noted: time(row, 8)?.timestamp(),
        })
    };
    rows.iter().map(gap).collect()
}
