//! The halves of `sim bench streams` that need no Crossdock: real servers of other projects, small loads,
//! one `kill -9` each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // all of it is a test

use sim::bench::streams::{
    jetstream::JetStream,
    load::Load,
    mosquitto::Mosquitto,
    peer::{Found, Peer, measure},
};

const KILL_RECORDS: u64 = 3000;

async fn found<P: Peer>() -> Found {
    let load = Load { connections: 2, batch: 100, bytes: 300 };
    let found = measure::<P>(&load, 2000, KILL_RECORDS).await.unwrap();
    assert!(found.per_s > 0.0, "{found:?}");
    // What was acknowledged is there or lost; of the rest, what was not answered may be there.
    let sum = found.killed.present + found.killed.lost;
    assert!((KILL_RECORDS..=KILL_RECORDS + found.unanswered).contains(&sum), "{found:?}");
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn mosquitto_is_measured_through_a_kill() {
    found::<Mosquitto>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jetstream_is_measured_through_a_kill_and_keeps_what_it_acknowledged() {
    let found = found::<JetStream>().await;
    assert_eq!(found.killed.lost, 0, "{found:?}");
}
