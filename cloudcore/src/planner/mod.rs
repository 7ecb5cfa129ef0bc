//! The planner of rollouts: a pure function from what is to what to do next.
//!
//! ```text
//! Snapshot (nodes, rollouts, releases) + now --> plan --> [Step] --> drive carries them out
//! ```
//!
//! It keeps nothing: a hub that was restarted plans again from the store and comes to the same. For now
//! all selected nodes get a release at once; waves, gates and budgets will stand in [`rollout`].
//!
//! - The nodes of a rollout are those that its selector names when it starts.
//! - A node belongs, for each app, to the newest rollout that names it.
//! - A node has succeeded when it says itself that the rollout's digest proved healthy.
//! - A node that is not heard from is deferred: no success, no failure, and it holds up no verdict of
//!   failure. It has its assignment and goes on when it is back.

pub mod drive;
mod rollout;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use proto::{
    name::{Name, ReleaseName},
    object::{AssignedApp, Node, Release, Rollout, RolloutPhase, RolloutSpec, RolloutStatus},
};

/// What the planner looks at.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Nodes by name.
    pub nodes: BTreeMap<Name, Node>,
    /// Rollouts, in any order.
    pub rollouts: Vec<Rollout>,
    /// Releases by name.
    pub releases: BTreeMap<ReleaseName, Release>,
}

/// One thing to do. Doing it twice is as doing it once.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Give a node the release of an app.
    SetApp {
        /// The node.
        node: Name,
        /// The app.
        app: Name,
        /// What it should run.
        assigned: AssignedApp,
    },
    /// Write down where a rollout stands.
    SetRolloutStatus {
        /// Name of the rollout.
        rollout: String,
        /// Its uid: a later rollout of the same name is another one.
        uid: String,
        /// Where it stands.
        status: RolloutStatus,
    },
}

/// Whether a rollout can start at all.
///
/// # Errors
/// Says what is wrong and what to do, for people.
pub fn validate(spec: &RolloutSpec, snapshot: &Snapshot) -> Result<(), String> {
    let Some(release) = spec.release() else { return Ok(()) };
    if !snapshot.releases.contains_key(&release) {
        return Err(format!("there is no release {release}; `crossdock get releases` lists what was published"));
    }
    if !snapshot.nodes.values().any(|node| node.matches(&spec.selector)) {
        let text = spec.selector.to_string();
        if snapshot.nodes.keys().any(|node| node.as_str() == text) {
            return Err(format!("selector {text} asks for a label {text}, which no node has; write name={text}"));
        }
        return Err(format!(
            "selector {} names no node; `crossdock get nodes` lists them with their labels",
            spec.selector
        ));
    }
    Ok(())
}

/// What to do next. The same snapshot and time give the same steps, in the same order.
#[must_use]
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Vec<Step> {
    let mut rollouts: Vec<&Rollout> = snapshot.rollouts.iter().collect();
    rollouts.sort_by_key(|r| age(r));
    // First who starts with which nodes, so that owners are known before anything is judged.
    let started: Vec<(&Rollout, RolloutStatus)> =
        rollouts.iter().map(|r| (*r, rollout::start(r, snapshot, now))).collect();
    let owners = owners(&started);
    let mut steps = vec![];
    for (rollout, status) in &started {
        let next = if status.phase.is_final() || status.phase == RolloutPhase::Paused {
            status.clone()
        } else {
            rollout::assign(rollout, status, snapshot, &owners, &mut steps);
            rollout::judge(rollout, status, snapshot, &owners, now)
        };
        if next != rollout.status {
            let (name, uid) = (rollout.name().to_owned(), rollout.metadata.uid.clone());
            steps.push(Step::SetRolloutStatus { rollout: name, uid, status: next });
        }
    }
    steps
}

/// Orders rollouts: a later one is newer.
fn age(rollout: &Rollout) -> (Option<Timestamp>, String) {
    (rollout.metadata.creation_timestamp, rollout.name().to_owned())
}

/// The newest rollout that names a node, for each app and node.
type Owners = BTreeMap<(Name, Name), String>;

fn owners(oldest_first: &[(&Rollout, RolloutStatus)]) -> Owners {
    let mut owners = Owners::new();
    for (rollout, status) in oldest_first {
        for node in status.nodes.keys() {
            owners.insert((rollout.spec.app.clone(), node.clone()), rollout.name().to_owned());
        }
    }
    owners
}
