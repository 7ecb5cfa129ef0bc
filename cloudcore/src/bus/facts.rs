//! What is said on the house bus: topics and payloads, and what has to be published so that a broker says the same.
//! Pure. `schema.json` describes the payloads, `golden/` has one of each.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proto::{
    name::{Name, Version},
    object::{Event, EventType, Node, Rollout, rollout::WavePhase},
};
use serde::Serialize;

/// Version of the payloads. Fields may be added without a new one.
const SCHEMA: u32 = 1;
/// Most alerts that are kept at the broker: those that were last seen last.
pub(super) const MAX_ALERTS: usize = 500;
/// Condition whose last change is when a node came or went.
const READY: &str = "Ready";

/// What a broker says, by topic.
pub(super) type Said = BTreeMap<String, Vec<u8>>;

/// Facts of a fleet, by topic.
#[derive(Debug)]
pub(super) struct Facts {
    prefix: String,
    said: Said,
    alerts: BTreeSet<(Timestamp, String)>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HubFact {
    schema: u32,
    kind: &'static str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeFact<'a> {
    schema: u32,
    kind: &'static str,
    name: &'a str,
    site: &'a Name,
    phase: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    carrier: Option<&'a str>,
    apps: BTreeMap<&'a Name, AppFact<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AppFact<'a> {
    phase: String,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    running: Option<&'a Version>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'a Version>,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RolloutFact<'a> {
    schema: u32,
    kind: &'static str,
    name: &'a str,
    app: &'a Name,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a Version>,
    phase: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    wave: Option<&'a str>,
    nodes: BTreeMap<String, u32>,
    total: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AlertFact<'a> {
    schema: u32,
    kind: &'static str,
    about_kind: &'a str,
    about: &'a str,
    reason: &'a str,
    message: &'a str,
    count: u32,
    first_at: Timestamp,
    last_at: Timestamp,
}

fn json(fact: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(fact).unwrap_or_default() // texts, numbers and maps with texts for keys: always JSON
}

/// Where all facts of a fleet are.
pub(super) fn prefix(fleet: &Name) -> String {
    format!("crossdock/v1/{fleet}/facts/")
}

/// Where it says whether the hub is there.
pub(super) fn hub_topic(fleet: &Name) -> String {
    prefix(fleet) + "hub"
}

/// That it is, since then.
pub(super) fn hub_online(since: Timestamp) -> Vec<u8> {
    let (version, since) = (Some(proto::VERSION), Some(since));
    json(&HubFact { schema: SCHEMA, kind: "hub", state: "online", version, since })
}

/// That it is not: what it said last may not be so any more.
pub(super) fn hub_gone() -> Vec<u8> {
    json(&HubFact { schema: SCHEMA, kind: "hub", state: "gone", version: None, since: None })
}

impl Facts {
    pub(super) fn new(fleet: &Name) -> Facts {
        Facts { prefix: prefix(fleet), said: Said::new(), alerts: BTreeSet::new() }
    }

    fn topic(&self, kind: &str, name: &str) -> String {
        format!("{}{kind}/{name}", self.prefix)
    }

    /// Of a node, while it is there.
    pub(super) fn node(&mut self, node: &Node, is_there: bool) {
        let topic = self.topic("nodes", node.name());
        if !is_there {
            self.said.remove(&topic);
            return;
        }
        let status = &node.status;
        let apps = status.workloads.iter().map(|(app, workload)| {
            let fact = AppFact {
                phase: workload.phase.to_string(),
                ready: workload.running.as_ref().is_some_and(|running| running.ready),
                running: workload.running.as_ref().map(|running| &running.release.version),
                target: workload.target.as_ref().map(|target| &target.version),
                reason: &workload.reason,
            };
            (app, fact)
        });
        let fact = NodeFact {
            schema: SCHEMA,
            kind: "node",
            name: node.name(),
            site: &node.spec.site,
            phase: status.phase.to_string(),
            since: status.conditions.iter().find(|c| c.r#type == READY).map(|c| c.last_transition_time),
            carrier: status.carriers.iter().find(|carrier| carrier.in_use).map(|carrier| carrier.name.as_str()),
            apps: apps.collect(),
        };
        self.said.insert(topic, json(&fact));
    }

    /// Of a rollout, while it is there.
    pub(super) fn rollout(&mut self, rollout: &Rollout, is_there: bool) {
        let topic = self.topic("rollouts", rollout.name());
        if !is_there {
            self.said.remove(&topic);
            return;
        }
        let status = &rollout.status;
        let mut nodes = BTreeMap::new();
        status.nodes.values().for_each(|node| *nodes.entry(node.phase.to_string()).or_default() += 1);
        let is_on = |phase: WavePhase| !matches!(phase, WavePhase::Pending | WavePhase::Passed);
        let fact = RolloutFact {
            schema: SCHEMA,
            kind: "rollout",
            name: rollout.name(),
            app: &rollout.spec.app,
            version: rollout.spec.version.as_ref(),
            phase: status.phase.to_string(),
            reason: &status.reason,
            message: &status.message,
            wave: status.waves.iter().find(|wave| is_on(wave.phase)).map(|wave| wave.name.as_str()),
            total: status.nodes.len(),
            nodes,
            started_at: status.started_at,
            finished_at: status.finished_at,
        };
        self.said.insert(topic, json(&fact));
    }

    /// Of an event, while it is there: of warnings, the last ones.
    pub(super) fn event(&mut self, event: &Event, is_there: bool) {
        let topic = self.topic("alerts", event.name());
        if self.said.remove(&topic).is_some() {
            self.alerts.retain(|(_, known)| *known != topic);
        }
        let spec = &event.spec;
        if !is_there || spec.r#type != EventType::Warning {
            return;
        }
        let fact = AlertFact {
            schema: SCHEMA,
            kind: "alert",
            about_kind: &spec.involved_kind,
            about: &spec.involved_name,
            reason: &spec.reason,
            message: &spec.message,
            count: spec.count,
            first_at: spec.first_at,
            last_at: spec.last_at,
        };
        self.said.insert(topic.clone(), json(&fact));
        self.alerts.insert((spec.last_at, topic));
        if self.alerts.len() > MAX_ALERTS
            && let Some((_, oldest)) = self.alerts.pop_first()
        {
            self.said.remove(&oldest);
        }
    }

    /// What makes a broker that says `there` say this: topics with what to publish, empty to clear them.
    pub(super) fn changes(&self, there: &Said) -> Vec<(String, Vec<u8>)> {
        let hub = format!("{}hub", self.prefix);
        let stale = there.keys().filter(|topic| **topic != hub && !self.said.contains_key(*topic));
        let stale = stale.map(|topic| (topic.clone(), vec![]));
        let new = self.said.iter().filter(|(topic, payload)| there.get(*topic) != Some(payload));
        stale.chain(new.map(|(topic, payload)| (topic.clone(), payload.clone()))).collect()
    }
}

#[cfg(test)]
#[path = "facts_tests.rs"]
mod tests;
