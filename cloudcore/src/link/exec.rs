//! A person's way to a workload: a stream to its node, which the hub hands through and cannot read, see
//! [`proto::exec`]. Called by the API through [`crate::hub::Hub::node_exec`].

use proto::{
    link::{
        frame::{self, MAX_REQUEST_BYTES},
        message::{ExecHeader, ExecRequest, HubRequest},
        priority,
    },
    name::Name,
};
use quinn::{ReadError, RecvStream, SendStream};

use super::{PATIENCE, sessions::Sessions};

/// Why there is no way.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The node is not there.
    #[error("node {0} is not connected; try again when it is back")]
    NotConnected(Name),
    /// The node lets nobody run commands in it, or it does not run.
    #[error("{0}")]
    Refused(String),
    /// The agent of the node is older than this.
    #[error("the agent of node {0} is too old to run commands; bring it up to date")]
    TooOld(Name),
    /// The node went away or erred.
    #[error("the connection to the node failed ({0})")]
    Failed(String),
    /// The node is too slow.
    #[error("the node did not answer in time; try again")]
    TimedOut,
}

fn failed(error: impl std::fmt::Display) -> ExecError {
    ExecError::Failed(error.to_string())
}

/// Asks the node for a way to an app.
pub(crate) async fn open(sessions: &Sessions, node: &Name, app: Name) -> Result<(RecvStream, SendStream), ExecError> {
    let connection = sessions.connection(node).ok_or_else(|| ExecError::NotConnected(node.clone()))?;
    let ask = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(failed)?;
        let _ = send.set_priority(priority::LOGS); // fails only on a stream that is closed
        frame::write(&mut send, &HubRequest::Exec(ExecRequest { app }), MAX_REQUEST_BYTES).await.map_err(failed)?;
        let header = frame::read::<ExecHeader>(&mut recv, MAX_REQUEST_BYTES).await;
        match header {
            Ok(ExecHeader::Ready) => Ok((recv, send)),
            Ok(ExecHeader::Refused { message }) => Err(ExecError::Refused(message.chars().take(500).collect())),
            // It does not know the request.
            Err(frame::FrameError::Io(e)) if is_reset(&e) => Err(ExecError::TooOld(node.clone())),
            Err(error) => Err(failed(error)),
        }
    };
    tokio::time::timeout(PATIENCE, ask).await.map_err(|_| ExecError::TimedOut)?
}

fn is_reset(error: &std::io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<ReadError>());
    matches!(cause, Some(ReadError::Reset(_)))
}
