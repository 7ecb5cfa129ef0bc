//! The newest assignment: on disk before anybody acts on it.
//!
//! Its generation never falls. A damaged newest copy is never guessed at: the copy before it may lack
//! apps, or name releases that were superseded. Of that copy only the generation counts, what is active
//! or on trial goes on, and the hub states the whole assignment again in the next session.

use proto::{
    durable::{DurableError, Loaded, Record},
    env::Env,
    link::message::{Assignment, Report},
    watch,
};

/// Keeps the newest assignment and tells [`crate::apps`].
#[derive(Debug)]
pub struct Assignments {
    env: Env,
    record: Record,
    current: watch::Sender<Option<Assignment>>,
    /// Why the newest that was offered is not kept.
    problem: watch::Sender<Option<String>>,
    /// Generation of a copy that is not acted on.
    seen: u64,
}

impl Assignments {
    /// Reads what was kept.
    ///
    /// # Errors
    /// When the record cannot be read at all.
    pub fn open(record: Record, env: Env) -> Result<Assignments, DurableError> {
        let goes_on = "what is active goes on until the hub states it again";
        let parse = |content: &[u8]| match serde_json::from_slice::<Assignment>(content) {
            Ok(assignment) => Some(assignment),
            Err(error) => {
                tracing::warn!(record = %record.path().display(), %error, "the kept assignment is unreadable; {goes_on}");
                None
            }
        };
        let (kept, seen) = match record.load()? {
            Loaded::Good(content) => (parse(&content), 0),
            Loaded::Fallback(content) => {
                tracing::warn!(record = %record.path().display(), "the newest assignment is damaged; {goes_on}");
                (None, parse(&content).map_or(0, |before| before.generation))
            }
            Loaded::Absent => (None, 0),
            Loaded::Lost => {
                tracing::warn!(record = %record.path().display(), "the kept assignment is damaged; {goes_on}");
                (None, 0)
            }
        };
        Ok(Assignments { env, record, current: watch::channel(kept).0, problem: watch::channel(None).0, seen })
    }

    /// The newest, as it changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Assignment>> {
        self.current.subscribe()
    }

    /// Why the newest that the hub offered is not acted on, as it changes.
    #[must_use]
    pub fn problem(&self) -> watch::Receiver<Option<String>> {
        self.problem.subscribe()
    }

    /// Generation of the newest; 0 without one.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.current.borrow().as_ref().map_or(self.seen, |a| a.generation)
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
            self.note(None);
            return Ok(());
        }
        let content = serde_json::to_vec(&offered).unwrap_or_default(); // text keys only: cannot fail
        let record = self.record.clone();
        if let Err(error) = self.env.blocking.run(move || record.store(&content)).await {
            self.note(Some(format!(
                "what the hub wants cannot be kept, so it is not begun: {error}; make room or mend the disk"
            )));
            return Err(error);
        }
        self.note(None);
        tracing::info!(generation = offered.generation, apps = offered.apps.len(), "assignment");
        let generation = offered.generation;
        self.current.send_replace(Some(offered));
        board.send_if_modified(|r| std::mem::replace(&mut r.observed_generation, generation) != generation);
        Ok(())
    }

    fn note(&self, problem: Option<String>) {
        self.problem.send_if_modified(|now| std::mem::replace(now, problem.clone()) != problem);
    }
}

#[cfg(test)]
mod tests {
    use proto::{
        digest::Digest,
        env::{Blocking, Seed, SystemClock, Udp},
        object::ReleaseRef,
    };

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

    #[tokio::test]
    async fn a_stale_copy_takes_no_app_away() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record::at(folder.path().join("assignment"));
        let board = watch::channel(Report::default()).0;
        let open = || Assignments::open(record.clone(), crate::fetch::tests::env()).unwrap();
        let release = ReleaseRef { version: "1".parse().unwrap(), digest: Digest::of(b"1") };
        let newest = Assignment {
            generation: 5,
            apps: [("web".parse().unwrap(), release.into())].into(),
            ..Assignment::default()
        };
        let kept = open();
        kept.accept(Assignment { generation: 4, ..Assignment::default() }, &board).await.unwrap();
        kept.accept(newest.clone(), &board).await.unwrap();
        std::fs::write(record.path(), "x").unwrap();

        let stale = open();
        assert_eq!(*stale.subscribe().borrow(), None, "the copy before lacks the app and is not acted on");
        assert_eq!(stale.generation(), 4);
        stale.accept(Assignment { generation: 3, ..Assignment::default() }, &board).await.unwrap();
        assert_eq!(*stale.subscribe().borrow(), None, "older than that copy");
        stale.accept(newest.clone(), &board).await.unwrap();
        assert_eq!(*open().subscribe().borrow(), Some(newest));

        record.store(b"[]").unwrap();
        assert_eq!(*open().subscribe().borrow(), None, "whole and no assignment");
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_not_acted_on_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("there");
        let record = Record::at(there.join("assignment"));
        let board = watch::channel(Report::default()).0;
        let kept = Assignments::open(record, crate::fetch::tests::env()).unwrap();
        let offered = Assignment { generation: 4, ..Assignment::default() };
        kept.accept(offered.clone(), &board).await.unwrap_err();
        assert_eq!((kept.generation(), board.borrow().observed_generation), (0, 0));
        assert!(kept.problem().borrow().as_ref().unwrap().contains("there/assignment"));
        std::fs::create_dir(&there).unwrap();
        kept.accept(offered, &board).await.unwrap();
        assert_eq!((kept.generation(), kept.problem().borrow().clone()), (4, None));
    }
}
