//! The hub's streams as the bench reads them: by REST and by `crossdock streams export`.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use cloudcore::stage::{PATIENCE, Stage};
use proto::env::Blocking;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::{super::api::Api, load::number_of};

/// Name of the stream that the bench fills.
pub const STREAM: &str = "scans";
/// Time between two looks at how far it is.
const PERIOD: Duration = Duration::from_millis(50);

/// Records of all nodes together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Durable in the sink.
    pub records: u64,
    /// In gaps.
    pub lost: u64,
    /// Still at the nodes, as they said last.
    pub lag: u64,
}

#[derive(Deserialize)]
struct List {
    items: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    stream: String,
    records: u64,
    #[serde(default)]
    lost_records: u64,
    #[serde(default)]
    lag_records: u64,
}

/// How far the hub is.
///
/// # Errors
/// When it does not answer.
pub async fn arrived(api: &Api) -> anyhow::Result<Arrived> {
    let text = api.get("/streams").await?.bytes().await?;
    let list: List = serde_json::from_slice(&text).context("read the streams")?;
    let rows = list.items.into_iter().filter(|row| row.stream == STREAM);
    Ok(rows.fold(Arrived::default(), |all, row| Arrived {
        records: all.records + row.records,
        lost: all.lost + row.lost_records,
        lag: all.lag + row.lag_records,
    }))
}

/// Waits until so many records are in the sink.
///
/// # Errors
/// When nothing new comes for [`PATIENCE`].
pub async fn reached(api: &Api, records: u64) -> anyhow::Result<Arrived> {
    reached_all(api, || Ok(records)).await
}

/// As [`reached`], of a number that may rise meanwhile.
///
/// # Errors
/// As [`reached`], and that of `records`.
pub async fn reached_all(api: &Api, records: impl Fn() -> anyhow::Result<u64>) -> anyhow::Result<Arrived> {
    let (mut before, mut since) = (Arrived::default(), Instant::now());
    loop {
        // In this order: what rises meanwhile is in the sink before it is known.
        let (records, now) = (records()?, arrived(api).await?);
        if now.records >= records {
            return Ok(now);
        }
        if now.records != before.records {
            (before, since) = (now, Instant::now());
        }
        if since.elapsed() > PATIENCE {
            bail!("of {records} records the hub has {}, and no more came for {PATIENCE:?}: {now:?}", now.records);
        }
        sleep(PERIOD).await;
    }
}

/// The numbers of all records in the sink.
///
/// # Errors
/// When they cannot be exported, or one is not the bench's.
pub async fn numbers(stage: &Stage) -> anyhow::Result<Vec<u64>> {
    let path = stage.path("export.ndjson");
    stage.crossdock(&["streams", "export", STREAM, "--format", "ndjson", "-o", &path.to_string_lossy()]).await?;
    let read = move || {
        let mut numbers = vec![];
        for line in BufReader::new(File::open(&path)?).split(b'\n') {
            let line = line.context("read the export")?;
            let number = number_of(&line);
            ensure!(number.is_some() || line.is_empty(), "not the bench's: {}", String::from_utf8_lossy(&line));
            numbers.extend(number);
        }
        Ok(numbers)
    };
    Blocking::Pool.run(read).await
}
