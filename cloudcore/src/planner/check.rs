//! Whether a rollout can start at all: what can never come to an end is refused when it is created, with the mend.

use std::collections::BTreeSet;

use jiff::tz::TimeZone;
use proto::{
    name::{Name, ReleaseName},
    object::{
        Node, Release, Rollout, RolloutSpec,
        metrics::{MAX_METRICS, MAX_SAMPLES},
        rollout::{Budget, OnFailure, Share, Wave, Window},
    },
    units::Span,
};

use super::{Snapshot, room};

/// Most waves of a rollout.
const MAX_WAVES: usize = 100;
/// Longest wave name, in bytes.
const MAX_WAVE_NAME_BYTES: usize = 63;
/// What of the release before a metric may be held against, in hundredths.
const PERCENT_OF_BEFORE: std::ops::RangeInclusive<u32> = 1..=10_000;
/// Longest jitter, soak and wait for evidence.
const MAX_SPAN: Span = Span::from_secs(30 * 86_400);

/// The nodes that a rollout is for, as of now.
pub(super) fn members<'a>(spec: &RolloutSpec, snapshot: &'a Snapshot) -> Vec<&'a Name> {
    if let Some(undone) = &spec.undoes {
        let Some(undone) = snapshot.rollouts.get(undone) else { return vec![] };
        let touched = undone.status.nodes.iter().filter(|(_, entry)| entry.told).map(|(name, _)| name);
        return touched.filter_map(|name| snapshot.nodes.get_key_value(name)).map(|(name, _)| name).collect();
    }
    let wanted = |node: &Node| {
        node.matches(&spec.selector)
            && (spec.version.is_some() || spec.reboot || node.spec.apps.contains_key(&spec.app))
    };
    snapshot.nodes.iter().filter(|(_, node)| wanted(node)).map(|(name, _)| name).collect()
}

/// Whether a rollout can start at all.
///
/// # Errors
/// Says what is wrong and what to do, for people.
pub fn validate(spec: &RolloutSpec, snapshot: &Snapshot) -> Result<(), String> {
    if spec.reboot && (spec.version.is_some() || spec.app != Name::node()) {
        return Err("reboot: it restarts the nodes themselves, so app is node and there is no version".into());
    }
    let release = match spec.release() {
        Some(name) => Some(release(&name, snapshot)?),
        None => None,
    };
    if let Some(undone) = &spec.undoes {
        match snapshot.rollouts.get(undone) {
            None => {
                return Err(format!("there is no rollout {undone} to take back; `crossdock get rollouts` lists them"));
            }
            Some(other) if other.spec.app != spec.app => {
                return Err(format!("rollout {undone} is of {}, not of {}", other.spec.app, spec.app));
            }
            Some(_) => {}
        }
    }
    if let Some(placement) = &spec.placement {
        if placement.per_site == 0 {
            return Err("placement: perSite 0 is no node at all; it is at least 1".into());
        }
        if spec.version.is_none() || spec.undoes.is_some() {
            return Err("placement goes with a release: a restart is for the nodes that have the app".into());
        }
    }
    let members = members(spec, snapshot);
    if members.is_empty() {
        return Err(no_members(spec, snapshot));
    }
    let nodes: Vec<&Node> = members.iter().filter_map(|name| snapshot.nodes.get(*name)).collect();
    if let Some(release) = release {
        hardware(release, &nodes)?;
        room(release, &nodes, snapshot)?;
    }
    waves(&spec.waves, &nodes)?;
    gate(spec)?;
    if let Some(budget) = &spec.budget {
        self::budget(budget, &nodes)?;
    }
    windows(spec)?;
    rollback(spec, release, snapshot)
}

/// Whether the name of a restart is new to the nodes: they know a restart by it, and one that they have done is not
/// done again.
///
/// # Errors
/// Names a node that knows an earlier restart of that name, long deleted here.
pub fn is_new_to_nodes(rollout: &Rollout, snapshot: &Snapshot) -> Result<(), String> {
    if rollout.spec.version.is_some() || rollout.spec.undoes.is_some() {
        return Ok(());
    }
    let order = Some(rollout.name());
    let knows = |node: &&Node| {
        let mut told = node.spec.apps.values().map(|app| app.order.restart.as_deref());
        let mut said = node.status.workloads.values().map(|said| said.restarted.as_deref());
        node.spec.reboot.as_deref() == order
            || node.status.reboot.as_ref().map(|said| said.order.as_str()) == order
            || told.any(|told| told == order)
            || said.any(|said| said == order)
    };
    match snapshot.nodes.values().find(knows) {
        Some(node) => Err(format!(
            "name {}: an earlier restart had it and node {} knows that one as done; take another name",
            rollout.name(),
            node.name()
        )),
        None => Ok(()),
    }
}

fn release<'a>(name: &ReleaseName, snapshot: &'a Snapshot) -> Result<&'a Release, String> {
    let known = snapshot.releases.get(name);
    known.ok_or_else(|| format!("there is no release {name}; `crossdock get releases` lists what was published"))
}

