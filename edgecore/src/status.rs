//! The agent explains itself without a hub: one JSON document over a Unix socket, or off the records.
//!
//! `edgecore run` serves it beside the agent; `edgecore status` reads it. Whoever connects gets one
//! document and the end of the stream; there is nothing to ask.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use proto::{
    durable::{self, Loaded, Record},
    env::{Env, WallClock},
    link::message::{Assignment, Report},
    name::Name,
    object::{CarrierStatus, ConditionStatus, GpuInfo, GpuInventory, UpdatePhase},
    stream::message::Lag,
    watch,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use crate::{
    apps::slot::{self, Slot},
    config::{AgentConfig, ConfigError, Paths},
    doors::Endpoints,
    driver::records::{Folder, Running},
    gpu::GpuWatch,
    link::LinkState,
    outbox::{Outbox, OutboxState},
    secrets::key,
    trust::TrustState,
};

/// A reader that is slower is dropped.
const PATIENCE: Duration = Duration::from_secs(2);
const MAX_STATUS_BYTES: u64 = 16 << 20;

/// What the agent says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Whether the agent runs; otherwise this is from its records.
    pub running: bool,
    /// Version of the agent.
    pub version: String,
    /// The node.
    pub node: Name,
    /// Its site.
    pub site: Name,
    /// Its fleet.
    pub fleet: Name,
    /// Addresses of the hub.
    pub hubs: Vec<String>,
    /// Process of the agent.
    #[serde(default)]
    pub pid: Option<u32>,
    /// When it started.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// The time at which it said this.
    pub now: Timestamp,
    /// The link.
    #[serde(default)]
    pub link: Option<LinkState>,
    /// The trust in releases.
    #[serde(default)]
    pub trust: Option<TrustState>,
    /// Streams of records.
    #[serde(default)]
    pub streams: Option<StreamsStatus>,
    /// What secrets for this node are sealed to; absent while that key is damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealing_key: Option<String>,
    /// GPUs, and which app has which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvidia: Option<GpuInventory>,
    /// Conditions and apps.
    pub report: Report,
    /// What is durably known of each app; only from the records.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub slots: BTreeMap<Name, Slot>,
    /// The process of each app that lives; only from the records, where an app that is absent has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub processes: BTreeMap<Name, Running>,
    /// Apps of which nothing can be told, and why; only from the records.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lost: BTreeMap<Name, String>,
}

/// How records come in, and what waits for the hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamsStatus {
    /// Where records are taken.
    pub endpoints: Endpoints,
    /// What is on disk.
    pub outbox: OutboxState,
    /// What waits, by stream.
    pub lag: Vec<Lag>,
}

/// No status could be had.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The data folder holds no node.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The socket could not be made.
    #[error("could not listen on {}: {source}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Everything that the status is made of, as it changes.
#[derive(Debug, Clone)]
pub struct StatusView {
    pub(crate) config: Arc<AgentConfig>,
    pub(crate) wall: Arc<dyn WallClock>,
    pub(crate) started_at: Timestamp,
    pub(crate) board: watch::Receiver<Report>,
    pub(crate) link: watch::Receiver<LinkState>,
    pub(crate) trust: watch::Receiver<TrustState>,
    pub(crate) outbox: Outbox,
    pub(crate) endpoints: watch::Receiver<Endpoints>,
    pub(crate) sealing_key: Option<String>,
    pub(crate) gpus: GpuWatch,
}

impl StatusView {
    /// Whether there is a session with a hub now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.link.borrow().connected
    }

    /// The status now.
    #[must_use]
    pub fn now(&self) -> Status {
        Status {
            running: true,
            version: proto::VERSION.into(),
            node: self.config.node.clone(),
            site: self.config.site.clone(),
            fleet: self.config.fleet.clone(),
            hubs: self.config.hubs.clone(),
            pid: Some(std::process::id()),
            started_at: Some(self.started_at),
            now: self.wall.now(),
            link: Some(self.link.borrow().clone()),
            trust: Some(self.trust.borrow().clone()),
            streams: Some(StreamsStatus {
                endpoints: self.endpoints.borrow().clone(),
                outbox: self.outbox.state().borrow().clone(),
                lag: self.outbox.lag(),
            }),
            sealing_key: self.sealing_key.clone(),
            nvidia: self.gpus.inventory(),
            report: self.board.borrow().clone(),
            slots: BTreeMap::new(),
            processes: BTreeMap::new(),
            lost: BTreeMap::new(),
        }
    }
}

/// Serves the status until it is dropped.
///
/// # Errors
/// When the socket cannot be made.
pub async fn serve(view: StatusView, paths: &Paths) -> Result<std::convert::Infallible, StatusError> {
    let path = paths.socket();
    let bind = || {
        durable::remove(&path).map_err(io::Error::other)?;
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660))?;
        Ok(listener)
    };
    let listener = bind().map_err(|source| StatusError::Listen { path: path.clone(), source })?;
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: not worth ending the agent, and no reason to spin.
            tokio::time::sleep(PATIENCE).await;
            continue;
        };
        let document = serde_json::to_vec(&view.now()).unwrap_or_default();
        // One at a time: the time-out bounds how long one reader keeps the others waiting.
        let sent = timeout(PATIENCE, async {
            stream.write_all(&document).await?;
            stream.shutdown().await
        });
        sent.await.ok();
    }
}

