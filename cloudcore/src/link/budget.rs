//! Byte budgets for artifacts: one a node, one a site and one for all, on tokio's clock.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use proto::object::SiteSpec;
use tokio::{sync::Notify, time::Instant};

/// What may be spent ahead: a fifth of a second of the rate.
const BURST: Duration = Duration::from_millis(200);

/// A wait is never reckoned longer than this; then it is reckoned again.
const FAR: Duration = Duration::from_secs(86_400);

/// Spends bytes at a rate. Takers wait in the order they came, each at a place in the queue of bytes; a new
/// rate moves all of them at once.
#[derive(Debug)]
pub(crate) struct Budget {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    bytes_per_s: Option<u64>,
    /// Bytes taken since the beginning.
    taken: f64,
    /// Bytes of them, and of what may be spent ahead, that were paid for at `at`.
    paid: f64,
    at: Instant,
}

impl Budget {
    /// Without a rate it is unlimited. A rate of 0 counts as 1.
    pub(crate) fn new(bytes_per_s: Option<u64>) -> Budget {
        let mut state = State { bytes_per_s, taken: 0.0, paid: 0.0, at: Instant::now() };
        state.paid = state.ahead();
        Budget { state: Mutex::new(state), changed: Notify::new() }
    }

    /// Changes the rate, for those who wait too.
    pub(crate) fn set_rate(&self, bytes_per_s: Option<u64>) {
        let mut state = self.state();
        if state.bytes_per_s != bytes_per_s {
            state.pay(Instant::now());
            state.bytes_per_s = bytes_per_s;
            state.paid = state.paid.min(state.taken + state.ahead());
            self.changed.notify_waiters();
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `bytes` may be sent. Dropped half-way, the bytes stay spent.
    pub(crate) async fn take(&self, bytes: usize) {
        let place = self.state().take(bytes, Instant::now());
        loop {
            let changed = self.changed.notified(); // from here on no change is missed
            let Some(until) = self.state().when(place, Instant::now()) else { return };
            tokio::select! { biased;
                () = changed => {}
                () = tokio::time::sleep_until(until) => return,
            }
        }
    }
}

impl State {
    fn rate(&self) -> Option<f64> {
        self.bytes_per_s.map(|rate| rate.max(1) as f64)
    }

    /// What may be spent ahead after a pause.
    fn ahead(&self) -> f64 {
        self.rate().map_or(0.0, |rate| rate * BURST.as_secs_f64())
    }

    fn pay(&mut self, now: Instant) {
        let spent = now.saturating_duration_since(self.at).as_secs_f64();
        let limit = self.taken + self.ahead();
        self.paid = self.rate().map_or(self.taken, |rate| (self.paid + rate * spent).min(limit));
        self.at = now;
    }

    /// Takes bytes; yields their place.
    fn take(&mut self, bytes: usize, now: Instant) -> f64 {
        self.pay(now);
        let place = self.taken;
        self.taken += bytes as f64;
        place
    }

    /// When what stands at `place` may be sent, if not now.
    fn when(&mut self, place: f64, now: Instant) -> Option<Instant> {
        self.pay(now);
        let missing = place - self.paid;
        let rate = self.rate().filter(|_| missing > 0.0)?;
        let wait = Duration::try_from_secs_f64(missing / rate).unwrap_or(FAR).min(FAR);
        Some(now + wait)
    }
}

/// The budgets of all sites, that of the fleet, and the rate of a node.
#[derive(Debug)]
pub(crate) struct Budgets {
    node_bytes_per_s: Option<u64>,
    fleet: Arc<Budget>,
    sites: Mutex<BTreeMap<String, Arc<Budget>>>,
}

impl Budgets {
    pub(crate) fn new(node_bytes_per_s: Option<u64>, fleet_bytes_per_s: Option<u64>) -> Budgets {
        let fleet = Arc::new(Budget::new(fleet_bytes_per_s));
        Budgets { node_bytes_per_s, fleet, sites: Mutex::default() }
    }

    /// A budget for one session.
    pub(crate) fn node(&self) -> Budget {
        Budget::new(self.node_bytes_per_s)
    }

    /// The budget that all nodes share.
    pub(crate) fn fleet(&self) -> Arc<Budget> {
        Arc::clone(&self.fleet)
    }

    /// The budget that all nodes of a site share.
    pub(crate) fn site(&self, site: &str) -> Arc<Budget> {
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(sites.entry(site.to_owned()).or_insert_with(|| Arc::new(Budget::new(None))))
    }

    /// Takes note of a site as the store has it.
    pub(crate) fn site_rate(&self, spec: &SiteSpec, site: &str) {
        self.site(site).set_rate(spec.bulk_bytes_per_s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_flow_at_the_rate_and_shared_budgets_are_shared() {
        let budget = Arc::new(Budget::new(Some(1000)));
        let start = Instant::now();
        let takers: Vec<_> = (0..2)
            .map(|_| {
                let budget = Arc::clone(&budget);
                tokio::spawn(async move {
                    for _ in 0..50 {
                        budget.take(100).await;
                    }
                })
            })
            .collect();
        for taker in takers {
            taker.await.unwrap();
        }
        let spent = start.elapsed();
        assert!(spent > Duration::from_millis(9_500) && spent < Duration::from_millis(10_100), "{spent:?}");
        budget.set_rate(None);
        let start = Instant::now();
        budget.take(usize::MAX).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_rate_holds_for_those_who_wait() {
        let budget = Arc::new(Budget::new(Some(100)));
        let taker = |bytes| {
            let budget = Arc::clone(&budget);
            async move {
                budget.take(bytes).await;
                Instant::now()
            }
        };
        let start = Instant::now();
        budget.take(100_020).await; // a thousand seconds' worth, of which 20 bytes were to be spent ahead
        let waiting = tokio::spawn(taker(1000));
        let behind = tokio::spawn(taker(1));
        tokio::time::sleep(Duration::from_secs(500)).await;
        assert!(!waiting.is_finished());
        budget.set_rate(Some(10_000)); // the other 50,000 bytes take 5 seconds now
        let at = waiting.await.unwrap() - start;
        assert!(at >= Duration::from_secs(505) && at < Duration::from_millis(505_100), "{at:?}");
        let at = behind.await.unwrap() - start;
        assert!(at >= Duration::from_millis(505_100) && at < Duration::from_millis(505_200), "{at:?}");

        budget.take(1_000_000).await;
        let waiting = tokio::spawn(taker(1));
        tokio::task::yield_now().await;
        budget.set_rate(None);
        let before = Instant::now();
        assert_eq!(waiting.await.unwrap(), before);
    }
}
