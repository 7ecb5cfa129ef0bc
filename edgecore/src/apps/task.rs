//! The task of one app: plans, carries out one step, waits for something to change.
//!
//! [`App::turn`] is one round of it. Every round begins from the durable slot and what runs, so a crash
//! between any two rounds is the same as a restart. Dropping an [`App`] leaves its workload running.
//!
//! Here are the rounds and the slot; `fetching` is about the fetch beside them, `folder` about what else lies in the
//! app's folder, `gpus` about the GPUs it needs, `hooks` about a release's hooks, `measure` about what the workload tells
//! of itself, `room` about memory and processors, `running` about the workload, `beside` about room for a second
//! instance, `replicas` about further ones, `files` about what it uses of other apps, and they of it.

mod beside;
mod fetching;
mod files;
mod folder;
mod gpus;
mod hooks;
mod measure;
mod replicas;
mod room;
mod running;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use proto::{
    backoff::Backoff,
    digest::Digest,
    durable::{self, Record},
    env::Env,
    link::message::Report,
    name::Name,
    watch,
};
use rand_chacha::ChaCha12Rng;
use tokio::{
    sync::{Semaphore, oneshot},
    time::{Instant, sleep_until},
};

use self::{
    fetching::{Fetching, RETRY_BASE, RETRY_CAP, Staged, finished},
    files::Unpinned,
    gpus::Needs,
    hooks::Hooking,
    replicas::Replicas,
    running::{Run, WorkloadEvent, workload_changed},
};
use super::{
    current, live,
    plan::{Beside, Files, HookView, Over, Plan, Room, Step, View, Wanted, plan},
    report::{Extra, FetchView, report},
    room::Rooms,
    slot::{self, Failure, Slot, SlotError},
    stage::Stage,
    uses::{Answer, Uses, UsesNews, Word},
};
use crate::{
    doors::Endpoints,
    driver::{Driver, DriverError, Side},
    exec::Desk,
    gpu::ledger::Ledger,
    metrics::Metrics,
    secrets::{Secrets, SecretsError},
};

pub(super) use self::room::hold_installed;

/// Wait after a step that could not be carried out.
const TROUBLE_WAIT: Duration = Duration::from_secs(5);
/// Between reports of a download's progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// What all apps share.
#[derive(Debug)]
pub struct Context {
    /// The outside.
    pub env: Env,
    /// Runs workloads.
    pub driver: Arc<dyn Driver>,
    /// Gets releases onto the disk.
    pub stage: Arc<dyn Stage>,
    /// This boot.
    pub boot_id: String,
    /// Where each app says how it is.
    pub board: watch::Sender<Report>,
    /// Whether the hub is in reach.
    pub online: watch::Receiver<bool>,
    /// [`PARALLEL_CHECKS`](super::guard::PARALLEL_CHECKS) trees are hashed at once.
    pub checks: Arc<Semaphore>,
    /// Opens and holds the secrets of workloads.
    pub secrets: Arc<Secrets>,
    /// Where records of streams are handed in.
    pub endpoints: watch::Receiver<Endpoints>,
    /// Who has which GPU.
    pub gpus: Arc<Ledger>,
    /// Learns what runs, for who wants to run a command in it.
    pub desk: Arc<Desk>,
    /// What workloads tell of themselves.
    pub metrics: Metrics,
    /// What apps ask of memory and processors.
    pub rooms: Arc<Rooms>,
    /// What apps use of each other's files.
    pub uses: Arc<Uses>,
}

/// What [`App::turn`] leaves to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// A step was carried out: plan again.
    Again,
    /// Nothing to do before then.
    Wait(Option<Instant>),
    /// The app is gone.
    Ended,
}

/// A step could not be carried out. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The slot could not be written.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The driver could not do it.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// Secrets of a workload that was stopped are still there.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// A folder could not be made.
    #[error(transparent)]
    Durable(#[from] durable::DurableError),
    /// The way for other apps could not be changed.
    #[error("could not have `current` lead to the release: {0}")]
    Link(std::io::Error),
    /// Which instance is live could not be told.
    #[error("could not have `run/live` lead to the live instance: {0}")]
    Live(std::io::Error),
    /// Old releases could not be removed.
    #[error("could not remove old releases: {0}")]
    Collect(std::io::Error),
}

