//! The agent's machine: what to send next on which lane, what may be deleted, what is lost. No I/O.
//!
//! ```text
//!            durable at the hub          front
//! 0 ........##########......####...........|.................. next
//!           ^ acknowledged  ^ holes        |
//!           <------ backlog lane --------> | <-- live lane -->
//! ```
//!
//! A session begins with the hub's marks ([`Sender::connected`]); from then on new records go ahead on
//! the live lane while the backlog follows on its own. Each lane has a window of bytes that are sent and
//! not acknowledged. Everything is forgotten with the session but what is durable, so that losing a
//! session anywhere costs nothing but sending again. Its memory grows with holes and windows, never with
//! the backlog. The caller is `edgecore`'s uplink.

use std::collections::{BTreeMap, VecDeque};

use super::{
    Class, Gap, GapReason, MAX_PIECES, Mark, StreamKey,
    message::{Held, Lane},
    ranges::{Range, Ranges},
};

/// Bytes that may be on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// On the live lane.
    pub live_bytes: u64,
    /// On the backlog lane.
    pub backlog_bytes: u64,
}

impl Default for Windows {
    fn default() -> Windows {
        Windows { live_bytes: 2 << 20, backlog_bytes: 4 << 20 }
    }
}

/// What to send: records of a stream from `range.start` on, as many as fit one batch, none from `range.end` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The stream.
    pub key: StreamKey,
    /// Where from, and before where it must end.
    pub range: Range,
}

/// Streams of which the hub has records that this outbox never gave: it is an older copy, and they need a
/// new epoch. `told` is what the hub was told of the outbox: in the first session of a start what it held
/// when it was opened, since all that was given until then was given before the start.
#[must_use]
pub fn reused(told: &[Held], marks: &[Mark]) -> Vec<StreamKey> {
    let knows_more = |held: &&Held| {
        let mark = marks.iter().find(|mark| mark.key == held.key);
        mark.and_then(|mark| mark.durable.iter().next_back()).is_some_and(|last| last.end > held.next)
    };
    told.iter().filter(knows_more).map(|held| held.key.clone()).collect()
}

#[derive(Debug)]
struct Flight {
    lane: Lane,
    range: Range,
    bytes: u64,
}

#[derive(Debug)]
struct State {
    class: Class,
    next: u64,
    durable: Ranges,
    /// Durable, or on its way in this session.
    taken: Ranges,
    /// From here on records are live; `None` while there are too many holes.
    front: Option<u64>,
    flights: VecDeque<Flight>,
}

impl State {
    fn lane(&self, lane: Lane) -> Range {
        match (lane, self.front) {
            (Lane::Live, Some(front)) => front..self.next,
            (Lane::Live, None) => 0..0,
            (Lane::Backlog, front) => 0..front.unwrap_or(self.next),
        }
    }

    fn open_front(&mut self) {
        if self.front.is_none() && self.taken.pieces() < MAX_PIECES {
            self.front = Some(self.next);
        }
    }
}

/// The machine.
#[derive(Debug)]
pub struct Sender {
    windows: Windows,
    streams: BTreeMap<StreamKey, State>,
    flying_bytes: BTreeMap<Lane, u64>,
    connected: bool,
}

impl Sender {
    /// With nothing to send.
    #[must_use]
    pub fn new(windows: Windows) -> Sender {
        Sender { windows, streams: BTreeMap::new(), flying_bytes: BTreeMap::new(), connected: false }
    }

    /// A session began: `held` is what the outbox has, `marks` what the hub has. Returns the records that the
    /// hub does not have and the outbox has no more.
    pub fn connected(&mut self, held: &[Held], marks: &[Mark]) -> Vec<Gap> {
        self.disconnected();
        self.connected = true;
        let mut gaps = vec![];
        for held in held {
            let durable = marks.iter().find(|m| m.key == held.key).map(|m| m.durable.clone()).unwrap_or_default();
            let lost = durable.missing(0..held.first);
            gaps.extend(lost.into_iter().map(|lost| Gap {
                key: held.key.clone(),
                first: lost.start,
                count: lost.end - lost.start,
                reason: GapReason::HubLost,
            }));
            let mut taken = durable.clone();
            taken.insert(0..held.first);
            let mut state =
                State { class: held.class, next: held.next, durable, taken, front: None, flights: VecDeque::new() };
            state.open_front();
            self.streams.insert(held.key.clone(), state);
        }
        gaps
    }

