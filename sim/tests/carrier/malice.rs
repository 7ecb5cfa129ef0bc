//! A broker that is an enemy: it reads everything, alters, repeats and invents messages, and gives each of two
//! nodes the other's. Small, our own, and between the hub and both nodes.
//!
//! It speaks MQTT 3.1.1 as far as QoS 0 goes.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use cloudcore::stage::{self, Stage, free_port};
use proto::{env::Seed, object::Node};
use rand::{Rng as _, RngExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    sync::mpsc,
};

use super::house::{block_udp, goes_over, in_own_network, publish, roll_out, runs};

const SECRET: &str = "parcel-of-somebody-private";
/// Messages that it keeps to repeat them.
const KEPT: usize = 2000;

/// What somebody subscribed to, and where it is sent.
type Reader = (Vec<String>, mpsc::UnboundedSender<(String, Bytes)>);

#[derive(Default)]
struct Enemy {
    /// Who reads what.
    readers: Mutex<BTreeMap<u64, Reader>>,
    kept: Mutex<Vec<(String, Bytes)>>,
    rng: Mutex<Option<rand_chacha::ChaCha12Rng>>,
    /// Whether it does harm, beyond reading.
    harms: AtomicBool,
    seen_plain: AtomicBool,
    carried: AtomicU64,
    harmed: AtomicU64,
}

impl Enemy {
    fn publish(&self, topic: String, payload: Bytes) {
        self.carried.fetch_add(1, Ordering::Relaxed);
        for word in [SECRET, "scan-counter", "witness", "observedGeneration"] {
            if payload.windows(word.len()).any(|w| w == word.as_bytes()) {
                self.seen_plain.store(true, Ordering::Relaxed);
            }
        }
        let mut outgoing = vec![(topic.clone(), payload.clone())];
        if self.harms.load(Ordering::Relaxed) {
            self.harmed.fetch_add(1, Ordering::Relaxed);
            outgoing = self.harm(topic.clone(), &payload);
        }
        let mut kept = self.kept.lock().unwrap();
        if kept.len() < KEPT {
            kept.push((topic, payload));
        }
        drop(kept);
        for (topic, payload) in outgoing {
            for (filters, reader) in self.readers.lock().unwrap().values() {
                if filters.iter().any(|filter| fits(filter, &topic)) {
                    let _ = reader.send((topic.clone(), payload.clone()));
                }
            }
        }
    }

    fn harm(&self, topic: String, payload: &Bytes) -> Vec<(String, Bytes)> {
        let mut guard = self.rng.lock().unwrap();
        let rng = guard.get_or_insert_with(|| Seed::from_u64(7).stream("malice"));
        let swapped = match (topic.contains("/box-1/"), topic.contains("/box-2/")) {
            (true, _) => topic.replace("/box-1/", "/box-2/"),
            (_, true) => topic.replace("/box-2/", "/box-1/"),
            _ => topic.clone(),
        };
        match rng.random_range(0..24) {
            0 => {
                let mut altered = payload.to_vec();
                let at = rng.random_range(0..altered.len());
                altered[at] ^= 1 << rng.random_range(0..8);
                vec![(topic, altered.into())]
            }
            1 => {
                let kept = self.kept.lock().unwrap();
                let replayed = kept.get(rng.random_range(0..kept.len().max(1))).cloned();
                vec![Some((topic, payload.clone())), replayed].into_iter().flatten().collect()
            }
            2 => {
                let mut made_up = vec![0; rng.random_range(1..3000)];
                rng.fill_bytes(&mut made_up);
                let stranger = format!("crossdock/v1/demo/made-up-{}/up", rng.random_range(0..1_000_000));
                let mut valid = vec![1, 0, 4, 176];
                valid.extend_from_slice(&made_up);
                let valid = Bytes::from(valid);
                vec![
                    (topic.clone(), made_up.into()),
                    (stranger, valid.clone()),
                    (topic, payload.clone()),
                    (swapped, valid),
                ]
            }
            3 | 4 => vec![(swapped, payload.clone())],
            5 => vec![(swapped, payload.clone()), (topic, payload.clone())],
            6 => vec![(topic.clone(), payload.clone()), (topic, payload.clone())],
            _ => vec![(topic, payload.clone())],
        }
    }

