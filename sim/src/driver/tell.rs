//! What instances tell of themselves, each second.

use std::{convert::Infallible, time::Duration};

use edgecore::{
    driver::side::app_of,
    metrics::{Metrics, Told},
};
use proto::{name::Name, object::metrics::CAMERAS_LOST};
use tokio::time::sleep;

use super::{SimDriver, process::Process};

impl SimDriver {
    /// Hands what instances tell of themselves to an agent, for as long as that lives.
    pub async fn tell(&self, metrics: Metrics) -> Infallible {
        for second in 0_u64.. {
            while !self.lock().apps.values().any(|process| !process.tells.is_empty()) {
                self.tells.notified().await;
            }
            for told in self.told(second) {
                // An agent that does not know it yet says so, as it would to a real one.
                metrics.take(told).ok();
            }
            sleep(Duration::from_secs(1)).await;
        }
        std::future::pending().await
    }

    /// What those that run tell in a second.
    fn told(&self, second: u64) -> Vec<Told> {
        let state = self.lock();
        let tells = |process: &&Process| {
            process.instance.exit.is_none() && !process.tells.is_empty() && second.is_multiple_of(process.tells_every_s)
        };
        let told = |(key, process): (&Name, &Process)| {
            let mut values = process.tells.clone();
            if let (true, Ok(lost)) = (values.contains_key("cameras"), CAMERAS_LOST.parse()) {
                values.insert(lost, state.cameras_lost.into());
            }
            if let (Some(metric), Some(backlog)) = (&process.follows, state.backlog) {
                values.insert(metric.clone(), backlog.into());
            }
            Told { app: app_of(key), digest: process.instance.release.digest, replica: None, values }
        };
        state.apps.iter().filter(|(_, process)| tells(process)).map(told).collect()
    }

    /// Whether anything runs whose replicas follow what it tells.
    #[must_use]
    pub fn follows_backlog(&self) -> bool {
        self.lock().apps.values().any(|process| process.instance.exit.is_none() && process.follows.is_some())
    }

    /// Has instances tell so much of what their replicas follow; none: what their release says.
    pub fn set_backlog(&self, backlog: Option<u32>) {
        self.lock().backlog = backlog;
    }

    /// Pulls the plugs of so many cameras of the box, or of none any more.
    pub fn lose_cameras(&self, count: u32) {
        self.lock().cameras_lost = count;
        self.trace.line(&self.host, format_args!("{count} cameras are lost"));
    }
}
