//! `sim bench carrier`: QUIC over UDP and through a real Mosquitto, with the hub's transport and the carrier that
//! ships; and plain MQTT of 256 KiB publishes through the same broker beside them, as the yardstick.
//!
//! Hub and node are two QUIC endpoints of this process, so their processor time is its own; the broker's is added.
//! The slow line is a relay in user space before the broker on the node's side: 20 Mbit/s, 25 ms each way.

mod gap;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use proto::{
    broker::Broker,
    carrier::{
        address::{self, Behind},
        client::Client,
        frame::{Echo, MAX_SEGMENTS, message_bytes},
        pipe::{Pipe, Role},
        socket::{CarrierSocket, Route, To},
    },
    env::Env,
    name::Name,
};
use quinn::{
    AsyncUdpSocket, Connection, Endpoint, EndpointConfig, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
    udp::RecvMeta,
};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{Figures, process, profile, seconds, streams::server::Server, warn_if_debug};

const MIB: u64 = 1 << 20;
const CHUNK: usize = 64 << 10;
const PUBLISH_BYTES: usize = 256 << 10;
/// What the agent gives the hub (`edgecore::link`).
const STREAM_WINDOW: u32 = 2 << 20;
const RATE_BYTES_PER_S: u64 = 2_500_000;
const LATENCY: Duration = Duration::from_millis(25);
/// What a line's queue holds.
const QUEUE_BYTES: u64 = 64 << 10;
const PINGS: usize = 40;
const PATIENCE: Duration = Duration::from_secs(120);

/// `sim bench carrier`.
#[derive(Debug, clap::Args)]
pub struct CarrierArgs {
    /// MiB of one transfer
    #[arg(long, default_value_t = 512)]
    mib: u64,
    /// Print the figures as one JSON object too
    #[arg(long)]
    json: bool,
}

/// Runs the bench.
///
/// # Errors
/// When Mosquitto is not installed, or a transfer fails.
pub async fn run(args: CarrierArgs) -> anyhow::Result<()> {
    warn_if_debug();
    let folder = tempfile::tempdir()?;
    let server = broker(folder.path()).await?;
    let bytes = args.mib.max(1) * MIB;
    let env = Env::real()?;
    let mut figures = Figures::default();
    figures.add("profile", profile(), "how this was built");
    figures.add("mib", args.mib, "of one transfer, hub to node");
    let mut rates = vec![];
    for (carrier, keys) in [
        (Way::Udp, ["udp_mb_per_s", "udp_cpu_s_per_gib"]),
        (Way::Mqtt(server.address), ["mqtt_mb_per_s", "mqtt_cpu_s_per_gib"]),
    ] {
        let pair = Pair::connect(&env, carrier).await?;
        pair.transfer(bytes / 8).await?; // windows have grown
        let (rate, cpu) = measured(&server, bytes, pair.transfer(bytes)).await?;
        figures.add(keys[0], rate, "MB/s");
        figures.add(keys[1], cpu, "processor seconds a GiB: hub, node and broker together");
        rates.push(rate);
        if matches!(carrier, Way::Mqtt(_)) {
            figures.add("mqtt_control_ms_idle", pair.ping().await?, "median round trip of a control message");
            let before = process::loopback_bytes()?;
            sleep(Duration::from_secs(60)).await;
            let idle = process::loopback_bytes()?.saturating_sub(before);
            figures.add("idle_bytes_per_minute", idle, "on the wire, hub to broker and node to broker, both ways");
            let loaded = pair.while_busy(pair.ping()).await?;
            figures.add("mqtt_control_ms_loaded", loaded, "the same beside a transfer");
        }
    }
    let (yardstick, cpu) = measured(&server, bytes, plain(server.address, bytes)).await?;
    figures.add("yardstick_mb_per_s", yardstick, "MB/s: plain MQTT, QoS 1, 256 KiB a publish, not encrypted");
    figures.add("yardstick_cpu_s_per_gib", cpu, "processor seconds a GiB: both clients and broker");
    if let [udp, mqtt] = rates.as_slice() {
        figures.add("mqtt_to_yardstick", hundredths(mqtt / yardstick), "goal: 0.4");
        figures.add("mqtt_to_udp", hundredths(mqtt / udp), "goal: 0.8");
    }
    let (_line, slow) = line(server.address).await?;
    let pair = Pair::connect(&env, Way::Slow { hub: server.address, node: slow }).await?;
    figures.add("slow_control_ms_idle", pair.ping().await?, "on a line of 20 Mbit/s and 25 ms");
    let loaded = pair.while_busy(async {
        sleep(Duration::from_secs(3)).await; // the transfer has found its rate
        pair.ping().await
    });
    figures.add("slow_control_ms_loaded", loaded.await?, "the same beside a transfer; goal: under 300");
    let (rate, _) = measured(&server, 8 * MIB, pair.transfer(8 * MIB)).await?;
    figures.add("slow_mb_per_s", rate, "of 2.5 MB/s");
    let cpu = fleet(&env, server.address, 100).await?;
    figures.add("hub_cpu_percent_100_nodes", cpu, "of a core: hub and 100 nodes together, a message a second each");
    let gap = seconds(gap::gap(server.address).await?);
    figures.add("change_gap_s", gap, "UDP goes silent in the middle of a download: until it goes on; goal: under 2");
    figures.print(args.json);
    Ok(())
}

