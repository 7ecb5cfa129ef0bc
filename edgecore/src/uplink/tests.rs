//! The uplink against a stand-in for the hub that speaks the lanes, over real QUIC on loopback, in virtual
//! time.

use std::net::{Ipv4Addr, SocketAddr};

use proto::{
    env::{Blocking, Env},
    identity::{HUB_DNS_NAME, crypto_provider},
    name::Name,
    stream::{
        Class, Epoch, GapReason,
        batch::{Batch, MAX_SEALED_BYTES},
        ranges::Range,
    },
};
use quinn::{Endpoint, ServerConfig, TransportConfig, VarInt, crypto::rustls::QuicServerConfig};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::{task::JoinHandle, time::sleep};

use super::*;
use crate::{
    link::quic,
    outbox::{Appended, OutboxConfig},
};

/// Bytes that the stand-in takes on a stream that it does not read.
const STREAM_WINDOW: u32 = 64 << 10;
/// What ought to happen at once.
const SOON: Duration = Duration::from_secs(5);

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Nothing is done on other threads: virtual time would run away meanwhile.
fn env() -> Env {
    Env { blocking: Blocking::Inline, ..Env::real().unwrap() }
}

/// An agent's outbox and uplink, and the line to the stand-in.
struct Edge {
    outbox: Outbox,
    live: watch::Sender<Option<Live>>,
    uplink: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.uplink.abort();
    }
}

impl Edge {
    async fn new() -> Edge {
        let folder = tempfile::tempdir().unwrap();
        let streams = vec![(name("scans"), Class::Scans), (name("logs"), Class::Logs)];
        let config = OutboxConfig { quota_bytes: 64 << 20, disk_share_percent: 100, streams };
        let outbox = Outbox::open(folder.path(), config, env()).await.unwrap();
        let live = watch::channel(None).0;
        let uplink = tokio::spawn(run(outbox.clone(), live.subscribe()));
        Edge { outbox, live, uplink, _folder: folder }
    }

    async fn append(&self, stream: &str, texts: Range) -> Appended {
        let records = texts.map(|n| Bytes::from(format!("record {n}"))).collect();
        self.outbox.append(&name(stream), records).await.unwrap()
    }

    /// Records that wait, of all streams.
    fn waiting(&self) -> u64 {
        self.outbox.state().borrow().records
    }

    async fn until_waiting(&self, records: u64) {
        let mut state = self.outbox.state();
        let reached = state.wait_for(|state| state.records == records);
        timeout(SOON, reached).await.unwrap_or_else(|_| panic!("{} records wait", self.waiting())).unwrap();
    }

    fn epoch(&self, stream: &str) -> Epoch {
        self.outbox.held().into_iter().rfind(|h| h.key.stream.as_str() == stream).unwrap().key.epoch
    }
}

/// The stand-in.
struct Hub {
    endpoint: Endpoint,
    certificate: CertificateDer<'static>,
}

impl Hub {
    fn start() -> Hub {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let certificate = CertificateParams::new(vec![HUB_DNS_NAME.into()]).unwrap().self_signed(&key).unwrap();
        let certificate = certificate.der().clone();
        let mut tls = rustls::ServerConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
        tls.alpn_protocols = vec![b"test".to_vec()];
        let mut config = ServerConfig::with_crypto(std::sync::Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        let mut transport = TransportConfig::default();
        transport.stream_receive_window(VarInt::from_u32(STREAM_WINDOW));
        config.transport_config(std::sync::Arc::new(transport));
        let endpoint = Endpoint::server(config, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        Hub { endpoint, certificate }
    }

    /// Connects a box as its link does; the stand-in's end of it.
    async fn connect(&self, edge: &Edge) -> Connection {
        let env = env();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let mut tls = quic::tls(&env).unwrap().with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"test".to_vec()];
        let address = self.endpoint.local_addr().unwrap().to_string();
        let (ours, theirs) = tokio::join!(
            async { self.endpoint.accept().await.unwrap().await.unwrap() },
            quic::connect(&env, &address, 0, tls, &env.seed)
        );
        let (endpoint, connection) = theirs.unwrap();
        edge.live.send_replace(Some(Live::new(endpoint, connection)));
        ours
    }
}

/// One lane, as the hub has it.
struct Line {
    request: RecordsRequest,
    send: SendStream,
    recv: RecvStream,
}

/// A batch that arrived: first sequence and texts.
type Arrived = (Epoch, u64, Vec<String>);

impl Line {
    /// The next lane that the agent opens.
    async fn accept(connection: &Connection) -> Line {
        let (send, mut recv) = connection.accept_bi().await.unwrap();
        let request = frame::read(&mut recv, MAX_REQUEST_BYTES).await.unwrap();
        let AgentRequest::Records(request) = request else { panic!("{request:?}") };
        Line { request, send, recv }
    }

