//! The outbox: records on disk until the hub has them.
//!
//! ```text
//! doors --append--> queue --group commit--> outbox.db --read--> uplink --> hub
//!                                              ^--delete-- what the hub acknowledged
//! ```
//!
//! What [`Outbox::append`] returned for is on disk and stays there until [`Outbox::delete`]. Sequences are
//! given here, by stream and epoch, from 0, without holes. What cannot stay is never dropped silently:
//! it becomes a gap that is counted, or is refused.
//!
//! | module | what it holds |
//! |---|---|
//! | [`commit`] | the one task that writes: queue, group commit, mending, shrinking |
//! | [`store`] | the database open for writing: start, transactions |
//! | [`edit`] | changes inside a transaction: delete, shed, mark damage, move |
//! | [`read`] | the next batch to send |
//! | [`db`] | schema, rows, statements |
//! | [`epoch`] | when a new epoch begins |
//! | [`salvage`] | what becomes of a damaged database |
//! | [`space`] | quota: who gives way, when the file shrinks |
//! | [`error`] | what can go wrong |
//!
//! Memory does not grow with what waits: of a stream its ends and totals are kept, everything else is
//! looked up. Records that wait for the disk are bounded by [`MAX_QUEUED_BYTES`].
//!
//! Absent on purpose: a wait for more appends before a commit. While one commit flushes the next gathers,
//! so a crowd shares transactions and a lone producer never waits for a timer.

mod commit;
mod db;
mod edit;
mod epoch;
mod error;
mod read;
mod salvage;
mod space;
mod store;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use jiff::Timestamp;
use proto::{
    env::Env,
    name::Name,
    stream::{
        Class, Gap, MAX_RECORD_BYTES, MAX_STREAMS, StreamKey,
        batch::Record,
        message::{Held, Lag},
        ranges::Range,
    },
    watch,
};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
};

pub use self::error::{AppendError, OutboxError};
use self::{
    commit::{Append, Core, Order},
    db::StreamRow,
    read::Found,
    store::{Files, is_current},
};

/// Records of one append.
pub const MAX_APPEND_RECORDS: usize = 65_536;
/// Bytes of the records of one append.
pub const MAX_APPEND_BYTES: usize = 8 << 20;
/// Bytes of records that wait for the disk.
pub const MAX_QUEUED_BYTES: usize = 16 << 20;
/// Appends that wait for the disk.
pub const MAX_QUEUED: usize = 4096;
/// What a record takes in memory besides its bytes.
const RECORD_OVERHEAD: usize = 64;
/// Other orders that wait; whoever gives one more waits too.
const MAX_ORDERS: usize = 64;
/// Streams that may be set up: the others of [`MAX_STREAMS`] are epochs that still deliver.
const MAX_CONFIGURED: usize = MAX_STREAMS / 2;

/// How an outbox is set up.
#[derive(Debug, Clone)]
pub struct OutboxConfig {
    /// Bytes that its files may take.
    pub quota_bytes: u64,
    /// And never more than this share of the disk.
    pub disk_share_percent: u8,
    /// Its streams.
    pub streams: Vec<(Name, Class)>,
}

/// Records were taken: they are on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The stream.
    pub key: StreamKey,
    /// Their sequences.
    pub range: Range,
}

/// What stands at a place of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Records.
    Batch {
        /// Sequence of the first.
        first: u64,
        /// How many.
        count: u64,
        /// The sealed batch.
        sealed: Bytes,
    },
    /// Records that will never come.
    Gap(Gap),
}

/// How the outbox is, for people and reports.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboxState {
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that they may take: the quota, or less where the disk is small.
    pub quota_bytes: u64,
    /// Records that it holds.
    pub records: u64,
    /// Records that were shed for space, by stream.
    pub shed_records: BTreeMap<Name, u64>,
    /// Records that were found damaged.
    pub damaged_records: u64,
    /// What is wrong with it.
    pub problem: Option<String>,
    /// Whether it refuses records for want of space.
    pub full: bool,
}

/// What the task that writes shows to everybody.
#[derive(Debug)]
struct Shared {
    streams: Mutex<Vec<StreamRow>>,
    /// Opened when the database is; taken away while that is mended.
    reader: Mutex<Option<Connection>>,
    /// Rises whenever the database is opened anew.
    generation: AtomicU64,
    changed: watch::Sender<u64>,
    state: watch::Sender<OutboxState>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is replaced whole, so a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Owner {
    config: OutboxConfig,
    env: Env,
    shared: Arc<Shared>,
    appends: mpsc::Sender<Append>,
    orders: mpsc::Sender<Order>,
    queued: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.task.abort(); // nobody is left who could be answered
    }
}

