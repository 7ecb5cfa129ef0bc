//! A server of another project as a process of the bench: started, killed, started again.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use cloudcore::stage::{PATIENCE, free_port};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep},
};

/// Where Debian puts servers, besides the search path.
const SYSTEM_FOLDERS: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];
const PERIOD: Duration = Duration::from_millis(20);

/// The process. Dropped, it is killed.
#[derive(Debug)]
pub struct Server {
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
    child: Option<Child>,
}

impl Server {
    /// Starts `program -c CONFIG`; `config` is given the address that the server is to listen at.
    ///
    /// # Errors
    /// When it is not installed, or does not listen.
    pub async fn start(
        program: &str,
        package: &str,
        folder: &Path,
        config: impl Fn(SocketAddr) -> String,
    ) -> anyhow::Result<Server> {
        let program = find(program)
            .with_context(|| format!("{program} is not installed; on Debian: apt-get install {package}"))?;
        let port = free_port().context("no port is free")?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let file = folder.join("server.conf");
        fs::write(&file, config(address)).context("write the server's configuration")?;
        let mut server = Server { program, config: file, log: folder.join("server.log"), address, child: None };
        server.again().await?;
        Ok(server)
    }

    /// Its process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Starts it again.
    ///
    /// # Errors
    /// When it does not listen.
    pub async fn again(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(&self.config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let program = self.program.display();
        let child = self.child.insert(command.kill_on_drop(true).spawn().with_context(|| format!("start {program}"))?);
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address).await.is_err() {
            let ended = child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let text = fs::read_to_string(&self.log).unwrap_or_default();
                let last = text.lines().rev().take(5).collect::<Vec<_>>().join(" | ");
                bail!("{program} does not listen at {}; the last it wrote, newest first: {last}", self.address);
            }
            sleep(PERIOD).await;
        }
        Ok(())
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// Those of the operating system.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(SYSTEM_FOLDERS.map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}
