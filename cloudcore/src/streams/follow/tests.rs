//! Records of a sink become events once, whatever is lost or comes again.

use jiff::Timestamp;
use proto::{object::EventType, stream::event::SCHEMA};

use super::*;
use crate::{
    hub::fixture::Fixture,
    streams::sink::{Commit, Sink, sqlite::Sqlite, suite},
};

fn record(reason: &str, message: &str, second: i64) -> String {
    let time = Timestamp::from_second(second).unwrap();
    let event = EventRecord {
        schema: SCHEMA.into(),
        time,
        r#type: EventType::Warning,
        reason: reason.into(),
        message: message.into(),
        app: None,
        version: None,
    };
    serde_json::to_string(&event).unwrap()
}

async fn store(sink: &dyn Sink, node: &str, first: u64, texts: &[String]) {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let batches = vec![suite::batch(node, STREAM, first, 60, &texts)];
    sink.commit(&Commit { batches, ..Commit::default() }).await.unwrap();
}

/// Events that nodes told: node, reason, message, count, first and last second.
async fn told(hub: &Hub) -> Vec<(String, String, u32, i64, i64)> {
    let events = hub.store().list::<EventSpec>(None).await.unwrap().items;
    let by_nodes = events.into_iter().map(|e| e.spec).filter(|e| ["n1", "n2"].contains(&e.source.as_str()));
    let mut rows: Vec<_> = by_nodes
        .map(|e| {
            assert_eq!((e.involved_kind.as_str(), &e.involved_name), ("Node", &e.source));
            (e.source, e.message, e.count, e.first_at.as_second(), e.last_at.as_second())
        })
        .collect();
    rows.sort();
    rows
}

async fn all(follower: &mut Follower, hub: &Hub) {
    while follower.step(hub).await.unwrap() {}
}

fn row(node: &str, message: &str, count: u32, first: i64, last: i64) -> (String, String, u32, i64, i64) {
    (node.into(), message.into(), count, first, last)
}

#[tokio::test]
async fn every_record_counts_once_and_only_agents_make_events() {
    let fixture = Fixture::still(|_| {}).await;
    let hub = &fixture.hub;
    let sink = hub.streams().sink().as_ref();
    let mut follower = Follower::default();
    assert!(!follower.step(hub).await.unwrap());
    let wild = record("Wild", "the clock runs ahead", 5_000_000_000);
    store(sink, "n1", 0, &[record("Exited", "crash", 50), "no JSON".into(), record("Exited", "crash", 40)]).await;
    store(sink, "n2", 0, &["{\"barcode\":\"SF1\"}".into(), record("Exited", "crash", 60), wild]).await;
    all(&mut follower, hub).await;
    let rows = told(hub).await;
    assert_eq!(rows[..2], [row("n1", "crash", 2, 40, 50), row("n2", "crash", 1, 60, 60)]);
    let now = hub.env().wall.now().as_second();
    assert!(rows[2].4 <= now, "{rows:?}: no event of a node is newer than now");

    // A hub that starts again goes on where it was; nothing is counted again.
    let mut follower = Follower::default();
    all(&mut follower, hub).await;
    assert_eq!(told(hub).await, rows);
    store(sink, "n1", 3, &["no event".into()]).await;
    all(&mut follower, hub).await;
    store(sink, "n1", 4, &[record("Exited", "crash", 70)]).await;
    all(&mut follower, hub).await;
    assert_eq!(told(hub).await[0], row("n1", "crash", 3, 40, 70));
    let place = hub.store().places(PLACES.to_vec()).await.unwrap().and_then(|place| cursor(&place));
    assert_eq!(place, sink.query(&suite::all(STREAM)).await.unwrap().end);
}

#[tokio::test]
async fn a_sink_that_is_older_than_the_place_is_followed_from_its_end() {
    let fixture = Fixture::still(|_| {}).await;
    let hub = &fixture.hub;
    let mut follower = Follower::default();
    follower.take_over(hub, vec![], vec![(PLACES[0], 1_000), (PLACES[1], 3)]).await.unwrap();
    let sink = hub.streams().sink().as_ref();
    store(sink, "n1", 0, &[record("Exited", "told before", 50)]).await;
    all(&mut follower, hub).await;
    assert_eq!(told(hub).await, []);
    store(sink, "n1", 1, &[record("Exited", "told after", 50)]).await;
    all(&mut follower, hub).await;
    assert_eq!(told(hub).await, [row("n1", "told after", 1, 50, 50)]);
}

#[tokio::test]
async fn one_node_cannot_push_out_what_others_told() {
    let fixture = Fixture::still(|_| {}).await;
    let hub = &fixture.hub;
    let sink = hub.streams().sink().as_ref();
    let flood: Vec<String> = (0..2 * STEP as u64).map(|n| record("Odd", &format!("text {n}"), 50)).collect();
    store(sink, "n1", 0, &flood).await;
    store(sink, "n2", 0, &[record("Exited", "crash", 50)]).await;
    store(sink, "n1", flood.len() as u64, &[record("Odd", "text 0", 51)]).await;
    all(&mut Follower::default(), hub).await;
    let rows = told(hub).await;
    let of = |node: &str| rows.iter().filter(|row| row.0 == node).count();
    assert_eq!((of("n1"), of("n2")), (MAX_NEW_PER as usize, 1));
    assert_eq!(rows.iter().find(|row| row.1 == "text 0"), Some(&row("n1", "text 0", 2, 50, 51)), "repeats count on");
}

#[tokio::test]
async fn a_place_and_its_events_are_one_transaction() {
    let fixture = Fixture::still(|_| {}).await;
    let hub = &fixture.hub;
    let other = Sqlite::new(hub.config().data_dir.join("other.db"), hub.env());
    store(&other, "n1", 0, &[record("Exited", "crash", 50)]).await;
    let page = other.query(&suite::all(STREAM)).await.unwrap();
    let event =
        events::told_by(&page.rows[0].node, EventRecord::read(&page.rows[0].bytes).unwrap(), hub.env().wall.now());
    let mut bad = event.unwrap();
    bad.api_version = "crossdock.io/v99".into(); // the store refuses it
    let told = vec![(page.rows[0].node.clone(), bad)];
    Follower::default().take_over(hub, told, vec![(PLACES[0], 5), (PLACES[1], 1)]).await.unwrap_err();
    assert_eq!(hub.store().places(PLACES.to_vec()).await.unwrap(), None);
}
