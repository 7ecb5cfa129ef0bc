//! The store's promises, on real files.

use std::time::Duration;

use proto::{
    env::Blocking,
    name::ObjectName,
    object::{Node, NodePhase, NodeSpec, Object, Site, SiteSpec},
};

use super::*;

async fn open(path: &Path) -> Store {
    let env = Env { blocking: Blocking::Pool, ..Env::real().unwrap() };
    Store::open(path, &env).await.unwrap()
}

fn node(name: &str, site: &str) -> Node {
    let name: proto::name::Name = name.parse().unwrap();
    Object::new(name, NodeSpec::new(site.parse().unwrap()))
}

#[tokio::test]
async fn an_object_lives_through_its_versions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/hub.db");
    let store = open(&path).await;
    let created = store.create(node("n1", "hz-01")).await.unwrap();
    assert_eq!((created.metadata.generation, created.metadata.resource_version.as_str()), (1, "1"));
    assert_eq!(created.metadata.uid.len(), 36);
    assert!(created.metadata.creation_timestamp.is_some());
    assert!(matches!(store.create(node("n1", "hz-01")).await, Err(StoreError::AlreadyExists { .. })));

    // Status changes leave the generation, spec changes raise it, no change writes nothing.
    let ready = store.modify::<NodeSpec>("n1", |n| n.status.phase = NodePhase::Ready).await.unwrap().unwrap();
    assert_eq!((ready.metadata.generation, ready.metadata.resource_version.as_str()), (1, "2"));
    let same = store.modify::<NodeSpec>("n1", |n| n.status.phase = NodePhase::Ready).await.unwrap().unwrap();
    assert_eq!(same, ready);
    let mut moved = ready.clone();
    moved.spec.site = "hz-02".parse().unwrap();
    moved.status.phase = NodePhase::Unknown; // not a user's to write
    let moved = store.update(moved).await.unwrap();
    assert_eq!((moved.metadata.generation, moved.status.phase), (2, NodePhase::Ready));
    let raised = store.modify::<NodeSpec>("n1", |n| n.metadata.generation = 40).await.unwrap().unwrap();
    assert_eq!(raised.metadata.generation, 40);

    drop(store);
    let store = open(&path).await;
    assert_eq!(store.get::<NodeSpec>("n1").await.unwrap().unwrap(), raised);
    let gone = store.delete::<NodeSpec>("n1").await.unwrap().unwrap();
    assert_eq!(gone.metadata.uid, created.metadata.uid);
    assert!(store.delete::<NodeSpec>("n1").await.unwrap().is_none());
    let again = store.create(node("n1", "hz-01")).await.unwrap();
    assert_ne!(again.metadata.uid, created.metadata.uid);
    assert!(again.metadata.resource_version.parse::<i64>().unwrap() > 5);
}

#[tokio::test]
async fn a_stale_update_is_refused_and_a_racing_modify_is_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("hub.db")).await;
    let first = store.create(node("n1", "hz-01")).await.unwrap();
    let mut mine = first.clone();
    mine.metadata.labels.insert("line".into(), "1".into());
    store.update(mine.clone()).await.unwrap();
    mine.metadata.labels.insert("line".into(), "2".into());
    let error = store.update(mine.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error}");
    assert!(error.to_string().contains("read it again"), "{error}");
    mine.metadata.resource_version.clear(); // whoever gives none insists
    store.update(mine).await.unwrap();
    assert!(matches!(store.update(node("n2", "a")).await, Err(StoreError::NotFound { .. })));

    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.modify::<NodeSpec>("n1", |n| n.metadata.generation += 1).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap().unwrap();
    }
    assert_eq!(store.get::<NodeSpec>("n1").await.unwrap().unwrap().metadata.generation, 201);
}

#[tokio::test]
async fn a_change_that_panics_takes_nothing_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("hub.db")).await;
    store.create(node("n1", "hz-01")).await.unwrap();
    let bad = store.modify::<NodeSpec>("n1", |n| {
        n.status.phase = NodePhase::Ready;
        panic!("on purpose");
    });
    let good = store.create(node("n2", "hz-01"));
    let (bad, good) = tokio::join!(bad, good);
    assert!(matches!(bad, Err(StoreError::Panicked)));
    good.unwrap();
    let n1 = store.get::<NodeSpec>("n1").await.unwrap().unwrap();
    assert_eq!(n1.status.phase, NodePhase::Pending);
    // Of two kinds all is written, or nothing.
    let site = Object::new("hz-01".parse::<ObjectName>().unwrap(), SiteSpec::default());
    store.create::<SiteSpec>(site).await.unwrap();
    let ready = (vec!["n1".to_owned()], |node: &mut Node| node.status.phase = NodePhase::Ready);
    let panics = (vec!["hz-01".to_owned()], |_: &mut Site| panic!("on purpose"));
    assert!(matches!(store.modify_both(ready, panics).await, Err(StoreError::Panicked)));
    let n1 = store.get::<NodeSpec>("n1").await.unwrap().unwrap();
    assert_eq!(n1.status.phase, NodePhase::Pending);
}

