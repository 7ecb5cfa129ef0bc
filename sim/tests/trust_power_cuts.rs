//! The power goes at every write, sync and rename of what a box trusts: afterwards it has the old state or the new
//! one, never none, and no floor is lower than before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // all of it is a test

use std::path::{Path, PathBuf};

use edgecore::{
    fetch::{Reader, Source, SourceError},
    link::assignment::{self, Assignments, Place},
    trust::{self, Trust, clock::TrustedClock},
};
use proto::{
    digest::Digest,
    director::{self, Directive, Issue},
    durable::Record,
    env::{Blocking, BoxFuture, Env, Seed},
    link::message::{Assignment, BlobRequest, MetadataReply, MetadataRequest, Report},
    object::ReleaseRef,
    tuf::{
        RoleName, SecretKey, Target, TargetCustom,
        schema::{MetaFile, Role, RoleKeys, RootMeta, SPEC_VERSION, SnapshotMeta, TargetsMeta, TimestampMeta},
        sign::Document,
    },
    watch,
};
use sim::disk::Disk;

/// Power cuts at the same place, each losing something else.
const SEEDS: u64 = 8;

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

fn at(text: &str) -> jiff::Timestamp {
    text.parse().unwrap()
}

fn expires() -> jiff::Timestamp {
    at("2090-01-01T00:00:00Z")
}

fn signed<T: Role>(content: &T) -> String {
    let mut document = Document::new(content).unwrap();
    document.sign(&key(1));
    document.text()
}

macro_rules! meta {
    ($name:ident, $kind:literal, $version:expr, $($rest:tt)*) => {
        signed(&$name {
            kind: $kind.into(), spec_version: SPEC_VERSION.into(), version: $version,
            expires: expires(), other: Default::default(), $($rest)*
        })
    };
}

fn release_root(version: u64) -> String {
    let role = || RoleKeys { keyids: vec![key(1).id()], threshold: 1, other: Default::default() };
    meta!(RootMeta, "root", version,
        consistent_snapshot: true,
        keys: [(key(1).id(), key(1).public())].into(),
        roles: RoleName::ALL.map(|role_name| (role_name.as_str().to_owned(), role())).into())
}

/// Publication `version` lists the release of that version, under a root of that version.
fn publication(version: u64) -> MetadataReply {
    let custom = TargetCustom {
        app: "web".parse().unwrap(),
        version: version.to_string().parse().unwrap(),
        release_counter: version,
        hardware: Default::default(),
        issued_at: Some(at("2030-01-01T00:00:00Z")),
    };
    let target = Target { length: 1, digest: Digest::of(version.to_string().as_bytes()), custom };
    let targets = [(format!("web/{version}.json"), target.to_file().unwrap())].into();
    let targets = meta!(TargetsMeta, "targets", version, targets);
    let meta = [("targets.json".to_owned(), MetaFile::of(version, &targets))].into();
    let snapshot = meta!(SnapshotMeta, "snapshot", version, meta);
    let meta = [("snapshot.json".to_owned(), MetaFile::of(version, &snapshot))].into();
    let timestamp = meta!(TimestampMeta, "timestamp", version, meta);
    let roots = (1..=version).map(release_root).collect();
    MetadataReply { roots, timestamp: Some(timestamp), snapshot: Some(snapshot), targets: Some(targets) }
}

fn director_root() -> String {
    let root = director::root(&[key(7).public()], 1, &key(8).public(), expires());
    let mut document = Document::new(&root).unwrap();
    document.sign(&key(7));
    document.text()
}

fn directive(nonce: &str, have: MetadataRequest, generation: u64) -> MetadataReply {
    let release = ReleaseRef { version: "1".parse().unwrap(), digest: Digest::of(b"1") };
    let apps = [(format!("app-{generation}").parse().unwrap(), release.into())].into();
    let assignment = Assignment { generation, apps, ..Assignment::default() };
    let directive = Directive {
        node: "n1".parse().unwrap(),
        nonce: nonce.into(),
        issued_at: at("2030-01-01T00:00:00Z"),
        assignment,
    };
    let issue = Issue { directive, targets: Default::default(), version: have.targets + 1, expires: expires() };
    MetadataReply { roots: vec![director_root()], ..issue.sign(&key(8)).unwrap() }
}

#[derive(Debug)]
struct Hub(MetadataReply);

impl Source for Hub {
    fn metadata(&self, _: MetadataRequest) -> BoxFuture<'_, Result<MetadataReply, SourceError>> {
        Box::pin(async { Ok(self.0.clone()) })
    }
    fn blob(&self, _: BlobRequest) -> BoxFuture<'_, Result<Reader, SourceError>> {
        Box::pin(async { Err(SourceError::Offline) })
    }
}

fn env() -> Env {
    Env { blocking: Blocking::Inline, seed: Seed::from_u64(1), ..Env::real().unwrap() }
}

fn place(folder: &Path, pinned: bool) -> Place {
    let first_root = folder.join(if pinned { "director.json" } else { "shown.json" });
    Place { record: Record::at(folder.join("assignment")), first_root, node: "n1".parse().unwrap() }
}

fn open_trust(folder: &Path) -> Trust {
    let clock = TrustedClock::new(env().wall);
    Trust::open(Record::at(folder.join("trust")), env(), clock, watch::channel(None).1).unwrap()
}

fn open_assignments(folder: &Path, pinned: bool) -> Assignments {
    Assignments::open(place(folder, pinned), env(), TrustedClock::new(env().wall)).unwrap()
}

