//! Hooks of a release as real processes.

use edgecore::driver::HookOutcome;
use proto::release::Hook;

use super::*;

fn hook(script: &str, limit: &str) -> Hook {
    serde_json::from_value(serde_json::json!({"command": ["/bin/sh", "-c", script], "timeout": limit})).unwrap()
}

impl Box_ {
    async fn hook(&self, spec: &InstanceSpec, script: &str) -> HookOutcome {
        self.driver.hook(spec, &hook(script, "20s")).await
    }

    /// Nothing of a hook is left: neither records nor processes.
    fn no_hook_is_left(&self) -> bool {
        !self.path().join("run/web/hook").exists()
    }
}

fn failure(outcome: HookOutcome) -> String {
    match outcome {
        HookOutcome::Failure(text) => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn its_exit_code_and_last_line_are_told() {
    let on = Box_::new();
    let spec = on.script("exec sleep 600");
    assert_eq!(on.hook(&spec, "echo all well").await, HookOutcome::Success);
    let put_off = on.hook(&spec, "echo first; echo >&2; echo a truck is at the dock >&2; echo; exit 75").await;
    assert_eq!(put_off, HookOutcome::PutOff("a truck is at the dock".into()));
    assert_eq!(on.hook(&spec, "exit 75").await, HookOutcome::PutOff(String::new()));
    assert_eq!(failure(on.hook(&spec, "echo no paper; exit 3").await), "it ended with exit status: 3: no paper");
    assert!(failure(on.hook(&spec, "kill -SEGV $$").await).starts_with("it ended with signal: 11"));
    let flood = "head -c 300000 /dev/zero | tr '\\0' x; exit 1";
    assert!(failure(on.hook(&spec, flood).await).len() < 400);
    let gone = serde_json::from_value(serde_json::json!({"command": ["bin/gone"]})).unwrap();
    let text = failure(on.driver.hook(&spec, &gone).await);
    assert!(text.contains("\"bin/gone\" does not exist in the release's tree"), "{text}");
    assert!(on.no_hook_is_left());
    assert_eq!(on.driver.inspect(&app()).await.unwrap(), None, "a hook is no instance");
}

#[tokio::test]
async fn it_runs_in_the_new_tree_with_its_environment_and_disturbs_nothing() {
    let on = Box_::new();
    on.driver.start(&on.script("exec sleep 600")).await.unwrap();
    let pid = on.pid();
    let mut new = on.script("exec sleep 600");
    new.release = ReleaseRef { version: "2.0".parse().unwrap(), digest: Digest::of(b"2.0") };
    new.tree = on.path().join("tree2");
    new.data = on.path().join("data2");
    fs::create_dir(&new.tree).unwrap();
    fs::write(
        new.tree.join("ask"),
        "#!/bin/sh\ntest \"$CROSSDOCK_VERSION $GREETING\" = \"2.0 hi\" && touch ../asked\n",
    )
    .unwrap();
    fs::set_permissions(new.tree.join("ask"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    new.workload.env = [("GREETING".to_owned(), "hi".to_owned())].into();
    let ask = serde_json::from_value(serde_json::json!({"command": ["ask"]})).unwrap();
    assert_eq!(on.driver.hook(&new, &ask).await, HookOutcome::Success);
    assert!(on.path().join("asked").exists());
    if is_root() {
        new.workload.user = Some("nobody".into());
        fs::remove_dir_all(&new.data).unwrap();
        let script = "test $(id -u) = 65534 && touch \"$CROSSDOCK_DATA/mine\"";
        assert_eq!(on.hook(&new, script).await, HookOutcome::Success, "a folder made for it is its own");
    }
    assert_eq!((on.pid(), on.running().await.exit), (pid, None), "what runs goes on");
    on.driver.stop(&app(), Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn beyond_its_time_it_is_killed_with_all_that_it_started() {
    let on = Box_::new();
    let spec = on.script("exec sleep 600");
    let script = "echo waiting; (setsid sleep 600 &) ; sleep 600";
    let text = failure(on.driver.hook(&spec, &hook(script, "500ms")).await);
    assert_eq!(text, "it took longer than 500ms and was killed: waiting");
    assert!(on.no_hook_is_left());
    // What it leaves behind goes too, and holds nobody up.
    let begun = Instant::now();
    assert_eq!(on.hook(&spec, "(setsid sleep 600 &); echo $CROSSDOCK_DATA").await, HookOutcome::Success);
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(on.no_hook_is_left());
}

/// The agent was killed, or wants something else now.
#[tokio::test]
async fn one_that_nobody_waits_for_is_killed() {
    let on = Box_::new();
    let spec = on.script("exec sleep 600");
    let running = Folder::at(on.path().join("run/web")).hook();
    let script = hook("touch ../begun; sleep 600", "1h");
    {
        let mut going = on.driver.hook(&spec, &script);
        let begun = eventually("it begins", || async { on.path().join("begun").exists().then_some(()) });
        tokio::select! {
            outcome = &mut going => panic!("{outcome:?}"),
            () = begun => {}
        }
    }
    let instance = running.launch().unwrap().unwrap().instance;
    eventually("it is gone", || async { procs::marked(&instance).is_empty().then_some(()) }).await;
    // The next start clears its records away.
    on.driver.start(&spec).await.unwrap();
    assert!(on.no_hook_is_left());
    on.driver.stop(&app(), Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn it_has_the_limits_of_its_release() {
    let on = Box_::new();
    let mut spec = on.script("exec sleep 600");
    spec.workload.limits = serde_json::from_str::<Limits>(r#"{"memory": "32Mi"}"#).unwrap();
    if Layout::detect().create("hook-limits-probe", &spec.workload.limits).is_err() {
        eprintln!("skipped: no memory control group here");
        return;
    }
    let eats = "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo survived";
    assert!(!failure(on.hook(&spec, eats).await).contains("survived"));
    assert!(on.no_hook_is_left());
}
