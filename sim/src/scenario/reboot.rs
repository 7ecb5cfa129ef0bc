//! All boxes restart on order, one at a time of each site, while agents and hub are killed in between.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use proto::{
    name::ObjectName,
    object::{
        NodePhase, Rollout, RolloutPhase, RolloutSpec,
        rollout::{Budget, Share, Wave},
    },
    selector::Selector,
};
use rand::RngExt as _;
use tokio::time::{Instant, sleep};

use crate::world::World;

const APP: &str = "scan-counter";
const SITES: [(&str, [&str; 3]); 2] = [("hz-01", ["box-1", "box-2", "box-3"]), ("hz-02", ["box-4", "box-5", "box-6"])];
const NAME: &str = "restart-all";
const PATIENCE: Duration = Duration::from_secs(3600);
const STEP: Duration = Duration::from_millis(250);

pub(super) async fn play(world: &mut World) -> anyhow::Result<Vec<String>> {
    let mut choice = world.seed("nodes_restart_in_turn").stream("choices");
    let all: Vec<&str> = SITES.iter().flat_map(|(_, nodes)| nodes.iter().copied()).collect();
    world.start_hub().await?;
    for (site, nodes) in SITES {
        for node in nodes {
            world.join(node, site).await?;
            world.start_agent(node).await?;
        }
    }
    let ready = |node: &proto::object::Node| node.status.phase == NodePhase::Ready;
    world.until_nodes(Duration::from_secs(60), "all nodes are Ready", |nodes| nodes.values().all(ready)).await?;
    world.publish(APP, "1.0.0", 4, 100_000, &[]).await?;
    world.roll_out(APP, "1.0.0").await?;
    world.until_done("the release runs", APP, &all, Duration::from_secs(300)).await?;

    let spec = RolloutSpec {
        waves: vec![Wave { count: Some(1), ..Wave::default() }, Wave::default()],
        budget: Some(Budget { max_unavailable: Share::Count(1), per: Budget::SITE.into() }),
        ..RolloutSpec::reboot(Selector::all())
    };
    world.hub()?.store().create(Rollout::new(NAME.parse::<ObjectName>()?, spec)).await?;
    let mut next_fault = Instant::now() + Duration::from_secs(choice.random_range(5..30));
    let (deadline, mut faults, mut most_down) = (Instant::now() + PATIENCE, 0, 0);
    loop {
        let status = world.hub()?.store().get::<RolloutSpec>(NAME).await?.context("the rollout is gone")?.status;
        if status.phase == RolloutPhase::Succeeded {
            break;
        }
        ensure!(Instant::now() < deadline, "the rollout has not ended: {status:?}");
        for (site, nodes) in SITES {
            let mut down = 0;
            for node in nodes {
                down += usize::from(world.running(node, APP)?.is_none());
            }
            most_down = most_down.max(down);
            ensure!(down <= 1, "{down} boxes of {site} are down at once");
        }
        if Instant::now() >= next_fault && faults < 4 {
            faults += 1;
            next_fault = Instant::now() + Duration::from_secs(choice.random_range(5..60));
            if choice.random_bool(0.5) {
                world.crash_hub().await;
                world.start_hub().await?;
            } else {
                let victim = all.get(choice.random_range(0..all.len())).context("nobody")?;
                // An agent that ends between its record and the command does not run it: that is a failure by design.
                let node = world.nodes().await?.remove(*victim).context("the victim is gone")?;
                let asked = node.spec.reboot == node.status.reboot.as_ref().map(|said| said.order.clone());
                if node.spec.reboot.is_none() || asked && world.boots(victim)? == 2 {
                    world.crash_agent(victim).await?;
                    world.start_agent(victim).await?;
                }
            }
        }
        sleep(STEP).await; // one look to the next
    }
    for node in &all {
        let boots = world.boots(node)?;
        ensure!(boots == 2, "{node} was started {boots} times");
    }
    ensure!(most_down == 1, "nobody was ever down");
    world.check()?;
    Ok(vec![format!("{} boxes restarted once each, one of a site at a time, through {faults} crashes", all.len())])
}