/// The status of the agent in `data_dir`: its own word, or its records when it does not answer.
///
/// # Errors
/// When nobody joined there.
pub async fn read(data_dir: &Path, env: &Env) -> Result<Status, StatusError> {
    let paths = Paths::new(data_dir);
    match timeout(PATIENCE, ask(&paths.socket())).await {
        Ok(Ok(status)) => Ok(status),
        _ => from_records(data_dir, &paths, env),
    }
}

async fn ask(socket: &Path) -> io::Result<Status> {
    let mut bytes = vec![];
    UnixStream::connect(socket).await?.take(MAX_STATUS_BYTES).read_to_end(&mut bytes).await?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn from_records(data_dir: &Path, paths: &Paths, env: &Env) -> Result<Status, StatusError> {
    let config = AgentConfig::load(data_dir)?;
    let assignment: Option<Assignment> = match paths.assignment().load() {
        Ok(Loaded::Good(content) | Loaded::Fallback(content)) => serde_json::from_slice(&content).ok(),
        _ => None,
    };
    let (mut slots, mut processes, mut lost) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for entry in fs::read_dir(paths.apps()).into_iter().flatten().flatten() {
        let Some(name) = entry.file_name().to_str().and_then(|n| n.parse::<Name>().ok()) else { continue };
        let slot = slot::load(&Record::at(entry.path().join("slot")));
        let key = slot.as_ref().ok().and_then(|slot| slot.side.key(&name)).unwrap_or_else(|| name.clone());
        // The driver would clear away what a killed agent left behind: here it is only looked at.
        match Folder::at(paths.driver().join(key.as_str())).alive() {
            Ok(running) => processes.extend(running.map(|running| (name.clone(), running))),
            Err(error) => tracing::warn!(app = %name, %error, "nobody knows whether it runs"),
        }
        match slot {
            Ok(slot) if slot.is_cleared() => {}
            Ok(slot) => drop(slots.insert(name, slot)),
            Err(error) => drop(lost.insert(name, error.to_string())),
        }
    }
    Ok(Status {
        running: false,
        version: proto::VERSION.into(),
        node: config.node,
        site: config.site,
        fleet: config.fleet,
        hubs: config.hubs,
        pid: None,
        started_at: None,
        now: env.wall.now(),
        link: None,
        trust: None,
        streams: None,
        sealing_key: key::read(paths).ok().flatten().and_then(Result::ok).map(|key| key.public().to_string()),
        nvidia: None,
        report: Report { observed_generation: assignment.map_or(0, |a| a.generation), ..Report::default() },
        slots,
        processes,
        lost,
    })
}

/// The status in words.
#[must_use]
pub fn explain(status: &Status) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}"); // writing to a String cannot fail
    };
    line(format!("node {} of site {}, fleet {}", status.node, status.site, status.fleet));
    match (&status.started_at, status.pid) {
        (Some(since), Some(pid)) => line(format!("agent {} runs as process {pid} since {since:.0}", status.version)),
        _ => line("agent does not run: what follows is from its records (start it: edgecore run)".into()),
    }
    match &status.link {
        Some(link) if link.connected => line(format!("hub {} connected since {:.0}", link.hub, link.since)),
        Some(LinkState { problem: Some(problem), hub, since, failures, .. }) => {
            line(format!("hub {hub} NOT connected since {since:.0}, {failures} attempts: {}", problem.message));
        }
        Some(link) => line(format!("hub {} not connected yet", link.hub)),
        None => line(format!("hub {}", status.hubs.join(", "))),
    }
    line(match &status.sealing_key {
        Some(key) => format!("secrets for this node are sealed to {key}"),
        None => "secrets for this node cannot be opened: no sealing key can be read here".into(),
    });
    for carrier in &status.report.carriers {
        line(self::carrier(carrier));
    }
    if let Some(trust) = status.trust.as_ref().filter(|t| !t.problem.is_empty()) {
        line(format!("trust {}", trust.problem));
    }
    for text in streams(status) {
        line(text);
    }
    for gpu in status.nvidia.iter().flat_map(|nvidia| &nvidia.devices) {
        line(self::gpu(gpu));
    }
    for condition in &status.report.conditions {
        let expected = if condition.r#type == "Ready" { ConditionStatus::True } else { ConditionStatus::False };
        if condition.status != expected {
            line(format!("{} {}: {} {}", condition.r#type, condition.status, condition.reason, condition.message));
        }
    }
    if let Some(reboot) = &status.report.reboot {
        line(format!("restart of the node by {}: {} {}", reboot.order, reboot.phase, reboot.message).trim_end().into());
    }
    line(format!("assignment generation {}", status.report.observed_generation));
    for text in apps(status) {
        line(text);
    }
    out
}

/// How a GPU is, and who has it.
fn gpu(gpu: &GpuInfo) -> String {
    let state = if gpu.problem.is_empty() { "works" } else { &gpu.problem };
    let apps: Vec<&str> = gpu.apps.iter().map(Name::as_str).collect();
    let held = if apps.is_empty() { String::new() } else { format!(", held by {}", apps.join(", ")) };
    format!("GPU {} {} {} MiB {} {state}{held}", gpu.index, gpu.model, gpu.memory_bytes >> 20, gpu.uuid)
}

/// How one of the link's carriers stands.
fn carrier(carrier: &CarrierStatus) -> String {
    let state = match (carrier.in_use, carrier.reachable) {
        (true, true) => "in use",
        (true, false) => "in use, no answer",
        (false, true) => "reachable",
        (false, false) => "NOT reachable",
    };
    let mut text = format!("carrier {} {} {state}", carrier.name, carrier.at);
    for (what, told) in [("last error", &carrier.last_error), ("WARNING", &carrier.warning)] {
        if let Some(told) = told {
            let _ = write!(text, "; {what}: {told}");
        }
    }
    text
}

fn streams(status: &Status) -> Vec<String> {
    let Some(streams) = &status.streams else { return vec![] };
    let (outbox, at) = (&streams.outbox, &streams.endpoints);
    let doors = [
        at.http.map(|a| format!("http://{a}")),
        at.socket.as_ref().map(|p| p.display().to_string()),
        at.mqtt.map(|a| format!("mqtt://{a}")),
    ];
    let doors: Vec<String> = doors.into_iter().flatten().collect();
    let mut lines = vec![format!(
        "outbox {} records wait, {} of {} bytes, taken at {}",
        outbox.records,
        outbox.bytes,
        outbox.quota_bytes,
        doors.join(" ")
    )];
    for lag in streams.lag.iter().filter(|l| l.records > 0) {
        let oldest = lag.oldest.map(|o| format!(", the oldest of {o:.0}")).unwrap_or_default();
        lines.push(format!("stream {} {} records wait{oldest}", lag.key.stream, lag.records));
    }
    lines
}

fn apps(status: &Status) -> Vec<String> {
    let mut lines = vec![];
    for (app, workload) in &status.report.workloads {
        let target = workload.target.as_ref().map_or("(to be removed)".into(), |t| t.version.to_string());
        let mut text = format!("app {app} {target} {}", workload.phase);
        if workload.phase != UpdatePhase::Succeeded || !workload.message.is_empty() {
            let _ = write!(text, " since {:.0} {} {}", workload.since, workload.reason, workload.message);
        }
        if let Some(progress) = workload.progress {
            let _ = write!(text, " {} of {} bytes", progress.done_bytes, progress.total_bytes);
        }
        match &workload.running {
            Some(running) => {
                let ready = if running.ready { "ready" } else { "not ready" };
                let _ = write!(text, "; {} {}, {ready}", running.release.version, running.state);
                let _ = write!(text, ", {} restarts", running.restarts);
            }
            None => text.push_str("; nothing runs"),
        }
        if let Some(replicas) = &workload.replicas {
            let _ = write!(text, "; {} replicas run: {}", replicas.current_replicas, replicas.message);
        }
        if let Some(why) = &workload.restart_failed {
            let _ = write!(text, "; not healthy after its restart: {why}");
        }
        lines.push(text);
    }
    for (app, slot) in &status.slots {
        let active = slot.active.as_ref().map_or("none".into(), |i| i.release.version.to_string());
        let trial = slot.trial.as_ref().map(|t| format!(", {} on trial", t.installed.release.version));
        let runs = match status.processes.get(app) {
            Some(running) => format!("runs as process {} since {:.0}", running.pid, running.started_at),
            None => "nothing runs".into(),
        };
        lines.push(format!("app {app} active {active}{}; {runs}", trial.unwrap_or_default()));
    }
    lines.extend(status.lost.iter().map(|(app, problem)| format!("app {app} Blocked StateLost {problem}")));
    if lines.is_empty() {
        lines.push("no apps".into());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_an_agent_the_records_tell_lost_slots_too() {
        let folder = tempfile::tempdir().unwrap();
        let name = |text: &str| text.parse::<Name>().unwrap();
        let data_dir = folder.path().to_owned();
        let config = AgentConfig {
            data_dir,
            node: name("n1"),
            site: name("s1"),
            fleet: name("f1"),
            hubs: vec![],
            brokers: vec![],
        };
        config.store().unwrap();
        let paths = Paths::new(folder.path());
        for (app, content) in [("whole", br#"{"floor": 1}"#.as_slice()), ("unreadable", b"{")] {
            fs::create_dir_all(paths.apps().join(app)).unwrap();
            Record::at(paths.apps().join(app).join("slot")).store(content).unwrap();
        }
        fs::create_dir_all(paths.apps().join("damaged")).unwrap();
        fs::write(paths.apps().join("damaged/slot"), "x").unwrap();
        let status = read(folder.path(), &Env::real().unwrap()).await.unwrap();
        assert_eq!(status.lost.keys().map(Name::as_str).collect::<Vec<_>>(), ["damaged", "unreadable"]);
        let text = explain(&status);
        assert!(text.contains("app damaged Blocked StateLost") && text.contains("edgecore join"), "{text}");
    }
}
