//! A box with several apps, of which some use the files of others.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::future::select_all;
use proto::{
    durable::Record,
    name::Name,
    object::{ReleaseRef, WorkloadStatus},
    watch,
};
use tokio::time::{Instant, timeout};

use super::{
    APP, LONG,
    fakes::{VERSIONS, WITH_HOOKS},
    world::World,
};
use crate::{
    apps::{
        live,
        plan::{Ask, Wanted},
        slot::{self, Installed, Slot},
        task::{App, Context, Turn},
    },
    driver::InstanceSpec,
    fetch::{tests::publish, tree},
};

pub(super) const MODEL: &str = "model";
/// Uses it, too; version 5 of it does not suit this one.
pub(super) const OTHER: &str = "other";
/// Another model.
pub(super) const LABELS: &str = "labels";

pub(super) const USER: &str = r#""command": "bin/run", "soak": "3s", "deadline": "20s",
    "probes": {"readiness": {"exec": {"command": ["bin/run"]}, "period": "500ms"}}"#;
pub(super) const POST_APPLY: &str = r#""hooks": {"postApply": {"command": ["bin/post"]}},"#;

/// A box with several apps, below the folder of a [`World`] of one.
pub(super) struct Fleet {
    pub(super) world: World,
    /// All that an agent shares, in its life.
    pub(super) shared: Option<Arc<Context>>,
    pub(super) apps: BTreeMap<&'static str, App>,
    pub(super) wanted: BTreeMap<&'static str, watch::Sender<Wanted>>,
    pub(super) releases: BTreeMap<(&'static str, &'static str), ReleaseRef>,
    /// Who waits, until when, and whose turn was last.
    pub(super) idle: BTreeMap<&'static str, Option<Instant>>,
    pub(super) last: &'static str,
    /// From now on whoever follows `run/live` of the app is served at every moment.
    pub(super) must_serve: bool,
}

impl Fleet {
    /// The app runs with version 1 of the model.
    pub(super) async fn new(warm: bool) -> Fleet {
        let mut fleet = Fleet::empty(warm, &[MODEL]);
        fleet.want(MODEL, "1");
        fleet.want(APP, "1");
        fleet.settle().await;
        fleet.check_settled();
        fleet.must_serve = warm;
        fleet
    }

