//! One lane of one node's session: reads what the node sends, offers it to the writer, tells what became
//! durable. Started by `link::serve` for each `AgentRequest::Records`; ends with its stream or session.
//!
//! A lane has at most one sealed batch in hand. It is opened only once the writer's queue has room for
//! its content; until then nothing more is read, and QUIC's flow control holds the node back. What breaks
//! the protocol closes the session, with the reason in the close.

#[cfg(test)]
mod tests;

use bytes::Bytes;
use proto::{
    link::{
        frame::{self, FrameError},
        priority,
    },
    name::Name,
    stream::{
        MAX_BATCH_BYTES, MAX_RECORD_BYTES,
        batch::{Batch, MAX_SEALED_BYTES},
        message::{Down, Lane, MAX_FRAME_BYTES, RecordsRequest, Up},
    },
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use super::ingest::{Acks, Health, Ingest, IngestError, Offers, Opened};
use crate::link::serve::Peer;

/// Characters of a reason that a node is told.
const MAX_REASON_CHARS: usize = 300;

/// Why a lane ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaneError {
    /// The node broke the protocol: its session is closed.
    #[error("{0}")]
    Protocol(String),
    /// The stream or the session is over.
    #[error("{0}")]
    Over(String),
}

impl From<FrameError> for LaneError {
    fn from(error: FrameError) -> LaneError {
        match error {
            FrameError::TooLarge { .. } | FrameError::Malformed(_) => {
                LaneError::Protocol(format!("a message of a lane is malformed: {error}"))
            }
            FrameError::Ended | FrameError::Io(_) => LaneError::Over(error.to_string()),
        }
    }
}

impl From<IngestError> for LaneError {
    fn from(error: IngestError) -> LaneError {
        match error {
            IngestError::TooManyStreams(_) | IngestError::Malformed(_) => LaneError::Protocol(error.to_string()),
            IngestError::Replaced => LaneError::Over(error.to_string()),
        }
    }
}

/// Serves a lane until the node ends it.
pub(crate) async fn serve(
    ingest: &Ingest,
    peer: &Peer,
    request: RecordsRequest,
    send: &mut quinn::SendStream,
    recv: &mut quinn::RecvStream,
) -> Result<(), LaneError> {
    let priority = match request.lane {
        Lane::Live => priority::SCANS,
        Lane::Backlog => priority::LOGS,
    };
    let _ = send.set_priority(priority); // fails only on a closed stream
    let opened = ingest.opened(peer.session, &peer.name, &peer.site, request.lane, &request.held).await?;
    let Opened { marks, offers, acks } = opened;
    frame::write(send, &Down::Marks { marks }, MAX_FRAME_BYTES).await?;
    // Neither is dropped but with the stream, so that neither needs to be cancel safe.
    tokio::select! {
        biased;
        ended = take(&offers, recv) => ended,
        ended = tell(ingest, acks, send) => ended,
    }
}

/// Takes what the node sends.
async fn take(offers: &Offers, recv: &mut (impl AsyncRead + Unpin)) -> Result<(), LaneError> {
    loop {
        match frame::read::<Up>(recv, MAX_FRAME_BYTES).await {
            Ok(Up::Batch { stream, first, count, bytes }) => {
                let sealed = sealed(recv, &stream, bytes).await?;
                let room = offers.room(sealed.len() + MAX_BATCH_BYTES + MAX_RECORD_BYTES).await;
                let batch = open(&stream, first, count, &sealed)?;
                offers.batch(room, &stream, batch, sealed)?;
            }
            Ok(Up::Gap(gap)) => offers.gap(gap).await?,
            Ok(Up::Lag { streams }) => offers.lag(&streams)?,
            Ok(Up::Open(held)) => offers.open(&held)?,
            Ok(Up::Unknown) => {}
            Err(FrameError::Ended) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads the sealed batch that follows its frame. Memory grows with what arrives, not with what is announced.
async fn sealed(recv: &mut (impl AsyncRead + Unpin), stream: &Name, bytes: u32) -> Result<Bytes, LaneError> {
    let announced = usize::try_from(bytes).unwrap_or(usize::MAX);
    if announced > MAX_SEALED_BYTES {
        return Err(LaneError::Protocol(format!(
            "a batch of {stream} with {announced} bytes is over the bound of {MAX_SEALED_BYTES}"
        )));
    }
    let mut sealed = Vec::with_capacity(announced.min(16 << 10));
    let got = recv.take(u64::from(bytes)).read_to_end(&mut sealed).await.map_err(FrameError::Io)?;
    if got < announced {
        return Err(LaneError::Over(format!("a batch of {stream} ends after {got} of {announced} bytes")));
    }
    Ok(sealed.into())
}

/// Opens a sealed batch; frame and content must agree.
fn open(stream: &Name, first: u64, count: u64, sealed: &[u8]) -> Result<Batch, LaneError> {
    let wrong = |what: String| LaneError::Protocol(format!("a batch of {stream} from {first} on: {what}"));
    let batch = Batch::open(sealed).map_err(|e| wrong(e.to_string()))?;
    let found = (batch.first, batch.records.len() as u64);
    if found != (first, count) {
        return Err(wrong(format!("its frame says {count} records, it holds {} from {} on", found.1, found.0)));
    }
    if let Some(large) = batch.records.iter().find(|r| r.bytes.len() > MAX_RECORD_BYTES) {
        return Err(wrong(format!("a record of {} bytes is over the bound of {MAX_RECORD_BYTES}", large.bytes.len())));
    }
    Ok(batch)
}

/// Tells what became durable, and that the sink is down.
async fn tell(ingest: &Ingest, mut acks: Acks, send: &mut (impl AsyncWrite + Unpin)) -> Result<(), LaneError> {
    let mut health = ingest.health();
    health.mark_changed();
    let mut told = false;
    loop {
        // Both arms are cancel safe.
        let message = tokio::select! {
            biased;
            marks = acks.next() => Down::Acks { marks: marks? },
            Ok(()) = health.changed() => {
                let down = match &*health.borrow_and_update() {
                    Health::Down(why) => Some(why.chars().take(MAX_REASON_CHARS).collect::<String>()),
                    Health::Starting | Health::Up => None,
                };
                let news = down.is_some() && !told;
                told = down.is_some();
                match down {
                    Some(reason) if news => Down::Held { reason },
                    _ => continue,
                }
            }
        };
        frame::write(send, &message, MAX_FRAME_BYTES).await?;
    }
}
