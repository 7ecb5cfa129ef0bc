//! What producers were promised, kept outside of hub and agents, and compared with what the sink holds.
//!
//! Invariant I2: every record that an agent acknowledged is in the sink exactly once, in order of its
//! stream, or stands in a counted gap; and nothing is there that no producer sent.
//!
//! ```text
//! producer --hand_in, acknowledged--> Ledger     what was promised
//! sink --------------read-----------> Audit      what is there: reads on from where it stood
//! ```
//!
//! A text is made from its node, stream and number and can be made again, so neither keeps texts: promises
//! are runs of numbers, and what was seen are ranges. A run of millions of records takes kilobytes.

use std::collections::BTreeMap;

use cloudcore::streams::sink::{Cursor, GapRow, Query, Row, Sink, SinkError, StreamState};
use proto::{
    digest::Digest,
    name::Name,
    stream::{
        Epoch,
        ranges::{Range, Ranges},
    },
};
use serde::{Deserialize, Serialize};

/// Records a page while reading the sink back.
const PAGE: usize = 5_000;
/// Most gaps of one look.
const MAX_GAPS: usize = 100_000;

/// A stream of a node.
type Lane = (Name, Name);

/// Numbers that an agent gave consecutive places.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Promise {
    number: u64,
    count: u64,
    epoch: Epoch,
    sequence: u64,
}

/// What was handed in on a lane, and which of it was acknowledged.
#[derive(Debug, Default)]
struct Promises {
    handed_in: u64,
    acknowledged: Vec<Promise>,
    /// Promises before this one may be contradicted: an older outbox was put back after them.
    forgotten: usize,
}

impl Promises {
    fn of(&self, number: u64) -> Option<(Epoch, u64)> {
        let at = self.acknowledged.partition_point(|p| p.number + p.count <= number);
        let promise = self.acknowledged.get(at).filter(|p| p.number <= number)?;
        Some((promise.epoch, promise.sequence + (number - promise.number)))
    }
}

/// The producers' own books.
#[derive(Debug, Default)]
pub struct Ledger {
    lanes: BTreeMap<Lane, Promises>,
    /// The first promise that contradicts an earlier one.
    problem: Option<String>,
}

/// How a look at the sink came out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Records that were acknowledged.
    pub acknowledged: u64,
    /// Of these, records in the sink.
    pub stored: u64,
    /// Of these, records that stand in a counted gap.
    pub in_gaps: u64,
    /// Of these, neither. Must become 0.
    pub missing: u64,
    /// Of these, records whose outbox is gone, and whose epoch the hub forgot when it was restored: nobody is left
    /// who could know of them.
    #[serde(default)]
    pub unknowable: u64,
    /// Records in the sink that were handed in and never acknowledged: allowed.
    pub unacknowledged: u64,
}

/// Why a comparison has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Discrepancy {
    /// The sink could not be read now: this says nothing about the records.
    #[error("the sink cannot be read: {0}")]
    Unread(#[from] SinkError),
    /// A record is there twice, out of order, at another place than was said, or nobody sent it.
    #[error("{0}")]
    Wrong(String),
}

impl Ledger {
    /// Records that were handed in so far, by everybody.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.lanes.values().map(|lane| lane.handed_in).sum()
    }

    /// Whether nothing was handed in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Records that a node handed in for a stream so far: the number of the next.
    #[must_use]
    pub fn handed_in_by(&self, node: &Name, stream: &Name) -> u64 {
        self.lanes.get(&(node.clone(), stream.clone())).map_or(0, |lane| lane.handed_in)
    }

    /// Whether anything was handed in for a stream.
    #[must_use]
    pub fn knows(&self, stream: &Name) -> bool {
        self.lanes.keys().any(|(_, known)| known == stream)
    }

    /// The next `count` records of a producer are handed in: the number of the first, and their texts.
    pub fn hand_in(&mut self, node: &Name, stream: &Name, count: usize) -> (u64, Vec<String>) {
        let lane = self.lanes.entry((node.clone(), stream.clone())).or_default();
        let first = lane.handed_in;
        lane.handed_in += count as u64;
        (first, (first..lane.handed_in).map(|number| text(node, stream, number)).collect())
    }

    /// Where the record with this number stands, if it was acknowledged.
    #[must_use]
    pub fn place(&self, node: &Name, stream: &Name, number: u64) -> Option<(Epoch, u64)> {
        self.lanes.get(&(node.clone(), stream.clone()))?.of(number)
    }

    /// An older outbox was put back on a node: it knows nothing of what it gave since, and gives it again.
    pub fn outbox_put_back(&mut self, node: &Name) {
        for (_, lane) in self.lanes.iter_mut().filter(|((of, _), _)| of == node) {
            lane.forgotten = lane.acknowledged.len();
        }
    }

    /// Records from `number` on were acknowledged, with these sequences.
    pub fn acknowledged(&mut self, node: &Name, stream: &Name, number: u64, epoch: Epoch, range: Range) {
        let Some(lane) = self.lanes.get_mut(&(node.clone(), stream.clone())) else { return };
        let count = range.end.saturating_sub(range.start);
        let before = lane.acknowledged.iter().skip(lane.forgotten).rev().find(|p| p.epoch == epoch);
        if let Some(before) = before.filter(|p| range.start < p.sequence + p.count) {
            self.problem.get_or_insert_with(|| {
                format!(
                    "{node} gave sequence {} of {stream}/{epoch} to record {number}, after it had given {} to {}",
                    range.start,
                    before.sequence + before.count - 1,
                    before.number + before.count - 1
                )
            });
        }
        match lane.acknowledged.get_mut(lane.forgotten..).and_then(<[Promise]>::last_mut) {
            Some(last)
                if last.epoch == epoch
                    && last.number + last.count == number
                    && last.sequence + last.count == range.start =>
            {
                last.count += count;
            }
            _ => lane.acknowledged.push(Promise { number, count, epoch, sequence: range.start }),
        }
    }

    /// The first promise of an agent that contradicts one of its earlier promises.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// The first sequence of an epoch that cannot have been given yet; absent for a lane that no producer feeds.
    #[must_use]
    pub fn limit(&self, node: &Name, stream: &Name, epoch: Epoch) -> Option<u64> {
        let lane = self.lanes.get(&(node.clone(), stream.clone()))?;
        // What was handed in and not acknowledged may have been taken all the same.
        let last = lane.acknowledged.iter().rev().find(|p| p.epoch == epoch);
        Some(last.map_or(lane.handed_in, |p| p.sequence + lane.handed_in - p.number))
    }

    /// Compares with all that is in the sink.
    ///
    /// # Errors
    /// A record that is there twice, out of order, at another place than was said, or that nobody sent; or
    /// a sink that cannot be read.
    pub async fn compare(&self, sink: &dyn Sink) -> Result<Outcome, Discrepancy> {
        let mut audit = Audit::default();
        audit.read(self, sink).await?;
        Ok(audit.outcome(self))
    }
}

