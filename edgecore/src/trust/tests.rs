//! What is accepted, what is refused, and what damage to the record does.

use std::{collections::BTreeMap, fs, sync::Mutex};

use proto::{
    digest::Digest,
    env::{BoxFuture, WallClock},
    link::message::{BlobRequest, MetadataReply},
    tuf::{
        MAX_ROOTS, RoleName, SecretKey, TargetCustom,
        schema::{MetaFile, Offered, Role, RoleKeys, RootMeta, SPEC_VERSION, SnapshotMeta, TargetsMeta, TimestampMeta},
        sign::Document,
    },
};
use tempfile::TempDir;

use super::*;
use crate::fetch::{Reader, tests::env};

/// When releases were signed, and when their metadata expires, unless a test says otherwise.
const ISSUED: &str = "2030-01-01T00:00:00Z";
const EXPIRES: &str = "2031-01-01T00:00:00Z";

#[derive(Debug)]
struct Clock(Mutex<Timestamp>);

impl WallClock for Clock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

/// A hub that answers with one publication, or not at all.
#[derive(Debug, Default)]
struct Hub(Mutex<Option<MetadataReply>>);

/// A hub with many roots, which answers as hubs do, and what it was asked with.
#[derive(Debug)]
struct FarAhead {
    roots: Vec<String>,
    set: TrustedSet,
    asked: Mutex<Vec<u64>>,
}

impl Source for FarAhead {
    fn metadata(&self, have: MetadataRequest) -> BoxFuture<'_, Result<MetadataReply, SourceError>> {
        self.asked.lock().unwrap().push(have.root);
        let reply = self.set.newer_than(&have, &self.roots);
        Box::pin(async { Ok(reply) })
    }
    fn blob(&self, _: BlobRequest) -> BoxFuture<'_, Result<Reader, SourceError>> {
        Box::pin(async { Err(SourceError::Offline) })
    }
}

impl Source for Hub {
    fn metadata(&self, have: MetadataRequest) -> BoxFuture<'_, Result<MetadataReply, SourceError>> {
        let reply = self.0.lock().unwrap().clone().ok_or(SourceError::Offline);
        // As the hub does: what is not newer is left out.
        let newer = reply.map(|r| if have.timestamp >= version_of(&r) { MetadataReply::default() } else { r });
        Box::pin(async { newer })
    }
    fn blob(&self, _: BlobRequest) -> BoxFuture<'_, Result<Reader, SourceError>> {
        Box::pin(async { Err(SourceError::Offline) })
    }
}

