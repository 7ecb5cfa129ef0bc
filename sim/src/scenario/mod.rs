//! Scenarios: what to break, and what must be true afterwards. `sim run SCENARIO`.
//!
//! A scenario is a function over a [`World`]. Each run has a thread, a paused runtime and a folder of its
//! own, so that nothing of an earlier one can show in its trace.

mod crash_mid_install;
mod cut_mid_download;
mod events;
mod streams;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use proto::env::{BoxFuture, Seed};
use serde::Serialize;
use tokio::time::Instant;

use crate::{trace::Trace, world::World};

/// Longest virtual time of a run: a scenario that hangs ends as a failure.
const LONGEST: Duration = Duration::from_secs(48 * 3600);

/// `sim run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Name of the scenario; `sim list` shows them.
    scenario: String,
    /// The seed. Default: a fresh one, printed first.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Several seeds, `FIRST..LAST`, both included.
    #[arg(long, value_parser = parse_seeds)]
    seeds: Option<(u64, u64)>,
    /// Run each seed twice and compare the traces.
    #[arg(long)]
    twice: bool,
    /// Write the trace to this file; with `--twice` that of the second run to FILE.2.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// One JSON object a seed.
    #[arg(long)]
    json: bool,
}

fn parse_seeds(text: &str) -> Result<(u64, u64), String> {
    let wrong = || format!("{text:?} is not FIRST..LAST, such as 1..20");
    let (first, last) = text.split_once("..").ok_or_else(wrong)?;
    let parse = |number: &str| number.parse::<u64>().map_err(|_| wrong());
    match (parse(first)?, parse(last)?) {
        (first, last) if first <= last => Ok((first, last)),
        _ => Err(format!("{text:?} is empty: the last seed is below the first")),
    }
}

/// What became of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The scenario.
    pub scenario: &'static str,
    /// The seed.
    pub seed: u64,
    /// SHA-256 over the trace.
    pub digest: String,
    /// Lines of the trace.
    pub lines: u64,
    /// How long it took in the simulated world.
    pub virtual_ms: u64,
    /// What it saw, one sentence each.
    pub saw: Vec<String>,
}

/// A scenario. It returns what it saw, or what was not as it must be.
pub(crate) struct Scenario {
    name: &'static str,
    about: &'static str,
    play: for<'a> fn(&'a mut World) -> BoxFuture<'a, anyhow::Result<Vec<String>>>,
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "cut_mid_download",
        about: "the line of one of three nodes is cut in the middle of a download, and mended",
        play: |world| Box::pin(cut_mid_download::play(world)),
    },
    Scenario {
        name: "crash_mid_install",
        about: "hub, agent, both, or the box end at random moments of an upgrade",
        play: |world| Box::pin(crash_mid_install::play(world)),
    },
    Scenario {
        name: "scans_through_outages",
        about: "line, agents and hub fail at random moments while scans flow; acknowledgements are lost",
        play: |world| Box::pin(streams::through_outages(world)),
    },
    Scenario {
        name: "outbox_full",
        about: "the line is away until the outbox is full: logs are shed and counted, scans push back",
        play: |world| Box::pin(streams::outbox_full(world)),
    },
    Scenario {
        name: "outbox_bit_flip",
        about: "a bit flips in a box's outbox: the damaged batch is a counted gap, and nothing else is lost",
        play: |world| Box::pin(streams::outbox_bit_flip(world)),
    },
    Scenario {
        name: "hub_restored",
        about: "the hub comes back from a backup: nothing twice, what it lost is a counted gap",
        play: |world| Box::pin(streams::hub_restored(world)),
    },
    Scenario {
        name: "outbox_lost",
        about: "a box loses its outbox, or finds an older one: a new epoch, the gap is shown",
        play: |world| Box::pin(streams::outbox_lost(world)),
    },
    Scenario {
        name: "thirty_days_offline",
        about: "a box is away for a month: its backlog drains while fresh scans arrive at once",
        play: |world| Box::pin(streams::thirty_days_offline(world)),
    },
    Scenario {
        name: "events_once",
        about: "line, agent and hub fail while a bad release is tried: every event is there once; so are metrics",
        play: |world| Box::pin(events::once(world)),
    },
    Scenario {
        name: "sink_down",
        about: "the hub's sink is down for a day: outboxes hold, nothing is lost",
        play: |world| Box::pin(streams::sink_down(world)),
    },
];

