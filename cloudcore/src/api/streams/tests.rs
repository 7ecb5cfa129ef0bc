//! Streams over the real API, with records in the hub's own SQLite sink.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
};

use futures_util::StreamExt as _;
use proto::{
    env::BoxFuture,
    stream::{
        Class, Epoch, GapReason, StreamKey,
        batch::{Batch, Record},
        ranges::Ranges,
    },
};
use reqwest::StatusCode;

use super::*;
use crate::{
    api::tests::Served,
    cli::streams::fetch::{Line, bookmark},
    hub::fixture::name,
    streams::sink::{Commit, Count, GapRow, NewBatch, Query as SinkQuery, Sink},
};

/// 2026-03-01T06:00:00Z
pub(crate) const SIX: i64 = 1_772_344_800_000;

/// Puts records into a sink, as the writer does.
pub(crate) struct Feed {
    sink: Arc<dyn Sink>,
    taken: BTreeMap<(String, String), Ranges>,
}

impl Feed {
    pub(crate) fn new(served: &Served) -> Feed {
        Feed { sink: Arc::clone(served.fixture.hub.streams().sink()), taken: BTreeMap::new() }
    }

    /// Goes on where another ended.
    pub(crate) fn over(sink: Arc<dyn Sink>, taken: &[(&str, &str, u64)]) -> Feed {
        let taken = taken.iter().map(|(node, stream, next)| {
            ((node.to_string(), stream.to_string()), std::iter::once(0..*next).collect::<Ranges>())
        });
        Feed { sink, taken: taken.collect() }
    }

    fn state(&self, node: &str, stream: &str) -> StreamState {
        let durable = self.taken.get(&(node.into(), stream.into())).cloned().unwrap_or_default();
        StreamState {
            node: name(node),
            site: name(site_of(node)),
            key: StreamKey { stream: name(stream), epoch: Epoch(7) },
            class: Class::Scans,
            reported_next: durable.first_missing(0) + 3,
            durable,
            lag_records: 3,
            lag_oldest: Timestamp::from_millisecond(SIX).ok(),
            heard: Timestamp::from_millisecond(SIX + 1).unwrap(),
            ended: false,
        }
    }

    /// Records in one batch, with a time each.
    pub(crate) async fn put(&mut self, node: &str, stream: &str, records: Vec<(i64, Vec<u8>)>) {
        let taken = self.taken.entry((node.into(), stream.into())).or_default();
        let first = taken.first_missing(0);
        let records: Vec<_> =
            records.into_iter().map(|(time_ms, bytes)| Record { time_ms, bytes: bytes.into() }).collect();
        let batch = Batch { epoch: Epoch(7), first, records };
        taken.insert(first..batch.end());
        let new = NewBatch {
            node: name(node),
            site: name(site_of(node)),
            stream: name(stream),
            sealed: batch.seal().unwrap().into(),
            batch,
            received: Timestamp::from_millisecond(SIX).unwrap(),
        };
        let commit = Commit { batches: vec![new], gaps: vec![], states: vec![self.state(node, stream)] };
        self.sink.commit(&commit).await.unwrap();
    }

