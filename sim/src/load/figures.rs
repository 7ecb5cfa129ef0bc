//! What a load measured: latencies, and the lines in the end.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::Counts;

/// Slots of a histogram: each a fifth longer than the one before it, from 10 µs on.
const SLOTS: usize = 110;
const FIRST_S: f64 = 1e-5;
const GROWTH: f64 = 1.2;

/// How long things took, in a bounded number of slots.
#[derive(Debug)]
pub(super) struct Latencies(Mutex<(Vec<u64>, f64)>);

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies(Mutex::new((vec![0; SLOTS], 0.0)))
    }
}

impl Latencies {
    pub(super) fn add(&self, took: Duration) {
        let s = took.as_secs_f64();
        let slot = ((s / FIRST_S).max(1.0).ln() / GROWTH.ln()) as usize;
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = state.0.get_mut(slot.min(SLOTS - 1)) {
            *count += 1;
        }
        state.1 = state.1.max(s);
    }

    /// Seconds below which this share was, to a fifth; nothing when there was nothing.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: u64 = state.0.iter().sum();
        let wanted = (all as f64 * share).ceil().max(1.0) as u64;
        let mut below = 0;
        for (slot, count) in (0_i32..).zip(&state.0) {
            below += count;
            if all > 0 && below >= wanted {
                return Some((FIRST_S * GROWTH.powi(slot + 1)).min(state.1));
            }
        }
        None
    }

    pub(super) fn text(&self) -> String {
        match (self.quantile(0.5), self.quantile(0.99), self.quantile(1.0)) {
            (Some(half), Some(most), Some(last)) => {
                format!("half within {half:.3} s, 99 % within {most:.3} s, the last {last:.3} s")
            }
            _ => "(nothing yet)".to_owned(),
        }
    }
}

/// What a load came to, beside what all agents counted.
#[derive(Debug)]
pub(super) struct Ended {
    /// Agents.
    pub nodes: usize,
    /// Time in which those that were new joined.
    pub joined: Duration,
    /// Time until each had its first session.
    pub connects: Latencies,
    /// Agents with a session in the end.
    pub connected: usize,
    /// Sessions that ended meanwhile.
    pub drops: u64,
    /// Time in which records were handed in.
    pub measured: Duration,
    /// Records a minute that were asked of each agent.
    pub per_minute: f64,
}

/// What was not as it must be; nothing: all was.
pub(super) fn wrong(ended: &Ended, counts: &Counts) -> Option<String> {
    let mut wrong = vec![];
    let agents = of(&counts.ended);
    if agents > 0 {
        wrong.push(format!("{agents} of {} agents ended", ended.nodes));
    }
    if ended.connected < ended.nodes {
        wrong.push(format!("{} of {} agents had no session in the end", ended.nodes - ended.connected, ended.nodes));
    }
    let (late, waiting) = (of(&counts.late), waiting(counts));
    if late > 0 {
        wrong.push(format!("{late} records were not at the hub within a minute"));
    }
    if waiting > 0 {
        wrong.push(format!("{waiting} records were not at the hub when it was over"));
    }
    (!wrong.is_empty()).then(|| wrong.join("; "))
}

fn of(number: &AtomicU64) -> u64 {
    number.load(Ordering::Relaxed)
}

/// Records of which nothing is known: neither at the hub nor late.
fn waiting(counts: &Counts) -> u64 {
    of(&counts.records).saturating_sub(of(&counts.at_hub) + of(&counts.late))
}

/// Prints the end of a load.
pub(super) fn print(ended: &Ended, counts: &Counts, json: bool) {
    let (records, refused, late, waiting, agents) =
        (of(&counts.records), of(&counts.refused), of(&counts.late), waiting(counts), of(&counts.ended));
    let per_s = records as f64 / ended.measured.as_secs_f64().max(1e-9);
    let asked_per_s = ended.per_minute / 60.0 * ended.nodes as f64;
    println!(
        "{} of {} connected in the end, {} sessions lost, {agents} agents ended",
        ended.connected, ended.nodes, ended.drops
    );
    if ended.per_minute > 0.0 {
        println!(
            "{records} records, {per_s:.1} a second of {asked_per_s:.1} asked for; {refused} refused, {late} not at the \
             hub within a minute, {waiting} not when it was over"
        );
        println!("on the agent's disk: {}", counts.appended.text());
        println!("at the hub:          {}", counts.kept.text());
    }
    for error in counts.errors.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("error: {error}");
    }
    if json {
        let figures = serde_json::json!({
            "nodes": ended.nodes,
            "join_s": ended.joined.as_secs_f64(),
            "connect_p50_s": ended.connects.quantile(0.5),
            "connect_p99_s": ended.connects.quantile(0.99),
            "connect_max_s": ended.connects.quantile(1.0),
            "measured_s": ended.measured.as_secs_f64(),
            "connected": ended.connected,
            "sessions_lost": ended.drops,
            "agents_ended": agents,
            "records": records,
            "records_per_s": per_s,
            "asked_per_s": asked_per_s,
            "refused": refused,
            "late": late,
            "waiting": waiting,
            "append_p50_s": counts.appended.quantile(0.5),
            "append_p99_s": counts.appended.quantile(0.99),
            "kept_p50_s": counts.kept.quantile(0.5),
            "kept_p99_s": counts.kept.quantile(0.99),
        });
        println!("{figures}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_lost_agents_or_records_has_failed() {
        let ended = |connected| Ended {
            nodes: 3,
            joined: Duration::ZERO,
            connects: Latencies::default(),
            connected,
            drops: 1,
            measured: Duration::from_secs(1),
            per_minute: 60.0,
        };
        let counts = Counts::default();
        counts.records.store(5, Ordering::Relaxed);
        counts.at_hub.store(5, Ordering::Relaxed);
        assert_eq!(wrong(&ended(3), &counts), None);
        assert_eq!(wrong(&ended(1), &counts).unwrap(), "2 of 3 agents had no session in the end");
        counts.ended.store(1, Ordering::Relaxed);
        counts.at_hub.store(2, Ordering::Relaxed);
        counts.late.store(2, Ordering::Relaxed);
        let text = wrong(&ended(3), &counts).unwrap();
        for part in
            ["1 of 3 agents ended", "2 records were not at the hub within", "1 records were not at the hub when"]
        {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn quantiles_are_right_to_a_fifth() {
        let latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), None);
        (1..=1000).for_each(|ms| latencies.add(Duration::from_millis(ms)));
        for (share, expected) in [(0.5, 0.5), (0.99, 0.99), (1.0, 1.0)] {
            let found = latencies.quantile(share).unwrap();
            assert!((expected..=expected * 1.21).contains(&found) || found <= 1.0, "{share}: {found}");
        }
        assert_eq!(latencies.quantile(1.0), Some(1.0));
    }
}
