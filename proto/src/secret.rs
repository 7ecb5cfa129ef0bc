//! Secrets for workloads, sealed to the nodes that need them. No I/O.
//!
//! A sealed secret is an ordinary age file (<https://age-encryption.org/v1>) to X25519 recipients: `age -d -i KEY FILE`
//! opens it, and what `age -r age1... -r age1...` made is one too. Recipients of an age file are anonymous, so whoever
//! seals with [`seal`] says in stanzas of the header that other programs skip what it is and to whom:
//!
//! ```text
//! -> crossdock-secret APP NAME
//! -> crossdock-to NODE age1...      one for each node
//! -> crossdock-to age1...           one for each other key, such as a person's
//! -> X25519 ...                     the same number of these
//! ```
//!
//! They are under the header's code, so who can open the file knows that the sealer wrote them; for everybody else they
//! are words, until a release that holds the file is signed. [`open`] refuses a secret that is of another app: nobody
//! who may release one app reads another's secret with it.
//!
//! Hub and broker see such files and node keys' public halves, nothing else.

use std::{
    cell::RefCell,
    collections::HashSet,
    fmt,
    io::{Read as _, Write as _},
    str::FromStr,
};

use age_core::{
    format::{FileKey, Stanza},
    secrecy::ExposeSecret as _,
};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::name::Name;

/// Largest secret, in bytes.
pub const MAX_SECRET_BYTES: usize = 1 << 20;
/// Most recipients of one secret, nodes and people together.
pub const MAX_RECIPIENTS: usize = 1000;
/// Largest sealed secret, in bytes: the largest one with its recipients, and room.
pub const MAX_SEALED_BYTES: u64 = 2 << 20;
/// Most secrets of one workload.
pub const MAX_SECRETS: usize = 64;
/// Longest name of a secret, in bytes.
pub const MAX_SECRET_NAME_BYTES: usize = 128;

const WHAT: &str = "crossdock-secret";
const TO: &str = "crossdock-to";

/// Whether a text can name a secret: a plain file name, so that it means the same everywhere.
#[must_use]
pub fn is_secret_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=MAX_SECRET_NAME_BYTES).contains(&name.len()) && name.chars().all(good) && !name.starts_with('.')
}

/// The secret key that opens what is sealed to its public half: `AGE-SECRET-KEY-1...`.
pub struct SealingKey(age::x25519::Identity);

/// The public half of a [`SealingKey`]: `age1...`.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Recipient(age::x25519::Recipient);

/// A recipient of a secret, as whoever sealed it says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SealedTo {
    /// The node; nobody for another key, such as a person's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its public sealing key. A text, so that older agents read the manifests of newer kinds of keys.
    pub key: String,
}

/// What a sealed secret says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sealed {
    /// App and name that it was sealed for. What other programs sealed does not say.
    pub of: Option<(String, String)>,
    /// To whom, as far as it says.
    pub to: Vec<SealedTo>,
    /// How many keys open it.
    pub recipients: usize,
}

/// Why a secret could not be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// A text is no public key.
    #[error("{text:?} is no age recipient ({problem}); it starts with age1 and has 62 characters")]
    Recipient {
        /// The text, shortened.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A text is no secret key.
    #[error("it holds no age identity ({0}); a line of it must start with AGE-SECRET-KEY-1")]
    Key(String),
    /// The name is none.
    #[error(
        "{0:?} cannot name a secret: write up to {MAX_SECRET_NAME_BYTES} letters, digits, '-', '_' and '.', and no '.' first"
    )]
    Name(String),
    /// It is too large.
    #[error(
        "a secret has at most {MAX_SECRET_BYTES} bytes, this one has more; make it a file of the release encrypted with a key, and that key the secret"
    )]
    TooLarge,
    /// Nobody could open it, or too many could.
    #[error("it would be sealed to {0} keys; there must be 1 to {MAX_RECIPIENTS}")]
    Recipients(usize),
    /// It is no age file.
    #[error("it is no age file ({0}); seal it with crossdock secret seal, or with age and without --armor")]
    NotAge(String),
    /// It is an age file, and damaged.
    #[error("it is damaged ({0}); seal it again: crossdock secret seal")]
    Damaged(String),
    /// It is sealed to other keys.
    #[error("none of the {} keys that it is sealed to is {key}", sealed.recipients)]
    NotForThisKey {
        /// Public half of the key that was tried.
        key: String,
        /// To whom it is.
        sealed: Box<Sealed>,
    },
    /// It was sealed for something else.
    #[error("it was sealed as secret {name} of app {app}; seal it for this one: crossdock secret seal")]
    OfAnother {
        /// The app.
        app: String,
        /// Its name there.
        name: String,
    },
}

