//! From the text of a scenario file to a [`Plan`]. Pure: no file is read, no clock is looked at.
//!
//! The format is described in [`crate::scenario`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use edgecore::settings::Settings;
use proto::{
    name::{Name, ReleaseName},
    object::RolloutPhase,
    release::{Gpus, Replicas, replicas::MAX_REPLICAS},
    selector::is_label_word,
    units::{Bytes, Span},
};
use toml::de::{DeTable, DeValue};

use super::{
    Broker, Curve, Expect, Peak, Plan, Producer, Release, Scaling, Site, how,
    lines::{self, Lines},
    table::{Table, Value, bytes, number, one_of, parsed, share_ppm, span, span_or_zero, text, truth, unlike, whole},
    timeline,
    wrong::{PlanError, Wrong},
};
use crate::{fault::Target, net::Manners};

const FILE: &[&str] = &["about", "duration", "site", "line", "broker", "release", "producer", "timeline", "expect"];
const SITE: &[&str] = &["name", "nodes", "line", "labels", "settings", "gpus"];
const SETTINGS: &[&str] = &["quota", "disk-share-percent", "metrics-interval", "stream"];
const BROKER: &[&str] = &["name", "line", "packet-limit", "drop", "duplicate", "reorder", "delay"];
const RELEASE: &[&str] = &["app", "version", "size", "files", "behaviour", "bad", "gpus", "uses", "replicas"];
const GPUS: &[&str] = &["count", "memory", "exclusive"];
const REPLICAS: &[&str] = &["min", "max", "metric", "target", "window", "tells"];
const PRODUCER: &[&str] = &["on", "stream", "per-minute", "curve", "peaks"];
const PEAK: &[&str] = &["at", "for", "times"];
const EXPECT: &[&str] = &["converge-within", "in-gaps", "rollouts", "touched", "up-without-hub-within"];
/// The host that is always there.
const HUB: &str = "hub";
/// Most boxes of a run.
pub const MAX_NODES: u32 = 20_000;
/// Most GPUs of a box.
const MAX_GPUS: u32 = 16;
/// Most brokers: as many as a hub takes.
const MAX_BROKERS: usize = proto::carrier::address::MAX_BROKERS;
/// Most records of a run: the books keep every one of them.
const MAX_RECORDS: f64 = 5e6;
/// The stream of a producer that says nothing of it, and those that a producer cannot have.
const DEFAULT_STREAM: &str = "scans";
const OF_THE_AGENT: [&str; 2] = ["events", "metrics"];
/// Most peaks of a producer.
const MAX_PEAKS: usize = 100;
/// A release is tried for so long before it counts as healthy: what crashes within is bad.
const SOAK: Duration = Duration::from_secs(3);
/// Replicas end after so long where nothing else is said, as in `release.yaml`.
const SCALES_DOWN_AFTER: Duration = Duration::from_secs(300);
/// Most that instances tell of what their replicas follow.
pub(super) const MAX_BACKLOG: u32 = 1_000_000;
const CONVERGE: Duration = Duration::from_secs(15 * 60);

/// Reads the text of a scenario file. `name` is the scenario's, `file` stands in errors.
///
/// `nodes`, where given, is the number of boxes instead of that in the file, spread evenly over its sites.
///
/// # Errors
/// The first thing that is wrong, where it stands, and what was probably meant.
pub fn parse(name: &str, file: &str, text: &str, nodes: Option<u32>) -> Result<Plan, PlanError> {
    let read = || {
        let table = DeTable::parse(text)
            .map_err(|error| Wrong::new(error.span().unwrap_or_default(), error.message().replace('\n', ", ")))?;
        let at = 0..text.lines().next().map_or(0, str::len);
        let mut plan = plan(name, &Table::new("the file", at, table.get_ref(), FILE)?, nodes)?;
        for entry in &mut plan.timeline {
            // The timeline counts bytes; people count lines.
            entry.line = text.get(..entry.line).unwrap_or_default().matches('\n').count() + 1;
        }
        Ok(plan)
    };
    read().map_err(|wrong: Wrong| wrong.locate(file, text))
}

