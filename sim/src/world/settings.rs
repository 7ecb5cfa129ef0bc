//! What every simulated box has in its settings, and what it says of itself.

use proto::object::NodeInfo;

/// No real socket is opened in the simulated world: producers hand in where the doors do. Metrics would only
/// lengthen long outages; a scenario that is about them says so.
const NO_DOORS: &str = "http = \"off\"\nsocket = \"off\"\nmqtt = \"off\"\n";
const NO_METRICS: &str = "metrics-interval = \"off\"\n";

/// Adds what every simulated box has to section `streams` of its settings.
pub(super) fn agent_toml(settings: &str) -> String {
    let metrics = if settings.contains("metrics-interval") { "" } else { NO_METRICS };
    let ours = format!("[streams]\n{NO_DOORS}{metrics}");
    match settings.split_once("[streams]\n") {
        Some((before, after)) => format!("{before}{ours}{after}"),
        None => format!("{ours}\n{settings}"),
    }
}

pub(super) fn node_info(name: &str, boots: u32) -> NodeInfo {
    NodeInfo {
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
    }
}
