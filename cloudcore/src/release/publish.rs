//! Takes a publication to a hub: content first, then the metadata that names it.
//!
//! Content goes by digest and only what is not there yet, so an upload that broke off is simply
//! started again. The hub verifies everything once more and refuses metadata whose content it lacks.

use std::{fs, future::Future, path::Path};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use proto::{digest::Digest, link::message::MetadataReply};

use super::repository::Publication;

/// Transfers at the same time.
const TRANSFERS: usize = 4;

/// Where releases are published: a hub, seen from outside.
pub trait Destination {
    /// All metadata that it serves.
    fn metadata(&self) -> impl Future<Output = anyhow::Result<MetadataReply>>;
    /// Whether it holds content.
    fn has_blob(&self, digest: &Digest) -> impl Future<Output = anyhow::Result<bool>>;
    /// Gives it content.
    fn put_blob(&self, digest: &Digest, path: &Path) -> impl Future<Output = anyhow::Result<()>>;
    /// Gives it metadata.
    fn publish(&self, reply: &MetadataReply) -> impl Future<Output = anyhow::Result<()>>;
}

/// What an upload did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uploaded {
    /// Blobs that had to be sent.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Blobs that were there.
    pub present: u64,
}

/// Uploads what is missing, then publishes. `progress` is told after every blob.
///
/// # Errors
/// What could not be sent, and why the hub refused.
pub async fn upload(
    hub: &impl Destination,
    publication: &Publication,
    mut progress: impl FnMut(&Uploaded),
) -> anyhow::Result<Uploaded> {
    let mut uploaded = Uploaded::default();
    {
        let transfers = stream::iter(&publication.blobs).map(|(digest, path)| send(hub, digest, path));
        let mut transfers = std::pin::pin!(transfers.buffer_unordered(TRANSFERS));
        while let Some(sent) = transfers.try_next().await? {
            match sent {
                None => uploaded.present += 1,
                Some(bytes) => {
                    uploaded.sent += 1;
                    uploaded.sent_bytes += bytes;
                }
            }
            progress(&uploaded);
        }
    }
    hub.publish(&publication.reply).await?;
    Ok(uploaded)
}

/// Sends one blob unless it is there; yields its bytes when it was sent.
async fn send(hub: &impl Destination, digest: &Digest, path: &Path) -> anyhow::Result<Option<u64>> {
    if hub.has_blob(digest).await? {
        return Ok(None);
    }
    let bytes = fs::metadata(path).map(|meta| meta.len()).map_err(|e| {
        anyhow::anyhow!(
            "neither the hub nor this repository has {digest} ({}: {e}); run `crossdock release build` again for the release that needs it (`crossdock release verify` names it)",
            path.display()
        )
    })?;
    match hub.put_blob(digest, path).await {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if is_damaged(digest, path) => Err(error.context(format!(
            "{} is damaged in this repository; run `crossdock release build` again for the release that needs it (`crossdock release verify` names it)",
            path.display()
        ))),
        Err(error) => Err(error),
    }
}

fn is_damaged(digest: &Digest, path: &Path) -> bool {
    fs::File::open(path).and_then(Digest::of_reader).is_ok_and(|(found, _)| found != *digest)
}
