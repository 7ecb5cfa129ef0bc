//! Golden messages of the link: one example of each, and what newer peers may send, which is skipped.
//!
//! `CROSSDOCK_WRITE_GOLDEN=1 cargo test -p proto --test link_golden` writes the examples anew: do that
//! only for a change of form that old peers understand. Files named `*-newer.json` are written by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // all of it is a test

use std::{fmt::Debug, fs, path::PathBuf};

use jiff::Timestamp;
use proto::{
    attestation::Attestation,
    digest::Digest,
    link::message::*,
    object::{
        AppOrder, Condition, ConditionStatus, DiskUsage, GpuInfo, GpuInventory, GpuProcess, GpuUsage, LastExit,
        MetricSummary, MetricsBefore, MetricsOrder, NodeAddress, NodeInfo, Progress, RebootStatus, ReleaseRef,
        ReplicaStatus, RunState, Running, UpdatePhase, Usage, WorkloadMetrics, WorkloadStatus,
    },
};
use serde::{Serialize, de::DeserializeOwned};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/link").join(name)
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    let text = fs::read_to_string(path(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The message is written as the golden file has it, and the golden file reads as the message.
fn golden<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, message: &T) {
    let text = serde_json::to_string_pretty(message).unwrap() + "\n";
    if std::env::var_os("CROSSDOCK_WRITE_GOLDEN").is_some() {
        fs::create_dir_all(path("")).unwrap();
        fs::write(path(name), &text).unwrap();
    }
    assert_eq!(fs::read_to_string(path(name)).unwrap_or_default(), text, "{name}");
    assert_eq!(&read::<T>(name), message, "{name}");
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(1_900_000_000 + second).unwrap()
}

fn release() -> ReleaseRef {
    ReleaseRef { version: "1.4.0".parse().unwrap(), digest: Digest::of(b"manifest") }
}

fn usage() -> Usage {
    Usage {
        uptime_s: 86_400,
        cpu_permille: 125,
        memory_used_bytes: 1 << 30,
        load1_centi: 75,
        disks: vec![DiskUsage { path: "/var/lib/crossdock".into(), total_bytes: 1 << 36, free_bytes: 1 << 35 }],
        temperature_milli_c: Some(48_500),
        gpus: vec![],
        metrics: Default::default(),
    }
}

fn report() -> Report {
    let status = WorkloadStatus {
        target: Some(release()),
        phase: UpdatePhase::Downloading,
        reason: "Fetching".into(),
        message: "2 of 3 files are here".into(),
        since: time(1),
        progress: Some(Progress { done_bytes: 10, total_bytes: 30 }),
        restarted: None,
        restart_failed: None,
        retried: None,
        running: Some(Running {
            release: ReleaseRef { version: "1.3.0".parse().unwrap(), digest: Digest::of(b"older") },
            state: RunState::Running,
            ready: true,
            restarts: 1,
            started_at: Some(time(-60)),
            last_exit: Some(LastExit { code: None, signal: Some(11), at: time(-61), message: "core dumped".into() }),
        }),
        replicas: None,
        metrics: None,
    };
    Report {
        observed_generation: 4,
        conditions: vec![Condition {
            r#type: "DiskPressure".into(),
            status: ConditionStatus::False,
            reason: "Enough".into(),
            message: String::new(),
            last_transition_time: time(0),
        }],
        workloads: [("scan-uploader".parse().unwrap(), status)].into(),
        ..Report::default()
    }
}

fn info() -> NodeInfo {
    NodeInfo {
        agent_version: "0.1.0".into(),
        boot_id: "3f1c".into(),
        architecture: "x86_64".into(),
        os_image: "Debian GNU/Linux 12".into(),
        kernel: "6.1.0".into(),
        cpus: 4,
        memory_bytes: 8 << 30,
        hostname: "box-hz-1".into(),
        addresses: vec![NodeAddress { interface: "eth0".into(), address: "10.1.2.3".into() }],
        hardware: vec!["x86_64".into()],
        nvidia: None,
        features: Default::default(),
        sealing_key: None,
    }
}

#[test]
fn agent_messages() {
    let hello =
        Hello { info: info(), report: report(), usage: usage(), clock: time(2), tells_events: true, director: None };
    golden("agent-hello.json", &AgentMessage::Hello(Box::new(hello.clone())));
    let have = MetadataRequest { root: 1, timestamp: 7, snapshot: 7, targets: 7 };
    let director = Some(DirectorRequest { nonce: "b2f1c0".into(), have });
    golden("agent-hello-director.json", &AgentMessage::Hello(Box::new(Hello { director, ..hello.clone() })));
    // An agent that has a sealing key says so; those before it say nothing, as in the files above.
    let sealing_key = Some("age18nkfdkrlfydkj9hpujmj5wcdvkmf8n9epjxt78d8fx73m6n8ky7qe9fykk".into());
    let sealing = Hello { info: NodeInfo { sealing_key, ..info() }, ..hello };
    golden("agent-hello-sealing.json", &AgentMessage::Hello(Box::new(sealing)));
    golden("agent-report.json", &AgentMessage::Report(Box::new(report())));
    golden("agent-heartbeat.json", &AgentMessage::Heartbeat(Box::new(Heartbeat { usage: usage(), clock: time(3) })));
    let inventory = GpuInventory {
        driver_version: "550.54.15".into(),
        cuda_version: "12.4".into(),
        devices: vec![
            GpuInfo {
                uuid: "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6".into(),
                index: 0,
                model: "NVIDIA L4".into(),
                memory_bytes: 23_034 << 20,
                problem: String::new(),
                apps: vec!["line-watch".parse().unwrap()],
            },
            GpuInfo { uuid: "GPU-def".into(), index: 1, problem: "GpuLost".into(), ..GpuInfo::default() },
        ],
    };
    let with_gpus = NodeInfo { nvidia: Some(inventory), ..info() };
    golden("agent-info-gpus.json", &AgentMessage::Info(Box::new(with_gpus)));
    let gpu = GpuUsage {
        uuid: "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6".into(),
        utilization_percent: Some(71),
        memory_used_bytes: Some(20 << 30),
        memory_free_bytes: Some(2 << 30),
        temperature_c: Some(64),
        slowdown_c: Some(89),
        power_mw: Some(61_200),
        power_limit_mw: Some(72_000),
        ecc_corrected: Some(2),
        ecc_uncorrected: Some(0),
        throttle: vec!["SW_POWER_CAP".into()],
        last_xid: Some(31),
        processes: vec![GpuProcess {
            pid: 4711,
            memory_bytes: Some(19 << 30),
            app: Some("line-watch".parse().unwrap()),
        }],
    };
    let beat = Heartbeat { usage: Usage { gpus: vec![gpu], ..usage() }, clock: time(3) };
    golden("agent-heartbeat-gpus.json", &AgentMessage::Heartbeat(Box::new(beat)));
    let metrics = [("frames_per_second", 24.9), ("queue_length", 3.0)];
    let metrics = metrics.map(|(name, value)| (name.parse().unwrap(), value)).into();
    let told = Usage { metrics: [("line-watch".parse().unwrap(), metrics)].into(), ..usage() };
    let beat = Heartbeat { usage: told, clock: time(3) };
    golden("agent-heartbeat-metrics.json", &AgentMessage::Heartbeat(Box::new(beat)));
    let mut judged = report();
    let frames = |samples, mean| [("frames_per_second".parse().unwrap(), MetricSummary { samples, mean })].into();
    for status in judged.workloads.values_mut() {
        let before = MetricsBefore { release: release(), metrics: frames(600, 24.8) };
        let told = WorkloadMetrics { digest: Digest::of(b"older"), now: frames(30, 7.9), before: Some(before) };
        status.metrics = Some(told);
    }
    golden("agent-report-metrics.json", &AgentMessage::Report(Box::new(judged)));
    let mut several = report();
    for status in several.workloads.values_mut() {
        status.replicas = Some(ReplicaStatus {
            current_replicas: 2,
            ready_replicas: 2,
            desired_replicas: 3,
            min_replicas: 1,
            max_replicas: 4,
            message: "3 of 1..4: backlog 250 / 100 per replica; replica 2 does not run: exit code 1".into(),
        });
    }
    golden("agent-report-replicas.json", &AgentMessage::Report(Box::new(several)));
    let mut restarted = report();
    for status in restarted.workloads.values_mut() {
        status.restarted = Some("2026-03-01 by ana".into());
        status.restart_failed = Some("it was not healthy within 60 s: no probe has succeeded".into());
    }
    golden("agent-report-restarted.json", &AgentMessage::Report(Box::new(restarted)));
    let reboot = RebootStatus {
        order: "reboot.1f2e3d".into(),
        phase: UpdatePhase::Verifying,
        message: "it is up again, and waits for scan-uploader".into(),
    };
    golden("agent-report-reboot.json", &AgentMessage::Report(Box::new(Report { reboot: Some(reboot), ..report() })));
    let key = proto::tuf::SecretKey::from_seed(&[7; 32]);
    let signed = Attestation::sign(&key, &"box-hz-1".parse().unwrap(), "5eed", 2, &report());
    let signed = AgentMessage::Report(Box::new(Report { attestation: Some(signed), ..report() }));
    golden("agent-report-attested.json", &signed);
    // Fields that we do not know are skipped, words that we do not know read as the cautious one.
    let AgentMessage::Hello(newer) = read("agent-hello-newer.json") else { panic!("not a hello") };
    assert_eq!(newer.info, info());
    assert_eq!(newer.report.observed_generation, 4);
    let status = newer.report.workloads.values().next().unwrap();
    assert_eq!((status.phase, status.running.as_ref().unwrap().state), (UpdatePhase::Blocked, RunState::Stopped));
    assert_eq!(read::<AgentMessage>("agent-message-newer.json"), AgentMessage::Unknown);
}

#[test]
fn hub_messages() {
    let fleet = "parcel".parse().unwrap();
    let welcome = Welcome { hub_version: "0.1.0".into(), fleet, clock: time(0), heartbeat_ms: 10_000, nonce: None };
    golden("hub-welcome.json", &HubMessage::Welcome(welcome.clone()));
    let nonce = Some("5eed".to_owned());
    golden("hub-welcome-nonce.json", &HubMessage::Welcome(Welcome { nonce, ..welcome }));
    let name = || "scan-uploader".parse().unwrap();
    let assignment = Assignment { generation: 5, apps: [(name(), release().into())].into(), ..Assignment::default() };
    golden("hub-assignment.json", &HubMessage::Assignment(assignment.clone()));
    let order = AppOrder {
        hold: true,
        max_deferral_s: 600,
        restart: Some("restart-web.1f".into()),
        retry: Some("web-2.3c#1".into()),
        metrics: None,
    };
    let ordered = OrderedApp { release: release(), order };
    let apps = [(name(), ordered)].into();
    let orders = Assignment { generation: 6, apps, drained: true, ..Assignment::default() };
    golden("hub-assignment-orders.json", &HubMessage::Assignment(orders));
    let wanted = MetricsOrder { samples: [("frames_per_second".parse().unwrap(), 30)].into(), for_s: 5400 };
    let order = AppOrder { metrics: Some(wanted), ..AppOrder::default() };
    let asked = Assignment { apps: [(name(), OrderedApp { release: release(), order })].into(), ..assignment.clone() };
    golden("hub-assignment-metrics.json", &HubMessage::Assignment(asked));
    let reboot = Assignment { reboot: Some("reboot.1f2e3d".into()), ..assignment.clone() };
    golden("hub-assignment-reboot.json", &HubMessage::Assignment(reboot));
    let allocation =
        serde_json::from_str(r#"{"overcommit": {"cpu": 2.5}, "systemReserved": {"memory": "1Gi", "cpuMillis": 500}}"#);
    let allocated = Assignment { allocation: Some(allocation.unwrap()), ..assignment.clone() };
    golden("hub-assignment-allocation.json", &HubMessage::Assignment(allocated));
    let directive = MetadataReply { targets: Some("{\"signed\": \"targets\"}\n".into()), ..MetadataReply::default() };
    golden("hub-directive.json", &HubMessage::Directive(Box::new(directive)));
    assert_eq!(read::<HubMessage>("hub-assignment-newer.json"), HubMessage::Assignment(assignment));
    assert_eq!(read::<HubMessage>("hub-message-newer.json"), HubMessage::Unknown);
}

#[test]
fn requests_of_the_agent() {
    let have = MetadataRequest { root: 1, timestamp: 4, snapshot: 3, targets: 2 };
    golden("request-metadata.json", &AgentRequest::Metadata(have));
    let text = |text: &str| Some(text.to_owned());
    let reply = MetadataReply {
        roots: vec!["{\"signed\": \"root\"}\n".into()],
        timestamp: text("{\"signed\": \"timestamp\"}\n"),
        snapshot: None,
        targets: text("{\"signed\": \"targets\"}\n"),
    };
    golden("reply-metadata.json", &reply);
    golden("request-blob.json", &AgentRequest::Blob(BlobRequest { digest: Digest::of(b"blob"), offset: 262_144 }));
    golden("reply-blob-found.json", &BlobHeader::Found { size: 1_000_000 });
    golden("reply-blob-not-found.json", &BlobHeader::NotFound { message: "no such blob".into() });
    assert_eq!(read::<AgentRequest>("request-newer.json"), AgentRequest::Unknown);
    assert_eq!(
        read::<MetadataReply>("reply-metadata-newer.json"),
        MetadataReply { snapshot: text("s"), ..MetadataReply::default() }
    );
}

#[test]
fn requests_of_the_hub() {
    let app = "scan-uploader".parse().unwrap();
    golden("request-logs.json", &HubRequest::Logs(LogsRequest { app, tail: Some(100), follow: true }));
    golden("reply-logs-found.json", &LogsHeader::Found);
    golden("reply-logs-not-found.json", &LogsHeader::NotFound { message: "no such app".into() });
    let app = "scan-uploader".parse().unwrap();
    golden("request-exec.json", &HubRequest::Exec(ExecRequest { app }));
    golden("reply-exec-ready.json", &ExecHeader::Ready);
    golden("reply-exec-refused.json", &ExecHeader::Refused { message: "it lets nobody in".into() });
    assert_eq!(read::<HubRequest>("hub-request-newer.json"), HubRequest::Unknown);
}

#[test]
fn joining() {
    let request = JoinRequest {
        token_id: "t-1".into(),
        secret: "c2VjcmV0".into(),
        csr: "MIIB".into(),
        name: "box-hz-1".into(),
        machine_id: "4c4c4544".into(),
        agent_version: "0.1.0".into(),
    };
    golden("join-request.json", &request);
    golden("renew-request.json", &RenewRequest { csr: "MIIB".into() });
    let certificates = "-----BEGIN CERTIFICATE-----\n".to_owned();
    golden("renew-reply.json", &RenewReply::Renewed { certificates });
    golden("renew-refused.json", &RenewReply::Refused { message: "not now".into() });
    let accepted = JoinReply::Accepted {
        node: "box-hz-1".parse().unwrap(),
        site: "hz-01".parse().unwrap(),
        fleet: "parcel".parse().unwrap(),
        certificates: "-----BEGIN CERTIFICATE-----\n".into(),
        root: "{\"signed\": \"root\"}\n".into(),
        director_root: None,
        hubs: vec!["hub.example:7443".into()],
    };
    golden("join-accepted.json", &accepted);
    let mut both = accepted.clone();
    if let JoinReply::Accepted { director_root, .. } = &mut both {
        *director_root = Some("{\"signed\": \"director's root\"}\n".into());
    }
    golden("join-accepted-director.json", &both);
    let refused = JoinReply::Refused { code: "TokenExpired".into(), message: "ask for a new token".into() };
    golden("join-refused.json", &refused);
    assert_eq!(read::<JoinRequest>("join-request-newer.json"), request);
}
