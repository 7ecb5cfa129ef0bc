//! Output of a workload, fetched from its node over a stream that the hub opens. Called by the API
//! through [`crate::hub::Hub::node_logs`].

use bytes::Bytes;
use proto::{
    link::{
        frame::{self, FrameError, MAX_REQUEST_BYTES},
        message::{HubRequest, LogsHeader, LogsRequest},
        priority,
    },
    name::Name,
};
use tokio::sync::mpsc;

use super::{PATIENCE, sessions::Sessions};

/// Pieces between the node and a reader that is slow.
const QUEUE: usize = 16;
/// Largest piece, in bytes.
const PIECE_BYTES: usize = 64 << 10;

/// Why there is no output.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// The node is not there.
    #[error("node {0} is not connected, and its output is kept on the node; try again when it is back")]
    NotConnected(Name),
    /// The node has no such app.
    #[error("{0}")]
    NotFound(String),
    /// The node went away or erred.
    #[error("the output ended early: the connection to the node failed ({0})")]
    Failed(String),
    /// The node is too slow.
    #[error("the node did not answer in time; try again")]
    TimedOut,
}

fn failed(error: impl std::fmt::Display) -> LogsError {
    LogsError::Failed(error.to_string())
}

/// Asks the node and passes on what it sends. Dropping the receiver ends it.
pub(crate) async fn fetch(
    sessions: &Sessions,
    node: &Name,
    request: LogsRequest,
) -> Result<mpsc::Receiver<Result<Bytes, LogsError>>, LogsError> {
    let connection = sessions.connection(node).ok_or_else(|| LogsError::NotConnected(node.clone()))?;
    let ask = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(failed)?;
        let _ = send.set_priority(priority::LOGS); // fails only on a stream that is closed
        frame::write(&mut send, &HubRequest::Logs(request), MAX_REQUEST_BYTES).await.map_err(failed)?;
        let _ = send.finish(); // likewise
        let header = frame::read::<LogsHeader>(&mut recv, MAX_REQUEST_BYTES).await;
        Ok((header.map_err(|e: FrameError| failed(e))?, recv))
    };
    let (header, recv) = tokio::time::timeout(PATIENCE, ask).await.map_err(|_| LogsError::TimedOut)??;
    if let LogsHeader::NotFound { message } = header {
        return Err(LogsError::NotFound(message.chars().take(500).collect()));
    }
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(pass_on(recv, sender));
    Ok(receiver)
}

async fn pass_on(mut recv: quinn::RecvStream, sender: mpsc::Sender<Result<Bytes, LogsError>>) {
    loop {
        // `read_chunk` is cancel safe. A reader that left is noticed even while the node is quiet.
        let piece = tokio::select! {
            biased;
            () = sender.closed() => break,
            piece = recv.read_chunk(PIECE_BYTES, true) => piece,
        };
        let item = match piece {
            Ok(Some(chunk)) => Ok(chunk.bytes),
            Ok(None) => break,
            Err(error) => Err(failed(error)),
        };
        let last = item.is_err();
        if sender.send(item).await.is_err() || last {
            break;
        }
    }
    let _ = recv.stop(proto::link::CloseCode::Done.code()); // it may have ended by itself
}
