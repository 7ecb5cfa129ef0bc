//! The house bus: facts of the fleet for other systems of the house, as JSON in retained messages at an MQTT broker.
//!
//! ```text
//! Store --watch--> gather: Facts (topic -> payload) --changes--> publish, QoS 1, retained --> broker
//!                                        `-- compared with what the broker has, read when it connects
//! ```
//!
//! | topic, after `crossdock/v1/<fleet>/facts/` | what it says |
//! |---|---|
//! | `hub` | whether the hub is there: `online`, or `gone` by its Last Will, and then the rest may be old |
//! | `nodes/<name>` | phase, carrier, what runs |
//! | `rollouts/<name>` | phase, wave, how many nodes stand how |
//! | `alerts/<event>` | an event that is a warning; the last [`facts::MAX_ALERTS`] |
//!
//! A topic is cleared when what it is about is removed. `schema.json` beside this file describes the payloads.
//!
//! Off unless `hub.yaml` has `bus`, which is written like one of `brokers`. The state is the broker's: after a
//! restart of hub or broker only what differs is published. Nothing waits for the bus: what is to be said is one
//! payload a topic, the newest, however long the broker is away. A broker that queues fewer messages than there are
//! topics (`max_queued_messages` of Mosquitto: 1000) tells less than it has when the hub connects: that is published
//! again, and what was removed while the hub was away stays. So give it more, in a house with more nodes.

mod facts;

use std::{
    convert::Infallible,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use proto::{
    backoff::Backoff,
    broker::Broker,
    carrier::client::{Client, Trouble},
    object::{EventSpec, NodeSpec, RolloutSpec},
    watch,
};
use rumqttc::{AsyncClient, ClientError, Event, EventLoop, Incoming, LastWill, QoS, SubscribeReasonCode};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use self::facts::{Facts, Said};
use crate::{
    hub::Hub,
    link::{brokers::tell, list_and_watch},
    store::{StoreError, WatchEvent},
};

const BACKOFF_BASE: Duration = Duration::from_millis(500);
const BACKOFF_CAP: Duration = Duration::from_secs(30);
/// Changes within this are published together.
const GATHER: Duration = Duration::from_millis(200);
/// How long the broker may take to tell what it has.
const READ_BACK: Duration = Duration::from_secs(20);
/// Silence after which the broker takes the hub for gone, at one and a half times this.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Messages between here and the wire.
const REQUESTS: usize = 16;
/// Messages that the broker has not acknowledged.
const IN_FLIGHT: u16 = 64;
/// Largest message: ours are far smaller, others may write here too.
const MOST_BYTES: usize = 1 << 20;
/// Most that is read of what the broker has.
const MOST_READ_BYTES: usize = 64 << 20;

/// What is to be said now; nothing before the store was read.
struct Board {
    facts: Mutex<Option<Facts>>,
    changed: Notify,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Option<Facts>> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, with: impl FnOnce(&mut Facts)) {
        if let Some(facts) = &mut *self.lock() {
            with(facts);
        }
        self.changed.notify_one();
    }
}

/// Publishes until `stop`. The connection is dropped without a word then, so that the Last Will is said.
pub(crate) async fn run(hub: Hub, mut stop: watch::Receiver<bool>) {
    let Some(broker) = hub.config().bus.clone() else { return };
    let board = Board { facts: Mutex::new(None), changed: Notify::new() };
    // None is begun again.
    tokio::select! { biased;
        _ = stop.wait_for(|stop| *stop) => {}
        () = gather_all(&hub, &board) => {}
        () = keep(&hub, broker, &board) => {}
    }
}

async fn gather_all(hub: &Hub, board: &Board) {
    loop {
        if let Err(error) = gather(hub, board).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the bus cannot follow the store now");
            sleep(BACKOFF_CAP).await;
        }
    }
}

/// Returns when a watch fell behind: then everything is read anew.
async fn gather(hub: &Hub, board: &Board) -> Result<(), StoreError> {
    let mut facts = Facts::new(&hub.config().fleet);
    let (nodes, mut node_changes) = list_and_watch::<NodeSpec>(hub).await?;
    let (rollouts, mut rollout_changes) = list_and_watch::<RolloutSpec>(hub).await?;
    let (events, mut event_changes) = list_and_watch::<EventSpec>(hub).await?;
    nodes.items.iter().for_each(|node| facts.node(node, true));
    rollouts.items.iter().for_each(|rollout| facts.rollout(rollout, true));
    events.items.iter().for_each(|event| facts.event(event, true));
    *board.lock() = Some(facts);
    board.changed.notify_one();
    loop {
        // Cancel safe: a dropped `next` loses nothing.
        tokio::select! { biased;
            change = node_changes.next() => match change {
                Some(change) => board.change(|facts| facts.node(change.object(), is_there(&change))),
                None => return Ok(()),
            },
            change = rollout_changes.next() => match change {
                Some(change) => board.change(|facts| facts.rollout(change.object(), is_there(&change))),
                None => return Ok(()),
            },
            change = event_changes.next() => match change {
                Some(change) => board.change(|facts| facts.event(change.object(), is_there(&change))),
                None => return Ok(()),
            },
        }
    }
}

fn is_there<S: proto::object::Kind + PartialEq>(change: &WatchEvent<S>) -> bool {
    !matches!(change, WatchEvent::Deleted(_))
}

