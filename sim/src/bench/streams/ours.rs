//! Crossdock itself: hub and agents as processes, each part with a hub of its own.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context as _, bail};
use cloudcore::stage::{self, PATIENCE, Programs, Stage};
use jiff::Timestamp;
use proto::{
    env::{Env, Seed},
    object::NodePhase,
};
use tokio::time::{Instant, sleep};

use super::{
    super::{api::Api, fixture::Fixture, process},
    hub::{self, STREAM},
    load::{Ledger, Load, Target, Verdict},
};
use crate::produce::{
    door::{Address, Connection, Door, Failed},
    scan::{Scans, number_in},
};

/// What the agents of the bench are told. The quota is out of the way: the bench's records all fit.
const SETTINGS: &str = "[streams]\nhttp = \"127.0.0.1:0\"\nmqtt = \"off\"\nquota = \"64Gi\"\ndisk-share-percent = 90\n";
/// Where an agent writes down the ports of its doors.
const PORTS: &str = "streams.json";
/// Where it keeps records, in its folder.
const OUTBOX: &str = "outbox";
const PERIOD: Duration = Duration::from_millis(50);
/// Producer of the records that are sent while a backlog drains; offers a second, and for how long at least.
const LIVE: &str = "live";
const LIVE_OFFERS_PER_S: u32 = 20;
const LIVE_LEAST: Duration = Duration::from_secs(2);
/// Nothing new for so long: what is missing is lost.
const QUIET: Duration = Duration::from_secs(20);

/// The most memory that was resident, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Peaks {
    /// Of an agent.
    pub agent: u64,
    /// Of a hub.
    pub hub: u64,
}

impl Peaks {
    /// Takes the greater of each.
    pub fn add(&mut self, other: Peaks) {
        (self.agent, self.hub) = (self.agent.max(other.agent), self.hub.max(other.hub));
    }
}

/// Processor time: of the producers (this process), of all agents together, of the hub.
#[derive(Debug, Clone, Copy)]
struct Cpu([Duration; 3]);

impl Cpu {
    /// Says where the time of so many records went, since `before`.
    fn tell(self, before: Cpu, took: Duration, records: u64) {
        let each = |now: Duration, then: Duration| (now - then).as_secs_f64() * 1e6 / records as f64;
        let ([p, a, h], [p0, a0, h0]) = (self.0, before.0);
        let (producers, agents, hub) = (each(p, p0), each(a, a0), each(h, h0));
        eprintln!(
            "  {:.2} s; processor time for each record: producers {producers:.2} us, agents {agents:.2} us, hub {hub:.2} us",
            took.as_secs_f64()
        );
    }
}

/// The programs that are measured.
#[derive(Debug)]
pub struct Bench {
    programs: Programs,
}

impl Bench {
    /// Builds them where that is needed; with the agent that ships, or the one beside this program.
    ///
    /// # Errors
    /// When they cannot be built.
    pub async fn with(plain_agent: bool) -> anyhow::Result<Bench> {
        let programs = if plain_agent { stage::programs().await? } else { stage::shipped_programs().await? };
        Ok(Bench { programs })
    }

