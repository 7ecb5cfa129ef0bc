//! Joining and sessions against a stand-in for the hub, over real QUIC on loopback.

use std::{net::SocketAddr, path::Path};

use data_encoding::BASE64;
use proto::{
    digest::Digest,
    durable::{Loaded, Record},
    identity::{HUB_DNS_NAME, NODE_DNS_SUFFIX, crypto_provider, spki_digest},
    link::{
        ALPN_JOIN,
        frame::{self, MAX_CONTROL_BYTES, MAX_METADATA_BYTES, MAX_REQUEST_BYTES},
        message::{AgentMessage, Assignment, Hello, HubMessage, JoinReply, JoinRequest, Welcome},
    },
    object::{NodeInfo, ReleaseRef},
    token::Token,
};
use quinn::{ServerConfig, crypto::rustls::QuicServerConfig};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair, PKCS_ED25519,
};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::*;
use crate::{
    agent::Agent,
    apps::slot::{self, Failure, Installed, Slot},
    driver::process::ProcessDriver,
    fetch::tests::env,
    join::{JoinError, JoinOptions, join},
    status::{StatusView, explain},
    trust::tests::root,
};

/// What the stand-in does with those who come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Welcoming,
    Refusing,
    /// It closes before it answers, as on a lost line.
    LosingAnswers,
    NotAdmitting,
    /// It speaks no version of the link.
    OtherProtocol,
    /// It hands out another first root than the token pins.
    OtherRoot,
}

struct Hub {
    endpoint: Endpoint,
    ca: Digest,
    messages: mpsc::Receiver<AgentMessage>,
    task: tokio::task::JoinHandle<()>,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

fn authority() -> Authority {
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let certificate = params.self_signed(&key).unwrap();
    Authority { certificate: certificate.der().clone(), pem: certificate.pem(), issuer: Issuer::new(params, key) }
}

impl Hub {
    fn start(authority: Authority, manner: Manner) -> Hub {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let own =
            CertificateParams::new(vec![HUB_DNS_NAME.into()]).unwrap().signed_by(&key, &authority.issuer).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto_provider())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let mut tls = rustls::ServerConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![own.der().clone(), authority.certificate.clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        tls.alpn_protocols = match manner {
            Manner::OtherProtocol => vec![b"crossdock/99".to_vec()],
            _ => vec![ALPN[0].to_vec(), ALPN_JOIN.to_vec()],
        };
        let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        let endpoint = Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let ca = spki_digest(&authority.certificate).unwrap();
        let (sender, messages) = mpsc::channel(100);
        let task = tokio::spawn(accept(endpoint.clone(), Arc::new(authority), manner, sender));
        Hub { endpoint, ca, messages, task }
    }

    fn address(&self) -> String {
        self.endpoint.local_addr().unwrap().to_string()
    }

    fn token(&self) -> Token {
        let root = Digest::of(root().as_bytes());
        Token { id: "t".into(), secret: "s".into(), ca: self.ca, root, director: None, fleet: None }
    }

    fn options(&self, folder: &Path) -> JoinOptions {
        JoinOptions {
            brokers: vec![],
            data_dir: folder.to_owned(),
            hub: vec![self.address()],
            token: self.token(),
            name: Some("n1".into()),
            machine_id: "m1".into(),
        }
    }

    /// The next greeting; what came of a session before it is passed over.
    async fn hello(&mut self) -> Box<Hello> {
        loop {
            if let AgentMessage::Hello(hello) = self.messages.recv().await.unwrap() {
                return hello;
            }
        }
    }

