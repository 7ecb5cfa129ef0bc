//! When cameras count as lost: `cameras_lost` of a workload, with hysteresis, so that one loose plug is one event.
//!
//! They are lost once every report of [`STEADY`] said so, and there again once every report of that time said so. A
//! workload that runs and tells nothing for [`STALE`] is said, too; of one that does not run nobody knows.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use proto::{
    name::Name,
    object::{Condition, ConditionStatus, condition},
};
use tokio::time::Instant;

use super::STALE;

/// What was told all through this time is so.
const STEADY: Duration = Duration::from_secs(15);

/// What workloads tell of their cameras.
#[derive(Debug, Default)]
pub(super) struct Cameras {
    apps: BTreeMap<Name, Seen>,
    /// Somebody told of cameras since the agent started.
    any: bool,
}

#[derive(Debug)]
struct Seen {
    /// Cameras that are lost, as it was told last.
    count: u64,
    at: Instant,
    /// Since when `count` is that, and since when it is 0 or is not.
    since: Instant,
    lost_since: Instant,
    /// What the condition says.
    told: u64,
}

impl Cameras {
    /// A workload told how many it lost.
    pub fn told(&mut self, app: &Name, lost: f64, now: Instant) {
        // A number that is negative or absurd is cut by the cast.
        let count = lost.ceil() as u64;
        self.any = true;
        match self.apps.get_mut(app) {
            Some(seen) => {
                if (seen.count > 0) != (count > 0) {
                    seen.lost_since = now;
                }
                if seen.count != count {
                    seen.since = now;
                }
                (seen.count, seen.at) = (count, now);
            }
            None => {
                let seen = Seen { count, at: now, since: now, lost_since: now, told: 0 };
                self.apps.insert(app.clone(), seen);
            }
        }
    }

    /// The condition; `None` when nobody ever told of cameras.
    pub fn look(&mut self, runs: impl Fn(&Name) -> bool, now: Instant, wall: Timestamp) -> Option<Condition> {
        self.apps.retain(|app, seen| runs(app) || now.duration_since(seen.at) < STALE);
        let (mut lost, mut silent) = (vec![], vec![]);
        for (app, seen) in &mut self.apps {
            seen.settle();
            if now.duration_since(seen.at) >= STALE {
                silent.push(app.as_str());
            } else if seen.told > 0 {
                lost.push(format!("{app} has lost {} of its cameras", seen.told));
            }
        }
        let (status, reason, message) = if !lost.is_empty() {
            (ConditionStatus::True, "CamerasLost", format!("{}; look at them and their lines", lost.join(", ")))
        } else if !silent.is_empty() {
            let who = silent.join(", ");
            let text = format!("{who} runs, and has told nothing of its cameras for {} s", STALE.as_secs());
            (ConditionStatus::Unknown, "NotTold", text)
        } else {
            (ConditionStatus::False, "CamerasThere", String::new())
        };
        let kind = condition::CAMERAS_LOST.to_owned();
        let condition = Condition { r#type: kind, status, reason: reason.into(), message, last_transition_time: wall };
        self.any.then_some(condition)
    }
}

impl Seen {
    /// What every report since then has said is so.
    fn settle(&mut self) {
        let steady = |since: Instant| self.at.duration_since(since) >= STEADY;
        if steady(self.since) || (self.count > 0) != (self.told > 0) && steady(self.lost_since) {
            self.told = self.count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the condition says after reports, one a second, at the end of each run of them.
    fn play(runs: &[(u64, f64)]) -> Vec<(ConditionStatus, String)> {
        let (mut cameras, app, begun) = (Cameras::default(), "vision".parse::<Name>().unwrap(), Instant::now());
        let mut second = 0;
        let mut said = vec![];
        for (seconds, lost) in runs {
            for _ in 0..*seconds {
                second += 1;
                let now = begun + Duration::from_secs(second);
                cameras.told(&app, *lost, now);
                cameras.look(|_| true, now, Timestamp::UNIX_EPOCH);
            }
            let now = begun + Duration::from_secs(second);
            let condition = cameras.look(|_| true, now, Timestamp::UNIX_EPOCH).unwrap();
            said.push((condition.status, condition.message));
        }
        said
    }

    #[test]
    fn cameras_are_lost_and_found_after_a_while() {
        use ConditionStatus::{False, True};
        let said = play(&[(30, 0.0), (10, 1.0), (10, 1.0), (3, 2.0), (20, 2.0), (10, 0.0), (10, 0.0)]);
        assert_eq!(
            said.iter().map(|(status, _)| *status).collect::<Vec<_>>(),
            [False, False, True, True, True, True, False]
        );
        assert!(said[3].1.starts_with("vision has lost 1 of its cameras;"), "{}", said[3].1);
        assert!(said[4].1.starts_with("vision has lost 2 of its cameras;"), "{}", said[4].1);
    }

    #[test]
    fn a_loose_plug_is_no_event_each_second() {
        let loose: Vec<(u64, f64)> = (0..20).flat_map(|_| [(5, 1.0), (5, 0.0)]).collect();
        assert!(play(&loose).iter().all(|(status, _)| *status == ConditionStatus::False));
        // Lost, now one and now two of them: that is lost all the time.
        let worse: Vec<(u64, f64)> = (0..20).flat_map(|_| [(5, 1.0), (5, 2.0)]).collect();
        assert_eq!(play(&worse).last().unwrap().0, ConditionStatus::True);
    }

    #[test]
    fn who_tells_nothing_is_said_and_who_does_not_run_is_forgotten() {
        let (mut cameras, app, begun) = (Cameras::default(), "vision".parse::<Name>().unwrap(), Instant::now());
        assert!(cameras.look(|_| true, begun, Timestamp::UNIX_EPOCH).is_none());
        for (second, lost) in [(0, 1.0), (20, 1.0)] {
            cameras.told(&app, lost, begun + Duration::from_secs(second));
        }
        let mut at = |second, runs: bool| {
            let now = begun + Duration::from_secs(second);
            cameras.look(|_| runs, now, Timestamp::UNIX_EPOCH).unwrap().status
        };
        assert_eq!(at(21, true), ConditionStatus::True);
        assert_eq!(at(60, false), ConditionStatus::True, "it is being replaced");
        assert_eq!(at(81, true), ConditionStatus::Unknown);
        assert_eq!(at(82, false), ConditionStatus::False);
        cameras.told(&app, f64::MAX, begun);
        cameras.told(&app, f64::MIN, begun);
    }
}
