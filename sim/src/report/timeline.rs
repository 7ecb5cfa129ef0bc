//! Boxes over time as one SVG: a row a box, its health above and its releases below, faults as bands across the
//! rows of those that they struck, numbered as in the table of faults.
//!
//! What a colour says a pattern and a word say too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use proto::name::Name;

use super::{columns, escape, figure, lasted, time};
use crate::{
    fault::Target,
    record::{AppState, Break, NodeState, Record, Track},
};

/// Width of the names, of the picture of time, and of all.
pub(super) const LEFT: usize = 132;
pub(super) const WIDTH: usize = 1040;
pub(super) const ALL: usize = LEFT + WIDTH + 12;
/// Room for the names of times.
const AXIS: usize = 22;
/// Width of a letter of the small type.
const LETTER: usize = 6;
/// Rows of the strip of faults; what needs more shares the last.
const FAULT_ROWS: usize = 12;
const FAULT_ROW: usize = 15;
/// Colours of releases; after the last they begin anew.
pub(super) const RELEASES: usize = 8;

/// How a box is, the worst that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Health {
    Ready,
    NotReady,
    Away,
    Cut,
    AgentDown,
    Off,
}

impl Health {
    pub(super) const ALL: [Health; 6] =
        [Health::Ready, Health::NotReady, Health::Away, Health::Cut, Health::AgentDown, Health::Off];

    fn of(state: &NodeState) -> Health {
        match state {
            NodeState { powered: false, .. } => Health::Off,
            NodeState { agent: false, .. } => Health::AgentDown,
            NodeState { line: false, connected: false, .. } => Health::Cut,
            NodeState { connected: false, .. } => Health::Away,
            NodeState { ready: Some(false), .. } => Health::NotReady,
            _ => Health::Ready,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Health::Ready => "ready",
            Health::NotReady => "not ready",
            Health::Away => "not connected",
            Health::Cut => "line cut",
            Health::AgentDown => "agent down",
            Health::Off => "box off",
        }
    }

    pub(super) fn class(self) -> &'static str {
        match self {
            Health::Ready => "ready",
            Health::NotReady => "notready",
            Health::Away => "away",
            Health::Cut => "cut",
            Health::AgentDown => "agentdown",
            Health::Off => "off",
        }
    }
}

/// How tall things are: few boxes have room for words, many are to be seen at once.
struct Heights {
    health: usize,
    app: usize,
    gap: usize,
}

impl Heights {
    fn of(boxes: usize) -> Heights {
        match boxes {
            0..=12 => Heights { health: 16, app: 15, gap: 10 },
            13..=40 => Heights { health: 11, app: 11, gap: 5 },
            _ => Heights { health: 6, app: 6, gap: 3 },
        }
    }
}

/// Colours of releases by `app@version`, in order.
pub(super) fn releases(record: &Record) -> BTreeMap<String, usize> {
    let mut versions = BTreeSet::new();
    for track in record.nodes.values() {
        for (app, changes) in &track.apps {
            for (_, state) in changes.changes.iter().chain(changes.last()) {
                versions.extend(state.running.as_ref().map(|version| (app.clone(), version.clone())));
            }
        }
    }
    versions.into_iter().enumerate().map(|(i, (app, version))| (format!("{app}@{version}"), i % RELEASES)).collect()
}

/// Column of a moment.
pub(super) fn x(ms: u64, end_ms: u64) -> usize {
    let at = u128::from(ms.min(end_ms)) * WIDTH as u128 / u128::from(end_ms.max(1));
    LEFT + usize::try_from(at).unwrap_or(WIDTH)
}

/// Lines and names of times, from `top` to `bottom`.
pub(super) fn axis(svg: &mut String, end_ms: u64, top: usize, bottom: usize, healing_ms: u64) {
    const STEPS_S: [u64; 16] =
        [1, 5, 10, 30, 60, 300, 600, 1_800, 3_600, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 2_592_000];
    let step = STEPS_S.iter().copied().find(|s| end_ms / (s * 1000) <= 10).unwrap_or(31_536_000) * 1000;
    for at in (0..=end_ms / step).map(|i| i * step) {
        let x = x(at, end_ms);
        let label = if at == 0 { "0".to_owned() } else { time(at) };
        let _ = write!(svg, "<line class='grid' x1='{x}' y1='{top}' x2='{x}' y2='{bottom}'/>");
        if x + label.len() * LETTER < ALL {
            let _ = write!(svg, "<text class='small' x='{}' y='{}'>{label}</text>", x + 3, top + 11);
        }
    }
    if healing_ms < end_ms {
        let x = x(healing_ms, end_ms);
        let _ = write!(
            svg,
            "<line class='healing' x1='{x}' y1='{top}' x2='{x}' y2='{bottom}'><title>from {} on all is healed, \
             and must converge</title></line>",
            time(healing_ms)
        );
    }
}

