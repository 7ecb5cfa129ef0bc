//! No room: the quota, and the disk itself.

use std::time::Duration;

use super::*;

/// Appends `bytes` of noise until it is refused or `count` times; returns how many were taken, and the refusal.
async fn fill(outbox: &Outbox, stream: &str, bytes: usize, count: u64) -> (u64, Option<AppendError>) {
    for n in 0..count {
        if let Err(error) = outbox.append(&name(stream), vec![noise(n, bytes)]).await {
            return (n, Some(error));
        }
    }
    (count, None)
}

fn key(outbox: &Outbox, stream: &str) -> StreamKey {
    held(outbox, stream).key
}

#[tokio::test]
async fn logs_give_way_then_metrics_and_scans_push_back() {
    let folder = tempfile::tempdir().unwrap();
    let quota_bytes = 8 << 20;
    let outbox = Outbox::open(folder.path(), OutboxConfig { quota_bytes, ..config() }, env()).await.unwrap();
    assert_eq!(fill(&outbox, "metrics", 60_000, 20).await.0, 20);
    // Logs alone never push anything but older logs out.
    let (taken, refused) = fill(&outbox, "logs", 60_000, 200).await;
    assert!((taken, refused.is_none()) == (200, true));
    let shed = outbox.state().borrow().shed_records.clone();
    assert!(shed[&name("logs")] > 80 && !shed.contains_key(&name("metrics")), "{shed:?}");
    let read = all(&outbox, &key(&outbox, "logs")).await;
    let gone = read.iter().take_while(|r| **r == Err(GapReason::Shed)).count() as u64;
    assert_eq!(gone, shed[&name("logs")], "counted, and the oldest of them");
    assert!(read[gone as usize..].iter().all(Result::is_ok) && read.len() == 200);
    let Some(Item::Gap(gap)) = outbox.read(&key(&outbox, "logs"), 0..200).await.unwrap() else { panic!() };
    assert_eq!(gap.count, gone, "one tombstone for all of them");

    let (taken, refused) = fill(&outbox, "scans", 60_000, 500).await;
    let Some(AppendError::Full { disk: false, used_bytes, limit_bytes }) = refused else { panic!("{refused:?}") };
    assert!(used_bytes <= limit_bytes && taken > 90, "{used_bytes} of {limit_bytes}, {taken} taken");
    let state = outbox.state().borrow().clone();
    assert_eq!((state.shed_records[&name("logs")], state.shed_records[&name("metrics")]), (200, 20));
    assert!(state.full && state.bytes <= quota_bytes + (1 << 20), "{state:?}");
    assert_eq!(all(&outbox, &key(&outbox, "scans")).await.iter().filter(|r| r.is_ok()).count() as u64, taken);
    assert!(matches!(fill(&outbox, "logs", 9, 1).await.1, Some(AppendError::Full { .. })));

    // One that is acknowledged is not enough, a tenth is.
    let scans = key(&outbox, "scans");
    outbox.delete(&scans, vec![0..1]).await.unwrap();
    assert!(fill(&outbox, "scans", 9, 1).await.1.is_some());
    outbox.delete(&scans, vec![0..taken / 10]).await.unwrap();
    assert!(fill(&outbox, "scans", 9, 1).await.1.is_none());
    assert!(!outbox.state().borrow().full);
    close(outbox).await;
    let outbox = Outbox::open(folder.path(), OutboxConfig { quota_bytes, ..config() }, env()).await.unwrap();
    assert_eq!(outbox.state().borrow().shed_records[&name("logs")], 200, "counts survive a restart");
}

/// A small disk of its own.
struct Disk(tempfile::TempDir);

impl Disk {
    fn mount(mebi: u64) -> Option<Disk> {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={mebi}m");
        let flags = nix::mount::MsFlags::empty();
        match nix::mount::mount(Some("tmpfs"), folder.path(), Some("tmpfs"), flags, Some(options.as_str())) {
            Ok(()) => Some(Disk(folder)),
            Err(error) => {
                eprintln!("no disk can be mounted here ({error}): what a full one does is not tested");
                None
            }
        }
    }

    /// Who has its room.
    fn tell(&self) -> String {
        let size = |file: &str| fs::metadata(self.0.path().join("outbox").join(file)).map_or(0, |m| m.len());
        let files = ["outbox.db", "outbox.db-wal", "outbox.db-shm", "ballast"].map(|file| (file, size(file)));
        format!("{files:?}, {} bytes free", nix::sys::statvfs::statvfs(self.0.path()).unwrap().blocks_free() * 4096)
    }

    /// Takes all of its room; returns the file that has it.
    fn fill(&self) -> std::path::PathBuf {
        let path = self.0.path().join("somebody else's");
        let mut file = fs::File::create(&path).unwrap();
        for bytes in [1 << 20, 4096, 1] {
            while std::io::Write::write_all(&mut file, &vec![1; bytes]).is_ok() {}
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_full_disk_pushes_back_and_loses_nothing() {
    let Some(disk) = Disk::mount(32) else { return };
    let folder = disk.0.path().join("outbox");
    let outbox = open(&folder).await;
    let wait = async {
        while !folder.join("ballast").exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
    assert_eq!(fill(&outbox, "scans", 100_000, 40).await.0, 40);
    assert_eq!(fill(&outbox, "logs", 100_000, 40).await.0, 40);

    let other = disk.fill();
    // Logs give way here too, before scans are refused.
    let (taken, refused) = fill(&outbox, "scans", 100_000, 500).await;
    assert!(matches!(refused, Some(AppendError::Full { disk: true, .. })), "{refused:?}");
    assert!(taken >= 20, "{taken} taken in the place of logs");
    assert!(outbox.state().borrow().full);
    assert!(outbox.state().borrow().shed_records[&name("logs")] > 20);
    let scans = key(&outbox, "scans");
    let read = all(&outbox, &scans).await;
    assert_eq!((read.len() as u64, read.iter().all(Result::is_ok)), (40 + taken, true), "what was taken is there");

    // What the hub takes makes room, although the disk stays full.
    outbox.delete(&scans, vec![0..30]).await.unwrap();
    assert_eq!(held(&outbox, "scans").first, 30);
    let (more, refused) = fill(&outbox, "scans", 100_000, 10).await;
    assert!(more >= 5, "{more} taken, then {refused:?}; {}", disk.tell());
    assert!(outbox.state().borrow().problem.is_none());

    // A start on a full disk, too.
    close(outbox).await;
    let outbox = open(&folder).await;
    assert_eq!(
        held(&outbox, "scans"),
        Held { key: scans.clone(), class: Class::Scans, first: 30, next: 40 + taken + more }
    );
    fs::remove_file(other).unwrap();
    assert_eq!(fill(&outbox, "scans", 100_000, 40).await.0, 40);
    assert!(!outbox.state().borrow().full);
    let read = all(&outbox, &scans).await;
    assert!(read[30..].iter().all(Result::is_ok));
}
