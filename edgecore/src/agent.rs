//! The agent put together: what it owns, how it starts and drains.
//!
//! ```text
//! Link  --assignment (on disk first)--> Apps --one task an app--> Supervisor --> Driver
//!   ^                                     |
//!   +------------- board (the report) ----+        status socket reads the board too
//!   +--- Uplink <-- Outbox <-- Doors <-- records of workloads
//!                      ^------ telemetry: events of the board, metrics
//! ```
//!
//! Local state alone is enough to start: what is active runs at once, hub or not. The caller is the
//! program (`edgecore run`) or the simulator; everything from outside comes through [`Env`].

use std::{
    fs::{File, OpenOptions, TryLockError},
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use proto::{
    durable::DurableError,
    env::Env,
    identity,
    link::message::Report,
    name::Name,
    object::{CarrierStatus, Condition, ConditionStatus, condition},
    stream::event::{self, EventRecord},
    watch,
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::{JoinError, JoinSet},
    time::{MissedTickBehavior, interval},
};

use crate::{
    apps::{
        Apps,
        guard::PARALLEL_CHECKS,
        room::Rooms,
        stage::{Stage, Stager},
        task::Context,
    },
    config::{self, AgentConfig, ConfigError, Identity, Paths},
    doors::{self, Doors, Endpoints, Intake},
    driver::Driver,
    exec::{self, Desk},
    facts::Facts,
    fetch::{Fetcher, Source, Space},
    gpu::{known::Known, ledger::Ledger},
    link::{
        Link, Shared,
        assignment::{AssignmentProblem, Assignments, Place},
        carriers::Carriers,
    },
    metrics::Metrics,
    outbox::{Outbox, OutboxConfig, OutboxError, OutboxState},
    reboot::{self, Reboots},
    secrets::Secrets,
    settings::{self, Settings, SettingsError},
    status::StatusView,
    telemetry::{self, Teller},
    trust::{Trust, TrustState, clock::TrustedClock, refresh},
    uplink,
};

/// Between two looks at disk, memory and clock.
const CONDITIONS_EVERY: Duration = Duration::from_secs(10);

/// An agent that is ready to run.
#[derive(Debug)]
pub struct Agent {
    config: AgentConfig,
    shared: Arc<Shared>,
    trust: Arc<Trust>,
    /// Where newer metadata comes from.
    source: Arc<dyn Source>,
    link: Arc<Link>,
    apps: Apps,
    outbox: Outbox,
    doors: Doors,
    /// What is to be told of commands that people ran.
    commands: mpsc::Receiver<EventRecord>,
    metrics_interval: Option<Duration>,
    /// The command that restarts the box.
    reboot: Vec<String>,
    status: StatusView,
    /// Held while the agent lives: two agents in one folder would undo each other.
    _lock: File,
}

/// The agent could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its data folder is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `agent.toml` is wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The outbox cannot be opened.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// Another agent runs there.
    #[error("another agent runs in {}: stop that one first (systemctl stop crossdock-edge)", .0.display())]
    AlreadyRunning(PathBuf),
    /// The lock could not be taken.
    #[error("could not lock {}: {source}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A record could not be read.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// A part of the agent ended although it never should.
    #[error("a part of the agent broke down: {0}")]
    Broken(#[from] JoinError),
}

impl Agent {
    /// Reads the state of `data_dir`; touches no network.
    ///
    /// # Errors
    /// When nobody joined there, the state is not readable, or another agent runs there.
    pub async fn open(data_dir: &Path, env: Env, driver: Arc<dyn Driver>, facts: Facts) -> Result<Agent, AgentError> {
        let paths = Paths::new(data_dir);
        let config = AgentConfig::load(data_dir)?;
        check_identity(&config, &paths)?;
        let settings = Settings::load(data_dir)?;
        for warning in &settings.warnings {
            tracing::warn!("{warning}");
        }
        config::create_folders(&paths)?;
        let lock = lock(&paths)?;
        paths.config().load_and_mend()?; // written once, at the join
        let outbox = Outbox::open(&paths.outbox(), outbox_config(&settings.streams), env.clone()).await?;
        let metrics = Metrics::default();
        let behind = (Arc::new(outbox.clone()) as Arc<dyn Intake>, metrics.clone());
        let doors = doors::open(&settings.streams, data_dir, &config.node, behind, env.clone()).await;

        let clock = TrustedClock::new(env.wall.clone());
        let place = assignment_place(&paths, &config.node);
        let assignments = Assignments::open(place, env.clone(), clock.clone())?;
        let assignment = assignments.subscribe();
        let board = watch::channel(Report { observed_generation: assignments.generation(), ..Report::default() }).0;
        let trust = Arc::new(Trust::open(paths.trust(), env.clone(), clock, assignments.directed())?);
        let secrets = Arc::new(Secrets::open(&paths, &config.node, &env)?);
        driver.lend(&secrets);
        let sealing_key = secrets.public();
        let (desk, commands) = Desk::new();
        let shared = Arc::new(Shared {
            exec: exec::Server {
                env: env.clone(),
                node: config.node.clone(),
                paths: paths.clone(),
                driver: driver.clone(),
                desk: desk.clone(),
            },
            env: env.clone(),
            node: config.node.clone(),
            paths: paths.clone(),
            facts: facts.clone(),
            metrics: metrics.clone(),
            driver: driver.clone(),
            board: board.clone(),
            assignments,
            tells_events: telemetry::stream(&outbox, event::STREAM).is_some(),
            sealing_key: sealing_key.clone(),
            carriers: carriers(&env, &config, &settings.link),
        });
        let link = Arc::new(Link::new(shared.clone()));
        let source: Arc<dyn Source> = Arc::new(link.source());
        let fetcher = Fetcher::new(env.clone(), source.clone(), Space::of_disk());
        let stage: Arc<dyn Stage> = Arc::new(Stager::new(trust.clone(), fetcher, source.clone(), facts.clone()));
        let boot_id = facts.boot_id();
        let status = StatusView {
            config: Arc::new(config.clone()),
            wall: env.wall.clone(),
            started_at: env.wall.now(),
            board: board.subscribe(),
            link: link.state(),
            trust: trust.state(),
            outbox: outbox.clone(),
            endpoints: doors.endpoints(),
            sealing_key,
            gpus: facts.gpus().clone(),
        };
        let online = link.online();
        let checks = Arc::new(Semaphore::new(PARALLEL_CHECKS));
        let gpus = Arc::new(Ledger::open(paths.gpus(), env.clone(), facts.gpus())?);
        let endpoints = doors.endpoints();
        let rooms = Arc::new(Rooms::new(facts.info()));
        let context = Context {
            env,
            driver,
            stage,
            boot_id,
            board,
            online,
            checks,
            secrets,
            endpoints,
            gpus,
            desk,
            metrics,
            rooms,
            uses: Arc::default(),
        };
        let apps = Apps::new(Arc::new(context), paths.apps(), assignment);
        let metrics_interval = settings.streams.metrics_interval;
        let reboot = settings.node.reboot;
        Ok(Agent {
            config,
            shared,
            trust,
            source,
            link,
            apps,
            outbox,
            doors,
            commands,
            metrics_interval,
            reboot,
            status,
            _lock: lock,
        })
    }

    /// Who this node is.
    #[must_use]
    pub fn config(&self) -> &AgentConfig {
        &self.config
    }

    /// Where records are handed in, for who runs the agent inside a process.
    #[must_use]
    pub fn outbox(&self) -> Outbox {
        self.outbox.clone()
    }

    /// Where workloads tell of themselves, for who runs the agent inside a process.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.shared.metrics.clone()
    }

    /// What the status socket tells, as it changes.
    #[must_use]
    pub fn status(&self) -> StatusView {
        self.status.clone()
    }

    /// Runs until `shutdown`. Workloads are left running.
    ///
    /// Dropping the future is a crash: all tasks end where they are and state on disk stays whole.
    ///
    /// # Errors
    /// When a part of it broke down.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
        let mut tasks = JoinSet::new();
        let mut told = self.apps.told();
        tasks.spawn(self.apps.run());
        let link = self.link.clone();
        tasks.spawn(async move {
            // A hub that was set up anew takes what the first report does not name for not there.
            if told.wait_for(|told| *told).await.is_ok() {
                link.run().await;
            }
        });
        tasks.spawn(refresh::run(self.trust.clone(), self.source, self.link.online()));
        tasks.spawn(uplink::run(self.outbox.clone(), self.link.live()));
        if let Some(carriers) = self.shared.carriers.clone() {
            tasks.spawn(tell_carriers(carriers.told(), self.shared.board.clone()));
            tasks.spawn(async move { carriers.run().await });
        }
        let Shared { env, facts, driver, board, paths, .. } = &*self.shared;
        let (env, facts, driver, board) = (env.clone(), facts.clone(), driver.clone(), board.subscribe());
        let teller = Teller { env, facts, driver, board, outbox: self.outbox.clone() };
        if let Some(stream) = telemetry::stream(&self.outbox, event::STREAM) {
            tasks.spawn(telemetry::events::run(teller.clone(), stream, paths.told(), self.commands));
        }
        if let (Some(every), Some(stream)) =
            (self.metrics_interval, telemetry::stream(&self.outbox, telemetry::metrics::STREAM))
        {
            tasks.spawn(telemetry::metrics::run(teller, stream, every));
        }
        tasks.spawn(reboot::run(Reboots {
            env: self.shared.env.clone(),
            driver: self.shared.driver.clone(),
            record: paths.reboot(),
            boot_id: self.shared.facts.boot_id(),
            command: self.reboot,
            board: self.shared.board.clone(),
            assignment: self.shared.assignments.subscribe(),
        }));
        let gpus = self.shared.facts.gpus().clone();
        tasks.spawn(async move { gpus.run().await });
        let endpoints = self.doors.endpoints();
        tasks.spawn(self.doors.run());
        tasks.spawn(watch_conditions(self.shared.clone(), self.trust.state(), self.outbox.state(), endpoints));
        // Neither arm loses anything: whichever ends, the agent does.
        let ended = tokio::select! {
            biased;
            () = shutdown => Ok(()),
            Some(joined) = tasks.join_next() => joined,
        };
        self.link.farewell().await;
        tasks.shutdown().await;
        Ok(ended?)
    }
}

