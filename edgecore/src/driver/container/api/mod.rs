//! The calls of Docker's API that we make, which Podman answers, too; `http` carries them, `model` is what is said.
//!
//! A library for all of that API weighed more than the rest of the driver, and the agent's program is memory of every
//! box, whether it has containers or not.

mod http;
pub mod model;
mod output;

use std::{collections::BTreeMap, io, path::Path, time::Duration};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{Method, body::Incoming};
use serde::Serialize;
use tokio::{sync::mpsc, time::timeout};

pub use self::{
    http::ApiError,
    output::{Attached, Channel, Output},
};
use self::{
    http::{Http, json, nothing, parse, target},
    model::{Create, Details, Ended, Exec, ExecDetails, ImageDetails, Info, Listed, ListedImage, Made, Stats, Version},
};

/// Newest version of the API that we know: of Docker 25.
const NEWEST: (u32, u32) = (1, 44);
/// Longest line of a progress that is looked at.
const MAX_LINE_BYTES: usize = 64 << 10;
/// An engine that says nothing of an image for so long is stuck: whoever waits for it, such as to stop the app, goes on.
const STUCK: Duration = Duration::from_secs(1800);
/// Header with credentials for a registry.
const REGISTRY_AUTH: &str = "x-registry-auth";

/// What was asked for, or why not.
type Answer<T> = Result<T, ApiError>;

/// An engine, to be asked. Clones ask the same. Each call is cancel safe, and may be made again.
#[derive(Debug, Clone)]
pub struct Api {
    http: Http,
    is_docker: bool,
}

impl Api {
    /// Finds out who listens at `socket`: each speaks the newest that the other knows.
    ///
    /// # Errors
    /// When nobody does, or they know no version in common.
    pub async fn at(socket: &Path) -> Answer<Api> {
        let mut http = Http { socket: socket.into(), version: String::new() };
        let version: Version = http.get("/version").await?;
        let spoken = spoken(&version).map_err(ApiError::Broken)?;
        http.version = format!("/v{}.{}", spoken.0, spoken.1);
        let components = version.components.unwrap_or_default();
        Ok(Api { http, is_docker: components.iter().any(|component| component.name == "Engine") })
    }

    /// Whether it is Docker's, and no other that speaks the same API.
    #[must_use]
    pub fn is_docker(&self) -> bool {
        self.is_docker
    }

    /// How it is set up.
    pub async fn info(&self) -> Answer<Info> {
        self.http.get("/info").await
    }

    /// All containers with these labels, `name=value`, whether they run or not.
    pub async fn containers(&self, labels: &[String]) -> Answer<Vec<Listed>> {
        let filters = filters("label", labels)?;
        self.http.get(&target("/containers/json", &[("all", "true"), ("filters", &filters)])).await
    }

    /// A container.
    pub async fn container(&self, id: &str) -> Answer<Details> {
        self.http.get(&format!("/containers/{id}/json")).await
    }

    /// Makes a container; its ID.
    pub async fn create(&self, name: &str, what: &Create) -> Answer<String> {
        let made: Made = self.post(&target("/containers/create", &[("name", name)]), what).await?;
        Ok(made.id)
    }

    /// Starts it.
    pub async fn start(&self, id: &str) -> Answer<()> {
        self.tell(Method::POST, &format!("/containers/{id}/start")).await
    }

    /// Gives it another name.
    pub async fn rename(&self, id: &str, name: &str) -> Answer<()> {
        self.tell(Method::POST, &target(&format!("/containers/{id}/rename"), &[("name", name)])).await
    }

    /// Sends it a signal.
    pub async fn kill(&self, id: &str, signal: &str) -> Answer<()> {
        self.tell(Method::POST, &target(&format!("/containers/{id}/kill"), &[("signal", signal)])).await
    }

    /// Returns when it runs no more, however long that takes.
    pub async fn wait(&self, id: &str) -> Answer<()> {
        let asked = target(&format!("/containers/{id}/wait"), &[("condition", "not-running")]);
        let answer = self.http.begin(Method::POST, &asked, nothing()).await?.into_body();
        let answer = answer.collect().await.map_err(|e| ApiError::Broken(e.to_string()))?.to_bytes();
        parse::<Ended>(&answer).map(drop)
    }

    /// Removes it, running or not, and what it wrote.
    pub async fn remove(&self, id: &str) -> Answer<()> {
        self.tell(Method::DELETE, &target(&format!("/containers/{id}"), &[("force", "true"), ("v", "true")])).await
    }

    /// What it uses now.
    pub async fn stats(&self, id: &str) -> Answer<Stats> {
        self.http.get(&target(&format!("/containers/{id}/stats"), &[("stream", "false"), ("one-shot", "true")])).await
    }

    /// What it wrote, the last `tail` lines or all, and when `follow` what it goes on to write.
    pub async fn logs(&self, id: &str, tail: Option<u32>, follow: bool) -> Answer<Output> {
        let tail = tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        let follow = if follow { "true" } else { "false" };
        let query = [("stdout", "true"), ("stderr", "true"), ("follow", follow), ("tail", &*tail)];
        let asked = target(&format!("/containers/{id}/logs"), &query);
        Ok(Output::new(self.http.begin(Method::GET, &asked, nothing()).await?.into_body()))
    }

    /// Prepares a command in a container; its ID.
    pub async fn exec(&self, id: &str, what: &Exec<'_>) -> Answer<String> {
        let made: Made = self.post(&format!("/containers/{id}/exec"), what).await?;
        Ok(made.id)
    }

