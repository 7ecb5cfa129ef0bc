//! The one writer of the sink: what lanes offer becomes durable, once, and is acknowledged then.
//!
//! ```text
//! lane --room, offer--> queue (bounded in bytes) --> writer: judge, trim, one commit --> sink
//! lane <------------- acks <----------------------- marks in memory <------- done -------'
//! ```
//!
//! Marks are in memory, read from the sink at the start and again whenever the sink does not know
//! whether it kept something. When the sink is down the writer goes on trying with what it has, the queue
//! fills, lanes wait for room and stop reading, QUIC pushes back, and the nodes' outboxes hold. An offer
//! keeps its room until it is committed, so what is in memory is bounded by the queue, a batch that a lane
//! has just read, and the marks.
//!
//! | module | what it holds |
//! |---|---|
//! | `table` | marks and lags of every stream, and what an offer makes of them: no I/O |
//! | `writer` | the loop: gather, commit, acknowledge; again when it fails |

mod table;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use proto::{
    env::{Env, WallClock},
    name::Name,
    stream::{
        Gap, MAX_STREAMS, Mark, StreamKey,
        batch::Batch,
        message::{Held, Lag, Lane},
        ranges::Range,
    },
    watch,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use self::{table::Table, writer::Writer};
use super::sink::{Sink, StreamState};

/// Largest epoch, sequence and count: every reader of JSON, and every database, keeps it whole.
pub const MAX_NUMBER: u64 = 1 << 53;
/// Lanes of one node at once: two, and two of the session before that is on its way out.
const MAX_LANES: usize = 4;
/// Room is counted in pieces of so many bytes.
const ROOM_UNIT: usize = 1024;
/// What an offer takes besides its bytes.
const OFFER_BYTES: usize = 512;

/// Bounds of the writer.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes that wait for the sink, or are on their way into it.
    pub queue_bytes: usize,
    /// Bytes of records in one commit.
    pub group_bytes: usize,
    /// How long a commit waits for company.
    pub linger: Duration,
    /// How long a change that is not a record may wait for its commit.
    pub note_within: Duration,
    /// Pauses between attempts, from the first to the longest.
    pub retry: (Duration, Duration),
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            queue_bytes: 64 << 20,
            group_bytes: 4 << 20,
            linger: Duration::from_millis(5),
            note_within: Duration::from_secs(2),
            retry: (Duration::from_millis(100), Duration::from_secs(10)),
        }
    }
}

/// How the sink is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It was not asked yet.
    Starting,
    /// It keeps what it is given.
    Up,
    /// It does not; why, for people.
    Down(String),
}

/// A node's lane or what it sent cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IngestError {
    /// More streams than a node may have.
    #[error("the node names {0} streams and epochs, {MAX_STREAMS} are taken; deliver and end some first")]
    TooManyStreams(usize),
    /// What it says cannot be.
    #[error("{0}")]
    Malformed(String),
    /// A newer session of the node is there.
    #[error("a newer session of this node took its place")]
    Replaced,
}

/// Takes what nodes offer. Cheap to clone.
#[derive(Clone)]
pub struct Ingest(Arc<Shared>);

struct Shared {
    limits: Limits,
    wall: Arc<dyn WallClock>,
    table: Mutex<Table>,
    /// The table has a change that is to be written soon.
    noted: Notify,
    room: Arc<Semaphore>,
    /// Bounded by `room`, which every offer in it holds some of.
    queue: mpsc::UnboundedSender<Offer>,
    health: watch::Sender<Health>,
    /// Records of stream [`event::STREAM`] became durable.
    events: Notify,
}

/// What a node offers, on its way to the writer.
struct Offer {
    node: Name,
    site: Name,
    lane: Lane,
    key: StreamKey,
    what: What,
    refused: Arc<watch::Sender<Option<String>>>,
    room: Room,
}

enum What {
    Batch { batch: Batch, sealed: Bytes },
    Gap(Gap),
}

impl Offer {
    fn range(&self) -> Range {
        match &self.what {
            What::Batch { batch, .. } => batch.first..batch.end(),
            What::Gap(gap) => gap.first..gap.first.saturating_add(gap.count),
        }
    }
}

