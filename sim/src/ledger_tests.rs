//! The ledger finds what is twice, moved, made up or lost, and nothing else; with a sink of a few lines.

use std::sync::Mutex;

use cloudcore::streams::sink::{Commit, Count, CountQuery, Page};
use jiff::Timestamp;
use proto::{
    env::BoxFuture,
    stream::{Class, GapReason, StreamKey},
};

use super::*;

const EPOCH: Epoch = Epoch(7);

#[derive(Debug, Default)]
struct Shelf {
    rows: Mutex<Vec<Row>>,
    gaps: Mutex<Vec<GapRow>>,
    reads: Mutex<usize>,
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

impl Shelf {
    fn put(&self, number: u64, epoch: Epoch, sequence: u64) {
        let bytes = text(&name("box-1"), &name("scans"), number).into();
        let (node, site, stream) = (name("box-1"), name("hz-01"), name("scans"));
        self.rows.lock().unwrap().push(Row { node, site, stream, epoch, sequence, time_ms: 0, bytes });
    }

    fn gap(&self, first: u64, count: u64, at_least: bool) {
        self.gaps.lock().unwrap().push(GapRow {
            node: name("box-1"),
            site: name("hz-01"),
            stream: name("scans"),
            epoch: EPOCH,
            first,
            count,
            at_least,
            reason: GapReason::Damaged,
            noted: Timestamp::UNIX_EPOCH,
        });
    }
}

impl Sink for Shelf {
    fn describe(&self) -> String {
        "shelf".into()
    }
    fn states(&self) -> BoxFuture<'_, Result<Vec<StreamState>, SinkError>> {
        Box::pin(async { Ok(vec![]) })
    }
    fn commit(&self, _: &Commit) -> BoxFuture<'_, Result<(), SinkError>> {
        Box::pin(async { Ok(()) })
    }
    fn query(&self, query: &Query) -> BoxFuture<'_, Result<Page, SinkError>> {
        let from = query.after.map_or(0, |cursor| usize::try_from(cursor.offset).unwrap());
        let all = self.rows.lock().unwrap();
        let rows: Vec<Row> = all.iter().skip(from).take(3).cloned().collect();
        *self.reads.lock().unwrap() += rows.len();
        let at = Cursor { stored: 0, offset: (from + rows.len()) as u64 };
        let next = (from + rows.len() < all.len()).then_some(at);
        Box::pin(async move { Ok(Page { rows, next, end: Some(at) }) })
    }
    fn counts(&self, _: &CountQuery) -> BoxFuture<'_, Result<Vec<Count>, SinkError>> {
        Box::pin(async { Ok(vec![]) })
    }
    fn gaps(&self, _: Option<&Name>, _: Option<&Name>, _: usize) -> BoxFuture<'_, Result<Vec<GapRow>, SinkError>> {
        let gaps = self.gaps.lock().unwrap().clone();
        Box::pin(async { Ok(gaps) })
    }
    fn prune(&self, _: Timestamp) -> BoxFuture<'_, Result<u64, SinkError>> {
        Box::pin(async { Ok(0) })
    }
}

/// A producer that was promised `count` records, as sequences from 0 on.
fn promised(count: usize) -> Ledger {
    let mut ledger = Ledger::default();
    let (first, _) = ledger.hand_in(&name("box-1"), &name("scans"), count);
    ledger.acknowledged(&name("box-1"), &name("scans"), first, EPOCH, 0..count as u64);
    ledger
}

async fn wrong(ledger: &Ledger, shelf: &Shelf) -> String {
    match ledger.compare(shelf).await {
        Err(Discrepancy::Wrong(text)) => text,
        other => panic!("nothing was found: {other:?}"),
    }
}

#[tokio::test]
async fn what_is_stored_lost_or_missing_is_counted() {
    let (mut ledger, shelf) = (promised(10), Shelf::default());
    (0..4).for_each(|n| shelf.put(n, EPOCH, n));
    shelf.gap(4, 2, false);
    ledger.hand_in(&name("box-1"), &name("scans"), 1);
    shelf.put(10, EPOCH, 10);
    let outcome = ledger.compare(&shelf).await.unwrap();
    assert_eq!(
        outcome,
        Outcome { acknowledged: 10, stored: 4, in_gaps: 2, missing: 4, unacknowledged: 1, ..Outcome::default() }
    );
    shelf.gap(6, 1, true);
    let outcome = ledger.compare(&shelf).await.unwrap();
    assert_eq!((outcome.in_gaps, outcome.missing), (6, 0), "nobody knows how much more was lost");
}

