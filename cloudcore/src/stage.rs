//! A hub and agents as processes on this machine: started, driven by the command line, killed, waited
//! for, stopped whole.
//!
//! The demo, the end-to-end tests and the benches play on it. Every process is the program that ships;
//! nothing here reaches into one but by signals and by what a user could type.
//!
//! [`Stage`] is the whole of it. `programs` finds and builds what it starts, `releases` is the release engineer's part, `line` lays lines that can be cut, each
//! a [`relay`]; [`postgres`] is a database server beside it.

mod line;
pub mod postgres;
mod programs;
pub mod relay;
mod releases;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context as _, bail};
use line::Line;
use proto::object::Node;
use rustix::process::{Pid, Signal};
use tokio::{
    process::{Child, Command},
    time::Instant,
};

pub use self::{
    programs::{Programs, programs, shipped_programs},
    releases::write_program,
};

/// How long anything may take before the wait is given up. A busy machine with one core needs far less.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Time between two looks at something that is waited for.
const PERIOD: Duration = Duration::from_millis(50);
/// The same where a look costs next to nothing.
const CHEAP_PERIOD: Duration = Duration::from_millis(5);

/// Everything that was started, and where. Dropped, it kills all of it.
#[derive(Debug)]
pub struct Stage {
    folder: PathBuf,
    temporary: Option<tempfile::TempDir>,
    programs: Programs,
    show: bool,
    left_running: bool,
    hub: Option<Child>,
    agents: BTreeMap<String, Child>,
    lines: BTreeMap<String, Line>,
}

impl Stage {
    /// A stage in `dir` (which must be empty), or in a temporary folder; `show` prints every command and
    /// its output.
    ///
    /// # Errors
    /// When the folder cannot be made, is not empty, or a program is missing.
    pub fn open(dir: Option<PathBuf>, programs: Programs, show: bool) -> anyhow::Result<Stage> {
        for program in ["cloudcore", "crossdock", "edgecore"] {
            let path = programs.path(program);
            if !path.exists() {
                bail!(
                    "there is no {}; build it with cargo build --bins, or install all programs into one folder",
                    path.display()
                );
            }
        }
        let (folder, temporary) = match dir {
            Some(dir) => {
                fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
                if fs::read_dir(&dir)?.next().is_some() {
                    bail!("{} is not empty; name a new folder", dir.display());
                }
                (dir.canonicalize()?, None)
            }
            None => {
                let temporary = tempfile::Builder::new().prefix("crossdock-").tempdir()?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        Ok(Stage {
            folder,
            temporary,
            programs,
            show,
            left_running: false,
            hub: None,
            agents: BTreeMap::new(),
            lines: BTreeMap::new(),
        })
    }

    /// Makes the hub's data folder with ports of its own, starts the hub and logs in.
    ///
    /// # Errors
    /// When one of the commands fails.
    pub async fn init_hub(&mut self) -> anyhow::Result<()> {
        // Fixed from here on, so that a hub that is killed comes back where its agents look for it.
        let port = free_port().context("no port is free for the hub")?;
        let (link, api) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{port}"));
        let init = ["init", "--data", "hub", "--fleet", "demo", "--link-listen", &link, "--api-listen", &api];
        self.run("cloudcore", &init).await?;
        self.start_hub().await?;
        let url = format!("https://{api}");
        self.crossdock(&["login", &url, "--token-file", "hub/admin.token", "--ca", "hub/ca.pem"]).await?;
        Ok(())
    }

    /// Address of the hub's link, as the hub wrote it down.
    ///
    /// # Errors
    /// When the hub never ran.
    pub fn link_address(&self) -> anyhow::Result<String> {
        self.address("link")
    }

    /// Address of the hub's REST API.
    ///
    /// # Errors
    /// When the hub never ran.
    pub fn api_address(&self) -> anyhow::Result<String> {
        self.address("api")
    }

    fn address(&self, which: &str) -> anyhow::Result<String> {
        let text = fs::read_to_string(self.path("hub/addresses.json")).context("read the hub's addresses")?;
        let addresses: serde_json::Value = serde_json::from_str(&text)?;
        Ok(addresses.get(which).and_then(|v| v.as_str()).context("the hub did not say where it listens")?.to_owned())
    }

    /// Joins a box under a name, with a token made for it.
    ///
    /// # Errors
    /// When one of the commands fails.
    pub async fn join(&self, node: &str, site: &str) -> anyhow::Result<()> {
        let hub = match self.lines.get(node) {
            Some(line) => line.address.clone(),
            None => self.link_address()?,
        };
        self.join_at(node, site, &hub).await
    }

    /// As [`Stage::join`], with the hub at this address.
    ///
    /// # Errors
    /// When one of the commands fails.
    pub async fn join_at(&self, node: &str, site: &str, hub: &str) -> anyhow::Result<()> {
        let token = self.crossdock(&["token", "create", "--site", site, "--node", node]).await?;
        let token = token.split_whitespace().find(|w| w.starts_with("cdk1.")).context("no token was printed")?;
        self.run("edgecore", &["join", hub, "--token", token, "--data", node]).await?;
        // Several boxes share this machine: each takes ports of its own.
        let settings = "[streams]\nhttp = \"127.0.0.1:0\"\nmqtt = \"127.0.0.1:0\"\n";
        fs::write(self.path(node).join("agent.toml"), settings).context("write agent.toml")
    }

    /// A path in the stage's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The `crossdock` executable.
    #[must_use]
    pub fn crossdock_program(&self) -> PathBuf {
        self.programs.path("crossdock")
    }

    /// A command in the stage's folder that talks to the stage's hub and knows of no other, with nothing to read.
    #[must_use]
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(self.programs.path(program));
        command.args(args).current_dir(&self.folder).stdin(Stdio::null());
        command.env("CROSSDOCK_CONFIG", self.folder.join("contexts.yaml"));
        let of_hub = ["CROSSDOCK_SERVER", "CROSSDOCK_TOKEN", "CROSSDOCK_CA", "CROSSDOCK_CONTEXT"];
        let of_keys = ["CROSSDOCK_REPO", "CROSSDOCK_PASSPHRASE", "CROSSDOCK_PASSPHRASE_FILE"];
        for name in of_hub.iter().chain(&of_keys) {
            command.env_remove(name); // a user's own hub and keys are none of the demo's business
        }
        command
    }

    /// Runs a command to its end and returns its exit code and output.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub async fn try_run(&self, program: &str, args: &[&str]) -> anyhow::Result<(i32, String)> {
        let shown: Vec<_> = args.iter().map(|a| shorten(a)).collect();
        if self.show {
            println!("   $ {program} {}", shown.join(" "));
        }
        let output = tokio::time::timeout(PATIENCE, self.command(program, args).output());
        let output = output.await.with_context(|| format!("{program} did not end within {PATIENCE:?}"))??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        for line in text.lines().chain(errors.lines()).filter(|_| self.show) {
            println!("     {}", shorten(line));
        }
        Ok((output.status.code().unwrap_or(-1), text + &errors))
    }

