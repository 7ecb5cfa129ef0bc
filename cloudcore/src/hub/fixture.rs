//! A hub on loopback with a release repository, and boxes that join and connect: for the hub's tests.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use data_encoding::BASE64;
use jiff::{SignedDuration, Timestamp};
use proto::{
    digest::Digest,
    env::{Env, SystemClock, WallClock},
    identity::{HUB_DNS_NAME, PinnedCa, TlsClock, crypto_provider},
    link::{
        ALPN, ALPN_JOIN, CloseCode,
        frame::{self, MAX_CONTROL_BYTES, MAX_METADATA_BYTES, MAX_REQUEST_BYTES},
        message::{AgentMessage, Hello, HubMessage, JoinReply, JoinRequest, Report},
    },
    name::Name,
    object::{NodeInfo, Usage, feature},
    token::Token,
    tuf::key::SecretKey,
};
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use tokio::{sync::oneshot, task::JoinHandle};

use super::{Hub, HubConfig, HubError};
use crate::{
    ca::Ca,
    release::{Repository, Setup, build},
};

pub(crate) struct Fixture {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) hub: Hub,
    pub(crate) repository: Repository,
    pub(crate) keys: [SecretKey; 3],
    clock: Arc<ShiftedClock>,
    running: Option<Running>,
}

/// The time of day, so many seconds ahead.
#[derive(Debug, Default)]
struct ShiftedClock(AtomicU64);

impl WallClock for ShiftedClock {
    fn now(&self) -> Timestamp {
        let ahead = SignedDuration::from_secs(self.0.load(Ordering::Relaxed).cast_signed());
        SystemClock.now().checked_add(ahead).unwrap()
    }
}

/// How to stop the hub, and its task.
type Running = (oneshot::Sender<()>, JoinHandle<Result<(), HubError>>);

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

impl Fixture {
    /// A hub that runs and has published `app@1`.
    pub(crate) async fn start() -> Fixture {
        Fixture::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut HubConfig)) -> Fixture {
        let fixture = Fixture::bare(change).await;
        fixture.release("app", "1", b"one").await;
        fixture
    }

    /// A hub that runs, and to which nothing was published.
    pub(crate) async fn bare(change: impl FnOnce(&mut HubConfig)) -> Fixture {
        let mut fixture = Fixture::still(change).await;
        fixture.run();
        fixture
    }

    /// The same, and it does nothing by itself.
    pub(crate) async fn still(change: impl FnOnce(&mut HubConfig)) -> Fixture {
        let clock = Arc::new(ShiftedClock::default());
        let env = Env { wall: clock.clone(), ..Env::real().unwrap() };
        let folder = tempfile::tempdir().unwrap();
        let mut config = HubConfig::new(folder.path().join("hub"), name("test"));
        config.link_listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        config.advertise = vec!["hub.example:7443".into()];
        change(&mut config);
        Ca::create(&config.data_dir, &config.fleet, &env).unwrap();
        let hub = Hub::open(config, env.clone()).await.unwrap();
        let keys = [1, 2, 3].map(|n| SecretKey::from_seed(&[n; 32]));
        let [root, targets, pipeline] = &keys;
        let setup = Setup::small_team(root, targets, pipeline);
        let repository = Repository::create(&folder.path().join("repo"), &setup, env.wall.now()).unwrap();
        Fixture { folder, hub, repository, keys, clock, running: None }
    }

    /// Sets the hub's clock ahead.
    pub(crate) fn shift(&self, by: Duration) {
        self.clock.0.fetch_add(by.as_secs(), Ordering::Relaxed);
    }

    fn run(&mut self) {
        let (stop, stopped) = oneshot::channel();
        let hub = self.hub.clone();
        let task = tokio::spawn(async move { hub.run(async { stopped.await.unwrap_or(()) }).await });
        self.running = Some((stop, task));
    }

    /// Stops the hub politely.
    pub(crate) async fn stop(&mut self) {
        let (stop, task) = self.running.take().unwrap();
        stop.send(()).unwrap();
        task.await.unwrap().unwrap();
    }

    /// Starts the hub again on its folder, after [`Fixture::stop`].
    pub(crate) async fn again(&mut self) {
        let (config, env) = (self.hub.config().clone(), self.hub.env().clone());
        self.hub = Hub::open(config, env).await.unwrap();
        self.run();
    }

    /// Stages and signs a release; the publication is returned, not yet given to the hub.
    pub(crate) fn signed(&self, app: &str, version: &str, content: &[u8]) -> crate::release::Publication {
        let now = self.hub.env().wall.now();
        let folder = self.folder.path().join(format!("{app}-{version}"));
        fs::create_dir_all(folder.join("tree")).unwrap();
        fs::write(folder.join("tree/data"), content).unwrap();
        let yaml = format!(
            "apiVersion: crossdock.io/v1\napp: {app}\nversion: \"{version}\"\nartifacts: [{{source: tree}}]\nworkload: {{command: /bin/true}}\n"
        );
        fs::write(folder.join("release.yaml"), yaml).unwrap();
        let built = build(&folder.join("release.yaml")).unwrap();
        self.repository.add(&built, now).unwrap();
        self.repository.sign(&self.keys).ok(); // a key that has nothing to sign is no matter
        for key in &self.keys {
            self.repository.sign(std::slice::from_ref(key)).ok();
        }
        self.repository.finish(&self.keys[2], now).unwrap()
    }

    pub(crate) async fn upload(&self, publication: &crate::release::Publication) {
        for (digest, path) in &publication.blobs {
            let content = fs::read(path).unwrap();
            self.hub.blobs().put(*digest, content.as_slice()).await.unwrap();
        }
    }

    /// Publishes a release of one file, and returns the digest of that file.
    pub(crate) async fn release(&self, app: &str, version: &str, content: &[u8]) -> Digest {
        let publication = self.signed(app, version, content);
        self.upload(&publication).await;
        self.hub.trust().publish(publication.reply).await.unwrap();
        Digest::of(content)
    }

    pub(crate) async fn token(&self, node: Option<&str>, uses: u32) -> Token {
        let hour = Duration::from_secs(3600);
        self.hub.create_token(name("s1"), node.map(name), uses, hour, BTreeMap::new(), false).await.unwrap().1
    }

    /// A box that joined as `node`.
    pub(crate) async fn member(&self, node: &str) -> Machine {
        let token = self.token(Some(node), 1).await;
        let mut machine = Machine::new(&format!("machine-{node}"));
        let reply = machine.join(&self.hub, &token, node).await;
        assert!(matches!(reply, JoinReply::Accepted { .. }), "{reply:?}");
        machine
    }
}

