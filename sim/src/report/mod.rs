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

use std::{borrow::Cow, fmt::Write as _};

use crate::{
    record::{Asked, Break, Record},
    run::RunError,
};

/// Writes down what was typed for a run, however that ended.
///
/// # Errors
/// Those of the run.
pub fn asked(played: anyhow::Result<Record>, asked: Asked) -> anyhow::Result<Record> {
    match played {
        Ok(record) => Ok(Record { asked: Some(asked), ..record }),
        Err(error) => Err(match error.downcast::<RunError>() {
            Ok(mut error) => {
                error.record.asked = Some(asked);
                error.into()
            }
            Err(error) => error,
        }),
    }
}

/// The command that plays a run again.
#[must_use]
pub fn replay(record: &Record) -> String {
    match (&record.asked, record.scenario.strip_prefix("swarm ")) {
        (Some(asked), _) => again(asked, record.seed),
        (None, Some(seed)) => format!("sim replay {seed}"),
        (None, None) => format!("sim run {} --seed {}", quoted(&record.scenario), record.seed),
    }
}

/// The command that asks for the same.
#[must_use]
pub fn again(asked: &Asked, seed: u64) -> String {
    let option = |name: &str, value: Option<u64>| value.map_or_else(String::new, |value| format!(" --{name} {value}"));
    match asked {
        Asked::Run { scenario, nodes } => {
            format!("sim run {} --seed {seed}{}", quoted(scenario), option("nodes", nodes.map(u64::from)))
        }
        Asked::Replay { minutes } => format!("sim replay {seed}{}", option("minutes", *minutes)),
    }
}

/// An argument as a shell takes it.
fn quoted(argument: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./+@,=".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        return Cow::Borrowed(argument);
    }
    Cow::Owned(format!("'{}'", argument.replace('\'', "'\\''")))
}

/// How long a fault lasted.
fn lasted(fault: &Break) -> String {
    match fault.end_ms {
        None if fault.at_once => "at once".to_owned(),
        None => time(0),
        Some(end) => {
            let length = time(end.saturating_sub(fault.begin_ms));
            if fault.healed || fault.at_once { length } else { format!("{length}, to the end of the run") }
        }
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
