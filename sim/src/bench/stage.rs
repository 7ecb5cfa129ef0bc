//! The processes of a bench: the shipped binaries, started in a temporary folder and stopped whole.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::{api::Api, process};

/// How long a bench waits for any one thing before it gives up.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The app that benches roll out.
pub const APP: &str = "bench-app";

/// A hub on loopback, its agents, and the folder of it all.
#[derive(Debug)]
pub struct Stage {
    folder: tempfile::TempDir,
    bins: PathBuf,
    hub: Option<Child>,
    agents: BTreeMap<String, Child>,
    /// Where the hub's link listens.
    pub link: SocketAddr,
    /// The hub's REST.
    pub api: Api,
}

impl Stage {
    /// Starts a hub and publishes a trust root.
    ///
    /// # Errors
    /// When a binary is missing or does not do what it should.
    pub async fn open() -> anyhow::Result<Stage> {
        let bins = programs().await?;
        let folder = tempfile::Builder::new().prefix("crossdock-bench-").tempdir()?;
        let data = folder.path().join("hub");
        let runner = Runner { bins: &bins, folder: folder.path() };
        let any = "127.0.0.1:0";
        let init = ["init", "--data", "hub", "--fleet", "bench", "--link-listen", any, "--api-listen", any];
        runner.run("cloudcore", &init).await?;
        let hub = runner.spawn("cloudcore", &["serve", "--data", &data.to_string_lossy()], "hub", &[])?;
        let mut hub = Reaper(Some(hub));
        let addresses = wait_for_addresses(&data.join("addresses.json"), hub.child()?).await?;
        let api = Api::of(&data, &addresses.api)?;
        let url = format!("https://{}", addresses.api);
        runner.run("crossdock", &["login", &url, "--token-file", "hub/admin.token", "--ca", "hub/ca.pem"]).await?;
        runner.run("crossdock", &["release", "init", "repo"]).await?;
        runner.run("crossdock", &["release", "publish", "--repo", "repo"]).await?;
        let link = addresses.link.parse().context("the hub's link address")?;
        let hub = hub.0.take();
        Ok(Stage { folder, bins, hub, agents: BTreeMap::new(), link, api })
    }

    fn runner(&self) -> Runner<'_> {
        Runner { bins: &self.bins, folder: self.folder.path() }
    }

    /// A path in the folder of the bench.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A shipped program.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.bins.join(name)
    }

    /// Runs `crossdock` to its end.
    ///
    /// # Errors
    /// When it fails, with what it printed.
    pub async fn crossdock(&self, args: &[&str]) -> anyhow::Result<String> {
        self.runner().run("crossdock", args).await
    }

    /// Builds, signs and publishes a release that sleeps, with `bytes` of incompressible content.
    ///
    /// # Errors
    /// When a command fails.
    pub async fn publish(&self, version: &str, bytes: usize) -> anyhow::Result<()> {
        let name = format!("{APP}-{version}");
        let files = self.path(&name).join("files");
        fs::create_dir_all(files.join("bin"))?;
        let program = files.join("bin/app");
        fs::write(&program, "#!/bin/sh\nexec sleep 1000000\n")?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let mut content = vec![0; bytes];
        rand::Rng::fill_bytes(&mut proto::env::Seed::from_u64(1).stream(version), &mut content);
        fs::write(files.join("content.bin"), content)?;
        let yaml = format!(
            "apiVersion: crossdock.io/v1\napp: {APP}\nversion: {version}\nartifacts:\n  - source: files\n\
             workload:\n  command: bin/app\n  soak: {SOAK_S}s\n  deadline: 60s\n  stopGrace: 5s\n"
        );
        fs::write(self.path(&name).join("release.yaml"), yaml)?;
        self.crossdock(&["release", "build", &format!("{name}/release.yaml"), "--repo", "repo"]).await?;
        self.crossdock(&["release", "sign", "--repo", "repo"]).await?;
        self.crossdock(&["release", "publish", "--repo", "repo"]).await?;
        Ok(())
    }

    /// A join token for so many boxes.
    ///
    /// # Errors
    /// When none was printed.
    pub async fn token(&self, uses: usize) -> anyhow::Result<String> {
        let uses = uses.to_string();
        let text = self.crossdock(&["token", "create", "--site", "bench", "--uses", &uses]).await?;
        let token = text.split_whitespace().find(|word| word.starts_with("cdk1."));
        Ok(token.context("`crossdock token create` printed no token")?.to_owned())
    }

    /// Joins a box under a name.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn join(&self, node: &str, token: &str, hub: SocketAddr) -> anyhow::Result<()> {
        let (data, hub) = (self.path(node), hub.to_string());
        let args = ["join", &hub, "--token", token, "--name", node, "--data", &data.to_string_lossy()];
        self.runner().run_with("edgecore", &args, &[("CROSSDOCK_MACHINE_ID", node)]).await.map(drop)
    }

    /// Starts the agent of a box that joined.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_agent(&mut self, node: &str) -> anyhow::Result<()> {
        let data = self.path(node);
        let args = ["run", "--data", &data.to_string_lossy()];
        let child = self.runner().spawn("edgecore", &args, node, &[("CROSSDOCK_MACHINE_ID", node)])?;
        self.agents.insert(node.to_owned(), child);
        Ok(())
    }

    /// Process number of the hub.
    ///
    /// # Errors
    /// When it has ended.
    pub fn hub_pid(&self) -> anyhow::Result<u32> {
        self.hub.as_ref().and_then(Child::id).context("the hub has ended")
    }

    /// Process numbers of the agents that run.
    #[must_use]
    pub fn agent_pids(&self) -> Vec<u32> {
        self.agents.values().filter_map(Child::id).collect()
    }

    /// Process numbers of the shims under which workloads run.
    #[must_use]
    pub fn shim_pids(&self) -> Vec<u32> {
        process::find("shim", self.folder.path())
    }

    /// Stops everything. What ended by itself meanwhile is an error.
    ///
    /// # Errors
    /// When a process had ended, or one does not end.
    pub async fn close(mut self) -> anyhow::Result<()> {
        let mut early = vec![];
        let mut children: Vec<_> = std::mem::take(&mut self.agents).into_iter().collect();
        children.extend(self.hub.take().map(|hub| ("hub".to_owned(), hub)));
        for (name, child) in &mut children {
            match child.try_wait()? {
                Some(status) => early.push(format!("{name} ended with {status}: {}", self.last_lines(name))),
                None => signal(child.id(), Signal::TERM),
            }
        }
        for (_, child) in &mut children {
            if timeout(Duration::from_secs(15), child.wait()).await.is_err() {
                child.kill().await?;
            }
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let left = self.shim_pids();
            if left.is_empty() {
                break;
            }
            let with = if Instant::now() > deadline { Signal::KILL } else { Signal::TERM };
            left.into_iter().for_each(|pid| signal(Some(pid), with));
            sleep(Duration::from_millis(50)).await; // the period of asking
        }
        ensure!(early.is_empty(), "processes ended by themselves: {}", early.join("; "));
        Ok(())
    }

    /// The last lines that a process wrote, for an error.
    #[must_use]
    pub fn last_lines(&self, name: &str) -> String {
        let text = fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join(" | ")
    }
}

