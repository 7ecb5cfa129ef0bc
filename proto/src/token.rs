//! The join token that a technician pastes: secret, pin of the hub's CA, pin of the first trust root.
//!
//! Text form: `cdk1.` and base64url (RFC 4648, unpadded) of a JSON document, so it survives chat
//! programs and later versions can add fields.

use std::{fmt, str::FromStr};

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use crate::{digest::Digest, name::Name};

const PREFIX: &str = "cdk1.";
/// Longest token accepted, in bytes.
pub const MAX_TOKEN_BYTES: usize = 2048;

/// A join token in full. It admits a box to the fleet: show it once, store only its hash.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Name of the `JoinToken` object.
    pub id: String,
    /// The secret, 16 random bytes in base64url.
    pub secret: String,
    /// SHA-256 of the hub CA's SubjectPublicKeyInfo: whom the box may believe.
    pub ca: Digest,
    /// SHA-256 of the first `root.json` of the release repository: whose releases the box may run.
    pub root: Digest,
    /// SHA-256 of the director's first `root.json`: whose orders the box may take. Hubs of before it name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub director: Option<Digest>,
    /// The fleet, for its topics at a broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<Name>,
}

/// A text is no join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is not a join token ({0}); copy the whole text that `crossdock token create` printed, from cdk1. on")]
pub struct TokenError(&'static str);

impl Token {
    /// What the hub keeps instead of the secret.
    #[must_use]
    pub fn secret_hash(secret: &str) -> Digest {
        Digest::of(format!("crossdock join token {secret}").as_bytes())
    }
}

impl FromStr for Token {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Token, TokenError> {
        let text = text.trim();
        if text.len() > MAX_TOKEN_BYTES {
            return Err(TokenError("it is too long"));
        }
        let body = text.strip_prefix(PREFIX).ok_or(TokenError("it does not start with cdk1."))?;
        let json =
            BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| TokenError("a character is wrong or missing"))?;
        serde_json::from_slice(&json).map_err(|_| TokenError("it is incomplete"))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&json))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}, ..)", self.id) // the secret stays out of logs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_goes_both_ways_and_hides_in_debug() {
        let token = Token {
            id: "t-1".into(),
            secret: "s3cret".into(),
            ca: Digest::of(b"ca"),
            root: Digest::of(b"root"),
            director: Some(Digest::of(b"director")),
            fleet: None,
        };
        let text = token.to_string();
        assert_eq!(text.parse::<Token>().unwrap(), token);
        assert!(!format!("{token:?}").contains("s3cret"));
        for bad in ["", "cdk1.", "cdk1.!!", "cdk2.e30", &text[..text.len() - 9]] {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
    }
}
