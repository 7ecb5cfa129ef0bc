//! The process in which NVML is loaded, `edgecore gpu LIBRARY`, and [`NvmlProbe`], who asks it.
//!
//! A line on its standard input asks for a look, a line of JSON ([`Look`]) on its standard output answers. It stays, so
//! that it hears of Xids between two looks, and ends with its input. After a look that shows the driver broken or the
//! library replaced it ends too: the next look begins with whatever is installed then. One that does not answer in time
//! is killed; while the kernel does not let it die (a GPU that hangs its ioctl) no other is started. One that dies of
//! it is started again after a while that grows to [`MAX_REST`] looks.
//!
//! NVIDIA's library needs the C library of the box. An agent that is linked statically loads it only where that is the
//! very version that it was linked with: with another, glibc 2.36 finds no file, or dies of a signal (SIGFPE beside
//! 2.41). Boxes with GPUs take the agent that is linked dynamically; the other says so in its condition.

use std::{
    ffi::{OsStr, OsString},
    io::{self, BufRead as _, Write as _},
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus, Stdio},
    time::Duration,
};

use nix::sys::resource::{Resource, setrlimit};
use proto::env::BoxFuture;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::{
    GpuProbe,
    look::{Driver, Look, reason},
    nvml,
};

/// NVML's library, as its packages and containers name it.
pub const LIBRARY: &str = "libnvidia-ml.so.1";
/// Environment variable of the agent that names the library, where the loader does not find it and for tests.
pub const LIBRARY_VARIABLE: &str = "CROSSDOCK_NVML";
/// Traces of a driver: without any nothing is started.
const TRACES: [&str; 3] = ["/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg"];
/// How long the first look of a helper may take: a driver without its persistence daemon wakes every card.
const FIRST_LOOK: Duration = Duration::from_secs(40);
/// How long every other may.
const LOOK: Duration = Duration::from_secs(8);
/// Most looks that are left out after helpers died one after the other.
const MAX_REST: u32 = 59;
/// Longest answer.
const MAX_ANSWER_BYTES: u64 = 4 << 20;

/// Entry of the hidden subcommand; `args` follow its name.
pub fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let library = args.next().unwrap_or_else(|| LIBRARY.into());
    match serve(&library) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE, // nobody listens any more
    }
}

fn serve(library: &OsStr) -> io::Result<()> {
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0); // a library that crashes at every look would fill the disk

    let mut asked = io::stdin().lock().lines();
    if asked.next().transpose()?.is_none() {
        return Ok(());
    }
    let opened = match nvml::open(library) {
        Ok(opened) => opened,
        Err(driver) => return answer(&Look::without(driver)),
    };
    let session = nvml::Session::new(&opened);
    loop {
        let look = session.look(library);
        let is_over = !matches!(look.driver, Driver::Working { .. }) || nvml::is_replaced();
        answer(&look)?;
        if is_over || asked.next().transpose()?.is_none() {
            return Ok(());
        }
    }
}

fn answer(look: &Look) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, look)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Looks by NVML, in a process of its own.
#[derive(Debug)]
pub struct NvmlProbe {
    program: PathBuf,
    /// What to load; `None`: the system's, on a box that shows a trace of the driver.
    library: Option<PathBuf>,
    first_look: Duration,
    look: Duration,
    helper: Helper,
    /// Helpers that died one after the other, how many looks are left out for it, and what the last one came to.
    died: Option<(u32, u32, Look)>,
}

#[derive(Debug, Default)]
enum Helper {
    #[default]
    None,
    Ready(Pipes),
    /// It was killed, and is not dead yet.
    Stuck(Child),
}

#[derive(Debug)]
struct Pipes {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// It answered before.
    is_warm: bool,
}

impl Default for NvmlProbe {
    fn default() -> NvmlProbe {
        NvmlProbe::new()
    }
}

