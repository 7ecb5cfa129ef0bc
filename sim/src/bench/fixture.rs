//! What every bench begins with: a hub that runs the shipped binary, and a release to roll out.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use cloudcore::stage::{Programs, Stage, write_program};

use super::{api::Api, process};

/// The app that benches roll out.
pub const APP: &str = "bench-app";
/// Seconds that its releases must stay healthy: what the workload itself needs.
pub const SOAK_S: u64 = 1;

/// A hub on loopback with a trust root.
#[derive(Debug)]
pub struct Fixture {
    /// The processes.
    pub stage: Stage,
    /// The hub's REST.
    pub api: Api,
    programs: Programs,
}

impl Fixture {
    /// Starts the hub and publishes a trust root.
    ///
    /// # Errors
    /// When a binary is missing or does not do what it should.
    pub async fn open(programs: Programs) -> anyhow::Result<Fixture> {
        let mut stage = Stage::open(None, programs.clone(), false)?;
        stage.init_hub().await?;
        let api = Api::of(&stage.path("hub"), &stage.api_address()?)?;
        stage.init_repository().await?;
        Ok(Fixture { stage, api, programs })
    }

    /// A shipped program.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.path(name)
    }

    /// Builds, signs and publishes a release that sleeps, with `bytes` of incompressible content.
    ///
    /// # Errors
    /// When a command fails.
    pub async fn publish(&self, version: &str, bytes: usize) -> anyhow::Result<()> {
        self.publish_program(version, bytes, "exec sleep 1000000", 60).await
    }

    /// As [`Fixture::publish`], with a shell script of its own that must be healthy after so many seconds.
    ///
    /// # Errors
    /// When a command fails.
    pub async fn publish_program(
        &self,
        version: &str,
        bytes: usize,
        script: &str,
        deadline_s: u64,
    ) -> anyhow::Result<()> {
        let name = format!("{APP}-{version}");
        let files = self.stage.path(&name).join("files");
        write_program(&files.join("bin/app"), &format!("#!/bin/sh\n{script}\n"))?;
        let mut content = vec![0; bytes];
        rand::Rng::fill_bytes(&mut proto::env::Seed::from_u64(1).stream(version), &mut content);
        fs::write(files.join("content.bin"), content)?;
        let yaml = format!(
            "apiVersion: crossdock.io/v1\napp: {APP}\nversion: {version}\nartifacts:\n  - source: files\n\
             workload:\n  command: bin/app\n  soak: {SOAK_S}s\n  deadline: {deadline_s}s\n  stopGrace: 5s\n"
        );
        fs::write(self.stage.path(&name).join("release.yaml"), yaml)?;
        self.stage.publish(&name).await?;
        Ok(())
    }

    /// Starts a rollout of a release to all nodes.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn start_rollout(&self, version: &str) -> anyhow::Result<()> {
        let release = format!("{APP}@{version}");
        self.stage
            .crossdock(&["rollout", "start", &release, "--strategy", "all-at-once", "--to", "all"])
            .await
            .map(drop)
    }

    /// A join token for so many boxes.
    ///
    /// # Errors
    /// When none was printed.
    pub async fn token(&self, uses: usize) -> anyhow::Result<String> {
        let uses = uses.to_string();
        let text = self.stage.crossdock(&["token", "create", "--site", "bench", "--uses", &uses]).await?;
        let token = text.split_whitespace().find(|word| word.starts_with("cdk1."));
        Ok(token.context("`crossdock token create` printed no token")?.to_owned())
    }

    /// Joins a box under a name, through a hub address of the bench's choice.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn join(&self, node: &str, token: &str, hub: &str) -> anyhow::Result<()> {
        let args = ["join", hub, "--token", token, "--name", node, "--data", node];
        self.stage.run("edgecore", &args).await.map(drop)
    }

    /// Process number of the hub.
    ///
    /// # Errors
    /// When it has ended.
    pub fn hub_pid(&self) -> anyhow::Result<u32> {
        self.stage.hub_pid().context("the hub has ended")
    }

    /// Process numbers of the shims under which workloads run.
    #[must_use]
    pub fn shim_pids(&self) -> Vec<u32> {
        process::find("shim", &self.stage.path(""))
    }

    /// The last lines that the hub and a node wrote, for an error.
    #[must_use]
    pub fn last_lines(&self, node: &str) -> String {
        let tail = |name: &str| {
            let text = fs::read_to_string(self.stage.path(&format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let last = lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join(" | ");
            format!("{name} wrote: {last}")
        };
        format!("{}; {}", tail("hub"), tail(node))
    }
}
