//! Bits that flip at rest: in a batch of an outbox, in a copy of a state file, in a file of a release.

use std::{fs, path::Path};

use anyhow::Context as _;
use proto::digest::Digest;
use rand::{Rng, RngExt as _};
use rand_chacha::ChaCha12Rng;

use super::World;
use crate::{disk::files_below, fault::Spot};

/// Beginning of a batch by which it is found; it lies in one piece, whatever the batch's length.
const HEAD_BYTES: usize = 100;
/// Where in it a bit flips.
const FLIP: std::ops::Range<usize> = 12..92;

impl World {
    /// Flips a bit on the disk of a box. Returns whether there was one to flip.
    ///
    /// The agent does not run meanwhile: its caches would hide what the disk holds. It goes on at once.
    pub(super) async fn flip_bit(&self, name: &str, spot: Spot, choice: &mut ChaCha12Rng) -> anyhow::Result<bool> {
        let edge = self.edge(name)?;
        let stopped = spot == Spot::Outbox && !edge.host.tasks.is_empty();
        if stopped {
            edge.stop().await;
        }
        let flipped = match spot {
            Spot::Outbox => in_batch(&edge.host.disk.join("outbox/outbox.db"), choice),
            Spot::State => in_file(&edge.host.disk, is_state, choice),
            Spot::Artifact => in_file(&edge.host.disk, is_artifact, choice),
        }?;
        if let Some(at) = &flipped {
            self.trace.line(name, format_args!("a bit flipped: {at}"));
        }
        if stopped {
            self.settle_box(edge).await?;
        }
        Ok(flipped.is_some())
    }
}

/// One of the two copies of a record, both whole: with one copy alone there is no last good state, and a person
/// has to come.
fn is_state(path: &Path) -> bool {
    let other = match path.extension() {
        Some(extension) if extension == "bak" => path.with_extension(""),
        _ => {
            let mut other = path.as_os_str().to_owned();
            other.push(".bak");
            other.into()
        }
    };
    is_whole(path) && is_whole(&other)
}

fn is_whole(record: &Path) -> bool {
    let Ok(bytes) = fs::read(record) else { return false };
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return false };
    let (head, content) = bytes.split_at(end);
    let content = content.get(1..).unwrap_or_default();
    head == format!("crossdock-record-1 {}", Digest::of(content)).as_bytes()
}

/// A file of a release, staged or running, as scenarios build them.
fn is_artifact(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"part-"))
}

/// Flips one bit of one file of those that count, and returns where.
fn in_file(folder: &Path, counts: fn(&Path) -> bool, choice: &mut impl Rng) -> anyhow::Result<Option<String>> {
    let mut files = files_below(folder)?;
    files.retain(|path| counts(path));
    files.sort();
    let number = choice.random_range(0..files.len().max(1));
    let Some(path) = files.get(number) else { return Ok(None) };
    let mut bytes = fs::read(path)?;
    let (at, bit) = (choice.random_range(0..bytes.len().max(1)), choice.random_range(0..8_u32));
    let Some(byte) = bytes.get_mut(at) else { return Ok(None) };
    *byte ^= 1 << bit;
    // In place: what holds the file open sees it, as with a disk that rots.
    let mode = fs::metadata(path)?.permissions();
    let mut writable = mode.clone();
    std::os::unix::fs::PermissionsExt::set_mode(&mut writable, 0o600);
    fs::set_permissions(path, writable)?;
    fs::write(path, bytes)?;
    fs::set_permissions(path, mode)?;
    Ok(Some(format!("{} at {at}", path.strip_prefix(folder).unwrap_or(path).display())))
}

/// Scans that wait. What the agent says of itself is in no ledger, so a flip in it proves nothing. The low 44 bits of
/// a row's id are the sequence that it begins with, the others its stream.
const WAITING: &str = "SELECT sealed FROM batches JOIN streams ON streams.id = batches.id >> 44
    WHERE sealed IS NOT NULL AND class = 'scans' ORDER BY batches.id";

/// Flips one bit inside a batch of scans that waits, and returns where in the file. Nothing where none waits.
fn in_batch(database: &Path, choice: &mut impl Rng) -> anyhow::Result<Option<String>> {
    if !database.exists() {
        return Ok(None);
    }
    let connection = rusqlite::Connection::open(database)?;
    // What is in the write-ahead log goes into the file first.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    let mut statement = connection.prepare(WAITING)?;
    let waiting: Vec<Vec<u8>> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    drop(statement);
    drop(connection);
    // Of the newer half: the oldest may be acknowledged and not deleted yet, and a bit in them harms nobody.
    let number = choice.random_range(waiting.len() / 2..waiting.len().max(1));
    let Some(head) = waiting.get(number).and_then(|batch| batch.get(..HEAD_BYTES)) else { return Ok(None) };
    let mut bytes = fs::read(database)?;
    // Pages that were split keep a stale copy of what moved: every copy is hit.
    let copies: Vec<usize> =
        bytes.windows(head.len()).enumerate().filter(|(_, window)| *window == head).map(|(at, _)| at).collect();
    let (offset, bit) = (choice.random_range(FLIP), choice.random_range(0..8_u32));
    for at in &copies {
        *bytes.get_mut(at + offset).context("the batch is cut short")? ^= 1 << bit;
    }
    fs::write(database, bytes)?;
    Ok(copies.first().map(|first| format!("outbox.db at {}", first + offset)))
}
