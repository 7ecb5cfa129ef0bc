//! Streams that an agent opens: for trust metadata, for artifacts, to deliver records. One task a stream,
//! started by `link::session`.

use std::sync::Arc;

use bytes::Bytes;
use proto::{
    link::{
        CHUNK_BYTES, CloseCode,
        frame::{self, FrameError, MAX_METADATA_BYTES, MAX_REQUEST_BYTES},
        message::{AgentRequest, BlobHeader, BlobRequest, CHUNK_ZSTD},
        priority,
    },
    name::Name,
    object::EventType,
};

use super::{PATIENCE, budget::Budget};
use crate::{
    blobs::{BlobError, BlobReader, StoredChunk},
    events,
    hub::Hub,
    streams::lane::{self, LaneError},
};

/// Who opened a stream.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// By its certificate.
    pub(crate) name: Name,
    /// As the store has it.
    pub(crate) site: Name,
    /// Number of the session; a newer one has a greater.
    pub(crate) session: u64,
}

/// What bounds the bulk traffic of one session.
#[derive(Clone)]
pub(crate) struct Bounds {
    pub(crate) node: Arc<Budget>,
    pub(crate) site: Arc<Budget>,
    pub(crate) fleet: Arc<Budget>,
}

/// Why a stream was given up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The peer broke the protocol: its connection is closed.
    #[error("{0}")]
    Protocol(String),
    /// Everything else ends the stream only.
    #[error("{0}")]
    Stream(String),
}

fn stream(error: impl std::fmt::Display) -> ServeError {
    ServeError::Stream(error.to_string())
}

/// Answers one request.
pub(crate) async fn serve(
    hub: &Hub,
    peer: &Peer,
    bounds: &Bounds,
    mut send: quinn::SendStream,
    mut recv: quinn::RecvStream,
) -> Result<(), ServeError> {
    let request = frame::read::<AgentRequest>(&mut recv, MAX_REQUEST_BYTES);
    let request = match tokio::time::timeout(PATIENCE, request).await {
        Ok(Ok(request)) => request,
        Ok(Err(error @ (FrameError::TooLarge { .. } | FrameError::Malformed(_)))) => {
            return Err(ServeError::Protocol(format!("a request is malformed: {error}")));
        }
        Ok(Err(error)) => return Err(stream(error)),
        Err(_) => return Err(stream("the request took too long")),
    };
    match request {
        AgentRequest::Metadata(request) => {
            let _ = send.set_priority(priority::CONTROL); // fails only on a closed stream
            let reply = hub.trust().reply(&request);
            frame::write(&mut send, &reply, MAX_METADATA_BYTES).await.map_err(stream)?;
        }
        AgentRequest::Blob(request) => {
            let _ = send.set_priority(priority::ARTIFACTS);
            blob(hub, bounds, &mut send, request).await?;
        }
        AgentRequest::Records(request) => {
            let served = lane::serve(hub.streams().ingest(), peer, request, &mut send, &mut recv).await;
            served.map_err(|error| match error {
                LaneError::Protocol(why) => ServeError::Protocol(why),
                LaneError::Over(why) => ServeError::Stream(why),
            })?;
        }
        AgentRequest::Unknown => {
            let _ = send.reset(CloseCode::ProtocolError.code());
            return Ok(());
        }
    }
    let _ = send.finish();
    Ok(())
}

async fn blob(
    hub: &Hub,
    bounds: &Bounds,
    send: &mut quinn::SendStream,
    request: BlobRequest,
) -> Result<(), ServeError> {
    let (header, reader) = match open(hub, request).await {
        Ok(reader) => (BlobHeader::Found { size: reader.size() }, Some(reader)),
        Err(message) => (BlobHeader::NotFound { message }, None),
    };
    frame::write(send, &header, MAX_REQUEST_BYTES).await.map_err(stream)?;
    let Some(reader) = reader else { return Ok(()) };
    for number in request.offset / CHUNK_BYTES as u64..reader.chunks() {
        let sent = match reader.chunk(number).await {
            Ok(stored) => chunk(bounds, send, stored).await,
            Err(error) => {
                damage(hub, &error).await;
                Err(stream(error))
            }
        };
        if let Err(error) = sent {
            let _ = send.reset(CloseCode::Overload.code()); // the node must not take it for the end
            return Err(error);
        }
    }
    Ok(())
}

async fn open(hub: &Hub, request: BlobRequest) -> Result<BlobReader, String> {
    if !request.offset.is_multiple_of(CHUNK_BYTES as u64) {
        return Err(format!("offset {} is no multiple of {CHUNK_BYTES}", request.offset));
    }
    let reader = match hub.blobs().reader(request.digest).await {
        Ok(reader) => reader,
        Err(error) => {
            damage(hub, &error).await;
            return Err(error.to_string());
        }
    };
    if request.offset > reader.size() {
        return Err(format!("offset {} lies behind the end, {} bytes", request.offset, reader.size()));
    }
    Ok(reader)
}

/// Damage on the hub's disk is for an operator to know.
async fn damage(hub: &Hub, error: &BlobError) {
    if let BlobError::Damaged { digest, .. } = error {
        let (name, text) = (digest.to_string(), error.to_string());
        events::record(hub.store(), hub.env(), "Blob", &name, EventType::Warning, "Damaged", &text, "hub").await;
    }
}

async fn chunk(bounds: &Bounds, send: &mut quinn::SendStream, stored: StoredChunk) -> Result<(), ServeError> {
    bounds.node.take(stored.content.len()).await;
    bounds.site.take(stored.content.len()).await;
    bounds.fleet.take(stored.content.len()).await;
    let flag = if stored.zstd { CHUNK_ZSTD } else { 0 };
    // A stored chunk never has more than CHUNK_BYTES.
    let header = u32::try_from(stored.content.len()).map_err(stream)? | flag;
    let mut pieces = [Bytes::copy_from_slice(&header.to_be_bytes()), stored.content];
    send.write_all_chunks(&mut pieces).await.map_err(stream)
}
