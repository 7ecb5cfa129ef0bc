//! One rollout, one pass: what its nodes say, what its waves prove, what is to begin.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use jiff::{SignedDuration, Timestamp};
use proto::{
    name::Name,
    object::{
        AppOrder, AssignedApp, Node, NodePhase, Rollout, RolloutNode, RolloutPhase, RolloutSpec, RolloutStatus,
        UpdatePhase, feature,
        rollout::{Gate, OnFailure, Wave, WavePhase, WaveStatus, reason},
    },
    units::Span,
};

use super::{
    Plan, Snapshot, Step,
    budget::{Busy, Groups},
    check,
    claims::{self, Claims},
    gate::{self, Verdict},
    node::{self, State, Target},
    waves, window,
};

/// A rollout with the status that this pass makes of it.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub rollout: &'a Rollout,
    /// Nodes that came in with this pass.
    pub fresh: BTreeSet<&'a Name>,
    snapshot: &'a Snapshot,
    now: Timestamp,
    status: Cow<'a, RolloutStatus>,
    live: bool,
}

impl<'a> Draft<'a> {
    /// The rollout as it enters the pass: one that was not looked at yet gets its digest and its nodes, or its
    /// refusal; one that goes on gets those that joined, and loses those that were deleted.
    pub fn new(rollout: &'a Rollout, snapshot: &'a Snapshot, now: Timestamp) -> Draft<'a> {
        let status = Cow::Borrowed(&rollout.status);
        let mut draft = Draft { rollout, fresh: BTreeSet::new(), snapshot, now, status, live: false };
        if rollout.status.phase == RolloutPhase::Pending {
            draft.start();
        }
        draft.live = draft.goes_on();
        if draft.live {
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
                self.status.nodes.values().any(|entry| entry.told && !entry.is_decided())
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
        for name in check::members(spec, self.snapshot) {
            self.fresh.insert(name);
            nodes.insert(name.clone(), RolloutNode::waiting(UpdatePhase::Pending, "", ""));
        }
        self.status = Cow::Owned(RolloutStatus { phase: RolloutPhase::Progressing, digest, waves, nodes, ..begun });
    }

