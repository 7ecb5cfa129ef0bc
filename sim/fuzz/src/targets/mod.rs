//! The fuzz targets: what outside bytes reach, and what must hold whatever they are.
//!
//! None of them panics, and none takes more memory than the table says. Beyond that: what was read and printed reads
//! as the same, what is canonical stays as it is, and nothing is believed that its keys did not sign. Used by libFuzzer
//! (`sim/fuzz`) and, for some seconds from a fixed seed, by an ordinary test (`sim/tests/fuzz_corpus.rs`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod doors;
mod hub;
mod sealed;
mod trust;
mod wire;
mod words;

use std::future::Future;

use serde::{Serialize, de::DeserializeOwned};

const MIB: usize = 1 << 20;

/// Name, what it does with an input, and the most memory that it may hold for it, in bytes.
pub type Target = (&'static str, fn(&[u8]), usize);

/// All of them.
pub const TARGETS: &[Target] = &[
    ("tuf_metadata", trust::metadata, 16 * MIB),
    ("tuf_update", trust::update, 16 * MIB),
    ("director", trust::director, 16 * MIB),
    ("link_frames", wire::frames, 16 * MIB),
    ("stream_batch", wire::batch, 32 * MIB),
    ("carrier_frames", wire::carrier, MIB),
    ("manifest", hub::manifest, 16 * MIB),
    ("release_yaml", hub::release_yaml, 64 * MIB),
    ("hub_bodies", hub::bodies, 64 * MIB),
    ("provenance", hub::provenance, 16 * MIB),
    ("key_files", hub::keys, 16 * MIB),
    ("sealed_secret", sealed::secret, 16 * MIB),
    ("image_archive", sealed::image, 32 * MIB),
    ("words", words::words, 4 * MIB),
    ("agent_settings", words::settings, 16 * MIB),
    ("agent_topics", doors::topics, 4 * MIB),
    ("agent_http", doors::http, 48 * MIB),
    ("agent_mqtt", doors::mqtt, 48 * MIB),
    ("blob_chunks", doors::blobs, 16 * MIB),
];

/// What nothing outside of the process is needed for: it runs at once, to its end.
fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(work)
}

/// Reads JSON of a type. What was read, printed and read again is the same.
fn both_ways<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(bytes).ok()?;
    let printed = serde_json::to_string(&value).expect("what was read can be printed");
    let again: T = serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{e}: {printed}"));
    assert_eq!(serde_json::to_string(&again).unwrap(), printed);
    Some(value)
}

/// Choices that an input makes.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    /// The next byte; 0 at the end.
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        let number = usize::from(self.byte()) << 8 | usize::from(self.byte());
        number % bound.max(1)
    }

    /// Bytes, as many as the next byte says.
    fn bytes(&mut self) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(usize::from(self.byte()).min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Some edits: a byte becomes another, goes, or others come in.
    fn edit(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        for _ in 0..self.byte() % 4 {
            let at = self.below(bytes.len());
            match self.byte() % 3 {
                0 if at < bytes.len() => bytes[at] = self.byte(),
                1 if at < bytes.len() => {
                    let end = bytes.len().min(at + 1 + self.below(64));
                    bytes.drain(at..end);
                }
                _ => drop(bytes.splice(at..at, self.bytes().iter().copied()).count()),
            }
        }
        bytes
    }
}
