//! Provenance and bill of materials: what fits a release, what is refused, what people are shown.

use serde_json::json;

use super::*;
use crate::release::provenance::{Bill, Statement};

fn statement(subjects: &[(&str, &[u8])]) -> serde_json::Value {
    let subjects: Vec<_> = subjects
        .iter()
        .map(|(name, content)| json!({"name": name, "digest": {"sha256": Digest::of(content).hex()}}))
        .collect();
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://example.com/make/v1",
                "resolvedDependencies": [{"uri": "git+https://example.com/scan", "digest": {"gitCommit": "abc123"}}],
            },
            "runDetails": {"builder": {"id": "https://example.com/builders/7"}},
        },
    })
}

impl Desk {
    fn origin(&self, provenance: &serde_json::Value, sbom: &serde_json::Value) {
        self.write("provenance.json", &provenance.to_string());
        self.write("sbom.json", &sbom.to_string());
        self.yaml("1.0.0", "command: bin/run\nprovenance: provenance.json\nsbom: sbom.json");
    }
}

fn spdx() -> serde_json::Value {
    json!({"spdxVersion": "SPDX-2.3", "packages": [{"name": "a"}, {"name": "b"}]})
}

#[tokio::test]
async fn origin_travels_with_the_release_and_is_shown() {
    let desk = Desk::new();
    desk.origin(&statement(&[("a.txt", b"a"), ("run", b"#!/bin/sh\n")]), &spdx());
    let repository = desk.repository();
    let built = desk.build().unwrap();
    assert!(built.warnings.iter().all(|warning| !warning.contains("provenance")), "{:?}", built.warnings);
    repository.add(&built, now()).unwrap();
    let staged = repository.staged().unwrap().targets.unwrap().signed;
    let lines = describe::targets(&repository, None, &staged).join("\n");
    for part in [
        "built by https://example.com/builders/7 (https://example.com/make/v1)",
        "from git+https://example.com/scan gitCommit abc123",
        "about 2 of 2 files",
        "sbom: SPDX-2.3, 2 components",
    ] {
        assert!(lines.contains(part), "{part}: {lines}");
    }
    repository.sign(&[key(1), key(4), key(5)]).unwrap();
    let publication = repository.finish(&key(7), now()).unwrap();
    assert_eq!(publication.blobs.len(), 5, "manifest, two files, two documents");
    let hub = Hub { blobs: RefCell::default(), breaks_after: 100, published: RefCell::default() };
    assert_eq!(upload(&hub, &publication, |_| ()).await.unwrap().sent, 5);
    let verified = verify::repository(&repository, now()).unwrap();
    assert_eq!(verified.evidence[&built.name()].len(), 4);
    // A document that was changed, or is gone, is noticed as any other file.
    let path = repository.blob_path(&built.manifest.sbom.unwrap().digest);
    fs::write(&path, "{}").unwrap();
    assert!(chain(&verify::repository(&repository, now()).unwrap_err()).contains("sbom of scan@1.0.0"));
    assert_eq!(repository.add(&built, now()).unwrap(), Added::AlreadyPublished { restored: 1 });
    // Agents that know nothing of it read the manifest as ever.
    let mut old: serde_json::Value = serde_json::from_slice(&built.bytes).unwrap();
    assert_eq!(old["provenance"]["size"], json!(fs::metadata(desk.path("provenance.json")).unwrap().len()));
    old.as_object_mut().unwrap().remove("provenance");
    desk.yaml("1.0.0", "command: bin/run\nsbom: sbom.json");
    assert_eq!(serde_json::to_value(desk.build().unwrap().manifest).unwrap(), old);
}

#[test]
fn what_does_not_fit_the_files_is_refused_before_it_is_signed() {
    let desk = Desk::new();
    let refused = |provenance: &serde_json::Value, why: &str| {
        desk.origin(provenance, &spdx());
        let error = desk.refused();
        assert!(error.contains("provenance.json") && error.contains(why), "{why}: {error}");
    };
    refused(&statement(&[("a.txt", b"other")]), "same build");
    refused(&statement(&[("scan.tar.gz", b"other")]), "no file of the release");
    refused(&statement(&[]), "0 subjects");
    refused(&json!([]), "_type");
    let with = |path: &str, value: serde_json::Value| {
        let mut changed = statement(&[("a.txt", b"a")]);
        *changed.pointer_mut(path).unwrap() = value;
        changed
    };
    refused(&with("/predicateType", json!("https://slsa.dev/provenance/v0.2")), "v0.2");
    refused(&with("/_type", json!("https://in-toto.io/Statement/v0.1")), "v0.1");
    refused(&with("/predicate/runDetails/builder", json!({})), "builder.id");
    refused(&with("/subject/0/digest", json!({"sha512": "00"})), "no sha256");
    desk.write("provenance.json", &" ".repeat(17 << 20));
    assert!(desk.refused().contains("larger than"));

    // An envelope is opened; other bills than those two are refused.
    let inside = statement(&[("a.txt", b"a")]);
    let payload = data_encoding::BASE64.encode(inside.to_string().as_bytes());
    let envelope = json!({"payloadType": "application/vnd.in-toto+json", "payload": payload, "signatures": []});
    desk.origin(&envelope, &spdx());
    desk.build().unwrap();
    assert_eq!(Statement::parse(&envelope.to_string()), Statement::parse(&inside.to_string()));
    desk.origin(&inside, &json!({"packages": []}));
    assert!(desk.refused().contains("neither SPDX nor CycloneDX"));
    let bill = |value: serde_json::Value| Bill::parse(&value.to_string()).map(|b| (b.format, b.components));
    let cyclone = json!({"bomFormat": "CycloneDX", "specVersion": "1.6", "components": [{"components": [{}, {}]}, {}]});
    assert_eq!(bill(cyclone), Ok(("CycloneDX 1.6".into(), 4)));
    let graph = json!([{"type": "software_Package"}, {"type": "Person"}]);
    let spdx3 = json!({"@context": "https://spdx.org/rdf/3.0.1/spdx-context.jsonld", "@graph": graph});
    assert_eq!(bill(spdx3), Ok(("SPDX-3.0.1".into(), 1)));
    assert!(!format!("{:?}", bill(json!({"spdxVersion": "\u{1b}[2J"}))).contains('\u{1b}'));
}
