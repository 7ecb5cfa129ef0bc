//! A track as the columns of a picture. Where several values fall into one column the worst shows, so that a
//! picture of a week is bounded and still has the crash of a second. Where changes were not kept, that shows.

use crate::record::{Changes, Span};

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
    /// What it shows, or how many changes there were that were not kept.
    pub(super) value: Result<T, u64>,
}

/// What a column shows, from when to when, in milliseconds.
type Cell<V> = Option<(Result<V, u64>, u64, u64)>;

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
    let worse = |value: &Result<V, u64>| value.as_ref().map_or(u16::MAX, |value| worse(value).into());
    let mut shown: Vec<Cell<V>> = vec![None; columns];
    for Span { from_ms, to_ms, value: now } in changes.spans(end_ms) {
        let (first, last) = (column(from_ms).min(columns.saturating_sub(1)), column(to_ms));
        let now = now.map(&value);
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
        assert_eq!(shape, [(0, 5, Ok(0)), (5, 6, Ok(3)), (6, 10, Ok(0))]);
    }

    #[test]
    fn what_begins_later_leaves_columns_empty() {
        let mut changes = Changes::default();
        changes.set(50, 1_u8);
        let runs = runs(&changes, 100, 10, |v| *v, |v| *v);
        assert_eq!(runs, [Run { from: 5, to: 10, from_ms: 50, to_ms: 100, value: Ok(1) }]);
    }

    #[test]
    fn changes_that_were_not_kept_show_as_such() {
        let mut changes = Changes::default();
        for at in 0..8_000 {
            changes.set(at, (at % 2) as u8);
        }
        let runs = runs(&changes, 10_000, 10, |v| *v, |v| *v);
        let shape: Vec<_> = runs.iter().map(|run| (run.from, run.to, run.value)).collect();
        assert_eq!(shape, [(0, 2, Ok(1)), (2, 7, Err(5_999)), (7, 10, Ok(1))]);
    }
}
