//! How objects are printed: aligned columns, names, JSON, YAML.

use std::{borrow::Cow, io::Write as _};

use clap::ValueEnum;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    exit,
    kinds::{KindInfo, text},
};

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns.
    Table,
    /// More columns.
    Wide,
    /// JSON; a list has `items`.
    Json,
    /// YAML.
    Yaml,
    /// `kind/name`, a line each.
    Name,
}

/// Prints to standard output: the one place from which the command line writes there.
pub fn print(text: &str) {
    print_bytes(text.as_bytes());
}

/// As [`print`], whatever the bytes are.
pub fn print_bytes(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(bytes).and_then(|()| out.flush()) {
        std::process::exit(i32::from(end_of_output(&error)));
    }
}

/// How the program ends when nobody takes its output. A closed pipe ends it quietly with the code that the
/// signal would give it, as `head` and shells expect; anything else is said.
fn end_of_output(error: &std::io::Error) -> u8 {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        return exit::PIPE_CLOSED;
    }
    eprintln!("error: could not write to standard output: {error}");
    exit::Exit::Failed as u8
}

/// Prints many objects of one kind.
///
/// # Errors
/// When a value cannot be written as YAML.
pub fn list(format: Format, kind: &KindInfo, objects: &[Value], now: Timestamp) -> anyhow::Result<()> {
    match format {
        Format::Table | Format::Wide => {
            if objects.is_empty() {
                eprintln!("No {} found.", kind.plural);
            } else {
                print(&table(kind, objects, format == Format::Wide, true, now));
            }
            Ok(())
        }
        Format::Name => {
            objects.iter().for_each(|o| print(&format!("{}/{}\n", kind.plural, text(o, "/metadata/name"))));
            Ok(())
        }
        Format::Json | Format::Yaml => structured(
            format,
            &json!({"apiVersion": proto::API_VERSION, "kind": format!("{}List", kind.kind), "items": objects}),
        ),
    }
}

/// Prints one value as JSON or YAML.
///
/// # Errors
/// When it cannot be written so.
pub fn structured(format: Format, value: &Value) -> anyhow::Result<()> {
    if format == Format::Yaml {
        print(&serde_saphyr::to_string(value)?);
    } else {
        print(&format!("{}\n", serde_json::to_string_pretty(value)?));
    }
    Ok(())
}

/// Columns as kubectl aligns them: three blanks between, the last one ragged.
#[must_use]
pub fn table(kind: &KindInfo, objects: &[Value], wide: bool, heads: bool, now: Timestamp) -> String {
    let mut rows: Vec<Vec<String>> = vec![];
    if heads {
        rows.push(kind.heads.iter().map(|h| (*h).to_owned()).collect());
    }
    rows.extend(objects.iter().map(|o| kind.cells(o, now)));
    if !wide {
        rows.iter_mut().for_each(|row| row.truncate(kind.wide_from));
    }
    align(&rows)
}

/// A text in one line that cannot play with the terminal: control characters are written out, as escapes. What
/// an object holds may come from anybody's workload.
#[must_use]
pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c.is_control() { plain.extend(c.escape_default()) } else { plain.push(c) }
    }
    Cow::Owned(plain)
}

/// Aligns rows of cells. What would break a row is a blank, other control characters are written out.
#[must_use]
pub fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &Vec<String>, i: usize| {
        let text = row.get(i).map_or("", String::as_str).replace(['\n', '\r', '\t'], " ");
        plain(&text).into_owned()
    };
    let widths: Vec<usize> =
        (0..columns).map(|i| rows.iter().map(|r| cell(r, i).chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, width) in widths.iter().enumerate() {
            line.push_str(&format!("{:<width$}   ", cell(row, i)));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_ends_quietly_with_the_code_of_its_signal() {
        let code = |kind: std::io::ErrorKind| end_of_output(&kind.into());
        assert_eq!(code(std::io::ErrorKind::BrokenPipe), 141);
        assert_eq!(code(std::io::ErrorKind::StorageFull), 1);
    }

    #[test]
    fn columns_align_and_control_characters_do_not_break_rows() {
        let rows = [vec!["NAME".into(), "X".into()], vec!["a\nb".into(), String::new()]];
        assert_eq!(align(&rows), "NAME   X\na b\n");
        let rows = [vec!["\u{1b}[2Ja".into(), "b\u{9b}31m\u{7}".into()], vec!["é".into(), "x".into()]];
        assert_eq!(align(&rows), "\\u{1b}[2Ja   b\\u{9b}31m\\u{7}\né            x\n");
    }
}
