//! Workloads as containers, by the API of Docker Engine, which Podman speaks, too. The agent's supervisors call it.
//!
//! The driver keeps nothing in memory: which container is whose is in its labels, so an agent that is started anew
//! finds all that the one before it left running, and a container without our label is never touched. Which apps were
//! ever containers here is on disk (`marks`): about all others the engine is not asked, so that they do not depend on
//! an engine that is sick. There is, too, whether one may run: while its engine is away, nobody knows of an end, and
//! whoever asks is told so. Of each app there is the newest container, and one before it for its output. That one was
//! asked to stop is in its name.
//!
//! `serve` is the driver as the agent sees it, and `asked` which engine that means. `create` says what is asked of it, `look` what it answers, `folders` where a container may write, `attach` runs
//! a person's command, `image` how the release's image gets there, `registry` how one that is not in the release does and
//! `credentials` with which, `sweep` how it goes, `engine` how it is found, `api` how it is asked.

pub mod api;
mod asked;
mod attach;
pub mod create;
mod credentials;
mod engine;
mod folders;
mod image;
mod layer;
mod look;
mod marks;
mod output;
mod registry;
mod serve;
mod sweep;
#[cfg(test)]
pub(super) mod tests;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use proto::{
    digest::Digest,
    env::Env,
    name::Name,
    object::LastExit,
    release::{Container, uses::variable},
};
use rand::Rng as _;
use rand_chacha::ChaCha12Rng;
use tokio::time::{sleep, timeout};

pub use self::engine::SOCKETS;
use self::{
    api::Api,
    create::{STREAMS_SOCKET, Surroundings},
    credentials::Credentials,
    engine::Engine,
    image::{Files, ImageError},
    look::{Found, STOPPED},
    marks::{Mark, MarkError, Marks},
    registry::Pinned,
};
use super::{Instance, InstanceSpec, procs};
use crate::secrets::Secrets;

/// Beyond the grace: how long SIGKILL may take.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);
/// Between looks whether a container still runs, besides waiting for its end: Podman 4.3 does not always tell.
const LOOK_OTHERS: Duration = Duration::from_millis(500);
/// The same with Docker, which does.
const LOOK_DOCKER: Duration = Duration::from_secs(60);
/// Looks that may tell nothing in a row before that is said.
const UNCLEAR_LOOKS: u32 = 6;
/// Until an engine that broke off is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Runs workloads as containers.
#[derive(Debug)]
pub struct ContainerDriver {
    engine: Engine,
    env: Env,
    /// Of each app that was ever a container here.
    marks: Arc<Marks>,
    /// Whose containers are ours: agents with other folders have others.
    agent: String,
    names: Mutex<ChaCha12Rng>,
    /// Where credentials for registries are.
    secrets: OnceLock<Arc<Secrets>>,
}

impl ContainerDriver {
    /// Asks the engine at the first of `sockets` that is there, and about an app's containers the one that has them.
    /// `root` is a folder of its own, which tells this agent from others of the box.
    #[must_use]
    pub fn new(root: &Path, sockets: Vec<PathBuf>, env: Env) -> ContainerDriver {
        let agent: String = Digest::of(root.as_os_str().as_encoded_bytes()).hex().chars().take(16).collect();
        let names = Mutex::new(env.seed.stream("names of containers"));
        let secrets = OnceLock::new();
        let (engine, marks) = (Engine::new(sockets), Arc::new(Marks::at(root)));
        ContainerDriver { engine, env, marks, agent, names, secrets }
    }

    /// The image of a release is at the engine.
    async fn load(&self, api: &Api, spec: &InstanceSpec, container: &Container) -> Result<(), ImageError> {
        let digest = spec.release.digest;
        match (&container.image, &container.registry) {
            (Some(image), _) => {
                let (tree, image) = (spec.tree.clone(), image.clone());
                let files = self.env.blocking.run(move || Files::at(&tree, &image)).await?;
                image::ensure(api, &self.env, &spec.app, digest, files).await
            }
            (None, Some(image)) => {
                let secret = container.pull_secret.as_deref();
                let wanted = Pinned { app: &spec.app, release: digest, image, secret };
                registry::ensure(api, wanted, self.credentials(spec, image)).await
            }
            (None, None) => Err(ImageError::Engine("the release names no image".into())), // manifests are checked
        }
    }

