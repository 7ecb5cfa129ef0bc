//! Space: what may be used, who gives way, when the file gives pages back. Pure decisions.
//!
//! ```text
//! 0 ............... resume ...... data ... limit
//!   taken           |             |        |
//!   full: only      |  hysteresis |  log,  |
//!   below resume    |             | ballast|
//! ```
//!
//! Above `data` logs give way, then metrics, oldest first, counted. Scans and events never do: when
//! nothing else is left they are refused, until `resume` is reached again.

use proto::stream::Class;

/// Bytes of a page of the database.
pub(super) const PAGE_BYTES: u64 = 4096;
/// The least that an outbox works with, whatever the configuration says.
pub(super) const MIN_LIMIT_BYTES: u64 = 2 << 20;
/// Free pages that stay in the file: they are needed again soon.
const KEPT_FREE_BYTES: u64 = 1 << 20;
/// Pages given back by one step.
pub(super) const VACUUM_PAGES: u64 = 256;

/// What may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Of files, in all.
    pub total_bytes: u64,
    /// Of the write-ahead log; a transaction may go beyond for a moment.
    pub wal_bytes: u64,
}

impl Limits {
    /// From the configuration and the size of the disk, where it is known.
    pub(super) fn new(quota_bytes: u64, disk_share_percent: u8, disk_bytes: Option<u64>) -> Limits {
        let share = disk_bytes.map(|disk| disk / 100 * u64::from(disk_share_percent.min(100)));
        let total_bytes = share.map_or(quota_bytes, |share| share.min(quota_bytes)).max(MIN_LIMIT_BYTES);
        Limits { total_bytes, wal_bytes: (total_bytes / 16).clamp(128 << 10, 2 << 20) }
    }

    /// Of pages with content.
    pub(super) fn data_bytes(self) -> u64 {
        self.total_bytes.saturating_sub(self.wal_bytes + self.ballast_bytes())
    }

    /// Of disk that is held, to be let go when the disk is full: deleting and shedding need a little to free a
    /// lot. As much as a log that could not be flushed any more, and once more for what they write.
    pub(super) fn ballast_bytes(self) -> u64 {
        self.wal_bytes * 2
    }

    /// Below this a full outbox takes records again.
    pub(super) fn resume_bytes(self) -> u64 {
        self.data_bytes() / 100 * 95
    }

    /// Shed beyond what is needed, so that not every append sheds.
    fn slack_bytes(self) -> u64 {
        (self.total_bytes / 64).clamp(64 << 10, 8 << 20)
    }
}

/// How the space is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Use {
    /// Pages with content, in bytes.
    pub live_bytes: u64,
    /// Pages without, in bytes.
    pub free_bytes: u64,
    /// Logs that can be shed.
    pub logs_bytes: u64,
    /// Metrics that can be shed.
    pub metrics_bytes: u64,
    /// Whether the last append that could not make room was refused.
    pub full: bool,
}

/// Who comes in and who goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Plan {
    /// For each append, whether it is taken.
    pub taken: Vec<bool>,
    /// Logs to shed first.
    pub shed_logs_bytes: u64,
    /// Metrics to shed after them.
    pub shed_metrics_bytes: u64,
    /// Whether the outbox is full now.
    pub full: bool,
}

/// Plans for appends of a class and a size each, in their order.
pub(super) fn plan(limits: Limits, used: Use, incoming: &[(Class, u64)]) -> Plan {
    let mut plan = Plan { full: used.full, ..Plan::default() };
    let mut live = used.live_bytes;
    for (class, bytes) in incoming {
        let bound = if plan.full { limits.resume_bytes() } else { limits.data_bytes() };
        let over = live.saturating_add(*bytes).saturating_sub(bound);
        let logs = used.logs_bytes - plan.shed_logs_bytes;
        // Logs do not push metrics out.
        let metrics = if *class == Class::Logs { 0 } else { used.metrics_bytes - plan.shed_metrics_bytes };
        let taken = over <= logs.saturating_add(metrics);
        plan.taken.push(taken);
        plan.full = !taken;
        if !taken {
            continue;
        }
        if over > 0 {
            let wanted = over.saturating_add(limits.slack_bytes());
            let from_logs = wanted.min(logs);
            let from_metrics = if from_logs >= over { 0 } else { (wanted - from_logs).min(metrics) };
            plan.shed_logs_bytes += from_logs;
            plan.shed_metrics_bytes += from_metrics;
            live = live.saturating_sub(from_logs + from_metrics);
        }
        live = live.saturating_add(*bytes);
    }
    plan
}

/// Whether a full outbox takes records again.
pub(super) fn still_full(limits: Limits, used: Use) -> bool {
    used.full && used.live_bytes > limits.resume_bytes()
}

