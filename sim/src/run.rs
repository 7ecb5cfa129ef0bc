//! Plays a [`Plan`] on a [`World`], whatever it was read from or drawn by.
//!
//! ```text
//! hub, sites, agents: all Ready --> timeline and producers --> duration: heal all --> converged?
//!                                    every virtual second: observe, record, ask the oracle
//! ```
//!
//! One queue by virtual time holds all that is to happen. While nothing changes for minutes and nothing is due, the
//! looks become rarer: a month of silence is cheap. Each run has a thread, a paused runtime and a folder of its own.

mod backups;
mod queue;
mod rate;
mod see;
mod tally;

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail, ensure};
use proto::{
    env::Seed,
    name::{Name, Version},
};
use rand::RngExt as _;
use tokio::time::{Instant, sleep_until, timeout};

use self::{
    backups::Restore,
    queue::{Queue, Step},
    rate::Source,
    tally::Tally,
};
use crate::{
    fault::Fault,
    oracle::{Oracle, Violation},
    plan::{Action, Moment, Plan, Release},
    record::{End, Record, Recorder},
    trace::Trace,
    world::{Observation, World},
};

/// Time in which a fleet must be Ready before anything is broken; every box adds a little.
const READY: Duration = Duration::from_secs(300);
const READY_EACH: Duration = Duration::from_millis(500);
/// Between two looks while something happens, and while nothing has for a while.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_QUIET: Duration = Duration::from_secs(20);
const QUIET_AFTER: Duration = Duration::from_secs(300);
/// Something that waits for a moment is looked at so often at first, and later at every look.
const POLL: Duration = Duration::from_millis(20);
const POLL_CLOSELY: Duration = Duration::from_secs(600);
/// Longest virtual time that breaking or mending may take: beyond it the world itself hangs.
const STRIKE: Duration = Duration::from_secs(3600);
/// Lines of the trace that are shown with a failure.
const SHOWN: usize = 12;
const STACK_BYTES: usize = 16 << 20;

/// How a plan is played.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The trace goes to this file.
    pub trace: Option<PathBuf>,
}

/// A run that did not end as it must.
#[derive(Debug)]
pub struct RunError {
    /// All that was seen until then; its `error` says what was wrong.
    pub record: Box<Record>,
    /// The invariant that was broken, where it was one.
    pub violation: Option<Violation>,
    /// The last lines of the trace of those concerned.
    pub tail: Vec<String>,
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.record.error.as_deref().unwrap_or("it failed"))?;
        if !self.tail.is_empty() {
            write!(f, "\nlast lines of the trace:\n  {}", self.tail.join("\n  "))?;
        }
        Ok(())
    }
}

impl std::error::Error for RunError {}

/// Plays a plan, on a thread of its own.
///
/// # Errors
/// [`RunError`] when an invariant is broken, or it does not converge, or an entry of the timeline never fired; another error when
/// the simulator itself fails.
pub fn play(plan: &Plan, seed: u64, options: &Options) -> anyhow::Result<Record> {
    let (plan, options) = (plan.clone(), options.clone());
    let thread = std::thread::Builder::new()
        .name(format!("{} {seed}", plan.name))
        .stack_size(STACK_BYTES)
        .spawn(move || play_here(&plan, seed, &options))?;
    thread.join().unwrap_or_else(|_| bail!("seed {seed} panicked; see above"))
}

fn play_here(plan: &Plan, seed: u64, options: &Options) -> anyhow::Result<Record> {
    // Without I/O: nothing of a run may reach a real socket.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    runtime.block_on(async {
        let trace = Trace::new(options.trace.as_deref()).context("write the trace")?;
        let world = World::new(Seed::from_u64(seed), trace.clone()).await?;
        let mut run = Run::new(plan, seed, world);
        let mut outcome = run.all().await;
        let concerned = run.concerned(&outcome);
        let (at, books) = (run.world.elapsed(), run.oracle.books());
        if outcome.is_ok() {
            outcome = run.world.check();
        }
        let ended = run.world.end().await;
        trace.flush().context("write the trace")?;
        if outcome.is_ok() {
            outcome = ended;
        }
        let mut end = End {
            at,
            healing_at: run.healing_at,
            trace_digest: trace.digest(),
            trace_lines: trace.lines(),
            books,
            violation: None,
            error: None,
        };
        let Err(error) = outcome else { return Ok(run.recorder.finish(end)) };
        end.error = Some(format!("{error:#}"));
        end.violation = error.downcast_ref::<Violation>().cloned();
        let violation = end.violation.clone();
        let record = Box::new(run.recorder.finish(end));
        Err(RunError { record, violation, tail: trace.tail(&concerned, SHOWN) }.into())
    })
}

