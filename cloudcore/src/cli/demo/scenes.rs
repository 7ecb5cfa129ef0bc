//! The scenes of the demo, in order. Each returns what it saw.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail, ensure};
use proto::{
    digest::Digest,
    object::{Node, NodePhase, RunState, UpdatePhase, WorkloadStatus},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::stage::{PATIENCE, Stage};

const NODES: [(&str, &str); 3] = [("box-hz-1", "hz-01"), ("box-hz-2", "hz-01"), ("box-sh-1", "sh-01")];
/// The node whose line is cut.
const FAR: &str = "box-sh-1";
const APP: &str = "scan-counter";

pub async fn hub_starts(stage: &mut Stage) -> anyhow::Result<String> {
    stage.init_hub().await?;
    Ok(format!("the hub answers at https://{}", stage.api_address()?))
}

pub async fn repository(stage: &mut Stage) -> anyhow::Result<String> {
    stage.crossdock(&["release", "init", "repo"]).await?;
    stage.crossdock(&["release", "publish", "--repo", "repo"]).await?;
    Ok("the hub holds the trust root".into())
}

pub async fn nodes_join(stage: &mut Stage) -> anyhow::Result<String> {
    stage.lay_line(FAR).await?;
    for (node, site) in NODES {
        stage.join(node, site).await?;
        stage.start_agent(node)?;
    }
    stage.wait_for_nodes("all are Ready", |n| n.status.phase == NodePhase::Ready).await?;
    stage.crossdock(&["get", "nodes"]).await?;
    Ok("3 nodes at 2 sites are Ready".into())
}

/// A file that changes from version to version.
fn lanes(version: &str) -> String {
    format!("lane,release\n1,{version}\n2,{version}\n")
}

/// Writes `release.yaml` beside a copy of this program, builds, signs and publishes it.
async fn publish(stage: &Stage, version: &str, extra: &str) -> anyhow::Result<()> {
    let folder = stage.path(&format!("{APP}-{version}"));
    fs::create_dir_all(folder.join("files/bin"))?;
    let program = folder.join("files/bin/scan-counter");
    fs::copy(stage.crossdock_program(), &program).context("copy the program")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    fs::write(folder.join("files/lanes.csv"), lanes(version))?;
    let yaml = format!(
        "apiVersion: crossdock.io/v1
app: {APP}
version: {version}
artifacts:
  - source: files
workload:
  command: bin/scan-counter
  args: [demo-app, serve, --version, {version}{extra}]
  probes:
    readiness:
      exec: {{ command: [bin/scan-counter, demo-app, check, --version, {version}] }}
      period: 500ms
      timeout: 5s
  soak: 1s
  deadline: 10s
  stopGrace: 5s
"
    );
    fs::write(folder.join("release.yaml"), yaml)?;
    let path = format!("{APP}-{version}/release.yaml");
    stage.crossdock(&["release", "build", &path, "--repo", "repo"]).await?;
    stage.crossdock(&["release", "sign", "--repo", "repo"]).await?;
    stage.crossdock(&["release", "publish", "--repo", "repo"]).await?;
    Ok(())
}

fn workload(node: &Node) -> Option<&WorkloadStatus> {
    node.status.workloads.get(APP)
}

fn runs(node: &Node, version: &str) -> bool {
    let running = workload(node).and_then(|w| w.running.as_ref());
    running.is_some_and(|r| r.release.version.as_str() == version && r.ready && r.state == RunState::Running)
}

async fn roll_out(stage: &mut Stage, version: &str) -> anyhow::Result<String> {
    publish(stage, version, "").await?;
    let release = format!("{APP}@{version}");
    stage.crossdock(&["rollout", "start", &release, "--strategy", "all-at-once", "--to", "all", "--wait"]).await?;
    let healthy = |n: &Node| runs(n, version) && workload(n).is_some_and(|w| w.phase == UpdatePhase::Succeeded);
    stage.wait_for_nodes("all report the digest healthy", healthy).await?;
    stage.crossdock(&["get", "nodes", "-o", "wide"]).await?;
    let nodes = stage.nodes().await?;
    let digest = nodes.first().and_then(workload).and_then(|w| w.running.as_ref()).map(|r| r.release.digest.short());
    Ok(format!("3 of 3 nodes run {} ({}), healthy", release, digest.unwrap_or_default()))
}

pub async fn first_release(stage: &mut Stage) -> anyhow::Result<String> {
    roll_out(stage, "1.0.0").await
}

pub async fn upgrade(stage: &mut Stage) -> anyhow::Result<String> {
    roll_out(stage, "2.0.0").await
}

/// A byte of the signed metadata changes after it was signed.
pub async fn tampered_metadata(stage: &mut Stage) -> anyhow::Result<String> {
    let metadata = stage.path("repo/metadata");
    let mut versions: Vec<_> = fs::read_dir(&metadata)?
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().ends_with(".targets.json"))
        .map(|e| e.path())
        .collect();
    versions.sort_by_key(|p| {
        let name = p.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.split('.').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    });
    let targets = versions.pop().context("the repository has no targets metadata")?;
    let good = fs::read_to_string(&targets)?;
    let bad = good.replacen("2.0.0", "2.0.9", 1);
    ensure!(bad != good, "there was nothing to tamper with");
    fs::write(&targets, bad)?;
    let (code, text) = stage.try_run("crossdock", &["release", "publish", "--repo", "repo"]).await?;
    fs::write(&targets, good)?;
    ensure!(code != 0, "tampered metadata was accepted");
    let reason = text.lines().find_map(|l| l.trim().strip_prefix("error: ")).unwrap_or("refused");
    Ok(format!("exit code {code}: {}", reason.trim()))
}

