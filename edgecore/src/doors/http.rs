//! The HTTP door: HTTP/1.1 over TCP and over a Unix socket.
//!
//! ```text
//! POST /v1/streams/{stream}   takes records (see [`super::lines`]) -> {"stream","epoch","first","last","count"}
//! GET  /v1/streams            the streams and how far each is behind
//! PUT  /v1/metrics            what a workload tells of itself (see [`crate::metrics`]) -> 204
//! GET  /healthz               that the agent takes records, and what it took since it started
//! ```
//!
//! 200 means: all records of the request are on disk, with consecutive sequences `first` to `last`.
//! Any other answer means that none was taken, except where the connection ended before the answer:
//! then it is not known, and whoever sends again may be counted twice. Errors are
//! `{"error","message"}`; 429 and 507 say when to come again.
//!
//! Metrics are `{"app","digest","values":{"frames_per_second":24.9}}` and are in memory alone. 404 and 409 mean that the
//! agent does not run that release of that app, or not any more: there is nothing to repeat. With `"replica":2` they are
//! that replica's own, not the app's as a whole.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use proto::name::Name;
use serde_json::{Value, json};

use super::{
    Conn, Desk, Reason, Refusal,
    access::Access,
    body::{self, Broken, MAX_BODY_BYTES},
    lines::{self, ACCEPTED, Kind, Unfit},
};
use crate::metrics::{Refused, Told};

/// Connections of the door at once.
pub(super) const MAX_CONNECTIONS: usize = 64;
/// A request's head takes no longer than this, and no connection idles longer.
const HEAD: Duration = Duration::from_secs(30);
const MAX_HEAD_BYTES: usize = 16 << 10;
/// What a workload tells of itself takes no more.
const MAX_METRICS_BYTES: usize = 16 << 10;

/// An answer that is no 200.
#[derive(Debug)]
struct Problem {
    status: StatusCode,
    error: &'static str,
    message: String,
    /// Header that tells the client what to do.
    hint: Option<(header::HeaderName, HeaderValue)>,
}

impl Problem {
    fn new(status: StatusCode, error: &'static str, message: impl Into<String>) -> Problem {
        Problem { status, error, message: message.into(), hint: None }
    }

    fn with(self, name: header::HeaderName, value: &'static str) -> Problem {
        Problem { hint: Some((name, HeaderValue::from_static(value))), ..self }
    }
}

impl From<Broken> for Problem {
    fn from(broken: Broken) -> Problem {
        let nothing = "nothing of this request was taken";
        match broken {
            Broken::TooLarge => Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                format!("a request takes at most {MAX_BODY_BYTES} bytes: send fewer records at once; {nothing}"),
            ),
            Broken::Slow => Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "timeout",
                format!("the body did not arrive in time: send it without pauses; {nothing}"),
            )
            .with(header::CONNECTION, "close"),
            Broken::Crowded => Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                "busy",
                format!("too many bytes at once from all producers: send again in a moment; {nothing}"),
            )
            .with(header::RETRY_AFTER, "1"),
            Broken::Cut => {
                Problem::new(StatusCode::BAD_REQUEST, "cut-short", format!("the body ended too early; {nothing}"))
            }
        }
    }
}

