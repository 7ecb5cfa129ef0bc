//! A driver that runs nothing and a stage without signatures, and the versions that they know.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use proto::{
    digest::Digest,
    env::BoxFuture,
    name::{Name, ReleaseName},
    object::{LastExit, Progress},
    release::{Hook, Probe},
    watch,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::APP;
use crate::{
    apps::{
        plan::Fetch,
        slot::Installed,
        stage::{Hindrance, Order, Stage},
    },
    driver::{Driver, DriverError, HookOutcome, Instance, InstanceSpec, InstanceUsage, ProbeOutcome, Side},
    fetch::{Fetcher, Job, tests::env, tree},
};

/// How a version behaves when it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Good,
    /// Ends at once, every time.
    Crashes,
    /// Runs, and its readiness probe never succeeds.
    NeverReady,
    /// Nothing of it runs.
    Files,
}

/// What an instance uses.
pub(super) const MEMORY_BYTES: u64 = 512 << 20;

/// The version that has hooks.
pub(super) const WITH_HOOKS: &str = "6";

/// The version without a workload, which has hooks too.
pub(super) const FILES: &str = "7";

/// Versions of the tests: number, counter, behaviour.
pub(super) const VERSIONS: [(&str, u64, Kind); 7] = [
    ("1", 1, Kind::Good),
    ("2", 2, Kind::Good),
    ("3", 3, Kind::Crashes),
    ("4", 4, Kind::NeverReady),
    ("5", 5, Kind::Good),
    (WITH_HOOKS, 6, Kind::Good),
    (FILES, 7, Kind::Files),
];

#[derive(Debug)]
pub(super) struct Process {
    spec: InstanceSpec,
    since: Instant,
    exit: Option<LastExit>,
    waiting: Vec<oneshot::Sender<()>>,
}

/// Runs nothing, remembers everything, survives the agent.
#[derive(Debug, Default)]
pub(super) struct FakeDriver {
    pub(super) processes: Mutex<BTreeMap<Name, Process>>,
    /// How long what is good takes until it is ready.
    pub(super) warms_up: Mutex<Duration>,
    /// See [`Driver::memory_available`].
    pub(super) memory: Mutex<Option<u64>>,
    /// Instances take of it, all but the first.
    pub(super) is_taken: AtomicBool,
    pub(super) started: Mutex<Vec<Digest>>,
    /// The same, with all that was said.
    pub(super) starts: Mutex<Vec<InstanceSpec>>,
    pub(super) violations: Mutex<Vec<String>>,
    /// It cannot tell of these.
    pub(super) hidden: Mutex<BTreeSet<Name>>,
    /// It has a bug.
    pub(super) broken: AtomicBool,
    /// What hooks answer; success when nothing is left.
    pub(super) answers: Mutex<VecDeque<HookOutcome>>,
    /// Which hooks ran, and what of the app ran at that moment.
    pub(super) hooks: Mutex<Vec<(String, Option<Digest>)>>,
    /// Nothing is ready, for a reason outside.
    sick: AtomicBool,
    /// What was never ready is.
    healed: AtomicBool,
}

fn ended() -> LastExit {
    LastExit { code: Some(1), signal: None, at: env().wall.now(), message: "it crashed".into() }
}

pub(super) fn kind(version: &str) -> Kind {
    VERSIONS.iter().find(|v| v.0 == version).unwrap().2
}

/// What files of others make of an instance: version 5 of them is bad for the app `other`.
fn bad_files(spec: &InstanceSpec) -> Option<Kind> {
    let mut kinds = spec.uses.values().map(|used| match used.version.as_str() {
        "5" if spec.app.as_str() == "other" => Kind::NeverReady,
        version => kind(version),
    });
    kinds.find(|kind| [Kind::Crashes, Kind::NeverReady].contains(kind))
}

impl FakeDriver {
    pub(super) fn set_sick(&self, sick: bool) {
        self.sick.store(sick, Ordering::Relaxed);
    }