    fn stop(self) {
        self.task.abort();
        self.endpoint.close(CloseCode::GoingAway.code(), b"");
    }
}

async fn accept(endpoint: Endpoint, authority: Arc<Authority>, manner: Manner, sender: mpsc::Sender<AgentMessage>) {
    while let Some(incoming) = endpoint.accept().await {
        let (authority, sender) = (authority.clone(), sender.clone());
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            let data = connection.handshake_data().unwrap().downcast::<quinn::crypto::rustls::HandshakeData>().unwrap();
            match data.protocol.as_deref() == Some(ALPN_JOIN) {
                true => admit(&connection, &authority, manner).await,
                false => talk(&connection, manner, sender).await,
            }
            connection.closed().await;
        });
    }
}

async fn admit(connection: &Connection, authority: &Authority, manner: Manner) {
    let (mut send, mut receive) = connection.accept_bi().await.unwrap();
    let request: JoinRequest = frame::read(&mut receive, MAX_REQUEST_BYTES).await.unwrap();
    assert_eq!((request.machine_id.as_str(), request.secret.as_str()), ("m1", "s"));
    let csr = CertificateSigningRequestDer::from(BASE64.decode(request.csr.as_bytes()).unwrap());
    let mut request = CertificateSigningRequestParams::from_der(&csr).unwrap();
    request.params = CertificateParams::new(vec![format!("n1{NODE_DNS_SUFFIX}")]).unwrap();
    let certificate = request.signed_by(&authority.issuer).unwrap();
    let reply = match manner {
        Manner::LosingAnswers => return connection.close(CloseCode::GoingAway.code(), b""),
        Manner::Refusing => JoinReply::Refused { code: "TokenUsedUp".into(), message: "ask for another".into() },
        _ => JoinReply::Accepted {
            node: "n1".parse().unwrap(),
            site: "s1".parse().unwrap(),
            fleet: "f1".parse().unwrap(),
            certificates: format!("{}{}", certificate.pem(), authority.pem),
            root: if manner == Manner::OtherRoot { "{}".into() } else { root() },
            director_root: None,
            hubs: vec!["hub.example".into()],
        },
    };
    frame::write(&mut send, &reply, MAX_METADATA_BYTES).await.unwrap();
    send.finish().unwrap();
}

async fn talk(connection: &Connection, manner: Manner, sender: mpsc::Sender<AgentMessage>) {
    if manner == Manner::NotAdmitting {
        return connection.close(CloseCode::NotAdmitted.code(), b"");
    }
    let Ok((mut send, mut receive)) = connection.accept_bi().await else { return };
    let hello: AgentMessage = frame::read(&mut receive, MAX_CONTROL_BYTES).await.unwrap();
    sender.send(hello).await.unwrap();
    let clock = env().wall.now();
    let welcome =
        Welcome { hub_version: "1".into(), fleet: "f1".parse().unwrap(), clock, heartbeat_ms: 1_000, nonce: None };
    let assignment = Assignment { generation: 7, ..Assignment::default() };
    for message in [HubMessage::Welcome(welcome), HubMessage::Assignment(assignment)] {
        frame::write(&mut send, &message, MAX_CONTROL_BYTES).await.unwrap();
    }
    while let Ok(message) = frame::read(&mut receive, MAX_CONTROL_BYTES).await {
        sender.send(message).await.ok();
    }
}

/// A running agent; dropping it is a crash.
struct Node {
    status: StatusView,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

fn facts() -> Facts {
    let info = NodeInfo {
        features: Default::default(),
        sealing_key: None,
        agent_version: "1".into(),
        boot_id: "b".into(),
        architecture: "x86_64".into(),
        os_image: String::new(),
        kernel: String::new(),
        cpus: 1,
        memory_bytes: 1,
        hostname: "h".into(),
        addresses: vec![],
        hardware: vec!["x86_64".into()],
        nvidia: None,
    };
    Facts::fixed(info)
}

async fn agent(folder: &Path) -> Node {
    let driver = Arc::new(ProcessDriver::new(folder.join("driver"), env()));
    let agent = Agent::open(folder, env(), driver, facts()).await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let status = agent.status();
    let task = tokio::spawn(async move {
        agent
            .run(async {
                stopped.await.ok();
            })
            .await
            .unwrap();
    });
    Node { status, stop: Some(stop), task }
}

impl Node {
    async fn problem(&self, reason: &str) -> String {
        for _ in 0..3_000 {
            let found = self.status.now().link.unwrap();
            if let Some(problem) = found.problem.filter(|p| p.reason == reason) {
                assert!(explain(&self.status.now()).contains("NOT connected"));
                return problem.message;
            }
            tokio::time::sleep(Duration::from_millis(10)).await; // paced, not timed: it ends on the condition
        }
        panic!("never {reason}: {:?}", self.status.now().link);
    }

