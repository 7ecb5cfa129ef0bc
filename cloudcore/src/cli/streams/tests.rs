//! The commands against the real API: what they print and what the files hold.

use std::{
    fs,
    io::{self, Write},
    net::TcpListener,
    path::Path,
    sync::{Arc, Mutex},
};

use ::parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::RowAccessor as _,
};
use clap::Parser as _;
use data_encoding::BASE64;
use proto::watch;

use super::*;
use crate::{
    api::{
        self,
        streams::tests::{Feed, SIX},
        tests::Served,
    },
    cli::{Cli, Command},
};

/// What was written, for the test to read.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Screen {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

fn command(words: &[&str]) -> StreamsCommand {
    match Cli::try_parse_from(["crossdock", "streams"].iter().chain(words)).unwrap().command {
        Command::Streams(command) => command,
        other => panic!("{other:?}"),
    }
}

/// Runs a command as [`run`] does, and returns what it printed.
async fn print(served: &Served, words: &[&str]) -> anyhow::Result<String> {
    let screen = Screen::default();
    let mut out = Pipe::new(screen.clone());
    let outcome = run_on(command(words), &served.client, &mut out).await;
    out.settle(outcome)?;
    Ok(screen.text())
}

/// The records of the tests: JSON, text, bytes, nothing.
fn record(i: usize) -> Vec<u8> {
    match i % 4 {
        0 => format!("{{\"barcode\":\"{i:08}\",\n\"weight\":1.{i}0}}").into_bytes(),
        1 => format!("line {i}, with \"quotes\"\r\nand = signs").into_bytes(),
        2 => vec![0xff, 0, i as u8],
        _ => vec![],
    }
}

async fn served_with(count: usize) -> Served {
    let served = Served::start().await;
    let mut feed = Feed::new(&served);
    let records: Vec<_> = (0..count).map(|i| (SIX + i as i64 * 250, record(i))).collect();
    for (i, records) in records.chunks(4000).enumerate() {
        feed.put(["a1", "b1"][i % 2], "scans", records.to_vec()).await;
    }
    served
}

/// What a file holds: node, sequence, time in milliseconds, record.
type Rows = Vec<(String, u64, i64, Vec<u8>)>;

/// What it should hold.
fn expected(count: usize) -> Rows {
    let row = |i: usize| {
        let (chunk, within) = (i / 4000, i % 4000);
        let sequence = (chunk / 2 * 4000 + within) as u64;
        (["a1", "b1"][chunk % 2].to_owned(), sequence, SIX + i as i64 * 250, record(i))
    };
    (0..count).map(row).collect()
}

fn ms(time: &str) -> i64 {
    time.parse::<Timestamp>().unwrap().as_millisecond()
}

fn read_parquet(file: &Path) -> Rows {
    let reader = SerializedFileReader::new(fs::File::open(file).unwrap()).unwrap();
    let metadata = reader.metadata().clone();
    assert!(metadata.file_metadata().created_by().unwrap().starts_with("crossdock"));
    let row = |row: ::parquet::record::Row| {
        assert_eq!(row.get_string(1).unwrap()[..1], row.get_string(0).unwrap()[..1]);
        assert_eq!((row.get_string(2).unwrap().as_str(), row.get_ulong(3).unwrap()), ("scans", 7));
        let record = row.get_bytes(6).unwrap().data().to_vec();
        (row.get_string(0).unwrap().clone(), row.get_ulong(4).unwrap(), row.get_timestamp_millis(5).unwrap(), record)
    };
    reader.get_row_iter(None).unwrap().map(|r| row(r.unwrap())).collect()
}

fn read_csv(file: &Path) -> Rows {
    let mut reader = csv::Reader::from_path(file).unwrap();
    let heads = reader.headers().unwrap().iter().collect::<Vec<_>>().join(",");
    assert_eq!(heads, "node,site,stream,epoch,sequence,time,encoding,record");
    let row = |row: csv::StringRecord| {
        let record = match &row[6] {
            "utf-8" => row[7].as_bytes().to_vec(),
            _ => BASE64.decode(row[7].as_bytes()).unwrap(),
        };
        (row[0].to_owned(), row[4].parse().unwrap(), ms(&row[5]), record)
    };
    reader.into_records().map(|r| row(r.unwrap())).collect()
}

