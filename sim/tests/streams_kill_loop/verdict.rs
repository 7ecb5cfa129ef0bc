//! What stands in Postgres, read in SQL by somebody who knows nothing of Crossdock's code, against the
//! books of the producers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::{Context as _, ensure};
use tokio_postgres::Client;

use super::producers::{Producer, hash_of, name_and_number};

/// Counts of one producer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Count {
    /// Records that were sent.
    pub sent: u64,
    /// Of these, acknowledged.
    pub acknowledged: u64,
    /// Of these, never answered: allowed to be there, once.
    pub unanswered: u64,
    /// Offers that found nobody, so that nothing was sent.
    pub unreachable: u64,
    /// Rows.
    pub stored: u64,
    /// Of the rows, records that were never answered.
    pub stored_unanswered: u64,
    /// Acknowledged, and not there.
    pub lost: u64,
    /// Copies beyond the first.
    pub duplicated: u64,
    /// Rows whose number is not above that of the row before, in order of epoch and sequence.
    pub disordered: u64,
    /// Rows with other bytes than were sent under that number.
    pub altered: u64,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// By producer.
    pub counts: BTreeMap<String, Count>,
    /// Rows that nobody sent, the first few.
    pub strangers: Vec<String>,
    /// Sequences without row below the last of their stream and epoch.
    pub holes: u64,
    /// Epochs besides the first of a stream: no outbox was ever lost.
    pub epochs: u64,
    /// Rows of `crossdock_gaps`.
    pub gaps: u64,
    /// Rows by the counts of `crossdock_minutes`.
    pub by_minutes: u64,
    /// All rows.
    pub rows: u64,
}

/// A row of `crossdock_records`, in order of node, stream, epoch, sequence.
#[derive(Debug, Clone)]
pub struct Row {
    /// Node and stream.
    pub stream: (String, String),
    /// Its epoch.
    pub epoch: i64,
    /// Its sequence.
    pub sequence: i64,
    /// Its bytes.
    pub record: Vec<u8>,
}

/// Reads everything and compares.
pub async fn read(client: &Client, producers: &[Producer]) -> anyhow::Result<Verdict> {
    let sql = "SELECT node, stream, epoch, sequence, record FROM crossdock_records
               ORDER BY node COLLATE \"C\", stream COLLATE \"C\", epoch, sequence";
    let mut rows = vec![];
    for row in client.query(sql, &[]).await.context("read the records")? {
        let stream = (row.try_get(0)?, row.try_get(1)?);
        rows.push(Row { stream, epoch: row.try_get(2)?, sequence: row.try_get(3)?, record: row.try_get(4)? });
    }
    let mut verdict = judge(&rows, producers);
    let number = async |sql: &str| anyhow::Ok(client.query_one(sql, &[]).await?.try_get::<_, i64>(0)?.unsigned_abs());
    verdict.gaps = number("SELECT count(*) FROM crossdock_gaps").await?;
    verdict.by_minutes = number("SELECT coalesce(sum(records), 0)::bigint FROM crossdock_minutes").await?;
    Ok(verdict)
}

/// Compares rows with what was sent.
pub fn judge(rows: &[Row], producers: &[Producer]) -> Verdict {
    let mut verdict = Verdict { rows: rows.len() as u64, ..Verdict::default() };
    let mut there: BTreeMap<&str, (BTreeSet<u64>, Option<u64>)> = BTreeMap::new();
    let mut last: Option<&Row> = None;
    for row in rows {
        let expected = match last.filter(|last| last.stream == row.stream) {
            Some(last) if last.epoch == row.epoch => last.sequence + 1,
            other => {
                verdict.epochs += u64::from(other.is_some());
                0
            }
        };
        verdict.holes += expected.abs_diff(row.sequence);
        last = Some(row);

        let named = name_and_number(&row.record);
        let known = named.and_then(|(name, number)| {
            let producer = producers
                .iter()
                .find(|p| (&p.name, (&p.node, &p.stream)) == (&name, (&row.stream.0, &row.stream.1)))?;
            let sent = *producer.book.sent().get(&number)?;
            Some((producer, number, sent))
        });
        let Some((producer, number, sent)) = known else {
            verdict.strangers.push(format!("{:?} {}", row.stream, String::from_utf8_lossy(&row.record)));
            continue;
        };
        let count = verdict.counts.entry(producer.name.clone()).or_default();
        let (numbers, before) = there.entry(&producer.name).or_default();
        count.stored += 1;
        count.altered += u64::from(hash_of(&row.record) != sent.hash);
        count.disordered += u64::from(before.is_some_and(|before| before >= number));
        *before = Some(number);
        match numbers.insert(number) {
            true => count.stored_unanswered += u64::from(!sent.acknowledged),
            false => count.duplicated += 1,
        }
    }
    for producer in producers {
        let count = verdict.counts.entry(producer.name.clone()).or_default();
        count.unreachable = producer.book.unreachable();
        let none = BTreeSet::new();
        let numbers = there.get(producer.name.as_str()).map_or(&none, |(numbers, _)| numbers);
        for (number, sent) in producer.book.sent().iter() {
            count.sent += 1;
            count.acknowledged += u64::from(sent.acknowledged);
            count.unanswered += u64::from(!sent.acknowledged);
            count.lost += u64::from(sent.acknowledged && !numbers.contains(number));
        }
    }
    verdict
}

