//! The agent put together: what it owns, how it starts and drains.

use std::{future::Future, path::Path, sync::Arc};

use proto::env::Env;

use crate::{
    config::{AgentConfig, ConfigError},
    driver::Driver,
    facts::Facts,
};

/// An agent that is ready to run.
#[derive(Debug)]
pub struct Agent {
    config: AgentConfig,
}

/// The agent could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its data folder is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Agent {
    /// Reads the state of `data_dir`; touches no network.
    ///
    /// # Errors
    /// When nobody joined there, the state is damaged, or another agent runs there.
    pub async fn open(
        data_dir: &Path,
        _env: Env,
        _driver: Arc<dyn Driver>,
        _facts: Facts,
    ) -> Result<Agent, AgentError> {
        Ok(Agent { config: AgentConfig::load(data_dir)? })
    }

    /// Who this node is.
    #[must_use]
    pub fn config(&self) -> &AgentConfig {
        &self.config
    }

    /// Runs until `shutdown`. Workloads are left running.
    ///
    /// # Errors
    /// When local state can no longer be written or read.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
        shutdown.await;
        Ok(())
    }
}
