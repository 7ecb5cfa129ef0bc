//! Reads records of a sink in pieces that are bounded in number and in bytes.

use std::{collections::VecDeque, sync::Arc};

use proto::name::Name;

use super::line::{self, Encoding};
use crate::streams::sink::{Cursor, Page, Query, Sink, SinkError};

/// Records that the sink is asked for at first, when nobody knows how large they are, and at most.
const FIRST_STEP: usize = 1_000;
const MAX_STEP: usize = 10_000;
/// How much farther back the end is looked for, each time.
const TAIL_FACTOR: i64 = 8;

/// Reading failed.
#[derive(Debug)]
pub(super) enum ReadError {
    /// In the sink.
    Sink(SinkError),
    /// The place lies beyond all that was ever stored: the sink was restored from a backup, or is another.
    Beyond,
}

impl From<SinkError> for ReadError {
    fn from(error: SinkError) -> ReadError {
        ReadError::Sink(error)
    }
}

/// Reads on and on from a place.
#[derive(Debug)]
pub(super) struct Reader {
    sink: Arc<dyn Sink>,
    query: Query,
    encoding: Encoding,
}

/// A piece.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    /// The records, one line each.
    pub(super) lines: Vec<u8>,
    /// How many.
    pub(super) rows: usize,
    /// Whether there is more right now.
    pub(super) more: bool,
}

impl Reader {
    /// Begins at `query.after`.
    pub(super) fn new(sink: Arc<dyn Sink>, query: Query, encoding: Encoding) -> Reader {
        Reader { sink, query, encoding }
    }

    /// The stream.
    pub(super) fn stream(&self) -> &Name {
        &self.query.stream
    }

    /// Where it stands: everything before was read. `None` at the beginning of an empty sink.
    pub(super) fn place(&self) -> Option<Cursor> {
        self.query.after
    }

    /// The next records. Not cancel safe: a dropped call loses its place.
    pub(super) async fn chunk(&mut self, limit_records: usize, limit_bytes: usize) -> Result<Chunk, ReadError> {
        let mut chunk = Chunk::default();
        loop {
            let room = limit_bytes.saturating_sub(chunk.lines.len());
            let fits = match chunk.lines.len() / chunk.rows.max(1) {
                0 => FIRST_STEP,
                average => (room / average + 1).clamp(1, MAX_STEP),
            };
            let page = match self.step(fits.min(limit_records - chunk.rows)).await {
                Ok(page) => page,
                Err(_) if chunk.rows > 0 => {
                    chunk.more = true; // what was read is given first, the next piece meets the error
                    return Ok(chunk);
                }
                Err(error) => return Err(error),
            };
            page.rows.iter().for_each(|row| line::push(&mut chunk.lines, row, self.encoding));
            chunk.rows += page.rows.len();
            chunk.more = page.next.is_some();
            if !chunk.more || chunk.rows >= limit_records || chunk.lines.len() >= limit_bytes {
                return Ok(chunk);
            }
        }
    }

    /// The last `count` records, or as many of them as fit; from then on it reads what comes after them.
    pub(super) async fn tail(&mut self, count: usize, limit_bytes: usize) -> Result<Chunk, ReadError> {
        self.query.after = None;
        self.query.limit = 1;
        let Some(end) = self.sink.query(&self.query).await?.end else { return Ok(Chunk::default()) };
        if count == 0 {
            self.query.after = Some(end);
            return Ok(Chunk::default());
        }
        // The sink reads forward only. Most often the last few things that it stored are enough.
        let mut back = 1_i64;
        loop {
            let from = end.stored.saturating_sub(back);
            self.query.after = (from > 0).then_some(Cursor { stored: from, offset: 0 });
            let (chunk, seen) = self.last(count, limit_bytes).await?;
            if seen >= count || from <= 0 {
                return Ok(chunk);
            }
            back = back.saturating_mul(TAIL_FACTOR);
        }
    }

    /// Reads to the end, and keeps the last `count` records. Also how many it saw.
    async fn last(&mut self, count: usize, limit_bytes: usize) -> Result<(Chunk, usize), ReadError> {
        let mut kept: VecDeque<Vec<u8>> = VecDeque::new();
        let (mut seen, mut bytes, mut step) = (0, 0, FIRST_STEP);
        loop {
            let page = self.step(step).await?;
            for row in &page.rows {
                let mut line = vec![];
                line::push(&mut line, row, self.encoding);
                bytes += line.len();
                kept.push_back(line);
                while kept.len() > count || (bytes > limit_bytes && kept.len() > 1) {
                    bytes -= kept.pop_front().map_or(0, |line| line.len());
                }
            }
            seen += page.rows.len();
            if page.next.is_none() {
                let chunk = Chunk { rows: kept.len(), lines: kept.into_iter().flatten().collect(), more: false };
                return Ok((chunk, seen));
            }
            let average = (bytes / kept.len().max(1)).max(1);
            step = (limit_bytes / average).clamp(1, MAX_STEP);
        }
    }

    /// One question to the sink; moves on by its answer.
    async fn step(&mut self, limit: usize) -> Result<Page, ReadError> {
        self.query.limit = limit;
        let page = self.sink.query(&self.query).await?;
        if page.next.is_some() && page.next <= self.query.after {
            return Err(SinkError::Damaged(format!("reading it does not get beyond {:?}", page.next)).into());
        }
        if page.next.is_none() && page.end.is_some_and(|end| Some(end) < self.query.after) {
            return Err(ReadError::Beyond);
        }
        self.query.after = page.next.or(page.end).or(self.query.after);
        Ok(page)
    }
}