/// The record with this number of a producer. The digest keeps records from being compressed away.
fn text(node: &Name, stream: &Name, number: u64) -> String {
    let filler = Digest::of(format!("{node}/{stream}/{number}").as_bytes());
    format!("{{\"from\":\"{node}\",\"stream\":\"{stream}\",\"number\":{number},\"filler\":\"{filler}\"}}")
}

/// The number that a text claims to have.
fn number_in(bytes: &[u8]) -> Option<u64> {
    let (_, rest) = std::str::from_utf8(bytes).ok()?.split_once("\"number\":")?;
    rest.split_once(',')?.0.parse().ok()
}

/// What was seen of a lane.
#[derive(Debug, Default)]
struct Stored {
    numbers: Ranges,
    /// Sequences by epoch.
    places: BTreeMap<Epoch, Ranges>,
}

/// What a sink was seen to hold. Each reading goes on where the last one ended.
#[derive(Debug, Default)]
pub struct Audit {
    read_to: BTreeMap<Name, Cursor>,
    lanes: BTreeMap<Lane, Stored>,
    gaps: Vec<GapRow>,
}

impl Audit {
    /// Reads what is new in the sink.
    ///
    /// # Errors
    /// As [`Ledger::compare`].
    pub async fn read(&mut self, ledger: &Ledger, sink: &dyn Sink) -> Result<(), Discrepancy> {
        if let Some(problem) = ledger.problem() {
            return Err(Discrepancy::Wrong(problem.to_owned()));
        }
        let mut streams: Vec<&Name> = ledger.lanes.keys().map(|(_, stream)| stream).collect();
        streams.sort();
        streams.dedup();
        for stream in streams {
            let after = self.read_to.get(stream).copied();
            let mut query =
                Query { stream: stream.clone(), node: None, site: None, from: None, to: None, after, limit: PAGE };
            loop {
                let page = sink.query(&query).await?;
                for row in &page.rows {
                    self.take(ledger, row)?;
                }
                if let Some(end) = page.next.or(page.end) {
                    self.read_to.insert(stream.clone(), end);
                }
                match page.next {
                    Some(next) => query.after = Some(next),
                    None => break,
                }
            }
        }
        self.gaps = sink.gaps(None, None, MAX_GAPS).await?;
        self.gaps.retain(|gap| ledger.lanes.contains_key(&(gap.node.clone(), gap.stream.clone())));
        self.gaps_hold_nothing()
    }

