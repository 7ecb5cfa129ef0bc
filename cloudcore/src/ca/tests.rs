//! What the authority signs, and what it refuses to sign.

use proto::identity::{node_name, spki_digest};
use x509_parser::prelude::*;

use super::*;

fn authority() -> (tempfile::TempDir, Env, Ca) {
    let env = Env::real().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::create(folder.path(), &"test".parse().unwrap(), &env).unwrap();
    (folder, env, ca)
}

#[test]
fn a_node_gets_what_the_hub_decides_and_nothing_it_asked_for() {
    let (_folder, env, ca) = authority();
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mut wish = CertificateParams::new(vec!["hub.crossdock.internal".into()]).unwrap();
    wish.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    wish.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let csr = wish.serialize_request(&key).unwrap();
    let issued = ca.issue_node(&"n1".parse().unwrap(), csr.der()).unwrap();

    let chain: Vec<_> = CertificateDer::pem_slice_iter(issued.chain_pem.as_bytes()).map(Result::unwrap).collect();
    assert_eq!(node_name(&chain[0]).unwrap().as_str(), "n1");
    assert_eq!(spki_digest(&chain[0]).unwrap(), issued.spki);
    assert_eq!(spki_digest(&chain[1]).unwrap(), ca.spki());
    let (_, parsed) = X509Certificate::from_der(&chain[0]).unwrap();
    assert!(!parsed.is_ca());
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth);
    assert_eq!(parsed.raw_serial().len(), 16);
    let days = (parsed.validity().not_after.timestamp() - env.wall.now().as_second()) / 86_400;
    assert!((179..=180).contains(&days), "{days}");
    assert_eq!(parsed.validity().not_before.timestamp(), 0);
}

#[test]
fn an_authority_that_was_cut_off_on_the_way_is_made_anew() {
    let (folder, env, ca) = authority();
    let create = || Ca::create(folder.path(), &"test".parse().unwrap(), &env);
    assert!(matches!(create(), Err(CaError::Exists(_))));
    fs::remove_file(folder.path().join("ca/ca.key")).unwrap();
    assert!(matches!(Ca::open(folder.path(), &env), Err(CaError::Missing(_))));
    let again = create().unwrap();
    assert_ne!(again.pem(), ca.pem());
    assert_eq!(Ca::open(folder.path(), &env).unwrap().pem(), again.pem());
}

#[test]
fn requests_that_prove_nothing_are_refused() {
    let (_folder, _env, ca) = authority();
    let name = "n1".parse().unwrap();
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    for at in 0..csr.len() {
        let mut changed = csr.clone();
        changed[at] ^= 1;
        // A padding bit is the only thing outside the signature: the key is proven all the same.
        if let Ok(issued) = ca.issue_node(&name, &changed) {
            assert_eq!(issued.spki, Ca::proven_key(&csr).unwrap(), "byte {at}");
        }
    }
    let mut longer = csr.clone();
    longer.push(0);
    let ecdsa = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    for bad in [&b""[..], &csr[..40], &longer, &[0; 5000], ecdsa.der()] {
        assert!(matches!(ca.issue_node(&name, bad), Err(CaError::Request(_))));
    }
}

#[test]
fn there_is_one_authority_and_its_files_are_checked() {
    let (folder, env, ca) = authority();
    let fleet = "test".parse().unwrap();
    assert!(matches!(Ca::create(folder.path(), &fleet, &env), Err(CaError::Exists(_))));
    assert_eq!(Ca::open(folder.path(), &env).unwrap().spki(), ca.spki());
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(Ca::open(empty.path(), &env), Err(CaError::Missing(_))));
    // A key of another authority beside the certificate.
    Ca::create(empty.path(), &fleet, &Env::real().unwrap()).unwrap();
    fs::copy(empty.path().join("ca/ca.key"), folder.path().join("ca/ca.key")).unwrap();
    assert!(matches!(Ca::open(folder.path(), &env), Err(CaError::Damaged { .. })));
}

#[test]
fn a_server_keeps_its_certificate_until_it_no_longer_fits() {
    let (folder, _env, ca) = authority();
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned(), "::1".to_owned()];
    let first = ca.server_identity("api", &names).unwrap();
    let key = fs::read_to_string(&first.key_path).unwrap();
    assert_eq!(ca.server_identity("api", &names).unwrap().chain, first.chain);
    assert_ne!(ca.server_identity("api", &names[..1]).unwrap().chain, first.chain);
    fs::write(folder.path().join("tls/api.pem"), "torn").unwrap();
    ca.server_identity("api", &names).unwrap();
    assert_ne!(fs::read_to_string(&first.key_path).unwrap(), key);
    assert!(matches!(ca.server_identity("api", &["not a name".into()]), Err(CaError::Name(_))));
    // Version 1 of PKCS#8: no public key follows.
    let der = PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes()).unwrap();
    assert_eq!(der.secret_pkcs8_der().len(), 48);
}
