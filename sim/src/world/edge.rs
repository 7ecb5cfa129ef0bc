//! Boxes: they join, their agents start and crash, they are turned off and on, and installed anew.
//!
//! What a person or a service manager would try again is tried again here: an agent that does not start is
//! started anew every few seconds, and so is the join of a box that was installed anew.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use cloudcore::hub::Hub;
use edgecore::{
    agent::Agent,
    facts::Facts,
    join::{JoinOptions, join},
    outbox::Outbox,
    status::StatusView,
};
use proto::{durable, name::Name};
use tokio::time::{Instant, sleep};

use super::{
    PORT, World,
    host::Host,
    settings::{agent_toml, node_info},
};
use crate::{
    driver::SimDriver,
    gpu::SimGpus,
    net::{Net, Profile},
    plan,
    trace::Trace,
};

/// Time after which a service manager starts again what ended, and a person tries a join again.
const AGAIN: Duration = Duration::from_secs(5);
/// Time that a box takes to come up again.
const BOOT: Duration = Duration::from_secs(20);
/// Life of a join token.
const TOKEN: Duration = Duration::from_secs(3600);
/// A machine with an agent. Clones are handles of the same one.
#[derive(Clone)]
pub(super) struct EdgeBox {
    pub name: Name,
    pub site: Name,
    pub host: Host,
    pub driver: SimDriver,
    pub gpus: SimGpus,
    /// How its line is while nothing is broken.
    pub line: Profile,
    net: Net,
    trace: Trace,
    labels: BTreeMap<String, String>,
    live: Arc<Mutex<Live>>,
}

/// What changes while a box lives.
#[derive(Default)]
struct Live {
    /// `agent.toml`.
    settings: String,
    boots: u32,
    /// Since when it has an identity.
    joined: Option<Instant>,
    /// Whether the agent is meant to run when nothing holds it down.
    wanted: bool,
    powered: bool,
    running: Option<Running>,
    backlog: (u64, u64),
}

/// An agent that runs.
#[derive(Clone)]
struct Running {
    outbox: Outbox,
    status: StatusView,
}

impl EdgeBox {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its agent runs.
    pub fn agent_runs(&self) -> bool {
        self.live().running.is_some()
    }

    /// Whether its agent is meant to run.
    pub fn is_wanted(&self) -> bool {
        self.live().wanted
    }

    /// Whether it has power.
    pub fn is_powered(&self) -> bool {
        self.live().powered
    }

    /// Since when it has its identity; nothing while it has none.
    pub fn joined(&self) -> Option<Instant> {
        self.live().joined
    }

    /// Where producers hand in, while the agent runs.
    pub fn outbox(&self) -> Option<Outbox> {
        self.live().running.as_ref().map(|running| running.outbox.clone())
    }

    /// Whether the agent has a session with the hub, by its own account.
    pub fn is_connected(&self) -> bool {
        self.live().running.as_ref().is_some_and(|running| running.status.is_connected())
    }

    /// Records and bytes in the outbox; while the agent is down, those known last.
    pub fn backlog(&self) -> (u64, u64) {
        let mut live = self.live();
        if let Some(running) = &live.running {
            let state = running.outbox.state();
            let state = state.borrow();
            live.backlog = (state.records, state.bytes);
        }
        live.backlog
    }

    /// Ends the agent, or whoever just installs it, where it stands.
    pub async fn stop(&self) {
        self.live().running = None;
        self.host.stop(&self.net).await;
        self.live().running = None; // it may have started while it was being ended
    }

    /// Turns the box off, in order or not.
    pub async fn power_off(&self, in_order: bool) -> anyhow::Result<()> {
        self.stop().await;
        if !std::mem::replace(&mut self.live().powered, false) {
            return Ok(());
        }
        self.driver.lose_all();
        let lost = self.host.power_off(in_order)?;
        if !in_order {
            self.trace.line(self.name.as_ref(), format_args!("lost its power: {lost}"));
        }
        Ok(())
    }

    fn power_on(&self) {
        let mut live = self.live();
        if !std::mem::replace(&mut live.powered, true) {
            live.boots += 1;
        }
    }

    fn write_settings(&self) -> anyhow::Result<()> {
        let settings = self.live().settings.clone();
        // An operator's file stays, whatever happens to the power a moment later.
        let write = || {
            durable::create_dir_all(&self.host.disk)?;
            durable::write(&self.host.disk.join("agent.toml"), settings.as_bytes(), 0o644)
        };
        write().with_context(|| format!("write the settings of {}", self.name))
    }

