//! Containers end to end: a real Docker engine, real hub and agent, images from scratch. Every step is a command that a
//! release engineer could type.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, too, may end a test

use std::{fs, path::Path, time::Duration};

use anyhow::ensure;
use cloudcore::stage::{self, Stage};
use proto::object::{Node, UpdatePhase};
use sim::containers::{
    engine::{Engine, Kind, in_own_network},
    image::{self, LayerFile},
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

const NODE: &str = "box-1";
/// Three engines at once are more than two cores carry in time.
static ONE_ENGINE: Mutex<()> = Mutex::const_new(());

/// What a version's program is like.
struct Program<'a> {
    version: &'a str,
    script: &'a str,
    /// More of `release.yaml`, below `container` and below `workload`.
    container: &'a str,
    workload: &'a str,
}

/// Layers that no version changes: the shell, and weight.
fn base() -> anyhow::Result<Vec<Vec<u8>>> {
    let weight: Vec<u8> = (0..4_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    Ok(vec![image::busybox()?, image::layer(&[LayerFile::new("weight", weight, false)])?])
}

fn write_release(folder: &Path, program: &Program<'_>) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let mut layers = base()?;
    layers.push(image::layer(&[LayerFile::new("app/run.sh", program.script, true)])?);
    image::save(&folder.join("image.tar"), &layers, &image::config(&layers, &["/bin/sh", "/app/run.sh"]))?;
    let Program { version, container, workload, .. } = program;
    let yaml = format!(
        "apiVersion: crossdock.io/v1
app: vision
version: {version}
artifacts: []
workload:
  container:
    archive: image.tar
{container}
  env: {{ LINE: '3' }}
  limits: {{ memory: 64Mi, cpuMillis: 500, pids: 64 }}
  stopGrace: 2s
  soak: 500ms
  deadline: 20s
{workload}
"
    );
    Ok(fs::write(folder.join("release.yaml"), yaml)?)
}

async fn publish(stage: &Stage, folder: &str) -> anyhow::Result<()> {
    stage.crossdock(&["release", "build", &format!("{folder}/release.yaml"), "--repo", "repo"]).await?;
    stage.crossdock(&["release", "sign", "--repo", "repo"]).await?;
    stage.crossdock(&["release", "publish", "--repo", "repo"]).await?;
    Ok(())
}

async fn roll_out(stage: &Stage, release: &str) -> anyhow::Result<(i32, String)> {
    let start = ["rollout", "start", "--strategy", "all-at-once", release, "--to", "all", "--wait"];
    stage.try_run("crossdock", &start).await
}

async fn release(stage: &Stage, program: &Program<'_>) -> anyhow::Result<(i32, String)> {
    let folder = format!("v{}", program.version);
    write_release(&stage.path(&folder), program)?;
    publish(stage, &folder).await?;
    roll_out(stage, &format!("vision@{}", program.version)).await
}

fn runs(node: &Node, version: &str, phase: UpdatePhase) -> bool {
    node.status.workloads.get("vision").is_some_and(|w| {
        w.phase == phase && w.running.as_ref().is_some_and(|r| r.release.version.as_str() == version && r.ready)
    })
}

async fn open(engine: &Engine) -> anyhow::Result<Stage> {
    let mut stage = Stage::open(None, stage::programs().await?, false)?;
    stage.init_hub().await?;
    stage.crossdock(&["release", "init", "repo"]).await?;
    stage.crossdock(&["release", "publish", "--repo", "repo"]).await?;
    stage.join(NODE, "hz-01").await?;
    let settings = stage.path(NODE).join("agent.toml");
    let text = format!("[containers]\nsocket = \"{}\"\n{}", engine.socket().display(), fs::read_to_string(&settings)?);
    fs::write(settings, text)?;
    stage.start_agent(NODE)?;
    Ok(stage)
}

/// IDs of the containers of ours that run.
async fn running(engine: &Engine) -> anyhow::Result<String> {
    engine.docker(&["ps", "-q", "--no-trunc", "--filter", "label=io.crossdock.app=vision"]).await
}

/// Waits until this is so of what runs in a container.
async fn until_top(engine: &Engine, id: &str, so: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + stage::PATIENCE;
    loop {
        let processes = engine.docker(&["top", id]).await?;
        if so(&processes) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{processes}");
        sleep(Duration::from_millis(100)).await; // one look to the next
    }
}

const SERVES: &str = "echo counting $CROSSDOCK_VERSION on line $LINE; echo $CROSSDOCK_VERSION > /tmp/index.html
while true; do httpd -f -p 8080 -h /tmp; done\n";
const PROBES: &str = "  probes:
    readiness: { http: { path: /index.html, port: 8080 }, period: 200ms }
    liveness:  { exec: { command: [/bin/wget, -q, -O, /dev/null, 'http://127.0.0.1:8080/index.html'] }, period: 1s, timeout: 5s }";

#[tokio::test]
async fn a_container_is_released_upgraded_reverted_and_left_alone() -> anyhow::Result<()> {
    let _one = ONE_ENGINE.lock().await;
    if !in_own_network("a_container_is_released_upgraded_reverted_and_left_alone")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut engine = Engine::start(Kind::Docker, folder.path().join("docker")).await?;
    let mut stage = open(&engine).await?;

    // Somebody else's: its name even looks like ours.
    write_release(
        &stage.path("foreign"),
        &Program { version: "0", script: "sleep 100000\n", container: "", workload: "" },
    )?;
    engine.docker(&["load", "-q", "-i", &stage.path("foreign/image.tar").to_string_lossy()]).await?;
    let image = engine.docker(&["images", "-q", "--no-trunc"]).await?;
    let foreign = engine.docker(&["run", "-d", "--name", "crossdock-vision-1", "--init", &image]).await?;

    stage.crossdock(&["keys", "new", "ann", "--no-passphrase"]).await?;
    let shown = stage.crossdock(&["keys", "show", "ann.pem"]).await?;
    let line = shown.lines().find_map(|line| line.strip_prefix("openssh")).unwrap_or_default().trim().to_owned();
    let workload = format!("{PROBES}\n  exec: {{ authorizedKeys: ['{line}'] }}");
    let serves = |version| Program { version, script: SERVES, container: "", workload: &workload };
    let (code, text) = release(&stage, &serves("1.0.0")).await?;
    ensure!(code == 0, "{text}");
    let first = running(&engine).await?;
    let format = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}";
    let asked = engine.docker(&["inspect", "-f", format, &first]).await?;
    ensure!(asked == "67108864 500000000 64 true [ALL] [no-new-privileges] 0", "{asked}");
    let logs = stage.crossdock(&["logs", "box-1/vision"]).await?;
    ensure!(logs.contains("counting 1.0.0 on line 3"), "{logs}");

    // Somebody looks in, and goes in the middle of something.
    let look = ["exec", "box-1/vision", "--key", "ann.pem", "--", "/bin/sh", "-c"];
    let script = "echo $CROSSDOCK_VERSION; echo oops >&2; exit 4";
    let (code, text) = stage.try_run("crossdock", &[&look[..], &[script]].concat()).await?;
    ensure!(code == 4 && text == "1.0.0\noops\n", "{code}: {text}");
    let mut child = stage.command("crossdock", &[&look[..], &["sleep 86463"]].concat()).spawn()?;
    until_top(&engine, &first, |processes| processes.contains("sleep 86463")).await?;
    child.kill().await?;
    until_top(&engine, &first, |processes| !processes.contains("sleep 86463")).await?;

    // The agent restarts: the container is the same before and after.
    stage.kill_agent(NODE).await?;
    ensure!(running(&engine).await? == first, "the container must not notice");
    stage.start_agent(NODE)?;
    stage.wait_for_nodes("it is Ready again", |n| runs(n, "1.0.0", UpdatePhase::Succeeded)).await?;
    ensure!(running(&engine).await? == first, "the container was restarted with its agent");

    // One layer of three changes.
    let changed = format!("{SERVES}# of another version\n");
    let (code, text) = release(&stage, &Program { script: &changed, ..serves("2.0.0") }).await?;
    ensure!(code == 0, "{text}");
    let second = running(&engine).await?;
    ensure!(second != first && !second.contains('\n'), "{second}");

    // It ends at once: the box goes back by itself.
    let (code, text) = release(&stage, &Program { script: "echo no camera; exit 3\n", ..serves("3.0.0") }).await?;
    ensure!(code == 5 && text.contains("exited with code 3; last output: no camera"), "{code}: {text}");
    stage.wait_for_nodes("2.0.0 is back", |n| runs(n, "2.0.0", UpdatePhase::RolledBack)).await?;

    // It wants more memory than it may have.
    let eats = "x=0123456789abcdef; while true; do x=$x$x; done\n";
    let (code, text) = release(&stage, &Program { script: eats, ..serves("4.0.0") }).await?;
    ensure!(code == 5 && text.contains("it needs more memory than its limit of 64Mi"), "{code}: {text}");
    stage.wait_for_nodes("2.0.0 is back", |n| runs(n, "2.0.0", UpdatePhase::RolledBack)).await?;

    // The engine restarts and takes its containers down: the agent starts it again.
    engine.restart().await?;
    engine.docker(&["start", &foreign]).await?;
    stage
        .wait_for_nodes("2.0.0 is up again", |n| {
            runs(n, "2.0.0", UpdatePhase::RolledBack)
                && n.status.workloads.get("vision").and_then(|w| w.running.as_ref()).is_some_and(|r| r.restarts > 0)
        })
        .await?;
    let logs = stage.crossdock(&["logs", "box-1/vision"]).await?;
    ensure!(logs.matches("counting 2.0.0").count() == 2, "what it wrote before is there, too: {logs}");

    // Images of releases that nobody goes back to are gone: active and the one before are kept.
    let ours = engine.docker(&["images", "--format", "{{.Repository}}:{{.Tag}}", "crossdock.local/*"]).await?;
    ensure!(ours.lines().count() == 2, "{ours}");

    // The app is taken away: nothing of it is left, and the foreign one never noticed.
    let node =
        "kind: Node\napiVersion: crossdock.io/v1\nmetadata: {name: box-1}\nspec: {site: hz-01, apps: {vision: null}}\n";
    fs::write(stage.path("none.yaml"), node)?;
    for rollout in stage.crossdock(&["get", "rollouts", "-o", "name"]).await?.lines() {
        stage.crossdock(&["delete", "rollout", rollout.trim_start_matches("rollouts/")]).await?; // who would put it back
    }
    stage.crossdock(&["apply", "-f", "none.yaml"]).await?;
    stage.wait_for_nodes("the app is gone", |n| n.status.workloads.is_empty()).await?;
    let left = engine.docker(&["ps", "-aq", "--no-trunc"]).await?;
    ensure!(left == foreign, "{left}");
    let images = engine.docker(&["images", "--format", "{{.Repository}}"]).await?;
    ensure!(!images.contains("crossdock.local"), "{images}");
    engine.close().await?;
    stage.close().await
}

