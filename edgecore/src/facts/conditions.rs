//! Conditions with hysteresis: where one begins and where it ends lie apart, so it does not flutter.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use proto::object::{Condition, ConditionStatus, Usage};

/// Disk pressure begins below this share of the disk or this many bytes, whichever is less.
const DISK_LOW_PERCENT: u64 = 10;
const DISK_LOW_BYTES: u64 = 1 << 30;
/// Memory pressure begins below this share of available memory, and ends above twice as much.
const MEMORY_LOW_PERCENT: u64 = 5;
/// A clock is wrong beyond this, and right again below half of it.
const SKEW: SignedDuration = SignedDuration::from_secs(30);

/// What is, and since when.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    clock_offset: Option<SignedDuration>,
    now: Arc<[Condition]>,
}

impl Conditions {
    /// How far our clock is ahead of the hub's.
    pub(super) fn set_clock_offset(&mut self, offset: SignedDuration) {
        self.clock_offset = Some(offset);
    }

    /// Judges anew. While no status changes, what is returned stays the same one.
    pub(super) fn update(&mut self, usage: &Usage, memory_bytes: u64, now: Timestamp) -> Arc<[Condition]> {
        let judged = [
            self.judge("DiskPressure", now, |was| disk(usage, was)),
            self.judge("MemoryPressure", now, |was| memory(usage, memory_bytes, was)),
            self.judge("ClockSkew", now, |was| clock(self.clock_offset, was)),
        ];
        if judged.iter().any(Option::is_some) {
            let before = Arc::clone(&self.now);
            let all = judged.into_iter().enumerate().filter_map(|(at, new)| new.or_else(|| before.get(at).cloned()));
            self.now = all.collect();
        }
        Arc::clone(&self.now)
    }

    /// A condition whose status is another now.
    fn judge(&self, kind: &str, now: Timestamp, verdict: impl FnOnce(bool) -> Verdict) -> Option<Condition> {
        let before = self.now.iter().find(|c| c.r#type == kind);
        let (status, reason, message) = verdict(before.is_some_and(|c| c.status == ConditionStatus::True));
        if before.is_some_and(|before| before.status == status) {
            return None;
        }
        let reason = reason.to_owned();
        Some(Condition { r#type: kind.to_owned(), status, reason, message, last_transition_time: now })
    }
}

type Verdict = (ConditionStatus, &'static str, String);

fn fine(reason: &'static str) -> Verdict {
    (ConditionStatus::False, reason, String::new())
}

fn mebi(bytes: u64) -> u64 {
    bytes >> 20
}

fn disk(usage: &Usage, was: bool) -> Verdict {
    for disk in &usage.disks {
        let low = (disk.total_bytes / 100 * DISK_LOW_PERCENT).min(DISK_LOW_BYTES);
        if disk.free_bytes < if was { low + low / 2 } else { low } {
            let message = format!(
                "{} has {} of {} MiB free, less than {} MiB; make room or use a larger disk",
                disk.path,
                mebi(disk.free_bytes),
                mebi(disk.total_bytes),
                mebi(low)
            );
            return (ConditionStatus::True, "LowDisk", message);
        }
    }
    fine("EnoughDisk")
}

fn memory(usage: &Usage, total: u64, was: bool) -> Verdict {
    let available = total.saturating_sub(usage.memory_used_bytes);
    let low = total / 100 * MEMORY_LOW_PERCENT;
    if available < if was { low * 2 } else { low } {
        let message = format!(
            "{} of {} MiB memory available; stop what is not needed or set limits.memory",
            mebi(available),
            mebi(total)
        );
        return (ConditionStatus::True, "LowMemory", message);
    }
    fine("EnoughMemory")
}

fn clock(offset: Option<SignedDuration>, was: bool) -> Verdict {
    let Some(offset) = offset else {
        return (ConditionStatus::Unknown, "NoHubYet", "the hub's clock is not known yet".into());
    };
    if offset.abs() > if was { SKEW / 2 } else { SKEW } {
        let direction = if offset.is_negative() { "behind" } else { "ahead of" };
        let message = format!("this clock is {} s {direction} the hub's; set up NTP", offset.abs().as_secs());
        return (ConditionStatus::True, "ClockDiffers", message);
    }
    fine("ClockAgrees")
}

#[cfg(test)]
mod tests {
    use proto::object::DiskUsage;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn conditions_begin_and_end_apart_and_keep_their_time() {
        let gib = 1 << 30;
        let mut conditions = Conditions::default();
        let mut look = |second, free_disk: u64, used_memory: u64| {
            let disks = vec![DiskUsage { path: "/data".into(), total_bytes: 100 * gib, free_bytes: free_disk }];
            let usage = Usage { disks, memory_used_bytes: used_memory, ..Usage::default() };
            let all = conditions.update(&usage, 100 * gib, at(second));
            [0, 1].map(|i| (all[i].status, all[i].last_transition_time.as_second()))
        };
        use ConditionStatus::{False, True};
        assert_eq!(look(1, 2 * gib, 0), [(False, 1), (False, 1)]);
        assert_eq!(look(2, gib - 1, 96 * gib), [(True, 2), (True, 2)]);
        assert_eq!(look(3, gib + 1, 94 * gib), [(True, 2), (True, 2)]);
        assert_eq!(look(4, gib * 3 / 2, 89 * gib), [(False, 4), (False, 4)]);
        assert_eq!(look(5, gib + 1, 94 * gib), [(False, 4), (False, 4)]);
    }

    #[test]
    fn a_clock_that_differs_is_told() {
        let mut conditions = Conditions::default();
        let mut look = |offset: Option<i64>| {
            if let Some(offset) = offset {
                conditions.set_clock_offset(SignedDuration::from_secs(offset));
            }
            conditions.update(&Usage::default(), 0, at(1))[2].clone()
        };
        assert_eq!(look(None).status, ConditionStatus::Unknown);
        let behind = look(Some(-3600));
        assert_eq!(behind.status, ConditionStatus::True);
        assert_eq!(behind.message, "this clock is 3600 s behind the hub's; set up NTP");
        assert_eq!(look(Some(-3700)), behind, "the text stays while the status stays");
        assert_eq!(look(Some(20)).status, ConditionStatus::True);
        assert_eq!(look(Some(10)).status, ConditionStatus::False);
        assert_eq!(look(Some(-25)).status, ConditionStatus::False);
    }
}
