//! `sim load`: many light agents against a real hub over real sockets.
//!
//! ```text
//! join all (some at a time) --> start all at once --> connected? --> heartbeats, records --> Ctrl-C or --minutes
//! ```
//!
//! Each is the agent that ships, with a data folder and a socket of its own and workloads that only pretend;
//! all are in one process. What it measures is the hub, and the line to it, not the boxes.

mod driver;
mod figures;

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use edgecore::{
    agent::Agent,
    facts::Facts,
    join::{JoinOptions, join},
    outbox::{AppendError, Outbox},
    status::StatusView,
};
use futures_util::StreamExt as _;
use proto::{env::Env, name::Name, object::NodeInfo, token::Token, watch};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use self::{driver::Pretend, figures::Latencies};

/// Joins that run at the same time.
const JOINS_AT_ONCE: usize = 16;
/// Open files of one agent: database, its log, lock, sockets, folders.
const FILES_EACH: u64 = 16;
/// How often connections are looked at, and the hub's having a record.
const LOOK: Duration = Duration::from_millis(10);
/// Time in which every agent must have its first session.
const CONNECT: Duration = Duration::from_secs(300);
/// Time in which agents end when asked.
const DRAIN: Duration = Duration::from_secs(20);
/// Most agents of one process.
const MAX_NODES: usize = 10_000;
/// The hub has what was handed in, or the wait for it is given up and counted.
const KEPT: Duration = Duration::from_secs(60);

/// `sim load`.
#[derive(Debug, clap::Args)]
pub struct LoadArgs {
    /// Address of the hub for agents, HOST or HOST:PORT.
    #[arg(long)]
    hub: String,
    /// Agents.
    #[arg(long)]
    nodes: usize,
    /// Join token with as many uses: crossdock token create --site load --uses N
    #[arg(long, env = "CROSSDOCK_JOIN_TOKEN", hide_env_values = true)]
    token: String,
    /// Minutes to stay connected. Default: until Ctrl-C.
    #[arg(long)]
    minutes: Option<f64>,
    /// Records a minute that each agent hands in, into stream scans.
    #[arg(long, default_value_t = 0.0)]
    per_minute: f64,
    /// Names of the agents: PREFIX-00001 and on.
    #[arg(long, default_value = "load")]
    prefix: String,
    /// Keep the agents' folders here, and use those that are there. Default: a temporary folder.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// One JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// What all agents count together.
#[derive(Debug, Default)]
struct Counts {
    records: AtomicU64,
    refused: AtomicU64,
    late: AtomicU64,
    ended: AtomicU64,
    appended: Latencies,
    kept: Latencies,
    /// The first error of each kind of work.
    errors: Mutex<Vec<String>>,
}

impl Counts {
    fn error(&self, text: String) {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        if errors.len() < 5 {
            errors.push(text);
        }
    }
}

/// An agent that runs.
struct Running {
    status: StatusView,
    outbox: Outbox,
}

/// Runs the load.
///
/// # Errors
/// When the arguments cannot be, an agent cannot join, or the agents do not connect.
pub async fn run(args: LoadArgs) -> anyhow::Result<()> {
    ensure!((1..=MAX_NODES).contains(&args.nodes), "--nodes must be 1 to {MAX_NODES}");
    ensure!(args.per_minute >= 0.0 && args.per_minute <= 60_000.0, "--per-minute must be 0 to 60000");
    ensure!(args.minutes.is_none_or(|minutes| minutes > 0.0), "--minutes must be more than 0");
    enough_files(args.nodes)?;
    let token: Token = args.token.parse().context("--token")?;
    let temporary = tempfile::Builder::new().prefix("sim-load-").tempdir().context("make a folder for the agents")?;
    let folder = args.data.clone().unwrap_or_else(|| temporary.path().to_owned());
    let interrupted = Arc::new(AtomicBool::new(false));
    let (stop, stopped) = watch::channel(false);
    let watcher = {
        let interrupted = Arc::clone(&interrupted);
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                interrupted.store(true, Ordering::Relaxed);
                stop.send_replace(true);
            }
            stop // dropped when the load is over
        })
    };
    let result = drive(&args, &token, &folder, stopped).await;
    watcher.abort();
    match result {
        // Whoever interrupts wants an end, whatever it was doing.
        Err(error) if interrupted.load(Ordering::Relaxed) => bail!("interrupted: {error:#}"),
        result => result,
    }
}

