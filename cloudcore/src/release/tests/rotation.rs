//! Keys that change: added, taken away, revoked; and what the old ones sign afterwards.

use proto::tuf::{
    TufError,
    schema::{MetaFile, SnapshotMeta, TargetsMeta, TimestampMeta},
    sign::Document,
};

use super::*;
use crate::release::{
    ceremony,
    chain::verify_chain,
    rotate::{self, Change, Duty, RotateError},
};

fn team() -> proto::tuf::schema::RootMeta {
    Desk::new().repository().next_root().unwrap()
}

#[test]
fn changes_keep_every_role_able_to_sign() {
    let root = team();
    let next = rotate::apply(
        &root,
        &[
            Change::Add(Duty::Pipeline, key(8).public().named("ci")),
            Change::Remove(Duty::Pipeline, key(7).id()),
            Change::Threshold(Duty::Targets, 3),
        ],
    )
    .unwrap();
    assert_eq!(Duty::of(&next, &key(8).id()), [Duty::Pipeline]);
    assert!(!next.keys.contains_key(&key(7).id()), "a key without a duty is not listed");
    assert_eq!((next.roles["timestamp"].keyids.as_slice(), next.roles["targets"].threshold), (&[key(8).id()][..], 3));
    assert_eq!(rotate::label(&next, &key(8).id()), format!("ci ({})", proto::tuf::key::short(&key(8).id())));

    let too_few = |change: Change| {
        let error = rotate::apply(&root, &[change]).unwrap_err();
        assert!(matches!(error, RotateError::TooFew { .. }) && error.to_string().contains("--threshold"), "{error}");
    };
    too_few(Change::Remove(Duty::Root, key(1).id()));
    too_few(Change::Threshold(Duty::Targets, 4));
    too_few(Change::Threshold(Duty::Root, 0));
    let refused = |change: Change| rotate::apply(&root, &[change]).unwrap_err();
    assert!(matches!(refused(Change::Add(Duty::Root, key(1).public())), RotateError::Listed(..)));
    assert!(matches!(refused(Change::Remove(Duty::Root, key(7).id())), RotateError::NotListed(..)));
    assert!(matches!(refused(Change::Threshold(Duty::Root, 1)), RotateError::Nothing));
    let mut rsa = key(9).public();
    rsa.keytype = "rsa".into();
    assert!(matches!(refused(Change::Add(Duty::Root, rsa)), RotateError::Kind(_)));
    // Another key under a second ID counts once.
    let mut twin = key(4).public();
    twin.keyval.other.insert("x".into(), proto::tuf::json::Json::Null);
    let changes = [Change::Remove(Duty::Targets, key(5).id()), Change::Remove(Duty::Targets, key(6).id())];
    let changes = [&changes[..], &[Change::Add(Duty::Targets, twin)]].concat();
    assert!(matches!(rotate::apply(&root, &changes), Err(RotateError::TooFew { keys: 1, .. })));
}

#[test]
fn keys_are_found_by_id_and_name_and_never_guessed() {
    let mut root = team();
    root.keys.insert(key(4).id(), key(4).public().named("ann"));
    let id = key(4).id();
    for text in ["ann", &id, id.get(..8).unwrap(), &id.to_uppercase()] {
        assert_eq!(rotate::find(&root, text).unwrap(), id, "{text}");
    }
    assert!(matches!(rotate::find(&root, id.get(..7).unwrap()), Err(RotateError::Unknown { .. })));
    root.keys.insert(key(5).id(), key(5).public().named("ann"));
    assert!(matches!(rotate::find(&root, "ann"), Err(RotateError::Ambiguous(_))));
}

