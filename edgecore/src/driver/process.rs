//! Workloads as processes of the box, each under a shim of its own. The agent's supervisors call it.
//!
//! The driver keeps nothing in memory: who runs is who holds the lock of an app's folder, so an agent
//! that is started anew finds all that the one before it left running. A shim that was killed is
//! noticed by its free lock and missing exit record; then the driver kills what it left behind.
//!
//! No record keeps an app from being stopped or started: a damaged one is told and counts as none, and
//! an end that cannot be written, for want of disk, is an end all the same once nothing is left.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, PipeReader},
    os::fd::OwnedFd,
    path::PathBuf,
    process::Stdio,
    sync::Mutex,
    time::Duration,
};

use bytes::Bytes;
use proto::{
    digest::Digest,
    durable,
    env::{BoxFuture, Env},
    exec::Start,
    name::Name,
    object::LastExit,
    release::{Hook, Probe},
};
use rand::Rng as _;
use rand_chacha::ChaCha12Rng;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{
    io::{AsyncReadExt as _, Interest, unix::AsyncFd},
    net::unix::pipe,
    process::Command,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{
    Attached, Driver, DriverError, HookOutcome, Instance, InstanceSpec, InstanceUsage, ProbeOutcome, attach,
    cgroup::Group,
    logs, probe, procs,
    records::{Ended, Folder, Launch, is_damaged},
    shim::STARTED,
};
use crate::facts;

const START_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_REPORT_BYTES: u64 = 8192;
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Beyond the grace: how long SIGKILL may take.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// Grace for an instance of which nobody knows what it is.
const UNKNOWN_GRACE: Duration = Duration::from_secs(10);
/// A process in the middle of execve shows no environment, and so no mark: one empty scan proves nothing.
const EMPTY_SCANS: u32 = 2;
const SCAN_AGAIN: Duration = Duration::from_millis(50);

/// Runs workloads as processes.
#[derive(Debug)]
pub struct ProcessDriver {
    root: PathBuf,
    env: Env,
    pub(super) program: PathBuf,
    names: Mutex<ChaCha12Rng>,
}

impl ProcessDriver {
    /// Keeps its records below `root`, one folder an app.
    #[must_use]
    pub fn new(root: PathBuf, env: Env) -> ProcessDriver {
        let names = Mutex::new(env.seed.stream("instances of processes"));
        ProcessDriver { root, env, program: "/proc/self/exe".into(), names }
    }

    /// Uses another program than the running one for `shim` and `exec`.
    #[must_use]
    pub fn with_program(mut self, program: PathBuf) -> ProcessDriver {
        self.program = program;
        self
    }

    pub(super) fn folder(&self, app: &Name) -> Folder {
        Folder::at(self.root.join(app.as_str()))
    }

    /// Name of an app's control group; agents with other folders have others.
    pub(super) fn group(&self, app: &str) -> String {
        let place = Digest::of(self.root.as_os_str().as_encoded_bytes()).to_string();
        let place: String = place.chars().filter(char::is_ascii_hexdigit).rev().take(8).collect();
        format!("{app}-{place}")
    }

    /// Does what blocks where it may.
    pub(super) async fn on<T: Send + 'static>(
        &self,
        folder: &Folder,
        work: impl FnOnce(&Folder) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let folder = folder.clone();
        self.env.blocking.run(move || work(&folder)).await
    }

    pub(super) fn launch_for(&self, spec: &InstanceSpec) -> Launch {
        let random = self.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next_u64();
        Launch {
            instance: format!("{random:016x}{:x}", self.env.wall.now().as_millisecond()),
            boot_id: procs::boot_id(),
            group: self.group(spec.key().as_str()),
            app: spec.app.clone(),
            release: spec.release.clone(),
            run: spec.run.clone(),
            tree: spec.tree.clone(),
            data: spec.data.clone(),
            workload: spec.workload.clone(),
        }
    }

    async fn try_start(&self, spec: &InstanceSpec) -> Result<(), String> {
        let folder = self.folder(&spec.key());
        if spec.replica == 0 {
            self.end_hook(&self.folder(&spec.app)).await?; // a hook runs beside replicas
        }
        self.try_stop(&folder, spec.workload.stop_grace.get()).await?;
        let (launch, data) = (self.launch_for(spec), spec.data.clone());
        let prepared = self.on(&folder, move |folder| {
            durable::create_dir_all(&data).map_err(io::Error::other)?;
            folder.store_launch(&launch)
        });
        prepared.await.map_err(|e| format!("its records cannot be written: {}", chain(&e)))?;
        let report = self.spawn_shim(&folder).map_err(|e| format!("its shim cannot be made: {e}"))?;
        let report = timeout(START_TIMEOUT, read_report(report)).await;
        let problem = match report {
            Ok(Ok(text)) if text == STARTED => return Ok(()),
            Ok(Ok(text)) if text.is_empty() => "its shim ended without a word; is the box out of memory?".to_owned(),
            Ok(Ok(text)) => text,
            Ok(Err(e)) => format!("its shim cannot be heard: {e}"),
            Err(_) => format!("it did not start within {} s", START_TIMEOUT.as_secs()),
        };
        self.try_stop(&folder, Duration::ZERO).await?; // nothing half-started stays
        Err(problem)
    }

    /// Spawns the shim; the end of a pipe that it reports through comes back.
    fn spawn_shim(&self, folder: &Folder) -> io::Result<PipeReader> {
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new(&self.program);
        command.arg("shim").arg(folder.path()).env_clear();
        command.stdin(Stdio::from(writer)).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        // It goes on when this process ends; while this process lives, somebody must reap it.
        tokio::spawn(async move { child.wait().await });
        Ok(reader)
    }

    /// The newest instance and what is known of it.
    async fn look(&self, folder: &Folder) -> Result<Option<Instance>, String> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let seen = self.on(folder, see).await.map_err(|e| format!("its records cannot be read: {e}"))?;
            match seen {
                Seen::Nothing => return Ok(None),
                Seen::Instance(instance) => return Ok(Some(instance)),
                Seen::Starting if Instant::now() < deadline => sleep(LOOK_AGAIN).await,
                Seen::Starting => {
                    tracing::warn!(folder = %folder.path().display(), "its shim neither starts nor gives up: stopped");
                    self.end(folder, Duration::ZERO).await?;
                }
                Seen::Unknown => self.end(folder, UNKNOWN_GRACE).await?,
                Seen::Remains => {
                    self.sweep_folder(folder).await?;
                    return Ok(None);
                }
                Seen::ShimGone(launch) => {
                    self.sweep(&Remains::of(&launch)).await?;
                    let exit = LastExit {
                        code: None,
                        signal: Some(9),
                        at: self.env.wall.now(),
                        message: "its shim was killed, and the rest was stopped".into(),
                    };
                    let ended = Ended { instance: launch.instance.clone(), exit: exit.clone() };
                    if let Err(e) = self.on(folder, move |folder| folder.store_ended(&ended)).await {
                        tracing::warn!(app = %launch.app, error = chain(&e), "its end cannot be recorded");
                        let started_at = exit.at; // nobody knows better
                        return Ok(Some(Instance { release: launch.release, started_at, exit: Some(exit) }));
                    }
                }
            }
        }
    }

    async fn try_wait(&self, folder: &Folder) -> Result<LastExit, String> {
        loop {
            match self.look(folder).await? {
                None => return Err("nothing of it was started".into()),
                Some(Instance { exit: Some(exit), .. }) => return Ok(exit),
                Some(_) => {
                    if let Some(shim) = Shim::find(folder).map_err(|e| format!("its shim cannot be found: {e}"))? {
                        shim.ended().await;
                    }
                }
            }
        }
    }

    async fn try_stop(&self, folder: &Folder, grace: Duration) -> Result<(), String> {
        self.end(folder, grace).await?;
        if self.sweep_folder(folder).await? {
            self.look(folder).await?; // an end that nobody noted is noted now
        }
        Ok(())
    }

    /// Has a living shim stop its workload and waits until it is gone.
    async fn end(&self, folder: &Folder, grace: Duration) -> Result<(), String> {
        let find = || Shim::find(folder).map_err(|e| format!("its shim cannot be found: {e}"));
        let Some(shim) = find()? else { return Ok(()) };
        if let Err(e) = self.on(folder, move |folder| folder.store_grace(grace)).await {
            tracing::warn!(folder = %folder.path().display(), error = %e, "its grace cannot be written, its release's counts");
        }
        shim.signal(Signal::TERM);
        if timeout(grace.saturating_add(KILL_TIMEOUT), shim.ended()).await.is_err() {
            shim.signal(Signal::KILL); // and what it could not end is swept
            let _ = timeout(KILL_TIMEOUT, shim.ended()).await;
        }
        find()?.map_or(Ok(()), |_| Err("its shim does not die; reboot".into()))
    }

    /// Kills what is left in this boot of the instance of a folder without a shim; whether there was one.
    async fn sweep_folder(&self, folder: &Folder) -> Result<bool, String> {
        let app = folder.path().file_name().unwrap_or_default().to_string_lossy();
        self.sweep_group(folder, self.group(&app)).await
    }

    pub(super) async fn sweep_group(&self, folder: &Folder, group: String) -> Result<bool, String> {
        let remains = self.on(folder, move |folder| match folder.launch() {
            Ok(launch) => Ok(launch.filter(|l| l.boot_id == procs::boot_id()).map(|l| Remains::of(&l))),
            // Its group is known by the app's name, and `running.json` names the instance too.
            Err(e) if is_damaged(&e) => Ok(Some(Remains { group, instance: folder.instance() })),
            Err(e) => Err(e),
        });
        match remains.await.map_err(|e| format!("its records cannot be read: {e}"))? {
            Some(remains) => self.sweep(&remains).await.map(|()| true),
            None => Ok(false),
        }
    }

    async fn sweep(&self, remains: &Remains) -> Result<(), String> {
        let deadline = Instant::now() + KILL_TIMEOUT;
        let mut empty_scans = 0;
        while empty_scans < EMPTY_SCANS {
            let remains = remains.clone();
            let left = self.env.blocking.run(move || remains.kill()).await;
            if left.is_empty() {
                empty_scans += 1;
                sleep(SCAN_AGAIN).await;
                continue;
            }
            empty_scans = 0;
            if Instant::now() >= deadline {
                let left: Vec<_> = left.iter().map(i32::to_string).collect();
                return Err(format!("processes {} do not die; they may hang in a device: reboot", left.join(", ")));
            }
            sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }
}

