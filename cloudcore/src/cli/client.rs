//! The REST API seen from outside: TLS to the one trusted authority, bearer token, errors with exit codes.
//!
//! Used by every command that talks to a hub, and by tests of the API.

use std::{error::Error as _, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use proto::{
    digest::Digest,
    identity,
    link::message::{MetadataReply, MetadataRequest},
    object::{Kind, Object},
};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::exit::Exit;
use crate::release::publish::Destination;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an ordinary answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// A watch carries an empty line at least every 15 s; silent for longer, the line is dead.
const WATCH_SILENCE: Duration = Duration::from_secs(45);
/// Longest answer and longest line of a watch, in bytes.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// A hub's API.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    server: String,
    token: String,
}

/// What the hub says when it refuses.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Status {
    reason: String,
    message: String,
}

impl Default for Status {
    fn default() -> Status {
        Status { reason: "Unknown".into(), message: "it did not say why".into() }
    }
}

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The context is unusable.
    #[error("{0}")]
    Setup(String),
    /// No answer.
    #[error("{server} could not be reached: {problem}")]
    Unreachable {
        /// URL.
        server: String,
        /// What happened, down to its cause.
        problem: String,
    },
    /// The other side is not the hub that is trusted.
    #[error(
        "{server} is not the hub that this context trusts: {problem}; if it was set up anew, log in again with its new ca.pem"
    )]
    NotTrusted {
        /// URL.
        server: String,
        /// What TLS says.
        problem: String,
    },
    /// The hub says no.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        code: u16,
        /// One word for programs.
        reason: String,
        /// For people.
        message: String,
    },
    /// The answer is not what it should be.
    #[error("{server} answered something unexpected ({problem}); is it a Crossdock hub, of a fitting version?")]
    Malformed {
        /// URL.
        server: String,
        /// What is wrong.
        problem: String,
    },
    /// A local file.
    #[error("could not read {path}: {problem}")]
    File {
        /// Which.
        path: String,
        /// Why not.
        problem: String,
    },
}

impl ClientError {
    /// How the program ends with this.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            ClientError::Setup(_) => Exit::Usage,
            ClientError::Unreachable { .. } | ClientError::NotTrusted { .. } => Exit::Unreachable,
            ClientError::Refused { code: 401 | 403, .. } => Exit::Unauthorized,
            ClientError::Refused { code: 404, .. } => Exit::NotFound,
            ClientError::Refused { code: 400..=499, .. } => Exit::Refused,
            _ => Exit::Error,
        }
    }

    /// Whether the hub says that there is no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, ClientError::Refused { code: 404, .. })
    }
}

impl Client {
    /// A client of the hub at `server` that believes no authority but the one in `ca_pem`.
    ///
    /// # Errors
    /// When URL or certificate are unusable.
    pub fn new(server: &str, token: &str, ca_pem: &str) -> Result<Client, ClientError> {
        let setup = |problem: String| ClientError::Setup(problem);
        if !server.starts_with("https://") {
            return Err(setup(format!("{server:?} is no URL of a hub; write https://HOST:PORT")));
        }
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            let added = certificate.map_err(|e| e.to_string()).and_then(|c| roots.add(c).map_err(|e| e.to_string()));
            added.map_err(|e| setup(format!("the CA certificate is unusable: {e}")))?;
        }
        if roots.is_empty() {
            return Err(setup("the CA file holds no certificate; it is ca.pem in the hub's data folder".into()));
        }
        let tls = rustls::ClientConfig::builder_with_provider(identity::crypto_provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| setup(e.to_string()))?
            .with_root_certificates(Arc::new(roots))
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("crossdock/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| setup(chain(&e)))?;
        Ok(Client { http, server: server.trim_end_matches('/').into(), token: token.trim().into() })
    }