    fn take_in(&mut self) {
        let snapshot = self.snapshot;
        if self.status.nodes.keys().any(|name| !snapshot.nodes.contains_key(name)) {
            self.status.to_mut().nodes.retain(|name, _| snapshot.nodes.contains_key(name));
        }
        let open =
            matches!(self.status.phase, RolloutPhase::Progressing | RolloutPhase::Paused | RolloutPhase::Succeeded);
        if !open || self.rollout.spec.undoes.is_some() || self.rollout.spec.version.is_none() {
            return;
        }
        let selector = &self.rollout.spec.selector;
        let mut known = self.status.nodes.keys().peekable();
        let mut joined = vec![];
        // Both are in the order of names.
        for (name, node) in &snapshot.nodes {
            while known.next_if(|k| *k < name).is_some() {}
            if known.peek() != Some(&name) && node.matches(selector) {
                joined.push(name);
            }
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

    fn set(&mut self, name: &Name, state: &State<'_>) {
        self.change(name, state, |_| {});
    }

    /// Sets the state of a node, and more of its entry; its time is that of the last change.
    fn change(&mut self, name: &Name, state: &State<'_>, more: impl FnOnce(&mut RolloutNode)) {
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

    fn target(&self) -> Option<Target> {
        match &self.rollout.spec.version {
            Some(version) => Some(Target::Release(version.clone(), self.status.digest?)),
            None => Some(Target::Restart),
        }
    }
}

/// One pass of one rollout.
pub(super) fn pass<'a>(draft: &mut Draft<'a>, claims: &Claims<'a>, busy: &mut Busy<'a>, plan: &mut Plan) {
    let Some(target) = draft.target() else { return };
    let phase = draft.status.phase;
    let undo =
        draft.snapshot.rollouts.values().find(|other| other.spec.undoes.as_deref() == Some(draft.rollout.name()));
    if let Some(undo) = undo {
        return follow_undo(draft, undo);
    }
    if phase == RolloutPhase::RollingBack {
        return; // its undoing is created in this round
    }
    if draft.rollout.spec.control.aborted && !phase.is_final() {
        let status = draft.status.to_mut();
        (status.phase, status.reason) = (RolloutPhase::Aborted, String::new());
        status.finished_at = Some(draft.now);
    }
    let mut pass = Pass { draft, target, claims, busy, plan, groups: None };
    pass.observe();
    match pass.draft.status.phase {
        RolloutPhase::Aborted => pass.take_back(reason::ABORTED, "the rollout was aborted before it had its turn"),
        RolloutPhase::Failed => pass.take_back(reason::ENDED, "the rollout failed before it had its turn"),
        RolloutPhase::Superseded => {}
        RolloutPhase::Succeeded => {
            pass.begin(None);
            let message = summary(&pass.draft.status.counts());
            if pass.draft.status.message != message {
                pass.draft.status.to_mut().message = message;
            }
        }
        _ => {
            pass.answer_retries();
            pass.advance();
            let still = pass.draft.holds_still();
            pass.begin(still);
            pass.conclude();
        }
    }
}

/// Another rollout takes this one back: it ends with that one.
fn follow_undo(draft: &mut Draft<'_>, undo: &Rollout) {
    let (name, message) = (undo.name(), &undo.status.message);
    let (phase, message) = match undo.status.phase {
        RolloutPhase::Succeeded | RolloutPhase::Superseded => {
            (RolloutPhase::RolledBack, format!("by {name}: {message}"))
        }
        phase if phase.is_final() => (RolloutPhase::Failed, format!("its undoing by {name} is {phase}: {message}")),
        _ => (RolloutPhase::RollingBack, format!("by {name}: {message}")),
    };
    let ends = phase.is_final().then_some(draft.now);
    if draft.status.phase != phase || draft.status.message != message {
        let status = draft.status.to_mut();
        (status.phase, status.message, status.finished_at) = (phase, message, ends);
    }
}

/// The name of the rollout that takes another one back.
fn undo_name(rollout: &Rollout) -> String {
    format!("{}.undo", rollout.name())
}

struct Pass<'p, 'a> {
    draft: &'p mut Draft<'a>,
    target: Target,
    claims: &'p Claims<'a>,
    busy: &'p mut Busy<'a>,
    plan: &'p mut Plan,
    groups: Option<Groups<'a>>,
}

impl<'a> Pass<'_, 'a> {
    fn spec(&self) -> &'a RolloutSpec {
        &self.draft.rollout.spec
    }

