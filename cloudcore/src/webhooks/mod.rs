//! Webhooks: events told to other systems over HTTP, each at least once and in order.
//!
//! ```text
//! events (objects) --take up, one transaction with the place--> deliveries of each webhook, on disk
//!        `-- written: at once                                      |  one loop a webhook, oldest first
//!                                                                  v
//!            2xx: done <-- POST, signed, 15 s at most --> failure: again after 1 s, 2 s, .. 10 min
//!                                                                  |  after 15 attempts, or a day
//!                                                                  v
//!                                      dead letter: listed, told once as an event, retried when asked
//! ```
//!
//! What that promises: an event that the hub has written is delivered at least once, also when the hub is killed;
//! a receiver drops what it has seen by the delivery's `id`, which stays the same in every attempt. A webhook tells
//! in the order in which events were last written, and nothing overtakes: while a receiver is down, what comes
//! later waits behind the first. An event that happens again while it waits for its first attempt is told once,
//! with the higher count. Numbers are bounded (see [`MAX_WAITING`], [`MAX_DEAD`]): what waits beyond that becomes a
//! dead letter, the oldest dead letters are forgotten and counted.
//!
//! Events about webhooks are told to nobody, for a receiver that is down would hear of itself for ever. A webhook
//! that is taken out of `hub.yaml` is forgotten with everything that waited for it.
//!
//! How a delivery is written and signed, and how a receiver verifies it: [`send`]. What can be set: [`config`].

pub mod config;
pub mod send;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use proto::{
    object::{Event, EventSpec, EventType},
    watch,
};
use rand::{Rng, RngExt as _};
use tokio::time::sleep;

use self::{config::WebhookConfig, send::Sender};
pub use crate::store::deliveries::{MAX_DEAD, MAX_WAITING};
use crate::{
    events,
    hub::Hub,
    store::{Store, StoreError},
};

/// Kind that events about webhooks themselves name.
pub(crate) const KIND: &str = "Webhook";
/// Wait after the store failed.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// The webhooks of a hub. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Webhooks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    configs: Vec<WebhookConfig>,
    /// Rises when something was taken up.
    taken_up: watch::Sender<u64>,
    /// Rises when somebody asks to try again.
    asked: watch::Sender<u64>,
}

impl Webhooks {
    /// Those of a configuration. New ones begin with what is written from here on; what waited for others is forgotten.
    pub(crate) async fn open(configs: Vec<WebhookConfig>, store: &Store) -> Result<Webhooks, StoreError> {
        store.begin_webhooks(configs.iter().map(|config| config.name.to_string()).collect()).await?;
        Ok(Webhooks(Arc::new(Inner { configs, taken_up: watch::Sender::new(0), asked: watch::Sender::new(0) })))
    }

    /// What is configured.
    pub(crate) fn configs(&self) -> &[WebhookConfig] {
        &self.0.configs
    }

    /// One by its name.
    pub(crate) fn find(&self, name: &str) -> Option<&WebhookConfig> {
        self.0.configs.iter().find(|config| config.name.as_str() == name)
    }

    /// Gives dead letters another chance, and what waits a fresh attempt now. How many were dead.
    pub(crate) async fn retry(&self, hub: &Hub, name: &str) -> Result<i64, StoreError> {
        let dead = hub.store().retry_dead_letters(name, hub.env().wall.now()).await?;
        bump(&self.0.asked);
        Ok(dead)
    }
}

fn bump(sender: &watch::Sender<u64>) {
    let next = sender.borrow().wrapping_add(1);
    sender.send_replace(next);
}

/// Delivers until `stop`. What is on its way then is delivered again.
pub(crate) async fn run(hub: Hub, mut stop: watch::Receiver<bool>) {
    let work = async {
        if hub.webhooks().configs().is_empty() {
            return std::future::pending().await;
        }
        let tell = hub.webhooks().configs().iter().map(|config| deliver_all(&hub, config));
        tokio::join!(take_up_all(&hub), futures_util::future::join_all(tell));
    };
    tokio::select! { biased;
        _ = stop.wait_for(|stop| *stop) => {}
        () = work => {}
    }
}

async fn failed_store(error: &StoreError) {
    tracing::warn!(error = error as &dyn std::error::Error, "webhooks cannot go on now");
    sleep(TRY_AGAIN).await;
}

