//! When what a gate asks for is told anew: in steps, so that reports stay rare.
//!
//! A report is a write at the hub. So the means of a workload are told
//!
//! - until there are the samples that were asked for: at each quarter of them;
//! - then when there are twice as many as were told last, or a mean has moved by [`MOVED_PERCENT`], at most every
//!   [`TELL_EVERY`];
//! - for as long as the order says after the workload became healthy; after that only until there are the samples that
//!   were asked for, and never again.

use std::{collections::BTreeMap, time::Duration};

use proto::{
    name::MetricName,
    object::{MetricSummary, MetricsOrder},
};
use tokio::time::Instant;

/// Between two looks.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Between two tellings, once there is enough.
const TELL_EVERY: Duration = Duration::from_secs(30);
/// A mean that moved by so much is told.
const MOVED_PERCENT: f64 = 2.0;

/// What was told of a workload that runs.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    /// Another one begins anew.
    order: Option<MetricsOrder>,
    told: BTreeMap<MetricName, MetricSummary>,
    told_at: Option<Instant>,
    healthy_at: Option<Instant>,
}

impl Evidence {
    /// What there is to tell, of which only a step makes something new. `samples` is all that there is.
    pub fn look(
        &mut self,
        order: &MetricsOrder,
        samples: &BTreeMap<MetricName, MetricSummary>,
        healthy: bool,
        now: Instant,
    ) -> &BTreeMap<MetricName, MetricSummary> {
        if self.order.as_ref() != Some(order) {
            *self = Evidence { order: Some(order.clone()), ..Evidence::default() };
        }
        if healthy {
            self.healthy_at.get_or_insert(now);
        }
        let open = self.is_open(order, now);
        if !open && self.is_complete(order) {
            return &self.told;
        }
        let is_step = |(name, asked): (&MetricName, &u32)| {
            samples.get(name).is_some_and(|now| is_step(self.told.get(name), now, *asked))
        };
        let wanted = || order.samples.keys().filter_map(|name| Some((name, samples.get(name)?)));
        let has_moved = |(name, now): (&MetricName, &MetricSummary)| {
            let before = self.told.get(name).map_or(0.0, |before| before.mean);
            (now.mean - before).abs() > before.abs() * (MOVED_PERCENT / 100.0)
        };
        let may = open && self.told_at.is_none_or(|at| now >= at + TELL_EVERY);
        if order.samples.iter().any(is_step) || may && wanted().any(has_moved) {
            self.told = wanted().map(|(name, summary)| (name.clone(), *summary)).collect();
            self.told_at = Some(now);
        }
        &self.told
    }

    /// What was told.
    pub fn told(&self) -> &BTreeMap<MetricName, MetricSummary> {
        &self.told
    }

    /// When to look again; `None`: it is all told.
    pub fn wake(&self, order: &MetricsOrder, now: Instant) -> Option<Instant> {
        match self.is_open(order, now) {
            true => Some(now + LOOK_EVERY),
            false if self.is_complete(order) => None,
            false => Some(now + TELL_EVERY),
        }
    }

    fn is_open(&self, order: &MetricsOrder, now: Instant) -> bool {
        self.healthy_at.is_none_or(|since| now.duration_since(since) <= Duration::from_secs(order.for_s))
    }

    /// Whether all that was asked for was told.
    fn is_complete(&self, order: &MetricsOrder) -> bool {
        order.samples.iter().all(|(name, asked)| self.told.get(name).is_some_and(|told| told.samples >= *asked))
    }
}

/// Whether there are so many more samples that it is worth telling.
fn is_step(told: Option<&MetricSummary>, now: &MetricSummary, asked: u32) -> bool {
    let told = told.map_or(0, |told| told.samples);
    if told >= asked {
        return now.samples >= told.saturating_mul(2);
    }
    now.samples >= asked || now.samples >= told + (asked / 4).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(asked: u32) -> MetricsOrder {
        MetricsOrder { samples: [("fps".parse().unwrap(), asked)].into(), for_s: 3600 }
    }

    fn samples(samples: u32, mean: f64) -> BTreeMap<MetricName, MetricSummary> {
        [("fps", mean), ("unasked", 1.0)]
            .map(|(name, mean)| (name.parse().unwrap(), MetricSummary { samples, mean }))
            .into()
    }

    /// How many samples were told, each time that it was told anew.
    fn steps(asked: u32, seconds: u32, mean: impl Fn(u32) -> f64) -> Vec<u32> {
        let (mut evidence, order, begun) = (Evidence::default(), order(asked), Instant::now());
        let mut steps = vec![];
        for second in 1..=seconds {
            let now = begun + Duration::from_secs(u64::from(second));
            let told = evidence.look(&order, &samples(second.min(600), mean(second)), true, now);
            assert!(told.len() <= 1, "nobody asked for more");
            let told = told.get("fps").map_or(0, |fps| fps.samples);
            if steps.last() != Some(&told) {
                steps.push(told);
            }
        }
        steps
    }

    #[test]
    fn an_hour_of_samples_is_told_a_few_times() {
        assert_eq!(steps(30, 3000, |_| 25.0), [1, 8, 15, 22, 29, 30, 60, 120, 240, 480]);
        assert_eq!(steps(1, 10, |_| 25.0), [1, 2, 4, 8]);
    }

    #[test]
    fn a_mean_that_moves_is_told_but_not_all_the_time() {
        let told = steps(10, 600, |second| f64::from(second / 10));
        assert!((15..=30).contains(&told.len()), "{told:?}");
    }

    #[test]
    fn after_its_time_it_stays_as_it_is() {
        let (mut evidence, order, begun) = (Evidence::default(), order(10), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert!(evidence.look(&order, &samples(5, 25.0), false, at(0)).get("fps").is_some());
        evidence.look(&order, &samples(20, 25.0), true, at(5000));
        assert!(evidence.wake(&order, at(5000)).is_some(), "it counts from when it is healthy");
        let told = evidence.look(&order, &samples(600, 1.0), true, at(8601)).clone();
        assert_eq!(told["fps"], MetricSummary { samples: 20, mean: 25.0 });
        assert_eq!(evidence.wake(&order, at(8601)), None);
        // One that tells once a minute is not cut off before there is enough.
        let mut slow = Evidence::default();
        slow.look(&order, &samples(5, 25.0), true, at(0));
        assert_eq!(slow.look(&order, &samples(7, 1.0), true, at(4000))["fps"].samples, 7);
        assert_eq!(slow.look(&order, &samples(11, 1.0), true, at(4060))["fps"].samples, 11);
        assert_eq!(slow.look(&order, &samples(30, 9.0), true, at(4120))["fps"].samples, 11);
        assert_eq!(slow.wake(&order, at(4120)), None);
    }
}