#[tokio::test]
async fn records_twice_moved_or_of_nobody_are_found() {
    let ledger = promised(10);
    let shelf = Shelf::default();
    shelf.put(3, EPOCH, 3);
    shelf.put(4, EPOCH, 4);
    shelf.put(3, Epoch(8), 3);
    assert!(wrong(&ledger, &shelf).await.contains("record 3 of box-1/scans is in the sink twice"));
    let shelf = Shelf::default();
    shelf.put(3, EPOCH, 5);
    assert!(wrong(&ledger, &shelf).await.contains("was told 3"));
    let shelf = Shelf::default();
    shelf.put(12, EPOCH, 12);
    assert!(wrong(&ledger, &shelf).await.contains("never handed in"));
    let shelf = Shelf::default();
    shelf.put(3, Epoch(9), 0);
    shelf.put(4, Epoch(9), 0);
    assert!(wrong(&ledger, &shelf).await.contains("scans/9 0 is in the sink twice"));
    let shelf = Shelf::default();
    shelf.put(3, EPOCH, 3);
    shelf.gap(2, 2, false);
    assert!(wrong(&ledger, &shelf).await.contains("counted as lost"));
}

#[tokio::test]
async fn a_place_that_is_given_twice_is_found() {
    let mut ledger = promised(10);
    let (first, _) = ledger.hand_in(&name("box-1"), &name("scans"), 2);
    ledger.acknowledged(&name("box-1"), &name("scans"), first, EPOCH, 9..11);
    assert!(wrong(&ledger, &Shelf::default()).await.contains("gave sequence 9 of scans/7 to record 10"));
}

#[tokio::test]
async fn a_reading_goes_on_where_the_last_one_ended() {
    let (ledger, shelf, mut audit) = (promised(10), Shelf::default(), Audit::default());
    (0..7).for_each(|n| shelf.put(n, EPOCH, n));
    audit.read(&ledger, &shelf).await.unwrap();
    assert_eq!(audit.outcome(&ledger).stored, 7);
    (7..10).for_each(|n| shelf.put(n, EPOCH, n));
    audit.read(&ledger, &shelf).await.unwrap();
    assert_eq!((audit.outcome(&ledger).missing, *shelf.reads.lock().unwrap()), (0, 10));
}

#[tokio::test]
async fn a_mark_over_nothing_is_found() {
    let (ledger, shelf, mut audit) = (promised(10), Shelf::default(), Audit::default());
    (0..3).for_each(|n| shelf.put(n, EPOCH, n));
    let mut state = StreamState {
        node: name("box-1"),
        site: name("hz-01"),
        key: StreamKey { stream: name("scans"), epoch: EPOCH },
        class: Class::Scans,
        durable: std::iter::once(0..3).collect(),
        reported_next: 10,
        lag_records: 0,
        lag_oldest: None,
        heard: Timestamp::UNIX_EPOCH,
        ended: false,
    };
    audit.read(&ledger, &shelf).await.unwrap();
    assert_eq!(audit.not_kept(&ledger, std::slice::from_ref(&state)), None);
    state.durable = std::iter::once(0..5).collect();
    assert!(audit.not_kept(&ledger, std::slice::from_ref(&state)).unwrap().contains("3 to 4 of box-1/scans/7"));
    shelf.gap(3, 2, false);
    audit.read(&ledger, &shelf).await.unwrap();
    assert_eq!(audit.not_kept(&ledger, &[state]), None);
}

#[test]
fn no_mark_can_run_ahead_of_what_was_handed_in() {
    let mut ledger = promised(10);
    let (node, scans) = (name("box-1"), name("scans"));
    assert_eq!(ledger.limit(&node, &scans, EPOCH), Some(10));
    ledger.hand_in(&node, &scans, 5);
    assert_eq!(ledger.limit(&node, &scans, EPOCH), Some(15), "they may have been taken without an answer");
    assert_eq!(ledger.limit(&node, &scans, Epoch(8)), Some(15), "whatever waited may move to a new epoch");
    assert_eq!(ledger.limit(&node, &name("metrics"), EPOCH), None);
}
