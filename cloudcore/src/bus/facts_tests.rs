use std::str::FromStr as _;

use serde_json::{Value, json};

use super::*;

const SCHEMA_FILE: &str = include_str!("schema.json");

fn fleet() -> Name {
    Name::from_str("hz").unwrap()
}

fn object<T: serde::de::DeserializeOwned>(kind: &str, name: &str, spec: Value, status: Value) -> T {
    let metadata = json!({
        "name": name, "uid": "u", "resourceVersion": "1", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"
    });
    let value =
        json!({ "apiVersion": "crossdock.io/v1", "kind": kind, "metadata": metadata, "spec": spec, "status": status });
    serde_json::from_value(value).unwrap()
}

fn node(phase: &str) -> Node {
    let digest = format!("sha256:{}", "0".repeat(64));
    let (one, two) = (json!({ "version": "1.0.0", "digest": digest }), json!({ "version": "2.0.0", "digest": digest }));
    let since = "2026-01-02T03:04:05Z";
    let status = json!({
        "phase": phase,
        "lastSeen": "2026-01-02T09:00:00Z",
        "carriers": [{ "name": "udp" }, { "name": "mqtt", "inUse": true, "reachable": true }],
        "conditions": [{ "type": "Ready", "status": "True", "reason": "Reports", "lastTransitionTime": since }],
        "workloads": { "counter": {
            "target": two, "phase": "RolledBack", "reason": "Unhealthy", "since": since,
            "running": { "release": one, "state": "Running", "ready": true, "restarts": 0 }
        } }
    });
    object("Node", "box-1", json!({ "site": "hz-01" }), status)
}

fn rollout() -> Rollout {
    let status = json!({
        "phase": "Paused", "reason": "TooManyFailures", "message": "1 of 2 failed",
        "waves": [{ "name": "1", "phase": "Passed" }, { "name": "all", "phase": "Failed" }],
        "nodes": { "box-1": { "phase": "Succeeded" }, "box-2": { "phase": "RolledBack" }, "box-3": { "phase": "Succeeded" } },
        "startedAt": "2026-01-02T03:00:00Z"
    });
    object("Rollout", "counter-2.0.0", json!({ "app": "counter", "version": "2.0.0", "selector": "all" }), status)
}

fn event(number: usize, r#type: &str) -> Event {
    let spec = json!({
        "involvedKind": "Node", "involvedName": "box-1", "type": r#type, "reason": "Silent", "message": "not heard from",
        "source": "hub", "firstAt": "2026-01-02T03:00:00Z", "count": 2,
        "lastAt": format!("2026-01-02T{:02}:{:02}:00Z", number / 60 % 24, number % 60)
    });
    object("Event", &format!("e-{number}"), spec, json!({}))
}

/// Whether a value is as a schema of the file has it, and holds no field that is not described.
fn fits(value: &Value, schema: &Value, file: &Value) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.strip_prefix("#/").unwrap();
        return fits(value, name.split('/').fold(file, |part, key| &part[key]), file);
    }
    let no = |why: &str| Err(format!("{value} {why} in {schema}"));
    if schema.get("const").is_some_and(|one| one != value) {
        return no("is not the one");
    }
    if schema.get("enum").is_some_and(|some| !some.as_array().unwrap().contains(value)) {
        return no("is none of those");
    }
    let is = |kind: &str| match kind {
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        other => panic!("the test knows no type {other}"),
    };
    if schema.get("type").is_some_and(|kind| !is(kind.as_str().unwrap())) {
        return no("has another type");
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        if value.get(name.as_str().unwrap()).is_none() {
            return no(&format!("has no {name}"));
        }
    }
    for (name, field) in value.as_object().into_iter().flatten() {
        let known = schema["properties"].get(name).or(schema.get("additionalProperties"));
        match known {
            Some(known) => fits(field, known, file)?,
            None => return no(&format!("has {name}, which nobody described,")),
        }
    }
    Ok(())
}

