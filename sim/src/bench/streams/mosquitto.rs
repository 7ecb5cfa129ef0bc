//! The first peer: Mosquitto with persistence, and a subscriber that writes to SQLite.
//!
//! Set up as well as it can be: written to disk every second (it cannot more often), no bound on what
//! waits, the subscriber's session kept, acknowledged after its transaction, by hand.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use cloudcore::stage::PATIENCE;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, Publish, QoS};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{peer::Peer, server::Server, store::Store};
use crate::produce::door::{Address, Door};

const TOPIC: &str = "line/1/scan";
/// Publishes on their way to the subscriber at the same time.
const IN_FLIGHT: usize = 2000;
/// Acknowledgements and a subscription that wait for the line.
const REQUESTS: usize = 4 * IN_FLIGHT;
const RECONNECT: Duration = Duration::from_millis(100);

/// Mosquitto, its subscriber, and the sink behind it.
#[derive(Debug)]
pub struct Mosquitto {
    server: Server,
    store: Store,
    _consumer: JoinSet<()>,
}

impl Peer for Mosquitto {
    type Target = Door;

    async fn open(folder: &Path) -> anyhow::Result<Mosquitto> {
        let data = folder.join("data");
        std::fs::create_dir_all(&data)?;
        let server = Server::start("mosquitto", "mosquitto", folder, |address| {
            format!(
                "listener {} {}\nallow_anonymous true\nuser root\npersistence true\npersistence_location {}/\n\
                 autosave_interval 1\nmax_queued_messages 0\nmax_inflight_messages {IN_FLIGHT}\nset_tcp_nodelay true\n",
                address.port(),
                address.ip(),
                data.display()
            )
        })
        .await?;
        let store = Store::open(folder).await?;
        let mut options = MqttOptions::new("sink", server.address.ip().to_string(), server.address.port());
        options.set_clean_session(false).set_manual_acks(true).set_max_packet_size(1 << 20, 1 << 20);
        let (client, mut events) = AsyncClient::new(options, REQUESTS);
        let mut network = rumqttc::NetworkOptions::new();
        network.set_tcp_nodelay(true);
        events.set_network_options(network);
        // The broker sends no more than IN_FLIGHT that are not acknowledged: that bounds this queue.
        let (publishes, arrived) = mpsc::unbounded_channel();
        let (ready, mut subscribed) = mpsc::channel(1);
        let mut consumer = JoinSet::new();
        consumer.spawn(receive(client.clone(), events, publishes, ready));
        consumer.spawn(keep(client, arrived, store.clone()));
        subscribed.recv().await.context("the subscriber of Mosquitto ended before it was subscribed")?;
        saved(&data.join("mosquitto.db")).await?;
        Ok(Mosquitto { server, store, _consumer: consumer })
    }

    fn target(&self) -> Door {
        let address = Address::Mqtt(self.server.address);
        // Each connection is another client; their IDs are given by the broker.
        Door { address, stream: "scans".to_owned(), topic: Some(TOPIC.to_owned()), client: String::new(), user: None }
    }

    fn store(&self) -> &Store {
        &self.store
    }

    fn server(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// Waits until the broker has saved what it knows once more: from here on the subscription survives a kill.
async fn saved(file: &Path) -> anyhow::Result<()> {
    let _ = std::fs::remove_file(file); // it may not be there yet
    let deadline = Instant::now() + PATIENCE;
    while !file.exists() {
        ensure!(Instant::now() < deadline, "Mosquitto has not saved {} within {PATIENCE:?}", file.display());
        sleep(RECONNECT).await;
    }
    Ok(())
}

/// A connection, and a publish that came over it. On another one it may come again, under another number.
type Arrived = (u64, Option<Publish>);

async fn receive(
    client: AsyncClient,
    mut events: EventLoop,
    publishes: mpsc::UnboundedSender<Arrived>,
    ready: mpsc::Sender<()>,
) {
    let mut connection = 0;
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                connection += 1;
                let _ = publishes.send((connection, None));
                let _ = client.try_subscribe(TOPIC, QoS::AtLeastOnce); // a queue that is full tries again below
            }
            Ok(Event::Incoming(Packet::SubAck(_))) => {
                let _ = ready.try_send(()); // somebody waits for the first only
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                if publishes.send((connection, Some(publish))).is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(_) => sleep(RECONNECT).await,
        }
    }
}

async fn keep(client: AsyncClient, mut arrived: mpsc::UnboundedReceiver<Arrived>, store: Store) {
    let (mut connection, mut group) = (0, Vec::new());
    while arrived.recv_many(&mut group, IN_FLIGHT).await > 0 {
        connection = group.last().map_or(connection, |(c, _)| *c);
        let publishes: Vec<(u64, Publish)> = group.drain(..).filter_map(|(c, p)| Some((c, p?))).collect();
        if publishes.is_empty() {
            continue;
        }
        // All of them, those of a connection that is gone too: the broker may have forgotten them.
        if let Err(error) = store.keep(publishes.iter().map(|(_, publish)| publish.payload.clone()).collect()).await {
            eprintln!("the subscriber's sink failed: {error:#}");
            return;
        }
        for (_, publish) in publishes.iter().filter(|(c, _)| *c == connection) {
            // Over a connection that was lost meanwhile it is dropped, and the publish comes again.
            if client.ack(publish).await.is_err() {
                return;
            }
        }
    }
}
