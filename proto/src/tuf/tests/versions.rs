//! Expired, older, mixed and ambiguous publications.

use super::*;

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
