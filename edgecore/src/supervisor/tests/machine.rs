//! The machine alone, with time as an argument: probes, policies, back-off.

use super::*;

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
