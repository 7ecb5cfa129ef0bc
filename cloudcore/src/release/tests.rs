//! The release engineer's side, from a folder to a verified publication, and every bad input on the way.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use proto::{
    digest::Digest,
    link::message::MetadataReply,
    tuf::{RoleName, SecretKey, TrustedSet},
};
use tempfile::TempDir;

use super::{
    Publication, ReleaseError, Repository, Setup, build, describe, keys,
    publish::{Destination, upload},
    staging::Added,
    verify,
};

fn now() -> Timestamp {
    "2030-01-01T00:00:00Z".parse().unwrap()
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

fn chain(error: &ReleaseError) -> String {
    let (mut text, mut cause) = (error.to_string(), std::error::Error::source(error));
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

/// A folder with `release.yaml` and a tree, and a repository of a small team beside it.
struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new() -> Desk {
        let desk = Desk { folder: tempfile::tempdir().unwrap() };
        desk.write("files/bin/run", "#!/bin/sh\n");
        fs::set_permissions(desk.path("files/bin/run"), fs::Permissions::from_mode(0o755)).unwrap();
        desk.write("files/share/a.txt", "a");
        desk.yaml("1.0.0", "command: bin/run");
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn yaml(&self, version: &str, workload: &str) {
        self.write(
            "release.yaml",
            &format!(
                "apiVersion: crossdock.io/v1\napp: scan\nversion: {version}\nfuture: [1]\nartifacts:\n  - source: files\nworkload:\n  {workload}\n"
            ),
        );
    }

    fn build(&self) -> Result<super::Built, ReleaseError> {
        build(&self.path("release.yaml"))
    }

    #[track_caller]
    fn refused(&self) -> String {
        chain(&self.build().unwrap_err())
    }

    /// Root key 1, targets 2 of 3 (keys 4 to 6), pipeline key 7.
    fn repository(&self) -> Repository {
        let setup = Setup {
            targets: vec![key(4).public(), key(5).public(), key(6).public()],
            targets_threshold: 2,
            ..Setup::small_team(&key(1), &key(4), &key(7))
        };
        Repository::create(&self.path("repo"), &setup, now()).unwrap()
    }

    fn published(&self) -> Repository {
        let repository = self.repository();
        repository.add(&self.build().unwrap(), now()).unwrap();
        repository.sign(&[key(1), key(4), key(5)]).unwrap();
        repository.finish(&key(7), now()).unwrap();
        repository
    }
}

fn client(publication: &Publication) -> TrustedSet {
    TrustedSet::new(&publication.reply.roots[0]).unwrap().update(&publication.reply, now()).unwrap()
}

#[test]
fn a_release_goes_from_a_folder_to_a_publication_that_clients_believe() {
    let desk = Desk::new();
    let repository = desk.repository();
    let built = desk.build().unwrap();
    assert_eq!(built, desk.build().unwrap(), "building again gives the same bytes");
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
    let lines = describe::root(Some(&old), &new);
    for line in [format!("adds key {}", key(9).id()), format!("removes key {}", key(4).id())] {
        assert_eq!(lines.iter().filter(|l| l.trim() == line).count(), 1, "{lines:?}");
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

#[test]
fn trees_that_are_not_plain_files_are_refused() {
    let desk = Desk::new();
    let inside = |name: &str| desk.path("files").join(name);
    // A link that stays inside is released as what it leads to, a folder too.
    symlink("a.txt", inside("share/b.txt")).unwrap();
    symlink("share", inside("also")).unwrap();
    let built = desk.build().unwrap();
    let paths: Vec<&str> = built.manifest.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["also/a.txt", "also/b.txt", "bin/run", "share/a.txt", "share/b.txt"]);

    let remove = |name: &str| fs::remove_file(inside(name)).unwrap();
    desk.write("secret", "s");
    for (target, why) in
        [("../../secret", "outside"), ("/etc/passwd", "outside"), ("nowhere", "not there"), ("../share", "circle")]
    {
        symlink(target, inside("share/link")).unwrap();
        let error = desk.refused();
        assert!(error.contains("share/link") && error.contains(why), "{target}: {error}");
        remove("share/link");
    }
    symlink("/dev/null", inside("null")).unwrap();
    assert!(desk.refused().contains("outside"));
    remove("null");
    let fifo = std::process::Command::new("mkfifo").arg(inside("pipe")).status().unwrap();
    assert!(fifo.success());
    assert!(desk.refused().contains("named pipe"));
    remove("pipe");
    let socket = std::os::unix::net::UnixListener::bind(inside("socket")).unwrap();
    assert!(desk.refused().contains("a socket"));
    drop(socket);
    remove("socket");
    desk.write("files/share/A.txt", "A");
    assert!(desk.refused().contains("differ only in upper and lower case"));
    remove("share/A.txt");
    desk.write("files/back\\slash", "");
    assert!(desk.refused().contains("backslash"));
    remove("back\\slash");
    assert!(desk.build().is_ok());
}

#[test]
fn what_release_yaml_says_in_vain_is_told() {
    let desk = Desk::new();
    assert_eq!(desk.build().unwrap().warnings, ["unknown field future is ignored"]);
    desk.write(
        "release.yaml",
        "apiVersion: crossdock.io/v1
app: scan
version: 1.0.0
hardwear: [x86_64]
artifacts:
  - source: files
    tarjet: x
workload:
  command: bin/run
  env: { any: thing }
  probs: {}
  probes: { livness: {}, readiness: { http: { prot: 1, port: 2 } } }
  limits: { memroy: 1Gi }
",
    );
    let said = [
        "hardwear is ignored; did you mean hardware?",
        "artifacts.0.tarjet is ignored; did you mean target?",
        "workload.probs is ignored; did you mean probes?",
        "workload.probes.livness is ignored; did you mean liveness?",
        "workload.probes.readiness.http.prot is ignored; did you mean port?",
        "workload.limits.memroy is ignored; did you mean memory?",
    ];
    assert_eq!(desk.build().unwrap().warnings, said.map(|said| format!("unknown field {said}")));
}

#[test]
fn release_yaml_that_cannot_work_is_refused() {
    let desk = Desk::new();
    let good = fs::read_to_string(desk.path("release.yaml")).unwrap();
    let artifact = |text: &str| good.replace("  - source: files\n", &format!("  - source: files\n{text}"));
    let cases = [
        (String::new(), "release.yaml"),
        ("- 1".into(), "release.yaml"),
        ("a: [".into(), "release.yaml"),
        (good.replace("app: scan", "app: ../scan"), "not a valid name"),
        (good.replace("app: scan", "app: scan\napp: scan2"), "duplicate"),
        (good.replace("version: 1.0.0", "version: 1/0"), "not a valid version"),
        (good.replace("crossdock.io/v1", "crossdock.io/v9"), "crossdock.io/v9"),
        (good.replace("future: [1]", "kind: Rollout"), "Rollout"),
        (good.replace("future: [1]", "minAgent: 99.0.0"), "upgrade the agent"),
        (good.replace("command: bin/run", "command: bin/walk"), "bin/run"),
        (good.replace("command: bin/run", "command: share/a.txt"), "not executable"),
        (format!("{good}  probes: {{ liveness: {{ tcp: {{ port: 0 }} }} }}\n"), "liveness probe's port is 0"),
        (good.replace("command: bin/run", "command: ../run"), "leave the tree"),
        (good.replace("command: bin/run", "command: bin/run\n  workingDir: nowhere"), "workingDir"),
        (good.replace("source: files", "source: gone"), "gone"),
        (artifact("  - { source: files/share/a.txt, target: ../a }\n"), "leave the tree"),
        (artifact("  - { source: files/share/a.txt, target: /a }\n"), "absolute"),
        (artifact("  - { source: files/share/a.txt, target: share/a.txt }\n"), "twice"),
        (artifact("  - { source: files/share/a.txt, target: share }\n"), "needs a folder"),
        (artifact("  - { source: files/share, target: Share }\n"), "upper and lower case"),
        (format!("{good}#{}", " ".repeat(1 << 20)), "larger than"),
        (format!("{good}x: {}", "[".repeat(5000)), "release.yaml"),
    ];
    for (text, why) in cases {
        desk.write("release.yaml", &text);
        let error = desk.refused();
        let shown: String = text.chars().take(300).collect();
        assert!(error.to_lowercase().contains(&why.to_lowercase()), "{shown}\n{error}");
    }
    // A program of the box cannot be checked here; a file can be declared executable.
    desk.write("release.yaml", &good.replace("command: bin/run", "command: /usr/bin/env"));
    assert!(desk.build().is_ok());
    let tool = artifact("  - { source: files/share/a.txt, target: tool, executable: true }\n");
    desk.write("release.yaml", &tool.replace("command: bin/run", "command: tool"));
    assert!(desk.build().is_ok());
    // The sample that we hand out is sound.
    desk.write("files/bin/scan-uploader", "");
    fs::set_permissions(desk.path("files/bin/scan-uploader"), fs::Permissions::from_mode(0o755)).unwrap();
    desk.write("release.yaml", include_str!("../cli/sample_release.yaml"));
    desk.build().unwrap();
}

#[test]
fn key_files_are_private_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let files = keys::write(folder.path(), "alice", &key(4)).unwrap();
    assert_eq!(fs::metadata(&files.secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(files.id, key(4).id());
    assert_eq!(keys::read_secret(&files.secret).unwrap().id(), key(4).id());
    assert_eq!(keys::read_public(&files.public).unwrap(), key(4).public());
    assert_eq!(keys::read_public(&files.secret).unwrap(), key(4).public());
    assert!(chain(&keys::write(folder.path(), "alice", &key(5)).unwrap_err()).contains("not overwritten"));
    for bad in ["", "../x", "a/b", ".hidden"] {
        assert!(keys::write(folder.path(), bad, &key(5)).is_err(), "{bad}");
    }
    assert!(chain(&keys::read_secret(&files.public).unwrap_err()).contains("alice.pub"));
    fs::write(folder.path().join("junk"), "junk").unwrap();
    assert!(keys::read_public(&folder.path().join("junk")).is_err());
}

/// A hub that takes what it is given, and breaks after some blobs.
struct Hub {
    blobs: RefCell<BTreeSet<Digest>>,
    breaks_after: usize,
    published: RefCell<Option<MetadataReply>>,
}

impl Destination for Hub {
    async fn metadata(&self) -> anyhow::Result<MetadataReply> {
        Ok(self.published.borrow().clone().unwrap_or_default())
    }
    async fn has_blob(&self, digest: &Digest) -> anyhow::Result<bool> {
        Ok(self.blobs.borrow().contains(digest))
    }
    async fn put_blob(&self, digest: &Digest, path: &Path) -> anyhow::Result<()> {
        anyhow::ensure!(self.blobs.borrow().len() < self.breaks_after, "the line broke");
        anyhow::ensure!(Digest::of(&fs::read(path)?) == *digest, "content and digest differ");
        self.blobs.borrow_mut().insert(*digest);
        Ok(())
    }
    async fn publish(&self, reply: &MetadataReply) -> anyhow::Result<()> {
        *self.published.borrow_mut() = Some(reply.clone());
        Ok(())
    }
}

#[tokio::test]
async fn an_upload_goes_on_where_it_broke_off_and_names_last() {
    let desk = Desk::new();
    let repository = desk.published();
    let publication = repository.publication().unwrap();
    let mut hub = Hub { blobs: RefCell::default(), breaks_after: 1, published: RefCell::default() };
    assert!(upload(&hub, &publication, |_| ()).await.is_err());
    assert!(hub.published.borrow().is_none());
    hub.breaks_after = 100;
    let uploaded = upload(&hub, &publication, |_| ()).await.unwrap();
    assert_eq!((uploaded.sent, uploaded.present), (2, 1));
    assert_eq!(hub.published.borrow().as_ref(), Some(&publication.reply));
    // Content that neither side has whole is named.
    hub.blobs.borrow_mut().clear();
    fs::write(repository.blob_path(&Digest::of(b"a")), "b").unwrap();
    let error = format!("{:#}", upload(&hub, &publication, |_| ()).await.unwrap_err());
    assert!(error.contains("damaged") && error.contains("release build") && error.contains("differ"), "{error}");
    fs::remove_file(repository.blob_path(&Digest::of(b"a"))).unwrap();
    let error = upload(&hub, &publication, |_| ()).await.unwrap_err().to_string();
    assert!(error.contains("release build"), "{error}");
}
