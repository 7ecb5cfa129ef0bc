//! The same load for Crossdock and its peers: who sent what, what was acknowledged, what arrived.
//!
//! Every record has a number, used once: a record whose answer was lost is not sent again, another takes
//! its place. So what is there twice was made twice by what is measured, not by its producer.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use cloudcore::stage::PATIENCE;
use proto::{
    env::{Env, Seed},
    watch,
};
use tokio::time::Instant;

use crate::produce::{
    door::{Connection, Door, Failed},
    scan::{Scans, number_in},
};

/// Name of the bench in every scan's `id`.
const PRODUCER: &str = "bench";
/// Wait after an offer that failed.
const AGAIN: Duration = Duration::from_millis(20);

/// Where records are offered.
pub trait Target: Sync {
    /// A connection to it.
    type Link: Link;
    /// Connects.
    fn connect(&self) -> impl Future<Output = Result<Self::Link, Failed>> + Send;
}

/// A connection that takes one offer at a time.
pub trait Link: Send {
    /// As [`Connection::offer`].
    fn offer(&mut self, records: &[Bytes]) -> impl Future<Output = Result<(), Failed>> + Send;
}

impl Target for Door {
    type Link = Connection;
    async fn connect(&self) -> Result<Connection, Failed> {
        Door::connect(self).await
    }
}

impl Link for Connection {
    async fn offer(&mut self, records: &[Bytes]) -> Result<(), Failed> {
        Connection::offer(self, records).await
    }
}

/// The shape of a load.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Connections to each target.
    pub connections: usize,
    /// Records of an offer.
    pub batch: usize,
    /// Bytes of a record.
    pub bytes: usize,
}

/// What was sent and acknowledged.
#[derive(Debug, Default)]
pub struct Ledger {
    next: AtomicU64,
    left: Mutex<u64>,
    acknowledged: Mutex<Vec<(u64, u64)>>,
    count: watch::Sender<u64>,
    unanswered: AtomicU64,
    pushed_back: AtomicU64,
}

/// What became of the records that were acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged, and not there.
    pub lost: u64,
    /// There more than once: copies beyond the first.
    pub duplicated: u64,
    /// There once or more.
    pub present: u64,
}

impl Ledger {
    /// How many are acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        *self.count.borrow()
    }

    /// How many were sent and never answered: they may be there or not.
    #[must_use]
    pub fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// How many offers were pushed back.
    #[must_use]
    pub fn pushed_back(&self) -> u64 {
        self.pushed_back.load(Ordering::Relaxed)
    }

    /// Waits until so many are acknowledged.
    pub async fn reached(&self, count: u64) {
        // The sender lives as long as this ledger.
        let _ = self.count.subscribe().wait_for(|acknowledged| *acknowledged >= count).await;
    }

    /// Numbers for the next offer; `None` when enough are on their way.
    fn take(&self, most: usize) -> Option<(u64, u64)> {
        let mut left = self.left.lock().ok()?;
        let count = (*left).min(most as u64);
        *left -= count;
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        (count > 0).then_some((first, first + count))
    }

    fn settle(&self, (first, end): (u64, u64), acknowledged: usize) {
        let till = (first + acknowledged as u64).min(end);
        if till > first {
            if let Ok(mut ranges) = self.acknowledged.lock() {
                ranges.push((first, till));
            }
            self.count.send_modify(|count| *count += till - first);
        }
        if let Ok(mut left) = self.left.lock() {
            *left += end - till;
        }
    }

    /// Compares with what is there.
    #[must_use]
    pub fn judge(&self, there: impl IntoIterator<Item = u64>) -> Verdict {
        let sent = self.next.load(Ordering::Relaxed);
        let mut copies = vec![0_u8; usize::try_from(sent).unwrap_or(0)];
        for number in there {
            if let Some(seen) = usize::try_from(number).ok().and_then(|at| copies.get_mut(at)) {
                *seen = seen.saturating_add(1);
            }
        }
        let at = |number: u64| usize::try_from(number).ok().and_then(|at| copies.get(at)).copied().unwrap_or(0);
        let acknowledged = self.acknowledged.lock().map(|ranges| ranges.clone()).unwrap_or_default();
        let lost = acknowledged.into_iter().flat_map(|(first, end)| first..end).filter(|n| at(*n) == 0).count();
        Verdict {
            lost: lost as u64,
            duplicated: copies.iter().map(|seen| u64::from(seen.saturating_sub(1))).sum(),
            present: copies.iter().filter(|seen| **seen > 0).count() as u64,
        }
    }
}

