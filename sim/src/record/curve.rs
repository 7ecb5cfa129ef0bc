//! A figure over time with a bounded number of points: where there are too many, neighbours share one, and the
//! greater stays.

use serde::{Deserialize, Serialize};

/// Points of a curve.
pub const MAX_POINTS: usize = 400;

/// Maxima of a figure in slots of equal length. A figure stays until it is given anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Curve {
    /// Length of a slot in milliseconds.
    pub slot_ms: u64,
    /// The maximum of each slot.
    pub maxima: Vec<u64>,
    /// The last figure.
    pub last: u64,
}

impl Default for Curve {
    fn default() -> Curve {
        Curve { slot_ms: 1_000, maxima: vec![], last: 0 }
    }
}

impl Curve {
    /// The figure is this from now on. Times must not fall.
    pub fn add(&mut self, at_ms: u64, figure: u64) {
        while at_ms / self.slot_ms >= MAX_POINTS as u64 {
            self.maxima = self.maxima.chunks(2).map(|pair| pair.iter().copied().max().unwrap_or(0)).collect();
            self.slot_ms *= 2;
        }
        let slot = usize::try_from(at_ms / self.slot_ms).unwrap_or(MAX_POINTS);
        while self.maxima.len() <= slot {
            self.maxima.push(self.last);
        }
        if let Some(maximum) = self.maxima.get_mut(slot) {
            *maximum = (*maximum).max(figure);
        }
        self.last = figure;
    }

    /// The greatest figure.
    #[must_use]
    pub fn maximum(&self) -> u64 {
        self.maxima.iter().copied().max().unwrap_or(0)
    }

    /// Begin of each slot in milliseconds, and its maximum.
    pub fn points(&self) -> impl Iterator<Item = (u64, u64)> {
        self.maxima.iter().zip(0..).map(|(maximum, slot)| (slot * self.slot_ms, *maximum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_keeps_its_peaks() {
        let mut curve = Curve::default();
        for second in 0..200_000_u64 {
            curve.add(second * 1000, if second == 77_777 { 1_000_000 } else { second % 10 });
        }
        assert!(curve.maxima.len() <= MAX_POINTS, "{}", curve.maxima.len());
        assert_eq!(curve.maximum(), 1_000_000);
        let (at, _) = curve.points().find(|(_, maximum)| *maximum == 1_000_000).unwrap();
        assert!((at..at + curve.slot_ms).contains(&77_777_000));
    }

    #[test]
    fn a_figure_stays_until_the_next() {
        let mut curve = Curve::default();
        curve.add(0, 5);
        curve.add(4_000, 2);
        assert_eq!(curve.maxima, [5, 5, 5, 5, 5]);
        curve.add(5_000, 3);
        assert_eq!(curve.maxima, [5, 5, 5, 5, 5, 3]);
    }
}
