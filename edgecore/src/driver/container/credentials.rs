//! Credentials for the registry of an image, out of a Docker `config.json`. Pure.
//!
//! ```json
//! {"auths": {"registry.example:5000": {"auth": "<user:password in Base64>"}}}
//! ```
//!
//! That is the form of Kubernetes' `kubernetes.io/dockerconfigjson`, and what `docker login` writes where no helper keeps
//! passwords. `username` and `password`, `identitytoken` and `registrytoken` do, too. Of several entries the one that
//! names most of the image's name counts: `registry.example/team` before `registry.example`.
//!
//! Nothing of it is in an error, and what an engine or a registry says goes through [`Credentials::hide`]: one may repeat
//! what it was told. A user's name alone is no secret.

use std::{collections::BTreeMap, fmt};

use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL};
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

/// The registry of names without one, and as `config.json` has it.
const HUB: &str = "docker.io";
const HUB_BY_OTHER_NAMES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];
/// Longest credentials, in bytes: they are a header of a request.
const MAX_BYTES: usize = 64 << 10;
/// Shorter words are not taken out of texts: they are part of others.
const MIN_HIDDEN_BYTES: usize = 4;

/// Why a secret holds no credentials for an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// It is none of Docker's `config.json`.
    #[error(
        "is no Docker config.json (line {line}, column {column}); seal one such as \
         {{\"auths\": {{\"{registry}\": {{\"auth\": \"<user:password in Base64>\"}}}}}}"
    )]
    NotAConfig {
        /// Where it is wrong. What is there is not shown.
        line: usize,
        /// The same.
        column: usize,
        /// Whose credentials were looked for.
        registry: String,
    },
    /// It has none for this registry.
    #[error(
        "holds no credentials for {registry}; its auths need an entry of that name, and what credsStore or credHelpers \
         keep elsewhere is not in it"
    )]
    NotThere {
        /// The registry.
        registry: String,
    },
    /// The entry cannot be used.
    #[error("has an entry for {registry} that cannot be used: {problem}")]
    Unusable {
        /// The registry.
        registry: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// A registry's credentials. Shown to nobody.
pub struct Credentials {
    header: Zeroizing<String>,
    hidden: Vec<Word>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// Those for the registry of `image` in a `config.json`.
    ///
    /// # Errors
    /// What is wrong with the file, without a word of it.
    pub fn find(config: &[u8], image: &str) -> Result<Credentials, CredentialsError> {
        let registry = registry_of(image).to_owned();
        let config = serde_json::from_slice::<Config>(config).map_err(|e| {
            let (line, column) = (e.line(), e.column());
            CredentialsError::NotAConfig { line, column, registry: registry.clone() }
        })?;
        let name = name_of(image);
        let fits = config.auths.into_iter().filter(|(key, _)| covers(&place(key), &name));
        match fits.max_by_key(|(key, _)| place(key).len()) {
            Some((_, entry)) => {
                entry.credentials(&registry).map_err(|problem| CredentialsError::Unusable { registry, problem })
            }
            None => Err(CredentialsError::NotThere { registry }),
        }
    }

    /// As engines want them: an `AuthConfig` of Docker's API, JSON in Base64 (RFC 4648, section 5).
    #[must_use]
    pub fn header(&self) -> &str {
        &self.header
    }

    /// A text without them.
    #[must_use]
    pub fn hide(&self, text: &str) -> String {
        let words = self.hidden.iter().map(|word| word.0.as_str()).filter(|word| word.len() >= MIN_HIDDEN_BYTES);
        words.fold(text.to_owned(), |text, word| text.replace(word, "[hidden]"))
    }
}

/// The host that a name begins with, or Docker Hub.
#[must_use]
pub fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => HUB,
    }
}

