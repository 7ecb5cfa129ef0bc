use super::*;

fn told(app: &str, digest: &[u8], values: &[(&str, f64)]) -> Told {
    let values = values.iter().map(|(name, value)| (name.parse().unwrap(), *value)).collect();
    Told { app: app.parse().unwrap(), digest: Digest::of(digest), replica: None, values }
}

fn vision() -> (Metrics, Name) {
    let (metrics, app) = (Metrics::default(), "vision".parse::<Name>().unwrap());
    metrics.begin(&app, Digest::of(b"1"));
    (metrics, app)
}

#[test]
fn only_what_runs_is_heard() {
    let (metrics, app) = vision();
    let fps = |digest: &[u8]| metrics.take(told("vision", digest, &[("fps", 25.0)]));
    assert_eq!(fps(b"1"), Ok(()));
    assert!(matches!(fps(b"2"), Err(Refused::OtherRelease { .. })));
    assert_eq!(metrics.take(told("other", b"1", &[])), Err(Refused::UnknownApp("other".parse().unwrap())));
    metrics.end(&app);
    assert_eq!(fps(b"1"), Err(Refused::UnknownApp(app.clone())), "it is on its way out");
    metrics.begin(&app, Digest::of(b"2"));
    assert!(fps(b"1").unwrap_err().to_string().contains("CROSSDOCK_DIGEST"));
    assert_eq!(fps(b"2"), Ok(()));
}

#[test]
fn samples_count_while_it_is_healthy() {
    let (metrics, app) = vision();
    let fps = |value| metrics.take(told("vision", b"1", &[("fps", value)])).unwrap();
    fps(1.0);
    assert!(metrics.summaries(&app).is_empty(), "it only starts");
    metrics.set_healthy(&app, true);
    fps(20.0);
    fps(30.0);
    metrics.set_healthy(&app, false);
    fps(1.0);
    assert_eq!(metrics.summaries(&app)["fps"], MetricSummary { samples: 2, mean: 25.0 });
    assert_eq!(metrics.live()[&app]["fps"], 1.0);
    assert_eq!(metrics.end(&app)["fps"].samples, 2);
    assert!(metrics.live().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_old_is_not_shown() {
    let (metrics, app) = vision();
    metrics.take(told("vision", b"1", &[("fps", 25.0), ("queue_length", 3.0)])).unwrap();
    tokio::time::advance(Duration::from_secs(59)).await;
    metrics.take(told("vision", b"1", &[("fps", 24.0)])).unwrap();
    assert_eq!(metrics.live()[&app].len(), 2);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(metrics.live()[&app].keys().map(MetricName::as_str).collect::<Vec<_>>(), ["fps"]);
    tokio::time::advance(STALE).await;
    assert!(metrics.live().is_empty());
}

#[test]
fn it_is_bounded_whatever_workloads_do() {
    let (metrics, app) = vision();
    let names: Vec<String> = (0..=MAX_METRICS).map(|i| format!("m{i}")).collect();
    let values: Vec<(&str, f64)> = names.iter().map(|name| (name.as_str(), 1.0)).collect();
    assert_eq!(metrics.take(told("vision", b"1", &values)), Err(Refused::TooMany));
    assert!(metrics.live().is_empty(), "all or nothing");
    metrics.take(told("vision", b"1", &values[..MAX_METRICS])).unwrap();
    metrics.take(told("vision", b"1", &values[..MAX_METRICS])).unwrap();
    assert_eq!(metrics.take(told("vision", b"1", &values[MAX_METRICS..])), Err(Refused::TooMany));
    assert_eq!(metrics.live()[&app].len(), MAX_METRICS);
    let not = metrics.take(told("vision", b"1", &[("m0", f64::NAN)]));
    assert_eq!(not, Err(Refused::NotFinite("m0".parse().unwrap())));
}

/// Of an app that is scaled on its backlog, with replicas 0 to 2.
fn scaled() -> (Metrics, Name) {
    let (metrics, app) = vision();
    metrics.set_healthy(&app, true);
    metrics.scale(&app, &"backlog".parse().unwrap(), [0, 1, 2].into());
    (metrics, app)
}

fn by(metrics: &Metrics, replica: Option<u8>, values: &[(&str, f64)]) -> Result<(), Refused> {
    metrics.take(Told { replica, ..told("vision", b"1", values) })
}

#[tokio::test(start_paused = true)]
async fn a_number_of_the_whole_is_the_newest_that_anybody_told() {
    let (metrics, app) = scaled();
    assert_eq!(metrics.reading(&app), None, "nobody told");
    by(&metrics, None, &[("backlog", 250.0)]).unwrap();
    by(&metrics, None, &[("backlog", 240.0)]).unwrap();
    assert_eq!(metrics.reading(&app), Some(Reading { value: 240.0, silent: vec![] }));
    tokio::time::advance(STALE).await;
    assert_eq!(metrics.reading(&app), None, "it is old");
    assert_eq!(Metrics::default().reading(&app), None);
}

#[tokio::test(start_paused = true)]
async fn numbers_of_replicas_are_added_while_they_are_fresh_and_theirs() {
    let (metrics, app) = scaled();
    by(&metrics, Some(0), &[("backlog", 100.0), ("fps", 25.0)]).unwrap();
    by(&metrics, Some(2), &[("backlog", 30.0), ("fps", 1.0)]).unwrap();
    assert_eq!(metrics.reading(&app), Some(Reading { value: 130.0, silent: vec![1] }));
    let live = metrics.live();
    assert_eq!((live[&app]["backlog"], live[&app]["fps"]), (130.0, 25.0), "figures besides are the first one's");
    assert_eq!(metrics.summaries(&app)["fps"].samples, 1);
    assert!(by(&metrics, Some(3), &[("backlog", 9.0)]).unwrap_err().to_string().contains("CROSSDOCK_REPLICA"));
    // One that is stopped counts no more, nor does one that fell silent.
    metrics.scale(&app, &"backlog".parse().unwrap(), [0, 1].into());
    assert_eq!(metrics.reading(&app), Some(Reading { value: 100.0, silent: vec![1] }));
    tokio::time::advance(STALE / 2).await;
    by(&metrics, Some(1), &[("backlog", 7.0)]).unwrap();
    tokio::time::advance(STALE / 2).await;
    assert_eq!(metrics.reading(&app), Some(Reading { value: 7.0, silent: vec![0] }));
    // Somebody tells of all of them.
    by(&metrics, None, &[("backlog", 500.0)]).unwrap();
    assert_eq!(metrics.reading(&app), Some(Reading { value: 500.0, silent: vec![] }));
    // Of an app that is not scaled only the first is known.
    metrics.begin(&app, Digest::of(b"1"));
    by(&metrics, Some(0), &[("backlog", 1.0)]).unwrap();
    assert!(matches!(by(&metrics, Some(1), &[]), Err(Refused::NoReplica { replica: 1, .. })));
}
