//! What became of a run, small enough to keep: JSON for programs, and all that a report is drawn from.
//!
//! A [`Recorder`] is shown every look and keeps what changed. However long a run is, its record is bounded: curves
//! are thinned to [`curve::MAX_POINTS`] that keep their maxima, and of faults, marks and changes of a track the first
//! ones are kept and the rest is counted. A box has a track for itself and one for each app; a full one is some
//! 300 KB of JSON, one of a day with a dozen troubles some 2 KB; a run of a hundred boxes with lines that flap 400 KB.

mod changes;
pub mod curve;

use std::{collections::BTreeMap, time::Duration};

use proto::{
    name::{Name, Version},
    object::{NodePhase, RolloutPhase, UpdatePhase},
};
use serde::{Deserialize, Serialize};

pub use self::changes::{Changes, Rest, Span};
use self::curve::Curve;
use crate::{
    fault::{Fault, Target},
    ledger::Outcome,
    oracle::{Violation, millis},
    plan::{Action, Plan},
    world::{AppSeen, Observation, Seen},
};

/// Rises when a reader of the version before could not read a record.
pub const FORMAT: u32 = 2;
/// Faults kept of a run, and marks; the rest is counted.
pub const MAX_BREAKS: usize = 1_000;
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
    /// The command that asked for the run, where it was one that can be given again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Asked>,
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
    /// Faults in the order in which they began, the first [`MAX_BREAKS`].
    pub breaks: Vec<Break>,
    /// Faults that began after those, by kind.
    #[serde(default)]
    pub breaks_not_kept: BTreeMap<String, u64>,
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
    /// Marks after those.
    #[serde(default)]
    pub marks_not_kept: u64,
}

/// What somebody typed for a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Asked {
    /// `sim run`.
    Run {
        /// The name or the file, as it was typed.
        scenario: String,
        /// `--nodes`.
        nodes: Option<u32>,
    },
    /// `sim replay`.
    Replay {
        /// `--minutes`.
        minutes: Option<u64>,
    },
}

impl Record {
    /// The boxes that a fault struck; none when it was the hub.
    pub fn struck_by<'a>(&'a self, fault: &'a Break) -> impl Iterator<Item = &'a Name> {
        let struck = |(name, track): &(&'a Name, &'a Track)| match &fault.whom {
            Target::All => true,
            Target::Hub => false,
            Target::Site(site) => *site == track.site,
            Target::Node(node) => node == *name,
        };
        self.nodes.iter().filter(struck).map(|(name, _)| name)
    }

    /// Faults that began, kept or not.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.breaks.len() as u64 + self.breaks_not_kept.values().sum::<u64>()
    }

    /// Changes of all tracks that were not kept.
    #[must_use]
    pub fn changes_not_kept(&self) -> u64 {
        let boxes = self
            .nodes
            .values()
            .map(|track| track.state.not_kept() + track.apps.values().map(Changes::not_kept).sum::<u64>());
        let rollouts = self.rollouts.values().map(Changes::not_kept);
        self.hub.not_kept() + boxes.chain(rollouts).sum::<u64>()
    }
}

/// A fault that began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Break {
    /// The word for it.
    pub kind: String,
    /// All of it, in words.
    pub what: String,
    /// Whom it struck.
    pub whom: Target,
    /// Whether it is of the kind that is over as soon as it has struck.
    pub at_once: bool,
    /// When it began, in milliseconds since the run began.
    pub begin_ms: u64,
    /// When it was over, or the end of the run; absent when it was over in the moment in which it began.
    pub end_ms: Option<u64>,
    /// Whether it was over before the run was.
    pub healed: bool,
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
    /// Faults that began.
    begun: usize,
    /// Kinds of those that are not healed yet, by their number, kept or not.
    open: BTreeMap<usize, &'static str>,
}

