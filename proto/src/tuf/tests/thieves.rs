//! What a thief of one role's key can do, and what a root without that key takes back. Every role has keys of its own.

use super::*;

const TIMESTAMP: u8 = 7;
const SNAPSHOT: u8 = 8;
const NEW: u8 = 9;

fn repo() -> Repo {
    let mut repo = Repo::new();
    list(&mut repo.root, RoleName::Snapshot, 1, &[key(SNAPSHOT)]);
    repo
}

/// Publishes with these keys for timestamp and snapshot.
fn publish(repo: &Repo, timestamp_key: u8, snapshot_key: u8) -> MetadataReply {
    let targets = signed(&repo.targets, &repo.targets_signers);
    let mut snapshot = repo.snapshot.clone();
    snapshot.meta.insert("targets.json".into(), MetaFile::of(repo.targets.version, &targets));
    let snapshot = signed(&snapshot, &[key(snapshot_key)]);
    let mut timestamp = repo.timestamp.clone();
    timestamp.meta.insert("snapshot.json".into(), MetaFile::of(repo.snapshot.version, &snapshot));
    let timestamp = signed(&timestamp, &[key(timestamp_key)]);
    MetadataReply { roots: vec![], timestamp: Some(timestamp), snapshot: Some(snapshot), targets: Some(targets) }
}

fn trusted(repo: &Repo) -> TrustedSet {
    TrustedSet::new(&repo.root_text()).unwrap().update(&publish(repo, TIMESTAMP, SNAPSHOT), at(NOW)).unwrap()
}

/// The next root, with other keys for a role.
fn rotated(repo: &Repo, role: RoleName, threshold: u32, keys: &[SecretKey]) -> String {
    let mut next = repo.clone();
    next.root.version += 1;
    list(&mut next.root, role, threshold, keys);
    next.root_text()
}

#[test]
fn the_key_of_one_role_signs_for_no_other() {
    let repo = repo();
    let set = trusted(&repo);
    for (timestamp, snapshot, role) in
        [(TIMESTAMP, TIMESTAMP, RoleName::Snapshot), (SNAPSHOT, SNAPSHOT, RoleName::Timestamp)]
    {
        let error = refused(&set, &publish(&repo.next(), timestamp, snapshot));
        assert!(matches!(error, TufError::UnknownKey { role: found, .. } if found == role), "{error}");
    }
}

#[test]
fn a_snapshot_that_the_timestamp_does_not_name_is_refused() {
    let repo = repo();
    let set = trusted(&repo);
    let good = publish(&repo.next(), TIMESTAMP, SNAPSHOT);
    // The thief of its key says of the same targets what the timestamp did not announce.
    let mut other = repo.next();
    other.snapshot.expires = at("2030-06-01T00:00:00Z");
    let reply = MetadataReply { snapshot: publish(&other, TIMESTAMP, SNAPSHOT).snapshot, ..good.clone() };
    let error = refused(&set, &reply);
    assert!(matches!(error, TufError::MixAndMatch { role: RoleName::Snapshot, .. }), "{error}");
    // Of another version, where the timestamp names a version alone.
    let mut timestamp = repo.next().timestamp;
    timestamp.meta.insert("snapshot.json".into(), MetaFile { version: 2, length: None, hashes: None });
    let mut far = repo.next();
    far.snapshot.version = 3;
    let snapshot = publish(&far, TIMESTAMP, SNAPSHOT).snapshot;
    let reply = MetadataReply { timestamp: Some(signed(&timestamp, &[key(TIMESTAMP)])), snapshot, ..good };
    let error = refused(&set, &reply);
    assert!(matches!(error, TufError::MixAndMatch { role: RoleName::Snapshot, .. }), "{error}");
}

#[test]
fn a_root_without_the_key_of_one_role_takes_back_what_it_signed() {
    let mut repo = repo();
    (repo.timestamp.version, repo.snapshot.version) = (1_000_000, 1_000_000);
    let set = trusted(&repo);
    // Timestamp and snapshot hang together: with either of them the other goes.
    for role in [RoleName::Timestamp, RoleName::Snapshot] {
        let next = set.update_root(&[rotated(&repo, role, 1, &[key(NEW)])], at(NOW)).unwrap();
        assert_eq!(next.versions(), MetadataRequest { root: 2, timestamp: 0, snapshot: 0, targets: 1 }, "{role}");
        assert_eq!(next.targets(), set.targets());
    }
    let keys = [key(NEW), key(10)];
    let next = set.update_root(&[rotated(&repo, RoleName::Targets, 2, &keys)], at(NOW)).unwrap();
    assert_eq!((next.versions().targets, next.targets().len()), (0, 0));
    assert!(next.targets_meta().is_none() && next.manifest_target(&"scan@1.0.0".parse().unwrap()).is_err());
    // Who still signs is still believed.
    let mut more = repo.clone();
    more.root.version += 1;
    let next = set.update_root(&[more.root_text()], at(NOW)).unwrap();
    assert_eq!(next.versions(), MetadataRequest { root: 2, ..set.versions() });
}

#[test]
fn roots_alone_are_walked_with_the_same_care() {
    let repo = repo();
    let set = trusted(&repo);
    let mut expired = repo.clone();
    expired.root.version = 2;
    expired.root.expires = at(NOW);
    let error = set.update_root(&[expired.root_text()], at(NOW)).unwrap_err();
    assert!(matches!(error, TufError::Expired { role: RoleName::Root, .. }), "{error}");
    // As many as may come, and no more.
    assert!(set.update_root(&vec![repo.root_text(); MAX_ROOTS], at(NOW)).is_ok());
    assert!(set.update_root(&vec![repo.root_text(); MAX_ROOTS + 1], at(NOW)).is_err());
    // The keys are right, and after a newer root the version goes back, or stands still.
    let mut two = repo.clone();
    two.root.version = 2;
    for version in [1, 2] {
        let mut back = two.clone();
        back.root.version = version;
        back.root.expires = at("2040-01-01T00:00:00Z");
        let error = set.update_root(&[two.root_text(), back.root_text()], at(NOW)).unwrap_err();
        assert_eq!(error, TufError::Rollback { what: "root".into(), offered: version, trusted: 2 });
    }
}
