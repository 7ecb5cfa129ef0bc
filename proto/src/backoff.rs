//! How long to wait before trying again: full jitter, growing to a bound.
//!
//! A machine without clock: the caller says what happened and sleeps. The agent uses it between sessions, fetches
//! and connections with brokers, the hub between connections with brokers.

use std::time::Duration;

use rand::{Rng, RngExt as _};

/// A session of this length counts as a success; a shorter one as one more failure. So a hub that
/// accepts and drops at once is not hammered.
pub const STABLE_AFTER: Duration = Duration::from_secs(10);

/// Counts failures and draws waits.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits of up to `base`, doubling with every failure up to `cap`.
    #[must_use]
    pub fn new(base: Duration, cap: Duration) -> Backoff {
        Backoff { base, cap, failures: 0 }
    }

    /// Failures in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// It failed: how long to wait. Drawn evenly from nothing to the current bound, so that a fleet that
    /// lost its hub in one moment does not come back in one moment.
    pub fn failed(&mut self, rng: &mut impl Rng) -> Duration {
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(rng.random_range(0.0..=1.0))
    }

    /// It went well.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// A session ended after `lived`.
    pub fn ended(&mut self, lived: Duration) {
        if lived >= STABLE_AFTER {
            self.succeeded();
        }
    }

    fn bound(&self) -> Duration {
        self.base.saturating_mul(1 << self.failures.min(24)).min(self.cap)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::env::Seed;

    proptest! {
        #[test]
        fn waits_stay_under_a_bound_that_grows_and_resets(seed: u64, events in prop::collection::vec(0u64..40, 1..60)) {
            let (base, cap) = (Duration::from_millis(250), Duration::from_secs(30));
            let mut backoff = Backoff::new(base, cap);
            let mut rng = Seed::from_u64(seed).stream("test");
            let mut failures = 0u32;
            for lived in events {
                let lived = Duration::from_secs(lived);
                backoff.ended(lived);
                if lived >= STABLE_AFTER {
                    failures = 0;
                }
                prop_assert_eq!(backoff.failures(), failures);
                let wait = backoff.failed(&mut rng);
                prop_assert!(wait <= base.saturating_mul(2u32.saturating_pow(failures.min(20))).min(cap));
                failures += 1;
            }
        }
    }

    #[test]
    fn waits_are_spread_over_the_whole_range() {
        let mut rng = Seed::from_u64(1).stream("test");
        let cap = Duration::from_secs(30);
        let mut waits: Vec<Duration> = (0..400)
            .map(|_| {
                let mut backoff = Backoff { failures: 20, ..Backoff::new(Duration::from_millis(250), cap) };
                backoff.failed(&mut rng)
            })
            .collect();
        waits.sort_unstable();
        for (i, share) in [(40, 0.1), (200, 0.5), (360, 0.9)] {
            let wait = waits[i].as_secs_f64() / 30.0;
            assert!((wait - share).abs() < 0.08, "{wait} at {share}");
        }
    }
}
