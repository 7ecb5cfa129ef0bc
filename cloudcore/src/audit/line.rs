//! A line of the audit log, and the end of a log. Pure.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use proto::{digest::Digest, tuf::json::Json};
use serde::{Deserialize, Serialize};

use crate::events::one_line;

/// Longest line, in bytes, its line end included.
pub const MAX_LINE_BYTES: usize = 8 << 10;
/// Longest text of a field, in characters; the detail may be longer.
const MAX_FIELD_CHARS: usize = 200;
const MAX_DETAIL_CHARS: usize = 1_000;

/// What a line says. Control characters are left out, long texts cut.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Who; empty: nobody knows.
    pub user: String,
    /// How it showed who it is: `token`, `oidc`, `hub`, or nothing.
    pub via: String,
    /// What was done: a verb of [`crate::access::Verb`], or `login`, `admit`, `start`, `repair`, `trim`.
    pub verb: String,
    /// To what kind of thing.
    pub kind: String,
    /// Its name, as far as it has one.
    pub name: String,
    /// Where it came from.
    pub from: String,
    /// Id of the request, as its answer carries it.
    pub request: String,
    /// `asked`, or the status of the answer, such as `201`.
    pub outcome: String,
    /// More, for people.
    pub detail: String,
}

impl Entry {
    fn bounded(self) -> Entry {
        let field = |text: String| one_line(&text, MAX_FIELD_CHARS);
        Entry {
            user: field(self.user),
            via: field(self.via),
            verb: field(self.verb),
            kind: field(self.kind),
            name: field(self.name),
            from: field(self.from),
            request: field(self.request),
            outcome: field(self.outcome),
            detail: one_line(&self.detail, MAX_DETAIL_CHARS),
        }
    }
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// From 1, without gaps.
    pub seq: u64,
    /// When, by the hub's clock.
    pub time: Timestamp,
    /// What it says.
    #[serde(flatten)]
    pub entry: Entry,
    /// Hash of the line before.
    pub prev: Digest,
    /// Its own.
    pub hash: Digest,
}

/// Bytes that are no line of an audit log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLine {
    /// Not JSON, or not all fields.
    #[error("it is no line of an audit log ({0})")]
    Form(String),
    /// It was changed.
    #[error("its hash is not that of its content: it was changed")]
    Hash,
    /// Written in another way than the hub writes.
    #[error("it is not in canonical form: somebody else wrote it")]
    Canonical,
}

impl Line {
    /// The line that follows `head`, and its bytes with the line end.
    ///
    /// # Errors
    /// None that is known: its parts always have a JSON form.
    pub fn after(head: &Head, time: Timestamp, entry: Entry) -> Result<(Line, Vec<u8>), String> {
        let hash = head.hash; // of no meaning, and left out before it is computed
        let mut line = Line { seq: head.seq + 1, time, entry: entry.bounded(), prev: head.hash, hash };
        line.hash = line.content_hash()?;
        let mut bytes = Json::of(&line)?.canonical();
        bytes.push(b'\n');
        Ok((line, bytes))
    }

    /// Reads a line without its line end.
    ///
    /// # Errors
    /// When it is no line, or its hash is not its own.
    pub fn parse(bytes: &[u8]) -> Result<Line, BadLine> {
        let line: Line = serde_json::from_slice(bytes).map_err(|e| BadLine::Form(e.to_string()))?;
        if line.content_hash().map_err(BadLine::Form)? != line.hash {
            return Err(BadLine::Hash);
        }
        match Json::of(&line) {
            Ok(json) if json.canonical() == bytes => Ok(line),
            _ => Err(BadLine::Canonical),
        }
    }

    fn content_hash(&self) -> Result<Digest, String> {
        let mut value = serde_json::to_value(self).map_err(|e| e.to_string())?;
        if let Some(map) = value.as_object_mut() {
            map.remove("hash");
        }
        Ok(Digest::of(&Json::of(&value)?.canonical()))
    }

