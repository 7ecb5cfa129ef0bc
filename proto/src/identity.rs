//! Who is at the other end of a TLS connection.
//!
//! The fleet's CA signs one certificate a node and one for the hub's link. A node's name is the DNS
//! name `<node>.node.crossdock.internal` in its certificate and comes from nowhere else; the hub's
//! link certificate is for `hub.crossdock.internal` whatever address it is reached at. Addresses are
//! never part of identity.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    time_provider::TimeProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::{extensions::GeneralName, prelude::*};

use crate::{digest::Digest, env::WallClock, name::Name};

/// DNS name in the certificate of the hub's link.
pub const HUB_DNS_NAME: &str = "hub.crossdock.internal";
/// What follows a node's name in its certificate.
pub const NODE_DNS_SUFFIX: &str = ".node.crossdock.internal";

/// A certificate does not say what it must.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not X.509.
    #[error("certificate is not readable: {0}")]
    Malformed(String),
    /// No name of a node, or several.
    #[error("certificate names no node of Crossdock (it needs exactly one DNS name <node>{NODE_DNS_SUFFIX})")]
    NoNode,
    /// Its key is of another kind.
    #[error("certificate's key is not ed25519")]
    NotEd25519,
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IdentityError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate.as_ref()).map_err(|e| IdentityError::Malformed(e.to_string()))?;
    Ok(parsed)
}

/// Digest of a certificate's public key (DER of SubjectPublicKeyInfo): outlives renewal.
///
/// # Errors
/// When it is not X.509.
pub fn spki_digest(certificate: &CertificateDer<'_>) -> Result<Digest, IdentityError> {
    Ok(Digest::of(parse(certificate)?.public_key().raw))
}

/// Name of the node that a verified certificate belongs to.
///
/// # Errors
/// When it names none, or not exactly one.
pub fn node_name(certificate: &CertificateDer<'_>) -> Result<Name, IdentityError> {
    let parsed = parse(certificate)?;
    let names = parsed.subject_alternative_name().ok().flatten().ok_or(IdentityError::NoNode)?;
    match names.value.general_names.as_slice() {
        [GeneralName::DNSName(name)] => {
            name.strip_suffix(NODE_DNS_SUFFIX).and_then(|n| n.parse().ok()).ok_or(IdentityError::NoNode)
        }
        _ => Err(IdentityError::NoNode),
    }
}

/// Public key of an ed25519 certificate.
///
/// # Errors
/// When it cannot be read, or is of another kind.
pub fn public_key(certificate: &CertificateDer<'_>) -> Result<[u8; 32], IdentityError> {
    let parsed = parse(certificate)?;
    let raw = &parsed.public_key().subject_public_key.data;
    <[u8; 32]>::try_from(raw.as_ref()).map_err(|_| IdentityError::NotEd25519)
}

/// When a certificate begins and ends to be valid, in seconds since 1970.
///
/// # Errors
/// When it is not X.509.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(i64, i64), IdentityError> {
    let parsed = parse(certificate)?;
    Ok((parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp()))
}

/// The provider used everywhere. Named explicitly, so nothing depends on a process-wide default.
#[must_use]
pub fn crypto_provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Lets rustls ask the injected clock.
#[derive(Debug, Clone)]
pub struct TlsClock(pub Arc<dyn WallClock>);

impl TimeProvider for TlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_second()).unwrap_or(0);
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
    }
}

/// Verifies a server whose chain contains the CA with a pinned public key: how a box that knows only
/// its token recognises the hub.
#[derive(Debug)]
pub struct PinnedCa {
    ca: Digest,
    provider: Arc<CryptoProvider>,
}

impl PinnedCa {
    /// Trusts the CA whose SubjectPublicKeyInfo has the digest `ca`.
    #[must_use]
    pub fn new(ca: Digest) -> Arc<PinnedCa> {
        Arc::new(PinnedCa { ca, provider: crypto_provider() })
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|c| spki_digest(c).is_ok_and(|d| d == self.ca));
        let ca = pinned.ok_or(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
