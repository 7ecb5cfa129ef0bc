//! Sets of sequences as few half-open ranges.

use serde::{Deserialize, Serialize};

/// Sequences from the first to before the second.
pub type Range = std::ops::Range<u64>;

/// A set of sequences: ranges in order, apart from each other, none empty. On the wire `[[first, end], ..]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct Ranges(Vec<Range>);

/// What was read is no set of sequences.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ranges must be in order, apart from each other and not empty")]
pub struct NotRanges;

impl TryFrom<Vec<(u64, u64)>> for Ranges {
    type Error = NotRanges;
    fn try_from(pairs: Vec<(u64, u64)>) -> Result<Ranges, NotRanges> {
        let mut before = None;
        for (first, end) in &pairs {
            if first >= end || before.is_some_and(|b| b >= *first) {
                return Err(NotRanges);
            }
            before = Some(*end);
        }
        Ok(Ranges(pairs.into_iter().map(|(first, end)| first..end).collect()))
    }
}

impl From<Ranges> for Vec<(u64, u64)> {
    fn from(ranges: Ranges) -> Vec<(u64, u64)> {
        ranges.0.into_iter().map(|r| (r.start, r.end)).collect()
    }
}

impl Ranges {
    /// The ranges, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Range> + '_ {
        self.0.iter().cloned()
    }

    /// How many ranges.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.0.len()
    }

    /// How many sequences.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.iter().map(|r| r.end - r.start).sum()
    }

    /// Whether all of `range` is in it. An empty range always is.
    #[must_use]
    pub fn contains(&self, range: &Range) -> bool {
        range.is_empty() || self.iter().any(|r| r.start <= range.start && range.end <= r.end)
    }

    /// The first sequence at or after `at` that is not in it.
    #[must_use]
    pub fn first_missing(&self, at: u64) -> u64 {
        self.iter().find(|r| r.contains(&at)).map_or(at, |r| r.end)
    }

    /// The first sequence at or after `at` that is in it.
    #[must_use]
    pub fn first_present(&self, at: u64) -> Option<u64> {
        self.iter().find(|r| r.end > at).map(|r| r.start.max(at))
    }

    /// Adds a range.
    pub fn insert(&mut self, range: Range) {
        if range.is_empty() {
            return;
        }
        let from = self.0.partition_point(|r| r.end < range.start);
        let to = self.0.partition_point(|r| r.start <= range.end);
        let touched = self.0.get(from..to).unwrap_or_default();
        let start = touched.first().map_or(range.start, |r| r.start.min(range.start));
        let end = touched.last().map_or(range.end, |r| r.end.max(range.end));
        self.0.splice(from..to, [start..end]);
    }

    /// Adds all of another set.
    pub fn extend(&mut self, other: &Ranges) {
        for range in other.iter() {
            self.insert(range);
        }
    }

    /// The parts of `range` that are not in it, in order.
    #[must_use]
    pub fn missing(&self, range: Range) -> Vec<Range> {
        let mut missing = vec![];
        let mut at = range.start;
        for r in self.iter().filter(|r| r.start < range.end && r.end > range.start) {
            if r.start > at {
                missing.push(at..r.start);
            }
            at = at.max(r.end);
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        missing
    }
}

impl FromIterator<Range> for Ranges {
    fn from_iter<T: IntoIterator<Item = Range>>(iter: T) -> Ranges {
        let mut ranges = Ranges::default();
        for range in iter {
            ranges.insert(range);
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(inserts in prop::collection::vec((0u64..60, 0u64..12), 0..30), asked in (0u64..70, 0u64..30)) {
            let mut ranges = Ranges::default();
            let mut model = BTreeSet::new();
            for (first, count) in inserts {
                ranges.insert(first..first + count);
                model.extend(first..first + count);
            }
            prop_assert_eq!(ranges.iter().flatten().collect::<BTreeSet<_>>(), model.clone());
            prop_assert_eq!(ranges.count(), model.len() as u64);
            let pairs: Vec<(u64, u64)> = ranges.clone().into();
            prop_assert_eq!(Ranges::try_from(pairs), Ok(ranges.clone()));
            let (first, count) = asked;
            let range = first..first + count;
            prop_assert_eq!(ranges.contains(&range), range.clone().all(|s| model.contains(&s)));
            let missing: Vec<u64> = ranges.missing(range.clone()).into_iter().flatten().collect();
            prop_assert_eq!(missing, range.filter(|s| !model.contains(s)).collect::<Vec<_>>());
            prop_assert_eq!(ranges.first_missing(first), (first..).find(|s| !model.contains(s)).unwrap());
            prop_assert_eq!(ranges.first_present(first), model.range(first..).next().copied());
        }
    }

    #[test]
    fn what_is_no_set_is_not_read() {
        for bad in ["[[3,3]]", "[[3,2]]", "[[0,2],[2,3]]", "[[4,5],[0,2]]", "[[-1,2]]"] {
            assert!(serde_json::from_str::<Ranges>(bad).is_err(), "{bad}");
        }
        let ranges: Ranges = serde_json::from_str("[[0,2],[3,9]]").unwrap();
        assert_eq!(serde_json::to_string(&ranges).unwrap(), "[[0,2],[3,9]]");
    }
}
