//! The process that stands between agent and workload: `edgecore shim FOLDER`.
//!
//! It outlives the agent. It starts the workload through [`super::exec`], writes its output to log
//! files, adopts what the workload leaves behind (child subreaper), stops all of it on SIGTERM, and
//! notes how it ended. One thread, one poll loop, as little memory as possible; it decides nothing.
//!
//! ```text
//! running --(SIGTERM, or the command ended)--> stopping: SIGTERM to every process
//! stopping --(grace is over)--> killing: SIGKILL to every process, again and again
//! stopping, killing --(no process is left)--> exit noted, done
//! ```
//!
//! The driver learns from a pipe, given as standard input, whether the start went well: `started`, or
//! what is wrong.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    io::{self, PipeReader, Read as _, Write as _},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use jiff::Timestamp;
use nix::sys::{
    prctl,
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use proto::{
    env::{SystemClock, WallClock as _},
    object::LastExit,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_setfl},
    process::{Pid, WaitOptions, kill_process, setsid, wait},
};
use tokio::time::Instant;

use super::{
    STOPPED_ON_REQUEST,
    cgroup::{Group, Layout},
    output::{DEFAULT_TOTAL_BYTES, LogFiles, Stream},
    procs,
    records::{Ended, Folder, Launch, Running},
};

/// What the driver reads when all went well.
pub const STARTED: &str = "started";
const READ_BYTES: usize = 8 << 10;
/// Reads of one stream in a row, so that a chatty workload does not keep signals waiting.
const READS_IN_A_ROW: usize = 16;
const KILL_AGAIN: Duration = Duration::from_millis(50);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Entry of the hidden subcommand; `args` follow its name.
pub fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(folder) = args.next() else { return ExitCode::from(2) };
    let folder = Folder::at(folder);
    let Ok(mut report) = take_stdin() else { return ExitCode::FAILURE };
    let result = Shim::start(&folder);
    let text = result.as_ref().err().map_or(STARTED, String::as_str);
    let _ = report.write_all(text.as_bytes()); // the agent may be gone meanwhile
    drop(report);
    match result.map(Shim::watch) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(_)) | Err(_) => ExitCode::FAILURE,
    }
}

/// Standard input becomes empty; what it was is a pipe to whoever waits for word, closed by exec.
pub(super) fn take_stdin() -> io::Result<File> {
    let pipe = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(File::from(pipe))
}

struct Shim {
    folder: Folder,
    _lock: File,
    launch: Launch,
    group: Group,
    command: i32,
    signals: SignalFd,
    files: LogFiles,
    outputs: [Output; 2],
    exit: Option<LastExit>,
    /// Set when the driver asked, which is told apart from an end of its own accord.
    asked: bool,
    kill_at: Option<Instant>,
    /// Who got SIGTERM already: each gets it once, also those that appear later.
    told: BTreeSet<i32>,
}

struct Output {
    pipe: Option<PipeReader>,
    stream: Stream,
}

impl Shim {
    fn start(folder: &Folder) -> Result<Shim, String> {
        let problem = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
        let lock = folder.lock().map_err(problem("its lock file cannot be taken"))?;
        let lock = lock.ok_or("an instance of this app is still running; stop it first")?;
        let launch = folder.launch().map_err(problem("launch.json cannot be read"))?;
        let launch = launch.ok_or("launch.json is missing")?;
        let signals = settle().map_err(problem("the shim cannot prepare itself"))?;
        let total = launch.workload.limits.logs.map_or(DEFAULT_TOTAL_BYTES, |b| b.get());
        let files = LogFiles::open(&folder.logs(), total).map_err(problem("its log folder cannot be made"))?;
        let group = Layout::detect().create(&launch.group, &launch.workload.limits).map_err(|e| e.to_string())?;
        let (command, outputs) = spawn(folder, &group).inspect_err(|_| group.remove())?;
        let shim = Shim {
            folder: folder.clone(),
            _lock: lock,
            launch,
            group,
            command,
            signals,
            files,
            outputs,
            exit: None,
            asked: false,
            kill_at: None,
            told: BTreeSet::new(),
        };
        let running = Running {
            instance: shim.launch.instance.clone(),
            pid: command,
            started_at: SystemClock.now(),
            groups: shim.group.folders().to_vec(),
        };
        // A start that is not on record is no start: the command goes with this process (pdeathsig).
        folder.store_running(&running).map_err(problem("its start cannot be recorded"))?;
        Ok(shim)
    }

    fn watch(mut self) -> io::Result<()> {
        loop {
            self.reap();
            let left = self.processes();
            if self.exit.is_some() && left.is_empty() {
                break;
            }
            if self.exit.is_some() && self.kill_at.is_none() {
                self.begin_stop(); // the command ended: whatever it left behind goes too
            }
            match self.kill_at {
                Some(at) if at <= Instant::now() => {
                    self.group.kill();
                    signal_all(&left, rustix::process::Signal::KILL);
                }
                Some(_) => {
                    let new = left.difference(&self.told).copied().collect();
                    signal_all(&new, rustix::process::Signal::TERM);
                    self.told.extend(new);
                }
                None => {}
            }
            self.sleep()?;
        }
        self.finish()
    }

