//! The queues between QUIC and one broker: bounded, fair between nodes, with pressure back into QUIC.
//!
//! ```text
//! socket --send--> queue of each peer, by turns --next--> connection with the broker
//! socket <--receive-- inbox <--arrived-- connection with the broker
//! ```
//!
//! A peer is who the topics of one node lead to: at the hub each node that was heard from, at a node the hub.
//! While there is no connection datagrams are dropped, as a line that is cut drops them. Asks are answered here.
//!
//! | bound | reaching it |
//! |---|---|
//! | [`OUT_PEER`] messages to a peer, [`OUT_ALL`] in all | `WouldBlock`: QUIC waits for room |
//! | [`IN_PEER`] messages from a peer that nobody read | the next one is dropped: QUIC sends again |
//! | [`IN_ALL`] in all | the broker's connection is not read until there is room |
//! | [`MAX_PEERS`] nodes | messages of further ones are dropped until others were silent for [`SILENT`] |

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    fmt, io,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::Notify, time::Instant};

use super::{
    address::{self, Way},
    frame::{self, Echo, MAX_SEGMENTS, Message},
};
use crate::{name::Name, watch};

/// Messages to one peer that wait for the broker.
pub const OUT_PEER: usize = 16;
/// Messages to all peers that wait.
pub const OUT_ALL: usize = 1024;
/// Messages from one of many peers that QUIC has not read.
pub const IN_PEER: usize = 64;
/// Messages from all peers that it has not read.
pub const IN_ALL: usize = 512;
/// Nodes that are known at once.
pub const MAX_PEERS: usize = 20_000;
/// Silence after which a node may be forgotten, longer than QUIC waits for one.
pub const SILENT: Duration = Duration::from_secs(60);
/// Between two looks for nodes to forget.
const SWEEP: Duration = Duration::from_secs(1);

/// Which end this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The hub of a fleet.
    Hub {
        /// The fleet.
        fleet: Name,
    },
    /// A node, or a box that wants to become one.
    Node {
        /// The fleet.
        fleet: Name,
        /// Its name.
        node: Name,
    },
}

/// A message that goes to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Where.
    pub topic: String,
    /// What.
    pub payload: Bytes,
}

/// Datagrams that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// From whom, as in [`address::Behind`].
    pub peer: u64,
    /// Bytes of each.
    pub segment: usize,
    /// All of them.
    pub contents: Bytes,
}

/// What the broker's connection has shown so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PipeState {
    /// Whether messages can go and come: connected, subscribed.
    pub up: bool,
    /// How many times it came up.
    pub ups: u64,
    /// The answer that came last.
    pub answered: Option<Echo>,
    /// Whether the broker let this node read what is not its own.
    pub exposed: bool,
}

/// The queues of one broker.
pub struct Pipe {
    role: Role,
    /// Datagrams that a message to this end should hold at most.
    segments: usize,
    state: Mutex<State>,
    told: watch::Sender<PipeState>,
    /// Something waits to go out.
    outgoing: Notify,
    /// The inbox has room again.
    room: Notify,
}

#[derive(Default)]
struct State {
    up: bool,
    peers: BTreeMap<u64, Peer>,
    /// Peers with something queued, in the order of their turns.
    turns: VecDeque<u64>,
    queued: usize,
    /// Writers that wait because of all peers together.
    crowd: Vec<Waker>,
    inbox: VecDeque<Arrival>,
    reader: Option<Waker>,
    swept: Option<Instant>,
    dropped: u64,
}

struct Peer {
    name: Name,
    heard: Instant,
    segments: usize,
    queue: VecDeque<Bytes>,
    writers: Vec<Waker>,
    unread: usize,
}

impl Peer {
    fn new(name: Name, now: Instant) -> Peer {
        Peer { name, heard: now, segments: 1, queue: VecDeque::new(), writers: vec![], unread: 0 }
    }
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        write!(f, "Pipe({:?}, up {}, {} out, {} in)", self.role, state.up, state.queued, state.inbox.len())
    }
}

fn keep(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|w| w.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}

impl Pipe {
    /// Queues without a connection yet.
    #[must_use]
    pub fn new(role: Role) -> Pipe {
        let mut state = State::default();
        if let Role::Node { node, .. } = &role {
            state.peers.insert(address::hash(node.as_str()), Peer::new(node.clone(), Instant::now()));
        }
        let told = watch::Sender::new(PipeState::default());
        let (outgoing, room) = (Notify::new(), Notify::new());
        Pipe { role, segments: MAX_SEGMENTS, state: Mutex::new(state), told, outgoing, room }
    }