/// Takes up events as they are written, and those that were written while the hub was away.
async fn take_up_all(hub: &Hub) {
    loop {
        // Begun before the first look, so that nothing falls between.
        let Ok(mut watch) = hub.store().watch::<EventSpec>(None) else { return };
        loop {
            let place = match take_up(hub).await {
                Ok((_, true)) => continue,
                Ok((place, false)) => place,
                Err(error) => {
                    failed_store(&error).await;
                    continue;
                }
            };
            // Changes that were taken up in one go with an earlier one are passed over.
            let news = loop {
                let Some(change) = watch.next().await else { break false };
                if change.object().metadata.resource_version.parse::<i64>().is_ok_and(|revision| revision > place) {
                    break true;
                }
            };
            if !news {
                break; // fell behind: a new watch
            }
        }
    }
}

async fn take_up(hub: &Hub) -> Result<(i64, bool), StoreError> {
    let wants = |config: &WebhookConfig| {
        let events = config.events.clone();
        move |event: &Event| event.spec.involved_kind != KIND && events.wants(event)
    };
    let webhooks = hub.webhooks().configs().iter().map(|config| (config.name.to_string(), wants(config))).collect();
    let taken = hub.store().take_up_events(webhooks, hub.env().wall.now()).await?;
    bump(&hub.webhooks().0.taken_up);
    Ok(taken)
}

/// Delivers to one webhook, one after the other.
async fn deliver_all(hub: &Hub, config: &WebhookConfig) {
    let name = config.name.as_str();
    let sender = Sender::new(config, &hub.config().fleet, hub.env());
    let mut random = hub.env().seed.stream(&format!("back-off of webhook {name}"));
    let (mut taken_up, mut asked) = (hub.webhooks().0.taken_up.subscribe(), hub.webhooks().0.asked.subscribe());
    let mut failures = 0_u32;
    loop {
        taken_up.mark_unchanged();
        asked.mark_unchanged();
        match deliver_one(hub, config, &sender).await {
            Ok(Outcome::Done) => failures = 0,
            // The hub holds both senders, so neither channel closes while this runs.
            Ok(Outcome::Nothing) => tokio::select! { biased;
                _ = taken_up.changed() => {}
                _ = asked.changed() => {}
            },
            Ok(Outcome::Failed) => {
                failures = failures.saturating_add(1);
                let wait = back_off(config, failures, &mut random);
                tokio::select! { biased;
                    _ = asked.changed() => failures = 0,
                    () = sleep(wait) => {}
                }
            }
            Err(error) => failed_store(&error).await,
        }
    }
}

enum Outcome {
    Done,
    Nothing,
    Failed,
}

async fn deliver_one(hub: &Hub, config: &WebhookConfig, sender: &Sender) -> Result<Outcome, StoreError> {
    let (name, store) = (config.name.as_str(), hub.store());
    let Some(delivery) = store.next_delivery(name).await? else { return Ok(Outcome::Nothing) };
    let sent = sender.send(&delivery, hub.env().wall.now()).await;
    let now = hub.env().wall.now();
    let Err(reason) = sent else {
        store.delivered(name, delivery.revision, now).await?;
        return Ok(Outcome::Done);
    };
    let attempt = delivery.attempts.saturating_add(1);
    let age = Duration::try_from(now.duration_since(delivery.since)).unwrap_or_default();
    let dead = attempt >= config.retry.attempts || age >= config.retry.age.get();
    tracing::warn!(webhook = name, to = %config.url, attempt, dead, reason, "a delivery failed");
    let first = store.failed_delivery(name, delivery.revision, reason, dead, now).await?;
    if first {
        let text = format!(
            "deliveries were given up; mend the receiver or hub.yaml, then crossdock webhooks retry {name} (crossdock webhooks dead {name} lists them)"
        );
        events::record(store, hub.env(), KIND, name, EventType::Warning, "DeadLetters", &text, "hub").await;
    }
    Ok(Outcome::Failed)
}

/// The wait after so many failures in a row: doubled each time up to the bound, half of it at random, so that hubs
/// that failed together do not come back together.
fn back_off(config: &WebhookConfig, failures: u32, random: &mut impl Rng) -> Duration {
    let (first, longest) = (config.retry.first.get(), config.retry.longest.get());
    let doubled = first.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(longest).mul_f64(random.random_range(0.5..=1.0))
}
