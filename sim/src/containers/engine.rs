//! An engine as a child, Docker's or Podman: its socket, images and containers in a folder of its own, beside any other.

use std::{fs::File, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, bail};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

/// How long it may take to come up or to go.
const PATIENCE: Duration = Duration::from_secs(120);
const PERIOD: Duration = Duration::from_millis(50);
/// Set in the network of a test's own.
const INSIDE: &str = "CROSSDOCK_TEST_NETWORK";

/// Whose engine it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Docker Engine: its containers end with it.
    Docker,
    /// Podman: its containers go on.
    Podman,
}

/// An engine. Dropped, it is killed, and its containers with it.
#[derive(Debug)]
pub struct Engine {
    kind: Kind,
    folder: PathBuf,
    child: Option<Child>,
}

impl Engine {
    /// Starts one that keeps everything below `folder`.
    ///
    /// # Errors
    /// When it is not installed, does not start, or nobody is root.
    pub async fn start(kind: Kind, folder: PathBuf) -> anyhow::Result<Engine> {
        std::fs::create_dir_all(&folder)?;
        let mut engine = Engine { kind, folder, child: None };
        engine.begin().await?;
        Ok(engine)
    }

    /// Something in its folder, such as `data`.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("docker.sock")
    }

    async fn begin(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.folder.join("engine.log"))?;
        let at = |name: &str| self.folder.join(name);
        let socket = format!("unix://{}", self.socket().display());
        let mut command = match self.kind {
            Kind::Docker => {
                let mut command = Command::new("dockerd");
                command.arg("--data-root").arg(at("data")).arg("--exec-root").arg(at("exec")).arg("-p").arg(at("pid"));
                command.arg("-H").arg(socket);
                command
            }
            Kind::Podman => {
                let mut command = Command::new("podman");
                command.arg("--root").arg(at("data")).arg("--runroot").arg(at("exec"));
                command
                    .args(["--runtime", "runc", "--cgroup-manager", "cgroupfs", "system", "service", "--time=0"])
                    .arg(socket);
                // Not the limits of its own, which a machine that is itself a container may not grant.
                let settings = at("containers.conf");
                std::fs::write(&settings, "[containers]\ndefault_ulimits = []\n")?;
                command.env("CONTAINERS_CONF", settings);
                // Loopback without TLS, as Docker takes it by itself.
                let registries = at("registries.conf");
                std::fs::write(&registries, "[[registry]]\nlocation = \"127.0.0.1\"\ninsecure = true\n")?;
                command.env("CONTAINERS_REGISTRIES_CONF", registries);
                command
            }
        };
        command.env("PATH", search_path()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.process_group(0).kill_on_drop(true);
        self.child = Some(command.spawn().context("start the engine (Debian: docker.io, podman)")?);
        let deadline = Instant::now() + PATIENCE;
        while self.docker(&["version"]).await.is_err() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(at("engine.log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                bail!("the engine does not come up: {}", last.join("\n"));
            }
            sleep(PERIOD).await; // one look to the next
        }
        Ok(())
    }

    /// Runs Docker's own command line against it.
    ///
    /// # Errors
    /// What that says.
    pub async fn docker(&self, args: &[&str]) -> anyhow::Result<String> {
        let host = format!("unix://{}", self.socket().display());
        let mut command = Command::new("docker");
        command.arg("-H").arg(host).args(args).env("PATH", search_path());
        let output = command.output().await.context("run docker")?;
        if !output.status.success() {
            bail!("docker {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Ends it, and its containers, as `systemctl restart docker` does, and starts it again.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.end().await?;
        self.begin().await
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if let Some(pid) = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok(); // it may have ended
        }
        tokio::time::timeout(PATIENCE, child.wait()).await.context("the engine does not end")??;
        Ok(())
    }

    /// Ends it and gives up what it holds mounted, so that its folder can be removed.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn close(mut self) -> anyhow::Result<()> {
        let all = self.docker(&["ps", "-aq"]).await?;
        for id in all.lines() {
            self.docker(&["rm", "-f", id]).await?;
        }
        self.end().await
    }
}

impl Drop for Engine {
    /// What a test leaves behind when it fails would be in the next one's way.
    fn drop(&mut self) {
        if self.child.is_none() {
            return;
        }
        let docker = |args: &[&str]| {
            let host = format!("unix://{}", self.socket().display());
            std::process::Command::new("docker").arg("-H").arg(host).args(args).env("PATH", search_path()).output().ok()
        };
        let ids = docker(&["ps", "-aq"]).map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        for id in ids.unwrap_or_default().lines() {
            docker(&["rm", "-f", id]);
        }
    }
}

/// Whether this process is in a network of its own, where an engine's bridge and rules are in nobody's way, and sees
/// mounts of its own, which end with it. If not, `test` of this program is run again so.
///
/// # Errors
/// When no such network can be made, or the test fails in it.
pub fn in_own_network(test: &str) -> anyhow::Result<bool> {
    if is_in_own_network() {
        return Ok(true);
    }
    let mut again = std::process::Command::new("unshare");
    again
        .args(["--net", "--mount", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe()?);
    again.args([test, "--exact", "--nocapture"]).env(INSIDE, "1").env("PATH", search_path());
    anyhow::ensure!(again.status()?.success(), "{test} failed in a network of its own; its output is above");
    Ok(false)
}

/// Whether this process is in a network of its own already: what is behind it is no more to be reached.
#[must_use]
pub fn is_in_own_network() -> bool {
    std::env::var_os(INSIDE).is_some()
}

fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}
