//! What the box is and how it does: facts, figures and conditions for the report.
//!
//! The agent's link asks before each report and heartbeat, and so do its metrics. Everything comes from
//! small files of `/proc` and `/sys`; what a box does not tell stays empty, and nothing here fails.

mod conditions;
mod read;

use std::{
    env,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use proto::object::{Condition, NodeInfo, Usage};

use conditions::Conditions;
use read::CpuTimes;

use crate::gpu::GpuWatch;

/// Environment variable that overrides the machine id, for boxes whose firmware lies and for tests.
pub const MACHINE_ID_VARIABLE: &str = "CROSSDOCK_MACHINE_ID";

/// Facts about this box. Cheap to clone; clones share their state.
#[derive(Debug, Clone)]
pub struct Facts {
    source: Arc<Source>,
    state: Arc<Mutex<State>>,
    gpus: GpuWatch,
}

#[derive(Debug)]
enum Source {
    Machine { state_dir: PathBuf },
    Fixed(Box<NodeInfo>),
}

/// What the processors had done at a moment: a busy share counts from one.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuSample(CpuTimes);

#[derive(Debug, Default)]
struct State {
    cpu: CpuSample,
    conditions: Conditions,
}

/// Memory of this machine that programs can get without swapping, in bytes; `None` when the kernel does not tell.
#[must_use]
pub fn memory_available_bytes() -> Option<u64> {
    read::memory_available_bytes()
}

impl Facts {
    /// Facts of the machine that this runs on; `state_dir` is the folder whose disk matters.
    #[must_use]
    pub fn new(state_dir: PathBuf) -> Facts {
        Facts::of(Source::Machine { state_dir })
    }

    /// Constant facts, for the simulator: usage is empty, the machine id is the host name.
    #[must_use]
    pub fn fixed(info: NodeInfo) -> Facts {
        Facts::of(Source::Fixed(Box::new(info)))
    }

    fn of(source: Source) -> Facts {
        Facts { source: Arc::new(source), state: Arc::default(), gpus: GpuWatch::none() }
    }

    /// With GPUs, which a box has not by itself.
    #[must_use]
    pub fn with_gpus(self, gpus: GpuWatch) -> Facts {
        Facts { gpus, ..self }
    }

    /// What is known of its GPUs, and who has them.
    #[must_use]
    pub fn gpus(&self) -> &GpuWatch {
        &self.gpus
    }

    /// Hardware classes that it serves now: `x86_64`, and `x86_64+nvidia` while a GPU works.
    #[must_use]
    pub fn hardware(&self) -> Vec<String> {
        self.info().hardware
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What stays while the box is up, read anew.
    #[must_use]
    pub fn info(&self) -> NodeInfo {
        let mut info = match &*self.source {
            Source::Machine { .. } => read::info(),
            Source::Fixed(info) => (**info).clone(),
        };
        info.nvidia = self.gpus.inventory();
        // Before the first look a driver that is loaded counts as one that works.
        let is_loaded = || matches!(&*self.source, Source::Machine { .. }) && read::has_nvidia_driver();
        if self.gpus.serves().unwrap_or_else(is_loaded) {
            info.hardware.push(format!("{}+nvidia", info.architecture));
        }
        info
    }

    /// What changes all the time. The busy share counts from the call before.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let mut since = self.state().cpu;
        let usage = self.usage_since(&mut since);
        self.state().cpu = since;
        usage
    }

    /// As [`Facts::usage`] for another who asks: the busy share counts from `since`, which becomes now.
    #[must_use]
    pub fn usage_since(&self, since: &mut CpuSample) -> Usage {
        let usage = match &*self.source {
            Source::Machine { state_dir } => {
                let now = CpuTimes::read();
                let before = std::mem::replace(&mut since.0, now);
                read::usage(state_dir, now.busy_permille_since(before))
            }
            Source::Fixed(_) => Usage::default(),
        };
        Usage { gpus: self.gpus.usage(), ..usage }
    }

    /// A sample of the processors now.
    #[must_use]
    pub fn sample(&self) -> CpuSample {
        match &*self.source {
            Source::Machine { .. } => CpuSample(CpuTimes::read()),
            Source::Fixed(_) => CpuSample::default(),
        }
    }

    /// Bytes of memory of the box.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        match &*self.source {
            Source::Machine { .. } => read::memory_total_bytes(),
            Source::Fixed(info) => info.memory_bytes,
        }
    }

    /// `DiskPressure`, `MemoryPressure` and `ClockSkew`, with hysteresis. A condition's text changes
    /// only together with its status, so that an unchanged report stays unchanged; until then the same ones are returned.
    #[must_use]
    pub fn conditions(&self, now: Timestamp) -> Arc<[Condition]> {
        let usage = match &*self.source {
            // Without the processor: its busy share counts from one heartbeat to the next.
            Source::Machine { state_dir } => read::usage(state_dir, 0),
            Source::Fixed(_) => Usage::default(),
        };
        self.state().conditions.update(&usage, self.memory_bytes(), now)
    }

    /// What the hub's clock said when ours said `now`.
    pub fn set_hub_clock(&self, hub: Timestamp, now: Timestamp) {
        self.state().conditions.set_clock_offset(now.duration_since(hub));
    }

    /// Identity of the hardware, which survives a reinstall where the hardware has one.
    #[must_use]
    pub fn machine_id(&self) -> String {
        match &*self.source {
            Source::Machine { .. } => match env::var(MACHINE_ID_VARIABLE) {
                Ok(id) if !id.trim().is_empty() => id.trim().to_owned(),
                _ => read::machine_id(),
            },
            Source::Fixed(info) => info.hostname.clone(),
        }
    }

    /// Changes with every boot.
    #[must_use]
    pub fn boot_id(&self) -> String {
        match &*self.source {
            Source::Machine { .. } => crate::driver::procs::boot_id(),
            Source::Fixed(info) => info.boot_id.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_facts() {
        let folder = tempfile::tempdir().unwrap();
        let facts = Facts::new(folder.path().to_owned());
        let info = facts.info();
        assert!(info.cpus > 0 && info.memory_bytes > 16 << 20);
        assert!(!info.kernel.is_empty() && !info.os_image.is_empty() && info.boot_id == facts.boot_id());
        assert_eq!(info.hardware.first(), Some(&info.architecture));
        assert!(info.addresses.iter().all(|a| a.interface != "lo"));
        assert!(!facts.machine_id().is_empty());
        let usage = facts.usage();
        assert!(usage.uptime_s > 0 && usage.memory_used_bytes > 0 && usage.cpu_permille <= 1000);
        assert!(usage.memory_used_bytes < info.memory_bytes);
        assert!(usage.disks[0].total_bytes >= usage.disks[0].free_bytes);
        let sample = facts.state().cpu.0;
        assert_eq!(facts.conditions(Timestamp::UNIX_EPOCH).len(), 3);
        assert_eq!(facts.state().cpu.0, sample, "the next heartbeat counts from the one before");
    }

    #[test]
    fn fixed_facts_are_constant() {
        let info = NodeInfo { hostname: "sim-1".into(), ..read::info() };
        let facts = Facts::fixed(info.clone());
        assert_eq!((facts.info(), facts.machine_id()), (info, "sim-1".into()));
        assert_eq!(facts.usage(), Usage::default());
    }
}
