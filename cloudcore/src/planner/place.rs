//! Which nodes of a site get an app that not all of them get ([`Placement`]). Pure, and the same for the same snapshot.
//!
//! ```text
//! selected nodes of a site --> those that may run the app (holders) --> stay, or leave
//!                          \-> the others: suited or not, best first --> chosen, while fewer than perSite hold it
//! ```
//!
//! - Who has it keeps it: over updates, over later rollouts, and while the node is silent, for a node behind a cut line
//!   goes on, and two of an app that counts would count twice. For the same reason nobody is chosen before the node that
//!   left *says* that the app is gone from it.
//! - A node leaves when it is drained and another one of the site would do; one that was deleted has left. Where more
//!   than `perSite` have it, as after a rollout to all, the others leave once those that keep it proved the release.
//! - Of suited nodes the best one is that with the fewest apps which the app is better apart from
//!   ([`ReleaseSpec::anti_affinity`](proto::object::ReleaseSpec::anti_affinity)), then that with the most room left, then
//!   the first by name. What other rollouts chose and have not begun counts as if it were there.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use proto::{
    name::{Name, ReleaseName},
    object::{
        Node, NodePhase, Release, Resources, Rollout, RolloutPhase, RolloutStatus, UpdatePhase,
        capacity::LeftPermille,
        rollout::{Leaving, SitePlacement, reason},
    },
};

use super::{
    Snapshot, age, gpus,
    room::{self, Releases},
};

/// Apps that rollouts chose nodes for and have not told them yet.
#[derive(Debug, Default)]
pub(super) struct Picks<'a>(BTreeMap<Name, BTreeMap<&'a Name, &'a Release>>);

impl<'a> Picks<'a> {
    /// As the rollouts have them on record.
    pub fn new(snapshot: &'a Snapshot) -> Picks<'a> {
        let mut picks = Picks::default();
        for rollout in snapshot.rollouts.values().filter(|rollout| rollout.spec.placement.is_some()) {
            picks.take(rollout, &rollout.status, snapshot);
        }
        picks
    }

    /// What a rollout chose now stands for what it chose before.
    pub fn take(&mut self, rollout: &'a Rollout, status: &RolloutStatus, snapshot: &'a Snapshot) {
        use RolloutPhase::{Paused, Progressing, Succeeded};
        let release = rollout.release().and_then(|release| snapshot.releases.get(&release));
        let Some(release) = release.filter(|_| matches!(status.phase, Progressing | Paused | Succeeded)) else {
            return;
        };
        for name in rollout.status.nodes.keys() {
            if let Some(apps) = self.0.get_mut(name) {
                apps.remove(&rollout.spec.app);
            }
        }
        let untold = status.nodes.iter().filter(|(_, entry)| !entry.told && entry.reason != reason::SUPERSEDED);
        for (name, _) in untold {
            self.0.entry(name.clone()).or_default().insert(&rollout.spec.app, release);
        }
    }

    fn on(&self, node: &Name) -> impl Iterator<Item = (&'a Name, &'a Release)> + '_ {
        self.0.get(node).into_iter().flatten().map(|(app, release)| (*app, *release))
    }
}

/// The nodes of a rollout, as of now.
#[derive(Debug, Default)]
pub(super) struct Placed<'a> {
    /// They have it, or get it.
    pub members: BTreeSet<&'a Name>,
    /// It is to be removed from these.
    pub leaving: BTreeSet<&'a Name>,
    /// Why, site by site.
    pub sites: BTreeMap<Name, SitePlacement>,
}

/// Chooses the nodes of a rollout with a placement.
pub(super) fn place<'a>(
    rollout: &'a Rollout,
    status: &RolloutStatus,
    snapshot: &'a Snapshot,
    picks: &Picks<'a>,
) -> Placed<'a> {
    let mut placed = Placed::default();
    let (Some(placement), Some(release)) = (&rollout.spec.placement, rollout.release()) else { return placed };
    let Some(release) = snapshot.releases.get(&release) else { return placed };
    let mut sites: BTreeMap<&'a Name, Vec<(&'a Name, &'a Node)>> = BTreeMap::new();
    for (name, node) in &snapshot.nodes {
        if node.matches(&rollout.spec.selector) || status.nodes.contains_key(name) {
            sites.entry(&node.spec.site).or_default().push((name, node));
        }
    }
    let others = Others::of(rollout, snapshot);
    for (site, nodes) in sites {
        let wanted = placement.per_site as usize;
        Site { rollout, release, status, snapshot, picks, others: &others, site, nodes, wanted }.place(&mut placed);
    }
    placed
}