fn version_of(reply: &MetadataReply) -> u64 {
    let meta: serde_json::Value = serde_json::from_str(reply.timestamp.as_ref().unwrap()).unwrap();
    meta["signed"]["version"].as_u64().unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn signed<T: Role>(content: &T) -> String {
    let mut document = Document::new(content).unwrap();
    document.sign(&SecretKey::from_seed(&[1; 32]));
    document.text()
}

macro_rules! meta {
    ($name:ident, $kind:literal, $version:expr, $expires:expr, $($rest:tt)*) => {
        $name {
            kind: $kind.into(), spec_version: SPEC_VERSION.into(), version: $version,
            expires: at($expires), other: BTreeMap::new(), $($rest)*
        }
    };
}

pub(crate) fn root() -> String {
    root_of(1)
}

fn root_of(version: u64) -> String {
    let key = SecretKey::from_seed(&[1; 32]);
    let role = || RoleKeys::new(vec![key.id()], 1);
    let roles = [RoleName::Root, RoleName::Targets, RoleName::Snapshot, RoleName::Timestamp];
    signed(&meta!(RootMeta, "root", version, EXPIRES,
        consistent_snapshot: true,
        keys: [(key.id(), key.public())].into(),
        roles: roles.iter().map(|r| (r.as_str().to_owned(), role())).collect(),
    ))
}

/// Publication `version` with the releases `(version, counter)` of the app `web`.
fn publication(version: u64, releases: &[(&str, u64)]) -> MetadataReply {
    publication_until(version, releases, Some(ISSUED), EXPIRES)
}

fn publication_until(version: u64, releases: &[(&str, u64)], issued: Option<&str>, expires: &str) -> MetadataReply {
    let target = |(name, counter): &(&str, u64)| {
        let custom = TargetCustom {
            app: "web".parse().unwrap(),
            version: name.parse().unwrap(),
            release_counter: *counter,
            hardware: ["x86_64".to_owned()].into(),
            issued_at: issued.map(at),
        };
        let target = Target { length: 3, digest: Digest::of(name.as_bytes()), custom };
        (format!("web/{name}.json"), target.to_file().unwrap())
    };
    let targets =
        signed(&meta!(TargetsMeta, "targets", version, expires, targets: releases.iter().map(target).collect()));
    let meta = [("targets.json".to_owned(), MetaFile::of(version, &targets))].into();
    let snapshot = signed(&meta!(SnapshotMeta, "snapshot", version, expires, meta));
    let meta = [("snapshot.json".to_owned(), MetaFile::of(version, &snapshot))].into();
    let timestamp = signed(&meta!(TimestampMeta, "timestamp", version, expires, meta));
    MetadataReply { roots: vec![], timestamp: Some(timestamp), snapshot: Some(snapshot), targets: Some(targets) }
}

struct World {
    _folder: TempDir,
    record: Record,
    clock: std::sync::Arc<Clock>,
    hub: Hub,
    directed: Mutex<Option<Directed>>,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let record = Record::at(folder.path().join("trust"));
        begin(&record, &root()).unwrap();
        let clock = std::sync::Arc::new(Clock(Mutex::new(at("2030-06-01T00:00:00Z"))));
        World { _folder: folder, record, clock, hub: Hub::default(), directed: Mutex::default() }
    }

    fn publish(&self, version: u64, releases: &[(&str, u64)]) {
        *self.hub.0.lock().unwrap() = Some(publication(version, releases));
    }

    fn offline(&self) {
        *self.hub.0.lock().unwrap() = None;
    }

    fn set_clock(&self, text: &str) {
        *self.clock.0.lock().unwrap() = at(text);
    }

    fn open(&self) -> Trust {
        let (_, directed) = watch::channel(self.directed.lock().unwrap().clone().map(Arc::new));
        let env = Env { wall: self.clock.clone(), ..env() };
        let clock = TrustedClock::new(env.wall.clone());
        Trust::open(self.record.clone(), env, clock, directed).unwrap()
    }

    async fn accept(&self, trust: &Trust, version: &str, floor: u64) -> Result<Accepted, &'static str> {
        let release = ReleaseRef { version: version.parse().unwrap(), digest: Digest::of(version.as_bytes()) };
        let app = "web".parse().unwrap();
        let accepted = trust.accept(&self.hub, &app, &release, floor, &["x86_64".into()]).await;
        accepted.map_err(|e| e.reason())
    }
}

#[tokio::test]
async fn what_was_verified_is_kept_and_needs_no_hub() {
    let world = World::new();
    assert_eq!(world.accept(&world.open(), "1", 0).await, Err("HubUnreachable"));
    world.publish(1, &[("1", 1)]);
    assert_eq!(world.accept(&world.open(), "1", 0).await, Ok(Accepted { counter: 1, manifest_bytes: 3 }));
    world.offline();
    let trust = world.open();
    assert_eq!(world.accept(&trust, "1", 0).await, Ok(Accepted { counter: 1, manifest_bytes: 3 }));
    assert_eq!(world.accept(&trust, "2", 0).await, Err("HubUnreachable"));
    world.publish(2, &[("1", 1), ("2", 2)]);
    assert_eq!(world.accept(&trust, "2", 1).await, Ok(Accepted { counter: 2, manifest_bytes: 3 }));
    assert_eq!(trust.state().borrow().versions.targets, 2);
}

