//! What the hub says of rollouts, compared with what was seen on boxes: I3, and what they must come to.

use std::collections::{BTreeMap, BTreeSet};

use proto::{
    name::{Name, Version},
    object::Rollout,
};

use super::{Fleet, Invariant, Violation, fleet::Planned};
use crate::{fault::Fault, world::Observation};

/// Boxes by app and version.
type Touched = BTreeMap<(Name, Version), BTreeSet<Name>>;

/// Rollouts, over time.
#[derive(Debug, Default)]
pub(super) struct Rollouts {
    /// Boxes on which the release of a rollout was seen to run, and on which a start of it was tried.
    ran: Touched,
    tried: Touched,
    /// The hub lost what it knew since a backup: it cannot be asked for it any more.
    pub(super) hub_restored: bool,
}

impl Rollouts {
    pub(super) fn fault_began(&mut self, fault: &Fault) {
        self.hub_restored |= matches!(fault, Fault::RestoreHub { .. });
    }

    pub(super) fn look(&mut self, fleet: &Fleet, seen: &Observation) -> Result<(), Violation> {
        for (name, node) in &seen.nodes {
            for (app, now) in node.apps.iter() {
                for (version, of) in [(&now.running, &mut self.ran), (&now.tried, &mut self.tried)] {
                    let Some(version) = version else { continue };
                    let nodes = of.entry((app.clone(), version.clone())).or_default();
                    if !nodes.contains(name) {
                        nodes.insert(name.clone());
                    }
                }
            }
        }
        for planned in &fleet.rollouts {
            self.counts(planned, seen)?;
            self.touched(planned, seen)?;
        }
        Ok(())
    }

    /// A release runs on no more boxes than the scenario bears.
    fn touched(&self, planned: &Planned, seen: &Observation) -> Result<(), Violation> {
        let Some(most) = planned.touches else { return Ok(()) };
        let release = (planned.app.clone(), planned.version.clone());
        let of = |touched: &Touched| touched.get(&release).cloned().unwrap_or_default();
        let ran = &of(&self.ran) | &of(&self.tried);
        if ran.len() <= most as usize {
            return Ok(());
        }
        let names: Vec<&str> = ran.iter().map(|name| name.as_str()).collect();
        let text =
            format!("{} was started on {} boxes, at most {most} may: {}", planned.key, ran.len(), names.join(", "));
        Err(Violation::new(Invariant::Blast, seen.at, None, text))
    }

    /// Nobody counts who was not touched, and a box that is only away has not failed.
    fn counts(&self, planned: &Planned, seen: &Observation) -> Result<(), Violation> {
        let Some(now) = seen.rollouts.get(&planned.key) else { return Ok(()) };
        let release = (planned.app.clone(), planned.version.clone());
        let count = |of: &Touched| of.get(&release).map_or(0, BTreeSet::len);
        let broken = |message: String| Err(Violation::new(Invariant::Blast, seen.at, None, message));
        if now.total as usize > planned.nodes.len() {
            return broken(format!(
                "rollout {} counts {} nodes, its selector names {}",
                planned.key,
                now.total,
                planned.nodes.len()
            ));
        }
        if now.failed as usize > count(&self.tried) {
            return broken(format!(
                "rollout {} counts {} nodes as failed, on {} its release was tried",
                planned.key,
                now.failed,
                count(&self.tried)
            ));
        }
        if now.done as usize > count(&self.ran) {
            return broken(format!(
                "rollout {} counts {} nodes as healthy, on {} its release was seen to run",
                planned.key,
                now.done,
                count(&self.ran)
            ));
        }
        Ok(())
    }

    /// What is missing until every rollout stands where it must.
    pub(super) fn missing(&self, fleet: &Fleet, seen: &Observation) -> Option<String> {
        for planned in &fleet.rollouts {
            let Some(now) = seen.rollouts.get(&planned.key) else {
                if self.hub_restored {
                    continue;
                }
                return Some(format!("rollout {} has not begun", planned.key));
            };
            let followed = fleet.rollouts.iter().any(|other| {
                other.key != planned.key
                    && other.app == planned.app
                    && other.began > planned.began
                    && other.nodes.iter().any(|node| planned.nodes.contains(node))
            });
            let as_it_must = match planned.expected {
                Some(phase) => now.phase == phase,
                // It came to an end before the next took its nodes, or it did not.
                None if followed && !planned.how.in_waves() => now.phase.is_final(),
                None => planned.may_end_as(now.phase, now.object.as_deref()),
            };
            if !as_it_must {
                let expected = planned.expected.map_or_else(
                    || if planned.bad { "Failed".to_owned() } else { "Succeeded".to_owned() },
                    |phase| phase.to_string(),
                );
                return Some(format!(
                    "rollout {} is {}, {} of {} nodes healthy, {} failed; expected {expected}{}",
                    planned.key,
                    now.phase,
                    now.done,
                    now.total,
                    now.failed,
                    now.object.as_deref().map_or_else(String::new, who_waits)
                ));
            }
        }
        None
    }
}

/// Nodes that a rollout waits for, as the hub says it; a few of them.
fn who_waits(rollout: &Rollout) -> String {
    let mut text = format!("; it says: {}", rollout.status.message);
    for (name, node) in rollout.status.nodes.iter().filter(|(_, node)| !node.is_decided()).take(3) {
        let words = [node.reason.as_str(), node.message.as_str()].map(|word| format!(" {word}")).concat();
        text.push_str(&format!("; {name}: {}{}", node.phase, words.trim_end()));
    }
    text
}
