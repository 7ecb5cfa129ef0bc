//! `crossdock login --oidc`: a login at the OpenID Connect provider of the house, in a browser.
//!
//! Authorization code with PKCE (RFC 7636) and a redirect to this machine (RFC 8252): the hub says which provider, the
//! provider asks the person, the browser brings the code here, and nobody else can use it. What stays is the ID token,
//! which is shown to the hub, and a refresh token, with which the next command gets another one.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::Context as _;
use data_encoding::BASE64URL_NOPAD;
use jiff::Timestamp;
use proto::{digest::Digest, env::Env};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::exit::{CliError, Exit};
use crate::access::oidc::keys::{discover, document, endpoint, http};

/// How long a person may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Largest request of a browser that is read, in bytes, and how long it may take.
const MAX_REQUEST_BYTES: usize = 16 << 10;
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);
/// A token that ends within this time is renewed first.
const RENEW_BEFORE_S: i64 = 60;

/// A login that can be renewed, as the file of contexts keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Session {
    issuer: String,
    client_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_secret: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    /// PEM file of the provider's authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca: Option<std::path::PathBuf>,
}

/// How to log in.
#[derive(Debug, clap::Args)]
pub struct OidcArgs {
    /// Log in at the OpenID Connect provider that the hub names, in a browser.
    #[arg(long, conflicts_with_all = ["token", "token_file"])]
    pub(super) oidc: bool,
    /// Print the address for the browser, and open none.
    #[arg(long, requires = "oidc")]
    no_browser: bool,
    /// Port of this machine to which the provider sends the browser back; 0 takes any free one.
    #[arg(long, default_value_t = 0, requires = "oidc")]
    oidc_port: u16,
    /// Certificate authorities of the provider, PEM. Default: those of this machine.
    #[arg(long, requires = "oidc")]
    oidc_ca: Option<std::path::PathBuf>,
    /// Secret of the client, where the provider gives even programs on people's machines one.
    #[arg(long, env = "CROSSDOCK_OIDC_CLIENT_SECRET", hide_env_values = true)]
    oidc_client_secret: Option<String>,
}

fn failed(text: String) -> anyhow::Error {
    CliError::new(Exit::Unauthorized, format!("could not log in: {text}")).into()
}

/// Logs in at the provider that the hub described; returns the ID token and what renews it.
pub(super) async fn login(args: OidcArgs, described: &Value) -> anyhow::Result<(String, Session)> {
    let text = |name: &str| described.pointer(name).and_then(Value::as_str).map(str::to_owned);
    let (Some(issuer), Some(client_id)) = (text("/oidc/issuer"), text("/oidc/clientId")) else {
        let text = "this hub knows no OpenID Connect provider (oidc in hub.yaml); log in with --token-file";
        return Err(CliError::new(Exit::Usage, text).into());
    };
    let scopes: Vec<&str> = described
        .pointer("/oidc/scopes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let session =
        Session { issuer, client_id, client_secret: args.oidc_client_secret, refresh_token: None, ca: args.oidc_ca };
    let env = Env::real()?;
    let http = http(session.ca.as_deref(), "--oidc-ca", &env).map_err(failed)?;
    let found = discover(&http, &session.issuer).await.map_err(failed)?;

    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, args.oidc_port))).await;
    let listener = listener.with_context(|| format!("wait for the browser on port {}", args.oidc_port))?;
    let redirect = format!("http://127.0.0.1:{}/", listener.local_addr()?.port());
    let secret = |purpose: &str| BASE64URL_NOPAD.encode(&env.seed.bytes::<32>(purpose));
    let (verifier, state, nonce) = (secret("PKCE verifier"), secret("OIDC state"), secret("OIDC nonce"));
    let challenge = BASE64URL_NOPAD.encode(Digest::of(verifier.as_bytes()).as_bytes());
    let mut url: Url = endpoint(&found, "authorization_endpoint").map_err(failed)?.parse()?;
    url.query_pairs_mut().extend_pairs([
        ("response_type", "code"),
        ("client_id", &session.client_id),
        ("redirect_uri", &redirect),
        ("scope", &scopes.join(" ")),
        ("state", &state),
        ("nonce", &nonce),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
    ]);
    eprintln!("Log in with a browser on this machine:\n  {url}");
    if !args.no_browser {
        // Without one the person takes the line above.
        let quiet = tokio::process::Command::new("xdg-open")
            .arg(url.as_str())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        drop(quiet);
    }
    let waited = tokio::time::timeout(PATIENCE, code(&listener, &state)).await;
    let code = waited.map_err(|_| failed("nobody logged in within 5 minutes".into()))?.map_err(failed)?;
    let form = [
        ("grant_type", "authorization_code"),
        ("code", &code),
        ("redirect_uri", &redirect),
        ("code_verifier", &verifier),
    ];
    let (token, session) = exchange(&http, &found, session, &form).await.map_err(failed)?;
    // It came from the provider itself, over TLS; what it is bound to is for us to check, the rest for the hub.
    if claim(&token, "nonce").as_ref().and_then(Value::as_str) != Some(&nonce) {
        return Err(failed("the provider answered another login than this one".into()));
    }
    Ok((token, session))
}

