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
//! | `tell-every=30` | so many seconds between two tellings |
//! | `files`, `bad-files` | there is none: the release is files for others, of which the bad ones make those hang |
//! | `eat-disk=100Mi` | runs, and takes so much of the 128 MiB that its box has to spare until it ends |
//!
//! The world makes one [`SimDriver`] a box. It outlives the agent, as real workloads do, until
//! [`SimDriver::lose_all`]. Before it runs anything it checks the tree against what was really released:
//! a difference is a [`SimDriver::violations`], whatever the agent believes. Its boxes have memory for two instances of
//! whatever is updated warm, so that one that is live and does its work is stopped only after another one is live, and
//! one that does not is not live beside one that does.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fmt, fs,
    io::BufReader,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use edgecore::{
    apps::live,
    driver::{Driver, DriverError, HookOutcome, Instance, InstanceSpec, InstanceUsage, ProbeOutcome, Side, side},
    metrics::{Metrics, Told},
};
use jiff::Timestamp;
use proto::{
    digest::Digest,
    env::{BoxFuture, WallClock},
    name::{MetricName, Name, Version},
    object::{LastExit, ReleaseRef, metrics::CAMERAS_LOST},
    release::{Gpus, Hook, Manifest, Probe, replicas, uses::variable},
    units::{self, Span},
    watch,
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    disk::{Disk, Taker},
    gpu::{self, SimGpus},
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
}

/// One instance, running or ended.
struct Process {
    instance: Instance,
    /// Its run folder, when it has one.
    run: Option<PathBuf>,
    /// The releases of others whose files it uses.
    uses: BTreeMap<Name, ReleaseRef>,
    number: u64,
    hangs: bool,
    eats_bytes: u64,
    /// What it tells of itself, and how often.
    tells: BTreeMap<MetricName, f64>,
    tells_every_s: u64,
    /// GPUs that it has, whether for itself, and how much of each.
    gpus: Vec<String>,
    exclusive: bool,
    gpu_bytes: u64,
    /// When it will end by itself.
    ends_at: Option<Instant>,
    /// Tells those who wait that it was stopped or replaced.
    ended: watch::Sender<Option<LastExit>>,
    log: Vec<String>,
}

/// What an instance of a release does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Runs,
    CrashesAfter(Duration),
    Hangs,
    Refuses,
    EatsDisk(u64),
}

impl Behaviour {
    fn of(args: &[String], host: &str) -> Behaviour {
        for arg in args {
            match arg.split_once('=') {
                Some(("crash-after", time)) => {
                    return Behaviour::CrashesAfter(time.parse::<Span>().map_or(Duration::ZERO, Span::get));
                }
                Some(("eat-disk", bytes)) => {
                    return Behaviour::EatsDisk(bytes.parse::<units::Bytes>().map_or(u64::MAX, units::Bytes::get));
                }
                Some(("refuse-on", word)) if host.contains(word) => return Behaviour::Refuses,
                None if ["hang", "warm-hang"].contains(&arg.as_str()) => return Behaviour::Hangs,
                None if arg == "refuse" => return Behaviour::Refuses,
                _ => {}
            }
        }
        Behaviour::Runs
    }
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

    fn gpus_answer(&self, uuids: &[String]) -> bool {
        uuids.iter().all(|uuid| self.gpus.as_ref().is_some_and(|gpus| gpus.answers(uuid)))
    }

