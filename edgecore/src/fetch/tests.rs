//! Fetching from an in-memory source that can cut, lie and run dry.

use std::{
    collections::BTreeMap,
    io::Write as _,
    os::unix::fs::symlink,
    path::Path,
    pin::Pin,
    sync::Mutex,
    task::{Context, Poll},
};

use proto::{
    env::{Blocking, Seed, SystemClock, Udp},
    link::{
        CHUNK_BYTES, frame,
        message::{BlobHeader, CHUNK_ZSTD},
    },
    release::{FileEntry, Hooks, TreePath, Workload},
};
use tempfile::TempDir;
use tokio::io::ReadBuf;

use super::*;

/// How an answer goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Offline,
    /// It breaks off after so many bytes.
    Cut(usize),
    /// A byte of the content is another.
    Flip,
    /// More follows the last chunk.
    Longer,
    /// The header names one byte more.
    WrongSize,
    /// A compressed chunk unpacks to far more than a chunk.
    Bomb,
    /// A chunk announces more than a chunk may have.
    HugeChunk,
    /// It ends in the middle of a chunk.
    Shorter,
}

/// Blobs in memory, answered as the hub would.
#[derive(Debug)]
pub(crate) struct MemorySource {
    pub blobs: Mutex<BTreeMap<Digest, Vec<u8>>>,
    pub fault: Mutex<Fault>,
    pub asked: Mutex<Vec<BlobRequest>>,
}

impl MemorySource {
    pub fn new() -> Arc<MemorySource> {
        let (blobs, fault, asked) = (Mutex::default(), Mutex::new(Fault::None), Mutex::default());
        Arc::new(MemorySource { blobs, fault, asked })
    }

    pub fn add(&self, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        self.blobs.lock().unwrap().insert(digest, content.to_vec());
        digest
    }

    pub fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    fn answer(&self, request: BlobRequest) -> Result<Vec<u8>, SourceError> {
        let fault = *self.fault.lock().unwrap();
        if fault == Fault::Offline {
            return Err(SourceError::Offline);
        }
        self.asked.lock().unwrap().push(request);
        let blobs = self.blobs.lock().unwrap();
        let Some(content) = blobs.get(&request.digest) else {
            let message = "no such blob".into();
            return Ok(frame::encode(&BlobHeader::NotFound { message }, 1000).unwrap());
        };
        let mut content = content.clone();
        if fault == Fault::Flip {
            *content.last_mut().unwrap() ^= 1;
        }
        let size = content.len() as u64 + u64::from(fault == Fault::WrongSize);
        let mut wire = frame::encode(&BlobHeader::Found { size }, 1000).unwrap();
        for (i, chunk) in content[request.offset as usize..].chunks(CHUNK_BYTES).enumerate() {
            let packed = match fault {
                Fault::Bomb => zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap(),
                _ => zstd::bulk::compress(chunk, 1).unwrap(),
            };
            let zstd = packed.len() < chunk.len() && i % 2 == 0 || fault == Fault::Bomb;
            let body = if zstd { &packed[..] } else { chunk };
            let flag = if zstd { CHUNK_ZSTD } else { 0 };
            let length = if fault == Fault::HugeChunk { CHUNK_BYTES + 1 } else { body.len() };
            wire.write_all(&(length as u32 | flag).to_be_bytes()).unwrap();
            wire.write_all(body).unwrap();
        }
        match fault {
            Fault::Longer => wire.extend([0, 0, 0, 1, 0]),
            Fault::Shorter => wire.truncate(wire.len() - 1),
            _ => {}
        }
        Ok(wire)
    }
}

impl Source for MemorySource {
    fn metadata(&self, _: MetadataRequest) -> BoxFuture<'_, Result<MetadataReply, SourceError>> {
        Box::pin(async { Err(SourceError::Offline) })
    }
    fn blob(&self, request: BlobRequest) -> BoxFuture<'_, Result<Reader, SourceError>> {
        Box::pin(async move {
            let wire = self.answer(request)?;
            let left = if let Fault::Cut(at) = *self.fault.lock().unwrap() { at } else { usize::MAX };
            Ok(Box::new(Line { wire, at: 0, left, rest: false }) as Reader)
        })
    }
}

