//! The simulated world itself: a hub that crashes leaves nothing running and comes back.

use proto::env::Seed;
use sim::{trace::Trace, world::World};

#[tokio::test(start_paused = true)]
async fn a_hub_crashes_and_comes_back_with_its_disk() {
    let mut world = World::new(Seed::from_u64(1), Trace::new(None).unwrap()).await.unwrap();
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