/// One app.
#[derive(Debug)]
pub struct App {
    shared: Arc<Context>,
    name: Name,
    folder: PathBuf,
    record: Record,
    slot: Slot,
    wanted: watch::Receiver<Wanted>,
    online: watch::Receiver<bool>,
    /// What is live, on the slot's side, and whether an agent before left something there.
    run: Option<Run>,
    leftover: bool,
    /// What runs on the other side, and the same there.
    beside: Option<Run>,
    beside_leftover: bool,
    replicas: Replicas,
    room: Room,
    files: Files,
    uses_news: UsesNews,
    /// Number under which the files of the release on trial are offered.
    offer: Option<u64>,
    /// What was said to the offer of others' files.
    answer: Option<Answer>,
    /// Its active release cannot run now, or not again: it proves nothing.
    stuck: bool,
    /// See [`Files::unpinned`].
    unpinned: Option<Unpinned>,
    /// See [`View::cold`].
    cold: Option<String>,
    /// Which instance `run/live` leads to.
    live: Option<Side>,
    /// See [`View::stopped_red`].
    stopped_red: bool,
    begun: bool,
    verdict: Option<Over>,
    staged: Option<Staged>,
    pre_apply: Hooking,
    damaged: Option<Digest>,
    gpus: Needs,
    fetching: Fetching,
    backoff: Backoff,
    rng: ChaCha12Rng,
    trouble: Option<String>,
    /// Where `current` leads.
    linked: Option<Digest>,
    /// Releases may lie about that nobody needs.
    litter: bool,
    /// Somebody waits until it said how it is.
    first: Option<oneshot::Sender<()>>,
}

impl App {
    /// Reads what is known of the app in `folder`.
    ///
    /// # Errors
    /// When its slot is lost.
    pub async fn open(
        shared: Arc<Context>,
        name: Name,
        folder: PathBuf,
        wanted: watch::Receiver<Wanted>,
    ) -> Result<App, StepError> {
        let record = Record::at(folder.join("slot"));
        let (made, read) = (folder.clone(), record.clone());
        let found = shared.env.blocking.run(move || {
            durable::create_dir_all(&made)?;
            Ok::<_, StepError>((slot::load_and_mend(&read)?, current::linked(&made), live::linked(&made)))
        });
        let (slot, linked, live) = found.await?;
        shared.uses.tell(&name, Word::of(&slot, None, None));
        let leftover = runs_on(&*shared.driver, slot.side, &name).await;
        let beside_leftover = runs_on(&*shared.driver, slot.side.other(), &name).await;
        let replicas = Replicas::found(&shared, &name).await;
        let rng = shared.env.seed.stream(&format!("app {name}"));
        let (online, gpus, uses_news) = (shared.online.clone(), Needs::new(&shared), shared.uses.news());
        Ok(App {
            shared,
            name,
            folder,
            record,
            slot,
            wanted,
            online,
            run: None,
            leftover,
            beside: None,
            beside_leftover,
            replicas,
            room: Room::NotAsked,
            files: Files::default(),
            uses_news,
            offer: None,
            answer: None,
            stuck: false,
            unpinned: None,
            cold: None,
            live,
            stopped_red: false,
            begun: false,
            verdict: None,
            staged: None,
            pre_apply: Hooking::default(),
            damaged: None,
            gpus,
            fetching: Fetching::Idle,
            backoff: Backoff::new(RETRY_BASE, RETRY_CAP),
            rng,
            trouble: None,
            linked,
            litter: true,
            first: None,
        })
    }

    /// Works towards what is wanted until the app is removed. `first` is let go once it said how it is.
    pub async fn work(mut self, first: Option<oneshot::Sender<()>>) {
        self.first = first;
        self.shared.uses.all_told().await;
        loop {
            let until = match self.turn().await {
                Ok(Turn::Again) => continue,
                Ok(Turn::Ended) => return,
                Ok(Turn::Wait(until)) => until,
                Err(error) => {
                    tracing::warn!(app = %self.name, %error, "a step could not be carried out, trying again");
                    self.trouble = Some(error.to_string());
                    self.publish();
                    Some(Instant::now() + TROUBLE_WAIT)
                }
            };
            self.changed(until).await;
        }
    }

