//! Rollouts and plans as text. What came from a box is written out harmless by [`output::align`].

use std::collections::BTreeMap;

use proto::{
    name::Name,
    object::{
        Rollout, RolloutNode, UpdatePhase,
        rollout::{SitePlacement, reason},
    },
    units::{Bytes, Span},
};

use crate::{
    cli::output,
    planner::forecast::{Forecast, ForecastSite, ForecastWave},
};

/// Nodes listed of each wave of a plan.
const NODES_SHOWN: usize = 8;

/// A rollout: where it stands, its waves with the arithmetic of their gates, its nodes with what they wait for.
pub(super) fn rollout(rollout: &Rollout, all: bool) -> String {
    let status = &rollout.status;
    let mut text =
        format!("{} of {} to {}: {}", rollout.name(), rollout.spec.what(), rollout.spec.selector, status.phase);
    if !status.reason.is_empty() && status.reason != status.phase.as_str() {
        text.push_str(&format!(" ({})", status.reason));
    }
    text.push('\n');
    if !status.message.is_empty() {
        text.push_str(&format!("{}\n", output::plain(&status.message)));
    }
    if status.waves.len() > 1 {
        let mut rows = vec![["WAVE", "PHASE", "SINCE", "EVIDENCE"].map(str::to_owned).to_vec()];
        for wave in &status.waves {
            let since = wave.finished_at.or(wave.since).or(wave.started_at).map(|at| at.to_string());
            rows.push(vec![wave.name.clone(), wave.phase.to_string(), since.unwrap_or_default(), wave.message.clone()]);
        }
        text.push_str(&format!("\n{}", output::align(&rows)));
    }
    text.push_str(&placement(&status.placement));
    let nodes = nodes(rollout, all);
    if !nodes.is_empty() {
        text.push_str(&format!("\n{nodes}"));
    }
    text
}

/// Why nodes were chosen, site by site.
fn placement(sites: &BTreeMap<Name, SitePlacement>) -> String {
    if sites.is_empty() {
        return String::new();
    }
    let mut rows = vec![["SITE", "NODE", "WHY"].map(str::to_owned).to_vec()];
    for (site, placed) in sites {
        if !placed.message.is_empty() {
            rows.push(vec![site.to_string(), "-".into(), placed.message.clone()]);
        }
        rows.extend(placed.nodes.iter().map(|(node, why)| vec![site.to_string(), node.to_string(), why.clone()]));
    }
    format!("\n{}", output::align(&rows))
}

/// The nodes of a rollout; without `all`, those that are not healthy yet, or have not told enough.
pub(super) fn nodes(rollout: &Rollout, all: bool) -> String {
    let wanted = |node: &&RolloutNode| all || node.phase != UpdatePhase::Succeeded || node.reason == reason::METRICS;
    if !rollout.status.nodes.values().any(|node| wanted(&node)) {
        return String::new();
    }
    let mut rows = vec![["NODE", "WAVE", "PHASE", "REASON", "SINCE", "MESSAGE"].map(str::to_owned).to_vec()];
    for (name, node) in rollout.status.nodes.iter().filter(|(_, node)| wanted(node)) {
        let wave = node.wave.map(|wave| rollout.spec.wave_name(wave as usize));
        rows.push(vec![
            name.to_string(),
            wave.unwrap_or_default(),
            node.phase.to_string(),
            node.reason.clone(),
            node.since.map(|at| at.to_string()).unwrap_or_default(),
            node.message.clone(),
        ]);
    }
    output::align(&rows)
}

/// A plan.
pub(super) fn forecast(forecast: &Forecast) -> String {
    let Forecast { spec, waves, nodes, placement: sites, have_it, bytes_per_node, total_bytes, sites: slowest } =
        forecast;
    let strategy = spec.strategy.as_deref().map(|name| format!(", strategy {name}")).unwrap_or_default();
    let mut text = format!("{} to {}: {} nodes{strategy}\n", spec.what(), spec.selector, nodes.len());
    let (each, sum) = (Bytes::new(*bytes_per_node), Bytes::new(*total_bytes));
    text.push_str(&format!("{have_it} have it; the others download at most {each} bytes each, {sum} in all\n"));
    if let Some(slowest) = slowest.first() {
        let ForecastSite { site, nodes, bytes, seconds } = slowest;
        let (bytes, takes) = (Bytes::new(*bytes), Span::from_secs(*seconds));
        text.push_str(&format!("site {site} takes at least {takes}: {nodes} nodes, {bytes} bytes, by its bound\n"));
    }
    if let Some(budget) = &spec.budget {
        text.push_str(&format!("at most {} unavailable per {}\n", budget.max_unavailable, budget.per));
    }
    for rule in &spec.gate.metrics {
        let samples = rule.min_samples;
        text.push_str(&format!("each node, by the mean of {samples} samples or more: {rule}\n"));
    }
    let mut rows = vec![["WAVE", "NODES", "SOAK", "APPROVAL", "WHICH"].map(str::to_owned).to_vec()];
    for ForecastWave { name, wave, nodes } in waves {
        let shown: Vec<&str> = nodes.iter().take(NODES_SHOWN).map(|node| node.as_str()).collect();
        let more = nodes.len().saturating_sub(NODES_SHOWN);
        let which = if more > 0 { format!("{} and {more} more", shown.join(" ")) } else { shown.join(" ") };
        let approval = if wave.approval { "yes" } else { "" };
        rows.push(vec![name.clone(), nodes.len().to_string(), wave.soak.to_string(), approval.into(), which]);
    }
    text.push_str(&format!("\n{}", output::align(&rows)));
    text.push_str(&placement(sites));
    let blocked: Vec<Vec<String>> = nodes
        .iter()
        .filter(|(_, node)| !node.told && !node.reason.is_empty() && node.reason != reason::WAVE)
        .map(|(name, node)| vec![name.to_string(), node.phase.to_string(), node.reason.clone(), node.message.clone()])
        .collect();
    if !blocked.is_empty() {
        let mut rows = vec![["WOULD WAIT", "PHASE", "REASON", "MESSAGE"].map(str::to_owned).to_vec()];
        rows.extend(blocked);
        text.push_str(&format!("\n{}", output::align(&rows)));
    }
    text
}
