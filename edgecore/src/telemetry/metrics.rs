//! Stream `metrics`: one record for the node, one for each GPU and one for each workload, every `metrics-interval`.
//!
//! A record is one JSON object. Names and units are those of OpenTelemetry's semantic conventions, flat; those
//! of containers stand for a workload, all of its processes together. What the box does not tell is absent.
//!
//! | field | unit | of the node: `"kind":"node"` |
//! |---|---|---|
//! | `time` | RFC 3339 | when it was measured, by the node's clock |
//! | `service.version` | | version of the agent |
//! | `system.uptime` | s | since boot |
//! | `system.cpu.utilization` | 0 to 1 | busy share of all cores since the record before |
//! | `system.cpu.load_average.1m` | | load over a minute |
//! | `system.memory.usage`, `system.memory.limit` | bytes | in use (total less available), total |
//! | `system.filesystem.usage`, `system.filesystem.limit` | bytes | of the disk with the agent's state |
//! | `hw.temperature` | degrees Celsius | the hottest zone |
//! | `crossdock.carrier.in_use` | | `udp` or `mqtt`, where the link has several carriers |
//! | `crossdock.carrier.udp.reachable`, `crossdock.carrier.mqtt.reachable` | | whether the hub was reached over it |
//!
//! | field | unit | of a workload: `"kind":"workload"` |
//! |---|---|---|
//! | `time` | RFC 3339 | as above |
//! | `service.name`, `service.version` | | app and version that runs |
//! | `crossdock.workload.state`, `crossdock.workload.ready` | | as in the node's report |
//! | `k8s.container.restart.count` | | restarts since the release was started |
//! | `container.uptime` | s | since the current process started |
//! | `container.cpu.time` | s | processor time since then, a counter |
//! | `container.memory.usage` | bytes | in use |
//!
//! | field | unit | of a GPU that answers: `"kind":"gpu"` |
//! |---|---|---|
//! | `time` | RFC 3339 | as above |
//! | `hw.id` | | its uuid |
//! | `hw.gpu.utilization` | 0 to 1 | share of the sample period in which a kernel ran |
//! | `hw.gpu.memory.usage`, `hw.gpu.memory.free` | bytes | in use, free |
//! | `hw.temperature` | degrees Celsius | of the die |
//! | `hw.power`, `hw.power.limit` | W | drawn, and what it may draw |
//! | `hw.errors.corrected`, `hw.errors.uncorrected` | | ECC errors since the driver was loaded |
//! | `crossdock.gpu.xid` | | the last Xid since the agent looks |
//!
//! The class `metrics` sheds its oldest when the disk's share is used up. What cannot be taken at all is left
//! out: the next record comes soon.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use proto::{
    name::{Name, Version},
    object::{CarrierStatus, GpuUsage, RunState, Running, Usage, WorkloadStatus},
};
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::Teller;
use crate::{
    driver::{InstanceUsage, side},
    facts::CpuSample,
};

/// The stream.
pub(crate) const STREAM: &str = "metrics";

#[derive(Debug, Serialize)]
struct NodeMetrics {
    time: Timestamp,
    kind: &'static str,
    #[serde(rename = "service.version")]
    agent_version: &'static str,
    #[serde(rename = "system.uptime")]
    uptime_s: u64,
    #[serde(rename = "system.cpu.utilization")]
    cpu: f64,
    #[serde(rename = "system.cpu.load_average.1m")]
    load: f64,
    #[serde(rename = "system.memory.usage")]
    memory_used_bytes: u64,
    #[serde(rename = "system.memory.limit")]
    memory_bytes: u64,
    #[serde(rename = "system.filesystem.usage", skip_serializing_if = "Option::is_none")]
    disk_used_bytes: Option<u64>,
    #[serde(rename = "system.filesystem.limit", skip_serializing_if = "Option::is_none")]
    disk_bytes: Option<u64>,
    #[serde(rename = "hw.temperature", skip_serializing_if = "Option::is_none")]
    temperature_c: Option<f64>,
    #[serde(rename = "crossdock.carrier.in_use", skip_serializing_if = "Option::is_none")]
    carrier: Option<String>,
    #[serde(rename = "crossdock.carrier.udp.reachable", skip_serializing_if = "Option::is_none")]
    udp: Option<bool>,
    #[serde(rename = "crossdock.carrier.mqtt.reachable", skip_serializing_if = "Option::is_none")]
    mqtt: Option<bool>,
}