    /// URL of the hub.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.server)).bearer_auth(&self.token)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|e| self.failed(&e))?;
        let code = response.status();
        if code.is_success() {
            return Ok(response);
        }
        let body = self.body(response).await.unwrap_or_default();
        let status: Status = serde_json::from_slice(&body).unwrap_or_default();
        Err(ClientError::Refused { code: code.as_u16(), reason: status.reason, message: status.message })
    }

    fn failed(&self, error: &reqwest::Error) -> ClientError {
        let (server, problem) = (self.server.clone(), chain(error));
        let tls = std::iter::successors(error.source(), |&e| e.source()).any(|e| {
            let io = e.downcast_ref::<std::io::Error>().and_then(|e| e.get_ref());
            let inner = io.and_then(|e| e.downcast_ref::<rustls::Error>());
            matches!(inner.or(e.downcast_ref()), Some(rustls::Error::InvalidCertificate(_)))
        });
        if tls { ClientError::NotTrusted { server, problem } } else { ClientError::Unreachable { server, problem } }
    }

    fn malformed(&self, problem: impl ToString) -> ClientError {
        ClientError::Malformed { server: self.server.clone(), problem: problem.to_string() }
    }

    async fn body(&self, response: Response) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            body.extend_from_slice(&chunk.map_err(|e| self.failed(&e))?);
            if body.len() > MAX_ANSWER_BYTES {
                return Err(self.malformed(format!("an answer of more than {MAX_ANSWER_BYTES} bytes")));
            }
        }
        Ok(body)
    }

    /// Sends a request with an optional JSON body and reads a JSON answer.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> Result<T, ClientError> {
        let mut request = self.request(method, path).query(query).timeout(ANSWER_TIMEOUT);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = self.send(request).await?;
        let body = self.body(response).await?;
        serde_json::from_slice(&body).map_err(|e| self.malformed(e))
    }

    /// Reads an object.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn get<S: Kind + PartialEq>(&self, name: &str) -> Result<Object<S>, ClientError> {
        self.call(Method::GET, &object_path(S::PLURAL, name), &[], None).await
    }

    /// Creates an object.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn create<S: Kind + PartialEq>(&self, object: &Object<S>) -> Result<Object<S>, ClientError> {
        let body = serde_json::to_value(object).map_err(|e| self.malformed(e))?;
        self.call(Method::POST, &collection_path(S::PLURAL), &[], Some(&body)).await
    }

    /// Follows changes of a kind after a resource version: objects `{type, object}`.
    ///
    /// # Errors
    /// As [`ClientError`] has them; 410 means that the version is too old.
    pub async fn watch(
        &self,
        plural: &str,
        selector: Option<&str>,
        since: &str,
    ) -> Result<impl Stream<Item = Result<Value, ClientError>> + Unpin + use<>, ClientError> {
        let mut query = vec![("watch", "true".to_owned()), ("resourceVersion", since.to_owned())];
        query.extend(selector.map(|s| ("labelSelector", s.to_owned())));
        let response = self.send(self.request(Method::GET, &collection_path(plural)).query(&query)).await?;
        Ok(Box::pin(lines(self.clone(), response)))
    }

    /// Whether the hub holds content.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn has_blob(&self, digest: Digest) -> Result<bool, ClientError> {
        let request = self.request(Method::HEAD, &blob_path(digest)).timeout(ANSWER_TIMEOUT);
        let response = request.send().await.map_err(|e| self.failed(&e))?;
        match response.status() {
            code if code.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            code => Err(ClientError::Refused {
                code: code.as_u16(),
                reason: "Refused".into(),
                message: format!("{} refused to say whether it holds {digest}: {code}", self.server),
            }),
        }
    }

    /// Gives the hub the content of a file.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn put_blob(&self, digest: Digest, path: &Path) -> Result<(), ClientError> {
        let unreadable =
            |e: std::io::Error| ClientError::File { path: path.display().to_string(), problem: e.to_string() };
        let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
        let length = file.metadata().await.map_err(unreadable)?.len();
        let body = reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::with_capacity(file, 256 << 10));
        let request = self.request(Method::PUT, &blob_path(digest)).header("content-length", length).body(body);
        self.send(request).await.map(drop)
    }

    /// Gives the hub signed metadata.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn publish(&self, reply: &MetadataReply) -> Result<(), ClientError> {
        let body = serde_json::to_value(reply).map_err(|e| self.malformed(e))?;
        self.call::<Value>(Method::POST, "/api/v1/metadata", &[], Some(&body)).await.map(drop)
    }

    /// Signed metadata newer than what the caller has.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn metadata(&self, have: &MetadataRequest) -> Result<MetadataReply, ClientError> {
        let versions = [
            ("root", have.root),
            ("timestamp", have.timestamp),
            ("snapshot", have.snapshot),
            ("targets", have.targets),
        ];
        let query = versions.map(|(role, version)| (role, version.to_string()));
        self.call(Method::GET, "/api/v1/metadata", &query, None).await
    }

    /// Output of an app on a node, as it comes.
    ///
    /// # Errors
    /// As [`ClientError`] has them.
    pub async fn logs(
        &self,
        node: &str,
        app: &str,
        tail: Option<u32>,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Unpin + use<>, ClientError> {
        let mut query = vec![("follow", follow.to_string())];
        query.extend(tail.map(|tail| ("tail", tail.to_string())));
        let path = format!("{}/apps/{}/logs", object_path("nodes", node), segment(app));
        let response = self.send(self.request(Method::GET, &path).query(&query)).await?;
        let client = self.clone();
        Ok(Box::pin(response.bytes_stream().map_err(move |e| client.failed(&e))))
    }
}

