//! What workloads tell of themselves: frames a second, the length of a queue, cameras that are lost.
//!
//! ```text
//! workload --PUT /v1/metrics--> Metrics --last values--> heartbeats (`crossdock top apps`, Prometheus)
//!                                  |------- cameras_lost --> condition CamerasLost
//!                                  +-- newest samples while healthy --> the app's report, where a gate asks
//!                                                                  \-> the slot, when it is stopped for another release
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`window`] | the newest samples of a metric, as sums |
//! | [`evidence`] | when what a gate asks for is told anew |
//! | [`cameras`] | when cameras count as lost |
//!
//! A workload names its app and the digest of its release (`CROSSDOCK_APP`, `CROSSDOCK_DIGEST`). Who is on its way out
//! has another digest than what runs and is refused, so its figures never count for its successor.
//!
//! Of an app with [`Replicas`](proto::release::Replicas) all replicas are heard. One that names itself (`"replica": 2`)
//! tells of itself: of the metric that the app is scaled on each has its own value, the sum is the app's, and what
//! replicas but the first tell besides is left out, for no gate compares with it. One that does not name itself tells of
//! the app as a whole.
//!
//! All of it is in memory and bounded: [`MAX_METRICS`] metrics of each app that runs, some 600 bytes each. What an agent
//! knew is gone with it, and is gathered again.

pub mod cameras;
pub mod evidence;
pub mod window;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use proto::{
    digest::Digest,
    name::{MetricName, Name},
    object::{
        Condition, MetricSummary,
        metrics::{CAMERAS_LOST, MAX_METRICS, bound_live},
    },
    release::replicas::VARIABLE,
};
use serde::Deserialize;
use tokio::time::Instant;

use self::{cameras::Cameras, window::Window};
use crate::apps::replicas::Reading;

/// A value that was told so long ago is not shown any more.
pub const STALE: Duration = Duration::from_secs(60);

/// What a workload tells in one request. Unknown fields are skipped.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Told {
    /// Its app.
    pub app: Name,
    /// Digest of its release's manifest.
    pub digest: Digest,
    /// Which replica tells it, of itself; absent when it is of the app as a whole.
    #[serde(default)]
    pub replica: Option<u8>,
    /// Its metrics, at most [`MAX_METRICS`]; finite numbers.
    pub values: BTreeMap<MetricName, f64>,
}

/// What was told is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nothing of that app runs.
    #[error("no workload of app {0} runs on this box: app is what the workload finds in CROSSDOCK_APP")]
    UnknownApp(Name),
    /// Another release of it runs.
    #[error(
        "of app {app} release {runs} runs, not {told}: digest is what the workload finds in CROSSDOCK_DIGEST, and one \
         that is being replaced is not heard any more"
    )]
    OtherRelease {
        /// The app.
        app: Name,
        /// What runs.
        runs: Digest,
        /// What it said that it was.
        told: Digest,
    },
    /// That replica does not run.
    #[error(
        "of app {app} no replica {replica} runs: replica is what the workload finds in {VARIABLE}, and one that is being \
         stopped is not heard any more"
    )]
    NoReplica {
        /// The app.
        app: Name,
        /// Which it said that it was.
        replica: u8,
    },
    /// More than is kept of a workload.
    #[error(
        "a workload has at most {MAX_METRICS} metrics, and this one had others before; start it again to change them"
    )]
    TooMany,
    /// A number that is none.
    #[error("{0} is no finite number")]
    NotFinite(MetricName),
}

/// What all workloads of a box tell. Clones are handles of the same one.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    apps: BTreeMap<Name, Workload>,
    cameras: Cameras,
}

/// A workload that runs.
#[derive(Debug)]
struct Workload {
    release: Digest,
    healthy: bool,
    metrics: BTreeMap<MetricName, Metric>,
    scaled: Option<Scaled>,
}

/// What replicas tell of the metric that their number depends on.
#[derive(Debug)]
struct Scaled {
    metric: MetricName,
    /// Those that run, the first among them.
    runs: BTreeSet<u8>,
    /// The last value of each that names itself.
    each: BTreeMap<u8, (f64, Instant)>,
}

