//! One connection's way to the hub: a socket over UDP and the brokers, and the loop that moves it between them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, PoisonError},
    time::Duration,
};

use proto::carrier::{
    address,
    probe::{ProbeId, probe},
    socket::CarrierSocket,
};
use quinn::{AsyncUdpSocket, Connection, Endpoint, udp::Transmit};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    Carriers,
    choice::{Carrier, Choice, Input, Output},
    route::AgentRoute,
};

/// How long a name may take to resolve.
const RESOLVE: Duration = Duration::from_secs(5);
/// Between two times that names are resolved: when some were, and when none was.
const RESOLVE_AGAIN: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(30));
/// Addresses of hubs that are tried.
const MAX_CANDIDATES: usize = 16;

/// A way to the hub.
#[derive(Debug)]
pub(crate) struct Path {
    carriers: Arc<Carriers>,
    hubs: Vec<String>,
    route: Arc<AgentRoute>,
    udp: Option<Arc<dyn AsyncUdpSocket>>,
    socket: Arc<CarrierSocket<AgentRoute>>,
    probe: ProbeId,
}

impl Path {
    pub(super) fn new(carriers: Arc<Carriers>, hubs: Vec<String>, id: ProbeId) -> io::Result<Path> {
        let route = Arc::new(AgentRoute::new(carriers.node.as_str(), id));
        let any = |ip: IpAddr| carriers.env.network.bind(SocketAddr::new(ip, 0));
        // One socket for hubs of both families, where the box has IPv6 at all.
        let udp =
            carriers.udp.then(|| any(Ipv6Addr::UNSPECIFIED.into()).or_else(|_| any(Ipv4Addr::UNSPECIFIED.into())));
        let udp = udp.transpose()?;
        // Whatever the socket is: the hub's address is one of IPv6.
        let local = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        let pipes = vec![carriers.brokers.pipe()];
        let socket = Arc::new(CarrierSocket::new(udp.clone(), pipes, Arc::clone(&route), local));
        Ok(Path { carriers, hubs, route, udp, socket, probe: id })
    }

    pub(super) fn socket(&self) -> Arc<dyn AsyncUdpSocket> {
        Arc::clone(&self.socket) as Arc<dyn AsyncUdpSocket>
    }

    /// Keeps the connection on the carrier that works, for ever. Without a connection it decides on the first.
    pub(crate) async fn run(&self, endpoint: &Endpoint, connection: Option<&Connection>) {
        tokio::join!(self.resolve(), self.choose(endpoint, connection));
    }

    /// Until a carrier is chosen.
    pub(super) async fn decided(&self, endpoint: &Endpoint) {
        let mut told = self.carriers.told();
        let decided =
            async { while self.carriers.choice(|choice| choice.active()).is_none() && told.changed().await.is_ok() {} };
        // Neither is begun again.
        tokio::select! {
            biased;
            () = self.run(endpoint, None) => {}
            () = decided => {}
        }
    }

    async fn resolve(&self) {
        if self.udp.is_none() {
            return;
        }
        let is_v6 = self.udp.as_ref().and_then(|udp| udp.local_addr().ok()).is_some_and(|a| a.is_ipv6());
        loop {
            let mut found = vec![];
            for hub in &self.hubs {
                match timeout(RESOLVE, self.carriers.env.network.resolve(hub)).await {
                    Ok(Ok(addresses)) => found.extend(addresses.into_iter().filter_map(|a| fit(a, is_v6))),
                    Ok(Err(error)) => self.carriers.unresolved(hub, &error.to_string()),
                    Err(_) => self.carriers.unresolved(hub, "no answer in time"),
                }
            }
            found.truncate(MAX_CANDIDATES);
            let wait = if found.is_empty() { RESOLVE_AGAIN.1 } else { RESOLVE_AGAIN.0 };
            self.route.set_candidates(found);
            sleep(wait).await;
        }
    }

    async fn choose(&self, endpoint: &Endpoint, connection: Option<&Connection>) {
        let mut standing = self.carriers.brokers.standing();
        let mut turn = 0;
        loop {
            let seen = self.route.look();
            let reached = standing.borrow_and_update().reached;
            let wake = self.carriers.choice(|choice| {
                let now = Instant::now();
                choice.handle(now, Input::Mqtt(reached));
                if let Some(connection) = connection {
                    choice.handle(now, Input::RoundTrip(connection.rtt()));
                }
                if seen.answered {
                    choice.handle(now, Input::Answered);
                }
                choice.handle(now, seen.unanswered.map_or(Input::Heard, Input::Unanswered));
                choice.handle(now, Input::Tick);
                while let Some(output) = choice.poll() {
                    self.carry_out(output, &mut turn, endpoint, connection);
                }
                choice.wake_at()
            });
            self.carriers.tell(self.route.hub());
            // All arms are cancel safe.
            tokio::select! {
                biased;
                () = self.route.changed() => {}
                _ = standing.changed() => {} // the sender is ours and lives longer
                () = async { match wake {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                } } => {}
            }
        }
    }

    fn carry_out(&self, output: Output, turn: &mut usize, endpoint: &Endpoint, connection: Option<&Connection>) {
        match output {
            Output::Probe => {
                let to = self.route.probe_to(*turn);
                *turn = turn.wrapping_add(1);
                if let (Some(udp), Some(destination)) = (&self.udp, to) {
                    let contents = probe(self.probe);
                    let contents = &contents[..];
                    let transmit = Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None };
                    udp.try_send(&transmit).ok(); // one that is lost is followed by the next
                }
            }
            Output::Use(carrier) => {
                self.route.enter(carrier);
                if connection.is_some() {
                    let over = match carrier {
                        Carrier::Udp => "UDP",
                        Carrier::Mqtt => "MQTT",
                    };
                    tracing::info!("the link goes over {over} from now on");
                    self.rebind(endpoint);
                }
            }
            Output::Nudge => self.rebind(endpoint),
        }
    }

    /// QUIC takes note of a new path, and sends at once.
    fn rebind(&self, endpoint: &Endpoint) {
        if let Err(error) = endpoint.rebind_abstract(self.socket()) {
            tracing::warn!(%error, "the connection could not be moved");
        }
    }
}

/// An address as the socket wants it; `None` when it cannot reach it.
fn fit(address: SocketAddr, is_v6: bool) -> Option<SocketAddr> {
    match (address.ip(), is_v6) {
        (IpAddr::V4(ip), true) => Some(SocketAddr::new(ip.to_ipv6_mapped().into(), address.port())),
        (IpAddr::V6(_), false) => None,
        _ => Some(address),
    }
}

impl Carriers {
    /// The one place that holds the choice's lock; nothing waits inside.
    pub(super) fn choice<T>(&self, with: impl FnOnce(&mut Choice) -> T) -> T {
        with(&mut self.choice.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The hub, as QUIC knows it on every carrier.
pub(super) fn destination() -> SocketAddr {
    address::hub()
}