async fn drive(
    args: &LoadArgs,
    token: &Token,
    folder: &std::path::Path,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    tokio::select! { biased;
        _ = stopped.wait_for(|stop| *stop) => bail!("nothing was measured yet"),
        joined = join_all(args, token, folder) => joined?,
    }
    let joined = begun.elapsed();
    println!("{} agents joined in {:.1} s", args.nodes, joined.as_secs_f64());

    let counts = Arc::new(Counts::default());
    let (end, ending) = watch::channel(false);
    let mut agents = JoinSet::new();
    let begun = Instant::now();
    let running = tokio::select! { biased;
        _ = stopped.wait_for(|stop| *stop) => bail!("nothing was measured yet"),
        running = start_all(args, folder, &mut agents, &ending, &counts) => running?,
    };
    println!("{} agents started in {:.1} s", running.len(), begun.elapsed().as_secs_f64());
    let connects = connect_all(&running, begun, &mut stopped).await?;
    println!("all connected: {}", connects.text());

    let measured = Instant::now();
    let mut producers = JoinSet::new();
    if args.per_minute > 0.0 {
        let every = Duration::from_secs_f64(60.0 / args.per_minute);
        for (number, agent) in running.iter().enumerate() {
            // Spread over the interval, as scanners are.
            let offset = every.mul_f64(number as f64 / running.len() as f64);
            producers.spawn(produce(agent.outbox.clone(), number, offset, every, Arc::clone(&counts)));
        }
    }
    let most = args.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    let drops = stay(&running, most, &mut stopped, &counts).await;
    producers.shutdown().await;
    let measured = measured.elapsed();
    let connected = running.iter().filter(|agent| agent.status.is_connected()).count();
    drop(running);
    end.send_replace(true);
    let drained = timeout(DRAIN, async { while agents.join_next().await.is_some() {} }).await.is_ok();
    if !drained {
        eprintln!("some agents did not end within {DRAIN:?}");
        agents.shutdown().await;
    }
    figures::print(args, joined, &connects, connected, drops, measured, &counts)
}

/// Whether this process may open enough files.
fn enough_files(nodes: usize) -> anyhow::Result<()> {
    let needed = FILES_EACH * nodes as u64 + 100;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if let Some(limit) = limit.filter(|limit| *limit < needed) {
        bail!("{nodes} agents need {needed} open files, this shell allows {limit}: run `ulimit -n {needed}` first");
    }
    Ok(())
}

fn name(args: &LoadArgs, number: usize) -> String {
    format!("{}-{:05}", args.prefix, number + 1)
}

async fn join_all(args: &LoadArgs, token: &Token, folder: &std::path::Path) -> anyhow::Result<()> {
    let env = Env::real()?;
    let joins = futures_util::stream::iter(0..args.nodes).map(|number| {
        let (name, env) = (name(args, number), env.clone());
        async move {
            let data_dir = folder.join(&name);
            if data_dir.join("agent.json").exists() {
                return Ok(());
            }
            fs::create_dir_all(&data_dir).with_context(|| format!("make {}", data_dir.display()))?;
            // No doors: records are handed in here. No metrics: their load is not what is asked for.
            let settings = "[streams]\nhttp = \"off\"\nsocket = \"off\"\nmqtt = \"off\"\nmetrics-interval = \"off\"\n";
            fs::write(data_dir.join("agent.toml"), settings).context("write agent.toml")?;
            let machine_id = format!("load agent {name}");
            let options = JoinOptions {
                data_dir,
                hub: vec![args.hub.clone()],
                token: token.clone(),
                name: Some(name.clone()),
                machine_id,
            };
            join(options, &env).await.map(drop).with_context(|| {
                format!(
                    "join {name}; the token must allow {} joins: crossdock token create --uses {}",
                    args.nodes, args.nodes
                )
            })
        }
    });
    let mut joins = joins.buffer_unordered(JOINS_AT_ONCE);
    while let Some(joined) = joins.next().await {
        joined?;
    }
    Ok(())
}