/// What a thief publishes with stolen keys: targets signed by `targets`, the rest by `pipeline`, versions as given.
fn forged(roots: &[String], old: &TrustedSet, targets: &SecretKey, pipeline: &SecretKey, step: u64) -> MetadataReply {
    let versions = old.versions();
    let meta = TargetsMeta { version: versions.targets + step, ..old.targets_meta().unwrap().clone() };
    let mut document = Document::new(&meta).unwrap();
    document.sign(targets);
    let text = document.text();
    let common = |version| (SPEC_VERSION.to_owned(), version, meta.expires);
    let (spec_version, version, expires) = common(versions.snapshot + step);
    let snapshot = SnapshotMeta {
        kind: "snapshot".into(),
        spec_version,
        version,
        expires,
        meta: [("targets.json".to_owned(), MetaFile::of(meta.version, &text))].into(),
        other: [].into(),
    };
    let mut document = Document::new(&snapshot).unwrap();
    document.sign(pipeline);
    let snapshot_text = document.text();
    let (spec_version, version, expires) = common(versions.timestamp + step);
    let timestamp = TimestampMeta {
        kind: "timestamp".into(),
        spec_version,
        version,
        expires,
        meta: [("snapshot.json".to_owned(), MetaFile::of(snapshot.version, &snapshot_text))].into(),
        other: [].into(),
    };
    let mut document = Document::new(&timestamp).unwrap();
    document.sign(pipeline);
    MetadataReply {
        roots: roots.to_vec(),
        timestamp: Some(document.text()),
        snapshot: Some(snapshot_text),
        targets: Some(text),
    }
}

use proto::tuf::schema::SPEC_VERSION;

#[test]
fn a_revoked_targets_key_is_needed_for_nothing_and_signs_nothing() {
    let desk = Desk::new();
    let setup = Setup::small_team(&key(1), &key(4), &key(7));
    let repository = Repository::create(&desk.path("repo"), &setup, now()).unwrap();
    repository.add(&desk.build().unwrap(), now()).unwrap();
    repository.sign(&[key(1), key(4)]).unwrap();
    let before = client(&repository.finish(&key(7), now()).unwrap());
    let stolen =
        |set: &TrustedSet, step| set.update(&forged(&repository.roots().unwrap(), set, &key(4), &key(7), step), now());
    assert!(stolen(&before, 1).is_ok(), "it would have worked");

    let error = repository.revoke(&key(4).id(), None, now()).unwrap_err();
    assert!(chain(&error).contains("targets would have 0 keys"), "{error}");
    let rotated = repository.revoke(&key(4).id(), Some(&key(5).public()), now()).unwrap();
    assert_eq!((rotated.version, rotated.duties, rotated.targets_again), (2, vec![Duty::Targets], true));
    assert!(repository.revoke(&key(4).id(), None, now()).is_err(), "it is listed nowhere any more");
    let open = ceremony::quorums(&repository).unwrap();
    let missing: Vec<_> = open.iter().map(|q| (q.role, q.asked_by, q.missing())).collect();
    assert_eq!(missing, [(RoleName::Root, 1, 1), (RoleName::Root, 2, 1), (RoleName::Targets, 2, 1)]);
    assert!(chain(&repository.sign(&[key(4)]).unwrap_err()).contains("unknown key"));
    repository.sign(&[key(1), key(5)]).unwrap();
    assert!(ceremony::quorums(&repository).unwrap().iter().all(|q| q.missing() == 0 && q.text().contains("enough")));

    let after = before.update(&repository.finish(&key(7), now()).unwrap().reply, now()).unwrap();
    assert_eq!((after.versions().root, after.targets().len()), (2, 1));
    assert!(matches!(stolen(&after, 1), Err(TufError::UnknownKey { role: RoleName::Targets, .. })));
    // A client that took what the thief published comes back.
    let fooled = stolen(&before, 1000).unwrap_err();
    assert!(matches!(fooled, TufError::UnknownKey { .. }), "{fooled}");
    let first_roots = &repository.roots().unwrap()[..1];
    let fooled = before.update(&forged(first_roots, &before, &key(4), &key(7), 1000), now()).unwrap();
    assert_eq!(fooled.versions().targets, before.versions().targets + 1000);
}

#[test]
fn what_a_thief_published_is_superseded_by_a_root_without_both_keys() {
    let desk = Desk::new();
    let setup = Setup::small_team(&key(1), &key(4), &key(7));
    let repository = Repository::create(&desk.path("repo"), &setup, now()).unwrap();
    repository.add(&desk.build().unwrap(), now()).unwrap();
    repository.sign(&[key(1), key(4)]).unwrap();
    let before = client(&repository.finish(&key(7), now()).unwrap());
    let served = forged(&repository.roots().unwrap(), &before, &key(4), &key(7), 1000);
    let fooled = before.update(&served, now()).unwrap();
    assert!(matches!(repository.follows(&served), Err(ReleaseError::Forked { version: 1001, .. })));
    repository.revoke(&key(4).id(), Some(&key(5).public()), now()).unwrap();
    repository.follows(&served).unwrap();
    repository.revoke(&key(7).id(), Some(&key(8).public()), now()).unwrap();
    repository.sign(&[key(1), key(5)]).unwrap();
    let after = fooled.update(&repository.finish(&key(8), now()).unwrap().reply, now()).unwrap();
    assert_eq!((after.versions().targets, after.targets().len()), (2, 1));
    repository.follows(&served).unwrap();
}

