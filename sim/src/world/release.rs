//! What the release engineer and the operator do: releases, publications, rollouts.
//!
//! What was wanted is kept, so that it is done again when the hub was away, or came back from a backup that
//! knows nothing of it.

use std::sync::PoisonError;

use anyhow::Context as _;
use cloudcore::{
    hub::Hub,
    release::{Repository, build::build},
};
use proto::{
    env::WallClock as _,
    name::{Name, ObjectName, ReleaseName, Version},
    object::{Rollout, RolloutPhase, RolloutSpec, rollout::WavePhase},
    release::Manifest,
    selector::Selector,
    tuf::SecretKey,
};
use rand::Rng as _;

use super::{REPOSITORY, World};
use crate::{
    driver::BAD_FILES,
    plan::{self, How, Steer},
};

/// What people want the hub to have.
#[derive(Default)]
pub(super) struct Wanted {
    /// Whether there is something that the hub may not have yet.
    unpublished: bool,
    releases: Vec<(Name, Version)>,
    rollouts: Vec<(ObjectName, RolloutSpec, bool)>,
    /// What people do to them meanwhile, in order.
    steers: Vec<(ObjectName, Steer, bool)>,
}

impl Wanted {
    /// The hub may have lost anything.
    pub fn published_anew(&mut self) {
        self.unpublished = true;
        self.rollouts.iter_mut().for_each(|(_, _, started)| *started = false);
        self.steers.iter_mut().for_each(|(_, _, done)| *done = false);
    }
}

