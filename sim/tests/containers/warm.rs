//! A container that is updated warm: the new one starts beside the old one, and who asks never finds nobody.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use cloudcore::stage::Stage;
use sim::containers::{
    engine::Engine,
    yard::{self, NODE, Program},
};
use tokio::{
    io::AsyncReadExt as _,
    net::UnixStream,
    time::{MissedTickBehavior, interval},
};

const APP: &str = "camera";
/// Between questions of the client.
const EVERY: Duration = Duration::from_millis(5);

/// Answers every connection with its version. Asked to stop, it first answers whoever is connected. Perl is the box's.
const SERVE: &str = r#"exec /usr/bin/perl -e '
use strict;
use IO::Select;
use IO::Socket::UNIX;
my $stop = 0;
$SIG{TERM} = sub { $stop = 1 };
select(undef, undef, undef, 1); # it loads its model
my $at = "$ENV{CROSSDOCK_RUN}/s";
my $server = IO::Socket::UNIX->new(Local => "$at.new", Listen => 128) or die "listen: $!";
rename "$at.new", $at or die "rename: $!";
my $ready = IO::Select->new($server);
while (1) {
    if ($ready->can_read(0.1)) {
        my $client = $server->accept or next;
        print $client $ENV{CROSSDOCK_VERSION};
        close $client;
    } elsif ($stop) {
        exit 0;
    }
}
'
"#;
const FROM_THE_BOX: &str = "    volumes:
    - { hostPath: /usr, mountPath: /usr, readOnly: true }
    - { hostPath: /usr/lib, mountPath: /lib, readOnly: true }
    - { hostPath: /usr/lib64, mountPath: /lib64, readOnly: true }";
const WARM: &str = "  update: { strategy: warm }
  probes: { readiness: { exec: { command: [/bin/sh, -c, 'ls $CROSSDOCK_RUN/s'] }, period: 200ms } }";

async fn ask(socket: &Path) -> std::io::Result<String> {
    let mut answer = String::new();
    UnixStream::connect(socket).await?.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// What a client saw.
#[derive(Debug, Default)]
struct Seen {
    /// Answers, each noted when it is another than the one before.
    versions: Vec<String>,
    answers: usize,
    missed: Vec<String>,
}

/// Asks until the end, again and again.
async fn client(socket: &Path, ends: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    let mut every = interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !ends.load(Ordering::Relaxed) {
        every.tick().await;
        match ask(socket).await {
            Ok(answer) if !answer.is_empty() => {
                seen.answers += 1;
                if seen.versions.last() != Some(&answer) {
                    seen.versions.push(answer);
                }
            }
            other => seen.missed.push(format!("{other:?}")),
        }
    }
    seen
}

/// An app is updated while a client asks through the link that leads to the live one.
pub async fn is_updated_without_a_gap(stage: &Stage, engine: &Engine) -> anyhow::Result<()> {
    let serves = |version| Program {
        app: APP,
        script: SERVE,
        container: FROM_THE_BOX,
        workload: WARM,
        ..Program::serves(version)
    };
    let ids = || async { engine.docker(&["ps", "-q", "--no-trunc"]).await };
    let before = ids().await?;
    yard::release(stage, &serves("1.0.0")).await?;
    let first = ids().await?;
    let socket = stage.path(NODE).join("apps").join(APP).join("run/live/s");
    let ends = Arc::new(AtomicBool::new(false));
    let asked = ends.clone();
    let asks = tokio::spawn(async move { client(&socket, asked).await });
    yard::release(stage, &serves("2.0.0")).await?;
    ends.store(true, Ordering::Relaxed);
    let seen = asks.await?;
    ensure!(seen.missed.is_empty() && seen.versions == ["1.0.0", "2.0.0"], "{seen:?}");
    ensure!(seen.answers > 100, "it hardly asked: {seen:?}");
    // The old one is gone.
    let (after, others) = (ids().await?, before.lines().count());
    ensure!(after != first && after.lines().count() == others + 1, "{before:?}, {first:?}, {after:?}");
    Ok(())
}
