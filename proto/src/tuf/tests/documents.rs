//! Form of documents: malformed, oversized, of newer writers; what is kept and what is sent of them.

use super::*;

#[test]
fn malformed_and_oversized_documents_are_refused() {
    let repo = Repo::new();
    let good = repo.root_text();
    let pretty = serde_json::to_string_pretty(&serde_json::from_str::<serde_json::Value>(&good).unwrap()).unwrap();
    assert!(TrustedSet::new(&pretty).is_ok(), "the form on disk is free");
    let oversized = format!("{good}{}", " ".repeat(RoleName::Root.limit_bytes()));
    assert!(matches!(TrustedSet::new(&oversized), Err(TufError::Oversized { role: RoleName::Root, .. })));

    let json = serde_json::to_string(&repo.root).unwrap();
    let cases = [
        ("", "EOF"),
        ("[]", "signed"),
        (r#"{"signed": {}}"#, "signatures"),
        (r#"{"signed": {}, "signatures": 3}"#, "invalid type"),
        (r#"{"signed": {}, "signatures": []}"#, "missing field"),
        (r#"{"signed": {"a": 0.5}, "signatures": []}"#, "fractions"),
    ];
    for (text, why) in cases {
        let error = TrustedSet::new(text).unwrap_err();
        assert!(matches!(error, TufError::Malformed { .. }), "{error}");
        assert!(error.to_string().contains(why), "{text}: {error}");
    }
    for (from, to, why) in [
        (r#""_type":"root""#, r#""_type":"targets""#, "type"),
        (r#""spec_version":"1.0.31""#, r#""spec_version":"2.0.0""#, "TUF"),
        (r#""version":1"#, r#""version":0"#, "start at 1"),
        (r#""version":1"#, r#""version":-1"#, "invalid value"),
        (r#""version":1"#, r#""version":1,"version":2"#, "twice"),
        (r#""expires":"2031-"#, r#""expires":"soon-"#, "year"),
        (r#""threshold":2"#, r#""threshold":0"#, "threshold"),
        (r#""timestamp":{"#, r#""clock":{"#, "role timestamp"),
    ] {
        let broken = json.replacen(from, to, 1);
        assert_ne!(broken, json, "{from}");
        let text = format!(r#"{{"signatures": [], "signed": {broken}}}"#);
        let error = TrustedSet::new(&text).unwrap_err().to_string();
        assert!(error.contains("malformed") && error.contains(why), "{to}: {error}");
    }
    let mut twice = repo.root.clone();
    twice.roles.get_mut("root").unwrap().keyids = vec![key(1).id(), key(1).id()];
    let text = format!(r#"{{"signatures": [], "signed": {}}}"#, serde_json::to_string(&twice).unwrap());
    assert!(TrustedSet::new(&text).unwrap_err().to_string().contains("twice"));
    // A root that its own keys did not sign.
    assert!(matches!(TrustedSet::new(&signed(&repo.root, &[key(1)])), Err(TufError::Threshold { .. })));
}

#[test]
fn what_newer_writers_add_is_tolerated_and_kept() {
    let repo = Repo::new();
    // Root: in the document itself, in every key, value and role.
    let json = serde_json::to_string(&repo.root).unwrap();
    let body =
        json.replacen('{', r#"{"zz_future": [1, {"x": "é"}],"#, 1).replace(r#""keytype""#, r#""zz": 1, "keytype""#);
    let set = TrustedSet::new(&signed_json(&body, &repo.root_signers)).unwrap();
    // Targets: in targets, hashes' neighbours and the custom part.
    let json = serde_json::to_string(&repo.targets).unwrap();
    let body = json.replace(r#""custom":{"#, r#""zz": 2, "custom":{"zz": {"deep": [1, "é", null]},"#);
    let text = signed_json(&body, &repo.targets_signers);
    let next = set.update(&repo.publish_with(&text), at(NOW)).unwrap();
    assert_eq!(next.targets().len(), 1);
    // An editor that does not know the fields keeps them, and the signatures stay good.
    let mut document = Document::parse::<TargetsMeta>(&text).unwrap();
    document.sign(&key(6));
    assert_eq!(document.offered::<TargetsMeta>().unwrap().tally(next.root()).valid, 3);
    let edited = signed(next.targets_meta().unwrap(), &repo.targets_signers);
    assert!(edited.contains(r#""zz":2"#) && edited.contains(r#""zz":{"deep":[1,"é",null]}"#), "{edited}");
}

#[test]
fn what_was_persisted_is_verified_again() {
    let set = Repo::new().trusted();
    let documents = set.documents();
    let text = serde_json::to_string(&documents).unwrap();
    assert_eq!(serde_json::from_str::<Documents>(&text).unwrap(), documents);
    assert_eq!(TrustedSet::load(&documents).unwrap().targets(), set.targets());
    let damage = |text: &str| Some(text.replacen("2031", "2099", 1));
    for bad in [
        Documents { root: damage(&documents.root).unwrap(), ..documents.clone() },
        Documents { timestamp: damage(documents.timestamp.as_ref().unwrap()), ..documents.clone() },
        Documents { snapshot: damage(documents.snapshot.as_ref().unwrap()), ..documents.clone() },
        Documents { targets: damage(documents.targets.as_ref().unwrap()), ..documents.clone() },
        Documents { targets: None, ..documents.clone() },
        Documents { targets: Repo::new().next().publish().targets, ..documents.clone() },
    ] {
        assert!(TrustedSet::load(&bad).is_err());
    }
    let only_root = Documents { timestamp: None, snapshot: None, targets: None, ..documents };
    assert_eq!(TrustedSet::load(&only_root).unwrap().versions().targets, 0);
}

#[test]
fn a_peer_sends_what_is_lacking() {
    let repo = Repo::new();
    let (old, new) = (repo.trusted(), repo.next().trusted());
    let roots = [repo.root_text()];
    assert_eq!(new.newer_than(&new.versions(), &roots), MetadataReply::default());
    let reply = new.newer_than(&old.versions(), &roots);
    assert!(reply.roots.is_empty());
    assert_eq!(old.update(&reply, at(NOW)).unwrap().documents(), new.documents());
    let reply = new.newer_than(&MetadataRequest::default(), &roots);
    assert_eq!(reply.roots, roots);
    // A renewed timestamp alone is small.
    let mut renewed = repo.clone();
    renewed.timestamp.version = 9;
    let reply = renewed.trusted().newer_than(&old.versions(), &roots);
    assert!(reply.timestamp.is_some() && reply.snapshot.is_none() && reply.targets.is_none());
    // A peer that fell behind is told so, not believed.
    let error = refused(&new, &old.newer_than(&new.versions(), &roots));
    assert!(matches!(error, TufError::Rollback { .. }), "{error}");
}

#[test]
fn a_target_is_what_its_path_says() {
    let mut repo = Repo::new();
    let targets = &mut repo.targets.targets;
    targets.insert("scan/2.0.0.json".into(), target("scan", "1.0.0", 2).to_file().unwrap());
    let mut foreign = target("scan", "3.0.0", 3).to_file().unwrap();
    foreign.custom = None;
    targets.insert("scan/3.0.0.json".into(), foreign.clone());
    foreign.hashes = [("sha512".to_owned(), "00".to_owned())].into();
    targets.insert("other.bin".into(), foreign);
    let set = repo.trusted();
    let refusal = |name: &str| set.manifest_target(&name.parse().unwrap()).unwrap_err().to_string();
    assert!(refusal("scan@2.0.0").contains("signed as scan@1.0.0"), "{}", refusal("scan@2.0.0"));
    assert!(refusal("scan@3.0.0").contains("custom"), "{}", refusal("scan@3.0.0"));
    assert_eq!(set.targets().len(), 2);
    assert!(set.manifest_target(&"scan@1.0.0".parse().unwrap()).is_ok());
}