/// Yields a piece, then rests once, so that a test can drop the reader between any two pieces.
struct Line {
    wire: Vec<u8>,
    at: usize,
    left: usize,
    rest: bool,
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.rest = !self.rest;
        if self.rest {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let piece = (self.wire.len() - self.at).min(100_000).min(buffer.remaining());
        if piece > self.left {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        buffer.put_slice(&self.wire[self.at..self.at + piece]);
        self.at += piece;
        self.left -= piece;
        Poll::Ready(Ok(()))
    }
}

pub(crate) fn env() -> Env {
    Env { wall: Arc::new(SystemClock), seed: Seed::from_u64(1), blocking: Blocking::Inline, network: Arc::new(Udp) }
}

/// Puts a release into the source and yields the digest of its manifest.
pub(crate) fn publish(source: &MemorySource, name: &str, files: &[(&str, &[u8])], workload: &str) -> (Digest, u64) {
    let name: ReleaseName = name.parse().unwrap();
    let entry = |(path, content): &(&str, &[u8])| FileEntry {
        path: TreePath::try_from((*path).to_owned()).unwrap(),
        digest: source.add(content),
        size: content.len() as u64,
        executable: path.starts_with("bin/"),
    };
    let mut workload: serde_json::Value = serde_json::from_str(workload).unwrap();
    let hooks = workload.as_object_mut().unwrap().remove("hooks").unwrap_or_else(|| "{}".parse().unwrap());
    let hooks: Hooks = serde_json::from_value(hooks).unwrap();
    let files_only = workload.as_object().unwrap().is_empty();
    let workload: Option<Workload> = (!files_only).then(|| serde_json::from_value(workload).unwrap());
    let manifest = Manifest {
        api_version: proto::API_VERSION.into(),
        app: name.app,
        version: name.version,
        min_agent: None,
        hardware: ["x86_64".to_owned()].into(),
        files: files.iter().map(entry).collect(),
        workload,
        hooks,
        provenance: None,
        sbom: None,
    };
    let json = serde_json::to_vec(&manifest).unwrap();
    (source.add(&json), json.len() as u64)
}

struct World {
    folder: TempDir,
    source: Arc<MemorySource>,
    fetcher: Fetcher,
}

const RUN: &str = r#"{"command": "bin/run"}"#;

fn big() -> Vec<u8> {
    // The first chunk compresses, the second does not.
    let mut bytes: Vec<u8> = (0..CHUNK_BYTES).map(|i| (i / 97) as u8).collect();
    bytes.extend_from_slice(&Seed::from_u64(3).bytes::<{ CHUNK_BYTES + 77 }>("content"));
    bytes
}

impl World {
    fn new(space: Space) -> World {
        let source = MemorySource::new();
        let fetcher = Fetcher::new(env(), source.clone(), space);
        World { folder: tempfile::tempdir().unwrap(), source, fetcher }
    }

    fn roomy() -> World {
        World::new(Space::new(|_| Ok(1 << 40)))
    }

    fn first(&self) -> Arc<Job> {
        let files: &[(&str, &[u8])] = &[
            ("bin/run", b"#!/bin/sh"),
            ("share/big", &big()),
            ("share/deep/er/same", b"#!/bin/sh"),
            ("share/empty", b""),
        ];
        self.job("web@1", files, vec![])
    }

    fn job(&self, name: &str, files: &[(&str, &[u8])], reuse: Vec<Digest>) -> Arc<Job> {
        let (digest, bytes) = publish(&self.source, name, files, RUN);
        Arc::new(Job {
            release: name.parse().unwrap(),
            digest,
            manifest_bytes: Some(bytes),
            releases: self.folder.path().join("releases"),
            reuse,
            hardware: vec!["x86_64".into()],
        })
    }

    async fn stage(&self, job: &Arc<Job>) -> Result<(), FetchError> {
        self.fetcher.stage(job, &watch::channel(Progress { done_bytes: 0, total_bytes: 0 }).0).await
    }