/// Rollouts of the same app that matter to where it is.
struct Others<'a> {
    newer: Vec<&'a Rollout>,
    all: Vec<&'a Rollout>,
}

impl<'a> Others<'a> {
    fn of(rollout: &Rollout, snapshot: &'a Snapshot) -> Others<'a> {
        let of_app = |other: &&Rollout| other.spec.app == rollout.spec.app && other.spec.version.is_some();
        let all: Vec<&Rollout> = snapshot.rollouts.values().filter(of_app).collect();
        Others { newer: all.iter().filter(|other| age(other) > age(rollout)).copied().collect(), all }
    }

    /// Whether a newer rollout has the node.
    fn has_taken(&self, name: &Name, node: &Node) -> bool {
        use RolloutPhase::{Aborted, Failed, RolledBack, Superseded};
        self.newer.iter().any(|other| {
            let is_in = other.status.nodes.contains_key(name);
            let told = || node.spec.apps.get(&other.spec.app).and_then(|told| told.rollout.as_deref());
            match other.status.phase {
                Aborted | Failed | RolledBack | Superseded => is_in && told() == Some(other.name()),
                _ => is_in || other.spec.undoes.is_none() && node.matches(&other.spec.selector),
            }
        })
    }

    /// What the node was told to let go of and has not said that it did.
    fn leaving(&self, name: &Name, node: &Node) -> bool {
        let of = |other: &&'a Rollout| other.status.placement.get(&node.spec.site)?.leaving.get(name);
        self.all.iter().filter_map(of).any(|leaving| is_leaving(node, leaving))
    }
}

/// Where a rollout stands at one site.
struct Site<'p, 'a> {
    rollout: &'a Rollout,
    release: &'a Release,
    status: &'p RolloutStatus,
    snapshot: &'a Snapshot,
    picks: &'p Picks<'a>,
    others: &'p Others<'a>,
    site: &'a Name,
    nodes: Vec<(&'a Name, &'a Node)>,
    wanted: usize,
}

/// A node with its name.
type Found<'a> = (&'a Name, &'a Node);

/// How well a node would do.
struct Suited<'a> {
    /// Apps there which it is better apart from.
    beside: Vec<&'a Name>,
    left: LeftPermille,
    /// The arithmetic.
    words: String,
}

