//! Every attack and every kind of bad metadata, against the trusted set. State is as before after each.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{
    json::Json,
    schema::{MetaFile, Role, RoleKeys, RootMeta, SPEC_VERSION, SnapshotMeta, TargetsMeta, TimestampMeta},
    sign::Document,
    *,
};
use crate::{
    digest::Digest,
    link::message::{MetadataReply, MetadataRequest},
};

const NOW: &str = "2030-01-01T00:00:00Z";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

/// A repository with all its secret keys, to publish anything, sound or not.
#[derive(Clone)]
struct Repo {
    root: RootMeta,
    targets: TargetsMeta,
    snapshot: SnapshotMeta,
    timestamp: TimestampMeta,
    root_signers: Vec<SecretKey>,
    targets_signers: Vec<SecretKey>,
    pipeline: SecretKey,
}

fn list(root: &mut RootMeta, role: RoleName, threshold: u32, keys: &[SecretKey]) {
    let keyids = keys.iter().map(SecretKey::id).collect();
    root.roles.insert(role.as_str().into(), RoleKeys { keyids, threshold });
    root.keys.extend(keys.iter().map(|key| (key.id(), key.public())));
}

fn target(app: &str, version: &str, counter: u64) -> Target {
    let (app, version) = (app.parse().unwrap(), version.parse().unwrap());
    let custom = TargetCustom { app, version, release_counter: counter, hardware: [].into(), issued_at: Some(at(NOW)) };
    Target { length: 3, digest: Digest::of(b"abc"), custom }
}

impl Repo {
    /// Root 2 of 3 (keys 1 to 3), targets 2 of 3 (keys 4 to 6), pipeline key 7; one release.
    fn new() -> Repo {
        macro_rules! meta {
            ($name:ident, $kind:literal, $($rest:tt)*) => {
                $name {
                    kind: $kind.into(), spec_version: SPEC_VERSION.into(), version: 1,
                    expires: at("2031-01-01T00:00:00Z"), other: BTreeMap::new(), $($rest)*
                }
            };
        }
        let (roots, signers, pipeline) = ([key(1), key(2), key(3)], [key(4), key(5), key(6)], key(7));
        let mut root =
            meta!(RootMeta, "root", consistent_snapshot: true, keys: BTreeMap::new(), roles: BTreeMap::new());
        list(&mut root, RoleName::Root, 2, &roots);
        list(&mut root, RoleName::Targets, 2, &signers);
        list(&mut root, RoleName::Snapshot, 1, std::slice::from_ref(&pipeline));
        list(&mut root, RoleName::Timestamp, 1, std::slice::from_ref(&pipeline));
        let file = target("scan", "1.0.0", 1).to_file().unwrap();
        Repo {
            root,
            targets: meta!(TargetsMeta, "targets", targets: [("scan/1.0.0.json".to_owned(), file)].into()),
            snapshot: meta!(SnapshotMeta, "snapshot", meta: BTreeMap::new()),
            timestamp: meta!(TimestampMeta, "timestamp", meta: BTreeMap::new()),
            root_signers: roots[..2].to_vec(),
            targets_signers: signers[..2].to_vec(),
            pipeline,
        }
    }

    /// The next publication: every version but the root's goes up.
    fn next(&self) -> Repo {
        let mut next = self.clone();
        next.targets.version += 1;
        next.snapshot.version += 1;
        next.timestamp.version += 1;
        next
    }

    fn root_text(&self) -> String {
        signed(&self.root, &self.root_signers)
    }

    fn publish(&self) -> MetadataReply {
        self.publish_with(&signed(&self.targets, &self.targets_signers))
    }

    fn publish_with(&self, targets: &str) -> MetadataReply {
        let mut snapshot = self.snapshot.clone();
        snapshot.meta.insert("targets.json".into(), MetaFile::of(self.targets.version, targets));
        self.publish_snapshot(&signed(&snapshot, std::slice::from_ref(&self.pipeline)), targets)
    }

    fn publish_snapshot(&self, snapshot: &str, targets: &str) -> MetadataReply {
        let mut timestamp = self.timestamp.clone();
        timestamp.meta.insert("snapshot.json".into(), MetaFile::of(self.snapshot.version, snapshot));
        MetadataReply {
            roots: vec![],
            timestamp: Some(signed(&timestamp, std::slice::from_ref(&self.pipeline))),
            snapshot: Some(snapshot.into()),
            targets: Some(targets.into()),
        }
    }