#[test]
fn a_revoked_pipeline_key_cannot_hold_back_and_its_high_versions_are_forgotten() {
    let desk = Desk::new();
    let repository = desk.published();
    let before = client(&repository.publication().unwrap());
    let fooled = before.update(&forged_timestamp(&repository, &before, 1 << 40), now()).unwrap();
    repository.revoke(&key(7).id(), Some(&key(8).public()), now()).unwrap();
    assert!(repository.staged().unwrap().targets.is_none(), "the targets were not signed by it");
    repository.sign(&[key(1)]).unwrap();
    assert!(chain(&repository.finish(&key(7), now()).unwrap_err()).contains("unknown key"));
    let publication = repository.finish(&key(8), now()).unwrap();
    for set in [&before, &fooled] {
        let after = set.update(&publication.reply, now()).unwrap();
        let thief = after.update(&forged_timestamp(&repository, &before, 1 << 41), now());
        assert!(matches!(thief, Err(TufError::UnknownKey { role: RoleName::Timestamp, .. })), "{thief:?}");
    }
}

/// The published snapshot under an absurdly new timestamp of key 7.
fn forged_timestamp(repository: &Repository, set: &TrustedSet, step: u64) -> MetadataReply {
    let mut reply = repository.publication().unwrap().reply;
    let old = proto::tuf::schema::Offered::<TimestampMeta>::parse(set.documents().timestamp.as_ref().unwrap()).unwrap();
    let mut document = Document::new(&TimestampMeta { version: step, ..old.signed }).unwrap();
    document.sign(&key(7));
    reply.timestamp = Some(document.text());
    reply
}

#[test]
fn roots_alone_rotate_without_any_release() {
    let desk = Desk::new();
    let setup = Setup {
        root: vec![key(1).public(), key(2).public(), key(3).public()],
        root_threshold: 2,
        ..Setup::small_team(&key(1), &key(7), &key(7))
    };
    let repository = Repository::create_chain(&desk.path("director"), &setup, now()).unwrap();
    assert!(!repository.has_releases().unwrap());
    let failed = |why: &str| assert!(chain(&repository.finish_root(now()).unwrap_err()).contains(why), "{why}");
    failed("0 of 2");
    repository.sign(&[key(1), key(2)]).unwrap();
    assert_eq!(repository.finish_root(now()).unwrap().version, 1);
    failed("no root is staged");

    // The online key is replaced everywhere at once; a root key goes too.
    let rotated = repository.revoke(&key(7).id(), Some(&key(8).public()), now()).unwrap();
    assert_eq!((rotated.duties, rotated.targets_again), (vec![Duty::Targets, Duty::Pipeline], false));
    let rotated = repository.revoke(&key(3).id(), Some(&key(9).public()), now()).unwrap();
    assert_eq!(rotated.version, 2, "both go out together");
    repository.sign(&[key(9), key(1)]).unwrap();
    failed("1 of 2"); // key 9 says nothing to who trusts version 1
    repository.sign(&[key(2)]).unwrap();
    assert_eq!(repository.finish_root(now()).unwrap().version, 2);
    let roots = repository.roots().unwrap();
    assert_eq!(roots.len(), 2);
    assert_eq!(verify_chain(&roots, now()).unwrap().roles["targets"].keyids, [key(8).id()]);
    assert!(verify_chain(&roots[1..], now()).is_err(), "the first is missing");
    assert!(verify_chain(&roots, "2032-01-01T00:00:00Z".parse().unwrap()).is_err(), "it has expired");

    // Only a later end; an end that is past is refused; releases and roots alone do not mix.
    assert!(repository.rotate(&[], Some(now()), now()).is_err());
    repository.rotate(&[], Some("2040-01-01T00:00:00Z".parse().unwrap()), now()).unwrap();
    repository.sign(&[key(1), key(2)]).unwrap();
    assert_eq!(repository.finish_root(now()).unwrap().version, 3);
    let error = desk.published().finish_root(now()).unwrap_err();
    assert!(chain(&error).contains("release publish"), "{error}");
}
