//! Keeps the release metadata fresh, and tells when that does not succeed.
//!
//! A peer that withholds what is new freezes a node in the past (TUF 1.0, section 1.5.2). It cannot make old
//! metadata last: each role ends, and once one has, the condition `MetadataStale` and `edgecore status` say which and
//! since when, hub or not. What runs goes on; nothing new is accepted meanwhile.
//!
//! The director's metadata needs no asking: the hub signs it anew with every session and at half of its life.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use proto::{tuf::TrustedSet, watch};
use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Trust;
use crate::fetch::Source;

/// Between two looks at what is stale.
pub const LOOK_EVERY: Duration = Duration::from_secs(300);
/// Between two questions for newer metadata.
pub const REFRESH_EVERY: Duration = Duration::from_secs(12 * 3600);
/// The first question comes at most so long after the start, so that a fleet does not ask at once.
pub const FIRST_WITHIN: Duration = Duration::from_secs(3600);

/// Roles past their time: `release timestamp` and the like, and when each ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Staleness(pub BTreeMap<String, Timestamp>);

impl Staleness {
    /// Of the sets of one repository each.
    #[must_use]
    pub fn of(sets: &[(&str, &TrustedSet)], now: Timestamp) -> Staleness {
        let ended = sets.iter().flat_map(|(repository, set)| {
            let ended = set.expiries().into_iter().filter(|(_, expires)| *expires <= now);
            ended.map(move |(role, expires)| (format!("{repository} {role}"), expires))
        });
        Staleness(ended.collect())
    }

    /// Whether nothing is past its time.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Staleness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (role, expired)) in self.0.iter().enumerate() {
            write!(f, "{}{role} ended at {expired}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// Looks and asks for ever.
pub async fn run(trust: Arc<Trust>, source: Arc<dyn Source>, online: watch::Receiver<bool>) {
    let mut rng = trust.env.seed.stream("refresh of the metadata");
    let mut ask_at = Instant::now() + FIRST_WITHIN.mul_f64(rng.random_range(0.0..1.0));
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let stale = trust.look().await;
        let due = Instant::now() >= ask_at || !stale.is_fresh();
        if due && *online.borrow() {
            if let Err(error) = trust.refresh(&*source).await {
                tracing::warn!(reason = error.reason(), "newer release metadata was not accepted: {error}");
            }
            ask_at = Instant::now() + REFRESH_EVERY;
            trust.look().await;
        }
    }
}
