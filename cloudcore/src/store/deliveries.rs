//! What webhooks have taken up of the events, and what became of it. Called by `crate::webhooks` alone.
//!
//! ```text
//! objects of kind Event, by revision --take_up, after the place--> deliveries (waiting)
//!     waiting --delivered--> gone      --failed too often--> dead --retry--> waiting
//! ```
//!
//! The place and what was taken up change in one transaction, so an event is taken up once, and is kept until it was
//! delivered: with what a receiver saw before a crash, that makes at least once. An event that happens again before
//! its first attempt takes the place of what waited: its count tells the rest.

use jiff::Timestamp;
use proto::object::{Event, EventSpec, Kind as _};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{Store, StoreError, db::Writer};

/// Most deliveries of one webhook that wait; beyond that the oldest are given up.
pub const MAX_WAITING: i64 = 10_000;
/// Most that were given up and are kept; beyond that the oldest are forgotten, and counted.
pub const MAX_DEAD: i64 = 1_000;
/// Events of one step.
const STEP: i64 = 500;

/// An event on its way to one webhook.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Delivery {
    /// Of the event as it was written then.
    pub(crate) revision: i64,
    /// The event.
    pub(crate) event: Event,
    /// Attempts that failed.
    pub(crate) attempts: u32,
    /// When it was taken up, or last given another chance.
    pub(crate) since: Timestamp,
    /// Why the last attempt failed.
    pub(crate) reason: String,
}

/// How a webhook fares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Deliveries that wait.
    pub(crate) waiting: i64,
    /// Deliveries that were given up and are kept.
    pub(crate) dead: i64,
    /// Deliveries that arrived.
    pub(crate) delivered: i64,
    /// Deliveries that were given up and forgotten.
    pub(crate) dropped: i64,
    /// The last success.
    pub(crate) succeeded_at: Option<Timestamp>,
    /// The last failure.
    pub(crate) failed_at: Option<Timestamp>,
    /// Its reason; empty after a success.
    pub(crate) failure: String,
}

