//! A hub and its agents in one process: the real code, on simulated hosts.
//!
//! ```text
//! World --> Host "hub":   Hub    | Env { wall: HostClock, network: Net, blocking: Inline, seed }
//!       --> Host "box-1": Agent  | the same, and a SimDriver that outlives the agent
//! ```
//!
//! A host's disk is a folder that stays when the host crashes. A crash silences its sockets first (a
//! connection that is dropped says goodbye, a dead box does not), then ends its tasks where they stand.
//! Power cuts that lose what was not synced are absent on purpose for now.

pub mod observe;
mod streams;

use std::{
    collections::BTreeMap,
    future::pending,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use cloudcore::{
    ca::Ca,
    config::HubConfig,
    hub::Hub,
    release::{Repository, Setup, build::build},
};
use edgecore::{
    agent::Agent,
    facts::Facts,
    join::{JoinOptions, join},
    outbox::Outbox,
};
use proto::{
    env::{Blocking, Env, Seed},
    name::{Name, Version},
    object::{Node, NodeInfo, NodeSpec, Rollout, RolloutPhase, RolloutSpec, UpdatePhase},
    release::Manifest,
    selector::Selector,
    tuf::SecretKey,
    units::Span,
};
use rand::Rng as _;
use tokio::time::{Instant, sleep};

use crate::{
    clock::{HostClock, Tasks},
    driver::{Released, SimDriver},
    ledger::Ledger,
    net::{Net, Profile},
    trace::Trace,
};

/// How often a condition is looked at, in virtual time.
const STEP: Duration = Duration::from_millis(50);
/// Free memory from which on the simulated disks are kept there.
const ENOUGH_MEMORY_BYTES: u64 = 2 << 30;
/// Longer than any scenario lets pass: the books are compared with what the sink holds.
const KEEP_RECORDS: Span = Span::from_secs(365 * 24 * 3600);
const PORT: u16 = proto::link::DEFAULT_PORT;

/// A simulated machine.
struct Host {
    name: String,
    ip: IpAddr,
    clock: HostClock,
    tasks: Tasks,
    disk: PathBuf,
    /// Counts starts: a process that starts again draws new randomness.
    starts: u32,
}

/// A machine with an agent.
struct EdgeBox {
    host: Host,
    driver: SimDriver,
    boots: u32,
    /// Where producers hand in, while the agent runs.
    outbox: Option<Outbox>,
}

/// The whole simulated fleet.
pub struct World {
    trace: Trace,
    net: Net,
    seed: Seed,
    start: Instant,
    folder: tempfile::TempDir,
    pump: Tasks,
    hub_host: Host,
    hub: Option<Hub>,
    boxes: BTreeMap<String, EdgeBox>,
    released: Released,
    seen: BTreeMap<String, String>,
    ledger: Ledger,
}

impl World {
    /// A world with a hub that has not been started.
    ///
    /// # Errors
    /// When there is no room for its folders.
    pub async fn new(seed: Seed, trace: Trace) -> anyhow::Result<World> {
        let start = Instant::now();
        let folder = disk()?;
        let net = Net::new(seed.child("net"), Profile::edge(), trace.clone());
        let pump = Tasks::default();
        pump.spawn(net.clone().pump());
        let hub_host = Host::new(&net, "hub", start, &folder);
        let mut world = World {
            trace,
            net,
            seed,
            start,
            folder,
            pump,
            hub_host,
            hub: None,
            boxes: BTreeMap::new(),
            released: Released::default(),
            seen: BTreeMap::new(),
            ledger: Ledger::default(),
        };
        world.init()?;
        Ok(world)
    }

    /// What `cloudcore init` and `crossdock release init` do.
    fn init(&mut self) -> anyhow::Result<()> {
        let env = self.hub_host.env(&self.net, &self.seed);
        std::fs::create_dir_all(&self.hub_host.disk)?;
        Ca::create(&self.hub_host.disk, &fleet()?, &env).context("create the CA")?;
        let setup = Setup::small_team(&self.key("root"), &self.key("targets"), &self.key("pipeline"));
        let repository = Repository::create(&self.folder.path().join("repo"), &setup, env.wall.now())?;
        repository.sign(&[self.key("root"), self.key("targets")])?;
        Ok(())
    }

    fn key(&self, role: &str) -> SecretKey {
        SecretKey::from_seed(&self.seed.child("release keys").bytes(role))
    }

    /// Randomness for a scenario's own choices.
    #[must_use]
    pub fn seed(&self, scenario: &str) -> Seed {
        self.seed.child(scenario)
    }

    /// The hub that runs.
    ///
    /// # Errors
    /// When none does.
    pub fn hub(&self) -> anyhow::Result<&Hub> {
        self.hub.as_ref().context("the hub does not run")
    }

    /// Starts the hub, and publishes the trust root if it has none.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_hub(&mut self) -> anyhow::Result<()> {
        let host = &mut self.hub_host;
        host.starts += 1;
        let env = host.env(&self.net, &self.seed);
        let mut config = HubConfig::new(&host.disk, fleet()?);
        config.link_listen = (host.ip, PORT).into();
        config.advertise = vec![format!("hub:{PORT}")];
        config.streams.retention = KEEP_RECORDS;
        let hub = Hub::open(config, env).await.context("start the hub")?;
        let (running, trace) = (hub.clone(), self.trace.clone());
        host.tasks.spawn(async move {
            let ended = running.run(pending()).await;
            trace.line("hub", format_args!("ended: {ended:?}"));
        });
        self.trace.line("hub", format_args!("started, {}.", host.starts));
        self.hub = Some(hub);
        if self.hub()?.trust().first_root().is_none() {
            self.publish_staged().await?;
        }
        Ok(())
    }

    /// Ends the hub as a power switch would.
    pub async fn crash_hub(&mut self) {
        self.net.silence(self.hub_host.ip);
        self.hub = None;
        self.hub_host.tasks.kill().await;
        self.trace.line("hub", format_args!("crashed"));
    }

    /// Makes a box, and joins it with a token of its site.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn join(&mut self, name: &str, site: &str) -> anyhow::Result<()> {
        let (_, token) = self
            .hub()?
            .create_token(site.parse()?, Some(name.parse()?), 1, Duration::from_secs(3600), BTreeMap::new())
            .await?;
        let host = Host::new(&self.net, name, self.start, &self.folder);
        let wall = Arc::new(host.clock.clone());
        let driver = SimDriver::new(name, wall, Arc::clone(&self.released), self.trace.clone());
        let mut edge = EdgeBox { host, driver, boots: 1, outbox: None };
        edge.host.starts += 1;
        let env = edge.host.env(&self.net, &self.seed);
        let options = JoinOptions {
            data_dir: edge.host.disk.clone(),
            hub: vec![format!("hub:{PORT}")],
            token,
            name: Some(name.to_owned()),
            machine_id: format!("machine of {name}"),
        };
        let joined = join(options, &env).await.with_context(|| format!("join {name}"))?;
        edge.host.stop(&self.net).await; // the process of `edgecore join` ends
        self.trace.line(name, format_args!("joined as {} of {}", joined.node, joined.site));
        self.boxes.insert(name.to_owned(), edge);
        self.settings(name, "")
    }

    /// Starts the agent of a box that joined.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_agent(&mut self, name: &str) -> anyhow::Result<()> {
        let edge = self.boxes.get_mut(name).with_context(|| format!("there is no {name}"))?;
        edge.host.starts += 1;
        let env = edge.host.env(&self.net, &self.seed);
        let facts = Facts::fixed(node_info(name, edge.boots));
        let agent = Agent::open(&edge.host.disk, env, Arc::new(edge.driver.clone()), facts).await?;
        edge.outbox = Some(agent.outbox());
        let (trace, host) = (self.trace.clone(), name.to_owned());
        edge.host.tasks.spawn(async move {
            let ended = agent.run(pending()).await;
            trace.line(&host, format_args!("agent ended: {ended:?}"));
        });
        self.trace.line(name, format_args!("agent started, {}.", edge.host.starts));
        Ok(())
    }

    /// Ends the agent of a box as `kill -9` would. Its workloads run on.
    ///
    /// # Errors
    /// When there is no such box.
    pub async fn crash_agent(&mut self, name: &str) -> anyhow::Result<()> {
        let edge = self.boxes.get_mut(name).with_context(|| format!("there is no {name}"))?;
        edge.outbox = None;
        edge.host.stop(&self.net).await;
        self.trace.line(name, format_args!("agent crashed"));
        Ok(())
    }

    /// Turns a box off and on: its workloads are gone, its disk stays.
    ///
    /// # Errors
    /// When there is no such box, or the agent does not start.
    pub async fn reboot(&mut self, name: &str) -> anyhow::Result<()> {
        self.crash_agent(name).await?;
        if let Some(edge) = self.boxes.get_mut(name) {
            edge.driver.reboot();
            edge.boots += 1;
        }
        self.start_agent(name).await
    }

    /// Cuts or mends the line between a box and the hub, both ways.
    pub fn cut(&self, name: &str, cut: bool) {
        if let Some(edge) = self.boxes.get(name) {
            self.net.set_cut(edge.host.ip, self.hub_host.ip, cut);
            self.net.set_cut(self.hub_host.ip, edge.host.ip, cut);
        }
    }

    /// Cuts or mends one direction of the line: from the hub to a box.
    pub fn cut_towards(&self, name: &str, cut: bool) {
        if let Some(edge) = self.boxes.get(name) {
            self.net.set_cut(self.hub_host.ip, edge.host.ip, cut);
        }
    }

    /// Makes the line of a box a narrow one, both ways.
    pub fn narrow(&self, name: &str, bytes_per_s: u64) {
        if let Some(edge) = self.boxes.get(name) {
            let profile = Profile { bytes_per_s: Some(bytes_per_s), queue_bytes: 32 << 10, ..Profile::edge() };
            self.net.set_profile(edge.host.ip, self.hub_host.ip, profile.clone());
            self.net.set_profile(self.hub_host.ip, edge.host.ip, profile);
        }
    }

    /// Lets all wall clocks jump ahead, as after a long time in which nothing else happened.
    pub fn pass_days(&self, days: i64) {
        for host in self.boxes.values().map(|edge| &edge.host).chain([&self.hub_host]) {
            host.clock.set_offset_ms(days * 24 * 3_600_000);
        }
    }

    /// Puts the wall clock of a box wrong; positive runs ahead.
    pub fn set_clock_offset_ms(&self, name: &str, offset_ms: i64) {
        if let Some(edge) = self.boxes.get(name) {
            edge.host.clock.set_offset_ms(offset_ms);
        }
    }

    /// Bytes that have arrived at a box from the hub.
    #[must_use]
    pub fn arrived_at(&self, name: &str) -> u64 {
        self.boxes.get(name).map_or(0, |b| self.net.counters(self.hub_host.ip, b.host.ip).arrived_bytes)
    }

    /// Builds, signs and publishes a release of `files` files of random content, whose workload has `args`.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn publish(
        &self,
        app: &str,
        version: &str,
        files: usize,
        file_bytes: usize,
        args: &[&str],
    ) -> anyhow::Result<()> {
        let folder = self.folder.path().join(format!("{app}-{version}"));
        std::fs::create_dir_all(folder.join("files"))?;
        let mut random = self.seed.child("content").stream(&format!("{app}@{version}"));
        for number in 0..files {
            let mut content = vec![0; file_bytes];
            random.fill_bytes(&mut content);
            std::fs::write(folder.join(format!("files/part-{number:03}")), content)?;
        }
        let yaml = format!(
            "apiVersion: crossdock.io/v1\napp: {app}\nversion: {version}\nartifacts:\n  - source: files\n\
             workload:\n  command: /bin/true\n  args: {}\n  soak: 3s\n  deadline: 60s\n",
            serde_json::to_string(args)?
        );
        std::fs::write(folder.join("release.yaml"), yaml)?;
        let built = build(&folder.join("release.yaml"))?;
        self.remember(built.digest, built.manifest.clone());
        let repository = Repository::open(&self.folder.path().join("repo"))?;
        repository.add(&built, self.hub()?.env().wall.now())?;
        repository.sign(&[self.key("targets")])?;
        drop(repository);
        self.publish_staged().await
    }

    fn remember(&self, digest: proto::digest::Digest, manifest: Manifest) {
        self.released.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, manifest);
    }

    /// Hands what is staged and signed to the hub, as `crossdock release publish` does.
    async fn publish_staged(&self) -> anyhow::Result<()> {
        let hub = self.hub()?;
        let repository = Repository::open(&self.folder.path().join("repo"))?;
        let publication = repository.finish(&self.key("pipeline"), hub.env().wall.now())?;
        for (digest, path) in publication.blobs {
            if !hub.blobs().has(digest).await? {
                let content = std::fs::read(&path)?;
                hub.blobs().put(digest, content.as_slice()).await?;
            }
        }
        hub.trust().publish(publication.reply).await?;
        self.trace.line("engineer", format_args!("published"));
        Ok(())
    }

    /// Starts a rollout to all nodes.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn roll_out(&self, app: &str, version: &str) -> anyhow::Result<()> {
        let spec = RolloutSpec { app: app.parse()?, version: version.parse()?, selector: Selector::all() };
        let name: proto::name::ObjectName = rollout_name(app, version).parse()?;
        self.hub()?.store().create(Rollout::new(name, spec)).await?;
        self.trace.line("operator", format_args!("rollout start {app}@{version} --to all"));
        Ok(())
    }

    /// All nodes as the hub has them. What changed since the last call goes to the trace.
    ///
    /// # Errors
    /// When the hub is down.
    pub async fn nodes(&mut self) -> anyhow::Result<BTreeMap<String, Node>> {
        let list = self.hub()?.store().list::<NodeSpec>(None).await?;
        let nodes: BTreeMap<_, _> = list.items.into_iter().map(|node| (node.name().to_owned(), node)).collect();
        for (name, node) in &nodes {
            let text = describe(node);
            if self.seen.get(name) != Some(&text) {
                self.trace.line("hub", format_args!("sees {name}: {text}"));
                self.seen.insert(name.clone(), text);
            }
        }
        Ok(nodes)
    }

    /// Waits, in virtual time, until the hub sees the nodes so.
    ///
    /// # Errors
    /// When that takes longer than `patience`.
    pub async fn until_nodes(
        &mut self,
        patience: Duration,
        what: &str,
        condition: impl Fn(&BTreeMap<String, Node>) -> bool,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let nodes = self.nodes().await?;
            if condition(&nodes) {
                self.trace.line("world", format_args!("{what}"));
                return Ok(());
            }
            if Instant::now() >= deadline {
                let seen: Vec<_> = nodes.iter().map(|(name, node)| format!("{name}: {}", describe(node))).collect();
                bail!("after {patience:?} it is not so that {what}: {}", seen.join("; "));
            }
            sleep(STEP).await;
        }
    }

    /// Waits until these nodes run the newest release of an app that is assigned to them, proved healthy.
    ///
    /// # Errors
    /// When that takes longer than `patience`.
    pub async fn until_done(
        &mut self,
        what: &str,
        app: &str,
        nodes: &[&str],
        patience: Duration,
    ) -> anyhow::Result<()> {
        let app: Name = app.parse()?;
        let done = |node: &Node| {
            node.status.workloads.get(&app).is_some_and(|workload| {
                workload.phase == UpdatePhase::Succeeded
                    && workload
                        .running
                        .as_ref()
                        .is_some_and(|r| r.ready && Some(&r.release) == workload.target.as_ref())
            })
        };
        let all = |all: &BTreeMap<String, Node>| nodes.iter().all(|name| all.get(*name).is_some_and(done));
        self.until_nodes(patience, what, all).await
    }

    /// Waits until a rollout stands there.
    ///
    /// # Errors
    /// When that takes longer than `patience`.
    pub async fn until_rollout(
        &mut self,
        app: &str,
        version: &str,
        phase: RolloutPhase,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let rollout = self.hub()?.store().get::<RolloutSpec>(&rollout_name(app, version)).await?;
            let status = rollout.context("the rollout is gone")?.status;
            if status.phase == phase {
                self.trace.line("hub", format_args!("rollout of {app}@{version}: {phase}"));
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "after {patience:?} the rollout is not {phase}: {status:?}");
            sleep(STEP).await;
        }
    }

    /// How far a node is with an app, as the hub has it.
    ///
    /// # Errors
    /// When the hub is down or there is no such node.
    pub async fn phase(&mut self, name: &str, app: &str) -> anyhow::Result<Option<UpdatePhase>> {
        let (nodes, app) = (self.nodes().await?, app.parse::<Name>()?);
        let node = nodes.get(name).with_context(|| format!("there is no {name}"))?;
        Ok(node.status.workloads.get(&app).map(|workload| workload.phase))
    }

    /// The version of an app that really runs on a box, whatever anybody believes.
    ///
    /// # Errors
    /// When there is no such box.
    pub fn running(&self, name: &str, app: &str) -> anyhow::Result<Option<Version>> {
        let edge = self.boxes.get(name).with_context(|| format!("there is no {name}"))?;
        Ok(edge.driver.running(&app.parse()?))
    }

    /// Waits until something of an app runs on a box.
    ///
    /// # Errors
    /// When that takes longer than `patience`.
    pub async fn until_running(&self, name: &str, app: &str, patience: Duration) -> anyhow::Result<Version> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(version) = self.running(name, app)? {
                return Ok(version);
            }
            ensure!(Instant::now() < deadline, "after {patience:?} nothing of {app} runs on {name}");
            sleep(STEP).await;
        }
    }

    /// Checks what must hold at any time.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> anyhow::Result<()> {
        let violations: Vec<_> = self.boxes.values().flat_map(|edge| edge.driver.violations()).collect();
        ensure!(violations.is_empty(), "{}", violations.join("; "));
        Ok(())
    }

    /// Turns everything off.
    ///
    /// # Errors
    /// When something goes on although its host is dead: it would disturb what starts after a crash.
    pub async fn end(mut self) -> anyhow::Result<()> {
        self.crash_hub().await;
        for edge in self.boxes.values_mut() {
            edge.outbox = None;
            edge.host.stop(&self.net).await;
        }
        self.boxes.clear();
        self.pump.kill().await;
        // Tasks that others own end when they are next looked at.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let alive = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        ensure!(alive == 0, "{alive} tasks go on although all hosts are dead: something spawns tasks that nobody owns");
        Ok(())
    }
}

