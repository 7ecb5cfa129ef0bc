//! The hub's REST API, as the command line uses it.
//!
//! TLS trusts exactly the CA that the context names: a hub is recognised by its own CA, not by the
//! public ones.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use proto::{
    digest::Digest,
    identity,
    link::message::{MetadataReply, MetadataRequest},
    object::{Kind, Object},
    selector::Selector,
};
use reqwest::{Method, Response, StatusCode, header};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::exit::{CliError, Exit};

/// Objects of one kind, as listed.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The objects.
    pub items: Vec<Value>,
    /// Where a watch goes on without a gap.
    pub resource_version: String,
}

/// Talks to one hub.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    roots: Arc<rustls::RootCertStore>,
    server: String,
    token: String,
}

impl Client {
    /// A client of the hub at `server` (`https://host:port`) that trusts the CA in `ca_pem`.
    ///
    /// # Errors
    /// When the URL is not https or the CA is not readable.
    pub fn new(server: &str, token: &str, ca_pem: &[u8]) -> anyhow::Result<Client> {
        let server = server.trim_end_matches('/').to_owned();
        if !server.starts_with("https://") {
            return Err(CliError::new(Exit::Usage, format!("{server}: the hub's URL must start with https://")).into());
        }
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem) {
            roots.add(certificate.context("read the CA certificate")?)?;
        }
        if roots.is_empty() {
            return Err(CliError::new(
                Exit::Usage,
                "the CA file holds no certificate; it is ca.pem of the hub's data folder",
            )
            .into());
        }
        let roots = Arc::new(roots);
        let tls = rustls::ClientConfig::builder_with_provider(identity::crypto_provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(Duration::from_secs(10))
            .user_agent(concat!("crossdock/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Client { http, roots, server, token: token.trim().to_owned() })
    }

    /// The hub's URL.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The CA of the context, which signs nodes' certificates too.
    #[must_use]
    pub fn roots(&self) -> rustls::RootCertStore {
        (*self.roots).clone()
    }

    pub(super) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}/api/v1/{path}", self.server)).bearer_auth(&self.token)
    }

    pub(super) async fn send(&self, attempt: &str, request: reqwest::RequestBuilder) -> anyhow::Result<Response> {
        let response = request.send().await.map_err(|e| self.unreachable(attempt, &e))?;
        if response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let status = response.status();
        let body: Value = response.json().await.unwrap_or_default();
        let text = |key: &str| body.get(key).and_then(Value::as_str);
        let message = text("message").unwrap_or("the hub gave no reason");
        let is_stale = status == StatusCode::CONFLICT && text("reason") == Some("Conflict");
        Err(CliError { is_stale, ..refusal(attempt, status, message) }.into())
    }

    fn unreachable(&self, attempt: &str, error: &reqwest::Error) -> CliError {
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let hint = if cause.to_string().contains("certificate") {
            "its certificate is not of the CA in this context; log in again with the hub's current ca.pem"
        } else {
            "check that cloudcore serves there and that the address is right (crossdock context list)"
        };
        CliError::new(
            Exit::Unreachable,
            format!("could not {attempt}: {} does not answer ({cause}); {hint}", self.server),
        )
    }

    /// Who this client is at the hub.
    ///
    /// # Errors
    /// When the hub cannot be reached, or lets nobody in with this token.
    pub async fn whoami(&self) -> anyhow::Result<Value> {
        Ok(self.send("log in", self.request(Method::GET, "self")).await?.json().await?)
    }

