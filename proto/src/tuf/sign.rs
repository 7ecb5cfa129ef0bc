//! Writing metadata: a document that collects signatures.
//!
//! Signing touches only the list of signatures, so several people can sign one document one after the
//! other, on machines of their own. Used by the release engineer's tool.

use jiff::Timestamp;
use serde::Serialize;

use super::{
    error::TufError,
    json::Json,
    key::{PublicKey, SecretKey, short},
    schema::{Offered, Role, Signature},
};

/// What signs for a key, wherever its secret half is: a file, an agent, a token.
pub trait Signer {
    /// The public half.
    fn public_key(&self) -> PublicKey;
    /// Signs: 128 hex digits.
    ///
    /// # Errors
    /// When whoever holds the secret half refuses, is gone, or answers something else.
    fn try_sign(&self, message: &[u8]) -> Result<String, SignerError>;
}

/// A key did not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key {key} did not sign: {problem}")]
pub struct SignerError {
    /// The key, shortened.
    pub key: String,
    /// What is wrong, and how to mend it.
    pub problem: String,
}

impl Signer for SecretKey {
    fn public_key(&self) -> PublicKey {
        self.public()
    }
    fn try_sign(&self, message: &[u8]) -> Result<String, SignerError> {
        Ok(self.sign(message))
    }
}

impl<S: Signer + ?Sized> Signer for Box<S> {
    fn public_key(&self) -> PublicKey {
        (**self).public_key()
    }
    fn try_sign(&self, message: &[u8]) -> Result<String, SignerError> {
        (**self).try_sign(message)
    }
}

/// A document that can be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    signatures: Vec<Signature>,
    signed: Json,
}

#[derive(Serialize)]
struct Envelope<'a> {
    signatures: &'a [Signature],
    signed: &'a Json,
}

impl Document {
    /// A new document without signatures.
    ///
    /// # Errors
    /// When the content cannot be metadata of its role.
    pub fn new<T: Role>(content: &T) -> Result<Document, TufError> {
        let signed = Json::of(content).map_err(|problem| TufError::Malformed { role: T::NAME, problem })?;
        let document = Document { signatures: vec![], signed };
        document.offered::<T>()?;
        Ok(document)
    }

    /// Reads a document of the role `T` to sign it.
    ///
    /// # Errors
    /// As [`Offered::parse`].
    pub fn parse<T: Role>(text: &str) -> Result<Document, TufError> {
        let offered = Offered::<T>::parse(text)?;
        let malformed = |problem| TufError::Malformed { role: T::NAME, problem };
        let json = Json::parse(text).map_err(malformed)?;
        let signed = json.get("signed").cloned().ok_or_else(|| malformed("the field \"signed\" is missing".into()))?;
        Ok(Document { signatures: offered.signatures, signed })
    }

    /// Adds the signature of a key, in place of an earlier one of the same key.
    pub fn sign(&mut self, key: &SecretKey) {
        self.append(Signature { keyid: key.id(), sig: key.sign(&self.signed.canonical()) });
    }

    /// As [`Document::sign`], by whatever holds the key. What comes back is verified before it is taken.
    ///
    /// # Errors
    /// When it does not sign, or signs something else.
    pub fn sign_with(&mut self, signer: &(impl Signer + ?Sized)) -> Result<(), SignerError> {
        let (key, message) = (signer.public_key(), self.signed.canonical());
        let sig = signer.try_sign(&message)?;
        if !key.verifies(&message, &sig) {
            let problem = "its signature does not verify; what holds its secret half signs with another key, or another form of signature";
            return Err(SignerError { key: short(&key.id()), problem: problem.into() });
        }
        self.append(Signature { keyid: key.id(), sig });
        Ok(())
    }

    /// Adds a signature, in place of an earlier one of the same key. Whether it is good is for the reader to see.
    pub fn append(&mut self, signature: Signature) {
        self.signatures.retain(|old| old.keyid != signature.keyid);
        self.signatures.push(signature);
        self.signatures.sort_by(|a, b| a.keyid.cmp(&b.keyid));
    }

    /// The same content without signatures.
    #[must_use]
    pub fn unsigned(&self) -> Document {
        Document { signatures: vec![], signed: self.signed.clone() }
    }

    /// The signatures, by key ID.
    #[must_use]
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// As a reader sees it.
    ///
    /// # Errors
    /// As [`Offered::parse`].
    pub fn offered<T: Role>(&self) -> Result<Offered<T>, TufError> {
        Offered::parse(&self.text())
    }

    /// The document as it is published: one line, keys in order, so that the same content gives the same bytes.
    #[must_use]
    pub fn text(&self) -> String {
        let envelope = Envelope { signatures: &self.signatures, signed: &self.signed };
        // Serialising maps with text keys into memory has no way to fail; a reader would refuse an empty text.
        serde_json::to_string(&envelope).map(|text| text + "\n").unwrap_or_default()
    }
}

/// A time without a fraction of a second, as metadata writes it.
#[must_use]
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
