//! What the release engineer does on a stage: a repository, programs in folders, releases published and rolled out.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::Context as _;

use super::Stage;

impl Stage {
    /// Makes the repository `repo`, with its keys, and has the hub take its root.
    ///
    /// # Errors
    /// When one of the commands fails.
    pub async fn init_repository(&self) -> anyhow::Result<()> {
        self.crossdock(&["release", "init", "repo"]).await?;
        self.crossdock(&["release", "publish", "--repo", "repo"]).await.map(drop)
    }

    /// Builds the `release.yaml` in a folder of the stage, signs and publishes it.
    ///
    /// # Errors
    /// When one of the commands fails.
    pub async fn publish(&self, folder: &str) -> anyhow::Result<()> {
        self.crossdock(&["release", "build", &format!("{folder}/release.yaml"), "--repo", "repo"]).await?;
        self.sign().await
    }

    /// Signs and publishes what the repository has.
    ///
    /// # Errors
    /// When one of the commands fails.
    pub async fn sign(&self) -> anyhow::Result<()> {
        self.crossdock(&["release", "sign", "--repo", "repo"]).await?;
        self.crossdock(&["release", "publish", "--repo", "repo"]).await.map(drop)
    }

    /// Rolls a release out to all boxes at once; with `wait` until it is healthy everywhere.
    ///
    /// # Errors
    /// When the hub refuses, or the rollout that is waited for fails.
    pub async fn roll_out(&self, release: &str, wait: bool) -> anyhow::Result<()> {
        let mut args = vec!["rollout", "start", "--strategy", "all-at-once", release, "--to", "all"];
        args.extend(wait.then_some("--wait"));
        self.crossdock(&args).await.map(drop)
    }
}

/// Writes a program that anybody may run, and the folders above it.
///
/// # Errors
/// When the file system refuses.
pub fn write_program(path: &Path, text: &str) -> anyhow::Result<()> {
    path.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .with_context(|| format!("make the folder of {}", path.display()))?;
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}
