//! Software that nobody here wrote, end to end: Debian's `busybox-static` httpd with an http probe.
//!
//! Real hub, real agent, real sockets; every step is a command that a release engineer could type.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use cloudcore::stage::{self, Stage, write_program};
use proto::object::{Node, UpdatePhase};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const NODE: &str = "box-1";

/// Writes a release of busybox httpd that serves `content`; without content, its probe finds nothing.
fn write_release(folder: &Path, version: &str, port: u16, content: Option<&str>) -> anyhow::Result<()> {
    fs::create_dir_all(folder.join("bin"))?;
    fs::create_dir_all(folder.join("www"))?;
    fs::copy("/bin/busybox", folder.join("bin/busybox")).context("busybox-static is not installed")?;
    fs::set_permissions(folder.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
    fs::write(folder.join("www/about.txt"), version)?;
    if let Some(content) = content {
        fs::write(folder.join("www/index.html"), content)?;
    }
    let yaml = format!(
        "apiVersion: crossdock.io/v1
app: www
version: {version}
artifacts:
  - {{ source: bin, target: bin }}
  - {{ source: www, target: www }}
workload:
  command: bin/busybox
  args: [httpd, -f, -p, '127.0.0.1:{port}', -h, www]
  ports: [{{ name: http, port: {port} }}]
  limits: {{ memory: 64Mi, pids: 32 }}
  probes:
    startup:   {{ http: {{ path: /index.html, port: {port} }}, period: 100ms, failureThreshold: 30 }}
    liveness:  {{ http: {{ path: /index.html, port: {port} }}, period: 1s }}
    readiness: {{ http: {{ path: /index.html, port: {port} }}, period: 200ms }}
  soak: 500ms
  deadline: 10s
  stopGrace: 2s
"
    );
    Ok(fs::write(folder.join("release.yaml"), yaml)?)
}

async fn publish(stage: &Stage, folder: &str) -> anyhow::Result<()> {
    stage.publish(folder).await?;
    Ok(())
}

/// What a browser on the box sees.
async fn get(port: u16) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await?;
    Ok(reply)
}

/// A free port below those that the kernel hands out by itself: it stays free until httpd, in each of its
/// versions, listens on it. The hub's are below 30,000.
fn free_port() -> Option<u16> {
    let first = 30_000 + u16::try_from(std::process::id() % 2_000).ok()?;
    (first..32_768).find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
}

fn runs(node: &Node, version: &str, phase: UpdatePhase) -> bool {
    node.status.workloads.get("www").is_some_and(|w| {
        w.phase == phase && w.running.as_ref().is_some_and(|r| r.release.version.as_str() == version && r.ready)
    })
}

#[tokio::test]
async fn busybox_httpd_is_released_upgraded_and_reverted() -> anyhow::Result<()> {
    let mut stage = Stage::open(None, stage::programs().await?, false)?;
    stage.init_hub().await?;
    stage.init_repository().await?;
    stage.join(NODE, "hz-01").await?;
    stage.start_agent(NODE)?;

    let port = free_port().context("no port is free for httpd")?;
    let roll_out = ["rollout", "start", "--strategy", "all-at-once"];

    write_release(&stage.path("v1"), "1.0.0", port, Some("parcels: first"))?;
    publish(&stage, "v1").await?;
    stage.crossdock(&[&roll_out[..], &["www@1.0.0", "--to", "site=hz-01", "--wait"]].concat()).await?;
    ensure!(get(port).await?.contains("parcels: first"));

    write_release(&stage.path("v2"), "2.0.0", port, Some("parcels: second"))?;
    publish(&stage, "v2").await?;
    stage.crossdock(&[&roll_out[..], &["www@2.0.0", "--to", "site=hz-01", "--wait"]].concat()).await?;
    ensure!(get(port).await?.contains("parcels: second"));

    // Its probe finds no page: the node goes back by itself, and the rollout says so.
    write_release(&stage.path("v3"), "3.0.0", port, None)?;
    publish(&stage, "v3").await?;
    let (code, text) =
        stage.try_run("crossdock", &[&roll_out[..], &["www@3.0.0", "--to", "all", "--wait"]].concat()).await?;
    ensure!(code == 5, "a failed rollout ends with exit code 5, this one with {code}: {text}");
    stage.wait_for_nodes("2.0.0 is back", |n| runs(n, "2.0.0", UpdatePhase::RolledBack)).await?;
    ensure!(get(port).await?.contains("parcels: second"));

    // The operator goes back on purpose: the same content, published again under a higher counter.
    stage.crossdock(&["release", "reissue", "www@1.0.0", "--repo", "repo"]).await?;
    stage.sign().await?;
    stage.crossdock(&[&roll_out[..], &["www@1.0.0", "--to", "all", "--wait"]].concat()).await?;
    ensure!(get(port).await?.contains("parcels: first"));

    // The agent restarts: the workload is the same process before and after.
    let pid_of = |port: u16| -> Option<String> {
        let output = std::process::Command::new("pidof").arg("busybox").output().ok()?;
        let pids = String::from_utf8(output.stdout).ok()?;
        pids.split_whitespace()
            .find(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains(&format!("127.0.0.1:{port}"))
            })
            .map(str::to_owned)
    };
    let before = pid_of(port).context("httpd does not run")?;
    stage.kill_agent(NODE).await?;
    ensure!(get(port).await?.contains("parcels: first"), "the workload must not notice");
    stage.start_agent(NODE)?;
    stage.wait_for_nodes("it is Ready again", |n| runs(n, "1.0.0", UpdatePhase::Succeeded)).await?;
    ensure!(pid_of(port).as_ref() == Some(&before), "the workload was restarted with its agent");

    // A label on the node leaves its apps alone.
    let label = "kind: Node\napiVersion: crossdock.io/v1\nmetadata: {name: box-1, labels: {line: '3'}}\n";
    fs::write(stage.path("label.yaml"), label)?;
    stage.crossdock(&["apply", "-f", "label.yaml"]).await?;
    let nodes = stage.crossdock(&["get", "nodes", "-l", "line=3", "-o", "name"]).await?;
    ensure!(nodes.trim() == "nodes/box-1", "{nodes}");
    ensure!(stage.nodes().await?.iter().all(|n| n.spec.apps.len() == 1), "the label took the app away");

    let logs = stage.crossdock(&["get", "events"]).await?;
    ensure!(!logs.trim().is_empty(), "nothing of all this became an event");
    stage.close().await
}

