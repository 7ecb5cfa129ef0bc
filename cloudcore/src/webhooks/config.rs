//! `webhooks` in `hub.yaml`.
//!
//! ```yaml
//! webhooks:
//!   - name: on-duty
//!     url: https://alerts.example.com/crossdock
//!     secretFile: /etc/cloudcore/on-duty.secret     # signs; read anew for every attempt
//!     events: {types: [Warning], kinds: [Node, Rollout]}
//!   - name: dingtalk
//!     url: https://oapi.dingtalk.com/robot/send?access_token=...
//!     secretFile: /etc/cloudcore/dingtalk.secret
//!     format: dingtalk
//!     events: {reasons: [Silent, Paused, Failed]}
//! ```
//!
//! An event is told when every list that is not empty holds its word; with no list at all every event is. Robots of
//! chat systems carry a token in their URL: such a `hub.yaml` is for its owner alone.

use std::{collections::BTreeSet, fmt, io, path::PathBuf, time::Duration};

use proto::{
    name::Name,
    object::{Event, EventType},
    units::Span,
};
use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::bounded;

/// Most webhooks of a hub.
const MAX_WEBHOOKS: usize = 32;
/// Most words in one list of a selection.
const MAX_WORDS: usize = 64;
/// Longest word there, in bytes.
const MAX_WORD_BYTES: usize = 64;
/// Largest secret, in bytes.
const MAX_SECRET_BYTES: u64 = 4096;
/// Most attempts that may be asked for.
const MAX_ATTEMPTS: u32 = 1000;
/// Longest wait between two attempts that may be asked for.
const MAX_WAIT: Duration = Duration::from_secs(3600);
/// Kinds of objects that events are about. Those about webhooks themselves are told to nobody.
const KINDS: [&str; 8] = ["Node", "Site", "Release", "Rollout", "JoinToken", "Repository", "Blob", "Sink"];

/// Who is told of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WebhookConfig {
    /// Its name, one of its own. Another name is another webhook, which begins with what happens from then on.
    pub name: Name,
    /// Where to post: `https://…`, or `http://…` within a private network.
    pub url: Address,
    /// File with the secret that deliveries are signed with; without it they are not signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// Certificates (PEM) that the receiver's certificate must lead to; without it those of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Which events.
    #[serde(default)]
    pub events: Selection,
    /// How they are written.
    #[serde(default)]
    pub format: Format,
    /// How often and how long it is tried.
    #[serde(default)]
    pub retry: Retry,
}

/// Which events: a list that is empty asks for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Selection {
    /// Kinds of the objects that they are about, such as `Rollout`.
    #[serde(default)]
    pub kinds: Vec<String>,
    /// `Normal`, `Warning`.
    #[serde(default)]
    pub types: Vec<String>,
    /// Reasons, such as `Silent`.
    #[serde(default)]
    pub reasons: Vec<String>,
}

/// How a delivery is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Format {
    /// A document `EventNotification`, signed in headers.
    #[default]
    Json,
    /// A text message to a robot of DingTalk, signed in the query.
    Dingtalk,
}

/// How often and how long a delivery is tried before it is given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Retry {
    /// Wait after the first failure; it doubles with each one more. Half of every wait is drawn at random.
    pub first: Span,
    /// Longest wait.
    pub longest: Span,
    /// Attempts after which a delivery is given up.
    pub attempts: u32,
    /// Age from which on a delivery is given up after its next failure.
    pub age: Span,
}

impl Default for Retry {
    /// Fifteen attempts within about an hour and a half.
    fn default() -> Retry {
        let (first, longest) = (Span::from_secs(1), Span::from_secs(600));
        Retry { first, longest, attempts: 15, age: Span::from_secs(86_400) }
    }
}

/// A URL that may hold secrets: as text for people it is scheme, host and port alone. It is looked at when all of the
/// file was read, for what is wrong with a file is shown with the line where it stands.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Address(String);

impl Address {
    /// All of it.
    ///
    /// # Errors
    /// What is wrong, without a word of what it holds.
    pub fn url(&self) -> Result<Url, String> {
        let url = Url::parse(&self.0).map_err(|e| format!("url is no URL ({e}); write https://HOST/PATH"))?;
        if !matches!(url.scheme(), "https" | "http") {
            return Err("url is neither https nor http; write https://HOST/PATH".into());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("url holds a user or password; the receiver knows the hub by the signature: secretFile".into());
        }
        Ok(url)
    }
}

