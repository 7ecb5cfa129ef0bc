//! `crossdock top nodes | gpus | apps`: how they do at this moment, as the hub holds it in memory.

use jiff::Timestamp;
use proto::{
    name::Name,
    object::{GpuInfo, GpuUsage, ReplicaStatus, Usage},
    selector::Selector,
};
use reqwest::Method;
use serde_json::Value;

use super::{
    Context,
    get::now,
    kinds::{ago, text},
    output::{self, Format},
};

/// `crossdock top`.
#[derive(Debug, clap::Subcommand)]
pub enum TopCommand {
    /// Processor, memory and disk of nodes
    #[command(visible_alias = "node")]
    Nodes(TopArgs),
    /// GPUs of nodes: load, memory, heat, power, what is wrong and which app has which
    #[command(visible_alias = "gpu")]
    Gpus(TopArgs),
    /// Workloads of nodes: what runs, and what it tells of itself, such as frames a second
    #[command(visible_alias = "app")]
    Apps(TopArgs),
}

/// Of which nodes.
#[derive(Debug, clap::Args)]
pub struct TopArgs {
    /// Name of a node. Default: all
    node: Option<Name>,
    /// Label selector, such as site=hz-01,line
    #[arg(short = 'l', long)]
    selector: Option<Selector>,
    /// Only nodes of this site
    #[arg(long)]
    site: Option<Name>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// One table of it.
struct Table {
    /// What it is about, as in the path.
    what: &'static str,
    heads: &'static [&'static str],
    /// Columns from here on only with `-o wide`.
    wide_from: usize,
    /// Of an item, where its name is found, and its cells.
    name: &'static str,
    cells: fn(&Value, Timestamp) -> Vec<String>,
}

const NODES: Table = Table {
    what: "nodes",
    heads: &["NAME", "SITE", "STATUS", "CPU", "MEMORY", "DISK FREE", "GPUS", "LOAD", "TEMP", "LAST SEEN"],
    wide_from: 7,
    name: "/name",
    cells: node,
};

const GPUS: Table = Table {
    what: "gpus",
    heads: &[
        "NODE",
        "SITE",
        "GPU",
        "MODEL",
        "STATUS",
        "UTIL",
        "MEMORY",
        "TEMP",
        "POWER",
        "APPS",
        "UUID",
        "DRIVER",
        "CUDA",
        "ECC",
        "XID",
        "THROTTLE",
        "LAST SEEN",
    ],
    wide_from: 10,
    name: "/node",
    cells: gpu,
};

const APPS: Table = Table {
    what: "apps",
    heads: &["NODE", "SITE", "APP", "VERSION", "STATE", "REPLICAS", "METRICS", "RESTARTS", "LAST SEEN", "SCALING"],
    wide_from: 7,
    name: "/node",
    cells: app,
};

/// Runs the command.
///
/// # Errors
/// When the hub cannot be asked.
pub async fn run(command: TopCommand, context: &Context) -> anyhow::Result<()> {
    let (table, args) = match command {
        TopCommand::Nodes(args) => (NODES, args),
        TopCommand::Gpus(args) => (GPUS, args),
        TopCommand::Apps(args) => (APPS, args),
    };
    let client = context.client()?;
    let mut request = client.request(Method::GET, &format!("top/{}", table.what));
    if let Some(selector) = &args.selector {
        request = request.query(&[("labelSelector", selector.to_string())]);
    }
    if let Some(site) = &args.site {
        request = request.query(&[("site", site.as_str())]);
    }
    let mut listed: Value = client.send(&format!("look at {}", table.what), request).await?.json().await?;
    let items = listed.get_mut("items").and_then(Value::as_array_mut);
    if let (Some(name), Some(items)) = (&args.node, items) {
        items.retain(|item| text(item, table.name) == name.as_str());
    }
    let items = listed.get("items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    match args.output {
        Format::Json | Format::Yaml => output::structured(args.output, &listed),
        Format::Name => {
            let names = items.iter().map(|item| format!("{}/{}\n", table.what, named(&table, item)));
            names.for_each(|name| output::print(&name));
            Ok(())
        }
        Format::Table | Format::Wide if items.is_empty() => {
            eprintln!("No {} found.", table.what);
            Ok(())
        }
        Format::Table | Format::Wide => {
            output::print(&rows(&table, items, args.output == Format::Wide, now()));
            Ok(())
        }
    }
}

fn named(table: &Table, item: &Value) -> String {
    let (uuid, app) = (text(item, "/gpu/uuid"), text(item, "/app"));
    match (uuid.is_empty(), app.is_empty()) {
        (false, _) => uuid,
        (true, false) => format!("{}/{app}", text(item, table.name)),
        (true, true) => text(item, table.name),
    }
}