/// Prints all scenarios.
pub fn list() {
    for scenario in SCENARIOS {
        println!("{:<24} {}", scenario.name, scenario.about);
    }
}

/// Runs what the command line asks for.
///
/// # Errors
/// The first seed that did not end as it must, with how to repeat it.
pub fn run(args: &RunArgs) -> anyhow::Result<()> {
    let (first, last) = match (args.seeds, args.seed) {
        (Some(seeds), _) => seeds,
        (None, Some(seed)) => (seed, seed),
        (None, None) => {
            let seed = u64::from(u32::from_be_bytes(Seed::from_os()?.bytes("number")));
            (seed, seed)
        }
    };
    for seed in first..=last {
        if !args.json {
            println!("seed {seed}");
        }
        let report = one(args, seed).with_context(|| {
            format!("seed {seed} failed; repeat it: sim run {} --seed {seed} --trace FILE", args.scenario)
        })?;
        if args.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            report.saw.iter().for_each(|saw| println!("  {saw}"));
            let virtual_s = Duration::from_millis(report.virtual_ms).as_secs_f64();
            println!("  {virtual_s:.3} virtual s, {} lines of trace, digest {}", report.lines, report.digest);
        }
    }
    Ok(())
}

fn one(args: &RunArgs, seed: u64) -> anyhow::Result<Report> {
    let report = run_seed(&args.scenario, seed, args.trace.as_deref())?;
    if args.twice {
        let second = args.trace.as_ref().map(|path| PathBuf::from(format!("{}.2", path.display())));
        let again = run_seed(&args.scenario, seed, second.as_deref())?;
        if again != report {
            bail!(
                "two runs differ: digest {} with {} lines, then {} with {}; compare their traces with --trace FILE",
                report.digest,
                report.lines,
                again.digest,
                again.lines
            );
        }
    }
    Ok(report)
}

/// Runs a scenario once, on a thread of its own.
///
/// # Errors
/// When there is no such scenario, or something was not as it must be.
pub fn run_seed(name: &str, seed: u64, trace: Option<&Path>) -> anyhow::Result<Report> {
    let Some(scenario) = SCENARIOS.iter().find(|s| s.name == name) else {
        bail!("there is no scenario {name:?}; `sim list` shows all");
    };
    let trace = trace.map(Path::to_owned);
    let thread = std::thread::Builder::new()
        .name(format!("{name} {seed}"))
        .stack_size(16 << 20)
        .spawn(move || play(scenario, seed, trace.as_deref()))?;
    thread.join().unwrap_or_else(|_| bail!("it panicked; see above"))
}

fn play(scenario: &'static Scenario, seed: u64, trace: Option<&Path>) -> anyhow::Result<Report> {
    // Without I/O: nothing of a run may reach a real socket.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    runtime.block_on(async {
        let begin = Instant::now();
        let trace = Trace::new(trace).context("write the trace")?;
        let mut world = World::new(Seed::from_u64(seed), trace.clone()).await?;
        let outcome = tokio::time::timeout(LONGEST, (scenario.play)(&mut world)).await;
        let virtual_ms = u64::try_from(begin.elapsed().as_millis())?;
        let checked = world.check();
        let end = world.end().await;
        trace.flush().context("write the trace")?;
        let saw = outcome.with_context(|| format!("it did not end within {LONGEST:?}"))??;
        checked?;
        end?;
        let (digest, lines) = (trace.digest(), trace.lines());
        Ok(Report { scenario: scenario.name, seed, digest, lines, virtual_ms, saw })
    })
}
