use std::time::Duration;

use proto::{
    link::message::{AgentMessage, Heartbeat, Report},
    object::{GpuInventory, GpuProcess, ReplicaStatus, UpdatePhase, Usage},
};
use reqwest::StatusCode;

use super::*;
use crate::{
    access::Role,
    api::tests::Served,
    hub::fixture::{Fixture, hello},
};

fn inventory() -> GpuInventory {
    let gpu = |index: u32, problem: &str| GpuInfo {
        uuid: format!("GPU-{index}"),
        index,
        model: "NVIDIA \"L4\"".into(),
        memory_bytes: 24 << 30,
        problem: problem.into(),
        apps: vec!["line-watch".parse().unwrap()],
    };
    GpuInventory {
        driver_version: "550.54.15".into(),
        cuda_version: "12.4".into(),
        devices: vec![gpu(0, ""), gpu(1, "GpuLost")],
    }
}

fn usage() -> Usage {
    let process = GpuProcess { pid: 7, memory_bytes: Some(2 << 30), app: Some("line-watch".parse().unwrap()) };
    let gpu = GpuUsage {
        uuid: "GPU-0".into(),
        utilization_percent: Some(71),
        memory_used_bytes: Some(2 << 30),
        power_mw: Some(61_200),
        processes: vec![process],
        ..GpuUsage::default()
    };
    let metrics = [("frames_per_second".parse().unwrap(), 24.5)].into();
    let metrics = [("line-watch".parse().unwrap(), metrics)].into();
    Usage { uptime_s: 77, gpus: vec![gpu], metrics, ..Usage::default() }
}

/// A hub with a node that told of its GPUs, and one that has none.
async fn served() -> (Served, impl Sized) {
    let fixture = Fixture::start().await;
    let hub = fixture.hub.clone();
    let (with, without) = (fixture.member("with").await, fixture.member("without").await);
    let watch = WorkloadStatus::new(None, UpdatePhase::Succeeded, jiff::Timestamp::UNIX_EPOCH);
    let replicas = ReplicaStatus {
        current_replicas: 2,
        ready_replicas: 1,
        desired_replicas: 3,
        min_replicas: 1,
        max_replicas: 4,
        message: "3 of 1..4: backlog 250 / 100 per replica".into(),
    };
    let watch = WorkloadStatus { replicas: Some(replicas), ..watch };
    let report = Report { workloads: [("line-watch".parse().unwrap(), watch)].into(), ..Report::default() };
    let mut session = with.session(&hub, report).await;
    let other = without.session(&hub, Report::default()).await;
    let mut info = hello(&hub, Report::default()).info;
    info.nvidia = Some(inventory());
    session.say(&AgentMessage::Info(Box::new(info))).await;
    let clock = hub.env().wall.now();
    session.say(&AgentMessage::Heartbeat(Box::new(Heartbeat { usage: usage(), clock }))).await;
    let served = Served::of(fixture, |sink| sink);
    let told = async {
        while get(&served, "top/gpus").await["items"][0]["usage"].is_null() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told).await.unwrap();
    (served, (session, other))
}

async fn get(served: &Served, path: &str) -> Value {
    let (code, answer) = served.raw(Method::GET, &format!("/api/v1/{path}"), "").await;
    assert_eq!(code, StatusCode::OK, "{answer}");
    answer
}

#[tokio::test]
async fn gpus_that_change_while_a_node_is_up_are_shown_with_their_figures() {
    let (served, _sessions) = served().await;
    let gpus = get(&served, "top/gpus").await;
    let rows = gpus["items"].as_array().unwrap();
    assert_eq!((gpus["kind"].as_str(), rows.len()), (Some("GpuMetricsList"), 2));
    assert_eq!((&rows[0]["node"], &rows[0]["driverVersion"]), (&json!("with"), &json!("550.54.15")));
    assert_eq!(rows[0]["usage"]["utilizationPercent"], json!(71));
    assert_eq!((&rows[1]["gpu"]["problem"], &rows[1]["usage"]), (&json!("GpuLost"), &Value::Null));
    let nodes = get(&served, "top/nodes").await;
    let rows = nodes["items"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["gpus"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 0]);
    assert_eq!(rows[0]["usage"]["uptimeS"], json!(77));
    let apps = get(&served, "top/apps").await;
    assert_eq!(apps["items"].as_array().unwrap().len(), 1);
    assert_eq!(apps["items"][0]["metrics"]["frames_per_second"], json!(24.5));
    assert_eq!(apps["items"][0]["replicas"]["desiredReplicas"], json!(3));
    for (query, found) in
        [("?labelSelector=name%3Dwith", 1), ("?site=nowhere", 0), ("?labelSelector=name%3Dwithout", 1)]
    {
        let nodes = get(&served, &format!("top/nodes{query}")).await;
        assert_eq!(nodes["items"].as_array().unwrap().len(), found, "{query}");
    }
    let (code, _) = served.raw(Method::GET, "/api/v1/top/nodes?labels=x", "").await;
    assert_eq!(code, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn prometheus_reads_them_and_who_is_bound_elsewhere_sees_none() {
    let (served, _sessions) = served().await;
    let read = async |token: &str| {
        let request = served.http.get(format!("{}/metrics", served.url)).bearer_auth(token);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.text().await.unwrap()
    };
    let text = read(&served.token).await;
    let labels = |index: u32| format!(r#"uuid="GPU-{index}",index="{index}",model="NVIDIA \"L4\"""#);
    for line in [
        format!("{},reason=\"\"}} 1\n", labels(0)),
        format!("{},reason=\"GpuLost\"}} 0\n", labels(1)),
        "# TYPE crossdock_gpu_utilization_ratio gauge\ncrossdock_gpu_utilization_ratio{node=\"with\"".into(),
        format!("{}}} 0.71\n", labels(0)),
        format!("{}}} 61.2\n", labels(0)),
        "condition=\"Ready\",reason=\"Connected\"} 1\n".into(),
        "app=\"line-watch\",name=\"frames_per_second\"} 24.5\n".into(),
        "# TYPE crossdock_workload_replicas_current gauge\ncrossdock_workload_replicas_current{node=\"with\"".into(),
        "app=\"line-watch\"} 2\n".into(),
    ] {
        assert!(text.contains(&line), "{line} is not in {text}");
    }
    assert!(text.lines().all(|line| line.starts_with('#') || line.starts_with("crossdock_")));
    let elsewhere = served.user("elsewhere", Role::Viewer, &["nowhere"], &[]).await;
    let text = read(&elsewhere.token).await;
    assert!(!text.contains("GPU-0") && !text.contains("frames_per_second"));
}
