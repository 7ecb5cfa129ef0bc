//! What is to happen, by virtual time; of the same time, in the order in which it was put in.

use std::{collections::BTreeMap, time::Duration};

/// Something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Look at everything.
    Look,
    /// Do what an entry of the timeline says.
    Fire {
        /// Which.
        entry: usize,
        /// Whether it is the first of its repetitions.
        first: bool,
    },
    /// Begin to wait for the moment of an entry.
    Arm {
        /// Which.
        entry: usize,
    },
    /// See whether the moment of an entry has come.
    Poll {
        /// Which.
        entry: usize,
        /// Since when it is waited for.
        since: Duration,
    },
    /// A fault is over.
    Heal {
        /// Its number at the recorder.
        number: usize,
    },
    /// Back the hub up.
    BackUp {
        /// How long it is needed.
        keep: Duration,
        /// Again after this time, until that entry of the timeline has begun.
        again: Option<(Duration, usize)>,
    },
    /// A producer hands in.
    Produce {
        /// Which.
        source: usize,
    },
}

/// Steps by time.
#[derive(Debug, Default)]
pub(super) struct Queue {
    steps: BTreeMap<(Duration, u64), Step>,
    number: u64,
}

impl Queue {
    pub(super) fn add(&mut self, at: Duration, step: Step) {
        self.number += 1;
        self.steps.insert((at, self.number), step);
    }

    pub(super) fn pop(&mut self) -> Option<(Duration, Step)> {
        self.steps.pop_first().map(|((at, _), step)| (at, step))
    }

    /// When the next step comes that is neither a look nor a backup nor a producer's.
    pub(super) fn next_of_timeline(&self) -> Option<Duration> {
        let routine = |step: &Step| matches!(step, Step::Look | Step::BackUp { .. } | Step::Produce { .. });
        self.steps.iter().find(|(_, step)| !routine(step)).map(|((at, _), _)| *at)
    }
}
