//! The engine: found by its socket, asked with patience, and its answers in words.

use std::{
    collections::BTreeMap,
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
    known: Mutex<BTreeMap<PathBuf, Api>>,
}

impl Engine {
    /// The first of these sockets that is there.
    #[must_use]
    pub fn new(sockets: Vec<PathBuf>) -> Engine {
        Engine { sockets, known: Mutex::default() }
    }

    /// Where there is an engine, as far as a look at sockets tells: at `before`, if that is still one of them.
    #[must_use]
    pub fn socket(&self, before: Option<&Path>) -> Option<&Path> {
        let is_there = |socket: &&PathBuf| socket.exists();
        let same = self.sockets.iter().find(|socket| before == Some(socket.as_path())).filter(is_there);
        same.or_else(|| self.sockets.iter().find(is_there)).map(PathBuf::as_path)
    }

    /// The engine at [`Engine::socket`], to be asked.
    ///
    /// # Errors
    /// For people, when there is none or it does not answer.
    pub async fn get(&self, before: Option<&Path>) -> Result<(&Path, Api), String> {
        if self.sockets.is_empty() {
            return Err("containers are off on this box ([containers] socket in agent.toml)".into());
        }
        let Some(socket) = self.socket(before) else {
            let tried: Vec<_> = self.sockets.iter().map(|socket| socket.display().to_string()).collect();
            let mend = "install docker.io or podman, or name the socket in agent.toml ([containers] socket)";
            return Err(format!("there is no container engine at {}; {mend}", tried.join(", ")));
        };
        Ok((socket, self.at(socket).await?))
    }

    /// The engine at this socket, to be asked.
    ///
    /// # Errors
    /// For people, when it does not answer.
    pub async fn at(&self, socket: &Path) -> Result<Api, String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(socket).cloned();
        if let Some(api) = known {
            return Ok(api);
        }
        let api = Api::at(socket).await.map_err(|e| e.to_string())?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(socket.to_owned(), api.clone());
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
