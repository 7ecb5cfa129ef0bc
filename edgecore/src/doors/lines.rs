//! What of a request's body is a record.
//!
//! | content type | records |
//! |---|---|
//! | `application/x-ndjson` | every line that is not empty; each must be one JSON value |
//! | `application/json` | the body, one JSON value; an array is one record too |
//! | `text/plain` | every line that is not empty, UTF-8 |
//! | `application/octet-stream` | the body, whatever it is |
//!
//! A record is the bytes as they came, without the line end (`\n` or `\r\n`). All or nothing: one bad
//! line refuses the whole request.

use bytes::Bytes;
use proto::stream::MAX_RECORD_BYTES;
use serde::de::IgnoredAny;

/// Records of one request.
pub const MAX_REQUEST_RECORDS: usize = 16_384;

/// How a body is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A JSON value a line.
    Ndjson,
    /// One JSON value.
    Json,
    /// A line is a record.
    Text,
    /// The body is the record.
    Octets,
}

/// What is accepted, for people.
pub const ACCEPTED: &str =
    "application/x-ndjson, application/json, text/plain or application/octet-stream, text as UTF-8";

impl Kind {
    /// Of a `Content-Type`.
    #[must_use]
    pub fn of(content_type: &str) -> Option<Kind> {
        let mut parts = content_type.split(';').map(str::trim);
        let kind = match parts.next()?.to_ascii_lowercase().as_str() {
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Kind::Ndjson,
            "application/json" => Kind::Json,
            "text/plain" => Kind::Text,
            "application/octet-stream" => Kind::Octets,
            _ => return None,
        };
        let utf8 = |charset: &str| ["utf-8", "utf8", "us-ascii"].contains(&charset.trim_matches('"'));
        let charset = parts.find_map(|p| p.to_ascii_lowercase().strip_prefix("charset=").map(str::to_owned));
        charset.is_none_or(|c| utf8(&c)).then_some(kind)
    }
}

/// Why a body is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// It is not what its type says.
    Malformed(String),
    /// It is over a bound.
    TooLarge(String),
}

const NOTHING: &str = "nothing of this request was taken";

/// The records of a body; none of them is copied.
///
/// # Errors
/// When a part of it is malformed or over a bound; names the line.
pub fn split(kind: Kind, body: &Bytes) -> Result<Vec<Bytes>, Unfit> {
    let records = match kind {
        Kind::Octets => vec![body.clone()],
        Kind::Json => {
            let text = utf8(body, 1)?;
            check_json(text).map_err(|e| Unfit::Malformed(format!("the body is no JSON: {e}; {NOTHING}")))?;
            vec![body.clone()]
        }
        Kind::Text | Kind::Ndjson => lines(kind, body)?,
    };
    if records.iter().all(Bytes::is_empty) {
        return Err(Unfit::Malformed("the body holds no record".into()));
    }
    match records.iter().map(Bytes::len).max() {
        Some(bytes) if bytes > MAX_RECORD_BYTES => Err(Unfit::TooLarge(format!(
            "a record of {bytes} bytes is over the bound of {MAX_RECORD_BYTES}: make records smaller; {NOTHING}"
        ))),
        _ => Ok(records),
    }
}

fn lines(kind: Kind, body: &Bytes) -> Result<Vec<Bytes>, Unfit> {
    let mut records = vec![];
    let mut start = 0;
    for (number, end) in (1..).zip(memchr::memchr_iter(b'\n', body).chain([body.len()])) {
        let line = body.get(start..end).unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let range = start..start + line.len();
        start = end + 1;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let text = utf8(line, number)?;
        if kind == Kind::Ndjson {
            check_json(text).map_err(|e| Unfit::Malformed(format!("line {number} is no JSON: {e}; {NOTHING}")))?;
        }
        if records.len() == MAX_REQUEST_RECORDS {
            return Err(Unfit::TooLarge(format!(
                "more than {MAX_REQUEST_RECORDS} records in one request: send fewer at once; {NOTHING}"
            )));
        }
        records.push(body.slice(range));
    }
    Ok(records)
}

fn utf8(bytes: &[u8], line: usize) -> Result<&str, Unfit> {
    let wrong = |e: std::str::Utf8Error| {
        let hint = "send it as application/octet-stream, or encode it";
        Unfit::Malformed(format!("line {line} is no UTF-8 after {} bytes: {hint}; {NOTHING}", e.valid_up_to()))
    };
    std::str::from_utf8(bytes).map_err(wrong)
}

