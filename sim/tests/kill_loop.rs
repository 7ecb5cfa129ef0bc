//! `kill -9` of the agent, of the hub, and of both, at every stage of an install.
//!
//! The stage is aimed at, not hoped for: the agent is frozen (SIGSTOP) every millisecond, its disk says
//! how far it is, and where it stands at the wanted stage the victim dies while the agent is frozen.
//!
//! The workload is its own witness: at each start it appends the digest of its own file to a log in its
//! data folder. Whatever was killed when, the node must converge, only published bytes may ever have
//! run, and some release must always be left to run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use cloudcore::stage::{self, Stage, write_program};
use edgecore::{
    apps::slot::{self, Slot},
    config::Paths,
    driver::records::Folder,
};
use proto::{digest::Digest, durable::Record, object::UpdatePhase};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

const NODE: &str = "box-1";
const VICTIMS: [&str; 3] = ["agent", "hub", "both"];
/// Rounds for a stage and victim before the test gives up on hitting it.
const TRIES: u32 = 8;

/// How far an install is, told from the agent's disk alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// Nothing of the new release is here.
    Assigned,
    /// Parts of it are.
    Downloading,
    /// All of it is; the old one runs.
    Staged,
    /// The old one is stopped, and the slot says nothing of it yet.
    Stopped,
    /// The slot says that the new one is on trial; it does not run yet.
    Switched,
    /// The new one runs on trial.
    OnTrial,
    /// The slot says that the new one is good.
    Confirmed,
}

const MOMENTS: [Moment; 7] = [
    Moment::Assigned,
    Moment::Downloading,
    Moment::Staged,
    Moment::Stopped,
    Moment::Switched,
    Moment::OnTrial,
    Moment::Confirmed,
];

impl Moment {
    /// Reads the disk of an agent that is frozen or dead.
    fn of(data: &Path, version: &str) -> anyhow::Result<Moment> {
        let paths = Paths::new(data);
        let app = paths.apps().join("witness");
        let slot: Slot = slot::load(&Record::at(app.join("slot")))?;
        let is_new = |release: &proto::object::ReleaseRef| release.version.as_str() == version;
        let run = Folder::at(paths.driver().join("witness"));
        let launch = run.launch()?;
        let runs = match &launch {
            Some(launch) if run.holder()?.is_some() => run.running(launch)?.is_some(),
            _ => false,
        };
        if slot.active.as_ref().is_some_and(|a| is_new(&a.release)) {
            return Ok(Moment::Confirmed);
        }
        if slot.trial.as_ref().is_some_and(|t| is_new(&t.installed.release)) {
            let runs = runs && launch.is_some_and(|l| is_new(&l.release));
            return Ok(if runs { Moment::OnTrial } else { Moment::Switched });
        }
        // What is neither of the slot nor whole is the new one on its way.
        let kept: BTreeSet<String> = slot.kept().map(|d| d.hex()).collect();
        let mut moment = Moment::Assigned;
        for entry in fs::read_dir(app.join("releases"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if kept.contains(&name) {
                continue;
            }
            let found = match name.strip_suffix(".tmp") {
                Some(_) => Moment::Downloading,
                None if runs => Moment::Staged,
                None => Moment::Stopped,
            };
            moment = moment.max(found);
        }
        Ok(moment)
    }
}

/// Freezes a process, and returns once it is frozen.
fn freeze(pid: u32) -> anyhow::Result<()> {
    let raw = Pid::from_raw(pid.cast_signed()).context("the agent has no pid")?;
    kill_process(raw, Signal::STOP)?;
    loop {
        // `pid (comm) state`: every thread stops before the process counts as stopped.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        match stat.rsplit(") ").next().and_then(|rest| rest.chars().next()) {
            Some('T') => return Ok(()),
            Some('Z') | None => anyhow::bail!("the agent ended by itself"),
            Some(_) => std::thread::yield_now(),
        }
    }
}

fn thaw(pid: u32) -> anyhow::Result<()> {
    Ok(kill_process(Pid::from_raw(pid.cast_signed()).context("the agent has no pid")?, Signal::CONT)?)
}

