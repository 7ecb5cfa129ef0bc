//! Writing: one transaction a commit; the removal of what is too old.

use std::{collections::BTreeMap, pin::pin};

use futures_util::SinkExt as _;
use jiff::Timestamp;
use proto::{name::Name, stream::batch::Batch};
use tokio_postgres::{Client, Error};

use super::{
    super::{Commit, GapRow, StreamState, class_word, minute_of, signed},
    connect::Link,
    copy::{Copy, Micros, document},
};

/// Records that one step of pruning removes.
const PRUNE_STEP: i64 = 10_000;

const RECORDS: &str = "COPY crossdock_records
    (node, stream, epoch, sequence, site, time, received, position, record, doc) FROM STDIN BINARY";
const MINUTES: &str = "INSERT INTO crossdock_minutes AS m (stream, minute, site, records, bytes)
    SELECT * FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::bigint[], $5::bigint[])
    ON CONFLICT (stream, minute, site) DO UPDATE SET
        records = m.records + excluded.records, bytes = m.bytes + excluded.bytes";
const STATES: &str = "INSERT INTO crossdock_states
    (node, stream, epoch, site, class, durable, reported_next, lag_records, lag_oldest, heard, ended)
    SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::bigint[],
                         $8::bigint[], $9::timestamptz[], $10::timestamptz[], $11::boolean[])
    ON CONFLICT (node, stream, epoch) DO UPDATE SET
        site = excluded.site, class = excluded.class, durable = excluded.durable,
        reported_next = excluded.reported_next, lag_records = excluded.lag_records,
        lag_oldest = excluded.lag_oldest, heard = excluded.heard, ended = excluded.ended";
const GAPS: &str = "INSERT INTO crossdock_gaps (node, site, stream, epoch, first, count, at_least, reason, noted)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[],
                         $7::boolean[], $8::text[], $9::timestamptz[])";

/// A commit that has what it needs to be written, and again when it has to.
pub(super) struct Rows {
    batches: Vec<(Name, Name, Name, Micros, Batch)>,
    gaps: Vec<GapRow>,
    states: Vec<StreamState>,
    minutes: BTreeMap<(Name, i64, Name), (i64, i64)>,
}

/// Why it was not written.
pub(super) struct Failed {
    pub(super) error: Error,
    /// It was the commit itself that failed.
    pub(super) at_commit: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed { error, at_commit: false }
    }
}

impl Rows {
    pub(super) fn new(commit: &Commit) -> Rows {
        let mut minutes = BTreeMap::<_, (i64, i64)>::new();
        for new in &commit.batches {
            for record in &new.batch.records {
                let minute = minute_of(Micros::of_ms(record.time_ms).0.div_euclid(1000));
                let count = minutes.entry((new.stream.clone(), minute, new.site.clone())).or_default();
                count.0 += 1;
                count.1 += signed(record.bytes.len() as u64);
            }
        }
        let batches = commit.batches.iter();
        let batches = batches
            .map(|n| (n.node.clone(), n.site.clone(), n.stream.clone(), Micros::of(n.received), n.batch.clone()));
        Rows { batches: batches.collect(), gaps: commit.gaps.clone(), states: commit.states.clone(), minutes }
    }

    /// The records, and the last position that was given. Without documents when the server took offence.
    fn copy(&self, mut position: i64, documents: bool) -> (bytes::Bytes, i64) {
        let mut copy = Copy::new();
        for (node, site, stream, received, batch) in &self.batches {
            for (sequence, record) in (batch.first..).zip(&batch.records) {
                position += 1;
                copy.row(10);
                copy.bytes(node.as_str().as_bytes());
                copy.bytes(stream.as_str().as_bytes());
                copy.number(signed(batch.epoch.0));
                copy.number(signed(sequence));
                copy.bytes(site.as_str().as_bytes());
                copy.time(Micros::of_ms(record.time_ms));
                copy.time(*received);
                copy.number(position);
                copy.bytes(&record.bytes);
                copy.json(if documents { document(&record.bytes) } else { None });
            }
        }
        (copy.finish(), position)
    }
}

/// Writes it all, or nothing.
pub(super) async fn commit(link: &mut Link, rows: &Rows) -> Result<(), Failed> {
    match attempt(link, rows, true).await {
        // A value that it does not take (class 22) or that is too much for it (54): the records are kept all
        // the same, as the bytes that they are.
        Err(Failed { error, at_commit: false })
            if error.code().is_some_and(|c| c.code().starts_with("22") || c.code().starts_with("54")) =>
        {
            link.client.batch_execute("ROLLBACK").await?;
            attempt(link, rows, false).await
        }
        other => other,
    }
}

