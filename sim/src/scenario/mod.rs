//! Scenarios: what to break, and what must be true afterwards. `sim run NAME_OR_FILE`.
//!
//! Most are small files that anybody can write; those in `sim/scenarios` go by their names. A few need more than a
//! file can say, such as bytes that must not be fetched again, and are functions over a [`World`].
//!
//! # A first own scenario
//!
//! Write `mine.toml`:
//!
//! ```toml
//! about = "one of two sites is dark for an hour in the middle of a rollout"
//! duration = "2h"                      # of virtual time; then everything is healed and must converge
//!
//! [[site]]
//! name = "hz-01"
//! nodes = 3                            # hz-01-1, hz-01-2, hz-01-3; or a list of names
//! line = "4g"                          # fiber, 4g, 256k-lossy, flapping, double-eleven, or an own [[line]]
//!
//! [[site]]
//! name = "hz-02"
//! nodes = 2
//!
//! [[release]]
//! app = "scan-counter"
//! version = "1.0.0"
//! size = "2Mi"
//!
//! [[producer]]                         # scanners on every box
//! per-minute = 30
//!
//! [[timeline]]
//! at = "10m"
//! rollout = "scan-counter@1.0.0"
//!
//! [[timeline]]
//! when = { node = "hz-01-1", downloaded = "40%" }
//! cut = "site hz-01"
//! for = "1h"
//!
//! [expect]
//! in-gaps = 0
//! ```
//!
//! `sim run mine.toml` plays it with a fresh seed, which it prints; `sim run mine.toml --seed 7 --trace t.log` again with
//! seed 7, all of it written down. It fails when an invariant breaks, when the fleet has not converged in time
//! after everything was healed, or when an entry of the timeline never fired: its moment never came, or it met
//! nothing that it could break. What is wrong in the file is said with its line.
//!
//! # All of the format
//!
//! Times are `"250ms"`, `"30s"`, `"5m"`, `"2h"`, `"3d"`; sizes `"64Ki"`, `"2Mi"`; shares `"8%"`; rates `"256kbit/s"`.
//!
//! | where | fields |
//! |---|---|
//! | top | `about`, `duration` |
//! | `[[site]]` | `name`, `nodes`, `line` (4g), `labels`, `gpus` of each box (0), `settings` (of `agent.toml`, by its rules: `quota`, `disk-share-percent`, `metrics-interval` (here "off"), `stream`) |
//! | `[[line]]` | `name`, `like` (4g), `latency`, `jitter`, `loss`, `duplicate`, `reorder`, `reorder-delay`, `rate`, `up`, `down`, `queue`, `mtu` |
//! | `[[broker]]` | `name`, `line` (fiber) between it and the hub, `packet-limit` (none), and what it does to messages: `drop`, `duplicate`, `reorder`, shares, and `delay`, at most; see below |
//! | `[[release]]` | `app`, `version`, `size` (1Mi), `files` (4), `behaviour` (`runs`, `warm`: updated beside the one before, `crash-after 2s`, `hang`, `warm-hang`, `refuse`, `refuse-on gpu`: on boxes that have it in their names, `eat-disk 100Mi`, `files`: none of it runs, it is files for others, `bad-files`: those hang), `uses` (the app whose files it uses), `bad` (whether it must be taken back; otherwise by its behaviour), `gpus = { count = 1, memory = "8Gi", exclusive = false }` that it needs, as in `release.yaml`, `replicas = { min = 1, max = 4, metric = "backlog", target = 100, window = "5m", tells = 30 }`: how many of it run, by what they tell, which is `tells` (0) while no `backlog` says otherwise |
//! | `[[producer]]` | `on` (all), `stream` (scans), `per-minute`, `curve` (`flat`, or `daily`: most at night), `peaks = [{ at, for, times }]`, which multiply |
//! | `[[timeline]]` | when, what; see below |
//! | `[expect]` | `converge-within` (15m), `in-gaps` (records in counted gaps, exactly), `rollouts = { "app@version" = "Succeeded" }`, `touched = { "app@version" = 1 }` (boxes that ever started it, at most), `up-without-hub-within` (30s) |
//!
//! **When**: `at = "1h"` counts from the moment at which all boxes are Ready; with `every = "2h"`, `times = 4` it is
//! done again. `when = { node, downloaded = "40%" }` or `when = { node, app, phase = "Verifying" }` waits from the moment at
//! which the entry before it has begun. `jitter = "10m"` adds up to that, drawn from the seed.
//! With `may-miss = true` the run is good even when this entry never fires.
//!
//! **What**, one to an entry. TARGET is `"all"`, `"site NAME"` or `"node NAME"`:
//!
//! | key | what happens | lasts |
//! |---|---|---|
//! | `rollout = "app@1.0.0"`, `to = SELECTOR` (all) | the release is published and rolled out; once; see below | |
//! | `pause`, `resume`, `abort`, `retry`, `approve = "app@1.0.0"` | somebody does so to a rollout of an entry before | |
//! | `see = "app@1.0.0"` | a rollout must stand so: `phase`, `reason`, `healthy = 3`, `node` with what it `waits` for; "" is nothing | |
//! | `cut`, `cut-up`, `cut-down = TARGET` | nothing passes the line, both ways or one | `for`, else to the end |
//! | `line = "bad"`, `of = TARGET` | the line behaves like that one | `for`, else to the end |
//! | `block-udp = TARGET` | a firewall lets no UDP out; brokers are reached, by TCP | `for`, else to the end |
//! | `broker-down = "house"` | the broker is killed, and started; what it held is lost | `for`, else 10s |
//! | `rebind = TARGET` | the NAT gives another address | at once |
//! | `crash-agent = TARGET`, `crash-hub = true` | `kill -9`, and a start | `for`, else 10s |
//! | `reboot`, `power-cut = TARGET` | off and on; in a power cut what was not synced may be lost | `for`, else 10s |
//! | `reinstall = TARGET` | an empty disk; the box joins again | at once |
//! | `clock = TARGET` or `"hub"`, `offset = "-10y"` | the wall clock is wrong | `for`, else to the end |
//! | `disk-full = TARGET` or `"hub"` | the disk takes no more | `for`, else to the end |
//! | `gpu-lost = TARGET` | the first GPU (24 GiB) falls off the bus; what uses it ends | `for`, else to the end |
//! | `gpu-sick = TARGET` | the first GPU has lost data; what uses it goes on | `for`, else to the end |
//! | `backlog = TARGET`, `count = 400` | instances tell that of the metric which their replicas follow | `for`, else to the end |
//! | `flip-bit = TARGET`, `in = "outbox"`, `"state"` or `"artifact"` | a bit flips at rest | at once |
//! | `sink-down = true` | the hub's sink refuses every commit | `for`, else to the end |
//! | `restore-hub = "3h"` | the hub comes back from a backup of that age, or up to a quarter older | at once |
//!
//! A rollout goes to all at once, unless its entry says otherwise, in the words of `crossdock rollout start`:
//!
//! | field | example |
//! |---|---|
//! | `strategy` | `"canary"`, `"by-site"`, `"all-at-once"` |
//! | `waves` | `["1", "10%", "kind=gpu", "all"]` |
//! | `soak`, `approval`, of all waves but the last, and but the first | `"10m"`, `true` |
//! | `max-unavailable`, `per` | `"1"` or `"10%"`, `"site"`, `"fleet"` or the key of a label |
//! | `max-failures`, `on-failure` | `1`, `"pause"`, `"stop"` or `"roll-back"` |
//! | `rollback-to` | `"1.0.0"`: published again above the release, so that nodes accept it |
//! | `apply-window`, `download-window` | `"22:00-04:00"`, or a list; UTC, and a run begins at midnight |
//! | `spread` | `"5m"`: what the command line calls jitter, which is drawn from the seed here |
//!
//! `for = "end"` leaves something broken until everything is healed.
//!
//! With a `[[broker]]` hub and boxes have MQTT besides UDP, through the first of them that works. A box reaches brokers
//! over a line like its own to the hub: a `cut` or another `line` befalls both. They go by TCP, so that what a line
//! loses comes later; what a broker drops is gone. `delay` is drawn for each message.

