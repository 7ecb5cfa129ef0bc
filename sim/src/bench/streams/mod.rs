//! `sim bench streams`: records of 300 bytes from producer to sink, beside what others would use.
//!
//! ```text
//! Crossdock   producer --HTTP--> agent's outbox --> hub --> its SQLite
//! Mosquitto   producer --MQTT--> broker with persistence --> subscriber --> SQLite
//! JetStream   producer --NATS--> server with file storage --> consumer --> SQLite
//! ```
//!
//! Every producer is the same: so many connections, so many records an offer, the next offer after all
//! of the last are acknowledged. A rate is counted from the first offer to the last record in the sink.
//! A record is lost when its producer was told that it is taken, and it is not in the sink at the end.
//!
//! A backlog drains beside a producer that goes on at the rate of real life: `--real-rate`, by default
//! [`REAL_RATE`] records a second through one box. `drain_ratio` is the backlog's rate by that rate: at 10
//! what waited for an hour is at the hub in six minutes, and nothing of those minutes waits behind it.
//! `live_lag_s` is the longest that one of the real producer's records was on its way meanwhile.
//! `drain_capacity_ratio` says the other thing: the backlog's rate by what one agent can take and deliver
//! at the same time, as fast as it can.
//!
//! | module | what it holds |
//! |---|---|
//! | [`load`] | the producers, and who sent what |
//! | [`ours`] | hub and agents: throughput, kills, a backlog |
//! | [`hub`] | what has arrived at the hub |
//! | [`peer`] | what every peer is measured for |
//! | [`mosquitto`], [`jetstream`] | the peers; [`nats`] is a client for the second |
//! | [`server`], [`store`] | a peer's process, a peer's sink |

pub mod hub;
pub mod jetstream;
pub mod load;
pub mod mosquitto;
pub mod nats;
pub mod ours;
pub mod peer;
pub mod server;
pub mod store;

use std::time::Duration;

use anyhow::ensure;
use load::Load;
use ours::{Bench, Drained, Peaks};

use super::{Figures, profile, seconds, warn_if_debug};
use crate::produce::door::{MAX_OFFER, MAX_OFFER_BYTES};

/// Records a second of one box in real life, at the peak of the night: a center that sorts 500,000 parcels
/// an hour, seven scans each, all of them through this one box.
pub const REAL_RATE: u32 = 1000;

/// `sim bench streams`.
#[derive(Debug, clap::Args)]
pub struct StreamsArgs {
    /// Records of each measurement of throughput but the next.
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u64).range(1..))]
    records: u64,
    /// Records of all agents at one hub together.
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    hub_records: u64,
    /// Records of each measurement in which something is killed.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(5..))]
    kill_records: u64,
    /// Records of the backlog; 10000000 for the full size.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    backlog: u64,
    /// Agents at one hub.
    #[arg(long, default_value_t = 20)]
    agents: usize,
    /// Connections of each producer.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Records of an offer.
    #[arg(long, default_value_t = 500)]
    batch: usize,
    /// Bytes of a record.
    #[arg(long, default_value_t = 300)]
    bytes: usize,
    /// Records a second that go on while the backlog drains.
    #[arg(long, default_value_t = REAL_RATE, value_parser = clap::value_parser!(u32).range(20..=20_000))]
    real_rate: u32,
    /// The agent of this build instead of the one that ships, which takes minutes to build.
    #[arg(long)]
    plain_agent: bool,
    /// Only these parts. Default: all.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// One JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// A part of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// One agent into one hub.
    One,
    /// Many agents into one hub.
    Many,
    /// Agent and hub killed.
    Kills,
    /// A backlog drains, live records beside it.
    Drain,
    /// Mosquitto and a subscriber.
    Mosquitto,
    /// NATS JetStream and a consumer.
    Jetstream,
}

/// Runs the bench.
///
/// # Errors
/// When a program does not do what it should, or a peer is not installed.
pub async fn run(args: StreamsArgs) -> anyhow::Result<()> {
    ensure!((1..=1000).contains(&args.agents), "--agents must be 1 to 1000");
    ensure!((1..=256).contains(&args.connections), "--connections must be 1 to 256");
    ensure!((1..=MAX_OFFER).contains(&args.batch), "--batch must be 1 to {MAX_OFFER}");
    ensure!((1..=100_000).contains(&args.bytes), "--bytes must be 1 to 100000");
    ensure!(args.batch * args.bytes <= MAX_OFFER_BYTES, "--batch times --bytes must be at most {MAX_OFFER_BYTES}");
    warn_if_debug();
    measure(&args).await?.print(args.json);
    Ok(())
}

