//! Stored chunks kept in memory: nodes of one rollout ask for the same ones at nearly the same time, and
//! a chunk from here needs neither disk nor checksum. Used by `crate::blobs` alone.

use std::collections::{BTreeMap, VecDeque};

use proto::digest::Digest;

use super::StoredChunk;

/// Bytes kept.
const CACHE_BYTES: usize = 8 << 20;

/// The last chunks read, first in, first out.
#[derive(Debug, Default)]
pub(super) struct Cache {
    chunks: BTreeMap<(Digest, u64), StoredChunk>,
    order: VecDeque<(Digest, u64)>,
    bytes: usize,
}

impl Cache {
    /// A chunk that was read lately.
    pub(super) fn get(&self, key: &(Digest, u64)) -> Option<StoredChunk> {
        self.chunks.get(key).cloned()
    }

    /// Keeps a chunk, and forgets the oldest ones beyond the bound.
    pub(super) fn keep(&mut self, key: (Digest, u64), chunk: StoredChunk) {
        self.bytes += chunk.content.len();
        match self.chunks.insert(key, chunk) {
            Some(old) => self.bytes -= old.content.len(),
            None => self.order.push_back(key),
        }
        while self.bytes > CACHE_BYTES {
            let Some(oldest) = self.order.pop_front() else { break };
            self.bytes -= self.chunks.remove(&oldest).map_or(0, |c| c.content.len());
        }
    }

    /// Forgets all of a blob.
    pub(super) fn forget(&mut self, digest: Digest) {
        self.order.retain(|key| key.0 != digest);
        self.chunks.retain(|key, _| key.0 != digest);
        self.bytes = self.chunks.values().map(|c| c.content.len()).sum();
    }
}
