//! Whether the hub is reached through a broker, and how large the messages are that get through: a machine
//! without I/O.
//!
//! A broker that lets a client in may still forbid its topic, have no hub behind it, or drop what is larger than
//! its limit, and says none of it (of QoS 0 it tells nothing, and MQTT 3.1.1 has no word for a limit). So the
//! hub is asked, and answers in the size of the ask.
//!
//! ```text
//! up --> ask as large as one datagram --answer--> reached --> ask for ten, five, two: the largest that is answered
//!              | no answer: again, and a tiny one: that alone answered, the limit is below one datagram
//!              +-- none at all for [`PATIENCE`]: no hub there, or the topic is forbidden
//! ```
//!
//! Over WebSocket no more than two are asked for: [`proto::broker::Broker::segments`].

use std::{collections::VecDeque, time::Duration};

use proto::carrier::frame::{Echo, MAX_SEGMENTS, MIN_ASK_BYTES, message_bytes};
use tokio::time::Instant;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two asks of a hub that is reached.
const CHECK: Duration = Duration::from_secs(20);
/// Unanswered asks in a row after which it is reached no more, and after which that is told.
const MISSES: u32 = 3;
/// Datagrams a message that are tried.
const SIZES: [usize; 4] = [MAX_SEGMENTS, 5, 2, 1];
/// After so long a limit may have been raised.
const AGAIN: Duration = Duration::from_secs(600);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    Tick,
    /// The broker's connection is up or down.
    Up(bool),
    /// An answer came.
    Answered(Echo),
}

/// What is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing yet.
    Unknown,
    /// The hub answers.
    Reached,
    /// It does not, though the broker is there.
    NoAnswer,
    /// Only tiny messages get through.
    TooSmall,
}

#[derive(Debug)]
pub(super) struct Reach {
    up: bool,
    found: Found,
    /// Datagrams that may go in one message.
    segments: usize,
    /// Never more than this.
    bound: usize,
    /// No more than this got through lately, and since when that is known.
    most: usize,
    limited: Option<Instant>,
    number: u64,
    waiting: Option<(Echo, Instant)>,
    misses: u32,
    /// A tiny ask was answered: the next one tells whether a datagram fits.
    tiny_fits: bool,
    next: Option<Instant>,
    outputs: VecDeque<Echo>,
}

impl Reach {
    /// Of a broker whose messages should hold no more datagrams than `bound`.
    pub(super) fn new(bound: usize) -> Reach {
        Reach {
            up: false,
            found: Found::Unknown,
            segments: 1,
            bound,
            most: bound,
            limited: None,
            number: 0,
            waiting: None,
            misses: 0,
            tiny_fits: false,
            next: None,
            outputs: VecDeque::new(),
        }
    }

    pub(super) fn found(&self) -> Found {
        self.found
    }

    /// Datagrams that may go in one message.
    pub(super) fn segments(&self) -> usize {
        self.segments
    }

    /// The next ask to send.
    pub(super) fn poll(&mut self) -> Option<Echo> {
        self.outputs.pop_front()
    }

