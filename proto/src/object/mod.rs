//! The one object model: typed objects with `metadata`, `spec`, `status` and a resource version.
//!
//! REST, CLI and the embedded store speak it; a Kubernetes store will. `spec` is what somebody wants,
//! `status` is what is. Unknown fields are skipped.
//!
//! What every object has is here: [`Object`], [`Metadata`] and the trait [`Kind`]. The kinds, all of them
//! re-exported:
//!
//! | module | what it holds |
//! |---|---|
//! | `node` | [`Node`]: assignment, identity, facts, figures, conditions |
//! | `gpu` | GPUs of a node: [`GpuInventory`], [`GpuUsage`] |
//! | `workload` | what a node reports of each app: [`WorkloadStatus`] |
//! | [`metrics`] | figures that workloads tell of themselves |
//! | `release` | [`Release`] |
//! | [`rollout`] | [`Rollout`]: waves, gate, budget, windows, and how far it is |
//! | `site` | [`Site`] and [`JoinToken`] |
//! | `event` | [`Event`] |
//! | [`capacity`] | what a box can give, what apps ask of it, and whether it fits |
//! | `macros` | how kinds, data and words are declared |

#[macro_use]
mod macros;

pub mod capacity;
mod event;
mod gpu;
pub mod metrics;
mod node;
mod release;
pub mod rollout;
mod site;
mod workload;

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::name::ObjectName;

pub use self::{
    capacity::{Allocation, Overcommit, Ratio, Resources, Room},
    event::{Event, EventSpec, EventStatus, EventType},
    gpu::{GpuInfo, GpuInventory, GpuProcess, GpuUsage},
    metrics::{MetricSummary, MetricsBefore, MetricsOrder, WorkloadMetrics},
    node::{
        Admission, AppOrder, AssignedApp, Attested, CarrierStatus, Condition, ConditionStatus, DiskUsage,
        NextCertificate, Node, NodeAddress, NodeIdentity, NodeInfo, NodePhase, NodeSpec, NodeStatus, RebootStatus,
        Usage, condition, feature,
    },
    release::{Release, ReleaseSpec, ReleaseStatus},
    rollout::{Rollout, RolloutCounts, RolloutNode, RolloutPhase, RolloutSpec, RolloutStatus},
    site::{JoinToken, JoinTokenSpec, JoinTokenStatus, Site, SiteSpec, SiteStatus},
    workload::{LastExit, Progress, ReleaseRef, ReplicaStatus, RunState, Running, UpdatePhase, WorkloadStatus},
};

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
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
