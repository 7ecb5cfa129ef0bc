//! Kind `Node`: a box with an agent, what it should run, and how its agent last reported it.
//!
//! What it reports of each app is in [`super::workload`].

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{
    Allocation, GpuInventory, GpuUsage, MetricsOrder, Object,
    workload::{UpdatePhase, WorkloadStatus},
};
use crate::{
    digest::Digest,
    name::{MetricName, Name, Version},
    selector::Selector,
};

kind!(Node, NodeSpec, NodeStatus, "nodes");

data! {
    /// A box with an agent, as the hub wants it.
    pub struct NodeSpec {
        /// The transfer center it stands in.
        pub site: Name,
        /// What it should run, by app. `metadata.generation` numbers this.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub apps: BTreeMap<Name, AssignedApp>,
        /// Rollouts begin nothing new on it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub cordoned: bool,
        /// All its workloads are to be stopped, and what is installed stays. Rollouts begin nothing new on it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub drained: bool,
        /// Apps that no rollout takes to another version here.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        pub pinned: BTreeSet<Name>,
        /// It is to restart, once for each new text: the name of the rollout that wants it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub reboot: Option<String>,
        /// How much of it apps may ask for: `overcommit` and `systemReserved`.
        #[serde(flatten)]
        pub allocation: Allocation,
        /// Rollouts begin nothing on it but these apps. Empty: any.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        pub reserved_for: BTreeSet<Name>,
    }

    /// One app of an assignment.
    #[derive(Eq)]
    pub struct AssignedApp {
        /// Version to run.
        pub version: Version,
        /// Digest of that release's manifest.
        pub digest: Digest,
        /// The rollout that asked for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub rollout: Option<String>,
        /// What is asked of the agent besides.
        #[serde(flatten)]
        pub order: AppOrder,
    }

    /// What is asked of an agent about an app, besides its release.
    #[derive(Eq, Default)]
    pub struct AppOrder {
        /// Fetch and verify it, and wait for the word to apply it. What is on trial already goes on.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub hold: bool,
        /// Seconds that the workload may put the update off in all; with 0 the update goes ahead when it says so.
        #[serde(default, skip_serializing_if = "is_zero")]
        pub max_deferral_s: u64,
        /// Start the app again, once for each new text. An update that begins meanwhile counts as that start.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub restart: Option<String>,
        /// Try the release once more although it failed here, once for each new text. A text that is there before
        /// the release failed is used up.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub retry: Option<String>,
        /// Tell what the workload of this release tells of itself, for a gate. Agents without [`feature::METRICS`] skip
        /// it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub metrics: Option<MetricsOrder>,
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
        /// How each carrier of its link stands, where it has several.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub carriers: Vec<CarrierStatus>,
        /// What it last signed of what it runs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub attested: Option<Attested>,
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
        /// How far the restart is that it was told last.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub reboot: Option<RebootStatus>,
    }

    /// How far the restart of a node is.
    #[derive(Eq)]
    pub struct RebootStatus {
        /// What it was told: [`NodeSpec::reboot`].
        pub order: String,
        /// `Pending` before it begins, `Applying` while it goes down, `Verifying` until what ran before is ready again,
        /// then `Succeeded` or `Failed`.
        pub phase: UpdatePhase,
        /// Why it stands there, for people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub message: String,
    }

    /// One of the carriers of a node's link, as its agent sees it.
    #[derive(Eq)]
    pub struct CarrierStatus {
        /// `udp` or `mqtt`.
        pub name: String,
        /// Whether the link goes over it.
        #[serde(default)]
        pub in_use: bool,
        /// Whether the hub was reached over it when it was tried last.
        #[serde(default)]
        pub reachable: bool,
        /// Address of the hub, or the broker.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub at: String,
        /// What last went wrong with it, with the mend.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub last_error: Option<String>,
        /// What works and should not, such as a broker that lets one node read what is another's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub warning: Option<String>,
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
        /// Whether that key is let in.
        #[serde(default, skip_serializing_if = "Admission::is_admitted")]
        pub admission: Admission,
        /// When `admission` last changed by hand.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub admission_since: Option<Timestamp>,
        /// A renewed certificate that was not shown yet: its key speaks for the node, too.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub next: Option<NextCertificate>,
    }

    /// A certificate that takes the place of another when it is first shown.
    pub struct NextCertificate {
        /// SHA-256 of its public key (SubjectPublicKeyInfo).
        pub spki: Digest,
        /// When it expires.
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub not_after: Timestamp,
    }

    /// What a node signed of what it runs: see [`crate::attestation`].
    pub struct Attested {
        /// By the hub's clock.
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub at: Timestamp,
        /// SHA-256 of the public key that signed (SubjectPublicKeyInfo).
        pub spki: Digest,
        /// The session's nonce.
        pub nonce: String,
        /// Report of that session.
        pub counter: u64,
        /// Generation of the assignment that it works towards.
        pub observed_generation: u64,
        /// Digests of the manifests of what runs, by app.
        #[serde(default)]
        pub running: BTreeMap<Name, Digest>,
        /// Signature over the canonical form of the above, in hex.
        pub signature: String,
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
        /// Its NVIDIA GPUs; absent where there is no driver for them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub nvidia: Option<GpuInventory>,
        /// What its agent can do that agents before it could not, of [`feature`].
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        pub features: BTreeSet<String>,
        /// Public key that secrets for it are sealed to, `age1...`: see [`crate::secret`]. Nobody vouches for it but
        /// the node, at its technician's ear.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub sealing_key: Option<String>,
    }

    /// An interface of a node. Never part of its identity.
    pub struct NodeAddress {
        /// Such as `eth0`.
        pub interface: String,
        /// IP address.
        pub address: String,
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
        /// Its NVIDIA GPUs that answer.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub gpus: Vec<GpuUsage>,
        /// What workloads told of themselves last, by app; what is older than a minute is left out.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub metrics: BTreeMap<Name, BTreeMap<MetricName, f64>>,
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
        /// `Ready`, `DiskPressure`, `MemoryPressure`, `ClockSkew`, `StreamPressure`, `AssignmentPressure`,
        /// `GpuUnhealthy`, `CamerasLost`.
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
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Types of conditions that both sides know.
pub mod condition {
    /// The agent does not take what the hub wants of it: it cannot keep it, or signatures say otherwise.
    pub const ASSIGNMENT_PRESSURE: &str = "AssignmentPressure";
    /// A GPU of the node, or the driver of all of them, does not do its work.
    pub const GPU_UNHEALTHY: &str = "GpuUnhealthy";
    /// A workload says that cameras are lost which it should see.
    pub const CAMERAS_LOST: &str = "CamerasLost";
    /// Metadata of a repository is past its time, and newer one does not arrive.
    pub const METADATA_STALE: &str = "MetadataStale";
}

/// What agents can do ([`NodeInfo::features`]): the hub asks nothing of an agent that does not know it.
pub mod feature {
    /// [`AppOrder`](super::AppOrder): hold, deferral, restart, retry; and drain.
    pub const ORDERS: &str = "orders";
    /// [`NodeSpec::reboot`](super::NodeSpec::reboot).
    pub const REBOOT: &str = "reboot";
    /// [`CloseCode::Renew`](crate::link::CloseCode::Renew).
    pub const RENEW: &str = "renew";
    /// [`Attestation`](crate::attestation::Attestation) on every report after the first of a session.
    pub const ATTEST: &str = "attest";
    /// [`MetricsOrder`](super::MetricsOrder): it tells what workloads tell of themselves.
    pub const METRICS: &str = "metrics";
    /// [`Assignment::allocation`](crate::link::message::Assignment::allocation).
    pub const REQUESTS: &str = "requests";
    /// All that this version knows.
    pub const ALL: [&str; 6] = [ORDERS, REBOOT, RENEW, ATTEST, METRICS, REQUESTS];
}

impl NodeSpec {
    /// A node of a site that runs nothing yet.
    #[must_use]
    pub fn new(site: Name) -> NodeSpec {
        NodeSpec {
            site,
            apps: BTreeMap::new(),
            cordoned: false,
            drained: false,
            pinned: BTreeSet::new(),
            reboot: None,
            allocation: Allocation::default(),
            reserved_for: BTreeSet::new(),
        }
    }
}

impl AssignedApp {
    /// A release, to be applied at once.
    #[must_use]
    pub fn new(version: Version, digest: Digest, rollout: Option<String>) -> AssignedApp {
        AssignedApp { version, digest, rollout, order: AppOrder::default() }
    }
}

impl Admission {
    /// Whether the key is let in.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        *self == Admission::Admitted
    }
}

impl NodeIdentity {
    /// Whether a key speaks for the node, and is let in.
    #[must_use]
    pub fn admits(&self, spki: Digest) -> bool {
        self.admission.is_admitted() && self.is_of(spki)
    }

    /// Whether a key is the node's, or is about to be.
    #[must_use]
    pub fn is_of(&self, spki: Digest) -> bool {
        self.spki == spki || self.next.as_ref().is_some_and(|next| next.spki == spki)
    }
}

words! {
    /// Whether a node's key is let in.
    #[derive(Default)]
    pub enum Admission {
        /// It is.
        #[default]
        Admitted,
        /// It joined, and somebody has to approve it first.
        Pending,
        /// It was, and is not any more.
        #[serde(other)]
        Revoked,
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
