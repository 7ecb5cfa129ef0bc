//! The one task that writes: it gathers what waits, commits it together, then answers. It mends, sheds
//! and shrinks in between.
//!
//! ```text
//! gather -> plan space -> shed? -> one transaction (deletes, then appends) -> publish -> answer -> shrink?
//!                                     | full: flush, drop the ballast, shed, then refuse
//!                                     | damaged: salvage, new epoch, once more
//! ```
//!
//! Here are the loop and the transaction; `room` is about the disk: ballast, shedding, pages given back; `told`
//! about what readers and the agent hear of it.

mod room;
mod told;

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use proto::{
    env::Env,
    name::Name,
    stream::{Class, StreamKey, batch::Record, ranges::Range},
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::{Instant, sleep_until},
};

use self::told::show;
use super::{
    Appended, OutboxConfig, Shared,
    db::{self, StreamRow},
    edit,
    epoch::Draw,
    error::{AppendError, OutboxError},
    lock,
    space::{self, Limits},
    store::{self, Files, Store, current},
};

/// Appends of one transaction, and their bytes.
const GROUP_APPENDS: usize = 512;
const GROUP_BYTES: u64 = 1 << 20;
/// Orders of one turn.
const GROUP_ORDERS: usize = 64;
/// Rows that deletions take out in one transaction.
const DELETE_ROWS: usize = 4096;
/// After so long without work the log is flushed.
const IDLE: Duration = Duration::from_secs(1);
/// Between attempts to open a database that failed.
const RETRY: Duration = Duration::from_secs(5);

type Answer<T> = oneshot::Sender<Result<T, OutboxError>>;

/// Records that wait for the disk.
#[derive(Debug)]
pub(super) struct Append {
    pub stream: Name,
    pub class: Class,
    pub records: Vec<Record>,
    pub bytes: u64,
    /// Its share of the queue, until it is answered.
    pub permit: OwnedSemaphorePermit,
    pub answer: oneshot::Sender<Result<Appended, AppendError>>,
}

/// Everything else that the writer is asked for.
#[derive(Debug)]
pub(super) enum Order {
    Delete {
        key: StreamKey,
        ranges: Vec<Range>,
        answer: Answer<()>,
    },
    Renew {
        key: StreamKey,
        answer: Answer<StreamKey>,
    },
    /// A reader met a damaged row at or before `sequence`.
    Damaged {
        key: StreamKey,
        sequence: u64,
        answer: Answer<()>,
    },
    /// A reader met a damaged database, of the `generation` that it had opened.
    Mend {
        generation: u64,
        error: OutboxError,
        answer: Answer<()>,
    },
}

#[derive(Debug, Default)]
struct Turn {
    appends: Vec<Append>,
    orders: Vec<Order>,
    idle: bool,
}

#[derive(Debug)]
struct Deletion {
    key: StreamKey,
    ranges: Vec<Range>,
    answer: Answer<()>,
}

/// The loop. It ends with the outbox's last handle, which aborts it; a turn under way then still ends whole.
pub(super) async fn run(
    mut core: Core,
    env: Env,
    mut appends: mpsc::Receiver<Append>,
    mut orders: mpsc::Receiver<Order>,
) {
    let mut idle_at = Instant::now() + IDLE;
    loop {
        let mut turn = Turn::default();
        // Every arm may be dropped unfinished: receiving loses nothing, the others only wait.
        tokio::select! { biased;
            Some(order) = orders.recv() => turn.orders.push(order),
            append = appends.recv() => match append {
                Some(append) => turn.appends.push(append),
                None => return,
            },
            () = std::future::ready(()), if core.has_more() => {}
            () = sleep_until(idle_at), if core.unsettled => turn.idle = true,
        }
        tokio::task::yield_now().await; // who is about to ask joins this turn
        while turn.orders.len() < GROUP_ORDERS
            && let Ok(order) = orders.try_recv()
        {
            turn.orders.push(order);
        }
        let mut bytes = turn.appends.iter().map(|append| append.bytes).sum::<u64>();
        while turn.appends.len() < GROUP_APPENDS
            && bytes < GROUP_BYTES
            && let Ok(append) = appends.try_recv()
        {
            bytes += append.bytes;
            turn.appends.push(append);
        }
        let now = Instant::now();
        core = env
            .blocking
            .run(move || {
                core.turn(turn, now);
                core
            })
            .await;
        idle_at = Instant::now() + IDLE;
    }
}

