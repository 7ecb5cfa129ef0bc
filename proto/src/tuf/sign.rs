//! Writing metadata: a document that collects signatures.
//!
//! Signing touches only the list of signatures, so several people can sign one document one after the
//! other, on machines of their own. Used by the release engineer's tool.

use jiff::Timestamp;
use serde::Serialize;

use super::{
    error::TufError,
    json::Json,
    key::SecretKey,
    schema::{Offered, Role, Signature},
};

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
        let id = key.id();
        self.signatures.retain(|signature| signature.keyid != id);
        self.signatures.push(Signature { keyid: id, sig: key.sign(&self.signed.canonical()) });
        self.signatures.sort_by(|a, b| a.keyid.cmp(&b.keyid));
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
