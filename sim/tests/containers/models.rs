//! A container that uses a model of its own release: read-only, one of it at a time, and each one proved by it.

use std::fs;

use anyhow::ensure;
use cloudcore::stage::Stage;
use sim::containers::{
    engine::{Engine, Kind, in_own_network},
    yard::{self, NODE, Program},
};

use super::ONE_ENGINE;

const MODEL: &str = "vision-model";
/// Runs with the model that it finds when it starts.
const LOADS: &str = "cat $CROSSDOCK_USES_VISION_MODEL/classes.txt > /tmp/loaded && exec sleep 1000000\n";
const USES: &str = "    uses: [{ app: vision-model, mountPath: /model }]";
const READY: &str = "  probes: { readiness: { exec: { command: [/bin/ls, /tmp/loaded] }, period: 200ms } }";

/// Until whoever uses it proved it.
async fn release_model(stage: &Stage, version: &str) -> anyhow::Result<()> {
    let name = format!("{MODEL}-{version}");
    let folder = stage.path(&name);
    fs::create_dir_all(folder.join("files"))?;
    fs::write(folder.join("files/classes.txt"), version)?;
    let yaml =
        format!("apiVersion: crossdock.io/v1\napp: {MODEL}\nversion: {version}\nartifacts: [{{ source: files }}]\n");
    fs::write(folder.join("release.yaml"), yaml)?;
    stage.publish(&name).await?;
    let (code, text) = yard::roll_out(stage, &format!("{MODEL}@{version}")).await?;
    ensure!(code == 0, "{text}");
    Ok(())
}

#[tokio::test]
async fn a_container_gets_each_model_read_only_and_the_one_before_goes() -> anyhow::Result<()> {
    let _one = ONE_ENGINE.lock().await;
    if !in_own_network("models::a_container_gets_each_model_read_only_and_the_one_before_goes")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let engine = Engine::start(Kind::Docker, folder.path().join("docker")).await?;
    let mut stage = yard::open(&engine).await?;
    release_model(&stage, "1.0.0").await?;
    yard::release(&stage, &Program { script: LOADS, container: USES, workload: READY, ..Program::serves("1.0.0") })
        .await?;
    let mut before = String::new();
    for version in ["1.0.0", "2.0.0", "3.0.0"] {
        if version != "1.0.0" {
            release_model(&stage, version).await?;
        }
        let live = yard::running(&engine).await?;
        ensure!(live != before && live.lines().count() == 1, "{before} {live}");
        let loaded = engine.docker(&["exec", &live, "/bin/cat", "/tmp/loaded", "/model/classes.txt"]).await?;
        ensure!(loaded == version.repeat(2), "{loaded}");
        let written = engine.docker(&["exec", &live, "/bin/touch", "/model/classes.txt"]).await;
        ensure!(written.is_err_and(|e| e.to_string().contains("Read-only file system")), "it may change its model");
        before = live;
    }
    // Of the first one nothing is left on the box: the last two are kept.
    let releases = stage.path(NODE).join("apps").join(MODEL).join("releases");
    let are_two = || fs::read_dir(&releases).is_ok_and(|entries| entries.count() == 2);
    stage.wait_until("the first model is gone", are_two).await?;
    engine.close().await?;
    stage.close().await
}
