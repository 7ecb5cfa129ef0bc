//! One rollout, one pass: what its nodes say, what its waves prove, what is to begin.

use jiff::{SignedDuration, Timestamp};
use proto::{
    name::{Name, ObjectName, ReleaseName},
    object::{
        AppOrder, AssignedApp, Node, NodePhase, Release, Rollout, RolloutCounts, RolloutNode, RolloutPhase,
        RolloutSpec, UpdatePhase,
        capacity::{INSUFFICIENT_CPU, INSUFFICIENT_MEMORY},
        feature,
        rollout::{Gate, Leaving, OnFailure, WavePhase, reason},
    },
    units::Span,
};

use super::{
    Plan, Step,
    budget::{self, Busy, Groups, Spoken},
    claims::{self, Claims},
    draft::Draft,
    metrics::{self, Finding},
    node::{self, State, Target, Telling, Told},
};

/// Deferrals of nodes that say nothing at present.
const NOT_HEARD: [&str; 2] = [reason::OFFLINE, reason::NEVER_CONNECTED];

/// Sites named that lack a node.
const SITES_TOLD: usize = 3;

/// Why nothing can be begun on a node, whatever it waits for.
const CANNOT_BEGIN: [&str; 5] =
    [reason::NOT_RUNNING, reason::TOO_OLD, reason::RESERVED, INSUFFICIENT_MEMORY, INSUFFICIENT_CPU];

/// What a rollout looks at besides its own app.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Asks {
    /// Places in its budget.
    pub budget: bool,
    /// Room on a node.
    pub room: bool,
}

