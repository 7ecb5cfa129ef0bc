//! From one real hub to another, over their APIs.

use std::fs;

use jiff::SignedDuration;
use proto::{
    env::{SystemClock, WallClock as _},
    link::message::MetadataReply,
    object::ReleaseSpec,
    tuf::SecretKey,
};

use super::*;
use crate::{
    api::tests::Served,
    cli::exit,
    hub::fixture::Fixture,
    release::{Repository, Setup, publish::upload},
};

const ROOT_ONLY: Allowed<'static> = Allowed { first_root: None, withdraw: false };

/// A sandbox that has published `app@1`, and a production hub that has nothing.
async fn hubs() -> (Served, Served) {
    (Served::start().await, Served::of(Fixture::bare(|_| {}).await, |sink| sink))
}

async fn metadata(hub: &Served) -> MetadataReply {
    hub.client.metadata(&MetadataRequest::default()).await.unwrap()
}

/// A hub of somebody with keys of their own.
async fn stranger() -> Served {
    let mut fixture = Fixture::bare(|_| {}).await;
    fixture.keys = [4, 5, 6].map(|n| SecretKey::from_seed(&[n; 32]));
    let [root, targets, pipeline] = &fixture.keys;
    let folder = fixture.folder.path().join("own");
    let setup = Setup::small_team(root, targets, pipeline);
    fixture.repository = Repository::create(&folder, &setup, SystemClock.now()).unwrap();
    fixture.release("app", "1", b"one").await;
    Served::of(fixture, |sink| sink)
}

/// Production after its first promotion, which names the root.
async fn both_at_one() -> (Served, Served) {
    let (sandbox, production) = hubs().await;
    let root = metadata(&sandbox).await.roots[0].clone();
    let allowed = Allowed { first_root: Some(&root), withdraw: false };
    go("app@1", &sandbox, &production, allowed).await.unwrap();
    (sandbox, production)
}

async fn go(release: &str, from: &Served, to: &Served, allowed: Allowed<'_>) -> anyhow::Result<(Plan, Option<Copied>)> {
    promote(&release.parse().unwrap(), &from.client, &to.client, allowed, false, SystemClock.now()).await
}

async fn refused(release: &str, from: &Served, to: &Served, allowed: Allowed<'_>, code: Exit, word: &str) {
    let before = metadata(to).await;
    let error = go(release, from, to, allowed).await.unwrap_err();
    assert_eq!(exit::code(&error), code as u8, "{error:#}");
    assert!(format!("{error:#}").contains(word), "{error:#}");
    assert_eq!(metadata(to).await, before, "{error:#}");
}

async fn publish(hub: &Served, app: &str, version: &str, content: &[u8]) {
    let publication = hub.fixture.signed(app, version, content);
    upload(&hub.client, &publication, |_| {}).await.unwrap();
}

async fn releases(hub: &Served) -> Vec<String> {
    let all = hub.client.list_of::<ReleaseSpec>(None).await.unwrap();
    all.iter().map(|release| format!("{}@{}", release.spec.app, release.spec.version)).collect()
}

#[tokio::test]
async fn the_same_release_arrives_to_the_byte_with_what_the_metadata_lists_beside_it() {
    let (sandbox, production) = both_at_one().await;
    let content = vec![5; 700 << 10]; // three chunks
    publish(&sandbox, "app", "2", &content).await;
    publish(&sandbox, "web", "3", b"web").await;

    let (release, now) = ("app@2".parse().unwrap(), SystemClock.now());
    let rehearsed = promote(&release, &sandbox.client, &production.client, ROOT_ONLY, true, now);
    let (plan, copied) = rehearsed.await.unwrap();
    assert_eq!((names(&plan.along), copied), ("web@3".into(), None));
    assert_eq!(releases(&production).await, ["app@1"], "a rehearsal does nothing");

    let (plan, copied) = go("app@2", &sandbox, &production, ROOT_ONLY).await.unwrap();
    let copied = copied.unwrap();
    assert_eq!((copied.sent, copied.present), (4, 0), "two manifests and two files");
    assert!(plan.before.targets < plan.after.targets);
    assert_eq!(metadata(&production).await, metadata(&sandbox).await);
    assert_eq!(releases(&production).await, ["app@1", "app@2", "web@3"]);
    let there = production.client.blob(&Digest::of(&content)).await.unwrap().bytes().await.unwrap();
    assert_eq!(there, content);
    let (_, again) = go("app@2", &sandbox, &production, ROOT_ONLY).await.unwrap();
    assert_eq!(again, Some(Copied { sent: 0, sent_bytes: 0, present: 2 }));
    let told = described(&"app@2".parse().unwrap(), &sandbox.client, &production.client, &plan, Some(&copied));
    assert_eq!(
        (&told["kind"], &told["along"][0], &told["copied"]["blobs"]),
        (&json!("Promotion"), &json!("web@3"), &json!(4))
    );
    refused("app@9", &sandbox, &production, ROOT_ONLY, Exit::NotFound, "app@9").await;
}

#[tokio::test]
async fn a_hub_that_trusts_nobody_begins_with_the_root_that_was_named_and_no_other() {
    let (sandbox, production) = hubs().await;
    refused("app@1", &sandbox, &production, ROOT_ONLY, Exit::Refused, "--root").await;
    let stranger = stranger().await;
    let other = metadata(&stranger).await.roots[0].clone();
    let allowed = Allowed { first_root: Some(&other), withdraw: false };
    refused("app@1", &sandbox, &production, allowed, Exit::Refused, "given with --root").await;
    refused("app@1", &production, &sandbox, ROOT_ONLY, Exit::Refused, "publish to it first").await;
    // Two owners.
    refused("app@1", &sandbox, &stranger, ROOT_ONLY, Exit::Refused, "different origin").await;
}

