//! A container is released, upgraded, reverted, found again and taken away.

use std::{
    fs,
    io::ErrorKind,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::ensure;
use cloudcore::stage::{self, Stage};
use proto::object::{Node, UpdatePhase};
use sim::containers::{
    engine::{Engine, Kind, in_own_network},
    yard::{
        APP, NODE, PROBES, Program, SERVES, app, open, order, publish, release, running, runs, take_away, try_release,
        write_release,
    },
};
use tokio::{
    io::AsyncWriteExt as _,
    time::{Instant, sleep},
};

use super::{ONE_ENGINE, limits::processes, warm};

/// A key of ann's, and what lists it below `workload`.
async fn with_key(stage: &Stage) -> anyhow::Result<String> {
    stage.crossdock(&["keys", "new", "ann", "--no-passphrase"]).await?;
    let shown = stage.crossdock(&["keys", "show", "ann.pem"]).await?;
    let line = shown.lines().find_map(|line| line.strip_prefix("openssh")).unwrap_or_default().trim().to_owned();
    Ok(format!("  exec: {{ authorizedKeys: ['{line}'] }}"))
}

/// Ann looks into the app, types something, and goes in the middle of something.
async fn somebody_looks_in(stage: &mut Stage, version: &str) -> anyhow::Result<()> {
    let look = ["exec", "box-1/vision", "--key", "ann.pem", "--", "/bin/sh", "-c"];
    let script = "echo $CROSSDOCK_VERSION; echo oops >&2; exit 4";
    let (code, text) = stage.try_run("crossdock", &[&look[..], &[script]].concat()).await?;
    ensure!(code == 4 && text == format!("{version}\noops\n"), "{code}: {text}");
    let typing = ["exec", "-i", "box-1/vision", "--key", "ann.pem", "--", "/bin/cat"];
    let mut child = stage.command("crossdock", &typing).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().unwrap().write_all(b"by hand\n").await?; // and its end
    let said = child.wait_with_output().await?;
    ensure!(said.status.success() && said.stdout == b"by hand\n", "{said:?}");
    let mut child = stage.command("crossdock", &[&look[..], &["sleep 86463"]].concat()).spawn()?;
    stage.wait_until("it sleeps", || processes("86463").is_ok_and(|count| count > 0)).await?;
    child.kill().await?;
    stage.wait_until("nothing of it is left", || processes("86463").is_ok_and(|count| count == 0)).await
}

#[tokio::test]
async fn a_container_is_released_upgraded_reverted_and_left_alone() -> anyhow::Result<()> {
    let _one = ONE_ENGINE.lock().await;
    if !in_own_network("lifecycle::a_container_is_released_upgraded_reverted_and_left_alone")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut engine = Engine::start(Kind::Docker, folder.path().join("docker")).await?;
    let mut stage = open(&engine).await?;

    // Somebody else's: its name even looks like ours.
    write_release(&stage.path("foreign"), &Program { script: "sleep 100000\n", workload: "", ..Program::serves("0") })?;
    engine.docker(&["load", "-q", "-i", &stage.path("foreign/image.tar").to_string_lossy()]).await?;
    let image = engine.docker(&["images", "-q", "--no-trunc"]).await?;
    let foreign = engine.docker(&["run", "-d", "--name", "crossdock-vision-1", "--init", &image]).await?;

    let with_key = format!("{PROBES}\n{}", with_key(&stage).await?);
    let serves = Program::serves;
    release(&stage, &Program { workload: &with_key, ..serves("1.0.0") }).await?;
    let first = running(&engine).await?;
    let format = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}";
    let asked = engine.docker(&["inspect", "-f", format, &first]).await?;
    ensure!(asked == "67108864 500000000 64 true [ALL] [no-new-privileges] 0", "{asked}");
    let logs = stage.crossdock(&["logs", "box-1/vision"]).await?;
    ensure!(logs.contains("counting 1.0.0 on line 3"), "{logs}");

    somebody_looks_in(&mut stage, "1.0.0").await?;

    // The agent restarts: the container is the same before and after.
    stage.kill_agent(NODE).await?;
    ensure!(running(&engine).await? == first, "the container must not notice");
    stage.start_agent(NODE)?;
    stage.wait_for_nodes("it is Ready again", |n| runs(n, "1.0.0", UpdatePhase::Succeeded)).await?;
    ensure!(running(&engine).await? == first, "the container was restarted with its agent");

    // One layer of three changes.
    let changed = format!("{SERVES}# of another version\n");
    release(&stage, &Program { script: &changed, ..serves("2.0.0") }).await?;
    let second = running(&engine).await?;
    ensure!(second != first && !second.contains('\n'), "{second}");

    // It ends at once: the box goes back by itself.
    let (code, text) = try_release(&stage, &Program { script: "echo no camera; exit 3\n", ..serves("3.0.0") }).await?;
    ensure!(code == 5 && text.contains("exited with code 3; last output: no camera"), "{code}: {text}");
    stage.wait_for_nodes("2.0.0 is back", |n| runs(n, "2.0.0", UpdatePhase::RolledBack)).await?;

    // It wants more memory than it may have.
    let eats = "x=0123456789abcdef; while true; do x=$x$x; done\n";
    publish(&stage, &Program { script: eats, ..serves("4.0.0") }).await?;
    order(&stage, "vision@4.0.0").await?;
    let says = |n: &Node| app(n, APP).is_some_and(|app| app.message.contains("more memory than its limit of 64Mi"));
    stage.wait_for_nodes("it says why it ends", says).await?; // until it is started again, as it may be at its deadline
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
    take_away(&stage).await?;
    stage.wait_for_nodes("the app is gone", |n| n.status.workloads.is_empty()).await?;
    let left = engine.docker(&["ps", "-aq", "--no-trunc"]).await?;
    ensure!(left == foreign, "{left}");
    let images = engine.docker(&["images", "--format", "{{.Repository}}"]).await?;
    ensure!(!images.contains("crossdock.local"), "{images}");

    warm::is_updated_without_a_gap(&stage, &engine).await?;
    engine.close().await?;
    stage.close().await
}