fn rows(table: &Table, items: &[Value], wide: bool, now: Timestamp) -> String {
    let mut rows = vec![table.heads.iter().map(|head| (*head).to_owned()).collect::<Vec<_>>()];
    rows.extend(items.iter().map(|item| (table.cells)(item, now)));
    if !wide {
        rows.iter_mut().for_each(|row| row.truncate(table.wide_from));
    }
    output::align(&rows)
}

fn node(item: &Value, now: Timestamp) -> Vec<String> {
    let usage: Option<Usage> = item.get("usage").and_then(|usage| serde_json::from_value(usage.clone()).ok());
    let of = |cell: fn(&Usage) -> String| usage.as_ref().map_or_else(none, cell);
    let memory = usage.as_ref().zip(item.get("memoryBytes").and_then(Value::as_u64));
    let memory = memory.map(|(usage, total)| of_total(Some(usage.memory_used_bytes), total));
    vec![
        text(item, "/name"),
        text(item, "/site"),
        text(item, "/phase"),
        of(|usage| format!("{}%", usage.cpu_permille.div_ceil(10))),
        memory.unwrap_or_else(none),
        of(|usage| usage.disks.first().map_or_else(none, |disk| size(disk.free_bytes))),
        text(item, "/gpus"),
        of(|usage| format!("{}.{:02}", usage.load1_centi / 100, usage.load1_centi % 100)),
        of(|usage| usage.temperature_milli_c.map_or_else(none, |t| format!("{}C", t / 1000))),
        or_none(ago(item, "/lastSeen", now)),
    ]
}

fn gpu(item: &Value, now: Timestamp) -> Vec<String> {
    let read = |key: &str| item.get(key).cloned().unwrap_or_default();
    let gpu: GpuInfo = serde_json::from_value(read("gpu")).unwrap_or_default();
    let usage: GpuUsage = serde_json::from_value(read("usage")).unwrap_or_default();
    let shown = |figure: Option<u32>, unit: &str| figure.map_or_else(none, |figure| format!("{figure}{unit}"));
    let watts = |mw: u32| mw.div_ceil(1000).to_string();
    let power = usage.power_mw.map(|mw| match usage.power_limit_mw {
        Some(limit) => format!("{}/{}W", watts(mw), watts(limit)),
        None => format!("{}W", watts(mw)),
    });
    let ecc = usage.ecc_corrected.zip(usage.ecc_uncorrected).map(|(mended, lost)| format!("{mended}/{lost}"));
    let apps: Vec<&str> = gpu.apps.iter().map(Name::as_str).collect();
    vec![
        text(item, "/node"),
        text(item, "/site"),
        gpu.index.to_string(),
        gpu.model.clone(),
        if gpu.problem.is_empty() { "Ok".into() } else { gpu.problem.clone() },
        shown(usage.utilization_percent, "%"),
        of_total(usage.memory_used_bytes, gpu.memory_bytes),
        shown(usage.temperature_c, "C"),
        power.unwrap_or_else(none),
        or_none(apps.join(",")),
        gpu.uuid.clone(),
        or_none(text(item, "/driverVersion")),
        or_none(text(item, "/cudaVersion")),
        ecc.unwrap_or_else(none),
        usage.last_xid.map_or_else(none, |xid| xid.to_string()),
        or_none(usage.throttle.join(",")),
        or_none(ago(item, "/lastSeen", now)),
    ]
}

fn app(item: &Value, now: Timestamp) -> Vec<String> {
    let told = item.get("metrics").and_then(Value::as_object).into_iter().flatten();
    let told = told.filter_map(|(name, value)| Some(format!("{name}={}", figure(value.as_f64()?))));
    let state = match (text(item, "/state"), item.get("ready").and_then(Value::as_bool)) {
        (state, Some(false)) if state == "Running" => "NotReady".into(),
        (state, _) => or_none(state),
    };
    vec![
        text(item, "/node"),
        text(item, "/site"),
        text(item, "/app"),
        or_none(text(item, "/version")),
        state,
        or_none(replicas(item)),
        or_none(told.collect::<Vec<_>>().join(" ")),
        or_none(text(item, "/restarts")),
        or_none(ago(item, "/lastSeen", now)),
        or_none(text(item, "/replicas/message")),
    ]
}

/// How many instances are ready, of how many that are to run: `2/3`. Empty for an app with one.
fn replicas(item: &Value) -> String {
    let status: Option<ReplicaStatus> = item.get("replicas").and_then(|r| serde_json::from_value(r.clone()).ok());
    status.map(|replicas| format!("{}/{}", replicas.ready_replicas, replicas.desired_replicas)).unwrap_or_default()
}

