//! What every sink must do: the same functions run against SQLite and against a real Postgres.

use std::time::Duration;

use proto::stream::{
    Class, Epoch, GapReason, StreamKey,
    batch::{Batch, Record},
};

use super::*;

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A batch of `texts`, one a second from `second` on.
pub(crate) fn batch(node: &str, stream: &str, first: u64, second: i64, texts: &[&str]) -> NewBatch {
    let record = |(i, text): (i64, &&str)| Record {
        time_ms: (second + i) * 1000,
        bytes: Bytes::copy_from_slice(text.as_bytes()),
    };
    let batch = Batch { epoch: Epoch(7), first, records: (0..).zip(texts).map(record).collect() };
    let sealed = batch.seal().unwrap().into();
    let site = name(if node == "n1" { "s1" } else { "s2" });
    NewBatch { node: name(node), site, stream: name(stream), batch, sealed, received: at(second + 100) }
}

pub(crate) fn state(node: &str, stream: &str, end: u64) -> StreamState {
    StreamState {
        node: name(node),
        site: name(if node == "n1" { "s1" } else { "s2" }),
        key: StreamKey { stream: name(stream), epoch: Epoch(7) },
        class: Class::Scans,
        durable: std::iter::once(0..end).collect(),
        reported_next: end + 2,
        lag_records: 2,
        lag_oldest: Some(at(5)),
        heard: at(9),
        ended: false,
    }
}

pub(crate) fn all(stream: &str) -> Query {
    Query { stream: name(stream), node: None, site: None, from: None, to: None, after: None, limit: 100 }
}

fn texts(page: &Page) -> Vec<String> {
    page.rows.iter().map(|r| String::from_utf8(r.bytes.to_vec()).unwrap()).collect()
}

