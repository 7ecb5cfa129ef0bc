//! What containers and commands in them write.

use std::{collections::VecDeque, time::Duration};

use bollard::{
    Docker,
    container::LogOutput,
    errors::Error,
    exec::{CreateExecOptions, StartExecOptions, StartExecResults},
    query_parameters::LogsOptionsBuilder,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use proto::object::LastExit;
use tokio::{sync::mpsc, time::timeout};

use super::engine::why;

/// Most of a last line that is shown.
const SHOWN_CHARS: usize = 300;
/// How long the last line of a container that ended may take to be read.
const LAST_LINE_TIMEOUT: Duration = Duration::from_secs(5);

fn text(output: LogOutput) -> Bytes {
    output.into_bytes()
}

/// Output of an app's containers, in this order: the last `tail` lines of all together, and what comes of the last.
pub fn stream(docker: Docker, ids: Vec<String>, tail: Option<u32>, follow: bool) -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let (last, before) = match ids.split_last() {
            Some((last, before)) => (last.clone(), before.to_vec()),
            None => return,
        };
        // What the newer ones leave of `tail` is of the older ones.
        let mut left = tail;
        let mut older: VecDeque<(String, Option<u32>)> = VecDeque::new();
        let mut newest_lines = None;
        if let Some(wanted) = tail {
            let lines = count(&docker, &last, wanted).await;
            newest_lines = Some(lines);
            left = Some(wanted.saturating_sub(lines));
        }
        for id in before.into_iter().rev() {
            older.push_front((id.clone(), left));
            if let Some(wanted) = left {
                left = Some(wanted.saturating_sub(count(&docker, &id, wanted).await));
            }
        }
        for (id, lines) in older {
            if lines != Some(0) && !send(logs(&docker, &id, lines, false), &sender).await {
                return;
            }
        }
        send(logs(&docker, &last, newest_lines.and(tail), follow), &sender).await;
    });
    receiver
}

/// Hands on until the end; `false` when nobody listens any more.
async fn send(stream: impl Stream<Item = Result<LogOutput, Error>>, sender: &mpsc::Sender<Bytes>) -> bool {
    let mut stream = std::pin::pin!(stream);
    loop {
        // Both arms are cancel safe.
        let output = tokio::select! {
            biased;
            () = sender.closed() => return false,
            output = stream.next() => output,
        };
        match output {
            Some(Ok(output)) => {
                if sender.send(text(output)).await.is_err() {
                    return false;
                }
            }
            Some(Err(_)) | None => return true, // what there is was handed on
        }
    }
}

fn logs(
    docker: &Docker,
    id: &str,
    tail: Option<u32>,
    follow: bool,
) -> impl Stream<Item = Result<LogOutput, Error>> + use<> {
    let tail = tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
    let options = LogsOptionsBuilder::new().stdout(true).stderr(true).follow(follow).tail(&tail).build();
    docker.logs(id, Some(options))
}

/// Lines that a container has, at most `most`.
async fn count(docker: &Docker, id: &str, most: u32) -> u32 {
    let mut stream = std::pin::pin!(logs(docker, id, Some(most), false));
    let mut lines = 0_u32;
    while let Some(Ok(output)) = stream.next().await {
        let newlines = text(output).iter().filter(|byte| **byte == b'\n').count();
        lines = lines.saturating_add(u32::try_from(newlines).unwrap_or(u32::MAX));
    }
    lines.min(most)
}

/// Adds the last line that a container wrote to how it ended.
pub async fn add_last_line(docker: &Docker, id: &str, exit: &mut LastExit) {
    let last = timeout(LAST_LINE_TIMEOUT, async {
        let mut stream = std::pin::pin!(logs(docker, id, Some(1), false));
        let mut last = String::new();
        while let Some(Ok(output)) = stream.next().await {
            last = String::from_utf8_lossy(&text(output)).trim().chars().take(SHOWN_CHARS).collect();
        }
        last
    });
    if let Ok(last) = last.await
        && !last.is_empty()
    {
        exit.message = format!("{}; last output: {last}", exit.message);
    }
}

/// Runs a command in a container; what it says when it fails.
pub async fn run(docker: &Docker, id: &str, command: &[String]) -> Result<(), String> {
    let problem = |e: Error| format!("its command cannot be run: {}", why(&e));
    let options = CreateExecOptions {
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(command.to_vec()),
        ..CreateExecOptions::default()
    };
    let exec = docker.create_exec(id, options).await.map_err(problem)?.id;
    let mut last = String::new();
    let started = docker.start_exec(&exec, None::<StartExecOptions>).await.map_err(problem)?;
    if let StartExecResults::Attached { mut output, .. } = started {
        while let Some(Ok(output)) = output.next().await {
            let output = text(output);
            let line = String::from_utf8_lossy(&output);
            if let Some(line) = line.lines().rev().find(|line| !line.trim().is_empty()) {
                last = line.trim().chars().take(SHOWN_CHARS).collect();
            }
        }
    }
    match docker.inspect_exec(&exec).await.map_err(problem)?.exit_code {
        Some(0) => Ok(()),
        Some(code) if last.is_empty() => Err(format!("its command ended with exit code {code}")),
        Some(code) => Err(format!("its command ended with exit code {code}: {last}")),
        None => Err("its command did not end".into()),
    }
}
