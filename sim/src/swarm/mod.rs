//! `sim swarm` and `sim replay`: random plans, played one after the other; what fails is made small.
//!
//! ```text
//! seed --draw--> Plan --run::play--> ok | broken --shrink--> smallest Plan that breaks the same
//!                                                     --> scenario file, and the command that replays it
//! ```
//!
//! The seed draws the plan and the run alike: with it alone a run is repeated. The plan that a seed gives is
//! part of no promise between versions; the scenario file is what to keep.

pub mod draw;
pub mod shrink;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{RecvTimeoutError, channel},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    ledger::Outcome,
    oracle::Invariant,
    plan::{self, Plan},
    record::{Asked, Record},
    report,
    run::{Options, RunError, play},
    seeds::Seeds,
};

/// Runs that shrinking may take.
const SHRINK_RUNS: u32 = 80;
/// Seeds, when none are given.
const DEFAULT_SEEDS: u32 = 20;
/// A seed that runs for longer is named, in real time.
const SLOW: Duration = Duration::from_secs(60);

/// `sim swarm`.
#[derive(Debug, clap::Args)]
pub struct SwarmArgs {
    /// Seeds, `FIRST..LAST`, both included. Default: 20 from a fresh one on.
    #[arg(long)]
    seeds: Option<Seeds>,
    /// Length of each run in virtual minutes. Default: drawn, mostly minutes, sometimes hours.
    #[arg(long)]
    minutes: Option<u64>,
    /// Runs at the same time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Runs that shrinking a plan that fails may take; 0 leaves it as it was drawn.
    #[arg(long, default_value_t = SHRINK_RUNS)]
    shrink: u32,
    /// Folder for scenario files of what fails.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// One JSON object a seed.
    #[arg(long)]
    json: bool,
}

/// `sim replay`.
#[derive(Debug, clap::Args)]
pub struct ReplayArgs {
    /// The seed, as `sim swarm` printed it.
    seed: u64,
    /// As `sim swarm --minutes` had it.
    #[arg(long)]
    minutes: Option<u64>,
    /// Write the report to this file.
    #[arg(long)]
    html: Option<PathBuf>,
    /// Write the trace to this file.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Write the plan to this scenario file.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// In which way a run failed: shrinking keeps to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    invariant: Invariant,
    /// The text without names and numbers, where it tells more than the invariant.
    skeleton: String,
}

/// What the JSON of a seed holds.
#[derive(Debug, Serialize)]
struct Line {
    seed: u64,
    ok: bool,
    error: Option<String>,
    trace_digest: String,
    trace_lines: u64,
    virtual_s: f64,
    real_s: f64,
    boxes: usize,
    faults: BTreeMap<String, u64>,
    books: Option<Outcome>,
}

/// How a seed ended.
struct Played {
    plan: Plan,
    record: Option<Record>,
    /// What was wrong; nothing: all was well.
    failure: Option<(Way, String)>,
    took: Duration,
}

/// The plan of a seed.
///
/// # Errors
/// None that a caller could cause.
pub fn plan_of(seed: u64, minutes: Option<u64>) -> anyhow::Result<Plan> {
    let mut plan = draw::draw(seed, minutes)?;
    plan.name = format!("swarm {seed}");
    Ok(plan)
}

/// Plays many seeds.
///
/// # Errors
/// When a seed failed; all of them were played by then.
pub fn swarm(args: &SwarmArgs) -> anyhow::Result<()> {
    let seeds = args.seeds.map_or_else(|| Seeds::fresh(DEFAULT_SEEDS), Ok)?;
    let ((first, last), count) = (seeds.ends(), seeds.count());
    if !args.json {
        println!("seeds {first}..{last}");
    }
    let begun = Instant::now();
    let mut failed: Vec<(u64, Way)> = vec![];
    each(seeds, args.jobs.max(1), args.minutes, |seed, played| {
        tell(args, seed, &played)?;
        if let Some((way, error)) = &played.failure {
            failed.push((seed, way.clone()));
            found(args, seed, &played.plan, way, error)?;
        }
        Ok(())
    })?;
    if !args.json {
        println!("{count} seeds, {} failed, {:.1} s", failed.len(), begun.elapsed().as_secs_f64());
    }
    if failed.is_empty() {
        return Ok(());
    }
    failed.sort();
    let seeds: Vec<String> = failed.iter().map(|(seed, way)| format!("{seed} ({})", way.invariant)).collect();
    bail!("{} of {count} seeds failed: {}", failed.len(), seeds.join(", "))
}

