//! Whether a box has room for an app: what apps ask of it, and for whom it is kept.

use std::collections::{BTreeMap, BTreeSet};

use proto::{
    name::{Name, ReleaseName, Version},
    object::{Node, Release, Resources, Room, capacity::LeftPermille, rollout::reason},
};

use super::begin::Hindrance;

/// Releases by name.
pub type Releases = BTreeMap<ReleaseName, Release>;

/// What each app asks of a node, in the order of names: the most of its releases that may run there, for the old one
/// and the new one of an app never run at the same time. It asks from the moment that it is told to the node, until
/// the node says that it is gone.
#[must_use]
pub fn requests<'a>(node: &'a Node, releases: &Releases) -> Vec<(&'a Name, Resources)> {
    let apps: BTreeSet<&Name> = node.spec.apps.keys().chain(node.status.workloads.keys()).collect();
    apps.into_iter().map(|app| (app, requests_of(node, app, releases))).collect()
}

/// What an app asks of a node at present.
pub(super) fn requests_of(node: &Node, app: &Name, releases: &Releases) -> Resources {
    let said = node.status.workloads.get(app);
    let running = said.and_then(|said| said.running.as_ref()).map(|running| &running.release.version);
    let told = node.spec.apps.get(app).map(|told| &told.version);
    let of = |version: &Version| {
        let release = releases.get(&ReleaseName { app: app.clone(), version: version.clone() })?;
        release.spec.requests
    };
    running.into_iter().chain(told).filter_map(of).fold(Resources::default(), Resources::max)
}

/// The arithmetic of a node for people: memory, then processor time. `None`: it never said what it has.
#[must_use]
pub fn words(node: &Node, releases: &Releases) -> Option<[String; 2]> {
    Some(of(node)?.words(&requests(node, releases)))
}

/// The same of what is there besides `app`, with what `also` is about to ask.
pub(super) fn words_with(
    node: &Node,
    app: &Name,
    releases: &Releases,
    also: &BTreeMap<&Name, Resources>,
) -> Option<String> {
    let others = others(node, app, releases, also).1;
    Some(of(node)?.words(&others).join("; "))
}

/// What an app asks of a node at present, and what the others do, with what `also` is about to ask.
fn others<'a>(
    node: &'a Node,
    app: &Name,
    releases: &Releases,
    also: &BTreeMap<&'a Name, Resources>,
) -> (Resources, Vec<(&'a Name, Resources)>) {
    let mut others: BTreeMap<&Name, Resources> = requests(node, releases).into_iter().collect();
    for (app, about) in also {
        let held = others.entry(app).or_default();
        *held = held.max(*about);
    }
    let own = others.remove(app).unwrap_or_default();
    (own, others.into_iter().collect())
}

/// The room of a node that said what it has.
pub(super) fn of(node: &Node) -> Option<Room> {
    Some(Room::new(node.status.info.as_ref()?, &node.spec.allocation))
}

/// For whom a node is kept, if it is not for this app.
pub(super) fn is_kept_for_others(node: &Node, app: &Name) -> Option<Hindrance> {
    let kept_for = &node.spec.reserved_for;
    if kept_for.is_empty() || kept_for.contains(app) {
        return None;
    }
    let names: Vec<&str> = kept_for.iter().map(Name::as_str).collect();
    let stays = match node.spec.apps.contains_key(app) {
        true => format!("; what {node} has of {app} stays as it is", node = node.name()),
        false => String::new(),
    };
    let text = format!("{} is kept for {}{stays}; crossdock allocate changes that", node.name(), names.join(", "));
    Some((reason::RESERVED, text.into()))
}

/// Whether a release fits on a node, beside what apps ask of it and what `also` is about to. A node that never said
/// what it has takes everything: it says no itself.
///
/// # Errors
/// A word, and the arithmetic.
pub(super) fn fit(
    node: &Node,
    release: &Release,
    releases: &Releases,
    also: &BTreeMap<&Name, Resources>,
) -> Result<LeftPermille, Hindrance> {
    let (asks, app) = (release.spec.requests.unwrap_or_default(), &release.spec.app);
    let Some(room) = of(node) else { return Ok((0, 0)) };
    let (own, others) = others(node, app, releases, also);
    room.fit(node.name(), asks, own, &others).map_err(|short| (short.reason, short.message.into()))
}

/// Whether two states of a node are the same to those who ask for room on it.
pub(super) fn is_same(before: &Node, now: &Node) -> bool {
    let told = |node: &Node| -> Vec<(Name, Version)> {
        node.spec.apps.iter().map(|(app, told)| (app.clone(), told.version.clone())).collect()
    };
    let runs = |node: &Node| -> Vec<(Name, Option<Version>)> {
        let running = |said: &proto::object::WorkloadStatus| said.running.as_ref().map(|r| r.release.version.clone());
        node.status.workloads.iter().map(|(app, said)| (app.clone(), running(said))).collect()
    };
    let gpus = |node: &Node| node.status.info.as_ref().and_then(|info| info.nvidia.clone());
    told(before) == told(now)
        && runs(before) == runs(now)
        && gpus(before) == gpus(now)
        && before.status.observed_generation == now.status.observed_generation
}