#[tokio::test]
async fn a_box_that_is_hundreds_of_roots_behind_walks_them_all() {
    let world = World::new();
    let roots: Vec<String> = (1..=600).map(root_of).collect();
    let mut set = TrustedSet::new(&roots[0]).unwrap();
    for some in roots.chunks(MAX_ROOTS) {
        set = set.update_root(some, Timestamp::MIN).unwrap();
    }
    let set = set.update(&publication(1, &[("1", 1)]), at(ISSUED)).unwrap();
    let hub = FarAhead { roots, set, asked: Mutex::default() };
    let trust = world.open();
    trust.refresh(&hub).await.unwrap();
    assert_eq!(*hub.asked.lock().unwrap(), [1, 257, 513]);
    assert_eq!(trust.state().borrow().versions.root, 600);
    assert_eq!(world.accept(&world.open(), "1", 0).await, Ok(Accepted { counter: 1, manifest_bytes: 3 }));
}

#[tokio::test]
async fn each_attack_is_refused_by_its_name_and_changes_nothing() {
    let world = World::new();
    world.publish(5, &[("1", 1), ("2", 2)]);
    let trust = world.open();
    world.accept(&trust, "2", 0).await.unwrap();
    let before = fs::read(world.record.path()).unwrap();

    assert_eq!(world.accept(&trust, "1", 2).await, Err("Rollback"), "an older release");
    let release = ReleaseRef { version: "1".parse().unwrap(), digest: Digest::of(b"other") };
    let other = trust.accept(&world.hub, &"web".parse().unwrap(), &release, 0, &["x86_64".into()]).await;
    assert_eq!(other.unwrap_err().reason(), "MixAndMatch", "another digest");
    let release = ReleaseRef { digest: Digest::of(b"1"), ..release };
    let arm = trust.accept(&world.hub, &"web".parse().unwrap(), &release, 0, &["aarch64".into()]).await;
    assert_eq!(arm.unwrap_err().reason(), "WrongHardware");
    assert_eq!(world.accept(&trust, "9", 0).await, Err("NotSigned"), "a release that nobody signed");

    let mut changed = publication(6, &[("9", 9)]);
    changed.targets = changed.targets.map(|t| t.replace("x86_64", "x86_65"));
    *world.hub.0.lock().unwrap() = Some(changed);
    assert_eq!(world.accept(&trust, "9", 0).await, Err("BadSignature"), "a changed byte");
    assert_eq!(fs::read(world.record.path()).unwrap(), before);
}

#[tokio::test]
async fn expired_metadata_accepts_nothing_new_and_no_wrong_clock_locks_out() {
    let world = World::new();
    world.publish(1, &[("1", 1)]);
    let trust = world.open();
    world.set_clock("1970-01-01T00:00:00Z");
    world.accept(&trust, "1", 0).await.unwrap();
    world.set_clock("2032-01-01T00:00:00Z");
    assert_eq!(world.accept(&trust, "1", 0).await, Err("Freeze"));
    // A clock that was ahead leaves nothing behind.
    world.set_clock("1970-01-01T00:00:00Z");
    world.accept(&trust, "1", 0).await.unwrap();
}

#[tokio::test]
async fn a_clock_set_back_helps_nothing_that_expired_before_the_floor() {
    let world = World::new();
    world.publish(1, &[("1", 1)]);
    world.accept(&world.open(), "1", 0).await.unwrap();
    world.set_clock("1970-01-01T00:00:00Z");
    let old = publication_until(2, &[("1", 1), ("2", 2)], Some(ISSUED), "2029-12-31T00:00:00Z");
    *world.hub.0.lock().unwrap() = Some(old);
    assert_eq!(world.accept(&world.open(), "2", 0).await, Err("Freeze"), "older than what is held");

    // Without a release there is the time of the build.
    let fresh = World::new();
    fresh.set_clock("1970-01-01T00:00:00Z");
    *fresh.hub.0.lock().unwrap() = Some(publication_until(1, &[("1", 1)], None, "2025-12-31T00:00:00Z"));
    assert_eq!(fresh.accept(&fresh.open(), "1", 0).await, Err("Freeze"), "older than this program");
}

