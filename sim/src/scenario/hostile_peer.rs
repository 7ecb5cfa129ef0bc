//! Fault 34: somebody who is none of the fleet's floods the hub with what is no protocol, half-open handshakes,
//! endless and oversized requests. It is closed with a reason, and the fleet does not notice.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use proto::{
    env::Env,
    identity::{HUB_DNS_NAME, crypto_provider},
    link::{ALPN, ALPN_JOIN, CloseCode, DEFAULT_PORT},
    object::{NodePhase, RolloutPhase},
};
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, crypto::rustls::QuicClientConfig, udp::Transmit};
use rand::{Rng as _, RngExt as _};
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::time::{Instant, sleep, timeout};

use crate::world::{Stranger, World};

const APP: &str = "scan-counter";
const BOXES: [&str; 2] = ["box-1", "box-2"];
const GARBAGE: usize = 2_000;
const HALF_OPEN: usize = 300;
/// The longest that a scan of the fleet may take meanwhile.
const UNNOTICED: Duration = Duration::from_secs(10);
/// The longest that the hub may bear somebody.
const BORNE: Duration = Duration::from_secs(60);

pub(super) async fn play(world: &mut World) -> anyhow::Result<Vec<String>> {
    world.start_hub().await?;
    for name in BOXES {
        world.join(name, "hz-01").await?;
        world.start_agent(name).await?;
    }
    let ready = |node: &proto::object::Node| node.status.phase == NodePhase::Ready;
    world.until_nodes(Duration::from_secs(60), "all nodes are Ready", |nodes| nodes.values().all(ready)).await?;
    world.publish(APP, "1.0.0", 4, 200_000, &[]).await?;
    world.roll_out(APP, "1.0.0").await?;

    let stranger = world.stranger("mallory")?;
    garbage(world, &stranger).await?;
    scan_arrives(world, "garbage").await?;
    half_open(world, &stranger).await?;
    scan_arrives(world, "half-open handshakes").await?;
    let closed = [
        ("an oversized frame", oversized(world, &stranger).await?, CloseCode::ProtocolError),
        ("no frame at all", no_frame(world, &stranger).await?, CloseCode::ProtocolError),
        ("an endless request", endless(world, &stranger).await?, CloseCode::Overload),
        ("no certificate", no_certificate(world, &stranger).await?, CloseCode::NotAdmitted),
    ];
    for (what, code, wanted) in &closed {
        ensure!(code == wanted, "{what} was closed with {code:?}, not {wanted:?}");
    }
    scan_arrives(world, "strangers on streams").await?;

    world.until_done("the release runs", APP, &BOXES, Duration::from_secs(60)).await?;
    world.until_rollout(APP, "1.0.0", RolloutPhase::Succeeded, Duration::from_secs(10)).await?;
    let outcome = world.until_counted("all scans are there", Duration::from_secs(60)).await?;
    ensure!(outcome.in_gaps == 0 && outcome.stored == outcome.acknowledged, "{outcome:?}");
    world.until_nodes(Duration::from_secs(5), "all nodes are still Ready", |nodes| nodes.values().all(ready)).await?;
    let closed: Vec<String> = closed.iter().map(|(what, code, _)| format!("{what}: {code:?}")).collect();
    Ok(vec![
        format!(
            "{GARBAGE} datagrams of garbage, {HALF_OPEN} half-open handshakes: every scan took less than {UNNOTICED:?}"
        ),
        format!("closed with a reason: {}", closed.join(", ")),
        format!("{outcome:?}"),
    ])
}