/// The picture.
pub(super) fn svg(record: &Record, end_ms: u64) -> String {
    let heights = Heights::of(record.nodes.len());
    let apps: BTreeSet<&Name> = record.nodes.values().flat_map(|track| track.apps.keys()).collect();
    let colours = releases(record);
    let row = heights.health + apps.len() * heights.app + heights.gap;
    let (lanes, used) = lanes(&record.breaks, end_ms);
    let faults_top = AXIS;
    let hub_top = faults_top + used * FAULT_ROW + 6;
    let mut tops: BTreeMap<&Name, usize> = BTreeMap::new();
    let mut sites: BTreeMap<&Name, Vec<(&Name, &Track)>> = BTreeMap::new();
    for (name, track) in &record.nodes {
        sites.entry(&track.site).or_default().push((name, track));
    }
    let mut y = hub_top + heights.health + 12;
    let mut body = String::new();
    for (site, nodes) in &mut sites {
        nodes.sort_by(|(a, _), (b, _)| counting(a).cmp(&counting(b)));
        let _ = write!(body, "<text class='site' x='2' y='{}'>{}</text>", y + 11, escape(site.as_str()));
        y += 16;
        for (name, track) in nodes.iter() {
            tops.insert(name, y);
            node(&mut body, record, name, track, &apps, &colours, &heights, y, end_ms);
            y += row;
        }
        y += 6;
    }
    let bottom = y;
    let mut svg = format!("<svg viewBox='0 0 {ALL} {bottom}' role='img' aria-label='boxes over time'>{}", patterns());
    axis(&mut svg, end_ms, 0, bottom, record.healing_at_ms);
    hub(&mut svg, record, hub_top, heights.health, end_ms);
    svg.push_str(&body);
    for (number, (fault, lane)) in record.breaks.iter().zip(&lanes).enumerate() {
        let top = faults_top + lane * FAULT_ROW;
        let across = match fault.whom {
            Target::Hub => vec![(hub_top, heights.health)],
            _ => blocks(record.struck_by(fault).filter_map(|node| tops.get(node).copied()), row, row - heights.gap),
        };
        band(&mut svg, number + 1, fault, top, &across, end_ms);
    }
    violation(&mut svg, record, &tops, bottom, end_ms);
    svg.push_str("</svg>");
    svg
}

/// A name as people order it: `box-9` before `box-10`.
fn counting(name: &Name) -> (&str, u64) {
    let text = name.as_str();
    let digits = text.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (head, number) = text.split_at(text.len() - digits);
    (head, number.parse().unwrap_or(u64::MAX))
}

fn hub(svg: &mut String, record: &Record, top: usize, height: usize, end_ms: u64) {
    let _ = write!(svg, "<text class='name' x='2' y='{}'>hub</text>", top + height.max(10));
    for run in columns::runs(&record.hub, end_ms, WIDTH, |runs| *runs, |runs| u8::from(!runs)) {
        let (class, word, title) = match run.value {
            Ok(true) => ("ready", "", "hub runs".to_owned()),
            Ok(false) => ("off", "hub down", "hub down".to_owned()),
            Err(not_kept) => {
                unkept(svg, "hub", not_kept, &run, top, height);
                continue;
            }
        };
        let title = format!("{title}, {} to {}", time(run.from_ms), time(run.to_ms));
        cell(svg, class, (run.from, run.to), top, height, word, &title);
    }
}

