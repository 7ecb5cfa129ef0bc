//! The process driver against real processes, shims and control groups of this machine.
//!
//! What needs root or a control group is checked where the machine has it, and skipped with a word
//! where it has not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // all of it is a test

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use edgecore::{
    driver::{
        Driver, Instance, InstanceSpec, ProbeOutcome, STOPPED_ON_REQUEST, cgroup::Layout, process::ProcessDriver,
        procs, records::Folder,
    },
    supervisor::Supervisor,
};
use proto::{
    digest::Digest,
    env::Env,
    name::Name,
    object::{LastExit, ReleaseRef, RunState},
    release::{Limits, Probe},
};
use tokio::time::{Instant, sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(30);

/// A folder with a driver; whatever still runs in it is stopped at the end.
struct Box_ {
    folder: tempfile::TempDir,
    env: Env,
    driver: ProcessDriver,
}

impl Box_ {
    fn new() -> Box_ {
        let folder = tempfile::Builder::new().prefix("crossdock-driver-").tempdir().unwrap();
        // Others must be able to reach the tree.
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        fs::create_dir(folder.path().join("tree")).unwrap();
        let env = Env::real().unwrap();
        let driver = driver_at(folder.path(), &env);
        Box_ { folder, env, driver }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    fn spec(&self, workload: serde_json::Value) -> InstanceSpec {
        InstanceSpec {
            app: app(),
            release: ReleaseRef { version: "1.0".parse().unwrap(), digest: Digest::of(b"1.0") },
            tree: self.path().join("tree"),
            data: self.data(),
            workload: serde_json::from_value(workload).unwrap(),
        }
    }

    /// A shell script as workload.
    fn script(&self, script: &str) -> InstanceSpec {
        self.spec(serde_json::json!({"command": "/bin/sh", "args": ["-c", script], "stopGrace": "500ms"}))
    }

    async fn output(&self) -> String {
        let mut receiver = self.driver.logs(&app(), None, false).await.unwrap();
        let mut all = vec![];
        while let Some(chunk) = receiver.recv().await {
            all.extend_from_slice(&chunk);
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    async fn output_with(&self, text: &str) -> String {
        eventually(text, || async { Some(self.output().await).filter(|o| o.contains(text)) }).await
    }

    async fn exit(&self) -> LastExit {
        timeout(PATIENCE, self.driver.wait(&app())).await.expect("it ends").unwrap()
    }

    async fn running(&self) -> Instance {
        self.driver.inspect(&app()).await.unwrap().unwrap()
    }

    /// Pids of everything that belongs to this folder's instance.
    fn alive(&self) -> Vec<i32> {
        procs::marked(self.launch()["instance"].as_str().unwrap()).into_iter().collect()
    }

    fn launch(&self) -> serde_json::Value {
        self.record("launch.json")
    }

    fn record(&self, name: &str) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.path().join("run/web").join(name)).unwrap()).unwrap()
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.record("running.json")["pid"].as_i64().unwrap()).unwrap()
    }

    fn shim(&self) -> i32 {
        Folder::at(self.path().join("run/web")).holder().unwrap().unwrap()
    }
}

impl Drop for Box_ {
    fn drop(&mut self) {
        if let Ok(Some(shim)) = Folder::at(self.path().join("run/web")).holder() {
            kill(shim, "-KILL");
            for pid in self.alive() {
                kill(pid, "-KILL");
            }
        }
    }
}

fn driver_at(folder: &Path, env: &Env) -> ProcessDriver {
    ProcessDriver::new(folder.join("run"), env.clone()).with_program(env!("CARGO_BIN_EXE_edgecore").into())
}

fn app() -> Name {
    "web".parse().unwrap()
}

fn kill(pid: i32, signal: &str) {
    let _ = std::process::Command::new("kill").arg(signal).arg(pid.to_string()).status();
}

fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap()) == 0
}

fn proc_status(pid: i32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k.to_owned(), v.trim().to_owned())).collect()
}

async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn text(outcome: ProbeOutcome) -> String {
    match outcome {
        ProbeOutcome::Success => "success".into(),
        ProbeOutcome::Failure(text) => text,
    }
}

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

/// Limits, where this machine can apply them.
fn limits(json: &str) -> Option<Limits> {
    let limits: Limits = serde_json::from_str(json).unwrap();
    let name = format!("trial-{}-{}", std::process::id(), json.len());
    match Layout::detect().create(&name, &limits) {
        Ok(group) => {
            group.remove();
            Some(limits)
        }
        Err(e) => {
            eprintln!("skipped: {e}");
            None
        }
    }
}

#[tokio::test]
async fn memory_beyond_the_limit_is_death() {
    let Some(limits) = limits(r#"{"memory": "32Mi"}"#) else { return };
    let on = Box_::new();
    let mut spec = on.script("echo up; x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo too far; sleep 600");
    spec.workload.limits = limits;
    on.driver.start(&spec).await.unwrap();
    let exit = on.exit().await;
    assert_eq!(exit.signal, Some(9), "{exit:?} {}", on.output().await);
    assert!(exit.message.contains("more memory than its limit of 32Mi"), "{}", exit.message);
    assert!(!on.output().await.contains("too far"));
}

#[tokio::test]
async fn processes_beyond_the_limit_do_not_start() {
    let Some(limits) = limits(r#"{"pids": 10}"#) else { return };
    let on = Box_::new();
    let script = "i=0; while [ $i -lt 30 ]; do i=$((i+1)); sleep 600 & done; echo all; wait";
    let mut spec = on.script(script);
    spec.workload.limits = limits;
    on.driver.start(&spec).await.unwrap();
    let output = on.output_with("fork").await;
    assert!(!output.contains("stdout F all"), "{output}");
    on.driver.stop(&app(), Duration::ZERO).await.unwrap();
    assert!(on.alive().is_empty());
}

#[tokio::test]
async fn what_a_workload_uses_is_told_while_it_runs() {
    let b = Box_::new();
    assert_eq!(b.driver.usage(&app()).await, None);
    // Two processes that hold memory, one of which works.
    let script = "sleep 60 & while :; do :; done";
    b.driver.start(&b.script(script)).await.unwrap();
    let worked = eventually("processor time", || async {
        let used = b.driver.usage(&app()).await.unwrap();
        used.cpu.filter(|cpu| *cpu >= Duration::from_millis(50)).map(|_| used)
    });
    let memory = worked.await.memory_bytes.unwrap();
    assert!((64 << 10..1 << 30).contains(&memory), "{memory} bytes");
    b.driver.stop(&app(), Duration::ZERO).await.unwrap();
    assert_eq!(b.driver.usage(&app()).await, None);
}

#[tokio::test]
async fn groups_are_made_used_and_removed() {
    let Some(limits) = limits(r#"{"memory": "64Mi", "cpuMillis": 250, "pids": 10}"#) else { return };
    let on = Box_::new();
    let mut spec = on.script("exec sleep 600");
    spec.workload.limits = limits;
    on.driver.start(&spec).await.unwrap();
    let running = on.record("running.json");
    let groups: Vec<_> =
        running["groups"].as_array().unwrap().iter().map(|g| PathBuf::from(g.as_str().unwrap())).collect();
    for group in &groups {
        let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert_eq!(pids.trim(), on.pid().to_string(), "{}", group.display());
    }
    on.driver.stop(&app(), Duration::ZERO).await.unwrap();
    assert!(groups.iter().all(|group| !group.exists()));
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
