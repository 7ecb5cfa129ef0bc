//! How nodes, their GPUs and workloads do at this moment, as the hub holds it in memory: `GET /top/nodes`, `/top/gpus`,
//! `/top/apps`, and conditions, GPUs and what workloads tell of themselves once more for Prometheus, `GET /metrics`. Each user sees the nodes that they may read.

use std::{collections::BTreeMap, fmt::Write as _};

use axum::{
    Extension, Json,
    extract::{Query, State, rejection::QueryRejection},
    http::{Method, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
};
use proto::{
    name::{MetricName, Name},
    object::{ConditionStatus, GpuInfo, GpuUsage, Node, NodePhase, NodeSpec, ReplicaStatus, WorkloadStatus},
    selector::Selector,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Api, ApiError,
    auth::User,
    book::{Book, Page, reference},
    guard::Rule,
    objects::{self, Resource as _},
};
use crate::access::{Resource, Verb};

const JSON: &str = "application/json";
/// Prometheus's text format.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TopQuery {
    label_selector: Option<String>,
    site: Option<Name>,
}

/// The nodes that were asked for and may be seen, with what only memory has of them.
async fn nodes(api: &Api, user: &User, asked: TopQuery) -> Result<Vec<Node>, ApiError> {
    let selector = asked.label_selector.as_deref().filter(|text| !text.trim().is_empty());
    let selector: Option<Selector> =
        selector.map(str::parse).transpose().map_err(|e| ApiError::bad_request(format!("{e}")))?;
    let listed = api.hub.store().list::<NodeSpec>(selector.as_ref()).await?;
    let mut nodes = vec![];
    for node in listed.items {
        let is_there = asked.site.as_ref().is_none_or(|site| *site == node.spec.site);
        if is_there && user.sees(Resource::Nodes, &NodeSpec::seen_at(&api.hub, &node).await) {
            nodes.push(api.hub.node_view(node));
        }
    }
    Ok(nodes)
}

fn list(kind: &str, items: Vec<Value>) -> Json<Value> {
    Json(json!({"apiVersion": proto::API_VERSION, "kind": kind, "items": items}))
}

async fn top_nodes(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    asked: Result<Query<TopQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let nodes = nodes(&api, &user, objects::query(asked)?).await?;
    Ok(list("NodeMetricsList", nodes.iter().map(node_row).collect()))
}

async fn top_gpus(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    asked: Result<Query<TopQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let nodes = nodes(&api, &user, objects::query(asked)?).await?;
    Ok(list("GpuMetricsList", nodes.iter().flat_map(gpu_rows).collect()))
}

async fn top_apps(
    State(api): State<Api>,
    Extension(user): Extension<User>,
    asked: Result<Query<TopQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let nodes = nodes(&api, &user, objects::query(asked)?).await?;
    Ok(list("AppMetricsList", nodes.iter().flat_map(app_rows).collect()))
}

async fn metrics(State(api): State<Api>, Extension(user): Extension<User>) -> Result<Response, ApiError> {
    let nodes = nodes(&api, &user, TopQuery::default()).await?;
    Ok(([(CONTENT_TYPE, EXPOSITION)], exposition(&nodes)).into_response())
}

fn node_row(node: &Node) -> Value {
    let status = &node.status;
    let info = status.info.as_ref();
    json!({
        "name": node.name(),
        "site": node.spec.site,
        "phase": status.phase,
        "lastSeen": status.last_seen,
        "cpus": info.map(|info| info.cpus),
        "memoryBytes": info.map(|info| info.memory_bytes),
        "gpus": info.and_then(|info| info.nvidia.as_ref()).map_or(0, |gpus| gpus.devices.len()),
        "usage": status.usage,
    })
}

/// Each GPU of a node, with its figures where the node told them.
fn gpus(node: &Node) -> impl Iterator<Item = (&GpuInfo, Option<&GpuUsage>)> {
    let inventory = node.status.info.as_ref().and_then(|info| info.nvidia.as_ref());
    let usage = node.status.usage.as_ref().map(|usage| usage.gpus.as_slice()).unwrap_or_default();
    let devices = inventory.map(|inventory| inventory.devices.as_slice()).unwrap_or_default();
    devices.iter().map(move |gpu| (gpu, usage.iter().find(|usage| usage.uuid == gpu.uuid)))
}

fn gpu_rows(node: &Node) -> Vec<Value> {
    let inventory = node.status.info.as_ref().and_then(|info| info.nvidia.as_ref());
    let row = |(gpu, usage): (&GpuInfo, Option<&GpuUsage>)| {
        json!({
            "node": node.name(),
            "site": node.spec.site,
            "phase": node.status.phase,
            "lastSeen": node.status.last_seen,
            "driverVersion": inventory.map(|inventory| &inventory.driver_version),
            "cudaVersion": inventory.map(|inventory| &inventory.cuda_version),
            "gpu": gpu,
            "usage": usage,
        })
    };
    gpus(node).map(row).collect()
}