/// A handle on the outbox. When the last is dropped, it closes.
#[derive(Debug, Clone)]
pub struct Outbox(Arc<Owner>);

impl Outbox {
    /// Opens or makes `folder`/outbox.db. Damage never stops the agent: what is unusable is set aside, a new
    /// epoch begins, and [`OutboxState::problem`] says so.
    ///
    /// # Errors
    /// When the folder cannot be used at all (rights, a disk without any room), when a newer version wrote
    /// it, or when the configuration has too many streams.
    pub async fn open(folder: &Path, config: OutboxConfig, env: Env) -> Result<Outbox, OutboxError> {
        if config.streams.len() > MAX_CONFIGURED {
            let text = format!("{} streams are set up, the bound is {MAX_CONFIGURED}", config.streams.len());
            return Err(OutboxError::Config(text));
        }
        let shared = Arc::new(Shared {
            streams: Mutex::default(),
            reader: Mutex::default(),
            generation: AtomicU64::default(),
            changed: watch::Sender::new(0),
            state: watch::Sender::default(),
        });
        let mut core = Core::new(Files::of(folder), config.clone(), env.clone(), Arc::clone(&shared));
        let core = env.blocking.run(move || core.open(false).map(|()| core)).await?;
        let (appends, append_queue) = mpsc::channel(MAX_QUEUED);
        let (orders, order_queue) = mpsc::channel(MAX_ORDERS);
        let task = tokio::spawn(commit::run(core, env.clone(), append_queue, order_queue));
        let queued = Arc::new(Semaphore::new(MAX_QUEUED_BYTES));
        Ok(Outbox(Arc::new(Owner { config, env, shared, appends, orders, queued, task })))
    }