    fn name(&self) -> &'a str {
        self.draft.rollout.name()
    }

    /// What the node was told by this rollout, if it was.
    fn told(&self, node: &'a Node) -> Option<&'a AssignedApp> {
        node::told(node, &self.spec().app, &self.target, self.name())
    }

    /// Takes down what every node says.
    fn observe(&mut self) {
        let app = &self.spec().app;
        let soaking: Vec<bool> = self.draft.status.waves.iter().map(|wave| wave.phase != WavePhase::Passed).collect();
        let names: Vec<&'a Name> = {
            let snapshot = self.draft.snapshot;
            self.draft.status.nodes.keys().filter_map(|n| snapshot.nodes.get_key_value(n)).map(|(n, _)| n).collect()
        };
        for name in names {
            let (Some(node), Some(entry)) = (self.draft.snapshot.nodes.get(name), self.draft.status.nodes.get(name))
            else {
                continue;
            };
            if self.spec().version.is_some()
                && let Some(newer) = self.claims.taken_by(app, name, self.name())
            {
                if entry.reason != reason::SUPERSEDED {
                    self.let_go(name, node);
                    let text = format!("rollout {newer} took the node");
                    let phase = self.draft.status.nodes.get(name).map_or(UpdatePhase::Pending, |entry| entry.phase);
                    self.draft.set(name, &State::new(phase, reason::SUPERSEDED, text));
                }
                continue;
            }
            if entry.reason == reason::ABORTED || entry.reason == reason::ENDED {
                continue;
            }
            let deferral = node::deferral(node, app, &self.target);
            let state = match self.told(node) {
                // Held and staged: what it waits for is said where that is decided.
                Some(told) if told.order.hold && entry.phase == UpdatePhase::Staged && says_staged(node, app) => {
                    continue;
                }
                Some(told) => {
                    let said = node::says(node, app, &self.target, told);
                    let decided =
                        matches!(said.phase, UpdatePhase::Succeeded | UpdatePhase::Failed | UpdatePhase::RolledBack);
                    let in_soak = entry.wave.is_none_or(|wave| soaking.get(wave as usize).copied().unwrap_or(false));
                    let sick = in_soak && said.phase == UpdatePhase::Succeeded && deferral.is_none();
                    let was_sick = entry.phase == UpdatePhase::Failed && entry.reason == reason::DEGRADED;
                    match (deferral, sick.then(|| node::degraded(node, app)).flatten()) {
                        (_, Some(text)) => State::new(UpdatePhase::Failed, reason::DEGRADED, text),
                        // Once it was sick it is no evidence any more, in this wave.
                        (None, None) if was_sick && sick => continue,
                        // What it proved while it was there stays proven.
                        (Some(_), None) if decided && said.phase == entry.phase => said,
                        (Some(deferral), None) if deferral.reason == reason::OFFLINE => deferral,
                        _ => said,
                    }
                }
                None => match deferral {
                    Some(deferral) => deferral,
                    // It waits, for what is said where that is decided; unless it was just freed from something.
                    None if entry.phase == UpdatePhase::Pending && entry.reason != reason::SUPERSEDED => continue,
                    None => State::waits("", ""),
                },
            };
            if !state.is_of(entry) {
                self.draft.set(name, &state);
            }
        }
    }

    /// A node that is no longer this rollout's: what it was told and waits with is taken back.
    fn let_go(&mut self, name: &'a Name, node: &'a Node) {
        let held = self.told(node).is_some_and(|told| told.order.hold);
        if held && let Some(entry) = self.draft.status.nodes.get(name) {
            let before = entry.before.clone();
            self.tell(name, before);
            if let Some(entry) = self.draft.status.to_mut().nodes.get_mut(name) {
                (entry.told, entry.before) = (false, None);
            }
        }
    }

    fn tell(&mut self, node: &Name, assigned: Option<AssignedApp>) {
        let app = self.spec().app.clone();
        self.plan.steps.push(Step::SetApp { node: node.clone(), app, assigned });
    }

    /// The rollout is over: nodes that were told and have not begun go back to what they had. What has begun
    /// finishes. Who is silent may have begun, and is held until it says.
    fn take_back(&mut self, word: &'static str, text: &'static str) {
        let snapshot = self.draft.snapshot;
        let names: Vec<Name> = self.draft.status.nodes.keys().cloned().collect();
        for name in &names {
            let (Some((name, node)), Some(entry)) =
                (snapshot.nodes.get_key_value(name), self.draft.status.nodes.get(name))
            else {
                continue;
            };
            if entry.is_decided() || entry.reason == reason::SUPERSEDED {
                continue;
            }
            let Some(told) = self.told(node) else {
                if entry.reason != word {
                    self.draft.set(name, &State::waits(word, text));
                }
                continue;
            };
            if matches!(entry.phase, UpdatePhase::Applying | UpdatePhase::Verifying) || self.target == Target::Restart {
                continue;
            }
            if entry.phase == UpdatePhase::Deferred && entry.reason == reason::OFFLINE {
                if !told.order.hold && knows_orders(node) {
                    let held = AssignedApp { order: AppOrder { hold: true, ..told.order.clone() }, ..told.clone() };
                    self.tell(name, Some(held));
                }
                continue;
            }
            let before = entry.before.clone();
            self.tell(name, before);
            self.draft.change(name, &State::waits(word, text), |entry| (entry.told, entry.before) = (false, None));
        }
    }

    /// Failed nodes try once more, when somebody asked for it.
    fn answer_retries(&mut self) {
        let asked = self.spec().control.retries;
        if asked <= self.draft.status.retries {
            return;
        }
        self.draft.status.to_mut().retries = asked;
        let snapshot = self.draft.snapshot;
        let names: Vec<Name> = self.draft.status.nodes.keys().cloned().collect();
        for name in &names {
            let (Some((name, node)), Some(entry)) =
                (snapshot.nodes.get_key_value(name), self.draft.status.nodes.get(name))
            else {
                continue;
            };
            let failed = matches!(entry.phase, UpdatePhase::Failed | UpdatePhase::RolledBack);
            if !failed || entry.reason == reason::SUPERSEDED {
                continue;
            }
            let Some(told) = self.told(node).cloned() else { continue };
            let retry = Some(format!("{}#{asked}", self.name()));
            let hold = self.holds_first(node);
            self.tell(name, Some(AssignedApp { order: AppOrder { retry, hold, ..told.order }, ..told }));
            self.draft.set(name, &State::waits("", "it tries once more"));
        }
        let status = self.draft.status.to_mut();
        for wave in &mut status.waves {
            if wave.phase == WavePhase::Failed {
                (wave.phase, wave.since, wave.finished_at) = (WavePhase::Progressing, None, None);
            }
        }
    }

    /// Whether a node fetches before it may apply: it can, and applying may have to wait.
    fn holds_first(&self, node: &Node) -> bool {
        let spec = self.spec();
        let may_wait = spec.budget.is_some() || !spec.windows.apply.is_empty();
        may_wait && knows_orders(node) && self.target != Target::Restart
    }

    /// Judges the waves that have begun, and begins the next where the one before passed.
    fn advance(&mut self) {
        let waves = waves::of(&self.spec().waves);
        let resumed = self.spec().control.resumed > self.draft.status.resumed;
        for index in 0..waves.len().min(self.draft.status.waves.len()) {
            let Some(wave) = self.draft.status.waves.get(index) else { return };
            let next = match wave.phase {
                WavePhase::Passed => continue,
                WavePhase::Pending | WavePhase::AwaitingApproval => match self.begin_wave(&waves, index) {
                    Some(begun) => begun,
                    None => return,
                },
                _ => wave.clone(),
            };
            let next = self.judge(&waves, index, next, resumed);
            let passed = next.phase == WavePhase::Passed;
            self.put_wave(index, next);
            if !passed {
                break;
            }
        }
        if resumed {
            self.draft.status.to_mut().resumed = self.spec().control.resumed;
        }
    }

    fn put_wave(&mut self, index: usize, next: WaveStatus) {
        if self.draft.status.waves.get(index) != Some(&next)
            && let Some(wave) = self.draft.status.to_mut().waves.get_mut(index)
        {
            *wave = next;
        }
    }

    /// The wave as it begins; `None`: it has to wait.
    fn begin_wave(&mut self, waves: &[Wave], index: usize) -> Option<WaveStatus> {
        let (spec, now) = (self.spec(), self.draft.now);
        let mut wave = self.draft.status.waves.get(index)?.clone();
        if waves.get(index)?.approval && !spec.control.approved.contains(&wave.name) {
            let name = self.name();
            wave.message = format!("crossdock rollout approve {name} lets it begin");
            wave.phase = WavePhase::AwaitingApproval;
            self.put_wave(index, wave);
            return None;
        }
        if spec.control.paused {
            return None;
        }
        let drawn =
            waves::draw(waves, index, &self.draft.rollout.metadata.uid, &self.draft.status, self.draft.snapshot);
        if !drawn.is_empty() {
            let status = self.draft.status.to_mut();
            let number = u32::try_from(index).ok();
            for name in &drawn {
                if let Some(entry) = status.nodes.get_mut(name) {
                    entry.wave = number;
                }
            }
        }
        (wave.phase, wave.started_at, wave.since) = (WavePhase::Progressing, Some(now), None);
        if drawn.is_empty() {
            (wave.phase, wave.finished_at) = (WavePhase::Passed, Some(now));
            wave.message = "no nodes were left for it".into();
        }
        Some(wave)
    }

    /// What a wave that has begun proves.
    fn judge(&mut self, waves: &[Wave], index: usize, mut wave: WaveStatus, resumed: bool) -> WaveStatus {
        if wave.phase == WavePhase::Passed {
            return wave;
        }
        let (gate, now) = (&self.spec().gate, self.draft.now);
        let counts = self.draft.status.wave_counts(u32::try_from(index).unwrap_or(u32::MAX));
        if resumed && wave.phase == WavePhase::Failed {
            wave.forgiven = u32::try_from(counts.failed).unwrap_or(u32::MAX);
        }
        let by_hand = resumed && wave.phase == WavePhase::Inconclusive;
        let verdict = gate::judge(gate, counts, wave.forgiven);
        wave.message = gate::explain(gate, counts, wave.forgiven);
        let was = wave.phase;
        (wave.phase, wave.finished_at) = match verdict {
            Verdict::Open => (WavePhase::Progressing, None),
            Verdict::Failed => (WavePhase::Failed, wave.finished_at.or(Some(now))),
            Verdict::Inconclusive if by_hand => {
                wave.message.push_str("; passed by hand");
                (WavePhase::Passed, Some(now))
            }
            Verdict::Inconclusive => {
                let since = *wave.since.get_or_insert(now);
                (self.after(since, gate.inconclusive_after, WavePhase::Inconclusive, WavePhase::Progressing), None)
            }
            Verdict::Passed => {
                let soak = waves.get(index).map_or(Span::default(), |wave| wave.soak);
                let since = wave.since.filter(|_| was == WavePhase::Soaking).unwrap_or(now);
                wave.since = Some(since);
                let phase = self.after(since, soak, WavePhase::Passed, WavePhase::Soaking);
                (phase, (phase == WavePhase::Passed).then_some(now))
            }
        };
        if matches!(verdict, Verdict::Open | Verdict::Failed) {
            wave.since = None;
        }
        wave
    }

    /// One phase until `span` has passed since then, and another one after it.
    fn after(&mut self, since: Timestamp, span: Span, then: WavePhase, until: WavePhase) -> WavePhase {
        let end = later(since, span);
        if self.draft.now >= end {
            return then;
        }
        self.plan.wake_at(end);
        until
    }

    /// Begins what may begin, and says of whatever may not why. With `still` nothing may.
    fn begin(&mut self, still: Option<(&'static str, String)>) {
        let snapshot = self.draft.snapshot;
        let last = self.draft.status.waves.len().saturating_sub(1);
        let over = self.draft.status.phase == RolloutPhase::Succeeded;
        let names: Vec<Name> = self
            .draft
            .status
            .nodes
            .iter()
            .filter(|(_, entry)| !entry.is_decided() && entry.phase != UpdatePhase::Deferred)
            .filter(|(_, entry)| entry.reason != reason::SUPERSEDED)
            .map(|(name, _)| name.clone())
            .collect();
        for name in &names {
            let (Some((name, node)), Some(entry)) =
                (snapshot.nodes.get_key_value(name), self.draft.status.nodes.get(name))
            else {
                continue;
            };
            let mut wave = entry.wave.map(|wave| wave as usize);
            // Who joined when the last wave had begun belongs to it.
            let late = self.draft.status.waves.get(last).is_some_and(|wave| wave.started_at.is_some());
            if wave.is_none() && (late || over) {
                wave = Some(last);
                let number = u32::try_from(last).ok();
                if let Some(entry) = self.draft.status.to_mut().nodes.get_mut(name) {
                    entry.wave = number;
                }
            }
            let Some(wave) = wave else {
                let state = self.waits_for_wave();
                self.draft.set(name, &state);
                continue;
            };
            self.begin_node(name, node, wave, still.as_ref());
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

    fn begin_node(&mut self, name: &'a Name, node: &'a Node, wave: usize, still: Option<&(&'static str, String)>) {
        let told = self.told(node);
        let staged = || self.draft.status.nodes.get(name).is_some_and(|entry| entry.phase == UpdatePhase::Staged);
        if told.is_some_and(|told| !told.order.hold) || told.is_some() && !staged() {
            return; // at work, as it says
        }
        let phase = if told.is_some() { UpdatePhase::Staged } else { UpdatePhase::Pending };
        let hindrance = match still {
            Some((word, text)) => Some((*word, text.clone())),
            None if told.is_some() => self.hinders_apply(name, node),
            None => self.hinders_begin(name, node, wave),
        };
        if let Some((word, text)) = hindrance {
            self.draft.set(name, &State::new(phase, word, text));
            return;
        }
        let before = node.spec.apps.get(&self.spec().app);
        let hold = told.is_none() && self.holds_first(node);
        let order = AppOrder { hold, max_deferral_s: self.spec().max_deferral.get().as_secs(), ..AppOrder::default() };
        let order = match told {
            Some(told) => AppOrder { hold: false, ..told.order.clone() },
            None => order,
        };
        let Some(assigned) = node::telling(before, &self.target, self.name(), order) else {
            let text = "there is nothing of the app to start again";
            self.draft.set(name, &State::new(UpdatePhase::Blocked, reason::NOT_RUNNING, text));
            return;
        };
        let (kept, now) = (before.cloned(), self.draft.now);
        let fresh = told.is_none();
        self.tell(name, Some(assigned));
        if !hold {
            self.busy.add(name);
        }
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

    /// Why a node does not begin at all yet.
    fn hinders_begin(&mut self, name: &'a Name, node: &'a Node, wave: usize) -> Option<(&'static str, String)> {
        let spec = self.spec();
        if spec.jitter > Span::default() {
            let begun = self.draft.status.waves.get(wave).and_then(|wave| wave.started_at).unwrap_or(self.draft.now);
            let share = waves::chance(&self.draft.rollout.metadata.uid, name) as f64 / u64::MAX as f64;
            let at = later(begun, Span::from_millis((spec.jitter.get().as_millis() as f64 * share) as u64));
            if self.draft.now < at {
                self.plan.wake_at(at);
                return Some((reason::JITTER, format!("nodes begin spread over {}: its turn is at {at}", spec.jitter)));
            }
        }
        if self.target != Target::Restart
            && let Some(text) = self.closed(&spec.windows.download, node, "download")
        {
            return Some((reason::DOWNLOAD_WINDOW, text));
        }
        if self.holds_first(node) { None } else { self.hinders_apply(name, node) }
    }

    /// Why a node may not apply yet. Otherwise it has its place in the budget.
    fn hinders_apply(&mut self, name: &'a Name, node: &'a Node) -> Option<(&'static str, String)> {
        let spec = self.spec();
        if let Some(text) = self.closed(&spec.windows.apply, node, "apply") {
            return Some((reason::APPLY_WINDOW, text));
        }
        let budget = spec.budget.as_ref()?;
        let (draft, busy) = (&*self.draft, &*self.busy);
        let groups = self.groups.get_or_insert_with(|| Groups::new(budget, &draft.status.nodes, draft.snapshot, busy));
        groups.take(name, node).err().map(|text| (Groups::REASON, text))
    }

    fn closed(&mut self, windows: &[proto::object::rollout::Window], node: &Node, what: &str) -> Option<String> {
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

    /// Where the rollout stands after all that.
    fn conclude(&mut self) {
        let status = &self.draft.status;
        let counts = status.counts();
        let mine = counts.all - counts.taken;
        let current = status.waves.iter().find(|wave| wave.phase != WavePhase::Passed);
        let failed = current.is_some_and(|wave| wave.phase == WavePhase::Failed);
        // Somebody whom a pause would keep from beginning.
        let waits = |entry: &RolloutNode| {
            !entry.is_decided() && entry.reason != reason::SUPERSEDED && entry.phase != UpdatePhase::Deferred
        };
        let unbegun = status.nodes.values().any(|entry| waits(entry) && (!entry.told || entry.released_at.is_none()));
        let undecided = status.nodes.values().any(waits);
        let mut message = summary(&counts);
        use RolloutPhase::{Failed, Paused, Progressing, RollingBack, Succeeded, Superseded};
        let (phase, word) = match current {
            _ if counts.all == 0 => {
                message = "every node of it was deleted".into();
                (Failed, "")
            }
            _ if mine == 0 => (Superseded, ""),
            None if counts.taken > 0 => (Superseded, ""),
            None => (Succeeded, ""),
            Some(wave) if failed => {
                let text = format!("wave {}: {}", wave.name, wave.message);
                match self.spec().on_failure {
                    OnFailure::RollBack => {
                        message = format!("{text}; its nodes go to {}", self.undo_version());
                        (RollingBack, "GateFailed")
                    }
                    OnFailure::Stop => {
                        message = text;
                        (Failed, "GateFailed")
                    }
                    OnFailure::Pause if unbegun => {
                        let name = self.name();
                        message = format!("{text}; crossdock rollout resume|retry|abort|undo {name}");
                        (Paused, "GateFailed")
                    }
                    OnFailure::Pause => {
                        message = text;
                        (if undecided { Progressing } else { Failed }, "GateFailed")
                    }
                }
            }
            _ if self.spec().control.paused => (Paused, "Paused"),
            Some(wave) if wave.phase == WavePhase::Inconclusive => {
                message = format!("wave {} proves nothing: {}", wave.name, wave.message);
                (Paused, "Inconclusive")
            }
            Some(wave) if wave.phase == WavePhase::AwaitingApproval => {
                message = format!("wave {} awaits approval; {}", wave.name, wave.message);
                (Paused, "AwaitingApproval")
            }
            Some(_) => (Progressing, ""),
        };
        let undo = phase == RollingBack;
        let now = self.draft.now;
        let same = status.phase == phase && status.reason == word && status.message == message;
        if !same {
            let status = self.draft.status.to_mut();
            (status.phase, status.reason, status.message) = (phase, word.into(), message);
            if phase.is_final() && status.finished_at.is_none() {
                status.finished_at = Some(now);
            }
        }
        if undo {
            self.undo();
        }
    }

    fn undo_version(&self) -> String {
        self.spec().rollback_to.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// Starts the rollout that takes this one back.
    fn undo(&mut self) {
        let (spec, rollout) = (self.spec(), self.draft.rollout);
        let (Some(version), Ok(name)) =
            (spec.rollback_to.clone(), undo_name(rollout).parse::<proto::name::ObjectName>())
        else {
            return;
        };
        let release = proto::name::ReleaseName { app: spec.app.clone(), version };
        let plain = RolloutSpec::new(release, spec.selector.clone());
        let gate = Gate { max_failures: u32::MAX, ..Gate::default() };
        let undo = RolloutSpec {
            undoes: Some(rollout.name().to_owned()),
            budget: spec.budget.clone(),
            gate,
            on_failure: OnFailure::Stop,
            ..plain
        };
        self.plan.steps.push(Step::Start(Box::new(Rollout::new(name, undo))));
    }
}

impl Draft<'_> {
    /// Why nothing may begin, if so.
    fn holds_still(&self) -> Option<(&'static str, String)> {
        if self.rollout.spec.control.paused {
            let text = format!("the rollout is paused; crossdock rollout resume {}", self.rollout.name());
            return Some((reason::PAUSED, text));
        }
        let failed = self.status.waves.iter().find(|wave| wave.phase == WavePhase::Failed)?;
        Some((reason::PAUSED, format!("wave {} failed", failed.name)))
    }
}

fn says_staged(node: &Node, app: &Name) -> bool {
    let here = matches!(node.status.phase, NodePhase::Ready | NodePhase::NotReady);
    here && node.status.workloads.get(app).is_some_and(|said| said.phase == UpdatePhase::Staged)
}

fn knows_orders(node: &Node) -> bool {
    node.status.info.as_ref().is_some_and(|info| info.features.contains(feature::ORDERS))
}

fn later(at: Timestamp, span: Span) -> Timestamp {
    let span = SignedDuration::try_from(span.get()).unwrap_or(SignedDuration::MAX);
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

fn summary(counts: &proto::object::RolloutCounts) -> String {
    let proto::object::RolloutCounts { all, taken, healthy, failed, deferred, blocked } = *counts;
    let mut message = format!("{healthy} of {all} healthy");
    for (number, word) in [(failed, "failed"), (deferred, "deferred"), (blocked, "blocked"), (taken, "superseded")] {
        if number > 0 {
            message.push_str(&format!(", {number} {word}"));
        }
    }
    message
}
