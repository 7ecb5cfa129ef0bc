//! The scenarios end as they must, and the same seed gives the same trace on another thread and in
//! another process.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, too, may end a test

use std::process::Command;

use sim::scenario::{Report, run_seed};

const SCENARIO: &str = "cut_mid_download";

fn run(seed: u64) -> Report {
    run_scenario(SCENARIO, seed)
}

fn run_scenario(scenario: &str, seed: u64) -> Report {
    run_seed(scenario, seed, None).unwrap_or_else(|error| panic!("{scenario} seed {seed}: {error:#}"))
}

#[test]
fn a_cut_line_costs_time_and_nothing_else() {
    for seed in 1..=6 {
        run(seed);
    }
}

#[test]
fn crashes_at_any_moment_leave_a_version_to_run() {
    for seed in 1..=10 {
        run_scenario("crash_mid_install", seed);
    }
    assert_eq!(run_scenario("crash_mid_install", 11), run_scenario("crash_mid_install", 11));
}

#[test]
fn scans_are_counted_through_every_outage() {
    for scenario in [
        "scans_through_outages",
        "outbox_full",
        "outbox_bit_flip",
        "hub_restored",
        "outbox_lost",
        "thirty_days_offline",
        "sink_down",
        "events_once",
    ] {
        run_scenario(scenario, 1);
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let (first, second) = (run(7), run(7));
    assert_eq!(first, second);
    // Records of the agent itself hold nothing of this machine.
    assert_eq!(run_scenario("events_once", 7), run_scenario("events_once", 7));
    assert!(first.lines > 1000, "a trace of {} lines did not look at the network", first.lines);
    assert_ne!(first.digest, run(8).digest);
}

#[test]
fn another_process_repeats_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_sim")).args(["run", SCENARIO, "--seed", "9", "--json"]).output();
    let output = output.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(report, serde_json::to_value(run(9)).unwrap());
}

#[test]
fn what_does_not_exist_is_said_clearly() {
    let error = run_seed("no_such", 1, None).unwrap_err().to_string();
    assert!(error.contains("sim list"), "{error}");
    let output = Command::new(env!("CARGO_BIN_EXE_sim")).args(["run", SCENARIO, "--seeds", "5..2"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