/// Podman, where Debian's is installed, speaks the same API: no network of its own is needed for it.
#[tokio::test]
async fn podman_runs_the_same_release() -> anyhow::Result<()> {
    let _one = ONE_ENGINE.lock().await;
    if !in_own_network("podman_runs_the_same_release")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let engine = Engine::start(Kind::Podman, folder.path().join("podman")).await?;
    let mut stage = open(&engine).await?;
    let port = 32_768 + u16::try_from(std::process::id() % 20_000)?;
    let script = format!(
        "echo counting $CROSSDOCK_VERSION; echo $CROSSDOCK_VERSION > /tmp/index.html; exec httpd -f -p 127.0.0.1:{port} -h /tmp\n"
    );
    let probes = format!(
        "  probes:
    readiness: {{ http: {{ path: /index.html, port: {port} }}, period: 200ms }}
    liveness:  {{ exec: {{ command: [/bin/ls, /tmp/index.html] }}, period: 1s, timeout: 5s }}"
    );
    let serves = |version| Program { version, script: &script, container: "    network: host", workload: &probes };
    for version in ["1.0.0", "2.0.0"] {
        let (code, text) = release(&stage, &serves(version)).await?;
        ensure!(code == 0, "{text}");
    }
    let ends = Program { script: "echo no camera; exit 3\n", ..serves("3.0.0") };
    let (code, text) = release(&stage, &ends).await?;
    // Whether its end or a probe of what has ended is told first depends on when Podman tells of the end.
    ensure!(code == 5 && text.contains("RolledBack"), "{code}: {text}");
    stage.wait_for_nodes("2.0.0 is back", |n| runs(n, "2.0.0", UpdatePhase::RolledBack)).await?;
    let logs = stage.crossdock(&["logs", "box-1/vision"]).await?;
    ensure!(logs.contains("counting 2.0.0"), "{logs}");
    let before = running(&engine).await?;
    stage.kill_agent(NODE).await?;
    stage.start_agent(NODE)?;
    stage.wait_for_nodes("it is Ready again", |n| runs(n, "2.0.0", UpdatePhase::RolledBack)).await?;
    ensure!(running(&engine).await? == before, "the container was restarted with its agent");
    stage.kill_agent(NODE).await?;
    engine.close().await?;
    stage.close().await
}