mod carrier_flaps;
mod command;
mod crash_mid_install;
mod cut_mid_download;
mod events;
mod hostile_peer;
mod metrics;
mod placement;
mod reboot;
mod renewal_forgotten;
mod streams;
mod years;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, bail};
use proto::env::{BoxFuture, Seed};
use serde::Serialize;
use tokio::time::Instant;

pub use self::command::{RunArgs, list, run};
use crate::{
    plan::{self, Plan, nearest},
    trace::Trace,
    world::World,
};

/// Longest virtual time of a scenario that is a function: one that hangs ends as a failure.
const LONGEST: Duration = Duration::from_secs(48 * 3600);

/// What became of a run of a scenario that is a function.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The scenario.
    pub scenario: &'static str,
    /// The seed.
    pub seed: u64,
    /// SHA-256 over the trace.
    pub trace_digest: String,
    /// Lines of the trace.
    pub trace_lines: u64,
    /// How long it took in the simulated world.
    pub virtual_s: f64,
    /// Always: what was not as it must be is an error.
    pub ok: bool,
    /// What it saw, one sentence each.
    pub saw: Vec<String>,
}

/// A scenario that is a function. It returns what it saw, or what was not as it must be.
pub(crate) struct Scenario {
    name: &'static str,
    about: &'static str,
    play: for<'a> fn(&'a mut World) -> BoxFuture<'a, anyhow::Result<Vec<String>>>,
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "cut_mid_download",
        about: "the line of one of three nodes is cut in the middle of a download: no verified byte comes again",
        play: |world| Box::pin(cut_mid_download::play(world)),
    },
    Scenario {
        name: "carrier_flaps",
        about: "UDP is taken from a box and given back, and the broker killed, in the middle of an upgrade",
        play: |world| Box::pin(carrier_flaps::play(world)),
    },
    Scenario {
        name: "crash_mid_install",
        about: "hub, agent, both, or the box end at random moments of an upgrade",
        play: |world| Box::pin(crash_mid_install::play(world)),
    },
    Scenario {
        name: "nodes_restart_in_turn",
        about: "all boxes restart on order, one of a site at a time, while agents and hub are killed",
        play: |world| Box::pin(reboot::play(world)),
    },
    Scenario {
        name: "most_of_a_year",
        about: "certificates and metadata end, roots change twice, a box is away through all of it, one is lost",
        play: |world| Box::pin(years::play(world)),
    },
    Scenario {
        name: "renewal_forgotten",
        about: "the hub comes back from before a node's renewal: the key of before opens, and is renewed again",
        play: |world| Box::pin(renewal_forgotten::play(world)),
    },
    Scenario {
        name: "scans_through_outages",
        about: "line, agents and hub fail at random moments while scans flow; acknowledgements are lost",
        play: |world| Box::pin(streams::through_outages(world)),
    },
    Scenario {
        name: "outbox_full",
        about: "the line is away until the outbox is full: logs are shed and counted, scans push back",
        play: |world| Box::pin(streams::outbox_full(world)),
    },
    Scenario {
        name: "outbox_bit_flip",
        about: "a bit flips in a box's outbox: the damaged batch is a counted gap, and nothing else is lost",
        play: |world| Box::pin(streams::outbox_bit_flip(world)),
    },
    Scenario {
        name: "hub_restored",
        about: "the hub comes back from a backup: nothing twice, exactly what it lost is a counted gap",
        play: |world| Box::pin(streams::hub_restored(world)),
    },
    Scenario {
        name: "outbox_lost",
        about: "a box loses its outbox, or finds an older one: a new epoch, the gap is shown",
        play: |world| Box::pin(streams::outbox_lost(world)),
    },
    Scenario {
        name: "thirty_days_offline",
        about: "a box is away for a month: its backlog drains while fresh scans arrive at once",
        play: |world| Box::pin(streams::thirty_days_offline(world)),
    },
    Scenario {
        name: "events_once",
        about: "line, agent and hub fail while a bad release is tried: every event is there once; so are metrics",
        play: |world| Box::pin(events::once(world)),
    },
    Scenario {
        name: "slow_release_stopped",
        about: "a release at two thirds of its speed runs on one box, by what it tells, and goes back from there",
        play: |world| Box::pin(metrics::slow_release(world)),
    },
    Scenario {
        name: "silent_release_waits",
        about: "a release that tells too little of itself pauses its rollout, and goes on when there is enough",
        play: |world| Box::pin(metrics::silent_release(world)),
    },
    Scenario {
        name: "before_survives_power_cut",
        about: "the power goes in a trial and the agent is killed after it: what ran before is compared with all the same",
        play: |world| Box::pin(metrics::before_survives(world)),
    },
    Scenario {
        name: "camera_lost",
        about: "the plug of a camera is pulled, and another one is loose: one condition, one event, and it clears",
        play: |world| Box::pin(metrics::camera_lost(world)),
    },
    Scenario {
        name: "one_box_of_each_site",
        about: "two heavy apps, one box of each site each: drained behind a cut line, the hub killed in the move",
        play: |world| Box::pin(placement::one_of_each_site(world)),
    },
    Scenario {
        name: "what_does_not_fit_waits",
        about: "an app asks for more memory than is left: it waits with the arithmetic, and begins once it fits",
        play: |world| Box::pin(placement::what_does_not_fit(world)),
    },
    Scenario {
        name: "hostile_peer",
        about: "a stranger floods the hub with garbage, half-open handshakes and endless requests: nobody notices",
        play: |world| Box::pin(hostile_peer::play(world)),
    },
];

