//! Figures that workloads tell of themselves, such as frames a second: their bounds, and what is judged of them.
//!
//! ```text
//! workload --PUT /v1/metrics--> agent --last values--> Usage (heartbeats): `top`, Prometheus
//!                                  |---- means, while an order asks for them --> WorkloadStatus (reports): gates
//! ```
//!
//! Values change all the time and ride in heartbeats, which the hub keeps in memory alone. What a gate judges rides in
//! reports, in steps, and only while a rollout asks.

use std::collections::BTreeMap;

use super::workload::ReleaseRef;
use crate::{digest::Digest, name::MetricName};

/// Metrics of one workload at most.
pub const MAX_METRICS: usize = 32;
/// Values of all workloads of a node that ride in one heartbeat at most.
pub const MAX_LIVE_VALUES: usize = 512;
/// Samples that a mean is taken of at most, the newest; so a gate asks for no more.
pub const MAX_SAMPLES: u32 = 600;
/// Metric of cameras that a workload should see and does not: above 0 it is a condition of the node,
/// [`CAMERAS_LOST`](super::condition::CAMERAS_LOST).
pub const CAMERAS_LOST: &str = "cameras_lost";

data! {
    /// Samples of a metric, taken together.
    #[derive(Copy)]
    pub struct MetricSummary {
        /// How many, all of them reported while the workload was healthy.
        pub samples: u32,
        /// Their arithmetic mean.
        pub mean: f64,
    }

    /// What a node's workload told of itself, for the gate of a rollout.
    pub struct WorkloadMetrics {
        /// Digest of the release that told it.
        pub digest: Digest,
        /// The newest samples since it became healthy, of metrics that [`MetricsOrder`] names.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub now: BTreeMap<MetricName, MetricSummary>,
        /// The same of the release that ran before on this node, up to when it was stopped for this one. Absent when
        /// none did, or it told nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub before: Option<MetricsBefore>,
    }

    /// What the release before told of itself.
    pub struct MetricsBefore {
        /// Which release.
        pub release: ReleaseRef,
        /// Its last samples.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub metrics: BTreeMap<MetricName, MetricSummary>,
    }

    /// What a rollout wants to know of the workload of a release.
    #[derive(Eq)]
    pub struct MetricsOrder {
        /// The metrics, each with the samples that are asked for.
        pub samples: BTreeMap<MetricName, u32>,
        /// Seconds after the workload became healthy for which it is told; then it stays as it is.
        pub for_s: u64,
    }
}

impl WorkloadMetrics {
    /// Cuts it to what is kept of it.
    pub fn bound(&mut self) {
        while self.now.len() > MAX_METRICS {
            self.now.pop_last();
        }
        if let Some(before) = &mut self.before {
            while before.metrics.len() > MAX_METRICS {
                before.metrics.pop_last();
            }
        }
    }
}

/// Cuts live values of a node to what is kept of them.
pub fn bound_live<K: Ord>(live: &mut BTreeMap<K, BTreeMap<MetricName, f64>>) {
    let mut left = MAX_LIVE_VALUES;
    live.retain(|_, values| {
        while values.len() > MAX_METRICS.min(left) {
            values.pop_last();
        }
        left -= values.len();
        !values.is_empty()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_is_cut_to_the_bounds() {
        let values = |count: usize| (0..count).map(|i| (format!("m{i:03}").parse().unwrap(), 1.0)).collect();
        let mut live: BTreeMap<usize, BTreeMap<MetricName, f64>> = (0..40).map(|app| (app, values(40))).collect();
        bound_live(&mut live);
        assert_eq!(live.values().map(BTreeMap::len).sum::<usize>(), MAX_LIVE_VALUES);
        assert!(live.values().all(|values| values.len() == MAX_METRICS));
    }

    #[test]
    fn names_are_those_of_prometheus() {
        for good in ["frames_per_second", "_x", "A9", &"a".repeat(64)] {
            assert_eq!(good.parse::<MetricName>().unwrap().as_str(), good);
        }
        for bad in ["", "9a", "a-b", "a.b", "ä", "a b", &"a".repeat(65)] {
            assert!(bad.parse::<MetricName>().is_err(), "{bad}");
        }
    }
}