impl World {
    /// Builds, signs and publishes a release of `files` files of random content, whose workload has `args`.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn publish(
        &self,
        app: &str,
        version: &str,
        files: usize,
        file_bytes: usize,
        args: &[&str],
    ) -> anyhow::Result<()> {
        self.stage(app, version, (files, file_bytes), args, "")?;
        self.publish_staged().await
    }

    /// Publishes a small release whose workload says more of itself: lines of a `release.yaml` below `workload`.
    ///
    /// # Errors
    /// When they are wrong, or the hub refuses.
    pub async fn publish_saying(&self, app: &str, version: &str, workload: &str) -> anyhow::Result<()> {
        self.stage(app, version, (2, 10_000), &[], workload)?;
        self.publish_staged().await
    }

    /// Publishes a small release under another targets key than the first.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn publish_signed(&self, app: &str, version: &str, targets: &SecretKey) -> anyhow::Result<()> {
        self.stage_signed(app, version, (2, 10_000), (&[], ""), targets)?;
        self.publish_staged().await
    }

    /// Publishes a root in which `new` stands in the place of `old`.
    ///
    /// # Errors
    /// When those who sign it are not enough, or the hub refuses.
    pub async fn rotate(&self, old: &SecretKey, new: &SecretKey, signers: &[SecretKey]) -> anyhow::Result<()> {
        let repository = Repository::open(&self.folder.path().join(REPOSITORY))?;
        repository.revoke(&old.id(), Some(&new.public()), self.engineers_time())?;
        repository.sign(signers)?;
        drop(repository); // it is locked for one at a time
        self.publish_staged().await
    }

    /// Builds and signs a release on the engineer's machine.
    fn stage(&self, app: &str, version: &str, size: (usize, usize), args: &[&str], more: &str) -> anyhow::Result<()> {
        self.stage_signed(app, version, size, (args, more), &self.key("targets"))
    }

    fn stage_signed(
        &self,
        app: &str,
        version: &str,
        (files, file_bytes): (usize, usize),
        (args, more): (&[&str], &str),
        targets: &SecretKey,
    ) -> anyhow::Result<()> {
        let folder = self.folder.path().join(format!("{app}-{version}"));
        std::fs::create_dir_all(folder.join("files"))?;
        let mut random = self.seed.child("content").stream(&format!("{app}@{version}"));
        for number in 0..files {
            let mut content = vec![0; file_bytes];
            random.fill_bytes(&mut content);
            std::fs::write(folder.join(format!("files/part-{number:03}")), content)?;
        }
        if args.contains(&"bad-files") {
            std::fs::write(folder.join("files").join(BAD_FILES), "whoever uses this hangs")?;
        }
        // What hangs shows in a probe only; without one it would run, and that is all that is asked.
        let warm = args.iter().any(|arg| arg.starts_with("warm"));
        let probes = if warm || more.contains("uses:") || args.contains(&"hang") {
            "  probes:\n    readiness:\n      exec:\n        command: [/bin/true]\n      period: 1s\n      timeout: 1s\n"
        } else {
            ""
        };
        let update = if warm { "  update: { strategy: warm }\n" } else { "" };
        let more: String = more.lines().map(|line| format!("  {line}\n")).collect();
        let workload = format!(
            "workload:\n  command: /bin/true\n  args: {}\n  soak: 3s\n  deadline: 60s\n{more}{update}{probes}",
            serde_json::to_string(args)?
        );
        let workload = if args.iter().any(|arg| arg.ends_with("files")) { "" } else { &workload };
        let yaml = format!(
            "apiVersion: crossdock.io/v1\napp: {app}\nversion: {version}\nartifacts:\n  - source: files\n{workload}"
        );
        std::fs::write(folder.join("release.yaml"), yaml)?;
        let built = build(&folder.join("release.yaml"))?;
        self.remember(built.digest, built.manifest.clone());
        let repository = Repository::open(&self.folder.path().join(REPOSITORY))?;
        repository.add(&built, self.engineers_time())?;
        repository.sign(std::slice::from_ref(targets))?;
        Ok(())
    }

    /// Releases are signed on another machine: the hub's clock may be wrong, this one is not.
    fn engineers_time(&self) -> jiff::Timestamp {
        self.hub_host.clock.right().now()
    }

    fn remember(&self, digest: proto::digest::Digest, manifest: Manifest) {
        self.released.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, manifest);
    }

    /// Hands what is staged and signed to the hub, as `crossdock release publish` does.
    pub(super) async fn publish_staged(&self) -> anyhow::Result<()> {
        let hub = self.hub()?;
        let repository = Repository::open(&self.folder.path().join(REPOSITORY))?;
        let publication = repository.finish(&self.key("pipeline"), self.engineers_time())?;
        for (digest, path) in publication.blobs {
            if !hub.blobs().has(digest).await? {
                let content = std::fs::read(&path)?;
                hub.blobs().put(digest, content.as_slice()).await?;
            }
        }
        hub.trust().publish(publication.reply).await?;
        self.trace.line("engineer", format_args!("published"));
        Ok(())
    }

    /// Starts a rollout to all nodes.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn roll_out(&self, app: &str, version: &str) -> anyhow::Result<()> {
        let spec = RolloutSpec::new(ReleaseName { app: app.parse()?, version: version.parse()? }, Selector::all());
        let name: ObjectName = rollout_name(app, version).parse()?;
        self.hub()?.store().create(Rollout::new(name, spec)).await?;
        self.trace.line("operator", format_args!("rollout start {app}@{version} --to all"));
        Ok(())
    }

    /// Starts a rollout as it is written.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn roll_out_so(&self, spec: RolloutSpec) -> anyhow::Result<()> {
        let name = rollout_name(spec.app.as_ref(), spec.version.as_ref().map_or("", AsRef::as_ref));
        self.trace.line("operator", format_args!("rollout start {} --to {}", spec.what(), spec.selector));
        self.hub()?.store().create(Rollout::new(name.parse::<ObjectName>()?, spec)).await?;
        Ok(())
    }

    /// The rollout of a release, as it stands.
    ///
    /// # Errors
    /// When the hub is down, or there is none.
    pub async fn rollout(&self, app: &str, version: &str) -> anyhow::Result<Rollout> {
        let rollout = self.hub()?.store().get::<RolloutSpec>(&rollout_name(app, version)).await?;
        rollout.with_context(|| format!("there is no rollout of {app}@{version}"))
    }

    /// Builds, signs and publishes a release; once. While the hub is away it is published later.
    ///
    /// # Errors
    /// When it cannot be built or signed.
    pub async fn publish_release(&mut self, release: &plan::Release) -> anyhow::Result<()> {
        let key = (release.app.clone(), release.version.clone());
        if self.wanted.releases.contains(&key) {
            return Ok(());
        }
        let files = usize::try_from(release.files.max(1))?;
        let each = usize::try_from(release.bytes)?.div_ceil(files);
        let tells = release.scaling.as_ref().map(|s| format!("tell={}:{}", s.replicas.metric, s.tells));
        let args: Vec<&str> = release.args.iter().chain(&tells).map(String::as_str).collect();
        let gpus = release.gpus.as_ref().map(serde_json::to_string).transpose()?;
        let gpus = gpus.map(|gpus| format!("gpus: {gpus}\n")).unwrap_or_default();
        let uses = release.uses.as_ref().map(|uses| format!("uses: [{uses}]\n")).unwrap_or_default();
        let replicas = release.scaling.as_ref().map(|s| serde_json::to_string(&s.replicas)).transpose()?;
        let replicas = replicas.map(|replicas| format!("replicas: {replicas}\n")).unwrap_or_default();
        self.stage(key.0.as_ref(), key.1.as_ref(), (files, each), &args, &format!("{gpus}{uses}{replicas}"))?;
        self.wanted.releases.push(key);
        self.wanted.unpublished = true;
        self.settle_wanted().await;
        Ok(())
    }

    /// Publishes a release above whatever was published of its app before, so that nodes accept a way back to it.
    ///
    /// # Errors
    /// When it cannot be built or signed.
    pub async fn publish_above(&mut self, release: &plan::Release) -> anyhow::Result<()> {
        let key = (release.app.clone(), release.version.clone());
        if !self.wanted.releases.contains(&key) {
            return self.publish_release(release).await;
        }
        let repository = Repository::open(&self.folder.path().join(REPOSITORY))?;
        repository.reissue(&ReleaseName { app: key.0, version: key.1 }, self.engineers_time())?;
        repository.sign(&[self.key("targets")])?;
        self.wanted.unpublished = true;
        self.settle_wanted().await;
        Ok(())
    }

    /// Starts a rollout; once. While the hub is away it is started later.
    ///
    /// # Errors
    /// When it has no possible name.
    pub async fn start_rollout(
        &mut self,
        app: &Name,
        version: &Version,
        to: &Selector,
        how: &How,
    ) -> anyhow::Result<()> {
        let name: ObjectName = rollout_name(app.as_ref(), version.as_ref()).parse()?;
        if !self.wanted.rollouts.iter().any(|(known, _, _)| *known == name) {
            self.wanted.rollouts.push((name, how.spec(app, version, to), false));
        }
        self.settle_wanted().await;
        Ok(())
    }

    /// Does something to a rollout, as `crossdock rollout pause` and its like do. While the hub is away it is done
    /// later.
    ///
    /// # Errors
    /// When it has no possible name.
    pub async fn steer(&mut self, app: &Name, version: &Version, steer: Steer) -> anyhow::Result<()> {
        self.wanted.steers.push((rollout_name(app.as_ref(), version.as_ref()).parse()?, steer, false));
        self.settle_wanted().await;
        Ok(())
    }

    /// Publishes and starts what the hub lacks. Never fails: what the hub refuses is told in the trace, and tried
    /// again by [`World::tick`].
    pub(super) async fn settle_wanted(&mut self) {
        let Some(hub) = self.running_hub() else { return };
        if self.wanted.unpublished {
            match self.publish_staged().await {
                Ok(()) => self.wanted.unpublished = false,
                Err(error) => {
                    self.trace.line("engineer", format_args!("could not publish: {error:#}"));
                    return;
                }
            }
        }
        for (name, spec, started) in &mut self.wanted.rollouts {
            if *started {
                continue;
            }
            match start_once(&hub, name, spec).await {
                Ok(fresh) => {
                    *started = true;
                    if fresh {
                        self.trace
                            .line("operator", format_args!("rollout start {} --to {}", spec.what(), spec.selector));
                    }
                }
                Err(error) => {
                    self.trace.line("operator", format_args!("could not start {name}: {error:#}"));
                    return; // the order of rollouts matters
                }
            }
        }
        for (name, steer, done) in self.wanted.steers.iter_mut().filter(|(.., done)| !done) {
            match self::steer(&hub, name, *steer).await {
                Ok(what) => {
                    *done = true;
                    self.trace.line("operator", format_args!("rollout {steer} {name}: {what}"));
                }
                Err(error) => {
                    self.trace.line("operator", format_args!("could not {steer} {name}: {error:#}"));
                    return;
                }
            }
        }
    }
}

