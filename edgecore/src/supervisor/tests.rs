//! The machine with time as an argument, and the task with a driver that only pretends.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use proto::{
    digest::Digest,
    name::Name,
    object::ReleaseRef,
    release::{Probe, Workload},
};
use rand::SeedableRng as _;
use tokio::{
    sync::Notify,
    time::{advance, timeout},
};

use super::*;
use crate::driver::Instance;

fn workload(json: &str) -> Workload {
    serde_json::from_str(json).unwrap()
}

fn exit(code: i32) -> LastExit {
    LastExit { code: Some(code), signal: None, at: Timestamp::UNIX_EPOCH, message: format!("exited with code {code}") }
}

fn failure() -> ProbeOutcome {
    ProbeOutcome::Failure("no".into())
}

/// A machine and its clock.
struct Rig {
    machine: Machine<ChaCha12Rng>,
    begin: Instant,
    now: Instant,
}

impl Rig {
    fn new(json: &str) -> Rig {
        let now = Instant::now();
        let machine = Machine::new(&workload(json), ChaCha12Rng::seed_from_u64(1), now);
        Rig { machine, begin: now, now }
    }

    fn ms(&self) -> u128 {
        (self.now - self.begin).as_millis()
    }

    fn poll(&mut self) -> Option<Action> {
        self.machine.poll(self.now)
    }

    /// Sleeps until the machine wants something and says what.
    fn next(&mut self) -> Action {
        loop {
            if let Some(action) = self.poll() {
                return action;
            }
            self.now = self.machine.wake_at().expect("it wants to wake").max(self.now);
        }
    }

    fn start(&mut self) {
        assert_eq!(self.next(), Action::Start);
        self.machine.started(self.now, Timestamp::UNIX_EPOCH);
    }

    fn probe(&mut self, kind: ProbeKind, outcome: &ProbeOutcome) {
        assert_eq!(self.next(), Action::Probe(kind));
        self.machine.probed(self.now, kind, outcome);
    }

    fn health(&self) -> &Health {
        self.machine.health()
    }
}

