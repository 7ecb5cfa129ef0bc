//! Objects of the hub in embedded SQLite, with resource versions and watches.
//!
//! ```text
//! create/update/modify/delete --> queue --> one transaction for all that waited --> ring --> watches
//! get/list ------------------------------> reader connection
//! ```
//!
//! A write returns once it is on disk (WAL, `synchronous = FULL`). Writes that arrive while another
//! commits share the next commit ([`queue`]). Every write gets the next number of one global count, the
//! revision: an object's `resourceVersion` is the revision of its last write, a list's is the newest.
//! A [`Watch`] follows from a revision on; one that fell behind is told so and lists again. What webhooks have taken
//! up of the events lies beside the objects and changes in the same transactions ([`deliveries`]).
//! Called by every part of the hub that keeps objects; the API is its only face to the outside.

mod db;
pub(crate) mod deliveries;
mod error;
mod queue;
mod ring;
#[cfg(test)]
mod tests;

use std::{
    marker::PhantomData,
    path::Path,
    sync::{Arc, Mutex},
};

use jiff::SignedDuration;
use proto::{
    durable,
    env::Env,
    object::{Kind, Object, RolloutSpec},
    selector::Selector,
};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

pub(crate) use self::db::selects;
pub use self::error::StoreError;
use self::{
    db::Writer,
    queue::Queue,
    ring::{Change, ChangeType, Cursor, Ring},
};

/// Handle of the store. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    env: Env,
    /// Reads see the last commit and never wait for a writer (WAL).
    reader: Mutex<Connection>,
    queue: Arc<Queue>,
    ring: Arc<Ring>,
}

/// Objects of one kind, by name, and the revision they were read at.
#[derive(Debug, Clone)]
pub struct List<S: Kind + PartialEq> {
    /// The objects.
    pub items: Vec<Object<S>>,
    /// Where a watch goes on without a gap.
    pub resource_version: String,
}

/// One change, as a watch sees it and as the API writes it, a line each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE", bound = "")]
pub enum WatchEvent<S: Kind + PartialEq> {
    /// It was created.
    Added(Object<S>),
    /// It was changed.
    Modified(Object<S>),
    /// It was deleted; this is what it last was.
    Deleted(Object<S>),
}

/// Follows the changes of one kind.
#[derive(Debug)]
pub struct Watch<S> {
    cursor: Cursor,
    kind: PhantomData<fn() -> S>,
}

impl Store {
    /// Opens the database at `path`, creates it if there is none, and migrates an older one.
    ///
    /// # Errors
    /// When it cannot be opened, is damaged, or was written by a newer version.
    pub async fn open(path: &Path, env: &Env) -> Result<Store, StoreError> {
        let (path, own) = (path.to_owned(), env.clone());
        env.blocking.run(move || Store::open_now(&path, own)).await
    }

    fn open_now(path: &Path, env: Env) -> Result<Store, StoreError> {
        if let Some(folder) = path.parent() {
            durable::create_dir_all(folder).map_err(|e| StoreError::Folder(Arc::new(e)))?;
        }
        let (writer, revision) = db::open(path)?;
        let reader = db::open_reader(path)?;
        let ring = Arc::new(Ring::starting_at(revision));
        let queue = Arc::new(Queue::new(writer, revision, Arc::clone(&ring)));
        Ok(Store { inner: Arc::new(Inner { env, reader: Mutex::new(reader), queue, ring }) })
    }

    /// Reads an object.
    ///
    /// # Errors
    /// When the database cannot be read or the object is not readable.
    pub async fn get<S: Kind + PartialEq>(&self, name: &str) -> Result<Option<Object<S>>, StoreError> {
        let name = name.to_owned();
        self.read(move |connection| db::get(connection, S::KIND, &name)).await
    }

    /// Reads all objects of a kind, or those that a selector names (by label, `name`, or `site` where
    /// the kind has one).
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn list<S: Kind + PartialEq>(&self, selector: Option<&Selector>) -> Result<List<S>, StoreError> {
        let selector = selector.cloned();
        self.read(move |connection| db::list(connection, S::KIND, selector.as_ref())).await
    }

    /// Stores a new object under a name that is free; sets uid, versions and time.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`], or when the database cannot be written.
    pub async fn create<S: Kind + PartialEq>(&self, object: Object<S>) -> Result<Object<S>, StoreError> {
        let env = self.inner.env.clone();
        self.write(move |writer| {
            check_header(&object)?;
            if db::get::<S>(writer.connection(), S::KIND, object.name())?.is_some() {
                return Err(StoreError::AlreadyExists { kind: S::KIND, name: object.name().into() });
            }
            add(writer, &env, object)
        })
        .await
    }

