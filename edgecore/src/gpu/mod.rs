//! The NVIDIA GPUs of the box: what they are, how they do, and which app has which.
//!
//! | module | what it holds |
//! |---|---|
//! | [`look`] | what one look at them tells |
//! | [`nvml`] | such a look, by NVIDIA's management library (NVML) |
//! | [`helper`] | the process in which NVML is loaded, and who asks it |
//! | [`known`] | what is known from all looks: inventory, figures, what is wrong. Pure |
//! | [`xid`] | which of NVIDIA's error numbers speak against a GPU |
//! | [`allot`] | which GPUs an app gets. Pure |
//! | [`ledger`] | which GPUs each app has, on disk |
//!
//! [`GpuWatch`] looks every [`LOOK_EVERY`] and owns what is known; the [`ledger::Ledger`] owns who has what. NVML is
//! loaded in a process of its own (`edgecore gpu`), and only on a box with a driver: what NVIDIA's library does when a
//! card or its driver is sick (hang in the kernel, crash, keep on to a driver that was replaced) it does there, and the
//! agent sees an answer that does not come. A box without the driver costs a look at three paths.

pub mod allot;
pub mod helper;
pub mod known;
pub mod ledger;
pub mod look;
pub mod nvml;
pub mod xid;

use std::{fmt, sync::Arc, time::Duration};

use proto::{
    env::BoxFuture,
    object::{GpuInventory, GpuUsage},
    watch,
};
use tokio::{
    sync::Mutex,
    time::{MissedTickBehavior, interval},
};

use self::{
    allot::{Grant, Grants},
    known::Known,
    look::Look,
};

/// Between two looks.
pub const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Looks at the GPUs of a box. The simulator brings its own.
pub trait GpuProbe: Send + fmt::Debug {
    /// One look. Never fails and never takes for ever: what is wrong is part of what is seen.
    fn look(&mut self) -> BoxFuture<'_, Look>;
}

/// What is known of the GPUs, kept up to date while [`GpuWatch::run`] runs. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct GpuWatch {
    probe: Arc<Mutex<Option<Box<dyn GpuProbe>>>>,
    known: watch::Sender<Known>,
    /// Written by the [`ledger::Ledger`] alone.
    grants: watch::Sender<Grants>,
}

impl GpuWatch {
    /// Looks with `probe`.
    #[must_use]
    pub fn new(probe: Box<dyn GpuProbe>) -> GpuWatch {
        GpuWatch::of(Some(probe))
    }

    /// A box without GPUs.
    #[must_use]
    pub fn none() -> GpuWatch {
        GpuWatch::of(None)
    }

    fn of(probe: Option<Box<dyn GpuProbe>>) -> GpuWatch {
        let known = Known { looks: u64::from(probe.is_none()), ..Known::default() };
        let grants = watch::channel(Grants::new()).0;
        GpuWatch { probe: Arc::new(Mutex::new(probe)), known: watch::channel(known).0, grants }
    }

    /// What is known, as it changes.
    #[must_use]
    pub fn known(&self) -> watch::Receiver<Known> {
        self.known.subscribe()
    }

    /// Waits for news of the GPUs, figures too, or of who has them.
    #[must_use]
    pub fn news(&self) -> News {
        News { known: self.known.subscribe(), grants: self.grants.subscribe() }
    }

    /// Which GPUs there are, and who has them. `None` where there is nothing of NVIDIA's.
    #[must_use]
    pub fn inventory(&self) -> Option<GpuInventory> {
        let mut inventory = self.known.borrow().inventory()?;
        let grants = self.grants.borrow();
        for gpu in &mut inventory.devices {
            let holds = |grants: &[Grant]| grants.iter().any(|grant| grant.uuids.contains(&gpu.uuid));
            gpu.apps = grants.iter().filter(|(_, own)| holds(own)).map(|(app, _)| app.clone()).collect();
        }
        inventory.bound();
        Some(inventory)
    }

    /// Figures of the GPUs that answer.
    #[must_use]
    pub fn usage(&self) -> Vec<GpuUsage> {
        self.known.borrow().usage()
    }

    /// Whether there is a GPU that apps can be given; `None` before the first look.
    #[must_use]
    pub fn serves(&self) -> Option<bool> {
        let known = self.known.borrow();
        (known.looks > 0).then(|| known.serves())
    }

    /// Looks until it is dropped.
    pub async fn run(&self) {
        if self.probe.lock().await.is_none() {
            return std::future::pending().await;
        }
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.look().await;
        }
    }

    /// Looks once, now. Takes as long as the probe does.
    pub async fn look(&self) {
        let mut probe = self.probe.lock().await;
        if let Some(probe) = probe.as_mut() {
            let look = probe.look().await;
            self.take(look); // one after the other, as they were looked
        }
    }

    /// Takes note of a look; who waits is woken when it tells anything new.
    pub(crate) fn take(&self, look: Look) {
        self.known.send_if_modified(|known| {
            let next = known.after(look);
            for change in known.changes(&next) {
                tracing::warn!("{change}");
            }
            let changed = *known != next;
            *known = next;
            changed
        });
    }
}

/// Waits for news of the GPUs, or of who has them.
#[derive(Debug, Clone)]
pub struct News {
    known: watch::Receiver<Known>,
    grants: watch::Receiver<Grants>,
}

impl News {
    /// Returns when there are any. Cancel safe.
    pub async fn changed(&mut self) {
        // Both arms are watches, which lose nothing.
        let ended = tokio::select! {
            biased;
            changed = self.known.changed() => changed,
            changed = self.grants.changed() => changed,
        };
        if ended.is_err() {
            std::future::pending::<()>().await; // the agent is going away
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use look::Driver;

    #[derive(Debug)]
    struct Absent(u32);

    impl GpuProbe for Absent {
        fn look(&mut self) -> BoxFuture<'_, Look> {
            self.0 += 1;
            Box::pin(async { Look { driver: Driver::Absent { why: "no driver".into() }, devices: vec![] } })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_box_without_a_driver_is_looked_at_again_and_nothing_is_told_twice() {
        let watch = GpuWatch::new(Box::new(Absent(0)));
        let mut known = watch.known();
        let running = tokio::spawn({
            let watch = watch.clone();
            async move { watch.run().await }
        });
        known.changed().await.unwrap();
        let first = known.borrow_and_update().clone();
        assert_eq!((first.looks, first.inventory()), (1, None));
        tokio::time::sleep(LOOK_EVERY * 5).await;
        assert!(!known.has_changed(), "nothing is new");
        running.abort();
    }
}
