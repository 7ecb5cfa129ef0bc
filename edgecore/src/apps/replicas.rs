//! How many instances of an app are to run, from the number that its workload reports. Pure.
//!
//! The rules are those of Kubernetes' HorizontalPodAutoscaler ([`Replicas`] says them). [`Scaler::decide`] is asked every
//! [`LOOK_EVERY`]; what it wants follows from the number alone, not from what ran before, so that asking more often adds
//! nothing. Times without a number count as times at which the present replicas were wanted: nothing goes down until the
//! number was there, and low, for a whole window.
//!
//! The arithmetic is told to people in [`Scaler::words`]. Reports are writes at the hub, so the words change with the
//! number of replicas, and else at most every [`TELL_EVERY`]; the number itself rides in heartbeats.

use std::{collections::VecDeque, fmt::Write as _, time::Duration};

use proto::release::{Replicas, replicas::TOLERANCE};
use tokio::time::Instant;

/// Between two decisions.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Between two tellings of the arithmetic while the number of replicas stays.
pub const TELL_EVERY: Duration = Duration::from_secs(60);

/// What the workload's instances reported of the metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Of the app as a whole, or the sum over its replicas.
    pub value: f64,
    /// Replicas that report for themselves and did not, so that the sum is too small.
    pub silent: Vec<u8>,
}

/// Decides how many replicas run of one app.
#[derive(Debug)]
pub struct Scaler {
    desired: u8,
    /// What was wanted in the window: each entry more than those after it, so the first is the most.
    wanted: VecDeque<(Instant, u8)>,
    why: Why,
    told: Option<Told>,
}

/// Why it came to the number.
#[derive(Debug, Clone, PartialEq)]
enum Why {
    /// There is no number.
    Absent,
    /// There is one, and it asks for this many before bounds and windows.
    Number { reading: Reading, asks: f64, is_near: bool },
}

#[derive(Debug)]
struct Told {
    desired: u8,
    is_absent: bool,
    at: Instant,
    words: String,
}

impl Scaler {
    /// Of an app of which that many instances run, or ran when it was decided last.
    #[must_use]
    pub fn new(replicas: &Replicas, runs: u8, now: Instant) -> Scaler {
        let desired = bounded(replicas, runs);
        Scaler { desired, wanted: [(now, desired)].into(), why: Why::Absent, told: None }
    }

    /// How many instances are to run.
    #[must_use]
    pub fn desired(&self) -> u8 {
        self.desired
    }

    /// Decides anew; `replicas` may be others than before.
    pub fn decide(&mut self, replicas: &Replicas, reading: Option<Reading>, now: Instant) -> u8 {
        self.desired = bounded(replicas, self.desired);
        let (wants, why) = self.asked(replicas, reading);
        self.why = why;
        while self.wanted.back().is_some_and(|(_, before)| *before <= wants) {
            self.wanted.pop_back();
        }
        self.wanted.push_back((now, wants));
        let window = replicas.stabilization_window.get();
        while self.wanted.len() > 1 && self.wanted.front().is_some_and(|(at, _)| now.duration_since(*at) >= window) {
            self.wanted.pop_front();
        }
        let most = self.wanted.front().map_or(wants, |(_, most)| *most);
        self.desired = if wants >= self.desired { wants } else { self.desired.min(bounded(replicas, most)) };
        self.tell(replicas, now);
        self.desired
    }

    /// What the number asks for, within the bounds.
    fn asked(&self, replicas: &Replicas, reading: Option<Reading>) -> (u8, Why) {
        let Some(reading) = reading else { return (self.desired, Why::Absent) };
        let asks = reading.value.max(0.0) / replicas.target.get();
        let ratio = asks / f64::from(self.desired);
        let is_near = (ratio - 1.0).abs() <= TOLERANCE;
        let wants = if is_near { self.desired } else { bounded(replicas, asks.ceil().min(255.0) as u8) };
        // What the silent ones have to do nobody knows.
        let wants = if reading.silent.is_empty() { wants } else { wants.max(self.desired) };
        (wants, Why::Number { reading, asks, is_near })
    }

    fn tell(&mut self, replicas: &Replicas, now: Instant) {
        let is_absent = self.why == Why::Absent;
        let same = |told: &Told| (told.desired, told.is_absent) == (self.desired, is_absent);
        if self.told.as_ref().is_some_and(|told| same(told) && now.duration_since(told.at) < TELL_EVERY) {
            return;
        }
        let words = self.arithmetic(replicas);
        self.told = Some(Told { desired: self.desired, is_absent, at: now, words });
    }

