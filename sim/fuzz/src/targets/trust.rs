//! Metadata: read strictly, and believed for its signatures alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use jiff::Timestamp;
use proto::{
    attestation::Attestation,
    director::{self, Directive, Issue},
    link::message::{MetadataReply, Report},
    name::Name,
    tuf::{
        PublicKey, RoleName, SecretKey, Target, TrustedSet,
        json::Json,
        schema::{
            MetaFile, Offered, Role, RoleKeys, RootMeta, SPEC_VERSION, SnapshotMeta, TargetFile, TargetsMeta,
            TimestampMeta,
        },
        sign::Document,
    },
};

use super::{Choices, both_ways};

/// Any text as any of the four roles, and as bare JSON.
pub(super) fn metadata(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(json) = Json::parse(text) {
        let again = Json::parse(&serde_json::to_string(&json).unwrap()).expect("what was printed");
        assert_eq!((again.canonical(), &again), (json.canonical(), &json));
    }
    role::<RootMeta>(text);
    role::<TimestampMeta>(text);
    role::<SnapshotMeta>(text);
    role::<TargetsMeta>(text);
    TrustedSet::new(text).ok();
    if let Some(file) = both_ways::<TargetFile>(data)
        && let Ok(target) = Target::try_from(&file)
        && let Ok(file) = target.to_file()
    {
        assert_eq!(Target::try_from(&file), Ok(target));
    }
}