fn plan(name: &str, file: &Table<'_>, scale: Option<u32>) -> Result<Plan, Wrong> {
    let about: String = parsed("about", file.need("about", "\"what happens, in one line\"")?)?;
    let duration = span("duration", file.need("duration", "\"1h\"")?)?;
    let lines = Lines::read(file)?;
    let sites = sites(file, &lines, scale)?;
    let releases = releases(file)?;
    let brokers = brokers(file, &lines, &sites)?;
    let mut plan = Plan { name: name.to_owned(), about, brokers, releases, ..Plan::quiet(duration, sites, CONVERGE) };
    plan.producers = producers(file, &plan)?;
    plan.timeline = timeline::read(file, &plan, &lines)?;
    plan.expect = expect(file, &plan)?;
    Ok(plan)
}

fn sites(file: &Table<'_>, lines: &Lines, scale: Option<u32>) -> Result<Vec<Site>, Wrong> {
    let tables = file.tables("site", "[[site]]", SITE)?;
    if tables.is_empty() {
        let problem = "there is no [[site]], so nothing would happen to nobody";
        return Err(file.wrong(problem).hint("write [[site]], name = \"hz-01\", nodes = 3"));
    }
    let count = u32::try_from(tables.len()).unwrap_or(u32::MAX);
    if let Some(all) = scale
        && (all < count || all > MAX_NODES)
    {
        let problem = format!("{all} nodes do not fit {count} sites");
        return Err(file.wrong(problem).hint(format!("ask for {count} to {MAX_NODES} nodes")));
    }
    let (mut sites, mut nodes): (Vec<Site>, BTreeSet<Name>) = (vec![], BTreeSet::new());
    for (number, table) in (0_u32..).zip(&tables) {
        let value = table.need("name", "\"hz-01\"")?;
        let name: Name = parsed("name", value)?;
        if sites.iter().any(|site| site.name == name) {
            return Err(Wrong::new(value.span(), format!("there already is a site {name}")).hint("name it otherwise"));
        }
        let value = table.need("nodes", "3")?;
        let mut own = site_nodes(&name, value)?;
        if let Some(all) = scale {
            let wanted = all / count + u32::from(number < all % count);
            own = resized(&name, own, wanted as usize).map_err(|problem| Wrong::new(value.span(), problem))?;
        }
        for node in &own {
            if node.as_ref() == HUB {
                return Err(Wrong::new(value.span(), "a node cannot be called \"hub\": that is the hub's own name")
                    .hint("name it otherwise"));
            }
            if !nodes.insert(node.clone()) {
                return Err(Wrong::new(value.span(), format!("there already is a node {node}"))
                    .hint("every node of all sites has a name of its own"));
            }
        }
        if nodes.len() > MAX_NODES as usize {
            let problem = format!("there are more than {MAX_NODES} nodes");
            return Err(Wrong::new(value.span(), problem).hint("ask for fewer"));
        }
        let line = table.read("line", |field, value| lines.find(field, value))?;
        sites.push(Site {
            name,
            nodes: own,
            labels: table.read("labels", labels)?.unwrap_or_default(),
            line: line.map_or_else(lines::default, |(_, profile)| profile),
            settings: table.read("settings", settings)?.unwrap_or_default(),
            gpus: table.read("gpus", |field, value| whole(field, value, (0, MAX_GPUS)))?.unwrap_or(0),
        });
    }
    Ok(sites)
}

/// The brokers; none of them has the name of another host.
fn brokers(file: &Table<'_>, lines: &Lines, sites: &[Site]) -> Result<Vec<Broker>, Wrong> {
    let mut brokers: Vec<Broker> = vec![];
    for table in file.tables("broker", "[[broker]]", BROKER)? {
        let value = table.need("name", "\"house\"")?;
        let name: Name = parsed("name", value)?;
        let is_node = sites.iter().any(|site| site.nodes.contains(&name)) || name.as_ref() == HUB;
        if is_node || brokers.iter().any(|broker| broker.name == name) {
            return Err(Wrong::new(value.span(), format!("there already is a host {name}")).hint("name it otherwise"));
        }
        if brokers.len() >= MAX_BROKERS {
            let problem = format!("there are more than {MAX_BROKERS} brokers");
            return Err(Wrong::new(value.span(), problem).hint("a hub takes no more"));
        }
        let line = table.read("line", |field, value| lines.find(field, value))?;
        let limit = table.read("packet-limit", |field, value| bytes(field, value, (100, 1 << 20)))?;
        let manners = Manners {
            packet_limit: limit.and_then(|limit| usize::try_from(limit).ok()),
            drop_ppm: table.read("drop", share_ppm)?.unwrap_or_default(),
            duplicate_ppm: table.read("duplicate", share_ppm)?.unwrap_or_default(),
            reorder_ppm: table.read("reorder", share_ppm)?.unwrap_or_default(),
            delay: table.read("delay", span_or_zero)?.unwrap_or_default(),
        };
        let line = line.map_or_else(lines::near, |(_, profile)| profile);
        brokers.push(Broker { name, line, manners });
    }
    Ok(brokers)
}