/// A plan that is being played.
struct Run<'p> {
    plan: &'p Plan,
    world: World,
    oracle: Oracle,
    recorder: Recorder,
    seed: Seed,
    /// When the timeline began.
    begin: Instant,
    queue: Queue,
    sources: Vec<Source>,
    tally: Tally,
    /// What is broken, with its number at the recorder, and the entry that broke it.
    active: BTreeMap<usize, (usize, Fault)>,
    /// Bytes that had arrived at boxes when the last rollout began.
    arrived: BTreeMap<Name, u64>,
    /// Bytes of the release that was rolled out last.
    rolled_bytes: u64,
    /// Entries of the timeline that have begun, and since when the next ones wait.
    last: Option<Observation>,
    changed: Instant,
    healing_at: Option<Duration>,
}

impl<'p> Run<'p> {
    fn new(plan: &'p Plan, seed: u64, world: World) -> Run<'p> {
        let own = world.seed("run");
        let now = Instant::now();
        Run {
            plan,
            oracle: Oracle::new(plan),
            recorder: Recorder::new(plan, seed),
            seed: own,
            world,
            begin: now,
            queue: Queue::default(),
            sources: vec![],
            tally: Tally::new(plan),
            active: BTreeMap::new(),
            arrived: BTreeMap::new(),
            rolled_bytes: 0,
            last: None,
            changed: now,
            healing_at: None,
        }
    }

    async fn all(&mut self) -> anyhow::Result<()> {
        self.raise().await?;
        self.mark(format_args!("all boxes are Ready; the timeline begins"));
        self.begin = Instant::now();
        self.fill();
        while let Some((at, step)) = self.queue.pop() {
            if at >= self.plan.duration {
                break;
            }
            sleep_until(self.begin + at).await;
            self.step(step).await?;
        }
        sleep_until(self.begin + self.plan.duration).await;
        self.heal_all().await?;
        self.converge().await?;
        self.tally.missed(self.plan).map_or(Ok(()), |missed| bail!(missed))
    }

    /// Hub, sites and agents, until the hub sees all of them Ready.
    async fn raise(&mut self) -> anyhow::Result<()> {
        for broker in &self.plan.brokers {
            self.world.add_planned_broker(broker)?;
        }
        self.world.start_hub().await?;
        for site in &self.plan.sites {
            self.world.add_site(site).await.with_context(|| format!("raise site {}", site.name))?;
        }
        let boxes = self.world.boxes();
        for name in &boxes {
            self.world.start_agent(name.as_ref()).await?;
        }
        let patience = READY + READY_EACH * u32::try_from(boxes.len())?;
        let deadline = Instant::now() + patience;
        loop {
            let seen = self.look().await?;
            let waiting = seen.nodes.iter().find(|(_, node)| node.ready != Some(true));
            let Some((name, _)) = waiting else { return Ok(()) };
            ensure!(Instant::now() < deadline, "{name} is not Ready {patience:?} after its agent was started");
            sleep_until(Instant::now() + LOOK).await;
        }
    }

    /// Puts all that is known before into the queue.
    fn fill(&mut self) {
        let mut restores = vec![];
        for (index, entry) in self.plan.timeline.iter().enumerate() {
            let restored = match &entry.action {
                Action::Break { fault: Fault::RestoreHub { age }, .. } => Some(*age),
                _ => None,
            };
            let Moment::At(at) = entry.moment else {
                if let Some(age) = restored {
                    let (every, keep) = backups::unplanned(age, self.plan.duration);
                    self.queue.add(Duration::ZERO, Step::BackUp { keep, again: Some((every, index)) });
                }
                if index == 0 {
                    self.queue.add(Duration::ZERO, Step::Arm { entry: index });
                }
                continue;
            };
            let mut chance = self.seed.stream(&format!("entry {index}"));
            let (every, times) = entry.repeat.unwrap_or((Duration::ZERO, 1));
            let most_ms = u64::try_from(entry.jitter.as_millis()).unwrap_or(u64::MAX);
            for number in 0..times {
                let jitter = Duration::from_millis(chance.random_range(0..=most_ms));
                let at = at + every * number + jitter;
                restores.extend(restored.map(|age| Restore { at, age }));
                self.queue.add(at, Step::Fire { entry: index, first: number == 0 });
            }
        }
        for backup in backups::planned(restores) {
            self.queue.add(backup.at, Step::BackUp { keep: backup.until - backup.at, again: None });
        }
        self.sources = rate::sources(self.plan, &self.seed);
        for (index, source) in self.sources.iter().enumerate() {
            self.queue.add(source.begins(), Step::Produce { source: index });
        }
        self.queue.add(Duration::ZERO, Step::Look);
        self.changed = self.begin;
    }

    fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    async fn step(&mut self, step: Step) -> anyhow::Result<()> {
        match step {
            Step::Look => {
                let seen = self.look().await?;
                let same = self.last.as_ref().is_some_and(|last| quiet_since(last, &seen));
                if !same {
                    self.changed = Instant::now();
                }
                self.last = Some(seen);
                let quiet = self.changed.elapsed() >= QUIET_AFTER;
                let wait = if quiet { LOOK_QUIET.min(self.until_due()).max(LOOK) } else { LOOK };
                self.queue.add(self.now() + wait, Step::Look);
            }
            Step::Fire { entry, first } => self.fire(entry, first).await?,
            Step::Heal { number } => self.heal(number).await?,
            Step::BackUp { keep, again } => self.back_up(keep, again),
            Step::Produce { source } => self.produce(source).await?,
            Step::Arm { entry } => {
                self.queue.add(self.now(), Step::Poll { entry, since: self.now() });
            }
            Step::Poll { entry, since } => self.poll(entry, since).await?,
        }
        Ok(())
    }

    /// Time until the timeline goes on.
    fn until_due(&self) -> Duration {
        self.queue.next_of_timeline().map_or(LOOK_QUIET, |at| at.saturating_sub(self.now()))
    }

    async fn look(&mut self) -> anyhow::Result<Observation> {
        self.world.tick().await?;
        let seen = self.world.observe().await?;
        self.recorder.sample(&seen);
        self.oracle.look(&self.world, &seen).await?;
        Ok(seen)
    }

    async fn fire(&mut self, index: usize, first: bool) -> anyhow::Result<()> {
        let Some(entry) = self.plan.timeline.get(index) else { return Ok(()) };
        self.tally.began(index);
        match &entry.action {
            Action::Break { fault, lasts } => {
                let at = self.world.elapsed();
                self.oracle.fault_began(fault);
                let struck = timeout(STRIKE, self.world.begin(fault)).await.with_context(|| endless(fault))??;
                let number = self.recorder.fault_began(fault, at, struck);
                self.tally.struck(index, struck);
                if fault.at_once() {
                    self.recorder.fault_healed(number, self.world.elapsed(), 0);
                    self.oracle.fault_healed(fault);
                } else {
                    self.active.insert(number, (index, fault.clone()));
                    if let Some(lasts) = lasts {
                        self.queue.add(self.now() + *lasts, Step::Heal { number });
                    }
                }
            }
            Action::Rollout { app, version, to, how } => {
                let release = self.release(app, version)?;
                self.world.publish_release(release).await?;
                if let Some(back) = &how.rollback_to {
                    let back = self.release(app, back)?;
                    self.world.publish_above(back).await?;
                }
                self.rolled_bytes = release.bytes;
                for name in self.world.boxes() {
                    let arrived = self.world.arrived_at(name.as_ref());
                    self.arrived.insert(name, arrived);
                }
                self.oracle.rollout_began(app, version);
                self.world.start_rollout(app, version, to, how).await?;
                self.mark(format_args!("rollout of {app}@{version} to {to}"));
            }
            Action::Steer { app, version, steer } => {
                self.world.steer(app, version, *steer).await?;
                self.mark(format_args!("{}", entry.action));
            }
            Action::See { app, version, look } => {
                let seen = self.look().await?;
                let key = format!("{app}@{version}");
                if let Some(wrong) = see::differs(look, seen.rollouts.get(&key)) {
                    bail!("{} {wrong}", tally::name(index, entry));
                }
            }
        }
        self.changed = Instant::now();
        // What waits for a moment does so from when the entry before it has begun.
        let next = self.plan.timeline.get(index + 1);
        if first && next.is_some_and(|next| !matches!(next.moment, Moment::At(_))) {
            self.queue.add(self.now(), Step::Arm { entry: index + 1 });
        }
        Ok(())
    }

    fn release(&self, app: &Name, version: &Version) -> anyhow::Result<&'p Release> {
        let release = self.plan.releases.iter().find(|r| r.app == *app && r.version == *version);
        release.with_context(|| format!("the plan has no release {app}@{version}"))
    }

