//! Artifacts by digest. Each is compressed once, in chunks of [`CHUNK_BYTES`] that decompress alone, so
//! that any range of it can be sent to any number of nodes without compressing again.
//!
//! ```text
//! blobs/ab/<64 hex digits>:   chunks | index: one Entry a chunk | trailer
//!                             zstd, or as they are where zstd does not help
//! ```
//!
//! The index holds a checksum of every stored chunk, the trailer one of the index: damage at rest is
//! noticed before a byte is sent, the file is set aside as `<name>.damaged`, and the blob counts as
//! missing, so that publishing again mends it.
//!
//! Written by the API (`put`), read by `crate::link::serve` and by `crate::trust`.

mod cache;
mod format;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use proto::{
    digest::{Digest, Hasher},
    durable::{self, DurableError},
    env::Env,
    link::CHUNK_BYTES,
};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use self::{
    cache::Cache,
    format::{Index, Writer},
};

/// Largest blob accepted.
pub const MAX_BLOB_BYTES: u64 = 16 << 30;

/// What could not be done with a blob.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The content is not what its name says.
    #[error("the content sent has digest {found}, not {expected}; it was changed on the way or on disk: send it again")]
    WrongDigest {
        /// The name.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// It is over the bound.
    #[error("blob {digest} is larger than {limit_bytes} bytes; split it into several files")]
    TooLarge {
        /// Which.
        digest: Digest,
        /// The bound.
        limit_bytes: u64,
    },
    /// There is none.
    #[error("the hub does not hold blob {0}; publish the release again")]
    NotFound(Digest),
    /// The stored file is damaged; it was set aside.
    #[error("blob {digest} is damaged on the hub's disk ({problem}); publish the release again and look at the disk")]
    Damaged {
        /// Which.
        digest: Digest,
        /// Where.
        problem: String,
    },
    /// The disk is full.
    #[error("the hub's disk is full; free space under {} and send it again", .0.display())]
    DiskFull(PathBuf),
    /// The sender failed.
    #[error("the content could not be received")]
    Receive(#[source] io::Error),
    /// A file could not be read or written.
    #[error("could not {attempt} {}", path.display())]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file could not be put in place.
    #[error(transparent)]
    Durable(#[from] DurableError),
}

/// The store of blobs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Blobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    env: Env,
    limit_bytes: u64,
    /// Names temporary files apart.
    counter: AtomicU64,
    cache: Mutex<Cache>,
}

/// A chunk as it is stored and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredChunk {
    /// The content, compressed or not.
    pub content: Bytes,
    /// Whether it is zstd.
    pub zstd: bool,
}

/// A blob opened for reading.
#[derive(Debug, Clone)]
pub struct BlobReader {
    blobs: Blobs,
    digest: Digest,
    file: Arc<File>,
    index: Arc<Index>,
}