/// Scenarios that are files, by name, as they were when this was built.
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../scenarios/", $name, ".toml")))),*]
    };
}

/// All files of `sim/scenarios`; a test compares.
const FILES: &[(&str, &str)] = files![
    "acknowledgements_lost",
    "agent_restarts",
    "all_reconnect_at_once",
    "artifact_bit_flip",
    "bad_release_crashes",
    "bad_release_hangs",
    "bad_release_never_starts",
    "bad_release_while_cut",
    "box_reinstalled",
    "box_wiped_while_cut",
    "canary_crashes_at_once",
    "canary_fails_after_twenty_minutes",
    "clocks_wrong",
    "cut_during_trial",
    "cut_mid_upgrade",
    "disk_full_downloading",
    "disk_full_while_rolling_out",
    "double_eleven_peak",
    "eleven_of_hundred_centers_offline_for_a_week",
    "gpu_lost_box_reboots",
    "gpu_lost_in_trial",
    "gpu_release_does_not_fit",
    "gpu_two_apps_one_box",
    "half_a_site_dies_in_a_wave",
    "half_a_site_dies_mid_rollout",
    "hub_killed_while_draining",
    "hub_restart_storm",
    "hub_restarts_in_every_phase_of_a_rollout",
    "hub_restored_mid_rollout",
    "line_flaps",
    "model_updates",
    "narrow_lossy_line",
    "nat_rebinding",
    "outage_72h",
    "pause_resume_abort_races_a_wave",
    "power_cut_mid_install",
    "reboot_without_hub",
    "release_fails_only_on_gpu_boxes",
    "replicas_follow_the_backlog",
    "requests_lost",
    "rolling_site_power",
    "rollout_after_clock_went_back",
    "rollout_superseded",
    "sink_down_a_day",
    "sink_down_lines_flap",
    "state_bit_flip",
    "two_apps_same_boxes",
    "two_rollouts_same_app",
    "udp_blocked",
    "udp_blocked_with_brokers",
    "warm_updates",
];

