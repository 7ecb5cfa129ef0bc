//! Backlog and rollouts over time as SVG.

use std::fmt::Write as _;

use super::{
    escape, figure, time,
    timeline::{ALL, LEFT, WIDTH, axis, not_kept_title, x},
};
use crate::record::{Record, Span, curve::Curve};

/// Height of the fleet's curve, of that of a box, and of a rollout.
const FLEET: usize = 110;
const BOX: usize = 38;
const ROLLOUT: usize = 44;
/// Boxes with a curve of their own: those with the highest peaks.
const MAX_BOXES: usize = 12;
const AXIS: usize = 18;

/// Records that waited: all boxes together, then those of the highest peaks.
pub(super) fn backlog(record: &Record, end_ms: u64) -> String {
    let mut boxes: Vec<_> = record.nodes.iter().filter(|(_, track)| track.backlog.maximum() > 0).collect();
    boxes.sort_by_key(|(name, track)| (std::cmp::Reverse(track.backlog.maximum()), (*name).clone()));
    boxes.truncate(MAX_BOXES);
    let bottom = AXIS + FLEET + 14 + boxes.len() * (BOX + 10);
    let mut svg = format!("<svg viewBox='0 0 {ALL} {bottom}' role='img' aria-label='records that wait'>");
    axis(&mut svg, end_ms, 0, bottom, record.healing_at_ms);
    curve(&mut svg, "all boxes", &record.backlog, AXIS, FLEET, end_ms);
    let mut top = AXIS + FLEET + 14;
    for (name, track) in boxes {
        curve(&mut svg, name.as_str(), &track.backlog, top, BOX, end_ms);
        top += BOX + 10;
    }
    svg.push_str("</svg>");
    svg
}

fn curve(svg: &mut String, name: &str, curve: &Curve, top: usize, height: usize, end_ms: u64) {
    let maximum = curve.maximum().max(1);
    let bottom = top + height;
    let y = |records: u64| {
        bottom - usize::try_from(u128::from(records) * height as u128 / u128::from(maximum)).unwrap_or(0)
    };
    let mut path = format!("M{LEFT} {bottom}");
    let mut peak = (0, 0);
    for (at, records) in curve.points() {
        if records > peak.1 {
            peak = (at, records);
        }
        let (from, to) = (x(at, end_ms), x(at + curve.slot_ms, end_ms));
        let _ = write!(path, "H{from}V{}H{to}", y(records));
    }
    if curve.points().last().is_some_and(|(at, _)| at + curve.slot_ms < end_ms) {
        let _ = write!(path, "V{}", y(curve.last));
    }
    let _ = write!(path, "H{}V{bottom}Z", LEFT + WIDTH);
    let title = escape(&format!("{name}: most {} records, at {}", figure(peak.1), time(peak.0)));
    let name = escape(name);
    let _ = write!(
        svg,
        "<g class='curve'><title>{title}</title><path d='{path}'/></g>\
         <text class='name' x='2' y='{}'>{name}</text><text class='small' x='2' y='{}'>most {}</text>\
         <line class='base' x1='{LEFT}' y1='{bottom}' x2='{}' y2='{bottom}'/>",
        top + 12,
        top + 26,
        figure(curve.maximum()),
        LEFT + WIDTH
    );
}

/// How far each rollout was: healthy from below, failed on top of them.
pub(super) fn rollouts(record: &Record, end_ms: u64) -> String {
    let bottom = AXIS + record.rollouts.len() * (ROLLOUT + 12);
    let mut svg = format!("<svg viewBox='0 0 {ALL} {bottom}' role='img' aria-label='rollouts over time'>");
    axis(&mut svg, end_ms, 0, bottom, record.healing_at_ms);
    let mut top = AXIS;
    for (key, changes) in &record.rollouts {
        let base = top + ROLLOUT;
        for Span { from_ms: from, to_ms: to, value } in changes.spans(end_ms) {
            let (x0, width) = (x(from, end_ms), x(to, end_ms).saturating_sub(x(from, end_ms)).max(1));
            let now = match value {
                Ok(now) => now,
                Err(not_kept) => {
                    let title = escape(&not_kept_title(key, not_kept, from, to));
                    let _ = write!(
                        svg,
                        "<g class='c unkept'><title>{title}</title>\
                         <rect x='{x0}' y='{top}' width='{width}' height='{ROLLOUT}'/>\
                         <rect class='over' x='{x0}' y='{top}' width='{width}' height='{ROLLOUT}'/></g>"
                    );
                    continue;
                }
            };
            let tall = |nodes: u32| ROLLOUT * nodes as usize / (now.total.max(1) as usize);
            let (healthy, failed) = (tall(now.done), tall(now.failed));
            let title = escape(&format!(
                "{key} {}: {} of {} healthy, {} failed, {} to {}",
                now.phase,
                now.done,
                now.total,
                now.failed,
                time(from),
                time(to)
            ));
            let _ = write!(
                svg,
                "<g><title>{title}</title>\
                 <rect class='all' x='{x0}' y='{top}' width='{width}' height='{ROLLOUT}'/>\
                 <rect class='done' x='{x0}' y='{}' width='{width}' height='{healthy}'/>\
                 <rect class='failed' x='{x0}' y='{}' width='{width}' height='{failed}'/></g>",
                base - healthy,
                (base - healthy).saturating_sub(failed),
            );
        }
        let end = changes
            .last()
            .map(|(at, now)| (format!("{}, {}/{}", now.phase, now.done, now.total), format!("since {}", time(*at))));
        let (stands, since) = end.unwrap_or_default();
        let _ = write!(
            svg,
            "<text class='name' x='2' y='{}'>{}</text><text class='small' x='2' y='{}'>{}</text>\
             <text class='small' x='2' y='{}'>{since}</text>",
            top + 11,
            escape(key),
            top + 25,
            escape(&stands),
            top + 38
        );
        top += ROLLOUT + 12;
    }
    svg.push_str("</svg>");
    svg
}
