//! `sim produce`: a parcel scanner that hands its scans to an agent, or replays a file.
//!
//! ```text
//! scans due by the pace, or the file's own times --offers--> door of the agent --acknowledged--> counted
//! ```
//!
//! What the agent pushes back is offered again, later each time. An offer without an answer is offered
//! again too, so its scans may be there twice: the count of lost answers says how many offers that can
//! concern, and their `id`s tell the copies.
//!
//! | module | what it holds |
//! |---|---|
//! | [`scan`] | what a scan looks like |
//! | [`pace`] | how many are due |
//! | [`replay`] | a file of records and their times |
//! | [`door`] | HTTP, Unix socket, MQTT |

pub mod door;
pub mod pace;
pub mod replay;
pub mod scan;
mod source;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use door::{Address, Connection, Door, Failed, MAX_OFFER, MAX_OFFER_BYTES};
use proto::{
    env::{Env, Seed},
    name::Name,
};
use rand::RngExt as _;
use rand_chacha::ChaCha12Rng;
use serde::Serialize;
use source::Source;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

/// Waits between two tries: from the first to the last, doubled each time.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often it is looked what is due.
const TICK: Duration = Duration::from_millis(20);
/// How often a line says how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

/// `sim produce`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("door").required(true).args(["http", "unix", "mqtt"])))]
pub struct ProduceArgs {
    /// The agent's HTTP door, such as http://127.0.0.1:7480.
    #[arg(long, value_name = "URL", value_parser = parse_http)]
    http: Option<SocketAddr>,
    /// The agent's Unix socket.
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,
    /// The agent's MQTT door, such as 127.0.0.1:7483.
    #[arg(long, value_name = "ADDRESS")]
    mqtt: Option<SocketAddr>,
    /// Name of the stream.
    #[arg(long, default_value = "scans")]
    stream: Name,
    /// MQTT topic, when it is another than crossdock/streams/STREAM.
    #[arg(long, requires = "mqtt")]
    topic: Option<String>,
    /// User, for a door that asks for one.
    #[arg(long, requires = "password_file")]
    user: Option<String>,
    /// File with the user's password.
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// Scans a second, mean over the day; `max`: as fast as they are taken.
    #[arg(long, default_value = "10", value_parser = parse_rate, conflicts_with = "replay")]
    rate: Rate,
    /// How scans spread over the day.
    #[arg(long, value_enum, default_value_t = Curve::Flat, conflicts_with = "replay")]
    curve: Curve,
    /// Seconds that a day of the curve lasts.
    #[arg(long, default_value_t = 86_400, value_parser = clap::value_parser!(u32).range(1..))]
    day_seconds: u32,
    /// Stop after so many records.
    #[arg(long)]
    count: Option<u64>,
    /// Stop after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Most records in one offer.
    #[arg(long, default_value_t = 500, value_parser = parse_batch)]
    batch: usize,
    /// Fill each scan up to so many bytes.
    #[arg(long, default_value_t = 0)]
    bytes: usize,
    /// Sorting lines.
    #[arg(long, default_value_t = 4)]
    lines: u32,
    /// Name of this producer, part of every scan's `id`.
    #[arg(long, default_value = "scanner")]
    producer: Name,
    /// Seed of the scans.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Replay this CSV or NDJSON file instead.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Field or column of the file's times.
    #[arg(long, default_value = "time", requires = "replay")]
    time_field: String,
    /// How much faster than it was recorded; `max`: as fast as it is taken.
    #[arg(long, default_value = "1", value_parser = parse_rate, requires = "replay")]
    speed: Rate,
    /// One JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// A factor or a rate.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rate {
    Of(f64),
    Max,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Curve {
    /// The same at every hour.
    Flat,
    /// A parcel depot's: night sort, quiet noon, evening collection (UTC).
    Day,
}

fn parse_rate(text: &str) -> Result<Rate, String> {
    match text.parse::<f64>() {
        _ if text == "max" => Ok(Rate::Max),
        Ok(number) if number > 0.0 && number <= 1e9 => Ok(Rate::Of(number)),
        _ => Err("write a number above 0, or max".to_owned()),
    }
}

fn parse_batch(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (1..=MAX_OFFER).contains(n)).ok_or_else(|| format!("write 1 to {MAX_OFFER}"))
}

fn parse_http(text: &str) -> Result<SocketAddr, String> {
    let address = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let address = address.replacen("localhost:", "127.0.0.1:", 1);
    address.parse().map_err(|_| "write http://ADDRESS:PORT, such as http://127.0.0.1:7480".to_owned())
}

/// What became of the records.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Acknowledged by the agent.
    pub acknowledged: u64,
    /// Offers that were pushed back, and made again.
    pub pushed_back: u64,
    /// Offers without an answer, made again: their records may be there twice.
    pub answers_lost: u64,
    /// Times that the door could not be reached.
    pub unreachable: u64,
    /// Seconds it took.
    pub seconds: f64,
}

/// Runs the producer to its end, or to Ctrl-C.
///
/// # Errors
/// When the agent refuses records for good, or a file is not what it should be.
pub async fn run(args: ProduceArgs) -> anyhow::Result<()> {
    let stop = Arc::new(Notify::new());
    let stopping = Arc::clone(&stop);
    let mut signals = tokio::task::JoinSet::new();
    signals.spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stopping.notify_one();
        }
    });
    let totals = produce(&args, &stop).await?;
    if args.json {
        println!("{}", serde_json::to_string(&totals)?);
    } else {
        println!("{}", totals.in_words());
    }
    Ok(())
}

