//! A real Postgres for tests and benches: made by Debian's `initdb` in a temporary folder, killed whole,
//! started again on its data. It ends with whoever started it, however that ends.
//!
//! It is run as user `postgres`, because it refuses to be root. Over its Unix socket everybody is
//! admitted, over TCP a password is asked for. `fsync` is off: that changes what a power cut leaves, and
//! nothing of what `kill -9` leaves, since what was written is the kernel's by then.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc,
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, geteuid, kill_process, pidfd_open},
};
use tokio::time::{Instant, sleep};

use super::{PATIENCE, free_port};

/// Where Debian keeps the programs: out of the search path, one folder a version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// Between two attempts to connect.
const PERIOD: Duration = Duration::from_millis(10);
/// How long a process that was killed may take to go.
const GOING: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// A cluster of its own. Dropped, it is stopped and removed.
#[derive(Debug)]
pub struct Postgres {
    folder: tempfile::TempDir,
    port: u16,
    settings: Vec<String>,
    running: Option<Running>,
}

/// The server, and the thread that started it: when that one ends, so does the server.
#[derive(Debug)]
struct Running {
    pid: Pid,
    waiter: JoinHandle<std::io::Result<ExitStatus>>,
}

impl Postgres {
    /// Makes a cluster whose user `postgres` has `password`. It does not run yet.
    ///
    /// # Errors
    /// When Postgres is not installed, or does not make it.
    pub fn make(password: &str) -> anyhow::Result<Postgres> {
        let folder = tempfile::Builder::new().prefix("postgres-").tempdir()?;
        give(folder.path())?;
        let port = free_port().context("no port is free for Postgres")?;
        let postgres = Postgres { folder, port, settings: vec![], running: None };
        let file = postgres.write("password", password)?;
        let made = command(&program("initdb")?)
            .args(["--no-sync", "-E", "UTF8", "--locale=C", "-U", "postgres"])
            .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
            .arg(format!("--pwfile={}", file.display()))
            .arg("-D")
            .arg(postgres.data())
            .current_dir(postgres.folder.path())
            .output()
            .context("run initdb")?;
        ensure!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr));
        Ok(postgres)
    }

    /// A setting, from the next start on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.push(format!("{name}={value}"));
    }

    /// Writes a file that only the server can read; returns where it is.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn write(&self, name: &str, content: &str) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        give(&path)?;
        Ok(path)
    }

    /// A path in its folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.path("data")
    }

    /// Starts it, or starts it again on its data. It answers a little later; see [`Postgres::client`].
    ///
    /// # Errors
    /// When it runs already, or cannot be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        ensure!(self.running.is_none(), "Postgres runs already");
        let log = fs::File::options().create(true).append(true).open(self.path("log"))?;
        let mut postgres = command(&program("postgres")?);
        postgres.arg("-D").arg(self.data()).arg("-k").arg(self.folder.path());
        postgres.args(["-h", "localhost", "-p", &self.port.to_string(), "-c", "fsync=off"]);
        postgres.args(self.settings.iter().flat_map(|setting| ["-c", setting]));
        postgres.current_dir(self.folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let (sender, receiver) = mpsc::channel();
        let waiter = std::thread::spawn(move || {
            let mut child = postgres.spawn()?;
            let _ = sender.send(child.id()); // whoever asked waits for it
            child.wait()
        });
        match receiver.recv().ok().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            Some(pid) => self.running = Some(Running { pid, waiter }),
            None => bail!("could not start Postgres: {:?}", waiter.join()),
        }
        Ok(())
    }

    /// Kills every process of it with SIGKILL, and returns when the last one is gone.
    ///
    /// # Errors
    /// When it does not run, or has ended by itself.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.check()?;
        let running = self.running.take().context("Postgres does not run")?;
        let mut all = vec![running.pid];
        // The first one starts others until it is gone: so look again until nobody is left.
        while !all.is_empty() {
            let open: Vec<_> = all.iter().filter_map(|pid| pidfd_open(*pid, PidfdFlags::empty()).ok()).collect();
            for pid in &all {
                let _ = kill_process(*pid, Signal::KILL); // it may be gone already
            }
            for process in &open {
                let mut ended = [PollFd::new(process, PollFlags::IN)];
                ensure!(poll(&mut ended, Some(&GOING))? > 0, "a process of Postgres outlives SIGKILL");
            }
            all = self.processes()?;
        }
        let ended =
            running.waiter.join().map_err(|_| anyhow::anyhow!("the thread that waits for Postgres panicked"))?;
        ended.context("wait for Postgres").map(drop)
    }

    /// All of its processes work in its data folder.
    fn processes(&self) -> anyhow::Result<Vec<Pid>> {
        let data = self.data();
        let pids = fs::read_dir("/proc")?.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        let ours = pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data));
        Ok(ours.filter_map(Pid::from_raw).collect())
    }

    /// Whether it runs as it should: started, and not ended by itself.
    ///
    /// # Errors
    /// The last that it wrote, when it ended by itself.
    pub fn check(&self) -> anyhow::Result<()> {
        match &self.running {
            Some(running) if running.waiter.is_finished() => bail!("Postgres ended by itself: {}", self.last_lines()),
            _ => Ok(()),
        }
    }

    fn last_lines(&self) -> String {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().rev().take(8).collect::<Vec<_>>().join(" | ")
    }

    /// The address of a database, over the Unix socket.
    #[must_use]
    pub fn address(&self, database: &str) -> String {
        let folder = self.folder.path().display().to_string().replace('/', "%2F");
        format!("postgres://postgres@{folder}:{}/{database}", self.port)
    }

    /// The same over TCP, which asks for the password.
    #[must_use]
    pub fn tcp_address(&self, database: &str) -> String {
        format!("postgres://postgres@localhost:{}/{database}", self.port)
    }

    /// A client of its own, once the server answers.
    ///
    /// # Errors
    /// When it does not within [`PATIENCE`], or ends.
    pub async fn client(&self, database: &str) -> anyhow::Result<tokio_postgres::Client> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match tokio_postgres::connect(&self.address(database), tokio_postgres::NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return Ok(client);
                }
                Err(error) => {
                    self.check()?;
                    if Instant::now() > deadline {
                        return Err(error).with_context(|| format!("Postgres wrote: {}", self.last_lines()));
                    }
                }
            }
            sleep(PERIOD).await; // it is still starting
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = kill_process(running.pid, Signal::INT); // it may be gone already
            let _ = running.waiter.join();
        }
    }
}

/// A program of the newest version that is installed.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let versions = fs::read_dir(VERSIONS).into_iter().flatten().flatten();
    let found = versions.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists()).max();
    found.with_context(|| format!("{name} is not below {VERSIONS}; on Debian: apt-get install postgresql"))
}

/// A command as user `postgres`.
fn command(program: &Path) -> Command {
    if !geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--pdeathsig=INT", "--"]).arg(program);
    command
}

/// Makes a file or folder of root's that of user `postgres`.
fn give(path: &Path) -> anyhow::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let text = fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    let line = text.lines().find(|line| line.starts_with("postgres:"));
    let line = line.context("there is no user postgres; on Debian: apt-get install postgresql")?;
    let mut ids = line.split(':').skip(2).map(|id| id.parse().ok());
    chown(path, ids.next().flatten(), ids.next().flatten()).with_context(|| format!("give {} away", path.display()))
}
