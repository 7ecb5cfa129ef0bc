//! The box around one app: its disk, the hub's releases, and what must hold between any two steps.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use proto::{
    digest::Digest,
    durable::Record,
    link::message::Report,
    object::{AppOrder, NodeInfo, ReleaseRef, UpdatePhase, WorkloadStatus},
    watch,
};
use tempfile::TempDir;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    APP, LONG,
    fakes::{FILES, FakeDriver, FakeStage, Kind, MEMORY_BYTES, VERSIONS, WITH_HOOKS, kind},
};
use crate::{
    apps::{
        current, live,
        plan::{Ask, Wanted},
        room::Rooms,
        slot::{self, MAX_ATTEMPTS, RestartState, Slot},
        task::{App, Context, Turn},
    },
    config::{self, Paths},
    doors::Endpoints,
    exec::Desk,
    fetch::{
        Fetcher, Space,
        tests::{MemorySource, env, publish},
        tree,
    },
    gpu::{GpuWatch, ledger::Ledger},
    metrics::Metrics,
    secrets::Secrets,
};

const HOOKS: &str = r#""hooks": {"preApply": {"command": ["bin/pre"]}, "postApply": {"command": ["bin/post"]}}"#;

/// It keeps what a crash keeps: the disk, and the workloads unless the box itself went down.
pub(super) struct World {
    pub(super) folder: TempDir,
    pub(super) secrets: Arc<Secrets>,
    /// The node's identity, which the app knows nothing of.
    _identity: TempDir,
    pub(super) driver: Arc<FakeDriver>,
    pub(super) source: Arc<MemorySource>,
    pub(super) releases: BTreeMap<&'static str, ReleaseRef>,
    pub(super) wanted: watch::Sender<Wanted>,
    pub(super) online: watch::Sender<bool>,
    pub(super) board: watch::Sender<Report>,
    pub(super) gpus: GpuWatch,
    pub(super) metrics: Metrics,
    /// Of a box of 4 processors and 8 GiB.
    pub(super) rooms: Arc<Rooms>,
    boot: u32,
    pub(super) app: Option<App>,
    floor: u64,
    damaged: BTreeSet<Digest>,
    /// From now on whoever follows `run/live` is served at every moment.
    pub(super) must_serve: bool,
}

fn info() -> NodeInfo {
    let info = serde_json::json!({"agentVersion": "", "bootId": "", "architecture": "", "osImage": "", "kernel": "",
        "cpus": 4, "memoryBytes": 8_u64 << 30, "hostname": ""});
    serde_json::from_value(info).unwrap()
}

