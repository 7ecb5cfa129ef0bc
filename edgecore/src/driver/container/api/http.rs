//! HTTP/1.1 to the engine, over its Unix socket: a connection a request, answers bounded or read as they come.

use std::{io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream};
use http_body_util::{BodyExt as _, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response,
    body::{Body as _, Frame, Incoming},
    client::conn::http1,
    header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE},
    http::request::Builder,
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, sync::mpsc, time::timeout};

/// Until the engine must have answered what takes no time of its own.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest answer that is read whole.
const MAX_ANSWER_BYTES: usize = 32 << 20;

/// The engine did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It would not, and why.
    #[error("{message}")]
    Refused {
        /// Status of HTTP.
        status: u16,
        /// In its own words.
        message: String,
    },
    /// It says nothing.
    #[error("the engine does not answer; systemctl restart docker")]
    Silent,
    /// It is gone, or what it says is no answer.
    #[error("{0}")]
    Broken(String),
}

impl ApiError {
    /// Whether there is no such thing.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, ApiError::Refused { status: 404, .. })
    }

    /// Whether what is asked for does not go with how things are, such as ending what has ended.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, ApiError::Refused { status: 409, .. })
    }
}

/// What is sent along.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Nothing.
pub fn nothing() -> Body {
    whole(Bytes::new())
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// A document.
///
/// # Errors
/// When it cannot be written, which none of ours does.
pub fn json(document: &impl Serialize) -> Result<Body, ApiError> {
    Ok(whole(serde_json::to_vec(document).map_err(|e| ApiError::Broken(e.to_string()))?.into()))
}

/// Chunks as they come; an error among them breaks the request off.
pub fn chunks(mut from: mpsc::Receiver<io::Result<Bytes>>) -> Body {
    StreamBody::new(stream::poll_fn(move |context| from.poll_recv(context)).map_ok(Frame::data)).boxed_unsync()
}

/// A path below the API's with a query.
pub fn target(path: &str, query: &[(&str, &str)]) -> String {
    let mut target = path.to_owned();
    for (at, (key, value)) in query.iter().enumerate() {
        target.push(if at == 0 { '?' } else { '&' });
        target.push_str(key);
        target.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => target.push(char::from(byte)),
                _ => target.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    target
}

/// Where an engine listens, and the version of the API to be spoken, as a path: `/v1.44`.
#[derive(Debug, Clone)]
pub struct Http {
    pub(super) socket: Arc<Path>,
    pub(super) version: String,
}

impl Http {
    /// Asks, and returns when the answer begins, however long that takes.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn begin(&self, method: Method, target: &str, body: Body) -> Result<Response<Incoming>, ApiError> {
        self.ask(Request::builder().method(method), target, body).await
    }

    /// The same with a header whose content nobody shows.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn begin_with_secret(
        &self,
        target: &str,
        (name, secret): (&'static str, &str),
    ) -> Result<Response<Incoming>, ApiError> {
        let unusable = |_| ApiError::Broken(format!("{name} cannot be a header: it is too long, or no text"));
        let mut value = HeaderValue::from_str(secret).map_err(unusable)?;
        value.set_sensitive(true);
        self.ask(Request::builder().method(Method::POST).header(name, value), target, nothing()).await
    }

    /// Asks for the connection itself: what comes after the answer goes both ways as it is.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn upgrade(&self, target: &str, body: Body) -> Result<Upgraded, ApiError> {
        let request = Request::builder().method(Method::POST).header(CONNECTION, "Upgrade").header(UPGRADE, "tcp");
        let response = self.ask(request, target, body).await?;
        hyper::upgrade::on(response).await.map_err(|e| self.broken(&e))
    }

    async fn ask(&self, request: Builder, target: &str, body: Body) -> Result<Response<Incoming>, ApiError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.broken(&e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.broken(&e))?;
        // It ends with the answer, or when nobody waits for that any more; its errors are the answer's, too.
        tokio::spawn(connection.with_upgrades());
        let request = request.uri(format!("{}{target}", self.version)).header(HOST, "engine");
        let is_document = body.size_hint().exact().is_some_and(|bytes| bytes > 0);
        let kind = if is_document { "application/json" } else { "application/x-tar" };
        let request = match body.is_end_stream() {
            true => request,
            false => request.header(CONTENT_TYPE, kind),
        };
        let request = request.body(body).map_err(|e| ApiError::Broken(e.to_string()))?;
        let response = sender.send_request(request).await.map_err(|e| self.broken(&e))?;
        let status = response.status();
        if !status.is_client_error() && !status.is_server_error() {
            return Ok(response);
        }
        let text = read(response.into_body()).await.map_err(|e| self.broken(&*e))?;
        Err(ApiError::Refused {
            status: status.as_u16(),
            message: message(&text).unwrap_or_else(|| status.to_string()),
        })
    }

    /// Asks, and reads the whole answer, with patience.
    ///
    /// # Errors
    /// What the engine says, or that it says nothing.
    pub async fn bytes(&self, method: Method, target: &str, body: Body) -> Result<Bytes, ApiError> {
        let answer = async {
            let response = self.begin(method, target, body).await?;
            read(response.into_body()).await.map_err(|e| self.broken(&*e))
        };
        timeout(PATIENCE, answer).await.unwrap_or(Err(ApiError::Silent))
    }

    /// Asks for a document.
    ///
    /// # Errors
    /// What the engine says, or that it is no such document.
    pub async fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T, ApiError> {
        parse(&self.bytes(Method::GET, target, nothing()).await?)
    }

    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> ApiError {
        ApiError::Broken(format!("the engine at {}: {}", self.socket.display(), crate::driver::process::chain(error)))
    }
}

/// Reads a document.
///
/// # Errors
/// When it is none of that kind.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|e| ApiError::Broken(format!("the engine's answer is not understood: {e}")))
}

async fn read(body: Incoming) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    Ok(Limited::new(body, MAX_ANSWER_BYTES).collect().await?.to_bytes())
}

/// What an answer says of an error: a document, or mere text.
fn message(answer: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Refusal {
        message: String,
    }
    let text = match serde_json::from_slice::<Refusal>(answer) {
        Ok(refusal) => refusal.message,
        Err(_) => String::from_utf8_lossy(answer).into_owned(),
    };
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}