/// A number as people read it: `24.93`, `0.041`, `1200`.
pub(in crate::cli) fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        0.0..1.0 => 4,
        1.0..100.0 => 2,
        100.0..10_000.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn none() -> String {
    "-".into()
}

fn or_none(text: String) -> String {
    if text.is_empty() { none() } else { text }
}

fn of_total(used: Option<u64>, total: u64) -> String {
    format!("{}/{}", used.map_or_else(none, size), size(total))
}

/// Bytes as Kubernetes writes them: `512Mi`, `23.5Gi`.
fn size(bytes: u64) -> String {
    match bytes >> 20 {
        mib @ 0..1024 => format!("{mib}Mi"),
        mib => format!("{}.{}Gi", mib / 1024, mib % 1024 * 10 / 1024),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_nobody_told_is_a_dash_and_wide_shows_more() {
        let now = "2026-03-01T00:00:10Z".parse().unwrap();
        let well = json!({"node": "box-1", "site": "hz-01", "lastSeen": "2026-03-01T00:00:05Z",
            "driverVersion": "550.54.15", "cudaVersion": "12.4",
            "gpu": {"uuid": "GPU-a", "index": 0, "model": "NVIDIA L4", "memoryBytes": 24_u64 << 30, "apps": ["vision"]},
            "usage": {"uuid": "GPU-a", "utilizationPercent": 71, "memoryUsedBytes": 5_u64 << 29, "temperatureC": 64,
                "powerMw": 61_200, "powerLimitMw": 72_000, "eccCorrected": 2, "eccUncorrected": 0}});
        let lost = json!({"node": "box-1", "site": "hz-01", "driverVersion": "", "usage": null,
            "gpu": {"uuid": "GPU-b", "index": 1, "model": "NVIDIA L4", "memoryBytes": 24_u64 << 30,
                "problem": "GpuLost"}});
        let items = [well, lost];
        let expected = "NODE    SITE    GPU   MODEL       STATUS    UTIL   MEMORY         TEMP   POWER    APPS\n\
                        box-1   hz-01   0     NVIDIA L4   Ok        71%    2.5Gi/24.0Gi   64C    62/72W   vision\n\
                        box-1   hz-01   1     NVIDIA L4   GpuLost   -      -/24.0Gi       -      -        -\n";
        assert_eq!(rows(&GPUS, &items, false, now), expected);
        assert!(rows(&GPUS, &items, true, now).contains("GPU-a   550.54.15   12.4   2/0"));
        let node = json!({"name": "box-1", "site": "hz-01", "phase": "Ready", "gpus": 2, "memoryBytes": 8_u64 << 30,
            "usage": {"uptimeS": 1, "cpuPermille": 125, "memoryUsedBytes": 1_u64 << 30, "load1Centi": 75}});
        let expected = "NAME    SITE    STATUS   CPU   MEMORY        DISK FREE   GPUS\n\
                        box-1   hz-01   Ready    13%   1.0Gi/8.0Gi   -           2\n";
        assert_eq!(rows(&NODES, &[node], false, now), expected);
        let vision = json!({"node": "box-1", "site": "hz-01", "app": "vision", "version": "1.2.0", "state": "Running",
            "ready": true, "restarts": 0, "metrics": {"frames_per_second": 24.93, "queue_length": 3.0}});
        let several = json!({"node": "box-1", "site": "hz-01", "app": "sort", "version": "2.0.0", "state": "Running",
            "ready": true, "replicas": {"currentReplicas": 3, "readyReplicas": 2, "desiredReplicas": 3, "minReplicas": 1,
                "maxReplicas": 4, "message": "3 of 1..4: backlog 250 / 100 per replica"}});
        let silent = json!({"node": "box-1", "site": "hz-01", "app": "web", "version": null, "state": null});
        let expected = "NODE    SITE    APP      VERSION   STATE     REPLICAS   METRICS\n\
                        box-1   hz-01   vision   1.2.0     Running   -          frames_per_second=24.93 queue_length=3\n\
                        box-1   hz-01   sort     2.0.0     Running   2/3        -\n\
                        box-1   hz-01   web      -         -         -          -\n";
        let items = [vision, several, silent];
        assert_eq!(rows(&APPS, &items, false, now), expected);
        assert!(rows(&APPS, &items, true, now).contains("3 of 1..4: backlog 250 / 100 per replica\n"));
    }

    #[test]
    fn numbers_are_short() {
        for (value, shown) in [(24.934, "24.93"), (0.041, "0.041"), (0.0, "0"), (1200.0, "1200"), (-3.5, "-3.5")] {
            assert_eq!(figure(value), shown);
        }
        assert_eq!(figure(1e15), "1000000000000000");
    }
}
