//! All that the planner looks at: what is on disk, wanted and running, and how the hooks stand.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use proto::{
    digest::Digest,
    name::Name,
    object::{AppOrder, ReleaseRef},
};
use tokio::time::Instant;

use crate::{
    apps::{
        plan::Over,
        slot::{Failure, Installed, Slot},
        uses::{Offer, Standing, Users},
    },
    driver::Side,
    gpu::allot::Refusal,
};

/// Longest time that updates may be put off, whatever the assignment says.
const MAX_DEFERRAL_S: u64 = 365 * 86_400;

/// What the assignment says about an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Run this.
    Run(Ask),
    /// Go on with whatever is active: there is no assignment to read.
    Keep,
    /// Stop it and remove it.
    Remove,
}

/// What the assignment asks of an app that is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Which release.
    pub release: ReleaseRef,
    /// What is asked besides.
    pub order: AppOrder,
    /// Everything of the node is to be stopped, and stays installed.
    pub drained: bool,
}

impl Wanted {
    /// What is asked of an app that is to run.
    #[must_use]
    pub fn ask(&self) -> Option<&Ask> {
        match self {
            Wanted::Run(ask) => Some(ask),
            Wanted::Keep | Wanted::Remove => None,
        }
    }

    /// The release that is to run.
    #[must_use]
    pub fn release(&self) -> Option<&ReleaseRef> {
        self.ask().map(|ask| &ask.release)
    }

    /// Whether it is to be stopped for as long as the node is drained.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.ask().is_some_and(|ask| ask.drained)
    }
}

impl From<ReleaseRef> for Wanted {
    /// To be run at once.
    fn from(release: ReleaseRef) -> Wanted {
        Wanted::Run(Ask { release, order: AppOrder::default(), drained: false })
    }
}

/// What runs under supervision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningView {
    /// Which release.
    pub digest: Digest,
    /// Since when this process supervises it.
    pub since: Instant,
    /// Since when it is healthy without a break.
    pub healthy_since: Option<Instant>,
    /// Since when it is not, as far as this process knows; absent while it is healthy.
    pub unhealthy_since: Option<Instant>,
    /// How long its probes take to tell that it is not healthy: the first waits and failure thresholds of its
    /// startup and readiness probes, at most its deadline.
    pub red_after: Duration,
    /// It runs, and never ended since this process supervises it.
    pub steady: bool,
    /// It ended and will not be started again.
    pub ended: bool,
    /// What is wrong with it, for people.
    pub message: String,
    /// How long it must stay healthy.
    pub soak: Duration,
    /// By when it must have become healthy, counted from its start.
    pub deadline: Duration,
}

impl RunningView {
    /// From when on it counts as unhealthy; `None` while it is healthy.
    pub(super) fn red_at(&self) -> Option<Instant> {
        let since = self.unhealthy_since?;
        Some(if self.ended { since } else { since + self.red_after })
    }

    /// Whether it counts as unhealthy.
    #[must_use]
    pub fn is_red(&self, now: Instant) -> bool {
        self.red_at().is_some_and(|at| now >= at)
    }

    /// What is wrong with it.
    pub(super) fn detail(&self) -> &str {
        if self.message.is_empty() { "no probe has succeeded" } else { &self.message }
    }

    pub(super) fn not_healthy_in_time(&self) -> String {
        format!("it was not healthy within {} s: {}", self.deadline.as_secs_f64(), self.detail())
    }
}

/// How a hook stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookView<'a> {
    /// It has to run.
    Due,
    /// It runs.
    Running,
    /// It ended well, or the release has none.
    Passed,
    /// It put the update off.
    PutOff(PutOff<'a>),
    /// It failed, and how.
    Failed(&'a str),
}

/// An update was put off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutOff<'a> {
    /// When it was said.
    pub at: Instant,
    /// The same by the node's clock, for people.
    pub at_wall: Timestamp,
    /// How long it had been put off before, in all.
    pub spent: Duration,
    /// Whether that is on record.
    pub recorded: bool,
    /// When the hook is to be asked again.
    pub again_at: Instant,
    /// What it said.
    pub message: &'a str,
}

impl PutOff<'_> {
    /// For how long it may still be put off.
    #[must_use]
    pub fn left(&self, order: &AppOrder) -> Duration {
        Duration::from_secs(order.max_deferral_s.min(MAX_DEFERRAL_S)).saturating_sub(self.spent)
    }
}

