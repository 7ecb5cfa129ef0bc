//! Records as bytes: on the outbox's disk, on the wire, in the hub's sink.
//!
//! A sealed batch is one zstd frame (RFC 8878) with a content checksum. Its content, integers as
//! unsigned LEB128:
//!
//! ```text
//! 1              format version
//! epoch first count
//! count times:   zigzag(milliseconds since the record before; since 1970 for the first)  length  bytes
//! ```
//!
//! It says itself which records it holds, so that one that was stored under another's name is noticed.

use std::cell::RefCell;

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};

use super::{Epoch, MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MAX_RECORD_BYTES};

const FORMAT: u8 = 1;
/// On scan records, in batches of 4 KiB and more, 2 to 15 % smaller than level 3 and in two thirds of its time.
const LEVEL: i32 = 1;
/// Bytes that a record takes besides its own.
const RECORD_OVERHEAD: usize = 16;
const HEADER_BYTES: usize = 32;
/// Bytes of a batch's content that are accepted: the bound, one record over it, and what every record adds.
const MAX_CONTENT_BYTES: usize =
    HEADER_BYTES + MAX_BATCH_BYTES + MAX_RECORD_BYTES + MAX_BATCH_RECORDS * RECORD_OVERHEAD;
/// Bytes of a sealed batch that are accepted.
pub const MAX_SEALED_BYTES: usize = MAX_CONTENT_BYTES + 4096;

/// A record. What its bytes mean is between its producer and whoever reads the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When the agent took it, in milliseconds since 1970 by the node's clock.
    pub time_ms: i64,
    /// The record.
    pub bytes: Bytes,
}

/// Records in order, from sequence `first` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Life of the outbox.
    pub epoch: Epoch,
    /// Sequence of the first record.
    pub first: u64,
    /// The records; never empty in a sealed batch.
    pub records: Vec<Record>,
}

/// The bytes are no batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a batch is damaged: {0}")]
pub struct BatchError(pub String);

fn damaged(what: impl ToString) -> BatchError {
    BatchError(what.to_string())
}

impl Batch {
    /// The sequence after the last record.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first.saturating_add(self.records.len() as u64)
    }

    /// Bytes of its records.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.records.iter().map(|r| r.bytes.len()).sum()
    }

    /// As bytes.
    ///
    /// # Errors
    /// When it is empty or over the bounds of [`super`].
    pub fn seal(&self) -> Result<Vec<u8>, BatchError> {
        if self.records.is_empty() || self.records.len() > MAX_BATCH_RECORDS {
            return Err(damaged(format!("{} records", self.records.len())));
        }
        let mut content = Vec::with_capacity(HEADER_BYTES + self.bytes() + self.records.len() * RECORD_OVERHEAD);
        content.push(FORMAT);
        for number in [self.epoch.0, self.first, self.records.len() as u64] {
            put(&mut content, number);
        }
        let mut before = 0;
        for record in &self.records {
            let since = record.time_ms.wrapping_sub(before);
            put(&mut content, ((since << 1) ^ (since >> 63)).cast_unsigned());
            put(&mut content, record.bytes.len() as u64);
            content.extend_from_slice(&record.bytes);
            before = record.time_ms;
        }
        if content.len() > MAX_CONTENT_BYTES {
            return Err(damaged(format!("{} bytes", content.len())));
        }
        compress(&content).map_err(damaged)
    }

    /// From bytes.
    ///
    /// # Errors
    /// What is wrong with them. Nothing is allocated beyond the bounds of [`super`].
    pub fn open(sealed: &[u8]) -> Result<Batch, BatchError> {
        let content = Bytes::from(decompress(sealed).map_err(damaged)?);
        let mut at = 0;
        if content.first() != Some(&FORMAT) {
            return Err(damaged(format!("format {:?} is not known here", content.first())));
        }
        at += 1;
        let epoch = Epoch(take(&content, &mut at)?);
        let first = take(&content, &mut at)?;
        let count = take(&content, &mut at)?;
        if count == 0 || count > MAX_BATCH_RECORDS as u64 || first.checked_add(count).is_none() {
            return Err(damaged(format!("{count} records from {first} on")));
        }
        let mut records = vec![];
        let mut time_ms = 0_i64;
        for _ in 0..count {
            let since = take(&content, &mut at)?;
            time_ms = time_ms.wrapping_add((since >> 1).cast_signed() ^ -(since & 1).cast_signed());
            let length = usize::try_from(take(&content, &mut at)?).map_err(damaged)?;
            let end = at.checked_add(length).filter(|end| *end <= content.len());
            let end = end.ok_or_else(|| damaged("a record is cut short"))?;
            records.push(Record { time_ms, bytes: content.slice(at..end) });
            at = end;
        }
        if at != content.len() {
            return Err(damaged(format!("{} bytes follow its last record", content.len() - at)));
        }
        Ok(Batch { epoch, first, records })
    }

    /// The part of it from `first` to before `end`.
    #[must_use]
    pub fn part(&self, range: super::ranges::Range) -> Batch {
        let first = range.start.clamp(self.first, self.end());
        let end = range.end.clamp(first, self.end());
        let skip = usize::try_from(first - self.first).unwrap_or(usize::MAX);
        let take = usize::try_from(end - first).unwrap_or(usize::MAX);
        let records = self.records.iter().skip(skip).take(take).cloned().collect();
        Batch { epoch: self.epoch, first, records }
    }
}

