//! What can go wrong with the store, each with its mend. The API turns these into HTTP status codes.

use std::{path::PathBuf, sync::Arc};

/// An operation of the store failed; nothing was changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The name is taken.
    #[error("{kind} {name} exists already; choose another name, or update it instead")]
    AlreadyExists {
        /// Kind.
        kind: &'static str,
        /// Name.
        name: String,
    },
    /// There is no such object.
    #[error("{kind} {name} does not exist; `crossdock get {kind}` lists what does")]
    NotFound {
        /// Kind.
        kind: &'static str,
        /// Name.
        name: String,
    },
    /// Somebody else changed it meanwhile.
    #[error(
        "{kind} {name} is at resource version {current}, the change is for {given:?}; read it again, then change it"
    )]
    Conflict {
        /// Kind.
        kind: &'static str,
        /// Name.
        name: String,
        /// Version that the change was made for.
        given: String,
        /// Version that it has.
        current: String,
    },
    /// A watch asks for changes that are not remembered.
    #[error("changes since resource version {0:?} are no longer remembered; list again and watch from there")]
    Gone(String),
    /// The object says that it is of another kind.
    #[error("expected apiVersion {} and kind {expected}, found {found:?}", proto::API_VERSION)]
    WrongKind {
        /// What it has to be.
        expected: &'static str,
        /// What it says.
        found: String,
    },
    /// A stored object is not readable.
    #[error(
        "{kind} {name} in the database is not readable; restore the data folder from a backup, or ask for help with this text"
    )]
    Damaged {
        /// Kind.
        kind: &'static str,
        /// Name.
        name: String,
        /// Where it fails.
        source: Arc<serde_json::Error>,
    },
    /// An object has no JSON form.
    #[error("{kind} could not be written as JSON")]
    Encode {
        /// Kind.
        kind: &'static str,
        /// Why.
        source: Arc<serde_json::Error>,
    },
    /// Written by a newer version.
    #[error(
        "{} has schema version {found}, this cloudcore knows {known}; start the version that wrote it, or a newer one",
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
    /// SQLite failed.
    #[error("could not {attempt} the database; look at the disk's space and health")]
    Sqlite {
        /// What was tried.
        attempt: &'static str,
        /// What it said.
        source: Arc<rusqlite::Error>,
    },
    /// The folder of the database cannot be made.
    #[error("could not make the folder of the database")]
    Folder(#[source] Arc<durable::DurableError>),
    /// A change panicked; the others of its batch were kept.
    #[error("a change to the database was given up because the program erred; its log has the place")]
    Panicked,
}

use proto::durable;

impl StoreError {
    /// Wraps what SQLite said about `attempt`.
    pub(super) fn during(attempt: &'static str) -> impl Fn(rusqlite::Error) -> StoreError + Copy {
        move |source| StoreError::Sqlite { attempt, source: Arc::new(source) }
    }
}