/// One pass of one rollout. Returns what else it looked at. What it lets go of comes into
/// `let_go`, before whatever the rollout that took it says, wherever that stands.
pub(super) fn pass<'a>(
    draft: &mut Draft<'a>,
    claims: &Claims<'a>,
    busy: &mut Busy<'a>,
    plan: &mut Plan,
    let_go: &mut Vec<Step>,
) -> Asks {
    let Some(target) = draft.target() else { return Asks::default() };
    let phase = draft.status.phase;
    let undo =
        draft.snapshot.rollouts.values().find(|other| other.spec.undoes.as_deref() == Some(draft.rollout.name()));
    if let Some(undo) = undo {
        follow_undo(draft, undo);
        return Asks::default();
    }
    if phase == RolloutPhase::RollingBack {
        return Asks::default(); // its undoing is created in this round
    }
    if draft.rollout.spec.control.aborted && (!phase.is_final() || phase == RolloutPhase::Succeeded) {
        let status = draft.status.to_mut();
        (status.phase, status.reason) = (RolloutPhase::Aborted, String::new());
        status.finished_at = Some(draft.now);
    }
    let mut pass = Pass { draft, target, claims, busy, plan, let_go, groups: None, asks_room: false };
    pass.observe();
    pass.asks_room |= pass.spec().placement.is_some();
    let phase = pass.draft.status.phase;
    match phase {
        RolloutPhase::Aborted => pass.take_back(reason::ABORTED, "the rollout was aborted before it had its turn"),
        RolloutPhase::Failed => pass.take_back(reason::ENDED, "the rollout failed before it had its turn"),
        RolloutPhase::Superseded => {}
        RolloutPhase::Succeeded => {
            let still = pass.draft.holds_still();
            pass.leave(still.is_some());
            pass.begin(still);
            let message = pass.summary();
            if pass.draft.status.message != message {
                pass.draft.status.to_mut().message = message;
            }
        }
        _ if pass.has_no_place() => {}
        _ => {
            pass.answer_retries();
            pass.advance();
            let still = pass.draft.holds_still();
            pass.leave(still.is_some());
            pass.begin(still);
            pass.conclude();
        }
    }
    Asks { budget: pass.groups.is_some(), room: pass.asks_room }
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

pub(super) struct Pass<'p, 'a> {
    pub draft: &'p mut Draft<'a>,
    pub target: Target,
    claims: &'p Claims<'a>,
    pub busy: &'p mut Busy<'a>,
    pub plan: &'p mut Plan,
    let_go: &'p mut Vec<Step>,
    pub groups: Option<Groups<'a>>,
    /// Whether somebody waits for room on a node.
    pub asks_room: bool,
}

impl<'a> Pass<'_, 'a> {
    pub fn spec(&self) -> &'a RolloutSpec {
        &self.draft.rollout.spec
    }

    /// The release that it rolls out, where it is known.
    pub fn release(&self) -> Option<&'a Release> {
        self.draft.snapshot.releases.get(&self.spec().release()?)
    }

    pub fn name(&self) -> &'a str {
        self.draft.rollout.name()
    }

    /// What the node was told by this rollout, if it was, and that is so still.
    pub fn told(&self, node: &'a Node, entry: &RolloutNode) -> Option<Told<'a>> {
        if !entry.told {
            return None; // most nodes of a large fleet wait
        }
        node::told(node, &self.spec().app, &self.target, self.name())
    }

    /// Takes down what every node says.
    fn observe(&mut self) {
        let app = &self.spec().app;
        let soaking: Vec<bool> = self.draft.status.waves.iter().map(|wave| wave.phase != WavePhase::Passed).collect();
        let mut changes: Vec<(&'a Name, &'a Node, State<'_>)> = vec![];
        for (name, node, entry) in self.draft.members() {
            if let Some(newer) = self.claims.taken_by(name, self.draft.rollout) {
                if entry.reason != reason::SUPERSEDED {
                    let text = format!("rollout {newer} took the node");
                    changes.push((name, node, State::new(entry.phase, reason::SUPERSEDED, text)));
                }
                continue;
            }
            if entry.reason == reason::ABORTED || entry.reason == reason::ENDED {
                continue;
            }
            let deferral = node::deferral(node, app, &self.target);
            let state = match self.told(node, entry) {
                // Held and staged: what it waits for is said where that is decided.
                Some(told) if told.is_held() && entry.phase == UpdatePhase::Staged && says_staged(node, app) => {
                    continue;
                }
                Some(told) => {
                    let said = node::says(node, app, &self.target, told);
                    let decided = said.phase.is_decided();
                    let in_soak = entry.wave.is_none_or(|wave| soaking.get(wave as usize).copied().unwrap_or(false));
                    let sick = in_soak
                        && self.target != Target::Reboot
                        && said.phase == UpdatePhase::Succeeded
                        && deferral.is_none();
                    let was_sick = entry.phase == UpdatePhase::Failed && entry.reason == reason::DEGRADED;
                    // What broke a rule of the gate has failed, until somebody has it tried once more.
                    if entry.phase == UpdatePhase::Failed
                        && entry.reason == reason::METRICS
                        && said.phase == UpdatePhase::Succeeded
                    {
                        continue;
                    }
                    let is_silent =
                        deferral.as_ref().is_some_and(|d| NOT_HEARD.contains(&&*d.reason)) || node.spec.drained;
                    let unproven = entry.phase == UpdatePhase::Succeeded && entry.reason == reason::METRICS;
                    match (deferral, sick.then(|| node::degraded(node, app)).flatten()) {
                        (_, Some(text)) => State::new(UpdatePhase::Failed, reason::DEGRADED, text),
                        // Once it was sick it is no evidence any more, in this wave.
                        (None, None) if was_sick && sick => continue,
                        // It went down because it was told to: whether it comes up again is what is asked.
                        (Some(deferral), None)
                            if self.target == Target::Reboot && said.phase != UpdatePhase::Pending =>
                        {
                            let lost_at = node::is_lost_at(node);
                            match !decided && deferral.reason == reason::OFFLINE {
                                true if self.draft.now >= lost_at => node::is_lost(node),
                                true => {
                                    self.plan.wake_at(lost_at);
                                    said
                                }
                                false => said,
                            }
                        }
                        // Nobody can wait for what it has not told.
                        (Some(deferral), None) if unproven && is_silent && in_soak => deferral,
                        // What it proved while it was there stays proven. Whoever is heard tells more, cordoned or not.
                        (Some(_), None) if decided && said.phase == entry.phase && (is_silent || !in_soak) => said,
                        (Some(deferral), None) if NOT_HEARD.contains(&&*deferral.reason) => deferral,
                        _ if in_soak && !is_silent && said.phase == UpdatePhase::Succeeded => self.measured(node, said),
                        _ => said,
                    }
                }
                // A restart is carried out once, whatever it is told later.
                None if !self.target.is_release() && entry.is_decided() => continue,
                None => match deferral {
                    Some(deferral) => deferral,
                    // It waits, for what is said where that is decided; unless it was just freed from something.
                    None if entry.phase == UpdatePhase::Pending && entry.reason != reason::SUPERSEDED => continue,
                    None if CANNOT_BEGIN.contains(&&*entry.reason) => continue,
                    None => State::waits("", ""),
                },
            };
            if !state.is_of(entry) {
                changes.push((name, node, state));
            }
        }
        for (name, node, state) in changes {
            if state.reason != reason::SUPERSEDED || self.let_go(name, node) {
                self.draft.set(name, &state);
            }
        }
    }

    /// A healthy node against what the gate asks of its workload.
    fn measured<'s>(&self, node: &Node, said: State<'s>) -> State<'s> {
        let Target::Release(_, digest) = &self.target else { return said };
        match metrics::judge(&self.spec().gate.metrics, node, &self.spec().app, *digest) {
            Finding::Kept => said,
            Finding::TooLittle(text) => State::new(UpdatePhase::Succeeded, reason::METRICS, text),
            Finding::Broken(text) => State::new(UpdatePhase::Failed, reason::METRICS, text),
        }
    }

    /// A node that is no longer this rollout's: what it was told and waits with is taken back. Returns whether that is
    /// done, or is for the next plan.
    fn let_go(&mut self, name: &'a Name, node: &'a Node) -> bool {
        let Some(entry) = self.draft.status.nodes.get(name) else { return true };
        let held = self.told(node, entry).filter(|told| self.target.is_release() && told.is_held());
        let Some(Told::App(told)) = held else { return true };
        let (app, before) = (&self.spec().app, given_back(entry.before.as_ref(), told));
        match self.busy.spoken(name, app) {
            Some(Spoken::Restart) => return false,
            Some(Spoken::Release | Spoken::LetGo) => {}
            None => {
                let step = self.telling(name, Telling::App(before));
                self.busy.speak(name, app, Spoken::LetGo);
                self.let_go.push(step);
            }
        }
        if let Some(entry) = self.draft.status.to_mut().nodes.get_mut(name) {
            (entry.told, entry.before) = (false, None);
        }
        true
    }

    /// Tells a node; from then on it counts as unavailable, if that may stop its app.
    pub fn tell(&mut self, node: &'a Name, telling: Telling) {
        let step = self.telling(node, telling);
        let what = if self.target.is_release() { Spoken::Release } else { Spoken::Restart };
        self.busy.speak(node, &self.spec().app, what);
        self.plan.steps.push(step);
    }

    fn telling(&mut self, node: &'a Name, telling: Telling) -> Step {
        match telling {
            Telling::App(assigned) => {
                let app = self.spec().app.clone();
                let said = self.draft.snapshot.nodes.get(node).and_then(|node| node.status.workloads.get(&app));
                if assigned.as_ref().is_some_and(|assigned| budget::may_disturb(assigned, said)) {
                    self.busy.add(node);
                } else {
                    self.busy.reserve(node); // it may be up again, so its place is no other rollout's
                }
                if let Some(release) = assigned.as_ref().and_then(|_| self.release()) {
                    self.busy.give(node, &self.spec().app, release.spec.requests.unwrap_or_default());
                }
                Step::SetApp { node: node.clone(), app, assigned }
            }
            Telling::Reboot(order) => {
                if order.is_some() {
                    self.busy.add(node);
                }
                Step::SetReboot { node: node.clone(), order }
            }
        }
    }

    /// The rollout is over: nodes that were told and have not begun go back to what they had. What has begun
    /// finishes. Who is silent may have begun, and is held until it says. Who was through is told to go on with it, for
    /// it may be reinstalled.
    fn take_back(&mut self, word: &'static str, text: &'static str) {
        let snapshot = self.draft.snapshot;
        let names: Vec<Name> = self.draft.status.nodes.keys().cloned().collect();
        for name in &names {
            let (Some((name, node)), Some(entry)) =
                (snapshot.nodes.get_key_value(name), self.draft.status.nodes.get(name))
            else {
                continue;
            };
            let spoken = self.busy.spoken(name, &self.spec().app);
            if spoken.is_some() || entry.reason == reason::SUPERSEDED {
                continue;
            }
            if entry.is_decided() {
                if entry.phase == UpdatePhase::Succeeded {
                    self.hold(name, node, false);
                }
                continue;
            }
            let Some(told) = self.told(node, entry) else {
                if entry.reason != word {
                    self.draft.set(name, &State::waits(word, text));
                }
                continue;
            };
            if matches!(entry.phase, UpdatePhase::Applying | UpdatePhase::Verifying) || self.target == Target::Restart {
                continue;
            }
            let Told::App(app) = told else {
                self.tell(name, Telling::Reboot(None));
                self.draft.change(name, &State::waits(word, text), |entry| entry.told = false);
                continue;
            };
            if entry.phase == UpdatePhase::Deferred && entry.reason == reason::OFFLINE {
                if knows_orders(node) {
                    self.hold(name, node, true);
                }
                continue;
            }
            let before = given_back(entry.before.as_ref(), app);
            self.tell(name, Telling::App(before));
            self.draft.change(name, &State::waits(word, text), |entry| (entry.told, entry.before) = (false, None));
        }
    }

    /// Tells a node to wait with the release that it was told, or not to wait any more.
    fn hold(&mut self, name: &'a Name, node: &'a Node, hold: bool) {
        let Some(entry) = self.draft.status.nodes.get(name) else { return };
        let told = self.told(node, entry).filter(|told| self.target.is_release() && told.is_held() != hold);
        if let Some(Told::App(told)) = told {
            let order = AppOrder { hold, ..told.order.clone() };
            self.tell(name, Telling::App(Some(AssignedApp { order, ..told.clone() })));
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
            let Some(Told::App(told)) = self.told(node, entry).filter(|_| self.target.is_release()) else { continue };
            let told = told.clone();
            let retry = Some(format!("{}#{asked}", self.name()));
            let hold = self.holds_first(node);
            let again = AssignedApp { order: AppOrder { retry, hold, ..told.order }, ..told };
            self.tell(name, Telling::App(Some(again)));
            self.draft.set(name, &State::waits("", "it tries once more"));
        }
        let status = self.draft.status.to_mut();
        for wave in &mut status.waves {
            if wave.phase == WavePhase::Failed {
                (wave.phase, wave.since, wave.finished_at) = (WavePhase::Progressing, None, None);
            }
        }
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
        // A restart is over when it has ended, so who came back in time has its turn before that.
        let late = |entry: &RolloutNode| waits(entry) && entry.phase != UpdatePhase::Blocked && entry.wave.is_some();
        let restarts = !self.target.is_release() && status.nodes.values().any(late);
        let mut message = self.summary();
        use RolloutPhase::{Failed, Paused, Progressing, RollingBack, Succeeded, Superseded};
        let (phase, word) = match current {
            _ if counts.all == 0 => {
                message = "every node of it was deleted".into();
                (Failed, "")
            }
            _ if mine == 0 => (Superseded, ""),
            None if restarts && self.spec().control.paused => (Paused, "Paused"),
            None if restarts => (Progressing, ""),
            None if counts.taken > 0 => (Superseded, ""),
            // It still holds somebody, so it is no success to anybody who looks.
            None if self.spec().control.paused && counts.healthy < mine => (Paused, "Paused"),
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

    /// How its nodes are, and which sites lack some.
    fn summary(&self) -> String {
        let status = &self.draft.status;
        let lacks = status.placement.iter().filter(|(_, site)| !site.message.is_empty());
        let lacks: Vec<String> = lacks.map(|(name, site)| format!("; site {name} has {}", site.message)).collect();
        let more = lacks.len().saturating_sub(SITES_TOLD);
        let more = if more > 0 { format!("; and {more} sites more") } else { String::new() };
        format!(
            "{}{}{more}",
            summary(&status.counts()),
            lacks.iter().take(SITES_TOLD).map(String::as_str).collect::<String>()
        )
    }

    /// It is to choose nodes, and none would do yet: it waits, and proves nothing by that.
    fn has_no_place(&mut self) -> bool {
        if self.spec().placement.is_none() || !self.draft.status.nodes.is_empty() {
            return false;
        }
        let is_paused = self.spec().control.paused;
        let (phase, word) = match is_paused {
            _ if claims::is_shadowed(self.draft, self.draft.snapshot) => (RolloutPhase::Superseded, ""),
            true => (RolloutPhase::Paused, "Paused"),
            false => (RolloutPhase::Progressing, ""),
        };
        let (message, now) = (self.summary(), self.draft.now);
        self.leave(is_paused || phase.is_final());
        let status = &self.draft.status;
        if (status.phase, status.reason.as_str(), &status.message) != (phase, word, &message) {
            let status = self.draft.status.to_mut();
            (status.phase, status.reason, status.message) = (phase, word.into(), message);
            status.finished_at = phase.is_final().then_some(now);
        }
        true
    }

    /// Takes the app from nodes that others were chosen in place of; unless it is to hold `still`.
    fn leave(&mut self, still: bool) {
        if still {
            return;
        }
        let app = &self.spec().app;
        for name in std::mem::take(&mut self.draft.leaving) {
            let Some(node) = self.draft.snapshot.nodes.get(name) else { continue };
            if !node.spec.apps.contains_key(app) || self.busy.spoken(name, app).is_some() {
                continue;
            }
            self.tell(name, Telling::App(None));
            let leaving = Leaving { generation: node.metadata.generation, uid: node.metadata.uid.clone() };
            let sites = &mut self.draft.status.to_mut().placement;
            sites.entry(node.spec.site.clone()).or_default().leaving.insert(name.clone(), leaving);
        }
    }

    fn undo_version(&self) -> String {
        self.spec().rollback_to.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// Starts the rollout that takes this one back.
    fn undo(&mut self) {
        let (spec, rollout) = (self.spec(), self.draft.rollout);
        let (Some(version), Ok(name)) = (spec.rollback_to.clone(), undo_name(rollout).parse::<ObjectName>()) else {
            return;
        };
        let release = ReleaseName { app: spec.app.clone(), version };
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
        // It begins on them at once, so nobody else may count on them.
        let snapshot = self.draft.snapshot;
        for (name, _) in self.draft.status.nodes.iter().filter(|(_, entry)| entry.told) {
            if let Some((name, _)) = snapshot.nodes.get_key_value(name) {
                self.busy.reserve(name);
            }
        }
    }
}

/// What a node had before, with the restart that it was told meanwhile: an older one would be a new one to it.
fn given_back(before: Option<&AssignedApp>, told: &AssignedApp) -> Option<AssignedApp> {
    let mut before = before?.clone();
    before.order.restart.clone_from(&told.order.restart);
    Some(before)
}

fn says_staged(node: &Node, app: &Name) -> bool {
    let here = matches!(node.status.phase, NodePhase::Ready | NodePhase::NotReady);
    here && node.status.workloads.get(app).is_some_and(|said| said.phase == UpdatePhase::Staged)
}

pub(super) fn knows_orders(node: &Node) -> bool {
    node::knows(node, feature::ORDERS)
}

pub(super) fn later(at: Timestamp, span: Span) -> Timestamp {
    let span = SignedDuration::try_from(span.get()).unwrap_or(SignedDuration::MAX);
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

fn summary(counts: &RolloutCounts) -> String {
    let RolloutCounts { all, taken, healthy, failed, deferred, blocked, unproven } = *counts;
    let mut message = format!("{healthy} of {all} healthy");
    let told = [
        (failed, "failed"),
        (unproven, "telling too little of themselves yet"),
        (deferred, "deferred"),
        (blocked, "blocked"),
        (taken, "superseded"),
    ];
    for (number, word) in told {
        if number > 0 {
            message.push_str(&format!(", {number} {word}"));
        }
    }
    message
}
