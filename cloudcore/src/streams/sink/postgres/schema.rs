//! The tables, and how a writing connection begins.

use super::{SinkError, connect::Link, words};

/// Each brings the tables from its index to the next; never change one that was shipped.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE crossdock_records (
        node text NOT NULL, stream text NOT NULL, epoch bigint NOT NULL, sequence bigint NOT NULL,
        site text NOT NULL, time timestamptz NOT NULL, received timestamptz NOT NULL, position bigint NOT NULL,
        record bytea NOT NULL, doc jsonb,
        PRIMARY KEY (node, stream, epoch, sequence)
    );
    CREATE INDEX crossdock_records_by_position ON crossdock_records (stream, position);
    CREATE INDEX crossdock_records_by_time ON crossdock_records (stream, time);
    CREATE INDEX crossdock_records_by_arrival ON crossdock_records USING brin (received);
    CREATE TABLE crossdock_minutes (
        stream text NOT NULL, minute timestamptz NOT NULL, site text NOT NULL,
        records bigint NOT NULL, bytes bigint NOT NULL,
        PRIMARY KEY (stream, minute, site)
    );
    CREATE TABLE crossdock_states (
        node text NOT NULL, stream text NOT NULL, epoch bigint NOT NULL,
        site text NOT NULL, class text NOT NULL, durable text NOT NULL, reported_next bigint NOT NULL,
        lag_records bigint NOT NULL, lag_oldest timestamptz, heard timestamptz NOT NULL, ended boolean NOT NULL,
        PRIMARY KEY (node, stream, epoch)
    );
    CREATE TABLE crossdock_gaps (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        node text NOT NULL, site text NOT NULL, stream text NOT NULL,
        epoch bigint NOT NULL, first bigint NOT NULL, count bigint NOT NULL,
        at_least boolean NOT NULL, reason text NOT NULL, noted timestamptz NOT NULL
    );
"];

/// All states.
pub(super) const STATES: &str = "
    SELECT node, site, stream, epoch, class, durable, reported_next, lag_records, lag_oldest, heard, ended
    FROM crossdock_states ORDER BY node COLLATE \"C\", stream COLLATE \"C\", epoch";

/// What a writing session is set to. A server that finds out that the hub is gone lets go of the lock; one
/// that does not wait for its disk is made to.
const SESSION: &str = "
    SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
    SET idle_in_transaction_session_timeout = '60s';
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";

/// A number of our own, then the table that it is about.
const LOCK: &str = "SELECT pg_try_advisory_lock((1480870763::bigint << 32) | 'crossdock_meta'::regclass::oid::bigint)";

/// Takes the lock and makes the tables.
pub(super) async fn prepare(mut link: Link, place: &str) -> Result<Link, SinkError> {
    let down = |e: tokio_postgres::Error| SinkError::Unavailable(format!("could not prepare {place}: {}", words(&e)));
    let client = &link.client;
    client.batch_execute(SESSION).await.map_err(down)?;
    let encoding: String = client.query_one("SHOW server_encoding", &[]).await.map_err(down)?.get(0);
    if encoding != "UTF8" {
        return Err(SinkError::Unavailable(format!(
            "{place} has the encoding {encoding}, records need UTF8; make the database with ENCODING 'UTF8'"
        )));
    }
    let there = "SELECT to_regclass('crossdock_meta') IS NOT NULL";
    if !client.query_one(there, &[]).await.map_err(down)?.get::<_, bool>(0) {
        let make = "CREATE TABLE IF NOT EXISTS crossdock_meta (name text PRIMARY KEY, value bigint NOT NULL);
                    INSERT INTO crossdock_meta VALUES ('version', 0), ('position', 0) ON CONFLICT DO NOTHING";
        client.batch_execute(make).await.map_err(down)?;
    }
    if !client.query_one(LOCK, &[]).await.map_err(down)?.get::<_, bool>(0) {
        return Err(SinkError::Unavailable(format!(
            "another hub writes to {place}; stop it, or wait until the server has noticed that it is gone"
        )));
    }
    let meta = "SELECT value FROM crossdock_meta WHERE name = $1";
    let found: i64 = client.query_one(meta, &[&"version"]).await.map_err(down)?.get(0);
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known || found < 0 {
        return Err(SinkError::Damaged(format!(
            "{place} has schema version {found}, this cloudcore knows {known}; start the version that wrote it, or a newer one"
        )));
    }
    for (step, sql) in (1_i64..).zip(MIGRATIONS).skip(usize::try_from(found).unwrap_or(0)) {
        let all = format!("BEGIN; {sql} UPDATE crossdock_meta SET value = {step} WHERE name = 'version'; COMMIT");
        client.batch_execute(&all).await.map_err(down)?;
    }
    link.position = client.query_one(meta, &[&"position"]).await.map_err(down)?.get(0);
    Ok(link)
}