impl NodeMetrics {
    fn new(time: Timestamp, usage: &Usage, memory_bytes: u64, carriers: &[CarrierStatus]) -> NodeMetrics {
        let disk = usage.disks.first();
        let reachable = |name| carriers.iter().find(|c| c.name == name).map(|c| c.reachable);
        NodeMetrics {
            time,
            kind: "node",
            agent_version: proto::VERSION,
            uptime_s: usage.uptime_s,
            cpu: f64::from(usage.cpu_permille) / 1000.0,
            load: f64::from(usage.load1_centi) / 100.0,
            memory_used_bytes: usage.memory_used_bytes,
            memory_bytes,
            disk_used_bytes: disk.map(|d| d.total_bytes.saturating_sub(d.free_bytes)),
            disk_bytes: disk.map(|d| d.total_bytes),
            temperature_c: usage.temperature_milli_c.map(|t| f64::from(t) / 1000.0),
            carrier: carriers.iter().find(|c| c.in_use).map(|c| c.name.clone()),
            udp: reachable("udp"),
            mqtt: reachable("mqtt"),
        }
    }
}

#[derive(Debug, Serialize)]
struct GpuMetrics<'a> {
    time: Timestamp,
    kind: &'static str,
    #[serde(rename = "hw.id")]
    uuid: &'a str,
    #[serde(rename = "hw.gpu.utilization", skip_serializing_if = "Option::is_none")]
    utilization: Option<f64>,
    #[serde(rename = "hw.gpu.memory.usage", skip_serializing_if = "Option::is_none")]
    memory_used_bytes: Option<u64>,
    #[serde(rename = "hw.gpu.memory.free", skip_serializing_if = "Option::is_none")]
    memory_free_bytes: Option<u64>,
    #[serde(rename = "hw.temperature", skip_serializing_if = "Option::is_none")]
    temperature_c: Option<u32>,
    #[serde(rename = "hw.power", skip_serializing_if = "Option::is_none")]
    power_w: Option<f64>,
    #[serde(rename = "hw.power.limit", skip_serializing_if = "Option::is_none")]
    power_limit_w: Option<f64>,
    #[serde(rename = "hw.errors.corrected", skip_serializing_if = "Option::is_none")]
    ecc_corrected: Option<u64>,
    #[serde(rename = "hw.errors.uncorrected", skip_serializing_if = "Option::is_none")]
    ecc_uncorrected: Option<u64>,
    #[serde(rename = "crossdock.gpu.xid", skip_serializing_if = "Option::is_none")]
    last_xid: Option<u64>,
}

impl<'a> GpuMetrics<'a> {
    fn new(time: Timestamp, gpu: &'a GpuUsage) -> GpuMetrics<'a> {
        let watts = |mw: u32| f64::from(mw) / 1000.0;
        GpuMetrics {
            time,
            kind: "gpu",
            uuid: &gpu.uuid,
            utilization: gpu.utilization_percent.map(|percent| f64::from(percent) / 100.0),
            memory_used_bytes: gpu.memory_used_bytes,
            memory_free_bytes: gpu.memory_free_bytes,
            temperature_c: gpu.temperature_c,
            power_w: gpu.power_mw.map(watts),
            power_limit_w: gpu.power_limit_mw.map(watts),
            ecc_corrected: gpu.ecc_corrected,
            ecc_uncorrected: gpu.ecc_uncorrected,
            last_xid: gpu.last_xid,
        }
    }
}

#[derive(Debug, Serialize)]
struct WorkloadMetrics<'a> {
    time: Timestamp,
    kind: &'static str,
    #[serde(rename = "service.name")]
    app: &'a Name,
    #[serde(rename = "service.version")]
    version: &'a Version,
    #[serde(rename = "crossdock.workload.state")]
    state: RunState,
    #[serde(rename = "crossdock.workload.ready")]
    ready: bool,
    #[serde(rename = "k8s.container.restart.count")]
    restarts: u32,
    #[serde(rename = "container.uptime", skip_serializing_if = "Option::is_none")]
    uptime_s: Option<i64>,
    #[serde(rename = "container.cpu.time", skip_serializing_if = "Option::is_none")]
    cpu_s: Option<f64>,
    #[serde(rename = "container.memory.usage", skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
}

