//! What the hub knows of every stream, in memory, and what an offer makes of it. Pure: the writer
//! carries it out.
//!
//! `durable` here is what the sink has. A commit is prepared on copies ([`Table::prepare`]) and becomes
//! true here only after it was kept ([`Table::kept`]), so that nothing is acknowledged too early.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
};

use jiff::Timestamp;
use proto::{
    name::Name,
    stream::{
        GapReason, MAX_STREAMS, Mark, StreamKey,
        message::{Held, Lag, Lane},
        ranges::{Range, Ranges},
        receipt::{self, Verdict},
    },
    watch,
};

use super::{
    super::sink::{Commit, GapRow, NewBatch, StreamState},
    IngestError, MAX_LANES, MAX_NUMBER, Offer, What,
};

/// Marks and lags of every stream of every node.
#[derive(Debug, Default)]
pub(super) struct Table {
    loaded: bool,
    nodes: BTreeMap<Name, Node>,
    /// Streams with a change that the sink does not have: lags, sites, ends.
    noted: BTreeSet<(Name, StreamKey)>,
    /// How many groups were acknowledged.
    commits: u64,
}

#[derive(Debug, Default)]
struct Node {
    /// The newest session with a lane.
    session: Option<u64>,
    streams: BTreeMap<StreamKey, Entry>,
    changed: watch::Sender<()>,
    lanes: Vec<Weak<()>>,
}

#[derive(Debug)]
struct Entry {
    state: StreamState,
    /// The node does not hold it any more: to be ended.
    ending: bool,
    /// Its outbox went with it, or was an older copy: nobody knows what else stood in it.
    gone: bool,
    /// Rises with every change that is to be written.
    version: u64,
    /// Offers on their way into the sink: it cannot end before they are there.
    waiting: usize,
    /// The commit that something of it was acknowledged with, by lane.
    acked: BTreeMap<Lane, u64>,
}

/// What a group of offers makes of the table, to be written.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    pub(super) commit: Commit,
    /// Whom to tell, once it is kept.
    acks: BTreeSet<(Name, StreamKey, Lane)>,
    /// Which version of what was noted is written.
    versions: BTreeMap<(Name, StreamKey), u64>,
    /// Offers that break the protocol, by their place in the group.
    pub(super) refused: Vec<(usize, String)>,
}

fn check(held: &Held) -> Result<(), IngestError> {
    if held.key.epoch.0 > MAX_NUMBER || held.next > MAX_NUMBER || held.first > held.next {
        let (key, first, next) = (&held.key, held.first, held.next);
        return Err(IngestError::Malformed(format!("{key} cannot hold what is from {first} to before {next}")));
    }
    Ok(())
}

impl Table {
    /// What the sink has; the first time, and after it was not known what it kept.
    pub(super) fn load(&mut self, states: Vec<StreamState>) {
        self.loaded = true;
        // What the sink does not have is not durable.
        for entry in self.nodes.values_mut().flat_map(|n| n.streams.values_mut()) {
            entry.state.durable = Ranges::default();
        }
        for state in states {
            let node = self.nodes.entry(state.node.clone()).or_default();
            match node.streams.get_mut(&state.key) {
                None => {
                    node.streams.insert(state.key.clone(), Entry::of(state));
                }
                Some(entry) => {
                    // Its end was kept. One that was opened again meanwhile stays open, and is noted.
                    if entry.ending && state.ended {
                        (entry.ending, entry.state.ended) = (false, true);
                    }
                    entry.state.reported_next = entry.state.reported_next.max(state.reported_next);
                    entry.state.durable = state.durable;
                }
            }
        }
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.loaded
    }

    pub(super) fn commits(&self) -> u64 {
        self.commits
    }

    pub(super) fn states(&self) -> Vec<StreamState> {
        self.nodes.values().flat_map(|n| n.streams.values()).map(|e| e.state.clone()).collect()
    }

    /// A place for a lane, as long as what is returned lives.
    pub(super) fn lease(&mut self, session: u64, name: &Name) -> Result<Arc<()>, IngestError> {
        let node = self.nodes.entry(name.clone()).or_default();
        node.lanes.retain(|lane| lane.strong_count() > 0);
        if node.lanes.len() >= MAX_LANES && node.session == Some(session) {
            return Err(IngestError::Malformed(format!("the node has {MAX_LANES} lanes already; end one first")));
        }
        let lease = Arc::new(());
        node.lanes.push(Arc::downgrade(&lease));
        Ok(lease)
    }

