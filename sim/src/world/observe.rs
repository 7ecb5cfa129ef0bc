//! What can be seen from the outside now, cheaply: asked every virtual second for a hundred boxes.
//!
//! Objects of the hub are followed by a watch and kept; only what changed is read.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use cloudcore::{
    hub::Hub,
    store::{Store, Watch},
};
use edgecore::{apps::current, config::Paths};
use futures_util::FutureExt as _;
use proto::{
    digest::Digest,
    name::{Name, Version},
    object::{
        Kind, Node, NodePhase, NodeSpec, Object, Rollout, RolloutPhase, RolloutSpec, UpdatePhase, WorkloadStatus,
    },
};
use tokio::task::unconstrained;

use super::{World, edge::EdgeBox};

/// The fleet at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// Virtual time since the world began.
    pub at: Duration,
    /// Whether the hub runs.
    pub hub_runs: bool,
    /// Every box.
    pub nodes: BTreeMap<Name, Seen>,
    /// Every rollout that the hub knows, by `app@version`. Those known last while the hub is down.
    pub rollouts: BTreeMap<String, RolloutSeen>,
}

/// One box.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Its site.
    pub site: Name,
    /// Whether its agent runs.
    pub agent_runs: bool,
    /// Whether it has power.
    pub powered: bool,
    /// Whether something can pass its line both ways.
    pub line_open: bool,
    /// Whether the hub says that it is Ready. Absent while the hub is down.
    pub ready: Option<bool>,
    /// What the hub says, or said last.
    pub phase: NodePhase,
    /// Its apps: those that the hub tells of, and those that really run.
    pub apps: Arc<BTreeMap<Name, AppSeen>>,
    /// Records in its outbox; while the agent is down, those known last.
    pub backlog_records: u64,
    /// Bytes of its outbox, likewise.
    pub backlog_bytes: u64,
    /// Whether the agent has a session with the hub, by its own account.
    pub connected: bool,
    /// What carries the link.
    pub carrier: &'static str,
}

/// One app of a box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppSeen {
    /// What really runs, whatever anybody believes.
    pub running: Option<Version>,
    /// Its digest.
    pub digest: Option<Digest>,
    /// Which instance of its box that is: another number, another start.
    pub instance: Option<u64>,
    /// Which version was started last, or was to be and refused.
    pub tried: Option<Version>,
    /// Whether the hub was told that it is ready.
    pub ready: bool,
    /// How far its update is, as the hub has it.
    pub phase: Option<UpdatePhase>,
    /// Why it stands so, for people.
    pub message: String,
    /// What it is to become, as the hub has it.
    pub target: Option<Version>,
    /// What the hub told it.
    pub told: Option<Told>,
    /// What it uses of others' files.
    pub uses: BTreeMap<Name, Version>,
    /// Replicas that really run besides the first: which release, and which instance of the box.
    pub others: BTreeMap<u8, (Version, u64)>,
}

/// What the hub told a box of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The name of the rollout.
    pub rollout: Option<String>,
    /// The version.
    pub version: Version,
    /// Whether it is to wait with it.
    pub held: bool,
    /// Whether the box said that it is through with it, well or not.
    pub settled: bool,
}

impl Told {
    /// Whether the app may stop at any moment because of it.
    #[must_use]
    pub fn may_disturb(&self) -> bool {
        !self.held && !self.settled
    }
}

impl AppSeen {
    /// Of which nothing is known.
    #[must_use]
    pub fn nothing() -> AppSeen {
        AppSeen {
            running: None,
            digest: None,
            instance: None,
            tried: None,
            ready: false,
            phase: None,
            message: String::new(),
            target: None,
            told: None,
            uses: BTreeMap::new(),
            others: BTreeMap::new(),
        }
    }
}

/// One rollout.
#[derive(Debug, Clone)]
pub struct RolloutSeen {
    /// Where it stands.
    pub phase: RolloutPhase,
    /// Nodes that are done.
    pub done: u32,
    /// Nodes that failed or were rolled back.
    pub failed: u32,
    /// All its nodes.
    pub total: u32,
    /// All that the hub says of it. Another one is no difference by itself.
    pub object: Option<Arc<Rollout>>,
}

impl PartialEq for RolloutSeen {
    fn eq(&self, other: &RolloutSeen) -> bool {
        (self.phase, self.done, self.failed, self.total) == (other.phase, other.done, other.failed, other.total)
    }
}

