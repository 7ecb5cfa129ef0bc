//! `[[timeline]]` of a scenario file: when, what, and on whom.

use std::time::Duration;

use proto::{
    name::{Name, ReleaseName},
    object::UpdatePhase,
    selector::Selector,
};
use toml::de::DeValue;

use super::{
    Action, Entry, Moment, Plan, Site,
    how::{self, How, Look, Steer},
    lines::Lines,
    parse::MAX_BACKLOG,
    table::{Table, Value, one_of, parsed, share_ppm, span, span_or_zero, text, truth, unlike, whole},
    wrong::Wrong,
};
use crate::fault::{Fault, Spot, Target, Way};

/// Keys that say what is done; an entry has one of them.
const ACTIONS: &[&str] = &[
    "rollout",
    "pause",
    "resume",
    "abort",
    "retry",
    "approve",
    "see",
    "cut",
    "cut-up",
    "cut-down",
    "line",
    "block-udp",
    "rebind",
    "crash-agent",
    "crash-hub",
    "reboot",
    "power-cut",
    "reinstall",
    "clock",
    "disk-full",
    "gpu-lost",
    "gpu-sick",
    "backlog",
    "flip-bit",
    "broker-down",
    "sink-down",
    "restore-hub",
];
/// Keys that say when.
const MOMENT: &[&str] = &["at", "when", "for", "every", "times", "jitter", "may-miss"];
/// Keys that belong to one action: which, and what to write. Those of a rollout are [`how::FIELDS`] and [`how::SEEN`].
const MORE: &[(&str, &str, &str)] = &[
    ("of", "line", "\"site hz-01\""),
    ("offset", "clock", "\"-10y\""),
    ("count", "backlog", "400"),
    ("in", "flip-bit", "\"outbox\""),
];
const WHEN: &[&str] = &["node", "app", "downloaded", "phase"];
/// A process or box that goes down comes back after this where nothing else is said, as an init system has it.
const RESTART: Duration = Duration::from_secs(10);
/// Most entries, and most times one is repeated.
const MAX_ENTRIES: usize = 1_000;
const MAX_TIMES: u32 = 10_000;
const HUNDRED_YEARS_MS: f64 = 100.0 * 365.0 * 86_400e3;

/// Keys that belong to one action, and to which.
fn more() -> impl Iterator<Item = (&'static str, &'static str)> {
    let of = |fields: &'static [(&'static str, &'static str)], key| fields.iter().map(move |(field, _)| (*field, key));
    MORE.iter().map(|(field, key, _)| (*field, *key)).chain(of(how::FIELDS, "rollout")).chain(of(how::SEEN, "see"))
}

pub(super) fn read(file: &Table<'_>, plan: &Plan, lines: &Lines) -> Result<Vec<Entry>, Wrong> {
    let known: Vec<&str> = MOMENT.iter().chain(ACTIONS).copied().chain(more().map(|(field, _)| field)).collect();
    let tables = file.tables("timeline", "[[timeline]]", &known)?;
    if tables.len() > MAX_ENTRIES {
        return Err(file.wrong(format!("the timeline has {} entries", tables.len())).hint("at most 1000"));
    }
    let mut entries: Vec<Entry> = vec![];
    for table in &tables {
        let entry = entry(table, plan, lines)?;
        begun(&entry, &entries, table)?;
        once(&entry, &entries, table)?;
        entries.push(entry);
    }
    Ok(entries)
}

/// The hub keeps one rollout of a release: a second one would change nothing.
fn once(entry: &Entry, before: &[Entry], table: &Table<'_>) -> Result<(), Wrong> {
    let Action::Rollout { app, version, .. } = &entry.action else { return Ok(()) };
    if entry.repeat.is_some() {
        return Err(Wrong::new(table.key_at("every"), "a release is rolled out once")
            .hint("leave \"every\" and \"times\" out, and write another [[release]] for what comes later"));
    }
    let is_same =
        |entry: &Entry| matches!(&entry.action, Action::Rollout { app: a, version: v, .. } if (a, v) == (app, version));
    if before.iter().any(is_same) {
        let problem = format!("{app}@{version} is rolled out already, by an entry before this one");
        return Err(Wrong::new(table.key_at("rollout"), problem)
            .hint("a release is rolled out once: write another [[release]] of a higher version"));
    }
    Ok(())
}

