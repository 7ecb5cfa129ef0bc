//! What happened in a run: ordered lines with virtual time, and one digest over them all.
//!
//! Network, world and scenarios write here. Two runs of one seed must end with the same digest; the
//! file of each, where one was asked for, shows the first line that differs. A line holds sizes, times
//! and decisions, never key material: the keys of hub, releases and nodes come from the seed, but those of
//! each TLS handshake are fresh, and nothing may depend on them.

use std::{
    collections::VecDeque,
    fmt::{self, Write as _},
    fs,
    io::{self, Write as _},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

/// Handle of a trace; clones write to the same one.
#[derive(Clone)]
pub struct Trace {
    state: Arc<Mutex<State>>,
    start: Instant,
}

struct State {
    digest: Sha256,
    /// The line that is being written: kept, since there are millions.
    line: String,
    lines: u64,
    file: Option<io::BufWriter<fs::File>>,
    lost: Option<io::Error>,
    /// The last lines that are not about single datagrams.
    last: VecDeque<String>,
    /// A folder of this run alone, which no line may name.
    folder: Option<String>,
}

/// Lines that are remembered for the report of a failure.
const REMEMBERED: usize = 1_000;

impl Trace {
    /// A trace that begins now, written to `file` where one is given.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn new(file: Option<&Path>) -> io::Result<Trace> {
        let file = file.map(fs::File::create).transpose()?.map(io::BufWriter::new);
        let state = State {
            digest: Sha256::new(),
            line: String::new(),
            lines: 0,
            file,
            lost: None,
            last: VecDeque::new(),
            folder: None,
        };
        Ok(Trace { state: Arc::new(Mutex::new(state)), start: Instant::now() })
    }

    /// From now on `folder` stands as `~`: its name is another in every run.
    pub fn hide(&self, folder: &Path) {
        self.lock().folder = Some(folder.display().to_string());
    }

    /// Adds a line: the virtual time, one word that says whose it is, and text.
    pub fn line(&self, source: &str, text: fmt::Arguments<'_>) {
        let at = Instant::now().saturating_duration_since(self.start);
        let mut lock = self.lock();
        let state = &mut *lock;
        state.line.clear();
        let line = &mut state.line;
        let _ = writeln!(line, "{:>7}.{:03} {source} {text}", at.as_secs(), at.subsec_millis()); // cannot fail
        if source != "net"
            && let Some(folder) = &state.folder
            && line.contains(folder.as_str())
        {
            *line = line.replace(folder.as_str(), "~");
        }
        state.digest.update(line.as_bytes());
        state.lines += 1;
        if let Some(file) = &mut state.file
            && let Err(error) = file.write_all(line.as_bytes())
        {
            state.file = None;
            state.lost = Some(error);
        }
        if source != "net" {
            if state.last.len() >= REMEMBERED {
                state.last.pop_front();
            }
            state.last.push_back(line.clone());
        }
    }

    /// The last lines that hold one of the names, or of everybody where none is given; datagrams are left out.
    #[must_use]
    pub fn tail(&self, names: &[String], most: usize) -> Vec<String> {
        let state = self.lock();
        let wanted = |line: &&String| names.is_empty() || names.iter().any(|name| line.contains(name.as_str()));
        let mut lines: Vec<String> =
            state.last.iter().rev().filter(wanted).take(most).map(|line| line.trim_end().to_owned()).collect();
        lines.reverse();
        lines
    }

    /// Lines so far.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.lock().lines
    }

    /// SHA-256 over all lines so far, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> String {
        HEXLOWER.encode(&self.lock().digest.clone().finalize())
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// When a line could not be written to the file, now or before.
    pub fn flush(&self) -> io::Result<()> {
        let mut state = self.lock();
        if let Some(error) = state.lost.take() {
            return Err(error);
        }
        state.file.as_mut().map_or(Ok(()), io::Write::flush)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trace({} lines)", self.lines())
    }
}
