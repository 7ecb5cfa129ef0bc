//! One line an object: the columns of each kind.

use jiff::Timestamp;
use proto::object::{
    EventSpec, JoinTokenSpec, Kind, Node, NodeSpec, Object, ReleaseSpec, RolloutSpec, RunState, SiteSpec, UpdatePhase,
    WorkloadStatus,
};
use serde_json::Value;

use super::{
    kinds::KindInfo,
    output::{age, bytes, span},
};

/// Headers of a kind's columns.
#[must_use]
pub fn headers(kind: KindInfo, wide: bool) -> Vec<&'static str> {
    let (short, long): (&[_], &[_]) = match kind.kind {
        "Node" => (
            &["NAME", "SITE", "STATUS", "SEEN", "APPS"],
            &["AGENT", "UP", "CPU", "MEMORY", "DISK FREE", "SYSTEM", "ADDRESSES"],
        ),
        "Site" => (&["NAME", "TIME ZONE", "AGE", "DESCRIPTION"], &["BYTES/S"]),
        "Release" => (&["NAME", "RELEASE", "DIGEST", "FILES", "SIZE", "AGE"], &["COUNTER", "HARDWARE"]),
        "Rollout" => (&["NAME", "RELEASE", "SELECTOR", "STATUS", "HEALTHY", "AGE"], &["DIGEST", "MESSAGE"]),
        "JoinToken" => (&["NAME", "SITE", "NODE", "USED", "EXPIRES", "AGE"], &["LABELS", "USED BY"]),
        "Event" => (&["SEEN", "TYPE", "REASON", "OBJECT", "COUNT", "MESSAGE"], &["NAME", "SOURCE"]),
        _ => (&["NAME", "AGE"], &[]),
    };
    short.iter().chain(if wide { long } else { &[] }).copied().collect()
}

/// The cells of an object; of one that this program does not understand, its name.
#[must_use]
pub fn row(kind: KindInfo, object: &Value, wide: bool, now: Timestamp) -> Vec<String> {
    let cells = match kind.kind {
        "Node" => typed::<NodeSpec>(object, |o| node(o, now)),
        "Site" => typed::<SiteSpec>(object, |o| site(o, now)),
        "Release" => typed::<ReleaseSpec>(object, |o| release(o, now)),
        "Rollout" => typed::<RolloutSpec>(object, |o| rollout(o, now)),
        "JoinToken" => typed::<JoinTokenSpec>(object, |o| token(o, now)),
        "Event" => typed::<EventSpec>(object, |o| event(o, now)),
        _ => None,
    };
    let name = || vec![object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("?").to_owned()];
    let mut cells = cells.unwrap_or_else(name);
    cells.truncate(headers(kind, wide).len());
    cells
}

fn typed<S: Kind + PartialEq>(object: &Value, cells: impl Fn(&Object<S>) -> Vec<String>) -> Option<Vec<String>> {
    serde_json::from_value(object.clone()).ok().map(|object| cells(&object))
}

fn node(node: &Node, now: Timestamp) -> Vec<String> {
    let status = &node.status;
    let info = status.info.as_ref();
    let usage = status.usage.as_ref();
    let apps: Vec<_> = status.workloads.iter().map(|(app, w)| workload(app.as_str(), w)).collect();
    let addresses: Vec<_> =
        info.iter().flat_map(|i| &i.addresses).map(|a| format!("{}={}", a.interface, a.address)).collect();
    let memory = usage.zip(info).map(|(u, i)| format!("{}/{}", bytes(u.memory_used_bytes), bytes(i.memory_bytes)));
    let free = usage.and_then(|u| u.disks.iter().map(|d| d.free_bytes).min()).map(bytes);
    vec![
        node.name().into(),
        node.spec.site.to_string(),
        status.phase.to_string(),
        age(status.last_seen, now),
        or_dash(apps.join(", ")),
        info.map_or_else(|| "-".into(), |i| i.agent_version.clone()),
        usage.map_or_else(|| "-".into(), |u| span(i64::try_from(u.uptime_s).unwrap_or(i64::MAX))),
        usage.map_or_else(|| "-".into(), |u| format!("{}.{}%", u.cpu_permille / 10, u.cpu_permille % 10)),
        memory.unwrap_or_else(|| "-".into()),
        free.unwrap_or_else(|| "-".into()),
        info.map_or_else(|| "-".into(), |i| format!("{} {}", i.os_image, i.architecture)),
        or_dash(addresses.join(" ")),
    ]
}