/// The number of a record that this bench sent, wherever it stands.
#[must_use]
pub fn number_of(text: &[u8]) -> Option<u64> {
    number_in(text, PRODUCER)
}

impl Load {
    /// Offers records to all targets at once until `records` more are acknowledged, all together.
    ///
    /// # Errors
    /// When one is refused, or nothing is taken for [`PATIENCE`].
    pub async fn run<T: Target>(&self, targets: &[T], records: u64, ledger: &Ledger) -> anyhow::Result<()> {
        match ledger.left.lock() {
            Ok(mut left) => *left = records,
            Err(_) => bail!("the ledger of an earlier load is damaged"),
        }
        let links = targets.iter().flat_map(|target| (0..self.connections).map(move |_| target));
        futures_util::future::try_join_all(links.map(|target| self.feed(target, ledger))).await.map(drop)
    }

    async fn feed<T: Target>(&self, target: &T, ledger: &Ledger) -> anyhow::Result<()> {
        let wall = Env::real().context("open the environment")?.wall;
        let (mut link, mut good) = (None, Instant::now());
        while let Some(range) = ledger.take(self.batch) {
            let mut scans = Scans::new(&Seed::from_u64(range.0), PRODUCER, 4, self.bytes);
            let now = wall.now();
            let records: Vec<Bytes> = (range.0..range.1).map(|number| scans.next(number, now)).collect();
            let offered = match &mut link {
                Some(link) => T::Link::offer(link, &records).await,
                none => match target.connect().await {
                    Ok(made) => T::Link::offer(none.insert(made), &records).await,
                    Err(failed) => Err(failed),
                },
            };
            let failed = match offered {
                Ok(()) => {
                    ledger.settle(range, records.len());
                    good = Instant::now();
                    continue;
                }
                Err(failed) => failed,
            };
            tracing::debug!(%failed, "an offer failed");
            match &failed {
                Failed::Refused(_) => return Err(failed).context("offer records"),
                Failed::NoAnswer { acknowledged, .. } => {
                    ledger.settle(range, *acknowledged);
                    ledger.unanswered.fetch_add((records.len() - acknowledged) as u64, Ordering::Relaxed);
                    link = None;
                }
                Failed::PushedBack { .. } => {
                    ledger.settle(range, 0);
                    ledger.pushed_back.fetch_add(1, Ordering::Relaxed);
                }
                Failed::Unreachable(_) => {
                    ledger.settle(range, 0);
                    link = None;
                }
            }
            if good.elapsed() > PATIENCE {
                return Err(failed).with_context(|| format!("nothing was taken for {PATIENCE:?}"));
            }
            tokio::time::sleep(AGAIN).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Shelf(Arc<Mutex<(u64, Vec<u64>)>>);

    impl Target for Shelf {
        type Link = Shelf;
        async fn connect(&self) -> Result<Shelf, Failed> {
            Ok(self.clone())
        }
    }

    impl Link for Shelf {
        /// Keeps everything but 7, which it acknowledges all the same; keeps 3 twice; now and then loses
        /// its answer after half.
        async fn offer(&mut self, records: &[Bytes]) -> Result<(), Failed> {
            let mut shelf = self.0.lock().unwrap();
            shelf.0 += 1;
            let half = shelf.0.is_multiple_of(3);
            let kept = if half { records.len() / 2 } else { records.len() };
            for number in records[..kept].iter().map(|r| number_of(r).unwrap()).filter(|n| *n != 7) {
                shelf.1.extend(std::iter::repeat_n(number, if number == 3 { 2 } else { 1 }));
            }
            match half {
                true => Err(Failed::NoAnswer { acknowledged: kept, why: "half".to_owned() }),
                false => Ok(()),
            }
        }
    }

    #[tokio::test]
    async fn losses_and_copies_are_counted() {
        let (shelf, ledger) = (Shelf::default(), Ledger::default());
        let load = Load { connections: 2, batch: 10, bytes: 0 };
        load.run(std::slice::from_ref(&shelf), 100, &ledger).await.unwrap();
        ledger.reached(100).await;
        assert_eq!(ledger.acknowledged(), 100);
        assert!(ledger.unanswered() > 0);
        let there = shelf.0.lock().unwrap().1.clone();
        assert_eq!(ledger.judge(there.clone()), Verdict { lost: 1, duplicated: 1, present: 99 });
        load.run(std::slice::from_ref(&shelf), 50, &ledger).await.unwrap();
        assert_eq!(ledger.acknowledged(), 150);
        assert_eq!(ledger.judge(there), Verdict { lost: 51, duplicated: 1, present: 99 });
    }
}
