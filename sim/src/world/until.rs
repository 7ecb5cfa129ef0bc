//! Waiting, in virtual time, until the fleet is as a scenario wants it.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, bail, ensure};
use proto::{
    name::{Name, Version},
    object::{Node, NodeSpec, RolloutPhase, RolloutSpec, UpdatePhase},
};
use tokio::time::{Instant, sleep};

use super::{STEP, World, release::rollout_name};

impl World {
    /// All nodes as the hub has them. What changed since the last call goes to the trace.
    ///
    /// # Errors
    /// When the hub is down.
    pub async fn nodes(&mut self) -> anyhow::Result<BTreeMap<String, Node>> {
        let list = self.hub()?.store().list::<NodeSpec>(None).await?;
        let nodes: BTreeMap<_, _> = list.items.into_iter().map(|node| (node.name().to_owned(), node)).collect();
        for (name, node) in &nodes {
            let text = describe(node);
            if self.seen.get(name) != Some(&text) {
                self.trace.line("hub", format_args!("sees {name}: {text}"));
                self.seen.insert(name.clone(), text);
            }
        }
        Ok(nodes)
    }

    /// Waits, in virtual time, until the hub sees the nodes so.
    ///
    /// # Errors
    /// When that takes longer than `patience`.
    pub async fn until_nodes(
        &mut self,
        patience: Duration,
        what: &str,
        condition: impl Fn(&BTreeMap<String, Node>) -> bool,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let nodes = self.nodes().await?;
            if condition(&nodes) {
                self.trace.line("world", format_args!("{what}"));
                return Ok(());
            }
            if Instant::now() >= deadline {
                let seen: Vec<_> = nodes.iter().map(|(name, node)| format!("{name}: {}", describe(node))).collect();
                bail!("after {patience:?} it is not so that {what}: {}", seen.join("; "));
            }
            sleep(STEP).await;
        }
    }

    /// Waits until these nodes run the newest release of an app that is assigned to them, proved healthy.
    ///
    /// # Errors
    /// When that takes longer than `patience`.
    pub async fn until_done(
        &mut self,
        what: &str,
        app: &str,
        nodes: &[&str],
        patience: Duration,
    ) -> anyhow::Result<()> {
        let app: Name = app.parse()?;
        let done = |node: &Node| {
            node.status.workloads.get(&app).is_some_and(|workload| {
                workload.phase == UpdatePhase::Succeeded
                    && workload
                        .running
                        .as_ref()
                        .is_some_and(|r| r.ready && Some(&r.release) == workload.target.as_ref())
            })
        };
        let all = |all: &BTreeMap<String, Node>| nodes.iter().all(|name| all.get(*name).is_some_and(done));
        self.until_nodes(patience, what, all).await
    }

    /// Waits until a rollout stands there.
    ///
    /// # Errors
    /// When that takes longer than `patience`.
    pub async fn until_rollout(
        &mut self,
        app: &str,
        version: &str,
        phase: RolloutPhase,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let rollout = self.hub()?.store().get::<RolloutSpec>(&rollout_name(app, version)).await?;
            let status = rollout.context("the rollout is gone")?.status;
            if status.phase == phase {
                self.trace.line("hub", format_args!("rollout of {app}@{version}: {phase}"));
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "after {patience:?} the rollout is not {phase}: {status:?}");
            sleep(STEP).await;
        }
    }

    /// How far a node is with an app, as the hub has it.
    ///
    /// # Errors
    /// When the hub is down or there is no such node.
    pub async fn phase(&mut self, name: &str, app: &str) -> anyhow::Result<Option<UpdatePhase>> {
        let (nodes, app) = (self.nodes().await?, app.parse::<Name>()?);
        let node = nodes.get(name).with_context(|| format!("there is no {name}"))?;
        Ok(node.status.workloads.get(&app).map(|workload| workload.phase))
    }

    /// Waits until something of an app runs on a box.
    ///
    /// # Errors
    /// When that takes longer than `patience`.
    pub async fn until_running(&self, name: &str, app: &str, patience: Duration) -> anyhow::Result<Version> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(version) = self.running(name, app)? {
                return Ok(version);
            }
            ensure!(Instant::now() < deadline, "after {patience:?} nothing of {app} runs on {name}");
            sleep(STEP).await;
        }
    }
}

/// What the trace says of a node.
fn describe(node: &Node) -> String {
    let workload = |(app, status): (&Name, &proto::object::WorkloadStatus)| {
        let runs = status.running.as_ref().map_or("nothing", |running| running.release.version.as_str());
        format!(", {app} {} {} runs {runs}", status.phase, status.reason)
    };
    let workloads: String = node.status.workloads.iter().map(workload).collect();
    format!("{} generation {}{workloads}", node.status.phase, node.status.observed_generation)
}