async fn measure(args: &StreamsArgs) -> anyhow::Result<Figures> {
    let wanted = |part: Part| args.only.is_empty() || args.only.contains(&part);
    let load = Load { connections: args.connections, batch: args.batch, bytes: args.bytes };
    let (mut figures, mut peaks) = (Figures::default(), Peaks::default());
    let (mosquitto, jetstream) = peers(args, &load).await?;

    let ours = Bench::with(args.plain_agent).await?;
    let mut one = None;
    if wanted(Part::One) {
        eprintln!("one agent: {} records", args.records);
        let per_s = *one.insert(ours.throughput(&load, 1, args.records, &mut peaks).await?);
        figures.add("one_agent_records_per_s", whole(per_s), "producer to the hub's sink, all durable");
    }
    if wanted(Part::Many) {
        eprintln!("{} agents: {} records", args.agents, args.hub_records);
        let each = Load { connections: 1, ..load };
        let per_s = ours.throughput(&each, args.agents, args.hub_records, &mut peaks).await?;
        figures.add("one_hub_records_per_s", whole(per_s), "the same from many agents, all together");
    }
    for (key, peer) in [("ratio_mosquitto", &mosquitto), ("ratio_jetstream", &jetstream)] {
        if let (Some(one), Some(peer)) = (one, peer) {
            figures.add(key, ratio(one, peer.per_s), "one agent's rate by that of the peer");
        }
    }
    if wanted(Part::Kills) {
        eprintln!("agent, hub and both killed: {} records", args.kill_records);
        let killed = ours.kills(&load, args.kill_records, &mut peaks).await?;
        figures.add("lost", killed.verdict.lost, "acknowledged by the agent, not in the sink after three kill -9");
        figures.add("duplicated", killed.verdict.duplicated, "in the sink more than once after them");
        figures.add("in_gaps", killed.in_gaps, "of the lost: shown as gaps by the hub");
        figures.add("unanswered", killed.unanswered, "sent to an agent that was killed before it answered");
    }
    if wanted(Part::Drain) {
        eprintln!("a backlog: {} records", args.backlog);
        let drained = ours.drain(&load, args.backlog, args.real_rate, &mut peaks).await?;
        add_drained(&mut figures, &drained, args.real_rate, one);
    }
    if peaks.hub > 0 {
        figures.add("agent_rss_bytes_max", peaks.agent, "VmHWM of an agent, the most of all parts");
        figures.add("hub_rss_bytes_max", peaks.hub, "VmHWM of a hub, the most of all parts");
    }
    if let Some(peer) = &mosquitto {
        figures.add("mosquitto_records_per_s", whole(peer.per_s), "persistence, saved every second; SQLite behind it");
        figures.add("mosquitto_lost", peer.killed.lost, "acknowledged, not in the sink after one kill -9");
        figures.add("mosquitto_duplicated", peer.killed.duplicated, "in the sink more than once after it");
    }
    if let Some(peer) = &jetstream {
        figures.add("jetstream_records_per_s", whole(peer.per_s), "file storage, not synced each; SQLite behind it");
        figures.add("jetstream_lost", peer.killed.lost, "acknowledged, not in the sink after one kill -9");
        figures.add("jetstream_duplicated", peer.killed.duplicated, "in the sink more than once after it");
    }
    figures.add("records", args.records, "records of each throughput but that of many agents");
    figures.add("hub_records", args.hub_records, "records of many agents");
    figures.add("kill_records", args.kill_records, "records of each part with kills");
    figures.add("backlog_records", args.backlog, "records of the backlog");
    figures.add("agents", args.agents, "agents at one hub");
    figures.add("record_bytes", args.bytes, "bytes of a record");
    figures.add("cores", std::thread::available_parallelism()?.get(), "processor cores of this machine");
    figures.add("real_rate", args.real_rate, "records a second of the real producer");
    figures.add("profile", profile(), "how it was built");
    figures.add("agent_profile", ours.agent_profile(), "how the agent was built");
    Ok(figures)
}

async fn peers(args: &StreamsArgs, load: &Load) -> anyhow::Result<(Option<peer::Found>, Option<peer::Found>)> {
    let wanted = |part: Part| args.only.is_empty() || args.only.contains(&part);
    let (mut mosquitto, mut jetstream) = (None, None);
    if wanted(Part::Mosquitto) {
        eprintln!("Mosquitto: {} and {} records", args.records, args.kill_records);
        mosquitto = Some(peer::measure::<mosquitto::Mosquitto>(load, args.records, args.kill_records).await?);
    }
    if wanted(Part::Jetstream) {
        eprintln!("NATS JetStream: {} and {} records", args.records, args.kill_records);
        jetstream = Some(peer::measure::<jetstream::JetStream>(load, args.records, args.kill_records).await?);
    }
    Ok((mosquitto, jetstream))
}

fn add_drained(figures: &mut Figures, drained: &Drained, real_rate: u32, one: Option<f64>) {
    figures.add("drain_ratio", ratio(drained.per_s, real_rate.into()), "the backlog's rate by the real producer's");
    if let Some(one) = one {
        figures.add("drain_capacity_ratio", ratio(drained.per_s, one), "and by that of one agent without a backlog");
    }
    let lag = |share: usize| drained.live.get((drained.live.len().saturating_sub(1)) * share / 1000).copied();
    let lag = |share: usize| lag(share).unwrap_or(Duration::ZERO);
    figures.add(
        "live_lag_s",
        seconds(lag(1000)),
        "longest way of a record that was sent meanwhile, producer to reader",
    );
    figures.add("live_lag_p99_s", seconds(lag(990)), "all but one in a hundred of them took no longer");
    figures.add("live_lag_median_s", seconds(lag(500)), "the median of them; a reader looks every 0.1 s");
    figures.add("live_records", drained.live.len(), "how many they were");
    figures.add("drain_records_per_s", whole(drained.per_s), "first record of the backlog at the hub to the last");
    figures.add("drain_first_s", seconds(drained.until_first), "hub's start to the first record of the backlog");
    figures.add("fill_records_per_s", whole(drained.filled_per_s), "into the outbox while the hub was away");
    figures.add("backlog_bytes", drained.outbox_bytes, "files of the outbox with the whole backlog");
    figures.add("drain_agent_rss_bytes_max", drained.peaks.agent, "VmHWM of the agent: filled and drained");
    figures.add("drain_hub_rss_bytes_max", drained.peaks.hub, "VmHWM of the hub");
}

fn whole(per_s: f64) -> u64 {
    per_s.round() as u64
}

/// To two digits behind the point.
fn ratio(ours: f64, theirs: f64) -> f64 {
    (ours / theirs.max(0.001) * 100.0).round() / 100.0
}
