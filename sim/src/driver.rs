//! Workloads that only pretend: they run, crash or hang as the arguments of their release say.
//!
//! | argument | what the instance does |
//! |---|---|
//! | (none) | runs, and every probe succeeds |
//! | `crash-after=2s` | ends with exit code 1 after that time |
//! | `hang` | runs, every probe fails, and SIGTERM does not end it |
//! | `warm`, `warm-hang` | as without, and as `hang`; a release with it is updated warm |
//! | `refuse` | cannot be started at all |
//! | `refuse-on=gpu` | the same, on boxes that have it in their names |
//! | `tell=frames_per_second:25` | tells that of itself each second; with `cameras` also those that are lost |
//! | the same, of what replicas follow | tells that of the app as a whole, or the backlog that a fault gives its box |
//! | `tell-every=30` | so many seconds between two tellings |
//! | `files`, `bad-files` | there is none: the release is files for others, of which the bad ones make those hang |
//! | `eat-disk=100Mi` | runs, and takes so much of the 128 MiB that its box has to spare until it ends |
//!
//! The world makes one [`SimDriver`] a box. It outlives the agent, as real workloads do, until
//! [`SimDriver::lose_all`]. Before it runs anything it checks the tree against what was really released:
//! a difference is a [`SimDriver::violations`], whatever the agent believes. Its boxes have memory for two instances of
//! whatever is updated warm, so that one that is live and does its work is stopped only after another one is live, and
//! one that does not is not live beside one that does.

