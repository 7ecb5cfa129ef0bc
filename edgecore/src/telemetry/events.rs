//! Stream `events`: what happened on the node, once, whatever the line does. The form of a record is
//! [`proto::stream::event`].
//!
//! ```text
//! board (the report) --changed--> Told: what is news by it? --records--> queue --append--> outbox
//!                                   ^---------- on disk once the records are ----------------'
//! ```
//!
//! The board is the one place where every part of the agent says how it is; [`Told`] is what was told of it.
//! What differs is news, so nobody who acts has to remember to tell, and an agent that was killed before it
//! told does so when it is back. What came and went while nobody looked is not told. If the agent dies after
//! an append and before [`Told`] is on disk, that news is told twice.
//!
//! | reason | when |
//! |---|---|
//! | `AgentStarted`, `ClockStepped` | the agent started; the wall clock moved against the steady one |
//! | `Installing`, `Trial`, `Confirmed`, `Recovered`, `Removed` | an app on its way |
//! | `RolledBack`, `Failed`, `Blocked` | an app's release did not make it, and why |
//! | `Exited`, `Restarted`, `NotReady`, `ReadyAgain` | a workload ended, was started again; its probes |
//! | `CommandRun` | somebody ran a command in a workload: who, and which |
//! | the condition's own, such as `LowDisk`, `OutboxFull` | a condition begins or ends |
//! | `EventsLost` | the outbox took none for so long that some were given up, and how many |

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use jiff::Timestamp;
use proto::{
    digest::Digest,
    durable::{Loaded, Record},
    link::message::Report,
    name::{Name, Version},
    object::{Condition, ConditionStatus, EventType, LastExit, RunState, Running, UpdatePhase, WorkloadStatus},
    stream::event::{EventRecord, SCHEMA},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::Teller;
use crate::driver::STOPPED_ON_REQUEST;

/// Between two looks at the clock.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// A clock that moved by more than this was set.
const STEP: i64 = 2_000;
/// Wait after the outbox refused.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Records that wait for the outbox; more push out the oldest.
const MAX_WAITING: usize = 256;

/// What was told of an app.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ToldApp {
    target: Option<Digest>,
    phase: Option<UpdatePhase>,
    installing: bool,
    confirmed: bool,
    /// The last bad news of this target.
    trouble: Option<String>,
    last_exit: Option<LastExit>,
}

/// What was told. Survives the agent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Told {
    boot_id: String,
    apps: BTreeMap<Name, ToldApp>,
    /// Conditions that are bad, and why.
    conditions: BTreeMap<String, String>,
}

/// What this process saw last of a workload that runs.
#[derive(Debug, Clone)]
struct Seen {
    running: Option<Running>,
    unready: bool,
}

/// Finds out what is news. Pure.
#[derive(Debug, Default)]
pub(super) struct News {
    told: Told,
    seen: BTreeMap<Name, Seen>,
    found: Vec<EventRecord>,
}

impl News {
    pub(super) fn new(told: Told) -> News {
        News { told, ..News::default() }
    }

    /// The agent started.
    pub(super) fn started(&mut self, boot_id: &str, now: Timestamp) {
        let how = if self.told.boot_id == boot_id { "" } else { ", and so was the box" };
        boot_id.clone_into(&mut self.told.boot_id);
        let text = format!("version {} of the agent was started{how}", proto::VERSION);
        self.found.push(event(now, EventType::Normal, "AgentStarted", text));
    }

    /// The clock was set.
    pub(super) fn stepped(&mut self, milliseconds: i64, now: Timestamp) {
        let direction = if milliseconds < 0 { "back" } else { "ahead" };
        let seconds = milliseconds.unsigned_abs() / 1000;
        let text = format!("the clock went {seconds} s {direction}: it was set, or the box slept");
        self.found.push(event(now, EventType::Warning, "ClockStepped", text));
    }

    /// All that is.
    pub(super) fn look(&mut self, report: &Report, now: Timestamp) {
        for condition in &report.conditions {
            self.condition(condition, now);
        }
        for (app, status) in &report.workloads {
            self.app(app, status, now);
            self.workload(app, status.running.as_ref(), now);
        }
        // What was not seen in this life may only not have been opened yet.
        let gone: Vec<Name> = self.seen.keys().filter(|app| !report.workloads.contains_key(*app)).cloned().collect();
        for app in gone {
            self.seen.remove(&app);
            self.told.apps.remove(&app);
            let text = format!("{app}: it was stopped and removed");
            self.found.push(EventRecord { app: Some(app), ..event(now, EventType::Normal, "Removed", text) });
        }
    }

