//! How often, and how many at once: failed logins of a source, requests and changes of a user, refusals that the audit
//! log takes.
//! Token buckets in bounded maps.
//!
//! A token has 256 random bits, so what is bounded here is work and the log, not guessing: who has a right token is let
//! in from an address that others fail from, such as behind the same NAT. Looking for a token of ours is one hash. ID
//! tokens cost a signature, or a question to the provider: from such an address only those that got in from there
//! before are looked at.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Buckets of a map; when there are more, the fullest one is forgotten.
const MAX_BUCKETS: usize = 10_000;

/// Changes of one user: a pipeline that publishes and starts rollouts makes a handful, a script that labels all nodes
/// of a large fleet a thousand.
const CHANGE_BURST: u32 = 1_000;
/// For long; see [`LimitsConfig::changes_per_s`].
const CHANGES_PER_S: f64 = 0.5;

/// Bounds of the API, `limits` in `hub.yaml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LimitsConfig {
    /// Requests a second that a user may send for long.
    pub requests_per_s: u32,
    /// Requests that a user may send at once.
    pub request_burst: u32,
    /// Changes a second that a user may make for long, uploads of artifacts aside. Each is two lines of the audit log:
    /// with the default, one user cannot push out of it ([`crate::audit`]) what is of these two weeks.
    pub changes_per_s: f64,
    /// Changes that a user may make at once.
    pub change_burst: u32,
    /// Failed logins a minute from one address (IPv6: from one /64) for long, and at once.
    pub failed_logins_per_min: u32,
}

impl Default for LimitsConfig {
    fn default() -> LimitsConfig {
        LimitsConfig {
            requests_per_s: 500,
            request_burst: 5_000,
            changes_per_s: CHANGES_PER_S,
            change_burst: CHANGE_BURST,
            failed_logins_per_min: 20,
        }
    }
}

impl LimitsConfig {
    /// What contradicts itself, with the mend.
    pub(crate) fn contradiction(&self) -> Result<(), String> {
        if self.requests_per_s == 0 || self.request_burst == 0 || self.failed_logins_per_min == 0 {
            return Err("limits: 0 would let nobody in; leave it out for the default".into());
        }
        let is_rate = self.changes_per_s.is_finite() && self.changes_per_s > 0.0;
        if !is_rate || self.change_burst == 0 {
            return Err(
                "limits: changesPerS is above 0, and changeBurst is 1 or more; leave them out for the default".into()
            );
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// A bucket for each key.
#[derive(Debug)]
pub(crate) struct Buckets<K> {
    per_s: f64,
    burst: f64,
    buckets: Mutex<BTreeMap<K, Bucket>>,
}

impl<K: Ord + Clone> Buckets<K> {
    /// Buckets that hold `burst`, and get `per_s` a second; neither may be 0.
    pub(crate) fn new(per_s: f64, burst: f64) -> Buckets<K> {
        Buckets { per_s, burst, buckets: Mutex::default() }
    }

    /// Takes one.
    ///
    /// # Errors
    /// When there is none: after how long there will be.
    pub(crate) fn take(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if !buckets.contains_key(key) && buckets.len() >= MAX_BUCKETS {
            let fullest = buckets.iter().max_by(|a, b| self.level(a.1, now).total_cmp(&self.level(b.1, now)));
            if let Some(key) = fullest.map(|(key, _)| key.clone()) {
                buckets.remove(&key);
            }
        }
        let bucket = buckets.entry(key.clone()).or_insert(Bucket { tokens: self.burst, at: now });
        let tokens = self.level(bucket, now);
        if tokens < 1.0 {
            return Err(self.wait(tokens));
        }
        *bucket = Bucket { tokens: tokens - 1.0, at: now };
        Ok(())
    }

    /// Whether there is one to take.
    ///
    /// # Errors
    /// As [`Buckets::take`].
    pub(crate) fn has(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = buckets.get(key).map_or(self.burst, |bucket| self.level(bucket, now));
        if tokens < 1.0 { Err(self.wait(tokens)) } else { Ok(()) }
    }

    fn wait(&self, tokens: f64) -> Duration {
        Duration::from_secs_f64(((1.0 - tokens) / self.per_s).clamp(0.0, 86_400.0))
    }

    fn level(&self, bucket: &Bucket, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * self.per_s;
        (bucket.tokens + gained).min(self.burst)
    }
}

/// How many each key has of something at this moment. There are no more keys than things that are had.
#[derive(Debug, Clone)]
pub(crate) struct Seats<K: Ord>(Arc<Mutex<BTreeMap<K, usize>>>);

/// One of them; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Seat<K: Ord> {
    key: K,
    seats: Seats<K>,
}

impl<K: Ord> Default for Seats<K> {
    fn default() -> Seats<K> {
        Seats(Arc::default())
    }
}

impl<K: Ord + Clone> Seats<K> {
    /// `None` when the key has `most` already.
    pub(crate) fn take(&self, key: K, most: usize) -> Option<Seat<K>> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Seat { key, seats: Seats(Arc::clone(&self.0)) })
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }
}

