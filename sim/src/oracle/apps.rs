//! What runs on boxes: I1, the part of I3 that concerns apps, and what boot and agent may not disturb.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proto::{
    digest::Digest,
    name::{Name, Version},
    object::{RolloutPhase, UpdatePhase},
};

use super::{
    Fleet, Invariant, Violation,
    replicas::{self, Backlogs, Replicas},
};
use crate::{
    fault::{Fault, Spot},
    world::{AppSeen, Observation, Seen},
};

/// Time of a running agent in which a release that is bad must have been found out: its deadline of a minute,
/// restarts with back-off, and going back.
const BAD_STAYS: Duration = Duration::from_secs(300);
/// Time that a trial may take in which nothing runs: its deadline of a minute, which begins anew with the agent.
const TRIAL: Duration = Duration::from_secs(90);
/// Names of one sentence.
const MAX_NAMED: usize = 3;

/// All boxes, over time.
#[derive(Debug, Default)]
pub(super) struct Apps {
    boxes: BTreeMap<Name, Box>,
    /// What every release's digest was seen to be.
    digests: BTreeMap<(Name, Version), Digest>,
    looked_at: Duration,
    backlogs: Backlogs,
}

#[derive(Debug, Default)]
struct Box {
    /// Since when its agent runs without a break.
    agent_since: Option<Duration>,
    apps: BTreeMap<Name, App>,
}

#[derive(Debug, Default)]
struct App {
    running: Option<Version>,
    /// What it used of others' files.
    uses: BTreeMap<Name, Version>,
    /// Which instance of it.
    instance: Option<u64>,
    /// The greatest version that proved healthy here.
    confirmed: Option<Version>,
    /// Versions that failed here, as the hub was told: they are not tried again.
    failed: BTreeSet<Version>,
    /// Time that the agent ran while it had a bad release on trial.
    bad_for: Duration,
    /// Whether anything of it ran since the agent started.
    up_since_start: bool,
    /// It may be down until it was seen to run again: box off, disk gone, its files damaged.
    excused: bool,
    /// Its files were damaged on purpose, and the instance of then may still run: it may stay down until it is mended
    /// from the hub.
    damaged: Option<Option<u64>>,
    /// Its state was damaged on purpose, likewise: an older copy may be believed until a release has proved itself again.
    forgetful: Option<Option<u64>>,
    replicas: Replicas,
}

impl Apps {
    pub(super) fn fault_began(&mut self, fault: &Fault, struck: &[Name]) {
        self.backlogs.began(fault, struck);
        for node in struck {
            let Some(seen) = self.boxes.get_mut(node) else { continue };
            match fault {
                Fault::Reinstall { .. } => seen.apps.clear(),
                Fault::Reboot { .. } | Fault::PowerCut { .. } => {
                    seen.agent_since = None;
                    seen.apps.values_mut().for_each(|app| app.excused = true);
                }
                // What used the GPU ends with it.
                Fault::GpuLost { .. } => seen.apps.values_mut().for_each(|app| app.excused = true),
                Fault::CrashAgent { .. } => seen.agent_since = None,
                Fault::FlipBit { spot: Spot::Artifact, .. } => {
                    seen.apps.values_mut().for_each(|app| (app.excused, app.damaged) = (true, Some(app.instance)));
                }
                Fault::FlipBit { spot: Spot::State, .. } => {
                    for app in seen.apps.values_mut() {
                        (app.excused, app.forgetful) = (true, Some(app.instance));
                        app.failed.clear();
                    }
                }
                _ => {}
            }
        }
    }

    pub(super) fn fault_healed(&mut self, fault: &Fault) {
        self.backlogs.healed(fault);
    }

