//! Spans of time and amounts of bytes as people write them: `30s`, `2m`, `64Mi`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// A text is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}")]
pub struct UnitError {
    text: String,
    what: &'static str,
}

/// A span of time. Written as a number with `ms`, `s`, `m`, `h` or `d`; a bare number means seconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "NumberOrText", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct Span(Duration);

impl Span {
    /// From whole seconds.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Span {
        Span(Duration::from_secs(secs))
    }

    /// From milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Span {
        Span(Duration::from_millis(millis))
    }

    /// As the standard library's type.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

/// An amount of bytes. Written with `Ki`, `Mi`, `Gi`, `Ti` (powers of 1,024) or `k`, `M`, `G`, `T`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "NumberOrText", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct Bytes(u64);

impl Bytes {
    /// From a count of bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Bytes {
        Bytes(bytes)
    }

    /// The count of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

const SPANS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
const BYTES: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

/// Splits `12.5Mi` and multiplies; a fraction is allowed, a sign is not.
fn parse(text: &str, units: &[(&str, u64)], bare: u64, what: &'static str) -> Result<u64, UnitError> {
    let wrong = || UnitError { text: text.chars().take(40).collect(), what };
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit.trim() {
        "" => bare,
        unit => units.iter().find(|(u, _)| *u == unit).ok_or_else(wrong)?.1,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(wrong);
    }
    let value = number.parse::<f64>().map_err(|_| wrong())? * factor as f64;
    if value.is_finite() && value < 1e18 { Ok(value as u64) } else { Err(wrong()) }
}

impl FromStr for Span {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Span, UnitError> {
        parse(text, &SPANS, 1_000, "a span of time: write a number with ms, s, m, h or d, such as 30s")
            .map(Span::from_millis)
    }
}

impl FromStr for Bytes {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Bytes, UnitError> {
        parse(text, &BYTES, 1, "an amount of bytes: write a number with k, M, G, Ki, Mi or Gi, such as 64Mi").map(Bytes)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let (unit, factor) =
            SPANS.iter().find(|(_, factor)| ms >= *factor && ms % factor == 0).unwrap_or(&("s", 1_000));
        f.pad(&format!("{}{unit}", ms / factor))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match BYTES.iter().take(4).find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor)) {
            Some((unit, factor)) => f.pad(&format!("{}{unit}", self.0 / factor)),
            None => f.pad(&self.0.to_string()),
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What YAML and JSON may hold where an amount is expected.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl TryFrom<NumberOrText> for Span {
    type Error = UnitError;
    fn try_from(value: NumberOrText) -> Result<Span, UnitError> {
        match value {
            NumberOrText::Number(secs) => secs.to_string().parse(),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

impl TryFrom<NumberOrText> for Bytes {
    type Error = UnitError;
    fn try_from(value: NumberOrText) -> Result<Bytes, UnitError> {
        match value {
            NumberOrText::Number(bytes) => Ok(Bytes(bytes)),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        span.to_string()
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> String {
        bytes.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_bytes_go_both_ways() {
        for (text, ms) in [("30s", 30_000), ("250ms", 250), ("2m", 120_000), ("1.5h", 5_400_000), ("7", 7_000)] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.get().as_millis(), ms, "{text}");
            assert_eq!(span.to_string().parse(), Ok(span));
        }
        for (text, n) in [("64Mi", 64 << 20), ("1k", 1000), ("17", 17), ("0.5Ki", 512)] {
            let bytes: Bytes = text.parse().unwrap();
            assert_eq!(bytes.get(), n, "{text}");
            assert_eq!(bytes.to_string().parse(), Ok(bytes));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "s", "-1s", "1w", "99999999999999999999", "1e400", "1..2s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?}");
            assert!(bad.parse::<Bytes>().is_err(), "{bad:?}");
        }
    }
}
