//! How a workload runs. One [`Driver`] a kind of workload; the simulator brings its own.
//!
//! A driver starts, finds again, stops and probes instances; it decides nothing. At most one instance
//! exists of a name at a time; an app has two names, one for each [`Side`], and one for each further replica
//! ([`replicas::key`]). What it started goes on when the agent ends, and is found again.

mod attach;
pub mod cgroup;
pub mod container;
pub mod exec;
pub mod hook;
pub mod kinds;
pub mod logs;
pub mod output;
pub mod probe;
pub mod process;
pub mod procs;
mod reboot;
pub mod records;
pub mod shim;
pub mod side;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use proto::{
    digest::Digest,
    env::BoxFuture,
    exec::{Input, Output, Start},
    name::Name,
    object::{LastExit, ReleaseRef},
    release::{Hook, Probe, Workload, replicas},
};
use tokio::sync::mpsc;

pub use self::side::Side;
use crate::secrets::Secrets;

/// [`LastExit::message`] of an instance that ended because [`Driver::stop`] asked.
pub const STOPPED_ON_REQUEST: &str = "stopped on request";

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceSpec {
    /// The app.
    pub app: Name,
    /// Which of its two instances: the driver knows it by [`InstanceSpec::key`].
    pub side: Side,
    /// Which of its replicas; 0 is the one on that side.
    pub replica: u8,
    /// The release that it is an instance of.
    pub release: ReleaseRef,
    /// Folder with the verified tree.
    pub tree: PathBuf,
    /// Folder that the workload may write to; stays from release to release.
    pub data: PathBuf,
    /// Folder for its sockets, this instance's alone, beside the link `live` that leads to that of the live one; see
    /// [`Strategy::Warm`](proto::release::Strategy).
    pub run: Option<PathBuf>,
    /// Command, limits and so on.
    pub workload: Workload,
    /// UUIDs of the GPUs that it has; its environment names them, too.
    pub gpus: Vec<String>,
    /// The releases of other apps whose files it uses; its environment names their folders, see
    /// [`variable`](proto::release::uses::variable).
    pub uses: BTreeMap<Name, ReleaseRef>,
}

impl InstanceSpec {
    /// The name by which a driver knows the instance.
    #[must_use]
    pub fn key(&self) -> Name {
        let key = if self.replica == 0 { self.side.key(&self.app) } else { replicas::key(&self.app, self.replica) };
        key.unwrap_or_else(|| self.app.clone()) // none but apps with short names have a second
    }
}

/// An instance as the driver finds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// The release that it was started from.
    pub release: ReleaseRef,
    /// When.
    pub started_at: Timestamp,
    /// How it ended; absent while it runs.
    pub exit: Option<LastExit>,
}

/// What a running instance uses, all of its processes together. What a box does not tell is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InstanceUsage {
    /// Processor time since it was started.
    pub cpu: Option<Duration>,
    /// Memory now, in bytes.
    pub memory_bytes: Option<u64>,
}

/// Result of one attempt of a probe. The text says what was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// It succeeded.
    Success,
    /// It failed or took too long.
    Failure(String),
}

/// How a hook of a release ended. The texts say what was seen, such as the last line of its output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookOutcome {
    /// With exit code 0.
    Success,
    /// With exit code [`PUT_OFF`](proto::release::PUT_OFF).
    PutOff(String),
    /// It failed, took too long or could not be run.
    Failure(String),
}

/// A command that runs in a workload. It is killed when nobody listens to its output any more.
#[derive(Debug)]
pub struct Attached {
    /// What it reads.
    pub input: mpsc::Sender<Input>,
    /// What it writes, and at last how it ended.
    pub output: mpsc::Receiver<Output>,
}

/// Something could not be done to a workload.
#[derive(Debug, thiserror::Error)]
#[error("could not {attempt} {app}: {problem}")]
pub struct DriverError {
    /// What was attempted, such as `start`.
    pub attempt: &'static str,
    /// The app.
    pub app: Name,
    /// What is wrong and how to mend it.
    pub problem: String,
}

/// A release that is whole on disk could not be started as things are. What runs goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NotReady {
    /// One word for programs.
    pub reason: &'static str,
    /// For people, with what to do.
    pub message: String,
}

