//! How far a rollout is: its waves with their evidence, and each of its nodes.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::{
    digest::Digest,
    name::Name,
    object::{AssignedApp, workload::UpdatePhase},
};

data! {
    /// How far a rollout is.
    #[derive(Default)]
    pub struct RolloutStatus {
        /// Where it stands.
        pub phase: RolloutPhase,
        /// One word for programs, when there is more to say than the phase does.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub reason: String,
        /// Why, for people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub message: String,
        /// Digest it rolls out, fixed when it starts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub digest: Option<Digest>,
        /// Its waves, in order.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub waves: Vec<WaveStatus>,
        /// Its nodes, each with its one exact state.
        #[serde(default)]
        pub nodes: BTreeMap<Name, RolloutNode>,
        /// With a [`placement`](super::RolloutSpec::placement), how the nodes of each site were chosen.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub placement: BTreeMap<Name, SitePlacement>,
        /// [`super::Control::resumed`] that was answered last.
        #[serde(default, skip_serializing_if = "super::is_zero")]
        pub resumed: u32,
        /// [`super::Control::retries`] that was answered last.
        #[serde(default, skip_serializing_if = "super::is_zero")]
        pub retries: u32,
        /// When it started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub started_at: Option<Timestamp>,
        /// When it ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub finished_at: Option<Timestamp>,
    }

    /// How the nodes of a site were chosen that get an app.
    #[derive(Eq, Default)]
    pub struct SitePlacement {
        /// What it lacks, for people; empty when as many nodes as should have it.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub message: String,
        /// Of each selected node, why it was chosen or was not, when that was asked last.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub nodes: BTreeMap<Name, String>,
        /// Nodes that it was taken from, and that have not said yet that they took note.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub leaving: BTreeMap<Name, Leaving>,
    }

    /// An app was taken from a node.
    #[derive(Eq)]
    pub struct Leaving {
        /// Generation of the node's assignment that still had it: the node took note when it observed a later one.
        pub generation: u64,
        /// The node's uid: a later one of the same name never had it. Empty when a hub before this field wrote it.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub uid: String,
    }

    /// A wave and its evidence.
    #[derive(Default)]
    pub struct WaveStatus {
        /// Its name.
        pub name: String,
        /// Where it stands.
        pub phase: WavePhase,
        /// Its gate's arithmetic, for people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub message: String,
        /// When it began: from then on its nodes are fixed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub started_at: Option<Timestamp>,
        /// Since when it says what it says: it soaks, or is inconclusive, from then on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub since: Option<Timestamp>,
        /// Failed nodes that it had when somebody resumed the rollout: they no longer count.
        #[serde(default, skip_serializing_if = "super::is_zero")]
        pub forgiven: u32,
        /// When it passed or failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub finished_at: Option<Timestamp>,
    }

    /// One node of a rollout.
    pub struct RolloutNode {
        /// Where it stands.
        pub phase: UpdatePhase,
        /// Why it waits or failed: one of [`reason`], or the agent's own word.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub reason: String,
        /// The same for people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub message: String,
        /// Its wave, from 0; absent as long as that wave has not begun.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub wave: Option<u32>,
        /// When `phase` or `reason` last changed, by the hub's clock.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub since: Option<Timestamp>,
        /// Since when it may apply: it counts as unavailable until it is done.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub released_at: Option<Timestamp>,
        /// It was told of the release: whether it began is for it to say.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub told: bool,
        /// What it had of the app before it was told: where an abort leaves it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub before: Option<AssignedApp>,
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
        /// Every node that is heard from reports the digest healthy, or as many as the gates ask for. Nodes that
        /// come back later, or join, still get the release.
        Succeeded,
        /// Ended with more failures than its gate allows.
        Failed,
        /// Another rollout takes the nodes it touched back.
        RollingBack,
        /// The nodes it touched were taken back.
        RolledBack,
        /// Somebody ended it.
        Aborted,
        /// A newer rollout of the app took its nodes.
        Superseded,
        /// Waits for somebody, or the word is newer than this program.
        #[serde(other)]
        Paused,
    }

    /// Where a wave stands.
    #[derive(Default)]
    pub enum WavePhase {
        /// Waits for the waves before it.
        #[default]
        Pending,
        /// Waits for somebody's approval.
        AwaitingApproval,
        /// Its nodes are at work.
        Progressing,
        /// Its nodes had their turn; it must stay healthy for a while.
        Soaking,
        /// It proved the release.
        Passed,
        /// It has more failures than the gate allows.
        Failed,
        /// Nobody is left at work, and there is too little evidence; or the word is newer than this program.
        #[serde(other)]
        Inconclusive,
    }
}