    async fn serve(self: Arc<Enemy>, number: u64, stream: TcpStream) -> anyhow::Result<()> {
        stream.set_nodelay(true)?;
        let (mut from, mut to) = stream.into_split();
        let (sender, mut queue) = mpsc::unbounded_channel::<(String, Bytes)>();
        let (replies, mut answers) = mpsc::unbounded_channel::<Vec<u8>>();
        let writer = async move {
            loop {
                let bytes = tokio::select! {
                    biased;
                    Some(answer) = answers.recv() => answer,
                    Some((topic, payload)) = queue.recv() => publish_packet(&topic, &payload),
                    else => return Ok::<_, anyhow::Error>(()),
                };
                to.write_all(&bytes).await?;
            }
        };
        let reader = async {
            loop {
                let (kind, body) = read_packet(&mut from).await?;
                match kind >> 4 {
                    1 => replies.send(vec![0x20, 2, 0, 0])?,
                    3 => {
                        let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
                        let topic = String::from_utf8(body[2..2 + length].to_vec())?;
                        self.publish(topic, Bytes::copy_from_slice(&body[2 + length..]));
                    }
                    8 => {
                        let length = usize::from(u16::from_be_bytes([body[2], body[3]]));
                        let filter = String::from_utf8(body[4..4 + length].to_vec())?;
                        let mut readers = self.readers.lock().unwrap();
                        readers.entry(number).or_insert_with(|| (vec![], sender.clone())).0.push(filter);
                        replies.send(vec![0x90, 3, body[0], body[1], 0])?;
                    }
                    12 => replies.send(vec![0xd0, 0])?,
                    _ => return Ok::<_, anyhow::Error>(()),
                }
            }
        };
        let ended = tokio::select! { ended = reader => ended, ended = writer => ended };
        self.readers.lock().unwrap().remove(&number);
        ended
    }
}

fn fits(filter: &str, topic: &str) -> bool {
    let (filter, topic): (Vec<_>, Vec<_>) = (filter.split('/').collect(), topic.split('/').collect());
    filter.len() == topic.len() && filter.iter().zip(&topic).all(|(f, t)| *f == "+" || f == t)
}

fn publish_packet(topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut left = 2 + topic.len() + payload.len();
    let mut packet = vec![0x30];
    loop {
        let more = left > 127;
        packet.push(u8::try_from(left % 128).unwrap() | if more { 128 } else { 0 });
        left /= 128;
        if !more {
            break;
        }
    }
    packet.extend(u16::try_from(topic.len()).unwrap().to_be_bytes());
    packet.extend_from_slice(topic.as_bytes());
    packet.extend_from_slice(payload);
    packet
}

async fn read_packet(from: &mut OwnedReadHalf) -> anyhow::Result<(u8, Vec<u8>)> {
    let kind = from.read_u8().await?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = from.read_u8().await?;
        length |= usize::from(byte & 127) << shift;
        shift += 7;
        if byte & 128 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).await?;
    Ok((kind, body))
}

