//! `images/compose.yaml`, as `images/compose-setup` brings it up: hub, Mosquitto, Postgres and three agents, one of which
//! reaches the hub through the broker alone.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sim::containers::engine::{Engine, Kind, in_own_network, is_in_own_network};
use tokio::time::{Duration, Instant, sleep};

use super::{
    ONE,
    house::{House, repository, run},
};

const PATIENCE: Duration = Duration::from_secs(120);
const SCANS: u32 = 5;

/// A project of compose, at an engine of the test's own.
struct Project {
    host: String,
    state: PathBuf,
    releases: PathBuf,
}

impl Project {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("DOCKER_HOST", &self.host)
            .env("COMPOSE", "docker-compose")
            .current_dir(repository().join("images"));
        command.env("CROSSDOCK_STATE", &self.state).env("CROSSDOCK_RELEASES", &self.releases);
        command.env("POSTGRES_IMAGE", "tests/postgres").env("MOSQUITTO_IMAGE", "tests/mosquitto");
        command.env("CROSSDOCK_HUB_IMAGE", image("cloudcore")).env("CROSSDOCK_AGENT_IMAGE", image("edgecore"));
        command
    }

    fn compose(&self, args: &[&str]) -> anyhow::Result<String> {
        run(self.command("docker-compose").args(["-f", "compose.yaml"]).args(args))
    }

    fn crossdock(&self, args: &[&str]) -> anyhow::Result<String> {
        self.compose(&[&["run", "--rm", "-T", "--no-deps", "crossdock"], args].concat())
    }
}

fn image(name: &str) -> String {
    format!("localhost/crossdock/{name}:{}", env!("CARGO_PKG_VERSION"))
}

/// A process workload: it hands in some scans and stays.
fn write_release(project: &Project) -> anyhow::Result<()> {
    let files = project.releases.join("files");
    fs::create_dir_all(&files)?;
    fs::copy("/bin/busybox", files.join("busybox")).context("busybox-static is not installed")?;
    let script = format!(
        "b=$CROSSDOCK_TREE/busybox
for i in $($b seq {SCANS}); do
    until $b wget -q -O - --header 'Content-Type: text/plain' --post-data \"SF$i\" $CROSSDOCK_STREAMS_URL/v1/streams/scans; do
        $b sleep 1
    done
done
exec $b sleep 1000000\n"
    );
    fs::write(files.join("count.sh"), script)?;
    let yaml = "apiVersion: crossdock.io/v1
app: scan-counter
version: 1.0.0
artifacts: [{ source: files }]
workload: { command: busybox, args: [sh, count.sh], soak: 1s, deadline: 60s }
";
    Ok(fs::write(project.releases.join("release.yaml"), yaml)?)
}

/// The items of a list in a document; none where there is no list.
fn items(document: &Value, pointer: &str) -> Vec<Value> {
    document.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default()
}

/// Nodes as the hub has them.
fn nodes(project: &Project) -> anyhow::Result<Vec<Value>> {
    let text = project.crossdock(&["get", "nodes", "-o", "json"])?;
    let list: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    Ok(items(&list, "/items"))
}

