//! A UDP relay between agents and the hub that counts what passes: payload of datagrams, both ways.
//! As a process of its own ([`super::Stage::lay_line`]) it is a line that can be cut.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{net::UdpSocket, task::JoinSet};

/// Most peers at a time; datagrams of others are dropped.
const MAX_PEERS: usize = 1024;
const MAX_DATAGRAM_BYTES: usize = 65_536;

/// What passed so far.
#[derive(Debug, Default)]
pub struct Counts {
    bytes: AtomicU64,
    datagrams: AtomicU64,
}

impl Counts {
    /// Payload bytes and datagrams, both ways together.
    #[must_use]
    pub fn get(&self) -> (u64, u64) {
        (self.bytes.load(Ordering::Relaxed), self.datagrams.load(Ordering::Relaxed))
    }

    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
        self.datagrams.fetch_add(1, Ordering::Relaxed);
    }
}

/// A relay that runs until it is dropped.
#[derive(Debug)]
pub struct Relay {
    /// Where agents send to.
    pub address: SocketAddr,
    /// What passed.
    pub counts: Arc<Counts>,
    tasks: JoinSet<std::io::Result<()>>,
}

impl Relay {
    /// Starts a relay from `listen` to the hub at `hub`.
    ///
    /// # Errors
    /// When no socket can be had.
    pub async fn start(listen: SocketAddr, hub: SocketAddr) -> std::io::Result<Relay> {
        let front = Arc::new(UdpSocket::bind(listen).await?);
        let address = front.local_addr()?;
        let counts = Arc::new(Counts::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(forward(front, hub, Arc::clone(&counts)));
        Ok(Relay { address, counts, tasks })
    }

    /// Until it can go on no more.
    ///
    /// # Errors
    /// Why.
    pub async fn ended(mut self) -> std::io::Result<()> {
        match self.tasks.join_next().await {
            Some(ended) => ended?,
            None => Ok(()),
        }
    }
}

async fn forward(front: Arc<UdpSocket>, hub: SocketAddr, counts: Arc<Counts>) -> std::io::Result<()> {
    let mut backs: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut returns = JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    loop {
        let (length, peer) = front.recv_from(&mut buffer).await?;
        let back = match backs.get(&peer) {
            Some(back) => back,
            None if backs.len() >= MAX_PEERS => continue,
            None => {
                let back = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
                back.connect(hub).await?;
                returns.spawn(give_back(Arc::clone(&back), Arc::clone(&front), peer, Arc::clone(&counts)));
                backs.entry(peer).or_insert(back)
            }
        };
        counts.add(length);
        // A hub that is away refuses; quinn sends again.
        let _ = back.send(buffer.get(..length).unwrap_or_default()).await;
    }
}

async fn give_back(back: Arc<UdpSocket>, front: Arc<UdpSocket>, peer: SocketAddr, counts: Arc<Counts>) {
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    loop {
        // An error here is an ICMP answer of a hub that is away.
        if let Ok(length) = back.recv(&mut buffer).await {
            counts.add(length);
            let _ = front.send_to(buffer.get(..length).unwrap_or_default(), peer).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_passes_is_counted() {
        let hub = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let relay = Relay::start(any, hub.local_addr().unwrap()).await.unwrap();
        let agent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        agent.send_to(b"hello", relay.address).await.unwrap();
        let mut buffer = [0; 100];
        let (length, from) = hub.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"hello");
        hub.send_to(b"welcome", from).await.unwrap();
        assert_eq!(agent.recv_from(&mut buffer).await.unwrap(), (7, relay.address));
        assert_eq!(relay.counts.get(), (12, 2));
    }
}
