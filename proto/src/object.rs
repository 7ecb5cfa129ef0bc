//! The one object model: typed objects with `metadata`, `spec`, `status` and a resource version.
//!
//! REST, CLI and the embedded store speak it; a Kubernetes store will. `spec` is what somebody wants,
//! `status` is what is. Unknown fields are skipped.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    digest::Digest,
    name::{Name, ObjectName, ReleaseName, Version},
    selector::Selector,
};

#[cfg(feature = "openapi")]
use utoipa::ToSchema;

/// What a kind of object is made of. Implemented by each `spec` type.
pub trait Kind: Clone + fmt::Debug + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Such as `Node`.
    const KIND: &'static str;
    /// Such as `nodes`, as in URLs.
    const PLURAL: &'static str;
    /// What is.
    type Status: Clone + fmt::Debug + Default + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static;
}

/// An object of the hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", bound = "")]
pub struct Object<S: Kind + PartialEq> {
    /// `crossdock.io/v1`.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// Name, labels, versions.
    pub metadata: Metadata,
    /// What somebody wants.
    pub spec: S,
    /// What is; the hub's to write.
    #[serde(default)]
    pub status: S::Status,
}

impl<S: Kind + PartialEq> Object<S> {
    /// A new object, as yet unknown to any store.
    pub fn new(name: impl Into<ObjectName>, spec: S) -> Object<S> {
        Object {
            api_version: crate::API_VERSION.into(),
            kind: S::KIND.into(),
            metadata: Metadata::named(name.into()),
            spec,
            status: S::Status::default(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.metadata.name.as_str()
    }
}

/// What every object has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct Metadata {
    /// Unique among the objects of its kind.
    pub name: ObjectName,
    /// Unique over all time; tells an object from a later one of the same name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Changes with every write. Sent back on update: a stale one is refused (409). Opaque.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Counts changes of `spec`.
    #[serde(default)]
    pub generation: u64,
    /// When the hub first stored it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub creation_timestamp: Option<Timestamp>,
    /// What selectors match.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What tools note down.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Metadata {
    fn named(name: ObjectName) -> Metadata {
        Metadata {
            name,
            uid: String::new(),
            resource_version: String::new(),
            generation: 0,
            creation_timestamp: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }
}

macro_rules! kind {
    ($alias:ident, $spec:ident, $status:ident, $plural:literal) => {
        #[doc = concat!("Object of kind `", stringify!($alias), "`.")]
        pub type $alias = Object<$spec>;
        impl Kind for $spec {
            const KIND: &'static str = stringify!($alias);
            const PLURAL: &'static str = $plural;
            type Status = $status;
        }
    };
}

kind!(Node, NodeSpec, NodeStatus, "nodes");
kind!(Site, SiteSpec, SiteStatus, "sites");
kind!(Release, ReleaseSpec, ReleaseStatus, "releases");
kind!(Rollout, RolloutSpec, RolloutStatus, "rollouts");
kind!(JoinToken, JoinTokenSpec, JoinTokenStatus, "jointokens");
kind!(Event, EventSpec, EventStatus, "events");

/// Declares a plain data type of the object model: camelCase fields, unknown ones skipped.
macro_rules! data {
    ($($(#[$doc:meta])* pub struct $name:ident { $($body:tt)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        #[cfg_attr(feature = "openapi", derive(ToSchema))]
        pub struct $name { $($body)* }
    )*};
}

data! {
    /// A box with an agent, as the hub wants it.
    pub struct NodeSpec {
        /// The transfer center it stands in.
        pub site: Name,
        /// What it should run, by app. `metadata.generation` numbers this.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub apps: BTreeMap<Name, AssignedApp>,
    }

    /// One app of an assignment.
    pub struct AssignedApp {
        /// Version to run.
        pub version: Version,
        /// Digest of that release's manifest.
        pub digest: Digest,
        /// The rollout that asked for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub rollout: Option<String>,
    }

    /// Who a node is, as the hub's own records have it.
    pub struct NodeIdentity {
        /// SHA-256 of the public key (SubjectPublicKeyInfo) that may speak for it.
        pub spki: Digest,
        /// Identity of the hardware, which survives a reinstall.
        pub machine_id: String,
        /// When it joined with this key.
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub joined_at: Timestamp,
        /// When its certificate expires.
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub not_after: Timestamp,
    }

    /// An interface of a node. Never part of its identity.
    pub struct NodeAddress {
        /// Such as `eth0`.
        pub interface: String,
        /// IP address.
        pub address: String,
    }

    /// Facts that stay while a node is up.
    pub struct NodeInfo {
        /// Agent version.
        pub agent_version: String,
        /// Changes with every boot.
        pub boot_id: String,
        /// Such as `x86_64`.
        pub architecture: String,
        /// Such as `Debian GNU/Linux 12`.
        pub os_image: String,
        /// Kernel release.
        pub kernel: String,
        /// Processor cores.
        pub cpus: u32,
        /// Bytes of memory.
        pub memory_bytes: u64,
        /// Host name.
        pub hostname: String,
        /// Every interface that is up, loopback left out.
        #[serde(default)]
        pub addresses: Vec<NodeAddress>,
        /// Hardware classes it can serve, such as `x86_64`.
        #[serde(default)]
        pub hardware: Vec<String>,
    }

    /// Figures that change all the time. Kept in the hub's memory, never written to its store.
    #[derive(Default)]
    pub struct Usage {
        /// Seconds since boot.
        pub uptime_s: u64,
        /// Busy share of all cores since the last report, 0 to 1,000.
        pub cpu_permille: u32,
        /// Memory in use (total less available), bytes.
        pub memory_used_bytes: u64,
        /// Load average over one minute, in hundredths.
        pub load1_centi: u32,
        /// Disks that hold the agent's state.
        #[serde(default)]
        pub disks: Vec<DiskUsage>,
        /// Highest temperature known, in thousandths of a degree Celsius.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub temperature_milli_c: Option<i32>,
    }

    /// A file system.
    pub struct DiskUsage {
        /// Where it is mounted or what it holds.
        pub path: String,
        /// Bytes.
        pub total_bytes: u64,
        /// Bytes that the agent may still use.
        pub free_bytes: u64,
    }

    /// A yes-or-no fact with its reason, as in Kubernetes.
    pub struct Condition {
        /// `Ready`, `DiskPressure`, `MemoryPressure`, `ClockSkew`.
        pub r#type: String,
        /// `True`, `False` or `Unknown`.
        pub status: ConditionStatus,
        /// One word for programs.
        pub reason: String,
        /// A sentence for people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub message: String,
        /// When `status` last changed.
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub last_transition_time: Timestamp,
    }

    /// A release by name and digest.
    #[derive(Eq)]
    pub struct ReleaseRef {
        /// Version.
        pub version: Version,
        /// Digest of the manifest.
        pub digest: Digest,
    }

    /// How the last process of a workload ended.
    pub struct LastExit {
        /// Exit code, when it exited.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub code: Option<i32>,
        /// Signal, when it was killed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub signal: Option<i32>,
        /// When.
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub at: Timestamp,
        /// One sentence for people, such as the last line of its output.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub message: String,
    }

    /// What runs of an app on a node.
    pub struct Running {
        /// Which release.
        pub release: ReleaseRef,
        /// How it is.
        pub state: RunState,
        /// Whether its readiness probe (or, without one, mere running) says yes.
        pub ready: bool,
        /// Restarts since this release was started.
        pub restarts: u32,
        /// When the current process started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub started_at: Option<Timestamp>,
        /// How the last one ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub last_exit: Option<LastExit>,
    }

    /// Bytes done of bytes to do.
    #[derive(Eq, Copy)]
    pub struct Progress {
        /// Done.
        pub done_bytes: u64,
        /// To do in all.
        pub total_bytes: u64,
    }

    /// An app on a node as its agent reports it.
    pub struct WorkloadStatus {
        /// What the assignment wants; absent when the app is being removed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub target: Option<ReleaseRef>,
        /// How far the way to the target is.
        pub phase: UpdatePhase,
        /// Why it stands there: one word for programs. Empty when there is nothing to say.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub reason: String,
        /// The same for people, with what to do.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub message: String,
        /// When `phase` last changed, by the node's clock.
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub since: Timestamp,
        /// Progress of a download.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub progress: Option<Progress>,
        /// What runs now, whatever the target is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub running: Option<Running>,
    }

    /// A node as its agent last reported it, with the hub's own records.
    #[derive(Default)]
    pub struct NodeStatus {
        /// Whether it is heard from.
        pub phase: NodePhase,
        /// When the hub last heard from it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub last_seen: Option<Timestamp>,
        /// Address the agent's datagrams come from: of use to people, of no meaning to the hub.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub remote: Option<String>,
        /// Who it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub identity: Option<NodeIdentity>,
        /// Generation of the assignment that the agent works towards.
        #[serde(default)]
        pub observed_generation: u64,
        /// Facts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub info: Option<NodeInfo>,
        /// Figures.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub usage: Option<Usage>,
        /// Conditions.
        #[serde(default)]
        pub conditions: Vec<Condition>,
        /// Apps.
        #[serde(default)]
        pub workloads: BTreeMap<Name, WorkloadStatus>,
    }

    /// A transfer center.
    #[derive(Default)]
    pub struct SiteSpec {
        /// For people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub description: String,
        /// IANA time zone, such as `Asia/Shanghai`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub time_zone: Option<String>,
        /// Bytes a second for artifacts to the whole site; absent is unlimited.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub bulk_bytes_per_s: Option<u64>,
    }

    /// Nothing yet.
    #[derive(Default)]
    pub struct SiteStatus {}

    /// A signed release that the hub has verified and holds whole. Immutable.
    pub struct ReleaseSpec {
        /// The app.
        pub app: Name,
        /// Its version.
        pub version: Version,
        /// Digest of its manifest: what the signatures stand for.
        pub digest: Digest,
        /// Counts releases of the app; a node refuses a lower one than it trusts.
        pub release_counter: u64,
        /// Hardware classes; empty means any.
        #[serde(default)]
        pub hardware: Vec<String>,
        /// When it was signed, by the signers' clock.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub issued_at: Option<Timestamp>,
        /// Files.
        pub files: u64,
        /// Bytes of all files.
        pub total_bytes: u64,
    }

    /// Nothing yet.
    #[derive(Default)]
    pub struct ReleaseStatus {}

    /// Takes a release to the nodes that a selector names.
    pub struct RolloutSpec {
        /// The app.
        pub app: Name,
        /// The version.
        pub version: Version,
        /// Which nodes.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        pub selector: Selector,
    }

    /// How far a rollout is.
    #[derive(Default)]
    pub struct RolloutStatus {
        /// Where it stands.
        pub phase: RolloutPhase,
        /// Why, for people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub message: String,
        /// Digest it rolls out, fixed when it starts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub digest: Option<Digest>,
        /// Its nodes, each with its one exact state.
        #[serde(default)]
        pub nodes: BTreeMap<Name, RolloutNode>,
        /// When it started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub started_at: Option<Timestamp>,
        /// When it ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub finished_at: Option<Timestamp>,
    }

    /// One node of a rollout.
    pub struct RolloutNode {
        /// Where it stands.
        pub phase: UpdatePhase,
        /// Why it waits or failed.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub reason: String,
        /// The same for people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub message: String,
    }

    /// Admits boxes to the fleet.
    pub struct JoinTokenSpec {
        /// Site that the boxes belong to.
        pub site: Name,
        /// The one node it is for; absent: any free name of the site.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub node: Option<Name>,
        /// How many boxes it admits. One of them that is reinstalled counts once.
        pub uses: u32,
        /// When it ends.
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub expires_at: Timestamp,
        /// SHA-256 of the secret ([`crate::token::Token::secret_hash`]).
        pub secret_hash: Digest,
        /// Labels for the nodes that join with it.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub labels: BTreeMap<String, String>,
    }

    /// Who used a token.
    #[derive(Default)]
    pub struct JoinTokenStatus {
        /// Node names by the SHA-256 of the public keys that joined: a lost answer may be asked for again.
        #[serde(default)]
        pub used_by: BTreeMap<String, Name>,
    }

    /// Something that happened.
    pub struct EventSpec {
        /// Kind of the object it happened to.
        pub involved_kind: String,
        /// Its name.
        pub involved_name: String,
        /// `Normal` or `Warning`.
        pub r#type: EventType,
        /// One word for programs.
        pub reason: String,
        /// A sentence for people.
        pub message: String,
        /// Who did it: a user, `hub`, or a node.
        pub source: String,
        /// First time.
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub first_at: Timestamp,
        /// Last time.
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub last_at: Timestamp,
        /// How often.
        pub count: u32,
    }

    /// Nothing.
    #[derive(Default)]
    pub struct EventStatus {}
}

/// Declares a set of words; one that a newer peer invented reads as `$other`.
macro_rules! words {
    ($($(#[$doc:meta])* pub enum $name:ident { $($(#[$vdoc:meta])* $variant:ident,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(ToSchema))]
        pub enum $name { $($(#[$vdoc])* $variant,)* }
        impl $name {
            /// The word, as written in JSON.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => stringify!($variant),)* }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    )*};
}

words! {
    /// Status of a condition.
    pub enum ConditionStatus {
        /// It holds.
        True,
        /// It does not.
        False,
        /// Nobody knows, or the word is newer than this program.
        #[serde(other)]
        Unknown,
    }

    /// Whether a node is heard from.
    #[derive(Default)]
    pub enum NodePhase {
        /// Created, never heard from.
        #[default]
        Pending,
        /// Heard from, and its condition `Ready` holds.
        Ready,
        /// Heard from, but not ready.
        NotReady,
        /// Silent for longer than the hub's patience.
        #[serde(other)]
        Unknown,
    }

    /// How far a node is on its way to the target release of an app.
    pub enum UpdatePhase {
        /// Nothing done yet.
        Pending,
        /// Waits for the node to return.
        Deferred,
        /// Fetches metadata and artifacts.
        Downloading,
        /// All verified and on disk.
        Staged,
        /// Stops the old one, starts the new one.
        Applying,
        /// The new one is on trial.
        Verifying,
        /// The new one proved healthy.
        Succeeded,
        /// It failed, and there was nothing to go back to.
        Failed,
        /// It failed, and the release before runs again.
        RolledBack,
        /// Something outside must change first (disk, verification, hardware), or the word is newer than this program.
        #[serde(other)]
        Blocked,
    }

    /// How a workload is.
    pub enum RunState {
        /// Started, and its startup probe has not succeeded yet.
        Starting,
        /// Runs.
        Running,
        /// Ended, and waits to be started again.
        BackOff,
        /// Ended, and its restart policy leaves it so.
        Exited,
        /// Stopped on purpose, or the word is newer than this program.
        #[serde(other)]
        Stopped,
    }

    /// Where a rollout stands.
    #[derive(Default)]
    pub enum RolloutPhase {
        /// Not looked at yet.
        #[default]
        Pending,
        /// At work.
        Progressing,
        /// Every node reports the digest healthy.
        Succeeded,
        /// Ended with a failure on some node.
        Failed,
        /// A newer rollout of the app took its nodes.
        Superseded,
        /// Waits for somebody, or the word is newer than this program.
        #[serde(other)]
        Paused,
    }

    /// Weight of an event.
    pub enum EventType {
        /// As it should be.
        Normal,
        /// Somebody may want to look.
        #[serde(other)]
        Warning,
    }
}

impl Object<JoinTokenSpec> {
    /// How often it was used: nodes that it admitted, for a box that is reinstalled is no other box. When
    /// it is for one node, the keys that spoke for it, for each may be another box in the same place.
    #[must_use]
    pub fn used(&self) -> usize {
        let keys = &self.status.used_by;
        if self.spec.node.is_some() { keys.len() } else { keys.values().collect::<BTreeSet<_>>().len() }
    }
}

/// Nodes of a rollout, counted. Those that a newer rollout took are in `taken` and in `all` alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RolloutCounts {
    /// All of them.
    pub all: usize,
    /// A newer rollout took them.
    pub taken: usize,
    /// They proved the release.
    pub healthy: usize,
    /// They did not, or went back.
    pub failed: usize,
    /// They are not heard from.
    pub deferred: usize,
    /// They cannot go on without somebody's help.
    pub blocked: usize,
}

impl RolloutNode {
    /// Reason of a node that a newer rollout took.
    pub const SUPERSEDED: &str = "Superseded";
}

impl RolloutStatus {
    /// Counts its nodes: the one count for verdicts and for people.
    #[must_use]
    pub fn counts(&self) -> RolloutCounts {
        let mut counts = RolloutCounts { all: self.nodes.len(), ..RolloutCounts::default() };
        for node in self.nodes.values() {
            match node.phase {
                _ if node.reason == RolloutNode::SUPERSEDED => counts.taken += 1,
                UpdatePhase::Succeeded => counts.healthy += 1,
                UpdatePhase::Failed | UpdatePhase::RolledBack => counts.failed += 1,
                UpdatePhase::Deferred => counts.deferred += 1,
                UpdatePhase::Blocked => counts.blocked += 1,
                _ => {}
            }
        }
        counts
    }
}

impl RolloutPhase {
    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, RolloutPhase::Succeeded | RolloutPhase::Failed | RolloutPhase::Superseded)
    }
}

impl Object<RolloutSpec> {
    /// The release it rolls out.
    #[must_use]
    pub fn release(&self) -> ReleaseName {
        ReleaseName { app: self.spec.app.clone(), version: self.spec.version.clone() }
    }
}

impl Object<NodeSpec> {
    /// Whether a selector names this node: its labels, and the keys `name` and `site`.
    #[must_use]
    pub fn matches(&self, selector: &Selector) -> bool {
        selector.matches_with(|key| match key {
            "name" => Some(self.name()),
            "site" => Some(self.spec.site.as_str()),
            key => self.metadata.labels.get(key).map(String::as_str),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_newer_versions_are_read() {
        let node: Node = serde_json::from_str(
            r#"{"apiVersion": "crossdock.io/v1", "kind": "Node", "future": 1,
                "metadata": {"name": "n1", "more": true, "labels": {"line": "3"}},
                "spec": {"site": "hz-01", "later": []},
                "status": {"phase": "Hibernating", "workloads": {}}}"#,
        )
        .unwrap();
        assert_eq!(node.status.phase, NodePhase::Unknown);
        assert!(node.matches(&"site=hz-01,name=n1,line=3".parse().unwrap()));
        assert!(!node.matches(&"site=hz-02".parse().unwrap()));
    }
}