    async fn stop(mut self) {
        drop(self.stop.take());
        self.task.await.unwrap();
    }
}

/// Joins a welcoming hub and points `agent.json` at another one.
async fn joined(manner: Manner) -> (TempDir, Hub) {
    let folder = tempfile::tempdir().unwrap();
    let first = authority();
    let (certificate, pem) = (first.certificate.clone(), first.pem.clone());
    let key = KeyPair::try_from(first.issuer.key().serialize_der()).unwrap();
    let again = Authority { issuer: Issuer::from_ca_cert_der(&certificate, key).unwrap(), certificate, pem };
    let welcoming = Hub::start(first, Manner::Welcoming);
    join(welcoming.options(folder.path()), &env()).await.unwrap();
    let hub = Hub::start(again, manner);
    point(folder.path(), &hub.address());
    welcoming.stop();
    (folder, hub)
}

fn point(folder: &Path, hub: &str) {
    let mut config = AgentConfig::load(folder).unwrap();
    config.hubs = vec![hub.to_owned()];
    config.store().unwrap();
}

#[tokio::test]
async fn a_box_joins_and_joins_again() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(authority(), Manner::Welcoming);
    for _ in 0..2 {
        let joined = join(hub.options(folder.path()), &env()).await.unwrap();
        assert_eq!((joined.node.as_str(), joined.site.as_str(), joined.fleet.as_str()), ("n1", "s1", "f1"));
        let config = AgentConfig::load(folder.path()).unwrap();
        assert_eq!(config.hubs, [hub.address(), "hub.example:7443".into()]);
        assert!(!Paths::new(folder.path()).joining_key().exists());
    }
}

#[tokio::test]
async fn another_trust_root_ends_what_the_one_before_vouched_for() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(authority(), Manner::Welcoming);
    join(hub.options(folder.path()), &env()).await.unwrap();
    let paths = Paths::new(folder.path());
    let digest = Digest::of(b"1");
    let slot = Slot {
        active: Some(Installed::new(ReleaseRef { version: "1".parse().unwrap(), digest }, 9)),
        failed: vec![Failure { digest, counter: 9, at: None, reason: "Unhealthy".into(), message: String::new() }],
        floor: 9,
        ..Slot::default()
    };
    let kept = |app: &str| Record::at(paths.apps().join(app).join("slot"));
    for app in ["web", "unreadable"] {
        std::fs::create_dir_all(paths.apps().join(app)).unwrap();
        slot::store(&kept(app), &slot).unwrap();
    }
    kept("unreadable").store(b"{").unwrap();
    paths.assignment().store(b"{}").unwrap();

    join(hub.options(folder.path()), &env()).await.unwrap();
    assert_eq!(slot::load(&kept("web")).unwrap(), slot, "the same fleet: all stays");
    assert_eq!(slot::load(&kept("unreadable")).unwrap(), Slot::default(), "whoever joins vouches for it");
    assert_ne!(paths.assignment().load().unwrap(), Loaded::Absent);

    std::fs::write(paths.first_root(), "another").unwrap();
    join(hub.options(folder.path()), &env()).await.unwrap();
    let begun_anew = Slot { floor: 0, failed: vec![], ..slot };
    assert_eq!(slot::load(&kept("web")).unwrap(), begun_anew, "another fleet: what runs goes on");
    assert_eq!(paths.assignment().load().unwrap(), Loaded::Absent);
}

