//! The agent's look at GPUs through the code that ships: its helper process, the dynamic loader, NVML's entry points.
//!
//! No NVIDIA card is needed: `nvml.c` is compiled here into a libnvidia-ml.so.1 that answers as its control file says.
//! Where the machine has the real library, or the test command could fetch it, that is asked too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // all of it is a test

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use edgecore::gpu::{
    GpuProbe,
    helper::{LIBRARY, LIBRARY_VARIABLE, NvmlProbe},
    known::Known,
    look::{Driver, Look},
};
use tempfile::TempDir;
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(20);

/// A folder with the library and what it is to say.
struct Box_ {
    folder: TempDir,
    probe: NvmlProbe,
    known: Known,
}

impl Box_ {
    /// Whose GPUs do as `control` says.
    fn new(control: &str) -> Box_ {
        let folder = tempfile::tempdir().unwrap();
        build(&folder.path().join(LIBRARY));
        let program = PathBuf::from(env!("CARGO_BIN_EXE_edgecore"));
        let probe = NvmlProbe::new().with_library(folder.path().join(LIBRARY)).with_program(program);
        let probe = probe.with_patience(PATIENCE, PATIENCE);
        let box_ = Box_ { folder, probe, known: Known::default() };
        box_.say(control);
        box_
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn say(&self, control: &str) {
        let written = self.path().join("written");
        fs::write(&written, control).unwrap();
        fs::rename(&written, self.path().join("control")).unwrap();
    }

    async fn look(&mut self) -> Look {
        let look = self.probe.look().await;
        self.known = self.known.after(look.clone());
        look
    }

    /// Looks, and tells what is wrong.
    async fn trouble(&mut self) -> String {
        self.look().await;
        self.known.trouble().flatten().map(|problem| problem.reason).unwrap_or_default()
    }
}

fn build(library: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/nvml.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(library).arg(source);
    assert!(compiler.status().unwrap().success());
}

#[tokio::test]
async fn healthy_gpus_tell_all_that_nvml_knows() {
    let mut box_ = Box_::new("");
    let sleeper = sleeper("line-watch");
    box_.say(&format!("process 1 {} 2048\nprocess 1 1 1024\n", sleeper.0.id()));
    let look = box_.look().await;
    assert_eq!(look.driver, Driver::Working { version: "550.54.15".into(), cuda: "12.4".into() });
    assert_eq!((look.devices.len(), box_.trouble().await), (2, String::new()));
    let inventory = box_.known.inventory().unwrap();
    let second = &inventory.devices[1];
    assert_eq!((second.model.as_str(), second.memory_bytes), ("NVIDIA Stand-In", 24 << 30));
    assert_eq!(second.uuid, "GPU-10000000-0000-4000-8000-000000000000");
    let usage = &box_.known.usage()[1];
    assert_eq!((usage.utilization_percent, usage.temperature_c, usage.slowdown_c), (Some(41), Some(50), Some(90)));
    assert_eq!((usage.power_mw, usage.power_limit_mw), (Some(61_200), Some(72_000)));
    assert_eq!((usage.ecc_corrected, usage.ecc_uncorrected), (Some(0), Some(0)));
    assert_eq!(usage.throttle, ["SW_POWER_CAP"]);
    assert_eq!(usage.memory_used_bytes, Some((2048 + 1024 + 512) << 20));
    assert_eq!(usage.memory_free_bytes, Some((24 << 30) - usage.memory_used_bytes.unwrap()));
    let of = |app: Option<&str>| usage.processes.iter().find(|p| p.app.as_ref().map(|a| a.as_str()) == app).unwrap();
    assert_eq!((of(Some("line-watch")).pid, of(Some("line-watch")).memory_bytes), (sleeper.0.id(), Some(2 << 30)));
    assert_eq!((of(None).pid, of(None).memory_bytes), (1, Some(1 << 30)));
}

#[tokio::test]
async fn what_a_gpu_does_not_support_is_absent() {
    let mut box_ = Box_::new("old\n");
    assert_eq!(box_.trouble().await, "");
    let usage = &box_.known.usage()[0];
    assert_eq!((usage.memory_used_bytes, usage.ecc_uncorrected, usage.temperature_c), (None, None, Some(50)));
}

#[tokio::test]
async fn a_driver_that_comes_and_goes_is_noticed_at_the_next_look() {
    let mut box_ = Box_::new("absent\n");
    let Driver::Absent { why } = box_.look().await.driver else { panic!() };
    assert_eq!((why.as_str(), box_.known.inventory()), ("NVIDIA driver is not loaded", None));
    box_.say("");
    assert_eq!((box_.trouble().await, box_.known.serves()), (String::new(), true));
    box_.say("absent\n");
    assert_eq!((box_.trouble().await.as_str(), box_.known.serves()), ("DriverGone", false));
    box_.say("");
    assert_eq!((box_.trouble().await, box_.known.serves()), (String::new(), true));
    fs::remove_file(box_.path().join(LIBRARY)).unwrap();
    box_.look().await; // the helper still has it loaded, and ends
    assert_eq!(box_.trouble().await, "DriverGone");
}

#[tokio::test]
async fn a_library_that_is_replaced_is_loaded_anew() {
    let mut box_ = Box_::new("");
    assert_eq!(box_.trouble().await, "");
    let newer = box_.path().join("newer");
    build(&newer);
    fs::rename(newer, box_.path().join(LIBRARY)).unwrap();
    assert_eq!(box_.trouble().await, "", "this look is still by the old one");
    box_.say("mismatch\n");
    assert_eq!(box_.trouble().await, "DriverMismatch");
    let message = box_.known.trouble().flatten().unwrap().message;
    assert!(message.contains("restart the box"), "{message}");
    box_.say("");
    assert_eq!((box_.trouble().await, box_.known.serves()), (String::new(), true));
}

#[tokio::test]
async fn a_gpu_that_is_lost_or_missing_is_told_and_the_other_goes_on() {
    let mut box_ = Box_::new("");
    assert_eq!(box_.trouble().await, "");
    for control in ["lost 1\n", "missing 1\n"] {
        box_.say(control);
        assert_eq!((box_.trouble().await.as_str(), box_.known.serves()), ("GpuLost", true));
        assert_eq!((box_.known.usage().len(), box_.known.inventory().unwrap().devices.len()), (1, 2));
        box_.say("");
        assert_eq!(box_.trouble().await, "");
    }
}

#[tokio::test]
async fn xids_are_heard_between_two_looks() {
    let mut box_ = Box_::new("");
    assert_eq!(box_.trouble().await, "");
    box_.say("xid 0 31\n");
    assert_eq!((box_.trouble().await, box_.known.usage()[0].last_xid), (String::new(), Some(31)));
    box_.say("xid 0 79\n");
    assert_eq!(box_.trouble().await, "GpuXid");
    box_.say("");
    assert_eq!((box_.trouble().await.as_str(), box_.known.usage()[0].last_xid), ("GpuXid", Some(79)));
    assert_eq!(box_.known.usage()[1].last_xid, None);
}

#[tokio::test]
async fn lost_data_and_heat_are_told() {
    let mut box_ = Box_::new("ecc 0 3\n");
    assert_eq!(box_.trouble().await, "GpuEccUncorrected");
    box_.say("hot 1 93\n");
    assert_eq!((box_.trouble().await.as_str(), box_.known.usage()[1].temperature_c), ("GpuOverheating", Some(93)));
    box_.say("");
    assert_eq!(box_.trouble().await, "");
}

#[tokio::test]
async fn a_driver_that_hangs_neither_stalls_the_agent_nor_collects_processes() {
    let mut box_ = Box_::new("");
    box_.probe = NvmlProbe::new()
        .with_library(box_.path().join(LIBRARY))
        .with_program(env!("CARGO_BIN_EXE_edgecore").into())
        .with_patience(PATIENCE, Duration::from_millis(300));
    assert_eq!(box_.trouble().await, "");
    box_.say("hang\n");
    let began = Instant::now();
    assert_eq!((box_.trouble().await.as_str(), box_.known.serves()), ("NvmlHangs", false));
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(box_.known.inventory().unwrap().devices.len(), 2, "what they are stays known");
    box_.say("");
    let healed = async {
        while !box_.trouble().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await; // until the kernel has buried the old helper
        }
    };
    tokio::time::timeout(PATIENCE, healed).await.unwrap();
    assert!(box_.known.serves());
}

