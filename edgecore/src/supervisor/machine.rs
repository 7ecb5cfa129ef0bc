//! What a supervisor decides, without I/O: when to start, to probe, to kill, to start again.
//!
//! ```text
//! waiting --(time)--> starting --(program runs)--> up --(ended)--> waiting, or done by policy
//!                        \--(could not)--> waiting   \--(probe gave up)--> killing --> waiting, or done
//! ```
//!
//! The task in [`super`] drives it: inputs with `now`, then [`Machine::poll`] until there is nothing to
//! do, then sleep until [`Machine::wake_at`] or the next input.

use std::time::Duration;

use jiff::Timestamp;
use proto::{
    object::{LastExit, RunState},
    release::{Probe, RestartPolicy, Workload},
};
use rand::Rng;
use tokio::time::Instant;

use super::Health;
use crate::driver::ProbeOutcome;

const BACK_OFF_FIRST: Duration = Duration::from_secs(1);
const BACK_OFF_MOST: Duration = Duration::from_secs(300);
/// After running so long, the next back-off is the first again.
const BACK_OFF_RESET: Duration = Duration::from_secs(600);
/// Until a probe succeeds for the first time it is also tried between its periods, so that a quick
/// program is found healthy quickly. Such attempts count when they succeed and not when they fail.
const EAGER_FIRST: Duration = Duration::from_millis(50);

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start the program; then [`Machine::started`] or [`Machine::start_failed`].
    Start,
    /// Stop the program, it is to be started anew; then [`Machine::killed`].
    Kill,
    /// Make one attempt of a probe; then [`Machine::probed`].
    Probe(ProbeKind),
}

/// The three probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeKind {
    /// Until it succeeds the others wait.
    Startup,
    /// Restarts the workload.
    Liveness,
    /// Says whether it is ready.
    Readiness,
}

impl ProbeKind {
    fn word(self) -> &'static str {
        match self {
            ProbeKind::Startup => "startup",
            ProbeKind::Liveness => "liveness",
            ProbeKind::Readiness => "readiness",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting { until: Instant },
    Starting,
    Up { since: Instant },
    MustKill,
    Killing,
    Done,
}

/// One probe while the program runs.
#[derive(Debug)]
struct Track {
    kind: ProbeKind,
    probe: Probe,
    regular_at: Instant,
    eager: Option<(Instant, Duration)>,
    /// Whether a failure of the attempt in flight counts.
    in_flight: Option<bool>,
    successes: u32,
    failures: u32,
}

/// See the module's picture.
#[derive(Debug)]
pub struct Machine<R> {
    tracks: Vec<Track>,
    has_startup: bool,
    has_readiness: bool,
    policy: RestartPolicy,
    jitter: R,
    back_off: Duration,
    phase: Phase,
    starts: u32,
    /// See [`Machine::lost_sight`].
    unseen: bool,
    health: Health,
}

impl<R: Rng> Machine<R> {
    /// For a workload that is to be started now.
    pub fn new(workload: &Workload, jitter: R, now: Instant) -> Machine<R> {
        let probes = &workload.probes;
        let tracks = [
            (ProbeKind::Startup, &probes.startup),
            (ProbeKind::Liveness, &probes.liveness),
            (ProbeKind::Readiness, &probes.readiness),
        ];
        let tracks = tracks.into_iter().filter_map(|(kind, probe)| Some(Track::new(kind, probe.clone()?, now)));
        Machine {
            tracks: tracks.collect(),
            has_startup: probes.startup.is_some(),
            has_readiness: probes.readiness.is_some(),
            policy: workload.restart,
            jitter,
            back_off: BACK_OFF_FIRST,
            phase: Phase::Waiting { until: now },
            starts: 0,
            unseen: false,
            health: Health::starting(),
        }
    }

