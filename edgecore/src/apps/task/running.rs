//! The workload of an app: started or adopted under a supervisor, looked at, stopped.

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use proto::{
    durable,
    name::{Name, ReleaseName},
    object::{ReleaseRef, RunState},
    release::{Hooks, Manifest, Probe, Probes, Workload},
    watch,
};
use tokio::time::Instant;

use super::{
    App, Context, StepError,
    gpus::name_gpus,
    hooks::{Hooking, lowered},
};
use crate::{
    apps::{guard::Guard, plan::RunningView, slot::Installed},
    driver::{HookOutcome, InstanceSpec},
    fetch::tree,
    metrics::evidence::Evidence,
    secrets,
    supervisor::{Health, Supervisor},
};

/// Grace for an instance whose manifest nobody read.
const LEFTOVER_GRACE: Duration = Duration::from_secs(10);

/// A workload that just starts is not unhealthy, whatever its probes.
const RED_AT_LEAST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Run {
    pub(super) release: ReleaseRef,
    /// Of a workload; a release without one has nothing to supervise and is healthy.
    pub(super) supervisor: Option<Supervisor>,
    pub(super) health: watch::Receiver<Health>,
    pub(super) since: Instant,
    timing: Timing,
    /// See [`RunningView::unhealthy_since`].
    unhealthy_since: Option<Instant>,
    pub(super) spec: InstanceSpec,
    pub(super) hooks: Hooks,
    pub(super) post_apply: Hooking,
    /// Raised when a start found the tree damaged.
    pub(super) damaged: Arc<AtomicBool>,
    /// What was told of what it tells of itself.
    pub(super) evidence: Evidence,
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
            red_after: self.timing.red_after,
            steady: health.live && health.restarts == 0,
            ended: health.state == RunState::Exited,
            message: health.message.clone(),
            soak: self.timing.soak,
            deadline: self.timing.deadline,
        }
    }
}

/// How long a workload may take; a release without one takes no time.
#[derive(Debug, Clone, Copy, Default)]
struct Timing {
    soak: Duration,
    deadline: Duration,
    /// See [`RunningView::red_after`].
    red_after: Duration,
}

impl Timing {
    fn of(workload: &Workload) -> Timing {
        let (soak, deadline) = (workload.soak.get(), workload.deadline.get());
        let Probes { startup, readiness, .. } = &workload.probes;
        let takes = |probe: &Probe| {
            let periods = probe.period.get().saturating_mul(probe.failure_threshold);
            probe.initial_delay.get().saturating_add(periods)
        };
        let probes = startup.iter().chain(readiness).map(takes).fold(Duration::ZERO, Duration::saturating_add);
        Timing { soak, deadline, red_after: probes.max(RED_AT_LEAST).min(deadline) }
    }
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

    /// What to run of a release of the app whose folder this is.
    pub(super) fn spec(&self, app: &Name, at: &Path, release: &ReleaseRef, workload: Option<Workload>) -> InstanceSpec {
        let mut workload = workload.unwrap_or_else(|| Workload::new(String::new())); // for its hooks
        workload.env.extend(self.streams_environment());
        let apps = at.parent().unwrap_or(at).display().to_string();
        workload.env.insert("CROSSDOCK_APPS".into(), apps);
        if !workload.secrets.is_empty()
            && let Some(folder) = self.secrets.folder(app, release.digest)
        {
            workload.env.insert(secrets::VARIABLE.into(), folder.display().to_string());
        }
        let gpus = match &workload.gpus {
            Some(_) => {
                let gpus = self.gpus.held(app, release.digest).unwrap_or_default();
                name_gpus(&mut workload, &gpus);
                gpus
            }
            None => vec![],
        };
        let folder = tree::release_folder(&at.join("releases"), release.digest);
        let (tree, data) = (tree::tree_folder(&folder), at.join("data"));
        InstanceSpec { app: app.clone(), release: release.clone(), tree, data, workload, gpus }
    }
}

impl App {
    pub(super) async fn stop(&mut self) -> Result<(), StepError> {
        // From here on nobody supervises it: were the stop to fail, the driver is asked again.
        self.leftover = true;
        self.keep_measured().await;
        let run = self.run.take();
        self.shared.desk.runs(&self.name, None);
        if let Some(run) = &run {
            let active = self.slot.active.as_ref().is_some_and(|a| a.release == run.release);
            self.stopped_red = active && self.slot.trial.is_none() && run.view().is_red(Instant::now());
        }
        match run.map(|run| run.supervisor) {
            Some(Some(supervisor)) => supervisor.stop().await?,
            Some(None) => {}
            None => self.shared.driver.stop(&self.name, LEFTOVER_GRACE).await?,
        }
        self.remove_secrets().await?;
        self.leftover = false;
        Ok(())
    }

    /// Nothing of the app runs: nobody needs the plaintext.
    pub(super) async fn remove_secrets(&self) -> Result<(), StepError> {
        let (secrets, app) = (self.shared.secrets.clone(), self.name.clone());
        Ok(self.shared.env.blocking.run(move || secrets.remove(&app)).await?)
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
                self.found_damaged(installed, &error.to_string());
                return Ok(());
            }
        };
        let Manifest { workload, hooks, .. } = manifest;
        let release = installed.release.clone();
        self.hold_room(release.digest, workload.as_ref());
        if !self.take_gpus(&release, workload.as_ref()).await? {
            return Ok(());
        }
        let spec = self.shared.spec(&self.name, &self.folder, &release, workload.clone());
        let damaged = lowered();
        let guard = self.guard(damaged.clone());
        let timing = workload.as_ref().map_or_else(Timing::default, Timing::of);
        let (supervisor, health) = if workload.is_some() {
            let supervisor = Supervisor::start(self.shared.env.clone(), Arc::new(guard), spec.clone());
            let health = supervisor.health();
            self.shared.desk.runs(&self.name, Some(spec.clone()));
            (Some(supervisor), health)
        } else {
            if self.leftover {
                self.shared.driver.stop(&self.name, LEFTOVER_GRACE).await?;
            }
            if let Err(problem) = guard.verify(&spec).await {
                self.found_damaged(installed, &problem);
                return Ok(());
            }
            (None, watch::channel(Health::in_place(Instant::now())).1)
        };
        self.leftover = false;
        if supervisor.is_some() {
            self.shared.metrics.begin(&self.name, release.digest);
        }
        let (since, post_apply) = (Instant::now(), Hooking::default());
        let unhealthy_since = Some(since);
        let evidence = Evidence::default();
        self.run = Some(Run {
            release,
            supervisor,
            health,
            since,
            timing,
            unhealthy_since,
            spec,
            hooks,
            post_apply,
            damaged,
            evidence,
        });
        Ok(())
    }

    /// It is not started before it was fetched again.
    fn found_damaged(&mut self, installed: &Installed, problem: &str) {
        tracing::warn!(app = %self.name, problem, "not started");
        (self.damaged, self.staged) = (Some(installed.release.digest), None);
    }

    pub(super) fn guard(&self, damaged: Arc<AtomicBool>) -> Guard {
        let Context { driver, env, checks, secrets, .. } = &*self.shared;
        Guard::new(driver.clone(), env.clone(), checks.clone(), secrets.clone(), damaged)
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
