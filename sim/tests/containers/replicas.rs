//! Replicas as containers: as many as a reported number asks for, whatever happens to them or to the agent.
//!
//! Each reports the number that stands in the file `backlog` of the data that they share, from the network of the box.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use cloudcore::stage;
use proto::object::{Node, ReplicaStatus};
use sim::containers::{
    engine::{Engine, Kind, in_own_network},
    yard::{self, APP, NODE, Program},
};

use super::ONE_ENGINE;

/// Notes that it runs, and reports.
const REPORT: &str = r#"echo $CROSSDOCK_VERSION >> $CROSSDOCK_DATA/runs-$CROSSDOCK_REPLICA
at=${CROSSDOCK_STREAMS_URL#http://}
while true; do
    read backlog < $CROSSDOCK_DATA/backlog
    body="{\"app\":\"$CROSSDOCK_APP\",\"digest\":\"$CROSSDOCK_DIGEST\",\"values\":{\"backlog\":$backlog}}"
    head="PUT /v1/metrics HTTP/1.1\r\nHost: $at\r\nContent-Length: ${#body}\r\nConnection: close\r\n\r\n"
    printf "$head%s" "$body" | busybox nc -w 1 ${at%:*} ${at#*:} > /dev/null
    sleep 0.2
done
"#;
const REPLICAS: &str = "  replicas: { min: 1, max: 3, metric: backlog, target: 100, stabilizationWindow: 1s }";

/// So many are to run, and do.
fn has(node: &Node, count: u32) -> bool {
    let replicas = yard::app(node, APP).and_then(|app| app.replicas.as_ref());
    let counts = |r: &ReplicaStatus| [r.current_replicas, r.ready_replicas, r.desired_replicas];
    replicas.map(counts) == Some([count; 3])
}

/// The folder that they share.
struct Data(PathBuf);

impl Data {
    fn set_backlog(&self, backlog: u32) -> std::io::Result<()> {
        let next = self.0.join("backlog.new");
        fs::write(&next, format!("{backlog}\n"))?;
        fs::rename(next, self.0.join("backlog"))
    }

    /// How often any was started.
    fn starts(&self) -> usize {
        let lines = |path: &Path| fs::read_to_string(path).unwrap_or_default().lines().count();
        (0..3).map(|replica| lines(&self.0.join(format!("runs-{replica}")))).sum()
    }
}

async fn running(engine: &Engine) -> anyhow::Result<BTreeSet<String>> {
    Ok(engine.docker(&["ps", "-q", "--no-trunc"]).await?.lines().map(ToOwned::to_owned).collect())
}

#[tokio::test]
async fn replicas_follow_a_number_and_are_left_alone_by_what_happens_to_others() -> anyhow::Result<()> {
    let _one = ONE_ENGINE.lock().await;
    if !in_own_network("replicas::replicas_follow_a_number_and_are_left_alone_by_what_happens_to_others")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let engine = Engine::start(Kind::Docker, folder.path().join("docker")).await?;
    let mut stage = yard::hub().await?;
    stage.join(NODE, "hz-01").await?;
    // An agent that comes back is found where it was.
    let (socket, port) = (engine.socket(), stage::free_port().context("no port is free")?);
    let settings = format!(
        "[containers]\nsocket = \"{}\"\n[streams]\nhttp = \"127.0.0.1:{port}\"\nmqtt = \"127.0.0.1:0\"\n",
        socket.display()
    );
    fs::write(stage.path(NODE).join("agent.toml"), settings)?;
    let data = Data(stage.path(NODE).join("apps").join(APP).join("data"));
    fs::create_dir_all(&data.0)?;
    data.set_backlog(0)?;
    stage.start_agent(NODE)?;
    let program =
        Program { script: REPORT, container: "    network: host", workload: REPLICAS, ..Program::serves("1.0.0") };
    yard::release(&stage, &program).await?;
    stage.wait_for_nodes("one runs", |n| has(n, 1)).await?;
    let first = running(&engine).await?;

    // More to do, and more who do it.
    data.set_backlog(250)?;
    stage.wait_for_nodes("three run", |n| has(n, 3)).await?;
    let three = running(&engine).await?;
    ensure!(three.len() == 3 && three.is_superset(&first) && data.starts() == 3, "{first:?} {three:?}");

    // The agent dies and comes back; then one of them is killed, and it alone is another one.
    stage.kill_agent(NODE).await?;
    stage.start_agent(NODE)?;
    let killed = three.difference(&first).next().context("there is a second one")?;
    engine.docker(&["kill", killed]).await?;
    stage.wait_until("it is started again", || data.starts() == 4).await?;
    stage.wait_for_nodes("three run again", |n| has(n, 3)).await?;
    let again = running(&engine).await?;
    let stayed: BTreeSet<_> = three.iter().filter(|id| *id != killed).cloned().collect();
    ensure!(again.len() == 3 && again.is_superset(&stayed) && !again.contains(killed), "{three:?} {again:?}");

    // Nothing to do: the first one is left.
    data.set_backlog(0)?;
    stage.wait_for_nodes("one is left", |n| has(n, 1)).await?;
    ensure!(running(&engine).await? == first && data.starts() == 4, "{first:?}");

    // All of it goes, with three of them at work.
    data.set_backlog(250)?;
    stage.wait_for_nodes("three run", |n| has(n, 3)).await?;
    yard::take_away(&stage).await?;
    stage.wait_for_nodes("the app is gone", |n| n.status.workloads.is_empty()).await?;
    let left = engine.docker(&["ps", "-aq"]).await?;
    ensure!(left.is_empty(), "{left}");
    engine.close().await?;
    stage.close().await
}