    /// As [`Stage::try_run`], and failing is an error.
    ///
    /// # Errors
    /// Says what did not happen.
    pub async fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        match self.try_run(program, args).await? {
            (0, text) => Ok(text),
            (code, text) => bail!("{program} {} ended with exit code {code}: {text}", args.join(" ")),
        }
    }

    /// As [`Stage::run`], without showing it; only standard output is returned.
    ///
    /// # Errors
    /// Says what did not happen.
    pub async fn quiet(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        let output = tokio::time::timeout(PATIENCE, self.command(program, args).output());
        let output = output.await.with_context(|| format!("{program} did not end within {PATIENCE:?}"))??;
        if !output.status.success() {
            bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs `crossdock`.
    ///
    /// # Errors
    /// Says what did not happen.
    pub async fn crossdock(&self, args: &[&str]) -> anyhow::Result<String> {
        self.run("crossdock", args).await
    }

    fn spawn(&self, name: &str, program: &str, action: &str) -> anyhow::Result<Child> {
        let log = File::options().create(true).append(true).open(self.path(&format!("{name}.log")))?;
        let mut command = self.command(program, &[action, "--data", &self.path(name).to_string_lossy()]);
        command.stdout(log.try_clone()?).stderr(log).process_group(0);
        if program == "edgecore" {
            // As its systemd unit has it.
            command.env("MALLOC_ARENA_MAX", "1").env("MALLOC_TRIM_THRESHOLD_", "65536").env("MALLOC_TOP_PAD_", "16384");
        }
        command.spawn().with_context(|| format!("start {program}"))
    }

    /// Starts the hub and waits until it listens.
    ///
    /// # Errors
    /// When it cannot be started or ends by itself.
    pub async fn start_hub(&mut self) -> anyhow::Result<()> {
        let addresses = self.path("hub/addresses.json");
        match fs::remove_file(&addresses) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).context("remove addresses.json"),
            _ => {}
        }
        self.hub = Some(self.spawn("hub", "cloudcore", "serve")?);
        self.wait_until("the hub listens", || addresses.exists()).await
    }

    /// Starts the agent of a node that has joined.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&mut self, node: &str) -> anyhow::Result<()> {
        let child = self.spawn(node, "edgecore", "run")?;
        self.agents.insert(node.to_owned(), child);
        Ok(())
    }

    /// Kills the hub with SIGKILL, if it was started.
    ///
    /// # Errors
    /// When it has ended by itself.
    pub async fn kill_hub(&mut self) -> anyhow::Result<()> {
        match self.hub.take() {
            Some(mut hub) => kill("the hub", &mut hub).await,
            None => Ok(()),
        }
    }

    /// Kills an agent with SIGKILL, if it was started. Its workloads go on.
    ///
    /// # Errors
    /// When it has ended by itself.
    pub async fn kill_agent(&mut self, node: &str) -> anyhow::Result<()> {
        match self.agents.remove(node) {
            Some(mut agent) => kill(&format!("agent {node}"), &mut agent).await,
            None => Ok(()),
        }
    }

    /// Process ID of the hub, while it runs.
    #[must_use]
    pub fn hub_pid(&self) -> Option<u32> {
        self.hub.as_ref().and_then(Child::id)
    }

    /// Process ID of an agent, while it runs.
    #[must_use]
    pub fn agent_pid(&self, node: &str) -> Option<u32> {
        self.agents.get(node).and_then(Child::id)
    }

    /// All nodes as the hub has them.
    ///
    /// # Errors
    /// Says what did not happen.
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
    ///
    /// # Errors
    /// Says what did not happen.
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
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Waits until something holds.
    ///
    /// # Errors
    /// When it does not within [`PATIENCE`], or a process ended by itself meanwhile.
    pub async fn wait_until(&mut self, what: &str, condition: impl Fn() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            self.check_alive()?;
            if Instant::now() > deadline {
                bail!("waited {PATIENCE:?} until {what}");
            }
            tokio::time::sleep(CHEAP_PERIOD).await;
        }
        Ok(())
    }

    /// Whether everything that was started still runs.
    ///
    /// # Errors
    /// Says what ended by itself.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
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
        for (_, mut line) in std::mem::take(&mut self.lines) {
            line.relay.kill().await?;
        }
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
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Stops everything and removes the folder.
    ///
    /// # Errors
    /// Says what did not happen.
    pub async fn close(mut self) -> anyhow::Result<()> {
        self.stop().await
    }

    /// Keeps the folder, for whoever wants to know why, and returns where it is.
    pub fn keep_folder(&mut self) -> PathBuf {
        if let Some(temporary) = self.temporary.as_mut() {
            temporary.disable_cleanup(true);
        }
        self.folder.clone()
    }

    /// Leaves everything running and says how to go on.
    pub fn leave_running(mut self) {
        self.left_running = true;
        self.keep_folder();
        let folder = self.folder.display();
        println!("\nStill running. Look at it:");
        println!("  export CROSSDOCK_CONFIG={folder}/contexts.yaml");
        println!("  {} get nodes -o wide", self.crossdock_program().display());
        println!("End it:");
        println!("  pkill -f {folder}; rm -rf {folder}");
    }
}

