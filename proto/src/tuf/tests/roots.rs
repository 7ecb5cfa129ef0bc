//! Roots that change: walked one by one, and a stolen key is recovered from.

use super::*;

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
fn a_peer_that_is_far_behind_asks_until_nothing_newer_comes() {
    let repo = Repo::new();
    let mut roots = vec![repo.root_text()];
    let mut last = repo.clone();
    for _ in 0..MAX_ROOTS + 40 {
        last.root.version += 1;
        // Each is past its time but the last: they lead on all the same.
        last.root.expires = at("2029-01-01T00:00:00Z");
        roots.push(signed(&last.root, &[key(1), key(2)]));
    }
    last.root.expires = repo.root.expires;
    last.pipeline = key(8); // what the old one signed is forgotten at the end alone
    for role in [RoleName::Snapshot, RoleName::Timestamp] {
        list(&mut last.root, role, 1, &[key(8)]);
    }
    roots.pop();
    roots.push(signed(&last.root, &[key(1), key(2)]));
    let published = last.next().publish();
    let hub = {
        let mut hub = repo.trusted();
        for some in roots.chunks(MAX_ROOTS) {
            hub = hub.update_root(some, Timestamp::MIN).unwrap();
        }
        hub.update(&MetadataReply { roots: vec![], ..published }, at(NOW)).unwrap()
    };
    let mut peer = repo.trusted();
    let before = peer.clone();
    let first = hub.newer_than(&peer.versions(), &roots);
    assert!(first.is_part() && first.roots.len() == MAX_ROOTS);
    peer = peer.walk(&first).unwrap().unwrap();
    assert_eq!((peer.versions().root, peer.targets()), (MAX_ROOTS as u64 + 1, before.targets()));
    assert!(peer.walk(&first).unwrap().is_none(), "it leads no further, and would be asked for ever");
    let rest = hub.newer_than(&peer.versions(), &roots);
    assert!(!rest.is_part() && peer.walk(&rest).unwrap().is_none());
    assert_eq!(peer.update(&rest, at(NOW)).unwrap().documents(), hub.documents());
    // A part with a gap, or signed by others, leads nowhere.
    let gap = MetadataReply { roots: vec![roots[2].clone()], ..MetadataReply::default() };
    assert_eq!(before.walk(&gap).err(), Some(TufError::RootGap { trusted: 1, offered: 3 }));
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