/// Room in the queue. It is given back when this is dropped.
#[derive(Debug)]
pub struct Room {
    permit: OwnedSemaphorePermit,
}

impl Room {
    fn units(bytes: usize) -> usize {
        (bytes + OFFER_BYTES).div_ceil(ROOM_UNIT)
    }

    fn bytes(&self) -> usize {
        self.permit.num_permits() * ROOM_UNIT
    }

    /// Gives back what is beyond `bytes`.
    fn shrink(&mut self, bytes: usize) {
        let spare = self.permit.num_permits().saturating_sub(Room::units(bytes));
        drop(self.permit.split(spare));
    }
}

/// A lane's place at the writer.
#[derive(Debug)]
pub struct Opened {
    /// What is durable of the streams that were named.
    pub marks: Vec<Mark>,
    /// To offer.
    pub offers: Offers,
    /// To hear what became durable of it.
    pub acks: Acks,
}

impl fmt::Debug for Ingest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ingest({:?})", *self.0.health.borrow())
    }
}

impl Ingest {
    /// With a sink; the future is the writer, which works while it is polled. Dropping it leaves the last
    /// commit done or undone, and what waits is offered again by the nodes.
    pub fn start(
        sink: Arc<dyn Sink>,
        env: &Env,
        limits: Limits,
    ) -> (Ingest, impl Future<Output = ()> + Send + 'static) {
        let (queue, offers) = mpsc::unbounded_channel();
        let shared = Shared {
            limits,
            wall: Arc::clone(&env.wall),
            table: Mutex::default(),
            noted: Notify::new(),
            room: Arc::new(Semaphore::new(limits.queue_bytes.div_ceil(ROOM_UNIT).max(1))),
            queue,
            health: watch::Sender::new(Health::Starting),
            events: Notify::new(),
        };
        let ingest = Ingest(Arc::new(shared));
        (ingest.clone(), Writer::new(ingest, sink, offers).run())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every stream of every node as memory has it, by node, stream and epoch.
    #[must_use]
    pub fn live(&self) -> Vec<StreamState> {
        self.table().states()
    }

    /// Returns when records of stream [`event::STREAM`] became durable since this returned last; for one who
    /// follows them. Cancel safe.
    pub async fn events(&self) {
        self.0.events.notified().await;
    }

    /// How the sink is.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.health.subscribe()
    }

    /// A lane of a session was opened. Sessions of a node are numbered; a newer one has a greater number,
    /// and with its first lane whatever the node does not hold any more is over.
    ///
    /// # Errors
    /// When a newer session is there, or what the node says breaks a bound.
    pub async fn opened(
        &self,
        session: u64,
        node: &Name,
        site: &Name,
        lane: Lane,
        held: &[Held],
    ) -> Result<Opened, IngestError> {
        let _ = self.health().wait_for(|_| self.table().is_loaded()).await; // the sender lives in `self`
        let (marks, changed, seen, lease) = {
            let mut table = self.table();
            let lease = table.lease(session, node)?;
            let marks = table.open(session, node, site, held, self.0.wall.now())?;
            (marks, table.follow(node), table.commits(), lease)
        };
        self.0.noted.notify_one();
        let refused = Arc::new(watch::Sender::new(None));
        let acks = Acks { ingest: self.clone(), node: node.clone(), lane, seen, changed, refused: refused.subscribe() };
        let offers =
            Offers { ingest: self.clone(), node: node.clone(), site: site.clone(), lane, refused, _lease: lease };
        Ok(Opened { marks, offers, acks })
    }
}

/// Takes what comes on a lane.
#[derive(Debug)]
pub struct Offers {
    ingest: Ingest,
    node: Name,
    site: Name,
    lane: Lane,
    refused: Arc<watch::Sender<Option<String>>>,
    /// Counted while the lane is there.
    _lease: Arc<()>,
}

