//! A file of records, replayed with its own timing.
//!
//! NDJSON is sent line by line as it is. Of a CSV file with a header each row becomes an object with the
//! header's names. Both carry their time in one field: RFC 3339, or seconds or milliseconds since 1970.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use jiff::Timestamp;
use proto::stream::MAX_RECORD_BYTES;
use serde_json::{Map, Value};

/// A number from here on is in milliseconds: in seconds it would be the year 5138.
const MILLISECONDS_FROM: i64 = 100_000_000_000;

/// One record and when it is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// After the file's first record; zero for one that is older than the first.
    pub after: Duration,
    /// The record.
    pub record: Bytes,
}

/// A file that is read record by record.
#[derive(Debug)]
pub struct Replay {
    path: PathBuf,
    time_field: String,
    rows: Rows,
    first: Option<Timestamp>,
}

#[derive(Debug)]
enum Rows {
    Csv(Box<csv::Reader<File>>, csv::StringRecord),
    NdJson(BufReader<File>, u64),
}

impl Replay {
    /// Opens a file; its name ends in `.csv`, `.ndjson` or `.jsonl`.
    ///
    /// # Errors
    /// When it cannot be read, or is a CSV file without the column of the time.
    pub fn open(path: &Path, time_field: &str) -> anyhow::Result<Replay> {
        let open = || File::open(path).with_context(|| format!("open {} to replay it", path.display()));
        let rows = match path.extension().and_then(|e| e.to_str()) {
            Some("csv") => {
                let mut reader = csv::Reader::from_reader(open()?);
                let header =
                    reader.headers().with_context(|| format!("read the header of {}", path.display()))?.clone();
                if !header.iter().any(|name| name == time_field) {
                    bail!(
                        "{} has no column {time_field:?}; it has {}. Name the column of the time with --time-field",
                        path.display(),
                        header.iter().collect::<Vec<_>>().join(", ")
                    );
                }
                Rows::Csv(Box::new(reader), header)
            }
            Some("ndjson" | "jsonl") => Rows::NdJson(BufReader::new(open()?), 0),
            _ => {
                bail!("{} is neither .csv nor .ndjson nor .jsonl: rename it so that it says what it is", path.display())
            }
        };
        Ok(Replay { path: path.to_owned(), time_field: time_field.to_owned(), rows, first: None })
    }

    /// The next records, at most `limit`; empty at the end of the file.
    ///
    /// # Errors
    /// Names the line that is wrong.
    pub fn next(&mut self, limit: usize) -> anyhow::Result<Vec<Due>> {
        let mut due = vec![];
        while due.len() < limit {
            let Some((line, time, record)) = self.row()? else { break };
            let time = time.as_ref().and_then(parse_time).with_context(|| {
                format!(
                    "{} line {line}: field {:?} holds no time; write RFC 3339 or seconds or milliseconds since 1970, \
                     or name another field with --time-field",
                    self.path.display(),
                    self.time_field
                )
            })?;
            if record.len() > MAX_RECORD_BYTES {
                bail!(
                    "{} line {line}: larger than {MAX_RECORD_BYTES} bytes, the most a record can be",
                    self.path.display()
                );
            }
            let after = time.duration_since(*self.first.get_or_insert(time));
            due.push(Due { after: Duration::try_from(after).unwrap_or_default(), record });
        }
        Ok(due)
    }

