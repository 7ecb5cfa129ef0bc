//! The process driver against real processes, shims and control groups of this machine.
//!
//! What needs root or a control group is checked where the machine has it, and skipped with a word
//! where it has not.
//!
//! Here is the box with its driver; `runs` is about one life of a workload, `survives` about agents and shims that
//! come and go, `limits` about control groups, `hooks` about a
//! release's hooks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // all of it is a test

mod hooks;
mod limits;
mod runs;
mod survives;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use edgecore::{
    driver::{
        Driver, Instance, InstanceSpec, ProbeOutcome, STOPPED_ON_REQUEST, Side, cgroup::Layout, process::ProcessDriver,
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
            side: Side::A,
            replica: 0,
            run: None,
            release: ReleaseRef { version: "1.0".parse().unwrap(), digest: Digest::of(b"1.0") },
            tree: self.path().join("tree"),
            data: self.data(),
            workload: serde_json::from_value(workload).unwrap(),
            gpus: vec![],
            uses: BTreeMap::new(),
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
