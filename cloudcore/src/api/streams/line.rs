//! A record as a line of JSON.
//!
//! ```text
//! {"node":"n1","site":"hz","stream":"scans","epoch":7,"sequence":3,"time":"2026-03-01T06:00:00.123Z","record":{"barcode":"x"}}
//! {"node":"n1","site":"hz","stream":"scans","epoch":7,"sequence":4,"time":"…","record":"AP8=","encoding":"base64"}
//! ```
//!
//! A record that is JSON stands there as its producer wrote it, to the digit; only line ends between its
//! values become blanks. JSON that some readers refuse (nested deeper than 127, numbers beyond a double,
//! half a surrogate pair) counts as bytes, so that one record never spoils a page.

use std::fmt;

use data_encoding::BASE64;
use jiff::Timestamp;
use proto::{
    name::Name,
    stream::{Epoch, MAX_RECORD_BYTES},
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{json, value::RawValue};

use crate::{api::book::Book, streams::sink::Row};

/// How records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    /// JSON as such, everything else as base64.
    #[default]
    Json,
    /// All as base64: to the byte.
    Base64,
}

#[derive(Serialize)]
struct Line<'a> {
    node: &'a Name,
    site: &'a Name,
    stream: &'a Name,
    epoch: Epoch,
    sequence: u64,
    time: String,
    #[serde(flatten)]
    record: Written<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Written<'a> {
    Json { record: &'a RawValue },
    Bytes { record: String, encoding: &'static str },
}

/// Appends the line of a record.
pub(super) fn push(lines: &mut Vec<u8>, row: &Row, encoding: Encoding) {
    let raw = if encoding == Encoding::Json { json_of(&row.bytes) } else { None };
    let record = match &raw {
        Some(record) => Written::Json { record },
        None => Written::Bytes { record: BASE64.encode(&row.bytes), encoding: "base64" },
    };
    let (node, site, stream) = (&row.node, &row.site, &row.stream);
    let line = Line { node, site, stream, epoch: row.epoch, sequence: row.sequence, time: time(row.time_ms), record };
    if serde_json::to_writer(&mut *lines, &line).is_ok() {
        lines.push(b'\n'); // writing such a struct to memory does not fail
    }
}

/// A node's time; one that no calendar has becomes the nearest that there is.
fn time(time_ms: i64) -> String {
    let nearest = if time_ms < 0 { Timestamp::MIN } else { Timestamp::MAX };
    format!("{:.3}", Timestamp::from_millisecond(time_ms).unwrap_or(nearest))
}

/// The record, if it is JSON that every reader takes, on one line.
fn json_of(bytes: &[u8]) -> Option<Box<RawValue>> {
    if bytes.len() > MAX_RECORD_BYTES || serde_json::from_slice::<Plain>(bytes).is_err() {
        return None;
    }
    let raw: &RawValue = serde_json::from_slice(bytes).ok()?;
    // A string has no bare line end, so this one stands between values.
    RawValue::from_string(raw.get().replace(['\n', '\r'], " ")).ok()
}

/// Any JSON, read in full and forgotten.
struct Plain;

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Plain, D::Error> {
        struct Reads;
        impl<'de> Visitor<'de> for Reads {
            type Value = Plain;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Plain, E> {
                Ok(Plain)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Plain, E> {
                Ok(Plain)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Plain, E> {
                Ok(Plain)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Plain, E> {
                Ok(Plain)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Plain, E> {
                Ok(Plain)
            }
            fn visit_str<E>(self, _: &str) -> Result<Plain, E> {
                Ok(Plain)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Plain, A::Error> {
                while seq.next_element::<Plain>()?.is_some() {}
                Ok(Plain)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Plain, A::Error> {
                while map.next_entry::<Plain, Plain>()?.is_some() {}
                Ok(Plain)
            }
        }
        deserializer.deserialize_any(Reads)
    }
}

/// The schema of a line.
pub(super) fn define(book: &mut Book) {
    book.define(
        "Record",
        json!({
            "type": "object",
            "required": ["node", "site", "stream", "epoch", "sequence", "time", "record"],
            "properties": {
                "node": {"type": "string"},
                "site": {"type": "string", "description": "Site of the node when the hub took the record"},
                "stream": {"type": "string"},
                "epoch": {"type": "integer", "description": "Life of the node's outbox"},
                "sequence": {"type": "integer", "description": "From 0, without holes but gaps"},
                "time": {"type": "string", "format": "date-time", "description": "When it was taken, by the node's clock"},
                "record": {
                    "type": ["object", "array", "string", "number", "boolean", "null"],
                    "description": "The record: any JSON, or a string of base64 if encoding says so",
                },
                "encoding": {"type": "string", "enum": ["base64"]},
            },
        }),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bytes: &[u8], encoding: Encoding) -> String {
        let name = |text: &str| text.parse().unwrap();
        let row = Row {
            node: name("n1"),
            site: name("hz"),
            stream: name("scans"),
            epoch: Epoch(7),
            sequence: 3,
            time_ms: 1_772_344_800_123,
            bytes: bytes.to_vec().into(),
        };
        let mut lines = vec![];
        push(&mut lines, &row, encoding);
        String::from_utf8(lines).unwrap()
    }

    #[test]
    fn json_stands_as_it_was_written_and_on_one_line() {
        let start =
            r#"{"node":"n1","site":"hz","stream":"scans","epoch":7,"sequence":3,"time":"2026-03-01T06:00:00.123Z","#;
        for (record, written) in [
            (r#"{"z":1.10,"a":"\u00e9é"}"#, r#"{"z":1.10,"a":"\u00e9é"}"#),
            ("{\"a\":\r\n [1,\n2]}\n", r#"{"a":   [1, 2]}"#),
            (" 12345678901234567890123 ", "12345678901234567890123"),
            ("null", "null"),
            ("\"a\\nb\"", "\"a\\nb\""),
        ] {
            let line = line(record.as_bytes(), Encoding::Json);
            assert_eq!(line, format!("{start}\"record\":{written}}}\n"));
        }
    }

    #[test]
    fn everything_else_is_base64() {
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        for record in [
            &b"\xff\x00"[..],
            b"",
            b"plain text",
            b"{\"a\":1}{\"b\":2}",
            b"\"\xff\"",
            b"\"\\ud800\"",
            b"1e999",
            b"NaN",
            deep.as_bytes(),
        ] {
            let value: serde_json::Value = serde_json::from_str(&line(record, Encoding::Json)).unwrap();
            assert_eq!(value["encoding"], "base64");
            assert_eq!(BASE64.decode(value["record"].as_str().unwrap().as_bytes()).unwrap(), record);
        }
        assert!(line(b"{}", Encoding::Base64).contains(r#""record":"e30=","encoding":"base64""#));
    }

    #[test]
    fn a_time_of_no_calendar_is_no_panic() {
        assert!(time(i64::MAX).starts_with("9999-"));
        assert!(time(i64::MIN).starts_with("-009999-"));
        assert_eq!(time(-1), "1969-12-31T23:59:59.999Z");
    }
}