    fn condition(&mut self, condition: &Condition, now: Timestamp) {
        let kind = &condition.r#type;
        let bad = match (kind.as_str(), condition.status) {
            (_, ConditionStatus::Unknown) => return,
            ("Ready", status) => status == ConditionStatus::False,
            (_, status) => status == ConditionStatus::True,
        };
        let before = self.told.conditions.get(kind);
        match (bad, before) {
            (true, Some(reason)) if *reason == condition.reason => {}
            (true, _) => {
                self.told.conditions.insert(kind.clone(), condition.reason.clone());
                let text = format!("{kind}: {}", condition.message);
                self.found.push(event(now, EventType::Warning, &condition.reason, text));
            }
            (false, Some(_)) => {
                self.told.conditions.remove(kind);
                self.found.push(event(now, EventType::Normal, &condition.reason, format!("{kind} is over")));
            }
            (false, None) => {}
        }
    }

    /// An app on its way to what is wanted.
    fn app(&mut self, app: &Name, status: &WorkloadStatus, now: Timestamp) {
        let target = status.target.as_ref();
        let known = self.told.apps.contains_key(app);
        let told = self.told.apps.entry(app.clone()).or_default();
        let digest = target.map(|t| t.digest);
        if told.target != digest {
            *told = ToldApp { target: digest, last_exit: told.last_exit.take(), ..ToldApp::default() };
        }
        let before = told.phase.replace(status.phase);
        let about = Subject { app, version: target.map(|t| &t.version) };
        let found = match status.phase {
            UpdatePhase::Downloading if !told.installing => {
                told.installing = true;
                about.says(now, EventType::Normal, "Installing", "it is being fetched")
            }
            UpdatePhase::Verifying if before != Some(UpdatePhase::Verifying) => {
                about.says(now, EventType::Normal, "Trial", "it runs on trial")
            }
            UpdatePhase::Succeeded if !told.confirmed => {
                (told.confirmed, told.trouble) = (true, None);
                if !known {
                    return; // it ran long before anybody kept books
                }
                about.says(now, EventType::Normal, "Confirmed", "it proved healthy and stays")
            }
            UpdatePhase::Succeeded if told.trouble.take().is_some() => {
                about.says(now, EventType::Normal, "Recovered", "it is as it should be again")
            }
            UpdatePhase::RolledBack | UpdatePhase::Failed | UpdatePhase::Blocked => {
                let text = format!("{} {}", status.reason, status.message);
                if told.trouble.as_ref() == Some(&text) {
                    return;
                }
                let found = about.says(now, EventType::Warning, &status.phase.to_string(), &text);
                told.trouble = Some(text);
                found
            }
            _ => return,
        };
        self.found.push(found);
    }

    /// Its process.
    fn workload(&mut self, app: &Name, running: Option<&Running>, now: Timestamp) {
        let before = self.seen.remove(app);
        let mut seen = Seen { running: running.cloned(), unready: before.as_ref().is_some_and(|b| b.unready) };
        if let Some(running) = running {
            let about = Subject { app, version: Some(&running.release.version) };
            self.exit(&about, running, now);
            let before = before.and_then(|b| b.running).filter(|b| b.release == running.release);
            let again = before.as_ref().is_some_and(|b| running.restarts > b.restarts || b.started_at.is_none());
            if running.started_at.is_some() && running.restarts > 0 && again {
                self.found.push(about.says(now, EventType::Normal, "Restarted", "it was started again"));
            }
            let same = before.filter(|b| b.started_at.is_some() && b.started_at == running.started_at);
            let runs = |r: &Running| r.state == RunState::Running;
            if let Some(before) = same.filter(runs).filter(|_| runs(running)) {
                if before.ready && !running.ready {
                    seen.unready = true;
                    self.found.push(about.says(now, EventType::Warning, "NotReady", "its probes fail"));
                } else if !before.ready && running.ready && seen.unready {
                    seen.unready = false;
                    self.found.push(about.says(now, EventType::Normal, "ReadyAgain", "its probes succeed again"));
                }
            } else {
                seen.unready = false;
            }
        }
        self.seen.insert(app.clone(), seen);
    }

