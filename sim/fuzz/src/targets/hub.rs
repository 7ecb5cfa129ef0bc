//! What reaches the hub and the release engineer: bodies, files, documents of others, keys.

use std::{collections::BTreeSet, path::Path};

use bytes::Bytes;
use cloudcore::{
    access::oidc::jwt,
    harness,
    release::{
        provenance::{Bill, Statement},
        sealed,
        signer::agent,
    },
};
use proto::{
    identity,
    name::ReleaseName,
    release::{Manifest, TreePath},
    tuf::{PublicKey, SecretKey},
};
use rustls_pki_types::CertificateDer;
use serde_json::Value;

use super::{both_ways, run};

/// A manifest: no path of it leaves its tree.
pub(super) fn manifest(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(path) = TreePath::try_from(text.to_owned())
    {
        inside(path.as_str());
    }
    let Some(value) = value(data) else { return };
    let word = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let Ok(name) = format!("{}@{}", word("app"), word("version")).parse::<ReleaseName>() else { return };
    let Ok(manifest) = Manifest::parse(data, &name) else { return };
    let printed = serde_json::to_vec(&manifest).expect("what was read can be printed");
    assert_eq!(Manifest::parse(&printed, &name).as_ref(), Ok(&manifest));
    manifest.files.iter().for_each(|file| inside(file.path.as_str()));
    let paths: BTreeSet<&str> = manifest.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths.len(), manifest.files.len());
    assert!(manifest.files.iter().all(|file| file.size <= manifest.total_bytes()));
    assert!(manifest.content().count() >= manifest.files.len());
}

/// JSON of any form, but for what `serde_json` reads as something else (see `cloudcore::plain`).
fn value(data: &[u8]) -> Option<Value> {
    let taken = std::str::from_utf8(data).ok()?.contains("serde_json::private");
    if taken { None } else { serde_json::from_slice(data).ok() }
}

fn inside(path: &str) {
    let plain = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
    assert!(!path.is_empty() && Path::new(path).components().all(plain), "{path:?} leaves its tree");
    assert_eq!(Path::new(path).components().count(), path.split('/').count(), "{path:?} has other names");
}

/// `release.yaml`, and the warnings about it.
pub(super) fn release_yaml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok((yaml, warnings)) = harness::release_yaml(text) {
        assert!(warnings.len() <= 32);
        if let Some(workload) = &yaml.workload {
            workload.check(&[]).ok();
        }
        yaml.hooks.check().ok();
    }
}

/// Bodies of requests, and files that are applied.
pub(super) fn bodies(data: &[u8]) {
    let (kind, data) = data.split_first().unwrap_or((&0, &[]));
    if let Ok(object) = run(harness::body(*kind, Bytes::copy_from_slice(data))) {
        let printed = serde_json::to_vec(&object).unwrap();
        let again = run(harness::body(*kind, printed.into())).expect("what was stored can be sent again");
        assert_eq!(again, object);
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(objects) = harness::applied(text)
    {
        assert!(objects.iter().all(|object| object.pointer("/metadata/name").is_some()));
    }
}

/// Provenance, bills of materials, and tokens of a provider.
pub(super) fn provenance(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(statement) = Statement::parse(text) {
        assert!(!statement.builder.is_empty() && !statement.subjects.is_empty());
        statement.check(&[]).expect_err("nothing was released");
    }
    if let Ok(bill) = Bill::parse(text) {
        assert!(!bill.format.chars().any(char::is_control));
    }
    if let Some(value) = value(data)
        && let Some(key) = jwt::Key::read(&value)
    {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        // {"alg":"EdDSA"}.{}.
        jwt::verify("eyJhbGciOiJFZERTQSJ9.e30.AAAA", &[key], "a", "b", now).expect_err("nobody signed it");
    }
    jwt::verify(text, &[], "a", "b", "2026-01-01T00:00:00Z".parse().unwrap()).expect_err("there is no key");
}

/// Keys and certificates, as files and as what a peer shows.
pub(super) fn keys(data: &[u8]) {
    if let Ok(key) = SecretKey::from_der(data) {
        assert_eq!(SecretKey::from_pem(&key.to_pem().unwrap()).unwrap().id(), key.id());
    }
    both_ways::<PublicKey>(data);
    harness::certificate_request(data).ok();
    let certificate = CertificateDer::from(data);
    identity::spki_digest(&certificate).ok();
    identity::node_name(&certificate).ok();
    identity::public_key(&certificate).ok();
    identity::validity(&certificate).ok();
    let Ok(text) = std::str::from_utf8(data) else { return };
    SecretKey::from_pem(text).ok();
    assert!(!sealed::is_sealed(text) || SecretKey::from_pem(text).is_err());
    for key in [PublicKey::from_pem(text).ok(), agent::public_line(text).ok()].into_iter().flatten() {
        assert!(key.is_ours() && key.bytes().is_some_and(|bytes| PublicKey::from_bytes(&bytes).is_ok()));
        assert!(key.name().is_none_or(|name| name.chars().count() <= 64 && !name.chars().any(char::is_control)));
    }
}
