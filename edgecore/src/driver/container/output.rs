//! What containers and commands in them write.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use proto::object::LastExit;
use tokio::{sync::mpsc, time::timeout};

use super::{
    api::{Api, ApiError, Output, model::Exec},
    attach::KillCommand,
};

/// Most of a last line that is shown.
const SHOWN_CHARS: usize = 300;
/// Most of the end of an output that is kept to find its last line.
const KEPT_BYTES: usize = 4096;
/// How long the last line of a container that ended may take to be read.
const LAST_LINE_TIMEOUT: Duration = Duration::from_secs(5);

/// Output of an app's containers, in this order: the last `tail` lines of all together, and what comes of the last.
pub fn stream(api: Api, ids: Vec<String>, tail: Option<u32>, follow: bool) -> mpsc::Receiver<Bytes> {
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
            let lines = count(&api, &last, wanted).await;
            newest_lines = Some(lines);
            left = Some(wanted.saturating_sub(lines));
        }
        for id in before.into_iter().rev() {
            older.push_front((id.clone(), left));
            if let Some(wanted) = left {
                left = Some(wanted.saturating_sub(count(&api, &id, wanted).await));
            }
        }
        for (id, lines) in older {
            if lines != Some(0) && !send(api.logs(&id, lines, false).await, &sender).await {
                return;
            }
        }
        send(api.logs(&last, newest_lines.and(tail), follow).await, &sender).await;
    });
    receiver
}

/// Hands on until the end; `false` when nobody listens any more.
async fn send(output: Result<Output, ApiError>, sender: &mpsc::Sender<Bytes>) -> bool {
    let Ok(mut output) = output else { return true }; // it is gone
    loop {
        // Both arms are cancel safe.
        let piece = tokio::select! {
            biased;
            () = sender.closed() => return false,
            piece = output.next() => piece,
        };
        match piece {
            Some(piece) => {
                if sender.send(piece).await.is_err() {
                    return false;
                }
            }
            None => return true, // what there is was handed on
        }
    }
}

/// Lines that a container has, at most `most`.
async fn count(api: &Api, id: &str, most: u32) -> u32 {
    let Ok(mut output) = api.logs(id, Some(most), false).await else { return 0 };
    let mut lines = 0_u32;
    while let Some(piece) = output.next().await {
        let newlines = memchr::memchr_iter(b'\n', &piece).count();
        lines = lines.saturating_add(u32::try_from(newlines).unwrap_or(u32::MAX));
    }
    lines.min(most)
}

/// The last line in which there is anything, as far as it is shown.
async fn last_line(mut output: Output) -> String {
    let mut kept = vec![];
    while let Some(piece) = output.next().await {
        kept.extend_from_slice(&piece);
        kept.drain(..kept.len().saturating_sub(KEPT_BYTES));
    }
    let text = String::from_utf8_lossy(&kept);
    let last = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    last.unwrap_or_default().chars().take(SHOWN_CHARS).collect()
}

/// Adds the last line that a container wrote to how it ended.
pub async fn add_last_line(api: &Api, id: &str, exit: &mut LastExit) {
    let last = timeout(LAST_LINE_TIMEOUT, async { Some(last_line(api.logs(id, Some(1), false).await.ok()?).await) });
    if let Ok(Some(last)) = last.await
        && !last.is_empty()
    {
        exit.message = format!("{}; last output: {last}", exit.message);
    }
}

/// Runs a command in a container; what it says when it fails. Cancelled, the command ends.
pub async fn run(api: &Api, id: &str, command: &[String]) -> Result<(), String> {
    let problem = |e: ApiError| format!("its command cannot be run: {e}");
    let exec = api.exec(id, &Exec::of(command)).await.map_err(problem)?;
    let kill = KillCommand::new(api, id, &exec);
    let last = last_line(api.start_exec(&exec).await.map_err(problem)?).await;
    kill.disarm();
    match api.exec_details(&exec).await.map_err(problem)?.exit_code {
        Some(0) => Ok(()),
        Some(code) if last.is_empty() => Err(format!("its command ended with exit code {code}")),
        Some(code) => Err(format!("its command ended with exit code {code}: {last}")),
        None => Err("its command did not end".into()),
    }
}