async fn broker(folder: &Path) -> anyhow::Result<Server> {
    Server::start("mosquitto", "mosquitto", folder, |address| {
        format!(
            "listener {} {}\nallow_anonymous true\nuser root\nset_tcp_nodelay true\nmax_inflight_messages 1000\n",
            address.port(),
            address.ip()
        )
    })
    .await
}

fn hundredths(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

/// MB/s of a transfer, and the processor seconds a GiB that this process and the broker spent on it.
async fn measured(
    server: &Server,
    bytes: u64,
    transfer: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<(f64, f64)> {
    let broker = server.pid().context("the broker does not run")?;
    let spent = || anyhow::Ok(process::cpu(std::process::id())? + process::cpu(broker)?);
    let (before, begin) = (spent()?, Instant::now());
    timeout(PATIENCE, transfer).await.context("the transfer does not end")??;
    let (took, cpu) = (begin.elapsed(), spent()?.saturating_sub(before));
    let rate = bytes as f64 / 1e6 / took.as_secs_f64();
    Ok((hundredths(rate), seconds(cpu.mul_f64((1024 * MIB) as f64 / bytes as f64))))
}

/// How the two ends meet.
#[derive(Debug, Clone, Copy)]
enum Way {
    Udp,
    Mqtt(SocketAddr),
    Slow { hub: SocketAddr, node: SocketAddr },
}

/// The hub's route, and the node's, of this bench: a broker and nothing else.
#[derive(Debug)]
struct OneWay {
    peer: Option<u64>,
}

impl Route for OneWay {
    fn to(&self, destination: SocketAddr) -> To {
        let peer = self.peer.or_else(|| Behind::of(destination).map(|behind| behind.node));
        peer.map_or(To::Nowhere, |peer| To::Pipe { pipe: 0, peer })
    }
    fn arrived(&self, _: &mut RecvMeta, _: &[u8]) {}
    fn address_of(&self, _: usize, peer: u64) -> SocketAddr {
        if self.peer.is_some() { address::hub() } else { Behind { broker: 0, node: peer }.address() }
    }
}

/// A hub and a node, connected.
struct Pair {
    hub: Connection,
    node: Connection,
    _endpoints: Vec<Endpoint>,
    _brokers: JoinSet<()>,
}

fn name(text: &str) -> anyhow::Result<Name> {
    Ok(text.parse()?)
}

/// A pipe, and its connection with the broker among `tasks`.
async fn pipe(env: &Env, role: Role, at: SocketAddr, id: &str, tasks: &mut JoinSet<()>) -> anyhow::Result<Arc<Pipe>> {
    let pipe = Arc::new(Pipe::new(role));
    let client = Client {
        broker: Broker::at(format!("mqtt://{at}").parse()?),
        folder: std::env::temp_dir(),
        id: id.into(),
        clock: env.wall.clone(),
        blocking: env.blocking,
    };
    let (network, held) = (env.network.clone(), Arc::clone(&pipe));
    tasks.spawn(async move {
        let trouble = network.broker(&client, &held).await;
        tracing::error!("{}", trouble.message);
    });
    timeout(PATIENCE, pipe.state().wait_for(|state| state.up)).await.context("the broker does not answer")??;
    Ok(pipe)
}

/// The hub learns how large messages may be, as from an agent.
async fn ask(pipe: &Pipe) -> anyhow::Result<()> {
    pipe.set_segments(MAX_SEGMENTS);
    pipe.ask(Echo { number: 1, bytes: message_bytes(MAX_SEGMENTS) });
    timeout(PATIENCE, pipe.state().wait_for(|s| s.answered.is_some())).await.context("no hub answers")??;
    Ok(())
}

fn endpoint(
    env: &Env,
    socket: Arc<dyn AsyncUdpSocket>,
    server: Option<quinn::ServerConfig>,
) -> anyhow::Result<Endpoint> {
    Ok(Endpoint::new_with_abstract_socket(EndpointConfig::default(), server, socket, env.network.runtime())?)
}

impl Pair {
    async fn connect(env: &Env, way: Way) -> anyhow::Result<Pair> {
        let (server, client) = configs(env, !matches!(way, Way::Udp))?;
        let mut tasks = JoinSet::new();
        let (hub, node, to) = match way {
            Way::Udp => {
                let bind = || env.network.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
                let hub = bind()?;
                let to = hub.local_addr()?;
                (hub, bind()?, to)
            }
            Way::Mqtt(at) => Pair::sockets(env, at, at, &mut tasks).await?,
            Way::Slow { hub, node } => Pair::sockets(env, hub, node, &mut tasks).await?,
        };
        let hub = endpoint(env, hub, Some(server))?;
        let node = endpoint(env, node, None)?;
        let accepting = hub.clone();
        let accepted =
            tokio::spawn(async move { anyhow::Ok(accepting.accept().await.context("no connection")?.await?) });
        let node_end = node.connect_with(client, to, proto::identity::HUB_DNS_NAME)?.await?;
        let hub_end = accepted.await??;
        let answering = hub_end.clone();
        tasks.spawn(async move {
            // Control messages come back as they are, ahead of everything.
            while let Ok((mut send, mut receive)) = answering.accept_bi().await {
                send.set_priority(proto::link::priority::CONTROL).ok();
                tokio::spawn(async move {
                    let mut message = [0; 100];
                    while receive.read_exact(&mut message).await.is_ok() && send.write_all(&message).await.is_ok() {}
                });
            }
        });
        Ok(Pair { hub: hub_end, node: node_end, _endpoints: vec![hub, node], _brokers: tasks })
    }

    async fn sockets(
        env: &Env,
        hub: SocketAddr,
        node: SocketAddr,
        tasks: &mut JoinSet<()>,
    ) -> anyhow::Result<(Arc<dyn AsyncUdpSocket>, Arc<dyn AsyncUdpSocket>, SocketAddr)> {
        let (fleet, box_1) = (name("bench")?, name("box-1")?);
        let ids = [format!("hub-{hub}-{node}"), format!("node-{hub}-{node}")];
        let ours = pipe(env, Role::Hub { fleet: fleet.clone() }, hub, &ids[0], tasks).await?;
        let theirs = pipe(env, Role::Node { fleet, node: box_1 }, node, &ids[1], tasks).await?;
        ask(&theirs).await?;
        let local = address::hub();
        let server = CarrierSocket::new(None, vec![ours], Arc::new(OneWay { peer: None }), local);
        let peer = Some(address::hash("box-1"));
        let client = CarrierSocket::new(None, vec![theirs], Arc::new(OneWay { peer }), local);
        Ok((Arc::new(server), Arc::new(client), address::hub()))
    }

    /// Sends so many bytes to the node.
    async fn transfer(&self, bytes: u64) -> anyhow::Result<()> {
        let send = async {
            let mut stream = self.hub.open_uni().await?;
            let chunk = Bytes::from(vec![0x5a; CHUNK]);
            let mut left = bytes;
            while left > 0 {
                let part = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
                stream.write_chunk(chunk.slice(..part)).await?;
                left -= u64::try_from(part)?;
            }
            stream.finish()?;
            stream.stopped().await?;
            anyhow::Ok(())
        };
        let receive = async {
            let mut stream = self.node.accept_uni().await?;
            while stream.read_chunk(CHUNK, true).await?.is_some() {}
            anyhow::Ok(())
        };
        tokio::try_join!(send, receive)?;
        Ok(())
    }

    /// Median round trip of a control message, ms.
    async fn ping(&self) -> anyhow::Result<f64> {
        let (mut send, mut receive) = self.node.open_bi().await?;
        send.set_priority(proto::link::priority::CONTROL)?;
        let mut times = vec![];
        for _ in 0..PINGS {
            let (begin, mut message) = (Instant::now(), [7; 100]);
            send.write_all(&message).await?;
            receive.read_exact(&mut message).await?;
            times.push(begin.elapsed());
            sleep(Duration::from_millis(25)).await;
        }
        times.sort_unstable();
        let median = times.get(PINGS / 2).copied().unwrap_or_default();
        Ok(hundredths(median.as_secs_f64() * 1000.0))
    }

    /// Does something while the hub sends without end.
    async fn while_busy<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let busy = async {
            loop {
                self.transfer(256 * MIB).await?;
            }
        };
        tokio::select! {
            done = work => done,
            failed = busy => failed,
        }
    }
}

/// What hub and agent give their connections; `through`: whether this one goes through a broker.
fn configs(env: &Env, through: bool) -> anyhow::Result<(quinn::ServerConfig, quinn::ClientConfig)> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    let certificate =
        rcgen::CertificateParams::new(vec![proto::identity::HUB_DNS_NAME.to_owned()])?.self_signed(&key)?;
    let certificate: CertificateDer<'static> = certificate.der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let tls = rustls::ServerConfig::builder_with_provider(proto::identity::crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    server.transport_config(Arc::new(cloudcore::link::endpoint::transport(env, Arc::new(through.into()))));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate)?;
    let tls = rustls::ClientConfig::builder_with_provider(proto::identity::crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(3 * STREAM_WINDOW))
        .keep_alive_interval(Some(Duration::from_secs(12)));
    client.transport_config(Arc::new(transport));
    // The hub takes no streams of one direction from agents; here it is the agent that takes them.
    Ok((server, client))
}

