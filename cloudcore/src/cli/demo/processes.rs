//! The processes of the demo: found or built, started, waited for, stopped whole.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use proto::object::Node;
use rustix::process::{Pid, Signal};
use tokio::{
    process::{Child, Command},
    time::Instant,
};

/// How long the demo waits for anything before it gives up. A busy machine with one core needs far less.
const PATIENCE: Duration = Duration::from_secs(120);

/// Everything that the demo started, and where.
pub struct Stage {
    folder: PathBuf,
    temporary: Option<tempfile::TempDir>,
    bins: PathBuf,
    hub: Option<Child>,
    agents: BTreeMap<String, Child>,
    context: Vec<(&'static str, PathBuf)>,
}

impl Stage {
    /// Finds or builds the programs, and makes the folder.
    pub async fn open(dir: Option<PathBuf>, keep: bool) -> anyhow::Result<Stage> {
        let bins = programs().await?;
        let (folder, temporary) = match dir {
            Some(dir) => {
                fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
                if fs::read_dir(&dir)?.next().is_some() {
                    bail!("{} is not empty; name a new folder", dir.display());
                }
                (dir.canonicalize()?, None)
            }
            None => {
                let mut temporary = tempfile::Builder::new().prefix("crossdock-demo-").tempdir()?;
                temporary.disable_cleanup(keep);
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        println!("working in {}", folder.display());
        let context = vec![("CROSSDOCK_CONFIG", folder.join("contexts.yaml"))];
        Ok(Stage { folder, temporary, bins, hub: None, agents: BTreeMap::new(), context })
    }

    /// A path in the demo's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The `crossdock` executable.
    pub fn crossdock_program(&self) -> PathBuf {
        self.bins.join("crossdock")
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(self.bins.join(program));
        command.args(args).current_dir(&self.folder).stdin(Stdio::null());
        command.envs(self.context.iter().map(|(k, v)| (k, v)));
        for name in ["CROSSDOCK_SERVER", "CROSSDOCK_TOKEN", "CROSSDOCK_CA", "CROSSDOCK_CONTEXT"] {
            command.env_remove(name); // a user's own hub is none of the demo's business
        }
        command
    }

    /// Runs a command to its end, shows it and what it prints, and returns its exit code and output.
    pub async fn try_run(&self, program: &str, args: &[&str]) -> anyhow::Result<(i32, String)> {
        let shown: Vec<_> = args.iter().map(|a| shorten(a)).collect();
        println!("   $ {program} {}", shown.join(" "));
        let output = tokio::time::timeout(PATIENCE, self.command(program, args).output());
        let output = output.await.with_context(|| format!("{program} did not end within {PATIENCE:?}"))??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        for line in text.lines().chain(errors.lines()) {
            println!("     {}", shorten(line));
        }
        Ok((output.status.code().unwrap_or(-1), text + &errors))
    }

    /// As [`Stage::try_run`], and failing is an error.
    pub async fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        match self.try_run(program, args).await? {
            (0, text) => Ok(text),
            (code, _) => bail!("{program} {} ended with exit code {code}", args.join(" ")),
        }
    }

    /// Runs `crossdock`.
    pub async fn crossdock(&self, args: &[&str]) -> anyhow::Result<String> {
        self.run("crossdock", args).await
    }

    fn spawn(&self, program: &str, args: &[&str], env: &[(&str, &str)]) -> anyhow::Result<Child> {
        let name = args.last().unwrap_or(&program).rsplit('/').next().unwrap_or(program);
        let log = File::create(self.path(&format!("{name}.log")))?;
        let mut command = self.command(program, args);
        command.envs(env.iter().copied()).stdout(log.try_clone()?).stderr(log);
        command.kill_on_drop(false).process_group(0);
        command.spawn().with_context(|| format!("start {program}"))
    }

    /// Starts the hub.
    pub fn spawn_hub(&mut self) -> anyhow::Result<()> {
        let data = self.path("hub");
        self.hub = Some(self.spawn("cloudcore", &["serve", "--data", &data.to_string_lossy()], &[])?);
        Ok(())
    }

    /// Starts the agent of a node that has joined.
    pub fn spawn_agent(&mut self, node: &str) -> anyhow::Result<()> {
        let data = self.path(node);
        let child = self.spawn("edgecore", &["run", "--data", &data.to_string_lossy()], &[])?;
        self.agents.insert(node.to_owned(), child);
        Ok(())
    }

    /// All nodes as the hub has them.
    pub async fn nodes(&self) -> anyhow::Result<Vec<Node>> {
        let output = self.command("crossdock", &["get", "nodes", "-o", "json"]).output().await?;
        if !output.status.success() {
            bail!("crossdock get nodes: {}", String::from_utf8_lossy(&output.stderr));
        }
        #[derive(serde::Deserialize)]
        struct Items {
            items: Vec<Node>,
        }
        let list: Items = serde_json::from_slice(&output.stdout).context("read the answer of crossdock get nodes")?;
        Ok(list.items)
    }

    /// Waits until all nodes satisfy a condition.
    pub async fn wait_for_nodes(&mut self, what: &str, condition: impl Fn(&Node) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.check_alive()?;
            let nodes = self.nodes().await?;
            if nodes.len() == self.agents.len() && nodes.iter().all(&condition) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let seen = serde_json::to_string_pretty(&nodes)?;
                bail!("waited {PATIENCE:?} until {what}; the nodes are: {seen}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await; // the period of asking, not a guess of when
        }
    }

    /// Waits until a file is there and holds what `parse` understands.
    pub async fn wait_for_file<T>(&mut self, path: &Path, parse: impl Fn(&str) -> Option<T>) -> anyhow::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.check_alive()?;
            if let Some(value) = fs::read_to_string(path).ok().as_deref().and_then(&parse) {
                return Ok(value);
            }
            if Instant::now() > deadline {
                bail!("waited {PATIENCE:?} for {}", path.display());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn check_alive(&mut self) -> anyhow::Result<()> {
        let hub = self.hub.iter_mut().map(|child| ("the hub".to_owned(), child));
        for (name, child) in hub.chain(self.agents.iter_mut().map(|(n, c)| (format!("agent {n}"), c))) {
            if let Some(status) = child.try_wait()? {
                bail!("{name} ended by itself: {status}");
            }
        }
        Ok(())
    }

    /// Shows the last lines of every log, for a demo that failed.
    pub fn print_logs(&self) {
        for name in std::iter::once("hub").chain(self.agents.keys().map(String::as_str)) {
            let text = fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            println!("\n--- last lines of {name}.log");
            for line in lines.iter().skip(lines.len().saturating_sub(15)) {
                println!("{line}");
            }
        }
    }

    /// Stops everything that the demo started: agents, hub, and the workloads that agents leave behind.
    async fn stop(&mut self) -> anyhow::Result<()> {
        let mut children: Vec<Child> = std::mem::take(&mut self.agents).into_values().collect();
        children.extend(self.hub.take());
        for child in &children {
            if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
                let _ = rustix::process::kill_process(pid, Signal::TERM); // it may have ended already
            }
        }
        for child in &mut children {
            if tokio::time::timeout(Duration::from_secs(15), child.wait()).await.is_err() {
                child.kill().await?;
            }
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let left = shims_below(&self.folder);
            if left.is_empty() {
                return Ok(());
            }
            for pid in left {
                let signal = if Instant::now() > deadline { Signal::KILL } else { Signal::TERM };
                let _ = rustix::process::kill_process(pid, signal); // it may have ended already
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Stops everything and removes the folder.
    pub async fn close(mut self) -> anyhow::Result<()> {
        self.stop().await
    }

    /// Stops everything and keeps the folder for whoever wants to know why.
    pub async fn abandon(mut self) -> PathBuf {
        if let Err(error) = self.stop().await {
            eprintln!("could not stop everything: {error:#}");
        }
        if let Some(temporary) = self.temporary.as_mut() {
            temporary.disable_cleanup(true);
        }
        self.folder.clone()
    }

    /// Leaves everything running and says how to go on.
    pub fn leave_running(self) {
        let folder = self.folder.display();
        println!("\nStill running. Look at it:");
        println!("  export CROSSDOCK_CONFIG={folder}/contexts.yaml");
        println!("  {} get nodes -o wide", self.crossdock_program().display());
        println!("End it:");
        println!("  pkill -f {folder}; rm -rf {folder}");
    }
}

/// The shims of workloads whose files lie below `folder`.
fn shims_below(folder: &Path) -> Vec<Pid> {
    let folder = folder.to_string_lossy().into_owned();
    let Ok(entries) = fs::read_dir("/proc") else { return vec![] };
    let ours = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command.split(|b| *b == 0).map(String::from_utf8_lossy);
        words.nth(1).is_some_and(|w| w == "shim") && words.any(|w| w.starts_with(&folder))
    };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(ours).filter_map(Pid::from_raw).collect()
}

/// The folder with `cloudcore`, `crossdock` and `edgecore`. Under cargo they are built first, since
/// `cargo run --bin crossdock` builds only the one.
async fn programs() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("find this program")?;
    let folder = this.parent().context("find the folder of this program")?.to_owned();
    if let Some(cargo) = std::env::var_os("CARGO") {
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("find the workspace")?;
        println!("building the hub and the agent ...");
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--profile", profile, "--bin", "cloudcore", "--bin", "edgecore"]);
        if !build.current_dir(workspace).status().await?.success() {
            bail!("cargo could not build cloudcore and edgecore; see above");
        }
    }
    for program in ["cloudcore", "edgecore"] {
        if !folder.join(program).exists() {
            bail!("{program} is not beside {}; install all programs into one folder", this.display());
        }
    }
    Ok(folder)
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(160) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