async fn start_all(
    args: &LoadArgs,
    folder: &std::path::Path,
    agents: &mut JoinSet<()>,
    ending: &watch::Receiver<bool>,
    counts: &Arc<Counts>,
) -> anyhow::Result<Vec<Running>> {
    let mut running = vec![];
    for number in 0..args.nodes {
        let (name, env) = (name(args, number), Env::real()?);
        let driver = Arc::new(Pretend::new(Arc::clone(&env.wall)));
        let facts = Facts::fixed(NodeInfo {
            agent_version: proto::VERSION.into(),
            boot_id: format!("boot of {name}"),
            architecture: std::env::consts::ARCH.into(),
            os_image: "load".into(),
            kernel: String::new(),
            cpus: 1,
            memory_bytes: 1 << 30,
            hostname: name.clone(),
            addresses: vec![],
            hardware: vec![],
        });
        let agent =
            Agent::open(&folder.join(&name), env, driver, facts).await.with_context(|| format!("open {name}"))?;
        running.push(Running { status: agent.status(), outbox: agent.outbox() });
        let (mut ending, counts) = (ending.clone(), Arc::clone(counts));
        agents.spawn(async move {
            let stop = async move {
                let _ = ending.wait_for(|end| *end).await; // whoever could say it is gone: the same
            };
            if let Err(error) = agent.run(stop).await {
                counts.ended.fetch_add(1, Ordering::Relaxed);
                counts.error(format!("{name} ended: {error}"));
            }
        });
    }
    Ok(running)
}

/// Waits until all have a session; how long each took since they were started.
async fn connect_all(
    running: &[Running],
    begun: Instant,
    stopped: &mut watch::Receiver<bool>,
) -> anyhow::Result<Latencies> {
    let connects = Latencies::default();
    let mut waiting: Vec<&Running> = running.iter().collect();
    while !waiting.is_empty() {
        let before = waiting.len();
        waiting.retain(|agent| !agent.status.is_connected());
        let took = begun.elapsed();
        (waiting.len()..before).for_each(|_| connects.add(took));
        ensure!(took < CONNECT, "{} of {} agents have no session after {CONNECT:?}", waiting.len(), running.len());
        ensure!(!*stopped.borrow(), "{} of {} agents had a session", running.len() - waiting.len(), running.len());
        sleep(LOOK).await; // the condition is looked at in the loop
    }
    Ok(connects)
}

/// Stays until it is time or somebody interrupts. Returns how many sessions ended meanwhile.
async fn stay(
    running: &[Running],
    most: Option<Duration>,
    stopped: &mut watch::Receiver<bool>,
    counts: &Counts,
) -> u64 {
    let begun = Instant::now();
    let mut second = interval(Duration::from_secs(1));
    let (mut was, mut drops) = (vec![true; running.len()], 0);
    while most.is_none_or(|most| begun.elapsed() < most) {
        tokio::select! { biased;
            _ = stopped.wait_for(|stop| *stop) => break,
            _ = second.tick() => {}
        }
        for (agent, was) in running.iter().zip(&mut was) {
            let is = agent.status.is_connected();
            drops += u64::from(*was && !is);
            *was = is;
        }
        if begun.elapsed().as_secs() % 10 == 9 {
            let connected = was.iter().filter(|is| **is).count();
            println!(
                "{:>6.0} s: {connected} of {} connected, {drops} sessions lost, {} records, kept by the hub after {}",
                begun.elapsed().as_secs_f64(),
                running.len(),
                counts.records.load(Ordering::Relaxed),
                counts.kept.text()
            );
        }
    }
    drops
}

/// A scanner: one record every so often, and the time until the hub has it.
async fn produce(outbox: Outbox, node: usize, offset: Duration, every: Duration, counts: Arc<Counts>) {
    let Ok(stream) = "scans".parse::<Name>() else { return };
    sleep(offset).await; // its own moment
    let mut due = interval(every);
    due.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for number in 0_u64.. {
        due.tick().await;
        let begun = Instant::now();
        let record = format!("{{\"barcode\":\"LOAD{node:05}{number:010}\",\"node\":{node},\"number\":{number}}}");
        match outbox.append(&stream, vec![record.into()]).await {
            Ok(_) => {
                counts.records.fetch_add(1, Ordering::Relaxed);
                counts.appended.add(begun.elapsed());
            }
            Err(AppendError::Full { .. } | AppendError::Busy) => {
                counts.refused.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            Err(error) => {
                counts.refused.fetch_add(1, Ordering::Relaxed);
                counts.error(format!("agent {node}: {error}"));
                continue;
            }
        }
        // Empty again: the hub acknowledged all of it, this record too.
        let mut state = outbox.state();
        let empty = timeout(KEPT, state.wait_for(|state| state.records == 0)).await;
        match empty {
            Ok(Ok(_)) => counts.kept.add(begun.elapsed()),
            _ => drop(counts.late.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_agents_than_files_is_said_with_what_to_do() {
        let error = enough_files(100_000_000).unwrap_err().to_string();
        assert!(error.contains("ulimit -n"), "{error}");
        enough_files(1).unwrap();
    }
}
