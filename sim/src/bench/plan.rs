//! `sim bench plan`: what one pass of the hub's planner costs, over a large fleet with many rollouts on their way.
//!
//! Every rollout is of an app of its own and for all nodes: a canary and a tenth that have passed, and all others,
//! a few at a time by their sites' budgets.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, bail, ensure};
use cloudcore::planner::{Plan, Planner, Snapshot, Step, plan};
use jiff::Timestamp;
use proto::{
    digest::Digest,
    name::{Name, ReleaseName},
    object::{
        Node, NodeInfo, NodePhase, NodeSpec, NodeStatus, Object, Release, ReleaseRef, ReleaseSpec, Rollout,
        RolloutSpec, UpdatePhase, WorkloadStatus, feature,
        rollout::{Budget, Share, Wave},
    },
    selector::Selector,
};

use super::{Figures, process, profile, warn_if_debug};

/// Nodes of a site.
const PER_SITE: u32 = 100;
/// Passes that are measured.
const PASSES: u32 = 20;
/// Plans until a fleet must have come to rest.
const ROUNDS: u32 = 30;
/// Bytes of a release.
const BYTES: u64 = 1 << 20;

/// `sim bench plan`.
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    /// Nodes of the fleet.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    nodes: u32,
    /// Rollouts at work.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    rollouts: u32,
    /// One JSON object on the last line.
    #[arg(long)]
    json: bool,
}

/// Runs the bench.
///
/// # Errors
/// When the fleet cannot be made, or does not come to rest.
pub fn run(args: &PlanArgs) -> anyhow::Result<()> {
    warn_if_debug();
    let start: Timestamp = "2026-01-01T00:00:00Z".parse()?;
    let mut fleet = fleet(args, start)?;
    // The first two waves prove the release; the third stops where the sites' budgets are used up.
    let mut now = start;
    for second in 0..ROUNDS {
        now = start.checked_add(jiff::SignedDuration::from_secs(second.into()))?;
        let steps = plan(&fleet, now).steps;
        if steps.is_empty() {
            break;
        }
        carry_out(&mut fleet, steps);
        answer(&mut fleet, 2);
    }
    let rest = plan(&fleet, now);
    ensure!(rest.steps.is_empty(), "the fleet does not come to rest: {} steps are left", rest.steps.len());
    let cold = timed(|| {
        let Plan { steps, .. } = std::hint::black_box(plan(&fleet, now));
        ensure!(steps.is_empty(), "a fleet at rest has steps");
        Ok(())
    })?;
    let mut planner = Planner::new(fleet);
    planner.plan(now);
    let quiet = timed(|| {
        ensure!(planner.plan(now).steps.is_empty(), "a fleet at rest has steps");
        Ok(())
    })?;
    let mut passes = vec![];
    for turn in 0..PASSES {
        let (name, node) = says_more(planner.snapshot(), turn)?;
        let begun = thread_cpu();
        planner.set_node(name, Some(node));
        let steps = planner.plan(now).steps;
        passes.push(thread_cpu().saturating_sub(begun));
        let [Step::SetRolloutStatus { rollout, status, .. }] = steps.as_slice() else {
            bail!("a node that says how far it is makes {} steps", steps.len());
        };
        let mut written = planner.snapshot().rollouts.get(rollout).context("its rollout is gone")?.clone();
        written.status = (**status).clone();
        let begun = thread_cpu();
        planner.set_rollout(rollout.clone(), Some(written));
        ensure!(planner.plan(now).steps.is_empty(), "it does not come to rest");
        passes.push(thread_cpu().saturating_sub(begun));
    }
    passes.sort_unstable();
    let pass = passes.get(passes.len() / 2).context("nothing was measured")?.as_secs_f64() * 1000.0;
    let mut figures = Figures::default();
    figures.add("nodes", args.nodes, "each in every rollout");
    figures.add("rollouts", args.rollouts, "at work: two waves passed, the third held back by budgets");
    figures.add(
        "pass_ms",
        round(pass),
        "processor time of a pass after a node said how far it is, or after what follows was written (goal at most 10)",
    );
    figures.add("pass_quiet_ms", round(quiet), "processor time when nothing that matters has changed");
    figures.add("pass_cold_ms", round(cold), "processor time of all rollouts over all nodes, as after the hub's start");
    figures.add("profile", profile(), "how it was built");
    figures.print(args.json);
    Ok(())
}

/// Processor time of this thread so far.
fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn round(ms: f64) -> f64 {
    (ms * 100.0).round() / 100.0
}

/// Processor time of one of many, milliseconds.
fn timed(mut pass: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let before = process::cpu(std::process::id())?;
    for _ in 0..PASSES {
        pass()?;
    }
    let spent = process::cpu(std::process::id())?.saturating_sub(before);
    Ok(spent.as_secs_f64() * 1000.0 / f64::from(PASSES))
}

