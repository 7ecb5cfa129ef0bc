//! Records, marks and outboxes: I2 and I4.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cloudcore::streams::sink::{Sink, StreamState};
use proto::{name::Name, stream::StreamKey, stream::ranges::Ranges};

use super::{Invariant, Violation};
use crate::{
    fault::{Fault, Target},
    ledger::{Audit, Discrepancy, Ledger, Outcome},
    plan::Plan,
    world::Observation,
};

/// The sink is read, from where it was read to, this often.
const AUDIT_EVERY: Duration = Duration::from_secs(60);
/// Marks are looked at in every look of fleets of so many boxes, in one of ten of larger ones.
const MARKS_ALWAYS: usize = 10;
/// What an outbox may take beside its quota: the log of one transaction.
const BESIDE_QUOTA_BYTES: u64 = 512 << 10;

/// Records, over time.
#[derive(Debug)]
pub(super) struct Records {
    quotas: BTreeMap<Name, u64>,
    in_gaps: Option<u64>,
    audit: Audit,
    marks: BTreeMap<(Name, StreamKey), Ranges>,
    looks: u64,
    audit_at: Duration,
    /// Faults that are at work and keep the sink from being read.
    sink_down: u32,
    books: Option<Outcome>,
    /// The hub lost what it knew of epochs; the boxes that lost their outbox.
    forgot: bool,
    reinstalled: BTreeSet<Name>,
}

impl Records {
    pub(super) fn new(plan: &Plan) -> Records {
        let mut quotas = BTreeMap::new();
        for site in &plan.sites {
            let quota = site.streams().quota.get();
            quotas.extend(site.nodes.iter().map(|node| (node.clone(), quota)));
        }
        Records {
            quotas,
            in_gaps: plan.expect.in_gaps,
            audit: Audit::default(),
            marks: BTreeMap::new(),
            looks: 0,
            audit_at: AUDIT_EVERY,
            sink_down: 0,
            books: None,
            forgot: false,
            reinstalled: BTreeSet::new(),
        }
    }

    pub(super) fn fault_began(&mut self, fault: &Fault, struck: &[Name]) {
        match fault {
            Fault::Reinstall { .. } => self.reinstalled.extend(struck.iter().cloned()),
            Fault::SinkDown => self.sink_down += 1,
            // Of what it heard meanwhile it could keep nothing.
            Fault::CrashHub | Fault::PowerCut { target: Target::Hub } if self.sink_down > 0 => self.forgot = true,
            // The hub goes back in time: marks and records may too.
            Fault::RestoreHub { .. } => {
                self.forgot = true;
                self.marks.clear();
                self.audit = Audit::default();
            }
            _ => {}
        }
    }

    pub(super) fn fault_healed(&mut self, fault: &Fault) {
        if matches!(fault, Fault::SinkDown) {
            self.sink_down = self.sink_down.saturating_sub(1);
        }
    }

    /// I4: an outbox keeps within its quota.
    pub(super) fn bounds(&mut self, seen: &Observation) -> Result<(), Violation> {
        for (name, node) in &seen.nodes {
            let Some(&quota) = self.quotas.get(name) else { continue };
            if node.backlog_bytes > quota + BESIDE_QUOTA_BYTES {
                let text = format!("{name}: the outbox takes {} bytes, its quota is {quota}", node.backlog_bytes);
                return Err(Violation::new(Invariant::Bounds, seen.at, Some(name), text));
            }
        }
        Ok(())
    }

    pub(super) fn wants_marks(&mut self, seen: &Observation) -> bool {
        self.looks += 1;
        seen.nodes.len() <= MARKS_ALWAYS || self.looks.is_multiple_of(10)
    }

    /// I2: marks never run ahead of what was handed in, and never go back.
    pub(super) fn marks(&mut self, at: Duration, states: &[StreamState], ledger: &Ledger) -> Result<(), Violation> {
        for state in states {
            let (node, key) = (&state.node, &state.key);
            let Some(limit) = ledger.limit(node, &key.stream, key.epoch) else { continue };
            let broken = |text: String| Err(Violation::new(Invariant::Count, at, Some(node), text));
            if let Some(end) = state.durable.iter().next_back().map(|range| range.end).filter(|end| *end > limit) {
                return broken(format!("the hub's mark of {node}/{key} reaches {end}, only {limit} were handed in"));
            }
            let lane = (node.clone(), key.clone());
            if let Some(before) = self.marks.get(&lane) {
                if before == &state.durable {
                    continue;
                }
                if let Some(lost) = before.iter().find(|range| !state.durable.contains(range)) {
                    return broken(format!(
                        "the hub's mark of {node}/{key} went back: {} to {} were durable, now {:?} are",
                        lost.start,
                        lost.end - 1,
                        state.durable
                    ));
                }
            }
            self.marks.insert(lane, state.durable.clone());
        }
        Ok(())
    }

