//! What a [`World`] knows of streams: producers on its boxes, and the books that they keep.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use edgecore::outbox::{AppendError, Outbox, OutboxError};
use proto::name::Name;
use tokio::time::{Instant, sleep};

use super::{STEP, World};
use crate::ledger::{Ledger, Outcome};

impl World {
    fn outbox(&self, name: &str) -> anyhow::Result<Outbox> {
        self.edge(name)?.outbox().with_context(|| format!("no agent runs on {name}"))
    }

    /// Whether an agent runs on a box, which is there for producers.
    ///
    /// # Errors
    /// When there is no such box.
    pub fn takes_records(&self, name: &str) -> anyhow::Result<bool> {
        Ok(self.edge(name)?.outbox().is_some())
    }

    /// A producer on a box hands in `count` records, one request for every `each`. Returns how many were taken.
    ///
    /// # Errors
    /// When no agent runs there, or it refuses for another reason than that it is full, busy or just ending. Those
    /// are no error: what was not taken is not in the books.
    pub async fn produce(&mut self, name: &str, stream: &str, count: usize, each: usize) -> anyhow::Result<usize> {
        let (node, stream): (Name, Name) = (name.parse()?, stream.parse()?);
        let outbox = self.outbox(name)?;
        let mut taken = 0;
        while taken < count {
            let (first, texts) = self.ledger.hand_in(&node, &stream, each.min(count - taken));
            let handed_in = texts.len();
            match outbox.append(&stream, texts.into_iter().map(Into::into).collect()).await {
                Ok(appended) => {
                    self.ledger.acknowledged(&node, &stream, first, appended.key.epoch, appended.range);
                    taken += handed_in;
                }
                Err(
                    error @ (AppendError::Full { .. } | AppendError::Busy | AppendError::Failed(OutboxError::Closed)),
                ) => {
                    self.trace.line(name, format_args!("refused: {error}"));
                    break;
                }
                Err(error) => return Err(error).with_context(|| format!("{name} refused records of {stream}")),
            }
        }
        self.trace.line(name, format_args!("took {taken} of {count} records of {stream}"));
        Ok(taken)
    }

    /// Records that a producer handed in so far; the number of its next.
    ///
    /// # Errors
    /// When these are no names.
    pub fn handed_in(&self, name: &str, stream: &str) -> anyhow::Result<u64> {
        Ok(self.ledger.handed_in_by(&name.parse()?, &stream.parse()?))
    }

    /// The outbox of a box was replaced by an older copy of it.
    ///
    /// # Errors
    /// When this is no name.
    pub fn outbox_put_back(&mut self, name: &str) -> anyhow::Result<()> {
        self.ledger.outbox_put_back(&name.parse()?);
        Ok(())
    }

    /// The producers' own books.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Whether the record with this number of a producer is durable at the hub, as its marks say.
    ///
    /// # Errors
    /// When the hub is down.
    pub fn is_durable(&self, name: &str, stream: &str, number: u64) -> anyhow::Result<bool> {
        let (node, stream): (Name, Name) = (name.parse()?, stream.parse()?);
        let Some((epoch, sequence)) = self.ledger.place(&node, &stream, number) else { return Ok(false) };
        let states = self.hub()?.streams().live();
        let mut states = states.iter().filter(|s| s.node == node && s.key.stream == stream && s.key.epoch == epoch);
        Ok(states.any(|s| s.durable.contains(&(sequence..sequence + 1))))
    }

    /// Records that were acknowledged and are not durable at the hub, as its marks say.
    ///
    /// # Errors
    /// When the hub is down.
    pub fn waiting(&self) -> anyhow::Result<u64> {
        let live = self.hub()?.streams().live();
        let of_producers = live.iter().filter(|state| self.ledger.knows(&state.key.stream));
        let durable: u64 = of_producers.map(|state| state.durable.count()).sum();
        Ok(self.ledger.len().saturating_sub(durable))
    }

    /// Compares the books with the hub's sink now.
    ///
    /// # Errors
    /// When a record is there twice, or one that nobody sent.
    pub async fn books(&self) -> anyhow::Result<Outcome> {
        Ok(self.ledger.compare(self.hub()?.streams().sink().as_ref()).await?)
    }

    /// Waits until every acknowledged record is in the sink or in a counted gap.
    ///
    /// # Errors
    /// When that takes longer than `patience`.
    pub async fn until_counted(&self, what: &str, patience: Duration) -> anyhow::Result<Outcome> {
        let deadline = Instant::now() + patience;
        loop {
            let outcome = self.books().await?;
            if outcome.missing == 0 {
                self.trace.line("world", format_args!("{what}: {outcome:?}"));
                return Ok(outcome);
            }
            ensure!(Instant::now() < deadline, "after {patience:?} it is not so that {what}: {outcome:?}");
            sleep(STEP * 10).await;
        }
    }
}