impl From<Unfit> for Problem {
    fn from(unfit: Unfit) -> Problem {
        match unfit {
            Unfit::Malformed(message) => Problem::new(StatusCode::BAD_REQUEST, "malformed", message),
            Unfit::TooLarge(message) => Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        let (status, error, after) = match refusal.reason {
            Reason::UnknownStream => (StatusCode::NOT_FOUND, "unknown-stream", None),
            Reason::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", None),
            Reason::Full => (StatusCode::INSUFFICIENT_STORAGE, "full", Some("10")),
            Reason::Busy => (StatusCode::TOO_MANY_REQUESTS, "busy", Some("1")),
            Reason::Failed => (StatusCode::INTERNAL_SERVER_ERROR, "failed", None),
        };
        let problem = Problem::new(status, error, refusal.message);
        match after {
            Some(seconds) => problem.with(header::RETRY_AFTER, seconds),
            None => problem,
        }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Problem {
        let (status, error) = match refused {
            Refused::UnknownApp(_) => (StatusCode::NOT_FOUND, "unknown-app"),
            Refused::OtherRelease { .. } => (StatusCode::CONFLICT, "other-release"),
            Refused::NoReplica { .. } => (StatusCode::CONFLICT, "no-replica"),
            Refused::TooMany | Refused::NotFinite(_) => (StatusCode::BAD_REQUEST, "malformed"),
        };
        Problem::new(status, error, refused.to_string())
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(conn: Conn, desk: Arc<Desk>, access: Option<Arc<Access>>) {
    let service = service_fn(move |request| {
        let (desk, access) = (desk.clone(), access.clone());
        async move { Ok::<_, std::convert::Infallible>(answer(&desk, access.as_deref(), request).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD_BYTES);
    // A client that has said all it has to say still wants the answer.
    server.half_close(true);
    if let Err(error) = server.serve_connection(TokioIo::new(conn), service).await {
        tracing::debug!(%error, "a producer's connection ended");
    }
}

async fn answer(desk: &Desk, access: Option<&Access>, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    match route(desk, access, &mut request).await {
        Ok(Some(document)) => respond(StatusCode::OK, &document, None),
        Ok(None) => {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        Err(problem) => {
            // A body that was too slow is not waited for again, and a client that asked first
            // (`Expect: 100-continue`) has sent none and must not be told to.
            let unread = !request.body().is_end_stream() && !request.headers().contains_key(header::EXPECT);
            if unread && problem.status != StatusCode::REQUEST_TIMEOUT {
                tokio::spawn(body::drain(request.into_body()));
            }
            desk.counts.refused.fetch_add(1, Ordering::Relaxed);
            desk.complain(format_args!("a request was refused with {}: {}", problem.status, problem.message));
            respond(problem.status, &json!({ "error": problem.error, "message": problem.message }), problem.hint)
        }
    }
}

fn respond(
    status: StatusCode,
    document: &Value,
    hint: Option<(header::HeaderName, HeaderValue)>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{document}\n"))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.extend(hint.map(|(name, value)| (Some(name), value)));
    response
}

/// What is answered with 200; `None`: there is nothing to say.
async fn route(
    desk: &Desk,
    access: Option<&Access>,
    request: &mut Request<Incoming>,
) -> Result<Option<Value>, Problem> {
    let path = request.uri().path().to_owned();
    let path = path.strip_suffix('/').filter(|p| !p.is_empty()).unwrap_or(&path);
    let method = request.method().clone();
    let wrong_method = |allowed: &'static str| {
        let message = format!("{method} is not for {path}: use {allowed}");
        Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", message).with(header::ALLOW, allowed))
    };
    if path == "/healthz" {
        return if method == Method::GET { Ok(Some(health(desk))) } else { wrong_method("GET") };
    }
    let login = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    if access.is_some_and(|access| !access.admits_basic(login)) {
        let message = "user or password is missing or wrong: they are set in agent.toml of this box (streams.user)";
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
            .with(header::WWW_AUTHENTICATE, "Basic realm=\"crossdock\""));
    }
    if path == "/v1/metrics" {
        return if method == Method::PUT { measure(desk, request).await.map(|()| None) } else { wrong_method("PUT") };
    }
    match path.strip_prefix("/v1/streams") {
        Some("") if method == Method::GET => Ok(Some(list(desk))),
        Some("") => wrong_method("GET"),
        Some(rest) if rest.starts_with('/') => {
            let name = rest.trim_start_matches('/').to_owned();
            if method != Method::POST {
                return wrong_method("POST");
            }
            take(desk, &name, request).await.map(Some)
        }
        _ => {
            let message = format!(
                "there is nothing at {path}: POST /v1/streams/STREAM, GET /v1/streams, PUT /v1/metrics, GET /healthz"
            );
            Err(Problem::new(StatusCode::NOT_FOUND, "not-found", message))
        }
    }
}

fn unsupported(message: String) -> Problem {
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", message)
}

fn as_it_is(request: &Request<Incoming>) -> Result<(), Problem> {
    match request.headers().get(header::CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            Err(unsupported("compressed bodies are not taken: send it as it is".into()))
        }
        _ => Ok(()),
    }
}

/// Takes what a workload tells of itself.
async fn measure(desk: &Desk, request: &mut Request<Incoming>) -> Result<(), Problem> {
    as_it_is(request)?;
    let body = body::read(request.body_mut(), &desk.bodies).await?;
    if body.bytes.len() > MAX_METRICS_BYTES {
        let message = format!("metrics take at most {MAX_METRICS_BYTES} bytes, and these {}", body.bytes.len());
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message));
    }
    let told: Told = serde_json::from_slice(&body.bytes).map_err(|error| {
        let message = format!(
            "these are no metrics: {error}; send {{\"app\":APP,\"digest\":DIGEST,\"values\":{{NAME:NUMBER}}}}, the first \
             two as CROSSDOCK_APP and CROSSDOCK_DIGEST have them"
        );
        Problem::new(StatusCode::BAD_REQUEST, "malformed", message)
    })?;
    Ok(desk.metrics.take(told)?)
}

/// What is known of a request before its body is read.
fn expected(desk: &Desk, name: &str, request: &Request<Incoming>) -> Result<(Name, Kind), Problem> {
    let Some((stream, _)) = desk.intake.streams().iter().find(|(known, _)| known.as_str() == name) else {
        let known: Vec<_> = desk.intake.streams().iter().map(|(name, _)| name.as_str()).collect();
        let message = format!("there is no stream {name:?} on this box: use one of {}", known.join(", "));
        return Err(Problem::new(StatusCode::NOT_FOUND, "unknown-stream", message));
    };
    as_it_is(request)?;
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = Kind::of(content_type).ok_or_else(|| {
        unsupported(format!("content type {content_type:?} is not taken: use {ACCEPTED} (curl: -H 'Content-Type: …')"))
    })?;
    Ok((stream.clone(), kind))
}

async fn take(desk: &Desk, name: &str, request: &mut Request<Incoming>) -> Result<Value, Problem> {
    let (stream, kind) = expected(desk, name, request)?;
    let body = body::read(request.body_mut(), &desk.bodies).await?;
    let records = lines::split(kind, &body.bytes)?;
    let taken = desk.append(&stream, records).await?;
    Ok(json!({
        "stream": taken.key.stream,
        "epoch": taken.key.epoch,
        "first": taken.range.start,
        "last": taken.range.end.saturating_sub(1),
        "count": taken.range.end.saturating_sub(taken.range.start),
    }))
}

fn list(desk: &Desk) -> Value {
    let lag = desk.intake.lag();
    let stream = |(name, class): &(Name, proto::stream::Class)| {
        // Epochs before the current one drain too: what waits is the sum, the oldest the oldest of all.
        let of_it = || lag.iter().filter(|l| l.key.stream == *name);
        let newest = of_it().max_by_key(|l| l.key.epoch);
        json!({
            "stream": name,
            "class": class,
            "epoch": newest.map(|l| l.key.epoch),
            "next": newest.map(|l| l.next),
            "waiting": of_it().map(|l| l.records).sum::<u64>(),
            "oldest": of_it().filter_map(|l| l.oldest).min(),
        })
    };
    json!({ "streams": desk.intake.streams().iter().map(stream).collect::<Vec<_>>() })
}

fn health(desk: &Desk) -> Value {
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let counts = &desk.counts;
    json!({
        "status": "ok",
        "taken": count(&counts.taken),
        "refused": count(&counts.refused),
        "dropped": count(&counts.dropped),
    })
}