    fn row(&mut self) -> anyhow::Result<Option<(u64, Option<Value>, Bytes)>> {
        match &mut self.rows {
            Rows::Csv(reader, header) => {
                let mut row = csv::StringRecord::new();
                if !reader.read_record(&mut row).with_context(|| format!("read {}", self.path.display()))? {
                    return Ok(None);
                }
                let line = row.position().map_or(0, csv::Position::line);
                let object: Map<String, Value> =
                    header.iter().zip(&row).map(|(name, value)| (name.to_owned(), value.into())).collect();
                let time = object.get(&self.time_field).cloned();
                Ok(Some((line, time, serde_json::to_vec(&object)?.into())))
            }
            Rows::NdJson(reader, line) => loop {
                let mut text = vec![];
                let most = MAX_RECORD_BYTES as u64 + 2;
                let read = reader.take(most).read_until(b'\n', &mut text);
                if read.with_context(|| format!("read {}", self.path.display()))? == 0 {
                    return Ok(None);
                }
                *line += 1;
                if text.trim_ascii().is_empty() {
                    continue;
                }
                if text.len() as u64 >= most && text.last() != Some(&b'\n') {
                    bail!("{} line {line}: longer than {MAX_RECORD_BYTES} bytes", self.path.display());
                }
                let value: Value = serde_json::from_slice(&text)
                    .with_context(|| format!("{} line {line} is not JSON", self.path.display()))?;
                return Ok(Some((*line, value.get(&self.time_field).cloned(), text.trim_ascii().to_vec().into())));
            },
        }
    }
}

fn parse_time(value: &Value) -> Option<Timestamp> {
    let number = |n: i64| {
        if n.abs() < MILLISECONDS_FROM { Timestamp::from_second(n).ok() } else { Timestamp::from_millisecond(n).ok() }
    };
    match value {
        Value::Number(n) => {
            n.as_i64().map_or_else(|| Timestamp::from_millisecond((n.as_f64()? * 1e3) as i64).ok(), number)
        }
        Value::String(text) => text.parse().ok().or_else(|| number(text.parse().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        (folder, path)
    }

    fn all(replay: &mut Replay) -> anyhow::Result<Vec<(u64, String)>> {
        let due = replay.next(100)?;
        Ok(due
            .into_iter()
            .map(|d| (d.after.as_millis() as u64, String::from_utf8(d.record.to_vec()).unwrap()))
            .collect())
    }

    #[test]
    fn csv_rows_become_objects_with_their_time() {
        let text = "barcode,time\na1,2026-03-01T05:00:00Z\n\"b,2\",2026-03-01T05:00:01.5Z\nc3,2026-03-01T04:59:00Z\n";
        let (_folder, path) = file("scans.csv", text);
        let got = all(&mut Replay::open(&path, "time").unwrap()).unwrap();
        assert_eq!(got.iter().map(|(after, _)| *after).collect::<Vec<_>>(), [0, 1500, 0]);
        assert_eq!(got[1].1, r#"{"barcode":"b,2","time":"2026-03-01T05:00:01.5Z"}"#);
        let wrong = Replay::open(&path, "at").unwrap_err().to_string();
        assert!(wrong.contains("barcode, time") && wrong.contains("--time-field"), "{wrong}");
    }

    #[test]
    fn lines_of_ndjson_stay_as_they_are() {
        let text = "{\"at\": 1772341200, \"x\":1}\n\n{\"at\":1772341203000}\r\n{\"at\":\"2026-03-01T05:00:07Z\"}";
        let (_folder, path) = file("scans.ndjson", text);
        let mut replay = Replay::open(&path, "at").unwrap();
        assert_eq!(replay.next(1).unwrap()[0].record, "{\"at\": 1772341200, \"x\":1}");
        assert_eq!(
            all(&mut replay).unwrap(),
            [(3000, "{\"at\":1772341203000}".to_owned()), (7000, "{\"at\":\"2026-03-01T05:00:07Z\"}".to_owned())]
        );
        assert!(replay.next(1).unwrap().is_empty());
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, expected) in [
            ("{\"time\":1}\nnonsense\n", "line 2 is not JSON"),
            ("{\"time\":1}\n\n{\"x\":1}\n", "line 3: field \"time\" holds no time"),
            (&format!("\"{}\"\n", "x".repeat(MAX_RECORD_BYTES)), "line 1: longer than"),
        ] {
            let (_folder, path) = file("scans.jsonl", text);
            let error = format!("{:#}", all(&mut Replay::open(&path, "time").unwrap()).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
        let (_folder, path) = file("scans.xlsx", "");
        assert!(Replay::open(&path, "time").unwrap_err().to_string().contains(".csv"));
    }
}