    async fn join(&self, hub: &Hub) -> anyhow::Result<()> {
        self.write_settings()?;
        let node = Some(self.name.clone());
        let (_, token) = hub.create_token(self.site.clone(), node, 1, TOKEN, self.labels.clone(), false).await?;
        self.host.starts();
        let env = self.host.env(&self.net);
        let options = JoinOptions {
            brokers: self.net.brokers(),
            data_dir: self.host.disk.clone(),
            hub: vec![format!("hub:{PORT}")],
            token,
            name: Some(self.name.to_string()),
            machine_id: format!("machine of {}", self.name),
        };
        let joined = join(options, &env).await.with_context(|| format!("join {}", self.name))?;
        self.live().joined = Some(Instant::now());
        self.trace.line(self.name.as_ref(), format_args!("joined as {} of {}", joined.node, joined.site));
        Ok(())
    }

    /// Starts the agent once.
    pub async fn start(&self) -> anyhow::Result<()> {
        let agent = self.open().await?;
        self.host.tasks.spawn(self.clone().supervise(Some(agent)));
        Ok(())
    }

    async fn open(&self) -> anyhow::Result<Agent> {
        let starts = self.host.starts();
        let env = self.host.env(&self.net);
        let boots = self.live().boots;
        let facts = Facts::fixed(node_info(self.name.as_ref(), boots)).with_gpus(self.gpus.watch());
        let agent = Agent::open(&self.host.disk, env, Arc::new(self.driver.clone()), facts).await?;
        self.live().running = Some(Running { outbox: agent.outbox(), status: agent.status() });
        self.trace.line(self.name.as_ref(), format_args!("agent started, {starts}."));
        Ok(agent)
    }

    /// Runs the agent, and starts it again when it ended, for ever.
    async fn supervise(self, mut agent: Option<Agent>) {
        loop {
            if let Some(agent) = agent.take() {
                let metrics = agent.metrics();
                // The agent's end ends what its workloads tell it; they begin anew with the next.
                let ended = tokio::select! {
                    biased;
                    ended = agent.run(self.driver.goes_down()) => ended,
                    never = self.driver.tell(metrics) => match never {},
                };
                self.live().running = None;
                self.trace.line(self.name.as_ref(), format_args!("agent ended: {ended:?}"));
                if ended.is_ok() {
                    // Nothing else ends it in order: its box restarts, and a service manager stops it for that.
                    self.driver.lose_all();
                    self.live().boots += 1;
                    sleep(BOOT).await;
                }
            }
            sleep(AGAIN).await; // the service manager's pause
            match self.open().await {
                Ok(next) => agent = Some(next),
                Err(error) => {
                    self.trace.line(self.name.as_ref(), format_args!("agent does not start: {error:#}"));
                }
            }
        }
    }

    /// A person joins the box with a new token, as often as it takes, and starts the agent.
    async fn install(self, hub: Arc<Mutex<Option<Hub>>>) {
        loop {
            let running = hub.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(running) = running {
                match self.join(&running).await {
                    Ok(()) => break,
                    Err(error) => self.trace.line(self.name.as_ref(), format_args!("cannot join: {error:#}")),
                }
            }
            sleep(AGAIN).await; // until the next try
        }
        match self.open().await {
            Ok(agent) => self.supervise(Some(agent)).await,
            Err(error) => {
                self.trace.line(self.name.as_ref(), format_args!("agent does not start: {error:#}"));
                self.supervise(None).await;
            }
        }
    }
}