#[tokio::test]
async fn without_probes_running_is_healthy() {
    let mut rig = Rig::new(r#"{"command": "run"}"#);
    assert_eq!(rig.health().state, RunState::Starting);
    rig.start();
    assert!(rig.health().ready && rig.health().live && rig.health().message.is_empty());
    assert_eq!(rig.health().healthy_since, Some(rig.now));
    assert_eq!((rig.poll(), rig.machine.wake_at()), (None, None));
}

#[tokio::test]
async fn back_off_doubles_to_its_bound_and_resets_after_a_long_run() {
    let mut rig = Rig::new(r#"{"command": "run"}"#);
    let mut bound = Duration::from_secs(1);
    for restart in 0..12 {
        rig.start();
        assert_eq!(rig.health().restarts, restart);
        rig.machine.ended(rig.now, exit(1));
        assert_eq!(rig.health().state, RunState::BackOff);
        assert_eq!(rig.health().message, "exited with code 1");
        let wait = rig.machine.wake_at().unwrap() - rig.now;
        assert!(wait <= bound && wait >= bound.mul_f64(0.8), "{restart}: {wait:?} of {bound:?}");
        bound = (bound * 2).min(Duration::from_secs(300));
    }
    rig.start();
    rig.now += Duration::from_secs(600);
    rig.machine.ended(rig.now, exit(0));
    assert!(rig.machine.wake_at().unwrap() - rig.now <= Duration::from_secs(1));
}

#[tokio::test]
async fn policies_decide_about_an_end() {
    for (policy, code, again, healthy) in [
        ("always", 0, true, false),
        ("always", 1, true, false),
        ("onFailure", 0, false, true),
        ("onFailure", 1, true, false),
        ("never", 0, false, true),
        ("never", 1, false, false),
    ] {
        let mut rig = Rig::new(&format!(r#"{{"command": "run", "restart": "{policy}"}}"#));
        rig.start();
        let since = rig.health().healthy_since;
        rig.now += Duration::from_secs(5);
        rig.machine.ended(rig.now, exit(code));
        assert_eq!(rig.machine.wake_at().is_some(), again, "{policy} {code}");
        assert_eq!(rig.health().state, if again { RunState::BackOff } else { RunState::Exited });
        assert_eq!(rig.health().ready, healthy, "{policy} {code}");
        assert_eq!(rig.health().healthy_since, since.filter(|_| healthy));
        assert_eq!(rig.health().last_exit, Some(exit(code)));
    }
}

#[tokio::test]
async fn an_end_while_nobody_watched_counts_by_policy() {
    let mut rig = Rig::new(r#"{"command": "run", "restart": "never"}"#);
    rig.machine.found_ended(rig.now, exit(0));
    assert_eq!((rig.poll(), rig.health().ready, rig.health().state), (None, true, RunState::Exited));
    let mut rig = Rig::new(r#"{"command": "run"}"#);
    rig.machine.found_ended(rig.now, exit(0));
    rig.start();
    assert_eq!((rig.health().restarts, rig.health().last_exit.clone()), (0, Some(exit(0))));
}

#[tokio::test]
async fn a_start_that_fails_is_tried_again_whatever_the_policy() {
    let mut rig = Rig::new(r#"{"command": "run", "restart": "never"}"#);
    assert_eq!(rig.next(), Action::Start);
    rig.machine.start_failed(rig.now, "could not start web: no such user");
    assert_eq!(rig.health().message, "could not start web: no such user");
    assert_eq!(rig.health().state, RunState::BackOff);
    rig.start();
    assert_eq!(rig.health().restarts, 1);
}

const PROBED: &str = r#"{"command": "run", "probes": {
    "startup":   {"tcp": {"port": 1}, "period": "1s", "failureThreshold": 3},
    "liveness":  {"tcp": {"port": 2}, "period": "2s", "failureThreshold": 2},
    "readiness": {"tcp": {"port": 3}, "period": "1s", "failureThreshold": 2, "successThreshold": 2}}}"#;

#[tokio::test]
async fn startup_comes_first_and_gives_up_by_its_periods() {
    let mut rig = Rig::new(PROBED);
    rig.start();
    assert_eq!(rig.health().state, RunState::Starting);
    let mut attempts = vec![];
    while rig.health().state == RunState::Starting && rig.health().live {
        attempts.push(rig.ms());
        rig.probe(ProbeKind::Startup, &failure());
    }
    // Eager attempts between the periods do not count; the third regular one, at 2 s, does.
    assert_eq!(rig.ms(), 2000, "{attempts:?}");
    assert!(attempts.len() > 5);
    assert_eq!(rig.next(), Action::Kill);
    assert!(rig.health().message.contains("startup probe failed: no"), "{}", rig.health().message);
    rig.machine.killed(rig.now, exit(0));
    assert_eq!(rig.health().state, RunState::BackOff);
    assert!(rig.health().last_exit.as_ref().unwrap().message.contains("startup probe failed"));
    rig.start();
    rig.probe(ProbeKind::Startup, &ProbeOutcome::Success);
    assert_eq!((rig.health().state, rig.health().ready), (RunState::Running, false));
}

#[tokio::test]
async fn readiness_goes_and_comes_and_never_restarts() {
    let mut rig = Rig::new(
        r#"{"command": "run", "probes": {
        "readiness": {"tcp": {"port": 3}, "period": "1s", "failureThreshold": 2, "successThreshold": 2}}}"#,
    );
    rig.start();
    assert_eq!((rig.health().state, rig.health().ready), (RunState::Running, false));
    rig.probe(ProbeKind::Readiness, &failure());
    assert_eq!(rig.health().message, "readiness probe failed: no");
    rig.probe(ProbeKind::Readiness, &ProbeOutcome::Success);
    assert!(!rig.health().ready, "one success is not two");
    rig.probe(ProbeKind::Readiness, &ProbeOutcome::Success);
    let since = rig.now;
    assert_eq!((rig.health().ready, rig.health().healthy_since), (true, Some(since)));
    rig.probe(ProbeKind::Readiness, &failure());
    assert_eq!(rig.health().healthy_since, Some(since), "one failure is not two");
    rig.probe(ProbeKind::Readiness, &failure());
    assert_eq!((rig.health().ready, rig.health().healthy_since, rig.health().live), (false, None, true));
    rig.probe(ProbeKind::Readiness, &ProbeOutcome::Success);
    rig.probe(ProbeKind::Readiness, &ProbeOutcome::Success);
    assert_eq!(rig.health().healthy_since, Some(rig.now));
    assert!(rig.now > since);
    assert_eq!(rig.health().restarts, 0);
}

#[tokio::test]
async fn a_readiness_that_comes_soon_is_seen_soon() {
    let mut rig = Rig::new(r#"{"command": "run", "probes": {"readiness": {"tcp": {"port": 3}}}}"#); // every 10 s
    rig.start();
    while rig.ms() < 300 {
        rig.probe(ProbeKind::Readiness, &failure());
    }
    rig.probe(ProbeKind::Readiness, &ProbeOutcome::Success);
    assert!(rig.health().ready && rig.ms() < 1000, "{}", rig.ms());
    rig.probe(ProbeKind::Readiness, &ProbeOutcome::Success);
    assert_eq!(rig.ms(), 10_000, "then by its period");
}

#[tokio::test]
async fn liveness_restarts_after_failures_in_a_row() {
    let mut rig = Rig::new(
        r#"{"command": "run", "probes": {
        "liveness": {"tcp": {"port": 2}, "period": "2s", "failureThreshold": 2, "initialDelay": "5s"}}}"#,
    );
    rig.start();
    assert!(rig.health().ready);
    for outcome in [failure(), ProbeOutcome::Success, failure()] {
        rig.probe(ProbeKind::Liveness, &outcome);
        assert!(rig.health().live && rig.health().healthy_since.is_some());
    }
    assert_eq!(rig.ms(), 9000);
    rig.probe(ProbeKind::Liveness, &failure());
    assert_eq!((rig.health().live, rig.health().healthy_since), (false, None));
    assert_eq!(rig.next(), Action::Kill);
    assert_eq!(rig.poll(), None);
    rig.machine.killed(rig.now, exit(0));
    rig.start();
    assert_eq!(rig.health().restarts, 1);
}

#[tokio::test]
async fn a_long_run_resets_the_back_off_of_a_liveness_kill_too() {
    let mut rig = Rig::new(
        r#"{"command": "run", "probes": {
        "liveness": {"tcp": {"port": 2}, "period": "60s", "failureThreshold": 1}}}"#,
    );
    for failed_start in 0..9 {
        rig.start();
        rig.machine.ended(rig.now, exit(failed_start));
    }
    rig.start();
    for _ in 0..10 {
        rig.probe(ProbeKind::Liveness, &ProbeOutcome::Success);
    }
    rig.probe(ProbeKind::Liveness, &failure());
    assert_eq!(rig.next(), Action::Kill);
    rig.machine.killed(rig.now, exit(0));
    assert!(rig.machine.wake_at().unwrap() - rig.now <= Duration::from_secs(1));
}