impl<'a> Site<'_, 'a> {
    fn place(&self, placed: &mut Placed<'a>) {
        let app = &self.rollout.spec.app;
        let (holders, free): (Vec<_>, Vec<_>) = self.nodes.iter().copied().partition(|(name, node)| {
            let has = node.spec.apps.contains_key(app) || node.status.workloads.contains_key(app);
            has || self.others.leaving(name, node)
        });
        let (taken, mut stay): (Vec<_>, Vec<_>) =
            holders.iter().copied().partition(|(name, node)| self.others.has_taken(name, node));
        let told = |name: &Name| self.status.nodes.get(name).is_some_and(|entry| entry.told);
        stay.sort_by_key(|(name, node)| {
            let is_pinned = node.spec.pinned.contains(app);
            (!is_pinned, node.spec.drained, !told(name), node.status.phase != NodePhase::Ready, *name)
        });
        let mut why: BTreeMap<&Name, String> = BTreeMap::new();
        let mut suited: Vec<(&Name, Suited<'a>)> = vec![];
        for (name, node) in free.iter().filter(|(name, node)| !self.others.has_taken(name, node)) {
            match self.suits(name, node) {
                Ok(found) => suited.push((*name, found)),
                Err(problem) => drop(why.insert(*name, format!("not chosen: {problem}"))),
            }
        }
        // What was chosen before stays so while it does as well.
        let chosen = |name: &Name| self.status.nodes.contains_key(name);
        suited.sort_by(|(a, one), (b, other)| {
            let key = |name: &Name, it: &Suited<'_>| (it.beside.len(), !chosen(name), Reverse(it.left));
            key(a, one).cmp(&key(b, other)).then(a.cmp(b))
        });
        let room = self.wanted.saturating_sub(taken.len());
        let excess = stay.split_off(room.min(stay.len()));
        let (pinned, excess): (Vec<_>, Vec<_>) =
            excess.into_iter().partition(|(_, node)| node.spec.pinned.contains(app));
        stay.extend(pinned);
        let mut leaving: Vec<(&'a Name, &'a Node)> = vec![];
        let mut spare = suited.len();
        stay.retain(|(name, node)| {
            let leaves = node.spec.drained && !node.spec.pinned.contains(app) && spare > 0;
            if leaves {
                spare -= 1;
                leaving.push((*name, *node));
            }
            !leaves
        });
        let open = self.wanted.saturating_sub(holders.len());
        let picked: Vec<&'a Name> = suited.iter().take(open).filter_map(|(name, _)| self.known(name)).collect();
        // One of those that a newer rollout took is marked as such by who looks at it.
        let gone_over = self.nodes.iter().filter(|(name, node)| chosen(name) && self.others.has_taken(name, node));
        let kept = stay.iter().chain(gone_over).map(|(name, _)| *name);
        let members: BTreeSet<&'a Name> = kept.chain(picked.iter().copied()).collect();
        self.explain(&mut why, (&stay, &leaving, &excess), &suited, &picked);
        let is_silent = |(_, node): &&(&Name, &Node)| node.status.phase == NodePhase::Unknown;
        let message = match (stay.len() + picked.len() + taken.len(), leaving.iter().find(is_silent)) {
            (has, _) if has >= self.wanted => String::new(),
            (has, Some((name, _))) => format!(
                "{has} of {}: {name} is drained and not heard from, so {app} may still run there; bring it back, or \
                 delete the node",
                self.wanted
            ),
            (has, None) if holders.len() > stay.len() + taken.len() => {
                format!("{has} of {}: it waits until {app} is gone from where it was", self.wanted)
            }
            (has, None) => format!("{has} of {}: no other node would do", self.wanted),
        };
        let proved =
            |name: &Name| self.status.nodes.get(name).is_some_and(|entry| entry.phase == UpdatePhase::Succeeded);
        let is_proved = !stay.is_empty() && stay.iter().all(|(name, _)| proved(name));
        let excess = excess.iter().filter(|_| is_proved);
        placed.leaving.extend(leaving.iter().chain(excess).map(|(name, _)| *name));
        let before = self.status.placement.get(self.site);
        let was: BTreeSet<&Name> = self.nodes.iter().map(|(name, _)| *name).filter(|name| chosen(name)).collect();
        let is_as_before = message.is_empty() && leaving.is_empty() && was == members;
        let nodes = match before.filter(|_| is_as_before) {
            Some(before) => before.nodes.clone(),
            None => why.into_iter().map(|(name, why)| (name.clone(), why)).collect(),
        };
        placed.members.extend(members);
        placed.sites.insert(self.site.clone(), SitePlacement { message, nodes, leaving: self.still_leaving(before) });
    }

    /// The nodes that were told to let go and have not said that they did.
    fn still_leaving(&self, before: Option<&SitePlacement>) -> BTreeMap<Name, Leaving> {
        let before = before.into_iter().flat_map(|before| &before.leaving);
        let is_so = |(name, leaving): &(&Name, &Leaving)| {
            self.snapshot.nodes.get(*name).is_some_and(|node| is_leaving(node, leaving))
        };
        before.filter(is_so).map(|(name, leaving)| (name.clone(), leaving.clone())).collect()
    }

    fn known(&self, name: &Name) -> Option<&'a Name> {
        self.snapshot.nodes.get_key_value(name).map(|(name, _)| name)
    }

    /// How well a node would do that does not have the app.
    fn suits(&self, name: &Name, node: &'a Node) -> Result<Suited<'a>, String> {
        let app = &self.rollout.spec.app;
        match node.status.phase {
            NodePhase::Ready => {}
            NodePhase::Pending => return Err("it never connected".into()),
            NodePhase::NotReady => return Err("it is not ready".into()),
            NodePhase::Unknown => return Err("it is not heard from".into()),
        }
        if node.spec.drained || node.spec.cordoned {
            return Err(format!("it is {}", if node.spec.drained { "drained" } else { "cordoned" }));
        }
        let hardware = &self.release.spec.hardware;
        let classes = node.status.info.as_ref().map(|info| &info.hardware);
        if !hardware.is_empty() && !classes.is_some_and(|classes| classes.iter().any(|class| hardware.contains(class)))
        {
            return Err(format!("it is not of {}", hardware.join(" or ")));
        }
        if let Some((_, text)) = room::is_kept_for_others(node, app) {
            return Err(text.to_string());
        }
        let releases = &self.snapshot.releases;
        let asks = |(app, release): (&'a Name, &Release)| (app, release.spec.requests.unwrap_or_default());
        let picked: BTreeMap<&Name, Resources> = self.picks.on(name).map(asks).collect();
        let left = room::fit(node, self.release, releases, &picked).map_err(|(_, text)| text.to_string())?;
        gpus::fit(node, self.release, releases, self.picks.on(name))?;
        let there = releases_on(node, releases).chain(self.picks.on(name));
        let beside = there.filter(|(_, other)| are_better_apart(self.release, other)).map(|(app, _)| app);
        let beside: BTreeSet<&Name> = beside.collect();
        let words = room::words_with(node, app, releases, &picked).unwrap_or_default();
        Ok(Suited { beside: beside.into_iter().collect(), left, words })
    }

    /// Why each node was chosen, or was not.
    fn explain(
        &self,
        why: &mut BTreeMap<&'a Name, String>,
        (stay, leaving, excess): (&[Found<'a>], &[Found<'a>], &[Found<'a>]),
        suited: &[(&'a Name, Suited<'a>)],
        picked: &[&'a Name],
    ) {
        let (app, what) = (&self.rollout.spec.app, self.rollout.spec.what());
        for (name, node) in stay {
            let text = match node.spec.drained {
                true => format!("it has {app}; it is drained, and no other node would do"),
                false => format!("it has {app}, which does not move by itself"),
            };
            why.insert(*name, format!("chosen: {text}"));
        }
        for (name, _) in leaving {
            why.insert(
                *name,
                format!("not chosen: it is drained; {app} is removed from it before another node gets it"),
            );
        }
        for (name, _) in excess {
            let text = format!("{} of the site have it; it is removed here once they proved {what}", self.wanted);
            why.insert(*name, format!("not chosen: {text}"));
        }
        for (name, it) in suited {
            let beside: Vec<&str> = it.beside.iter().map(|app| app.as_str()).collect();
            let (is_chosen, beside) = (picked.contains(name), beside.join(", "));
            let text = match (is_chosen, beside.is_empty()) {
                (true, true) => format!("chosen: {}", it.words),
                (true, false) => format!(
                    "chosen although it has {beside}, which {app} is better apart from: no other node would do; {}",
                    it.words
                ),
                (false, true) => format!("not chosen, though it would do: {}", it.words),
                (false, false) => {
                    format!("not chosen: it has {beside}, which {app} is better apart from; {}", it.words)
                }
            };
            why.insert(*name, text);
        }
    }
}

/// Whether a node was told to let go and has not said that it did. One that was deleted, and joined again, has.
fn is_leaving(node: &Node, leaving: &Leaving) -> bool {
    let is_another = !leaving.uid.is_empty() && leaving.uid != node.metadata.uid;
    !is_another && node.status.observed_generation <= leaving.generation
}

/// The releases that may run on a node.
fn releases_on<'a>(node: &'a Node, releases: &'a Releases) -> impl Iterator<Item = (&'a Name, &'a Release)> {
    let told = node.spec.apps.iter().map(|(app, told)| (app, &told.version));
    let running =
        node.status.workloads.iter().filter_map(|(app, said)| Some((app, &said.running.as_ref()?.release.version)));
    let known = |(app, version): (&'a Name, &proto::name::Version)| {
        Some((app, releases.get(&ReleaseName { app: app.clone(), version: version.clone() })?))
    };
    told.chain(running).filter_map(known)
}

/// Whether two apps are better on different nodes: they share a word, or one names the other.
fn are_better_apart(one: &Release, other: &Release) -> bool {
    let (a, b) = (&one.spec, &other.spec);
    a.app != b.app
        && (!a.anti_affinity.is_disjoint(&b.anti_affinity)
            || a.anti_affinity.contains(&b.app)
            || b.anti_affinity.contains(&a.app))
}