/// What runs, and what is wrong or under way.
#[must_use]
pub fn workload(app: &str, workload: &WorkloadStatus) -> String {
    let runs = match &workload.running {
        Some(r) if r.state == RunState::Running && r.ready => format!("{app}@{}", r.release.version),
        Some(r) if r.state == RunState::Running => format!("{app}@{} NotReady", r.release.version),
        Some(r) => format!("{app}@{} {}", r.release.version, r.state),
        None => format!("{app} -"),
    };
    let target = workload.target.as_ref().map_or("removal".into(), |t| t.version.to_string());
    match workload.phase {
        UpdatePhase::Succeeded => runs,
        phase if workload.reason.is_empty() => format!("{runs} ({target}: {phase})"),
        phase => format!("{runs} ({target}: {phase}, {})", workload.reason),
    }
}

fn site(site: &Object<SiteSpec>, now: Timestamp) -> Vec<String> {
    let rate = site.spec.bulk_bytes_per_s.map(bytes);
    vec![
        site.name().into(),
        or_dash(site.spec.time_zone.clone().unwrap_or_default()),
        age(site.metadata.creation_timestamp, now),
        site.spec.description.clone(),
        rate.unwrap_or_else(|| "-".into()),
    ]
}

fn release(release: &Object<ReleaseSpec>, now: Timestamp) -> Vec<String> {
    let spec = &release.spec;
    vec![
        release.name().into(),
        format!("{}@{}", spec.app, spec.version),
        spec.digest.short(),
        spec.files.to_string(),
        bytes(spec.total_bytes),
        age(release.metadata.creation_timestamp, now),
        spec.release_counter.to_string(),
        if spec.hardware.is_empty() { "any".into() } else { spec.hardware.join(",") },
    ]
}

fn rollout(rollout: &Object<RolloutSpec>, now: Timestamp) -> Vec<String> {
    let status = &rollout.status;
    let healthy = status.nodes.values().filter(|n| n.phase == UpdatePhase::Succeeded).count();
    vec![
        rollout.name().into(),
        rollout.release().to_string(),
        rollout.spec.selector.to_string(),
        status.phase.to_string(),
        format!("{healthy}/{}", status.nodes.len()),
        age(rollout.metadata.creation_timestamp, now),
        status.digest.map_or_else(|| "-".into(), |d| d.short()),
        status.message.clone(),
    ]
}

fn token(token: &Object<JoinTokenSpec>, now: Timestamp) -> Vec<String> {
    let spec = &token.spec;
    let left = spec.expires_at.as_second().saturating_sub(now.as_second());
    let labels: Vec<_> = spec.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let users: Vec<_> = token.status.used_by.values().map(ToString::to_string).collect();
    vec![
        token.name().into(),
        spec.site.to_string(),
        spec.node.as_ref().map_or_else(|| "any".into(), ToString::to_string),
        format!("{}/{}", token.status.used_by.len(), spec.uses),
        if left > 0 { format!("in {}", span(left)) } else { "expired".into() },
        age(token.metadata.creation_timestamp, now),
        or_dash(labels.join(",")),
        or_dash(users.join(",")),
    ]
}

fn event(event: &Object<EventSpec>, now: Timestamp) -> Vec<String> {
    let spec = &event.spec;
    vec![
        age(Some(spec.last_at), now),
        spec.r#type.to_string(),
        spec.reason.clone(),
        format!("{}/{}", spec.involved_kind, spec.involved_name),
        spec.count.to_string(),
        spec.message.clone(),
        event.name().into(),
        spec.source.clone(),
    ]
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}
