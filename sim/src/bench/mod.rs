//! Measurements of the shipped binaries over real sockets, and of the simulator: `sim bench NAME`.
//!
//! Each bench but `plan`, `trust` and `world` starts `cloudcore`, `crossdock` and `edgecore` from the folder that `sim` lies in, works
//! in a temporary folder on loopback, and stops what it started. It prints a table for a person and,
//! with `--json`, one JSON object on the last line.
//!
//! | module | what it holds |
//! |---|---|
//! | [`agent`] | one idle agent: memory, binary, traffic |
//! | [`carrier`] | QUIC over UDP and through Mosquitto, and plain MQTT beside it |
//! | [`containers`] | a container's start beside the engine's own, the agent with many, one layer that changes |
//! | [`fleet`] | many agents: connecting, a rollout, the hub's cost, and plain TLS beside it |
//! | [`plan`] | one pass of the hub's planner over a large fleet |
//! | [`streams`] | stream records: throughput, losses, a backlog, and Mosquitto and NATS JetStream beside it |
//! | [`trust`] | verifying, signing, handshakes, and the bare cryptography beside them |
//! | [`waves`] | many agents: a release in waves, and one that crashes in the first |
//! | [`world`] | the simulator itself: a day, a thousand boxes, ten thousand that reconnect |
//! | [`fixture`] | what every bench begins with: a hub, a release to roll out |
//! | [`api`] | the hub's REST as the benches read it |
//! | [`process`] | memory and processor time of a process, from `/proc` |
//! | [`yardstick`] | the same bytes over plain TLS |

pub mod agent;
pub mod api;
pub mod carrier;
pub mod containers;
pub mod fixture;
pub mod fleet;
pub mod plan;
pub mod process;
pub mod streams;
pub mod trust;
pub mod waves;
pub mod world;
pub mod yardstick;

use serde_json::{Map, Value};

/// What a bench found, in the order in which a person should read it.
#[derive(Debug, Default)]
pub struct Figures {
    rows: Vec<(&'static str, Value, &'static str)>,
}

impl Figures {
    /// Adds one: its key, its value, and how it was come by.
    pub fn add(&mut self, key: &'static str, value: impl Into<Value>, how: &'static str) {
        self.rows.push((key, value.into(), how));
    }

    /// Prints the table, and the JSON object below it when asked for.
    pub fn print(&self, json: bool) {
        for (key, value, how) in &self.rows {
            let shown = match value {
                Value::Array(items) => {
                    items.iter().map(|v| v.as_str().unwrap_or_default()).collect::<Vec<_>>().join(" ")
                }
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            println!("{key:<28} {shown:>14}  {how}");
        }
        if json {
            let object: Map<_, _> =
                self.rows.iter().map(|(key, value, _)| ((*key).to_owned(), value.clone())).collect();
            println!("{}", Value::Object(object));
        }
    }
}

/// A number of seconds to the millisecond.
fn seconds(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

/// Which profile this was built with; figures of a debug build say little.
fn profile() -> &'static str {
    if cfg!(debug_assertions) { "debug" } else { "release" }
}

fn warn_if_debug() {
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: its figures are not those of what ships; use cargo run --release");
    }
}