    /// Those for the registry of the release's image, where it names some.
    async fn credentials(&self, spec: &InstanceSpec, image: &str) -> Result<Option<Credentials>, ImageError> {
        let Some(secrets) = self.secrets.get().filter(|_| spec.workload.pull_secret().is_some()).cloned() else {
            return Ok(None);
        };
        let (spec, image) = (spec.clone(), image.to_owned());
        let found = self.env.blocking.run(move || {
            let Some(config) = secrets.open_pull_secret(&spec)? else { return Ok(None) };
            let name = spec.workload.pull_secret().map(|secret| secret.name.clone()).unwrap_or_default();
            Credentials::find(&config, &image).map(Some).map_err(|problem| ImageError::Pull {
                reason: "PullSecretInvalid",
                message: format!("{image} cannot be pulled: secret {name:?} {problem}"),
            })
        });
        found.await
    }

    async fn try_start(&self, spec: &InstanceSpec) -> Result<(), String> {
        let container = spec.workload.container.as_ref().ok_or("it is no container")?;
        let key = spec.key();
        let (socket, api) = self.engine_for(spec).await?;
        self.load(&api, spec, container).await.map_err(|e| e.to_string())?;
        let noted = self.marks.read(&key)?.unwrap_or_default();
        if noted.may_run_at(&procs::boot_id()).is_some_and(|at| at != socket) {
            self.try_stop(&key, spec.workload.stop_grace.get()).await?; // at the engine of other settings
        }
        let mut before = self.found(&api, &key).await?;
        for found in before.iter().filter(|found| found.running) {
            self.end(&api, found, spec.workload.stop_grace.get()).await?;
        }
        let number = before.iter().map(|found| found.number).max().unwrap_or(0).saturating_add(1);
        // The newest that ran stays, for its output.
        let kept = before.iter().position(|found| found.instance.is_some());
        kept.into_iter().for_each(|at| drop(before.remove(at)));
        for found in before {
            self.discard(&api, &found.id).await?;
        }
        self.mark(&key, socket).await?;
        let uses = container.uses.iter().map(|uses| files_of(spec, &uses.app)).collect::<Result<_, _>>()?;
        let (data, volumes) = (spec.data.clone(), container.volumes.clone());
        let owner = crate::secrets::owner_in_container(spec.workload.user.as_deref()).ok().flatten(); // numbers alone say whom
        let made = self
            .env
            .blocking
            .run(move || folders::make(&data, volumes.iter().filter_map(|volume| volume.name.as_ref()), owner));
        made.await.map_err(|e| format!("its folders cannot be made: {e}"))?;
        let around = Surroundings {
            image: image::reference(&spec.app, spec.release.digest),
            agent: self.agent.clone(),
            boot_id: procs::boot_id(),
            number,
            uses,
            cdi: !spec.gpus.is_empty() && engine::has_cdi(&api).await,
            socket: spec.workload.env.get(STREAMS_SOCKET).map(PathBuf::from).filter(|socket| is_alone(socket)),
        };
        let random = self.names.lock().unwrap_or_else(PoisonError::into_inner).next_u64();
        let name = format!("crossdock-{key}-{random:016x}");
        let body = create::body(spec, container, &around);
        let mut created = api.create(&name, &body).await;
        if created.as_ref().is_err_and(|e| e.to_string().contains("container-init")) {
            tracing::warn!(app = %spec.app, "the engine has no program to reap what containers leave behind; install catatonit");
            created = api.create(&name, &create::without_init(body)).await;
        }
        let id = created.map_err(|e| format!("the engine would not make it: {e}"))?;
        let mark = Mark::starting(socket, number, &procs::boot_id());
        match self.note(&key, move |_| Some(mark)).await {
            Ok(()) => {}
            // That it runs is worth more than to know so while the engine is away.
            Err(MarkError::Durable(e)) if e.is_disk_full() => tracing::warn!(app = %key, error = %e, "started unnoted"),
            Err(e) => {
                self.discard(&api, &id).await?;
                return Err(format!("that it is started cannot be noted: {e}"));
            }
        }
        if let Err(e) = api.start(&id).await {
            self.discard(&api, &id).await?; // nothing half-started stays
            self.note_end(&key).await;
            return Err(format!("the engine would not start it: {e}"));
        }
        Ok(())
    }

    async fn discard(&self, api: &Api, id: &str) -> Result<(), String> {
        match api.remove(id).await {
            Ok(()) => Ok(()),
            Err(e) if e.is_missing() || e.is_conflict() => Ok(()), // it is gone, or on its way
            Err(e) => Err(format!("container {id} cannot be removed: {e}")),
        }
    }