/// Runs instances of workloads. Every method may be called again after a crash of the agent.
///
/// What is called an app below is an [`InstanceSpec::key`] of one, but in [`Driver::hook`], of which an app has one, and in
/// [`Driver::collect`].
pub trait Driver: Send + Sync + fmt::Debug {
    /// Hands over the box's secrets, for those that the driver needs itself, such as credentials for a registry. Called
    /// once, before all else. By default it needs none.
    fn lend(&self, secrets: &Arc<Secrets>) {
        let _ = secrets;
    }

    /// Does what can be done for a start beforehand, while whatever runs of the app goes on, such as loading an image.
    /// May be dropped at any moment and called again. By default there is nothing to do.
    fn prepare<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<(), NotReady>> {
        let _ = spec;
        Box::pin(std::future::ready(Ok(())))
    }

    /// Starts an instance and returns once its program runs (or ended at once, which [`Driver::inspect`] tells).
    ///
    /// Whatever is left of an instance of the same app is stopped first.
    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<(), DriverError>>;

    /// The newest instance of an app, running or ended; absent when there was none since boot.
    fn inspect<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<Option<Instance>, DriverError>>;

    /// Waits until the running instance of an app has ended, and says how. Cancel safe.
    fn wait<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<LastExit, DriverError>>;

    /// Stops the whole process tree: SIGTERM, `grace`, SIGKILL. Returns when nothing of it is left.
    /// Nothing running is success.
    fn stop<'a>(&'a self, app: &'a Name, grace: Duration) -> BoxFuture<'a, Result<(), DriverError>>;

    /// Forgets an app: its records and logs. Call it after [`Driver::stop`].
    fn remove<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<(), DriverError>>;

    /// Apps of which anything is left, running or ended.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Name>, DriverError>>;

    /// Makes one attempt of a probe, within its time-out.
    fn probe<'a>(&'a self, spec: &'a InstanceSpec, probe: &'a Probe) -> BoxFuture<'a, ProbeOutcome>;

    /// Runs a hook of the release that `spec` names, whatever runs of the app, within its time-out. Of each app
    /// one runs at a time. When this is dropped the hook is killed. By default there is nothing to run.
    fn hook<'a>(&'a self, spec: &'a InstanceSpec, hook: &'a Hook) -> BoxFuture<'a, HookOutcome> {
        let _ = (spec, hook);
        Box::pin(std::future::ready(HookOutcome::Success))
    }

    /// Runs a command in the running instance that `spec` names, beside its own.
    ///
    /// # Errors
    /// Why it does not run, for people.
    fn exec<'a>(&'a self, spec: &'a InstanceSpec, start: &'a Start) -> BoxFuture<'a, Result<Attached, String>> {
        let _ = (spec, start);
        Box::pin(std::future::ready(Err("this driver runs no commands in workloads".into())))
    }

    /// Forgets what [`Driver::prepare`] made for releases of an app other than these. By default there is nothing.
    fn collect<'a>(&'a self, app: &'a Name, keep: &'a BTreeSet<Digest>) -> BoxFuture<'a, Result<(), DriverError>> {
        let _ = (app, keep);
        Box::pin(std::future::ready(Ok(())))
    }

    /// What the running instance of an app uses; `None` when nothing runs or the driver cannot tell.
    fn usage<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Option<InstanceUsage>> {
        let _ = app;
        Box::pin(std::future::ready(None))
    }

    /// Memory that the box can give to another instance now, in bytes; `None` when the driver cannot tell.
    fn memory_available(&self) -> BoxFuture<'_, Option<u64>> {
        Box::pin(std::future::ready(None))
    }

    /// Has the whole box restart, by this command. Returns when that is on its way.
    ///
    /// # Errors
    /// What went wrong, for people.
    fn reboot<'a>(&'a self, command: &'a [String]) -> BoxFuture<'a, Result<(), String>> {
        let _ = command;
        Box::pin(std::future::ready(Err("this driver cannot restart a box".into())))
    }

    /// Output of an app, oldest first: the last `tail` lines (all that is kept when absent), and new
    /// ones as they come when `follow`. Ends when the receiver is dropped. `None`: no such app.
    fn logs<'a>(
        &'a self,
        app: &'a Name,
        tail: Option<u32>,
        follow: bool,
    ) -> BoxFuture<'a, Option<mpsc::Receiver<Bytes>>>;
}
