//! `crossdock streams export`: records in a file for other programs, page by page.
//!
//! | format | columns or fields | the record |
//! |---|---|---|
//! | `ndjson` | as the API | JSON as such, everything else base64 with `"encoding":"base64"` |
//! | `csv` | node, site, stream, epoch, sequence, time, encoding, record | text (`utf-8`), or `base64` |
//! | `parquet` | node, site, stream, epoch, sequence, time, record | its bytes |
//!
//! A file is written beside its place under another name and takes its place when it is whole: whoever
//! sees it sees all of it, and an export that was interrupted leaves the one before.

use std::{
    fs::{self, File},
    io::{IsTerminal as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::ValueEnum;
use data_encoding::BASE64;
use indicatif::ProgressBar;
use proto::name::Name;
use tempfile::NamedTempFile;

use super::{
    PAGE_RECORDS,
    fetch::{Filter, Line, RecordPage},
    parquet::ParquetFile,
    pipe::Pipe,
};
use crate::cli::{
    client::Client,
    exit::{CliError, Exit},
    get::now,
};

/// `crossdock streams export`.
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// Name of the stream.
    stream: Name,
    /// Format of the file.
    #[arg(long, value_enum)]
    format: ExportFormat,
    /// The file, in place of one that is there; - for standard output.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    filter: Filter,
}

/// Formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// Comma separated, with a head (RFC 4180).
    Csv,
    /// A JSON document a line.
    Ndjson,
    /// Apache Parquet.
    Parquet,
}

/// Runs the command.
///
/// # Errors
/// When the hub cannot be asked or refuses, or the file cannot be written.
pub(super) async fn run(args: ExportArgs, client: &Client, out: &mut Pipe) -> anyhow::Result<()> {
    let shown = args.output.display();
    if args.output == Path::new("-") {
        if args.format == ExportFormat::Parquet && std::io::stdout().is_terminal() {
            return Err(CliError::new(Exit::Usage, "a Parquet file is not for a terminal; name a file with -o").into());
        }
        copy(&args, client, out).await?;
        return Ok(());
    }
    let target = Target::open(&args.output).with_context(|| format!("make {shown}"))?;
    let mut file = Pipe::new(target.file().try_clone()?);
    let copied = tokio::select! { biased;
        copied = copy(&args, client, &mut file) => copied?,
        _ = tokio::signal::ctrl_c() => {
            return Err(CliError::new(Exit::Failed, format!("interrupted; {shown} is as it was")).into());
        }
    };
    drop(file); // flushed by `copy`
    target.finish().with_context(|| format!("finish {shown}"))?;
    eprintln!("{copied} records of {} in {shown}", args.stream);
    Ok(())
}

/// Where the records go.
enum Target {
    /// To a name of their own first.
    Beside(NamedTempFile, PathBuf),
    /// A device or a pipe: nothing to put in its place.
    Straight(File),
}

impl Target {
    fn open(path: &Path) -> anyhow::Result<Target> {
        let place = match fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                return Err(CliError::new(Exit::Usage, "it is a folder; name a file in it").into());
            }
            Ok(found) if !found.is_file() => return Ok(Target::Straight(File::options().write(true).open(path)?)),
            Ok(_) => fs::canonicalize(path)?, // what a link names is replaced, not the link
            Err(_) => path.to_owned(),
        };
        let folder = match place.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let name = place.file_name().context("it has no name")?.to_string_lossy();
        let prefix = format!(".{}.", name.chars().take(100).collect::<String>());
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".part").permissions(fs::Permissions::from_mode(0o666)); // less the umask
        Ok(Target::Beside(builder.tempfile_in(folder)?, place))
    }

    fn file(&self) -> &File {
        match self {
            Target::Beside(file, _) => file.as_file(),
            Target::Straight(file) => file,
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        if let Target::Beside(file, place) = self {
            file.as_file().sync_all()?;
            file.persist(place)?;
        }
        Ok(())
    }
}

/// Copies all records, and returns how many.
async fn copy(args: &ExportArgs, client: &Client, out: &mut Pipe) -> anyhow::Result<u64> {
    let mut asked = args.filter.asked(now())?;
    if args.format != ExportFormat::Ndjson {
        asked.push(("encoding", "base64".to_owned())); // to the byte
    }
    let progress = ProgressBar::new_spinner();
    let mut pages = client.pages(&args.stream, asked);
    let mut writer = Writer::new(args.format, out)?;
    let mut copied = 0;
    while let Some(page) = pages.next(PAGE_RECORDS).await? {
        copied += writer.write(&page)?;
        progress.set_message(format!("{copied} records"));
        progress.tick();
    }
    progress.finish_and_clear();
    writer.finish()?;
    out.flush()?;
    Ok(copied)
}

enum Writer<'a> {
    Ndjson(&'a mut Pipe),
    Csv(Box<csv::Writer<&'a mut Pipe>>),
    Parquet(Box<ParquetFile<&'a mut Pipe>>),
}

impl<'a> Writer<'a> {
    fn new(format: ExportFormat, out: &'a mut Pipe) -> anyhow::Result<Writer<'a>> {
        Ok(match format {
            ExportFormat::Ndjson => Writer::Ndjson(out),
            ExportFormat::Csv => {
                let mut csv = csv::Writer::from_writer(out);
                csv.write_record(["node", "site", "stream", "epoch", "sequence", "time", "encoding", "record"])?;
                Writer::Csv(Box::new(csv))
            }
            ExportFormat::Parquet => Writer::Parquet(Box::new(ParquetFile::new(out)?)),
        })
    }

    fn write(&mut self, page: &RecordPage) -> anyhow::Result<u64> {
        let mut count = 0;
        if let Writer::Ndjson(out) = self {
            out.write_all(page.body())?;
        }
        for line in page.lines() {
            count += 1;
            match self {
                Writer::Ndjson(_) => {}
                Writer::Csv(csv) => row(csv, &Line::read(line)?)?,
                Writer::Parquet(parquet) => parquet.push(&Line::read(line)?)?,
            }
        }
        Ok(count)
    }

    fn finish(self) -> anyhow::Result<()> {
        match self {
            Writer::Ndjson(_) => Ok(()),
            Writer::Csv(mut csv) => Ok(csv.flush()?),
            Writer::Parquet(parquet) => parquet.finish(),
        }
    }
}

fn row(csv: &mut csv::Writer<&mut Pipe>, line: &Line<'_>) -> anyhow::Result<()> {
    let bytes = line.bytes()?;
    let (encoding, record) = match String::from_utf8(bytes) {
        Ok(text) => ("utf-8", text),
        Err(error) => ("base64", BASE64.encode(error.as_bytes())),
    };
    let (epoch, sequence) = (line.epoch.to_string(), line.sequence.to_string());
    let cells = [&line.node, &line.site, &line.stream, &*epoch, &sequence, &line.time, encoding, &record];
    Ok(csv.write_record(cells)?)
}