/// A box: a key, an identity of hardware, and a certificate once it joined.
pub(crate) struct Machine {
    pub(crate) id: String,
    pub(crate) key: KeyPair,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) endpoint: quinn::Endpoint,
}

impl Machine {
    pub(crate) fn new(id: &str) -> Machine {
        let endpoint = quinn::Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        Machine { id: id.into(), key: KeyPair::generate_for(&PKCS_ED25519).unwrap(), chain: vec![], endpoint }
    }

    pub(crate) fn request(&self, token: &Token, wanted: &str) -> JoinRequest {
        let csr = CertificateParams::default().serialize_request(&self.key).unwrap();
        JoinRequest {
            token_id: token.id.clone(),
            secret: token.secret.clone(),
            csr: BASE64.encode(csr.der()),
            name: wanted.into(),
            machine_id: self.id.clone(),
            agent_version: "0.1.0".into(),
        }
    }

    /// Joins over the wire.
    pub(crate) async fn join(&mut self, hub: &Hub, token: &Token, wanted: &str) -> JoinReply {
        let connection = self.connect_as(hub, &[ALPN_JOIN.to_vec()], false).await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        frame::write(&mut send, &self.request(token, wanted), MAX_REQUEST_BYTES).await.unwrap();
        let reply: JoinReply = frame::read(&mut recv, MAX_METADATA_BYTES).await.unwrap();
        if let JoinReply::Accepted { certificates, .. } = &reply {
            self.chain = CertificateDer::pem_slice_iter(certificates.as_bytes()).map(Result::unwrap).collect();
        }
        reply
    }

    pub(crate) async fn connect_as(
        &self,
        hub: &Hub,
        alpn: &[Vec<u8>],
        certificate: bool,
    ) -> Result<quinn::Connection, quinn::ConnectionError> {
        let clock = Arc::new(TlsClock(hub.env().wall.clone()));
        let tls = rustls::ClientConfig::builder_with_details(crypto_provider(), clock)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(PinnedCa::new(hub.ca().spki()));
        let mut tls = if certificate {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
            tls.with_client_auth_cert(self.chain.clone(), key).unwrap()
        } else {
            tls.with_no_client_auth()
        };
        tls.alpn_protocols = alpn.to_vec();
        let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        self.endpoint.connect_with(config, hub.link_addr(), HUB_DNS_NAME).unwrap().await
    }

    pub(crate) async fn connect(&self, hub: &Hub) -> quinn::Connection {
        self.connect_as(hub, &ALPN.iter().map(|a| a.to_vec()).collect::<Vec<_>>(), true).await.unwrap()
    }

    /// Connects and says Hello; returns once the first assignment is there.
    pub(crate) async fn session(&self, hub: &Hub, report: Report) -> Session {
        let connection = self.connect(hub).await;
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        let hello = AgentMessage::Hello(Box::new(hello(hub, report)));
        frame::write(&mut send, &hello, MAX_CONTROL_BYTES).await.unwrap();
        let welcome: HubMessage = frame::read(&mut recv, MAX_CONTROL_BYTES).await.unwrap();
        assert!(matches!(welcome, HubMessage::Welcome(_)));
        Session { connection, send, recv }
    }
}

pub(crate) struct Session {
    pub(crate) connection: quinn::Connection,
    pub(crate) send: quinn::SendStream,
    pub(crate) recv: quinn::RecvStream,
}

impl Session {
    pub(crate) async fn say(&mut self, message: &AgentMessage) {
        frame::write(&mut self.send, message, MAX_CONTROL_BYTES).await.unwrap();
    }

    pub(crate) async fn assignment(&mut self) -> proto::link::message::Assignment {
        match frame::read(&mut self.recv, MAX_CONTROL_BYTES).await.unwrap() {
            HubMessage::Assignment(assignment) => assignment,
            other => panic!("{other:?}"),
        }
    }

    /// Why the hub closed it.
    pub(crate) async fn closed(&self) -> Option<CloseCode> {
        CloseCode::of(&self.connection.closed().await)
    }
}

pub(crate) fn hello(hub: &Hub, report: Report) -> Hello {
    let info = NodeInfo {
        // These boxes sign nothing, unless a test has them do so.
        features: [feature::ORDERS, feature::REBOOT].map(str::to_owned).into(),
        sealing_key: None,
        agent_version: "0.1.0".into(),
        boot_id: "b".into(),
        architecture: "x86_64".into(),
        os_image: "test".into(),
        kernel: "6".into(),
        cpus: 1,
        memory_bytes: 1,
        hostname: "h".into(),
        addresses: vec![],
        hardware: vec![],
        nvidia: None,
    };
    Hello { info, report, usage: Usage::default(), clock: hub.env().wall.now(), tells_events: false, director: None }
}
