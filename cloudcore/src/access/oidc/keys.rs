//! The provider's keys: found by discovery, kept for an hour, and asked for again when a token names one that is not
//! there, but not more often than every half minute, whoever sends what.
//!
//! A provider that does not answer is bridged with the keys that are there, for a day. Without any nobody gets in.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use proto::env::Env;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    OidcConfig, is_safe_url,
    jwt::{self, Claims, Key, Refused},
};
use crate::roots;

/// How long keys are believed without a question.
const FRESH: Duration = Duration::from_secs(3600);
/// How long they are believed while the provider does not answer.
const STALE: Duration = Duration::from_secs(86_400);
/// Least time between two questions.
const PAUSE: Duration = Duration::from_secs(30);
/// How long a question may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest document that is read, in bytes.
const MAX_DOCUMENT_BYTES: usize = 1 << 20;
/// Most keys of a provider.
const MAX_KEYS: usize = 64;

/// A token lets nobody in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotIn {
    /// For what it is.
    #[error("the ID token is refused: {0}")]
    Refused(#[from] Refused),
    /// Because nobody can say what it is.
    #[error("the provider cannot be asked for its keys: {0}")]
    Unreachable(String),
}

/// A provider of the house. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Provider(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: OidcConfig,
    env: Env,
    http: reqwest::Client,
    held: RwLock<Option<Held>>,
    /// When it was asked last, and what came of it. One question at a time.
    asking: tokio::sync::Mutex<Option<(Instant, Option<String>)>>,
}

#[derive(Debug, Clone)]
struct Held {
    keys: Arc<Vec<Key>>,
    since: Instant,
}

/// A client of providers, which believes the authorities in `ca`.
///
/// # Errors
/// For people: the file is of no use.
pub fn http(ca: Option<&std::path::Path>, setting: &str, env: &Env) -> Result<reqwest::Client, String> {
    let tls = roots::client_config(ca, setting, &env.wall)?;
    let builder = reqwest::Client::builder().tls_backend_preconfigured(tls).timeout(PATIENCE);
    // Discovery says where everything is; nobody else does.
    builder.redirect(reqwest::redirect::Policy::none()).build().map_err(|e| e.to_string())
}

/// Reads a bounded JSON document.
///
/// # Errors
/// For people.
pub async fn document(response: reqwest::Response) -> Result<Value, String> {
    let (url, status) = (response.url().clone(), response.status());
    let mut response = response;
    let mut bytes = vec![];
    while let Some(piece) = response.chunk().await.map_err(|e| format!("{url}: {e}"))? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > MAX_DOCUMENT_BYTES {
            return Err(format!("{url} answers with more than {MAX_DOCUMENT_BYTES} bytes"));
        }
    }
    let value: Option<Value> = serde_json::from_slice(&bytes).ok();
    match value {
        Some(value) if status.is_success() => Ok(value),
        Some(value) => {
            let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            Err(format!("{url} answers {status} {:.60} {:.200}", text("error"), text("error_description")))
        }
        None => Err(format!("{url} answers {status}, and no JSON")),
    }
}

/// What a provider says of itself.
///
/// # Errors
/// For people: it does not answer, or says that it is another one.
pub async fn discover(http: &reqwest::Client, issuer: &str) -> Result<Value, String> {
    let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    let response = http.get(&url).send().await.map_err(|e| format!("{url}: {}", root_of(&e)))?;
    let found = document(response).await?;
    match found.get("issuer").and_then(Value::as_str) {
        Some(named) if named == issuer => Ok(found),
        named => Err(format!("{url} calls itself {:.200}, not {issuer}", named.unwrap_or("nothing"))),
    }
}

/// A place that discovery names.
///
/// # Errors
/// For people: there is none, or it is not safe.
pub fn endpoint(found: &Value, name: &str) -> Result<String, String> {
    let url = found.get(name).and_then(Value::as_str).unwrap_or_default();
    if is_safe_url(url) { Ok(url.to_owned()) } else { Err(format!("the provider names no safe {name}: {url:.200}")) }
}

