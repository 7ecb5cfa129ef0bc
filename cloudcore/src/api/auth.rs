//! Who may talk to the API: bearer tokens (RFC 6750), of which the hub keeps nothing but hashes.
//!
//! The file `api-tokens.json` in the data folder lists a name and a SHA-256 for each. A token has 256
//! random bits, so a plain hash is enough and there is nothing to guess.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use data_encoding::BASE64URL_NOPAD;
use proto::{
    digest::Digest,
    durable::{DurableError, Loaded, Record},
    env::Seed,
};
use serde::{Deserialize, Serialize};
use subtle::{Choice, ConstantTimeEq as _};
use tokio::sync::OwnedSemaphorePermit;

use super::{Api, ApiError};
use crate::config::HubConfig;

/// Longest token looked at, in bytes.
const MAX_TOKEN_BYTES: usize = 512;

/// Who is admitted.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Tokens {
    tokens: Vec<Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    /// Whom it stands for.
    name: String,
    /// SHA-256 of the token.
    hash: Digest,
}

/// The list of tokens cannot be used.
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
    #[error("the list of API tokens has no readable form")]
    Form(#[from] serde_json::Error),
}

/// The user behind a request.
#[derive(Debug, Clone)]
pub(crate) struct User(pub(crate) Arc<str>);

impl Tokens {
    /// Reads the list of a data folder.
    ///
    /// # Errors
    /// When it is missing, damaged or unreadable: the API does not start without it.
    pub fn load(config: &HubConfig) -> Result<Tokens, AuthError> {
        let record = Record::at(config.api_tokens());
        match record.load_and_mend()? {
            Loaded::Good(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Loaded::Fallback(bytes) => {
                tracing::warn!(path = %record.path().display(), "the list of API tokens is damaged; the copy before is used");
                Ok(serde_json::from_slice(&bytes)?)
            }
            Loaded::Absent | Loaded::Lost => Err(AuthError::Lost(record.path().display().to_string())),
        }
    }

    /// Makes a token for `name`, in place of any that it had, and writes the list. The token is nowhere else.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn issue(&mut self, config: &HubConfig, name: &str, seed: &Seed) -> Result<String, AuthError> {
        let token = format!("cda1.{}", BASE64URL_NOPAD.encode(&seed.bytes::<32>(&format!("API token of {name}"))));
        self.tokens.retain(|entry| entry.name != name);
        self.tokens.push(Entry { name: name.into(), hash: Digest::of(token.as_bytes()) });
        Record::at(config.api_tokens()).store(&serde_json::to_vec_pretty(self)?)?;
        Ok(token)
    }

    /// Whom a token stands for. Takes the same time whichever entry fits.
    fn user(&self, token: &str) -> Option<&str> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let hash = Digest::of(token.as_bytes());
        let mut found = None;
        for entry in &self.tokens {
            let fits: Choice = entry.hash.as_bytes().ct_eq(hash.as_bytes());
            if bool::from(fits) {
                found = Some(entry.name.as_str());
            }
        }
        found
    }
}

/// Lets through who has a token, while there is capacity.
pub(crate) async fn admit(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let header = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    let Some(user) = token.and_then(|token| api.tokens.user(token)).map(Arc::from) else {
        let text = if token.is_some() {
            "the token is wrong or no longer valid"
        } else {
            "send a token: Authorization: Bearer TOKEN"
        };
        return ApiError::new(StatusCode::UNAUTHORIZED, "Unauthorized", text).into_response();
    };
    // Held until the answer starts; streams hold a permit of their own.
    let Ok(_permit): Result<OwnedSemaphorePermit, _> = Arc::clone(&api.requests).try_acquire_owned() else {
        return ApiError::unavailable("the hub is busy with other requests; try again").into_response();
    };
    request.extensions_mut().insert(User(user));
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_hash_alone() {
        let folder = tempfile::tempdir().unwrap();
        let config = HubConfig::new(folder.path(), "f".parse().unwrap());
        assert!(matches!(Tokens::load(&config), Err(AuthError::Lost(_))));
        let mut tokens = Tokens::default();
        let admin = tokens.issue(&config, "admin", &Seed::from_u64(1)).unwrap();
        let ci = tokens.issue(&config, "ci", &Seed::from_u64(1)).unwrap();
        let loaded = Tokens::load(&config).unwrap();
        assert_eq!((loaded.user(&admin), loaded.user(&ci)), (Some("admin"), Some("ci")));
        for bad in ["", "cda1.", &admin[1..], &format!("{admin}x"), &"x".repeat(1000)] {
            assert_eq!(loaded.user(bad), None, "{bad}");
        }
        assert!(!std::fs::read_to_string(config.api_tokens()).unwrap().contains(&admin[5..]));

        let newer = tokens.issue(&config, "admin", &Seed::from_u64(2)).unwrap();
        let loaded = Tokens::load(&config).unwrap();
        assert_eq!((loaded.user(&admin), loaded.user(&newer), loaded.user(&ci)), (None, Some("admin"), Some("ci")));
    }
}