/// What is done to a rollout, or seen of it, is about one of an entry before.
fn begun(entry: &Entry, before: &[Entry], table: &Table<'_>) -> Result<(), Wrong> {
    let key = match &entry.action {
        Action::Steer { steer, .. } => steer.word(),
        Action::See { .. } => "see",
        Action::Rollout { .. } | Action::Break { .. } => return Ok(()),
    };
    let Some((app, version)) = entry.action.release() else { return Ok(()) };
    let rolled = |entry: &Entry| match &entry.action {
        Action::Rollout { app, version, .. } => Some(format!("{app}@{version}")),
        _ => None,
    };
    let (known, name) = (before.iter().filter_map(rolled).collect::<Vec<_>>(), format!("{app}@{version}"));
    if known.contains(&name) {
        return Ok(());
    }
    let at = table.get(key).map_or(table.at(), |value| value.span());
    let wrong = Wrong::new(at, format!("no entry before this one rolls {name} out"));
    Err(wrong.meant(&name, known.iter().map(String::as_str)))
}

fn entry(table: &Table<'_>, plan: &Plan, lines: &Lines) -> Result<Entry, Wrong> {
    let mut actions: Vec<&'static str> = ACTIONS.iter().copied().filter(|key| table.get(key).is_some()).collect();
    actions.sort_by_key(|key| table.key_at(key).start);
    let key = match actions[..] {
        [key] => key,
        [] => {
            let hint = format!("write one of: {}", ACTIONS.join(", "));
            return Err(table.wrong("this entry does nothing").hint(hint));
        }
        [first, second, ..] => {
            let problem = format!("this entry has both {first:?} and {second:?}");
            return Err(Wrong::new(table.key_at(second), problem).hint("begin another [[timeline]] for the second"));
        }
    };
    for (field, of) in more() {
        if table.get(field).is_some() && of != key {
            let problem = format!("{field:?} says nothing about {key:?}");
            return Err(Wrong::new(table.key_at(field), problem).hint(format!("it belongs to {of:?}")));
        }
    }
    let value = table.need(key, "…")?;
    let mut action = match key {
        "rollout" => rollout(table, value, plan)?,
        "see" => {
            let ReleaseName { app, version } = parsed("see", value)?;
            let look = Look::read(table, |value| a_node("node", value, plan))?;
            Action::See { app, version, look: Box::new(look) }
        }
        key => match Steer::ALL.into_iter().find(|steer| steer.word() == key) {
            Some(steer) => {
                let ReleaseName { app, version } = parsed(key, value)?;
                Action::Steer { app, version, steer }
            }
            None => Action::Break { fault: fault(key, table, value, plan, lines)?, lasts: None },
        },
    };
    let moment = when(table, plan)?;
    let repeat = repeat(table, &moment)?;
    let jitter = table.read("jitter", span)?.unwrap_or_default();
    if let Some(value) = table.get("for") {
        let given = lasts(key, &action, value)?;
        if let Action::Break { lasts, .. } = &mut action {
            *lasts = given;
        }
    } else if let Action::Break { fault, lasts } = &mut action {
        *lasts = comes_back(fault).then_some(RESTART);
    }
    let may_miss = table.read("may-miss", truth)?.unwrap_or(false);
    let entry = Entry { moment, jitter, repeat, action, may_miss, line: table.at().start };
    fits(&entry, table, plan)?;
    Ok(entry)
}

/// Whether somebody turns it on again where nothing else is said.
const fn comes_back(fault: &Fault) -> bool {
    matches!(
        fault,
        Fault::CrashAgent { .. }
            | Fault::CrashHub
            | Fault::Reboot { .. }
            | Fault::PowerCut { .. }
            | Fault::BrokerDown { .. }
    )
}

fn lasts(key: &str, action: &Action, value: Value<'_>) -> Result<Option<Duration>, Wrong> {
    let at_once = match action {
        Action::Break { fault, .. } => fault.at_once(),
        _ => true,
    };
    if at_once {
        return Err(Wrong::new(value.span(), format!("{key:?} happens at once: it lasts for no time"))
            .hint("leave \"for\" out"));
    }
    if value.get_ref().as_str() == Some("end") { Ok(None) } else { span("for", value).map(Some) }
}

