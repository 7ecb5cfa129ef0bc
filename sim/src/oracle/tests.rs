//! Each invariant is shown a violation, and what looks like one and is none.

mod waves;

use std::{collections::BTreeMap, sync::Arc};

use cloudcore::streams::sink::StreamState;
use jiff::Timestamp;
use proto::{
    digest::Digest,
    name::Version,
    object::{NodePhase, RolloutPhase, UpdatePhase},
    stream::{Class, Epoch, StreamKey, ranges::Ranges},
};

use super::*;
use crate::{
    fault::{Spot, Target},
    ledger::Ledger,
    net::Profile,
    plan::{Action, Entry, Expect, Moment, Release, Site},
    world::{AppSeen, RolloutSeen, Seen},
};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn release(text: &str, bad: bool) -> Release {
    let (app, version) = (name("app"), version(text));
    Release { app, version, files: 1, bytes: 10, args: vec![], gpus: None, uses: None, scaling: None, bad }
}

fn rollout(at: u64, text: &str, to: &str) -> Entry {
    Entry {
        moment: Moment::At(s(at)),
        jitter: Duration::ZERO,
        repeat: None,
        action: Action::Rollout {
            app: name("app"),
            version: version(text),
            to: to.parse().unwrap(),
            how: Box::default(),
        },
        may_miss: false,
        line: 0,
    }
}

/// Two boxes at hz-01 with label ring=early, one at hz-02; app 1.0.0 to all, 2.0.0 to the early ones after 100 s,
/// 3.0.0 is bad and goes to all after 200 s.
fn plan() -> Plan {
    let site = |site: &str, nodes: &[&str], ring: &str| Site {
        name: name(site),
        nodes: nodes.iter().map(|node| name(node)).collect(),
        labels: BTreeMap::from([("ring".to_owned(), ring.to_owned())]),
        line: Profile::local(),
        settings: "[streams]\nquota = \"2Mi\"\n".into(),
        gpus: 0,
    };
    Plan {
        name: "made up".into(),
        about: String::new(),
        duration: s(600),
        sites: vec![site("hz-01", &["box-1", "box-2"], "early"), site("hz-02", &["box-3"], "late")],
        brokers: vec![],
        releases: vec![release("1.0.0", false), release("2.0.0", false), release("3.0.0", true)],
        producers: vec![],
        timeline: vec![rollout(10, "1.0.0", "all"), rollout(100, "2.0.0", "ring=early"), rollout(200, "3.0.0", "all")],
        expect: Expect {
            converge_within: s(600),
            in_gaps: Some(0),
            rollouts: BTreeMap::new(),
            touched: BTreeMap::new(),
            up_without_hub_within: None,
        },
    }
}

/// All is well, and 1.0.0 runs everywhere.
fn well(at: u64) -> Observation {
    let nodes = [("box-1", "hz-01"), ("box-2", "hz-01"), ("box-3", "hz-02")].map(|(node, site)| {
        let app = AppSeen {
            running: Some(version("1.0.0")),
            digest: Some(Digest::of(b"1.0.0")),
            instance: Some(1),
            tried: Some(version("1.0.0")),
            ready: true,
            phase: Some(UpdatePhase::Succeeded),
            message: String::new(),
            target: Some(version("1.0.0")),
            told: None,
            uses: BTreeMap::new(),
            others: BTreeMap::new(),
        };
        let seen = Seen {
            site: name(site),
            agent_runs: true,
            powered: true,
            line_open: true,
            ready: Some(true),
            phase: NodePhase::Ready,
            apps: Arc::new(BTreeMap::from([(name("app"), app)])),
            backlog_records: 0,
            backlog_bytes: 0,
            connected: true,
            carrier: "udp",
        };
        (name(node), seen)
    });
    let rollout = RolloutSeen { phase: RolloutPhase::Succeeded, done: 3, failed: 0, total: 3, object: None };
    Observation {
        at: s(at),
        hub_runs: true,
        nodes: nodes.into(),
        rollouts: BTreeMap::from([("app@1.0.0".to_owned(), rollout)]),
    }
}

/// A well fleet in which one app of one box is otherwise.
fn with(at: u64, node: &str, change: impl FnOnce(&mut Seen, &mut AppSeen)) -> Observation {
    let mut seen = well(at);
    let node = seen.nodes.get_mut(&name(node)).unwrap();
    let mut app = Arc::make_mut(&mut node.apps).remove(&name("app")).unwrap();
    change(node, &mut app);
    Arc::make_mut(&mut node.apps).insert(name("app"), app);
    seen
}