    /// A lane was opened. What the node does not hold any more is over, with the first lane of a session.
    pub(super) fn open(
        &mut self,
        session: u64,
        name: &Name,
        site: &Name,
        held: &[Held],
        now: Timestamp,
    ) -> Result<Vec<Mark>, IngestError> {
        if held.len() > MAX_STREAMS {
            return Err(IngestError::TooManyStreams(held.len()));
        }
        held.iter().try_for_each(check)?;
        let node = self.nodes.entry(name.clone()).or_default();
        if node.session.is_some_and(|newest| newest > session) {
            return Err(IngestError::Replaced);
        }
        if node.session.replace(session) != Some(session) {
            let named: BTreeSet<&StreamKey> = held.iter().map(|h| &h.key).collect();
            // A stream that goes on in another epoch which the hub knew before left this one whole.
            let goes_on: BTreeSet<Name> =
                node.streams.keys().filter(|key| named.contains(key)).map(|key| key.stream.clone()).collect();
            // What never held anything leaves no trace, unless its outbox is gone: nobody knows what that took.
            node.streams.retain(|key, e| named.contains(key) || !goes_on.contains(&key.stream) || e.leaves_a_trace());
            self.noted.retain(|(of, key)| of != name || node.streams.contains_key(key));
            for (key, entry) in &mut node.streams {
                if !entry.state.ended && !entry.ending && !named.contains(key) {
                    (entry.ending, entry.gone) = (true, entry.gone || !goes_on.contains(&key.stream));
                    entry.version += 1;
                    self.noted.insert((name.clone(), key.clone()));
                }
            }
        }
        held.iter().try_for_each(|held| self.open_one(name, site, held, now))?;
        let node = self.nodes.get(name);
        let known = held.iter().filter_map(|h| node?.streams.get(&h.key).filter(|e| e.state.durable.pieces() > 0));
        Ok(known.map(Entry::mark).collect())
    }

    /// A stream that a node holds.
    pub(super) fn open_one(
        &mut self,
        name: &Name,
        site: &Name,
        held: &Held,
        now: Timestamp,
    ) -> Result<(), IngestError> {
        check(held)?;
        let node = self.nodes.entry(name.clone()).or_default();
        let live = node.streams.values().filter(|e| !e.state.ended && !e.ending).count();
        let known = node.streams.get(&held.key).is_some_and(|e| !e.state.ended && !e.ending);
        if !known && live >= MAX_STREAMS {
            return Err(IngestError::TooManyStreams(live + 1));
        }
        let entry = node.streams.entry(held.key.clone()).or_insert_with(|| {
            Entry::of(StreamState {
                node: name.clone(),
                site: site.clone(),
                key: held.key.clone(),
                class: held.class,
                durable: Ranges::default(),
                reported_next: 0,
                lag_records: 0,
                lag_oldest: None,
                heard: now,
                ended: false,
            })
        });
        let before = entry.state.clone();
        let state = &mut entry.state;
        (state.class, state.ended) = (held.class, false);
        state.site.clone_from(site);
        // An outbox that knows less than we have is an older copy: what the newer one held is gone.
        let older = held.next < end(&state.durable);
        // Within an epoch it only rises: a lane that was opened late says less.
        state.reported_next = state.reported_next.max(held.next).max(end(&state.durable));
        let changed = entry.ending || *state != before;
        state.heard = now;
        entry.ending = false;
        entry.gone |= older;
        if changed {
            entry.version += 1;
            self.noted.insert((name.clone(), held.key.clone()));
        }
        Ok(())
    }