fn site_nodes(site: &Name, value: Value<'_>) -> Result<Vec<Name>, Wrong> {
    match value.get_ref() {
        DeValue::Array(names) if !names.is_empty() => names.iter().map(|name| parsed("nodes", name)).collect(),
        DeValue::Integer(_) => {
            let count = whole("nodes", value, (1, MAX_NODES))?;
            (1..=count)
                .map(|number| numbered(site, number as usize))
                .collect::<Result<_, _>>()
                .map_err(|problem: String| Wrong::new(value.span(), problem).hint("give the site a shorter name"))
        }
        _ => Err(unlike(value, "nodes", "a number, or a list of at least one name")),
    }
}

fn numbered(site: &Name, number: usize) -> Result<Name, String> {
    format!("{site}-{number}").parse().map_err(|e: proto::name::NameError| e.to_string())
}

/// Keeps the first ones, or adds numbered ones.
fn resized(site: &Name, mut nodes: Vec<Name>, wanted: usize) -> Result<Vec<Name>, String> {
    nodes.truncate(wanted);
    let mut number = 1;
    while nodes.len() < wanted {
        let name = numbered(site, number)?;
        if !nodes.contains(&name) {
            nodes.push(name);
        }
        number += 1;
    }
    Ok(nodes)
}

fn labels(field: &'static str, value: Value<'_>) -> Result<BTreeMap<String, String>, Wrong> {
    let table = value.get_ref().as_table().ok_or_else(|| unlike(value, field, "a table, { ring = \"early\" }"))?;
    let mut labels = BTreeMap::new();
    for (key, value) in table {
        let text = text("a label", value)?;
        if !is_label_word(key.get_ref()) || !is_label_word(text) {
            let problem = format!("{} = {text:?} is no label", key.get_ref());
            return Err(Wrong::new(value.span(), problem).hint("letters, digits, '-', '_', '.' and '/'"));
        }
        labels.insert(key.get_ref().to_string(), text.to_owned());
    }
    Ok(labels)
}

/// What goes into section `streams` of `agent.toml`: read by the agent's own rules.
fn settings(_: &'static str, value: Value<'_>) -> Result<String, Wrong> {
    let table = Table::of("settings", value, SETTINGS)?;
    // Each line of it, and what of the scenario file it comes from.
    let mut lines = vec![("[streams]".to_owned(), value.span())];
    if let Some(value) = table.get("quota") {
        let quota = bytes("quota", value, (2 << 20, 1 << 40))?;
        lines.push((format!("quota = \"{quota}\""), value.span()));
    }
    if let Some(value) = table.get("disk-share-percent") {
        let share = whole("disk-share-percent", value, (1, 100))?;
        lines.push((format!("disk-share-percent = {share}"), value.span()));
    }
    if let Some(value) = table.get("metrics-interval") {
        let interval = toml::Value::String(text("metrics-interval", value)?.to_owned());
        lines.push((format!("metrics-interval = {interval}"), value.span()));
    }
    for stream in table.tables("stream", "settings.stream", &["name", "class"])? {
        lines.push(("[[streams.stream]]".to_owned(), stream.at()));
        let value = stream.need("name", "\"scans\"")?;
        let name: Name = parsed("name", value)?;
        lines.push((format!("name = \"{name}\""), value.span()));
        if let Some(value) = stream.get("class") {
            let all = ["scans", "events", "metrics", "logs"].map(|class| (class, class));
            let class = one_of("class", text("class", value)?, value, &all)?;
            lines.push((format!("class = \"{class}\""), value.span()));
        }
    }
    let text: String = lines.iter().map(|(line, _)| format!("{line}\n")).collect();
    match Settings::parse(&text) {
        Ok(_) => Ok(text),
        Err((line, problem)) => {
            let at = lines.get(line.saturating_sub(1)).map_or_else(|| value.span(), |(_, at)| at.clone());
            Err(Wrong::new(at, problem))
        }
    }
}