/// What each app of a node told of itself, by name; nothing of one that told nothing.
fn app_metrics(node: &Node) -> Option<&BTreeMap<Name, BTreeMap<MetricName, f64>>> {
    Some(&node.status.usage.as_ref()?.metrics)
}

fn app_rows(node: &Node) -> Vec<Value> {
    let row = |(app, said): (&Name, &WorkloadStatus)| {
        let running = said.running.as_ref();
        json!({
            "node": node.name(),
            "site": node.spec.site,
            "phase": node.status.phase,
            "lastSeen": node.status.last_seen,
            "app": app,
            "version": running.map(|running| &running.release.version),
            "state": running.map(|running| running.state),
            "ready": running.map(|running| running.ready),
            "restarts": running.map(|running| running.restarts),
            "replicas": said.replicas,
            "metrics": app_metrics(node).and_then(|metrics| metrics.get(app)),
        })
    };
    node.status.workloads.iter().map(row).collect()
}

/// One metric: its name, what it is, and its value for a GPU.
type Metric = (&'static str, &'static str, fn(&GpuInfo, &GpuUsage) -> Option<f64>);

/// What is told of each GPU. Units last in the name, as Prometheus has it.
const METRICS: [Metric; 11] = [
    ("utilization_ratio", "Share of the sample period in which a kernel ran", |_, u| {
        u.utilization_percent.map(|percent| f64::from(percent) / 100.0)
    }),
    ("memory_bytes", "Memory", |gpu, _| Some(gpu.memory_bytes as f64)),
    ("memory_used_bytes", "Memory in use, with what the driver keeps", |_, u| u.memory_used_bytes.map(|n| n as f64)),
    ("memory_free_bytes", "Memory that is free", |_, u| u.memory_free_bytes.map(|n| n as f64)),
    ("temperature_celsius", "Temperature of the die", |_, u| u.temperature_c.map(f64::from)),
    ("power_watts", "Power drawn", |_, u| u.power_mw.map(|mw| f64::from(mw) / 1000.0)),
    ("power_limit_watts", "Power that may be drawn", |_, u| u.power_limit_mw.map(|mw| f64::from(mw) / 1000.0)),
    ("ecc_corrected_errors", "ECC errors corrected since the driver was loaded", |_, u| {
        u.ecc_corrected.map(|n| n as f64)
    }),
    ("ecc_uncorrected_errors", "ECC errors not corrected since then", |_, u| u.ecc_uncorrected.map(|n| n as f64)),
    ("last_xid", "Number of the last Xid since the agent looks", |_, u| u.last_xid.map(|n| n as f64)),
    ("processes", "Processes that use it", |_, u| Some(u.processes.len() as f64)),
];

/// The GPUs of nodes that are heard from: of others nobody knows how they do.
fn exposition(nodes: &[Node]) -> String {
    let mut out = conditions(nodes);
    let heard = |node: &&Node| matches!(node.status.phase, NodePhase::Ready | NodePhase::NotReady);
    let heard: Vec<&Node> = nodes.iter().filter(heard).collect();
    let head = |out: &mut String, name: &str, help: &str| {
        let _ = write!(out, "# HELP crossdock_gpu_{name} {help}\n# TYPE crossdock_gpu_{name} gauge\n");
    };
    head(&mut out, "healthy", "Whether nothing speaks against it");
    for (node, (gpu, _)) in heard.iter().flat_map(|node| gpus(node).map(move |gpu| (node, gpu))) {
        let labels = format!("{},reason=\"{}\"", labels(node, gpu), escaped(&gpu.problem));
        let _ = writeln!(out, "crossdock_gpu_healthy{{{labels}}} {}", u8::from(gpu.problem.is_empty()));
    }
    for (name, help, value) in METRICS {
        head(&mut out, name, help);
        for (node, (gpu, usage)) in heard.iter().flat_map(|node| gpus(node).map(move |gpu| (node, gpu))) {
            if let Some(value) = usage.and_then(|usage| value(gpu, usage)) {
                let _ = writeln!(out, "crossdock_gpu_{name}{{{}}} {value}", labels(node, gpu));
            }
        }
    }
    told(&mut out, &heard);
    replicas(&mut out, &heard);
    out
}

/// One figure of an app with replicas: its name, what it is, and its value.
type Count = (&'static str, &'static str, fn(&ReplicaStatus) -> u32);

