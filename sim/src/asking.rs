//! A client that asks a workload's socket all the time, and what it heard: whether an update left a gap.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::AsyncReadExt as _,
    net::UnixStream,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

/// Between questions of the client.
const EVERY: Duration = Duration::from_millis(5);

/// Connects to a Unix socket, again and again, and reads what is said. Dropped, it stops.
#[derive(Debug)]
pub struct Client {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// What a client heard.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// Answers, each noted when it is another than the one before.
    pub said: Vec<String>,
    /// How many answers.
    pub answers: usize,
    /// Each time that it found nobody, or nobody said anything.
    pub missed: Vec<String>,
}

impl Client {
    /// Begins to ask.
    #[must_use]
    pub fn start(socket: PathBuf) -> Client {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let note = seen.clone();
        let task = tokio::spawn(async move {
            let mut every = interval(EVERY);
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                every.tick().await;
                let answer = ask(&socket).await;
                let mut seen = note.lock().unwrap_or_else(PoisonError::into_inner);
                match answer {
                    Ok(answer) if !answer.is_empty() => {
                        seen.answers += 1;
                        if seen.said.last() != Some(&answer) {
                            seen.said.push(answer);
                        }
                    }
                    other => seen.missed.push(format!("{other:?}")),
                }
            }
        });
        Client { seen, task }
    }

    /// What it heard since it was asked last.
    #[must_use]
    pub fn seen(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn ask(socket: &Path) -> std::io::Result<String> {
    let mut answer = String::new();
    UnixStream::connect(socket).await?.read_to_string(&mut answer).await?;
    Ok(answer)
}