    /// Whether the moment of an entry has come; otherwise looks again a little later.
    async fn poll(&mut self, index: usize, since: Duration) -> anyhow::Result<()> {
        let Some(entry) = self.plan.timeline.get(index) else { return Ok(()) };
        let come = match &entry.moment {
            Moment::At(_) => true,
            Moment::Downloaded { node, percent } => {
                let before = self.arrived.get(node).copied().unwrap_or(u64::MAX);
                let arrived = self.world.arrived_at(node.as_ref()).saturating_sub(before);
                arrived > 0 && arrived.saturating_mul(100) >= self.rolled_bytes.saturating_mul(u64::from(*percent))
            }
            Moment::Phase { node, app, phase } => {
                let seen = self.world.observe().await?;
                seen.nodes.get(node).and_then(|node| node.apps.get(app)).and_then(|app| app.phase) == Some(*phase)
            }
        };
        if come {
            let most_ms = u64::try_from(entry.jitter.as_millis()).unwrap_or(u64::MAX);
            let jitter = self.seed.stream(&format!("entry {index}")).random_range(0..=most_ms);
            self.queue.add(self.now() + Duration::from_millis(jitter), Step::Fire { entry: index, first: true });
        } else {
            let wait = if self.now().saturating_sub(since) < POLL_CLOSELY { POLL } else { LOOK };
            self.queue.add(self.now() + wait, Step::Poll { entry: index, since });
        }
        Ok(())
    }

