//! Agents and shims that come and go, and records that are damaged: what runs is found, or stopped whole.

use super::*;

#[tokio::test]
async fn a_new_driver_finds_what_runs() {
    let mut on = Box_::new();
    on.driver.start(&on.script("echo up; while :; do sleep 0.05; done")).await.unwrap();
    let (before, pid) = (on.running().await, on.pid());
    assert_eq!(before.exit, None);
    on.driver = driver_at(on.path(), &Env::real().unwrap());
    assert_eq!(on.running().await, before);
    assert_eq!(on.pid(), pid);
    on.driver.stop(&app(), Duration::from_millis(300)).await.unwrap();
    assert!(on.alive().is_empty());
}

#[tokio::test]
async fn an_end_that_nobody_watched_is_known() {
    let mut on = Box_::new();
    on.driver.start(&on.script("while ! [ -e go ]; do sleep 0.02; done; exit 42")).await.unwrap();
    let folder = Folder::at(on.path().join("run/web"));
    on.driver = driver_at(Path::new("/nowhere"), &on.env);
    fs::write(on.path().join("tree/go"), "").unwrap();
    eventually("the shim ends", || async { folder.holder().unwrap().is_none().then_some(()) }).await;
    on.driver = driver_at(on.path(), &on.env);
    assert_eq!(on.running().await.exit.unwrap().code, Some(42));
    assert_eq!(on.exit().await.code, Some(42));
}