impl Blobs {
    /// Opens (and makes) the store in `folder`, and clears away what an interrupted `put` left.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path, env: &Env) -> Result<Blobs, BlobError> {
        Blobs::open_with_limit(folder, env, MAX_BLOB_BYTES)
    }

    /// As [`Blobs::open`], with a bound of the caller's for the size of one blob.
    ///
    /// # Errors
    /// As [`Blobs::open`].
    pub fn open_with_limit(folder: &Path, env: &Env, limit_bytes: u64) -> Result<Blobs, BlobError> {
        let temp = folder.join("tmp");
        durable::create_dir_all(&temp)?;
        let listed = fs::read_dir(&temp).map_err(during("list", &temp))?;
        for entry in listed {
            let path = entry.map_err(during("list", &temp))?.path();
            fs::remove_file(&path).map_err(during("clear away", &path))?;
        }
        Ok(Blobs(Arc::new(Inner {
            folder: folder.to_owned(),
            env: env.clone(),
            limit_bytes,
            counter: AtomicU64::new(0),
            cache: Mutex::default(),
        })))
    }

    /// Takes the content of `digest` from `reader`. It is there as a whole and on disk, or not at all.
    /// Returns its size in bytes.
    ///
    /// # Errors
    /// When the content is not that of `digest`, is over the bound, or cannot be received or stored.
    pub async fn put(&self, digest: Digest, mut reader: impl AsyncRead + Unpin) -> Result<u64, BlobError> {
        let number = self.0.counter.fetch_add(1, Ordering::Relaxed);
        let temp = self.0.folder.join("tmp").join(format!("{}.{number}", digest.hex()));
        let mut sink =
            Sink { writer: Writer::create(&temp).map_err(during("create", &temp))?, done: false, path: temp };
        let mut hasher = Hasher::default();
        let mut total = 0_u64;
        loop {
            let mut chunk = Vec::with_capacity(64 << 10);
            (&mut reader).take(CHUNK_BYTES as u64).read_to_end(&mut chunk).await.map_err(BlobError::Receive)?;
            total += chunk.len() as u64;
            if total > self.0.limit_bytes {
                return Err(BlobError::TooLarge { digest, limit_bytes: self.0.limit_bytes });
            }
            let last = chunk.len() < CHUNK_BYTES;
            let folder = self.0.folder.clone();
            (sink, hasher) = self.0.env.blocking.run(move || sink.chunk(chunk, hasher, &folder)).await?;
            if last {
                break;
            }
        }
        let (found, size) = hasher.finish();
        if found != digest {
            return Err(BlobError::WrongDigest { expected: digest, found });
        }
        let (path, folder) = (self.path(digest), self.0.folder.clone());
        self.0.env.blocking.run(move || sink.finish(size, &path, &folder)).await?;
        Ok(size)
    }

    /// Whether it is there and its index is whole.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub async fn has(&self, digest: Digest) -> Result<bool, BlobError> {
        Ok(self.size(digest).await?.is_some())
    }

    /// Its size in bytes, uncompressed.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub async fn size(&self, digest: Digest) -> Result<Option<u64>, BlobError> {
        match self.reader(digest).await {
            Ok(reader) => Ok(Some(reader.size())),
            Err(BlobError::NotFound(_) | BlobError::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens it for reading.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], [`BlobError::Damaged`], or when the disk cannot be read.
    pub async fn reader(&self, digest: Digest) -> Result<BlobReader, BlobError> {
        let (blobs, path) = (self.clone(), self.path(digest));
        self.0.env.blocking.run(move || blobs.open_now(digest, &path)).await
    }

    fn open_now(self, digest: Digest, path: &Path) -> Result<BlobReader, BlobError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(BlobError::NotFound(digest)),
            Err(e) => return Err(during("open", path)(e)),
        };
        match Index::read(&file).map_err(during("read", path))? {
            Ok(index) => Ok(BlobReader { blobs: self, digest, file: Arc::new(file), index: Arc::new(index) }),
            Err(problem) => Err(self.set_aside(digest, &file, problem)),
        }
    }

    /// All of a small blob, at most `limit_bytes`.
    ///
    /// # Errors
    /// As [`Blobs::reader`], and when it is larger.
    pub async fn read(&self, digest: Digest, limit_bytes: u64) -> Result<Vec<u8>, BlobError> {
        let reader = self.reader(digest).await?;
        if reader.size() > limit_bytes {
            return Err(BlobError::TooLarge { digest, limit_bytes });
        }
        let mut content = vec![];
        for number in 0..reader.chunks() {
            content.extend_from_slice(&reader.plain(number).await?);
        }
        let found = Digest::of(&content);
        if found == digest {
            Ok(content)
        } else {
            Err(self.set_aside(digest, &reader.file, format!("its digest is {found}")))
        }
    }

    fn path(&self, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        self.0.folder.join(hex.get(..2).unwrap_or_default()).join(&hex)
    }

    /// Moves a damaged file out of the way, keeps it for whoever looks at the disk, and says so. Unless
    /// `file`, in which the damage was seen, has been replaced by a sound one meanwhile.
    fn set_aside(&self, digest: Digest, file: &File, problem: String) -> BlobError {
        let path = self.path(digest);
        let id = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let is_there = match (file.metadata().map(id), fs::metadata(&path).map(id)) {
            (Ok(read), Ok(there)) => read == there,
            _ => false,
        };
        if !is_there {
            self.0.cache().forget(digest);
            return BlobError::Damaged { digest, problem };
        }
        if let Err(error) = fs::rename(&path, path.with_extension("damaged")) {
            tracing::warn!(%digest, %error, "a damaged blob could not be set aside");
        }
        self.0.cache().forget(digest);
        tracing::error!(%digest, problem, "a blob is damaged on disk and was set aside");
        BlobError::Damaged { digest, problem }
    }
}

