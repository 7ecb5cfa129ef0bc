//! The node restarts because it was told to: once for each order, with what it had in order before as the proof.
//!
//! ```text
//! new order --no update is decided, not just restarted--> kept on disk --> command --box goes down, comes up--+
//!                                                            |                                                 v
//!                                     still up after a while |            what was ready before is ready again
//!                                                            +--> failed <--not within a while--+--> succeeded
//! ```
//!
//! | part | what it does |
//! |---|---|
//! | [`plan`] | decides, from what is kept and what is seen |
//! | here | carries it out, and puts into the report how far it is |
//!
//! The order is on disk before the command runs, with the number of the boot in which it runs: an agent that starts
//! again in the same boot does not run it a second time.

mod plan;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use proto::{
    durable::{DurableError, Loaded, Record},
    env::Env,
    link::message::{Assignment, Report},
    object::{RebootStatus, UpdatePhase},
    watch,
};
use tokio::time::{Instant, sleep, timeout};

use self::plan::{Kept, Outcome, Step, View};
use crate::driver::Driver;

/// Between the word that it goes down and the command, so that the hub hears it.
const FAREWELL: Duration = Duration::from_secs(2);
/// Wait after a record that could not be written.
const AGAIN: Duration = Duration::from_secs(10);
/// Longest wait for the command.
const COMMAND: Duration = Duration::from_secs(60);

/// What a restart needs.
pub(crate) struct Reboots {
    pub env: Env,
    pub driver: Arc<dyn Driver>,
    pub record: Record,
    pub boot_id: String,
    /// The command; empty: this box is not to be restarted from afar.
    pub command: Vec<String>,
    pub board: watch::Sender<Report>,
    pub assignment: watch::Receiver<Option<Assignment>>,
}

/// Follows the assignment for ever.
pub(crate) async fn run(reboots: Reboots) {
    let Reboots { env, driver, record, boot_id, command, board, mut assignment } = reboots;
    let (mut kept, mut doubt) = load(&record);
    let mut reports = board.subscribe();
    let started = Instant::now();
    let mut asked: Option<Instant> = None;
    loop {
        let Assignment { reboot: wanted, apps, drained, .. } =
            assignment.borrow_and_update().clone().unwrap_or_default();
        let step = {
            let report = reports.borrow_and_update();
            plan::next(&View {
                wanted: wanted.as_deref(),
                assigned: &apps,
                drained,
                doubt: doubt.as_deref(),
                kept: kept.as_ref(),
                boot_id: &boot_id,
                up: started.elapsed(),
                asked: asked.map(|at| at.elapsed()),
                workloads: &report.workloads,
            })
        };
        let (next, asks) = match step {
            Step::Rest => {
                doubt = None; // it was about what was there when the agent began
                tell(&board, wanted.as_deref().zip(kept.as_ref()).map(|(order, kept)| status(order, kept)));
                if assignment.changed().await.is_err() {
                    return std::future::pending().await;
                }
                continue;
            }
            Step::Wait { phase, message, until } => {
                tell(&board, wanted.map(|order| RebootStatus { order, phase, message }));
                // Every arm is cancel safe: they only wake.
                tokio::select! {
                    biased;
                    changed = assignment.changed() => {
                        if changed.is_err() {
                            return std::future::pending().await; // the agent ends
                        }
                    }
                    _ = reports.changed() => {}
                    () = sleep(until.unwrap_or(AGAIN)) => {}
                }
                continue;
            }
            Step::Begin(next) => (next, true),
            Step::Conclude(next) => (next, false),
        };
        if let Err(error) = store(&env, &record, &next).await {
            let message = format!("how far it is cannot be kept, so it waits: {error}");
            tracing::warn!("restart of the node: {message}");
            tell(&board, wanted.map(|order| RebootStatus { order, phase: UpdatePhase::Pending, message }));
            sleep(AGAIN).await;
            continue;
        }
        tracing::info!(order = %next.order, outcome = ?next.outcome, "restart of the node");
        doubt = None;
        let next = kept.insert(next);
        if asks {
            tell(&board, Some(status(&next.order, next)));
            sleep(FAREWELL).await;
            asked = Some(Instant::now());
            if let Err(problem) = ask(&*driver, &command).await {
                next.outcome = Some(Outcome::Failed(problem));
                // Should that not be kept, it is told all the same: it did not go down.
                if let Err(error) = store(&env, &record, next).await {
                    tracing::warn!(%error, "that the restart failed cannot be kept");
                }
            }
        }
    }
}

/// Has the box go down.
async fn ask(driver: &dyn Driver, command: &[String]) -> Result<(), String> {
    if command.is_empty() {
        return Err("this box is not to be restarted from afar: see reboot in section node of its agent.toml".into());
    }
    match timeout(COMMAND, driver.reboot(command)).await {
        Ok(done) => done.map_err(|problem| format!("could not run {:?}: {problem}", command.join(" "))),
        Err(_) => Ok(()), // whether the box goes down is seen
    }
}

/// How far an order is that was begun.
fn status(order: &str, kept: &Kept) -> RebootStatus {
    let (phase, message) = match &kept.outcome {
        None => (UpdatePhase::Applying, plan::GOES_DOWN.to_owned()),
        Some(Outcome::Succeeded) => (UpdatePhase::Succeeded, String::new()),
        Some(Outcome::Failed(message)) => (UpdatePhase::Failed, message.clone()),
    };
    RebootStatus { order: order.to_owned(), phase, message }
}

/// Puts how far it is into the report.
fn tell(board: &watch::Sender<Report>, status: Option<RebootStatus>) {
    board.send_if_modified(|board| {
        let changed = board.reboot != status;
        board.reboot = status;
        changed
    });
}

/// What is kept, and why it may not be the newest. An order that was there then may have been carried out.
fn load(record: &Record) -> (Option<Kept>, Option<String>) {
    let path = record.path().display();
    let (content, doubt) = match record.load() {
        Ok(Loaded::Absent) => return (None, None),
        Ok(Loaded::Good(content)) => (content, None),
        Ok(Loaded::Fallback(content)) => (content, Some(format!("the newest copy of {path} is damaged"))),
        Ok(Loaded::Lost) => return (None, Some(format!("{path} is damaged"))),
        Err(error) => return (None, Some(error.to_string())),
    };
    match serde_json::from_slice(&content) {
        Ok(kept) => (Some(kept), doubt),
        Err(error) => (None, Some(format!("{path} is no record of a restart: {error}"))),
    }
}

async fn store(env: &Env, record: &Record, kept: &Kept) -> Result<(), DurableError> {
    let content = serde_json::to_vec(kept).unwrap_or_default(); // text keys only: cannot fail
    let record = record.clone();
    env.blocking.run(move || record.store(&content)).await
}

/// Names of apps, as a sentence has them.
fn listed(names: &BTreeSet<proto::name::Name>) -> String {
    let names: Vec<&str> = names.iter().map(proto::name::Name::as_str).collect();
    names.join(", ")
}
