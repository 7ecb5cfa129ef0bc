//! The kinds by the names that people type, and their columns.

use jiff::Timestamp;
use proto::object::{JoinToken, Node, Rollout, RolloutCounts, UpdatePhase};
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
        heads: &["NAME", "SITE", "STATUS", "LAST SEEN", "APPS", "AGE", "WORKLOADS", "AGENT", "REMOTE", "OS"],
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
    let workloads: Vec<String> =
        serde_json::from_value::<Node>(object.clone()).map(|n| summary(&n)).unwrap_or_default();
    let apps = object.pointer("/spec/apps").and_then(Value::as_object).map_or(0, serde_json::Map::len);
    vec![
        text(object, "/metadata/name"),
        text(object, "/spec/site"),
        text(object, "/status/phase"),
        ago(object, "/status/lastSeen", now),
        apps.to_string(),
        ago(object, "/metadata/creationTimestamp", now),
        workloads.join(" "),
        text(object, "/status/info/agentVersion"),
        text(object, "/status/remote"),
        text(object, "/status/info/osImage"),
    ]
}

/// The workloads of a node, one word each: `app@version:state`, and where an update stands.
#[must_use]
pub fn summary(node: &Node) -> Vec<String> {
    let word = |(app, w): (_, &proto::object::WorkloadStatus)| {
        let running = w.running.as_ref().map_or_else(
            || "-".to_owned(),
            |r| format!("{}:{}", r.release.version, if r.ready { "ready".into() } else { r.state.to_string() }),
        );
        let update = match (&w.target, w.phase) {
            (_, UpdatePhase::Succeeded) => String::new(),
            (Some(target), phase) => format!("({phase} {})", target.version),
            (None, phase) => format!("({phase})"),
        };
        format!("{app}@{running}{update}")
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
    let status = serde_json::from_value::<Rollout>(object.clone()).map(|r| r.status).unwrap_or_default();
    let RolloutCounts { healthy, failed, all, .. } = status.counts();
    vec![
        text(object, "/metadata/name"),
        format!("{}@{}", text(object, "/spec/app"), text(object, "/spec/version")),
        text(object, "/spec/selector"),
        text(object, "/status/phase"),
        format!("{healthy}/{all}"),
        failed.to_string(),
        ago(object, "/metadata/creationTimestamp", now),
        text(object, "/status/message"),
    ]
}

fn token(object: &Value, now: Timestamp) -> Vec<String> {
    let used = serde_json::from_value::<JoinToken>(object.clone()).map_or(0, |token| token.used());
    vec![
        text(object, "/metadata/name"),
        text(object, "/spec/site"),
        text(object, "/spec/node"),
        format!("{used}/{}", text(object, "/spec/uses")),
        ago(object, "/spec/expiresAt", now),
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
