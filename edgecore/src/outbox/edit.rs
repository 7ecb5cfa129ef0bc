//! Changes inside a transaction: deleting, shedding, marking damage, moving to another epoch. Each does a
//! bounded amount and keeps the stream's totals.

use proto::stream::{GapReason, StreamKey, batch::Batch, ranges::Range};
use rusqlite::Connection;

use super::{
    db::{self, BatchRow, Content, Extent, MAX_SEQUENCE, Stored, StreamRow},
    error::OutboxError,
    store::is_current,
};

/// Rows that one step touches, and bytes of what it removes: a transaction stays small.
const STEP_ROWS: usize = 4096;
const STEP_BYTES: u64 = 8 << 20;

/// Looks up what a stream holds first.
pub(super) fn refresh(connection: &Connection, stream: &mut StreamRow) -> Result<(), OutboxError> {
    match db::front(connection, stream.id)? {
        Some((first, time_ms)) => {
            stream.first = first.min(stream.next);
            stream.oldest_ms = Some(time_ms);
        }
        // Totals that damage made wrong are right again from here on.
        None => *stream = StreamRow { first: stream.next, oldest_ms: None, records: 0, bytes: 0, ..stream.clone() },
    }
    Ok(())
}

/// Forgets streams of epochs that are over and hold nothing. The newest of a name stays: its sequences go on.
pub(super) fn prune(connection: &Connection, streams: &mut Vec<StreamRow>) -> Result<(), OutboxError> {
    let over: Vec<StreamRow> =
        streams.iter().filter(|s| s.first == s.next && s.moves.is_none() && !is_current(streams, s)).cloned().collect();
    for gone in over {
        db::remove_stream(connection, gone.id)?;
        streams.retain(|s| s.id != gone.id);
        // Counts are of the stream, whatever the epoch.
        if let Some(newest) = streams.iter_mut().filter(|s| s.key.stream == gone.key.stream).max_by_key(|s| s.id) {
            newest.shed += gone.shed;
            newest.damaged += gone.damaged;
        }
    }
    Ok(())
}

fn forget(stream: &mut StreamRow, extent: &Extent) {
    if extent.reason.is_none() {
        stream.records = stream.records.saturating_sub(extent.range.end - extent.range.start);
        stream.bytes = stream.bytes.saturating_sub(extent.sealed_bytes);
    }
}

/// What a step of deleting did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deleted {
    pub rows: usize,
    /// Where the rest of the range begins, if there is one.
    pub rest: Option<u64>,
}

/// Deletes a range, or the beginning of it.
pub(super) fn delete(connection: &Connection, stream: &mut StreamRow, range: Range) -> Result<Deleted, OutboxError> {
    let range = range.start.min(stream.next)..range.end.min(stream.next);
    if range.is_empty() {
        return Ok(Deleted { rows: 0, rest: None });
    }
    cut(connection, stream, &range)?; // the row that begins before it
    let extents = db::extents(connection, stream.id, range.clone(), STEP_ROWS)?;
    let (mut rows, mut bytes, mut end) = (0, 0, range.start);
    let (mut rest, mut beyond) = (None, false);
    let follows = extents.iter().skip(1).map(|extent| extent.range.start).chain([range.end]);
    for (extent, follows) in extents.iter().zip(follows) {
        // What does not reach to where the next begins may say less than it holds.
        if extent.range.end < follows
            && let Some(stored) = db::at_or_before(connection, stream.id, extent.range.start)?
            && !stored.whole
        {
            settle(connection, stream, stored)?;
            rest = Some(extent.range.start);
            break;
        }
        // Only the last can reach beyond; the count of a damaged one may say anything.
        beyond = extent.range.end > range.end;
        if beyond || bytes > STEP_BYTES {
            rest = Some(extent.range.start);
            break;
        }
        forget(stream, extent);
        (rows, bytes, end) = (rows + 1, bytes + extent.sealed_bytes, extent.range.start + 1);
    }
    db::remove(connection, stream.id, range.start..end)?;
    if beyond && let Some(from) = rest {
        cut(connection, stream, &(from..range.end))?;
        // What was damaged may have ended earlier than it said.
        rest = (from + 1 < range.end).then_some(from + 1);
    }
    if extents.len() == STEP_ROWS && rest.is_none() {
        rest = Some(end);
    }
    refresh(connection, stream)?;
    Ok(Deleted { rows, rest })
}

