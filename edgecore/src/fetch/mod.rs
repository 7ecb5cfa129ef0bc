//! Getting a release onto the disk: reserved, resumed by range, bounded, verified, one rename.
//!
//! ```text
//! releases/<digest>.tmp/manifest.json, tree/.., parts/<digest>     while it is fetched; survives a crash
//! releases/<digest>/manifest.json, tree/..                         whole and flushed, never changed again
//! ```
//!
//! [`Fetcher::stage`] is called by the app's task beside everything else and may be dropped at any
//! moment; called again it goes on where it was. Where content comes from is a [`Source`]: the link in
//! the agent, a map in the tests.

mod blob;
mod build;
pub(crate) mod space;
pub mod tree;

#[cfg(test)]
pub(crate) mod tests;

use std::{fmt, fs, io, path::PathBuf, sync::Arc};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use proto::{
    digest::Digest,
    durable::DurableError,
    env::{BoxFuture, Env},
    link::message::{BlobRequest, MetadataReply, MetadataRequest},
    name::ReleaseName,
    object::Progress,
    release::{MAX_MANIFEST_BYTES, Manifest, ManifestError},
    watch,
};
use tokio::{io::AsyncRead, sync::Semaphore};

use self::{blob::Expect, build::Download};
pub use self::{space::Space, tree::TreeError};

/// Blobs on their way at once, over all apps.
pub const PARALLEL_BLOBS: usize = 4;

/// Bytes of an answer, from its [`proto::link::message::BlobHeader`] on.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// Where metadata and blobs come from. Nothing that it yields is believed.
pub trait Source: Send + Sync + fmt::Debug {
    /// Metadata newer than what we have.
    fn metadata(&self, have: MetadataRequest) -> BoxFuture<'_, Result<MetadataReply, SourceError>>;
    /// A blob from an offset on.
    fn blob(&self, request: BlobRequest) -> BoxFuture<'_, Result<Reader, SourceError>>;
}

/// The source did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// There is no session with the hub.
    #[error("the hub is out of reach")]
    Offline,
    /// The session broke or the answer was unreadable.
    #[error("the hub's answer broke off: {0}")]
    Failed(String),
}

/// A release could not be staged. Whatever ran before still runs.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The source did not answer, or broke off; what arrived is kept.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source does not have a blob.
    #[error("the hub does not hold {digest}: {message}; publish the release again")]
    NotFound {
        /// Which.
        digest: Digest,
        /// What the hub said.
        message: String,
    },
    /// Content is not what was signed for.
    #[error("{digest} is refused: {problem}; the hub's copy or the line was tampered with or damaged")]
    Wrong {
        /// Which blob.
        digest: Digest,
        /// What is wrong with it.
        problem: String,
    },
    /// The manifest breaks a rule.
    #[error("manifest is refused: {0}")]
    Manifest(#[from] ManifestError),
    /// The box is of none of the hardware classes.
    #[error("release is for {wants}, this box is {has}")]
    WrongHardware {
        /// Classes of the release.
        wants: String,
        /// Classes of the box.
        has: String,
    },
    /// Too little disk.
    #[error(
        "{} of disk are needed and {} are free beside the {} kept in reserve: free some space below {}",
        space::people(*.needed), space::people(*.free), space::people(space::MARGIN_BYTES), path.display()
    )]
    DiskFull {
        /// Bytes that the release still needs.
        needed: u64,
        /// Bytes that may be used.
        free: u64,
        /// Folder on that disk.
        path: PathBuf,
    },
    /// The tree is not what was written.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A file could not be written.
    #[error("could not write below {}: {source}", path.display())]
    Io {
        /// Folder of the release.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be flushed or replaced.
    #[error(transparent)]
    Durable(#[from] DurableError),
}

impl FetchError {
    /// Whether the disk filled up.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            FetchError::DiskFull { .. } => true,
            FetchError::Io { source, .. } => space::is_full(source),
            FetchError::Durable(e) => e.is_disk_full(),
            _ => false,
        }
    }
}

/// What to stage.
#[derive(Debug, Clone)]
pub struct Job {
    /// Which release.
    pub release: ReleaseName,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Bytes of its manifest, when the signatures name them.
    pub manifest_bytes: Option<u64>,
    /// Folder of the app's releases.
    pub releases: PathBuf,
    /// Releases whose files may be copied instead of fetched.
    pub reuse: Vec<Digest>,
    /// Hardware classes of the box.
    pub hardware: Vec<String>,
}

/// Fetches releases. One for the whole agent: it bounds what is on its way at once.
#[derive(Debug)]
pub struct Fetcher {
    env: Env,
    source: Arc<dyn Source>,
    space: Space,
    permits: Semaphore,
}

impl Fetcher {
    /// Fetches from `source` into what `space` allows.
    #[must_use]
    pub fn new(env: Env, source: Arc<dyn Source>, space: Space) -> Fetcher {
        Fetcher { env, source, space, permits: Semaphore::new(PARALLEL_BLOBS) }
    }

