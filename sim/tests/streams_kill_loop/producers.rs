//! Producers that send numbered records all the time, and their books: which were sent, which acknowledged.
//!
//! A number is used once: a record whose answer was lost is given up and never sent again, so that every
//! copy of it was made by what is tested. That is what can be claimed of MQTT's QoS 1 too, which by itself
//! is at least once: a client that sends again what was not acknowledged makes copies of its own.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use sim::{
    bench::streams::load::{Ledger, Link, Load, Target, number_of},
    produce::door::Failed,
};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// One connection, so that a producer's numbers have an order.
const LOAD: Load = Load { connections: 1, batch: 8, bytes: 200 };
/// Between two offers of a producer: scanners are not endless, and debug builds not quick.
const PACE: Duration = Duration::from_millis(20);
/// Records between two looks at whether to stop.
const STRETCH: u64 = 64;

/// A record that was sent.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// Of its bytes.
    pub hash: u64,
    /// Whether its producer heard that it is taken.
    pub acknowledged: bool,
}

/// What a producer sent, by number.
#[derive(Debug, Default)]
pub struct Book {
    sent: Mutex<BTreeMap<u64, Sent>>,
    /// Offers that nobody took, because nobody listened.
    unreachable: AtomicU64,
}

impl Book {
    /// Every record that was sent, acknowledged or not.
    pub fn sent(&self) -> MutexGuard<'_, BTreeMap<u64, Sent>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers that could not even be sent.
    pub fn unreachable(&self) -> u64 {
        self.unreachable.load(Ordering::Relaxed)
    }
}

/// What tells two records apart.
pub fn hash_of(record: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    record.hash(&mut hasher);
    hasher.finish()
}

/// A producer at work.
#[derive(Debug, Clone)]
pub struct Producer {
    /// Stands in each of its records.
    pub name: String,
    /// The box that it feeds.
    pub node: String,
    /// The stream.
    pub stream: String,
    /// Gives the numbers.
    pub ledger: Arc<Ledger>,
    /// What it sent.
    pub book: Arc<Book>,
}

impl Producer {
    /// One that has sent nothing yet.
    pub fn new(node: &str, door: &str, stream: &str) -> Producer {
        let (ledger, book) = (Arc::default(), Arc::default());
        Producer { name: format!("{node}/{door}"), node: node.to_owned(), stream: stream.to_owned(), ledger, book }
    }

    /// Sends through `door` until `stop`; the last answer is waited for.
    pub async fn run(self, door: impl Target, stop: Arc<AtomicBool>) -> anyhow::Result<()> {
        let booked = [Booked { door, name: self.name.clone(), book: Arc::clone(&self.book) }];
        while !stop.load(Ordering::Relaxed) {
            LOAD.run(&booked, STRETCH, &self.ledger).await?;
        }
        Ok(())
    }
}

/// The producer and the number that a record names.
pub fn name_and_number(record: &[u8]) -> Option<(String, u64)> {
    let text = std::str::from_utf8(record).ok()?;
    let (name, _) = text.strip_prefix(r#"{"by":""#)?.split_once('"')?;
    Some((name.to_owned(), number_of(record)?))
}

/// A door, and the book of what goes through it.
struct Booked<T> {
    door: T,
    name: String,
    book: Arc<Book>,
}

struct BookedLink<L> {
    link: L,
    name: String,
    book: Arc<Book>,
    pace: Interval,
}

impl<T: Target> Target for Booked<T> {
    type Link = BookedLink<T::Link>;

    async fn connect(&self) -> Result<BookedLink<T::Link>, Failed> {
        let link = self.door.connect().await.inspect_err(|failed| self.book.count(failed))?;
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(BookedLink { link, name: self.name.clone(), book: Arc::clone(&self.book), pace })
    }
}

impl<L: Link> Link for BookedLink<L> {
    async fn offer(&mut self, scans: &[Bytes]) -> Result<(), Failed> {
        self.pace.tick().await;
        let record = |scan: &Bytes| format!(r#"{{"by":"{}","scan":{}}}"#, self.name, String::from_utf8_lossy(scan));
        let records: Vec<Bytes> = scans.iter().map(|scan| record(scan).into()).collect();
        self.book.offered(&records);
        let answer = self.link.offer(&records).await;
        self.book.answered(&records, &answer);
        answer
    }
}

impl Book {
    fn count(&self, failed: &Failed) {
        if matches!(failed, Failed::Unreachable(_)) {
            self.unreachable.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn offered(&self, records: &[Bytes]) {
        let new = records
            .iter()
            .filter_map(|record| Some((number_of(record)?, Sent { hash: hash_of(record), acknowledged: false })));
        self.sent().extend(new);
    }

    fn answered(&self, records: &[Bytes], answer: &Result<(), Failed>) {
        let acknowledged = match answer {
            Ok(()) => records.len(),
            Err(Failed::NoAnswer { acknowledged, .. }) => *acknowledged,
            // Nothing was sent, or nothing of it was taken: it must not be anywhere.
            Err(failed) => {
                self.count(failed);
                let mut sent = self.sent();
                for number in records.iter().filter_map(|record| number_of(record)) {
                    sent.remove(&number);
                }
                return;
            }
        };
        let mut sent = self.sent();
        for number in records.iter().take(acknowledged).filter_map(|record| number_of(record)) {
            if let Some(record) = sent.get_mut(&number) {
                record.acknowledged = true;
            }
        }
    }
}
