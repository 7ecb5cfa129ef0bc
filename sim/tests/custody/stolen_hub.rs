//! The hub is in other hands: the very commands that `crossdock key drill stolen-hub` prints, typed in order, on a new
//! folder. The box gets in again and its workload does not notice; the thief's copy runs nothing, at the old address
//! before, and at the new one after.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use cloudcore::stage::{PATIENCE, free_port};
use proto::object::{Node, NodePhase};
use tokio::time::Instant;

use super::Desk;

const APP: &str = "belt";
const NODE: &str = "box-1";
/// Where the thief keeps what it stole.
const LOOT: &str = "loot";

fn runs(node: &Node, version: &str) -> bool {
    let running = node.status.workloads.get(APP).and_then(|w| w.running.as_ref());
    node.status.phase == NodePhase::Ready && running.is_some_and(|r| r.release.version.as_str() == version && r.ready)
}

/// The thief's hub, from a copy of all that was on the disk.
struct Thief(Child);

impl Thief {
    fn start(desk: &Desk) -> anyhow::Result<Thief> {
        let program = desk.stage.crossdock_program().with_file_name("cloudcore");
        let log = std::fs::File::options().create(true).append(true).open(desk.stage.path("thief.log"))?;
        let mut command = Command::new(program);
        command.args(["serve", "--data"]).arg(desk.stage.path(LOOT)).stdin(Stdio::null());
        Ok(Thief(command.stdout(log.try_clone()?).stderr(log).spawn().context("start the thief's hub")?))
    }

    fn stop(mut self) -> anyhow::Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()? {
            kind if kind.is_dir() => copy(&entry.path(), &target)?,
            kind if kind.is_file() => drop(std::fs::copy(entry.path(), target)?),
            _ => {} // a socket
        }
    }
    Ok(())
}

impl Desk {
    /// Builds, signs and publishes a release whose workload sleeps.
    async fn belt(&self, version: &str) -> anyhow::Result<()> {
        let yaml = format!(
            "apiVersion: crossdock.io/v1\napp: {APP}\nversion: {version}\nartifacts: [{{source: files}}]\nworkload:\n  command: /bin/sleep\n  args: [\"86400\"]\n"
        );
        self.write("belt/files/data", version)?;
        self.write("belt/release.yaml", &yaml)?;
        self.run("crossdock release build belt/release.yaml --repo repo")?;
        self.run("crossdock release sign --repo repo")?;
        self.stage.crossdock(&["release", "publish", "--repo", "repo"]).await?;
        Ok(())
    }

    /// What the box says of itself, once it holds a word.
    async fn until_box_says(&self, word: &str) -> anyhow::Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, said) = self.stage.try_run("edgecore", &["status", "--data", NODE]).await?;
            if said.contains(word) {
                return Ok(said);
            }
            ensure!(Instant::now() < deadline, "the box never said {word:?}: {said}");
            tokio::time::sleep(std::time::Duration::from_millis(200)).await; // from one look to the next
        }
    }

    /// Runs a command once it succeeds: the hub may not listen yet.
    async fn until_runs(&self, line: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.run(line) {
            ensure!(Instant::now() < deadline, "{error:#}");
            tokio::time::sleep(std::time::Duration::from_millis(200)).await; // from one try to the next
        }
        Ok(())
    }

    /// The process of the workload.
    fn pid(&self) -> anyhow::Result<u32> {
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let here = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            if line == b"/bin/sleep\x0086400\0" && here.starts_with(self.stage.path(NODE)) {
                return Ok(pid);
            }
        }
        bail!("the workload does not run")
    }
}