#[tokio::test]
async fn each_refusal_of_a_join_is_told_apart_and_leaves_nothing() {
    for manner in [Manner::Refusing, Manner::LosingAnswers, Manner::OtherProtocol, Manner::OtherRoot] {
        let folder = tempfile::tempdir().unwrap();
        let hub = Hub::start(authority(), manner);
        let error = join(hub.options(folder.path()), &env()).await.unwrap_err();
        match manner {
            Manner::Refusing => assert!(matches!(&error, JoinError::Refused { code, .. } if code == "TokenUsedUp")),
            Manner::LosingAnswers => assert!(error.is_unreachable(), "{error}"),
            Manner::OtherProtocol => assert!(matches!(&error, JoinError::Link(p) if p.reason == "WrongProtocol")),
            _ => assert!(matches!(&error, JoinError::Answer(text) if text.contains("token pins")), "{error}"),
        }
        assert!(AgentConfig::load(folder.path()).is_err());
        assert!(Paths::new(folder.path()).joining_key().exists(), "the same key asks next time");
    }
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(authority(), Manner::Welcoming);
    let mut options = hub.options(folder.path());
    options.token.ca = Digest::of(b"another");
    assert!(matches!(join(options, &env()).await, Err(JoinError::WrongHub { .. })));
}

#[tokio::test]
async fn a_session_greets_takes_the_assignment_and_beats() {
    let (folder, mut hub) = joined(Manner::Welcoming).await;
    let node = agent(folder.path()).await;
    let hello = hub.hello().await;
    assert_eq!((hello.info.hostname.as_str(), hello.report.observed_generation), ("h", 0));
    let (mut reported, mut beats) = (false, 0);
    while !reported || beats < 2 {
        match hub.messages.recv().await.unwrap() {
            AgentMessage::Report(report) if report.observed_generation == 7 => reported = true,
            AgentMessage::Heartbeat(_) => beats += 1,
            _ => {}
        }
    }
    assert!(node.status.now().link.unwrap().connected);
    assert!(explain(&node.status.now()).contains("assignment generation 7"));
    node.stop().await;
    // The next agent knows it from disk.
    let _node = agent(folder.path()).await;
    let hello = hub.hello().await;
    assert_eq!(hello.report.observed_generation, 7);
}

#[tokio::test]
async fn a_hub_that_will_not_do_is_told_apart_in_the_status() {
    for (manner, reason, mend) in
        [(Manner::NotAdmitting, "NotAdmitted", "edgecore join"), (Manner::OtherProtocol, "WrongProtocol", "upgrade")]
    {
        let (folder, _hub) = joined(manner).await;
        let node = agent(folder.path()).await;
        let message = node.problem(reason).await;
        assert!(message.contains(mend), "{message}");
    }
    let (folder, _hub) = joined(Manner::Welcoming).await;
    let other = Hub::start(authority(), Manner::Welcoming);
    point(folder.path(), &other.address());
    let node = agent(folder.path()).await;
    let message = node.problem("WrongCa").await;
    assert!(message.contains("another CA") && message.contains("edgecore join"), "{message}");
    // The address is read anew for each attempt.
    point(folder.path(), "no-such-host.invalid:1");
    let message = node.problem("Unreachable").await;
    assert!(message.contains("no-such-host.invalid"), "{message}");
}

#[tokio::test]
async fn two_agents_cannot_run_in_one_folder() {
    let (folder, _hub) = joined(Manner::Welcoming).await;
    let node = agent(folder.path()).await;
    let driver = Arc::new(ProcessDriver::new(folder.path().join("driver"), env()));
    let second = Agent::open(folder.path(), env(), driver, facts()).await;
    assert!(second.unwrap_err().to_string().contains("another agent"));
    node.stop().await;
}
