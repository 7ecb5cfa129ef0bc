//! I3 of rollouts in waves: who may be disturbed, and when.
//!
//! What runs on a box comes from its driver, whom the hub told what from the assignments that it holds. The hub's own
//! account of a rollout is compared with both:
//!
//! - waves begin in order, each after the one before it passed;
//! - a release runs only on boxes that were let go to apply it, in a wave that has begun;
//! - of a group no more boxes are let go than the budget allows, those counted that are down or at work anyway;
//! - while a rollout is paused, has failed or was aborted, nobody else is let go;
//! - a bad release runs on boxes of the first wave alone;
//! - whoever waits does so for a reason that has a name.
//!
//! A hub that came back from a backup has forgotten whom it let go: from then on nothing of this is known.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proto::{
    name::{Name, Version},
    object::{
        NodePhase, Rollout, RolloutNode, RolloutPhase, UpdatePhase,
        rollout::{Budget, WavePhase},
    },
};

use super::{Fleet, Invariant, Violation};
use crate::world::{Observation, Seen};

/// The hub may take so long to heed a wish: what it had decided is still carried out.
const HEEDS: Duration = Duration::from_secs(3);
/// Between two looks so far apart a box may be down and up again.
const CLOSE: Duration = Duration::from_secs(2);
/// A box that can be heard must say within this what it makes of what it was told.
const NAMED: Duration = Duration::from_secs(300);

/// Rollouts, by name, over time.
#[derive(Debug, Default)]
pub(super) struct Waves {
    rollouts: BTreeMap<String, Watched>,
    /// Boxes that were unavailable when looked at last, and when that was. Nothing while the hub is down.
    before: Option<(Duration, BTreeSet<Name>)>,
}

#[derive(Debug, Default)]
struct Watched {
    object: Option<Arc<Rollout>>,
    /// Nodes that were let go.
    let_go: BTreeSet<Name>,
    /// Those of them that were available then, and are not through with it.
    at_work: BTreeSet<Name>,
    /// Since when nobody else may be let go.
    still_since: Option<Duration>,
    /// Since when nodes wait without a name for it.
    unnamed: BTreeMap<Name, Duration>,
}

impl Waves {
    pub(super) fn look(&mut self, fleet: &Fleet, seen: &Observation) -> Result<(), Violation> {
        if !seen.hub_runs {
            self.before = None;
            self.rollouts.values_mut().for_each(|known| {
                known.still_since = None;
                known.unnamed.clear();
            });
            return Ok(());
        }
        let unavailable: BTreeSet<Name> =
            seen.nodes.iter().filter(|(_, node)| is_unavailable(node, None)).map(|(name, _)| name.clone()).collect();
        for now in seen.rollouts.values() {
            let Some(object) = &now.object else { continue };
            let known = self.rollouts.entry(object.name().to_owned()).or_default();
            // What is not written anew is as it was; boxes may have gone on.
            let same = known.object.as_ref().is_some_and(|before| Arc::ptr_eq(before, object));
            let look = Look { fleet, seen, rollout: object, unavailable: &unavailable };
            if !same {
                look.in_order()?;
                look.heeds(known)?;
            }
            look.budget(known, self.before.as_ref())?;
            look.named(known)?;
            known.object = Some(Arc::clone(object));
        }
        self.only_where_let_go(fleet, seen)?;
        self.before = Some((seen.at, unavailable));
        Ok(())
    }

    /// A release runs only where a rollout of it let it.
    fn only_where_let_go(&self, fleet: &Fleet, seen: &Observation) -> Result<(), Violation> {
        for (name, node) in &seen.nodes {
            for (app, now) in node.apps.iter() {
                let Some(version) = &now.running else { continue };
                let mine =
                    |rollout: &&Rollout| rollout.spec.app == *app && rollout.spec.version.as_ref() == Some(version);
                let objects = self.rollouts.values().filter_map(|known| known.object.as_deref());
                let all: Vec<&Rollout> = objects.filter(mine).collect();
                // Whether there may be a rollout of it at all is asked elsewhere.
                if !all.is_empty() && !all.iter().any(|rollout| may_apply(rollout, name)) {
                    let text = format!("{name}: {app}@{version} runs, and no rollout of it let the node go");
                    return Err(Violation::new(Invariant::Blast, seen.at, Some(name), text));
                }
                if let Some(rollout) = all.iter().find(|rollout| beyond_first(fleet, rollout, name, version)) {
                    let text =
                        format!("{name}: {app}@{version} is bad and passed the first wave of {}", rollout.name());
                    return Err(Violation::new(Invariant::Blast, seen.at, Some(name), text));
                }
            }
        }
        Ok(())
    }
}