/// What the records of a folder say.
enum Seen {
    Nothing,
    Starting,
    Instance(Instance),
    ShimGone(Box<Launch>),
    /// A shim lives, and the record of what it runs is damaged.
    Unknown,
    /// No shim lives, and the record of what ran is damaged.
    Remains,
}

fn see(folder: &Folder) -> io::Result<Seen> {
    // The lock first: a shim notes the end before it lets go of the lock.
    let alive = folder.holder()?.is_some();
    let launch = match folder.launch() {
        Ok(Some(launch)) => launch,
        Ok(None) => return Ok(Seen::Nothing),
        Err(e) if is_damaged(&e) => {
            tracing::warn!(error = %e, alive, "nobody knows what it ran: stopped");
            return Ok(if alive { Seen::Unknown } else { Seen::Remains });
        }
        Err(e) => return Err(e),
    };
    if launch.boot_id != procs::boot_id() {
        return Ok(Seen::Nothing);
    }
    // That there is a record says that it started, whatever has become of its content.
    let started_at = match folder.running(&launch) {
        Err(e) if is_damaged(&e) => {
            tracing::warn!(app = %launch.app, error = %e, "the time of its start is estimated");
            Some(folder.running_written_at())
        }
        running => running?.map(|r| r.started_at),
    };
    let exit = match folder.ended(&launch) {
        Err(e) if is_damaged(&e) => {
            tracing::warn!(app = %launch.app, error = %e, "nobody knows how it ended");
            None
        }
        exit => exit?,
    };
    Ok(match (started_at, exit, alive) {
        (None, None, true) => Seen::Starting,
        (None, None, false) => Seen::Nothing,
        (Some(_), None, false) => Seen::ShimGone(Box::new(launch)),
        (started_at, exit, _) => {
            let started_at = started_at.or_else(|| exit.as_ref().map(|e| e.at)).unwrap_or_default();
            Seen::Instance(Instance { release: launch.release, started_at, exit })
        }
    })
}