    /// The arithmetic for people: `3 of 1..4: backlog 250 / 100 per replica`. Empty before the first decision.
    #[must_use]
    pub fn words(&self) -> &str {
        self.told.as_ref().map_or("", |told| &told.words)
    }

    fn arithmetic(&self, replicas: &Replicas) -> String {
        let Replicas { min, max, metric, target, stabilization_window: window } = replicas;
        let mut words = format!("{} of {min}..{max}: ", self.desired);
        // A string takes everything.
        match &self.why {
            Why::Absent => {
                let _ = write!(words, "{metric} was not reported lately (PUT /v1/metrics), so nothing changes");
            }
            Why::Number { reading, asks, is_near } => {
                let _ = write!(words, "{metric} {} / {target} per replica", figure(reading.value));
                let whole = asks.ceil().max(0.0);
                if *is_near && whole > f64::from(self.desired) {
                    words.push_str(", within 10 % of that");
                } else if whole > f64::from(*max) || whole < f64::from(*min) {
                    let _ = write!(words, " would make {}", figure(whole));
                } else if !reading.silent.is_empty() && whole < f64::from(self.desired) {
                    let silent: Vec<String> = reading.silent.iter().map(u8::to_string).collect();
                    let _ = write!(words, ", and replica {} did not report", silent.join(", "));
                } else if whole < f64::from(self.desired) {
                    let _ = write!(words, " makes {}, which has to be enough for {window}", figure(whole));
                }
            }
        }
        words
    }
}

fn bounded(replicas: &Replicas, count: u8) -> u8 {
    count.min(replicas.max).max(replicas.min).max(1)
}

