//! A random plan from a number: a small fleet, releases of which some are bad, producers, and faults of every kind.
//!
//! Pure. Each part is drawn from a stream of its own, so that a change to one leaves the others as they were.
//! Whatever is drawn is valid: written down, it is read as the same plan.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use proto::{
    env::Seed,
    name::Name,
    object::{
        UpdatePhase,
        rollout::{Budget, OnFailure, Share, Wave},
    },
    release::Gpus,
    selector::Selector,
    units::Bytes,
};
use rand::{Rng, RngExt as _, seq::IndexedRandom as _};

use crate::{
    fault::{Fault, Spot, Target, Way},
    net::Manners,
    plan::{self, Action, Broker, Curve, Entry, Moment, Peak, Plan, Producer, Release, Site, Steer},
};

/// Most of each.
const MAX_SITES: usize = 3;
const MAX_BOXES: usize = 8;
const MAX_FAULTS: usize = 12;
/// Records of a run: what it costs is mostly these.
const MAX_RECORDS: f64 = 3_000.0;
/// Bytes of a release on a line that is not narrow.
const MAX_RELEASE_BYTES: u64 = 512 << 10;
/// After healing, all must have converged: longer than the longest back-off and deadline together.
const CONVERGE: Duration = Duration::from_secs(30 * 60);
const LINES: [&str; 5] = ["4g", "fiber", "256k-lossy", "flapping", "double-eleven"];

/// Draws a plan. `minutes` is its length; otherwise that is drawn too.
///
/// # Errors
/// None that a caller could cause.
pub fn draw(seed: u64, minutes: Option<u64>) -> anyhow::Result<Plan> {
    let seed = Seed::from_u64(seed).child("swarm");
    let duration = duration(&mut seed.stream("duration"), minutes);
    let sites = sites(&mut seed.stream("sites"))?;
    let mut plan = Plan::quiet(duration, sites, CONVERGE);
    releases(&mut seed.stream("releases"), &mut plan)?;
    producers(&mut seed.stream("producers"), &mut plan)?;
    faults(&mut seed.stream("faults"), &mut plan)?;
    plan.timeline.sort_by_key(|entry| if let Moment::At(at) = entry.moment { at } else { Duration::MAX });
    wait_for_moments(&mut seed.stream("moments"), &mut plan);
    // After all else, so that what a seed drew before there were waves is still in it.
    ways(&mut seed.stream("ways"), &mut plan)?;
    steers(&mut seed.stream("steers"), &mut plan);
    carriers(&mut seed.stream("carriers"), &mut plan)?;
    gpus(&mut seed.stream("gpus"), &mut plan)?;
    about(&mut plan);
    Ok(plan)
}

/// Says what is in it.
pub(super) fn about(plan: &mut Plan) {
    let boxes: usize = plan.sites.iter().map(|site| site.nodes.len()).sum();
    let faults = plan.timeline.iter().filter(|entry| matches!(entry.action, Action::Break { .. })).count();
    let (sites, releases) = (plan.sites.len(), plan.releases.len());
    plan.about = format!("drawn: {boxes} boxes at {sites} sites, {releases} releases, {faults} faults");
}

fn seconds(chance: &mut impl Rng, from: u64, to: u64) -> Duration {
    Duration::from_secs(chance.random_range(from..=to.max(from)))
}

/// Minutes; sometimes an hour: what a run costs goes with boxes and virtual time.
fn duration(chance: &mut impl Rng, minutes: Option<u64>) -> Duration {
    let drawn = match chance.random_range(0..100) {
        0..75 => seconds(chance, 120, 480),
        75..96 => seconds(chance, 480, 1_200),
        _ => seconds(chance, 1_200, 5_400),
    };
    minutes.map_or(drawn, |minutes| Duration::from_secs(minutes.clamp(2, 60 * 24 * 30) * 60))
}

