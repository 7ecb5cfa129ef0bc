//! The rim of the API: what every request and every answer gets, whatever it is about. An id, headers that keep
//! browsers from doing harm with an answer, and a pace that a body must keep.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody as _},
    extract::{ConnectInfo, Request, State},
    http::{HeaderName, HeaderValue, header},
    middleware::Next,
    response::Response,
};
use data_encoding::HEXLOWER;
use futures_util::{StreamExt as _, stream};
use proto::env::Env;
use tokio::time::Instant;

use super::Api;

/// How long a body may be waited for in all, besides what it earns by coming.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that earn a second more.
const BYTES_PER_S: f64 = 1024.0;

/// What nothing here needs is forbidden: there are no pages that load anything.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::STRICT_TRANSPORT_SECURITY, "max-age=31536000"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CACHE_CONTROL, "no-store"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
];
/// Header of an answer: what to ask the hub's log and its audit log for.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Numbers requests. The first part differs from start to start.
#[derive(Debug)]
pub(crate) struct Ids {
    start: String,
    next: AtomicU64,
}

impl Ids {
    pub(crate) fn new(env: &Env) -> Ids {
        let start = HEXLOWER.encode(&env.seed.bytes::<5>(&format!("request ids since {}", env.wall.now())));
        Ids { start, next: AtomicU64::new(1) }
    }

    fn next(&self) -> RequestId {
        RequestId(format!("{}-{}", self.start, self.next.fetch_add(1, Ordering::Relaxed)))
    }
}

/// The id of a request. Ours alone: what a client sends as such is not looked at.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) String);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a request comes from: the other end of its connection. Headers of proxies are not believed.
pub(crate) fn remote(request: &Request) -> Option<SocketAddr> {
    request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| *address)
}

/// Stands before everything.
pub(crate) async fn around(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let id = api.ids.next();
    let named = HeaderValue::try_from(&id.0);
    request.extensions_mut().insert(id);
    let request = request.map(|body| if body.is_end_stream() { body } else { paced(body) });
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if let Ok(id) = named {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// A body that ends with an error when it is waited for too long. What its reader takes to work does not count.
fn paced(body: Body) -> Body {
    let state = (body.into_data_stream(), PATIENCE);
    Body::from_stream(stream::unfold(Some(state), |state| async move {
        let (mut pieces, left) = state?;
        let began = Instant::now();
        match tokio::time::timeout(left, pieces.next()).await {
            Err(_) => {
                let text = "the body came slower than 1 KiB a second; send it faster";
                Some((Err(io::Error::new(io::ErrorKind::TimedOut, text)), None))
            }
            Ok(None) => None,
            Ok(Some(Err(error))) => Some((Err(io::Error::other(error)), None)),
            Ok(Some(Ok(piece))) => {
                let left = earned(left.saturating_sub(began.elapsed()), &piece);
                Some((Ok(piece), Some((pieces, left))))
            }
        }
    }))
}

fn earned(left: Duration, piece: &Bytes) -> Duration {
    #[allow(clippy::cast_precision_loss)] // a piece is no larger than a buffer
    let more = Duration::from_secs_f64(piece.len() as f64 / BYTES_PER_S);
    left.saturating_add(more).min(PATIENCE)
}

#[cfg(test)]
mod tests {
    use axum::body;
    use futures_util::StreamExt as _;

    use super::*;

    fn dripping(pieces: usize, bytes: usize, every: Duration) -> Body {
        let stream = stream::iter(0..pieces).then(move |_| async move {
            tokio::time::sleep(every).await;
            Ok::<_, io::Error>(Bytes::from(vec![0; bytes]))
        });
        paced(Body::from_stream(stream))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_has_to_come_and_may_take_its_time_if_it_does() {
        let took = async |body: Body| {
            let began = Instant::now();
            let read = body::to_bytes(body, 1 << 30).await;
            (read.is_ok(), began.elapsed().as_secs())
        };
        assert_eq!(took(dripping(1000, 2 << 10, Duration::from_secs(1))).await, (true, 1000));
        assert_eq!(took(dripping(1000, 1, Duration::from_secs(1))).await, (false, 30));
        assert_eq!(took(dripping(1, 1, Duration::from_secs(3600))).await, (false, 30));
        // A flood at first is no credit for an hour of silence.
        let body = stream::iter([Ok::<_, io::Error>(Bytes::from(vec![0; 1 << 20]))]).chain(stream::pending());
        assert_eq!(took(paced(Body::from_stream(body))).await, (false, 30));
    }
}