fn resident_bytes(pid: Option<u32>) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.unwrap())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malicious_broker_costs_speed_only() -> anyhow::Result<()> {
    if !in_own_network("malice::a_malicious_broker_costs_speed_only") {
        return Ok(());
    }
    block_udp();
    let port = free_port().context("a free port")?;
    let enemy = Arc::new(Enemy::default());
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let serving = Arc::clone(&enemy);
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(Arc::clone(&serving).serve(number, stream));
        }
    });

    let mut stage = Stage::open(None, stage::programs().await?, false)?;
    stage.init_hub().await?;
    stage.kill_hub().await?;
    let yaml = stage.path("hub/hub.yaml");
    std::fs::write(
        &yaml,
        std::fs::read_to_string(&yaml)? + &format!("brokers: [{{url: 'mqtt://127.0.0.1:{port}'}}]\n"),
    )?;
    stage.start_hub().await?;
    stage.init_repository().await?;
    for node in ["box-1", "box-2"] {
        let door = free_port().context("a free port")?;
        let link = format!(
            "[streams]\nhttp = \"127.0.0.1:{door}\"\nmqtt = \"off\"\n[[link.broker]]\nurl = \"mqtt://127.0.0.1:{port}\"\n"
        );
        std::fs::create_dir_all(stage.path(node))?;
        std::fs::write(stage.path(node).join("agent.toml"), link)?;
        std::fs::write(stage.path(node).join("door"), door.to_string())?;
        let token = stage.crossdock(&["token", "create", "--site", "hz-01", "--node", node]).await?;
        let token = token.split_whitespace().find(|w| w.starts_with("cdk1.")).context("no token")?.to_owned();
        let hub = stage.link_address()?;
        stage.run("edgecore", &["join", &hub, "--token", &token, "--data", node, "--name", node]).await?;
        stage.start_agent(node)?;
    }
    stage.wait_for_nodes("both are there", |n: &Node| goes_over(n, "mqtt")).await?;
    let before = resident_bytes(stage.hub_pid());
    enemy.harms.store(true, Ordering::Relaxed);

    // Work goes on, slower: records of each node, and a release.
    for (node, n) in [("box-1", 1), ("box-2", 2)] {
        let door = std::fs::read_to_string(stage.path(node).join("door"))?;
        let url = format!("http://127.0.0.1:{door}/v1/streams/scans");
        let lines: String = (0..40).map(|i| format!("{{\"of\":\"{SECRET}-{n}-{i}-\"}}\n")).collect();
        let file = stage.path(&format!("records-{n}"));
        std::fs::write(&file, lines)?;
        super::house::must(
            "curl",
            &[
                "-sSf",
                "-H",
                "content-type: application/x-ndjson",
                "--data-binary",
                &format!("@{}", file.display()),
                &url,
            ],
        );
    }
    let deadline = tokio::time::Instant::now() + stage::PATIENCE;
    loop {
        let text = stage.quiet("crossdock", &["streams", "query", "scans", "--limit", "0", "-o", "text"]).await?;
        let counts =
            [1, 2].map(|n| (0..40).map(|i| text.matches(&format!("{SECRET}-{n}-{i}-")).count()).collect::<Vec<_>>());
        ensure!(counts.iter().flatten().all(|c| *c <= 1), "something was counted twice: {text}");
        for line in text.lines().filter(|l| l.contains(SECRET)) {
            let n = if line.contains("box-1") { 1 } else { 2 };
            ensure!(line.contains(&format!("{SECRET}-{n}-")), "a record stands under another node's name: {line}");
        }
        if counts.iter().flatten().all(|c| *c == 1) {
            break;
        }
        ensure!(tokio::time::Instant::now() < deadline, "not all records came through: {counts:?}");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    publish(&stage, 1, 3 << 20).await?;
    roll_out(&stage, 1).await?;
    stage.wait_for_nodes("the release runs", |node| runs(node, 1)).await?;
    let grown = resident_bytes(stage.hub_pid()).saturating_sub(before);
    ensure!(grown < 64 << 20, "the hub grew by {grown} bytes");
    ensure!(!enemy.seen_plain.load(Ordering::Relaxed), "the broker read something");
    let (carried, harmed) = (enemy.carried.load(Ordering::Relaxed), enemy.harmed.load(Ordering::Relaxed));
    ensure!(harmed > 100, "it did no harm: {harmed} of {carried}");
    let nodes = stage.nodes().await?;
    ensure!(nodes.len() == 2, "somebody was made up");
    println!("{carried} messages, {harmed} of them in harmful hands; the hub grew by {} KiB", grown >> 10);
    stage.close().await
}