fn sites(chance: &mut impl Rng) -> anyhow::Result<Vec<Site>> {
    let count = chance.random_range(1..=MAX_SITES);
    let boxes = chance.random_range(count..=MAX_BOXES);
    let mut sites = vec![];
    for number in 0..count {
        let name: Name = format!("s{}", number + 1).parse()?;
        let own = boxes / count + usize::from(number < boxes % count);
        let nodes = (1..=own).map(|node| format!("{name}-{node}").parse()).collect::<Result<_, _>>()?;
        let line = match chance.random_range(0..100) {
            0..50 => "4g",
            50..70 => "fiber",
            70..80 => "256k-lossy",
            80..90 => "flapping",
            _ => "double-eleven",
        };
        let ring = if chance.random_bool(0.5) { "early" } else { "late" };
        // Small enough that an outage of minutes fills it now and then.
        let settings = if chance.random_bool(0.2) { "[streams]\nquota = \"2097152\"\n" } else { "" };
        sites.push(Site {
            name,
            nodes,
            labels: BTreeMap::from([("ring".to_owned(), ring.to_owned())]),
            line: plan::line(line).context("a line that everybody knows")?,
            settings: settings.to_owned(),
            gpus: 0,
        });
    }
    Ok(sites)
}

/// One to three releases of an app, or of two, in rising order; bad ones come after a good one mostly.
fn releases(chance: &mut impl Rng, plan: &mut Plan) -> anyhow::Result<()> {
    let count = chance.random_range(1..=3_u64);
    let narrow = plan.sites.iter().any(|site| site.line.bytes_per_s.is_some_and(|rate| rate < 100_000));
    let most = if narrow { 128 << 10 } else { MAX_RELEASE_BYTES };
    let mut at = Duration::ZERO;
    for number in 0..count {
        let second_app = number > 0 && chance.random_bool(0.25);
        let app: Name = if second_app { "camera" } else { "sorter" }.parse()?;
        let bad = chance.random_bool(if number == 0 { 0.1 } else { 0.35 });
        let behaviour = ["crash-after=1s", "hang", "refuse"].choose(chance).copied().unwrap_or("hang");
        let release = Release {
            version: format!("1.{number}.0").parse()?,
            files: chance.random_range(1..=6),
            bytes: chance.random_range(4..=most / 1024) * 1024,
            args: if bad { vec![behaviour.to_owned()] } else { vec![] },
            gpus: None,
            uses: None,
            scaling: None,
            app,
            bad,
        };
        let left = plan.duration.saturating_sub(at).as_secs();
        at += seconds(chance, 5, (left / (count - number + 1)).max(6));
        let to = selector(chance, &plan.sites)?;
        plan.timeline.push(Entry {
            moment: Moment::At(at),
            jitter: Duration::ZERO,
            repeat: None,
            action: Action::Rollout {
                app: release.app.clone(),
                version: release.version.clone(),
                to,
                how: Box::default(),
            },
            may_miss: false,
            line: 0,
        });
        plan.releases.push(release);
    }
    Ok(())
}

/// Half of the rollouts go in waves, within a budget, or spread over a while.
fn ways(chance: &mut impl Rng, plan: &mut Plan) -> anyhow::Result<()> {
    let releases = plan.releases.clone();
    for entry in &mut plan.timeline {
        let Action::Rollout { app, version, how, .. } = &mut entry.action else { continue };
        if !chance.random_bool(0.5) {
            continue;
        }
        let wave = |text: &str| match text.strip_suffix('%') {
            Some(percent) => Wave { percent: percent.parse().ok(), ..Wave::default() },
            None => Wave { count: text.parse().ok(), ..Wave::default() },
        };
        let waves: [&[&str]; 5] = [&[], &["1", "100%"], &["2", "100%"], &["1", "50%", "100%"], &["34%", "67%", "100%"]];
        how.waves = waves.choose(chance).unwrap_or(&waves[0]).iter().map(|text| wave(text)).collect();
        if !how.waves.is_empty() {
            how.soak = Duration::from_secs(chance.random_range(0..3) * 15);
            how.approval = chance.random_bool(0.15);
        }
        if chance.random_bool(0.6) {
            let max_unavailable = if chance.random_bool(0.7) { Share::Count(1) } else { Share::Percent(50) };
            let per = ["site", "fleet", "ring"].choose(chance).copied().unwrap_or("site");
            how.budget = Some(Budget { max_unavailable, per: per.into() });
        }
        if chance.random_bool(0.2) {
            how.spread = seconds(chance, 1, 60);
        }
        let mut before =
            releases.iter().filter(|release| release.app == *app && release.version < *version && !release.bad);
        how.on_failure = match (chance.random_range(0..4), before.next_back()) {
            (0 | 1, Some(before)) => {
                how.rollback_to = Some(before.version.clone());
                OnFailure::RollBack
            }
            (2, _) => OnFailure::Stop,
            _ => OnFailure::Pause,
        };
    }
    Ok(())
}

