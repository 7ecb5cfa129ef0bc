//! One life of a workload: its start, environment, user, logs, probes and end.

use super::*;

#[tokio::test]
async fn a_workload_runs_speaks_and_ends() {
    let on = Box_::new();
    assert_eq!(on.driver.inspect(&app()).await.unwrap(), None);
    assert!(on.driver.logs(&app(), None, false).await.is_none());
    on.driver.start(&on.script("echo out; echo err >&2; pwd; read x; echo end-of-input; exit 3")).await.unwrap();
    let exit = on.exit().await;
    assert_eq!((exit.code, exit.signal), (Some(3), None));
    assert_eq!(exit.message, "exited with code 3; last output: err");
    let output = on.output().await;
    assert!(output.contains(" stdout F out\n") && output.contains(" stderr F err\n"), "{output}");
    assert!(output.contains(&format!(" stdout F {}/tree\n", on.path().display())), "{output}");
    assert!(output.contains("end-of-input"), "standard input is empty: {output}");
    assert_eq!(on.running().await.exit, Some(exit));
    assert_eq!(on.driver.list().await.unwrap(), [app()]);
    on.driver.remove(&app()).await.unwrap();
    assert!(on.driver.list().await.unwrap().is_empty());
    assert_eq!(on.driver.inspect(&app()).await.unwrap(), None);
}

#[tokio::test]
async fn only_its_own_environment_reaches_a_workload() {
    let on = Box_::new();
    let mut spec = on.script("env; echo done");
    spec.workload.env = [("GREETING".to_owned(), "hi there".to_owned())].into();
    on.driver.start(&spec).await.unwrap();
    on.exit().await;
    let output = on.output().await;
    let names: Vec<_> = output.lines().filter_map(|l| l.splitn(4, ' ').nth(3)?.split_once('=')).map(|v| v.0).collect();
    for name in ["GREETING", "PATH", "CROSSDOCK_APP", "CROSSDOCK_VERSION", "CROSSDOCK_DATA"] {
        assert!(names.contains(&name), "{name}: {output}");
    }
    for name in names {
        let shell = ["PWD", "OLDPWD", "_", "SHLVL"].contains(&name);
        assert!(shell || name == "GREETING" || name == "PATH" || name.starts_with("CROSSDOCK_"), "{name}");
    }
    assert!(output.contains("GREETING=hi there"));
}

#[tokio::test]
async fn signals_are_recorded() {
    let on = Box_::new();
    on.driver.start(&on.script("echo going; kill -SEGV $$")).await.unwrap();
    let exit = on.exit().await;
    assert_eq!((exit.code, exit.signal), (None, Some(11)));
    assert!(exit.message.starts_with("killed by signal 11"), "{}", exit.message);

    on.driver.start(&on.script("exec sleep 600")).await.unwrap();
    kill(on.pid(), "-KILL");
    let exit = on.exit().await;
    assert_eq!((exit.code, exit.signal), (None, Some(9)));
}

