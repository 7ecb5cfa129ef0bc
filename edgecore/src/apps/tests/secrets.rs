//! Secrets of a release of which a second instance is started.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use proto::{
    object::{Progress, ReleaseRef},
    secret::{SealedTo, seal},
    watch,
};
use tokio::sync::Semaphore;

use super::{APP, fakes::FakeDriver};
use crate::{
    apps::{guard::Guard, uses::Uses},
    config::{self, Paths},
    driver::{Driver as _, InstanceSpec, Side},
    fetch::{
        Fetcher, Job, Space,
        tests::{MemorySource, env, publish},
        tree,
    },
    secrets::Secrets,
};

/// A release with a secret, on the disk of a box; an instance of it on side A.
async fn installed(at: &Path, secrets: &Secrets, workload: &str) -> InstanceSpec {
    let to = SealedTo { node: Some("box-1".into()), key: secrets.public().unwrap() };
    let sealed = seal(b"battery staple", &APP.parse().unwrap(), "db", &[to]).unwrap();
    let source = MemorySource::new();
    let (digest, _) = publish(&source, &format!("{APP}@1"), &[("bin/run", b"1"), ("db.age", &sealed)], workload);
    let releases = at.join("apps").join(APP).join("releases");
    let job = Job {
        release: format!("{APP}@1").parse().unwrap(),
        digest,
        manifest_bytes: None,
        releases: releases.clone(),
        reuse: vec![],
        hardware: vec!["x86_64".into()],
    };
    let fetcher = Fetcher::new(env(), source, Space::new(|_| Ok(1 << 40)));
    let progress = watch::channel(Progress { done_bytes: 0, total_bytes: 0 }).0;
    fetcher.stage(&Arc::new(job), &progress).await.unwrap();
    let folder = tree::release_folder(&releases, digest);
    let manifest = tree::manifest(&folder, digest, &format!("{APP}@1").parse().unwrap()).unwrap();
    InstanceSpec {
        app: APP.parse().unwrap(),
        side: Side::A,
        replica: 0,
        release: ReleaseRef { version: "1".parse().unwrap(), digest },
        tree: tree::tree_folder(&folder),
        data: at.join("apps").join(APP).join("data"),
        run: None,
        workload: manifest.workload.unwrap(),
        gpus: vec![],
        uses: BTreeMap::new(),
    }
}

/// What runs has the folder itself, as a mount of a container: another one in its place is none of its.
#[tokio::test]
async fn a_second_instance_of_a_release_leaves_the_first_its_secrets() {
    let (folder, memory) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    let paths = Paths::new(folder.path());
    config::create_folders(&paths).unwrap();
    let secrets = Secrets::open(&paths, &"box-1".parse().unwrap(), &env()).unwrap().in_room(&memory.path().join("s"));
    let secrets = Arc::new(secrets);
    let spec =
        installed(folder.path(), &secrets, r#"{"command": "bin/run", "secrets": [{"name": "db", "file": "db.age"}]}"#);
    let mut live = spec.await;
    live.run = Some(folder.path().join("run/a"));
    let standby = InstanceSpec { side: Side::B, run: Some(folder.path().join("run/b")), ..live.clone() };
    let checks = Arc::new(Semaphore::new(1));
    let driver = Arc::<FakeDriver>::default();
    let guard = Guard::new(driver, env(), checks, secrets.clone(), Arc::<Uses>::default(), Arc::default());
    let placed = secrets.folder(&live.app, live.release.digest).unwrap();
    let inode = || fs::metadata(&placed).unwrap().ino();

    guard.start(&live).await.unwrap();
    let before = inode();
    guard.start(&standby).await.unwrap();
    assert_eq!((inode(), fs::read(placed.join("db")).unwrap().as_slice()), (before, b"battery staple".as_slice()));
    // One alone gets them anew.
    let alone = InstanceSpec { run: None, ..live };
    guard.start(&alone).await.unwrap();
    assert_ne!(inode(), before);
    secrets.remove(&alone.app).unwrap();
}