/// Whether all of it lies within the run.
fn fits(entry: &Entry, table: &Table<'_>, plan: &Plan) -> Result<(), Wrong> {
    let Moment::At(at) = entry.moment else { return Ok(()) };
    let lasts = entry.action.lasts().unwrap_or_default();
    if let Some((every, _)) = entry.repeat
        && every <= lasts + entry.jitter
    {
        let problem = "it begins again before it is over";
        return Err(
            Wrong::new(table.key_at("every"), problem).hint("\"every\" must be longer than \"for\" and \"jitter\"")
        );
    }
    let (every, times) = entry.repeat.unwrap_or((Duration::ZERO, 1));
    let last = at + every * (times - 1) + entry.jitter;
    let whole = plan.duration.as_secs();
    if last >= plan.duration {
        let field = if entry.repeat.is_some() { "times" } else { "jitter" };
        let problem = format!("it may begin {} s after the start, the run breaks things for {whole} s", last.as_secs());
        return Err(Wrong::new(table.key_at(field), problem).hint("make \"duration\" longer, or this earlier"));
    }
    if last + lasts > plan.duration && table.get("for").is_some() {
        let end = (last + lasts).as_secs();
        let problem = format!("it may end {end} s after the start, the run breaks things for {whole} s");
        return Err(Wrong::new(table.key_at("for"), problem)
            .hint("make \"duration\" longer, or write for = \"end\": all is healed then"));
    }
    Ok(())
}

fn repeat(table: &Table<'_>, moment: &Moment) -> Result<Option<(Duration, u32)>, Wrong> {
    match (table.get("every"), table.get("times")) {
        (None, None) => Ok(None),
        (Some(every), Some(times)) => {
            if !matches!(moment, Moment::At(_)) {
                return Err(Wrong::new(table.key_at("every"), "what waits for something happens once")
                    .hint("write \"at\" instead of \"when\", or leave \"every\" and \"times\" out"));
            }
            Ok(Some((span("every", every)?, whole("times", times, (1, MAX_TIMES))?)))
        }
        (Some(_), None) => {
            Err(Wrong::new(table.key_at("every"), "\"every\" without \"times\"").hint("write times = 4"))
        }
        (None, Some(_)) => {
            Err(Wrong::new(table.key_at("times"), "\"times\" without \"every\"").hint("write every = \"1h\""))
        }
    }
}

/// A time within the run.
pub(super) fn moment(field: &'static str, value: Value<'_>, plan: &Plan) -> Result<Duration, Wrong> {
    let at = span_or_zero(field, value)?;
    if at >= plan.duration {
        let problem = format!("{field} lies after the end of the run, {} s", plan.duration.as_secs());
        return Err(Wrong::new(value.span(), problem).hint("make \"duration\" longer, or this earlier"));
    }
    Ok(at)
}

fn when(table: &Table<'_>, plan: &Plan) -> Result<Moment, Wrong> {
    match (table.get("at"), table.get("when")) {
        (Some(at), None) => Ok(Moment::At(moment("at", at, plan)?)),
        (None, Some(value)) => {
            let table = Table::of("when", value, WHEN)?;
            let node = a_node("node", table.need("node", "\"hz-01-1\"")?, plan)?;
            match (table.get("downloaded"), table.get("phase")) {
                (Some(value), None) => {
                    let percent = share_ppm("downloaded", value)? / 10_000;
                    if !(1..=99).contains(&percent) {
                        return Err(
                            Wrong::new(value.span(), "downloaded is out of range").hint("write \"1%\" to \"99%\"")
                        );
                    }
                    Ok(Moment::Downloaded { node, percent })
                }
                (None, Some(value)) => {
                    let app = an_app(table.need("app", "\"scan-counter\"")?, plan)?;
                    Ok(Moment::Phase { node, app, phase: update_phase(value)? })
                }
                _ => Err(Wrong::new(value.span(), "\"when\" needs one of \"downloaded\" and \"phase\"")
                    .hint("write { node = \"hz-01-1\", downloaded = \"40%\" }")),
            }
        }
        (Some(_), Some(_)) => Err(Wrong::new(table.key_at("when"), "\"at\" and \"when\" at the same time")
            .hint("keep one of them; what has \"when\" waits until the entry before it has begun")),
        (None, None) => Err(table.wrong("this entry never happens").hint("write at = \"1m\"")),
    }
}

fn update_phase(value: Value<'_>) -> Result<UpdatePhase, Wrong> {
    let all = [
        UpdatePhase::Downloading,
        UpdatePhase::Staged,
        UpdatePhase::Applying,
        UpdatePhase::Verifying,
        UpdatePhase::Succeeded,
        UpdatePhase::Failed,
        UpdatePhase::RolledBack,
        UpdatePhase::Blocked,
    ];
    one_of("phase", text("phase", value)?, value, &all.map(|phase| (phase.as_str(), phase)))
}

fn a_node(field: &'static str, value: Value<'_>, plan: &Plan) -> Result<Name, Wrong> {
    let name = text(field, value)?;
    let mut nodes = plan.sites.iter().flat_map(|site| &site.nodes);
    let found = nodes.find(|node| node.as_ref() == name).cloned();
    found.ok_or_else(|| {
        let known = plan.sites.iter().flat_map(|site| &site.nodes).map(AsRef::as_ref);
        Wrong::new(value.span(), format!("there is no node {name:?}")).meant(name, known)
    })
}