impl SealingKey {
    /// From 32 random bytes.
    ///
    /// # Errors
    /// Never, unless the form of keys changes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<SealingKey, SecretError> {
        let hrp = bech32::Hrp::parse("age-secret-key-").map_err(|e| SecretError::Key(e.to_string()))?;
        let mut text = age_core::primitives::bech32_encode(hrp, bytes);
        let key = text.to_uppercase().parse();
        text.zeroize();
        key
    }

    /// The text that [`SealingKey::from_str`] reads.
    #[must_use]
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.to_string().expose_secret().to_owned())
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> Recipient {
        Recipient(self.0.to_public())
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({})", self.public())
    }
}

impl FromStr for SealingKey {
    type Err = SecretError;
    /// Reads the text of a key file: lines that are empty or start with `#` are skipped, as age does.
    fn from_str(text: &str) -> Result<SealingKey, SecretError> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let line = lines.next().ok_or_else(|| SecretError::Key("no line of it is a key".into()))?;
        if lines.next().is_some() {
            return Err(SecretError::Key("it holds several keys".into()));
        }
        line.parse().map(SealingKey).map_err(|problem: &str| SecretError::Key(problem.into()))
    }
}

impl FromStr for Recipient {
    type Err = SecretError;
    fn from_str(text: &str) -> Result<Recipient, SecretError> {
        text.parse().map(Recipient).map_err(|problem: &str| SecretError::Recipient {
            text: text.chars().take(80).collect(),
            problem: problem.into(),
        })
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for Recipient {
    type Error = SecretError;
    fn try_from(text: String) -> Result<Recipient, SecretError> {
        text.parse()
    }
}

impl From<Recipient> for String {
    fn from(recipient: Recipient) -> String {
        recipient.to_string()
    }
}

/// Seals `secret` to all of `to`. Of one key listed twice, both entries stay.
///
/// # Errors
/// When a bound is exceeded, the name is none, or an entry is no recipient.
pub fn seal(secret: &[u8], app: &Name, name: &str, to: &[SealedTo]) -> Result<Vec<u8>, SecretError> {
    if secret.len() > MAX_SECRET_BYTES {
        return Err(SecretError::TooLarge);
    }
    if !is_secret_name(name) {
        return Err(SecretError::Name(name.chars().take(200).collect()));
    }
    if to.is_empty() || to.len() > MAX_RECIPIENTS {
        return Err(SecretError::Recipients(to.len()));
    }
    let keys = to.iter().map(|to| to.key.parse()).collect::<Result<Vec<Recipient>, _>>()?;
    let words = Words { app: app.as_str(), name, to };
    let recipients = std::iter::once(&words as &dyn age::Recipient).chain(keys.iter().map(|key| &key.0 as _));
    let encryptor = age::Encryptor::with_recipients(recipients).map_err(|e| SecretError::Damaged(e.to_string()))?;
    let mut sealed = Vec::with_capacity(secret.len() + 300 * to.len() + 300);
    let written = encryptor.wrap_output(&mut sealed).and_then(|mut writer| {
        writer.write_all(secret)?;
        writer.finish()
    });
    written.map_err(|e| SecretError::Damaged(e.to_string()))?;
    Ok(sealed)
}

/// What a sealed secret says of itself, to who cannot open it.
///
/// # Errors
/// When it is no age file.
pub fn inspect(sealed: &[u8]) -> Result<Sealed, SecretError> {
    let reader = Reader::default();
    match decryptor(sealed)?.decrypt(std::iter::once(&reader as _)) {
        // The reader has no key to offer.
        Ok(_) | Err(age::DecryptError::NoMatchingKeys) => Ok(reader.0.into_inner()),
        Err(e) => Err(SecretError::NotAge(e.to_string())),
    }
}

/// Opens a secret of `app` that has this name in its release.
///
/// # Errors
/// When the key opens none of it, when it is damaged, too large, or of another app or name.
pub fn open(sealed: &[u8], app: &str, name: &str, key: &SealingKey) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let (secret, found) = open_any(sealed, key)?;
    match found.of {
        Some((of, called)) if of != app || called != name => Err(SecretError::OfAnother { app: of, name: called }),
        _ => Ok(secret),
    }
}

/// Opens a secret, whatever it is of, and says that.
///
/// # Errors
/// As [`open`].
pub fn open_any(sealed: &[u8], key: &SealingKey) -> Result<(Zeroizing<Vec<u8>>, Sealed), SecretError> {
    let reader = Reader::default();
    let identities: [&dyn age::Identity; 2] = [&reader, &key.0];
    let opened = decryptor(sealed)?.decrypt(identities.into_iter());
    let found = reader.0.into_inner();
    let stream = match opened {
        Ok(stream) => stream,
        Err(age::DecryptError::NoMatchingKeys) => {
            return Err(SecretError::NotForThisKey { key: key.public().to_string(), sealed: Box::new(found) });
        }
        Err(e) => return Err(SecretError::Damaged(e.to_string())),
    };
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut secret = Zeroizing::new(Vec::with_capacity(sealed.len().min(MAX_SECRET_BYTES + 1)));
    let limit = MAX_SECRET_BYTES as u64 + 1;
    stream.take(limit).read_to_end(&mut secret).map_err(|e| SecretError::Damaged(e.to_string()))?;
    if secret.len() > MAX_SECRET_BYTES {
        return Err(SecretError::TooLarge);
    }
    Ok((secret, found))
}

fn decryptor(sealed: &[u8]) -> Result<age::Decryptor<&[u8]>, SecretError> {
    if sealed.len() as u64 > MAX_SEALED_BYTES {
        return Err(SecretError::TooLarge);
    }
    age::Decryptor::new(sealed).map_err(|e| SecretError::NotAge(e.to_string()))
}

/// Writes down what is sealed and to whom; opens nothing.
struct Words<'a> {
    app: &'a str,
    name: &'a str,
    to: &'a [SealedTo],
}

