//! The hub as a source of metadata and blobs: one stream a request on the current connection.

use std::time::Duration;

use proto::{
    env::BoxFuture,
    link::{
        frame::{self, MAX_METADATA_BYTES, MAX_REQUEST_BYTES},
        message::{AgentRequest, BlobRequest, MetadataReply, MetadataRequest},
        priority,
    },
    watch,
};
use quinn::RecvStream;
use tokio::time::timeout;

use super::Live;
use crate::fetch::{Reader, Source, SourceError};

/// A metadata reply may be large and the line slow.
const METADATA_TIMEOUT: Duration = Duration::from_secs(120);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Asks over whichever connection is there.
#[derive(Debug, Clone)]
pub struct HubSource {
    live: watch::Receiver<Option<Live>>,
}

fn failed(error: impl std::fmt::Display) -> SourceError {
    SourceError::Failed(error.to_string())
}

impl HubSource {
    pub(super) fn new(live: watch::Receiver<Option<Live>>) -> HubSource {
        HubSource { live }
    }

    async fn ask(&self, request: AgentRequest, priority: i32) -> Result<RecvStream, SourceError> {
        let connection = self.live.borrow().as_ref().map(|l| l.connection.clone()).ok_or(SourceError::Offline)?;
        let asked = timeout(REQUEST_TIMEOUT, async {
            let (mut send, receive) = connection.open_bi().await.map_err(failed)?;
            send.set_priority(priority).map_err(failed)?;
            frame::write(&mut send, &request, MAX_REQUEST_BYTES).await.map_err(failed)?;
            send.finish().map_err(failed)?;
            Ok(receive)
        });
        asked.await.map_err(failed)?
    }
}

impl Source for HubSource {
    fn metadata(&self, have: MetadataRequest) -> BoxFuture<'_, Result<MetadataReply, SourceError>> {
        Box::pin(async move {
            let mut receive = self.ask(AgentRequest::Metadata(have), priority::CONTROL).await?;
            let reply = timeout(METADATA_TIMEOUT, frame::read(&mut receive, MAX_METADATA_BYTES)).await;
            reply.map_err(failed)?.map_err(failed)
        })
    }

    fn blob(&self, request: BlobRequest) -> BoxFuture<'_, Result<Reader, SourceError>> {
        Box::pin(async move {
            let receive = self.ask(AgentRequest::Blob(request), priority::ARTIFACTS).await?;
            Ok(Box::new(receive) as Reader)
        })
    }
}