#[tokio::test]
async fn a_second_start_replaces_the_first() {
    let on = Box_::new();
    on.driver.start(&on.script("trap '' TERM; echo first; while :; do sleep 0.05; done")).await.unwrap();
    on.output_with("first").await;
    let first = on.alive();
    on.driver.start(&on.script("echo second; exec sleep 600")).await.unwrap();
    assert!(first.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists() || on.alive().contains(pid)));
    on.output_with("second").await;
    // While it becomes `sleep` its environment cannot be read.
    eventually("the second is alone", || async { (on.alive() == [on.pid()]).then_some(()) }).await;
    on.driver.stop(&app(), Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn two_instances_of_an_app_do_not_know_of_each_other() {
    let mut on = Box_::new();
    let first = on.script("echo $CROSSDOCK_APP is first; exec sleep 600");
    let second = InstanceSpec { side: Side::B, ..on.script("echo $CROSSDOCK_APP is second; exec sleep 600") };
    on.driver.start(&first).await.unwrap();
    on.driver.start(&second).await.unwrap();
    assert_eq!((first.key(), second.key().as_str()), (app(), "web--b"));
    on.driver = driver_at(on.path(), &Env::real().unwrap());
    assert_eq!(on.driver.list().await.unwrap(), [first.key(), second.key()]);
    for spec in [&first, &second] {
        assert_eq!(on.driver.inspect(&spec.key()).await.unwrap().unwrap().exit, None);
    }
    // One goes, whichever, and the other stays, with its output.
    let pid = on.pid();
    on.driver.stop(&second.key(), Duration::ZERO).await.unwrap();
    assert_eq!((on.running().await.exit, on.pid()), (None, pid));
    on.output_with("web is first").await;
    on.driver.start(&second).await.unwrap();
    on.driver.stop(&first.key(), Duration::ZERO).await.unwrap();
    assert!(on.alive().is_empty());
    assert_eq!(on.driver.inspect(&second.key()).await.unwrap().unwrap().exit, None);
    on.driver.stop(&second.key(), Duration::ZERO).await.unwrap();
    for spec in [&first, &second] {
        on.driver.remove(&spec.key()).await.unwrap();
    }
    assert!(on.driver.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_killed_shim_leaves_nothing_running() {
    let on = Box_::new();
    let script = "(setsid sh -c '(trap \"\" TERM; echo daemon-up; while :; do sleep 0.05; done) &' &)
        echo command-up; while :; do sleep 0.05; done";
    on.driver.start(&on.script(script)).await.unwrap();
    on.output_with("daemon-up").await;
    on.output_with("command-up").await;
    kill(on.shim(), "-KILL");
    let exit = on.exit().await;
    assert_eq!(exit.signal, Some(9));
    assert!(exit.message.contains("shim was killed"), "{}", exit.message);
    assert!(on.alive().is_empty());
    // The same when nobody watched: the next driver clears up when it looks.
    on.driver.start(&on.script(script)).await.unwrap();
    on.output_with("daemon-up").await;
    kill(on.shim(), "-KILL");
    let next = driver_at(on.path(), &on.env);
    let found = eventually("the end is seen", || async { next.inspect(&app()).await.unwrap().unwrap().exit }).await;
    assert_eq!(found.signal, Some(9));
    assert!(on.alive().is_empty());
}

#[tokio::test]
async fn a_damaged_record_keeps_no_app_from_stopping_or_starting() {
    let on = Box_::new();
    let script = "trap '' TERM; echo up; while :; do sleep 0.05; done";
    let damage = |name: &str| fs::write(on.path().join("run/web").join(name), "{").unwrap();
    on.driver.start(&on.script(script)).await.unwrap();
    let (before, pid) = (on.running().await, on.pid());

    // That it runs is told by the lock.
    damage("running.json");
    let found = on.running().await;
    assert_eq!((found.release, found.exit), (before.release, None));
    on.driver.stop(&app(), Duration::ZERO).await.unwrap();
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(on.running().await.exit.is_some());
    damage("exit.json");
    assert_eq!(on.running().await.exit.unwrap().signal, Some(9), "its end is known, how it came is not");

    for shim_lives in [true, false] {
        on.driver.start(&on.script("exec sleep 600")).await.unwrap();
        let instance = on.launch()["instance"].as_str().unwrap().to_owned();
        eventually("it runs", || async { (!procs::marked(&instance).is_empty()).then_some(()) }).await;
        if !shim_lives {
            kill(on.shim(), "-KILL");
        }
        damage("launch.json");
        assert_eq!(on.driver.inspect(&app()).await.unwrap(), None);
        assert!(procs::marked(&instance).is_empty(), "nobody knows what it is");
    }
    on.driver.start(&on.script("exit 3")).await.unwrap();
    damage("launch.json");
    on.driver.stop(&app(), Duration::ZERO).await.unwrap();
    on.driver.start(&on.script("exit 4")).await.unwrap();
    assert_eq!(on.exit().await.code, Some(4));
}

#[tokio::test]
async fn a_workload_stops_although_nothing_can_be_written() {
    let on = Box_::new();
    on.driver.start(&on.script("echo up; exec sleep 600")).await.unwrap();
    // As on a full disk: neither the grace nor the end can be recorded.
    for name in ["grace", "exit.json.tmp"] {
        fs::create_dir(on.path().join("run/web").join(name)).unwrap();
    }
    on.driver.stop(&app(), Duration::from_secs(3)).await.unwrap();
    assert!(on.alive().is_empty());
    assert!(on.running().await.exit.is_some(), "it ended all the same");
    assert!(on.exit().await.message.contains("stopped"));
    for name in ["grace", "exit.json.tmp"] {
        fs::remove_dir(on.path().join("run/web").join(name)).unwrap();
    }
    on.driver.start(&on.script("exit 3")).await.unwrap();
    assert_eq!(on.exit().await.code, Some(3));
}

#[tokio::test]
async fn a_supervisor_restarts_adopts_and_stops() {
    let on = Box_::new();
    let driver: Arc<dyn Driver> = Arc::new(driver_at(on.path(), &on.env));
    let spec = on.script("echo up; exec sleep 600");
    let supervisor = Supervisor::start(on.env.clone(), driver.clone(), spec.clone());
    let mut health = supervisor.health();
    timeout(PATIENCE, health.wait_for(|h| h.healthy_since.is_some())).await.unwrap().unwrap();
    kill(on.pid(), "-KILL");
    timeout(PATIENCE, health.wait_for(|h| h.state == RunState::BackOff)).await.unwrap().unwrap();
    let again = timeout(PATIENCE, health.wait_for(|h| h.healthy_since.is_some())).await.unwrap().unwrap().clone();
    assert_eq!((again.restarts, again.last_exit.unwrap().signal), (1, Some(9)));
    let pid = on.pid();
    supervisor.detach();

    let next = Supervisor::start(on.env.clone(), driver, spec);
    let mut health = next.health();
    let adopted = timeout(PATIENCE, health.wait_for(|h| h.healthy_since.is_some())).await.unwrap().unwrap().clone();
    assert_eq!((on.pid(), adopted.restarts), (pid, 0));
    next.stop().await.unwrap();
    assert_eq!(health.borrow().state, RunState::Stopped);
    assert!(on.alive().is_empty());
}

#[tokio::test]
async fn a_shim_is_small() {
    let on = Box_::new();
    on.driver.start(&on.script("echo up; exec sleep 600")).await.unwrap();
    on.output_with("up").await;
    assert_eq!(proc_status(on.shim())["Threads"], "1");
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", on.shim())).unwrap();
    // What each shim more costs. Clean pages are the program's, which all shims share.
    let dirty = rollup.lines().find_map(|l| l.strip_prefix("Private_Dirty:")).unwrap();
    let dirty_kib: u64 = dirty.split_whitespace().next().unwrap().parse().unwrap();
    assert!((1..2048).contains(&dirty_kib), "{rollup}");
    on.driver.stop(&app(), Duration::ZERO).await.unwrap();
}
