//! The QUIC endpoint of the hub: keys that outlive a restart, TLS, and the bounds of the transport.
//!
//! The stateless-reset key and the connection-ID key are kept on disk, so that agents of a hub that was
//! restarted learn of it with their next packet instead of waiting for a time-out. No TLS tickets are
//! issued: resumption would skip the check of the client's certificate.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::{Duration, SystemTime},
};

use proto::{
    durable::{Loaded, Record},
    env::{Blocking, Env},
    identity::{HUB_DNS_NAME, TlsClock, crypto_provider},
    link::{ALPN, ALPN_JOIN, ALPN_RENEW},
    shallow::ShallowConfig,
};
use quinn::{
    ConnectionId, ConnectionIdGenerator, EndpointConfig, TransportConfig, VarInt,
    congestion::{BbrConfig, CubicConfig},
    crypto::rustls::QuicServerConfig,
};
use quinn_proto::InvalidCid; // quinn forgot to pass it on
use rand::Rng as _;
use rand_chacha::ChaCha12Rng;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

use super::{brokers::Brokers, verifier::NodeVerifier};
use crate::{ca::Ca, config::HubConfig, hub::HubError};

/// Streams that an agent may have open at once: control, metadata, and artifacts four at a time.
const MAX_STREAMS: u32 = 16;
/// Bytes that an agent may send ahead of the hub's reading, on one stream and in all.
const RECEIVE_WINDOW: u32 = 512 << 10;
/// Bytes in flight to an agent: 20 MB/s over 100 ms, and not more to hold in memory.
const SEND_WINDOW: u64 = 2 << 20;
/// A silent connection is given up. Agents send a heartbeat more often.
const IDLE: Duration = Duration::from_secs(30);
/// The default allows 50 resets a second, and a whole fleet asks at once after a restart.
const MIN_RESET_INTERVAL: Duration = Duration::from_micros(100);

/// Keys of the endpoint, kept in `<data>/link.record`.
struct Keys([u8; KEY_BYTES]);

const KEY_BYTES: usize = 96;

impl Keys {
    fn load(config: &HubConfig, env: &Env) -> Result<Keys, HubError> {
        let record = Record::at(config.data_dir.join("link.record"));
        match record.load_and_mend()? {
            Loaded::Absent => {
                let keys = Keys(env.seed.bytes("link keys"));
                record.store(&keys.0)?;
                Ok(keys)
            }
            Loaded::Good(bytes) | Loaded::Fallback(bytes) => {
                let damaged = || HubError::LinkKeys(record.path().to_owned());
                Ok(Keys(bytes.try_into().map_err(|_| damaged())?))
            }
            Loaded::Lost => Err(HubError::LinkKeys(record.path().to_owned())),
        }
    }

    fn part(&self, from: usize) -> [u8; 32] {
        self.0.get(from..from + 32).and_then(|p| p.try_into().ok()).unwrap_or_default()
    }

    fn reset(&self) -> ring::hmac::Key {
        ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.part(0))
    }

    fn token(&self) -> ring::hkdf::Prk {
        ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, &[]).extract(&self.part(32))
    }

    fn connection_ids(&self) -> ring::hmac::Key {
        ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.part(64))
    }
}

/// Binds the link. Returns what new connections get, too.
pub(crate) fn bind(
    config: &HubConfig,
    env: &Env,
    ca: &Ca,
    brokers: &Arc<Brokers>,
) -> Result<(quinn::Endpoint, quinn::ServerConfig), HubError> {
    let keys = Keys::load(config, env)?;
    let mut endpoint = EndpointConfig::new(Arc::new(keys.reset()));
    endpoint.min_reset_interval(MIN_RESET_INTERVAL);
    // A restarted hub in the simulator has the same seed: the time keeps its connections apart.
    let started = env.wall.now();
    endpoint.rng_seed(Some(env.seed.bytes(&format!("quic endpoint at {started}"))));
    let random = Arc::new(Mutex::new(env.seed.stream(&format!("quic connection ids at {started}"))));
    let id_key = keys.connection_ids();
    endpoint.cid_generator(move || Box::new(SignedIds { key: id_key.clone(), random: Arc::clone(&random) }));
    let server = server_config(config, env, ca)?;
    let bind_failed = |source| HubError::Bind { address: config.link_listen, source };
    let udp = env.network.bind(config.link_listen).map_err(bind_failed)?;
    let socket = brokers.socket(udp).map_err(bind_failed)?;
    let runtime = env.network.runtime();
    let endpoint = quinn::Endpoint::new_with_abstract_socket(endpoint, Some(server.clone()), socket, runtime);
    Ok((endpoint.map_err(bind_failed)?, server))
}

