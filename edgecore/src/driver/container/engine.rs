//! The engine: found by its socket, asked with patience, and its answers in words.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::{api::Api, create::CDI_KIND};

/// Sockets of engines, in the order in which they are tried.
pub const SOCKETS: [&str; 3] = ["/run/docker.sock", "/var/run/docker.sock", "/run/podman/podman.sock"];

/// A box's engine, which may come, go and come back.
#[derive(Debug)]
pub struct Engine {
    sockets: Vec<PathBuf>,
    /// Who answered, and where.
    known: Mutex<Option<(PathBuf, Api)>>,
}

impl Engine {
    /// The first of these sockets that is there.
    #[must_use]
    pub fn at(sockets: Vec<PathBuf>) -> Engine {
        Engine { sockets, known: Mutex::new(None) }
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
    pub async fn get(&self) -> Result<Api, String> {
        if self.sockets.is_empty() {
            return Err("containers are off on this box ([containers] socket in agent.toml)".into());
        }
        let Some(socket) = self.socket() else {
            let tried: Vec<_> = self.sockets.iter().map(|socket| socket.display().to_string()).collect();
            let mend = "install docker.io or podman, or name the socket in agent.toml ([containers] socket)";
            return Err(format!("there is no container engine at {}; {mend}", tried.join(", ")));
        };
        if let Some((at, api)) = &*self.known.lock().unwrap_or_else(PoisonError::into_inner)
            && at == socket
        {
            return Ok(api.clone());
        }
        let api = Api::at(socket).await.map_err(|e| e.to_string())?;
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((socket.to_owned(), api.clone()));
        Ok(api)
    }
}

/// Whether the engine hands out GPUs by CDI: it says where it looks for specifications, and there is one of NVIDIA's.
pub async fn has_cdi(api: &Api) -> bool {
    let Ok(info) = api.info().await else { return false };
    let folders = info.cdi_spec_dirs.unwrap_or_default();
    let files = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    files.into_iter().any(|file| std::fs::read_to_string(file.path()).is_ok_and(|text| text.contains(CDI_KIND)))
}
