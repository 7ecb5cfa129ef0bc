//! A hub with Postgres behind it, boxes on lines of their own, producers at every door: what can be
//! killed, started again and waited for.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use cloudcore::{
    config::HubConfig,
    stage::{self, PATIENCE, Stage, postgres::Postgres},
};
use proto::{env::Env, stream::ranges::Ranges, watch};
use sim::{
    bench::fixture::Fixture,
    produce::door::{Address, Door},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{paho::Paho, plan::Victim, producers::Producer};

/// The database that the hub writes to.
pub const DATABASE: &str = "postgres";
/// The boxes. On the first every door leads to a stream of its own, on the second all lead to one.
pub const NODES: [&str; 2] = ["box-1", "box-2"];
const DOORS: [&str; 3] = ["http", "mqtt", "socket"];
/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(5);

/// What is durable in Postgres, by node and stream, and how often that was asked.
#[derive(Debug, Clone, Default)]
struct Seen {
    looks: u64,
    durable: BTreeMap<(String, String), u64>,
}

/// All of it. Dropped, everything is killed.
pub struct Yard {
    /// Hub, agents, lines.
    pub stage: Stage,
    /// The sink.
    pub postgres: Postgres,
    /// Who sends.
    pub producers: Vec<Producer>,
    tasks: JoinSet<anyhow::Result<()>>,
    seen: watch::Receiver<Seen>,
    stop: Arc<AtomicBool>,
    env: Env,
}

/// Where the doors of a box are.
struct Doors {
    http: SocketAddr,
    mqtt: SocketAddr,
}

impl Doors {
    /// On ports that are the same again after every restart. Streams are named after doors, or there is one.
    fn set(stage: &Stage, node: &str, apart: bool) -> anyhow::Result<Doors> {
        let port = || stage::free_port().context("no port is free for a door");
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let doors = Doors { http: at(port()?), mqtt: at(port()?) };
        let mut text = format!("[streams]\nhttp = \"{}\"\nmqtt = \"{}\"\n", doors.http, doors.mqtt);
        for door in DOORS.into_iter().take(if apart { DOORS.len() } else { 1 }) {
            let class = if door == "mqtt" { "events" } else { "scans" };
            write!(text, "[[streams.stream]]\nname = \"{}\"\nclass = \"{class}\"\n", stream(door, apart))?;
        }
        fs::write(stage.path(node).join("agent.toml"), text).context("write agent.toml")?;
        Ok(doors)
    }
}

fn stream(door: &str, apart: bool) -> &str {
    if apart { door } else { "scans" }
}

impl Yard {
    /// Starts everything, and waits until the records of every producer reach Postgres.
    pub async fn open() -> anyhow::Result<Yard> {
        let _ = rustls::crypto::ring::default_provider().install_default(); // somebody else's will do as well
        let mut postgres = Postgres::make("not asked for on the socket")?;
        postgres.start()?;
        drop(postgres.client(DATABASE).await?);
        let Fixture { mut stage, .. } = Fixture::open(stage::programs().await?).await?;
        stage.kill_hub().await?;
        let mut config = HubConfig::load(&stage.path("hub"))?;
        config.streams.sink = postgres.address(DATABASE).parse().map_err(anyhow::Error::msg)?;
        config.save()?;
        stage.start_hub().await?;

        let (seen, stop) = (follow(postgres.address(DATABASE)), Arc::new(AtomicBool::new(false)));
        let (mut producers, mut tasks) = (vec![], JoinSet::new());
        for (node, apart) in NODES.into_iter().zip([true, false]) {
            stage.lay_line(node).await?;
            stage.join(node, "site").await?;
            let doors = Doors::set(&stage, node, apart)?;
            stage.start_agent(node)?;
            for name in DOORS {
                let producer = Producer::new(node, name, stream(name, apart));
                producers.push(producer.clone());
                let address = match name {
                    "http" => Address::Http(doors.http),
                    "socket" => Address::Unix(stage.path(node).join("doors/streams.sock")),
                    _ => {
                        let topic = format!("crossdock/streams/{}", producer.stream);
                        let paho = Paho::start(doors.mqtt, &topic)?;
                        tasks.spawn(producer.run(paho, Arc::clone(&stop)));
                        continue;
                    }
                };
                let (stream, client) = (producer.stream.clone(), producer.name.clone());
                let door = Door { address, stream, topic: None, client, user: None };
                tasks.spawn(producer.run(door, Arc::clone(&stop)));
            }
        }
        let mut yard = Yard { stage, postgres, producers, tasks, seen, stop, env: Env::real()? };
        yard.flows().await?;
        Ok(yard)
    }

    /// Kills or cuts it.
    pub async fn kill(&mut self, victim: Victim) -> anyhow::Result<()> {
        match victim {
            Victim::Agent(of) => self.stage.kill_agent(NODES[of]).await,
            Victim::Hub => self.stage.kill_hub().await,
            Victim::Postgres => self.postgres.kill(),
            Victim::Cut(of) => self.stage.cut_line(NODES[of]),
            Victim::Broken(of) => self.stage.break_line(NODES[of]).await,
        }
    }

    /// Starts or heals it.
    pub async fn start(&mut self, victim: Victim) -> anyhow::Result<()> {
        match victim {
            Victim::Agent(of) => self.stage.start_agent(NODES[of]),
            Victim::Hub => self.stage.start_hub().await,
            Victim::Postgres => self.postgres.start(),
            Victim::Cut(of) => self.stage.heal_line(NODES[of]),
            Victim::Broken(of) => self.stage.mend_line(NODES[of]).await,
        }
    }

    /// Records that were acknowledged so far, by producer.
    pub fn acknowledged(&self) -> Vec<u64> {
        self.producers.iter().map(|producer| producer.ledger.acknowledged()).collect()
    }

    /// Waits until so many more records are acknowledged, all producers together.
    pub async fn acknowledges(&mut self, more: u64) -> anyhow::Result<()> {
        let until = self.acknowledged().iter().sum::<u64>() + more;
        self.until("more records are acknowledged", |yard| yard.acknowledged().iter().sum::<u64>() >= until).await
    }

    /// Waits until every producer hears answers, and records of every stream come to Postgres.
    pub async fn flows(&mut self) -> anyhow::Result<()> {
        let before = self.acknowledged();
        let heard = |yard: &Yard| yard.acknowledged().iter().zip(&before).all(|(now, before)| now > before);
        self.until("every producer hears an answer", heard).await?;
        let looks = self.seen.borrow().looks;
        // The look that goes on at this moment may have begun before.
        self.until("Postgres answers", |yard| yard.seen.borrow().looks > looks + 1).await?;
        let before = self.seen.borrow().durable.clone();
        let grows = |yard: &Yard| {
            let now = yard.seen.borrow();
            let of = |durable: &BTreeMap<_, u64>, p: &Producer| {
                durable.get(&(p.node.clone(), p.stream.clone())).copied().unwrap_or_default()
            };
            yard.producers.iter().all(|producer| of(&now.durable, producer) > of(&before, producer))
        };
        self.until("records of every stream come to Postgres", grows).await
    }

    /// Lets every producer hear its last answer, and waits until nothing is left on any box.
    pub async fn drain(&mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = tokio::time::timeout(PATIENCE, self.tasks.join_next()).await? {
            ended??;
        }
        let deadline = Instant::now() + PATIENCE;
        for node in NODES {
            loop {
                let status = edgecore::status::read(&self.stage.path(node), &self.env).await?;
                let streams = status.streams.filter(|_| status.running).context("the agent does not run")?;
                if streams.lag.iter().all(|lag| lag.records == 0) {
                    break;
                }
                self.stage.check_alive()?;
                ensure!(Instant::now() < deadline, "{node} still holds records: {:?}", streams.lag);
                sleep(LOOK).await;
            }
        }
        Ok(())
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&Yard) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            self.stage.check_alive()?;
            self.postgres.check()?;
            if let Some(ended) = self.tasks.try_join_next() {
                bail!("a producer ended: {ended:?}");
            }
            if Instant::now() > deadline {
                bail!(
                    "waited {PATIENCE:?} until {what}; acknowledged {:?}, durable {:?}",
                    self.acknowledged(),
                    self.seen.borrow().durable
                );
            }
            sleep(LOOK).await;
        }
        Ok(())
    }
}

/// Follows what is durable in Postgres, over a connection of its own, until nobody listens.
fn follow(address: String) -> watch::Receiver<Seen> {
    let (sender, receiver) = watch::channel(Seen::default());
    tokio::spawn(async move {
        while !sender.is_closed() {
            if let Ok((client, connection)) = tokio_postgres::connect(&address, tokio_postgres::NoTls).await {
                tokio::spawn(connection);
                while let Ok(durable) = look(&client).await
                    && !sender.is_closed()
                {
                    sender.send_modify(|seen| (seen.looks, seen.durable) = (seen.looks + 1, durable));
                    sleep(LOOK).await;
                }
            }
            sleep(LOOK).await;
        }
    });
    receiver
}

async fn look(client: &tokio_postgres::Client) -> anyhow::Result<BTreeMap<(String, String), u64>> {
    let mut all = BTreeMap::new();
    for row in client.query("SELECT node, stream, durable FROM crossdock_states", &[]).await? {
        let durable: Ranges = serde_json::from_str(row.try_get(2)?)?;
        *all.entry((row.try_get(0)?, row.try_get(1)?)).or_default() += durable.count();
    }
    Ok(all)
}