#[tokio::test]
async fn a_library_that_crashes_takes_only_its_process_with_it() {
    let mut box_ = Box_::new("");
    assert_eq!(box_.trouble().await, "");
    box_.say("crash\n");
    assert_eq!(box_.trouble().await, "NvmlFailed");
    let message = box_.known.trouble().flatten().unwrap().message;
    assert!(message.contains("SIGABRT"), "{message}");
    box_.say("");
    assert_eq!(box_.trouble().await, "");
}

#[tokio::test]
async fn without_a_library_nothing_is_started() {
    let program = PathBuf::from("/nonexistent");
    let mut probe = NvmlProbe::new().with_library("/nonexistent/libnvidia-ml.so.1".into()).with_program(program);
    let Driver::Absent { why } = probe.look().await.driver else { panic!() };
    assert_eq!(why, "there is no /nonexistent/libnvidia-ml.so.1");
}

/// NVIDIA's own library, where the machine has it: without a driver it says so, with one it works. What the stand-in has,
/// it has, too.
#[tokio::test]
async fn the_real_library_is_asked_where_there_is_one() {
    let named = std::env::var_os(LIBRARY_VARIABLE).map(PathBuf::from);
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/nvml").join(LIBRARY);
    let places = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"].map(|place| Path::new(place).join(LIBRARY));
    let Some(library) = named.into_iter().chain(places).chain([fetched]).find(|library| library.exists()) else {
        eprintln!("skipped: no {LIBRARY} on this machine (name one in {LIBRARY_VARIABLE})");
        return;
    };
    let symbols = Command::new("nm").args(["-D", "--defined-only"]).arg(&library).output().unwrap();
    let symbols = String::from_utf8(symbols.stdout).unwrap();
    let real: Vec<&str> =
        symbols.lines().filter_map(|line| line.split(['@', ' ']).find(|w| w.starts_with("nvml"))).collect();
    let words = include_str!("nvml.c").split(|c: char| !c.is_alphanumeric() && c != '_');
    let is_function = |word: &&str| word.strip_prefix("nvml").is_some_and(|rest| rest.starts_with(char::is_uppercase));
    let ours: Vec<&str> = words.filter(is_function).filter(|word| !word.ends_with("_t")).collect();
    let missing: Vec<_> = ours.iter().filter(|function| !real.contains(function)).collect();
    assert!(ours.len() > 20 && missing.is_empty(), "{} has no {missing:?}", library.display());
    let mut probe = NvmlProbe::new().with_library(library.clone()).with_program(env!("CARGO_BIN_EXE_edgecore").into());
    let look = probe.look().await;
    eprintln!("{} says {look:?}", library.display());
    match look.driver {
        Driver::Absent { why } => assert!(!Path::new("/proc/driver/nvidia").exists(), "{why}"),
        Driver::Trouble { reason, message } => panic!("{reason}: {message}"),
        Driver::Working { version, .. } => {
            assert!(version.contains('.'));
            assert!(look.devices.iter().all(|gpu| gpu.uuid.is_some() && gpu.memory_bytes > 1 << 30));
        }
    }
}

/// A process of an app.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn sleeper(app: &str) -> Sleeper {
    Sleeper(Command::new("sleep").arg("600").env("CROSSDOCK_APP", app).spawn().unwrap())
}
