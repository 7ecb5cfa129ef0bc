//! Keeps one workload running: probes, restarts with back-off. The app's task owns it.
//!
//! [`machine`] decides; the task here carries out what it says through the [`Driver`] and publishes a
//! [`Health`]. A supervisor that is dropped or detached leaves the workload running, to be adopted by
//! the next one. A driver that cannot tell is asked again: only its word that nothing runs is an end. What a start
//! needs first, such as an image of a registry, is fetched while who wants to stop it is listened to.

pub mod machine;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use jiff::Timestamp;
use proto::{
    env::{BoxFuture, Env},
    object::{LastExit, RunState},
    watch,
};
use rand_chacha::ChaCha12Rng;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use crate::driver::{Driver, DriverError, InstanceSpec, NotReady, ProbeOutcome, STOPPED_ON_REQUEST};
use machine::{Action, Machine, ProbeKind};

/// Until a driver that could not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// For so long a driver may be unable to tell whether a program runs, as while a container engine is updated, before it
/// does not count as ready any more.
const UNSEEN: Duration = Duration::from_secs(20);

/// How a workload is, as its supervisor sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// How the process is.
    pub state: RunState,
    /// Whether its readiness probe (or, without one, mere running) says yes.
    pub ready: bool,
    /// Whether it runs and its liveness probe, if any, has not given up.
    pub live: bool,
    /// Since when it is started, live and ready without a restart; absent while it is not.
    pub healthy_since: Option<Instant>,
    /// Restarts since this supervisor began.
    pub restarts: u32,
    /// When the current process started; absent while there is none.
    pub started_at: Option<Timestamp>,
    /// How the last one ended.
    pub last_exit: Option<LastExit>,
    /// Why it is not healthy, for people; empty when it is.
    pub message: String,
}

impl Health {
    /// There is nothing to run: being in place is all there is to it.
    #[must_use]
    pub fn in_place(now: Instant) -> Health {
        let state = RunState::Stopped;
        Health { state, ready: true, live: true, healthy_since: Some(now), ..Health::starting() }
    }

    /// Nothing is known yet.
    #[must_use]
    pub fn starting() -> Health {
        Health {
            state: RunState::Starting,
            ready: false,
            live: false,
            healthy_since: None,
            restarts: 0,
            started_at: None,
            last_exit: None,
            message: String::new(),
        }
    }
}

/// Keeps one instance running until it is stopped or detached. Dropping it detaches.
#[derive(Debug)]
pub struct Supervisor {
    driver: Arc<dyn Driver>,
    spec: Arc<InstanceSpec>,
    health: watch::Receiver<Health>,
    stop: mpsc::Sender<Stop>,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Adopts a running instance of the same release, or starts one.
    #[must_use]
    pub fn start(env: Env, driver: Arc<dyn Driver>, spec: InstanceSpec) -> Supervisor {
        let (publish, health) = watch::channel(Health::starting());
        let (stop, stops) = mpsc::channel(1);
        let spec = Arc::new(spec);
        let jitter = env.seed.stream(&format!("restarts of {}", spec.key()));
        let machine = Machine::new(&spec.workload, jitter, Instant::now());
        let task = Task { env, driver: driver.clone(), spec: spec.clone(), machine, publish };
        Supervisor { driver, spec, health, stop, task: tokio::spawn(task.run(stops)) }
    }

    /// What it runs.
    #[must_use]
    pub fn spec(&self) -> &InstanceSpec {
        &self.spec
    }

    /// Its health, as it changes.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Stops the workload and returns when nothing of it is left.
    ///
    /// # Errors
    /// When something of it does not end.
    pub async fn stop(self) -> Result<(), DriverError> {
        let (reply, answer) = oneshot::channel();
        if self.stop.send(reply).await.is_ok()
            && let Ok(result) = answer.await
        {
            return result;
        }
        self.driver.stop(&self.spec.key(), self.spec.workload.stop_grace.get()).await // its task is gone
    }

    /// Leaves the workload running and unwatched: the agent is shutting down.
    pub fn detach(self) {}
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    env: Env,
    driver: Arc<dyn Driver>,
    spec: Arc<InstanceSpec>,
    machine: Machine<ChaCha12Rng>,
    publish: watch::Sender<Health>,
}

type Stop = oneshot::Sender<Result<(), DriverError>>;

impl Task {
    async fn run(mut self, mut stops: mpsc::Receiver<Stop>) {
        let (driver, spec, env) = (self.driver.clone(), self.spec.clone(), self.env.clone());
        while let Err(error) = self.adopt().await {
            tracing::warn!(app = %spec.app, %error, "asking again");
            self.machine.unknown(&error.to_string());
            self.publish();
            // Both arms are cancel safe.
            tokio::select! {
                biased;
                stop = stops.recv() => return self.stop(stop).await,
                () = sleep(ASK_AGAIN) => {}
            }
        }
        let (unseen, mut sight) = watch::channel(None);
        let mut wait: Option<BoxFuture<'_, LastExit>> = None;
        let mut probes: FuturesUnordered<BoxFuture<'_, (ProbeKind, ProbeOutcome)>> = FuturesUnordered::new();
        loop {
            while let Some(action) = self.machine.poll(Instant::now()) {
                self.publish();
                match action {
                    Action::Probe(kind) => probes.push(attempt(&*driver, &spec, kind)),
                    // Both arms are cancel safe: what was prepared until then is found there the next time.
                    Action::Start => tokio::select! {
                        biased;
                        stop = stops.recv() => {
                            drop((wait, probes));
                            return self.stop(stop).await;
                        }
                        prepared = driver.prepare(&spec) => self.start(prepared).await,
                    },
                    Action::Kill => self.kill().await,
                }
            }
            if !self.machine.is_up() {
                probes.clear(); // what they would say is about a program that is gone
                wait = None;
            } else if wait.is_none() {
                wait = Some(Box::pin(end(&*driver, &spec, &env, &unseen)));
            }
            self.publish();
            let wake_at = self.machine.wake_at();
            // Every arm is cancel safe: a probe goes on in `probes`, the wait for the end in `wait`.
            tokio::select! {
                biased;
                stop = stops.recv() => {
                    drop((wait, probes));
                    return self.stop(stop).await;
                }
                exit = async { Some(wait.as_mut()?.await) }, if wait.is_some() => {
                    wait = None;
                    if let Some(exit) = exit {
                        self.ended(exit);
                    }
                }
                Ok(()) = sight.changed() => match &*sight.borrow_and_update() {
                    Some(problem) => self.machine.lost_sight(problem),
                    None => self.machine.seen_again(Instant::now()),
                },
                Some((kind, outcome)) = probes.next() => self.machine.probed(Instant::now(), kind, &outcome),
                () = async { sleep_until(wake_at.unwrap_or_else(Instant::now)).await }, if wake_at.is_some() => {}
            }
        }
    }

