//! What keeps stream records: one small interface.
//!
//! A [`Commit`] is one transaction: its records, its gaps and the states of the streams that they belong
//! to become durable together or not at all. There is one writer ([`super::ingest`]); a sink makes sure
//! of that where its engine can be reached by two.

pub mod postgres;
pub mod sqlite;
#[cfg(test)]
pub(crate) mod suite;

use std::fmt;

use bytes::Bytes;
use jiff::Timestamp;
use proto::{
    env::BoxFuture,
    name::Name,
    stream::{Class, Epoch, GapReason, StreamKey, batch::Batch, ranges::Ranges},
};
use serde::{Deserialize, Serialize};

/// Most records of one page.
pub const MAX_PAGE_ROWS: usize = 10_000;
/// Bytes of records after which a page ends.
pub const MAX_PAGE_BYTES: usize = 8 << 20;

/// What the hub durably knows of one stream of one node in one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamState {
    /// The node.
    pub node: Name,
    /// Its site when it was last heard.
    pub site: Name,
    /// Stream and epoch.
    pub key: StreamKey,
    /// Its class.
    pub class: Class,
    /// Which sequences are durable here, as records or as gaps.
    pub durable: Ranges,
    /// The sequence of the next record, as the node said last; at least the end of `durable`.
    pub reported_next: u64,
    /// Records that the node still held, as it said last.
    pub lag_records: u64,
    /// When the oldest of them was taken, by the node's clock.
    pub lag_oldest: Option<Timestamp>,
    /// When the hub heard of it last.
    pub heard: Timestamp,
    /// The node has begun a newer epoch and holds nothing of this one any more.
    pub ended: bool,
}

/// Records to be kept: those that are new of what a node sent.
#[derive(Debug, Clone)]
pub struct NewBatch {
    /// The node.
    pub node: Name,
    /// Its site.
    pub site: Name,
    /// Name of the stream.
    pub stream: Name,
    /// The records.
    pub batch: Batch,
    /// The same, sealed.
    pub sealed: Bytes,
    /// When the hub took it.
    pub received: Timestamp,
}

/// Records that will never come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GapRow {
    /// The node.
    pub node: Name,
    /// Its site.
    pub site: Name,
    /// Name of the stream.
    pub stream: Name,
    /// Epoch.
    pub epoch: Epoch,
    /// First sequence that is lost.
    pub first: u64,
    /// How many are known to be lost.
    pub count: u64,
    /// Whether more may be lost: the node lost its outbox, and nobody knows what stood in it.
    pub at_least: bool,
    /// Why.
    pub reason: GapReason,
    /// When the hub learned of it.
    pub noted: Timestamp,
}

/// One transaction.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    /// Records.
    pub batches: Vec<NewBatch>,
    /// Gaps.
    pub gaps: Vec<GapRow>,
    /// States after it, of every stream that it touches.
    pub states: Vec<StreamState>,
}

/// One record, as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The node.
    pub node: Name,
    /// Its site.
    pub site: Name,
    /// Name of the stream.
    pub stream: Name,
    /// Epoch.
    pub epoch: Epoch,
    /// Sequence.
    pub sequence: u64,
    /// When the agent took it, in milliseconds since 1970 by the node's clock.
    pub time_ms: i64,
    /// The record.
    pub bytes: Bytes,
}

/// Which records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Name of the stream.
    pub stream: Name,
    /// Of this node only.
    pub node: Option<Name>,
    /// Of this site only.
    pub site: Option<Name>,
    /// Taken at or after this time, by the nodes' clocks.
    pub from: Option<Timestamp>,
    /// Taken before this time.
    pub to: Option<Timestamp>,
    /// Where the page before ended.
    pub after: Option<Cursor>,
    /// At most so many.
    pub limit: usize,
}

/// Where a page ended: records are read by order of arrival at the hub, and in order of sequence within.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    /// The sink's own number of what it stored; rises with every commit.
    pub stored: i64,
    /// Records of it that were read.
    pub offset: u64,
}