/// What the task owns.
#[derive(Debug)]
pub(super) struct Core {
    files: Files,
    config: OutboxConfig,
    env: Env,
    /// Closed before anybody hears that the outbox is: fields are dropped in order.
    store: Option<Store>,
    shared: Arc<Shared>,
    limits: Limits,
    /// What waits to be deleted, in order.
    deletions: VecDeque<Deletion>,
    /// Refused for the quota, or for want of disk.
    full: bool,
    disk_full: bool,
    shrinking: bool,
    /// Something was written since the log was flushed.
    unsettled: bool,
    /// The database failed; the next to be opened is not trusted.
    distrusted: bool,
    retry_at: Option<Instant>,
    /// What was found at the start or when mending, and what fails now.
    found: Option<String>,
    failing: Option<OutboxError>,
}

impl Core {
    pub(super) fn new(files: Files, config: OutboxConfig, env: Env, shared: Arc<Shared>) -> Core {
        Core {
            limits: Limits::new(config.quota_bytes, config.disk_share_percent, None),
            files,
            config,
            env,
            shared,
            store: None,
            deletions: VecDeque::new(),
            full: false,
            disk_full: false,
            shrinking: false,
            unsettled: true,
            distrusted: false,
            retry_at: None,
            found: None,
            failing: None,
        }
    }

    fn draw(&self) -> Draw {
        Draw { now: self.env.wall.now(), seed: self.env.seed.clone() }
    }

    /// Opens the database anew; `distrusted` after it failed.
    pub(super) fn open(&mut self, distrusted: bool) -> Result<(), OutboxError> {
        self.distrusted |= distrusted;
        self.store = None;
        *lock(&self.shared.reader) = None;
        let attempt = |core: &Core| {
            let opened = store::open(&core.files, &core.config, &core.draw(), core.distrusted)?;
            Ok::<_, OutboxError>((opened, db::open_reader(&core.files.db)?))
        };
        let (opened, reader) = match attempt(self) {
            Err(error) if error.is_full() => {
                let _ = fs::remove_file(&self.files.ballast); // if there is none, nothing is gained
                attempt(self)?
            }
            // A look at it found nothing, and then it failed after all.
            Err(error) if error.is_damage() && !self.distrusted => {
                self.distrusted = true;
                attempt(self)?
            }
            opened => opened?,
        };
        self.limits = self.files.limits(&self.config);
        self.found = opened.problem.or(self.found.take());
        self.store = Some(opened.store);
        (self.distrusted, self.failing, self.retry_at) = (false, None, None);
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        self.publish();
        *lock(&self.shared.reader) = Some(reader);
        Ok(())
    }

    /// Whether there is work that nobody has to ask for.
    fn has_more(&self) -> bool {
        !self.deletions.is_empty() || self.shrinking
    }

    fn store(&mut self) -> Result<&mut Store, OutboxError> {
        self.store.as_mut().ok_or_else(|| self.failing.clone().unwrap_or(OutboxError::Closed))
    }

