//! Several instances of a workload on one box, as many as a number that it reports asks for.
//!
//! The terms are those of Kubernetes' HorizontalPodAutoscaler (v2) with a target of type `AverageValue`:
//!
//! ```text
//! desired = ceil(number / target), held between min and max
//! ```
//!
//! - Within 10 % of what the present replicas are for, nothing changes ([`TOLERANCE`]).
//! - Down it goes only to the most that was wanted at any time of the last `stabilizationWindow`.
//! - A number that is absent, or older than a minute, changes nothing.
//!
//! Replica 0 is the app's ordinary instance: it alone is updated, tried, confirmed and taken back. The others,
//! `CROSSDOCK_REPLICA` 1 and up, exist while nothing else goes on with the app, and go before an update begins.
//!
//! The number is one of the metrics that a workload reports (`PUT /v1/metrics`). Reported without `replica` it is of the
//! app as a whole, such as the length of a queue that all work on, and the newest report of any replica stands. Reported
//! with `"replica": $CROSSDOCK_REPLICA` it is that replica's own, and those of all replicas are added.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{ManifestError, RestartPolicy, Workload, container::Network};
use crate::{
    name::{MetricName, Name},
    units::Span,
};

/// Most instances of an app on one box.
pub const MAX_REPLICAS: u8 = 16;
/// So far from what the present replicas are for may the number be without any change, as in Kubernetes.
pub const TOLERANCE: f64 = 0.1;
/// Longest window, as in Kubernetes.
const MAX_WINDOW: Span = Span::from_secs(3600);
/// Names a replica's number to it, with [`Replicas`].
pub const VARIABLE: &str = "CROSSDOCK_REPLICA";
/// What an agent adds to an app's name, before the number, for replicas but the first.
const SUFFIX: &str = "--r";

/// How many instances of a workload run on its box. Agents that do not know this run one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Replicas {
    /// At least so many, where the box has room. What the workload asks of its box counts so many times.
    #[serde(default = "one")]
    pub min: u8,
    /// At most so many; those above `min` run where the box has room left, and make way for other apps.
    pub max: u8,
    /// The metric that says how much there is to do.
    pub metric: MetricName,
    /// How much of it is for one replica.
    pub target: Quantity,
    /// How long less must have been enough before replicas are stopped. Default: 5 minutes; at most an hour.
    #[serde(default = "default_window", skip_serializing_if = "is_default_window")]
    pub stabilization_window: Span,
}

fn one() -> u8 {
    1
}

fn default_window() -> Span {
    Span::from_secs(300)
}

fn is_default_window(window: &Span) -> bool {
    *window == default_window()
}

impl Replicas {
    /// Checks what cannot work with several instances of `workload` on one box.
    ///
    /// # Errors
    /// The first such field.
    pub(super) fn check(&self, app: &Name, workload: &Workload) -> Result<(), ManifestError> {
        let wrong = |text: String| Err(ManifestError::Workload(text));
        let Replicas { min, max, .. } = *self;
        if min == 0 || min > max || max > MAX_REPLICAS {
            return wrong(format!("replicas {min} to {max}: write 1 <= min <= max <= {MAX_REPLICAS}"));
        }
        if self.stabilization_window > MAX_WINDOW {
            return wrong(format!("replicas.stabilizationWindow is longer than {MAX_WINDOW}"));
        }
        if key(app, MAX_REPLICAS - 1).is_none() {
            return wrong("replicas need an app name of at most 58 characters".into());
        }
        if workload.gpus.is_some() {
            return wrong(
                "replicas and gpus do not go together: a GPU is given to an app once; have one instance use it, and \
                 split the work among its threads"
                    .into(),
            );
        }
        if workload.restart != RestartPolicy::Always {
            return wrong("replicas need restart: always, as those of Kubernetes do".into());
        }
        if workload.container.as_ref().is_some_and(|container| !container.publish.is_empty()) {
            return wrong(
                "replicas and container.publish do not go together: a port of the box has one container".into(),
            );
        }
        let shares_ports = workload.container.as_ref().is_none_or(|container| container.network == Network::Host);
        if let Some(port) = workload.ports.first().filter(|_| shares_ports) {
            return wrong(format!(
                "replicas and port {} do not go together: all of them share the ports of the box; leave it out where \
                 each listens with SO_REUSEPORT",
                port.port
            ));
        }
        let probes = &workload.probes;
        let mut by_port = [&probes.startup, &probes.liveness, &probes.readiness].into_iter().flatten();
        if shares_ports && by_port.any(|probe| probe.exec.is_none()) {
            return wrong(
                "replicas need exec probes where they share the ports of the box: http and tcp could be answered by \
                 another one"
                    .into(),
            );
        }
        Ok(())
    }
}

