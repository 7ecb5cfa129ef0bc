//! What the agent itself tells over the streams' road: its outbox takes it, the uplink delivers it once.
//!
//! | module | stream | what it holds |
//! |---|---|---|
//! | [`events`] | `events` | what happened: installs, trials, ends of workloads, probes, conditions, starts, clock steps |
//! | [`metrics`] | `metrics` | how the node and its workloads do, now and then |
//!
//! A stream that is not set up in `agent.toml` is not told. [`crate::agent`] starts both tasks.

pub(crate) mod events;
pub(crate) mod metrics;

use std::sync::Arc;

use proto::{link::message::Report, name::Name};
use tokio::sync::watch;

use crate::{driver::Driver, facts::Facts, outbox::Outbox};

/// What both tasks look at and write to.
#[derive(Debug, Clone)]
pub(crate) struct Teller {
    /// The outside.
    pub env: proto::env::Env,
    /// Figures of the box.
    pub facts: Facts,
    /// Figures of workloads.
    pub driver: Arc<dyn Driver>,
    /// How everything is.
    pub board: watch::Receiver<Report>,
    /// Where it goes.
    pub outbox: Outbox,
}

/// The stream `name`, if it is set up.
pub(crate) fn stream(outbox: &Outbox, name: &str) -> Option<Name> {
    outbox.streams().iter().map(|(stream, _)| stream).find(|stream| stream.as_str() == name).cloned()
}
