//! Who is connected, and what only memory knows of each node: one session a node, the newest wins.
//!
//! Shared by the tasks of `crate::link`; every method is a short critical section.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use proto::{
    digest::Digest,
    env::{Env, WallClock},
    link::{
        CloseCode,
        message::{Assignment, OrderedApp},
    },
    name::Name,
    object::{AssignedApp, Condition, GpuUsage, Node, NodePhase, ReleaseRef, Usage, feature, metrics::bound_live},
    watch,
};
use tokio::time::Instant;

use super::{brokers::Brokers, budget::Budgets, close, report::READY};
use crate::config::HubConfig;

/// Happenings that a session remembers, so as not to tell them with every report.
const MAX_TOLD: usize = 256;
/// Happenings of one node that become events within [`TOLD_PER`]: no node pushes out what others told.
const MAX_TOLD_PER: u32 = 30;
/// See there.
const TOLD_PER: Duration = Duration::from_secs(60);
/// Between two reminders of a node that does not renew its certificate.
const RENEW_AGAIN: Duration = Duration::from_secs(3600);

/// The sessions of the hub. Cheap to clone.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

struct Inner {
    wall: Arc<dyn WallClock>,
    nodes: Mutex<BTreeMap<String, Entry>>,
    counter: AtomicU64,
    budgets: Budgets,
    brokers: Arc<Brokers>,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sessions({})", self.connected())
    }
}

#[derive(Default)]
struct Entry {
    /// As the store has it.
    phase: NodePhase,
    live: Option<Live>,
    heard: Option<Instant>,
    last_seen: Option<Timestamp>,
    usage: Option<Usage>,
    /// When the present minute of happenings began, and how many were told in it. Outlives a session.
    told: Option<(Instant, u32)>,
    /// When it was last sent to renew its certificate. Outlives a session.
    sent_to_renew: Option<Instant>,
}

struct Live {
    id: u64,
    spki: Digest,
    connection: quinn::Connection,
    assignment: watch::Sender<Assignment>,
}

/// A node's turn to be the connected one. Dropping it ends the turn.
pub(crate) struct Turn {
    sessions: Sessions,
    name: Name,
    id: u64,
    pub(crate) assignment: watch::Receiver<Assignment>,
    told: Mutex<BTreeSet<Digest>>,
    /// Its events come as records: nothing is made of its reports.
    tells_events: AtomicBool,
    /// What the agent last said of itself.
    ready: Mutex<Option<Condition>>,
}

impl Sessions {
    pub(crate) fn new(env: &Env, config: &HubConfig, brokers: Arc<Brokers>) -> Sessions {
        Sessions(Arc::new(Inner {
            wall: env.wall.clone(),
            nodes: Mutex::default(),
            counter: AtomicU64::new(0),
            budgets: Budgets::new(config.bulk_bytes_per_s_node, config.bulk_bytes_per_s),
            brokers,
        }))
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nodes with a session.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.nodes().values().filter(|e| e.live.is_some()).count()
    }

    pub(crate) fn budgets(&self) -> &Budgets {
        &self.0.budgets
    }

    /// Makes `connection` the session of `name`; the one before is closed.
    pub(crate) fn open(&self, name: &Name, spki: Digest, connection: quinn::Connection) -> Turn {
        let id = self.0.counter.fetch_add(1, Ordering::Relaxed);
        let (sender, assignment) = watch::channel(Assignment::default());
        let live = Live { id, spki, connection, assignment: sender };
        let old = {
            let mut nodes = self.nodes();
            let entry = nodes.entry(name.to_string()).or_default();
            entry.heard = Some(Instant::now());
            entry.last_seen = Some(self.0.wall.now());
            entry.live.replace(live)
        };
        if let Some(old) = old {
            close(&old.connection, CloseCode::Replaced, "a newer session of this node took its place");
        }
        Turn {
            sessions: self.clone(),
            name: name.clone(),
            id,
            assignment,
            told: Mutex::default(),
            tells_events: AtomicBool::default(),
            ready: Mutex::default(),
        }
    }

