//! What a load measured: latencies, and the lines in the end.

use std::{
    sync::{Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use super::{Counts, LoadArgs};

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

/// The end of a load.
pub(super) fn print(
    args: &LoadArgs,
    joined: Duration,
    connects: &Latencies,
    connected: usize,
    drops: u64,
    measured: Duration,
    counts: &Counts,
) -> anyhow::Result<()> {
    let of = |number: &std::sync::atomic::AtomicU64| number.load(Ordering::Relaxed);
    let (records, refused, late, ended) =
        (of(&counts.records), of(&counts.refused), of(&counts.late), of(&counts.ended));
    let per_s = records as f64 / measured.as_secs_f64().max(1e-9);
    println!("{connected} of {} connected in the end, {drops} sessions lost, {ended} agents ended", args.nodes);
    if args.per_minute > 0.0 {
        println!("{records} records, {per_s:.1} a second; {refused} refused, {late} not at the hub within a minute");
        println!("on the agent's disk: {}", counts.appended.text());
        println!("at the hub:          {}", counts.kept.text());
    }
    for error in counts.errors.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("error: {error}");
    }
    if args.json {
        let figures = serde_json::json!({
            "nodes": args.nodes,
            "join_s": joined.as_secs_f64(),
            "connect_p50_s": connects.quantile(0.5),
            "connect_p99_s": connects.quantile(0.99),
            "connect_max_s": connects.quantile(1.0),
            "measured_s": measured.as_secs_f64(),
            "connected": connected,
            "sessions_lost": drops,
            "agents_ended": ended,
            "records": records,
            "records_per_s": per_s,
            "refused": refused,
            "late": late,
            "append_p50_s": counts.appended.quantile(0.5),
            "append_p99_s": counts.appended.quantile(0.99),
            "kept_p50_s": counts.kept.quantile(0.5),
            "kept_p99_s": counts.kept.quantile(0.99),
        });
        println!("{figures}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