/// Plain MQTT: as many bytes in publishes of 256 KiB.
async fn plain(at: SocketAddr, bytes: u64) -> anyhow::Result<()> {
    let options = |id: &str| {
        let mut options = MqttOptions::new(id, at.ip().to_string(), at.port());
        options.set_max_packet_size(1 << 20, 1 << 20).set_inflight(100);
        options
    };
    let count = bytes.div_ceil(PUBLISH_BYTES as u64);
    let (reader, mut arriving) = AsyncClient::new(options("yardstick-reader"), 16);
    arriving.network_options.set_tcp_nodelay(true);
    reader.subscribe("yardstick", QoS::AtLeastOnce).await?;
    loop {
        if let Event::Incoming(Packet::SubAck(_)) = arriving.poll().await? {
            break;
        }
    }
    let (writer, mut leaving) = AsyncClient::new(options("yardstick-writer"), 16);
    leaving.network_options.set_tcp_nodelay(true);
    let write = async move {
        let payload = Bytes::from(vec![0x5a; PUBLISH_BYTES]);
        for _ in 0..count {
            writer.publish_bytes("yardstick", QoS::AtLeastOnce, false, payload.clone()).await?;
        }
        std::future::pending::<anyhow::Result<()>>().await
    };
    let drive = async move {
        loop {
            leaving.poll().await?;
        }
    };
    let read = async move {
        let mut seen = 0;
        while seen < count {
            if let Event::Incoming(Packet::Publish(_)) = arriving.poll().await? {
                seen += 1;
            }
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ended = tokio::spawn(write) => ended?,
        ended = tokio::spawn(drive) => ended?,
        ended = tokio::spawn(read) => ended?,
    }
}

/// A line before the broker: 20 Mbit/s and 25 ms each way.
async fn line(broker: SocketAddr) -> anyhow::Result<(JoinSet<()>, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(broker).await else { continue };
            near.set_nodelay(true).ok();
            far.set_nodelay(true).ok();
            // What the kernel holds on either side of it is not the line's queue.
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::spawn(carry(near_in, far_out));
            tokio::spawn(carry(far_in, near_out));
        }
    });
    Ok((tasks, address))
}