#[tokio::test]
async fn late_words_about_a_program_that_is_gone_change_nothing() {
    let mut rig = Rig::new(PROBED);
    rig.start();
    assert_eq!(rig.next(), Action::Probe(ProbeKind::Startup));
    rig.machine.ended(rig.now, exit(1));
    let before = rig.health().clone();
    rig.machine.probed(rig.now, ProbeKind::Startup, &ProbeOutcome::Success);
    assert_eq!(*rig.health(), before);
}

/// Starts nothing, and does as the test says.
#[derive(Debug, Default)]
struct Pretend {
    state: Mutex<PretendState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct PretendState {
    instance: Option<Instance>,
    starts: u32,
    stops: u32,
    refuse: Option<String>,
    unready: bool,
    /// The driver cannot tell what runs.
    blind: bool,
}

impl Pretend {
    fn state(&self) -> MutexGuard<'_, PretendState> {
        self.state.lock().unwrap()
    }

    fn starts_and_stops(&self) -> (u32, u32) {
        let state = self.state();
        (state.starts, state.stops)
    }

    fn set_blind(&self, blind: bool) {
        self.state().blind = blind;
        self.changed.notify_waiters();
    }

    fn end(&self, exit: LastExit) {
        self.state().instance.as_mut().unwrap().exit = Some(exit);
        self.changed.notify_waiters();
    }
}

