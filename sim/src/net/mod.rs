//! The in-memory network: hosts with one address each, and a line for each direction between two.
//!
//! ```text
//! quinn of host a --try_send--> Line a->b: lost, or arrives at t --> flights, by (t, sequence)
//!                                                                        | pump task, at t
//! quinn of host b <--poll_recv-- queue of the socket <-------------------+
//! ```
//!
//! The world makes a [`Net`], adds hosts, and hands [`Net::host`] to each as its
//! [`proto::env::Network`]. A line is made with the default profile when first used.

mod broker;
mod line;
mod profile;
mod socket;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
};

use proto::{
    carrier::{
        client::{Client, Trouble},
        pipe::Pipe,
    },
    env::{BoxFuture, Network, Seed},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

pub use self::{
    broker::Manners,
    line::{Counters, Fate, Line, Loss},
    profile::Profile,
};
use crate::{
    clock::{SimRuntime, Tasks},
    trace::Trace,
};

/// Datagrams that wait for one socket to read them; what comes beyond is dropped, as a kernel would.
const RECEIVE_QUEUE: usize = 4096;

/// The network. Clones are handles of the same one.
#[derive(Clone)]
pub struct Net(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// A datagram took off that lands before all others.
    earlier: Notify,
    trace: Trace,
}

struct State {
    seed: Seed,
    profile: Profile,
    hosts: HashMap<IpAddr, HostState>,
    names: BTreeMap<String, IpAddr>,
    lines: HashMap<(IpAddr, IpAddr), Line>,
    /// Boxes behind a NAT that gave them another address, and how far it moves their ports.
    nats: BTreeMap<IpAddr, (IpAddr, u16)>,
    /// Addresses that NATs gave, now or before, and whose they were.
    given: BTreeMap<IpAddr, IpAddr>,
    sockets: BTreeMap<SocketAddr, SocketState>,
    flights: BTreeMap<(Instant, u64), Flight>,
    sequence: u64,
    brokers: BTreeMap<IpAddr, broker::SimBroker>,
}

struct HostState {
    name: Arc<str>,
    next_port: u16,
}

/// What a socket that is bound has received.
struct SocketState {
    /// Tells it from an earlier socket with its address, which crashed.
    id: u64,
    queue: VecDeque<Datagram>,
    reader: Option<Waker>,
}

struct Datagram {
    from: SocketAddr,
    contents: Arc<[u8]>,
}

struct Flight {
    to: SocketAddr,
    datagram: Datagram,
}

impl Net {
    /// A network without hosts. Its faults are drawn from `seed`.
    #[must_use]
    pub fn new(seed: Seed, profile: Profile, trace: Trace) -> Net {
        let state = State {
            seed,
            profile,
            hosts: HashMap::new(),
            names: BTreeMap::new(),
            lines: HashMap::new(),
            nats: BTreeMap::new(),
            given: BTreeMap::new(),
            sockets: BTreeMap::new(),
            flights: BTreeMap::new(),
            sequence: 0,
            brokers: BTreeMap::new(),
        };
        Net(Arc::new(Shared { state: Mutex::new(state), earlier: Notify::new(), trace }))
    }

    /// Carries datagrams, for ever. Run it as a task beside the hosts.
    pub async fn pump(self) {
        loop {
            let next = self.lock().flights.first_key_value().map(|((at, _), _)| *at);
            tokio::select! { biased;
                () = self.0.earlier.notified() => {}
                () = async { match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                } } => self.land(Instant::now()),
            }
        }
    }

    /// Adds a host that `name` resolves to, and returns its address.
    pub fn add_host(&self, name: &str) -> IpAddr {
        let mut state = self.lock();
        let number = u32::try_from(state.hosts.len()).unwrap_or(u32::MAX).saturating_add(1);
        let ip = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | number)); // 10.0.0.1 and on
        state.hosts.insert(ip, HostState { name: name.into(), next_port: 49_152 });
        state.names.insert(name.to_owned(), ip);
        ip
    }

    /// The network as one host sees it between a start and a crash. quinn's tasks join `tasks`.
    #[must_use]
    pub fn host(&self, ip: IpAddr, tasks: Tasks) -> Arc<dyn Network> {
        Arc::new(HostNetwork { net: self.clone(), ip, tasks })
    }

    /// Silences a host at once: nothing more leaves its sockets, nothing more reaches them.
    pub fn silence(&self, ip: IpAddr) {
        let dead: Vec<_> = self.lock().sockets.extract_if(.., |address, _| address.ip() == ip).collect();
        drop(dead); // after the lock is free: a waker may be the last to hold a task
    }

    /// Sets how the line behaves in the direction `from` to `to`.
    pub fn set_profile(&self, from: IpAddr, to: IpAddr, profile: Profile) {
        self.lock().line(from, to).set_profile(profile, Instant::now());
    }

    /// Cuts or mends the direction `from` to `to`.
    pub fn set_cut(&self, from: IpAddr, to: IpAddr, cut: bool) {
        self.lock().line(from, to).set_cut(cut);
        self.trace_cut(from, to, cut);
    }

    /// Sets up or takes away a firewall that lets no UDP through in the direction `from` to `to`.
    pub fn set_blocked(&self, from: IpAddr, to: IpAddr, blocked: bool) {
        self.lock().line(from, to).set_blocked(blocked);
    }

    /// Makes the direction `from` to `to` so; writes to the trace what of it is new.
    pub fn settle(&self, from: IpAddr, to: IpAddr, profile: Profile, cut: bool, blocked: bool) {
        let mut state = self.lock();
        let line = state.line(from, to);
        line.set_blocked(blocked);
        line.set_profile(profile, Instant::now());
        let changes = line.set_cut(cut);
        drop(state);
        if changes {
            self.trace_cut(from, to, cut);
        }
    }

    fn trace_cut(&self, from: IpAddr, to: IpAddr, cut: bool) {
        let state = self.lock();
        let verb = if cut { "cut" } else { "mended" };
        self.0.trace.line("net", format_args!("{}->{} {verb}", state.name(from), state.name(to)));
    }

    /// The NAT in front of a host gives it another address and other ports; what comes to those before is lost.
    /// Returns whether a socket is open behind it.
    pub fn rebind(&self, ip: IpAddr) -> bool {
        let mut state = self.lock();
        let number = u32::try_from(state.given.len()).unwrap_or(u32::MAX).saturating_add(1);
        let shown = IpAddr::V4(Ipv4Addr::from_bits(0x6440_0000 | number)); // 100.64.0.1 and on
        let shift = u16::try_from(number % 16_000).unwrap_or(1);
        state.given.insert(shown, ip);
        state.nats.insert(ip, (shown, shift));
        let open = state.sockets.keys().any(|address| address.ip() == ip);
        self.0.trace.line("net", format_args!("{} is {shown} from now on", state.name(ip)));
        open
    }

    /// Whether nothing passes in the direction `from` to `to`.
    #[must_use]
    pub fn is_closed(&self, from: IpAddr, to: IpAddr) -> bool {
        self.lock().line(from, to).is_closed()
    }

    /// Whether the direction `from` to `to` is cut: not even TCP passes.
    #[must_use]
    pub fn is_cut(&self, from: IpAddr, to: IpAddr) -> bool {
        self.lock().line(from, to).is_cut()
    }

    /// What went down the line in the direction `from` to `to` so far.
    #[must_use]
    pub fn counters(&self, from: IpAddr, to: IpAddr) -> Counters {
        self.lock().line(from, to).counters
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bind(&self, ip: IpAddr, port: u16) -> io::Result<(SocketAddr, u64)> {
        let mut state = self.lock();
        let port = if port == 0 { state.free_port(ip)? } else { port };
        let address = SocketAddr::new(ip, port);
        if state.sockets.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let id = state.take_sequence();
        state.sockets.insert(address, SocketState { id, queue: VecDeque::new(), reader: None });
        Ok((address, id))
    }

    /// Sends one datagram off, if the socket still lives.
    fn send(&self, id: u64, from: SocketAddr, to: SocketAddr, contents: &[u8]) {
        let now = Instant::now();
        let mut state = self.lock();
        if state.sockets.get(&from).is_none_or(|socket| socket.id != id) {
            return; // the host crashed
        }
        let Some(to) = state.behind_nat(to) else {
            let names = format!("{}->{to}", state.name(from.ip()));
            self.0.trace.line("net", format_args!("{names} {} lost: {}", contents.len(), Loss::Nat.as_str()));
            return;
        };
        let fate = state.line(from.ip(), to.ip()).send(now, contents.len());
        let from_ip = from.ip();
        let from = state.before_nat(from);
        let (sender, receiver, bytes) = (state.name(from_ip), state.name(to.ip()), contents.len());
        let contents: Arc<[u8]> = contents.into();
        let mut take_off = |at| {
            let flight = Flight { to, datagram: Datagram { from, contents: Arc::clone(&contents) } };
            let sequence = state.take_sequence();
            if state.flights.first_key_value().is_none_or(|((first, _), _)| at < *first) {
                self.0.earlier.notify_one();
            }
            state.flights.insert((at, sequence), flight);
        };
        let us = |at: Instant| at.saturating_duration_since(now).as_micros();
        match fate {
            Fate::Arrives(at) => {
                take_off(at);
                self.0.trace.line("net", format_args!("{sender}->{receiver} {bytes} in {}us", us(at)));
            }
            Fate::ArrivesTwice(at, again) => {
                take_off(at);
                take_off(again);
                self.0
                    .trace
                    .line("net", format_args!("{sender}->{receiver} {bytes} in {}us and {}us", us(at), us(again)));
            }
            Fate::Lost(why) => {
                self.0.trace.line("net", format_args!("{sender}->{receiver} {bytes} lost: {}", why.as_str()))
            }
        }
    }

    /// Hands over all datagrams that have arrived, in order.
    fn land(&self, now: Instant) {
        let mut state = self.lock();
        while let Some(entry) = state.flights.first_entry()
            && entry.key().0 <= now
        {
            let Flight { to, datagram } = entry.remove();
            let (from, bytes) = (datagram.from, datagram.contents.len());
            let Some(socket) = state.sockets.get_mut(&to) else { continue }; // nobody listens there
            if socket.queue.len() >= RECEIVE_QUEUE {
                self.0.trace.line("net", format_args!("{to} {bytes} lost: receive queue"));
                continue;
            }
            socket.queue.push_back(datagram);
            if let Some(reader) = socket.reader.take() {
                reader.wake();
            }
            let real = state.given.get(&from.ip()).copied().unwrap_or(from.ip());
            let line = state.line(real, to.ip());
            line.counters.arrived += 1;
            line.counters.arrived_bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
        }
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Net({} hosts)", self.lock().hosts.len())
    }
}