impl World {
    pub(super) fn new() -> World {
        let source = MemorySource::new();
        let probed = r#"{"command": "bin/run", "soak": "3s", "deadline": "20s",
            "probes": {"readiness": {"tcp": {"port": 1}, "period": "500ms"}}}"#;
        let releases = VERSIONS.iter().map(|(version, _, _)| {
            let files: &[(&str, &[u8])] = &[("bin/run", version.as_bytes()), ("share/same", b"same")];
            let files_only = format!("{{{HOOKS}}}");
            let with_hooks = probed.replacen('{', &format!("{{{HOOKS},"), 1);
            let workload = match *version {
                WITH_HOOKS => &with_hooks,
                FILES => &files_only,
                _ => probed,
            };
            let (digest, _) = publish(&source, &format!("{APP}@{version}"), files, workload);
            (*version, ReleaseRef { version: version.parse().unwrap(), digest })
        });
        let identity = tempfile::tempdir().unwrap();
        let paths = Paths::new(identity.path());
        config::create_folders(&paths).unwrap();
        World {
            folder: tempfile::tempdir().unwrap(),
            secrets: Arc::new(Secrets::open(&paths, &"box-1".parse().unwrap(), &env()).unwrap()),
            _identity: identity,
            driver: Arc::default(),
            releases: releases.collect(),
            source,
            wanted: watch::channel(Wanted::Keep).0,
            online: watch::channel(true).0,
            board: watch::channel(Report::default()).0,
            gpus: GpuWatch::none(),
            metrics: Metrics::default(),
            rooms: Arc::new(Rooms::new(info())),
            boot: 0,
            app: None,
            floor: 0,
            damaged: BTreeSet::new(),
            must_serve: false,
        }
    }

    /// A box whose app is updated warm, in all versions that have a workload; what is good takes 5 s to be ready.
    pub(super) fn warm() -> World {
        let mut world = World::new();
        let workload = r#""command": "bin/run", "soak": "3s", "deadline": "20s", "update": {"strategy": "warm"},
            "probes": {"readiness": {"exec": {"command": ["bin/run"]}, "period": "500ms"}}"#;
        for (version, _, kind) in VERSIONS {
            match kind {
                Kind::Files => {}
                _ if version == WITH_HOOKS => world.publish(version, &format!("{{{HOOKS}, {workload}}}")),
                _ => world.publish(version, &format!("{{{workload}}}")),
            }
        }
        *world.driver.warms_up.lock().unwrap() = Duration::from_secs(5);
        world.set_room(true);
        world
    }

    /// Has a version run this.
    pub(super) fn publish(&mut self, version: &'static str, workload: &str) {
        let files: &[(&str, &[u8])] = &[("bin/run", version.as_bytes()), ("share/same", b"same")];
        let (digest, _) = publish(&self.source, &format!("{APP}@{version}"), files, workload);
        self.releases.get_mut(version).unwrap().digest = digest;
    }

    /// Whether the box has memory for two instances.
    pub(super) fn set_room(&self, enough: bool) {
        *self.driver.memory.lock().unwrap() = Some(if enough { 2 * MEMORY_BYTES } else { MEMORY_BYTES });
    }

    /// Turn by turn until it is so.
    pub(super) async fn turn_until(&mut self, so: impl Fn(&World) -> bool) {
        while !so(self) {
            assert!(!self.turns(1, LONG).await || so(self), "it rests: {:?}", self.slot());
        }
    }

    pub(super) fn want(&self, version: &str) {
        self.wanted.send_replace(self.releases[version].clone().into());
    }

    /// Changes what is asked besides the release that is wanted.
    pub(super) fn ask(&self, change: impl FnOnce(&mut Ask)) {
        self.wanted.send_modify(|wanted| {
            if let Wanted::Run(ask) = wanted {
                change(ask);
            }
        });
    }

    pub(super) fn status(&self) -> WorkloadStatus {
        self.board.borrow().workloads[APP].clone()
    }

    /// How often a version was started.
    pub(super) fn starts(&self, version: &str) -> usize {
        let digest = self.digest(version);
        self.driver.started.lock().unwrap().iter().filter(|d| **d == digest).count()
    }

    pub(super) fn digest(&self, version: &str) -> Digest {
        self.releases[version].digest
    }

    pub(super) fn slot(&self) -> Slot {
        slot::load(&Record::at(self.folder.path().join("slot"))).unwrap()
    }

    pub(super) fn tree_of(&self, digest: Digest) -> PathBuf {
        tree::release_folder(&self.folder.path().join("releases"), digest)
    }

    pub(super) fn phase(&self) -> Option<UpdatePhase> {
        self.board.borrow().workloads.get(APP).map(|w| w.phase)
    }

    /// The agent dies; workloads go on.
    pub(super) fn crash(&mut self) {
        self.app = None;
    }

    /// The box dies.
    pub(super) fn reboot(&mut self) {
        self.app = None;
        self.driver.processes.lock().unwrap().clear();
        self.boot += 1;
    }

    pub(super) fn damage(&mut self, version: &str) {
        let digest = self.digest(version);
        let file = self.tree_of(digest).join("tree/bin/run");
        if file.exists() {
            fs::write(file, "damaged").unwrap();
            self.damaged.insert(digest);
        }
    }

    pub(super) fn context(&self) -> Arc<Context> {
        let fetcher = Fetcher::new(env(), self.source.clone(), Space::new(|_| Ok(1 << 40)));
        Arc::new(Context {
            env: env(),
            driver: self.driver.clone(),
            stage: Arc::new(FakeStage(fetcher)),
            boot_id: self.boot.to_string(),
            board: self.board.clone(),
            online: self.online.subscribe(),
            checks: Arc::new(Semaphore::new(1)),
            secrets: self.secrets.clone(),
            endpoints: watch::channel(Endpoints::default()).1,
            gpus: Arc::new(Ledger::open(Record::at(self.folder.path().join("gpus")), env(), &self.gpus).unwrap()),
            desk: Desk::new().0,
            metrics: self.metrics.clone(),
            rooms: self.rooms.clone(),
            uses: Arc::default(),
        })
    }

    /// So many turns, or until nothing changes for `patience`; whether it came to rest.
    pub(super) async fn turns(&mut self, turns: usize, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        if self.app.is_none() {
            let wanted = self.wanted.subscribe();
            let folder = self.folder.path().to_owned();
            self.app = Some(App::open(self.context(), APP.parse().unwrap(), folder, wanted).await.unwrap());
        }
        for _ in 0..turns {
            let app = self.app.as_mut().unwrap();
            match app.turn().await.unwrap() {
                Turn::Again => {}
                Turn::Ended => {
                    self.app = None;
                    self.check();
                    return true;
                }
                Turn::Wait(until) => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() || timeout(left, app.changed(until)).await.is_err() {
                        return true;
                    }
                }
            }
            self.check();
        }
        false
    }

    pub(super) async fn settle(&mut self) {
        assert!(self.turns(100_000, LONG).await, "it never comes to rest");
    }

    /// What must hold between any two steps.
    pub(super) fn check(&mut self) {
        assert_eq!(*self.driver.violations.lock().unwrap(), Vec::<String>::new());
        if self.must_serve {
            let live = live::linked(self.folder.path());
            assert!(live.is_some_and(|side| self.driver.serves(side)), "a gap: {live:?} is live, {:?}", self.slot());
        }
        let slot = self.slot();
        assert!(slot.floor >= self.floor, "the floor fell");
        self.floor = slot.floor;
        if let Some(trial) = &slot.trial {
            let digest = trial.installed.release.digest;
            assert!(slot.failure(digest).is_none(), "a failed release is on trial again");
        }
        for digest in slot.active.iter().map(|a| a.release.digest) {
            assert!(
                self.tree_of(digest).exists() || self.damaged.contains(&digest),
                "the release to go back to is gone"
            );
        }
    }

    /// Nothing to complain about at rest.
    pub(super) fn check_settled(&self, interruptions: u32) {
        let slot = self.slot();
        assert_eq!(slot.trial, None);
        let active = slot.active.as_ref().map(|a| a.release.digest);
        let wanted = self.wanted.borrow().clone();
        match &wanted {
            Wanted::Run(Ask { release, order, drained }) => {
                let failure = slot.failure(release.digest);
                let counter = VERSIONS.iter().find(|v| v.0 == release.version.as_str()).unwrap().1;
                if let Some(failure) = failure {
                    assert_ne!(active, Some(release.digest));
                    let bad = !matches!(kind(release.version.as_str()), Kind::Good | Kind::Files);
                    let cut = failure.reason == "Interrupted" && interruptions >= MAX_ATTEMPTS;
                    let hook = [WITH_HOOKS, FILES].contains(&release.version.as_str())
                        && failure.reason.ends_with("ApplyFailed");
                    assert!(bad || cut || hook, "a good release failed: {failure:?}");
                } else if counter >= slot.floor && !order.hold && !drained {
                    assert_eq!(active, Some(release.digest), "a good release is not active");
                }
                self.check_asked(&slot, order);
            }
            Wanted::Remove => assert_eq!(active, None),
            Wanted::Keep => {}
        }
        self.check_runs();
    }

    /// The active release runs, and nothing else, unless the node is drained.
    pub(super) fn check_runs(&self) {
        let slot = self.slot();
        assert_eq!(slot.trial, None);
        assert_eq!(current::linked(self.folder.path()), slot.active.as_ref().map(|a| a.release.digest));
        let active = slot.active.filter(|a| kind(a.release.version.as_str()) != Kind::Files);
        let runs = active.map(|a| a.release.digest).filter(|_| !self.wanted.borrow().is_drained());
        assert_eq!(self.driver.running(), runs, "what runs is the active release");
        if let Some(spec) = self.driver.spec() {
            assert_eq!(spec.side, slot.side);
            assert!(spec.run.is_none() || live::linked(self.folder.path()) == Some(slot.side), "it is live");
        }
    }

    /// What is asked for once was heard; a restart is over unless everything is stopped.
    fn check_asked(&self, slot: &Slot, order: &AppOrder) {
        if order.retry.is_some() {
            assert_eq!(slot.retried, order.retry);
        }
        let (Some(text), Some(_), Some(restart)) = (&order.restart, &slot.active, &slot.restart) else { return };
        assert_eq!(&restart.text, text);
        let over = matches!(restart.state, RestartState::Done | RestartState::Failed(_));
        assert!(over || self.wanted.borrow().is_drained(), "{restart:?}");
    }
}
