//! What the hub and the agents of Crossdock agree on.
//!
//! Nothing here performs network or disk I/O on its own account, but for [`durable`], the one place
//! that knows how a file is replaced so that a power cut leaves the old or the new one, and
//! [`carrier::client`], the connection with a broker that both ends have.
//!
//! | module | what it holds |
//! |---|---|
//! | [`attestation`] | what a node says it runs, under its own key |
//! | [`broker`], [`carrier`] | how an MQTT broker is reached, and QUIC through one |
//! | [`env`] | the doors to the outside that the simulator turns: clock, randomness, blocking work, network |
//! | [`name`], [`digest`], [`units`], [`selector`] | small values that cannot be wrong once they exist |
//! | [`object`] | `Node`, `Site`, `Release`, `Rollout`, `JoinToken`, `Event`: the one object model |
//! | [`release`] | what a release contains: files, command, probes, limits |
//! | [`secret`] | secrets sealed to the nodes that need them, without I/O |
//! | [`tuf`] | The Update Framework's metadata and its verification, without I/O |
//! | [`director`] | what one node should run, signed for it alone, without I/O |
//! | [`link`] | the protocol between agent and hub: frames, messages, limits, priorities |
//! | [`shallow`] | a congestion window that keeps a line's queue short |
//! | [`exec`] | commands that people run in workloads, past a hub that need not be trusted |
//! | [`stream`] | records that are counted: their form, their delivery, without I/O |
//! | [`identity`] | who is at the other end of a TLS connection |
//! | [`token`] | the join token that a technician pastes |
//! | [`watch`] | a value that many wait on, who wake in one order always |
//! | [`durable`] | replacing a file so that a crash at any moment leaves a whole one |

#![forbid(unsafe_code)]

pub mod attestation;
pub mod backoff;
pub mod broker;
pub mod carrier;
pub mod digest;
pub mod director;
pub mod durable;
pub mod env;
pub mod exec;
pub mod identity;
pub mod link;
pub mod name;
pub mod object;
pub mod release;
pub mod secret;
pub mod selector;
pub mod shallow;
pub mod stream;
pub mod token;
pub mod tuf;
pub mod units;
pub mod watch;

/// `apiVersion` of every object and document that this version writes.
pub const API_VERSION: &str = "crossdock.io/v1";

/// Version of this build, as `Cargo.toml` states it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
