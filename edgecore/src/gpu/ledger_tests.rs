use std::{fs, path::Path};

use proto::{
    env::BoxFuture,
    object::{GpuProcess, GpuUsage},
};

use super::*;
use crate::{
    fetch::tests::env,
    gpu::{
        GpuProbe,
        look::{Device, Look},
    },
};

fn app(name: &str) -> Name {
    name.parse().unwrap()
}

fn asks(name: &str, version: &str, needs: &str) -> Request {
    let needs = serde_json::from_str(needs).unwrap();
    Request { app: app(name), release: Digest::of(version.as_bytes()), needs, side: Side::A, beside: false }
}

/// A box with so many GPUs of 24 GiB.
fn with(count: u32) -> GpuWatch {
    let gpus = GpuWatch::none();
    gpus.take(look(count));
    gpus
}

fn look(count: u32) -> Look {
    let device = |index| Device {
        uuid: Some(format!("GPU-{index}")),
        index,
        memory_bytes: 24 << 30,
        usage: GpuUsage { temperature_c: Some(40), ..GpuUsage::default() },
        ..Device::default()
    };
    let driver = Driver::Working { version: "550.54.15".into(), cuda: "12.4".into() };
    Look { driver, devices: (0..count).map(device).collect() }
}

/// Shows two GPUs at its first look, and one from then on.
#[derive(Debug)]
struct FirstTwo(u32);

impl GpuProbe for FirstTwo {
    fn look(&mut self) -> BoxFuture<'_, Look> {
        self.0 += 1;
        let count = if self.0 == 1 { 2 } else { 1 };
        Box::pin(async move { look(count) })
    }
}

fn open(folder: &Path, gpus: &GpuWatch) -> Ledger {
    Ledger::open(Record::at(folder.join("gpus")), env(), gpus).unwrap()
}

const SHARED: &str = r#"{"memory": "10Gi", "exclusive": false}"#;

#[tokio::test]
async fn what_is_granted_is_on_disk_and_found_again() {
    let (folder, gpus) = (tempfile::tempdir().unwrap(), with(2));
    let ledger = open(folder.path(), &gpus);
    let mut news = ledger.news();
    assert_eq!(ledger.take(&asks("a", "1", "{}")).await.unwrap(), ["GPU-0"]);
    news.changed().await;
    assert_eq!(ledger.take(&asks("b", "1", SHARED)).await.unwrap(), ["GPU-1"]);
    let gpus = with(2);
    let ledger = open(folder.path(), &gpus);
    assert_eq!(ledger.held(&app("a"), Digest::of(b"1"), Side::A).unwrap(), ["GPU-0"]);
    let held: Vec<_> = gpus.inventory().unwrap().devices.into_iter().map(|gpu| gpu.apps).collect();
    assert_eq!(held, [vec![app("a")], vec![app("b")]]);
    let refusal = ledger.check(&asks("c", "1", "{}")).unwrap_err().to_string();
    assert!(refusal.contains("GPU-0 is held by a for itself; GPU-1 is held by b;"), "{refusal}");
    assert_eq!(ledger.take(&asks("c", "1", SHARED)).await.unwrap(), ["GPU-1"]);
}

#[tokio::test]
async fn a_release_on_trial_and_the_one_before_hold_together_until_one_goes() {
    let (folder, gpus) = (tempfile::tempdir().unwrap(), with(1));
    let ledger = open(folder.path(), &gpus);
    ledger.take(&asks("a", "1", r#"{"memory": "20Gi", "exclusive": false}"#)).await.unwrap();
    ledger.take(&asks("a", "2", SHARED)).await.unwrap();
    ledger.check(&asks("b", "1", SHARED)).unwrap_err();
    ledger.keep_only(&app("a"), &[Digest::of(b"2")].into(), None).await.unwrap();
    ledger.check(&asks("b", "1", SHARED)).unwrap();
    assert_eq!(ledger.held(&app("a"), Digest::of(b"1"), Side::A), None);
    ledger.keep_only(&app("a"), &BTreeSet::new(), None).await.unwrap();
    assert_eq!(gpus.inventory().unwrap().devices[0].apps, []);
    assert!(open(folder.path(), &with(1)).grants.borrow().is_empty());
}

#[tokio::test]
async fn a_record_that_is_lost_is_begun_anew() {
    let (folder, gpus) = (tempfile::tempdir().unwrap(), with(1));
    open(folder.path(), &gpus).take(&asks("a", "1", "{}")).await.unwrap();
    for file in fs::read_dir(folder.path()).unwrap().flatten() {
        fs::write(file.path(), "garbage").unwrap();
    }
    let ledger = open(folder.path(), &gpus);
    assert_eq!(ledger.take(&asks("b", "1", "{}")).await.unwrap(), ["GPU-0"]);
}

#[tokio::test]
async fn nothing_is_granted_before_the_first_look_nor_by_a_driver_in_trouble() {
    #[derive(Debug)]
    struct Never;
    impl crate::gpu::GpuProbe for Never {
        fn look(&mut self) -> proto::env::BoxFuture<'_, Look> {
            Box::pin(std::future::pending())
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let refusal = |gpus: &GpuWatch| open(folder.path(), gpus).check(&asks("a", "1", "{}")).unwrap_err().to_string();
    assert_eq!(refusal(&GpuWatch::new(Box::new(Never))), "the GPUs of this box were not looked at yet");
    let gpus = with(1);
    gpus.take(Look::without(Driver::trouble("DriverMismatch", "restart the box")));
    assert_eq!(
        refusal(&gpus),
        "it wants 1 GPU, for itself; this box has no NVIDIA GPU that can be used: restart the box"
    );
}

#[test]
fn memory_counts_for_whom_it_is_used() {
    let process = |pid, name: Option<&str>, gib: Option<u64>| GpuProcess {
        pid,
        memory_bytes: gib.map(|gib| gib << 30),
        app: name.map(app),
    };
    let gpu = |processes| {
        let usage = GpuUsage { memory_used_bytes: Some(9 << 30), processes, ..GpuUsage::default() };
        let mut gpu = Gpu::default();
        (gpu.memory_bytes, gpu.usage) = (24 << 30, usage);
        gpu
    };
    let known =
        offer(&gpu(vec![process(1, Some("a"), Some(5)), process(2, Some("a"), Some(1)), process(3, None, Some(2))]));
    assert_eq!((known.foreign_bytes, known.used_bytes), (3 << 30, [(app("a"), 6 << 30)].into()));
    let untold = offer(&gpu(vec![process(1, Some("a"), None)]));
    assert_eq!((untold.foreign_bytes, untold.used_bytes), (0, [].into()), "not held against anybody");
}

#[tokio::test]
async fn who_asks_how_its_gpus_are_now_has_them_looked_at() {
    let (folder, gpus) = (tempfile::tempdir().unwrap(), GpuWatch::new(Box::new(FirstTwo(0))));
    let ledger = open(folder.path(), &gpus);
    let two = asks("a", "1", r#"{"count": 2}"#);
    assert_eq!(ledger.unwell_now(&two.app, two.release, two.side).await, None, "it has none");
    gpus.look().await;
    ledger.take(&two).await.unwrap();
    assert_eq!(ledger.unwell(&two.app, two.release, two.side), None);
    let unwell = ledger.unwell_now(&two.app, two.release, two.side).await;
    assert_eq!(unwell.as_deref(), Some("GPU-1 is lost"));
    assert_eq!(ledger.unwell(&two.app, two.release, two.side), unwell);
}