/// Named as kube-state-metrics names those of a HorizontalPodAutoscaler.
const REPLICAS: [Count; 5] = [
    ("current", "Instances of a workload that run", |r| r.current_replicas),
    ("ready", "Instances of a workload that are ready", |r| r.ready_replicas),
    ("desired", "Instances of a workload that are to run", |r| r.desired_replicas),
    ("min", "Instances of a workload that run at least", |r| r.min_replicas),
    ("max", "Instances of a workload that run at most", |r| r.max_replicas),
];

/// How many instances run, of workloads that have more than one.
fn replicas(out: &mut String, heard: &[&Node]) {
    for (which, help, count) in REPLICAS {
        let name = format!("crossdock_workload_replicas_{which}");
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n");
        for (node, (app, said)) in heard.iter().flat_map(|node| node.status.workloads.iter().map(move |w| (node, w))) {
            let Some(replicas) = &said.replicas else { continue };
            let labels = [("node", node.name()), ("site", node.spec.site.as_str()), ("app", app.as_str())]
                .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)));
            let _ = writeln!(out, "{name}{{{}}} {}", labels.join(","), count(replicas));
        }
    }
}

/// What workloads tell of themselves. Their names are a label: they are the workloads' own, and a metric has one type.
fn told(out: &mut String, heard: &[&Node]) {
    let name = "crossdock_workload_metric";
    let _ = write!(out, "# HELP {name} What a workload told of itself last\n# TYPE {name} gauge\n");
    for (node, (app, values)) in
        heard.iter().flat_map(|node| app_metrics(node).into_iter().flatten().map(move |m| (node, m)))
    {
        for (metric, value) in values {
            let labels = [
                ("node", node.name()),
                ("site", node.spec.site.as_str()),
                ("app", app.as_str()),
                ("name", metric.as_str()),
            ]
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)));
            let _ = writeln!(out, "{name}{{{}}} {value}", labels.join(","));
        }
    }
}

/// What each node's agent, or the hub, says of it: `Ready`, `MetadataStale`, `DiskPressure` and so on.
fn conditions(nodes: &[Node]) -> String {
    let name = "crossdock_node_status_condition";
    let mut out = format!("# HELP {name} Whether a condition of a node holds\n# TYPE {name} gauge\n");
    for node in nodes {
        for condition in &node.status.conditions {
            let labels = [
                ("node", node.name()),
                ("site", node.spec.site.as_str()),
                ("condition", &condition.r#type),
                ("reason", &condition.reason),
            ]
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
            let holds = u8::from(condition.status == ConditionStatus::True);
            let _ = writeln!(out, "{name}{{{}}} {holds}", labels.join(","));
        }
    }
    out
}

fn labels(node: &Node, gpu: &GpuInfo) -> String {
    let all = [
        ("node", node.name()),
        ("site", node.spec.site.as_str()),
        ("uuid", &gpu.uuid),
        ("index", &gpu.index.to_string()),
        ("model", &gpu.model),
    ]
    .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
    all.join(",")
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Adds them.
pub(super) fn add(mut book: Book) -> Book {
    let (info, usage, figures) = (book.schema::<GpuInfo>(), book.schema::<GpuUsage>(), reference("Usage"));
    let replicas = book.schema::<ReplicaStatus>();
    let list = |item: Value| {
        json!({"type": "object", "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "items": {"type": "array", "items": {"type": "object", "properties": item}},
        }})
    };
    let page = |summary: &str| {
        Page::new(summary).query("labelSelector", "string", "Such as site=hz-01,gpu; also by name").query(
            "site",
            "string",
            "Only nodes of this site",
        )
    };
    let nodes = page("How nodes do now").answer(200, "The nodes", JSON, list(json!({"usage": figures})));
    let gpus = page("How GPUs do now").answer(200, "The GPUs", JSON, list(json!({"gpu": info, "usage": usage})));
    let apps = page("How workloads do now, and what they tell of themselves").answer(
        200,
        "The workloads",
        JSON,
        list(
            json!({"app": {"type": "string"}, "metrics": {"type": "object", "additionalProperties": {"type": "number"}},
            "replicas": replicas}),
        ),
    );
    let may = Rule::May(Verb::List, Resource::Nodes);
    let text = json!({"type": "string"});
    let metrics = Page::new("Conditions, GPUs and workloads of the nodes, for Prometheus").answer(
        200,
        "Its text format",
        "text/plain",
        text,
    );
    book.on(Method::GET, "/api/v1/top/nodes", top_nodes, may, nodes)
        .on(Method::GET, "/api/v1/top/gpus", top_gpus, may, gpus)
        .on(Method::GET, "/api/v1/top/apps", top_apps, may, apps)
        .on(Method::GET, "/metrics", self::metrics, may, metrics)
}

#[cfg(test)]
#[path = "top_tests.rs"]
mod tests;