/// Returns whether it was not there.
async fn start_once(hub: &Hub, name: &ObjectName, spec: &RolloutSpec) -> anyhow::Result<bool> {
    if hub.store().get::<RolloutSpec>(name.as_ref()).await?.is_some() {
        return Ok(false);
    }
    let mut spec = spec.clone();
    hub.config().rollouts.fill_in(&mut spec).map_err(anyhow::Error::msg)?;
    hub.store().create(Rollout::new(name.clone(), spec)).await.context("start the rollout")?;
    Ok(true)
}

/// Changes what is wished of a rollout by the rules of the command line. Returns what came of it.
async fn steer(hub: &Hub, name: &ObjectName, steer: Steer) -> anyhow::Result<String> {
    let rollout = hub.store().get::<RolloutSpec>(name.as_ref()).await?.context("there is no such rollout")?;
    let phase = rollout.status.phase;
    // As the API answers.
    if phase.is_final() && phase != RolloutPhase::Succeeded {
        return Ok(format!("refused, it is {phase}"));
    }
    let waiting = rollout.status.waves.iter().find(|wave| wave.phase == WavePhase::AwaitingApproval);
    let approved = waiting.map(|wave| wave.name.clone());
    let set = move |rollout: &mut Rollout| {
        let (control, status) = (&mut rollout.spec.control, &rollout.status);
        match steer {
            Steer::Pause => control.paused = true,
            Steer::Resume if control.paused => control.paused = false,
            Steer::Resume => control.resumed = status.resumed + 1,
            Steer::Abort => control.aborted = true,
            Steer::Retry => control.retries += 1,
            Steer::Approve => control.approved.extend(approved.clone()),
        }
    };
    hub.store().modify(name.as_ref(), set).await?;
    Ok(format!("it was {phase}"))
}

pub(super) fn rollout_name(app: &str, version: &str) -> String {
    format!("{app}-{version}")
}
