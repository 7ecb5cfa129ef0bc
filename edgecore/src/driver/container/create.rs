//! What is asked of the engine for an instance. Pure.
//!
//! By default a container may do less than a process of the box: it keeps no capability, gains no privilege, writes
//! to its data and to `/tmp` alone, and sees a network of its own. What it needs besides, its release says.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use proto::release::{
    container::{Container, Network},
    uses::variable,
};

use super::api::model::{Create, DeviceMapping, DeviceRequest, Empty, HostConfig, LogConfig, Mount, PortBinding};
use super::folders;
use crate::{apps::live, driver::InstanceSpec, secrets};

/// Label of whose container it is: the agent.
pub const AGENT: &str = "io.crossdock.agent";
/// Label of the app, or of its second instance: the name by which the driver is asked.
pub const APP: &str = "io.crossdock.app";
/// Label of the release's version.
pub const VERSION: &str = "io.crossdock.version";
/// Label of the release's digest.
pub const DIGEST: &str = "io.crossdock.digest";
/// Label of the boot in which it was made.
pub const BOOT: &str = "io.crossdock.boot";
/// Label of how many of the app were made before it: clocks go back, this does not.
pub const NUMBER: &str = "io.crossdock.number";

/// Where the app's data is in every container.
pub const DATA: &str = "/crossdock/data";
/// Where the release's files are in every container.
pub const TREE: &str = "/crossdock/tree";
/// Where the folder of the agent's socket for records is in every container.
pub const DOORS: &str = "/crossdock/doors";

/// Where the run folders of an app's two instances are in every container that has one.
pub const RUN: &str = "/crossdock/run";

/// Where the release's secrets are in every container.
pub const SECRETS: &str = "/crossdock/secrets";

/// Kind of NVIDIA's devices in the Container Device Interface (CDI).
pub const CDI_KIND: &str = "nvidia.com/gpu";

/// Log files that the engine keeps of a container.
const LOG_FILES: u64 = 4;
/// Bytes of all log files together when the release says nothing: as of a process.
const LOG_BYTES: u64 = 40 << 20;
/// Variables of a process of the box that mean nothing in a container.
const OF_THE_BOX: [&str; 5] = ["CROSSDOCK_APPS", STREAMS_SOCKET, secrets::VARIABLE, live::OWN, live::LIVE];
/// Names the agent's socket for records.
pub const STREAMS_SOCKET: &str = "CROSSDOCK_STREAMS_SOCKET";

/// What a release does not say.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Name of the image at the engine.
    pub image: String,
    /// See [`AGENT`].
    pub agent: String,
    /// See [`BOOT`].
    pub boot_id: String,
    /// See [`NUMBER`].
    pub number: u64,
    /// Folders with other apps' files, in the order of [`Container::uses`].
    pub uses: Vec<PathBuf>,
    /// The agent's socket for records, in a folder of its own.
    pub socket: Option<PathBuf>,
    /// Whether GPUs are asked for by the Container Device Interface.
    pub cdi: bool,
}

/// The container of an instance.
#[must_use]
pub fn body(spec: &InstanceSpec, container: &Container, around: &Surroundings) -> Create {
    let workload = &spec.workload;
    Create {
        image: around.image.clone(),
        entrypoint: (!workload.command.is_empty()).then(|| vec![workload.command.clone()]),
        // An entrypoint of the release's replaces the image's arguments, too, as in Kubernetes.
        cmd: match workload.command.is_empty() {
            true => (!workload.args.is_empty()).then(|| workload.args.clone()),
            false => Some(workload.args.clone()),
        },
        env: environment(spec, around),
        user: workload.user.clone(),
        working_dir: workload.working_dir.clone(),
        labels: labels(spec, around),
        exposed_ports: container.publish.iter().map(|publish| (format!("{}/tcp", publish.port), Empty {})).collect(),
        host_config: host_config(spec, container, around),
    }
}

/// The same where the engine brings no first process for containers.
#[must_use]
pub fn without_init(mut body: Create) -> Create {
    body.host_config.init = None;
    body
}