    /// Both lanes, live first, answered with what the hub has.
    async fn both(connection: &Connection, marks: &[Mark]) -> (Line, Line) {
        let (mut one, mut other) = (Line::accept(connection).await, Line::accept(connection).await);
        for line in [&mut one, &mut other] {
            line.say(&Down::Marks { marks: marks.to_vec() }).await;
        }
        assert_eq!((one.request.lane, other.request.lane), (Lane::Live, Lane::Backlog));
        (one, other)
    }

    async fn say(&mut self, down: &Down) {
        frame::write(&mut self.send, down, MAX_FRAME_BYTES).await.unwrap();
    }

    async fn ack(&mut self, key: &StreamKey, durable: Range) {
        self.say(&Down::Acks { marks: vec![mark(key, &[durable])] }).await;
    }

    /// What comes next, and the batch that follows it; how far behind it is, is passed over.
    async fn hear(&mut self) -> (Up, Option<Arrived>) {
        loop {
            let up = timeout(SOON, frame::read(&mut self.recv, MAX_FRAME_BYTES)).await.expect("nothing came").unwrap();
            match up {
                Up::Lag { .. } => {}
                Up::Batch { bytes, first, count, .. } => {
                    let mut sealed = vec![0; usize::try_from(bytes).unwrap().min(MAX_SEALED_BYTES)];
                    self.recv.read_exact(&mut sealed).await.unwrap();
                    let batch = Batch::open(&sealed).unwrap();
                    assert_eq!((batch.first, batch.records.len() as u64), (first, count));
                    let texts = batch.records.iter().map(|r| String::from_utf8_lossy(&r.bytes).into_owned());
                    return (up, Some((batch.epoch, first, texts.collect())));
                }
                up => return (up, None),
            }
        }
    }