    /// The profile that the agent was built with.
    #[must_use]
    pub fn agent_profile(&self) -> String {
        let folder = self.programs.path("edgecore").parent().and_then(Path::file_name).map(|name| name.to_owned());
        folder.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Records a second from producers at `agents` agents to the hub's sink.
    ///
    /// # Errors
    /// When a program does not do what it should.
    pub async fn throughput(&self, load: &Load, agents: usize, records: u64, peaks: &mut Peaks) -> anyhow::Result<f64> {
        let ours = Ours::open(self, agents).await?;
        let work = async {
            let (ledger, before, begin) = (Ledger::default(), ours.cpu()?, Instant::now());
            load.run(&ours.doors, records, &ledger).await?;
            hub::reached(&ours.api, records).await?;
            let took = begin.elapsed();
            ours.cpu()?.tell(before, took, records);
            anyhow::Ok(records as f64 / took.as_secs_f64())
        };
        let per_s = work.await.with_context(|| ours.last_lines())?;
        ours.close(peaks).await?;
        Ok(per_s)
    }

    /// Kills the agent, then the hub, then both, while records flow.
    ///
    /// # Errors
    /// When a program does not do what it should.
    pub async fn kills(&self, load: &Load, records: u64, peaks: &mut Peaks) -> anyhow::Result<Killed> {
        let mut ours = Ours::open(self, 1).await?;
        let (ledger, doors) = (Ledger::default(), ours.doors.clone());
        let work = async {
            let kills = async {
                for (part, (agent, hub)) in (1..).zip([(true, false), (false, true), (true, true)]) {
                    ledger.reached(records * part / 5).await;
                    ours.kill(agent, hub).await?;
                }
                anyhow::Ok(())
            };
            tokio::try_join!(load.run(&doors, records, &ledger), kills)?;
            settled(&ours, &ledger).await
        };
        let killed = work.await;
        let killed = killed.with_context(|| ours.last_lines())?;
        ours.close(peaks).await?;
        Ok(killed)
    }

    /// Fills an outbox while the hub is away, and lets it drain while new records come.
    ///
    /// # Errors
    /// When a program does not do what it should.
    pub async fn drain(&self, load: &Load, backlog: u64, real_rate: u32, peaks: &mut Peaks) -> anyhow::Result<Drained> {
        let mut ours = Ours::open(self, 1).await?;
        let mut drained =
            fill_and_drain(&mut ours, load, backlog, real_rate).await.with_context(|| ours.last_lines())?;
        ours.close(&mut drained.peaks).await?;
        peaks.add(drained.peaks);
        Ok(drained)
    }
}

/// A hub and its agents.
#[derive(Debug)]
struct Ours {
    stage: Stage,
    api: Api,
    nodes: Vec<String>,
    doors: Vec<AgentDoor>,
    peaks: Peaks,
}

impl Ours {
    /// Starts a hub and so many agents, and waits until they are connected and take records.
    async fn open(bench: &Bench, agents: usize) -> anyhow::Result<Ours> {
        let Fixture { mut stage, api, .. } = Fixture::open(bench.programs.clone()).await?;
        let nodes: Vec<String> = (0..agents).map(|number| format!("box-{number:02}")).collect();
        for node in &nodes {
            stage.join(node, "bench").await?;
            fs::write(stage.path(node).join("agent.toml"), SETTINGS).context("write agent.toml")?;
            stage.start_agent(node)?;
        }
        stage.wait_for_nodes("all agents are Ready", |node| node.status.phase == NodePhase::Ready).await?;
        let mut doors = vec![];
        for node in &nodes {
            let door = AgentDoor { data: stage.path(node) };
            door.opens().await?;
            doors.push(door);
        }
        Ok(Ours { stage, api, nodes, doors, peaks: Peaks::default() })
    }

    /// Takes note of the processes' peaks; before each kill, and at the end.
    fn note_peaks(&mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.stage.hub_pid() {
            self.peaks.hub = self.peaks.hub.max(process::peak_rss(pid)?);
        }
        for pid in self.nodes.iter().filter_map(|node| self.stage.agent_pid(node)) {
            self.peaks.agent = self.peaks.agent.max(process::peak_rss(pid)?);
        }
        Ok(())
    }

    fn cpu(&self) -> anyhow::Result<Cpu> {
        let agents = self.nodes.iter().filter_map(|node| self.stage.agent_pid(node)).map(process::cpu);
        let hub = self.stage.hub_pid().map_or(Ok(Duration::ZERO), process::cpu)?;
        Ok(Cpu([process::cpu(std::process::id())?, agents.sum::<anyhow::Result<Duration>>()?, hub]))
    }

    async fn kill(&mut self, agent: bool, hub: bool) -> anyhow::Result<()> {
        self.note_peaks()?;
        for node in self.nodes.iter().filter(|_| agent) {
            self.stage.kill_agent(node).await?;
        }
        if hub {
            self.stage.kill_hub().await?;
            self.stage.start_hub().await?;
        }
        for node in self.nodes.iter().filter(|_| agent) {
            self.stage.start_agent(node)?;
        }
        Ok(())
    }

    /// Stops everything, and says what it took.
    async fn close(mut self, peaks: &mut Peaks) -> anyhow::Result<()> {
        self.note_peaks()?;
        peaks.add(self.peaks);
        self.stage.close().await
    }