fn environment(spec: &InstanceSpec, around: &Surroundings) -> Vec<String> {
    let release = &spec.release;
    let own = [
        ("CROSSDOCK_APP", spec.app.to_string()),
        ("CROSSDOCK_VERSION", release.version.to_string()),
        ("CROSSDOCK_DIGEST", release.digest.to_string()),
        ("CROSSDOCK_TREE", TREE.into()),
        ("CROSSDOCK_DATA", DATA.into()),
    ];
    let socket = around.socket.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    let socket = socket.map(|name| (STREAMS_SOCKET, format!("{DOORS}/{name}")));
    let secrets = spec.workload.env.get(secrets::VARIABLE).map(|_| (secrets::VARIABLE, SECRETS.to_owned()));
    let run =
        spec.run.iter().flat_map(|run| [(live::OWN, run_folder(run)), (live::LIVE, format!("{RUN}/{}", live::NAME))]);
    let mounted = spec.workload.container.iter().flat_map(|container| &container.uses);
    let uses: BTreeMap<String, &String> = mounted.map(|uses| (variable(&uses.app), &uses.mount_path)).collect();
    let of_the_box = |key: &String| OF_THE_BOX.contains(&key.as_str()) || uses.contains_key(key);
    let given = spec.workload.env.iter().filter(|(key, _)| !of_the_box(key));
    let given = given.map(|(key, value)| format!("{key}={value}"));
    given
        .chain(own.into_iter().chain(socket).chain(secrets).chain(run).map(|(key, value)| format!("{key}={value}")))
        .chain(uses.iter().map(|(key, value)| format!("{key}={value}")))
        .collect()
}

fn labels(spec: &InstanceSpec, around: &Surroundings) -> BTreeMap<String, String> {
    let labels = [
        (AGENT, around.agent.clone()),
        (APP, spec.key().to_string()),
        (VERSION, spec.release.version.to_string()),
        (DIGEST, spec.release.digest.to_string()),
        (BOOT, around.boot_id.clone()),
        (NUMBER, around.number.to_string()),
    ];
    labels.map(|(key, value)| (key.to_owned(), value)).into()
}

fn host_config(spec: &InstanceSpec, container: &Container, around: &Surroundings) -> HostConfig {
    let limits = &spec.workload.limits;
    let whole = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let memory = limits.memory.map(|memory| whole(memory.get()));
    let per_file = (limits.logs.map_or(LOG_BYTES, |logs| logs.get()) / LOG_FILES).max(64 << 10);
    let logs = [("max-size", per_file.to_string()), ("max-file", LOG_FILES.to_string())];
    HostConfig {
        memory,
        memory_swap: memory, // of both together: no swap
        nano_cpus: limits.cpu_millis.map(|millis| i64::from(millis) * 1_000_000),
        pids_limit: limits.pids.map(i64::from),
        network_mode: match container.network {
            Network::Bridge => "bridge".into(),
            Network::Host => "host".into(),
            Network::None => "none".into(),
        },
        port_bindings: ports(container),
        mounts: mounts(spec, container, around),
        devices: container.devices.iter().map(|device| mapping(device)).collect(),
        device_requests: gpus(spec, around),
        cap_drop: vec!["ALL".into()],
        cap_add: container.capabilities.iter().cloned().collect(),
        security_opt: vec!["no-new-privileges".into()],
        readonly_rootfs: !container.writable_root,
        tmpfs: match container.writable_root {
            true => BTreeMap::new(),
            false => BTreeMap::from([("/tmp".into(), "rw,nosuid,nodev".into())]),
        },
        shm_size: container.shm.map(|shm| whole(shm.get())),
        init: Some(true), // reaps what a program leaves behind that is no init
        log_config: LogConfig {
            driver: "json-file".into(),
            config: logs.map(|(key, value)| (key.to_owned(), value)).into(),
        },
    } // restarts are the supervisor's
}

fn ports(container: &Container) -> BTreeMap<String, Vec<PortBinding>> {
    let mut ports: BTreeMap<String, Vec<PortBinding>> = BTreeMap::new();
    for publish in &container.publish {
        let host_ip = publish.host_address.map_or_else(|| "127.0.0.1".into(), |address| address.to_string());
        let host_port = publish.host_port.unwrap_or(publish.port).to_string();
        ports.entry(format!("{}/tcp", publish.port)).or_default().push(PortBinding { host_ip, host_port });
    }
    ports
}

fn mapping(device: &str) -> DeviceMapping {
    DeviceMapping { path_on_host: device.into(), path_in_container: device.into(), cgroup_permissions: "rwm".into() }
}

/// The GPUs that are the app's, by CDI where the box has it for them, or by a request that NVIDIA's hook answers.
fn gpus(spec: &InstanceSpec, around: &Surroundings) -> Vec<DeviceRequest> {
    if spec.gpus.is_empty() {
        return vec![];
    }
    vec![match around.cdi {
        true => DeviceRequest {
            driver: "cdi".into(),
            device_ids: spec.gpus.iter().map(|gpu| format!("{CDI_KIND}={gpu}")).collect(),
            capabilities: vec![],
        },
        false => DeviceRequest {
            driver: "nvidia".into(),
            device_ids: spec.gpus.clone(),
            capabilities: vec![vec!["gpu".into()]],
        },
    }]
}

