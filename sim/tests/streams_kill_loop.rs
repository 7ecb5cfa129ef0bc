//! Records are counted exactly once while everything that carries them is killed, again and again.
//!
//! ```text
//! HTTP ---+
//! paho ---+--> agent --line--> hub --> Postgres <-- SQL: what stands there
//! socket -+     kill    cut    kill     kill
//! ```
//!
//! Shipped programs, a real Postgres, a client of MQTT that nobody here wrote. In each round one of them,
//! or two at once, are killed with SIGKILL or cut at a random moment while records flow, and started again
//! after others took some more; the next round begins when records of every producer reach Postgres.
//! At the end everything drains, and what stands in Postgres is compared with what producers were told.
//!
//! `CROSSDOCK_KILL_ROUNDS` asks for another number of rounds, `CROSSDOCK_KILL_SEED` for those of another run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // all of it is a test

#[path = "streams_kill_loop/paho.rs"]
mod paho;
#[path = "streams_kill_loop/plan.rs"]
mod plan;
#[path = "streams_kill_loop/producers.rs"]
mod producers;
#[path = "streams_kill_loop/verdict.rs"]
mod verdict;
#[path = "streams_kill_loop/yard.rs"]
mod yard;

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, ensure};
use plan::{KINDS, Plan, Round};
use proto::env::Seed;
use tokio::time::{Instant, sleep};
use verdict::Verdict;
use yard::{DATABASE, NODES, Yard};

/// Rounds, unless more are asked for.
const ROUNDS: u64 = 200;

fn number_from(variable: &str) -> anyhow::Result<Option<u64>> {
    let text = std::env::var(variable).ok();
    text.map(|text| text.parse().with_context(|| format!("{variable} must be a number"))).transpose()
}

/// What happened.
#[derive(Debug, Default)]
struct Tally {
    rounds: u64,
    two_at_once: u64,
    /// How often each kind was killed, and the time from then until records flowed again: all, longest.
    kills: BTreeMap<&'static str, (u64, Duration, Duration)>,
    /// Fewest records that were acknowledged from one round's end to the next.
    fewest_between: Option<u64>,
}

async fn play(yard: &mut Yard, round: &Round, tally: &mut Tally) -> anyhow::Result<()> {
    let before = yard.acknowledged();
    // The one wait that is for no condition: the moment is what is random.
    sleep(round.moment).await;
    let killed = Instant::now();
    for victim in &round.victims {
        yard.kill(*victim).await?;
    }
    yard.acknowledges(round.meanwhile).await?;
    let mut victims = round.victims.clone();
    if round.last_first {
        victims.reverse();
    }
    for victim in victims {
        yard.start(victim).await?;
    }
    yard.flows().await?;
    let took = killed.elapsed();
    for victim in &round.victims {
        let (count, all, longest) = tally.kills.entry(victim.kind()).or_default();
        (*count, *all, *longest) = (*count + 1, *all + took, took.max(*longest));
    }
    let between = yard.acknowledged().iter().zip(before).map(|(now, before)| now - before).min();
    tally.fewest_between = tally.fewest_between.min(between).or(between);
    tally.rounds += 1;
    tally.two_at_once += u64::from(round.victims.len() > 1);
    Ok(())
}

async fn run(yard: &mut Yard, rounds: u64, seed: u64, tally: &mut Tally) -> anyhow::Result<Verdict> {
    let mut plan = Plan::new(seed, NODES.len());
    for number in 1..=rounds {
        let round = plan.draw();
        let begun = Instant::now();
        play(yard, &round, tally).await.with_context(|| format!("round {number} of seed {seed}: {round:?}"))?;
        if begun.elapsed() > Duration::from_secs(3) {
            println!("round {number} took {:.1?}: {round:?}", begun.elapsed());
        }
    }
    yard.drain().await?;
    let verdict = verdict::read(&yard.postgres.client(DATABASE).await?, &yard.producers).await?;
    for log in ["hub", "box-1", "box-2", "lines"] {
        let text = fs::read_to_string(yard.stage.path(&format!("{log}.log")))?;
        ensure!(!text.contains("panicked at"), "{log} panicked: {text}");
    }
    // The hub's own count, as an operator sees it.
    let list = yard.stage.quiet("crossdock", &["streams", "list", "-o", "json"]).await?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let records = list["items"].as_array().context("no items")?.iter().map(|row| row["records"].as_u64());
    let records = records.sum::<Option<u64>>().context("a stream without count")?;
    ensure!(records == verdict.rows, "the hub counts {records} records, Postgres has {}", verdict.rows);
    Ok(verdict)
}

fn print(tally: &Tally, verdict: &Verdict, took: Duration) {
    println!("\n{} rounds in {took:.1?}, of them {} with two at once", tally.rounds, tally.two_at_once);
    println!("{:<14} {:>6} {:>22} {:>10}", "killed or cut", "times", "until it flows, mean", "longest");
    for (kind, (count, all, longest)) in &tally.kills {
        println!("{kind:<14} {count:>6} {:>22.2?} {longest:>10.2?}", *all / u32::try_from(*count).unwrap());
    }
    println!("fewest records of a producer acknowledged in one round: {:?}", tally.fewest_between);
    println!("{verdict}\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_record_is_counted_once_whatever_is_killed() -> anyhow::Result<()> {
    let seed = match number_from("CROSSDOCK_KILL_SEED")? {
        Some(seed) => seed,
        None => u64::from_be_bytes(Seed::from_os()?.bytes("seed")),
    };
    let rounds = number_from("CROSSDOCK_KILL_ROUNDS")?.unwrap_or(ROUNDS);
    println!("seed {seed}, {rounds} rounds; CROSSDOCK_KILL_SEED={seed} draws the same ones");

    let mut yard = Yard::open().await?;
    let (begun, mut tally) = (Instant::now(), Tally::default());
    let verdict = match run(&mut yard, rounds, seed, &mut tally).await {
        Ok(verdict) => verdict,
        Err(error) => {
            yard.stage.print_logs();
            println!("after {tally:?}; what is left lies in {}", yard.stage.keep_folder().display());
            return Err(error);
        }
    };
    print(&tally, &verdict, begun.elapsed());
    if let Err(error) = verdict.check() {
        println!("what is left lies in {}", yard.stage.keep_folder().display());
        return Err(error);
    }
    for kind in KINDS {
        ensure!(tally.kills.get(kind).is_some_and(|(count, ..)| *count > 0), "{kind} was never killed");
    }
    ensure!(tally.two_at_once > 0 && tally.fewest_between > Some(0), "{tally:?}");
    let Yard { stage, postgres, .. } = yard;
    stage.close().await?;
    drop(postgres); // the hub was stopped before its sink
    Ok(())
}