fn root_of(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

impl Provider {
    /// The provider that `hub.yaml` names. Nothing is asked yet.
    ///
    /// # Errors
    /// For people: its certificate authorities cannot be read.
    pub fn new(config: &OidcConfig, env: &Env) -> Result<Provider, String> {
        let http = http(config.ca.as_deref(), "oidc.ca in hub.yaml", env)?;
        let (held, asking) = (RwLock::default(), tokio::sync::Mutex::default());
        Ok(Provider(Arc::new(Inner { config: config.clone(), env: env.clone(), http, held, asking })))
    }

    /// How it is configured.
    #[must_use]
    pub fn config(&self) -> &OidcConfig {
        &self.0.config
    }

    /// Verifies an ID token.
    ///
    /// # Errors
    /// When it lets nobody in, or nobody can say.
    pub async fn verify(&self, token: &str) -> Result<Claims, NotIn> {
        let now = Instant::now();
        let judge = |keys: &[Key]| {
            jwt::verify(token, keys, &self.0.config.issuer, &self.0.config.client_id, self.0.env.wall.now())
        };
        if let Some(held) = self.held().filter(|held| now.duration_since(held.since) < FRESH) {
            match judge(&held.keys) {
                Err(Refused::UnknownKey) => {} // it may be new
                verdict => return Ok(verdict?),
            }
        } else {
            // What cannot be a token for us is not worth a question.
            match judge(&[]) {
                Err(Refused::UnknownKey) | Ok(_) => {}
                Err(refused) => return Err(refused.into()),
            }
        }
        let trouble = self.ask(now).await;
        match (self.held().filter(|held| now.duration_since(held.since) < STALE), trouble) {
            (Some(held), trouble) => match (judge(&held.keys), trouble) {
                (Err(Refused::UnknownKey), Some(trouble)) => Err(NotIn::Unreachable(trouble)),
                (verdict, _) => Ok(verdict?),
            },
            (None, trouble) => Err(NotIn::Unreachable(trouble.unwrap_or_default())),
        }
    }

    fn held(&self) -> Option<Held> {
        self.0.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks for the keys, unless somebody just did. Says why there are none newer.
    async fn ask(&self, now: Instant) -> Option<String> {
        let mut asked = self.0.asking.lock().await;
        if let Some((at, trouble)) = asked.as_ref()
            && Instant::now().max(now).duration_since(*at) < PAUSE
        {
            return trouble.clone();
        }
        let trouble = match self.fetch().await {
            Ok(keys) => {
                let held = Held { keys: Arc::new(keys), since: Instant::now() };
                *self.0.held.write().unwrap_or_else(PoisonError::into_inner) = Some(held);
                None
            }
            Err(trouble) => {
                tracing::warn!(trouble, issuer = self.0.config.issuer, "the OpenID Connect provider cannot be asked");
                Some(trouble)
            }
        };
        *asked = Some((Instant::now(), trouble.clone()));
        trouble
    }

    async fn fetch(&self) -> Result<Vec<Key>, String> {
        let Inner { http, config, .. } = &*self.0;
        let found = discover(http, &config.issuer).await?;
        let url = endpoint(&found, "jwks_uri")?;
        let response = http.get(&url).send().await.map_err(|e| format!("{url}: {}", root_of(&e)))?;
        let set = document(response).await?;
        let keys = set.get("keys").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let keys: Vec<Key> = keys.iter().take(MAX_KEYS).filter_map(Key::read).collect();
        if keys.is_empty() {
            return Err(format!("{url} shows no key for RS256, ES256 or EdDSA"));
        }
        Ok(keys)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        collections::BTreeMap,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use serde_json::json;
    use tokio::{
        io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
        net::TcpListener,
    };

    use super::{super::jwt::tests::ed25519, *};

    /// A provider that says what a test tells it to.
    #[derive(Default)]
    pub(crate) struct Script {
        pub(crate) answers: Mutex<BTreeMap<String, Value>>,
        asked: AtomicUsize,
        /// Body of the last question.
        pub(crate) sent: Mutex<String>,
    }

    pub(crate) async fn provider() -> (Arc<Script>, Provider, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let script = Arc::new(Script::default());
        let told = Arc::clone(&script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                let (mut line, mut head, mut length) = (String::new(), String::from("\n"), 0);
                stream.read_line(&mut line).await.unwrap();
                while !head.trim().is_empty() || head == "\n" {
                    head.clear();
                    stream.read_line(&mut head).await.unwrap();
                    if let Some(bytes) = head.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = bytes.trim().parse().unwrap();
                    }
                }
                let mut sent = vec![0; length];
                stream.read_exact(&mut sent).await.unwrap();
                let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                told.asked.fetch_add(1, Ordering::SeqCst);
                *told.sent.lock().unwrap() = String::from_utf8(sent).unwrap();
                let body = told.answers.lock().unwrap().get(&path).map(Value::to_string);
                let (status, body) = body.map_or(("404 Not Found", "{}".to_owned()), |body| ("200 OK", body));
                let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
                stream.shutdown().await.ok();
            }
        });
        let config: OidcConfig = serde_json::from_value(json!({"issuer": issuer, "clientId": "me"})).unwrap();
        (script, Provider::new(&config, &Env::real().unwrap()).unwrap(), issuer)
    }

    impl Script {
        fn shows(&self, issuer: &str, keys: &[Value]) {
            let mut answers = self.answers.lock().unwrap();
            let discovery = json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")});
            answers.insert("/.well-known/openid-configuration".into(), discovery);
            answers.insert("/keys".into(), json!({"keys": keys}));
        }
    }

    fn token(issuer: &str, seed: u8, id: &str) -> String {
        let end = Env::real().unwrap().wall.now().as_second() + 1000;
        let claims = json!({"iss": issuer, "aud": "me", "sub": "a", "exp": end});
        let (pair, _) = ed25519(seed, id);
        super::super::jwt::tests::sign(&json!({"alg": "EdDSA", "kid": id}), &claims, |m| pair.sign(m).as_ref().to_vec())
    }

    async fn later(time: Duration) {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }

    #[tokio::test]
    async fn keys_are_found_turned_over_and_not_asked_for_without_end() {
        let (script, provider, issuer) = provider().await;
        let unreachable = |verdict: Result<Claims, NotIn>| matches!(verdict, Err(NotIn::Unreachable(_)));
        assert!(unreachable(provider.verify(&token(&issuer, 1, "k1")).await));
        script.shows(&issuer, &[ed25519(1, "k1").1]);
        let asked = script.asked.load(Ordering::SeqCst);
        for _ in 0..5 {
            assert!(unreachable(provider.verify(&token(&issuer, 1, "k1")).await), "it was asked just now");
        }
        assert_eq!(script.asked.load(Ordering::SeqCst), asked);
        later(PAUSE).await;
        assert_eq!(provider.verify(&token(&issuer, 1, "k1")).await.unwrap().all["sub"], "a");

        // The provider turns its keys over: the new one is found, the old one no longer believed.
        script.shows(&issuer, &[ed25519(2, "k2").1]);
        let unknown = provider.verify(&token(&issuer, 2, "k2")).await;
        assert_eq!(unknown, Err(NotIn::Refused(Refused::UnknownKey)), "not twice in half a minute");
        later(PAUSE).await;
        assert!(provider.verify(&token(&issuer, 2, "k2")).await.is_ok());
        assert!(provider.verify(&token(&issuer, 1, "k1")).await.is_err());
        // A flood of tokens with made-up keys is one question.
        later(PAUSE).await;
        let asked = script.asked.load(Ordering::SeqCst);
        for n in 0..20 {
            assert!(provider.verify(&token(&issuer, 3, &format!("made-up-{n}"))).await.is_err());
        }
        assert_eq!(script.asked.load(Ordering::SeqCst), asked + 2, "discovery, and the keys");

        // It goes away: what is known is bridged for a day, and not for longer.
        script.answers.lock().unwrap().clear();
        later(FRESH + PAUSE).await;
        assert!(provider.verify(&token(&issuer, 2, "k2")).await.is_ok());
        assert!(unreachable(provider.verify(&token(&issuer, 1, "k1")).await));
        later(STALE).await;
        assert!(unreachable(provider.verify(&token(&issuer, 2, "k2")).await));
    }

    #[tokio::test]
    async fn a_provider_that_is_another_one_is_not_believed() {
        let (script, provider, issuer) = provider().await;
        for (named, keys) in
            [("https://other.example", format!("{issuer}/keys")), (&issuer, "http://other.example".into())]
        {
            script.shows(named, &[ed25519(1, "k1").1]);
            let discovery = json!({"issuer": named, "jwks_uri": keys});
            script.answers.lock().unwrap().insert("/.well-known/openid-configuration".into(), discovery);
            later(PAUSE).await;
            let verdict = provider.verify(&token(&issuer, 1, "k1")).await;
            assert!(matches!(verdict, Err(NotIn::Unreachable(_))), "{named}: {verdict:?}");
        }
    }
}
