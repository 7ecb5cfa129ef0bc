//! The judge of a run: looks at a world from the outside and says what may not be.
//!
//! ```text
//! Plan --> Fleet (who may run what)
//! World --Observation, every second--> apps      I1, I3, rows 26 and 27, replicas
//!                                  --> rollouts  I3: whom it names and counts
//!                                  --> waves     I3: when, and how many at once
//!       --marks, sink, ledger------> records   I2, I4
//! ```
//!
//! While nothing changes for minutes a look comes every 20 s: instances are numbered, so that a stop and a start
//! in between are seen all the same. I3 is that a rollout touches nobody whom its selector does not name, counts
//! nobody who was not touched, and keeps to its waves and its budget. I4 is the outbox's quota; other bounds have
//! tests of their own.
//!
//! Each part is a plain machine over what it is shown, so that a test can show it a violation. Nothing in here
//! asks hub or agent what they believe where it can be seen what is: what the driver runs, what the sink holds.

mod apps;
mod fleet;
mod records;
mod replicas;
mod rollouts;
#[cfg(test)]
mod tests;
mod waves;

use std::{fmt, time::Duration};

use proto::name::{Name, Version};
use serde::{Deserialize, Serialize};

use self::{apps::Apps, fleet::Fleet, records::Records, rollouts::Rollouts, waves::Waves};
use crate::{
    fault::Fault,
    ledger::Outcome,
    plan::Plan,
    world::{Observation, World},
};

/// What must always hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Invariant {
    /// I1: no byte runs on a node unless its release verified there; nothing goes back but a failed trial.
    Trust,
    /// I2: every acknowledged record is there once, in order, or in a counted gap.
    Count,
    /// I3: a rollout touches nobody else, and of its own nodes no more at once than it may.
    Blast,
    /// I4: no bound is exceeded.
    Bounds,
    /// Workloads are up soon after their agent's start, from local state alone.
    Boot,
    /// An agent that ends or starts does not disturb what runs.
    Undisturbed,
    /// Never more instances of an app than its release says, of one release, and as many as what they tell asks for.
    Replicas,
    /// After healing all that can be reached converges.
    Progress,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Invariant::Trust => "I1 trust",
            Invariant::Count => "I2 count",
            Invariant::Blast => "I3 blast radius",
            Invariant::Bounds => "I4 bounds",
            Invariant::Boot => "boot without a hub",
            Invariant::Undisturbed => "undisturbed workloads",
            Invariant::Replicas => "replicas",
            Invariant::Progress => "progress after healing",
        })
    }
}

/// Something that may not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{invariant} is broken at {:.3} s: {message}", *at_ms as f64 / 1e3)]
pub struct Violation {
    /// Which invariant.
    pub invariant: Invariant,
    /// When it was seen, in milliseconds since the run began.
    pub at_ms: u64,
    /// On which node, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    /// What.
    pub message: String,
}

impl Violation {
    /// At a time since the run began.
    #[must_use]
    pub fn new(invariant: Invariant, at: Duration, node: Option<&Name>, message: impl Into<String>) -> Violation {
        Violation { invariant, at_ms: millis(at), node: node.cloned(), message: message.into() }
    }
}

/// Milliseconds, for whatever is written down.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The judge of one run.
#[derive(Debug)]
pub struct Oracle {
    plan: Plan,
    fleet: Fleet,
    apps: Apps,
    rollouts: Rollouts,
    waves: Waves,
    records: Records,
}

impl Oracle {
    /// For a run of this plan.
    #[must_use]
    pub fn new(plan: &Plan) -> Oracle {
        let fleet = Fleet::new(plan);
        let (apps, rollouts, waves) = (Apps::default(), Rollouts::default(), Waves::default());
        Oracle { plan: plan.clone(), apps, rollouts, waves, records: Records::new(plan), fleet }
    }

    /// A rollout begins. Call it before the hub is told.
    pub fn rollout_began(&mut self, app: &Name, version: &Version) {
        self.fleet.rollout_began(app, version);
    }

    /// A fault begins. Call it before [`World::begin`], which may break and mend in one go.
    pub fn fault_began(&mut self, fault: &Fault) {
        let struck = self.plan.nodes_of(fault.target()).cloned().collect::<Vec<_>>();
        self.apps.fault_began(fault, &struck);
        self.records.fault_began(fault, &struck);
        self.rollouts.fault_began(fault);
    }

    /// A fault was healed.
    pub fn fault_healed(&mut self, fault: &Fault) {
        self.records.fault_healed(fault);
        self.apps.fault_healed(fault);
    }

    /// Looks at what is now.
    ///
    /// # Errors
    /// The first violation.
    pub async fn look(&mut self, world: &World, seen: &Observation) -> Result<(), Violation> {
        if let Err(error) = world.check() {
            return Err(Violation::new(Invariant::Trust, seen.at, None, error.to_string()));
        }
        self.watch(seen)?;
        if let Ok(hub) = world.hub() {
            let streams = hub.streams();
            if self.records.wants_marks(seen) {
                self.records.marks(seen.at, &streams.live(), world.ledger())?;
            }
            if self.records.wants_audit(seen.at) {
                self.records.audit(seen.at, world.ledger(), streams.sink().as_ref(), || streams.live()).await?;
            }
        }
        Ok(())
    }

    /// Everything of a look that needs no world.
    fn watch(&mut self, seen: &Observation) -> Result<(), Violation> {
        self.apps.look(&self.fleet, seen)?;
        self.rollouts.look(&self.fleet, seen)?;
        // A hub that came back from a backup has forgotten whom it let go.
        if !self.rollouts.hub_restored {
            self.waves.look(&self.fleet, seen)?;
        }
        self.records.bounds(seen)
    }

    /// What is missing until all has converged; nothing when it has.
    ///
    /// # Errors
    /// When what is there can never converge: a record twice, a gap that was not to be.
    pub async fn converged(&mut self, world: &World, seen: &Observation) -> anyhow::Result<Option<String>> {
        if let Some(missing) = self.missing(seen) {
            return Ok(Some(missing));
        }
        let hub = world.hub()?;
        let (sink, states) = (hub.streams().sink(), hub.streams().live());
        Ok(self.records.settled(seen.at, world.ledger(), sink.as_ref(), &states).await?)
    }

    /// What is missing of boxes, apps and rollouts.
    fn missing(&self, seen: &Observation) -> Option<String> {
        self.apps
            .missing(&self.fleet, seen)
            .or_else(|| self.rollouts.missing(&self.fleet, seen))
            .or_else(|| waves::half_way(&self.fleet, seen))
    }

    /// How records stood when they were compared last.
    #[must_use]
    pub fn books(&self) -> Option<Outcome> {
        self.records.books()
    }
}
