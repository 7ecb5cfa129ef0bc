//! Crossdock's edge agent.
//!
//! | module | what it holds |
//! |---|---|
//! | [`agent`] | the agent put together: what it owns, its loop, how it starts and drains |
//! | [`config`] | its data folder and the identity that joining leaves there |
//! | [`join`] | `edgecore join`: keys made here, certificate from the hub |
//! | [`link`] | the session with the hub: reconnect, assignment, report |
//! | [`trust`] | the trusted metadata on disk, and what may be run by it |
//! | [`fetch`] | artifacts: resumed by range, reserved, verified |
//! | [`apps`] | one app: stage, switch, trial, confirm or revert |
//! | [`driver`] | how a workload runs: processes under a shim, control groups, logs |
//! | [`exec`] | commands that people run in workloads |
//! | [`secrets`] | secrets of workloads: the node's own key, plaintext in memory alone |
//! | [`supervisor`] | keeps one workload running: probes, restart back-off |
//! | [`facts`] | what the box is and how it does |
//! | [`gpu`] | its NVIDIA GPUs: how they do, and which app has which |
//! | [`metrics`] | what workloads tell of themselves: figures that change all the time, gates, lost cameras |
//! | [`outbox`] | records on disk until the hub has them |
//! | [`doors`] | how records come in: HTTP, Unix socket, MQTT, a broker of the house |
//! | [`uplink`] | records on their way to the hub |
//! | `telemetry` | what the agent itself tells as records: events and metrics |
//! | [`settings`] | `agent.toml`, what an operator may set on a box |
//! | [`status`] | the agent explains itself without a hub |
//! | [`unit`] | `edgecore install`: the systemd unit |

#![forbid(unsafe_code)]

pub mod agent;
pub mod apps;
pub mod config;
pub mod disk_space;
pub mod doors;
pub mod driver;
pub mod exec;
pub mod facts;
pub mod fetch;
pub mod gpu;
pub mod join;
pub mod link;
pub mod metrics;
pub mod outbox;
mod reboot;
pub mod secrets;
pub mod settings;
pub mod status;
pub mod supervisor;
mod telemetry;
pub mod trust;
pub mod unit;
pub mod uplink;