    /// At the hub: messages through this broker should hold no more datagrams than that. Larger asks stay without
    /// an answer, so that nodes send smaller messages.
    #[must_use]
    pub fn of_segments(self, segments: usize) -> Pipe {
        Pipe { segments, ..self }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to subscribe to.
    #[must_use]
    pub fn filter(&self) -> String {
        match &self.role {
            Role::Hub { fleet } => address::filter(fleet),
            Role::Node { fleet, node } => address::topic(fleet, node, Way::Down),
        }
    }

    fn topic(&self, peer: &Name) -> String {
        match &self.role {
            Role::Hub { fleet } => address::topic(fleet, peer, Way::Down),
            Role::Node { fleet, node } => address::topic(fleet, node, Way::Up),
        }
    }

    fn sender(&self, topic: &str) -> Option<Name> {
        match &self.role {
            Role::Hub { fleet } => address::node_of(topic, fleet, Way::Up),
            Role::Node { fleet, node } => address::node_of(topic, fleet, Way::Down).filter(|n| n == node),
        }
    }

    /// The topic that no node may read, where the hub leaves a message.
    #[must_use]
    pub fn canary(&self) -> String {
        let (Role::Hub { fleet } | Role::Node { fleet, .. }) = &self.role;
        address::canary(fleet)
    }

    /// Whether this is the hub's end.
    #[must_use]
    pub fn is_hub(&self) -> bool {
        matches!(self.role, Role::Hub { .. })
    }

    /// The canary came: the broker keeps nobody from reading.
    pub fn exposed(&self) {
        self.told.send_if_modified(|told| !std::mem::replace(&mut told.exposed, true));
    }

    /// How it stands, as it changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<PipeState> {
        self.told.subscribe()
    }

    /// Name of the node behind a hash, if it is known.
    #[must_use]
    pub fn name(&self, peer: u64) -> Option<Name> {
        self.lock().peers.get(&peer).map(|p| p.name.clone())
    }

    /// Messages that were dropped because somebody sent more than is read.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    // -- QUIC's side

    /// Takes datagrams of `segment` bytes each for a peer. What goes to nobody, or while there is no connection,
    /// is dropped.
    ///
    /// # Errors
    /// `WouldBlock` when the queues are full; [`Pipe::poll_room`] tells when to try again.
    pub fn send(&self, peer: u64, segment: usize, contents: &[u8]) -> io::Result<()> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(to) = state.peers.get_mut(&peer).filter(|_| state.up) else { return Ok(()) };
        if to.queue.len() >= OUT_PEER || state.queued >= OUT_ALL {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let most = segment.saturating_mul(to.segments.clamp(1, MAX_SEGMENTS)).max(1);
        let before = to.queue.len();
        to.queue.extend(contents.chunks(most).filter_map(|part| frame::datagrams(segment, part)));
        state.queued += to.queue.len() - before;
        if before == 0 && !to.queue.is_empty() {
            state.turns.push_back(peer);
        }
        drop(guard);
        self.outgoing.notify_one();
        Ok(())
    }

    /// Whether there is room for a peer's datagrams; otherwise the task is woken when there is.
    pub fn poll_room(&self, peer: u64, cx: &Context<'_>) -> Poll<()> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(to) = state.peers.get_mut(&peer).filter(|_| state.up) else { return Poll::Ready(()) };
        if to.queue.len() >= OUT_PEER {
            keep(&mut to.writers, cx.waker());
        } else if state.queued >= OUT_ALL {
            keep(&mut state.crowd, cx.waker());
        } else {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// The next datagrams; otherwise the task is woken when there are some. One task may wait.
    pub fn poll_receive(&self, cx: &Context<'_>) -> Poll<Arrival> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(arrival) = state.inbox.pop_front() else {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        if let Some(peer) = state.peers.get_mut(&arrival.peer) {
            peer.unread = peer.unread.saturating_sub(1);
        }
        let room = state.inbox.len() == IN_ALL / 2;
        drop(guard);
        if room {
            self.room.notify_one();
        }
        Poll::Ready(arrival)
    }

    // -- the broker's side

    /// Messages go and come from now on.
    pub fn up(&self) {
        self.lock().up = true;
        self.told.send_modify(|told| {
            told.up = true;
            told.ups += 1;
            told.answered = None;
            told.exposed = false;
        });
    }

    /// The connection is over: what was queued is dropped, and who waited goes on.
    pub fn down(&self) {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.up = false;
        state.queued = 0;
        state.turns.clear();
        let mut woken = std::mem::take(&mut state.crowd);
        for peer in state.peers.values_mut() {
            peer.queue.clear();
            woken.append(&mut peer.writers);
        }
        drop(guard);
        woken.into_iter().for_each(Waker::wake);
        self.told.send_if_modified(|told| std::mem::take(&mut told.up));
    }

    /// The next message for the broker. Cancel safe.
    pub async fn next(&self) -> Outgoing {
        loop {
            if let Some(outgoing) = self.pop() {
                return outgoing;
            }
            self.outgoing.notified().await;
        }
    }

    fn pop(&self) -> Option<Outgoing> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let turn = state.turns.pop_front()?;
        let peer = state.peers.get_mut(&turn)?;
        let payload = peer.queue.pop_front()?;
        state.queued = state.queued.saturating_sub(1);
        let mut woken = vec![];
        if peer.queue.len() <= OUT_PEER / 2 {
            woken.append(&mut peer.writers);
        }
        if !peer.queue.is_empty() {
            state.turns.push_back(turn);
        }
        if state.queued <= OUT_ALL * 3 / 4 {
            woken.append(&mut state.crowd);
        }
        let name = peer.name.clone();
        drop(guard);
        woken.into_iter().for_each(Waker::wake);
        Some(Outgoing { topic: self.topic(&name), payload })
    }