    async fn batch(&mut self) -> Arrived {
        let (up, batch) = self.hear().await;
        batch.unwrap_or_else(|| panic!("{up:?}"))
    }
}

fn mark(key: &StreamKey, ranges: &[Range]) -> Mark {
    Mark { key: key.clone(), durable: ranges.iter().cloned().collect() }
}

fn texts(numbers: Range) -> Vec<String> {
    numbers.map(|n| format!("record {n}")).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_acknowledged_is_deleted_and_nothing_else() {
    let (hub, edge) = (Hub::start(), Edge::new().await);
    let Appended { key, .. } = edge.append("scans", 0..10).await;
    let connection = hub.connect(&edge).await;
    let (mut live, mut backlog) = Line::both(&connection, &[]).await;
    let held = live.request.held.iter().map(|h| (h.key.stream.as_str(), h.first, h.next)).collect::<Vec<_>>();
    assert_eq!(
        held,
        [("scans", 0, 0), ("logs", 0, 0)],
        "the first session of a start tells what was held when it began"
    );
    assert_eq!(backlog.batch().await, (key.epoch, 0, texts(0..10)));
    edge.append("scans", 10..13).await;
    assert_eq!(live.batch().await, (key.epoch, 10, texts(10..13)));
    assert_eq!(edge.waiting(), 13, "sent is not durable");
    live.ack(&key, 10..13).await;
    edge.until_waiting(10).await;
    // Acknowledged twice, on either lane; words of a newer hub and of one in trouble between.
    frame::write(&mut live.send, &serde_json::json!({"type": "later"}), MAX_FRAME_BYTES).await.unwrap();
    live.say(&Down::Held { reason: "the disk is full".into() }).await;
    live.say(&Down::Acks { marks: vec![mark(&key, &[0..4, 10..13])] }).await;
    backlog.say(&Down::Acks { marks: vec![mark(&key, &[0..4, 10..13])] }).await;
    edge.until_waiting(6).await;
    // A session that ends costs nothing but sending again what was not acknowledged.
    connection.close(VarInt::from_u32(0), b"");
    edge.live.send_replace(None);
    let connection = hub.connect(&edge).await;
    let (_live, mut backlog) = Line::both(&connection, &[mark(&key, &[0..4, 10..13])]).await;
    assert_eq!(backlog.batch().await, (key.epoch, 4, texts(4..10)));
    backlog.ack(&key, 0..13).await;
    edge.until_waiting(0).await;
    assert!(!edge.uplink.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_hub_without_streams_is_asked_again_on_the_same_connection() {
    let (hub, edge) = (Hub::start(), Edge::new().await);
    let Appended { key, .. } = edge.append("scans", 0..2).await;
    let connection = hub.connect(&edge).await;
    for _ in 0..3 {
        let begun = Instant::now();
        let mut line = Line::accept(&connection).await;
        line.send.reset(VarInt::from_u32(9)).unwrap();
        line.recv.stop(VarInt::from_u32(9)).unwrap();
        // The other lane may have been opened already, or never is.
        while let Ok(Ok((mut send, _recv))) = timeout(TROUBLE_WAIT / 2, connection.accept_bi()).await {
            send.reset(VarInt::from_u32(9)).unwrap();
        }
        assert!(begun.elapsed() < TROUBLE_WAIT * 2);
        assert_eq!(connection.close_reason(), None, "whatever else is on the connection goes on");
    }
    // It was brought up to date.
    let (_live, mut backlog) = Line::both(&connection, &[]).await;
    assert_eq!(backlog.batch().await, (key.epoch, 0, texts(0..2)));
    backlog.ack(&key, 0..2).await;
    edge.until_waiting(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_says_nothing_is_given_up_and_asked_again() {
    let (hub, edge) = (Hub::start(), Edge::new().await);
    let Appended { key, .. } = edge.append("scans", 0..2).await;
    let connection = hub.connect(&edge).await;
    let silent = (Line::accept(&connection).await, Line::accept(&connection).await);
    let begun = Instant::now();
    let (_live, mut backlog) = Line::both(&connection, &[]).await;
    assert!((PATIENCE..PATIENCE + TROUBLE_WAIT * 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    drop(silent);
    assert_eq!(backlog.batch().await, (key.epoch, 0, texts(0..2)));
}

#[tokio::test(start_paused = true)]
async fn what_a_restored_hub_lost_is_told_as_a_gap() {
    let (hub, edge) = (Hub::start(), Edge::new().await);
    let Appended { key, .. } = edge.append("scans", 0..10).await;
    edge.outbox.delete(&key, vec![0..6]).await.unwrap(); // the hub had acknowledged them
    let connection = hub.connect(&edge).await;
    let (mut live, mut backlog) = Line::both(&connection, &[mark(&key, &[0..3])]).await;
    let gap = Gap { key: key.clone(), first: 3, count: 3, reason: GapReason::HubLost };
    assert_eq!(live.hear().await, (Up::Gap(gap), None));
    assert_eq!(backlog.batch().await, (key.epoch, 6, texts(6..10)));
    backlog.ack(&key, 0..10).await;
    edge.until_waiting(0).await;
}

#[tokio::test(start_paused = true)]
async fn records_that_the_hub_mistakes_for_others_arrive_under_a_new_epoch() {
    let (hub, edge) = (Hub::start(), Edge::new().await);
    let Appended { key, .. } = edge.append("scans", 0..10).await;
    // The hub knows more of this epoch than this outbox ever gave: it is an older copy.
    let more = [mark(&key, &[0..50])];
    let mut connection = hub.connect(&edge).await;
    let _lines = Line::both(&connection, &more).await;
    // Whether the session or only the lanes begin again, the new ones name a new epoch.
    let begun = Instant::now();
    let epoch = loop {
        assert!(begun.elapsed() < Duration::from_secs(60), "no record came under a new epoch");
        let next = tokio::select! {
            biased;
            _ = connection.closed() => None,
            lines = Line::both(&connection, &more) => Some(lines),
        };
        let Some((_live, mut backlog)) = next else {
            edge.live.send_replace(None);
            connection = hub.connect(&edge).await;
            continue;
        };
        let named: Vec<&StreamKey> = backlog.request.held.iter().map(|h| &h.key).collect();
        let new = named.iter().rfind(|k| k.stream == key.stream).unwrap().epoch;
        if new == key.epoch {
            continue;
        }
        let (epoch, first, arrived) = backlog.batch().await;
        assert_eq!((epoch, first, arrived), (new, 0, texts(0..10)));
        backlog.ack(&StreamKey { epoch, ..key.clone() }, 0..10).await;
        edge.until_waiting(0).await;
        break epoch;
    };
    assert_eq!(edge.epoch("scans"), epoch);
    assert_eq!(edge.epoch("logs"), key.epoch, "the other streams go on");
    assert_eq!(edge.append("scans", 10..11).await.key.epoch, epoch);
}

#[tokio::test(start_paused = true)]
async fn a_backlog_that_is_stuck_does_not_stop_what_is_live() {
    let (hub, edge) = (Hub::start(), Edge::new().await);
    let noise = |seed: u64| -> Bytes {
        (0..2_000_u64)
            .flat_map(|i| proto::digest::Digest::of(&(seed << 32 | i).to_be_bytes()).as_bytes().to_vec())
            .collect()
    };
    for seed in 0..16 {
        edge.outbox.append(&name("logs"), vec![noise(seed)]).await.unwrap();
    }
    let connection = hub.connect(&edge).await;
    let (mut live, mut backlog) = Line::both(&connection, &[]).await;
    // Nobody reads the backlog: its lane is full after a window, the rest waits at the agent.
    sleep(Duration::from_secs(1)).await; // what goes has gone
    for n in 0..50 {
        let Appended { key, range } = edge.append("scans", n..n + 1).await;
        assert_eq!(live.batch().await, (key.epoch, n, texts(n..n + 1)));
        live.ack(&key, 0..range.end).await;
        edge.until_waiting(16).await;
    }
    // It goes on where it stopped.
    let mut logs = 0;
    while logs < 16 {
        let (epoch, first, texts) = backlog.batch().await;
        assert_eq!(first, logs);
        logs += texts.len() as u64;
        backlog.ack(&StreamKey { stream: name("logs"), epoch }, 0..logs).await;
    }
    edge.until_waiting(0).await;
}

#[tokio::test(start_paused = true)]
async fn how_far_it_is_behind_is_told_when_it_changes_and_only_then() {
    let (hub, edge) = (Hub::start(), Edge::new().await);
    let connection = hub.connect(&edge).await;
    let (mut live, _backlog) = Line::both(&connection, &[]).await;
    let begun = Instant::now();
    let mut told = vec![];
    let mut appended = None;
    while let Ok(up) = timeout(Duration::from_secs(60), frame::read::<Up>(&mut live.recv, MAX_FRAME_BYTES)).await {
        match up.unwrap() {
            Up::Lag { streams } => {
                told.push(streams.iter().map(|lag| lag.records).sum::<u64>());
                if appended.is_none() {
                    appended = Some(edge.append("scans", 0..3).await);
                }
            }
            Up::Batch { bytes, .. } => {
                let mut sealed = vec![0; usize::try_from(bytes).unwrap()];
                live.recv.read_exact(&mut sealed).await.unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, [0, 3], "after {:?}", begun.elapsed());
}

#[test]
fn an_epoch_is_over_when_it_is_empty_and_its_stream_goes_on() {
    let held = |stream: &str, epoch| {
        let key = StreamKey { stream: name(stream), epoch: Epoch(epoch) };
        Held { key, class: Class::Scans, first: 0, next: 5 }
    };
    // An epoch's number says nothing about its age.
    let (old, new, other) = (held("scans", 9), held("scans", 2), held("logs", 9));
    let known = [old.clone(), new.clone(), other.clone()];
    assert!(!epoch_over(&known, &known));
    assert!(epoch_over(&known, &[new.clone(), other.clone()]));
    // The newest is no longer shown once it is empty, unless it is set up: it goes on.
    assert!(!epoch_over(&known, &[old, other]));
    assert!(!epoch_over(&[new], &[]));
}