#[tokio::test]
async fn a_hub_that_is_ahead_or_has_forked_is_left_alone() {
    let (sandbox, production) = both_at_one().await;
    // The same version with other content: a copy of the repository published to production.
    let repository = sandbox.fixture.repository.dir().to_owned();
    let copy = sandbox.fixture.folder.path().join("copy");
    copy_tree(&repository, &copy);
    publish(&sandbox, "app", "2", b"two").await;
    refused("app@1", &production, &sandbox, ROOT_ONLY, Exit::Refused, "is ahead").await;
    let mine = metadata(&sandbox).await;
    fs::rename(&repository, repository.with_extension("mine")).unwrap();
    fs::rename(&copy, &repository).unwrap();
    let forked = sandbox.fixture.signed("web", "1", b"web");
    upload(&production.client, &forked, |_| {}).await.unwrap();
    refused("app@2", &sandbox, &production, ROOT_ONLY, Exit::Refused, "have forked").await;
    assert_eq!(metadata(&sandbox).await, mine);
    // The copy went on further than the sandbox: it cannot be seen but in what would vanish.
    fs::remove_dir_all(&repository).unwrap();
    fs::rename(repository.with_extension("mine"), &repository).unwrap();
    publish(&sandbox, "app", "3", b"three").await;
    refused("app@3", &sandbox, &production, ROOT_ONLY, Exit::Refused, "lists web@1").await;
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test]
async fn a_withdrawal_is_promoted_when_it_is_meant() {
    let (sandbox, production) = both_at_one().await;
    publish(&sandbox, "app", "2", b"two").await;
    go("app@2", &sandbox, &production, ROOT_ONLY).await.unwrap();
    sandbox.fixture.repository.remove(&"app@1".parse().unwrap(), SystemClock.now()).unwrap();
    publish(&sandbox, "app", "3", b"three").await;
    refused("app@3", &sandbox, &production, ROOT_ONLY, Exit::Refused, "--withdraw").await;
    let allowed = Allowed { first_root: None, withdraw: true };
    let (plan, _) = go("app@3", &sandbox, &production, allowed).await.unwrap();
    assert_eq!(names(&plan.withdrawn), "app@1");
    assert_eq!(releases(&production).await, ["app@2", "app@3"]);
}

#[tokio::test]
async fn what_is_expired_or_was_changed_is_refused() {
    let (sandbox, production) = both_at_one().await;
    publish(&sandbox, "app", "2", b"two").await;
    let (source, target) = (metadata(&sandbox).await, metadata(&production).await);
    let refused = |source: &MetadataReply, days: i64| {
        let then = SystemClock.now() + SignedDuration::from_hours(24 * days);
        plan(&"app@2".parse().unwrap(), source, &target, ROOT_ONLY, then).unwrap_err().to_string()
    };
    let error = refused(&source, 31);
    assert!(error.contains("source hub") && error.contains("expired"), "{error}");
    let mut changed = source.clone();
    changed.targets = changed.targets.map(|text| text.replace("app/2.json", "app/9.json"));
    assert!(refused(&changed, 0).contains("changed after it was signed"), "{}", refused(&changed, 0));
    let unsigned = MetadataReply { timestamp: None, ..source };
    assert!(refused(&unsigned, 0).contains("missing"), "{}", refused(&unsigned, 0));
}

#[tokio::test]
async fn a_promotion_that_broke_off_goes_on_where_it_was() {
    let (sandbox, production) = both_at_one().await;
    let content = vec![9; 300 << 10];
    publish(&sandbox, "app", "2", &content).await;
    let file = stored(&sandbox, &Digest::of(&content));
    let aside = file.with_extension("aside");
    fs::rename(&file, &aside).unwrap();
    let error = go("app@2", &sandbox, &production, ROOT_ONLY).await.unwrap_err();
    assert!(format!("{error:#}").contains("run the same again"), "{error:#}");
    assert_eq!(releases(&production).await, ["app@1"]);
    fs::rename(&aside, &file).unwrap();
    let (_, copied) = go("app@2", &sandbox, &production, ROOT_ONLY).await.unwrap();
    assert!(copied.is_some_and(|copied| copied.sent >= 1 && copied.sent + copied.present == 2), "{copied:?}");
    assert_eq!(releases(&production).await, ["app@1", "app@2"]);
}

/// Where a hub keeps a blob.
fn stored(hub: &Served, digest: &Digest) -> PathBuf {
    hub.fixture.hub.config().data_dir.join("blobs").join(&digest.hex()[..2]).join(digest.hex())
}

#[tokio::test]
async fn content_is_passed_on_only_while_it_is_what_was_signed() {
    let right = Digest::of(b"abcdef");
    for (parts, digest, size, word) in [
        (vec!["abc", "def"], right, 6, ""),
        (vec!["abc", "dex"], right, 6, "other content"),
        (vec!["abc"], right, 6, "ended after 3"),
        (vec!["abc", "defg"], right, 6, "longer"),
        (vec![], Digest::of(b""), 0, ""),
    ] {
        let (fault, counter) = (Fault::default(), Arc::new(AtomicU64::new(0)));
        let content = stream::iter(parts.clone().into_iter().map(|part| Ok(Bytes::from_static(part.as_bytes()))));
        let passed = verified(content, digest, size, Arc::clone(&fault), Arc::clone(&counter));
        let passed: Result<Vec<Bytes>, _> = passed.try_collect().await;
        assert_eq!(passed.is_ok(), word.is_empty(), "{parts:?}");
        assert!(fault.get().map_or(word.is_empty(), |fault| fault.contains(word)), "{parts:?}: {fault:?}");
        assert!(counter.load(Ordering::Relaxed) <= size);
    }
}