/// Whether a rollout let a node go, in a wave that has begun.
fn may_apply(rollout: &Rollout, node: &Name) -> bool {
    let Some(entry) = rollout.status.nodes.get(node).filter(|entry| entry.released_at.is_some()) else { return false };
    let wave = entry.wave.and_then(|wave| rollout.status.waves.get(wave as usize));
    wave.is_some_and(|wave| wave.started_at.is_some())
}

/// Whether a release that fails its trials runs beyond the first of several waves, although its gate bears none.
fn beyond_first(fleet: &Fleet, rollout: &Rollout, node: &Name, version: &Version) -> bool {
    let (spec, status) = (&rollout.spec, &rollout.status);
    let strict = spec.gate.max_failures == 0 && spec.gate.max_failure_percent.is_none() && status.resumed == 0;
    let wave = status.nodes.get(node).and_then(|entry| entry.wave);
    spec.waves.len() > 1 && strict && fleet.is_bad(&spec.app, version) && wave.is_some_and(|wave| wave > 0)
}

/// Whether an app of a box is down, or may be at any moment because of what it was told, `but` that of one rollout.
fn is_unavailable(node: &Seen, but: Option<&str>) -> bool {
    let told = node.apps.values().filter_map(|app| app.told.as_ref());
    let at_work = told.filter(|told| told.may_disturb()).any(|told| but.is_none() || told.rollout.as_deref() != but);
    matches!(node.phase, NodePhase::Unknown | NodePhase::NotReady) || at_work
}

/// One rollout at one moment.
struct Look<'a> {
    fleet: &'a Fleet,
    seen: &'a Observation,
    rollout: &'a Rollout,
    unavailable: &'a BTreeSet<Name>,
}

