//! The kinds by the names that people type, and their columns.

use jiff::Timestamp;
use proto::object::{CarrierStatus, JoinToken, Node, Rollout, RolloutCounts, UpdatePhase};
use serde_json::Value;

use super::exit::{CliError, Exit};

/// One kind for the command line.
#[derive(Debug)]
pub struct KindInfo {
    /// As in `kind:`.
    pub kind: &'static str,
    /// As in URLs.
    pub plural: &'static str,
    /// Other names that people type.
    aliases: &'static [&'static str],
    /// Column heads; those after `wide_from` only with `-o wide`.
    pub heads: &'static [&'static str],
    /// Index of the first column of `-o wide`.
    pub wide_from: usize,
    cells: fn(&Value, Timestamp) -> Vec<String>,
}

/// All kinds.
pub const KINDS: &[KindInfo] = &[
    KindInfo {
        kind: "Node",
        plural: "nodes",
        aliases: &["node", "no"],
        heads: &[
            "NAME",
            "SITE",
            "STATUS",
            "LAST SEEN",
            "APPS",
            "AGE",
            "WORKLOADS",
            "AGENT",
            "REMOTE",
            "CARRIERS",
            "OS",
        ],
        wide_from: 6,
        cells: node,
    },
    KindInfo {
        kind: "Site",
        plural: "sites",
        aliases: &["site"],
        heads: &["NAME", "TIME ZONE", "DESCRIPTION", "AGE"],
        wide_from: 9,
        cells: site,
    },
    KindInfo {
        kind: "Release",
        plural: "releases",
        aliases: &["release", "rel"],
        heads: &["RELEASE", "COUNTER", "DIGEST", "FILES", "BYTES", "AGE", "HARDWARE"],
        wide_from: 6,
        cells: release,
    },
    KindInfo {
        kind: "Rollout",
        plural: "rollouts",
        aliases: &["rollout", "ro"],
        heads: &["NAME", "RELEASE", "TO", "PHASE", "HEALTHY", "FAILED", "AGE", "MESSAGE"],
        wide_from: 7,
        cells: rollout,
    },
    KindInfo {
        kind: "JoinToken",
        plural: "jointokens",
        aliases: &["jointoken", "token", "tokens"],
        heads: &["NAME", "SITE", "NODE", "USED", "EXPIRES"],
        wide_from: 9,
        cells: token,
    },
    KindInfo {
        kind: "Event",
        plural: "events",
        aliases: &["event", "ev"],
        heads: &["LAST", "TYPE", "REASON", "OBJECT", "COUNT", "MESSAGE", "SOURCE"],
        wide_from: 6,
        cells: event,
    },
];

impl KindInfo {
    /// Finds a kind by any of its names.
    ///
    /// # Errors
    /// Names all that exist.
    pub fn find(name: &str) -> anyhow::Result<&'static KindInfo> {
        let lower = name.to_lowercase();
        let found = KINDS
            .iter()
            .find(|k| k.plural == lower || k.kind.to_lowercase() == lower || k.aliases.contains(&lower.as_str()));
        found.ok_or_else(|| {
            let all: Vec<_> = KINDS.iter().map(|k| k.plural).collect();
            CliError::new(Exit::Usage, format!("{name:?} is no kind of object; there are {}", all.join(", "))).into()
        })
    }

    /// The cells of an object, wide ones included.
    #[must_use]
    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<String> {
        (self.cells)(object, now)
    }
}