/// Plays seeds on `jobs` threads, and hands out what became of them, in the order in which they end.
fn each(
    seeds: Seeds,
    jobs: usize,
    minutes: Option<u64>,
    mut take: impl FnMut(u64, Played) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let next = AtomicU64::new(0);
    let running: Mutex<BTreeMap<u64, Instant>> = Mutex::default();
    let running = || running.lock().unwrap_or_else(PoisonError::into_inner);
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let Some(seed) = seeds.at(next.fetch_add(1, Ordering::Relaxed)) else { return };
                    running().insert(seed, Instant::now());
                    let played = plan_of(seed, minutes).and_then(|plan| played(plan, seed));
                    running().remove(&seed);
                    if sender.send((seed, played)).is_err() {
                        return; // nobody wants to know more
                    }
                }
            });
        }
        drop(sender);
        let result = loop {
            match receiver.recv_timeout(SLOW) {
                Ok((seed, played)) => match played.and_then(|played| take(seed, played)) {
                    Ok(()) => {}
                    Err(error) => break Err(error),
                },
                Err(RecvTimeoutError::Disconnected) => break Ok(()),
                Err(RecvTimeoutError::Timeout) => {
                    for (seed, since) in running().iter().filter(|(_, since)| since.elapsed() > SLOW) {
                        eprintln!("seed {seed} still runs after {:.0?}", since.elapsed());
                    }
                }
            }
        };
        next.store(seeds.count(), Ordering::Relaxed);
        result
    })
}

/// Plays a plan; what it did not hold is no error here.
fn played(plan: Plan, seed: u64) -> anyhow::Result<Played> {
    let begun = Instant::now();
    let options = Options::default();
    let (record, failure) = match play(&plan, seed, &options) {
        Ok(record) => (Some(record), None),
        Err(error) => {
            let way = way(&plan, &error);
            let text = format!("{error:#}");
            let record = error.downcast::<RunError>().ok().map(|error| *error.record);
            (record, Some((way, text)))
        }
    };
    Ok(Played { plan, record, failure, took: begun.elapsed() })
}

/// In which way it failed.
fn way(plan: &Plan, error: &anyhow::Error) -> Way {
    let run = error.downcast_ref::<RunError>();
    let text = run.and_then(|run| run.record.error.clone()).unwrap_or_else(|| format!("{error:#}"));
    match run.and_then(|run| run.violation.as_ref()) {
        Some(violation) => Way { invariant: violation.invariant, skeleton: skeleton(plan, &violation.message) },
        None => {
            let text = text.split_once("after everything was healed: ").map_or(text.as_str(), |(_, rest)| rest);
            Way { invariant: Invariant::Progress, skeleton: skeleton(plan, text) }
        }
    }
}

/// The words of a message without names, numbers and what is in quotes: what kind of thing went wrong.
fn skeleton(plan: &Plan, text: &str) -> String {
    let nodes: Vec<&str> = plan.sites.iter().flat_map(|site| &site.nodes).map(AsRef::as_ref).collect();
    let is_plain = |word: &&str| {
        let word = word.trim_matches(|c: char| !c.is_alphanumeric());
        !word.is_empty() && !word.contains(|c: char| c.is_ascii_digit()) && !nodes.contains(&word)
    };
    text.split_whitespace().filter(is_plain).take(6).collect::<Vec<_>>().join(" ")
}

