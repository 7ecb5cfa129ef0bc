//! What one look at the GPUs of a box tells. It travels from the helper to the agent as a line of JSON.

use proto::object::GpuUsage;
use serde::{Deserialize, Serialize};

/// One look.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// How the driver is.
    pub driver: Driver,
    /// The GPUs that were found, by index; none unless the driver works.
    #[serde(default)]
    pub devices: Vec<Device>,
}

/// How the driver is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum Driver {
    /// There is none, or no library to ask it with. A fact.
    Absent {
        /// What is missing.
        why: String,
    },
    /// There is one, and nothing can be learned from it.
    Trouble {
        /// One word for programs, of [`reason`].
        reason: String,
        /// What is wrong and how to mend it.
        message: String,
    },
    /// It works.
    Working {
        /// Its version.
        version: String,
        /// Newest CUDA that it knows.
        cuda: String,
    },
}

/// One GPU in a look.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Device {
    /// Absent when it could not even be asked for that.
    #[serde(default)]
    pub uuid: Option<String>,
    /// As the driver counts.
    pub index: u32,
    /// Its name.
    #[serde(default)]
    pub model: String,
    /// Bytes of its memory.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Why it does not answer, in NVML's words.
    #[serde(default)]
    pub lost: Option<String>,
    /// Xids since the look before, oldest first.
    #[serde(default)]
    pub xids: Vec<u64>,
    /// Figures, without its uuid and its last Xid.
    #[serde(default)]
    pub usage: GpuUsage,
}

/// What can be wrong with a GPU or its driver, in one word for programs.
pub mod reason {
    /// It does not answer, fell off the bus, or is gone.
    pub const LOST: &str = "GpuLost";
    /// The driver told of an error that is not an application's.
    pub const XID: &str = "GpuXid";
    /// Its memory lost data.
    pub const ECC: &str = "GpuEccUncorrected";
    /// It slows itself down so as not to burn.
    pub const HOT: &str = "GpuOverheating";
    /// NVML did not answer in time.
    pub const HANGS: &str = "NvmlHangs";
    /// Library and kernel module are of different versions.
    pub const MISMATCH: &str = "DriverMismatch";
    /// The driver went away while the agent ran.
    pub const GONE: &str = "DriverGone";
    /// NVML answers with another error, or died.
    pub const FAILED: &str = "NvmlFailed";
}

impl Driver {
    /// Trouble of a kind.
    #[must_use]
    pub fn trouble(reason: &str, message: impl Into<String>) -> Driver {
        Driver::Trouble { reason: reason.into(), message: message.into() }
    }
}

impl Look {
    /// A look that found no GPUs.
    #[must_use]
    pub fn without(driver: Driver) -> Look {
        Look { driver, devices: vec![] }
    }
}
