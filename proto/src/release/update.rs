//! How one release of a workload follows another: stopped and started, or beside each other for a while.

use serde::{Deserialize, Serialize};

use super::{ManifestError, Workload, container::Network};
use crate::name::Name;

/// What an agent adds to an app's name for the second of two instances. No app with a workload is named so.
pub const SECOND_SUFFIX: &str = "--b";

/// How one release follows another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Update {
    /// In which order.
    #[serde(default)]
    pub strategy: Strategy,
}

/// In which order a workload's old and new instance are stopped and started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Strategy {
    /// The old one is stopped, then the new one is started.
    #[default]
    StopStart,
    /// The new one is started beside the old one, which goes on until the new one is ready; then the new one is made
    /// live, and the old one is stopped. Both releases must say so, and the box must have the memory and the GPUs for
    /// both; else it is as [`Strategy::StopStart`]. So it is with agents that do not know this.
    ///
    /// Each instance has a folder of its own for its sockets, `CROSSDOCK_RUN`, which is empty when it starts, and
    /// `CROSSDOCK_LIVE` is a link beside it that leads to the folder of the one that is live: an instance is live
    /// while both are the same folder (in a shell: `[ "$CROSSDOCK_LIVE" -ef "$CROSSDOCK_RUN" ]`), and clients that open
    /// a socket through the link reach the live one. The link changes by one rename. The folder `CROSSDOCK_DATA` is the
    /// same for both.
    Warm,
}

impl Update {
    /// Whether it says nothing but the default.
    pub(super) fn is_default(&self) -> bool {
        *self == Update::default()
    }

    /// Whether old and new run beside each other for a while.
    #[must_use]
    pub fn is_warm(self) -> bool {
        self.strategy == Strategy::Warm
    }

    /// Checks what cannot work with two instances of `workload` beside each other.
    ///
    /// # Errors
    /// The first such field.
    pub(super) fn check(self, app: &Name, workload: &Workload) -> Result<(), ManifestError> {
        let wrong = |text: String| Err(ManifestError::Workload(text));
        if app.as_str().ends_with(SECOND_SUFFIX) {
            return wrong(format!(
                "no app with a workload may be named ...{SECOND_SUFFIX}: so agents name second instances"
            ));
        }
        if !self.is_warm() {
            return Ok(());
        }
        if second(app).is_none() {
            return wrong(format!(
                "update.strategy warm needs an app name of at most {} characters",
                63 - SECOND_SUFFIX.len()
            ));
        }
        let probes = &workload.probes;
        if probes.startup.is_none() && probes.readiness.is_none() {
            return wrong(
                "update.strategy warm needs a startup or readiness probe: nothing else says when it is warm".into(),
            );
        }
        if workload.container.as_ref().is_some_and(|container| !container.publish.is_empty()) {
            return wrong(
                "update.strategy warm and container.publish do not go together: a port of the box has one container; \
                 serve a socket in CROSSDOCK_RUN"
                    .into(),
            );
        }
        let shares_ports = workload.container.as_ref().is_none_or(|container| container.network == Network::Host);
        let by_port = [&probes.startup, &probes.liveness, &probes.readiness].into_iter().flatten();
        if shares_ports && by_port.clone().any(|probe| probe.exec.is_none()) {
            return wrong(
                "update.strategy warm needs exec probes where two instances share the ports of the box: http and tcp \
                 could be answered by the other one; ask a socket in CROSSDOCK_RUN"
                    .into(),
            );
        }
        Ok(())
    }
}

/// Name of an app's second instance; none for a name that is too long to have one.
#[must_use]
pub fn second(app: &Name) -> Option<Name> {
    format!("{app}{SECOND_SUFFIX}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(app: &str, workload: &str) -> Result<(), String> {
        let workload: Workload = serde_json::from_str(workload).unwrap();
        workload.update.check(&app.parse().unwrap(), &workload).map_err(|e| e.to_string())
    }

    #[test]
    fn what_two_instances_cannot_share_is_refused() {
        let exec = r#""probes": {"readiness": {"exec": {"command": ["bin/ready"]}}}"#;
        let tcp = r#""probes": {"readiness": {"tcp": {"port": 80}}}"#;
        let warm = r#""update": {"strategy": "warm"}"#;
        assert_eq!(check("vision", &format!(r#"{{"command": "run", {exec}, {warm}}}"#)), Ok(()));
        assert_eq!(
            check("vision", &format!(r#"{{"container": {{}}, {tcp}, {warm}}}"#)),
            Ok(()),
            "it has its own address"
        );
        assert_eq!(check("vision", r#"{"command": "run", "update": {"strategy": "stopStart"}}"#), Ok(()));
        let long = "x".repeat(61);
        for (app, bad, why) in [
            ("vision", format!(r#"{{"command": "run", {warm}}}"#), "needs a startup or readiness probe"),
            ("vision", format!(r#"{{"command": "run", {tcp}, {warm}}}"#), "needs exec probes"),
            ("vision", format!(r#"{{"container": {{"network": "host"}}, {tcp}, {warm}}}"#), "needs exec probes"),
            ("vision", format!(r#"{{"container": {{"publish": [{{"port": 80}}]}}, {exec}, {warm}}}"#), "publish"),
            (&long, format!(r#"{{"command": "run", {exec}, {warm}}}"#), "at most 60 characters"),
            ("vision--b", r#"{"command": "run"}"#.to_owned(), "may be named"),
        ] {
            let error = check(app, &bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn the_default_is_not_written() {
        let workload: Workload = serde_json::from_str(r#"{"command": "run"}"#).unwrap();
        assert!(!workload.update.is_warm() && !serde_json::to_string(&workload).unwrap().contains("update"));
    }
}
