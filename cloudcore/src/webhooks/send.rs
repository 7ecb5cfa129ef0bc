//! One delivery over HTTP.
//!
//! `format: json` posts
//!
//! ```json
//! {"apiVersion": "crossdock.io/v1", "kind": "EventNotification", "fleet": "express",
//!  "event": {"kind": "Event", "metadata": {}, "spec": {"involvedKind": "Node", "reason": "Silent"}},
//!  "delivery": {"id": "d-0a1b2c3d4e5f60718293", "attempt": 1}}
//! ```
//!
//! with these headers, the last two only when there is a `secretFile`:
//!
//! | header | content |
//! |---|---|
//! | `X-Crossdock-Delivery` | the delivery's `id`: the same in every attempt, so that a receiver can drop repetitions |
//! | `X-Crossdock-Timestamp` | seconds since 1970, when this attempt began |
//! | `X-Crossdock-Signature` | `sha256=` and HMAC-SHA256 (RFC 2104) in hex, keyed with the secret, over the timestamp, a full stop, and the body |
//!
//! A receiver computes the same over the body as it came, before it parses it, compares in constant time, and
//! refuses a timestamp that is minutes off, so that nobody can play an old delivery back:
//!
//! ```python
//! expected = "sha256=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
//! genuine = hmac.compare_digest(expected, signature) and abs(time.time() - int(timestamp)) < 300
//! ```
//!
//! Any 2xx is a success. Redirects are failures: a signed event goes to the address that was configured.
//!
//! `format: dingtalk` posts a text message as DingTalk's custom robots take it, and with a `secretFile` signs as
//! they verify: `timestamp` (milliseconds) and `sign` (base64 of HMAC-SHA256, keyed with the secret, over the
//! timestamp, a line feed, and the secret) in the query. The robot answers 200 with an `errcode`: only 0 is success.
//! It is plain text rather than Markdown, for any workload on a box may write into an event.

use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};
use jiff::Timestamp;
use proto::{digest::Digest, env::Env, name::Name};
use reqwest::{Response, Url, header::CONTENT_TYPE, redirect::Policy};
use ring::hmac;
use serde::Deserialize;
use serde_json::json;

use super::config::{Format, WebhookConfig};
use crate::{events::one_line, roots, store::deliveries::Delivery};

/// How long a connection may take to come up.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// How long an attempt may take in all.
const PATIENCE: Duration = Duration::from_secs(15);
/// Most of an answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 16 << 10;
/// Longest reason that is kept, in characters.
const MAX_REASON_CHARS: usize = 300;

/// Sends to one webhook.
#[derive(Debug)]
pub(super) struct Sender {
    config: WebhookConfig,
    fleet: Name,
    /// Or why there is none, which every attempt then says.
    http: Result<(reqwest::Client, Url), String>,
}

impl Sender {
    pub(super) fn new(config: &WebhookConfig, fleet: &Name, env: &Env) -> Sender {
        Sender { config: config.clone(), fleet: fleet.clone(), http: client(config, env) }
    }

    /// Makes one attempt; the error is for people and holds no secret.
    pub(super) async fn send(&self, delivery: &Delivery, now: Timestamp) -> Result<(), String> {
        let sent = self.attempt(delivery, now).await;
        sent.map_err(|reason| one_line(&reason, MAX_REASON_CHARS))
    }

    async fn attempt(&self, delivery: &Delivery, now: Timestamp) -> Result<(), String> {
        let (http, url) = self.http.as_ref().map_err(Clone::clone)?;
        let secret = self.config.secret()?;
        let id = id(self.config.name.as_str(), delivery);
        let mut request = http.post(url.clone()).header(CONTENT_TYPE, "application/json");
        match self.config.format {
            Format::Json => {
                let body = self.document(delivery, &id);
                let timestamp = now.as_second().to_string();
                request = request.header("X-Crossdock-Delivery", &id);
                if let Some(secret) = secret {
                    let signature = signature(&secret, &timestamp, body.as_bytes());
                    request = request.header("X-Crossdock-Timestamp", timestamp);
                    request = request.header("X-Crossdock-Signature", signature);
                }
                let response = request.body(body).send().await.map_err(words)?;
                success(&response)
            }
            Format::Dingtalk => {
                if let Some(secret) = secret {
                    let timestamp = now.as_millisecond().to_string();
                    let sign = dingtalk_sign(&secret, &timestamp);
                    request = request.query(&[("timestamp", timestamp), ("sign", sign)]);
                }
                let message = json!({"msgtype": "text", "text": {"content": self.message(delivery)}});
                let response = request.body(message.to_string()).send().await.map_err(words)?;
                success(&response)?;
                accepted(response).await
            }
        }
    }