fn read_ndjson(text: &str) -> Rows {
    let row = |line: &str| {
        let line = Line::read(line.as_bytes()).unwrap();
        (line.node.to_string(), line.sequence, ms(&line.time), line.bytes().unwrap())
    };
    text.lines().map(row).collect()
}

/// Line ends between values of JSON become blanks, where JSON is shown as such.
fn on_one_line(rows: Rows) -> Rows {
    let flat = |record: Vec<u8>| match record.first() {
        Some(b'{') => record.iter().map(|b| if *b == b'\n' { b' ' } else { *b }).collect(),
        _ => record,
    };
    rows.into_iter().map(|(node, sequence, time, record)| (node, sequence, time, flat(record))).collect()
}

#[tokio::test]
async fn exports_hold_every_record_to_the_byte() {
    let count = 25_000; // several pages
    let served = served_with(count).await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let export = async |format: &str, words: &[&str]| {
        let path = file(format);
        let all = [&["export", "scans", "--format", format, "-o", path.to_str().unwrap()], words].concat();
        assert_eq!(print(&served, &all).await.unwrap(), "");
        path
    };
    fs::write(file("csv"), "the export of yesterday").unwrap();
    std::os::unix::fs::symlink(file("real"), file("parquet")).unwrap();
    fs::write(file("real"), "").unwrap();
    assert!(read_csv(&export("csv", &[]).await) == expected(count));
    assert!(read_parquet(&export("parquet", &[]).await) == expected(count));
    assert!(fs::symlink_metadata(file("parquet")).unwrap().is_symlink(), "its file was replaced, not the link");
    let ndjson = fs::read_to_string(export("ndjson", &[]).await).unwrap();
    assert!(read_ndjson(&ndjson) == on_one_line(expected(count)));
    let printed = print(&served, &["export", "scans", "--format", "ndjson", "-o", "-"]).await.unwrap();
    assert!(printed == ndjson);

    let to = "2026-03-01T06:00:10Z";
    let few = read_parquet(&export("parquet", &["--node", "a1", "--to", to]).await);
    assert_eq!(few, expected(40));
    assert!(read_csv(&export("csv", &["--site", "z"]).await).is_empty(), "a head alone");
    assert!(read_parquet(&export("parquet", &["--from", "-1s"]).await).is_empty());
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "{left:?}");
}

#[tokio::test]
async fn an_export_that_fails_leaves_what_was_there() {
    let served = served_with(10).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.csv");
    fs::write(&file, "the export of yesterday").unwrap();
    let export = |stream: &str, to: &Path| {
        let to = to.to_str().unwrap().to_owned();
        ["export", stream, "--format", "csv", "-o"].map(str::to_owned).into_iter().chain([to]).collect::<Vec<_>>()
    };
    for (stream, to, word) in [
        ("parcels", file.as_path(), "the hub knows scans"),
        ("scans", folder.path(), "name a file in it"),
        ("scans", Path::new("/no/such/folder/x"), "make /no/such/folder/x"),
    ] {
        let words = export(stream, to);
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let error = print(&served, &words).await.unwrap_err();
        assert!(format!("{error:#}").contains(word), "{error:#}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "the export of yesterday");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing half-made is left");
}

#[tokio::test]
async fn a_closed_pipe_ends_quietly() {
    let served = served_with(9_000).await;
    for words in [
        &["query", "scans", "--limit", "0"][..],
        &["tail", "scans", "-n", "1000"],
        &["tail", "scans", "-f", "-n", "1000"],
        &["export", "scans", "--format", "csv", "-o", "-"],
        &["export", "scans", "--format", "parquet", "-o", "-"],
        &["export", "scans", "--format", "ndjson", "-o", "-"],
        &["list"],
        &["counts", "scans"],
    ] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut out = Pipe::new(writer);
        let outcome = run_on(command(words), &served.client, &mut out).await;
        assert!(outcome.is_err(), "{words:?}: it must have met the closed pipe");
        out.settle(outcome).unwrap();
    }
}