impl Verdict {
    /// That every record is counted exactly once.
    ///
    /// # Errors
    /// What is not as it must be.
    pub fn check(&self) -> anyhow::Result<()> {
        for (name, count) in &self.counts {
            let wrong = (count.lost, count.duplicated, count.disordered, count.altered);
            ensure!(wrong == (0, 0, 0, 0), "{name}: lost, duplicated, disordered, altered: {wrong:?}");
            ensure!(count.acknowledged > 0, "{name} heard no answer");
            ensure!(count.stored == count.acknowledged + count.stored_unanswered, "{name} does not add up: {count:?}");
        }
        let first: Vec<_> = self.strangers.iter().take(3).collect();
        ensure!(first.is_empty(), "{} rows that nobody sent, such as {first:?}", self.strangers.len());
        ensure!(self.gaps == 0, "{} gaps", self.gaps);
        ensure!(self.holes == 0, "{} sequences are missing", self.holes);
        ensure!(self.epochs == 0, "{} epochs too many", self.epochs);
        ensure!(self.by_minutes == self.rows, "{} rows, {} counted by minute", self.rows, self.by_minutes);
        Ok(())
    }
}

/// A column of the table: its head, and what stands there.
type Column = (&'static str, fn(&Count) -> u64);

/// The table's columns.
const COLUMNS: [Column; 10] = [
    ("sent", |c| c.sent),
    ("acknowledged", |c| c.acknowledged),
    ("unanswered", |c| c.unanswered),
    ("stored", |c| c.stored),
    ("of them unanswered", |c| c.stored_unanswered),
    ("lost", |c| c.lost),
    ("duplicated", |c| c.duplicated),
    ("out of order", |c| c.disordered),
    ("altered", |c| c.altered),
    ("found closed", |c| c.unreachable),
];

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<12}", "producer")?;
        COLUMNS.iter().try_for_each(|(head, _)| write!(f, " {head:>8}"))?;
        for (name, count) in &self.counts {
            write!(f, "\n{name:<12}")?;
            COLUMNS.iter().try_for_each(|(head, cell)| write!(f, " {:>1$}", cell(count), head.len().max(8)))?;
        }
        write!(f, "\n{:<12}", "all")?;
        for (head, cell) in COLUMNS {
            write!(f, " {:>1$}", self.counts.values().map(cell).sum::<u64>(), head.len().max(8))?;
        }
        write!(f, "\nrows {}, counted by minute {}; ", self.rows, self.by_minutes)?;
        write!(f, "gaps {}, sequences missing {}, ", self.gaps, self.holes)?;
        write!(f, "epochs too many {}, rows that nobody sent {}", self.epochs, self.strangers.len())
    }
}

#[test]
fn what_is_wrong_is_found() {
    let producer = Producer::new("box-1", "http", "scans");
    let text = |number: u64| format!(r#"{{"by":"box-1/http","scan":{{"id":"bench-{number:012}"}}}}"#);
    let sent = |number: u64, acknowledged| {
        (number, super::producers::Sent { hash: hash_of(text(number).as_bytes()), acknowledged })
    };
    producer.book.sent().extend([sent(0, true), sent(1, true), sent(2, false), sent(3, true), sent(4, false)]);
    let rows = |rows: &[(i64, &str)]| -> Vec<Row> {
        let row = |(sequence, record): &(i64, &str)| Row {
            stream: ("box-1".to_owned(), "scans".to_owned()),
            epoch: 7,
            sequence: *sequence,
            record: record.as_bytes().to_vec(),
        };
        rows.iter().map(row).collect()
    };
    let of = |given: &[(i64, &str)]| {
        let mut verdict = judge(&rows(given), std::slice::from_ref(&producer));
        verdict.by_minutes = verdict.rows;
        verdict
    };
    let [zero, one, two, three, nine] = [0, 1, 2, 3, 9].map(text);
    let altered = one.replace("}}", "} }");
    let good = of(&[(0, &zero), (1, &one), (2, &two), (3, &three)]);
    good.check().unwrap();
    let count = good.counts["box-1/http"].clone();
    assert_eq!((count.sent, count.acknowledged, count.unanswered, count.stored_unanswered), (5, 3, 2, 1));
    for (given, word) in [
        (&[(0, &*zero), (1, &one)][..], "lost"),
        (&[(0, &zero), (1, &one), (2, &one), (3, &three)], "(0, 1, 1, 0)"),
        (&[(0, &one), (1, &zero), (2, &three)], "(0, 0, 1, 0)"),
        (&[(0, &zero), (1, &altered), (2, &three)], "(0, 0, 0, 1)"),
        (&[(0, &zero), (1, &one), (2, &three), (3, &nine)], "nobody sent"),
        (&[(0, &zero), (1, &one), (3, &three)], "missing"),
    ] {
        let error = of(given).check().unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}