fn mounts(spec: &InstanceSpec, container: &Container, around: &Surroundings) -> Vec<Mount> {
    let mut mounts = vec![bind(&spec.data, DATA, false), bind(&spec.tree, TREE, true)];
    for volume in &container.volumes {
        let from = match (&volume.name, &volume.host_path) {
            (Some(name), _) => folders::volume(&spec.data, name),
            (None, path) => path.as_deref().unwrap_or_default().into(),
        };
        mounts.push(bind(&from, &volume.mount_path, volume.read_only));
    }
    let uses = container.uses.iter().zip(&around.uses);
    mounts.extend(uses.map(|(uses, from)| bind(from, &uses.mount_path, true)));
    mounts.extend(spec.workload.env.get(secrets::VARIABLE).map(|folder| bind(Path::new(folder), SECRETS, true)));
    if let Some(run) = &spec.run {
        // The link is the agent's to change, and the other's folder the other's.
        mounts.extend(run.parent().map(|both| bind(both, RUN, true)));
        mounts.push(bind(run, &run_folder(run), false));
    }
    // The folder, not the socket: a new agent makes a new one.
    mounts.extend(around.socket.as_deref().and_then(Path::parent).map(|folder| bind(folder, DOORS, true)));
    mounts
}

/// Where an instance's own run folder is in its container.
fn run_folder(run: &Path) -> String {
    format!("{RUN}/{}", run.file_name().unwrap_or_default().to_string_lossy())
}

fn bind(from: &Path, to: &str, read_only: bool) -> Mount {
    Mount { kind: "bind", source: from.display().to_string(), target: to.into(), read_only }
}

#[cfg(test)]
mod tests {
    use proto::{digest::Digest, object::ReleaseRef, release::Workload};

    use super::*;
    use crate::driver::Side;

    fn spec(workload: &str) -> InstanceSpec {
        InstanceSpec {
            app: "vision".parse().unwrap(),
            side: Side::A,
            replica: 0,
            run: None,
            release: ReleaseRef { version: "1.2.0".parse().unwrap(), digest: Digest::of(b"x") },
            tree: "/state/apps/vision/releases/x/tree".into(),
            data: "/state/apps/vision/data".into(),
            workload: serde_json::from_str::<Workload>(workload).unwrap(),
            gpus: vec![],
            uses: BTreeMap::new(),
        }
    }

    fn around() -> Surroundings {
        Surroundings {
            image: "crossdock.local/vision:1".into(),
            agent: "a".into(),
            boot_id: "b".into(),
            number: 3,
            uses: vec!["/state/apps/model/releases/y/tree".into()],
            socket: Some("/state/doors/streams.sock".into()),
            cdi: false,
        }
    }

    fn made(spec: &InstanceSpec, around: &Surroundings) -> Create {
        body(spec, spec.workload.container.as_ref().unwrap(), around)
    }

    fn mounted(body: &Create) -> Vec<(String, String, bool)> {
        body.host_config.mounts.iter().map(|m| (m.source.clone(), m.target.clone(), m.read_only)).collect()
    }

