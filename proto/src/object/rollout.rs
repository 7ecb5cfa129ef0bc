//! Kinds `Release` and `Rollout`: what can be rolled out, and how far each node is that it goes to.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Object, workload::UpdatePhase};
use crate::{
    digest::Digest,
    name::{Name, ReleaseName, Version},
    selector::Selector,
};

kind!(Release, ReleaseSpec, ReleaseStatus, "releases");
kind!(Rollout, RolloutSpec, RolloutStatus, "rollouts");

data! {
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
}

words! {
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
}

impl Object<RolloutSpec> {
    /// The release it rolls out.
    #[must_use]
    pub fn release(&self) -> ReleaseName {
        ReleaseName { app: self.spec.app.clone(), version: self.spec.version.clone() }
    }
}

impl RolloutPhase {
    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, RolloutPhase::Succeeded | RolloutPhase::Failed | RolloutPhase::Superseded)
    }
}

impl RolloutNode {
    /// Reason of a node that a newer rollout took.
    pub const SUPERSEDED: &str = "Superseded";
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