    /// Plans and carries out one step.
    ///
    /// # Errors
    /// When the step could not be carried out; the next turn tries it again.
    pub async fn turn(&mut self) -> Result<Turn, StepError> {
        let wanted = self.wanted.borrow_and_update().clone();
        if self.staged.as_ref().is_some_and(|s| wanted.release().is_none_or(|r| r.digest != s.installed.release.digest))
        {
            self.litter |= self.staged.take().is_some();
        }
        self.look_at_damage();
        if let Some(run) = self.run.as_ref().filter(|r| r.damaged.load(Ordering::Relaxed)) {
            (self.damaged, self.staged) = (Some(run.release.digest), None);
            self.stop().await?;
        }
        if let Some(run) = self.beside.as_ref().filter(|r| r.damaged.load(Ordering::Relaxed)) {
            (self.damaged, self.staged) = (Some(run.release.digest), None);
            self.stop_beside().await?;
        }
        self.look_at_replicas().await?;
        let applies = wanted.ask().is_some_and(|ask| !ask.order.hold && !ask.drained);
        if self.staged.is_none() || self.slot.trial.is_some() || !applies {
            self.pre_apply = Hooking::default(); // what it answered was about that moment
        }
        self.run.iter_mut().chain(&mut self.beside).for_each(Run::look);
        if let Some(run) = &self.run {
            self.shared.metrics.set_healthy(&self.name, run.view().healthy_since.is_some());
        }
        self.measure(&wanted);
        self.look_at_gpus();
        self.claim_room();
        self.look_at_files();
        self.look_at_room(&wanted).await?;
        let Plan { step, fetch } = plan(&self.view(&wanted, Instant::now()));
        self.direct_fetch(fetch, &wanted);
        self.publish();
        if !matches!(step, Step::Wait(_)) {
            tracing::debug!(app = %self.name, ?step, "next step");
        }
        let turn = self.carry_out(step, &wanted).await?;
        self.trouble = None;
        if turn != Turn::Ended {
            self.publish();
        }
        Ok(turn)
    }

    fn view<'a>(&'a self, wanted: &'a Wanted, now: Instant) -> View<'a> {
        View {
            slot: &self.slot,
            wanted,
            staged: self.staged.as_ref().map(|s| &s.installed),
            pre_apply: self.pre_apply.view(self.staged.as_ref().and_then(|s| s.hooks.pre_apply.as_ref())),
            post_apply: self.run.as_ref().map_or(HookView::Passed, |r| r.post_apply.view(r.hooks.post_apply.as_ref())),
            running: self.run.as_ref().map(Run::view),
            leftover: self.leftover,
            beside: Beside { running: self.beside.as_ref().map(Run::view), leftover: self.beside_leftover },
            replicas: self.replicas.exist(),
            room: &self.room,
            cold: self.cold.as_deref(),
            serves: self.run.iter().chain(&self.beside).any(|run| run.spec.run.is_some()),
            live: self.live,
            stopped_red: self.stopped_red,
            files: &self.files,
            begun: self.begun,
            verdict: self.verdict.as_ref(),
            damaged: self.damaged,
            refused: &self.gpus.refused,
            moves: self.gpus.moves,
            linked: self.linked,
            boot_id: &self.shared.boot_id,
            now,
        }
    }

