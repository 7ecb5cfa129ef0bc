//! Byte budgets for artifacts: one a node, one a site, on tokio's clock.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use proto::object::SiteSpec;
use tokio::time::Instant;

/// What may be spent ahead: a fifth of a second of the rate.
const BURST: Duration = Duration::from_millis(200);

/// Spends bytes at a rate. Takers wait in the order they came.
#[derive(Debug)]
pub(crate) struct Budget(Mutex<State>);

#[derive(Debug)]
struct State {
    bytes_per_s: Option<u64>,
    /// When all that was taken is paid for.
    paid_at: Option<Instant>,
}

impl Budget {
    /// Without a rate it is unlimited. A rate of 0 counts as 1.
    pub(crate) fn new(bytes_per_s: Option<u64>) -> Budget {
        Budget(Mutex::new(State { bytes_per_s, paid_at: None }))
    }

    /// Changes the rate for what is taken from now on.
    pub(crate) fn set_rate(&self, bytes_per_s: Option<u64>) {
        self.state().bytes_per_s = bytes_per_s;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `bytes` may be sent. Dropped half-way, the bytes stay spent.
    pub(crate) async fn take(&self, bytes: usize) {
        let Some(until) = self.reserve(bytes, Instant::now()) else { return };
        tokio::time::sleep_until(until).await;
    }

    /// When `bytes` may be sent, if not now.
    fn reserve(&self, bytes: usize, now: Instant) -> Option<Instant> {
        let mut state = self.state();
        let rate = state.bytes_per_s?.max(1);
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let start = state.paid_at.unwrap_or(now).max(now.checked_sub(BURST).unwrap_or(now));
        state.paid_at = Some(start + cost);
        (start > now).then_some(start)
    }
}

/// The budgets of all sites and the rate of a node.
#[derive(Debug)]
pub(crate) struct Budgets {
    node_bytes_per_s: Option<u64>,
    sites: Mutex<BTreeMap<String, Arc<Budget>>>,
}

impl Budgets {
    pub(crate) fn new(node_bytes_per_s: Option<u64>) -> Budgets {
        Budgets { node_bytes_per_s, sites: Mutex::default() }
    }

    /// A budget for one session.
    pub(crate) fn node(&self) -> Budget {
        Budget::new(self.node_bytes_per_s)
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
}
