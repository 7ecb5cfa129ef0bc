//! Records and times as people read and write them.

use std::str::FromStr;

use data_encoding::BASE64;
use jiff::Timestamp;
use proto::units::Span;

use super::{super::output, fetch::Line};

/// A time on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// On the calendar.
    At(Timestamp),
    /// So long ago.
    Ago(Span),
}

/// A text is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write a time such as 2026-03-01T06:00:00Z, or how long ago, such as -1h, -30m or -7d")]
pub struct WhenError;

impl FromStr for When {
    type Err = WhenError;
    fn from_str(text: &str) -> Result<When, WhenError> {
        if text == "now" {
            return Ok(When::Ago(Span::default()));
        }
        match text.strip_prefix('-') {
            Some(span) if span.ends_with(|c: char| c.is_ascii_alphabetic()) => {
                span.parse().map(When::Ago).map_err(|_| WhenError)
            }
            _ => text.parse().map(When::At).map_err(|_| WhenError),
        }
    }
}

/// A line for people: time, node, sequence, record. What would move a terminal's cursor is written out.
#[must_use]
pub fn record(line: &Line<'_>) -> String {
    let mut text = format!("{} {} {} ", line.time, line.node, line.sequence);
    match (line.is_base64(), line.bytes()) {
        (false, _) => text.push_str(&output::plain(line.record.get())),
        (true, Ok(bytes)) => match std::str::from_utf8(&bytes) {
            Ok(plain) => text.push_str(&output::plain(plain)),
            Err(_) => text.push_str(&format!("base64:{}", BASE64.encode(&bytes))),
        },
        (true, Err(_)) => text.push_str(&output::plain(line.record.get())),
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_on_the_calendar_or_ago() {
        assert_eq!("-1h".parse(), Ok(When::Ago(Span::from_secs(3600))));
        assert_eq!("now".parse(), Ok(When::Ago(Span::from_secs(0))));
        let six = When::At("2026-03-01T06:00:00Z".parse().unwrap());
        assert_eq!("2026-03-01T07:00:00+01:00".parse(), Ok(six));
        for bad in ["", "-", "1h", "-5", "-1x", "yesterday", "2026-03-01"] {
            assert_eq!(bad.parse::<When>(), Err(WhenError), "{bad}");
        }
    }

    #[test]
    fn a_record_cannot_play_with_the_terminal() {
        for (written, shown) in [
            (r#""record":{"a":"é"}"#, r#"{"a":"é"}"#),
            (r#""record":"G1sybQo=","encoding":"base64""#, r"\u{1b}[2m\n"),
            (r#""record":"/wA=","encoding":"base64""#, "base64:/wA="),
            (r#""record":"/wA=""#, r#""/wA=""#),
        ] {
            let start =
                r#"{"node":"n1","site":"hz","stream":"s","epoch":1,"sequence":5,"time":"2026-03-01T06:00:00.000Z","#;
            let line = format!("{start}{written}}}");
            let shown = format!("2026-03-01T06:00:00.000Z n1 5 {shown}\n");
            assert_eq!(record(&Line::read(line.as_bytes()).unwrap()), shown);
        }
    }
}
