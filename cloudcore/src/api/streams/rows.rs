//! What people see of streams: a row a node and stream, counts cut at a minute. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use proto::{
    name::Name,
    stream::{Class, Epoch},
};
use serde::Serialize;
use serde_json::json;

use crate::{
    api::book::Book,
    streams::sink::{Count, GapRow, StreamState},
};

/// A stream of a node, over all epochs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StreamRow {
    node: Name,
    site: Name,
    stream: Name,
    class: Class,
    /// The epoch in which the node takes records now.
    epoch: Epoch,
    /// How many epochs the hub knows.
    epochs: usize,
    /// Records that the hub took; older ones may have left the sink since.
    records: u64,
    /// Gaps, and records in them.
    gaps: usize,
    lost_records: u64,
    /// Whether more may be lost than that.
    lost_at_least: bool,
    /// Records that the node still holds, and when it took the oldest.
    lag_records: u64,
    lag_oldest: Option<Timestamp>,
    /// When the hub heard of it last.
    heard: Timestamp,
}

/// Rows of streams, by node and name.
pub(super) fn rows(states: Vec<StreamState>, gaps: &[GapRow]) -> Vec<StreamRow> {
    let mut streams: BTreeMap<(Name, Name), Vec<StreamState>> = BTreeMap::new();
    for state in states {
        streams.entry((state.node.clone(), state.key.stream.clone())).or_default().push(state);
    }
    let mut lost: BTreeMap<(&Name, &Name), Vec<&GapRow>> = BTreeMap::new();
    for gap in gaps {
        lost.entry((&gap.node, &gap.stream)).or_default().push(gap);
    }
    let rows = streams.into_iter().filter_map(|((node, stream), states)| {
        let gaps = lost.get(&(&node, &stream)).map_or(&[][..], Vec::as_slice);
        row(&node, &stream, &states, gaps)
    });
    rows.collect()
}

fn row(node: &Name, stream: &Name, states: &[StreamState], gaps: &[&GapRow]) -> Option<StreamRow> {
    let current = states.iter().max_by_key(|s| (!s.ended, s.key.epoch))?;
    let records = |state: &StreamState| {
        let of_it = gaps.iter().filter(|gap| gap.epoch == state.key.epoch);
        let in_gaps = |gap: &&GapRow| {
            let missing = state.durable.missing(gap.first..gap.first.saturating_add(gap.count));
            gap.count.saturating_sub(missing.into_iter().map(|r| r.end - r.start).sum())
        };
        state.durable.count().saturating_sub(of_it.map(in_gaps).sum())
    };
    Some(StreamRow {
        node: node.clone(),
        site: current.site.clone(),
        stream: stream.clone(),
        class: current.class,
        epoch: current.key.epoch,
        epochs: states.len(),
        records: states.iter().map(records).sum(),
        gaps: gaps.len(),
        lost_records: gaps.iter().fold(0, |sum, gap| sum.saturating_add(gap.count)),
        lost_at_least: gaps.iter().any(|gap| gap.at_least),
        lag_records: states.iter().fold(0, |sum, s| sum.saturating_add(s.lag_records)),
        lag_oldest: states.iter().filter(|s| s.lag_records > 0).filter_map(|s| s.lag_oldest).min(),
        heard: states.iter().map(|s| s.heard).max().unwrap_or(current.heard),
    })
}

/// The start of the minute of a time.
pub(super) fn minute_of(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second().div_euclid(60) * 60).unwrap_or(time)
}

/// Cuts counts that are more than `limit` before the minute that would be torn, and returns that minute.
/// Fails if there is but one.
pub(super) fn cut_at_minute(counts: &mut Vec<Count>, limit: usize) -> Result<Option<Timestamp>, ()> {
    counts.sort_by(|a, b| (a.minute, &a.site).cmp(&(b.minute, &b.site)));
    let Some(torn) = counts.get(limit).map(|count| count.minute) else { return Ok(None) };
    counts.retain(|count| count.minute < torn);
    if counts.is_empty() { Err(()) } else { Ok(Some(torn)) }
}

