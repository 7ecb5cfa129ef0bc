//! The workload of an app: started or adopted under a supervisor, looked at, stopped.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use proto::{
    durable,
    name::ReleaseName,
    object::{ReleaseRef, RunState},
    release::{Hooks, Manifest, Probe, Probes, Workload},
    watch,
};
use tokio::time::Instant;

use super::{
    App, Context, StepError,
    hooks::{Hooking, lowered},
};
use crate::{
    apps::{guard::Guard, plan::RunningView, slot::Installed},
    driver::{HookOutcome, InstanceSpec},
    fetch::tree,
    supervisor::{Health, Supervisor},
};

/// Grace for an instance whose manifest nobody read.
const LEFTOVER_GRACE: Duration = Duration::from_secs(10);

/// A workload that just starts is not unhealthy, whatever its probes.
const RED_AT_LEAST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Run {
    pub(super) release: ReleaseRef,
    pub(super) supervisor: Supervisor,
    pub(super) health: watch::Receiver<Health>,
    pub(super) since: Instant,
    pub(super) soak: Duration,
    pub(super) deadline: Duration,
    /// See [`RunningView::unhealthy_since`].
    unhealthy_since: Option<Instant>,
    red_after: Duration,
    pub(super) spec: InstanceSpec,
    pub(super) hooks: Hooks,
    pub(super) post_apply: Hooking,
    /// Raised when a start found the tree damaged.
    pub(super) damaged: Arc<AtomicBool>,
}

impl Run {
    /// Notes since when it is not healthy.
    pub(super) fn look(&mut self) {
        match self.health.borrow().healthy_since {
            Some(_) => self.unhealthy_since = None,
            None => drop(self.unhealthy_since.get_or_insert_with(Instant::now)),
        }
    }

    pub(super) fn view(&self) -> RunningView {
        let health = self.health.borrow();
        RunningView {
            digest: self.release.digest,
            since: self.since,
            healthy_since: health.healthy_since,
            unhealthy_since: self.unhealthy_since.filter(|_| health.healthy_since.is_none()),
            red_after: self.red_after,
            steady: health.live && health.restarts == 0,
            ended: health.state == RunState::Exited,
            message: health.message.clone(),
            soak: self.soak,
            deadline: self.deadline,
        }
    }
}

/// See [`RunningView::red_after`].
fn red_after(workload: &Workload) -> Duration {
    let Probes { startup, readiness, .. } = &workload.probes;
    let takes = |probe: &Probe| {
        let periods = probe.period.get().saturating_mul(probe.failure_threshold);
        probe.initial_delay.get().saturating_add(periods)
    };
    let probes = startup.iter().chain(readiness).map(takes).fold(Duration::ZERO, Duration::saturating_add);
    probes.max(RED_AT_LEAST).min(workload.deadline.get())
}

impl Context {
    /// Where a workload hands in records.
    fn streams_environment(&self) -> impl Iterator<Item = (String, String)> {
        let at = self.endpoints.borrow().clone();
        let variables = [
            ("CROSSDOCK_STREAMS_URL", at.http.map(|address| format!("http://{address}"))),
            ("CROSSDOCK_STREAMS_SOCKET", at.socket.map(|path| path.display().to_string())),
            ("CROSSDOCK_STREAMS_MQTT", at.mqtt.map(|address| format!("mqtt://{address}"))),
        ];
        variables.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)))
    }
}

impl App {
    pub(super) async fn stop(&mut self) -> Result<(), StepError> {
        // From here on nobody supervises it: were the stop to fail, the driver is asked again.
        self.leftover = true;
        let run = self.run.take();
        let active = self.slot.active.as_ref().map(|a| a.release.digest);
        self.stopped_red = run.as_ref().is_some_and(|run| {
            self.slot.trial.is_none() && active == Some(run.release.digest) && run.view().is_red(Instant::now())
        });
        match run {
            Some(run) => run.supervisor.stop().await?,
            None => self.shared.driver.stop(&self.name, LEFTOVER_GRACE).await?,
        }
        self.leftover = false;
        Ok(())
    }

    /// Adopts the release where it runs already, however its tree changed since; starts it otherwise,
    /// past the [`Guard`], which verifies the tree.
    pub(super) async fn start(&mut self, installed: &Installed) -> Result<(), StepError> {
        let release = installed.release.clone();
        let (releases, made) = (self.folder.join("releases"), self.folder.join("data"));
        let at = tree::release_folder(&releases, release.digest);
        let name = ReleaseName { app: self.name.clone(), version: release.version.clone() };
        let manifest = self.shared.env.blocking.run(move || {
            durable::create_dir_all(&made)?;
            Ok::<_, StepError>(tree::manifest(&at, release.digest, &name))
        });
        let manifest = match manifest.await? {
            Ok(manifest) => manifest,
            Err(error) => {
                tracing::warn!(app = %self.name, %error, "not started");
                self.damaged = Some(installed.release.digest);
                self.staged = None;
                return Ok(());
            }
        };
        let Manifest { workload, hooks, .. } = manifest;
        let (soak, deadline, red_after) = (workload.soak.get(), workload.deadline.get(), red_after(&workload));
        let release = installed.release.clone();
        let spec = self.spec(&release, workload);
        let damaged = lowered();
        let guard = self.guard(damaged.clone());
        let supervisor = Supervisor::start(self.shared.env.clone(), Arc::new(guard), spec.clone());
        let health = supervisor.health();
        self.leftover = false;
        let (since, post_apply) = (Instant::now(), Hooking::default());
        self.run = Some(Run {
            release,
            supervisor,
            health,
            since,
            soak,
            deadline,
            unhealthy_since: Some(since),
            red_after,
            spec,
            hooks,
            post_apply,
            damaged,
        });
        Ok(())
    }

    /// What to run of a release.
    pub(super) fn spec(&self, release: &ReleaseRef, mut workload: Workload) -> InstanceSpec {
        workload.env.extend(self.shared.streams_environment());
        let folder = tree::release_folder(&self.folder.join("releases"), release.digest);
        let (app, release) = (self.name.clone(), release.clone());
        let (tree, data) = (tree::tree_folder(&folder), self.folder.join("data"));
        InstanceSpec { app, release, tree, data, workload }
    }

    pub(super) fn guard(&self, damaged: Arc<AtomicBool>) -> Guard {
        let Context { driver, env, checks, .. } = &*self.shared;
        Guard::new(driver.clone(), env.clone(), checks.clone(), damaged)
    }
}

/// Something is new about what runs.
pub(super) enum WorkloadEvent {
    Health,
    /// The postApply hook ended.
    Hook(HookOutcome),
}

/// Cancel safe.
pub(super) async fn workload_changed(run: Option<&mut Run>) -> WorkloadEvent {
    let Some(Run { health, post_apply, .. }) = run else { return std::future::pending().await };
    // Both arms are cancel safe: a watch, and a set that hands out a task or nothing.
    tokio::select! {
        biased;
        Ok(()) = health.changed() => WorkloadEvent::Health,
        outcome = post_apply.ended() => WorkloadEvent::Hook(outcome),
    }
}
