//! HTTP/1.1 on TCP or on a Unix socket: one request an offer, all of it or nothing is taken.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use data_encoding::BASE64;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER},
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    task::JoinSet,
    time::timeout,
};

use super::{ANSWER_TIMEOUT, Address, Door, Failed};

/// Longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// One connection.
#[derive(Debug)]
pub struct Http {
    requests: SendRequest<Full<Bytes>>,
    path: String,
    host: String,
    authorization: Option<String>,
    _driver: JoinSet<()>,
}

#[derive(Deserialize)]
struct Taken {
    count: usize,
}

#[derive(Deserialize)]
struct Problem {
    message: String,
}

impl Http {
    pub(super) async fn connect(door: &Door) -> Result<Http, Failed> {
        let away = |e: std::io::Error| Failed::Unreachable(e.to_string());
        let (requests, driver, host) = match &door.address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await;
                let (requests, driver) = handshake(stream.map_err(away)?).await?;
                (requests, driver, "localhost".to_owned())
            }
            Address::Http(address) | Address::Mqtt(address) => {
                let stream = TcpStream::connect(address).await.map_err(away)?;
                stream.set_nodelay(true).map_err(away)?;
                let (requests, driver) = handshake(stream).await?;
                (requests, driver, address.to_string())
            }
        };
        let basic = |(user, password): &(String, String)| {
            format!("Basic {}", BASE64.encode(format!("{user}:{password}").as_bytes()))
        };
        let (path, authorization) = (format!("/v1/streams/{}", door.stream), door.user.as_ref().map(basic));
        Ok(Http { requests, path, host, authorization, _driver: driver })
    }

    pub(super) async fn offer(&mut self, records: &[Bytes]) -> Result<(), Failed> {
        let mut body = BytesMut::with_capacity(records.iter().map(|record| record.len() + 1).sum());
        for record in records {
            body.put_slice(record);
            body.put_u8(b'\n');
        }
        let mut request = Request::post(&self.path).header(HOST, &self.host);
        request = request.header(CONTENT_TYPE, "application/x-ndjson");
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(body.freeze())).map_err(|e| Failed::Refused(e.to_string()))?;
        // Until the connection is ready nothing is sent.
        self.requests.ready().await.map_err(|e| Failed::Unreachable(e.to_string()))?;
        let lost = |why: String| Failed::NoAnswer { acknowledged: 0, why };
        let late = |_| lost(format!("it did not answer within {ANSWER_TIMEOUT:?}"));
        let answer = timeout(ANSWER_TIMEOUT, self.requests.send_request(request)).await.map_err(late)?;
        let answer = answer.map_err(|e| lost(e.to_string()))?;
        let (status, after) = (answer.status(), retry_after(&answer));
        let text = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect();
        let text = timeout(ANSWER_TIMEOUT, text).await.map_err(late)?;
        match text {
            Ok(text) => judge(status, after, &text.to_bytes(), records.len()),
            // The status is the answer; what was to explain it is missing.
            Err(_) => judge(status, after, b"", records.len()),
        }
    }
}

async fn handshake<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
) -> Result<(SendRequest<Full<Bytes>>, JoinSet<()>), Failed> {
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (requests, connection) = shaken.map_err(|e| Failed::Unreachable(e.to_string()))?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        let _ = connection.await; // whoever waits for an answer is told
    });
    Ok((requests, driver))
}

fn retry_after(answer: &Response<Incoming>) -> Option<Duration> {
    answer.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

fn judge(status: StatusCode, after: Option<Duration>, text: &[u8], sent: usize) -> Result<(), Failed> {
    if status.is_success() {
        return match serde_json::from_slice::<Taken>(text) {
            Ok(taken) if taken.count != sent => {
                Err(Failed::Refused(format!("the door says it took {} records of {sent}", taken.count)))
            }
            _ => Ok(()),
        };
    }
    let said = serde_json::from_slice::<Problem>(text).map(|p| p.message);
    let said = said.unwrap_or_else(|_| String::from_utf8_lossy(text).chars().take(300).collect());
    let why = format!("{status}: {said}");
    Err(match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::INSUFFICIENT_STORAGE => {
            Failed::PushedBack { why, after }
        }
        StatusCode::SERVICE_UNAVAILABLE => Failed::PushedBack { why, after },
        status if status.is_server_error() => Failed::NoAnswer { acknowledged: 0, why },
        _ => Failed::Refused(why),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let judge = |status: u16, text: &str| judge(StatusCode::from_u16(status).unwrap(), None, text.as_bytes(), 3);
        assert_eq!(judge(200, r#"{"stream":"scans","count":3}"#), Ok(()));
        assert!(matches!(judge(200, r#"{"count":2}"#), Err(Failed::Refused(_))));
        for status in [408, 429, 503, 507] {
            assert!(matches!(judge(status, ""), Err(Failed::PushedBack { .. })), "{status}");
        }
        for status in [400, 401, 404, 413, 415] {
            assert!(matches!(judge(status, ""), Err(Failed::Refused(_))), "{status}");
        }
        assert!(matches!(judge(500, ""), Err(Failed::NoAnswer { acknowledged: 0, .. })));
        let refused = judge(404, r#"{"error":"unknown","message":"the streams are scans, logs"}"#).unwrap_err();
        assert!(refused.to_string().contains("the streams are scans, logs"), "{refused}");
    }
}
