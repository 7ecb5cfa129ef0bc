//! When the hub's folder is backed up: only for restores that are planned.
//!
//! When a restore comes is known from the timeline, jitter included. A backup serves every restore for which it is
//! of the right age, up to a quarter older; it goes when it has served the last. A restore that waits for a moment
//! may come at any time: for it one is made now and then, so that there always is one of about its age.

use std::time::Duration;

/// A restore may find a backup so much older than it asks for, as a share of the age. At least [`SLACK`]: a step may
/// come a little late.
const OLDER: u32 = 4;
const SLACK: Duration = Duration::from_secs(1);
/// Most backups of a run for a restore whose time is not known, about.
const UNPLANNED: u32 = 1_000;

/// A restore at a known time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Restore {
    pub(super) at: Duration,
    pub(super) age: Duration,
}

/// A backup: when it is made, and until when it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backup {
    pub(super) at: Duration,
    pub(super) until: Duration,
}

/// As few backups as serve all of these restores. What is to be older than the run is of its beginning.
pub(super) fn planned(restores: impl IntoIterator<Item = Restore>) -> Vec<Backup> {
    let mut wanted: Vec<(Duration, Duration, Duration)> = restores
        .into_iter()
        .map(|Restore { at, age }| {
            let latest = at.saturating_sub(age + SLACK);
            (latest, latest.saturating_sub(age / OLDER), at)
        })
        .collect();
    wanted.sort_unstable();
    let mut backups: Vec<Backup> = vec![];
    for (latest, earliest, until) in wanted {
        match backups.last_mut() {
            Some(last) if last.at >= earliest => last.until = last.until.max(until),
            _ => backups.push(Backup { at: latest, until }),
        }
    }
    backups
}

/// Between two backups for a restore that may come at any time of a run, and how long each is needed.
pub(super) fn unplanned(age: Duration, run: Duration) -> (Duration, Duration) {
    let every = (age / OLDER).max(run / UNPLANNED).max(SLACK);
    (every, age + every * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn restore(at: u64, age: u64) -> Restore {
        Restore { at: s(at), age: s(age) }
    }

    /// How old the backup is that a restore finds.
    fn found(backups: &[Backup], restore: Restore) -> Duration {
        let there = backups.iter().filter(|b| b.at <= restore.at && restore.at <= b.until);
        let age = |b: &Backup| restore.at - b.at;
        there.map(age).filter(|found| *found >= restore.age).min().unwrap()
    }

    #[test]
    fn a_young_and_an_old_restore_need_one_backup_each() {
        let (young, old) = (restore(29 * DAY, 4), restore(30 * DAY, 28 * DAY));
        let backups = planned([old, young]);
        assert_eq!(backups.len(), 2);
        assert_eq!((found(&backups, young), found(&backups, old)), (s(5), s(28 * DAY + 1)));
    }

    #[test]
    fn every_restore_finds_one_of_about_its_age_and_few_are_kept() {
        let restores: Vec<Restore> = (0..600).map(|hour| restore(28 * DAY + hour * 3_600, 28 * DAY)).collect();
        let backups = planned(restores.iter().copied());
        assert!(backups.len() <= 6, "{}", backups.len());
        for restore in restores {
            let found = found(&backups, restore);
            assert!(found <= restore.age + restore.age / OLDER + SLACK, "{restore:?}: {found:?}");
        }
        assert_eq!(planned([restore(10, 60)]), [Backup { at: s(0), until: s(10) }], "the oldest there can be");
        assert_eq!(planned([]), []);
    }

    #[test]
    fn a_restore_of_seconds_that_waits_a_month_does_not_copy_every_second() {
        let (every, kept) = unplanned(s(4), s(28 * DAY));
        assert!(every > s(2_000) && kept > every, "{every:?}");
        assert_eq!(unplanned(s(60), s(3_600)), (s(15), s(90)));
    }
}