    /// How things are.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Whether the program runs and its end is to be waited for.
    pub fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up { .. })
    }

    /// What runs is not known yet, for want of an answer of the driver.
    pub fn unknown(&mut self, problem: &str) {
        self.health.message = problem.to_owned();
    }

    /// The driver cannot tell any more whether the program runs, as when a container's engine is away. It may, so it is
    /// left alone; it is ready again when a probe says so, or the driver does.
    pub fn lost_sight(&mut self, problem: &str) {
        if self.is_up() && !std::mem::replace(&mut self.unseen, true) {
            (self.health.ready, self.health.healthy_since) = (false, None);
            self.health.message = format!("nobody knows whether it runs: {problem}");
        }
    }

    /// The driver can tell again, and it runs.
    pub fn seen_again(&mut self, now: Instant) {
        let unseen = std::mem::take(&mut self.unseen);
        if unseen && self.is_up() && self.health.state == RunState::Running && !self.health.ready {
            self.startup_done(now);
        }
    }

    /// Instead of a start: it ran already when the agent came.
    pub fn adopt(&mut self, now: Instant, started_at: Timestamp) {
        self.starts = 1;
        self.started(now, started_at);
    }

    /// Instead of a start: it ran and ended of its own accord while no agent was there.
    pub fn found_ended(&mut self, now: Instant, exit: LastExit) {
        let final_success = exit.code == Some(0) && self.policy != RestartPolicy::Always;
        self.health.last_exit = Some(exit.clone());
        if final_success || self.policy == RestartPolicy::Never {
            self.starts = 1;
            self.finish(now, &exit);
        }
    }

    /// The program runs.
    pub fn started(&mut self, now: Instant, started_at: Timestamp) {
        self.phase = Phase::Up { since: now };
        self.unseen = false;
        for track in &mut self.tracks {
            track.reset(now);
        }
        self.health.started_at = Some(started_at);
        self.health.live = true;
        self.health.state = RunState::Starting;
        self.health.message = "waits for its startup probe".into();
        if !self.has_startup {
            self.startup_done(now);
        }
    }

    /// The program could not be started. It is tried again whatever the policy says: it never ran.
    pub fn start_failed(&mut self, now: Instant, problem: &str) {
        self.health.message = problem.to_owned();
        self.wait_back_off(now);
    }

    /// The program ended of its own accord.
    pub fn ended(&mut self, now: Instant, exit: LastExit) {
        self.forgive(now);
        self.health.message = exit.message.clone();
        self.after_end(now, exit);
    }

    /// The program was stopped after [`Action::Kill`].
    pub fn killed(&mut self, now: Instant, exit: LastExit) {
        // Stopping may look like success; a probe that gave up is none.
        let exit = LastExit { message: self.health.message.clone(), ..exit };
        match self.policy {
            RestartPolicy::Never => {
                self.health.last_exit = Some(exit);
                self.phase = Phase::Done;
                self.down(RunState::Exited);
            }
            _ => self.restart(now, exit),
        }
    }

    /// A program that ran for long begins anew with the first back-off.
    fn forgive(&mut self, now: Instant) {
        if let Phase::Up { since } = self.phase
            && now.saturating_duration_since(since) >= BACK_OFF_RESET
        {
            self.back_off = BACK_OFF_FIRST;
        }
    }

    fn after_end(&mut self, now: Instant, exit: LastExit) {
        let again = match self.policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit.code != Some(0),
            RestartPolicy::Never => false,
        };
        if again { self.restart(now, exit) } else { self.finish(now, &exit) }
    }

    fn restart(&mut self, now: Instant, exit: LastExit) {
        self.health.last_exit = Some(exit);
        self.wait_back_off(now);
    }

    fn finish(&mut self, now: Instant, exit: &LastExit) {
        let healthy_since = self.health.healthy_since;
        self.phase = Phase::Done;
        self.down(RunState::Exited);
        self.health.last_exit = Some(exit.clone());
        self.health.message = exit.message.clone();
        if exit.code == Some(0) {
            // It did its work.
            (self.health.ready, self.health.live) = (true, true);
            self.health.healthy_since = healthy_since.or(Some(now));
            self.health.message.clear();
        }
    }

    fn down(&mut self, state: RunState) {
        self.health.state = state;
        (self.health.ready, self.health.live, self.health.healthy_since) = (false, false, None);
        self.health.started_at = None;
    }

    fn wait_back_off(&mut self, now: Instant) {
        // A fifth of it is chance, so that what failed together does not return together.
        let permille = 800 + self.jitter.next_u32() % 201;
        let delay = self.back_off * permille / 1000;
        self.back_off = (self.back_off * 2).min(BACK_OFF_MOST);
        self.phase = Phase::Waiting { until: now + delay };
        self.down(RunState::BackOff);
    }

    fn startup_done(&mut self, now: Instant) {
        self.health.state = RunState::Running;
        self.health.ready = !self.has_readiness;
        self.health.message = if self.has_readiness { "waits for its readiness probe".into() } else { String::new() };
        self.health.healthy_since = self.health.ready.then_some(now);
    }

    /// A probe was attempted. Attempts that belong to a program before this one are not handed in.
    pub fn probed(&mut self, now: Instant, kind: ProbeKind, outcome: &ProbeOutcome) {
        let Phase::Up { .. } = self.phase else { return };
        let Some(track) = self.tracks.iter_mut().find(|t| t.kind == kind) else { return };
        let Some(counts) = track.in_flight.take() else { return };
        match outcome {
            ProbeOutcome::Success => {
                (track.successes, track.failures, track.eager) = (track.successes.saturating_add(1), 0, None);
                if track.successes >= track.probe.success_threshold {
                    self.succeeded(now, kind);
                }
            }
            ProbeOutcome::Failure(text) => {
                track.successes = 0;
                track.failures = track.failures.saturating_add(u32::from(counts));
                let failed = track.failures >= track.probe.failure_threshold;
                let text = format!("{} probe failed: {text}", kind.word());
                self.failed(now, kind, failed, text);
            }
        }
    }

    fn succeeded(&mut self, now: Instant, kind: ProbeKind) {
        match kind {
            ProbeKind::Startup if self.health.state == RunState::Starting => {
                for track in self.tracks.iter_mut().filter(|t| t.kind != ProbeKind::Startup) {
                    track.regular_at = track.regular_at.max(now);
                    track.eager = track.eager.map(|(at, delay)| (at.max(now), delay));
                }
                self.startup_done(now);
            }
            ProbeKind::Readiness if !self.health.ready => {
                self.health.ready = true;
                self.health.healthy_since = Some(now);
                self.health.message.clear();
            }
            _ => {}
        }
    }

    fn failed(&mut self, now: Instant, kind: ProbeKind, for_good: bool, text: String) {
        match (kind, for_good) {
            (ProbeKind::Startup | ProbeKind::Liveness, true) => {
                self.forgive(now);
                self.health.message = format!("{text}; it is restarted");
                (self.health.ready, self.health.live, self.health.healthy_since) = (false, false, None);
                self.phase = Phase::MustKill;
            }
            (ProbeKind::Readiness, true) => {
                (self.health.ready, self.health.healthy_since) = (false, None);
                self.health.message = text;
            }
            // Not healthy yet: say what it waits for.
            (_, false) if !self.health.ready => self.health.message = text,
            _ => {}
        }
    }

    /// The next thing to do, once each.
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        match self.phase {
            Phase::Waiting { until } if until <= now => {
                self.phase = Phase::Starting;
                self.health.restarts = self.starts;
                self.starts = self.starts.saturating_add(1);
                Some(Action::Start)
            }
            Phase::MustKill => {
                self.phase = Phase::Killing;
                Some(Action::Kill)
            }
            Phase::Up { .. } => self.active_tracks().find_map(|t| t.begin(now)).map(Action::Probe),
            _ => None,
        }
    }

    /// When [`Machine::poll`] has something to do if no input comes before.
    pub fn wake_at(&mut self) -> Option<Instant> {
        match self.phase {
            Phase::Waiting { until } => Some(until),
            Phase::Up { .. } => self.active_tracks().filter_map(|t| t.due_at()).min(),
            _ => None,
        }
    }

    fn active_tracks(&mut self) -> impl Iterator<Item = &mut Track> {
        let starting = self.health.state == RunState::Starting;
        self.tracks.iter_mut().filter(move |t| (t.kind == ProbeKind::Startup) == starting)
    }
}

