//! One blob by digest: resumed at a chunk boundary, every chunk bounded, size and digest checked.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use proto::{
    digest::{Digest, Hasher},
    env::Env,
    link::{
        CHUNK_BYTES,
        frame::{self, MAX_REQUEST_BYTES},
        message::{BlobHeader, BlobRequest, CHUNK_ZSTD},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    time::timeout,
};

use super::{FetchError, Reader, Source, SourceError};

/// A stream that yields nothing for so long is given up; the connection has time-outs of its own.
const STALL: Duration = Duration::from_secs(120);
const CHUNK: u64 = CHUNK_BYTES as u64;

/// How long a blob must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// As signed.
    Exactly(u64),
    /// Nobody signed its length apart from its digest.
    AtMost(u64),
}

impl Expect {
    fn limit(self) -> u64 {
        match self {
            Expect::Exactly(bytes) | Expect::AtMost(bytes) => bytes,
        }
    }

    fn allows(self, size: u64) -> bool {
        match self {
            Expect::Exactly(bytes) => size == bytes,
            Expect::AtMost(bytes) => size <= bytes,
        }
    }
}

/// What is on disk of a blob, and the digest so far.
struct Part {
    file: File,
    hasher: Hasher,
    position: u64,
}

/// Fetches a blob into the file `part`, going on after what it holds; `arrived` counts the bytes.
///
/// # Errors
/// What hinders it. What arrived stays for the next attempt unless its digest is wrong.
pub(super) async fn download(
    env: &Env,
    source: &dyn Source,
    digest: Digest,
    expect: Expect,
    part: PathBuf,
    arrived: &(dyn Fn(u64) + Sync),
) -> Result<(), FetchError> {
    let path = part.clone();
    let io = |source| FetchError::Io { path: path.clone(), source };
    let opened = part.clone();
    let mut part = env.blocking.run(move || open(&opened, expect)).await.map_err(io)?;
    arrived(part.position);
    if expect != Expect::Exactly(part.position) {
        let mut reader = source.blob(BlobRequest { digest, offset: part.position }).await?;
        let size = header(&mut reader, digest, expect).await?;
        while part.position < size {
            let plain = CHUNK.min(size.saturating_sub(part.position)) as usize;
            let chunk = chunk(&mut reader, digest).await?;
            part = env.blocking.run(move || part.append(digest, chunk, plain)).await?;
            arrived(plain as u64);
        }
        ended(&mut reader, digest).await?;
    }
    let (found, _) = part.hasher.finish();
    if found == digest {
        return Ok(());
    }
    let wrong = path.clone();
    env.blocking.run(move || fs::remove_file(wrong)).await.map_err(io)?;
    Err(FetchError::Wrong { digest, problem: format!("its content has the digest {found}") })
}

/// Opens what is there, cut to whole chunks, and takes its digest.
fn open(path: &Path, expect: Expect) -> io::Result<Part> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let found = file.metadata()?.len();
    let position = match expect {
        Expect::Exactly(size) if found == size => found,
        _ if found > expect.limit() => 0,
        _ => found - found % CHUNK,
    };
    file.set_len(position)?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < position {
        let read = file.read_at(&mut buffer, at)?;
        hasher.update(buffer.get(..read).unwrap_or_default());
        at += read as u64;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Part { file, hasher, position })
}

impl Part {
    /// Appends a chunk that must stand for exactly `plain` bytes.
    fn append(mut self, digest: Digest, chunk: Chunk, plain: usize) -> Result<Part, FetchError> {
        let wrong = |problem: String| FetchError::Wrong { digest, problem };
        let bytes = match chunk {
            Chunk::Plain(bytes) => bytes,
            Chunk::Zstd(bytes) => zstd::bulk::decompress(&bytes, plain)
                .map_err(|e| wrong(format!("a chunk does not decompress to {plain} bytes ({e})")))?,
        };
        if bytes.len() != plain {
            return Err(wrong(format!("a chunk has {} bytes instead of {plain}", bytes.len())));
        }
        self.file
            .write_all_at(&bytes, self.position)
            .map_err(|source| FetchError::Io { path: PathBuf::from(digest.to_string()), source })?;
        self.hasher.update(&bytes);
        self.position += plain as u64;
        Ok(self)
    }
}

enum Chunk {
    Plain(Vec<u8>),
    Zstd(Vec<u8>),
}

fn broken(error: impl std::fmt::Display) -> FetchError {
    SourceError::Failed(error.to_string()).into()
}

async fn header(reader: &mut Reader, digest: Digest, expect: Expect) -> Result<u64, FetchError> {
    let header = timeout(STALL, frame::read::<BlobHeader>(reader, MAX_REQUEST_BYTES)).await;
    match header.map_err(broken)?.map_err(broken)? {
        BlobHeader::Found { size } if expect.allows(size) => Ok(size),
        BlobHeader::Found { size } => {
            let problem = format!("the hub offers {size} bytes, {} are signed for", expect.limit());
            Err(FetchError::Wrong { digest, problem })
        }
        BlobHeader::NotFound { message } => {
            Err(FetchError::NotFound { digest, message: message.chars().take(200).collect() })
        }
    }
}

async fn chunk(reader: &mut Reader, digest: Digest) -> Result<Chunk, FetchError> {
    let mut header = [0; 4];
    fill(reader, &mut header).await?;
    let header = u32::from_be_bytes(header);
    let length = (header & !CHUNK_ZSTD) as usize;
    if length == 0 || length > CHUNK_BYTES {
        let problem = format!("a chunk of {length} bytes is outside the bounds of 1 to {CHUNK_BYTES}");
        return Err(FetchError::Wrong { digest, problem });
    }
    let mut body = vec![0; length];
    fill(reader, &mut body).await?;
    Ok(if header & CHUNK_ZSTD == 0 { Chunk::Plain(body) } else { Chunk::Zstd(body) })
}

/// Reads a buffer full; the time-out is for silence, not for a slow line.
async fn fill(reader: &mut (impl AsyncRead + Unpin), buffer: &mut [u8]) -> Result<(), FetchError> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match timeout(STALL, reader.read(rest)).await.map_err(broken)?.map_err(broken)? {
            0 => return Err(broken("it ended too early")),
            read => filled += read,
        }
    }
    Ok(())
}

/// Nothing may follow the last chunk.
async fn ended(reader: &mut Reader, digest: Digest) -> Result<(), FetchError> {
    match timeout(STALL, reader.read(&mut [0; 1])).await.map_err(broken)?.map_err(broken)? {
        0 => Ok(()),
        _ => Err(FetchError::Wrong { digest, problem: "the hub sends more than its size".into() }),
    }
}
