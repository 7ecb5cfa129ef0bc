//! `sim bench containers`: what the agent adds to starting a container, what twenty of them cost it, and what a change
//! of one layer sends. A real Docker engine is started for it, and images are made from scratch.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use cloudcore::stage::{self, Stage, relay::Relay};
use edgecore::driver::{
    Driver as _, InstanceSpec, Side,
    container::{ContainerDriver, api::Api, create},
};
use proto::{
    digest::Digest,
    env::Env,
    object::{Node, ReleaseRef, UpdatePhase},
    release::{
        Image, Workload,
        container::{CONFIG_PATH, Container, LAYERS_FOLDER},
    },
};
use rand::{Rng as _, SeedableRng as _};
use tokio::time::{Instant, sleep};

use super::{Figures, process, warn_if_debug};
use crate::containers::{
    engine::{Engine, Kind},
    image::{self, LayerFile},
};

const NODE: &str = "box-1";
const STOP_GRACE: Duration = Duration::from_secs(2);

/// `sim bench containers`.
#[derive(Debug, clap::Args)]
pub struct ContainersArgs {
    /// Starts through the agent's driver, and as many by the engine alone.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(3..=200))]
    rounds: u32,
    /// Containers that run while the agent's memory is read.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
    containers: u32,
    /// MiB of the layer that never changes.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    base_mib: u32,
    /// One JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Runs the bench.
///
/// # Errors
/// When there is no engine, or something does not do what it should.
pub async fn run(args: &ContainersArgs) -> anyhow::Result<()> {
    warn_if_debug();
    let folder = tempfile::Builder::new().prefix("crossdock-containers-").tempdir()?;
    let engine = Engine::start(Kind::Docker, folder.path().join("docker")).await?;
    let mut figures = Figures::default();
    overhead(&engine, folder.path(), args, &mut figures).await?;
    fleet(&engine, args, &mut figures).await?;
    engine.close().await?;
    figures.print(args.json);
    Ok(())
}

/// Layers of an image: a shell, weight that nothing compresses, and a program that `change` tells from others.
fn layers(args: &ContainersArgs, change: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut weight = vec![0; args.base_mib as usize * (1 << 20)];
    rand_chacha::ChaCha12Rng::seed_from_u64(7).fill_bytes(&mut weight);
    let program = format!("#!/bin/sh\n# {change}\nexec sleep 1000000\n");
    Ok(vec![
        image::busybox()?,
        image::layer(&[LayerFile::new("weight", weight, false)])?,
        image::layer(&[LayerFile::new("run.sh", program, true)])?,
    ])
}

const COMMAND: [&str; 2] = ["/bin/sh", "/run.sh"];

/// A start through the driver against what the engine takes for the same container by itself, in turns.
async fn overhead(engine: &Engine, folder: &Path, args: &ContainersArgs, figures: &mut Figures) -> anyhow::Result<()> {
    let env = Env::real()?;
    let spec = spec(folder, args)?;
    let driver = ContainerDriver::new(&folder.join("containers"), vec![engine.socket()], env);
    driver.prepare(&spec).await?;
    let api = Api::at(&engine.socket()).await?;
    let container = spec.workload.container.clone().context("it is a container")?;
    let around = create::Surroundings {
        number: 1,
        image: spec
            .workload
            .container
            .as_ref()
            .and_then(|c| c.image.as_ref())
            .context("it has an image")?
            .config
            .to_string(),
        agent: "bench".into(),
        boot_id: "bench".into(),
        uses: vec![],
        socket: None,
        cdi: false,
    };
    let (mut ours, mut bare) = (vec![], vec![]);
    for round in 0..args.rounds {
        let begin = Instant::now();
        driver.start(&spec).await?;
        ours.push(begin.elapsed());
        driver.stop(&spec.app, STOP_GRACE).await?;
        let begin = Instant::now();
        let id = api.create(&format!("bare-{round}"), &create::body(&spec, &container, &around)).await?;
        api.start(&id).await?;
        bare.push(begin.elapsed());
        api.remove(&id).await?;
    }
    driver.remove(&spec.app).await?;
    let (ours, bare) = (median(ours), median(bare));
    let ms = |time: Duration| (time.as_secs_f64() * 10_000.0).round() / 10.0;
    figures.add("start_ms", ms(ours), "a container started through the agent's driver, median");
    figures.add("start_bare_ms", ms(bare), "the engine's own create and start of the same container, in turns");
    figures.add("start_overhead_ms", ms(ours.saturating_sub(bare)), "the difference");
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// A release as it lies on a box.
fn spec(folder: &Path, args: &ContainersArgs) -> anyhow::Result<InstanceSpec> {
    let layers = layers(args, "1")?;
    let (tree, config) = (folder.join("tree"), image::config(&layers, &COMMAND));
    fs::create_dir_all(tree.join(LAYERS_FOLDER))?;
    fs::write(tree.join(CONFIG_PATH), &config)?;
    let digests: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    for (digest, layer) in digests.iter().zip(&layers) {
        fs::write(tree.join(Image::layer_path(*digest)), layer)?;
    }
    let image = Image { config: Digest::of(config.as_bytes()), layers: digests };
    let mut workload = Workload::new(String::new());
    workload.container = Some(Container { image: Some(image), ..Container::default() });
    Ok(InstanceSpec {
        app: "bench".parse()?,
        side: Side::A,
        replica: 0,
        run: None,
        release: ReleaseRef { version: "1".parse()?, digest: Digest::of(b"bench") },
        tree,
        data: folder.join("data"),
        workload,
        gpus: vec![],
        uses: BTreeMap::new(),
    })
}

fn write_release(folder: &Path, archive: &Path, app: &str, version: &str) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let yaml = format!(
        "apiVersion: crossdock.io/v1\napp: {app}\nversion: {version}\nartifacts: []\n\
         workload:\n  container:\n    archive: {}\n  stopGrace: 0s\n  soak: 500ms\n",
        archive.display()
    );
    Ok(fs::write(folder.join("release.yaml"), yaml)?)
}

/// What a change of one layer sends, and what many containers cost the agent.
async fn fleet(engine: &Engine, args: &ContainersArgs, figures: &mut Figures) -> anyhow::Result<()> {
    let mut stage = Stage::open(None, stage::shipped_programs().await?, false)?;
    stage.init_hub().await?;
    stage.init_repository().await?;
    let relay = Relay::start((Ipv4Addr::LOCALHOST, 0).into(), stage.link_address()?.parse()?).await?;
    stage.join_at(NODE, "hz-01", &relay.address.to_string()).await?;
    let settings = stage.path(NODE).join("agent.toml");
    let text = format!("[containers]\nsocket = \"{}\"\n{}", engine.socket().display(), fs::read_to_string(&settings)?);
    fs::write(settings, text)?;
    stage.start_agent(NODE)?;

    let mut sent = vec![];
    for version in ["1", "2"] {
        let archive = archive(&stage, args, version)?;
        publish(&stage, &archive, &[("bench".to_owned(), version)]).await?;
        let before = relay.counts.get().0;
        roll_out(&mut stage, &[("bench".to_owned(), version)]).await?;
        sent.push(relay.counts.get().0 - before);
    }
    let [full, one] = sent[..] else { anyhow::bail!("two releases were measured") };
    figures.add("full_bytes", full, "hub to box and back for the first release, counted by a relay");
    figures.add("one_layer_bytes", one, "the same for a release with one small layer changed");

    let apps: Vec<(String, &str)> = (1..args.containers).map(|number| (format!("bench-{number}"), "1")).collect();
    let archive = archive(&stage, args, "1")?;
    publish(&stage, &archive, &apps).await?;
    roll_out(&mut stage, &apps).await?;
    sleep(Duration::from_secs(15)).await; // at rest is what is measured
    let agent = stage.agent_pid(NODE).context("the agent has ended")?;
    let memory = process::memory(agent)?;
    figures.add("containers", args.containers, "that run");
    figures.add("agent_rss_bytes", memory.rss_bytes, "VmRSS of the agent, idle, with all of them");
    figures.add("agent_private_bytes", memory.private_bytes, "its private pages");
    stage.close().await
}

fn archive(stage: &Stage, args: &ContainersArgs, version: &str) -> anyhow::Result<PathBuf> {
    let (layers, path) = (layers(args, version)?, stage.path(&format!("image-{version}.tar")));
    image::save(&path, &layers, &image::config(&layers, &COMMAND))?;
    Ok(path)
}

async fn publish(stage: &Stage, archive: &Path, apps: &[(String, &str)]) -> anyhow::Result<()> {
    for (app, version) in apps {
        let folder = format!("{app}-{version}");
        write_release(&stage.path(&folder), archive, app, version)?;
        stage.crossdock(&["release", "build", &format!("{folder}/release.yaml"), "--repo", "repo"]).await?;
    }
    stage.sign().await?;
    Ok(())
}

async fn roll_out(stage: &mut Stage, apps: &[(String, &str)]) -> anyhow::Result<()> {
    for (app, version) in apps {
        let release = format!("{app}@{version}");
        stage.crossdock(&["rollout", "start", "--strategy", "all-at-once", &release, "--to", "all"]).await?;
    }
    let runs = |node: &Node| {
        apps.iter().all(|(app, version)| {
            let found = node.status.workloads.iter().find(|(name, _)| name.as_str() == app);
            found.is_some_and(|(_, w)| {
                w.phase == UpdatePhase::Succeeded
                    && w.running.as_ref().is_some_and(|r| r.ready && r.release.version.as_str() == *version)
            })
        })
    };
    stage.wait_for_nodes("all run", runs).await?;
    ensure!(!apps.is_empty(), "nothing was rolled out");
    Ok(())
}
