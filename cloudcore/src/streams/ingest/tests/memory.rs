//! A sink in memory that fails on demand: the model that the writer is tested against.

use std::{collections::VecDeque, sync::atomic::AtomicUsize, sync::atomic::Ordering};

use jiff::Timestamp;
use proto::env::BoxFuture;

use super::{
    super::super::sink::{Commit, Count, CountQuery, GapRow, Page, Query, SinkError},
    *,
};

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Done, and answered.
    None,
    /// Not done.
    Unavailable,
    /// Not done, and nobody knows.
    LostUndone,
    /// Done, and nobody knows.
    LostDone,
    /// Done after a while, then answered.
    Slow,
    /// Done, then answered after a while.
    SlowAnswer,
}

#[derive(Debug, Default)]
pub(super) struct Memory {
    kept: Mutex<Kept>,
    always: Mutex<Option<Fault>>,
    next: Mutex<VecDeque<Fault>>,
    commits: AtomicUsize,
}

#[derive(Debug, Default)]
struct Kept {
    states: BTreeMap<(Name, StreamKey), StreamState>,
    records: BTreeMap<(Name, StreamKey, u64), Bytes>,
    gaps: Vec<GapRow>,
}

impl Kept {
    fn take(&mut self, commit: &Commit) {
        for new in &commit.batches {
            assert_eq!(Batch::open(&new.sealed).unwrap(), new.batch, "sealed is not what is in it");
            let key = StreamKey { stream: new.stream.clone(), epoch: new.batch.epoch };
            for (sequence, record) in (new.batch.first..).zip(&new.batch.records) {
                let id = (new.node.clone(), key.clone(), sequence);
                assert!(self.records.insert(id, record.bytes.clone()).is_none(), "{sequence} is kept twice");
            }
        }
        self.gaps.extend(commit.gaps.iter().cloned());
        for state in &commit.states {
            self.states.insert((state.node.clone(), state.key.clone()), state.clone());
        }
    }
}

impl Memory {
    /// Every call fails this way.
    pub(super) fn always(&self, fault: Option<Fault>) {
        *self.always.lock().unwrap() = fault;
    }

    /// The next calls fail this way.
    pub(super) fn then(&self, fault: Fault) {
        self.next.lock().unwrap().push_back(fault);
    }

    pub(super) fn heal(&self) {
        self.next.lock().unwrap().clear();
    }

    pub(super) fn commits(&self) -> usize {
        self.commits.load(Ordering::Relaxed)
    }

    pub(super) fn sequences(&self, node: &str, epoch: u64) -> Vec<u64> {
        let kept = self.kept.lock().unwrap();
        kept.records.keys().filter(|(n, k, _)| n.as_str() == node && *k == key(epoch)).map(|(_, _, s)| *s).collect()
    }

    pub(super) fn holds(&self, node: &str, epoch: u64, sequence: u64) -> bool {
        let kept = self.kept.lock().unwrap();
        let found = kept.records.get(&(name(node), key(epoch), sequence));
        found.is_some_and(|bytes| *bytes == text(sequence).as_bytes())
    }

    fn fault(&self) -> Fault {
        let next = self.next.lock().unwrap().pop_front();
        self.always.lock().unwrap().or(next).unwrap_or(Fault::None)
    }
}

const WHILE: Duration = Duration::from_millis(700);

impl Sink for Memory {
    fn describe(&self) -> String {
        "memory".into()
    }

    fn states(&self) -> BoxFuture<'_, Result<Vec<StreamState>, SinkError>> {
        Box::pin(async {
            match *self.always.lock().unwrap() {
                Some(_) => Err(SinkError::Unavailable("on purpose".into())),
                None => Ok(self.kept.lock().unwrap().states.values().cloned().collect()),
            }
        })
    }

    fn commit(&self, commit: &Commit) -> BoxFuture<'_, Result<(), SinkError>> {
        let commit = commit.clone();
        Box::pin(async move {
            self.commits.fetch_add(1, Ordering::Relaxed);
            let take = || self.kept.lock().unwrap().take(&commit);
            match self.fault() {
                Fault::None => take(),
                Fault::Unavailable => return Err(SinkError::Unavailable("on purpose".into())),
                Fault::LostUndone => return Err(SinkError::Unknown("on purpose".into())),
                Fault::LostDone => {
                    take();
                    return Err(SinkError::Unknown("on purpose".into()));
                }
                Fault::Slow => {
                    tokio::time::sleep(WHILE).await;
                    take();
                }
                Fault::SlowAnswer => {
                    take();
                    tokio::time::sleep(WHILE).await;
                }
            }
            Ok(())
        })
    }

    fn query(&self, _: &Query) -> BoxFuture<'_, Result<Page, SinkError>> {
        Box::pin(async { Ok(Page::default()) })
    }

    fn counts(&self, _: &CountQuery) -> BoxFuture<'_, Result<Vec<Count>, SinkError>> {
        Box::pin(async { Ok(vec![]) })
    }

    fn gaps(&self, _: Option<&Name>, _: Option<&Name>, _: usize) -> BoxFuture<'_, Result<Vec<GapRow>, SinkError>> {
        Box::pin(async { Ok(self.kept.lock().unwrap().gaps.iter().rev().cloned().collect()) })
    }

    fn prune(&self, _: Timestamp) -> BoxFuture<'_, Result<u64, SinkError>> {
        Box::pin(async { Ok(0) })
    }
}