    /// Until a signal, output, or time for the next look.
    fn sleep(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let timeout = self.kill_at.map(|at| match at.checked_duration_since(now) {
            Some(left) if !left.is_zero() => left.min(LOOK_AGAIN),
            _ => KILL_AGAIN,
        });
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(self.outputs.iter().filter_map(|o| o.pipe.as_ref()).map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        drop(fds);
        for output in &mut self.outputs {
            output.read(&mut self.files);
        }
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if signal.ssi_signo == Signal::SIGTERM as u32 || signal.ssi_signo == Signal::SIGINT as u32 {
                self.asked = true;
                self.begin_stop();
            }
        }
        Ok(())
    }

    /// From now on every process gets SIGTERM. A second request can only bring SIGKILL nearer.
    fn begin_stop(&mut self) {
        let grace = self.folder.grace().unwrap_or(self.launch.workload.stop_grace.get());
        let at = Instant::now() + grace.min(Duration::from_secs(24 * 3600));
        self.kill_at = Some(self.kill_at.map_or(at, |before| before.min(at)));
    }

    /// Everything alive of the workload, but for what waits to be reaped here.
    fn processes(&self) -> BTreeSet<i32> {
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        // Without the command's end no look is needed before a stop: it is alive.
        if self.exit.is_none() && self.kill_at.is_none() {
            return BTreeSet::from([self.command]);
        }
        let mut all = procs::descendants(own);
        all.extend(self.group.pids());
        all
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid.as_raw_nonzero().get() == self.command {
                self.exit = Some(LastExit {
                    code: status.exit_status(),
                    signal: status.terminating_signal(),
                    at: SystemClock.now(),
                    message: String::new(),
                });
            }
        }
    }

    fn finish(mut self) -> io::Result<()> {
        for output in &mut self.outputs {
            while output.read(&mut self.files) {}
            output.stream.finish(SystemClock.now(), &mut self.files);
        }
        if let Some(mut exit) = self.exit.take() {
            exit.message = self.describe(&exit);
            self.folder.store_ended(&Ended { instance: self.launch.instance.clone(), exit })?;
        }
        self.group.remove();
        Ok(())
    }

    fn describe(&self, exit: &LastExit) -> String {
        let [out, err] = &self.outputs;
        let how = match (exit.code, exit.signal) {
            _ if self.asked => STOPPED_ON_REQUEST.to_owned(),
            (_, Some(9)) if self.group.oom_kills() > 0 => match self.launch.workload.limits.memory {
                Some(limit) => format!("killed by the kernel: it needs more memory than its limit of {limit}"),
                None => "killed by the kernel for want of memory".to_owned(),
            },
            (Some(code), _) => format!("exited with code {code}"),
            (_, Some(signal)) => format!("killed by signal {signal}"),
            _ => "ended".to_owned(),
        };
        let last = match err.stream.last_line() {
            line if line.is_empty() => out.stream.last_line(),
            line => line,
        };
        if last.is_empty() || self.asked || exit.code == Some(0) { how } else { format!("{how}; last output: {last}") }
    }
}

impl Output {
    fn new(name: &'static str, pipe: PipeReader) -> io::Result<Output> {
        fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
        Ok(Output { pipe: Some(pipe), stream: Stream::new(name) })
    }

    /// Takes what is there; whether there may be more.
    fn read(&mut self, files: &mut LogFiles) -> bool {
        let mut buffer = [0; READ_BYTES];
        for _ in 0..READS_IN_A_ROW {
            let Some(pipe) = &mut self.pipe else { return false };
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(n) => self.stream.take(buffer.get(..n).unwrap_or_default(), now(), files),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => self.pipe = None,
            }
        }
        true
    }
}

fn now() -> Timestamp {
    SystemClock.now()
}

/// Leaves the agent's session and takes charge of what the workload leaves behind.
fn settle() -> io::Result<SignalFd> {
    let _ = setsid(); // fails only for a leader, which is what it asks for
    prctl::set_child_subreaper(true)?;
    std::env::set_current_dir("/")?;
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        mask.add(signal);
    }
    mask.thread_block()?;
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// Starts the command; returns once it runs, or says why it does not.
fn spawn(folder: &Folder, group: &Group) -> Result<(i32, [Output; 2]), String> {
    let problem = |e: io::Error| format!("its process cannot be made: {e}");
    let (mut status, status_writer) = io::pipe().map_err(problem)?;
    let (out, out_writer) = io::pipe().map_err(problem)?;
    let (err, err_writer) = io::pipe().map_err(problem)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("exec").arg(folder.path());
    for folder in group.folders() {
        command.arg("--group").arg(folder);
    }
    command.env_clear().stdin(Stdio::from(status_writer)).stdout(out_writer).stderr(err_writer);
    let mut child = command.spawn().map_err(problem)?;
    drop(command); // and with it our copies of the writing ends
    let mut failure = String::new();
    status.read_to_string(&mut failure).map_err(problem)?;
    if !failure.is_empty() {
        let _ = child.wait(); // it says why it exits; its exit code adds nothing
        return Err(failure);
    }
    let outputs = [Output::new("stdout", out).map_err(problem)?, Output::new("stderr", err).map_err(problem)?];
    Ok((i32::try_from(child.id()).unwrap_or_default(), outputs))
}

/// Sends a signal to each once. One that ended meanwhile is no error.
fn signal_all(pids: &BTreeSet<i32>, signal: rustix::process::Signal) {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    for pid in pids.iter().filter(|pid| **pid > 1 && **pid != own).filter_map(|pid| Pid::from_raw(*pid)) {
        let _ = kill_process(pid, signal);
    }
}