impl<'a> WorkloadMetrics<'a> {
    fn new(time: Timestamp, app: &'a Name, running: &'a Running, used: InstanceUsage) -> WorkloadMetrics<'a> {
        WorkloadMetrics {
            time,
            kind: "workload",
            app,
            version: &running.release.version,
            state: running.state,
            ready: running.ready,
            restarts: running.restarts,
            uptime_s: running.started_at.map(|at| time.duration_since(at).as_secs().max(0)),
            cpu_s: used.cpu.map(|cpu| cpu.as_millis() as f64 / 1000.0),
            memory_bytes: used.memory_bytes,
        }
    }
}

/// Measures and hands in, until it is dropped.
pub(crate) async fn run(teller: Teller, stream: Name, every: Duration) {
    let mut cpu = teller.facts.sample();
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let records = measure(&teller, &mut cpu).await;
        if let Err(error) = teller.outbox.append(&stream, records).await {
            tracing::debug!(%error, "metrics are left out");
        }
    }
}

async fn measure(teller: &Teller, cpu: &mut CpuSample) -> Vec<Bytes> {
    let time = teller.env.wall.now();
    let usage = teller.facts.usage_since(cpu);
    let (running, carriers): (Vec<(Name, Running, u8)>, Vec<CarrierStatus>) = {
        let board = teller.board.borrow();
        let replicas =
            |w: &WorkloadStatus| w.replicas.as_ref().map_or(1, |r| u8::try_from(r.max_replicas).unwrap_or(1));
        let running =
            board.workloads.iter().filter_map(|(app, w)| Some((app.clone(), w.running.clone()?, replicas(w))));
        (running.collect(), board.carriers.clone())
    };
    let mut records = vec![json(&NodeMetrics::new(time, &usage, teller.facts.memory_bytes(), &carriers))];
    records.extend(usage.gpus.iter().map(|gpu| json(&GpuMetrics::new(time, gpu))));
    for (app, running, replicas) in &running {
        let used = side::usage(&*teller.driver, app, *replicas).await.unwrap_or_default();
        records.push(json(&WorkloadMetrics::new(time, app, running, used)));
    }
    records
}