    fn trusted(&self) -> TrustedSet {
        TrustedSet::new(&self.root_text()).unwrap().update(&self.publish(), at(NOW)).unwrap()
    }
}

fn signed<T: Role>(content: &T, signers: &[SecretKey]) -> String {
    let mut document = Document::new(content).unwrap();
    signers.iter().for_each(|key| document.sign(key));
    document.text()
}

/// Signs JSON that our own types would not write.
fn signed_json(signed: &str, signers: &[SecretKey]) -> String {
    let canonical = Json::parse(signed).unwrap().canonical();
    let signatures: Vec<String> = signers
        .iter()
        .map(|key| format!(r#"{{"keyid": "{}", "sig": "{}", "note": 1}}"#, key.id(), key.sign(&canonical)))
        .collect();
    format!(r#"{{"more": {{}}, "signatures": [{}], "signed": {signed}}}"#, signatures.join(","))
}

#[track_caller]
fn refused(set: &TrustedSet, reply: &MetadataReply) -> TufError {
    let before = set.documents();
    let error = set.update(reply, at(NOW)).unwrap_err();
    assert_eq!(set.documents(), before);
    error
}

#[test]
fn a_sound_publication_is_believed() {
    let set = Repo::new().trusted();
    let release = "scan@1.0.0".parse().unwrap();
    assert_eq!(set.manifest_target(&release).unwrap(), &target("scan", "1.0.0", 1));
    assert_eq!(set.versions(), MetadataRequest { root: 1, timestamp: 1, snapshot: 1, targets: 1 });
    set.check_fresh(at(NOW)).unwrap();
    // The same again, or nothing new, changes nothing.
    assert_eq!(set.update(&Repo::new().publish(), at(NOW)).unwrap().documents(), set.documents());
    assert_eq!(set.update(&MetadataReply::default(), at(NOW)).unwrap().documents(), set.documents());
    let error = set.manifest_target(&"scan@2.0.0".parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("scan/2.0.0.json") && error.contains("publish"), "{error}");
}

#[test]
fn too_few_signatures_are_refused_with_counts() {
    let mut repo = Repo::new();
    let set = TrustedSet::new(&repo.root_text()).unwrap();
    let role = RoleName::Targets;
    repo.targets_signers = vec![key(5)];
    assert_eq!(refused(&set, &repo.publish()), TufError::Threshold { role, valid: 1, needed: 2 });
    repo.targets_signers = vec![];
    assert_eq!(refused(&set, &repo.publish()), TufError::Threshold { role, valid: 0, needed: 2 });
    // Keys of other roles do not speak for this one.
    repo.targets_signers = vec![key(5), key(1), key(7)];
    let error = refused(&set, &repo.publish());
    assert!(matches!(error, TufError::UnknownKey { valid: 1, needed: 2, .. }), "{error}");
    repo.targets_signers = vec![key(5), key(99)];
    let error = refused(&set, &repo.publish()).to_string();
    assert!(
        error.contains("unknown key") && error.contains("1 of 2") && error.contains(&key(99).id()[..12]),
        "{error}"
    );
    // A stranger's signature besides enough good ones does no harm.
    repo.targets_signers = vec![key(4), key(6), key(99)];
    assert!(set.update(&repo.publish(), at(NOW)).is_ok());
}

#[test]
fn one_key_counts_once() {
    let repo = Repo::new();
    let set = TrustedSet::new(&repo.root_text()).unwrap();
    // The same signature twice.
    let text = signed(&repo.targets, &[key(4)]);
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let signature = document["signatures"][0].to_string();
    let twice = text.replacen(&signature, &format!("{signature},{signature}"), 1);
    assert_ne!(twice, text);
    let error = refused(&set, &repo.publish_with(&twice));
    assert!(matches!(error, TufError::DuplicateSignature { role: RoleName::Targets, .. }), "{error}");

    // The same key under two IDs, both listed and both right: its digits are written in two ways.
    let mut root = repo.root.clone();
    let mut upper = key(4).public();
    upper.keyval.public.make_ascii_uppercase();
    let alias = upper.id();
    assert_ne!(alias, key(4).id());
    root.keys.insert(alias.clone(), upper);
    root.roles.get_mut("targets").unwrap().keyids.push(alias.clone());
    let set = TrustedSet::new(&signed(&root, &repo.root_signers)).unwrap();
    let other = signature.replace(&key(4).id(), &alias);
    let twice = text.replacen(&signature, &format!("{signature},{other}"), 1);
    assert_eq!(
        refused(&set, &repo.publish_with(&twice)),
        TufError::Threshold { role: RoleName::Targets, valid: 1, needed: 2 }
    );
}

#[test]
fn a_key_under_an_id_that_is_not_its_own_is_refused() {
    let repo = Repo::new();
    let mut root = repo.root.clone();
    // What a reader sees of the root, IDs and thresholds, is as before: another key hides behind one.
    root.keys.insert(key(4).id(), key(66).public());
    let text = format!(r#"{{"signatures": [], "signed": {}}}"#, serde_json::to_string(&root).unwrap());
    let error = TrustedSet::new(&text).unwrap_err().to_string();
    assert!(error.contains(&key(4).id()[..12]) && error.contains(&key(66).id()[..12]), "{error}");
}

#[test]
fn a_changed_byte_anywhere_is_refused() {
    let repo = Repo::new();
    let set = repo.trusted();
    let good = repo.next().publish();
    let state = set.update(&good, at(NOW)).unwrap().documents();
    let change = |reply: &mut MetadataReply, role: RoleName, i: usize| {
        let slot = match role {
            RoleName::Timestamp => &mut reply.timestamp,
            RoleName::Snapshot => &mut reply.snapshot,
            _ => &mut reply.targets,
        };
        let mut bytes = slot.clone().unwrap().into_bytes();
        bytes[i] ^= 1;
        *slot = Some(String::from_utf8(bytes).unwrap());
    };
    for role in [RoleName::Timestamp, RoleName::Snapshot, RoleName::Targets] {
        let text = match role {
            RoleName::Timestamp => &good.timestamp,
            RoleName::Snapshot => &good.snapshot,
            _ => &good.targets,
        };
        for i in 0..text.as_ref().unwrap().len() {
            let mut reply = good.clone();
            change(&mut reply, role, i);
            // A changed signature beside enough others may pass; nothing but the signed content ever does.
            if let Ok(next) = set.update(&reply, at(NOW)) {
                assert_eq!(next.targets(), set.targets());
                assert_eq!(next.versions(), TrustedSet::load(&state).unwrap().versions());
            }
        }
    }
    // In what is signed, the error says so.
    let text = good.targets.clone().unwrap();
    let reply = repo.next().publish_with(&text.replacen("scan/1.0.0", "scan/1.0.1", 1));
    let error = refused(&set, &reply);
    assert!(matches!(error, TufError::BadSignature { role: RoleName::Targets, valid: 0, needed: 2, .. }), "{error}");
    assert!(error.to_string().contains("changed after it was signed"));
}

#[test]
fn expired_metadata_is_a_freeze() {
    let repo = Repo::new();
    let expired = at(NOW);
    for role in RoleName::ALL {
        let mut repo = repo.clone();
        match role {
            RoleName::Root => repo.root.expires = expired,
            RoleName::Timestamp => repo.timestamp.expires = expired,
            RoleName::Snapshot => repo.snapshot.expires = expired,
            RoleName::Targets => repo.targets.expires = expired,
        }
        let set = TrustedSet::new(&repo.root_text()).unwrap();
        assert_eq!(refused(&set, &repo.publish()), TufError::Expired { role, expired, now: expired });
        // One second earlier it was good, and it stays trusted: expiry gates what is new, not what is there.
        let earlier = at("2029-12-31T23:59:59Z");
        let set = set.update(&repo.publish(), earlier).unwrap();
        assert!(set.check_fresh(earlier).is_ok());
        assert!(matches!(set.check_fresh(expired), Err(TufError::Expired { .. })));
        assert!(TrustedSet::load(&set.documents()).is_ok());
        // A peer that has nothing newer, or hides it, cannot make it fresh.
        assert!(matches!(refused(&set, &MetadataReply::default()), TufError::Expired { .. }));
    }
}

#[test]
fn older_metadata_is_a_rollback() {
    let old = Repo::new();
    let new = old.next().next();
    let set = new.trusted();
    let (what, trusted) = ("timestamp".to_owned(), 3);
    assert_eq!(refused(&set, &old.publish()), TufError::Rollback { what, offered: 1, trusted });
    // A new timestamp for an old snapshot.
    let mut mixed = old.clone();
    mixed.timestamp.version = 4;
    let error = refused(&set, &mixed.publish());
    assert!(matches!(&error, TufError::Rollback { what, .. } if what.contains("timestamp's snapshot")), "{error}");
    // A new snapshot for old targets.
    let mut mixed = new.next();
    mixed.targets.version = 2;
    let error = refused(&set, &mixed.publish());
    assert!(matches!(&error, TufError::Rollback { what, offered: 2, trusted: 3 } if what.contains("targets.json")));
    assert!(error.to_string().contains("rollback attack"), "{error}");
    // A file that a new snapshot no longer names.
    let mut more = new.next();
    more.snapshot.meta.insert("extra.json".into(), MetaFile { version: 5, length: None, hashes: None });
    let set = set.update(&more.publish(), at(NOW)).unwrap();
    let error = refused(&set, &new.next().next().publish());
    assert!(matches!(&error, TufError::Rollback { what, .. } if what.contains("extra.json")), "{error}");
}

#[test]
fn documents_of_different_publications_do_not_mix() {
    let repo = Repo::new();
    let set = repo.trusted();
    let (one, two) = (repo.next().publish(), repo.next().next().publish());
    for reply in [
        MetadataReply { targets: one.targets.clone(), ..two.clone() },
        MetadataReply { snapshot: one.snapshot.clone(), ..two.clone() },
        MetadataReply { targets: None, ..two.clone() },
        MetadataReply { snapshot: None, targets: None, ..two.clone() },
    ] {
        let error = refused(&set, &reply);
        assert!(matches!(error, TufError::MixAndMatch { .. }), "{error}");
    }
    // Same version, other content.
    let mut other = repo.next().next();
    other.targets.expires = at("2030-06-01T00:00:00Z");
    let reply = MetadataReply { targets: other.publish().targets, ..two.clone() };
    assert!(matches!(refused(&set, &reply), TufError::MixAndMatch { role: RoleName::Targets, .. }));
    let fresh = TrustedSet::new(&repo.root_text()).unwrap();
    assert_eq!(refused(&fresh, &MetadataReply::default()), TufError::Missing { role: RoleName::Timestamp });
    let reply = MetadataReply { targets: None, ..one };
    assert_eq!(refused(&fresh, &reply), TufError::Missing { role: RoleName::Targets });
}

#[test]
fn one_version_has_one_content() {
    let repo = Repo::new();
    let set = repo.trusted();
    // Two copies of a repository publish after the same state; the second one even has a newer timestamp.
    let (mine, mut theirs) = (repo.next(), repo.next());
    theirs.targets.targets.clear();
    theirs.timestamp.version += 1;
    let set = set.update(&mine.publish(), at(NOW)).unwrap();
    let error = refused(&set, &theirs.publish());
    assert_eq!(error, TufError::Equivocation { role: RoleName::Snapshot, version: 2 });
    assert!(error.to_string().contains("same version"), "{error}");
    theirs.snapshot.version += 1;
    assert_eq!(refused(&set, &theirs.publish()), TufError::Equivocation { role: RoleName::Targets, version: 2 });
    // An equal timestamp is discarded (5.4.3.1), whatever it says.
    let mut again = mine.clone();
    again.timestamp.expires = at("2030-06-01T00:00:00Z");
    let next = set.update(&again.publish(), at(NOW)).unwrap();
    assert_eq!(next.documents(), set.documents());
    // One more signature is no other content.
    let mut more = mine.clone();
    more.targets_signers.push(key(6));
    more.snapshot.version += 1;
    more.timestamp.version += 1;
    set.update(&more.publish(), at(NOW)).unwrap();
}

/// The next root: other keys, signed by `signers`.
fn rotate(root: &RootMeta, keys: &[SecretKey], signers: &[SecretKey]) -> (RootMeta, String) {
    let mut next = root.clone();
    next.version += 1;
    list(&mut next, RoleName::Root, 2, keys);
    let text = signed(&next, signers);
    (next, text)
}

#[test]
fn roots_are_walked_one_by_one() {
    let repo = Repo::new();
    let first = repo.root_text();
    let set = repo.trusted();
    let (mut two, _) = rotate(&repo.root, &[key(11), key(12)], &[]);
    two.expires = at("2029-01-01T00:00:00Z"); // an expired one on the way is fine
    let two_text = signed(&two, &[key(1), key(2), key(11), key(12)]);
    let (_, three_text) = rotate(&two, &[key(21), key(22)], &[key(11), key(12), key(21), key(22)]);
    let (mut three, _) = rotate(&two, &[key(21), key(22)], &[]);
    three.expires = at("2032-01-01T00:00:00Z");
    let three_text_good = signed(&three, &[key(11), key(12), key(21), key(22)]);
    let roots = |texts: &[&String]| MetadataReply {
        roots: texts.iter().map(|text| (*text).clone()).collect(),
        ..MetadataReply::default()
    };
    let next = set.update(&roots(&[&two_text, &three_text_good]), at(NOW)).unwrap();
    assert_eq!(next.versions().root, 3);
    assert_eq!(next.targets(), set.targets());
    // Those that led there are skipped.
    let all = roots(&[&first, &two_text, &three_text_good]);
    assert_eq!(next.update(&all, at(NOW)).unwrap().documents(), next.documents());
    assert_eq!(set.update(&all, at(NOW)).unwrap().documents(), next.documents());

    assert!(matches!(refused(&set, &roots(&[&two_text])), TufError::Expired { role: RoleName::Root, .. }));
    assert!(matches!(refused(&set, &roots(&[&two_text, &three_text])), TufError::Expired { .. }));
    let (mut far, _) = rotate(&repo.root, &[key(1), key(2)], &[]);
    far.version = 5;
    let far = signed(&far, &[key(1), key(2)]);
    assert_eq!(refused(&set, &roots(&[&far])), TufError::RootGap { trusted: 1, offered: 5 });
    assert!(matches!(
        refused(&set, &roots(&[&two_text, &first])),
        TufError::BadSignature { .. } | TufError::UnknownKey { .. }
    ));
    // Signed by the new keys only, by the old only, by one of each.
    for signers in [&[key(11), key(12)][..], &[key(1), key(2)], &[key(1), key(11)]] {
        let (_, text) = rotate(&repo.root, &[key(11), key(12)], signers);
        let error = refused(&set, &roots(&[&text]));
        assert!(matches!(error, TufError::UnknownKey { role: RoleName::Root, .. }), "{error}");
    }
    let many = MetadataReply { roots: vec![first; MAX_ROOTS + 1], ..MetadataReply::default() };
    assert_eq!(refused(&set, &many), TufError::TooManyRoots(MAX_ROOTS + 1));
}

#[test]
fn a_stolen_pipeline_key_is_recovered_from_by_rotating_it() {
    let mut repo = Repo::new();
    repo.timestamp.version = 1_000_000;
    repo.snapshot.version = 1_000_000;
    let set = repo.trusted(); // fast-forwarded by the thief
    let good = Repo::new().next();
    assert!(matches!(refused(&set, &good.publish()), TufError::Rollback { .. }));
    let mut recovered = good.clone();
    recovered.pipeline = key(8);
    recovered.root.version = 2;
    list(&mut recovered.root, RoleName::Snapshot, 1, &[key(8)]);
    list(&mut recovered.root, RoleName::Timestamp, 1, &[key(8)]);
    let reply = MetadataReply { roots: vec![recovered.root_text()], ..recovered.publish() };
    let next = set.update(&reply, at(NOW)).unwrap();
    assert_eq!(next.versions(), MetadataRequest { root: 2, timestamp: 2, snapshot: 2, targets: 2 });
    // What the thief signs now counts for nothing.
    assert!(matches!(refused(&next, &good.next().publish()), TufError::UnknownKey { role: RoleName::Timestamp, .. }));
    // The peer of one that is behind the new root sends everything.
    let sent = next.newer_than(&set.versions(), &[repo.root_text(), recovered.root_text()]);
    assert_eq!(set.update(&sent, at(NOW)).unwrap().documents(), next.documents());
}

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
fn keys_of_other_kinds_are_tolerated_and_never_count() {
    let mut repo = Repo::new();
    let mut rsa = key(50).public();
    rsa.keytype = "rsa".into();
    rsa.scheme = "rsassa-pss-sha256".into();
    repo.root.keys.insert("rsa-key".into(), rsa);
    repo.root.roles.get_mut("targets").unwrap().keyids.push("rsa-key".into());
    let set = TrustedSet::new(&repo.root_text()).unwrap();
    assert!(set.update(&repo.publish(), at(NOW)).is_ok());
    let text = signed(&repo.targets, &[key(4), key(50)]).replace(&key(50).id(), "rsa-key");
    let error = refused(&set, &repo.publish_with(&text));
    assert!(matches!(error, TufError::BadSignature { valid: 1, needed: 2, .. }), "{error}");
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
