//! The MQTT door through a client that nobody here wrote: Debian's python3-paho-mqtt, as a process.

use std::{net::SocketAddr, process::Stdio, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use sim::{
    bench::streams::load::{Link, Target},
    produce::door::Failed,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::{Mutex, OwnedMutexGuard},
};

/// Debian's own, which has Debian's modules.
const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = include_str!("paho.py");

/// The door. One connection at a time.
#[derive(Clone)]
pub struct Paho(Arc<Mutex<Script>>);

/// The process. Dropped, it is killed; it ends with its input too.
pub struct Script {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// A connection.
pub struct Session(OwnedMutexGuard<Script>);

impl Paho {
    /// For the MQTT door at `address`.
    pub fn start(address: SocketAddr, topic: &str) -> anyhow::Result<Paho> {
        let mut command = Command::new(PYTHON);
        command.args(["-c", SCRIPT, &address.port().to_string(), topic]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("start {PYTHON}; .ci/test names the packages"))?;
        let input = child.stdin.take().context("no stdin")?;
        let output = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        Ok(Paho(Arc::new(Mutex::new(Script { _child: child, input, output }))))
    }
}

/// The script itself went wrong, which is no answer of any door.
fn broken(why: impl std::fmt::Display) -> Failed {
    Failed::Refused(format!("the paho script: {why}"))
}

impl Script {
    async fn say(&mut self, text: &[u8]) -> Result<(), Failed> {
        self.input.write_all(text).await.map_err(broken)
    }

    /// The next word, and what follows it.
    async fn hear(&mut self) -> Result<(String, String), Failed> {
        let line = self.output.next_line().await.map_err(broken)?.ok_or_else(|| broken("it ended"))?;
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        Ok((word.to_owned(), rest.to_owned()))
    }
}

impl Target for Paho {
    type Link = Session;

    async fn connect(&self) -> Result<Session, Failed> {
        let mut script = Arc::clone(&self.0).lock_owned().await;
        script.say(b"connect\n").await?;
        match script.hear().await? {
            (word, _) if word == "connected" => Ok(Session(script)),
            (word, why) if word == "unreachable" => Err(Failed::Unreachable(why)),
            other => Err(broken(format!("{other:?} instead of an answer to connect"))),
        }
    }
}

impl Link for Session {
    async fn offer(&mut self, records: &[Bytes]) -> Result<(), Failed> {
        let mut text = format!("publish {}\n", records.len()).into_bytes();
        for record in records {
            text.extend_from_slice(record);
            text.push(b'\n');
        }
        self.0.say(&text).await?;
        let mut acknowledged = 0;
        loop {
            let (word, rest) = self.0.hear().await?;
            match (word.as_str(), rest.parse::<usize>()) {
                // PUBACKs come in the order of the publishes (MQTT 3.1.1, 4.6).
                ("puback", Ok(place)) if place == acknowledged => acknowledged += 1,
                ("done", _) if acknowledged == records.len() => return Ok(()),
                ("lost", _) => return Err(Failed::NoAnswer { acknowledged, why: rest }),
                _ => return Err(broken(format!("{word} {rest} after {acknowledged} PUBACKs of {}", records.len()))),
            }
        }
    }
}