/// By what the processes of an instance are found.
#[derive(Debug, Clone)]
pub(super) struct Remains {
    group: String,
    instance: Option<String>,
}

impl Remains {
    pub(super) fn of(launch: &Launch) -> Remains {
        Remains { group: launch.group.clone(), instance: Some(launch.instance.clone()) }
    }

    /// Kills what is marked as part of the instance or sits in its group; returns it.
    pub(super) fn kill(&self) -> BTreeSet<i32> {
        let group = Group::existing(&self.group);
        let mut left = self.instance.as_deref().map(procs::marked).unwrap_or_default();
        left.extend(group.pids());
        if left.is_empty() {
            group.remove();
            return left;
        }
        group.kill();
        for pid in left.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            let _ = rustix::process::kill_process(pid, Signal::KILL); // ended meanwhile: as wanted
        }
        left
    }
}

/// A living shim.
struct Shim {
    folder: Folder,
    /// Absent on kernels before 5.3.
    handle: Option<AsyncFd<OwnedFd>>,
    pid: Pid,
}

impl Shim {
    fn find(folder: &Folder) -> io::Result<Option<Shim>> {
        let Some(pid) = folder.holder()?.and_then(Pid::from_raw) else { return Ok(None) };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => Some(watchable(handle, Interest::READABLE)?),
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(_) => None,
        };
        // Whoever holds the lock now held it when the handle was made: it is no later process of that number.
        let still = folder.holder()? == Some(pid.as_raw_nonzero().get());
        Ok(still.then(|| Shim { folder: folder.clone(), handle, pid }))
    }

    fn signal(&self, signal: Signal) {
        let _ = match &self.handle {
            Some(handle) => pidfd_send_signal(handle.get_ref(), signal),
            None => rustix::process::kill_process(self.pid, signal),
        }; // ended meanwhile: as wanted
    }

    /// Cancel safe.
    async fn ended(&self) {
        if let Some(handle) = &self.handle
            && handle.readable().await.is_ok()
        {
            return;
        }
        while self.folder.holder().is_ok_and(|h| h == Some(self.pid.as_raw_nonzero().get())) {
            sleep(LOOK_AGAIN).await;
        }
    }
}

