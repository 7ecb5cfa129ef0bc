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
mod join;
mod records;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use edgecore::{agent::Agent, facts::Facts, outbox::Outbox, status::StatusView};
use proto::{
    env::Env,
    name::Name,
    object::{NodeInfo, feature},
    token::Token,
    watch,
};
use tokio::{
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};

use self::{
    driver::Pretend,
    figures::{Ended, Latencies},
    records::{KEPT, Scanners},
};

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
/// Longest load, and bounds of the rate of an agent: a record a day, and a thousand a second.
const MAX_MINUTES: f64 = 365.0 * 24.0 * 60.0;
const MIN_PER_MINUTE: f64 = 1.0 / (24.0 * 60.0);
const MAX_PER_MINUTE: f64 = 60_000.0;

/// `sim load`. Exit code 1 when an agent ended or had no session in the end, or a record was late.
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
    prefix: Name,
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
    at_hub: AtomicU64,
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
/// When the arguments cannot be, an agent cannot join or does not connect, or in the end not all was as it must be.
pub async fn run(args: LoadArgs) -> anyhow::Result<()> {
    checked(&args)?;
    let names = join::names(&args)?;
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
    let result = drive(&args, &token, &folder, &names, stopped).await;
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
    folder: &Path,
    names: &[Name],
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let fresh = tokio::select! { biased;
        _ = stopped.wait_for(|stop| *stop) => bail!("nothing was measured yet"),
        fresh = join::join_all(args, token, folder, names) => fresh?,
    };
    let joined = begun.elapsed();
    println!("{fresh} agents joined in {:.1} s, {} had before", joined.as_secs_f64(), names.len() - fresh);

    let counts = Arc::new(Counts::default());
    let (end, ending) = watch::channel(false);
    let mut agents = JoinSet::new();
    let begun = Instant::now();
    let running = tokio::select! { biased;
        _ = stopped.wait_for(|stop| *stop) => bail!("nothing was measured yet"),
        running = start_all(names, folder, &mut agents, &ending, &counts) => running?,
    };
    println!("{} agents started in {:.1} s", running.len(), begun.elapsed().as_secs_f64());
    let connects = connect_all(&running, begun, &mut stopped).await?;
    println!("all connected: {}", connects.text());

    let measured = Instant::now();
    let mut scanners = Scanners::default();
    if args.per_minute > 0.0 {
        let every = Duration::from_secs_f64(60.0 / args.per_minute);
        for (number, agent) in running.iter().enumerate() {
            // Spread over the interval, as scanners are.
            let offset = every.mul_f64(number as f64 / running.len() as f64);
            scanners.add(agent.outbox.clone(), number, offset, every, &counts);
        }
    }
    let most = args.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    let drops = stay(&running, most, &mut stopped, &counts).await;
    let measured = measured.elapsed();
    // Whoever interrupts does not want to wait for a hub that is gone.
    scanners.end(if *stopped.borrow() { DRAIN } else { KEPT }).await;
    let connected = running.iter().filter(|agent| agent.status.is_connected()).count();
    drop(running);
    end.send_replace(true);
    let drained = timeout(DRAIN, async { while agents.join_next().await.is_some() {} }).await.is_ok();
    if !drained {
        eprintln!("some agents did not end within {DRAIN:?}");
        agents.shutdown().await;
    }
    let ended = Ended { nodes: args.nodes, joined, connects, connected, drops, measured, per_minute: args.per_minute };
    figures::print(&ended, &counts, args.json);
    match figures::wrong(&ended, &counts) {
        Some(wrong) => bail!("{wrong}"),
        None => Ok(()),
    }
}

/// Refuses what no load can be.
fn checked(args: &LoadArgs) -> anyhow::Result<()> {
    ensure!((1..=MAX_NODES).contains(&args.nodes), "--nodes is {}: it must be 1 to {MAX_NODES}", args.nodes);
    let rate = args.per_minute;
    ensure!(
        rate == 0.0 || (MIN_PER_MINUTE..=MAX_PER_MINUTE).contains(&rate),
        "--per-minute is {rate}: it must be 0, or {MIN_PER_MINUTE:.4} (a record a day) to {MAX_PER_MINUTE}"
    );
    if let Some(minutes) = args.minutes {
        ensure!(
            minutes > 0.0 && minutes <= MAX_MINUTES,
            "--minutes is {minutes}: it must be more than 0 and at most {MAX_MINUTES} (a year)"
        );
    }
    Ok(())
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

async fn start_all(
    names: &[Name],
    folder: &Path,
    agents: &mut JoinSet<()>,
    ending: &watch::Receiver<bool>,
    counts: &Arc<Counts>,
) -> anyhow::Result<Vec<Running>> {
    let mut running = vec![];
    for name in names {
        let (name, env) = (name.to_string(), Env::real()?);
        let driver = Arc::new(Pretend::new(Arc::clone(&env.wall)));
        let facts = Facts::fixed(NodeInfo {
            features: feature::ALL.map(str::to_owned).into(),
            sealing_key: None,
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
            nvidia: None,
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: LoadArgs,
    }

    pub(super) fn parse(args: &[&str]) -> Result<LoadArgs, clap::Error> {
        Cli::try_parse_from(["load", "--token", "t"].iter().chain(args)).map(|cli| cli.args)
    }

    pub(super) fn args(args: &[&str]) -> LoadArgs {
        parse(args).unwrap()
    }

    #[test]
    fn what_no_load_can_be_is_refused_before_anything_is_done() {
        let refusal = |flag: &str, value: &str| {
            let given = format!("{flag}={value}");
            checked(&args(&["--hub", "h", "--nodes=3", &given])).map_err(|error| error.to_string())
        };
        for (flag, value) in [
            ("--minutes", "1e30"),
            ("--minutes", "inf"),
            ("--minutes", "nan"),
            ("--minutes", "0"),
            ("--minutes", "-1"),
            ("--per-minute", "1e-20"),
            ("--per-minute", "nan"),
            ("--per-minute", "-1"),
            ("--per-minute", "1e9"),
        ] {
            let error = refusal(flag, value).unwrap_err();
            assert!(error.contains(flag) && error.contains("must be"), "{error}");
        }
        for (flag, value) in [("--minutes", "0.001"), ("--minutes", "525600"), ("--per-minute", "0.001")] {
            refusal(flag, value).unwrap();
        }
    }

    #[test]
    fn a_prefix_is_a_name_and_no_way_out_of_the_folder() {
        for bad in ["../../x", "a/b", "", ".."] {
            assert!(parse(&["--hub", "h", "--nodes=1", &format!("--prefix={bad}")]).is_err(), "{bad}");
        }
        let long = "x".repeat(60);
        let error = join::names(&args(&["--hub", "h", "--nodes=1", "--prefix", &long])).unwrap_err();
        assert!(error.to_string().contains("--prefix"), "{error}");
        let two: Vec<_> = join::names(&args(&["--hub", "h", "--nodes=2"])).unwrap();
        assert_eq!(two.iter().map(Name::as_str).collect::<Vec<_>>(), ["load-00001", "load-00002"]);
    }

    #[test]
    fn more_agents_than_files_is_said_with_what_to_do() {
        let error = enough_files(100_000_000).unwrap_err().to_string();
        assert!(error.contains("ulimit -n"), "{error}");
        enough_files(1).unwrap();
    }
}