    pub(super) fn set_healed(&self, healed: bool) {
        self.healed.store(healed, Ordering::Relaxed);
    }

    /// The one release that runs.
    pub(super) fn running(&self) -> Option<Digest> {
        let mut specs = self.specs();
        let one = specs.pop();
        assert!(specs.is_empty(), "two instances run: {specs:?}");
        one.map(|spec| spec.release.digest)
    }

    /// All that runs.
    pub(super) fn specs(&self) -> Vec<InstanceSpec> {
        let processes = self.processes.lock().unwrap();
        processes.values().filter(|p| p.exit.is_none()).map(|p| p.spec.clone()).collect()
    }

    /// An instance ends of its own accord.
    pub(super) fn end(&self, key: &Name) {
        let mut processes = self.processes.lock().unwrap();
        let process = processes.get_mut(key).unwrap();
        process.exit = Some(ended());
        for waiting in process.waiting.drain(..) {
            waiting.send(()).ok(); // nobody may wait any more
        }
    }

    /// Whether the instance on a side would serve its clients.
    pub(super) fn serves(&self, side: Side) -> bool {
        let processes = self.processes.lock().unwrap();
        let found = side.key(&APP.parse().unwrap()).and_then(|key| processes.get(&key));
        found.is_some_and(|p| p.exit.is_none() && self.is_ready(p).is_ok())
    }

    fn is_ready(&self, process: &Process) -> Result<(), &'static str> {
        match kind(process.spec.release.version.as_str()) {
            _ if self.sick.load(Ordering::Relaxed) => Err("its camera is dark"),
            _ if bad_files(&process.spec) == Some(Kind::NeverReady) => Err("its model has no classes"),
            Kind::Good if Instant::now() < process.since + *self.warms_up.lock().unwrap() => Err("it loads its model"),
            Kind::Good => Ok(()),
            Kind::NeverReady if self.healed.load(Ordering::Relaxed) => Ok(()),
            _ => Err("not ready"),
        }
    }
}

impl FakeDriver {
    /// What runs.
    pub(super) fn spec(&self) -> Option<InstanceSpec> {
        self.specs().pop()
    }
}