    /// Takes over what a log says, from which nothing is to be taken twice, in one transaction: gives `change`
    /// each of the named objects (`None` when there is none of that name) to make or to change, and notes how
    /// far the log was read, for [`Store::places`]. `None` leaves an object as it is. Returns how many were made.
    ///
    /// # Errors
    /// When the database cannot be read or written; then nothing was taken over.
    pub async fn take_over<S: Kind + PartialEq>(
        &self,
        names: Vec<String>,
        mut change: impl FnMut(usize, Option<Object<S>>) -> Option<Object<S>> + Send + 'static,
        places: Vec<(&'static str, i64)>,
    ) -> Result<usize, StoreError> {
        let env = self.inner.env.clone();
        self.write(move |writer| {
            let mut made = 0;
            for (index, name) in names.iter().enumerate() {
                let current = db::get::<S>(writer.connection(), S::KIND, name)?;
                match (current.clone(), change(index, current)) {
                    (Some(current), Some(next)) => drop(put_if_changed(writer, current, next)?),
                    (None, Some(next)) => {
                        check_header(&next)?;
                        add(writer, &env, next)?;
                        made += 1;
                    }
                    (_, None) => {}
                }
            }
            places.iter().try_for_each(|(name, value)| writer.put_place(name, *value))?;
            Ok(made)
        })
        .await
    }

    /// How far a log was read, by the names given to [`Store::take_over`]; `None` where one was never noted.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn places(&self, names: Vec<&'static str>) -> Result<Option<Vec<i64>>, StoreError> {
        self.read(move |connection| names.iter().map(|name| db::place(connection, name)).collect()).await
    }

    /// Replaces spec, labels and annotations; status stays as it is. A `resourceVersion` in the object
    /// must be the current one. Nothing is written when nothing changes.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Conflict`], or when the database cannot be written.
    pub async fn update<S: Kind + PartialEq>(&self, object: Object<S>) -> Result<Object<S>, StoreError> {
        self.write(move |writer| {
            check_header(&object)?;
            let current: Object<S> = db::get(writer.connection(), S::KIND, object.name())?
                .ok_or_else(|| StoreError::NotFound { kind: S::KIND, name: object.name().into() })?;
            check_versions(&object, &current)?;
            let mut next = current.clone();
            next.spec = object.spec;
            next.metadata.labels = object.metadata.labels;
            next.metadata.annotations = object.metadata.annotations;
            put_if_changed(writer, current, next)
        })
        .await
    }

    /// Reads, changes and writes an object in one transaction; `None` when there is none of that name.
    /// Name, uid and version are not the caller's to change. Nothing is written when nothing changes.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub async fn modify<S: Kind + PartialEq>(
        &self,
        name: &str,
        mut change: impl FnMut(&mut Object<S>) + Send + 'static,
    ) -> Result<Option<Object<S>>, StoreError> {
        let name = name.to_owned();
        self.write(move |writer| modify_one(writer, &name, &mut change)).await
    }

    /// As [`Store::modify`] for several objects, all or none; names without an object are left out.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub async fn modify_many<S: Kind + PartialEq>(
        &self,
        names: Vec<String>,
        mut change: impl FnMut(&mut Object<S>) + Send + 'static,
    ) -> Result<Vec<Object<S>>, StoreError> {
        self.write(move |writer| {
            let mut done = Vec::with_capacity(names.len());
            for name in &names {
                done.extend(modify_one(writer, name, &mut change)?);
            }
            Ok(done)
        })
        .await
    }

    /// As [`Store::modify_many`] for objects of two kinds, all or none.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub async fn modify_both<A: Kind + PartialEq, B: Kind + PartialEq>(
        &self,
        (first, mut change_first): (Vec<String>, impl FnMut(&mut Object<A>) + Send + 'static),
        (second, mut change_second): (Vec<String>, impl FnMut(&mut Object<B>) + Send + 'static),
    ) -> Result<(), StoreError> {
        self.write(move |writer| {
            for name in &first {
                modify_one(writer, name, &mut change_first)?;
            }
            for name in &second {
                modify_one(writer, name, &mut change_second)?;
            }
            Ok(())
        })
        .await
    }

    /// Deletes an object and returns what it was; `None` when there was none.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub async fn delete<S: Kind + PartialEq>(&self, name: &str) -> Result<Option<Object<S>>, StoreError> {
        let name = name.to_owned();
        self.write(move |writer| {
            let Some(object) = db::get::<S>(writer.connection(), S::KIND, &name)? else { return Ok(None) };
            writer.remove(&object).map(Some)
        })
        .await
    }

    /// Deletes the objects of a kind that were written longest ago, so that at most `keep` remain.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub async fn trim<S: Kind + PartialEq>(&self, keep: u64) -> Result<(), StoreError> {
        self.write(move |writer| {
            for object in db::oldest_beyond::<S>(writer.connection(), S::KIND, keep)? {
                writer.remove(&object)?;
            }
            Ok(())
        })
        .await
    }

    /// Follows changes after the revision `since`, or from now on.
    ///
    /// # Errors
    /// [`StoreError::Gone`] when `since` is further back than is remembered, or no revision of this store.
    pub fn watch<S: Kind + PartialEq>(&self, since: Option<&str>) -> Result<Watch<S>, StoreError> {
        Ok(Watch { cursor: self.inner.ring.follow(S::KIND, since)?, kind: PhantomData })
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.inner);
        let work = move || work(&inner.reader.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        self.inner.env.blocking.run(work).await
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        queue::submit(&self.inner.queue, self.inner.env.blocking, work).await
    }
}

