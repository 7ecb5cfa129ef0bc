//! The outbox as its callers see it, and what becomes of it when the disk does its worst.

#![allow(clippy::single_range_in_vec_init)] // one range to delete is meant

mod damage;
mod full;
mod model;

use std::{fs, path::Path};

use proto::{
    env::Blocking,
    stream::{Epoch, GapReason, batch::Batch},
};

use super::*;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn env() -> Env {
    Env::real().unwrap()
}

fn config() -> OutboxConfig {
    let streams =
        [("scans", Class::Scans), ("events", Class::Events), ("metrics", Class::Metrics), ("logs", Class::Logs)];
    let streams = streams.into_iter().map(|(text, class)| (name(text), class)).collect();
    OutboxConfig { quota_bytes: 1 << 30, disk_share_percent: 100, streams }
}

async fn open(folder: &Path) -> Outbox {
    Outbox::open(folder, config(), env()).await.unwrap()
}

/// Drops it and waits until nobody holds the file any more.
async fn close(outbox: Outbox) {
    let shared = Arc::downgrade(&outbox.0.shared);
    *lock(&outbox.0.shared.reader) = None;
    drop(outbox);
    while shared.strong_count() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

fn records(texts: std::ops::Range<u64>) -> Vec<Bytes> {
    texts.map(|n| Bytes::from(format!("record {n}"))).collect()
}

/// Noise, which does not compress.
fn noise(seed: u64, bytes: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..bytes).map(next).collect::<Vec<u8>>().into()
}

/// What is read of a stream from its beginning: runs of texts and gaps.
async fn all(outbox: &Outbox, key: &StreamKey) -> Vec<Result<String, GapReason>> {
    let next = outbox.held().iter().find(|h| h.key == *key).map_or(0, |h| h.next);
    let (mut at, mut all) = (0, vec![]);
    while at < next {
        match outbox.read(key, at..next).await.unwrap().unwrap() {
            Item::Batch { first, count, sealed } => {
                let batch = Batch::open(&sealed).unwrap();
                assert_eq!((batch.epoch, batch.first, batch.records.len() as u64), (key.epoch, first, count));
                assert_eq!(first, at);
                all.extend(batch.records.iter().map(|r| Ok(String::from_utf8_lossy(&r.bytes).into_owned())));
                at += count;
            }
            Item::Gap(gap) => {
                assert_eq!((&gap.key, gap.first), (key, at));
                all.extend((0..gap.count).map(|_| Err(gap.reason)));
                at += gap.count;
            }
        }
    }
    all
}

fn texts(numbers: std::ops::Range<u64>) -> Vec<Result<String, GapReason>> {
    numbers.map(|n| Ok(format!("record {n}"))).collect()
}

fn held(outbox: &Outbox, stream: &str) -> Held {
    outbox.held().into_iter().rfind(|h| h.key.stream.as_str() == stream).unwrap()
}

#[tokio::test]
async fn what_was_taken_is_read_and_goes_when_it_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path()).await;
    assert_eq!(outbox.held().len(), 4);
    let first = outbox.append(&name("scans"), records(0..3)).await.unwrap();
    let second = outbox.append(&name("scans"), records(3..10)).await.unwrap();
    assert_eq!((first.range, second.range.clone()), (0..3, 3..10));
    let key = second.key;
    assert_eq!(all(&outbox, &key).await, texts(0..10));
    // Small neighbours are one batch, which ends where it must and begins in the middle of what is stored.
    for (from, to) in [(0, 10), (2, 10), (4, 8)] {
        let Some(Item::Batch { first, count, sealed }) = outbox.read(&key, from..to).await.unwrap() else { panic!() };
        assert_eq!((first, count, Batch::open(&sealed).unwrap().end()), (from, to - from, to));
    }
    assert_eq!(outbox.read(&key, 10..99).await.unwrap(), None);

    outbox.delete(&key, vec![0..2, 5..7]).await.unwrap();
    assert_eq!((held(&outbox, "scans").first, held(&outbox, "scans").next), (2, 10));
    let lag = outbox.lag().into_iter().find(|l| l.key == key).unwrap();
    assert_eq!((lag.records, lag.oldest.is_some()), (6, true));
    // A hub that asks again for what it acknowledged has lost it.
    let mut expected = texts(0..10);
    for lost in [0, 1, 5, 6] {
        expected[lost] = Err(GapReason::HubLost);
    }
    assert_eq!(all(&outbox, &key).await, expected);
    outbox.delete(&key, vec![0..u64::MAX]).await.unwrap();
    assert_eq!((held(&outbox, "scans").first, outbox.state().borrow().records), (10, 0));

    close(outbox).await;
    let outbox = open(folder.path()).await;
    assert_eq!(held(&outbox, "scans"), Held { key: key.clone(), class: Class::Scans, first: 10, next: 10 });
    let appended = outbox.append(&name("scans"), records(0..1)).await.unwrap();
    assert_eq!((appended.key, appended.range), (key, 10..11));
    assert_eq!(outbox.state().borrow().problem, None);
}