    /// Whether the hub can do its work; needs no token.
    ///
    /// # Errors
    /// When the hub cannot be reached, or says that it cannot.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let request = self.http.get(format!("{}/readyz", self.server));
        self.send("ask whether the hub is ready", request).await.map(drop)
    }

    /// Where people log in at this hub; needs no token.
    ///
    /// # Errors
    /// When the hub cannot be reached.
    pub async fn how_to_log_in(&self) -> anyhow::Result<Value> {
        let request = self.http.get(format!("{}/api/v1/login", self.server));
        Ok(self.send("ask how to log in", request).await?.json().await?)
    }

    /// Lists objects of a kind by its plural.
    ///
    /// # Errors
    /// When the hub cannot be reached or refuses.
    pub async fn list(&self, plural: &str, selector: Option<&Selector>) -> anyhow::Result<Listed> {
        let mut request = self.request(Method::GET, plural);
        if let Some(selector) = selector {
            request = request.query(&[("labelSelector", selector.to_string())]);
        }
        let mut list: Value = self.send(&format!("list {plural}"), request).await?.json().await?;
        let items = match list.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => items,
            _ => vec![],
        };
        let version = list.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default();
        Ok(Listed { items, resource_version: version.to_owned() })
    }

    /// One object of a kind by its plural.
    ///
    /// # Errors
    /// When it does not exist, or the hub cannot be reached or refuses.
    pub async fn get_value(&self, plural: &str, name: &str) -> anyhow::Result<Value> {
        let request = self.request(Method::GET, &format!("{plural}/{name}"));
        Ok(self.send(&format!("get {plural}/{name}"), request).await?.json().await?)
    }

    /// As [`Client::get_value`], typed.
    ///
    /// # Errors
    /// As there.
    pub async fn get<S: Kind + PartialEq>(&self, name: &str) -> anyhow::Result<Object<S>> {
        Ok(serde_json::from_value(self.get_value(S::PLURAL, name).await?)?)
    }

    /// All objects of a kind, typed.
    ///
    /// # Errors
    /// As [`Client::list`].
    pub async fn list_of<S: Kind + PartialEq>(&self, selector: Option<&Selector>) -> anyhow::Result<Vec<Object<S>>> {
        let listed = self.list(S::PLURAL, selector).await?;
        listed.items.into_iter().map(|v| serde_json::from_value(v).context("read the hub's answer")).collect()
    }

    /// Sends a body and reads the answer.
    ///
    /// # Errors
    /// When the hub cannot be reached or refuses.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        let request = self.request(Method::POST, path).json(body);
        Ok(self.send(&format!("create {path}"), request).await?.json().await?)
    }

    /// Replaces an object.
    ///
    /// # Errors
    /// When the hub cannot be reached or refuses, such as for a stale resource version.
    pub async fn put(&self, plural: &str, name: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.request(Method::PUT, &format!("{plural}/{name}")).json(body);
        Ok(self.send(&format!("update {plural}/{name}"), request).await?.json().await?)
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// When it does not exist, or the hub cannot be reached or refuses.
    pub async fn delete(&self, plural: &str, name: &str) -> anyhow::Result<()> {
        let request = self.request(Method::DELETE, &format!("{plural}/{name}"));
        self.send(&format!("delete {plural}/{name}"), request).await?;
        Ok(())
    }

    /// Follows the changes of a kind: lines of `{"type", "object"}`.
    ///
    /// # Errors
    /// When the hub cannot be reached or refuses, or `since` is too old (410: list again).
    pub async fn watch(
        &self,
        plural: &str,
        since: &str,
        selector: Option<&Selector>,
    ) -> anyhow::Result<impl Stream<Item = anyhow::Result<Value>> + use<>> {
        let mut request = self.request(Method::GET, plural).query(&[("watch", "true"), ("resourceVersion", since)]);
        if let Some(selector) = selector {
            request = request.query(&[("labelSelector", selector.to_string())]);
        }
        let response = self.send(&format!("watch {plural}"), request).await?;
        Ok(lines(response).map(|line| Ok(serde_json::from_slice(&line?)?)))
    }

    /// Output of a workload, as it comes.
    ///
    /// # Errors
    /// When the node is not connected, has no such app, or the hub cannot be reached.
    pub async fn logs(
        &self,
        node: &str,
        app: &str,
        tail: Option<u32>,
        follow: bool,
    ) -> anyhow::Result<impl Stream<Item = reqwest::Result<bytes::Bytes>> + use<>> {
        let mut request =
            self.request(Method::GET, &format!("nodes/{node}/apps/{app}/logs")).query(&[("follow", follow)]);
        if let Some(tail) = tail {
            request = request.query(&[("tail", tail)]);
        }
        Ok(self.send(&format!("read logs of {node}/{app}"), request).await?.bytes_stream())
    }

    /// A way to an app on a node: bytes go through the hub as they are.
    ///
    /// # Errors
    /// When the node is not connected or lets nobody in, or the hub cannot be reached or refuses.
    pub async fn exec(&self, node: &str, app: &str) -> anyhow::Result<reqwest::Upgraded> {
        let request = self
            .request(Method::GET, &format!("nodes/{node}/apps/{app}/exec"))
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, proto::exec::UPGRADE);
        let attempt = format!("run a command in {node}/{app}");
        let response = self.send(&attempt, request).await?;
        response.upgrade().await.map_err(|e| self.unreachable(&attempt, &e).into())
    }

    /// Whether the hub holds a blob.
    ///
    /// # Errors
    /// When the hub cannot be reached or refuses.
    pub async fn has_blob(&self, digest: &Digest) -> anyhow::Result<bool> {
        let request = self.request(Method::HEAD, &format!("blobs/{digest}"));
        let response = request.send().await.map_err(|e| self.unreachable("ask for an artifact", &e))?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            status => Err(refusal("ask for an artifact", status, "the hub gave no reason").into()),
        }
    }

    /// Uploads a file under its digest; the hub verifies it.
    ///
    /// # Errors
    /// When the file cannot be read, or the hub cannot be reached or refuses.
    pub async fn put_blob(&self, digest: &Digest, path: &Path) -> anyhow::Result<()> {
        let file = tokio::fs::File::open(path).await.with_context(|| format!("open {}", path.display()))?;
        let length = file.metadata().await?.len();
        let body = reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::with_capacity(file, 128 << 10));
        self.put_content(&format!("upload {}", path.display()), digest, length, body).await
    }

    /// Uploads content of a known length under its digest; the hub verifies it.
    ///
    /// # Errors
    /// When the hub cannot be reached or refuses, or the body fails.
    pub async fn put_content(
        &self,
        attempt: &str,
        digest: &Digest,
        length: u64,
        body: reqwest::Body,
    ) -> anyhow::Result<()> {
        let request = self.request(Method::PUT, &format!("blobs/{digest}")).header("content-length", length).body(body);
        self.send(attempt, request).await?;
        Ok(())
    }

    /// Content of an artifact, as the hub sends it: the caller verifies it.
    ///
    /// # Errors
    /// When the hub does not hold it, cannot be reached or refuses.
    pub async fn blob(&self, digest: &Digest) -> anyhow::Result<Response> {
        self.send("download an artifact", self.request(Method::GET, &format!("blobs/{digest}"))).await
    }

    /// Hands signed metadata to the hub, which verifies it and serves it from then on.
    ///
    /// # Errors
    /// When the hub cannot be reached or refuses it, with the refusal.
    pub async fn publish(&self, documents: &MetadataReply) -> anyhow::Result<Value> {
        let request = self.request(Method::POST, "metadata").json(documents);
        Ok(self.send("publish the metadata", request).await?.json().await?)
    }

    /// The metadata that the hub serves and `have` lacks.
    ///
    /// # Errors
    /// When the hub cannot be reached or refuses.
    pub async fn metadata(&self, have: &MetadataRequest) -> anyhow::Result<MetadataReply> {
        let request = self.request(Method::GET, "metadata").query(have);
        Ok(self.send("read the hub's metadata", request).await?.json().await?)
    }
}

fn refusal(attempt: &str, status: StatusCode, message: &str) -> CliError {
    let (exit, hint) = match status {
        StatusCode::UNAUTHORIZED => (Exit::Unauthorized, "; log in again with crossdock login"),
        StatusCode::FORBIDDEN => (Exit::Unauthorized, ""),
        StatusCode::NOT_FOUND => (Exit::NotFound, ""),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => (Exit::Failed, ""), // worth another try
        s if s.is_client_error() => (Exit::Refused, ""),
        _ => (Exit::Failed, ""),
    };
    CliError::new(exit, format!("could not {attempt}: {message}{hint}"))
}

/// The lines of a body, without line ends; a line is bounded by what the hub may send.
pub(super) fn lines(response: Response) -> impl Stream<Item = std::io::Result<Vec<u8>>> {
    let stream = response.bytes_stream().map_err(std::io::Error::other);
    let reader = tokio::io::BufReader::new(tokio_util::io::StreamReader::new(stream));
    futures_util::stream::unfold(reader, |mut reader| async move {
        let mut line = vec![];
        match tokio::io::AsyncBufReadExt::read_until(&mut reader, b'\n', &mut line).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(line), reader)),
            Err(e) => Some((Err(e), reader)),
        }
    })
}
