//! Golden repository: what an earlier version wrote still verifies, and writing it again gives the same
//! bytes. `CROSSDOCK_WRITE_GOLDEN=1 cargo test -p proto --test tuf_golden` writes the files anew: do that
//! only for a change of form that old agents understand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // all of it is a test

use std::{collections::BTreeMap, fs, path::PathBuf};

use jiff::Timestamp;
use proto::{
    digest::Digest,
    link::message::MetadataReply,
    tuf::{
        RoleName, SecretKey, Target, TargetCustom, TrustedSet,
        schema::{MetaFile, Role, RoleKeys, RootMeta, SPEC_VERSION, SnapshotMeta, TargetsMeta, TimestampMeta},
        sign::Document,
    },
};

const NOW: &str = "2030-01-01T00:00:00Z";
const EXPIRES: &str = "2040-01-01T00:00:00Z";

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

fn signed<T: Role>(content: &T, signers: &[u8]) -> String {
    let mut document = Document::new(content).unwrap();
    signers.iter().for_each(|n| document.sign(&key(*n)));
    document.text()
}

fn role(keys: &[u8], threshold: u32) -> RoleKeys {
    RoleKeys::new(keys.iter().map(|n| key(*n).id()).collect(), threshold)
}

fn root(version: u64, root_keys: &[u8]) -> RootMeta {
    let roles = [
        (RoleName::Root, role(root_keys, 2)),
        (RoleName::Targets, role(&[4, 5, 6], 2)),
        (RoleName::Snapshot, role(&[7], 1)),
        (RoleName::Timestamp, role(&[7], 1)),
    ];
    let keys = root_keys.iter().chain(&[4, 5, 6, 7]).map(|n| (key(*n).id(), key(*n).public()));
    RootMeta {
        kind: "root".into(),
        spec_version: SPEC_VERSION.into(),
        version,
        expires: EXPIRES.parse().unwrap(),
        consistent_snapshot: true,
        keys: keys.collect(),
        roles: roles.map(|(name, role)| (name.as_str().into(), role)).into(),
        other: BTreeMap::new(),
    }
}

/// A manifest as it is released; the target's content.
const MANIFEST: &str = "{\"apiVersion\":\"crossdock.io/v1\",\"app\":\"scan-uploader\",\"version\":\"1.4.0\",\"files\":[],\"workload\":{\"command\":\"/bin/true\"}}\n";

fn target() -> Target {
    Target {
        length: MANIFEST.len() as u64,
        digest: Digest::of(MANIFEST.as_bytes()),
        custom: TargetCustom {
            app: "scan-uploader".parse().unwrap(),
            version: "1.4.0".parse().unwrap(),
            release_counter: 3,
            hardware: ["x86_64".to_owned()].into(),
            issued_at: Some(NOW.parse().unwrap()),
        },
    }
}

/// The files of a consistent-snapshot repository, by name.
fn files() -> BTreeMap<String, String> {
    let (spec_version, expires) = (SPEC_VERSION.to_owned(), EXPIRES.parse().unwrap());
    let targets = TargetsMeta {
        kind: "targets".into(),
        spec_version: spec_version.clone(),
        version: 5,
        expires,
        targets: [("scan-uploader/1.4.0.json".to_owned(), target().to_file().unwrap())].into(),
        other: BTreeMap::new(),
    };
    let targets = signed(&targets, &[4, 6]);
    let snapshot = SnapshotMeta {
        kind: "snapshot".into(),
        spec_version: spec_version.clone(),
        version: 6,
        expires,
        meta: [("targets.json".to_owned(), MetaFile::of(5, &targets))].into(),
        other: BTreeMap::new(),
    };
    let snapshot = signed(&snapshot, &[7]);
    let timestamp = TimestampMeta {
        kind: "timestamp".into(),
        spec_version,
        version: 7,
        expires,
        meta: [("snapshot.json".to_owned(), MetaFile::of(6, &snapshot))].into(),
        other: BTreeMap::new(),
    };
    [
        ("metadata/1.root.json".to_owned(), signed(&root(1, &[1, 2, 3]), &[1, 2])),
        ("metadata/2.root.json".to_owned(), signed(&root(2, &[2, 3, 8]), &[1, 2, 8])),
        ("metadata/5.targets.json".to_owned(), targets),
        ("metadata/6.snapshot.json".to_owned(), snapshot),
        ("metadata/timestamp.json".to_owned(), signed(&timestamp, &[7])),
        (format!("targets/scan-uploader/{}.1.4.0.json", target().digest.hex()), MANIFEST.to_owned()),
        ("key-1.pem".to_owned(), key(1).to_pem().unwrap()),
    ]
    .into()
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tuf")
}

fn read(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn writing_again_gives_the_same_bytes() {
    let write = std::env::var_os("CROSSDOCK_WRITE_GOLDEN").is_some();
    for (name, text) in files() {
        let path = folder().join(&name);
        if write {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &text).unwrap();
        }
        assert_eq!(read(&name), text, "{name}");
    }
}

#[test]
fn what_was_written_still_verifies() {
    let now: Timestamp = NOW.parse().unwrap();
    let reply = MetadataReply {
        roots: vec![read("metadata/1.root.json"), read("metadata/2.root.json")],
        timestamp: Some(read("metadata/timestamp.json")),
        snapshot: Some(read("metadata/6.snapshot.json")),
        targets: Some(read("metadata/5.targets.json")),
    };
    let set = TrustedSet::new(&reply.roots[0]).unwrap().update(&reply, now).unwrap();
    assert_eq!(set.root().version, 2);
    assert_eq!(set.manifest_target(&"scan-uploader@1.4.0".parse().unwrap()).unwrap(), &target());
    assert_eq!(TrustedSet::load(&set.documents()).unwrap().versions(), set.versions());
    assert_eq!(SecretKey::from_pem(&read("key-1.pem")).unwrap().id(), key(1).id());
}

/// Written by python-tuf 7.0 with the same keys: the wire form is TUF's, not our own.
#[test]
fn what_another_writer_wrote_verifies() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/python-tuf");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let reply = MetadataReply {
        roots: vec![read("1.root.json")],
        timestamp: Some(read("timestamp.json")),
        snapshot: Some(read("1.snapshot.json")),
        targets: Some(read("1.targets.json")),
    };
    let set = TrustedSet::new(&reply.roots[0]).unwrap().update(&reply, NOW.parse().unwrap()).unwrap();
    assert!(set.root().keys.iter().all(|(id, key)| *id == key.id()));
    let target = set.manifest_target(&"scan-uploader@1.4.0".parse().unwrap()).unwrap();
    assert_eq!((target.length, target.custom.release_counter), (8, 3));
}