impl State {
    fn line(&mut self, from: IpAddr, to: IpAddr) -> &mut Line {
        let seed = &self.seed;
        let profile = &self.profile;
        self.lines.entry((from, to)).or_insert_with(|| {
            let both = seed.child(&format!("lines of {} and {}", from.min(to), from.max(to)));
            Line::new(profile.clone(), &seed.child(&format!("line {from} {to}")), &both)
        })
    }

    /// How a host's address looks to others.
    fn before_nat(&self, address: SocketAddr) -> SocketAddr {
        match self.nats.get(&address.ip()) {
            Some((shown, shift)) => SocketAddr::new(*shown, address.port().wrapping_add(*shift)),
            None => address,
        }
    }

    /// Whose address it is; nobody's when a NAT gave another since.
    fn behind_nat(&self, address: SocketAddr) -> Option<SocketAddr> {
        let Some(host) = self.given.get(&address.ip()) else {
            return (!self.nats.contains_key(&address.ip())).then_some(address);
        };
        let (shown, shift) = self.nats.get(host)?;
        (*shown == address.ip()).then(|| SocketAddr::new(*host, address.port().wrapping_sub(*shift)))
    }

    fn name(&self, ip: IpAddr) -> Arc<str> {
        self.hosts.get(&ip).map_or_else(|| ip.to_string().into(), |host| Arc::clone(&host.name))
    }