    async fn carry_out(&mut self, step: Step, wanted: &Wanted) -> Result<Turn, StepError> {
        match step {
            Step::Wait(until) => {
                self.sweep(wanted).await?;
                let again = self.scale().await?;
                return Ok(Turn::Wait(until.into_iter().chain(again).min()));
            }
            Step::Stop => self.stop().await?,
            Step::Start(installed) => self.start(&installed).await?,
            Step::StopBeside => self.stop_beside().await?,
            Step::StopReplicas => self.stop_replicas().await?,
            Step::StartBeside(installed) => self.start_beside(&installed).await?,
            Step::GoLive => {
                let restart = wanted.ask().and_then(|ask| ask.order.restart.clone());
                let told = self.shared.metrics.summaries(&self.name);
                self.keep_measured(told).await;
                self.store(|slot| slot.go_live(restart.as_deref())).await?;
                self.swap();
            }
            Step::GoBack(over) => self.go_back(over).await?,
            Step::Live(side) => self.make_live(side).await?,
            Step::PreApply(_) => self.run_pre_apply(),
            Step::Defer(deferral) => {
                self.store(|slot| slot.deferral = Some(deferral)).await?;
                self.pre_apply.recorded();
            }
            Step::PostApply => self.run_post_apply(),
            Step::Switch(trial) => {
                if trial.files_of.is_none() && !self.shared.uses.claim(&self.name, &trial.installed.uses) {
                    return Ok(Turn::Wait(None)); // they are about to be others
                }
                let restart = wanted.ask().and_then(|ask| ask.order.restart.clone());
                self.store(|slot| slot.begin(trial, restart.as_deref())).await?;
                self.begun = true;
            }
            Step::Resume => {
                self.store(Slot::resume).await?;
                self.begun = true;
            }
            Step::Confirm(proof) => {
                if self.closes() {
                    self.store(|slot| slot.confirm(proof)).await?;
                }
            }
            Step::Offer => self.offer = self.shared.uses.offer(&self.name),
            Step::Recall => self.offer = None,
            Step::Answer => self.answer(Ok(())),
            Step::Pin(release, uses) => {
                self.store(|slot| slot.pin(release, &uses)).await?;
                self.unpinned = None;
            }
            Step::Fail(failure) => self.fail(failure).await,
            Step::Abandon(failure) => {
                let at = Some(self.shared.env.wall.now());
                let failure = failure.map(|f| Failure { at, ..f });
                self.store(|slot| slot.abandon(failure)).await?;
            }
            Step::Undo => {
                if self.slot.trial.as_ref().is_some_and(|trial| trial.files_of.is_some()) {
                    self.gpus.forget_start(self.slot.side); // what is live has its own
                }
                self.store(Slot::undo).await?;
            }
            Step::Withdraw => self.store(Slot::withdraw).await?,
            Step::Link(digest) => self.link(digest).await?,
            Step::Restart(restart) => self.store(|slot| slot.restart = Some(restart)).await?,
            Step::Retry(text) => {
                let Some(release) = wanted.release() else { return Ok(Turn::Again) };
                self.store(|slot| slot.retry(release.digest, text)).await?;
            }
            Step::Remove => self.store(Slot::clear).await?,
            Step::Done => {
                for key in Side::ALL.into_iter().filter_map(|side| side.key(&self.name)) {
                    self.shared.driver.remove(&key).await?;
                }
                self.remove_replicas().await?;
                self.remove_secrets().await?;
                self.make_none_live().await?;
                self.link(None).await?;
                self.litter = true;
                self.sweep(wanted).await?;
                self.shared.uses.forget(&self.name);
                self.shared.board.send_if_modified(|report| report.workloads.remove(&self.name).is_some());
                return Ok(Turn::Ended);
            }
        }
        Ok(Turn::Again)
    }

    /// What runs beside the trial is live from here on.
    async fn go_back(&mut self, over: Over) -> Result<(), StepError> {
        let over = match over {
            Over::Failed(failure) => Over::Failed(Failure { at: Some(self.shared.env.wall.now()), ..failure }),
            over @ (Over::Interrupted(_) | Over::Withdrawn) => over,
        };
        let stored = self.store(|slot| slot.go_back(over)).await;
        if stored.is_err() && (self.run.is_some() || self.leftover) {
            self.stop().await?; // a full disk keeps no bad release running
        }
        stored?;
        self.swap();
        Ok(())
    }