/// Reasons why a node of a rollout waits ([`RolloutNode::reason`]). The agent says others, such as `DiskFull`.
pub mod reason {
    /// A newer rollout took it.
    pub const SUPERSEDED: &str = "Superseded";
    /// Its wave has not begun.
    pub const WAVE: &str = "Wave";
    /// Its wave needs somebody's approval.
    pub const APPROVAL: &str = "Approval";
    /// The rollout is paused.
    pub const PAUSED: &str = "Paused";
    /// The rollout was aborted before it had its turn.
    pub const ABORTED: &str = "Aborted";
    /// The rollout ended before it had its turn.
    pub const ENDED: &str = "Ended";
    /// Its turn comes within the jitter.
    pub const JITTER: &str = "Jitter";
    /// Outside the window for downloads.
    pub const DOWNLOAD_WINDOW: &str = "DownloadWindow";
    /// Outside the window for applying.
    pub const APPLY_WINDOW: &str = "ApplyWindow";
    /// Too many nodes are unavailable.
    pub const BUDGET: &str = "Budget";
    /// Nothing is to be begun on it.
    pub const CORDONED: &str = "Cordoned";
    /// It stays with a version.
    pub const PINNED: &str = "Pinned";
    /// Not heard from.
    pub const OFFLINE: &str = "Offline";
    /// Never heard from.
    pub const NEVER_CONNECTED: &str = "NeverConnected";
    /// It proved the release and is not healthy any more, within the soak time.
    pub const DEGRADED: &str = "Degraded";
    /// What its workload tells of itself breaks a rule of the gate; or, of one that succeeded, is too little yet.
    pub const METRICS: &str = "Metrics";
    /// It went down to restart, and does not come back.
    pub const NOT_BACK: &str = "NotBack";
    /// Its box is kept for other apps.
    pub const RESERVED: &str = "Reserved";
    /// Its agent knows no orders of that kind.
    pub const TOO_OLD: &str = "AgentTooOld";
    /// There is nothing of the app to start again.
    pub const NOT_RUNNING: &str = "NotRunning";
}

impl RolloutPhase {
    /// Whether nothing more will happen that anybody should wait for.
    #[must_use]
    pub fn is_final(self) -> bool {
        use RolloutPhase::{Aborted, Failed, RolledBack, Succeeded, Superseded};
        matches!(self, Succeeded | Failed | RolledBack | Aborted | Superseded)
    }
}

impl RolloutNode {
    /// A node that nothing was done about yet.
    #[must_use]
    pub fn waiting(phase: UpdatePhase, reason: &str, message: impl Into<String>) -> RolloutNode {
        RolloutNode {
            phase,
            reason: reason.into(),
            message: message.into(),
            wave: None,
            since: None,
            released_at: None,
            told: false,
            before: None,
        }
    }

    /// Whether it is decided: it proved the release, or failed.
    #[must_use]
    pub fn is_decided(&self) -> bool {
        self.phase.is_decided()
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
    /// They are not heard from, or nothing may be begun on them.
    pub deferred: usize,
    /// They cannot go on without somebody's help.
    pub blocked: usize,
    /// They are healthy, and what their workload told of itself is too little for the gate.
    pub unproven: usize,
}

/// Nodes of one wave.
pub type WaveCounts = RolloutCounts;

impl RolloutCounts {
    /// Counts one more.
    pub fn add(&mut self, node: &RolloutNode) {
        self.all += 1;
        match node.phase {
            _ if node.reason == reason::SUPERSEDED => self.taken += 1,
            UpdatePhase::Succeeded if node.reason == reason::METRICS => self.unproven += 1,
            UpdatePhase::Succeeded => self.healthy += 1,
            UpdatePhase::Failed | UpdatePhase::RolledBack => self.failed += 1,
            UpdatePhase::Deferred => self.deferred += 1,
            UpdatePhase::Blocked => self.blocked += 1,
            _ => {}
        }
    }

    /// Those that neither were decided nor are left out.
    #[must_use]
    pub fn at_work(&self) -> usize {
        self.all - self.taken - self.healthy - self.failed - self.deferred - self.blocked - self.unproven
    }
}

impl RolloutStatus {
    /// Counts its nodes: the one count for verdicts and for people.
    #[must_use]
    pub fn counts(&self) -> RolloutCounts {
        let mut counts = RolloutCounts::default();
        self.nodes.values().for_each(|node| counts.add(node));
        counts
    }

    /// Counts the nodes of a wave.
    #[must_use]
    pub fn wave_counts(&self, wave: u32) -> WaveCounts {
        let mut counts = WaveCounts::default();
        self.nodes.values().filter(|node| node.wave == Some(wave)).for_each(|node| counts.add(node));
        counts
    }
}
