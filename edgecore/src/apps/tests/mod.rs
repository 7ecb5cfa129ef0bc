//! An app against a fake driver: cut between any two steps, rebooted, damaged, cut off, and always right.
//!
//! The world keeps what a crash keeps: the disk, and the workloads unless the box itself went down. A
//! [`World::crash`] drops the agent's side only. Releases are real trees, fetched and verified by the
//! code that ships; the driver itself verifies each tree that it is told to run.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::*;
use proto::{
    digest::Digest,
    env::BoxFuture,
    link::message::Report,
    name::ReleaseName,
    object::{LastExit, Progress, ReleaseRef, UpdatePhase},
    release::Probe,
};
use tempfile::TempDir;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{
    plan::Fetch,
    slot::{Installed, MAX_ATTEMPTS, Slot},
    stage::{Hindrance, Order, Stage},
    task::Turn,
    *,
};
use crate::{
    doors::Endpoints,
    driver::{Driver, DriverError, Instance, InstanceSpec, ProbeOutcome},
    fetch::{
        Fetcher, Job, Space,
        tests::{Fault, MemorySource, env, publish},
        tree,
    },
};

const APP: &str = "web";
/// Long enough for any trial, back-off and retry to end.
const LONG: Duration = Duration::from_secs(900);

/// How a version behaves when it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Good,
    /// Ends at once, every time.
    Crashes,
    /// Runs, and its readiness probe never succeeds.
    NeverReady,
}

/// Versions of the tests: number, counter, behaviour.
const VERSIONS: [(&str, u64, Kind); 5] = [
    ("1", 1, Kind::Good),
    ("2", 2, Kind::Good),
    ("3", 3, Kind::Crashes),
    ("4", 4, Kind::NeverReady),
    ("5", 5, Kind::Good),
];

#[derive(Debug)]
struct Process {
    spec: InstanceSpec,
    exit: Option<LastExit>,
    waiting: Vec<oneshot::Sender<()>>,
}

/// Runs nothing, remembers everything, survives the agent.
#[derive(Debug, Default)]
struct FakeDriver {
    process: Mutex<Option<Process>>,
    started: Mutex<Vec<Digest>>,
    violations: Mutex<Vec<String>>,
    /// It has a bug.
    broken: AtomicBool,
}

fn ended() -> LastExit {
    LastExit { code: Some(1), signal: None, at: env().wall.now(), message: "it crashed".into() }
}

fn kind(version: &str) -> Kind {
    VERSIONS.iter().find(|v| v.0 == version).unwrap().2
}

impl FakeDriver {
    fn running(&self) -> Option<Digest> {
        self.process.lock().unwrap().as_ref().filter(|p| p.exit.is_none()).map(|p| p.spec.release.digest)
    }
}

impl Driver for FakeDriver {
    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            let name = ReleaseName { app: spec.app.clone(), version: spec.release.version.clone() };
            if let Err(e) = tree::verify(spec.tree.parent().unwrap(), spec.release.digest, &name) {
                self.violations.lock().unwrap().push(format!("an unverified release ran: {e}"));
            }
            self.started.lock().unwrap().push(spec.release.digest);
            let exit = (kind(spec.release.version.as_str()) == Kind::Crashes).then(ended);
            *self.process.lock().unwrap() = Some(Process { spec: spec.clone(), exit, waiting: vec![] });
            Ok(())
        })
    }
    fn inspect<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<Option<Instance>, DriverError>> {
        Box::pin(async move {
            assert!(!self.broken.load(Ordering::Relaxed), "a bug");
            Ok(self.process.lock().unwrap().as_ref().map(|p| Instance {
                release: p.spec.release.clone(),
                started_at: env().wall.now(),
                exit: p.exit.clone(),
            }))
        })
    }
    fn wait<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<LastExit, DriverError>> {
        Box::pin(async move {
            let (sender, receiver) = oneshot::channel();
            match self.process.lock().unwrap().as_mut() {
                Some(Process { exit: None, waiting, .. }) => waiting.push(sender),
                Some(Process { exit: Some(exit), .. }) => return Ok(exit.clone()),
                None => return Ok(ended()),
            }
            receiver.await.ok();
            Ok(ended())
        })
    }
    fn stop<'a>(&'a self, _: &'a Name, _: Duration) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            *self.process.lock().unwrap() = None;
            Ok(())
        })
    }
    fn remove<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async { Ok(()) })
    }
    fn list(&self) -> BoxFuture<'_, Result<Vec<Name>, DriverError>> {
        Box::pin(async { Ok(self.running().map(|_| APP.parse().unwrap()).into_iter().collect()) })
    }
    fn probe<'a>(&'a self, spec: &'a InstanceSpec, _: &'a Probe) -> BoxFuture<'a, ProbeOutcome> {
        Box::pin(async move {
            match kind(spec.release.version.as_str()) {
                Kind::Good => ProbeOutcome::Success,
                _ => ProbeOutcome::Failure("not ready".into()),
            }
        })
    }
    fn logs<'a>(&'a self, _: &'a Name, _: Option<u32>, _: bool) -> BoxFuture<'a, Option<mpsc::Receiver<Bytes>>> {
        Box::pin(async { None })
    }
}

