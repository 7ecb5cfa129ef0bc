//! What is asked of the engine for an instance. Pure.
//!
//! By default a container may do less than a process of the box: it keeps no capability, gains no privilege, writes
//! to its data and to `/tmp` alone, and sees a network of its own. What it needs besides, its release says.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use bollard::models::{
    ContainerCreateBody, DeviceMapping, DeviceRequest, HostConfig, HostConfigLogConfig, Mount, MountBindOptions,
    MountType, PortBinding,
};
use proto::release::container::{Container, Network};

use crate::{driver::InstanceSpec, secrets};

/// Label of whose container it is: the agent.
pub const AGENT: &str = "io.crossdock.agent";
/// Label of the app.
pub const APP: &str = "io.crossdock.app";
/// Label of the release's version.
pub const VERSION: &str = "io.crossdock.version";
/// Label of the release's digest.
pub const DIGEST: &str = "io.crossdock.digest";
/// Label of the boot in which it was made.
pub const BOOT: &str = "io.crossdock.boot";

/// Where the app's data is in every container.
pub const DATA: &str = "/crossdock/data";
/// Where the release's files are in every container.
pub const TREE: &str = "/crossdock/tree";
/// Where the folder of the agent's socket for records is in every container.
pub const DOORS: &str = "/crossdock/doors";

/// Where the release's secrets are in every container.
pub const SECRETS: &str = "/crossdock/secrets";

/// Log files that the engine keeps of a container.
const LOG_FILES: u64 = 4;
/// Bytes of all log files together when the release says nothing: as of a process.
const LOG_BYTES: u64 = 40 << 20;
/// Variables of a process of the box that mean nothing in a container.
const OF_THE_BOX: [&str; 3] = ["CROSSDOCK_APPS", STREAMS_SOCKET, secrets::VARIABLE];
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
    /// Folders with other apps' files, in the order of [`Container::uses`].
    pub uses: Vec<PathBuf>,
    /// The agent's socket for records, in a folder of its own.
    pub socket: Option<PathBuf>,
}

/// The container of an instance.
#[must_use]
pub fn body(spec: &InstanceSpec, container: &Container, around: &Surroundings) -> ContainerCreateBody {
    let workload = &spec.workload;
    let filled = |list: Vec<String>| (!list.is_empty()).then_some(list);
    ContainerCreateBody {
        image: Some(around.image.clone()),
        entrypoint: (!workload.command.is_empty()).then(|| vec![workload.command.clone()]),
        // An entrypoint of the release's replaces the image's arguments, too, as in Kubernetes.
        cmd: match workload.command.is_empty() {
            true => filled(workload.args.clone()),
            false => Some(workload.args.clone()),
        },
        env: Some(environment(spec, around)),
        user: workload.user.clone(),
        working_dir: workload.working_dir.clone(),
        labels: Some(labels(spec, around)),
        exposed_ports: filled(container.publish.iter().map(|publish| format!("{}/tcp", publish.port)).collect()),
        host_config: Some(host_config(spec, container, around)),
        ..ContainerCreateBody::default()
    }
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
    let given = spec.workload.env.iter().filter(|(key, _)| !OF_THE_BOX.contains(&key.as_str()));
    let given = given.map(|(key, value)| format!("{key}={value}"));
    given.chain(own.into_iter().chain(socket).chain(secrets).map(|(key, value)| format!("{key}={value}"))).collect()
}

fn labels(spec: &InstanceSpec, around: &Surroundings) -> HashMap<String, String> {
    let labels = [
        (AGENT, around.agent.clone()),
        (APP, spec.app.to_string()),
        (VERSION, spec.release.version.to_string()),
        (DIGEST, spec.release.digest.to_string()),
        (BOOT, around.boot_id.clone()),
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
        network_mode: Some(match container.network {
            Network::Bridge => "bridge".into(),
            Network::Host => "host".into(),
            Network::None => "none".into(),
        }),
        port_bindings: ports(container),
        mounts: Some(mounts(spec, container, around)),
        devices: Some(container.devices.iter().map(|device| mapping(device)).collect()),
        device_requests: gpus(spec),
        cap_drop: Some(vec!["ALL".into()]),
        cap_add: Some(container.capabilities.iter().cloned().collect()),
        security_opt: Some(vec!["no-new-privileges".into()]),
        readonly_rootfs: Some(!container.writable_root),
        tmpfs: (!container.writable_root).then(|| HashMap::from([("/tmp".into(), "rw,nosuid,nodev".into())])),
        shm_size: container.shm.map(|shm| whole(shm.get())),
        init: Some(true), // reaps what a program leaves behind that is no init
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".into()),
            config: Some(logs.map(|(key, value)| (key.to_owned(), value)).into()),
        }),
        ..HostConfig::default() // restarts are the supervisor's
    }
}

fn ports(container: &Container) -> Option<HashMap<String, Option<Vec<PortBinding>>>> {
    let bound = container.publish.iter().map(|publish| {
        let at = publish.host_address.map_or_else(|| "127.0.0.1".into(), |address| address.to_string());
        let port = publish.host_port.unwrap_or(publish.port);
        let binding = PortBinding { host_ip: Some(at), host_port: Some(port.to_string()) };
        (format!("{}/tcp", publish.port), binding)
    });
    let mut ports: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
    for (port, binding) in bound {
        ports.entry(port).or_default().get_or_insert_default().push(binding);
    }
    (!ports.is_empty()).then_some(ports)
}

fn mapping(device: &str) -> DeviceMapping {
    DeviceMapping {
        path_on_host: Some(device.into()),
        path_in_container: Some(device.into()),
        cgroup_permissions: Some("rwm".into()),
    }
}

fn gpus(_spec: &InstanceSpec) -> Option<Vec<DeviceRequest>> {
    None
}

fn mounts(spec: &InstanceSpec, container: &Container, around: &Surroundings) -> Vec<Mount> {
    let mut mounts = vec![bind(&spec.data, DATA, false), bind(&spec.tree, TREE, true)];
    for volume in &container.volumes {
        let from = match (&volume.name, &volume.host_path) {
            (Some(name), _) => spec.data.join(name.as_str()),
            (None, path) => path.as_deref().unwrap_or_default().into(),
        };
        mounts.push(bind(&from, &volume.mount_path, volume.read_only));
    }
    let uses = container.uses.iter().zip(&around.uses);
    mounts.extend(uses.map(|(uses, from)| bind(from, &uses.mount_path, true)));
    mounts.extend(spec.workload.env.get(secrets::VARIABLE).map(|folder| bind(Path::new(folder), SECRETS, true)));
    // The folder, not the socket: a new agent makes a new one.
    mounts.extend(around.socket.as_deref().and_then(Path::parent).map(|folder| bind(folder, DOORS, true)));
    mounts
}

fn bind(from: &Path, to: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(from.display().to_string()),
        target: Some(to.into()),
        read_only: Some(read_only),
        bind_options: Some(MountBindOptions::default()),
        ..Mount::default()
    }
}
