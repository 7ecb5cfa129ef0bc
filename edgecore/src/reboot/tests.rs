//! An order is carried out once, whatever happens in between.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use jiff::Timestamp;
use proto::{
    digest::Digest,
    env::BoxFuture,
    link::message::OrderedApp,
    name::Name,
    object::{LastExit, ReleaseRef, RunState, Running, WorkloadStatus},
    release::Probe,
};
use tokio::sync::mpsc;

use super::{
    plan::{DOWN_WITHIN, READY_WITHIN, UP_AT_LEAST},
    *,
};
use crate::{
    driver::{DriverError, Instance, InstanceSpec, ProbeOutcome},
    fetch::tests::env,
};

/// Counts restarts, or refuses them.
#[derive(Debug, Default)]
struct Power {
    restarts: AtomicU32,
    refuses: Mutex<Option<String>>,
}

impl Driver for Power {
    fn start<'a>(&'a self, _: &'a InstanceSpec) -> BoxFuture<'a, Result<(), DriverError>> {
        unreachable!()
    }
    fn inspect<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<Option<Instance>, DriverError>> {
        unreachable!()
    }
    fn wait<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<LastExit, DriverError>> {
        unreachable!()
    }
    fn stop<'a>(&'a self, _: &'a Name, _: Duration) -> BoxFuture<'a, Result<(), DriverError>> {
        unreachable!()
    }
    fn remove<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<(), DriverError>> {
        unreachable!()
    }
    fn list(&self) -> BoxFuture<'_, Result<Vec<Name>, DriverError>> {
        unreachable!()
    }
    fn probe<'a>(&'a self, _: &'a InstanceSpec, _: &'a Probe) -> BoxFuture<'a, ProbeOutcome> {
        unreachable!()
    }
    fn reboot<'a>(&'a self, command: &'a [String]) -> BoxFuture<'a, Result<(), String>> {
        assert_eq!(command, ["reboot", "now"]);
        self.restarts.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(self.refuses.lock().unwrap().clone().map_or(Ok(()), Err)))
    }
    fn logs<'a>(&'a self, _: &'a Name, _: Option<u32>, _: bool) -> BoxFuture<'a, Option<mpsc::Receiver<Bytes>>> {
        unreachable!()
    }
}

/// A box, whose agent is a task.
struct Machine {
    folder: tempfile::TempDir,
    power: Arc<Power>,
    boot: u32,
    command: Vec<String>,
    assignment: watch::Sender<Option<Assignment>>,
    board: watch::Sender<Report>,
    agent: Option<tokio::task::JoinHandle<()>>,
}

fn app() -> Name {
    "shop".parse().unwrap()
}

fn workload(ready: bool, phase: UpdatePhase) -> WorkloadStatus {
    let release = ReleaseRef { version: "1".parse().unwrap(), digest: Digest::of(b"1") };
    let running = Running {
        release: release.clone(),
        state: RunState::Running,
        ready,
        restarts: 0,
        started_at: None,
        last_exit: None,
    };
    WorkloadStatus { running: Some(running), ..WorkloadStatus::new(Some(release), phase, Timestamp::UNIX_EPOCH) }
}

impl Machine {
    /// A box on which the app runs.
    fn new() -> Machine {
        let mut machine = Machine {
            folder: tempfile::tempdir().unwrap(),
            power: Arc::default(),
            boot: 1,
            command: ["reboot", "now"].map(str::to_owned).into(),
            assignment: watch::channel(None).0,
            board: watch::channel(Report::default()).0,
            agent: None,
        };
        machine.says(true, UpdatePhase::Succeeded);
        machine.start();
        machine
    }

    fn start(&mut self) {
        self.agent = Some(tokio::spawn(run(Reboots {
            env: env(),
            driver: self.power.clone(),
            record: Record::at(self.folder.path().join("reboot")),
            boot_id: self.boot.to_string(),
            command: self.command.clone(),
            board: self.board.clone(),
            assignment: self.assignment.subscribe(),
        })));
    }