/// Registry and repository of an image, without tag and digest.
fn name_of(image: &str) -> String {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let (folders, last) = name.rsplit_once('/').map_or(("", name), |(folders, last)| (folders, last));
    let last = last.split_once(':').map_or(last, |(last, _)| last);
    let parts = [folders, last].into_iter().filter(|part| !part.is_empty());
    let name = parts.collect::<Vec<_>>().join("/");
    let registry = registry_of(image);
    match name.strip_prefix(registry) {
        Some(_) if registry != HUB || name.starts_with("docker.io/") => name,
        _ => format!("{HUB}/{name}"),
    }
}

/// What a key of `auths` means: keys may be URLs of an API's root, as of old.
fn place(key: &str) -> String {
    let key = ["https://", "http://"].into_iter().find_map(|scheme| key.strip_prefix(scheme)).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = ["/v1", "/v2"].into_iter().find_map(|root| key.strip_suffix(root)).unwrap_or(key);
    match HUB_BY_OTHER_NAMES.into_iter().find_map(|other| key.strip_prefix(other)) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{HUB}{rest}"),
        _ => key.to_owned(),
    }
}

fn covers(place: &str, name: &str) -> bool {
    let rest = name.strip_prefix(place).filter(|_| !place.is_empty());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[derive(Deserialize)]
struct Config {
    auths: BTreeMap<String, Entry>,
}

/// An entry of `auths`.
#[derive(Deserialize)]
struct Entry {
    auth: Option<Word>,
    username: Option<Word>,
    password: Option<Word>,
    identitytoken: Option<Word>,
    registrytoken: Option<Word>,
}

/// A text that is wiped.
#[derive(Default)]
struct Word(Zeroizing<String>);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Word, D::Error> {
        String::deserialize(deserializer).map(|text| Word(Zeroizing::new(text)))
    }
}

/// What engines read.
#[derive(Serialize)]
struct AuthConfig<'a> {
    username: &'a str,
    password: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    identitytoken: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    registrytoken: &'a str,
    serveraddress: &'a str,
}

impl Entry {
    fn credentials(self, registry: &str) -> Result<Credentials, &'static str> {
        let given = |word: Option<Word>| word.filter(|word| !word.0.is_empty());
        let (identity, token) = (given(self.identitytoken), given(self.registrytoken));
        let auth = given(self.auth);
        let (username, password) = match (&auth, given(self.username), given(self.password)) {
            (Some(auth), ..) => user_and_password(&auth.0)?,
            (None, Some(username), Some(password)) => (username, password),
            (None, username, password) if identity.is_some() || token.is_some() => {
                (username.unwrap_or_default(), password.unwrap_or_default())
            }
            _ => return Err("it has neither auth, nor username and password, nor a token"),
        };
        let (identity, token) = (identity.unwrap_or_default(), token.unwrap_or_default());
        let config = AuthConfig {
            username: &username.0,
            password: &password.0,
            identitytoken: &identity.0,
            registrytoken: &token.0,
            serveraddress: registry,
        };
        let bytes: usize = [&username, &password, &identity, &token].into_iter().map(|word| word.0.len()).sum();
        if bytes > MAX_BYTES {
            return Err("it is longer than 64 KiB");
        }
        // Room for all of it at once, escaped: a buffer that grows leaves copies behind.
        let mut json = Zeroizing::new(Vec::with_capacity(6 * (bytes + registry.len()) + 200));
        serde_json::to_writer(&mut *json, &config).map_err(|_| "it is no text")?;
        let header = Zeroizing::new(BASE64URL.encode(&json));
        let mut hidden: Vec<Word> = vec![Word(header.clone())];
        // As clients send both to a registry (RFC 7617), whichever form the secret has.
        if !username.0.is_empty() || !password.0.is_empty() {
            let both = Zeroizing::new([username.0.as_str(), password.0.as_str()].join(":"));
            hidden.extend([BASE64, BASE64_NOPAD].map(|base| Word(Zeroizing::new(base.encode(both.as_bytes())))));
        }
        hidden.extend([Some(password), Some(identity), Some(token), auth].into_iter().flatten());
        hidden.sort_by_key(|word| std::cmp::Reverse(word.0.len())); // one may be part of another
        Ok(Credentials { header, hidden })
    }
}