/// The schemas.
pub(super) fn define(book: &mut Book) {
    let (text, number, time) = (
        || json!({"type": "string"}),
        |about: &str| json!({"type": "integer", "description": about}),
        |about: &str| json!({"type": "string", "format": "date-time", "description": about}),
    );
    let stream = json!({"type": "object", "properties": {
        "node": text(), "site": text(), "stream": text(),
        "class": {"type": "string", "enum": ["scans", "events", "metrics", "logs"]},
        "epoch": number("The life of the node's outbox that takes records now"),
        "epochs": number("Lives that the hub knows"),
        "records": number("Records that the hub took; older ones may have left the sink since"),
        "gaps": number("Gaps"),
        "lostRecords": number("Records in gaps"),
        "lostAtLeast": {"type": "boolean", "description": "Whether more may be lost than that"},
        "lagRecords": number("Records that the node still held when it was heard last"),
        "lagOldest": {"type": ["string", "null"], "format": "date-time", "description": "When it took the oldest of them"},
        "heard": time("When the hub heard of it last"),
    }});
    let count = json!({"type": "object", "properties": {
        "site": text(), "stream": text(),
        "minute": time("Start of the minute, by the nodes' clocks"),
        "records": number("How many"), "bytes": number("Bytes of them"),
    }});
    let gap = json!({"type": "object", "properties": {
        "node": text(), "site": text(), "stream": text(),
        "epoch": number("Life of the node's outbox"),
        "first": number("First sequence that is lost"),
        "count": number("How many are known to be lost"),
        "atLeast": {"type": "boolean", "description": "Whether more may be lost"},
        "reason": {"type": "string", "enum": ["shed", "damaged", "hub-lost", "outbox-lost", "other"]},
        "noted": time("When the hub learned of it"),
    }});
    book.define("Stream", stream);
    book.define("Count", count);
    book.define("Gap", gap);
}

#[cfg(test)]
mod tests {
    use proto::stream::{GapReason, StreamKey};

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn state(node: &str, epoch: u64, durable: &[std::ops::Range<u64>], lag: u64, ended: bool) -> StreamState {
        StreamState {
            node: name(node),
            site: name("hz"),
            key: StreamKey { stream: name("scans"), epoch: Epoch(epoch) },
            class: Class::Scans,
            durable: durable.iter().cloned().collect(),
            reported_next: 0,
            lag_records: lag,
            lag_oldest: (lag > 0).then(|| at(100 + epoch.cast_signed())),
            heard: at(1000 + epoch.cast_signed()),
            ended,
        }
    }

    fn gap(node: &str, epoch: u64, first: u64, count: u64) -> GapRow {
        let (node, site, stream, epoch, noted) = (name(node), name("hz"), name("scans"), Epoch(epoch), at(9));
        GapRow { node, site, stream, epoch, first, count, at_least: false, reason: GapReason::Shed, noted }
    }

    #[test]
    fn a_row_sums_up_all_epochs_and_takes_gaps_out() {
        let states = vec![
            state("n1", 3, &[0..10, 12..20], 5, false),
            state("n1", 9, std::slice::from_ref(&(0..4)), 0, true), // ended with a clock that ran ahead
            state("n1", 2, &[], 7, false),
            state("n2", 1, &[], 0, false),
        ];
        // Half of the last gap lies beyond what the hub counts as settled.
        let gaps = [gap("n1", 3, 2, 3), gap("n1", 3, 18, 4), gap("n1", 9, 0, 1), gap("n3", 1, 0, 9)];
        let rows = rows(states, &gaps);
        assert_eq!(rows.len(), 2);
        let row = &rows[0];
        assert_eq!((row.epoch, row.epochs, row.records), (Epoch(3), 3, 18 - 3 - 2 + 4 - 1));
        assert_eq!((row.gaps, row.lost_records, row.lag_records), (3, 8, 12));
        assert_eq!((row.lag_oldest, row.heard), (Some(at(102)), at(1009)));
        assert_eq!((rows[1].records, rows[1].lag_oldest), (0, None));
    }

    #[test]
    fn counts_are_never_cut_within_a_minute() {
        let count = |minute: i64, site: &str| Count {
            site: name(site),
            stream: name("scans"),
            minute: at(minute * 60),
            records: 1,
            bytes: 1,
        };
        let all = vec![count(1, "a"), count(1, "b"), count(2, "a"), count(2, "b"), count(3, "a")];
        for (limit, left, next) in [(5, 5, None), (4, 4, Some(3)), (3, 2, Some(2)), (2, 2, Some(2))] {
            let mut counts = all.clone();
            let cut = cut_at_minute(&mut counts, limit).unwrap();
            assert_eq!((counts.len(), cut), (left, next.map(|n: i64| at(n * 60))), "{limit}");
        }
        assert_eq!(cut_at_minute(&mut all.clone(), 1), Err(()));
        assert_eq!((minute_of(at(119)), minute_of(at(-1))), (at(60), at(-60)));
    }
}
