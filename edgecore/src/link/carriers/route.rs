//! Where the agent's datagrams go, and what its socket has seen of the path over UDP. Shared between the socket,
//! which asks with every datagram, and the loop that decides ([`super::path`]).

use std::{
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use proto::carrier::{
    address,
    probe::{ProbeId, is_answer},
    socket::{Route, To},
};
use quinn::udp::RecvMeta;
use tokio::{sync::Notify, time::Instant};

use super::choice::Carrier;

/// The agent's route: one destination, the hub, whichever way.
#[derive(Debug)]
pub(super) struct AgentRoute {
    peer: u64,
    probe: ProbeId,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    active: Option<Carrier>,
    /// Addresses of hubs, in order.
    candidates: Vec<SocketAddr>,
    /// The one that answered.
    hub: Option<SocketAddr>,
    /// Since when something should have come: of the datagrams that were sent since the hub was heard, the first;
    /// in a flow, the last that came.
    unanswered: Option<Instant>,
    flow: Flow,
    answered: Option<SocketAddr>,
    /// Whether the loop wants to know when [`State::unanswered`] begins.
    armed: bool,
}

/// Whether the hub is sending one thing after the other. Who only receives has nothing unanswered when the path dies.
#[derive(Debug, Default)]
struct Flow {
    last: Option<Instant>,
    arrivals: u32,
}

/// Longest pause within a flow, and arrivals that make one.
const FLOW_PAUSE: Duration = Duration::from_millis(250);
const FLOW_ARRIVALS: u32 = 8;

impl Flow {
    /// Something came. Returns whether more is to come.
    fn goes_on(&mut self, now: Instant) -> bool {
        if self.last.is_none_or(|last| now.saturating_duration_since(last) > FLOW_PAUSE) {
            self.arrivals = 0;
        }
        self.last = Some(now);
        self.arrivals = self.arrivals.saturating_add(1);
        self.arrivals >= FLOW_ARRIVALS
    }
}

impl State {
    /// The hub was heard over UDP; an answer to a probe says nothing of a flow.
    fn heard(&mut self, is_answer: bool, now: Instant) {
        if is_answer {
            self.flow = Flow::default();
        }
        self.unanswered = self.flow.goes_on(now).then_some(now);
    }
}

/// What was seen since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) unanswered: Option<Instant>,
    pub(super) answered: bool,
}

impl AgentRoute {
    pub(super) fn new(node: &str, probe: ProbeId) -> AgentRoute {
        AgentRoute { peer: address::hash(node), probe, state: Mutex::default(), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_candidates(&self, candidates: Vec<SocketAddr>) {
        let mut state = self.lock();
        if !candidates.is_empty() {
            state.candidates = candidates;
        }
    }

    /// The address of the hub over UDP: the one that answered, else the first.
    pub(super) fn hub(&self) -> Option<SocketAddr> {
        let state = self.lock();
        state.hub.or_else(|| state.candidates.first().copied())
    }

    /// Where the probe of this turn goes: over UDP to the hub in use, else to each address in turn.
    pub(super) fn probe_to(&self, turn: usize) -> Option<SocketAddr> {
        let state = self.lock();
        if state.active == Some(Carrier::Udp) {
            return state.hub;
        }
        turn.checked_rem(state.candidates.len()).and_then(|at| state.candidates.get(at)).copied()
    }

    pub(super) fn enter(&self, carrier: Carrier) {
        let mut state = self.lock();
        state.active = Some(carrier);
        (state.unanswered, state.flow) = (None, Flow::default());
    }

    /// What was seen. From now on something new is told by [`AgentRoute::changed`].
    pub(super) fn look(&self) -> Seen {
        let mut state = self.lock();
        let answered = state.answered.take();
        if answered.is_some() && state.active != Some(Carrier::Udp) {
            state.hub = answered;
        }
        state.armed = state.unanswered.is_none();
        Seen { unanswered: state.unanswered, answered: answered.is_some() }
    }

    /// Something new is to be looked at. Cancel safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Route for AgentRoute {
    fn to(&self, _: SocketAddr) -> To {
        let mut state = self.lock();
        match (state.active, state.hub) {
            (Some(Carrier::Mqtt), _) => To::Pipe { pipe: 0, peer: self.peer },
            (Some(Carrier::Udp), Some(hub)) => {
                if state.unanswered.is_none() {
                    state.unanswered = Some(Instant::now());
                    if std::mem::take(&mut state.armed) {
                        self.changed.notify_one();
                    }
                }
                To::Udp(hub)
            }
            _ => To::Nowhere,
        }
    }

    fn arrived(&self, meta: &mut RecvMeta, contents: &[u8]) {
        let mut state = self.lock();
        let from = meta.addr;
        if !state.candidates.contains(&from) {
            return;
        }
        // Answers are short, so that one can end a train of datagrams.
        let answers = contents.chunks(meta.stride.max(1)).any(|datagram| is_answer(datagram, self.probe));
        if answers {
            state.answered.get_or_insert(from);
            self.changed.notify_one();
        }
        if state.hub == Some(from) {
            let is_over_udp = state.active == Some(Carrier::Udp);
            state.heard(answers || !is_over_udp, Instant::now());
            if state.unanswered.is_some() && std::mem::take(&mut state.armed) {
                self.changed.notify_one();
            }
            meta.addr = address::hub();
        }
    }

    fn address_of(&self, _: usize, _: u64) -> SocketAddr {
        address::hub()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_that_breaks_off_is_silence_although_nothing_was_sent() {
        let (mut state, begin) = (State::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        for ms in [0, 2000, 2001] {
            state.heard(false, at(ms));
            assert_eq!(state.unanswered, None, "a word now and then is no flow");
        }
        for ms in 2002..2100 {
            state.heard(false, at(ms));
        }
        assert_eq!(state.unanswered, Some(at(2099)));
        state.heard(true, at(2400));
        assert_eq!(state.unanswered, None, "asked and answered: it came to its end");
    }
}
