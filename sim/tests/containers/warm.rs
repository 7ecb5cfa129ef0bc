//! A container that is updated warm: the new one starts beside the old one, and who asks never finds nobody.

use anyhow::ensure;
use cloudcore::stage::Stage;
use sim::{
    asking::Client,
    containers::{
        engine::Engine,
        yard::{self, NODE, Program},
    },
};

const APP: &str = "camera";

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
    let client = Client::start(stage.path(NODE).join("apps").join(APP).join("run/live/s"));
    yard::release(stage, &serves("2.0.0")).await?;
    let seen = client.seen();
    ensure!(seen.missed.is_empty() && seen.said == ["1.0.0", "2.0.0"], "{seen:?}");
    ensure!(seen.answers > 100, "it hardly asked: {seen:?}");
    // The old one is gone.
    let (after, others) = (ids().await?, before.lines().count());
    ensure!(after != first && after.lines().count() == others + 1, "{before:?}, {first:?}, {after:?}");
    Ok(())
}