#[tokio::test]
async fn after_the_drill_of_a_stolen_hub_the_box_is_ours_and_the_thief_has_nothing() -> anyhow::Result<()> {
    let mut desk = Desk::open().await?;
    desk.stage.init_hub().await?;
    desk.run("crossdock release init repo")?;
    desk.belt("1.0.0").await?;
    desk.stage.join(NODE, "hz-01").await?;
    desk.stage.start_agent(NODE)?;
    desk.stage.wait_for_nodes("it is Ready", |node| node.status.phase == NodePhase::Ready).await?;
    desk.stage
        .crossdock(&["rollout", "start", "--strategy", "all-at-once", "belt@1.0.0", "--to", "all", "--wait"])
        .await?;
    let pid = desk.pid()?;

    // The machine is carried off. The thief starts it again where the box looks for its hub.
    desk.stage.kill_hub().await?;
    let (ours, loot) = (desk.stage.path("hub"), desk.stage.path(LOOT));
    copy(&ours, &loot)?;
    let old = format!("https://{}", desk.stage.api_address()?);
    desk.until_box_says("NOT connected").await?;
    let thief = Thief::start(&desk)?;
    let token = desk.read(&format!("{LOOT}/admin.token"))?.trim().to_owned();
    desk.variables = vec![("CROSSDOCK_SERVER", old), ("CROSSDOCK_TOKEN", token)];
    desk.variables.push(("CROSSDOCK_CA", loot.join("ca.pem").display().to_string()));
    desk.until_box_says(" connected since").await?; // the box believes the old authority until it joined again
    desk.run("crossdock release init evil")?;
    desk.write(
        "belt/evil.yaml",
        "apiVersion: crossdock.io/v1\napp: belt\nversion: 6.6.6\nartifacts: [{source: files}]\nworkload: {command: /bin/false}\n",
    )?;
    desk.run("crossdock release build belt/evil.yaml --repo evil")?;
    desk.run("crossdock release sign --repo evil")?;
    desk.refused("crossdock release publish --repo evil", "the hub serves")?;
    // It is the thief's hub: that believes whatever it is made to. The box does not.
    thief.stop()?;
    proto::durable::Record::at(loot.join("trust.record")).remove()?;
    let thief = Thief::start(&desk)?;
    desk.until_runs("crossdock release publish --repo evil").await?;
    desk.run("crossdock rollout start --strategy all-at-once belt@6.6.6 --to all")?;
    let said = desk.until_box_says("6.6.6").await?;
    ensure!(said.contains("belt 6.6.6 Blocked") && said.contains("NotSigned"), "{said}");
    ensure!(desk.pid()? == pid, "what the box runs was touched: {said}");
    desk.variables.clear();
    thief.stop()?;

    // The drill, on a new folder; of the old one there are the records of a backup.
    let backup = desk.stage.path("streams.backup");
    std::fs::copy(ours.join("streams.db"), &backup)?;
    std::fs::remove_dir_all(&ours)?;
    let address = format!("127.0.0.1:{}", free_port().context("no port is free")?);
    let printed = desk.run("crossdock key drill stolen-hub --repo repo")?;
    let mut typed = 0;
    for line in printed.lines().filter_map(|line| line.strip_prefix("     ")) {
        let line = [
            ("NEW-FOLDER", "hub"),
            ("https://NAME:8443", &format!("https://{address}")),
            ("HOST:PORT", &address),
            ("--fleet FLEET", "--fleet demo"),
            ("--api-name NAME", "--api-name 127.0.0.1"),
            ("create NAME --role ROLE", "create bob --role viewer"),
            ("--site SITE --node NODE", "--site hz-01 --node box-1"),
            ("APP@VERSION", "belt@1.0.0"),
        ]
        .iter()
        .fold(line.to_owned(), |line, (from, to)| line.replace(from, to));
        let words: Vec<&str> = line.split_whitespace().collect();
        let said = match words.as_slice() {
            ["cloudcore", "init", args @ ..] => {
                let ports = ["--link-listen", &address, "--api-listen", &address];
                desk.stage.run("cloudcore", &[&["init"], args, &ports].concat()).await
            }
            ["cp", ..] => {
                std::fs::copy(&backup, ours.join("streams.db"))?;
                Ok(String::new())
            }
            ["cloudcore", "serve", ..] => desk.stage.start_hub().await.map(|()| String::new()),
            ["edgecore", "join", to, "--token", _] => {
                let token = desk.read("token")?;
                desk.stage.run("edgecore", &["join", to, "--token", &token, "--data", NODE]).await
            }
            ["systemctl", "restart", _] => {
                desk.stage.kill_agent(NODE).await?;
                desk.stage.start_agent(NODE).map(|()| String::new())
            }
            ["crossdock", args @ ..] => desk.stage.crossdock(args).await,
            other => bail!("the test knows no {other:?}"),
        };
        let said = said.with_context(|| format!("in the drill: {line}"))?;
        if let Some(token) = said.split_whitespace().find(|word| word.starts_with("cdk1.")) {
            desk.write("token", token)?;
        }
        typed += 1;
    }
    ensure!(typed == 10, "the drill is not whole, {typed} commands: {printed}");
    desk.stage.wait_for_nodes("the box runs what it ran, by the new hub", |node| runs(node, "1.0.0")).await?;
    ensure!(desk.pid()? == pid, "the workload was started again");
    desk.belt("2.0.0").await?;
    desk.stage
        .crossdock(&["rollout", "start", "--strategy", "all-at-once", "belt@2.0.0", "--to", "all", "--wait"])
        .await?;
    desk.stage.wait_for_nodes("a new release goes out", |node| runs(node, "2.0.0")).await?;

    // The thief takes over the address of the new hub: the box knows that it is another.
    desk.stage.kill_hub().await?;
    let yaml = desk.read(&format!("{LOOT}/hub.yaml"))?;
    let moved: Vec<String> = yaml
        .lines()
        .map(|line| match line.split_once(':') {
            Some((key @ ("linkListen" | "apiListen"), _)) => format!("{key}: {address}"),
            _ => line.to_owned(),
        })
        .collect();
    ensure!(moved.join("\n").contains(&address), "{yaml}");
    desk.write(&format!("{LOOT}/hub.yaml"), &moved.join("\n"))?;
    let thief = Thief::start(&desk)?;
    desk.until_box_says("is not this fleet's hub").await?;
    ensure!(desk.pid().is_ok(), "the workload runs on");
    thief.stop()?;
    desk.stage.start_hub().await?;
    desk.stage.wait_for_nodes("the box is back", |node| runs(node, "2.0.0")).await?;
    desk.stage.close().await
}