/// The real fetcher behind a stand-in for the signatures: the counter is that of the table above.
#[derive(Debug)]
struct FakeStage(Fetcher);

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
                    Installed { release, counter }
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

struct World {
    folder: TempDir,
    driver: Arc<FakeDriver>,
    source: Arc<MemorySource>,
    releases: BTreeMap<&'static str, ReleaseRef>,
    wanted: watch::Sender<Wanted>,
    online: watch::Sender<bool>,
    board: watch::Sender<Report>,
    boot: u32,
    app: Option<App>,
    floor: u64,
    damaged: BTreeSet<Digest>,
}

impl World {
    fn new() -> World {
        let source = MemorySource::new();
        let probed = r#"{"command": "bin/run", "soak": "3s", "deadline": "20s",
            "probes": {"readiness": {"tcp": {"port": 1}, "period": "500ms"}}}"#;
        let releases = VERSIONS.iter().map(|(version, _, _)| {
            let files: &[(&str, &[u8])] = &[("bin/run", version.as_bytes()), ("share/same", b"same")];
            let (digest, _) = publish(&source, &format!("{APP}@{version}"), files, probed);
            (*version, ReleaseRef { version: version.parse().unwrap(), digest })
        });
        World {
            folder: tempfile::tempdir().unwrap(),
            driver: Arc::default(),
            releases: releases.collect(),
            source,
            wanted: watch::channel(Wanted::Keep).0,
            online: watch::channel(true).0,
            board: watch::channel(Report::default()).0,
            boot: 0,
            app: None,
            floor: 0,
            damaged: BTreeSet::new(),
        }
    }

    fn want(&self, version: &str) {
        self.wanted.send_replace(Wanted::Run(self.releases[version].clone()));
    }

    fn digest(&self, version: &str) -> Digest {
        self.releases[version].digest
    }

    fn slot(&self) -> Slot {
        slot::load(&Record::at(self.folder.path().join("slot"))).unwrap()
    }

    fn tree_of(&self, digest: Digest) -> PathBuf {
        tree::release_folder(&self.folder.path().join("releases"), digest)
    }

    fn phase(&self) -> Option<UpdatePhase> {
        self.board.borrow().workloads.get(APP).map(|w| w.phase)
    }

    /// The agent dies; workloads go on.
    fn crash(&mut self) {
        self.app = None;
    }

    /// The box dies.
    fn reboot(&mut self) {
        self.app = None;
        *self.driver.process.lock().unwrap() = None;
        self.boot += 1;
    }

    fn damage(&mut self, version: &str) {
        let digest = self.digest(version);
        let file = self.tree_of(digest).join("tree/bin/run");
        if file.exists() {
            fs::write(file, "damaged").unwrap();
            self.damaged.insert(digest);
        }
    }

    fn context(&self) -> Arc<Context> {
        let fetcher = Fetcher::new(env(), self.source.clone(), Space::new(|_| Ok(1 << 40)));
        Arc::new(Context {
            env: env(),
            driver: self.driver.clone(),
            stage: Arc::new(FakeStage(fetcher)),
            boot_id: self.boot.to_string(),
            board: self.board.clone(),
            online: self.online.subscribe(),
            checks: Arc::new(Semaphore::new(1)),
            endpoints: watch::channel(Endpoints::default()).1,
        })
    }

    /// So many turns, or until nothing changes for `patience`; whether it came to rest.
    async fn turns(&mut self, turns: usize, patience: Duration) -> bool {
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

    async fn settle(&mut self) {
        assert!(self.turns(100_000, LONG).await, "it never comes to rest");
    }

    /// What must hold between any two steps.
    fn check(&mut self) {
        assert_eq!(*self.driver.violations.lock().unwrap(), Vec::<String>::new());
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
    fn check_settled(&self, interruptions: u32) {
        let slot = self.slot();
        assert_eq!(slot.trial, None);
        let active = slot.active.as_ref().map(|a| a.release.digest);
        let wanted = self.wanted.borrow().clone();
        match &wanted {
            Wanted::Run(release) => {
                let failure = slot.failure(release.digest);
                let counter = VERSIONS.iter().find(|v| v.0 == release.version.as_str()).unwrap().1;
                if let Some(failure) = failure {
                    assert_ne!(active, Some(release.digest));
                    let bad = kind(release.version.as_str()) != Kind::Good;
                    let cut = failure.reason == "Interrupted" && interruptions >= MAX_ATTEMPTS;
                    assert!(bad || cut, "a good release failed: {failure:?}");
                } else if counter >= slot.floor {
                    assert_eq!(active, Some(release.digest), "a good release is not active");
                }
            }
            Wanted::Remove => assert_eq!(active, None),
            Wanted::Keep => {}
        }
        assert_eq!(self.driver.running(), active, "what runs is the active release");
    }
}

#[tokio::test(start_paused = true)]
async fn install_upgrade_and_remove() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.check_settled(0);
    assert_eq!(world.phase(), Some(UpdatePhase::Succeeded));
    world.want("2");
    world.settle().await;
    world.check_settled(0);
    let slot = world.slot();
    assert_eq!((slot.floor, slot.previous.unwrap().release.digest), (2, world.digest("1")));
    fs::write(world.folder.path().join("data/counted"), "7").unwrap();
    world.wanted.send_replace(Wanted::Remove);
    world.settle().await;
    world.check_settled(0);
    assert_eq!(world.phase(), None);
    assert_eq!(world.driver.running(), None);
    assert!(world.folder.path().join("data/counted").exists(), "data stays");
    assert_eq!(fs::read_dir(world.folder.path().join("releases")).unwrap().count(), 0);
    assert_eq!(world.slot().floor, 2, "the floor outlives the app");
    world.want("1");
    world.settle().await;
    assert_eq!(world.phase(), Some(UpdatePhase::Blocked), "an older release is refused");
    assert_eq!(world.board.borrow().workloads[APP].reason, "Rollback");
}

