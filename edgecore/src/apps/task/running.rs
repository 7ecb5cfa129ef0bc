//! The workload of an app: started or adopted under a supervisor, looked at, stopped.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use proto::{
    digest::Digest,
    durable,
    name::{Name, ReleaseName},
    object::{ReleaseRef, RunState},
    release::{Hooks, Manifest, Probe, Probes, Workload, replicas, uses::variable},
    watch,
};
use tokio::time::Instant;

use super::{
    App, Context, StepError,
    gpus::name_gpus,
    hooks::{Hooking, lowered},
};
use crate::{
    apps::{guard::Guard, live, plan::RunningView, slot::Installed},
    driver::{HookOutcome, InstanceSpec, Side},
    fetch::tree::{self, TreeError},
    gpu::ledger::request,
    metrics::evidence::Evidence,
    secrets,
    supervisor::{Health, Supervisor},
};

/// Grace for an instance whose manifest nobody read.
pub(super) const LEFTOVER_GRACE: Duration = Duration::from_secs(10);

/// A workload that just starts is not unhealthy, whatever its probes.
const RED_AT_LEAST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Run {
    pub(super) release: ReleaseRef,
    /// Of a workload; a release without one has nothing to supervise and is healthy.
    pub(super) supervisor: Option<Supervisor>,
    pub(super) health: watch::Receiver<Health>,
    /// Since when it is supervised, or live when that is later.
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
    /// What was wrong with its GPUs at any time since it is supervised.
    pub(super) gpu_trouble: Option<String>,
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
            healthy_since: health.healthy_since.map(|healthy| healthy.max(self.since)),
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

    /// What to run of a release of the app whose folder this is, on one of its sides.
    pub(super) fn spec(
        &self,
        app: &Name,
        at: &Path,
        side: Side,
        release: &ReleaseRef,
        workload: Option<Workload>,
        uses: &BTreeMap<Name, ReleaseRef>,
    ) -> InstanceSpec {
        let mut workload = workload.unwrap_or_else(|| Workload::new(String::new())); // for its hooks
        workload.env.extend(self.streams_environment());
        let apps = at.parent().unwrap_or(at).display().to_string();
        workload.env.insert("CROSSDOCK_APPS".into(), apps);
        if workload.replicas.is_some() {
            workload.env.insert(replicas::VARIABLE.into(), "0".into());
        }
        if workload.given_secrets().next().is_some()
            && let Some(folder) = self.secrets.folder(app, release.digest)
        {
            workload.env.insert(secrets::VARIABLE.into(), folder.display().to_string());
        }
        workload.env.extend(uses.iter().map(|(of, used)| {
            let folder = at.parent().unwrap_or(at).join(of.as_str()).join("releases");
            let tree = tree::tree_folder(&tree::release_folder(&folder, used.digest));
            (variable(of), tree.display().to_string())
        }));
        let run = workload.update.is_warm().then(|| live::own(at, side));
        if let Some(run) = &run {
            let link = run.with_file_name(live::NAME);
            let both = [(live::OWN, run), (live::LIVE, &link)];
            workload.env.extend(both.map(|(name, path)| (name.into(), path.display().to_string())));
        }
        let gpus = match &workload.gpus {
            Some(_) => {
                let gpus = self.gpus.held(app, release.digest, side).unwrap_or_default();
                name_gpus(&mut workload, &gpus);
                gpus
            }
            None => vec![],
        };
        let folder = tree::release_folder(&at.join("releases"), release.digest);
        let (tree, data) = (tree::tree_folder(&folder), at.join("data"));
        let (app, release, uses) = (app.clone(), release.clone(), uses.clone());
        InstanceSpec { app, side, replica: 0, release, tree, data, run, workload, gpus, uses }
    }
}

impl App {
    /// Stops what is live.
    pub(super) async fn stop(&mut self) -> Result<(), StepError> {
        // From here on nobody supervises it: were the stop to fail, the driver is asked again.
        self.leftover = true;
        let told = self.shared.metrics.end(&self.name);
        self.keep_measured(told).await;
        let run = self.run.take();
        self.shared.desk.runs(&self.name, None);
        if let Some(run) = &run {
            let active = self.slot.active.as_ref().is_some_and(|a| a.release == run.release);
            self.stopped_red = active && self.slot.trial.is_none() && run.view().is_red(Instant::now());
            let short = self.room.why_short().or_else(|| self.files.room.why_short());
            self.cold = short.filter(|_| active && self.slot.trial.is_none() && !self.stopped_red);
        }
        let release = own_secrets(digest(&run), digest(&self.beside), self.beside_leftover);
        self.stop_at(self.slot.side, run).await?;
        if !self.replicas.exist() {
            self.remove_secrets_of(release, self.has_beside()).await?; // else they go when it is stopped again
        }
        self.leftover = false;
        Ok(())
    }