fn role<T: Role>(text: &str) {
    let Ok(offered) = Offered::<T>::parse(text) else { return };
    // Somebody edits it: what was understood is printed, and understood again.
    let Ok(printed) = Document::new(&offered.signed) else { return };
    let again = printed.offered::<T>().expect("what was printed");
    let form = |signed: &T| Json::of(signed).map(|json| json.canonical());
    assert_eq!(form(&again.signed), form(&offered.signed));
    // Somebody signs it: what is signed stays what it was.
    let document = Document::parse::<T>(text).expect("what was read");
    let same = document.offered::<T>().expect("what was printed");
    assert_eq!(same.canonical, offered.canonical);
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

const ROOT: [u8; 2] = [1, 2];
const ONLINE: u8 = 5;
/// One key of two that sign targets, the online key, and one that nobody lists.
const STOLEN: [u8; 3] = [3, ONLINE, 20];

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn root(version: u64, targets: [u8; 2], online: u8) -> RootMeta {
    let role = |keys: &[u8], threshold| RoleKeys::new(keys.iter().map(|n| key(*n).id()).collect(), threshold);
    let all: BTreeSet<u8> = ROOT.into_iter().chain(targets).chain([online]).collect();
    RootMeta {
        kind: "root".into(),
        spec_version: SPEC_VERSION.into(),
        version,
        expires: "2030-01-01T00:00:00Z".parse().unwrap(),
        consistent_snapshot: true,
        keys: all.iter().map(|n| (key(*n).id(), key(*n).public())).collect(),
        roles: RoleName::ALL
            .map(|name| match name {
                RoleName::Root => (name.as_str().into(), role(&ROOT, 2)),
                RoleName::Targets => (name.as_str().into(), role(&targets, 2)),
                _ => (name.as_str().into(), role(&[online], 1)),
            })
            .into(),
        other: BTreeMap::new(),
    }
}

fn signed<T: Role>(content: &T, keys: &[u8]) -> String {
    let mut document = Document::new(content).unwrap();
    keys.iter().for_each(|n| document.sign(&key(*n)));
    document.text()
}

/// Targets, snapshot, timestamp.
fn publication(version: u64, keys: [u8; 2], online: u8) -> [String; 3] {
    let (kind, spec) = (|role: RoleName| role.as_str().to_owned(), || SPEC_VERSION.to_owned());
    let expires = now() + jiff::SignedDuration::from_hours(24);
    let file = |n: u64| TargetFile {
        length: n,
        hashes: [("sha256".to_owned(), "ab".repeat(32))].into(),
        custom: Json::parse(&format!(r#"{{"app":"web","version":"{n}","releaseCounter":{n}}}"#)).ok(),
        other: BTreeMap::new(),
    };
    let (other, targets) = (BTreeMap::new(), (1..=version).map(|n| (format!("web/{n}.json"), file(n))).collect());
    let content = TargetsMeta { kind: kind(RoleName::Targets), spec_version: spec(), version, expires, targets, other };
    let targets = signed(&content, &keys);
    let meta = [("targets.json".to_owned(), MetaFile::of(version, &targets))].into();
    let (kind_, other) = (kind(RoleName::Snapshot), BTreeMap::new());
    let snapshot =
        signed(&SnapshotMeta { kind: kind_, spec_version: spec(), version, expires, meta, other }, &[online]);
    let meta = [("snapshot.json".to_owned(), MetaFile::of(version, &snapshot))].into();
    let (kind_, other) = (kind(RoleName::Timestamp), BTreeMap::new());
    let timestamp =
        signed(&TimestampMeta { kind: kind_, spec_version: spec(), version, expires, meta, other }, &[online]);
    [targets, snapshot, timestamp]
}

/// A repository with its history: what its keys signed, and what clients believed at times.
struct History {
    documents: Vec<String>,
    genuine: BTreeSet<Vec<u8>>,
    states: Vec<TrustedSet>,
}

fn content(text: &str) -> Vec<u8> {
    Json::parse(text).unwrap().get("signed").unwrap().canonical()
}

static HISTORY: LazyLock<History> = LazyLock::new(|| {
    let roots = [signed(&root(1, [3, 4], ONLINE), &ROOT), signed(&root(2, [6, 4], 7), &ROOT)];
    let publications = [publication(1, [3, 4], ONLINE), publication(2, [3, 4], ONLINE), publication(3, [6, 4], 7)];
    let first = TrustedSet::new(&roots[0]).unwrap();
    let mut states = vec![first.clone()];
    for (n, [targets, snapshot, timestamp]) in publications.iter().enumerate() {
        let roots = if n == 2 { vec![roots[1].clone()] } else { vec![] };
        let [timestamp, snapshot, targets] = [timestamp, snapshot, targets].map(|text| Some(text.clone()));
        let reply = MetadataReply { roots, timestamp, snapshot, targets };
        states.push(states.last().unwrap().update(&reply, now()).unwrap());
    }
    let documents: Vec<String> = publications.into_iter().flatten().chain(roots).collect();
    let genuine = documents.iter().map(|text| content(text)).collect();
    History { documents, genuine, states }
});

impl Choices<'_> {
    /// A document of the history, perhaps edited, perhaps signed anew by a thief.
    fn document(&mut self, documents: &[String]) -> Option<String> {
        let which = usize::from(self.byte());
        let text = documents.get(which.checked_sub(1)? % documents.len())?;
        let text = String::from_utf8_lossy(&self.edit(text.clone().into_bytes())).into_owned();
        Some(if self.byte() % 3 == 1 { self.forged(&text).unwrap_or(text) } else { text })
    }

    fn forged(&mut self, text: &str) -> Option<String> {
        let json = Json::parse(text).ok()?;
        let content = json.get("signed")?.clone();
        let mut list = vec![];
        for _ in 0..1 + self.byte() % 3 {
            let (with, named) = (STOLEN[usize::from(self.byte()) % 3], 1 + self.byte() % 8);
            let id = if named == 8 { key(with).id() } else { key(named).id() };
            let signature = [("keyid", id), ("sig", key(with).sign(&content.canonical()))];
            list.push(Json::Map(signature.map(|(name, text)| (name.to_owned(), Json::Text(text))).into()));
        }
        let envelope = Json::Map([("signatures".into(), Json::List(list)), ("signed".into(), content)].into());
        serde_json::to_string(&envelope).ok()
    }
}

/// Whatever a hub replies: roots and targets that are believed were signed by enough keys.
pub(super) fn update(data: &[u8]) {
    let mut choices = Choices(data);
    let history = &*HISTORY;
    let before = &history.states[usize::from(choices.byte()) % history.states.len()];
    let mut next = || choices.document(&history.documents);
    let roots = [next(), next()].into_iter().flatten().collect();
    let reply = MetadataReply { roots, timestamp: next(), snapshot: next(), targets: next() };
    let was = before.documents();
    let after = before.update(&reply, now());
    assert_eq!(before.documents(), was, "an update changes nothing in place");
    let Ok(after) = after else { return };
    let documents = after.documents();
    let (old, new) = (before.versions(), after.versions());
    assert!(history.genuine.contains(&content(&documents.root)), "a root was forged");
    assert!(history.genuine.contains(&content(documents.targets.as_ref().unwrap())), "targets were forged");
    if new.root == 2 {
        // Its online key was not stolen.
        for text in [&documents.timestamp, &documents.snapshot] {
            assert!(history.genuine.contains(&content(text.as_ref().unwrap())), "the pipeline was forged");
        }
    }
    assert!(new.root >= old.root);
    if new.root == old.root {
        assert!(new.timestamp >= old.timestamp && new.snapshot >= old.snapshot && new.targets >= old.targets);
    }
    after.check_fresh(now()).expect("what is believed is fresh");
    let loaded = TrustedSet::load(&documents).expect("what is believed is believed after a restart");
    assert_eq!((loaded.versions(), loaded.documents()), (new, documents));
}

/// What a hub orders: only what its online key signed for this node and session is followed.
pub(super) fn director(data: &[u8]) {
    static START: LazyLock<(TrustedSet, Name, MetadataReply, Directive)> = LazyLock::new(|| {
        let keys: Vec<PublicKey> = ROOT.map(|n| key(n).public()).into();
        let root = director::root(&keys, 2, &key(9).public(), "2030-01-01T00:00:00Z".parse().unwrap());
        let node: Name = "box-1".parse().unwrap();
        let text = r#"{"node":"box-1","nonce":"ab","issuedAt":"2026-01-01T00:00:00Z","assignment":{"generation":7,"apps":{}}}"#;
        let directive: Directive = serde_json::from_str(text).unwrap();
        let set = TrustedSet::new(&signed(&root, &ROOT)).unwrap();
        let reply = issue(directive.clone()).unwrap();
        (set, node, reply, directive)
    });
    let (set, node, reply, genuine) = &*START;
    let (mode, rest) = data.split_first().unwrap_or((&0, &[]));
    match mode % 3 {
        0 => {
            let mut choices = Choices(rest);
            let mut edited = |text: &Option<String>| {
                let text = String::from_utf8(choices.edit(text.clone()?.into_bytes())).ok()?;
                Some(if choices.byte() % 3 == 1 { choices.forged(&text).unwrap_or(text) } else { text })
            };
            let (timestamp, snapshot, targets) =
                (edited(&reply.timestamp), edited(&reply.snapshot), edited(&reply.targets));
            let reply = MetadataReply { roots: vec![], timestamp, snapshot, targets };
            let Ok(after) = set.update(&reply, now()) else { return };
            assert_eq!(director::admit(&after, node, "ab", 7).as_ref(), Ok(genuine));
        }
        1 => {
            let Some(directive) = both_ways::<Directive>(rest) else { return };
            let Some(reply) = issue(directive.clone()) else { return };
            let after = set.update(&reply, now()).expect("what was issued");
            let admitted = director::admit(&after, &directive.node, &directive.nonce, 0).expect("what was issued");
            assert_eq!(serde_json::to_value(admitted).unwrap(), serde_json::to_value(&directive).unwrap());
            assert!(
                director::admit(&after, &"other".parse().unwrap(), &directive.nonce, 0).is_err()
                    || directive.node.as_str() == "other"
            );
        }
        _ => {
            let Some(report) = both_ways::<Report>(rest) else { return };
            let (key, other) = (key(11), "n".parse().unwrap());
            let signed = Attestation::sign(&key, node, "ab", 1, &report);
            let canonical = i64::try_from(report.observed_generation).is_ok();
            assert_eq!(signed.verifies(&key.public(), node, &report), canonical);
            assert!(!signed.verifies(&key.public(), &other, &report));
        }
    }
}

fn issue(directive: Directive) -> Option<MetadataReply> {
    let expires = now() + jiff::SignedDuration::from_hours(24);
    Issue { directive, targets: BTreeMap::new(), version: 1, expires }.sign(&key(9)).ok()
}
