//! Signed node reports: what a node says it runs, under its own key.
//!
//! The hub learns it over mutual TLS anyway. The signature is for whoever asks later, and trusts neither hub nor
//! backup: the node's key never leaves the box, so a report that names its digests was made there, in the session
//! whose nonce it has, and not before one with a lower counter. Uptane calls it the vehicle version manifest.
//!
//! Signed are the canonical bytes of what the report itself says, so nothing is sent twice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    link::message::Report,
    name::Name,
    tuf::{PublicKey, SecretKey, json::Json},
};

/// The word that keeps this signature apart from every other use of the key.
const KIND: &str = "crossdock node report";

/// Beside a report: the signature, and what makes it fresh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attestation {
    /// As the hub drew it for the session.
    pub nonce: String,
    /// Rises with every report of a session, from 1.
    pub counter: u64,
    /// 128 hex digits, by the key of the node's certificate (ed25519).
    pub signature: String,
}

/// What is signed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Payload<'a> {
    #[serde(rename = "_type")]
    kind: &'static str,
    node: &'a Name,
    nonce: &'a str,
    counter: u64,
    observed_generation: u64,
    running: BTreeMap<&'a Name, Digest>,
}

/// Digests of what runs, by app.
pub fn running(report: &Report) -> impl Iterator<Item = (&Name, Digest)> {
    report.workloads.iter().filter_map(|(app, status)| Some((app, status.running.as_ref()?.release.digest)))
}

fn payload(node: &Name, nonce: &str, counter: u64, report: &Report) -> Vec<u8> {
    let payload = Payload {
        kind: KIND,
        node,
        nonce,
        counter,
        observed_generation: report.observed_generation,
        running: running(report).collect(),
    };
    // A generation beyond an i64 has no canonical form: nothing then verifies.
    Json::of(&payload).map(|json| json.canonical()).unwrap_or_default()
}

impl Attestation {
    /// Signs what `report` says.
    #[must_use]
    pub fn sign(key: &SecretKey, node: &Name, nonce: &str, counter: u64, report: &Report) -> Attestation {
        let signature = key.sign(&payload(node, nonce, counter, report));
        Attestation { nonce: nonce.to_owned(), counter, signature }
    }

    /// Whether `key` signed that `node` runs what `report` says.
    #[must_use]
    pub fn verifies(&self, key: &PublicKey, node: &Name, report: &Report) -> bool {
        let payload = payload(node, &self.nonce, self.counter, report);
        !payload.is_empty() && key.verifies(&payload, &self.signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{ReleaseRef, RunState, Running, UpdatePhase, WorkloadStatus};

    fn report(content: &[u8]) -> Report {
        let running = Running {
            release: ReleaseRef { version: "1".parse().unwrap(), digest: Digest::of(content) },
            state: RunState::Running,
            ready: true,
            restarts: 0,
            started_at: None,
            last_exit: None,
        };
        let status = WorkloadStatus {
            target: None,
            phase: UpdatePhase::Succeeded,
            reason: String::new(),
            message: String::new(),
            since: jiff::Timestamp::UNIX_EPOCH,
            progress: None,
            restarted: None,
            restart_failed: None,
            retried: None,
            running: Some(running),
            replicas: None,
            metrics: None,
        };
        let workloads = [("web".parse().unwrap(), status)].into();
        Report { observed_generation: 3, workloads, ..Report::default() }
    }

    #[test]
    fn only_the_node_can_say_what_it_runs_and_only_once() {
        let (key, other) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]));
        let (n1, n2) = ("n1".parse().unwrap(), "n2".parse().unwrap());
        let good = Attestation::sign(&key, &n1, "nonce", 1, &report(b"1"));
        let public = key.public();
        assert!(good.verifies(&public, &n1, &report(b"1")));
        assert!(!good.verifies(&other.public(), &n1, &report(b"1")), "another key");
        assert!(!good.verifies(&public, &n2, &report(b"1")), "another node");
        assert!(!good.verifies(&public, &n1, &report(b"2")), "another digest");
        let moved = Report { observed_generation: 4, ..report(b"1") };
        assert!(!good.verifies(&public, &n1, &moved), "another generation");
        let again = Attestation { counter: 2, ..good.clone() };
        assert!(!again.verifies(&public, &n1, &report(b"1")), "another counter");
        let elsewhere = Attestation { nonce: "other".into(), ..good.clone() };
        assert!(!elsewhere.verifies(&public, &n1, &report(b"1")), "another session");
        // The form, with what it is at its head: no signature for another purpose is one of these.
        let form = r#"{"_type":"KIND","counter":1,"node":"n1","nonce":"nonce","observedGeneration":3,"running":{"web":"DIGEST"}}"#;
        let form = form.replace("KIND", KIND).replace("DIGEST", &Digest::of(b"1").to_string());
        assert_eq!(good.signature, key.sign(form.as_bytes()));
        let absurd = Report { observed_generation: u64::MAX, ..report(b"1") };
        assert!(!Attestation::sign(&key, &n1, "nonce", 1, &absurd).verifies(&public, &n1, &absurd));
    }
}