impl Destination for Client {
    async fn has_blob(&self, digest: &Digest) -> anyhow::Result<bool> {
        Ok(Client::has_blob(self, *digest).await?)
    }
    async fn put_blob(&self, digest: &Digest, path: &Path) -> anyhow::Result<()> {
        Ok(Client::put_blob(self, *digest, path).await?)
    }
    async fn publish(&self, reply: &MetadataReply) -> anyhow::Result<()> {
        Ok(Client::publish(self, reply).await?)
    }
}

/// Path of a kind.
#[must_use]
pub fn collection_path(plural: &str) -> String {
    format!("/api/v1/{plural}")
}

/// Path of an object.
#[must_use]
pub fn object_path(plural: &str, name: &str) -> String {
    format!("/api/v1/{plural}/{}", segment(name))
}

fn blob_path(digest: Digest) -> String {
    format!("/api/v1/blobs/{digest}")
}

/// One part of a path, whatever a user typed.
fn segment(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_~".contains(&b) || (b == b'.' && text != "." && text != "..");
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// An error with its causes, each once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut parts: Vec<String> = vec![];
    for cause in std::iter::successors(Some(error), |&e| e.source()) {
        let text = cause.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}

/// Splits a body into JSON lines; empty ones are signs of life.
fn lines(client: Client, response: Response) -> impl Stream<Item = Result<Value, ClientError>> {
    let state = (client, response.bytes_stream().boxed(), Vec::<u8>::new());
    stream::try_unfold(state, |(client, mut chunks, mut buffer)| async move {
        loop {
            if let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                let rest = buffer.split_off(end + 1);
                let line = std::mem::replace(&mut buffer, rest);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let value = serde_json::from_slice(&line).map_err(|e| client.malformed(e))?;
                return Ok(Some((value, (client, chunks, buffer))));
            }
            if buffer.len() > MAX_ANSWER_BYTES {
                return Err(client.malformed("a line without end"));
            }
            let silent = |_| ClientError::Unreachable {
                server: client.server.clone(),
                problem: format!("nothing came for {} s", WATCH_SILENCE.as_secs()),
            };
            match tokio::time::timeout(WATCH_SILENCE, chunks.next()).await.map_err(silent)? {
                Some(chunk) => buffer.extend_from_slice(&chunk.map_err(|e| client.failed(&e))?),
                None => return Ok(None),
            }
        }
    })
}
