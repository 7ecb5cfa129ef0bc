//! What can be seen of a world from the outside, at one moment.

use std::{collections::BTreeMap, time::Duration};

use proto::{
    digest::Digest,
    name::{Name, Version},
    object::{NodePhase, RolloutPhase, UpdatePhase},
};

/// What can be seen now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// Time since the run began.
    pub at: Duration,
    /// Whether the hub's process runs.
    pub hub_runs: bool,
    /// Every box.
    pub nodes: BTreeMap<Name, Seen>,
    /// Every rollout that the hub has, by `app@version`. Empty while it is down.
    pub rollouts: BTreeMap<String, RolloutSeen>,
}

/// A box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its site.
    pub site: Name,
    /// Whether its agent's process runs.
    pub agent_runs: bool,
    /// Whether it is on.
    pub powered: bool,
    /// Whether anything passes its line both ways.
    pub line_open: bool,
    /// Whether the hub says that it is ready; absent while the hub is down.
    pub ready: Option<bool>,
    /// What the hub says of it; the last known while the hub is down.
    pub phase: NodePhase,
    /// Its apps.
    pub apps: BTreeMap<Name, AppSeen>,
    /// Records in its outbox; the last known while its agent is down.
    pub backlog_records: u64,
    /// Bytes of its outbox; the last known while its agent is down.
    pub backlog_bytes: u64,
    /// Whether its agent has a session with the hub.
    pub connected: bool,
    /// How its datagrams travel.
    pub carrier: &'static str,
}

/// An app of a box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppSeen {
    /// What the driver really runs.
    pub running: Option<Version>,
    /// Digest of the release of that.
    pub digest: Option<Digest>,
    /// Whether the hub was told that it is ready.
    pub ready: bool,
    /// How far its update is, as the hub was told.
    pub phase: Option<UpdatePhase>,
    /// What it is to run, as the hub was told.
    pub target: Option<Version>,
}

/// A rollout, as the hub has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutSeen {
    /// Where it stands.
    pub phase: RolloutPhase,
    /// Nodes that proved its release healthy.
    pub done: u32,
    /// Nodes on which it failed.
    pub failed: u32,
    /// All its nodes.
    pub total: u32,
}
