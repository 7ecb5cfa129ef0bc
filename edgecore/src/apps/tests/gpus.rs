//! Releases that need GPUs: asked for before anything stops, kept over restarts, taken from no other.

use std::time::Duration;

use proto::object::{GpuUsage, UpdatePhase};

use super::{APP, LONG, world::World};
use crate::{
    apps::slot::MAX_ATTEMPTS,
    gpu::look::{Device, Driver, Look},
};

const ONE: &str = r#"{"count": 1}"#;

/// Has a version need GPUs.
pub(super) fn needs(world: &mut World, version: &'static str, gpus: &str) {
    let workload = format!(
        r#"{{"command": "bin/run", "soak": "3s", "deadline": "20s", "gpus": {gpus},
            "probes": {{"readiness": {{"tcp": {{"port": 1}}, "period": "500ms"}}}}}}"#
    );
    world.publish(version, &workload);
}

/// The box shows these GPUs of 24 GiB; those with a text are lost.
pub(super) fn show(world: &World, gpus: &[(&str, &str)]) {
    let device = |(index, (uuid, lost)): (usize, &(&str, &str))| Device {
        uuid: Some((*uuid).to_owned()),
        index: u32::try_from(index).unwrap(),
        memory_bytes: 24 << 30,
        lost: Some((*lost).to_owned()).filter(|lost| !lost.is_empty()),
        usage: GpuUsage { temperature_c: Some(40), ..GpuUsage::default() },
        ..Device::default()
    };
    let devices = gpus.iter().enumerate().map(device).collect();
    let driver = Driver::Working { version: "550.54.15".into(), cuda: "12.4".into() };
    world.gpus.take(Look { driver, devices });
}

/// GPUs that what runs was given.
fn given(world: &World) -> String {
    let spec = world.driver.spec().expect("something runs");
    assert_eq!(spec.workload.env["CUDA_VISIBLE_DEVICES"], spec.gpus.join(","));
    assert_eq!(spec.workload.env["NVIDIA_VISIBLE_DEVICES"], spec.gpus.join(","));
    spec.gpus.join(",")
}

fn told(world: &World) -> (UpdatePhase, String) {
    let status = world.status();
    (status.phase, status.reason)
}

#[tokio::test(start_paused = true)]
async fn a_first_release_waits_for_its_gpu() {
    let mut world = World::new();
    needs(&mut world, "1", ONE);
    world.want("1");
    world.settle().await;
    assert_eq!(told(&world), (UpdatePhase::Blocked, "GpuUnavailable".into()));
    assert!(world.status().message.ends_with("this box has no NVIDIA GPU"), "{}", world.status().message);
    assert_eq!(world.driver.running(), None);
    show(&world, &[("GPU-a", "")]);
    world.settle().await;
    world.check_settled(0);
    assert_eq!((told(&world).0, given(&world).as_str()), (UpdatePhase::Succeeded, "GPU-a"));
    let inventory = world.gpus.inventory().unwrap();
    assert_eq!(inventory.devices[0].apps, [APP.parse().unwrap()]);
}

