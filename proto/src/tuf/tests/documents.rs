//! Form of documents: malformed, oversized, of newer writers; what is kept and what is sent of them.

use super::{schema::Offered, *};

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

#[test]
fn bounds_hold_at_the_bound_and_over_it() {
    let repo = Repo::new();
    let text = repo.publish().timestamp.unwrap();
    let padded = |bytes: usize| format!("{}{text}", " ".repeat(bytes - text.len()));
    let limit = RoleName::Timestamp.limit_bytes();
    assert!(Offered::<TimestampMeta>::parse(&padded(limit)).is_ok());
    let error = Offered::<TimestampMeta>::parse(&padded(limit + 1)).unwrap_err();
    assert_eq!(error, TufError::Oversized { role: RoleName::Timestamp, bytes: limit + 1, limit });
    // A peer that is far behind a root gets as many at once as it takes.
    let mut far = repo.clone();
    far.root.version = 300;
    let set = TrustedSet::new(&far.root_text()).unwrap();
    let roots: Vec<String> = (1..=300).map(|n| n.to_string()).collect();
    let reply = set.newer_than(&MetadataRequest { root: 2, ..MetadataRequest::default() }, &roots);
    assert_eq!((reply.roots.len(), reply.roots[0].as_str()), (MAX_ROOTS, "3"));
}

#[test]
fn who_is_behind_a_root_gets_everything() {
    let repo = Repo::new();
    let set = repo.trusted();
    let mut next = repo.clone();
    next.root.version = 2;
    let roots = [repo.root_text(), next.root_text()];
    let ahead = set.update_root(&roots, at(NOW)).unwrap();
    let reply = ahead.newer_than(&set.versions(), &roots);
    assert_eq!(reply.roots, roots[1..]);
    let documents = set.documents();
    let everything = (documents.timestamp, documents.snapshot, documents.targets);
    assert_eq!((reply.timestamp, reply.snapshot, reply.targets), everything, "it may forget what old keys signed");
}

#[test]
fn what_was_never_there_is_not_fresh() {
    let set = TrustedSet::new(&Repo::new().root_text()).unwrap();
    assert_eq!(set.check_fresh(at(NOW)), Err(TufError::Missing { role: RoleName::Timestamp }));
}

#[test]
fn what_one_document_says_of_another_is_compared_whole() {
    let all = MetaFile::of(1, "abc");
    let hashes = |name: &str, hex: &str| Some([(name.to_owned(), hex.to_owned())].into());
    let none = MetaFile { version: 1, length: None, hashes: None };
    let said = |length, hashes| MetaFile { length, hashes, ..none.clone() }.check("abc");
    assert_eq!((all.check("abc"), none.check("abc")), (Ok(()), Ok(())));
    assert!(said(Some(4), None).unwrap_err().contains("4 are announced"));
    assert!(said(Some(3), None).is_ok());
    let sha256 = Digest::of(b"abc").hex();
    assert!(said(None, hashes("sha256", &sha256.to_uppercase())).is_ok(), "other writers use capitals");
    assert!(said(None, hashes("sha256", &Digest::of(b"abd").hex())).unwrap_err().contains("another sha256"));
    // FIPS 180-4.
    let sha512 = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
    assert!(said(None, hashes("sha512", sha512)).is_ok());
    assert!(said(None, hashes("sha512", &sha512.replace('d', "e"))).unwrap_err().contains("another sha512"));
    assert!(
        said(None, hashes("md5", "00")).unwrap_err().contains("unknown here"),
        "what cannot be compared is refused"
    );
}

#[test]
fn documents_that_name_nothing_are_refused() {
    let repo = Repo::new();
    let text = |json: String| format!(r#"{{"signatures": [], "signed": {json}}}"#);
    let timestamp = text(serde_json::to_string(&repo.timestamp).unwrap());
    let error = Offered::<TimestampMeta>::parse(&timestamp).unwrap_err().to_string();
    assert!(error.contains("names no snapshot.json"), "{error}");
    let snapshot = text(serde_json::to_string(&repo.snapshot).unwrap());
    let error = Offered::<SnapshotMeta>::parse(&snapshot).unwrap_err().to_string();
    assert!(error.contains("names no targets.json"), "{error}");
}

#[test]
fn no_root_is_met_by_nobody() {
    let repo = Repo::new();
    let unsigned = Document::new(&repo.targets).unwrap().offered::<TargetsMeta>().unwrap();
    // Reading refuses such roots; here they are made by hand.
    let mut root = repo.root.clone();
    list(&mut root, RoleName::Targets, 0, &[key(4)]);
    assert!(!unsigned.tally(&root).is_enough() && unsigned.verify(&root).is_err());
    root.roles.remove("targets");
    assert!(!unsigned.tally(&root).is_enough() && unsigned.verify(&root).is_err());
}

#[test]
fn digests_of_other_writers_may_have_capitals() {
    let ours = target("scan", "1.0.0", 1);
    let mut file = ours.to_file().unwrap();
    file.hashes.values_mut().for_each(|hex| *hex = hex.to_uppercase());
    assert_eq!(Target::try_from(&file), Ok(ours));
}
