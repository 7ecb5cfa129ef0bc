//! The hooks of a release: run beside the rounds of an app, and what they answered.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use proto::{digest::Digest, release::Hook};
use tokio::{task::JoinSet, time::Instant};

use super::App;
use crate::{
    apps::{
        plan::{ASK_AGAIN, ASK_AGAIN_MOST, HookView, PutOff},
        slot::{Deferral, Slot},
    },
    driver::{Driver, HookOutcome, InstanceSpec},
};

/// One hook of one release, in this life of the agent. Dropping it kills what runs.
#[derive(Debug, Default)]
pub(super) struct Hooking {
    state: State,
    /// How often it put the update off.
    times: u32,
    /// When it did so last.
    last: Option<Instant>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Due,
    Running(JoinSet<HookOutcome>),
    Passed,
    PutOff {
        at: Instant,
        at_wall: Timestamp,
        spent: Duration,
        recorded: bool,
        message: String,
    },
    Failed(String),
}

impl Hooking {
    /// `hook` is that of the release: without one there is nothing to wait for.
    pub(super) fn view(&self, hook: Option<&Hook>) -> HookView<'_> {
        if hook.is_none() {
            return HookView::Passed;
        }
        match &self.state {
            State::Due => HookView::Due,
            State::Running(_) => HookView::Running,
            State::Passed => HookView::Passed,
            State::PutOff { at, at_wall, spent, recorded, message } => {
                let doubled = 2_u32.saturating_pow(self.times.saturating_sub(1));
                let again_at = *at + ASK_AGAIN.saturating_mul(doubled).min(ASK_AGAIN_MOST);
                let (at, at_wall, spent, recorded) = (*at, *at_wall, *spent, *recorded);
                HookView::PutOff(PutOff { at, at_wall, spent, recorded, again_at, message })
            }
            State::Failed(why) => HookView::Failed(why),
        }
    }

    pub(super) fn run(&mut self, driver: Arc<dyn Driver>, spec: InstanceSpec, hook: Hook) {
        let mut task = JoinSet::new();
        task.spawn(async move { driver.hook(&spec, &hook).await });
        self.state = State::Running(task);
    }

    /// How it ended, once it did. Cancel safe.
    pub(super) async fn ended(&mut self) -> HookOutcome {
        let State::Running(task) = &mut self.state else { return std::future::pending().await };
        match task.join_next().await {
            Some(Ok(outcome)) => outcome,
            Some(Err(e)) => HookOutcome::Failure(format!("it broke off: {e}")),
            None => std::future::pending().await,
        }
    }

    /// It ended; `before` is what is on record of the release.
    pub(super) fn answered(&mut self, outcome: HookOutcome, before: Option<&Deferral>, at_wall: Timestamp) {
        self.state = match outcome {
            HookOutcome::Success => State::Passed,
            HookOutcome::Failure(why) => State::Failed(why),
            HookOutcome::PutOff(message) => {
                let at = Instant::now();
                self.times = self.times.saturating_add(1);
                // An agent that comes and goes counts a little each time, so that it does not wait for ever.
                let since = self.last.replace(at).map_or(ASK_AGAIN, |last| at.saturating_duration_since(last));
                let spent = before.map_or(Duration::ZERO, |d| Duration::from_secs(d.spent_s).saturating_add(since));
                State::PutOff { at, at_wall, spent, recorded: false, message }
            }
        };
    }

    /// That it put the update off is on record.
    pub(super) fn recorded(&mut self) {
        if let State::PutOff { recorded, .. } = &mut self.state {
            *recorded = true;
        }
    }
}

impl App {
    /// The preApply hook of what is staged answered.
    pub(super) fn pre_apply_ended(&mut self, outcome: HookOutcome) {
        let Some(staged) = &self.staged else { return };
        if staged.damaged.load(Ordering::Relaxed) {
            tracing::warn!(app = %self.name, "what was staged is damaged: it is fetched again");
            self.staged = None;
            return;
        }
        tracing::info!(app = %self.name, ?outcome, "preApply");
        let before = deferral(&self.slot, staged.installed.release.digest);
        self.pre_apply.answered(outcome, before, self.shared.env.wall.now());
    }

    /// The postApply hook of what runs answered.
    pub(super) fn post_apply_ended(&mut self, outcome: HookOutcome) {
        tracing::info!(app = %self.name, ?outcome, "postApply");
        if let Some(run) = &mut self.run {
            run.post_apply.answered(outcome, None, self.shared.env.wall.now());
        }
    }

    pub(super) fn run_pre_apply(&mut self) {
        let Some(staged) = &self.staged else { return };
        let Some(hook) = staged.hooks.pre_apply.clone() else { return };
        let guard = self.guard(staged.damaged.clone());
        let (release, side) = (&staged.installed.release, self.slot.side);
        let uses = &self.files.staged;
        let spec = self.shared.spec(&self.name, &self.folder, side, release, staged.workload.clone(), uses);
        self.pre_apply.run(Arc::new(guard), spec, hook);
    }

    /// Its tree was verified when it was started, as for its probes.
    pub(super) fn run_post_apply(&mut self) {
        let driver = self.shared.driver.clone();
        let Some(run) = &mut self.run else { return };
        if let Some(hook) = run.hooks.post_apply.clone() {
            run.post_apply.run(driver, run.spec.clone(), hook);
        }
    }
}

fn deferral(slot: &Slot, digest: Digest) -> Option<&Deferral> {
    slot.deferral.as_ref().filter(|d| d.digest == digest)
}

/// A flag that a [`Guard`](crate::apps::guard::Guard) raises.
pub(super) fn lowered() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(false))
}
