//! Keeps one workload running: probes, restarts with back-off. The app's task owns it.

use std::sync::Arc;

use jiff::Timestamp;
use proto::{
    env::Env,
    object::{LastExit, RunState},
};
use tokio::{sync::watch, time::Instant};

use crate::driver::{Driver, DriverError, InstanceSpec};

/// How a workload is, as its supervisor sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// How the process is.
    pub state: RunState,
    /// Whether its readiness probe (or, without one, mere running) says yes.
    pub ready: bool,
    /// Whether its liveness probe (or, without one, mere running) says yes.
    pub live: bool,
    /// Since when it is started, live and ready without a restart; absent while it is not.
    pub healthy_since: Option<Instant>,
    /// Restarts since this supervisor began.
    pub restarts: u32,
    /// When the current process started.
    pub started_at: Option<Timestamp>,
    /// How the last one ended.
    pub last_exit: Option<LastExit>,
    /// Why it is not healthy, for people; empty when it is.
    pub message: String,
}

/// Keeps one instance running until it is stopped or detached. Dropping it detaches.
#[derive(Debug)]
pub struct Supervisor {
    health: watch::Receiver<Health>,
}

impl Supervisor {
    /// Adopts a running instance of the same release, or starts one.
    #[must_use]
    pub fn start(_env: Env, _driver: Arc<dyn Driver>, _spec: InstanceSpec) -> Supervisor {
        let health = Health {
            state: RunState::Starting,
            ready: false,
            live: false,
            healthy_since: None,
            restarts: 0,
            started_at: None,
            last_exit: None,
            message: String::new(),
        };
        Supervisor { health: watch::channel(health).1 }
    }

    /// Its health, as it changes.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Stops the workload and returns when nothing of it is left.
    ///
    /// # Errors
    /// When something of it does not end.
    pub async fn stop(self) -> Result<(), DriverError> {
        Ok(())
    }

    /// Leaves the workload running and unwatched: the agent is shutting down.
    pub fn detach(self) {}
}