async fn carry(
    mut from: impl tokio::io::AsyncRead + Unpin + Send + 'static,
    mut to: impl tokio::io::AsyncWrite + Unpin + Send + 'static,
) {
    const PIECE: usize = 1500;
    // The queue and what is on the way of it.
    let on_the_way = (QUEUE_BYTES + RATE_BYTES_PER_S * 25 / 1000) as usize / PIECE;
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(on_the_way);
    tokio::spawn(async move {
        while let Some((at, bytes)) = receiver.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let (mut free, mut buffer) = (Instant::now(), vec![0; PIECE]);
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        free = free.max(Instant::now()) + Duration::from_micros(count as u64 * 1_000_000 / RATE_BYTES_PER_S);
        let bytes = buffer.get(..count).unwrap_or_default().to_vec();
        if sender.send((free + LATENCY, bytes)).await.is_err() {
            return;
        }
    }
}

/// Percent of a core that a hub and so many nodes use while each sends a message a second.
async fn fleet(env: &Env, at: SocketAddr, nodes: usize) -> anyhow::Result<f64> {
    const SPAN: Duration = Duration::from_secs(10);
    let (server, client) = configs(env, true)?;
    let mut tasks = JoinSet::new();
    let fleet = name("bench-fleet")?;
    let ours = pipe(env, Role::Hub { fleet: fleet.clone() }, at, "fleet-hub", &mut tasks).await?;
    let socket = CarrierSocket::new(None, vec![ours], Arc::new(OneWay { peer: None }), address::hub());
    let hub = endpoint(env, Arc::new(socket), Some(server))?;
    let accepting = hub.clone();
    tasks.spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            tokio::spawn(async move {
                let connection = incoming.await?;
                while let Ok((_, mut receive)) = connection.accept_bi().await {
                    let mut message = [0; 100];
                    while receive.read_exact(&mut message).await.is_ok() {}
                }
                anyhow::Ok(())
            });
        }
    });
    let mut connections = vec![];
    for number in 0..nodes {
        let node = name(&format!("box-{number}"))?;
        let peer = Some(address::hash(node.as_str()));
        let theirs =
            pipe(env, Role::Node { fleet: fleet.clone(), node }, at, &format!("box-{number}"), &mut tasks).await?;
        ask(&theirs).await?;
        let socket = CarrierSocket::new(None, vec![theirs], Arc::new(OneWay { peer }), address::hub());
        let endpoint = endpoint(env, Arc::new(socket), None)?;
        let connection = endpoint.connect_with(client.clone(), address::hub(), proto::identity::HUB_DNS_NAME)?.await?;
        let (mut send, receive) = connection.open_bi().await?;
        tasks.spawn(async move {
            while send.write_all(&[7; 100]).await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        });
        connections.push((endpoint, connection, receive));
    }
    let before = process::cpu(std::process::id())?;
    sleep(SPAN).await;
    let spent = process::cpu(std::process::id())?.saturating_sub(before);
    Ok(hundredths(spent.as_secs_f64() / SPAN.as_secs_f64() * 100.0))
}