    /// Stops what runs beside that.
    pub(super) async fn stop_beside(&mut self) -> Result<(), StepError> {
        self.beside_leftover = true;
        let run = self.beside.take();
        let release = own_secrets(digest(&run), digest(&self.run), self.leftover);
        self.stop_at(self.slot.side.other(), run).await?;
        let other_runs = self.run.is_some() || self.leftover || self.replicas.exist();
        self.remove_secrets_of(release, other_runs).await?;
        self.beside_leftover = false;
        Ok(())
    }

    async fn stop_at(&self, side: Side, run: Option<Run>) -> Result<(), StepError> {
        match (run.map(|run| run.supervisor), side.key(&self.name)) {
            (Some(Some(supervisor)), _) => supervisor.stop().await?,
            (None, Some(key)) => self.shared.driver.stop(&key, LEFTOVER_GRACE).await?,
            (Some(None), _) | (None, None) => {}
        }
        Ok(())
    }

    /// Whether anything runs beside the live instance, or may.
    pub(super) fn has_beside(&self) -> bool {
        self.beside.is_some() || self.beside_leftover
    }

    /// A release was stopped: unless another instance goes on, nobody needs any plaintext of the app.
    async fn remove_secrets_of(&self, release: Option<Digest>, other_runs: bool) -> Result<(), StepError> {
        let (secrets, app) = (self.shared.secrets.clone(), self.name.clone());
        let removed = self.shared.env.blocking.run(move || match release {
            _ if !other_runs => secrets.remove(&app),
            Some(release) => secrets.remove_release(&app, release),
            None => Ok(()), // they go when the other one is stopped
        });
        Ok(removed.await?)
    }

    /// Nothing of the app runs: nobody needs the plaintext.
    pub(super) async fn remove_secrets(&self) -> Result<(), StepError> {
        self.remove_secrets_of(None, false).await
    }

    /// As [`App::run_at`], as the live instance.
    pub(super) async fn start(&mut self, installed: &Installed) -> Result<(), StepError> {
        if let Some(run) = self.run_at(self.slot.side, installed, self.leftover, self.has_beside()).await? {
            (self.run, self.leftover) = (Some(run), false);
            self.listen();
        }
        Ok(())
    }

    /// As [`App::run_at`], beside the live instance.
    pub(super) async fn start_beside(&mut self, installed: &Installed) -> Result<(), StepError> {
        let side = self.slot.side.other();
        if let Some(run) = self.run_at(side, installed, self.beside_leftover, true).await? {
            (self.beside, self.beside_leftover) = (Some(run), false);
        }
        Ok(())
    }

    /// The other instance is the live one now, as is on record.
    pub(super) fn swap(&mut self) {
        std::mem::swap(&mut self.run, &mut self.beside);
        std::mem::swap(&mut self.leftover, &mut self.beside_leftover);
        if let Some(run) = &mut self.run {
            run.since = Instant::now();
        }
        self.listen();
    }

    /// What is live is what is heard, and what people run commands in.
    fn listen(&self) {
        let Some(run) = self.run.as_ref().filter(|run| run.supervisor.is_some()) else { return };
        self.shared.metrics.begin(&self.name, run.release.digest);
        self.shared.desk.runs(&self.name, Some(run.spec.clone()));
    }

    /// What the manifest of a release on disk says.
    pub(super) async fn manifest(&self, release: &ReleaseRef) -> Result<Result<Manifest, TreeError>, StepError> {
        let (releases, made) = (self.folder.join("releases"), self.folder.join("data"));
        let (at, digest) = (tree::release_folder(&releases, release.digest), release.digest);
        let name = ReleaseName { app: self.name.clone(), version: release.version.clone() };
        let manifest = self.shared.env.blocking.run(move || {
            durable::create_dir_all(&made)?;
            Ok::<_, StepError>(tree::manifest(&at, digest, &name))
        });
        manifest.await
    }

