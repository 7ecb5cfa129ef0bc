//! quinn over the simulated network: everything arrives, and the same seed gives the same trace.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)] // helpers of tests, too, may end a test

use std::{net::IpAddr, sync::Arc, time::Duration};

use proto::env::{Network, Seed, WallClock};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::{PrivateKeyDer, UnixTime};
use sim::{
    clock::{HostClock, Tasks},
    net::{Net, Profile},
    trace::Trace,
};
use tokio::time::Instant;

const TRANSFER_BYTES: usize = 600_000;

/// A line on which everything goes wrong.
fn bad_line() -> Profile {
    Profile {
        loss_ppm: 30_000,
        duplicate_ppm: 20_000,
        reorder_ppm: 50_000,
        bytes_per_s: Some(500_000),
        queue_bytes: 64 << 10,
        ..Profile::edge()
    }
}

#[derive(Debug)]
struct Wall(HostClock);

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

impl quinn::TimeSource for Wall {
    fn now(&self) -> std::time::SystemTime {
        self.0.now().into()
    }
}

struct Host {
    network: Arc<dyn Network>,
    ip: IpAddr,
    seed: Seed,
    tasks: Tasks,
}

impl Host {
    fn new(net: &Net, name: &str, seed: &Seed) -> Host {
        let (ip, tasks) = (net.add_host(name), Tasks::default());
        Host { network: net.host(ip, tasks.clone()), ip, seed: seed.child(name), tasks }
    }

    fn endpoint(&self, port: u16, server: Option<quinn::ServerConfig>) -> quinn::Endpoint {
        let mut config = quinn::EndpointConfig::default();
        config.rng_seed(Some(self.seed.bytes("quinn")));
        let socket = self.network.bind(format!("0.0.0.0:{port}").parse().unwrap()).unwrap();
        quinn::Endpoint::new_with_abstract_socket(config, server, socket, self.network.runtime()).unwrap()
    }
}

fn tls(wall: &HostClock) -> (quinn::ServerConfig, quinn::ClientConfig) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["hub".to_owned()]).unwrap().self_signed(&key).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let time = || Arc::new(Wall(wall.clone()));
    let server = rustls::ServerConfig::builder_with_details(provider.clone(), time())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let client = rustls::ClientConfig::builder_with_details(provider, time())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server).unwrap()));
    server.time_source(time());
    (server, quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).unwrap())))
}

/// One transfer with a partition in its middle. Returns trace digest, lines, and virtual milliseconds.
fn transfer(seed: u64) -> (String, u64, u128) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let start = Instant::now();
        let (seed, trace) = (Seed::from_u64(seed), Trace::new(None).unwrap());
        let net = Net::new(seed.child("net"), bad_line(), trace.clone());
        let pump = tokio::spawn(net.clone().pump());
        let (hub, agent) = (Host::new(&net, "hub", &seed), Host::new(&net, "agent", &seed));
        let (server, client) = tls(&HostClock::new(start));

        let endpoint = hub.endpoint(7443, Some(server));
        hub.tasks.spawn(async move {
            let connection = endpoint.accept().await.unwrap().await.unwrap();
            let mut stream = connection.accept_uni().await.unwrap();
            let got = stream.read_to_end(TRANSFER_BYTES).await.unwrap();
            assert_eq!(got.len(), TRANSFER_BYTES);
            let mut answer = connection.open_uni().await.unwrap();
            answer.write_all(b"all of it").await.unwrap();
            answer.finish().unwrap();
            connection.closed().await;
        });

        let endpoint = agent.endpoint(0, None);
        let address = agent.network.resolve("hub:7443").await.unwrap()[0];
        let connection = endpoint.connect_with(client, address, "hub").unwrap().await.unwrap();
        let mut stream = connection.open_uni().await.unwrap();
        let sending = connection.clone();
        agent.tasks.spawn(async move {
            stream.write_all(&vec![7; TRANSFER_BYTES]).await.unwrap();
            stream.finish().unwrap();
            sending.closed().await;
        });
        while net.counters(agent.ip, hub.ip).arrived_bytes < 200_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let both = [(agent.ip, hub.ip), (hub.ip, agent.ip)];
        both.iter().for_each(|(from, to)| net.set_cut(*from, *to, true));
        tokio::time::sleep(Duration::from_secs(3)).await;
        both.iter().for_each(|(from, to)| net.set_cut(*from, *to, false));

        let answer = connection.accept_uni().await.unwrap().read_to_end(100).await.unwrap();
        assert_eq!(answer, b"all of it");
        let passed = start.elapsed().as_millis();
        let up = net.counters(agent.ip, hub.ip);
        assert!(up.lost > 10, "the bad line lost only {}", up.lost);

        net.silence(agent.ip);
        agent.tasks.kill().await;
        net.silence(hub.ip);
        hub.tasks.kill().await;
        pump.abort();
        (trace.digest(), trace.lines(), passed)
    })
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let first = transfer(42);
    assert!(first.2 > 3_000, "the partition took no time: {} ms", first.2);
    for _ in 0..4 {
        assert_eq!(std::thread::spawn(|| transfer(42)).join().unwrap(), first);
    }
}

#[test]
fn other_seeds_break_other_datagrams() {
    assert_ne!(transfer(1).0, transfer(2).0);
}
