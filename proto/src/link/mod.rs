//! The protocol between agent and hub: QUIC streams under mutual TLS 1.3.
//!
//! ```text
//! agent                                                     hub
//!   | -- connection, ALPN "crossdock/1", both certificates --> |   newest session of a node wins
//!   | == control stream (bidirectional, the agent opens it) == |   priority CONTROL
//!   |    Hello --------------------------------------------->  |
//!   |    <-------------------------------- Welcome, Assignment |   again whenever the spec changes
//!   |    Report (all that is, when it changed), Heartbeat -->  |
//!   | == one stream a request (the agent opens it) =========== |
//!   |    AgentRequest::Metadata ---> MetadataReply             |   priority CONTROL
//!   |    AgentRequest::Blob -------> BlobHeader, chunks        |   priority ARTIFACTS
//!   |    AgentRequest::Records ----> Marks, Acks (a lane)      |   priority SCANS or LOGS
//!   | == one stream a request (the hub opens it) ============= |
//!   |    LogsHeader, bytes <------------- HubRequest::Logs     |   priority LOGS
//! ```
//!
//! Joining is a connection of its own with ALPN "crossdock-join/1" and no client certificate: the one
//! thing that a stranger may ask for. `JoinRequest` ---> `JoinReply`. Renewing a certificate is one, too, with ALPN
//! "crossdock-renew/1" and the certificate of before, which may have expired: `RenewRequest` ---> `RenewReply`.
//!
//! State is levelled: an `Assignment` is the whole of what a node should run, a `Report` the whole of
//! what is. Losing any number of them costs nothing but time.
//!
//! Versions: the ALPN names carry the major version, and a hub may offer several. Within one, fields
//! and messages are added and unknown ones skipped.

pub mod frame;
pub mod message;

/// ALPN of the link, newest first.
pub const ALPN: &[&[u8]] = &[b"crossdock/1"];
/// ALPN of joining.
pub const ALPN_JOIN: &[u8] = b"crossdock-join/1";

/// ALPN of renewing a node's certificate.
pub const ALPN_RENEW: &[u8] = b"crossdock-renew/1";

/// UDP port of the hub unless configured otherwise.
pub const DEFAULT_PORT: u16 = 7443;

/// Priorities of quinn streams: higher goes first.
pub mod priority {
    /// Assignments, reports, heartbeats, metadata.
    pub const CONTROL: i32 = 40;
    /// Scan records.
    pub const SCANS: i32 = 30;
    /// Events and metrics.
    pub const EVENTS: i32 = 20;
    /// Logs.
    pub const LOGS: i32 = 10;
    /// Artifacts.
    pub const ARTIFACTS: i32 = 0;
}

/// Bytes of artifact in one chunk on the wire, uncompressed. A range starts at a multiple of it.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Why a connection was closed on purpose: QUIC application error codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseCode {
    /// Done, come again whenever.
    Done = 0,
    /// A newer session of the same node took its place.
    Replaced = 1,
    /// The node's key is not (or no longer) on the hub's list.
    NotAdmitted = 2,
    /// The peer broke the protocol.
    ProtocolError = 3,
    /// The hub is shutting down; reconnect to another or in a while.
    GoingAway = 4,
    /// The peer was too slow or asked for too much.
    Overload = 5,
    /// The node's certificate is to be renewed first, see [`ALPN_RENEW`].
    Renew = 6,
}

impl CloseCode {
    /// As quinn wants it.
    #[must_use]
    pub fn code(self) -> quinn::VarInt {
        quinn::VarInt::from_u32(self as u32)
    }

    /// Reads a code off a closed connection.
    #[must_use]
    pub fn of(error: &quinn::ConnectionError) -> Option<CloseCode> {
        let quinn::ConnectionError::ApplicationClosed(close) = error else { return None };
        let all = [
            CloseCode::Done,
            CloseCode::Replaced,
            CloseCode::NotAdmitted,
            CloseCode::ProtocolError,
            CloseCode::GoingAway,
            CloseCode::Overload,
            CloseCode::Renew,
        ];
        all.into_iter().find(|c| c.code() == close.error_code)
    }
}