    /// How far streams are behind, as their node says. Returns whether there is something to write.
    pub(super) fn lag(&mut self, name: &Name, lags: &[Lag], now: Timestamp) -> Result<bool, IngestError> {
        if let Some(wild) = lags.iter().find(|l| l.next > MAX_NUMBER || l.records > MAX_NUMBER) {
            return Err(IngestError::Malformed(format!("the lag of {} is beyond {MAX_NUMBER}", wild.key)));
        }
        let mut noted = false;
        let Some(node) = self.nodes.get_mut(name) else { return Ok(false) };
        for lag in lags {
            let Some(entry) = node.streams.get_mut(&lag.key) else { continue };
            entry.state.heard = now;
            let state = &mut entry.state;
            let next = state.reported_next.max(lag.next).max(end(&state.durable));
            let new = (next, lag.records, lag.oldest);
            if (state.reported_next, state.lag_records, state.lag_oldest) != new {
                (state.reported_next, state.lag_records, state.lag_oldest) = new;
                entry.version += 1;
                noted |= self.noted.insert((name.clone(), lag.key.clone()));
            }
        }
        Ok(noted)
    }

    /// Whether an offer of a stream is taken. What was taken is on its way until it is [`Table::done`].
    pub(super) fn take(&mut self, name: &Name, key: &StreamKey) -> bool {
        let entry = self.nodes.get_mut(name).and_then(|n| n.streams.get_mut(key));
        let open = entry.filter(|e| !e.state.ended && !e.ending);
        open.map(|entry| entry.waiting += 1).is_some()
    }

    /// Offers were written, or refused.
    pub(super) fn done(&mut self, group: &[Offer]) {
        for offer in group {
            let entry = self.nodes.get_mut(&offer.node).and_then(|n| n.streams.get_mut(&offer.key));
            if let Some(entry) = entry {
                entry.waiting = entry.waiting.saturating_sub(1);
            }
        }
    }

    /// Told whenever something of a node became durable.
    pub(super) fn follow(&mut self, name: &Name) -> watch::Receiver<()> {
        self.nodes.entry(name.clone()).or_default().changed.subscribe()
    }

    /// The marks of streams that were acknowledged on a lane after commit `seen`, and the newest commit.
    pub(super) fn acked_since(&self, name: &Name, lane: Lane, seen: u64) -> (Vec<Mark>, u64) {
        let streams = self.nodes.get(name).into_iter().flat_map(|n| n.streams.values());
        let new = streams.filter(|e| e.acked.get(&lane).is_some_and(|commit| *commit > seen));
        (new.map(Entry::mark).collect(), self.commits)
    }

    /// Whether there is something to write besides records.
    pub(super) fn has_notes(&self) -> bool {
        !self.noted.is_empty()
    }

    /// What a group of offers makes of the table, and all that was noted. Nothing changes yet.
    pub(super) fn prepare(&self, group: &[Offer], now: Timestamp) -> Prepared {
        let mut prepared = Prepared::default();
        let mut after: BTreeMap<(Name, StreamKey), StreamState> = BTreeMap::new();
        let mut here: BTreeMap<(Name, StreamKey), usize> = BTreeMap::new();
        for (place, offer) in group.iter().enumerate() {
            let id = (offer.node.clone(), offer.key.clone());
            let Some(entry) = self.entry(&id) else { continue };
            *here.entry(id.clone()).or_default() += 1;
            let state = after.entry(id).or_insert_with(|| entry.state.clone());
            match receipt::judge(&state.durable, offer.range()) {
                Verdict::TooManyPieces => {
                    let why = format!(
                        "{} would have more than {} holes; close some before opening others",
                        offer.key,
                        state.durable.pieces()
                    );
                    prepared.refused.push((place, why));
                    continue;
                }
                Verdict::Duplicate => {}
                Verdict::Store(parts) => {
                    parts.into_iter().for_each(|part| keep(&mut prepared.commit, offer, part, now));
                    state.durable.insert(offer.range());
                    state.reported_next = state.reported_next.max(offer.range().end);
                }
            }
            state.heard = now;
            prepared.acks.insert((offer.node.clone(), offer.key.clone(), offer.lane));
        }
        // What is durable already needs no write, unless something was noted of it.
        after.retain(|id, state| self.entry(id).is_some_and(|e| e.state.durable != state.durable));
        for id in &self.noted {
            let Some(entry) = self.entry(id) else { continue };
            // What waits behind this group is not lost: the end comes after it.
            if entry.ending && entry.waiting > here.get(id).copied().unwrap_or(0) {
                continue;
            }
            let state = after.entry(id.clone()).or_insert_with(|| entry.state.clone());
            if entry.ending {
                finish(state, entry.gone, &mut prepared.commit, now);
            }
            prepared.versions.insert(id.clone(), entry.version);
        }
        prepared.commit.states = after.into_values().collect();
        prepared
    }

