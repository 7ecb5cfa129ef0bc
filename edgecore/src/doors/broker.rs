//! The subscriber: takes what producers publish at a broker that the box already has.
//!
//! The session is kept by the broker (`clean_session` off, QoS 1), and a message is acknowledged when it
//! is on disk here. So what the broker acknowledged to its producers and still has arrives; what it sends
//! again, because an acknowledgement did not reach it or it lost one in a crash, is taken again: MQTT
//! has no name for a message that would tell.
//!
//! What can never be taken (over the bound of a record, a topic that no filter of the settings means any
//! more) is acknowledged, dropped and counted: it would block the session for ever. Retained messages
//! are acknowledged and left out: a broker repeats them at every subscription.
//!
//! Every connection has a client of its own, so nothing of an old one can be taken for the new one's.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use proto::{backoff::Backoff, name::Name, stream::MAX_RECORD_BYTES};
use rumqttc::{
    AsyncClient, Event, EventLoop, Incoming, MqttOptions, Publish, QoS, SubscribeFilter, SubscribeReasonCode,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep, timeout},
};

use super::{Desk, Reason, Refusal, topic::stream_of};
use crate::settings::BrokerSetting;

const BACKOFF_BASE: Duration = Duration::from_millis(500);
const BACKOFF_CAP: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Seconds that connecting may take.
const CONNECT_SECS: u64 = 10;
/// A larger packet cannot be left out, only be refused with the connection.
const MAX_PACKET_BYTES: usize = 16 << 20;
/// Messages in memory that are not on disk yet.
const QUEUE_MESSAGES: usize = 1024;
const QUEUE_KIB: usize = 8 << 10;
/// Messages and bytes of one append.
const APPEND_MESSAGES: usize = 512;
const APPEND_BYTES: usize = 256 << 10;
/// Requests to the event loop: an acknowledgement of everything in memory fits, so none ever waits.
const REQUESTS: usize = 2 * QUEUE_MESSAGES + APPEND_MESSAGES;
/// With the queue full for this long the connection is given up: it could not answer pings either.
const STUCK: Duration = Duration::from_secs(20);
/// How long a full outbox is asked before it is told as a problem, and between two such attempts.
const PATIENCE: Duration = Duration::from_secs(5);

/// A broker, and what is taken from it.
#[derive(Debug)]
pub(super) struct Broker {
    setting: BrokerSetting,
    client_id: String,
    folder: PathBuf,
    part: String,
    desk: Arc<Desk>,
}

/// A message and its share of the queue.
type Queued = (Publish, OwnedSemaphorePermit);

impl Broker {
    pub(super) fn new(setting: &BrokerSetting, data_dir: &Path, node: &Name, desk: Arc<Desk>) -> Broker {
        Broker {
            client_id: setting.client_id.clone().unwrap_or_else(|| format!("crossdock-{node}")),
            folder: data_dir.to_owned(),
            part: format!("broker {}:{}", setting.broker.url.host, setting.broker.url.port),
            setting: setting.clone(),
            desk,
        }
    }