impl Offers {
    /// Waits until the queue has room for `bytes`.
    pub async fn room(&self, bytes: usize) -> Room {
        let shared = &self.ingest.0;
        let all = shared.limits.queue_bytes.div_ceil(ROOM_UNIT).max(1);
        let units = u32::try_from(Room::units(bytes).min(all)).unwrap_or(u32::MAX);
        match Arc::clone(&shared.room).acquire_many_owned(units).await {
            Ok(permit) => Room { permit },
            Err(_) => std::future::pending().await, // it is never closed
        }
    }

    /// A stream that began after the lane was opened.
    ///
    /// # Errors
    /// As [`Ingest::opened`].
    pub fn open(&self, held: &Held) -> Result<(), IngestError> {
        self.ingest.table().open_one(&self.node, &self.site, held, self.ingest.0.wall.now())?;
        self.ingest.0.noted.notify_one();
        Ok(())
    }

    /// Records, in the room that was made for them.
    ///
    /// # Errors
    /// When the stream was not opened, or its numbers are out of bounds.
    pub fn batch(&self, mut room: Room, stream: &Name, batch: Batch, sealed: Bytes) -> Result<(), IngestError> {
        room.shrink(sealed.len() + batch.bytes() + batch.records.len() * size_of::<proto::stream::batch::Record>());
        let key = StreamKey { stream: stream.clone(), epoch: batch.epoch };
        self.offer(room, key, What::Batch { batch, sealed })
    }

    /// Records that will never come.
    ///
    /// # Errors
    /// As [`Offers::batch`].
    pub async fn gap(&self, gap: Gap) -> Result<(), IngestError> {
        if gap.count == 0 {
            return Err(IngestError::Malformed(format!("a gap of {} has no records", gap.key)));
        }
        let room = self.room(0).await;
        self.offer(room, gap.key.clone(), What::Gap(gap))
    }

    /// How far streams are behind.
    ///
    /// # Errors
    /// When its numbers are out of bounds.
    pub fn lag(&self, lags: &[Lag]) -> Result<(), IngestError> {
        if self.ingest.table().lag(&self.node, lags, self.ingest.0.wall.now())? {
            self.ingest.0.noted.notify_one();
        }
        Ok(())
    }

    fn offer(&self, room: Room, key: StreamKey, what: What) -> Result<(), IngestError> {
        let (node, site, refused) = (self.node.clone(), self.site.clone(), Arc::clone(&self.refused));
        let offer = Offer { node, site, lane: self.lane, key, what, refused, room };
        if offer.range().end > MAX_NUMBER {
            return Err(IngestError::Malformed(format!("{} has a sequence beyond {MAX_NUMBER}", offer.key)));
        }
        if !self.ingest.table().take(&self.node, &offer.key) {
            return Err(IngestError::Malformed(format!("{} was not opened on this lane", offer.key)));
        }
        let _ = self.ingest.0.queue.send(offer); // without a writer nothing is ever acknowledged, and that is right
        Ok(())
    }
}

/// Tells what became durable of what a lane offered.
pub struct Acks {
    ingest: Ingest,
    node: Name,
    lane: Lane,
    seen: u64,
    changed: watch::Receiver<()>,
    refused: watch::Receiver<Option<String>>,
}

impl fmt::Debug for Acks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Acks({}, {:?})", self.node, self.lane)
    }
}

impl Acks {
    /// The marks of streams of which something became durable since this was asked last. Cancel safe.
    ///
    /// # Errors
    /// When the writer refused what the lane offered.
    pub async fn next(&mut self) -> Result<Vec<Mark>, IngestError> {
        loop {
            if let Some(why) = self.refused.borrow_and_update().clone() {
                return Err(IngestError::Malformed(why));
            }
            self.changed.mark_unchanged();
            let (marks, seen) = self.ingest.table().acked_since(&self.node, self.lane, self.seen);
            self.seen = seen;
            if !marks.is_empty() {
                return Ok(marks);
            }
            let ended = tokio::select! {
                biased;
                changed = self.refused.changed() => changed,
                changed = self.changed.changed() => changed,
            };
            if ended.is_err() {
                return Err(IngestError::Replaced); // the table forgot the node
            }
        }
    }
}
