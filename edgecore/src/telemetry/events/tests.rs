//! What is news by a report, and that it is told once, through a full outbox and a restart.

use std::{path::Path, sync::Arc};

use proto::{
    env::{Blocking, Env, WallClock},
    object::ReleaseRef,
    stream::{Class, batch::Batch},
    watch,
};

use super::*;
use crate::{
    driver::process::ProcessDriver,
    facts::Facts,
    outbox::{Item, Outbox, OutboxConfig},
};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_900_000_000 + second).unwrap()
}

fn release(version: &str) -> ReleaseRef {
    ReleaseRef { version: version.parse().unwrap(), digest: Digest::of(version.as_bytes()) }
}

fn status(version: &str, phase: UpdatePhase, running: Option<Running>) -> WorkloadStatus {
    let bad = matches!(phase, UpdatePhase::RolledBack | UpdatePhase::Failed | UpdatePhase::Blocked);
    let (reason, message) = if bad { ("Unhealthy", "no probe has succeeded") } else { ("", "") };
    WorkloadStatus {
        reason: reason.into(),
        message: message.into(),
        running,
        ..WorkloadStatus::new(Some(release(version)), phase, at(0))
    }
}

fn runs(version: &str, started: i64) -> Running {
    Running {
        release: release(version),
        state: RunState::Running,
        ready: true,
        restarts: 0,
        started_at: Some(at(started)),
        last_exit: None,
    }
}

fn report(status: WorkloadStatus) -> Report {
    Report { workloads: [(name("shop"), status)].into(), ..Report::default() }
}

