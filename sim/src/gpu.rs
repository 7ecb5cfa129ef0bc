//! GPUs that only pretend: each box has as many as its site says, of 24 GiB, and faults take the first one away.
//!
//! One [`SimGpus`] a box. The agent looks at them through its probe, as it looks at NVIDIA's library on a real box;
//! [`crate::driver`] asks them what became of a GPU that a workload was given.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edgecore::gpu::{
    GpuProbe, GpuWatch,
    look::{Device, Driver, Look},
};
use proto::{env::BoxFuture, object::GpuUsage};

/// Memory of a simulated GPU.
pub const MEMORY_BYTES: u64 = 24 << 30;

/// How the first GPU of a box is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct First {
    /// It fell off the bus: what uses it ends.
    pub lost: bool,
    /// Its memory lost data: what uses it goes on, and nothing new is to be given it.
    pub sick: bool,
}

/// The GPUs of one box. Clones are handles of the same ones.
#[derive(Debug, Clone)]
pub struct SimGpus {
    host: String,
    count: u32,
    first: Arc<Mutex<First>>,
}

impl SimGpus {
    /// So many, all well.
    #[must_use]
    pub fn new(host: &str, count: u32) -> SimGpus {
        SimGpus { host: host.to_owned(), count, first: Arc::default() }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    fn first(&self) -> MutexGuard<'_, First> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the first one be so.
    pub fn set(&self, first: First) {
        *self.first() = first;
    }

    fn uuid(&self, index: u32) -> String {
        format!("GPU-{}-{index}", self.host)
    }

    /// Whether the box has such a GPU.
    #[must_use]
    pub fn has(&self, uuid: &str) -> bool {
        (0..self.count).any(|index| self.uuid(index) == uuid)
    }

    /// Whether a GPU answers.
    #[must_use]
    pub fn answers(&self, uuid: &str) -> bool {
        self.has(uuid) && !(self.first().lost && uuid == self.uuid(0))
    }

    /// What an agent looks through.
    #[must_use]
    pub fn watch(&self) -> GpuWatch {
        if self.count == 0 { GpuWatch::none() } else { GpuWatch::new(Box::new(self.clone())) }
    }

    fn seen(&self) -> Look {
        let first = *self.first();
        let device = |index: u32| Device {
            uuid: Some(self.uuid(index)),
            index,
            model: "simulated".into(),
            memory_bytes: MEMORY_BYTES,
            lost: (index == 0 && first.lost).then(|| "device fell off the bus".into()),
            usage: GpuUsage { ecc_uncorrected: Some(u64::from(index == 0 && first.sick)), ..GpuUsage::default() },
            ..Device::default()
        };
        let driver = Driver::Working { version: "550.54.15".into(), cuda: "12.4".into() };
        Look { driver, devices: (0..self.count).map(device).collect() }
    }
}

impl GpuProbe for SimGpus {
    fn look(&mut self) -> BoxFuture<'_, Look> {
        let look = self.seen();
        Box::pin(std::future::ready(look))
    }
}
