//! What a rollout would do, before it does anything.

use std::collections::BTreeMap;

use jiff::Timestamp;
use proto::{
    name::{Name, ObjectName},
    object::{
        Rollout, RolloutNode, RolloutSpec, UpdatePhase,
        rollout::{SitePlacement, Wave},
    },
};
use serde::{Deserialize, Serialize};

use super::{Snapshot, check, draft::Draft, place::Picks, plan, waves};

/// What a rollout would do if it were started now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Forecast {
    /// The rollout, with what its strategy fills in.
    pub spec: RolloutSpec,
    /// Its waves in order, with the nodes that each would have.
    pub waves: Vec<ForecastWave>,
    /// Each node as it would stand right after the start: at work, or waiting and why.
    pub nodes: BTreeMap<Name, RolloutNode>,
    /// Where not all nodes get it, how those of each site were chosen.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub placement: BTreeMap<Name, SitePlacement>,
    /// Nodes that have the release already.
    pub have_it: u32,
    /// Bytes of the release: what a node downloads that has none of its files.
    pub bytes_per_node: u64,
    /// That for all nodes that do not have it.
    pub total_bytes: u64,
    /// What that means for sites whose downloads are bounded, the slowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<ForecastSite>,
}

/// The downloads of a site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForecastSite {
    /// Its name.
    #[schema(value_type = String)]
    pub site: Name,
    /// Nodes of it that do not have the release.
    pub nodes: u32,
    /// What they download at most.
    pub bytes: u64,
    /// How long that takes at the site's `bulkBytesPerS`, if nothing else is downloaded there.
    pub seconds: u64,
}

/// A wave as it would be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForecastWave {
    /// Its name.
    pub name: String,
    /// Its rules.
    pub wave: Wave,
    /// Its nodes.
    pub nodes: Vec<Name>,
}

/// Plays the start of a rollout on what is.
///
/// # Errors
/// When the rollout would be refused; says why.
pub fn forecast(spec: RolloutSpec, mut snapshot: Snapshot, now: Timestamp) -> Result<Forecast, String> {
    check::validate(&spec, &snapshot)?;
    let name: ObjectName = "forecast".parse().map_err(|e| format!("{e}"))?;
    let mut rollout = Rollout::new(name, spec);
    rollout.metadata.creation_timestamp = Some(Timestamp::MAX);
    let waves = drawn(&rollout, &snapshot, now);
    let name = rollout.name().to_owned();
    let spec = rollout.spec.clone();
    snapshot.rollouts.insert(name.clone(), rollout);
    let (mut nodes, mut placement) = (BTreeMap::new(), BTreeMap::new());
    for step in plan(&snapshot, now).steps {
        if let super::Step::SetRolloutStatus { rollout, status, .. } = step
            && rollout == name
        {
            (nodes, placement) = (status.nodes, status.placement);
        }
    }
    let release = spec.release().and_then(|release| snapshot.releases.get(&release));
    let runs_it = |node: &Name| {
        let said = snapshot.nodes.get(node).and_then(|node| node.status.workloads.get(&spec.app));
        let digest = said.filter(|w| w.phase == UpdatePhase::Succeeded).and_then(|w| w.target.as_ref());
        digest.is_some_and(|target| release.is_some_and(|release| release.spec.digest == target.digest))
    };
    let have_it = nodes.keys().filter(|node| runs_it(node)).count();
    let bytes_per_node = release.map_or(0, |release| release.spec.total_bytes);
    let sites = downloads(&snapshot, nodes.keys().filter(|node| !runs_it(node)), bytes_per_node);
    let total_bytes = bytes_per_node.saturating_mul((nodes.len() - have_it) as u64);
    let have_it = u32::try_from(have_it).unwrap_or(u32::MAX);
    Ok(Forecast { spec, waves, nodes, placement, have_it, bytes_per_node, total_bytes, sites })
}

fn downloads<'a>(snapshot: &Snapshot, nodes: impl Iterator<Item = &'a Name>, bytes_each: u64) -> Vec<ForecastSite> {
    let mut sites: BTreeMap<&Name, u32> = BTreeMap::new();
    for node in nodes.filter_map(|node| snapshot.nodes.get(node)) {
        *sites.entry(&node.spec.site).or_default() += 1;
    }
    let bounded = sites.into_iter().filter_map(|(site, nodes)| {
        let rate = snapshot.sites.get(site.as_str())?.spec.bulk_bytes_per_s?.max(1);
        let bytes = bytes_each.saturating_mul(nodes.into());
        Some(ForecastSite { site: site.clone(), nodes, bytes, seconds: bytes.div_ceil(rate) })
    });
    let mut bounded: Vec<ForecastSite> = bounded.collect();
    bounded.sort_by_key(|site| std::cmp::Reverse(site.seconds));
    bounded
}

/// The nodes that each wave would draw, if nothing changed in between.
fn drawn(rollout: &Rollout, snapshot: &Snapshot, now: Timestamp) -> Vec<ForecastWave> {
    let mut status = Draft::new(rollout, snapshot, now, &mut Picks::new(snapshot)).status().clone();
    let waves = waves::of(&rollout.spec.waves);
    let mut all = vec![];
    for (index, wave) in waves.iter().enumerate() {
        let nodes = waves::draw(&waves, index, rollout, &status, snapshot);
        for node in &nodes {
            if let Some(entry) = status.nodes.get_mut(node) {
                entry.wave = u32::try_from(index).ok();
            }
        }
        all.push(ForecastWave { name: rollout.spec.wave_name(index), wave: wave.clone(), nodes });
    }
    all
}