/// Text at a JSON pointer; empty when absent.
#[must_use]
pub fn text(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// How long ago, as kubectl writes it: `12s`, `5m`, `3h`, `2d`.
#[must_use]
pub fn ago(object: &Value, pointer: &str, now: Timestamp) -> String {
    let Ok(then) = text(object, pointer).parse::<Timestamp>() else { return "-".into() };
    let seconds = now.as_second() - then.as_second();
    let (sign, s) = if seconds < 0 { ("in ", -seconds) } else { ("", seconds) };
    match s {
        0..120 => format!("{sign}{s}s"),
        120..7_200 => format!("{sign}{}m", s / 60),
        7_200..172_800 => format!("{sign}{}h", s / 3_600),
        _ => format!("{sign}{}d", s / 86_400),
    }
}

fn node(object: &Value, now: Timestamp) -> Vec<String> {
    let node = serde_json::from_value::<Node>(object.clone());
    let told = node.map(|n| (summary(&n), ready_apps(&n), carriers(&n)));
    let (workloads, apps, carriers) = told.unwrap_or_default();
    vec![
        text(object, "/metadata/name"),
        text(object, "/spec/site"),
        text(object, "/status/phase"),
        ago(object, "/status/lastSeen", now),
        apps,
        ago(object, "/metadata/creationTimestamp", now),
        workloads.join(" "),
        text(object, "/status/info/agentVersion"),
        text(object, "/status/remote"),
        carriers,
        text(object, "/status/info/osImage"),
    ]
}

/// The carriers of its link: `udp:in-use mqtt:reachable`.
fn carriers(node: &Node) -> String {
    let word = |c: &CarrierStatus| {
        let state = match (c.in_use, c.reachable) {
            (true, _) => "in-use",
            (false, true) => "reachable",
            (false, false) => "unreachable",
        };
        format!("{}:{state}{}", c.name, if c.warning.is_some() { "(open)" } else { "" })
    };
    node.status.carriers.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// How many of the assigned apps say that they are ready, of how many: `0/1` stands out.
fn ready_apps(node: &Node) -> String {
    let running = |app| node.status.workloads.get(app).and_then(|w| w.running.as_ref());
    let ready = node.spec.apps.keys().filter(|app| running(*app).is_some_and(|r| r.ready)).count();
    format!("{ready}/{}", node.spec.apps.len())
}

/// The workloads of a node, one word each: `app@version:state`, how many replicas are ready of how many, and where an
/// update stands.
#[must_use]
pub fn summary(node: &Node) -> Vec<String> {
    let word = |(app, w): (_, &proto::object::WorkloadStatus)| {
        let running = w.running.as_ref().map_or_else(
            || "-".to_owned(),
            |r| format!("{}:{}", r.release.version, if r.ready { "ready".into() } else { r.state.to_string() }),
        );
        let replicas = w.replicas.as_ref().map(|r| format!("[{}/{}]", r.ready_replicas, r.desired_replicas));
        let replicas = replicas.unwrap_or_default();
        let update = match (&w.target, w.phase) {
            (_, UpdatePhase::Succeeded) => String::new(),
            (Some(target), phase) => format!("({phase} {})", target.version),
            (None, phase) => format!("({phase})"),
        };
        format!("{app}@{running}{replicas}{update}")
    };
    node.status.workloads.iter().map(word).collect()
}

fn site(object: &Value, now: Timestamp) -> Vec<String> {
    vec![
        text(object, "/metadata/name"),
        text(object, "/spec/timeZone"),
        text(object, "/spec/description"),
        ago(object, "/metadata/creationTimestamp", now),
    ]
}

fn release(object: &Value, now: Timestamp) -> Vec<String> {
    let hardware = object
        .pointer("/spec/hardware")
        .and_then(Value::as_array)
        .map(|h| h.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","));
    vec![
        format!("{}@{}", text(object, "/spec/app"), text(object, "/spec/version")),
        text(object, "/spec/releaseCounter"),
        text(object, "/spec/digest").chars().take("sha256:".len() + 12).collect(),
        text(object, "/spec/files"),
        text(object, "/spec/totalBytes"),
        ago(object, "/metadata/creationTimestamp", now),
        hardware.filter(|h| !h.is_empty()).unwrap_or_else(|| "any".into()),
    ]
}

fn rollout(object: &Value, now: Timestamp) -> Vec<String> {
    let rollout = serde_json::from_value::<Rollout>(object.clone());
    let (what, status) = rollout.map(|r| (r.spec.what(), r.status)).unwrap_or_default();
    let RolloutCounts { healthy, failed, all, .. } = status.counts();
    vec![
        text(object, "/metadata/name"),
        what,
        text(object, "/spec/selector"),
        text(object, "/status/phase"),
        format!("{healthy}/{all}"),
        failed.to_string(),
        ago(object, "/metadata/creationTimestamp", now),
        text(object, "/status/message"),
    ]
}

fn token(object: &Value, now: Timestamp) -> Vec<String> {
    // A box that comes back uses nothing up, though a token for one node counts each of its keys.
    let token = serde_json::from_value::<JoinToken>(object.clone());
    let used = token.as_ref().map_or(0, |token| token.used().min(token.spec.uses as usize));
    let expired = token.is_ok_and(|token| token.spec.expires_at <= now);
    vec![
        text(object, "/metadata/name"),
        text(object, "/spec/site"),
        text(object, "/spec/node"),
        format!("{used}/{}", text(object, "/spec/uses")),
        if expired { "expired".into() } else { ago(object, "/spec/expiresAt", now) },
    ]
}

fn event(object: &Value, now: Timestamp) -> Vec<String> {
    vec![
        ago(object, "/spec/lastAt", now),
        text(object, "/spec/type"),
        text(object, "/spec/reason"),
        format!("{}/{}", text(object, "/spec/involvedKind"), text(object, "/spec/involvedName")),
        text(object, "/spec/count"),
        text(object, "/spec/message"),
        text(object, "/spec/source"),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cells(kind: &str, object: Value) -> Vec<String> {
        let mut object = object;
        object["apiVersion"] = json!(proto::API_VERSION);
        object["kind"] = json!(kind);
        object["metadata"] = json!({"name": "x"});
        KindInfo::find(kind).unwrap().cells(&object, Timestamp::from_second(100).unwrap())
    }

    #[test]
    fn a_sick_app_shows_in_the_list_of_nodes() {
        let digest = proto::digest::Digest::of(b"1");
        let release = json!({"version": "1", "digest": digest});
        let workload = |state: &str, ready: bool| {
            let running = json!({"release": release, "state": state, "ready": ready, "restarts": 0});
            json!({"phase": "Succeeded", "since": "2026-01-01T00:00:00Z", "running": running})
        };
        let node = |state, ready| {
            json!({
                "spec": {"site": "s", "apps": {"a": release, "b": release}},
                "status": {"phase": "Ready", "workloads": {"a": workload("Running", true), "b": workload(state, ready), "gone": workload("Running", true)}},
            })
        };
        assert_eq!(cells("Node", node("BackOff", false))[4], "1/2");
        assert_eq!(cells("Node", node("Running", true))[4], "2/2");
        assert_eq!(cells("Node", json!({"spec": {"site": "s"}}))[4], "0/0");
        let mut several = workload("Running", true);
        several["replicas"] = json!({"currentReplicas": 3, "readyReplicas": 2, "desiredReplicas": 3, "minReplicas": 1,
            "maxReplicas": 4});
        let node = json!({"apiVersion": proto::API_VERSION, "kind": "Node", "metadata": {"name": "x"},
            "spec": {"site": "s"}, "status": {"phase": "Ready", "workloads": {"a": several, "b": workload("Running", true)}}});
        assert_eq!(summary(&serde_json::from_value(node).unwrap()), ["a@1:ready[2/3]", "b@1:ready"]);
    }

    #[test]
    fn a_token_shows_whether_it_still_admits() {
        let hash = proto::digest::Digest::of(b"s");
        let keys: std::collections::BTreeMap<String, &str> = (0..8).map(|i| (i.to_string(), "n1")).collect();
        let token = |expires: &str| {
            let spec = json!({"site": "s", "node": "n1", "uses": 1, "expiresAt": expires, "secretHash": hash});
            cells("JoinToken", json!({"spec": spec, "status": {"usedBy": keys}}))
        };
        assert_eq!(token("1970-01-01T00:00:17Z")[3..], ["1/1", "expired"]);
        assert_eq!(token("1970-01-01T00:01:50Z")[3..], ["1/1", "in 10s"]);
    }
}