impl Host {
    fn new(net: &Net, name: &str, start: Instant, folder: &tempfile::TempDir) -> Host {
        Host {
            name: name.to_owned(),
            ip: net.add_host(name),
            clock: HostClock::new(start),
            tasks: Tasks::default(),
            disk: folder.path().join(name),
            starts: 0,
        }
    }

    /// The outside as the process that starts now sees it.
    fn env(&self, net: &Net, seed: &Seed) -> Env {
        Env {
            wall: Arc::new(self.clock.clone()),
            seed: seed.child(&self.name).child(&format!("start {}", self.starts)),
            blocking: Blocking::Inline,
            network: net.host(self.ip, self.tasks.clone()),
        }
    }

    async fn stop(&self, net: &Net) {
        net.silence(self.ip);
        self.tasks.kill().await;
    }
}

/// A folder for all simulated disks: in memory where there is plenty, since every write is synced.
fn disk() -> anyhow::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("sim-");
    let memory = Path::new("/dev/shm");
    let free = rustix::fs::statvfs(memory).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    if free >= ENOUGH_MEMORY_BYTES
        && let Ok(folder) = builder.tempdir_in(memory)
    {
        return Ok(folder);
    }
    Ok(builder.tempdir()?)
}

fn fleet() -> anyhow::Result<Name> {
    Ok("simulated".parse()?)
}

fn rollout_name(app: &str, version: &str) -> String {
    format!("{app}-{version}")
}

/// What the trace says of a node.
fn describe(node: &Node) -> String {
    let workload = |(app, status): (&Name, &proto::object::WorkloadStatus)| {
        let runs = status.running.as_ref().map_or("nothing", |running| running.release.version.as_str());
        format!(", {app} {} {} runs {runs}", status.phase, status.reason)
    };
    let workloads: String = node.status.workloads.iter().map(workload).collect();
    format!("{} generation {}{workloads}", node.status.phase, node.status.observed_generation)
}

fn node_info(name: &str, boots: u32) -> NodeInfo {
    NodeInfo {
        agent_version: proto::VERSION.into(),
        boot_id: format!("boot {boots} of {name}"),
        architecture: "x86_64".into(),
        os_image: "simulated".into(),
        kernel: "0".into(),
        cpus: 4,
        memory_bytes: 8 << 30,
        hostname: name.to_owned(),
        addresses: vec![],
        hardware: vec!["x86_64".into()],
    }
}
