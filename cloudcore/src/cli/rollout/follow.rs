//! Following a rollout to its end: a bar where a person looks, a line a change in a pipeline, an exit code.

use std::{collections::BTreeMap, io::IsTerminal as _, time::Duration};

use futures_util::{StreamExt as _, pin_mut};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::{
    name::Name,
    object::{Rollout, RolloutCounts, RolloutPhase, RolloutStatus, UpdatePhase, rollout::WavePhase},
    units::Span,
};

use super::{exit_of, show};
use crate::cli::{
    client::Client,
    exit::{CliError, Exit, is_final},
    output,
};

/// Whether and how long to wait.
#[derive(Debug, Clone, clap::Args)]
pub struct FollowArgs {
    /// Wait for the end: exit code 0 when it succeeded, 5 failed, 6 took too long, 9 paused, 10 rolled back.
    #[arg(long)]
    pub wait: bool,
    /// Longest wait.
    #[arg(long, default_value = "30m")]
    pub timeout: Span,
}

/// Follows until it ends, is paused, or the time is up. What it tells goes to standard error when `aside`, as a
/// document stands on standard output.
pub(super) async fn to_its_end(client: &Client, name: &str, timeout: Span, aside: bool) -> anyhow::Result<()> {
    match tokio::time::timeout(timeout.get(), follow(client, name, aside)).await {
        Ok(result) => result,
        Err(_) => {
            let message =
                format!("rollout {name} did not end within {timeout}; it goes on: crossdock rollout status {name}");
            Err(CliError::new(Exit::TimedOut, message).into())
        }
    }
}

