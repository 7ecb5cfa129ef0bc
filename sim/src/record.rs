//! What became of a run, small enough to keep: JSON for programs, and all that a report is drawn from.
//!
//! A [`Recorder`] is shown every look and keeps what changed; curves are thinned to a bounded number of points
//! that keep their maxima. A run of a hundred boxes over a day is some hundred kilobytes.

pub mod curve;

use std::{collections::BTreeMap, time::Duration};

use proto::{
    name::{Name, Version},
    object::{NodePhase, RolloutPhase, UpdatePhase},
};
use serde::{Deserialize, Serialize};

use self::curve::Curve;
use crate::{
    fault::{Fault, Target},
    ledger::Outcome,
    oracle::{Violation, millis},
    plan::{Action, Plan},
    world::{AppSeen, Observation, Seen},
};

/// Rises when a reader of the version before could not read a record.
pub const FORMAT: u32 = 1;
/// Changes kept of one track; of a line that flaps for days the rest is counted.
const MAX_CHANGES: usize = 2_000;
/// Marks of a run.
const MAX_MARKS: usize = 1_000;

/// What became of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`].
    pub format: u32,
    /// The scenario.
    pub scenario: String,
    /// What it is about.
    pub about: String,
    /// The seed.
    pub seed: u64,
    /// SHA-256 over the trace.
    pub trace_digest: String,
    /// Lines of the trace.
    pub trace_lines: u64,
    /// How long it took in the simulated world, in seconds.
    pub virtual_s: f64,
    /// When healing began, in milliseconds since the run began.
    pub healing_at_ms: u64,
    /// Whether all was as it must be.
    pub ok: bool,
    /// What was not.
    pub error: Option<String>,
    /// The invariant that was broken.
    pub violation: Option<Violation>,
    /// How often faults struck, by kind; 0 for one that was planned and never did.
    pub faults: BTreeMap<String, u64>,
    /// How records stood in the end.
    pub books: Option<Outcome>,
    /// Every fault, in the order in which they began.
    pub breaks: Vec<Break>,
    /// When the hub ran.
    pub hub: Changes<bool>,
    /// Every box.
    pub nodes: BTreeMap<Name, Track>,
    /// Records in all outboxes together.
    pub backlog: Curve,
    /// How rollouts went, by `app@version`.
    pub rollouts: BTreeMap<String, Changes<Progress>>,
    /// What else happened.
    pub marks: Vec<Mark>,
}

/// A fault that began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Break {
    /// The word for it.
    pub kind: String,
    /// All of it, in words.
    pub what: String,
    /// Whether it is the hub that is struck.
    pub hub: bool,
    /// The boxes that are struck.
    pub nodes: Vec<Name>,
    /// When it began, in milliseconds since the run began.
    pub begin_ms: u64,
    /// When it was healed; absent when it was over at once, or never healed.
    pub end_ms: Option<u64>,
    /// How often it struck.
    pub struck: u64,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// When, in milliseconds since the run began.
    pub at_ms: u64,
    /// What.
    pub text: String,
}

/// A value over time: only where it changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes<T> {
    /// When it changed, in milliseconds since the run began, and to what.
    pub changes: Vec<(u64, T)>,
    /// Changes that were not kept: there were too many.
    #[serde(default)]
    pub not_kept: u64,
}

impl<T> Default for Changes<T> {
    fn default() -> Changes<T> {
        Changes { changes: vec![], not_kept: 0 }
    }
}

impl<T: PartialEq> Changes<T> {
    /// The value is this from now on.
    pub fn set(&mut self, at_ms: u64, value: T) {
        let full = self.changes.len() > MAX_CHANGES;
        match self.changes.last_mut() {
            Some((_, last)) if *last == value => {}
            // The last one is always right, whatever was left out before it.
            Some(last) if full || last.0 == at_ms => {
                self.not_kept += u64::from(last.0 != at_ms);
                last.1 = value;
            }
            _ => self.changes.push((at_ms, value)),
        }
    }

