//! Golden messages of the lanes and a golden batch: one example of each, and what newer peers may send,
//! which is skipped.
//!
//! `CROSSDOCK_WRITE_GOLDEN=1 cargo test --workspace --test stream_golden` writes the examples anew: do that
//! only for a change of form that old peers understand. Files named `*-newer.json` are written by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // all of it is a test
#![allow(clippy::single_range_in_vec_init)] // a set of one range is meant

use std::{fmt::Debug, fs, path::PathBuf};

use jiff::Timestamp;
use proto::{
    link::message::AgentRequest,
    object::EventType,
    stream::{
        Class, Epoch, Gap, GapReason, Mark, StreamKey,
        batch::{Batch, Record},
        event::{EventRecord, SCHEMA},
        message::{Down, Held, Lag, Lane, RecordsRequest, Up},
        ranges::{Range, Ranges},
    },
};
use serde::{Serialize, de::DeserializeOwned};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/stream").join(name)
}

fn writes() -> bool {
    std::env::var_os("CROSSDOCK_WRITE_GOLDEN").is_some()
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    let text = fs::read_to_string(path(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The message is written as the golden file has it, and the golden file reads as the message.
fn golden<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, message: &T) {
    let text = serde_json::to_string_pretty(message).unwrap() + "\n";
    if writes() {
        fs::create_dir_all(path("")).unwrap();
        fs::write(path(name), &text).unwrap();
    }
    assert_eq!(fs::read_to_string(path(name)).unwrap_or_default(), text, "{name}");
    assert_eq!(&read::<T>(name), message, "{name}");
}

fn key() -> StreamKey {
    StreamKey { stream: "scans".parse().unwrap(), epoch: Epoch(1_988_000_000_123_456) }
}

fn held() -> Held {
    Held { key: key(), class: Class::Scans, first: 40, next: 90 }
}

fn marks(ranges: &[Range]) -> Vec<Mark> {
    vec![Mark { key: key(), durable: ranges.iter().cloned().collect::<Ranges>() }]
}

fn time() -> Timestamp {
    Timestamp::from_second(1_900_000_000).unwrap()
}

#[test]
fn opening_a_lane() {
    let events =
        Held { key: StreamKey { stream: "events".parse().unwrap(), ..key() }, class: Class::Events, first: 7, next: 7 };
    let request = RecordsRequest { lane: Lane::Live, held: vec![held(), events] };
    golden("request-records.json", &AgentRequest::Records(request));
    let backlog = RecordsRequest { lane: Lane::Backlog, held: vec![] };
    golden("request-records-backlog.json", &AgentRequest::Records(backlog));
    // Another lane is served as the one that may wait, another class as the one that comes last.
    let AgentRequest::Records(newer) = read("request-records-newer.json") else { panic!("not a lane") };
    assert_eq!(newer.lane, Lane::Backlog);
    assert_eq!(newer.held, [held(), Held { class: Class::Logs, ..held() }]);
}

#[test]
fn from_agent_to_hub() {
    golden("up-batch.json", &Up::Batch { stream: key().stream, first: 40, count: 50, bytes: 1234 });
    golden("up-gap.json", &Up::Gap(Gap { key: key(), first: 30, count: 10, reason: GapReason::HubLost }));
    let behind = Lag { key: key(), next: 90, records: 50, oldest: Some(time()) };
    let none = Lag { records: 0, oldest: None, ..behind.clone() };
    golden("up-lag.json", &Up::Lag { streams: vec![behind.clone(), none] });
    golden("up-open.json", &Up::Open(held()));
    for (reason, word) in [
        (GapReason::Shed, "shed"),
        (GapReason::Damaged, "damaged"),
        (GapReason::HubLost, "hub-lost"),
        (GapReason::OutboxLost, "outbox-lost"),
    ] {
        assert_eq!((serde_json::to_value(reason).unwrap().as_str(), reason.as_str()), (Some(word), word));
    }
    for (class, word) in
        [(Class::Scans, "scans"), (Class::Events, "events"), (Class::Metrics, "metrics"), (Class::Logs, "logs")]
    {
        assert_eq!(serde_json::to_value(class).unwrap(), word);
        assert_eq!(serde_json::from_value::<Class>(word.into()).unwrap(), class);
    }
    assert_eq!(read::<Up>("up-newer.json"), Up::Unknown);
    let Up::Gap(gap) = read("up-gap-newer.json") else { panic!("not a gap") };
    assert_eq!((gap.first, gap.count, gap.reason), (30, 10, GapReason::Other));
    assert_eq!(read::<Up>("up-lag-newer.json"), Up::Lag { streams: vec![behind] });
}

#[test]
fn from_hub_to_agent() {
    golden("down-marks.json", &Down::Marks { marks: marks(&[0..40, 60..90]) });
    golden("down-acks.json", &Down::Acks { marks: marks(&[0..90]) });
    golden("down-held.json", &Down::Held { reason: "the disk of the hub is full".into() });
    assert_eq!(read::<Down>("down-newer.json"), Down::Unknown);
    assert_eq!(read::<Down>("down-acks-newer.json"), Down::Acks { marks: marks(&[0..90]) });
    // A mark that cannot be is no mark: taken for one, it would let records go.
    for bad in ["[[5,5]]", "[[5,4]]", "[[0,9],[9,12]]", "[[5,9],[0,3]]", "[[-1,3]]"] {
        serde_json::from_str::<Ranges>(bad).unwrap_err();
    }
}

#[test]
fn an_event() {
    let event = EventRecord {
        schema: SCHEMA.into(),
        time: time(),
        r#type: EventType::Warning,
        reason: "RolledBack".into(),
        message: "scan-counter@1.1.0: Unhealthy it was not healthy within 60 s".into(),
        app: Some("scan-counter".parse().unwrap()),
        version: Some("1.1.0".parse().unwrap()),
    };
    golden("event.json", &event);
    let newer = fs::read(path("event-newer.json")).unwrap();
    assert_eq!(EventRecord::read(&newer), Some(EventRecord { app: None, version: None, ..event }));
}

fn batch() -> Batch {
    let record = |time_ms, bytes: &'static [u8]| Record { time_ms, bytes: bytes.into() };
    let records = vec![
        record(1_900_000_000_000, br#"{"barcode":"SF1","lane":3}"#),
        record(1_900_000_000_000, b""),
        record(1_899_999_999_000, b"\x00\xff"), // a clock that was set back
        record(-1, &[b'x'; 300]),
    ];
    Batch { epoch: key().epoch, first: 40, records }
}

/// Two digits a byte.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let text = text.trim();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// `batch.hex` is a sealed batch as it lies on disks, `batch-content.hex` what is in it. How well it is
/// compressed is not pinned, what is in it is.
#[test]
fn a_batch() {
    let sealed = batch().seal().unwrap();
    let content = zstd::decode_all(&sealed[..]).unwrap();
    if writes() {
        fs::write(path("batch.hex"), hex(&sealed) + "\n").unwrap();
        fs::write(path("batch-content.hex"), hex(&content) + "\n").unwrap();
    }
    let kept = unhex(&fs::read_to_string(path("batch.hex")).unwrap());
    assert_eq!(Batch::open(&kept).unwrap(), batch());
    assert_eq!(hex(&content), fs::read_to_string(path("batch-content.hex")).unwrap().trim());
    assert_eq!(hex(&zstd::decode_all(&kept[..]).unwrap()), hex(&content));

    // One of a newer format is refused in words, not misread.
    let mut newer = content;
    newer[0] = 2;
    let error = Batch::open(&zstd::encode_all(&newer[..], 3).unwrap()).unwrap_err().to_string();
    assert!(error.contains("format Some(2) is not known here"), "{error}");
}