#[tokio::test]
async fn a_start_that_cannot_be_says_why() {
    let on = Box_::new();
    let tree = on.path().join("tree");
    fs::write(tree.join("plain"), "no program").unwrap();
    fs::write(tree.join("lost"), "#!/no/such/interpreter\n").unwrap();
    fs::write(tree.join("nonsense"), [0x7f, 0, 1, 2]).unwrap();
    for file in ["lost", "nonsense"] {
        fs::set_permissions(tree.join(file), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    for (workload, expected) in [
        (serde_json::json!({"command": "bin/gone"}), "\"bin/gone\" does not exist in the release's tree"),
        (serde_json::json!({"command": "/no/such"}), "does not exist on this box"),
        (serde_json::json!({"command": "plain"}), "not an executable file"),
        (serde_json::json!({"command": "/tmp"}), "not an executable file"),
        (serde_json::json!({"command": "lost"}), "its interpreter"),
        (serde_json::json!({"command": "nonsense"}), "starts with neither #! nor the mark of ELF"),
        (serde_json::json!({"command": "/bin/true", "workingDir": "gone"}), "working folder"),
        (serde_json::json!({"command": "/bin/true", "user": "nobody-knows"}), "useradd --system nobody-knows"),
    ] {
        let error = on.driver.start(&on.spec(workload)).await.unwrap_err().to_string();
        assert!(error.starts_with("could not start web: ") && error.contains(expected), "{error}");
        assert_eq!(on.driver.inspect(&app()).await.unwrap(), None);
        assert!(on.alive().is_empty());
    }
    // And after all that, a good one starts.
    on.driver.start(&on.spec(serde_json::json!({"command": "/bin/true"}))).await.unwrap();
    assert_eq!(on.exit().await.code, Some(0));
}

#[tokio::test]
async fn daemons_and_those_who_ignore_sigterm_are_stopped_whole() {
    let on = Box_::new();
    // A daemon by double fork and new session, a child that ignores SIGTERM, and a command that does too.
    let script = "trap 'echo not-me' TERM
        (setsid sh -c '(trap \"\" TERM; echo daemon-up; while :; do sleep 0.05; done) &' &)
        sh -c 'trap \"\" TERM; echo child-up; while :; do sleep 0.05; done' &
        echo command-up; while :; do sleep 0.05; done";
    on.driver.start(&on.script(script)).await.unwrap();
    for who in ["daemon-up", "child-up", "command-up"] {
        on.output_with(who).await;
    }
    assert!(on.alive().len() >= 3);
    let begin = Instant::now();
    let grace = Duration::from_secs(3); // in which the shell runs its trap
    on.driver.stop(&app(), grace).await.unwrap();
    assert!(begin.elapsed() >= grace, "grace is given");
    assert!(on.alive().is_empty());
    let exit = on.running().await.exit.unwrap();
    assert_eq!((exit.signal, exit.message.as_str()), (Some(9), STOPPED_ON_REQUEST));
    assert!(on.output().await.contains("not-me"), "SIGTERM came first");
    on.driver.stop(&app(), Duration::from_millis(300)).await.unwrap(); // nothing runs: success
}

#[tokio::test]
async fn who_obeys_sigterm_stops_at_once() {
    let on = Box_::new();
    on.driver.start(&on.script("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done")).await.unwrap();
    on.output_with("up").await;
    let begin = Instant::now();
    on.driver.stop(&app(), Duration::from_secs(60)).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(on.running().await.exit.unwrap().code, Some(0));
    assert!(on.output().await.contains("bye"));
}

#[tokio::test]
async fn what_a_command_leaves_behind_goes_with_it() {
    let on = Box_::new();
    on.driver.start(&on.script("setsid sh -c 'trap \"\" TERM; while :; do sleep 0.05; done' & exit 5")).await.unwrap();
    assert_eq!(on.exit().await.code, Some(5));
    assert!(on.alive().is_empty());
}

#[tokio::test]
async fn no_new_privileges_and_the_user_are_really_set() {
    let on = Box_::new();
    on.driver.start(&on.script("exec sleep 600")).await.unwrap();
    assert_eq!(proc_status(on.pid())["NoNewPrivs"], "1");
    assert!(proc_status(on.pid())["SigBlk"].chars().all(|c| c == '0'), "signals reach it");
    on.driver.stop(&app(), Duration::ZERO).await.unwrap();
    if !is_root() {
        eprintln!("skipped: users are changed by root only");
        return;
    }
    for (user, uid) in [("nobody", "65534"), ("12345", "12345")] {
        let mut spec = on.script("touch $CROSSDOCK_DATA/mine && exec sleep 600");
        spec.workload.user = Some(user.into());
        spec.data = on.data().join(user);
        on.driver.start(&spec).await.unwrap();
        let status = eventually("its data folder is writable", || async {
            spec.data.join("mine").exists().then(|| proc_status(on.pid()))
        })
        .await;
        for line in ["Uid", "Gid"] {
            assert!(status[line].split('\t').all(|id| id == uid || (user == "nobody" && line == "Gid")), "{status:?}");
        }
        assert_eq!((status["NoNewPrivs"].as_str(), status["CapEff"].as_str()), ("1", "0000000000000000"));
        assert!(!status["Groups"].split_whitespace().any(|g| g == "0"), "{:?}", status["Groups"]);
        on.driver.stop(&app(), Duration::ZERO).await.unwrap();
    }
}

#[tokio::test]
async fn logs_stay_bounded_and_can_be_followed() {
    let on = Box_::new();
    let mut spec =
        on.script("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done; echo last; exec sleep 600");
    spec.workload.limits = serde_json::from_str(r#"{"logs": "256Ki"}"#).unwrap();
    on.driver.start(&spec).await.unwrap();
    let mut follower = on.driver.logs(&app(), Some(1), true).await.unwrap();
    let mut seen = String::new();
    while !seen.contains("stdout F last\n") {
        let chunk = timeout(PATIENCE, follower.recv()).await.unwrap().unwrap();
        seen.push_str(&String::from_utf8_lossy(&chunk));
    }
    let files = fs::read_dir(on.path().join("run/web/logs")).unwrap();
    let size: u64 = files.map(|f| f.unwrap().metadata().unwrap().len()).sum();
    assert!(size <= 256 << 10, "{size}");
    assert!(on.output().await.contains("line 20000\n"));
    on.driver.stop(&app(), Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn exec_probes_run_beside_the_workload() {
    let on = Box_::new();
    let mut spec = on.script("exec sleep 600");
    if is_root() {
        spec.workload.user = Some("nobody".into());
    }
    let probe = |command: &[&str], limit: &str| -> Probe {
        serde_json::from_value(serde_json::json!({"exec": {"command": command}, "timeout": limit})).unwrap()
    };
    on.driver.start(&spec).await.unwrap();
    let run = async |command: &[&str], limit| text(on.driver.probe(&spec, &probe(command, limit)).await);
    assert_eq!(run(&["/bin/true"], "10s").await, "success");
    assert_eq!(run(&["/bin/sh", "-c", "test \"$CROSSDOCK_APP\" = web"], "10s").await, "success");
    let failure = run(&["/bin/sh", "-c", "echo no good >&2; exit 7"], "10s").await;
    assert!(failure.contains("exit status: 7") && failure.contains("no good"), "{failure}");
    let failure = run(&["gone"], "10s").await;
    assert!(failure.contains("\"gone\" does not exist"), "{failure}");
    let before = on.alive();
    assert_eq!(run(&["/bin/sh", "-c", "sleep 600 & sleep 600"], "300ms").await, "no answer within 300ms");
    eventually("the probe's processes are gone", || async { (on.alive() == before).then_some(()) }).await;
    if is_root() {
        assert_eq!(run(&["/bin/sh", "-c", "test $(id -u) = 65534"], "10s").await, "success");
    }
    on.driver.stop(&app(), Duration::ZERO).await.unwrap();
}

fn text(outcome: ProbeOutcome) -> String {
    match outcome {
        ProbeOutcome::Success => "success".into(),
        ProbeOutcome::Failure(text) => text,
    }
}
