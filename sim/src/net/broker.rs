//! MQTT brokers of the simulated network: hosts of their own, reached over lines as everybody is, but by TCP.
//!
//! ```text
//! pipe of host a --> line a->broker --> line broker->b --> inbox of b --> pipe of host b
//! ```
//!
//! TCP does not lose: what a line loses by chance comes a retransmission later, and everything after it. While a line
//! is cut, or a broker is down, nothing gets through and connections end, as keep-alives would end them. A
//! broker passes on what it is told to, QoS 0, to whom subscribed; it knows no rules. By its [`Manners`] it drops
//! what is too large, and whole messages by chance, or delays, repeats and swaps them.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use proto::{
    broker::Broker,
    carrier::{
        client::{Client, Trouble},
        pipe::{Outgoing, Pipe},
    },
};
use rand::RngExt as _;
use rand_chacha::ChaCha12Rng;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use super::{Net, State, line::chance};

/// When TCP sends again what was lost.
const RETRANSMIT: Duration = Duration::from_millis(200);
/// How long a connection takes to notice that nothing passes any more, and an attempt to give up.
const NOTICE: Duration = Duration::from_secs(10);
/// Between two looks at whether a connection still stands.
const LOOK: Duration = Duration::from_secs(1);
/// Messages for one client that wait; a broker drops what comes beyond.
const QUEUE: usize = 1000;

/// What a broker does to messages. Chances are in parts per million of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manners {
    /// Largest message in bytes; it drops what is larger and says nothing. Absent: none is too large.
    pub packet_limit: Option<usize>,
    /// Chance that it drops one.
    pub drop_ppm: u32,
    /// Chance that it passes one on twice.
    pub duplicate_ppm: u32,
    /// Chance that it passes one on after the next one.
    pub reorder_ppm: u32,
    /// Most that it keeps one by chance.
    pub delay: Duration,
}

/// A broker.
#[derive(Debug)]
pub(super) struct SimBroker {
    url: String,
    down: bool,
    manners: Manners,
    /// The draws of [`SimBroker::passes`].
    chance: ChaCha12Rng,
    /// By number of the connection, in the order in which they were made.
    clients: BTreeMap<u64, Connected>,
}

#[derive(Debug)]
struct Connected {
    ip: IpAddr,
    filter: String,
    /// What is to come after the next one.
    held: Option<Outgoing>,
    inbox: VecDeque<(Instant, Outgoing)>,
    came: Arc<Notify>,
}

fn fits(filter: &str, topic: &str) -> bool {
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (None, None) => return true,
            (Some(f), Some(t)) if f == "+" || f == t => {}
            _ => return false,
        }
    }
}

/// What becomes of a message.
struct Pass {
    times: usize,
    late: bool,
    delay: Duration,
}

impl SimBroker {
    /// Each message draws the same number of times, so that one kind of fault disturbs no other.
    fn passes(&mut self, bytes: usize) -> Pass {
        let most_us = u64::try_from(self.manners.delay.as_micros()).unwrap_or(u64::MAX);
        let delay = Duration::from_micros(self.chance.random_range(0..=most_us));
        let dropped = chance(&mut self.chance, self.manners.drop_ppm);
        let twice = chance(&mut self.chance, self.manners.duplicate_ppm);
        let late = chance(&mut self.chance, self.manners.reorder_ppm);
        let fits = self.manners.packet_limit.is_none_or(|limit| bytes <= limit);
        Pass { times: if dropped || !fits { 0 } else { 1 + usize::from(twice) }, late, delay }
    }

    /// What goes to a client now: the message, as often as it passes, and what was held back for it to overtake.
    fn now_for(&mut self, number: u64, message: &Outgoing, pass: &Pass) -> Vec<Outgoing> {
        let Some(client) = self.clients.get_mut(&number).filter(|_| pass.times > 0) else { return vec![] };
        if pass.late && client.held.is_none() {
            client.held = Some(message.clone());
            return vec![];
        }
        std::iter::repeat_n(message.clone(), pass.times).chain(client.held.take()).collect()
    }
}

impl State {
    /// When a piece of a TCP stream that is sent at `at` has arrived; `None` while nothing passes.
    fn tcp(&mut self, from: IpAddr, to: IpAddr, at: Instant, bytes: usize) -> Option<Instant> {
        self.line(from, to).carry(at, bytes, RETRANSMIT)
    }
}

impl Net {
    /// Adds a broker that `name` resolves to.
    pub fn add_broker(&self, name: &str, manners: Manners) -> IpAddr {
        let ip = self.add_host(name);
        let mut state = self.lock();
        let chance = state.seed.stream(&format!("broker {name}"));
        let url = format!("mqtt://{name}:1883");
        state.brokers.insert(ip, SimBroker { url, down: false, manners, chance, clients: BTreeMap::new() });
        ip
    }

