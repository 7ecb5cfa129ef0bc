//! Every attack and every kind of bad metadata, against the trusted set. State is as before after each.
//!
//! Here are the repository that the tests attack and the publication that is believed; then `signatures`,
//! `versions` (freeze, rollback, mixed publications), `roots` (keys that change), and `documents` (their form,
//! and what is kept and sent of them); `thieves` has one role after the other stolen.

mod documents;
mod roots;
mod signatures;
mod signing;
mod thieves;
mod versions;

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
    root.roles.insert(role.as_str().into(), RoleKeys::new(keyids, threshold));
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