fn json(record: &impl Serialize) -> Bytes {
    serde_json::to_vec(record).unwrap_or_default().into() // text keys and finite numbers only: cannot fail
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use proto::{
        digest::Digest,
        env::{Blocking, Env},
        link::message::Report,
        object::{DiskUsage, NodeInfo, ReleaseRef, UpdatePhase, WorkloadStatus},
        stream::{Class, batch::Batch},
        watch,
    };
    use serde_json::{Value, json};
    use tokio::time::sleep;

    use super::*;
    use crate::{
        driver::process::ProcessDriver,
        facts::Facts,
        outbox::{Item, Outbox, OutboxConfig},
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_900_000_000 + second).unwrap()
    }

    fn running() -> Running {
        Running {
            release: ReleaseRef { version: "1.2.0".parse().unwrap(), digest: Digest::of(b"1") },
            state: RunState::Running,
            ready: true,
            restarts: 2,
            started_at: Some(at(-90)),
            last_exit: None,
        }
    }

    #[test]
    fn records_have_the_documented_form() {
        let disks = vec![DiskUsage { path: "/data".into(), total_bytes: 100, free_bytes: 30 }];
        let usage = Usage {
            uptime_s: 60,
            cpu_permille: 125,
            memory_used_bytes: 5,
            load1_centi: 75,
            disks,
            temperature_milli_c: Some(48_500),
            gpus: vec![],
            ..Usage::default()
        };
        let gpu = GpuUsage {
            uuid: "GPU-a".into(),
            utilization_percent: Some(71),
            power_mw: Some(61_200),
            ..GpuUsage::default()
        };
        let gpu = serde_json::to_value(GpuMetrics::new(at(0), &gpu)).unwrap();
        let expected = json!({"time": "2030-03-17T17:46:40Z", "kind": "gpu", "hw.id": "GPU-a",
            "hw.gpu.utilization": 0.71, "hw.power": 61.2});
        assert_eq!(gpu, expected);
        let node = serde_json::to_value(NodeMetrics::new(at(0), &usage, 9, &[])).unwrap();
        let expected = json!({
            "time": "2030-03-17T17:46:40Z", "kind": "node", "service.version": proto::VERSION, "system.uptime": 60,
            "system.cpu.utilization": 0.125, "system.cpu.load_average.1m": 0.75, "system.memory.usage": 5,
            "system.memory.limit": 9, "system.filesystem.usage": 70, "system.filesystem.limit": 100,
            "hw.temperature": 48.5,
        });
        assert_eq!(node, expected);
        let app = "shop".parse().unwrap();
        let used = InstanceUsage { cpu: Some(Duration::from_millis(1_250)), memory_bytes: None };
        let workload = serde_json::to_value(WorkloadMetrics::new(at(0), &app, &running(), used)).unwrap();
        let expected = json!({
            "time": "2030-03-17T17:46:40Z", "kind": "workload", "service.name": "shop", "service.version": "1.2.0",
            "crossdock.workload.state": "Running", "crossdock.workload.ready": true, "k8s.container.restart.count": 2,
            "container.uptime": 90, "container.cpu.time": 1.25,
        });
        assert_eq!(workload, expected);
    }

    async fn teller(folder: &Path, facts: Facts, report: Report) -> Teller {
        let env = Env { blocking: Blocking::Inline, ..Env::real().unwrap() };
        let streams = vec![("metrics".parse().unwrap(), Class::Metrics)];
        let config = OutboxConfig { quota_bytes: 2 << 20, disk_share_percent: 100, streams };
        let outbox = Outbox::open(&folder.join("outbox"), config, env.clone()).await.unwrap();
        let driver = Arc::new(ProcessDriver::new(folder.join("driver"), env.clone()));
        Teller { env, facts, driver, board: watch::channel(report).1, outbox }
    }

    #[tokio::test(start_paused = true)]
    async fn node_and_workloads_are_measured_every_interval() {
        let folder = tempfile::tempdir().unwrap();
        let status =
            WorkloadStatus { running: Some(running()), ..WorkloadStatus::new(None, UpdatePhase::Succeeded, at(0)) };
        let report = Report { workloads: [("shop".parse().unwrap(), status)].into(), ..Report::default() };
        let teller = teller(folder.path(), Facts::new(folder.path().to_owned()), report).await;
        let outbox = teller.outbox.clone();
        let telling = tokio::spawn(run(teller, STREAM.parse().unwrap(), Duration::from_secs(30)));
        sleep(Duration::from_secs(95)).await; // three intervals
        telling.abort();
        let held = outbox.held().pop().unwrap();
        assert_eq!(held.next, 6);
        let Some(Item::Batch { sealed, .. }) = outbox.read(&held.key, 0..6).await.unwrap() else { panic!() };
        assert!(sealed.len() < 800, "three intervals take {} bytes", sealed.len());
        let records = Batch::open(&sealed).unwrap().records;
        let values: Vec<Value> = records.iter().map(|r| serde_json::from_slice(&r.bytes).unwrap()).collect();
        for pair in values.chunks(2) {
            assert_eq!((&pair[0]["kind"], &pair[1]["kind"]), (&json!("node"), &json!("workload")));
            assert!(pair[0]["system.memory.usage"].as_u64() > Some(0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn fixed_facts_make_records_that_repeat() {
        let folder = tempfile::tempdir().unwrap();
        let info: NodeInfo = Facts::new(folder.path().to_owned()).info();
        let teller = teller(folder.path(), Facts::fixed(info), Report::default()).await;
        let mut cpu = teller.facts.sample();
        let first = measure(&teller, &mut cpu).await;
        let without_time = |bytes: &Bytes| {
            let mut value: Value = serde_json::from_slice(bytes).unwrap();
            value.as_object_mut().unwrap().remove("time");
            value
        };
        let second = measure(&teller, &mut cpu).await;
        assert_eq!(without_time(&first[0]), without_time(&second[0]));
    }
}
