//! What to do next about an order to restart: a pure function of what is kept and what is seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proto::{
    link::message::OrderedApp,
    name::Name,
    object::{RunState, UpdatePhase, WorkloadStatus},
};
use serde::{Deserialize, Serialize};

use super::listed;

/// A box that is not down so long after the command does not go down.
pub(super) const DOWN_WITHIN: Duration = Duration::from_secs(300);
/// What was ready before has so long to be ready again.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(600);
/// A box that restarted because it was told to stays up at least so long, whatever it is told: a hub that errs does
/// not keep it down.
pub(super) const UP_AT_LEAST: Duration = Duration::from_secs(120);
pub(super) const GOES_DOWN: &str = "it goes down";

/// The order that was carried out last, as it is on disk. Newer versions may add to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Kept {
    /// What the hub wrote.
    pub order: String,
    /// The boot in which it was begun.
    pub boot_id: String,
    /// Apps that were ready then.
    pub ready: BTreeSet<Name>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Outcome {
    Succeeded,
    Failed(String),
}

/// What is known.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub wanted: Option<&'a str>,
    /// The apps that are wanted here.
    pub assigned: &'a BTreeMap<Name, OrderedApp>,
    /// Whether none of them is to run.
    pub drained: bool,
    /// Why `kept` may be too old to tell whether the order was carried out.
    pub doubt: Option<&'a str>,
    pub kept: Option<&'a Kept>,
    /// This boot.
    pub boot_id: &'a str,
    /// Since when this agent runs.
    pub up: Duration,
    /// Since when the command has run, if this agent ran it.
    pub asked: Option<Duration>,
    pub workloads: &'a BTreeMap<Name, WorkloadStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, until there is another order.
    Rest,
    /// Nothing, until something changes or time has passed; where it stands meanwhile.
    Wait { phase: UpdatePhase, message: String, until: Option<Duration> },
    /// Keep this, and go down.
    Begin(Kept),
    /// Keep this: it is over.
    Conclude(Kept),
}

pub(super) fn next(view: &View<'_>) -> Step {
    let Some(order) = view.wanted else { return Step::Rest };
    match view.kept.filter(|kept| kept.order == order) {
        Some(kept) if kept.outcome.is_some() => Step::Rest,
        Some(kept) if kept.boot_id == view.boot_id => goes_down(view, kept),
        Some(kept) => comes_up(view, kept),
        None => begins(view, order),
    }
}

fn begins(view: &View<'_>, order: &str) -> Step {
    let pending = |message: String, until| Step::Wait { phase: UpdatePhase::Pending, message, until };
    if let Some(doubt) = view.doubt {
        let message = format!("nobody knows whether it was carried out, so it is not: {doubt}; start another one");
        return Step::Conclude(Kept {
            order: order.to_owned(),
            boot_id: view.boot_id.to_owned(),
            ready: BTreeSet::new(),
            outcome: Some(Outcome::Failed(message)),
        });
    }
    if !view.assigned.keys().all(|app| view.workloads.contains_key(app)) {
        return pending("how its apps are is not known yet".into(), None);
    }
    let on_trial = |w: &&WorkloadStatus| matches!(w.phase, UpdatePhase::Applying | UpdatePhase::Verifying);
    if let Some((app, _)) = view.workloads.iter().find(|(_, said)| on_trial(said)) {
        return pending(format!("an update of {app} is to be decided first"), None);
    }
    let restarted = view.kept.is_some_and(|kept| kept.boot_id != view.boot_id);
    if let Some(left) = UP_AT_LEAST.checked_sub(view.up).filter(|left| restarted && !left.is_zero()) {
        let text = format!("it has just restarted on order, and stays up for {} s", UP_AT_LEAST.as_secs());
        return pending(text, Some(left));
    }
    let ready = view.workloads.iter().filter(|(_, said)| is_ready(said)).map(|(app, _)| app.clone()).collect();
    Step::Begin(Kept { order: order.to_owned(), boot_id: view.boot_id.to_owned(), ready, outcome: None })
}

fn goes_down(view: &View<'_>, kept: &Kept) -> Step {
    match DOWN_WITHIN.checked_sub(view.asked.unwrap_or(view.up)) {
        Some(left) if !left.is_zero() => {
            Step::Wait { phase: UpdatePhase::Applying, message: GOES_DOWN.into(), until: Some(left) }
        }
        _ => failed(kept, format!("it was still up {} s after it was to go down", DOWN_WITHIN.as_secs())),
    }
}

fn comes_up(view: &View<'_>, kept: &Kept) -> Step {
    let back = |app: &&Name| view.workloads.get(*app).is_some_and(is_ready);
    let wanted = |app: &&Name| view.assigned.contains_key(*app) && !view.drained;
    let missing: BTreeSet<Name> = kept.ready.iter().filter(wanted).filter(|app| !back(app)).cloned().collect();
    if missing.is_empty() {
        return Step::Conclude(Kept { outcome: Some(Outcome::Succeeded), ..kept.clone() });
    }
    match READY_WITHIN.checked_sub(view.up) {
        Some(left) if !left.is_zero() => Step::Wait {
            phase: UpdatePhase::Verifying,
            message: format!("it is up again, and waits for {}", listed(&missing)),
            until: Some(left),
        },
        _ => failed(
            kept,
            format!("{} was ready before and is not {} s after it", listed(&missing), READY_WITHIN.as_secs()),
        ),
    }
}

fn failed(kept: &Kept, message: String) -> Step {
    Step::Conclude(Kept { outcome: Some(Outcome::Failed(message)), ..kept.clone() })
}

fn is_ready(said: &WorkloadStatus) -> bool {
    said.running.as_ref().is_some_and(|running| running.state == RunState::Running && running.ready)
}
