//! MQTT brokers of the simulated network: hosts of their own, reached over lines as everybody is, but by TCP.
//!
//! ```text
//! pipe of host a --> line a->broker --> line broker->b --> inbox of b --> pipe of host b
//! ```
//!
//! TCP does not lose: what a line loses by chance comes a retransmission later, and everything after it. While a line
//! is cut, or a broker is down, nothing gets through and connections end, as keep-alives would end them. A
//! broker passes on what it is told to, QoS 0, to whom subscribed; it knows no rules.

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
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use super::{Net, State};

/// When TCP sends again what was lost.
const RETRANSMIT: Duration = Duration::from_millis(200);
/// How long a connection takes to notice that nothing passes any more, and an attempt to give up.
const NOTICE: Duration = Duration::from_secs(10);
/// Between two looks at whether a connection still stands.
const LOOK: Duration = Duration::from_secs(1);
/// Messages for one client that wait; a broker drops what comes beyond.
const QUEUE: usize = 1000;

/// A broker.
#[derive(Debug)]
pub(super) struct SimBroker {
    url: String,
    down: bool,
    /// By number of the connection, in the order in which they were made.
    clients: BTreeMap<u64, Connected>,
}

#[derive(Debug)]
struct Connected {
    ip: IpAddr,
    filter: String,
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

impl State {
    /// When a piece of a TCP stream that is sent at `at` has arrived; `None` while nothing passes.
    fn tcp(&mut self, from: IpAddr, to: IpAddr, at: Instant, bytes: usize) -> Option<Instant> {
        self.line(from, to).carry(at, bytes, RETRANSMIT)
    }
}

impl Net {
    /// Adds a broker that `name` resolves to.
    pub fn add_broker(&self, name: &str) -> IpAddr {
        let ip = self.add_host(name);
        let broker = SimBroker { url: format!("mqtt://{name}:1883"), down: false, clients: BTreeMap::new() };
        self.lock().brokers.insert(ip, broker);
        ip
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
        let Some(broker) = state.brokers.get_mut(&ip) else { return };
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
        let place = Connected { ip, filter: filter.to_owned(), inbox: VecDeque::new(), came: Arc::clone(&came) };
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
        let Some(broker) = state.brokers.get(&at).filter(|broker| !broker.down) else { return };
        let readers = broker.clients.iter().filter(|(_, c)| fits(&c.filter, &outgoing.topic));
        let readers: Vec<_> = readers.map(|(number, client)| (*number, client.ip)).collect();
        for (number, ip) in readers {
            let Some(arrives) = state.tcp(at, ip, there, outgoing.payload.len() + outgoing.topic.len()) else {
                continue;
            };
            let client = state.brokers.get_mut(&at).and_then(|broker| broker.clients.get_mut(&number));
            let Some(client) = client.filter(|client| client.inbox.len() < QUEUE) else { continue };
            client.inbox.push_back((arrives, outgoing.clone()));
            client.came.notify_one();
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
