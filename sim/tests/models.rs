//! A model of its own release, end to end: real hub, agent and processes, and a client that asks all the time.
//!
//! The workload says to each client which version it is and what its model says. Another model warms up with a new
//! instance beside the live one, and takes over without a gap; one that does not suit it is taken back, and nobody ever
//! heard of it.

use std::fs;

use anyhow::ensure;
use cloudcore::stage::{self, Stage, write_program};
use proto::object::{Node, UpdatePhase, WorkloadStatus};
use sim::asking::Client;

const APP: &str = "vision";
const MODEL: &str = "vision-model";

/// Answers every connection with its version and its model. Asked to stop, it first answers whoever is connected.
const SERVE: &str = r#"#!/usr/bin/perl
use strict;
use warnings;
use IO::Select;
use IO::Socket::UNIX;
my $stop = 0;
$SIG{TERM} = sub { $stop = 1 };
open(my $file, '<', "$ENV{CROSSDOCK_USES_VISION_MODEL}/classes.txt") or die "model: $!";
my $model = <$file>;
select(undef, undef, undef, 1); # it loads its model
my $at = "$ENV{CROSSDOCK_RUN}/s";
my $server = IO::Socket::UNIX->new(Local => "$at.new", Listen => 128) or die "listen: $!";
rename "$at.new", $at or die "rename: $!";
my $ready = IO::Select->new($server);
while (1) {
    if ($ready->can_read(0.1)) {
        my $client = $server->accept or next;
        print $client "$ENV{CROSSDOCK_VERSION} with $model";
        close $client;
    } elsif ($stop) {
        exit 0;
    }
}
"#;
/// Ready once it serves, with a model that it can use.
const READY: &str =
    "#!/bin/sh\ntest -S \"$CROSSDOCK_RUN/s\" && ! grep -q bad \"$CROSSDOCK_USES_VISION_MODEL/classes.txt\"\n";

fn write_app(stage: &Stage, version: &str) -> anyhow::Result<()> {
    let folder = stage.path(&format!("{APP}-{version}"));
    for (name, text) in [("serve", SERVE), ("ready", READY)] {
        write_program(&folder.join("files/bin").join(name), text)?;
    }
    let yaml = format!(
        "apiVersion: crossdock.io/v1
app: {APP}
version: {version}
artifacts: [{{ source: files }}]
workload:
  command: bin/serve
  uses: [{MODEL}]
  update: {{ strategy: warm }}
  probes:
    readiness: {{ exec: {{ command: [bin/ready] }}, period: 200ms }}
  soak: 2s
  deadline: 6s
  stopGrace: 5s
"
    );
    Ok(fs::write(folder.join("release.yaml"), yaml)?)
}

fn write_model(stage: &Stage, version: &str, classes: &str) -> anyhow::Result<()> {
    let folder = stage.path(&format!("{MODEL}-{version}"));
    fs::create_dir_all(folder.join("files"))?;
    fs::write(folder.join("files/classes.txt"), classes)?;
    let yaml =
        format!("apiVersion: crossdock.io/v1\napp: {MODEL}\nversion: {version}\nartifacts: [{{ source: files }}]\n");
    Ok(fs::write(folder.join("release.yaml"), yaml)?)
}

async fn roll_out(stage: &Stage, app: &str, version: &str, wait: bool) -> anyhow::Result<()> {
    stage.publish(&format!("{app}-{version}")).await?;
    stage.roll_out(&format!("{app}@{version}"), wait).await
}

fn workload<'a>(node: &'a Node, app: &str) -> Option<&'a WorkloadStatus> {
    node.status.workloads.get(app)
}

fn is_done(node: &Node, app: &str, version: &str) -> bool {
    let said = workload(node, app).filter(|said| said.phase == UpdatePhase::Succeeded);
    said.and_then(|said| said.target.as_ref()).is_some_and(|target| target.version.as_str() == version)
}

