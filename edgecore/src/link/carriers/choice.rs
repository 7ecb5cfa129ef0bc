//! Which carrier the link goes over: a machine without I/O. UDP when it works, else MQTT.
//!
//! ```text
//!             UDP answers                       silence, probes unanswered
//! Deciding --------------> over UDP <-----------------------------------------> over MQTT
//!     |                        answers for `hold` on end, or MQTT is gone           ^
//!     +-----------------------------------------------------------------------------+
//!             no answer within HEAD_START, and MQTT reaches the hub
//! ```
//!
//! QUIC itself notices a dead path only by its idle time-out: half a minute. Here a datagram that was sent and
//! followed by silence is suspicious, and a flow that breaks off; then probes go out, and when they stay unanswered
//! the path is dead.
//!
//! A path that comes and goes must not take the link with it each time: back on UDP, a fall within
//! [`RELAPSE`] doubles the time that UDP must hold before the next return, up to [`HOLD_MOST`].

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// How long UDP may take to answer while MQTT is ready.
pub(super) const HEAD_START: Duration = Duration::from_millis(1200);
/// Between probes while one is waited for.
const PROBE_EVERY: Duration = Duration::from_millis(200);
/// Silence after a datagram that makes a path suspicious, and that makes it dead: at least this, and so many
/// round trips.
const SUSPECT: (Duration, u32) = (Duration::from_millis(300), 2);
const DEAD: (Duration, u32) = (Duration::from_millis(900), 4);
/// No line is that slow.
const DEAD_MOST: Duration = Duration::from_secs(6);
/// Unanswered probes that make a path dead.
const DEAD_PROBES: u32 = 3;
/// Between probes of a path that is not used: first, and last when it does not answer.
const SEEK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long UDP must answer before the link returns to it, and the most that becomes.
const HOLD: Duration = Duration::from_secs(3);
const HOLD_MOST: Duration = Duration::from_secs(300);
/// A fall so soon after the return is one more of the same.
const RELAPSE: Duration = Duration::from_secs(120);

/// What takes the datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carrier {
    Udp,
    Mqtt,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// Time passed, and all that was seen meanwhile was told.
    Tick,
    /// A datagram of the hub came over UDP.
    Heard,
    /// Since then something should have come over UDP, and nothing did.
    Unanswered(Instant),
    /// A probe was answered.
    Answered,
    /// Whether the hub is reached through a broker.
    Mqtt(bool),
    /// QUIC's round trip over the present path.
    RoundTrip(Duration),
    /// No connection came about over the present carrier.
    Failed,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// Ask over UDP whether the hub is there.
    Probe,
    /// From now on this carrier.
    Use(Carrier),
    /// The broker is back: QUIC should send at once what it waits to send.
    Nudge,
}

/// The machine. UDP, MQTT or both must be there.
#[derive(Debug)]
pub(super) struct Choice {
    active: Option<Carrier>,
    udp: bool,
    mqtt: bool,
    /// When it began to decide.
    since: Instant,
    probe_at: Option<Instant>,
    /// Probes since the last answer.
    unanswered: u32,
    seek: Duration,
    /// Since when each probe is answered, of a path that is not used.
    steady: Option<Instant>,
    hold: Duration,
    returned: Option<Instant>,
    /// UDP was dead when it was looked at last.
    dead: bool,
    quiet_since: Option<Instant>,
    round_trip: Duration,
    outputs: VecDeque<Output>,
}

impl Choice {
    /// Decides anew; `udp`: whether that may be used at all.
    pub(super) fn new(now: Instant, udp: bool) -> Choice {
        Choice {
            active: None,
            udp,
            mqtt: false,
            since: now,
            probe_at: udp.then_some(now),
            unanswered: 0,
            seek: SEEK.0,
            steady: None,
            hold: HOLD,
            returned: None,
            dead: false,
            quiet_since: None,
            round_trip: Duration::ZERO,
            outputs: VecDeque::new(),
        }
    }

    /// Decides anew for another connection; what is known of the carriers stays.
    pub(super) fn again(&mut self, now: Instant) {
        self.active = None;
        self.since = now;
        self.unanswered = 0;
        self.steady = None;
        self.quiet_since = None;
        self.seek = SEEK.0;
        self.probe_at = self.udp.then_some(now);
        self.outputs.clear();
        self.decide(now);
    }

    /// The carrier in use.
    pub(super) fn active(&self) -> Option<Carrier> {
        self.active
    }

    /// Whether UDP answered when it was asked last.
    pub(super) fn is_udp_alive(&self) -> bool {
        self.udp && !self.dead && (self.active == Some(Carrier::Udp) || self.steady.is_some())
    }

