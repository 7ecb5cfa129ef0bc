//! One instance, and what its arguments have it do.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use edgecore::{apps::live, driver::Instance};
use jiff::Timestamp;
use proto::{
    env::WallClock,
    name::{MetricName, Name},
    object::{LastExit, ReleaseRef},
    units::{self, Span},
    watch,
};
use tokio::time::Instant;

/// One instance, running or ended.
pub(super) struct Process {
    pub(super) instance: Instance,
    /// Its run folder, when it has one.
    pub(super) run: Option<PathBuf>,
    /// The releases of others whose files it uses.
    pub(super) uses: BTreeMap<Name, ReleaseRef>,
    pub(super) number: u64,
    pub(super) hangs: bool,
    pub(super) eats_bytes: u64,
    /// What it tells of itself, and how often.
    pub(super) tells: BTreeMap<MetricName, f64>,
    pub(super) tells_every_s: u64,
    /// The metric that the number of its replicas follows.
    pub(super) follows: Option<MetricName>,
    /// GPUs that it has, whether for itself, and how much of each.
    pub(super) gpus: Vec<String>,
    pub(super) exclusive: bool,
    pub(super) gpu_bytes: u64,
    /// When it will end by itself.
    pub(super) ends_at: Option<Instant>,
    /// Tells those who wait that it was stopped or replaced.
    pub(super) ended: watch::Sender<Option<LastExit>>,
    pub(super) log: Vec<String>,
}

/// What an instance of a release does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behaviour {
    Runs,
    CrashesAfter(Duration),
    Hangs,
    Refuses,
    EatsDisk(u64),
}

impl Behaviour {
    pub(super) fn of(args: &[String], host: &str) -> Behaviour {
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

impl Process {
    /// Whether clients reach it, and it does its work.
    pub(super) fn is_live(&self) -> bool {
        let Some(own) = &self.run else { return true };
        fs::read_link(own.with_file_name(live::NAME)).ok().as_deref() == own.file_name().map(Path::new)
    }

    /// Whether it is updated warm, so that it is not to end before another one is live, and does its work.
    pub(super) fn would_be_missed(&self) -> bool {
        self.run.is_some() && self.instance.exit.is_none() && self.is_live() && !self.hangs
    }

    pub(super) fn notice_crash(&mut self, wall: &dyn WallClock) {
        if self.instance.exit.is_none() && self.ends_at.is_some_and(|at| at <= Instant::now()) {
            let mut exit = exit(Some(1), None, wall.now());
            exit.message = "crashed, as its release says".into();
            self.end_in_place(exit);
        }
    }

    pub(super) fn end_in_place(&mut self, exit: LastExit) {
        self.instance.exit = Some(exit.clone());
        self.ended.send_replace(Some(exit));
    }

    pub(super) fn end(mut self, exit: LastExit) {
        if self.instance.exit.is_none() {
            self.end_in_place(exit);
        }
    }
}

/// What an instance tells of itself: `tell=NAME:NUMBER`.
pub(super) fn tells(args: &[String]) -> BTreeMap<MetricName, f64> {
    let told = args.iter().filter_map(|arg| arg.strip_prefix("tell=")?.split_once(':'));
    told.filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?))).collect()
}

/// Seconds between two tellings.
pub(super) fn tells_every_s(args: &[String]) -> u64 {
    let every = args.iter().find_map(|arg| arg.strip_prefix("tell-every=")?.parse().ok());
    every.unwrap_or(1).max(1)
}

pub(super) fn exit(code: Option<i32>, signal: Option<i32>, at: Timestamp) -> LastExit {
    LastExit { code, signal, at, message: String::new() }
}
