//! Joining and sessions over real QUIC on loopback.

use std::{collections::BTreeMap, time::Duration};

use proto::{
    digest::Digest,
    link::{
        ALPN, ALPN_JOIN, CHUNK_BYTES, CloseCode,
        frame::{self, MAX_METADATA_BYTES, MAX_REQUEST_BYTES},
        message::{
            AgentMessage, AgentRequest, BlobHeader, BlobRequest, CHUNK_ZSTD, Heartbeat, HubRequest, JoinReply,
            LogsHeader, LogsRequest, MetadataReply, MetadataRequest, Report,
        },
    },
    object::{
        AssignedApp, EventSpec, JoinTokenSpec, Node, NodePhase, NodeSpec, Object, ReleaseRef, Rollout, RolloutPhase,
        RolloutSpec, RunState, Running, SiteSpec, UpdatePhase, Usage, WorkloadStatus,
    },
    tuf::TrustedSet,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::logs::LogsError;
use crate::{
    hub::{
        Hub, HubError,
        fixture::{Fixture, Machine, name},
    },
    store::WatchEvent,
};

fn refused(reply: &JoinReply) -> &str {
    match reply {
        JoinReply::Refused { code, message } => {
            assert!(message.len() > 20, "{message}");
            code
        }
        JoinReply::Accepted { .. } => "Accepted",
    }
}

fn accepted(reply: &JoinReply) -> &str {
    match reply {
        JoinReply::Accepted { node, .. } => node.as_str(),
        JoinReply::Refused { code, message } => panic!("{code}: {message}"),
    }
}

/// Waits until an object of the store is as wanted.
async fn until<S: proto::object::Kind + PartialEq>(
    hub: &Hub,
    object: &str,
    test: impl Fn(&Object<S>) -> bool,
) -> Object<S> {
    let mut watch = hub.store().watch::<S>(None).unwrap();
    let wait = async {
        loop {
            if let Some(found) = hub.store().get::<S>(object).await.unwrap().filter(&test) {
                return found;
            }
            while let Some(event) = watch.next().await {
                if let WatchEvent::Added(o) | WatchEvent::Modified(o) = event
                    && o.name() == object
                {
                    break;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap()
}

#[tokio::test]
async fn a_box_joins_once_whatever_happens_to_it() {
    let fixture = Fixture::start().await;
    let hub = &fixture.hub;
    let token = fixture.token(None, 1).await;
    assert!(token.to_string().len() < 500);

    let mut first = Machine::new("m1");
    let reply = first.join(hub, &token, "n1").await;
    assert_eq!(accepted(&reply), "n1");
    let JoinReply::Accepted { site, hubs, root, .. } = &reply else { unreachable!() };
    assert_eq!((site.as_str(), hubs.len(), Digest::of(root.as_bytes())), ("s1", 1, token.root));
    assert!(hub.store().get::<SiteSpec>("s1").await.unwrap().is_some());

    // The answer was lost: the same again, nothing used up.
    assert_eq!(accepted(&first.join(hub, &token, "n1").await), "n1");
    // Reinstalled: another key, the same machine, the same node.
    let mut again = Machine::new("m1");
    assert_eq!(accepted(&again.join(hub, &token, "n1").await), "n1");
    assert_eq!(hub.store().list::<NodeSpec>(None).await.unwrap().items.len(), 1);
    // One box used the token, so another one finds it used up, a known one does not.
    assert_eq!(refused(&Machine::new("m3").join(hub, &token, "n3").await), "TokenUsedUp");
    assert_eq!(accepted(&again.join(hub, &token, "n1").await), "n1");
    // Nor does a box that it admitted and that was reinstalled since: the same command, the same node.
    assert_eq!(accepted(&Machine::new("m1").join(hub, &token, "n1").await), "n1");
    assert_eq!(refused(&Machine::new("m4").join(hub, &token, "n1").await), "TokenUsedUp");

    // Uses are nodes, not keys: a reinstall takes none from the boxes that are still to come.
    let token = fixture.token(None, 2).await;
    for (machine, node) in [("m5", "n5"), ("m5", "n5"), ("m5", "n5"), ("m6", "n6")] {
        assert_eq!(accepted(&Machine::new(machine).join(hub, &token, node).await), node);
    }
    assert_eq!(refused(&Machine::new("m7").join(hub, &token, "n7").await), "TokenUsedUp");
    // But a token for one node is not for any number of boxes that replace each other.
    let token = fixture.token(Some("n5"), 2).await;
    for machine in ["m7", "m8"] {
        assert_eq!(accepted(&Machine::new(machine).join(hub, &token, "x").await), "n5");
    }
    assert_eq!(refused(&Machine::new("m9").join(hub, &token, "x").await), "TokenUsedUp");

    // Another machine under the same name is refused, and told what to do.
    let token = fixture.token(None, 9).await;
    let reply = Machine::new("m2").join(hub, &token, "n1").await;
    assert_eq!(refused(&reply), "NameTaken");
    assert!(format!("{reply:?}").contains("--node n1"));
    // With a token for the node it replaces the box, whatever it calls itself.
    let bound = fixture.token(Some("n1"), 1).await;
    let mut other = Machine::new("m2");
    assert_eq!(accepted(&other.join(hub, &bound, "whatever").await), "n1");
    let node = hub.store().get::<NodeSpec>("n1").await.unwrap().unwrap();
    assert_eq!(node.status.identity.unwrap().machine_id, "m2");
    // A box that is a node does not become another one.
    let bound = fixture.token(Some("n9"), 1).await;
    assert_eq!(refused(&other.join(hub, &bound, "n1").await), "TokenForOtherNode");
    assert!(hub.store().get::<NodeSpec>("n9").await.unwrap().is_none());
}

#[tokio::test]
async fn bad_tokens_and_requests_are_refused_and_change_nothing() {
    let fixture = Fixture::start().await;
    let hub = &fixture.hub;
    let token = fixture.token(None, 1).await;
    let mut machine = Machine::new("m1");
    let wrong = |change: fn(&mut proto::token::Token)| {
        let mut token = token.clone();
        change(&mut token);
        token
    };
    assert_eq!(refused(&machine.join(hub, &wrong(|t| t.secret = "x".into()), "n1").await), "TokenUnknown");
    assert_eq!(refused(&machine.join(hub, &wrong(|t| t.id = "t-none".into()), "n1").await), "TokenUnknown");
    assert_eq!(refused(&machine.join(hub, &wrong(|t| t.id = "../x".into()), "n1").await), "TokenUnknown");
    assert_eq!(refused(&machine.join(hub, &token, "Not A Name").await), "BadRequest");

    let mut request = machine.request(&token, "n1");
    request.csr = machine.request(&token, "n1").csr.replace('A', "B");
    let reply = super::join::admit(hub, request).await.unwrap().unwrap_err();
    assert_eq!(reply.code, "BadRequest");

    let past = hub.env().wall.now().checked_sub(Duration::from_secs(1)).unwrap();
    let expire = move |t: &mut Object<JoinTokenSpec>| t.spec.expires_at = past;
    hub.store().modify(&token.id, expire).await.unwrap();
    assert_eq!(refused(&machine.join(hub, &token, "n1").await), "TokenExpired");
    assert!(hub.store().list::<NodeSpec>(None).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn tokens_need_a_release_repository_and_bounds() {
    let fixture = Fixture::start().await;
    let create = |uses, secs| {
        let ttl = Duration::from_secs(secs);
        fixture.hub.create_token(name("s1"), None, uses, ttl, BTreeMap::new(), false)
    };
    assert!(matches!(create(0, 60).await, Err(HubError::TokenBounds)));
    assert!(matches!(create(1, 0).await, Err(HubError::TokenBounds)));
    let env = fixture.hub.env().clone();
    let mut config = fixture.hub.config().clone();
    config.data_dir = fixture.folder.path().join("empty");
    crate::ca::Ca::create(&config.data_dir, &config.fleet, &env).unwrap();
    let empty = Hub::open(config, env).await.unwrap();
    let error =
        empty.create_token(name("s1"), None, 1, Duration::from_secs(60), BTreeMap::new(), false).await.unwrap_err();
    assert!(error.to_string().contains("crossdock release publish"), "{error}");
}

#[tokio::test]
async fn a_stranger_can_only_join() {
    let fixture = Fixture::start().await;
    let hub = &fixture.hub;
    let stranger = Machine::new("m");
    let link: Vec<Vec<u8>> = ALPN.iter().map(|a| a.to_vec()).collect();
    let connection = stranger.connect_as(hub, &link, false).await.unwrap();
    assert_eq!(CloseCode::of(&connection.closed().await), Some(CloseCode::NotAdmitted));
    // Another protocol version is refused in the handshake.
    let error = stranger.connect_as(hub, &[b"crossdock/99".to_vec()], false).await.unwrap_err();
    assert!(error.to_string().contains("protocol"), "{error}");
    // On a joining connection nothing but a join is understood.
    let connection = stranger.connect_as(hub, &[ALPN_JOIN.to_vec()], false).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let request = AgentRequest::Metadata(MetadataRequest::default());
    frame::write(&mut send, &request, MAX_REQUEST_BYTES).await.unwrap();
    assert_eq!(CloseCode::of(&connection.closed().await), Some(CloseCode::ProtocolError));
}

#[tokio::test]
async fn idle_joins_hold_neither_sessions_nor_handshakes_up() {
    let fixture = Fixture::start().await;
    let hub = &fixture.hub;
    let machine = fixture.member("n1").await;
    let (stranger, join) = (Machine::new("m"), [ALPN_JOIN.to_vec()]);
    let mut idle = vec![];
    for _ in 0..=super::MAX_JOINS {
        idle.push(stranger.connect_as(hub, &join, false).await.unwrap());
    }
    let (reason, ..) = futures_util::future::select_all(idle.iter().map(|c| Box::pin(c.closed()))).await;
    assert_eq!(CloseCode::of(&reason), Some(CloseCode::Overload));
    assert!(reason.to_string().contains("too many boxes"), "{reason}");
    machine.session(hub, Report::default()).await.assignment().await;
}

#[tokio::test]
async fn the_newest_session_wins_and_who_is_not_on_the_list_is_closed() {
    let fixture = Fixture::start().await;
    let hub = &fixture.hub;
    let machine = fixture.member("n1").await;
    let old = machine.session(hub, Report::default()).await;
    let mut new = machine.session(hub, Report::default()).await;
    assert_eq!(old.closed().await, Some(CloseCode::Replaced));
    assert!(new.assignment().await.apps.is_empty());

    // The box is replaced: its key is off the list, its session closed, its certificate worth nothing.
    let token = fixture.token(Some("n1"), 1).await;
    let mut spare = Machine::new("spare");
    assert_eq!(accepted(&spare.join(hub, &token, "x").await), "n1");
    assert_eq!(new.closed().await, Some(CloseCode::NotAdmitted));
    let refused = machine.connect(hub).await;
    assert_eq!(CloseCode::of(&refused.closed().await), Some(CloseCode::NotAdmitted));

    // The node is deleted.
    let session = spare.session(hub, Report::default()).await;
    hub.store().delete::<NodeSpec>("n1").await.unwrap();
    assert_eq!(session.closed().await, Some(CloseCode::NotAdmitted));
    let refused = spare.connect(hub).await;
    assert_eq!(CloseCode::of(&refused.closed().await), Some(CloseCode::NotAdmitted));
}

#[tokio::test]
async fn bad_frames_close_only_the_peer_that_sent_them() {
    let fixture = Fixture::start().await;
    let hub = &fixture.hub;
    let (good, bad) = (fixture.member("good").await, fixture.member("bad").await);
    let mut healthy = good.session(hub, Report::default()).await;
    let first = healthy.assignment().await.generation;

    for garbage in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x02{]", b"\0\0\0\x05\"abc\""] {
        let mut session = bad.session(hub, Report::default()).await;
        session.send.write_all(garbage).await.unwrap();
        assert_eq!(session.closed().await, Some(CloseCode::ProtocolError));

        let session = bad.session(hub, Report::default()).await;
        let (mut send, _recv) = session.connection.open_bi().await.unwrap();
        send.write_all(garbage).await.unwrap();
        assert_eq!(session.closed().await, Some(CloseCode::ProtocolError));
    }
    // What is unknown is skipped.
    let mut session = bad.session(hub, Report::default()).await;
    let unknown = serde_json::json!({"type": "fromTheFuture", "x": 1});
    frame::write(&mut session.send, &unknown, 1000).await.unwrap();
    let (mut send, mut recv) = session.connection.open_bi().await.unwrap();
    frame::write(&mut send, &unknown, 1000).await.unwrap();
    assert!(recv.read_to_end(10).await.is_err());
    assert!(session.connection.close_reason().is_none());

    let change = |node: &mut Node| drop(node.spec.apps.insert(name("app"), assigned("1")));
    hub.store().modify("good", change).await.unwrap();
    assert_eq!(healthy.assignment().await.generation, first + 1);
}

fn assigned(version: &str) -> AssignedApp {
    AssignedApp::new(version.parse().unwrap(), Digest::of(version.as_bytes()), None)
}

#[tokio::test]
async fn reports_are_written_heartbeats_are_not_and_silence_is_noticed() {
    let fixture = Fixture::start_with(|c| c.unknown_after = "3s".parse().unwrap()).await;
    let hub = &fixture.hub;
    let machine = fixture.member("n1").await;
    let mut session = machine.session(hub, Report { observed_generation: 41, ..Report::default() }).await;
    // The agent has seen more than the hub remembers: the hub goes above it.
    let mut generation = session.assignment().await.generation;
    while generation < 42 {
        generation = session.assignment().await.generation;
    }
    let node = until(hub, "n1", |n: &Node| n.status.phase == NodePhase::Ready).await;
    assert!(node.status.info.is_some() && node.status.usage.is_none());

    let usage = Usage { uptime_s: 77, ..Usage::default() };
    let clock = hub.env().wall.now();
    session.say(&AgentMessage::Heartbeat(Box::new(Heartbeat { usage, clock }))).await;
    let seen = async {
        while hub.node_view(node.clone()).status.usage.is_none_or(|u| u.uptime_s != 77) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), seen).await.unwrap();
    let stored = hub.store().get::<NodeSpec>("n1").await.unwrap().unwrap();
    assert_eq!(stored.metadata.resource_version, node.metadata.resource_version);

    let silent = until(hub, "n1", |n: &Node| n.status.phase == NodePhase::Unknown).await;
    let ready = &silent.status.conditions[0];
    assert!(ready.message.contains(&silent.status.last_seen.unwrap().to_string()), "{}", ready.message);
    // A heartbeat later it is back.
    session.say(&AgentMessage::Heartbeat(Box::new(Heartbeat { usage: Usage::default(), clock }))).await;
    until(hub, "n1", |n: &Node| n.status.phase == NodePhase::Ready).await;
}

#[tokio::test]
async fn downloads_of_all_nodes_together_keep_to_the_hubs_bound() {
    let rate = (CHUNK_BYTES * 4) as u64; // a second; a fifth of it may be spent ahead
    let fixture = Fixture::start_with(|c| c.bulk_bytes_per_s = Some(rate)).await;
    let mut state = 1_u32; // xorshift: what compresses would cost less
    let noise = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    });
    let content: Vec<u8> = noise.take(CHUNK_BYTES * 3).collect();
    let digest = fixture.release("big", "1", &content).await;
    let begun = tokio::time::Instant::now();
    let download = async |name: &str| {
        let session = fixture.member(name).await.session(&fixture.hub, Report::default()).await;
        let (mut send, mut recv) = session.connection.open_bi().await.unwrap();
        let request = AgentRequest::Blob(BlobRequest { digest, offset: 0 });
        frame::write(&mut send, &request, MAX_REQUEST_BYTES).await.unwrap();
        send.finish().unwrap();
        let _: BlobHeader = frame::read(&mut recv, MAX_REQUEST_BYTES).await.unwrap();
        chunks(&mut recv).await.len()
    };
    let got = tokio::join!(download("n1"), download("n2"));
    assert_eq!(got, (content.len(), content.len()));
    // Of six chunks the last waits until the five before it are paid for.
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn metadata_and_blobs_are_served_from_any_chunk() {
    let fixture = Fixture::start_with(|c| c.bulk_bytes_per_s_node = Some(100 << 20)).await;
    let hub = &fixture.hub;
    let content: Vec<u8> = (0..CHUNK_BYTES * 2 + 777).map(|i| (i % 251) as u8).collect();
    let digest = fixture.release("big", "1", &content).await;
    let machine = fixture.member("n1").await;
    let session = machine.session(hub, Report::default()).await;

    let ask = |request: AgentRequest| {
        let connection = session.connection.clone();
        async move {
            let (mut send, recv) = connection.open_bi().await.unwrap();
            frame::write(&mut send, &request, MAX_REQUEST_BYTES).await.unwrap();
            send.finish().unwrap();
            recv
        }
    };
    let mut recv = ask(AgentRequest::Metadata(MetadataRequest::default())).await;
    let reply: MetadataReply = frame::read(&mut recv, MAX_METADATA_BYTES).await.unwrap();
    let (root, _) = hub.trust().first_root().unwrap();
    let set = TrustedSet::new(&root).unwrap();
    let set = set.update(&MetadataReply { roots: vec![], ..reply }, hub.env().wall.now()).unwrap();
    assert_eq!(set.targets().len(), 2);

    for chunk in 0..3 {
        let offset = (chunk * CHUNK_BYTES) as u64;
        let mut recv = ask(AgentRequest::Blob(BlobRequest { digest, offset })).await;
        let header: BlobHeader = frame::read(&mut recv, MAX_REQUEST_BYTES).await.unwrap();
        assert_eq!(header, BlobHeader::Found { size: content.len() as u64 });
        assert_eq!(chunks(&mut recv).await, &content[chunk * CHUNK_BYTES..]);
    }
    for (digest, offset) in [(digest, 1), (digest, (CHUNK_BYTES * 3) as u64), (Digest::of(b"none"), 0)] {
        let mut recv = ask(AgentRequest::Blob(BlobRequest { digest, offset })).await;
        let header: BlobHeader = frame::read(&mut recv, MAX_REQUEST_BYTES).await.unwrap();
        assert!(matches!(header, BlobHeader::NotFound { .. }), "{header:?}");
        assert!(recv.read_to_end(10).await.unwrap().is_empty());
    }
}

async fn chunks(recv: &mut quinn::RecvStream) -> Vec<u8> {
    let mut content = vec![];
    while let Ok(header) = recv.read_u32().await {
        let mut chunk = vec![0; (header & !CHUNK_ZSTD) as usize];
        recv.read_exact(&mut chunk).await.unwrap();
        let plain = if header & CHUNK_ZSTD == 0 { chunk } else { zstd::bulk::decompress(&chunk, CHUNK_BYTES).unwrap() };
        content.extend(plain);
    }
    content
}

#[tokio::test]
async fn a_rollout_reaches_the_node_and_ends_with_its_report() {
    let fixture = Fixture::start().await;
    let hub = &fixture.hub;
    let machine = fixture.member("n1").await;
    let mut session = machine.session(hub, Report::default()).await;
    session.assignment().await;
    let spec = RolloutSpec::new("app@1".parse().unwrap(), "all".parse().unwrap());
    let rollout: Rollout = Object::new(name("r1"), spec);
    hub.store().create(rollout).await.unwrap();
    let assignment = session.assignment().await;
    let release = assignment.apps[&name("app")].clone();
    let report = report(assignment.generation, &release.release);
    session.say(&AgentMessage::Report(Box::new(report))).await;
    let done = until(hub, "r1", |r: &Rollout| r.status.phase.is_final()).await;
    assert_eq!(done.status.phase, RolloutPhase::Succeeded, "{:?}", done.status);
    assert_eq!(done.status.message, "1 of 1 healthy");
}

fn report(observed_generation: u64, release: &ReleaseRef) -> Report {
    let since = jiff::Timestamp::UNIX_EPOCH;
    let running = Running {
        release: release.clone(),
        state: RunState::Running,
        ready: true,
        restarts: 0,
        started_at: None,
        last_exit: None,
    };
    let status = WorkloadStatus {
        running: Some(running),
        ..WorkloadStatus::new(Some(release.clone()), UpdatePhase::Succeeded, since)
    };
    Report { observed_generation, conditions: vec![], workloads: [(name("app"), status)].into(), ..Report::default() }
}

/// Events by message, with their counts.
async fn events(hub: &Hub) -> BTreeMap<String, u32> {
    let events = hub.store().list::<EventSpec>(None).await.unwrap().items;
    events.into_iter().map(|e| (e.spec.message, e.spec.count)).collect()
}

#[tokio::test]
async fn a_failure_that_the_store_has_is_no_new_event() {
    let fixture = Fixture::start().await;
    let hub = &fixture.hub;
    let machine = fixture.member("n1").await;
    let release = ReleaseRef { version: "1".parse().unwrap(), digest: Digest::of(b"1") };
    let failed = |message: &str| {
        let mut report = report(1, &release);
        let app = report.workloads.get_mut(&name("app")).unwrap();
        (app.phase, app.reason, app.message) = (UpdatePhase::RolledBack, "Exited".into(), message.into());
        report
    };
    // Each session ends with a failure of its own, told after whatever else the session tells.
    for (session, own) in ["first", "second", "third"].into_iter().enumerate() {
        let mut said = machine.session(hub, failed(["old", "first", "second"][session])).await;
        said.say(&AgentMessage::Report(Box::new(failed(own)))).await;
        let told = async {
            while !events(hub).await.contains_key(&format!("app@1: Exited {own}")) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), told).await.unwrap();
    }
    let counts = events(hub).await;
    for own in ["old", "first", "second", "third"] {
        assert_eq!(counts[&format!("app@1: Exited {own}")], 1, "{counts:?}");
    }
}

#[tokio::test]
async fn output_comes_from_the_node() {
    let fixture = Fixture::start().await;
    let hub = &fixture.hub;
    let request = |app: &str| LogsRequest { app: name(app), tail: None, follow: false };
    let absent = hub.node_logs(&name("n1"), request("app")).await;
    assert!(matches!(absent, Err(LogsError::NotConnected(_))));

    let machine = fixture.member("n1").await;
    let session = machine.session(hub, Report::default()).await;
    let connection = session.connection.clone();
    let node = tokio::spawn(async move {
        for _ in 0..2 {
            let (mut send, mut recv) = connection.accept_bi().await.unwrap();
            let HubRequest::Logs(request) = frame::read(&mut recv, MAX_REQUEST_BYTES).await.unwrap() else { panic!() };
            let found = request.app == name("app");
            let header = if found { LogsHeader::Found } else { LogsHeader::NotFound { message: "no such app".into() } };
            frame::write(&mut send, &header, MAX_REQUEST_BYTES).await.unwrap();
            if found {
                send.write_all(b"line 1\nline 2\n").await.unwrap();
                send.flush().await.unwrap();
            }
            send.finish().unwrap();
        }
    });
    let missing = hub.node_logs(&name("n1"), request("other")).await;
    assert!(matches!(missing, Err(LogsError::NotFound(_))));
    let mut lines = hub.node_logs(&name("n1"), request("app")).await.unwrap();
    let mut text = vec![];
    while let Some(piece) = lines.recv().await {
        text.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(text, b"line 1\nline 2\n");
    node.await.unwrap();
}

#[tokio::test]
async fn agents_learn_of_a_shutdown_and_of_a_restart() {
    let mut fixture = Fixture::start().await;
    let machine = fixture.member("n1").await;
    let session = machine.session(&fixture.hub, Report::default()).await;
    fixture.stop().await;
    assert_eq!(session.closed().await, Some(CloseCode::GoingAway));

    // Restarted on its data folder it knows the node, and keeps its identity.
    let config = fixture.hub.config().clone();
    let env = fixture.hub.env().clone();
    let before = fixture.hub.ca().server_identity("link", &[proto::identity::HUB_DNS_NAME.into()]).unwrap().chain;
    let hub = Hub::open(config, env).await.unwrap();
    let after = hub.ca().server_identity("link", &[proto::identity::HUB_DNS_NAME.into()]).unwrap().chain;
    assert_eq!(before, after);
    let running = tokio::spawn({
        let hub = hub.clone();
        async move { hub.run(std::future::pending()).await }
    });
    machine.session(&hub, Report::default()).await;
    assert!(hub.trust().first_root().is_some());
    running.abort();
}
