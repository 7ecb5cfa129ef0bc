//! The next step while no release is on trial.

use tokio::time::Instant;

use super::{Ask, HookView, RETRY_AFTER, Room, RunningView, Step, View, files, interrupted, target};
use crate::apps::slot::{Deferral, Failure, Installed, MAX_ATTEMPTS, Restart, RestartState, Trial};

/// How a staged release stands.
enum Update<'a> {
    /// There is none to apply.
    None,
    /// It may go on trial now.
    Ready(&'a Installed),
    /// This comes first; what is active goes on meanwhile.
    First(Step),
}

impl Update<'_> {
    /// Whether the app's own update goes on before new files of others are tried: one that waits does not.
    fn comes_first(&self, view: &View<'_>) -> bool {
        match self {
            Update::None => false,
            Update::First(Step::Wait(_)) => view.pre_apply == HookView::Running,
            Update::Ready(_) | Update::First(_) => true,
        }
    }
}

pub(super) fn step(view: &View<'_>) -> Step {
    let active = view.slot.active.as_ref();
    // What is live is adopted before the rest of an update is cleared away.
    let adopts = view.running.is_none() && view.leftover && active.is_some() && !view.wanted.is_drained();
    if view.beside.is_alive() && !adopts {
        return Step::StopBeside;
    }
    if view.wanted.is_drained() {
        return if view.is_alive() { Step::Stop } else { Step::Wait(None) };
    }
    let update = update(view);
    let Some(running) = &view.running else {
        // A staged release goes on trial; otherwise the active one comes up.
        return match (update, active) {
            (Update::Ready(ready), _) if !view.beside.is_alive() => Step::Switch(on_trial(view, ready)),
            (update, Some(active)) if !view.is_alive() && !update.comes_first(view) && may_come_up(view, active) => {
                files::trial(view).map_or_else(|| come_up(view, active), Step::Switch)
            }
            (_, Some(active)) if may_come_up(view, active) => come_up(view, active),
            (Update::First(step), _) => step,
            _ if view.leftover => Step::Stop,
            _ => Step::Wait(None),
        };
    };
    if active.is_none_or(|a| a.release.digest != running.digest) {
        return Step::Stop;
    }
    let begins = if update.comes_first(view) { None } else { files::begin(view, running) };
    match update {
        Update::Ready(ready) if *view.room == Room::Enough && !running.is_red(view.now) => {
            Step::Switch(Trial { standby: true, unhealthy_before: false, cold: None, ..on_trial(view, ready) })
        }
        Update::Ready(_) => Step::Stop,
        _ if view.moves => Step::Stop,
        _ if let Some(step) = begins => step,
        // While the update waits, a restart goes on.
        Update::First(Step::Wait(until)) => match restart(view, running) {
            Step::Wait(other) => Step::Wait(earlier(until, other)),
            step => step,
        },
        Update::First(step) => step,
        Update::None => restart(view, running),
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

fn on_trial(view: &View<'_>, ready: &Installed) -> Trial {
    Trial {
        installed: Installed { uses: view.files.staged.clone(), ..ready.clone() },
        boot_id: view.boot_id.to_owned(),
        unhealthy_before: view.stopped_red,
        standby: false,
        cold: view.cold.map(str::to_owned),
        files_of: None,
    }
}

fn update<'a>(view: &View<'a>) -> Update<'a> {
    let Some(ready) = view.staged.filter(|s| target(view).is_some_and(|t| t.digest == s.release.digest)) else {
        return Update::None;
    };
    let Some(ask) = view.wanted.ask().filter(|ask| !ask.order.hold) else { return Update::None };
    let attempts = view.slot.attempts(ready.release.digest);
    if attempts >= MAX_ATTEMPTS {
        return Update::First(Step::Abandon(Some(interrupted(ready, MAX_ATTEMPTS))));
    }
    if let Some(running) = view.running.as_ref().filter(|_| attempts > 0) {
        let retry_at = running.since + RETRY_AFTER;
        if view.now < retry_at {
            return Update::First(Step::Wait(Some(retry_at)));
        }
    }
    if let Some(red_at) = view.running.as_ref().and_then(RunningView::red_at).filter(|at| view.now < *at) {
        return Update::First(Step::Wait(Some(red_at))); // nobody knows yet how healthy it is
    }
    if view.refused.contains_key(&ready.release.digest) {
        return Update::First(Step::Wait(None)); // what runs goes on until there are GPUs for it
    }
    may_apply(view, ask, ready).map_or(Update::Ready(ready), Update::First)
}

/// What the release's preApply hook leaves to do first.
fn may_apply(view: &View<'_>, ask: &Ask, ready: &Installed) -> Option<Step> {
    match view.pre_apply {
        HookView::Passed => None,
        HookView::Due => Some(Step::PreApply(ready.clone())),
        HookView::Running => Some(Step::Wait(None)),
        HookView::Failed(why) => {
            let why = format!("its preApply hook failed: {why}");
            Some(Step::Abandon(Some(Failure::of(ready, "PreApplyFailed", why))))
        }
        HookView::PutOff(put_off) => {
            let ends_at = put_off.at + put_off.left(&ask.order);
            let (digest, spent_s) = (ready.release.digest, put_off.spent.as_secs());
            match view.now {
                now if now >= ends_at => None,
                _ if !put_off.recorded => Some(Step::Defer(Deferral { digest, spent_s })),
                now if now >= put_off.again_at => Some(Step::PreApply(ready.clone())),
                _ => Some(Step::Wait(Some(ends_at.min(put_off.again_at)))),
            }
        }
    }
}

/// Whether the active release is whole, and there are GPUs for it. What runs without a supervisor is taken over.
fn may_come_up(view: &View<'_>, active: &Installed) -> bool {
    let digest = active.release.digest;
    view.damaged != Some(digest) && (view.leftover || !view.refused.contains_key(&digest))
}

/// The active release starts, once it is on record that a restart that is due stopped it.
fn come_up(view: &View<'_>, active: &Installed) -> Step {
    match &view.slot.restart {
        Some(restart) if restart.state == RestartState::Due && !view.leftover => {
            Step::Restart(Restart::new(&restart.text, RestartState::Started))
        }
        _ => Step::Start(active.clone()),
    }
}

/// How a restart goes on while the active release runs.
fn restart(view: &View<'_>, running: &RunningView) -> Step {
    let Some(restart) = &view.slot.restart else { return Step::Wait(None) };
    let record = |state| Step::Restart(Restart::new(&restart.text, state));
    match &restart.state {
        RestartState::Done | RestartState::Failed(_) => Step::Wait(None),
        RestartState::Due => Step::Stop,
        RestartState::Started => {
            let deadline = running.since + running.deadline;
            match running.healthy_since.map(|since| since + running.soak) {
                Some(proven) if view.now >= proven => record(RestartState::Done),
                Some(proven) => Step::Wait(Some(proven)),
                None if running.ended => record(RestartState::Failed(format!("it ended: {}", running.detail()))),
                None if view.now >= deadline => record(RestartState::Failed(running.not_healthy_in_time())),
                None => Step::Wait(Some(deadline)),
            }
        }
    }
}