impl NvmlProbe {
    /// With the library that [`LIBRARY_VARIABLE`] names, or the system's.
    #[must_use]
    pub fn new() -> NvmlProbe {
        let library = std::env::var_os(LIBRARY_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        NvmlProbe {
            program: "/proc/self/exe".into(),
            library,
            first_look: FIRST_LOOK,
            look: LOOK,
            helper: Helper::None,
            died: None,
        }
    }

    /// With another library: whether it is there says whether there is a driver.
    #[must_use]
    pub fn with_library(self, library: PathBuf) -> NvmlProbe {
        NvmlProbe { library: Some(library), ..self }
    }

    /// Uses another program than the running one as helper.
    #[must_use]
    pub fn with_program(self, program: PathBuf) -> NvmlProbe {
        NvmlProbe { program, ..self }
    }

    /// With another patience, for the first look of a helper and for the others.
    #[must_use]
    pub fn with_patience(self, first_look: Duration, look: Duration) -> NvmlProbe {
        NvmlProbe { first_look, look, ..self }
    }

    async fn once(&mut self) -> Look {
        let mut pipes = match std::mem::take(&mut self.helper) {
            Helper::Ready(pipes) => pipes,
            Helper::Stuck(mut child) => match child.try_wait() {
                Ok(Some(_)) => return Box::pin(self.once()).await,
                _ => {
                    let look = hangs(child.id());
                    self.helper = Helper::Stuck(child);
                    return look;
                }
            },
            Helper::None => {
                if let Some((_, rest @ 1.., look)) = &mut self.died {
                    *rest -= 1;
                    return look.clone();
                }
                if let Some(why) = self.absence() {
                    return Look::without(Driver::Absent { why });
                }
                match self.start() {
                    Ok(pipes) => pipes,
                    Err(error) => {
                        let text = format!("the helper that asks NVIDIA's driver could not be started: {error}");
                        return failed(text);
                    }
                }
            }
        };
        let patience = if pipes.is_warm { self.look } else { self.first_look };
        match timeout(patience, pipes.ask()).await {
            Ok(Ok(look)) => {
                self.died = None;
                if matches!(look.driver, Driver::Working { .. }) {
                    pipes.is_warm = true;
                    self.helper = Helper::Ready(pipes);
                } // otherwise it ends by itself, and is killed with its pipes should it not
                look
            }
            // One that ended because its library was replaced had answered: a new one is asked at once.
            Ok(Err(_)) if pipes.is_warm && pipes.ended().await.is_some_and(|status| status.success()) => {
                Box::pin(self.once()).await
            }
            Ok(Err(error)) => {
                let status = pipes.ended().await;
                let how = status.map(|status| format!(" ({status})")).unwrap_or_default();
                let mend = match cfg!(target_feature = "crt-static") {
                    true => {
                        "this agent is linked statically and cannot load it with the C library of this box: \
                             install the agent that is linked dynamically"
                    }
                    false => "see dmesg, and nvidia-smi on the box",
                };
                self.died(failed(format!("NVIDIA's library ended its process{how}: {error}; {mend}")))
            }
            Err(_) => {
                let Pipes { mut child, .. } = pipes;
                if let Err(error) = child.start_kill() {
                    tracing::warn!(%error, "the helper that asks NVIDIA's driver could not be killed");
                }
                let look = hangs(child.id());
                self.helper = Helper::Stuck(child);
                look
            }
        }
    }

    /// Helpers that die are started ever more seldom.
    fn died(&mut self, look: Look) -> Look {
        let times = self.died.as_ref().map_or(0, |(times, ..)| *times).saturating_add(1);
        let rest = 2_u32.saturating_pow(times - 1).saturating_sub(1).min(MAX_REST);
        self.died = Some((times, rest, look.clone()));
        look
    }

    /// Why there is nothing to ask.
    fn absence(&self) -> Option<String> {
        match &self.library {
            Some(library) => (!library.exists()).then(|| format!("there is no {}", library.display())),
            None => {
                (!TRACES.iter().any(|trace| Path::new(trace).exists())).then(|| "no NVIDIA driver is loaded".into())
            }
        }
    }

    fn start(&self) -> io::Result<Pipes> {
        let library = self.library.clone().unwrap_or_else(|| LIBRARY.into());
        let mut command = Command::new(&self.program);
        command.arg("gpu").arg(library).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.kill_on_drop(true).spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(ask), Some(answers)) => Ok(Pipes { child, ask, answers: BufReader::new(answers), is_warm: false }),
            _ => Err(io::Error::other("it has no pipes")),
        }
    }
}

impl Pipes {
    async fn ask(&mut self) -> io::Result<Look> {
        self.ask.write_all(b"look\n").await?;
        let mut line = vec![];
        (&mut self.answers).take(MAX_ANSWER_BYTES).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&line)?)
    }

    /// How it ended, if it does by itself.
    async fn ended(&mut self) -> Option<ExitStatus> {
        timeout(Duration::from_secs(1), self.child.wait()).await.ok()?.ok()
    }
}

impl GpuProbe for NvmlProbe {
    fn look(&mut self) -> BoxFuture<'_, Look> {
        Box::pin(self.once())
    }
}

fn hangs(pid: Option<u32>) -> Look {
    let process = pid.map(|pid| format!(" (process {pid} hangs in it)")).unwrap_or_default();
    let text = format!("NVIDIA's driver does not answer{process}: see dmesg for Xids, and restart the box");
    Look::without(Driver::trouble(reason::HANGS, text))
}

fn failed(text: String) -> Look {
    Look::without(Driver::trouble(reason::FAILED, text))
}
