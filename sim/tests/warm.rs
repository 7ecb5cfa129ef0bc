//! Updates without a gap, end to end: real hub, agent and processes, and a client that asks all the time.
//!
//! The workload serves a Unix socket in its run folder, as an inference server would, and takes a second to warm up.
//! The client connects through the link `live`, over and over, and never may find nobody.

use std::fs;

use anyhow::ensure;
use cloudcore::stage::{self, Stage, write_program};
use proto::object::{Node, UpdatePhase, WorkloadStatus};
use sim::asking::Client;

const APP: &str = "vision";

/// Answers every connection with its version. Asked to stop, it first answers whoever is connected.
const SERVE: &str = r#"#!/usr/bin/perl
use strict;
use warnings;
use IO::Select;
use IO::Socket::UNIX;
my $stop = 0;
$SIG{TERM} = sub { $stop = 1 };
select(undef, undef, undef, 1); # it loads its model
my $at = "$ENV{CROSSDOCK_RUN}/s";
my $server = IO::Socket::UNIX->new(Local => "$at.new", Listen => 128) or die "listen: $!";
rename "$at.new", $at or die "rename: $!";
my $ready = IO::Select->new($server);
print STDERR "serves $ENV{CROSSDOCK_VERSION}\n";
while (1) {
    if ($ready->can_read(0.1)) {
        my $client = $server->accept or next;
        print $client $ENV{CROSSDOCK_VERSION};
        close $client;
    } elsif ($stop) {
        exit 0;
    }
}
"#;

/// A release; one that is not `good` never says that it is ready.
fn write_release(stage: &Stage, version: &str, good: bool, more: &str) -> anyhow::Result<()> {
    let folder = stage.path(&format!("v{version}"));
    let ready = if good { "#!/bin/sh\ntest -S \"$CROSSDOCK_RUN/s\"\n" } else { "#!/bin/sh\nexit 1\n" };
    for (name, text) in [("serve", SERVE), ("ready", ready)] {
        write_program(&folder.join("files/bin").join(name), text)?;
    }
    let yaml = format!(
        "apiVersion: crossdock.io/v1
app: {APP}
version: {version}
artifacts: [{{ source: files }}]
workload:
  command: bin/serve
  update: {{ strategy: warm }}
  probes:
    readiness: {{ exec: {{ command: [bin/ready] }}, period: 200ms }}
  {more}
  soak: 2s
  deadline: 6s
  stopGrace: 5s
"
    );
    Ok(fs::write(folder.join("release.yaml"), yaml)?)
}

async fn roll_out(stage: &Stage, version: &str, wait: bool) -> anyhow::Result<()> {
    stage.publish(&format!("v{version}")).await?;
    stage.roll_out(&format!("{APP}@{version}"), wait).await
}

fn workload(node: &Node) -> Option<&WorkloadStatus> {
    node.status.workloads.get(APP)
}

fn runs(node: &Node, version: &str) -> bool {
    let running = workload(node).and_then(|w| w.running.as_ref());
    running.is_some_and(|r| r.release.version.as_str() == version && r.ready)
}

#[tokio::test]
async fn an_update_leaves_no_moment_without_an_answer() -> anyhow::Result<()> {
    let mut stage = Stage::open(None, stage::programs().await?, false)?;
    stage.init_hub().await?;
    stage.init_repository().await?;
    stage.join("box-1", "hz-01").await?;
    stage.start_agent("box-1")?;
    write_release(&stage, "1.0.0", true, "")?;
    roll_out(&stage, "1.0.0", true).await?;
    let run = stage.path("box-1").join(format!("apps/{APP}/run"));
    let client = Client::start(run.join("live/s"));

    // 1. An update: from one to the other, in one step.
    write_release(&stage, "2.0.0", true, "")?;
    roll_out(&stage, "2.0.0", true).await?;
    let seen = client.seen();
    ensure!(seen.missed.is_empty() && seen.said == ["1.0.0", "2.0.0"], "{seen:?}");
    ensure!(seen.answers > 100, "it hardly asked: {seen:?}");

    // 2. One that never warms up: nobody ever hears of it.
    write_release(&stage, "3.0.0", false, "")?;
    roll_out(&stage, "3.0.0", false).await?;
    let back = |n: &Node| runs(n, "2.0.0") && workload(n).is_some_and(|w| w.phase == UpdatePhase::RolledBack);
    stage.wait_for_nodes("3.0.0 is taken back", back).await?;
    let seen = client.seen();
    ensure!(seen.missed.is_empty() && seen.said == ["2.0.0"], "{seen:?}");

    // 3. The agent dies while the next one warms up, and comes back.
    write_release(&stage, "4.0.0", true, "")?;
    roll_out(&stage, "4.0.0", false).await?;
    // 2.0.0 is on the second side; the records of the first say 4.0.0 once that is started.
    let launched = stage.path("box-1").join(format!("driver/{APP}/launch.json"));
    let is_new = || fs::read_to_string(&launched).is_ok_and(|text| text.contains("\"4.0.0\""));
    stage.wait_until("4.0.0 is started beside 2.0.0", is_new).await?;
    stage.kill_agent("box-1").await?;
    stage.start_agent("box-1")?;
    let done = |n: &Node| runs(n, "4.0.0") && workload(n).is_some_and(|w| w.phase == UpdatePhase::Succeeded);
    stage.wait_for_nodes("4.0.0 is there", done).await?;
    let seen = client.seen();
    ensure!(seen.missed.is_empty() && seen.said == ["2.0.0", "4.0.0"], "{seen:?}");

    // 4. One that the box has no memory for, beside the other: it takes its place, and says why.
    write_release(&stage, "5.0.0", true, "limits: { memory: 900Gi }\n  requests: { memory: 64Mi }")?;
    roll_out(&stage, "5.0.0", false).await?;
    let said = |n: &Node| {
        let why = "the one before was stopped first: beside the running one it needs 921600 MiB of memory (its limit)";
        workload(n).is_some_and(|w| w.message.contains(why))
    };
    stage.wait_for_nodes("it says why there is a gap", said).await?;
    let done = |n: &Node| runs(n, "5.0.0") && workload(n).is_some_and(|w| w.phase == UpdatePhase::Succeeded);
    stage.wait_for_nodes("5.0.0 is there", done).await?;
    let seen = client.seen();
    ensure!(!seen.missed.is_empty() && seen.said == ["4.0.0", "5.0.0"], "{seen:?}");

    // What is left is one instance, and its output is found wherever it is.
    let logs = stage.crossdock(&["logs", &format!("box-1/{APP}")]).await?;
    ensure!(logs.contains("serves 5.0.0"), "{logs}");
    drop(client);
    stage.close().await
}