fn releases(file: &Table<'_>) -> Result<Vec<Release>, Wrong> {
    let mut releases: Vec<Release> = vec![];
    for table in file.tables("release", "[[release]]", RELEASE)? {
        let value = table.need("app", "\"scan-counter\"")?;
        let app = parsed("app", value)?;
        let version = parsed("version", table.need("version", "\"1.0.0\"")?)?;
        if releases.iter().any(|r| r.app == app && r.version == version) {
            return Err(Wrong::new(value.span(), format!("there already is a release {app}@{version}"))
                .hint("give it another version"));
        }
        let (args, fails) = table.read("behaviour", behaviour)?.unwrap_or_default();
        if table.get("replicas").is_some() && table.get("gpus").is_some() {
            let problem = "\"replicas\" and \"gpus\" do not go together";
            return Err(Wrong::new(table.key_at("replicas"), problem).hint("a GPU is given to an app once"));
        }
        let bad = table.read("bad", truth)?;
        releases.push(Release {
            app,
            version,
            files: table.read("files", |field, value| whole(field, value, (1, 1_000)))?.unwrap_or(4),
            bytes: table.read("size", |field, value| bytes(field, value, (1, 1 << 30)))?.unwrap_or(1 << 20),
            args,
            gpus: table.read("gpus", gpus)?,
            uses: table.read("uses", parsed)?,
            scaling: table.read("replicas", scaling)?,
            bad: bad.unwrap_or(fails),
        });
    }
    Ok(releases)
}

/// What a release needs of GPUs, by its own rules.
fn gpus(_: &'static str, value: Value<'_>) -> Result<Gpus, Wrong> {
    let table = Table::of("gpus", value, GPUS)?;
    let count = table.read("count", |field, value| whole(field, value, (1, MAX_GPUS)))?.unwrap_or(1);
    let memory = table.read("memory", |field, value| bytes(field, value, (1 << 20, 1 << 40)))?;
    let exclusive = table.read("exclusive", truth)?.unwrap_or(true);
    if memory.is_none() && !exclusive {
        return Err(Wrong::new(value.span(), "GPUs that are shared need \"memory\"").hint("write memory = \"8Gi\""));
    }
    Ok(Gpus { count, memory: memory.map(Bytes::new), exclusive, driver: None })
}

/// How many instances of a release run, and what they tell.
fn scaling(_: &'static str, value: Value<'_>) -> Result<Scaling, Wrong> {
    let table = Table::of("replicas", value, REPLICAS)?;
    let most = |most: u32| move |field: &'static str, value: Value<'_>| whole(field, value, (1, most));
    let max = most(MAX_REPLICAS.into())("max", table.need("max", "4")?)?;
    let min = table.read("min", most(max))?.unwrap_or(1);
    let value = table.need("target", "100")?;
    let target = number("target", value, (0.001, 1e9))?.to_string();
    let target = target.parse().map_err(|problem: String| Wrong::new(value.span(), problem))?;
    let window = table.read("window", span)?.unwrap_or(SCALES_DOWN_AFTER).min(Duration::from_secs(3600));
    let replicas = Replicas {
        min: u8::try_from(min).unwrap_or(MAX_REPLICAS),
        max: u8::try_from(max).unwrap_or(MAX_REPLICAS),
        metric: parsed("metric", table.need("metric", "\"backlog\"")?)?,
        target,
        stabilization_window: Span::from_millis(u64::try_from(window.as_millis()).unwrap_or(u64::MAX)),
    };
    let tells = table.read("tells", |field, value| whole(field, value, (0, MAX_BACKLOG)))?.unwrap_or(0);
    Ok(Scaling { replicas, tells })
}