#[derive(Debug)]
struct Metric {
    last: f64,
    at: Instant,
    /// While it was healthy.
    window: Window,
}

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A workload of an app starts, or is taken over: from now on it is heard, and nobody else of that app.
    pub fn begin(&self, app: &Name, release: Digest) {
        let workload = Workload { release, healthy: false, metrics: BTreeMap::new(), scaled: None };
        self.lock().apps.insert(app.clone(), workload);
    }

    /// Whether a workload is healthy: samples of one that is not prove nothing.
    pub fn set_healthy(&self, app: &Name, healthy: bool) {
        if let Some(workload) = self.lock().apps.get_mut(app) {
            workload.healthy = healthy;
        }
    }

    /// An app is scaled on a metric, and has these replicas now; no others are heard.
    pub fn scale(&self, app: &Name, metric: &MetricName, runs: BTreeSet<u8>) {
        let mut state = self.lock();
        let Some(workload) = state.apps.get_mut(app) else { return };
        let before = workload.scaled.take().filter(|before| before.metric == *metric);
        let mut each = before.map(|before| before.each).unwrap_or_default();
        each.retain(|replica, _| runs.contains(replica));
        workload.scaled = Some(Scaled { metric: metric.clone(), runs, each });
    }

    /// What was told lately of the metric that an app is scaled on, if anything was.
    #[must_use]
    pub fn reading(&self, app: &Name) -> Option<Reading> {
        let now = Instant::now();
        let state = self.lock();
        let workload = state.apps.get(app)?;
        let scaled = workload.scaled.as_ref()?;
        if let Some((value, told)) = scaled.sum(now) {
            let silent = scaled.runs.iter().filter(|replica| !told.contains(replica)).copied().collect();
            return Some(Reading { value, silent });
        }
        let metric = workload.metrics.get(&scaled.metric).filter(|metric| now.duration_since(metric.at) < STALE)?;
        Some(Reading { value: metric.last, silent: vec![] })
    }

    /// What runs of an app is to stop: it is not heard any more. Returns its newest samples.
    pub fn end(&self, app: &Name) -> BTreeMap<MetricName, MetricSummary> {
        let ended = self.lock().apps.remove(app);
        ended.as_ref().map(Workload::summaries).unwrap_or_default()
    }

    /// The newest samples of what runs of an app.
    #[must_use]
    pub fn summaries(&self, app: &Name) -> BTreeMap<MetricName, MetricSummary> {
        self.lock().apps.get(app).map(Workload::summaries).unwrap_or_default()
    }

    /// Takes what a workload tells, all of it or nothing.
    ///
    /// # Errors
    /// When it is not what runs, or it is too much.
    pub fn take(&self, told: Told) -> Result<(), Refused> {
        let mut state = self.lock();
        let State { apps, cameras } = &mut *state;
        let Told { app, digest, replica, values } = told;
        let Some(workload) = apps.get_mut(&app) else { return Err(Refused::UnknownApp(app)) };
        if workload.release != digest {
            return Err(Refused::OtherRelease { app, runs: workload.release, told: digest });
        }
        if let Some((name, _)) = values.iter().find(|(_, value)| !value.is_finite()) {
            return Err(Refused::NotFinite(name.clone()));
        }
        let now = Instant::now();
        if let Some(replica) = replica.filter(|replica| *replica > 0) {
            let refused = || Refused::NoReplica { app: app.clone(), replica };
            let scaled =
                workload.scaled.as_mut().filter(|scaled| scaled.runs.contains(&replica)).ok_or_else(refused)?;
            scaled.tell(&values, Some(replica), now);
            return Ok(());
        }
        let fresh = values.keys().filter(|name| !workload.metrics.contains_key(*name)).count();
        if workload.metrics.len() + fresh > MAX_METRICS {
            return Err(Refused::TooMany);
        }
        if let Some(scaled) = &mut workload.scaled {
            scaled.tell(&values, replica, now);
        }
        if let Some(lost) = values.get(CAMERAS_LOST) {
            cameras.told(&app, *lost, now);
        }
        for (name, value) in values {
            let metric = workload.metrics.entry(name);
            let metric = metric.or_insert_with(|| Metric { last: value, at: now, window: Window::default() });
            (metric.last, metric.at) = (value, now);
            if workload.healthy {
                metric.window.add(value);
            }
        }
        Ok(())
    }

    /// The last value of each metric, by app, for heartbeats; what is older than [`STALE`] is left out.
    #[must_use]
    pub fn live(&self) -> BTreeMap<Name, BTreeMap<MetricName, f64>> {
        let now = Instant::now();
        let state = self.lock();
        let of = |workload: &Workload| -> BTreeMap<MetricName, f64> {
            let fresh = workload.metrics.iter().filter(|(_, metric)| now.duration_since(metric.at) < STALE);
            let mut values: BTreeMap<_, _> = fresh.map(|(name, metric)| (name.clone(), metric.last)).collect();
            let sum = workload.scaled.as_ref().and_then(|scaled| Some((scaled.metric.clone(), scaled.sum(now)?.0)));
            values.extend(
                sum.filter(|(name, sum)| sum.is_finite() && (values.len() < MAX_METRICS || values.contains_key(name))),
            );
            values
        };
        let mut live = state.apps.iter().map(|(app, workload)| (app.clone(), of(workload))).collect();
        bound_live(&mut live);
        live
    }

    /// Whether cameras are lost, on a box where somebody tells of cameras.
    pub(crate) fn cameras(&self, now: Timestamp) -> Option<Condition> {
        let State { apps, cameras } = &mut *self.lock();
        cameras.look(|app| apps.contains_key(app), Instant::now(), now)
    }
}

impl Scaled {
    /// A replica tells of itself, or somebody of all of them: either way of telling ends the other.
    fn tell(&mut self, values: &BTreeMap<MetricName, f64>, replica: Option<u8>, now: Instant) {
        let Some(value) = values.get(&self.metric) else { return };
        match replica {
            Some(replica) => drop(self.each.insert(replica, (*value, now))),
            None => self.each.clear(),
        }
    }

    /// What replicas told of themselves lately, together, and which they are; none when none did.
    fn sum(&self, now: Instant) -> Option<(f64, BTreeSet<u8>)> {
        let fresh = || self.each.iter().filter(|(_, (_, at))| now.duration_since(*at) < STALE);
        let told: BTreeSet<u8> = fresh().map(|(replica, _)| *replica).collect();
        (!told.is_empty()).then(|| (fresh().map(|(_, (value, _))| value).sum(), told))
    }
}

impl Workload {
    fn summaries(&self) -> BTreeMap<MetricName, MetricSummary> {
        let summary = |(name, metric): (&MetricName, &Metric)| Some((name.clone(), metric.window.summary()?));
        self.metrics.iter().filter_map(summary).collect()
    }
}