    /// Adopts the release where it runs already (`leftover`), however its tree changed since; starts it otherwise,
    /// past the [`Guard`], which verifies the tree. `None` when it cannot be.
    async fn run_at(
        &mut self,
        side: Side,
        installed: &Installed,
        leftover: bool,
        beside: bool,
    ) -> Result<Option<Run>, StepError> {
        let manifest = match self.manifest(&installed.release).await? {
            Ok(manifest) => manifest,
            Err(error) => {
                self.found_damaged(installed, &error.to_string());
                return Ok(None);
            }
        };
        let Manifest { workload, hooks, .. } = manifest;
        let leftover = leftover && self.is_found(side, &installed.release).await;
        let used = workload.as_ref().map(Workload::used).unwrap_or_default();
        if !self.is_pinned(installed, used, leftover) {
            return Ok(None);
        }
        let release = installed.release.clone();
        self.hold_room(release.digest, workload.as_ref());
        let needs = workload.as_ref().and_then(|workload| workload.gpus.as_ref());
        if !self.take_gpus(request(&self.name, release.digest, needs, side, beside), leftover).await? {
            return Ok(None);
        }
        let uses = &installed.uses;
        let spec = self.shared.spec(&self.name, &self.folder, side, &release, workload.clone(), uses);
        let damaged = lowered();
        let guard = self.guard(damaged.clone());
        let timing = workload.as_ref().map_or_else(Timing::default, Timing::of);
        let (supervisor, health) = if workload.is_some() {
            let supervisor = Supervisor::start(self.shared.env.clone(), Arc::new(guard), spec.clone());
            let health = supervisor.health();
            (Some(supervisor), health)
        } else {
            if leftover {
                self.shared.driver.stop(&spec.key(), LEFTOVER_GRACE).await?;
            }
            if let Err(problem) = guard.verify(&spec).await {
                self.found_damaged(installed, &problem);
                return Ok(None);
            }
            (None, watch::channel(Health::in_place(Instant::now())).1)
        };
        let (since, post_apply) = (Instant::now(), Hooking::default());
        let unhealthy_since = Some(since);
        let evidence = Evidence::default();
        Ok(Some(Run {
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
            gpu_trouble: None,
        }))
    }

    /// Whether what is there that nobody supervises is this release. Another one is stopped: what starts in its place
    /// starts anew, with all that it needs.
    async fn is_found(&mut self, side: Side, release: &ReleaseRef) -> bool {
        let Some(key) = side.key(&self.name) else { return false };
        let driver = &self.shared.driver;
        let stopped = match driver.inspect(&key).await {
            Ok(Some(instance)) if instance.exit.is_none() && instance.release.digest == release.digest => return true,
            Ok(Some(instance)) if instance.exit.is_none() => driver.stop(&key, LEFTOVER_GRACE).await,
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = stopped {
            tracing::warn!(app = %key, %error, "taken as running");
            return true;
        }
        let leftover = if side == self.slot.side { &mut self.leftover } else { &mut self.beside_leftover };
        *leftover = false;
        false
    }

    /// It is not started before it was fetched again.
    fn found_damaged(&mut self, installed: &Installed, problem: &str) {
        tracing::warn!(app = %self.name, problem, "not started");
        (self.damaged, self.staged) = (Some(installed.release.digest), None);
    }

    pub(super) fn guard(&self, damaged: Arc<AtomicBool>) -> Guard {
        let Context { driver, env, checks, secrets, uses, .. } = &*self.shared;
        Guard::new(driver.clone(), env.clone(), checks.clone(), secrets.clone(), uses.clone(), damaged)
    }
}

/// The release whose secrets nobody needs any more when this instance was stopped, and the other one was not; of a
/// `leftover` nobody knows which it is.
fn own_secrets(stopped: Option<Digest>, other: Option<Digest>, leftover: bool) -> Option<Digest> {
    stopped.filter(|stopped| other.map_or(!leftover, |other| other != *stopped))
}

fn digest(run: &Option<Run>) -> Option<Digest> {
    run.as_ref().map(|run| run.release.digest)
}

/// Something is new about what runs.
pub(super) enum WorkloadEvent {
    Health,
    /// The postApply hook ended.
    Hook(HookOutcome),
}

/// Cancel safe.
pub(super) async fn workload_changed(run: Option<&mut Run>, beside: Option<&mut Run>) -> WorkloadEvent {
    // Both arms are cancel safe, as below.
    tokio::select! {
        biased;
        event = one_changed(run) => event,
        // No hook of a release runs that is not live.
        event = one_changed(beside) => event,
    }
}

async fn one_changed(run: Option<&mut Run>) -> WorkloadEvent {
    let Some(Run { health, post_apply, .. }) = run else { return std::future::pending().await };
    // Both arms are cancel safe: a watch, and a set that hands out a task or nothing.
    tokio::select! {
        biased;
        Ok(()) = health.changed() => WorkloadEvent::Health,
        outcome = post_apply.ended() => WorkloadEvent::Hook(outcome),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_with_the_last_instance_of_their_release() {
        let [one, two] = [b"1", b"2"].map(|bytes| Digest::of(bytes));
        assert_eq!(own_secrets(Some(one), None, false), Some(one));
        assert_eq!(own_secrets(Some(one), Some(two), false), Some(one));
        assert_eq!(own_secrets(Some(one), Some(one), false), None, "it runs with other files, too");
        assert_eq!(own_secrets(Some(one), None, true), None, "who knows what else runs");
        assert_eq!(own_secrets(None, Some(two), false), None);
    }
}