impl Look<'_> {
    fn broken(&self, node: Option<&Name>, message: String) -> Result<(), Violation> {
        let message = format!("rollout {}: {message}", self.rollout.name());
        Err(Violation::new(Invariant::Blast, self.seen.at, node, message))
    }

    fn in_order(&self) -> Result<(), Violation> {
        let waves = &self.rollout.status.waves;
        for (before, wave) in waves.iter().zip(waves.iter().skip(1)) {
            let has_begun = !matches!(wave.phase, WavePhase::Pending | WavePhase::AwaitingApproval);
            if has_begun && before.phase != WavePhase::Passed {
                let text = format!("wave {} is {}, the one before is {}", wave.name, wave.phase, before.phase);
                return self.broken(None, text);
            }
        }
        for (name, entry) in &self.rollout.status.nodes {
            let begun = entry.wave.and_then(|wave| waves.get(wave as usize)).is_some_and(|w| w.started_at.is_some());
            if (entry.told || entry.released_at.is_some()) && !begun {
                return self.broken(Some(name), format!("{name} was told, and its wave has not begun"));
            }
        }
        Ok(())
    }

    fn let_go(&self) -> impl Iterator<Item = &Name> {
        self.rollout.status.nodes.iter().filter(|(_, entry)| entry.released_at.is_some()).map(|(name, _)| name)
    }

    /// Nobody is let go while nothing may begin.
    fn heeds(&self, known: &mut Watched) -> Result<(), Violation> {
        let (status, control) = (&self.rollout.status, &self.rollout.spec.control);
        use RolloutPhase::{Aborted, Failed, Paused, RolledBack, RollingBack};
        let over = matches!(status.phase, Failed | Aborted | RolledBack | RollingBack);
        let gate = status.phase == Paused && status.reason == "GateFailed";
        if !(control.paused || control.aborted || over || gate) {
            known.still_since = None;
            return Ok(());
        }
        let since = *known.still_since.get_or_insert(self.seen.at);
        if self.seen.at < since + HEEDS {
            return Ok(());
        }
        let Some(name) = self.let_go().find(|name| !known.let_go.contains(*name)) else { return Ok(()) };
        let word = if control.aborted {
            "aborted"
        } else if control.paused {
            "paused"
        } else {
            status.phase.as_str()
        };
        let text = format!("{name} was let go although it is {word} for {:?}", self.seen.at.saturating_sub(since));
        self.broken(Some(name), text)
    }

    /// Of no group more are let go than may be unavailable. Who was unavailable anyway may be let go as well.
    fn budget(&self, known: &mut Watched, before: Option<&(Duration, BTreeSet<Name>)>) -> Result<(), Violation> {
        let fresh: Vec<Name> = self.let_go().filter(|name| !known.let_go.contains(*name)).cloned().collect();
        let me = self.rollout.name();
        let still_at_work = |name: &Name| {
            let told = self.seen.nodes.get(name).and_then(|node| node.apps.get(&self.rollout.spec.app)?.told.as_ref());
            told.is_some_and(|told| told.may_disturb() && told.rollout.as_deref() == Some(me))
        };
        known.at_work.retain(|name| still_at_work(name));
        let was_down = |name: &Name| {
            before.is_none_or(|(_, down)| down.contains(name))
                || self.seen.nodes.get(name).is_none_or(|node| is_unavailable(node, Some(me)))
        };
        known.at_work.extend(fresh.iter().filter(|name| still_at_work(name) && !was_down(name)).cloned());
        known.let_go.extend(fresh.iter().cloned());
        let Some(budget) = self.rollout.spec.budget.as_ref().filter(|_| !fresh.is_empty()) else { return Ok(()) };
        let mut groups: BTreeMap<String, (usize, BTreeSet<&Name>)> = BTreeMap::new();
        let close = before.filter(|(at, _)| self.seen.at <= *at + CLOSE).map(|(_, down)| down);
        for name in self.rollout.status.nodes.keys() {
            let Some(node) = self.seen.nodes.get(name).filter(|node| node.phase != NodePhase::Pending) else {
                continue;
            };
            let (size, down) = groups.entry(self.group(budget, name, node)).or_default();
            *size += 1;
            let all_along = close.is_some_and(|before| before.contains(name)) && self.unavailable.contains(name);
            if known.at_work.contains(name) || all_along {
                down.insert(name);
            }
        }
        for (group, (size, down)) in groups {
            let most = budget.max_unavailable.of(size.max(1));
            let mine = fresh.iter().any(|name| known.at_work.contains(name) && down.contains(name));
            if down.len() > most && mine {
                let text =
                    format!("{} of {size} nodes of {group:?} are down or let go, at most {most} may", down.len());
                return self.broken(None, format!("{text}: {down:?}"));
            }
        }
        Ok(())
    }

    fn group(&self, budget: &Budget, name: &Name, node: &Seen) -> String {
        match budget.per.as_str() {
            Budget::SITE => node.site.to_string(),
            Budget::FLEET => String::new(),
            label => self.fleet.label(name, label).unwrap_or_default().to_owned(),
        }
    }

    /// Whoever waits has a reason. A node that was let go is at work, as soon as it says so.
    fn named(&self, known: &mut Watched) -> Result<(), Violation> {
        let over = self.rollout.status.phase.is_final() && self.rollout.status.phase != RolloutPhase::Succeeded;
        let waits = |entry: &RolloutNode| {
            use UpdatePhase::{Blocked, Deferred, Pending, Staged};
            entry.reason.is_empty() && matches!(entry.phase, Pending | Staged | Deferred | Blocked)
        };
        known.unnamed.retain(|name, _| self.rollout.status.nodes.get(name).is_some_and(waits));
        for (name, entry) in &self.rollout.status.nodes {
            let there = self.seen.nodes.get(name).is_some_and(|node| node.ready == Some(true) && node.line_open);
            if over || !there || !waits(entry) {
                known.unnamed.remove(name);
                continue;
            }
            let since = *known.unnamed.entry(name.clone()).or_insert(self.seen.at);
            if self.seen.at > since + NAMED {
                let text = format!("{name} is {} for {NAMED:?} and nobody says why", entry.phase);
                return self.broken(Some(name), text);
            }
        }
        Ok(())
    }

    /// Who was told by a rollout that was aborted, and is not through with it. For when all is over.
    fn half_way(&self) -> Option<&'_ Name> {
        let told = |name: &&Name| {
            let apps = self.seen.nodes.get(*name).map(|node| &node.apps);
            let told = apps.and_then(|apps| apps.get(&self.rollout.spec.app)?.told.as_ref());
            told.is_some_and(|told| told.rollout.as_deref() == Some(self.rollout.name()) && !told.settled)
        };
        self.rollout.status.nodes.keys().find(told)
    }
}

/// Whom a rollout that was ended has left half-way; when everything has come to rest nobody may be.
pub(super) fn half_way(fleet: &Fleet, seen: &Observation) -> Option<String> {
    let none = BTreeSet::new();
    seen.rollouts.values().filter_map(|now| now.object.as_deref()).find_map(|rollout| {
        let ended = matches!(rollout.status.phase, RolloutPhase::Aborted | RolloutPhase::RolledBack);
        let look = Look { fleet, seen, rollout, unavailable: &none };
        let name = look.half_way().filter(|_| ended)?;
        Some(format!("rollout {} is {}, and {name} is half-way", rollout.name(), rollout.status.phase))
    })
}
