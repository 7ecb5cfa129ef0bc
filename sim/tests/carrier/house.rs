//! A house with a broker: Mosquitto as `images/mosquitto` documents it, a hub and an agent as processes, in a
//! network of their own whose packet filter the test commands.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command as Run, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use cloudcore::stage::{self, Stage, free_port, write_program};
use proto::{
    env::Seed,
    object::{Node, UpdatePhase},
};
use rand::Rng as _;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep},
};

pub const NODE: &str = "box-1";
const INSIDE: &str = "CROSSDOCK_TEST_NETWORK";
const LOOK: Duration = Duration::from_millis(100);

/// Whether this process has a network of its own. Otherwise the test runs again in one, and this returns after it.
pub fn in_own_network(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        must("ip", &["link", "set", "lo", "up"]);
        must("nft", &["add", "table", "inet", "test"]);
        for (chain, priority) in [("gate", "-1"), ("count", "0")] {
            let hook = format!("{{ type filter hook output priority {priority}; }}");
            must("nft", &["add", "chain", "inet", "test", chain, &hook]);
        }
        must("nft", &["add", "counter", "inet", "test", "down"]);
        return true;
    }
    // One at a time: each has a broker, a hub and agents, and waits by the clock.
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let this = std::env::current_exe().unwrap();
    let mut again = Run::new("unshare");
    again.arg("-n").arg(this).args([test, "--exact", "--nocapture"]).env(INSIDE, "1");
    let status = again.status().expect("unshare (util-linux)");
    assert!(status.success(), "{test} failed in its own network; its output is above");
    false
}

pub fn must(program: &str, args: &[&str]) -> String {
    let of_root = format!("/usr/sbin/{program}"); // not everybody's PATH has it
    let program = if std::path::Path::new(&of_root).exists() { &of_root } else { program };
    let output = Run::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}; .ci/test names it"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// From now on no UDP passes.
pub fn block_udp() {
    must("nft", &["add", "rule", "inet", "test", "gate", "meta", "l4proto", "udp", "drop"]);
}

pub fn open_udp() {
    must("nft", &["flush", "chain", "inet", "test", "gate"]);
}

pub struct House {
    pub stage: Stage,
    pub folder: tempfile::TempDir,
    pub tls: u16,
    pub web: u16,
    broker: Option<Child>,
    door: u16,
    posted: usize,
}