#[tokio::test(start_paused = true)]
async fn an_update_that_does_not_fit_leaves_the_old_one_running() {
    let mut world = World::new();
    needs(&mut world, "1", ONE);
    needs(&mut world, "2", r#"{"count": 2, "memory": "8Gi"}"#);
    show(&world, &[("GPU-a", ""), ("GPU-b", "it fell off the bus")]);
    world.want("1");
    world.settle().await;
    world.want("2");
    world.settle().await;
    assert_eq!(told(&world), (UpdatePhase::Blocked, "GpuUnavailable".into()));
    let message = world.status().message;
    assert!(message.contains("wants 2 GPUs with 8 GiB free") && message.contains("GPU-b is lost"), "{message}");
    assert_eq!((world.driver.running(), world.starts("1")), (Some(world.digest("1")), 1));
    show(&world, &[("GPU-a", ""), ("GPU-b", "")]);
    world.settle().await;
    world.check_settled(0);
    assert_eq!((world.driver.running(), given(&world).as_str()), (Some(world.digest("2")), "GPU-a,GPU-b"));
    // And back to the one that needs less: what is not needed any more is given back.
    needs(&mut world, "5", ONE);
    world.want("5");
    world.settle().await;
    world.check_settled(0);
    assert_eq!(given(&world), "GPU-a");
    let inventory = world.gpus.inventory().unwrap();
    assert_eq!(inventory.devices.iter().map(|gpu| gpu.apps.len()).collect::<Vec<_>>(), [1, 0]);
}

#[tokio::test(start_paused = true)]
async fn an_update_for_another_driver_is_not_begun() {
    let mut world = World::new();
    needs(&mut world, "2", r#"{"driver": ">=560"}"#);
    show(&world, &[("GPU-a", "")]);
    world.want("1");
    world.settle().await;
    world.want("2");
    world.settle().await;
    assert_eq!(told(&world), (UpdatePhase::Blocked, "GpuDriverVersion".into()));
    assert_eq!((world.driver.running(), world.starts("2")), (Some(world.digest("1")), 0));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_comes_back_finds_its_app_on_its_gpu_however_the_gpus_are() {
    let mut world = World::new();
    needs(&mut world, "1", ONE);
    show(&world, &[("GPU-a", ""), ("GPU-b", "")]);
    world.want("1");
    world.settle().await;
    world.crash();
    show(&world, &[("GPU-a", "lost"), ("GPU-b", "")]);
    world.settle().await;
    world.check_settled(0);
    assert_eq!((world.starts("1"), given(&world).as_str()), (1, "GPU-a"), "it is healthy, and is left alone");
    // The box starts again: the app moves. It stays there when the other is back.
    world.reboot();
    world.settle().await;
    assert_eq!((world.starts("1"), given(&world).as_str()), (2, "GPU-b"));
    show(&world, &[("GPU-a", ""), ("GPU-b", "")]);
    world.reboot();
    world.settle().await;
    world.check_settled(0);
    assert_eq!((world.starts("1"), given(&world).as_str()), (3, "GPU-b"));
}

#[tokio::test(start_paused = true)]
async fn an_app_that_suffers_from_its_gpu_moves_to_another_and_waits_where_there_is_none() {
    let mut world = World::new();
    needs(&mut world, "1", ONE);
    show(&world, &[("GPU-a", ""), ("GPU-b", "")]);
    world.want("1");
    world.settle().await;
    world.driver.set_sick(true);
    assert!(world.turns(1000, LONG).await);
    assert_eq!((world.starts("1"), given(&world).as_str()), (1, "GPU-a"), "its GPU is not to blame");
    show(&world, &[("GPU-a", "lost"), ("GPU-b", "")]);
    assert!(world.turns(1000, LONG).await);
    world.driver.set_sick(false);
    world.settle().await;
    world.check_settled(0);
    assert_eq!((world.starts("1"), given(&world).as_str()), (2, "GPU-b"));
    show(&world, &[("GPU-a", "lost"), ("GPU-b", "lost")]);
    world.reboot();
    world.settle().await;
    assert_eq!((world.driver.running(), told(&world)), (None, (UpdatePhase::Blocked, "GpuUnavailable".into())));
    show(&world, &[("GPU-a", "lost"), ("GPU-b", "")]);
    world.settle().await;
    world.check_settled(0);
}

#[tokio::test(start_paused = true)]
async fn a_gpu_that_is_lost_between_stop_and_start_holds_nothing_against_the_release() {
    let mut world = World::new();
    needs(&mut world, "2", ONE);
    show(&world, &[("GPU-a", "")]);
    world.want("1");
    world.settle().await;
    world.want("2");
    while world.slot().trial.is_none() {
        assert!(!world.turns(1, LONG).await, "it rests without a trial");
    }
    show(&world, &[("GPU-a", "lost")]);
    world.settle().await;
    assert_eq!((world.driver.running(), world.starts("2")), (Some(world.digest("1")), 0));
    assert_eq!(told(&world), (UpdatePhase::Blocked, "GpuUnavailable".into()));
    assert_eq!(world.slot().failed, []);
    show(&world, &[("GPU-a", "")]);
    world.settle().await;
    world.check_settled(0);
    assert_eq!(world.driver.running(), Some(world.digest("2")));
}

/// A box with two GPUs runs a release that needs one, and is to run the next.
async fn updating() -> World {
    let mut world = World::new();
    needs(&mut world, "1", ONE);
    needs(&mut world, "2", ONE);
    show(&world, &[("GPU-a", ""), ("GPU-b", "")]);
    world.want("1");
    world.settle().await;
    world.want("2");
    world
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_fails_with_its_gpu_is_cut_short_and_begun_again() {
    for is_back in [false, true] {
        cut_short(is_back).await;
    }
}

/// With `is_back` the GPU is well again before the trial is over.
async fn cut_short(is_back: bool) {
    let mut world = updating().await;
    while world.starts("2") == 0 {
        assert!(!world.turns(1, LONG).await, "it rests without a trial");
    }
    world.driver.set_sick(true);
    show(&world, &[("GPU-a", "lost"), ("GPU-b", "")]);
    if is_back {
        world.turns(1_000, Duration::from_secs(5)).await;
        show(&world, &[("GPU-a", ""), ("GPU-b", "")]);
    }
    while world.slot().trial.is_some() {
        assert!(!world.turns(1, LONG).await, "the trial rests");
    }
    world.driver.set_sick(false);
    assert_eq!((world.slot().failed, world.slot().attempts(world.digest("2"))), (vec![], 1));
    world.settle().await;
    world.check_settled(1);
    assert_eq!((world.starts("2"), given(&world).as_str()), (2, if is_back { "GPU-a" } else { "GPU-b" }));
}

#[tokio::test(start_paused = true)]
async fn a_release_under_which_gpus_fail_is_not_tried_for_ever() {
    let mut world = updating().await;
    let most = usize::try_from(MAX_ATTEMPTS).unwrap();
    for attempt in 1..=most {
        while world.starts("2") < attempt {
            assert!(!world.turns(1, LONG).await, "it rests without trial {attempt}");
        }
        world.driver.set_sick(true);
        let lost = |uuid| if given(&world) == uuid { "lost" } else { "" };
        show(&world, &[("GPU-a", lost("GPU-a")), ("GPU-b", lost("GPU-b"))]);
        while world.slot().trial.is_some() {
            assert!(!world.turns(1, LONG).await, "the trial rests");
        }
        world.driver.set_sick(false);
        show(&world, &[("GPU-a", ""), ("GPU-b", "")]);
    }
    world.settle().await;
    assert_eq!(told(&world), (UpdatePhase::RolledBack, "Interrupted".into()));
    assert_eq!((world.driver.running(), world.starts("2")), (Some(world.digest("1")), most));
}

#[tokio::test(start_paused = true)]
async fn crashes_at_every_step_of_an_update_with_gpus_change_nothing_of_its_end() {
    for cut in 1..12 {
        let mut world = World::new();
        needs(&mut world, "1", ONE);
        needs(&mut world, "2", r#"{"count": 2}"#);
        show(&world, &[("GPU-a", ""), ("GPU-b", "")]);
        world.want("1");
        world.settle().await;
        world.want("2");
        world.turns(cut, LONG).await;
        world.crash();
        world.settle().await;
        world.check_settled(1);
        assert_eq!(given(&world), "GPU-a,GPU-b", "cut after {cut} turns");
    }
}
