//! Crossdock's hub, and the operators' command line.
//!
//! | module | what it holds |
//! |---|---|
//! | [`hub`] | the hub put together: what it owns, how it starts and drains |
//! | [`config`] | its configuration and data folder: `cloudcore init` |
//! | [`init`], [`serve`] | a new data folder; the hub as a process |
//! | [`store`] | objects in embedded SQLite: resource versions, watch |
//! | [`api`] | REST under `/api/v1`, OpenAPI, bearer tokens |
//! | [`audit`] | who changed what: a log that shows tampering |
//! | [`access`] | who may do what: roles, bindings, users |
//! | [`ca`] | the fleet's certificate authority |
//! | [`link`] | QUIC towards the agents: joining, sessions, artifacts |
//! | [`blobs`] | artifacts by digest, kept in compressed chunks |
//! | [`director`] | signs for each node what it should run, with the hub's online key |
//! | [`trust`] | the release repository that the hub serves, verified before it does |
//! | [`streams`] | records of the nodes: taken once, kept in a sink, queried |
//! | [`webhooks`] | events told to other systems, each at least once |
//! | [`planner`] | pure planner of rollouts, and the loop that carries its steps out |
//! | [`events`] | what happened, for people |
//! | [`release`] | the release engineer's side: build, sign, publish |
//! | [`stage`] | a fleet as processes on one machine, for demo, tests and benches |
//! | `bounded` | files and streams of others, read up to a bound |
//! | `plain` | JSON of others, which must say what it means |
//! | `unknown` | fields that are skipped, and told |
//! | `harness` | parsers behind closed doors, for the fuzzers |
//! | [`cli`] | the command `crossdock` |

#![forbid(unsafe_code)]

pub mod access;
pub mod api;
pub mod audit;
pub mod blobs;
mod bounded;
pub mod bus;
pub mod ca;
pub mod cli;
pub mod config;
pub mod director;
pub mod events;
#[doc(hidden)]
pub mod harness;
pub mod health;
pub mod hub;
pub mod init;
pub mod link;
mod plain;
pub mod planner;
pub mod release;
mod roots;
pub mod serve;
pub mod stage;
pub mod store;
pub mod streams;
pub mod trust;
mod unknown;
pub mod webhooks;
