//! One run of a hook of a release. The process driver calls it.
//!
//! A hook runs beside whatever runs of its app, and often before its own workload ever ran. So it has an instance
//! of its own: a folder `hook` below the app's with a `launch.json`, there for as long as it runs, a control group
//! with its release's limits, and a mark in its environment, by all of which nothing of it is left behind.

use std::{
    fs, io,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use proto::{
    durable,
    release::{Hook, PUT_OFF},
};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::pipe,
    process::Command,
    time::{Instant, timeout, timeout_at},
};

use super::{
    HookOutcome, InstanceSpec,
    cgroup::{Group, Layout},
    probe::KillGroup,
    process::{ProcessDriver, Remains, chain},
    records::{Folder, Launch},
};

/// Output that is kept to find its last line in.
const KEPT_BYTES: usize = 2048;
/// Most of that line that is shown.
const SHOWN_CHARS: usize = 300;
/// Until the output of a hook that was killed has ended.
const REST: Duration = Duration::from_secs(1);

impl ProcessDriver {
    /// Runs a hook, and leaves nothing of it behind.
    pub(super) async fn try_hook(&self, spec: &InstanceSpec, hook: &Hook) -> Result<HookOutcome, String> {
        let folder = self.folder(&spec.app);
        self.end_hook(&folder).await?; // of an agent before
        let launch = self.launch_for(spec);
        // Of an app, whichever of its instances runs.
        let launch = Launch { group: format!("{}-hook", self.group(spec.app.as_str())), ..launch };
        let prepared = self.on(&folder.hook(), move |folder| prepare(folder, &launch)).await;
        let outcome = match prepared {
            Ok(prepared) => run(&self.program, prepared, hook).await,
            Err(e) => HookOutcome::Failure(format!("it cannot be run: {}", chain(&e))),
        };
        self.end_hook(&folder).await?;
        Ok(outcome)
    }

    /// Nothing of a hook of the app is left.
    pub(super) async fn end_hook(&self, folder: &Folder) -> Result<(), String> {
        let hook = folder.hook();
        let begun = self.on(&hook, |hook| Ok(hook.path().exists())).await;
        if begun.map_err(|e| format!("its hook's records cannot be read: {e}"))? {
            let app = folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.sweep_group(&hook, format!("{}-hook", self.group(&app))).await?;
            self.on(&hook, forget).await.map_err(|e| format!("its hook's records stay: {e}"))?;
        }
        Ok(())
    }
}

/// A hook about to run.
struct Prepared {
    folder: Folder,
    remains: Remains,
    group: Group,
    /// Its data folder was made for it and is to be its user's.
    owns: bool,
}

/// Writes down what is to run and makes its control group. Blocks.
fn prepare(folder: &Folder, launch: &Launch) -> io::Result<Prepared> {
    let owns = !launch.data.exists();
    durable::create_dir_all(&launch.data).map_err(io::Error::other)?;
    folder.store_launch(launch)?;
    let group = Layout::detect().create(&launch.group, &launch.workload.limits).map_err(io::Error::other)?;
    Ok(Prepared { folder: folder.clone(), remains: Remains::of(launch), group, owns })
}

/// Runs it to its end, or to the end of its time.
async fn run(program: &Path, prepared: Prepared, hook: &Hook) -> HookOutcome {
    let until = Instant::now() + hook.timeout.get();
    let mut command = Command::new(program);
    command.arg("exec").arg(prepared.folder.path());
    if prepared.owns {
        command.arg("--own");
    }
    for folder in prepared.group.folders() {
        command.arg("--group").arg(folder);
    }
    command.arg("--").args(&hook.command).env_clear();
    let mut running = match Running::spawn(command, prepared.remains) {
        Ok(running) => running,
        Err(e) => return HookOutcome::Failure(format!("it cannot be run: {e}")),
    };
    let ended = timeout_at(until, running.ended()).await;
    let said = running.last_line().await;
    let with = |text: String| if said.is_empty() { text } else { format!("{text}: {said}") };
    match ended {
        Ok(Ok(status)) if status.success() => HookOutcome::Success,
        Ok(Ok(status)) if status.code() == Some(PUT_OFF) => HookOutcome::PutOff(said),
        Ok(Ok(status)) => HookOutcome::Failure(with(format!("it ended with {status}"))),
        Ok(Err(e)) => HookOutcome::Failure(with(format!("nobody knows how it ended: {e}"))),
        Err(_) => HookOutcome::Failure(with(format!("it took longer than {} and was killed", hook.timeout))),
    }
}

struct Running {
    child: tokio::process::Child,
    output: pipe::Receiver,
    open: bool,
    kept: Vec<u8>,
    kill: Option<Kill>,
}

impl Running {
    fn spawn(mut command: Command, remains: Remains) -> io::Result<Running> {
        let (reader, writer) = io::pipe()?;
        command.stdin(Stdio::null()).stdout(Stdio::from(writer.try_clone()?)).stderr(Stdio::from(writer));
        let mut kill = Kill { remains, session: None };
        let child = command.kill_on_drop(true).spawn()?;
        drop(command); // and with it our writing end
        kill.session = child.id().and_then(|pid| i32::try_from(pid).ok()).map(KillGroup);
        let output = pipe::Receiver::from_owned_fd(reader.into())?;
        Ok(Running { child, output, open: true, kept: vec![], kill: Some(kill) })
    }

    async fn ended(&mut self) -> io::Result<ExitStatus> {
        let mut buffer = [0; 1024];
        loop {
            // Both arms are cancel safe.
            tokio::select! {
                biased;
                read = self.output.read(&mut buffer), if self.open => match read {
                    Ok(0) | Err(_) => self.open = false,
                    Ok(n) => keep(&mut self.kept, buffer.get(..n).unwrap_or_default()),
                },
                status = self.child.wait() => return status,
            }
        }
    }

    /// Kills what is left of it, and returns the last line that it wrote.
    async fn last_line(&mut self) -> String {
        self.kill.take();
        let rest = async {
            let mut buffer = [0; 1024];
            while let Ok(n @ 1..) = self.output.read(&mut buffer).await {
                keep(&mut self.kept, buffer.get(..n).unwrap_or_default());
            }
        };
        let _ = timeout(REST, rest).await; // what does not end by then is swept
        let text = String::from_utf8_lossy(&self.kept);
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        line.chars().take(SHOWN_CHARS).collect()
    }
}

fn keep(kept: &mut Vec<u8>, more: &[u8]) {
    kept.extend_from_slice(more);
    kept.drain(..kept.len().saturating_sub(KEPT_BYTES));
}

/// Kills a hook with all that it started, as far as one look finds it; the driver sweeps up what is left.
struct Kill {
    remains: Remains,
    session: Option<KillGroup>,
}

impl Drop for Kill {
    fn drop(&mut self) {
        self.session.take();
        self.remains.kill();
    }
}

/// Forgets that a hook ran.
fn forget(folder: &Folder) -> io::Result<()> {
    match fs::remove_dir_all(folder.path()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