    fn document(&self, delivery: &Delivery, id: &str) -> String {
        json!({
            "apiVersion": proto::API_VERSION,
            "kind": "EventNotification",
            "fleet": self.fleet,
            "event": delivery.event,
            "delivery": {"id": id, "attempt": delivery.attempts.saturating_add(1)},
        })
        .to_string()
    }

    fn message(&self, delivery: &Delivery) -> String {
        let spec = &delivery.event.spec;
        let often =
            if spec.count > 1 { format!(", {} times since {}", spec.count, spec.first_at) } else { String::new() };
        format!(
            "[{}] {} {}: {}\n{}\nfleet {}, by {}, {}{often}",
            spec.r#type,
            spec.involved_kind,
            spec.involved_name,
            spec.reason,
            spec.message,
            self.fleet,
            spec.source,
            spec.last_at
        )
    }
}

fn client(config: &WebhookConfig, env: &Env) -> Result<(reqwest::Client, Url), String> {
    let url = config.url.url()?;
    let tls = match url.scheme() {
        "https" => roots::client_config(config.ca.as_deref(), "its ca", &env.wall)?,
        _ => roots::nobody(&env.wall)?,
    };
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(Policy::none())
        .connect_timeout(CONNECT_PATIENCE)
        .timeout(PATIENCE)
        .user_agent(concat!("crossdock/", env!("CARGO_PKG_VERSION")))
        .build()
        .map(|client| (client, url))
        .map_err(words)
}

/// Stays the same in every attempt, also after a restart.
pub(crate) fn id(webhook: &str, delivery: &Delivery) -> String {
    let metadata = &delivery.event.metadata;
    let text = format!("{webhook}\0{}\0{}", metadata.uid, delivery.revision);
    format!("d-{}", Digest::of(text.as_bytes()).hex().get(..20).unwrap_or_default())
}

/// What `X-Crossdock-Signature` holds.
#[must_use]
pub fn signature(secret: &str, timestamp: &str, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let mut context = hmac::Context::with_key(&key);
    [timestamp.as_bytes(), b".", body].into_iter().for_each(|part| context.update(part));
    format!("sha256={}", HEXLOWER.encode(context.sign().as_ref()))
}

/// What DingTalk's query parameter `sign` holds, before it is encoded for the query.
#[must_use]
pub fn dingtalk_sign(secret: &str, timestamp: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    BASE64.encode(hmac::sign(&key, format!("{timestamp}\n{secret}").as_bytes()).as_ref())
}

fn success(response: &Response) -> Result<(), String> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let hint = if status.is_redirection() { "; redirects are not followed: configure the last address" } else { "" };
    Err(format!("the receiver answered {status}{hint}"))
}

/// Whether DingTalk took the message.
async fn accepted(mut response: Response) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Answer {
        errcode: i64,
        #[serde(default)]
        errmsg: String,
    }
    let mut body = vec![];
    while let Some(part) = response.chunk().await.map_err(words)? {
        if body.len() + part.len() > MAX_ANSWER_BYTES {
            return Err("the receiver's answer is too long for DingTalk's".into());
        }
        body.extend_from_slice(&part);
    }
    match serde_json::from_slice(&body) {
        Ok(Answer { errcode: 0, .. }) => Ok(()),
        Ok(Answer { errcode, errmsg }) => Err(format!("DingTalk refused it: {errcode} {errmsg}")),
        Err(_) => Err("the receiver's answer is not DingTalk's; look at url and format".into()),
    }
}

/// What went wrong, without the URL, which may hold a token.
#[allow(clippy::needless_pass_by_value)] // to be handed to `map_err`
fn words(error: reqwest::Error) -> String {
    let error = error.without_url();
    if error.is_timeout() {
        return format!("the receiver did not answer within {PATIENCE:?}");
    }
    let (mut text, mut cause) = (error.to_string(), std::error::Error::source(&error));
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}