    /// What to do next, if anything.
    pub(super) fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to come again with a tick.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let decide = (self.active.is_none() && self.mqtt).then(|| self.since + HEAD_START);
        let suspect = self.quiet_since.filter(|_| self.active == Some(Carrier::Udp)).map(|at| match self.probe_at {
            Some(probe) => probe,
            None => at + self.suspect(),
        });
        let probe = self.probe_at.filter(|_| self.active != Some(Carrier::Udp));
        [decide, suspect, probe].into_iter().flatten().min()
    }

    fn suspect(&self) -> Duration {
        SUSPECT.0.max(self.round_trip * SUSPECT.1).min(DEAD_MOST / 2)
    }

    fn dead_after(&self) -> Duration {
        DEAD.0.max(self.round_trip * DEAD.1).min(DEAD_MOST)
    }

    pub(super) fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Tick => {}
            Input::RoundTrip(time) => self.round_trip = time,
            Input::Heard => self.heard(),
            Input::Unanswered(since) => self.quiet_since = Some(since),
            Input::Answered => self.answered(now),
            Input::Mqtt(up) => self.mqtt(now, up),
            Input::Failed => self.failed(),
        }
        if self.active.is_none() {
            self.decide(now);
        }
        // What time brings is judged when all that was seen is known.
        if input == Input::Tick {
            if self.active == Some(Carrier::Udp) {
                self.watch(now);
            }
            self.probe(now);
        }
    }

    fn heard(&mut self) {
        self.quiet_since = None;
        if self.active == Some(Carrier::Udp) {
            self.unanswered = 0;
            self.probe_at = None;
            self.dead = false;
        }
    }

    fn answered(&mut self, now: Instant) {
        self.unanswered = 0;
        match self.active {
            None => {
                self.steady.get_or_insert(now);
                self.dead = self.dead && self.mqtt;
            }
            Some(Carrier::Udp) => self.heard(),
            Some(Carrier::Mqtt) => {
                let since = *self.steady.get_or_insert(now);
                self.seek = SEEK.0;
                self.probe_at = Some(now + SEEK.0);
                if !self.mqtt || now.saturating_duration_since(since) >= self.hold {
                    self.returned = self.mqtt.then_some(now).or(self.returned);
                    self.enter(Carrier::Udp);
                }
            }
        }
    }

    fn mqtt(&mut self, now: Instant, up: bool) {
        let came = up && !self.mqtt;
        let went = !up && self.mqtt;
        self.mqtt = up;
        if self.active != Some(Carrier::Mqtt) {
            return;
        }
        if came {
            self.outputs.push_back(Output::Nudge);
        } else if went && self.udp {
            // Nothing is left to lose: UDP is asked at once, and again soon.
            self.seek = SEEK.0;
            self.probe_at = Some(now);
        }
    }

    fn failed(&mut self) {
        if self.active == Some(Carrier::Udp) && self.mqtt {
            self.fell();
        }
    }

    fn decide(&mut self, now: Instant) {
        let late = now.saturating_duration_since(self.since) >= HEAD_START;
        if self.steady.is_some() && !self.dead {
            self.enter(Carrier::Udp);
        } else if self.mqtt && (late || self.dead || !self.udp) {
            self.dead = self.udp;
            self.enter(Carrier::Mqtt);
            self.probe_at = self.udp.then(|| now + self.seek);
        }
    }

    /// Over UDP: is it still there?
    fn watch(&mut self, now: Instant) {
        let Some(since) = self.quiet_since else { return };
        let silent = now.saturating_duration_since(since);
        if silent >= self.suspect() {
            self.probe_at.get_or_insert(now);
        }
        if silent >= self.dead_after() && self.unanswered >= DEAD_PROBES {
            self.dead = true;
            if self.mqtt {
                self.fell();
                self.enter(Carrier::Mqtt);
                self.probe_at = Some(now + self.seek);
                // A fall soon after the return counts as one more of the same.
                match self.returned.take() {
                    Some(at) if now.saturating_duration_since(at) < RELAPSE => {
                        self.hold = (self.hold * 2).min(HOLD_MOST);
                    }
                    _ => self.hold = HOLD,
                }
            }
        }
    }

    fn fell(&mut self) {
        self.dead = true;
        self.steady = None;
        self.seek = SEEK.0;
    }

    fn enter(&mut self, carrier: Carrier) {
        self.active = Some(carrier);
        self.unanswered = 0;
        self.probe_at = None;
        self.quiet_since = None;
        if carrier == Carrier::Udp {
            self.dead = false;
        } else {
            self.steady = None;
        }
        self.outputs.push_back(Output::Use(carrier));
    }

    /// Sends a probe that is due, and says when the next one is.
    fn probe(&mut self, now: Instant) {
        if !self.udp || self.probe_at.is_none_or(|at| now < at) {
            return;
        }
        self.outputs.push_back(Output::Probe);
        self.unanswered = self.unanswered.saturating_add(1);
        let slow = if self.unanswered > 4 * DEAD_PROBES { SEEK.0 } else { PROBE_EVERY };
        self.probe_at = Some(
            now + match self.active {
                None | Some(Carrier::Udp) => slow,
                Some(Carrier::Mqtt) => {
                    if self.unanswered > 1 {
                        // The one before went unanswered.
                        self.steady = None;
                        let most = if self.mqtt { SEEK.1 } else { SEEK.0 };
                        self.seek = (self.seek * 2).min(most);
                    }
                    self.seek
                }
            },
        );
    }
}

#[cfg(test)]
mod tests;