/// Podman, where Debian's is installed, speaks the same API: no network of its own is needed for it.
#[tokio::test]
async fn podman_runs_the_same_release() -> anyhow::Result<()> {
    let _one = ONE_ENGINE.lock().await;
    if !in_own_network("lifecycle::podman_runs_the_same_release")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut engine = Engine::start(Kind::Podman, folder.path().join("podman")).await?;
    let mut stage = open(&engine).await?;
    let port = 32_768 + u16::try_from(std::process::id() % 20_000)?;
    let script = format!(
        "echo counting $CROSSDOCK_VERSION; echo $CROSSDOCK_VERSION > /tmp/index.html; exec httpd -f -p 127.0.0.1:{port} -h /tmp\n"
    );
    let probes = format!(
        "  probes:
    readiness: {{ http: {{ path: /index.html, port: {port} }}, period: 200ms }}
    liveness:  {{ exec: {{ command: [/bin/ls, /tmp/index.html] }}, period: 1s, timeout: 5s }}
{}",
        with_key(&stage).await?
    );
    let serves = |version| Program {
        script: &script,
        container: "    network: host",
        workload: &probes,
        ..Program::serves(version)
    };
    for version in ["1.0.0", "2.0.0"] {
        release(&stage, &serves(version)).await?;
    }
    somebody_looks_in(&mut stage, "2.0.0").await?;
    let ends = Program { script: "echo no camera; exit 3\n", ..serves("3.0.0") };
    let (code, text) = try_release(&stage, &ends).await?;
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

    // The engine goes, and its container does not: it is not taken for removed before the engine is back.
    engine.end().await?;
    fs::remove_file(engine.socket()).or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
    take_away(&stage).await?;
    let says =
        |n: &Node| app(n, APP).is_some_and(|app| app.message.contains("is away and a container of vision may run"));
    stage.wait_for_nodes("it says what is in the way", says).await?;
    let served =
        Command::new("busybox").args(["wget", "-q", "-O", "-", &format!("http://127.0.0.1:{port}")]).output()?;
    ensure!(served.stdout == b"2.0.0\n", "the container should be there: {served:?}");
    engine.restart().await?;
    stage.wait_for_nodes("the app is gone", |n| n.status.workloads.is_empty()).await?;
    let left = engine.docker(&["ps", "-aq"]).await?;
    ensure!(left.is_empty(), "{left}");
    engine.close().await?;
    stage.close().await
}

/// An image that went and files that changed meanwhile: nothing but what was signed is handed to the engine again.
#[tokio::test]
async fn damage_on_the_box_is_fetched_anew() -> anyhow::Result<()> {
    let _one = ONE_ENGINE.lock().await;
    if !in_own_network("lifecycle::damage_on_the_box_is_fetched_anew")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let engine = Engine::start(Kind::Docker, folder.path().join("docker")).await?;
    let mut stage = open(&engine).await?;
    let serves = Program::serves;
    release(&stage, &serves("1.0.0")).await?;

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
