//! Keys: ed25519 (RFC 8032), secret ones as PKCS#8 version 1 in PEM, which OpenSSL reads too.
//!
//! The public form and its ID are those of the other TUF writers: the ID is the SHA-256 of the
//! canonical JSON of `{keytype, keyval, scheme}`. What else stands beside these three, such as the name that we
//! write, is kept and signed, and is no part of the ID.

use std::{collections::BTreeMap, fmt};

use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use ed25519_dalek::{
    Signature as Ed25519Signature, Signer as _, SigningKey, VerifyingKey,
    pkcs8::{
        DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, KeypairBytes, spki::der::pem::LineEnding,
    },
};
use serde::{Deserialize, Serialize};

use super::json::Json;
use crate::digest::Digest;

/// A public key as metadata lists it. Of a kind that we do not know it is kept and never counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    /// `ed25519`.
    pub keytype: String,
    /// The value.
    pub keyval: KeyValue,
    /// `ed25519`.
    pub scheme: String,
    /// What other writers added, and the name that we do.
    #[serde(flatten)]
    pub other: BTreeMap<String, Json>,
}

/// Value of a public key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// 64 hex digits for ed25519.
    pub public: String,
    /// What other writers added.
    #[serde(flatten)]
    pub other: BTreeMap<String, Json>,
}

/// Kind of a key in a line of OpenSSH, and what stands before its 32 bytes (RFC 8709, section 4).
const OPENSSH_KIND: &str = "ssh-ed25519";
const OPENSSH_HEAD: &[u8] = b"\0\0\0\x0bssh-ed25519\0\0\0\x20";

/// Field of a key that holds its name for people.
const NAME_FIELD: &str = "x-crossdock-name";
/// Longest name of a key, in characters.
const MAX_NAME_CHARS: usize = 64;

impl PublicKey {
    fn of(key: &VerifyingKey) -> PublicKey {
        PublicKey {
            keytype: "ed25519".into(),
            keyval: KeyValue { public: HEXLOWER_PERMISSIVE.encode(key.as_bytes()), other: BTreeMap::new() },
            scheme: "ed25519".into(),
            other: BTreeMap::new(),
        }
    }

