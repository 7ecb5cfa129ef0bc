//! A hub, a box and an engine for tests of containers, and releases of one app whose image is made from scratch.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, ensure};
use cloudcore::{
    release::{build::Built, repository::Repository},
    stage::{self, Stage},
};
use proto::{
    API_VERSION,
    digest::Digest,
    env::Env,
    object::{Node, UpdatePhase, WorkloadStatus},
    release::{
        FileEntry, Image, Manifest, Workload,
        container::{CONFIG_PATH, Container},
    },
};

use super::{
    engine::Engine,
    image::{self, LayerFile},
};

/// The box.
pub const NODE: &str = "box-1";
/// The app.
pub const APP: &str = "vision";
/// A program that serves its version at port 8080.
pub const SERVES: &str = "echo counting $CROSSDOCK_VERSION on line $LINE; echo $CROSSDOCK_VERSION > /tmp/index.html
while true; do httpd -f -p 8080 -h /tmp; done\n";
/// Probes of it.
pub const PROBES: &str = "  probes:
    readiness: { http: { path: /index.html, port: 8080 }, period: 200ms }
    liveness:  { exec: { command: [/bin/wget, -q, -O, /dev/null, 'http://127.0.0.1:8080/index.html'] }, period: 1s, timeout: 5s }";

/// What a version's program is like.
#[derive(Debug, Clone)]
pub struct Program<'a> {
    /// App.
    pub app: &'a str,
    /// Version.
    pub version: &'a str,
    /// What the shell in it runs.
    pub script: &'a str,
    /// More of `release.yaml`, below `container`.
    pub container: &'a str,
    /// The same below `workload`.
    pub workload: &'a str,
    /// Bytes of another layer that nothing compresses.
    pub ballast_bytes: usize,
}

impl Program<'_> {
    /// One that serves its version.
    #[must_use]
    pub fn serves(version: &str) -> Program<'_> {
        Program { app: APP, version, script: SERVES, container: "", workload: PROBES, ballast_bytes: 0 }
    }
}

