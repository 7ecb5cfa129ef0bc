//! The process that a release runs: how it is started, limited, probed and stopped.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Container, Exec, FileEntry, Gpus, ManifestError, Replicas, TreePath, Update};
use crate::{
    name::Name,
    object::Resources,
    secret::{self, MAX_RECIPIENTS, MAX_SECRETS, SealedTo},
    units::{Bytes, Span},
};

/// Longest public key of a recipient in a manifest, in bytes: kinds of age that are to come have longer ones.
const MAX_KEY_BYTES: usize = 4096;

/// Most apps and words that an app is better apart from.
const MAX_ANTI_AFFINITY: usize = 64;

/// A process to run and to watch over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Program: a path in the tree (`bin/server`), or absolute for one of the box. Of a container: in place of its
    /// image's entrypoint, which is what runs without it.
    #[serde(default)]
    pub command: String,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its environment, besides `PATH` and `CROSSDOCK_APP`, `CROSSDOCK_VERSION`, `CROSSDOCK_DIGEST`,
    /// `CROSSDOCK_TREE` (its files), `CROSSDOCK_DATA` (a folder that stays from release to release) and
    /// `CROSSDOCK_APPS` (`$CROSSDOCK_APPS/<app>/current` leads to the files of another app's release), with
    /// secrets `CROSSDOCK_SECRETS`, with `uses` a variable for each ([`variable`](super::uses::variable)),
    /// `CROSSDOCK_RUN` and `CROSSDOCK_LIVE` with [`Strategy::Warm`](super::Strategy), and `CROSSDOCK_REPLICA` with replicas.
    /// Nothing else is inherited.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Run this image instead of a process of the box. Agents that know only processes refuse it: no command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// Apps whose files a process uses, see [`uses`](super::uses). Agents that do not know this start it without them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub uses: BTreeSet<Name>,
    /// Secrets that the node opens for it before it starts: files in the folder `CROSSDOCK_SECRETS`, in memory,
    /// which its user alone may read. Agents that know of none start it without them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Secret>,
    /// User to run as, a name or a number of the box. Default: as the agent. Of a container: as its image says.
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
    /// Memory and processor time that are kept for it on its box, as in Kubernetes: where they are not left, it is not
    /// begun. Default: its limits.
    #[serde(default, skip_serializing_if = "Resources::is_none")]
    pub requests: Resources,
    /// Apps that it is better apart from: their names, or words that several apps share, such as `heavy`. A rollout that
    /// chooses nodes keeps apps that share a word on different ones while another one of the site would do.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub anti_affinity: BTreeSet<Name>,
    /// How many instances of it run. Default: one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<Replicas>,
    /// GPUs it needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<Gpus>,
    /// Who may run commands in it, by `crossdock exec`. Absent: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<Exec>,
    /// Probes, as in Kubernetes.
    #[serde(default)]
    pub probes: Probes,
    /// Time between SIGTERM and SIGKILL.
    #[serde(default = "default_stop_grace")]
    pub stop_grace: Span,
    /// When to start it again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How a new release of it follows an old one.
    #[serde(default, skip_serializing_if = "Update::is_default")]
    pub update: Update,
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