    /// Makes `releases/<digest>` whole, or says why not. Cancel safe: what is fetched is kept.
    ///
    /// # Errors
    /// What hinders it; calling again later is always right.
    pub async fn stage(&self, job: &Arc<Job>, progress: &watch::Sender<Progress>) -> Result<(), FetchError> {
        let shared = job.clone();
        if let Some(manifest) = self.env.blocking.run(move || whole(&shared)).await? {
            return check_hardware(&manifest, &job.hardware);
        }
        let staged = self.fill(job, progress).await;
        if staged.as_ref().is_err_and(FetchError::is_disk_full) {
            // Others may need the room more than this release that does not fit.
            let folder = tree::staging_folder(&job.releases, job.digest);
            self.env.blocking.run(move || fs::remove_dir_all(folder)).await.ok();
        }
        staged
    }

    async fn fill(&self, job: &Arc<Job>, progress: &watch::Sender<Progress>) -> Result<(), FetchError> {
        let manifest = Arc::new(self.manifest(job).await?);
        check_hardware(&manifest, &job.hardware)?;
        let total_bytes = manifest.total_bytes();
        let (shared, described) = (job.clone(), manifest.clone());
        let survey = self.env.blocking.run(move || build::survey(&shared, &described)).await?;
        let _reserved = self.space.reserve(&job.releases, survey.needed_bytes)?;
        progress.send_replace(Progress { done_bytes: survey.done_bytes, total_bytes });

        let mut downloads = survey.downloads;
        for copy in survey.copies {
            let shared = job.clone();
            let (copy, copied) = self.env.blocking.run(move || (copy.clone(), build::copy(&shared, &copy))).await;
            match copied? {
                true => done(progress, copy.size()),
                false => downloads.push(copy.into_download()),
            }
        }
        stream::iter(downloads)
            .map(|download| self.file(job, download, progress))
            .buffer_unordered(PARALLEL_BLOBS)
            .try_collect::<()>()
            .await?;
        let shared = job.clone();
        self.env.blocking.run(move || build::finish(&shared, &manifest)).await
    }

    /// The manifest, fetched unless it is there, by its digest.
    async fn manifest(&self, job: &Arc<Job>) -> Result<Manifest, FetchError> {
        let folder = tree::staging_folder(&job.releases, job.digest);
        let part = build::part(&folder, job.digest);
        let shared = job.clone();
        if !self.env.blocking.run(move || build::prepare(&shared)).await? {
            let expect = job.manifest_bytes.map_or(Expect::AtMost(MAX_MANIFEST_BYTES), |bytes| {
                if bytes <= MAX_MANIFEST_BYTES { Expect::Exactly(bytes) } else { Expect::AtMost(MAX_MANIFEST_BYTES) }
            });
            self.download(job.digest, expect, part, &|_| {}).await?;
        }
        let shared = job.clone();
        self.env.blocking.run(move || build::place_manifest(&shared)).await
    }

    async fn file(
        &self,
        job: &Arc<Job>,
        download: Download,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), FetchError> {
        let part = build::part(&tree::staging_folder(&job.releases, job.digest), download.digest);
        self.download(download.digest, Expect::Exactly(download.size), part, &|bytes| done(progress, bytes)).await?;
        let job = job.clone();
        self.env.blocking.run(move || build::place(&job, &download)).await
    }

    async fn download(
        &self,
        digest: Digest,
        expect: Expect,
        part: PathBuf,
        arrived: &(dyn Fn(u64) + Sync),
    ) -> Result<(), FetchError> {
        let _permit = self.permits.acquire().await; // never closed
        blob::download(&self.env, &*self.source, digest, expect, part, arrived).await
    }
}

fn done(progress: &watch::Sender<Progress>, bytes: u64) {
    progress.send_modify(|p| p.done_bytes = p.done_bytes.saturating_add(bytes).min(p.total_bytes));
}

/// The manifest of a release that is on disk as signed; a damaged one is cleared away.
fn whole(job: &Job) -> Result<Option<Manifest>, FetchError> {
    let folder = tree::release_folder(&job.releases, job.digest);
    if !folder.exists() {
        return Ok(None);
    }
    match tree::verify(&folder, job.digest, &job.release) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(TreeError::Manifest(error)) => Err(error.into()),
        Err(damage) => {
            tracing::warn!(folder = %folder.display(), %damage, "a release is damaged, fetching it again");
            fs::remove_dir_all(&folder).map_err(|source| FetchError::Io { path: folder, source })?;
            Ok(None)
        }
    }
}

fn check_hardware(manifest: &Manifest, has: &[String]) -> Result<(), FetchError> {
    if manifest.hardware.is_empty() || manifest.hardware.iter().any(|class| has.contains(class)) {
        return Ok(());
    }
    let wants = manifest.hardware.iter().cloned().collect::<Vec<_>>().join(" or ");
    Err(FetchError::WrongHardware { wants, has: has.join(", ") })
}