/// A scan of every box becomes durable in time.
async fn scan_arrives(world: &mut World, during: &str) -> anyhow::Result<()> {
    for name in BOXES {
        let number = world.handed_in(name, "scans")?;
        world.produce(name, "scans", 1, 1).await?;
        let handed_in = Instant::now();
        while !world.is_durable(name, "scans", number)? {
            ensure!(handed_in.elapsed() < UNNOTICED, "a scan of {name} waits {UNNOTICED:?} because of {during}");
            sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

async fn hub(env: &Env) -> anyhow::Result<SocketAddr> {
    let found = env.network.resolve(&format!("hub:{DEFAULT_PORT}")).await?;
    found.first().copied().context("the hub has no address")
}

/// Datagrams of any length and content; half of them begin as QUIC does.
async fn garbage(world: &World, stranger: &Stranger) -> anyhow::Result<()> {
    let mut chance = world.seed("hostile_peer").stream("garbage");
    let env = stranger.env();
    let (socket, destination) = (env.network.bind(([0, 0, 0, 0], 0).into())?, hub(&env).await?);
    for number in 0..GARBAGE {
        let mut contents = vec![0; chance.random_range(1..=1_400)];
        chance.fill_bytes(&mut contents);
        if chance.random_range(0..2) == 0 {
            // An Initial of version 1, as far as its header goes.
            for (byte, value) in contents.iter_mut().zip([0xc3, 0, 0, 0, 1, 8]) {
                *byte = value;
            }
        }
        let transmit = Transmit { destination, ecn: None, contents: &contents, segment_size: None, src_ip: None };
        socket.try_send(&transmit)?;
        if number % 100 == 0 {
            sleep(Duration::from_millis(20)).await; // as fast as its line takes it
        }
    }
    sleep(Duration::from_millis(200)).await; // all of it has arrived
    drop(socket);
    stranger.vanish().await;
    Ok(())
}

/// Handshakes that nobody goes on with.
async fn half_open(world: &World, stranger: &Stranger) -> anyhow::Result<()> {
    let env = stranger.env();
    let (endpoint, destination) = (endpoint(world, &env, "half-open")?, hub(&env).await?);
    let mut begun = vec![];
    for _ in 0..HALF_OPEN {
        begun.push(endpoint.connect_with(client(ALPN_JOIN)?, destination, HUB_DNS_NAME)?);
    }
    sleep(Duration::from_millis(20)).await; // the first flights leave, before anything comes back
    stranger.vanish().await;
    Ok(())
}

async fn oversized(world: &World, stranger: &Stranger) -> anyhow::Result<CloseCode> {
    let connection = connect(world, stranger, ALPN_JOIN, "oversized").await?;
    let (mut send, _receive) = connection.open_bi().await?;
    send.write_all(&u32::MAX.to_be_bytes()).await?;
    closed(connection, stranger).await
}

async fn no_frame(world: &World, stranger: &Stranger) -> anyhow::Result<CloseCode> {
    let connection = connect(world, stranger, ALPN_JOIN, "no frame").await?;
    let (mut send, _receive) = connection.open_bi().await?;
    send.write_all(&8_u32.to_be_bytes()).await?;
    send.write_all(b"\xff{}[]\x00\"x").await?;
    closed(connection, stranger).await
}

/// A request that never comes to its end.
async fn endless(world: &World, stranger: &Stranger) -> anyhow::Result<CloseCode> {
    let connection = connect(world, stranger, ALPN_JOIN, "endless").await?;
    let (mut send, _receive) = connection.open_bi().await?;
    send.write_all(&10_000_u32.to_be_bytes()).await?;
    let slowly = async {
        while send.write_all(b" ").await.is_ok() {
            sleep(Duration::from_secs(1)).await; // a byte now and then
        }
    };
    timeout(BORNE, slowly).await.context("an endless request was borne for ever")?;
    closed(connection, stranger).await
}

/// A session of a node without a certificate of one.
async fn no_certificate(world: &World, stranger: &Stranger) -> anyhow::Result<CloseCode> {
    let alpn = ALPN.first().context("there is no protocol")?;
    let connection = connect(world, stranger, alpn, "no certificate").await?;
    closed(connection, stranger).await
}

async fn connect(world: &World, stranger: &Stranger, alpn: &[u8], what: &str) -> anyhow::Result<Connection> {
    let env = stranger.env();
    let connecting = endpoint(world, &env, what)?.connect_with(client(alpn)?, hub(&env).await?, HUB_DNS_NAME)?;
    timeout(BORNE, connecting).await?.with_context(|| format!("connect for {what}"))
}

/// With which code the hub closes.
async fn closed(connection: Connection, stranger: &Stranger) -> anyhow::Result<CloseCode> {
    let why = timeout(BORNE, connection.closed()).await.with_context(|| format!("it was borne for {BORNE:?}"))?;
    let code = CloseCode::of(&why).with_context(|| format!("no reason was given: {why}"))?;
    drop(connection);
    stranger.vanish().await;
    Ok(code)
}

fn endpoint(world: &World, env: &Env, what: &str) -> anyhow::Result<Endpoint> {
    let seed = world.seed("hostile_peer").child(what);
    let mut config = EndpointConfig::default();
    config.rng_seed(Some(seed.bytes("endpoint")));
    let socket = env.network.bind(([0, 0, 0, 0], 0).into())?;
    Ok(Endpoint::new_with_abstract_socket(config, None, socket, env.network.runtime())?)
}

fn client(alpn: &[u8]) -> anyhow::Result<ClientConfig> {
    let verifier = Arc::new(Anybody(crypto_provider()));
    let mut tls = rustls::ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    Ok(ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)))
}

/// Trusts everybody: who means harm does not ask.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
