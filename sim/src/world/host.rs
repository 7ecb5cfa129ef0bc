//! A simulated machine: its address, its clock, its tasks and the folder that is its disk.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use proto::env::{Blocking, Env, Seed};
use tokio::time::Instant;

use crate::{
    clock::{HostClock, Tasks},
    net::Net,
};

/// Free memory from which on the simulated disks are kept there.
const ENOUGH_MEMORY_BYTES: u64 = 2 << 30;

/// A simulated machine. Clones are handles of the same one.
#[derive(Clone)]
pub(super) struct Host {
    pub name: String,
    pub ip: IpAddr,
    pub clock: HostClock,
    pub tasks: Tasks,
    pub disk: PathBuf,
    seed: Seed,
    /// Counts starts: a process that starts again draws new randomness.
    starts: Arc<AtomicU32>,
}

impl Host {
    pub fn new(net: &Net, seed: &Seed, name: &str, start: Instant, folder: &tempfile::TempDir) -> Host {
        Host {
            name: name.to_owned(),
            ip: net.add_host(name),
            clock: HostClock::new(start),
            tasks: Tasks::default(),
            disk: folder.path().join(name),
            seed: seed.child(name),
            starts: Arc::default(),
        }
    }

    /// Counts a start; returns how many there were with this.
    pub fn starts(&self) -> u32 {
        self.starts.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The outside as the process that started last sees it.
    pub fn env(&self, net: &Net) -> Env {
        Env {
            wall: Arc::new(self.clock.clone()),
            seed: self.seed.child(&format!("start {}", self.starts.load(Ordering::Relaxed))),
            blocking: Blocking::Inline,
            network: net.host(self.ip, self.tasks.clone()),
        }
    }

    /// Ends all processes where they stand.
    pub async fn stop(&self, net: &Net) {
        net.silence(self.ip);
        self.tasks.kill().await;
    }
}

/// A folder for all simulated disks: in memory where there is plenty, since every write is synced.
pub(super) fn disk() -> anyhow::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("sim-");
    let memory = Path::new("/dev/shm");
    let free = rustix::fs::statvfs(memory).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    if free >= ENOUGH_MEMORY_BYTES
        && let Ok(folder) = builder.tempdir_in(memory)
    {
        return Ok(folder);
    }
    Ok(builder.tempdir()?)
}