fn tell(args: &SwarmArgs, seed: u64, played: &Played) -> anyhow::Result<()> {
    let record = played.record.as_ref();
    let boxes = played.plan.sites.iter().map(|site| site.nodes.len()).sum();
    let error = played.failure.as_ref().map(|(_, error)| error.clone());
    if args.json {
        let line = Line {
            seed,
            ok: error.is_none(),
            error,
            trace_digest: record.map(|r| r.trace_digest.clone()).unwrap_or_default(),
            trace_lines: record.map_or(0, |r| r.trace_lines),
            virtual_s: record.map_or(0.0, |r| r.virtual_s),
            real_s: played.took.as_secs_f64(),
            boxes,
            faults: record.map(|r| r.faults.clone()).unwrap_or_default(),
            books: record.and_then(|r| r.books),
        };
        println!("{}", serde_json::to_string(&line)?);
        return Ok(());
    }
    let verdict = if error.is_none() { "ok    " } else { "FAILED" };
    let kinds: Vec<&str> = record.into_iter().flat_map(|r| r.faults.keys()).map(String::as_str).collect();
    println!(
        "seed {seed} {verdict} {boxes} boxes, {:.0} virtual s, {:.1} s: {}",
        record.map_or(0.0, |r| r.virtual_s),
        played.took.as_secs_f64(),
        kinds.join(" ")
    );
    Ok(())
}

/// Shrinks what fails, and says how to play it again.
fn found(args: &SwarmArgs, seed: u64, plan: &Plan, way: &Way, error: &str) -> anyhow::Result<()> {
    let fails = |candidate: &Plan| {
        let played = played(candidate.clone(), seed);
        played.is_ok_and(|played| played.failure.is_some_and(|(found, _)| found == *way))
    };
    let smallest = shrink::shrink(plan, args.shrink, fails);
    let minutes = args.minutes.map_or_else(String::new, |minutes| format!(" --minutes {minutes}"));
    let text = format!(
        "# Found by the swarm, seed {seed}: {}\n# again: sim run FILE --seed {seed}\n{}",
        error.lines().next().unwrap_or_default(),
        plan::write(&smallest)
    );
    let file = match &args.keep {
        Some(folder) => {
            fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
            let file = folder.join(format!("swarm_{seed}.toml"));
            fs::write(&file, &text).with_context(|| format!("write {}", file.display()))?;
            file.display().to_string()
        }
        None => "FILE".to_owned(),
    };
    // A program that reads JSON has the seed; people get the plan.
    let say = |line: &str| if args.json { eprintln!("{line}") } else { println!("{line}") };
    say(&format!("  {error}"));
    say(&format!("  as it was drawn: sim replay {seed}{minutes}"));
    say(&format!("  smallest that breaks the same, sim run {file} --seed {seed}:\n"));
    say(&text);
    Ok(())
}

/// Plays one seed again.
///
/// # Errors
/// When it fails.
pub fn replay(args: &ReplayArgs) -> anyhow::Result<()> {
    if !args.json {
        println!("seed {}", args.seed);
    }
    let plan = plan_of(args.seed, args.minutes)?;
    if let Some(file) = &args.plan {
        fs::write(file, plan::write(&plan)).with_context(|| format!("write {}", file.display()))?;
    }
    let options = Options { trace: args.trace.clone() };
    let outcome = report::asked(play(&plan, args.seed, &options), Asked::Replay { minutes: args.minutes });
    let (record, error) = match outcome {
        Ok(record) => (record, None),
        Err(error) => match error.downcast::<RunError>() {
            Ok(error) => ((*error.record).clone(), Some(anyhow::Error::from(error))),
            Err(error) => return Err(error),
        },
    };
    if let Some(file) = &args.html {
        fs::write(file, report::page::page(&record)).with_context(|| format!("write {}", file.display()))?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&record)?);
    } else {
        print!("{}", report::text::text(&record));
    }
    error.map_or(Ok(()), Err)
}