#[tokio::test]
async fn what_is_out_of_bounds_is_refused_whole() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path()).await;
    let unknown = outbox.append(&name("scams"), records(0..1)).await.unwrap_err();
    assert!(unknown.to_string().contains("scans, events, metrics, logs"), "{unknown}");
    assert!(matches!(outbox.append(&name("scans"), vec![]).await, Err(AppendError::Empty)));
    let large = vec![Bytes::new(), vec![0; MAX_RECORD_BYTES + 1].into()];
    assert!(matches!(outbox.append(&name("scans"), large).await, Err(AppendError::TooLarge { index: 1, .. })));
    let many = vec![Bytes::new(); MAX_APPEND_RECORDS + 1];
    assert!(matches!(outbox.append(&name("scans"), many).await, Err(AppendError::TooMany { .. })));
    assert_eq!(held(&outbox, "scans").next, 0);
    // The largest that is taken comes back in batches within their bounds.
    let largest = vec![Bytes::from(vec![7; MAX_RECORD_BYTES]); MAX_APPEND_BYTES / MAX_RECORD_BYTES];
    let appended = outbox.append(&name("scans"), largest.clone()).await.unwrap();
    assert_eq!(all(&outbox, &appended.key).await.len(), largest.len());
}

#[tokio::test]
async fn a_crowd_shares_transactions_and_a_full_queue_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path()).await;
    let commits = *outbox.changed().borrow();
    let appends = (0..400_u64).map(|n| {
        let outbox = outbox.clone();
        async move { (n, outbox.append(&name("scans"), records(n..n + 1)).await.unwrap().range.start) }
    });
    let mut given = futures_util::future::join_all(appends).await;
    assert!(*outbox.changed().borrow() - commits < 100, "{} commits", *outbox.changed().borrow() - commits);
    given.sort_by_key(|(_, sequence)| *sequence);
    let read = all(&outbox, &held(&outbox, "scans").key).await;
    assert_eq!(read, given.iter().map(|(n, _)| Ok(format!("record {n}"))).collect::<Vec<_>>());

    let large = vec![noise(1, MAX_RECORD_BYTES); 24];
    let events = name("events");
    let answers = futures_util::future::join_all((0..8).map(|_| outbox.append(&events, large.clone()))).await;
    let busy = answers.iter().filter(|answer| matches!(answer, Err(AppendError::Busy))).count();
    let taken = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!(busy >= 5 && busy + taken == 8, "{busy} busy, {taken} taken");
    assert_eq!(held(&outbox, "events").next, taken as u64 * 24);
}

#[tokio::test]
async fn a_renewed_stream_keeps_its_older_records_and_moves_the_newer() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path()).await;
    let old = outbox.append(&name("scans"), records(0..5)).await.unwrap().key;
    close(outbox).await;
    let outbox = open(folder.path()).await;
    outbox.append(&name("scans"), records(5..8)).await.unwrap();
    outbox.append(&name("scans"), records(8..9)).await.unwrap();
    assert_eq!(outbox.began(&old), Some(5));
    let new = outbox.renew(&old).await.unwrap();
    assert!(new.epoch > old.epoch);
    assert_eq!(outbox.renew(&old).await.unwrap(), new, "an epoch that is over is not renewed again");
    assert_eq!(all(&outbox, &old).await, texts(0..5));
    assert_eq!(all(&outbox, &new).await, texts(5..9));
    assert_eq!(outbox.append(&name("scans"), records(9..10)).await.unwrap().range, 4..5);
    outbox.delete(&old, vec![0..5]).await.unwrap();
    assert!(outbox.held().iter().all(|h| h.key != old), "an epoch that is over and empty is forgotten");
    close(outbox).await;
    let outbox = open(folder.path()).await;
    assert_eq!(all(&outbox, &new).await, texts(5..10));
    assert_eq!(held(&outbox, "scans").key, new);
}

#[tokio::test]
async fn it_runs_inline_too_and_closes_with_its_last_handle() {
    let folder = tempfile::tempdir().unwrap();
    let inline = Env { blocking: Blocking::Inline, ..env() };
    let outbox = Outbox::open(folder.path(), config(), inline).await.unwrap();
    outbox.append(&name("logs"), records(0..2)).await.unwrap();
    let mut state = outbox.state();
    drop(outbox);
    assert!(tokio::time::timeout(std::time::Duration::from_secs(5), state.changed()).await.unwrap().is_err());
}

#[tokio::test]
async fn a_second_agent_in_the_folder_locks_the_first_out() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).await;
    first.append(&name("scans"), records(0..1)).await.unwrap();
    let second = open(folder.path()).await;
    let refused = first.append(&name("scans"), records(1..2)).await.unwrap_err();
    assert!(matches!(refused, AppendError::Failed(OutboxError::Fenced)), "{refused:?}");
    assert_eq!(second.append(&name("scans"), records(1..2)).await.unwrap().range, 1..2);
}

#[tokio::test]
async fn streams_come_and_go_by_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(folder.path()).await;
    let key = outbox.append(&name("events"), records(0..2)).await.unwrap().key;
    close(outbox).await;
    let mut fewer = config();
    fewer.streams = vec![(name("scans"), Class::Events)];
    let outbox = Outbox::open(folder.path(), fewer, env()).await.unwrap();
    assert!(outbox.append(&name("events"), records(0..1)).await.is_err());
    assert_eq!(all(&outbox, &key).await, texts(0..2), "what it holds is still delivered");
    assert_eq!(held(&outbox, "scans").class, Class::Events);
    outbox.delete(&key, vec![0..2]).await.unwrap();
    assert_eq!(outbox.held().len(), 1);
    close(outbox).await;
    let outbox = open(folder.path()).await;
    let again = outbox.append(&name("events"), records(2..3)).await.unwrap();
    assert_eq!((again.key, again.range), (key, 2..3), "no sequence is given twice");
}