    /// Whether an instance has the GPUs that it needs, and nobody has too much of one with it.
    fn check_gpus(&self, spec: &InstanceSpec) -> Result<(), String> {
        let Some(needs) = &spec.workload.gpus else { return Ok(()) };
        let named = spec.workload.env.get("CUDA_VISIBLE_DEVICES");
        if named != Some(&spec.gpus.join(",")) {
            return Err(format!("it has {:?} and is told {named:?}", spec.gpus));
        }
        let distinct: BTreeSet<&String> = spec.gpus.iter().collect();
        let there = distinct.iter().filter(|uuid| self.gpus.as_ref().is_some_and(|gpus| gpus.has(uuid))).count();
        if there != usize::try_from(needs.count).unwrap_or(usize::MAX) {
            return Err(format!("it needs {} GPUs and has {:?}", needs.count, spec.gpus));
        }
        let state = self.lock();
        let others = || state.apps.iter().filter(|(app, other)| **app != spec.key() && other.instance.exit.is_none());
        for uuid in distinct {
            let mut bytes = needs.memory_bytes();
            for (app, other) in others().filter(|(_, other)| other.gpus.contains(uuid)) {
                if needs.exclusive || other.exclusive {
                    return Err(format!("it has {uuid} together with {app}, and one of them wants it for itself"));
                }
                bytes = bytes.saturating_add(other.gpu_bytes);
            }
            if bytes > gpu::MEMORY_BYTES {
                return Err(format!("apps have {bytes} bytes of {uuid}, which has {}", gpu::MEMORY_BYTES));
            }
        }
        Ok(())
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

    /// Pulls the plugs of so many cameras of the box, or of none any more.
    pub fn lose_cameras(&self, count: u32) {
        self.lock().cameras_lost = count;
        self.trace.line(&self.host, format_args!("{count} cameras are lost"));
    }

    /// Hands what instances tell of themselves to an agent, for as long as that lives.
    pub async fn tell(&self, metrics: Metrics) -> Infallible {
        for second in 0_u64.. {
            while !self.lock().apps.values().any(|process| !process.tells.is_empty()) {
                self.tells.notified().await;
            }
            for told in self.told(second) {
                // An agent that does not know it yet says so, as it would to a real one.
                metrics.take(told).ok();
            }
            sleep(Duration::from_secs(1)).await;
        }
        std::future::pending().await
    }

    /// What those that run tell in a second.
    fn told(&self, second: u64) -> Vec<Told> {
        let state = self.lock();
        let tells = |process: &&Process| {
            process.instance.exit.is_none() && !process.tells.is_empty() && second.is_multiple_of(process.tells_every_s)
        };
        let told = |(app, process): (&Name, &Process)| {
            let mut values = process.tells.clone();
            if let (true, Ok(lost)) = (values.contains_key("cameras"), CAMERAS_LOST.parse()) {
                values.insert(lost, state.cameras_lost.into());
            }
            Told { app: app.clone(), digest: process.instance.release.digest, replica: None, values }
        };
        state.apps.iter().filter(|(_, process)| tells(process)).map(told).collect()
    }

    /// The version of an app that runs now.
    #[must_use]
    pub fn running(&self, app: &Name) -> Option<Version> {
        self.all_running().into_iter().find(|(name, ..)| name == app).map(|(_, release, _)| release.version)
    }

    /// Which version of each app was started last, or refused to.
    #[must_use]
    pub fn tried(&self) -> Vec<(Name, Version)> {
        self.lock().tried.iter().map(|(app, version)| (app.clone(), version.clone())).collect()
    }

    /// Another whenever [`SimDriver::tried`] or [`SimDriver::all_running`] is: between two attempts to start something,
    /// what runs can only become less.
    #[must_use]
    pub fn moment(&self) -> (u64, usize) {
        let state = self.lock();
        (state.attempts, state.apps.values().filter(|process| process.instance.exit.is_none()).count())
    }

    /// Everything that runs now and is live, with the number of its instance: no two of a box share one.
    #[must_use]
    pub fn all_running(&self) -> Vec<(Name, ReleaseRef, u64)> {
        let state = self.lock();
        let running = state.apps.iter().filter(|(_, process)| process.instance.exit.is_none() && process.is_live());
        running.map(|(key, process)| (side::app_of(key), process.instance.release.clone(), process.number)).collect()
    }

    /// What was started although it was not what its release says. Empty, or the agent is broken.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Compares what is to be run with what was released under this digest.
    fn check_tree(&self, spec: &InstanceSpec) -> Result<(), String> {
        let released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
        let manifest = released.get(&spec.release.digest).ok_or("such a release was never published")?;
        let (app, version) = (&spec.app, &spec.release.version);
        if (app, version) != (&manifest.app, &manifest.version) {
            return Err(format!("its digest is that of {}@{}", manifest.app, manifest.version));
        }
        let mut workload = spec.workload.clone();
        for own in [
            "CROSSDOCK_APPS",
            "CUDA_VISIBLE_DEVICES",
            "NVIDIA_VISIBLE_DEVICES",
            live::OWN,
            live::LIVE,
            replicas::VARIABLE,
        ] {
            workload.env.remove(own); // the agent's to say
        }
        for of in spec.uses.keys() {
            workload.env.remove(&variable(of));
        }
        if manifest.workload.as_ref() != Some(&workload) {
            return Err("its command, arguments or limits are not what was released".into());
        }
        compare(&spec.tree, manifest)
    }

    /// Compares the files of others with what was released, and says whether they are bad.
    fn check_used(&self, spec: &InstanceSpec) -> (Result<(), String>, bool) {
        let released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut checked, mut are_bad) = (Ok(()), false);
        for (of, used) in &spec.uses {
            let Some(manifest) = released.get(&used.digest) else {
                checked = Err(format!("it uses {of}@{}, which was never published", used.version));
                continue;
            };
            are_bad |= manifest.files.iter().any(|file| file.path.as_str() == BAD_FILES);
            let folder = spec.workload.env.get(&variable(of)).map(PathBuf::from).unwrap_or_default();
            let same = compare(&folder, manifest).map_err(|problem| format!("files of {of}: {problem}"));
            checked = checked.and(same);
        }
        (checked, are_bad)
    }

