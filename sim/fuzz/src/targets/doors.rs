//! What reaches the agent: its doors for producers, and the blobs that it fetches.

use std::sync::{Arc, LazyLock, Mutex};

use bytes::Bytes;
use edgecore::{
    doors::{
        harness,
        lines::{self, Kind, MAX_REQUEST_RECORDS},
        topic::{Filter, is_publishable},
    },
    fetch::{Fetcher, Job, Reader, Source, SourceError, Space},
};
use futures_util::future::BoxFuture;
use proto::{
    digest::Digest,
    env::{Blocking, Env, Seed, SystemClock, Udp},
    link::{
        CHUNK_BYTES, frame,
        message::{BlobHeader, BlobRequest, CHUNK_ZSTD, MetadataReply, MetadataRequest},
    },
    object::Progress,
    stream::MAX_RECORD_BYTES,
    watch,
};

use super::{Choices, run};

fn env() -> Env {
    Env { wall: Arc::new(SystemClock), seed: Seed::from_u64(1), blocking: Blocking::Inline, network: Arc::new(Udp) }
}

/// Topics with filters, and bodies with their types.
pub(super) fn topics(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (first, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let Ok(head) = std::str::from_utf8(first) else { return };
    if let (Ok(filter), Ok(topic)) = (head.parse::<Filter>(), std::str::from_utf8(rest)) {
        is_filter(head);
        if is_publishable(topic) {
            assert_eq!(filter.matches(topic), matches(head, topic), "{head:?} {topic:?}");
        }
    }
    for kind in [Kind::of(head), Some(Kind::Ndjson), Some(Kind::Text)].into_iter().flatten() {
        let body = Bytes::copy_from_slice(rest);
        let Ok(records) = lines::split(kind, &body) else { continue };
        assert!(records.len() <= MAX_REQUEST_RECORDS && records.iter().all(|r| r.len() <= MAX_RECORD_BYTES));
        if kind == Kind::Ndjson || kind == Kind::Text {
            assert!(records.iter().all(|r| !r.is_empty() && !r.contains(&b'\n') && std::str::from_utf8(r).is_ok()));
        }
        if kind == Kind::Ndjson {
            assert!(records.iter().all(|r| serde_json::from_slice::<serde::de::IgnoredAny>(r).is_ok()));
        }
    }
}

/// A broker takes it (MQTT 5, 4.7 and 4.8.2).
fn is_filter(text: &str) {
    let (group, filter) = match text.strip_prefix("$share/") {
        Some(rest) => rest.split_once('/').unwrap_or((rest, "")),
        None => ("g", text),
    };
    assert!(!group.is_empty() && !group.contains(['+', '#']) && !filter.is_empty(), "no broker takes {text:?}");
}

/// As the standard says, by a level at a time.
fn matches(filter: &str, topic: &str) -> bool {
    fn levels(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            (["#"], _) => true,
            ([], []) => true,
            ([level, filter @ ..], [part, topic @ ..]) => (*level == "+" || level == part) && levels(filter, topic),
            _ => false,
        }
    }
    let filter = filter.strip_prefix("$share/").and_then(|rest| Some(rest.split_once('/')?.1)).unwrap_or(filter);
    let (filter, topic): (Vec<_>, Vec<_>) = (filter.split('/').collect(), topic.split('/').collect());
    let hidden = topic[0].starts_with('$') && (filter[0] == "+" || filter[0] == "#");
    !hidden && levels(&filter, &topic)
}

/// A producer at the HTTP door.
pub(super) fn http(data: &[u8]) {
    let outcome = run(harness::http_door(Bytes::copy_from_slice(data), env()));
    assert!(outcome.records.iter().all(|record| record.len() <= MAX_RECORD_BYTES));
    assert!(outcome.answer.is_empty() || outcome.answer.starts_with(b"HTTP/1."));
}