impl Recorder {
    /// For a run of a plan.
    #[must_use]
    pub fn new(plan: &Plan, seed: u64) -> Recorder {
        let faults = plan.timeline.iter().filter_map(|entry| match &entry.action {
            Action::Break { fault, .. } => Some((fault.kind().to_owned(), 0)),
            _ => None,
        });
        let record = Record {
            format: FORMAT,
            scenario: plan.name.clone(),
            about: plan.about.clone(),
            seed,
            asked: None,
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
            breaks_not_kept: BTreeMap::new(),
            hub: Changes::default(),
            nodes: BTreeMap::new(),
            backlog: Curve::default(),
            rollouts: BTreeMap::new(),
            marks: vec![],
            marks_not_kept: 0,
        };
        Recorder { record, last: BTreeMap::new(), begun: 0, open: BTreeMap::new() }
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
            for (app, now) in node.apps.iter() {
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
        let number = self.begun;
        self.begun += 1;
        self.open.insert(number, fault.kind());
        if self.record.breaks.len() < MAX_BREAKS {
            self.record.breaks.push(Break {
                kind: fault.kind().to_owned(),
                what: fault.to_string(),
                whom: fault.target().clone(),
                at_once: fault.at_once(),
                begin_ms: millis(at),
                end_ms: None,
                healed: false,
                struck,
            });
        } else {
            *self.record.breaks_not_kept.entry(fault.kind().to_owned()).or_default() += 1;
        }
        *self.record.faults.entry(fault.kind().to_owned()).or_default() += struck;
        number
    }

    /// A fault was healed, and struck so often while it lasted.
    pub fn fault_healed(&mut self, number: usize, at: Duration, struck: u64) {
        let Some(kind) = self.open.remove(&number) else { return };
        *self.record.faults.entry(kind.to_owned()).or_default() += struck;
        if let Some(fault) = self.record.breaks.get_mut(number) {
            fault.healed = true;
            fault.end_ms = (millis(at) > fault.begin_ms).then(|| millis(at));
            fault.struck += struck;
        }
    }

    /// Something else happened.
    pub fn mark(&mut self, at: Duration, text: &str) {
        if self.record.marks.len() < MAX_MARKS {
            self.record.marks.push(Mark { at_ms: millis(at), text: text.to_owned() });
        } else {
            self.record.marks_not_kept += 1;
        }
    }

    /// The run is over, and with it whatever was still broken.
    #[must_use]
    pub fn finish(self, end: End) -> Record {
        let mut record = self.record;
        for fault in record.breaks.iter_mut().filter(|fault| !fault.healed && !fault.at_once) {
            fault.end_ms = (millis(end.at) > fault.begin_ms).then(|| millis(end.at));
        }
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
    use crate::report::sample::plan;

    fn recorder() -> Recorder {
        Recorder::new(&plan(3, ""), 7)
    }

    fn end(s: u64) -> End {
        End { at: Duration::from_secs(s), ..End::default() }
    }

    #[test]
    fn a_run_that_ends_in_the_middle_of_a_fault_shows_it_up_to_the_end() {
        let (mut recorder, s) = (recorder(), Duration::from_secs);
        let cut = Fault::Cut { target: Target::All, way: crate::fault::Way::Both };
        recorder.fault_began(&cut, s(10), 0);
        recorder.fault_began(&Fault::Rebind { target: Target::All }, s(20), 3);
        let number = recorder.fault_began(&Fault::CrashHub, s(30), 1);
        recorder.fault_healed(number, s(40), 0);
        let record = recorder.finish(end(100));
        let shown: Vec<_> = record.breaks.iter().map(|b| (b.at_once, b.healed, b.end_ms)).collect();
        assert_eq!(shown, [(false, false, Some(100_000)), (true, false, None), (false, true, Some(40_000))]);
    }

    #[test]
    fn a_record_is_bounded_however_often_something_breaks() {
        let mut recorder = recorder();
        let rebind = Fault::Rebind { target: Target::All };
        for number in 0..864_000_u64 {
            let at = Duration::from_secs(number / 10);
            let number = recorder.fault_began(&rebind, at, 1);
            recorder.fault_healed(number, at, 2);
            recorder.mark(at, "again");
        }
        let record = recorder.finish(end(86_400));
        assert_eq!(record.breaks.len(), MAX_BREAKS);
        assert_eq!((record.begun(), record.marks_not_kept), (864_000, 863_000));
        assert_eq!(record.faults.get("rebind"), Some(&(3 * 864_000)), "what is not kept counts too");
        let bytes = serde_json::to_string(&record).unwrap().len();
        assert!(bytes < 250_000, "{bytes} bytes");
    }

    #[test]
    fn a_track_is_as_small_as_the_module_says() {
        let track = |times: u64| {
            let mut state = Changes::default();
            for at in 0..times {
                let (connected, carrier, phase) = (at % 2 == 0, "mqtt".to_owned(), NodePhase::Unknown);
                let ready = Some(false);
                state.set(
                    at * 1000,
                    NodeState { powered: true, agent: true, line: true, connected, carrier, ready, phase },
                );
            }
            serde_json::to_string(&state).unwrap().len()
        };
        let (day, full) = (track(12), track(1_000_000));
        assert!(day < 2_000 && full < 300_000, "{day}, {full}");
    }
}
