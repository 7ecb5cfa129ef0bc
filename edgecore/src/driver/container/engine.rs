//! The engine: found by its socket, asked with patience, and its answers in words.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use bollard::{API_DEFAULT_VERSION, Docker, errors::Error};

use super::create::CDI_KIND;

/// Sockets of engines, in the order in which they are tried.
pub const SOCKETS: [&str; 3] = ["/run/docker.sock", "/var/run/docker.sock", "/run/podman/podman.sock"];
/// Until the engine must have begun to answer, in seconds. Loading and waiting take as long as they take.
const PATIENCE_S: u64 = 60;

/// A box's engine, which may come, go and come back.
#[derive(Debug)]
pub struct Engine {
    sockets: Vec<PathBuf>,
    connected: Mutex<Option<Docker>>,
}

impl Engine {
    /// The first of these sockets that is there.
    #[must_use]
    pub fn at(sockets: Vec<PathBuf>) -> Engine {
        Engine { sockets, connected: Mutex::new(None) }
    }

    /// Whether there is an engine, as far as a look at its socket tells.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.socket().is_some()
    }

    fn socket(&self) -> Option<&Path> {
        self.sockets.iter().find(|socket| socket.exists()).map(PathBuf::as_path)
    }

    /// The engine, to be asked.
    ///
    /// # Errors
    /// For people, when there is none or it does not answer.
    pub async fn get(&self) -> Result<Docker, String> {
        if let Some(docker) = self.connected.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(docker);
        }
        if self.sockets.is_empty() {
            return Err("containers are off on this box ([containers] socket in agent.toml)".into());
        }
        let Some(socket) = self.socket() else {
            let tried: Vec<_> = self.sockets.iter().map(|socket| socket.display().to_string()).collect();
            let mend = "install docker.io or podman, or name the socket in agent.toml ([containers] socket)";
            return Err(format!("there is no container engine at {}; {mend}", tried.join(", ")));
        };
        let path = socket.display().to_string();
        let docker = Docker::connect_with_unix(&path, PATIENCE_S, API_DEFAULT_VERSION).map_err(|e| why(&e))?;
        // Each speaks the newest that the other knows.
        let docker = docker.negotiate_version().await.map_err(|e| format!("the engine at {path}: {}", why(&e)))?;
        *self.connected.lock().unwrap_or_else(PoisonError::into_inner) = Some(docker.clone());
        Ok(docker)
    }
}

/// An error of the engine, in words.
#[must_use]
pub fn why(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        Error::RequestTimeoutError => "the engine does not answer; systemctl restart docker".into(),
        other => super::super::process::chain(other),
    }
}

/// Whether it is Docker's, and no other that speaks the same API.
pub async fn is_docker(docker: &Docker) -> bool {
    let components = docker.version().await.ok().and_then(|version| version.components).unwrap_or_default();
    components.iter().any(|component| component.name == "Engine")
}

/// Whether the engine hands out GPUs by CDI: it says where it looks for specifications, and there is one of NVIDIA's.
pub async fn has_cdi(docker: &Docker) -> bool {
    let Ok(info) = docker.info().await else { return false };
    let folders = info.cdi_spec_dirs.unwrap_or_default();
    let files = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    files.into_iter().any(|file| std::fs::read_to_string(file.path()).is_ok_and(|text| text.contains(CDI_KIND)))
}

/// Whether the engine says that there is no such thing.
#[must_use]
pub fn is_missing(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code: 404, .. })
}
