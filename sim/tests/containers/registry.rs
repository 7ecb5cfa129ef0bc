//! Images of a registry: pulled by digest, with credentials that the release seals, while what runs goes on.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::ensure;
use cloudcore::stage::{self, Stage};
use data_encoding::BASE64;
use proto::{
    digest::Digest,
    object::{Node, UpdatePhase},
};
use sim::containers::{
    engine::{Engine, Kind, in_own_network},
    image::{self, LayerFile},
    registry::Registry,
    yard::{self, APP, NODE, PROBES, SERVES},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::{Instant, sleep},
};

use super::ONE_ENGINE;

const USER: &str = "puller";
const PASSWORD: &str = "correct-horse-battery-staple-4711";
const WRONG: &str = "battery-horse-staple-1174";
/// What names the secret in a release.
const PULL_SECRET: &str = "    pullSecret: registry";

/// An image that is like no other by `name`.
fn image(name: &str) -> anyhow::Result<(Vec<Vec<u8>>, String)> {
    let file = |path, content: &str| LayerFile::new(path, content, true);
    let layers = vec![image::busybox()?, image::layer(&[file("app/run.sh", SERVES), file("name", name)])?];
    let config = image::config(&layers, &["/bin/sh", "/app/run.sh"]);
    Ok((layers, config))
}

/// Writes a release of an image of a registry.
fn write(stage: &Stage, version: &str, image: &str, container: &str, workload: &str) -> anyhow::Result<String> {
    let folder = format!("v{version}");
    fs::create_dir_all(stage.path(&folder).join("files"))?;
    fs::write(stage.path(&folder).join("files/about.txt"), version)?;
    let yaml = format!(
        "apiVersion: crossdock.io/v1
app: {APP}
version: {version}
artifacts: [{{ source: files }}]
workload:
  container:
    registry: {image}
{container}
  soak: 300ms
  deadline: 20s
  stopGrace: 1s
{workload}
"
    );
    fs::write(stage.path(&folder).join("release.yaml"), yaml)?;
    Ok(folder)
}

/// Orders such a release.
async fn order(stage: &Stage, version: &str, image: &str, container: &str, workload: &str) -> anyhow::Result<()> {
    let folder = write(stage, version, image, container, workload)?;
    stage.publish(&folder).await?;
    yard::order(stage, &format!("{APP}@{version}")).await
}

/// The same, with credentials for the image's registry sealed to the box.
async fn order_sealed(
    stage: &Stage,
    version: &str,
    image: &str,
    password: &str,
    (container, workload): (&str, &str),
) -> anyhow::Result<()> {
    let auth = BASE64.encode(format!("{USER}:{password}").as_bytes());
    let host = image.split('/').next().unwrap_or_default();
    let config = serde_json::json!({ "auths": { host: { "auth": auth } } });
    fs::write(stage.path("config.json"), config.to_string())?;
    let sealed = format!("v{version}/files/registry.age");
    fs::create_dir_all(stage.path(&sealed).with_file_name(""))?;
    let seal = ["secret", "seal", "registry", "--repo", "repo", "--app", APP, "--from-file", "config.json"];
    stage.crossdock(&[&seal[..], &["--to", "name=box-1", "-o", &sealed]].concat()).await?;
    fs::remove_file(stage.path("config.json"))?;
    let secrets = format!("  secrets: [{{ name: registry, file: registry.age }}]\n{workload}");
    order(stage, version, image, &format!("{PULL_SECRET}\n{container}"), &secrets).await
}

/// Whether this version waits for that reason, and its message holds these words and no password.
fn waits(node: &Node, version: &str, reason: &str, words: &[&str]) -> bool {
    yard::app(node, APP).is_some_and(|w| {
        w.reason == reason
            && w.phase == UpdatePhase::Blocked
            && w.target.as_ref().is_some_and(|target| target.version.as_str() == version)
            && words.iter().all(|word| w.message.contains(word))
            && !w.message.contains(PASSWORD)
            && !w.message.contains(WRONG)
    })
}

/// Files below `folder` that hold one of these words.
fn holding(folder: &Path, words: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("grep");
    command.args(["-r", "-l", "-a", "-F", "-D", "skip"]).args(words.iter().flat_map(|word| ["-e", word])).arg(folder);
    Ok(String::from_utf8_lossy(&command.output()?.stdout).into_owned())
}

fn digest_of(image: &str) -> &str {
    image.rsplit('@').next().unwrap_or_default()
}

