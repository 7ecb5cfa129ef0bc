//! Lanes over real QUIC on loopback.

use std::time::Duration;

use super::*;
use crate::{
    hub::{
        Hub,
        fixture::{Fixture, Machine, Session, name},
    },
    streams::sink::{Query, suite},
};
use proto::{
    link::{
        CloseCode,
        frame::MAX_REQUEST_BYTES,
        message::{AgentRequest, Report},
    },
    stream::{
        Class, Epoch, Gap, GapReason, Mark, StreamKey,
        batch::Record,
        message::{Held, Lag},
        ranges::Range,
    },
};

fn key() -> StreamKey {
    StreamKey { stream: name("scans"), epoch: Epoch(7) }
}

fn batch(range: Range) -> Batch {
    let record = |n: u64| Record { time_ms: n as i64, bytes: format!("record {n}").into() };
    Batch { epoch: Epoch(7), first: range.start, records: range.map(record).collect() }
}

/// A lane as an agent has it.
struct Agent {
    session: Session,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
}

impl Agent {
    async fn open(hub: &Hub, machine: &Machine, lane: Lane, next: u64) -> Agent {
        let session = machine.session(hub, Report::default()).await;
        let (mut send, recv) = session.connection.open_bi().await.unwrap();
        let held = vec![Held { key: key(), class: Class::Scans, first: 0, next }];
        let request = AgentRequest::Records(RecordsRequest { lane, held });
        frame::write(&mut send, &request, MAX_REQUEST_BYTES).await.unwrap();
        Agent { session, send, recv }
    }

    async fn say(&mut self, up: &Up) {
        frame::write(&mut self.send, up, MAX_FRAME_BYTES).await.unwrap();
    }

    async fn hear(&mut self) -> Down {
        let heard = frame::read(&mut self.recv, MAX_FRAME_BYTES);
        tokio::time::timeout(Duration::from_secs(20), heard).await.unwrap().unwrap()
    }

    async fn give(&mut self, batch: &Batch) {
        let sealed = batch.seal().unwrap();
        let (first, count, bytes) = (batch.first, batch.records.len() as u64, sealed.len() as u32);
        self.say(&Up::Batch { stream: name("scans"), first, count, bytes }).await;
        self.send.write_all(&sealed).await.unwrap();
    }

