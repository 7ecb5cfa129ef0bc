//! Apps that not every box of a site gets: one of each site runs them, two heavy ones are apart, and what does not fit
//! waits with the arithmetic.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use proto::{
    object::{Node, NodePhase, NodeSpec, RolloutPhase, RolloutSpec, capacity::Ratio, rollout::Placement},
    selector::Selector,
    units::Bytes,
};
use tokio::time::{Instant, sleep};

use crate::world::World;

/// Each box has 8 GiB.
const SITES: [(&str, [&str; 3]); 2] = [("hz-01", ["box-1", "box-2", "box-3"]), ("hz-02", ["box-4", "box-5", "box-6"])];
const APPS: [&str; 2] = ["belt-watch", "label-reader"];
const HEAVY: &str = "requests: { memory: 2Gi }\nantiAffinity: [heavy]";
const STEP: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_secs(300);

async fn fleet(world: &mut World) -> anyhow::Result<()> {
    world.start_hub().await?;
    for (site, nodes) in SITES {
        for node in nodes {
            world.join(node, site).await?;
            world.start_agent(node).await?;
        }
    }
    let ready = |node: &Node| node.status.phase == NodePhase::Ready;
    world.until_nodes(Duration::from_secs(60), "all nodes are Ready", |nodes| nodes.values().all(ready)).await
}

/// One of each site.
async fn place(world: &mut World, app: &str, version: &str) -> anyhow::Result<()> {
    world.publish_saying(app, version, HEAVY).await?;
    let release = format!("{app}@{version}").parse().map_err(anyhow::Error::msg)?;
    let spec = RolloutSpec::new(release, Selector::all());
    world.roll_out_so(RolloutSpec { placement: Some(Placement { per_site: 1 }), ..spec }).await
}

/// What a person changes of a node.
async fn set(world: &World, node: &str, change: impl Fn(&mut NodeSpec) + Send + 'static) -> anyhow::Result<()> {
    world.hub()?.store().modify::<NodeSpec>(node, move |node| change(&mut node.spec)).await?;
    Ok(())
}

/// Where an app runs at a site, as the boxes have it, not the hub.
fn on(world: &World, app: &str, site: usize) -> anyhow::Result<Vec<&'static str>> {
    let mut found = vec![];
    for node in SITES.get(site).map(|(_, nodes)| *nodes).unwrap_or_default() {
        if world.running(node, app)?.is_some() {
            found.push(node);
        }
    }
    Ok(found)
}

/// No site has two of an app, and no box has both: there is always another one. The hub may be down.
fn check(world: &World) -> anyhow::Result<()> {
    for (site, (name, _)) in SITES.iter().enumerate() {
        let [a, b] = [on(world, APPS[0], site)?, on(world, APPS[1], site)?];
        for (app, there) in [(APPS[0], &a), (APPS[1], &b)] {
            ensure!(there.len() <= 1, "site {name} has {app} on {there:?}");
        }
        ensure!(a.is_empty() || a != b, "{a:?} has both heavy apps, and others of {name} have none");
    }
    Ok(())
}

/// Waits until boxes are as they should be; what may never be is looked for meanwhile.
async fn until(world: &mut World, what: &str, is_so: impl Fn(&World) -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        world.tick().await?;
        check(world)?;
        if is_so(world)? {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not after {PATIENCE:?}: {what}");
        sleep(STEP).await; // one look to the next
    }
}

/// Lets time pass in which nothing may change for the worse.
async fn watch(world: &mut World, time: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        world.tick().await?;
        check(world)?;
        sleep(STEP).await; // one look to the next
    }
    Ok(())
}

/// The one box of a site that has an app.
fn one(world: &World, app: &str, site: usize) -> anyhow::Result<&'static str> {
    on(world, app, site)?.first().copied().with_context(|| format!("nobody of site {site} has {app}"))
}

