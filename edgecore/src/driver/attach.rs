//! One command of a person in a process workload, with its pipes or at a terminal of its own. The process driver calls
//! it. The command runs as the workload's user, in its control group and with its environment; when whoever asked is
//! gone, it is killed with all of its session.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use proto::exec::{Ended, Input, MAX_PACKET_BYTES, Output, Size, Start};
use rustix::{
    fs::OFlags,
    pty::{self, OpenptFlags},
    termios::{Winsize, tcsetwinsize},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Interest, unix::AsyncFd},
    process::{Child, Command},
    sync::mpsc,
    time::timeout,
};

use super::{Attached, process::watchable, procs, records::Folder};

/// Packets that wait, either way.
const QUEUE: usize = 4;
/// Most bytes of one packet of output.
const PIECE_BYTES: usize = 16 << 10;
/// Until the output of a command that ended has ended, too: something of it may run on.
const REST: Duration = Duration::from_secs(1);
/// End of transmission, which a terminal's reader takes for the end.
const EOT: &[u8] = b"\x04";

/// Kills a session with all that it started.
struct KillSession(i32);

impl Drop for KillSession {
    fn drop(&mut self) {
        procs::kill_session(self.0);
    }
}

/// Starts a command beside what runs in `folder`.
///
/// # Errors
/// For people, when nothing runs there or the command cannot be made.
pub(super) async fn run(program: &Path, folder: &Folder, start: &Start) -> Result<Attached, String> {
    let problem = |e: io::Error| format!("the command cannot be run: {e}");
    let launch = folder.launch().map_err(problem)?.ok_or("the workload was never started")?;
    let running = folder.running(&launch).map_err(problem)?.ok_or("the workload does not run")?;
    let mut command = Command::new(program);
    command.arg("exec").arg(folder.path());
    for group in &running.groups {
        command.arg("--group").arg(group);
    }
    let terminal = start.terminal.as_ref().map(|terminal| open_terminal(terminal.size)).transpose().map_err(problem)?;
    if let Some(terminal) = &start.terminal {
        command.arg("--terminal").arg(&terminal.term);
    }
    command.arg("--").args(&start.command).env_clear().kill_on_drop(true);
    let ends = match terminal {
        Some((master, slave)) => {
            let copy = || slave.try_clone().map(Stdio::from);
            command.stdin(copy().map_err(problem)?).stdout(copy().map_err(problem)?).stderr(slave);
            Ends::Terminal(Arc::new(watchable(master, Interest::READABLE | Interest::WRITABLE).map_err(problem)?))
        }
        None => {
            let stdin = if start.stdin { Stdio::piped() } else { Stdio::null() };
            command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
            Ends::Pipes
        }
    };
    let child = command.spawn().map_err(problem)?;
    drop(command); // and with it our copies of the terminal's other end
    let ((input, typed), (shown, output)) = (mpsc::channel(QUEUE), mpsc::channel(QUEUE));
    tokio::spawn(attend(child, ends, typed, shown));
    Ok(Attached { input, output })
}

/// Where the command reads and writes.
enum Ends {
    Terminal(Arc<AsyncFd<OwnedFd>>),
    Pipes,
}

fn open_terminal(size: Size) -> io::Result<(OwnedFd, OwnedFd)> {
    let master = pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    pty::grantpt(&master)?;
    pty::unlockpt(&master)?;
    let name = pty::ptsname(&master, vec![])?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty())?;
    resize(&master, size)?;
    let flags = rustix::fs::fcntl_getfl(&master)?;
    rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
    Ok((master, slave))
}

fn resize(terminal: &OwnedFd, size: Size) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal.as_fd(), size)?)
}

/// Sees a command through to its end, or to that of whoever wanted it.
async fn attend(mut child: Child, ends: Ends, typed: mpsc::Receiver<Input>, shown: mpsc::Sender<Output>) {
    let session = child.id().and_then(|pid| i32::try_from(pid).ok()).map(KillSession);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        match &ends {
            Ends::Terminal(terminal) => feed_terminal(terminal, typed).await,
            Ends::Pipes => feed_pipe(stdin, typed).await,
        }
    };
    let drain = async {
        match &ends {
            Ends::Terminal(terminal) => drain_terminal(terminal, &shown).await,
            Ends::Pipes => {
                tokio::join!(drain_pipe(stdout, &shown, Output::Out), drain_pipe(stderr, &shown, Output::Err));
            }
        }
    };
    let (mut feed, mut drain) = (std::pin::pin!(feed), std::pin::pin!(drain));
    let (mut fed, mut drained) = (false, false);
    let ended = loop {
        // All cancel safe, or kept from turn to turn.
        tokio::select! {
            biased;
            () = shown.closed() => return, // and the session goes
            () = &mut drain, if !drained => drained = true,
            status = child.wait() => break status,
            () = &mut feed, if !fed => fed = true,
        }
    };
    if !drained {
        let _ = timeout(REST, &mut drain).await; // what goes on writing is killed
    }
    drop(session);
    let _ = shown.send(Output::Ended(how(ended))).await; // gone already is as good
}

fn how(ended: io::Result<ExitStatus>) -> Ended {
    use std::os::unix::process::ExitStatusExt as _;
    match ended {
        Ok(status) => Ended { code: status.code(), signal: status.signal(), message: String::new() },
        Err(e) => Ended { message: format!("nobody knows how it ended: {e}"), ..Ended::default() },
    }
}

/// Hands a command what is typed. A command that reads no more ends it.
pub(super) async fn feed_pipe(stdin: Option<impl AsyncWrite + Unpin>, mut typed: mpsc::Receiver<Input>) {
    let Some(mut stdin) = stdin else { return };
    while let Some(input) = typed.recv().await {
        match input {
            Input::Bytes(bytes) if stdin.write_all(&bytes).await.is_err() || stdin.flush().await.is_err() => return,
            Input::Bytes(_) | Input::Resize(_) => {}
            Input::End => break,
        }
    }
    let _ = stdin.shutdown().await; // it may be gone
}

async fn drain_pipe(
    pipe: Option<impl AsyncRead + Unpin>,
    shown: &mpsc::Sender<Output>,
    form: impl Fn(Bytes) -> Output,
) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
        let bytes = Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default());
        if shown.send(form(bytes)).await.is_err() {
            return;
        }
    }
}

async fn feed_terminal(terminal: &AsyncFd<OwnedFd>, mut typed: mpsc::Receiver<Input>) {
    while let Some(input) = typed.recv().await {
        let fed = match input {
            Input::Bytes(bytes) => write_all(terminal, &bytes).await,
            Input::End => write_all(terminal, EOT).await,
            Input::Resize(size) => resize(terminal.get_ref(), size),
        };
        if fed.is_err() {
            return;
        }
    }
}

async fn write_all(terminal: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = terminal.writable().await?;
        match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
            Ok(written) => bytes = bytes.get(written?..).unwrap_or_default(),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

/// Until the last process at the terminal is gone, which its other end tells as an error.
async fn drain_terminal(terminal: &AsyncFd<OwnedFd>, shown: &mpsc::Sender<Output>) {
    let mut buffer = vec![0; PIECE_BYTES.min(MAX_PACKET_BYTES)];
    loop {
        let Ok(mut ready) = terminal.readable().await else { return };
        match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buffer)?)) {
            Ok(Ok(n @ 1..)) => {
                let bytes = Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default());
                if shown.send(Output::Out(bytes)).await.is_err() {
                    return;
                }
            }
            Ok(_) => return,
            Err(_would_block) => {}
        }
    }
}
