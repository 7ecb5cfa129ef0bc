//! A registry as a child, Debian's: what it hands out is put onto its disk as a push would put it. Meant for a network of
//! the test's own, where its port is free, and for engines that take loopback without TLS.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use proto::digest::Digest;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep},
};

/// How long it may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);
const PERIOD: Duration = Duration::from_millis(50);

/// A registry. Dropped, it is killed.
#[derive(Debug)]
pub struct Registry {
    folder: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Registry {
    /// Starts one that keeps everything below `folder`; who wants to pull from a `private` one is let in first.
    ///
    /// # Errors
    /// When it is not installed, or does not come up.
    pub async fn start(folder: PathBuf, port: u16, private: bool) -> anyhow::Result<Registry> {
        fs::create_dir_all(&folder)?;
        let at = |name: &str| folder.join(name).display().to_string();
        let auth = format!("auth: {{ htpasswd: {{ realm: registry, path: {} }} }}\n", at("htpasswd"));
        let settings = format!(
            "version: 0.1
log: {{ level: warn }}
storage: {{ filesystem: {{ rootdirectory: {} }} }}
http: {{ addr: 127.0.0.1:{port} }}
{}",
            at("data"),
            if private { &*auth } else { "" }
        );
        fs::write(folder.join("config.yml"), settings)?;
        let mut registry = Registry { folder, port, child: None };
        registry.begin().await?;
        Ok(registry)
    }

    /// Its host and port.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Lets this user in, and nobody else.
    ///
    /// # Errors
    /// When `htpasswd` is not installed.
    pub async fn let_in(&self, user: &str, password: &str) -> anyhow::Result<()> {
        let mut command = Command::new("htpasswd");
        command.args(["-c", "-b", "-B", "-C", "4"]).arg(self.folder.join("htpasswd")).args([user, password]);
        let output = command.output().await.context("run htpasswd (Debian: apache2-utils)")?;
        anyhow::ensure!(output.status.success(), "htpasswd: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// Takes in an image; its name, pinned.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn take_in(&self, repository: &str, layers: &[Vec<u8>], config: &str) -> anyhow::Result<String> {
        let root = self.folder.join("data/docker/registry/v2");
        let of_repository = root.join("repositories").join(repository);
        let put = |content: &[u8], links: &str| {
            let digest = Digest::of(content);
            let hex = digest.hex();
            let blob = root.join("blobs/sha256").join(hex.chars().take(2).collect::<String>()).join(&hex);
            let link = of_repository.join(links).join("sha256").join(&hex);
            for (folder, name, content) in [(blob, "data", content), (link, "link", digest.to_string().as_bytes())] {
                fs::create_dir_all(&folder)?;
                fs::write(folder.join(name), content)?;
            }
            anyhow::Ok(digest)
        };
        let descriptor = |media_type: &str, content: &[u8]| {
            let digest = put(content, "_layers")?;
            anyhow::Ok(
                serde_json::json!({ "mediaType": media_type, "digest": digest.to_string(), "size": content.len() }),
            )
        };
        let layer = |layer: &Vec<u8>| descriptor("application/vnd.oci.image.layer.v1.tar", layer);
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes())?,
            "layers": layers.iter().map(layer).collect::<Result<Vec<_>, _>>()?,
        });
        let digest = put(manifest.to_string().as_bytes(), "_manifests/revisions")?;
        Ok(format!("{}/{repository}@{digest}", self.host()))
    }

    /// Takes it down.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        match self.child.take() {
            Some(mut child) => Ok(child.kill().await?),
            None => Ok(()),
        }
    }

    /// Brings it up, again.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn begin(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.path("registry.log"))?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(self.path("config.yml")).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.kill_on_drop(true);
        let mut child = command.spawn().context("start a registry (Debian: docker-registry)")?;
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            if child.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("the registry does not come up: {}", fs::read_to_string(self.path("registry.log"))?);
            }
            sleep(PERIOD).await; // one look to the next
        }
        self.child = Some(child);
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new(&self.folder).join(name)
    }
}