#[tokio::test]
async fn records_are_printed_for_people_and_for_programs() {
    let served = served_with(12).await;
    let text = print(&served, &["query", "scans", "--limit", "3", "--node", "a1", "--site", "a"]).await.unwrap();
    assert_eq!(
        text,
        "2026-03-01T06:00:00.000Z a1 0 {\"barcode\":\"00000000\", \"weight\":1.00}\n\
         2026-03-01T06:00:00.250Z a1 1 line 1, with \"quotes\"\\r\\nand = signs\n\
         2026-03-01T06:00:00.500Z a1 2 base64:/wAC\n"
    );
    let query = ["query", "scans", "--from", "2026-03-01T06:00:01Z", "--to", "2026-03-01T06:00:02Z", "-o", "ndjson"];
    let rows = read_ndjson(&print(&served, &query).await.unwrap());
    assert_eq!(rows, on_one_line(expected(12)[4..8].to_vec()));
    assert_eq!(print(&served, &["query", "scans", "--from", "-5m"]).await.unwrap(), "");
    let rows = read_ndjson(&print(&served, &["tail", "scans", "-n", "2", "-o", "ndjson"]).await.unwrap());
    assert_eq!(rows, on_one_line(expected(12)[10..].to_vec()));

    let error = print(&served, &["tail", "parcels"]).await.unwrap_err();
    assert_eq!(error.downcast_ref::<CliError>().unwrap().exit, Exit::NotFound);
    assert!(Cli::try_parse_from(["crossdock", "streams", "query", "scans", "--from", "noon"]).is_err());
}

#[tokio::test]
async fn tables_have_a_row_a_stream_and_a_minute() {
    let served = served_with(500).await;
    let list = print(&served, &["list"]).await.unwrap();
    let words: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["NODE", "STREAM", "SITE", "RECORDS", "LAG", "OLDEST", "LOST", "HEARD"]);
    assert_eq!((&words[1][..5], words[1][6], words.len()), (&["a1", "scans", "a", "500", "3"][..], "0", 2));
    assert!(print(&served, &["list", "-o", "wide"]).await.unwrap().contains("EPOCH"));
    assert_eq!(print(&served, &["list", "-o", "name"]).await.unwrap(), "a1/scans\n");
    let json: Value = serde_json::from_str(&print(&served, &["list", "scans", "-o", "json"]).await.unwrap()).unwrap();
    assert_eq!((&json["kind"], &json["items"][0]["records"]), (&json!("StreamList"), &json!(500)));
    assert!(print(&served, &["list", "-o", "yaml"]).await.unwrap().contains("kind: StreamList"));
    assert_eq!(print(&served, &["list", "other"]).await.unwrap(), "");

    let counts = print(&served, &["counts", "scans", "--site", "a", "--from", "2026-03-01T06:01:10Z"]).await.unwrap();
    let words: Vec<Vec<&str>> = counts.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["MINUTE", "SITE", "RECORDS", "BYTES"]);
    assert_eq!(words[1][..3], ["2026-03-01T06:01:00Z", "a", "240"]);
    assert_eq!(words.len(), 3);
    assert_eq!(print(&served, &["gaps"]).await.unwrap(), "");
}

#[tokio::test]
async fn a_follower_outlives_the_hub() {
    let served = served_with(3).await;
    let screen = Screen::default();
    let mut out = Pipe::new(screen.clone());
    let client = served.client.clone();
    let following = tokio::spawn(async move {
        run_on(command(&["tail", "scans", "-f", "-n", "2", "-o", "ndjson"]), &client, &mut out).await
    });
    let until = async |count: usize| {
        let wait = async {
            while screen.text().lines().count() < count {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap();
    };
    until(2).await;
    let Served { fixture, stop, serving, url, token, .. } = served;
    stop.send_replace(true);
    serving.await.unwrap().unwrap();
    let sink = Arc::clone(fixture.hub.streams().sink());
    let mut feed = Feed::over(sink, &[("a1", "scans", 3)]);
    feed.count_up("a1", "scans", SIX, 2).await;

    let listener = TcpListener::bind(url.trim_start_matches("https://")).unwrap();
    let (_stop, stopped) = watch::channel(false);
    let tokens = api::tests::tokens_of(&fixture.hub);
    assert!(tokens.1 == token);
    let router = api::router(fixture.hub.clone(), tokens.0, stopped.clone());
    let hub = fixture.hub.clone();
    let serving = tokio::spawn(async move { api::serve(&hub, router, listener, stopped).await });
    until(4).await;
    let sequences: Vec<u64> = read_ndjson(&screen.text()).into_iter().map(|row| row.1).collect();
    assert_eq!(sequences, [1, 2, 3, 4]);
    following.abort();
    serving.abort();
}