impl Driver for FakeDriver {
    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            let name = ReleaseName { app: spec.app.clone(), version: spec.release.version.clone() };
            if let Err(e) = tree::verify(spec.tree.parent().unwrap(), spec.release.digest, &name) {
                self.violations.lock().unwrap().push(format!("an unverified release ran: {e}"));
            }
            let apps = spec.data.parent().and_then(Path::parent).unwrap();
            for (of, used) in &spec.uses {
                let name = ReleaseName { app: of.clone(), version: used.version.clone() };
                let folder = tree::release_folder(&apps.join(of.as_str()).join("releases"), used.digest);
                if let Err(e) = tree::verify(&folder, used.digest, &name) {
                    self.violations.lock().unwrap().push(format!("it ran with unverified files: {e}"));
                }
            }
            self.started.lock().unwrap().push(spec.release.digest);
            self.starts.lock().unwrap().push(spec.clone());
            let crashes = kind(spec.release.version.as_str()) == Kind::Crashes;
            let exit = (crashes || bad_files(spec) == Some(Kind::Crashes)).then(ended);
            let process = Process { spec: spec.clone(), since: Instant::now(), exit, waiting: vec![] };
            self.processes.lock().unwrap().insert(spec.key(), process);
            Ok(())
        })
    }
    fn inspect<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<Option<Instance>, DriverError>> {
        Box::pin(async move {
            assert!(!self.broken.load(Ordering::Relaxed), "a bug");
            if self.hidden.lock().unwrap().contains(app) {
                return Err(DriverError { attempt: "inspect", app: app.clone(), problem: "no answer".into() });
            }
            Ok(self.processes.lock().unwrap().get(app).map(|p| Instance {
                release: p.spec.release.clone(),
                started_at: env().wall.now(),
                exit: p.exit.clone(),
            }))
        })
    }
    fn wait<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Result<LastExit, DriverError>> {
        Box::pin(async move {
            let (sender, receiver) = oneshot::channel();
            match self.processes.lock().unwrap().get_mut(app) {
                Some(Process { exit: None, waiting, .. }) => waiting.push(sender),
                Some(Process { exit: Some(exit), .. }) => return Ok(exit.clone()),
                None => return Ok(ended()),
            }
            receiver.await.ok();
            Ok(ended())
        })
    }
    fn stop<'a>(&'a self, app: &'a Name, _: Duration) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            self.processes.lock().unwrap().remove(app);
            Ok(())
        })
    }
    fn remove<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async { Ok(()) })
    }
    fn list(&self) -> BoxFuture<'_, Result<Vec<Name>, DriverError>> {
        Box::pin(async { Ok(self.specs().iter().map(InstanceSpec::key).collect()) })
    }
    fn hook<'a>(&'a self, spec: &'a InstanceSpec, hook: &'a Hook) -> BoxFuture<'a, HookOutcome> {
        Box::pin(async move {
            assert!([WITH_HOOKS, FILES].contains(&spec.release.version.as_str()));
            let live = self.spec().map(|spec| spec.release.digest);
            self.hooks.lock().unwrap().push((hook.command[0].clone(), live));
            self.answers.lock().unwrap().pop_front().unwrap_or(HookOutcome::Success)
        })
    }
    fn probe<'a>(&'a self, spec: &'a InstanceSpec, _: &'a Probe) -> BoxFuture<'a, ProbeOutcome> {
        Box::pin(async move {
            match self.processes.lock().unwrap().get(&spec.key()) {
                Some(process) => match self.is_ready(process) {
                    Ok(()) => ProbeOutcome::Success,
                    Err(why) => ProbeOutcome::Failure(why.into()),
                },
                None => ProbeOutcome::Failure("nothing runs".into()),
            }
        })
    }
    fn usage<'a>(&'a self, app: &'a Name) -> BoxFuture<'a, Option<InstanceUsage>> {
        let runs = self.specs().iter().any(|spec| spec.key() == *app);
        let used = InstanceUsage { cpu: None, memory_bytes: Some(MEMORY_BYTES) };
        Box::pin(async move { runs.then_some(used) })
    }
    fn memory_available(&self) -> BoxFuture<'_, Option<u64>> {
        let others = u64::try_from(self.specs().len()).unwrap().saturating_sub(1);
        let taken = if self.is_taken.load(Ordering::Relaxed) { others * MEMORY_BYTES } else { 0 };
        Box::pin(async move { self.memory.lock().unwrap().map(|memory| memory.saturating_sub(taken)) })
    }
    fn logs<'a>(&'a self, _: &'a Name, _: Option<u32>, _: bool) -> BoxFuture<'a, Option<mpsc::Receiver<Bytes>>> {
        Box::pin(async { None })
    }
}

/// The real fetcher behind a stand-in for the signatures: the counter is that of the table above.
#[derive(Debug)]
pub(super) struct FakeStage(pub(super) Fetcher);

impl Stage for FakeStage {
    fn stage(&self, order: Order, progress: watch::Sender<Progress>) -> BoxFuture<'_, Result<Installed, Hindrance>> {
        Box::pin(async move {
            let installed = match order.fetch {
                Fetch::Repair(installed) => installed,
                Fetch::New(release) => {
                    let counter = VERSIONS.iter().find(|v| v.0 == release.version.as_str()).unwrap().1;
                    if counter < order.floor {
                        return Err(Hindrance { reason: "Rollback", message: String::new(), offline: false });
                    }
                    Installed::new(release, counter)
                }
            };
            let job = Job {
                release: ReleaseName { app: order.app, version: installed.release.version.clone() },
                digest: installed.release.digest,
                manifest_bytes: None,
                releases: order.releases,
                reuse: order.reuse,
                hardware: vec!["x86_64".into()],
            };
            self.0.stage(&Arc::new(job), &progress).await?;
            Ok(installed)
        })
    }
}