thread_local! {
    // Making them costs as much as a small batch; a thread that rests for long ends, and they with it.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

fn compress(content: &[u8]) -> std::io::Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|kept| {
        let mut compressor = match kept.take() {
            Some(compressor) => compressor,
            None => {
                let mut new = Compressor::new(LEVEL)?;
                new.include_checksum(true)?;
                new
            }
        };
        let sealed = compressor.compress(content)?;
        *kept = Some(compressor); // after an error it is made anew
        Ok(sealed)
    })
}

fn decompress(sealed: &[u8]) -> std::io::Result<Vec<u8>> {
    // Without a size in its header, the bound decides what is allocated.
    let size = zstd::zstd_safe::get_frame_content_size(sealed).ok().flatten();
    let size = size.and_then(|s| usize::try_from(s).ok()).unwrap_or(MAX_CONTENT_BYTES);
    if size > MAX_CONTENT_BYTES {
        return Err(std::io::Error::other(format!("it would have {size} bytes")));
    }
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let mut decompressor = kept.take().map_or_else(Decompressor::new, Ok)?;
        let content = decompressor.decompress(sealed, size)?;
        *kept = Some(decompressor);
        Ok(content)
    })
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7F) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take(content: &[u8], at: &mut usize) -> Result<u64, BatchError> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = *content.get(*at).ok_or_else(|| damaged("it is cut short"))?;
        *at += 1;
        let bits = u64::from(byte & 0x7F);
        if bits << shift >> shift != bits {
            break;
        }
        number |= bits << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(damaged("a number is too large"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = Record> {
        (any::<i64>(), prop::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(time_ms, bytes)| Record { time_ms, bytes: bytes.into() })
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened(
            epoch in any::<u64>(),
            first in 0..u64::MAX - 100,
            records in prop::collection::vec(record(), 1..40),
            cut in (0u64..50, 0u64..50),
        ) {
            let batch = Batch { epoch: Epoch(epoch), first, records };
            let sealed = batch.seal().unwrap();
            prop_assert_eq!(Batch::open(&sealed).unwrap(), batch.clone());
            let part = batch.part(first + cut.0..first + cut.0 + cut.1);
            prop_assert!(part.first >= first && part.end() <= batch.end());
            for (i, record) in part.records.iter().enumerate() {
                prop_assert_eq!(record, &batch.records[(part.first - first) as usize + i]);
            }
        }

        #[test]
        fn noise_is_no_batch_and_no_panic(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Batch::open(&noise).is_err());
            let _ = Batch::open(&compress(&noise).unwrap());
        }

        #[test]
        fn one_flipped_bit_is_noticed(records in prop::collection::vec(record(), 1..20), at in any::<prop::sample::Index>(), bit in 0_u32..8) {
            let batch = Batch { epoch: Epoch(7), first: 3, records };
            let mut sealed = batch.seal().unwrap();
            let at = at.index(sealed.len());
            sealed[at] ^= 1_u8 << bit;
            // A bit that no reader looks at may change nothing; it never yields other records.
            prop_assert!(Batch::open(&sealed).map_or(true, |opened| opened == batch));
        }
    }

    #[test]
    fn a_bomb_does_not_go_off() {
        let bomb = compress(&vec![0; 64 << 20]).unwrap();
        assert!(bomb.len() < MAX_SEALED_BYTES);
        assert!(Batch::open(&bomb).unwrap_err().to_string().contains("would have"));
    }

    #[test]
    fn bounds_hold() {
        let record = |n: usize| Record { time_ms: 0, bytes: vec![1; n].into() };
        let batch = |records| Batch { epoch: Epoch(1), first: 0, records };
        assert!(batch(vec![]).seal().is_err());
        assert!(batch(vec![record(0); MAX_BATCH_RECORDS + 1]).seal().is_err());
        assert!(batch(vec![record(MAX_RECORD_BYTES); 9]).seal().is_err());
        let largest = batch(vec![record(MAX_BATCH_BYTES / MAX_BATCH_RECORDS); MAX_BATCH_RECORDS]);
        assert_eq!(Batch::open(&largest.seal().unwrap()).unwrap(), largest);
    }
}