    /// Takes records; returns when they are durable. All or none of them; their sequences are consecutive.
    /// A call that is dropped may still take effect.
    ///
    /// # Errors
    /// Why none was taken.
    pub async fn append(&self, stream: &Name, records: Vec<Bytes>) -> Result<Appended, AppendError> {
        let owner = &*self.0;
        let Some((_, class)) = owner.config.streams.iter().find(|(name, _)| name == stream) else {
            let known = owner.config.streams.iter().map(|(name, _)| name.clone()).collect();
            return Err(AppendError::UnknownStream { stream: stream.clone(), known });
        };
        let bytes = check(&records)?;
        let weight = bytes + records.len() * RECORD_OVERHEAD;
        let weight = u32::try_from(weight.min(MAX_QUEUED_BYTES)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&owner.queued).try_acquire_many_owned(weight).map_err(|_| AppendError::Busy)?;
        let time_ms = owner.env.wall.now().as_millisecond();
        let records = records.into_iter().map(|bytes| Record { time_ms, bytes }).collect();
        let (answer, answered) = oneshot::channel();
        let append = Append { stream: stream.clone(), class: *class, records, bytes: bytes as u64, permit, answer };
        owner.appends.try_send(append).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => AppendError::Busy,
            mpsc::error::TrySendError::Closed(_) => AppendError::Failed(OutboxError::Closed),
        })?;
        answered.await.unwrap_or(Err(AppendError::Failed(OutboxError::Closed)))
    }

    /// The streams that are set up.
    #[must_use]
    pub fn streams(&self) -> &[(Name, Class)] {
        &self.0.config.streams
    }

    /// Everything that holds something, oldest epochs first, and every stream that is set up, even when it is empty.
    #[must_use]
    pub fn held(&self) -> Vec<Held> {
        let held = |s: &StreamRow| Held { key: s.key.clone(), class: s.class, first: s.first, next: s.next };
        self.shown().iter().map(held).collect()
    }

    /// How far each of [`Outbox::held`] is behind.
    #[must_use]
    pub fn lag(&self) -> Vec<Lag> {
        let lag = |s: &StreamRow| {
            let oldest = s.oldest_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
            Lag { key: s.key.clone(), next: s.next, records: s.records, oldest }
        };
        self.shown().iter().map(lag).collect()
    }

    /// The sequence with which a stream began at this start: no record from there on was ever given to a
    /// hub before it. A hub that knows more has them from a newer outbox than this; see [`Outbox::renew`].
    #[must_use]
    pub fn began(&self, key: &StreamKey) -> Option<u64> {
        lock(&self.0.shared.streams).iter().find(|s| s.key == *key).map(|s| s.began)
    }

    fn shown(&self) -> Vec<StreamRow> {
        let streams = lock(&self.0.shared.streams);
        let set_up = |s: &StreamRow| {
            is_current(&streams, s) && self.0.config.streams.iter().any(|(name, _)| *name == s.key.stream)
        };
        let (mut shown, rest): (Vec<_>, Vec<_>) = streams.iter().cloned().partition(set_up);
        let rest: Vec<_> =
            rest.into_iter().filter(|s| s.first < s.next).take(MAX_STREAMS.saturating_sub(shown.len())).collect();
        shown.splice(0..0, rest);
        shown
    }

    /// The records of `key` at `range.start` as one sealed batch within the bounds of [`proto::stream`], small
    /// neighbours merged, never beyond `range.end`; or the gap there. `None` where no record was given yet.
    ///
    /// # Errors
    /// When the disk fails. A damaged batch is no error: it becomes a gap.
    pub async fn read(&self, key: &StreamKey, range: Range) -> Result<Option<Item>, OutboxError> {
        let mut mended = false;
        loop {
            let (shared, key, range) = (Arc::clone(&self.0.shared), key.clone(), range.clone());
            let asked = (key.clone(), range.start);
            let generation = self.0.shared.generation.load(Ordering::SeqCst);
            let found = self.0.env.blocking.run(move || shared.read(&key, &range)).await;
            match found {
                Ok(Some(Found::Item(item))) => return Ok(Some(item)),
                Ok(None) => return Ok(None),
                // Each turn makes one damaged row a gap, so this comes to an end.
                Ok(Some(Found::Damaged)) => {
                    let (key, sequence) = asked;
                    self.order(|answer| Order::Damaged { key, sequence, answer }).await?;
                }
                Err(error) if error.is_damage() && !mended => {
                    mended = true;
                    self.order(|answer| Order::Mend { generation, error, answer }).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The hub has these: they may go. A large range goes in steps; returns when all of it is gone.
    ///
    /// # Errors
    /// When the disk fails. What was not deleted is acknowledged again by the hub's next mark.
    pub async fn delete(&self, key: &StreamKey, ranges: Vec<Range>) -> Result<(), OutboxError> {
        self.order(|answer| Order::Delete { key: key.clone(), ranges, answer }).await
    }

    /// The hub knows records of this stream that this outbox never gave: records taken since this start move to
    /// a new epoch, in order; returns it. Of an epoch that is over nothing moves, and the newest is returned.
    ///
    /// # Errors
    /// When the stream is not known or the disk fails. What was begun goes on at the next start.
    pub async fn renew(&self, key: &StreamKey) -> Result<StreamKey, OutboxError> {
        self.order(|answer| Order::Renew { key: key.clone(), answer }).await
    }

    async fn order<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, OutboxError>>) -> Order,
    ) -> Result<T, OutboxError> {
        let (answer, answered) = oneshot::channel();
        self.0.orders.send(order(answer)).await.map_err(|_| OutboxError::Closed)?;
        answered.await.unwrap_or(Err(OutboxError::Closed))
    }

    /// Rises with every commit: what changed is in [`Outbox::held`].
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.shared.changed.subscribe()
    }

    /// How it is.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<OutboxState> {
        self.0.shared.state.subscribe()
    }
}

/// Checks the bounds of an append; returns its bytes.
fn check(records: &[Bytes]) -> Result<usize, AppendError> {
    if records.is_empty() {
        return Err(AppendError::Empty);
    }
    if let Some((index, record)) = records.iter().enumerate().find(|(_, r)| r.len() > MAX_RECORD_BYTES) {
        return Err(AppendError::TooLarge { index, bytes: record.len() });
    }
    let bytes = records.iter().map(Bytes::len).sum();
    if records.len() > MAX_APPEND_RECORDS || bytes > MAX_APPEND_BYTES {
        return Err(AppendError::TooMany { records: records.len(), bytes });
    }
    Ok(bytes)
}

impl Shared {
    /// `None` where no record was given yet, or not under this key.
    fn read(&self, key: &StreamKey, range: &Range) -> Result<Option<Found>, OutboxError> {
        let reader = lock(&self.reader);
        let Some(connection) = &*reader else {
            return Err(OutboxError::Damaged("it is being mended".into()));
        };
        let bounds = || {
            let streams = lock(&self.streams);
            let stream = streams.iter().find(|s| s.key == *key)?;
            let range = range.start..range.end.min(stream.next);
            (range.start < range.end).then_some((stream.id, range))
        };
        let Some((id, asked)) = bounds() else { return Ok(None) };
        let found = read::read(connection, id, key, &asked)?;
        // Records that moved to another epoch meanwhile are no gap here.
        let there = bounds().is_some_and(|(now, range)| now == id && range.end >= asked.end);
        Ok(there.then_some(found))
    }
}