    /// One durable change of the slot.
    async fn store(&mut self, change: impl FnOnce(&mut Slot)) -> Result<(), StepError> {
        let mut next = self.slot.clone();
        change(&mut next);
        self.tell_files(Some(&next)); // before it is so: nobody takes away what it will need
        let (record, written) = (self.record.clone(), next.clone());
        self.shared.env.blocking.run(move || slot::store(&record, &written)).await?;
        self.begun &= next.trial.is_some();
        self.verdict.take_if(|_| next.trial.is_none());
        self.staged.take_if(|s| next.failure(s.installed.release.digest).is_some()); // its tree is swept away
        self.slot = next;
        self.litter = true;
        Ok(())
    }

    /// Waits until a turn may have something to do.
    pub(super) async fn changed(&mut self, until: Option<Instant>) {
        let mut wake = until;
        let mut earlier = |at: Instant| wake = Some(wake.map_or(at, |w| w.min(at)));
        let (mut offline, holds_gpus) = (false, self.holds_gpus());
        self.measure_at().into_iter().for_each(&mut earlier);
        let mut fetching = None;
        match &mut self.fetching {
            Fetching::Idle => {}
            Fetching::Active { task, .. } => {
                earlier(Instant::now() + PROGRESS_EVERY);
                fetching = Some(task);
            }
            Fetching::Hindered { hindrance, retry_at, .. } => {
                earlier(*retry_at);
                offline = hindrance.offline;
            }
        }
        // Every arm is cancel safe: watches and timers hold nothing, `join_next` takes a result or nothing.
        tokio::select! {
            biased;
            changed = self.wanted.changed() => {
                if changed.is_err() {
                    std::future::pending::<()>().await; // the agent is going away and drops this task
                }
                self.litter = true;
            }
            event = workload_changed(self.run.as_mut(), self.beside.as_mut()) => {
                if let WorkloadEvent::Hook(outcome) = event {
                    self.post_apply_ended(outcome);
                }
            }
            () = self.replicas.changed() => {}
            outcome = self.pre_apply.ended() => self.pre_apply_ended(outcome),
            result = finished(fetching) => self.fetched(result),
            () = self.gpus.changed(holds_gpus) => {}
            () = self.uses_news.changed() => {}
            Ok(()) = self.online.changed(), if offline => {
                if *self.online.borrow_and_update()
                    && let Fetching::Hindered { retry_at, .. } = &mut self.fetching
                {
                    *retry_at = Instant::now();
                }
            }
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
        }
    }

    /// Says how the app is.
    fn publish(&mut self) {
        let wanted = self.wanted.borrow().clone();
        let fetch = match &self.fetching {
            Fetching::Idle => FetchView::Idle,
            Fetching::Active { progress, .. } => FetchView::Active(*progress.borrow()),
            Fetching::Hindered { hindrance, .. } => FetchView::Hindered(hindrance),
        };
        let running = self.run.as_ref().filter(|run| run.supervisor.is_some());
        let running = running.map(|run| (&run.release, run.health.borrow().clone()));
        let metrics = self.measured(&wanted);
        let standby = self.beside.as_ref().map(|run| run.health.borrow().message.clone());
        let replicas = self.replica_status();
        let extra = Extra { fetch, running, metrics, replicas, standby, trouble: self.trouble.as_deref() };
        let view = self.view(&wanted, Instant::now());
        let now = self.shared.env.wall.now();
        self.shared.board.send_if_modified(|board| {
            let before = board.workloads.get(&self.name);
            match report(&view, &extra, before, now) {
                Some(status) if before == Some(&status) => false,
                Some(status) => {
                    board.workloads.insert(self.name.clone(), status);
                    true
                }
                None => board.workloads.remove(&self.name).is_some(),
            }
        });
        self.first = None;
    }
}

/// Whether an instance of the app runs on a side.
async fn runs_on(driver: &dyn Driver, side: Side, app: &Name) -> bool {
    let Some(key) = side.key(app) else { return false };
    runs(driver, &key).await
}

/// Whether the instance of this name runs.
async fn runs(driver: &dyn Driver, key: &Name) -> bool {
    match driver.inspect(key).await {
        Ok(found) => found.is_some_and(|i| i.exit.is_none()),
        Err(error) => {
            tracing::warn!(app = %key, %error, "taken as running");
            true
        }
    }
}
