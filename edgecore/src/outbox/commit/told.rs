//! What others hear of the outbox: its streams for readers, its state for the agent.

use std::collections::BTreeMap;

use proto::name::Name;

use super::Core;
use crate::outbox::{OutboxState, Shared, db::StreamRow, error::OutboxError, lock};

impl Core {
    pub(super) fn publish(&mut self) {
        let Some(store) = &self.store else {
            let problem = self.failing.as_ref().map(chain);
            self.shared.state.send_if_modified(|state| {
                let changed = state.problem != problem;
                state.problem = problem;
                changed
            });
            return;
        };
        let streams = store.streams();
        let mut shed_records: BTreeMap<Name, u64> = BTreeMap::new();
        for stream in streams.iter().filter(|s| s.shed > 0) {
            *shed_records.entry(stream.key.stream.clone()).or_default() += stream.shed;
        }
        let problems: Vec<String> = self.failing.as_ref().map(chain).into_iter().chain(self.found.clone()).collect();
        let new = OutboxState {
            bytes: self.files.bytes(),
            quota_bytes: self.limits.total_bytes,
            records: streams.iter().map(|s| s.records).sum(),
            shed_records,
            damaged_records: streams.iter().map(|s| s.damaged).sum(),
            problem: (!problems.is_empty()).then(|| problems.join("; ")),
            full: self.full || self.disk_full,
        };
        show(&self.shared, streams);
        self.shared.state.send_if_modified(|state| {
            let changed = *state != new;
            *state = new;
            changed
        });
    }
}

/// Shows the streams to readers, but for one whose records are still moving in.
pub(super) fn show(shared: &Shared, streams: &[StreamRow]) {
    let arriving = |s: &StreamRow| streams.iter().any(|from| from.moves.is_some_and(|(to, _)| to == s.id));
    let new: Vec<StreamRow> = streams.iter().filter(|s| !arriving(s)).cloned().collect();
    let mut shown = lock(&shared.streams);
    if *shown != new {
        *shown = new;
        drop(shown);
        shared.changed.send_modify(|count| *count += 1);
    }
}

/// An error with what it comes from.
fn chain(error: &OutboxError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
