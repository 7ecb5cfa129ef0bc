//! Makes `Event` objects of what agents tell on stream `events`: every record once, however often hub, sink
//! or line fail.
//!
//! ```text
//! sink --records after our place--> step --objects and the new place, one transaction--> store
//! ```
//!
//! The place is kept in the store, with the objects, so that a store that was restored from a backup makes
//! again what it lost. A sink that ends before the place is another one, or an older copy: what it holds by
//! then counts as seen.
//!
//! Objects are a view for people, the stream holds everything: the same again raises a count, and one node
//! may add only so many new ones a minute ([`MAX_NEW_PER`]), so that none pushes out what others told.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use proto::{
    name::Name,
    object::{Event, EventSpec},
    stream::event::{EventRecord, STREAM},
};
use tokio::time::{Instant, sleep};

use super::sink::{Cursor, Query, SinkError};
use crate::{
    events::{self, MAX_EVENTS},
    hub::Hub,
    store::StoreError,
};

/// Records of one step.
const STEP: usize = 500;
/// Wait after a step that failed.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Events of one node within [`NEW_PER`] that nobody had told before.
const MAX_NEW_PER: u32 = 60;
/// See there.
const NEW_PER: Duration = Duration::from_secs(60);
/// Names of the place in the store.
const PLACES: [&str; 2] = ["events stored", "events offset"];

#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{STREAM} is no name of a stream")]
    Name(#[from] proto::name::NameError),
}

/// Follows the stream until it is dropped. Dropping it loses nothing.
pub(super) async fn run(hub: &Hub) {
    let mut follower = Follower::default();
    let mut told = false;
    loop {
        match follower.step(hub).await {
            Ok(true) => told = false,
            Ok(false) => {
                told = false;
                hub.streams().ingest().events().await;
            }
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(error = &error as &dyn std::error::Error, "events of nodes cannot be read now");
                }
                sleep(TRY_AGAIN).await;
            }
        }
    }
}

#[derive(Default)]
struct Follower {
    shares: Arc<Mutex<Shares>>,
}

impl Follower {
    /// Takes over the next records; whether there is more.
    async fn step(&mut self, hub: &Hub) -> Result<bool, FollowError> {
        let after = hub.store().places(PLACES.to_vec()).await?.and_then(|place| cursor(&place));
        let stream = STREAM.parse()?;
        let query = Query { stream, node: None, site: None, from: None, to: None, after, limit: STEP };
        let page = hub.streams().sink().query(&query).await?;
        if page.next.is_none() && after.is_some() && page.end < after {
            tracing::warn!("the sink ends before the events that were read of it: it is an older copy, or another");
        }
        // An empty sink has no end.
        let next = page.next.or(page.end).unwrap_or(Cursor { stored: 0, offset: 0 });
        if after.unwrap_or(Cursor { stored: 0, offset: 0 }) == next {
            return Ok(false);
        }
        let now = hub.env().wall.now();
        let told = page.rows.iter().filter_map(|row| {
            let event = events::told_by(&row.node, EventRecord::read(&row.bytes)?, now)?;
            Some((row.node.clone(), event))
        });
        let places = PLACES.into_iter().zip([next.stored, i64::try_from(next.offset).unwrap_or(i64::MAX)]);
        if self.take_over(hub, told.collect(), places.collect()).await? > 0 {
            hub.store().trim::<EventSpec>(MAX_EVENTS).await?;
        }
        Ok(page.next.is_some())
    }

    /// Makes or folds events; returns how many are new.
    async fn take_over(
        &self,
        hub: &Hub,
        told: Vec<(Name, Event)>,
        places: Vec<(&'static str, i64)>,
    ) -> Result<usize, StoreError> {
        let (shares, at) = (Arc::clone(&self.shares), Instant::now());
        let names = told.iter().map(|(_, event)| event.name().to_owned()).collect();
        let change = move |index: usize, current: Option<Event>| {
            let (node, event) = told.get(index)?;
            let Some(mut current) = current else {
                let mut shares = shares.lock().unwrap_or_else(PoisonError::into_inner);
                return shares.take(node, at).then(|| event.clone());
            };
            events::fold(&mut current, &event.spec);
            Some(current)
        };
        hub.store().take_over(names, change, places).await
    }
}

fn cursor(place: &[i64]) -> Option<Cursor> {
    let [stored, offset] = place else { return None };
    Some(Cursor { stored: *stored, offset: u64::try_from(*offset).unwrap_or(0) })
}

/// New events of each node, and since when they are counted.
#[derive(Default)]
struct Shares(BTreeMap<Name, (Instant, u32)>);

impl Shares {
    /// Whether a node may add a new event.
    fn take(&mut self, node: &Name, now: Instant) -> bool {
        self.0.retain(|_, (begun, _)| now.duration_since(*begun) < NEW_PER);
        let (_, new) = self.0.entry(node.clone()).or_insert((now, 0));
        *new += 1;
        if *new == MAX_NEW_PER + 1 {
            tracing::warn!(%node, "it tells too many different events: for a minute they stand in stream {STREAM} only");
        }
        *new <= MAX_NEW_PER
    }
}

#[cfg(test)]
mod tests;