/// No app with a workload is named as agents name replicas.
///
/// # Errors
/// When it is.
pub(super) fn check_name(app: &Name) -> Result<(), ManifestError> {
    match of(app) {
        (_, 0) => Ok(()),
        _ => {
            let text = format!("no app with a workload may be named ...{SUFFIX} and a number: so agents name replicas");
            Err(ManifestError::Workload(text))
        }
    }
}

/// The name by which drivers know a replica of an app: the first has the app's own. None where the app's name is too
/// long for more.
#[must_use]
pub fn key(app: &Name, replica: u8) -> Option<Name> {
    if replica == 0 { Some(app.clone()) } else { format!("{app}{SUFFIX}{replica}").parse().ok() }
}

/// Whose replica has this name; an app's own name is that of replica 0.
#[must_use]
pub fn of(key: &Name) -> (Name, u8) {
    let split = || {
        let (app, number) = key.as_str().rsplit_once(SUFFIX)?;
        let replica = number.parse().ok().filter(|n: &u8| (1..MAX_REPLICAS).contains(n) && n.to_string() == number)?;
        Some((app.parse().ok()?, replica))
    };
    split().unwrap_or_else(|| (key.clone(), 0))
}

/// A positive number with three decimals, written as in Kubernetes: `100`, `0.5`, `500m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "NumberOrText", into = "String")]
pub struct Quantity {
    /// Thousandths; never 0.
    millis: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(f64),
    Text(String),
}

impl Quantity {
    /// The largest.
    const MOST: f64 = 1e12;

    /// As a number; never 0.
    #[must_use]
    pub fn get(self) -> f64 {
        self.millis as f64 / 1000.0
    }
}

impl FromStr for Quantity {
    type Err = String;
    fn from_str(text: &str) -> Result<Quantity, String> {
        let wrong = || {
            let text: String = text.chars().take(40).collect();
            format!("{text:?} is no quantity: write a number from 0.001 to 1000000000000, such as 100, 0.5 or 500m")
        };
        let (number, scale) = text.trim().strip_suffix('m').map_or((text.trim(), 1000.0), |number| (number, 1.0));
        let millis = (number.parse::<f64>().map_err(|_| wrong())? * scale).round();
        if (1.0..=Quantity::MOST * 1000.0).contains(&millis) {
            Ok(Quantity { millis: millis as u64 })
        } else {
            Err(wrong())
        }
    }
}

