//! The hub's REST as the benches read it: mostly nodes, listed once and then watched, so that asking costs the
//! hub next to nothing while it is measured.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context as _, bail};
use proto::object::Node;
use serde::Deserialize;
use tokio::time::{Instant, timeout};

/// Longest line of a watch, in bytes.
const MAX_LINE_BYTES: usize = 4 << 20;

/// The hub's API.
#[derive(Debug)]
pub struct Api {
    client: reqwest::Client,
    url: String,
    token: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Nodes {
    items: Vec<Node>,
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    metadata: Option<ListMetadata>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    #[serde(default)]
    resource_version: String,
}

#[derive(Deserialize)]
struct WatchLine {
    r#type: String,
    object: Node,
}

impl Api {
    /// The API of the hub whose data folder this is.
    ///
    /// # Errors
    /// When a file of it is missing.
    pub fn of(data: &Path, address: &str) -> anyhow::Result<Api> {
        let read = |name: &str| fs::read_to_string(data.join(name)).with_context(|| format!("read {name} of the hub"));
        let certificates = reqwest::Certificate::from_pem_bundle(read("ca.pem")?.as_bytes())?;
        let client = reqwest::Client::builder().tls_certs_only(certificates).build()?;
        Ok(Api { client, url: format!("https://{address}/api/v1"), token: read("admin.token")?.trim().to_owned() })
    }

    /// Asks for a path below `/api/v1`.
    ///
    /// # Errors
    /// When the hub does not answer, or refuses.
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<reqwest::Response> {
        let response = self.client.get(format!("{}{path}", self.url)).bearer_auth(&self.token).send().await?;
        if !response.status().is_success() {
            bail!("GET {path}: {} {}", response.status(), response.text().await.unwrap_or_default());
        }
        Ok(response)
    }

    /// All nodes and the resource version of the list.
    ///
    /// # Errors
    /// When the hub does not answer.
    pub async fn nodes(&self) -> anyhow::Result<(BTreeMap<String, Node>, String)> {
        let list: Nodes =
            serde_json::from_slice(&self.get("/nodes").await?.bytes().await?).context("read the nodes")?;
        let version = list.metadata.map(|m| m.resource_version).filter(|v| !v.is_empty());
        let nodes = list.items.into_iter().map(|node| (node.name().to_owned(), node)).collect();
        Ok((nodes, version.unwrap_or(list.resource_version)))
    }

    /// Follows the nodes until `done` says so; it sees all of them after each change.
    ///
    /// # Errors
    /// When that takes longer than `patience`, with what `done` last found.
    pub async fn follow(
        &self,
        patience: Duration,
        mut done: impl FnMut(&BTreeMap<String, Node>) -> Result<(), String>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let (mut nodes, version) = self.nodes().await?;
            let Err(mut lacks) = done(&nodes) else { return Ok(()) };
            let mut stream = self.get(&format!("/nodes?watch=true&resourceVersion={version}")).await?;
            let mut buffer = Vec::new();
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let Ok(chunk) = timeout(left, stream.chunk()).await else {
                    bail!("waited {patience:?}: {lacks}");
                };
                let Some(chunk) = chunk? else { break }; // the hub ended the watch: list again
                buffer.extend_from_slice(&chunk);
                if !apply(&mut buffer, &mut nodes)? {
                    continue;
                }
                match done(&nodes) {
                    Ok(()) => return Ok(()),
                    Err(still) => lacks = still,
                }
            }
        }
    }
}

/// Takes whole lines off `buffer` into `nodes`, and says whether there was one.
fn apply(buffer: &mut Vec<u8>, nodes: &mut BTreeMap<String, Node>) -> anyhow::Result<bool> {
    let mut any = false;
    while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
        let line: Vec<u8> = buffer.drain(..=end).collect();
        let Ok(change) = serde_json::from_slice::<WatchLine>(&line) else { continue }; // a bookmark or a blank line
        any = true;
        if change.r#type.eq_ignore_ascii_case("deleted") {
            nodes.remove(change.object.name());
        } else {
            nodes.insert(change.object.name().to_owned(), change.object);
        }
    }
    if buffer.len() > MAX_LINE_BYTES {
        bail!("a line of the watch is longer than {MAX_LINE_BYTES} bytes");
    }
    Ok(any)
}