#[allow(deprecated)] // its successor is unsafe for types that lie about their descriptor; OwnedFd does not
pub(super) fn watchable(handle: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(handle, interest)
}

async fn read_report(pipe: PipeReader) -> io::Result<String> {
    let mut text = Vec::new();
    let pipe = pipe::Receiver::from_owned_fd(pipe.into())?;
    pipe.take(MAX_REPORT_BYTES).read_to_end(&mut text).await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What the group counted; for what it does not count, what its processes did, or else the shim's descendants.
fn used(group: &str, shim: i32) -> InstanceUsage {
    let group = Group::existing(group);
    let (cpu, memory_bytes) = (group.cpu_time(), group.memory_bytes());
    if cpu.is_some() && memory_bytes.is_some() {
        return InstanceUsage { cpu, memory_bytes };
    }
    let mut pids = group.pids();
    if pids.is_empty() {
        pids = procs::descendants(shim);
    }
    let counted = procs::usage(&pids);
    InstanceUsage { cpu: cpu.or(Some(counted.0)), memory_bytes: memory_bytes.or(Some(counted.1)) }
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn failed<'a>(attempt: &'static str, app: &'a Name) -> impl FnOnce(String) -> DriverError + 'a {
    move |problem| DriverError { attempt, app: app.clone(), problem }
}

impl Driver for ProcessDriver {
    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move { self.try_start(spec).await.map_err(failed("start", &spec.app)) })
    }

    fn inspect<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<Option<Instance>, DriverError>> {
        Box::pin(async move { self.look(&self.folder(app)).await.map_err(failed("inspect", app)) })
    }

    fn wait<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<LastExit, DriverError>> {
        Box::pin(async move { self.try_wait(&self.folder(app)).await.map_err(failed("wait for", app)) })
    }

    fn stop<'a>(&'a self, app: &'a Name, grace: Duration) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move { self.try_stop(&self.folder(app), grace).await.map_err(failed("stop", app)) })
    }

    fn remove<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            let folder = self.folder(app);
            self.end_hook(&folder).await.map_err(failed("remove", app))?;
            let removed = self.on(&folder, |folder| match fs::remove_dir_all(folder.path()) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            });
            removed.await.map_err(|e| failed("remove", app)(format!("its folder stays: {e}")))
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Name>, DriverError>> {
        Box::pin(async move {
            let entries = match fs::read_dir(&self.root) {
                Ok(entries) => entries.flatten(),
                Err(_) => return Ok(vec![]), // nothing was ever started here
            };
            let names = entries.filter_map(|e| e.file_name().to_str()?.parse().ok());
            let names: BTreeSet<Name> = names.collect();
            Ok(names.into_iter().collect())
        })
    }

    fn probe<'a>(&'a self, spec: &'a InstanceSpec, probe: &'a Probe) -> BoxFuture<'a, ProbeOutcome> {
        let folder = self.folder(&spec.key());
        Box::pin(async move {
            probe::attempt(probe::LOOPBACK, probe, |exec| probe::run(&self.program, &folder, exec)).await
        })
    }

    fn hook<'a>(&'a self, spec: &'a InstanceSpec, hook: &'a Hook) -> BoxFuture<'a, HookOutcome> {
        Box::pin(async move { self.try_hook(spec, hook).await.unwrap_or_else(HookOutcome::Failure) })
    }

    fn exec<'a>(&'a self, spec: &'a InstanceSpec, start: &'a Start) -> BoxFuture<'a, Result<Attached, String>> {
        let folder = self.folder(&spec.key());
        Box::pin(async move { attach::run(&self.program, &folder, start).await })
    }

    fn usage<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Option<InstanceUsage>> {
        let (folder, group) = (self.folder(app), self.group(app.as_str()));
        Box::pin(async move {
            let used = self.on(&folder, move |folder| Ok(folder.holder()?.map(|shim| used(&group, shim)))).await;
            used.ok().flatten() // best effort: the driver says elsewhere what is wrong
        })
    }

    fn memory_available(&self) -> BoxFuture<'_, Option<u64>> {
        Box::pin(async { self.env.blocking.run(facts::memory_available_bytes).await })
    }

    fn reboot<'a>(&'a self, command: &'a [String]) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(super::reboot::run(command))
    }

    fn logs<'a>(
        &'a self,
        app: &'a Name,
        tail: Option<u32>,
        follow: bool,
    ) -> BoxFuture<'a, Option<mpsc::Receiver<Bytes>>> {
        let folder = self.folder(app).logs();
        Box::pin(async move {
            match logs::exist(&folder) {
                true => Some(logs::stream(folder, tail, follow, self.env.clone()).await),
                false => None,
            }
        })
    }
}