#[expect(clippy::too_many_arguments, reason = "all of one picture")]
fn node(
    svg: &mut String,
    record: &Record,
    name: &Name,
    track: &Track,
    apps: &BTreeSet<&Name>,
    colours: &BTreeMap<String, usize>,
    heights: &Heights,
    top: usize,
    end_ms: u64,
) {
    let small = if record.nodes.len() > 40 { "tiny" } else { "name" };
    let middle = top + (heights.health + heights.app * apps.len()) / 2 + 4;
    let _ = write!(svg, "<text class='{small}' x='10' y='{middle}'>{}</text>", escape(name.as_str()));
    let health = |state: &NodeState| (Health::of(state), state.carrier.clone());
    for run in columns::runs(&track.state, end_ms, WIDTH, health, |(health, _)| *health as u8) {
        let (health, carrier) = match &run.value {
            Ok(value) => value,
            Err(not_kept) => {
                unkept(svg, name.as_str(), *not_kept, &run, top, heights.health);
                continue;
            }
        };
        let by = if *health <= Health::NotReady { format!(" over {carrier}") } else { String::new() };
        let title = format!("{name}: {}{by}, {} to {}", health.word(), time(run.from_ms), time(run.to_ms));
        let word = if *health == Health::Ready && carrier != "udp" { carrier.as_str() } else { health.word() };
        cell(svg, health.class(), (run.from, run.to), top, heights.health, word, &title);
    }
    for (lane, app) in apps.iter().enumerate() {
        let Some(changes) = track.apps.get(*app) else { continue };
        let top = top + heights.health + lane * heights.app;
        let shown = |state: &AppState| (state.running.clone(), state.ready);
        let worse = |(running, ready): &(Option<_>, bool)| if running.is_none() { 2 } else { u8::from(!ready) };
        for run in columns::runs(changes, end_ms, WIDTH, shown, worse) {
            let (running, ready) = match &run.value {
                Ok(value) => value,
                Err(not_kept) => {
                    unkept(svg, &format!("{name}: {app}"), *not_kept, &run, top, heights.app);
                    continue;
                }
            };
            let span = format!("{} to {}", time(run.from_ms), time(run.to_ms));
            let Some(version) = running else {
                let title = format!("{name}: nothing of {app} runs, {span}");
                cell(svg, "nothing", (run.from, run.to), top, heights.app, "nothing", &title);
                continue;
            };
            let colour = colours.get(&format!("{app}@{version}")).copied().unwrap_or(0);
            let (class, mark) = if *ready { ("", "") } else { (" trial", "? ") };
            let title =
                format!("{name}: {app}@{version} {}, {span}", if *ready { "proved" } else { "not ready or on trial" });
            let label = if apps.len() > 1 { format!("{mark}{app} {version}") } else { format!("{mark}{version}") };
            cell(svg, &format!("r{colour}{class}"), (run.from, run.to), top, heights.app, &label, &title);
        }
    }
}

/// Classes with a hatching of their own.
pub(super) const PATTERNED: [&str; 6] = ["away", "cut", "agentdown", "notready", "trial", "unkept"];

/// A time of which only the number of changes is known.
fn unkept<T>(svg: &mut String, whose: &str, not_kept: u64, run: &columns::Run<T>, top: usize, height: usize) {
    let title = not_kept_title(whose, not_kept, run.from_ms, run.to_ms);
    cell(svg, "unkept", (run.from, run.to), top, height, &format!("{} changes", figure(not_kept)), &title);
}

/// What stands at a time of which only the number of changes is known.
pub(super) fn not_kept_title(whose: &str, not_kept: u64, from_ms: u64, to_ms: u64) -> String {
    format!("{whose}: {} changes that were only counted, {} to {}", figure(not_kept), time(from_ms), time(to_ms))
}

/// Rows that stand together as one block each, from its top on: a fault of many boxes is drawn in few pieces.
fn blocks(tops: impl Iterator<Item = usize>, row: usize, height: usize) -> Vec<(usize, usize)> {
    let mut blocks: Vec<(usize, usize)> = vec![];
    let tops: BTreeSet<usize> = tops.collect();
    for top in tops {
        match blocks.last_mut() {
            Some((first, tall)) if *first + *tall + row - height == top => *tall = top + height - *first,
            _ => blocks.push((top, height)),
        }
    }
    blocks
}

/// A rectangle with a title, and a word where there is room.
fn cell(svg: &mut String, class: &str, span: (usize, usize), top: usize, height: usize, word: &str, title: &str) {
    let (x, width) = (LEFT + span.0, span.1 - span.0);
    let title = escape(title);
    let _ = write!(
        svg,
        "<g class='c {class}'><title>{title}</title><rect x='{x}' y='{top}' width='{width}' height='{height}'/>"
    );
    if PATTERNED.iter().any(|patterned| class.ends_with(patterned)) {
        let _ = write!(svg, "<rect class='over' x='{x}' y='{top}' width='{width}' height='{height}'/>");
    }
    if height >= 11 && word.chars().count() * LETTER + 6 <= width {
        let _ = write!(svg, "<text x='{}' y='{}'>{}</text>", x + 4, top + height - 3, escape(word));
    }
    svg.push_str("</g>");
}

