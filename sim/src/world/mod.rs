//! A hub and its agents in one process: the real code, on simulated hosts.
//!
//! ```text
//! World --> Host "hub":   Hub    | Env { wall: HostClock, network: Net, blocking: Inline, seed }
//!       --> Host "box-1": Agent  | the same, and a SimDriver that outlives the agent
//! ```
//!
//! A host's disk is a folder that stays when the host crashes. A crash silences its sockets first (a
//! connection that is dropped says goodbye, a dead box does not), then ends its tasks where they stand.
//!
//! | file | what it holds |
//! |---|---|
//! | `host` | a simulated machine: address, clock, tasks, disk |
//! | `edge` | boxes: they join, start, crash, are turned off and on, are installed anew |
//! | `hub` | the hub: starts, crashes, backups |
//! | `release` | what the release engineer and the operator do |
//! | `faults` | breaking and mending, and how often it struck |
//! | `flip` | bits that flip at rest |
//! | `observe` | what can be seen from the outside, cheaply |
//! | `until` | waiting, in virtual time, until something is so |
//! | `settings` | `agent.toml`, and what a box says of itself |
//! | `streams` | producers, and the books that they keep |

mod edge;
mod faults;
mod flip;
mod host;
mod hub;
pub mod observe;
mod release;
mod settings;
mod streams;
mod until;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use cloudcore::{
    ca::Ca,
    hub::Hub,
    release::{Repository, Setup},
};
use proto::{
    env::{Env, Seed},
    name::{Name, Version},
    tuf::SecretKey,
};
use tokio::time::Instant;

pub use self::observe::{AppSeen, Observation, RolloutSeen, Seen, Told};
use self::{edge::EdgeBox, faults::Broken, host::Host, hub::Backups, release::Wanted};
use crate::{
    clock::Tasks,
    driver::Released,
    ledger::Ledger,
    net::{Manners, Net, Profile},
    plan,
    trace::Trace,
};

/// How often a condition is looked at, in virtual time.
const STEP: Duration = Duration::from_millis(50);
const PORT: u16 = proto::link::DEFAULT_PORT;
/// The release engineer's repository, in the folder of the world.
const REPOSITORY: &str = "engineer.repository";

/// The whole simulated fleet.
pub struct World {
    trace: Trace,
    net: Net,
    seed: Seed,
    start: Instant,
    pump: Tasks,
    hub_host: Host,
    /// The hub that runs. Boxes that are installed anew ask it for a token.
    hub: Arc<Mutex<Option<Hub>>>,
    /// Whether the hub is meant to run: what a service manager would start again.
    hub_wanted: bool,
    hub_powered: bool,
    backups: Backups,
    boxes: BTreeMap<String, EdgeBox>,
    released: Released,
    wanted: Wanted,
    broken: Broken,
    seen: BTreeMap<String, String>,
    watched: Mutex<observe::Watched>,
    ledger: Ledger,
    /// Removed last: while there is a disk in it each file that goes would be kept, in case the power is cut.
    folder: host::Folder,
}

impl World {
    /// A world with a hub that has not been started.
    ///
    /// # Errors
    /// When there is no room for its folders.
    pub async fn new(seed: Seed, trace: Trace) -> anyhow::Result<World> {
        let start = Instant::now();
        host::allow_many_files();
        let folder = host::disk(&seed)?;
        trace.hide(folder.path());
        let net = Net::new(seed.child("net"), Profile::edge(), trace.clone());
        let pump = Tasks::default();
        pump.spawn(net.clone().pump());
        let hub_host = Host::new(&net, &seed, "hub", start, &folder)?;
        let mut world = World {
            trace,
            net,
            seed,
            start,
            folder,
            pump,
            hub_host,
            hub: Arc::default(),
            hub_wanted: false,
            hub_powered: true,
            backups: Backups::default(),
            boxes: BTreeMap::new(),
            released: Released::default(),
            wanted: Wanted::default(),
            broken: Broken::default(),
            seen: BTreeMap::new(),
            watched: Mutex::default(),
            ledger: Ledger::default(),
        };
        world.init()?;
        Ok(world)
    }

    /// What `cloudcore init` and `crossdock release init` do.
    fn init(&mut self) -> anyhow::Result<()> {
        let env = self.hub_host.env(&self.net);
        std::fs::create_dir_all(&self.hub_host.disk)?;
        Ca::create(&self.hub_host.disk, &fleet()?, &env).context("create the CA")?;
        let setup = Setup::small_team(&self.key("root"), &self.key("targets"), &self.key("pipeline"));
        let repository = Repository::create(&self.folder.path().join(REPOSITORY), &setup, env.wall.now())?;
        repository.sign(&[self.key("root"), self.key("targets")])?;
        self.hub_host.device.forget(); // it was set up in peace
        Ok(())
    }

    /// A release engineer's key, by its purpose.
    #[must_use]
    pub fn key(&self, role: &str) -> SecretKey {
        SecretKey::from_seed(&self.seed.child("release keys").bytes(role))
    }

    /// Randomness for a scenario's own choices.
    #[must_use]
    pub fn seed(&self, scenario: &str) -> Seed {
        self.seed.child(scenario)
    }