#[tokio::test]
async fn a_lost_record_fails_closed_until_the_box_joins_again() {
    let world = World::new();
    world.publish(1, &[("1", 1)]);
    world.accept(&world.open(), "1", 0).await.unwrap();
    let second = world.record.path().with_extension("bak");
    let whole = (fs::read(world.record.path()).unwrap(), fs::read(&second).unwrap());
    let damage: [fn(&std::path::Path); 3] = [
        |path| fs::write(path, "x").unwrap(),
        |path| fs::remove_file(path).unwrap(),
        |path| Record::at(path).store(b"{}").unwrap(),
    ];
    for (i, damage) in damage.into_iter().enumerate() {
        fs::write(world.record.path(), &whole.0).unwrap();
        fs::write(&second, &whole.1).unwrap();
        damage(world.record.path());
        if i < 2 {
            // One copy is enough, and the damage is told.
            let trust = world.open();
            assert!(trust.state().borrow().problem.contains("damaged"), "{i}");
            assert_eq!(trust.state().borrow().versions.targets, 0, "{i}: the copy before the first update");
            world.accept(&trust, "1", 0).await.unwrap();
            fs::write(&second, "x").unwrap();
            fs::remove_file(&second).unwrap();
            damage(world.record.path());
        }
        let trust = world.open();
        assert_eq!(world.accept(&trust, "1", 0).await, Err("TrustLost"), "{i}");
        assert!(trust.state().borrow().problem.contains("edgecore join"), "{i}");
        assert!(!is_whole(&world.record).unwrap());
    }
    begin(&world.record, &root()).unwrap();
    world.accept(&world.open(), "1", 0).await.unwrap();
}

#[tokio::test]
async fn a_release_published_again_under_a_higher_counter_is_looked_up_anew() {
    let world = World::new();
    world.publish(1, &[("1.0.0", 1), ("2.0.0", 2)]);
    let trust = world.open();
    assert_eq!(world.accept(&trust, "1.0.0", 0).await.unwrap().counter, 1);
    assert_eq!(world.accept(&trust, "1.0.0", 2).await.unwrap_err(), "Rollback");
    world.publish(2, &[("1.0.0", 3), ("2.0.0", 2)]);
    assert_eq!(world.accept(&trust, "1.0.0", 2).await.unwrap().counter, 3);
}

/// A director whose online key is `online`, and what it signed at [`ISSUED`] for the version.
fn directed(online: u8, releases: &[(&str, u64)], expires: &str) -> Directed {
    let (owner, online) = (SecretKey::from_seed(&[7; 32]), SecretKey::from_seed(&[online; 32]));
    let mut root = Document::new(&director::root(&[owner.public()], 1, &online.public(), at(EXPIRES))).unwrap();
    root.sign(&owner);
    let targets = publication(1, releases).targets.unwrap();
    let targets = Offered::<TargetsMeta>::parse(&targets).unwrap().signed.targets;
    let assignment = proto::link::message::Assignment::default();
    let directive = Directive { node: "n1".parse().unwrap(), nonce: String::new(), issued_at: at(ISSUED), assignment };
    let issue = director::Issue { directive: directive.clone(), targets, version: 1, expires: at(expires) };
    let set = TrustedSet::new(&root.text()).unwrap();
    let set = set.update(&issue.sign(&online).unwrap(), at(ISSUED)).unwrap();
    Directed { set, directive: Some(directive) }
}

