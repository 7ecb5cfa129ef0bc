//! `crossdock streams`: which streams the nodes have, their records, counts and gaps, and exports.
//!
//! Everything is written to a [`pipe::Pipe`], which knows when its reader has seen enough: then the
//! program ends quietly. Pages come from [`fetch`]; files are made in [`export`].

pub mod export;
pub mod fetch;
mod parquet;
pub mod pipe;
#[cfg(test)]
mod tests;
pub mod text;

use std::{io::Write as _, time::Duration};

use clap::{Subcommand, ValueEnum};
use futures_util::{StreamExt as _, pin_mut};
use jiff::Timestamp;
use proto::name::Name;
use serde_json::{Value, json};

use self::{
    fetch::{Filter, Line, Place},
    pipe::Pipe,
    text::When,
};
use super::{
    Context,
    client::Client,
    exit::{CliError, Exit},
    get::now,
    kinds::{ago, text as cell},
    output::{self, Format},
};

/// How long a follower waits before it calls the hub again: from, to.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Most records of one request.
const PAGE_RECORDS: u64 = 10_000;

/// `crossdock streams`.
#[derive(Debug, Subcommand)]
pub enum StreamsCommand {
    /// Show the streams of the nodes: what arrived, what is still to come, what is lost
    List(ListArgs),
    /// Print the last records of a stream
    Tail(TailArgs),
    /// Print records of a stream by time, node and site
    Query(QueryArgs),
    /// Count records by site and minute
    Counts(CountsArgs),
    /// Write records to a file for other programs
    Export(export::ExportArgs),
    /// Show records that will never come, and why
    Gaps(GapsArgs),
}

/// `crossdock streams list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Only with this name.
    stream: Option<Name>,
    #[command(flatten)]
    place: Place,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// How records are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RecordFormat {
    /// Time, node, sequence, record.
    Text,
    /// As the API has them, a JSON document a line.
    Ndjson,
}

/// `crossdock streams tail`.
#[derive(Debug, clap::Args)]
pub struct TailArgs {
    /// Name of the stream.
    stream: Name,
    /// Go on with new records; through restarts of the hub too.
    #[arg(short, long)]
    follow: bool,
    /// Records from the end.
    #[arg(short = 'n', long = "lines", default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=1000))]
    count: u16,
    #[command(flatten)]
    place: Place,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = RecordFormat::Text)]
    output: RecordFormat,
}

/// `crossdock streams query`.
#[derive(Debug, clap::Args)]
pub struct QueryArgs {
    /// Name of the stream.
    stream: Name,
    #[command(flatten)]
    filter: Filter,
    /// At most so many records; 0 for all.
    #[arg(long, default_value_t = 1000)]
    limit: u64,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = RecordFormat::Text)]
    output: RecordFormat,
}

/// `crossdock streams counts`.
#[derive(Debug, clap::Args)]
pub struct CountsArgs {
    /// Name of the stream.
    stream: Name,
    /// Of this site only.
    #[arg(long)]
    site: Option<Name>,
    #[command(flatten)]
    times: fetch::Times,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// `crossdock streams gaps`.
#[derive(Debug, clap::Args)]
pub struct GapsArgs {
    /// Of this stream only.
    stream: Option<Name>,
    /// Of this node only.
    #[arg(long)]
    node: Option<Name>,
    /// At most so many, the newest.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// Runs the command.
///
/// # Errors
/// When the hub cannot be asked or refuses, or the output cannot be written.
pub async fn run(command: StreamsCommand, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    let mut out = Pipe::new(std::io::stdout());
    let outcome = run_on(command, &client, &mut out).await;
    out.settle(outcome)
}

async fn run_on(command: StreamsCommand, client: &Client, out: &mut Pipe) -> anyhow::Result<()> {
    match command {
        StreamsCommand::List(args) => list(args, client, out).await,
        StreamsCommand::Tail(args) => tail(args, client, out).await,
        StreamsCommand::Query(args) => query(args, client, out).await,
        StreamsCommand::Counts(args) => counts(args, client, out).await,
        StreamsCommand::Export(args) => export::run(args, client, out).await,
        StreamsCommand::Gaps(args) => gaps(args, client, out).await,
    }?;
    Ok(out.flush()?)
}

async fn list(args: ListArgs, client: &Client, out: &mut Pipe) -> anyhow::Result<()> {
    let mut asked = args.place.asked();
    asked.extend(args.stream.map(|stream| ("stream", stream.to_string())));
    let items = client.items("streams", "list streams", &asked).await?.items;
    let heads =
        ["NODE", "STREAM", "SITE", "RECORDS", "LAG", "OLDEST", "LOST", "HEARD", "CLASS", "EPOCH", "EPOCHS", "GAPS"];
    let now = now();
    let cells = |row: &Value| {
        vec![
            cell(row, "/node"),
            cell(row, "/stream"),
            cell(row, "/site"),
            cell(row, "/records"),
            cell(row, "/lagRecords"),
            ago(row, "/lagOldest", now),
            lost(row, "/lostRecords", "/lostAtLeast"),
            ago(row, "/heard", now),
            cell(row, "/class"),
            cell(row, "/epoch"),
            cell(row, "/epochs"),
            cell(row, "/gaps"),
        ]
    };
    let name = |row: &Value| format!("{}/{}", cell(row, "/node"), cell(row, "/stream"));
    let table = Table { what: "streams", kind: "StreamList", heads: &heads, wide_from: 8, cells: &cells, name: &name };
    table.print(out, args.output, items)
}

/// A count; with a plus if more may be lost.
fn lost(row: &Value, count: &str, at_least: &str) -> String {
    let more = row.pointer(at_least).and_then(Value::as_bool).unwrap_or_default();
    format!("{}{}", cell(row, count), if more { "+" } else { "" })
}

/// How rows of one sort are printed.
struct Table<'a> {
    what: &'a str,
    kind: &'a str,
    heads: &'a [&'a str],
    wide_from: usize,
    cells: &'a (dyn Fn(&Value) -> Vec<String> + Sync),
    name: &'a (dyn Fn(&Value) -> String + Sync),
}