/// People who pause, resume, retry and abort what goes in waves. Whoever pauses resumes a while later.
fn steers(chance: &mut impl Rng, plan: &mut Plan) {
    let last = plan.duration.saturating_sub(Duration::from_secs(2));
    let mut drawn = vec![];
    for entry in &plan.timeline {
        let (Action::Rollout { app, version, how, .. }, Moment::At(at)) = (&entry.action, &entry.moment) else {
            continue;
        };
        let mut steer = |after: Duration, steer| {
            let (app, version) = (app.clone(), version.clone());
            let moment = Moment::At((*at + after).min(last));
            let action = Action::Steer { app, version, steer };
            drawn.push(Entry { moment, jitter: Duration::ZERO, repeat: None, action, may_miss: true, line: 0 });
        };
        if how.approval {
            let after = seconds(chance, 30, 120);
            (1..=4).for_each(|time| steer(after * time, Steer::Approve));
        }
        if !how.in_waves() {
            continue;
        }
        let after = seconds(chance, 1, 60);
        match chance.random_range(0..10) {
            0..3 => {
                steer(after, Steer::Pause);
                steer(after + seconds(chance, 5, 90), Steer::Resume);
            }
            3 => steer(after, Steer::Abort),
            4 => steer(after * 2, Steer::Retry),
            _ => {}
        }
    }
    // Behind everything else: what waits for the entry before it still does.
    plan.timeline.extend(drawn);
}

/// Two fleets of five have brokers: sites from which no UDP goes out, for good or by turns, and brokers that go down.
fn carriers(chance: &mut impl Rng, plan: &mut Plan) -> anyhow::Result<()> {
    if !chance.random_bool(0.4) {
        return Ok(());
    }
    for number in 1..=chance.random_range(1..=2) {
        let (name, fine) = (format!("broker-{number}").parse()?, chance.random_bool(0.4));
        let ppm = |chance: &mut dyn Rng| chance.random_range(0..=30_000);
        let manners = Manners {
            packet_limit: [None, Some(2_048), Some(4_096), Some(8_192)].choose(chance).copied().flatten(),
            drop_ppm: ppm(chance),
            duplicate_ppm: ppm(chance),
            reorder_ppm: ppm(chance),
            delay: Duration::from_millis(chance.random_range(0..=200)),
        };
        let line = plan::line(["fiber", "fiber", "4g"].choose(chance).copied().unwrap_or("fiber"));
        let manners = if fine { Manners::default() } else { manners };
        plan.brokers.push(Broker { name, line: line.context("a line that everybody knows")?, manners });
    }
    let mut drawn = vec![];
    let mut add = |at: Duration, fault, lasts| {
        let action = Action::Break { lasts, fault };
        let moment = Moment::At(at);
        drawn.push(Entry { moment, jitter: Duration::ZERO, repeat: None, action, may_miss: true, line: 0 });
    };
    let all = plan.duration.as_secs();
    for site in &plan.sites {
        let target = Target::Site(site.name.clone());
        match chance.random_range(0..10) {
            0..3 => add(Duration::from_secs(1), Fault::BlockUdp { target }, None),
            // By turns, a little longer or shorter than the link waits before it goes back.
            3..6 => {
                let mut at = seconds(chance, 1, all / 3);
                for _ in 0..chance.random_range(2..=6) {
                    let lasts = Duration::from_millis(chance.random_range(500..25_000));
                    if at + lasts + Duration::from_secs(2) < plan.duration {
                        add(at, Fault::BlockUdp { target: target.clone() }, Some(lasts));
                    }
                    at += lasts + Duration::from_millis(chance.random_range(500..25_000));
                }
            }
            _ => {}
        }
    }
    for broker in &plan.brokers {
        for _ in 0..chance.random_range(0..=3) {
            let lasts = seconds(chance, 1, (all / 4).min(120));
            let at = seconds(chance, 1, all.saturating_sub(lasts.as_secs() + 2));
            add(at, Fault::BrokerDown { broker: broker.name.clone() }, Some(lasts));
        }
    }
    // Behind everything else, as people are.
    plan.timeline.extend(drawn);
    Ok(())
}

