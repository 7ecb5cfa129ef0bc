//! Lines of their own between nodes and the hub, each a relay as a process: cut and healed, broken and mended.
//!
//! A line that is cut holds what it was given and delivers it late; one that is broken loses it.

use std::{fs::File, process::Stdio};

use anyhow::Context as _;
use rustix::process::{Pid, Signal};
use tokio::{io::AsyncReadExt as _, process::Child};

use super::{PATIENCE, Stage, free_port, kill};

/// A relay between one node and the hub.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) relay: Child,
    pub(super) address: String,
}

impl Stage {
    /// Lays a line of its own from a node that has not joined yet to the hub: a relay, as a process.
    ///
    /// # Errors
    /// When the relay cannot be started.
    pub async fn lay_line(&mut self, node: &str) -> anyhow::Result<()> {
        let address = format!("127.0.0.1:{}", free_port().context("no port is free for the line")?);
        let relay = self.relay(&address).await?;
        self.lines.insert(node.to_owned(), Line { relay, address });
        Ok(())
    }

    async fn relay(&self, address: &str) -> anyhow::Result<Child> {
        let mut command = self.command("crossdock", &["relay", address, &self.link_address()?]);
        let log = File::options().create(true).append(true).open(self.path("lines.log"))?;
        let mut relay = command.stdout(Stdio::piped()).stderr(log).process_group(0).spawn()?;
        // It says one line once it listens.
        let mut said = vec![0; 1];
        let stdout = relay.stdout.as_mut().context("the relay has no output")?;
        tokio::time::timeout(PATIENCE, stdout.read_exact(&mut said)).await.context("the relay does not start")??;
        Ok(relay)
    }

    /// Breaks a node's line with SIGKILL: what is on its way is lost, and so is what is sent until it is mended.
    ///
    /// # Errors
    /// When there is none, or it has ended by itself.
    pub async fn break_line(&mut self, node: &str) -> anyhow::Result<()> {
        let line = self.lines.get_mut(node).with_context(|| format!("{node} has no line"))?;
        kill("the line", &mut line.relay).await
    }

    /// Mends a node's line that was broken. The hub sees the node at another address from then on.
    ///
    /// # Errors
    /// When there is none, or it cannot be started.
    pub async fn mend_line(&mut self, node: &str) -> anyhow::Result<()> {
        let address = self.lines.get(node).map(|line| line.address.clone());
        let address = address.with_context(|| format!("{node} has no line"))?;
        let relay = self.relay(&address).await?;
        self.lines.insert(node.to_owned(), Line { relay, address });
        Ok(())
    }

    /// Cuts a node's line: nothing passes until it is healed, and nobody is told.
    ///
    /// # Errors
    /// When there is none.
    pub fn cut_line(&self, node: &str) -> anyhow::Result<()> {
        self.signal_line(node, Signal::STOP)
    }

    /// Heals a node's line.
    ///
    /// # Errors
    /// When there is none.
    pub fn heal_line(&self, node: &str) -> anyhow::Result<()> {
        self.signal_line(node, Signal::CONT)
    }

    fn signal_line(&self, node: &str, signal: Signal) -> anyhow::Result<()> {
        let relay = self.lines.get(node).and_then(|line| line.relay.id());
        let pid =
            relay.and_then(|id| Pid::from_raw(id.cast_signed())).with_context(|| format!("{node} has no line"))?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }
}