    fn back_up(&mut self, keep: Duration, again: Option<(Duration, usize)>) {
        match again {
            Some((_, entry)) if self.tally.has_begun(entry) => return,
            Some((every, _)) => self.queue.add(self.now() + every, Step::BackUp { keep, again }),
            None => {}
        }
        self.world.back_up(keep);
    }

    /// A producer hands in what has gathered. What no agent takes, because none runs or it pushes back, is not in the
    /// books.
    ///
    /// # Errors
    /// When an agent refuses for another reason.
    async fn produce(&mut self, index: usize) -> anyhow::Result<()> {
        let now = self.now();
        let Some(source) = self.sources.get_mut(index) else { return Ok(()) };
        let (count, next) = source.due(now);
        let (node, stream) = (source.node.clone(), source.stream().clone());
        self.queue.add(next, Step::Produce { source: index });
        if count == 0 {
            return Ok(());
        }
        if !self.world.takes_records(node.as_ref())? {
            self.world.trace().line(node.as_ref(), format_args!("took none of {count} records: no agent runs"));
            return Ok(());
        }
        self.world.produce(node.as_ref(), stream.as_ref(), count, rate::MOST).await.map(|_| ())
    }

    async fn heal(&mut self, number: usize) -> anyhow::Result<()> {
        let Some((entry, fault)) = self.active.remove(&number) else { return Ok(()) };
        let struck = timeout(STRIKE, self.world.heal(&fault)).await.with_context(|| endless(&fault))??;
        self.recorder.fault_healed(number, self.world.elapsed(), struck);
        self.tally.struck(entry, struck);
        self.oracle.fault_healed(&fault);
        self.changed = Instant::now();
        Ok(())
    }

    async fn heal_all(&mut self) -> anyhow::Result<()> {
        self.healing_at = Some(self.world.elapsed());
        self.mark(format_args!("everything is healed"));
        for number in self.active.keys().copied().collect::<Vec<_>>() {
            self.heal(number).await?;
        }
        Ok(())
    }

    async fn converge(&mut self) -> anyhow::Result<()> {
        let patience = self.plan.expect.converge_within;
        let healed = Instant::now();
        loop {
            let seen = self.look().await?;
            let Some(missing) = self.oracle.converged(&self.world, &seen).await? else { break };
            ensure!(healed.elapsed() < patience, "{patience:?} after everything was healed: {missing}");
            sleep_until(Instant::now() + LOOK).await;
        }
        self.mark(format_args!("converged {:.0?} after everything was healed", healed.elapsed()));
        Ok(())
    }

    fn mark(&mut self, text: fmt::Arguments<'_>) {
        self.world.trace().line("run", text);
        self.recorder.mark(self.world.elapsed(), &text.to_string());
    }

    /// Names that the trace is searched for when something is wrong.
    fn concerned(&self, outcome: &anyhow::Result<()>) -> Vec<String> {
        let Err(error) = outcome else { return vec![] };
        let node = error.downcast_ref::<Violation>().and_then(|violation| violation.node.clone());
        let text = format!("{error:#}");
        let named =
            self.world.boxes().into_iter().filter(|name| text.contains(name.as_ref()) || Some(name) == node.as_ref());
        named.map(String::from).collect()
    }
}

fn endless(fault: &Fault) -> String {
    format!("{fault} did not come to an end within {STRIKE:?} of virtual time")
}

/// Whether nothing but clocks and counts went on.
fn quiet_since(before: &Observation, now: &Observation) -> bool {
    before.hub_runs == now.hub_runs
        && before.rollouts == now.rollouts
        && before.nodes.len() == now.nodes.len()
        && before.nodes.values().zip(now.nodes.values()).all(|(before, now)| {
            before.apps == now.apps
                && (before.agent_runs, before.powered, before.line_open, before.ready, before.connected)
                    == (now.agent_runs, now.powered, now.line_open, now.ready, now.connected)
        })
}