    #[test]
    fn by_default_a_container_may_do_little() {
        let body = made(&spec(r#"{"container": {}}"#), &around());
        assert_eq!((body.entrypoint.as_ref(), body.cmd.as_ref()), (None, None), "as the image has it");
        let host = &body.host_config;
        assert_eq!((&host.cap_drop[..], host.cap_add.len()), (&["ALL".to_owned()][..], 0));
        assert_eq!(host.security_opt, ["no-new-privileges"]);
        assert_eq!((host.readonly_rootfs, host.network_mode.as_str()), (true, "bridge"));
        assert!(host.device_requests.is_empty() && host.devices.is_empty() && host.port_bindings.is_empty());
        // What no release can have: each is as the engine has it when nothing is said.
        let sent = serde_json::to_value(host).unwrap();
        for field in ["Privileged", "RestartPolicy", "PidMode", "IpcMode", "UsernsMode", "Memory", "ShmSize"] {
            assert!(sent.get(field).is_none(), "{field}: {sent}");
        }
        let env = &body.env;
        assert!(env.contains(&"CROSSDOCK_STREAMS_SOCKET=/crossdock/doors/streams.sock".to_owned()), "{env:?}");
        assert!(env.iter().all(|variable| !variable.contains("/state")), "paths of the box mean nothing: {env:?}");
        let targets = ["/crossdock/data", "/crossdock/tree", "/crossdock/doors"];
        assert_eq!(mounted(&body).iter().map(|(_, to, _)| to.as_str()).collect::<Vec<_>>(), targets);
    }

    #[test]
    fn a_second_instance_has_a_name_and_a_run_folder_of_its_own() {
        let mut spec = spec(r#"{"container": {}, "env": {"CROSSDOCK_RUN": "/state/apps/vision/run/b"}}"#);
        (spec.side, spec.run) = (Side::B, Some("/state/apps/vision/run/b".into()));
        let body = made(&spec, &around());
        assert_eq!(body.labels[APP], "vision--b");
        let env = body.env.clone();
        for variable in ["CROSSDOCK_APP=vision", "CROSSDOCK_RUN=/crossdock/run/b", "CROSSDOCK_LIVE=/crossdock/run/live"]
        {
            assert!(env.iter().any(|set| set == variable), "{variable}: {env:?}");
        }
        assert!(env.iter().all(|variable| !variable.contains("/state")), "{env:?}");
        let run = [
            ("/state/apps/vision/run".to_owned(), "/crossdock/run".to_owned(), true),
            ("/state/apps/vision/run/b".to_owned(), "/crossdock/run/b".to_owned(), false),
        ];
        assert_eq!(mounted(&body)[2..4], run);
        (spec.replica, spec.run) = (3, Some("/state/apps/vision/run/r3".into()));
        let body = made(&spec, &around());
        assert_eq!(body.labels[APP], "vision--r3");
        assert!(body.env.iter().any(|set| set == "CROSSDOCK_RUN=/crossdock/run/r3"), "{:?}", body.env);
        assert_eq!(mounted(&body)[3].1, "/crossdock/run/r3");
    }

    #[test]
    fn what_a_release_asks_for_it_gets() {
        let mut spec = spec(
            r#"{
                "command": "/bin/run", "args": ["--fast"], "user": "1000:1000",
                "env": {"A": "1", "CROSSDOCK_APPS": "/state/apps", "CROSSDOCK_SECRETS": "/run/s/vision",
                        "CROSSDOCK_USES_MODEL": "/state/apps/model/releases/y/tree"},
                "limits": {"memory": "1Gi", "cpuMillis": 1500, "pids": 9, "logs": "4Mi"},
                "container": {
                    "capabilities": ["NET_ADMIN"], "writableRoot": true, "devices": ["/dev/video0"], "shm": "1Gi",
                    "volumes": [{"name": "cache", "mountPath": "/cache"}, {"hostPath": "/mnt", "mountPath": "/m", "readOnly": true}],
                    "uses": [{"app": "model", "mountPath": "/model"}],
                    "publish": [{"port": 80, "hostPort": 8080}, {"port": 80, "hostPort": 81, "hostAddress": "0.0.0.0"}]
                }
            }"#,
        );
        spec.gpus = vec!["GPU-1".into()];
        let body = made(&spec, &around());
        assert_eq!(body.entrypoint.clone().unwrap(), ["/bin/run"]);
        assert_eq!(
            (body.cmd.clone().unwrap(), body.user.clone().unwrap()),
            (vec!["--fast".to_owned()], "1000:1000".into())
        );
        let env = &body.env;
        assert!(env.contains(&"CROSSDOCK_USES_MODEL=/model".to_owned()), "{env:?}");
        assert!(env.iter().all(|variable| !variable.contains("/state")), "{env:?}");
        assert!(env.contains(&"A=1".to_owned()) && env.contains(&format!("CROSSDOCK_SECRETS={SECRETS}")), "{env:?}");
        let expected = [
            ("/state/apps/vision/data", DATA, false),
            ("/state/apps/vision/releases/x/tree", TREE, true),
            ("/state/apps/vision/volumes/cache", "/cache", false),
            ("/mnt", "/m", true),
            ("/state/apps/model/releases/y/tree", "/model", true),
            ("/run/s/vision", SECRETS, true),
            ("/state/doors", DOORS, true),
        ];
        assert_eq!(mounted(&body), expected.map(|(from, to, only)| (from.to_owned(), to.to_owned(), only)));
        let host = &body.host_config;
        assert_eq!(
            (host.memory, host.memory_swap, host.nano_cpus),
            (Some(1 << 30), Some(1 << 30), Some(1_500_000_000))
        );
        assert_eq!((host.pids_limit, host.shm_size, host.tmpfs.is_empty()), (Some(9), Some(1 << 30), true));
        let log = &host.log_config.config;
        assert_eq!((log["max-size"].as_str(), log["max-file"].as_str()), ("1048576", "4"));
        let bound = &host.port_bindings["80/tcp"];
        let at = |b: &PortBinding| format!("{}:{}", b.host_ip, b.host_port);
        assert_eq!(bound.iter().map(at).collect::<Vec<_>>(), ["127.0.0.1:8080", "0.0.0.0:81"]);
        let asked = |around| made(&spec, &around).host_config.device_requests.remove(0);
        let request = asked(around());
        assert_eq!((request.driver.as_str(), &request.device_ids[..]), ("nvidia", &["GPU-1".to_owned()][..]));
        let request = asked(Surroundings { cdi: true, ..around() });
        assert_eq!(
            (request.driver.as_str(), &request.device_ids[..]),
            ("cdi", &["nvidia.com/gpu=GPU-1".to_owned()][..])
        );
    }
}
