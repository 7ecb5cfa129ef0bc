//! What can go wrong with the outbox, each with its mend. The doors turn [`AppendError`] into status codes.

use std::{io, path::PathBuf, sync::Arc};

use proto::{
    durable::DurableError,
    name::Name,
    stream::{MAX_RECORD_BYTES, StreamKey, batch::BatchError},
};
use rusqlite::ErrorCode;

use super::{MAX_APPEND_BYTES, MAX_APPEND_RECORDS};

/// An operation of the outbox failed; nothing was changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OutboxError {
    /// SQLite failed.
    #[error("could not {attempt} the outbox; look at the disk's space and health")]
    Sqlite {
        /// What was tried.
        attempt: &'static str,
        /// What it said.
        source: Arc<rusqlite::Error>,
    },
    /// A file of it could not be handled.
    #[error("could not {attempt} {}; look at the disk's space and health, and at the folder's owner", path.display())]
    File {
        /// What was tried.
        attempt: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The epoch's file or the folder could not be written or read.
    #[error("could not keep the outbox's epoch; look at the disk's space and health")]
    Epoch(#[source] Arc<DurableError>),
    /// Written by a newer version.
    #[error(
        "{} has schema version {found}, this agent knows {known}; start the version that wrote it, or a newer one",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest known.
        known: i64,
    },
    /// The database is not what was written.
    #[error("the outbox is damaged: {0}; what can be read of it is saved, and a new epoch begins")]
    Damaged(String),
    /// Records have no stored form; an error in the program.
    #[error("records could not be made into a batch; this is an error in the agent, please report it")]
    Seal(#[from] BatchError),
    /// Two agents in one folder.
    #[error("another agent has opened this outbox; stop one of them")]
    Fenced,
    /// It has no such stream.
    #[error("the outbox holds no stream {0}")]
    UnknownStream(StreamKey),
    /// The configuration cannot be met.
    #[error("{0}")]
    Config(String),
    /// The agent ends.
    #[error("the outbox is closed: the agent is ending; try again when it has started")]
    Closed,
}

impl OutboxError {
    /// Wraps what SQLite said about `attempt`.
    pub(super) fn during(attempt: &'static str) -> impl Fn(rusqlite::Error) -> OutboxError + Copy {
        move |source| OutboxError::Sqlite { attempt, source: Arc::new(source) }
    }

    /// Wraps what the system said about `attempt` with a file.
    pub(super) fn file(attempt: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> OutboxError {
        let path = path.into();
        move |source| OutboxError::File { attempt, path, source: Arc::new(source) }
    }

    /// Whether the disk, or the file's share of it, has no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            // A shared-memory file that cannot grow is a full disk too.
            OutboxError::Sqlite { source, .. } => {
                source.sqlite_error_code() == Some(ErrorCode::DiskFull)
                    || extended(source) == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE)
            }
            OutboxError::File { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            OutboxError::Epoch(source) => source.is_disk_full(),
            _ => false,
        }
    }

    /// Whether the database file itself is at fault, so that no second try with it can succeed.
    #[must_use]
    pub(super) fn is_damage(&self) -> bool {
        use rusqlite::{Error, ffi};
        match self {
            OutboxError::Damaged(_) => true,
            OutboxError::Sqlite { source, .. } => match &**source {
                Error::SqliteFailure(failure, _) => {
                    matches!(failure.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
                        // A sector that cannot be read stays so: what lies around it is saved elsewhere.
                        || [ffi::SQLITE_IOERR_READ, ffi::SQLITE_IOERR_SHORT_READ, ffi::SQLITE_IOERR_CORRUPTFS]
                            .contains(&failure.extended_code)
                }
                Error::FromSqlConversionFailure(..)
                | Error::IntegralValueOutOfRange(..)
                | Error::InvalidColumnType(..)
                | Error::QueryReturnedNoRows
                // The statements here are right: a schema that does not know them is not ours.
                | Error::SqlInputError { .. }
                | Error::Utf8Error(..) => true,
                _ => false,
            },
            _ => false,
        }
    }
}

fn extended(error: &rusqlite::Error) -> Option<i32> {
    error.sqlite_error().map(|failure| failure.extended_code)
}

/// Records were not taken; none of them.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// No such stream is set up here.
    #[error(
        "there is no stream {stream:?}; this node has {}; another is set up in agent.toml",
        known.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
    )]
    UnknownStream {
        /// What was asked for.
        stream: Name,
        /// What there is.
        known: Vec<Name>,
    },
    /// One record is too large.
    #[error("record {} has {bytes} bytes, the bound is {MAX_RECORD_BYTES}; put large content elsewhere and record where", index + 1)]
    TooLarge {
        /// Its place among the records, from 0.
        index: usize,
        /// Its bytes.
        bytes: usize,
    },
    /// Too much at once.
    #[error(
        "{records} records with {bytes} bytes are too much at once; give at most {MAX_APPEND_RECORDS} records with {MAX_APPEND_BYTES} bytes"
    )]
    TooMany {
        /// Records.
        records: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// Nothing was given.
    #[error("there is no record in it")]
    Empty,
    /// The outbox's share of the disk, or the disk, is used up. Try again when the hub has taken some.
    #[error(
        "the outbox is full: {}; records are taken again when the hub has taken some",
        if *disk { "the disk has no room left; make some".to_owned() }
        else { format!("{used_bytes} of {limit_bytes} bytes are used; look at the line to the hub, or raise streams.quota in agent.toml") }
    )]
    Full {
        /// Bytes that are used.
        used_bytes: u64,
        /// Bytes that may be used.
        limit_bytes: u64,
        /// Whether it is the disk that has no room.
        disk: bool,
    },
    /// More is waiting for the disk than may wait. Try again in a moment.
    #[error("too many records wait for the disk; try again in a moment")]
    Busy,
    /// The disk failed.
    #[error("the records could not be stored")]
    Failed(#[source] OutboxError),
}