impl Store {
    /// Begins webhooks that are new with what happens from now on, and forgets those that are no longer there.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub(crate) async fn begin_webhooks(&self, names: Vec<String>) -> Result<(), StoreError> {
        self.write(move |writer| {
            let now = writer.peek_revision() - 1;
            for old in rows(writer.connection(), "SELECT name FROM webhooks", |row| row.get::<_, String>(0))? {
                if !names.contains(&old) {
                    execute(writer, "DELETE FROM deliveries WHERE webhook = ?", [&old])?;
                    execute(writer, "DELETE FROM webhooks WHERE name = ?", [&old])?;
                }
            }
            for name in &names {
                let sql = "INSERT INTO webhooks (name, place) VALUES (?, ?) ON CONFLICT (name) DO NOTHING";
                execute(writer, sql, params![name, now])?;
            }
            Ok(())
        })
        .await
    }

    /// Takes up the next events for each webhook, those that it wants. Returns the place up to which all of them
    /// have taken up everything, and whether there is more.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub(crate) async fn take_up_events(
        &self,
        webhooks: Vec<(String, impl Fn(&Event) -> bool + Send + 'static)>,
        now: Timestamp,
    ) -> Result<(i64, bool), StoreError> {
        self.write(move |writer| {
            let (mut newest, mut more) = (i64::MAX, false);
            for (name, wants) in &webhooks {
                let (place, whole) = take_up(writer, name, wants, now)?;
                (newest, more) = (newest.min(place), more || !whole);
            }
            Ok((newest, more))
        })
        .await
    }

    /// The delivery whose turn it is.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(crate) async fn next_delivery(&self, webhook: &str) -> Result<Option<Delivery>, StoreError> {
        Ok(self.deliveries(webhook, false, 1).await?.pop())
    }

    /// Deliveries that were given up, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(crate) async fn dead_letters(&self, webhook: &str) -> Result<Vec<Delivery>, StoreError> {
        self.deliveries(webhook, true, MAX_DEAD).await
    }

    async fn deliveries(&self, webhook: &str, dead: bool, limit: i64) -> Result<Vec<Delivery>, StoreError> {
        let name = webhook.to_owned();
        let read = move |connection: &Connection| {
            let failed = StoreError::during("read");
            let mut statement = connection
                .prepare_cached(
                    "SELECT revision, event, json, attempts, since, reason FROM deliveries
                     WHERE webhook = ? AND dead = ? ORDER BY revision LIMIT ?",
                )
                .map_err(failed)?;
            let rows = statement.query_map(params![name, dead, limit], delivery).map_err(failed)?;
            rows.map(|row| row.map_err(failed)?).collect()
        };
        self.read(read).await
    }

    /// Notes that a delivery arrived.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) async fn delivered(&self, webhook: &str, revision: i64, now: Timestamp) -> Result<(), StoreError> {
        let name = webhook.to_owned();
        self.write(move |writer| {
            execute(writer, "DELETE FROM deliveries WHERE webhook = ? AND revision = ?", params![name, revision])?;
            let sql = "UPDATE webhooks SET delivered = delivered + 1, succeeded_at = ?, failure = '' WHERE name = ?";
            execute(writer, sql, params![now.as_millisecond(), name])
        })
        .await
    }

    /// Notes that an attempt failed, and gives the delivery up if `dead`. Whether it is the only one that was given
    /// up: then somebody should hear of it.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) async fn failed_delivery(
        &self,
        webhook: &str,
        revision: i64,
        reason: String,
        dead: bool,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let name = webhook.to_owned();
        self.write(move |writer| {
            let sql = "UPDATE deliveries SET attempts = attempts + 1, reason = ?, dead = ?
                       WHERE webhook = ? AND revision = ?";
            execute(writer, sql, params![reason, dead, name, revision])?;
            let sql = "UPDATE webhooks SET failed_at = ?, failure = ? WHERE name = ?";
            execute(writer, sql, params![now.as_millisecond(), reason, name])?;
            forget_oldest_dead(writer, &name)?;
            Ok(dead && count(writer.connection(), &name, true)? == 1)
        })
        .await
    }

    /// Gives everything that was given up another chance, ahead of what came later. How many that are.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) async fn retry_dead_letters(&self, webhook: &str, now: Timestamp) -> Result<i64, StoreError> {
        let name = webhook.to_owned();
        self.write(move |writer| {
            let dead = count(writer.connection(), &name, true)?;
            let sql = "UPDATE deliveries SET dead = 0, attempts = 0, since = ? WHERE webhook = ? AND dead = 1";
            execute(writer, sql, params![now.as_millisecond(), name])?;
            Ok(dead)
        })
        .await
    }

    /// How a webhook fares.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(crate) async fn webhook_state(&self, webhook: &str) -> Result<State, StoreError> {
        let name = webhook.to_owned();
        let read = move |connection: &Connection| {
            let sql = "SELECT delivered, dropped, succeeded_at, failed_at, failure FROM webhooks WHERE name = ?";
            let state = connection.prepare_cached(sql).and_then(|mut found| found.query_row([&name], state).optional());
            let state = state.map_err(StoreError::during("read"))?.unwrap_or_default();
            let [waiting, dead] = [count(connection, &name, false)?, count(connection, &name, true)?];
            Ok(State { waiting, dead, ..state })
        };
        self.read(read).await
    }
}