    /// What the programs wrote last, for an error.
    fn last_lines(&self) -> String {
        let tail = |name: &str| {
            let text = fs::read_to_string(self.stage.path(&format!("{name}.log"))).unwrap_or_default();
            let last: Vec<&str> = text.lines().rev().take(5).collect();
            format!("{name} wrote, newest first: {}", last.join(" | "))
        };
        let nodes = self.nodes.first().map(|node| tail(node)).unwrap_or_default();
        format!("{}; {nodes}", tail("hub"))
    }
}

/// The HTTP door of an agent, looked up each time: after a restart it may be another port.
#[derive(Debug, Clone)]
struct AgentDoor {
    data: PathBuf,
}

impl Target for AgentDoor {
    type Link = Connection;
    async fn connect(&self) -> Result<Connection, Failed> {
        let ports = fs::read(self.data.join(PORTS)).map_err(|e| Failed::Unreachable(format!("{PORTS}: {e}")))?;
        let http = http_address(&ports);
        let http = http.ok_or_else(|| Failed::Unreachable(format!("{PORTS} names no HTTP door yet")))?;
        let (address, stream) = (Address::Http(http), STREAM.to_owned());
        Door { address, stream, topic: None, client: "bench".to_owned(), user: None }.connect().await
    }
}

impl AgentDoor {
    /// Bytes of the outbox's files.
    fn outbox_bytes(&self) -> anyhow::Result<u64> {
        let files = fs::read_dir(self.data.join(OUTBOX)).context("look into the outbox")?;
        files.map(|file| Ok(file?.metadata()?.len())).sum()
    }

    async fn opens(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Err(failed) = self.connect().await {
            if Instant::now() > deadline {
                return Err(failed).with_context(|| format!("the agent in {} opened no door", self.data.display()));
            }
            sleep(PERIOD).await;
        }
        Ok(())
    }
}

/// `http` of the file: an address, or a port of loopback.
fn http_address(text: &[u8]) -> Option<SocketAddr> {
    let ports: serde_json::Value = serde_json::from_slice(text).ok()?;
    let http = ports.get("http")?;
    match http.as_str() {
        Some(address) => address.parse().ok(),
        None => Some(SocketAddr::from(([127, 0, 0, 1], u16::try_from(http.as_u64()?).ok()?))),
    }
}

/// What became of the records while agent and hub were killed.
#[derive(Debug)]
pub struct Killed {
    /// Records against what the producer was told.
    pub verdict: Verdict,
    /// Records that the hub shows as lost.
    pub in_gaps: u64,
    /// Sent and never answered.
    pub unanswered: u64,
}

/// Waits until all that was acknowledged is in the sink, or nothing more comes.
async fn settled(ours: &Ours, ledger: &Ledger) -> anyhow::Result<Killed> {
    let (deadline, mut before, mut since) = (Instant::now() + 2 * PATIENCE, 0, Instant::now());
    loop {
        let arrived = hub::arrived(&ours.api).await?;
        if arrived.records != before {
            (before, since) = (arrived.records, Instant::now());
        }
        let quiet = since.elapsed() > QUIET;
        if quiet || arrived.records >= ledger.acknowledged() {
            let verdict = ledger.judge(hub::numbers(&ours.stage).await?);
            if quiet || verdict.lost == 0 {
                return Ok(Killed { verdict, in_gaps: arrived.lost, unanswered: ledger.unanswered() });
            }
        }
        if Instant::now() > deadline {
            bail!("records still come, long after the last was sent: {arrived:?}");
        }
        sleep(PERIOD).await;
    }
}

/// How a backlog drained.
#[derive(Debug)]
pub struct Drained {
    /// Records a second into the outbox while the hub was away.
    pub filled_per_s: f64,
    /// Records a second from the first of the backlog at the hub to the last.
    pub per_s: f64,
    /// From the hub's start to the first record of the backlog.
    pub until_first: Duration,
    /// Producer to reader, of records that were sent meanwhile; sorted.
    pub live: Vec<Duration>,
    /// Bytes of the outbox's files with the whole backlog.
    pub outbox_bytes: u64,
    /// The most memory of this agent and hub.
    pub peaks: Peaks,
}

/// Records that were sent live: when, until a reader at the hub has seen them; then how long that took.
#[derive(Debug, Default)]
struct Live {
    sent: BTreeMap<u64, Instant>,
    lags: Vec<Duration>,
}

async fn fill_and_drain(ours: &mut Ours, load: &Load, backlog: u64, real_rate: u32) -> anyhow::Result<Drained> {
    let ledger = Ledger::default();
    load.run(&ours.doors, 1, &ledger).await?; // the whole way is open
    hub::reached(&ours.api, 1).await?;
    ours.note_peaks()?;
    ours.stage.kill_hub().await?;
    let begin = Instant::now();
    load.run(&ours.doors, backlog, &ledger).await?;
    let filled_per_s = backlog as f64 / begin.elapsed().as_secs_f64();
    let door = ours.doors.first().context("there is no agent")?;
    let outbox_bytes = door.outbox_bytes()?;
    eprintln!("  {backlog} records wait at the agent, {} MB", outbox_bytes / 1_000_000);

    let begin = Instant::now();
    ours.stage.start_hub().await?;
    let first = hub::reached(&ours.api, 2).await?;
    let (until_first, before, draining) = (begin.elapsed(), ours.cpu()?, Instant::now());
    let live = Mutex::new(Live::default());
    let from = Env::real().context("open the environment")?.wall.now();
    let drained = async {
        // What a reader has seen of the live records is at the hub besides the backlog.
        hub::reached_all(&ours.api, || Ok(backlog + 1 + lock(&live)?.lags.len() as u64)).await?;
        let took = draining.elapsed();
        ours.cpu()?.tell(before, took, backlog);
        sleep(LIVE_LEAST.saturating_sub(took)).await;
        anyhow::Ok(took)
    };
    // The arms borrow `live`, and whatever is cut off is an offer or a look at the hub: nobody waits for it.
    let took = tokio::select! { biased;
        took = drained => took?,
        failed = send_live(door, real_rate, &live) => return failed.map(|never| match never {}),
        failed = see_live(&ours.api, from, &live) => return failed.map(|never| match never {}),
    };
    let mut live = live.into_inner().map_err(|_| anyhow::anyhow!("a task ended badly"))?;
    // Those that were not seen by then have waited for so long already.
    live.lags.extend(live.sent.values().map(Instant::elapsed));
    live.lags.sort_unstable();
    let per_s = (backlog + 1).saturating_sub(first.records) as f64 / took.as_secs_f64().max(0.001);
    Ok(Drained { filled_per_s, per_s, until_first, live: live.lags, outbox_bytes, peaks: Peaks::default() })
}

fn lock(live: &Mutex<Live>) -> anyhow::Result<std::sync::MutexGuard<'_, Live>> {
    live.lock().map_err(|_| anyhow::anyhow!("a task ended badly"))
}