/// One JSON value and nothing after it. The message leaves out where in the line, which would count from 1 again.
fn check_json(text: &str) -> Result<(), String> {
    serde_json::from_str::<IgnoredAny>(text).map(drop).map_err(|e| format!("{e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(kind: Kind, body: &str) -> Vec<String> {
        let records = split(kind, &Bytes::copy_from_slice(body.as_bytes())).expect(body);
        records.into_iter().map(|r| String::from_utf8(r.to_vec()).unwrap()).collect()
    }

    fn refused(kind: Kind, body: &[u8]) -> String {
        match split(kind, &Bytes::copy_from_slice(body)).unwrap_err() {
            Unfit::Malformed(message) | Unfit::TooLarge(message) => message,
        }
    }

    #[test]
    fn a_body_is_split_by_its_type() {
        assert_eq!(taken(Kind::Ndjson, "{\"a\":1}\r\n\n  \n[2]\n\"x\"\n3"), ["{\"a\":1}", "[2]", "\"x\"", "3"]);
        assert_eq!(taken(Kind::Json, "[\n1,\n2]\n"), ["[\n1,\n2]\n"], "an array is one record");
        assert_eq!(taken(Kind::Text, "a b\r\n\n c\nd"), ["a b", " c", "d"]);
        assert_eq!(taken(Kind::Octets, "a\nb"), ["a\nb"]);
    }

    #[test]
    fn a_bad_line_is_named() {
        for bad in ["{\"a\":}", "nul", "{} {}", "{\"a\":1,}", "\u{FEFF}{}", "'a'", "{\"a\":\"\t\"}", "[1"] {
            let message = refused(Kind::Ndjson, format!("{{}}\n\n{bad}\n{{}}\n").as_bytes());
            assert!(message.starts_with("line 3 is no JSON") && message.contains(NOTHING), "{bad}: {message}");
        }
        assert!(refused(Kind::Ndjson, b"{}\n\"\xFF\"\n").contains("line 2 is no UTF-8"));
        assert!(refused(Kind::Text, b"a\nb\xC3").contains("line 2 is no UTF-8 after 1 bytes"));
        assert!(refused(Kind::Json, b"{}{}").contains("no JSON"));
        for kind in [Kind::Ndjson, Kind::Text, Kind::Octets] {
            assert!(refused(kind, b"").contains("no record"), "{kind:?}");
        }
        assert!(refused(Kind::Text, b"\n \r\n").contains("no record"));
    }

    #[test]
    fn bounds_hold_at_the_bound_and_over_it() {
        let line = |bytes: usize| Bytes::from(vec![b'1'; bytes]);
        assert_eq!(split(Kind::Octets, &line(MAX_RECORD_BYTES)).unwrap().len(), 1);
        for kind in [Kind::Octets, Kind::Text, Kind::Ndjson] {
            assert!(matches!(split(kind, &line(MAX_RECORD_BYTES + 1)), Err(Unfit::TooLarge(_))), "{kind:?}");
        }
        let many = |count| Bytes::from("1\n".repeat(count));
        assert_eq!(split(Kind::Ndjson, &many(MAX_REQUEST_RECORDS)).unwrap().len(), MAX_REQUEST_RECORDS);
        assert!(matches!(split(Kind::Ndjson, &many(MAX_REQUEST_RECORDS + 1)), Err(Unfit::TooLarge(_))));
        // Depth costs no stack.
        assert_eq!(split(Kind::Ndjson, &Bytes::from("[".repeat(100_000) + &"]".repeat(100_000))).unwrap().len(), 1);
    }

    #[test]
    fn content_types_are_read_with_their_parameters() {
        assert_eq!(Kind::of("application/x-ndjson"), Some(Kind::Ndjson));
        assert_eq!(Kind::of("Application/JSON; charset=UTF-8"), Some(Kind::Json));
        assert_eq!(Kind::of("text/plain;charset=\"utf-8\""), Some(Kind::Text));
        assert_eq!(Kind::of("text/plain; charset=latin1"), None);
        assert_eq!(Kind::of("application/x-www-form-urlencoded"), None);
        assert_eq!(Kind::of(""), None);
    }
}
