//! The messages of the link. Golden files under `proto/tests/golden/` pin their form.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    attestation::Attestation,
    digest::Digest,
    name::Name,
    object::{
        Allocation, AppOrder, CarrierStatus, Condition, NodeInfo, RebootStatus, ReleaseRef, Usage, WorkloadStatus,
    },
    stream::message::RecordsRequest,
};

/// From agent to hub on the control stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum AgentMessage {
    /// First message of a session.
    Hello(Box<Hello>),
    /// All that is, whenever it changed.
    Report(Box<Report>),
    /// Facts changed since the Hello, such as those of GPUs. Hubs of before it skip it.
    Info(Box<NodeInfo>),
    /// Still here; figures that change all the time.
    Heartbeat(Box<Heartbeat>),
    /// Of a newer version: skipped.
    #[serde(other)]
    Unknown,
}

/// Who is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// Facts that stay while the node is up.
    pub info: NodeInfo,
    /// The whole state, as in every report.
    pub report: Report,
    /// What changes all the time.
    pub usage: Usage,
    /// Time of day at the node: the hub tells a wrong clock by it.
    pub clock: Timestamp,
    /// Whether events come as records of stream [`crate::stream::event::STREAM`]. Otherwise, and with agents
    /// of before it, the hub makes them of what the reports say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tells_events: bool,
    /// What it needs to believe an assignment. Agents of before it take unsigned ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub director: Option<DirectorRequest>,
}

/// What a directive of the session must fit, see [`crate::director`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectorRequest {
    /// Comes back in every directive of the session.
    pub nonce: String,
    /// Versions of the director's metadata that the agent holds.
    pub have: MetadataRequest,
}

/// All that a node is, as its agent sees it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Generation of the assignment that the agent works towards; 0 when it never saw one.
    pub observed_generation: u64,
    /// Conditions.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Every app that is assigned, runs, or is being removed.
    #[serde(default)]
    pub workloads: BTreeMap<Name, WorkloadStatus>,
    /// How each carrier of the link stands, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carriers: Vec<CarrierStatus>,
    /// The node's signature. Absent in the first report of a session, which comes before the nonce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<Attestation>,
    /// How far the restart of the node is that it was told last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reboot: Option<RebootStatus>,
}

/// Still here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// What changes all the time.
    pub usage: Usage,
    /// Time of day at the node.
    pub clock: Timestamp,
}

/// From hub to agent on the control stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum HubMessage {
    /// First message of a session.
    Welcome(Welcome),
    /// All that the node should run, for agents that know no director.
    Assignment(Assignment),
    /// The same, signed for this node and session: metadata of [`crate::director`].
    Directive(Box<MetadataReply>),
    /// Of a newer version: skipped.
    #[serde(other)]
    Unknown,
}

/// The hub introduces itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Welcome {
    /// Version of the hub.
    pub hub_version: String,
    /// The fleet.
    pub fleet: Name,
    /// Time of day at the hub.
    pub clock: Timestamp,
    /// Milliseconds between heartbeats that the hub asks for.
    pub heartbeat_ms: u64,
    /// What signed reports of the session must have. Hubs of before them ask for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
}

/// All that a node should run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// Rises with every change. An agent ignores one lower than it has seen.
    pub generation: u64,
    /// The release of each app. An app that is absent is to be stopped and removed.
    pub apps: BTreeMap<Name, OrderedApp>,
    /// All workloads are to be stopped; what is installed stays.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
    /// The node is to restart, once for each new text; see [`feature::REBOOT`](crate::object::feature::REBOOT).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reboot: Option<String>,
    /// How much of the box apps may ask for; without it nobody is refused for that. See
    /// [`feature::REQUESTS`](crate::object::feature::REQUESTS).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocation: Option<Allocation>,
}

/// An app that a node should run. Agents without [`feature::ORDERS`](crate::object::feature::ORDERS) see the release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderedApp {
    /// Which release.
    #[serde(flatten)]
    pub release: ReleaseRef,
    /// What else is asked.
    #[serde(flatten)]
    pub order: AppOrder,
}

impl From<ReleaseRef> for OrderedApp {
    /// To be applied at once.
    fn from(release: ReleaseRef) -> OrderedApp {
        OrderedApp { release, order: AppOrder::default() }
    }
}

/// First frame of a stream that the agent opens (after the control stream, which is the first stream).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum AgentRequest {
    /// Trust metadata newer than what the agent has; answered by one [`MetadataReply`] frame.
    Metadata(MetadataRequest),
    /// An artifact or a manifest; answered by [`BlobHeader`] and chunks.
    Blob(BlobRequest),
    /// A lane for stream records, see [`crate::stream::message`].
    Records(RecordsRequest),
    /// Of a newer version: the stream is refused.
    #[serde(other)]
    Unknown,
}

/// Versions of the trust metadata that the agent holds; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetadataRequest {
    /// Of its `root.json`.
    pub root: u64,
    /// Of its `timestamp.json`.
    pub timestamp: u64,
    /// Of its `snapshot.json`.
    pub snapshot: u64,
    /// Of its `targets.json`.
    pub targets: u64,
}