    pub(super) fn look(&mut self, fleet: &Fleet, seen: &Observation) -> Result<(), Violation> {
        let since_last = seen.at.saturating_sub(self.looked_at);
        self.looked_at = seen.at;
        for (name, node) in &seen.nodes {
            let before = self.boxes.entry(name.clone()).or_default();
            let runs = node.agent_runs && node.powered;
            let started = runs && before.agent_since.is_none();
            before.agent_since = if runs { before.agent_since.or(Some(seen.at)) } else { None };
            let agent_for = before.agent_since.map(|since| seen.at.saturating_sub(since));
            let gone: Vec<Name> = before.apps.keys().filter(|app| !node.apps.contains_key(*app)).cloned().collect();
            let nothing = AppSeen::nothing();
            for (app, now) in node.apps.iter().chain(gone.iter().map(|app| (app, &nothing))) {
                let files_may_change = now.uses.keys().chain(used(before.apps.get(app))).any(|of| {
                    let known = before.apps.get(of);
                    known.is_none_or(|known| {
                        known.confirmed.as_ref().is_none_or(|version| {
                            fleet.after(name, of, version).any(|later| !known.failed.contains(later))
                        })
                    })
                });
                let backlog = self.backlogs.of(name);
                let here =
                    Here { fleet, at: seen.at, name, node, app, now, agent_for, since_last, files_may_change, backlog };
                let state = before.apps.entry(app.clone()).or_default();
                if started {
                    state.up_since_start = false;
                }
                here.is_released(&mut self.digests)?;
                here.is_meant(state)?;
                here.bad_ends(state)?;
                here.undisturbed(state)?;
                here.is_up(state)?;
                here.replicas_follow(state)?;
                here.remember(state);
            }
        }
        Ok(())
    }

    /// What is missing until all boxes are as the plan says, in one sentence.
    pub(super) fn missing(&self, fleet: &Fleet, seen: &Observation) -> Option<String> {
        if !seen.hub_runs {
            return Some("the hub does not run".into());
        }
        let without = |what: &str, is_so: &dyn Fn(&Seen) -> bool| {
            let names: Vec<&Name> = seen.nodes.iter().filter(|(_, node)| !is_so(node)).map(|(name, _)| name).collect();
            (!names.is_empty()).then(|| format!("{}: {what}", of(&names, seen.nodes.len())))
        };
        without("no power", &|node| node.powered)
            .or_else(|| without("the agent does not run", &|node| node.agent_runs))
            .or_else(|| without("the line is not open", &|node| node.line_open))
            .or_else(|| without("not Ready at the hub", &|node| node.ready == Some(true)))
            .or_else(|| fleet.apps().into_iter().find_map(|app| self.app_missing(fleet, seen, app)))
    }

    fn app_missing(&self, fleet: &Fleet, seen: &Observation, app: &Name) -> Option<String> {
        let mut wrong: Vec<(&Name, String)> = vec![];
        for (name, node) in &seen.nodes {
            let state = self.boxes.get(name).and_then(|known| known.apps.get(app));
            let now = node.apps.get(app);
            if let Some(why) = goal(fleet, name, app, state, now, seen) {
                wrong.push((name, why));
            }
        }
        let (_, why) = wrong.first()?;
        let names: Vec<&Name> = wrong.iter().map(|(name, _)| *name).collect();
        Some(format!("{}: {why}", of(&names, seen.nodes.len())))
    }
}

/// Whose files an app used.
fn used(app: Option<&App>) -> impl Iterator<Item = &Name> {
    app.into_iter().flat_map(|app| app.uses.keys())
}

/// `box-1, box-2 and 3 more of 8`.
fn of(names: &[&Name], all: usize) -> String {
    let named: Vec<&str> = names.iter().take(MAX_NAMED).map(|name| name.as_str()).collect();
    let more = names.len().saturating_sub(MAX_NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more} ({} of {all} boxes)", named.join(", "), names.len())
}