/// Layers that no version changes: the shell, and weight.
///
/// # Errors
/// When busybox is not installed.
pub fn base() -> anyhow::Result<Vec<Vec<u8>>> {
    let weight: Vec<u8> = (0..4_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    Ok(vec![image::busybox()?, image::layer(&[LayerFile::new("weight", weight, false)])?])
}

/// Writes image and `release.yaml` of a program into `folder`.
///
/// # Errors
/// When a file cannot be written.
pub fn write_release(folder: &Path, program: &Program<'_>) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let Program { app, version, script, container, workload, ballast_bytes } = program;
    let mut layers = base()?;
    if *ballast_bytes > 0 {
        let mut ballast = vec![0; *ballast_bytes];
        rand::Rng::fill_bytes(&mut proto::env::Seed::from_u64(1).stream(version), &mut ballast);
        layers.push(image::layer(&[LayerFile::new("ballast", ballast, false)])?);
    }
    layers.push(image::layer(&[LayerFile::new("app/run.sh", *script, true)])?);
    image::save(&folder.join("image.tar"), &layers, &image::config(&layers, &["/bin/sh", "/app/run.sh"]))?;
    let yaml = format!(
        "apiVersion: crossdock.io/v1
app: {app}
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

/// Builds, signs and publishes a program.
///
/// # Errors
/// When a command fails.
pub async fn publish(stage: &Stage, program: &Program<'_>) -> anyhow::Result<()> {
    let folder = format!("{}-{}", program.app, program.version);
    write_release(&stage.path(&folder), program)?;
    stage.publish(&folder).await
}

/// Signs and publishes these layers under this configuration, past all that `release build` looks at: what signers
/// who do not look would sign.
///
/// # Errors
/// When a command fails.
pub async fn publish_unseen(stage: &Stage, version: &str, layers: &[Vec<u8>], config: &str) -> anyhow::Result<()> {
    let folder = stage.path(&format!("unseen-{version}"));
    fs::create_dir_all(&folder)?;
    let (mut files, mut blobs) = (vec![], BTreeMap::new());
    let mut add = |path: String, content: &[u8]| -> anyhow::Result<Digest> {
        let (digest, size) = (Digest::of(content), content.len() as u64);
        let path = if path.is_empty() { Image::layer_path(digest) } else { path };
        let file = folder.join(digest.hex());
        fs::write(&file, content)?;
        files.push(FileEntry { path: path.try_into()?, digest, size, executable: false });
        blobs.insert(digest, file);
        Ok(digest)
    };
    let config = add(CONFIG_PATH.into(), config.as_bytes())?;
    let layers = layers.iter().map(|layer| add(String::new(), layer)).collect::<Result<_, _>>()?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut workload = Workload::new(String::new());
    workload.container = Some(Container { image: Some(Image { config, layers }), ..Container::default() });
    let manifest = Manifest {
        api_version: API_VERSION.into(),
        app: APP.parse()?,
        version: version.parse()?,
        min_agent: None,
        hardware: Default::default(),
        files,
        workload: Some(workload),
        hooks: Default::default(),
        provenance: None,
        sbom: None,
    };
    Repository::open(&stage.path("repo"))?.add(&Built::new(manifest, blobs)?, Env::real()?.wall.now())?;
    stage.sign().await
}

/// Starts a rollout to all, and waits for its end: exit code and text.
///
/// # Errors
/// When the command cannot be run.
pub async fn roll_out(stage: &Stage, release: &str) -> anyhow::Result<(i32, String)> {
    let start = ["rollout", "start", "--strategy", "all-at-once", release, "--to", "all", "--wait"];
    stage.try_run("crossdock", &start).await
}

/// The same, without waiting.
///
/// # Errors
/// When the hub refuses.
pub async fn order(stage: &Stage, release: &str) -> anyhow::Result<()> {
    stage.roll_out(release, false).await
}

/// Publishes and rolls out a program that must become healthy.
///
/// # Errors
/// When it does not.
pub async fn release(stage: &Stage, program: &Program<'_>) -> anyhow::Result<()> {
    let (code, text) = try_release(stage, program).await?;
    ensure!(code == 0, "{text}");
    Ok(())
}

/// Publishes and rolls out a program: exit code and text.
///
/// # Errors
/// When a command cannot be run.
pub async fn try_release(stage: &Stage, program: &Program<'_>) -> anyhow::Result<(i32, String)> {
    publish(stage, program).await?;
    roll_out(stage, &format!("{}@{}", program.app, program.version)).await
}

/// Has the box run nothing any more, whatever was rolled out before.
///
/// # Errors
/// When the hub refuses.
pub async fn take_away(stage: &Stage) -> anyhow::Result<()> {
    let spec = format!("{{ site: hz-01, apps: {{ {APP}: null }} }}");
    let node = format!("kind: Node\napiVersion: crossdock.io/v1\nmetadata: {{ name: {NODE} }}\nspec: {spec}\n");
    fs::write(stage.path("none.yaml"), node)?;
    for rollout in stage.crossdock(&["get", "rollouts", "-o", "name"]).await?.lines() {
        stage.crossdock(&["delete", "rollout", rollout.trim_start_matches("rollouts/")]).await?; // who would put it back
    }
    stage.crossdock(&["apply", "-f", "none.yaml"]).await.map(drop)
}

/// How an app is on a node.
#[must_use]
pub fn app<'a>(node: &'a Node, app: &str) -> Option<&'a WorkloadStatus> {
    node.status.workloads.iter().find(|(name, _)| name.as_str() == app).map(|(_, status)| status)
}

/// Whether this version of the app runs and is ready, and its update stands so.
#[must_use]
pub fn runs(node: &Node, version: &str, phase: UpdatePhase) -> bool {
    app(node, APP).is_some_and(|w| w.phase == phase) && is_ready(node, version)
}

/// Whether this version of the app runs and is ready.
#[must_use]
pub fn is_ready(node: &Node, version: &str) -> bool {
    let running = app(node, APP).and_then(|w| w.running.as_ref());
    running.is_some_and(|r| r.release.version.as_str() == version && r.ready)
}

/// A hub with a repository.
///
/// # Errors
/// When a program does not do what it should.
pub async fn hub() -> anyhow::Result<Stage> {
    let mut stage = Stage::open(None, stage::programs().await?, false)?;
    stage.init_hub().await?;
    stage.init_repository().await?;
    Ok(stage)
}

/// A hub and a box that runs containers by this engine.
///
/// # Errors
/// When a program does not do what it should.
pub async fn open(engine: &Engine) -> anyhow::Result<Stage> {
    let mut stage = hub().await?;
    join(&mut stage, engine).await?;
    Ok(stage)
}

/// The box joins and starts.
///
/// # Errors
/// When it does not.
pub async fn join(stage: &mut Stage, engine: &Engine) -> anyhow::Result<()> {
    stage.join(NODE, "hz-01").await?;
    let settings = stage.path(NODE).join("agent.toml");
    let text = format!("[containers]\nsocket = \"{}\"\n{}", engine.socket().display(), fs::read_to_string(&settings)?);
    fs::write(&settings, text).context("write agent.toml")?;
    stage.start_agent(NODE)
}

/// IDs of the app's containers that run.
///
/// # Errors
/// What the engine says.
pub async fn running(engine: &Engine) -> anyhow::Result<String> {
    engine.docker(&["ps", "-q", "--no-trunc", "--filter", &format!("label=io.crossdock.app={APP}")]).await
}