/// A secret of a workload, sealed to the nodes that need it: see [`crate::secret`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    /// Its file in `CROSSDOCK_SECRETS`.
    pub name: String,
    /// The sealed secret, an age file: path in the tree.
    pub file: String,
    /// To whom it is sealed, as who sealed it says. `release build` takes it from the file where that says it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sealed_to: Vec<SealedTo>,
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
            container: None,
            uses: BTreeSet::new(),
            secrets: vec![],
            user: None,
            working_dir: None,
            ports: vec![],
            limits: Limits::default(),
            requests: Resources::default(),
            anti_affinity: BTreeSet::new(),
            replicas: None,
            gpus: None,
            exec: None,
            probes: Probes::default(),
            stop_grace: default_stop_grace(),
            restart: RestartPolicy::default(),
            update: Update::default(),
            soak: default_soak(),
            deadline: default_deadline(),
        }
    }

    /// Checks what the types do not, in a tree of these files.
    ///
    /// # Errors
    /// The first field that cannot work.
    pub fn check(&self, files: &[FileEntry]) -> Result<(), ManifestError> {
        let wrong = |text: String| Err(ManifestError::Workload(text));
        let clean = |text: &str| !text.contains('\0');
        match &self.container {
            Some(container) => {
                container.check(files)?;
                let number = |user: &str| user.split(':').take(3).all(|part| part.parse::<u32>().is_ok());
                let given = self.given_secrets().next().is_some();
                if let Some(user) = self.user.as_deref().filter(|user| given && !number(user)) {
                    return wrong(format!(
                        "user {user:?} of a container with secrets must be a number, such as 1000:1000"
                    ));
                }
                if let Some(folder) = self.working_dir.as_deref().filter(|folder| !folder.starts_with('/')) {
                    return wrong(format!("workingDir {folder:?} of a container must be absolute"));
                }
            }
            None if self.command.is_empty() => return wrong("it has neither a command nor a container".into()),
            None => self.check_paths()?,
        }
        if !clean(&self.command) || !self.args.iter().all(|a| clean(a)) {
            return wrong("command and args must not hold a NUL character".into());
        }
        for (key, value) in &self.env {
            if key.is_empty() || key.contains('=') || !clean(key) || !clean(value) {
                return wrong(format!("environment variable {key:?} is not usable: no '=' or NUL in its name"));
            }
        }
        self.check_secrets()?;
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
        if self.anti_affinity.len() > MAX_ANTI_AFFINITY {
            return wrong(format!("antiAffinity holds {}; at most {MAX_ANTI_AFFINITY}", self.anti_affinity.len()));
        }
        if let Some(gpus) = &self.gpus {
            gpus.check()?;
        }
        if let Some(exec) = &self.exec {
            exec.check()?;
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
        let over =
            |asked: Option<u64>, limit: Option<u64>| asked.zip(limit).is_some_and(|(asked, limit)| asked > limit);
        let (asks, limits) = (&self.requests, &self.limits);
        if over(asks.memory.map(Bytes::get), limits.memory.map(Bytes::get))
            || over(asks.cpu_millis.map(u64::from), limits.cpu_millis.map(u64::from))
        {
            return wrong(
                "requests above limits ask for what it may never use; raise the limits or ask for less".into(),
            );
        }
        Ok(())
    }

    /// What it asks of its box: what one instance does, times the replicas that run at least.
    #[must_use]
    pub fn asks(&self) -> Resources {
        self.each_asks().times(self.replicas.as_ref().map_or(1, |replicas| replicas.min.max(1)))
    }

    /// What one instance asks of its box: its requests, and its limits where those do not say.
    #[must_use]
    pub fn each_asks(&self) -> Resources {
        let Resources { memory, cpu_millis } = self.requests;
        Resources { memory: memory.or(self.limits.memory), cpu_millis: cpu_millis.or(self.limits.cpu_millis) }
    }

    /// The secret with the credentials for its image's registry.
    #[must_use]
    pub fn pull_secret(&self) -> Option<&Secret> {
        let name = self.container.as_ref()?.pull_secret.as_ref()?;
        self.secrets.iter().find(|secret| secret.name == *name)
    }

    /// Secrets that it is given: all but the one for its image's registry.
    pub fn given_secrets(&self) -> impl Iterator<Item = &Secret> {
        let for_engine = self.container.as_ref().and_then(|container| container.pull_secret.as_ref());
        self.secrets.iter().filter(move |secret| Some(&secret.name) != for_engine)
    }

    /// Those of a process that lead into the tree.
    fn check_paths(&self) -> Result<(), ManifestError> {
        if !self.command.starts_with('/') {
            TreePath::try_from(self.command.clone())?;
        }
        if let Some(folder) = self.working_dir.as_deref().filter(|f| *f != ".") {
            TreePath::try_from(folder.to_owned())?;
        }
        Ok(())
    }

    fn check_secrets(&self) -> Result<(), ManifestError> {
        let wrong = |text: String| Err(ManifestError::Workload(text));
        if self.secrets.len() > MAX_SECRETS {
            return wrong(format!(
                "{} secrets are more than {MAX_SECRETS}; put several into one file",
                self.secrets.len()
            ));
        }
        let mut names = BTreeSet::new();
        for Secret { name, file, sealed_to } in &self.secrets {
            if !secret::is_secret_name(name) {
                return wrong(format!(
                    "{name:?} cannot name a secret: letters, digits, '-', '_' and '.', no '.' first"
                ));
            }
            if !names.insert(name) {
                return wrong(format!("there are two secrets {name:?}"));
            }
            TreePath::try_from(file.clone())?;
            let too_long = |to: &SealedTo| to.key.len() > MAX_KEY_BYTES || to.node.iter().any(|n| n.len() > 63);
            if sealed_to.len() > MAX_RECIPIENTS || sealed_to.iter().any(too_long) {
                return wrong(format!("secret {name:?} names more than {MAX_RECIPIENTS} keys, or what is none"));
            }
        }
        match self.container.as_ref().and_then(|container| container.pull_secret.as_ref()) {
            Some(name) if self.pull_secret().is_none() => wrong(format!(
                "container.pullSecret {name:?} is none of its secrets; add it: secrets: [{{ name: {name}, file: {name}.age }}]"
            )),
            _ => Ok(()),
        }
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
            r#"{"command": "run", "exec": {"authorizedKeys": ["ssh-rsa AAAA"]}}"#,
            r#"{"command": "run", "limits": {"memory": "1Gi"}, "requests": {"memory": "2Gi"}}"#,
            r#"{"command": "run", "secrets": [{"name": "a/b", "file": "a.age"}]}"#,
            r#"{"command": "run", "secrets": [{"name": "..", "file": "a.age"}]}"#,
            r#"{"command": "run", "secrets": [{"name": "a", "file": "../a.age"}]}"#,
            r#"{"command": "run", "secrets": [{"name": "a", "file": "a.age"}, {"name": "a", "file": "b.age"}]}"#,
        ] {
            let workload: Workload = serde_json::from_str(bad).unwrap();
            assert!(workload.check(&[]).is_err(), "{bad}");
        }
    }

    #[test]
    fn credentials_for_a_registry_are_not_the_workloads() {
        let digest = crate::digest::Digest::of(b"x");
        let workload = |more: &str| {
            let secrets = r#"[{"name": "registry", "file": "r.age"}, {"name": "db", "file": "db.age"}]"#;
            let container = format!(r#"{{"registry": "registry.example/a@{digest}" {more}}}"#);
            let text = format!(r#"{{"container": {container}, "secrets": {secrets}}}"#);
            serde_json::from_str::<Workload>(&text).unwrap()
        };
        let given = |workload: &Workload| workload.given_secrets().map(|s| s.name.clone()).collect::<Vec<_>>();
        let none = workload("");
        assert_eq!((given(&none), none.pull_secret()), (vec!["registry".to_owned(), "db".to_owned()], None));
        let mut named = workload(r#", "pullSecret": "registry""#);
        named.check(&[]).unwrap();
        assert_eq!((given(&named), &*named.pull_secret().unwrap().file), (vec!["db".to_owned()], "r.age"));
        let text = serde_json::to_string(&named).unwrap();
        assert!(text.contains(r#""pullSecret":"registry""#), "{text}");
        assert_eq!(serde_json::from_str::<Workload>(&text).unwrap(), named);
        // A name counts where secrets are given alone.
        named.user = Some("www-data".into());
        assert!(named.check(&[]).is_err());
        named.secrets.pop();
        named.check(&[]).unwrap();
        let missing = workload(r#", "pullSecret": "regsitry""#).check(&[]).unwrap_err().to_string();
        assert!(missing.contains("regsitry") && missing.contains("none of its secrets"), "{missing}");
    }
}
