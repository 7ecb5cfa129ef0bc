//! The planner of rollouts: a pure function from what is to what to do next.
//!
//! ```text
//! Snapshot (nodes, sites, rollouts, releases) + now --> plan --> steps, and when to look again
//!                                                                  |
//!                                  store <-- drive carries them out
//! ```
//!
//! It keeps nothing: a hub that was restarted plans again from the store and comes to the same.
//!
//! | module | what it decides |
//! |---|---|
//! | [`check`] | whether a rollout can start at all |
//! | [`strategy`] | what a named way of going about it means |
//! | `claims` | which rollout a node belongs to, for each app |
//! | `node` | what a node says of a rollout's target, or why nothing is begun on it |
//! | `waves` | who belongs to a wave |
//! | `gate` | whether a wave has passed, has failed or says nothing |
//! | `metrics` | what workloads tell of themselves, against the rules of the gate |
//! | `budget` | whether one more node may be unavailable |
//! | `window` | whether it is the time of the week, and when it will be |
//! | [`room`] | whether a box has room for an app, and for whom it is kept |
//! | `gpus` | whether a box has GPUs that would do for an app that is to be placed |
//! | `place` | which nodes of a site get an app that not all of them get |
//! | `draft` | which nodes a rollout has, and whether there is anything to do about it |
//! | `advance` | which wave is on |
//! | `begin` | what begins on which node, and why something does not |
//! | `pass` | one rollout, one pass: all of the above in order |
//! | [`Planner`] | which rollouts need no pass, between two plans |
//! | [`trim`] | which rollouts are history that nobody asks for any more |
//! | [`forecast`] | what a rollout would do, before it does anything |
//! | [`drive`] | the loop that follows the store and carries steps out |
//!
//! - A node belongs, for each app, to the newest rollout that names it. One that ended badly keeps only the nodes
//!   it touched.
//! - A node has succeeded when it says itself that the rollout's digest proved healthy.
//! - A node that is not heard from is deferred: no success, no failure, and it holds up nobody. It gets its turn
//!   when it is back, under the same budget and windows, however long the rollout has been over.
//! - What a node got is taken back from it by no one but the end of its rollout, and only if it has not begun.

mod advance;
mod begin;
mod budget;
pub mod check;
mod claims;
mod draft;
pub mod drive;
pub mod forecast;
mod gate;
mod gpus;
mod metrics;
mod node;
mod pass;
mod place;
mod resting;
pub mod room;
pub mod strategy;
#[cfg(test)]
mod tests;
pub mod trim;
mod waves;
mod window;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proto::{
    name::{Name, ReleaseName},
    object::{AssignedApp, Node, Release, Rollout, RolloutStatus, Site},
};

pub use self::resting::Planner;
use self::resting::Rest;

/// What the planner looks at.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Nodes by name.
    pub nodes: BTreeMap<Name, Node>,
    /// Sites by name.
    pub sites: BTreeMap<String, Site>,
    /// Rollouts by name.
    pub rollouts: BTreeMap<String, Rollout>,
    /// Releases by name.
    pub releases: BTreeMap<ReleaseName, Release>,
}

/// One thing to do. Doing it twice is as doing it once.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Give a node the release of an app, or, without one, take the app away.
    SetApp {
        /// The node.
        node: Name,
        /// The app.
        app: Name,
        /// What it should run, and what is asked of it besides.
        assigned: Option<AssignedApp>,
    },
    /// Tell a node to restart, or, without an order, that it need not.
    SetReboot {
        /// The node.
        node: Name,
        /// The rollout that wants it.
        order: Option<String>,
    },
    /// Write down where a rollout stands.
    SetRolloutStatus {
        /// Name of the rollout.
        rollout: String,
        /// Its uid: a later rollout of the same name is another one.
        uid: String,
        /// Where it stands.
        status: Box<RolloutStatus>,
    },
    /// Start a rollout that takes another one back.
    Start(Box<Rollout>),
}

/// What follows from a snapshot.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// What to do, in this order.
    pub steps: Vec<Step>,
    /// When something will follow from the time alone.
    pub wake: Option<Timestamp>,
}

impl Plan {
    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

/// What to do next. The same snapshot and time give the same plan.
#[must_use]
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Plan {
    plan_due(snapshot, now, &budget::unavailable(snapshot), |_| true).plan
}

/// A plan of apps that are due.
struct Due {
    plan: Plan,
    /// Those of them that rest.
    rests: BTreeMap<Name, Rest>,
    /// Whether it makes a node unavailable.
    disturbs: bool,
    /// Whether it tells a node to have an app, or not to, or chose nodes.
    gives: bool,
}

/// What to do next about apps that are due.
fn plan_due(snapshot: &Snapshot, now: Timestamp, unavailable: &BTreeSet<Name>, is_due: impl Fn(&Name) -> bool) -> Due {
    let mut oldest_first: Vec<&Rollout> =
        snapshot.rollouts.values().filter(|rollout| is_due(&rollout.spec.app)).collect();
    oldest_first.sort_by(|a, b| age(a).cmp(&age(b)));
    let mut picks = place::Picks::new(snapshot);
    let mut drafts: Vec<draft::Draft<'_>> =
        oldest_first.into_iter().map(|rollout| draft::Draft::new(rollout, snapshot, now, &mut picks)).collect();
    // Who starts with which nodes comes first, so that it is known whose a node is before anything is judged.
    let claims = claims::Claims::new(&drafts, snapshot);
    // Those with a budget come last: what the others begin counts in it.
    drafts.sort_by_key(|draft| draft.rollout.spec.budget.is_some());
    let mut busy = budget::Busy::new(unavailable);
    let (mut plan, mut statuses, mut rests) = (Plan::default(), vec![], BTreeMap::new());
    let (mut let_go, mut places) = (vec![], false);
    for mut draft in drafts {
        let (mut own, lets_go) = (Plan::default(), let_go.len());
        let asks = match draft.is_live() {
            true => pass::pass(&mut draft, &claims, &mut busy, &mut own, &mut let_go),
            false => pass::Asks::default(),
        };
        let app = &draft.rollout.spec.app;
        let draft_places = draft.rollout.spec.placement.is_some();
        let written = draft.into_step();
        places |= draft_places && written.is_some();
        let rest = Rest { wake: own.wake, asks };
        let is_resting = own.steps.is_empty() && written.is_none() && let_go.len() == lets_go;
        resting::settle(&mut rests, app, is_resting.then_some(rest));
        own.wake.into_iter().for_each(|wake| plan.wake_at(wake));
        plan.steps.append(&mut own.steps);
        statuses.extend(written);
    }
    plan.steps = [let_go, plan.steps, statuses].concat();
    let rests = rests.into_iter().filter_map(|(app, rest)| Some((app, rest?))).collect();
    let gives = places || plan.steps.iter().any(|step| matches!(step, Step::SetApp { .. }));
    Due { plan, rests, disturbs: busy.disturbs(), gives }
}

/// Orders rollouts: a later one is newer.
fn age(rollout: &Rollout) -> (Option<Timestamp>, &str) {
    (rollout.metadata.creation_timestamp, rollout.name())
}
