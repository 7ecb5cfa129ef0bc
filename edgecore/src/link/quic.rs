//! How a connection to the hub is made: endpoint, TLS, time-outs and windows. [`super`] and
//! [`crate::join`] use it.
//!
//! Everything random comes from the seed and every clock is the environment's, so that a simulated
//! agent repeats itself. An endpoint lives for one connection.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use proto::{
    env::{Env, Seed},
    identity::{HUB_DNS_NAME, TlsClock, crypto_provider},
    shallow::ShallowConfig,
};
use quinn::{
    ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, TransportConfig, VarInt,
    congestion::CubicConfig, crypto::rustls::QuicClientConfig,
};
use rand::Rng as _;
use rand_chacha::ChaCha12Rng;
use rustls::{ConfigBuilder, WantsVerifier};
use tokio::time::timeout;

use super::problem::Problem;

/// How long a handshake may take.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a name may take to resolve.
const RESOLVE: Duration = Duration::from_secs(5);
/// Silence after which the line counts as dead. Heartbeats and keep-alives break it.
const IDLE: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(12);
/// Streams that the hub may open at once.
const HUB_STREAMS: u32 = 8;
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 6 << 20;
const SEND_WINDOW_BYTES: u64 = 1 << 20;

/// Connection IDs from the seed.
#[derive(Debug)]
struct SeededIds(ChaCha12Rng);

impl ConnectionIdGenerator for SeededIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; 8];
        self.0.fill_bytes(&mut bytes);
        ConnectionId::new(&bytes)
    }
    fn cid_len(&self) -> usize {
        8
    }
    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// A TLS 1.3 configuration as far as the verifier, on the injected clock.
pub(crate) fn tls(env: &Env) -> Result<ConfigBuilder<rustls::ClientConfig, WantsVerifier>, rustls::Error> {
    rustls::ClientConfig::builder_with_details(crypto_provider(), Arc::new(TlsClock(env.wall.clone())))
        .with_protocol_versions(&[&rustls::version::TLS13])
}

/// Makes an endpoint and connects it to one of the addresses of `hub`; `turn` chooses among several.
pub(crate) async fn connect(
    env: &Env,
    hub: &str,
    turn: usize,
    tls: rustls::ClientConfig,
    seed: &Seed,
) -> Result<(Endpoint, Connection), Problem> {
    let remote = resolve(env, hub, turn).await?;
    let client = client(tls, seed)?;
    let endpoint = endpoint(env, remote, seed)
        .map_err(|e| Problem::new("Local", format!("no UDP socket could be made here: {e}")))?;
    let connecting = endpoint
        .connect_with(client, remote, HUB_DNS_NAME)
        .map_err(|e| Problem::new("Local", format!("{remote} cannot be connected to: {e}")))?;
    match timeout(HANDSHAKE, connecting).await {
        Ok(Ok(connection)) => Ok((endpoint, connection)),
        Ok(Err(error)) => Err(Problem::of(&error, hub, false)),
        Err(_) => Err(Problem::unreachable(hub, format!("no answer from {remote} within {} s", HANDSHAKE.as_secs()))),
    }
}

/// What a connection is made with.
pub(super) fn client(mut tls: rustls::ClientConfig, seed: &Seed) -> Result<ClientConfig, Problem> {
    // A resumed session would skip what the hub checks about our certificate.
    tls.resumption = rustls::client::Resumption::disabled();
    let crypto = QuicClientConfig::try_from(tls).map_err(|e| Problem::new("Local", e.to_string()))?;
    let mut client = ClientConfig::new(Arc::new(crypto));
    let first_id = ConnectionId::new(&seed.bytes::<16>("first connection id"));
    client.initial_dst_cid_provider(Arc::new(move || first_id));
    client.transport_config(Arc::new(transport()));
    Ok(client)
}

async fn resolve(env: &Env, hub: &str, turn: usize) -> Result<SocketAddr, Problem> {
    let found = timeout(RESOLVE, env.network.resolve(hub)).await;
    let addresses = found
        .map_err(|_| Problem::unreachable(hub, "its name does not resolve in time"))?
        .map_err(|e| Problem::unreachable(hub, format!("its name does not resolve: {e}")))?;
    let chosen = turn.checked_rem(addresses.len()).and_then(|i| addresses.get(i)).copied();
    chosen.ok_or_else(|| Problem::unreachable(hub, "its name has no address"))
}

fn endpoint(env: &Env, remote: SocketAddr, seed: &Seed) -> io::Result<Endpoint> {
    let any = match remote {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    endpoint_over(env, env.network.bind(any)?, seed)
}

/// An endpoint on a socket.
pub(super) fn endpoint_over(env: &Env, socket: Arc<dyn quinn::AsyncUdpSocket>, seed: &Seed) -> io::Result<Endpoint> {
    let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &seed.bytes::<32>("reset key"));
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config.rng_seed(Some(seed.bytes("endpoint")));
    let ids = seed.stream("connection ids");
    config.cid_generator(move || Box::new(SeededIds(ids.clone())));
    Endpoint::new_with_abstract_socket(config, None, socket, env.network.runtime())
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(VarInt::from_u32(IDLE.as_millis() as u32).into()))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(VarInt::from_u32(HUB_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        // A backlog that goes up must not stand in the line's queue before what is fresh.
        .congestion_controller_factory(Arc::new(ShallowConfig::new(
            CubicConfig::default(),
            Arc::new(AtomicBool::new(true)),
        )))
        .datagram_receive_buffer_size(None);
    transport
}
