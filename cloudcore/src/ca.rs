//! The fleet's certificate authority: the only one that agents and hub believe.
//!
//! It signs three kinds of certificate, all ed25519: one a node (180 days), the hub's link and the
//! hub's API. Content comes from the hub's own records: of a box's request nothing but the proven key
//! is used. Revocation is the hub's list of admitted keys (`crate::link`), not anything in here.
//!
//! Validity begins in 1970 on purpose: a box without a battery behind its clock must be able to
//! connect to learn the time, and nothing is gained by a certificate that is not valid *yet*.
//!
//! Called by `cloudcore init` ([`Ca::create`], [`Ca::server_identity`]), by `crate::hub` and by
//! `crate::link::join`. Files: `<data>/ca/{ca.key,ca.pem}`, `<data>/tls/<name>.{key,pem}`.

use std::{
    fmt, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ed25519_dalek::pkcs8::{EncodePrivateKey as _, KeypairBytes};
use jiff::Timestamp;
use proto::{
    digest::{Digest, Hasher},
    durable::{self, DurableError},
    env::Env,
    identity::{self, NODE_DNS_SUFFIX},
    name::Name,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType, SerialNumber, SubjectPublicKeyInfo, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use x509_parser::{certification_request::X509CertificationRequest, oid_registry::OID_SIG_ED25519, prelude::FromDer};

const DAY: Duration = Duration::from_secs(86_400);
/// How long a node's certificate lives.
pub const NODE_LIFETIME: Duration = Duration::from_secs(180 * 86_400);
/// How long a certificate of the hub lives. It is replaced at half of it.
pub const SERVER_LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// How long the authority lives.
const CA_LIFETIME: Duration = Duration::from_secs(20 * 365 * 86_400);
/// Longest request of a box that is looked at, in bytes (one for ed25519 has about 200).
const MAX_CSR_BYTES: usize = 4096;

/// What the certificate authority could not do.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is one already.
    #[error(
        "there is a certificate authority in {} already; agents trust it, so it is not replaced: use another folder",
        .0.display()
    )]
    Exists(PathBuf),
    /// There is none.
    #[error("there is no certificate authority in {}; create one with `cloudcore init`", .0.display())]
    Missing(PathBuf),
    /// A file is not what it should be.
    #[error("{} is not usable ({problem}); restore it from a backup", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The request of a box is refused.
    #[error("the certificate request is refused: {0}")]
    Request(&'static str),
    /// Signing failed.
    #[error("could not sign a certificate")]
    Sign(#[from] rcgen::Error),
    /// A file could not be read.
    #[error("could not read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] DurableError),
    /// A name cannot be in a certificate.
    #[error("{0:?} cannot be a server's name; use a host name or an IP address")]
    Name(String),
}

/// The certificate authority. Cheap to clone.
#[derive(Clone)]
pub struct Ca(Arc<Inner>);

struct Inner {
    data: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    spki: Digest,
    env: Env,
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ca({})", self.0.spki.short())
    }
}

/// A certificate that was issued to a node.
#[derive(Debug, Clone)]
pub struct NodeCertificate {
    /// The certificate and the CA's, PEM.
    pub chain_pem: String,
    /// Digest of the node's public key.
    pub spki: Digest,
    /// When it expires.
    pub not_after: Timestamp,
}

/// A certificate of the hub itself, with its key.
#[derive(Debug)]
pub struct ServerIdentity {
    /// The certificate and the CA's.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key, PKCS#8 version 1.
    pub key: PrivateKeyDer<'static>,
    /// File of the chain, PEM.
    pub chain_path: PathBuf,
    /// File of the key, PEM.
    pub key_path: PathBuf,
    /// When to ask for it again: half of its life is over then.
    pub renew_at: Timestamp,
}

impl Ca {
    /// Makes a new authority in the data folder `data`.
    ///
    /// # Errors
    /// When there is one already, or files cannot be written.
    pub fn create(data: &Path, fleet: &Name, env: &Env) -> Result<Ca, CaError> {
        let (key_path, pem_path) = paths(data);
        // A certificate without its key is what a cut-off `create` left; nobody can have been told of it.
        if key_path.exists() {
            return Err(CaError::Exists(data.join("ca")));
        }
        durable::create_dir_all(&data.join("ca"))?;
        let now = env.wall.now();
        let (key, key_pem) = new_key(env, "ca key", now)?;
        let mut params = params(format!("Crossdock {fleet}"), now, CA_LIFETIME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial(env, &[b"ca", key.public_key_raw()]));
        let certificate = params.self_signed(&key)?;
        // The key last: with it the authority exists.
        durable::write(&pem_path, certificate.pem().as_bytes(), 0o644)?;
        durable::write(&key_path, key_pem.as_bytes(), 0o600)?;
        Ca::open(data, env)
    }

