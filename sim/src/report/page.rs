//! The page: one file of HTML with everything in it.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{
    charts, counted, escape, figure, lasted, replay, time,
    timeline::{self, Health},
};
use crate::{fault::Target, record::Record};

/// Rows of the table of faults, and of marks.
const MAX_ROWS: usize = 500;

/// The page of a run.
#[must_use]
pub fn page(record: &Record) -> String {
    let end_ms = ((record.virtual_s * 1e3) as u64).max(1);
    let mut page = String::new();
    let _ = write!(
        page,
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>\
         <meta name='viewport' content='width=device-width,initial-scale=1'>\
         <meta name='color-scheme' content='light dark'>\
         <title>{} \u{b7} seed {}</title><style>{}</style></head><body>",
        escape(&record.scenario),
        record.seed,
        include_str!("page.css")
    ); // a string takes everything
    head(&mut page, record);
    cards(&mut page, record, end_ms);
    section(&mut page, "Boxes over time", &legend(record), &timeline::svg(record, end_ms));
    if record.backlog.maximum() > 0 {
        let note = "records that wait in outboxes; each curve keeps its maxima, and has a scale of its own";
        section(&mut page, "Backlog", note, &charts::backlog(record, end_ms));
    }
    if !record.rollouts.is_empty() {
        let note = "<span class='k done'></span> healthy <span class='k failed'></span> failed \
                    <span class='k all'></span> not yet";
        section(&mut page, "Rollouts", note, &charts::rollouts(record, end_ms));
    }
    faults(&mut page, record);
    marks(&mut page, record);
    page.push_str("</body></html>\n");
    page
}

fn head(page: &mut String, record: &Record) {
    let _ = write!(page, "<header><h1>{}</h1><p>{}</p>", escape(&record.scenario), escape(&record.about));
    match &record.error {
        None => {
            page.push_str("<p class='verdict ok'>\u{2713} all invariants held, and all converged after healing</p>")
        }
        Some(error) => {
            let _ = write!(page, "<p class='verdict bad'>\u{2717} {}</p>", escape(error));
        }
    }
    let _ = write!(
        page,
        "<p class='again'>seed <b>{}</b> \u{b7} again: <code>{}</code><br>trace digest <code>{}</code> over {} lines</p></header>",
        record.seed,
        escape(&replay(record)),
        escape(&record.trace_digest),
        figure(record.trace_lines)
    );
}

fn cards(page: &mut String, record: &Record, end_ms: u64) {
    let sites: BTreeSet<_> = record.nodes.values().map(|track| &track.site).collect();
    let mut cards = vec![
        ("boxes", record.nodes.len().to_string(), format!("at {}", counted(sites.len(), "site", "sites"))),
        ("virtual time", time(end_ms), format!("healing from {}", time(record.healing_at_ms))),
    ];
    let struck: u64 = record.faults.values().sum();
    let never: Vec<_> =
        record.faults.iter().filter(|(_, struck)| **struck == 0).map(|(kind, _)| kind.clone()).collect();
    let note = if never.is_empty() {
        format!("struck {} times", figure(struck))
    } else {
        format!("never fired: {}", never.join(", "))
    };
    cards.push(("faults", figure(record.begun()), note));
    if let Some(books) = record.books.filter(|books| books.acknowledged > 0) {
        let note = format!(
            "{} at the hub + {} in gaps + {} missing",
            figure(books.stored),
            figure(books.in_gaps),
            figure(books.missing)
        );
        cards.push(("records promised", figure(books.acknowledged), note));
        cards.push(("most waiting at once", figure(record.backlog.maximum()), "records on all boxes".into()));
    }
    page.push_str("<div class='cards'>");
    for (name, value, note) in cards {
        let _ = write!(page, "<div><span>{name}</span><b>{}</b><i>{}</i></div>", escape(&value), escape(&note));
    }
    page.push_str("</div>");
}

fn section(page: &mut String, title: &str, note: &str, body: &str) {
    let _ = write!(page, "<section><h2>{title}</h2><p class='note'>{note}</p><div class='wide'>{body}</div></section>");
}

fn legend(record: &Record) -> String {
    let mut legend = String::new();
    let mut key = |class: &str, word: &str| {
        let patterned = timeline::PATTERNED.iter().any(|patterned| class.ends_with(patterned));
        let over = if patterned { "<rect class='over' x='0' y='0' width='24' height='12'/>" } else { "" };
        let _ = write!(
            legend,
            "<span class='key'><svg class='swatch' viewBox='0 0 24 12'><g class='c {class}'>\
             <rect x='0' y='0' width='24' height='12'/>{over}</g></svg> {}</span> ",
            escape(word)
        );
    };
    for health in Health::ALL {
        key(health.class(), health.word());
    }
    for (release, colour) in timeline::releases(record) {
        key(&format!("r{colour}"), &release);
    }
    key("r0 trial", "on trial or not ready (?)");
    key("nothing", "nothing runs");
    let not_kept = record.changes_not_kept();
    if not_kept > 0 {
        key("unkept", &format!("{} changes that were only counted: too many to keep", figure(not_kept)));
    }
    format!(
        "upper bar: the box; lower bar: what it runs. {legend}<span class='key'><svg class='swatch' viewBox='0 0 24 12'>\
         <rect class='band' x='1' y='1' width='22' height='10'/></svg> a fault, numbered as below</span> \
         <span class='key'><svg class='swatch' viewBox='0 0 24 12'><line class='healing' x1='12' y1='0' x2='12' y2='12'/>\
         </svg> healing begins</span>. Point at anything for its times."
    )
}

fn faults(page: &mut String, record: &Record) {
    if record.breaks.is_empty() {
        return;
    }
    page.push_str(
        "<section><h2>Faults</h2><div class='wide'><table><tr><th>no.</th><th>what</th><th>boxes</th><th>began</th>\
         <th>lasted</th><th>struck</th></tr>",
    );
    for (number, fault) in record.breaks.iter().enumerate().take(MAX_ROWS) {
        let lasted = lasted(fault);
        let whom =
            if fault.whom == Target::Hub { "hub".to_owned() } else { record.struck_by(fault).count().to_string() };
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{whom}</td><td>{}</td><td>{lasted}</td><td>{}</td></tr>",
            number + 1,
            escape(&fault.what),
            time(fault.begin_ms),
            figure(fault.struck)
        );
    }
    page.push_str("</table></div>");
    left_out(page, record.breaks.len(), record.begun() - record.breaks.len() as u64);
    page.push_str("</section>");
}

fn marks(page: &mut String, record: &Record) {
    if record.marks.is_empty() {
        return;
    }
    page.push_str("<section><h2>What else happened</h2><div class='wide'><table>");
    for mark in record.marks.iter().take(MAX_ROWS) {
        let _ = write!(page, "<tr><td>{}</td><td>{}</td></tr>", time(mark.at_ms), escape(&mark.text));
    }
    page.push_str("</table></div>");
    left_out(page, record.marks.len(), record.marks_not_kept);
    page.push_str("</section>");
}

fn left_out(page: &mut String, rows: usize, not_kept: u64) {
    if rows > MAX_ROWS {
        let _ = write!(page, "<p class='note'>and {} more, in the JSON</p>", rows - MAX_ROWS);
    }
    if not_kept > 0 {
        let _ = write!(page, "<p class='note'>and {} after those, which were only counted</p>", figure(not_kept));
    }
}
