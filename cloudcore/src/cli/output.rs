//! Writing to the terminal: results, errors with their causes, amounts for people.

use std::io::Write as _;

use jiff::Timestamp;
use proto::env::{SystemClock, WallClock as _};

/// How objects are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// A line each.
    #[default]
    Table,
    /// A longer line each.
    Wide,
    /// JSON, as the API has it.
    Json,
    /// The same as YAML.
    Yaml,
    /// `kind/name`, a line each.
    Name,
}

/// Writes to standard output.
///
/// # Errors
/// When it is closed or full.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes an error and its causes, each once, to standard error.
pub fn print_error(error: &anyhow::Error) {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&cause);
        }
    }
    eprintln!("error: {}", plain(&text));
}

/// Time of day.
#[must_use]
pub fn now() -> Timestamp {
    SystemClock.now()
}

/// Time since `then`, short.
#[must_use]
pub fn age(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map_or_else(|| "-".into(), |then| span(now.as_second().saturating_sub(then.as_second())))
}

/// A number of seconds, short.
#[must_use]
pub fn span(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..=119 => format!("{s}s"),
        s @ 120..=7_199 => format!("{}m", s / 60),
        s @ 7_200..=172_799 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

/// An amount of bytes, rounded.
#[must_use]
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = units.get(unit).copied().unwrap_or_default();
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {name}") }
}

/// Text from far away without what could steer a terminal; line breaks stay.
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

/// Columns as wide as they need to be.
#[must_use]
pub fn columns(headers: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(headers.get(column).map(|h| h.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    let headers: Vec<String> = headers.iter().map(|h| (*h).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&headers).chain(rows) {
        text.push_str(&line(row, &widths));
    }
    text
}

/// One row in columns of given widths.
#[must_use]
pub fn line(row: &[String], widths: &[usize]) -> String {
    let cells = row.iter().enumerate().map(|(i, cell)| {
        let width = widths.get(i).copied().unwrap_or(0);
        format!("{:width$}", plain(cell).replace('\n', " "))
    });
    let text = cells.collect::<Vec<_>>().join("   ");
    format!("{}\n", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_tables_are_for_people() {
        assert_eq!(bytes(17), "17 B");
        assert_eq!(bytes(14 << 20), "14.0 MiB");
        assert_eq!(span(90), "90s");
        assert_eq!(span(86_400 * 3), "3d");
        let rows = vec![vec!["a".into(), "x\u{1b}[2J\ny".into()], vec!["long-name".into(), String::new()]];
        assert_eq!(columns(&["NAME", "SAYS"], &rows), "NAME        SAYS\na           x [2J y\nlong-name\n");
    }
}