    /// The key of 32 bytes, as ssh-agent, tokens and certificates give it.
    ///
    /// # Errors
    /// When no such key exists on the curve.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<PublicKey, KeyError> {
        VerifyingKey::from_bytes(bytes).map(|key| PublicKey::of(&key)).map_err(|e| KeyError(e.to_string()))
    }

    /// The same key with a name for people: at most 64 characters, none of them a control character.
    #[must_use]
    pub fn named(mut self, name: &str) -> PublicKey {
        let name: String = name.trim().chars().filter(|c| !c.is_control()).take(MAX_NAME_CHARS).collect();
        if name.is_empty() {
            self.other.remove(NAME_FIELD);
        } else {
            self.other.insert(NAME_FIELD.into(), Json::Text(name));
        }
        self
    }

    /// Its name, if whoever listed it gave one. Signed with the document that holds it, like any of its fields.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self.other.get(NAME_FIELD) {
            Some(Json::Text(name)) if name.len() <= 4 * MAX_NAME_CHARS => Some(name),
            _ => None,
        }
    }

    /// Reads SubjectPublicKeyInfo in PEM, as `openssl pkey -pubout` writes it.
    ///
    /// # Errors
    /// When it is anything but an ed25519 key.
    pub fn from_pem(pem: &str) -> Result<PublicKey, KeyError> {
        VerifyingKey::from_public_key_pem(pem.trim_start())
            .map(|key| PublicKey::of(&key))
            .map_err(|e| KeyError(e.to_string()))
    }

    /// Reads a line of OpenSSH's `authorized_keys` or `NAME.pub`: `ssh-ed25519 AAAA... name`.
    ///
    /// # Errors
    /// When it is anything but an ed25519 key.
    pub fn from_openssh(line: &str) -> Result<PublicKey, OpensshError> {
        let wrong = || OpensshError(line.chars().take(60).collect());
        let mut words = line.split_whitespace();
        let (kind, body) = (words.next(), words.next().ok_or_else(wrong)?);
        let blob = BASE64.decode(body.as_bytes()).map_err(|_| wrong())?;
        let raw = blob.strip_prefix(OPENSSH_HEAD).filter(|_| kind == Some(OPENSSH_KIND)).ok_or_else(wrong)?;
        let key = PublicKey::from_bytes(raw.try_into().map_err(|_| wrong())?).map_err(|_| wrong())?;
        Ok(key.named(&words.collect::<Vec<_>>().join(" ")))
    }

    /// As such a line; `None` for keys that are not ed25519.
    #[must_use]
    pub fn to_openssh(&self) -> Option<String> {
        let blob = [OPENSSH_HEAD, &self.bytes()?].concat();
        let line = format!("{OPENSSH_KIND} {} {}", BASE64.encode(&blob), self.name().unwrap_or_default());
        Some(line.trim_end().to_owned())
    }

    /// Its ID: 64 hex digits.
    #[must_use]
    pub fn id(&self) -> String {
        let bare = PublicKey { other: BTreeMap::new(), ..self.clone() };
        let canonical = Json::of(&bare).map(|json| json.canonical()).unwrap_or_default();
        Digest::of(&canonical).hex()
    }

    /// Whether it is of the one kind that counts here, ed25519.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.keytype == "ed25519" && self.scheme == "ed25519"
    }

    /// The raw key, when it is an ed25519 key that exists on the curve.
    #[must_use]
    pub fn bytes(&self) -> Option<[u8; 32]> {
        self.verifying().map(|key| key.to_bytes())
    }

    /// What tells keys apart, whatever their IDs. `None` for keys that never count.
    pub(super) fn identity(&self) -> Option<[u8; 32]> {
        #[cfg(feature = "conformance")]
        if !self.is_ours() {
            return Some(*Digest::of(self.keyval.public.as_bytes()).as_bytes());
        }
        self.bytes()
    }

    fn verifying(&self) -> Option<VerifyingKey> {
        if !self.is_ours() {
            return None;
        }
        let raw = HEXLOWER_PERMISSIVE.decode(self.keyval.public.as_bytes()).ok()?;
        VerifyingKey::from_bytes(&raw.try_into().ok()?).ok()
    }

    /// Whether `signature` (128 hex digits) is this key's over `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &str) -> bool {
        #[cfg(feature = "conformance")]
        if !self.is_ours() {
            return super::foreign::verifies(self, message, signature);
        }
        let check = || {
            let raw = HEXLOWER_PERMISSIVE.decode(signature.as_bytes()).ok()?;
            let signature = Ed25519Signature::from_slice(&raw).ok()?;
            self.verifying()?.verify_strict(message, &signature).ok()
        };
        check().is_some()
    }
}

/// A text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not an unencrypted ed25519 key in PKCS#8 PEM ({0}); make one with `crossdock keys new NAME` or `openssl genpkey -algorithm ed25519`"
)]
pub struct KeyError(String);

/// A line is no public key of OpenSSH.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an ed25519 key as OpenSSH writes it: ssh-ed25519 AAAA... NAME, as `crossdock keys show` and `ssh-add -L` print it"
)]
pub struct OpensshError(String);

/// A key that signs. Cleared from memory when dropped; never printed.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key of 32 secret bytes.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> SecretKey {
        SecretKey(SigningKey::from_bytes(seed))
    }

    /// Reads PKCS#8 PEM, version 1 or 2.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn from_pem(pem: &str) -> Result<SecretKey, KeyError> {
        let key = SigningKey::from_pkcs8_pem(pem.trim_start()).map_err(|e| KeyError(e.to_string()))?;
        Ok(SecretKey(key))
    }

    /// Reads PKCS#8 DER, version 1 or 2.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn from_der(der: &[u8]) -> Result<SecretKey, KeyError> {
        SigningKey::from_pkcs8_der(der).map(SecretKey).map_err(|e| KeyError(e.to_string()))
    }

    /// As PKCS#8 version 1 PEM.
    ///
    /// # Errors
    /// None that is known; encoding is fallible by its type.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        let bytes = KeypairBytes { secret_key: self.0.to_bytes(), public_key: None };
        let pem = bytes.to_pkcs8_pem(LineEnding::LF).map_err(|e| KeyError(e.to_string()))?;
        Ok(pem.as_str().to_owned())
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey::of(&self.0.verifying_key())
    }

    /// ID of its public half.
    #[must_use]
    pub fn id(&self) -> String {
        self.public().id()
    }

    /// Signs: 128 hex digits.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> String {
        HEXLOWER_PERMISSIVE.encode(&self.0.sign(message).to_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({}, ..)", short(&self.id())) // the secret stays out of logs
    }
}

