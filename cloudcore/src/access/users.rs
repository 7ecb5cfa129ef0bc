//! Who has which token: the file `api-tokens.json` of the data folder, of which nothing but hashes is kept.
//!
//! A token has 256 random bits, so a plain SHA-256 is enough and there is nothing to guess. Two forms of the file are
//! read: `{"tokens": [{name, hash}]}` of hubs before there were roles, whose users are all administrators, and
//! `{"version": 2, "users": [...]}`, which such a hub refuses to read: it would take everybody for one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use data_encoding::BASE64URL_NOPAD;
use jiff::Timestamp;
use proto::{
    digest::Digest,
    durable::{DurableError, Loaded, Record},
    env::{Env, Seed},
    name::Name,
};
use rand::Rng as _;
use rand_chacha::ChaCha12Rng;
use serde::{Deserialize, Serialize};
use subtle::{Choice, ConstantTimeEq as _};

use super::{Binding, Role};
use crate::config::HubConfig;

/// Longest token looked at, in bytes.
const MAX_TOKEN_BYTES: usize = 512;
/// Most users with a token.
pub const MAX_USERS: usize = 1_000;
/// The form that is written.
const VERSION: u32 = 2;

/// A user with a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Whom it stands for.
    pub name: String,
    /// SHA-256 of the token.
    hash: Digest,
    /// What it may do.
    pub bindings: Vec<Binding>,
    /// When the user was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// When the token ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// All users with a token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tokens {
    users: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    users: Vec<Entry>,
}

#[derive(Deserialize)]
struct BeforeRoles {
    tokens: Vec<Nameless>,
}

#[derive(Deserialize)]
struct Nameless {
    name: String,
    hash: Digest,
}

/// The list of users cannot be used, or not so.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Not readable or writable.
    #[error(transparent)]
    File(#[from] DurableError),
    /// No copy is whole.
    #[error(
        "{0} is missing or damaged, so nobody could log in; restore it from a backup, or run `cloudcore token` to make a new administrator's token"
    )]
    Lost(String),
    /// Not what it should be.
    #[error("the list of API tokens has no readable form: {0}; restore it from a backup, or start the newer cloudcore")]
    Form(#[from] serde_json::Error),
    /// Of a later version.
    #[error("the list of API tokens has form {0}, this cloudcore reads up to {VERSION}; start the newer cloudcore")]
    Newer(u32),
    /// There is one of that name.
    #[error("there is a user {0} already; delete it first, or `crossdock user rotate {0}` for a new token")]
    Exists(String),
    /// There is none of that name.
    #[error("there is no user {0}; `crossdock user list` shows them")]
    Unknown(String),
    /// Too many.
    #[error("there are {MAX_USERS} users, which is the bound; delete some that are not used any more")]
    Full,
    /// Nobody could make users any more. An administrator may do all that there is, so none raises itself.
    #[error("{0} is the last administrator of the fleet whose token does not expire; make another one first")]
    LastAdmin(String),
}