    /// The release of files alone that has this digest.
    #[must_use]
    pub fn files_alone(&self, digest: Digest) -> Option<Version> {
        let released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
        released.get(&digest).filter(|manifest| manifest.workload.is_none()).map(|manifest| manifest.version.clone())
    }

    /// Whether any release is files alone.
    #[must_use]
    pub fn knows_files(&self) -> bool {
        let released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
        released.values().any(|manifest| manifest.workload.is_none())
    }

    /// What the live instance of each app uses of others.
    #[must_use]
    pub fn used(&self) -> Vec<(Name, BTreeMap<Name, Version>)> {
        let state = self.lock();
        let live = state.apps.iter().filter(|(_, p)| p.instance.exit.is_none() && p.is_live() && !p.uses.is_empty());
        let versions = |p: &Process| p.uses.iter().map(|(of, used)| (of.clone(), used.version.clone())).collect();
        live.map(|(key, process)| (Side::of(key).0, versions(process))).collect()
    }

    fn start_now(&self, spec: &InstanceSpec) -> Result<(), DriverError> {
        let (app, version) = (&spec.app, &spec.release.version);
        let (used, bad_files) = self.check_used(spec);
        if let Err(problem) = self.check_tree(spec).and(used).and_then(|()| self.check_gpus(spec)) {
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
        self.trace.line(&self.host, format_args!("{app}@{version} started{used}"));
        let ends_at = match behaviour {
            Behaviour::CrashesAfter(time) => Some(Instant::now() + time),
            _ => None,
        };
        let started_at = self.wall.now();
        let mut state = self.lock();
        state.started += 1;
        let process = Process {
            instance: Instance { release: spec.release.clone(), started_at, exit: None },
            run: spec.run.clone(),
            uses: spec.uses.clone(),
            number: state.started,
            hangs: behaviour == Behaviour::Hangs || bad_files,
            tells: tells(&spec.workload.args),
            tells_every_s: tells_every_s(&spec.workload.args),
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

    /// Notes that an instance is live that does not do its work, beside one that does.
    fn check_live(&self, key: &Name) {
        let (app, side) = Side::of(key);
        let found = {
            let state = self.lock();
            let of = |key: &Name| state.apps.get(key).filter(|process| process.instance.exit.is_none());
            let other = side.other().key(&app).is_some_and(|other| of(&other).is_some_and(|process| !process.hangs));
            let own = of(key).filter(|process| process.run.is_some() && process.hangs && process.is_live());
            own.filter(|_| other).map(|process| process.instance.release.version.clone())
        };
        if let Some(version) = found {
            self.violation(format!("{key}@{version} is live, and does nothing, beside one that would"));
        }
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

impl Process {
    /// Whether clients reach it, and it does its work.
    fn is_live(&self) -> bool {
        let Some(own) = &self.run else { return true };
        fs::read_link(own.with_file_name(live::NAME)).ok().as_deref() == own.file_name().map(Path::new)
    }

    /// Whether it is updated warm, so that it is not to end before another one is live, and does its work.
    fn would_be_missed(&self) -> bool {
        self.run.is_some() && self.instance.exit.is_none() && self.is_live() && !self.hangs
    }

    fn notice_crash(&mut self, wall: &dyn WallClock) {
        if self.instance.exit.is_none() && self.ends_at.is_some_and(|at| at <= Instant::now()) {
            let mut exit = exit(Some(1), None, wall.now());
            exit.message = "crashed, as its release says".into();
            self.end_in_place(exit);
        }
    }

    fn end_in_place(&mut self, exit: LastExit) {
        self.instance.exit = Some(exit.clone());
        self.ended.send_replace(Some(exit));
    }

    fn end(mut self, exit: LastExit) {
        if self.instance.exit.is_none() {
            self.end_in_place(exit);
        }
    }
}

/// What an instance tells of itself: `tell=NAME:NUMBER`.
fn tells(args: &[String]) -> BTreeMap<MetricName, f64> {
    let told = args.iter().filter_map(|arg| arg.strip_prefix("tell=")?.split_once(':'));
    told.filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?))).collect()
}

/// Seconds between two tellings.
fn tells_every_s(args: &[String]) -> u64 {
    let every = args.iter().find_map(|arg| arg.strip_prefix("tell-every=")?.parse().ok());
    every.unwrap_or(1).max(1)
}

/// Paths of the files below a folder, as a manifest has them.
fn files(folder: &Path, prefix: &str, found: &mut BTreeSet<String>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            files(&entry.path(), &format!("{path}/"), found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

fn exit(code: Option<i32>, signal: Option<i32>, at: Timestamp) -> LastExit {
    LastExit { code, signal, at, message: String::new() }
}

/// Compares a tree with what was released.
fn compare(tree: &Path, manifest: &Manifest) -> Result<(), String> {
    let mut there = BTreeSet::new();
    files(tree, "", &mut there).map_err(|e| format!("its tree cannot be read: {e}"))?;
    let listed: BTreeSet<String> = manifest.files.iter().map(|file| file.path.as_str().to_owned()).collect();
    if let Some(extra) = there.difference(&listed).next() {
        return Err(format!("{extra} was never released"));
    }
    for file in &manifest.files {
        let path = tree.join(file.path.as_str());
        let open = std::fs::File::open(&path).map_err(|e| format!("{}: {e}", file.path.as_str()))?;
        let (digest, _) = Digest::of_reader(BufReader::new(open)).map_err(|e| e.to_string())?;
        if digest != file.digest {
            return Err(format!("{} is not what was released", file.path.as_str()));
        }
    }
    Ok(())
}

impl Driver for SimDriver {
    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move { self.start_now(spec) })
    }

    fn inspect<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<Option<Instance>, DriverError>> {
        Box::pin(async move { Ok(self.lock().apps.get(app).map(|process| process.instance.clone())) })
    }

    fn wait<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<LastExit, DriverError>> {
        Box::pin(self.wait_for_end(app))
    }

    fn stop<'a>(&'a self, app: &'a Name, grace: Duration) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            self.stop_now(app, grace).await;
            Ok(())
        })
    }

    fn remove<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            let gone = self.lock().apps.remove(app);
            drop(gone);
            self.share_disk();
            Ok(())
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Name>, DriverError>> {
        Box::pin(async move { Ok(self.lock().apps.keys().cloned().collect()) })
    }

    fn probe<'a>(&'a self, spec: &'a InstanceSpec, probe: &'a Probe) -> BoxFuture<'a, ProbeOutcome> {
        Box::pin(async move {
            let hangs = {
                let state = self.lock();
                match state.apps.get(&spec.key()) {
                    Some(process) if process.instance.exit.is_none() => process.hangs,
                    _ => return ProbeOutcome::Failure("nothing runs".into()),
                }
            };
            if hangs {
                self.check_live(&spec.key());
                sleep(probe.timeout.get()).await;
                return ProbeOutcome::Failure("no answer".into());
            }
            ProbeOutcome::Success
        })
    }

    fn hook<'a>(&'a self, spec: &'a InstanceSpec, _: &'a Hook) -> BoxFuture<'a, HookOutcome> {
        Box::pin(async move {
            self.trace.line(&self.host, format_args!("{}@{} hook", spec.app, spec.release.version));
            HookOutcome::Success
        })
    }

    fn usage<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Option<InstanceUsage>> {
        Box::pin(async move {
            let runs = self.lock().apps.get(app).is_some_and(|process| process.instance.exit.is_none());
            runs.then_some(InstanceUsage { cpu: None, memory_bytes: Some(USED_BYTES) })
        })
    }

    fn memory_available(&self) -> BoxFuture<'_, Option<u64>> {
        Box::pin(async { Some(AVAILABLE_BYTES) })
    }

    fn reboot<'a>(&'a self, _: &'a [String]) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            self.trace.line(&self.host, format_args!("restarts on order"));
            self.goes_down.notify_one();
            Ok(())
        })
    }

    fn logs<'a>(
        &'a self,
        app: &'a Name,
        tail: Option<u32>,
        _follow: bool,
    ) -> BoxFuture<'a, Option<mpsc::Receiver<Bytes>>> {
        Box::pin(async move {
            let lines = self.lock().apps.get(app)?.log.clone();
            let skip = tail.map_or(0, |n| lines.len().saturating_sub(usize::try_from(n).unwrap_or(usize::MAX)));
            let (sender, receiver) = mpsc::channel(lines.len().max(1));
            for line in lines.into_iter().skip(skip) {
                let _ = sender.try_send(Bytes::from(line)); // as many places as lines
            }
            Some(receiver)
        })
    }
}

impl fmt::Debug for SimDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDriver({})", self.host)
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
