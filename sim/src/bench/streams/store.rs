//! Where a peer's consumer puts what it was given: SQLite, as anybody would write it. One row a record,
//! one transaction for what came together, on disk before it is acknowledged.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use proto::{env::Blocking, watch};
use rusqlite::{Connection, params};

use super::load::number_of;

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    connection: Arc<Mutex<Connection>>,
    count: watch::Sender<u64>,
}

impl Store {
    /// Makes it.
    ///
    /// # Errors
    /// Those of SQLite.
    pub async fn open(folder: &Path) -> anyhow::Result<Store> {
        let path = folder.join("sink.db");
        let open = move || -> anyhow::Result<Connection> {
            let connection = Connection::open(&path).with_context(|| format!("open {}", path.display()))?;
            connection.execute_batch(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
                 CREATE TABLE records (id INTEGER PRIMARY KEY AUTOINCREMENT, record BLOB NOT NULL);",
            )?;
            Ok(connection)
        };
        let connection = Blocking::Pool.run(open).await?;
        Ok(Store { connection: Arc::new(Mutex::new(connection)), count: watch::Sender::new(0) })
    }

    /// Keeps records; they are on disk when this returns.
    ///
    /// # Errors
    /// Those of SQLite.
    pub async fn keep(&self, records: Vec<Bytes>) -> anyhow::Result<()> {
        let count = records.len() as u64;
        self.with(move |connection| {
            let transaction = connection.transaction()?;
            {
                let mut insert = transaction.prepare_cached("INSERT INTO records (record) VALUES (?1)")?;
                for record in &records {
                    insert.execute(params![record.as_ref()])?;
                }
            }
            Ok(transaction.commit()?)
        })
        .await?;
        self.count.send_modify(|all| *all += count);
        Ok(())
    }

    /// How many it has taken.
    #[must_use]
    pub fn count(&self) -> u64 {
        *self.count.borrow()
    }

    /// Waits until it has taken so many.
    pub async fn reached(&self, count: u64) {
        let _ = self.count.subscribe().wait_for(|all| *all >= count).await; // the sender is ours
    }

    /// The numbers of all records.
    ///
    /// # Errors
    /// Those of SQLite.
    pub async fn numbers(&self) -> anyhow::Result<Vec<u64>> {
        self.with(|connection| {
            let mut select = connection.prepare("SELECT record FROM records")?;
            let numbers = select.query_map([], |row| Ok(number_of(row.get_ref(0)?.as_bytes()?)))?;
            Ok(numbers.filter_map(Result::transpose).collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let connection = Arc::clone(&self.connection);
        let work = move || match connection.lock() {
            Ok(mut connection) => work(&mut connection),
            Err(_) => bail!("the writer of the sink ended badly"),
        };
        Blocking::Pool.run(work).await
    }
}
