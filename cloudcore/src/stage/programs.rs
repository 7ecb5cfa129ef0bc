//! Which programs a stage starts: those beside this one, built first where cargo is at hand.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tokio::process::Command;

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
    agent: PathBuf,
}

impl Programs {
    /// A program of Crossdock.
    #[must_use]
    pub fn path(&self, program: &str) -> PathBuf {
        if program == "edgecore" { self.agent.clone() } else { self.folder.join(program) }
    }
}

/// The programs beside this one. Started by cargo, it builds them first, so that they are of the same source.
///
/// # Errors
/// When cargo cannot build them.
pub async fn programs() -> anyhow::Result<Programs> {
    let this = std::env::current_exe().context("find this program")?;
    let mut folder = this.parent().context("find the folder of this program")?;
    if folder.ends_with("deps") {
        folder = folder.parent().unwrap_or(folder); // a test
    }
    // Cargo names the folder after the profile, but for the first one.
    let profile = folder.file_name().and_then(|name| name.to_str()).filter(|name| *name != "debug").unwrap_or("dev");
    // The whole workspace is selected, as it is by the README's commands: a part of it would be another choice of
    // features, and rebuild every dependency.
    cargo_build(&["--workspace", "--bin", "cloudcore", "--bin", "crossdock", "--bin", "edgecore"], profile).await?;
    Ok(Programs { folder: folder.to_owned(), agent: folder.join("edgecore") })
}

/// As [`programs`], with the agent as it ships: built with the profile `edge`, and by itself, for the features that
/// other crates want of a library would be memory of every box.
///
/// # Errors
/// When cargo cannot build them.
pub async fn shipped_programs() -> anyhow::Result<Programs> {
    let programs = programs().await?;
    cargo_build(&["--package", "edgecore", "--bin", "edgecore"], "edge").await?;
    let shipped = programs.folder.with_file_name("edge").join("edgecore");
    Ok(if shipped.exists() { Programs { agent: shipped, ..programs } } else { programs })
}

fn is_about_a_package(variable: &std::ffi::OsStr) -> bool {
    let about = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_"];
    about.iter().any(|prefix| variable.as_encoded_bytes().starts_with(prefix.as_bytes()))
}

async fn cargo_build(what: &[&str], profile: &str) -> anyhow::Result<()> {
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("find the workspace")?;
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--profile", profile]).args(what);
    // What the cargo around us tells of its own package would make the build scripts of others run anew.
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_about_a_package(name)) {
        build.env_remove(name);
    }
    if !build.current_dir(workspace).status().await?.success() {
        bail!("cargo could not build the programs; see above");
    }
    Ok(())
}