#[tokio::test]
async fn nothing_is_accepted_that_the_two_repositories_do_not_agree_on() {
    let world = World::new();
    world.publish(2, &[("1", 1), ("2", 2)]);
    let with = async |directed: Directed, version| {
        *world.directed.lock().unwrap() = Some(directed);
        world.accept(&world.open(), version, 0).await
    };
    let until = "2030-12-01T00:00:00Z";
    assert_eq!(with(directed(8, &[("2", 2)], until), "2").await.unwrap().counter, 2);
    assert_eq!(with(directed(8, &[("2", 2)], until), "1").await, Err("NotDirected"), "a hub's blob without its word");
    assert_eq!(with(directed(8, &[("2", 3)], until), "2").await, Err("MixAndMatch"), "another counter");
    assert_eq!(with(directed(8, &[("3", 3)], until), "3").await, Err("NotSigned"), "a stolen online key alone");
    assert_eq!(with(directed(8, &[("2", 2)], "2030-05-01T00:00:00Z"), "2").await, Err("Freeze"), "an old order");
    assert_eq!(with(directed(1, &[("2", 2)], until), "2").await, Err("SharedKey"), "one key for both");
}

#[tokio::test]
async fn a_withdrawn_release_leaves_the_floor_of_the_time_where_it_is() {
    let world = World::new();
    world.publish(1, &[("1", 1)]);
    world.accept(&world.open(), "1", 0).await.unwrap();
    world.publish(2, &[]);
    world.open().refresh(&world.hub).await.unwrap();
    assert_eq!(world.accept(&world.open(), "1", 0).await, Err("NotSigned"));
    world.set_clock("1970-01-01T00:00:00Z");
    let trust = world.open();
    assert_eq!(trust.clock.now(), at(ISSUED));
    let old = publication_until(3, &[("1", 1)], Some(ISSUED), "2029-12-31T00:00:00Z");
    *world.hub.0.lock().unwrap() = Some(old);
    assert_eq!(world.accept(&trust, "1", 0).await, Err("Freeze"));
}

#[tokio::test]
async fn withheld_metadata_is_told_by_role_and_what_is_accepted_stays() {
    let world = World::new();
    world.publish(1, &[("1", 1)]);
    *world.directed.lock().unwrap() = Some(directed(8, &[("1", 1)], "2030-12-01T00:00:00Z"));
    let trust = world.open();
    world.accept(&trust, "1", 0).await.unwrap();
    assert!(trust.look().await.is_fresh());

    world.set_clock("2030-12-02T00:00:00Z");
    let stale = trust.look().await;
    let roles: Vec<&str> = stale.0.keys().map(String::as_str).collect();
    assert_eq!(roles, ["director snapshot", "director targets", "director timestamp"]);
    assert_eq!(trust.state().borrow().stale, stale);
    world.set_clock("2031-01-02T00:00:00Z");
    assert!(trust.look().await.0.contains_key("release timestamp"));
    assert!(stale.to_string().contains("director targets ended at 2030-12-01T00:00:00Z"), "{stale}");

    // Newer metadata ends it, whatever asked for it.
    *world.hub.0.lock().unwrap() = Some(publication_until(2, &[("1", 1)], None, "2032-01-01T00:00:00Z"));
    world.set_clock("2030-12-30T00:00:00Z");
    trust.refresh(&world.hub).await.unwrap();
    world.set_clock("2031-01-02T00:00:00Z");
    assert!(!trust.look().await.0.contains_key("release timestamp"));
}

#[tokio::test]
async fn a_release_from_the_future_moves_no_box_there() {
    let world = World::new();
    let ahead = publication_until(1, &[("1", 1)], Some("2099-01-01T00:00:00Z"), EXPIRES);
    *world.hub.0.lock().unwrap() = Some(ahead);
    let trust = world.open();
    world.accept(&trust, "1", 0).await.unwrap();
    assert_eq!(trust.clock.now(), at("2030-06-01T00:00:00Z"));
    world.publish(2, &[("1", 1), ("2", 2)]);
    assert_eq!(world.accept(&world.open(), "2", 0).await.unwrap().counter, 2);
}