impl Table<'_> {
    fn print(&self, out: &mut Pipe, format: Format, items: Vec<Value>) -> anyhow::Result<()> {
        let list = |items| json!({"apiVersion": proto::API_VERSION, "kind": self.kind, "items": items});
        let text = match format {
            Format::Table | Format::Wide if items.is_empty() => {
                eprintln!("No {} found.", self.what);
                return Ok(());
            }
            Format::Table | Format::Wide => self.rows(&items, format == Format::Wide, true),
            Format::Name => items.iter().map(|row| (self.name)(row) + "\n").collect(),
            Format::Json => serde_json::to_string_pretty(&list(items))? + "\n",
            Format::Yaml => serde_saphyr::to_string(&list(items))?,
        };
        Ok(out.write_all(text.as_bytes())?)
    }

    fn rows(&self, items: &[Value], wide: bool, heads: bool) -> String {
        let heads = heads.then(|| self.heads.iter().map(|head| (*head).to_owned()).collect());
        let mut rows: Vec<Vec<String>> = heads.into_iter().chain(items.iter().map(self.cells)).collect();
        if !wide {
            rows.iter_mut().for_each(|row| row.truncate(self.wide_from));
        }
        output::align(&rows)
    }
}

async fn query(args: QueryArgs, client: &Client, out: &mut Pipe) -> anyhow::Result<()> {
    let asked = args.filter.asked(now())?;
    let mut left = if args.limit == 0 { u64::MAX } else { args.limit };
    let mut pages = client.pages(&args.stream, asked);
    while left > 0 {
        let Some(page) = pages.next(left.min(PAGE_RECORDS)).await? else { return Ok(()) };
        left = left.saturating_sub(page.lines().count() as u64);
        print_lines(out, args.output, page.lines())?;
    }
    if pages.more() {
        out.flush()?;
        eprintln!("There is more; ask for it with a higher --limit, or 0 for all.");
    }
    Ok(())
}

fn print_lines<'a>(out: &mut Pipe, format: RecordFormat, lines: impl Iterator<Item = &'a [u8]>) -> anyhow::Result<()> {
    for line in lines {
        match format {
            RecordFormat::Ndjson => {
                out.write_all(line)?;
                out.write_all(b"\n")?;
            }
            RecordFormat::Text => out.write_all(text::record(&Line::read(line)?).as_bytes())?,
        }
    }
    Ok(())
}

