//! What begins on which node, and the one reason why it does not.

use std::{collections::BTreeMap, sync::Arc};

use proto::{
    name::Name,
    object::{
        AppOrder, AssignedApp, MetricsOrder, Node, RolloutPhase, UpdatePhase, feature,
        rollout::{WavePhase, Window, reason},
    },
    units::Span,
};

use super::{
    budget::{Groups, Spoken},
    node::{self, State, Target, Told},
    pass::{Pass, knows_orders, later},
    room, waves, window,
};

/// Why something does not begin: a word for programs, and a sentence for people.
pub(super) type Hindrance = (&'static str, Arc<str>);

/// A node that has not proved anything yet.
struct Undecided<'a> {
    name: &'a Name,
    node: &'a Node,
    wave: Option<u32>,
    /// By this rollout.
    told: Option<Told<'a>>,
    is_staged: bool,
}

impl<'a> Pass<'_, 'a> {
    /// Whether a node fetches before it may apply: it can, and applying may have to wait.
    pub fn holds_first(&self, node: &Node) -> bool {
        let spec = self.spec();
        let may_wait = spec.budget.is_some() || !spec.windows.apply.is_empty();
        may_wait && knows_orders(node) && self.target.is_release()
    }

    /// Begins what may begin, and says of whatever may not why. With `still` nothing may.
    pub fn begin(&mut self, still: Option<Hindrance>) {
        let last = self.draft.status.waves.len().saturating_sub(1);
        let over = self.draft.status.phase == RolloutPhase::Succeeded;
        // Who joined when the last wave had begun belongs to it.
        let late = self.draft.status.waves.get(last).is_some_and(|wave| wave.started_at.is_some());
        let undecided = self.draft.members().filter(|(_, _, entry)| {
            !entry.is_decided() && entry.phase != UpdatePhase::Deferred && entry.reason != reason::SUPERSEDED
        });
        let undecided: Vec<Undecided<'a>> = undecided
            .map(|(name, node, entry)| Undecided {
                name,
                node,
                wave: entry.wave,
                told: self.told(node, entry),
                is_staged: entry.phase == UpdatePhase::Staged,
            })
            .collect();
        let later = self.waits_for_wave();
        for undecided in undecided {
            let (name, mut wave) = (undecided.name, undecided.wave.map(|wave| wave as usize));
            if wave.is_none() && (late || over) {
                wave = Some(last);
                let number = u32::try_from(last).ok();
                if let Some(entry) = self.draft.status.to_mut().nodes.get_mut(name) {
                    entry.wave = number;
                }
            }
            let Some(wave) = wave else {
                self.draft.set(name, &later);
                continue;
            };
            self.begin_node(&undecided, wave, still.as_ref());
        }
    }

    fn waits_for_wave(&self) -> State<'static> {
        let next = self.draft.status.waves.iter().find(|wave| wave.phase != WavePhase::Passed);
        match next {
            Some(wave) if wave.phase == WavePhase::AwaitingApproval => {
                State::waits(reason::APPROVAL, format!("wave {} awaits approval: {}", wave.name, wave.message))
            }
            Some(wave) => State::waits(reason::WAVE, format!("its wave comes after wave {}", wave.name)),
            None => State::waits(reason::WAVE, ""),
        }
    }

    fn begin_node(&mut self, undecided: &Undecided<'a>, wave: usize, still: Option<&Hindrance>) {
        let Undecided { name, node, told, is_staged, .. } = *undecided;
        match self.busy.spoken(name, &self.spec().app) {
            None => {}
            Some(Spoken::LetGo) if self.target.is_release() => {}
            Some(_) => return, // what it was told before is not so any more
        }
        if told.is_some_and(|told| !told.is_held() || !is_staged) {
            return; // at work, as it says
        }
        if self.target == Target::Reboot && !node::knows(node, feature::REBOOT) {
            let text = "its agent is too old to restart it; upgrade it, or restart the box by hand";
            self.draft.set(name, &State::new(UpdatePhase::Blocked, reason::TOO_OLD, text));
            return;
        }
        let phase = if told.is_some() { UpdatePhase::Staged } else { UpdatePhase::Pending };
        if still.is_none()
            && told.is_none()
            && let Some((word, text)) = self.has_no_room(name, node)
        {
            self.asks_room = true;
            self.draft.set(name, &State::new(UpdatePhase::Blocked, word, &*text));
            return;
        }
        let hindrance = match still {
            Some((word, text)) => Some((*word, text.clone())),
            None if told.is_some() => self.hinders_apply(name, node),
            None => self.hinders_begin(name, node, wave),
        };
        if let Some((word, text)) = hindrance {
            self.draft.set(name, &State::new(phase, word, &*text));
            return;
        }
        let before = node.spec.apps.get(&self.spec().app);
        let hold = told.is_none() && self.holds_first(node);
        let max_deferral_s = self.spec().max_deferral.get().as_secs();
        let order = AppOrder { hold, max_deferral_s, metrics: self.metrics_order(node, wave), ..AppOrder::default() };
        let order = match told {
            Some(Told::App(told)) => AppOrder { hold: false, ..told.order.clone() },
            _ => order,
        };
        let Some(telling) = node::telling(before, &self.target, self.name(), order) else {
            let text = "there is nothing of the app to start again";
            self.draft.set(name, &State::new(UpdatePhase::Blocked, reason::NOT_RUNNING, text));
            return;
        };
        let (kept, now) = (self.to_go_back_to(name, before), self.draft.now);
        let fresh = told.is_none();
        self.tell(name, telling);
        let state = State::new(phase, "", "");
        self.draft.change(name, &state, |entry| {
            if !hold {
                entry.released_at = Some(now);
            }
            if fresh {
                entry.before = kept;
                entry.told = true;
            }
        });
    }

    /// What the gate wants to know of the workload, where anybody still judges it: for as long as a wave soaks, and
    /// one that says nothing is waited for.
    fn metrics_order(&self, node: &Node, wave: usize) -> Option<MetricsOrder> {
        let (spec, status) = (self.spec(), self.draft.status.waves.get(wave)?);
        let is_asked = self.target.is_release() && status.phase != WavePhase::Passed;
        if spec.gate.metrics.is_empty() || !is_asked || !node::knows(node, feature::METRICS) {
            return None;
        }
        let mut samples = BTreeMap::new();
        for rule in &spec.gate.metrics {
            let asked = samples.entry(rule.name.clone()).or_insert(0);
            *asked = rule.min_samples.max(*asked);
        }
        let soak = spec.waves.get(wave).map_or(Span::default(), |wave| wave.soak);
        let for_s = soak.get().saturating_add(spec.gate.inconclusive_after.get()).as_secs();
        Some(MetricsOrder { samples, for_s })
    }

    /// What an abort leaves a node with: what it proved last. What it was told since, and had not proved, nobody
    /// would ever see through.
    fn to_go_back_to(&self, name: &Name, mut before: Option<&'a AssignedApp>) -> Option<AssignedApp> {
        let teller = |told: &AssignedApp| {
            let rollout = self.draft.snapshot.rollouts.get(told.rollout.as_ref()?)?;
            rollout.status.nodes.get(name).filter(|entry| told.order.hold || entry.phase != UpdatePhase::Succeeded)
        };
        while let Some(unproved) = before.and_then(teller) {
            before = unproved.before.as_ref();
        }
        before.cloned()
    }

    /// Why a release cannot be on a node beside what is there.
    fn has_no_room(&self, name: &Name, node: &Node) -> Option<Hindrance> {
        let release = self.release().filter(|_| self.target.is_release())?;
        let kept = room::is_kept_for_others(node, &self.spec().app);
        if kept.is_some() || release.spec.requests.is_none_or(|asks| asks.is_none()) {
            return kept;
        }
        room::fit(node, release, &self.draft.snapshot.releases, &self.busy.given(name)).err()
    }

    /// Why a node does not begin at all yet.
    fn hinders_begin(&mut self, name: &'a Name, node: &'a Node, wave: usize) -> Option<Hindrance> {
        let spec = self.spec();
        if spec.jitter > Span::default() {
            let begun = self.draft.status.waves.get(wave).and_then(|wave| wave.started_at).unwrap_or(self.draft.now);
            let share = waves::chance(self.draft.rollout, name) as f64 / u64::MAX as f64;
            let at = later(begun, Span::from_millis((spec.jitter.get().as_millis() as f64 * share) as u64));
            if self.draft.now < at {
                self.plan.wake_at(at);
                let text = format!("nodes begin spread over {}: its turn is at {at}", spec.jitter);
                return Some((reason::JITTER, text.into()));
            }
        }
        if self.target.is_release()
            && let Some(text) = self.closed(&spec.windows.download, node, "download")
        {
            return Some((reason::DOWNLOAD_WINDOW, text.into()));
        }
        if self.holds_first(node) { None } else { self.hinders_apply(name, node) }
    }

    /// Why a node may not apply yet. Otherwise it has its place in the budget.
    fn hinders_apply(&mut self, name: &'a Name, node: &'a Node) -> Option<Hindrance> {
        let spec = self.spec();
        if let Some(text) = self.closed(&spec.windows.apply, node, "apply") {
            return Some((reason::APPLY_WINDOW, text.into()));
        }
        let budget = spec.budget.as_ref()?;
        let (draft, busy) = (&*self.draft, &*self.busy);
        let groups = self.groups.get_or_insert_with(|| Groups::new(budget, &draft.status.nodes, draft.snapshot, busy));
        groups.take(name, node).err().map(|text| (Groups::REASON, text))
    }

    fn closed(&mut self, windows: &[Window], node: &Node, what: &str) -> Option<String> {
        if windows.is_empty() {
            return None; // before a time zone is looked up for each node
        }
        let site = self.draft.snapshot.sites.get(node.spec.site.as_str());
        let zone = window::zone(site, &self.spec().windows);
        let opens = window::opens(windows, &zone, self.draft.now)?;
        let Some(at) = opens else { return Some(format!("no window to {what} opens within a week")) };
        self.plan.wake_at(at);
        let local = at.to_zoned(zone);
        Some(format!(
            "the window to {what} opens at {} at site {}",
            local.strftime("%Y-%m-%d %H:%M %:z"),
            node.spec.site
        ))
    }
}