    /// Takes note of a node as the store has it: new assignment, other key, other phase.
    pub(crate) fn assign(&self, node: &Node) {
        let mut nodes = self.nodes();
        let entry = nodes.entry(node.name().to_owned()).or_default();
        entry.phase = node.status.phase;
        let Some(live) = &entry.live else { return };
        if !node.status.identity.as_ref().is_some_and(|i| i.admits(live.spki)) {
            close(&live.connection, CloseCode::NotAdmitted, "this key is not let in any more");
            return;
        }
        let next = assignment_of(node);
        live.assignment.send_if_modified(|current| {
            let newer = next.generation > current.generation;
            if newer {
                *current = next;
            }
            newer
        });
    }

    /// The node is gone from the store.
    pub(crate) fn forget(&self, name: &str) {
        let entry = self.nodes().remove(name);
        if let Some(live) = entry.and_then(|e| e.live) {
            close(&live.connection, CloseCode::NotAdmitted, "the node was deleted");
        }
    }

    /// Forgets all nodes but these.
    pub(crate) fn keep_only(&self, known: &BTreeMap<String, Node>) {
        let gone: Vec<String> = self.nodes().keys().filter(|name| !known.contains_key(*name)).cloned().collect();
        gone.iter().for_each(|name| self.forget(name));
    }

    pub(crate) fn revoke(&self, name: &Name) {
        if let Some(live) = self.nodes().get(name.as_str()).and_then(|e| e.live.as_ref()) {
            close(&live.connection, CloseCode::NotAdmitted, "the node was revoked");
        }
    }

    pub(crate) fn close_all(&self, code: CloseCode) {
        for entry in self.nodes().values() {
            if let Some(live) = &entry.live {
                close(&live.connection, code, "the hub is shutting down");
            }
        }
    }

    pub(crate) fn connection(&self, name: &Name) -> Option<quinn::Connection> {
        self.nodes().get(name.as_str()).and_then(|e| e.live.as_ref()).map(|l| l.connection.clone())
    }

    pub(crate) fn last_seen(&self, name: &str) -> Option<Timestamp> {
        self.nodes().get(name).and_then(|e| e.last_seen)
    }

    /// Nodes that the store has as heard from and that were not, for `patience`.
    pub(crate) fn silent(&self, started: Instant, patience: Duration) -> Vec<String> {
        let nodes = self.nodes();
        nodes.iter().filter(|(_, e)| e.is_silent(started, patience)).map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn is_silent(&self, name: &str, started: Instant, patience: Duration) -> bool {
        self.nodes().get(name).is_some_and(|e| e.is_silent(started, patience))
    }

    /// Whether the store has the node as silent.
    pub(crate) fn is_marked(&self, name: &Name) -> bool {
        self.nodes().get(name.as_str()).is_some_and(|e| e.phase == NodePhase::Unknown)
    }

    /// Overlays what only memory has.
    pub(crate) fn view(&self, mut node: Node) -> Node {
        let nodes = self.nodes();
        let Some(entry) = nodes.get(node.name()) else { return node };
        let status = &mut node.status;
        status.last_seen = entry.last_seen.or(status.last_seen);
        status.usage = entry.usage.clone().or(status.usage.take());
        if let Some(live) = &entry.live {
            status.remote = Some(self.0.brokers.describe(live.connection.remote_address()));
        }
        node
    }
}

impl Entry {
    fn is_silent(&self, started: Instant, patience: Duration) -> bool {
        let heard_of = matches!(self.phase, NodePhase::Ready | NodePhase::NotReady);
        heard_of && self.heard.unwrap_or(started).elapsed() >= patience
    }
}

impl Turn {
    /// Greater than that of every session before.
    pub(crate) fn number(&self) -> u64 {
        self.id
    }

