//! The fetch beside an app: begun, kept and ended as planned, tried again after a while.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use proto::{
    name::ReleaseName,
    object::Progress,
    release::{Hooks, Manifest, Workload},
    watch,
};
use tokio::{task::JoinSet, time::Instant};

use super::{App, hooks::lowered};
use crate::{
    apps::{
        plan::{Fetch, Wanted},
        slot::Installed,
        stage::{Hindrance, Order},
    },
    driver::Side,
    fetch::tree::{self, TreeError},
};

pub(super) const RETRY_BASE: Duration = Duration::from_secs(1);
pub(super) const RETRY_CAP: Duration = Duration::from_secs(300);

/// A release that is whole on disk, and what its manifest says.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) installed: Installed,
    pub(super) workload: Option<Workload>,
    pub(super) hooks: Hooks,
    /// Raised when a hook found the tree damaged.
    pub(super) damaged: Arc<AtomicBool>,
}

type Staging = JoinSet<Result<Staged, Hindrance>>;

#[derive(Debug)]
pub(super) enum Fetching {
    Idle,
    Active { fetch: Fetch, task: Staging, progress: watch::Receiver<Progress> },
    Hindered { fetch: Fetch, hindrance: Hindrance, retry_at: Instant },
}

impl App {
    /// A fetch ended.
    pub(super) fn fetched(&mut self, result: Result<Staged, Hindrance>) {
        let Fetching::Active { fetch, .. } = std::mem::replace(&mut self.fetching, Fetching::Idle) else { return };
        match result {
            Ok(staged) => {
                self.backoff.succeeded();
                if self.damaged == Some(staged.installed.release.digest) {
                    self.damaged = None;
                }
                if matches!(fetch, Fetch::New(_)) {
                    self.staged = Some(staged);
                }
            }
            Err(hindrance) => {
                tracing::info!(app = %self.name, reason = hindrance.reason, "not staged yet: {}", hindrance.message);
                let retry_at = Instant::now() + RETRY_BASE + self.backoff.failed(&mut self.rng);
                self.fetching = Fetching::Hindered { fetch, hindrance, retry_at };
            }
        }
    }

    /// Begins, keeps or ends the fetch as planned.
    pub(super) fn direct_fetch(&mut self, planned: Option<Fetch>, wanted: &Wanted) {
        let Some(planned) = planned else {
            self.fetching = Fetching::Idle;
            return;
        };
        match &self.fetching {
            Fetching::Active { fetch, .. } if *fetch == planned => return,
            Fetching::Hindered { fetch, retry_at, .. } if *fetch == planned && Instant::now() < *retry_at => return,
            Fetching::Hindered { fetch, .. } if *fetch == planned => {}
            _ => {
                self.backoff.succeeded();
                self.litter |= wanted.release().is_some();
            }
        }
        let (sender, progress) = watch::channel(Progress { done_bytes: 0, total_bytes: 0 });
        let order = Order {
            app: self.name.clone(),
            fetch: planned.clone(),
            floor: self.slot.floor,
            releases: self.folder.join("releases"),
            reuse: self.slot.kept().collect(),
        };
        let stage = self.shared.stage.clone();
        let mut task = JoinSet::new();
        let (app, shared, at) = (self.name.clone(), self.shared.clone(), self.folder.clone());
        // What ran already is only mended; a new release must not stop it when its secrets cannot be opened.
        let new = matches!(planned, Fetch::New(_));
        task.spawn(async move {
            let installed = stage.stage(order, sender).await?;
            let release = &installed.release;
            let folder = tree::release_folder(&at.join("releases"), release.digest);
            let (digest, name) = (release.digest, ReleaseName { app: app.clone(), version: release.version.clone() });
            let secrets = shared.secrets.clone();
            let manifest = shared.env.blocking.run(move || {
                let manifest = tree::manifest(&folder, digest, &name).map_err(damaged)?;
                if let Some(workload) = manifest.workload.as_ref().filter(|_| new) {
                    secrets.check(&name.app, &tree::tree_folder(&folder), &workload.secrets)?;
                }
                Ok::<_, Hindrance>(manifest)
            });
            let Manifest { workload, hooks, .. } = manifest.await?;
            if let Some(known) = &workload {
                // Whatever takes long, or is found missing, while what runs goes on.
                let uses = match shared.uses.resolve(&app, &known.used()) {
                    Err(missing) if new => return Err(missing.into()),
                    // What was installed has what is on record; an agent before kept none.
                    current => current.unwrap_or_default().into_iter().chain(installed.uses.clone()).collect(),
                };
                let spec = shared.spec(&app, &at, Side::A, release, workload.clone(), &uses);
                shared.driver.prepare(&spec).await?;
            }
            Ok(Staged { installed, workload, hooks, damaged: lowered() })
        });
        self.fetching = Fetching::Active { fetch: planned, task, progress };
    }
}

/// What was just fetched cannot be read.
fn damaged(error: TreeError) -> Hindrance {
    Hindrance { reason: "VerificationFailed", message: error.to_string(), offline: false }
}

/// The result of the fetch.
pub(super) async fn finished(task: Option<&mut Staging>) -> Result<Staged, Hindrance> {
    let Some(task) = task else { return std::future::pending().await };
    match task.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(e)) => {
            Err(Hindrance { reason: "Interrupted", message: format!("the fetch broke off: {e}"), offline: false })
        }
        None => std::future::pending().await,
    }
}