    /// Each value with its begin and end, up to `end_ms`.
    pub fn spans(&self, end_ms: u64) -> impl Iterator<Item = (u64, u64, &T)> {
        let ends = self.changes.iter().skip(1).map(|(at, _)| *at).chain([end_ms]);
        self.changes.iter().zip(ends).map(|((from, value), to)| (*from, to.max(*from), value))
    }
}

/// A box over time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Track {
    /// Its site.
    pub site: Name,
    /// How it was.
    pub state: Changes<NodeState>,
    /// How its apps were.
    pub apps: BTreeMap<Name, Changes<AppState>>,
    /// Records in its outbox.
    pub backlog: Curve,
}

/// How a box was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// Whether it was on.
    pub powered: bool,
    /// Whether its agent ran.
    pub agent: bool,
    /// Whether its line was open.
    pub line: bool,
    /// Whether it had a session with the hub.
    pub connected: bool,
    /// How its datagrams travelled.
    pub carrier: String,
    /// What the hub said of it; absent while the hub was down.
    pub ready: Option<bool>,
    /// The same in more detail; the last known while the hub was down.
    pub phase: NodePhase,
}

/// How an app of a box was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppState {
    /// What really ran.
    pub running: Option<Version>,
    /// Whether it was ready.
    pub ready: bool,
    /// How far its update was.
    pub phase: Option<UpdatePhase>,
}

/// How far a rollout was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Where it stood.
    pub phase: RolloutPhase,
    /// Nodes that proved healthy.
    pub done: u32,
    /// Nodes on which it failed.
    pub failed: u32,
    /// All its nodes.
    pub total: u32,
}

/// How a run ended.
#[derive(Debug, Default)]
pub struct End {
    /// When.
    pub at: Duration,
    /// When healing began; the planned duration if it ended before.
    pub healing_at: Option<Duration>,
    /// SHA-256 over the trace.
    pub trace_digest: String,
    /// Its lines.
    pub trace_lines: u64,
    /// How records stood.
    pub books: Option<Outcome>,
    /// The invariant that was broken.
    pub violation: Option<Violation>,
    /// What was not as it must be; nothing: all was.
    pub error: Option<String>,
}

/// Writes a run down while it goes on.
#[derive(Debug)]
pub struct Recorder {
    record: Record,
    /// What every box was when it was looked at last, to see cheaply that nothing changed.
    last: BTreeMap<Name, Seen>,
    plan: Plan,
}

impl Recorder {
    /// For a run of a plan.
    #[must_use]
    pub fn new(plan: &Plan, seed: u64) -> Recorder {
        let faults = plan.timeline.iter().filter_map(|entry| match &entry.action {
            Action::Break { fault, .. } => Some((fault.kind().to_owned(), 0)),
            Action::Rollout { .. } => None,
        });
        let record = Record {
            format: FORMAT,
            scenario: plan.name.clone(),
            about: plan.about.clone(),
            seed,
            trace_digest: String::new(),
            trace_lines: 0,
            virtual_s: 0.0,
            healing_at_ms: millis(plan.duration),
            ok: false,
            error: None,
            violation: None,
            faults: faults.collect(),
            books: None,
            breaks: vec![],
            hub: Changes::default(),
            nodes: BTreeMap::new(),
            backlog: Curve::default(),
            rollouts: BTreeMap::new(),
            marks: vec![],
        };
        Recorder { record, last: BTreeMap::new(), plan: plan.clone() }
    }