impl age::Recipient for Words<'_> {
    fn wrap_file_key(&self, _: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), age::EncryptError> {
        let stanza = |tag: &str, args: Vec<String>| Stanza { tag: tag.into(), args, body: vec![] };
        let what = stanza(WHAT, vec![self.app.to_owned(), self.name.to_owned()]);
        let to = self.to.iter().map(|to| stanza(TO, to.node.iter().chain([&to.key]).cloned().collect()));
        Ok((std::iter::once(what).chain(to).collect(), HashSet::new()))
    }
}

/// Reads what [`Words`] wrote; opens nothing.
#[derive(Default)]
struct Reader(RefCell<Sealed>);

impl age::Identity for Reader {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Result<FileKey, age::DecryptError>> {
        let mut found = self.0.borrow_mut();
        match (stanza.tag.as_str(), stanza.args.as_slice()) {
            (WHAT, [app, name]) => found.of = Some((app.clone(), name.clone())),
            (TO, [key]) => found.to.push(SealedTo { node: None, key: key.clone() }),
            (TO, [node, key]) => found.to.push(SealedTo { node: Some(node.clone()), key: key.clone() }),
            (tag, _) if tag.starts_with("crossdock-") || tag.ends_with("-grease") => {}
            _ => found.recipients += 1,
        }
        None
    }
}

#[cfg(test)]
mod tests;