/// A third of the fleets watch sorting lines: two GPUs a box, apps that need some, and GPUs that fail.
fn gpus(chance: &mut impl Rng, plan: &mut Plan) -> anyhow::Result<()> {
    if !chance.random_bool(0.33) {
        return Ok(());
    }
    plan.sites.iter_mut().for_each(|site| site.gpus = 2);
    for release in &mut plan.releases {
        // Together they fit, whatever is drawn.
        let exclusive = release.app.as_str() == "sorter" && chance.random_bool(0.7);
        let memory = (!exclusive).then(|| Bytes::new(chance.random_range(2..=12) << 30));
        release.gpus = chance.random_bool(0.9).then_some(Gpus { count: 1, memory, exclusive, driver: None });
    }
    let mut drawn = vec![];
    for _ in 0..chance.random_range(0..=3) {
        let target = box_target(chance, &plan.sites)?;
        let fault = if chance.random_bool(0.5) { Fault::GpuLost { target } } else { Fault::GpuSick { target } };
        let lasts = seconds(chance, 1, (plan.duration.as_secs() / 3).max(2));
        let at = seconds(chance, 1, plan.duration.saturating_sub(lasts).as_secs().saturating_sub(2));
        let action = Action::Break { lasts: chance.random_bool(0.9).then_some(lasts), fault };
        let moment = Moment::At(at + Duration::from_millis(chance.random_range(0..1000)));
        drawn.push(Entry { moment, jitter: Duration::ZERO, repeat: None, action, may_miss: true, line: 0 });
    }
    // Behind everything else, as people are.
    plan.timeline.extend(drawn);
    Ok(())
}

fn selector(chance: &mut impl Rng, sites: &[Site]) -> anyhow::Result<Selector> {
    let site = sites.choose(chance).context("a plan has a site")?;
    Ok(match chance.random_range(0..10) {
        0..6 => Selector::all(),
        6..8 => format!("site={}", site.name).parse()?,
        _ => format!("ring={}", site.labels.get("ring").map_or("early", String::as_str)).parse()?,
    })
}

fn producers(chance: &mut impl Rng, plan: &mut Plan) -> anyhow::Result<()> {
    let count = chance.random_range(0..=2_usize);
    let boxes: usize = plan.sites.iter().map(|site| site.nodes.len()).sum();
    let minutes = plan.duration.as_secs_f64() / 60.0;
    for stream in ["scans", "logs"].iter().take(count) {
        let most = MAX_RECORDS / count as f64 / boxes as f64 / minutes;
        let per_minute = (chance.random_range(0.2..1.0) * most.min(240.0) * 10.0).ceil() / 10.0;
        let peaks = if chance.random_bool(0.3) {
            let last = plan.duration.as_secs() / 2;
            vec![Peak { at: seconds(chance, 1, last), lasts: seconds(chance, 5, 30), times: 4.0 }]
        } else {
            vec![]
        };
        plan.producers.push(Producer {
            on: box_target(chance, &plan.sites)?,
            stream: stream.parse()?,
            per_minute,
            curve: if chance.random_bool(0.2) { Curve::Daily } else { Curve::Flat },
            peaks,
        });
    }
    Ok(())
}

fn box_target(chance: &mut impl Rng, sites: &[Site]) -> anyhow::Result<Target> {
    let site = sites.choose(chance).context("a plan has a site")?;
    let node = site.nodes.choose(chance).context("a site has a box")?;
    Ok(match chance.random_range(0..10) {
        0..3 => Target::All,
        3..5 => Target::Site(site.name.clone()),
        _ => Target::Node(node.clone()),
    })
}