#[tokio::test]
async fn lists_are_selected_by_label_name_and_site() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("hub.db")).await;
    for (name, site) in [("b", "hz-01"), ("a", "hz-01"), ("c", "hz-02")] {
        store.create(node(name, site)).await.unwrap();
    }
    store.create(Object::new("hz-01".parse::<proto::name::Name>().unwrap(), SiteSpec::default())).await.unwrap();
    for (selector, expected) in
        [("all", "a b c"), ("site=hz-01", "a b"), ("name in (b,c)", "b c"), ("gpu", ""), ("site!=hz-01", "c")]
    {
        let list = store.list::<NodeSpec>(Some(&selector.parse().unwrap())).await.unwrap();
        let names: Vec<_> = list.items.iter().map(Object::name).collect();
        assert_eq!(names.join(" "), expected, "{selector}");
        assert_eq!(list.resource_version, "4");
    }
}

#[tokio::test]
async fn a_watch_follows_from_a_list_without_gap_and_says_when_it_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let store = open(&path).await;
    store.create(node("n1", "hz-01")).await.unwrap();
    let since = store.list::<NodeSpec>(None).await.unwrap().resource_version;
    store.modify::<NodeSpec>("n1", |n| n.status.phase = NodePhase::Ready).await.unwrap();
    store.create(Object::new("hz-01".parse::<proto::name::Name>().unwrap(), SiteSpec::default())).await.unwrap();
    let mut watch = store.watch::<NodeSpec>(Some(&since)).unwrap();
    store.delete::<NodeSpec>("n1").await.unwrap();

    assert!(matches!(watch.next().await, Some(WatchEvent::Modified(n)) if n.status.phase == NodePhase::Ready));
    assert!(matches!(watch.next().await, Some(WatchEvent::Deleted(n)) if n.metadata.resource_version == "4"));
    let mut late = store.watch::<NodeSpec>(None).unwrap();
    let waited = tokio::join!(late.next(), store.create(node("n2", "hz-01"))).0;
    assert!(matches!(waited, Some(WatchEvent::Added(n)) if n.name() == "n2"));

    for bad in ["99", "-1", "x", ""] {
        assert!(matches!(store.watch::<NodeSpec>(Some(bad)), Err(StoreError::Gone(_))), "{bad:?}");
    }
    drop(store);
    // Another process remembers nothing before its start; the newest revision is a good place to go on.
    let store = open(&path).await;
    assert!(matches!(store.watch::<NodeSpec>(Some("1")), Err(StoreError::Gone(_))));
    store.watch::<NodeSpec>(Some("5")).unwrap();
}

#[tokio::test]
async fn a_watch_that_falls_behind_ends() {
    let ring = Arc::new(Ring::starting_at(0));
    let mut cursor = ring.follow("Node", None).unwrap();
    let json: Arc<str> = "x".repeat(1 << 20).into();
    let change = |revision| Change { revision, kind: "Node", change: ChangeType::Added, json: Arc::clone(&json) };
    ring.push(vec![change(1)]);
    assert_eq!(cursor.next().await.unwrap().revision, 1);
    ring.push((2..60).map(change).collect());
    assert!(tokio::time::timeout(Duration::from_secs(5), cursor.next()).await.unwrap().is_none());
    assert!(matches!(ring.follow("Node", Some("1")), Err(StoreError::Gone(_))));
}

#[tokio::test]
async fn a_database_of_the_future_is_refused_and_unknown_fields_are_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let store = open(&path).await;
    store.create(node("n1", "hz-01")).await.unwrap();
    drop(store);
    let raw = Connection::open(&path).unwrap();
    raw.execute("UPDATE objects SET json = replace(json, '\"spec\":{', '\"spec\":{\"later\":[1],')", []).unwrap();
    let store = open(&path).await;
    assert_eq!(store.get::<NodeSpec>("n1").await.unwrap().unwrap().spec.site.as_str(), "hz-01");
    raw.execute("UPDATE objects SET json = '{'", []).unwrap();
    assert!(matches!(store.get::<NodeSpec>("n1").await, Err(StoreError::Damaged { .. })));
    drop(store);

    raw.pragma_update(None, "user_version", 99).unwrap();
    let error = Store::open(&path, &Env::real().unwrap()).await.unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
    std::fs::write(folder.path().join("bad.db"), "not a database".repeat(100)).unwrap();
    let error = Store::open(&folder.path().join("bad.db"), &Env::real().unwrap()).await.unwrap_err();
    assert!(matches!(error, StoreError::Sqlite { .. }), "{error}");
}

/// A clock that goes back with every look.
#[derive(Debug, Default)]
struct Backwards(std::sync::atomic::AtomicI64);

impl proto::env::WallClock for Backwards {
    fn now(&self) -> jiff::Timestamp {
        let looks = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        jiff::Timestamp::from_second(1_800_000_000 - looks * 60).unwrap()
    }
}

#[tokio::test]
async fn a_later_rollout_is_newer_although_the_clock_went_back() {
    let folder = tempfile::tempdir().unwrap();
    let env = Env { wall: Arc::new(Backwards::default()), ..Env::real().unwrap() };
    let mut times = vec![];
    for version in ["1.0.0", "2.0.0", "3.0.0"] {
        // Opened again: what counts is what is on disk.
        let store = Store::open(&folder.path().join("hub.db"), &env).await.unwrap();
        let spec = RolloutSpec::new(format!("app@{version}").parse().unwrap(), "all".parse().unwrap());
        let name: proto::name::Name = format!("r{}", version.replace('.', "-")).parse().unwrap();
        times.push(store.create(Object::new(name, spec)).await.unwrap().metadata.creation_timestamp);
    }
    assert!(times.is_sorted_by(|before, after| before < after), "{times:?}");
}
