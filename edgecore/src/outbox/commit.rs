//! The one task that writes: it gathers what waits, commits it together, then answers. It mends, sheds
//! and shrinks in between.
//!
//! ```text
//! gather -> plan space -> shed? -> one transaction (deletes, then appends) -> publish -> answer -> shrink?
//!                                     | full: flush, drop the ballast, shed, then refuse
//!                                     | damaged: salvage, new epoch, once more
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    io::Write as _,
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

use super::{
    Appended, OutboxConfig, OutboxState, Shared,
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
/// What is shed at least when the disk is full.
const SHED_BYTES: u64 = 1 << 20;
/// The ballast is taken up when the disk has so many times its size left.
const PLENTY: u64 = 4;

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
        for order in turn.orders {
            self.obey(order, now);
        }
        if !turn.appends.is_empty() || !self.deletions.is_empty() {
            let answers = self.write(&turn.appends, now);
            self.publish();
            while let Some(done) = self.deletions.pop_front_if(|deletion| deletion.ranges.is_empty()) {
                let _ = done.answer.send(Ok(()));
            }
            for (append, answer) in turn.appends.into_iter().zip(answers) {
                drop(append.permit);
                let _ = append.answer.send(answer); // whoever asked may have gone
            }
        }
        if let Err(error) = self.rest(turn.idle) {
            if error.is_damage() {
                let _ = self.mend(error, now); // it is in the state now
            } else {
                tracing::debug!(error = &error as &dyn std::error::Error, "the outbox does not shrink now");
            }
        }
        self.publish();
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

    /// A log that is flushed begins anew without growing.
    fn flush(&mut self) {
        let reader = lock(&self.shared.reader);
        if let Some(Err(error)) = self.store.as_ref().map(Store::checkpoint) {
            tracing::debug!(error = &error as &dyn std::error::Error, "the log is not flushed on a full disk");
        }
        drop(reader);
    }

    /// Does something with the ballast let go, in pages that the file has: what the log takes of the disk
    /// meanwhile it gives back when it is flushed, and the ballast is whole again.
    fn on_ballast<T>(&mut self, work: impl FnOnce(&mut Core) -> T) -> T {
        let _ = fs::remove_file(&self.files.ballast); // if there is none, nothing is gained
        self.flush();
        self.store.iter().for_each(|store| store.may_grow(false));
        let done = work(self);
        self.store.iter().for_each(|store| store.may_grow(true));
        self.flush();
        self.hold_ballast(false);
        done
    }

    /// On a full disk too, logs give way, then metrics.
    fn shed_for(&mut self, keenest: Option<Class>, bytes: u64) {
        let Some(store) = &mut self.store else { return };
        let Some(keenest) = keenest else { return };
        let wanted = bytes.max(SHED_BYTES);
        let logs = store.shed(Class::Logs, wanted).unwrap_or(0);
        if keenest < Class::Logs && logs < wanted {
            let _ = store.shed(Class::Metrics, wanted - logs); // what it freed shows in the next attempt
        }
        self.flush(); // the log begins anew with all of the room
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

    /// Gives pages back, a little a turn; flushes the log when nothing else is to be done.
    fn rest(&mut self, idle: bool) -> Result<(), OutboxError> {
        let Some(store) = &self.store else {
            self.shrinking = false;
            return Ok(());
        };
        let used = store.space(self.full)?;
        self.full = space::still_full(self.limits, used);
        let pages = space::vacuum_pages(used, self.shrinking);
        self.shrinking = false;
        if pages > 0 {
            store.vacuum(pages)?;
            self.shrinking = true;
            self.unsettled = true;
        }
        let log = fs::metadata(store::with_suffix(&self.files.db, "-wal")).map_or(0, |m| m.len());
        if idle || log > self.limits.wal_bytes.saturating_mul(2) {
            let reader = lock(&self.shared.reader); // nobody reads, so all of the log can go
            store.checkpoint()?;
            drop(reader);
        }
        if idle {
            self.unsettled = false;
            self.limits = self.files.limits(&self.config);
            self.hold_ballast(true);
        }
        Ok(())
    }

    /// Takes the ballast up: when the disk has plenty, or of what is left.
    fn hold_ballast(&self, only_of_plenty: bool) {
        let free = rustix::fs::statvfs(&self.files.folder).map_or(0, |d| d.f_bavail.saturating_mul(d.f_frsize));
        let wanted = self.limits.ballast_bytes();
        let held = fs::metadata(&self.files.ballast).is_ok_and(|m| m.len() == wanted);
        if held || only_of_plenty && free < wanted * PLENTY {
            return;
        }
        let written = fs::File::create(&self.files.ballast).and_then(|mut file| {
            // Not zeros: some file systems keep none of those.
            let page: Vec<u8> = (0..4096_u32).map(|i| ((i * 31) >> 3) as u8).collect();
            (0..wanted.min(free) / 4096).try_for_each(|_| file.write_all(&page))?;
            file.sync_all()
        });
        if let Err(error) = written {
            tracing::debug!(error = &error as &dyn std::error::Error, "no ballast could be taken up");
        }
    }

    fn publish(&mut self) {
        let Some(store) = &self.store else {
            let problem = self.failing.as_ref().map(chain);
            self.shared.state.send_if_modified(|state| {
                let changed = state.problem != problem;
                state.problem = problem;
                changed
            });
            return;
        };
        let streams = store.streams();
        let mut shed_records: BTreeMap<Name, u64> = BTreeMap::new();
        for stream in streams.iter().filter(|s| s.shed > 0) {
            *shed_records.entry(stream.key.stream.clone()).or_default() += stream.shed;
        }
        let problems: Vec<String> = self.failing.as_ref().map(chain).into_iter().chain(self.found.clone()).collect();
        let new = OutboxState {
            bytes: self.files.bytes(),
            quota_bytes: self.limits.total_bytes,
            records: streams.iter().map(|s| s.records).sum(),
            shed_records,
            damaged_records: streams.iter().map(|s| s.damaged).sum(),
            problem: (!problems.is_empty()).then(|| problems.join("; ")),
            full: self.full || self.disk_full,
        };
        show(&self.shared, streams);
        self.shared.state.send_if_modified(|state| {
            let changed = *state != new;
            *state = new;
            changed
        });
    }
}

/// Shows the streams to readers, but for one whose records are still moving in.
fn show(shared: &Shared, streams: &[StreamRow]) {
    let arriving = |s: &StreamRow| streams.iter().any(|from| from.moves.is_some_and(|(to, _)| to == s.id));
    let new: Vec<StreamRow> = streams.iter().filter(|s| !arriving(s)).cloned().collect();
    let mut shown = lock(&shared.streams);
    if *shown != new {
        *shown = new;
        drop(shown);
        shared.changed.send_modify(|count| *count += 1);
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

/// An error with what it comes from.
fn chain(error: &OutboxError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