    /// A message came. Whether it was dealt with; otherwise wait for [`Pipe::room`] and hand it in again.
    #[must_use]
    pub fn arrived(&self, topic: &str, payload: &Bytes) -> bool {
        let (Some(from), Ok(message)) = (self.sender(topic), frame::read(payload.clone())) else {
            self.lock().dropped += 1;
            return true;
        };
        let hash = address::hash(from.as_str());
        match message {
            Message::Datagrams { segment, contents } => {
                self.take(hash, &from, Arrival { peer: hash, segment, contents })
            }
            Message::Ask(echo) => {
                self.asked(hash, &from, echo);
                true
            }
            Message::Answer(echo) => {
                if !self.is_hub() {
                    self.told.send_modify(|told| told.answered = Some(echo));
                }
                true
            }
        }
    }

    fn take(&self, hash: u64, from: &Name, arrival: Arrival) -> bool {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.inbox.len() >= IN_ALL {
            return false;
        }
        let most = if self.is_hub() { IN_PEER } else { IN_ALL };
        match state.peer(hash, from).filter(|peer| peer.unread < most) {
            Some(peer) => peer.unread += 1,
            None => {
                state.dropped += 1;
                return true;
            }
        }
        state.inbox.push_back(arrival);
        let reader = state.reader.take();
        drop(guard);
        if let Some(reader) = reader {
            reader.wake();
        }
        true
    }

    /// Answers, and learns how large the messages are that get through.
    fn asked(&self, hash: u64, from: &Name, echo: Echo) {
        if !self.is_hub() || echo.bytes > frame::message_bytes(self.segments) {
            return;
        }
        let mut guard = self.lock();
        let state = &mut *guard;
        let up = state.up;
        let Some(peer) = state.peer(hash, from) else { return };
        let segments = (1..=MAX_SEGMENTS).rev().find(|n| echo.bytes >= frame::message_bytes(*n));
        peer.segments = segments.unwrap_or(peer.segments);
        if peer.queue.len() < OUT_PEER && up {
            peer.queue.push_back(frame::answer(echo));
            let first = peer.queue.len() == 1;
            state.queued += 1;
            if first {
                state.turns.push_back(hash);
            }
        }
        drop(guard);
        self.outgoing.notify_one();
    }

    /// Waits until the inbox has room. Cancel safe.
    pub async fn room(&self) {
        while self.lock().inbox.len() >= IN_ALL {
            self.room.notified().await;
        }
    }

    // -- a node's side

    /// Sends an ask to the hub, ahead of all datagrams.
    pub fn ask(&self, echo: Echo) {
        let Role::Node { node, .. } = &self.role else { return };
        let hash = address::hash(node.as_str());
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(peer) = state.peers.get_mut(&hash).filter(|_| state.up) else { return };
        peer.queue.push_front(frame::ask(echo));
        state.queued += 1;
        if peer.queue.len() == 1 {
            state.turns.push_back(hash);
        }
        drop(guard);
        self.outgoing.notify_one();
    }

    /// Sets how many datagrams may go in one message to the hub.
    pub fn set_segments(&self, segments: usize) {
        self.lock().peers.values_mut().for_each(|peer| peer.segments = segments);
    }
}

impl State {
    /// Who was heard from; `None` when there are too many, or another has its hash.
    fn peer(&mut self, hash: u64, name: &Name) -> Option<&mut Peer> {
        let now = Instant::now();
        if !self.peers.contains_key(&hash) && self.peers.len() >= MAX_PEERS {
            self.sweep(now);
            if self.peers.len() >= MAX_PEERS {
                return None;
            }
        }
        let peer = match self.peers.entry(hash) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(free) => free.insert(Peer::new(name.clone(), now)),
        };
        peer.heard = now;
        (peer.name == *name).then_some(peer)
    }

    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|last| now.saturating_duration_since(last) < SWEEP) {
            return;
        }
        self.swept = Some(now);
        self.peers.retain(|_, peer| {
            let silent = now.saturating_duration_since(peer.heard) >= SILENT;
            !(silent && peer.queue.is_empty() && peer.writers.is_empty() && peer.unread == 0)
        });
    }
}

#[cfg(test)]
mod tests;
