//! The gate of a wave: passed, failed, or too little evidence. Arithmetic alone.

use proto::object::rollout::{Gate, WaveCounts};

/// What a wave's evidence says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nodes are still to be decided, and so far it is well.
    Open,
    /// It proved the release.
    Passed,
    /// More nodes failed than may.
    Failed,
    /// Nobody is left who could prove anything, and what was proved is too little.
    Inconclusive,
}

/// Judges. `forgiven` failures were there when somebody resumed the rollout, and do not count. With `incomparable` a
/// rule compares with the release before, and no node could be compared.
pub(super) fn judge(gate: &Gate, counts: WaveCounts, forgiven: u32, incomparable: bool) -> Verdict {
    let WaveCounts { healthy, blocked, .. } = counts;
    let failed = counts.failed.saturating_sub(forgiven as usize);
    let decided = healthy + counts.failed;
    // Deferred nodes are nobody's evidence, whichever way.
    let there = counts.all - counts.taken - counts.deferred;
    let sample = (gate.min_sample as usize).min(there).max(1);
    let many = match gate.max_failure_percent {
        Some(percent) => decided >= sample && failed * 100 > percent as usize * decided,
        None => true,
    };
    if failed > gate.max_failures as usize && many {
        return Verdict::Failed;
    }
    if counts.at_work() > 0 {
        return Verdict::Open;
    }
    // Who is healthy and has told too little may yet break a rule.
    if counts.unproven > 0 || incomparable {
        return Verdict::Inconclusive;
    }
    let proven = healthy > 0 || counts.failed > 0 && failed == 0;
    let enough = gate.min_success_percent.is_none_or(|percent| healthy * 100 >= percent as usize * there);
    if blocked == 0 && decided >= sample && proven && enough { Verdict::Passed } else { Verdict::Inconclusive }
}

/// The arithmetic, for people.
pub(super) fn explain(gate: &Gate, counts: WaveCounts, forgiven: u32) -> String {
    let WaveCounts { all, taken, healthy, failed, deferred, blocked, unproven } = counts;
    let mut text = format!("{healthy} of {all} healthy");
    let told = [
        (failed, "failed"),
        (unproven, "telling too little of themselves yet"),
        (counts.at_work(), "at work or waiting"),
        (blocked, "blocked"),
        (deferred, "deferred"),
        (taken, "superseded"),
    ];
    for (number, word) in told {
        if number > 0 {
            text.push_str(&format!(", {number} {word}"));
        }
    }
    let mut rule = match gate.max_failure_percent {
        Some(percent) => format!("{percent} % of at least {} decided", gate.min_sample),
        None => gate.max_failures.to_string(),
    };
    if let Some(percent) = gate.min_success_percent {
        rule.push_str(&format!(", at least {percent} % healthy"));
    }
    text.push_str(&format!("; may fail: {rule}"));
    if forgiven > 0 {
        text.push_str(&format!(", besides {forgiven} from before it was resumed"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(all: usize, healthy: usize, failed: usize, deferred: usize, blocked: usize) -> WaveCounts {
        WaveCounts { all, healthy, failed, deferred, blocked, ..WaveCounts::default() }
    }

    #[test]
    fn a_wave_passes_on_evidence_alone() {
        let gate = Gate::default();
        assert_eq!(judge(&gate, counts(3, 3, 0, 0, 0), 0, false), Verdict::Passed);
        assert_eq!(judge(&gate, counts(3, 2, 0, 0, 0), 0, false), Verdict::Open);
        // hawkBit's fault: all have finished, and success was not met.
        let strict = Gate { max_failures: 3, min_success_percent: Some(90), ..Gate::default() };
        assert_eq!(judge(&strict, counts(10, 8, 2, 0, 0), 0, false), Verdict::Inconclusive);
        // KubeEdge's fault: those who are offline are no failures.
        assert_eq!(judge(&gate, counts(100, 89, 0, 11, 0), 0, false), Verdict::Passed);
        // Nobody there, or nobody left: that says nothing.
        assert_eq!(judge(&gate, counts(3, 0, 0, 3, 0), 0, false), Verdict::Inconclusive);
        assert_eq!(judge(&gate, counts(0, 0, 0, 0, 0), 0, false), Verdict::Inconclusive);
        assert_eq!(judge(&gate, counts(3, 2, 0, 0, 1), 0, false), Verdict::Inconclusive);
        // All failed and that many may: still nobody proved it.
        let lax = Gate { max_failures: 3, ..Gate::default() };
        assert_eq!(judge(&lax, counts(2, 0, 2, 0, 0), 0, false), Verdict::Inconclusive);
    }

    #[test]
    fn a_wave_waits_for_those_who_tell_too_little() {
        let gate = Gate { max_failures: 1, ..Gate::default() };
        let unproven = |healthy, failed| WaveCounts { unproven: 1, ..counts(3, healthy, failed, 0, 0) };
        assert_eq!(judge(&gate, unproven(2, 0), 0, false), Verdict::Inconclusive);
        assert_eq!(judge(&gate, unproven(1, 0), 0, false), Verdict::Open, "somebody is at work");
        assert_eq!(judge(&gate, unproven(1, 1), 0, false), Verdict::Inconclusive);
        assert_eq!(judge(&gate, unproven(0, 2), 0, false), Verdict::Failed, "a failure waits for nobody");
        assert_eq!(judge(&gate, counts(3, 3, 0, 0, 0), 0, true), Verdict::Inconclusive, "nobody could be compared");
    }

    #[test]
    fn failures_count_once_there_is_a_sample() {
        assert_eq!(judge(&Gate::default(), counts(9, 0, 1, 0, 0), 0, false), Verdict::Failed);
        assert_eq!(judge(&Gate::default(), counts(9, 8, 1, 0, 0), 1, false), Verdict::Passed, "forgiven");
        let ratio = Gate { max_failure_percent: Some(10), min_sample: 10, ..Gate::default() };
        assert_eq!(judge(&ratio, counts(50, 0, 2, 0, 0), 0, false), Verdict::Open);
        assert_eq!(judge(&ratio, counts(50, 8, 2, 0, 0), 0, false), Verdict::Failed);
        assert_eq!(judge(&ratio, counts(20, 18, 2, 0, 0), 0, false), Verdict::Passed);
        // A wave smaller than the sample needs all its nodes.
        assert_eq!(judge(&ratio, counts(3, 2, 1, 0, 0), 0, false), Verdict::Failed);
        assert_eq!(judge(&ratio, counts(3, 3, 0, 0, 0), 0, false), Verdict::Passed);
    }
}