impl<K: Ord> Drop for Seat<K> {
    fn drop(&mut self) {
        let mut counts = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// All bounds of an API.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Failed logins, by source.
    pub(crate) logins: Buckets<IpAddr>,
    /// Requests, by user.
    pub(crate) requests: Buckets<String>,
    /// Changes, by user.
    pub(crate) changes: Buckets<String>,
    /// Requests in work, by user.
    pub(crate) working: Seats<String>,
    /// Requests of whom nobody knows yet whose they are, and those that everybody may send, by source.
    pub(crate) unknown: Seats<IpAddr>,
    /// Answers that are not over yet, by user.
    pub(crate) open: Seats<String>,
}

impl Limits {
    pub(crate) fn new(config: &LimitsConfig) -> Limits {
        let per_min = f64::from(config.failed_logins_per_min);
        Limits {
            logins: Buckets::new(per_min / 60.0, per_min),
            requests: Buckets::new(f64::from(config.requests_per_s), f64::from(config.request_burst)),
            changes: Buckets::new(config.changes_per_s, f64::from(config.change_burst)),
            working: Seats::default(),
            unknown: Seats::default(),
            open: Seats::default(),
        }
    }
}

/// Whom an address counts as: of IPv6 whole networks are given away, of IPv4 single addresses.
pub(crate) fn source(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_is_emptied_and_fills_again() {
        let buckets = Buckets::new(2.0, 3.0);
        let now = Instant::now();
        let taken = (0..5).filter(|_| buckets.take(&"a", now).is_ok()).count();
        assert_eq!(taken, 3);
        assert_eq!(buckets.take(&"a", now), Err(Duration::from_millis(500)));
        assert!(buckets.take(&"b", now).is_ok(), "of somebody else");
        assert!(buckets.take(&"a", now + Duration::from_millis(500)).is_ok());
        let later = now + Duration::from_secs(3600);
        assert_eq!((0..9).filter(|_| buckets.take(&"a", later).is_ok()).count(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn the_map_is_bounded_and_forgets_who_took_least() {
        let buckets = Buckets::new(0.001, 2.0);
        let now = Instant::now();
        for _ in 0..2 {
            buckets.take(&0, now).unwrap();
        }
        (1..2 * MAX_BUCKETS).for_each(|key| buckets.take(&key, now).unwrap());
        assert_eq!(buckets.buckets.lock().unwrap().len(), MAX_BUCKETS);
        assert!(buckets.take(&0, now).is_err(), "who has nothing left is remembered");
    }

    #[test]
    fn seats_are_given_back() {
        let seats = Seats::default();
        let first = seats.take("a", 2).unwrap();
        let second = seats.take("a", 2).unwrap();
        assert!(seats.take("a", 2).is_none() && seats.take("b", 2).is_some());
        drop(first);
        assert!(seats.take("a", 2).is_some());
        drop(second);
        assert!(seats.is_empty());
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let of = |text: &str| source(format!("{text}:1").parse().unwrap());
        assert_eq!(of("[2001:db8:1:2:3::4]"), of("[2001:db8:1:2:ffff::]"));
        assert_ne!(of("[2001:db8:1:2::]"), of("[2001:db8:1:3::]"));
        assert_eq!(of("[::ffff:192.0.2.1]"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