/// Where assignments of this node are kept.
#[must_use]
pub fn assignment_place(paths: &Paths, node: &Name) -> Place {
    Place { record: paths.assignment(), first_root: paths.director_root(), node: node.clone() }
}

/// The carriers of the link, where there are several: `agent.toml` comes before what joining was told.
fn carriers(env: &Env, config: &AgentConfig, settings: &settings::Link) -> Option<Arc<Carriers>> {
    let brokers = if settings.brokers.is_empty() { &config.brokers } else { &settings.brokers };
    Carriers::new(env, brokers, settings.udp, &config.fleet, &config.node, config.data_dir.clone())
}

/// Puts how the carriers stand into the report.
async fn tell_carriers(mut told: watch::Receiver<Vec<CarrierStatus>>, board: watch::Sender<Report>) {
    while told.changed().await.is_ok() {
        let carriers = told.borrow_and_update().clone();
        board.send_if_modified(|board| {
            let changed = board.carriers != carriers;
            board.carriers = carriers;
            changed
        });
    }
    std::future::pending().await
}

fn outbox_config(settings: &settings::Streams) -> OutboxConfig {
    OutboxConfig {
        quota_bytes: settings.quota.get(),
        disk_share_percent: settings.disk_share_percent,
        streams: settings.streams.iter().map(|s| (s.name.clone(), s.class)).collect(),
    }
}

