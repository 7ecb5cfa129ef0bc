//! Certificate authorities that the hub believes when it connects to services of the house: those of a file, or
//! those of the machine. Used by `crate::streams::sink` and `crate::webhooks`.

use std::{path::Path, sync::Arc};

use proto::{
    env::WallClock,
    identity::{TlsClock, crypto_provider},
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

/// Largest file of certificates that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// TLS that believes the certificates in `ca`, or without it those of the machine. `setting` is what names the file.
///
/// # Errors
/// For people: the file is of no use, or the machine knows no authority.
pub(crate) fn client_config(
    ca: Option<&Path>,
    setting: &str,
    wall: &Arc<dyn WallClock>,
) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    match ca {
        Some(path) => {
            let pem = crate::bounded::read_file(path, MAX_FILE_BYTES);
            let pem = pem.map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|e| format!("{} is no PEM: {e}", path.display()))?;
                roots.add(certificate).map_err(|e| format!("{} holds no authority: {e}", path.display()))?;
            }
        }
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    if roots.is_empty() {
        return Err(format!("no certificate authority is known on this machine; name one with {setting}"));
    }
    believing(roots, wall)
}

/// TLS that believes nobody, for who speaks plain HTTP and still has to name one.
///
/// # Errors
/// When the cryptography offers no version of TLS.
pub(crate) fn nobody(wall: &Arc<dyn WallClock>) -> Result<rustls::ClientConfig, String> {
    believing(rustls::RootCertStore::empty(), wall)
}

fn believing(roots: rustls::RootCertStore, wall: &Arc<dyn WallClock>) -> Result<rustls::ClientConfig, String> {
    let builder = rustls::ClientConfig::builder_with_details(crypto_provider(), Arc::new(TlsClock(Arc::clone(wall))))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