/// Drained, cut off, killed, upgraded: never two of one app at a site, never both heavy apps on one box.
pub(super) async fn one_of_each_site(world: &mut World) -> anyhow::Result<Vec<String>> {
    fleet(world).await?;
    // The first box of each site has the most room, also beside another heavy app.
    let reserved = Bytes::new(5 << 30);
    for node in SITES.iter().flat_map(|(_, nodes)| nodes.iter().skip(1)) {
        set(world, node, move |spec| spec.allocation.system_reserved.memory = Some(reserved)).await?;
    }
    let both = |world: &World| -> anyhow::Result<bool> {
        let mut all = true;
        for app in APPS {
            for site in 0..SITES.len() {
                all &= on(world, app, site)?.len() == 1;
            }
        }
        Ok(all)
    };
    for app in APPS {
        place(world, app, "1.0.0").await?;
    }
    until(world, "one of each site runs both", both).await?;
    let first = one(world, APPS[0], 0)?;

    // Behind a cut line it goes on, drained or not: nobody may take it over.
    world.cut(first, true);
    let silent = |nodes: &BTreeMap<String, Node>| nodes[first].status.phase == NodePhase::Unknown;
    world.until_nodes(PATIENCE, "it is not heard from", silent).await?;
    set(world, first, |spec| spec.drained = true).await?;
    watch(world, Duration::from_secs(60)).await?;
    ensure!(one(world, APPS[0], 0)? == first, "{} left a box that heard nothing", APPS[0]);
    let placement = world.rollout(APPS[0], "1.0.0").await?.status.placement;
    let message = placement.get(SITES[0].0).map(|site| site.message.clone()).unwrap_or_default();
    ensure!(message.contains("is drained and not heard from"), "the hub says {message:?}");

    // It hears it, and the hub dies in the middle of the move.
    world.cut(first, false);
    until(world, "it left", |world| Ok(!on(world, APPS[0], 0)?.contains(&first))).await?;
    world.crash_hub().await;
    watch(world, Duration::from_secs(20)).await?;
    world.start_hub().await?;
    until(world, "another one has it", |world| Ok(on(world, APPS[0], 0)?.len() == 1)).await?;
    let second = one(world, APPS[0], 0)?;
    ensure!(second != first && second != one(world, APPS[1], 0)?, "it went to {second}");

    // Who comes back gets nothing back, and an upgrade stays where the app is, agents killed meanwhile.
    set(world, first, |spec| spec.drained = false).await?;
    watch(world, Duration::from_secs(20)).await?;
    let before = (one(world, APPS[0], 1)?, one(world, APPS[1], 1)?);
    place(world, APPS[0], "2.0.0").await?;
    world.crash_agent(second).await?;
    watch(world, Duration::from_secs(5)).await?;
    world.start_agent(second).await?;
    let upgraded = |world: &World| -> anyhow::Result<bool> {
        let mut all = true;
        for node in [second, before.0] {
            all &= world.running(node, APPS[0])?.is_some_and(|version| version.as_str() == "2.0.0");
        }
        Ok(all)
    };
    until(world, "both run 2.0.0", upgraded).await?;
    ensure!((one(world, APPS[0], 1)?, one(world, APPS[1], 1)?) == before, "an upgrade moved them");
    world.until_rollout(APPS[0], "2.0.0", RolloutPhase::Succeeded, PATIENCE).await?;
    world.check()?;
    Ok(vec![format!("{} went from {first} to {second}; {message}", APPS[0])])
}

/// What asks for more than is left waits and says why, and begins once it fits.
pub(super) async fn what_does_not_fit(world: &mut World) -> anyhow::Result<Vec<String>> {
    fleet(world).await?;
    world.publish_saying("camera-a", "1.0.0", "requests: { memory: 5Gi }").await?;
    world.publish_saying("camera-b", "1.0.0", "requests: { memory: 4Gi }").await?;
    world.roll_out("camera-a", "1.0.0").await?;
    world.until_rollout("camera-a", "1.0.0", RolloutPhase::Succeeded, PATIENCE).await?;
    world.roll_out("camera-b", "1.0.0").await?;
    let arithmetic = "it needs 4 GiB; box-1 has 8 GiB, of which camera-a 5 GiB is asked: 3 GiB left; ";
    let deadline = Instant::now() + PATIENCE;
    let said = loop {
        let status = world.rollout("camera-b", "1.0.0").await?.status;
        let entry = status.nodes.get("box-1").cloned();
        if let Some(entry) = entry.filter(|entry| !entry.message.is_empty()) {
            break entry;
        }
        ensure!(Instant::now() < deadline, "nothing is said of box-1: {status:?}");
        sleep(STEP).await; // one look to the next
    };
    ensure!(said.message.starts_with(arithmetic), "{said:?}");
    ensure!(world.running("box-1", "camera-b")?.is_none(), "it began");

    // More than there is of one box, by a person's word; less of another, by taking the app away.
    let (half_more, twice): (Ratio, Ratio) =
        ("1.5".parse().map_err(anyhow::Error::msg)?, "2".parse().map_err(anyhow::Error::msg)?);
    set(world, "box-1", move |spec| spec.allocation.overcommit.memory = half_more).await?;
    world.until_running("box-1", "camera-b", PATIENCE).await?;
    for node in SITES.iter().flat_map(|(_, nodes)| nodes.iter()).filter(|node| **node != "box-1") {
        ensure!(world.running(node, "camera-b")?.is_none(), "{node} has no room for it");
    }
    // Kept for one app: nothing else begins there, whatever is left.
    let kept: std::collections::BTreeSet<_> = ["camera-a".parse()?].into();
    set(world, "box-2", move |spec| {
        spec.reserved_for = kept.clone();
        spec.allocation.overcommit.memory = twice;
    })
    .await?;
    set(world, "box-3", move |spec| spec.allocation.overcommit.memory = twice).await?;
    world.until_running("box-3", "camera-b", PATIENCE).await?;
    ensure!(world.running("box-2", "camera-b")?.is_none(), "box-2 is kept for camera-a");
    // The system's share is nobody's, and what runs is not taken away by it.
    let reserved = Bytes::new(6 << 30);
    set(world, "box-3", move |spec| spec.allocation.system_reserved.memory = Some(reserved)).await?;
    world.crash_agent("box-3").await?;
    world.start_agent("box-3").await?;
    sleep(Duration::from_secs(30)).await; // in which nothing may change
    ensure!(
        world.running("box-3", "camera-a")?.is_some() && world.running("box-3", "camera-b")?.is_some(),
        "one ended"
    );
    world.check()?;
    Ok(vec![format!("box-1 waited: {}", said.message)])
}