    async fn acked(&mut self, range: Range) {
        loop {
            match self.hear().await {
                Down::Acks { marks } if marks.iter().any(|m| m.durable.contains(&range)) => return,
                Down::Acks { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Why the hub closed the session, in words.
    async fn closed(&self) -> (Option<CloseCode>, String) {
        let closed = tokio::time::timeout(Duration::from_secs(20), self.session.connection.closed()).await.unwrap();
        (CloseCode::of(&closed), closed.to_string())
    }
}

#[tokio::test]
async fn records_are_acknowledged_once_they_are_durable_and_kept_once() {
    let fixture = Fixture::start().await;
    let hub = &fixture.hub;
    let machine = fixture.member("n1").await;
    let mut live = Agent::open(hub, &machine, Lane::Live, 0).await;
    assert_eq!(live.hear().await, Down::Marks { marks: vec![] });
    live.give(&batch(0..300)).await;
    live.give(&batch(200..600)).await;
    live.acked(0..600).await;
    let gap = Gap { key: key(), first: 600, count: 50, reason: GapReason::Shed };
    live.say(&Up::Gap(gap)).await;
    live.acked(0..650).await;
    live.say(&Up::Lag { streams: vec![Lag { key: key(), next: 700, records: 50, oldest: None }] }).await;
    frame::write(&mut live.send, &serde_json::json!({"type": "fromTheFuture"}), 100).await.unwrap();
    let event = StreamKey { stream: name("events"), epoch: Epoch(7) };
    live.say(&Up::Open(Held { key: event.clone(), class: Class::Events, first: 0, next: 1 })).await;
    let seen = async {
        while hub.streams().live().len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), seen).await.unwrap();
    let states = hub.streams().live();
    assert_eq!((&states[0].key, states[0].reported_next), (&event, 1));
    let scans = (&states[1].key, states[1].reported_next, states[1].lag_records, states[1].site.as_str());
    assert_eq!(scans, (&key(), 700, 50, "s1"));

    // The next session, on the other lane, is told what is durable.
    let mut backlog = Agent::open(hub, &machine, Lane::Backlog, 700).await;
    let marks = vec![Mark { key: key(), durable: std::iter::once(0..650).collect() }];
    assert_eq!(backlog.hear().await, Down::Marks { marks });
    backlog.give(&batch(640..700)).await;
    backlog.acked(0..700).await;
    let kept = Query { limit: 10_000, ..suite::all("scans") };
    let rows = hub.streams().sink().query(&kept).await.unwrap().rows;
    let sequences: Vec<u64> = rows.iter().map(|r| r.sequence).collect();
    assert_eq!(sequences, (0..600).chain(650..700).collect::<Vec<_>>());
    assert!(rows.iter().all(|r| r.bytes == format!("record {}", r.sequence).as_bytes() && r.node.as_str() == "n1"));
}

#[tokio::test]
async fn what_breaks_the_protocol_closes_the_session_with_the_reason() {
    let fixture = Fixture::start().await;
    let hub = &fixture.hub;
    let machine = fixture.member("n1").await;
    let sealed = batch(0..10).seal().unwrap();
    let frame = |first, count, bytes: usize| Up::Batch { stream: name("scans"), first, count, bytes: bytes as u32 };
    let mut flipped = sealed.clone();
    flipped[20] ^= 1;
    let mut foreign = batch(0..10);
    foreign.epoch = Epoch(8);
    let foreign = foreign.seal().unwrap();
    let cases = [
        (frame(0, 11, sealed.len()), sealed.clone(), "its frame says 11 records, it holds 10 from 0 on"),
        (frame(1, 10, sealed.len()), sealed.clone(), "from 1 on: its frame says"),
        (frame(0, 10, flipped.len()), flipped, "damaged"),
        (frame(0, 10, 4), b"ABCD".to_vec(), "damaged"),
        (frame(0, 10, MAX_SEALED_BYTES + 1), vec![], "over the bound"),
        (frame(0, 10, foreign.len()), foreign, "scans/8 was not opened"),
        (Up::Gap(Gap { key: key(), first: 3, count: 0, reason: GapReason::Shed }), vec![], "no records"),
        (Up::Gap(Gap { key: key(), first: 3, count: u64::MAX, reason: GapReason::Shed }), vec![], "beyond"),
        (Up::Open(Held { key: key(), class: Class::Scans, first: 9, next: 8 }), vec![], "cannot hold"),
    ];
    for (up, payload, word) in cases {
        let mut agent = Agent::open(hub, &machine, Lane::Live, 0).await;
        agent.hear().await;
        agent.say(&up).await;
        agent.send.write_all(&payload).await.unwrap();
        let (code, why) = agent.closed().await;
        assert_eq!(code, Some(CloseCode::ProtocolError), "{word}");
        assert!(why.contains(word), "{why} instead of {word}");
    }
    for noise in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x02{]", b"\0\0\0\x07\"noise\""] {
        let mut agent = Agent::open(hub, &machine, Lane::Live, 0).await;
        agent.hear().await;
        agent.send.write_all(noise).await.unwrap();
        assert_eq!(agent.closed().await.0, Some(CloseCode::ProtocolError));
    }
    // Too many holes: told with the close, though it is found out later.
    let mut agent = Agent::open(hub, &machine, Lane::Live, 0).await;
    agent.hear().await;
    for piece in 0..40 {
        agent.give(&batch(piece * 10..piece * 10 + 1)).await;
    }
    let (code, why) = agent.closed().await;
    assert_eq!(code, Some(CloseCode::ProtocolError));
    assert!(why.contains("holes"), "{why}");
    // An honest session of the same node goes on.
    let mut agent = Agent::open(hub, &machine, Lane::Live, 400).await;
    agent.hear().await;
    agent.give(&batch(0..400)).await;
    agent.acked(0..400).await;
}

/// What a node with this report and this record of its own is known for, as `reason count`.
async fn events_of(hub: &Hub, tells_events: bool, node: &str, machine: &Machine) -> Vec<String> {
    use proto::{
        link::{frame::MAX_CONTROL_BYTES, message::AgentMessage},
        object::{EventSpec, UpdatePhase, WorkloadStatus},
        stream::event::{self, EventRecord, SCHEMA},
    };
    let now = hub.env().wall.now();
    let status = WorkloadStatus {
        reason: "Unhealthy".into(),
        message: "no probe".into(),
        ..WorkloadStatus::new(None, UpdatePhase::RolledBack, now)
    };
    let report = Report { workloads: [("shop".parse().unwrap(), status)].into(), ..Report::default() };
    let hello = proto::link::message::Hello { tells_events, ..crate::hub::fixture::hello(hub, report) };
    let connection = machine.connect(hub).await;
    let (mut control, _welcome) = connection.open_bi().await.unwrap();
    frame::write(&mut control, &AgentMessage::Hello(Box::new(hello)), MAX_CONTROL_BYTES).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let key = StreamKey { stream: name(event::STREAM), epoch: Epoch(7) };
    let held = vec![Held { key, class: Class::Events, first: 0, next: 1 }];
    let request = AgentRequest::Records(RecordsRequest { lane: Lane::Live, held });
    frame::write(&mut send, &request, MAX_REQUEST_BYTES).await.unwrap();
    let record = EventRecord {
        schema: SCHEMA.into(),
        time: now,
        r#type: proto::object::EventType::Warning,
        reason: "RolledBack".into(),
        message: "shop: Unhealthy no probe".into(),
        app: Some("shop".parse().unwrap()),
        version: None,
    };
    let record = Record { time_ms: 1, bytes: serde_json::to_vec(&record).unwrap().into() };
    let batch = Batch { epoch: Epoch(7), first: 0, records: vec![record] };
    let sealed = batch.seal().unwrap();
    let up = Up::Batch { stream: name(event::STREAM), first: 0, count: 1, bytes: sealed.len() as u32 };
    frame::write(&mut send, &up, MAX_FRAME_BYTES).await.unwrap();
    send.write_all(&sealed).await.unwrap();
    let found = async {
        loop {
            let events = hub.store().list::<EventSpec>(None).await.unwrap().items;
            let by_node = events.iter().filter(|e| e.spec.source == node);
            let found: Vec<String> = by_node.map(|e| format!("{} {}", e.spec.reason, e.spec.count)).collect();
            let records = if tells_events { 1 } else { 2 };
            if found.iter().any(|text| text == &format!("RolledBack {records}")) {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), found).await.unwrap()
}

#[tokio::test]
async fn an_event_has_one_road() {
    let fixture = Fixture::start().await;
    let hub = &fixture.hub;
    // One of this version tells it as a record, and its report makes none.
    let tells = fixture.member("n1").await;
    assert_eq!(events_of(hub, true, "n1", &tells).await, ["RolledBack 1"]);
    // One of the version before cannot: its report does. (A record of the same counts beside it.)
    let older = fixture.member("n2").await;
    assert_eq!(events_of(hub, false, "n2", &older).await, ["RolledBack 2"]);
}

#[tokio::test]
async fn a_sink_that_is_down_is_told_and_an_event_and_taken_up_again() {
    use proto::object::EventSpec;
    let fixture = Fixture::start().await;
    let hub = &fixture.hub;
    let machine = fixture.member("n1").await;
    let mut agent = Agent::open(hub, &machine, Lane::Live, 0).await;
    agent.hear().await;
    // Somebody holds the database for longer than the hub waits for it.
    let path = hub.config().streams_database();
    let holder = rusqlite::Connection::open(&path).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    agent.give(&batch(0..10)).await;
    let Down::Held { reason } = agent.hear().await else { panic!("not told") };
    assert!(reason.contains("locked"), "{reason}");
    holder.execute_batch("ROLLBACK").unwrap();
    agent.acked(0..10).await;
    let back = async {
        loop {
            let events = hub.store().list::<EventSpec>(None).await.unwrap().items;
            let has = |reason: &str| events.iter().any(|e| e.spec.reason == reason);
            if has("SinkDown") && has("SinkBack") {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), back).await.unwrap();
}