/// An image that went and files that changed meanwhile: nothing but what was signed is handed to the engine again.
#[tokio::test]
async fn damage_on_the_box_is_fetched_anew() -> anyhow::Result<()> {
    let _one = ONE_ENGINE.lock().await;
    if !in_own_network("damage_on_the_box_is_fetched_anew")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let engine = Engine::start(Kind::Docker, folder.path().join("docker")).await?;
    let mut stage = open(&engine).await?;
    let serves = |version| Program { version, script: SERVES, container: "", workload: PROBES };
    let (code, text) = release(&stage, &serves("1.0.0")).await?;
    ensure!(code == 0, "{text}");

    // Somebody removes container and image, and a disk that ages changes a layer meanwhile.
    let releases = stage.path(NODE).join("apps/vision/releases");
    let release_folder = fs::read_dir(&releases)?.next().unwrap()?.path();
    let layer = fs::read_dir(release_folder.join("tree/image/layers"))?.next().unwrap()?.path();
    let mut content = fs::read(&layer)?;
    content[1000] ^= 1;
    fs::write(&layer, content)?;
    let image = engine.docker(&["images", "-q", "--no-trunc", "crossdock.local/vision"]).await?;
    let id = running(&engine).await?;
    engine.docker(&["rm", "-f", &id]).await?;
    engine.docker(&["rmi", "-f", &image]).await?;
    let deadline = Instant::now() + stage::PATIENCE;
    loop {
        let after = running(&engine).await?;
        if !after.is_empty() && after != id {
            break;
        }
        ensure!(Instant::now() < deadline, "it does not run again: {:?}", stage.nodes().await?);
        sleep(Duration::from_millis(100)).await; // one look to the next
    }
    stage.wait_for_nodes("it is healthy again", |n| runs(n, "1.0.0", UpdatePhase::Succeeded)).await?;
    ensure!(
        engine.docker(&["images", "-q", "--no-trunc", "crossdock.local/vision"]).await? == image,
        "of the same image"
    );
    engine.close().await?;
    stage.close().await
}