/// Reasons and messages of what is news by a phase.
fn seen(news: &mut News, status: WorkloadStatus) -> Vec<String> {
    news.look(&report(status), at(9));
    news.take().into_iter().map(|e| format!("{:?} {} {}", e.r#type, e.reason, e.message)).collect()
}

#[test]
fn an_install_is_told_step_by_step_and_once() {
    use UpdatePhase::{Blocked, Downloading, Pending, RolledBack, Staged, Succeeded, Verifying};
    let mut news = News::default();
    let mut look = |version, phase| seen(&mut news, status(version, phase, None)).join(", ");
    assert_eq!(look("1.0.0", Pending), "");
    assert_eq!(look("1.0.0", Downloading), "Normal Installing shop@1.0.0: it is being fetched");
    let blocked = "Warning Blocked shop@1.0.0: Unhealthy no probe has succeeded";
    assert_eq!(look("1.0.0", Blocked), blocked);
    // Tried again and again, it is told once.
    assert_eq!((look("1.0.0", Downloading), look("1.0.0", Blocked)), (String::new(), String::new()));
    assert_eq!(look("1.0.0", Staged), "");
    assert_eq!(look("1.0.0", Verifying), "Normal Trial shop@1.0.0: it runs on trial");
    assert_eq!(look("1.0.0", Verifying), "");
    assert_eq!(look("1.0.0", Succeeded), "Normal Confirmed shop@1.0.0: it proved healthy and stays");
    assert_eq!(look("1.0.0", Succeeded), "");
    assert_eq!(look("2.0.0", Downloading), "Normal Installing shop@2.0.0: it is being fetched");
    let reverted = "Warning RolledBack shop@2.0.0: Unhealthy no probe has succeeded";
    assert_eq!(look("2.0.0", RolledBack), reverted, "the trial came and went between two looks");
    assert_eq!(look("2.0.0", RolledBack), "");
    // What is damaged and mended later was confirmed before.
    look("1.0.0", Succeeded);
    assert_eq!(look("1.0.0", Blocked), blocked);
    assert_eq!(look("1.0.0", Succeeded), "Normal Recovered shop@1.0.0: it is as it should be again");
    news.look(&Report::default(), at(9));
    assert_eq!(news.take()[0].message, "shop: it was stopped and removed");
}

#[test]
fn an_agent_that_comes_back_tells_only_what_is_new() {
    let mut news = News::default();
    news.started("boot-1", at(0));
    assert!(news.take()[0].message.ends_with("was started, and so was the box"));
    seen(&mut news, status("1.0.0", UpdatePhase::Downloading, None));
    let exit = LastExit { code: Some(3), signal: None, at: at(5), message: String::new() };
    let crashed = Running { last_exit: Some(exit), restarts: 1, ..runs("1.0.0", 6) };
    seen(&mut news, status("1.0.0", UpdatePhase::RolledBack, Some(crashed.clone())));

    let kept = serde_json::to_vec(&news.told).unwrap();
    let mut news = News::new(serde_json::from_slice(&kept).unwrap());
    news.started("boot-1", at(10));
    assert!(news.take()[0].message.ends_with("of the agent was started"));
    news.look(&Report::default(), at(10)); // its apps are not opened yet
    assert_eq!(news.take(), []);
    assert_eq!(seen(&mut news, status("1.0.0", UpdatePhase::RolledBack, Some(crashed))), [""; 0]);
    // What was confirmed while it was killed is told now.
    let [confirmed] = &seen(&mut news, status("1.0.0", UpdatePhase::Succeeded, None))[..] else { panic!() };
    assert!(confirmed.contains("Confirmed"), "{confirmed}");
    // The first agent that keeps books does not tell what ran long before.
    let mut first = News::default();
    assert_eq!(seen(&mut first, status("1.0.0", UpdatePhase::Succeeded, Some(runs("1.0.0", 1)))), [""; 0]);
}

#[test]
fn a_workload_that_ends_restarts_or_fails_its_probes_is_told() {
    let mut news = News::default();
    let mut look =
        |running: &Running| seen(&mut news, status("1.0.0", UpdatePhase::Succeeded, Some(running.clone()))).join(", ");
    let up = runs("1.0.0", 1);
    assert_eq!(look(&up), "");
    let unready = Running { ready: false, ..up.clone() };
    assert_eq!(look(&unready), "Warning NotReady shop@1.0.0: its probes fail");
    assert_eq!(look(&unready), "");
    assert_eq!(look(&up), "Normal ReadyAgain shop@1.0.0: its probes succeed again");

    let exit = |second, signal, message: &str| LastExit {
        code: None,
        signal: Some(signal),
        at: at(second),
        message: message.into(),
    };
    let down = Running {
        state: RunState::BackOff,
        ready: false,
        started_at: None,
        last_exit: Some(exit(20, 11, "core dumped")),
        ..up.clone()
    };
    assert_eq!(look(&down), "Warning Exited shop@1.0.0: it was killed by signal 11: core dumped");
    assert_eq!(look(&Running { restarts: 1, ..down.clone() }), "", "it is being started");
    let again = Running { restarts: 1, last_exit: down.last_exit.clone(), ready: false, ..runs("1.0.0", 21) };
    assert_eq!(look(&again), "Normal Restarted shop@1.0.0: it was started again");
    assert_eq!(look(&Running { ready: true, ..again.clone() }), "", "it is ready for the first time");
    // Down and up again between two looks: both are told.
    let twice = Running { restarts: 2, last_exit: Some(exit(30, 9, "")), ..runs("1.0.0", 31) };
    assert_eq!(
        look(&twice),
        "Warning Exited shop@1.0.0: it was killed by signal 9, Normal Restarted shop@1.0.0: it was started again"
    );
    // A stop that was asked for is no end; a success is no warning.
    let asked = Running { last_exit: Some(exit(40, 15, STOPPED_ON_REQUEST)), ..twice.clone() };
    assert_eq!(look(&asked), "");
    let done = LastExit { code: Some(0), signal: None, at: at(50), message: String::new() };
    let done = Running { state: RunState::Exited, started_at: None, last_exit: Some(done), ..twice };
    assert_eq!(look(&done), "Normal Exited shop@1.0.0: it ended with exit code 0");
}

#[test]
fn conditions_are_told_when_they_begin_and_end() {
    let mut news = News::default();
    let mut look = |kind: &str, status, reason: &str| {
        let condition = Condition {
            r#type: kind.into(),
            status,
            reason: reason.into(),
            message: "text".into(),
            last_transition_time: at(0),
        };
        news.look(&Report { conditions: vec![condition], ..Report::default() }, at(1));
        news.take().into_iter().map(|e| format!("{:?} {} {}", e.r#type, e.reason, e.message)).collect::<String>()
    };
    use ConditionStatus::{False, True, Unknown};
    assert_eq!(look("StreamPressure", False, "RecordsTaken"), "");
    assert_eq!(look("StreamPressure", True, "OutboxFull"), "Warning OutboxFull StreamPressure: text");
    assert_eq!(look("StreamPressure", True, "OutboxFull"), "");
    assert_eq!(look("StreamPressure", True, "OutboxDamaged"), "Warning OutboxDamaged StreamPressure: text");
    assert_eq!(look("StreamPressure", False, "RecordsTaken"), "Normal RecordsTaken StreamPressure is over");
    assert_eq!(look("ClockSkew", Unknown, "NoHubYet"), "");
    assert_eq!(look("Ready", True, "AgentReady"), "");
    assert_eq!(look("Ready", False, "TrustLost"), "Warning TrustLost Ready: text");
}

/// All records of the stream that wait, as reasons.
async fn waiting(outbox: &Outbox) -> Vec<String> {
    let held = outbox.held().into_iter().find(|h| h.key.stream.as_str() == "events").unwrap();
    let (mut at, mut found) = (held.first, vec![]);
    while at < held.next {
        let Some(Item::Batch { count, sealed, .. }) = outbox.read(&held.key, at..held.next).await.unwrap() else {
            panic!("a gap")
        };
        at += count;
        found.extend(Batch::open(&sealed).unwrap().records.iter().map(|r| EventRecord::read(&r.bytes).unwrap().reason));
    }
    found
}

/// Calendar time that goes with tokio's.
#[derive(Debug)]
struct Virtual(Instant);

impl WallClock for Virtual {
    fn now(&self) -> Timestamp {
        at(0) + jiff::SignedDuration::from_millis(self.0.elapsed().as_millis() as i64)
    }
}

async fn open(folder: &Path) -> (Teller, watch::Sender<Report>) {
    let env = Env { blocking: Blocking::Inline, wall: Arc::new(Virtual(Instant::now())), ..Env::real().unwrap() };
    let streams = vec![(name("scans"), Class::Scans), (name("events"), Class::Events)];
    let config = OutboxConfig { quota_bytes: 2 << 20, disk_share_percent: 100, streams };
    let outbox = Outbox::open(&folder.join("outbox"), config, env.clone()).await.unwrap();
    let driver = Arc::new(ProcessDriver::new(folder.join("driver"), env.clone()));
    let board = watch::channel(Report::default()).0;
    let facts = Facts::new(folder.to_owned());
    (Teller { env, facts, driver, board: board.subscribe(), outbox }, board)
}

#[tokio::test(start_paused = true)]
async fn news_waits_for_a_full_outbox_and_is_not_repeated_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let record = || Record::at(folder.path().join("told"));
    let (teller, board) = open(folder.path()).await;
    let outbox = teller.outbox.clone();
    // Scans fill it: of what is not shed nothing more is taken.
    let scan: bytes::Bytes = (0..=255_u8).cycle().take(100).collect::<Vec<_>>().into();
    let mut number = 0_u64;
    while outbox.append(&name("scans"), (0..500).map(|n| noisy(&scan, number + n)).collect()).await.is_ok() {
        number += 500;
    }
    let key = outbox.held().into_iter().find(|h| h.key.stream.as_str() == "scans").unwrap().key;
    let telling = tokio::spawn(run(teller, name("events"), record(), mpsc::channel(1).1));
    board.send_replace(report(status("1.0.0", UpdatePhase::Downloading, None)));
    sleep(Duration::from_secs(60)).await; // it tries and tries
    board.send_replace(report(status("1.0.0", UpdatePhase::Verifying, None)));
    sleep(Duration::from_secs(60)).await; // the same
    assert_eq!(waiting(&outbox).await, [""; 0], "the outbox was not full: the fault did not fire");
    outbox.delete(&key, vec![0..u64::MAX]).await.unwrap();
    sleep(Duration::from_secs(10)).await; // the next attempt
    assert_eq!(waiting(&outbox).await, ["AgentStarted", "Installing", "Trial"]);
    telling.abort();
    let _ = telling.await;
    drop(outbox);

    let (teller, board) = open(folder.path()).await;
    let outbox = teller.outbox.clone();
    board.send_replace(report(status("1.0.0", UpdatePhase::Verifying, None)));
    let telling = tokio::spawn(run(teller, name("events"), record(), mpsc::channel(1).1));
    sleep(Duration::from_secs(1)).await; // it looks at once
    assert_eq!(waiting(&outbox).await, ["AgentStarted", "Installing", "Trial", "AgentStarted"]);
    telling.abort();
}

#[tokio::test(start_paused = true)]
async fn what_changes_while_nothing_waits_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (teller, board) = open(folder.path()).await;
    let outbox = teller.outbox.clone();
    let telling = tokio::spawn(run(teller, name("events"), Record::at(folder.path().join("told")), mpsc::channel(1).1));
    sleep(Duration::from_secs(1)).await; // it is through with its start
    for (phase, told) in [
        (UpdatePhase::Downloading, vec!["AgentStarted", "Installing"]),
        (UpdatePhase::Verifying, vec!["AgentStarted", "Installing", "Trial"]),
    ] {
        board.send_replace(report(status("1.0.0", phase, None)));
        sleep(Duration::from_secs(1)).await; // it waits for exactly this
        assert_eq!(waiting(&outbox).await, told);
    }
    telling.abort();
}

/// A record that does not compress with its neighbours.
fn noisy(scan: &[u8], number: u64) -> bytes::Bytes {
    let digest = Digest::of(&number.to_be_bytes());
    [digest.as_bytes(), &scan[..30]].concat().into()
}

#[test]
fn a_clock_that_was_set_is_noticed() {
    let before = (at(0), Instant::now());
    assert!(step(before, at(0)).abs() < STEP);
    assert!((step(before, at(3600)) - 3_600_000).abs() < STEP);
    let mut news = News::default();
    news.stepped(-90_000, at(0));
    assert!(news.take()[0].message.contains("90 s back"));
}
