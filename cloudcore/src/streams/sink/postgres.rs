//! Records in Postgres, or in what speaks its protocol: a row a record, for whoever asks in SQL.
//!
//! ```text
//! crossdock_records  a row a record; `doc` holds it as jsonb when it is JSON
//! crossdock_minutes  records and bytes by stream, minute and site
//! crossdock_states   what is durable of every stream        crossdock_gaps  what will never come
//! crossdock_meta     version of the tables, the last position that was given
//! ```
//!
//! Two connections. The writing one holds an advisory lock of its session: a second hub, or what is left
//! of one that was killed, keeps this one out until it is gone, so that states that were read stay true.
//! A connection that failed is dropped with its transaction and made anew; a commit that was not answered
//! is [`SinkError::Unknown`], and the new connection gets the lock only when its fate is decided. TLS is
//! used when the address says `sslmode=require`, and then the server's certificate and name are checked.
//!
//! Times are kept within the years 1 to 9999: a node whose clock is beyond is told as their end.

mod connect;
mod copy;
mod read;
mod schema;
#[cfg(test)]
pub(crate) mod server;
#[cfg(test)]
mod tests;
mod write;

use std::{fmt, future::Future, sync::Arc, time::Duration};

use jiff::Timestamp;
use proto::{
    env::{BoxFuture, Env, WallClock},
    name::Name,
};
use tokio::sync::Mutex;
use tokio_postgres::error::{Severity, SqlState};

use self::{connect::Link, write::Rows};
use super::{Commit, Count, CountQuery, GapRow, Page, Query, Sink, SinkError, StreamState};
use crate::streams::config::{PostgresAddress, StreamsConfig};

/// How long one exchange with the server may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Records in Postgres.
pub struct Postgres {
    address: PostgresAddress,
    settings: StreamsConfig,
    wall: Arc<dyn WallClock>,
    /// Holds the lock.
    writer: Mutex<Option<Link>>,
    reader: Mutex<Option<Arc<Link>>>,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// What the server or the driver said, for people.
fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => {
            let source = std::error::Error::source(error).map(|s| format!(": {s}")).unwrap_or_default();
            format!("{error}{source}")
        }
    }
}

/// Whether the server refused what it was asked, and undid it. Whatever ends the session too, even while
/// it commits, leaves that open.
fn is_plain(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db| db.parsed_severity() == Some(Severity::Error))
}

impl Postgres {
    /// At an address; connected when it is first needed.
    #[must_use]
    pub fn new(address: &PostgresAddress, settings: &StreamsConfig, env: &Env) -> Postgres {
        Postgres {
            address: address.clone(),
            settings: settings.clone(),
            wall: Arc::clone(&env.wall),
            writer: Mutex::default(),
            reader: Mutex::default(),
        }
    }

    fn unavailable(&self, attempt: &str, why: impl fmt::Display) -> SinkError {
        SinkError::Unavailable(format!("could not {attempt} {}: {why}", self.describe()))
    }

    fn failed(&self, attempt: &str, error: &tokio_postgres::Error) -> SinkError {
        self.unavailable(attempt, words(error))
    }

    /// Bounds an exchange in time.
    async fn patiently<T>(
        &self,
        attempt: &str,
        work: impl Future<Output = Result<T, SinkError>>,
    ) -> Result<T, SinkError> {
        match tokio::time::timeout(PATIENCE, work).await {
            Ok(result) => result,
            Err(_) => Err(self.unavailable(attempt, format!("no answer in {} s", PATIENCE.as_secs()))),
        }
    }

    /// A new writing connection, with the lock and the tables.
    async fn writing(&self) -> Result<Link, SinkError> {
        let link = connect::connect(&self.address, &self.settings, &self.wall).await;
        let link = link.map_err(|why| self.unavailable("connect to", why))?;
        schema::prepare(link, &self.describe()).await
    }

    async fn reading(&self) -> Result<Arc<Link>, SinkError> {
        let mut slot = self.reader.lock().await;
        if let Some(link) = slot.as_ref().filter(|link| !link.client.is_closed()) {
            return Ok(Arc::clone(link));
        }
        let link = connect::connect(&self.address, &self.settings, &self.wall).await;
        let link = Arc::new(link.map_err(|why| self.unavailable("connect to", why))?);
        *slot = Some(Arc::clone(&link));
        Ok(link)
    }