    /// Opens the authority of the data folder `data`.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn open(data: &Path, env: &Env) -> Result<Ca, CaError> {
        let (key_path, pem_path) = paths(data);
        let key = key_from_pem(&key_path, &read(&key_path, data)?)?;
        let pem = read(&pem_path, data)?;
        let damaged = |problem: String| CaError::Damaged { path: pem_path.clone(), problem };
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| damaged(e.to_string()))?;
        let spki = identity::spki_digest(&certificate).map_err(|e| damaged(e.to_string()))?;
        if Digest::of(&rcgen::PublicKeyData::subject_public_key_info(&key)) != spki {
            return Err(damaged("the key beside it is of another authority".into()));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| damaged(e.to_string()))?;
        Ok(Ca(Arc::new(Inner { data: data.to_owned(), issuer, certificate, pem, spki, env: env.clone() })))
    }

    /// Its certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.0.pem
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.0.certificate
    }

    /// Digest of its public key: what join tokens pin.
    #[must_use]
    pub fn spki(&self) -> Digest {
        self.0.spki
    }

    /// Digest of the public key in a box's request (PKCS#10, DER), whose owner proved it.
    ///
    /// # Errors
    /// When the request is malformed, not ed25519, or not signed by its key.
    pub fn proven_key(csr: &[u8]) -> Result<Digest, CaError> {
        Ok(Digest::of(proven_key_der(csr)?.as_slice()))
    }

    /// Signs the key in a box's request for the node `name`. All else in the request is ignored.
    ///
    /// # Errors
    /// As [`Ca::proven_key`].
    pub fn issue_node(&self, name: &Name, csr: &[u8]) -> Result<NodeCertificate, CaError> {
        let spki_der = proven_key_der(csr)?;
        let now = self.0.env.wall.now();
        let mut params = params(name.to_string(), now, NODE_LIFETIME);
        params.subject_alt_names = vec![dns_name(&format!("{name}{NODE_DNS_SUFFIX}"))?];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(serial(&self.0.env, &[b"node", &spki_der]));
        let certificate = params.signed_by(&SubjectPublicKeyInfo::from_der(&spki_der)?, &self.0.issuer)?;
        let not_after = now.checked_add(NODE_LIFETIME).unwrap_or(Timestamp::MAX);
        Ok(NodeCertificate {
            chain_pem: format!("{}{}", certificate.pem(), self.0.pem),
            spki: Digest::of(&spki_der),
            not_after,
        })
    }

    /// The hub's own certificate `file` (such as `link` or `api`) for `names` (host names and IP
    /// addresses): the one on disk while it fits, otherwise a new one.
    ///
    /// # Errors
    /// When a name is malformed, or files cannot be read or written.
    pub fn server_identity(&self, file: &str, names: &[String]) -> Result<ServerIdentity, CaError> {
        let folder = self.0.data.join("tls");
        let (chain_path, key_path) = (folder.join(format!("{file}.pem")), folder.join(format!("{file}.key")));
        if let Some(found) = self.fitting(&chain_path, &key_path, names)? {
            return Ok(found);
        }
        durable::create_dir_all(&folder)?;
        let now = self.0.env.wall.now();
        let (key, key_pem) = new_key(&self.0.env, &format!("server key {file}"), now)?;
        let mut params = params(format!("Crossdock hub ({file})"), now, SERVER_LIFETIME);
        params.subject_alt_names = names.iter().map(|n| server_name(n)).collect::<Result<_, _>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.serial_number = Some(serial(&self.0.env, &[b"server", key.public_key_raw()]));
        let certificate = params.signed_by(&key, &self.0.issuer)?;
        durable::write(&key_path, key_pem.as_bytes(), 0o600)?;
        durable::write(&chain_path, format!("{}{}", certificate.pem(), self.0.pem).as_bytes(), 0o644)?;
        let missing = || CaError::Missing(chain_path.clone());
        self.fitting(&chain_path, &key_path, names)?.ok_or_else(missing)
    }

    /// The identity on disk, when it is whole, of this authority, for these names and in its first half.
    fn fitting(&self, chain: &Path, key: &Path, names: &[String]) -> Result<Option<ServerIdentity>, CaError> {
        let (Some(chain_pem), Some(key_pem)) = (read_optional(chain)?, read_optional(key)?) else { return Ok(None) };
        let Ok(certificates) =
            CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect::<Result<Vec<CertificateDer<'static>>, _>>()
        else {
            return Ok(None);
        };
        let Ok(pair) = key_from_pem(key, &key_pem) else { return Ok(None) };
        let [leaf, ca] = certificates.as_slice() else { return Ok(None) };
        let same_key =
            identity::spki_digest(leaf).ok() == Some(Digest::of(&rcgen::PublicKeyData::subject_public_key_info(&pair)));
        let renew_at = identity::validity(leaf)
            .ok()
            .and_then(|(_, end)| Timestamp::from_second(end).ok())
            .and_then(|end| end.checked_sub(SERVER_LIFETIME / 2).ok());
        let Some(renew_at) = renew_at else { return Ok(None) };
        let fits = same_key && *ca == self.0.certificate && same_names(leaf, names) && self.0.env.wall.now() < renew_at;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let (chain_path, key_path) = (chain.to_owned(), key_path_of(chain));
        Ok(fits.then_some(ServerIdentity { chain: certificates, key, chain_path, key_path, renew_at }))
    }
}

