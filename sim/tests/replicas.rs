//! Replicas that follow a backlog, end to end: real hub, agent and processes, and a queue that all of them work on.
//!
//! The queue is a folder in the app's data. Each replica takes an item now and then, and reports how many wait. While the
//! file `hold` is there nobody takes any, so that the number stands still where the test looks at it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use cloudcore::stage::{self, Stage, write_program};
use proto::object::{Node, ReplicaStatus, UpdatePhase, WorkloadStatus};
use tokio::process::Command;

const APP: &str = "sort";

/// Notes that it runs, and works on the queue until it is stopped.
const WORK: &str = r#"#!/usr/bin/perl
use strict;
use warnings;
use IO::Socket::INET;
my ($data, $replica) = @ENV{qw(CROSSDOCK_DATA CROSSDOCK_REPLICA)};
my ($at) = $ENV{CROSSDOCK_STREAMS_URL} =~ m{^http://(.+)$} or die "no address";
sub note {
    my ($name, $text) = @_;
    open my $file, '>>', "$data/$name" or die "$name: $!";
    print $file "$text\n";
    close $file;
}
sub report {
    my $values = qq("values":{"backlog":$_[0]});
    my $body = qq({"app":"$ENV{CROSSDOCK_APP}","digest":"$ENV{CROSSDOCK_DIGEST}",$values});
    my $agent = IO::Socket::INET->new(PeerAddr => $at, Timeout => 1) or return;
    my $length = length $body;
    print $agent "PUT /v1/metrics HTTP/1.1\r\nHost: $at\r\nContent-Length: $length\r\nConnection: close\r\n\r\n$body";
    1 while <$agent>;
}
note("runs-$replica", "$ENV{CROSSDOCK_VERSION} $$");
print STDERR "replica $replica of $ENV{CROSSDOCK_VERSION} works\n";
while (1) {
    opendir my $queue, "$data/queue" or die "queue: $!";
    my @items = grep { !/^\./ } readdir $queue;
    report(scalar @items);
    if (@items && !-e "$data/hold") {
        note("done-$replica", "1") if unlink "$data/queue/$items[rand @items]";
    }
    select(undef, undef, undef, 0.1);
}
"#;

fn write_release(stage: &Stage, version: &str) -> anyhow::Result<()> {
    let folder = stage.path(&format!("v{version}"));
    write_program(&folder.join("files/bin/work"), WORK)?;
    let yaml = format!(
        "apiVersion: crossdock.io/v1
app: {APP}
version: {version}
artifacts: [{{ source: files }}]
workload:
  command: bin/work
  limits: {{ memory: 64Mi }}
  replicas: {{ min: 1, max: 4, metric: backlog, target: 100, stabilizationWindow: 3s }}
  soak: 1s
  deadline: 20s
  stopGrace: 1s
"
    );
    Ok(fs::write(folder.join("release.yaml"), yaml)?)
}

async fn roll_out(stage: &Stage, version: &str) -> anyhow::Result<()> {
    write_release(stage, version)?;
    stage.publish(&format!("v{version}")).await?;
    stage.roll_out(&format!("{APP}@{version}"), true).await
}

fn workload(node: &Node) -> Option<&WorkloadStatus> {
    node.status.workloads.get(APP)
}

fn replicas(node: &Node) -> Option<&ReplicaStatus> {
    workload(node)?.replicas.as_ref()
}

/// So many are to run, and do.
fn has(node: &Node, count: u32) -> bool {
    replicas(node).is_some_and(|r| (r.current_replicas, r.ready_replicas, r.desired_replicas) == (count, count, count))
}

/// The folder that the replicas share.
struct Data(PathBuf);

impl Data {
    fn lines(&self, name: &str) -> Vec<String> {
        fs::read_to_string(self.0.join(name)).unwrap_or_default().lines().map(ToOwned::to_owned).collect()
    }

    /// Version and process of each replica as it was started last, which lives.
    fn runs(&self) -> BTreeMap<u8, String> {
        let last = |replica: u8| Some((replica, self.lines(&format!("runs-{replica}")).pop()?));
        let lives = |run: &String| run.split(' ').nth(1).is_some_and(|pid| Path::new("/proc").join(pid).exists());
        (0..16).filter_map(last).filter(|(_, run)| lives(run)).collect()
    }

    fn starts(&self) -> usize {
        (0..16).map(|replica| self.lines(&format!("runs-{replica}")).len()).sum()
    }

    fn versions(&self) -> Vec<String> {
        self.runs().values().filter_map(|run| Some(run.split(' ').next()?.to_owned())).collect()
    }
}

#[tokio::test]
async fn replicas_follow_the_backlog_and_outlive_their_agent() -> anyhow::Result<()> {
    let mut stage = Stage::open(None, stage::programs().await?, false)?;
    stage.init_hub().await?;
    stage.init_repository().await?;
    stage.join("box-1", "hz-01").await?;
    // An agent that comes back is found where it was.
    let port = stage::free_port().context("no port is free")?;
    let settings = format!("[streams]\nhttp = \"127.0.0.1:{port}\"\nmqtt = \"127.0.0.1:0\"\n");
    fs::write(stage.path("box-1/agent.toml"), settings)?;
    let data = Data(stage.path(&format!("box-1/apps/{APP}/data")));
    fs::create_dir_all(data.0.join("queue"))?;
    fs::write(data.0.join("hold"), "")?;
    stage.start_agent("box-1")?;
    roll_out(&stage, "1.0.0").await?;
    let says = "1 of 1..4: backlog 0 / 100 per replica would make 0";
    stage.wait_for_nodes("one runs", |n| has(n, 1) && replicas(n).is_some_and(|r| r.message == says)).await?;

    // 1. Work comes, and so do replicas; each says which it is, and all can be seen.
    fs::create_dir(data.0.join("queue.new"))?;
    (0..250).try_for_each(|item| fs::write(data.0.join(format!("queue.new/{item}")), ""))?;
    fs::rename(data.0.join("queue.new"), data.0.join("queue"))?; // all of it at once
    let says = "3 of 1..4: backlog 250 / 100 per replica";
    stage.wait_for_nodes("three run", |n| has(n, 3) && replicas(n).is_some_and(|r| r.message == says)).await?;
    ensure!(data.versions() == ["1.0.0"; 3], "{:?}", data.runs());
    let top = stage.crossdock(&["top", "apps", "-o", "wide"]).await?;
    ensure!(top.contains("3/3") && top.contains(says), "{top}");
    let nodes = stage.crossdock(&["describe", "node", "box-1"]).await?;
    ensure!(nodes.contains(&format!("message: {says}")), "{nodes}");
    let logs = stage.crossdock(&["logs", &format!("box-1/{APP}--r2")]).await?;
    ensure!(logs.contains("replica 2 of 1.0.0 works"), "{logs}");

    // 2. The agent dies and comes back: they are found, and none was touched.
    let before = data.runs();
    stage.kill_agent("box-1").await?;
    stage.start_agent("box-1")?;
    stage
        .wait_for_nodes("all are found again", |n| has(n, 3) && replicas(n).is_some_and(|r| r.message == says))
        .await?;
    ensure!((data.runs(), data.starts()) == (before.clone(), 3), "{before:?} {:?}", data.runs());

    // 3. One that is killed is started again, and the others go on.
    let pid = before.get(&1).and_then(|run| run.split(' ').nth(1)).context("replica 1 has no process")?;
    let killed = Command::new("/bin/sh").args(["-c", &format!("kill -9 {pid}")]).status().await?;
    ensure!(killed.success(), "replica 1 could not be killed");
    stage.wait_until("replica 1 is started again", || data.starts() == 4 && data.runs().len() == 3).await?;
    stage.wait_for_nodes("it is well", |n| has(n, 3)).await?;

    // 4. An update: one alone is tried, then all are of the new release.
    roll_out(&stage, "2.0.0").await?;
    stage.wait_until("three of the new one run", || data.versions() == ["2.0.0"; 3]).await?;
    let done = |n: &Node| has(n, 3) && workload(n).is_some_and(|w| w.phase == UpdatePhase::Succeeded);
    stage.wait_for_nodes("the update is over", done).await?;
    ensure!(data.starts() == 7, "{}", data.starts());

    // 5. They do the work together, the backlog falls, and the first one is left.
    fs::remove_file(data.0.join("hold"))?;
    stage.wait_for_nodes("one is left", |n| has(n, 1)).await?;
    let done: Vec<usize> = (0..3).map(|replica| data.lines(&format!("done-{replica}")).len()).collect();
    ensure!(done.iter().all(|done| *done > 0), "not all of them worked: {done:?}");
    stage
        .wait_until("all is done", || fs::read_dir(data.0.join("queue")).is_ok_and(|queue| queue.count() == 0))
        .await?;
    ensure!(data.runs().len() == 1 && data.starts() == 7, "{:?}", data.runs());
    stage.close().await
}
