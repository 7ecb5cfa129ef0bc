//! An app that one box of a site runs, end to end: real hub, agents, processes and commands. What runs is read from
//! the kernel's list of processes, not from what anybody says.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use cloudcore::stage::{self, Stage, write_program};
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

const BOXES: [&str; 3] = ["box-1", "box-2", "box-3"];
const APP: &str = "counter";

fn write_release(stage: &Stage, version: &str, requests: &str) -> anyhow::Result<()> {
    let folder = stage.path(&format!("v{version}"));
    write_program(&folder.join("files/bin/count"), "#!/bin/sh\nwhile :; do sleep 1; done\n")?;
    let yaml = format!(
        "apiVersion: crossdock.io/v1
app: {APP}
version: {version}
artifacts: [{{ source: files }}]
workload: {{ command: bin/count, requests: {requests}, soak: 1s, deadline: 10s, stopGrace: 2s }}
"
    );
    Ok(fs::write(folder.join("release.yaml"), yaml)?)
}

async fn publish(stage: &Stage, version: &str, requests: &str) -> anyhow::Result<()> {
    write_release(stage, version, requests)?;
    stage.publish(&format!("v{version}")).await
}

/// The boxes below `root` on which the app's program runs, by the command lines of all processes.
fn on(root: &str) -> Vec<&'static str> {
    let mut found = vec![];
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).into_owned();
        // The agent's shim names it, too; the program is the script that a shell was given.
        if line.starts_with("/bin/sh\0") && line.contains("bin/count") {
            found.extend(BOXES.into_iter().filter(|node| line.contains(&format!("{root}/{node}/"))));
        }
    }
    found.sort_unstable();
    found.dedup(); // a shell that is about to become another program is there twice
    found
}

/// Looks all the time at how many boxes run it.
struct Watch {
    most: Arc<Mutex<Vec<&'static str>>>,
    task: JoinHandle<()>,
}

impl Watch {
    fn start(root: String) -> Watch {
        let most = Arc::new(Mutex::new(vec![]));
        let note = most.clone();
        let task = tokio::spawn(async move {
            let mut every = interval(Duration::from_millis(20));
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                every.tick().await;
                let now = on(&root);
                let mut most = note.lock().unwrap_or_else(PoisonError::into_inner);
                if now.len() > most.len() {
                    *most = now;
                }
            }
        });
        Watch { most, task }
    }

    fn most(&self) -> Vec<&'static str> {
        self.most.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn one_box_of_a_site_runs_it_and_another_takes_over() -> anyhow::Result<()> {
    let mut stage = Stage::open(None, stage::programs().await?, false)?;
    stage.init_hub().await?;
    stage.init_repository().await?;
    for node in BOXES {
        stage.join(node, "hz-01").await?;
        stage.start_agent(node)?;
    }
    let root = stage.path("").to_string_lossy().trim_end_matches('/').to_owned();
    publish(&stage, "1.0.0", "{ memory: 64Mi }").await?;
    let ready = |node: &proto::object::Node| node.status.phase == proto::object::NodePhase::Ready;
    stage.wait_for_nodes("all boxes are Ready", ready).await?;

    // 1. What would be chosen, and then is.
    let release = format!("{APP}@1.0.0");
    let plan = stage.crossdock(&["rollout", "plan", &release, "--to", "all", "--per-site", "1"]).await?;
    ensure!(plan.contains("chosen: ") && plan.contains("not chosen, though it would do: "), "{plan}");
    let watch = Watch::start(root.clone());
    let start = ["rollout", "start", "--strategy", "all-at-once", &release, "--to", "all", "--per-site", "1", "--wait"];
    stage.crossdock(&start).await?;
    stage.wait_until("one box runs it", || on(&root).len() == 1).await?;
    let first = *on(&root).first().context("it ended")?;
    let described = stage.crossdock(&["describe", "node", first]).await?;
    ensure!(described.contains("of which counter 64 MiB is asked"), "{described}");

    // 2. Drained: it ends there, and then begins elsewhere.
    stage.crossdock(&["drain", first]).await?;
    stage.wait_until("another box runs it", || on(&root).iter().any(|node| *node != first)).await?;
    let second = *on(&root).first().context("it ended")?;

    // 3. The first is back, and the second dies without a word: it may go on, so nobody takes over.
    stage.crossdock(&["undrain", first]).await?;
    stage.kill_agent(second).await?;
    stage.crossdock(&["drain", second]).await?;
    stage.start_agent(second)?;
    stage.wait_until("it moved again", || on(&root).iter().any(|node| *node != second)).await?;
    ensure!(watch.most().len() == 1, "it ran on {:?} at once", watch.most());

    // 4. More than any box has: nobody begins it, and the arithmetic is there.
    publish(&stage, "2.0.0", "{ memory: 900Gi }").await?;
    let release = format!("{APP}@2.0.0");
    let plan = ["rollout", "plan", &release, "--to", "all", "--per-site", "1"];
    let (code, said) = stage.try_run("crossdock", &plan).await?;
    ensure!(code == 4 && said.contains("none of the selected nodes could ever hold it"), "{code}: {said}");
    ensure!(said.contains("it needs 900 GiB; box-"), "{said}");
    let third = *on(&root).first().context("it ended")?;
    stage.crossdock(&["allocate", third, "--overcommit-memory", "100"]).await?;
    let described = stage.crossdock(&["describe", "node", third]).await?;
    ensure!(described.contains("GiB x 100.0 = "), "{described}");
    drop(watch);

    // 5. Several people change one box at once, while its own word changes all the time: nobody's change is lost.
    let apps: Vec<String> = (1..=6).map(|number| format!("app-{number}")).collect();
    let pins: Vec<_> = apps.iter().map(|app| stage.command("crossdock", &["pin", third, app]).output()).collect();
    for output in futures_util::future::join_all(pins).await {
        let output = output?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let nodes = stage.nodes().await?;
    let node = nodes.iter().find(|node| node.name() == third).context("it is gone")?;
    ensure!(apps.iter().all(|app| node.spec.pinned.contains(app.as_str())), "{:?}", node.spec.pinned);
    stage.close().await
}
