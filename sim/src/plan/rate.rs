//! How many records a producer gathers in a while: its mean rate, the time of day, and its peaks, which multiply.

use std::time::Duration;

use super::{Curve, Producer};

const HOUR: Duration = Duration::from_secs(3600);
/// Parcels an hour from midnight on, as shares of the mean in per cent: centers sort at night.
const DAY: [u16; 24] =
    [190, 185, 175, 160, 140, 120, 100, 80, 60, 45, 35, 30, 28, 30, 35, 45, 60, 80, 100, 120, 142, 160, 175, 188];

impl Producer {
    /// Records that gather on one box between two times of a run.
    #[must_use]
    pub fn records(&self, from: Duration, to: Duration) -> f64 {
        let (mut at, mut means) = (from, 0.0);
        while at < to {
            let next = self.changes_after(at).map_or(to, |next| next.min(to));
            means += self.factor(at) * (next - at).as_secs_f64();
            at = next;
        }
        means * self.per_minute / 60.0
    }

    /// When the factor may be another.
    fn changes_after(&self, at: Duration) -> Option<Duration> {
        let edges = self.peaks.iter().flat_map(|peak| [peak.at, peak.at + peak.lasts]).filter(|edge| *edge > at);
        let hour = (self.curve == Curve::Daily).then(|| Duration::from_secs((at.as_secs() / 3600 + 1) * 3600));
        edges.chain(hour).min()
    }

    /// So many times the mean rate.
    fn factor(&self, at: Duration) -> f64 {
        let of_day = match self.curve {
            Curve::Flat => 1.0,
            Curve::Daily => {
                let hour = usize::try_from(at.as_secs() / HOUR.as_secs() % 24).unwrap_or(0);
                let all: u32 = DAY.iter().map(|share| u32::from(*share)).sum();
                DAY.get(hour).map_or(1.0, |share| f64::from(*share) * 24.0 / f64::from(all))
            }
        };
        let here = self.peaks.iter().filter(|peak| (peak.at..peak.at + peak.lasts).contains(&at));
        here.fold(of_day, |factor, peak| factor * peak.times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fault::Target, plan::Peak};

    fn producer(curve: Curve, peaks: Vec<Peak>) -> Producer {
        Producer { on: Target::All, stream: "scans".parse().unwrap(), per_minute: 30.0, curve, peaks }
    }

    fn peak(at: u64, lasts: u64, times: f64) -> Peak {
        Peak { at: Duration::from_secs(at), lasts: Duration::from_secs(lasts), times }
    }

    fn over(producer: &Producer, hours: u32) -> f64 {
        producer.records(Duration::ZERO, HOUR * hours).round()
    }

    #[test]
    fn a_day_brings_the_mean_rate_whatever_its_curve() {
        let (flat, daily) = (producer(Curve::Flat, vec![]), producer(Curve::Daily, vec![]));
        assert_eq!((over(&flat, 24), over(&daily, 24)), (43_200.0, 43_200.0));
        assert!(daily.records(HOUR * 12, HOUR * 13) < 0.4 * 1_800.0);
        assert!(over(&daily, 1) > 1.5 * 1_800.0, "a run begins at midnight");
    }

    #[test]
    fn a_peak_multiplies_while_it_lasts_however_short_it_is() {
        assert_eq!(over(&producer(Curve::Flat, vec![peak(3_600, 1_800, 10.0)]), 2), 11_700.0);
        assert_eq!(over(&producer(Curve::Flat, vec![peak(100, 2, 601.0)]), 1), 2_400.0);
        assert_eq!(over(&producer(Curve::Flat, vec![peak(1_800, 36_000, 0.0)]), 2), 900.0);
    }

    #[test]
    fn peaks_at_the_same_time_multiply_each_other() {
        let peaks = vec![peak(0, 3_600, 30.0), peak(1_800, 3_600, 30.0)];
        assert_eq!(over(&producer(Curve::Flat, peaks), 1), 900.0 * 30.0 + 900.0 * 900.0);
    }
}
