//! The hub behind MQTT brokers: one connection with each, below the same QUIC endpoint as UDP.
//!
//! ```text
//! Endpoint <--> CarrierSocket<Brokers> --+--> UDP
//!                                        +--> Pipe of each broker <--> run: connects, comes back
//! ```
//!
//! A node behind a broker has a synthetic address ([`proto::carrier::address`]) that says which broker, and whose
//! topic. Who it is says its certificate, as over UDP.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use proto::{
    backoff::Backoff,
    broker::Broker,
    carrier::{
        address::{Behind, MAX_BROKERS},
        client::{Client, Trouble},
        pipe::{Pipe, Role},
        socket::{CarrierSocket, Route, To},
    },
    env::Env,
    name::Name,
};
use quinn::udp::RecvMeta;
use rand::Rng as _;
use tokio::time::{Instant, sleep};

/// First and last bound of the wait between two connections with a broker.
const BACKOFF_BASE: Duration = Duration::from_millis(250);
const BACKOFF_CAP: Duration = Duration::from_secs(10);

/// Whether a connection goes through a broker now, as its congestion window wants to know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Through(Arc<AtomicBool>);

impl Through {
    /// Looks where the peer is. An agent that changes carriers says something soon.
    pub(crate) fn look(&self, remote: SocketAddr) {
        self.0.store(Behind::of(remote).is_some(), Ordering::Relaxed);
    }

    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

/// The brokers of a hub.
#[derive(Debug)]
pub(crate) struct Brokers {
    list: Vec<(Broker, Arc<Pipe>)>,
    fleet: Name,
    folder: PathBuf,
}

impl Brokers {
    /// Those of the configuration; none of them is connected yet.
    pub(crate) fn new(list: &[Broker], fleet: &Name, folder: PathBuf) -> Brokers {
        let pipe =
            |broker: &Broker| Arc::new(Pipe::new(Role::Hub { fleet: fleet.clone() }).of_segments(broker.segments()));
        let list = list.iter().take(MAX_BROKERS).map(|broker| (broker.clone(), pipe(broker))).collect();
        Brokers { list, fleet: fleet.clone(), folder }
    }

    /// The socket below the endpoint: `udp` itself, where there are no brokers.
    pub(crate) fn socket(
        self: &Arc<Brokers>,
        udp: Arc<dyn quinn::AsyncUdpSocket>,
    ) -> std::io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        if self.list.is_empty() {
            return Ok(udp);
        }
        let local = udp.local_addr()?;
        let pipes = self.list.iter().map(|(_, pipe)| Arc::clone(pipe)).collect();
        Ok(Arc::new(CarrierSocket::new(Some(udp), pipes, Arc::clone(self), local)))
    }

    /// What an address is called for people: an IPv4 address as such, a node's place behind a broker by its name.
    pub(crate) fn describe(&self, address: SocketAddr) -> String {
        let place = Behind::of(address).and_then(|behind| {
            let (broker, pipe) = self.list.get(usize::from(behind.broker))?;
            let node = pipe.name(behind.node)?;
            Some(format!("{} {node}", broker.url))
        });
        place.unwrap_or_else(|| SocketAddr::new(address.ip().to_canonical(), address.port()).to_string())
    }

    /// Keeps a connection with each broker, for ever.
    pub(crate) async fn run(&self, env: &Env) {
        join_all(self.list.iter().enumerate().map(|(number, (broker, pipe))| self.keep(env, number, broker, pipe)))
            .await;
        std::future::pending().await
    }

    async fn keep(&self, env: &Env, number: usize, broker: &Broker, pipe: &Pipe) {
        let mut rng = env.seed.stream(&format!("broker {number} at {}", env.wall.now()));
        let id = format!("crossdock-hub-{}-{:08x}", self.fleet, rng.next_u32());
        let client = Client {
            broker: broker.clone(),
            folder: self.folder.clone(),
            id,
            clock: env.wall.clone(),
            blocking: env.blocking,
        };
        let (mut backoff, mut told) = (Backoff::new(BACKOFF_BASE, BACKOFF_CAP), None);
        loop {
            let began = Instant::now();
            let ups = pipe.state().borrow().ups;
            let trouble = env.network.broker(&client, pipe).await;
            backoff.ended(began.elapsed());
            tell(&trouble, pipe.state().borrow().ups != ups, &mut told);
            sleep(backoff.failed(&mut rng)).await;
        }
    }
}

/// The same trouble again is no news.
pub(crate) fn tell(trouble: &Trouble, was_up: bool, told: &mut Option<String>) {
    if was_up || told.as_ref() != Some(&trouble.message) {
        tracing::warn!(reason = trouble.reason, "{}", trouble.message);
        *told = Some(trouble.message.clone());
    } else {
        tracing::debug!(reason = trouble.reason, "{}", trouble.message);
    }
}

impl Route for Brokers {
    fn to(&self, destination: SocketAddr) -> To {
        match Behind::of(destination) {
            Some(Behind { broker, node }) => To::Pipe { pipe: usize::from(broker), peer: node },
            None => To::Udp(destination),
        }
    }

    fn arrived(&self, meta: &mut RecvMeta, _: &[u8]) {
        // An address that only stands for somebody behind a broker cannot come over the net.
        if Behind::of(meta.addr).is_some() {
            meta.len = 0;
        }
    }

    fn address_of(&self, pipe: usize, peer: u64) -> SocketAddr {
        Behind { broker: u16::try_from(pipe).unwrap_or_default(), node: peer }.address()
    }
}