fn no_members(spec: &RolloutSpec, snapshot: &Snapshot) -> String {
    let text = spec.selector.to_string();
    if let Some(undone) = &spec.undoes {
        return format!("rollout {undone} touched no node, so there is nothing to take back");
    }
    if snapshot.nodes.keys().any(|node| node.as_str() == text) {
        return format!("selector {text} asks for a label {text}, which no node has; write name={text}");
    }
    let what =
        if spec.version.is_some() || spec.reboot { "no node".into() } else { format!("no node that has {}", spec.app) };
    format!("selector {text} names {what}; `crossdock get nodes` lists them with their labels")
}

/// A node says its classes when it connects; as long as one has not, it may be of the right one.
fn hardware(release: &Release, nodes: &[&Node]) -> Result<(), String> {
    let wanted = &release.spec.hardware;
    let fits = |node: &&Node| {
        node.status.info.as_ref().is_none_or(|info| info.hardware.iter().any(|class| wanted.contains(class)))
    };
    if wanted.is_empty() || nodes.iter().any(fits) {
        return Ok(());
    }
    Err(format!(
        "release {}@{} is for {}, which none of the {} selected nodes is; `crossdock describe node NAME` shows the \
         hardware of a node",
        release.spec.app,
        release.spec.version,
        wanted.join(" or "),
        nodes.len()
    ))
}

/// What is too much for every one of them, were it alone there, never begins.
fn room(release: &Release, nodes: &[&Node], snapshot: &Snapshot) -> Result<(), String> {
    let asks = release.spec.requests.unwrap_or_default();
    let mut refusals = vec![];
    for node in nodes {
        let Some(room) = room::of(node) else { return Ok(()) };
        let own = room::requests_of(node, &release.spec.app, &snapshot.releases);
        match room.fit(node.name(), asks, own, &[]) {
            Ok(_) => return Ok(()),
            Err(short) => refusals.push(short.message),
        }
    }
    match refusals.first() {
        Some(first) => Err(format!("none of the selected nodes could ever hold it, such as: {first}")),
        None => Ok(()),
    }
}

fn waves(waves: &[Wave], nodes: &[&Node]) -> Result<(), String> {
    if waves.len() > MAX_WAVES {
        return Err(format!("{} waves are more than {MAX_WAVES}", waves.len()));
    }
    let (mut names, mut percent_before) = (BTreeSet::new(), 0);
    for (index, wave) in waves.iter().enumerate() {
        let name = wave.name.clone().unwrap_or_else(|| (index + 1).to_string());
        let wrong = |problem: String| Err(format!("wave {name}: {problem}"));
        if name.is_empty() || name.len() > MAX_WAVE_NAME_BYTES || name.chars().any(char::is_control) {
            return wrong("its name must have 1 to 63 bytes".into());
        }
        if !names.insert(name.clone()) {
            return wrong("another wave has that name".into());
        }
        let bounds = [wave.count, wave.percent, wave.sites];
        if bounds.iter().flatten().count() > 1 {
            return wrong("it has more than one of count, percent and sites; keep one".into());
        }
        if bounds.contains(&Some(0)) {
            return wrong("it is of 0 nodes, which prove nothing; leave it out".into());
        }
        if let Some(percent) = wave.percent {
            if percent > 100 {
                return wrong(format!("{percent} % is more than all; 100 is all"));
            }
            if percent <= percent_before {
                return wrong(format!(
                    "percent counts the waves before it in, so {percent} after {percent_before} adds nothing; percentages rise"
                ));
            }
            percent_before = percent;
        }
        let named = |selector| nodes.iter().any(|node| node.matches(selector));
        if let Some(selector) = wave.selector.as_ref().filter(|selector| !named(selector)) {
            return wrong(format!("selector {selector} names none of the rollout's nodes"));
        }
        if wave.soak > MAX_SPAN {
            return wrong(format!("soak {} is longer than {MAX_SPAN}", wave.soak));
        }
    }
    match waves.last() {
        Some(last) if last.count.is_some() || last.sites.is_some() || last.percent.is_some_and(|p| p < 100) => {
            Err("the last wave does not reach all nodes of the rollout; add one with percent: 100".into())
        }
        Some(last) if last.selector.is_some() => {
            Err("the last wave takes whatever is left, so it has no selector; add one with percent: 100".into())
        }
        _ => Ok(()),
    }
}

fn gate(spec: &RolloutSpec) -> Result<(), String> {
    let gate = &spec.gate;
    for (name, percent) in
        [("maxFailurePercent", gate.max_failure_percent), ("minSuccessPercent", gate.min_success_percent)]
    {
        if let Some(percent) = percent.filter(|percent| *percent > 100) {
            return Err(format!("gate: {name} {percent} is more than 100"));
        }
    }
    if let (Some(fail), Some(succeed)) = (gate.max_failure_percent, gate.min_success_percent)
        && fail + succeed > 100
    {
        return Err(format!(
            "gate: {fail} % may fail and {succeed} % must succeed, which is more than all; lower one of them"
        ));
    }
    if gate.min_sample == 0 {
        return Err("gate: minSample 0 would pass a wave without evidence; it is at least 1".into());
    }
    metrics(spec)?;
    if gate.inconclusive_after == Span::default() || gate.inconclusive_after > MAX_SPAN {
        return Err(format!("gate: inconclusiveAfter must be above 0 and at most {MAX_SPAN}"));
    }
    Ok(())
}