    /// The agent ends where it stands and starts again, without a word of its apps yet.
    fn starts_again(&mut self) {
        self.agent.take().unwrap().abort();
        self.board = watch::channel(Report::default()).0;
        self.start();
    }

    fn comes_up(&mut self) {
        self.boot += 1;
        self.starts_again();
    }

    fn says(&mut self, ready: bool, phase: UpdatePhase) {
        self.board.send_modify(|report| report.workloads = BTreeMap::from([(app(), workload(ready, phase))]));
    }

    fn order(&self, order: &str) {
        let release = workload(true, UpdatePhase::Succeeded).target.unwrap();
        let apps = BTreeMap::from([(app(), OrderedApp::from(release))]);
        self.assignment.send_replace(Some(Assignment { apps, reboot: Some(order.into()), ..Assignment::default() }));
    }

    async fn after(&self, wait: Duration) -> (u32, Option<(String, UpdatePhase, String)>) {
        sleep(wait).await;
        let said = self.board.borrow().reboot.clone().map(|said| (said.order, said.phase, said.message));
        (self.power.restarts.load(Ordering::Relaxed), said)
    }

    async fn phase(&self, wait: Duration) -> (u32, UpdatePhase) {
        let (restarts, said) = self.after(wait).await;
        (restarts, said.unwrap().1)
    }
}