    /// Addresses of all brokers.
    #[must_use]
    pub fn broker_ips(&self) -> Vec<IpAddr> {
        self.lock().brokers.keys().copied().collect()
    }

    /// The broker of a name.
    #[must_use]
    pub fn broker_ip(&self, name: &str) -> Option<IpAddr> {
        let state = self.lock();
        state.names.get(name).copied().filter(|ip| state.brokers.contains_key(ip))
    }

    /// How many clients a broker has; `None` when it is down, or none.
    #[must_use]
    pub fn broker_clients(&self, ip: IpAddr) -> Option<usize> {
        self.lock().brokers.get(&ip).filter(|broker| !broker.down).map(|broker| broker.clients.len())
    }

    /// All brokers, as hub and boxes are told of them.
    #[must_use]
    pub fn brokers(&self) -> Vec<Broker> {
        let urls: Vec<_> = self.lock().brokers.values().filter_map(|b| b.url.parse().ok()).collect();
        urls.into_iter().map(Broker::at).collect()
    }

    /// Kills a broker, or starts it. Whoever was connected is not any more, what it held is lost.
    pub fn set_broker_down(&self, ip: IpAddr, down: bool) {
        let mut state = self.lock();
        let name = state.name(ip);
        let Some(broker) = state.brokers.get_mut(&ip).filter(|broker| broker.down != down) else { return };
        broker.down = down;
        let gone = if down { std::mem::take(&mut broker.clients) } else { BTreeMap::new() };
        drop(state);
        gone.values().for_each(|client| client.came.notify_one());
        self.0.trace.line("net", format_args!("{name} is {}", if down { "down" } else { "up" }));
    }

    /// Connects a host with the broker of `client`, and carries what `pipe` holds until that ends.
    pub(super) async fn through_broker(&self, ip: IpAddr, client: &Client, pipe: &Pipe) -> Trouble {
        let url = &client.broker.url;
        let lost = |why: &str| Trouble::new("Unreachable", format!("broker {url}: {why}"));
        let Some(at) = self.lock().names.get(&url.host).copied() else { return lost("there is none of that name") };
        let Some((number, came)) = self.attach(ip, at, &pipe.filter()).await else {
            sleep(NOTICE).await;
            return lost("it does not answer");
        };
        let _attached = Attached { net: self, at, number };
        let down = Down(pipe);
        pipe.up();
        // None is begun again: whichever ends, the connection does.
        tokio::select! {
            biased;
            () = self.forward(ip, at, pipe) => {}
            () = self.deliver(at, number, &came, pipe) => {}
            () = self.stands(ip, at) => {}
        }
        drop(down);
        lost("the connection broke off")
    }

    /// A place at the broker, a round trip later; `None` when there is no way to it.
    async fn attach(&self, ip: IpAddr, at: IpAddr, filter: &str) -> Option<(u64, Arc<Notify>)> {
        let arrives = {
            let mut state = self.lock();
            let up = state.brokers.get(&at).is_some_and(|broker| !broker.down);
            let there = state.tcp(ip, at, Instant::now(), 100).filter(|_| up)?;
            state.tcp(at, ip, there, 100)?
        };
        sleep_until(arrives).await;
        let mut state = self.lock();
        let number = state.take_sequence();
        let broker = state.brokers.get_mut(&at).filter(|broker| !broker.down)?;
        let came = Arc::new(Notify::new());
        let (filter, came_too) = (filter.to_owned(), Arc::clone(&came));
        let place = Connected { ip, filter, held: None, inbox: VecDeque::new(), came: came_too };
        broker.clients.insert(number, place);
        Some((number, came))
    }

    /// Until nothing passes any more.
    async fn stands(&self, ip: IpAddr, at: IpAddr) {
        loop {
            sleep(LOOK).await;
            let cut = {
                let mut state = self.lock();
                state.line(ip, at).is_cut() || state.line(at, ip).is_cut()
            };
            if cut {
                return sleep(NOTICE).await;
            }
        }
    }

    async fn forward(&self, ip: IpAddr, at: IpAddr, pipe: &Pipe) {
        loop {
            let outgoing = pipe.next().await;
            let there = self.lock().tcp(ip, at, Instant::now(), outgoing.payload.len() + outgoing.topic.len());
            let Some(there) = there else { continue };
            self.pass_on(at, there, &outgoing);
            // The sender's kernel takes no more than the line does: QUIC feels it.
            sleep_until(there.checked_sub(RETRANSMIT).unwrap_or(there)).await;
        }
    }

