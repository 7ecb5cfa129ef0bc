//! What the workload tells of itself: looked at for the gate that asks for it, and kept when it is stopped for another.

use std::collections::BTreeMap;

use proto::{
    name::MetricName,
    object::{MetricSummary, MetricsBefore, MetricsOrder, WorkloadMetrics},
};
use tokio::time::Instant;

use super::{App, Wanted};
use crate::apps::slot::Before;

impl App {
    /// The order that asks for it, if what runs is what is ordered.
    fn metrics_order<'a>(&self, wanted: &'a Wanted) -> Option<&'a MetricsOrder> {
        let ask = wanted.ask()?;
        let runs = self.run.as_ref().filter(|run| run.supervisor.is_some())?;
        ask.order.metrics.as_ref().filter(|_| runs.release.digest == ask.release.digest)
    }

    /// Looks at what it told since.
    pub(super) fn measure(&mut self, wanted: &Wanted) {
        let Some(order) = self.metrics_order(wanted) else { return };
        let samples = self.shared.metrics.summaries(&self.name);
        if let Some(run) = &mut self.run {
            let healthy = run.health.borrow().healthy_since.is_some();
            run.evidence.look(order, &samples, healthy, Instant::now());
        }
    }

    /// When to look again.
    pub(super) fn measure_at(&self) -> Option<Instant> {
        let wanted = self.wanted.borrow();
        let order = self.metrics_order(&wanted)?;
        self.run.as_ref()?.evidence.wake(order, Instant::now())
    }

    /// What there is to tell the hub.
    pub(super) fn measured(&self, wanted: &Wanted) -> Option<WorkloadMetrics> {
        let order = self.metrics_order(wanted)?;
        let run = self.run.as_ref()?;
        let digest = run.release.digest;
        let before = self.slot.before.as_ref().filter(|before| before.replaced_by == digest).map(|before| {
            let asked = before.metrics.iter().filter(|(name, _)| order.samples.contains_key(*name));
            let metrics: BTreeMap<_, _> = asked.map(|(name, summary)| (name.clone(), *summary)).collect();
            MetricsBefore { release: before.release.clone(), metrics }
        });
        let before = before.filter(|before| !before.metrics.is_empty());
        Some(WorkloadMetrics { digest, now: run.evidence.told().clone(), before })
    }

    /// Another release is about to take the place of what is live: keeps what that told last. A disk that takes nothing
    /// keeps no workload running: then there is nothing to compare with.
    pub(super) async fn keep_measured(&mut self, metrics: BTreeMap<MetricName, MetricSummary>) {
        let next = match (&self.slot.trial, &self.staged) {
            (Some(trial), _) => Some(&trial.installed).filter(|_| trial.standby),
            (None, staged) => staged.as_ref().map(|staged| &staged.installed),
        };
        let (Some(run), Some(next), Some(active)) = (&self.run, next, &self.slot.active) else { return };
        let (release, replaced_by) = (run.release.clone(), next.release.digest);
        if active.release != release || replaced_by == release.digest {
            return;
        }
        let before = Before { release, replaced_by, metrics }.after(self.slot.before.as_ref());
        if before.metrics.is_empty() && self.slot.before.is_none() {
            return; // most workloads tell nothing, and cost nothing
        }
        if let Err(error) = self.store(|slot| slot.before = Some(before)).await {
            tracing::warn!(app = %self.name, %error, "what it told of itself is not kept for a comparison");
        }
    }
}