/// Another file is put in the place of an artifact, in the hub's own store: a thief of the hub would do so.
pub async fn tampered_artifact(stage: &mut Stage) -> anyhow::Result<String> {
    publish(stage, "3.0.0", "").await?;
    let (good, other) = (blob_of(stage, "3.0.0"), blob_of(stage, "2.0.0"));
    fs::copy(&other, &good).with_context(|| format!("replace {}", good.display()))?;
    let release = format!("{APP}@3.0.0");
    stage.crossdock(&["rollout", "start", &release, "--strategy", "all-at-once", "--to", "all"]).await?;
    let refused = |n: &Node| {
        let blocked = workload(n).is_some_and(|w| {
            w.target.as_ref().is_some_and(|t| t.version.as_str() == "3.0.0")
                && matches!(w.phase, UpdatePhase::Blocked | UpdatePhase::Failed)
        });
        blocked && runs(n, "2.0.0")
    };
    stage.wait_for_nodes("all refuse 3.0.0 and still run 2.0.0", refused).await?;
    let nodes = stage.nodes().await?;
    let Some(w) = nodes.first().and_then(workload) else { bail!("a node vanished") };
    Ok(format!("{}: {} Meanwhile 2.0.0 runs on", w.reason, w.message))
}

/// Where the hub keeps the lanes of a version.
fn blob_of(stage: &Stage, version: &str) -> PathBuf {
    let hex = Digest::of(lanes(version).as_bytes()).hex();
    stage.path("hub/blobs").join(hex.get(..2).unwrap_or_default()).join(&hex)
}

pub async fn crashing_release(stage: &mut Stage) -> anyhow::Result<String> {
    publish(stage, "4.0.0", ", --crash").await?;
    let release = format!("{APP}@4.0.0");
    let (code, _) = stage
        .try_run("crossdock", &["rollout", "start", &release, "--strategy", "all-at-once", "--to", "all", "--wait"])
        .await?;
    ensure!(code == 5, "a rollout that fails ends with exit code 5, this one with {code}");
    let reverted = |n: &Node| workload(n).is_some_and(|w| w.phase == UpdatePhase::RolledBack) && runs(n, "2.0.0");
    stage.wait_for_nodes("all are back on 2.0.0", reverted).await?;
    stage.crossdock(&["get", "nodes", "-o", "wide"]).await?;
    let nodes = stage.nodes().await?;
    let message = nodes.first().and_then(workload).map(|w| w.message.clone()).unwrap_or_default();
    Ok(format!("3 of 3 nodes are back on 2.0.0: {message}"))
}

/// Hands in scans at a box, as a scanner does: the answer means that they are on its disk.
async fn scan(door: &str, numbers: std::ops::Range<u64>) -> anyhow::Result<()> {
    let line = |n| format!("{{\"barcode\":\"SF{n:010}\",\"line\":{},\"weight_g\":{}}}\n", n % 8, 100 + n % 900);
    let body: String = numbers.map(line).collect();
    let head = format!(
        "POST /v1/streams/scans HTTP/1.1\r\nHost: {door}\r\nContent-Type: application/x-ndjson\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(door).await.with_context(|| format!("connect to {door}"))?;
    stream.write_all((head + &body).as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "the box answers: {answer}");
    Ok(())
}

/// Barcodes of all scans of the hub, however often they are there.
async fn counted(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let text = stage.quiet("crossdock", &["streams", "query", "scans", "--limit", "0", "-o", "ndjson"]).await?;
    let mut barcodes = vec![];
    for line in text.lines() {
        let row: serde_json::Value = serde_json::from_str(line).context("read a record")?;
        let barcode = row.pointer("/record/barcode").and_then(|b| b.as_str());
        barcodes.push(barcode.context("a record has no barcode")?.to_owned());
    }
    Ok(barcodes)
}

async fn until_counted(stage: &mut Stage, expected: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let there = counted(stage).await?.len() as u64;
        if there >= expected {
            ensure!(there == expected, "{there} scans arrived, {expected} were handed in");
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{there} of {expected} scans arrived within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Scans flow, the line of the box is cut, scans go on, the line heals: every scan is counted once.
pub async fn scans_over_a_cut_line(stage: &mut Stage) -> anyhow::Result<String> {
    const BEFORE: u64 = 300;
    const MEANWHILE: u64 = 700;
    let doors = fs::read_to_string(stage.path(FAR).join("streams.json")).context("read where the box takes records")?;
    let doors: serde_json::Value = serde_json::from_str(&doors)?;
    let door = doors.get("http").and_then(|a| a.as_str()).context("the box takes no records over HTTP")?;
    scan(door, 0..BEFORE).await?;
    until_counted(stage, BEFORE).await?;
    println!("   {BEFORE} scans are counted; the line of {FAR} is cut");
    stage.cut_line(FAR)?;
    for part in (BEFORE..BEFORE + MEANWHILE).step_by(100) {
        scan(door, part..part + 100).await?;
    }
    let seen = counted(stage).await?.len() as u64;
    ensure!(seen == BEFORE, "{seen} scans are counted over a line that is cut");
    stage.crossdock(&["streams", "list"]).await?;
    println!("   {MEANWHILE} more are on the box's disk, the hub still counts {seen}; the line heals");
    stage.heal_line(FAR)?;
    until_counted(stage, BEFORE + MEANWHILE).await?;
    stage.crossdock(&["streams", "list"]).await?;
    let barcodes: BTreeSet<String> = counted(stage).await?.into_iter().collect();
    let expected: BTreeSet<String> = (0..BEFORE + MEANWHILE).map(|n| format!("SF{n:010}")).collect();
    ensure!(barcodes == expected, "other scans arrived than were handed in");
    Ok(format!("{} of {} scans counted, each once, {MEANWHILE} of them taken offline", barcodes.len(), expected.len()))
}
