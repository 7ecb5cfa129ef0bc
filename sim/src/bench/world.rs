//! `sim bench world`: what the simulator itself costs, and what a fleet of thousands costs its hub.
//!
//! | part | what is played |
//! |---|---|
//! | `day` | 100 boxes of 10 sites for 24 virtual hours: scans on a daily curve, a rollout, an upgrade, an outage |
//! | `hour` | 1,000 boxes of 10 sites for one virtual hour: a rollout, and one site that is cut |
//! | `reconnect` | 10,000 boxes, all Ready; the hub is killed and started again, and all come back |
//!
//! Oracle and recorder look on as in any run. Processor time is that of this process.

use std::{io::Write as _, time::Duration};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use proto::env::Seed;
use tokio::time::{Instant, sleep};

use super::{Figures, process, profile, seconds, warn_if_debug};
use crate::{
    plan::{self, Plan},
    run::{Options, play},
    trace::Trace,
    world::World,
};

/// Share of the boxes that must be back, in thousandths.
const BACK_PERMILLE: usize = 990;
/// How long they may take, in virtual time.
const PATIENCE: Duration = Duration::from_secs(3600);
/// How long the hub is away: longer than it takes every box to notice.
const AWAY: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(500);
/// Files that an agent has open: its lock, and its outbox for writing and for reading.
const FILES_EACH: u64 = 6;
/// Files that everything else has open.
const FILES_BESIDE: u64 = 256;
const STACK_BYTES: usize = 16 << 20;

/// `sim bench world`.
#[derive(Debug, clap::Args)]
pub struct WorldArgs {
    /// Only these parts. Default: all.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Boxes that reconnect.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    reconnect: u32,
    /// The seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// A part of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// 100 boxes for a day.
    Day,
    /// 1,000 boxes for an hour.
    Hour,
    /// All boxes reconnect.
    Reconnect,
}

/// Runs the bench.
///
/// # Errors
/// When a run does not end as it must.
pub fn run(args: &WorldArgs) -> anyhow::Result<()> {
    warn_if_debug();
    let mut figures = Figures::default();
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    if wanted(Part::Day) {
        let (cpu, lines) = played(&day()?, args.seed)?;
        figures.add("day_100_nodes_cpu_s", seconds(cpu), "processor time, 24 virtual hours (goal at most 60)");
        figures.add("day_100_nodes_trace_lines", lines, "most of them datagrams");
    }
    if wanted(Part::Hour) {
        let (cpu, lines) = played(&hour()?, args.seed)?;
        figures.add("hour_1000_nodes_cpu_s", seconds(cpu), "processor time, one virtual hour (goal at most 30)");
        figures.add("hour_1000_nodes_trace_lines", lines, "most of them datagrams");
    }
    if wanted(Part::Reconnect) {
        reconnect(args.reconnect, args.seed, &mut figures)?;
    }
    figures.add("profile", profile(), "how it was built");
    figures.print(args.json);
    Ok(())
}

/// Sites `site-01` and on, with `each` boxes on a line of kind `4g`.
fn sites(each: u32) -> String {
    (1..=10).map(|n| format!("[[site]]\nname = \"site-{n:02}\"\nnodes = {each}\nline = \"4g\"\n")).collect()
}

fn release(version: &str) -> String {
    format!("[[release]]\napp = \"scan-counter\"\nversion = \"{version}\"\nsize = \"256Ki\"\n")
}

fn day() -> anyhow::Result<Plan> {
    let text = format!(
        "about = \"a day of 100 boxes\"\nduration = \"24h\"\n{}{}{}\
         [[producer]]\nper-minute = 6\ncurve = \"daily\"\n\
         [[timeline]]\nat = \"1m\"\nrollout = \"scan-counter@1.0.0\"\n\
         [[timeline]]\nat = \"6h\"\ncut = \"site site-01\"\nfor = \"4h\"\n\
         [[timeline]]\nat = \"12h\"\nrollout = \"scan-counter@2.0.0\"\n[expect]\nin-gaps = 0\n",
        sites(10),
        release("1.0.0"),
        release("2.0.0")
    );
    Ok(plan::parse("day", "the bench", &text, None)?)
}

fn hour() -> anyhow::Result<Plan> {
    let text = format!(
        "about = \"an hour of 1,000 boxes\"\nduration = \"1h\"\n{}{}\
         [[timeline]]\nat = \"1m\"\nrollout = \"scan-counter@1.0.0\"\n\
         [[timeline]]\nat = \"20m\"\ncut = \"site site-01\"\nfor = \"10m\"\n",
        sites(100),
        release("1.0.0")
    );
    Ok(plan::parse("hour", "the bench", &text, None)?)
}