/// Lets the agent run until it is at `wanted` or beyond, and leaves it frozen there.
async fn freeze_at(stage: &Stage, wanted: Moment, version: &str) -> anyhow::Result<Moment> {
    let pid = stage.agent_pid(NODE).context("no agent runs")?;
    let deadline = Instant::now() + stage::PATIENCE;
    loop {
        freeze(pid)?;
        let moment = Moment::of(&stage.path(NODE), version)?;
        if moment >= wanted {
            return Ok(moment);
        }
        thaw(pid)?;
        ensure!(Instant::now() < deadline, "the install came to {moment:?} and not to {wanted:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Builds and publishes version `n`: a script that vouches for itself, and ballast that takes a while to fetch.
async fn publish(stage: &Stage, n: u32) -> anyhow::Result<Digest> {
    let folder = stage.path(&format!("witness-{n}"));
    fs::create_dir_all(folder.join("bin"))?;
    let script = format!(
        "#!/bin/sh\n# version {n}\necho \"$(sha256sum \"$0\" | cut -d' ' -f1)\" >> \"$CROSSDOCK_DATA/ran\"\nexec sleep 100000\n"
    );
    let program = folder.join("bin/witness");
    write_program(&program, &script)?;
    let ballast: Vec<u8> =
        (0..64_u32).flat_map(|i| Digest::of(&(i + 1000 * n).to_be_bytes()).as_bytes().repeat(2048)).collect();
    fs::write(folder.join("ballast"), ballast)?;
    let yaml = format!(
        "apiVersion: crossdock.io/v1\napp: witness\nversion: {n}.0.0\nartifacts:\n  - {{ source: bin, target: bin }}\n  \
         - {{ source: ballast }}\nworkload:\n  command: bin/witness\n  soak: 300ms\n  deadline: 20s\n  stopGrace: 1s\n"
    );
    fs::write(folder.join("release.yaml"), yaml)?;
    stage.publish(&format!("witness-{n}")).await?;
    Ok(Digest::of(script.as_bytes()))
}

/// Starts the rollout of a version, kills `victim` when the install is at `wanted`, and waits until the
/// version runs. Returns where it was killed.
async fn round(stage: &mut Stage, version: &str, wanted: Moment, victim: &str) -> anyhow::Result<Moment> {
    stage
        .crossdock(&["rollout", "start", &format!("witness@{version}"), "--strategy", "all-at-once", "--to", "all"])
        .await?;
    let moment = freeze_at(stage, wanted, version).await?;
    let agent = stage.agent_pid(NODE).context("no agent runs")?;
    if victim != "hub" {
        stage.kill_agent(NODE).await?; // SIGKILL reaches what is frozen
    }
    if victim != "agent" {
        stage.kill_hub().await?;
    }
    if victim == "hub" {
        thaw(agent)?;
    }
    if victim != "agent" {
        stage.start_hub().await?;
    }
    if victim != "hub" {
        stage.start_agent(NODE)?;
    }
    stage
        .wait_for_nodes(&format!("{version} runs after kill -9 of {victim} at {moment:?}"), |node| {
            node.status.workloads.get("witness").is_some_and(|w| {
                let running = w.running.as_ref();
                w.phase == UpdatePhase::Succeeded
                    && running.is_some_and(|r| r.ready && r.release.version.as_str() == version)
            })
        })
        .await?;
    Ok(moment)
}

#[tokio::test]
async fn kill_nine_at_every_stage_converges() -> anyhow::Result<()> {
    let mut stage = Stage::open(None, stage::programs().await?, false)?;
    stage.init_hub().await?;
    stage.init_repository().await?;
    stage.join(NODE, "hz-01").await?;
    stage.start_agent(NODE)?;
    let mut published = BTreeSet::from([publish(&stage, 1).await?]);
    stage
        .crossdock(&["rollout", "start", "witness@1.0.0", "--strategy", "all-at-once", "--to", "all", "--wait"])
        .await?;

    let mut hits: BTreeMap<(&str, Moment), u32> = BTreeMap::new();
    let mut n = 1;
    for wanted in MOMENTS {
        for victim in VICTIMS {
            let mut tries = 0;
            while !hits.contains_key(&(victim, wanted)) {
                ensure!(tries < TRIES, "{TRIES} rounds did not catch {wanted:?}: {hits:?}");
                (n, tries) = (n + 1, tries + 1);
                published.insert(publish(&stage, n).await?);
                let hit = round(&mut stage, &format!("{n}.0.0"), wanted, victim).await?;
                *hits.entry((victim, hit)).or_default() += 1;
            }
        }
    }

    let ran = fs::read_to_string(stage.path(NODE).join("apps/witness/data/ran")).context("the witness never ran")?;
    for line in ran.lines() {
        let digest = Digest::from_hex(line)?;
        ensure!(published.contains(&digest), "bytes ran that nobody published: {line}");
    }
    println!("{} rounds, {} starts, killed at: {hits:?}", n - 1, ran.lines().count());
    stage.close().await
}