/// A number without more decimals than people read.
fn figure(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn replicas(more: &str) -> Replicas {
        let text = format!(r#"{{"min": 1, "max": 4, "metric": "backlog", "target": 100{more}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn told(value: f64) -> Option<Reading> {
        Some(Reading { value, silent: vec![] })
    }

    /// Decides every [`LOOK_EVERY`], and says when it changed to what.
    struct Play {
        replicas: Replicas,
        scaler: Scaler,
        now: Instant,
        begun: Instant,
    }

    impl Play {
        fn new(more: &str, runs: u8) -> Play {
            let (replicas, now) = (replicas(more), Instant::now());
            Play { scaler: Scaler::new(&replicas, runs, now), replicas, now, begun: now }
        }

        fn one(&mut self, reading: Option<Reading>) -> u8 {
            self.now += LOOK_EVERY;
            self.scaler.decide(&self.replicas, reading, self.now)
        }

        fn for_s(&mut self, seconds: u64, reading: &Option<Reading>) -> Vec<(u64, u8)> {
            let mut changes = vec![];
            let end = self.now + Duration::from_secs(seconds);
            while self.now < end {
                let before = self.scaler.desired();
                let desired = self.one(reading.clone());
                if desired != before {
                    changes.push(((self.now - self.begun).as_secs(), desired));
                }
            }
            changes
        }
    }

    #[test]
    fn it_is_the_number_over_the_target_within_the_bounds() {
        for (value, desired) in [(0.0, 1), (-7.0, 1), (100.0, 1), (111.0, 2), (250.0, 3), (301.0, 4), (f64::MAX, 4)] {
            assert_eq!(Play::new("", 1).one(told(value)), desired, "{value}");
        }
        let mut play = Play::new("", 1);
        play.one(told(250.0));
        assert_eq!(play.scaler.words(), "3 of 1..4: backlog 250 / 100 per replica");
        play.one(told(900.0));
        assert_eq!(play.scaler.words(), "4 of 1..4: backlog 900 / 100 per replica would make 9");
    }

    #[test]
    fn ten_percent_change_nothing() {
        for (value, desired) in [(329.0, 3), (331.0, 4), (271.0, 3), (269.0, 3), (199.0, 2)] {
            let mut play = Play::new(r#", "stabilizationWindow": "0s""#, 3);
            assert_eq!(play.one(told(value)), desired, "{value}");
        }
        let mut play = Play::new("", 3);
        play.one(told(310.0));
        assert_eq!(play.scaler.words(), "3 of 1..4: backlog 310 / 100 per replica, within 10 % of that");
    }

    #[test]
    fn down_it_goes_after_the_window_to_the_most_that_was_wanted_in_it() {
        let mut play = Play::new("", 1);
        assert_eq!(play.for_s(10, &told(400.0)), [(5, 4)]);
        // Two were wanted for a moment at 100 s: they are kept for a window from there.
        assert_eq!(play.for_s(90, &told(10.0)), []);
        assert!(play.scaler.words().ends_with("10 / 100 per replica makes 1, which has to be enough for 5m"));
        assert_eq!(play.for_s(5, &told(150.0)), []);
        assert_eq!(play.for_s(600, &told(10.0)), [(310, 2), (405, 1)]);
        assert_eq!(Play::new(r#", "stabilizationWindow": "0s""#, 4).one(told(0.0)), 1);
    }

    #[test]
    fn without_a_number_nothing_changes_and_the_window_begins_anew() {
        let mut play = Play::new("", 3);
        assert_eq!(play.for_s(1000, &None), []);
        let says = "3 of 1..4: backlog was not reported lately (PUT /v1/metrics), so nothing changes";
        assert_eq!(play.scaler.words(), says);
        assert_eq!(play.for_s(290, &told(0.0)), []);
        assert_eq!(play.for_s(5, &None), []);
        assert_eq!(play.for_s(295, &told(0.0)), []);
        assert_eq!(play.for_s(300, &told(0.0)).len(), 1);
    }

    #[test]
    fn who_is_silent_has_as_much_to_do_as_before() {
        let silent = |value| Some(Reading { value, silent: vec![1, 2] });
        let mut play = Play::new(r#", "stabilizationWindow": "0s""#, 3);
        assert_eq!(play.one(silent(10.0)), 3);
        assert_eq!(play.scaler.words(), "3 of 1..4: backlog 10 / 100 per replica, and replica 1, 2 did not report");
        assert_eq!(play.one(silent(390.0)), 4, "more than enough is told by the others");
        assert_eq!(play.one(told(10.0)), 1);
    }

    #[test]
    fn words_change_with_the_replicas_and_else_once_a_minute() {
        let mut play = Play::new("", 4);
        let mut said = vec![];
        for i in 0..120 {
            play.one(told(f64::from(i)));
            said.push(play.scaler.words().to_owned());
        }
        said.dedup();
        assert!(said.len() <= 12, "{said:?}");
    }

    #[test]
    fn other_bounds_count_at_once() {
        let mut play = Play::new("", 4);
        play.replicas.max = 2;
        assert_eq!(play.one(None), 2);
        play.replicas = Replicas { min: 3, max: 8, ..play.replicas };
        assert_eq!(play.one(told(0.0)), 3);
    }

    fn reading() -> impl Strategy<Value = Option<Reading>> {
        let value = prop_oneof![Just(0.0), 0.0..3000.0_f64, Just(f64::MAX), Just(-1.0)];
        let silent = prop_oneof![4 => Just(vec![]), 1 => Just(vec![1_u8])];
        prop::option::weighted(0.8, (value, silent).prop_map(|(value, silent)| Reading { value, silent }))
    }

    proptest! {
        /// Whatever is reported: bounds hold, nothing goes up without a number that asks for it, and nothing goes down
        /// within a window of a moment at which it was wanted. So a number that flaps moves it up once and no more.
        #[test]
        fn it_never_flaps(
            min in 1_u8..4, more in 0_u8..8, runs in 0_u8..20, window in 0_u64..120,
            readings in prop::collection::vec((reading(), 1_u64..40), 1..200),
        ) {
            let text = format!(
                r#"{{"min": {min}, "max": {}, "metric": "b", "target": 100, "stabilizationWindow": "{window}s"}}"#,
                min + more
            );
            let replicas: Replicas = serde_json::from_str(&text).unwrap();
            let window = Duration::from_secs(window);
            let mut now = Instant::now();
            let mut scaler = Scaler::new(&replicas, runs, now);
            // A model that remembers everything.
            let mut wanted = vec![(now, scaler.desired())];
            for (reading, after) in readings {
                now += Duration::from_secs(after);
                let before = scaler.desired();
                let asks = reading.as_ref().map(|r| (r.value.max(0.0) / 100.0, r.silent.is_empty()));
                let desired = scaler.decide(&replicas, reading, now);
                prop_assert!((replicas.min..=replicas.max).contains(&desired));
                prop_assert!(scaler.wanted.len() <= 17, "it is bounded");
                let near = |asks: f64| (asks / f64::from(before) - 1.0).abs() <= TOLERANCE;
                let wants = match asks {
                    Some((asks, whole)) if !near(asks) => {
                        let wants = (asks.ceil() as u64).clamp(replicas.min.into(), replicas.max.into()) as u8;
                        if whole { wants } else { wants.max(before) }
                    }
                    _ => before,
                };
                wanted.push((now, wants));
                let most = wanted.iter().filter(|(at, _)| *at == now || now - *at < window).map(|w| w.1).max().unwrap();
                prop_assert_eq!(desired, if wants >= before { wants } else { before.min(most) });
                if desired > before {
                    prop_assert!(asks.is_some_and(|(asks, _)| asks > f64::from(before)), "up without a reason");
                }
            }
        }
    }
}
