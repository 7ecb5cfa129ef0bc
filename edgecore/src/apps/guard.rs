//! A driver that verifies the tree of a release before every start, restarts after a crash included, and
//! before every hook that it runs: a file that was damaged at rest since the last start is never executed. Then it
//! puts the release's secrets in place. What runs already is left alone. Used by [`super::task`].

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use proto::{
    digest::Digest,
    env::{BoxFuture, Env},
    name::{Name, ReleaseName},
    object::{LastExit, ReleaseRef},
    release::{Hook, Probe, container::is_of_image},
};
use tokio::sync::{Semaphore, mpsc};

use super::{live, uses::Uses};
use crate::{
    driver::{Driver, DriverError, HookOutcome, Instance, InstanceSpec, InstanceUsage, NotReady, ProbeOutcome},
    fetch::tree,
    secrets::{self, Secrets, SecretsError},
};

/// Trees that are hashed at once, over all apps: the agent has few threads for what blocks.
pub const PARALLEL_CHECKS: usize = 2;

/// Wraps the driver for one supervised release.
#[derive(Debug)]
pub struct Guard {
    inner: Arc<dyn Driver>,
    env: Env,
    checks: Arc<Semaphore>,
    secrets: Arc<Secrets>,
    uses: Arc<Uses>,
    damaged: Arc<AtomicBool>,
}

impl Guard {
    /// Passes everything on to `inner`, and raises `damaged` instead of starting a damaged tree; of damaged files of
    /// another app `uses` is told. `checks` is shared by all apps.
    #[must_use]
    pub fn new(
        inner: Arc<dyn Driver>,
        env: Env,
        checks: Arc<Semaphore>,
        secrets: Arc<Secrets>,
        uses: Arc<Uses>,
        damaged: Arc<AtomicBool>,
    ) -> Guard {
        Guard { inner, env, checks, secrets, uses, damaged }
    }
}

impl Guard {
    /// Whether the tree is as its manifest says; otherwise `damaged` is raised.
    pub(super) async fn verify(&self, spec: &InstanceSpec) -> Result<(), String> {
        // An image is at the engine, and who hands it over again hashes it on the way.
        self.verify_but(if spec.workload.container.is_some() { is_of_image } else { |_| false }, spec).await
    }

    async fn verify_but(&self, skipped: fn(&str) -> bool, spec: &InstanceSpec) -> Result<(), String> {
        let folder = spec.tree.parent().map(ToOwned::to_owned).unwrap_or_default();
        let verified = self.verify_at(skipped, folder, &spec.app, &spec.release).await;
        if let Err(problem) = verified {
            self.damaged.store(true, Ordering::Relaxed);
            return Err(problem);
        }
        Ok(())
    }

    /// Whether the files of others are as their manifests say; otherwise those are told.
    async fn verify_used(&self, spec: &InstanceSpec) -> Result<(), String> {
        let apps = spec.data.parent().and_then(Path::parent).unwrap_or(&spec.data);
        for (of, release) in &spec.uses {
            let folder = tree::release_folder(&apps.join(of.as_str()).join("releases"), release.digest);
            if let Err(problem) = self.verify_at(is_of_image, folder, of, release).await {
                self.uses.found_damaged(of, release.digest);
                return Err(format!("it uses the files of {of} {}: {problem}", release.version));
            }
        }
        Ok(())
    }

    async fn verify_at(
        &self,
        skipped: fn(&str) -> bool,
        folder: PathBuf,
        app: &Name,
        release: &ReleaseRef,
    ) -> Result<(), String> {
        let name = ReleaseName { app: app.clone(), version: release.version.clone() };
        let digest = release.digest;
        let permit = self.checks.clone().acquire_owned().await; // never closed
        let verified = self.env.blocking.run(move || {
            let _permit = permit; // a check goes on when nobody waits for it any more
            tree::verify_but(skipped, &folder, digest, &name)
        });
        verified.await.map(drop).map_err(|error| error.to_string())
    }
}

impl Guard {
    /// Puts the release's secrets in place; those of the app's other releases go where it is about to run `alone`.
    async fn place(&self, spec: &InstanceSpec, alone: bool) -> Result<(), SecretsError> {
        let (secrets, spec) = (self.secrets.clone(), spec.clone());
        let placed = self.env.blocking.run(move || {
            // Instances of a release share them: what is in place is whole, and not taken away from those that run.
            let is_one_of_several = spec.workload.replicas.is_some() || spec.run.is_some();
            if !is_one_of_several || !secrets.are_placed(&spec) {
                secrets.place(&spec)?;
            }
            if alone { secrets.remove_others(&spec.app, spec.release.digest) } else { Ok(()) }
        });
        placed.await
    }
}

