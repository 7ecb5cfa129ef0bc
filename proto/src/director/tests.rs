//! What an agent believes of a director: the real case, and each way of cheating with what was stolen.

use super::*;
use crate::{
    digest::Digest,
    object::ReleaseRef,
    tuf::{Target, TargetCustom, schema::Offered},
};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

const NOW: &str = "2030-01-02T00:00:00Z";

fn first_root() -> String {
    let root = root(&[key(1).public()], 1, &key(2).public(), at("2031-01-01T00:00:00Z"));
    let mut document = Document::new(&root).unwrap();
    document.sign(&key(1));
    document.text()
}

fn target(version: &str) -> TargetFile {
    let custom = TargetCustom {
        app: name("web"),
        version: version.parse().unwrap(),
        release_counter: 3,
        hardware: ["x86_64".into()].into(),
        issued_at: None,
    };
    Target { length: 10, digest: Digest::of(version.as_bytes()), custom }.to_file().unwrap()
}

fn order(node: &str, nonce: &str, generation: u64, version: u64) -> Issue {
    let release = ReleaseRef { version: "1.0.0".parse().unwrap(), digest: Digest::of(b"1.0.0") };
    let assignment = Assignment { generation, apps: [(name("web"), release.into())].into(), ..Assignment::default() };
    Issue {
        directive: Directive { node: name(node), nonce: nonce.into(), issued_at: at(NOW), assignment },
        targets: [("web/1.0.0.json".to_owned(), target("1.0.0"))].into(),
        version,
        expires: at("2030-01-09T00:00:00Z"),
    }
}

fn trusted() -> TrustedSet {
    TrustedSet::new(&first_root()).unwrap()
}

/// What a node `n1` in the session `nonce` makes of it, with what it saw before.
fn take(set: &TrustedSet, issue: &Issue, key: &SecretKey, seen: u64) -> Result<Directive, &'static str> {
    let reply = issue.sign(key).unwrap();
    let next = set.update(&reply, at(NOW)).map_err(|e| e.code())?;
    admit(&next, &name("n1"), "nonce", seen).map_err(|e| e.code())
}

#[test]
fn an_order_arrives_as_it_was_given_and_names_what_both_repositories_list() {
    let issue = order("n1", "nonce", 4, 1);
    assert_eq!(take(&trusted(), &issue, &key(2), 4), Ok(issue.directive.clone()));
    let set = trusted().update(&issue.sign(&key(2)).unwrap(), at(NOW)).unwrap();
    assert_eq!(set.target_file("web/1.0.0.json"), Some(&target("1.0.0")));
    assert_eq!(read(&trusted()), Ok(None), "before the first");
}

#[test]
fn what_was_signed_for_another_node_or_session_or_is_old_is_refused() {
    let set = trusted();
    assert_eq!(take(&set, &order("n2", "nonce", 4, 1), &key(2), 0), Err("WrongNode"));
    assert_eq!(take(&set, &order("n1", "yesterday's", 4, 1), &key(2), 0), Err("Replay"));
    assert_eq!(take(&set, &order("n1", "nonce", 4, 1), &key(2), 5), Err("Rollback"), "a generation");
    let newer = set.update(&order("n1", "nonce", 4, 7).sign(&key(2)).unwrap(), at(NOW)).unwrap();
    assert_eq!(take(&newer, &order("n1", "nonce", 9, 6), &key(2), 0), Err("Rollback"), "a document");
    let late = Issue { expires: at(NOW), ..order("n1", "nonce", 4, 8) };
    assert_eq!(take(&newer, &late, &key(2), 0), Err("Freeze"));
    assert_eq!(take(&set, &order("n1", "nonce", 4, 1), &key(3), 0), Err("UnknownKey"), "not the online key");
    assert_eq!(take(&set, &order("n1", "nonce", 4, 1), &key(1), 0), Err("UnknownKey"), "the root's key is for roots");
}

#[test]
fn documents_of_two_orders_do_not_mix() {
    let (one, two) = (order("n1", "nonce", 4, 1).sign(&key(2)).unwrap(), order("n2", "nonce", 4, 1).sign(&key(2)));
    let mixed = MetadataReply { targets: two.unwrap().targets, ..one };
    assert_eq!(trusted().update(&mixed, at(NOW)).unwrap_err().code(), "MixAndMatch");
}