    /// A word of the node arrived.
    pub(crate) fn heard(&self, mut usage: Option<Usage>) {
        if let Some(usage) = &mut usage {
            GpuUsage::bound(&mut usage.gpus);
            bound_live(&mut usage.metrics);
        }
        let mut nodes = self.sessions.nodes();
        let Some(entry) = nodes.get_mut(self.name.as_str()) else { return };
        if entry.live.as_ref().is_some_and(|l| l.id == self.id) {
            entry.heard = Some(Instant::now());
            entry.last_seen = Some(self.sessions.0.wall.now());
            entry.usage = usage.or(entry.usage.take());
        }
    }

    /// The node tells its events itself, as records.
    pub(crate) fn tells_events(&self) {
        self.tells_events.store(true, Ordering::Relaxed);
    }

    /// Whether this happening is to be told: the node does not tell by itself, it was not told before in this
    /// session, and the node's share of this minute is not used up. What finds it used up is told with a later
    /// report, if it is still so.
    pub(crate) fn may_tell(&self, happening: &str) -> bool {
        if self.tells_events.load(Ordering::Relaxed) {
            return false;
        }
        let digest = Digest::of(happening.as_bytes());
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.contains(&digest) || !self.take_share() {
            return false;
        }
        if told.len() >= MAX_TOLD {
            told.clear();
        }
        told.insert(digest)
    }

    /// Whether this is not what was warned of before in this session. The hub's own finding: not the node's share.
    pub(crate) fn warns(&self, text: &str) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.len() < MAX_TOLD && told.insert(Digest::of(text.as_bytes()))
    }

    /// Takes note of a happening that was told before this session.
    pub(crate) fn was_told(&self, happening: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < MAX_TOLD {
            told.insert(Digest::of(happening.as_bytes()));
        }
    }

    /// Takes of the node's share of this minute's events.
    pub(crate) fn take_share(&self) -> bool {
        let mut nodes = self.sessions.nodes();
        let Some(entry) = nodes.get_mut(self.name.as_str()) else { return false };
        let told = entry.told.get_or_insert_with(|| (Instant::now(), 0));
        if told.0.elapsed() >= TOLD_PER {
            *told = (Instant::now(), 0);
        }
        let is_left = told.1 < MAX_TOLD_PER;
        told.1 += u32::from(is_left);
        is_left
    }

    /// Whether to send it to renew its certificate now: one that cannot is served all the same, and asked again later.
    pub(crate) fn may_be_sent_to_renew(&self) -> bool {
        let mut nodes = self.sessions.nodes();
        let Some(entry) = nodes.get_mut(self.name.as_str()) else { return false };
        let may = entry.sent_to_renew.is_none_or(|at| at.elapsed() >= RENEW_AGAIN);
        if may {
            entry.sent_to_renew = Some(Instant::now());
        }
        may
    }

    /// Takes note of what the agent says of itself.
    pub(crate) fn reported(&self, conditions: &[Condition]) {
        let ready = conditions.iter().find(|c| c.r#type == READY).cloned();
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = ready;
    }

    /// What the agent last said of itself.
    pub(crate) fn ready(&self) -> Option<Condition> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether no newer session took over.
    pub(crate) fn is_current(&self) -> bool {
        let nodes = self.sessions.nodes();
        nodes.get(self.name.as_str()).and_then(|e| e.live.as_ref()).is_some_and(|l| l.id == self.id)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut nodes = self.sessions.nodes();
        if let Some(entry) = nodes.get_mut(self.name.as_str())
            && entry.live.as_ref().is_some_and(|l| l.id == self.id)
        {
            entry.live = None;
        }
    }
}

/// All that a node should run.
pub(crate) fn assignment_of(node: &Node) -> Assignment {
    let ordered = |app: &AssignedApp| OrderedApp {
        release: ReleaseRef { version: app.version.clone(), digest: app.digest },
        order: app.order.clone(),
    };
    let apps = node.spec.apps.iter().map(|(name, app)| (name.clone(), ordered(app))).collect();
    let knows_requests = node.status.info.as_ref().is_some_and(|info| info.features.contains(feature::REQUESTS));
    Assignment {
        generation: node.metadata.generation,
        apps,
        drained: node.spec.drained,
        reboot: node.spec.reboot.clone(),
        allocation: knows_requests.then_some(node.spec.allocation),
    }
}
