//! An intake that is durable in the simplest way, the doors before it, and clients.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use data_encoding::BASE64;
use proto::{
    env::{BoxFuture, Env, Seed},
    name::Name,
    stream::{Class, Epoch, StreamKey, message::Lag},
    watch,
};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt as _,
    process::Command,
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    doors::{self, Counts, Endpoints, Intake, Reason, Refusal, Taken},
    metrics::Metrics,
    settings::Streams,
};

/// Appends to a file and flushes it before it answers.
#[derive(Debug)]
pub(super) struct FileIntake {
    path: PathBuf,
    file: Mutex<File>,
    streams: Vec<(Name, Class)>,
    next: Mutex<BTreeMap<Name, u64>>,
    refuse: Mutex<Option<Reason>>,
    /// Appends that were asked for.
    pub(super) asked: AtomicU64,
    /// Appends that were taken.
    pub(super) appends: AtomicU64,
}

impl FileIntake {
    fn new(folder: &Path, streams: Vec<(Name, Class)>) -> FileIntake {
        let path = folder.join("intake");
        let file = OpenOptions::new().append(true).create(true).open(&path).unwrap();
        FileIntake {
            path,
            file: Mutex::new(file),
            streams,
            next: Mutex::default(),
            refuse: Mutex::default(),
            asked: AtomicU64::new(0),
            appends: AtomicU64::new(0),
        }
    }

    /// From now on everything is refused, or nothing.
    pub(super) fn refuse(&self, reason: Option<Reason>) {
        *self.refuse.lock().unwrap() = reason;
    }

    /// What is on disk of a stream, as text.
    pub(super) fn records(&self, stream: &str) -> Vec<String> {
        let text = fs::read_to_string(&self.path).unwrap();
        let of_it = text.lines().filter_map(|line| line.strip_prefix(stream)?.strip_prefix(' '));
        of_it.map(|r| String::from_utf8_lossy(&BASE64.decode(r.as_bytes()).unwrap()).into_owned()).collect()
    }

    fn write(&self, stream: &Name, records: &[Bytes]) -> Result<Taken, Refusal> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if let Some(reason) = *self.refuse.lock().unwrap() {
            return Err(Refusal::new(reason, "told to refuse"));
        }
        let lines: String = records.iter().map(|r| format!("{stream} {}\n", BASE64.encode(r))).collect();
        let mut file = self.file.lock().unwrap();
        file.write_all(lines.as_bytes()).unwrap();
        file.sync_all().unwrap();
        self.appends.fetch_add(1, Ordering::Relaxed);
        let mut next = self.next.lock().unwrap();
        let next = next.entry(stream.clone()).or_default();
        let first = *next;
        *next += records.len() as u64;
        Ok(Taken { key: StreamKey { stream: stream.clone(), epoch: Epoch(7) }, range: first..*next })
    }
}

impl Intake for FileIntake {
    fn append<'a>(&'a self, stream: &'a Name, records: Vec<Bytes>) -> BoxFuture<'a, Result<Taken, Refusal>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.write(stream, &records)
        })
    }

    fn streams(&self) -> &[(Name, Class)] {
        &self.streams
    }

    fn lag(&self) -> Vec<Lag> {
        let key = |name: &Name| StreamKey { stream: name.clone(), epoch: Epoch(7) };
        let next = self.next.lock().unwrap();
        next.iter().map(|(name, next)| Lag { key: key(name), next: *next, records: *next, oldest: None }).collect()
    }
}

/// Open doors, and what is behind them.
pub(super) struct Stand {
    pub(super) folder: Arc<TempDir>,
    pub(super) intake: Arc<FileIntake>,
    pub(super) metrics: Metrics,
    pub(super) endpoints: watch::Receiver<Endpoints>,
    pub(super) counts: Arc<Counts>,
    settings: Streams,
    task: JoinHandle<()>,
}

impl Stand {
    /// All doors on ports that are free.
    pub(super) async fn open(set: impl FnOnce(&mut Streams)) -> Stand {
        let mut settings = Streams::default();
        settings.http = Some("127.0.0.1:0".parse().unwrap());
        settings.mqtt = settings.http;
        set(&mut settings);
        Stand::open_in(Arc::new(tempfile::tempdir().unwrap()), settings).await
    }

    pub(super) async fn open_in(folder: Arc<TempDir>, settings: Streams) -> Stand {
        let streams = settings.streams.iter().map(|s| (s.name.clone(), s.class)).collect();
        let intake = Arc::new(FileIntake::new(folder.path(), streams));
        let env = Env { seed: Seed::from_u64(1), ..Env::real().unwrap() };
        let node = "box-1".parse().unwrap();
        let metrics = Metrics::default();
        let behind = (intake.clone() as Arc<dyn Intake>, metrics.clone());
        let doors = doors::open(&settings, folder.path(), &node, behind, env).await;
        let (endpoints, counts) = (doors.endpoints(), doors.counts());
        let task = tokio::spawn(doors.run());
        Stand { folder, intake, metrics, endpoints, counts, settings, task }
    }

    /// Drops the doors where they are and opens them again.
    pub(super) async fn reopen(self) -> Stand {
        let (folder, settings) = (self.folder.clone(), self.settings.clone());
        self.close().await;
        Stand::open_in(folder, settings).await
    }

    pub(super) async fn close(self) {
        self.task.abort();
        self.task.await.unwrap_err();
    }

    pub(super) fn http(&self) -> std::net::SocketAddr {
        self.endpoints.borrow().http.unwrap()
    }

    pub(super) fn mqtt(&self) -> u16 {
        self.endpoints.borrow().mqtt.unwrap().port()
    }

    pub(super) fn scans(&self) -> Vec<String> {
        self.intake.records("scans")
    }
}

/// Waits for a condition; a test that waits too long has failed.
pub(super) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "still waiting: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Runs a program with `input` to its end: its exit code and what it said.
pub(super) async fn run(program: &str, args: &[&str], input: &[u8]) -> (i32, String) {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}; install it (.ci/test names the package)"));
    let mut stdin = child.stdin.take().unwrap();
    let write = async {
        stdin.write_all(input).await.ok();
        drop(stdin);
    };
    let wait = async { tokio::time::timeout(Duration::from_secs(120), child.wait_with_output()).await };
    let ((), output) = tokio::join!(write, wait);
    let output = output.unwrap_or_else(|_| panic!("{program} does not end")).unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), said)
}

/// A desk without doors.
pub(super) fn desk() -> doors::Desk {
    let folder = tempfile::tempdir().unwrap();
    let settings = Streams::default();
    let streams = settings.streams.iter().map(|s| (s.name.clone(), s.class)).collect();
    let intake = Arc::new(FileIntake::new(folder.path(), streams));
    doors::Desk::new(&settings, intake, Metrics::default(), Env { seed: Seed::from_u64(1), ..Env::real().unwrap() })
}
