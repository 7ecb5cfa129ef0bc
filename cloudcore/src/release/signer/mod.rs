//! Keys by reference: `FILE`, `agent:WHICH` or `pkcs11:WHICH`. The secret half stays where it is; what signs is a
//! [`Signer`]. Called by the command line.
//!
//! | reference | secret half |
//! |---|---|
//! | a path | in the file, which may be encrypted: [`super::keys`] |
//! | `agent`, `agent:WHICH` | at the ssh-agent behind `SSH_AUTH_SOCK`: [`agent`] |
//! | `pkcs11:token=NAME;object=LABEL` | on a token, behind its maker's library: [`pkcs11`] |

pub mod agent;
pub mod pkcs11;

use std::{fmt, path::PathBuf, str::FromStr};

use proto::tuf::{PublicKey, Signer};

use super::{
    ReleaseError,
    keys::{self, AskPassphrase},
};

/// Where a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyRef {
    /// In a file.
    File(PathBuf),
    /// At the ssh-agent: fingerprint, comment or key ID; empty for the only one that it holds.
    Agent(String),
    /// On a token.
    Token(pkcs11::TokenRef),
}

impl FromStr for KeyRef {
    type Err = String;
    fn from_str(text: &str) -> Result<KeyRef, String> {
        if let Some(rest) = text.strip_prefix("pkcs11:") {
            return pkcs11::TokenRef::parse(rest).map(KeyRef::Token);
        }
        Ok(match text.strip_prefix("agent") {
            Some("") => KeyRef::Agent(String::new()),
            Some(rest) if rest.starts_with(':') => KeyRef::Agent(rest.chars().skip(1).collect()),
            _ => KeyRef::File(text.into()),
        })
    }
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyRef::File(path) => path.display().fmt(f),
            KeyRef::Agent(which) if which.is_empty() => f.write_str("agent"),
            KeyRef::Agent(which) => write!(f, "agent:{which}"),
            KeyRef::Token(token) => token.fmt(f),
        }
    }
}

impl KeyRef {
    /// The key, ready to sign.
    ///
    /// # Errors
    /// When it is not there, cannot be opened, or is of a kind that signs something else.
    pub fn signer(&self, ask: &mut dyn AskPassphrase) -> Result<Box<dyn Signer>, ReleaseError> {
        Ok(match self {
            KeyRef::File(path) => Box::new(keys::read_secret(path, ask)?),
            KeyRef::Agent(which) => Box::new(agent::Agent::from_env()?.find(which)?),
            KeyRef::Token(token) => Box::new(token.signer(ask)?),
        })
    }

    /// The public half, with its name where one is known. Asks for a passphrase only when no `NAME.pub` lies
    /// beside an encrypted file.
    ///
    /// # Errors
    /// As [`KeyRef::signer`].
    pub fn public(&self, ask: &mut dyn AskPassphrase) -> Result<PublicKey, ReleaseError> {
        match self {
            KeyRef::File(path) => keys::read_public(path, ask),
            KeyRef::Agent(which) => {
                let key = agent::Agent::from_env()?.find(which)?;
                Ok(key.public_key().named(key.comment()))
            }
            KeyRef::Token(token) => token.public(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_name_a_file_or_the_agent() {
        let read = |text: &str| text.parse::<KeyRef>().unwrap();
        assert_eq!(read("agent"), KeyRef::Agent(String::new()));
        assert_eq!(read("agent:a:b c"), KeyRef::Agent("a:b c".into()));
        for file in ["agent.pem", "./agent", "a/agent:x", ""] {
            assert_eq!(read(file), KeyRef::File(file.into()));
        }
        assert!("pkcs11:token=a".parse::<KeyRef>().is_err());
        for text in ["agent", "agent:SHA256:abc", "keys/root.pem", "pkcs11:token=a;object=b"] {
            assert_eq!(read(text).to_string(), text);
        }
    }
}