impl From<String> for Address {
    fn from(text: String) -> Address {
        Address(text)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(url) = self.url() else { return f.write_str("?") };
        let rest = if url.path() == "/" && url.query().is_none() { "" } else { "/…" };
        write!(f, "{}{rest}", url.origin().ascii_serialization())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Selection {
    /// Whether an event is told.
    #[must_use]
    pub fn wants(&self, event: &Event) -> bool {
        let has = |words: &[String], word: &str| words.is_empty() || words.iter().any(|one| one == word);
        let spec = &event.spec;
        has(&self.kinds, &spec.involved_kind)
            && has(&self.types, spec.r#type.as_str())
            && has(&self.reasons, &spec.reason)
    }

    fn contradiction(&self) -> Result<(), String> {
        let types = [EventType::Normal, EventType::Warning].map(|word| word.as_str());
        check_words("kinds", &self.kinds, &KINDS)?;
        check_words("types", &self.types, &types)?;
        check_words("reasons", &self.reasons, &[]) // workloads have reasons of their own
    }
}

/// Checks one list; with nothing known every word is.
fn check_words(list: &str, words: &[String], known: &[&str]) -> Result<(), String> {
    if words.len() > MAX_WORDS {
        return Err(format!("events.{list} has {} words, at most {MAX_WORDS} are allowed", words.len()));
    }
    for word in words {
        if !known.is_empty() && !known.contains(&word.as_str()) {
            return Err(format!("events.{list} holds {word:.64?}; there are {}", known.join(", ")));
        }
        if word.is_empty() || word.len() > MAX_WORD_BYTES || word.contains(char::is_whitespace) {
            return Err(format!("events.{list} holds {word:.64?}, which is no single word"));
        }
    }
    Ok(())
}

impl Retry {
    fn contradiction(&self) -> Result<(), String> {
        let (first, longest) = (self.first.get(), self.longest.get());
        if first.is_zero() || longest < first || longest > MAX_WAIT {
            return Err(format!(
                "retry.first ({}) and retry.longest ({}) must rise and lie between 1ms and 1h",
                self.first, self.longest
            ));
        }
        if !(1..=MAX_ATTEMPTS).contains(&self.attempts) {
            return Err(format!("retry.attempts is {}; it must be 1 to {MAX_ATTEMPTS}", self.attempts));
        }
        Ok(())
    }
}

impl WebhookConfig {
    /// The secret, read anew every time so that it can be changed; `None` when deliveries are not signed.
    ///
    /// # Errors
    /// When the file cannot be read, or is no secret; for people.
    pub(super) fn secret(&self) -> Result<Option<String>, String> {
        let Some(path) = &self.secret_file else { return Ok(None) };
        let failed = |e: &io::Error| format!("its secretFile {} cannot be read: {e}", path.display());
        let text = bounded::read_file(path, MAX_SECRET_BYTES).map_err(|e| failed(&e))?;
        let secret = text.trim_end_matches(['\r', '\n']);
        if secret.is_empty() {
            Err(format!("its secretFile {} is empty", path.display()))
        } else {
            Ok(Some(secret.into()))
        }
    }

    fn contradiction(&self) -> Result<(), String> {
        self.url.url()?;
        self.events.contradiction()?;
        self.retry.contradiction()?;
        for (what, path) in [("secretFile", &self.secret_file), ("ca", &self.ca)] {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
                return Err(format!("{what} is {}; write the whole path, from / on", path.display()));
            }
        }
        self.secret().map(drop)
    }
}

/// The first thing that is wrong, with its mend.
pub(crate) fn contradiction(webhooks: &[WebhookConfig]) -> Result<(), String> {
    if webhooks.len() > MAX_WEBHOOKS {
        return Err(format!("there are {} webhooks, at most {MAX_WEBHOOKS} are allowed", webhooks.len()));
    }
    let mut names = BTreeSet::new();
    for webhook in webhooks {
        let name = &webhook.name;
        if !names.insert(name) {
            return Err(format!("two webhooks are named {name}; name each of its own"));
        }
        webhook.contradiction().map_err(|e| format!("webhook {name}: {e}"))?;
    }
    Ok(())
}
