//! From a folder to a publication that clients believe, and what is never published.

use super::*;

#[test]
fn a_release_goes_from_a_folder_to_a_publication_that_clients_believe() {
    let desk = Desk::new();
    let repository = desk.repository();
    let built = desk.build().unwrap();
    assert_eq!(built.bytes, desk.build().unwrap().bytes, "building again gives the same bytes");
    let added = repository.add(&built, now()).unwrap();
    assert_eq!(added, Added::Staged { release_counter: 1, dropped_signatures: 0 });
    let progress = repository.sign(&[key(1), key(4)]).unwrap();
    assert_eq!((progress[1].tally.valid, progress[1].tally.needed), (1, 2));
    repository.sign(&[key(6)]).unwrap(); // the other signer, later
    let publication = repository.finish(&key(7), now()).unwrap();

    let set = client(&publication);
    let target = set.manifest_target(&built.name()).unwrap();
    assert_eq!(target.digest, built.digest);
    for (digest, path) in &publication.blobs {
        assert_eq!(Digest::of(&fs::read(path).unwrap()), *digest);
    }
    assert_eq!(publication.blobs.len(), 3);
    assert_eq!(repository.publication().unwrap(), publication);
    assert_eq!(repository.add(&built, now()).unwrap(), Added::AlreadyPublished { restored: 0 });
    assert_eq!(verify::repository(&repository, now()).unwrap().releases.len(), 1);
    assert_eq!(verify::build(&repository, &built, now()).unwrap(), *target);

    // A second one; clients of the first follow. With nothing staged only the timestamp is renewed.
    desk.yaml("1.1.0", "command: bin/run");
    let next = desk.build().unwrap();
    assert!(matches!(repository.add(&next, now()).unwrap(), Added::Staged { release_counter: 2, .. }));
    let changes = describe::targets(
        &repository,
        repository.published().unwrap().unwrap().targets_meta(),
        &repository.staged().unwrap().targets.unwrap().signed,
    )
    .join("\n");
    assert!(changes.contains("adds     scan@1.1.0") && changes.contains("against 1.0.0: 0 files changed"), "{changes}");
    repository.sign(&[key(5), key(6)]).unwrap();
    let second = set.update(&repository.finish(&key(7), now()).unwrap().reply, now()).unwrap();
    assert_eq!(second.targets().len(), 2);
    let third = second.update(&repository.finish(&key(7), now()).unwrap().reply, now()).unwrap();
    let (before, after) = (second.versions(), third.versions());
    assert_eq!(
        (after.timestamp, after.snapshot, after.targets),
        (before.timestamp + 1, before.snapshot, before.targets)
    );
}

#[test]
fn a_step_back_on_purpose_has_a_higher_counter_and_a_withdrawal_takes_effect() {
    let desk = Desk::new();
    let repository = desk.published();
    desk.yaml("1.1.0", "command: bin/run");
    repository.add(&desk.build().unwrap(), now()).unwrap();
    assert_eq!(repository.reissue(&"scan@1.0.0".parse().unwrap(), now()).unwrap(), 3);
    repository.remove(&"scan@1.1.0".parse().unwrap(), now()).unwrap();
    assert!(repository.remove(&"scan@9".parse().unwrap(), now()).is_err());
    repository.renew(RoleName::Targets, now()).unwrap();
    repository.sign(&[key(4), key(5)]).unwrap();
    let set = client(&repository.finish(&key(7), now()).unwrap());
    assert_eq!(set.manifest_target(&"scan@1.0.0".parse().unwrap()).unwrap().custom.release_counter, 3);
    assert!(set.manifest_target(&"scan@1.1.0".parse().unwrap()).is_err());
    // A renewed root needs its signatures, then clients follow it.
    repository.renew(RoleName::Root, now()).unwrap();
    assert!(repository.finish(&key(7), now()).is_err());
    repository.sign(&[key(1)]).unwrap();
    let set = set.update(&repository.finish(&key(7), now()).unwrap().reply, now()).unwrap();
    assert_eq!(set.versions().root, 2);
}