fn lock(paths: &Paths) -> Result<File, AgentError> {
    let path = paths.lock();
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let failed = |source| AgentError::Lock { path: path.clone(), source };
    let file = opened.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AgentError::AlreadyRunning(paths.data_dir().to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Key and certificates are there and are this node's.
fn check_identity(config: &AgentConfig, paths: &Paths) -> Result<(), ConfigError> {
    let identity = Identity::load(paths)?;
    let named = identity.chain.first().map(identity::node_name);
    if named == Some(Ok(config.node.clone())) {
        return Ok(());
    }
    let problem = format!("its certificate is not for node {}", config.node);
    Err(ConfigError::Identity { path: paths.identity(), problem })
}

/// Keeps the conditions of the report.
async fn watch_conditions(
    shared: Arc<Shared>,
    mut trust: watch::Receiver<TrustState>,
    mut outbox: watch::Receiver<OutboxState>,
    mut endpoints: watch::Receiver<Endpoints>,
) {
    let mut unkept = shared.assignments.problem();
    let mut gpus = shared.facts.gpus().known();
    let mut ticks = interval(CONDITIONS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: Option<Arc<[Condition]>> = None;
    let mut told_cameras: Option<(ConditionStatus, String)> = None;
    loop {
        ticks.tick().await;
        let now = shared.env.wall.now();
        let found = shared.facts.conditions(now);
        let same = told.as_ref().is_some_and(|told| Arc::ptr_eq(told, &found));
        let others = [outbox.has_changed(), endpoints.has_changed(), unkept.has_changed(), gpus.has_changed()];
        let cameras = shared.metrics.cameras(now);
        let as_told = cameras.as_ref().map(|c| (c.status, c.message.clone()));
        if same && as_told == told_cameras && !trust.has_changed() && !others.contains(&true) {
            continue;
        }
        let mut conditions = trust_conditions(&trust.borrow_and_update(), now);
        conditions.extend_from_slice(&found);
        conditions.push(streams(&outbox.borrow_and_update(), &endpoints.borrow_and_update(), now));
        conditions.push(assignment(unkept.borrow_and_update().as_ref(), now));
        conditions.extend(gpu_condition(&gpus.borrow_and_update(), now));
        conditions.extend(cameras);
        (told, told_cameras) = (Some(found), as_told);
        shared.board.send_if_modified(|board| {
            for condition in &mut conditions {
                // A condition's time is that of its last change of status.
                let before = board.conditions.iter().find(|b| b.r#type == condition.r#type);
                if let Some(before) = before.filter(|b| b.status == condition.status) {
                    condition.last_transition_time = before.last_transition_time;
                }
            }
            let changed = board.conditions != conditions;
            board.conditions = conditions;
            changed
        });
    }
}

/// Whether the newest assignment is not kept, and so not acted on.
fn assignment(problem: Option<&AssignmentProblem>, now: jiff::Timestamp) -> Condition {
    let (status, reason, message) = match problem {
        Some(problem) => (ConditionStatus::True, problem.reason, problem.message.clone()),
        None => (ConditionStatus::False, "Kept", String::new()),
    };
    let kind = condition::ASSIGNMENT_PRESSURE.to_owned();
    Condition { r#type: kind, status, reason: reason.into(), message, last_transition_time: now }
}

/// Whether the GPUs do their work, on a box that has any.
fn gpu_condition(known: &Known, now: jiff::Timestamp) -> Option<Condition> {
    let (status, reason, message) = match known.trouble()? {
        Some(problem) => (ConditionStatus::True, problem.reason, problem.message),
        None => (ConditionStatus::False, "GpusWork".to_owned(), String::new()),
    };
    Some(Condition { r#type: condition::GPU_UNHEALTHY.to_owned(), status, reason, message, last_transition_time: now })
}

/// Whether releases can be verified, and whether newer metadata arrives.
fn trust_conditions(trust: &TrustState, now: jiff::Timestamp) -> Vec<Condition> {
    let lost = trust.versions.root == 0;
    let (status, reason) = match lost {
        true => (ConditionStatus::False, "TrustLost"),
        false => (ConditionStatus::True, "AgentReady"),
    };
    let ready = Condition {
        r#type: "Ready".into(),
        status,
        reason: reason.into(),
        message: trust.problem.clone(),
        last_transition_time: now,
    };
    let (status, reason, message) = match trust.stale.is_fresh() {
        true => (ConditionStatus::False, "Fresh", String::new()),
        false => {
            let advice = "what runs goes on and nothing new is accepted: publish again (crossdock release publish), \
                          and look whether the hub withholds it";
            (ConditionStatus::True, "Freeze", format!("{}; {advice}", trust.stale))
        }
    };
    let kind = condition::METADATA_STALE.to_owned();
    let stale = Condition { r#type: kind, status, reason: reason.into(), message, last_transition_time: now };
    vec![ready, stale]
}

/// Whether records of streams can be taken as they should.
fn streams(outbox: &OutboxState, endpoints: &Endpoints, now: jiff::Timestamp) -> Condition {
    let (reason, message) = if outbox.full {
        ("OutboxFull", format!("{} of {} bytes are used: producers are pushed back", outbox.bytes, outbox.quota_bytes))
    } else if let Some(problem) = &outbox.problem {
        ("OutboxDamaged", problem.clone())
    } else if let Some(problem) = endpoints.problems.first() {
        ("DoorClosed", problem.clone())
    } else {
        ("RecordsTaken", String::new())
    };
    let bad = reason != "RecordsTaken";
    let status = if bad { ConditionStatus::True } else { ConditionStatus::False };
    Condition { r#type: "StreamPressure".into(), status, reason: reason.into(), message, last_transition_time: now }
}
