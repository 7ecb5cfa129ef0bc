//! What goes over the link for streams.
//!
//! The agent opens one QUIC stream a [`Lane`] with `AgentRequest::Records` and sends [`Up`] frames on it;
//! a [`Up::Batch`] frame is followed by the sealed batch itself. The hub answers on the same stream with
//! [`Down`] frames: [`Down::Marks`] once, first, then [`Down::Acks`] whenever something became durable.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Class, Gap, Mark, StreamKey};
use crate::name::Name;

/// Bound of a frame, in bytes.
pub const MAX_FRAME_BYTES: usize = 256 << 10;

/// Opens a lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordsRequest {
    /// Which lane.
    pub lane: Lane,
    /// Everything that the outbox holds or will go on with.
    pub held: Vec<Held>,
}

/// What goes first on the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lane {
    /// What is new since the session began, by class; priority of scans.
    Live,
    /// What waited longer, within the byte budget; priority of logs. A lane of a newer version reads as this one.
    #[serde(other)]
    Backlog,
}

/// A stream as the outbox has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// The stream.
    #[serde(flatten)]
    pub key: StreamKey,
    /// Its class.
    pub class: Class,
    /// The first sequence that the outbox still has; equal to `next` when it has none.
    pub first: u64,
    /// The sequence of the next record.
    pub next: u64,
}

/// How far a stream is behind, as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lag {
    /// The stream.
    #[serde(flatten)]
    pub key: StreamKey,
    /// The sequence of the next record.
    pub next: u64,
    /// Records that are not acknowledged.
    pub records: u64,
    /// When the oldest of them was taken, by the node's clock.
    #[serde(default)]
    pub oldest: Option<Timestamp>,
}

/// From agent to hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Up {
    /// Records; the sealed batch follows the frame.
    #[serde(rename_all = "camelCase")]
    Batch {
        /// Name of the stream; epoch and sequences stand in the batch.
        stream: Name,
        /// Sequence of the first record.
        first: u64,
        /// How many.
        count: u64,
        /// Bytes of the sealed batch.
        bytes: u32,
    },
    /// Records that will never come.
    Gap(Gap),
    /// How far streams are behind; every few seconds, on the live lane.
    #[serde(rename_all = "camelCase")]
    Lag {
        /// Streams that hold something, or changed.
        streams: Vec<Lag>,
    },
    /// A stream that began after the lane was opened.
    Open(Held),
    /// Of a newer version: skipped.
    #[serde(other)]
    Unknown,
}

/// From hub to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Down {
    /// What is durable of the streams that were named; a stream without mark is new to the hub.
    Marks {
        /// One a stream.
        marks: Vec<Mark>,
    },
    /// What became durable: each the whole mark of its stream.
    Acks {
        /// One a stream that changed.
        marks: Vec<Mark>,
    },
    /// The hub cannot take records now: its sink is down or full. It goes on reading when it can; this only tells.
    Held {
        /// For people.
        reason: String,
    },
    /// Of a newer version: skipped.
    #[serde(other)]
    Unknown,
}