/// Takes up the next events for one webhook; up to where, and whether that is all.
fn take_up(
    writer: &mut Writer<'_>,
    name: &str,
    wants: &impl Fn(&Event) -> bool,
    now: Timestamp,
) -> Result<(i64, bool), StoreError> {
    let failed = StoreError::during("read");
    let found = writer
        .connection()
        .prepare_cached("SELECT place FROM webhooks WHERE name = ?")
        .and_then(|mut place| place.query_row([name], |row| row.get::<_, i64>(0)).optional())
        .map_err(failed)?;
    let Some(place) = found else { return Ok((i64::MAX, true)) };
    let mut statement = writer
        .connection()
        .prepare_cached(
            "SELECT revision, name, json FROM objects WHERE kind = ? AND revision > ? ORDER BY revision LIMIT ?",
        )
        .map_err(failed)?;
    let row = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?));
    let found = statement.query_map(params![EventSpec::KIND, place, STEP], row).map_err(failed)?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let Some((next, ..)) = found.last() else { return Ok((place, true)) };
    execute(writer, "UPDATE webhooks SET place = ? WHERE name = ?", params![next, name])?;
    for (revision, event, json) in &found {
        if !serde_json::from_str::<Event>(json).is_ok_and(|event| wants(&event)) {
            continue;
        }
        let sql = "DELETE FROM deliveries WHERE webhook = ? AND event = ? AND attempts = 0 AND dead = 0";
        execute(writer, sql, params![name, event])?;
        let sql = "INSERT INTO deliveries (webhook, revision, event, json, since) VALUES (?, ?, ?, ?, ?)";
        execute(writer, sql, params![name, revision, event, json, now.as_millisecond()])?;
    }
    let over = count(writer.connection(), name, false)? - MAX_WAITING;
    if over > 0 {
        let sql = "UPDATE deliveries SET dead = 1, reason = 'too many waited' WHERE webhook = ? AND revision IN
                   (SELECT revision FROM deliveries WHERE webhook = ? AND dead = 0 ORDER BY revision LIMIT ?)";
        execute(writer, sql, params![name, name, over])?;
        forget_oldest_dead(writer, name)?;
    }
    Ok((*next, i64::try_from(found.len()).unwrap_or(STEP) < STEP))
}

fn forget_oldest_dead(writer: &mut Writer<'_>, name: &str) -> Result<(), StoreError> {
    let over = count(writer.connection(), name, true)? - MAX_DEAD;
    if over > 0 {
        let sql = "DELETE FROM deliveries WHERE webhook = ? AND revision IN
                   (SELECT revision FROM deliveries WHERE webhook = ? AND dead = 1 ORDER BY revision LIMIT ?)";
        execute(writer, sql, params![name, name, over])?;
        execute(writer, "UPDATE webhooks SET dropped = dropped + ? WHERE name = ?", params![over, name])?;
    }
    Ok(())
}

fn count(connection: &Connection, webhook: &str, dead: bool) -> Result<i64, StoreError> {
    connection
        .prepare_cached("SELECT count(*) FROM deliveries WHERE webhook = ? AND dead = ?")
        .and_then(|mut statement| statement.query_row(params![webhook, dead], |row| row.get(0)))
        .map_err(StoreError::during("read"))
}

fn execute(writer: &mut Writer<'_>, sql: &str, parameters: impl rusqlite::Params) -> Result<(), StoreError> {
    let written = writer.connection().prepare_cached(sql).and_then(|mut statement| statement.execute(parameters));
    if written.map_err(StoreError::during("write"))? > 0 {
        writer.wrote();
    }
    Ok(())
}

fn rows<T>(
    connection: &Connection,
    sql: &str,
    row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, StoreError> {
    let failed = StoreError::during("read");
    let mut statement = connection.prepare_cached(sql).map_err(failed)?;
    let rows = statement.query_map([], row).map_err(failed)?;
    rows.collect::<Result<_, _>>().map_err(failed)
}

fn delivery(row: &Row<'_>) -> rusqlite::Result<Result<Delivery, StoreError>> {
    let (name, json): (String, String) = (row.get(1)?, row.get(2)?);
    let (revision, attempts, since, reason) = (row.get(0)?, row.get(3)?, at(row.get(4)?), row.get(5)?);
    let event = super::db::decode::<EventSpec>(&name, &json);
    Ok(event.map(|event| Delivery { revision, event, attempts, since, reason }))
}

fn state(row: &Row<'_>) -> rusqlite::Result<State> {
    Ok(State {
        waiting: 0,
        dead: 0,
        delivered: row.get(0)?,
        dropped: row.get(1)?,
        succeeded_at: row.get::<_, Option<i64>>(2)?.map(at),
        failed_at: row.get::<_, Option<i64>>(3)?.map(at),
        failure: row.get(4)?,
    })
}

/// The bounds of time stand for what lies beyond them.
fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MIN)
}