/// The real producer: so many records a second, a few at a time.
async fn send_live(door: &AgentDoor, rate: u32, live: &Mutex<Live>) -> anyhow::Result<std::convert::Infallible> {
    let mut scans = Scans::new(&Seed::from_u64(1), LIVE, 4, 300);
    let mut connection = door.connect().await?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / LIVE_OFFERS_PER_S);
    let wall = Env::real().context("open the environment")?.wall;
    for tick in 0_u64.. {
        ticks.tick().await;
        let due = |tick: u64| tick * u64::from(rate) / u64::from(LIVE_OFFERS_PER_S);
        let (numbers, now) = (due(tick)..due(tick + 1), Instant::now());
        let offer: Vec<_> = numbers.clone().map(|number| scans.next(number, wall.now())).collect();
        lock(live)?.sent.extend(numbers.map(|number| (number, now)));
        connection.offer(&offer).await.context("send live records")?;
    }
    bail!("all numbers are used up")
}

/// Follows the stream at the hub, from now on: what waited in the backlog was taken earlier.
async fn see_live(api: &Api, from: Timestamp, live: &Mutex<Live>) -> anyhow::Result<std::convert::Infallible> {
    let path = format!("/streams/{STREAM}/records?follow=true&tail=0&from={from}");
    let (mut answer, mut buffer) = (api.get(&path).await?, Vec::new());
    while let Some(chunk) = answer.chunk().await? {
        buffer.extend_from_slice(&chunk);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let Some(number) = number_in(&line, LIVE) else { continue };
            let mut live = lock(live)?;
            if let Some(sent) = live.sent.remove(&number) {
                live.lags.push(sent.elapsed());
            }
        }
    }
    bail!("the hub ended the stream that was followed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_door_is_read_from_what_the_agent_wrote() {
        let expected = "127.0.0.1:7480".parse().ok();
        for text in [r#"{"http":"127.0.0.1:7480","mqtt":null}"#, r#"{"http":7480}"#] {
            assert_eq!(http_address(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(http_address(b"{}"), None);
    }
}
