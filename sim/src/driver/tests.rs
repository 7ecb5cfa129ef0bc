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
