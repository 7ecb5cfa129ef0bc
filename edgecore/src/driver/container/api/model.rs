//! What we read of the engine's answers, and what we ask it for: the fields of its API that are used here, no others.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

/// Which engine it is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Version {
    /// Newest version of the API that it speaks.
    pub api_version: String,
    /// Oldest.
    #[serde(rename = "MinAPIVersion")]
    pub min_api_version: Option<String>,
    /// What it is made of.
    pub components: Option<Vec<Component>>,
}

/// A part of an engine.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Component {
    /// Such as `Engine` or `Podman Engine`.
    pub name: String,
}

/// How an engine is set up.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Info {
    /// Where it looks for specifications of devices.
    #[serde(rename = "CDISpecDirs")]
    pub cdi_spec_dirs: Option<Vec<String>>,
    /// Where it keeps images.
    #[serde(rename = "DockerRootDir")]
    pub docker_root_dir: Option<String>,
}

/// A container in a list.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Listed {
    /// ID.
    pub id: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Labels.
    pub labels: Option<HashMap<String, String>>,
    /// ID of its image, with or without `sha256:`.
    #[serde(rename = "ImageID")]
    pub image_id: Option<String>,
}

/// A container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Details {
    /// Name, with a slash before it.
    pub name: String,
    /// When it was made, as RFC 3339.
    pub created: Option<String>,
    /// How it is.
    pub state: State,
    /// What was asked for.
    pub config: Option<Config>,
    /// What was asked for of the box.
    pub host_config: Option<Limits>,
    /// Its networks.
    pub network_settings: Option<NetworkSettings>,
}

/// How a container is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct State {
    /// Such as `created`.
    pub status: String,
    /// Whether it runs.
    pub running: bool,
    /// How it ended.
    pub exit_code: Option<i64>,
    /// Whether the kernel killed it for want of memory.
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    /// Why it could not be run.
    pub error: Option<String>,
    /// When it was started.
    pub started_at: Option<String>,
    /// When it ended.
    pub finished_at: Option<String>,
}

/// What a container was made of.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    /// Labels.
    pub labels: Option<HashMap<String, String>>,
}

/// Limits of a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Limits {
    /// Bytes of memory; 0: no limit.
    pub memory: Option<i64>,
}

/// Networks of a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkSettings {
    /// By their names.
    pub networks: Option<BTreeMap<String, Endpoint>>,
}

/// A container in a network.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// Its address; empty when it has none.
    #[serde(rename = "IPAddress")]
    pub ip_address: Option<String>,
}

/// What a container uses.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Of the processors.
    pub cpu_stats: CpuStats,
    /// Of the memory.
    pub memory_stats: MemoryStats,
}

/// Of the processors.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CpuStats {
    /// Used.
    pub cpu_usage: CpuUsage,
}

/// Processor time.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CpuUsage {
    /// In nanoseconds, since its start.
    pub total_usage: Option<u64>,
}

/// Memory.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct MemoryStats {
    /// In bytes, what the kernel keeps of files among it.
    pub usage: Option<u64>,
    /// In detail.
    pub stats: Option<MemoryDetails>,
}

/// Memory in detail, in bytes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct MemoryDetails {
    /// Of files that nobody read for a while, with control groups of version 2.
    pub inactive_file: Option<u64>,
    /// With version 1.
    pub total_inactive_file: Option<u64>,
}

/// An image.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageDetails {
    /// ID, with or without `sha256:`.
    pub id: String,
    /// Its names.
    pub repo_tags: Option<Vec<String>>,
    /// Names with the digests by which registries know it.
    pub repo_digests: Option<Vec<String>>,
    /// What it is made of.
    #[serde(rename = "RootFS")]
    pub root_fs: Option<RootFs>,
}

/// What an image is made of.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RootFs {
    /// Digests of its layers, uncompressed.
    pub layers: Option<Vec<String>>,
}

/// An image in a list.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ListedImage {
    /// ID.
    pub id: String,
    /// Its names.
    pub repo_tags: Option<Vec<String>>,
}

