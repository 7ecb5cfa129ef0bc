//! How many records a producer has gathered by now: its rate over the day, and its peaks.
//!
//! Producers hand in one request every few virtual seconds; in long runs less often, so that days stay cheap.

use std::time::Duration;

use proto::{env::Seed, name::Name};
use rand::RngExt as _;

use crate::plan::{Curve, Peak, Plan};

/// Between two requests of a producer.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(120);
/// Requests of a producer in a run, about.
const REQUESTS: u32 = 600;
/// Most records of one request.
const MOST: f64 = 5_000.0;
/// Parcels an hour from midnight on, as shares of the mean in per cent: centers sort at night.
const DAY: [u16; 24] =
    [190, 185, 175, 160, 140, 120, 100, 80, 60, 45, 35, 30, 28, 30, 35, 45, 60, 80, 100, 120, 142, 160, 175, 188];

/// A producer on one box.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) node: Name,
    pub(super) stream: Name,
    per_second: f64,
    curve: Curve,
    peaks: Vec<Peak>,
    interval: Duration,
    last: Duration,
    begins: Duration,
    /// What is less than a record.
    rest: f64,
}

/// The producers of a plan, one a box.
pub(super) fn sources(plan: &Plan, seed: &Seed) -> Vec<Source> {
    let interval = (plan.duration / REQUESTS).clamp(SHORTEST, LONGEST);
    let mut sources = vec![];
    for (number, producer) in plan.producers.iter().enumerate() {
        for node in plan.nodes_of(&producer.on) {
            let mut chance = seed.stream(&format!("producer {number} {node}"));
            let most_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
            let begins = Duration::from_millis(chance.random_range(0..most_ms.max(1)));
            sources.push(Source {
                node: node.clone(),
                stream: producer.stream.clone(),
                per_second: producer.per_minute / 60.0,
                curve: producer.curve,
                peaks: producer.peaks.clone(),
                interval,
                last: begins,
                begins,
                rest: chance.random_range(0..1000) as f64 / 1000.0,
            });
        }
    }
    sources
}

impl Source {
    /// When it hands in first.
    pub(super) fn begins(&self) -> Duration {
        self.begins
    }

    /// Records that have gathered, and when to ask again.
    pub(super) fn due(&mut self, now: Duration) -> (usize, Duration) {
        let gathered = self.per_second * self.factor(now) * now.saturating_sub(self.last).as_secs_f64();
        self.last = now;
        self.rest += gathered.min(MOST);
        let count = self.rest.floor();
        self.rest -= count;
        (count as usize, now + self.interval)
    }

    /// So many times the mean rate.
    fn factor(&self, now: Duration) -> f64 {
        let of_day = match self.curve {
            Curve::Flat => 1.0,
            Curve::Daily => {
                let hour = usize::try_from(now.as_secs() / 3600 % 24).unwrap_or(0);
                let all: u32 = DAY.iter().map(|share| u32::from(*share)).sum();
                DAY.get(hour).map_or(1.0, |share| f64::from(*share) * 24.0 / f64::from(all))
            }
        };
        let of = |peak: &&Peak| (peak.at..peak.at + peak.lasts).contains(&now);
        self.peaks.iter().filter(of).fold(of_day, |factor, peak| factor * peak.times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(curve: Curve, peaks: Vec<Peak>) -> Source {
        let (node, stream) = ("box-1".parse().unwrap(), "scans".parse().unwrap());
        let zero = Duration::ZERO;
        let interval = Duration::from_secs(10);
        Source { node, stream, per_second: 0.5, curve, peaks, interval, last: zero, begins: zero, rest: 0.0 }
    }

    fn over(mut source: Source, hours: u64) -> usize {
        let (mut now, mut all) = (Duration::ZERO, 0);
        while now < Duration::from_secs(hours * 3600) {
            let (count, next) = source.due(now);
            (all, now) = (all + count, next);
        }
        all
    }

    #[test]
    fn a_day_brings_the_mean_rate_whatever_its_curve() {
        let flat = over(source(Curve::Flat, vec![]), 24);
        let daily = over(source(Curve::Daily, vec![]), 24);
        assert!((43_190..=43_200).contains(&flat), "{flat}");
        assert!((43_000..=43_300).contains(&daily), "{daily}");
        let noon = Duration::from_secs(12 * 3600);
        assert!(source(Curve::Daily, vec![]).factor(noon) < 0.4);
    }

    #[test]
    fn a_peak_multiplies_while_it_lasts() {
        let peak = Peak { at: Duration::from_secs(3600), lasts: Duration::from_secs(1800), times: 10.0 };
        let all = over(source(Curve::Flat, vec![peak]), 2);
        assert!((11_600..=11_750).contains(&all), "{all}");
    }
}
