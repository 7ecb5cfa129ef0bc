use edgecore::driver::{Driver as _, ProbeOutcome, Side};
use proto::{object::ReleaseRef, release::Probe};
use tokio::time::Instant;

use super::*;
use crate::clock::HostClock;

fn spec(args: &[&str]) -> InstanceSpec {
    let args = serde_json::to_string(args).unwrap();
    InstanceSpec {
        app: "app".parse().unwrap(),
        side: Side::A,
        replica: 0,
        run: None,
        release: ReleaseRef { version: "1".parse().unwrap(), digest: Digest::of(b"m") },
        tree: "/nonexistent".into(),
        data: "/nonexistent".into(),
        workload: serde_json::from_str(&format!(r#"{{"command": "bin/run", "args": {args}}}"#)).unwrap(),
        gpus: vec![],
        uses: BTreeMap::new(),
    }
}

fn driver() -> SimDriver {
    let wall = Arc::new(HostClock::new(Instant::now()));
    SimDriver::new("box", wall, Released::default(), Trace::new(None).unwrap())
}

#[tokio::test(start_paused = true)]
async fn instances_do_what_their_release_says() {
    let driver = driver();
    let app: Name = "app".parse().unwrap();
    let probe: Probe = serde_json::from_str(r#"{"tcp": {"port": 1}}"#).unwrap();

    driver.start(&spec(&["crash-after=2s"])).await.unwrap();
    assert_eq!(driver.inspect(&app).await.unwrap().unwrap().exit, None);
    assert_eq!(driver.wait(&app).await.unwrap().code, Some(1));
    assert!(driver.inspect(&app).await.unwrap().unwrap().exit.is_some());

    driver.start(&spec(&["hang"])).await.unwrap();
    assert!(matches!(driver.probe(&spec(&[]), &probe).await, ProbeOutcome::Failure(_)));
    let before = Instant::now();
    driver.stop(&app, Duration::from_secs(5)).await.unwrap();
    assert_eq!(before.elapsed(), Duration::from_secs(5));
    assert_eq!(driver.wait(&app).await.unwrap().signal, Some(9));

    assert!(driver.start(&spec(&["refuse"])).await.is_err());
    driver.start(&spec(&[])).await.unwrap();
    assert_eq!(driver.probe(&spec(&[]), &probe).await, ProbeOutcome::Success);
    driver.lose_all();
    assert_eq!(driver.inspect(&app).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn what_was_never_released_is_seen() {
    let driver = driver();
    driver.start(&spec(&[])).await.unwrap();
    assert_eq!(driver.violations().len(), 1);
}

fn scaled(replica: u8, release: &str) -> InstanceSpec {
    let mut spec = InstanceSpec { replica, ..spec(&["tell=backlog:30"]) };
    spec.release.digest = Digest::of(release.as_bytes());
    spec.release.version = release.parse().unwrap();
    let replicas = r#"{"max": 3, "metric": "backlog", "target": 100}"#;
    spec.workload.replicas = Some(serde_json::from_str(replicas).unwrap());
    spec.workload.soak = proto::units::Span::from_secs(3);
    spec
}

#[tokio::test(start_paused = true)]
async fn replicas_that_are_not_to_be_are_seen() {
    let driver = driver();
    let problem = |spec: &InstanceSpec| driver.check_replicas(spec).err().unwrap_or_default();
    assert_eq!(problem(&scaled(0, "1")), "");
    driver.start(&scaled(0, "1")).await.unwrap();
    assert_eq!(problem(&scaled(1, "1")), "its replica 1 begins before it can be proved");
    sleep(Duration::from_secs(3)).await;
    assert_eq!(problem(&scaled(2, "1")), "");
    assert_eq!(problem(&scaled(3, "1")), "it is replica 3, of at most 3 with 0");
    assert_eq!(problem(&scaled(1, "2")), "its replica 1 begins beside 1");
    driver.start(&scaled(1, "1")).await.unwrap();
    assert_eq!(problem(&scaled(0, "1")), "", "the first one may start again");
    assert_eq!(problem(&scaled(0, "2")), "it begins beside replica 1 of 1");
    let warm = InstanceSpec { run: Some("/nonexistent/b".into()), ..scaled(0, "2") };
    assert_eq!(problem(&warm), "", "it is not live");
}

#[tokio::test(start_paused = true)]
async fn replicas_tell_what_their_release_says_or_the_backlog_of_their_box() {
    let driver = driver();
    driver.start(&scaled(0, "1")).await.unwrap();
    driver.start(&scaled(1, "1")).await.unwrap();
    let app: Name = "app".parse().unwrap();
    assert_eq!(driver.all_running().len(), 1, "the first one is what runs of the app");
    assert_eq!(driver.other_replicas(), [(app.clone(), 1, "1".parse().unwrap(), 2)]);
    let metrics = edgecore::metrics::Metrics::default();
    metrics.begin(&app, Digest::of(b"1"));
    metrics.scale(&app, &"backlog".parse().unwrap(), [0, 1].into());
    for (backlog, value) in [(None, 30.0), (Some(400), 400.0), (None, 30.0)] {
        driver.set_backlog(backlog);
        tokio::select! {
            never = driver.tell(metrics.clone()) => match never {},
            () = sleep(Duration::from_secs(2)) => {}
        }
        assert_eq!(metrics.reading(&app).unwrap().value, value);
    }
    assert!(driver.follows_backlog());
}