impl Totals {
    fn in_words(&self) -> String {
        let Totals { acknowledged, pushed_back, answers_lost, unreachable, seconds } = self;
        format!(
            "{acknowledged} records acknowledged in {seconds:.1} s; offers made again: {pushed_back} pushed back, \
             {answers_lost} without an answer (their records may be there twice), {unreachable} not connected"
        )
    }
}

/// Runs the producer until it is done or told to stop.
///
/// # Errors
/// As [`run`].
pub async fn produce(args: &ProduceArgs, stop: &Notify) -> anyhow::Result<Totals> {
    let door = args.door()?;
    let wall = Env::real().context("open the environment")?.wall;
    let mut source = Source::open(args, wall.now()).await?;
    let mut sender = Sender {
        door,
        connection: None,
        totals: Totals::default(),
        jitter: Seed::from_u64(args.seed).stream("back-off"),
        began: Instant::now(),
        told: Instant::now(),
    };
    let work = async {
        loop {
            let left = args.count.map_or(u64::MAX, |count| count.saturating_sub(sender.totals.acknowledged));
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(args.batch);
            if most == 0 {
                return Ok(());
            }
            let Some(records) = source.next(most, sender.began.elapsed(), wall.now()).await? else { return Ok(()) };
            if records.is_empty() {
                sleep(TICK).await; // nothing is due yet
                continue;
            }
            sender.deliver(&records).await?;
        }
    };
    let end = sender_end(args);
    let done: anyhow::Result<()> = tokio::select! { biased;
        () = stop.notified() => Ok(()),
        () = end => Ok(()),
        // Cut off in an offer, its records are not counted as acknowledged; they may still be taken.
        done = work => done,
    };
    sender.totals.seconds = (sender.began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
    done.map(|()| sender.totals)
}

async fn sender_end(args: &ProduceArgs) {
    match args.seconds {
        Some(seconds) => sleep_until(Instant::now() + Duration::from_secs(seconds)).await,
        None => std::future::pending().await,
    }
}

impl ProduceArgs {
    fn door(&self) -> anyhow::Result<Door> {
        let address = match (self.http, &self.unix, self.mqtt) {
            (Some(http), _, _) => Address::Http(http),
            (_, Some(path), _) => Address::Unix(path.clone()),
            (_, _, Some(mqtt)) => Address::Mqtt(mqtt),
            _ => bail!("name a door with --http, --unix or --mqtt"),
        };
        let user = match (&self.user, &self.password_file) {
            (Some(user), Some(file)) => {
                let password = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
                Some((user.clone(), password.trim_end_matches(['\r', '\n']).to_owned()))
            }
            _ => None,
        };
        ensure!(self.bytes <= scan::MAX_BYTES, "--bytes must be at most {}", scan::MAX_BYTES);
        let (stream, client) = (self.stream.to_string(), format!("sim-produce-{}", self.producer));
        Ok(Door { address, stream, topic: self.topic.clone(), client, user })
    }
}

/// How many of the first records one offer may hold: at least one.
fn fitting(records: &[Bytes]) -> usize {
    let mut bytes = 0;
    let fit = records.iter().take_while(|record| {
        bytes += record.len() + 1;
        bytes <= MAX_OFFER_BYTES
    });
    fit.count().max(1).min(records.len())
}

/// Offers records until they are taken.
struct Sender {
    door: Door,
    connection: Option<Connection>,
    totals: Totals,
    jitter: ChaCha12Rng,
    began: Instant,
    told: Instant,
}

impl Sender {
    async fn deliver(&mut self, records: &[Bytes]) -> anyhow::Result<()> {
        let (mut left, mut wait) = (records, BACK_OFF.0);
        while !left.is_empty() {
            let (now, later) = left.split_at(fitting(left));
            let failed = match self.offer(now).await {
                Ok(()) => {
                    self.totals.acknowledged += now.len() as u64;
                    (left, wait) = (later, BACK_OFF.0);
                    continue;
                }
                Err(failed) => failed,
            };
            let mut asked = None;
            match &failed {
                Failed::Refused(_) => bail!("{} at {}: {failed}", self.door.stream, self.door.address),
                Failed::PushedBack { after, .. } => {
                    (self.totals.pushed_back, asked) = (self.totals.pushed_back + 1, *after)
                }
                Failed::Unreachable(_) => self.totals.unreachable += 1,
                Failed::NoAnswer { acknowledged, .. } => {
                    self.totals.answers_lost += 1;
                    self.totals.acknowledged += *acknowledged as u64;
                    left = left.get(*acknowledged..).unwrap_or_default();
                }
            }
            if !matches!(failed, Failed::PushedBack { .. }) {
                self.connection = None;
            }
            self.tell(Some(&failed));
            sleep(asked.unwrap_or(wait).min(BACK_OFF.1).mul_f64(self.jitter.random_range(0.7..1.3))).await;
            wait = (wait * 2).min(BACK_OFF.1);
        }
        self.tell(None);
        Ok(())
    }

    async fn offer(&mut self, records: &[Bytes]) -> Result<(), Failed> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.door.connect().await?),
        };
        connection.offer(records).await
    }

    fn tell(&mut self, failed: Option<&Failed>) {
        let quiet = if failed.is_some() { BACK_OFF.0 } else { PROGRESS };
        if self.told.elapsed() < quiet {
            return;
        }
        self.told = Instant::now();
        self.totals.seconds = self.began.elapsed().as_secs_f64();
        match failed {
            Some(failed) => eprintln!("{}; now: {failed}", self.totals.in_words()),
            None => eprintln!("{}", self.totals.in_words()),
        }
    }
}

#[cfg(test)]
mod tests;