/// What is known of the hub's objects, kept from one look to the next.
#[derive(Default)]
pub(super) struct Watched {
    nodes: Follow<NodeSpec>,
    rollouts: Follow<RolloutSpec>,
    apps: BTreeMap<Name, AppsSeen>,
}

/// The apps of a box, and what they were made of.
struct AppsSeen {
    node: Option<Arc<Object<NodeSpec>>>,
    moment: (u64, usize),
    apps: Arc<BTreeMap<Name, AppSeen>>,
}

/// One kind, followed. A follower that fell behind, or whose hub is another, lists anew.
struct Follow<S: Kind + PartialEq> {
    watch: Option<Watch<S>>,
    objects: BTreeMap<String, Arc<Object<S>>>,
}

impl<S: Kind + PartialEq> Default for Follow<S> {
    fn default() -> Follow<S> {
        Follow { watch: None, objects: BTreeMap::new() }
    }
}

impl<S: Kind + PartialEq> Follow<S> {
    async fn look(&mut self, store: &Store) -> anyhow::Result<()> {
        loop {
            let Some(watch) = &mut self.watch else {
                // From before the list: what changes in between is seen twice, never missed.
                let watch = store.watch(None)?;
                let list = store.list::<S>(None).await?;
                self.objects = list.items.into_iter().map(|o| (o.name().to_owned(), Arc::new(o))).collect();
                self.watch = Some(watch);
                continue;
            };
            match unconstrained(watch.next()).now_or_never() {
                None => return Ok(()),
                Some(None) => self.watch = None,
                Some(Some(event)) => self.take(event),
            }
        }
    }

    fn take(&mut self, event: cloudcore::store::WatchEvent<S>) {
        use cloudcore::store::WatchEvent::{Added, Deleted, Modified};
        match event {
            Added(object) | Modified(object) => {
                self.objects.insert(object.name().to_owned(), Arc::new(object));
            }
            Deleted(object) => drop(self.objects.remove(object.name())),
        }
    }
}

impl World {
    /// What can be seen from the outside now.
    ///
    /// # Errors
    /// When the hub's store cannot be read.
    pub async fn observe(&self) -> anyhow::Result<Observation> {
        let hub = self.running_hub();
        // Nobody else holds it across a wait: the world is one task's.
        let mut watched = std::mem::take(&mut *self.watched.lock().unwrap_or_else(PoisonError::into_inner));
        let looked = look(&mut watched, hub.as_ref()).await;
        let runs = hub.is_some();
        let nodes = self.boxes.values().map(|edge| (edge.name.clone(), self.see(edge, &mut watched, runs))).collect();
        let rollouts = watched.rollouts.objects.values().map(see_rollout).collect();
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = watched;
        looked.context("look at the hub's objects")?;
        Ok(Observation { at: self.elapsed(), hub_runs: hub.is_some(), nodes, rollouts })
    }

    /// The hub is another from now on; what was known stays until it is asked.
    pub(super) fn forget_watch(&self) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.nodes.watch = None;
        watched.rollouts.watch = None;
    }

    fn see(&self, edge: &EdgeBox, watched: &mut Watched, hub_runs: bool) -> Seen {
        let node = watched.nodes.objects.get::<str>(edge.name.as_ref());
        let phase = node.map_or(NodePhase::Pending, |node| node.status.phase);
        let apps = see_apps(edge, node, &mut watched.apps);
        let (backlog_records, backlog_bytes) = edge.backlog();
        Seen {
            site: edge.site.clone(),
            agent_runs: edge.agent_runs(),
            powered: edge.is_powered(),
            line_open: self.line_is_open(edge),
            ready: hub_runs.then_some(phase == NodePhase::Ready),
            phase,
            apps,
            backlog_records,
            backlog_bytes,
            connected: edge.is_connected(),
            carrier: if node.is_some_and(over_mqtt) { "mqtt" } else { "udp" },
        }
    }
}

/// Whether a box's link goes through a broker, as the hub has heard.
fn over_mqtt(node: &Arc<Node>) -> bool {
    node.status.carriers.iter().any(|carrier| carrier.in_use && carrier.name == "mqtt")
}

