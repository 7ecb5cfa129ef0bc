//! Releases that ask for more than the box has left: refused before anything stops for them.

use proto::{digest::Digest, name::Name, object::UpdatePhase, units::Bytes};

use super::{APP, world::World};
use crate::fetch::tests::publish;

/// Has a version ask for memory.
fn asks(world: &mut World, version: &'static str, memory: &str) {
    let workload = format!(
        r#"{{"command": "bin/run", "soak": "3s", "deadline": "20s", "requests": {{"memory": "{memory}"}},
            "probes": {{"readiness": {{"tcp": {{"port": 1}}, "period": "500ms"}}}}}}"#
    );
    let files: &[(&str, &[u8])] = &[("bin/run", version.as_bytes()), ("share/same", b"same")];
    let (digest, _) = publish(&world.source, &format!("{APP}@{version}"), files, &workload);
    world.releases.get_mut(version).unwrap().digest = digest;
}

#[tokio::test(start_paused = true)]
async fn an_update_that_asks_for_too_much_leaves_the_old_one_running_until_there_is_room() {
    let mut world = World::new();
    world.rooms.allot(Some(proto::object::Allocation::default()));
    asks(&mut world, "1", "2Gi");
    asks(&mut world, "2", "5Gi");
    let (other, camera): (Name, Digest) = ("camera".parse().unwrap(), Digest::of(b"camera"));
    let of_camera = proto::object::Resources { memory: Some(Bytes::new(4 << 30)), cpu_millis: None };
    world.rooms.hold(&other, camera, of_camera);
    world.want("1");
    world.settle().await;
    assert_eq!(world.status().phase, UpdatePhase::Succeeded);

    world.want("2");
    world.settle().await;
    let said = world.status();
    assert_eq!((said.phase, said.reason.as_str()), (UpdatePhase::Blocked, "InsufficientMemory"));
    let says = "it needs 5 GiB; this box has 8 GiB, of which camera 4 GiB is asked: 4 GiB left";
    assert!(said.message.starts_with(says), "{}", said.message);
    assert_eq!((world.driver.running(), world.starts("1")), (Some(world.digest("1")), 1), "nothing was stopped for it");

    // After a restart of the agent, too; and what runs is started whatever others ask.
    world.reboot();
    world.settle().await;
    assert_eq!((world.driver.running(), world.status().phase), (Some(world.digest("1")), UpdatePhase::Blocked));

    world.rooms.keep_only(&other, &[].into());
    world.settle().await;
    world.check_settled(0);
    assert_eq!(world.driver.running(), Some(world.digest("2")));
    assert!(world.rooms.claim(&other, camera, of_camera).is_err(), "it asks for 5 GiB of 8 from now on");
}