/// Waits until the engine knows an image by no name any more; those that it knows.
async fn until_gone(engine: &Engine, image: &str) -> anyhow::Result<String> {
    let deadline = Instant::now() + stage::PATIENCE;
    loop {
        let held = engine.docker(&["images", "--digests", "--no-trunc"]).await?;
        if !held.contains(digest_of(image)) {
            return Ok(held);
        }
        ensure!(Instant::now() < deadline, "{image} stays: {held}");
        sleep(Duration::from_millis(100)).await; // one look to the next
    }
}

/// A registry that hands out another manifest than it is asked for; its host.
async fn liar() -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let host = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = vec![];
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.ok()?);
                }
                let empty = Digest::of(b"{}").to_string();
                let config = serde_json::json!({ "mediaType": "application/vnd.oci.image.config.v1+json", "digest": empty, "size": 2 });
                let kind = "application/vnd.oci.image.manifest.v1+json";
                let body = serde_json::json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [] })
                    .to_string();
                let claimed = Digest::of(b"what was signed");
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: {kind}\r\nDocker-Content-Digest: {claimed}\r\n\
                     Content-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).await.ok()
            });
        }
    });
    Ok(host)
}

#[tokio::test]
async fn images_are_pulled_from_private_registries_while_what_runs_goes_on() -> anyhow::Result<()> {
    let _one = ONE_ENGINE.lock().await;
    if !in_own_network("registry::images_are_pulled_from_private_registries_while_what_runs_goes_on")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let engine = Engine::start(Kind::Docker, folder.path().join("docker")).await?;
    let public = Registry::start(folder.path().join("public"), 5000, false).await?;
    let mut private = Registry::start(folder.path().join("private"), 5001, true).await?;
    private.let_in(USER, "another-one").await?;
    let host = private.host();
    let take_in = |registry: &Registry, name| {
        let (layers, config) = image(name)?;
        registry.take_in("team/vision", &layers, &config)
    };
    let mut stage = yard::open(&engine).await?;

    // Public, by digest.
    let first_image = take_in(&public, "first")?;
    order(&stage, "1.0.0", &first_image, "", PROBES).await?;
    stage.wait_for_nodes("1.0.0 runs", |node| yard::runs(node, "1.0.0", UpdatePhase::Succeeded)).await?;
    let first = yard::running(&engine).await?;
    let goes_on = async |stage: &mut Stage, what: &str| -> anyhow::Result<()> {
        ensure!(yard::running(&engine).await? == first, "{what}: 1.0.0 was disturbed");
        stage.wait_for_nodes("1.0.0 is ready", |node| yard::is_ready(node, "1.0.0")).await
    };

    // Private, and the release brings nothing; a secret that is none of its own is found when it is built.
    let second_image = take_in(&private, "second")?;
    order(&stage, "2.0.0", &second_image, "", PROBES).await?;
    let words = [&*second_image, "no basic auth credentials", &host, "container.pullSecret"];
    stage.wait_for_nodes("it says why", |node| waits(node, "2.0.0", "ImagePullUnauthorized", &words)).await?;
    goes_on(&mut stage, "no credentials").await?;
    let unnamed = write(&stage, "9.0.0", &second_image, PULL_SECRET, "")?;
    let build = ["release", "build", &format!("{unnamed}/release.yaml"), "--repo", "repo"];
    let (code, said) = stage.try_run("crossdock", &build).await?;
    ensure!(code != 0 && said.contains("pullSecret \"registry\" is none of its secrets"), "{code}: {said}");

    // A wrong password; as soon as the registry takes it the pull goes on by itself.
    order_sealed(&stage, "3.0.0", &second_image, WRONG, ("", PROBES)).await?;
    let words = [&*second_image, "unauthorized", "secret \"registry\"", "crossdock secret seal registry --app vision"];
    stage.wait_for_nodes("it says why", |node| waits(node, "3.0.0", "ImagePullUnauthorized", &words)).await?;
    goes_on(&mut stage, "a wrong password").await?;
    private.let_in(USER, WRONG).await?;
    stage.wait_for_nodes("3.0.0 runs", |node| yard::runs(node, "3.0.0", UpdatePhase::Succeeded)).await?;

    // A registry that is down, and up again. What ran before is what runs until then.
    private.let_in(USER, PASSWORD).await?;
    let third_image = take_in(&private, "third")?;
    private.end().await?;
    let second = yard::running(&engine).await?;
    order_sealed(&stage, "4.0.0", &third_image, PASSWORD, ("", PROBES)).await?;
    let words = ["connection refused", "can this box reach", &host];
    stage.wait_for_nodes("it says why", |node| waits(node, "4.0.0", "ImagePullFailed", &words)).await?;
    ensure!(yard::running(&engine).await? == second, "3.0.0 was disturbed");
    private.begin().await?;
    stage.wait_for_nodes("4.0.0 runs", |node| yard::runs(node, "4.0.0", UpdatePhase::Succeeded)).await?;

    // A registry that hands out something else.
    let other = format!("{}/team/vision@{}", liar().await?, Digest::of(b"what was signed"));
    let third = yard::running(&engine).await?;
    order(&stage, "5.0.0", &other, "", PROBES).await?;
    let words = [&*other, "manifest verification failed", "is refused"];
    stage.wait_for_nodes("it is refused", |node| waits(node, "5.0.0", "VerificationFailed", &words)).await?;
    ensure!(yard::running(&engine).await? == third, "4.0.0 was disturbed");

    // The credentials are nowhere: in no file, in nothing that the engine tells, and not with the workload.
    let auths = [PASSWORD, WRONG].map(|password| BASE64.encode(format!("{USER}:{password}").as_bytes()));
    let secret = [PASSWORD, WRONG, &auths[0], &auths[1]];
    for folder in [stage.path(""), engine.path("")] {
        let found = holding(&folder, &secret)?;
        ensure!(found.is_empty(), "{found}");
    }
    ensure!(!holding(&stage.path("v4.0.0"), &["registry.age"])?.is_empty(), "a search that finds nothing ever");
    let inspected = engine.docker(&["inspect", &third]).await?;
    ensure!(!secret.iter().any(|word| inspected.contains(word)), "{inspected}");
    ensure!(!inspected.contains("CROSSDOCK_SECRETS"), "the workload has none: {inspected}");

    let held = until_gone(&engine, &first_image).await?;
    ensure!(held.contains(digest_of(&second_image)) && held.contains(digest_of(&third_image)), "{held}");
    engine.close().await?;
    stage.close().await
}

