//! The side that writes: opening, transactions, appending. One owner, [`super::commit`].

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use proto::{
    durable::{self, Record as File},
    name::Name,
    stream::{
        Class, Epoch, MAX_BATCH_BYTES, MAX_BATCH_RECORDS, StreamKey,
        batch::{Batch, Record},
    },
};
use rusqlite::{Connection, TransactionBehavior};

use super::{
    OutboxConfig,
    db::{self, BatchRow, MAX_SEQUENCE, StreamRow},
    edit,
    epoch::{DatabaseSays, Draw, FileSays, KnownStream, Life, Memory, Verdict, Why, judge},
    error::OutboxError,
    salvage,
    space::{Limits, Use},
};
use crate::disk_space;

/// Paths inside the outbox's folder.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub folder: PathBuf,
    pub db: PathBuf,
    pub epoch: File,
    /// A damaged database, kept for a look until the next start.
    pub aside: PathBuf,
    /// A database that is being made from it.
    pub fresh: PathBuf,
    pub ballast: PathBuf,
}

impl Files {
    pub(super) fn of(folder: &Path) -> Files {
        Files {
            folder: folder.to_owned(),
            db: folder.join("outbox.db"),
            epoch: File::at(folder.join("epoch")),
            aside: folder.join("outbox.damaged.db"),
            fresh: folder.join("outbox.new.db"),
            ballast: folder.join("ballast"),
        }
    }

    /// Bytes of the database, its log and the ballast.
    pub(super) fn bytes(&self) -> u64 {
        let size = |path: &Path| fs::metadata(path).map_or(0, |m| m.len());
        size(&self.db) + size(&with_suffix(&self.db, "-wal")) + size(&self.ballast)
    }

    pub(super) fn limits(&self, config: &OutboxConfig) -> Limits {
        let disk = disk_space::at(&self.folder).ok().map(|disk| disk.total_bytes);
        Limits::new(config.quota_bytes, config.disk_share_percent, disk)
    }
}

/// `outbox.db-wal` and its like.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// An open database.
#[derive(Debug)]
pub(super) struct Store {
    files: Files,
    connection: Connection,
    /// Tells whether the file at the path is still this one.
    inode: u64,
    life: Life,
    streams: Vec<StreamRow>,
    /// Bytes of pages with content and without, until something is written.
    pages: Option<(u64, u64)>,
}

/// A store, and what was wrong with it.
#[derive(Debug)]
pub(super) struct Opened {
    pub store: Store,
    pub problem: Option<String>,
}

/// Whether no other stream of its name is newer.
pub(super) fn is_current(streams: &[StreamRow], row: &StreamRow) -> bool {
    !streams.iter().any(|other| other.id > row.id && other.key.stream == row.key.stream)
}

/// The newest stream of a name.
pub(super) fn current<'a>(streams: &'a [StreamRow], name: &Name) -> Option<&'a StreamRow> {
    streams.iter().filter(|s| s.key.stream == *name).max_by_key(|s| s.id)
}