    fn exit(&mut self, about: &Subject<'_>, running: &Running, now: Timestamp) {
        let Some(exit) = running.last_exit.as_ref().filter(|e| e.message != STOPPED_ON_REQUEST) else { return };
        let told = self.told.apps.entry(about.app.clone()).or_default();
        if told.last_exit.as_ref() == Some(exit) {
            return;
        }
        told.last_exit = Some(exit.clone());
        let how = match (exit.code, exit.signal) {
            (_, Some(signal)) => format!("it was killed by signal {signal}"),
            (Some(code), None) => format!("it ended with exit code {code}"),
            (None, None) => "it ended".to_owned(),
        };
        let text = if exit.message.is_empty() { how } else { format!("{how}: {}", exit.message) };
        let r#type = if exit.code == Some(0) { EventType::Normal } else { EventType::Warning };
        self.found.push(about.says(now, r#type, "Exited", &text));
    }

    /// What was found since this was asked last.
    pub(super) fn take(&mut self) -> Vec<EventRecord> {
        std::mem::take(&mut self.found)
    }
}

/// What an event is about.
struct Subject<'a> {
    app: &'a Name,
    version: Option<&'a Version>,
}

impl Subject<'_> {
    fn says(&self, now: Timestamp, r#type: EventType, reason: &str, text: &str) -> EventRecord {
        let version = self.version.map(|v| format!("@{v}")).unwrap_or_default();
        EventRecord {
            app: Some(self.app.clone()),
            version: self.version.cloned(),
            ..event(now, r#type, reason, format!("{}{version}: {text}", self.app))
        }
    }
}

fn event(time: Timestamp, r#type: EventType, reason: &str, message: String) -> EventRecord {
    EventRecord { schema: SCHEMA.into(), time, r#type, reason: reason.into(), message, app: None, version: None }
}

/// Looks, and hands in what is news, until it is dropped. `record` keeps what was told.
/// `said` are events that are told as they are.
pub(crate) async fn run(mut teller: Teller, stream: Name, record: Record, mut said: mpsc::Receiver<EventRecord>) {
    let kept = load(&record);
    let mut on_disk = kept.clone();
    let mut news = News::new(kept);
    news.started(&teller.facts.boot_id(), teller.env.wall.now());
    let mut waiting: VecDeque<EventRecord> = VecDeque::new();
    let mut lost = 0_usize;
    let mut clock = (teller.env.wall.now(), Instant::now());
    let mut changed = true;
    loop {
        let now = teller.env.wall.now();
        let step = step(clock, now);
        clock = (now, Instant::now());
        if step.abs() > STEP {
            news.stepped(step, now);
        }
        // What woke it up counts as seen by now.
        if std::mem::take(&mut changed) || teller.board.has_changed() {
            news.look(&teller.board.borrow_and_update(), now);
        }
        waiting.extend(news.take());
        waiting.extend(std::iter::from_fn(|| said.try_recv().ok()));
        lost += waiting.len().saturating_sub(MAX_WAITING);
        waiting.drain(..waiting.len().saturating_sub(MAX_WAITING));
        if !waiting.is_empty() {
            let given_up = (lost > 0).then(|| {
                let text = format!("the outbox took no events, and {lost} of them were given up");
                event(now, EventType::Warning, "EventsLost", text)
            });
            let records = given_up.iter().chain(&waiting).map(|e| serde_json::to_vec(e).unwrap_or_default().into());
            match teller.outbox.append(&stream, records.collect()).await {
                Ok(_) => {
                    waiting.clear();
                    lost = 0;
                }
                Err(error) => tracing::debug!(%error, waiting = waiting.len(), "events wait"),
            }
        }
        if waiting.is_empty() && news.told != on_disk {
            let content = serde_json::to_vec(&news.told).unwrap_or_default(); // text keys only: cannot fail
            let place = record.clone();
            match teller.env.blocking.run(move || place.store(&content)).await {
                Ok(()) => on_disk.clone_from(&news.told),
                Err(error) => tracing::debug!(%error, "what was told could not be noted"),
            }
        }
        if waiting.is_empty() {
            // All cancel safe: nothing is held.
            changed = tokio::select! {
                biased;
                looked = timeout(LOOK_EVERY, teller.board.changed()) => looked.is_ok(),
                Some(event) = said.recv() => {
                    waiting.push_back(event);
                    false
                }
            };
        } else {
            sleep(TRY_AGAIN).await; // whatever changes meanwhile is seen then
        }
    }
}

/// By how much the wall clock went further than the steady one, in milliseconds.
fn step(before: (Timestamp, Instant), now: Timestamp) -> i64 {
    let steady = i64::try_from(before.1.elapsed().as_millis()).unwrap_or(i64::MAX);
    now.as_millisecond().saturating_sub(before.0.as_millisecond()).saturating_sub(steady)
}

/// What was told; what cannot be read was not, and is told again.
fn load(record: &Record) -> Told {
    match record.load() {
        Ok(Loaded::Good(content) | Loaded::Fallback(content)) => serde_json::from_slice(&content).unwrap_or_default(),
        Ok(Loaded::Absent | Loaded::Lost) => Told::default(),
        Err(error) => {
            tracing::warn!(%error, "what was told as events cannot be read: some is told again");
            Told::default()
        }
    }
}

#[cfg(test)]
mod tests;