    /// When to come again with a tick.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.waiting.map(|(_, until)| until).or(self.next)
    }

    pub(super) fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Tick => {}
            Input::Up(true) => {
                self.up = true;
                (self.segments, self.misses, self.waiting) = (1, 0, None);
                self.found = Found::Unknown;
                self.ask(now, message_bytes(1));
            }
            Input::Up(false) => self.down(now),
            Input::Answered(answer) => self.answered(now, answer),
        }
        if self.up {
            self.missed(now);
            if self.waiting.is_none() && self.next.is_some_and(|at| at <= now) {
                self.check(now);
            }
        }
    }

    /// A broker hangs up on a message over its limit: what was asked then is not asked again.
    fn down(&mut self, now: Instant) {
        if let Some((asked, _)) = self.waiting.filter(|(asked, _)| asked.bytes > message_bytes(1)) {
            self.limit(now, asked.bytes);
        }
        self.up = false;
        self.found = Found::Unknown;
        (self.waiting, self.next) = (None, None);
        self.outputs.clear();
    }

    fn answered(&mut self, now: Instant, answer: Echo) {
        if self.waiting.is_none_or(|(asked, _)| asked != answer) {
            return;
        }
        self.waiting = None;
        if answer.bytes < message_bytes(1) {
            // A tiny one alone says that somebody is there, not that datagrams fit.
            if self.found != Found::Reached {
                self.tiny_fits = true;
                self.ask(now, message_bytes(1));
                return;
            }
        } else {
            self.found = Found::Reached;
            self.tiny_fits = false;
            let fits = SIZES.into_iter().find(|n| answer.bytes >= message_bytes(*n)).unwrap_or(1);
            self.segments = self.segments.max(fits);
        }
        self.misses = 0;
        self.grow(now);
    }

    fn grow(&mut self, now: Instant) {
        if self.limited.is_some_and(|at| now.saturating_duration_since(at) >= AGAIN) {
            (self.most, self.limited) = (self.bound, None);
        }
        let larger = SIZES.into_iter().find(|n| *n <= self.most && *n > self.segments);
        match larger {
            Some(segments) => self.ask(now, message_bytes(segments)),
            None => self.next = Some(now + CHECK),
        }
    }

    fn limit(&mut self, now: Instant, bytes: usize) {
        let below = SIZES.into_iter().find(|n| message_bytes(*n) < bytes).unwrap_or(1);
        self.most = self.most.min(below);
        self.limited = Some(now);
    }

    fn missed(&mut self, now: Instant) {
        let Some((asked, until)) = self.waiting else { return };
        if now < until {
            return;
        }
        self.waiting = None;
        if self.found == Found::Reached && asked.bytes > message_bytes(self.segments) {
            self.limit(now, asked.bytes);
            self.grow(now);
            return;
        }
        self.misses = self.misses.saturating_add(1);
        let is_tiny = asked.bytes < message_bytes(1);
        if std::mem::take(&mut self.tiny_fits) && !is_tiny {
            self.found = Found::TooSmall;
        } else if self.misses >= MISSES && (is_tiny || self.found != Found::TooSmall) {
            self.found = Found::NoAnswer;
            self.segments = 1;
        }
        self.check(now);
    }

    /// Is it still there? Of one that did not answer, whether a tiny message gets through, by turns.
    fn check(&mut self, now: Instant) {
        let tiny = match self.found {
            Found::Reached => self.misses == 0,
            _ => self.misses % 2 == 1,
        };
        self.ask(now, if tiny { MIN_ASK_BYTES } else { message_bytes(1) });
    }

    fn ask(&mut self, now: Instant, bytes: usize) {
        self.number += 1;
        let echo = Echo { number: self.number, bytes };
        self.waiting = Some((echo, now + ANSWER));
        self.next = None;
        self.outputs.push_back(echo);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs it for so long against a broker that lets so large messages through; `hangs_up` on larger ones.
    /// Returns how often it hung up and how many asks were sent.
    fn run(reach: &mut Reach, now: &mut Instant, time: Duration, limit: usize, hangs_up: bool) -> (u32, u32) {
        let end = *now + time;
        let (mut hung_up, mut asks) = (0, 0);
        reach.handle(*now, Input::Up(true));
        while *now < end {
            while let Some(echo) = reach.poll() {
                asks += 1;
                if echo.bytes <= limit {
                    reach.handle(*now, Input::Answered(echo));
                } else if hangs_up {
                    hung_up += 1;
                    reach.handle(*now, Input::Up(false));
                    reach.handle(*now, Input::Up(true));
                }
            }
            *now = reach.wake_at().unwrap().max(*now).min(end);
            reach.handle(*now, Input::Tick);
        }
        (hung_up, asks)
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_messages_that_get_through_are_found() {
        let second = Duration::from_secs(1);
        for (limit, segments) in [(usize::MAX, 10), (10_000, 5), (5_000, 2), (2_000, 1)] {
            for hangs_up in [false, true] {
                let (mut reach, mut now) = (Reach::new(MAX_SEGMENTS), Instant::now());
                let (hung_up, asks) = run(&mut reach, &mut now, 60 * second, limit, hangs_up);
                assert_eq!((reach.found(), reach.segments()), (Found::Reached, segments), "{limit} {hangs_up}");
                assert!(hung_up < 4 && asks < 20, "{limit}: {hung_up} times, {asks} asks");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_tried_than_the_broker_is_good_for() {
        let (mut reach, mut now) = (Reach::new(2), Instant::now());
        let (_, asks) = run(&mut reach, &mut now, AGAIN * 2, usize::MAX, false);
        assert_eq!((reach.found(), reach.segments(), reach.limited), (Found::Reached, 2, None), "{asks} asks");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hub_that_comes_between_two_asks_is_reached() {
        let (mut reach, now) = (Reach::new(MAX_SEGMENTS), Instant::now());
        reach.handle(now, Input::Up(true));
        while reach.poll().is_some() {} // nobody is there yet
        let at = reach.wake_at().unwrap();
        reach.handle(at, Input::Tick);
        let tiny = reach.poll().unwrap();
        assert_eq!(tiny.bytes, MIN_ASK_BYTES);
        reach.handle(at, Input::Answered(tiny));
        let whole = reach.poll().unwrap();
        reach.handle(at, Input::Answered(whole));
        assert_eq!((reach.found(), whole.bytes), (Found::Reached, message_bytes(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn no_hub_and_a_limit_below_one_datagram_are_told_apart() {
        let second = Duration::from_secs(1);
        let (mut reach, mut now) = (Reach::new(MAX_SEGMENTS), Instant::now());
        run(&mut reach, &mut now, 10 * second, 0, false);
        assert_eq!(reach.found(), Found::NoAnswer);
        run(&mut reach, &mut now, 10 * second, 500, false);
        assert_eq!(reach.found(), Found::TooSmall);
        run(&mut reach, &mut now, 10 * second, usize::MAX, false);
        assert_eq!(reach.found(), Found::Reached);
        // It goes away in the middle: found out with the next check.
        while let Some(at) = reach.wake_at().filter(|at| *at < now + 30 * second) {
            reach.handle(at, Input::Tick);
            while reach.poll().is_some() {}
        }
        assert_eq!(reach.found(), Found::NoAnswer);
        reach.handle(now, Input::Answered(Echo { number: 999_999, bytes: message_bytes(10) }));
        assert_eq!(reach.found(), Found::NoAnswer, "an answer that nobody asked for");
    }
}