    /// The end of a log that ends with this line.
    #[must_use]
    pub fn head(&self) -> Head {
        Head { seq: self.seq, hash: self.hash }
    }
}

/// The end of a log: how many lines it has, and the hash of the last. Written `HASH@SEQUENCE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Sequence of the last line; 0: there is none.
    pub seq: u64,
    /// Its hash.
    pub hash: Digest,
}

impl Head {
    /// Of a log without lines.
    #[must_use]
    pub fn none() -> Head {
        Head { seq: 0, hash: Digest::of(b"crossdock-audit-1") }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.hash, self.seq)
    }
}

/// A text is no head.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no head of an audit log; write it as `crossdock audit head` shows it, sha256:HASH@SEQUENCE")]
pub struct BadHead(String);

impl FromStr for Head {
    type Err = BadHead;
    fn from_str(text: &str) -> Result<Head, BadHead> {
        let parse = || {
            let (hash, seq) = text.trim().rsplit_once('@')?;
            Some(Head { seq: seq.parse().ok()?, hash: hash.parse().ok()? })
        };
        parse().ok_or_else(|| BadHead(text.chars().take(100).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Entry {
        Entry {
            user: "ci".into(),
            verb: "create".into(),
            kind: "rollouts".into(),
            name: name.into(),
            ..Entry::default()
        }
    }

    #[test]
    fn a_line_is_in_one_form_and_every_change_of_it_is_noticed() {
        let time = "2026-03-01T06:00:00Z".parse().unwrap();
        let odd = "a\"b\\c\n\u{1b}[2J\u{2028}é";
        let (line, bytes) = Line::after(&Head::none(), time, entry(odd)).unwrap();
        assert_eq!(bytes.iter().filter(|b| **b == b'\n').count(), 1);
        let whole = &bytes[..bytes.len() - 1];
        assert_eq!(Line::parse(whole), Ok(line.clone()));
        assert_eq!(line.entry.name, "a\"b\\c [2J\u{2028}é");
        for at in 0..whole.len() {
            let mut changed = whole.to_vec();
            changed[at] ^= 1;
            assert!(Line::parse(&changed).is_err(), "byte {at}");
        }
        let text = std::str::from_utf8(whole).unwrap();
        for other in [text.replace("\"seq\":1", "\"seq\": 1"), text.replace("{\"det", "{\"more\":1,\"det")] {
            assert_eq!(Line::parse(other.as_bytes()), Err(BadLine::Canonical), "{other}");
        }
        let long = Entry { detail: "é".repeat(9_000), user: "\u{10ffff}".repeat(9_000), ..Entry::default() };
        assert!(Line::after(&Head::none(), time, long).unwrap().1.len() < MAX_LINE_BYTES);
    }

    #[test]
    fn the_form_on_disk_stays() {
        let time = "2026-03-01T06:00:00Z".parse().unwrap();
        let (line, bytes) = Line::after(&Head::none(), time, entry("r1")).unwrap();
        let golden = "{\"detail\":\"\",\"from\":\"\",\"hash\":\"HASH\",\"kind\":\"rollouts\",\"name\":\"r1\",\"outcome\":\
                      \"\",\"prev\":\"PREV\",\"request\":\"\",\"seq\":1,\"time\":\"2026-03-01T06:00:00Z\",\"user\":\"ci\",\
                      \"verb\":\"create\",\"via\":\"\"}\n";
        let golden = golden.replace("PREV", &Head::none().hash.to_string());
        let content = golden.trim_end().replace("\"hash\":\"HASH\",", "");
        assert_eq!(line.hash, Digest::of(content.as_bytes()), "whoever verifies needs no more than SHA-256");
        assert_eq!(String::from_utf8(bytes).unwrap(), golden.replace("HASH", &line.hash.to_string()));
        assert_eq!(line.head().to_string().parse(), Ok(line.head()));
        for bad in ["", "x@1", "sha256:00@1", &line.hash.to_string()] {
            assert!(bad.parse::<Head>().is_err(), "{bad}");
        }
    }
}