impl House {
    /// Hub and broker run; UDP is as it is. `limit`: what the broker's configuration says besides.
    pub async fn open(more: &str) -> anyhow::Result<House> {
        let ports = [free_port(), free_port(), free_port()].map(|p| p.expect("a free port"));
        let [tls, web, door] = ports;
        let folder = tempfile::tempdir()?;
        broker_files(folder.path(), tls, web, more)?;
        let stage = Stage::open(None, stage::programs().await?, false)?;
        let mut house = House { stage, folder, tls, web, broker: None, door, posted: 0 };
        house.start_broker().await?;
        house.stage.init_hub().await?;
        house.stage.kill_hub().await?;
        let hub_yaml = house.stage.path("hub/hub.yaml");
        let brokers = format!(
            "brokers:\n  - url: mqtts://127.0.0.1:{tls}\n    user: hub\n    passwordFile: {hub}\n    ca: {ca}\n",
            hub = house.file("hub").display(),
            ca = house.file("broker.pem").display()
        );
        let rate = "bulkBytesPerSNode: 4000000\n";
        fs::write(&hub_yaml, fs::read_to_string(&hub_yaml)? + &brokers + rate)?;
        house.stage.start_hub().await?;
        house.stage.init_repository().await?;
        let hub_port = house.stage.link_address()?.rsplit(':').next().context("a port")?.to_owned();
        for from in
            [["tcp", "sport", &tls.to_string()], ["udp", "sport", &hub_port], ["tcp", "sport", &web.to_string()]]
        {
            let rule = [&["add", "rule", "inet", "test", "count"][..], &from, &["counter", "name", "down"]].concat();
            must("nft", &rule);
        }
        Ok(house)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub async fn start_broker(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new("/usr/sbin/mosquitto");
        command.arg("-c").arg(self.file("mosquitto.conf")).kill_on_drop(true);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().context("install mosquitto (.ci/test names the package)")?;
        while TcpStream::connect(("127.0.0.1", self.tls)).await.is_err() {
            ensure!(child.try_wait()?.is_none(), "mosquitto ended: {}", fs::read_to_string(self.file("log"))?);
            sleep(Duration::from_millis(10)).await;
        }
        self.broker = Some(child);
        Ok(())
    }

    pub async fn kill_broker(&mut self) -> anyhow::Result<()> {
        self.broker.take().context("the broker does not run")?.kill().await.context("kill the broker")
    }

    /// The lines of `agent.toml` for a broker.
    pub fn link(&self, url: &str, more: &str) -> String {
        let (ca, password) = (self.file("broker.pem"), self.file(NODE));
        let ca =
            if url.starts_with("mqtts") || url.starts_with("wss") { format!("ca = {ca:?}\n") } else { String::new() };
        format!("[[link.broker]]\nurl = \"{url}\"\nuser = \"{NODE}\"\npassword-file = {password:?}\n{ca}{more}\n")
    }

    pub fn write_settings(&self, link: &str) -> anyhow::Result<()> {
        self.write_settings_of(NODE, link)
    }

    fn write_settings_of(&self, data: &str, link: &str) -> anyhow::Result<()> {
        let door = self.door;
        let text = format!("[streams]\nhttp = \"127.0.0.1:{door}\"\nmqtt = \"off\"\nmetrics-interval = \"1s\"\n{link}");
        fs::create_dir_all(self.stage.path(data))?;
        Ok(fs::write(self.stage.path(data).join("agent.toml"), text)?)
    }

    /// Runs `edgecore join` for the node; its exit code and output.
    pub async fn join(&self) -> anyhow::Result<(i32, String)> {
        self.join_in(NODE).await
    }

    /// The same in a data folder of its own, by other settings.
    pub async fn join_by(&self, data: &str, link: &str) -> anyhow::Result<(i32, String)> {
        self.write_settings_of(data, link)?;
        self.join_in(data).await
    }

    async fn join_in(&self, data: &str) -> anyhow::Result<(i32, String)> {
        let token = self.stage.crossdock(&["token", "create", "--site", "hz-01", "--node", NODE]).await?;
        let token =
            token.split_whitespace().find(|w| w.starts_with("cdk1.")).context("no token was printed")?.to_owned();
        let hub = self.stage.link_address()?;
        self.stage.try_run("edgecore", &["join", &hub, "--token", &token, "--data", data, "--name", NODE]).await
    }

    pub async fn publish(&self, n: u64, ballast: usize) -> anyhow::Result<()> {
        publish(&self.stage, n, ballast).await
    }

    pub async fn roll_out(&self, n: u64) -> anyhow::Result<()> {
        roll_out(&self.stage, n).await
    }
    pub async fn wait(&mut self, what: &str, condition: impl Fn(&Node) -> bool) -> anyhow::Result<()> {
        let waited = self.stage.wait_for_nodes(what, condition).await;
        if waited.is_err() {
            self.stage.print_logs();
        }
        waited
    }

    pub async fn wait_running(&mut self, n: u64) -> anyhow::Result<()> {
        self.wait(&format!("version {n} runs"), |node| runs(node, n)).await
    }

    /// Hands in more records, each of them once.
    pub fn post(&mut self, count: usize) {
        let lines: String = (self.posted..self.posted + count).map(|n| format!("{{\"parcel\":{n}}}\n")).collect();
        let file = self.file("records");
        fs::write(&file, lines).unwrap();
        let (body, url) = (format!("@{}", file.display()), format!("http://127.0.0.1:{}/v1/streams/scans", self.door));
        must("curl", &["-sSf", "-H", "content-type: application/x-ndjson", "--data-binary", &body, &url]);
        self.posted += count;
    }

    /// Waits until every record is at the hub, and none twice.
    pub async fn check_records(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + stage::PATIENCE;
        loop {
            let text =
                self.stage.quiet("crossdock", &["streams", "query", "scans", "--limit", "0", "-o", "text"]).await?;
            let seen: Vec<usize> =
                (0..self.posted).map(|n| text.matches(&format!("\"parcel\":{n}}}")).count()).collect();
            let total: usize = seen.iter().sum();
            ensure!(seen.iter().all(|count| *count <= 1), "a record arrived twice: {text}");
            if total == self.posted {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{total} of {} records arrived: {text}", self.posted);
            }
            sleep(LOOK).await;
        }
    }

    /// Bytes that left hub and broker so far.
    pub fn bytes_down(&self) -> u64 {
        let text = must("nft", &["list", "counter", "inet", "test", "down"]);
        let after = text.split("bytes ").nth(1).unwrap_or_default();
        after.split_whitespace().next().and_then(|n| n.parse().ok()).expect("nft counts bytes")
    }

    /// The longest time in which nothing comes down, until so many bytes have come in all.
    pub async fn longest_gap(&self, until: u64) -> Duration {
        let (mut seen, mut at, mut longest) = (self.bytes_down(), Instant::now(), Duration::ZERO);
        while seen < until && at.elapsed() < stage::PATIENCE {
            sleep(Duration::from_millis(10)).await;
            let now = self.bytes_down();
            if now > seen + 2000 {
                longest = longest.max(at.elapsed());
                (seen, at) = (now, Instant::now());
            }
        }
        longest
    }

    /// What `edgecore status` says.
    pub async fn status(&self) -> anyhow::Result<String> {
        self.stage.quiet("edgecore", &["status", "--data", NODE]).await
    }

    /// Waits until `edgecore status` says so.
    pub async fn wait_status(&self, part: &str) -> anyhow::Result<String> {
        let deadline = Instant::now() + stage::PATIENCE;
        loop {
            let status = self.status().await?;
            if status.contains(part) {
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.stage.print_logs();
                bail!("waited until the status says {part:?}: {status}");
            }
            sleep(LOOK).await;
        }
    }
}

/// Publishes version `n` of the witness, with so many bytes of ballast that no compression shortens.
pub async fn publish(stage: &Stage, n: u64, ballast: usize) -> anyhow::Result<()> {
    let folder = stage.path(&format!("witness-{n}"));
    write_program(&folder.join("bin/witness"), &format!("#!/bin/sh\necho version {n}\nexec sleep 100000\n"))?;
    let mut bytes = vec![0; ballast];
    Seed::from_u64(n).stream("ballast").fill_bytes(&mut bytes);
    fs::write(folder.join("ballast"), bytes)?;
    let yaml = format!(
        "apiVersion: crossdock.io/v1\napp: witness\nversion: {n}.0.0\nartifacts:\n  - {{ source: bin, target: bin }}\n  \
             - {{ source: ballast }}\nworkload:\n  command: bin/witness\n  soak: 300ms\n  deadline: 60s\n  stopGrace: 1s\n"
    );
    fs::write(folder.join("release.yaml"), yaml)?;
    let yaml = format!("witness-{n}/release.yaml");
    stage.crossdock(&["release", "build", &yaml, "--repo", "repo"]).await?;
    stage.sign().await?;
    Ok(())
}

pub async fn roll_out(stage: &Stage, n: u64) -> anyhow::Result<()> {
    let what = format!("witness@{n}.0.0");
    stage.crossdock(&["rollout", "start", &what, "--strategy", "all-at-once", "--to", "all"]).await?;
    Ok(())
}

pub fn runs(node: &Node, n: u64) -> bool {
    node.status.workloads.get("witness").is_some_and(|w| {
        let version = format!("{n}.0.0");
        let running = w.running.as_ref();
        w.phase == UpdatePhase::Succeeded && running.is_some_and(|r| r.ready && r.release.version.as_str() == version)
    })
}

/// Whether so many bytes of an update are there already, and not yet all.
pub fn fetched(node: &Node, bytes: u64) -> bool {
    let progress = node.status.workloads.get("witness").and_then(|w| w.progress);
    progress.is_some_and(|p| p.done_bytes >= bytes)
}

/// Whether the node says that its link goes over this carrier.
pub fn goes_over(node: &Node, carrier: &str) -> bool {
    node.status.carriers.iter().any(|c| c.name == carrier && c.in_use)
}

/// The documented files, in `folder` and on other ports.
fn broker_files(folder: &Path, tls: u16, web: u16, more: &str) -> anyhow::Result<()> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/mosquitto");
    fs::copy(images.join("acl"), folder.join("acl"))?;
    let place = folder.display().to_string();
    let conf = fs::read_to_string(images.join("mosquitto.conf"))?;
    let conf = conf.replace("/etc/mosquitto/crossdock", &place);
    let conf =
        conf.replace("listener 8883", &format!("listener {tls}")).replace("listener 8884", &format!("listener {web}"));
    fs::write(folder.join("mosquitto.conf"), format!("user root\nlog_dest file {place}/log\n{conf}\n{more}\n"))?;
    // PKCS#8 of this kind of key is what OpenSSL reads too.
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = CertificateParams::new(vec!["127.0.0.1".into()])?.self_signed(&key)?;
    fs::write(folder.join("broker.pem"), certificate.pem())?;
    fs::write(folder.join("broker.key"), key.serialize_pem())?;
    let users = folder.join("users");
    fs::write(&users, "")?;
    for user in ["hub", NODE, "box-2"] {
        must("mosquitto_passwd", &["-b", &users.to_string_lossy(), user, &format!("{user} secret")]);
        fs::write(folder.join(user), format!("{user} secret\n"))?;
    }
    Ok(())
}