/// Waits until the browser brings the code. Whatever else asks here, such as for an icon, is sent away.
async fn code(listener: &TcpListener, state: &str) -> Result<String, String> {
    loop {
        let (stream, _) = listener.accept().await.map_err(|e| format!("waiting for the browser: {e}"))?;
        let Ok(Some((mut stream, query))) = tokio::time::timeout(REQUEST_PATIENCE, request(stream)).await else {
            continue;
        };
        let value = |name: &str| query.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
        // Nobody but the provider and this program knows the state.
        let (answer, outcome) = if value("state").as_deref() != Some(state) {
            ("404 Not Found", None)
        } else if let Some(code) = value("code") {
            ("200 OK", Some(Ok(code)))
        } else {
            let why = format!(
                "{:.60} {:.200}",
                value("error").unwrap_or_default(),
                value("error_description").unwrap_or_default()
            );
            ("200 OK", Some(Err(format!("the provider refuses: {}", super::output::plain(&why)))))
        };
        let text = match &outcome {
            Some(Ok(_)) => "Logged in to Crossdock. You can close this page.",
            Some(Err(_)) => "Not logged in; the command line says why.",
            None => "There is nothing here.",
        };
        let head = "content-type: text/plain; charset=utf-8\r\ncache-control: no-store\r\nreferrer-policy: no-referrer\r\nconnection: close";
        let answer = format!("HTTP/1.1 {answer}\r\n{head}\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        let _ = stream.write_all(answer.as_bytes()).await; // a page for people: the code is here already
        let _ = stream.shutdown().await;
        if let Some(outcome) = outcome {
            return outcome;
        }
    }
}

/// The address that a browser asks for.
async fn request(mut stream: TcpStream) -> Option<(TcpStream, Url)> {
    let mut read = vec![];
    while !read.windows(4).any(|end| end == b"\r\n\r\n") {
        if read.len() > MAX_REQUEST_BYTES || stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
    let line = std::str::from_utf8(read.split(|b| *b == b'\r').next()?).ok()?;
    let path = line.strip_prefix("GET ")?.split(' ').next()?;
    let url = Url::parse("http://127.0.0.1").ok()?.join(path).ok()?;
    Some((stream, url))
}

/// Asks the provider for tokens.
async fn exchange(
    http: &reqwest::Client,
    found: &Value,
    session: Session,
    form: &[(&str, &str)],
) -> Result<(String, Session), String> {
    let url = endpoint(found, "token_endpoint")?;
    let response = send(http, &url, &session, form).await?;
    let text = |name: &str| response.get(name).and_then(Value::as_str).map(str::to_owned);
    let token = text("id_token").ok_or("the provider gives no ID token; log in again: crossdock login --oidc")?;
    // Some give a new refresh token each time and forget the one before, others do not.
    let refresh_token = text("refresh_token").or_else(|| session.refresh_token.clone());
    Ok((token, Session { refresh_token, ..session }))
}

async fn send(http: &reqwest::Client, url: &str, session: &Session, form: &[(&str, &str)]) -> Result<Value, String> {
    let mut encoded: Url = "http://form".parse().map_err(|_| "a form cannot be written")?;
    encoded.query_pairs_mut().extend_pairs(form);
    let request = http.post(url).header("content-type", "application/x-www-form-urlencoded");
    let request = match &session.client_secret {
        Some(secret) => request.basic_auth(&session.client_id, Some(secret)),
        None => {
            encoded.query_pairs_mut().append_pair("client_id", &session.client_id);
            request
        }
    };
    let body = encoded.query().unwrap_or_default().to_owned();
    let response = request.body(body).send().await.map_err(|e| format!("{url}: {}", e.without_url()))?;
    document(response).await
}

/// A claim of a token, unverified.
fn claim(token: &str, name: &str) -> Option<Value> {
    let payload = BASE64URL_NOPAD.decode(token.split('.').nth(1)?.as_bytes()).ok()?;
    serde_json::from_slice::<Value>(&payload).ok()?.get(name).cloned()
}

/// Whether a token ended, or will before a command is done.
pub(super) fn is_due(token: &str, now: Timestamp) -> bool {
    claim(token, "exp").and_then(|end| end.as_i64()).is_some_and(|end| end - now.as_second() < RENEW_BEFORE_S)
}

/// Gets another ID token, without the person.
pub(super) async fn renew(session: Session) -> Result<(String, Session), String> {
    let Some(refresh) = session.refresh_token.clone() else {
        return Err("the provider gave nothing to renew it with; log in again: crossdock login --oidc".into());
    };
    let env = Env::real().map_err(|e| e.to_string())?;
    let http = http(session.ca.as_deref(), "--oidc-ca", &env)?;
    let found = discover(&http, &session.issuer).await?;
    exchange(&http, &found, session, &[("grant_type", "refresh_token"), ("refresh_token", &refresh)]).await
}

/// Tells the provider that what renews a login is not needed any more, where it can be told.
pub(super) async fn revoke(session: &Session) -> Result<(), String> {
    let Some(refresh) = &session.refresh_token else { return Ok(()) };
    let env = Env::real().map_err(|e| e.to_string())?;
    let http = http(session.ca.as_deref(), "--oidc-ca", &env)?;
    let found = discover(&http, &session.issuer).await?;
    if found.get("revocation_endpoint").is_none() {
        return Ok(());
    }
    let url = endpoint(&found, "revocation_endpoint")?;
    let mut form: Url = "http://form".parse().map_err(|_| "a form cannot be written")?;
    form.query_pairs_mut().extend_pairs([("token", refresh.as_str()), ("client_id", &session.client_id)]);
    let mut request = http.post(&url).header("content-type", "application/x-www-form-urlencoded");
    if let Some(secret) = &session.client_secret {
        request = request.basic_auth(&session.client_id, Some(secret));
    }
    let response = request.body(form.query().unwrap_or_default().to_owned()).send().await;
    response.and_then(reqwest::Response::error_for_status).map_err(|e| e.without_url().to_string()).map(drop)
}

/// An absolute path: the context is used from other folders too.
pub(super) fn absolute(session: Session) -> Session {
    let ca = session.ca.as_deref().map(|path| std::path::absolute(path).unwrap_or_else(|_| Path::to_owned(path)));
    Session { ca, ..session }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_login_that_was_begun_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let waiting = tokio::spawn(async move { code(&listener, "right").await });
        let ask = async |line: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(format!("{line}\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer).await;
            answer.lines().next().unwrap_or_default().to_owned()
        };
        for other in ["GET /favicon.ico HTTP/1.1", "GET /?code=x&state=wrong HTTP/1.1", "GET /?code=x HTTP/1.1"] {
            assert_eq!(ask(other).await, "HTTP/1.1 404 Not Found", "{other}");
        }
        assert_eq!(ask("POST /?code=x&state=right HTTP/1.1").await, "");
        assert_eq!(ask("GET /?state=right&code=a%2Fb HTTP/1.1").await, "HTTP/1.1 200 OK");
        assert_eq!(waiting.await.unwrap(), Ok("a/b".into()));
    }

    #[tokio::test]
    async fn a_login_is_renewed_with_what_the_provider_gave_last() {
        let (script, _, issuer) = crate::access::oidc::keys::tests::provider().await;
        let say = |path: &str, answer: Value| drop(script.answers.lock().unwrap().insert(path.into(), answer));
        let places = serde_json::json!({"issuer": issuer, "token_endpoint": format!("{issuer}/token"),
            "revocation_endpoint": format!("{issuer}/revoke")});
        say("/.well-known/openid-configuration", places);
        say("/token", serde_json::json!({"id_token": "new", "refresh_token": "second"}));
        let (client_id, refresh_token) = ("me".to_owned(), Some("first & only".to_owned()));
        let session = Session { issuer, client_id, client_secret: None, refresh_token, ca: None };
        let (token, session) = renew(session).await.unwrap();
        assert_eq!((token.as_str(), session.refresh_token.as_deref()), ("new", Some("second")));
        let sent = script.sent.lock().unwrap().clone();
        assert_eq!(sent, "grant_type=refresh_token&refresh_token=first+%26+only&client_id=me");
        say("/revoke", serde_json::json!({}));
        revoke(&session).await.unwrap();
        assert!(script.sent.lock().unwrap().contains("token=second"));
        say("/token", serde_json::json!({"access_token": "x"}));
        assert!(renew(session.clone()).await.unwrap_err().contains("log in again"));
        assert!(renew(Session { refresh_token: None, ..session }).await.unwrap_err().contains("log in again"));
    }

    #[test]
    fn a_token_is_renewed_before_it_ends() {
        let token = |end: i64| format!("e30.{}.", BASE64URL_NOPAD.encode(format!("{{\"exp\":{end}}}").as_bytes()));
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        assert!(is_due(&token(1_800_000_059), now) && is_due(&token(0), now));
        assert!(!is_due(&token(1_800_000_060), now) && !is_due("cda1.abc", now) && !is_due("", now));
    }
}