    fn take_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn free_port(&mut self, ip: IpAddr) -> io::Result<u16> {
        let host = self.hosts.get_mut(&ip).ok_or(io::ErrorKind::AddrNotAvailable)?;
        for _ in 0..16_384 {
            let port = host.next_port;
            host.next_port = if port == u16::MAX { 49_152 } else { port + 1 };
            if !self.sockets.contains_key(&SocketAddr::new(ip, port)) {
                return Ok(port);
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }
}

/// [`Network`] of one host.
#[derive(Debug)]
struct HostNetwork {
    net: Net,
    ip: IpAddr,
    tasks: Tasks,
}

impl Network for HostNetwork {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        let ip = address.ip().to_canonical();
        if !ip.is_unspecified() && ip != self.ip {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let (address, id) = self.net.bind(self.ip, address.port())?;
        Ok(Arc::new(socket::SimSocket::new(self.net.clone(), address, id)))
    }

    fn runtime(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(SimRuntime::new(self.tasks.clone()))
    }

    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        let answer = || {
            if let Ok(address) = host.parse() {
                return Ok(vec![address]);
            }
            let (name, port) = host.rsplit_once(':').ok_or(io::ErrorKind::InvalidInput)?;
            let port = port.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            let ip = self.net.lock().names.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
            Ok(vec![SocketAddr::new(ip, port)])
        };
        let answer = answer();
        Box::pin(async move { answer })
    }

    fn broker<'a>(&'a self, client: &'a Client, pipe: &'a Pipe) -> BoxFuture<'a, Trouble> {
        Box::pin(self.net.through_broker(self.ip, client, pipe))
    }
}
