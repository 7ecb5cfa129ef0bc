//! Verifies the certificates of nodes, and lets one that is past its time through the handshake.
//!
//! A box that was away for half a year has an expired certificate and its key, which is still on the hub's list. All it
//! can do with it is renew it: `link::session` closes every other connection of such a box, and the list is looked at on
//! each. Whatever else is wrong with a certificate ends the handshake.

use std::{sync::Arc, time::Duration};

use proto::identity;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, UnixTime};

/// See the module.
#[derive(Debug)]
pub(crate) struct NodeVerifier(pub(crate) Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for NodeVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.0.verify_client_cert(leaf, intermediates, now) {
            Err(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
                let (_, not_after) =
                    identity::validity(leaf).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
                let end = Duration::from_secs(u64::try_from(not_after).unwrap_or(0));
                self.0.verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(end))
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