/// Set in the test that has a mount namespace of its own.
const INSIDE: &str = "CROSSDOCK_TEST_INSIDE";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Everything of a box ends at once: agent, shims and workloads, which all work below its folder.
fn power_off(folder: &Path) {
    let folder = folder.to_string_lossy().into_owned();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let at = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let of_box = at.to_string_lossy().starts_with(&folder) || String::from_utf8_lossy(&line).contains(&folder);
        if of_box && pid != std::process::id() {
            let _ = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status(); // it may be gone
        }
    }
}

#[tokio::test]
async fn a_box_restarts_on_order_and_its_app_is_back() -> anyhow::Result<()> {
    const TEST: &str = "a_box_restarts_on_order_and_its_app_is_back";
    if std::env::var_os(INSIDE).is_none() {
        // The kernel's number of this boot is another file in there.
        let mut again = std::process::Command::new("unshare");
        again.arg("-m").arg(std::env::current_exe()?).args([TEST, "--exact", "--nocapture"]).env(INSIDE, "1");
        ensure!(again.status()?.success(), "{TEST} failed in its own mounts; its output is above");
        return Ok(());
    }
    let mut stage = Stage::open(None, stage::programs().await?, false)?;
    let boot_id = stage.path("boot-id");
    fs::write(&boot_id, "00000000-0000-4000-8000-000000000001\n")?;
    let mounted = std::process::Command::new("mount").arg("--bind").arg(&boot_id).arg(BOOT_ID).status()?;
    ensure!(mounted.success(), "mount failed");

    stage.init_hub().await?;
    stage.init_repository().await?;
    stage.join(NODE, "hz-01").await?;
    let (script, asked) = (stage.path("restart.sh"), stage.path("asked"));
    write_program(&script, &format!("#!/bin/sh\necho \"$@\" >> {}\n", asked.display()))?;
    let settings = stage.path(NODE).join("agent.toml");
    let text = format!("[node]\nreboot = \"{} now\"\n{}", script.display(), fs::read_to_string(&settings)?);
    fs::write(settings, text)?;
    stage.start_agent(NODE)?;
    let port = free_port().context("no port is free for httpd")? + 1;
    write_release(&stage.path("v1"), "1.0.0", port, Some("parcels"))?;
    publish(&stage, "v1").await?;
    stage.crossdock(&["rollout", "start", "--strategy", "all-at-once", "www@1.0.0", "--to", "all", "--wait"]).await?;

    let reboot = ["reboot", "--to", "site=hz-01", "--max-unavailable", "1", "-o", "json"];
    let text = stage.crossdock(&reboot).await?;
    let rollout: proto::object::Rollout = serde_json::from_str(&text).context("read the rollout")?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !asked.exists() {
        ensure!(tokio::time::Instant::now() < deadline, "the command was not run");
        tokio::time::sleep(Duration::from_millis(50)).await; // one look to the next
    }
    let status = stage.crossdock(&["rollout", "status", rollout.name()]).await?;
    ensure!(status.contains("it goes down"), "{status}");
    stage.kill_agent(NODE).await?;
    power_off(&stage.path(NODE));
    ensure!(get(port).await.is_err(), "the app survived the power");
    fs::write(&boot_id, "00000000-0000-4000-8000-000000000002\n")?;
    stage.start_agent(NODE)?;
    let watched = stage.crossdock(&["rollout", "watch", rollout.name(), "--timeout", "2m"]).await?;
    ensure!(watched.contains("Succeeded"), "{watched}");
    ensure!(get(port).await?.contains("parcels"), "the app is back");
    ensure!(fs::read_to_string(&asked)? == "now\n", "it was asked once");
    let said = stage.run("edgecore", &["status", "--data", NODE]).await?;
    ensure!(said.contains(&format!("restart of the node by {}: Succeeded", rollout.name())), "{said}");
    let history = stage.crossdock(&["rollout", "history", "node"]).await?;
    ensure!(history.contains("restart of nodes"), "{history}");
    let (code, text) = stage.try_run("crossdock", &["rollout", "retry", rollout.name()]).await?;
    ensure!(code != 0 && text.contains("start another one"), "{code}: {text}");
    stage.close().await
}