/// Takes the records of `range` out of the row that holds its first, if there is one. An empty range splits the row.
fn cut(connection: &Connection, stream: &mut StreamRow, range: &Range) -> Result<(), OutboxError> {
    let Some(stored) = db::at_or_before(connection, stream.id, range.start)? else { return Ok(()) };
    if stored.whole && stored.row.end() <= range.start {
        return Ok(());
    }
    let Some(row) = settle(connection, stream, stored)? else { return Ok(()) };
    if row.end() <= range.start {
        return Ok(());
    }
    drop_row(connection, stream, &row)?;
    for rest in [row.first..range.start, range.end..row.end()] {
        if rest.start < rest.end {
            let part = match &row.content {
                Content::Gone(reason) => BatchRow::gone(stream.id, &rest, row.time_ms, *reason),
                Content::Sealed(sealed) => BatchRow::seal(stream.id, &Batch::open(sealed)?.part(rest))?,
            };
            add_row(connection, stream, &part)?;
        }
    }
    Ok(())
}

fn add_row(connection: &Connection, stream: &mut StreamRow, row: &BatchRow) -> Result<(), OutboxError> {
    row.insert(connection)?;
    if let Content::Sealed(_) = row.content {
        stream.records += row.count;
        stream.bytes += row.sealed_bytes();
    }
    Ok(())
}

fn drop_row(connection: &Connection, stream: &mut StreamRow, row: &BatchRow) -> Result<(), OutboxError> {
    db::remove(connection, stream.id, row.first..row.first + 1)?;
    if let Content::Sealed(sealed) = &row.content {
        stream.records = stream.records.saturating_sub(row.count);
        stream.bytes = stream.bytes.saturating_sub(sealed.len() as u64);
    }
    Ok(())
}

/// What is true of a row that may be damaged; `bound` is where the next begins.
///
/// A batch says itself what it holds: when only the columns beside it are damaged, nothing is lost.
pub(super) fn truth(stored: Stored, key: &StreamKey, bound: u64) -> Option<BatchRow> {
    let row = stored.row;
    if stored.whole {
        return Some(row);
    }
    if let Content::Sealed(sealed) = &row.content
        && let Ok(batch) = Batch::open(sealed)
        && (batch.epoch, batch.first) == (key.epoch, row.first)
        && batch.end() <= bound
    {
        let time_ms = batch.records.first().map_or(0, |record| record.time_ms);
        let (count, bytes) = (batch.records.len() as u64, batch.bytes() as u64);
        return Some(BatchRow { count, bytes, time_ms, ..row });
    }
    let end = if row.count > 0 && row.end() <= bound { row.end() } else { bound };
    (row.first < end).then(|| BatchRow::gone(row.stream, &(row.first..end), row.time_ms, GapReason::Damaged))
}

/// Replaces a row that is damaged by what is true of it, and counts what is lost.
pub(super) fn settle(
    connection: &Connection,
    stream: &mut StreamRow,
    stored: Stored,
) -> Result<Option<BatchRow>, OutboxError> {
    if stored.whole {
        return Ok(Some(stored.row));
    }
    let (first, sealed_bytes) = (stored.row.first, stored.row.sealed_bytes());
    let next = db::extents(connection, stream.id, first + 1..MAX_SEQUENCE, 1)?.first().map(|next| next.range.start);
    let bound = next.unwrap_or(stream.next).min(stream.next);
    let row = truth(stored, &stream.key, bound);
    db::remove(connection, stream.id, first..first + 1)?;
    if let Some(row) = &row {
        row.insert(connection)?;
        if let Content::Gone(GapReason::Damaged) = row.content {
            stream.damaged += row.count;
            stream.records = stream.records.saturating_sub(row.count);
            stream.bytes = stream.bytes.saturating_sub(sealed_bytes);
            tracing::warn!(stream = %stream.key, first = row.first, count = row.count, "records are damaged on disk");
        }
    }
    refresh(connection, stream)?;
    Ok(row)
}