mod check;
mod observe;
mod process;
mod serve;
mod tell;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use edgecore::driver::{DriverError, Instance, InstanceSpec};
use proto::{
    digest::Digest,
    env::WallClock,
    name::{Name, Version},
    object::LastExit,
    release::{Gpus, Manifest},
    watch,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use self::process::{Behaviour, Process, exit, tells, tells_every_s};
use crate::{
    disk::{Disk, Taker},
    gpu::SimGpus,
    trace::Trace,
};

/// What a box has to spare for a workload that eats its disk.
const SPARE_BYTES: u64 = 128 << 20;

/// In the tree of a release whose files make those hang that use them.
pub const BAD_FILES: &str = "bad-files";

/// Memory that an instance uses.
const USED_BYTES: u64 = 256 << 20;

/// Memory that a box has to spare.
const AVAILABLE_BYTES: u64 = 4 << 30;

/// Manifests that were really released, by digest. The world fills it.
pub type Released = Arc<Mutex<BTreeMap<Digest, Manifest>>>;

/// The workloads of one box.
#[derive(Clone)]
pub struct SimDriver {
    host: String,
    wall: Arc<dyn WallClock>,
    released: Released,
    trace: Trace,
    disk: Option<Arc<Disk>>,
    gpus: Option<SimGpus>,
    state: Arc<Mutex<State>>,
    goes_down: Arc<Notify>,
    tells: Arc<Notify>,
}

#[derive(Default)]
struct State {
    /// By [`InstanceSpec::key`].
    apps: BTreeMap<Name, Process>,
    /// Which version of an app was to be started last.
    tried: BTreeMap<Name, Version>,
    /// Attempts to start something.
    attempts: u64,
    /// Instances so far, which are numbered from 1 on.
    started: u64,
    violations: Vec<String>,
    /// Cameras whose plug was pulled.
    cameras_lost: u32,
    /// What instances tell of what their replicas follow.
    backlog: Option<u32>,
    /// When a release was started first.
    begun: BTreeMap<Digest, Instant>,
}

impl SimDriver {
    /// A box on which nothing runs.
    #[must_use]
    pub fn new(host: &str, wall: Arc<dyn WallClock>, released: Released, trace: Trace) -> SimDriver {
        SimDriver {
            host: host.to_owned(),
            wall,
            released,
            trace,
            disk: None,
            gpus: None,
            state: Arc::default(),
            goes_down: Arc::default(),
            tells: Arc::default(),
        }
    }

    /// As it is, on this disk, which its workloads may fill.
    #[must_use]
    pub fn on_disk(self, disk: Arc<Disk>) -> SimDriver {
        SimDriver { disk: Some(disk), ..self }
    }

    /// As it is, on a box with these GPUs.
    #[must_use]
    pub fn with_gpus(self, gpus: SimGpus) -> SimDriver {
        SimDriver { gpus: Some(gpus), ..self }
    }

    /// What uses a GPU that does not answer any more ends.
    pub fn notice_gpus(&self) {
        let now = self.wall.now();
        let mut state = self.lock();
        for (app, process) in &mut state.apps {
            if process.instance.exit.is_none() && !self.gpus_answer(&process.gpus) {
                self.trace.line(&self.host, format_args!("{app}: its GPU is lost"));
                process.end_in_place(LastExit { message: "CUDA error: no device".into(), ..exit(Some(1), None, now) });
            }
        }
    }

    /// Ends everything at once, as a power cut does. Nothing is left of any instance.
    pub fn lose_all(&self) {
        let gone = std::mem::take(&mut self.lock().apps);
        drop(gone);
        self.share_disk();
        self.trace.line(&self.host, format_args!("all workloads gone"));
    }

    /// When the agent has its box go down. Cancel safe.
    pub async fn goes_down(&self) {
        self.goes_down.notified().await;
    }

    fn start_now(&self, spec: &InstanceSpec) -> Result<(), DriverError> {
        let (app, version) = (&spec.app, &spec.release.version);
        let (used, bad_files) = self.check_used(spec);
        let checked = self.check_tree(spec).and(used).and_then(|()| self.check_gpus(spec));
        if let Err(problem) = checked.and_then(|()| self.check_replicas(spec)) {
            self.trace.line(&self.host, format_args!("VIOLATION {app}@{version}: {problem}"));
            self.lock().violations.push(format!("{}: {app}@{version} was started: {problem}", self.host));
        }
        {
            let mut state = self.lock();
            state.attempts += 1;
            state.tried.insert(app.clone(), version.clone());
        }
        let behaviour = Behaviour::of(&spec.workload.args, &self.host);
        if behaviour == Behaviour::Refuses {
            self.trace.line(&self.host, format_args!("{app}@{version} does not start"));
            let problem = "its release says `refuse`".to_owned();
            return Err(DriverError { attempt: "start", app: app.clone(), problem });
        }
        let used: String = spec.uses.iter().map(|(of, used)| format!(" with {of}@{}", used.version)).collect();
        let replica = if spec.replica > 0 { format!(" as replica {}", spec.replica) } else { String::new() };
        self.trace.line(&self.host, format_args!("{app}@{version} started{replica}{used}"));
        let ends_at = match behaviour {
            Behaviour::CrashesAfter(time) => Some(Instant::now() + time),
            _ => None,
        };
        let started_at = self.wall.now();
        let mut state = self.lock();
        state.started += 1;
        state.begun.entry(spec.release.digest).or_insert_with(Instant::now);
        let process = Process {
            instance: Instance { release: spec.release.clone(), started_at, exit: None },
            run: spec.run.clone(),
            uses: spec.uses.clone(),
            number: state.started,
            hangs: behaviour == Behaviour::Hangs || bad_files,
            tells: tells(&spec.workload.args),
            tells_every_s: tells_every_s(&spec.workload.args),
            follows: spec.workload.replicas.as_ref().map(|replicas| replicas.metric.clone()),
            eats_bytes: if let Behaviour::EatsDisk(bytes) = behaviour { bytes } else { 0 },
            ends_at: if self.gpus_answer(&spec.gpus) { ends_at } else { Some(Instant::now()) },
            gpus: spec.gpus.clone(),
            exclusive: spec.workload.gpus.as_ref().is_some_and(|gpus| gpus.exclusive),
            gpu_bytes: spec.workload.gpus.as_ref().map_or(0, Gpus::memory_bytes),
            ended: watch::channel(None).0,
            log: vec![format!("{started_at} stdout F {app}@{version} started\n")],
        };
        if !process.tells.is_empty() {
            self.tells.notify_one();
        }
        let before = state.apps.insert(spec.key(), process);
        drop(state);
        if let Some(before) = before {
            if before.would_be_missed() {
                self.violation(format!("{app}@{} was replaced while it was live", before.instance.release.version));
            }
            before.end(exit(None, Some(9), started_at));
        }
        self.share_disk();
        Ok(())
    }

    /// What runs takes its share of the disk, and what has ended gives it back.
    fn share_disk(&self) {
        let eaten: u64 = {
            let state = self.lock();
            let alive = state.apps.values().filter(|process| process.instance.exit.is_none());
            alive.map(|process| process.eats_bytes).fold(0, u64::saturating_add)
        };
        if let Some(disk) = &self.disk {
            disk.set_room(Taker::Workload, (eaten > 0).then(|| SPARE_BYTES.saturating_sub(eaten)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for process in state.apps.values_mut() {
            process.notice_crash(self.wall.as_ref());
        }
        state
    }

    async fn wait_for_end(&self, app: &Name) -> Result<LastExit, DriverError> {
        let nothing = || DriverError { attempt: "wait for", app: app.clone(), problem: "nothing runs".into() };
        let (ends_at, mut ended) = {
            let state = self.lock();
            let process = state.apps.get(app).ok_or_else(nothing)?;
            (process.ends_at, process.ended.subscribe())
        };
        tokio::select! { biased;
            result = async { ended.wait_for(Option::is_some).await.map(|exit| exit.clone()) } => {
                return result.ok().flatten().ok_or_else(nothing);
            }
            () = async { match ends_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            } } => {}
        }
        self.lock().apps.get(app).and_then(|process| process.instance.exit.clone()).ok_or_else(nothing)
    }

    fn violation(&self, text: String) {
        self.trace.line(&self.host, format_args!("VIOLATION {text}"));
        self.state.lock().unwrap_or_else(PoisonError::into_inner).violations.push(format!("{}: {text}", self.host));
    }

    async fn stop_now(&self, app: &Name, grace: Duration) {
        let (hangs, missed) = {
            let state = self.lock();
            match state.apps.get(app) {
                Some(process) if process.instance.exit.is_none() => {
                    let missed = process.would_be_missed().then(|| process.instance.release.version.clone());
                    (process.hangs, missed)
                }
                _ => return,
            }
        };
        if let Some(version) = missed {
            self.violation(format!("{app}@{version} was stopped while it was live"));
        }
        if hangs {
            sleep(grace).await; // it ignores SIGTERM
        }
        let now = self.wall.now();
        if let Some(process) = self.lock().apps.get_mut(app)
            && process.instance.exit.is_none()
        {
            process.end_in_place(exit(None, Some(if hangs { 9 } else { 15 }), now));
            self.trace.line(&self.host, format_args!("{app}@{} stopped", process.instance.release.version));
        }
        self.share_disk();
    }
}

impl fmt::Debug for SimDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDriver({})", self.host)
    }
}