/// A producer at the MQTT door: as it comes, and after a good greeting.
pub(super) fn mqtt(data: &[u8]) {
    let (mode, data) = data.split_first().unwrap_or((&0, &[]));
    let greeting: &[u8] = match mode % 4 {
        1 => b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a",
        2 => b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01a",
        3 => b"\x10\x0d\x00\x04MQTT\x04\x00\x00\x3c\x00\x01a",
        _ => b"",
    };
    let outcome = run(harness::mqtt_door([greeting, data].concat().into(), env()));
    assert!(outcome.records.iter().all(|record| record.len() <= data.len()));
}

/// Answers with what an input makes of the blobs that there are.
#[derive(Debug)]
struct Edited(Mutex<Vec<u8>>);

static BLOBS: LazyLock<[Vec<u8>; 3]> = LazyLock::new(|| {
    let small = b"#!/bin/sh\n".to_vec();
    let large: Vec<u8> = (0..CHUNK_BYTES + 77).map(|i| (i / 97) as u8).collect();
    let file = |path: &str, bytes: &[u8]| {
        format!(r#"{{"path":"{path}","digest":"{}","size":{},"executable":true}}"#, Digest::of(bytes), bytes.len())
    };
    let manifest = format!(
        r#"{{"apiVersion":"{}","app":"web","version":"1","files":[{},{}],"workload":{{"command":"bin/run"}}}}"#,
        proto::API_VERSION,
        file("bin/run", &small),
        file("share/large", &large)
    );
    [manifest.into_bytes(), small, large]
});

fn answer(blob: &[u8]) -> Vec<u8> {
    let mut wire = frame::encode(&BlobHeader::Found { size: blob.len() as u64 }, 1 << 16).unwrap();
    for chunk in blob.chunks(CHUNK_BYTES) {
        let packed = zstd::bulk::compress(chunk, 1).unwrap();
        let (flag, body) = if packed.len() < chunk.len() { (CHUNK_ZSTD, &packed[..]) } else { (0, chunk) };
        wire.extend((flag | body.len() as u32).to_be_bytes());
        wire.extend(body);
    }
    wire
}

impl Source for Edited {
    fn metadata(&self, _: MetadataRequest) -> BoxFuture<'_, Result<MetadataReply, SourceError>> {
        Box::pin(async { Err(SourceError::Offline) })
    }
    fn blob(&self, request: BlobRequest) -> BoxFuture<'_, Result<Reader, SourceError>> {
        let mut input = self.0.lock().unwrap();
        let mut choices = Choices(&input);
        let blob = BLOBS.iter().find(|blob| Digest::of(blob) == request.digest);
        let wire = match choices.byte() % 3 {
            0 => choices.bytes().to_vec(),
            _ => choices.edit(answer(blob.map_or(&[], |blob| &blob[..]))),
        };
        *input = choices.0.to_vec();
        Box::pin(async { Ok(Box::new(std::io::Cursor::new(wire)) as Reader) })
    }
}

/// Whatever a hub sends for a release: it is staged whole, or not at all.
pub(super) fn blobs(data: &[u8]) {
    let folder = std::env::temp_dir().join(format!("crossdock-fuzz-{}", std::process::id()));
    let fetcher = Fetcher::new(env(), Arc::new(Edited(Mutex::new(data.to_vec()))), Space::new(|_| Ok(1 << 40)));
    let job = Arc::new(Job {
        release: "web@1".parse().unwrap(),
        digest: Digest::of(&BLOBS[0]),
        manifest_bytes: Some(BLOBS[0].len() as u64),
        releases: folder.clone(),
        reuse: vec![],
        hardware: vec![],
    });
    let progress = watch::channel(Progress { done_bytes: 0, total_bytes: 0 }).0;
    let staged = run(fetcher.stage(&job, &progress)).is_ok();
    let large = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let found = large.map(|entry| entry.path().join("files/share/large")).find_map(|path| std::fs::read(path).ok());
    if staged {
        assert!(found.is_none_or(|found| found == BLOBS[2]), "another content was staged");
    }
    std::fs::remove_dir_all(&folder).ok();
}