/// What other systems read: a change here breaks them, unless it only adds.
#[test]
fn golden_files_and_their_schema() {
    let file: Value = serde_json::from_str(SCHEMA_FILE).unwrap();
    let mut facts = Facts::new(&fleet());
    facts.node(&node("Ready"), true);
    facts.rollout(&rollout(), true);
    facts.event(&event(7, "Warning"), true);
    let mut said = facts.said.clone();
    said.insert(hub_topic(&fleet()), hub_online("2026-01-02T03:04:05Z".parse().unwrap()));
    let golden = [
        ("alert", "crossdock/v1/hz/facts/alerts/e-7", include_str!("golden/alert.json")),
        ("hub", "crossdock/v1/hz/facts/hub", include_str!("golden/hub.json")),
        ("node", "crossdock/v1/hz/facts/nodes/box-1", include_str!("golden/node.json")),
        ("rollout", "crossdock/v1/hz/facts/rollouts/counter-2.0.0", include_str!("golden/rollout.json")),
    ];
    assert_eq!(said.keys().map(String::as_str).collect::<Vec<_>>(), golden.map(|(_, topic, _)| topic));
    for (kind, topic, text) in golden {
        let mut value: Value = serde_json::from_slice(&said[topic]).unwrap();
        fits(&value, &file["$defs"][kind], &file).unwrap();
        if kind == "hub" {
            value["version"] = "0.0.0".into(); // rises with each release
        }
        assert_eq!(value, serde_json::from_str::<Value>(text).unwrap(), "{topic}: {value:#}");
    }
    let gone = serde_json::from_slice(&hub_gone()).unwrap();
    fits(&gone, &file["$defs"]["hub"], &file).unwrap();
    assert!(fits(&gone, &file["$defs"]["node"], &file).is_err(), "the test notices nothing");
}

#[test]
fn what_differs_is_published_and_what_is_gone_is_cleared() {
    let mut facts = Facts::new(&fleet());
    facts.node(&node("Ready"), true);
    facts.event(&event(1, "Warning"), true);
    facts.event(&event(2, "Normal"), true);
    let mut there = Said::new();
    let mut publish = |facts: &Facts| {
        let changes = facts.changes(&there);
        for (topic, payload) in changes.clone() {
            if payload.is_empty() {
                there.remove(&topic)
            } else {
                there.insert(topic, payload)
            };
        }
        changes
            .into_iter()
            .map(|(topic, payload)| (topic.rsplit('/').next().unwrap().to_owned(), payload.is_empty()))
            .collect::<Vec<_>>()
    };
    let of = |name: &str, cleared| (name.to_owned(), cleared);
    assert_eq!(publish(&facts), [of("e-1", false), of("box-1", false)], "what is normal is no alert");
    assert_eq!(publish(&facts), [], "nothing is said twice");
    facts.node(&node("Unknown"), true);
    assert_eq!(publish(&facts), [of("box-1", false)]);
    facts.node(&node("Unknown"), false);
    facts.rollout(&rollout(), true);
    assert_eq!(publish(&facts), [of("box-1", true), of("counter-2.0.0", false)]);

    // Another hub, after a restart: it finds what the broker has.
    let mut again = Facts::new(&fleet());
    again.rollout(&rollout(), true);
    assert_eq!(publish(&again), [of("e-1", true)]);
    let mut only_hub = Said::new();
    only_hub.insert(hub_topic(&fleet()), hub_gone());
    assert_eq!(Facts::new(&fleet()).changes(&only_hub), [], "the hub's own word is not cleared");
}

#[test]
fn alerts_are_bounded_the_newest_stay() {
    let mut facts = Facts::new(&fleet());
    (0..MAX_ALERTS + 100).for_each(|number| facts.event(&event(number, "Warning"), true));
    facts.event(&event(MAX_ALERTS + 99, "Warning"), true);
    assert_eq!((facts.said.len(), facts.alerts.len()), (MAX_ALERTS, MAX_ALERTS));
    assert!(facts.said.contains_key("crossdock/v1/hz/facts/alerts/e-599"));
    assert!(!facts.said.contains_key("crossdock/v1/hz/facts/alerts/e-99"));
    (0..MAX_ALERTS + 100).for_each(|number| facts.event(&event(number, "Warning"), false));
    assert_eq!((facts.said.len(), facts.alerts.len()), (0, 0));
}