const SOON: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn an_order_is_carried_out_once_and_proved_by_what_ran_before() {
    let mut machine = Machine::new();
    assert_eq!(machine.after(SOON).await, (0, None));
    machine.order("a");
    assert_eq!(machine.phase(SOON).await, (1, UpdatePhase::Applying));
    machine.comes_up();
    let (restarts, said) = machine.after(SOON).await;
    assert_eq!((restarts, said.clone().unwrap().1), (1, UpdatePhase::Verifying));
    assert!(said.unwrap().2.contains("waits for shop"));
    machine.says(false, UpdatePhase::Succeeded);
    assert_eq!(machine.phase(SOON).await, (1, UpdatePhase::Verifying));
    machine.says(true, UpdatePhase::Succeeded);
    assert_eq!(machine.phase(SOON).await, (1, UpdatePhase::Succeeded));
    for _ in 0..3 {
        machine.starts_again();
        machine.says(true, UpdatePhase::Succeeded);
        assert_eq!(machine.phase(DOWN_WITHIN * 2).await, (1, UpdatePhase::Succeeded));
    }
    machine.comes_up(); // a power cut
    machine.says(true, UpdatePhase::Succeeded);
    assert_eq!(machine.phase(SOON).await, (1, UpdatePhase::Succeeded));
    machine.order("b");
    assert_eq!(machine.phase(UP_AT_LEAST).await, (2, UpdatePhase::Applying));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_again_in_the_same_boot_does_not_ask_twice() {
    let mut machine = Machine::new();
    machine.order("a");
    assert_eq!(machine.phase(SOON).await, (1, UpdatePhase::Applying));
    machine.starts_again();
    machine.says(true, UpdatePhase::Succeeded);
    assert_eq!(machine.phase(SOON).await, (1, UpdatePhase::Applying));
    let (restarts, said) = machine.after(DOWN_WITHIN).await;
    assert_eq!((restarts, said.clone().unwrap().1), (1, UpdatePhase::Failed));
    assert!(said.unwrap().2.contains("still up"));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_ready_again_in_time_failed() {
    let mut machine = Machine::new();
    machine.order("a");
    assert_eq!(machine.phase(SOON).await, (1, UpdatePhase::Applying));
    machine.comes_up();
    machine.says(false, UpdatePhase::Succeeded);
    let (_, said) = machine.after(READY_WITHIN + SOON).await;
    let (_, phase, message) = said.unwrap();
    assert_eq!(phase, UpdatePhase::Failed);
    assert!(message.contains("shop was ready before"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn what_was_sick_before_is_not_asked_for() {
    let mut machine = Machine::new();
    machine.says(false, UpdatePhase::Succeeded);
    machine.order("a");
    assert_eq!(machine.phase(SOON).await, (1, UpdatePhase::Applying));
    machine.comes_up();
    machine.says(false, UpdatePhase::Succeeded);
    assert_eq!(machine.phase(SOON).await, (1, UpdatePhase::Succeeded));
}

#[tokio::test(start_paused = true)]
async fn an_update_is_decided_first_and_nothing_begins_before_the_apps_are_known() {
    let mut machine = Machine::new();
    machine.says(true, UpdatePhase::Verifying);
    machine.order("a");
    assert_eq!(machine.phase(SOON).await, (0, UpdatePhase::Pending));
    machine.starts_again();
    assert_eq!(machine.phase(SOON).await, (0, UpdatePhase::Pending));
    machine.says(true, UpdatePhase::Succeeded);
    assert_eq!(machine.phase(SOON).await, (1, UpdatePhase::Applying));
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_errs_does_not_keep_a_box_down() {
    let mut machine = Machine::new();
    machine.order("a");
    assert_eq!(machine.phase(SOON).await, (1, UpdatePhase::Applying));
    machine.comes_up();
    machine.says(true, UpdatePhase::Succeeded);
    machine.order("b");
    assert_eq!(machine.phase(SOON).await, (1, UpdatePhase::Pending));
    assert_eq!(machine.phase(UP_AT_LEAST).await, (2, UpdatePhase::Applying));
}

#[tokio::test(start_paused = true)]
async fn a_command_that_fails_and_a_box_that_may_not_are_named() {
    let machine = Machine::new();
    *machine.power.refuses.lock().unwrap() = Some("no bus".into());
    machine.order("a");
    let (_, said) = machine.after(SOON).await;
    assert_eq!(said.unwrap(), ("a".into(), UpdatePhase::Failed, "could not run \"reboot now\": no bus".into()));
    let mut machine = Machine::new();
    machine.command = vec![];
    machine.starts_again();
    machine.says(true, UpdatePhase::Succeeded);
    machine.order("a");
    let (restarts, said) = machine.after(SOON).await;
    let (_, phase, message) = said.unwrap();
    assert_eq!((restarts, phase), (0, UpdatePhase::Failed));
    assert!(message.contains("agent.toml"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_wanted_any_more_is_not_waited_for() {
    let mut machine = Machine::new();
    machine.order("a");
    assert_eq!(machine.phase(SOON).await, (1, UpdatePhase::Applying));
    machine.assignment.send_modify(|assignment| assignment.as_mut().unwrap().drained = true);
    machine.comes_up();
    machine.says(false, UpdatePhase::Succeeded);
    assert_eq!(machine.phase(SOON).await, (1, UpdatePhase::Succeeded));
}

#[tokio::test(start_paused = true)]
async fn an_order_that_may_have_been_carried_out_is_not_begun() {
    for newest_alone in [true, false] {
        let mut machine = Machine::new();
        for order in ["a", "b"] {
            machine.order(order);
            machine.phase(UP_AT_LEAST).await;
            machine.comes_up();
            machine.says(true, UpdatePhase::Succeeded);
            machine.phase(SOON).await;
        }
        let record = machine.folder.path().join("reboot");
        std::fs::write(&record, "torn").unwrap();
        if !newest_alone {
            std::fs::write(record.with_extension("bak"), "torn").unwrap();
        }
        machine.order("c");
        machine.starts_again();
        machine.says(true, UpdatePhase::Succeeded);
        let (restarts, said) = machine.after(UP_AT_LEAST).await;
        let (order, phase, message) = said.unwrap();
        assert_eq!((restarts, order.as_str(), phase), (2, "c", UpdatePhase::Failed), "{message}");
        assert!(message.contains("nobody knows"), "{message}");
        machine.order("d");
        assert_eq!(machine.phase(UP_AT_LEAST).await, (3, UpdatePhase::Applying), "a later one is");
    }
}