async fn follow(client: &Client, name: &str, aside: bool) -> anyhow::Result<()> {
    let mut view = View::new(aside);
    loop {
        // List, then watch from there: no change is missed, and a hub that restarts is listed again.
        let seen = async {
            let listed = client.list("rollouts", None).await?;
            let of_name = |o: &serde_json::Value| o.pointer("/metadata/name").and_then(|n| n.as_str()) == Some(name);
            let now = listed.items.into_iter().find(of_name);
            let now = now.ok_or_else(|| CliError::new(Exit::NotFound, format!("rollout {name} was deleted")))?;
            if let Some(end) = view.show(&serde_json::from_value(now)?) {
                return Ok(Some(end));
            }
            let changes = client.watch("rollouts", &listed.resource_version, None).await?;
            pin_mut!(changes);
            while let Some(Ok(change)) = changes.next().await {
                let Some(object) = change.get("object").filter(|o| of_name(o)) else { continue };
                if change.get("type").and_then(|t| t.as_str()) == Some("DELETED") {
                    return Err(CliError::new(Exit::NotFound, format!("rollout {name} was deleted")).into());
                }
                if let Some(end) = view.show(&serde_json::from_value(object.clone())?) {
                    return Ok(Some(end));
                }
            }
            Ok::<_, anyhow::Error>(None)
        };
        match seen.await {
            Ok(Some(end)) => {
                view.bar.finish_and_clear();
                return end;
            }
            Err(e) if is_final(&e) => return Err(e),
            // The hub is away for a moment: the rollout goes on without us.
            _ => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// Whether somebody has decided already what a paused rollout waits for, and the hub has only not gone on yet: so
/// `approve` and `watch` one after the other wait for the end.
fn is_answered(rollout: &Rollout) -> bool {
    let (control, status) = (&rollout.spec.control, &rollout.status);
    let mut waiting = status.waves.iter().filter(|wave| wave.phase == WavePhase::AwaitingApproval);
    let answered = match status.reason.as_str() {
        "Paused" => true,
        "AwaitingApproval" => waiting.all(|wave| control.approved.contains(&wave.name)),
        "GateFailed" => control.resumed > status.resumed || control.retries > status.retries,
        "Inconclusive" => control.resumed > status.resumed,
        _ => false,
    };
    answered && !control.paused
}

/// What was shown last.
struct View {
    bar: ProgressBar,
    person: bool,
    aside: bool,
    last: String,
    waves: BTreeMap<String, WavePhase>,
    nodes: BTreeMap<Name, (UpdatePhase, String)>,
}

impl View {
    fn new(aside: bool) -> View {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} healthy  {msg}  {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let person = std::io::stderr().is_terminal();
        View { bar, person, aside, last: String::new(), waves: BTreeMap::new(), nodes: BTreeMap::new() }
    }

    /// Shows a rollout; `Some` when there is nothing more to wait for.
    fn show(&mut self, rollout: &Rollout) -> Option<anyhow::Result<()>> {
        let status = &rollout.status;
        let RolloutCounts { healthy, failed, all, .. } = status.counts();
        self.tell_waves(status);
        if self.person {
            let wave = status.waves.iter().find(|wave| wave.phase != WavePhase::Passed);
            let wave = wave.map(|wave| format!("  wave {} {}", wave.name, wave.phase)).unwrap_or_default();
            self.bar.set_length(all as u64);
            self.bar.set_position(healthy as u64);
            self.bar.set_message(format!("{failed} failed  {}{wave}", status.phase));
        } else {
            self.tell_nodes(status);
            let line = format!("{} {healthy}/{all} healthy, {failed} failed", status.phase);
            if line != self.last {
                self.line(&line);
                self.last = line;
            }
        }
        if status.phase == RolloutPhase::Paused && is_answered(rollout) {
            return None;
        }
        let exit = match exit_of(status.phase)? {
            Ok(()) => return Some(Ok(())),
            Err(exit) => exit,
        };
        let nodes = show::nodes(rollout, false);
        let message = format!("rollout {} {}: {}\n{nodes}", rollout.name(), status.phase, status.message);
        Some(Err(CliError::new(exit, message.trim_end()).into()))
    }

    fn tell_waves(&mut self, status: &RolloutStatus) {
        if status.waves.len() < 2 {
            return;
        }
        for wave in &status.waves {
            let before = self.waves.insert(wave.name.clone(), wave.phase).unwrap_or(WavePhase::Pending);
            if before != wave.phase {
                self.line(&format!("wave {} {}: {}", wave.name, wave.phase, wave.message));
            }
        }
    }

    /// Nodes that failed or cannot go on.
    fn tell_nodes(&mut self, status: &RolloutStatus) {
        for (name, node) in &status.nodes {
            let now = (node.phase, node.reason.clone());
            let trouble = matches!(node.phase, UpdatePhase::Failed | UpdatePhase::RolledBack | UpdatePhase::Blocked);
            if self.nodes.get(name) != Some(&now) && trouble {
                self.line(&format!("node {name} {} {}: {}", node.phase, node.reason, node.message));
            }
            self.nodes.insert(name.clone(), now);
        }
    }

    fn line(&self, text: &str) {
        let text = output::plain(text).into_owned();
        if self.person {
            self.bar.println(text);
        } else if self.aside {
            eprintln!("{text}");
        } else {
            output::print(&format!("{text}\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::object::{RolloutSpec, rollout::Control};

    use super::*;

    #[test]
    fn a_pause_that_was_answered_is_no_end() {
        let paused = |reason: &str, control: Control| {
            let spec = RolloutSpec::new("app@1".parse().unwrap(), "all".parse().unwrap());
            let mut rollout = Rollout::new("r".parse::<Name>().unwrap(), RolloutSpec { control, ..spec });
            rollout.status = serde_json::from_value(serde_json::json!({
                "phase": "Paused", "reason": reason,
                "waves": [{"name": "1", "phase": "Passed"}, {"name": "all", "phase": "AwaitingApproval"}],
            }))
            .unwrap();
            View::new(false).show(&rollout).map(|end| crate::cli::exit::code(&end.unwrap_err()))
        };
        let control = Control::default;
        let approved = Control { approved: ["all".into()].into(), ..control() };
        for (reason, control, end) in [
            ("AwaitingApproval", control(), Some(9)),
            ("AwaitingApproval", approved.clone(), None),
            ("AwaitingApproval", Control { paused: true, ..approved }, Some(9)),
            ("GateFailed", control(), Some(9)),
            ("GateFailed", Control { retries: 1, ..control() }, None),
            ("GateFailed", Control { resumed: 1, ..control() }, None),
            ("Inconclusive", Control { resumed: 1, ..control() }, None),
            ("Paused", Control { paused: true, ..control() }, Some(9)),
            ("Paused", control(), None),
        ] {
            assert_eq!(paused(reason, control.clone()), end, "{reason} {control:?}");
        }
    }
}