/// What the agent lacks, each document to the byte. Nothing here is believed without its signatures.
///
/// One that is further behind than [`crate::tuf::MAX_ROOTS`] gets roots alone, see [`MetadataReply::is_part`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetadataReply {
    /// Every root after the agent's, in order.
    #[serde(default)]
    pub roots: Vec<String>,
    /// Newest `timestamp.json`, when newer.
    #[serde(default)]
    pub timestamp: Option<String>,
    /// Newest `snapshot.json`, when newer.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// Newest `targets.json`, when newer.
    #[serde(default)]
    pub targets: Option<String>,
}

impl MetadataReply {
    /// Whether there are roots and nothing that they vouch for: more roots follow, for who asks from where these lead.
    #[must_use]
    pub fn is_part(&self) -> bool {
        !self.roots.is_empty() && self.timestamp.is_none() && self.snapshot.is_none() && self.targets.is_none()
    }
}

/// Asks for content by digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlobRequest {
    /// Which.
    pub digest: Digest,
    /// First byte wanted, a multiple of [`super::CHUNK_BYTES`].
    pub offset: u64,
}

/// Answer to [`BlobRequest`]. After [`BlobHeader::Found`] follow chunks until the blob ends.
///
/// A chunk is four bytes, big endian, then content: the upper bit says that the content is zstd (RFC
/// 8878), the others its length on the wire. Each chunk but the last stands for exactly
/// [`super::CHUNK_BYTES`] bytes and decompresses alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "camelCase")]
pub enum BlobHeader {
    /// It follows.
    Found {
        /// Bytes of the whole blob, uncompressed.
        size: u64,
    },
    /// The hub does not have it, or the offset lies outside.
    NotFound {
        /// For people.
        message: String,
    },
}

/// Upper bit of a chunk's length: the content is compressed.
pub const CHUNK_ZSTD: u32 = 1 << 31;

/// First frame of a stream that the hub opens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum HubRequest {
    /// Output of a workload; answered by [`LogsHeader`] and bytes until the stream ends.
    Logs(LogsRequest),
    /// Somebody wants to run a command in a workload; answered by [`ExecHeader`], and then it is their stream, see
    /// [`crate::exec`].
    Exec(ExecRequest),
    /// Of a newer version: the stream is refused.
    #[serde(other)]
    Unknown,
}

/// Asks for output of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogsRequest {
    /// The app.
    pub app: Name,
    /// Lines from the end; absent means all that is kept.
    #[serde(default)]
    pub tail: Option<u32>,
    /// Whether to go on with new lines.
    #[serde(default)]
    pub follow: bool,
}

/// Answer to [`LogsRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "camelCase")]
pub enum LogsHeader {
    /// Lines follow.
    Found,
    /// There is no such app on the node.
    NotFound {
        /// For people.
        message: String,
    },
}

/// Asks to run a command in a workload. Which, the hub does not learn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecRequest {
    /// The app.
    pub app: Name,
}

/// Answer to [`ExecRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "camelCase")]
pub enum ExecHeader {
    /// TLS with the person follows.
    Ready,
    /// Nobody may run a command in it, or it does not run.
    Refused {
        /// For people, with what to do.
        message: String,
    },
}

/// A node asks for a new certificate, on a connection that shows the one of before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RenewRequest {
    /// PKCS#10 request (RFC 2986), DER in base64: proves the new key; all else in it is ignored.
    pub csr: String,
}

/// Answer to [`RenewRequest`]. Who is not admitted is closed instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "camelCase")]
pub enum RenewReply {
    /// The new key is admitted, beside the old one until it is used.
    Renewed {
        /// The new certificate and the CA's, PEM.
        certificates: String,
    },
    /// It is not.
    Refused {
        /// For people, with what to do.
        message: String,
    },
}

/// A box asks to be admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinRequest {
    /// Name of the token.
    pub token_id: String,
    /// Its secret.
    pub secret: String,
    /// PKCS#10 request (RFC 2986), DER in base64: proves the key; all else in it is ignored.
    pub csr: String,
    /// Name that the box would like, its host name by default. A token bound to a node overrides it.
    pub name: String,
    /// Identity of the hardware, which survives a reinstall.
    pub machine_id: String,
    /// Agent version.
    pub agent_version: String,
}

/// Answer to [`JoinRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "camelCase")]
pub enum JoinReply {
    /// The box is a node now.
    #[serde(rename_all = "camelCase")]
    Accepted {
        /// Its name.
        node: Name,
        /// Its site.
        site: Name,
        /// The fleet.
        fleet: Name,
        /// Its certificate and the CA's, PEM.
        certificates: String,
        /// The first trust root of the release repository, to the byte; its digest is in the token.
        root: String,
        /// The director's first root, to the byte. Hubs of before it have none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        director_root: Option<String>,
        /// Addresses of the hub, `host:port`, besides the one that was used.
        hubs: Vec<String>,
    },
    /// It is not.
    #[serde(rename_all = "camelCase")]
    Refused {
        /// `TokenUnknown`, `TokenExpired`, `TokenUsedUp`, `TokenForOtherNode`, `NameTaken`, `BadRequest`.
        code: String,
        /// For people, with what to do.
        message: String,
    },
}