impl TryFrom<NumberOrText> for Quantity {
    type Error = String;
    fn try_from(written: NumberOrText) -> Result<Quantity, String> {
        match written {
            NumberOrText::Number(number) => number.to_string().parse(),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

impl From<Quantity> for String {
    fn from(quantity: Quantity) -> String {
        quantity.to_string()
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(app: &str, more: &str) -> Result<(), String> {
        let text = format!(r#"{{"replicas": {{"max": 4, "metric": "backlog", "target": 100}}, {more}}}"#);
        let workload: Workload = serde_json::from_str(&text).unwrap();
        let app = app.parse().unwrap();
        check_name(&app).and(workload.replicas.as_ref().unwrap().check(&app, &workload)).map_err(|e| e.to_string())
    }

    #[test]
    fn what_several_cannot_share_is_refused() {
        let exec = r#""probes": {"readiness": {"exec": {"command": ["bin/ready"]}}}"#;
        let tcp = r#""probes": {"readiness": {"tcp": {"port": 80}}}"#;
        let port = r#""ports": [{"name": "http", "port": 80}]"#;
        assert_eq!(check("vision", &format!(r#""command": "run", {exec}"#)), Ok(()));
        assert_eq!(check("vision", &format!(r#""container": {{}}, {tcp}, {port}"#)), Ok(()), "they have own addresses");
        let long = "x".repeat(59);
        for (app, bad, why) in [
            ("vision", format!(r#""command": "run", {tcp}"#), "need exec probes"),
            ("vision", format!(r#""command": "run", {port}"#), "port 80 do not go together"),
            ("vision", format!(r#""container": {{"network": "host"}}, {tcp}"#), "need exec probes"),
            ("vision", r#""container": {"publish": [{"port": 80}]}"#.into(), "publish"),
            ("vision", r#""command": "run", "gpus": {}"#.into(), "gpus"),
            ("vision", r#""command": "run", "restart": "onFailure""#.into(), "restart: always"),
            (&long, r#""command": "run""#.into(), "at most 58 characters"),
            ("vision--r7", r#""command": "run""#.into(), "may be named"),
        ] {
            let error = check(app, &bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn bounds_that_hold_nothing_are_refused() {
        let parse = |text: &str| serde_json::from_str::<Replicas>(text);
        let workload = Workload::new("run".into());
        let app = "vision".parse().unwrap();
        let whole = r#"{"min": 2, "max": 16, "metric": "backlog", "target": "0.5", "stabilizationWindow": "1m"}"#;
        let whole = parse(whole).unwrap();
        whole.check(&app, &workload).unwrap();
        assert_eq!(parse(&serde_json::to_string(&whole).unwrap()).unwrap(), whole);
        for bad in [
            r#"{"min": 0, "max": 1, "metric": "b", "target": 1}"#,
            r#"{"min": 3, "max": 2, "metric": "b", "target": 1}"#,
            r#"{"max": 17, "metric": "b", "target": 1}"#,
            r#"{"max": 2, "metric": "b", "target": 1, "stabilizationWindow": "2h"}"#,
        ] {
            assert!(parse(bad).unwrap().check(&app, &workload).is_err(), "{bad}");
        }
        for bad in ["0", "-1", "\"x\"", "\"NaN\"", "\"inf\"", "\"0.4m\"", "1e13", "\"m\""] {
            assert!(serde_json::from_str::<Quantity>(bad).is_err(), "{bad}");
        }
        for (text, is) in
            [("100", "100"), ("0.5", "0.5"), ("\"500m\"", "0.5"), ("\"1\"", "1"), ("1e12", "1000000000000")]
        {
            assert_eq!(serde_json::from_str::<Quantity>(text).unwrap().to_string(), is);
        }
    }

    #[test]
    fn a_key_tells_whose_replica_it_is() {
        let app: Name = "vision".parse().unwrap();
        for replica in 0..MAX_REPLICAS {
            assert_eq!(of(&key(&app, replica).unwrap()), (app.clone(), replica));
        }
        for other in ["vision--r0", "vision--r16", "vision--r01", "vision--rx", "vision-r1"] {
            let other: Name = other.parse().unwrap();
            assert_eq!(of(&other), (other, 0));
        }
    }

    #[test]
    fn what_it_asks_of_its_box_counts_as_often_as_it_always_runs() {
        let text = r#"{"command": "run", "requests": {"memory": "1Gi"}, "limits": {"cpuMillis": 500},
            "replicas": {"min": 3, "max": 9, "metric": "b", "target": 1}}"#;
        let workload: Workload = serde_json::from_str(text).unwrap();
        let (asks, each) = (workload.asks(), workload.each_asks());
        assert_eq!((asks.memory.unwrap().get(), asks.cpu_millis), (3 << 30, Some(1500)));
        assert_eq!((each.memory.unwrap().get(), each.cpu_millis), (1 << 30, Some(500)));
    }
}