impl<S: Kind + PartialEq> Watch<S> {
    /// The next change; `None` when the watch fell too far behind: list again and start a new one.
    /// Cancel safe: a dropped call loses nothing.
    pub async fn next(&mut self) -> Option<WatchEvent<S>> {
        loop {
            let change = self.cursor.next().await?;
            match serde_json::from_str(&change.json) {
                Ok(object) => return Some(change.change.event(object)),
                // Written by this very process a moment ago, so this cannot be; skipping would hide it.
                Err(error) => tracing::error!(kind = S::KIND, %error, "a change is not readable and was skipped"),
            }
        }
    }
}

impl<S: Kind + PartialEq> WatchEvent<S> {
    /// The object that changed.
    pub fn object(&self) -> &Object<S> {
        match self {
            WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object) => object,
        }
    }
}

impl ChangeType {
    fn event<S: Kind + PartialEq>(self, object: Object<S>) -> WatchEvent<S> {
        match self {
            ChangeType::Added => WatchEvent::Added(object),
            ChangeType::Modified => WatchEvent::Modified(object),
            ChangeType::Deleted => WatchEvent::Deleted(object),
        }
    }
}

fn add<S: Kind + PartialEq>(
    writer: &mut Writer<'_>,
    env: &Env,
    mut object: Object<S>,
) -> Result<Object<S>, StoreError> {
    object.metadata.generation = object.metadata.generation.max(1);
    let mut created = env.wall.now();
    // Rollouts are ordered by it: one that is made later is newer, although the clock went back.
    if S::KIND == RolloutSpec::KIND
        && let Some(newest) = db::newest(writer.connection(), S::KIND)?
    {
        created = created.max(newest.checked_add(SignedDuration::from_millis(1)).unwrap_or(newest));
    }
    object.metadata.creation_timestamp = Some(created);
    object.metadata.uid = db::uid(&env.seed, writer.peek_revision());
    put(writer, object, ChangeType::Added)
}

fn check_header<S: Kind + PartialEq>(object: &Object<S>) -> Result<(), StoreError> {
    if object.kind != S::KIND || object.api_version != proto::API_VERSION {
        let found = format!("{} {}", object.api_version, object.kind);
        return Err(StoreError::WrongKind { expected: S::KIND, found: found.chars().take(120).collect() });
    }
    Ok(())
}

fn check_versions<S: Kind + PartialEq>(given: &Object<S>, current: &Object<S>) -> Result<(), StoreError> {
    let (given, have) = (&given.metadata, &current.metadata);
    let stale = |given: &str, have: &str| !given.is_empty() && given != have;
    if stale(&given.resource_version, &have.resource_version) || stale(&given.uid, &have.uid) {
        return Err(StoreError::Conflict {
            kind: S::KIND,
            name: current.name().into(),
            given: given.resource_version.clone(),
            current: have.resource_version.clone(),
        });
    }
    Ok(())
}

fn modify_one<S: Kind + PartialEq>(
    writer: &mut Writer<'_>,
    name: &str,
    change: &mut impl FnMut(&mut Object<S>),
) -> Result<Option<Object<S>>, StoreError> {
    let Some(current) = db::get::<S>(writer.connection(), S::KIND, name)? else { return Ok(None) };
    let mut next = current.clone();
    change(&mut next);
    put_if_changed(writer, current, next).map(Some)
}

fn put_if_changed<S: Kind + PartialEq>(
    writer: &mut Writer<'_>,
    current: Object<S>,
    mut next: Object<S>,
) -> Result<Object<S>, StoreError> {
    next.metadata.name = current.metadata.name.clone();
    next.metadata.uid = current.metadata.uid.clone();
    next.metadata.resource_version = current.metadata.resource_version.clone();
    next.metadata.creation_timestamp = current.metadata.creation_timestamp;
    if next.spec != current.spec && next.metadata.generation <= current.metadata.generation {
        next.metadata.generation = current.metadata.generation.saturating_add(1);
    }
    next.metadata.generation = next.metadata.generation.max(current.metadata.generation);
    if next == current { Ok(current) } else { put(writer, next, ChangeType::Modified) }
}

fn put<S: Kind + PartialEq>(
    writer: &mut Writer<'_>,
    mut object: Object<S>,
    change: ChangeType,
) -> Result<Object<S>, StoreError> {
    let revision = writer.take_revision();
    object.metadata.resource_version = revision.to_string();
    let json = serde_json::to_string(&object).map_err(|e| StoreError::Encode { kind: S::KIND, source: Arc::new(e) })?;
    writer.put(S::KIND, object.name(), revision, &json)?;
    writer.note(Change { revision, kind: S::KIND, change, json: json.into() });
    Ok(object)
}