/// Rules on what workloads tell of themselves.
fn metrics(spec: &RolloutSpec) -> Result<(), String> {
    let rules = &spec.gate.metrics;
    if !rules.is_empty() && spec.version.is_none() {
        return Err("gate: metrics judge a release, and a restart has none; leave them out".into());
    }
    if rules.len() > MAX_METRICS {
        return Err(format!("gate: {} rules on metrics are more than {MAX_METRICS}", rules.len()));
    }
    for rule in rules {
        let name = &rule.name;
        let wrong = |problem: String| Err(format!("gate: metric {name}: {problem}"));
        let percents = [rule.min_percent_of_before, rule.max_percent_of_before];
        if let Some(bound) = [rule.min, rule.max].into_iter().flatten().find(|bound| !bound.is_finite()) {
            return wrong(format!("{bound} is no bound that anything could be held against; write a number"));
        }
        if rule.min.is_none() && rule.max.is_none() && !rule.compares() {
            return wrong("it has no bound; write min, max, minPercentOfBefore or maxPercentOfBefore".into());
        }
        if rule.min.zip(rule.max).is_some_and(|(min, max)| min > max) {
            return wrong("min is above max, which nothing is ever between".into());
        }
        if let Some(percent) = percents.into_iter().flatten().find(|percent| !PERCENT_OF_BEFORE.contains(percent)) {
            let (least, most) = (PERCENT_OF_BEFORE.start(), PERCENT_OF_BEFORE.end());
            return wrong(format!("{percent} % of before is out of range; it is {least} to {most}"));
        }
        if rule.min_percent_of_before.zip(rule.max_percent_of_before).is_some_and(|(min, max)| min > max) {
            return wrong("minPercentOfBefore is above maxPercentOfBefore, which nothing is ever between".into());
        }
        if !(1..=MAX_SAMPLES).contains(&rule.min_samples) {
            let asked = rule.min_samples;
            return wrong(format!(
                "minSamples {asked} is out of range; it is 1 to {MAX_SAMPLES}, the newest that are kept"
            ));
        }
    }
    Ok(())
}

fn budget(budget: &Budget, nodes: &[&Node]) -> Result<(), String> {
    if matches!(budget.max_unavailable, Share::Count(0) | Share::Percent(0)) {
        return Err("budget: maxUnavailable 0 is never met, so no node would ever begin; it is at least 1".into());
    }
    let per = budget.per.as_str();
    let known = matches!(per, Budget::SITE | Budget::FLEET);
    if !known && !nodes.iter().any(|node| node.metadata.labels.contains_key(per)) {
        return Err(format!("budget: per {per:?} is neither site nor fleet, nor a label of any selected node"));
    }
    Ok(())
}

fn windows(spec: &RolloutSpec) -> Result<(), String> {
    let windows = &spec.windows;
    if let Some(zone) = &windows.time_zone
        && TimeZone::get(zone).is_err()
    {
        return Err(format!(
            "windows: there is no time zone {zone:.60?}; write one of the IANA's, such as Asia/Shanghai"
        ));
    }
    let check = |what: &str, window: &Window| {
        if window.from == window.to {
            return Err(format!(
                "windows: {what} from {} to {} never opens; leave it out for always",
                window.from, window.to
            ));
        }
        Ok(())
    };
    windows.download.iter().try_for_each(|window| check("download", window))?;
    windows.apply.iter().try_for_each(|window| check("apply", window))?;
    if spec.jitter > MAX_SPAN || spec.max_deferral > MAX_SPAN {
        return Err(format!("jitter and maxDeferral are at most {MAX_SPAN}"));
    }
    Ok(())
}

fn rollback(spec: &RolloutSpec, release: Option<&Release>, snapshot: &Snapshot) -> Result<(), String> {
    let Some(to) = &spec.rollback_to else {
        if spec.on_failure == OnFailure::RollBack {
            return Err("onFailure RollBack needs rollbackTo: the version that nodes go to".into());
        }
        return Ok(());
    };
    let Some(release) = release else {
        return Err("a restart has nothing to roll back; leave rollbackTo out".into());
    };
    let name = ReleaseName { app: spec.app.clone(), version: to.clone() };
    let (back, forth) = (self::release(&name, snapshot)?.spec.release_counter, release.spec.release_counter);
    if back <= forth {
        return Err(format!(
            "nodes that proved {}@{} (release counter {forth}) refuse {name} (counter {back}), as they refuse every \
             lower one; publish it again under a higher counter first: crossdock release reissue {name}",
            spec.app, release.spec.version
        ));
    }
    Ok(())
}
