//! Reports of a run: lines for a terminal, and one page of HTML for an incident review.
//!
//! | module | what it holds |
//! |---|---|
//! | [`text`] | lines for a terminal |
//! | [`page`] | the page: head, figures, tables, style |
//! | [`timeline`] | boxes over time as SVG, faults as bands across those that they struck |
//! | [`charts`] | backlog and rollouts as SVG |
//! | [`columns`] | tracks as columns of a picture: bounded, and a short trouble still shows |
//!
//! The page needs nothing from outside and no script; whatever stands in it is escaped. The JSON of a run is
//! the [`crate::record::Record`] itself.

mod charts;
mod columns;
pub mod page;
pub mod text;
mod timeline;

#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use crate::record::Record;

/// The command that plays a run again.
#[must_use]
pub fn replay(record: &Record) -> String {
    match record.scenario.strip_prefix("swarm ") {
        Some(seed) => format!("sim replay {seed}"),
        None => format!("sim run {} --seed {}", record.scenario, record.seed),
    }
}

/// Text of HTML and SVG, in an element or an attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Control characters have no place in a page.
            c if c.is_control() && c != '\n' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A moment or a length as a person reads it: `850 ms`, `12.5 s`, `3:05 min`, `2:03:05 h`, `3 d 04:00 h`.
fn time(ms: u64) -> String {
    let (s, part) = (ms / 1000, ms % 1000);
    let (d, h, m) = (s / 86_400, s / 3600 % 24, s / 60 % 60);
    let mut text = String::new();
    let _ = match s {
        0 => write!(text, "{part} ms"),
        1..60 => write!(text, "{s}.{} s", part / 100),
        60..3_600 => write!(text, "{m}:{:02} min", s % 60),
        3_600..86_400 => write!(text, "{h}:{m:02}:{:02} h", s % 60),
        _ => write!(text, "{d} d {h:02}:{m:02} h"),
    }; // writing to a string cannot fail
    text
}

/// A number with its thousands apart.
fn figure(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// `1 box`, `2 boxes`.
fn counted(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