/// Opens or makes the database. `distrusted`: it failed while it was open, so nothing of it is believed unread.
pub(super) fn open(files: &Files, config: &OutboxConfig, draw: &Draw, distrusted: bool) -> Result<Opened, OutboxError> {
    let epoch_error = |e| OutboxError::Epoch(Arc::new(e));
    durable::create_dir_all(&files.folder).map_err(epoch_error)?;
    salvage::finish_set_aside(files)?;
    let limits = files.limits(config);
    // A file that cannot be read proves nothing, as one that is noise.
    let says = FileSays::load(&files.epoch).unwrap_or(FileSays::Noise);
    let known: Vec<KnownStream> = says.memory().map(|m| m.streams.clone()).unwrap_or_default();

    let (mut database, mut saved) = (None, None);
    let interrupted = !files.db.exists() && files.aside.exists();
    if interrupted || distrusted && files.db.exists() {
        saved = Some(salvage::salvage(files, &known)?);
    } else if !files.db.exists() {
        database = Some(DatabaseSays::Missing);
    }
    let loaded = match load(files, limits) {
        Err(error) if error.is_damage() => {
            saved = Some(salvage::salvage(files, &known)?);
            load(files, limits)
        }
        loaded => loaded,
    };
    let (mut connection, life) = loaded?;
    let database = match (&saved, database) {
        (Some(_), _) => DatabaseSays::Damaged,
        (None, Some(missing)) => missing,
        // It was made and no start was finished with it.
        (None, None) if life.incarnation == 0 => DatabaseSays::Missing,
        (None, None) => DatabaseSays::This(life),
    };
    let verdict = match judge(&says, database) {
        Verdict::Continue if distrusted => Verdict::Begin(Why::Damaged),
        verdict => verdict,
    };
    let (life, streams) = begin(&mut connection, config, draw, &says, verdict)?;
    durable::sync_parent(&files.db).map_err(epoch_error)?;
    let inode = fs::metadata(&files.db).map_err(OutboxError::file("look at", &files.db))?.ino();
    let mut store = Store { files: files.clone(), connection, inode, life, streams, pages: None };

    let mut problems = vec![];
    if let Verdict::Begin(why) = verdict {
        problems.extend(why.problem().map(str::to_owned));
        problems.extend(saved.map(|saved| saved.to_string()));
    } else {
        salvage::forget_aside(files);
    }
    if let Err(error) = store.remember() {
        // The file stays behind: an older copy may go unnoticed until the next start. No reason to stop.
        tracing::warn!(error = &error as &dyn std::error::Error, "the outbox's epoch file could not be written");
        problems.push("the outbox's epoch file could not be written".to_owned());
    }
    store.finish_moves()?;
    Ok(Opened { store, problem: (!problems.is_empty()).then(|| problems.join("; ")) })
}

/// Opens what is there, and looks at every place that is needed to go on.
fn load(files: &Files, limits: Limits) -> Result<(Connection, Life), OutboxError> {
    let connection = db::open(&files.db, limits.wal_bytes)?;
    let life = db::life(&connection)?;
    for stream in db::streams(&connection)? {
        db::front(&connection, stream.id)?;
        db::at_or_before(&connection, stream.id, MAX_SEQUENCE)?;
    }
    Ok((connection, life))
}

/// The transaction that begins this start.
fn begin(
    connection: &mut Connection,
    config: &OutboxConfig,
    draw: &Draw,
    says: &FileSays,
    verdict: Verdict,
) -> Result<(Life, Vec<StreamRow>), OutboxError> {
    let failed = OutboxError::during("write");
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let before = db::life(&transaction)?;
    let rows = db::streams(&transaction)?;
    let incarnation = says.memory().map_or(0, |m| m.life.incarnation).max(before.incarnation).saturating_add(1);
    let mut known: Vec<Epoch> = rows.iter().map(|row| row.key.epoch).chain([before.epoch]).collect();
    known.extend(says.memory().map(|m| m.life.epoch));
    let epoch = match verdict {
        Verdict::Continue => before.epoch,
        Verdict::Begin(_) => draw.epoch(incarnation, &known),
    };
    for row in &rows {
        let mut row = row.clone();
        // They are written together; if they disagree one is damaged, and no sequence is given twice.
        if let Some(last) = db::at_or_before(&transaction, row.id, MAX_SEQUENCE)? {
            let end = if last.whole { last.row.end() } else { last.row.first + 1 };
            if end > row.next && row.moves.is_none() {
                row.next = end;
                db::put_stream(&transaction, &row)?;
            }
        }
    }
    // A name that is not set up any more may come back: its epoch is over with the others.
    let unlisted: Vec<(Name, Class)> = rows
        .iter()
        .filter(|row| is_current(&rows, row) && !config.streams.iter().any(|(name, _)| *name == row.key.stream))
        .map(|row| (row.key.stream.clone(), row.class))
        .collect();
    for (name, class) in config.streams.iter().chain(&unlisted) {
        let fresh = match (current(&rows, name), verdict) {
            (None, _) | (Some(_), Verdict::Begin(_)) => Some(epoch),
            (Some(row), Verdict::Continue) if row.next > MAX_SEQUENCE / 2 => Some(draw.epoch(incarnation, &known)),
            (Some(row), Verdict::Continue) => {
                db::put_stream(&transaction, &StreamRow { class: *class, ..row.clone() })?;
                None
            }
        };
        if let Some(epoch) = fresh {
            db::add_stream(&transaction, &StreamKey { stream: name.clone(), epoch }, *class)?;
        }
    }
    let mut streams = db::streams(&transaction)?;
    for stream in &mut streams {
        edit::refresh(&transaction, stream)?;
    }
    edit::prune(&transaction, &mut streams)?;
    let life = Life { epoch, incarnation };
    db::set_life(&transaction, life)?;
    transaction.commit().map_err(failed)?;
    Ok((life, streams))
}