    /// SIGTERM, grace, SIGKILL; noted in its name first.
    async fn end(&self, api: &Api, found: &Found, grace: Duration) -> Result<(), String> {
        if !found.name.ends_with(STOPPED) {
            api.rename(&found.id, &format!("{}{STOPPED}", found.name)).await.map_err(|e| e.to_string())?;
        }
        for (signal, patience) in [("SIGTERM", grace), ("SIGKILL", KILL_TIMEOUT)] {
            match api.kill(&found.id, signal).await {
                Ok(()) => {}
                Err(e) if e.is_missing() || e.is_conflict() => {} // it ended meanwhile
                Err(e) => return Err(e.to_string()),
            }
            if timeout(patience, self.over(api, &found.id)).await.is_ok() {
                return Ok(());
            }
        }
        Err(format!("container {} does not end; it may hang in a device: reboot", found.name))
    }

    /// Until a container has ended. Cancel safe.
    async fn over(&self, api: &Api, id: &str) {
        let every = if api.is_docker() { LOOK_DOCKER } else { LOOK_OTHERS };
        loop {
            // Both arms are cancel safe: the engine is asked anew.
            let ended = tokio::select! {
                biased;
                ended = api.wait(id) => ended,
                () = sleep(every) => {
                    match look::runs(api, id).await {
                        Ok(true) | Err(_) => continue,
                        Ok(false) => return,
                    }
                }
            };
            match ended {
                Ok(()) => return,
                Err(e) if e.is_missing() => return,
                // The engine is restarted: what was running is not, unless it keeps containers alive.
                Err(_) => sleep(ASK_AGAIN).await,
            }
        }
    }

    async fn try_wait(&self, app: &Name) -> Result<LastExit, String> {
        let nothing = || "nothing of it was started".to_owned();
        let mut unclear = 0;
        loop {
            let looked = self.newest(app).await;
            let (api, found) = match looked.and_then(|newest| newest.ok_or_else(nothing)) {
                Ok(newest) if newest.1.instance.is_some() => newest,
                // Between two states Podman calls one by a name that the API does not have, for a moment.
                other if unclear < UNCLEAR_LOOKS => {
                    tracing::debug!(%app, problem = ?other.err(), "looking again");
                    unclear += 1;
                    sleep(LOOK_OTHERS).await;
                    continue;
                }
                Ok(_) => return Err(nothing()),
                Err(problem) => return Err(problem),
            };
            match found.instance {
                None => return Err(nothing()),
                Some(Instance { exit: Some(mut exit), .. }) => {
                    if exit.code != Some(0) && exit.message != super::STOPPED_ON_REQUEST {
                        output::add_last_line(&api, &found.id, &mut exit).await;
                    }
                    return Ok(exit);
                }
                Some(_) => self.over(&api, &found.id).await,
            }
        }
    }

    async fn try_stop(&self, app: &Name, grace: Duration) -> Result<(), String> {
        let Some((api, found)) = self.look(app).await? else { return Ok(()) };
        for found in found.iter().filter(|found| found.running) {
            self.end(&api, found, grace).await?;
        }
        self.note_end(app).await;
        Ok(())
    }

    async fn try_remove(&self, app: &Name) -> Result<(), String> {
        let Some((api, found)) = self.look(app).await? else { return Ok(()) };
        for found in found {
            self.discard(&api, &found.id).await?;
        }
        sweep::collect(&api, &self.agent, app, &BTreeSet::new()).await.map_err(|e| e.to_string())?;
        let (marks, app) = (self.marks.clone(), app.clone());
        self.env.blocking.run(move || marks.remove(&app)).await.map_err(|e| format!("its mark stays: {e}"))
    }
}

/// Whether nothing else is seen by who sees the folder of a file.
fn is_alone(file: &Path) -> bool {
    let entries = file.parent().and_then(|folder| folder.read_dir().ok());
    file.exists() && entries.is_some_and(|entries| entries.count() == 1)
}

/// The files of another app's release that the instance has.
fn files_of(spec: &InstanceSpec, app: &Name) -> Result<PathBuf, String> {
    let named = spec.workload.env.get(&variable(app)).map(Path::new);
    let found = named.and_then(|folder| folder.canonicalize().ok());
    found.ok_or_else(|| format!("it uses the files of {app}, which is not on this box; roll that out first"))
}