fn a_broker(field: &'static str, value: Value<'_>, plan: &Plan) -> Result<Name, Wrong> {
    let name = text(field, value)?;
    let found = plan.brokers.iter().find(|broker| broker.name.as_ref() == name).map(|broker| broker.name.clone());
    found.ok_or_else(|| {
        let known = plan.brokers.iter().map(|broker| broker.name.as_ref());
        Wrong::new(value.span(), format!("there is no [[broker]] {name:?}")).meant(name, known)
    })
}

fn an_app(value: Value<'_>, plan: &Plan) -> Result<Name, Wrong> {
    let name = text("app", value)?;
    let found = plan.releases.iter().find(|release| release.app.as_ref() == name).map(|r| r.app.clone());
    found.ok_or_else(|| {
        let known = plan.releases.iter().map(|release| release.app.as_ref());
        Wrong::new(value.span(), format!("there is no release of an app {name:?}")).meant(name, known)
    })
}

/// Whom a text means. `hub` counts only where it can be broken so.
pub(super) fn target(field: &'static str, value: Value<'_>, plan: &Plan, hub: bool) -> Result<Target, Wrong> {
    let text = text(field, value)?;
    let target = text.parse::<Target>().map_err(|problem| {
        let wrong = Wrong::new(value.span(), format!("{field}: {problem}"));
        let sites = plan.sites.iter().map(|site| format!("site {}", site.name));
        let nodes = plan.sites.iter().flat_map(|site| &site.nodes).map(|node| format!("node {node}"));
        let known: Vec<String> = sites.chain(nodes).collect();
        let prefixed = |kind| format!("{kind} {text}");
        match known.iter().find(|name| **name == prefixed("node") || **name == prefixed("site")) {
            Some(name) => wrong.hint(format!("did you mean {name:?}?")),
            None => wrong,
        }
    })?;
    match &target {
        Target::All => {}
        Target::Hub if hub => {}
        Target::Hub => {
            let hint = "write \"all\" for all boxes, or \"site NAME\" or \"node NAME\"";
            return Err(Wrong::new(value.span(), format!("{field:?} cannot strike the hub")).hint(hint));
        }
        Target::Site(name) => {
            if !plan.sites.iter().any(|site| site.name == *name) {
                let known = plan.sites.iter().map(|site| site.name.as_ref());
                let wrong = Wrong::new(value.span(), format!("there is no site {:?}", name.as_ref()));
                return Err(wrong.meant(name.as_ref(), known));
            }
        }
        Target::Node(name) => {
            let nodes = || plan.sites.iter().flat_map(|site| &site.nodes);
            if !nodes().any(|node| node == name) {
                let wrong = Wrong::new(value.span(), format!("there is no node {:?}", name.as_ref()));
                return Err(wrong.meant(name.as_ref(), nodes().map(AsRef::as_ref)));
            }
        }
    }
    Ok(target)
}

/// What the timeline rolls out, as `app@version`.
pub(super) fn rolled_out(plan: &Plan) -> impl Iterator<Item = String> {
    plan.timeline.iter().filter_map(|entry| match &entry.action {
        Action::Rollout { app, version, .. } => Some(format!("{app}@{version}")),
        _ => None,
    })
}

fn rollout(table: &Table<'_>, value: Value<'_>, plan: &Plan) -> Result<Action, Wrong> {
    let name: ReleaseName = parsed("rollout", value)?;
    if !plan.releases.iter().any(|release| release.app == name.app && release.version == name.version) {
        let known: Vec<String> = plan.releases.iter().map(|r| format!("{}@{}", r.app, r.version)).collect();
        let wrong = Wrong::new(value.span(), format!("there is no [[release]] {name}"));
        return Err(wrong.meant(&name.to_string(), known.iter().map(String::as_str)));
    }
    let to = match table.get("to") {
        None => Selector::all(),
        Some(value) => {
            let to: Selector = parsed("to", value)?;
            if !plan.sites.iter().any(|site| site.nodes.iter().any(|node| selects(&to, site, node))) {
                let sites: Vec<_> = plan.sites.iter().map(|site| format!("site={}", site.name)).collect();
                let wrong =
                    Wrong::new(value.span(), format!("no node of the file is selected by {:?}", to.to_string()));
                return Err(wrong.meant(&to.to_string(), sites.iter().map(String::as_str)));
            }
            to
        }
    };
    let how = Box::new(How::read(table, &name.app, plan)?);
    Ok(Action::Rollout { app: name.app, version: name.version, to, how })
}