impl Driver for Pretend {
    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            let mut state = self.state();
            state.starts += 1;
            if let Some(problem) = state.refuse.clone() {
                return Err(DriverError { attempt: "start", app: spec.app.clone(), problem });
            }
            let (release, started_at) = (spec.release.clone(), Timestamp::UNIX_EPOCH);
            state.instance = Some(Instance { release, started_at, exit: None });
            Ok(())
        })
    }

    fn inspect<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<Option<Instance>, DriverError>> {
        Box::pin(async move { if self.state().blind { Err(blind()) } else { Ok(self.state().instance.clone()) } })
    }

    fn wait<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<LastExit, DriverError>> {
        Box::pin(async move {
            loop {
                let changed = self.changed.notified();
                if self.state().blind {
                    return Err(blind());
                }
                if let Some(exit) = self.state().instance.as_ref().and_then(|i| i.exit.clone()) {
                    return Ok(exit);
                }
                changed.await;
            }
        })
    }

    fn stop<'a>(&'a self, _: &'a Name, _: Duration) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            self.state().stops += 1;
            if self.state().instance.as_ref().is_some_and(|i| i.exit.is_none()) {
                self.end(LastExit { message: STOPPED_ON_REQUEST.into(), ..exit(0) });
            }
            Ok(())
        })
    }

    fn remove<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async { Ok(()) })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Name>, DriverError>> {
        Box::pin(async { Ok(vec![]) })
    }

    fn probe<'a>(&'a self, _: &'a InstanceSpec, _: &'a Probe) -> BoxFuture<'a, ProbeOutcome> {
        Box::pin(async move { if self.state().unready { failure() } else { ProbeOutcome::Success } })
    }

    fn logs<'a>(&'a self, _: &'a Name, _: Option<u32>, _: bool) -> BoxFuture<'a, Option<mpsc::Receiver<Bytes>>> {
        Box::pin(async { None })
    }
}

fn blind() -> DriverError {
    DriverError { attempt: "inspect", app: "web".parse().unwrap(), problem: "its records cannot be read".into() }
}

fn spec(json: &str) -> InstanceSpec {
    InstanceSpec {
        app: "web".parse().unwrap(),
        release: ReleaseRef { version: "1".parse().unwrap(), digest: Digest::of(b"1") },
        tree: "/tree".into(),
        data: "/data".into(),
        workload: workload(json),
    }
}

fn supervise(driver: &Arc<Pretend>, json: &str) -> Supervisor {
    Supervisor::start(Env::real().unwrap(), driver.clone(), spec(json))
}

