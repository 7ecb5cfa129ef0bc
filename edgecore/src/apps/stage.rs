//! From an assigned release to one that is whole on disk: accepted by its signatures, then fetched.
//!
//! [`Stage`] is the door that [`super::task`] goes through; the tests bring their own.

use std::{fmt, path::PathBuf, sync::Arc};

use proto::{
    digest::Digest,
    env::BoxFuture,
    name::{Name, ReleaseName},
    object::{Progress, ReleaseRef},
    watch,
};

use super::{plan::Fetch, slot::Installed, uses::Unusable};
use crate::{
    driver::NotReady,
    facts::Facts,
    fetch::{FetchError, Fetcher, Job, Source, SourceError},
    secrets::SecretsError,
    trust::{Refusal, Trust},
};

/// What is to be staged, and for whom.
#[derive(Debug, Clone)]
pub struct Order {
    /// The app.
    pub app: Name,
    /// Which release.
    pub fetch: Fetch,
    /// Lowest release counter that is accepted.
    pub floor: u64,
    /// Folder of the app's releases.
    pub releases: PathBuf,
    /// Releases on disk.
    pub reuse: Vec<Digest>,
}

/// Why a release is not staged yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hindrance {
    /// One word for programs.
    pub reason: &'static str,
    /// For people, with what to do.
    pub message: String,
    /// The hub is out of reach: try again when it is back, nothing is wrong with the release.
    pub offline: bool,
}

/// Gets releases onto the disk.
pub trait Stage: Send + Sync + fmt::Debug {
    /// Stages one. May be dropped at any moment and called again.
    fn stage(&self, order: Order, progress: watch::Sender<Progress>) -> BoxFuture<'_, Result<Installed, Hindrance>>;
}

/// The real one: [`Trust`], then [`Fetcher`].
#[derive(Debug)]
pub struct Stager {
    trust: Arc<Trust>,
    fetcher: Fetcher,
    source: Arc<dyn Source>,
    facts: Facts,
}

impl Stager {
    /// For a box of the hardware classes that `facts` tells at each time.
    #[must_use]
    pub fn new(trust: Arc<Trust>, fetcher: Fetcher, source: Arc<dyn Source>, facts: Facts) -> Stager {
        Stager { trust, fetcher, source, facts }
    }

    async fn carry_out(&self, order: Order, progress: watch::Sender<Progress>) -> Result<Installed, Hindrance> {
        let hardware = self.facts.hardware();
        let (installed, manifest_bytes) = match order.fetch {
            // It was accepted when it was installed, and its digest names every byte of it.
            Fetch::Repair(installed) => (installed, None),
            Fetch::New(release) => {
                let accepted = self.trust.accept(&*self.source, &order.app, &release, order.floor, &hardware).await?;
                (Installed::new(release, accepted.counter), Some(accepted.manifest_bytes))
            }
        };
        let ReleaseRef { version, digest } = installed.release.clone();
        let job = Job {
            release: ReleaseName { app: order.app, version },
            digest,
            manifest_bytes,
            releases: order.releases,
            reuse: order.reuse,
            hardware,
        };
        self.fetcher.stage(&Arc::new(job), &progress).await?;
        Ok(installed)
    }
}

impl Stage for Stager {
    fn stage(&self, order: Order, progress: watch::Sender<Progress>) -> BoxFuture<'_, Result<Installed, Hindrance>> {
        Box::pin(self.carry_out(order, progress))
    }
}

impl From<Refusal> for Hindrance {
    fn from(refusal: Refusal) -> Hindrance {
        let offline = matches!(refusal, Refusal::Source(_));
        Hindrance { reason: refusal.reason(), message: refusal.to_string(), offline }
    }
}

impl From<NotReady> for Hindrance {
    fn from(NotReady { reason, message }: NotReady) -> Hindrance {
        Hindrance { reason, message, offline: false }
    }
}

impl From<Unusable> for Hindrance {
    fn from(why: Unusable) -> Hindrance {
        Hindrance { reason: why.reason(), message: why.to_string(), offline: false }
    }
}

impl From<SecretsError> for Hindrance {
    fn from(error: SecretsError) -> Hindrance {
        Hindrance { reason: error.reason(), message: error.to_string(), offline: false }
    }
}

impl From<FetchError> for Hindrance {
    fn from(error: FetchError) -> Hindrance {
        let reason = match &error {
            _ if error.is_disk_full() => "DiskFull",
            FetchError::Source(SourceError::Offline) => "HubUnreachable",
            FetchError::Source(SourceError::Failed(_)) => "Interrupted",
            FetchError::NotFound { .. } => "ArtifactMissing",
            FetchError::WrongHardware { .. } => "WrongHardware",
            FetchError::Wrong { .. } | FetchError::Manifest(_) | FetchError::Tree(_) => "VerificationFailed",
            _ => "StateNotWritable",
        };
        Hindrance { reason, message: error.to_string(), offline: matches!(error, FetchError::Source(_)) }
    }
}