/// What a token comes to.
#[derive(Debug, Clone, PartialEq)]
pub enum Known<'a> {
    /// Nobody's.
    No,
    /// Somebody's, and at its end.
    Expired(&'a Entry),
    /// Somebody's.
    Yes(&'a Entry),
}

impl Tokens {
    /// Reads the list of a data folder.
    ///
    /// # Errors
    /// When it is missing, damaged or unreadable: the API does not start without it.
    pub fn load(config: &HubConfig) -> Result<Tokens, AuthError> {
        let record = Record::at(config.api_tokens());
        let bytes = match record.load_and_mend()? {
            Loaded::Good(bytes) => bytes,
            Loaded::Fallback(bytes) => {
                tracing::warn!(path = %record.path().display(), "the list of API tokens is damaged; the copy before is used");
                bytes
            }
            Loaded::Absent | Loaded::Lost => return Err(AuthError::Lost(record.path().display().to_string())),
        };
        Tokens::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Tokens, AuthError> {
        let value: serde_json::Value = serde_json::from_slice(bytes)?;
        if value.get("tokens").is_some() {
            let old: BeforeRoles = serde_json::from_value(value)?;
            let admin = |Nameless { name, hash }| Entry {
                name,
                hash,
                bindings: vec![Binding::of_fleet(Role::Admin)],
                created: None,
                expires: None,
            };
            return Ok(Tokens { users: old.tokens.into_iter().map(admin).collect() });
        }
        let written: Written = serde_json::from_value(value)?;
        if written.version > VERSION {
            return Err(AuthError::Newer(written.version));
        }
        Ok(Tokens { users: written.users })
    }

    fn save(&self, config: &HubConfig) -> Result<(), AuthError> {
        let written = Written { version: VERSION, users: self.users.clone() };
        Ok(Record::at(config.api_tokens()).store(&serde_json::to_vec_pretty(&written)?)?)
    }

    /// Makes a token for `name`, in place of any that it had, and writes the list. The token is nowhere else. A user
    /// that is new is an administrator; one that is known keeps what it may do.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn issue(&mut self, config: &HubConfig, name: &str, seed: &Seed) -> Result<String, AuthError> {
        let token = text_of(&seed.bytes::<32>(&format!("API token of {name}")));
        let hash = Digest::of(token.as_bytes());
        match self.users.iter_mut().find(|entry| entry.name == name) {
            Some(entry) => (entry.hash, entry.expires) = (hash, None),
            None => self.users.push(Entry {
                name: name.into(),
                hash,
                bindings: vec![Binding::of_fleet(Role::Admin)],
                created: None,
                expires: None,
            }),
        }
        self.save(config)?;
        Ok(token)
    }

    /// Whose a token is. Takes the same time whichever entry fits.
    #[must_use]
    pub fn find(&self, token: &str, now: Timestamp) -> Known<'_> {
        if token.len() > MAX_TOKEN_BYTES {
            return Known::No;
        }
        let hash = Digest::of(token.as_bytes());
        let mut found = Known::No;
        for entry in &self.users {
            let fits: Choice = entry.hash.as_bytes().ct_eq(hash.as_bytes());
            if bool::from(fits) {
                found = if entry.is_over(now) { Known::Expired(entry) } else { Known::Yes(entry) };
            }
        }
        found
    }

    /// All of them.
    #[must_use]
    pub fn users(&self) -> &[Entry] {
        &self.users
    }

    fn position(&self, name: &str) -> Result<usize, AuthError> {
        let at = self.users.iter().position(|entry| entry.name == name);
        at.ok_or_else(|| AuthError::Unknown(name.chars().take(80).collect()))
    }

    /// Whether anybody but `name` can still make users tomorrow.
    fn check_other_admin(&self, name: &str) -> Result<(), AuthError> {
        let lasts = |entry: &&Entry| entry.expires.is_none() && entry.is_fleet_admin();
        match self.users.iter().filter(|entry| entry.name != name).any(|entry| lasts(&entry)) {
            true => Ok(()),
            false => Err(AuthError::LastAdmin(name.into())),
        }
    }
}

impl Entry {
    fn is_over(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }

    fn is_fleet_admin(&self) -> bool {
        self.bindings.contains(&Binding::of_fleet(Role::Admin))
    }
}

fn text_of(secret: &[u8; 32]) -> String {
    format!("cda1.{}", BASE64URL_NOPAD.encode(secret))
}

/// The users of a hub that runs: looked up for every request, changed through the API. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Users(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: HubConfig,
    env: Env,
    tokens: RwLock<Arc<Tokens>>,
    /// When each was last let in; for people, and forgotten with the process.
    used: Mutex<BTreeMap<String, Timestamp>>,
    secrets: Mutex<ChaCha12Rng>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

impl Users {
    /// The users that `tokens` lists.
    #[must_use]
    pub fn new(config: &HubConfig, env: &Env, tokens: Tokens) -> Users {
        let secrets = env.seed.stream(&format!("API tokens since {}", env.wall.now()));
        Users(Arc::new(Inner {
            config: config.clone(),
            env: env.clone(),
            tokens: RwLock::new(Arc::new(tokens)),
            used: Mutex::default(),
            secrets: Mutex::new(secrets),
            changing: tokio::sync::Mutex::default(),
        }))
    }