fn runs(app: &mut AppSeen, text: &str, phase: UpdatePhase) {
    app.running = Some(version(text));
    app.digest = Some(Digest::of(text.as_bytes()));
    app.target = Some(version(text));
    app.phase = Some(phase);
    app.ready = phase == UpdatePhase::Succeeded;
}

/// All have been well, with the first of the rollouts.
fn oracle() -> Oracle {
    with_rollouts(1)
}

/// So many of the rollouts have begun.
fn with_rollouts(count: usize) -> Oracle {
    let mut oracle = Oracle::new(&plan());
    for text in ["1.0.0", "2.0.0", "3.0.0"].into_iter().take(count) {
        oracle.rollout_began(&name("app"), &version(text));
        oracle.watch(&well(50)).unwrap();
    }
    oracle
}

/// What is found in the last of these.
fn found(oracle: &mut Oracle, looks: &[Observation]) -> (Invariant, String) {
    let (last, before) = looks.split_last().unwrap();
    for look in before {
        oracle.watch(look).unwrap();
    }
    let violation = oracle.watch(last).expect_err("nothing was found");
    (violation.invariant, violation.message)
}

#[test]
fn a_fleet_that_is_well_is_no_violation() {
    let mut oracle = oracle();
    for at in 51..99 {
        oracle.watch(&well(at)).unwrap();
    }
}

#[test]
fn what_was_never_released_may_not_run() {
    let look = with(51, "box-1", |_, app| app.running = Some(version("9.9.9")));
    let (invariant, text) = found(&mut oracle(), &[look]);
    assert_eq!(invariant, Invariant::Trust);
    assert!(text.contains("box-1: app@9.9.9 runs and was never released"), "{text}");
}

#[test]
fn one_version_has_the_same_bytes_everywhere() {
    let look = with(51, "box-2", |_, app| app.digest = Some(Digest::of(b"something else")));
    let (invariant, text) = found(&mut oracle(), &[look]);
    assert_eq!((invariant, text.contains("elsewhere as")), (Invariant::Trust, true), "{text}");
}

#[test]
fn nothing_goes_back_below_what_proved_healthy() {
    let upgraded = with(120, "box-1", |_, app| runs(app, "2.0.0", UpdatePhase::Succeeded));
    let (invariant, text) = found(&mut with_rollouts(2), &[upgraded, well(121)]);
    assert_eq!(invariant, Invariant::Trust);
    assert!(text.contains("went back to 1.0.0, although 2.0.0"), "{text}");
}

#[test]
fn a_trial_that_failed_goes_back() {
    let mut oracle = with_rollouts(2);
    oracle.watch(&with(120, "box-1", |_, app| runs(app, "2.0.0", UpdatePhase::Verifying))).unwrap();
    oracle.watch(&well(130)).unwrap();
}

#[test]
fn a_bad_release_may_not_count_as_proved() {
    let look = with(210, "box-1", |_, app| runs(app, "3.0.0", UpdatePhase::Succeeded));
    let (invariant, text) = found(&mut with_rollouts(3), &[look]);
    assert_eq!((invariant, text.contains("counts as proved healthy")), (Invariant::Trust, true), "{text}");
}

#[test]
fn a_bad_release_may_not_stay() {
    let mut oracle = with_rollouts(3);
    let trial = |at| with(at, "box-1", |_, app| runs(app, "3.0.0", UpdatePhase::Verifying));
    let looks: Vec<_> = std::iter::once(well(209)).chain((210..=510).map(trial)).collect();
    let (invariant, text) = found(&mut oracle, &looks);
    assert_eq!((invariant, text.contains("is bad and still runs")), (Invariant::Trust, true), "{text}");
}

#[test]
fn nothing_runs_where_no_rollout_brings_it() {
    let look = with(110, "box-3", |_, app| runs(app, "2.0.0", UpdatePhase::Verifying));
    let (invariant, text) = found(&mut with_rollouts(2), &[look]);
    assert_eq!(invariant, Invariant::Blast);
    assert!(text.contains("no rollout of it selects this node"), "{text}");
    let look = with(110, "box-3", |_, app| app.target = Some(version("2.0.0")));
    let (invariant, text) = found(&mut with_rollouts(2), &[look]);
    assert_eq!((invariant, text.contains("is assigned")), (Invariant::Blast, true), "{text}");
}