async fn attempt(link: &mut Link, rows: &Rows, documents: bool) -> Result<(), Failed> {
    let client = &link.client;
    client.batch_execute("BEGIN").await?;
    let mut last = link.position;
    if !rows.batches.is_empty() {
        let (content, position) = rows.copy(link.position, documents);
        let mut sink = pin!(client.copy_in(RECORDS).await?);
        sink.send(content).await?;
        sink.as_mut().finish().await?;
        last = position;
        minutes(client, rows).await?;
        client.execute("UPDATE crossdock_meta SET value = $1 WHERE name = 'position'", &[&last]).await?;
    }
    if !rows.gaps.is_empty() {
        gaps(client, &rows.gaps).await?;
    }
    if !rows.states.is_empty() {
        states(client, &rows.states).await?;
    }
    client.batch_execute("COMMIT").await.map_err(|error| Failed { error, at_commit: true })?;
    link.position = last;
    Ok(())
}

async fn minutes(client: &Client, rows: &Rows) -> Result<u64, Error> {
    let names = |part: fn(&(Name, i64, Name)) -> &Name| rows.minutes.keys().map(|k| part(k).as_str()).collect();
    let (streams, sites): (Vec<&str>, Vec<&str>) = (names(|k| &k.0), names(|k| &k.2));
    let minutes: Vec<Micros> = rows.minutes.keys().map(|k| Micros(k.1.saturating_mul(60_000_000))).collect();
    let records: Vec<i64> = rows.minutes.values().map(|c| c.0).collect();
    let bytes: Vec<i64> = rows.minutes.values().map(|c| c.1).collect();
    client.execute(MINUTES, &[&streams, &minutes, &sites, &records, &bytes]).await
}

async fn gaps(client: &Client, gaps: &[GapRow]) -> Result<u64, Error> {
    let names = |part: fn(&GapRow) -> &Name| gaps.iter().map(|g| part(g).as_str()).collect::<Vec<&str>>();
    let numbers = |part: fn(&GapRow) -> u64| gaps.iter().map(|g| signed(part(g))).collect::<Vec<i64>>();
    let at_least: Vec<bool> = gaps.iter().map(|g| g.at_least).collect();
    let reasons: Vec<&str> = gaps.iter().map(|g| g.reason.as_str()).collect();
    let noted: Vec<Micros> = gaps.iter().map(|g| Micros::of(g.noted)).collect();
    let (nodes, sites, streams) = (names(|g| &g.node), names(|g| &g.site), names(|g| &g.stream));
    let (epochs, firsts, counts) = (numbers(|g| g.epoch.0), numbers(|g| g.first), numbers(|g| g.count));
    client.execute(GAPS, &[&nodes, &sites, &streams, &epochs, &firsts, &counts, &at_least, &reasons, &noted]).await
}

async fn states(client: &Client, states: &[StreamState]) -> Result<u64, Error> {
    let names = |part: fn(&StreamState) -> &Name| states.iter().map(|s| part(s).as_str()).collect::<Vec<&str>>();
    let numbers = |part: fn(&StreamState) -> u64| states.iter().map(|s| signed(part(s))).collect::<Vec<i64>>();
    let (nodes, streams, sites) = (names(|s| &s.node), names(|s| &s.key.stream), names(|s| &s.site));
    let epochs = numbers(|s| s.key.epoch.0);
    let (nexts, lags) = (numbers(|s| s.reported_next), numbers(|s| s.lag_records));
    let classes: Vec<&str> = states.iter().map(|s| class_word(s.class)).collect();
    // Numbers always have a text.
    let durable: Vec<String> = states.iter().map(|s| serde_json::to_string(&s.durable).unwrap_or_default()).collect();
    let oldest: Vec<Option<Micros>> = states.iter().map(|s| s.lag_oldest.map(Micros::of)).collect();
    let heard: Vec<Micros> = states.iter().map(|s| Micros::of(s.heard)).collect();
    let ended: Vec<bool> = states.iter().map(|s| s.ended).collect();
    client
        .execute(
            STATES,
            &[&nodes, &streams, &epochs, &sites, &classes, &durable, &nexts, &lags, &oldest, &heard, &ended],
        )
        .await
}

/// Removes some of the oldest records; returns how many.
pub(super) async fn prune(link: &Link, before: Timestamp) -> Result<u64, Error> {
    let sql = "DELETE FROM crossdock_records WHERE ctid = ANY (ARRAY(
                   SELECT ctid FROM crossdock_records WHERE received < $1 LIMIT $2))";
    link.client.execute(sql, &[&Micros::of(before), &PRUNE_STEP]).await
}
