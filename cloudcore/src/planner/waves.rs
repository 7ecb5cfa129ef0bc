//! Who belongs to a wave. Drawn when the wave begins, from the nodes that are left, and fixed from then on.

use std::collections::BTreeSet;

use proto::{
    digest::Digest,
    name::Name,
    object::{
        Node, NodePhase, Rollout, RolloutNode, RolloutStatus,
        rollout::{Wave, reason},
    },
};

use super::Snapshot;

/// The waves of a rollout; without any, one of all nodes.
pub(super) fn of(waves: &[Wave]) -> Vec<Wave> {
    if waves.is_empty() { vec![Wave::default()] } else { waves.to_vec() }
}

/// Orders the nodes of a rollout by chance, 0 to `u64::MAX`: always the same for the same release, so that a plan
/// that is only shown names the nodes that the rollout would begin with.
pub(super) fn chance(rollout: &Rollout, node: &Name) -> u64 {
    let digest = Digest::of(format!("{}/{node}", rollout.spec.what()).as_bytes());
    digest.as_bytes().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The nodes that wave `index` takes of those that have no wave yet. Nodes that are there come first, so that a
/// small wave is of some use.
pub(super) fn draw(
    waves: &[Wave],
    index: usize,
    rollout: &Rollout,
    status: &RolloutStatus,
    snapshot: &Snapshot,
) -> Vec<Name> {
    let Some(wave) = waves.get(index) else { return vec![] };
    let left =
        status.nodes.iter().filter(|(_, entry)| entry.wave.is_none() && entry.reason != reason::SUPERSEDED).filter_map(
            |(name, _)| {
                let node = snapshot.nodes.get(name)?;
                wave.selector.as_ref().is_none_or(|selector| node.matches(selector)).then_some((name, node))
            },
        );
    if index + 1 == waves.len() {
        return left.map(|(name, _)| name.clone()).collect();
    }
    let mut left: Vec<(&Name, &Node)> = left.collect();
    left.sort_by_cached_key(|(name, node)| (node.status.phase != NodePhase::Ready, chance(rollout, name)));
    let most = match (wave.count, wave.percent) {
        (Some(count), _) => count as usize,
        (None, Some(percent)) => {
            // Who was taken had no turn that proved anything.
            let had = |entry: &&RolloutNode| entry.wave.is_some() && entry.reason != reason::SUPERSEDED;
            let had = status.nodes.values().filter(had).count();
            (status.nodes.len() * percent as usize).div_ceil(100).saturating_sub(had)
        }
        (None, None) => left.len(),
    };
    let mut sites = BTreeSet::new();
    let most_sites = wave.sites.map_or(usize::MAX, |sites| sites as usize);
    let in_sites = left.into_iter().filter(|(_, node)| {
        sites.contains(&node.spec.site) || sites.len() < most_sites && sites.insert(node.spec.site.clone())
    });
    in_sites.take(most).map(|(name, _)| name.clone()).collect()
}