impl Track {
    fn new(kind: ProbeKind, probe: Probe, now: Instant) -> Track {
        Track { kind, probe, regular_at: now, eager: None, in_flight: None, successes: 0, failures: 0 }
    }

    fn reset(&mut self, now: Instant) {
        let first = now + self.probe.initial_delay.get();
        *self = Track::new(self.kind, self.probe.clone(), first);
        if self.kind != ProbeKind::Liveness {
            self.eager = Some((first + EAGER_FIRST, EAGER_FIRST * 2));
        }
    }

    fn due_at(&self) -> Option<Instant> {
        let eager_at = self.eager.map_or(self.regular_at, |(at, _)| at);
        self.in_flight.is_none().then_some(self.regular_at.min(eager_at))
    }

    fn begin(&mut self, now: Instant) -> Option<ProbeKind> {
        if self.due_at()? > now {
            return None;
        }
        let regular = self.regular_at <= now;
        if regular {
            self.regular_at = now + self.probe.period.get();
        }
        if let Some((at, delay)) = self.eager
            && at <= now
        {
            // Once the steps are as long as the period they add nothing.
            self.eager = (delay < self.probe.period.get()).then(|| (now + delay, delay * 2));
        }
        self.in_flight = Some(regular);
        Some(self.kind)
    }
}
