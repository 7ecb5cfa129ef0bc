//! An outbox as this version left it on a disk, opened again: whatever is changed later must read it.
//!
//! `golden/outbox/` holds its database as SQL, and the file `epoch` beside it. `CROSSDOCK_WRITE_GOLDEN=1 cargo
//! test --workspace --test outbox_golden` writes both anew: do that only along with a migration that brings an
//! older one to the new form, and keep the older one under another name.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // all of it is a test
#![allow(clippy::single_range_in_vec_init)] // one range to delete is meant

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use edgecore::outbox::{Item, Outbox, OutboxConfig};
use jiff::Timestamp;
use proto::{
    env::{Blocking, Env, Seed, WallClock},
    name::Name,
    stream::{Class, Gap, GapReason, StreamKey, batch::Batch},
};
use rusqlite::Connection;

#[derive(Debug)]
struct Stopped;

impl WallClock for Stopped {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_900_000_000).unwrap()
    }
}

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/outbox")
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn records(texts: &[&'static str]) -> Vec<Bytes> {
    texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect()
}

async fn open(folder: &Path) -> Outbox {
    let env =
        Env { wall: Arc::new(Stopped), seed: Seed::from_u64(7), blocking: Blocking::Inline, ..Env::real().unwrap() };
    let streams =
        [("scans", Class::Scans), ("events", Class::Events), ("metrics", Class::Metrics), ("logs", Class::Logs)];
    let streams = streams.into_iter().map(|(text, class)| (name(text), class)).collect();
    Outbox::open(folder, OutboxConfig { quota_bytes: 4 << 20, disk_share_percent: 100, streams }, env).await.unwrap()
}

/// Waits until the task that writes has let go of the file.
async fn close(outbox: Outbox) {
    let mut state = outbox.state();
    drop(outbox);
    let gone = async { while state.changed().await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
}

/// The database as SQL, one statement a line.
fn dump(database: &Path) -> String {
    let connection = Connection::open(database).unwrap();
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    let mut text = format!("PRAGMA auto_vacuum = INCREMENTAL;\nPRAGMA user_version = {version};\n");
    let tables = "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name";
    let mut statement = connection.prepare(tables).unwrap();
    let tables = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))).unwrap();
    for (table, sql) in tables.map(Result::unwrap) {
        let sql: Vec<&str> = sql.split_whitespace().collect();
        text += &format!("{};\n", sql.join(" "));
        let columns: Vec<String> = connection
            .prepare(&format!("SELECT 'quote(' || name || ')' FROM pragma_table_info('{table}')"))
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let mut rows =
            connection.prepare(&format!("SELECT {} FROM {table} ORDER BY 1", columns.join(" || ', ' || "))).unwrap();
        for row in rows.query_map([], |row| row.get::<_, String>(0)).unwrap() {
            text += &format!("INSERT INTO {table} VALUES ({});\n", row.unwrap());
        }
    }
    text
}

/// Makes what is kept in `golden/outbox`.
async fn write(folder: &Path) {
    let outbox = open(folder).await;
    let scans = outbox.append(&name("scans"), records(&["scan 0", "scan 1"])).await.unwrap().key;
    outbox.append(&name("scans"), records(&["scan 2", "scan 3", "scan 4"])).await.unwrap();
    outbox.append(&name("events"), records(&["{\"reason\":\"Trial\"}"])).await.unwrap();
    outbox.append(&name("scans"), records(&["scan 5"])).await.unwrap();
    outbox.delete(&scans, vec![0..2, 3..4]).await.unwrap();
    close(outbox).await;
    fs::create_dir_all(golden()).unwrap();
    fs::write(golden().join("outbox.sql"), dump(&folder.join("outbox.db"))).unwrap();
    fs::copy(folder.join("epoch"), golden().join("epoch")).unwrap();
}

async fn texts(outbox: &Outbox, key: &StreamKey, from: u64, to: u64) -> Vec<String> {
    let Some(Item::Batch { first, sealed, .. }) = outbox.read(key, from..to).await.unwrap() else { panic!("no batch") };
    assert_eq!(first, from);
    let records = Batch::open(&sealed).unwrap().records;
    records.iter().map(|r| String::from_utf8(r.bytes.to_vec()).unwrap()).collect()
}

#[tokio::test]
async fn an_outbox_of_the_first_version_is_read_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    if std::env::var_os("CROSSDOCK_WRITE_GOLDEN").is_some() {
        write(&folder.path().join("made")).await;
    }
    let place = folder.path().join("outbox");
    fs::create_dir_all(&place).unwrap();
    fs::copy(golden().join("epoch"), place.join("epoch")).unwrap();
    let sql = fs::read_to_string(golden().join("outbox.sql")).unwrap();
    Connection::open(place.join("outbox.db")).unwrap().execute_batch(&sql).unwrap();

    let outbox = open(&place).await;
    assert_eq!(outbox.state().borrow().problem, None, "it is the one of this folder, and goes on");
    let held = outbox.held();
    let shown: Vec<_> = held.iter().map(|h| (h.key.stream.as_str(), h.class, h.first, h.next)).collect();
    assert!(
        shown.contains(&("scans", Class::Scans, 2, 6)) && shown.contains(&("events", Class::Events, 0, 1)),
        "{shown:?}"
    );
    assert_eq!(shown.len(), 4);
    let key = |stream: &str| held.iter().find(|h| h.key.stream.as_str() == stream).unwrap().key.clone();
    let scans = key("scans");
    assert_eq!(texts(&outbox, &scans, 2, 3).await, ["scan 2"]);
    let lost = Item::Gap(Gap { key: scans.clone(), first: 3, count: 1, reason: GapReason::HubLost });
    assert_eq!(outbox.read(&scans, 3..6).await.unwrap(), Some(lost));
    assert_eq!(texts(&outbox, &scans, 4, 6).await, ["scan 4", "scan 5"]);
    assert_eq!(texts(&outbox, &key("events"), 0, 1).await, ["{\"reason\":\"Trial\"}"]);
    let appended = outbox.append(&name("scans"), records(&["scan 6"])).await.unwrap();
    assert_eq!((appended.key, appended.range), (scans, 6..7));
}

#[tokio::test]
async fn an_outbox_of_a_newer_version_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden().join("epoch"), folder.path().join("epoch")).unwrap();
    let database = folder.path().join("outbox.db");
    let sql = fs::read_to_string(golden().join("outbox.sql")).unwrap();
    let connection = Connection::open(&database).unwrap();
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).unwrap();
    connection.execute_batch(&sql).unwrap();
    connection.execute_batch("PRAGMA user_version = 99; ALTER TABLE streams ADD COLUMN newer TEXT").unwrap();
    drop(connection);
    let before = fs::read(&database).unwrap();
    let config = OutboxConfig { quota_bytes: 4 << 20, disk_share_percent: 100, streams: vec![] };
    let error = Outbox::open(folder.path(), config, Env::real().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("schema version 99") && error.contains("start the version that wrote it"), "{error}");
    assert!(fs::read(&database).unwrap() == before, "it is left as it is");
    assert_eq!(fs::read(folder.path().join("epoch")).unwrap(), fs::read(golden().join("epoch")).unwrap());
    assert!(!folder.path().join("outbox.damaged.db").exists());
}
