//! `kill -9` of the agent, of the hub, and of both, swept over every stage of an install.
//!
//! The workload is its own witness: at each start it appends the digest of its own file to a log in its
//! data folder. Whatever was killed when, the node must converge, only published bytes may ever have
//! run, and some release must always be left to run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use cloudcore::stage::{self, Stage};
use proto::{digest::Digest, object::UpdatePhase};

const NODE: &str = "box-1";
const VICTIMS: [&str; 3] = ["agent", "hub", "both"];

/// Builds and publishes version `n`: a script that vouches for itself, and ballast that takes a while to fetch.
async fn publish(stage: &Stage, n: u32) -> anyhow::Result<Digest> {
    let folder = stage.path(&format!("witness-{n}"));
    fs::create_dir_all(folder.join("bin"))?;
    let script = format!(
        "#!/bin/sh\n# version {n}\necho \"$(sha256sum \"$0\" | cut -d' ' -f1)\" >> \"$CROSSDOCK_DATA/ran\"\nexec sleep 100000\n"
    );
    let program = folder.join("bin/witness");
    fs::write(&program, &script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let ballast: Vec<u8> =
        (0..64_u32).flat_map(|i| Digest::of(&(i + 1000 * n).to_be_bytes()).as_bytes().repeat(2048)).collect();
    fs::write(folder.join("ballast"), ballast)?;
    let yaml = format!(
        "apiVersion: crossdock.io/v1\napp: witness\nversion: {n}.0.0\nartifacts:\n  - {{ source: bin, target: bin }}\n  \
         - {{ source: ballast }}\nworkload:\n  command: bin/witness\n  soak: 300ms\n  deadline: 20s\n  stopGrace: 1s\n"
    );
    fs::write(folder.join("release.yaml"), yaml)?;
    stage.crossdock(&["release", "build", &format!("witness-{n}/release.yaml"), "--repo", "repo"]).await?;
    stage.crossdock(&["release", "sign", "--repo", "repo"]).await?;
    stage.crossdock(&["release", "publish", "--repo", "repo"]).await?;
    Ok(Digest::of(script.as_bytes()))
}

/// Where the agent stood when it was killed, by its own words.
async fn stage_of_install(stage: &Stage) -> String {
    let Ok((0, text)) = stage.try_run("edgecore", &["status", "--data", NODE, "-o", "json"]).await else {
        return "unreachable".into();
    };
    let status: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let phase = status.pointer("/report/workloads/witness/phase").and_then(|p| p.as_str()).unwrap_or("none");
    phase.to_owned()
}

#[tokio::test]
async fn kill_nine_at_every_stage_converges() -> anyhow::Result<()> {
    let rounds: u32 = std::env::var("KILL_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(30);
    let mut stage = Stage::open(None, stage::programs().await?, false)?;
    stage.init_hub().await?;
    stage.crossdock(&["release", "init", "repo"]).await?;
    stage.crossdock(&["release", "publish", "--repo", "repo"]).await?;
    stage.join(NODE, "hz-01").await?;
    stage.start_agent(NODE)?;
    let mut published = BTreeSet::from([publish(&stage, 1).await?]);
    stage.crossdock(&["rollout", "start", "witness@1.0.0", "--to", "all", "--wait"]).await?;

    let mut killed_at: BTreeMap<String, u32> = BTreeMap::new();
    for round in 0..rounds {
        let version = round + 2;
        published.insert(publish(&stage, version).await?);
        stage.crossdock(&["rollout", "start", &format!("witness@{version}.0.0"), "--to", "all"]).await?;
        // Swept, so that over the rounds every stage is hit; where it hit is counted, not assumed.
        let delay = Duration::from_millis(u64::from(round / 3) * 40);
        tokio::time::sleep(delay).await;
        *killed_at.entry(stage_of_install(&stage).await).or_default() += 1;
        let victim = VICTIMS[round as usize % VICTIMS.len()];
        if victim != "hub" {
            stage.kill_agent(NODE).await?;
        }
        if victim != "agent" {
            stage.kill_hub().await?;
            stage.start_hub().await?;
        }
        if victim != "hub" {
            stage.start_agent(NODE)?;
        }
        let expected = format!("{version}.0.0");
        stage
            .wait_for_nodes(&format!("{expected} runs after kill -9 of {victim} at {delay:?}"), |node| {
                node.status.workloads.get("witness").is_some_and(|w| {
                    let running = w.running.as_ref();
                    w.phase == UpdatePhase::Succeeded
                        && running.is_some_and(|r| r.ready && r.release.version.as_str() == expected)
                })
            })
            .await?;
    }

    let ran = fs::read_to_string(stage.path(NODE).join("apps/witness/data/ran")).context("the witness never ran")?;
    for line in ran.lines() {
        let digest = Digest::from_hex(line)?;
        ensure!(published.contains(&digest), "bytes ran that nobody published: {line}");
    }
    println!("{rounds} rounds, {} starts, killed while: {killed_at:?}", ran.lines().count());
    ensure!(killed_at.len() >= 3, "the sweep hit too few stages: {killed_at:?}");
    stage.close().await
}