/// The ID of what was made.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Made {
    /// ID.
    pub id: String,
}

/// How a container ended, which is read elsewhere: that it did is the news.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Ended {
    /// Exit code.
    pub status_code: i64,
}

/// How a command in a container ended.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecDetails {
    /// Absent while it runs.
    pub exit_code: Option<i64>,
    /// Whether it runs.
    #[serde(default)]
    pub running: bool,
    /// Its process, as the box counts them.
    pub pid: Option<i32>,
}

/// A command to be run in a container.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Exec<'a> {
    /// Whether somebody types.
    pub attach_stdin: bool,
    /// Whether its output is wanted.
    pub attach_stdout: bool,
    /// And its errors.
    pub attach_stderr: bool,
    /// Whether at a terminal.
    pub tty: bool,
    /// What is in its environment besides the container's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Program and arguments.
    pub cmd: &'a [String],
}

impl<'a> Exec<'a> {
    /// A command whose output is wanted.
    #[must_use]
    pub fn of(cmd: &'a [String]) -> Exec<'a> {
        Exec { attach_stdin: false, attach_stdout: true, attach_stderr: true, tty: false, env: vec![], cmd }
    }
}

/// A container to be made. What is absent is as the image or the engine has it.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Create {
    /// Name of its image.
    pub image: String,
    /// Program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Variables, `NAME=value`.
    pub env: Vec<String>,
    /// User, and group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where it begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Ports that it listens at, `80/tcp`.
    pub exposed_ports: BTreeMap<String, Empty>,
    /// What it may of the box.
    pub host_config: HostConfig,
}

/// Nothing, as an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Empty {}

/// What a container may of the box.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostConfig {
    /// Bytes of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<i64>,
    /// Bytes of memory and swap together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_swap: Option<i64>,
    /// Billionths of a processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nano_cpus: Option<i64>,
    /// Most processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<i64>,
    /// `bridge`, `host` or `none`.
    pub network_mode: String,
    /// Ports of the box for `80/tcp`.
    pub port_bindings: BTreeMap<String, Vec<PortBinding>>,
    /// What it sees of the box.
    pub mounts: Vec<Mount>,
    /// Devices of the box.
    pub devices: Vec<DeviceMapping>,
    /// Devices that a driver brings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_requests: Vec<DeviceRequest>,
    /// Capabilities that it loses.
    pub cap_drop: Vec<String>,
    /// Capabilities that it keeps.
    pub cap_add: Vec<String>,
    /// Such as `no-new-privileges`.
    pub security_opt: Vec<String>,
    /// Whether its root file system is read-only.
    pub readonly_rootfs: bool,
    /// Folders in memory, and their options.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tmpfs: BTreeMap<String, String>,
    /// Bytes of `/dev/shm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<i64>,
    /// Whether the engine brings a first process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
    /// How its output is kept.
    pub log_config: LogConfig,
}

/// How the output of a container is kept.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct LogConfig {
    /// By which driver.
    #[serde(rename = "Type")]
    pub driver: String,
    /// Its options.
    pub config: BTreeMap<String, String>,
}

/// A port of the box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PortBinding {
    /// Address.
    pub host_ip: String,
    /// Port.
    pub host_port: String,
}

/// A folder or file of the box in the container.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Mount {
    /// `bind`.
    #[serde(rename = "Type")]
    pub kind: &'static str,
    /// Where it is on the box.
    pub source: String,
    /// Where it is in the container.
    pub target: String,
    /// Whether the container may only read.
    pub read_only: bool,
}

/// A device of the box in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeviceMapping {
    /// Where it is on the box.
    pub path_on_host: String,
    /// Where it is in the container.
    pub path_in_container: String,
    /// `r`, `w`, `m`.
    pub cgroup_permissions: String,
}

/// Devices that a driver brings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeviceRequest {
    /// Which driver.
    pub driver: String,
    /// Which devices.
    #[serde(rename = "DeviceIDs")]
    pub device_ids: Vec<String>,
    /// What they must be able to: one of the lists.
    pub capabilities: Vec<Vec<String>>,
}
