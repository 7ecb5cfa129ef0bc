//! The house bus at a real Mosquitto: what other systems of the house read there, through what befalls hub and nodes.

use std::{collections::BTreeMap, fs, process::Stdio};

use anyhow::{Context as _, ensure};
use cloudcore::stage::PATIENCE;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::mpsc,
    time::timeout,
};

use super::house::{House, NODE, in_own_network, must};

/// Somebody in the house who reads all facts. What the broker kept comes first.
struct Reader {
    _process: Child,
    lines: mpsc::UnboundedReceiver<(String, Value)>,
    /// What is so, by topic, and the topics in the order in which they came.
    now: BTreeMap<String, Value>,
    came: Vec<String>,
}

impl Reader {
    fn open(house: &House, more: &[&str]) -> anyhow::Result<Reader> {
        let (port, ca) = (house.tls.to_string(), house.file("broker.pem"));
        let mut command = Command::new("mosquitto_sub");
        command.args(["-h", "127.0.0.1", "-p", &port, "-u", "reader", "-P", "reader secret", "-q", "1", "-v"]);
        command.arg("--cafile").arg(ca).args(["-t", "crossdock/v1/demo/facts/#"]).args(more);
        let mut process = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut out = BufReader::new(process.stdout.take().context("its output")?).lines();
        let (sender, lines) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(line)) = out.next_line().await {
                let (topic, payload) = line.split_once(' ').unwrap_or((&line, ""));
                let topic = topic.strip_prefix("crossdock/v1/demo/facts/").unwrap_or(topic).to_owned();
                let _ = sender.send((topic, serde_json::from_str(payload).unwrap_or(Value::Null)));
            }
        });
        Ok(Reader { _process: process, lines, now: BTreeMap::new(), came: vec![] })
    }

    /// Reads on until a fact below a topic is so.
    async fn until(&mut self, topic: &str, is: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let so = |(at, fact): (&String, &Value)| (at.starts_with(topic) && is(fact)).then(|| fact.clone());
        let found = async {
            loop {
                if let Some(fact) = self.now.iter().find_map(so) {
                    return Ok(fact);
                }
                let (at, fact) = self.lines.recv().await.context("mosquitto_sub ended")?;
                self.came.push(at.clone());
                self.now.insert(at, fact);
            }
        };
        let found = timeout(PATIENCE, found).await;
        found.with_context(|| format!("waited for {topic}; what was said is {:?}", self.now))?
    }
}

/// What the broker keeps, by topic.
async fn kept(house: &House) -> anyhow::Result<BTreeMap<String, Value>> {
    let mut reader = Reader::open(house, &["--retained-only", "-W", "1"])?; // it ends by itself
    let mut kept = BTreeMap::new();
    while let Some((topic, fact)) = reader.lines.recv().await {
        kept.insert(topic, fact);
    }
    Ok(kept)
}

/// A hub with a bus, that misses nodes soon; and a user at the broker who may read.
async fn with_bus() -> anyhow::Result<House> {
    let mut house = House::open("").await?;
    must("mosquitto_passwd", &["-b", &house.file("users").to_string_lossy(), "reader", "reader secret"]);
    let acl = fs::read_to_string(house.file("acl"))? + "\nuser reader\ntopic read crossdock/v1/+/facts/#\n";
    fs::write(house.file("acl"), acl)?;
    house.kill_broker().await?;
    house.start_broker().await?;
    house.stage.kill_hub().await?;
    let (yaml, patience) = (house.stage.path("hub/hub.yaml"), ["heartbeat:", "unknownAfter:"]);
    let text = fs::read_to_string(&yaml)?;
    let kept = text.lines().filter(|line| !patience.iter().any(|key| line.starts_with(key)));
    let text: String = kept.map(|line| format!("{line}\n")).collect();
    let (url, password, ca) = (format!("mqtts://127.0.0.1:{}", house.tls), house.file("hub"), house.file("broker.pem"));
    let bus = format!("bus: {{url: '{url}', user: hub, passwordFile: {password:?}, ca: {ca:?}}}\n");
    fs::write(&yaml, text + "heartbeat: 1s\nunknownAfter: 3s\n" + &bus)?;
    house.stage.start_hub().await?;
    Ok(house)
}

#[tokio::test]
async fn the_house_reads_what_is_so_and_learns_when_nobody_says_it_any_more() -> anyhow::Result<()> {
    if !in_own_network("bus::the_house_reads_what_is_so_and_learns_when_nobody_says_it_any_more") {
        return Ok(());
    }
    let mut house = with_bus().await?;
    let mut reader = Reader::open(&house, &[])?;
    reader.until("hub", |fact| fact["state"] == "online").await?;
    house.write_settings("")?;
    let (code, said) = house.join().await?;
    ensure!(code == 0, "{said}");
    house.stage.start_agent(NODE)?;
    reader.until("nodes/box-1", |fact| fact["phase"] == "Ready").await?;
    house.publish(1, 1000).await?;
    house.roll_out(1).await?;
    let done = reader.until("rollouts/", |fact| fact["phase"] == "Succeeded").await?;
    ensure!(done["nodes"]["Succeeded"] == 1 && done["total"] == 1, "{done}");
    reader.until("nodes/box-1", |fact| fact["apps"]["witness"]["running"] == "1.0.0").await?;

    // The node is heard no more: so says the broker to whoever asks, and why somebody should look.
    house.stage.kill_agent(NODE).await?;
    reader.until("nodes/box-1", |fact| fact["phase"] == "Unknown").await?;
    reader.until("alerts/", |fact| fact["reason"] == "Silent" && fact["about"] == NODE).await?;

    // Nor is the hub. What it says again when it is back is what became different.
    house.stage.kill_hub().await?;
    reader.until("hub", |fact| fact["state"] == "gone").await?;
    ensure!(kept(&house).await?["nodes/box-1"]["phase"] == "Unknown");
    house.stage.start_hub().await?;
    reader.until("hub", |fact| fact["state"] == "online").await?;
    house.stage.start_agent(NODE)?;
    let since = reader.came.len();
    reader.until("nodes/box-1", |fact| fact["phase"] == "Ready").await?;
    let again = &reader.came[since..];
    ensure!(again.iter().all(|topic| topic == "nodes/box-1"), "said again though nothing changed: {again:?}");

    // A node and a rollout that are removed leave nothing behind; the broker, restarted, has all of it again.
    house.kill_broker().await?;
    house.start_broker().await?;
    let mut reader = Reader::open(&house, &[])?;
    reader.until("nodes/box-1", |fact| fact["phase"] == "Ready").await?;
    let before = kept(&house).await?;
    let rollout = before.keys().find_map(|topic| topic.strip_prefix("rollouts/")).context("no rollout is there")?;
    house.stage.kill_agent(NODE).await?;
    house.stage.crossdock(&["delete", "rollout", rollout]).await?;
    house.stage.crossdock(&["delete", "node", NODE]).await?;
    reader.until("rollouts/", Value::is_null).await?;
    reader.until("nodes/box-1", Value::is_null).await?;
    let after = kept(&house).await?;
    ensure!(after.keys().all(|topic| topic == "hub" || topic.starts_with("alerts/")), "{after:?}");
    house.stage.close().await
}
