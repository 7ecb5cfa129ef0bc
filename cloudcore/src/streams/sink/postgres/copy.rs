//! Rows in Postgres' binary copy format, and its times.

use bytes::{BufMut as _, Bytes, BytesMut};
use jiff::Timestamp;
use serde::de::IgnoredAny;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

use crate::plain;

/// Microseconds from 1970 to 2000, where Postgres begins to count.
const EPOCH_US: i64 = 946_684_800_000_000;
/// Start of the year 1 and end of the year 9999.
const BOUNDS_MS: (i64, i64) = (-62_135_596_800_000, 253_402_300_799_999);

/// A time of Postgres, in microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Micros(pub(super) i64);

impl Micros {
    /// Of a record, whose clock may be wild.
    pub(super) fn of_ms(ms: i64) -> Micros {
        Micros(ms.clamp(BOUNDS_MS.0, BOUNDS_MS.1) * 1000)
    }

    /// Of one of our own times.
    pub(super) fn of(time: Timestamp) -> Micros {
        Micros(time.as_microsecond().clamp(BOUNDS_MS.0 * 1000, BOUNDS_MS.1 * 1000))
    }

    pub(super) fn timestamp(self) -> Timestamp {
        Timestamp::from_microsecond(self.0).unwrap_or_default()
    }
}

impl ToSql for Micros {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_i64(self.0 - EPOCH_US);
        Ok(IsNull::No)
    }
    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for Micros {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Micros, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Micros(i64::from_be_bytes(raw.try_into()?).saturating_add(EPOCH_US)))
    }
    accepts!(TIMESTAMPTZ);
}

/// Rows for `COPY .. FROM STDIN BINARY`.
pub(super) struct Copy(BytesMut);

impl Copy {
    pub(super) fn new() -> Copy {
        let mut out = BytesMut::with_capacity(64 << 10);
        out.put_slice(b"PGCOPY\n\xff\r\n\0");
        out.put_i32(0); // flags
        out.put_i32(0); // no extension
        Copy(out)
    }

    /// Begins a row.
    pub(super) fn row(&mut self, fields: i16) {
        self.0.put_i16(fields);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.put_i32(i32::try_from(bytes.len()).unwrap_or(0)); // a record is far smaller
        self.0.put_slice(bytes);
    }

    pub(super) fn number(&mut self, number: i64) {
        self.0.put_i32(8);
        self.0.put_i64(number);
    }

    pub(super) fn time(&mut self, time: Micros) {
        self.number(time.0 - EPOCH_US);
    }

    pub(super) fn json(&mut self, text: Option<&str>) {
        match text {
            None => self.0.put_i32(-1),
            Some(text) => {
                self.0.put_i32(i32::try_from(text.len() + 1).unwrap_or(1));
                self.0.put_u8(1); // version of the form
                self.0.put_slice(text.as_bytes());
            }
        }
    }

    pub(super) fn finish(mut self) -> Bytes {
        self.0.put_i16(-1);
        self.0.freeze()
    }
}

/// Digits in a row, of a number, that jsonb takes for sure.
const MAX_DIGITS: usize = 300;
/// Digits of an exponent, likewise.
const MAX_EXPONENT_DIGITS: usize = 3;

/// A record as jsonb takes it: JSON text without NUL and without numbers that no numeric holds.
pub(super) fn document(record: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(record).ok()?;
    plain::read::<IgnoredAny>(record).ok()?;
    if text.contains("\\u0000") || !has_small_numbers(text) { None } else { Some(text) }
}

/// Looks at the numbers of a valid JSON text.
fn has_small_numbers(text: &str) -> bool {
    let (mut in_string, mut escaped) = (false, false);
    let (mut digits, mut exponent) = (0, false);
    for byte in text.bytes() {
        if in_string {
            (in_string, escaped) = (escaped || byte != b'"', !escaped && byte == b'\\');
            continue;
        }
        match byte {
            b'"' => (in_string, digits, exponent) = (true, 0, false),
            b'0'..=b'9' => {
                digits += 1;
                if digits > if exponent { MAX_EXPONENT_DIGITS } else { MAX_DIGITS } {
                    return false;
                }
            }
            // After a digit it begins an exponent; elsewhere it is of `true` or `false`.
            b'e' | b'E' => (digits, exponent) = (0, digits > 0),
            b'.' => digits = digits.max(1),
            b'+' | b'-' => {}
            _ => (digits, exponent) = (0, false),
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_jsonb_takes_is_a_document() {
        for good in ["{}", "1", r#""1e9999""#, r#"{"a":[1.5e10,true,false],"b\\":"\"e"}"#, "[1e-300,12345]", "null"] {
            assert_eq!(document(good.as_bytes()), Some(good));
        }
        let long = format!("0.{}", "0".repeat(400));
        for bad in ["", "{", "{}{}", r#""\u0000""#, "1e-9999", "1E-400000", &long, r#""\ud800""#] {
            assert_eq!(document(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(document(b"\"\xff\""), None);
    }
}
