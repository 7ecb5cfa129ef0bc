//! Lives of the outbox: when it goes on with its epoch and when it begins a new one. Decisions are pure.
//!
//! The same [`Life`] stands in the database and in the file `epoch` beside it. The database is written
//! first and the file after it, so that the file never runs ahead: a database behind the file is an older
//! copy. An older copy of the same start cannot be told here; the hub tells it, and then
//! [`super::Outbox::renew`] helps.

use jiff::Timestamp;
use proto::{
    durable::{Loaded, Record},
    env::Seed,
    name::Name,
    stream::{Class, Epoch},
};
use rand::Rng as _;
use serde::{Deserialize, Serialize};

use super::error::OutboxError;

/// Greatest epoch that is believed: [`Epoch::new`] yields none above, and every JSON reader keeps it whole.
pub(super) const MAX_EPOCH: u64 = 1 << 53;

/// Which life this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Life {
    /// The epoch that new streams begin with.
    pub epoch: Epoch,
    /// Rises with every start.
    pub incarnation: u64,
}

/// Content of the file: the life, and what the database's numbers mean should its own table be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Memory {
    #[serde(flatten)]
    pub life: Life,
    #[serde(default)]
    pub streams: Vec<KnownStream>,
}

/// A stream as its batches know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct KnownStream {
    pub id: i64,
    pub name: Name,
    pub epoch: Epoch,
    pub class: Class,
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FileSays {
    Nothing,
    /// It was there and is not readable.
    Noise,
    This(Memory),
}

impl FileSays {
    pub(super) fn load(record: &Record) -> Result<FileSays, OutboxError> {
        let loaded = record.load().map_err(|e| OutboxError::Epoch(std::sync::Arc::new(e)))?;
        Ok(match loaded {
            Loaded::Absent => FileSays::Nothing,
            Loaded::Lost => FileSays::Noise,
            Loaded::Good(bytes) | Loaded::Fallback(bytes) => {
                serde_json::from_slice(&bytes).map_or(FileSays::Noise, FileSays::This)
            }
        })
    }

    pub(super) fn memory(&self) -> Option<&Memory> {
        match self {
            FileSays::This(memory) => Some(memory),
            _ => None,
        }
    }
}

/// What the database says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DatabaseSays {
    /// There was none.
    Missing,
    /// It was not usable; what could be read of it is saved.
    Damaged,
    This(Life),
}

/// How to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// In the same epoch.
    Continue,
    /// In a new epoch: the sequences given before are not to be trusted.
    Begin(Why),
}

/// Why a new epoch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    First,
    Missing,
    Damaged,
    Older,
    Foreign,
    Unproven,
}

impl Why {
    /// For people; `None` when nothing is wrong.
    pub(super) fn problem(self) -> Option<&'static str> {
        match self {
            Why::First => None,
            Why::Missing => Some("the outbox was gone; a new epoch began, and the hub shows what is missing"),
            Why::Damaged => Some("the outbox was damaged; what could be read of it was saved, and a new epoch began"),
            Why::Older => Some("the outbox is an older copy; it still delivers what it holds, and a new epoch began"),
            Why::Foreign => Some("the outbox is not the one of this folder; it still delivers, and a new epoch began"),
            Why::Unproven => Some("the outbox's epoch file was lost; it still delivers, and a new epoch began"),
        }
    }
}

/// Judges whether the database is the newest of its line.
pub(super) fn judge(file: &FileSays, database: DatabaseSays) -> Verdict {
    match (file, database) {
        (FileSays::Nothing, DatabaseSays::Missing) => Verdict::Begin(Why::First),
        (_, DatabaseSays::Missing) => Verdict::Begin(Why::Missing),
        (_, DatabaseSays::Damaged) => Verdict::Begin(Why::Damaged),
        (FileSays::Nothing | FileSays::Noise, DatabaseSays::This(_)) => Verdict::Begin(Why::Unproven),
        (FileSays::This(file), DatabaseSays::This(_)) if file.life.epoch.0 > MAX_EPOCH => Verdict::Begin(Why::Unproven),
        (FileSays::This(file), DatabaseSays::This(database)) if file.life.epoch != database.epoch => {
            Verdict::Begin(Why::Foreign)
        }
        (FileSays::This(file), DatabaseSays::This(database)) if file.life.incarnation > database.incarnation => {
            Verdict::Begin(Why::Older)
        }
        (FileSays::This(_), DatabaseSays::This(_)) => Verdict::Continue,
    }
}

/// Draws epochs.
#[derive(Debug, Clone)]
pub(super) struct Draw {
    pub now: Timestamp,
    pub seed: Seed,
}

impl Draw {
    /// One that is none of `known`, and later than they are even if the clock went back.
    pub(super) fn epoch(&self, incarnation: u64, known: &[Epoch]) -> Epoch {
        let greatest = known.iter().filter(|e| e.0 < MAX_EPOCH - (1 << 20)).max();
        let purpose = format!("outbox epoch {incarnation} after {greatest:?}");
        let random = self.seed.stream(&purpose).next_u32();
        let drawn = Epoch::new(self.now, random);
        match greatest {
            Some(greatest) if *greatest >= drawn => Epoch(greatest.0 + 1 + u64::from(random & 0xFFF)),
            _ => drawn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(epoch: u64, incarnation: u64) -> Life {
        Life { epoch: Epoch(epoch), incarnation }
    }

    fn file(epoch: u64, incarnation: u64) -> FileSays {
        FileSays::This(Memory { life: life(epoch, incarnation), streams: vec![] })
    }

    #[test]
    fn only_the_newest_of_its_line_goes_on() {
        let this = |e, i| DatabaseSays::This(life(e, i));
        let cases = [
            (FileSays::Nothing, DatabaseSays::Missing, Verdict::Begin(Why::First)),
            (file(1, 3), DatabaseSays::Missing, Verdict::Begin(Why::Missing)),
            (FileSays::Noise, DatabaseSays::Missing, Verdict::Begin(Why::Missing)),
            (file(1, 3), DatabaseSays::Damaged, Verdict::Begin(Why::Damaged)),
            (FileSays::Nothing, this(1, 3), Verdict::Begin(Why::Unproven)),
            (FileSays::Noise, this(1, 3), Verdict::Begin(Why::Unproven)),
            (file(1, 3), this(1, 3), Verdict::Continue),
            // The file was not written any more, or its second copy was used.
            (file(1, 3), this(1, 4), Verdict::Continue),
            (file(1, 3), this(1, 2), Verdict::Begin(Why::Older)),
            (file(2, 3), this(1, 3), Verdict::Begin(Why::Foreign)),
            (file(1, 3), this(2, 9), Verdict::Begin(Why::Foreign)),
        ];
        for (file, database, verdict) in cases {
            assert_eq!(judge(&file, database), verdict, "{file:?}, {database:?}");
        }
    }

    #[test]
    fn an_epoch_is_new_whatever_the_clock_says() {
        let draw = Draw { now: Timestamp::UNIX_EPOCH, seed: Seed::from_u64(1) };
        let mut known = vec![Epoch(1_900_000_000 << 20)];
        for incarnation in 0..100 {
            let epoch = draw.epoch(incarnation / 2, &known);
            assert!(known.iter().all(|k| *k < epoch), "{epoch} after {known:?}");
            known.push(epoch);
        }
        // What damage left is not followed into numbers that no reader keeps.
        assert!(draw.epoch(1, &[Epoch(u64::MAX), Epoch(MAX_EPOCH)]).0 < MAX_EPOCH);
    }
}