/// A node that applies something, and says how far it is.
fn says_more(fleet: &Snapshot, turn: u32) -> anyhow::Result<(Name, Node)> {
    let applies = |node: &&Node| node.status.workloads.values().any(|said| said.phase == UpdatePhase::Applying);
    let mut node = fleet.nodes.values().find(applies).context("no node applies anything")?.clone();
    let said = node.status.workloads.values_mut().find(|said| said.phase == UpdatePhase::Applying);
    said.context("no node applies anything")?.message = format!("{turn} of {PASSES} files");
    Ok((node.name().parse()?, node))
}

fn fleet(args: &PlanArgs, start: Timestamp) -> anyhow::Result<Snapshot> {
    let mut fleet = Snapshot::default();
    for number in 0..args.nodes {
        let name: Name = format!("box-{number:05}").parse()?;
        let mut node: Node = Object::new(name.clone(), NodeSpec::new(format!("site-{}", number / PER_SITE).parse()?));
        node.status = NodeStatus { phase: NodePhase::Ready, info: Some(info(&name)), ..NodeStatus::default() };
        fleet.nodes.insert(name, node);
    }
    for number in 0..args.rollouts {
        let release = ReleaseName { app: format!("app-{number}").parse()?, version: "1.0.0".parse()? };
        let spec = ReleaseSpec {
            app: release.app.clone(),
            version: release.version.clone(),
            digest: Digest::of(release.to_string().as_bytes()),
            release_counter: 1,
            hardware: vec![],
            issued_at: None,
            requests: None,
            gpus: None,
            anti_affinity: Default::default(),
            files: 1,
            total_bytes: BYTES,
        };
        fleet.releases.insert(release.clone(), Release::new(release.object_name(), spec));
        let mut rollout = Rollout::new(format!("rollout-{number}").parse::<Name>()?, rolled(release));
        rollout.metadata.creation_timestamp = Some(start);
        fleet.rollouts.insert(rollout.name().to_owned(), rollout);
    }
    Ok(fleet)
}

fn info(name: &Name) -> NodeInfo {
    NodeInfo {
        agent_version: proto::VERSION.into(),
        boot_id: "1".into(),
        architecture: "x86_64".into(),
        os_image: "Debian GNU/Linux 12".into(),
        kernel: "6.1".into(),
        cpus: 4,
        memory_bytes: 8 << 30,
        hostname: name.to_string(),
        addresses: vec![],
        hardware: vec!["x86_64".into()],
        nvidia: None,
        features: feature::ALL.map(str::to_owned).into(),
        sealing_key: None,
    }
}

fn rolled(release: ReleaseName) -> RolloutSpec {
    let canary = Wave { count: Some(1), ..Wave::default() };
    let tenth = Wave { percent: Some(10), ..Wave::default() };
    RolloutSpec {
        waves: vec![canary, tenth, Wave { percent: Some(100), ..Wave::default() }],
        budget: Some(Budget { max_unavailable: Share::Percent(10), per: Budget::SITE.into() }),
        ..RolloutSpec::new(release, Selector::all())
    }
}

fn carry_out(fleet: &mut Snapshot, steps: Vec<Step>) {
    for step in steps {
        match step {
            Step::SetApp { node, app, assigned } => {
                if let (Some(node), Some(assigned)) = (fleet.nodes.get_mut(&node), assigned) {
                    node.spec.apps.insert(app, assigned);
                }
            }
            Step::SetRolloutStatus { rollout, status, .. } => {
                if let Some(rollout) = fleet.rollouts.get_mut(&rollout) {
                    rollout.status = *status;
                }
            }
            Step::SetReboot { .. } | Step::Start(_) => {}
        }
    }
}

/// Every agent says that it is where it was told to go; in waves from `last` on it never gets further than staged or
/// applying.
fn answer(fleet: &mut Snapshot, last: u32) {
    let mut waves: BTreeMap<(&Name, &Name), u32> = BTreeMap::new();
    for rollout in fleet.rollouts.values() {
        let drawn = rollout.status.nodes.iter().filter_map(|(node, entry)| Some((node, entry.wave?)));
        waves.extend(drawn.map(|(node, wave)| ((node, &rollout.spec.app), wave)));
    }
    for (name, node) in &mut fleet.nodes {
        for (app, assigned) in &node.spec.apps {
            let stuck = waves.get(&(name, app)).is_some_and(|wave| *wave >= last);
            let phase = match (assigned.order.hold, stuck) {
                (true, _) => UpdatePhase::Staged,
                (false, true) => UpdatePhase::Applying,
                (false, false) => UpdatePhase::Succeeded,
            };
            let target = ReleaseRef { version: assigned.version.clone(), digest: assigned.digest };
            let said = WorkloadStatus::new(Some(target), phase, Timestamp::UNIX_EPOCH);
            node.status.workloads.insert(app.clone(), said);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_fleet_is_planned() {
        run(&PlanArgs { nodes: 40, rollouts: 3, json: true }).unwrap();
    }
}