    /// Ends what it supervises, for who asked; nobody did when the supervisor is gone.
    async fn stop(&self, stop: Option<Stop>) {
        let Some(reply) = stop else { return };
        let result = self.driver.stop(&self.spec.key(), self.spec.workload.stop_grace.get()).await;
        self.publish.send_modify(stopped);
        let _ = reply.send(result); // whoever asked may have gone
    }

    /// Finds out what runs already.
    async fn adopt(&mut self) -> Result<(), DriverError> {
        match self.driver.inspect(&self.spec.key()).await? {
            Some(found) if found.release == self.spec.release => match found.exit {
                None => self.machine.adopt(Instant::now(), found.started_at),
                Some(exit) if exit.message != STOPPED_ON_REQUEST => self.machine.found_ended(Instant::now(), exit),
                Some(_) => {}
            },
            _ => {}
        }
        Ok(())
    }

    /// Starts it, once all was `prepared` that may take long: a start itself is seen through.
    async fn start(&mut self, prepared: Result<(), NotReady>) {
        let started = match prepared {
            Ok(()) => self.driver.start(&self.spec).await,
            Err(why) => Err(DriverError { attempt: "start", app: self.spec.app.clone(), problem: why.message }),
        };
        match started {
            Ok(()) => self.machine.started(Instant::now(), self.env.wall.now()),
            Err(e) => {
                tracing::warn!(app = %self.spec.app, error = %e, "start failed");
                self.machine.start_failed(Instant::now(), &e.to_string());
            }
        }
    }

    async fn kill(&mut self) {
        tracing::warn!(app = %self.spec.app, reason = self.machine.health().message, "restarting");
        let app = &self.spec.key();
        if let Err(e) = self.driver.stop(app, self.spec.workload.stop_grace.get()).await {
            tracing::warn!(app = %app, error = %e, "the next start tries again");
        }
        let exit = self.driver.inspect(app).await.ok().flatten().and_then(|instance| instance.exit);
        let unknown = LastExit { code: None, signal: None, at: self.env.wall.now(), message: String::new() };
        self.machine.killed(Instant::now(), exit.unwrap_or(unknown));
    }

    fn ended(&mut self, exit: LastExit) {
        tracing::info!(app = %self.spec.app, how = exit.message, "ended");
        self.machine.ended(Instant::now(), exit);
    }

    fn publish(&self) {
        self.publish.send_if_modified(|health| {
            let changed = health != self.machine.health();
            if changed {
                health.clone_from(self.machine.health());
            }
            changed
        });
    }
}

/// How the instance ended, once it did. Until then `unseen` says why nobody can tell whether it did.
async fn end(driver: &dyn Driver, spec: &InstanceSpec, env: &Env, unseen: &watch::Sender<Option<String>>) -> LastExit {
    let mut since: Option<Instant> = None;
    let lost = |since: &mut Option<Instant>, error: DriverError| {
        tracing::warn!(app = %spec.app, %error, "asking again");
        if since.get_or_insert_with(Instant::now).elapsed() >= UNSEEN {
            unseen.send_if_modified(|before| before.replace(error.problem).is_none());
        }
    };
    loop {
        match driver.wait(&spec.key()).await {
            Ok(exit) => return exit,
            Err(error) => lost(&mut since, error),
        }
        sleep(ASK_AGAIN).await;
        match driver.inspect(&spec.key()).await {
            Ok(Some(found)) if found.release == spec.release => {
                if let Some(exit) = found.exit {
                    return exit;
                }
                since = None;
                unseen.send_if_modified(|before| before.take().is_some());
            }
            Ok(_) => {
                let message = "it is gone, and nobody knows how it ended".into();
                return LastExit { code: None, signal: None, at: env.wall.now(), message };
            }
            Err(error) => lost(&mut since, error),
        }
    }
}

fn attempt<'a>(
    driver: &'a dyn Driver,
    spec: &'a InstanceSpec,
    kind: ProbeKind,
) -> BoxFuture<'a, (ProbeKind, ProbeOutcome)> {
    let probes = &spec.workload.probes;
    let probe = match kind {
        ProbeKind::Startup => &probes.startup,
        ProbeKind::Liveness => &probes.liveness,
        ProbeKind::Readiness => &probes.readiness,
    };
    Box::pin(async move {
        match probe {
            Some(probe) => (kind, driver.probe(spec, probe).await),
            None => (kind, ProbeOutcome::Success),
        }
    })
}

fn stopped(health: &mut Health) {
    health.state = RunState::Stopped;
    (health.ready, health.live, health.healthy_since, health.started_at) = (false, false, None, None);
    health.message.clear();
}