/// The first digits of an ID, for people.
#[must_use]
pub fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_id_is_that_of_the_other_writers() {
        let key = SecretKey::from_seed(&[0; 32]);
        let public = "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29";
        assert_eq!(key.public().keyval.public, public);
        // As securesystemslib 1.6 computes it.
        assert_eq!(key.id(), "4cc3f338069d638e761ed397f5c53df4129a276face46a446c202617331ca1b3");
    }

    #[test]
    fn a_name_and_unknown_fields_are_kept_and_are_no_part_of_the_id() {
        let key = SecretKey::from_seed(&[0; 32]).public();
        let named = key.clone().named(" Ann\u{e9} \"A\"\n ");
        assert_eq!((named.name(), named.id()), (Some("Ann\u{e9} \"A\""), key.id()));
        assert_eq!(named.clone().named(""), key);
        assert_eq!(key.clone().named(&"x".repeat(1000)).name().map(str::len), Some(64));
        let mut json = serde_json::to_value(&named).unwrap();
        json["x-other"] = serde_json::json!({"a": [1]});
        let read: PublicKey = serde_json::from_value(json.clone()).unwrap();
        assert_eq!((serde_json::to_value(&read).unwrap(), read.id()), (json, key.id()));
        assert_eq!(PublicKey::from_bytes(&key.bytes().unwrap()).unwrap(), key);
        assert!((0..=255).any(|n| PublicKey::from_bytes(&[n; 32]).is_err()));
    }

    #[test]
    fn lines_of_openssh_are_read_and_written() {
        // As ssh-keygen wrote it.
        let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEhJntxLwQTIZg6wj/AJR3nm0rVjDp7UDOJ5PLBye/7q ann at depot";
        let read = PublicKey::from_openssh(line).unwrap();
        assert_eq!((read.name(), read.to_openssh().as_deref()), (Some("ann at depot"), Some(line)));
        let key = SecretKey::from_seed(&[0; 32]).public().named("Ann B");
        let own = key.to_openssh().unwrap();
        assert_eq!(PublicKey::from_openssh(&own).unwrap(), key);
        assert_eq!(PublicKey::from_openssh(&format!(" {own}\n")).unwrap().name(), Some("Ann B"));
        let cut: String = own.chars().take(50).collect();
        for bad in ["", "ssh-ed25519", "ssh-rsa AAAA", &cut, &own.replace("ssh-ed25519 ", "ssh-rsa ")] {
            assert!(PublicKey::from_openssh(bad).unwrap_err().to_string().contains("ssh-add -L"), "{bad}");
        }
    }

    #[test]
    fn secret_keys_are_pkcs8_version_1_and_stay_secret() {
        let key = SecretKey::from_seed(&[7; 32]);
        let pem = key.to_pem().unwrap();
        assert_eq!(SecretKey::from_pem(&pem).unwrap().id(), key.id());
        // Version 1 holds 48 bytes: OpenSSL refuses the longer version 2.
        let body: String = pem.lines().filter(|l| !l.starts_with('-')).collect();
        let der = data_encoding::BASE64.decode(body.as_bytes()).unwrap();
        assert_eq!((der.len(), der[4]), (48, 0));
        assert!(!format!("{key:?}").contains("0707"));
        for bad in ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "ssh-ed25519 AAAA"] {
            assert!(SecretKey::from_pem(bad).unwrap_err().to_string().contains("crossdock keys new"), "{bad}");
        }
    }

    #[test]
    fn only_sound_ed25519_signatures_count() {
        let key = SecretKey::from_seed(&[7; 32]);
        let (public, good) = (key.public(), key.sign(b"message"));
        assert!(public.verifies(b"message", &good));
        assert!(!public.verifies(b"massage", &good));
        for bad in ["", "00", "zz", &good[2..], &format!("{good}00")] {
            assert!(!public.verifies(b"message", bad), "{bad}");
        }
        let mut other = public.clone();
        other.keytype = "rsa".into();
        assert!(!other.verifies(b"message", &good));
        other = public.clone();
        other.scheme = "ed448".into();
        assert!(!other.verifies(b"message", &good));
        // A point of small order: without the strict rules this signature is good for every message.
        other = public.clone();
        other.keyval.public = format!("01{}", "00".repeat(31));
        assert!(other.bytes().is_some() && !other.verifies(b"message", &format!("01{}", "00".repeat(63))));
        other = public;
        other.keyval.public = "nonsense".into();
        assert!(!other.verifies(b"message", &good));
        assert_eq!(other.bytes(), None);
    }
}