    fn asked(&self) -> Vec<BlobRequest> {
        std::mem::take(&mut *self.source.asked.lock().unwrap())
    }
}

fn whole(job: &Job) -> bool {
    let folder = tree::release_folder(&job.releases, job.digest);
    tree::verify(&folder, job.digest, &job.release).is_ok()
}

fn absent(job: &Job) -> bool {
    !tree::release_folder(&job.releases, job.digest).exists()
}

#[tokio::test]
async fn a_release_becomes_whole_by_one_rename() {
    let world = World::roomy();
    let job = world.first();
    let (progress, seen) = watch::channel(Progress { done_bytes: 0, total_bytes: 0 });
    world.fetcher.stage(&job, &progress).await.unwrap();
    assert!(whole(&job));
    assert!(!tree::staging_folder(&job.releases, job.digest).exists());
    let manifest = fs::metadata(tree::release_folder(&job.releases, job.digest).join("manifest.json")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&manifest) & 0o777, 0o600, "it may hold secrets");
    let total_bytes = big().len() as u64 + 18;
    assert_eq!(*seen.borrow(), Progress { done_bytes: big().len() as u64 + 9, total_bytes });
    world.asked();
    world.stage(&job).await.unwrap();
    assert_eq!(world.asked(), [], "a whole release needs no hub");
}

#[tokio::test]
async fn a_cut_line_is_resumed_at_a_chunk() {
    let world = World::roomy();
    let job = world.first();
    let mut offsets = vec![];
    for cut in [0, 10, 700, 2_000, 200_000, 250_000] {
        world.source.set(Fault::Cut(cut));
        assert!(matches!(world.stage(&job).await, Err(FetchError::Source(_))), "{cut}");
        assert!(absent(&job));
    }
    world.source.set(Fault::None);
    world.stage(&job).await.unwrap();
    assert!(whole(&job));
    let big = Digest::of(&big());
    offsets.extend(world.asked().into_iter().filter(|r| r.digest == big).map(|r| r.offset));
    assert!(offsets.iter().all(|o| o % CHUNK_BYTES as u64 == 0), "{offsets:?}");
    assert!(offsets.is_sorted() && *offsets.last().unwrap() > 0, "what arrived is not fetched again: {offsets:?}");
}

#[tokio::test]
async fn dropped_anywhere_it_goes_on_where_it_was() {
    let mut drops = 0;
    loop {
        let world = World::roomy();
        let job = world.first();
        let mut staging = Box::pin(world.stage(&job));
        let mut done = false;
        for _ in 0..drops {
            done = std::future::poll_fn(|cx| Poll::Ready(staging.as_mut().poll(cx).is_ready())).await;
            if done {
                break;
            }
        }
        drop(staging);
        if done {
            assert!(whole(&job));
            break;
        }
        assert!(absent(&job), "nothing half-made is in place after {drops} polls");
        world.stage(&job).await.unwrap();
        assert!(whole(&job));
        drops += 1;
    }
    assert!(drops > 10, "{drops}");
}

#[tokio::test]
async fn content_that_was_not_signed_for_is_refused_and_mends() {
    for fault in [Fault::Flip, Fault::Longer, Fault::WrongSize, Fault::Bomb, Fault::HugeChunk, Fault::Shorter] {
        let world = World::roomy();
        let job = world.first();
        world.source.set(fault);
        let error = world.stage(&job).await.unwrap_err();
        match fault {
            Fault::Shorter => assert!(matches!(error, FetchError::Source(_)), "{fault:?}: {error}"),
            _ => assert!(matches!(error, FetchError::Wrong { .. }), "{fault:?}: {error}"),
        }
        assert!(absent(&job), "{fault:?}");
        world.source.set(Fault::None);
        world.stage(&job).await.unwrap();
        assert!(whole(&job), "{fault:?}");
    }
}

#[tokio::test]
async fn what_the_hub_lacks_is_named() {
    let world = World::roomy();
    let job = world.first();
    let gone = Digest::of(&big());
    world.source.blobs.lock().unwrap().remove(&gone);
    let error = world.stage(&job).await.unwrap_err().to_string();
    assert!(error.contains(&gone.to_string()) && error.contains("publish"), "{error}");
}

#[tokio::test]
async fn a_disk_that_is_too_small_is_noticed_before_the_download() {
    let world = World::new(Space::new(|_| Ok(space::MARGIN_BYTES + 1000)));
    let job = world.first();
    let error = world.stage(&job).await.unwrap_err();
    assert!(error.is_disk_full(), "{error}");
    assert!(error.to_string().contains("512.1 KiB of disk are needed and 1000 bytes are free"), "{error}");
    assert_eq!(world.asked().len(), 1, "only the manifest was fetched");
    assert!(absent(&job) && !tree::staging_folder(&job.releases, job.digest).exists());
}