    /// Who there is now.
    #[must_use]
    pub fn all(&self) -> Arc<Tokens> {
        Arc::clone(&self.0.tokens.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes that somebody was let in.
    pub fn note_use(&self, name: &str, now: Timestamp) {
        let mut used = self.0.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = used.get_mut(name) {
            *at = now;
        } else if used.len() < MAX_USERS {
            used.insert(name.to_owned(), now);
        }
    }

    /// When somebody was last let in, as far as this process knows.
    #[must_use]
    pub fn last_used(&self, name: &str) -> Option<Timestamp> {
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }

    /// Makes a user; its token is nowhere else.
    ///
    /// # Errors
    /// When there is one of that name, there are too many, or the list cannot be written.
    pub async fn create(
        &self,
        name: &Name,
        bindings: Vec<Binding>,
        expires: Option<Timestamp>,
    ) -> Result<(Entry, String), AuthError> {
        let (token, hash) = self.draw();
        let now = self.0.env.wall.now();
        let entry = Entry { name: name.to_string(), hash, bindings, created: Some(now), expires };
        let new = entry.clone();
        self.change(move |tokens| {
            if tokens.position(&new.name).is_ok() {
                return Err(AuthError::Exists(new.name));
            }
            if tokens.users.len() >= MAX_USERS {
                return Err(AuthError::Full);
            }
            tokens.users.push(new);
            Ok(())
        })
        .await?;
        Ok((entry, token))
    }

    /// Gives a user a new token; the one before is nobody's from now on. A token that had an end has none unless
    /// `expires` names one.
    ///
    /// # Errors
    /// When there is none of that name, or the list cannot be written.
    pub async fn rotate(&self, name: &str, expires: Option<Timestamp>) -> Result<(Entry, String), AuthError> {
        let (token, hash) = self.draw();
        let name = name.to_owned();
        let entry = self
            .change(move |tokens| {
                let at = tokens.position(&name)?;
                if expires.is_some() {
                    tokens.check_other_admin(&name)?;
                }
                let entry = tokens.users.get_mut(at).ok_or(AuthError::Unknown(name))?;
                (entry.hash, entry.expires) = (hash, expires);
                Ok(entry.clone())
            })
            .await?;
        Ok((entry, token))
    }

    /// Changes what a user may do: it and what it was before. What it follows at that moment ends.
    ///
    /// # Errors
    /// When there is none of that name, it is the last administrator and would be none, or the list cannot be written.
    pub async fn bind(&self, name: &str, bindings: Vec<Binding>) -> Result<(Entry, Entry), AuthError> {
        let name = name.to_owned();
        self.change(move |tokens| {
            let at = tokens.position(&name)?;
            let before = tokens.users.get(at).cloned().ok_or_else(|| AuthError::Unknown(name.clone()))?;
            let after = Entry { bindings, ..before.clone() };
            if before.is_fleet_admin() && !after.is_fleet_admin() {
                tokens.check_other_admin(&name)?;
            }
            if let Some(entry) = tokens.users.get_mut(at) {
                *entry = after.clone();
            }
            Ok((after, before))
        })
        .await
    }

    /// Takes a user away; what it follows at that moment ends.
    ///
    /// # Errors
    /// When there is none of that name, it is the last administrator, or the list cannot be written.
    pub async fn delete(&self, name: &str) -> Result<Entry, AuthError> {
        let owned = name.to_owned();
        let entry = self
            .change(move |tokens| {
                let at = tokens.position(&owned)?;
                tokens.check_other_admin(&owned)?;
                Ok(tokens.users.remove(at))
            })
            .await?;
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        Ok(entry)
    }

    /// Changes the list as it is on disk: `cloudcore token` may have written it meanwhile. What is on disk is what
    /// counts from then on.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Tokens) -> Result<T, AuthError> + Send + 'static,
    ) -> Result<T, AuthError> {
        let _one = self.0.changing.lock().await;
        let config = self.0.config.clone();
        let work = move || {
            let mut tokens = Tokens::load(&config)?;
            let value = change(&mut tokens)?;
            tokens.save(&config)?;
            Ok::<_, AuthError>((tokens, value))
        };
        let (tokens, value) = self.0.env.blocking.run(work).await?;
        *self.0.tokens.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tokens);
        Ok(value)
    }

    fn draw(&self) -> (String, Digest) {
        let mut secret = [0; 32];
        self.0.secrets.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut secret);
        let token = text_of(&secret);
        let hash = Digest::of(token.as_bytes());
        (token, hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-03-01T06:00:00Z".parse().unwrap()
    }