/// Plays `before` undisturbed, then `work` until the power goes at its `n`th call, for every `n`, and looks with
/// `look` at what is there after boot. Returns how many places there were.
async fn at_every_call(
    before: impl AsyncFn(PathBuf),
    work: impl AsyncFn(PathBuf),
    look: impl AsyncFn(PathBuf, String),
) -> u64 {
    for calls in 0.. {
        let mut froze = false;
        for seed in 0..SEEDS {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("box");
            std::fs::create_dir(&path).unwrap();
            let disk = Disk::new(&path).unwrap();
            before(path.clone()).await;
            disk.forget();
            disk.freeze_after(calls);
            work(path.clone()).await;
            froze = disk.thaw();
            disk.power_cut(&Seed::from_u64(seed)).unwrap();
            look(path, format!("power cut at call {calls}, seed {seed}")).await;
        }
        if !froze {
            return calls;
        }
    }
    unreachable!("the work ends")
}

#[tokio::test]
async fn the_release_metadata_is_the_old_or_the_new() {
    let places = at_every_call(
        async |path| {
            trust::begin(&Record::at(path.join("trust")), &release_root(1)).unwrap();
            open_trust(&path).refresh(&Hub(publication(2))).await.unwrap();
        },
        async |path| drop(open_trust(&path).refresh(&Hub(publication(3))).await),
        async |path, when| {
            let trust = open_trust(&path);
            let versions = trust.state().borrow().versions;
            assert!([2, 3].contains(&versions.targets), "{when}: {versions:?}");
            assert!([versions.root, versions.timestamp, versions.snapshot].iter().all(|v| *v == versions.targets));
            trust.refresh(&Hub(publication(3))).await.unwrap(); // and it goes on from there
            let older = Hub(MetadataReply { roots: vec![], ..publication(2) });
            assert_eq!(trust.refresh(&older).await.unwrap_err().reason(), "Rollback", "{when}");
        },
    )
    .await;
    assert!(places >= 6, "{places} calls: two copies, each written, synced, renamed");
}

#[tokio::test]
async fn the_directors_metadata_is_the_old_or_the_new() {
    let board = || watch::channel(Report::default()).0;
    let direct = async |path: &Path, generation| {
        let assignments = open_assignments(path, true);
        let request = assignments.request();
        assignments.direct(&directive(&request.nonce, request.have, generation), &request.nonce, &board()).await
    };
    let places = at_every_call(
        async |path| {
            assignment::begin(&place(&path, true), &director_root()).unwrap();
            direct(&path, 4).await.unwrap();
            direct(&path, 5).await.unwrap();
        },
        async |path| drop(direct(&path, 6).await),
        async |path, when| {
            let generation = open_assignments(&path, true).generation();
            assert!([5, 6].contains(&generation), "{when}: {generation}");
            assert_eq!(*open_assignments(&path, true).problem().borrow(), None, "{when}");
            assert!(direct(&path, 4).await.is_err(), "{when}: no way back");
            direct(&path, 7).await.unwrap();
        },
    )
    .await;
    assert!(places >= 6, "{places}");
}

#[tokio::test]
async fn a_director_that_is_pinned_at_first_sight_is_pinned_or_not_yet_known() {
    let board = || watch::channel(Report::default()).0;
    let direct = async |path: &Path| {
        let assignments = open_assignments(path, false);
        let request = assignments.request();
        assignments.direct(&directive(&request.nonce, request.have, 6), &request.nonce, &board()).await
    };
    let unsigned = async |path: &Path, generation| {
        let offered = Assignment { generation, ..Assignment::default() };
        open_assignments(path, false).accept(offered, &board()).await
    };
    let places = at_every_call(
        async |path| unsigned(&path, 5).await.unwrap(),
        async |path| drop(direct(&path).await),
        async |path, when| {
            let pinned = place(&path, false).first_root.exists();
            let known = assignment::is_whole(&place(&path, false).record).unwrap();
            assert!(known || !pinned, "{when}: the pin comes last");
            assert_eq!(*open_assignments(&path, false).problem().borrow(), None, "{when}");
            assert_eq!(unsigned(&path, 7).await.is_err(), known, "{when}");
            // Whatever it was, the next session brings it forward.
            let assignments = open_assignments(&path, false);
            let request = assignments.request();
            let reply = directive(&request.nonce, request.have, 8);
            assignments.direct(&reply, &request.nonce, &board()).await.unwrap();
            assert!(place(&path, false).first_root.exists(), "{when}");
        },
    )
    .await;
    assert!(places >= 8, "{places}");
}

#[tokio::test]
async fn joining_again_begins_with_a_whole_root_or_fails_closed() {
    let places = at_every_call(
        async |_| {},
        async |path| {
            drop(trust::begin(&Record::at(path.join("trust")), &release_root(1)));
            drop(assignment::begin(&place(&path, true), &director_root()));
        },
        async |path, when| {
            let record = Record::at(path.join("trust"));
            let whole = trust::is_whole(&record).unwrap();
            let refreshed = open_trust(&path).refresh(&Hub(publication(2))).await;
            assert_eq!(refreshed.is_ok(), whole, "{when}");
            let pinned = place(&path, true).first_root.exists();
            assert!(!pinned || assignment::is_whole(&place(&path, true).record).unwrap(), "{when}");
            // The same command mends it.
            trust::begin(&record, &release_root(1)).unwrap();
            assignment::begin(&place(&path, true), &director_root()).unwrap();
            open_trust(&path).refresh(&Hub(publication(2))).await.unwrap();
        },
    )
    .await;
    assert!(places >= 12, "{places}");
}