/// What there is of the app beside the live instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beside {
    /// What runs under supervision.
    pub running: Option<RunningView>,
    /// Whether the driver holds an instance that nobody supervises.
    pub leftover: bool,
}

impl Beside {
    /// Whether anything runs there, or may.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.running.is_some() || self.leftover
    }
}

/// Whether another instance can run beside the live one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Room {
    /// Nobody asks for it.
    #[default]
    NotAsked,
    /// It can.
    Enough,
    /// It cannot, and the arithmetic of it, for people.
    Short(String),
}

/// What the app uses of others' files, and others of its own; see [`uses`](crate::apps::uses).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// How those stand that use the files of the release on trial.
    pub users: Users,
    /// Whether they are asked.
    pub offered: bool,
    /// Whose instances have files of this app.
    pub held_by: BTreeSet<Name>,
    /// New files for the active release to prove, to which it has not answered.
    pub offer: Option<Offer>,
    /// Whether another instance of the active release can run beside the live one, to prove them.
    pub room: Room,
    /// How the files stand that are to be proved by the trial.
    pub standing: Option<Standing>,
    /// Whether they were proved, or not, in this trial.
    pub answered: bool,
    /// What a staged release gets to use.
    pub staged: BTreeMap<Name, ReleaseRef>,
    /// A release that was started before it was on record what it uses, and what that is.
    pub unpinned: Option<(Digest, BTreeMap<Name, ReleaseRef>)>,
}

/// All that the planner looks at.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// The durable state.
    pub slot: &'a Slot,
    /// What is wanted.
    pub wanted: &'a Wanted,
    /// The release that is accepted, whole and on disk.
    pub staged: Option<&'a Installed>,
    /// What runs under supervision.
    pub running: Option<RunningView>,
    /// Whether the driver holds an instance that nobody supervises, left by an agent before.
    pub leftover: bool,
    /// What there is beside that, on the other side.
    pub beside: Beside,
    /// Whether replicas but the first run, or may.
    pub replicas: bool,
    /// Whether the release that would be started next can run beside what is live.
    pub room: &'a Room,
    /// Why what was stopped last was stopped before the next one started, although both are updated warm.
    pub cold: Option<&'a str>,
    /// Whether what runs asks which instance is live.
    pub serves: bool,
    /// Which instance workload and clients take for the live one, see [`live`](crate::apps::live).
    pub live: Option<Side>,
    /// What it uses of others' files, and others of its own.
    pub files: &'a Files,
    /// Whether this process has counted the recorded trial as an attempt.
    pub begun: bool,
    /// The preApply hook of what is staged.
    pub pre_apply: HookView<'a>,
    /// The postApply hook of what runs.
    pub post_apply: HookView<'a>,
    /// Whether what was stopped last was the active release, and counted as unhealthy then.
    pub stopped_red: bool,
    /// How the trial ended, which is not on record yet.
    pub verdict: Option<&'a Over>,
    /// Digest of a release whose tree was found damaged and must be fetched again before it runs.
    pub damaged: Option<Digest>,
    /// Why releases that do not run cannot have their GPUs now, by digest.
    pub refused: &'a BTreeMap<Digest, Refusal>,
    /// What runs is not healthy, a GPU of its is not well, and it would get others were it started again.
    pub moves: bool,
    /// Where the way to the app's files leads, see [`current`](super::current).
    pub linked: Option<Digest>,
    /// This boot.
    pub boot_id: &'a str,
    /// Now.
    pub now: Instant,
}

impl View<'_> {
    /// Whether anything runs as the live one, or may.
    pub(super) fn is_alive(&self) -> bool {
        self.running.is_some() || self.leftover
    }

    /// How the trial of a release ended, and why, which is not on record yet.
    pub(crate) fn verdict_of(&self, digest: Digest) -> Option<(&Over, &Failure)> {
        let over = self.verdict?;
        Some((over, over.failure().filter(|failure| failure.digest == digest)?))
    }

    /// A restart text that was not acted on yet.
    pub(super) fn new_restart(&self) -> Option<&str> {
        let text = self.wanted.ask()?.order.restart.as_deref()?;
        (self.slot.restart.as_ref().map(|r| r.text.as_str()) != Some(text)).then_some(text)
    }
}