#[test]
fn a_withdrawn_release_leaves_its_name_and_its_counter_behind() {
    let desk = Desk::new();
    let repository = desk.published();
    let publish = || {
        repository.sign(&[key(4), key(5)]).unwrap();
        repository.finish(&key(7), now()).unwrap();
    };
    desk.yaml("1.1.0", "command: bin/run");
    let withdrawn = desk.build().unwrap();
    assert!(matches!(repository.add(&withdrawn, now()).unwrap(), Added::Staged { release_counter: 2, .. }));
    publish();
    repository.remove(&withdrawn.name(), now()).unwrap();
    publish();
    desk.yaml("1.2.0", "command: bin/run");
    // Nodes that ran 1.1.0 refuse everything below counter 2 for ever.
    assert!(matches!(repository.add(&desk.build().unwrap(), now()).unwrap(), Added::Staged { release_counter: 3, .. }));
    assert_eq!(repository.reissue(&"scan@1.0.0".parse().unwrap(), now()).unwrap(), 4);
    publish();
    desk.yaml("1.1.0", "command: bin/run\n  args: [other]");
    let error = repository.add(&desk.build().unwrap(), now()).unwrap_err();
    assert!(matches!(error, ReleaseError::Immutable { .. }), "{error}");
    // The withdrawn content itself may come back.
    assert!(matches!(repository.add(&withdrawn, now()).unwrap(), Added::Staged { release_counter: 5, .. }));
}

#[test]
fn a_changed_root_names_its_keys_in_full() {
    let old = Desk::new().repository().next_root().unwrap();
    let mut new = old.clone();
    let signers = &mut new.roles.get_mut("targets").unwrap().keyids;
    signers.retain(|id| *id != key(4).id());
    signers.push(key(9).id());
    new.keys.insert(key(9).id(), key(9).public());
    new.keys.insert(key(9).id(), key(9).public().named("Zo\u{eb}"));
    new.keys.insert(key(5).id(), key(5).public().named("bob"));
    new.expires = old.expires - jiff::SignedDuration::from_hours(24);
    new.other.insert("x-new".into(), proto::tuf::json::Json::Null);
    new.roles.get_mut("targets").unwrap().threshold = 1;
    new.roles.get_mut("targets").unwrap().keyids.push(key(1).id());
    let lines = describe::root(Some(&old), &new);
    for line in [
        format!("adds key {}, Zo\u{eb}", key(9).id()),
        format!("removes key {}", key(4).id()),
        format!("RENAMES  key {}: nobody -> bob", key(5).id()),
    ] {
        assert_eq!(lines.iter().filter(|l| l.trim() == line).count(), 1, "{lines:?}");
    }
    let text = lines.join("\n");
    for part in ["EARLIER", "field \"x-new\"", "targets: 1 of 4", "was 2 of 3", "root and targets: one theft", "bob ("]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(describe::root(Some(&old), &old).iter().all(|line| !line.contains(" key ")));
}

#[test]
fn only_what_was_shown_is_signed() {
    let desk = Desk::new();
    let repository = desk.published();
    desk.yaml("1.1.0", "command: bin/run");
    repository.add(&desk.build().unwrap(), now()).unwrap();
    let shown = repository.staged().unwrap();
    repository.sign(&[key(4)]).unwrap(); // another signer's signature is no other content
    repository.remove(&"scan@1.0.0".parse().unwrap(), now()).unwrap();
    let before = state(repository.dir());
    let error = chain(&repository.sign_shown(&shown, &[key(5)]).unwrap_err());
    assert!(error.contains("changed while"), "{error}");
    assert_eq!(state(repository.dir()), before);
    repository.sign_shown(&repository.staged().unwrap(), &[key(5)]).unwrap();
}

#[tokio::test]
async fn a_copy_of_the_repository_does_not_undo_what_another_published() {
    let desk = Desk::new();
    let repository = desk.published();
    let hub = Hub { blobs: RefCell::default(), breaks_after: 100, published: RefCell::default() };
    repository.follows(&hub.metadata().await.unwrap()).unwrap();
    upload(&hub, &repository.publication().unwrap(), |_| ()).await.unwrap();
    repository.follows(&hub.metadata().await.unwrap()).unwrap();

    // The same publication in another copy; both go on from there, each in its own way.
    let other = Desk::new();
    let copy = other.published();
    for (desk, repository, version) in [(&desk, &repository, "1.1.0"), (&other, &copy, "1.2.0")] {
        desk.yaml(version, "command: bin/run");
        repository.add(&desk.build().unwrap(), now()).unwrap();
        repository.sign(&[key(4), key(5)]).unwrap();
    }
    copy.follows(&hub.metadata().await.unwrap()).unwrap();
    upload(&hub, &repository.finish(&key(7), now()).unwrap(), |_| ()).await.unwrap();
    let error = copy.follows(&hub.metadata().await.unwrap()).unwrap_err();
    assert!(matches!(error, ReleaseError::Forked { version: 2, .. }), "{error}");
    copy.finish(&key(7), now()).unwrap();
    let error = copy.follows(&hub.metadata().await.unwrap()).unwrap_err();
    assert!(error.to_string().contains("other content"), "{error}");
}

