//! The newest samples of a metric, in blocks of sums: so many samples as a gate may ask for, and little memory.
//!
//! It counts samples, not time: a workload that tells once a minute gets to a verdict as well as one that tells each
//! second. It forgets, so a workload that slows down after an hour shows it as soon as one that was slow from the start.

use std::collections::VecDeque;

use proto::object::{MetricSummary, metrics::MAX_SAMPLES};

/// Samples of one block; the oldest block is forgotten whole.
const BLOCK: u32 = 20;

/// Between [`MAX_SAMPLES`] and one block more.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    blocks: VecDeque<MetricSummary>,
}

impl Window {
    /// One more sample; a finite number.
    pub fn add(&mut self, value: f64) {
        match self.blocks.back_mut().filter(|block| block.samples < BLOCK) {
            Some(block) => *block = joined(*block, MetricSummary { samples: 1, mean: value }),
            None => self.blocks.push_back(MetricSummary { samples: 1, mean: value }),
        }
        let samples: u32 = self.blocks.iter().map(|block| block.samples).sum();
        if samples >= MAX_SAMPLES + BLOCK {
            self.blocks.pop_front();
        }
    }

    /// All of them; `None` without any.
    pub fn summary(&self) -> Option<MetricSummary> {
        self.blocks.iter().copied().reduce(joined)
    }
}

/// Two means as one. No sum is made that could overflow.
fn joined(one: MetricSummary, other: MetricSummary) -> MetricSummary {
    let samples = one.samples + other.samples;
    let share = |part: MetricSummary| part.mean * (f64::from(part.samples) / f64::from(samples));
    MetricSummary { samples, mean: share(one) + share(other) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_that_of_the_newest_samples() {
        let mut window = Window::default();
        assert_eq!(window.summary(), None);
        (0..30).for_each(|i| window.add(f64::from(i)));
        let summary = window.summary().unwrap();
        assert_eq!(summary.samples, 30);
        assert!((summary.mean - 14.5).abs() < 1e-9);
        (0..10_000).for_each(|_| window.add(7.0));
        let summary = window.summary().unwrap();
        assert!((MAX_SAMPLES..=MAX_SAMPLES + BLOCK).contains(&summary.samples), "{summary:?}");
        assert!((summary.mean - 7.0).abs() < 1e-9, "what was before is forgotten");
    }

    #[test]
    fn the_largest_numbers_have_a_mean() {
        let mut window = Window::default();
        for _ in 0..50 {
            window.add(f64::MAX);
            window.add(f64::MIN);
        }
        assert!(window.summary().unwrap().mean.is_finite());
    }
}