    pub(super) fn empty(warm: bool, used: &[&str]) -> Fleet {
        let world = World::warm();
        let update = if warm { r#", "update": {"strategy": "warm"}"# } else { "" };
        let mut releases = BTreeMap::new();
        for (version, ..) in VERSIONS {
            for app in [APP, OTHER, MODEL, LABELS] {
                let hooks = if version == WITH_HOOKS { POST_APPLY } else { "" };
                let workload = match app {
                    MODEL | LABELS => "{}".to_owned(),
                    _ => format!(r#"{{{hooks} {USER}{update}, "uses": {}}}"#, serde_json::to_string(used).unwrap()),
                };
                let content = format!("{app} {version}");
                let files: &[(&str, &[u8])] = &[("bin/run", content.as_bytes()), ("share/same", b"same")];
                let (digest, _) = publish(&world.source, &format!("{app}@{version}"), files, &workload);
                releases.insert((app, version), ReleaseRef { version: version.parse().unwrap(), digest });
            }
        }
        Fleet {
            world,
            shared: None,
            apps: BTreeMap::new(),
            wanted: BTreeMap::new(),
            releases,
            idle: BTreeMap::new(),
            last: "",
            must_serve: false,
        }
    }

    /// Has a version of an app be another workload than the others are.
    pub(super) fn publish(&mut self, app: &'static str, version: &'static str, soak: &str, more: &str) {
        let (user, content) = (USER.replace("3s", soak), format!("{app} {version}"));
        let workload = format!("{{{user}, {more}}}");
        let files: &[(&str, &[u8])] = &[("bin/run", content.as_bytes())];
        let (digest, _) = publish(&self.world.source, &format!("{app}@{version}"), files, &workload);
        self.releases.get_mut(&(app, version)).unwrap().digest = digest;
    }

    pub(super) fn want(&mut self, app: &'static str, version: &str) {
        let release: Wanted = self.release(app, version).clone().into();
        self.wanted.entry(app).or_insert_with(|| watch::channel(Wanted::Keep).0).send_replace(release);
    }

    pub(super) fn ask(&self, app: &str, change: impl FnOnce(&mut Ask)) {
        self.wanted[app].send_modify(|wanted| {
            if let Wanted::Run(ask) = wanted {
                change(ask);
            }
        });
    }

    pub(super) fn release(&self, app: &str, version: &str) -> &ReleaseRef {
        self.releases.iter().find(|((a, v), _)| *a == app && *v == version).unwrap().1
    }

    pub(super) fn folder(&self, app: &str) -> PathBuf {
        self.world.folder.path().join(app)
    }

    pub(super) fn slot(&self, app: &str) -> Slot {
        slot::load(&Record::at(self.folder(app).join("slot"))).unwrap()
    }

    /// The version that is active.
    pub(super) fn active(&self, app: &str) -> Option<String> {
        self.slot(app).active.map(|active| active.release.version.to_string())
    }

    pub(super) fn status(&self, app: &str) -> WorkloadStatus {
        self.world.board.borrow().workloads[app].clone()
    }

    pub(super) fn specs(&self, app: &str) -> Vec<InstanceSpec> {
        self.world.driver.specs().into_iter().filter(|spec| spec.app.as_str() == app).collect()
    }

    /// What was started of an app: its version, and that of the model.
    pub(super) fn starts(&self, app: &str) -> Vec<(String, String)> {
        let starts = self.world.driver.starts.lock().unwrap();
        let started = starts.iter().filter(|spec| spec.app.as_str() == app);
        started.map(|spec| (spec.release.version.to_string(), model_of(spec))).collect()
    }

    pub(super) fn crash(&mut self) {
        self.apps.clear();
        self.idle.clear();
        self.shared = None;
    }

    pub(super) fn reboot(&mut self) {
        self.crash();
        self.world.reboot();
    }

    /// All apps are opened before any does anything, as [`Apps`](crate::apps::Apps) has it.
    pub(super) async fn open(&mut self) {
        let shared = self.shared.get_or_insert_with(|| self.world.context()).clone();
        for (app, wanted) in &self.wanted {
            if !self.apps.contains_key(app) {
                let (name, folder) = (app.parse().unwrap(), self.world.folder.path().join(app));
                let opened = App::open(shared.clone(), name, folder, wanted.subscribe()).await.unwrap();
                self.apps.insert(app, opened);
            }
        }
    }

    /// So many steps, each app in its turn, or until nothing changes for `patience`; whether it came to rest.
    pub(super) async fn turns(&mut self, turns: usize, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        self.open().await;
        let mut left = turns;
        while left > 0 {
            let busy = |name: &&&str| !self.idle.contains_key(**name);
            let after = self.apps.range::<&str, _>((Excluded(self.last), Unbounded)).map(|(name, _)| name);
            let Some(name) = after.chain(self.apps.keys()).find(busy).copied() else {
                if !self.wait(end).await {
                    return true;
                }
                continue;
            };
            self.last = name;
            match self.apps.get_mut(name).unwrap().turn().await.unwrap() {
                Turn::Again => left -= 1,
                Turn::Wait(until) => drop(self.idle.insert(name, until)),
                Turn::Ended => {
                    left -= 1;
                    self.apps.remove(name);
                    self.wanted.remove(name);
                    if self.apps.is_empty() {
                        return true;
                    }
                }
            }
            check(&self.world, self.must_serve);
        }
        false
    }

    /// All wait: whether something changes for one of them before then.
    pub(super) async fn wait(&mut self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        let names: Vec<&'static str> = self.apps.keys().copied().collect();
        let idle = &self.idle;
        let changed = self.apps.iter_mut().map(|(name, app)| Box::pin(app.changed(idle[name])));
        let Ok((_, one, _)) = timeout(left, select_all(changed)).await else { return false };
        self.idle.remove(names[one]);
        check(&self.world, self.must_serve);
        true
    }

    pub(super) async fn settle(&mut self) {
        assert!(self.turns(100_000, LONG).await, "it never comes to rest");
    }

    pub(super) async fn turn_until(&mut self, so: impl Fn(&Fleet) -> bool) {
        while !so(self) {
            assert!(!self.turns(1, LONG).await || so(self), "it rests: {:?}", self.slot(APP));
        }
    }

    pub(super) fn status_or_gone(&self, app: &str) -> Option<WorkloadStatus> {
        self.world.board.borrow().workloads.get(app).cloned()
    }

    /// At rest every user has the files that are active, and nothing is held against it.
    pub(super) fn check_settled(&self) {
        for app in [APP, OTHER].into_iter().filter(|app| self.wanted.contains_key(app)) {
            let slot = self.slot(app);
            assert_eq!((&slot.trial, &slot.failed, &slot.attempts), (&None, &vec![], &None));
            let active = slot.active.unwrap();
            for (of, used) in &active.uses {
                assert_eq!(self.slot(of.as_str()).active.unwrap().release, *used, "{app} has what is active of {of}");
            }
            let [spec] = &self.specs(app)[..] else { panic!("{app}: {:?}", self.specs(app)) };
            assert_eq!((&spec.release, &spec.uses, spec.side), (&active.release, &active.uses, slot.side));
            let variable = format!("CROSSDOCK_USES_{}", MODEL.to_uppercase());
            let at = tree::release_folder(&self.folder(MODEL).join("releases"), spec.uses[&name(MODEL)].digest);
            assert_eq!(spec.workload.env[&variable], tree::tree_folder(&at).display().to_string());
        }
    }
}

pub(super) fn name(app: &str) -> Name {
    app.parse().unwrap()
}

pub(super) fn model_of(spec: &InstanceSpec) -> String {
    spec.uses.get(&name(MODEL)).map(|used| used.version.to_string()).unwrap_or_default()
}

/// What must hold between any two steps.
pub(super) fn check(world: &World, must_serve: bool) {
    assert_eq!(*world.driver.violations.lock().unwrap(), Vec::<String>::new());
    let apps = world.folder.path();
    let slot = |app: &str| slot::load(&Record::at(apps.join(app).join("slot"))).unwrap();
    if must_serve {
        let live = live::linked(&apps.join(APP));
        assert!(live.is_some_and(|side| world.driver.serves(side)), "a gap: {live:?} is live, {:?}", slot(APP));
    }
    for spec in world.driver.specs() {
        let slot = slot(spec.app.as_str());
        let trial = slot.trial.iter().map(|trial| &trial.installed);
        let is_it = |i: &Installed| i.release == spec.release && (i.uses.is_empty() || i.uses == spec.uses);
        let known = slot.active.iter().chain(trial).any(is_it);
        // One that went back is stopped next, and never taken up again.
        let goes = slot.trial.is_none() && spec.side != slot.side;
        assert!(known || goes, "{} runs with {:?}, which is on no record: {slot:?}", spec.app, spec.uses);
    }
    for app in [APP, OTHER] {
        for (of, used) in slot(app).pins() {
            let folder = tree::release_folder(&apps.join(of.as_str()).join("releases"), used.digest);
            assert!(folder.exists(), "{app} has files of {of} {} that are gone", used.version);
        }
    }
}

pub(super) fn pair(version: &str, model: &str) -> (String, String) {
    (version.to_owned(), model.to_owned())
}