/// Keeps a connection with the broker, for ever.
async fn keep(hub: &Hub, broker: Broker, board: &Board) {
    let (env, fleet) = (hub.env(), &hub.config().fleet);
    let mut rng = env.seed.stream(&format!("bus at {}", env.wall.now()));
    let client = Client {
        broker,
        folder: hub.config().data_dir.clone(),
        // Always the same: the broker ends what it takes for a connection of the hub before this one, and says
        // that one's will first. By another name it would say it later, over what is so by then.
        id: format!("crossdock-bus-{fleet}"),
        clock: env.wall.clone(),
        blocking: env.blocking,
    };
    let (mut backoff, mut told) = (Backoff::new(BACKOFF_BASE, BACKOFF_CAP), None);
    loop {
        let began = Instant::now();
        let mut was_up = false;
        let trouble = session(hub, &client, board, &mut was_up).await;
        backoff.ended(began.elapsed());
        tell(&trouble, was_up, &mut told);
        sleep(backoff.failed(&mut rng)).await;
    }
}

/// One connection: reads what the broker has, then publishes what differs, as it comes.
async fn session(hub: &Hub, client: &Client, board: &Board, was_up: &mut bool) -> Trouble {
    let fleet = &hub.config().fleet;
    let mut options = match client.options(MOST_BYTES).await {
        Ok(options) => options,
        Err(trouble) => return trouble,
    };
    let will = LastWill::new(facts::hub_topic(fleet), facts::hub_gone(), QoS::AtLeastOnce, true);
    options.set_keep_alive(KEEP_ALIVE).set_inflight(IN_FLIGHT).set_last_will(will);
    let (requests, mut events) = AsyncClient::new(options, REQUESTS);
    events.network_options.set_tcp_nodelay(true);
    let filter = facts::prefix(fleet) + "#";
    let online = facts::hub_online(hub.env().wall.now());
    let read = read_back(hub, client, &requests, &mut events, &filter, &online);
    let there = match timeout(READ_BACK, read).await {
        Ok(Ok(there)) => there,
        Ok(Err(trouble)) => return trouble,
        Err(_) => return forbidden(client, &filter),
    };
    *was_up = true;
    let drive = async {
        loop {
            if let Err(error) = events.poll().await {
                return client.trouble(&error, true);
            }
        }
    };
    // Neither is begun again: whichever ends, the connection does.
    tokio::select! { biased;
        trouble = drive => trouble,
        Err(error) = publish(&requests, &filter, board, there) => client.lost(&error.to_string()),
    }
}

/// Publishes what differs from what is there, and what changes from then on.
async fn publish(
    requests: &AsyncClient,
    filter: &str,
    board: &Board,
    mut there: Said,
) -> Result<Infallible, ClientError> {
    requests.unsubscribe(filter).await?;
    loop {
        let changes = board.lock().as_ref().map(|facts| facts.changes(&there)).unwrap_or_default();
        for (topic, payload) in changes {
            requests.publish(&topic, QoS::AtLeastOnce, true, payload.clone()).await?;
            if payload.is_empty() {
                there.remove(&topic);
            } else {
                there.insert(topic, payload);
            }
        }
        board.changed.notified().await;
        sleep(GATHER).await;
    }
}

/// What the broker has under the filter. The hub's own state, which is published then, comes back as the last.
async fn read_back(
    hub: &Hub,
    client: &Client,
    requests: &AsyncClient,
    events: &mut EventLoop,
    filter: &str,
    online: &[u8],
) -> Result<Said, Trouble> {
    let hub_topic = facts::hub_topic(&hub.config().fleet);
    let full = |error: ClientError| client.lost(&error.to_string());
    let (mut there, mut bytes) = (Said::new(), 0);
    loop {
        match events.poll().await.map_err(|error| client.trouble(&error, false))? {
            Event::Incoming(Incoming::ConnAck(_)) => {
                requests.try_subscribe(filter, QoS::AtLeastOnce).map_err(full)?;
            }
            Event::Incoming(Incoming::SubAck(suback)) => {
                if suback.return_codes.contains(&SubscribeReasonCode::Failure) {
                    return Err(forbidden(client, filter));
                }
                requests.try_publish(&hub_topic, QoS::AtLeastOnce, true, online).map_err(full)?;
            }
            Event::Incoming(Incoming::Publish(publish)) => {
                if publish.topic == hub_topic && publish.payload == online {
                    return Ok(there);
                }
                bytes += publish.topic.len() + publish.payload.len();
                if bytes > MOST_READ_BYTES {
                    let message = format!(
                        "broker {} has more than {MOST_READ_BYTES} bytes at {filter}, where nobody but this hub should \
                         write: clear what is not its own there",
                        client.broker.url
                    );
                    return Err(Trouble::new("Crowded", message));
                }
                there.insert(publish.topic.clone(), publish.payload.to_vec());
            }
            _ => {}
        }
    }
}

fn forbidden(client: &Client, filter: &str) -> Trouble {
    let url = &client.broker.url;
    let message = format!(
        "broker {url} does not give back what the hub writes to {filter}: allow the hub's user to read and to write \
         there (images/mosquitto has the rules)"
    );
    Trouble::new("Forbidden", message)
}