    /// One turn of the loop.
    fn turn(&mut self, turn: Turn, now: Instant) {
        if self.store.is_none() && self.retry_at.is_none_or(|at| at <= now) {
            self.retry(now);
        }
        let mut told = false;
        for order in turn.orders {
            self.obey(order, now);
        }
        if !turn.appends.is_empty() || !self.deletions.is_empty() {
            let answers = self.write(&turn.appends, now);
            self.publish();
            told = true;
            while let Some(done) = self.deletions.pop_front_if(|deletion| deletion.ranges.is_empty()) {
                let _ = done.answer.send(Ok(()));
            }
            for (append, answer) in turn.appends.into_iter().zip(answers) {
                drop(append.permit);
                let _ = append.answer.send(answer); // whoever asked may have gone
            }
        }
        match self.rest(turn.idle) {
            Ok(changed) => told &= !changed,
            Err(error) => {
                told = false;
                if error.is_damage() {
                    let _ = self.mend(error, now); // it is in the state now
                } else {
                    tracing::debug!(error = &error as &dyn std::error::Error, "the outbox does not shrink now");
                }
            }
        }
        if !told {
            self.publish();
        }
    }

    fn obey(&mut self, order: Order, now: Instant) {
        match order {
            Order::Delete { key, ranges, answer } => self.deletions.push_back(Deletion { key, ranges, answer }),
            Order::Renew { key, answer } => {
                let draw = self.draw();
                let shared = Arc::clone(&self.shared);
                let renewed = self.store().and_then(|s| s.renew(&key, &draw, |streams| show(&shared, streams)));
                self.publish();
                let _ = answer.send(renewed);
            }
            Order::Damaged { key, sequence, answer } => {
                let done = self.store().and_then(|store| {
                    store.transact(|connection, streams| {
                        let Some(stream) = streams.iter_mut().find(|s| s.key == key) else { return Ok(()) };
                        match db::at_or_before(connection, stream.id, sequence)? {
                            Some(stored) => edit::settle(connection, stream, stored).map(drop),
                            None => Ok(()),
                        }
                    })
                });
                self.publish();
                let _ = answer.send(done);
            }
            Order::Mend { generation, error, answer } => {
                let mended = self.shared.generation.load(Ordering::SeqCst) != generation;
                let _ = answer.send(if mended { Ok(()) } else { self.mend(error, now) });
            }
        }
        self.unsettled = true;
    }

