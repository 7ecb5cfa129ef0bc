//! What a workload tells of itself, beside what was told before it.

use proto::object::MetricsOrder;

use super::{APP, LONG, world::World};
use crate::{
    driver::Side,
    metrics::{Metrics, Told},
};

fn tell(world: &World, version: &str, frames: f64, samples: usize) {
    for _ in 0..samples {
        let values = [("fps".parse().unwrap(), frames), ("unasked".parse().unwrap(), 1.0)].into();
        let told = Told { app: APP.parse().unwrap(), digest: world.digest(version), replica: None, values };
        world.metrics.take(told).unwrap();
    }
}

/// Version 2 is wanted, and what it tells; it is on trial.
async fn on_trial(world: &mut World) {
    world.want("1");
    world.settle().await;
    tell(world, "1", 25.0, 50);
    assert!(world.status().metrics.is_none(), "nobody asks");
    world.want("2");
    world.ask(|ask| {
        ask.order.metrics = Some(MetricsOrder { samples: [("fps".parse().unwrap(), 10)].into(), for_s: 60 })
    });
    while world.slot().trial.is_none() || world.driver.running() != Some(world.digest("2")) {
        world.turns(1, LONG).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_told_before_outlives_agent_and_box() {
    for reboot in [false, true] {
        let mut world = World::new();
        on_trial(&mut world).await;
        if reboot {
            world.reboot()
        } else {
            world.crash()
        }
        world.metrics = Metrics::default(); // it was in the agent's memory
        world.settle().await;
        world.check_settled(1);
        tell(&world, "2", 8.0, 12);
        world.settle().await;
        let told = world.status().metrics.unwrap();
        let before = told.before.unwrap();
        assert_eq!((told.digest, before.release.digest), (world.digest("2"), world.digest("1")));
        assert_eq!((told.now["fps"].samples, before.metrics["fps"].samples), (12, 50), "after a reboot: {reboot}");
        assert!((before.metrics["fps"].mean - 25.0).abs() < 1e-9);
        assert_eq!((told.now.len(), before.metrics.len()), (1, 1), "what nobody asked for is not told");
        // Its time is over.
        tell(&world, "2", 25.0, 400);
        world.settle().await;
        assert_eq!(world.status().metrics.unwrap().now["fps"].samples, 12);
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_that_failed_leaves_nothing_to_compare_with() {
    let mut world = World::new();
    world.want("1");
    world.settle().await;
    tell(&world, "1", 25.0, 50);
    world.want("3");
    world.settle().await;
    assert!(world.slot().failure(world.digest("3")).is_some());
    assert_eq!(world.slot().before, None);
}

#[tokio::test(start_paused = true)]
async fn over_an_update_without_a_gap_the_live_one_alone_is_heard() {
    let mut world = World::warm();
    world.want("1");
    world.settle().await;
    tell(&world, "1", 25.0, 50);
    let heard = |world: &World, version: &str| {
        let told = Told { app: APP.parse().unwrap(), digest: world.digest(version), replica: None, values: [].into() };
        world.metrics.take(told).is_ok()
    };
    world.want("2");
    world.ask(|ask| {
        ask.order.metrics = Some(MetricsOrder { samples: [("fps".parse().unwrap(), 10)].into(), for_s: 60 })
    });
    world.turn_until(|world| world.driver.specs().len() == 2).await;
    assert!(heard(&world, "1") && !heard(&world, "2"), "it warms up");
    tell(&world, "1", 25.0, 1);
    world.turn_until(|world| world.slot().side == Side::B).await;
    assert!(heard(&world, "2") && !heard(&world, "1"), "it is live");
    world.settle().await;
    tell(&world, "2", 8.0, 12);
    world.settle().await;
    let told = world.status().metrics.unwrap();
    assert_eq!((told.now["fps"].samples, told.before.unwrap().metrics["fps"].samples), (12, 51));
}