    /// Takes for ever; connects again whenever a connection ends.
    pub(super) async fn run(self) {
        let mut rng = self.desk.env.seed.stream(&format!("doors: {}", self.part));
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_CAP);
        loop {
            let began = Instant::now();
            let problem = match self.options().await {
                Ok(options) => self.connection(options).await,
                Err(problem) => problem,
            };
            self.desk.board.problem(&self.part, Some(problem));
            backoff.ended(began.elapsed());
            sleep(backoff.failed(&mut rng)).await;
        }
    }

    /// Files are read for every connection: what was mended is found.
    async fn options(&self) -> Result<MqttOptions, String> {
        let (broker, id, folder) = (self.setting.broker.clone(), self.client_id.clone(), self.folder.clone());
        let clock = self.desk.env.wall.clone();
        let mut options = self.desk.env.blocking.run(move || broker.options(&id, &folder, clock)).await?;
        options
            .set_clean_session(false)
            .set_manual_acks(true)
            .set_keep_alive(KEEP_ALIVE)
            .set_inflight(1)
            .set_max_packet_size(MAX_PACKET_BYTES, 64 << 10);
        Ok(options)
    }

    /// One connection, until it ends; says why it did.
    async fn connection(&self, options: MqttOptions) -> String {
        let (client, mut events) = AsyncClient::new(options, REQUESTS);
        events.network_options.set_tcp_nodelay(true);
        events.network_options.set_connection_timeout(CONNECT_SECS);
        let (queue, queued) = mpsc::channel(QUEUE_MESSAGES);
        // Whichever ends, all of the connection ends: what is not acknowledged comes again.
        tokio::select! {
            problem = self.receive(&client, &mut events, queue) => problem,
            problem = self.take(&client, queued) => problem,
        }
    }

    async fn receive(&self, client: &AsyncClient, events: &mut EventLoop, queue: mpsc::Sender<Queued>) -> String {
        let share = Arc::new(Semaphore::new(QUEUE_KIB));
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                    let filters = self
                        .setting
                        .topics
                        .iter()
                        .map(|t| SubscribeFilter { path: t.filter.as_str().to_owned(), qos: QoS::AtLeastOnce });
                    if client.try_subscribe_many(filters).is_err() {
                        return "could not subscribe: the request did not fit".into();
                    }
                }
                Ok(Event::Incoming(Incoming::SubAck(suback))) => {
                    let refused = self.refused(&suback.return_codes);
                    self.desk.board.problem(&self.part, refused);
                }
                Ok(Event::Incoming(Incoming::Publish(publish))) => {
                    let kib = publish.payload.len().div_ceil(1024).clamp(1, QUEUE_KIB);
                    let kib = u32::try_from(kib).unwrap_or(u32::MAX);
                    let room = async {
                        let share = share.clone().acquire_many_owned(kib).await.ok()?;
                        queue.send((publish, share)).await.ok()
                    };
                    // Not polling stops the reading, and the broker with it; the appends go on and make room.
                    if timeout(STUCK, room).await.is_err() {
                        return "the outbox takes nothing: the broker keeps what it has until it does".into();
                    }
                }
                Ok(_) => {}
                Err(error) => return format!("{error}; is it up, and are its url, user and ca in agent.toml right?"),
            }
        }
    }

    fn refused(&self, codes: &[SubscribeReasonCode]) -> Option<String> {
        let refused: Vec<_> = self
            .setting
            .topics
            .iter()
            .zip(codes)
            .filter(|(_, code)| **code == SubscribeReasonCode::Failure)
            .map(|(topic, _)| topic.filter.as_str())
            .collect();
        let list = refused.join(", ");
        (!refused.is_empty()).then(|| format!("it refuses {list}: allow this client to read there"))
    }

    /// Appends what is queued, as much as is there at once, and acknowledges it.
    async fn take(&self, client: &AsyncClient, mut queued: mpsc::Receiver<Queued>) -> String {
        while let Some(first) = queued.recv().await {
            let mut bytes = first.0.payload.len();
            let mut batch = vec![first];
            while batch.len() < APPEND_MESSAGES && bytes < APPEND_BYTES {
                let Ok(next) = queued.try_recv() else { break };
                bytes += next.0.payload.len();
                batch.push(next);
            }
            if let Err(refusal) = self.append(&batch).await {
                return format!("the outbox failed: {refusal}");
            }
            for (publish, _) in &batch {
                if client.try_ack(publish).is_err() {
                    return "could not acknowledge: the request did not fit".into();
                }
            }
        }
        "the connection ended".into()
    }

    async fn append(&self, batch: &[Queued]) -> Result<(), Refusal> {
        let mut groups: Vec<(&Name, Vec<bytes::Bytes>)> = vec![];
        for (publish, _) in batch {
            if publish.retain {
                continue;
            }
            let stream = stream_of(&self.setting.topics, &publish.topic);
            let Some(stream) = stream.filter(|_| publish.payload.len() <= MAX_RECORD_BYTES) else {
                self.desk.counts.dropped.fetch_add(1, Ordering::Relaxed);
                self.desk.complain(format_args!(
                    "{}: a message of {} bytes on {} was dropped: it is over the bound of a record \
                     ({MAX_RECORD_BYTES}), or no filter of this broker in agent.toml means its topic",
                    self.part,
                    publish.payload.len(),
                    publish.topic
                ));
                continue;
            };
            match groups.iter_mut().find(|(name, _)| *name == stream) {
                Some((_, records)) => records.push(publish.payload.clone()),
                None => groups.push((stream, vec![publish.payload.clone()])),
            }
        }
        for (stream, records) in groups {
            self.append_until_taken(stream, records).await?;
        }
        Ok(())
    }

    /// A full or busy outbox is asked until it takes them: the broker waits for its acknowledgement.
    async fn append_until_taken(&self, stream: &Name, records: Vec<bytes::Bytes>) -> Result<(), Refusal> {
        let mut held = false;
        loop {
            match self.desk.append_patiently(stream, records.clone(), PATIENCE, true).await {
                Ok(_) => break,
                Err(refusal) if matches!(refusal.reason, Reason::Busy | Reason::Full) => {
                    held = true;
                    self.desk.board.problem(&self.part, Some(format!("held back: {refusal}")));
                }
                Err(refusal) => return Err(refusal),
            }
        }
        if held {
            self.desk.board.problem(&self.part, None);
        }
        Ok(())
    }
}
