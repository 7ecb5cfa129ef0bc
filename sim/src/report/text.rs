//! A run as lines for a terminal.

use std::fmt::Write as _;

use super::{counted, figure, lasted, replay, time};
use crate::record::{Break, Record};

/// Faults that are listed one by one.
const MAX_LISTED: usize = 20;

/// What happened, what was broken and how often, the books, the verdict.
#[must_use]
pub fn text(record: &Record) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}"); // a string takes everything
    };
    let sites = record.nodes.values().map(|track| &track.site).collect::<std::collections::BTreeSet<_>>().len();
    line(format!(
        "{}: {}, {}, {} of virtual time",
        record.scenario,
        counted(record.nodes.len(), "box", "boxes"),
        counted(sites, "site", "sites"),
        time((record.virtual_s * 1e3) as u64)
    ));
    if !record.about.is_empty() {
        line(format!("  {}", record.about));
    }
    if !record.breaks.is_empty() {
        line("faults".into());
        for (kind, struck) in &record.faults {
            let kept = record.breaks.iter().filter(|fault| &fault.kind == kind).count() as u64;
            let times = kept + record.breaks_not_kept.get(kind).unwrap_or(&0);
            let never = if *struck == 0 { "  NEVER FIRED" } else { "" };
            line(format!("  {kind:<12} {:>3} begun, struck {}{never}", times, figure(*struck)));
        }
        line("what was broken when".into());
        for fault in record.breaks.iter().take(MAX_LISTED) {
            line(format!("  {}", one(fault)));
        }
        if record.breaks.len() > MAX_LISTED {
            line(format!("  and {} more, in the JSON and on the page", record.breaks.len() - MAX_LISTED));
        }
        let not_kept = record.begun() - record.breaks.len() as u64;
        if not_kept > 0 {
            line(format!("  and {} after those, which were only counted", figure(not_kept)));
        }
    }
    let not_kept = record.changes_not_kept();
    if not_kept > 0 {
        line(format!("{} changes of boxes, apps and rollouts were only counted: too many to keep", figure(not_kept)));
    }
    if !record.rollouts.is_empty() {
        line("rollouts".into());
        for (key, progress) in &record.rollouts {
            if let Some((at, end)) = progress.last() {
                line(format!(
                    "  {key:<24} {} after {}: {} of {} healthy, {} failed",
                    end.phase,
                    time(*at),
                    end.done,
                    end.total,
                    end.failed
                ));
            }
        }
    }
    if let Some(books) = record.books.filter(|books| books.acknowledged + books.unacknowledged > 0) {
        line(format!(
            "records\n  {} acknowledged = {} at the hub + {} in counted gaps + {} missing; {} more without an answer",
            figure(books.acknowledged),
            figure(books.stored),
            figure(books.in_gaps),
            figure(books.missing),
            figure(books.unacknowledged)
        ));
        if books.unknowable > 0 {
            line(format!("  {} more were lost with a box whose epoch a restored hub forgot", figure(books.unknowable)));
        }
        line(format!("  most that waited on all boxes at once: {}", figure(record.backlog.maximum())));
    }
    match &record.error {
        None => line("verdict\n  all invariants held, and all converged after healing".into()),
        Some(error) => line(format!("verdict\n  FAILED: {error}\n  again: {}", replay(record))),
    }
    line(format!("  digest {} over {} lines", record.trace_digest, figure(record.trace_lines)));
    out
}

fn one(fault: &Break) -> String {
    let lasted = lasted(fault);
    let lasted = if fault.at_once && fault.end_ms.is_none() { lasted } else { format!("for {lasted}") };
    format!("{:>12}  {} {lasted}, struck {}", time(fault.begin_ms), fault.what, figure(fault.struck))
}
