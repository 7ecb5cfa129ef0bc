//! The writer's loop: gather what is there, one commit, acknowledge; again when the sink fails.

use std::{sync::Arc, time::Duration};

use proto::stream::event;
use tokio::{sync::mpsc, time::Instant};

use super::{
    super::sink::{Sink, SinkError},
    Health, Ingest, Offer,
    table::Prepared,
};

/// Offers of one commit, so that the table is not held for long.
const MAX_GROUP: usize = 4096;

/// The one writer.
pub(super) struct Writer {
    ingest: Ingest,
    sink: Arc<dyn Sink>,
    offers: mpsc::UnboundedReceiver<Offer>,
    pause: Duration,
}

impl Writer {
    pub(super) fn new(ingest: Ingest, sink: Arc<dyn Sink>, offers: mpsc::UnboundedReceiver<Offer>) -> Writer {
        let pause = ingest.0.limits.retry.0;
        Writer { ingest, sink, offers, pause }
    }

    /// Never returns: it is dropped.
    pub(super) async fn run(mut self) {
        self.load().await;
        self.up();
        loop {
            let group = self.gather().await;
            self.write(&group).await;
            // Its room is free now: lanes read on.
        }
    }

    /// What is there, and what comes within a moment. Returns without offers when there is something else
    /// to write.
    async fn gather(&mut self) -> Vec<Offer> {
        let limits = self.ingest.0.limits;
        let mut group = vec![];
        let mut due = None;
        // Every arm is cancel safe.
        while group.is_empty() {
            if due.is_none() && self.ingest.table().has_notes() {
                due = Some(Instant::now() + limits.note_within);
            }
            tokio::select! {
                biased;
                offer = self.offers.recv() => match offer {
                    Some(offer) => group.push(offer),
                    None => std::future::pending().await, // the sender lives in `ingest`
                },
                () = self.ingest.0.noted.notified(), if due.is_none() => {}
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => return group,
            }
        }
        let linger = Instant::now() + limits.linger;
        let mut bytes: usize = group.iter().map(|o| o.room.bytes()).sum();
        while bytes < limits.group_bytes && group.len() < MAX_GROUP {
            let Ok(Some(offer)) = tokio::time::timeout_at(linger, self.offers.recv()).await else { break };
            bytes += offer.room.bytes();
            group.push(offer);
        }
        group
    }

    /// Makes a group durable, however long it takes, and acknowledges it.
    async fn write(&mut self, group: &[Offer]) {
        loop {
            let now = self.ingest.0.wall.now();
            let prepared = self.ingest.table().prepare(group, now);
            match self.commit(&prepared).await {
                Ok(()) => {
                    self.up();
                    {
                        let mut table = self.ingest.table();
                        table.kept(&prepared);
                        table.done(group);
                    }
                    if prepared.commit.batches.iter().any(|b| b.stream.as_str() == event::STREAM) {
                        self.ingest.0.events.notify_one();
                    }
                    for (place, why) in &prepared.refused {
                        if let Some(offer) = group.get(*place) {
                            offer.refused.send_replace(Some(why.clone()));
                        }
                    }
                    return;
                }
                Err(SinkError::Unknown(why)) => {
                    self.down(why).await;
                    self.load().await;
                }
                Err(SinkError::Unavailable(why) | SinkError::Damaged(why)) => self.down(why).await,
            }
        }
    }

    async fn commit(&self, prepared: &Prepared) -> Result<(), SinkError> {
        let commit = &prepared.commit;
        if commit.batches.is_empty() && commit.gaps.is_empty() && commit.states.is_empty() {
            return Ok(());
        }
        self.sink.commit(commit).await
    }

    async fn load(&mut self) {
        loop {
            match self.sink.states().await {
                Ok(states) => {
                    self.ingest.table().load(states);
                    return;
                }
                Err(SinkError::Unavailable(why) | SinkError::Unknown(why) | SinkError::Damaged(why)) => {
                    self.down(why).await;
                }
            }
        }
    }

    fn up(&mut self) {
        self.pause = self.ingest.0.limits.retry.0;
        self.ingest.0.health.send_if_modified(|health| std::mem::replace(health, Health::Up) != Health::Up);
    }

    /// Says so, and waits before the next attempt.
    async fn down(&mut self, why: String) {
        tracing::debug!(why, "the sink did not keep records; trying again");
        self.ingest.0.health.send_if_modified(|health| {
            let new = Health::Down(why);
            let news = *health != new;
            *health = new;
            news
        });
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(self.ingest.0.limits.retry.1);
    }
}