/// Sheds about `bytes` from a stream's oldest batches on; what went is one tombstone where it is in one piece.
/// Returns what was freed, at most what a step may.
pub(super) fn shed(connection: &Connection, stream: &mut StreamRow, bytes: u64) -> Result<u64, OutboxError> {
    let (mut freed, mut shed) = (0, 0);
    let mut runs: Vec<(Range, i64)> = vec![];
    for extent in db::extents(connection, stream.id, 0..MAX_SEQUENCE, STEP_ROWS)? {
        if freed >= bytes.min(STEP_BYTES) {
            break;
        }
        match extent.reason {
            Some(GapReason::Shed) => {}
            Some(_) => continue, // it tells its own reason
            None => {
                freed += extent.sealed_bytes;
                shed += extent.range.end - extent.range.start;
                forget(stream, &extent);
            }
        }
        db::remove(connection, stream.id, extent.range.start..extent.range.start + 1)?;
        match runs.last_mut() {
            Some((run, _)) if run.end == extent.range.start => run.end = extent.range.end,
            _ => runs.push((extent.range, extent.time_ms)),
        }
    }
    for (run, time_ms) in runs {
        BatchRow::gone(stream.id, &run, time_ms, GapReason::Shed).insert(connection)?;
    }
    stream.shed += shed;
    refresh(connection, stream)?;
    Ok(freed)
}

/// Begins to move what was taken since this start to a new epoch.
pub(super) fn begin_move(
    connection: &Connection,
    streams: &mut Vec<StreamRow>,
    from: &StreamKey,
    to: &StreamKey,
) -> Result<(), OutboxError> {
    let Some(old) = streams.iter_mut().find(|s| s.key == *from) else {
        return Err(OutboxError::UnknownStream(from.clone()));
    };
    // A tombstone may lie across the start: part of it stays, part of it moves.
    let began = old.began;
    cut(connection, old, &(began..began))?;
    let id = db::add_stream(connection, to, old.class)?;
    old.moves = Some((id, old.began));
    old.next = old.began;
    old.first = old.first.min(old.next);
    let new = StreamRow {
        id,
        key: to.clone(),
        next: 0,
        records: 0,
        bytes: 0,
        shed: 0,
        damaged: 0,
        moves: None,
        began: 0,
        first: 0,
        oldest_ms: None,
        class: old.class,
    };
    streams.push(new);
    Ok(())
}

/// Moves some rows of the streams that move, in order and closed up.
pub(super) fn move_some(connection: &Connection, streams: &mut [StreamRow]) -> Result<(), OutboxError> {
    let Some((id, (to, from))) = streams.iter().find_map(|s| s.moves.map(|moves| (s.id, moves))) else {
        return Ok(());
    };
    let Some(mut old) = streams.iter().find(|s| s.id == id).cloned() else { return Ok(()) };
    let Some(mut new) = streams.iter().find(|s| s.id == to).cloned() else {
        // Damage took the stream that they move to; they stay where they are.
        let last = db::at_or_before(connection, id, MAX_SEQUENCE)?.map_or(0, |last| last.row.end());
        if let Some(stream) = streams.iter_mut().find(|s| s.id == id) {
            stream.moves = None;
            stream.next = stream.next.max(last.min(MAX_SEQUENCE - 1));
        }
        return Ok(());
    };
    let (mut at, mut bytes) = (from, 0);
    while bytes < STEP_BYTES {
        let Some(stored) = db::at_or_after(connection, id, at)? else {
            old.moves = None;
            break;
        };
        at = stored.row.first + 1;
        // The row's own bounds are all there is: the stream's `next` is lowered already.
        let bound = db::extents(connection, id, at..MAX_SEQUENCE, 1)?.first().map(|next| next.range.start);
        let bound = bound.unwrap_or(stored.row.end());
        let (first, whole, held) = (stored.row.first, stored.whole, stored.row.sealed_bytes());
        let Some(row) = truth(stored, &old.key, bound) else {
            db::remove(connection, id, first..first + 1)?;
            continue;
        };
        db::remove(connection, id, first..first + 1)?;
        old.bytes = old.bytes.saturating_sub(held);
        if held > 0 {
            old.records = old.records.saturating_sub(row.count);
        }
        let range = new.next..new.next + row.count;
        let moved = match &row.content {
            Content::Gone(reason) => BatchRow::gone(to, &range, row.time_ms, *reason),
            Content::Sealed(sealed) => {
                let batch = Batch { epoch: new.key.epoch, first: new.next, ..Batch::open(sealed)? };
                BatchRow::seal(to, &batch)?
            }
        };
        if !whole && let Content::Gone(GapReason::Damaged) = row.content {
            new.damaged += row.count;
        }
        add_row(connection, &mut new, &moved)?;
        new.next = range.end;
        bytes += held + 64;
    }
    old.moves = old.moves.map(|(to, _)| (to, at));
    refresh(connection, &mut old)?;
    refresh(connection, &mut new)?;
    for changed in [old, new] {
        if let Some(stream) = streams.iter_mut().find(|s| s.id == changed.id) {
            *stream = changed;
        }
    }
    Ok(())
}
