//! The swarm and its reports as a person uses them: the same seed gives the same run in another process, and the
//! plan of a seed is a scenario file that gives it too.
#![allow(clippy::unwrap_used)] // helpers of tests, too, may end a test

use std::{path::Path, process::Command};

use sim::{
    record::{Asked, Record},
    report,
    run::{Options, play},
    swarm::plan_of,
};

fn sim(args: &[&str]) -> (String, bool) {
    let output = Command::new(env!("CARGO_BIN_EXE_sim")).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (String::from_utf8(output.stdout).unwrap() + &errors, output.status.success())
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn a_seed_is_replayed_to_the_line_with_report_trace_and_plan() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (html, trace, plan) = (at("run.html"), at("run.trace"), at("run.toml"));
    let args = ["replay", "5", "--minutes", "3", "--json", "--html", &html, "--trace", &trace, "--plan", &plan];
    let (output, ok) = sim(&args);
    assert!(ok, "{output}");
    let record: Record = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    assert!(record.ok && record.trace_lines > 100, "{output}");

    let here = play(&plan_of(5, Some(3)).unwrap(), 5, &Options::default());
    let here = report::asked(here, Asked::Replay { minutes: Some(3) });
    assert_eq!(here.unwrap(), record, "another process, the same seed, another run");
    assert!(text(Path::new(&html)).contains("all invariants held"));
    assert!(text(Path::new(&html)).contains("again: <code>sim replay 5 --minutes 3</code>"));
    assert_eq!(text(Path::new(&trace)).lines().count() as u64, record.trace_lines);
    // The plan as a file is the same run under another name.
    let (output, ok) = sim(&["run", &plan, "--seed", "5", "--json"]);
    assert!(ok, "the swarm bears a fault that misses, its file does not: {output}");
    let again: Record = serde_json::from_str(output.lines().find(|line| line.starts_with('{')).unwrap()).unwrap();
    assert_eq!(report::replay(&again), format!("sim run {plan} --seed 5"));
    assert_eq!((again.trace_digest, again.nodes), (record.trace_digest, record.nodes));
}

#[test]
fn many_seeds_run_and_each_is_one_line_of_json() {
    let (output, ok) = sim(&["swarm", "--seeds", "1..4", "--minutes", "2", "--jobs", "2", "--json"]);
    assert!(ok, "{output}");
    let lines: Vec<serde_json::Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut seeds: Vec<u64> = lines.iter().map(|line| line.get("seed").unwrap().as_u64().unwrap()).collect();
    seeds.sort_unstable();
    assert_eq!(seeds, [1, 2, 3, 4]);
    assert!(lines.iter().all(|line| line.get("ok").unwrap() == true), "{output}");
}

/// Plans that broke something once, by the seed that drew them: the swarm may draw others some day.
#[test]
fn plans_that_failed_once_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seeds");
    let mut plans: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    plans.sort();
    assert!(plans.len() >= 7, "{plans:?}");
    for plan in plans {
        let (seed, _) = plan.file_stem().unwrap().to_str().unwrap().split_once('_').unwrap();
        let (output, ok) = sim(&["run", plan.to_str().unwrap(), "--seed", seed]);
        assert!(ok, "{}: {output}", plan.display());
    }
}