/// The workload's arguments, and whether it fails its trial.
fn behaviour(field: &'static str, value: Value<'_>) -> Result<(Vec<String>, bool), Wrong> {
    let text = text(field, value)?;
    let (word, argument) = text.split_once(' ').map_or((text, None), |(word, rest)| (word, Some(rest.trim())));
    let wrong = |problem: String| Wrong::new(value.span(), problem);
    match (word, argument) {
        ("runs", None) => Ok((vec![], false)),
        ("warm" | "files", None) => Ok((vec![word.to_owned()], false)),
        ("hang" | "warm-hang" | "refuse" | "bad-files", None) => Ok((vec![word.to_owned()], true)),
        ("crash-after", Some(time)) => {
            let time: Span = time.parse().map_err(|e| wrong(format!("{field}: {e}")))?;
            Ok((vec![format!("crash-after={time}")], time.get() <= SOAK))
        }
        ("eat-disk", Some(amount)) => {
            let amount: proto::units::Bytes = amount.parse().map_err(|e| wrong(format!("{field}: {e}")))?;
            Ok((vec![format!("eat-disk={amount}")], false))
        }
        ("crash-after", None) => Err(wrong(format!("{field}: crash-after what?")).hint("write \"crash-after 2s\"")),
        ("refuse-on", Some(word)) if is_label_word(word) => Ok((vec![format!("refuse-on={word}")], false)),
        ("refuse-on", _) => Err(wrong(format!("{field}: refuse on which boxes?")).hint("write \"refuse-on gpu\"")),
        ("eat-disk", None) => Err(wrong(format!("{field}: eat how much?")).hint("write \"eat-disk 100Mi\"")),
        ("runs" | "warm" | "hang" | "warm-hang" | "refuse" | "files" | "bad-files", Some(_)) => {
            Err(wrong(format!("{field} {word:?} takes nothing more")))
        }
        _ => {
            let known = [
                "runs",
                "warm",
                "hang",
                "warm-hang",
                "refuse",
                "refuse-on",
                "crash-after",
                "eat-disk",
                "files",
                "bad-files",
            ];
            Err(wrong(format!("there is no behaviour {word:?}")).meant(word, known))
        }
    }
}

fn producers(file: &Table<'_>, plan: &Plan) -> Result<Vec<Producer>, Wrong> {
    let (mut producers, mut records) = (vec![], 0.0);
    for table in file.tables("producer", "[[producer]]", PRODUCER)? {
        let on = match table.get("on") {
            Some(value) => timeline::target("on", value, plan, false)?,
            None => Target::All,
        };
        let value = table.need("per-minute", "30")?;
        let per_minute = number("per-minute", value, (0.0, 100_000.0))?;
        let peaks = table.tables("peaks", "a peak", PEAK)?;
        if peaks.len() > MAX_PEAKS {
            let problem = format!("there are {} peaks", peaks.len());
            return Err(Wrong::new(table.key_at("peaks"), problem).hint(format!("at most {MAX_PEAKS}")));
        }
        let peaks = peaks.iter().map(|table| peak(table, plan)).collect::<Result<Vec<_>, _>>()?;
        let curve = table.read("curve", |field, value| {
            one_of("curve", text(field, value)?, value, &[("flat", Curve::Flat), ("daily", Curve::Daily)])
        })?;
        let stream = stream(&table, &on, plan)?;
        let producer = Producer { on, stream, per_minute, curve: curve.unwrap_or(Curve::Flat), peaks };
        records += bounded(&producer, records, value, plan)?;
        producers.push(producer);
    }
    Ok(producers)
}

/// Records that a producer hands in, besides those of others: not too many for the books.
fn bounded(producer: &Producer, others: f64, per_minute: Value<'_>, plan: &Plan) -> Result<f64, Wrong> {
    let (boxes, minutes) = (plan.nodes_of(&producer.on).count(), plan.duration.as_secs_f64() / 60.0);
    let of_one = producer.records(Duration::ZERO, plan.duration);
    let (own, rate) = (of_one * boxes as f64, producer.per_minute);
    if own + others <= MAX_RECORDS {
        return Ok(own);
    }
    let times = of_one / (rate * minutes);
    let mut problem = format!(
        "producers would hand in {:.0} records: {rate} a minute on {boxes} boxes for {minutes:.0} minutes, times \
         {times:.1} by curve and peaks",
        own + others
    );
    if others > 0.0 {
        problem += &format!(", and {others:.0} by those before it");
    }
    Err(Wrong::new(per_minute.span(), problem).hint(format!("at most {MAX_RECORDS}: a run keeps them all")))
}

