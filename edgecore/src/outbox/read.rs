//! Reading: the next batch to send, merged of small neighbours, or the gap that stands there.

use bytes::Bytes;
use proto::stream::{Gap, GapReason, MAX_BATCH_BYTES, MAX_BATCH_RECORDS, StreamKey, batch::Batch, ranges::Range};
use rusqlite::Connection;

use super::{
    Item,
    db::{self, BatchRow, Content},
    error::OutboxError,
};

/// A batch of this size goes as it is: merging more into it would save little.
const GOES_ALONE_BYTES: u64 = MAX_BATCH_BYTES as u64 / 4;

/// What stands at the beginning of a range.
#[derive(Debug)]
pub(super) enum Found {
    Item(Item),
    /// A row that is not as it was written.
    Damaged,
}

/// Reads `key`, which is stream number `id`, at `range.start`. The caller has cut `range` to what was ever given.
pub(super) fn read(connection: &Connection, id: i64, key: &StreamKey, range: &Range) -> Result<Found, OutboxError> {
    let failed = OutboxError::during("read");
    let moment = connection.unchecked_transaction().map_err(failed)?; // one for all of it
    let gap = |end: u64, reason| {
        let count = end.min(range.end) - range.start;
        Found::Item(Item::Gap(Gap { key: key.clone(), first: range.start, count, reason }))
    };
    let before = db::at_or_before(&moment, id, range.start)?;
    let row = match before {
        Some(stored) if !stored.whole => return Ok(Found::Damaged),
        Some(stored) if stored.row.end() > range.start => stored.row,
        _ => {
            // Records go only when the hub has acknowledged them: if it asks again, it has lost them.
            let next = db::extents(&moment, id, range.start..db::MAX_SEQUENCE, 1)?;
            return Ok(gap(next.first().map_or(range.end, |next| next.range.start), GapReason::HubLost));
        }
    };
    let sealed = match &row.content {
        Content::Gone(reason) => return Ok(gap(row.end(), *reason)),
        Content::Sealed(sealed) => sealed,
    };
    let whole = row.first == range.start && row.end() <= range.end;
    if whole && (row.bytes >= GOES_ALONE_BYTES || !merges(&moment, &row, row.count, row.bytes, range.end)?) {
        let sealed = Bytes::copy_from_slice(sealed);
        return Ok(Found::Item(Item::Batch { first: row.first, count: row.count, sealed }));
    }
    let Ok(mut batch) = open(&row, key) else { return Ok(Found::Damaged) };
    batch = batch.part(range.clone());
    if row.end() <= range.end {
        merge(&moment, &row, key, range.end, &mut batch)?;
    }
    let (first, count) = (batch.first, batch.records.len() as u64);
    Ok(Found::Item(Item::Batch { first, count, sealed: batch.seal()?.into() }))
}

/// A row's batch, which must be what its row says.
fn open(row: &BatchRow, key: &StreamKey) -> Result<Batch, ()> {
    let Content::Sealed(sealed) = &row.content else { return Err(()) };
    let batch = Batch::open(sealed).map_err(|_| ())?;
    let right = batch.epoch == key.epoch && batch.first == row.first && batch.end() == row.end();
    right.then_some(batch).ok_or(())
}

/// Whether the row behind `row` joins a batch with so many records and bytes.
fn merges(connection: &Connection, row: &BatchRow, count: u64, bytes: u64, end: u64) -> Result<bool, OutboxError> {
    let failed = OutboxError::during("read");
    let sql = "SELECT count, bytes FROM batches WHERE id = ? AND reason IS NULL";
    let mut statement = connection.prepare_cached(sql).map_err(failed)?;
    let mut rows = statement.query([db::row_id(row.stream, row.end())]).map_err(failed)?;
    let Some(next) = rows.next().map_err(failed)? else { return Ok(false) };
    let number = |index| next.get::<_, i64>(index).ok().and_then(|n| u64::try_from(n).ok()).unwrap_or(u64::MAX);
    let (more, more_bytes) = (number(0), number(1));
    Ok(row.end().saturating_add(more) <= end
        && count.saturating_add(more) <= MAX_BATCH_RECORDS as u64
        && bytes.saturating_add(more_bytes) <= MAX_BATCH_BYTES as u64)
}

/// Adds the rows behind `row` while they fit. A damaged one ends it; it is met again at the next read.
fn merge(
    connection: &Connection,
    row: &BatchRow,
    key: &StreamKey,
    end: u64,
    batch: &mut Batch,
) -> Result<(), OutboxError> {
    let mut last = BatchRow { content: Content::Gone(GapReason::Other), ..row.clone() };
    let mut bytes = batch.bytes() as u64;
    while merges(connection, &last, batch.records.len() as u64, bytes, end)? {
        let Some(next) = db::at_or_after(connection, row.stream, last.end())? else { break };
        if !next.whole || next.row.first != batch.end() {
            break;
        }
        let Ok(more) = open(&next.row, key) else { break };
        bytes += next.row.bytes;
        batch.records.extend(more.records);
        last = next.row;
    }
    Ok(())
}
