//! What every simulated box has in its settings, and what it says of itself.

use anyhow::{Context as _, anyhow};
use edgecore::settings::Settings;
use proto::object::{NodeInfo, feature};
use toml::{Table, Value};

/// No real socket is opened in the simulated world: producers hand in where the doors do.
const DOORS: [&str; 3] = ["http", "socket", "mqtt"];

/// Adds what every simulated box has to section `streams` of its settings.
///
/// # Errors
/// When the agent would not take them.
pub(super) fn agent_toml(settings: &str) -> anyhow::Result<String> {
    let off = || Value::String("off".to_owned());
    let mut file: Table = settings.parse().context("read the settings of a box")?;
    let streams = file.entry("streams").or_insert_with(|| Table::new().into());
    let streams = streams.as_table_mut().context("\"streams\" of a box's settings is no section")?;
    for door in DOORS {
        streams.insert(door.to_owned(), off());
    }
    // Metrics would only lengthen long outages; a scenario that is about them says so.
    streams.entry("metrics-interval").or_insert_with(off);
    let text = file.to_string();
    Settings::parse(&text).map_err(|(line, problem)| anyhow!("agent.toml of a box, line {line}: {problem}"))?;
    Ok(text)
}

pub(super) fn node_info(name: &str, boots: u32) -> NodeInfo {
    NodeInfo {
        features: feature::ALL.map(str::to_owned).into(),
        sealing_key: None,
        agent_version: proto::VERSION.into(),
        boot_id: format!("boot {boots} of {name}"),
        architecture: "x86_64".into(),
        os_image: "simulated".into(),
        kernel: "0".into(),
        cpus: 4,
        memory_bytes: 8 << 30,
        hostname: name.to_owned(),
        addresses: vec![],
        hardware: vec!["x86_64".into()],
        nvidia: None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn doors_are_closed_and_metrics_are_off_unless_they_are_asked_for() {
        let read = |text: &str| Settings::parse(&agent_toml(text).unwrap()).unwrap();
        let plain = read("");
        assert_eq!((plain.streams.http, plain.streams.socket, plain.streams.mqtt), (None, None, None));
        assert_eq!((plain.streams.metrics_interval, plain.warnings), (None, vec![]));
        // The word stands in a comment only.
        assert_eq!(read("# metrics-interval\n[streams]\nquota = \"2Mi\"\n").streams.metrics_interval, None);
        let asked = read("[streams]\nmetrics-interval = \"30s\"\n[[streams.stream]]\nname = \"scans\"\n");
        assert_eq!(asked.streams.metrics_interval, Some(Duration::from_secs(30)));
        assert_eq!(asked.streams.streams.len(), 1);
        assert!(agent_toml("[streams]\nquota = \"1Ki\"\n").unwrap_err().to_string().contains("too little"));
    }
}
