//! The command that restarts a box.

use std::{os::unix::process::ExitStatusExt as _, process::Stdio};

use tokio::process::Command;

/// Runs it, and returns when it has ended well, or was ended itself, as happens when a box goes down.
///
/// # Errors
/// What it said last, when it failed.
pub(super) async fn run(command: &[String]) -> Result<(), String> {
    let (program, args) = command.split_first().ok_or("there is no command")?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = command.output().await.map_err(|e| e.to_string())?;
    if output.status.success() || output.status.signal().is_some() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: String = said.trim_end().lines().last().unwrap_or_default().chars().take(300).collect();
    Err(format!("{}: {last}", output.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_went_wrong_is_said() {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        run(&words(&["true"])).await.unwrap();
        run(&words(&["sh", "-c", "kill -TERM $$"])).await.unwrap();
        let bad = run(&words(&["sh", "-c", "echo first >&2; echo no bus >&2; exit 3"])).await.unwrap_err();
        assert!(bad.contains("exit status: 3") && bad.ends_with("no bus"), "{bad}");
        assert!(run(&words(&["/nowhere/reboot"])).await.unwrap_err().contains("No such file"));
        run(&[]).await.unwrap_err();
    }
}