    async fn write(&self, rows: &Rows) -> Result<(), SinkError> {
        let mut slot = self.writer.lock().await;
        // Taken out: an error, or a caller that does not wait, drops it with its transaction.
        let mut link = match slot.take().filter(|link| !link.client.is_closed()) {
            Some(link) => link,
            None => self.patiently("connect to", self.writing()).await?,
        };
        let written = match tokio::time::timeout(PATIENCE, write::commit(&mut link, rows)).await {
            Ok(written) => written,
            Err(_) => return Err(SinkError::Unknown(format!("{} did not answer in time", self.describe()))),
        };
        match written {
            Ok(()) => {
                *slot = Some(link);
                Ok(())
            }
            Err(write::Failed { error, at_commit }) if at_commit && !is_plain(&error) => {
                Err(SinkError::Unknown(format!("{} went away during a commit: {}", self.describe(), words(&error))))
            }
            // Somebody has what our marks say nobody has: read them again.
            Err(failed) if failed.error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
                Err(SinkError::Unknown(format!("{} has some of it: {}", self.describe(), words(&failed.error))))
            }
            Err(failed) => Err(self.failed("write to", &failed.error)),
        }
    }
}

impl Sink for Postgres {
    fn describe(&self) -> String {
        connect::describe(&self.address)
    }

    fn states(&self) -> BoxFuture<'_, Result<Vec<StreamState>, SinkError>> {
        Box::pin(self.patiently("read the states in", async {
            let mut slot = self.writer.lock().await;
            let link = match slot.take().filter(|link| !link.client.is_closed()) {
                Some(link) => link,
                None => self.writing().await?,
            };
            let rows = link.client.query(schema::STATES, &[]).await;
            let states = read::states(&rows.map_err(|e| self.failed("read the states in", &e))?);
            let states = states.map_err(|what| SinkError::Damaged(format!("{what} in {}", self.describe())))?;
            *slot = Some(link);
            Ok(states)
        }))
    }

    fn commit(&self, commit: &Commit) -> BoxFuture<'_, Result<(), SinkError>> {
        let rows = Rows::new(commit);
        Box::pin(async move { self.write(&rows).await })
    }

    fn query(&self, query: &Query) -> BoxFuture<'_, Result<Page, SinkError>> {
        let query = query.clone();
        Box::pin(self.patiently("read", async move {
            let link = self.reading().await?;
            read::query(&link, &query).await.map_err(|e| self.read_failed(e))
        }))
    }

    fn counts(&self, query: &CountQuery) -> BoxFuture<'_, Result<Vec<Count>, SinkError>> {
        let query = query.clone();
        Box::pin(self.patiently("read", async move {
            let link = self.reading().await?;
            read::counts(&link, &query).await.map_err(|e| self.read_failed(e))
        }))
    }

    fn gaps(
        &self,
        node: Option<&Name>,
        stream: Option<&Name>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<GapRow>, SinkError>> {
        let (node, stream) = (node.cloned(), stream.cloned());
        Box::pin(self.patiently("read", async move {
            let link = self.reading().await?;
            read::gaps(&link, node.as_ref(), stream.as_ref(), limit).await.map_err(|e| self.read_failed(e))
        }))
    }

    fn prune(&self, before: Timestamp) -> BoxFuture<'_, Result<u64, SinkError>> {
        Box::pin(async move {
            let mut removed = 0;
            // A step at a time, so that none takes long.
            loop {
                let step = self.patiently("prune", async {
                    let link = self.reading().await?;
                    write::prune(&link, before).await.map_err(|e| self.read_failed(e.into()))
                });
                match step.await? {
                    0 => return Ok(removed),
                    some => removed += some,
                }
            }
        })
    }
}

impl Postgres {
    fn read_failed(&self, error: read::ReadError) -> SinkError {
        match error {
            read::ReadError::Postgres(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                self.unavailable("read", "its tables are not made yet")
            }
            read::ReadError::Postgres(error) => self.failed("read", &error),
            read::ReadError::Damaged(what) => SinkError::Damaged(format!("{what} in {}", self.describe())),
        }
    }
}