async fn tail(args: TailArgs, client: &Client, out: &mut Pipe) -> anyhow::Result<()> {
    let mut asked = args.place.asked();
    let tail = ("tail", args.count.to_string());
    if !args.follow {
        asked.push(tail);
        let page = client.page(&args.stream, &asked).await?;
        return print_lines(out, args.output, page.lines());
    }
    asked.extend([("follow", "true".to_owned()), ("bookmarks", "true".to_owned())]);
    let (mut place, mut pause) = (None, AGAIN.0);
    loop {
        let from = place.clone().map_or_else(|| tail.clone(), |place| ("continue", place));
        let query: Vec<_> = asked.iter().cloned().chain([from]).collect();
        let before = place.clone();
        let outcome = follow(&args, client, &query, &mut place, out).await;
        if place != before {
            pause = AGAIN.0;
        }
        let why = match outcome {
            Ok(()) => "it ended the answer".to_owned(),
            Err(error) if place.is_none() || out.is_closed() || !fetch::is_passing(&error) => return Err(error),
            Err(error) => format!("{error:#}"),
        };
        out.flush()?;
        eprintln!("lost the hub ({why}); calling again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN.1);
    }
}

/// One call: prints until the hub is gone. Records are printed once their bookmark is there, so that the
/// next call goes on exactly after what was printed.
async fn follow(
    args: &TailArgs,
    client: &Client,
    query: &[(&'static str, String)],
    place: &mut Option<String>,
    out: &mut Pipe,
) -> anyhow::Result<()> {
    let lines = client.follow(&args.stream, query).await?;
    pin_mut!(lines);
    let mut waiting: Vec<Vec<u8>> = vec![];
    while let Some(line) = lines.next().await {
        let line = line?;
        match fetch::bookmark(&line) {
            Some(bookmark) => {
                print_lines(out, args.output, waiting.iter().map(Vec::as_slice))?;
                out.flush()?;
                waiting.clear();
                *place = Some(bookmark);
            }
            None if line.is_empty() => {}
            None => waiting.push(line),
        }
    }
    Ok(())
}

async fn counts(args: CountsArgs, client: &Client, out: &mut Pipe) -> anyhow::Result<()> {
    let cells = |row: &Value| ["/minute", "/site", "/records", "/bytes"].map(|at| cell(row, at)).to_vec();
    let name = |row: &Value| format!("{}/{}", cell(row, "/minute"), cell(row, "/site"));
    let heads = ["MINUTE", "SITE", "RECORDS", "BYTES"];
    let table = Table { what: "counts", kind: "CountList", heads: &heads, wide_from: 9, cells: &cells, name: &name };
    let now = now();
    let mut from = args.times.from.map(|when| when.at(now)).transpose()?;
    let to = args.times.to.map(|when| when.at(now)).transpose()?;
    let (mut all, mut paged) = (vec![], false);
    loop {
        let mut asked: Vec<_> = args.site.iter().map(|site| ("site", site.to_string())).collect();
        asked.extend(from.map(|time| ("from", time.to_string())));
        asked.extend(to.map(|time| ("to", time.to_string())));
        let answer = client.items(&format!("streams/{}/counts", args.stream), "count records", &asked).await?;
        from = answer.next;
        if matches!(args.output, Format::Table | Format::Wide) && (paged || from.is_some()) {
            out.write_all(table.rows(&answer.items, false, !paged).as_bytes())?; // long: a page at a time
            paged = true;
        } else {
            all.extend(answer.items);
        }
        if from.is_none() {
            return if paged { Ok(()) } else { table.print(out, args.output, all) };
        }
    }
}

async fn gaps(args: GapsArgs, client: &Client, out: &mut Pipe) -> anyhow::Result<()> {
    let mut asked = vec![("limit", args.limit.to_string())];
    asked.extend(args.node.map(|node| ("node", node.to_string())));
    asked.extend(args.stream.map(|stream| ("stream", stream.to_string())));
    let answer = client.items("gaps", "list gaps", &asked).await?;
    let now = now();
    let cells = |row: &Value| {
        vec![
            ago(row, "/noted", now),
            cell(row, "/node"),
            cell(row, "/stream"),
            cell(row, "/site"),
            cell(row, "/epoch"),
            cell(row, "/first"),
            lost(row, "/count", "/atLeast"),
            cell(row, "/reason"),
        ]
    };
    let name = |row: &Value| ["/node", "/stream", "/epoch", "/first"].map(|at| cell(row, at)).join("/");
    let heads = ["NOTED", "NODE", "STREAM", "SITE", "EPOCH", "FIRST", "LOST", "REASON"];
    let table = Table { what: "gaps", kind: "GapList", heads: &heads, wide_from: 9, cells: &cells, name: &name };
    table.print(out, args.output, answer.items)?;
    if answer.more {
        out.flush()?;
        eprintln!("There are older ones; ask for them with a higher --limit.");
    }
    Ok(())
}

impl When {
    /// The time itself.
    fn at(self, now: Timestamp) -> anyhow::Result<Timestamp> {
        let beyond = || CliError::new(Exit::Usage, "the time lies before all calendars; choose a later one");
        match self {
            When::At(time) => Ok(time),
            When::Ago(span) => Ok(now.checked_sub(span.get()).map_err(|_| beyond())?),
        }
    }
}
