//! `sim run` and `sim list`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use serde::Serialize;

use super::{Found, Report, all, find, run_seed};
use crate::{
    record::{Asked, Record},
    report,
    run::{Options, RunError, play},
    seeds::Seeds,
};

/// `sim run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// A scenario file, or the name of a scenario; `sim list` shows them.
    #[arg(value_name = "FILE_OR_NAME")]
    scenario: String,
    /// The seed. Default: a fresh one, printed first.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Several seeds, `FIRST..LAST`, both included.
    #[arg(long)]
    seeds: Option<Seeds>,
    /// Run each seed twice and compare the traces.
    #[arg(long)]
    twice: bool,
    /// So many boxes in all instead of those of the file, spread evenly over its sites.
    #[arg(long)]
    nodes: Option<u32>,
    /// Write the trace to this file; with `--twice` that of the second run to FILE.2.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// One JSON object a seed.
    #[arg(long)]
    json: bool,
    /// Write a page about the run to this file; of several seeds, about the last.
    #[arg(long)]
    html: Option<PathBuf>,
}

/// Prints all scenarios.
///
/// # Errors
/// When a file of this program is wrong.
pub fn list() -> anyhow::Result<()> {
    for (name, about) in all()? {
        println!("{name:<28} {about}");
    }
    Ok(())
}

/// What became of a run, whichever kind it was.
#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
enum Ran {
    Report(Report),
    Record(Box<Record>),
}

impl Ran {
    fn trace(&self) -> (&str, u64) {
        match self {
            Ran::Report(report) => (&report.trace_digest, report.trace_lines),
            Ran::Record(record) => (&record.trace_digest, record.trace_lines),
        }
    }

    /// What it saw, for people.
    fn print(&self) {
        match self {
            Ran::Report(report) => {
                report.saw.iter().for_each(|saw| println!("  {saw}"));
                println!("  {:.3} virtual s", report.virtual_s);
            }
            Ran::Record(record) => print!("{}", report::text::text(record)),
        }
        let (digest, lines) = self.trace();
        println!("  {lines} lines of trace, digest {digest}");
    }
}

/// Runs what the command line asks for.
///
/// # Errors
/// The first seed that did not end as it must, with how to repeat it.
pub fn run(args: &RunArgs) -> anyhow::Result<()> {
    let found = find(&args.scenario, args.nodes)?;
    if args.html.is_some() && matches!(found, Found::Function(_)) {
        bail!("--html draws what a scenario file did; {} is none", args.scenario);
    }
    let seeds = match (args.seeds, args.seed) {
        (Some(seeds), _) => seeds,
        (None, Some(seed)) => Seeds::one(seed),
        (None, None) => Seeds::fresh(1)?,
    };
    for seed in seeds.iter() {
        if !args.json {
            println!("seed {seed}");
        }
        let ran = twice(args, &found, seed).map_err(|error| failed(args, seed, error))?;
        if let Ran::Record(record) = &ran {
            page(args, record)?;
        }
        if args.json {
            println!("{}", serde_json::to_string(&ran)?);
        } else {
            ran.print();
        }
    }
    Ok(())
}

fn page(args: &RunArgs, record: &Record) -> anyhow::Result<()> {
    let Some(path) = &args.html else { return Ok(()) };
    fs::write(path, report::page::page(record)).with_context(|| format!("write {}", path.display()))
}

/// Says how to repeat it; whoever reads JSON or a page sees what there was until then.
fn failed(args: &RunArgs, seed: u64, error: anyhow::Error) -> anyhow::Error {
    if let Some(RunError { record, .. }) = error.downcast_ref() {
        if let Err(error) = page(args, record) {
            eprintln!("warning: {error:#}");
        }
        match serde_json::to_string(record) {
            Ok(text) if args.json => println!("{text}"),
            _ => print!("{}", report::text::text(record)),
        }
    }
    anyhow!("seed {seed} failed: {error:#}\nrepeat it: {} --trace FILE", report::again(&asked(args), seed))
}

/// What was typed.
fn asked(args: &RunArgs) -> Asked {
    Asked::Run { scenario: args.scenario.clone(), nodes: args.nodes }
}

fn twice(args: &RunArgs, found: &Found, seed: u64) -> anyhow::Result<Ran> {
    let ran = once(args, found, seed, args.trace.as_deref())?;
    if args.twice {
        let second = args.trace.as_ref().map(|path| PathBuf::from(format!("{}.2", path.display())));
        let again = once(args, found, seed, second.as_deref())?;
        if again != ran {
            let ((digest, lines), (digest_2, lines_2)) = (ran.trace(), again.trace());
            bail!(
                "two runs differ: digest {digest} with {lines} lines, then {digest_2} with {lines_2}; compare their \
                 traces with --twice --trace FILE"
            );
        }
    }
    Ok(ran)
}

fn once(args: &RunArgs, found: &Found, seed: u64, trace: Option<&Path>) -> anyhow::Result<Ran> {
    match found {
        Found::Function(name) => Ok(Ran::Report(run_seed(name, seed, trace)?)),
        Found::Plan(plan) => {
            let options = Options { trace: trace.map(Path::to_owned) };
            let record = report::asked(play(plan, seed, &options), asked(args))?;
            Ok(Ran::Record(Box::new(record)))
        }
    }
}
