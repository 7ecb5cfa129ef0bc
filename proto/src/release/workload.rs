//! The process that a release runs: how it is started, limited, probed and stopped.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Gpus, ManifestError, TreePath};
use crate::units::{Bytes, Span};

/// A process to run and to watch over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Program: a path in the tree (`bin/server`), or absolute for one of the box.
    pub command: String,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its environment, besides `PATH` and `CROSSDOCK_APP`, `CROSSDOCK_VERSION`, `CROSSDOCK_DIGEST`,
    /// `CROSSDOCK_TREE` (its files), `CROSSDOCK_DATA` (a folder that stays from release to release) and
    /// `CROSSDOCK_APPS` (`$CROSSDOCK_APPS/<app>/current` leads to the files of another app's release).
    /// Nothing else is inherited.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// User to run as, a name or a number of the box. Default: as the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working folder, relative to the tree. Default: the tree's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Ports it listens on, for people and probes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Limits of its control group.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// GPUs it needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<Gpus>,
    /// Probes, as in Kubernetes.
    #[serde(default)]
    pub probes: Probes,
    /// Time between SIGTERM and SIGKILL.
    #[serde(default = "default_stop_grace")]
    pub stop_grace: Span,
    /// When to start it again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How long it must stay healthy before the release counts as good.
    #[serde(default = "default_soak")]
    pub soak: Span,
    /// By when it must have become healthy, counted from its start; then the release is reverted.
    #[serde(default = "default_deadline")]
    pub deadline: Span,
}

fn default_stop_grace() -> Span {
    Span::from_secs(10)
}

fn default_soak() -> Span {
    Span::from_secs(3)
}

fn default_deadline() -> Span {
    Span::from_secs(60)
}

/// A port that a workload listens on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// TCP port.
    pub port: u16,
}

/// Limits of a control group; what is absent is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Memory; beyond it the kernel kills the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Thousandths of a processor core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// All log files of the workload together. Default: 40 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<Bytes>,
}

impl Limits {
    fn is_none(&self) -> bool {
        *self == Limits::default()
    }
}

/// When a workload that ended is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RestartPolicy {
    /// Always (the default).
    #[default]
    Always,
    /// Only after a failure.
    OnFailure,
    /// Never: exit code 0 counts as healthy.
    Never,
}

/// The three probes of Kubernetes; none is needed: then running for the soak time is healthy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probes {
    /// Until it succeeds the others do not run; when it gives up the workload is restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<Probe>,
    /// When it fails the workload is restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Probe>,
    /// Whether the workload is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Probe>,
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// GET over HTTP/1.1 on loopback: a status of 200 to 399 is success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpProbe>,
    /// A TCP connection on loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpProbe>,
    /// A command in the tree as the workload's user: exit code 0 is success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecProbe>,
    /// Wait before the first attempt.
    #[serde(default)]
    pub initial_delay: Span,
    /// Between attempts. At least 100 ms.
    #[serde(default = "default_period")]
    pub period: Span,
    /// Longest attempt.
    #[serde(default = "default_timeout")]
    pub timeout: Span,
    /// Failures in a row that count as failed.
    #[serde(default = "default_failure_threshold")]
    pub failure_threshold: u32,
    /// Successes in a row that count as succeeded.
    #[serde(default = "default_success_threshold")]
    pub success_threshold: u32,
}

fn default_period() -> Span {
    Span::from_secs(10)
}

fn default_timeout() -> Span {
    Span::from_secs(1)
}

fn default_failure_threshold() -> u32 {
    3
}

fn default_success_threshold() -> u32 {
    1
}

/// Target of an HTTP probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpProbe {
    /// Path with query, `/` by default.
    #[serde(default = "default_http_path")]
    pub path: String,
    /// TCP port on 127.0.0.1.
    pub port: u16,
}

fn default_http_path() -> String {
    "/".into()
}

/// Target of a TCP probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpProbe {
    /// TCP port on 127.0.0.1.
    pub port: u16,
}

/// Command of an exec probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecProbe {
    /// Program and arguments; the program as in [`Workload::command`].
    pub command: Vec<String>,
}