async fn until(supervisor: &Supervisor, what: impl FnMut(&Health) -> bool) -> Health {
    let mut health = supervisor.health();
    let found = timeout(Duration::from_secs(3600), health.wait_for(what)).await;
    found.expect("it comes about").unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn the_task_restarts_and_reports() {
    let driver = Arc::new(Pretend::default());
    driver.state().refuse = Some("no such user".into());
    let supervisor = supervise(&driver, r#"{"command": "run"}"#);
    until(&supervisor, |h| h.message.contains("no such user")).await;
    driver.state().refuse = None;
    until(&supervisor, |h| h.healthy_since.is_some()).await;
    driver.end(exit(7));
    assert_eq!(until(&supervisor, |h| h.state == RunState::BackOff).await.last_exit, Some(exit(7)));
    let again = until(&supervisor, |h| h.healthy_since.is_some()).await;
    assert_eq!((again.restarts, driver.state().starts), (2, 3));
    supervisor.stop().await.unwrap();
    assert_eq!(driver.state().stops, 1);
    assert!(driver.state().instance.as_ref().unwrap().exit.is_some());
}

#[tokio::test(start_paused = true)]
async fn the_task_adopts_the_same_release_and_replaces_another() {
    let driver = Arc::new(Pretend::default());
    supervise(&driver, r#"{"command": "run"}"#).detach();
    let first = supervise(&driver, r#"{"command": "run"}"#);
    until(&first, |h| h.healthy_since.is_some()).await;
    drop(first);
    let second = supervise(&driver, r#"{"command": "run"}"#);
    until(&second, |h| h.healthy_since.is_some()).await;
    assert_eq!(driver.starts_and_stops(), (1, 0), "adopted, never stopped");
    second.detach();
    driver.state().instance.as_mut().unwrap().release.digest = Digest::of(b"2");
    let third = supervise(&driver, r#"{"command": "run"}"#);
    until(&third, |h| h.healthy_since.is_some()).await;
    assert_eq!(driver.state().starts, 2);
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_cannot_tell_is_asked_again_and_nothing_is_restarted() {
    let driver = Arc::new(Pretend::default());
    let first = supervise(&driver, r#"{"command": "run"}"#);
    let mut health = first.health();
    until(&first, |h| h.healthy_since.is_some()).await;
    driver.set_blind(true);
    let quiet = timeout(Duration::from_secs(60), health.wait_for(|h| h.healthy_since.is_none())).await;
    assert!(quiet.is_err(), "an error is no end");
    driver.set_blind(false);
    driver.end(exit(7));
    assert_eq!(until(&first, |h| h.state == RunState::BackOff).await.last_exit, Some(exit(7)));
    until(&first, |h| h.healthy_since.is_some()).await;
    first.detach();

    // The same for who comes anew, and it can be stopped meanwhile.
    driver.set_blind(true);
    let second = supervise(&driver, r#"{"command": "run"}"#);
    until(&second, |h| h.message.contains("cannot be read")).await;
    driver.set_blind(false);
    until(&second, |h| h.healthy_since.is_some()).await;
    assert_eq!(driver.starts_and_stops(), (2, 0));
    // Gone without a word is an end.
    driver.set_blind(true);
    advance(Duration::from_secs(1)).await;
    driver.state().instance = None;
    driver.set_blind(false);
    until(&second, |h| h.state == RunState::BackOff).await;
    until(&second, |h| h.healthy_since.is_some()).await;
    second.detach();
    driver.set_blind(true);
    let third = supervise(&driver, r#"{"command": "run"}"#);
    until(&third, |h| h.message.contains("cannot be read")).await;
    third.stop().await.unwrap();
    assert_eq!(driver.starts_and_stops(), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn what_was_stopped_on_request_starts_again_and_what_finished_does_not() {
    let driver = Arc::new(Pretend::default());
    let once = r#"{"command": "run", "restart": "never"}"#;
    let first = supervise(&driver, once);
    until(&first, |h| h.state == RunState::Running).await;
    first.stop().await.unwrap();
    let second = supervise(&driver, once);
    until(&second, |h| h.state == RunState::Running).await;
    driver.end(exit(0));
    until(&second, |h| h.state == RunState::Exited && h.healthy_since.is_some()).await;
    second.detach();
    let third = supervise(&driver, once);
    until(&third, |h| h.state == RunState::Exited && h.healthy_since.is_some()).await;
    advance(Duration::from_secs(3600)).await;
    assert_eq!(driver.state().starts, 2);
}

#[tokio::test(start_paused = true)]
async fn the_task_kills_by_liveness() {
    let driver = Arc::new(Pretend::default());
    let probed = r#"{"command": "run", "probes": {"liveness": {"tcp": {"port": 1}, "period": "1s"}}}"#;
    let supervisor = supervise(&driver, probed);
    until(&supervisor, |h| h.healthy_since.is_some()).await;
    driver.state().unready = true;
    let down = until(&supervisor, |h| h.state == RunState::BackOff).await;
    assert_eq!(down.last_exit.unwrap().message, "liveness probe failed: no; it is restarted");
    driver.state().unready = false;
    let again = until(&supervisor, |h| h.healthy_since.is_some()).await;
    assert_eq!((again.restarts, driver.state().stops), (1, 1));
}
