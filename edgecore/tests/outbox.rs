//! The outbox at scale: a million records wait and drain, in little memory, and the file shrinks afterwards.
//! `--nocapture` prints the figures.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // all of it is a test
#![allow(clippy::single_range_in_vec_init)] // one range to delete is meant

use std::{fs, path::Path, sync::Arc};

use bytes::Bytes;
use edgecore::outbox::{Item, Outbox, OutboxConfig};
use futures_util::future::join_all;
use proto::{
    env::Env,
    name::Name,
    stream::{Class, batch::Batch},
};
use tokio::{sync::Mutex, time::Instant};

/// Figures are of one test at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn open(folder: &Path) -> Outbox {
    let streams = vec![(scans(), Class::Scans)];
    let config = OutboxConfig { quota_bytes: 4 << 30, disk_share_percent: 90, streams };
    Outbox::open(folder, config, Env::real().unwrap()).await.unwrap()
}

fn scans() -> Name {
    "scans".parse().unwrap()
}

fn scan(n: u64, bytes: usize) -> Bytes {
    let mut text = format!(r#"{{"n":{n},"barcode":"{:016x}""#, n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    text.push_str(&" ".repeat(bytes.saturating_sub(text.len() + 1)));
    text.push('}');
    text.into()
}

fn resident_bytes() -> u64 {
    let pages: u64 = fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn file_bytes(folder: &Path) -> u64 {
    ["outbox.db", "outbox.db-wal"].iter().filter_map(|f| fs::metadata(folder.join(f)).ok()).map(|m| m.len()).sum()
}

#[tokio::test]
async fn a_million_records_wait_and_drain() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path()).await;
    const COUNT: u64 = 1_000_000;
    const TOGETHER: u64 = 1000;
    // What the allocator and SQLite need for the work itself is there from here on.
    let mut next = 0;
    let append = async |from: u64| {
        let records = (from..from + TOGETHER).map(|n| scan(n, 60)).collect();
        outbox.append(&scans(), records).await.unwrap().range.end
    };
    for _ in 0..20 {
        next = append(next).await;
    }
    let before = resident_bytes();
    let begin = Instant::now();
    while next < COUNT {
        next = append(next).await;
    }
    let wait_s = begin.elapsed().as_secs_f64();
    let grown = resident_bytes().saturating_sub(before);
    let full = file_bytes(folder.path());
    assert!(grown < 16 << 20, "{grown} bytes more for what waits");
    assert_eq!(outbox.lag()[0].records, COUNT);

    let begin = Instant::now();
    let key = outbox.held()[0].key.clone();
    let (mut at, mut batches) = (0, 0);
    while at < COUNT {
        let Some(Item::Batch { first, count, sealed }) = outbox.read(&key, at..COUNT).await.unwrap() else {
            panic!("a gap at {at}")
        };
        if batches % 10 == 0 {
            let batch = Batch::open(&sealed).unwrap();
            assert!(batch.records.iter().zip(first..).all(|(record, n)| record.bytes == scan(n, 60)));
        }
        (at, batches) = (first + count, batches + 1);
        outbox.delete(&key, vec![first..first + count]).await.unwrap();
    }
    let drain_s = begin.elapsed().as_secs_f64();
    assert_eq!((outbox.held()[0].first, outbox.lag()[0].records), (COUNT, 0));
    let mut state = outbox.state();
    let shrunk = state.wait_for(|state| state.bytes < 6 << 20);
    tokio::time::timeout(std::time::Duration::from_secs(10), shrunk).await.expect("the file shrinks").unwrap();
    println!(
        "{COUNT} records of 60 bytes: taken in {wait_s:.1} s, {full} bytes on disk, {grown} more in memory; \
         drained in {drain_s:.1} s as {batches} batches, then {} bytes on disk",
        file_bytes(folder.path())
    );
}

#[tokio::test]
async fn it_keeps_pace() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path()).await;
    let begin = Instant::now();
    const COUNT: u64 = 100_000;
    // Two at a time: one is on its way to the disk while the other is made.
    let half = async |half: u64| {
        for from in (half * 500..COUNT).step_by(1000) {
            outbox.append(&scans(), (from..from + 500).map(|n| scan(n, 300)).collect()).await.unwrap();
        }
    };
    tokio::join!(half(0), half(1));
    let bulk = COUNT as f64 / begin.elapsed().as_secs_f64();

    let begin = Instant::now();
    let shared = Arc::new(outbox.clone());
    let callers = (0..64_u64).map(|caller| {
        let outbox = Arc::clone(&shared);
        tokio::spawn(async move {
            for n in 0..100 {
                outbox.append(&scans(), vec![scan(caller * 100 + n, 300)]).await.unwrap();
            }
        })
    });
    join_all(callers).await.into_iter().for_each(|done| done.unwrap());
    let singles = 6400.0 / begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    for n in 0..300 {
        outbox.append(&scans(), vec![scan(n, 300)]).await.unwrap();
    }
    let alone = 300.0 / begin.elapsed().as_secs_f64();
    println!("records of 300 bytes a second: {bulk:.0} (500 an append), {singles:.0} (64 callers), {alone:.0} (one)");
    assert_eq!(outbox.held()[0].next, COUNT + 6400 + 300);
}