impl Workload {
    /// A process with all defaults.
    #[must_use]
    pub fn new(command: String) -> Workload {
        Workload {
            command,
            args: vec![],
            env: BTreeMap::new(),
            user: None,
            working_dir: None,
            ports: vec![],
            limits: Limits::default(),
            gpus: None,
            probes: Probes::default(),
            stop_grace: default_stop_grace(),
            restart: RestartPolicy::default(),
            soak: default_soak(),
            deadline: default_deadline(),
        }
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// The first field that cannot work.
    pub fn check(&self) -> Result<(), ManifestError> {
        let wrong = |text: String| Err(ManifestError::Workload(text));
        let clean = |text: &str| !text.contains('\0');
        if !self.command.starts_with('/') {
            TreePath::try_from(self.command.clone())?;
        }
        if let Some(folder) = self.working_dir.as_deref().filter(|f| *f != ".") {
            TreePath::try_from(folder.to_owned())?;
        }
        if !clean(&self.command) || !self.args.iter().all(|a| clean(a)) {
            return wrong("command and args must not hold a NUL character".into());
        }
        for (key, value) in &self.env {
            if key.is_empty() || key.contains('=') || !clean(key) || !clean(value) {
                return wrong(format!("environment variable {key:?} is not usable: no '=' or NUL in its name"));
            }
        }
        let probes = [
            ("startup", &self.probes.startup),
            ("liveness", &self.probes.liveness),
            ("readiness", &self.probes.readiness),
        ];
        for (name, probe) in probes {
            let Some(probe) = probe else { continue };
            let kinds = usize::from(probe.http.is_some())
                + usize::from(probe.tcp.is_some())
                + usize::from(probe.exec.is_some());
            if kinds != 1 {
                return wrong(format!("the {name} probe needs exactly one of http, tcp and exec"));
            }
            if probe.exec.as_ref().is_some_and(|e| e.command.is_empty()) {
                return wrong(format!("the {name} probe's command is empty"));
            }
            if probe.http.as_ref().is_some_and(|h| !h.path.starts_with('/') || h.path.contains(['\r', '\n', ' '])) {
                return wrong(format!("the {name} probe's path must start with / and hold no blanks"));
            }
            if probe.period < Span::from_millis(100) || probe.timeout == Span::default() {
                return wrong(format!("the {name} probe needs a period of at least 100ms and a timeout above 0"));
            }
            if probe.failure_threshold == 0 || probe.success_threshold == 0 {
                return wrong(format!("the {name} probe's thresholds must be at least 1"));
            }
        }
        if let Some(gpus) = &self.gpus {
            gpus.check()?;
        }
        if self.deadline < self.soak {
            return wrong(format!("deadline {} is shorter than soak {}", self.deadline, self.soak));
        }
        if self.limits.memory.is_some_and(|m| m < Bytes::new(1 << 20))
            || self.limits.cpu_millis == Some(0)
            || self.limits.pids == Some(0)
        {
            return wrong("limits below memory 1Mi, cpuMillis 1 or pids 1 would run nothing".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictory_workloads_are_refused() {
        for bad in [
            r#"{"command": "../run"}"#,
            r#"{"command": "run", "workingDir": "/etc"}"#,
            r#"{"command": "run", "env": {"A=B": "1"}}"#,
            r#"{"command": "run", "probes": {"liveness": {}}}"#,
            r#"{"command": "run", "probes": {"liveness": {"tcp": {"port": 1}, "http": {"port": 1}}}}"#,
            r#"{"command": "run", "probes": {"readiness": {"tcp": {"port": 1}, "period": "1ms"}}}"#,
            r#"{"command": "run", "probes": {"startup": {"exec": {"command": []}}}}"#,
            r#"{"command": "run", "soak": "2m", "deadline": "1m"}"#,
            r#"{"command": "run", "limits": {"pids": 0}}"#,
        ] {
            let workload: Workload = serde_json::from_str(bad).unwrap();
            assert!(workload.check().is_err(), "{bad}");
        }
    }
}
