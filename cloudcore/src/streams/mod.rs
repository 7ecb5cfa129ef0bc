//! Stream records at the hub: taken from nodes, counted once, kept in a sink, read by people.
//!
//! ```text
//! node's lane --Batch--> lane --bounded queue--> ingest --one transaction: records, gaps, marks--> sink
//!            <--Acks---      <--marks, once they are durable--                                     |
//!                                                       REST, CLI: query, tail, counts, gaps <-----+
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | `streams` in `hub.yaml` |
//! | [`sink`] | the small interface of what keeps records; SQLite and Postgres behind it |
//! | [`ingest`] | the one writer: marks in memory, group commit, acknowledgement after it |
//! | [`lane`] | one lane of one node's session |
//! | [`follow`] | `Event` objects of what agents tell on stream `events` |
//!
//! A sink that is down does not keep the hub from starting, nor nodes from being served otherwise.

pub mod config;
pub mod follow;
pub mod ingest;
pub mod lane;
pub mod sink;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use proto::{
    env::{BoxFuture, Env, WallClock},
    object::EventType,
    watch,
};

use self::{
    config::SinkChoice,
    ingest::{Health, Ingest, Limits},
    sink::{Sink, StreamState, postgres::Postgres, sqlite::Sqlite},
};
use crate::{config::HubConfig, events, hub::Hub};

/// When records are looked through for old ones: first, and from then on.
const PRUNE_AFTER: Duration = Duration::from_secs(60);
const PRUNE_EVERY: Duration = Duration::from_secs(3600);

/// The hub's streams.
pub struct Streams {
    sink: Arc<dyn Sink>,
    ingest: Ingest,
    /// Until the hub runs.
    writer: Mutex<Option<BoxFuture<'static, ()>>>,
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Streams({})", self.sink.describe())
    }
}

impl Streams {
    /// With the sink that `config` names. Nothing is opened or connected before the hub runs.
    #[must_use]
    pub fn open(config: &HubConfig, env: &Env) -> Streams {
        let sink: Arc<dyn Sink> = match &config.streams.sink {
            SinkChoice::Sqlite => Arc::new(Sqlite::new(config.streams_database(), env)),
            SinkChoice::Postgres(address) => Arc::new(Postgres::new(address, &config.streams, env)),
        };
        let (ingest, writer) = Ingest::start(Arc::clone(&sink), env, Limits::default());
        Streams { sink, ingest, writer: Mutex::new(Some(Box::pin(writer))) }
    }

    /// What keeps the records.
    #[must_use]
    pub fn sink(&self) -> &Arc<dyn Sink> {
        &self.sink
    }

    /// What takes them.
    #[must_use]
    pub fn ingest(&self) -> &Ingest {
        &self.ingest
    }

    /// Every stream of every node as memory has it, by node, stream and epoch. Nothing before the sink
    /// was reached once.
    #[must_use]
    pub fn live(&self) -> Vec<StreamState> {
        self.ingest.live()
    }
}

/// Takes records, tells how the sink is, and removes what is old, until `stop`.
pub(crate) async fn run(hub: Hub, mut stop: watch::Receiver<bool>) {
    let writer = hub.streams().writer.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(writer) = writer else { return };
    // Dropping the writer loses nothing: what was not acknowledged is offered again.
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => {}
        () = writer => {}
        () = tell(&hub) => {}
        () = follow::run(&hub) => {}
        () = retain(&*hub.streams().sink, &*hub.env().wall, hub.config().streams.retention.get()) => {}
    }
}

/// Makes it an event when the sink goes down, and when it is back.
async fn tell(hub: &Hub) {
    let mut health = hub.streams().ingest.health();
    let mut was_down = false;
    loop {
        let now = health.borrow_and_update().clone();
        let news = match &now {
            Health::Down(why) if !was_down => Some((EventType::Warning, "SinkDown", why.as_str())),
            Health::Up if was_down => Some((EventType::Normal, "SinkBack", "records are kept again")),
            _ => None,
        };
        if let Some((r#type, reason, message)) = news {
            was_down = reason == "SinkDown";
            events::record(hub.store(), hub.env(), "Sink", "streams", r#type, reason, message, "hub").await;
        }
        if health.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Removes what is older than the retention, now and then.
async fn retain(sink: &dyn Sink, wall: &dyn WallClock, keep: Duration) {
    tokio::time::sleep(PRUNE_AFTER).await;
    loop {
        if let Ok(before) = wall.now().checked_sub(keep) {
            match sink.prune(before).await {
                Ok(0) => {}
                Ok(records) => tracing::info!(records, %before, "removed old stream records"),
                Err(error) => tracing::warn!(%error, "old stream records could not be removed; trying again later"),
            }
        }
        tokio::time::sleep(PRUNE_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::{
        sink::{Commit, suite},
        *,
    };

    #[tokio::test(start_paused = true)]
    async fn what_is_older_than_the_retention_goes() {
        let folder = tempfile::tempdir().unwrap();
        let env = Env { blocking: proto::env::Blocking::Inline, ..Env::real().unwrap() };
        let sink = Sqlite::new(folder.path().join("streams.db"), &env);
        let now = env.wall.now();
        let (mut old, mut young) =
            (suite::batch("n1", "scans", 0, 60, &["old"]), suite::batch("n1", "scans", 1, 60, &["young"]));
        old.received = now - Duration::from_secs(7300);
        young.received = now - Duration::from_secs(7000);
        sink.commit(&Commit { batches: vec![old, young], ..Commit::default() }).await.unwrap();
        let wait = tokio::time::timeout(PRUNE_AFTER * 2, retain(&sink, &*env.wall, Duration::from_secs(7200)));
        wait.await.unwrap_err();
        let rows = sink.query(&suite::all("scans")).await.unwrap().rows;
        assert_eq!(rows.iter().map(|r| &r.bytes[..]).collect::<Vec<_>>(), [b"young"]);
    }
}
