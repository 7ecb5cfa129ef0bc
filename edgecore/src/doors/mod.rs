//! How records come in: the doors of the agent. A record is acknowledged when it is on disk, never before.
//!
//! ```text
//! HTTP over TCP, Unix socket ---+--> Metrics: what workloads tell of themselves, in memory alone
//! MQTT 3.1.1 and 5 over TCP ----+--> Desk --append--> Intake (the outbox) --on disk--> answer
//! subscriber at a broker -------+
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`http`] | the HTTP door: routes, answers |
//! | `body` | bodies within bounds of size, time and memory |
//! | [`lines`] | what of a body is a record |
//! | [`mqtt`] | the MQTT door, a server that only takes |
//! | [`broker`] | the subscriber at a broker of the house |
//! | [`topic`] | topic filters |
//! | `access` | user and password |
//! | `bind` | sockets, and the ports that come back after a restart |
//! | [`intake`] | the outbox behind the doors |
//! | `harness` | a conversation as bytes, for the fuzzers |
//!
//! A door that cannot be opened is a problem in words ([`Endpoints::problems`]) and is tried again;
//! the agent goes on without it. Everything here is bounded: connections, bytes of bodies, packets, time.

mod access;
mod bind;
mod body;
pub mod broker;
#[doc(hidden)]
pub mod harness;
pub mod http;
pub mod intake;
pub mod lines;
pub mod mqtt;
pub mod topic;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use proto::{
    env::{BoxFuture, Env},
    name::Name,
    stream::{Class, StreamKey, message::Lag, ranges::Range},
    watch,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Semaphore,
    task::{JoinError, JoinSet},
    time::{Instant, sleep},
};

use self::bind::{Binder, Conn, Listener, Way};
use crate::{
    metrics::Metrics,
    settings::{Streams, TopicSetting},
};

/// Between two attempts to open a door.
const RETRY: Duration = Duration::from_secs(3);
/// Between two complaints in the log.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// What stands behind the doors.
pub trait Intake: Send + Sync + fmt::Debug {
    /// Takes records, all or none of them; answers when they are on disk.
    fn append<'a>(&'a self, stream: &'a Name, records: Vec<Bytes>) -> BoxFuture<'a, Result<Taken, Refusal>>;
    /// The streams that there are.
    fn streams(&self) -> &[(Name, Class)];
    /// How far each is behind.
    fn lag(&self) -> Vec<Lag>;
}

/// Records are on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The stream and its epoch.
    pub key: StreamKey,
    /// The sequences that were given.
    pub range: Range,
}

/// Records were not taken, none of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What a door makes its answer of.
    pub reason: Reason,
    /// For people: what is wrong and how to mend it.
    pub message: String,
}

/// Why records were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There is no such stream.
    UnknownStream,
    /// Over the bounds of a record or of one append.
    TooLarge,
    /// No space: again when the hub has taken some.
    Full,
    /// Too much at once: again in a moment.
    Busy,
    /// The disk failed.
    Failed,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Refusal {
        Refusal { reason, message: message.into() }
    }
}

/// Where the doors are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoints {
    /// Address of the HTTP door.
    pub http: Option<SocketAddr>,
    /// The Unix socket.
    pub socket: Option<PathBuf>,
    /// Address of the MQTT door.
    pub mqtt: Option<SocketAddr>,
    /// What is not as it was wanted, and how to mend it.
    pub problems: Vec<String>,
}

/// What went through the doors since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Records that were taken.
    pub taken: AtomicU64,
    /// Requests and messages that were refused, and told so.
    pub refused: AtomicU64,
    /// Messages without a promise (QoS 0) that were dropped, and messages of a broker that can never be taken.
    pub dropped: AtomicU64,
}

/// Where the doors stand and what is wrong with them.
#[derive(Debug)]
struct Board {
    endpoints: watch::Sender<Endpoints>,
    problems: Mutex<BTreeMap<String, String>>,
}

impl Board {
    /// What is wrong with a part, or that nothing is.
    fn problem(&self, part: &str, problem: Option<String>) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        if problems.get(part) == problem.as_ref() {
            return;
        }
        match problem {
            Some(problem) => {
                tracing::warn!(part, "{problem}");
                problems.insert(part.to_owned(), problem);
            }
            None => {
                tracing::info!(part, "is well again");
                problems.remove(part);
            }
        }
        let list = problems.iter().map(|(part, problem)| format!("{part}: {problem}")).collect();
        self.endpoints.send_modify(|e| e.problems = list);
    }
}

/// What all doors share.
#[derive(Debug)]
struct Desk {
    intake: Arc<dyn Intake>,
    /// What workloads tell of themselves.
    metrics: Metrics,
    topics: Vec<TopicSetting>,
    board: Board,
    counts: Arc<Counts>,
    /// KiB of request bodies in memory.
    bodies: Arc<Semaphore>,
    sessions: mqtt::Sessions,
    complained: Mutex<Option<Instant>>,
    env: Env,
}

impl Desk {
    fn new(settings: &Streams, intake: Arc<dyn Intake>, metrics: Metrics, env: Env) -> Desk {
        Desk {
            intake,
            metrics,
            topics: settings.topics.clone(),
            board: Board { endpoints: watch::channel(Endpoints::default()).0, problems: Mutex::default() },
            counts: Arc::default(),
            bodies: Arc::new(Semaphore::new(body::BUDGET_KIB)),
            sessions: mqtt::Sessions::default(),
            complained: Mutex::default(),
            env,
        }
    }