/// What an app of a box lacks of what its rollouts ask for.
fn goal(
    fleet: &Fleet,
    name: &Name,
    app: &Name,
    state: Option<&App>,
    now: Option<&AppSeen>,
    seen: &Observation,
) -> Option<String> {
    let running = now.and_then(|now| now.running.as_ref());
    let in_place = |of: &Name| seen.nodes.get(name)?.apps.get(of)?.running.as_ref();
    if let Some((of, used)) = now.and_then(|now| now.uses.iter().find(|(of, used)| in_place(of) != Some(*used))) {
        return Some(format!("{app} uses {of} {used}, another one is in place"));
    }
    if let Some(version) = running.filter(|version| fleet.is_bad(app, version)) {
        return Some(format!("{app}@{version} is bad and still runs"));
    }
    if let (Some(now), Some(version)) = (now, running) {
        let (at, release) = (seen.at, fleet.release(app, version));
        let look = replicas::Look { at, now, release, backlog: None, is_settled: true, is_calm: true };
        if let Some(wrong) = look.wrong_number() {
            return Some(format!("{app} {version}: {wrong}"));
        }
    }
    for (newer, last) in fleet.begun(name, app).into_iter().enumerate() {
        // A hub that came back from a backup may not know of it any more.
        let Some(phase) = seen.rollouts.get(&last.key).map(|now| now.phase) else { continue };
        let back = last.how.rollback_to.as_ref();
        if last.bad {
            let had = state.and_then(|state| state.confirmed.as_ref());
            return match (had, running) {
                (Some(had), None) => Some(format!("nothing of {app} runs, {had} ran before")),
                _ => None,
            };
        }
        // One that stopped or was ended leaves what it touched as it is; others have what came before.
        if last.has_given_up(phase) && !running.is_some_and(|runs| *runs == last.version || Some(runs) == back) {
            continue;
        }
        // It ended when a newer one took its nodes, and that one was given up in turn.
        if newer > 0 && phase == RolloutPhase::Superseded {
            continue;
        }
        return match running {
            None => {
                let why = now.filter(|now| !now.message.is_empty()).map(|now| format!(": {}", now.message));
                Some(format!("nothing of {app} runs, expected {}{}", last.version, why.unwrap_or_default()))
            }
            Some(version) if Some(version) == back => None,
            // An older one was asked for before, or a restored hub asks for it: what proved healthy since may stay.
            Some(version) if version < &last.version => {
                Some(format!("{app} {version} runs, expected {}", last.version))
            }
            Some(version) if now.is_some_and(|now| !now.ready) && !fleet.ends_by_itself(app) => {
                Some(format!("{app} {version} is not ready"))
            }
            Some(_) => None,
        };
    }
    None
}

/// One app of one box at one moment.
struct Here<'a> {
    fleet: &'a Fleet,
    at: Duration,
    name: &'a Name,
    node: &'a Seen,
    app: &'a Name,
    now: &'a AppSeen,
    /// How long its agent runs.
    agent_for: Option<Duration>,
    /// Time since the look before.
    since_last: Duration,
    /// Files of others that it uses may be replaced.
    files_may_change: bool,
    /// What a fault has its instances tell.
    backlog: Option<u32>,
}