    /// Salvages a damaged database and goes on in a new epoch. Not more often than a bad disk deserves.
    fn mend(&mut self, error: OutboxError, now: Instant) -> Result<(), OutboxError> {
        tracing::error!(error = &error as &dyn std::error::Error, "the outbox is damaged");
        if self.retry_at.is_some_and(|at| at > now) {
            return Err(error);
        }
        self.distrusted = true;
        self.retry(now);
        match &self.failing {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    fn retry(&mut self, now: Instant) {
        if let Err(error) = self.open(self.distrusted) {
            self.failing = Some(error);
        }
        self.retry_at = Some(now + RETRY);
    }

    /// Writes what waits; returns an answer for each append.
    fn write(&mut self, appends: &[Append], now: Instant) -> Vec<Result<Appended, AppendError>> {
        let bytes = appends.iter().map(|append| append.bytes).sum::<u64>();
        let keenest = appends.iter().map(|append| append.class).min();
        let mut error = match self.commit(appends) {
            Ok(answers) => return answers,
            Err(error) => error,
        };
        if error.is_damage() {
            let mended = self.mend(error.clone(), now);
            error = match mended.and_then(|()| self.commit(appends)) {
                Ok(answers) => return answers,
                Err(error) => error,
            };
        }
        for round in 0..3 {
            if !error.is_full() {
                break;
            }
            let committed = match round {
                0 => {
                    self.flush();
                    self.commit(appends)
                }
                _ => self.on_ballast(|core| {
                    core.shed_for(keenest, bytes);
                    core.commit(appends)
                }),
            };
            error = match committed {
                Ok(answers) => return answers,
                Err(error) => error,
            };
        }
        if error.is_full() {
            self.disk_full = !appends.is_empty();
            // Deleting alone may fit, and makes room.
            if !self.deletions.is_empty()
                && let Err(error) = self.on_ballast(|core| core.commit(&[]))
            {
                self.fail_deletions(&error);
            }
            let refused =
                AppendError::Full { used_bytes: self.files.bytes(), limit_bytes: self.limits.total_bytes, disk: true };
            return appends.iter().map(|_| Err(refused.clone())).collect();
        }
        tracing::error!(error = &error as &dyn std::error::Error, "the outbox does not write");
        self.failing = Some(error.clone());
        self.fail_deletions(&error);
        appends.iter().map(|_| Err(AppendError::Failed(error.clone()))).collect()
    }

    fn fail_deletions(&mut self, error: &OutboxError) {
        for deletion in self.deletions.drain(..) {
            let _ = deletion.answer.send(Err(error.clone()));
        }
    }

    /// One transaction, as the space allows.
    fn commit(&mut self, appends: &[Append]) -> Result<Vec<Result<Appended, AppendError>>, OutboxError> {
        let (limits, full) = (self.limits, self.full);
        let incoming: Vec<_> = appends.iter().map(|append| (append.class, append.bytes)).collect();
        let mut ranges: Vec<(StreamKey, Vec<Range>)> =
            self.deletions.iter().map(|d| (d.key.clone(), d.ranges.clone())).collect();
        let store = self.store()?;
        let used = store.space(full)?;
        let plan = space::plan(limits, used, &incoming);
        for (class, bytes) in [(Class::Logs, plan.shed_logs_bytes), (Class::Metrics, plan.shed_metrics_bytes)] {
            if bytes > 0 {
                store.shed(class, bytes)?;
            }
        }
        let taken = || appends.iter().zip(&plan.taken).filter(|(_, taken)| **taken).map(|(append, _)| append);
        let mut given = VecDeque::new();
        if taken().next().is_some() || !ranges.is_empty() {
            given = store.transact(|connection, streams| {
                delete(connection, streams, &mut ranges)?;
                let mut together: BTreeMap<i64, Vec<Record>> = BTreeMap::new();
                let mut given = VecDeque::new();
                for append in taken() {
                    let Some(stream) = current(streams, &append.stream) else {
                        return Err(OutboxError::Damaged(format!("it has no stream {:?}", append.stream)));
                    };
                    let records = together.entry(stream.id).or_default();
                    let first = stream.next + records.len() as u64;
                    records.extend(append.records.iter().cloned());
                    given.push_back(Appended {
                        key: stream.key.clone(),
                        range: first..first + append.records.len() as u64,
                    });
                }
                for (id, records) in together {
                    if let Some(stream) = streams.iter_mut().find(|s| s.id == id) {
                        store::append(connection, stream, &records)?;
                    }
                }
                Ok(given)
            })?;
        }
        self.full = if appends.is_empty() { self.full } else { plan.full };
        self.disk_full &= given.is_empty();
        self.failing = None;
        self.unsettled = true;
        for (deletion, (_, left)) in self.deletions.iter_mut().zip(ranges) {
            deletion.ranges = left;
        }
        let refused = AppendError::Full { used_bytes: used.live_bytes, limit_bytes: limits.data_bytes(), disk: false };
        let answer = |taken: &bool| taken.then(|| given.pop_front()).flatten().ok_or_else(|| refused.clone());
        Ok(plan.taken.iter().map(answer).collect())
    }
}

/// Deletes what a transaction may; what is left stays in `deletions`.
fn delete(
    connection: &rusqlite::Connection,
    streams: &mut Vec<StreamRow>,
    deletions: &mut [(StreamKey, Vec<Range>)],
) -> Result<(), OutboxError> {
    let mut rows = 0;
    'all: for (key, ranges) in deletions {
        // A stream that is no more has nothing to delete.
        let Some(stream) = streams.iter_mut().find(|s| s.key == *key) else {
            ranges.clear();
            continue;
        };
        while let Some(range) = ranges.first_mut() {
            let done = edit::delete(connection, stream, range.clone())?;
            rows += done.rows + 1;
            match done.rest {
                Some(from) => range.start = from,
                None => drop(ranges.remove(0)),
            }
            if rows >= DELETE_ROWS {
                break 'all;
            }
        }
    }
    edit::prune(connection, streams)
}