async fn some(sink: &dyn Sink) {
    let gap = GapRow {
        node: name("n1"),
        site: name("s1"),
        stream: name("scans"),
        epoch: Epoch(7),
        first: 3,
        count: 4,
        at_least: true,
        reason: GapReason::Shed,
        noted: at(70),
    };
    let first = Commit {
        batches: vec![
            batch("n1", "scans", 0, 60, &["a0", "a1", "a2"]),
            batch("n2", "scans", 0, 119, &["b0", r#"{"b":1}"#]),
            batch("n1", "events", 0, 119, &["e0"]),
        ],
        gaps: vec![gap.clone(), GapRow { node: name("n2"), reason: GapReason::Damaged, at_least: false, ..gap }],
        states: vec![state("n1", "scans", 3), state("n2", "scans", 2), state("n1", "events", 1)],
    };
    sink.commit(&first).await.unwrap();
    let ended = StreamState { ended: true, lag_oldest: None, lag_records: 0, ..state("n1", "scans", 9) };
    let second =
        Commit { batches: vec![batch("n1", "scans", 7, 180, &["a7", "a8"])], gaps: vec![], states: vec![ended] };
    sink.commit(&second).await.unwrap();
}

/// What is committed is read back, by page and by every filter.
pub(crate) async fn keeps_and_reads(sink: &dyn Sink) {
    assert_eq!(sink.states().await.unwrap(), []);
    assert_eq!(sink.query(&all("scans")).await.unwrap(), Page::default());
    assert_eq!(sink.gaps(None, None, 9).await.unwrap(), []);
    some(sink).await;
    let ended = StreamState { ended: true, lag_oldest: None, lag_records: 0, ..state("n1", "scans", 9) };
    assert_eq!(sink.states().await.unwrap(), [state("n1", "events", 1), ended, state("n2", "scans", 2)]);

    let everything = sink.query(&all("scans")).await.unwrap();
    assert_eq!(texts(&everything), ["a0", "a1", "a2", "b0", r#"{"b":1}"#, "a7", "a8"]);
    assert_eq!(everything.next, None);
    let row = &everything.rows[5];
    assert_eq!((row.node.as_str(), row.site.as_str(), row.stream.as_str()), ("n1", "s1", "scans"));
    assert_eq!((row.epoch, row.sequence, row.time_ms), (Epoch(7), 7, 180_000));

    // Page by page it is the same, and no page says that there is more when there is none.
    for limit in 1..8 {
        let (mut query, mut rows, mut pages) = (Query { limit, ..all("scans") }, vec![], 0);
        loop {
            let page = sink.query(&query).await.unwrap();
            assert!(page.rows.len() <= limit);
            rows.extend(page.rows);
            pages += 1;
            query.after = page.next;
            if page.next.is_none() {
                break;
            }
        }
        assert_eq!((&rows, pages), (&everything.rows, 7_usize.div_ceil(limit)));
    }

    let only = |change: fn(&mut Query)| {
        let mut query = all("scans");
        change(&mut query);
        async move { texts(&sink.query(&query).await.unwrap()) }
    };
    assert_eq!(only(|q| q.node = Some(name("n2"))).await, ["b0", r#"{"b":1}"#]);
    assert_eq!(only(|q| q.site = Some(name("s1"))).await, ["a0", "a1", "a2", "a7", "a8"]);
    assert_eq!(only(|q| (q.node, q.site) = (Some(name("n1")), Some(name("s2")))).await, [""; 0]);
    assert_eq!(only(|q| q.node = Some(name("nobody"))).await, [""; 0]);
    assert_eq!(only(|q| q.stream = name("nothing")).await, [""; 0]);
    assert_eq!(only(|q| (q.from, q.to) = (Some(at(62)), Some(at(120)))).await, ["a2", "b0"]);
    assert_eq!(only(|q| (q.from, q.node) = (Some(at(62)), Some(name("n1")))).await, ["a2", "a7", "a8"]);
    assert_eq!(only(|q| q.to = Some(at(60))).await, [""; 0]);
    assert_eq!(only(|q| (q.from, q.to) = (Some(at(9000)), Some(at(9001)))).await, [""; 0]);
}

/// A tail begins at the end and sees what comes, once.
pub(crate) async fn tails(sink: &dyn Sink) {
    some(sink).await;
    let end = sink.query(&all("scans")).await.unwrap().end;
    assert!(end.is_some());
    let tail = Query { after: end, ..all("scans") };
    assert_eq!(texts(&sink.query(&tail).await.unwrap()), [""; 0]);
    let commit = |first| Commit { batches: vec![batch("n2", "scans", first, 90, &["x", "y"])], ..Commit::default() };
    sink.commit(&commit(2)).await.unwrap();
    let page = sink.query(&tail).await.unwrap();
    assert_eq!(texts(&page), ["x", "y"]);
    let tail = Query { after: page.end, ..tail };
    assert_eq!(sink.query(&tail).await.unwrap().rows, []);
    sink.commit(&commit(4)).await.unwrap();
    assert_eq!(texts(&sink.query(&tail).await.unwrap()), ["x", "y"]);
}

/// Counts by minute and site; gaps, newest first.
pub(crate) async fn counts_and_gaps(sink: &dyn Sink) {
    some(sink).await;
    let query = CountQuery { stream: name("scans"), site: None, from: None, to: None, limit: 100 };
    let plain = |counts: Vec<Count>| -> Vec<(String, i64, u64, u64)> {
        counts.iter().map(|c| (c.site.to_string(), c.minute.as_second(), c.records, c.bytes)).collect()
    };
    let of = |site: &str, minute, records, bytes| (site.to_owned(), minute, records, bytes);
    let every = [of("s1", 60, 3, 6), of("s2", 60, 1, 2), of("s2", 120, 1, 7), of("s1", 180, 2, 4)];
    assert_eq!(plain(sink.counts(&query).await.unwrap()), every);
    let limited = CountQuery { limit: 2, ..query.clone() };
    assert_eq!(plain(sink.counts(&limited).await.unwrap()), every[..2]);
    let span = CountQuery { from: Some(at(119)), to: Some(at(180)), ..query.clone() };
    assert_eq!(plain(sink.counts(&span).await.unwrap()), every[..3]);
    let site = CountQuery { site: Some(name("s2")), from: Some(at(120)), ..query };
    assert_eq!(plain(sink.counts(&site).await.unwrap()), every[2..3]);
    // The same minute again adds up.
    let again = Commit { batches: vec![batch("n1", "scans", 30, 60, &["12345"])], ..Commit::default() };
    sink.commit(&again).await.unwrap();
    let first = CountQuery { stream: name("scans"), site: None, from: None, to: Some(at(61)), limit: 1 };
    assert_eq!(plain(sink.counts(&first).await.unwrap()), [of("s1", 60, 4, 11)]);

    let gaps = sink.gaps(None, None, 9).await.unwrap();
    assert_eq!(
        gaps.iter().map(|g| (g.node.as_str(), g.reason)).collect::<Vec<_>>(),
        [("n2", GapReason::Damaged), ("n1", GapReason::Shed)]
    );
    assert_eq!((gaps[1].first, gaps[1].count, gaps[1].at_least, gaps[1].noted), (3, 4, true, at(70)));
    assert_eq!(sink.gaps(Some(&name("n1")), None, 9).await.unwrap(), gaps[1..]);
    assert_eq!(sink.gaps(None, Some(&name("events")), 9).await.unwrap(), []);
    assert_eq!(sink.gaps(None, None, 1).await.unwrap(), gaps[..1]);
}

/// A commit that fails leaves nothing behind, and the next one is taken.
pub(crate) async fn all_or_nothing(sink: &dyn Sink) {
    some(sink).await;
    let (states, page) = (sink.states().await.unwrap(), sink.query(&all("scans")).await.unwrap());
    let mut twice = Commit {
        batches: vec![batch("n3", "scans", 0, 60, &["new"]), batch("n1", "scans", 0, 60, &["a0 again"])],
        gaps: sink.gaps(None, None, 9).await.unwrap(),
        states: vec![state("n3", "scans", 1)],
    };
    sink.commit(&twice).await.unwrap_err();
    // A server may need a moment to notice that the connection of the failed one is gone.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let after = loop {
        match sink.states().await {
            Ok(after) => break after,
            Err(error) => {
                let waits = matches!(error, SinkError::Unavailable(_)) && tokio::time::Instant::now() < deadline;
                assert!(waits, "{error}");
                tokio::time::sleep(Duration::from_millis(50)).await; // one try to the next
            }
        }
    };
    assert_eq!(after, states);
    assert_eq!(sink.query(&all("scans")).await.unwrap(), page);
    assert_eq!(sink.gaps(None, None, 9).await.unwrap().len(), 2);
    twice.batches.pop();
    sink.commit(&twice).await.unwrap();
    assert_eq!(sink.query(&all("scans")).await.unwrap().rows.len(), page.rows.len() + 1);
}

/// What is old goes; marks, counts and gaps stay, and places are not given again.
pub(crate) async fn retains(sink: &dyn Sink) {
    some(sink).await;
    assert_eq!(sink.prune(at(0)).await.unwrap(), 0);
    let states = sink.states().await.unwrap();
    // Received at 160, 219, 219 and 280.
    assert_eq!(sink.prune(at(200)).await.unwrap(), 3);
    assert_eq!(texts(&sink.query(&all("scans")).await.unwrap()), ["b0", r#"{"b":1}"#, "a7", "a8"]);
    assert_eq!(sink.prune(at(1000)).await.unwrap(), 5);
    let page = sink.query(&all("scans")).await.unwrap();
    assert_eq!((page.rows, page.next), (vec![], None));
    assert!(page.end.is_some());
    assert_eq!(sink.states().await.unwrap(), states);
    assert_eq!(sink.gaps(None, None, 9).await.unwrap().len(), 2);
    let counts = CountQuery { stream: name("scans"), site: None, from: None, to: None, limit: 100 };
    assert_eq!(sink.counts(&counts).await.unwrap().len(), 4);
    // A tail that stood at the end goes on.
    let commit = Commit { batches: vec![batch("n1", "scans", 9, 60, &["z"])], ..Commit::default() };
    sink.commit(&commit).await.unwrap();
    assert_eq!(texts(&sink.query(&Query { after: page.end, ..all("scans") }).await.unwrap()), ["z"]);
}