/// All files of a folder, to see that nothing changed.
fn state(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { drop(files.insert(path.clone(), fs::read(path).unwrap())) }
        }
    }
    files
}

#[track_caller]
fn not_published(repository: &Repository, pipeline: u8, at: Timestamp, why: &str) {
    let before = state(repository.dir());
    let error = chain(&repository.finish(&key(pipeline), at).unwrap_err());
    assert!(error.contains(why), "{error}");
    assert_eq!(state(repository.dir()), before);
}

#[test]
fn nothing_is_published_that_clients_would_refuse() {
    let desk = Desk::new();
    let repository = desk.published();
    not_published(&repository, 8, now(), "unknown key"); // a stranger's pipeline
    not_published(&repository, 7, "2031-06-01T00:00:00Z".parse().unwrap(), "expired");
    desk.yaml("1.1.0", "command: bin/run");
    repository.add(&desk.build().unwrap(), now()).unwrap();
    not_published(&repository, 7, now(), "0 of 2 signatures");
    repository.sign(&[key(4)]).unwrap();
    repository.sign(&[key(4)]).unwrap(); // twice is once
    not_published(&repository, 7, now(), "1 of 2 signatures");
    let error = chain(&repository.sign(&[key(7)]).unwrap_err());
    assert!(error.contains("unknown key"), "{error}");

    let staged = desk.path("repo/staged/targets.json");
    let good = fs::read_to_string(&staged).unwrap();
    repository.sign(&[key(5)]).unwrap();
    let signed = fs::read_to_string(&staged).unwrap();
    fs::write(&staged, signed.replacen("1.1.0", "1.1.1", 1)).unwrap();
    not_published(&repository, 7, now(), "changed after it was signed");
    // The same signature twice.
    let document: serde_json::Value = serde_json::from_str(&good).unwrap();
    let signature = document["signatures"][0].to_string();
    fs::write(&staged, good.replacen(&signature, &format!("{signature},{signature}"), 1)).unwrap();
    not_published(&repository, 7, now(), "duplicate signature");
    fs::write(&staged, "{").unwrap();
    not_published(&repository, 7, now(), "malformed");
    fs::write(&staged, " ".repeat(9 << 20)).unwrap();
    not_published(&repository, 7, now(), "larger than");
    fs::write(&staged, &signed).unwrap();
    repository.finish(&key(7), now()).unwrap();

    // A byte of what is published, and of what is kept, changes.
    let targets = desk.path("repo/metadata/2.targets.json");
    let good = fs::read_to_string(&targets).unwrap();
    fs::write(&targets, good.replacen("1.1.0", "1.1.1", 1)).unwrap();
    not_published(&repository, 7, now(), "changed after it was signed");
    fs::write(&targets, &good).unwrap();
    let blob = repository.blob_path(&Digest::of(b"a"));
    fs::write(&blob, "b").unwrap();
    assert!(chain(&verify::repository(&repository, now()).unwrap_err()).contains("share/a.txt"));
    // Building again mends it, also when it is gone, and a changed file under a published version is refused.
    let again = desk.build().unwrap();
    assert_eq!(repository.add(&again, now()).unwrap(), Added::AlreadyPublished { restored: 1 });
    fs::remove_file(&blob).unwrap();
    assert!(chain(&verify::repository(&repository, now()).unwrap_err()).contains("crossdock release build"));
    assert_eq!(repository.add(&again, now()).unwrap(), Added::AlreadyPublished { restored: 1 });
    verify::repository(&repository, now()).unwrap();
    desk.write("files/share/a.txt", "other");
    let changed = desk.build().unwrap();
    assert!(matches!(repository.add(&changed, now()), Err(ReleaseError::Immutable { .. })));
    assert!(matches!(verify::build(&repository, &changed, now()), Err(ReleaseError::Immutable { .. })));
}

#[test]
fn a_second_process_waits_and_a_repository_is_never_made_twice() {
    let desk = Desk::new();
    let repository = desk.repository();
    assert!(chain(&Repository::open(repository.dir()).unwrap_err()).contains("another process"));
    drop(repository);
    let setup = Setup::small_team(&key(1), &key(2), &key(3));
    let error = chain(&Repository::create(&desk.path("repo"), &setup, now()).unwrap_err());
    assert!(error.contains("there is a repository already"), "{error}");
    assert!(chain(&Repository::open(&desk.path("files")).unwrap_err()).contains("release init"));
    // One key twice does not make a threshold of two.
    let setup = Setup { targets: vec![key(2).public(), key(2).public()], targets_threshold: 2, ..setup };
    let error = chain(&Repository::create(&desk.path("other"), &setup, now()).unwrap_err());
    assert!(error.contains("1 distinct keys"), "{error}");
}