    fn take(&mut self, ledger: &Ledger, row: &Row) -> Result<(), Discrepancy> {
        let wrong = |text: String| Err(Discrepancy::Wrong(text));
        let (node, stream) = (&row.node, &row.stream);
        let number = number_in(&row.bytes).unwrap_or(u64::MAX);
        let handed_in = ledger.handed_in_by(node, stream);
        if number >= handed_in || text(node, stream, number).as_bytes() != row.bytes {
            return wrong(format!(
                "{node} sent {:?} for {stream}, which its producer never handed in",
                String::from_utf8_lossy(&row.bytes)
            ));
        }
        // An older outbox that was put back goes on under a new epoch.
        if let Some(said) = ledger.place(node, stream, number).filter(|said| said.0 == row.epoch)
            && said.1 != row.sequence
        {
            return wrong(format!(
                "record {number} of {node}/{stream} stands at {} of epoch {}, its producer was told {}",
                row.sequence, row.epoch, said.1
            ));
        }
        let stored = self.lanes.entry((node.clone(), stream.clone())).or_default();
        if stored.numbers.contains(&(number..number + 1)) {
            return wrong(format!("record {number} of {node}/{stream} is in the sink twice"));
        }
        let places = stored.places.entry(row.epoch).or_default();
        if places.contains(&(row.sequence..row.sequence + 1)) {
            return wrong(format!("{node}/{stream}/{} {} is in the sink twice", row.epoch, row.sequence));
        }
        stored.numbers.insert(number..number + 1);
        places.insert(row.sequence..row.sequence + 1);
        Ok(())
    }

    /// A record is there or is lost, never both.
    fn gaps_hold_nothing(&self) -> Result<(), Discrepancy> {
        for gap in &self.gaps {
            let lane = self.lanes.get(&(gap.node.clone(), gap.stream.clone()));
            let Some(places) = lane.and_then(|stored| stored.places.get(&gap.epoch)) else { continue };
            let range = gap.first..gap.first + gap.count;
            if let Some(both) = places.first_present(range.start).filter(|at| *at < range.end) {
                return Err(Discrepancy::Wrong(format!(
                    "{}/{}/{} {both} is in the sink, and counted as lost in a gap of {} from {}",
                    gap.node, gap.stream, gap.epoch, gap.count, gap.first
                )));
            }
        }
        Ok(())
    }

    /// How promises and what was seen compare.
    #[must_use]
    pub fn outcome(&self, ledger: &Ledger) -> Outcome {
        let (mut outcome, mut seen) = (Outcome::default(), 0);
        let nothing = Stored::default();
        for (lane, promises) in &ledger.lanes {
            let stored = self.lanes.get(lane).unwrap_or(&nothing);
            seen += stored.numbers.count();
            for promise in &promises.acknowledged {
                outcome.acknowledged += promise.count;
                let away = stored.numbers.missing(promise.number..promise.number + promise.count);
                outcome.stored += promise.count - away.iter().map(|range| range.end - range.start).sum::<u64>();
            }
        }
        outcome.missing = self.missing(ledger).iter().map(|(.., count)| count).sum();
        outcome.in_gaps = outcome.acknowledged - outcome.stored - outcome.missing;
        outcome.unacknowledged = seen.saturating_sub(outcome.stored);
        outcome
    }

    /// What is neither stored nor in a gap: node, stream, epoch, and how many.
    #[must_use]
    pub fn missing(&self, ledger: &Ledger) -> Vec<(Name, Name, Epoch, u64)> {
        let nothing = Stored::default();
        let mut missing = vec![];
        for (lane, promises) in &ledger.lanes {
            let stored = self.lanes.get(lane).unwrap_or(&nothing);
            for promise in &promises.acknowledged {
                for range in stored.numbers.missing(promise.number..promise.number + promise.count) {
                    let sequence = |number: u64| promise.sequence + (number - promise.number);
                    let lost = self.lost(lane, promise.epoch, sequence(range.start)..sequence(range.end));
                    let left = range.end - range.start - lost;
                    if left > 0 {
                        missing.push((lane.0.clone(), lane.1.clone(), promise.epoch, left));
                    }
                }
            }
        }
        missing
    }

    /// How many of these sequences stand in gaps.
    fn lost(&self, lane: &Lane, epoch: Epoch, range: Range) -> u64 {
        let mut lost = Ranges::default();
        for gap in self.gaps.iter().filter(|g| (&g.node, &g.stream, g.epoch) == (&lane.0, &lane.1, epoch)) {
            let end = if gap.at_least { range.end } else { gap.first + gap.count };
            lost.insert(gap.first.max(range.start)..end.min(range.end).max(gap.first.max(range.start)));
        }
        lost.count()
    }

    /// What the hub says is durable and is neither in the sink nor in a gap. `states` were taken before the reading.
    #[must_use]
    pub fn not_kept(&self, ledger: &Ledger, states: &[StreamState]) -> Option<String> {
        for state in states {
            let lane = (state.node.clone(), state.key.stream.clone());
            if !ledger.lanes.contains_key(&lane) {
                continue; // no producer of ours feeds it
            }
            let none = Ranges::default();
            let places = self.lanes.get(&lane).and_then(|stored| stored.places.get(&state.key.epoch)).unwrap_or(&none);
            for missing in state.durable.iter().flat_map(|range| places.missing(range)) {
                let count = missing.end - missing.start;
                if self.lost(&lane, state.key.epoch, missing.clone()) < count {
                    return Some(format!(
                        "the hub says that {} to {} of {}/{}/{} are durable, and its sink has neither them nor a gap",
                        missing.start,
                        missing.end - 1,
                        lane.0,
                        lane.1,
                        state.key.epoch
                    ));
                }
            }
        }
        None
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
