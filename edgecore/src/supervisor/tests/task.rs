//! The task with a driver that only pretends: it starts, adopts, asks again, stops.

use std::collections::BTreeMap;

use super::*;

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
    /// What is to be there before a start is on its way, and does not arrive.
    fetching: bool,
    /// Why it does not.
    missing: Option<String>,
    prepared: u32,
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
    fn prepare<'a>(&'a self, _: &'a InstanceSpec) -> BoxFuture<'a, Result<(), NotReady>> {
        Box::pin(async move {
            while self.state().fetching {
                sleep(Duration::from_secs(1)).await;
            }
            let mut state = self.state();
            state.prepared += 1;
            let missing = state.missing.clone();
            missing.map_or(Ok(()), |message| Err(NotReady { reason: "ImagePullFailed", message }))
        })
    }

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
        side: Side::A,
        replica: 0,
        run: None,
        release: ReleaseRef { version: "1".parse().unwrap(), digest: Digest::of(b"1") },
        tree: "/tree".into(),
        data: "/data".into(),
        workload: workload(json),
        gpus: vec![],
        uses: BTreeMap::new(),
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
async fn what_has_to_come_first_keeps_nobody_from_stopping() {
    let driver = Arc::new(Pretend::default());
    driver.state().fetching = true;
    let supervisor = supervise(&driver, r#"{"command": "run"}"#);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(driver.starts_and_stops(), (0, 0));
    let health = supervisor.health();
    timeout(Duration::from_secs(1), supervisor.stop()).await.expect("nobody waits for the image").unwrap();
    assert_eq!((driver.starts_and_stops(), health.borrow().state), ((0, 1), RunState::Stopped));

    // What cannot be had is a start that failed: it is tried again, less and less often.
    driver.state().fetching = false;
    driver.state().missing = Some("no route to the registry".into());
    let supervisor = supervise(&driver, r#"{"command": "run"}"#);
    let health = until(&supervisor, |h| h.message.contains("no route to the registry")).await;
    assert!(health.message.contains("could not start web"), "{health:?}");
    sleep(Duration::from_secs(120)).await;
    let tried = driver.state().prepared;
    assert!((4..12).contains(&tried), "{tried}");
    driver.state().missing = None;
    until(&supervisor, |h| h.state == RunState::Running).await;
    assert_eq!(driver.starts_and_stops(), (1, 1));
    supervisor.stop().await.unwrap();
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
    let quiet = timeout(UNSEEN, health.wait_for(|h| h.healthy_since.is_none())).await;
    assert!(quiet.is_err(), "an error is no end");
    // After a while it is not said any more that it is ready, until somebody can tell again.
    let lost = until(&first, |h| !h.ready).await;
    assert!(lost.live && lost.message.starts_with("nobody knows whether it runs: "), "{lost:?}");
    driver.set_blind(false);
    let seen = until(&first, |h| h.healthy_since.is_some()).await;
    assert_eq!((seen.message.as_str(), driver.starts_and_stops()), ("", (1, 0)));
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