/// In which row of the strip each fault stands, and how many rows there are.
fn lanes(breaks: &[Break], end_ms: u64) -> (Vec<usize>, usize) {
    let mut free_from: Vec<usize> = vec![];
    let mut lanes = vec![];
    for (number, fault) in breaks.iter().enumerate() {
        let begin = x(fault.begin_ms, end_ms);
        let end = x(fault.end_ms.unwrap_or(fault.begin_ms), end_ms);
        let needs = end.max(begin + label(number + 1, fault).chars().count() * LETTER + 12);
        let lane = free_from.iter().position(|free| *free <= begin).unwrap_or(free_from.len());
        let lane = lane.min(FAULT_ROWS - 1);
        match free_from.get_mut(lane) {
            Some(free) => *free = needs,
            None => free_from.push(needs),
        }
        lanes.push(lane);
    }
    (lanes, free_from.len())
}

fn label(number: usize, fault: &Break) -> String {
    format!("{number} {}", fault.what)
}

/// A fault: its bar in the strip, and a band across everybody whom it struck.
fn band(svg: &mut String, number: usize, fault: &Break, top: usize, across: &[(usize, usize)], end_ms: u64) {
    let begin = x(fault.begin_ms, end_ms);
    let width = x(fault.end_ms.unwrap_or(fault.begin_ms), end_ms).saturating_sub(begin).max(2);
    let title =
        format!("{number} {}: {}, {}, struck {}", fault.what, time(fault.begin_ms), lasted(fault), fault.struck);
    let title = escape(&title);
    let _ = write!(
        svg,
        "<g class='fault'><title>{title}</title><rect class='bar' x='{begin}' y='{}' width='{width}' height='3'/>",
        top + 11
    );
    let text = label(number, fault);
    let room = text.chars().count() * LETTER;
    let at = if begin + room > ALL { ALL.saturating_sub(room + 4) } else { begin };
    let _ = write!(svg, "<text class='small' x='{at}' y='{}'>{}</text>", top + 9, escape(&text));
    for (top, height) in across {
        let _ = write!(
            svg,
            "<rect class='band' x='{begin}' y='{}' width='{width}' height='{}'/>",
            top.saturating_sub(1),
            height + 2
        );
    }
    svg.push_str("</g>");
}

fn violation(svg: &mut String, record: &Record, tops: &BTreeMap<&Name, usize>, bottom: usize, end_ms: u64) {
    let Some(violation) = &record.violation else { return };
    let x = x(violation.at_ms, end_ms);
    let title = escape(&violation.to_string());
    let _ = write!(svg, "<g class='violation'><title>{title}</title><line x1='{x}' y1='0' x2='{x}' y2='{bottom}'/>");
    if let Some(top) = violation.node.as_ref().and_then(|node| tops.get(node)) {
        let _ = write!(svg, "<text x='{}' y='{}'>\u{2717}</text>", x.saturating_sub(5), top + 13);
    }
    svg.push_str("</g>");
}

/// Hatchings: what only a colour would say, those who do not see it would miss.
pub(super) fn patterns() -> &'static str {
    "<defs>\
     <pattern id='p-away' width='6' height='6' patternUnits='userSpaceOnUse'><path d='M0 6L6 0' class='hatch'/></pattern>\
     <pattern id='p-cut' width='6' height='6' patternUnits='userSpaceOnUse'><path d='M0 0L6 6M0 6L6 0' class='hatch'/></pattern>\
     <pattern id='p-agent' width='5' height='5' patternUnits='userSpaceOnUse'><path d='M0 2.5H5' class='hatch'/></pattern>\
     <pattern id='p-notready' width='5' height='5' patternUnits='userSpaceOnUse'><circle cx='2.5' cy='2.5' r='1' class='dot'/></pattern>\
     <pattern id='p-unkept' width='8' height='4' patternUnits='userSpaceOnUse'><path d='M0 4L4 0L8 4' class='hatch'/></pattern>\
     <pattern id='p-trial' width='5' height='5' patternUnits='userSpaceOnUse'><path d='M0 5L5 0' class='lighthatch'/></pattern>\
     </defs>"
}