impl Here<'_> {
    fn broken(&self, invariant: Invariant, message: String) -> Result<(), Violation> {
        Err(Violation::new(invariant, self.at, Some(self.name), format!("{}: {message}", self.name)))
    }

    /// I1: what runs is a release, and the same bytes everywhere.
    fn is_released(&self, digests: &mut BTreeMap<(Name, Version), Digest>) -> Result<(), Violation> {
        let Some(version) = &self.now.running else { return Ok(()) };
        if self.fleet.release(self.app, version).is_none() {
            return self.broken(Invariant::Trust, format!("{}@{version} runs and was never released", self.app));
        }
        let Some(digest) = self.now.digest else { return Ok(()) };
        let known = digests.entry((self.app.clone(), version.clone())).or_insert(digest);
        if *known != digest {
            let text = format!("{}@{version} runs as {digest}, elsewhere as {known}", self.app);
            return self.broken(Invariant::Trust, text);
        }
        Ok(())
    }

    /// I3: nothing runs and nothing is assigned that no rollout brings here. I1: nothing goes back.
    fn is_meant(&self, state: &App) -> Result<(), Violation> {
        for (version, word) in [(&self.now.running, "runs"), (&self.now.target, "is assigned")] {
            let Some(version) = version else { continue };
            if !self.fleet.may_run(self.name, self.app, version) {
                let text = format!("{}@{version} {word}, and no rollout of it selects this node", self.app);
                return self.broken(Invariant::Blast, text);
            }
        }
        if let (Some(running), Some(confirmed)) = (&self.now.running, &state.confirmed)
            && running < confirmed
            && state.forgetful.is_none()
            && self.fleet.only_rises(self.name, self.app)
        {
            let text = format!("{} went back to {running}, although {confirmed} had proved healthy", self.app);
            return self.broken(Invariant::Trust, text);
        }
        Ok(())
    }

    /// I1: a bad release is never taken for a good one, and is gone after a while.
    fn bad_ends(&self, state: &mut App) -> Result<(), Violation> {
        // Between two lives of it nothing runs: that ends no trial.
        let Some(version) = &self.now.running else { return Ok(()) };
        if !self.fleet.is_bad(self.app, version) {
            state.bad_for = Duration::ZERO;
            return Ok(());
        }
        if self.proved(version) {
            return self
                .broken(Invariant::Trust, format!("{}@{version} is bad and counts as proved healthy", self.app));
        }
        // While the agent is away nobody can find out.
        state.bad_for += self.since_last.min(self.agent_for.unwrap_or_default());
        if state.bad_for > BAD_STAYS {
            let text = format!("{}@{version} is bad and still runs after {BAD_STAYS:?} of its agent", self.app);
            return self.broken(Invariant::Trust, text);
        }
        Ok(())
    }

    /// What ran goes on, unless the box was off or another release came.
    fn undisturbed(&self, state: &App) -> Result<(), Violation> {
        let (Some(before), Some(confirmed)) = (&state.running, &state.confirmed) else { return Ok(()) };
        let on_its_way = self.is_on_its_way(state, before);
        let expected = before != confirmed
            || on_its_way
            || self.files_may_change
            || state.excused
            || state.forgetful.is_some()
            || !self.node.powered
            || self.fleet.ends_by_itself(self.app);
        let same = self.now.running.as_ref() == Some(before);
        if expected || (same && self.now.instance == state.instance) {
            return Ok(());
        }
        let now = match &self.now.running {
            None => "nothing runs".to_owned(),
            Some(_) if same => "it was started again".to_owned(),
            Some(version) => format!("{version} runs"),
        };
        let why = if self.agent_for.is_none_or(|agent_for| agent_for < self.fleet.up_within) {
            "its agent ended or started"
        } else {
            "no rollout asked for it"
        };
        self.broken(Invariant::Undisturbed, format!("{} {before} was disturbed, {now}: {why}", self.app))
    }

    /// Row 26: up soon after the agent's start, hub or not.
    fn is_up(&self, state: &mut App) -> Result<(), Violation> {
        state.up_since_start |= self.now.running.is_some();
        let Some(confirmed) = &state.confirmed else { return Ok(()) };
        if self.fleet.loses_gpus(self.app, confirmed) {
            return Ok(()); // it waits where none is left; that it comes when they are well is looked at in the end
        }
        let on_its_way = self.is_on_its_way(state, confirmed);
        let within = self.fleet.up_within + if on_its_way { TRIAL } else { Duration::ZERO };
        let late = self.agent_for.is_some_and(|agent_for| agent_for > within);
        if late && !state.up_since_start && state.damaged.is_none() && !self.fleet.ends_by_itself(self.app) {
            let text = format!(
                "nothing of {} runs {within:?} after the agent's start, {confirmed} had proved healthy",
                self.app
            );
            return self.broken(Invariant::Boot, text);
        }
        Ok(())
    }

    /// Replicas are as many as they are to be, and nobody disturbs them without need.
    fn replicas_follow(&self, state: &mut App) -> Result<(), Violation> {
        let Here { at, now, backlog, .. } = *self;
        let version = now.running.as_ref();
        let may_change = version.is_none_or(|version| self.is_on_its_way(state, version))
            || self.files_may_change
            || self.fleet.ends_by_itself(self.app);
        let is_calm =
            self.node.powered && !may_change && !state.excused && state.damaged.is_none() && state.forgetful.is_none();
        let release = version.and_then(|version| self.fleet.release(self.app, version));
        let is_settled = is_calm && self.agent_for.is_some();
        let look = replicas::Look { at, now, release, backlog, is_settled, is_calm };
        state.replicas.look(&look).or_else(|(invariant, text)| self.broken(invariant, format!("{}: {text}", self.app)))
    }

    /// Whether a version that came after this one may still be tried here.
    fn is_on_its_way(&self, state: &App, version: &Version) -> bool {
        self.fleet.after(self.name, self.app, version).any(|later| !state.failed.contains(later))
    }

    /// Whether a version that runs counts as proved healthy.
    fn proved(&self, version: &Version) -> bool {
        self.now.phase == Some(UpdatePhase::Succeeded) && self.now.target.as_ref() == Some(version) && self.now.ready
    }

    fn remember(&self, state: &mut App) {
        if self.now.running.is_some() && self.node.powered {
            state.excused = false;
        }
        if let Some(version) = self.now.running.as_ref().filter(|version| self.proved(version)) {
            state.confirmed = state.confirmed.take().max(Some(version.clone()));
            // A start looks at every file.
            state.damaged.take_if(|then| *then != self.now.instance);
            state.forgetful.take_if(|then| *then != self.now.instance);
        }
        if let (Some(UpdatePhase::Failed | UpdatePhase::RolledBack), Some(target)) = (self.now.phase, &self.now.target)
            && !state.failed.contains(target)
        {
            state.failed.insert(target.clone());
        }
        (state.running, state.instance) = (self.now.running.clone(), self.now.instance);
        state.uses.clone_from(&self.now.uses);
    }
}