    /// Runs a command that was prepared; its output ends with it.
    pub async fn start_exec(&self, id: &str) -> Answer<Output> {
        let attached = BTreeMap::from([("Detach", false), ("Tty", false)]);
        let answer = self.http.begin(Method::POST, &format!("/exec/{id}/start"), json(&attached)?).await?;
        Ok(Output::new(answer.into_body()))
    }

    /// Runs a command that was prepared, for somebody who listens and types.
    pub async fn attach_exec(&self, id: &str, tty: bool) -> Answer<Attached> {
        let attached = BTreeMap::from([("Detach", false), ("Tty", tty)]);
        Ok(Attached::new(self.http.upgrade(&format!("/exec/{id}/start"), json(&attached)?).await?, tty))
    }

    /// Gives a command's terminal another size.
    pub async fn resize_exec(&self, id: &str, rows: u16, columns: u16) -> Answer<()> {
        let query = [("h", &*rows.to_string()), ("w", &*columns.to_string())];
        self.tell(Method::POST, &target(&format!("/exec/{id}/resize"), &query)).await
    }

    /// How a command does.
    pub async fn exec_details(&self, id: &str) -> Answer<ExecDetails> {
        self.http.get(&format!("/exec/{id}/json")).await
    }

    /// Loads an archive of images, which may take [`STUCK`].
    pub async fn load(&self, archive: mpsc::Receiver<io::Result<Bytes>>) -> Answer<()> {
        let asked = target("/images/load", &[("quiet", "true")]);
        let loaded =
            async { progress(self.http.begin(Method::POST, &asked, http::chunks(archive)).await?.into_body()).await };
        timeout(STUCK, loaded).await.unwrap_or(Err(ApiError::Silent))
    }

    /// Fetches an image from its registry, however long that takes while there is news of it within [`STUCK`],
    /// with these credentials: an `AuthConfig` of the API as JSON in Base64 (RFC 4648, section 5).
    pub async fn pull(&self, image: &str, credentials: Option<&str>) -> Answer<()> {
        let asked = target("/images/create", &[("fromImage", image)]);
        let begun = async {
            match credentials {
                Some(secret) => self.http.begin_with_secret(&asked, (REGISTRY_AUTH, secret)).await,
                None => self.http.begin(Method::POST, &asked, nothing()).await,
            }
        };
        progress(timeout(STUCK, begun).await.unwrap_or(Err(ApiError::Silent))?.into_body()).await
    }

    /// An image, by a name or its ID.
    pub async fn image(&self, name: &str) -> Answer<ImageDetails> {
        self.http.get(&format!("/images/{name}/json")).await
    }

    /// Images that have a name like this.
    pub async fn images(&self, pattern: &str) -> Answer<Vec<ListedImage>> {
        let filters = filters("reference", &[pattern.to_owned()])?;
        self.http.get(&target("/images/json", &[("filters", &filters)])).await
    }

    /// Gives an image one more name.
    pub async fn tag(&self, image: &str, repository: &str, tag: &str) -> Answer<()> {
        let asked = target(&format!("/images/{image}/tag"), &[("repo", repository), ("tag", tag)]);
        self.tell(Method::POST, &asked).await
    }

    /// Removes an image, or one of its names.
    pub async fn remove_image(&self, name: &str, by_force: bool) -> Answer<()> {
        let force = if by_force { "true" } else { "false" };
        self.tell(Method::DELETE, &target(&format!("/images/{name}"), &[("force", force)])).await
    }

    async fn post<T: serde::de::DeserializeOwned>(&self, target: &str, document: &impl Serialize) -> Answer<T> {
        parse(&self.http.bytes(Method::POST, target, json(document)?).await?)
    }

    async fn tell(&self, method: Method, target: &str) -> Answer<()> {
        self.http.bytes(method, target, nothing()).await.map(drop)
    }
}

/// The newest version that both speak.
fn spoken(engine: &Version) -> Result<(u32, u32), String> {
    let version = |text: &str| {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let newest = version(&engine.api_version).ok_or_else(|| {
        format!("the engine says it speaks version {:?} of the API, which is none", engine.api_version)
    })?;
    match engine.min_api_version.as_deref().and_then(version) {
        Some(oldest) if oldest > NEWEST => Err(format!(
            "the engine speaks version {}.{} of the API and newer ones, this agent {}.{}: update the agent",
            oldest.0, oldest.1, NEWEST.0, NEWEST.1
        )),
        _ => Ok(newest.min(NEWEST)),
    }
}

fn filters(key: &str, values: &[String]) -> Answer<String> {
    serde_json::to_string(&BTreeMap::from([(key, values)])).map_err(|e| ApiError::Broken(e.to_string()))
}

/// Reads a progress, a document a line, to its end: the engine tells there, too, what went wrong.
async fn progress(mut body: Incoming) -> Answer<()> {
    let mut lines = Lines::default();
    loop {
        let frame = timeout(STUCK, body.frame()).await.map_err(|_| ApiError::Silent)?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|e| ApiError::Broken(format!("the engine broke off: {e}")))?;
        if let Ok(data) = frame.into_data() {
            lines.feed(&data)?;
        }
    }
    lines.feed(b"\n")
}

/// The line of a progress that is under way; of one that is too long, its beginning.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn feed(&mut self, bytes: &[u8]) -> Answer<()> {
        #[derive(serde::Deserialize)]
        struct Line {
            error: Option<String>,
        }
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = MAX_LINE_BYTES.saturating_sub(self.0.len());
            self.0.extend_from_slice(part.get(..room).unwrap_or(part));
            if !part.ends_with(b"\n") {
                continue;
            }
            let line = serde_json::from_slice(&std::mem::take(&mut self.0));
            // What is no document is none of the engine's errors; whether it did its work is looked at afterwards.
            if let Ok(Line { error: Some(message) }) = line {
                return Err(ApiError::Refused { status: 200, message });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;