/// Whether a selector selects a box, as the hub will see it.
#[must_use]
pub fn selects(selector: &Selector, site: &Site, node: &Name) -> bool {
    selector.matches_with(|key| match key {
        "name" => Some(node.as_ref()),
        "site" => Some(site.name.as_ref()),
        key => site.labels.get(key).map(String::as_str),
    })
}

fn fault(key: &'static str, table: &Table<'_>, value: Value<'_>, plan: &Plan, lines: &Lines) -> Result<Fault, Wrong> {
    let of = |hub| target(key, value, plan, hub);
    let is_true = || match value.get_ref() {
        DeValue::Boolean(true) => Ok(()),
        _ => {
            Err(unlike(value, key, "true").hint(format!("write {key} = true; leave it out where it is not to happen")))
        }
    };
    Ok(match key {
        "cut" => Fault::Cut { target: of(false)?, way: Way::Both },
        "cut-up" => Fault::Cut { target: of(false)?, way: Way::Up },
        "cut-down" => Fault::Cut { target: of(false)?, way: Way::Down },
        "line" => {
            let (name, profile) = lines.find(key, value)?;
            let target = target("of", table.need("of", "\"site hz-01\"")?, plan, false)?;
            Fault::Line { target, profile, name }
        }
        "block-udp" => Fault::BlockUdp { target: of(false)? },
        "rebind" => Fault::Rebind { target: of(false)? },
        "crash-agent" => Fault::CrashAgent { target: of(false)? },
        "crash-hub" => is_true().map(|()| Fault::CrashHub)?,
        "reboot" => Fault::Reboot { target: of(false)? },
        "power-cut" => Fault::PowerCut { target: of(true)? },
        "reinstall" => Fault::Reinstall { target: of(false)? },
        "clock" => {
            let target = of(true)?;
            Fault::Clock { target, offset_ms: offset(table.need("offset", "\"-10y\"")?)? }
        }
        "disk-full" => Fault::DiskFull { target: of(true)? },
        "gpu-lost" => Fault::GpuLost { target: of(false)? },
        "gpu-sick" => Fault::GpuSick { target: of(false)? },
        "backlog" => {
            let target = of(false)?;
            if plan.releases.iter().all(|release| release.scaling.is_none()) {
                let problem = "no [[release]] has \"replicas\" that would follow it";
                return Err(Wrong::new(value.span(), problem)
                    .hint("write replicas = { max = 4, metric = \"backlog\", target = 100 }"));
            }
            Fault::Backlog { target, count: whole("count", table.need("count", "400")?, (0, MAX_BACKLOG))? }
        }
        "flip-bit" => {
            let value = table.need("in", "\"outbox\"")?;
            let spot = match text("in", value)? {
                "outbox" => Spot::Outbox,
                "state" => Spot::State,
                "artifact" => Spot::Artifact,
                other => {
                    let wrong = Wrong::new(value.span(), format!("no bit flips in {other:?}"));
                    return Err(wrong.meant(other, ["outbox", "state", "artifact"]));
                }
            };
            Fault::FlipBit { target: of(false)?, spot }
        }
        "broker-down" => Fault::BrokerDown { broker: a_broker(key, value, plan)? },
        "sink-down" => is_true().map(|()| Fault::SinkDown)?,
        _ => Fault::RestoreHub { age: span(key, value)? },
    })
}

/// `-10y`, `+30d`, `5m`: how far a clock is off, in milliseconds.
fn offset(value: Value<'_>) -> Result<i64, Wrong> {
    let written = text("offset", value)?;
    let wrong = |problem: &str| {
        Wrong::new(value.span(), format!("offset {written:?} {problem}"))
            .hint("write such as \"-10y\", \"+30d\" or \"-5m\", at most 100 years")
    };
    let (sign, rest) = match written.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, written.strip_prefix('+').unwrap_or(written)),
    };
    let ms = match rest.strip_suffix('y') {
        Some(years) => years.trim().parse::<f64>().ok().map(|years| years * 365.0 * 86_400e3),
        None => rest.parse::<proto::units::Span>().ok().map(|span| span.get().as_millis() as f64),
    };
    let ms = ms.filter(|ms| ms.is_finite()).ok_or_else(|| wrong("is no span of time"))?;
    if ms == 0.0 || !(0.0..=HUNDRED_YEARS_MS).contains(&ms) {
        return Err(wrong("is zero or too long"));
    }
    Ok((sign * ms) as i64)
}
