//! A simulated machine: its address, its clock, its tasks and the folder that is its disk.

use std::{
    fs::{self, DirBuilder, File},
    io,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::Context as _;
use proto::{
    digest::Digest,
    env::{Blocking, Env, Seed},
};
use tokio::time::Instant;

use crate::{
    clock::{HostClock, Tasks},
    disk::{Disk, Lost},
    net::Net,
};

/// Free memory from which on the simulated disks are kept there.
const ENOUGH_MEMORY_BYTES: u64 = 2 << 30;

/// Attempts to have the folder of a run, which one that ends may remove at that moment.
const ATTEMPTS: u32 = 100;

/// A simulated machine. Clones are handles of the same one.
#[derive(Clone)]
pub(super) struct Host {
    pub name: String,
    pub ip: IpAddr,
    pub clock: HostClock,
    pub tasks: Tasks,
    pub disk: PathBuf,
    /// What becomes of that folder when the power goes or it is full.
    pub device: Arc<Disk>,
    seed: Seed,
    /// Counts starts: a process that starts again draws new randomness.
    starts: Arc<AtomicU32>,
}

impl Host {
    pub fn new(net: &Net, seed: &Seed, name: &str, start: Instant, folder: &Folder) -> anyhow::Result<Host> {
        // Apart from what the engineer, releases and backups have beside it: a box may have any name.
        let disk = folder.path().join("hosts").join(name);
        let device = Arc::new(Disk::new(&disk).with_context(|| format!("make a disk for {name}"))?);
        Ok(Host {
            name: name.to_owned(),
            ip: net.add_host(name),
            clock: HostClock::new(start),
            tasks: Tasks::default(),
            disk,
            device,
            seed: seed.child(name),
            starts: Arc::default(),
        })
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

    /// Ends all processes where they stand. What their destructors would still write is not written.
    pub async fn stop(&self, net: &Net) {
        net.silence(self.ip);
        self.device.freeze(true);
        self.tasks.kill().await;
        self.device.freeze(false);
    }

    /// After [`Host::stop`]: the power is gone. What was not synced may be lost, or is not when it was turned off
    /// in order. Returns what was lost.
    pub fn power_off(&self, in_order: bool) -> anyhow::Result<Lost> {
        if in_order {
            self.device.forget();
            return Ok(Lost::default());
        }
        let starts = self.starts.load(Ordering::Relaxed);
        let seed = self.seed.child(&format!("power cut after start {starts}"));
        self.device.power_cut(&seed).with_context(|| format!("cut the power of {}", self.name))
    }
}

/// A folder for all simulated disks: in memory where there is plenty, since every write is synced.
///
/// Its name stands in messages of agents, which are compressed on their way: it is the same whenever a run is
/// repeated. A run beside one that is the same waits until that is over.
pub(super) fn disk(seed: &Seed) -> anyhow::Result<Folder> {
    let memory = Path::new("/dev/shm");
    let free = rustix::fs::statvfs(memory).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    let base = if free >= ENOUGH_MEMORY_BYTES { memory.to_owned() } else { std::env::temp_dir() };
    let thread = std::thread::current().name().unwrap_or_default().to_owned(); // says what is played
    let own = Digest::of(format!("{thread} {:?}", seed.bytes::<8>("folder")).as_bytes()).hex();
    let path = base.join(format!("sim-{}", own.get(..12).unwrap_or_default()));
    for _ in 0..ATTEMPTS {
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        let lock = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // its last owner just removed it
            Err(_) => break,                                                   // somebody else's
            Ok(lock) => lock,
        };
        if lock.try_lock().is_err() {
            tracing::warn!(folder = %path.display(), "the same is played beside this; it waits for that to end");
            lock.lock()?;
        }
        let (held, there) = (lock.metadata()?, fs::symlink_metadata(&path));
        // Everybody may write where it lies: what is cleared is our own folder, not one that a link leads to.
        if !held.is_dir() || held.uid() != rustix::process::geteuid().as_raw() {
            break;
        }
        if !there.is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino())) {
            continue;
        }
        let folder = Folder { path, _lock: lock };
        for old in fs::read_dir(&folder.path)? {
            let old = old?.path();
            let gone = if old.is_dir() { fs::remove_dir_all(&old) } else { fs::remove_file(&old) };
            gone.context("clear away what a run that was killed left")?;
        }
        return Ok(folder);
    }
    let path = tempfile::Builder::new().prefix("sim-").tempdir_in(&base)?.keep();
    Ok(Folder { _lock: File::open(&path)?, path })
}

/// It goes away when this is dropped; until then no other run takes it.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path); // the next run of this name clears it away
    }
}

/// A hundred agents have more files open than a process may by default.
pub(super) fn allow_many_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit); // with fewer, a large fleet says so itself
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn a_run_beside_the_same_waits_and_has_the_same_folder() {
        let seed = Seed::from_u64(1);
        let first = disk(&seed).unwrap();
        let path = first.path().to_owned();
        let (sender, receiver) = mpsc::channel();
        let name = thread::current().name().unwrap().to_owned();
        let beside = thread::Builder::new().name(name).spawn(move || sender.send(disk(&seed).unwrap())).unwrap();
        let waits = receiver.recv_timeout(std::time::Duration::from_millis(50));
        assert_eq!(waits.map(|folder| folder.path().to_owned()), Err(mpsc::RecvTimeoutError::Timeout));
        drop(first);
        assert_eq!(receiver.recv().unwrap().path(), path);
        beside.join().unwrap().unwrap();
    }
}