    /// The session is over: nothing is on its way any more.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.streams.clear();
        self.flying_bytes.clear();
    }

    /// The outbox took records of a stream up to before `next`.
    pub fn committed(&mut self, key: &StreamKey, class: Class, next: u64) {
        if !self.connected {
            return; // the next session begins with what is held then
        }
        let state = self.streams.entry(key.clone()).or_insert_with(|| State {
            class,
            next: 0,
            durable: Ranges::default(),
            taken: Ranges::default(),
            front: Some(0),
            flights: VecDeque::new(),
        });
        state.next = state.next.max(next);
    }

    /// What to send next on a lane, if its window has room: streams by class, each from its oldest on.
    pub fn next(&mut self, lane: Lane) -> Option<Wanted> {
        let window = match lane {
            Lane::Live => self.windows.live_bytes,
            Lane::Backlog => self.windows.backlog_bytes,
        };
        if !self.connected || self.flying_bytes.get(&lane).is_some_and(|flying| *flying >= window) {
            return None;
        }
        let mut best: Option<(Class, Wanted)> = None;
        for (key, state) in &mut self.streams {
            state.open_front();
            if best.as_ref().is_some_and(|(class, _)| *class <= state.class) {
                continue;
            }
            let bounds = state.lane(lane);
            let start = state.taken.first_missing(bounds.start);
            if start < bounds.end {
                let end = state.taken.first_present(start).map_or(bounds.end, |present| present.min(bounds.end));
                best = Some((state.class, Wanted { key: key.clone(), range: start..end }));
            }
        }
        best.map(|(_, wanted)| wanted)
    }

    /// `range` of a stream, a beginning of what [`Sender::next`] wanted, was sent with `bytes`.
    pub fn sent(&mut self, lane: Lane, key: &StreamKey, range: Range, bytes: u64) {
        let Some(state) = self.streams.get_mut(key) else { return };
        state.taken.insert(range.clone());
        state.flights.push_back(Flight { lane, range, bytes });
        *self.flying_bytes.entry(lane).or_default() += bytes;
    }

    /// The hub acknowledged. Returns what became durable by it: the outbox may delete that.
    pub fn acked(&mut self, mark: &Mark) -> Vec<Range> {
        let Some(state) = self.streams.get_mut(&mark.key) else { return vec![] };
        let new: Vec<Range> = mark.durable.iter().flat_map(|r| state.durable.missing(r)).collect();
        state.durable.extend(&mark.durable);
        state.taken.extend(&mark.durable);
        let (durable, flying_bytes) = (&state.durable, &mut self.flying_bytes);
        state.flights.retain(|flight| {
            let arrived = durable.contains(&flight.range);
            if arrived && let Some(flying) = flying_bytes.get_mut(&flight.lane) {
                *flying = flying.saturating_sub(flight.bytes);
            }
            !arrived
        });
        new
    }

    /// A stream that is no more: its epoch is over and all of it is durable.
    pub fn forget(&mut self, key: &StreamKey) {
        self.streams.remove(key);
    }

    /// What is durable of a stream, as far as this session knows.
    #[must_use]
    pub fn durable(&self, key: &StreamKey) -> Option<&Ranges> {
        self.streams.get(key).map(|s| &s.durable)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::{
        super::{
            Epoch,
            receipt::{Verdict, judge},
        },
        *,
    };

    fn key() -> StreamKey {
        StreamKey { stream: "scans".parse().unwrap(), epoch: Epoch(1) }
    }

    fn held(first: u64, next: u64) -> Held {
        Held { key: key(), class: Class::Scans, first, next }
    }

    fn mark(ranges: &[Range]) -> Mark {
        Mark { key: key(), durable: ranges.iter().cloned().collect() }
    }

    #[test]
    fn live_goes_ahead_and_the_backlog_follows() {
        let mut sender = Sender::new(Windows::default());
        assert_eq!(sender.connected(&[held(10, 50)], &[mark(&[0..20])]), []);
        assert_eq!(sender.next(Lane::Live), None);
        assert_eq!(sender.next(Lane::Backlog).unwrap().range, 20..50);
        sender.committed(&key(), Class::Scans, 53);
        assert_eq!(sender.next(Lane::Live).unwrap().range, 50..53);
        sender.sent(Lane::Live, &key(), 50..53, 9);
        sender.sent(Lane::Backlog, &key(), 20..40, 9);
        assert_eq!(sender.next(Lane::Backlog).unwrap().range, 40..50);
        assert_eq!(sender.acked(&mark(&[0..20, 50..53])), [50..53]);
        assert_eq!(sender.acked(&mark(&[0..40, 50..53])), [20..40]);
    }

    #[test]
    fn a_window_that_is_full_waits() {
        let mut sender = Sender::new(Windows { live_bytes: 100, backlog_bytes: 100 });
        sender.connected(&[held(0, 50)], &[]);
        sender.sent(Lane::Backlog, &key(), 0..10, 100);
        assert_eq!(sender.next(Lane::Backlog), None);
        sender.acked(&mark(&[0..10]));
        assert_eq!(sender.next(Lane::Backlog).unwrap().range, 10..50);
    }

    #[test]
    fn classes_go_in_order() {
        let mut sender = Sender::new(Windows::default());
        let logs = StreamKey { stream: "logs".parse().unwrap(), epoch: Epoch(1) };
        sender.connected(&[], &[]);
        sender.committed(&logs, Class::Logs, 5);
        assert_eq!(sender.next(Lane::Live).unwrap().key, logs);
        sender.committed(&key(), Class::Scans, 1);
        assert_eq!(sender.next(Lane::Live).unwrap().key, key());
    }

    #[test]
    fn what_the_hub_lost_is_a_gap_and_an_older_outbox_is_noticed() {
        let mut sender = Sender::new(Windows::default());
        let gaps = sender.connected(&[held(30, 50)], &[mark(&[0..20, 25..28])]);
        let gaps: Vec<_> = gaps.iter().map(|g| (g.first, g.count, g.reason)).collect();
        assert_eq!(gaps, [(20, 5, GapReason::HubLost), (28, 2, GapReason::HubLost)]);
        assert_eq!(sender.next(Lane::Backlog).unwrap().range, 30..50);
        assert_eq!(reused(&[held(0, 50)], &[mark(&[0..51])]), [key()]);
        assert_eq!(reused(&[held(0, 50)], &[mark(&[0..50])]), []);
        assert_eq!(reused(&[held(0, 50)], &[]), []);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Commit(u64),
        Send(Lane, u64),
        Deliver,
        Ack,
        Reconnect,
        HubRestart,
    }

    fn op() -> impl Strategy<Value = Op> {
        let lane = prop_oneof![Just(Lane::Live), Just(Lane::Backlog)];
        prop_oneof![
            3 => (1u64..20).prop_map(Op::Commit),
            5 => (lane, 1u64..10).prop_map(|(l, n)| Op::Send(l, n)),
            4 => Just(Op::Deliver),
            3 => Just(Op::Ack),
            1 => Just(Op::Reconnect),
            1 => Just(Op::HubRestart),
        ]
    }

    proptest! {
        /// Whatever breaks when, the hub stores every record once, and in the end has all of them.
        #[test]
        fn exactly_once(ops in prop::collection::vec(op(), 0..200)) {
            let mut sender = Sender::new(Windows { live_bytes: 30, backlog_bytes: 30 });
            let mut hub = Ranges::default(); // durable there
            let mut stored: Vec<u64> = vec![];
            let (mut first, mut next) = (0, 0);
            let mut line: VecDeque<Range> = VecDeque::new();
            sender.connected(&[held(0, 0)], &[]);
            // In the end everything is sent, delivered and acknowledged.
            let drain = (0..2_000).flat_map(|_| {
                [Op::Send(Lane::Live, 9), Op::Send(Lane::Backlog, 9), Op::Deliver, Op::Deliver, Op::Ack]
            });
            for op in ops.into_iter().chain([Op::Reconnect]).chain(drain) {
                match op {
                    Op::Commit(n) => {
                        next += n;
                        sender.committed(&key(), Class::Scans, next);
                    }
                    Op::Send(lane, n) => if let Some(wanted) = sender.next(lane) {
                        let end = wanted.range.end.min(wanted.range.start + n);
                        prop_assert!(wanted.range.start >= first && end <= next);
                        sender.sent(lane, &key(), wanted.range.start..end, n);
                        line.push_back(wanted.range.start..end);
                    },
                    Op::Deliver => if let Some(offer) = line.pop_front() {
                        match judge(&hub, offer.clone()) {
                            Verdict::Store(parts) => stored.extend(parts.into_iter().flatten()),
                            Verdict::Duplicate => {}
                            Verdict::TooManyPieces => prop_assert!(false, "too many pieces: {hub:?}, {offer:?}"),
                        }
                        hub.insert(offer);
                    },
                    Op::Ack => {
                        let new = sender.acked(&Mark { key: key(), durable: hub.clone() });
                        prop_assert!(new.iter().all(|r| hub.contains(r)));
                        first = hub.first_missing(0).max(first); // the outbox deletes a prefix
                    }
                    Op::Reconnect | Op::HubRestart => {
                        line.clear();
                        let mark = Mark { key: key(), durable: hub.clone() };
                        prop_assert_eq!(sender.connected(&[held(first, next)], &[mark]), []);
                    }
                }
            }
            prop_assert_eq!(&hub.iter().collect::<Vec<_>>(), &if next > 0 { vec![0..next] } else { vec![] });
            prop_assert_eq!(stored.iter().copied().collect::<BTreeSet<_>>().len(), stored.len());
            prop_assert_eq!(stored.len() as u64, next);
        }
    }
}
