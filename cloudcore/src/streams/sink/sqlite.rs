//! The sink within: one SQLite file, batches kept as they were sealed, a row a batch.
//!
//! ```text
//! batches  id (order of arrival), whose, first..count, time span, the sealed batch
//! minutes  records and bytes by stream, minute and site, and which batches hold them
//! states   what is durable of every stream        gaps  what will never come
//! names    nodes, sites and streams as numbers
//! ```
//!
//! One connection writes, one reads; each is opened when it is first needed and anew after an error, so
//! that a disk that comes back is found by itself. All work goes through [`Blocking`]: in the simulator
//! it is done on the spot. Two hubs on one file are kept apart by the lock of the data folder
//! (`crate::serve`).

mod read;
mod schema;
#[cfg(test)]
mod tests;
mod write;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use proto::{
    env::{Blocking, BoxFuture, Env},
    name::Name,
};
use rusqlite::{Connection, ErrorCode};
use tokio::sync::Mutex;

use super::{Commit, Count, CountQuery, GapRow, Page, Query, Sink, SinkError, StreamState};
use write::{Prepared, Writer};

/// Records in an SQLite file.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    blocking: Blocking,
    writer: Arc<Mutex<Option<Writer>>>,
    reader: Arc<Mutex<Option<Connection>>>,
}

/// What SQLite said, as a sink's error.
fn failed(path: &Path, attempt: &str, error: &rusqlite::Error) -> SinkError {
    let text = format!("could not {attempt} {}: {error}", path.display());
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => SinkError::Damaged(format!(
            "{text}; restore it from a backup, or move it away: the nodes then send again what they still hold"
        )),
        // Somebody has what our marks say nobody has: they are to be read again.
        Some(ErrorCode::ConstraintViolation) => SinkError::Unknown(text),
        Some(ErrorCode::DiskFull) => SinkError::Unavailable(format!("{text}; make space on the disk")),
        _ => SinkError::Unavailable(text),
    }
}

impl Sqlite {
    /// The file at `path`; it is made when it is first needed.
    #[must_use]
    pub fn new(path: PathBuf, env: &Env) -> Sqlite {
        Sqlite { path, blocking: env.blocking, writer: Arc::default(), reader: Arc::default() }
    }

    /// Works with the writing connection. The work is done to its end even when the future is dropped.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path, &mut Writer) -> Result<T, SinkError> + Send + 'static,
    ) -> Result<T, SinkError> {
        let mut slot = Arc::clone(&self.writer).lock_owned().await;
        let (path, blocking) = (self.path.clone(), self.blocking);
        self.blocking
            .run(move || {
                let mut writer = match slot.take() {
                    Some(writer) => writer,
                    None => Writer::open(&path, blocking)?,
                };
                let result = work(&path, &mut writer);
                if result.is_ok() {
                    *slot = Some(writer); // after an error it is opened anew
                }
                result
            })
            .await
    }

    /// Works with the reading connection, in one transaction: what it sees is of one moment.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, read::ReadError> + Send + 'static,
    ) -> Result<T, SinkError> {
        let mut slot = Arc::clone(&self.reader).lock_owned().await;
        if slot.is_none() {
            self.write(|_, _| Ok(())).await?; // makes the file and its tables
        }
        let (path, blocking) = (self.path.clone(), self.blocking);
        self.blocking
            .run(move || {
                let mut connection = match slot.take() {
                    Some(connection) => connection,
                    None => schema::open_reader(&path, blocking).map_err(|e| failed(&path, "open", &e))?,
                };
                let transaction = connection.transaction().map_err(|e| failed(&path, "read", &e))?;
                let result = work(&transaction);
                drop(transaction);
                match result {
                    Ok(value) => {
                        *slot = Some(connection);
                        Ok(value)
                    }
                    Err(read::ReadError::Sqlite(error)) => Err(failed(&path, "read", &error)),
                    Err(read::ReadError::Damaged(what)) => {
                        Err(SinkError::Damaged(format!("{what} in {}", path.display())))
                    }
                }
            })
            .await
    }
}

impl Sink for Sqlite {
    fn describe(&self) -> String {
        format!("SQLite in {}", self.path.display())
    }

    fn states(&self) -> BoxFuture<'_, Result<Vec<StreamState>, SinkError>> {
        // By the writing connection: what a commit left that failed is seen by it first.
        Box::pin(self.write(|path, writer| {
            read::states(writer.connection()).map_err(|e| match e {
                read::ReadError::Sqlite(error) => failed(path, "read", &error),
                read::ReadError::Damaged(what) => SinkError::Damaged(format!("{what} in {}", path.display())),
            })
        }))
    }

    fn commit(&self, commit: &Commit) -> BoxFuture<'_, Result<(), SinkError>> {
        let prepared = Prepared::new(commit);
        Box::pin(self.write(move |path, writer| writer.commit(path, &prepared)))
    }

    fn query(&self, query: &Query) -> BoxFuture<'_, Result<Page, SinkError>> {
        let query = query.clone();
        Box::pin(self.read(move |connection| read::query(connection, &query)))
    }

    fn counts(&self, query: &CountQuery) -> BoxFuture<'_, Result<Vec<Count>, SinkError>> {
        let query = query.clone();
        Box::pin(self.read(move |connection| read::counts(connection, &query)))
    }

    fn gaps(
        &self,
        node: Option<&Name>,
        stream: Option<&Name>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<GapRow>, SinkError>> {
        let (node, stream) = (node.cloned(), stream.cloned());
        Box::pin(self.read(move |connection| read::gaps(connection, node.as_ref(), stream.as_ref(), limit)))
    }

    fn prune(&self, before: Timestamp) -> BoxFuture<'_, Result<u64, SinkError>> {
        Box::pin(async move {
            let mut removed = 0;
            // A step at a time, so that commits go between.
            loop {
                let (records, more) = self.write(move |path, writer| writer.prune(path, before)).await?;
                removed += records;
                if !more {
                    return Ok(removed);
                }
                tokio::task::yield_now().await;
            }
        })
    }
}
