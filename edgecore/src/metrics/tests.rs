use super::*;

fn told(app: &str, digest: &[u8], values: &[(&str, f64)]) -> Told {
    let values = values.iter().map(|(name, value)| (name.parse().unwrap(), *value)).collect();
    Told { app: app.parse().unwrap(), digest: Digest::of(digest), values }
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