async fn look(watched: &mut Watched, hub: Option<&Hub>) -> anyhow::Result<()> {
    let Some(hub) = hub else { return Ok(()) };
    watched.nodes.look(hub.store()).await?;
    watched.rollouts.look(hub.store()).await
}

/// The apps of a box; those of the last look, if they are made of the same.
fn see_apps(
    edge: &EdgeBox,
    node: Option<&Arc<Object<NodeSpec>>>,
    known: &mut BTreeMap<Name, AppsSeen>,
) -> Arc<BTreeMap<Name, AppSeen>> {
    let moment = edge.driver.moment();
    if let Some(known) = known.get(&edge.name)
        && known.moment == moment
        && known.node.as_ref().map(Arc::as_ptr) == node.map(Arc::as_ptr)
    {
        return Arc::clone(&known.apps);
    }
    let apps = Arc::new(make_apps(edge, node.map(AsRef::as_ref)));
    known.insert(edge.name.clone(), AppsSeen { node: node.cloned(), moment, apps: Arc::clone(&apps) });
    apps
}

fn make_apps(edge: &EdgeBox, node: Option<&Node>) -> BTreeMap<Name, AppSeen> {
    let mut apps = BTreeMap::new();
    for (app, workload) in node.iter().flat_map(|node| &node.status.workloads) {
        let seen = AppSeen {
            ready: workload.running.as_ref().is_some_and(|running| running.ready),
            phase: Some(workload.phase),
            message: workload.message.clone(),
            target: workload.target.as_ref().map(|target| target.version.clone()),
            ..AppSeen::nothing()
        };
        apps.insert(app.clone(), seen);
    }
    for (app, assigned) in node.iter().flat_map(|node| &node.spec.apps) {
        let said = node.and_then(|node| node.status.workloads.get(app));
        let settled = |said: &WorkloadStatus| {
            said.target.as_ref().is_some_and(|target| target.digest == assigned.digest) && said.phase.is_decided()
        };
        apps.entry(app.clone()).or_insert_with(AppSeen::nothing).told = Some(Told {
            rollout: assigned.rollout.clone(),
            version: assigned.version.clone(),
            held: assigned.order.hold,
            settled: said.is_some_and(settled),
        });
    }
    for (app, version) in edge.driver.tried() {
        apps.entry(app).or_insert_with(AppSeen::nothing).tried = Some(version);
    }
    for (app, release, instance) in edge.driver.all_running() {
        let seen = apps.entry(app).or_insert_with(AppSeen::nothing);
        (seen.running, seen.digest, seen.instance) = (Some(release.version), Some(release.digest), Some(instance));
    }
    for (app, uses) in edge.driver.used() {
        apps.entry(app).or_insert_with(AppSeen::nothing).uses = uses;
    }
    for (app, replica, version, instance) in edge.driver.other_replicas() {
        let seen = apps.entry(app).or_insert_with(AppSeen::nothing);
        seen.others.insert(replica, (version, instance));
    }
    if edge.driver.knows_files() {
        see_files(edge, &mut apps);
    }
    apps
}

/// Of a release that is files alone, that is what runs which is in place.
fn see_files(edge: &EdgeBox, apps: &mut BTreeMap<Name, AppSeen>) {
    let folder = Paths::new(&edge.host.disk).apps();
    for (app, seen) in apps {
        let Some(digest) = current::linked(&folder.join(app.as_str())) else { continue };
        let Some(version) = edge.driver.files_alone(digest) else { continue };
        seen.ready = seen.phase == Some(UpdatePhase::Succeeded);
        seen.tried = Some(version.clone());
        (seen.running, seen.digest) = (Some(version), Some(digest));
    }
}

fn see_rollout(rollout: &Arc<Rollout>) -> (String, RolloutSeen) {
    let count = |phases: &[UpdatePhase]| {
        let count = rollout.status.nodes.values().filter(|node| phases.contains(&node.phase)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    };
    let seen = RolloutSeen {
        phase: rollout.status.phase,
        done: count(&[UpdatePhase::Succeeded]),
        failed: count(&[UpdatePhase::Failed, UpdatePhase::RolledBack]),
        total: u32::try_from(rollout.status.nodes.len()).unwrap_or(u32::MAX),
        object: Some(Arc::clone(rollout)),
    };
    let key = match &rollout.spec.undoes {
        Some(undone) => format!("undoing of {undone}"),
        None => rollout.spec.what(),
    };
    (key, seen)
}