/// A scenario, wherever it comes from.
pub enum Found {
    /// A plan, from a file of the user's or of this program.
    Plan(Box<Plan>),
    /// The name of a function.
    Function(&'static str),
}

/// Names of all scenarios, and what each is about.
///
/// # Errors
/// When a file of this program is wrong.
pub fn all() -> anyhow::Result<Vec<(&'static str, String)>> {
    let mut all: Vec<(&str, String)> = SCENARIOS.iter().map(|s| (s.name, s.about.to_owned())).collect();
    for (name, text) in FILES {
        all.push((name, plan::parse(name, &embedded(name), text, None)?.about));
    }
    all.sort();
    Ok(all)
}

fn embedded(name: &str) -> String {
    format!("sim/scenarios/{name}.toml")
}

/// Finds a scenario: one of this program's by name, or a file by its path.
///
/// # Errors
/// When there is none, or the file is wrong; with what was probably meant.
pub fn find(name: &str, nodes: Option<u32>) -> anyhow::Result<Found> {
    if let Some(scenario) = SCENARIOS.iter().find(|s| s.name == name) {
        if nodes.is_some() {
            bail!("--nodes does not scale {name}: it is no file, and counts its boxes itself");
        }
        return Ok(Found::Function(scenario.name));
    }
    if let Some((name, text)) = FILES.iter().find(|(known, _)| *known == name) {
        return Ok(Found::Plan(Box::new(plan::parse(name, &embedded(name), text, nodes)?)));
    }
    let path = Path::new(name);
    if path.extension().is_none() && !path.exists() {
        let known = SCENARIOS.iter().map(|s| s.name).chain(FILES.iter().map(|(name, _)| *name));
        let meant = nearest(name, known).map_or_else(String::new, |known| format!("; did you mean {known:?}?"));
        bail!("there is no scenario {name:?}{meant} `sim list` shows all; a file of your own needs its path");
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("read the scenario file {name}"))?;
    let stem = path.file_stem().map_or_else(|| name.to_owned(), |stem| stem.to_string_lossy().into_owned());
    Ok(Found::Plan(Box::new(plan::parse(&stem, name, &text, nodes)?)))
}

/// Runs a scenario that is a function once, on a thread of its own.
///
/// # Errors
/// When there is no such scenario, or something was not as it must be.
pub fn run_seed(name: &str, seed: u64, trace: Option<&Path>) -> anyhow::Result<Report> {
    let Some(scenario) = SCENARIOS.iter().find(|s| s.name == name) else {
        bail!("there is no scenario {name:?}; `sim list` shows all");
    };
    let trace = trace.map(Path::to_owned);
    let thread = std::thread::Builder::new()
        .name(format!("{name} {seed}"))
        .stack_size(16 << 20)
        .spawn(move || play(scenario, seed, trace.as_deref()))?;
    thread.join().unwrap_or_else(|_| bail!("it panicked; see above"))
}

fn play(scenario: &'static Scenario, seed: u64, trace: Option<&Path>) -> anyhow::Result<Report> {
    // Without I/O: nothing of a run may reach a real socket.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    runtime.block_on(async {
        let begin = Instant::now();
        let trace = Trace::new(trace).context("write the trace")?;
        let mut world = World::new(Seed::from_u64(seed), trace.clone()).await?;
        let outcome = tokio::time::timeout(LONGEST, (scenario.play)(&mut world)).await;
        let virtual_s = begin.elapsed().as_secs_f64();
        let checked = world.check();
        let end = world.end().await;
        trace.flush().context("write the trace")?;
        let saw = outcome.with_context(|| format!("it did not end within {LONGEST:?}"))??;
        checked?;
        end?;
        let (trace_digest, trace_lines) = (trace.digest(), trace.lines());
        Ok(Report { scenario: scenario.name, seed, trace_digest, trace_lines, virtual_s, ok: true, saw })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_is_known_by_its_name_and_can_be_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let there: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        let known: BTreeSet<String> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(there, known);
        all().unwrap_or_else(|error| panic!("{error:#}"));
    }

    #[test]
    fn the_scenario_of_the_documentation_can_be_read() {
        let documentation = include_str!("mod.rs");
        let (_, rest) = documentation.split_once("//! ```toml\n").unwrap();
        let (example, _) = rest.split_once("//! ```\n").unwrap();
        let text: String = example.lines().map(|line| format!("{}\n", line.trim_start_matches("//!"))).collect();
        plan::parse("mine", "mine.toml", &text, None).unwrap_or_else(|error| panic!("{error}"));
    }

    #[test]
    fn the_scenario_of_the_readme_can_be_read() {
        let readme = include_str!("../../../README.md");
        let mut examples = readme.split("```toml\n").filter_map(|rest| rest.split_once("```\n"));
        let (example, _) = examples.find(|(text, _)| text.starts_with("about =")).unwrap();
        plan::parse("mine", "mine.toml", example, None).unwrap_or_else(|error| panic!("{error}"));
    }

    #[test]
    fn a_name_that_is_nearly_right_is_offered() {
        let error = find("cut_mid_downlaod", None).err().unwrap().to_string();
        assert!(error.contains("\"cut_mid_download\""), "{error}");
        assert!(find("no/such.toml", None).err().unwrap().to_string().contains("no/such.toml"));
    }
}