impl BlobReader {
    /// Bytes of the whole blob, uncompressed.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.index.size
    }

    /// Number of chunks.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.index.entries.len() as u64
    }

    /// Chunk `number` as it is stored, checked.
    ///
    /// # Errors
    /// [`BlobError::NotFound`] past the end, [`BlobError::Damaged`], or when the disk cannot be read.
    pub async fn chunk(&self, number: u64) -> Result<StoredChunk, BlobError> {
        let key = (self.digest, number);
        if let Some(chunk) = self.blobs.0.cache().get(&key) {
            return Ok(chunk);
        }
        let reader = self.clone();
        let chunk = self.blobs.0.env.blocking.run(move || reader.chunk_now(number)).await?;
        self.blobs.0.cache().keep(key, chunk.clone());
        Ok(chunk)
    }

    fn chunk_now(&self, number: u64) -> Result<StoredChunk, BlobError> {
        let position = usize::try_from(number).ok().and_then(|n| self.index.entries.get(n));
        let entry = position.ok_or(BlobError::NotFound(self.digest))?;
        let mut content = vec![0; entry.stored_bytes()];
        match self.file.read_exact_at(&mut content, entry.offset) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.blobs.set_aside(self.digest, &self.file, format!("it ends in chunk {number}")));
            }
            Err(e) => return Err(during("read", &self.blobs.path(self.digest))(e)),
        }
        if !entry.fits(&content) {
            return Err(self.blobs.set_aside(
                self.digest,
                &self.file,
                format!("the checksum of chunk {number} is wrong"),
            ));
        }
        Ok(StoredChunk { content: content.into(), zstd: entry.is_zstd() })
    }

    /// Chunk `number`, decompressed.
    ///
    /// # Errors
    /// As [`BlobReader::chunk`].
    pub async fn plain(&self, number: u64) -> Result<Bytes, BlobError> {
        let chunk = self.chunk(number).await?;
        if !chunk.zstd {
            return Ok(chunk.content);
        }
        let decompressed = move || zstd::bulk::decompress(&chunk.content, CHUNK_BYTES);
        let content = self.blobs.0.env.blocking.run(decompressed).await;
        content.map(Bytes::from).map_err(|e| {
            self.blobs.set_aside(self.digest, &self.file, format!("chunk {number} does not decompress: {e}"))
        })
    }
}

/// A blob on its way in; what is not finished is removed.
struct Sink {
    writer: Writer,
    path: PathBuf,
    done: bool,
}

impl Sink {
    fn chunk(mut self, chunk: Vec<u8>, mut hasher: Hasher, folder: &Path) -> Result<(Sink, Hasher), BlobError> {
        hasher.update(&chunk);
        if !chunk.is_empty() {
            self.writer.chunk(&chunk).map_err(|e| written(e, &self.path, folder))?;
        }
        Ok((self, hasher))
    }

    fn finish(mut self, size: u64, path: &Path, folder: &Path) -> Result<(), BlobError> {
        self.writer.finish(size).map_err(|e| written(e, &self.path, folder))?;
        if let Some(parent) = path.parent() {
            durable::create_dir_all(parent)?;
        }
        fs::rename(&self.path, path).map_err(during("put in place", path))?;
        self.done = true;
        Ok(durable::sync_parent(path)?)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_file(&self.path); // best effort: the next start clears it away too
        }
    }
}

fn during(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BlobError {
    let path = path.to_owned();
    move |source| BlobError::Io { attempt, path, source }
}

fn written(error: io::Error, path: &Path, folder: &Path) -> BlobError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BlobError::DiskFull(folder.to_owned()),
        _ => during("write", path)(error),
    }
}

impl Inner {
    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