#[tokio::test]
async fn promises_of_disk_add_up_and_end() {
    let space = Space::new(|_| Ok(space::MARGIN_BYTES + 100));
    let first = space.reserve(Path::new("/"), 60).unwrap();
    assert!(space.reserve(Path::new("/"), 60).is_err());
    drop(first);
    drop(space.reserve(Path::new("/"), 60).unwrap());
    assert!(space.reserve(Path::new("/"), 101).is_err());
    assert!(space.reserve(Path::new("/"), 100).is_ok());
}

#[tokio::test]
async fn files_that_are_on_the_box_are_not_fetched() {
    let world = World::roomy();
    let first = world.first();
    world.stage(&first).await.unwrap();
    world.asked();
    let files: &[(&str, &[u8])] = &[("bin/run", b"#!/bin/sh -e"), ("moved/big", &big())];
    let second = world.job("web@2", files, vec![first.digest]);
    world.stage(&second).await.unwrap();
    assert!(whole(&second));
    let asked: Vec<Digest> = world.asked().into_iter().map(|r| r.digest).collect();
    assert_eq!(asked, [second.digest, Digest::of(b"#!/bin/sh -e")]);

    // A copy is checked: from a damaged tree it is fetched instead.
    let big_file = tree::release_folder(&first.releases, first.digest).join("tree/share/big");
    fs::write(&big_file, b"x").unwrap();
    fs::remove_dir_all(tree::release_folder(&second.releases, second.digest)).unwrap();
    world.stage(&second).await.unwrap();
    assert!(whole(&second));
    assert!(world.asked().iter().any(|r| r.digest == Digest::of(&big())));
}

#[tokio::test]
async fn a_damaged_release_is_noticed_and_fetched_again() {
    let damages: [fn(&Path); 7] = [
        |tree| fs::write(tree.join("share/big"), b"x").unwrap(),
        |tree| fs::remove_file(tree.join("bin/run")).unwrap(),
        |tree| fs::write(tree.join("bin/run"), b"#!/bin/SH").unwrap(),
        |tree| fs::write(tree.join("../manifest.json"), b"{}").unwrap(),
        |tree| {
            fs::rename(tree.join("share"), tree.join("elsewhere")).unwrap();
            symlink("elsewhere", tree.join("share")).unwrap();
        },
        |tree| {
            fs::rename(tree.join("bin/run"), tree.join("bin/run2")).unwrap();
            symlink("run2", tree.join("bin/run")).unwrap();
        },
        |tree| {
            let plain = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            fs::set_permissions(tree.join("bin/run"), plain).unwrap();
        },
    ];
    for (i, damage) in damages.into_iter().enumerate() {
        let world = World::roomy();
        let job = world.first();
        world.stage(&job).await.unwrap();
        damage(&tree::release_folder(&job.releases, job.digest).join("tree"));
        assert!(!whole(&job), "damage {i}");
        world.stage(&job).await.unwrap();
        assert!(whole(&job), "damage {i}");
    }
}

#[tokio::test]
async fn a_release_for_other_hardware_is_refused() {
    let world = World::roomy();
    let mut job = (*world.first()).clone();
    job.hardware = vec!["aarch64".into()];
    let error = world.stage(&Arc::new(job)).await.unwrap_err();
    assert!(matches!(&error, FetchError::WrongHardware { wants, has } if wants == "x86_64" && has == "aarch64"));
}

#[test]
fn only_what_is_kept_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (kept, other) = (Digest::of(b"kept"), Digest::of(b"other"));
    for path in [
        tree::release_folder(folder.path(), kept),
        tree::release_folder(folder.path(), other),
        tree::staging_folder(folder.path(), kept),
        tree::staging_folder(folder.path(), other),
    ] {
        fs::create_dir_all(path.join("tree")).unwrap();
    }
    tree::collect(folder.path(), &[kept].into()).unwrap();
    assert!(tree::release_folder(folder.path(), kept).exists());
    assert!(tree::staging_folder(folder.path(), kept).exists());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    tree::collect(&folder.path().join("absent"), &[].into()).unwrap();
}
