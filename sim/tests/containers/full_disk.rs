//! Disks that fill up: the engine's and the box's, before an image is taken and while it is.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::ensure;
use cloudcore::stage::Stage;
use proto::object::{Node, UpdatePhase};
use sim::containers::{
    engine::{Engine, Kind, in_own_network},
    yard::{self, APP, NODE, Program},
};

use super::ONE_ENGINE;

const MIB: u64 = 1 << 20;
/// A layer that takes a while.
const LAYER_BYTES: usize = 64 << 20;

/// A disk of its own; it is gone with the mounts of the test.
fn disk(at: &Path, mib: u64) -> anyhow::Result<()> {
    fs::create_dir_all(at)?;
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(at).status()?;
    ensure!(mounted.success(), "no disk at {}", at.display());
    Ok(())
}

/// Something else that takes disk until it is dropped.
struct Filler(PathBuf);

impl Filler {
    /// Leaves so much.
    fn leave(disk: &Path, mib: u64) -> anyhow::Result<Filler> {
        let filler = Filler(disk.join("filler"));
        let mut file = File::create(&filler.0)?;
        let free = || rustix::fs::statvfs(disk).map(|stat| stat.f_bavail * stat.f_frsize);
        let block = vec![1; 64 << 10];
        while free()? > mib * MIB && file.write_all(&block).is_ok() {}
        Ok(filler)
    }

    /// Takes all as soon as more of the disk is used than now.
    fn when_it_is_used(disk: &Path) -> anyhow::Result<Filler> {
        let used = |disk: &Path| rustix::fs::statvfs(disk).map(|stat| (stat.f_blocks - stat.f_bfree) * stat.f_frsize);
        let (disk, before) = (disk.to_owned(), used(disk)?);
        let filler = Filler(disk.join("filler"));
        tokio::spawn(async move {
            while used(&disk).is_ok_and(|used| used < before + 8 * MIB) {
                tokio::time::sleep(Duration::from_millis(1)).await; // one look to the next
            }
            Filler::leave(&disk, 0).map(std::mem::forget)
        });
        Ok(filler)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok(); // with its disk, when the test failed
    }
}

/// A version is ordered beside another; while the disk is full the node says so and goes on with what it has, and with
/// the new one by itself as soon as there is room.
async fn waits_and_goes_on(
    stage: &mut Stage,
    engine: &Engine,
    [before, version]: [&str; 2],
    words: &[&str],
    filler: impl FnOnce() -> anyhow::Result<Filler>,
) -> anyhow::Result<()> {
    let first = yard::running(engine).await?;
    yard::publish(stage, &Program { ballast_bytes: LAYER_BYTES, ..Program::serves(version) }).await?;
    let filler = filler()?;
    yard::order(stage, &format!("{APP}@{version}")).await?;
    let waits = |node: &Node| {
        let app = yard::app(node, APP);
        app.is_some_and(|w| {
            w.reason == "DiskFull"
                && w.target.as_ref().is_some_and(|t| t.version.as_str() == version)
                && words.iter().all(|word| w.message.contains(word))
        }) && yard::is_ready(node, before)
    };
    stage.wait_for_nodes("it waits for disk", waits).await?;
    ensure!(yard::running(engine).await? == first, "what ran was disturbed");
    drop(filler);
    stage.wait_for_nodes("it goes on by itself", |node| yard::runs(node, version, UpdatePhase::Succeeded)).await
}

#[tokio::test]
async fn a_full_disk_of_the_engine_is_waited_for() -> anyhow::Result<()> {
    let _one = ONE_ENGINE.lock().await;
    if !in_own_network("full_disk::a_full_disk_of_the_engine_is_waited_for")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let disk_of_engine = folder.path().join("docker");
    disk(&disk_of_engine, 512)?;
    let engine = Engine::start(Kind::Docker, disk_of_engine.clone()).await?;
    let mut stage = yard::open(&engine).await?;
    yard::release(&stage, &Program::serves("1.0.0")).await?;
    // Nothing is begun that does not fit.
    let words = ["the engine needs", "docker/data"];
    let leave = || Filler::leave(&disk_of_engine, 100);
    waits_and_goes_on(&mut stage, &engine, ["1.0.0", "2.0.0"], &words, leave).await?;
    // Something else takes the disk while it is loaded.
    let leave = || Filler::when_it_is_used(&disk_of_engine);
    waits_and_goes_on(&mut stage, &engine, ["2.0.0", "3.0.0"], &[], leave).await?;
    engine.close().await?;
    stage.close().await
}

#[tokio::test]
async fn a_full_disk_of_the_box_is_waited_for() -> anyhow::Result<()> {
    let _one = ONE_ENGINE.lock().await;
    if !in_own_network("full_disk::a_full_disk_of_the_box_is_waited_for")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let engine = Engine::start(Kind::Docker, folder.path().join("docker")).await?;
    let mut stage = yard::hub().await?;
    let disk_of_box = stage.path(NODE);
    disk(&disk_of_box, 512)?;
    yard::join(&mut stage, &engine).await?;
    yard::release(&stage, &Program::serves("1.0.0")).await?;
    let leave = || Filler::leave(&disk_of_box, 100);
    waits_and_goes_on(&mut stage, &engine, ["1.0.0", "2.0.0"], &["of disk are needed"], leave).await?;
    let leave = || Filler::when_it_is_used(&disk_of_box);
    waits_and_goes_on(&mut stage, &engine, ["2.0.0", "3.0.0"], &[], leave).await?;
    engine.close().await?;
    stage.close().await
}
