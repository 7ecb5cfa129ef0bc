//! When producers hand in, and how many records.
//!
//! Producers hand in one request every few virtual seconds; in long runs less often, so that days stay cheap.

use std::time::Duration;

use proto::{env::Seed, name::Name};
use rand::RngExt as _;

use crate::plan::{Plan, Producer};

/// Between two requests of a producer.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(120);
/// Requests of a producer in a run, about.
const REQUESTS: u32 = 600;
/// Most records of one request: what is more goes in several.
pub(super) const MOST: usize = 5_000;

/// A producer on one box.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) node: Name,
    producer: Producer,
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
                producer: producer.clone(),
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
    pub(super) fn stream(&self) -> &Name {
        &self.producer.stream
    }

    /// When it hands in first.
    pub(super) fn begins(&self) -> Duration {
        self.begins
    }

    /// Records that have gathered, and when to ask again.
    pub(super) fn due(&mut self, now: Duration) -> (usize, Duration) {
        self.rest += self.producer.records(self.last, now);
        self.last = now;
        let count = self.rest.floor();
        self.rest -= count;
        (count as usize, now + self.interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fault::Target, plan::Curve};

    #[test]
    fn nothing_is_left_out_however_much_gathers_between_two_requests() {
        let (stream, zero) = ("scans".parse().unwrap(), Duration::ZERO);
        let producer = Producer { on: Target::All, stream, per_minute: 30_000.5, curve: Curve::Flat, peaks: vec![] };
        let (node, interval) = ("box-1".parse().unwrap(), LONGEST);
        let mut source = Source { node, producer, interval, last: zero, begins: zero, rest: 0.0 };
        let (mut now, mut all) = (zero, 0);
        while now <= Duration::from_secs(3_600) {
            let (count, next) = source.due(now);
            (all, now) = (all + count, next);
        }
        assert_eq!(all, 1_800_030);
    }
}
