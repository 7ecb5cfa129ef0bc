//! A new certificate in place of the one that ends, with a key of its own.
//!
//! ```text
//! new key on disk -> ask, showing the certificate of before -> check the answer -> identity in one write
//! ```
//!
//! The hub says when: it closes a session whose certificate is past half of its life, or past its end, with
//! [`CloseCode::Renew`]. So no clock of this box takes part. A cut at any point, or a lost answer, is mended by asking
//! again with the same key: the hub lets both keys in until the new one is shown. The identity of before is kept: a hub
//! that came back from a backup knows no other.

use std::{fs, time::Duration};

use data_encoding::BASE64;
use proto::{
    digest::Digest,
    durable::{self, DurableError},
    env::Env,
    identity,
    link::{
        CloseCode,
        frame::{self, MAX_METADATA_BYTES, MAX_REQUEST_BYTES},
        message::{RenewReply, RenewRequest},
    },
};
use quinn::Connection;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, PublicKeyData as _};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use tokio::time::timeout;

use crate::config::{Identity, Paths};

/// How long the hub may take to answer.
const ANSWER: Duration = Duration::from_secs(20);

/// The certificate was not renewed; the one before is as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RenewError {
    /// The hub did not answer, or broke off.
    #[error("the hub did not answer: {0}")]
    Link(String),
    /// It refused.
    #[error("the hub refused: {0}")]
    Refused(String),
    /// The answer is not what was asked for.
    #[error("the hub's answer is refused: {0}")]
    Answer(&'static str),
    /// No key or request could be made.
    #[error("no certificate request could be made: {0}")]
    Key(#[from] rcgen::Error),
    /// A file could not be written.
    #[error(transparent)]
    Durable(#[from] DurableError),
}

/// Makes a key that is on disk before it is used, in `path`, or takes up the one that is there.
pub(crate) fn key_at(path: &std::path::Path, env: &Env, purpose: &str) -> Result<KeyPair, RenewError> {
    if let Ok(pem) = fs::read(path)
        && let Ok(der) = PrivatePkcs8KeyDer::from_pem_slice(&pem)
        && let Ok(key) = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)
    {
        return Ok(key);
    }
    // PKCS#8 version 1 (RFC 8410, section 7): the form that every tool reads.
    let mut der = vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend_from_slice(&env.seed.bytes::<32>(purpose));
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der), &PKCS_ED25519)?;
    durable::write(path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

/// Renews on a connection with [`proto::link::ALPN_RENEW`], which shows `old`.
pub(crate) async fn renew(env: &Env, paths: &Paths, old: &Identity, connection: &Connection) -> Result<(), RenewError> {
    let before = fs::read(paths.identity()).unwrap_or_default();
    // Each certificate has a key of its own, also where randomness repeats itself.
    let leaf = old.chain.first().map(|leaf| Digest::of(leaf)).unwrap_or_else(|| Digest::of(b""));
    let key = key_at(&paths.renewing_key(), env, &format!("node key after {leaf}"))?;
    let csr = CertificateParams::new(vec![])?.serialize_request(&key)?;
    let request = RenewRequest { csr: BASE64.encode(csr.der()) };
    let answered = timeout(ANSWER, async {
        let (mut send, mut receive) = connection.open_bi().await.map_err(|e| frame::FrameError::Io(e.into()))?;
        frame::write(&mut send, &request, MAX_REQUEST_BYTES).await?;
        send.finish().ok(); // a stream that is gone shows in the read
        frame::read::<RenewReply>(&mut receive, MAX_METADATA_BYTES).await
    });
    let reply = match answered.await {
        Ok(Ok(reply)) => reply,
        Ok(Err(error)) => {
            let why = connection.close_reason().map_or_else(|| error.to_string(), |reason| reason.to_string());
            return Err(RenewError::Link(why));
        }
        Err(_) => return Err(RenewError::Link("it connected and did not answer".into())),
    };
    connection.close(CloseCode::Done.code(), b"");
    match reply {
        RenewReply::Refused { message } => Err(RenewError::Refused(message)),
        RenewReply::Renewed { certificates } => {
            check(old, &key, &certificates)?;
            let bundle = format!("{}{certificates}", key.serialize_pem());
            let (identity, renewing, previous) = (paths.identity(), paths.renewing_key(), paths.previous_identity());
            let write = move || {
                if fs::read(&identity).ok() != Some(before.clone()) {
                    return Ok(false); // the box joined again meanwhile: that identity is the newer one
                }
                durable::write(&previous, &before, 0o600)?;
                durable::write(&identity, bundle.as_bytes(), 0o600)?;
                durable::remove(&renewing)?;
                Ok::<_, DurableError>(true)
            };
            match env.blocking.run(write).await? {
                true => Ok(()),
                false => Err(RenewError::Answer("this box has another identity by now")),
            }
        }
    }
}

/// The new certificate is for the new key, the same node and by the same authority.
fn check(old: &Identity, key: &KeyPair, certificates: &str) -> Result<(), RenewError> {
    let chain: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(certificates.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| RenewError::Answer("its certificates are unreadable"))?;
    let ([own, .., ca], [old_own, .., old_ca]) = (chain.as_slice(), old.chain.as_slice()) else {
        return Err(RenewError::Answer("it lacks the node's certificate or the CA's"));
    };
    if identity::spki_digest(own) != Ok(Digest::of(&key.subject_public_key_info())) {
        return Err(RenewError::Answer("its certificate is for another key"));
    }
    if identity::node_name(own) != identity::node_name(old_own) {
        return Err(RenewError::Answer("its certificate is for another node"));
    }
    if identity::spki_digest(ca) != identity::spki_digest(old_ca) {
        return Err(RenewError::Answer("its CA is another"));
    }
    Ok(())
}