#[tokio::test]
async fn podman_pulls_with_the_same_secret() -> anyhow::Result<()> {
    let _one = ONE_ENGINE.lock().await;
    if !in_own_network("registry::podman_pulls_with_the_same_secret")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let engine = Engine::start(Kind::Podman, folder.path().join("podman")).await?;
    let private = Registry::start(folder.path().join("private"), 5001, true).await?;
    private.let_in(USER, "another-one").await?;
    let mut stage = yard::open(&engine).await?;
    stage
        .wait_for_nodes("its key is known", |node| node.status.info.as_ref().is_some_and(|i| i.sealing_key.is_some()))
        .await?;
    let (layers, config) = image("first")?;
    let first_image = private.take_in("team/vision", &layers, &config)?;
    // Networks of Podman's want programs that are not installed with it.
    let probes = "  probes: { readiness: { exec: { command: [/bin/ls, /tmp/index.html] }, period: 200ms } }";
    let more = ("    network: host", probes);
    order_sealed(&stage, "1.0.0", &first_image, PASSWORD, more).await?;
    let words = [&*first_image, "unauthorized", "secret \"registry\"", "crossdock secret seal registry --app vision"];
    stage.wait_for_nodes("it says why", |node| waits(node, "1.0.0", "ImagePullUnauthorized", &words)).await?;
    private.let_in(USER, PASSWORD).await?;
    stage.wait_for_nodes("1.0.0 runs", |node| yard::runs(node, "1.0.0", UpdatePhase::Succeeded)).await?;
    let mut images = vec![first_image];
    for version in ["2.0.0", "3.0.0"] {
        let (layers, config) = image(version)?;
        images.push(private.take_in("team/vision", &layers, &config)?);
        order_sealed(&stage, version, &images[images.len() - 1], PASSWORD, more).await?;
        stage.wait_for_nodes("it runs", |node| yard::runs(node, version, UpdatePhase::Succeeded)).await?;
    }
    let held = until_gone(&engine, &images[0]).await?;
    ensure!(images[1..].iter().all(|image| held.contains(digest_of(image))), "{images:?}: {held}");
    let inspected = engine.docker(&["inspect", &yard::running(&engine).await?]).await?;
    ensure!(!inspected.contains(PASSWORD) && !inspected.contains("CROSSDOCK_SECRETS"), "{inspected}");
    stage.kill_agent(NODE).await?;
    engine.close().await?;
    stage.close().await
}