impl Guard {
    /// Its folder for sockets is there and empty. A process's is given to its user when it starts.
    async fn make_run_folder(&self, spec: &InstanceSpec) -> io::Result<()> {
        let Some(own) = spec.run.clone() else { return Ok(()) };
        let user = spec.workload.user.as_deref().filter(|_| spec.workload.container.is_some());
        let owner = secrets::owner_in_container(user).ok().flatten(); // by the name of an image's user nobody knows it
        self.env.blocking.run(move || live::empty(&own, owner)).await
    }
}

/// The secrets of a release whose hook runs, while another of the app does. They go with it.
struct Lent<'a> {
    secrets: &'a Secrets,
    spec: &'a InstanceSpec,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        // In memory and small: no work for the pool. What stays goes at the next start or stop.
        if let Err(error) = self.secrets.remove_release(&self.spec.app, self.spec.release.digest) {
            tracing::warn!(app = %self.spec.app, %error, "secrets of a hook stay for now");
        }
    }
}

impl Driver for Guard {
    fn prepare<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<(), NotReady>> {
        Box::pin(async move {
            let prepared = self.inner.prepare(spec).await;
            if prepared.is_err() && spec.workload.container.is_some() {
                let damaged = |message| NotReady { reason: "VerificationFailed", message };
                self.verify_but(|_| false, spec).await.map_err(damaged)?; // is it the image?
            }
            prepared
        })
    }

    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            let refused = |problem| DriverError { attempt: "start", app: spec.app.clone(), problem };
            self.verify(spec).await.map_err(refused)?;
            self.verify_used(spec).await.map_err(refused)?;
            // Another instance of an app that is updated warm may need its own.
            self.place(spec, spec.run.is_none() && spec.replica == 0).await.map_err(|e| refused(e.to_string()))?;
            self.make_run_folder(spec).await.map_err(|e| refused(format!("its run folder cannot be made: {e}")))?;
            let started = self.inner.start(spec).await;
            if started.is_err() && spec.workload.container.is_some() {
                self.verify_but(|_| false, spec).await.map_err(refused)?; // is it the image?
            }
            started
        })
    }

    fn hook<'a>(&'a self, spec: &'a InstanceSpec, hook: &'a Hook) -> BoxFuture<'a, HookOutcome> {
        Box::pin(async move {
            if let Err(problem) = self.verify(spec).await {
                return HookOutcome::Failure(problem);
            }
            let _gone_at_its_end = Lent { secrets: &self.secrets, spec };
            match self.place(spec, false).await {
                Ok(()) => self.inner.hook(spec, hook).await,
                Err(error) => HookOutcome::Failure(error.to_string()),
            }
        })
    }

    fn inspect<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<Option<Instance>, DriverError>> {
        self.inner.inspect(app)
    }

    fn wait<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<LastExit, DriverError>> {
        self.inner.wait(app)
    }

    fn stop<'a>(&'a self, app: &'a Name, grace: Duration) -> BoxFuture<'a, Result<(), DriverError>> {
        self.inner.stop(app, grace)
    }

    fn remove<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<(), DriverError>> {
        self.inner.remove(app)
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Name>, DriverError>> {
        self.inner.list()
    }

    fn probe<'a>(&'a self, spec: &'a InstanceSpec, probe: &'a Probe) -> BoxFuture<'a, ProbeOutcome> {
        self.inner.probe(spec, probe)
    }

    fn collect<'a>(&'a self, app: &'a Name, keep: &'a BTreeSet<Digest>) -> BoxFuture<'a, Result<(), DriverError>> {
        self.inner.collect(app, keep)
    }

    fn usage<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Option<InstanceUsage>> {
        self.inner.usage(app)
    }

    fn memory_available(&self) -> BoxFuture<'_, Option<u64>> {
        self.inner.memory_available()
    }

    fn reboot<'a>(&'a self, command: &'a [String]) -> BoxFuture<'a, Result<(), String>> {
        self.inner.reboot(command)
    }

    fn logs<'a>(
        &'a self,
        app: &'a Name,
        tail: Option<u32>,
        follow: bool,
    ) -> BoxFuture<'a, Option<mpsc::Receiver<Bytes>>> {
        self.inner.logs(app, tail, follow)
    }
}
