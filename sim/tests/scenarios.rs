//! Every scenario ends as it must, and the same seed gives the same trace on another thread and in another
//! process.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, too, may end a test

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sim::{
    plan::parse,
    record::Record,
    run::{Options, play},
    scenario::{Found, Report, all, find, run_seed},
};
use tokio::time::Instant;

const FUNCTION: &str = "cut_mid_download";
const FILE: &str = "acknowledgements_lost";

fn function(seed: u64) -> Report {
    run_seed(FUNCTION, seed, None).unwrap_or_else(|error| panic!("{FUNCTION} seed {seed}: {error:#}"))
}

fn file(name: &str, seed: u64) -> Record {
    let Found::Plan(plan) = find(name, None).unwrap() else { panic!("{name} is no file") };
    play(&plan, seed, &Options::default()).unwrap_or_else(|error| panic!("{name} seed {seed}: {error:#}"))
}

/// Plays a scenario in a process of its own, as a person would: the disks of all worlds of a process share a hook.
fn traced(name: &str, trace: &Path) -> Result<String, String> {
    let (code, text, error) = sim(&["run", name, "--seed", "1", "--trace", trace.to_str().unwrap()]);
    if code == Some(0) { Ok(fs::read_to_string(trace).unwrap()) } else { Err(format!("{text}{error}")) }
}

/// Days of virtual time: once is enough here.
fn is_long(name: &str) -> bool {
    matches!(find(name, None), Ok(Found::Plan(plan)) if plan.duration > Duration::from_secs(12 * 3600))
}

/// Plays a scenario twice. What differs is said with its place.
fn twice(name: &str) -> Result<usize, String> {
    let folder = tempfile::tempdir().unwrap();
    let first = traced(name, &folder.path().join("1"))?;
    if is_long(name) {
        return Ok(first.lines().count());
    }
    let second = traced(name, &folder.path().join("2"))?;
    let differs = first.lines().zip(second.lines()).enumerate().find(|(_, (first, second))| first != second);
    match differs {
        Some((number, (first, second))) => {
            Err(format!("{name}: two runs of one seed differ in line {}:\n{first}\n{second}", number + 1))
        }
        None if first.len() != second.len() => Err(format!("{name}: one of two runs goes on longer")),
        None => Ok(first.lines().count()),
    }
}

/// Each of them, one seed, those of hours twice; a thread a processor.
#[test]
fn every_scenario_passes_and_repeats_itself() {
    let names: Vec<&str> = all().unwrap().into_iter().map(|(name, _)| name).collect();
    assert!(names.len() >= 35, "{} scenarios", names.len());
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(vec![]));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(4) {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begun = Instant::now();
                    match twice(name) {
                        Ok(lines) => println!("{name:<28} {:>7.1?} {lines} lines", begun.elapsed()),
                        Err(error) => wrong.lock().unwrap().push(error),
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn seeds_differ_and_traces_look_at_the_network() {
    let report = function(7);
    assert!(report.trace_lines > 1000, "a trace of {} lines did not look at the network", report.trace_lines);
    assert_ne!(report.trace_digest, function(8).trace_digest);
    assert_ne!(file(FILE, 7).trace_digest, file(FILE, 8).trace_digest);
}

fn sim(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sim")).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn another_process_repeats_it() {
    let (code, text, error) = sim(&["run", FUNCTION, "--seed", "9", "--json"]);
    assert_eq!(code, Some(0), "{text}{error}");
    let report: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(report, serde_json::to_value(function(9)).unwrap());
    let (code, text, error) = sim(&["run", FILE, "--seed", "9", "--json"]);
    assert_eq!(code, Some(0), "{text}{error}");
    let report: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(report["trace_digest"], file(FILE, 9).trace_digest);
    assert_eq!((&report["ok"], &report["books"]["missing"]), (&true.into(), &0.into()));
    assert!(report["faults"]["cut-down"].as_u64().unwrap() > 0, "{report}");
}

const MINE: &str = r#"about = "a box is away for a minute"
duration = "5m"
[[site]]
name = "hz-01"
nodes = 2
[[producer]]
per-minute = 30
[[timeline]]
at = "1m"
cut = "node hz-01-1"
for = "1m"
"#;

#[test]
fn a_file_of_ones_own_is_played_scaled_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("mine.toml"), MINE).unwrap();
    let (code, text, error) =
        sim(&["run", &path("mine.toml"), "--nodes", "3", "--trace", &path("t"), "--html", &path("p.html")]);
    assert_eq!(code, Some(0), "{text}{error}");
    assert!(text.starts_with("seed "), "{text}");
    assert!(text.contains("3 boxes"), "{text}");
    assert!(fs::read_to_string(path("p.html")).unwrap().contains("hz-01-3"));
    assert!(fs::read_to_string(path("t")).unwrap().contains("begins: cut node hz-01-1"));
}

#[test]
fn a_run_that_fails_says_what_and_how_to_repeat_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    // A box that is off cannot be crashed.
    let never = "[[timeline]]\nat = \"2m\"\nreboot = \"all\"\nfor = \"1m\"\n[[timeline]]\nat = \"2m30s\"\n\
                 crash-agent = \"all\"\n";
    fs::write(&path, format!("{MINE}{never}")).unwrap();
    let (code, text, error) = sim(&["run", path.to_str().unwrap(), "--seed", "3", "--json"]);
    assert_eq!(code, Some(1), "{text}{error}");
    assert!(error.contains("entry 3 of the timeline (line 16), crash-agent all, never fired"), "{error}");
    assert!(error.contains("mine.toml --seed 3 --trace FILE"), "{error}");
    let record: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((&record["ok"], &record["faults"]["crash-agent"]), (&false.into(), &0.into()));
}

#[test]
fn an_agent_that_refuses_records_ends_the_run() {
    let mut plan = parse("mine", "mine.toml", MINE, None).unwrap();
    plan.producers[0].stream = "scan".parse().unwrap(); // no file could say so
    let error = play(&plan, 1, &Options::default()).unwrap_err().to_string();
    assert!(error.contains("refused records of scan: there is no stream \"scan\""), "{error}");
}

#[test]
fn a_restore_that_waits_for_a_moment_finds_a_backup() {
    let when = "[[release]]\napp = \"app\"\nversion = \"1.0.0\"\n[[timeline]]\nat = \"2m10s\"\nrollout = \"app@1.0.0\"\n\
                [[timeline]]\nwhen = { node = \"hz-01-1\", app = \"app\", phase = \"Verifying\" }\nrestore-hub = \"40s\"\n";
    let plan = parse("mine", "mine.toml", &format!("{MINE}{when}"), None).unwrap();
    let record = play(&plan, 1, &Options::default()).unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(record.faults["restore-hub"], 1, "{:?}", record.breaks);
}

#[test]
fn what_is_wrong_is_said_clearly() {
    let error = run_seed("no_such", 1, None).unwrap_err().to_string();
    assert!(error.contains("sim list"), "{error}");
    let (code, _, error) = sim(&["run", "outage_27h"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("did you mean \"outage_72h\""), "{error}");
    assert_eq!(sim(&["run", FUNCTION, "--seeds", "5..2"]).0, Some(2));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    fs::write(&path, MINE.replace("cut =", "cutt =")).unwrap();
    let (code, _, error) = sim(&["run", path.to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(error.contains("mine.toml:10:1: there is no field \"cutt\""), "{error}");
}