impl World {
    /// Makes a box, and joins it with a token of its site.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn join(&mut self, name: &str, site: &str) -> anyhow::Result<()> {
        self.add_box(name.parse()?, site.parse()?, BTreeMap::new(), Profile::edge(), ("", 0)).await
    }

    /// Makes the boxes of a site and joins them. Their agents are started by [`World::start_agent`].
    ///
    /// # Errors
    /// When the hub refuses, or a box of that name is there.
    pub async fn add_site(&mut self, site: &plan::Site) -> anyhow::Result<()> {
        for node in &site.nodes {
            let (labels, line) = (site.labels.clone(), site.line.clone());
            self.add_box(node.clone(), site.name.clone(), labels, line, (&site.settings, site.gpus)).await?;
        }
        Ok(())
    }

    async fn add_box(
        &mut self,
        name: Name,
        site: Name,
        labels: BTreeMap<String, String>,
        line: Profile,
        (settings, gpus): (&str, u32),
    ) -> anyhow::Result<()> {
        if self.boxes.contains_key(name.as_ref()) || name.as_ref() == self.hub_host.name {
            bail!("there is a host {name} already: give the box another name");
        }
        let hub = self.hub()?;
        let host = Host::new(&self.net, &self.seed, name.as_ref(), self.start, &self.folder)?;
        self.net.set_profile(host.ip, self.hub_host.ip, line.up());
        self.net.set_profile(self.hub_host.ip, host.ip, line.down());
        for broker in self.net.broker_ips() {
            self.net.set_profile(host.ip, broker, line.up());
            self.net.set_profile(broker, host.ip, line.down());
        }
        let wall = Arc::new(host.clock.clone());
        let driver = SimDriver::new(name.as_ref(), wall, Arc::clone(&self.released), self.trace.clone());
        let gpus = SimGpus::new(name.as_ref(), gpus);
        let driver = driver.on_disk(Arc::clone(&host.device)).with_gpus(gpus.clone());
        let live = Live { boots: 1, powered: true, settings: agent_toml(settings)?, ..Live::default() };
        let (net, trace, live) = (self.net.clone(), self.trace.clone(), Arc::new(Mutex::new(live)));
        let edge = EdgeBox { name: name.clone(), site, host, driver, gpus, line, net, trace, labels, live };
        edge.join(&hub).await?;
        edge.host.stop(&self.net).await; // the process of `edgecore join` ends
        edge.write_settings()?;
        edge.host.device.forget(); // it was set up in peace
        self.boxes.insert(name.into(), edge);
        Ok(())
    }

    /// Writes `agent.toml` of a box; read when its agent starts. `more` goes into section `streams`.
    ///
    /// # Errors
    /// When there is no such box, or its agent would not take them.
    pub fn settings(&self, name: &str, more: &str) -> anyhow::Result<()> {
        let edge = self.edge(name)?;
        edge.live().settings = agent_toml(&format!("[streams]\n{more}"))?;
        edge.write_settings()
    }

    /// Starts the agent of a box that joined. While a fault holds the box down it starts when that is over.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_agent(&mut self, name: &str) -> anyhow::Result<()> {
        let held = self.broken.holds_agent(self.edge(name)?);
        let edge = self.edge(name)?;
        edge.live().wanted = true;
        if held || edge.agent_runs() {
            return Ok(());
        }
        edge.power_on();
        edge.start().await
    }

    /// Ends the agent of a box as `kill -9` would. Its workloads run on.
    ///
    /// # Errors
    /// When there is no such box.
    pub async fn crash_agent(&mut self, name: &str) -> anyhow::Result<()> {
        let edge = self.edge_mut(name)?;
        edge.live().wanted = false;
        edge.stop().await;
        self.trace.line(name, format_args!("agent crashed"));
        Ok(())
    }

    /// Turns a box off and on: its workloads are gone, its disk stays.
    ///
    /// # Errors
    /// When there is no such box, or the agent does not start.
    pub async fn reboot(&mut self, name: &str) -> anyhow::Result<()> {
        self.crash_agent(name).await?;
        self.edge(name)?.power_off(true).await?;
        self.start_agent(name).await
    }

    /// How often a box was started, the first time included.
    ///
    /// # Errors
    /// When there is no such box.
    pub fn boots(&self, name: &str) -> anyhow::Result<u32> {
        Ok(self.edge(name)?.live().boots)
    }

    /// Brings a box to where it should be: off, on without an agent, or with one. What does not start is no error:
    /// it is tried again.
    pub(super) async fn settle_box(&self, edge: &EdgeBox) -> anyhow::Result<()> {
        if self.broken.holds_power(edge) {
            return edge.power_off(!self.broken.cuts_power(edge)).await;
        }
        let was_off = !edge.is_powered();
        edge.power_on();
        if self.broken.holds_agent(edge) || !edge.is_wanted() {
            if edge.agent_runs() || !edge.host.tasks.is_empty() {
                edge.stop().await;
            }
            return Ok(());
        }
        if !edge.host.tasks.is_empty() && !was_off {
            return Ok(()); // it runs, or somebody is at it
        }
        edge.host.stop(&self.net).await;
        if edge.joined().is_none() {
            edge.host.tasks.spawn(edge.clone().install(Arc::clone(&self.hub)));
        } else if let Err(error) = edge.start().await {
            self.trace.line(edge.name.as_ref(), format_args!("agent does not start: {error:#}"));
            edge.host.tasks.spawn(edge.clone().supervise(None));
        }
        Ok(())
    }

    /// Gives a box an empty disk. It joins again when [`World::settle_box`] finds that it may.
    pub(super) async fn wipe(&self, edge: &EdgeBox) -> anyhow::Result<()> {
        edge.stop().await;
        edge.driver.lose_all();
        let mut live = edge.live();
        live.joined = None;
        live.boots += 1;
        live.backlog = (0, 0);
        drop(live);
        if edge.host.disk.exists() {
            fs::remove_dir_all(&edge.host.disk).with_context(|| format!("wipe the disk of {}", edge.name))?;
        }
        self.trace.line(edge.name.as_ref(), format_args!("has an empty disk"));
        edge.host.device.forget();
        Ok(())
    }

    /// A person joins boxes again that joined after the backup from which the hub was restored.
    pub(super) async fn rejoin_since(&self, backup: Instant) {
        for edge in self.boxes.values() {
            // A join that is under way may have its answer from the hub that is gone.
            if edge.joined().is_none_or(|joined| joined > backup) {
                edge.stop().await;
                edge.live().joined = None;
            }
        }
    }
}
