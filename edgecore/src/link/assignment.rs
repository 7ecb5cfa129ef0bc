//! The newest assignment: on disk before anybody acts on it.
//!
//! Its generation never falls. Both copies lost is the same as never seen: what is active goes on, and
//! the hub states the whole assignment again in the next session.

use proto::{
    durable::{DurableError, Loaded, Record},
    env::Env,
    link::message::{Assignment, Report},
};
use tokio::sync::watch;

/// Keeps the newest assignment and tells [`crate::apps`].
#[derive(Debug)]
pub struct Assignments {
    env: Env,
    record: Record,
    current: watch::Sender<Option<Assignment>>,
}

impl Assignments {
    /// Reads what was kept.
    ///
    /// # Errors
    /// When the record cannot be read at all.
    pub fn open(record: Record, env: Env) -> Result<Assignments, DurableError> {
        let kept = match record.load()? {
            Loaded::Good(content) | Loaded::Fallback(content) => serde_json::from_slice(&content).ok(),
            Loaded::Absent => None,
            Loaded::Lost => {
                tracing::warn!("the kept assignment is damaged; what is active goes on until the hub states it again");
                None
            }
        };
        Ok(Assignments { env, record, current: watch::channel(kept).0 })
    }

    /// The newest, as it changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Assignment>> {
        self.current.subscribe()
    }

    /// Generation of the newest; 0 without one.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.current.borrow().as_ref().map_or(0, |a| a.generation)
    }

    /// Takes an assignment that is not older than what was seen: writes it, then acts on it.
    ///
    /// # Errors
    /// When it could not be written; then nobody acts on it.
    pub async fn accept(&self, offered: Assignment, board: &watch::Sender<Report>) -> Result<(), DurableError> {
        let seen = self.generation();
        if offered.generation < seen {
            tracing::warn!(offered = offered.generation, seen, "ignored an assignment older than one seen");
            return Ok(());
        }
        if self.current.borrow().as_ref() == Some(&offered) {
            return Ok(());
        }
        let content = serde_json::to_vec(&offered).unwrap_or_default(); // text keys only: cannot fail
        let record = self.record.clone();
        self.env.blocking.run(move || record.store(&content)).await?;
        tracing::info!(generation = offered.generation, apps = offered.apps.len(), "assignment");
        let generation = offered.generation;
        self.current.send_replace(Some(offered));
        board.send_if_modified(|r| std::mem::replace(&mut r.observed_generation, generation) != generation);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proto::env::{Blocking, Seed, SystemClock, Udp};

    use super::*;

    #[tokio::test]
    async fn an_older_assignment_is_ignored_and_the_newest_survives() {
        let folder = tempfile::tempdir().unwrap();
        let env = Env {
            wall: std::sync::Arc::new(SystemClock),
            seed: Seed::from_u64(1),
            blocking: Blocking::Inline,
            network: std::sync::Arc::new(Udp),
        };
        let record = Record::at(folder.path().join("assignment"));
        let board = watch::channel(Report::default()).0;
        let open = || Assignments::open(record.clone(), env.clone()).unwrap();
        let at = |generation| Assignment { generation, ..Assignment::default() };
        assert_eq!(*open().subscribe().borrow(), None);
        open().accept(at(5), &board).await.unwrap();
        open().accept(at(4), &board).await.unwrap();
        assert_eq!(*open().subscribe().borrow(), Some(at(5)));
        assert_eq!(board.borrow().observed_generation, 5);

        // It is not acted on before it is on disk.
        let kept = open();
        std::fs::create_dir(folder.path().join("assignment.bak.tmp")).unwrap();
        assert!(kept.accept(at(6), &board).await.is_err());
        assert_eq!((kept.generation(), board.borrow().observed_generation), (5, 5));

        std::fs::write(record.path(), "x").unwrap();
        assert_eq!(*open().subscribe().borrow(), None, "lost is never seen");
    }
}