    /// What was seen.
    pub fn sample(&mut self, seen: &Observation) {
        let at = millis(seen.at);
        self.record.hub.set(at, seen.hub_runs);
        let mut backlog = 0;
        for (name, node) in &seen.nodes {
            backlog += node.backlog_records;
            let last = self.last.get(name);
            if last == Some(node) {
                continue;
            }
            let track = self.record.nodes.entry(name.clone()).or_insert_with(|| Track {
                site: node.site.clone(),
                state: Changes::default(),
                apps: BTreeMap::new(),
                backlog: Curve::default(),
            });
            track.state.set(at, state_of(node));
            for (app, now) in &node.apps {
                track.apps.entry(app.clone()).or_default().set(at, state_of_app(now));
            }
            if last.is_none_or(|last| last.backlog_records != node.backlog_records) {
                track.backlog.add(at, node.backlog_records);
            }
            self.last.insert(name.clone(), node.clone());
        }
        self.record.backlog.add(at, backlog);
        for (key, now) in &seen.rollouts {
            let progress = Progress { phase: now.phase, done: now.done, failed: now.failed, total: now.total };
            self.record.rollouts.entry(key.clone()).or_default().set(at, progress);
        }
    }

    /// A fault began and struck so often at once. Returns its number.
    pub fn fault_began(&mut self, fault: &Fault, at: Duration, struck: u64) -> usize {
        let nodes = self.plan.nodes_of(fault.target()).cloned().collect();
        self.record.breaks.push(Break {
            kind: fault.kind().to_owned(),
            what: fault.to_string(),
            hub: *fault.target() == Target::Hub,
            nodes,
            begin_ms: millis(at),
            end_ms: None,
            struck,
        });
        *self.record.faults.entry(fault.kind().to_owned()).or_default() += struck;
        self.record.breaks.len() - 1
    }

    /// A fault was healed, and struck so often while it lasted.
    pub fn fault_healed(&mut self, number: usize, at: Duration, struck: u64) {
        if let Some(fault) = self.record.breaks.get_mut(number) {
            fault.end_ms = (millis(at) > fault.begin_ms).then(|| millis(at));
            fault.struck += struck;
            *self.record.faults.entry(fault.kind.clone()).or_default() += struck;
        }
    }

    /// Something else happened.
    pub fn mark(&mut self, at: Duration, text: &str) {
        if self.record.marks.len() < MAX_MARKS {
            self.record.marks.push(Mark { at_ms: millis(at), text: text.to_owned() });
        }
    }

    /// The run is over.
    #[must_use]
    pub fn finish(self, end: End) -> Record {
        let mut record = self.record;
        record.virtual_s = end.at.as_secs_f64();
        record.healing_at_ms = end.healing_at.map_or(record.healing_at_ms, millis);
        record.trace_digest = end.trace_digest;
        record.trace_lines = end.trace_lines;
        record.books = end.books;
        record.error = end.error.or_else(|| end.violation.as_ref().map(ToString::to_string));
        record.violation = end.violation;
        record.ok = record.error.is_none();
        record
    }
}

fn state_of(node: &Seen) -> NodeState {
    NodeState {
        powered: node.powered,
        agent: node.agent_runs,
        line: node.line_open,
        connected: node.connected,
        carrier: node.carrier.to_owned(),
        ready: node.ready,
        phase: node.phase,
    }
}

fn state_of_app(now: &AppSeen) -> AppState {
    AppState { running: now.running.clone(), ready: now.ready, phase: now.phase }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_kept_and_not_too_many() {
        let mut changes = Changes::default();
        for at in 0..10 {
            changes.set(at, at / 5);
        }
        assert_eq!(changes.changes, [(0, 0), (5, 1)]);
        assert_eq!(changes.spans(20).collect::<Vec<_>>(), [(0, 5, &0), (5, 20, &1)]);
        let mut flaps = Changes::default();
        for at in 0..10_000_u64 {
            flaps.set(at, at % 2);
        }
        assert_eq!(flaps.changes.len(), MAX_CHANGES + 1);
        assert_eq!((flaps.changes.last().unwrap().1, flaps.not_kept), (1, 9_999 - MAX_CHANGES as u64));
    }
}