    /// Small records, a second apart from `from_ms` on.
    pub(crate) async fn count_up(&mut self, node: &str, stream: &str, from_ms: i64, count: i64) {
        let record = |i: i64| (from_ms + i * 1000, format!(r#"{{"from":"{node}","i":{i}}}"#).into_bytes());
        self.put(node, stream, (0..count).map(record).collect()).await;
    }

    async fn lose(&mut self, node: &str, stream: &str, count: u64, reason: GapReason) {
        let taken = self.taken.entry((node.into(), stream.into())).or_default();
        let first = taken.first_missing(0);
        taken.insert(first..first + count);
        let gap = GapRow {
            node: name(node),
            site: name(site_of(node)),
            stream: name(stream),
            epoch: Epoch(7),
            first,
            count,
            at_least: reason == GapReason::OutboxLost,
            reason,
            noted: Timestamp::from_millisecond(SIX).unwrap(),
        };
        let commit = Commit { batches: vec![], gaps: vec![gap], states: vec![self.state(node, stream)] };
        self.sink.commit(&commit).await.unwrap();
    }
}

/// `a1` stands in site `a`.
fn site_of(node: &str) -> &str {
    &node[..1]
}

/// A page: its lines, its place, whether there is more.
async fn page(served: &Served, path: &str) -> (Vec<String>, Option<String>, bool) {
    let request = served.http.get(format!("{}/api/v1/streams/{path}", served.url)).bearer_auth(&served.token);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "{path}");
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let place = response.headers().get(CONTINUE).map(|v| v.to_str().unwrap().to_owned());
    let more = response.headers()[MORE] == "true";
    let lines = response.text().await.unwrap().lines().map(str::to_owned).collect();
    (lines, place, more)
}

/// Node and sequence of lines.
fn keys(lines: &[String]) -> Vec<(String, u64)> {
    let key = |line: &String| {
        let line = Line::read(line.as_bytes()).unwrap();
        (line.node.to_string(), line.sequence)
    };
    lines.iter().map(key).collect()
}

async fn value(served: &Served, path: &str) -> Value {
    let (code, value) = served.raw(Method::GET, &format!("/api/v1/{path}"), "").await;
    assert_eq!(code, StatusCode::OK, "{path}: {value}");
    value
}

#[tokio::test]
async fn pages_hold_every_record_once_in_order_also_while_records_arrive() {
    let served = Served::start().await;
    let mut feed = Feed::new(&served);
    feed.count_up("a1", "scans", SIX, 5).await;
    let writer = tokio::spawn(async move {
        for round in 0..60_i64 {
            let (node, stream) = (["a1", "a2", "b1"][round as usize % 3], ["scans", "events"][round as usize % 5 / 4]);
            feed.count_up(node, stream, SIX + round * 60_000, round * 7 % 23 + 1).await;
        }
        feed
    });
    let (mut read, mut place, mut pages) = (vec![], String::new(), 0);
    loop {
        let is_last = writer.is_finished(); // then a page without more is the end
        let path = format!("scans/records?limit=13{place}");
        let (lines, next, more) = page(&served, &path).await;
        assert!(lines.len() <= 13);
        read.extend(keys(&lines));
        place = format!("&continue={}", next.unwrap());
        pages += 1;
        if is_last && !more {
            break;
        }
    }
    let feed = writer.await.unwrap();
    for node in ["a1", "a2", "b1"] {
        let sequences: Vec<u64> = read.iter().filter(|(n, _)| n == node).map(|(_, s)| *s).collect();
        let expected: Vec<u64> = (0..feed.taken[&(node.into(), "scans".into())].first_missing(0)).collect();
        assert_eq!(sequences, expected, "{node}");
    }
    assert!(pages >= read.len() / 13);
}

#[tokio::test]
async fn large_records_make_short_pages() {
    let served = Served::start().await;
    let mut feed = Feed::new(&served);
    for i in 0..50_u8 {
        feed.put("a1", "scans", vec![(SIX, vec![i; 200 << 10])]).await;
    }
    let (mut read, mut place) = (vec![], String::new());
    let mut sizes = vec![];
    loop {
        let (lines, next, more) = page(&served, &format!("scans/records{place}")).await;
        sizes.push(lines.iter().map(String::len).sum::<usize>());
        read.extend(keys(&lines));
        place = format!("?continue={}", next.unwrap());
        if !more {
            break;
        }
    }
    assert!(sizes.len() > 1 && sizes.iter().all(|size| *size < 12 << 20), "{sizes:?}");
    assert_eq!(read.iter().map(|(_, s)| *s).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
    let (lines, ..) = page(&served, "scans/records?tail=40").await;
    let last = keys(&lines).into_iter().map(|(_, s)| s).collect::<Vec<_>>();
    assert!(last.len() < 40 && last.ends_with(&[48, 49]), "{last:?}");
}

#[tokio::test]
async fn records_are_chosen_by_node_site_and_time() {
    let served = Served::start().await;
    let mut feed = Feed::new(&served);
    for (at, node) in ["a1", "a2", "b1", "a1", "b1"].into_iter().enumerate() {
        feed.count_up(node, "scans", SIX + at as i64 * 3_600_000, 90).await;
    }
    feed.count_up("b1", "events", SIX, 5).await;
    let all: BTreeSet<(String, u64)> = keys(&page(&served, "scans/records?limit=10000").await.0).into_iter().collect();
    assert_eq!(all.len(), 450);
    for (filter, count) in [
        ("node=a1", 180),
        ("site=a", 270),
        ("site=b&node=b1", 180),
        ("site=a&node=b1", 0),
        ("node=z9", 0),
        ("from=2026-03-01T07:00:00Z", 360),
        ("to=2026-03-01T07:00:00Z", 90),
        ("from=2026-03-01T07:00:30.500Z&to=2026-03-01T08:00:10Z", 59 + 10),
        ("from=2026-03-01T08:00:30%2B01:00&site=a", 60 + 90),
        ("from=2027-03-01T07:00:00Z", 0),
    ] {
        let (lines, ..) = page(&served, &format!("scans/records?limit=10000&{filter}")).await;
        assert_eq!(lines.len(), count, "{filter}");
        assert!(keys(&lines).iter().all(|key| all.contains(key)), "{filter}");
    }
    let (lines, ..) = page(&served, "scans/records?tail=3&node=a2").await;
    assert_eq!(keys(&lines), [("a2".into(), 87), ("a2".into(), 88), ("a2".into(), 89)]);
    let (lines, ..) = page(&served, "scans/records?tail=100").await;
    let expected = (80..90).chain(90..180).map(|s| if s < 90 { ("a1".to_owned(), s + 90) } else { ("b1".into(), s) });
    assert_eq!(keys(&lines), expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn records_that_are_no_json_come_whole() {
    let served = Served::start().await;
    let mut feed = Feed::new(&served);
    let records: Vec<Vec<u8>> =
        vec![vec![0xff, 0, 10], b"".into(), b"plain\ntext".into(), b"{\"a\":\n1.50}".into(), b"\"\\ud800\"".into()];
    feed.put("a1", "scans", records.iter().map(|r| (SIX, r.clone())).collect()).await;
    let (lines, ..) = page(&served, "scans/records").await;
    let bytes: Vec<Vec<u8>> = lines.iter().map(|l| Line::read(l.as_bytes()).unwrap().bytes().unwrap()).collect();
    assert_eq!(bytes[3], b"{\"a\": 1.50}");
    for at in [0, 1, 2, 4] {
        assert_eq!(bytes[at], records[at]);
    }
    let (lines, ..) = page(&served, "scans/records?encoding=base64").await;
    let bytes: Vec<Vec<u8>> = lines.iter().map(|l| Line::read(l.as_bytes()).unwrap().bytes().unwrap()).collect();
    assert_eq!(bytes, records);
}

/// The next line that says something.
async fn next_line(lines: &mut (impl futures_util::Stream<Item = io::Result<Vec<u8>>> + Unpin)) -> Option<String> {
    loop {
        let next = tokio::time::timeout(Duration::from_secs(30), lines.next()).await.unwrap();
        let line = String::from_utf8(next?.ok()?).unwrap();
        if !line.is_empty() {
            return Some(line);
        }
    }
}

#[tokio::test]
async fn a_follower_gets_what_comes_and_goes_on_where_it_was() {
    let served = Served::start().await;
    let mut feed = Feed::new(&served);
    feed.count_up("a1", "scans", SIX, 20).await;
    let stream = name("scans");
    let asked =
        |place: (&'static str, String)| [("follow", "true".to_owned()), ("bookmarks", "true".to_owned()), place];
    let mut lines = Box::pin(served.client.follow(&stream, &asked(("tail", "2".into()))).await.unwrap());
    let first = [next_line(&mut lines).await.unwrap(), next_line(&mut lines).await.unwrap()];
    assert_eq!(keys(&first), [("a1".into(), 18), ("a1".into(), 19)]);
    let place = bookmark(next_line(&mut lines).await.unwrap().as_bytes()).unwrap();
    feed.count_up("b1", "scans", SIX, 2).await;
    let next = [next_line(&mut lines).await.unwrap(), next_line(&mut lines).await.unwrap()];
    assert_eq!(keys(&next), [("b1".into(), 0), ("b1".into(), 1)]);
    drop(lines);

    // Another one goes on from the first bookmark; a third follows one node without bookmarks.
    let mut lines = Box::pin(served.client.follow(&stream, &asked(("continue", place))).await.unwrap());
    assert_eq!(keys(&[next_line(&mut lines).await.unwrap()]), [("b1".into(), 0)]);
    let one = [("follow", "true".to_owned()), ("node", "a2".to_owned()), ("tail", "0".to_owned())];
    let mut of_one = Box::pin(served.client.follow(&stream, &one).await.unwrap());
    feed.count_up("b1", "scans", SIX, 3).await;
    feed.count_up("a2", "scans", SIX, 1).await;
    assert_eq!(keys(&[next_line(&mut of_one).await.unwrap()]), [("a2".into(), 0)]);
    served.stop.send_replace(true);
    assert_eq!(next_line(&mut of_one).await, None);
}

#[tokio::test]
async fn streams_counts_and_gaps_are_listed() {
    let served = Served::start().await;
    let mut feed = Feed::new(&served);
    assert_eq!(value(&served, "streams").await["items"], json!([]));
    feed.count_up("a1", "scans", SIX + 30_000, 60).await;
    feed.lose("a1", "scans", 4, GapReason::Shed).await;
    feed.count_up("a2", "scans", SIX, 10).await;
    feed.count_up("b1", "scans", SIX, 1).await;
    feed.lose("b1", "logs", 9, GapReason::OutboxLost).await;

    let rows = value(&served, "streams").await["items"].clone();
    assert_eq!(rows.as_array().unwrap().len(), 4);
    assert_eq!(
        rows[0],
        json!({"node": "a1", "site": "a", "stream": "scans", "class": "scans", "epoch": 7, "epochs": 1, "records": 60,
            "gaps": 1, "lostRecords": 4, "lostAtLeast": false, "lagRecords": 3, "lagOldest": "2026-03-01T06:00:00Z",
            "heard": "2026-03-01T06:00:00.001Z"})
    );
    for (filter, count) in [("node=b1", 2), ("site=a", 2), ("stream=logs", 1), ("node=a1&site=b", 0)] {
        let rows = value(&served, &format!("streams?{filter}")).await["items"].clone();
        assert_eq!(rows.as_array().unwrap().len(), count, "{filter}");
    }

    let gaps = value(&served, "gaps").await;
    assert_eq!((gaps["items"].as_array().unwrap().len(), &gaps["more"]), (2, &json!(false)));
    assert_eq!(gaps["items"][0]["reason"], "outbox-lost");
    assert_eq!((&gaps["items"][0]["atLeast"], &gaps["items"][1]["first"]), (&json!(true), &json!(60)));
    assert_eq!(value(&served, "gaps?limit=1").await["more"], true);
    assert_eq!(value(&served, "gaps?node=a1&stream=scans").await["items"][0]["count"], 4);

    // 06:00: a 30 + 10, b 1; 06:01: a 30.
    let counts = value(&served, "streams/scans/counts").await;
    let row = |count: &Value| {
        let number = count["records"].as_u64().unwrap();
        (count["minute"].as_str().unwrap().to_owned(), count["site"].as_str().unwrap().to_owned(), number)
    };
    let rows = |counts: &Value| counts["items"].as_array().unwrap().iter().map(row).collect::<Vec<_>>();
    let (six, one) = ("2026-03-01T06:00:00Z".to_owned(), "2026-03-01T06:01:00Z".to_owned());
    let (a, b, c) = ((six.clone(), "a".to_owned(), 40), (six, "b".into(), 1), (one.clone(), "a".into(), 30));
    assert_eq!((rows(&counts), &counts["next"]), (vec![a.clone(), b.clone(), c.clone()], &Value::Null));
    let cut = value(&served, "streams/scans/counts?limit=2").await;
    assert_eq!((rows(&cut), &cut["next"]), (vec![a.clone(), b.clone()], &json!(one)));
    assert_eq!(
        rows(&value(&served, &format!("streams/scans/counts?limit=2&from={one}")).await),
        std::slice::from_ref(&c)
    );
    assert_eq!(rows(&value(&served, "streams/scans/counts?from=2026-03-01T06:01:59Z").await), [c]);
    assert_eq!(rows(&value(&served, "streams/scans/counts?to=2026-03-01T06:01:00Z&site=b").await), [b]);
    let (code, answer) = served.raw(Method::GET, "/api/v1/streams/scans/counts?limit=1", "").await;
    assert!(code == 400 && answer["message"].as_str().unwrap().contains("raise limit"), "{answer}");
}

#[tokio::test]
async fn bad_parameters_are_refused_with_what_is_allowed() {
    let served = Served::start().await;
    Feed::new(&served).count_up("a1", "scans", SIX, 3).await;
    for (path, code, word) in [
        ("streams?color=red", 400, "expected one of `node`, `site`, `stream`"),
        ("streams?node=A%20B", 400, "name"),
        ("streams/S%20s/records", 400, "name of the stream"),
        ("streams/parcels/records", 404, "the hub knows scans"),
        ("streams/parcels/records?follow=true", 404, "the hub knows scans"),
        ("streams/parcels/counts", 404, "the hub knows scans"),
        ("streams/scans/records?limit=0", 400, "1 to 10000"),
        ("streams/scans/records?limit=10001", 400, "1 to 10000"),
        ("streams/scans/records?limit=many", 400, "query"),
        ("streams/scans/records?tail=1001", 400, "1 to 1000"),
        ("streams/scans/records?tail=1&limit=1", 400, "leave limit"),
        ("streams/scans/records?follow=true&limit=1", 400, "leave limit"),
        ("streams/scans/records?bookmarks=true", 400, "follow"),
        ("streams/scans/records?follow=yes", 400, "query"),
        ("streams/scans/records?encoding=hex", 400, "`json` or `base64`"),
        ("streams/scans/records?from=yesterday", 400, "RFC 3339"),
        ("streams/scans/records?from=2026-03-01T07:00:00+01:00", 400, "%2B"),
        ("streams/scans/records?from=2026-03-01T07:00:00Z&to=2026-03-01T07:00:00Z", 400, "between"),
        ("streams/scans/records?continue=7", 400, "no place"),
        ("streams/scans/records?continue=%2B7.0", 400, "no place"),
        ("streams/scans/records?continue=9999999.0", 410, "begin again"),
        ("streams/scans/records?node=a1&node=a2", 400, "duplicate"),
        ("streams/scans/counts?node=a1", 400, "expected one of `site`"),
        ("streams/scans/counts?limit=50001", 400, "1 to 50000"),
        ("gaps?limit=0", 400, "1 to 100000"),
        ("gaps?site=a", 400, "expected one of `node`"),
        ("streams/scans", 404, "openapi"),
    ] {
        let (got, answer) = served.raw(Method::GET, &format!("/api/v1/{path}"), "").await;
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(got == code && answer["kind"] == "Status" && message.contains(word), "{path}: {got} {answer}");
    }
    let (code, _) = served.raw(Method::POST, "/api/v1/streams/scans/records", "").await;
    assert_eq!(code, 405);
    // A name that nobody has is no mistake where the stream is known, and neither is a page beyond the last record.
    assert!(page(&served, "scans/records?site=zz").await.0.is_empty());
    let (_, place, _) = page(&served, "scans/records").await;
    let (lines, again, more) = page(&served, &format!("scans/records?continue={}", place.clone().unwrap())).await;
    assert!(lines.is_empty() && again == place && !more);
}

/// A sink that is away now and then.
#[derive(Debug)]
struct Moody {
    inner: Arc<dyn Sink>,
    is_down: Arc<AtomicBool>,
}

impl Moody {
    fn check(&self) -> Result<(), SinkError> {
        let down = self.is_down.load(Ordering::SeqCst);
        if down { Err(SinkError::Unavailable("the cable is out".into())) } else { Ok(()) }
    }
}

impl Sink for Moody {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn states(&self) -> BoxFuture<'_, Result<Vec<StreamState>, SinkError>> {
        Box::pin(async { self.check().and(Ok(self.inner.states().await?)) })
    }
    fn commit(&self, commit: &Commit) -> BoxFuture<'_, Result<(), SinkError>> {
        self.inner.commit(commit)
    }
    fn query(&self, query: &SinkQuery) -> BoxFuture<'_, Result<sink::Page, SinkError>> {
        let query = query.clone();
        Box::pin(async move { self.check().and(Ok(self.inner.query(&query).await?)) })
    }
    fn counts(&self, query: &CountQuery) -> BoxFuture<'_, Result<Vec<Count>, SinkError>> {
        let query = query.clone();
        Box::pin(async move { self.check().and(Ok(self.inner.counts(&query).await?)) })
    }
    fn gaps(
        &self,
        node: Option<&Name>,
        stream: Option<&Name>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<GapRow>, SinkError>> {
        let (node, stream) = (node.cloned(), stream.cloned());
        Box::pin(async move { self.check().and(Ok(self.inner.gaps(node.as_ref(), stream.as_ref(), limit).await?)) })
    }
    fn prune(&self, before: Timestamp) -> BoxFuture<'_, Result<u64, SinkError>> {
        self.inner.prune(before)
    }
}

#[tokio::test]
async fn a_sink_that_is_down_is_said_so_and_followers_wait_for_it() {
    let is_down = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&is_down);
    let served = Served::start_over(|inner| Arc::new(Moody { inner, is_down })).await;
    let mut feed = Feed::new(&served);
    feed.count_up("a1", "scans", SIX, 3).await;
    let asked = [("follow", "true".to_owned()), ("tail", "1".to_owned())];
    let mut lines = Box::pin(served.client.follow(&name("scans"), &asked).await.unwrap());
    assert_eq!(keys(&[next_line(&mut lines).await.unwrap()]), [("a1".into(), 2)]);

    switch.store(true, Ordering::SeqCst);
    for path in
        ["streams", "streams/scans/records", "streams/scans/counts", "gaps", "streams/scans/records?follow=true"]
    {
        let request = served.http.get(format!("{}/api/v1/{path}", served.url)).bearer_auth(&served.token);
        let response = request.send().await.unwrap();
        assert_eq!(
            (response.status(), &response.headers()["retry-after"]),
            (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
        );
        assert!(response.text().await.unwrap().contains("the cable is out"), "{path}");
    }
    feed.count_up("a1", "scans", SIX, 1).await;
    switch.store(false, Ordering::SeqCst);
    assert_eq!(keys(&[next_line(&mut lines).await.unwrap()]), [("a1".into(), 3)]);
}