#[tokio::test(start_paused = true)]
async fn a_bad_release_goes_back_and_is_never_tried_again() {
    for bad in ["3", "4"] {
        let mut world = World::new();
        world.want("1");
        world.settle().await;
        world.want(bad);
        world.settle().await;
        world.check_settled(0);
        assert_eq!(world.phase(), Some(UpdatePhase::RolledBack), "{bad}");
        let tries = |w: &World| w.driver.started.lock().unwrap().iter().filter(|d| **d == w.digest(bad)).count();
        let tried = tries(&world);
        assert!(tried > 0);
        world.crash();
        world.settle().await;
        world.want("2");
        world.settle().await;
        world.want(bad);
        world.settle().await;
        world.check_settled(0);
        assert_eq!(tries(&world), tried, "{bad} ran again");
        assert!(!world.tree_of(world.digest(bad)).exists(), "its files are cleared away");
    }
}

#[tokio::test(start_paused = true)]
async fn a_remembered_failure_keeps_its_time_and_says_what_to_do() {
    let mut world = World::new();
    world.want("4");
    world.settle().await;
    let first = world.board.borrow().workloads[APP].clone();
    assert_eq!(first.phase, UpdatePhase::Failed);
    assert!(first.message.ends_with("publish it under a new version"), "{}", first.message);
    let failure = world.slot().failed[0].clone();
    assert_eq!((failure.counter, failure.at), (4, Some(first.since)));
    // A new agent says the same; so does a record of an agent before, that knew no time.
    world.board.send_replace(Report::default());
    world.crash();
    world.settle().await;
    assert_eq!(world.board.borrow().workloads[APP], first);
    let old = format!(r#"{{"failed": [{{"digest": "{}", "reason": "Unhealthy", "message": "m"}}]}}"#, failure.digest);
    Record::at(world.folder.path().join("slot")).store(old.as_bytes()).unwrap();
    world.crash();
    world.settle().await;
    let said = world.board.borrow().workloads[APP].message.clone();
    assert!(said.starts_with("m; it is not tried again"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_bad_first_release_leaves_nothing_running() {
    let mut world = World::new();
    world.want("3");
    world.settle().await;
    assert_eq!(world.phase(), Some(UpdatePhase::Failed));
    assert!(world.board.borrow().workloads[APP].message.contains("not healthy within 20 s"));
    assert_eq!(world.driver.running(), None);
    world.want("1");
    world.settle().await;
    world.check_settled(0);
}

#[tokio::test(start_paused = true)]
async fn the_old_release_serves_until_the_new_one_is_staged() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.source.set(Fault::Offline);
    world.online.send_replace(false);
    world.want("2");
    world.settle().await;
    assert_eq!(world.driver.running(), Some(world.digest("1")));
    assert_eq!(world.phase(), Some(UpdatePhase::Downloading));
    assert_eq!(world.board.borrow().workloads[APP].reason, "HubUnreachable");
    // Back online it does not wait for its back-off.
    world.source.set(Fault::None);
    world.online.send_replace(true);
    world.turns(100_000, Duration::from_secs(30)).await;
    world.check_settled(0);
}

#[tokio::test(start_paused = true)]
async fn cut_between_any_two_steps_it_converges() {
    for (target, reboot) in [("2", false), ("2", true), ("3", false), ("3", true), ("4", false), ("4", true)] {
        let mut cuts = 0;
        loop {
            let mut world = World::new();
            world.want("1");
            world.settle().await;
            world.want(target);
            let rested = world.turns(cuts, LONG).await;
            if reboot {
                world.reboot()
            } else {
                world.crash()
            }
            world.settle().await;
            world.check_settled(1);
            if rested {
                break;
            }
            cuts += 1;
        }
        assert!(cuts > 5, "{target}: {cuts}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_trial_cut_by_a_reboot_goes_back_first_and_is_tried_again() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.want("2");
    while world.slot().trial.is_none() || world.driver.running() != Some(world.digest("2")) {
        world.turns(1, LONG).await;
    }
    world.reboot();
    world.driver.started.lock().unwrap().clear();
    world.settle().await;
    let started = world.driver.started.lock().unwrap().clone();
    assert_eq!(started, [world.digest("1"), world.digest("2")], "the old one first");
    world.check_settled(1);
}

#[tokio::test(start_paused = true)]
async fn three_cut_trials_count_as_a_failure() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.want("2");
    for cut in 0..MAX_ATTEMPTS {
        while world.slot().attempts(world.digest("2")) <= cut {
            world.turns(1, LONG).await;
        }
        world.crash();
    }
    world.settle().await;
    assert_eq!(world.slot().failure(world.digest("2")).unwrap().reason, "Interrupted");
    assert_eq!(world.driver.running(), Some(world.digest("1")));
    assert_eq!(world.phase(), Some(UpdatePhase::RolledBack));
}

#[tokio::test(start_paused = true)]
async fn a_damaged_release_is_not_run_and_mends_when_the_hub_is_there() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.reboot();
    world.damage("1");
    world.source.set(Fault::Offline);
    world.online.send_replace(false);
    world.settle().await;
    assert_eq!(world.driver.running(), None);
    assert_eq!(world.phase(), Some(UpdatePhase::Blocked));
    assert_eq!(world.board.borrow().workloads[APP].reason, "TreeDamaged");
    world.source.set(Fault::None);
    world.online.send_replace(true);
    world.settle().await;
    world.check_settled(0);
}

#[tokio::test(start_paused = true)]
async fn without_an_assignment_what_is_active_comes_up_without_a_hub() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.reboot();
    world.source.set(Fault::Offline);
    world.wanted.send_replace(Wanted::Keep);
    world.turns(100, Duration::from_secs(5)).await;
    assert_eq!(world.driver.running(), Some(world.digest("1")));
    assert_eq!(world.phase(), Some(UpdatePhase::Succeeded));
}

#[tokio::test(start_paused = true)]
async fn a_lost_slot_leaves_what_runs_and_says_so() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.want("2");
    world.settle().await;
    world.crash();
    for name in ["slot", "slot.bak"] {
        fs::write(world.folder.path().join(name), "x").unwrap();
    }
    let app = work(world.context(), APP.parse().unwrap(), world.folder.path().to_owned(), world.wanted.subscribe());
    timeout(Duration::from_secs(60), app).await.unwrap_err();
    assert_eq!(world.driver.running(), Some(world.digest("2")));
    assert_eq!(world.board.borrow().workloads[APP].reason, "StateLost");
}

#[derive(Debug, Clone)]
enum Op {
    Want(usize),
    Remove,
    Keep,
    Turns(usize),
    Sleep(u64),
    Crash,
    Reboot,
    Damage(usize),
    Line(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let version = 0..VERSIONS.len();
    prop_oneof![
        4 => version.clone().prop_map(Op::Want),
        1 => Just(Op::Remove),
        1 => Just(Op::Keep),
        8 => (1..12usize).prop_map(Op::Turns),
        4 => (1..40u64).prop_map(Op::Sleep),
        2 => Just(Op::Crash),
        2 => Just(Op::Reboot),
        1 => version.prop_map(Op::Damage),
        2 => any::<bool>().prop_map(Op::Line),
    ]
}

async fn play(ops: Vec<Op>) {
    let mut world = World::new();
    let mut interruptions = 0;
    for op in ops {
        match op {
            Op::Want(version) => world.want(VERSIONS[version].0),
            Op::Remove => drop(world.wanted.send_replace(Wanted::Remove)),
            Op::Keep => drop(world.wanted.send_replace(Wanted::Keep)),
            Op::Turns(turns) => drop(world.turns(turns, LONG).await),
            Op::Sleep(secs) => drop(world.turns(10_000, Duration::from_secs(secs)).await),
            Op::Crash => {
                world.crash();
                interruptions += 1;
            }
            Op::Reboot => {
                world.reboot();
                interruptions += 1;
            }
            // A running program is not damaged by its file; the box has to start it again.
            Op::Damage(version) => world.damage(VERSIONS[version].0),
            Op::Line(up) => {
                world.source.set(if up { Fault::None } else { Fault::Offline });
                world.online.send_replace(up);
            }
        }
    }
    // Heal, and demand progress.
    world.source.set(Fault::None);
    world.online.send_replace(true);
    world.settle().await;
    world.check_settled(interruptions);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_it_is_safe_and_ends_well(ops in prop::collection::vec(op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(ops));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_task_of_an_app_is_not_swallowed() {
    let world = World::new();
    world.driver.broken.store(true, Ordering::Relaxed);
    let assignment = Assignment { generation: 1, apps: [(APP.parse().unwrap(), world.releases["1"].clone())].into() };
    let (_sender, assignment) = watch::channel(Some(assignment));
    let apps = Apps::new(world.context(), world.folder.path().to_owned(), assignment);
    let ended = timeout(LONG, tokio::spawn(apps.run())).await.expect("it ends");
    assert!(ended.unwrap_err().is_panic());
}

#[tokio::test(start_paused = true)]
async fn a_damaged_tree_stops_nothing_that_runs() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.damage("1");
    world.crash();
    world.settle().await;
    let starts = world.driver.started.lock().unwrap().len();
    assert_eq!((world.driver.running(), starts), (Some(world.digest("1")), 1), "adopted as it is");
    world.check_settled(0);
    // Once it ends it is fetched again before it starts.
    world.reboot();
    world.settle().await;
    world.check_settled(0);
    assert!(tree::verify(&world.tree_of(world.digest("1")), world.digest("1"), &"web@1".parse().unwrap()).is_ok());
}

/// Takes from the disk, or gives back, the room for a new slot.
fn fill_disk(world: &World, full: bool) {
    for name in ["slot.tmp", "slot.bak.tmp"] {
        let path = world.folder.path().join(name);
        if full { fs::create_dir(path).unwrap() } else { fs::remove_dir(path).unwrap() }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_trial_stops_although_the_disk_is_full() {
    for bad in ["3", "4"] {
        let mut world = World::new();
        world.want("1");
        world.settle().await;
        world.want(bad);
        while world.slot().trial.is_none() {
            world.turns(1, LONG).await;
        }
        fill_disk(&world, true);
        let mut app = world.app.take().unwrap();
        let until_stuck = async {
            while let Ok(turn) = app.turn().await {
                if let Turn::Wait(until) = turn {
                    app.changed(until).await;
                }
            }
        };
        timeout(LONG, until_stuck).await.expect("its failure cannot be recorded");
        assert_eq!(world.driver.running(), None, "{bad} is stopped all the same");
        fill_disk(&world, false);
        // Cut between the stop and the record it is tried again, and fails again.
        drop(app);
        world.settle().await;
        world.check_settled(1);
        assert!(world.slot().failure(world.digest(bad)).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn litter_that_cannot_be_cleared_away_is_tried_again() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    let litter = world.folder.path().join("releases/litter");
    fs::create_dir(&litter).unwrap();
    world.want("2");
    let releases = world.folder.path().join("releases");
    world.settle().await;
    assert!(!litter.exists());
    // A release folder that is none cannot be read.
    let app = world.app.as_mut().unwrap();
    let aside = world.folder.path().join("aside");
    fs::rename(&releases, &aside).unwrap();
    fs::write(&releases, "").unwrap();
    world.wanted.send_replace(Wanted::Keep);
    app.changed(None).await;
    app.turn().await.unwrap_err();
    fs::remove_file(&releases).unwrap();
    fs::rename(&aside, &releases).unwrap();
    fs::create_dir(&litter).unwrap();
    app.turn().await.unwrap();
    assert!(!litter.exists());
}

/// A trial that was undone for a damaged tree is none that was cut short.
#[tokio::test(start_paused = true)]
async fn a_tree_damaged_before_its_trial_counts_as_no_attempt() {
    play(vec![Op::Want(1), Op::Turns(2), Op::Damage(1), Op::Turns(5), Op::Crash, Op::Turns(1), Op::Crash]).await;
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    world.want("2");
    while world.slot().trial.is_none() {
        world.turns(1, LONG).await;
    }
    world.damage("2");
    while world.slot().trial.is_some() {
        world.turns(1, LONG).await;
    }
    assert_eq!(world.slot().attempts, None);
    world.settle().await;
    world.check_settled(0);
}

/// Found by the property above: damage between the check of the tree and the start of the program.
#[tokio::test(start_paused = true)]
async fn a_tree_damaged_just_before_its_start_does_not_run() {
    play(vec![Op::Want(1), Op::Turns(6), Op::Reboot, Op::Turns(1), Op::Damage(1), Op::Want(0)]).await;
}
