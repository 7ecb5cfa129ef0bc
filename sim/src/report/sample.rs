//! A run that nobody played: boxes, faults, two releases and a backlog, to draw reports of.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proto::{
    name::Name,
    object::{NodePhase, RolloutPhase, UpdatePhase},
};

use crate::{
    fault::{Fault, Target, Way},
    ledger::Outcome,
    net::Profile,
    oracle::{Invariant, Violation},
    plan::{Expect, Plan, Site},
    record::{End, Record, Recorder},
    world::{AppSeen, Observation, RolloutSeen, Seen},
};

/// A plan that only says which boxes there are.
pub(crate) fn plan(boxes: usize, about: &str) -> Plan {
    let mut sites: Vec<Site> = vec![];
    for number in 0..boxes {
        let name: Name = format!("hz-{:02}", number / 10 + 1).parse().unwrap();
        if sites.last().is_none_or(|site| site.name != name) {
            sites.push(Site {
                name: name.clone(),
                nodes: vec![],
                labels: BTreeMap::new(),
                line: Profile::edge(),
                settings: String::new(),
                gpus: 0,
            });
        }
        if let Some(site) = sites.last_mut() {
            site.nodes.push(format!("{name}-{}", site.nodes.len() + 1).parse().unwrap());
        }
    }
    let expect = Expect {
        converge_within: Duration::from_secs(900),
        in_gaps: None,
        touched: BTreeMap::new(),
        rollouts: BTreeMap::new(),
        up_without_hub_within: None,
    };
    Plan {
        name: "made_up".into(),
        about: about.into(),
        duration: Duration::from_secs(7_200),
        sites,
        brokers: vec![],
        releases: vec![],
        producers: vec![],
        timeline: vec![],
        expect,
    }
}

fn seen(site: &Name, at: u64, number: u64) -> Seen {
    let cut = site.as_str() == "hz-01" && (2_000..5_000).contains(&at);
    let off = number == 2 && (3_000..3_400).contains(&at);
    let crashed = number == 1 && (5_500..5_530).contains(&at);
    let agent = !(off || crashed);
    let upgraded = at > 600 + number * 5 && !cut;
    let trial = upgraded && at < 630 + number * 5;
    let version = if upgraded || cut { "1.1.0" } else { "1.0.0" };
    let app = AppSeen {
        told: None,
        uses: BTreeMap::new(),
        others: BTreeMap::new(),
        running: (!off).then(|| version.parse().unwrap()),
        digest: None,
        instance: None,
        tried: None,
        ready: !trial,
        phase: Some(if trial { UpdatePhase::Verifying } else { UpdatePhase::Succeeded }),
        message: String::new(),
        target: Some(version.parse().unwrap()),
    };
    let connected = !cut && agent;
    Seen {
        site: site.clone(),
        agent_runs: agent,
        powered: !off,
        line_open: !cut,
        ready: Some(connected || (cut && at < 2_060)),
        phase: if connected { NodePhase::Ready } else { NodePhase::Unknown },
        apps: Arc::new(BTreeMap::from([("scan-counter".parse().unwrap(), app)])),
        backlog_records: if cut { at - 2_000 } else { 0 },
        backlog_bytes: 0,
        connected,
        carrier: if number == 0 && at > 6_000 { "mqtt" } else { "udp" },
    }
}

/// A run of two hours with so many boxes that ended with `violation`, if it is one.
pub(crate) fn record(boxes: usize, about: &str, broken: bool) -> Record {
    let plan = plan(boxes, about);
    let mut recorder = Recorder::new(&plan, 42);
    let s = Duration::from_secs;
    let cut = Fault::Cut { target: Target::Site("hz-01".parse().unwrap()), way: Way::Both };
    let off = Fault::PowerCut { target: Target::Node("hz-01-3".parse().unwrap()) };
    let agent = Fault::CrashAgent { target: Target::Node("hz-01-2".parse().unwrap()) };
    let rebind = Fault::Rebind { target: Target::All };
    for at in (0..7_500).step_by(5) {
        match at {
            2_000 => drop(recorder.fault_began(&cut, s(at), 0)),
            3_000 => drop(recorder.fault_began(&off, s(at), 1)),
            3_400 => recorder.fault_healed(1, s(at), 0),
            5_000 => recorder.fault_healed(0, s(at), 12_345),
            5_500 => drop(recorder.fault_began(&agent, s(at), 1)),
            5_530 => recorder.fault_healed(2, s(at), 0),
            6_000 => drop(recorder.fault_began(&rebind, s(at), boxes as u64)),
            6_200 => drop(recorder.fault_began(&Fault::CrashHub, s(at), 1)),
            6_400 => recorder.fault_healed(4, s(at), 0),
            _ => {}
        }
        let mut nodes = BTreeMap::new();
        for site in &plan.sites {
            for node in &site.nodes {
                nodes.insert(node.clone(), seen(&site.name, at, nodes.len() as u64));
            }
        }
        let total = u32::try_from(boxes).unwrap();
        let done = u32::try_from(at.saturating_sub(630) / 5).unwrap().min(total);
        let phase = if done == total { RolloutPhase::Succeeded } else { RolloutPhase::Progressing };
        let mut rollouts = BTreeMap::new();
        if at > 600 {
            rollouts
                .insert("scan-counter@1.1.0".to_owned(), RolloutSeen { phase, done, failed: 0, total, object: None });
        }
        recorder.sample(&Observation { at: s(at), hub_runs: !(6_200..6_400).contains(&at), nodes, rollouts });
    }
    recorder.mark(s(7_200), "all is healed from here on");
    let node = "hz-01-1".parse().unwrap();
    let violation =
        broken.then(|| Violation::new(Invariant::Count, s(6_900), Some(&node), "record 7 of <hz-01-1> is twice"));
    let books =
        Outcome { acknowledged: 123_456, stored: 123_400, in_gaps: 56, missing: 0, unacknowledged: 12, unknowable: 0 };
    recorder.finish(End {
        at: s(7_500),
        healing_at: Some(s(7_200)),
        trace_digest: "00ff".repeat(16),
        trace_lines: 98_765,
        books: Some(books),
        violation,
        error: None,
    })
}