fn is_ready(node: &Value) -> bool {
    items(node, "/status/conditions").iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

async fn until(what: &str, mut look: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !look()? {
        ensure!(Instant::now() < deadline, "waited {PATIENCE:?} until {what}");
        sleep(Duration::from_millis(200)).await; // one look to the next
    }
    Ok(())
}

#[tokio::test]
async fn compose_brings_up_a_fleet_that_counts_into_postgres() -> anyhow::Result<()> {
    let _one = ONE.lock().await;
    let (house, _) = House::open().await?;
    if !is_in_own_network() {
        house.stand_in("services")?;
        let first = house.build(&["hub", "agent"])?;
        let archive = fs::read(house.archive("agent"))?;
        let again = house.build(&["agent"])?;
        ensure!(first.ends_with(&again), "the same inputs made another image:\n{first}\n{again}");
        ensure!(fs::read(house.archive("agent"))? == archive, "the same image was written as another archive");
    }
    if !in_own_network("compose::compose_brings_up_a_fleet_that_counts_into_postgres")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let engine = Engine::start(Kind::Docker, folder.path().join("docker")).await?;
    let project = Project {
        host: format!("unix://{}", engine.socket().display()),
        state: folder.path().join("state"),
        releases: folder.path().join("releases"),
    };
    let services = house.stand_in("services")?.display().to_string();
    engine.docker(&["import", "--change", r#"CMD ["/entrypoint.sh"]"#, &services, "tests/postgres"]).await?;
    engine.docker(&["tag", "tests/postgres", "tests/mosquitto"]).await?;
    for name in ["hub", "agent"] {
        engine.docker(&["load", "-q", "-i", &house.archive(name).display().to_string()]).await?;
    }
    let result = play(&project, &engine).await;
    if result.is_err() {
        println!("{}", project.compose(&["ps"]).unwrap_or_default());
        println!("{}", project.compose(&["logs", "--tail", "40"]).unwrap_or_default());
    }
    result?;
    engine.close().await
}

async fn play(project: &Project, engine: &Engine) -> anyhow::Result<()> {
    let setup = || run(&mut project.command("./compose-setup"));
    setup()?;
    until("three nodes are Ready", || {
        let nodes = nodes(project)?;
        Ok(nodes.len() == 3 && nodes.iter().all(is_ready))
    })
    .await?;

    write_release(project)?;
    project.crossdock(&["release", "build", "/releases/release.yaml"])?;
    project.crossdock(&["release", "sign"])?;
    project.crossdock(&["release", "publish"])?;
    let start = ["rollout", "start", "scan-counter@1.0.0", "--to", "all", "--waves", "1,all", "--soak", "1s", "--wait"];
    project.crossdock(&start)?;

    // What every box counted is in Postgres, as rows.
    let query = "select string_agg(node || ' ' || n, ', ' order by node) from (select node, count(*) n \
                 from crossdock_records where stream = 'scans' group by node) c";
    let psql = ["exec", "-T", "postgres", "psql", "-h", "/tmp", "-U", "crossdock", "-tAc", query];
    let all = format!("box-1 {SCANS}, box-2 {SCANS}, box-3 {SCANS}");
    until("all scans are in Postgres", || Ok(project.compose(&psql)?.trim() == all)).await?;

    // One of them came by the broker, and the engine finds all of them healthy.
    let carrier = |node: &Value| {
        let carriers = items(node, "/status/carriers");
        carriers.iter().find(|c| c["inUse"] == true).and_then(|c| c["name"].as_str().map(str::to_owned))
    };
    let mut ways = nodes(project)?.iter().filter_map(carrier).collect::<Vec<_>>();
    ways.sort();
    ensure!(ways == ["mqtt", "udp", "udp"], "{ways:?}");
    let format = "{{.Names}} {{.Status}}";
    let unhealthy = engine.docker(&["ps", "--filter", "health=unhealthy", "--format", format]).await?;
    let healthy = engine.docker(&["ps", "--filter", "health=healthy", "--format", format]).await?;
    ensure!(unhealthy.is_empty() && healthy.lines().count() == 5, "{unhealthy}\n{healthy}");
    let users = engine.docker(&["ps", "-q", "--filter", "name=hub"]).await?;
    let user = engine.docker(&["inspect", "-f", "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}}", &users]).await?;
    ensure!(user == "65532:65532 true", "{user}");

    // Down and set up again, it goes on as it was.
    project.compose(&["down"])?;
    setup()?;
    until("three nodes are Ready again", || {
        let nodes = nodes(project)?;
        Ok(nodes.len() == 3 && nodes.iter().all(is_ready))
    })
    .await?;

    project.compose(&["down", "-v"])?;
    let left = [
        engine.docker(&["ps", "-aq"]).await?,
        engine.docker(&["volume", "ls", "-q"]).await?,
        engine.docker(&["network", "ls", "-q", "--filter", "type=custom"]).await?,
    ];
    ensure!(left.iter().all(String::is_empty), "down left something: {left:?}");
    Ok(())
}
