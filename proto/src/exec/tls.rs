//! TLS between a person's terminal and an agent, through a hub that is not trusted.
//!
//! The agent shows its node's certificate, which the fleet's CA signed. The person shows no certificate but an ed25519
//! key, raw (RFC 7250), that the release lists.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureAlgorithm, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls13_signature_with_raw_key},
    pki_types::{PrivateKeyDer, alg_id},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, Signer, SigningKey, public_key_to_spki},
    time_provider::TimeProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};

use crate::{identity, name::Name, tuf::PublicKey};

/// Protocol name (ALPN): a change that cannot be skipped gets another.
const ALPN: &[u8] = b"crossdock-exec/1";

/// Something went wrong in setting TLS up.
pub type TlsError = Error;

/// The agent's end: lets in who holds one of `keys`.
///
/// # Errors
/// When the node's key does not fit its certificate.
pub fn server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    keys: &[PublicKey],
    clock: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, TlsError> {
    let verifier = ListedKeys { keys: keys.iter().filter_map(spki).collect(), provider: identity::crypto_provider() };
    let mut config = ServerConfig::builder_with_details(identity::crypto_provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0; // a resumed session would not be asked for its key
    Ok(config)
}

/// A person's end: believes `node` alone, whose certificate one of `roots` signed.
///
/// # Errors
/// When `roots` are empty.
pub fn client(
    node: &Name,
    roots: RootCertStore,
    key: Arc<dyn SigningKey>,
    clock: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, TlsError> {
    let provider = identity::crypto_provider();
    let nodes = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|e| Error::General(e.to_string()))?;
    let spki = key.public_key().ok_or_else(|| Error::General("the key has no public half".into()))?;
    let shown = CertifiedKey::new(vec![CertificateDer::from(spki.to_vec())], key.clone());
    let mut config = ClientConfig::builder_with_details(provider, clock)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ThatNode { node: node.clone(), nodes }))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::new(shown))));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// What the other end showed, as a key: see [`rustls::CommonState::peer_certificates`].
#[must_use]
pub fn shown(certificates: Option<&[CertificateDer<'_>]>) -> Option<PublicKey> {
    let raw = certificates?.first()?.as_ref();
    let key = PublicKey::from_bytes(raw.last_chunk::<32>()?).ok()?;
    (spki(&key)?.as_ref() == raw).then_some(key)
}

fn spki(key: &PublicKey) -> Option<SubjectPublicKeyInfoDer<'static>> {
    Some(public_key_to_spki(&alg_id::ED25519, key.bytes()?))
}

/// Signs handshakes with a key that is wherever it is.
pub struct Key<F> {
    public: SubjectPublicKeyInfoDer<'static>,
    sign: Arc<F>,
}

impl<F: Fn(&[u8]) -> Result<Vec<u8>, String> + Send + Sync + 'static> Key<F> {
    /// A key by its public half and by what signs with it: 64 bytes, or why not.
    ///
    /// # Errors
    /// When it is no ed25519 key.
    pub fn new(public: &PublicKey, sign: F) -> Result<Arc<Key<F>>, TlsError> {
        let public = spki(public).ok_or_else(|| Error::General("the key is not ed25519".into()))?;
        Ok(Arc::new(Key { public, sign: Arc::new(sign) }))
    }
}

impl<F> fmt::Debug for Key<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").finish_non_exhaustive()
    }
}

impl<F: Fn(&[u8]) -> Result<Vec<u8>, String> + Send + Sync + 'static> SigningKey for Key<F> {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let signer = Key { public: self.public.clone(), sign: self.sign.clone() };
        offered.contains(&SignatureScheme::ED25519).then(|| Box::new(signer) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.public.clone())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl<F: Fn(&[u8]) -> Result<Vec<u8>, String> + Send + Sync + 'static> Signer for Key<F> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        (self.sign)(message).map_err(Error::General)
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

/// Lets in who holds a key that is listed.
#[derive(Debug)]
struct ListedKeys {
    keys: Vec<SubjectPublicKeyInfoDer<'static>>,
    provider: Arc<CryptoProvider>,
}

fn no_tls12<T>() -> Result<T, Error> {
    Err(Error::General("TLS 1.3 alone is spoken here".into()))
}

impl ClientCertVerifier for ListedKeys {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.keys.iter().any(|listed| listed.as_ref() == key.as_ref()) {
            true => Ok(ClientCertVerified::assertion()),
            false => Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Believes one node. Its certificate is one for clients, which is what it is towards the hub.
#[derive(Debug)]
struct ThatNode {
    node: Name,
    nodes: Arc<dyn ClientCertVerifier>,
}

impl ServerCertVerifier for ThatNode {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.nodes.verify_client_cert(leaf, intermediates, now)?;
        match identity::node_name(leaf) {
            Ok(node) if node == self.node => Ok(ServerCertVerified::assertion()),
            _ => Err(Error::InvalidCertificate(CertificateError::NotValidForName)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.nodes.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.nodes.supported_verify_schemes()
    }
}