#[test]
fn metadata_that_is_no_directive_is_refused_by_its_form() {
    let issue = order("n1", "nonce", 1, 1);
    let text = issue.sign(&key(2)).unwrap().targets.unwrap();
    let mut meta = Offered::<TargetsMeta>::parse(&text).unwrap().signed;
    meta.other.clear();
    let targets = signed(&key(2), &meta).unwrap();
    let snapshot = SnapshotMeta {
        kind: "snapshot".into(),
        spec_version: SPEC_VERSION.into(),
        version: 1,
        expires: issue.expires,
        meta: [("targets.json".to_owned(), MetaFile::of(1, &targets))].into(),
        other: BTreeMap::new(),
    };
    let snapshot = signed(&key(2), &snapshot).unwrap();
    let timestamp = TimestampMeta {
        kind: "timestamp".into(),
        spec_version: SPEC_VERSION.into(),
        version: 1,
        expires: issue.expires,
        meta: [("snapshot.json".to_owned(), MetaFile::of(1, &snapshot))].into(),
        other: BTreeMap::new(),
    };
    let timestamp = signed(&key(2), &timestamp).unwrap();
    let reply =
        MetadataReply { roots: vec![], timestamp: Some(timestamp), snapshot: Some(snapshot), targets: Some(targets) };
    let set = trusted().update(&reply, at(NOW)).unwrap();
    assert_eq!(admit(&set, &name("n1"), "nonce", 0).unwrap_err().code(), "Malformed");
}

#[test]
fn repositories_agree_on_every_field_or_not_at_all() {
    let release = target("1.0.0");
    assert_eq!(agree(&release, &release), Ok(()));
    let field = |director: &TargetFile| agree(director, &release).unwrap_err().field;
    assert_eq!(field(&TargetFile { length: 11, ..release.clone() }), "length");
    let mut more = release.clone();
    more.hashes.insert("sha512".into(), "00".into());
    assert_eq!(field(&more), "digests");
    let custom = TargetFile { custom: target("1.0.1").custom, ..release.clone() };
    assert_eq!(field(&custom), "custom", "counter, hardware and name stand in it");
}

#[test]
fn a_key_of_both_repositories_is_found_under_whatever_id() {
    let director = root(&[key(1).public()], 1, &key(2).public(), at(NOW));
    let release = |targets: u8, pipeline: u8| {
        let mut release = root(&[key(5).public()], 1, &key(targets).public(), at(NOW));
        let id = key(pipeline).id();
        release.keys.insert(id.clone(), key(pipeline).public());
        for role in ["snapshot", "timestamp"] {
            release
                .roles
                .insert(role.into(), RoleKeys { keyids: vec![id.clone()], threshold: 1, other: BTreeMap::new() });
        }
        release
    };
    assert_eq!(shared_keys(&release(6, 7), &director), BTreeSet::new());
    assert_eq!(shared_keys(&release(2, 7), &director), [key(2).id()].into(), "it signs releases");
    assert_eq!(shared_keys(&release(6, 2), &director), BTreeSet::new(), "a pipeline's key adds no release");
    assert_eq!(shared_keys(&release(1, 7), &director), BTreeSet::new(), "the director's root key is not online");
    let changes_keys = root(&[key(2).public()], 1, &key(6).public(), at(NOW));
    assert_eq!(shared_keys(&changes_keys, &director), [key(2).id()].into(), "it may list keys that sign releases");
}

#[test]
fn the_first_root_lists_who_may_change_it_and_who_signs() {
    let root = root(&[key(1).public(), key(3).public()], 2, &key(2).public(), at(NOW));
    let listed = |role: RoleName| (root.roles[role.as_str()].keyids.clone(), root.roles[role.as_str()].threshold);
    assert_eq!(listed(RoleName::Root), (vec![key(1).id(), key(3).id()], 2));
    for role in [RoleName::Timestamp, RoleName::Snapshot, RoleName::Targets] {
        assert_eq!(listed(role), (vec![key(2).id()], 1));
    }
    assert!(root.consistent_snapshot && root.check().is_ok(), "other clients read it too");
}