    pub(super) fn wants_audit(&self, at: Duration) -> bool {
        self.sink_down == 0 && at >= self.audit_at
    }

    /// I2: reads what is new in the sink; what the hub says is durable must be there or stand in a gap.
    pub(super) async fn audit(
        &mut self,
        at: Duration,
        ledger: &Ledger,
        sink: &dyn Sink,
        states: impl FnOnce() -> Vec<StreamState>,
    ) -> Result<(), Violation> {
        self.audit_at = at + AUDIT_EVERY;
        if ledger.is_empty() {
            return Ok(());
        }
        let states = states();
        match self.audit.read(ledger, sink).await {
            Err(Discrepancy::Wrong(text)) => return Err(Violation::new(Invariant::Count, at, None, text)),
            Err(Discrepancy::Unread(_)) => return Ok(()),
            Ok(()) => {}
        }
        if let Some(text) = self.audit.not_kept(ledger, &states) {
            return Err(Violation::new(Invariant::Count, at, None, text));
        }
        self.books = Some(self.audit.outcome(ledger));
        Ok(())
    }

    /// What is missing until every promised record is there or in a gap. Once nothing is, the whole sink is read anew.
    pub(super) async fn settled(
        &mut self,
        at: Duration,
        ledger: &Ledger,
        sink: &dyn Sink,
        states: &[StreamState],
    ) -> Result<Option<String>, Violation> {
        if ledger.is_empty() {
            self.books = Some(Outcome::default());
            return Ok(None);
        }
        let mut audit = std::mem::take(&mut self.audit);
        for fresh in [false, true] {
            if fresh {
                audit = Audit::default();
            }
            match audit.read(ledger, sink).await {
                Err(Discrepancy::Wrong(text)) => return Err(Violation::new(Invariant::Count, at, None, text)),
                Err(error @ Discrepancy::Unread(_)) => return Ok(Some(error.to_string())),
                Ok(()) => {}
            }
            let mut outcome = audit.outcome(ledger);
            outcome.unknowable = self.unknowable(&audit, ledger, states);
            outcome.missing -= outcome.unknowable;
            self.books = Some(outcome);
            if outcome.missing > 0 {
                self.audit = audit;
                return Ok(Some(format!(
                    "{} of {} acknowledged records are neither at the hub nor in a gap",
                    outcome.missing, outcome.acknowledged
                )));
            }
        }
        let in_gaps = self.books.unwrap_or_default().in_gaps;
        self.audit = audit;
        match self.in_gaps {
            Some(expected) if in_gaps > expected => {
                let text = format!("{in_gaps} records stand in gaps, the plan allows {expected}");
                Err(Violation::new(Invariant::Count, at, None, text))
            }
            Some(expected) if in_gaps < expected => {
                Ok(Some(format!("{in_gaps} records stand in gaps, the plan expects {expected}")))
            }
            _ => Ok(None),
        }
    }

    /// Records that went with a box's outbox, in an epoch of which the hub forgot: no gap can be shown.
    fn unknowable(&self, audit: &Audit, ledger: &Ledger, states: &[StreamState]) -> u64 {
        if !self.forgot || self.reinstalled.is_empty() {
            return 0;
        }
        let is_known = |node: &Name, stream: &Name, epoch| {
            states.iter().any(|s| (&s.node, &s.key.stream, s.key.epoch) == (node, stream, epoch))
        };
        let missing = audit.missing(ledger).into_iter();
        let unknown = missing
            .filter(|(node, stream, epoch, _)| self.reinstalled.contains(node) && !is_known(node, stream, *epoch));
        unknown.map(|(.., count)| count).sum()
    }

    pub(super) fn books(&self) -> Option<Outcome> {
        self.books
    }
}