#[test]
fn a_rollout_counts_nobody_who_was_not_touched() {
    for (done, failed, total, word) in
        [(3, 0, 4, "its selector names 3"), (2, 4, 3, "was tried"), (4, 0, 3, "seen to run")]
    {
        let mut look = well(51);
        let rollout = RolloutSeen { phase: RolloutPhase::Progressing, done, failed, total, object: None };
        look.rollouts.insert("app@1.0.0".into(), rollout);
        let (invariant, text) = found(&mut oracle(), &[look]);
        assert_eq!((invariant, text.contains(word)), (Invariant::Blast, true), "{text}");
    }
}

#[test]
fn an_agent_that_ends_disturbs_nothing() {
    let ended = with(60, "box-1", |node, _| node.agent_runs = false);
    let disturbed = with(61, "box-1", |node, app| (node.agent_runs, app.running) = (false, None));
    let (invariant, text) = found(&mut oracle(), &[ended, disturbed.clone()]);
    assert_eq!(invariant, Invariant::Undisturbed);
    assert!(text.contains("its agent ended or started"), "{text}");
    // The same on a box that was turned off is none.
    let mut oracle = oracle();
    oracle.fault_began(&Fault::Reboot { target: Target::Site(name("hz-01")) });
    oracle.watch(&disturbed).unwrap();
}

#[test]
fn what_runs_is_not_started_again_behind_ones_back() {
    let again = with(61, "box-1", |_, app| app.instance = Some(2));
    let (invariant, text) = found(&mut oracle(), &[again]);
    assert_eq!((invariant, text.contains("it was started again")), (Invariant::Undisturbed, true), "{text}");
    // Nor does it vanish with what the hub tells of it.
    let mut nothing = well(61);
    Arc::make_mut(&mut nothing.nodes.get_mut(&name("box-1")).unwrap().apps).clear();
    let (invariant, text) = found(&mut oracle(), &[nothing]);
    assert_eq!((invariant, text.contains("nothing runs")), (Invariant::Undisturbed, true), "{text}");
}

#[test]
fn an_upgrade_excuses_a_disturbance_until_it_is_done() {
    let trial = with(101, "box-1", |_, app| runs(app, "2.0.0", UpdatePhase::Verifying));
    let proved = |at| with(at, "box-1", |_, app| runs(app, "2.0.0", UpdatePhase::Succeeded));
    let again = with(200, "box-1", |_, app| {
        runs(app, "2.0.0", UpdatePhase::Succeeded);
        app.instance = Some(9);
    });
    let (invariant, text) = found(&mut with_rollouts(2), &[trial.clone(), proved(110), again]);
    assert_eq!((invariant, text.contains("2.0.0 was disturbed")), (Invariant::Undisturbed, true), "{text}");
    // One that failed here does not come again.
    let back = |at, instance| {
        with(at, "box-1", |_, app| {
            (app.phase, app.target, app.instance) =
                (Some(UpdatePhase::RolledBack), Some(version("2.0.0")), Some(instance));
        })
    };
    let (invariant, text) = found(&mut with_rollouts(2), &[trial, back(120, 3), back(180, 4)]);
    assert_eq!((invariant, text.contains("1.0.0 was disturbed")), (Invariant::Undisturbed, true), "{text}");
}

#[test]
fn workloads_are_up_soon_after_their_agent() {
    let mut oracle = oracle();
    oracle.fault_began(&Fault::PowerCut { target: Target::Node(name("box-1")) });
    let dark = |node: &mut Seen, app: &mut AppSeen| {
        app.running = None;
        node.line_open = false;
    };
    let off = with(55, "box-1", |node, app| {
        dark(node, app);
        (node.powered, node.agent_runs) = (false, false);
    });
    let mut looks = vec![off];
    looks.extend((60..=91).map(|at| with(at, "box-1", dark)));
    let (invariant, text) = found(&mut oracle, &looks);
    assert_eq!(invariant, Invariant::Boot);
    assert!(text.contains("nothing of app runs 30s after the agent's start"), "{text}");
}

#[test]
fn a_box_whose_files_were_damaged_or_that_is_new_may_stay_down() {
    for fault in [
        Fault::Reinstall { target: Target::Node(name("box-1")) },
        Fault::FlipBit { target: Target::All, spot: Spot::Artifact },
    ] {
        let mut oracle = oracle();
        oracle.fault_began(&fault);
        for at in 60..150 {
            oracle.watch(&with(at, "box-1", |_, app| app.running = None)).unwrap();
        }
    }
}