    fn entry(&self, (name, key): &(Name, StreamKey)) -> Option<&Entry> {
        self.nodes.get(name)?.streams.get(key)
    }

    /// The sink keeps it: acknowledge.
    pub(super) fn kept(&mut self, prepared: &Prepared) {
        self.commits += 1;
        for state in &prepared.commit.states {
            let id = (state.node.clone(), state.key.clone());
            let entry = self.nodes.get_mut(&state.node).and_then(|n| n.streams.get_mut(&state.key));
            let Some(entry) = entry else { continue };
            entry.state.durable.extend(&state.durable);
            entry.state.reported_next = entry.state.reported_next.max(end(&entry.state.durable));
            entry.state.heard = entry.state.heard.max(state.heard);
            // Unless it changed again meanwhile.
            if prepared.versions.get(&id) == Some(&entry.version) {
                if entry.ending {
                    entry.ending = false;
                    entry.state.clone_from(state);
                }
                self.noted.remove(&id);
            }
        }
        let mut told = BTreeSet::new();
        for (name, key, lane) in &prepared.acks {
            let Some(node) = self.nodes.get_mut(name) else { continue };
            if let Some(entry) = node.streams.get_mut(key) {
                entry.acked.insert(*lane, self.commits);
            }
            if told.insert(name) {
                node.changed.send_replace(());
            }
        }
    }
}

impl Entry {
    fn of(state: StreamState) -> Entry {
        Entry { state, ending: false, gone: false, version: 0, waiting: 0, acked: BTreeMap::new() }
    }

    /// Whether it held anything, as far as the hub was told, or may have.
    fn leaves_a_trace(&self) -> bool {
        self.state.reported_next > 0 || self.state.ended || self.waiting > 0 || self.gone
    }

    fn mark(&self) -> Mark {
        Mark { key: self.state.key.clone(), durable: self.state.durable.clone() }
    }
}

/// The sequence after the last one that is durable.
fn end(durable: &Ranges) -> u64 {
    durable.iter().next_back().map_or(0, |r| r.end)
}

/// A part of an offer that is new.
fn keep(commit: &mut Commit, offer: &Offer, part: Range, now: Timestamp) {
    let (node, site, stream) = (offer.node.clone(), offer.site.clone(), offer.key.stream.clone());
    match &offer.what {
        What::Batch { batch, sealed } => {
            let whole = part == offer.range();
            let batch = batch.part(part);
            // A part of a batch is a batch: it can be sealed.
            let sealed = if whole { sealed.clone() } else { batch.seal().unwrap_or_default().into() };
            commit.batches.push(NewBatch { node, site, stream, batch, sealed, received: now });
        }
        What::Gap(gap) => commit.gaps.push(GapRow {
            node,
            site,
            stream,
            epoch: gap.key.epoch,
            first: part.start,
            count: part.end - part.start,
            at_least: false,
            reason: gap.reason,
            noted: now,
        }),
    }
}

/// An epoch is over. What the node said it had and never came is lost, and whatever it took after it said
/// so, if the epoch is `gone` with its outbox. It does not count as durable: should the node find it
/// again, it is taken.
fn finish(state: &mut StreamState, gone: bool, commit: &mut Commit, now: Timestamp) {
    let next = state.reported_next;
    let mut lost = state.durable.missing(0..next);
    if gone && lost.last().is_none_or(|range| range.end < next) {
        lost.push(next..next);
    }
    commit.gaps.extend(lost.into_iter().map(|lost| GapRow {
        node: state.node.clone(),
        site: state.site.clone(),
        stream: state.key.stream.clone(),
        epoch: state.key.epoch,
        first: lost.start,
        count: lost.end - lost.start,
        at_least: gone && lost.end == next,
        reason: GapReason::OutboxLost,
        noted: now,
    }));
    (state.ended, state.lag_records, state.lag_oldest) = (true, 0, None);
}
