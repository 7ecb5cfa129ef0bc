//! Too few signatures, keys that count twice or are another, and bytes that changed.

use super::*;

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