/// What the client saw since it was asked last: it heard these, and never found nobody.
fn heard(client: &Client, expected: &[&str]) -> anyhow::Result<()> {
    let seen = client.seen();
    ensure!(seen.missed.is_empty() && seen.said == expected, "expected {expected:?}: {seen:?}");
    ensure!(seen.answers > 50, "it hardly asked: {seen:?}");
    Ok(())
}

#[tokio::test]
async fn a_model_is_proved_by_who_uses_it_or_taken_back() -> anyhow::Result<()> {
    let mut stage = Stage::open(None, stage::programs().await?, false)?;
    stage.init_hub().await?;
    stage.init_repository().await?;
    stage.join("box-1", "hz-01").await?;
    stage.start_agent("box-1")?;

    // 1. Who uses what is not there waits, and says for what.
    write_app(&stage, "1.0.0")?;
    roll_out(&stage, APP, "1.0.0", false).await?;
    let waits = |n: &Node| workload(n, APP).is_some_and(|w| w.reason == "FilesMissing" && w.message.contains(MODEL));
    stage.wait_for_nodes("it waits for its model", waits).await?;
    write_model(&stage, "1.0.0", "boxes")?;
    roll_out(&stage, MODEL, "1.0.0", true).await?;
    stage.wait_for_nodes("it runs with its model", |n| is_done(n, APP, "1.0.0")).await?;
    let client = Client::start(stage.path("box-1").join(format!("apps/{APP}/run/live/s")));

    // 2. Another model: from one to the other in one step, by who uses it; until then it is not proved.
    write_model(&stage, "2.0.0", "boxes and bags")?;
    roll_out(&stage, MODEL, "2.0.0", false).await?;
    let says = |n: &Node| {
        let waits = workload(n, MODEL).is_some_and(|w| w.message == format!("waits for {APP} to prove it"));
        waits && workload(n, APP).is_some_and(|w| w.phase == UpdatePhase::Succeeded && w.reason == "NewFiles")
    };
    stage.wait_for_nodes("the model says whom it waits for", says).await?;
    stage.wait_for_nodes("the model is proved", |n| is_done(n, MODEL, "2.0.0")).await?;
    heard(&client, &["1.0.0 with boxes", "1.0.0 with boxes and bags"])?;

    // 3. One that does not suit it: nobody ever hears of it.
    write_model(&stage, "3.0.0", "bad")?;
    roll_out(&stage, MODEL, "3.0.0", false).await?;
    let back = |n: &Node| {
        let said = workload(n, MODEL).filter(|w| w.phase == UpdatePhase::RolledBack && w.reason == "UserFailed");
        said.is_some_and(|w| w.message.contains(&format!("{APP} did not prove it: it did not go live")))
    };
    stage.wait_for_nodes("3.0.0 is taken back", back).await?;
    let well = |n: &Node| workload(n, APP).is_some_and(|w| w.phase == UpdatePhase::Succeeded && w.reason.is_empty());
    stage.wait_for_nodes("who uses it goes on", well).await?;
    heard(&client, &["1.0.0 with boxes and bags"])?;

    // 4. The agent dies while the next one warms up, and comes back.
    write_model(&stage, "4.0.0", "boxes, bags and tubes")?;
    roll_out(&stage, MODEL, "4.0.0", false).await?;
    let warming = |n: &Node| workload(n, APP).is_some_and(|w| w.message.contains("it warms up beside the running one"));
    stage.wait_for_nodes("it warms up", warming).await?;
    stage.kill_agent("box-1").await?;
    stage.start_agent("box-1")?;
    stage.wait_for_nodes("4.0.0 is proved", |n| is_done(n, MODEL, "4.0.0")).await?;
    heard(&client, &["1.0.0 with boxes and bags", "1.0.0 with boxes, bags and tubes"])?;

    // 5. An update of its own keeps the model.
    write_app(&stage, "2.0.0")?;
    roll_out(&stage, APP, "2.0.0", true).await?;
    heard(&client, &["1.0.0 with boxes, bags and tubes", "2.0.0 with boxes, bags and tubes"])?;
    drop(client);
    stage.close().await
}
