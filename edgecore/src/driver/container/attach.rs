//! One command of a person in a container, by the engine's API. The container driver calls it.

use std::time::Duration;

use bollard::{
    Docker,
    container::LogOutput,
    errors::Error,
    exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults},
};
use futures_util::StreamExt as _;
use proto::exec::{Ended, Input, Output, Start};
use tokio::{sync::mpsc, time::sleep};

use super::engine::why;
use crate::driver::{Attached, attach::feed_pipe, procs};

/// Packets that wait, either way.
const QUEUE: usize = 4;
/// Looks for how a command ended whose output has: the engine notes it a moment later.
const LOOKS: u32 = 50;
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// User's shell variable for the kind of terminal.
const TERM: &str = "TERM";

/// Kills a command that nobody wants any more: an engine lets it run on.
struct KillCommand {
    docker: Docker,
    id: Option<String>,
}

impl Drop for KillCommand {
    fn drop(&mut self) {
        let (docker, Some(id)) = (self.docker.clone(), self.id.take()) else { return };
        tokio::spawn(async move {
            let Ok(exec) = docker.inspect_exec(&id).await else { return };
            let pid = exec.pid.filter(|pid| *pid > 1 && exec.running == Some(true));
            // The engine makes it the leader of a session of its own.
            if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
                procs::kill_session(pid);
            }
        });
    }
}

/// Starts a command in the container `id`.
///
/// # Errors
/// For people, when the engine does not.
pub(super) async fn run(docker: Docker, id: &str, start: &Start) -> Result<Attached, String> {
    let problem = |e: Error| format!("the command cannot be run: {}", why(&e));
    let terminal = start.terminal.as_ref();
    let options = CreateExecOptions {
        attach_stdin: Some(start.stdin),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(terminal.is_some()),
        env: terminal.map(|terminal| vec![format!("{TERM}={}", terminal.term)]),
        cmd: Some(start.command.clone()),
        ..CreateExecOptions::default()
    };
    let exec = docker.create_exec(id, options).await.map_err(problem)?.id;
    let options = StartExecOptions { tty: terminal.is_some(), ..StartExecOptions::default() };
    let StartExecResults::Attached { output, input } =
        docker.start_exec(&exec, Some(options)).await.map_err(problem)?
    else {
        return Err("the engine started the command and lets nobody listen".into());
    };
    if let Some(terminal) = terminal {
        let size = ResizeExecOptions { height: terminal.size.rows, width: terminal.size.columns };
        let _ = docker.resize_exec(&exec, size).await; // it may have ended
    }
    let ((sender, typed), (shown, receiver)) = (mpsc::channel(QUEUE), mpsc::channel(QUEUE));
    let stdin = start.stdin.then_some(input);
    tokio::spawn(attend(docker, exec, output, stdin, typed, shown));
    Ok(Attached { input: sender, output: receiver })
}

type Written = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<LogOutput, Error>> + Send>>;
type Read = std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>;

async fn attend(
    docker: Docker,
    exec: String,
    mut output: Written,
    stdin: Option<Read>,
    typed: mpsc::Receiver<Input>,
    shown: mpsc::Sender<Output>,
) {
    let mut kill = KillCommand { docker: docker.clone(), id: Some(exec.clone()) };
    let (plain, typing) = mpsc::channel(QUEUE);
    let mut feed = std::pin::pin!(feed_pipe(stdin, typing));
    let mut sort = std::pin::pin!(sizes(&docker, &exec, typed, plain));
    let (mut fed, mut sorted) = (false, false);
    loop {
        // All cancel safe, or kept from turn to turn.
        let piece = tokio::select! {
            biased;
            () = shown.closed() => return, // and the command goes
            piece = output.next() => piece,
            () = &mut feed, if !fed => { fed = true; continue }
            () = &mut sort, if !sorted => { sorted = true; continue }
        };
        let packet = match piece {
            Some(Ok(LogOutput::StdErr { message })) => Output::Err(message),
            Some(Ok(piece)) => Output::Out(piece.into_bytes()),
            Some(Err(_)) | None => break, // how it ended tells
        };
        if shown.send(packet).await.is_err() {
            return;
        }
    }
    let ended = how(&docker, &exec).await;
    kill.id = None;
    let _ = shown.send(Output::Ended(ended)).await; // gone already is as good
}

/// Sizes of the terminal go to the engine, all else to the command.
async fn sizes(docker: &Docker, exec: &str, mut typed: mpsc::Receiver<Input>, plain: mpsc::Sender<Input>) {
    while let Some(input) = typed.recv().await {
        if let Input::Resize(size) = input {
            let size = ResizeExecOptions { height: size.rows, width: size.columns };
            let _ = docker.resize_exec(exec, size).await; // it may have ended
        } else if plain.send(input).await.is_err() {
            return;
        }
    }
}

async fn how(docker: &Docker, exec: &str) -> Ended {
    let unknown = |message: String| Ended { message, ..Ended::default() };
    for _ in 0..LOOKS {
        match docker.inspect_exec(exec).await {
            Ok(found) if found.running != Some(true) => {
                let code = found.exit_code.and_then(|code| i32::try_from(code).ok());
                return Ended { code, ..Ended::default() };
            }
            Ok(_) => sleep(LOOK_AGAIN).await,
            Err(e) => return unknown(format!("nobody knows how it ended: {}", why(&e))),
        }
    }
    unknown("its output ended before it did".into())
}