fn faults(chance: &mut impl Rng, plan: &mut Plan) -> anyhow::Result<()> {
    let mut restored = false;
    for _ in 0..chance.random_range(0..=MAX_FAULTS) {
        let target = box_target(chance, &plan.sites)?;
        let fault = fault(chance, target, plan.duration)?;
        // One backup is enough: what a second one would undo is not known any more.
        if matches!(fault, Fault::RestoreHub { .. }) && std::mem::replace(&mut restored, true) {
            continue;
        }
        let longest = (plan.duration.as_secs() / 3).max(2);
        let lasts = match chance.random_range(0..10) {
            0..6 => seconds(chance, 1, longest.min(90)),
            _ => seconds(chance, 1, longest),
        };
        // An odd part of a second: not everything happens when something is looked at.
        let lasts = lasts + Duration::from_millis(chance.random_range(0..1000));
        let room = plan.duration.saturating_sub(lasts).as_secs().saturating_sub(2);
        let at = seconds(chance, 1, room) + Duration::from_millis(chance.random_range(0..1000));
        let lasts = (!fault.at_once() && !chance.random_bool(0.1)).then_some(lasts);
        plan.timeline.push(Entry {
            moment: Moment::At(at),
            jitter: Duration::ZERO,
            repeat: None,
            action: Action::Break { lasts, fault },
            // Nobody knows whom it will meet.
            may_miss: true,
            line: 0,
        });
    }
    Ok(())
}

fn fault(chance: &mut impl Rng, target: Target, duration: Duration) -> anyhow::Result<Fault> {
    Ok(match chance.random_range(0..19) {
        0 | 1 => Fault::Cut { target, way: Way::Both },
        2 => Fault::Cut { target, way: Way::Up },
        3 => Fault::Cut { target, way: Way::Down },
        4 => {
            let name = LINES.choose(chance).copied().unwrap_or("4g");
            Fault::Line { target, profile: plan::line(name).context("a known line")?, name: name.to_owned() }
        }
        5 => Fault::BlockUdp { target },
        6 => Fault::Rebind { target },
        7 | 8 => Fault::CrashAgent { target },
        9 => Fault::CrashHub,
        10 => Fault::Reboot { target },
        11 | 12 => Fault::PowerCut { target: hub_or(chance, target) },
        13 => Fault::Reinstall { target },
        14 => match hub_or(chance, target) {
            // Certificates that a hub of another time signed are refused later, and a person has to join again:
            // boxes do not renew them by themselves yet.
            Target::Hub => Fault::Clock { target: Target::Hub, offset_ms: chance.random_range(-60..=60) * 1_500 + 1 },
            target => Fault::Clock { target, offset_ms: offset_ms(chance) },
        },
        15 => Fault::DiskFull { target: hub_or(chance, target) },
        16 => {
            let spot = [Spot::Outbox, Spot::State, Spot::Artifact].choose(chance).copied().unwrap_or(Spot::Outbox);
            Fault::FlipBit { target, spot }
        }
        17 => Fault::SinkDown,
        _ => Fault::RestoreHub { age: seconds(chance, 5, duration.as_secs() / 3) },
    })
}

fn hub_or(chance: &mut impl Rng, target: Target) -> Target {
    if chance.random_bool(0.25) { Target::Hub } else { target }
}

/// Minutes, days or years, either way.
fn offset_ms(chance: &mut impl Rng) -> i64 {
    const DAY_MS: i64 = 86_400_000;
    let off = [90_000, DAY_MS, 30 * DAY_MS, 10 * 365 * DAY_MS].choose(chance).copied().unwrap_or(DAY_MS);
    if chance.random_bool(0.5) { off } else { -off }
}

/// Some faults strike in the middle of a rollout instead: when a box has a part of the release, or is on trial.
fn wait_for_moments(chance: &mut impl Rng, plan: &mut Plan) {
    let nodes: Vec<Name> = plan.sites.iter().flat_map(|site| site.nodes.clone()).collect();
    let rolled: Vec<Option<Name>> = plan
        .timeline
        .iter()
        .map(|entry| match &entry.action {
            Action::Rollout { app, .. } => Some(app.clone()),
            _ => None,
        })
        .collect();
    for (entry, before) in plan.timeline.iter_mut().skip(1).zip(&rolled) {
        let (Some(app), Some(node)) = (before, nodes.choose(chance)) else { continue };
        if !matches!(entry.action, Action::Break { .. }) || !chance.random_bool(0.3) {
            continue;
        }
        entry.moment = if chance.random_bool(0.5) {
            Moment::Downloaded { node: node.clone(), percent: chance.random_range(1..=99) }
        } else {
            let phases = [UpdatePhase::Downloading, UpdatePhase::Verifying, UpdatePhase::Succeeded];
            let phase = phases.choose(chance).copied().unwrap_or(UpdatePhase::Verifying);
            Moment::Phase { node: node.clone(), app: app.clone(), phase }
        };
    }
}