impl Store {
    /// Every stream in every epoch, by number.
    pub(super) fn streams(&self) -> &[StreamRow] {
        &self.streams
    }

    /// Writes the file beside the database.
    pub(super) fn remember(&self) -> Result<(), OutboxError> {
        let known =
            |s: &StreamRow| KnownStream { id: s.id, name: s.key.stream.clone(), epoch: s.key.epoch, class: s.class };
        let memory = Memory { life: self.life, streams: self.streams.iter().map(known).collect() };
        let text = serde_json::to_vec(&memory).map_err(|e| OutboxError::Config(e.to_string()))?;
        self.files.epoch.store(&text).map_err(|e| OutboxError::Epoch(Arc::new(e)))
    }

    /// Runs `work` in a transaction and makes it durable. What it changes of the streams is written with it.
    pub(super) fn transact<T>(
        &mut self,
        work: impl FnOnce(&Connection, &mut Vec<StreamRow>) -> Result<T, OutboxError>,
    ) -> Result<T, OutboxError> {
        let failed = OutboxError::during("write");
        if fs::metadata(&self.files.db).map(|m| m.ino()).ok() != Some(self.inode) {
            return Err(OutboxError::Damaged("its file was removed or replaced while it was open".into()));
        }
        self.pages = None;
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        if db::life(&transaction)? != self.life {
            return Err(OutboxError::Fenced);
        }
        let mut streams = self.streams.clone();
        let done = work(&transaction, &mut streams)?;
        for stream in &streams {
            if self.streams.iter().find(|s| s.id == stream.id) != Some(stream) {
                db::put_stream(&transaction, stream)?;
            }
        }
        transaction.commit().map_err(failed)?;
        self.streams = streams;
        Ok(done)
    }

    /// How the space is used.
    pub(super) fn space(&mut self, full: bool) -> Result<Use, OutboxError> {
        let (live_bytes, free_bytes) = match self.pages {
            Some(pages) => pages,
            None => *self.pages.insert(db::pages(&self.connection)?),
        };
        let of = |class| self.streams.iter().filter(|s| s.class == class).map(|s| s.bytes).sum();
        Ok(Use { live_bytes, free_bytes, logs_bytes: of(Class::Logs), metrics_bytes: of(Class::Metrics), full })
    }

    /// Sheds about `bytes` of a class, oldest first, the stream that holds most of it first. Returns what was freed.
    pub(super) fn shed(&mut self, class: Class, bytes: u64) -> Result<u64, OutboxError> {
        let mut freed = 0;
        while freed < bytes {
            let largest = self.streams.iter().filter(|s| s.class == class && s.bytes > 0).max_by_key(|s| s.bytes);
            let Some(id) = largest.map(|s| s.id) else { break };
            let step = self.transact(|connection, streams| match streams.iter_mut().find(|s| s.id == id) {
                Some(stream) => edit::shed(connection, stream, bytes - freed),
                None => Ok(0),
            })?;
            if step == 0 {
                break;
            }
            freed += step;
        }
        Ok(freed)
    }

