//! The release engineer's side, from a folder to a verified publication, and every bad input on the way.
//!
//! Here is the desk that all of them work at; `input` is about folders, `release.yaml` and keys, `publishing` about
//! the repository, `upload` about the way to the hub, `rotation` about keys that change, `ceremony` about several
//! signers with a copy each, `origin` about provenance and bills of materials.

mod ceremony;
mod input;
mod origin;
mod publishing;
mod rotation;
mod upload;

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