    async fn append(&self, stream: &Name, records: Vec<Bytes>) -> Result<Taken, Refusal> {
        let count = records.len() as u64;
        let taken = self.intake.append(stream, records).await?;
        self.counts.taken.fetch_add(count, Ordering::Relaxed);
        Ok(taken)
    }

    /// The same; an intake that is busy (or full, where `full_too`) is asked again for as long as `patience`.
    async fn append_patiently(
        &self,
        stream: &Name,
        records: Vec<Bytes>,
        patience: Duration,
        full_too: bool,
    ) -> Result<Taken, Refusal> {
        let until = Instant::now() + patience;
        let mut wait = Duration::from_millis(10);
        loop {
            match self.append(stream, records.clone()).await {
                Err(refusal)
                    if Instant::now() + wait < until
                        && (refusal.reason == Reason::Busy || full_too && refusal.reason == Reason::Full) =>
                {
                    sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(1));
                }
                result => return result,
            }
        }
    }

    /// A line in the log, not more often than every few seconds whatever producers do.
    fn complain(&self, text: fmt::Arguments<'_>) {
        let mut last = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            *last = Some(Instant::now());
            tracing::warn!("{text}");
        } else {
            tracing::debug!("{text}");
        }
    }
}

/// The doors, opened as far as they could be.
#[derive(Debug)]
pub struct Doors {
    desk: Arc<Desk>,
    binder: Arc<Binder>,
    bound: Vec<(Way, Option<Listener>)>,
    brokers: Vec<broker::Broker>,
}

/// Opens what can be opened. Nothing here is fatal; [`Doors::run`] goes on trying.
pub async fn open(
    settings: &Streams,
    data_dir: &Path,
    node: &Name,
    (intake, metrics): (Arc<dyn Intake>, Metrics),
    env: Env,
) -> Doors {
    let desk = Arc::new(Desk::new(settings, intake, metrics, env.clone()));
    let binder = Arc::new(Binder::new(settings, data_dir, env));
    let mut bound = vec![];
    for way in binder.ways() {
        let listener = try_open(&desk, &binder, way).await;
        bound.push((way, listener));
    }
    let brokers = settings.brokers.iter().map(|b| broker::Broker::new(b, data_dir, node, desk.clone())).collect();
    Doors { desk, binder, bound, brokers }
}

async fn try_open(desk: &Desk, binder: &Arc<Binder>, way: Way) -> Option<Listener> {
    match binder.bind(way).await {
        Ok(listener) => {
            desk.board.endpoints.send_modify(|e| match &listener {
                Listener::Tcp { address, .. } if way == Way::Mqtt => e.mqtt = Some(*address),
                Listener::Tcp { address, .. } => e.http = Some(*address),
                Listener::Unix { path, .. } => e.socket = Some(path.clone()),
            });
            desk.board.problem(way.name(), None);
            Some(listener)
        }
        Err(problem) => {
            desk.board.problem(way.name(), Some(problem));
            None
        }
    }
}

impl Doors {
    /// Where they are, as it changes.
    #[must_use]
    pub fn endpoints(&self) -> watch::Receiver<Endpoints> {
        self.desk.board.endpoints.subscribe()
    }

    /// What went through them.
    #[must_use]
    pub fn counts(&self) -> Arc<Counts> {
        self.desk.counts.clone()
    }

    /// Serves until it is dropped.
    pub async fn run(self) {
        let mut tasks = JoinSet::new();
        for (way, listener) in self.bound {
            tasks.spawn(keep(self.desk.clone(), self.binder.clone(), way, listener));
        }
        for broker in self.brokers {
            tasks.spawn(broker.run());
        }
        while let Some(ended) = tasks.join_next().await {
            if let Some(panic) = ended.err().and_then(|e| e.try_into_panic().ok()) {
                std::panic::resume_unwind(panic); // whoever runs the doors learns of it
            }
        }
        std::future::pending().await // every door is "off"
    }
}

/// One door, for ever.
async fn keep(desk: Arc<Desk>, binder: Arc<Binder>, way: Way, mut listener: Option<Listener>) {
    let listener = loop {
        if let Some(listener) = listener.take() {
            break listener;
        }
        sleep(RETRY).await;
        listener = try_open(&desk, &binder, way).await;
    };
    let access = listener.access();
    match way {
        Way::Mqtt => serve(listener, mqtt::MAX_CONNECTIONS, |c| mqtt::serve(c, desk.clone(), access.clone())).await,
        _ => serve(listener, http::MAX_CONNECTIONS, |c| http::serve(c, desk.clone(), access.clone())).await,
    }
}

/// Serves whoever comes, so many at once; the others wait in the kernel's queue.
async fn serve<F>(listener: Listener, at_most: usize, talk: impl Fn(Conn) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut talks = JoinSet::new();
    loop {
        // No arm loses anything: accepting and joining are cancel safe.
        tokio::select! {
            Some(ended) = talks.join_next() => note(ended),
            accepted = listener.accept(), if talks.len() < at_most => match accepted {
                Ok(conn) => {
                    talks.spawn(talk(conn));
                }
                // Out of descriptors, most likely: no reason to spin.
                Err(_) => sleep(Duration::from_secs(1)).await,
            },
        }
    }
}

fn note(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection of a producer broke down; the others go on");
    }
}