/// What new connections get. Made anew now and then, so that the hub's certificate is renewed in time.
///
/// # Errors
/// When certificates or keys cannot be read or written.
pub fn server_config(config: &HubConfig, env: &Env, ca: &Ca) -> Result<quinn::ServerConfig, HubError> {
    let keys = Keys::load(config, env)?;
    let tls_error = |e: rustls::Error| HubError::Tls(e.to_string());
    let identity = ca.server_identity("link", &[HUB_DNS_NAME.to_owned()])?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.certificate().clone()).map_err(tls_error)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto_provider())
        .allow_unauthenticated() // for joining; everything else asks for the certificate (link::session)
        .build()
        .map_err(|e| HubError::Tls(e.to_string()))?;
    let clock = Arc::new(TlsClock(env.wall.clone()));
    let mut tls = rustls::ServerConfig::builder_with_details(crypto_provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .with_client_cert_verifier(Arc::new(NodeVerifier(verifier)))
        .with_single_cert(identity.chain, identity.key)
        .map_err(tls_error)?;
    tls.alpn_protocols =
        ALPN.iter().map(|alpn| alpn.to_vec()).chain([ALPN_JOIN.to_vec(), ALPN_RENEW.to_vec()]).collect();
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    let crypto = QuicServerConfig::try_from(tls).map_err(|e| HubError::Tls(e.to_string()))?;
    let mut server = quinn::ServerConfig::new(Arc::new(crypto), Arc::new(keys.token()));
    let mut tokens = quinn::ValidationTokenConfig::default();
    tokens.sent(0);
    server
        .transport_config(Arc::new(transport(env, Arc::default())))
        .validation_token_config(tokens)
        .time_source(Arc::new(QuicClock(env.clone())))
        .migration(true)
        .incoming_buffer_size(64 << 10);
    Ok(server)
}

/// The same for one connection, which goes through a broker while `through` says so.
pub(crate) fn of_one(server: &quinn::ServerConfig, env: &Env, through: Arc<AtomicBool>) -> Arc<quinn::ServerConfig> {
    let mut server = server.clone();
    server.transport_config(Arc::new(transport(env, through)));
    Arc::new(server)
}

/// Bounds and time-outs of every connection: for the link itself, and for measuring with the same ones.
/// Through a broker the line's queue is kept short: what is urgent has no other way past the bulk.
#[must_use]
pub fn transport(env: &Env, through: Arc<AtomicBool>) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .receive_window(VarInt::from_u32(2 * RECEIVE_WINDOW))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(quinn::IdleTimeout::try_from(IDLE).ok());
    match env.blocking {
        // Edge lines lose packets that mean no congestion: at 1 % loss BBR moves twenty times as much.
        Blocking::Pool => {
            transport.congestion_controller_factory(Arc::new(ShallowConfig::new(BbrConfig::default(), through)))
        }
        // quinn's BBR draws from the process-wide generator, and a simulation must repeat itself.
        Blocking::Inline => {
            transport.congestion_controller_factory(Arc::new(ShallowConfig::new(CubicConfig::default(), through)))
        }
    };
    transport
}

/// Lets quinn ask the injected clock.
struct QuicClock(Env);

impl quinn::TimeSource for QuicClock {
    fn now(&self) -> SystemTime {
        SystemTime::from(self.0.wall.now())
    }
}

const NONCE_BYTES: usize = 4;
const TAG_BYTES: usize = 4;

/// Connection IDs that a hub with the same key recognises as its own after a restart, and answers with
/// a reset. As quinn's `HashedConnectionIdGenerator`, with randomness from the seed.
struct SignedIds {
    key: ring::hmac::Key,
    random: Arc<Mutex<ChaCha12Rng>>,
}

impl SignedIds {
    fn id(&self, nonce: [u8; NONCE_BYTES]) -> [u8; NONCE_BYTES + TAG_BYTES] {
        let tag = ring::hmac::sign(&self.key, &nonce);
        let mut id = [0; NONCE_BYTES + TAG_BYTES];
        id.iter_mut().zip(nonce.iter().chain(tag.as_ref())).for_each(|(slot, byte)| *slot = *byte);
        id
    }
}

impl ConnectionIdGenerator for SignedIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut nonce = [0; NONCE_BYTES];
        self.random.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut nonce);
        ConnectionId::new(&self.id(nonce))
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let nonce = id.first_chunk().ok_or(InvalidCid)?;
        if self.id(*nonce) == **id { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        NONCE_BYTES + TAG_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
