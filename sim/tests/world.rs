//! The simulated world itself: what breaks is mended, in any order, and counted.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)] // helpers of tests, too, may end a test

use std::{collections::BTreeMap, time::Duration};

use proto::{env::Seed, name::Name};
use sim::{
    fault::{Fault, Spot, Target, Way},
    net::Profile,
    plan,
    trace::Trace,
    world::World,
};
use tokio::time::sleep;

const S: fn(u64) -> Duration = Duration::from_secs;

/// Its trace goes to the file that `WORLD_TRACE` names, for a look at what went wrong.
async fn new_world(seed: u64) -> World {
    let file = std::env::var_os("WORLD_TRACE").map(std::path::PathBuf::from);
    World::new(Seed::from_u64(seed), Trace::new(file.as_deref()).unwrap()).await.unwrap()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn node(text: &str) -> Target {
    Target::Node(name(text))
}

/// A hub and two boxes of one site that are Ready.
async fn fleet(seed: u64) -> World {
    let mut world = new_world(seed).await;
    world.start_hub().await.unwrap();
    let site = plan::Site {
        name: name("hz-01"),
        nodes: vec![name("box-1"), name("box-2")],
        labels: BTreeMap::from([("ring".into(), "early".into())]),
        line: Profile::edge(),
        settings: String::new(),
        gpus: 2,
    };
    world.add_site(&site).await.unwrap();
    for node in ["box-1", "box-2"] {
        world.start_agent(node).await.unwrap();
    }
    until_ready(&mut world).await;
    world
}

async fn until_ready(world: &mut World) {
    for _ in 0..300 {
        sleep(S(1)).await; // the next look
        world.tick().await.unwrap();
        let seen = world.observe().await.unwrap();
        if seen.nodes.values().all(|n| n.ready == Some(true) && n.connected && n.agent_runs) {
            return;
        }
    }
    let seen = world.observe().await.unwrap();
    let nodes = world.nodes().await.unwrap();
    let conditions: Vec<_> = nodes.values().map(|node| (node.name(), &node.status.conditions)).collect();
    panic!("{seen:#?} {conditions:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_hub_crashes_and_comes_back_with_its_disk() {
    let mut world = new_world(1).await;
    assert!(world.hub().is_err());
    world.start_hub().await.unwrap();
    let (_, root) = world.hub().unwrap().trust().first_root().unwrap();
    world.publish("app", "1.0.0", 2, 1000, &[]).await.unwrap();
    world.crash_hub().await;
    assert!(world.hub().is_err());
    world.start_hub().await.unwrap();
    assert_eq!(world.hub().unwrap().trust().first_root().unwrap().1, root);
    world.check().unwrap();
    world.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_box_comes_up_when_nothing_holds_it_down_any_more() {
    let mut world = fleet(2).await;
    let (crash, reboot) = (Fault::CrashAgent { target: node("box-1") }, Fault::Reboot { target: Target::All });
    assert_eq!(world.begin(&crash).await.unwrap(), 1);
    assert_eq!(world.begin(&crash).await.unwrap(), 0, "it does not run any more");
    assert_eq!(world.begin(&reboot).await.unwrap(), 2);
    world.heal(&crash).await.unwrap();
    world.heal(&crash).await.unwrap();
    let seen = world.observe().await.unwrap();
    assert!(seen.nodes.values().all(|n| !n.powered && !n.agent_runs));
    world.heal(&reboot).await.unwrap();
    world.heal(&reboot).await.unwrap(); // once too often
    until_ready(&mut world).await;
    world.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_hub_learns_of_a_gpu_that_is_lost_and_of_one_that_is_well_again() {
    let mut world = fleet(11).await;
    let gpus = |node: &proto::object::Node| {
        let devices = node.status.info.as_ref().and_then(|info| info.nvidia.clone()).unwrap_or_default().devices;
        let condition = node.status.conditions.iter().find(|c| c.r#type == "GpuUnhealthy");
        let problems: Vec<String> = devices.into_iter().map(|gpu| gpu.problem).collect();
        (problems, condition.map(|c| (c.status.as_str(), c.reason.clone())).unwrap_or_default())
    };
    let well = (vec![String::new(), String::new()], ("False", "GpusWork".to_owned()));
    let all_well = |nodes: &BTreeMap<String, proto::object::Node>| nodes.values().all(|node| gpus(node) == well);
    world.until_nodes(S(120), "the GPUs of all boxes work", all_well).await.unwrap();
    let info = world.nodes().await.unwrap()["box-1"].status.info.clone().unwrap();
    assert_eq!(info.hardware, ["x86_64", "x86_64+nvidia"]);
    for (fault, reason) in [
        (Fault::GpuLost { target: node("box-1") }, "GpuLost"),
        (Fault::GpuSick { target: node("box-1") }, "GpuEccUncorrected"),
    ] {
        assert_eq!(world.begin(&fault).await.unwrap(), 1);
        let told = (vec![reason.to_owned(), String::new()], ("True", reason.to_owned()));
        let is_told = |nodes: &BTreeMap<String, proto::object::Node>| {
            gpus(&nodes["box-1"]) == told && gpus(&nodes["box-2"]) == well
        };
        world.until_nodes(S(120), "the hub knows of it", is_told).await.unwrap();
        world.heal(&fault).await.unwrap();
        world.until_nodes(S(120), "the hub knows that it is over", all_well).await.unwrap();
    }
    world.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_cut_counts_what_it_lost_and_overlaps() {
    let mut world = fleet(3).await;
    let cut = |way| Fault::Cut { target: Target::Site(name("hz-01")), way };
    assert_eq!(world.begin(&cut(Way::Both)).await.unwrap(), 0);
    world.begin(&cut(Way::Up)).await.unwrap();
    sleep(S(120)).await; // the hub notices
    assert!(world.heal(&cut(Way::Both)).await.unwrap() > 5);
    let seen = world.observe().await.unwrap();
    assert!(seen.nodes.values().all(|n| !n.line_open && n.ready == Some(false)), "{seen:#?}");
    sleep(S(60)).await; // they go on trying
    assert!(world.heal(&cut(Way::Up)).await.unwrap() > 5);
    assert_eq!(world.heal(&cut(Way::Down)).await.unwrap(), 0);
    until_ready(&mut world).await;
    world.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_box_with_an_empty_disk_joins_again_when_it_can() {
    let mut world = fleet(4).await;
    world.begin(&Fault::CrashHub).await.unwrap();
    let reinstall = Fault::Reinstall { target: node("box-2") };
    assert_eq!(world.begin(&reinstall).await.unwrap(), 1);
    let cut = Fault::Cut { target: node("box-2"), way: Way::Both };
    world.begin(&cut).await.unwrap();
    sleep(S(30)).await; // it tries in vain
    assert_eq!(world.begin(&reinstall).await.unwrap(), 1);
    world.heal(&Fault::CrashHub).await.unwrap();
    sleep(S(100)).await; // still in vain
    world.heal(&cut).await.unwrap();
    until_ready(&mut world).await;
    assert_eq!(world.observe().await.unwrap().nodes.len(), 2);
    world.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_restored_hub_gets_again_what_it_lost() {
    let mut world = fleet(5).await;
    let restore = Fault::RestoreHub { age: S(300) };
    assert_eq!(world.begin(&restore).await.unwrap(), 0, "there is no backup yet");
    world.back_up(S(600));
    sleep(S(400)).await;
    world.back_up(S(600));
    let release = plan::Release {
        app: name("app"),
        version: "1.0.0".parse().unwrap(),
        files: 2,
        bytes: 20_000,
        args: vec![],
        gpus: None,
        uses: None,
        scaling: None,
        bad: false,
    };
    world.begin(&Fault::Reinstall { target: node("box-1") }).await.unwrap();
    world.publish_release(&release).await.unwrap();
    world
        .start_rollout(&release.app, &release.version, &"ring=early".parse().unwrap(), &plan::How::default())
        .await
        .unwrap();
    sleep(S(60)).await; // it is rolled out
    let done = |world: &World| {
        let apps = [world.running("box-1", "app").unwrap(), world.running("box-2", "app").unwrap()];
        apps.iter().all(|version| version.as_ref() == Some(&release.version))
    };
    assert!(done(&world), "{:#?}", world.observe().await.unwrap());
    assert_eq!(world.begin(&restore).await.unwrap(), 1);
    until_ready(&mut world).await;
    sleep(S(60)).await; // the hub hears what runs
    let seen = world.observe().await.unwrap();
    assert_eq!((seen.rollouts["app@1.0.0"].done, seen.rollouts["app@1.0.0"].total), (2, 2), "{seen:#?}");
    assert!(done(&world));
    world.check().unwrap();
    world.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn clocks_sinks_and_bits_go_wrong() {
    let mut world = fleet(6).await;
    let clock = |offset_ms| Fault::Clock { target: node("box-1"), offset_ms };
    assert_eq!(world.begin(&clock(-1_000_000)).await.unwrap(), 1);
    assert_eq!(world.begin(&clock(5)).await.unwrap(), 1);
    world.heal(&clock(5)).await.unwrap();
    world.heal(&clock(-1_000_000)).await.unwrap();

    assert_eq!(world.begin(&Fault::SinkDown).await.unwrap(), 0);
    world.produce("box-1", "scans", 100, 10).await.unwrap();
    sleep(S(30)).await; // the hub tries in vain
    world.begin(&Fault::CrashHub).await.unwrap();
    world.heal(&Fault::CrashHub).await.unwrap();
    sleep(S(30)).await; // and again
    assert_eq!(world.waiting().unwrap(), 100);
    assert!(world.heal(&Fault::SinkDown).await.unwrap() > 0);
    world.until_counted("they arrive", S(60)).await.unwrap();

    let flip = |spot| Fault::FlipBit { target: node("box-2"), spot };
    assert_eq!(world.begin(&flip(Spot::Artifact)).await.unwrap(), 0, "there is no release");
    world.publish("app", "1.0.0", 2, 1000, &[]).await.unwrap();
    world.roll_out("app", "1.0.0").await.unwrap();
    world.until_done("it runs", "app", &["box-1", "box-2"], S(60)).await.unwrap();
    assert_eq!(world.begin(&flip(Spot::State)).await.unwrap(), 1);
    assert_eq!(world.begin(&flip(Spot::Artifact)).await.unwrap(), 1);
    world.begin(&Fault::Cut { target: Target::All, way: Way::Both }).await.unwrap();
    sleep(S(60)).await; // what was on its way is gone
    world.produce("box-2", "scans", 100, 10).await.unwrap();
    assert_eq!(world.begin(&flip(Spot::Outbox)).await.unwrap(), 1);
    world.heal(&Fault::Cut { target: Target::All, way: Way::Both }).await.unwrap();
    let outcome = world.until_counted("all but a batch arrive", S(120)).await.unwrap();
    assert!(outcome.in_gaps > 0, "{outcome:?}");
    until_ready(&mut world).await;
    world.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_session_survives_another_address_and_a_firewall_stops_it() {
    let mut world = fleet(7).await;
    let sessions = |seen: &sim::world::Observation| seen.nodes.values().filter(|n| n.connected).count();
    assert_eq!(world.begin(&Fault::Rebind { target: Target::All }).await.unwrap(), 2);
    for _ in 0..20 {
        sleep(S(1)).await; // the session goes on all the time
        assert_eq!(sessions(&world.observe().await.unwrap()), 2);
    }
    world.produce("box-1", "scans", 10, 5).await.unwrap();
    world.until_counted("they arrive from the new address", S(10)).await.unwrap();
    let block = Fault::BlockUdp { target: node("box-1") };
    world.begin(&block).await.unwrap();
    sleep(S(120)).await; // it is noticed
    let seen = world.observe().await.unwrap();
    assert_eq!((sessions(&seen), seen.nodes[&name("box-1")].line_open), (1, false));
    assert!(world.heal(&block).await.unwrap() > 0);
    until_ready(&mut world).await;
    world.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn named_lines_carry_a_fleet() {
    for line in Profile::NAMES {
        let mut world = fleet(8).await;
        let profile = Profile::named(line).unwrap();
        let bad = Fault::Line { target: Target::All, profile, name: line.into() };
        world.begin(&bad).await.unwrap();
        for _ in 0..20 {
            world.produce("box-1", "scans", 10, 5).await.unwrap();
            sleep(S(15)).await; // a scanner's pace
        }
        world.until_counted("they arrive", S(120)).await.unwrap();
        assert!(world.heal(&bad).await.unwrap() > 100);
        until_ready(&mut world).await;
        world.end().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_costs_no_record_and_a_full_disk_pushes_back() {
    for seed in 10..12 {
        let mut world = fleet(seed).await;
        for round in 0..6 {
            world.produce("box-1", "scans", 50, 5).await.unwrap();
            let target = if round % 3 == 2 { Target::Hub } else { node("box-1") };
            let cut = Fault::PowerCut { target };
            assert_eq!(world.begin(&cut).await.unwrap(), 1);
            sleep(S(10)).await; // dark
            world.heal(&cut).await.unwrap();
            until_ready(&mut world).await;
        }
        let full = Fault::DiskFull { target: node("box-1") };
        world.begin(&full).await.unwrap();
        let mut taken = 0;
        for _ in 0..400 {
            taken += world.produce("box-1", "scans", 100, 50).await.unwrap();
        }
        assert!(taken < 40_000, "nothing was refused");
        assert!(world.heal(&full).await.unwrap() > 0);
        let outcome = world.until_counted("all arrive", S(300)).await.unwrap();
        assert_eq!(outcome.in_gaps, 0, "{outcome:?}");
        world.produce("box-1", "scans", 10, 5).await.unwrap();
        until_ready(&mut world).await;
        world.end().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_box_may_have_any_name_but_the_hubs() {
    let mut world = new_world(31).await;
    world.start_hub().await.unwrap();
    let site = |nodes: &[&str]| plan::Site {
        name: name("hz-01"),
        nodes: nodes.iter().map(|node| name(node)).collect(),
        labels: BTreeMap::new(),
        line: Profile::edge(),
        settings: String::new(),
        gpus: 0,
    };
    // What the engineer and the operator have on their machines is called so, too.
    world.add_site(&site(&["repo", "backups"])).await.unwrap();
    for node in ["repo", "backups"] {
        world.start_agent(node).await.unwrap();
    }
    until_ready(&mut world).await;
    for node in ["repo", "backups"] {
        assert_eq!(world.begin(&Fault::Reinstall { target: crate::node(node) }).await.unwrap(), 1);
    }
    until_ready(&mut world).await;
    world.publish("scan-counter", "1.0.0", 1, 1_000, &[]).await.unwrap();
    world.back_up(S(60));
    sleep(S(5)).await; // it becomes so old
    assert_eq!(world.begin(&Fault::RestoreHub { age: S(3) }).await.unwrap(), 1);
    until_ready(&mut world).await;
    let error = world.add_site(&site(&["hub"])).await.unwrap_err().to_string();
    assert!(error.contains("hub"), "{error}");
    world.end().await.unwrap();
}
