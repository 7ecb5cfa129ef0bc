//! Streams: durable, ordered records from a node to the hub, counted through every outage.
//!
//! ```text
//! producer --append--> outbox (disk, then the answer) --Batch--> hub's sink (disk, then Ack) --Ack--> outbox deletes
//! ```
//!
//! A record is known by `(node, stream, epoch, sequence)`. Sequences are given by the agent's outbox,
//! from 0, without holes; an agent that lost its outbox, or found an older copy of it, begins a new
//! epoch. The hub remembers which sequences are durable as a [`Mark`]; whatever is sent again is told
//! by that, never by time. What is lost is a [`Gap`]: it takes the place of its records, and is counted.
//!
//! | module | what it holds |
//! |---|---|
//! | [`batch`] | records as bytes: on the outbox's disk, on the wire, in the hub's sink |
//! | [`ranges`] | sets of sequences |
//! | [`message`] | what goes over the link |
//! | [`delivery`] | the agent's machine: what to send next, what may be deleted |
//! | [`receipt`] | the hub's machine: what of an offer is new |
//! | [`event`] | what agents tell as events |

pub mod batch;
pub mod delivery;
pub mod event;
pub mod message;
pub mod ranges;
pub mod receipt;

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::name::Name;
use ranges::Ranges;

/// Bytes of one record.
pub const MAX_RECORD_BYTES: usize = 256 << 10;
/// Bytes of the records of one batch, uncompressed; a batch holds at least one record whatever its size.
pub const MAX_BATCH_BYTES: usize = 512 << 10;
/// Records of one batch.
pub const MAX_BATCH_RECORDS: usize = 4096;
/// Streams of one node, and epochs of one stream that still have something to deliver.
pub const MAX_STREAMS: usize = 64;
/// Pieces of the set of durable sequences of one stream. A node that comes back with a backlog sends live
/// records ahead of it and so leaves a hole; with this many holes it sends in order until some are closed.
pub const MAX_PIECES: usize = 32;

/// A life of a node's outbox. Greater is later where the node's clock was right; it tells lives apart in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// A new one: seconds since 1970, then 20 random bits; below 2^53, so that every JSON reader keeps it whole.
    #[must_use]
    pub fn new(now: Timestamp, random: u32) -> Epoch {
        let seconds = u64::try_from(now.as_second()).unwrap_or(0) & 0xFFFF_FFFF;
        Epoch(seconds << 20 | u64::from(random) & 0xF_FFFF)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A stream of one node in one epoch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamKey {
    /// Name of the stream, such as `scans`.
    pub stream: Name,
    /// Life of the outbox.
    pub epoch: Epoch,
}

impl fmt::Display for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.stream, self.epoch)
    }
}

/// How a stream is treated: order on the line, and what happens when the disk's share is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Never shed: a full outbox pushes back on the producer. First on the line.
    Scans,
    /// Never shed either; after the scans.
    Events,
    /// The oldest are shed, counted.
    Metrics,
    /// The oldest are shed first, counted; last on the line. A class of a newer version reads as this one.
    #[serde(other)]
    Logs,
}

impl Class {
    /// Whether the oldest records may be given up when space is short.
    #[must_use]
    pub fn sheds(self) -> bool {
        matches!(self, Class::Metrics | Class::Logs)
    }
}

/// Which sequences of a stream are durable at the hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The stream.
    #[serde(flatten)]
    pub key: StreamKey,
    /// Its durable sequences.
    pub durable: Ranges,
}

/// Records that will never come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The stream.
    #[serde(flatten)]
    pub key: StreamKey,
    /// First sequence that is lost.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Why.
    pub reason: GapReason,
}

/// Why records are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GapReason {
    /// Given up for space, by the stream's class.
    Shed,
    /// Damaged on the node's disk.
    Damaged,
    /// The hub had acknowledged them and does not have them any more: it was restored from a backup.
    HubLost,
    /// The node lost its outbox with them in it.
    OutboxLost,
    /// Of a newer version.
    #[serde(other)]
    Other,
}

impl GapReason {
    /// The word of the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            GapReason::Shed => "shed",
            GapReason::Damaged => "damaged",
            GapReason::HubLost => "hub-lost",
            GapReason::OutboxLost => "outbox-lost",
            GapReason::Other => "other",
        }
    }
}