    /// Moves what was taken since this start to a new epoch. `hide` hears of the streams before records move.
    pub(super) fn renew(
        &mut self,
        key: &StreamKey,
        draw: &Draw,
        mut hide: impl FnMut(&[StreamRow]),
    ) -> Result<StreamKey, OutboxError> {
        let newest = current(&self.streams, &key.stream).map(|s| s.key.clone());
        let newest = newest.ok_or_else(|| OutboxError::UnknownStream(key.clone()))?;
        if newest != *key {
            return Ok(newest); // it was renewed before
        }
        let known: Vec<Epoch> = self.streams.iter().map(|s| s.key.epoch).chain([self.life.epoch]).collect();
        let renewed = StreamKey { stream: key.stream.clone(), epoch: draw.epoch(self.life.incarnation, &known) };
        self.transact(|connection, streams| edit::begin_move(connection, streams, key, &renewed))?;
        hide(&self.streams);
        self.finish_moves()?;
        if let Err(error) = self.remember() {
            tracing::warn!(error = &error as &dyn std::error::Error, "the outbox's epoch file could not be written");
        }
        Ok(renewed)
    }

    /// Moves that were begun, here or before a crash, in bounded transactions.
    fn finish_moves(&mut self) -> Result<(), OutboxError> {
        while self.streams.iter().any(|s| s.moves.is_some()) {
            self.transact(|connection, streams| edit::move_some(connection, streams))?;
        }
        self.transact(edit::prune)
    }

    /// Whether the file may take pages from the disk, or only those that it has.
    pub(super) fn may_grow(&self, may: bool) {
        let pages = self.connection.pragma_query_value(None, "page_count", |row| row.get::<_, i64>(0));
        let bound = if may { i64::from(u32::MAX - 1) } else { pages.unwrap_or(1) };
        // Should it fail, the disk says the same a little later.
        let _ = self.connection.pragma_update_and_check(None, "max_page_count", bound, |_| Ok(()));
    }

    /// Copies the log into the database and gives its bytes back.
    pub(super) fn checkpoint(&self) -> Result<(), OutboxError> {
        let failed = OutboxError::during("flush");
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(failed)
    }

    /// Gives free pages at most back to the file system.
    pub(super) fn vacuum(&mut self, pages: u64) -> Result<(), OutboxError> {
        self.pages = None;
        let failed = OutboxError::during("shrink");
        let mut statement = self.connection.prepare(&format!("PRAGMA incremental_vacuum({pages})")).map_err(failed)?;
        // Each row that is stepped frees a page.
        let mut rows = statement.query([]).map_err(failed)?;
        while rows.next().map_err(failed)?.is_some() {}
        Ok(())
    }
}

/// Adds records to a stream, as few batches as the bounds allow.
pub(super) fn append(connection: &Connection, stream: &mut StreamRow, records: &[Record]) -> Result<(), OutboxError> {
    let mut rest = records;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take(MAX_BATCH_RECORDS).take_while(|record| {
            bytes += record.bytes.len();
            bytes <= MAX_BATCH_BYTES
        });
        let (now, later) = rest.split_at(fits.count().max(1).min(rest.len()));
        rest = later;
        let batch = Batch { epoch: stream.key.epoch, first: stream.next, records: now.to_vec() };
        if batch.end() >= MAX_SEQUENCE {
            return Err(OutboxError::Config(format!("{} has no sequences left; restart the agent", stream.key)));
        }
        let row = BatchRow::seal(stream.id, &batch)?;
        row.insert(connection)?;
        if stream.first == stream.next {
            stream.oldest_ms = Some(row.time_ms);
        }
        stream.next = batch.end();
        stream.records += row.count;
        stream.bytes += row.sealed_bytes();
    }
    Ok(())
}
