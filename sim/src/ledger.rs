//! What producers were promised, kept outside of hub and agents, and compared with what the sink holds.
//!
//! Invariant I2: every record that an agent acknowledged is in the sink exactly once, in order of its
//! stream, or stands in a counted gap; and nothing is there that no producer sent.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use cloudcore::streams::sink::{GapRow, Query, Row, Sink};
use proto::{name::Name, stream::Epoch};

/// Records a page while reading the sink back.
const PAGE: usize = 5_000;
/// Most gaps of one look.
const MAX_GAPS: usize = 100_000;

/// Where an agent said that a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    epoch: Epoch,
    sequence: u64,
}

/// The producers' own books.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Every record that was ever handed in, by its text; those with a place were acknowledged.
    records: BTreeMap<String, (Name, Name, Option<Place>)>,
    order: Vec<String>,
}

/// How a look at the sink came out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Records that were acknowledged.
    pub acknowledged: u64,
    /// Of these, records in the sink.
    pub stored: u64,
    /// Of these, records that stand in a counted gap.
    pub in_gaps: u64,
    /// Of these, neither. Must become 0.
    pub missing: u64,
    /// Records in the sink that were handed in and never acknowledged: allowed.
    pub unacknowledged: u64,
}

impl Ledger {
    /// Records that were handed in so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing was handed in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether anything was handed in for a stream.
    #[must_use]
    pub fn knows(&self, stream: &Name) -> bool {
        self.records.values().any(|(_, known, _)| known == stream)
    }

    /// A record is handed in.
    pub fn handed_in(&mut self, node: &Name, stream: &Name, text: String) {
        self.order.push(text.clone());
        self.records.insert(text, (node.clone(), stream.clone(), None));
    }

    /// Where the `number`th record that was handed in stands, if it was acknowledged.
    #[must_use]
    pub fn place(&self, number: usize) -> Option<(&Name, &Name, Epoch, u64)> {
        let (node, stream, place) = self.records.get(self.order.get(number)?)?;
        place.map(|place| (node, stream, place.epoch, place.sequence))
    }

    /// It was acknowledged.
    pub fn acknowledged(&mut self, text: &str, epoch: Epoch, sequence: u64) {
        if let Some((_, _, place)) = self.records.get_mut(text) {
            *place = Some(Place { epoch, sequence });
        }
    }

    /// Compares with the sink.
    ///
    /// # Errors
    /// A record that is there twice, out of order, at another place than was said, or that nobody sent.
    pub async fn compare(&self, sink: &dyn Sink) -> anyhow::Result<Outcome> {
        let streams: BTreeSet<&Name> = self.records.values().map(|(_, stream, _)| stream).collect();
        let mut seen: BTreeSet<String> = BTreeSet::new();
        let mut outcome = Outcome::default();
        for stream in streams {
            let mut last: BTreeMap<(Name, Epoch), u64> = BTreeMap::new();
            for row in all(sink, stream).await? {
                let text = String::from_utf8(row.bytes.to_vec()).context("a record of nobody")?;
                let known = self.records.get(&text).with_context(|| format!("nobody sent {text:?}"))?;
                ensure!(seen.insert(text.clone()), "{text:?} is in the sink twice");
                ensure!((&known.0, &known.1) == (&row.node, &row.stream), "{text:?} came from {}", row.node);
                let place = Place { epoch: row.epoch, sequence: row.sequence };
                match known.2 {
                    None => outcome.unacknowledged += 1,
                    // An older outbox that was put back goes on under a new epoch.
                    Some(said) => ensure!(
                        said == place || said.epoch != place.epoch,
                        "{text:?} stands at {place:?}, its producer was told {said:?}"
                    ),
                }
                let before = last.insert((row.node.clone(), row.epoch), row.sequence);
                let again = format!("{}/{stream}/{} {}", row.node, row.epoch, row.sequence);
                // Live records go ahead of a backlog: order is that of sequences, and none comes twice.
                ensure!(before != Some(row.sequence), "{again} is in the sink twice");
            }
        }
        let gaps = sink.gaps(None, None, MAX_GAPS).await?;
        for (text, (node, stream, place)) in &self.records {
            let Some(place) = place else { continue };
            outcome.acknowledged += 1;
            if seen.contains(text) {
                outcome.stored += 1;
            } else if gaps.iter().any(|gap| covers(gap, node, stream, *place)) {
                outcome.in_gaps += 1;
            } else {
                outcome.missing += 1;
            }
        }
        Ok(outcome)
    }
}

fn covers(gap: &GapRow, node: &Name, stream: &Name, place: Place) -> bool {
    let inside = gap.first <= place.sequence && (gap.at_least || place.sequence - gap.first < gap.count);
    &gap.node == node && &gap.stream == stream && gap.epoch == place.epoch && inside
}

/// Every record of a stream.
async fn all(sink: &dyn Sink, stream: &Name) -> anyhow::Result<Vec<Row>> {
    let mut rows = vec![];
    let mut query =
        Query { stream: stream.clone(), node: None, site: None, from: None, to: None, after: None, limit: PAGE };
    loop {
        let page = sink.query(&query).await?;
        rows.extend(page.rows);
        match page.next {
            Some(next) => query.after = Some(next),
            None => return Ok(rows),
        }
    }
}
