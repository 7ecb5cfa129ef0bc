//! The latest changes in memory, bounded in number and bytes, from which watches are served.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use proto::watch;

use super::StoreError;

/// Most changes remembered.
const MAX_CHANGES: usize = 16_384;
/// Most bytes of JSON remembered.
const MAX_BYTES: usize = 32 << 20;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChangeType {
    /// Created.
    Added,
    /// Changed.
    Modified,
    /// Deleted.
    Deleted,
}

/// One committed change.
#[derive(Debug, Clone)]
pub(super) struct Change {
    /// Its number.
    pub(super) revision: i64,
    /// Kind of the object.
    pub(super) kind: &'static str,
    /// What happened.
    pub(super) change: ChangeType,
    /// The object after it.
    pub(super) json: Arc<str>,
}

/// The latest changes.
#[derive(Debug)]
pub(super) struct Ring {
    state: Mutex<State>,
    newest: watch::Sender<i64>,
}

#[derive(Debug)]
struct State {
    /// In order of revision.
    changes: VecDeque<Change>,
    bytes: usize,
    /// Changes up to this one are not remembered.
    forgotten: i64,
    /// No revision above this was ever handed out.
    announced: i64,
}

impl Ring {
    /// An empty ring after `revision`.
    pub(super) fn starting_at(revision: i64) -> Ring {
        let state = State { changes: VecDeque::new(), bytes: 0, forgotten: revision, announced: revision };
        Ring { state: Mutex::new(state), newest: watch::Sender::new(revision) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that revisions up to `revision` may become visible.
    pub(super) fn announce(&self, revision: i64) {
        let mut state = self.state();
        state.announced = state.announced.max(revision);
    }

    /// Adds what was committed, in order, and wakes the watches.
    pub(super) fn push(&self, changes: Vec<Change>) {
        let Some(newest) = changes.last().map(|change| change.revision) else { return };
        let mut state = self.state();
        for change in changes {
            state.bytes += change.json.len();
            state.changes.push_back(change);
        }
        while state.changes.len() > MAX_CHANGES || state.bytes > MAX_BYTES {
            let Some(old) = state.changes.pop_front() else { break };
            state.bytes = state.bytes.saturating_sub(old.json.len());
            state.forgotten = old.revision;
        }
        drop(state);
        self.newest.send_replace(newest);
    }

    /// Follows a kind after `since`, or from now on.
    pub(super) fn follow(self: &Arc<Ring>, kind: &'static str, since: Option<&str>) -> Result<Cursor, StoreError> {
        let newest = self.newest.subscribe();
        let state = self.state();
        let position = match since {
            None => state.changes.back().map_or(state.forgotten, |change| change.revision),
            Some(text) => text
                .parse()
                .ok()
                .filter(|since| (state.forgotten..=state.announced).contains(since))
                .ok_or_else(|| StoreError::Gone(text.chars().take(40).collect()))?,
        };
        drop(state);
        Ok(Cursor { ring: Arc::clone(self), newest, kind, position })
    }
}

/// A place in the ring.
#[derive(Debug)]
pub(super) struct Cursor {
    ring: Arc<Ring>,
    newest: watch::Receiver<i64>,
    kind: &'static str,
    position: i64,
}

enum Found {
    Change(Change),
    Nothing,
    Behind,
}

impl Cursor {
    /// The next change of the kind; `None` when it is no longer remembered.
    pub(super) async fn next(&mut self) -> Option<Change> {
        loop {
            self.newest.mark_unchanged();
            match self.look() {
                Found::Change(change) => return Some(change),
                Found::Behind => return None,
                // The ring holds the sender and this cursor the ring, so the channel stays open.
                Found::Nothing => self.newest.changed().await.ok()?,
            }
        }
    }

    fn look(&mut self) -> Found {
        let state = self.ring.state();
        if self.position < state.forgotten {
            return Found::Behind;
        }
        let start = state.changes.partition_point(|change| change.revision <= self.position);
        let found = state.changes.range(start..).find(|change| change.kind == self.kind).cloned();
        let seen = state.changes.back().map_or(self.position, |change| change.revision);
        self.position = found.as_ref().map_or(self.position.max(seen), |change| change.revision);
        found.map_or(Found::Nothing, Found::Change)
    }
}
