//! The file of one blob: chunks, index, trailer. Read and written by `crate::blobs` alone.
//!
//! ```text
//! entry:   length u32 (upper bit: zstd) | first 16 bytes of the SHA-256 of the stored chunk
//! trailer: size u64 | chunks u64 | SHA-256 of index, size and chunks | "cdblob-1"
//! ```
//!
//! All numbers are big endian.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use proto::{
    digest::Digest,
    link::{CHUNK_BYTES, message::CHUNK_ZSTD},
};

const MAGIC: &[u8; 8] = b"cdblob-1";
const ENTRY_BYTES: u64 = 20;
const TRAILER_BYTES: u64 = 8 + 8 + 32 + 8;
/// Compressed once, sent many times: more effort than zstd's default of 3.
const LEVEL: i32 = 6;

/// Where a chunk lies, and its checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// In the file.
    pub offset: u64,
    length: u32,
    checksum: [u8; 16],
}

impl Entry {
    fn of(offset: u64, content: &[u8], zstd: bool) -> Entry {
        let flag = if zstd { CHUNK_ZSTD } else { 0 };
        // A stored chunk never has more than CHUNK_BYTES.
        Entry { offset, length: u32::try_from(content.len()).unwrap_or(0) | flag, checksum: checksum(content) }
    }

    /// Bytes in the file.
    pub fn stored_bytes(&self) -> usize {
        (self.length & !CHUNK_ZSTD) as usize
    }

    /// Whether it is compressed.
    pub fn is_zstd(&self) -> bool {
        self.length & CHUNK_ZSTD != 0
    }

    /// Whether `content` is what was stored.
    pub fn fits(&self, content: &[u8]) -> bool {
        checksum(content) == self.checksum
    }
}

fn checksum(content: &[u8]) -> [u8; 16] {
    let digest = Digest::of(content);
    digest.as_bytes().first_chunk().copied().unwrap_or_default()
}

/// What the end of a blob's file says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Index {
    /// Bytes of the blob, uncompressed.
    pub size: u64,
    /// Its chunks.
    pub entries: Vec<Entry>,
}

impl Index {
    /// Reads it; the inner error says what is damaged.
    pub fn read(file: &File) -> io::Result<Result<Index, String>> {
        let length = file.metadata()?.len();
        let Some(end) = length.checked_sub(TRAILER_BYTES) else { return Ok(Err("it is too short".into())) };
        let mut trailer = [0; TRAILER_BYTES as usize];
        file.read_exact_at(&mut trailer, end)?;
        let Some((size, chunks, digest)) = parse_trailer(&trailer) else {
            return Ok(Err("its end is not that of a blob".into()));
        };
        let start = chunks.checked_mul(ENTRY_BYTES).and_then(|bytes| end.checked_sub(bytes));
        let Some(start) = start.filter(|_| chunks == size.div_ceil(CHUNK_BYTES as u64)) else {
            return Ok(Err("its end contradicts itself".into()));
        };
        let mut index = vec![0; usize::try_from(end - start).unwrap_or(0)];
        file.read_exact_at(&mut index, start)?;
        if seal(&index, size, chunks) != digest {
            return Ok(Err("the checksum of its index is wrong".into()));
        }
        let entries = parse_entries(&index);
        let fits = entries.last().is_none_or(|e| e.offset + e.stored_bytes() as u64 == start);
        Ok(if fits { Ok(Index { size, entries }) } else { Err("its chunks do not fill it".into()) })
    }
}

fn parse_trailer(trailer: &[u8]) -> Option<(u64, u64, Digest)> {
    let (size, rest) = trailer.split_first_chunk::<8>()?;
    let (chunks, rest) = rest.split_first_chunk::<8>()?;
    let (digest, magic) = rest.split_first_chunk::<32>()?;
    (magic == MAGIC).then(|| (u64::from_be_bytes(*size), u64::from_be_bytes(*chunks), Digest::from_bytes(*digest)))
}

fn parse_entries(mut index: &[u8]) -> Vec<Entry> {
    let (mut entries, mut offset) = (vec![], 0);
    while let Some((length, rest)) = index.split_first_chunk::<4>() {
        let Some((checksum, rest)) = rest.split_first_chunk::<16>() else { break };
        let entry = Entry { offset, length: u32::from_be_bytes(*length), checksum: *checksum };
        offset += entry.stored_bytes() as u64;
        entries.push(entry);
        index = rest;
    }
    entries
}

fn seal(index: &[u8], size: u64, chunks: u64) -> Digest {
    let mut sealed = index.to_vec();
    sealed.extend_from_slice(&size.to_be_bytes());
    sealed.extend_from_slice(&chunks.to_be_bytes());
    Digest::of(&sealed)
}

/// Writes a blob's file, chunk after chunk.
pub(super) struct Writer {
    file: File,
    entries: Vec<Entry>,
    offset: u64,
}

impl Writer {
    /// Creates the file at `path`.
    pub fn create(path: &Path) -> io::Result<Writer> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Writer { file, entries: vec![], offset: 0 })
    }

    /// Appends a chunk. Each but the last has [`CHUNK_BYTES`].
    pub fn chunk(&mut self, plain: &[u8]) -> io::Result<()> {
        let compressed = zstd::bulk::compress(plain, LEVEL)?;
        // A node decompresses only where it saves at least a sixteenth on the wire.
        let zstd = compressed.len() < plain.len() - plain.len() / 16;
        let content = if zstd { compressed.as_slice() } else { plain };
        self.file.write_all(content)?;
        self.entries.push(Entry::of(self.offset, content, zstd));
        self.offset += content.len() as u64;
        Ok(())
    }

    /// Appends index and trailer, and flushes all to disk.
    pub fn finish(&mut self, size: u64) -> io::Result<()> {
        let mut index = vec![];
        for entry in &self.entries {
            index.extend_from_slice(&entry.length.to_be_bytes());
            index.extend_from_slice(&entry.checksum);
        }
        let chunks = self.entries.len() as u64;
        let digest = seal(&index, size, chunks);
        index.extend_from_slice(&size.to_be_bytes());
        index.extend_from_slice(&chunks.to_be_bytes());
        index.extend_from_slice(digest.as_bytes());
        index.extend_from_slice(MAGIC);
        self.file.write_all(&index)?;
        self.file.sync_all()
    }
}