/// The stream that a producer hands in to: every box of its has it.
fn stream(table: &Table<'_>, on: &Target, plan: &Plan) -> Result<Name, Wrong> {
    let at = table.get("stream").map_or_else(|| table.at(), |value| value.span());
    let stream: Name = match table.read("stream", parsed)? {
        Some(stream) => stream,
        None => DEFAULT_STREAM.parse().map_err(|e: proto::name::NameError| Wrong::new(at.clone(), e.to_string()))?,
    };
    if OF_THE_AGENT.contains(&stream.as_ref()) {
        let problem = format!("the agent itself writes to stream {:?}", stream.as_ref());
        return Err(Wrong::new(at, problem).hint("take another: the books could not tell whose a record is"));
    }
    for site in &plan.sites {
        if !site.nodes.iter().any(|node| on.means(&site.name, node)) {
            continue;
        }
        let known = site.streams().streams;
        if !known.iter().any(|known| known.name == stream) {
            let problem = format!("site {} has no stream {:?}", site.name, stream.as_ref());
            let known = known.iter().map(|known| known.name.as_ref());
            let known = known.filter(|name| !OF_THE_AGENT.contains(name));
            return Err(Wrong::new(at, problem).meant(stream.as_ref(), known));
        }
    }
    Ok(stream)
}

fn peak(table: &Table<'_>, plan: &Plan) -> Result<Peak, Wrong> {
    let value = table.need("at", "\"20h\"")?;
    let at = timeline::moment("at", value, plan)?;
    let lasts = span("for", table.need("for", "\"30m\"")?)?;
    let times = number("times", table.need("times", "10")?, (0.0, 1_000.0))?;
    Ok(Peak { at, lasts, times })
}

fn expect(file: &Table<'_>, plan: &Plan) -> Result<Expect, Wrong> {
    let mut expect = plan.expect.clone();
    let Some(value) = file.get("expect") else { return Ok(expect) };
    let table = Table::of("[expect]", value, EXPECT)?;
    if let Some(within) = table.read("converge-within", span)? {
        expect.converge_within = within;
    }
    expect.in_gaps = table.read("in-gaps", |field, value| whole(field, value, (0, 5_000_000)))?.map(u64::from);
    expect.up_without_hub_within = table.read("up-without-hub-within", span)?;
    if let Some(value) = table.get("rollouts") {
        expect.rollouts = by_rollout("rollouts", value, "{ \"app@1.0.0\" = \"Succeeded\" }", plan, phase)?;
    }
    if let Some(value) = table.get("touched") {
        expect.touched = by_rollout("touched", value, "{ \"app@1.0.0\" = 1 }", plan, most)?;
    }
    Ok(expect)
}

/// A table of something for each of some rollouts of the timeline.
fn by_rollout<T>(
    field: &'static str,
    value: Value<'_>,
    example: &str,
    plan: &Plan,
    read: impl Fn(Value<'_>) -> Result<T, Wrong>,
) -> Result<BTreeMap<String, T>, Wrong> {
    let table = value.get_ref().as_table().ok_or_else(|| unlike(value, field, &format!("a table, {example}")))?;
    let known: Vec<String> = timeline::rolled_out(plan).collect();
    let mut all = BTreeMap::new();
    for (key, value) in table {
        let wrong = |problem: String| Wrong::new(key.span(), problem);
        let release: ReleaseName = key.get_ref().parse().map_err(|e| wrong(format!("{field}: {e}")))?;
        let name = release.to_string();
        if !known.contains(&name) {
            let wrong = wrong(format!("no entry of the timeline rolls {name} out"));
            return Err(wrong.meant(&name, known.iter().map(String::as_str)));
        }
        all.insert(name, read(value)?);
    }
    Ok(all)
}

fn most(value: Value<'_>) -> Result<u32, Wrong> {
    whole("touched", value, (0, MAX_NODES))
}

fn phase(value: Value<'_>) -> Result<RolloutPhase, Wrong> {
    one_of("phase", text("a phase", value)?, value, &how::phases())
}