/// Seconds that a release of [`Stage::publish`] must stay healthy: what the workload itself needs.
pub const SOAK_S: u64 = 1;

impl Drop for Stage {
    /// A bench that failed leaves nothing behind either.
    fn drop(&mut self) {
        let children = self.agents.values().chain(self.hub.as_ref());
        children.for_each(|child| signal(child.id(), Signal::TERM));
        self.shim_pids().into_iter().for_each(|pid| signal(Some(pid), Signal::TERM));
    }
}

fn signal(pid: Option<u32>, signal: Signal) {
    if let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid.cast_signed())) {
        let _ = kill_process(pid, signal); // it may have ended already
    }
}

/// Ends a child unless it was taken out.
struct Reaper(Option<Child>);

impl Reaper {
    fn child(&mut self) -> anyhow::Result<&mut Child> {
        self.0.as_mut().context("the process was taken")
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        signal(self.0.as_ref().and_then(Child::id), Signal::TERM);
    }
}

/// Runs programs of one folder in another.
struct Runner<'a> {
    bins: &'a Path,
    folder: &'a Path,
}

impl Runner<'_> {
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(self.bins.join(program));
        command.args(args).current_dir(self.folder).stdin(Stdio::null());
        command.env("CROSSDOCK_CONFIG", self.folder.join("contexts.yaml"));
        for name in ["CROSSDOCK_SERVER", "CROSSDOCK_TOKEN", "CROSSDOCK_CA", "CROSSDOCK_CONTEXT"] {
            command.env_remove(name); // a user's own hub is not to be measured
        }
        command
    }

    async fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        self.run_with(program, args, &[]).await
    }

    async fn run_with(&self, program: &str, args: &[&str], env: &[(&str, &str)]) -> anyhow::Result<String> {
        let mut command = self.command(program, args);
        command.envs(env.iter().copied()).kill_on_drop(true);
        let what = format!("{program} {}", args.first().unwrap_or(&""));
        let output = timeout(PATIENCE, command.output()).await;
        let output = output.with_context(|| format!("{what} did not end within {PATIENCE:?}"))??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("{what} ended with {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(text)
    }

    fn spawn(&self, program: &str, args: &[&str], log: &str, env: &[(&str, &str)]) -> anyhow::Result<Child> {
        let log = File::create(self.folder.join(format!("{log}.log")))?;
        let mut command = self.command(program, args);
        command.envs(env.iter().copied()).stdout(log.try_clone()?).stderr(log).process_group(0);
        command.spawn().with_context(|| format!("start {program}"))
    }
}

#[derive(serde::Deserialize)]
struct Addresses {
    link: String,
    api: String,
}

async fn wait_for_addresses(path: &Path, hub: &mut Child) -> anyhow::Result<Addresses> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(addresses) = fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            return Ok(addresses);
        }
        if let Some(status) = hub.try_wait()? {
            let log = path.with_file_name("../hub.log");
            bail!("the hub ended with {status}: {}", fs::read_to_string(log).unwrap_or_default());
        }
        ensure!(Instant::now() < deadline, "the hub did not say within {PATIENCE:?} where it listens");
        sleep(Duration::from_millis(20)).await; // the period of asking
    }
}

/// The folder with the shipped programs: that of this one. Under cargo they are built first.
async fn programs() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("find this program")?;
    let folder = this.parent().context("find the folder of this program")?.to_owned();
    if let Some(cargo) = std::env::var_os("CARGO") {
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("find the workspace")?;
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--profile", profile, "-p", "cloudcore", "-p", "edgecore", "--bins"]);
        ensure!(build.current_dir(workspace).status().await?.success(), "cargo could not build the programs");
    }
    for program in ["cloudcore", "crossdock", "edgecore"] {
        let path = folder.join(program);
        ensure!(path.exists(), "{} is missing; build all programs: cargo build --release --bins", path.display());
    }
    Ok(folder)
}
