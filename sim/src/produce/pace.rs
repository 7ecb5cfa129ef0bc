//! How many scans are due: a steady rate, or the day of a parcel depot. Pure: time is an argument.

use std::time::Duration;

/// Weight of each hour of the day: the night sort, a quiet noon, the evening's collection. Mean 1.
const DAY: [f64; 24] = [
    1.9, 2.1, 2.2, 2.1, 1.8, 1.4, 1.0, 0.7, 0.5, 0.4, 0.3, 0.3, 0.2, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.1, 1.0, 1.0, 1.2,
    1.5,
];

/// Scans a second over time.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Scans a second, mean over the day.
    pub rate: f64,
    /// The depot's day: how long it lasts, and how far into it we began. `None`: steady.
    pub day: Option<(Duration, Duration)>,
}

impl Pace {
    /// How many are due after `elapsed`, all together.
    #[must_use]
    pub fn due(&self, elapsed: Duration) -> u64 {
        let Some((day, began)) = self.day else { return (self.rate * elapsed.as_secs_f64()) as u64 };
        let day = day.as_secs_f64().max(0.001);
        let began = began.as_secs_f64() / day;
        let days = weight_until(began + elapsed.as_secs_f64() / day) - weight_until(began);
        (self.rate * day * days) as u64
    }
}

/// The day's weight from its beginning to `days` later, in days.
fn weight_until(days: f64) -> f64 {
    let hours = (days - days.floor()) * 24.0;
    let mean = DAY.iter().sum::<f64>() / 24.0;
    let part = DAY.iter().enumerate().map(|(hour, weight)| weight * (hours - hour as f64).clamp(0.0, 1.0)).sum::<f64>();
    days.floor() + part / 24.0 / mean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_steady() {
        let pace = Pace { rate: 2.5, day: None };
        assert_eq!((pace.due(Duration::ZERO), pace.due(Duration::from_secs(10))), (0, 25));
    }

    #[test]
    fn a_day_has_its_peaks_and_keeps_its_mean() {
        const HOUR: Duration = Duration::from_secs(3600);
        let from = |hour: u32| Pace { rate: 10.0, day: Some((24 * HOUR, hour * HOUR)) };
        assert!(from(2).due(HOUR) > 5 * from(12).due(HOUR));
        for hour in 0..24 {
            let whole = from(hour).due(24 * HOUR);
            assert!(whole.abs_diff(864_000) <= 1, "{whole} from {hour} h on");
        }
        let minute = Pace { rate: 100.0, day: Some((Duration::from_secs(60), Duration::ZERO)) };
        assert!(minute.due(Duration::from_secs(60)).abs_diff(6000) <= 1, "a day may be as short as a minute");
    }

    #[test]
    fn what_is_due_never_falls() {
        let pace = Pace { rate: 3.0, day: Some((Duration::from_secs(100), Duration::from_secs(37))) };
        let due: Vec<u64> = (0..1000).map(|tenths| pace.due(Duration::from_millis(tenths * 100))).collect();
        assert!(due.is_sorted());
    }
}
