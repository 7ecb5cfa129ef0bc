//! A value over time: the first changes, and how it was in the end.

use serde::{Deserialize, Serialize};

/// Changes kept; of a line that flaps for days the rest is counted.
pub const MAX_CHANGES: usize = 2_000;

/// A value over time: only where it changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes<T> {
    /// When it changed, in milliseconds since the run began, and to what.
    pub changes: Vec<(u64, T)>,
    /// What came after those, when there were too many.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub rest: Option<Rest<T>>,
}

fn none<T>() -> Option<Rest<T>> {
    None
}

/// What was not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest<T> {
    /// From then on changes were not kept.
    pub from_ms: u64,
    /// How many there were before the last.
    pub not_kept: u64,
    /// When it changed for the last time, and to what.
    pub last: (u64, T),
}

/// A time in which a value was one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span<'a, T> {
    /// Begin, in milliseconds.
    pub from_ms: u64,
    /// End.
    pub to_ms: u64,
    /// The value, or how many changes there were that were not kept.
    pub value: Result<&'a T, u64>,
}

impl<T> Default for Changes<T> {
    fn default() -> Changes<T> {
        Changes { changes: vec![], rest: None }
    }
}

impl<T> Changes<T> {
    /// Changes that were not kept: there were too many.
    #[must_use]
    pub fn not_kept(&self) -> u64 {
        self.rest.as_ref().map_or(0, |rest| rest.not_kept)
    }

    /// When it changed for the last time, and to what.
    #[must_use]
    pub fn last(&self) -> Option<&(u64, T)> {
        self.rest.as_ref().map(|rest| &rest.last).or(self.changes.last())
    }

    /// Each value with its begin and end, up to `end_ms`.
    pub fn spans(&self, end_ms: u64) -> impl Iterator<Item = Span<'_, T>> {
        let behind = self.rest.as_ref().map_or(end_ms, |rest| rest.from_ms);
        let ends = self.changes.iter().skip(1).map(|(at, _)| *at).chain([behind]);
        let kept = self.changes.iter().zip(ends).map(|((from_ms, value), to)| (*from_ms, to, Ok(value)));
        let rest = self.rest.iter().flat_map(move |rest| {
            let unknown = (rest.from_ms, rest.last.0, Err(rest.not_kept));
            let last = (rest.last.0, end_ms, Ok(&rest.last.1));
            // Of one change more than are kept nothing is missing.
            [(rest.not_kept > 0).then_some(unknown), Some(last)].into_iter().flatten()
        });
        kept.chain(rest).map(|(from_ms, to, value)| Span { from_ms, to_ms: to.max(from_ms), value })
    }
}

impl<T: PartialEq> Changes<T> {
    /// The value is this from now on. Times must not fall.
    pub fn set(&mut self, at_ms: u64, value: T) {
        let same_time = match self.last() {
            Some((_, last)) if *last == value => return,
            last => last.is_some_and(|(at, _)| *at == at_ms),
        };
        if let Some(rest) = &mut self.rest {
            rest.not_kept += u64::from(!same_time);
            rest.last = (at_ms, value);
        } else if same_time {
            self.changes.pop();
            self.changes.push((at_ms, value));
        } else if self.changes.len() < MAX_CHANGES {
            self.changes.push((at_ms, value));
        } else {
            self.rest = Some(Rest { from_ms: at_ms, not_kept: 0, last: (at_ms, value) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(changes: &Changes<u64>, end_ms: u64) -> Vec<(u64, u64, Result<u64, u64>)> {
        changes.spans(end_ms).map(|span| (span.from_ms, span.to_ms, span.value.copied())).collect()
    }

    #[test]
    fn only_changes_are_kept() {
        let mut changes = Changes::default();
        for at in 0..10 {
            changes.set(at, at / 5);
        }
        assert_eq!(changes.changes, [(0, 0), (5, 1)]);
        assert_eq!(spans(&changes, 20), [(0, 5, Ok(0)), (5, 20, Ok(1))]);
        changes.set(9, 2);
        changes.set(9, 3);
        assert_eq!(changes.changes, [(0, 0), (5, 1), (9, 3)]);
    }

    #[test]
    fn what_is_not_kept_is_counted_and_the_last_value_has_its_own_time() {
        let mut flaps = Changes::default();
        let first = MAX_CHANGES as u64;
        for at in 0..=first {
            flaps.set(at, at % 2);
        }
        assert_eq!((flaps.changes.len(), flaps.not_kept()), (MAX_CHANGES, 0));
        assert_eq!(spans(&flaps, 9_000).last(), Some(&(first, 9_000, Ok(first % 2))), "one more is still known");
        for at in first + 1..8_000 {
            flaps.set(at, at % 2);
        }
        let not_kept = 8_000 - first - 1;
        assert_eq!((flaps.changes.len(), flaps.not_kept(), flaps.last()), (MAX_CHANGES, not_kept, Some(&(7_999, 1))));
        let shown = spans(&flaps, 9_000);
        assert_eq!(
            shown[MAX_CHANGES - 1..],
            [(first - 1, first, Ok(1)), (first, 7_999, Err(not_kept)), (7_999, 9_000, Ok(1))]
        );
        let json = serde_json::to_string(&flaps).unwrap();
        assert_eq!(serde_json::from_str::<Changes<u64>>(&json).unwrap(), flaps);
    }
}
