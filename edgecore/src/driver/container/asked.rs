//! Which engine is asked about an app's containers, and what is noted of its answers.

use std::path::{Path, PathBuf};

use proto::name::Name;

use super::{
    super::{InstanceSpec, procs},
    ContainerDriver,
    api::Api,
    look::{self, Found},
    marks::{Mark, MarkError},
};

impl ContainerDriver {
    /// The engine that may have containers of the app, and where it listens; `None`: there are none.
    pub(super) async fn engine_of(&self, app: &Name) -> Result<Option<(PathBuf, Api)>, String> {
        let Some(mark) = self.marks.read(app)? else { return Ok(None) };
        let socket = match mark.may_run_at(&procs::boot_id()) {
            Some(socket) if !socket.exists() => return Err(away(socket, app)),
            Some(socket) => socket,
            None => match self.engine.socket(mark.socket.as_deref()) {
                Some(socket) => socket,
                None => return Ok(None),
            },
        };
        Ok(Some((socket.to_owned(), self.engine.at(socket).await?)))
    }

    /// The engine that gets the instance's next container: that of the one before, or of its app, while it is there.
    pub(super) async fn engine_for(&self, spec: &InstanceSpec) -> Result<(&Path, Api), String> {
        let key = spec.key();
        let mark = self.marks.read(&key)?.unwrap_or_default();
        if let Some(socket) = mark.may_run_at(&procs::boot_id()).filter(|socket| !socket.exists()) {
            return Err(away(socket, &key));
        }
        let before = match mark.socket {
            None => self.marks.read(&spec.app)?.and_then(|mark| mark.socket),
            before => before,
        };
        self.engine.get(before.as_deref()).await
    }

    pub(super) async fn note(
        &self,
        app: &Name,
        change: impl FnOnce(Option<Mark>) -> Option<Mark> + Send + 'static,
    ) -> Result<(), MarkError> {
        let (marks, app) = (self.marks.clone(), app.clone());
        self.env.blocking.run(move || marks.change(&app, change)).await
    }

    /// Notes that the app is or was a container here.
    pub(super) async fn mark(&self, app: &Name, socket: &Path) -> Result<(), String> {
        let socket = Some(socket.to_owned());
        let noted = self.note(app, |mark| mark.or(Some(Mark { socket, started: None }))).await;
        noted.map_err(|e| e.to_string())
    }

    pub(super) async fn found(&self, api: &Api, app: &Name) -> Result<Vec<Found>, String> {
        look::of(api, &self.agent, app, &procs::boot_id()).await.map_err(|e| e.to_string())
    }

    /// The app's containers, the newest first. What that tells of an end is noted.
    pub(super) async fn look(&self, app: &Name) -> Result<Option<(Api, Vec<Found>)>, String> {
        let Some((socket, api)) = self.engine_of(app).await? else { return Ok(None) };
        let found = self.found(&api, app).await?;
        let boot_id = procs::boot_id();
        if let Some(mark) = self.marks.read(app)?
            && mark != mark.clone().seen(&socket, &boot_id, &found)
        {
            let seen = found.clone();
            let noted = self.note(app, move |mark| Some(mark?.seen(&socket, &boot_id, &seen))).await;
            if let Err(error) = noted {
                tracing::debug!(%app, %error, "what its containers do is not noted");
            }
        }
        Ok(Some((api, found)))
    }

    pub(super) async fn newest(&self, app: &Name) -> Result<Option<(Api, Found)>, String> {
        let Some((api, found)) = self.look(app).await? else { return Ok(None) };
        Ok(found.into_iter().next().map(|newest| (api, newest)))
    }

    /// Notes that nothing of it runs.
    pub(super) async fn note_end(&self, app: &Name) {
        if let Err(error) = self.note(app, |mark| Some(mark?.ended())).await {
            tracing::warn!(%app, %error, "that its container ended is not noted");
        }
    }
}

/// Nobody can tell whether a container runs.
fn away(socket: &Path, app: &Name) -> String {
    let socket = socket.display();
    format!("the engine at {socket} is away and a container of {app} may run; start the engine, or reboot the box")
}