/// Plays a plan; returns the processor time that it took, and the lines of its trace.
fn played(plan: &Plan, seed: u64) -> anyhow::Result<(Duration, u64)> {
    eprintln!("{}, seed {seed}", plan.about);
    let before = own_cpu()?;
    let record = play(plan, seed, &Options::default())?;
    Ok((own_cpu()?.saturating_sub(before), record.trace_lines))
}

fn own_cpu() -> anyhow::Result<Duration> {
    process::cpu(std::process::id())
}

fn reconnect(boxes: u32, seed: u64, figures: &mut Figures) -> anyhow::Result<()> {
    let thread = std::thread::Builder::new().name("reconnect".into()).stack_size(STACK_BYTES).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        runtime.block_on(come_back(boxes, seed))
    })?;
    let back = thread.join().map_err(|_| anyhow::anyhow!("it panicked; see above"))??;
    figures.add("reconnect_10000_rss_bytes", back.rss_bytes, "VmHWM of this process: hub, network and all agents");
    figures.add("reconnect_10000_virtual_s", seconds(back.took), "hub's start to 99 % Ready");
    figures.add("reconnect_10000_cpu_s", seconds(back.cpu), "processor time of that, hub and agents together");
    figures.add("reconnect_nodes", boxes, "boxes that reconnected");
    figures.add("reconnect_bytes_per_node", back.rss_bytes / u64::from(boxes), "memory by boxes");
    figures.add("reconnect_join_cpu_s", seconds(back.joined), "processor time until all were Ready the first time");
    Ok(())
}

/// How a reconnection of all boxes went.
struct Back {
    took: Duration,
    cpu: Duration,
    joined: Duration,
    rss_bytes: u64,
}

async fn come_back(boxes: u32, seed: u64) -> anyhow::Result<Back> {
    eprintln!("{boxes} boxes reconnect, seed {seed}");
    enough_files(boxes)?;
    let before = own_cpu()?;
    let mut world = World::new(Seed::from_u64(seed), Trace::new(None)?).await?;
    world.start_hub().await?;
    let text = format!(
        "about = \"all reconnect\"\nduration = \"1h\"\n[[site]]\nname = \"site\"\nnodes = {boxes}\nline = \"4g\"\n\
         settings = {{ quota = \"2Mi\" }}\n" // their disks are in memory
    );
    let plan = plan::parse("reconnect", "the bench", &text, None)?;
    for site in &plan.sites {
        world.add_site(site).await?;
    }
    for name in world.boxes() {
        world.start_agent(name.as_ref()).await?;
    }
    until_back(&world, 1000).await.context("before the hub is killed")?;
    let joined = own_cpu()?.saturating_sub(before);
    world.crash_hub().await;
    sleep(AWAY).await; // every agent notices, and backs off
    let (before, begin) = (own_cpu()?, Instant::now());
    world.start_hub().await?;
    until_back(&world, BACK_PERMILLE).await.context("after the hub was started again")?;
    let (took, cpu) = (begin.elapsed(), own_cpu()?.saturating_sub(before));
    let rss_bytes = process::peak_rss(std::process::id())?;
    world.end().await?;
    Ok(Back { took, cpu, joined, rss_bytes })
}

/// Says before an hour of work what would be missing at its end.
fn enough_files(boxes: u32) -> anyhow::Result<()> {
    let needed = u64::from(boxes) * FILES_EACH + FILES_BESIDE;
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    ensure!(
        needed <= most,
        "{boxes} boxes have {needed} files open, a process may have {most} here: raise the limit (ulimit -Hn), or ask for \
         fewer with --reconnect"
    );
    Ok(())
}

/// Waits until so many thousandths of the boxes have a session, and the hub calls them Ready.
async fn until_back(world: &World, permille: usize) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        let seen = world.observe().await?;
        let back = seen.nodes.values().filter(|node| node.ready == Some(true) && node.connected).count();
        if back * 1000 >= seen.nodes.len() * permille {
            eprintln!("\r{back} of {} Ready after {:.1} virtual s", seen.nodes.len(), begin.elapsed().as_secs_f64());
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "only {back} of {} boxes are Ready after {PATIENCE:?}", seen.nodes.len());
        eprint!("\r{back} of {} Ready", seen.nodes.len());
        let _ = std::io::stderr().flush();
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plans_are_plans() {
        assert_eq!(day().unwrap().sites.iter().map(|site| site.nodes.len()).sum::<usize>(), 100);
        assert_eq!(hour().unwrap().sites.iter().map(|site| site.nodes.len()).sum::<usize>(), 1000);
    }

    #[test]
    fn a_few_boxes_come_back() {
        let mut figures = Figures::default();
        reconnect(3, 1, &mut figures).unwrap();
        assert!(
            figures
                .rows
                .iter()
                .any(|(key, value, _)| *key == "reconnect_10000_virtual_s" && value.as_f64() > Some(0.0))
        );
    }
}