/// Pages to give back now. `shrinking`: it has begun; it ends lower than it begins.
pub(super) fn vacuum_pages(used: Use, shrinking: bool) -> u64 {
    let keep = if shrinking { used.live_bytes / 8 } else { used.live_bytes / 2 }.max(KEPT_FREE_BYTES);
    (used.free_bytes.saturating_sub(keep) / PAGE_BYTES).min(VACUUM_PAGES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MI: u64 = 1 << 20;

    fn limits() -> Limits {
        Limits::new(108 * MI, 50, None)
    }

    #[test]
    fn the_disks_share_bounds_the_quota() {
        assert_eq!(Limits::new(1 << 30, 50, Some(1000 * MI)).total_bytes, 500 * MI / 100 * 100);
        assert_eq!(Limits::new(1 << 30, 50, Some(1 << 40)).total_bytes, 1 << 30);
        assert_eq!(Limits::new(0, 0, Some(0)).total_bytes, MIN_LIMIT_BYTES);
    }

    #[test]
    fn logs_give_way_then_metrics_then_scans_wait() {
        let data = limits().data_bytes();
        let used = Use { live_bytes: data - MI, logs_bytes: 10 * MI, metrics_bytes: 10 * MI, ..Use::default() };
        let calm = plan(limits(), used, &[(Class::Scans, MI)]);
        assert_eq!(calm, Plan { taken: vec![true], ..Plan::default() });

        let logs = plan(limits(), used, &[(Class::Scans, 2 * MI)]);
        assert_eq!((logs.taken.as_slice(), logs.shed_metrics_bytes), ([true].as_slice(), 0));
        assert!(logs.shed_logs_bytes >= MI && logs.shed_logs_bytes < 4 * MI, "{logs:?}");

        let both = plan(limits(), used, &[(Class::Events, 12 * MI)]);
        assert_eq!((both.shed_logs_bytes, both.taken.as_slice()), (10 * MI, [true].as_slice()));
        assert!(both.shed_metrics_bytes >= MI, "{both:?}");

        let refused = plan(limits(), used, &[(Class::Scans, 22 * MI), (Class::Scans, 1)]);
        assert_eq!(refused.taken, [false, true], "what fits below is taken: {refused:?}");
        assert_eq!((refused.shed_metrics_bytes, refused.full), (0, false));
    }

    #[test]
    fn logs_never_push_metrics_out() {
        let used = Use { live_bytes: limits().data_bytes(), metrics_bytes: 50 * MI, ..Use::default() };
        assert_eq!(plan(limits(), used, &[(Class::Logs, 1)]).taken, [false]);
        assert_eq!(plan(limits(), used, &[(Class::Metrics, 1)]).taken, [true]);
    }

    #[test]
    fn a_full_outbox_takes_again_below_its_mark() {
        let mut used = Use { live_bytes: limits().data_bytes() - MI, full: true, ..Use::default() };
        assert_eq!(plan(limits(), used, &[(Class::Scans, 1)]).taken, [false]);
        assert!(still_full(limits(), used));
        used.live_bytes = limits().resume_bytes() - 1;
        assert_eq!(plan(limits(), used, &[(Class::Scans, 1)]), Plan { taken: vec![true], ..Plan::default() });
        assert!(!still_full(limits(), used));
    }

    #[test]
    fn a_drained_file_shrinks_and_rests() {
        let mut used = Use { live_bytes: MI, free_bytes: 200 * MI, ..Use::default() };
        let mut steps = 0;
        while let pages @ 1.. = vacuum_pages(used, true) {
            used.free_bytes -= pages * PAGE_BYTES;
            steps += 1;
        }
        assert!(steps < 300 && used.free_bytes <= MI + PAGE_BYTES, "{used:?}");
        assert_eq!(vacuum_pages(Use { live_bytes: 100 * MI, free_bytes: 50 * MI, ..Use::default() }, false), 0);
    }

    proptest! {
        /// Whatever comes, the plan fits, sheds no more than there is, and never sheds for nothing.
        #[test]
        fn plans_fit(
            live in 0u64..120, logs in 0u64..40, metrics in 0u64..40, full: bool,
            incoming in prop::collection::vec((0usize..4, 1u64..30), 1..12),
        ) {
            let classes = [Class::Scans, Class::Events, Class::Metrics, Class::Logs];
            let incoming: Vec<_> = incoming.into_iter().map(|(class, mi)| (classes[class], mi * MI)).collect();
            let live = live.max(logs + metrics) * MI;
            let used = Use { live_bytes: live, logs_bytes: logs * MI, metrics_bytes: metrics * MI, full, free_bytes: 0 };
            let plan = plan(limits(), used, &incoming);
            prop_assert_eq!(plan.taken.len(), incoming.len());
            prop_assert!(plan.shed_logs_bytes <= used.logs_bytes && plan.shed_metrics_bytes <= used.metrics_bytes);
            let taken: u64 = incoming.iter().zip(&plan.taken).filter(|(_, t)| **t).map(|((_, bytes), _)| bytes).sum();
            let after = live - plan.shed_logs_bytes - plan.shed_metrics_bytes + taken;
            if taken > 0 {
                prop_assert!(after <= limits().data_bytes(), "{after} after {plan:?}");
            } else {
                prop_assert_eq!(plan.shed_logs_bytes + plan.shed_metrics_bytes, 0);
            }
            if plan.shed_metrics_bytes > 0 {
                prop_assert_eq!(plan.shed_logs_bytes, used.logs_bytes, "logs go first");
            }
        }
    }
}
