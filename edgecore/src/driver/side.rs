//! The two places that instances of an app have, so that a new one can run beside the old.
//!
//! To a [`Driver`] they are two names: the app's own, and that with [`SECOND_SUFFIX`]. An agent that knows of no second
//! instance takes it for one of an app that is not assigned, and so stops it. Which of them is live is in the app's
//! slot, and changes from update to update.

use std::time::Duration;

use bytes::Bytes;
use proto::{
    name::Name,
    release::{
        replicas,
        update::{self, SECOND_SUFFIX},
    },
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{Driver, InstanceUsage};

/// One of the two places.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Side {
    /// The one that every app has.
    #[default]
    A,
    /// The other.
    B,
}

impl Side {
    /// Both.
    pub const ALL: [Side; 2] = [Side::A, Side::B];

    /// The other one.
    #[must_use]
    pub fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }

    /// `a` or `b`: name of its folder.
    #[must_use]
    pub fn letter(self) -> &'static str {
        match self {
            Side::A => "a",
            Side::B => "b",
        }
    }

    /// The name by which drivers know an app's instance here; none where the app's name is too long for a second one.
    #[must_use]
    pub fn key(self, app: &Name) -> Option<Name> {
        match self {
            Side::A => Some(app.clone()),
            Side::B => update::second(app),
        }
    }

    /// Whose instance has this name.
    #[must_use]
    pub fn of(key: &Name) -> (Name, Side) {
        let first = key.as_str().strip_suffix(SECOND_SUFFIX).and_then(|app| app.parse().ok());
        first.map_or_else(|| (key.clone(), Side::A), |app| (app, Side::B))
    }

    /// Whether it is the default, which is not written.
    #[must_use]
    pub fn is_a(&self) -> bool {
        *self == Side::A
    }
}

/// Whose instance has this name, whichever it is of the app's.
#[must_use]
pub fn app_of(key: &Name) -> Name {
    match replicas::of(key) {
        (_, 0) => Side::of(key).0,
        (app, _) => app,
    }
}

/// What all instances of an app use together, of which at most so many are replicas; `None` when nothing runs or the
/// driver cannot tell.
pub async fn usage(driver: &dyn Driver, app: &Name, replicas: u8) -> Option<InstanceUsage> {
    let mut sum: Option<InstanceUsage> = None;
    let others = (1..replicas).filter_map(|replica| replicas::key(app, replica));
    for key in Side::ALL.into_iter().filter_map(|side| side.key(app)).chain(others) {
        let Some(used) = driver.usage(&key).await else { continue };
        let before = sum.unwrap_or_default();
        let cpu = used.cpu.map(|cpu| before.cpu.unwrap_or(Duration::ZERO).saturating_add(cpu)).or(before.cpu);
        let memory_bytes = used
            .memory_bytes
            .map(|bytes| before.memory_bytes.unwrap_or(0).saturating_add(bytes))
            .or(before.memory_bytes);
        sum = Some(InstanceUsage { cpu, memory_bytes });
    }
    sum
}

/// Output of the app's instance that was started last, of those that run if there are any. See [`Driver::logs`].
pub async fn logs(driver: &dyn Driver, app: &Name, tail: Option<u32>, follow: bool) -> Option<mpsc::Receiver<Bytes>> {
    let mut found = vec![];
    for key in Side::ALL.into_iter().filter_map(|side| side.key(app)) {
        let instance = driver.inspect(&key).await.ok().flatten();
        found.push((instance.map(|instance| (instance.exit.is_none(), instance.started_at)), key));
    }
    found.sort_by_key(|(instance, _)| std::cmp::Reverse(*instance));
    // After a boot nothing may have been started yet, and there is output all the same.
    for (_, key) in found {
        if let Some(lines) = driver.logs(&key, tail, follow).await {
            return Some(lines);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_whose_it_is() {
        let app: Name = "vision".parse().unwrap();
        for side in Side::ALL {
            assert_eq!(Side::of(&side.key(&app).unwrap()), (app.clone(), side));
            assert_eq!(side.other().other(), side);
        }
        let long: Name = "x".repeat(63).parse().unwrap();
        assert_eq!((Side::A.key(&long), Side::B.key(&long)), (Some(long.clone()), None));
        let alone: Name = "b--b".parse().unwrap();
        assert_eq!(Side::of(&alone).0.as_str(), "b");
        for key in ["vision", "vision--b", "vision--r1", "vision--r15"] {
            assert_eq!(app_of(&key.parse().unwrap()), app);
        }
    }
}
