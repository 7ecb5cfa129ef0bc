//! One command of a person in a container, by the engine's API. The container driver calls it.

use std::time::Duration;

use proto::exec::{Ended, Input, Output, Start};
use tokio::{sync::mpsc, time::sleep};

use super::api::{self, Api, ApiError, Channel, model::Exec};
use crate::driver::{Attached, attach::feed_pipe, procs};

/// Packets that wait, either way.
const QUEUE: usize = 4;
/// Looks for how a command ended whose output has: the engine notes it a moment later.
const LOOKS: u32 = 50;
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Variable that names the kind of a terminal.
const TERM: &str = "TERM";

/// Kills a command that nobody wants any more, when it is dropped: an engine lets it run on.
pub(super) struct KillCommand {
    api: Api,
    /// The container's.
    container: String,
    /// The command's.
    id: Option<String>,
}

impl KillCommand {
    /// A command in the container `container`.
    pub fn new(api: &Api, container: &str, id: &str) -> KillCommand {
        KillCommand { api: api.clone(), container: container.to_owned(), id: Some(id.to_owned()) }
    }

    /// It has ended.
    pub fn disarm(mut self) {
        self.id = None;
    }
}

impl Drop for KillCommand {
    fn drop(&mut self) {
        let (api, container) = (self.api.clone(), std::mem::take(&mut self.container));
        let Some(id) = self.id.take() else { return };
        tokio::spawn(async move {
            let Ok(exec) = api.exec_details(&id).await else { return };
            // The engine makes it the leader of a session of its own. Where the agent is in a container, too, the number
            // may be somebody else's here.
            let leader = exec.pid.filter(|pid| *pid > 1 && exec.running);
            match leader.filter(|pid| procs::is_in_group_of(*pid, &container)) {
                Some(pid) => procs::kill_session(pid),
                None if exec.running => {
                    tracing::warn!(container, "a command runs on: the agent does not see the processes of the engine");
                }
                None => {}
            }
        });
    }
}

/// Starts a command in the container `id`.
///
/// # Errors
/// For people, when the engine does not.
pub(super) async fn run(api: Api, id: &str, start: &Start) -> Result<Attached, String> {
    let problem = |e: ApiError| format!("the command cannot be run: {e}");
    let terminal = start.terminal.as_ref();
    let env = terminal.iter().map(|terminal| format!("{TERM}={}", terminal.term)).collect();
    let what = Exec { attach_stdin: start.stdin, tty: terminal.is_some(), env, ..Exec::of(&start.command) };
    let exec = api.exec(id, &what).await.map_err(problem)?;
    let ends = api.attach_exec(&exec, terminal.is_some()).await.map_err(problem)?;
    if let Some(terminal) = terminal {
        let _ = api.resize_exec(&exec, terminal.size.rows, terminal.size.columns).await; // it may have ended
    }
    let ((input, typed), (shown, output)) = (mpsc::channel(QUEUE), mpsc::channel(QUEUE));
    let kill = KillCommand::new(&api, id, &exec);
    tokio::spawn(attend(api, exec, kill, ends, start.stdin, (typed, shown)));
    Ok(Attached { input, output })
}

async fn attend(
    api: Api,
    exec: String,
    kill: KillCommand,
    ends: api::Attached,
    stdin: bool,
    (typed, shown): (mpsc::Receiver<Input>, mpsc::Sender<Output>),
) {
    let (plain, typing) = mpsc::channel(QUEUE);
    let mut output = ends.output;
    let mut feed = std::pin::pin!(feed_pipe(stdin.then_some(ends.input), typing));
    let mut sort = std::pin::pin!(sizes(&api, &exec, typed, plain));
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
            Some((Channel::Err, bytes)) => Output::Err(bytes),
            Some((Channel::Out, bytes)) => Output::Out(bytes),
            None => break, // how it ended tells
        };
        if shown.send(packet).await.is_err() {
            return;
        }
    }
    let ended = how(&api, &exec).await;
    kill.disarm();
    let _ = shown.send(Output::Ended(ended)).await; // gone already is as good
}

/// Sizes of the terminal go to the engine, all else to the command.
async fn sizes(api: &Api, exec: &str, mut typed: mpsc::Receiver<Input>, plain: mpsc::Sender<Input>) {
    while let Some(input) = typed.recv().await {
        if let Input::Resize(size) = input {
            let _ = api.resize_exec(exec, size.rows, size.columns).await; // it may have ended
        } else if plain.send(input).await.is_err() {
            return;
        }
    }
}

async fn how(api: &Api, exec: &str) -> Ended {
    let unknown = |message: String| Ended { message, ..Ended::default() };
    for _ in 0..LOOKS {
        match api.exec_details(exec).await {
            Ok(found) if !found.running => {
                let code = found.exit_code.and_then(|code| i32::try_from(code).ok());
                return Ended { code, ..Ended::default() };
            }
            Ok(_) => sleep(LOOK_AGAIN).await,
            Err(e) => return unknown(format!("nobody knows how it ended: {e}")),
        }
    }
    unknown("its output ended before it did".into())
}
