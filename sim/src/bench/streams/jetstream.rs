//! The second peer: NATS JetStream with file storage, and a consumer that writes to SQLite.
//!
//! A pull consumer that asks for the next group while the last is written, and acknowledges after the
//! transaction. The server does not sync each message to disk: kill -9 is survived, a power cut is not.

use std::{
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    load::{Link, Target},
    nats::Nats,
    peer::Peer,
    server::Server,
    store::Store,
};
use crate::produce::door::{ANSWER_TIMEOUT, Failed};

const SUBJECT: &str = "scans";
const NEXT: &str = "$JS.API.CONSUMER.MSG.NEXT.SCANS.sink";
/// Messages that are asked for at once; twice as many are on their way.
const PULL: usize = 1000;
const ACK_WAIT: Duration = Duration::from_secs(5);
const RECONNECT: Duration = Duration::from_millis(100);

/// JetStream, its consumer, and the sink behind it.
#[derive(Debug)]
pub struct JetStream {
    server: Server,
    store: Store,
    _consumer: JoinSet<()>,
}

impl Peer for JetStream {
    type Target = Publisher;

    async fn open(folder: &Path) -> anyhow::Result<JetStream> {
        let server = Server::start("nats-server", "nats-server", folder, |address| {
            let data = folder.join("data");
            format!("listen: \"{address}\"\njetstream {{ store_dir: {data:?}, max_file_store: 100G }}\n")
        })
        .await?;
        let mut nats = Nats::connect(server.address).await?;
        nats.subscribe("_INBOX.setup", 1).await?;
        let stream = json!({ "name": "SCANS", "subjects": [SUBJECT], "storage": "file", "retention": "limits" });
        ask(&mut nats, "$JS.API.STREAM.CREATE.SCANS", &stream).await.context("make the stream")?;
        let consumer = json!({ "stream_name": "SCANS", "config": {
            "durable_name": "sink", "ack_policy": "explicit", "deliver_policy": "all",
            "ack_wait": ACK_WAIT.as_nanos() as u64, "max_ack_pending": 4 * PULL,
        } });
        ask(&mut nats, "$JS.API.CONSUMER.DURABLE.CREATE.SCANS.sink", &consumer).await.context("make the consumer")?;
        let store = Store::open(folder).await?;
        let mut consumer = JoinSet::new();
        consumer.spawn(consume(server.address, store.clone()));
        Ok(JetStream { server, store, _consumer: consumer })
    }

    fn target(&self) -> Publisher {
        Publisher(self.server.address, AtomicU64::new(0))
    }

    fn store(&self) -> &Store {
        &self.store
    }

    fn server(&mut self) -> &mut Server {
        &mut self.server
    }
}

async fn ask(nats: &mut Nats, subject: &str, question: &Value) -> anyhow::Result<()> {
    nats.publish(subject, "_INBOX.setup", question.to_string().as_bytes()).await?;
    nats.flush().await?;
    let answer = timeout(ANSWER_TIMEOUT, nats.next()).await.context("JetStream does not answer")??;
    let answer: Value = serde_json::from_slice(&answer.payload)
        .with_context(|| format!("JetStream answered {} {:?}", answer.status, answer.payload))?;
    match answer.get("error") {
        Some(error) => bail!("JetStream refused: {error}"),
        None => Ok(()),
    }
}

/// Where producers publish, and how many have connected: everybody hears what is sent to an inbox, so
/// each connection has one of its own.
#[derive(Debug)]
pub struct Publisher(SocketAddr, AtomicU64);

/// A producer's connection.
#[derive(Debug)]
pub struct Publishing {
    nats: Nats,
    inbox: String,
    next: u64,
}

impl Target for Publisher {
    type Link = Publishing;
    async fn connect(&self) -> Result<Publishing, Failed> {
        let inbox = format!("_INBOX.ack-{}", self.1.fetch_add(1, Ordering::Relaxed));
        let connect = async {
            let mut nats = Nats::connect(self.0).await?;
            nats.subscribe(&format!("{inbox}.*"), 1).await?;
            Ok::<_, std::io::Error>(nats)
        };
        let nats = connect.await.map_err(|e| Failed::Unreachable(e.to_string()))?;
        Ok(Publishing { nats, inbox, next: 0 })
    }
}

impl Link for Publishing {
    /// Publishes all of them and waits for all acknowledgements, which come in order.
    async fn offer(&mut self, records: &[Bytes]) -> Result<(), Failed> {
        let mut acknowledged = 0;
        let first = self.next;
        self.next += records.len() as u64;
        let work = async {
            for (number, record) in (first..).zip(records) {
                self.nats.publish(SUBJECT, &format!("{}.{number}", self.inbox), record).await?;
            }
            self.nats.flush().await?;
            while acknowledged < records.len() {
                let answer = self.nats.next().await?;
                if answer.subject != format!("{}.{}", self.inbox, first + acknowledged as u64) {
                    return Err(std::io::Error::other(format!("an acknowledgement out of order: {}", answer.subject)));
                }
                if !answer.status.is_empty() || !answer.payload.windows(5).any(|w| w == b"\"seq\"") {
                    let text = String::from_utf8_lossy(&answer.payload);
                    return Err(std::io::Error::other(format!("not acknowledged: {} {text}", answer.status)));
                }
                acknowledged += 1;
            }
            Ok(())
        };
        let why = match timeout(ANSWER_TIMEOUT, work).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {ANSWER_TIMEOUT:?}"),
        };
        Err(Failed::NoAnswer { acknowledged, why })
    }
}

async fn consume(address: SocketAddr, store: Store) {
    loop {
        // The server was killed, or is starting and has not its stream yet: come back.
        let Err(error) = pull(address, &store).await;
        tracing::debug!("the consumer of JetStream begins again: {error:#}");
        sleep(RECONNECT).await;
    }
}

/// Pulls for as long as the connection lives.
async fn pull(address: SocketAddr, store: &Store) -> anyhow::Result<std::convert::Infallible> {
    let mut nats = Nats::connect(address).await?;
    nats.subscribe("_INBOX.pull", 1).await?;
    // A pull that finds nothing ends after a second with a status; then another is due.
    let question = json!({ "batch": PULL, "expires": 1_000_000_000_u64 }).to_string();
    let (mut group, mut asked): (Vec<(String, Bytes)>, usize) = (vec![], 0);
    loop {
        if asked < PULL {
            nats.publish(NEXT, "_INBOX.pull", question.as_bytes()).await?;
            nats.flush().await?;
            asked += PULL;
        }
        // Whether more of a group comes is seen by waiting a little, outside of the reading itself.
        let ended = match nats.next_within(if group.is_empty() { ACK_WAIT } else { Duration::from_millis(5) }).await? {
            Some(message) if message.status.is_empty() => {
                asked = asked.saturating_sub(1);
                group.push((message.reply, message.payload));
                false
            }
            Some(_) => {
                asked = 0;
                true
            }
            None if group.is_empty() => bail!("the server is silent"),
            None => true,
        };
        if group.len() >= PULL || ended && !group.is_empty() {
            let (replies, records): (Vec<_>, Vec<_>) = group.drain(..).unzip();
            store.keep(records).await?;
            for reply in replies {
                nats.publish(&reply, "", b"+ACK").await?;
            }
            nats.flush().await?;
        }
    }
}