fn key_path_of(chain: &Path) -> PathBuf {
    chain.with_extension("key")
}

fn paths(data: &Path) -> (PathBuf, PathBuf) {
    (data.join("ca/ca.key"), data.join("ca/ca.pem"))
}

fn read_optional(path: &Path) -> Result<Option<String>, CaError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CaError::Read { path: path.to_owned(), source }),
    }
}

fn read(path: &Path, data: &Path) -> Result<String, CaError> {
    read_optional(path)?.ok_or_else(|| CaError::Missing(data.join("ca")))
}

/// A new ed25519 key, and its PEM in PKCS#8 version 1: OpenSSL cannot read version 2.
fn new_key(env: &Env, purpose: &str, now: Timestamp) -> Result<(KeyPair, String), CaError> {
    let secret_key = env.seed.bytes::<32>(&format!("{purpose} at {now}"));
    let pem = KeypairBytes { secret_key, public_key: None }
        .to_pkcs8_pem(Default::default())
        .map_err(|_| CaError::Sign(rcgen::Error::CouldNotParseKeyPair))?;
    let key = KeyPair::from_pkcs8_pem_and_sign_algo(&pem, &PKCS_ED25519)?;
    Ok((key, pem.to_string()))
}

fn key_from_pem(path: &Path, pem: &str) -> Result<KeyPair, CaError> {
    KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ED25519)
        .map_err(|e| CaError::Damaged { path: path.to_owned(), problem: e.to_string() })
}

fn params(common_name: String, now: Timestamp, lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let epoch = date_time_ymd(1970, 1, 1);
    let since = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or(0));
    params.not_before = epoch;
    params.not_after = epoch + since.saturating_add(lifetime).min(DAY * 365 * 500);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

/// A serial number of 16 bytes whose upper bits are fixed: certificates of a kind have one length.
fn serial(env: &Env, parts: &[&[u8]]) -> SerialNumber {
    let mut hasher = Hasher::default();
    hasher.update(&env.seed.bytes::<32>("certificate serial numbers"));
    hasher.update(env.wall.now().to_string().as_bytes());
    parts.iter().for_each(|part| hasher.update(part));
    let (digest, _) = hasher.finish();
    let mut bytes: Vec<u8> = digest.as_bytes().iter().copied().take(16).collect();
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x3f) | 0x40;
    }
    SerialNumber::from(bytes)
}

/// The SubjectPublicKeyInfo of a request, after its signature was checked.
pub(crate) fn proven_key_der(csr: &[u8]) -> Result<Vec<u8>, CaError> {
    if csr.len() > MAX_CSR_BYTES {
        return Err(CaError::Request("it is too large"));
    }
    let malformed = CaError::Request("it is not PKCS#10 in DER");
    let Ok((rest, csr)) = X509CertificationRequest::from_der(csr) else { return Err(malformed) };
    if !rest.is_empty() {
        return Err(malformed);
    }
    let key = &csr.certification_request_info.subject_pki;
    if key.algorithm.algorithm != OID_SIG_ED25519 || key.subject_public_key.data.len() != 32 {
        return Err(CaError::Request("its key is not ed25519"));
    }
    csr.verify_signature().map_err(|_| CaError::Request("it is not signed by its own key"))?;
    Ok(key.raw.to_vec())
}

fn dns_name(name: &str) -> Result<SanType, CaError> {
    Ok(SanType::DnsName(name.try_into().map_err(|_| CaError::Name(name.to_owned()))?))
}

fn server_name(name: &str) -> Result<SanType, CaError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let valid = rustls_pki_types::DnsName::try_from(name).is_ok();
    if valid { dns_name(name) } else { Err(CaError::Name(name.chars().take(80).collect())) }
}

fn same_names(leaf: &CertificateDer<'_>, names: &[String]) -> bool {
    let Ok((_, parsed)) = x509_parser::certificate::X509Certificate::from_der(leaf) else { return false };
    let Ok(Some(found)) = parsed.subject_alternative_name() else { return names.is_empty() };
    let mut found: Vec<String> = found.value.general_names.iter().filter_map(name_text).collect();
    let mut wanted: Vec<String> =
        names.iter().map(|n| n.parse().map_or(n.clone(), |ip: IpAddr| ip.to_string())).collect();
    found.sort();
    wanted.sort();
    found == wanted
}

fn name_text(name: &x509_parser::extensions::GeneralName<'_>) -> Option<String> {
    use x509_parser::extensions::GeneralName;
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match *bytes {
            [a, b, c, d] => Some(IpAddr::from([*a, *b, *c, *d]).to_string()),
            bytes => <[u8; 16]>::try_from(bytes).ok().map(|b| IpAddr::from(b).to_string()),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests;