impl Drop for Stage {
    /// The last resort of a test that failed: nothing outlives it.
    fn drop(&mut self) {
        if self.left_running {
            return;
        }
        let relays = self.lines.values_mut().map(|line| &mut line.relay);
        for child in self.agents.values_mut().chain(self.hub.as_mut()).chain(relays) {
            let _ = child.start_kill(); // it may have ended already
        }
        for pid in shims_below(&self.folder) {
            let _ = rustix::process::kill_process(pid, Signal::TERM); // the shim stops its tree
        }
    }
}

/// A port that is free for UDP and TCP, below those that the kernel hands out by itself: it stays free
/// while the hub that will use it starts, or is away.
#[must_use]
pub fn free_port() -> Option<u16> {
    const PORTS: std::ops::Range<u16> = 20_000..30_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u64::from(std::process::id()) * 16; // processes that run side by side begin apart
    (0..PORTS.len() as u64).find_map(|_| {
        let step = first + u64::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + u16::try_from(step % PORTS.len() as u64).ok()?;
        let free = UdpSocket::bind(("127.0.0.1", port)).is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok();
        free.then_some(port)
    })
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

/// Kills a process that runs.
async fn kill(name: &str, child: &mut Child) -> anyhow::Result<()> {
    if let Some(status) = child.try_wait()? {
        bail!("{name} ended by itself before it was killed: {status}");
    }
    Ok(child.kill().await?)
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(160) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
