//! A track as the columns of a picture. Where several values fall into one column the worst shows, so that a
//! picture of a week is bounded and still has the crash of a second.

use crate::record::Changes;

/// A run of columns that show the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run<T> {
    /// First column.
    pub(super) from: usize,
    /// Behind the last one.
    pub(super) to: usize,
    /// Begin and end of what it shows, in milliseconds.
    pub(super) from_ms: u64,
    /// End.
    pub(super) to_ms: u64,
    /// What it shows.
    pub(super) value: T,
}

/// The columns of `changes` over `end_ms`; `worse` orders values, the greatest shows.
pub(super) fn runs<T, V>(
    changes: &Changes<T>,
    end_ms: u64,
    columns: usize,
    value: impl Fn(&T) -> V,
    worse: impl Fn(&V) -> u8,
) -> Vec<Run<V>>
where
    T: PartialEq,
    V: PartialEq + Clone,
{
    let column = |ms: u64| {
        let at = u128::from(ms) * columns as u128 / u128::from(end_ms.max(1));
        usize::try_from(at).unwrap_or(columns).min(columns)
    };
    let mut shown: Vec<Option<(V, u64, u64)>> = vec![None; columns];
    for (from_ms, to_ms, now) in changes.spans(end_ms) {
        let (first, last) = (column(from_ms).min(columns.saturating_sub(1)), column(to_ms));
        let now = value(now);
        for cell in shown.iter_mut().take(last.max(first + 1)).skip(first) {
            if cell.as_ref().is_none_or(|(before, ..)| worse(before) < worse(&now)) {
                *cell = Some((now.clone(), from_ms, to_ms));
            }
        }
    }
    let mut runs: Vec<Run<V>> = vec![];
    for (at, cell) in shown.into_iter().enumerate() {
        let Some((value, from_ms, to_ms)) = cell else { continue };
        match runs.last_mut() {
            Some(last) if last.to == at && last.value == value => (last.to, last.to_ms) = (at + 1, to_ms),
            _ => runs.push(Run { from: at, to: at + 1, from_ms, to_ms, value }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_trouble_shows_in_a_long_picture() {
        let mut changes = Changes::default();
        changes.set(0, 0_u8);
        changes.set(500_000, 3);
        changes.set(500_001, 0);
        let runs = runs(&changes, 1_000_000, 10, |v| *v, |v| *v);
        let shape: Vec<_> = runs.iter().map(|run| (run.from, run.to, run.value)).collect();
        assert_eq!(shape, [(0, 5, 0), (5, 6, 3), (6, 10, 0)]);
    }

    #[test]
    fn what_begins_later_leaves_columns_empty() {
        let mut changes = Changes::default();
        changes.set(50, 1_u8);
        let runs = runs(&changes, 100, 10, |v| *v, |v| *v);
        assert_eq!(runs, [Run { from: 5, to: 10, from_ms: 50, to_ms: 100, value: 1 }]);
    }
}
