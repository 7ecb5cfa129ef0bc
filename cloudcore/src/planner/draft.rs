//! A rollout with the status that a pass makes of it, copied once something changes.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use jiff::Timestamp;
use proto::{
    name::Name,
    object::{
        Node, Rollout, RolloutNode, RolloutPhase, RolloutStatus, UpdatePhase,
        rollout::{WavePhase, WaveStatus, reason},
    },
};

use super::{
    Snapshot, Step,
    begin::Hindrance,
    check, claims,
    node::{State, Target},
    place::{Picks, Placed, place},
    waves,
};

/// A rollout with the status that this pass makes of it.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub rollout: &'a Rollout,
    /// Nodes that came in with this pass.
    pub fresh: BTreeSet<&'a Name>,
    pub snapshot: &'a Snapshot,
    pub now: Timestamp,
    pub status: Cow<'a, RolloutStatus>,
    /// Nodes that are to let go of the app, for others were chosen.
    pub leaving: BTreeSet<&'a Name>,
    live: bool,
}

impl<'a> Draft<'a> {
    /// The rollout as it enters the pass: one that was not looked at yet gets its digest and its nodes, or its
    /// refusal; one that goes on gets those that joined, and loses those that were deleted.
    /// What it chooses comes into `picks`.
    pub fn new(rollout: &'a Rollout, snapshot: &'a Snapshot, now: Timestamp, picks: &mut Picks<'a>) -> Draft<'a> {
        let status = Cow::Borrowed(&rollout.status);
        let (fresh, leaving) = (BTreeSet::new(), BTreeSet::new());
        let mut draft = Draft { rollout, fresh, snapshot, now, status, leaving, live: false };
        if rollout.status.phase == RolloutPhase::Pending {
            draft.start();
        }
        draft.live = draft.goes_on();
        if draft.live && rollout.spec.placement.is_some() && draft.is_open() {
            draft.place(picks);
        } else if draft.live {
            draft.take_in();
        }
        draft
    }

    pub fn status(&self) -> &RolloutStatus {
        &self.status
    }

    /// Whether there may be anything to do about it.
    pub fn is_live(&self) -> bool {
        self.live
    }

    fn goes_on(&self) -> bool {
        match self.status.phase {
            RolloutPhase::Pending | RolloutPhase::Progressing | RolloutPhase::Paused | RolloutPhase::RollingBack => {
                true
            }
            // Who comes back, or joins, still gets it.
            RolloutPhase::Succeeded => {
                let spec = &self.rollout.spec;
                spec.version.is_some() && !claims::is_shadowed(self, self.snapshot)
            }
            // What has not begun is taken back.
            RolloutPhase::Failed | RolloutPhase::Aborted | RolloutPhase::Superseded => {
                let waits = |entry: &RolloutNode| !entry.is_decided() && entry.reason != reason::SUPERSEDED;
                self.status.nodes.values().any(|entry| entry.told && waits(entry))
            }
            RolloutPhase::RolledBack => false,
        }
    }

    fn start(&mut self) {
        let begun = RolloutStatus { started_at: Some(self.now), ..RolloutStatus::default() };
        let spec = &self.rollout.spec;
        if let Err(message) = check::validate(spec, self.snapshot) {
            let finished_at = Some(self.now);
            let refused = RolloutStatus { phase: RolloutPhase::Failed, message, finished_at, ..begun };
            self.status = Cow::Owned(refused);
            return;
        }
        let digest = spec.release().and_then(|release| self.snapshot.releases.get(&release)).map(|r| r.spec.digest);
        let waves = waves::of(&spec.waves);
        let waves = (0..waves.len()).map(|i| WaveStatus { name: spec.wave_name(i), ..WaveStatus::default() }).collect();
        let mut nodes = BTreeMap::new();
        let members = if spec.placement.is_some() { vec![] } else { check::members(spec, self.snapshot) };
        for name in members {
            self.fresh.insert(name);
            nodes.insert(name.clone(), RolloutNode::waiting(UpdatePhase::Pending, "", ""));
        }
        self.status = Cow::Owned(RolloutStatus { phase: RolloutPhase::Progressing, digest, waves, nodes, ..begun });
    }

    /// Whether nodes may still come in.
    fn is_open(&self) -> bool {
        let spec = &self.rollout.spec;
        matches!(self.status.phase, RolloutPhase::Progressing | RolloutPhase::Paused | RolloutPhase::Succeeded)
            && spec.undoes.is_none()
            && spec.version.is_some()
            && !spec.control.aborted
    }

    /// Takes in those that are chosen, and lets go of those that are no longer. Who comes in the place of another at its
    /// site has that one's wave.
    fn place(&mut self, picks: &mut Picks<'a>) {
        let Placed { members, leaving, sites } = place(self.rollout, &self.status, self.snapshot, picks);
        let site_of = |name: &Name| self.snapshot.nodes.get(name).map(|node| &node.spec.site);
        let mut waves: BTreeMap<&Name, Vec<u32>> = BTreeMap::new();
        for (name, entry) in self.status.nodes.iter().filter(|(name, _)| !members.contains(name)) {
            if let (Some(site), Some(wave)) = (site_of(name), entry.wave) {
                waves.entry(site).or_default().push(wave);
            }
        }
        let is_other =
            self.status.nodes.len() != members.len() || !self.status.nodes.keys().all(|n| members.contains(n));
        if is_other {
            let mut nodes = BTreeMap::new();
            for name in &members {
                let known = self.status.nodes.get(*name).cloned();
                nodes.insert(
                    (*name).clone(),
                    known.unwrap_or_else(|| {
                        self.fresh.insert(*name);
                        let wave = site_of(name).and_then(|site| waves.get_mut(site)?.pop());
                        RolloutNode {
                            wave,
                            ..RolloutNode::waiting(UpdatePhase::Pending, reason::WAVE, "it was chosen")
                        }
                    }),
                );
            }
            self.status.to_mut().nodes = nodes;
        }
        if self.status.placement != sites {
            self.status.to_mut().placement = sites;
        }
        self.leaving = leaving;
        picks.take(self.rollout, &self.status, self.snapshot);
    }

    fn take_in(&mut self) {
        let (snapshot, spec) = (self.snapshot, &self.rollout.spec);
        let open = self.is_open() && spec.placement.is_none();
        let mut known = self.status.nodes.keys().peekable();
        let (mut joined, mut gone) = (vec![], false);
        // Both are in the order of names.
        for (name, node) in &snapshot.nodes {
            while known.next_if(|k| *k < name).is_some() {
                gone = true;
            }
            if known.next_if(|k| *k == name).is_none() && open && node.matches(&spec.selector) {
                joined.push(name);
            }
        }
        if gone || known.peek().is_some() {
            self.status.to_mut().nodes.retain(|name, _| snapshot.nodes.contains_key(name));
        }
        for name in joined {
            self.fresh.insert(name);
            let entry = RolloutNode::waiting(UpdatePhase::Pending, reason::WAVE, "it joined later");
            self.status.to_mut().nodes.insert(name.clone(), entry);
        }
    }

    /// What is to be written, if anything changed.
    pub fn into_step(self) -> Option<Step> {
        let Draft { rollout, status, .. } = self;
        let Cow::Owned(status) = status else { return None };
        (status != rollout.status).then(|| Step::SetRolloutStatus {
            rollout: rollout.name().to_owned(),
            uid: rollout.metadata.uid.clone(),
            status: Box::new(status),
        })
    }

    pub fn set(&mut self, name: &Name, state: &State<'_>) {
        if self.status.nodes.get(name).is_some_and(|entry| !state.is_of(entry)) {
            self.change(name, state, |_| {});
        }
    }

    /// Its nodes that are there, with their entries, in the order of names.
    pub fn members(&self) -> impl Iterator<Item = (&'a Name, &'a Node, &RolloutNode)> + use<'a, '_> {
        let mut nodes = self.snapshot.nodes.iter().peekable();
        self.status.nodes.iter().filter_map(move |(name, entry)| {
            while nodes.next_if(|(node, _)| *node < name).is_some() {}
            let (name, node) = nodes.next_if(|(node, _)| *node == name)?;
            Some((name, node, entry))
        })
    }

    /// Sets the state of a node, and more of its entry; its time is that of the last change.
    pub fn change(&mut self, name: &Name, state: &State<'_>, more: impl FnOnce(&mut RolloutNode)) {
        let Some(before) = self.status.nodes.get(name) else { return };
        let mut entry = before.clone();
        if entry.phase != state.phase || entry.reason != state.reason || entry.since.is_none() {
            entry.since = Some(self.now);
        }
        (entry.phase, entry.reason) = (state.phase, state.reason.clone().into_owned());
        entry.message = state.message.clone().into_owned();
        more(&mut entry);
        if entry != *before {
            self.status.to_mut().nodes.insert(name.clone(), entry);
        }
    }

    pub fn target(&self) -> Option<Target> {
        Target::of(&self.rollout.spec, self.status.digest)
    }

    /// Why nothing may begin, if so.
    pub fn holds_still(&self) -> Option<Hindrance> {
        if self.rollout.spec.control.paused {
            let text = format!("the rollout is paused; crossdock rollout resume {}", self.rollout.name());
            return Some((reason::PAUSED, text.into()));
        }
        let failed = self.status.waves.iter().find(|wave| wave.phase == WavePhase::Failed)?;
        Some((reason::PAUSED, format!("wave {} failed", failed.name).into()))
    }
}