fn user_and_password(auth: &str) -> Result<(Word, Word), &'static str> {
    const PROBLEM: &str = "its auth is not user:password in Base64";
    let decoded = BASE64_NOPAD.decode(auth.trim_end_matches('=').as_bytes()).map_err(|_| PROBLEM)?;
    let decoded = Zeroizing::new(decoded);
    let text = std::str::from_utf8(&decoded).map_err(|_| PROBLEM)?;
    let (user, password) = text.split_once(':').filter(|(user, _)| !user.is_empty()).ok_or(PROBLEM)?;
    Ok((Word(Zeroizing::new(user.to_owned())), Word(Zeroizing::new(password.to_owned()))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IMAGE: &str = "registry.example:5000/team/vision@sha256:12";

    fn sent(config: &str, image: &str) -> Result<serde_json::Value, String> {
        let found = Credentials::find(config.as_bytes(), image).map_err(|e| e.to_string())?;
        Ok(serde_json::from_slice(&BASE64URL.decode(found.header().as_bytes()).unwrap()).unwrap())
    }

    fn entry(key: &str, user: &str) -> String {
        format!(r#""{key}": {{"auth": "{}"}}"#, BASE64.encode(format!("{user}:pa:ss").as_bytes()))
    }

    fn user(entries: &[String], image: &str) -> Option<String> {
        let found = sent(&format!(r#"{{"auths": {{{}}}}}"#, entries.join(",")), image).ok()?;
        Some(found["username"].as_str().unwrap().to_owned())
    }

    #[test]
    fn each_form_of_an_entry_is_read() {
        let config = |entry: &str| format!(r#"{{"auths": {{"registry.example:5000": {entry}}}, "credsStore": "x"}}"#);
        let is = |entry: &str, expected: serde_json::Value| assert_eq!(sent(&config(entry), IMAGE).unwrap(), expected);
        let host = "registry.example:5000";
        let plain = serde_json::json!({ "username": "ann", "password": "pa:ss", "serveraddress": host });
        for auth in ["YW5uOnBhOnNz", "YW5uOnBhOnNz=="] {
            is(&format!(r#"{{"auth": "{auth}", "email": null}}"#), plain.clone());
        }
        is(r#"{"username": "ann", "password": "pa:ss", "auth": ""}"#, plain);
        let token =
            serde_json::json!({ "username": "", "password": "", "identitytoken": "t0ken", "serveraddress": host });
        is(r#"{"identitytoken": "t0ken"}"#, token);
    }

    #[test]
    fn the_entry_that_says_most_counts() {
        let one = |key: &str, image: &str| user(&[entry(key, "u")], image).is_some();
        for key in ["registry.example:5000", "https://registry.example:5000/", "http://registry.example:5000/v2/"] {
            assert!(one(key, IMAGE), "{key}");
        }
        for key in ["registry.example", "example:5000", "registry.example:5000/te", "registry.example:50", ""] {
            assert!(!one(key, IMAGE), "{key}");
        }
        let several = ["registry.example:5000", "registry.example:5000/team", "registry.example:5000/team/vision"];
        let entries = [0, 1, 2].map(|at| entry(several[at], &format!("user-{at}")));
        for (image, expected) in [
            ("registry.example:5000/other/vision@sha256:12", "user-0"),
            ("registry.example:5000/team/visionary@sha256:12", "user-1"),
            ("registry.example:5000/team/vision:1.2@sha256:12", "user-2"),
        ] {
            assert_eq!(user(&entries, image).as_deref(), Some(expected), "{image}");
        }
        for image in ["vision@sha256:12", "team/vision:1@sha256:12", "docker.io/team/vision@sha256:12"] {
            assert!(one("https://index.docker.io/v1/", image) && one("docker.io", image), "{image}");
            assert!(!one("registry.example", image) && !one("docker.ioo", image), "{image}");
        }
        assert!(one("localhost", "localhost/vision@sha256:12"));
    }

    #[test]
    fn what_cannot_be_used_is_told_without_a_word_of_it() {
        let host = r#"{"auths": {"registry.example:5000": "#;
        for (config, expected) in [
            ("ann:hunter22".to_owned(), "is no Docker config.json (line 1, column 1)"),
            (r#"{"auths": "hunter22"}"#.into(), "is no Docker config.json"),
            (r#"{"registry.example:5000": {"auth": "hunter22"}}"#.into(), "is no Docker config.json"),
            (format!(r#"{host} "hunter22"}}}}"#), "is no Docker config.json"),
            (format!(r#"{host} {{"auth": {{"hunter22": 1}}}}}}}}"#), "is no Docker config.json"),
            (format!(r#"{host} {{"auth": "hunter22"}}}}}}"#), "not user:password"),
            (format!(r#"{host} {{"auth": "{}"}}}}}}"#, BASE64.encode(b":hunter22")), "not user:password"),
            (format!(r#"{host} {{"password": "hunter22"}}}}}}"#), "neither auth"),
            (format!(r#"{host} {{"identitytoken": "{}"}}}}}}"#, "hunter22".repeat(9000)), "longer than 64 KiB"),
            (
                r#"{"auths": {"other.example": {"auth": "hunter22"}}}"#.into(),
                "no credentials for registry.example:5000",
            ),
        ] {
            let said = Credentials::find(config.as_bytes(), IMAGE).unwrap_err().to_string();
            assert!(said.contains(expected) && !said.contains("hunter22"), "{config}: {said}");
        }
    }

    #[test]
    fn what_others_repeat_is_hidden() {
        let config = format!(r#"{{"auths": {{{}}}}}"#, entry("registry.example:5000", "ann"));
        let found = Credentials::find(config.as_bytes(), IMAGE).unwrap();
        let auth = BASE64.encode(b"ann:pa:ss");
        let said = found.hide(&format!("ann may not, by pa:ss, {auth} or {}", found.header()));
        assert_eq!(said, "ann may not, by [hidden], [hidden] or [hidden]");
        assert_eq!(format!("{found:?}"), "Credentials");
        // As clients of registries send a user and a password, however the secret has them.
        let apart = r#"{"auths": {"registry.example:5000": {"username": "ann", "password": "pa:ss:w"}}}"#;
        let found = Credentials::find(apart.as_bytes(), IMAGE).unwrap();
        let basic = BASE64.encode(b"ann:pa:ss:w");
        let said = found.hide(&format!("Basic {basic}, {}, ann, pa:ss:w", basic.trim_end_matches('=')));
        assert!(basic.ends_with('=') && said == "Basic [hidden], [hidden], ann, [hidden]", "{said}");
        let short = r#"{"auths": {"docker.io": {"username": "ann", "password": "a"}}}"#;
        assert_eq!(Credentials::find(short.as_bytes(), "vision").unwrap().hide("a man"), "a man");
    }

    proptest! {
        #[test]
        fn nothing_that_was_sealed_is_too_much(config in proptest::collection::vec(any::<u8>(), 0..200), image in "\\PC{0,60}") {
            let _ = Credentials::find(&config, &image); // either
        }

        #[test]
        fn what_is_sealed_is_what_is_sent(user in "[^:\\x00]{1,20}", password in "\\PC{0,20}") {
            let auth = BASE64.encode(format!("{user}:{password}").as_bytes());
            let config = serde_json::json!({ "auths": { "registry.example:5000": { "auth": auth } } }).to_string();
            let found = sent(&config, IMAGE).unwrap();
            prop_assert_eq!((found["username"].as_str(), found["password"].as_str()), (Some(&*user), Some(&*password)));
        }
    }
}