    /// Virtual time since the world began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The trace that everything here writes to.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// The boxes, in order of their names.
    #[must_use]
    pub fn boxes(&self) -> Vec<Name> {
        self.boxes.values().map(|edge| edge.name.clone()).collect()
    }

    /// The site of a box.
    #[must_use]
    pub fn site_of(&self, node: &Name) -> Option<Name> {
        self.boxes.get(node.as_ref()).map(|edge| edge.site.clone())
    }

    fn edge(&self, name: &str) -> anyhow::Result<&EdgeBox> {
        self.boxes.get(name).with_context(|| format!("there is no {name}"))
    }

    fn edge_mut(&mut self, name: &str) -> anyhow::Result<&mut EdgeBox> {
        self.boxes.get_mut(name).with_context(|| format!("there is no {name}"))
    }

    /// The folder of a box's agent.
    ///
    /// # Errors
    /// When there is no such box.
    pub fn disk(&self, name: &str) -> anyhow::Result<PathBuf> {
        Ok(self.edge(name)?.host.disk.clone())
    }

    /// The folder of the hub.
    #[must_use]
    pub fn hub_disk(&self) -> PathBuf {
        self.hub_host.disk.clone()
    }

    /// Cuts or mends the line between a box and the hub, both ways.
    pub fn cut(&self, name: &str, cut: bool) {
        if let Some(edge) = self.boxes.get(name) {
            self.net.set_cut(edge.host.ip, self.hub_host.ip, cut);
            self.net.set_cut(self.hub_host.ip, edge.host.ip, cut);
        }
    }

    /// Adds an MQTT broker, which hub and boxes that start from now on are told of.
    pub fn add_broker(&self, name: &str) -> IpAddr {
        self.net.add_broker(name, Manners::default())
    }

    /// Adds a broker of a plan.
    ///
    /// # Errors
    /// When there is a host of that name.
    pub fn add_planned_broker(&self, broker: &plan::Broker) -> anyhow::Result<()> {
        let name = broker.name.as_ref();
        ensure!(name != self.hub_host.name && !self.boxes.contains_key(name), "there is a host {name} already");
        let (ip, hub) = (self.net.add_broker(name, broker.manners.clone()), self.hub_host.ip);
        self.net.set_profile(ip, hub, broker.line.up());
        self.net.set_profile(hub, ip, broker.line.down());
        Ok(())
    }

    /// Kills a broker, or starts it again.
    pub fn set_broker_down(&self, broker: IpAddr, down: bool) {
        self.net.set_broker_down(broker, down);
    }

    /// Sets up a firewall between a box and the hub that lets no UDP through, or takes it away. A box that has not
    /// joined yet has no line: it gets one when it does.
    pub fn block_udp(&self, name: &str, blocked: bool) {
        if let Some(edge) = self.boxes.get(name) {
            self.net.set_blocked(edge.host.ip, self.hub_host.ip, blocked);
            self.net.set_blocked(self.hub_host.ip, edge.host.ip, blocked);
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

    /// Bytes that have arrived at a box, from the hub and from brokers.
    #[must_use]
    pub fn arrived_at(&self, name: &str) -> u64 {
        let Some(edge) = self.boxes.get(name) else { return 0 };
        let from = [self.hub_host.ip].into_iter().chain(self.net.broker_ips());
        from.map(|ip| self.net.counters(ip, edge.host.ip).arrived_bytes).sum()
    }

    /// The version of an app that really runs on a box, whatever anybody believes.
    ///
    /// # Errors
    /// When there is no such box.
    pub fn running(&self, name: &str, app: &str) -> anyhow::Result<Option<Version>> {
        Ok(self.edge(name)?.driver.running(&app.parse()?))
    }

    /// Pulls the plugs of so many cameras of a box, or of none any more.
    ///
    /// # Errors
    /// When there is no such box.
    pub fn lose_cameras(&self, name: &str, count: u32) -> anyhow::Result<()> {
        self.edge(name)?.driver.lose_cameras(count);
        Ok(())
    }

    /// Whether a box has a session with the hub, by its own account.
    ///
    /// # Errors
    /// When there is no such box.
    pub fn is_connected(&self, name: &str) -> anyhow::Result<bool> {
        Ok(self.edge(name)?.is_connected())
    }

    /// A host that is none of the fleet's.
    ///
    /// # Errors
    /// When there is no room for its disk.
    pub fn stranger(&self, name: &str) -> anyhow::Result<Stranger> {
        let host = Host::new(&self.net, &self.seed, name, self.start, &self.folder)?;
        Ok(Stranger { host, net: self.net.clone() })
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
        for edge in self.boxes.values() {
            edge.stop().await;
        }
        self.boxes.clear();
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = observe::Watched::default();
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

fn fleet() -> anyhow::Result<Name> {
    Ok("simulated".parse()?)
}

/// A host that is none of the fleet's: the network and a clock, for whoever means harm.
pub struct Stranger {
    host: Host,
    net: Net,
}

impl Stranger {
    /// The outside as it sees it.
    #[must_use]
    pub fn env(&self) -> Env {
        self.host.starts();
        self.host.env(&self.net)
    }

    /// It is gone, and says no goodbye.
    pub async fn vanish(&self) {
        self.host.stop(&self.net).await;
    }
}