    fn name_of<'a>(known: &Known<'a>) -> Option<&'a str> {
        match known {
            Known::Yes(entry) => Some(&entry.name),
            _ => None,
        }
    }

    #[test]
    fn a_token_is_known_by_its_hash_alone() {
        let folder = tempfile::tempdir().unwrap();
        let config = HubConfig::new(folder.path(), "f".parse().unwrap());
        assert!(matches!(Tokens::load(&config), Err(AuthError::Lost(_))));
        let mut tokens = Tokens::default();
        let admin = tokens.issue(&config, "admin", &Seed::from_u64(1)).unwrap();
        let ci = tokens.issue(&config, "ci", &Seed::from_u64(1)).unwrap();
        let loaded = Tokens::load(&config).unwrap();
        let of = |tokens: &Tokens, token: &str| name_of(&tokens.find(token, now())).map(str::to_owned);
        assert_eq!((of(&loaded, &admin), of(&loaded, &ci)), (Some("admin".into()), Some("ci".into())));
        for bad in ["", "cda1.", &admin[1..], &format!("{admin}x"), &"x".repeat(1000)] {
            assert_eq!(of(&loaded, bad), None, "{bad}");
        }
        assert!(!std::fs::read_to_string(config.api_tokens()).unwrap().contains(&admin[5..]));

        let newer = tokens.issue(&config, "admin", &Seed::from_u64(2)).unwrap();
        let loaded = Tokens::load(&config).unwrap();
        let all = [&admin, &newer, &ci].map(|token| of(&loaded, token));
        assert_eq!(all, [None, Some("admin".into()), Some("ci".into())]);
    }

    #[test]
    fn files_of_before_there_were_roles_are_read_and_those_of_later_are_not() {
        let hash = Digest::of(b"cda1.x");
        let old = format!(r#"{{"tokens": [{{"name": "admin", "hash": "{hash}"}}]}}"#);
        let tokens = Tokens::parse(old.as_bytes()).unwrap();
        let Known::Yes(entry) = tokens.find("cda1.x", now()) else { panic!("not known") };
        assert_eq!((entry.name.as_str(), &entry.bindings[..]), ("admin", &[Binding::of_fleet(Role::Admin)][..]));

        // This is the form on disk; it is not to change.
        let golden = format!(
            r#"{{"version": 2, "users": [
                {{"name": "ci", "hash": "{hash}", "bindings": [{{"role": "releaser", "apps": ["scan-counter"]}}],
                  "created": "2026-03-01T06:00:00Z", "expires": "2026-04-01T06:00:00Z"}},
                {{"name": "duty", "hash": "{hash}", "bindings": [{{"role": "operator", "sites": ["hz-01"]}}]}}]}}"#
        );
        let tokens = Tokens::parse(golden.as_bytes()).unwrap();
        let users: Vec<_> = tokens.users().iter().map(|u| (u.name.as_str(), u.bindings[0].to_string())).collect();
        assert_eq!(users, [("ci", "releaser for scan-counter".into()), ("duty", "operator at hz-01".into())]);
        let folder = tempfile::tempdir().unwrap();
        let config = HubConfig::new(folder.path(), "f".parse().unwrap());
        tokens.save(&config).unwrap();
        assert_eq!(Tokens::load(&config).unwrap(), tokens);
        // A hub of before there were roles wants `tokens`: it must not find it.
        assert!(!std::fs::read_to_string(config.api_tokens()).unwrap().contains("\"tokens\""));

        for (bad, word) in [
            (golden.replace("\"version\": 2", "\"version\": 3"), "newer"),
            (golden.replace("operator", "emperor"), "no readable form"),
            (golden.replace("\"sites\"", "\"site\""), "no readable form"),
        ] {
            let error = Tokens::parse(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[tokio::test]
    async fn users_are_made_rotated_and_deleted_and_one_administrator_stays() {
        let folder = tempfile::tempdir().unwrap();
        let config = HubConfig::new(folder.path(), "f".parse().unwrap());
        let env = Env::real().unwrap();
        let mut tokens = Tokens::default();
        tokens.issue(&config, "admin", &env.seed).unwrap();
        let users = Users::new(&config, &env, tokens.clone());
        let viewer = vec![Binding::of_fleet(Role::Viewer)];
        let ci: Name = "ci".parse().unwrap();
        let (_, first) = users.create(&ci, viewer.clone(), Some(now())).await.unwrap();
        assert!(matches!(users.create(&ci, viewer.clone(), None).await, Err(AuthError::Exists(_))));
        assert!(matches!(users.all().find(&first, now()), Known::Expired(_)), "it ends at that very moment");
        let (_, second) = users.rotate("ci", None).await.unwrap();
        let (_, third) = users.rotate("ci", None).await.unwrap();
        assert!(second != third && first != second);
        let all = users.all();
        let found = [&first, &second, &third].map(|token| name_of(&all.find(token, now())));
        assert_eq!(found, [None, None, Some("ci")]);

        assert!(matches!(users.delete("admin").await, Err(AuthError::LastAdmin(_))));
        assert!(matches!(users.rotate("admin", Some(now())).await, Err(AuthError::LastAdmin(_))));
        // What another process wrote meanwhile is kept.
        let other = Tokens::load(&config).unwrap().issue(&config, "second", &env.seed).unwrap();
        users.delete("ci").await.unwrap();
        assert!(matches!(users.delete("ci").await, Err(AuthError::Unknown(_))));
        assert_eq!(name_of(&users.all().find(&other, now())), Some("second"));
        users.delete("admin").await.unwrap();
        assert_eq!(Tokens::load(&config).unwrap(), *users.all());
    }
}