    fn pass_on(&self, at: IpAddr, there: Instant, outgoing: &Outgoing) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(broker) = state.brokers.get_mut(&at).filter(|broker| !broker.down) else { return };
        let pass = broker.passes(outgoing.payload.len() + outgoing.topic.len());
        let readers = broker.clients.iter().filter(|(_, c)| fits(&c.filter, &outgoing.topic));
        let readers: Vec<_> = readers.map(|(number, client)| (*number, client.ip)).collect();
        for (number, ip) in readers {
            let now = state.brokers.get_mut(&at).map(|broker| broker.now_for(number, outgoing, &pass));
            for message in now.unwrap_or_default() {
                let bytes = message.payload.len() + message.topic.len();
                let Some(arrives) = state.tcp(at, ip, there + pass.delay, bytes) else { continue };
                let client = state.brokers.get_mut(&at).and_then(|broker| broker.clients.get_mut(&number));
                let Some(client) = client.filter(|client| client.inbox.len() < QUEUE) else { continue };
                client.inbox.push_back((arrives, message));
                client.came.notify_one();
            }
        }
    }

    async fn deliver(&self, at: IpAddr, number: u64, came: &Notify, pipe: &Pipe) {
        loop {
            let first = {
                let mut state = self.lock();
                let client = state.brokers.get_mut(&at).and_then(|broker| broker.clients.get_mut(&number));
                let Some(client) = client else { return }; // the broker was killed
                client.inbox.pop_front()
            };
            let Some((when, Outgoing { topic, payload })) = first else {
                came.notified().await;
                continue;
            };
            sleep_until(when).await;
            let payload: Bytes = payload;
            while !pipe.arrived(&topic, &payload) {
                pipe.room().await;
            }
        }
    }
}

/// Whoever hangs up, however, is no reader any more.
struct Attached<'a> {
    net: &'a Net,
    at: IpAddr,
    number: u64,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        let mut state = self.net.lock();
        let gone = state.brokers.get_mut(&self.at).and_then(|broker| broker.clients.remove(&self.number));
        drop(state);
        drop(gone); // after the lock is free: its waker may be the last to hold a task
    }
}

/// However a connection ends, the pipe learns of it.
struct Down<'a>(&'a Pipe);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        self.0.down();
    }
}

#[cfg(test)]
mod tests {
    use proto::env::Seed;

    use super::*;

    fn broker(manners: Manners) -> SimBroker {
        let chance = Seed::from_u64(1).stream("broker");
        let place = Connected {
            ip: [10, 0, 0, 1].into(),
            filter: "#".into(),
            held: None,
            inbox: VecDeque::new(),
            came: Arc::default(),
        };
        let url = "mqtt://broker:1883".into();
        SimBroker { url, down: false, manners, chance, clients: BTreeMap::from([(7, place)]) }
    }

    /// What comes of messages with these numbers.
    fn passed(broker: &mut SimBroker, count: u16) -> Vec<u16> {
        let message = |n: u16| Outgoing { topic: String::new(), payload: Bytes::copy_from_slice(&n.to_be_bytes()) };
        let mut come = vec![];
        for number in 0..count {
            let pass = broker.passes(2);
            let now = broker.now_for(7, &message(number), &pass);
            come.extend(now.iter().map(|m| u16::from_be_bytes([m.payload[0], m.payload[1]])));
        }
        come
    }

    #[test]
    fn a_broker_drops_repeats_and_swaps_as_often_as_asked() {
        let mut fine = broker(Manners::default());
        assert_eq!(passed(&mut fine, 1000), (0..1000).collect::<Vec<_>>());
        let come = passed(&mut broker(Manners { drop_ppm: 100_000, ..Manners::default() }), 10_000);
        assert!((8_900..9_100).contains(&come.len()) && come.is_sorted(), "{}", come.len());
        let come = passed(&mut broker(Manners { duplicate_ppm: 100_000, ..Manners::default() }), 10_000);
        assert!((10_900..11_100).contains(&come.len()) && come.is_sorted(), "{}", come.len());
        let come = passed(&mut broker(Manners { reorder_ppm: 100_000, ..Manners::default() }), 10_000);
        let late = come.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!((800..1_100).contains(&late) && come.len() >= 9_999, "{late} late of {}", come.len());
    }

    #[test]
    fn what_is_over_the_limit_does_not_pass_and_delays_stay_within_theirs() {
        let (limit, delay) = (Some(100), Duration::from_millis(50));
        let mut broker = broker(Manners { packet_limit: limit, delay, ..Manners::default() });
        assert_eq!([99, 100, 101].map(|bytes| broker.passes(bytes).times), [1, 1, 0]);
        let delays: Vec<_> = (0..1000).map(|_| broker.passes(1).delay).collect();
        assert!(delays.iter().all(|d| *d <= delay) && delays.iter().any(|d| *d > delay / 2));
    }
}