/// A page of records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// The records.
    pub rows: Vec<Row>,
    /// Where to go on; `None` when this was all that is there now.
    pub next: Option<Cursor>,
    /// Where the records end now: a tail begins or goes on there.
    pub end: Option<Cursor>,
}

/// Records of a site in a minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Count {
    /// The site.
    pub site: Name,
    /// Name of the stream.
    pub stream: Name,
    /// Start of the minute, by the nodes' clocks.
    pub minute: Timestamp,
    /// How many.
    pub records: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// Which counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountQuery {
    /// Name of the stream.
    pub stream: Name,
    /// Of this site only.
    pub site: Option<Name>,
    /// From this minute on.
    pub from: Option<Timestamp>,
    /// Before this one.
    pub to: Option<Timestamp>,
    /// At most so many.
    pub limit: usize,
}

/// The sink could not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// It is down, or full: worth trying again with the same commit.
    #[error("the sink cannot be used now: {0}")]
    Unavailable(String),
    /// Whether the commit was kept is not known: read the states again before anything else.
    #[error("it is not known whether the sink kept the records: {0}")]
    Unknown(String),
    /// What is in it is not what we wrote.
    #[error("the sink is damaged or of a newer version: {0}")]
    Damaged(String),
}

/// Keeps records.
pub trait Sink: Send + Sync + fmt::Debug {
    /// What the sink is, for people, without secrets.
    fn describe(&self) -> String;
    /// All states, when the writer begins and after [`SinkError::Unknown`].
    fn states(&self) -> BoxFuture<'_, Result<Vec<StreamState>, SinkError>>;
    /// One transaction. Dropping the future leaves it done or undone, never half.
    fn commit(&self, commit: &Commit) -> BoxFuture<'_, Result<(), SinkError>>;
    /// A page of records, at most [`MAX_PAGE_ROWS`] and about [`MAX_PAGE_BYTES`]: it may hold fewer than the
    /// limit, or none, while [`Page::next`] says that there is more.
    fn query(&self, query: &Query) -> BoxFuture<'_, Result<Page, SinkError>>;
    /// Records by minute and site.
    fn counts(&self, query: &CountQuery) -> BoxFuture<'_, Result<Vec<Count>, SinkError>>;
    /// Gaps, newest first, at most `limit`.
    fn gaps(
        &self,
        node: Option<&Name>,
        stream: Option<&Name>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<GapRow>, SinkError>>;
    /// Removes records (not states, not counts, not gaps) that the hub took before `before`.
    /// Returns how many records.
    fn prune(&self, before: Timestamp) -> BoxFuture<'_, Result<u64, SinkError>>;
}

/// The minute of a record, since 1970.
fn minute_of(time_ms: i64) -> i64 {
    time_ms.div_euclid(60_000)
}

/// When a minute began; a clock that was wild is told as the end of time.
fn minute_start(minute: i64) -> Timestamp {
    let end = if minute < 0 { Timestamp::MIN } else { Timestamp::MAX };
    minute.checked_mul(60).and_then(|second| Timestamp::from_second(second).ok()).unwrap_or(end)
}

/// Whether a record is of the time that is asked for.
fn in_window(time_ms: i64, query: &Query) -> bool {
    query.from.is_none_or(|from| time_ms >= from.as_millisecond())
        && query.to.is_none_or(|to| time_ms < to.as_millisecond())
}

/// A class as a word, as on the wire.
fn class_word(class: Class) -> &'static str {
    match class {
        Class::Scans => "scans",
        Class::Events => "events",
        Class::Metrics => "metrics",
        Class::Logs => "logs",
    }
}

fn class_of(word: &str) -> Option<Class> {
    [Class::Scans, Class::Events, Class::Metrics, Class::Logs].into_iter().find(|class| class_word(*class) == word)
}

fn reason_of(word: &str) -> GapReason {
    let known = [GapReason::Shed, GapReason::Damaged, GapReason::HubLost, GapReason::OutboxLost];
    known.into_iter().find(|reason| reason.as_str() == word).unwrap_or(GapReason::Other)
}

/// A number as databases keep it. The link lets none through that is larger.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The same, read back.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
