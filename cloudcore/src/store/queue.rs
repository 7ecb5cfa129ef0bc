//! Group commit: changes that wait while another commits share the next transaction.
//!
//! The first to arrive leads: it drains the queue where blocking is allowed, until it is empty. A change
//! that fails is taken back alone (savepoint); when the commit fails, all of its batch fail.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use proto::env::Blocking;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{StoreError, db::Writer, ring::Ring};

/// Most changes of one transaction, so that the first of them does not wait for ever.
const MAX_BATCH: usize = 512;

/// Tells the one who waits, after the commit: `None` when it is on disk.
type Answer = Box<dyn FnOnce(Option<StoreError>) + Send>;
/// Runs in a transaction, or hears why there is none.
type Job = Box<dyn FnOnce(Result<&mut Writer<'_>, StoreError>) -> Answer + Send>;

/// Changes that wait, and the one connection that writes.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    writer: Mutex<(Connection, i64)>,
    ring: Arc<Ring>,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    led: bool,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Queue")
    }
}

impl Queue {
    /// A queue before `connection`, which stands at `revision`.
    pub(super) fn new(connection: Connection, revision: i64, ring: Arc<Ring>) -> Queue {
        Queue { waiting: Mutex::default(), writer: Mutex::new((connection, revision)), ring }
    }

    /// Adds a job; true when the caller has to lead.
    fn push(&self, job: Job) -> bool {
        let mut waiting = lock(&self.waiting);
        waiting.jobs.push_back(job);
        !std::mem::replace(&mut waiting.led, true)
    }

    fn take_batch(&self) -> Vec<Job> {
        let mut waiting = lock(&self.waiting);
        let count = waiting.jobs.len().min(MAX_BATCH);
        let batch: Vec<Job> = waiting.jobs.drain(..count).collect();
        waiting.led = !batch.is_empty();
        batch
    }

    fn drain(&self) {
        loop {
            let batch = self.take_batch();
            if batch.is_empty() {
                return;
            }
            let mut answers = Vec::with_capacity(batch.len());
            let outcome = self.commit(batch, &mut answers).err();
            answers.into_iter().for_each(|answer| answer(outcome.clone()));
        }
    }

    fn commit(&self, batch: Vec<Job>, answers: &mut Vec<Answer>) -> Result<(), StoreError> {
        let failed = StoreError::during("write");
        let mut writer = lock(&self.writer);
        let (connection, revision) = &mut *writer;
        let transaction = match connection.transaction() {
            Ok(transaction) => transaction,
            Err(error) => {
                let error = failed(error);
                answers.extend(batch.into_iter().map(|job| job(Err(error.clone()))));
                return Err(error);
            }
        };
        let mut batch_writer = Writer::new(&transaction, *revision);
        answers.extend(batch.into_iter().map(|job| job(Ok(&mut batch_writer))));
        let (wrote, newest, changes) = batch_writer.finish();
        if !wrote {
            return Ok(()); // the transaction is rolled back by its drop, nothing was written
        }
        transaction.execute("UPDATE counters SET value = ? WHERE name = 'revision'", [newest]).map_err(failed)?;
        // Known before it is visible: a reader that sees the commit may watch from its revision at once.
        self.ring.announce(newest);
        transaction.commit().map_err(failed)?;
        *revision = newest;
        self.ring.push(changes);
        Ok(())
    }
}

/// Runs `work` in the next transaction and returns once it is on disk. A dropped call may still take effect.
pub(super) async fn submit<T: Send + 'static>(
    queue: &Arc<Queue>,
    blocking: Blocking,
    work: impl FnOnce(&mut Writer<'_>) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (sender, mut receiver) = oneshot::channel();
    let job: Job = Box::new(move |writer| {
        let result = writer.and_then(|writer| alone(writer, work));
        Box::new(move |failure| {
            let _ = sender.send(failure.map_or(result, Err)); // whoever asked may have gone
        })
    });
    if queue.push(job) {
        let queue = Arc::clone(queue);
        // Once started, draining goes on by itself, so the leader leaves as soon as its own change is done.
        let drained = blocking.run(move || queue.drain());
        tokio::select! { biased;
            result = &mut receiver => return result.unwrap_or(Err(StoreError::Panicked)),
            () = drained => {}
        }
    }
    receiver.await.unwrap_or(Err(StoreError::Panicked))
}

/// Runs one change so that its failure takes back nothing but itself.
fn alone<T>(
    writer: &mut Writer<'_>,
    work: impl FnOnce(&mut Writer<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let failed = StoreError::during("write");
    writer.connection().execute_batch("SAVEPOINT change").map_err(failed)?;
    let mark = writer.mark();
    let result = catch_unwind(AssertUnwindSafe(|| work(writer))).unwrap_or(Err(StoreError::Panicked));
    if result.is_err() {
        writer.forget_after(mark);
        writer.connection().execute_batch("ROLLBACK TO change").map_err(failed)?;
    }
    writer.connection().execute_batch("RELEASE change").map_err(failed)?;
    result
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic inside is caught around each change, so what a poisoned lock guards is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