#[test]
fn an_outbox_keeps_within_its_quota() {
    let look = with(51, "box-1", |node, _| node.backlog_bytes = 5 << 20);
    let (invariant, text) = found(&mut oracle(), &[look]);
    assert_eq!((invariant, text.contains("its quota is 2097152")), (Invariant::Bounds, true), "{text}");
}

fn mark(ranges: &[std::ops::Range<u64>]) -> StreamState {
    StreamState {
        node: name("box-1"),
        site: name("hz-01"),
        key: StreamKey { stream: name("scans"), epoch: Epoch(7) },
        class: Class::Scans,
        durable: ranges.iter().cloned().collect::<Ranges>(),
        reported_next: 0,
        lag_records: 0,
        lag_oldest: None,
        heard: Timestamp::UNIX_EPOCH,
        ended: false,
    }
}

#[test]
fn marks_never_run_ahead_and_never_go_back() {
    let mut ledger = Ledger::default();
    ledger.hand_in(&name("box-1"), &name("scans"), 10);
    let mut records = Records::new(&plan());
    records.marks(s(1), &[mark(&[0..6])], &ledger).unwrap();
    records.marks(s(2), &[mark(&[0..6, 8..10])], &ledger).unwrap();
    let back = records.marks(s(3), &[mark(&[0..5, 8..10])], &ledger).unwrap_err();
    assert!(back.message.contains("went back: 0 to 5 were durable"), "{back}");
    let ahead = records.marks(s(3), &[mark(&[0..11])], &ledger).unwrap_err();
    assert!(ahead.message.contains("reaches 11, only 10 were handed in"), "{ahead}");
    assert_eq!(ahead.invariant, Invariant::Count);
    // A hub that comes back from a backup knows less.
    records.fault_began(&Fault::RestoreHub { age: s(60) }, &[]);
    records.marks(s(4), &[mark(&[0..1])], &ledger).unwrap();
}

#[test]
fn what_is_missing_is_one_sentence() {
    let mut plan = plan();
    plan.timeline.truncate(1);
    let mut oracle = Oracle::new(&plan);
    oracle.rollout_began(&name("app"), &version("1.0.0"));
    oracle.watch(&well(50)).unwrap();
    assert_eq!(oracle.missing(&well(51)), None);
    let cases: [(&str, Observation); 6] = [
        ("box-1 (1 of 3 boxes): not Ready at the hub", with(51, "box-1", |node, _| node.ready = Some(false))),
        ("box-2 (1 of 3 boxes): the agent does not run", with(51, "box-2", |node, _| node.agent_runs = false)),
        ("box-3 (1 of 3 boxes): nothing of app runs, expected 1.0.0", with(51, "box-3", |_, app| app.running = None)),
        ("box-3 (1 of 3 boxes): app 1.0.0 is not ready", with(51, "box-3", |_, app| app.ready = false)),
        ("the hub does not run", Observation { hub_runs: false, ..well(51) }),
        ("rollout app@1.0.0 has not begun", Observation { rollouts: BTreeMap::new(), ..well(51) }),
    ];
    for (expected, look) in cases {
        assert_eq!(oracle.missing(&look).as_deref(), Some(expected));
    }
    let mut look = well(51);
    let rollout = RolloutSeen { phase: RolloutPhase::Progressing, done: 2, failed: 0, total: 3, object: None };
    look.rollouts.insert("app@1.0.0".into(), rollout);
    assert_eq!(
        oracle.missing(&look).as_deref(),
        Some("rollout app@1.0.0 is Progressing, 2 of 3 nodes healthy, 0 failed; expected Succeeded")
    );
}

#[test]
fn after_a_bad_release_what_ran_before_must_run() {
    let mut oracle = with_rollouts(3);
    let mut look = with(300, "box-2", |_, app| runs(app, "3.0.0", UpdatePhase::Verifying));
    let rollout = RolloutSeen { phase: RolloutPhase::Failed, done: 0, failed: 3, total: 3, object: None };
    look.rollouts.insert("app@3.0.0".into(), rollout);
    assert_eq!(oracle.missing(&look).as_deref(), Some("box-2 (1 of 3 boxes): app@3.0.0 is bad and still runs"));
    oracle.watch(&well(301)).unwrap();
    let nothing = with(302, "box-2", |_, app| app.running = None);
    look.nodes = nothing.nodes;
    assert_eq!(oracle.missing(&look).as_deref(), Some("box-2 (1 of 3 boxes): nothing of app runs, 1.0.0 ran before"));
}
